# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring a dataset back beside the one that is there, and exchange the two once it is complete and verified.

``next_step`` is pure: from what is there now it says the one thing to do next, or that nothing is left. A restore is that,
again and again; killed anywhere, the next one reads what is there and goes on. What was there before is renamed and kept
(``NAME.before-TIME``) until a person releases it, so nothing that existed is lost at any step:

1. ``NAME.restore`` is received (resumable), cloned from a local snapshot, or filled by a program;
2. it is verified: it ends in the very snapshot (its guid) that was chosen, or its content was compared by that program;
3. what has the name is unmounted and renamed;
4. ``NAME.restore`` gets the name, then its properties and mount, then mark and sentinel.

Standard library only: this module runs on hosts.
"""

from __future__ import annotations

import shlex
import typing as t
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.module_utils import zfs, zfs_datasets, zfs_storage
from ansible_collections.hearth.homelab.plugins.module_utils.runner import CommandError, Completed, Runner

#: What a dataset is being restored to: ``METHOD/POINT``, on the dataset that is being filled and on the restored one.
GOAL = zfs.PREFIX + "restore"

#: The guid of the dataset whose content was verified to be the goal's.
VERIFIED = zfs.PREFIX + "verified"

#: Read of every dataset that a restore looks at.
PROPERTIES = (
    "type", "guid", "mounted", "mountpoint", "canmount", "origin", "keystatus", "receive_resume_token",
    GOAL, VERIFIED, zfs_storage.MARK, zfs_storage.SENTINEL,
)  # fmt: skip


def incoming(dataset: str) -> str:
    """Where the data is gathered. A service's name has no dot, so this is nobody's."""
    return f"{dataset}.restore"


def aside(dataset: str, stamp: str) -> str:
    """What had the name before; ``stamp`` is a time such as 20261121T1415."""
    return f"{dataset}.before-{stamp}"


@dataclass(frozen=True)
class Snapshot:
    """A snapshot by its name after the ``@``; ``guid`` is the same on every host that received it."""

    name: str
    guid: str


@dataclass(frozen=True)
class Goal:
    """What is to be brought back. ``snapshots`` are the source's up to the chosen one, the oldest first.

    ``send`` is what comes before ``zfs send`` (an ssh command line), ``source`` the dataset there. Method ``snapshot`` has
    neither: its source is the dataset itself. Methods that fill a file system (``restic``) have a ``point`` only.
    """

    method: str
    point: str
    snapshots: tuple[Snapshot, ...] = ()
    source: str = ""
    send: tuple[str, ...] = ()

    @property
    def tag(self) -> str:
        return f"{self.method}/{self.point}"


@dataclass(frozen=True)
class Seen:
    """What is there: the datasets by name, and their snapshots, the oldest first."""

    datasets: Mapping[str, zfs.Dataset] = field(default_factory=dict)
    snapshots: Mapping[str, tuple[Snapshot, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One thing to do. ``argv`` is a command; with ``into`` its output goes to that command; ``call`` names what the caller
    does itself (``fill``: have a program fill the dataset and verify it; ``mark``)."""

    name: str
    argv: tuple[str, ...] = ()
    into: tuple[str, ...] = ()
    call: str = ""


class StoppedError(Exception):
    """The restore cannot go on by itself: what, and what to do."""


def next_step(item: m.Storage, goal: Goal, seen: Seen, stamp: str) -> Step | None:
    """What to do now to have ``goal`` in ``item``'s dataset; None when it is done. StoppedError when a person has to look."""
    final, fresh = seen.datasets.get(item.dataset), seen.datasets.get(incoming(item.dataset))
    if final is not None and final.local(GOAL) == goal.tag and final.local(VERIFIED) == final.guid:
        # The last step: from then on nothing tells this restore from a dataset that never was restored.
        return _finish(item, final) or Step("release", ("zfs", "inherit", GOAL, final.name))
    if final is not None and final.local(GOAL) and final.local(VERIFIED) == final.guid:
        raise StoppedError(
            f"{final.name} is being restored to {final.local(GOAL)}: finish that first (the same from= and at=)"
        )
    if fresh is None:
        return _begin(item, goal, final)
    if not fresh.local(GOAL):
        raise StoppedError(f"{fresh.name} exists and is no restore of Hearth's: rename or destroy it")
    if fresh.local(GOAL) != goal.tag:
        # Another goal's scratch, unfinished: nothing that existed before is in it alone.
        _no_other_origin(seen, fresh.name)
        return Step("discard", ("zfs", "destroy", "-r", fresh.name))
    if fresh.value("receive_resume_token"):
        token = fresh.value("receive_resume_token")
        return Step("resume", _send(goal, "-t", token), ("zfs", "receive", "-s", "-u", fresh.name))
    if fresh.local(VERIFIED) != fresh.guid:
        return _gather(item, goal, fresh, seen)
    if final is not None:
        return _set_aside(item, final, seen, stamp)
    return Step("exchange", ("zfs", "rename", fresh.name, item.dataset))


def _begin(item: m.Storage, goal: Goal, final: zfs.Dataset | None) -> Step:
    name = incoming(item.dataset)
    options = ("-o", f"{GOAL}={goal.tag}", "-o", "canmount=noauto")
    if goal.method == "snapshot":
        if final is None:
            raise StoppedError(f"{item.dataset} does not exist: it has no local snapshots")
        return Step("clone", ("zfs", "clone", *options, f"{item.dataset}@{goal.snapshots[-1].name}", name))
    if not goal.snapshots:
        return Step("make", ("zfs", "create", *options, "-o", "mountpoint=none", name))
    first = goal.snapshots[0]
    # -x: the stream has no properties unless somebody sent them; none of the source's paths is taken over here.
    receive = ("zfs", "receive", "-s", "-u", *options, "-x", "mountpoint", name)
    return Step("receive", _send(goal, f"{goal.source}@{first.name}"), receive)


def _send(goal: Goal, *arguments: str) -> tuple[str, ...]:
    command = ("zfs", "send", *(() if "-t" in arguments else ("-L", "-c", "-e")), *arguments)
    # sshd gives the command to a shell as one line (ssh(1)).
    return (*goal.send, shlex.join(command)) if goal.send else command


def _gather(item: m.Storage, goal: Goal, fresh: zfs.Dataset, seen: Seen) -> Step:
    if goal.method == "snapshot":
        # The clone becomes the one that has the snapshots; what was there is then its clone, and keeps what is newer.
        if fresh.value("origin").startswith(f"{item.dataset}@"):
            return Step("promote", ("zfs", "promote", fresh.name))
        return Step("verified", ("zfs", "set", f"{VERIFIED}={fresh.guid}", fresh.name))
    if not goal.snapshots:
        return Step("fill", call="fill")
    have = [snapshot.guid for snapshot in seen.snapshots.get(fresh.name, ())]
    wanted = [snapshot.guid for snapshot in goal.snapshots]
    if have and have[-1] == wanted[-1]:
        return Step("verified", ("zfs", "set", f"{VERIFIED}={fresh.guid}", fresh.name))
    if not have or have[-1] not in wanted:
        return Step("discard", ("zfs", "destroy", "-r", fresh.name))  # the source is not what it was at the beginning
    newest = goal.snapshots[wanted.index(have[-1])].name
    last = goal.snapshots[-1].name
    return Step(
        "receive",
        _send(goal, "-I", f"@{newest}", f"{goal.source}@{last}"),
        ("zfs", "receive", "-s", "-u", fresh.name),
    )


def _no_other_origin(seen: Seen, name: str) -> None:
    for dataset in seen.datasets.values():
        if dataset.value("origin").startswith(f"{name}@"):
            raise StoppedError(
                f"{name} has the snapshots that {dataset.name} is made of: zfs promote {dataset.name} first"
            )


def _set_aside(item: m.Storage, final: zfs.Dataset, seen: Seen, stamp: str) -> Step:
    name = aside(item.dataset, stamp)
    if name in seen.datasets:
        raise StoppedError(f"{name} exists already: try again in a minute")
    if final.mounted:
        return Step("unmount", ("zfs", "unmount", final.name))
    if final.value("canmount") == "on":
        # Otherwise both would want the same mount point at the next boot.
        return Step("hold back", ("zfs", "set", "canmount=noauto", final.name))
    return Step("set aside", ("zfs", "rename", final.name, name))


def _finish(item: m.Storage, final: zfs.Dataset) -> Step | None:
    path = zfs.canonical("mountpoint", item.name)
    settings = {"mountpoint": path, "canmount": "on", **item.properties}
    if zfs.canonical("mountpoint", final.value("mountpoint")) != path or final.local("canmount") != "on":
        return Step("properties", ("zfs", "set", *(f"{k}={v}" for k, v in sorted(settings.items())), final.name))
    if not final.mounted:
        return Step("mount", ("zfs", "mount", final.name))
    mark = zfs_storage.mark_of(final)
    if mark is None or not mark.sentinel:
        return Step("mark", call="mark")
    return None


def names(item: m.Storage) -> list[str]:
    """The datasets that a restore looks at."""
    return [item.dataset, incoming(item.dataset)]


def parse_snapshots(output: str) -> dict[str, tuple[Snapshot, ...]]:
    """From ``zfs list -Hp -t snapshot -o name,guid -s createtxg``, by dataset, the oldest first."""
    found: dict[str, list[Snapshot]] = {}
    for line in output.splitlines():
        name, guid = line.split("\t")
        dataset, _, snapshot = name.partition("@")
        found.setdefault(dataset, []).append(Snapshot(snapshot, guid))
    return {dataset: tuple(entries) for dataset, entries in found.items()}


#: Seconds for one transfer. A receive that is cut off goes on where it was.
TRANSFER = 7 * 86400.0


class Fill(t.Protocol):
    """Fills a mounted, empty file system with the goal's content and verifies it; raises StoppedError when it cannot."""

    def __call__(self, goal: Goal, path: str) -> None: ...


class Pipes(Runner, t.Protocol):
    """A runner that can also connect two commands (``runner.SystemRunner``)."""

    def pipe(self, argv: Sequence[str], into: Sequence[str], *, timeout: float = TRANSFER) -> Completed: ...


@dataclass
class Restore:
    """Performs the steps for one storage. ``scratch`` is where a file system is mounted while a program fills it."""

    item: m.Storage
    goal: Goal
    host: str
    runner: Pipes
    stamp: str
    fill: Fill | None = None
    scratch: str = "/var/lib/hearth/restore"
    root: str = "/"
    done: list[str] = field(default_factory=list)

    def look(self) -> Seen:
        problems: list[str] = []
        wanted = [*names(self.item), aside(self.item.dataset, self.stamp)]
        datasets = zfs_datasets.get(self.runner, wanted, PROPERTIES, problems)
        if problems:
            raise StoppedError("; ".join(problems))
        if not datasets:
            return Seen()
        listed = self.runner.run(
            ["zfs", "list", "-Hp", "-t", "snapshot", "-o", "name,guid", "-s", "createtxg", *sorted(datasets)],
            timeout=zfs_datasets.TIMEOUT,
        )
        return Seen(datasets, parse_snapshots(listed.stdout))

    def run(self, *, again: bool = False) -> list[str]:
        """Go on until it is done; the names of the steps. ``again``: also where the same was restored before.

        StoppedError when a person has to look, CommandError when a command fails; both leave what there is.
        """
        first = self.look().datasets.get(self.item.dataset)
        mark = None if first is None else zfs_storage.mark_of(first)
        if first is not None and first.local(GOAL) and mark is not None and mark.sentinel:
            # Killed after its last but one step: that restore is complete.
            self._perform(Step("release", ("zfs", "inherit", GOAL, first.name)))
            if not again:
                return self.done
        while True:
            step = next_step(self.item, self.goal, self.look(), self.stamp)
            if step is None:
                return self.done
            self._perform(step)
            if step.name == "release":
                return self.done

    def _perform(self, step: Step) -> None:
        if step.call == "mark":
            zfs_storage.write_mark(self.item, self.host, self.runner, sentinel=True, root=self.root)
        elif step.call == "fill":
            self._fill()
        elif step.into:
            done = self.runner.pipe(step.argv, step.into, timeout=TRANSFER)
            if done.returncode:
                raise CommandError(done)
        else:
            self.runner.run(step.argv, timeout=zfs_datasets.TIMEOUT)
        self.done.append(step.name)

    def _fill(self) -> None:
        name = incoming(self.item.dataset)
        path = f"{self.scratch}/{self.item.service}"
        if self.fill is None:
            raise StoppedError(f"nothing can fill {name} by {self.goal.method}")
        run = self.runner.run
        run(["zfs", "set", f"mountpoint={path}", name], timeout=zfs_datasets.TIMEOUT)
        mounted = run(["zfs", "mount", name], check=False, timeout=zfs_datasets.TIMEOUT)
        if mounted.returncode and "already mounted" not in mounted.stderr:
            raise CommandError(mounted)
        self.fill(self.goal, path)
        guid = self.look().datasets[name].guid
        run(["zfs", "unmount", name], timeout=zfs_datasets.TIMEOUT)
        run(["zfs", "set", f"{VERIFIED}={guid}", name], timeout=zfs_datasets.TIMEOUT)
