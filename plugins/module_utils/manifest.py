# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The manifest: what a host shall be, as plain data shared by the controller and the host.

The controller composes one manifest per host; the host compares it with itself. It is JSON, sorted and
free of time stamps and secrets. File contents are named by their SHA-256 and shipped only when the host
does not have them; a file with secrets is shipped as a template with named *holes* which the host fills
from its own secret store, so neither the contents nor a plain digest of a secret is ever in a manifest.

Standard library only: this module runs on hosts.
"""

from __future__ import annotations

import hashlib
import json
import re
import typing as t
from dataclasses import dataclass, field, fields

#: Version of the manifest format. A host refuses a manifest with another number.
SCHEMA = 1

#: The order in which tiers are applied.
TIERS: tuple[str, ...] = ("core", "infrastructure", "services")

#: A hole in a file template: ``@@hearth:SERVICE/KEY@@`` is replaced by the value of that secret.
HOLE = "@@hearth:{0}@@"

_HOLE = re.compile(r"@@hearth:([a-z0-9_]+/[A-Za-z0-9_.-]+)@@")

#: Every kind of item, in the order in which kinds are applied (design section 5).
KINDS: tuple[str, ...] = (
    "hostname",
    "group",
    "user",
    "storage",
    "package",
    "initialize",
    "secret",
    "directory",
    "symlink",
    "file",
    "locale",
    "firewall",
    "image",
    "podman_secret",
    "unit",
    "postgresql_role",
    "postgresql_database",
    "configure",
)


def holes(text: str) -> tuple[str, ...]:
    """Names of the secrets (``SERVICE/KEY``) that a text has holes for, sorted."""
    return tuple(sorted(set(_HOLE.findall(text))))


@dataclass(frozen=True)
class Item:
    """One thing that shall be true on the host.

    ``service`` is the service of this host that owns the item: it is applied, taken back and removed
    together with that service. ``name`` identifies the item within its kind.
    """

    kind: t.ClassVar[str] = ""
    name: str
    service: str

    @property
    def id(self) -> str:
        """``KIND:NAME``, unique in a manifest."""
        return f"{self.kind}:{self.name}"

    def to_dict(self) -> dict[str, t.Any]:
        """Plain data with the kind; fields that hold their default are left out."""
        data: dict[str, t.Any] = {"kind": self.kind}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name in ("name", "service") or value != _default(entry):
                data[entry.name] = list(value) if isinstance(value, tuple) else value
        return data


def _default(entry: t.Any) -> t.Any:
    factory = entry.default_factory
    return factory() if callable(factory) else entry.default


@dataclass(frozen=True)
class Hostname(Item):
    """The host's static and transient name (``name``)."""

    kind: t.ClassVar[str] = "hostname"


@dataclass(frozen=True)
class Group(Item):
    """A group with a fixed id. Never removed: data on disk may carry the id."""

    kind: t.ClassVar[str] = "group"
    gid: int = 0


@dataclass(frozen=True)
class User(Item):
    """A user with a fixed id, made before any package's maintainer script could choose another one.

    ``system`` users have no password and no login shell. An existing user with another id is a problem
    that is reported with the files concerned, never mended by a chown. Never removed by converge.
    """

    kind: t.ClassVar[str] = "user"
    uid: int = 0
    group: str = ""  # the primary group's name
    groups: tuple[str, ...] = ()  # supplementary groups; added, never taken away
    home: str = "/nonexistent"
    shell: str = "/usr/sbin/nologin"
    comment: str = ""
    system: bool = True


@dataclass(frozen=True)
class Storage(Item):
    """Persistent data of a service (``name`` is its path), with mark and sentinel (design section 6).

    Provider ``zfs``: ``dataset`` is its dataset, mounted at the path, and ``properties`` are the dataset's.
    """

    kind: t.ClassVar[str] = "storage"
    owner: str = "root"
    group: str = "root"
    mode: str = "0750"
    provider: str = "directory"
    protection: str = "standard"  # the protection class
    empty_start: bool = True  # no tier is declared that could hold data: new storage starts empty
    dataset: str = ""
    properties: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Package(Item):
    """A Debian package that shall be installed. Packages are a floor: never removed."""

    kind: t.ClassVar[str] = "package"
    replaces: tuple[str, ...] = ()  # packages that its installation may remove


@dataclass(frozen=True)
class Initialize(Item):
    """A command that creates a service's first data, run once on storage that is new and empty.

    It is run when ``creates`` (an absolute path) does not exist and ``storage`` (a Storage item's name) has
    our mark and no sentinel; with a sentinel and without ``creates`` data was lost and the run stops. What it left in
    ``storage`` and at ``makes`` (paths elsewhere) when it was interrupted is set aside, so that it can run again.
    """

    kind: t.ClassVar[str] = "initialize"
    argv: tuple[str, ...] = ()
    creates: str = ""
    storage: str = ""
    user: str = "root"
    makes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Secret(Item):
    """A secret in the host's store, ``/var/lib/hearth/secrets/SERVICE/KEY`` (0400 root).

    ``name`` is ``SERVICE/KEY``. Its value travels only in the exchange's no_log part, when the keyed digest
    (HMAC under a nonce of the run) that the host computes differs from the controller's. ``data``: it encrypts data
    or pairs devices, so another value is refused once there is data.
    """

    kind: t.ClassVar[str] = "secret"
    data: bool = False


@dataclass(frozen=True)
class Directory(Item):
    """A directory that is not data: made, with owner and mode; removed again only when empty.

    ``create_only``: somebody else's once it exists (a mount point: what is mounted there has attributes of its own).
    """

    kind: t.ClassVar[str] = "directory"
    owner: str = "root"
    group: str = "root"
    mode: str = "0755"
    create_only: bool = False


@dataclass(frozen=True)
class Symlink(Item):
    """A symbolic link (``name`` is its path)."""

    kind: t.ClassVar[str] = "symlink"
    target: str = ""


@dataclass(frozen=True)
class File(Item):
    """A regular file (``name`` is its path).

    ``digest`` and ``size`` (bytes) are those of the content before its holes are filled. ``holes`` are names
    of secrets (``SERVICE/KEY``); the content has ``HOLE.format(name)`` where the value goes. ``create_only``
    files belong to the application once they exist: only their absence is mended. ``early`` files are placed
    before packages are installed (apt sources, createcluster.conf).
    """

    kind: t.ClassVar[str] = "file"
    digest: str = ""
    size: int = 0
    owner: str = "root"
    group: str = "root"
    mode: str = "0644"
    holes: tuple[str, ...] = ()
    create_only: bool = False
    early: bool = False


@dataclass(frozen=True)
class Locale(Item):
    """A locale that shall be generated, such as ``en_GB.UTF-8``."""

    kind: t.ClassVar[str] = "locale"


@dataclass(frozen=True)
class Firewall(Item):
    """The nftables table ``name`` (such as ``inet hearth``) as the ruleset file ``path`` defines it.

    Compared live: the file is loaded in a network namespace of its own and both listings are compared.
    """

    kind: t.ClassVar[str] = "firewall"
    path: str = ""


@dataclass(frozen=True)
class Image(Item):
    """A container image (``name`` is the full reference) that shall be in podman's storage."""

    kind: t.ClassVar[str] = "image"


@dataclass(frozen=True)
class PodmanSecret(Item):
    """A podman secret ``name`` holding the stored secret ``secret`` (``SERVICE/KEY``)."""

    kind: t.ClassVar[str] = "podman_secret"
    secret: str = ""


@dataclass(frozen=True)
class Unit(Item):
    """A systemd unit (``name`` with suffix).

    ``enabled``: True, False or None (static, generated or left alone). ``running``: True (started and kept
    running), False (stopped) or None (left alone, such as a oneshot that timers start).
    ``restart_on`` and ``reload_on`` are ids of items: when one of them changes, exactly this unit is
    restarted (or reloaded; a restart wins). ``guarded``: a change may cut the controller off, so it is
    undone unless the controller confirms over a new connection. ``effects`` are what a oneshot that stays active has
    made, ``PATH`` (it exists) or ``PATH=TEXT`` (its content, white space aside): systemd still says "active" when
    somebody takes them away by hand, so they are compared themselves, and the unit is restarted to make them again.
    ``needs`` are ids of items that it cannot start without, whichever service has them: a run for some services only
    makes them as well.
    """

    kind: t.ClassVar[str] = "unit"
    enabled: bool | None = True
    running: bool | None = True
    restart_on: tuple[str, ...] = ()
    reload_on: tuple[str, ...] = ()
    guarded: bool = False
    effects: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class PostgresqlRole(Item):
    """A PostgreSQL login role (``name``); ``secret`` names its password, or peer authentication if empty.

    ``member_of`` are exactly the predefined roles that it is a member of; memberships in other roles are not looked at.
    """

    kind: t.ClassVar[str] = "postgresql_role"
    secret: str = ""
    login: bool = True
    member_of: tuple[str, ...] = ()
    provider: str = "postgresql"  # the service of this host that is the server


@dataclass(frozen=True)
class PostgresqlDatabase(Item):
    """A PostgreSQL database (``name``) with its owner and extensions. Never dropped by converge."""

    kind: t.ClassVar[str] = "postgresql_database"
    owner: str = ""
    extensions: tuple[str, ...] = ()
    encoding: str = "UTF8"
    provider: str = "postgresql"


@dataclass(frozen=True)
class Configure(Item):
    """An object that only an application's API can make (``name`` is ``SERVICE/NAME``).

    ``provider`` is the service of this host whose API it is, ``url`` the collection there, ``match`` the key by which
    the object is found. ``desired`` and ``headers`` have holes where secrets go, named in ``holes``; keys in ``ignore``
    are said when the object is made and left alone afterwards.
    """

    kind: t.ClassVar[str] = "configure"
    provider: str = ""
    url: str = ""
    match: str = "name"
    desired: dict[str, t.Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    holes: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    method_create: str = "POST"
    method_update: str = "PUT"


ITEM_TYPES: dict[str, type[Item]] = {
    cls.kind: cls
    for cls in (
        Hostname, Group, User, Storage, Package, Initialize, Secret, Directory, Symlink, File, Locale,
        Firewall, Image, PodmanSecret, Unit, PostgresqlRole, PostgresqlDatabase, Configure,
    )
}  # fmt: skip


def item_from_dict(data: t.Mapping[str, t.Any]) -> Item:
    """The item that ``Item.to_dict`` described; ValueError for an unknown kind or field."""
    values = dict(data)
    kind = values.pop("kind", None)
    cls = ITEM_TYPES.get(kind or "")
    if cls is None:
        raise ValueError(f"unknown kind of item {kind!r} in the manifest")
    known = {entry.name for entry in fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r} of a {kind} item in the manifest")
    return cls(**_tuples(values))


def _tuples(data: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


@dataclass(frozen=True)
class Check:
    """One health check. ``type`` is ``http``, ``tcp`` or ``command``; a service's units are always checked.

    http: ``url``, ``status`` (expected), ``insecure`` TLS never. tcp: ``address`` and ``port``.
    command: ``argv`` must exit 0, run as ``user``.
    """

    type: str
    url: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    address: str = "127.0.0.1"
    port: int = 0
    argv: tuple[str, ...] = ()
    user: str = "root"
    timeout: float = 5.0  # seconds

    def to_dict(self) -> dict[str, t.Any]:
        data: dict[str, t.Any] = {"type": self.type}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name != "type" and value != _default(entry):
                data[entry.name] = list(value) if isinstance(value, tuple) else value
        return data

    @classmethod
    def from_dict(cls, data: t.Mapping[str, t.Any]) -> Check:
        return cls(**_tuples(data))


@dataclass(frozen=True)
class ServiceState:
    """What the host must know of a service beside its items.

    ``requires`` and ``wants`` name services of this host; ``start_period`` is in seconds: the time a started
    service has until its checks must pass; ``settle`` the seconds that its units must then run without a restart.
    ``reversible``: an older program may be started on data that a newer one has written.
    """

    name: str
    tier: str
    summary: str = ""
    requires: tuple[str, ...] = ()
    wants: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    start_period: int = 60
    settle: int = 10
    listeners: tuple[str, ...] = ()  # "tcp/127.0.0.1/8989": address * means all
    url: str = ""
    stand_in: bool = False  # runs a stand-in image: proves wiring, never the application
    reversible: bool = False

    def to_dict(self) -> dict[str, t.Any]:
        data: dict[str, t.Any] = {"name": self.name, "tier": self.tier}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name in ("name", "tier") or value == _default(entry):
                continue
            if entry.name == "checks":
                value = [check.to_dict() for check in value]
            data[entry.name] = list(value) if isinstance(value, tuple) else value
        return data

    @classmethod
    def from_dict(cls, data: t.Mapping[str, t.Any]) -> ServiceState:
        values = _tuples(data)
        values["checks"] = tuple(Check.from_dict(check) for check in values.get("checks", ()))
        return cls(**values)


@dataclass(frozen=True)
class Validator:
    """A program that reads a set of files: run on the staged tree, under the files' final paths.

    It runs when a file under one of ``paths`` (exact, or a prefix ending in ``/``) changes. ``argv`` must exit 0.
    ``service`` is named in the error.
    """

    name: str
    service: str
    argv: tuple[str, ...]
    paths: tuple[str, ...]
    user: str = "root"

    def to_dict(self) -> dict[str, t.Any]:
        return {
            "name": self.name,
            "service": self.service,
            "argv": list(self.argv),
            "paths": list(self.paths),
            "user": self.user,
        }

    @classmethod
    def from_dict(cls, data: t.Mapping[str, t.Any]) -> Validator:
        return cls(data["name"], data["service"], tuple(data["argv"]), tuple(data["paths"]), data.get("user", "root"))

    def covers(self, path: str) -> bool:
        return any(path == entry or (entry.endswith("/") and path.startswith(entry)) for entry in self.paths)


@dataclass(frozen=True)
class Manifest:
    """One host's desired state. ``items`` are sorted by kind (in the order of KINDS) and name."""

    host: str
    release: str  # "debian13": what the controller rendered for; the host compares it with /etc/os-release
    architecture: str  # "amd64" or "arm64", compared with dpkg --print-architecture
    services: dict[str, ServiceState]
    items: tuple[Item, ...]
    validators: tuple[Validator, ...] = ()
    schema: int = SCHEMA

    def by_id(self) -> dict[str, Item]:
        return {item.id: item for item in self.items}

    def to_dict(self) -> dict[str, t.Any]:
        return {
            "schema": self.schema,
            "host": self.host,
            "release": self.release,
            "architecture": self.architecture,
            "services": {name: self.services[name].to_dict() for name in sorted(self.services)},
            "items": [item.to_dict() for item in self.items],
            "validators": [validator.to_dict() for validator in self.validators],
        }

    @classmethod
    def from_dict(cls, data: t.Mapping[str, t.Any]) -> Manifest:
        if data.get("schema") != SCHEMA:
            raise ValueError(f"the manifest has schema {data.get('schema')!r}, this host reads {SCHEMA}")
        return cls(
            host=data["host"],
            release=data["release"],
            architecture=data["architecture"],
            services={name: ServiceState.from_dict(value) for name, value in data["services"].items()},
            items=sort_items(item_from_dict(entry) for entry in data["items"]),
            validators=tuple(Validator.from_dict(entry) for entry in data.get("validators", ())),
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON: two equal manifests have equal digests."""
        return hashlib.sha256(canonical(self.to_dict())).hexdigest()


def sort_items(items: t.Iterable[Item]) -> tuple[Item, ...]:
    order = {kind: index for index, kind in enumerate(KINDS)}
    return tuple(sorted(items, key=lambda item: (order[item.kind], item.name)))


def canonical(data: t.Any) -> bytes:
    """Canonical JSON: sorted keys, no white space, UTF-8."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest(content: bytes) -> str:
    """SHA-256 of a content, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
