# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a plan consists of: actions, problems and notices, as plain data.

``planner.plan`` makes them from the observed state of a host and its manifest; check mode shows them, apply
performs them. Standard library only: this module runs on hosts.
"""

from __future__ import annotations

import typing as t
from dataclasses import asdict, dataclass, field

#: What may be done to an item of each kind. ``remove`` of a file that existed before Hearth is a ``restore``. A secret of
#: a service that is gone stays in the host's store as its data does, which it may encrypt; what delivered it (files,
#: units, podman secrets) is removed.
OPERATIONS: dict[str, tuple[str, ...]] = {
    "hostname": ("set",),
    "group": ("create",),
    "user": ("create", "modify"),
    "storage": ("create", "modify"),
    "package": ("install",),
    "initialize": ("run",),
    "secret": ("store", "attributes"),
    "directory": ("create", "modify", "remove"),
    "symlink": ("create", "modify", "remove", "restore"),
    "file": ("create", "modify", "attributes", "remove", "restore"),
    "locale": ("generate",),
    "firewall": ("load", "remove"),
    "image": ("pull",),
    "podman_secret": ("create", "modify", "remove"),
    "unit": ("start", "restart", "reload", "stop", "enable", "disable"),
    "postgresql_role": ("create", "modify", "disable"),
    "postgresql_database": ("create", "modify"),
    "configure": ("create", "modify", "remove"),
}


#: Changes of owner and mode, as kind and operation: they restart nothing, a running program has read its files.
ATTRIBUTES_ONLY: frozenset[tuple[str, str]] = frozenset(
    {("file", "attributes"), ("directory", "modify"), ("storage", "modify"), ("secret", "attributes")}
)


@dataclass(frozen=True)
class Action:
    """One step that makes the host equal to its manifest.

    ``id`` is the item's id (``file:/etc/hostname``), ``operation`` one of OPERATIONS of its kind, ``service`` the
    owner, ``before`` and ``after`` public descriptions (never a secret; for a file digest, mode, owner, group),
    ``reason`` a short sentence for people ("content differs", "template changed", "not running").
    """

    id: str
    operation: str
    service: str
    before: t.Any = None
    after: t.Any = None
    reason: str = ""

    @property
    def kind(self) -> str:
        return self.id.partition(":")[0]

    @property
    def name(self) -> str:
        return self.id.partition(":")[2]

    def to_dict(self) -> dict[str, t.Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: t.Mapping[str, t.Any]) -> Action:
        return cls(**data)


@dataclass(frozen=True)
class Problem:
    """Why nothing is changed: what was found, where, and what to do. ``item`` is an item's id or empty."""

    service: str
    item: str
    message: str
    remedy: str = ""

    def to_dict(self) -> dict[str, t.Any]:
        return asdict(self)


@dataclass(frozen=True)
class Notice:
    """Something people should know: a file changed by hand that will be overwritten, data that stays."""

    service: str
    item: str
    message: str

    def to_dict(self) -> dict[str, t.Any]:
        return asdict(self)


@dataclass
class Plan:
    """The result of ``planner.plan``.

    ``actions`` are in the order of application. ``unknown`` are items that cannot be compared before something
    else is applied (a database on a host without PostgreSQL). ``problems`` stop the run before any change.
    ``needs_blobs`` are digests whose contents the host lacks, ``needs_secrets`` names of secrets to ship.
    """

    actions: list[Action] = field(default_factory=list)
    unknown: list[Notice] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    needs_blobs: list[str] = field(default_factory=list)
    needs_secrets: list[str] = field(default_factory=list)

    @property
    def converged(self) -> bool:
        return not (self.actions or self.problems or self.unknown)

    def to_dict(self) -> dict[str, t.Any]:
        return asdict(self)
