# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finish or undo a run that was interrupted: by kill -9, by a reboot, by a full disk.

Called by hearth-settle.service (on failure and at boot), by the guard's timer, and by the next run. Up to the point
where all files are placed and the controller has confirmed, everything is undone; after it, the run is finished.
May itself be interrupted and called again.

Early in a boot no service can be started or asked: files go back at once, so that services come up with the old
ones, and the rest is queued for when the boot is done.

Standard library only: this module runs on hosts.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
import typing as t
from pathlib import Path

from ansible_collections.hearth.homelab.plugins.module_utils import (
    engine,
    generations,
    packages,
    planner,
    storage,
    undo,
)
from ansible_collections.hearth.homelab.plugins.module_utils.actions import Problem
from ansible_collections.hearth.homelab.plugins.module_utils.apply import Apply, Request, Result
from ansible_collections.hearth.homelab.plugins.module_utils.journal import RESERVE, UNDOING, Journal
from ansible_collections.hearth.homelab.plugins.module_utils.layout import (
    Layout,
    fsync_directory,
    read_json,
    write_json,
)
from ansible_collections.hearth.homelab.plugins.module_utils.redact import Redactor
from ansible_collections.hearth.homelab.plugins.module_utils.runner import CommandError, Runner
from ansible_collections.hearth.homelab.plugins.module_utils.undo import Context


class Events:
    """Progress lines of a run, for people who watch it; never with a secret. Images are pulled side by side: thread-safe.

    A line for which there is no room is left out. It must not keep a run whose disk is full from being undone, which is
    what gives the reserved space back.
    """

    def __init__(self, path: Path, redactor: Redactor) -> None:
        self._path, self._redactor, self._lock = path, redactor, threading.Lock()

    def __call__(self, text: str) -> None:
        line = json.dumps({"time": round(time.time(), 3), "text": self._redactor.text(text)}).encode() + b"\n"
        with self._lock, contextlib.suppress(OSError):
            handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                before = os.fstat(handle).st_size
                if os.write(handle, line) < len(line):
                    os.ftruncate(handle, before)  # half a line would be put before the next one
            finally:
                os.close(handle)


def stored_secrets(layout: Layout) -> list[str]:
    """All secret values in the host's store, for the redactor."""
    found: list[str] = []
    for path in layout.secrets.glob("*/*") if layout.secrets.is_dir() else ():
        if path.is_file():
            found.append(path.read_text("utf-8", "replace"))
    return found


def context_of(layout: Layout, runner: Runner, directory: Path, redactor: Redactor, early: bool = False) -> Context:
    """What a run, or the settling of one, works with."""
    return Context(layout, runner, Journal(directory), redactor, Events(directory / "events.jsonl", redactor), early)


def transit_secrets(layout: Layout, run: str) -> dict[str, str]:
    """The secrets that came with a run and are not stored yet."""
    return t.cast("dict[str, str]", read_json(layout.transit(run) / "secrets.json", {}))


def begin(layout: Layout, run: str) -> None:
    """Say on disk that a run is unfinished, before its journal does."""
    undo.place_link(layout.state / "active", f"runs/{run}")


def finish(layout: Layout, context: Context, result: Result, phase: str) -> Result:
    """Write the result, end the journal, remove what belonged to the run alone."""
    data = context.redactor.data(result.to_dict())
    # Nothing is undone any more, and the result needs room, too.
    context.journal.release()
    # The result first: a crash between the two settles again and writes it anew.
    write_json(context.journal.directory / "result.json", data)
    context.journal.phase(phase)
    context.journal.close()
    _forget(layout, context.journal.directory)
    if not generations.unfinished_runs(layout):
        (layout.state / "active").unlink(missing_ok=True)
        fsync_directory(layout.state)
    generations.prune(layout)
    return Result(**data)


def _forget(layout: Layout, directory: Path) -> None:
    """Remove what only an unfinished run needs: reserved space, what it replaced, secrets in transit."""
    (directory / RESERVE).unlink(missing_ok=True)
    shutil.rmtree(directory / "before", ignore_errors=True)
    shutil.rmtree(layout.transit(directory.name), ignore_errors=True)
    for path in directory.glob(".*.hearth-tmp"):  # a kill while one of its own files was written
        path.unlink(missing_ok=True)


def early_boot(runner: Runner) -> bool:
    """Whether the boot has not come to the point where services can be started (hearth-settle orders itself there)."""
    done = runner.run(["systemctl", "is-active", "sysinit.target"], check=False)
    return done.stdout.strip() not in ("active",)


def settle(layout: Layout, runner: Runner, early: bool | None = None, own: str = "") -> list[Result]:
    """Settle every unfinished run, the oldest first. The caller holds the lock; ``own`` is its run, not yet begun."""
    results: list[Result] = []
    unfinished = generations.unfinished_runs(layout)
    if not unfinished:
        active = (layout.state / "active").resolve()
        if active.parent == layout.runs.resolve() and active.is_dir():
            # Killed at its beginning, or at its very end. First of all, because a result needs room.
            _forget(layout, active)
            if not (active / "result.json").exists():
                write_json(
                    active / "result.json", _interrupted(Result(active.name), "before anything was changed").to_dict()
                )
        (layout.state / "active").unlink(missing_ok=True)
        _stray_policy(layout)
        generations.sweep(layout, own)
        return results
    early = early_boot(runner) if early is None else early
    for directory in unfinished:
        redactor = Redactor(stored_secrets(layout))
        redactor.add(*transit_secrets(layout, directory.name).values())
        results.append(recover(layout, context_of(layout, runner, directory, redactor, early)))
    generations.sweep(layout, own)
    if early:
        # Ordered after the boot only where both are queued: it does not wait for a target that is not coming.
        runner.run(
            [
                "systemd-run",
                "--no-block",
                "--quiet",
                "--collect",
                "--unit=hearth-settle-late",
                "--property=After=multi-user.target",
                "--property=Restart=on-failure",
                "--property=RestartSec=30",
                *engine.command(layout, "settle"),
            ],
            check=False,
        )
    return results


def _stray_policy(layout: Layout) -> None:
    """A policy-rc.d of ours that no journal knows any more."""
    path = layout.at("/usr/sbin/policy-rc.d")
    if path.is_file() and undo.POLICY_MARK in path.read_text("utf-8", "replace"):
        path.unlink()


def recover(layout: Layout, context: Context) -> Result:
    """Settle one run."""
    journal, run = context.journal, context.journal.directory.name
    data = read_json(journal.directory / "request.json")
    request = None if data is None else Request.from_dict(data)
    state = journal.state
    if request is None:
        # A request is written before its journal: nothing was done.
        return finish(layout, context, _interrupted(Result(run), "before anything was changed"), "undone")
    if state.forward:
        if context.early:
            return _interrupted(Result(run), "it is finished when the boot is done")
        return _forward(layout, context, request)
    return _backward(layout, context, request)


def _forward(layout: Layout, context: Context, request: Request) -> Result:
    undo.clean(context)
    try:
        result = Apply(context, request, transit_secrets(layout, request.run), lambda: True).resume()
    except Exception as error:
        context.journal.phase(UNDOING, f"it could not be finished ({type(error).__name__}: {error})")
        return _backward(layout, context, request)
    if not result.undone:
        result.notices.append(
            {"service": "", "item": "", "message": "the run was interrupted after its files were placed, and finished"}
        )
    return finish(layout, context, result, "undone" if result.undone else "committed")


def _backward(layout: Layout, context: Context, request: Request) -> Result:
    reason = context.journal.state.reason
    context.say("undoing the interrupted run")
    context.journal.phase(UNDOING)
    generation = generations.current(layout)
    previous = generation.manifest if generation else None
    if context.early:
        # Settling late in the boot before may have configured packages, and lost its power then.
        _disable_again(context)
    else:
        _finish_packages(context)
        undo.clean(context)
    undo.take_back(context, None, planner.merge(request.manifest, previous, request.scope), previous)
    _unwritten(layout, request)
    result = _interrupted(
        Result(request.run, undone=True), f"and everything was undone{': ' + reason if reason else ''}"
    )
    result.problems += [Problem("", "", text, "").to_dict() for text in context.problems]
    if context.early:
        return result
    return finish(layout, context, result, "undone")


def _unwritten(layout: Layout, request: Request) -> None:
    """What was written to make a mark or a unit of the engine, and not renamed: no step's undoing knows of these."""
    paths = [f"{item.name}/{storage.MARK}" for item in request.manifest.items if item.kind == "storage"]
    for path in (*paths, *engine.UNITS, engine.LINK):
        undo.temporary(layout.at(path)).unlink(missing_ok=True)


def _finish_packages(context: Context) -> None:
    """dpkg in the middle of something would make the next installation by anybody start services with defaults."""
    if not any(step.id == "cleanup:policy-rc.d" for step in context.journal.state.to_clean()):
        return
    try:
        packages.deny_starts(context, ())
        packages.repair(context)
        _disable_again(context)
    except (CommandError, packages.PackageError, OSError) as error:
        context.problems.append(context.redactor.text(f"an interrupted installation could not be finished: {error}"))


def _disable_again(context: Context) -> None:
    """Configuring packages enables units; if the undoing began early in a boot, it has passed that step already."""
    for step in context.journal.state.steps:
        if step.undone and (step.undo or {}).get("do") == "package_units":
            undo.undo_steps(context, [step])


def _interrupted(result: Result, how: str) -> Result:
    result.problems.insert(0, Problem("", "", f"run {result.run} was interrupted, {how}", "run again").to_dict())
    return result
