# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal of one run: what was begun, how to undo it, and what was completed.

JSON lines, synchronised to disk (fsync(2)) before and after each step, so that a run that was killed at any
instant can be undone or finished by ``settle`` without the controller. A step's ``begin`` record carries its undo
data; contents that a step replaces are stored in the run's ``before`` directory first. A step that was begun and
not completed may have happened wholly, partly or not at all: every undo is idempotent.

Standard library only: this module runs on hosts.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.hearth.homelab.plugins.module_utils.actions import ATTRIBUTES_ONLY
from ansible_collections.hearth.homelab.plugins.module_utils.layout import fsync_directory, write_atomic

#: The phases of a run in order. Up to ``guarded`` an interrupted run is undone, from ``services`` on it is finished.
PHASES: tuple[str, ...] = ("prepare", "packages", "files", "guarded", "services")

#: The phases in which a run has ended.
ENDED: tuple[str, ...] = ("committed", "undone")

#: A file of a run that holds RESERVED bytes free for undoing it.
RESERVE = "reserve"
RESERVED = 4 * 1024 * 1024

#: A run in this phase is being undone: whatever interrupts that, it goes on being undone.
UNDOING = "undoing"


@dataclass
class Step:
    """One step. ``undo`` is data for ``undo.undo_steps``; ``cleanup`` steps are undone whatever the run's result."""

    number: int
    id: str
    operation: str
    service: str
    undo: dict[str, t.Any] | None
    cleanup: bool = False
    done: bool = False
    undone: bool = False
    #: The boot in which it was undone, and whether that was before its services started.
    undone_boot: str = ""
    undone_early: bool = False


@dataclass
class State:
    """What a journal says, after replaying its records."""

    phase: str = ""
    steps: list[Step] = field(default_factory=list)
    #: State of units before the run: unit -> {"active": bool, "enabled": bool | None}.
    baseline: dict[str, dict[str, t.Any]] = field(default_factory=dict)
    #: Services that were taken back: reason. ``settled`` are those whose taking back is complete.
    held: dict[str, str] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)
    confirmed: bool = False
    reason: str = ""
    started: float = 0.0
    #: The kernel's boot id when the run began: after a reboot units are not restarted again.
    boot: str = ""

    def feed(self, record: t.Mapping[str, t.Any]) -> None:
        """Take in one record."""
        kind = record.get("type")
        if kind == "phase":
            # "undoing" is left only by the end: a crash while undoing never turns into a run that is finished.
            if self.phase != UNDOING or record["phase"] in ENDED:
                self.phase = record["phase"]
                self.reason = record.get("reason") or self.reason
            self.started = self.started or record.get("time", 0.0)
            self.boot = self.boot or record.get("boot", "")
        elif kind == "begin":
            step = Step(
                record["step"],
                record["id"],
                record["operation"],
                record["service"],
                record.get("undo"),
                record.get("cleanup", False),
            )
            self.steps.append(step)
        elif kind in ("done", "undone"):
            for number in record["steps"]:
                # Steps are numbered from 1 in the order of their records.
                if 0 < number <= len(self.steps):
                    step = self.steps[number - 1]
                    setattr(step, kind, True)
                    if kind == "undone":
                        step.undone_boot, step.undone_early = record.get("boot", ""), record.get("early", False)
        elif kind == "baseline":
            # The first one counts: after an interruption units are no longer as they were before the run.
            for unit, value in record["units"].items():
                self.baseline.setdefault(unit, value)
        elif kind == "held":
            self.held.update(record["services"])
        elif kind == "settled":
            self.settled.update(record["services"])
        elif kind == "confirmed":
            self.confirmed = True

    @property
    def ended(self) -> bool:
        return self.phase in ENDED

    @property
    def forward(self) -> bool:
        """Whether an interrupted run is finished (True) or undone (False)."""
        return self.phase == "services"

    @property
    def changed(self) -> set[str]:
        """Ids of the items that this run began to change and that were not undone; owner and mode alone count as no
        change, as in the plan."""
        return {
            step.id
            for step in self.steps
            if not step.undone
            and not step.cleanup
            and (step.id.partition(":")[0], step.operation) not in ATTRIBUTES_ONLY
        }

    def to_undo(self, services: t.Collection[str] | None = None) -> list[Step]:
        """Steps to undo, the latest first; of some services, or of all."""
        return [
            step
            for step in reversed(self.steps)
            if step.undo is not None
            and not step.undone
            and not step.cleanup
            and (services is None or step.service in services)
        ]

    def to_clean(self) -> list[Step]:
        """Steps that must not outlive the run, whatever its result, the latest first."""
        return [step for step in reversed(self.steps) if step.cleanup and not step.undone]


def replay(records: t.Iterable[t.Mapping[str, t.Any]]) -> State:
    """The state that a sequence of records leads to. Unknown records are ignored: an older agent may settle."""
    state = State()
    for record in records:
        state.feed(record)
    return state


def read(path: Path) -> list[dict[str, t.Any]]:
    """A journal's records. A last line that a crash cut off is ignored: its step was not begun."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    records: list[dict[str, t.Any]] = []
    for line in lines:
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def boot_id() -> str:
    """The kernel's identifier of this boot (random(4)); empty where there is none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


class Journal:
    """The journal of a run that is being applied, undone or finished. Not thread-safe: one thread applies."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "journal.jsonl"
        self.before = directory / "before"
        self.before.mkdir(mode=0o700, parents=True, exist_ok=True)
        records = read(self.path)
        self.state = replay(records)
        fresh = not self.path.exists()
        self._repair(records)
        self._handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        if fresh:
            fsync_directory(directory)

    def _repair(self, records: list[dict[str, t.Any]]) -> None:
        """Cut off what a crash left behind the last whole record: what is appended next must be read again."""
        text = b"".join(json.dumps(record, sort_keys=True).encode() + b"\n" for record in records)
        if self.path.exists() and self.path.read_bytes() != text:
            write_atomic(self.path, text, uid=os.geteuid(), gid=os.getegid())

    def close(self) -> None:
        os.close(self._handle)

    def reserve(self) -> None:
        """Take the space that undoing needs, so that a disk that fills up in mid-run does not prevent it.

        Random bytes: a file system that compresses would reserve nothing otherwise. OSError when there is no room.
        """
        handle = os.open(self.directory / RESERVE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            content = os.urandom(RESERVED)
            while content:
                content = content[os.write(handle, content) :]
            os.fsync(handle)
        finally:
            os.close(handle)

    def release(self) -> None:
        """Give the reserved space back."""
        (self.directory / RESERVE).unlink(missing_ok=True)

    def _write(self, *records: dict[str, t.Any]) -> None:
        if not records:
            return
        text = b"".join(json.dumps(record, sort_keys=True).encode() + b"\n" for record in records)
        before = os.fstat(self._handle).st_size
        try:
            while text:
                text = text[os.write(self._handle, text) :]
            os.fsync(self._handle)
        except OSError:
            # Half a line would hide whatever is written after it. Making a file shorter needs no space.
            os.ftruncate(self._handle, before)
            raise
        for record in records:
            self.state.feed(record)

    def phase(self, phase: str, reason: str = "") -> None:
        """Enter a phase (PHASES, UNDOING or ENDED)."""
        if phase == UNDOING or phase in ENDED:
            self.release()
        self._write({"type": "phase", "phase": phase, "reason": reason, "time": time.time(), "boot": boot_id()})

    def baseline(self, units: t.Mapping[str, t.Mapping[str, t.Any]]) -> None:
        """The state of units before they are touched."""
        self._write({"type": "baseline", "units": {name: dict(value) for name, value in units.items()}})

    def begin(
        self, item: str, operation: str, service: str, undo: dict[str, t.Any] | None = None, cleanup: bool = False
    ) -> int:
        """Announce one step; its number."""
        return self.begin_all([(item, operation, service, undo)], cleanup)[0]

    def begin_all(
        self, steps: t.Iterable[tuple[str, str, str, dict[str, t.Any] | None]], cleanup: bool = False
    ) -> list[int]:
        """Announce steps that are done together, with one fsync; their numbers."""
        records: list[dict[str, t.Any]] = []
        first = len(self.state.steps) + 1
        for number, (item, operation, service, undo) in enumerate(steps, first):
            records.append(
                {
                    "type": "begin",
                    "step": number,
                    "id": item,
                    "operation": operation,
                    "service": service,
                    "undo": undo,
                    "cleanup": cleanup,
                    "time": time.time(),
                }
            )
        self._write(*records)
        return [record["step"] for record in records]

    def done(self, *steps: int) -> None:
        """The steps are completed."""
        if steps:
            self._write({"type": "done", "steps": list(steps), "time": time.time()})

    def undone(self, *steps: int, early: bool = False) -> None:
        """The steps are undone; ``early``: before the services of this boot started."""
        if steps:
            record = {"type": "undone", "steps": list(steps), "boot": boot_id(), "early": early, "time": time.time()}
            self._write(record)

    def held(self, services: t.Mapping[str, str]) -> None:
        """Services are about to be taken back together: service -> reason. One record: a crash parts them never."""
        self._write({"type": "held", "services": dict(services)})

    def settled(self, services: t.Iterable[str]) -> None:
        """Services were taken back completely."""
        self._write({"type": "settled", "services": sorted(services)})

    def confirmed(self) -> None:
        """The controller reached the host over a new connection."""
        self._write({"type": "confirmed"})

    def keep(self, content: bytes) -> str:
        """Store a content that is about to be replaced, durably; its name in ``before``."""
        name = hashlib.sha256(content).hexdigest()
        if not (self.before / name).exists():
            write_atomic(self.before / name, content, uid=os.geteuid(), gid=os.getegid())
        return name

    def kept(self, name: str) -> bytes:
        """A content that ``keep`` stored."""
        return (self.before / name).read_bytes()
