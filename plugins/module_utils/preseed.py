# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a storage's data comes back from: decided from what every tier of its protection answered, without I/O.

Design section 6. A tier is asked for its *points*, the moments it could bring back. ``empty`` is an answer too, but only
from a repository whose identity is the recorded one; anything else that has no points is ``unknown``. The decision is one
of: nothing to do, restore one point, start empty, or stop and say why. Standard library only: this module runs on hosts.
"""

from __future__ import annotations

import typing as t
from collections.abc import Sequence
from dataclasses import dataclass

from ansible_collections.hearth.homelab.plugins.module_utils.storage import State

#: Tiers in the order in which they are preferred when their points are equally new (the fastest first).
METHODS: tuple[str, ...] = ("replica", "snapshot", "restic", "pgbackrest")

#: Points of two tiers that are this close (seconds) count as one: a replica has the source's own snapshots, whose
#: creation is in whole seconds, and a backup reads one of them.
SAME = 1.0

Answer = t.Literal["points", "empty", "unknown"]


@dataclass(frozen=True)
class Point:
    """A moment that can be brought back: ``time`` is when its content was (seconds since 1970), ``id`` the tier's name."""

    time: float
    id: str
    bytes: int = 0


@dataclass(frozen=True)
class Tier:
    """What one tier answered. ``reason`` says why nothing is known (unreachable, another identity, not mounted).

    ``ledger``: the tier's own list of what it was ever given has this storage.
    """

    method: str
    name: str
    answer: Answer
    points: tuple[Point, ...] = ()
    reason: str = ""
    ledger: bool = False

    @property
    def newest(self) -> Point | None:
        return max(self.points, key=lambda point: point.time, default=None)


@dataclass(frozen=True)
class Policy:
    """Of the storage's protection class. ``order`` are methods; ``rpo`` the most that may be lost, in seconds."""

    order: tuple[str, ...] = METHODS
    rpo: float = 86400.0
    empty_start: bool = False  # new storage may start empty without any tier's answer (ephemeral)


@dataclass(frozen=True)
class Choice:
    """What a person said: start empty, one method, or the newest point not after ``at``."""

    start_empty: bool = False
    method: str = ""
    at: float | None = None


@dataclass(frozen=True)
class Decision:
    """``action`` is none, restore, empty or stop. ``reason`` says why, ``remedy`` what a person can do."""

    action: t.Literal["none", "restore", "empty", "stop"]
    reason: str = ""
    remedy: str = ""
    tier: Tier | None = None
    point: Point | None = None


def decide(
    state: State, tiers: Sequence[Tier], policy: Policy, *, now: float, choice: Choice | None = None
) -> Decision:
    """What to do with a storage in this state. Only ``restore`` and ``empty`` let a service start that has no data."""
    said = choice or Choice()
    if state == "data":
        return Decision("none", "its data is there")
    if state == "found":
        return Decision(
            "stop", "there is something in it that is not Hearth's", "adopt it (playbooks/adopt.yml), or move it away"
        )
    if state == "away":
        return Decision("stop", "its dataset is there and not mounted, or locked", "zfs load-key, zfs mount")
    if said.start_empty:
        return Decision("empty", "a person asked for an empty start by name")
    usable = [tier for tier in tiers if not said.method or tier.method == said.method]
    if said.method and not usable:
        return Decision("stop", f"no tier of its protection is {said.method}", "name another with from=")
    best = _best(usable, policy, said.at)
    if best is None:
        return _nothing(state, tiers, usable, policy, said)
    tier, point = best
    passed = [other for other in tiers if other.answer == "unknown" and other is not tier]
    age = now - point.time
    # A tier that did not answer may have a newer point. What is within the objective is good enough to go on with; and a
    # person who named a method or a time has decided.
    if passed and age > policy.rpo and not (said.method or said.at is not None):
        silent = "; ".join(f"{other.name}: {other.reason}" for other in passed)
        return Decision(
            "stop",
            f"the newest point that is known ({tier.name}) is {_ago(age)} old, more than its objective of "
            f"{_ago(policy.rpo)}, and a newer one may be where nobody answers ({silent})",
            f"mend that, or take this one: playbooks/restore.yml -e from={tier.method}",
            tier,
            point,
        )
    return Decision("restore", f"{tier.name} has it as it was {_ago(age)} ago", tier=tier, point=point)


def _best(tiers: Sequence[Tier], policy: Policy, at: float | None) -> tuple[Tier, Point] | None:
    """The newest point of all tiers (not after ``at``); of equally new ones the method that comes first."""
    found = []
    for tier in tiers:
        points = [point for point in tier.points if at is None or point.time <= at]
        if tier.answer == "points" and points:
            found.append((tier, max(points, key=lambda point: point.time)))
    if not found:
        return None
    newest = max(point.time for _tier, point in found)
    order = {method: index for index, method in enumerate(policy.order)}
    same = [(tier, point) for tier, point in found if newest - point.time <= SAME]
    return min(same, key=lambda entry: (order.get(entry[0].method, len(order)), -entry[1].time, entry[0].name))


def _nothing(state: State, tiers: Sequence[Tier], usable: Sequence[Tier], policy: Policy, said: Choice) -> Decision:
    """No tier has a point: an empty start only when that is proven."""
    unknown = [tier for tier in tiers if tier.answer == "unknown"]
    listed = [tier for tier in tiers if tier.ledger]
    by_name = "to start empty on purpose say so with -e start_empty=NAME"
    if said.method or said.at is not None:
        where = ", ".join(tier.name for tier in usable)
        return Decision("stop", f"{where} has no such point", "playbooks/backup_status.yml lists what there is")
    if state == "lost":
        return Decision("stop", "it held data, and no tier of its protection has any of it", by_name)
    if policy.empty_start or not tiers:
        return Decision(
            "empty", "its class allows it" if policy.empty_start else "no tier is declared that could hold data"
        )
    if unknown:
        silent = "; ".join(f"{tier.name}: {tier.reason}" for tier in unknown)
        return Decision("stop", f"nobody can say whether it has data elsewhere ({silent})", f"mend that; {by_name}")
    if listed:
        names = ", ".join(tier.name for tier in listed)
        return Decision("stop", f"{names} had backups of it once and has none now", f"look there first; {by_name}")
    return Decision("empty", "every tier of its protection answered, and none has ever had data of it")


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
