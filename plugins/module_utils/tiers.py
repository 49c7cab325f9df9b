# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asking the tiers of a storage's protection what they could bring back. Read-only; several are asked at once.

Every answer has an identity behind it: the guid of the pool that a replica is in, the id of a restic repository. Without
the recorded one there is no answer, only a reason: an unmounted path or a repository that somebody just made looks empty,
and is not. Standard library only: this module runs on hosts.
"""

from __future__ import annotations

import json
import re
import shlex
import typing as t
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from ansible_collections.hearth.homelab.plugins.module_utils import zfs
from ansible_collections.hearth.homelab.plugins.module_utils.preseed import Point, Tier
from ansible_collections.hearth.homelab.plugins.module_utils.restore import Snapshot
from ansible_collections.hearth.homelab.plugins.module_utils.runner import Completed, Runner, explain

#: Seconds that a tier has for its answer.
TIMEOUT = 60.0

#: Exit statuses of restic 0.17.1 and later (restic.readthedocs.io, "Scripting").
RESTIC_MISSING, RESTIC_LOCKED, RESTIC_PASSWORD = 10, 11, 12

_LIST = ("zfs", "list", "-Hp", "-t", "snapshot", "-o", "name,guid,creation", "-s", "createtxg")


@dataclass(frozen=True)
class Replica:
    """A dataset on another host. ``ssh`` is the command line up to the destination; ``pool_guid`` the recorded identity."""

    name: str
    dataset: str
    ssh: tuple[str, ...]
    pool_guid: str


@dataclass(frozen=True)
class Restic:
    """A restic repository. ``environment`` names the repository and where its password is; ``id`` is the recorded identity.

    ``mount``: a directory that must be a mount point for the repository to be there at all.
    """

    name: str
    id: str
    environment: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    mount: str = ""


def ask(
    runner: Runner,
    *,
    dataset: str = "",
    replicas: Sequence[Replica] = (),
    repositories: Sequence[Restic] = (),
    host: str = "",
    service: str = "",
    is_mount: t.Callable[[str], bool] | None = None,
) -> list[Tier]:
    """Every tier's answer for one storage: its own snapshots, its replicas, its restic repositories."""
    jobs: list[t.Callable[[], Tier]] = [partial(snapshots, runner, dataset)] if dataset else []
    jobs += [partial(replica, runner, entry) for entry in replicas]
    jobs += [partial(restic, runner, entry, host, service, is_mount) for entry in repositories]
    if not jobs:
        return []
    with ThreadPoolExecutor(max_workers=len(jobs)) as pool:
        return [found.result() for found in [pool.submit(job) for job in jobs]]


# --- ZFS --------------------------------------------------------------------------------------------------------------


def snapshots(runner: Runner, dataset: str) -> Tier:
    """The dataset's own snapshots; a dataset that does not exist has none."""
    done = runner.run([*_LIST, dataset], timeout=TIMEOUT, check=False)
    if done.returncode and zfs.missing(done.stderr) != ({dataset}, []):
        return Tier("snapshot", "its own snapshots", "unknown", reason=explain(done))
    points = _points(done.stdout)
    return Tier("snapshot", "its own snapshots", "points" if points else "empty", points)


def replica(runner: Runner, entry: Replica) -> Tier:
    """The snapshots of a replica, from the pool with the recorded guid."""
    pool = zfs.pool(entry.dataset)
    # One connection: the identity, then the list, whose exit status is the whole command's.
    script = f"zpool get -Hp -o value guid {shlex.quote(pool)} && {shlex.join((*_LIST, entry.dataset))}"
    done = runner.run([*entry.ssh, script], timeout=TIMEOUT, check=False)
    identity, _, listed = done.stdout.partition("\n")
    if done.returncode and not identity:
        return Tier("replica", entry.name, "unknown", reason=explain(done))
    if identity != entry.pool_guid:
        reason = f"pool {pool} there is {identity}, and {entry.pool_guid} is recorded: another pool"
        return Tier("replica", entry.name, "unknown", reason=reason)
    if done.returncode and zfs.missing(done.stderr) != ({entry.dataset}, []):
        return Tier("replica", entry.name, "unknown", reason=explain(done))
    points = _points(listed)
    return Tier("replica", entry.name, "points" if points else "empty", points)


def _points(output: str) -> tuple[Point, ...]:
    found = []
    for line in output.splitlines():
        name, _guid, creation = line.split("\t")
        found.append(Point(float(creation), name.partition("@")[2]))
    return tuple(found)


def parse_snapshots(output: str) -> tuple[Snapshot, ...]:
    """Snapshots, the oldest first, from what ``zfs list`` here printed."""
    lines = [line.split("\t") for line in output.splitlines()]
    return tuple(Snapshot(name.partition("@")[2], guid) for name, guid, _creation in lines)


# --- restic -----------------------------------------------------------------------------------------------------------


def restic(
    runner: Runner,
    entry: Restic,
    host: str,
    service: str,
    is_mount: t.Callable[[str], bool] | None = None,
) -> Tier:
    """The snapshots of one service of one host, from the repository with the recorded id."""
    if entry.mount and is_mount is not None and not is_mount(entry.mount):
        return Tier("restic", entry.name, "unknown", reason=f"{entry.mount} is not mounted")
    done = _restic(runner, entry, "cat", "config")
    if done.returncode:
        return Tier("restic", entry.name, "unknown", reason=_restic_reason(done))
    try:
        identity = json.loads(done.stdout)["id"]
    except (ValueError, KeyError, TypeError):
        return Tier("restic", entry.name, "unknown", reason="restic cat config printed no id")
    if identity != entry.id:
        reason = f"the repository there is {identity[:8]}, and {entry.id[:8]} is recorded: another repository"
        return Tier("restic", entry.name, "unknown", reason=reason)
    # Host and tag, never the path alone: another host's snapshots may have the same one.
    done = _restic(runner, entry, "snapshots", "--json", "--host", host, "--tag", service)
    if done.returncode:
        return Tier("restic", entry.name, "unknown", reason=_restic_reason(done))
    try:
        points = tuple(_restic_point(data) for data in json.loads(done.stdout))
    except (ValueError, KeyError, TypeError) as error:
        return Tier("restic", entry.name, "unknown", reason=f"restic snapshots is not understood: {error!r}")
    return Tier("restic", entry.name, "points" if points else "empty", points)


def _restic(runner: Runner, entry: Restic, *arguments: str) -> Completed:
    # --no-lock: a lock that a dead job left says nothing about what can be read.
    argv = ["restic", "--no-lock", *entry.options, *arguments]
    return runner.run(argv, timeout=TIMEOUT, check=False, env=entry.environment)


def _restic_reason(done: Completed) -> str:
    return {
        RESTIC_MISSING: "there is no repository",
        RESTIC_LOCKED: "the repository is locked",
        RESTIC_PASSWORD: "its password is not the repository's",
    }.get(done.returncode) or explain(done, 2)


#: RFC 3339 with nanoseconds, as Go prints it; datetime reads microseconds.
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)")


def _restic_point(data: Mapping[str, t.Any]) -> Point:
    match = _TIME.fullmatch(data["time"])
    if match is None:
        raise ValueError(data["time"])
    moment = datetime.fromisoformat(match[1] + ("+00:00" if match[3] == "Z" else match[3]))
    size = (data.get("summary") or {}).get("total_bytes_processed", 0)
    return Point(moment.timestamp() + float(match[2] or 0), str(data["id"]), int(size))
