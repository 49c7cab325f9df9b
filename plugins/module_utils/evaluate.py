# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Observe and plan: the one function that check mode, converge and settle share.

Standard library only: this module runs on hosts.
"""

from __future__ import annotations

import os
import secrets
import typing as t
from dataclasses import dataclass, field

from ansible_collections.hearth.homelab.plugins.module_utils import generations, planner
from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.module_utils.actions import Plan
from ansible_collections.hearth.homelab.plugins.module_utils.layout import Layout
from ansible_collections.hearth.homelab.plugins.module_utils.observe import Observed, observe
from ansible_collections.hearth.homelab.plugins.module_utils.protocol import secret_digest
from ansible_collections.hearth.homelab.plugins.module_utils.runner import Runner


def reader(layout: Layout) -> t.Callable[[str], str | None]:
    """Reads stored secrets; None for one that is not stored."""

    def read(name: str) -> str | None:
        try:
            return layout.secret(name).read_text("utf-8")
        except FileNotFoundError:
            return None

    return read


@dataclass(frozen=True)
class Wanted:
    """The secrets as the controller wants them: keyed digests under a nonce. One without is taken as it is stored."""

    nonce: str = ""
    digests: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, sent: t.Mapping[str, str]) -> Wanted:
        """The digests of what was sent."""
        nonce = secrets.token_hex(16)
        return cls(nonce, {name: secret_digest(nonce, value) for name, value in sent.items()})


@dataclass(frozen=True)
class Evaluation:
    """What is true, what has to be done, and whether systemd has to read its unit files again for it."""

    observed: Observed
    plan: Plan

    @property
    def reload(self) -> bool:
        return planner.needs_daemon_reload(self.plan.actions, self.observed)


def evaluate(
    layout: Layout,
    runner: Runner,
    manifest: m.Manifest,
    previous: m.Manifest | None,
    scope: t.Collection[str] | None,
    wanted: Wanted,
    start_empty: t.Collection[str] = (),
) -> Evaluation:
    """Observe and plan. Changes nothing."""
    observed = observe(
        manifest,
        previous,
        generations.originals(layout),
        runner,
        root=str(layout.root),
        secret_reader=reader(layout),
        state_dir="/var/lib/hearth",
        nonce=wanted.nonce,
        applied=planner.applied(manifest, scope),
        made_directories=generations.made_directories(layout),
    )
    observed.original_units = generations.original_units(layout)
    blobs = frozenset(os.listdir(layout.blobs)) if layout.blobs.is_dir() else frozenset()
    plan = planner.plan(
        observed,
        manifest,
        previous,
        scope=None if scope is None else frozenset(scope),
        secret_digests=wanted.digests,
        blobs_present=blobs,
        start_empty=start_empty,
    )
    return Evaluation(observed, plan)
