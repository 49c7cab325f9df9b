# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Undo the steps of a run: of one service that did not become healthy, or of all of an interrupted run.

Every function here is idempotent and may be interrupted and called again: it makes a state, it does not reverse a
difference. Data is never removed: storage, packages, users, database contents and images stay.

Standard library only: this module runs on hosts.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.hearth.homelab.plugins.module_utils import health, postgresql
from ansible_collections.hearth.homelab.plugins.module_utils.journal import Journal, Step, boot_id
from ansible_collections.hearth.homelab.plugins.module_utils.layout import Layout, fsync_directory, write_atomic
from ansible_collections.hearth.homelab.plugins.module_utils.manifest import Firewall, Manifest, Unit
from ansible_collections.hearth.homelab.plugins.module_utils.planner import triggered
from ansible_collections.hearth.homelab.plugins.module_utils.redact import Redactor
from ansible_collections.hearth.homelab.plugins.module_utils.runner import CommandError, Runner

#: The first line after #! of the policy-rc.d that denies starts; what carries it is ours to remove.
POLICY_MARK = "# Written by Hearth while packages are installed"

POLICY = f"#!/bin/sh\n{POLICY_MARK}: nothing may start with a distribution's defaults.\nexit 101\n"

#: What can be undone early in a boot, when no service can be asked for anything.
_EARLY = frozenset({"path", "secret", "hostname", "enabled", "package_units", "initialize"})

#: Directories whose contents systemd reads, itself or through a generator.
_UNIT_DIRECTORIES = ("/etc/systemd/", "/usr/local/lib/systemd/", "/etc/containers/systemd/", "/run/systemd/")


@dataclass
class Context:
    """What apply and settle work with. ``say`` takes a progress line for people."""

    layout: Layout
    runner: Runner
    journal: Journal
    redactor: Redactor
    say: t.Callable[[str], None]
    #: Early in the boot: services come up by themselves, afterwards, with what is undone here.
    early: bool = False
    problems: list[str] = field(default_factory=list)

    def call(self, argv: t.Sequence[str], timeout: float | None = None) -> tuple[int, str, str]:
        """Run a program; never raises for its exit status."""
        done = self.runner.run(argv, check=False, timeout=timeout or 120)
        return done.returncode, done.stdout, done.stderr

    def units(self, names: t.Iterable[str]) -> dict[str, health.UnitStatus]:
        return health.show_units(self.call, names)


def path_undo(context: Context, path: str) -> dict[str, t.Any]:
    """Undo data for whatever is about to happen at ``path``: what is there now, kept durably."""
    real = context.layout.at(path)
    try:
        status = real.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return {"do": "path", "path": path, "before": None}
    before: dict[str, t.Any] = {"mode": stat.S_IMODE(status.st_mode), "uid": status.st_uid, "gid": status.st_gid}
    if stat.S_ISLNK(status.st_mode):
        before.update(type="link", target=os.readlink(real))
    elif stat.S_ISDIR(status.st_mode):
        before.update(type="directory")
    else:
        before.update(type="file", content=context.journal.keep(real.read_bytes()))
    return {"do": "path", "path": path, "before": before}


def temporary(path: Path) -> Path:
    """Where a path's next content waits for its rename; the same name as in layout.write_atomic."""
    return path.parent / f".{path.name}.hearth-tmp"


def place_link(path: Path, target: str) -> None:
    """Make ``path`` a symbolic link, atomically."""
    waiting = temporary(path)
    waiting.unlink(missing_ok=True)
    waiting.symlink_to(target)
    os.rename(waiting, path)
    fsync_directory(path.parent)


def _restore_path(context: Context, data: t.Mapping[str, t.Any]) -> None:
    path = context.layout.at(data["path"])
    before = data["before"]
    if path.parent.is_dir():
        temporary(path).unlink(missing_ok=True)
    if before is None:
        if path.is_dir() and not path.is_symlink():
            try:
                path.rmdir()
            except OSError:
                context.say(f"{data['path']} stays: it is not empty")
        elif path.is_symlink() or path.exists():
            path.unlink()
            fsync_directory(path.parent)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if before["type"] == "link":
        place_link(path, before["target"])
    elif before["type"] == "directory":
        path.mkdir(exist_ok=True)
        os.chown(path, before["uid"], before["gid"])
        os.chmod(path, before["mode"])
    else:
        write_atomic(path, context.journal.kept(before["content"]), before["mode"], before["uid"], before["gid"])


def _restore_secret(context: Context, data: t.Mapping[str, t.Any]) -> None:
    path = context.layout.secret(data["name"])
    if data["before"] is None:
        path.unlink(missing_ok=True)
    else:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(path, context.journal.kept(data["before"]), 0o400)


def _restore_podman_secret(context: Context, data: t.Mapping[str, t.Any]) -> None:
    if data["before"] is None:
        context.runner.run(["podman", "secret", "rm", "--ignore", data["name"]], timeout=60)
        return
    put_podman_secret(context.runner, data["name"], context.journal.kept(data["before"]), data.get("digest", ""))


def put_podman_secret(runner: Runner, name: str, value: bytes, digest: str = "") -> None:
    """Make or replace a podman secret (podman-secret-create(1)). The value goes through standard input."""
    argv = ["podman", "secret", "create", "--replace"]
    if digest:
        argv += ["--label", f"hearth.digest={digest}"]
    runner.run([*argv, name, "-"], input=value, timeout=60)


def _restore_firewall(context: Context, data: t.Mapping[str, t.Any]) -> None:
    table = data["table"]
    if data["before"] is None:
        remove_table(context.runner, table)
    else:
        listing = context.journal.kept(data["before"])
        text = f"table {table} {{}}\ndelete table {table}\n".encode() + listing
        context.runner.run(["nft", "-f", "-"], input=text, timeout=30)


def remove_table(runner: Runner, table: str) -> None:
    """Delete an nftables table. Adding it first makes that succeed whether it exists or not (nft(8))."""
    runner.run(["nft", "-f", "-"], input=f"table {table} {{}}\ndelete table {table}\n".encode(), timeout=30)


def kernel_hostname(_layout: Layout) -> str:
    """The name that the kernel has (hostname(7))."""
    return socket.gethostname()


def set_kernel_hostname(layout: Layout, name: str) -> None:
    """Give the kernel another name: the host's, never that of the machine on which tests run."""
    if layout.root == Path("/"):
        socket.sethostname(name)


def _restore_hostname(context: Context, data: t.Mapping[str, t.Any]) -> None:
    set_kernel_hostname(context.layout, data["before"])


def _restore_user(context: Context, data: t.Mapping[str, t.Any]) -> None:
    argv = ["usermod", "-s", data["shell"], "-c", data["comment"], "-G", ",".join(data["groups"])]
    context.runner.run([*argv, data["name"]])


def _restore_enabled(context: Context, data: t.Mapping[str, t.Any]) -> None:
    if not data["before"]:
        _unqueue(context, [data["unit"]])
    verb = "enable" if data["before"] else "disable"
    context.runner.run(["systemctl", verb, "--no-reload", "--quiet", "--", data["unit"]])


def _restore_package_units(context: Context, data: t.Mapping[str, t.Any]) -> None:
    """Units that an installation enabled must not come up with a distribution's defaults at the next boot."""
    fresh = sorted(set(enabled_units(context)) - set(data["enabled"]))
    if fresh:
        _unqueue(context, fresh)
        context.runner.run(["systemctl", "disable", "--no-reload", "--quiet", "--", *fresh])


def _unqueue(context: Context, units: t.Iterable[str]) -> None:
    """Early in a boot systemd has queued what was enabled when it began: taking the link away comes too late for that."""
    baseline = context.journal.state.baseline
    names = [name for name in units if not baseline.get(name, {}).get("active", False)]
    if context.early and names:
        context.call(["systemctl", "stop", "--no-block", "--", *names])


def _boot_with_these(context: Context, steps: t.Sequence[Step], readers: t.Mapping[str, str]) -> None:
    """Early in a boot: systemd has read its unit files, and queued what they want, before they went back; and a few units
    ran already (systemd-journald, systemd-modules-load). ``readers``: ``consumers`` of the steps."""
    if reads_unit_files(steps):
        context.call(["systemctl", "daemon-reload"])
        baseline = context.journal.state.baseline
        undone = [step.undo for step in steps if step.undo]
        again = {data["unit"] for data in undone if data["do"] == "enabled" and data["before"]}
        names = sorted(name for name in again if baseline.get(name, {}).get("active", False))
        if names:
            context.call(["systemctl", "start", "--no-block", "--", *names])
    running = [name for name, unit in context.units(sorted(readers)).items() if unit.active == "active"]
    for how, verb in (("restart", "restart"), ("reload", "reload-or-restart")):
        names = sorted(name for name in running if readers[name] == how)
        if names:
            context.call(["systemctl", verb, "--no-block", "--", *names])


def enabled_units(context: Context) -> list[str]:
    """Names of all enabled services, sockets, timers and paths."""
    _, output, _ = context.call(
        [
            "systemctl",
            "list-unit-files",
            "--state=enabled",
            "--type=service,socket,timer,path",
            "--no-legend",
            "--no-pager",
        ]
    )
    return sorted(line.split()[0] for line in output.splitlines() if line.split())


def _set_aside(context: Context, data: t.Mapping[str, t.Any]) -> None:
    """What an interrupted initialisation left would make the next one fail, or look like a whole one. Never deleted."""
    run = context.journal.directory.name
    storage = context.layout.at(data["storage"])
    aside = storage / f".hearth-interrupted-{run}"
    names = sorted(set(os.listdir(storage)) - {*data["before"], aside.name}) if storage.is_dir() else []
    for name in names:
        aside.mkdir(mode=0o700, exist_ok=True)
        os.rename(storage / name, aside / name)
    if names:
        fsync_directory(aside)
        fsync_directory(storage)
        context.say(f"what an interrupted initialisation left in {data['storage']} is in {aside.name} there")
    for number, path in enumerate(data["makes"]):
        found = context.layout.at(path)
        if os.path.lexists(found):
            kept = context.journal.directory / "interrupted"
            kept.mkdir(mode=0o700, exist_ok=True)
            shutil.move(found, kept / f"{number}-{found.name}")
            context.say(f"what an interrupted initialisation left as {path} is in {kept}")


def _restore_role(context: Context, data: t.Mapping[str, t.Any]) -> None:
    before = data["before"]
    content = None if before is None else postgresql.RoleState.from_json(context.journal.kept(before))
    postgresql.restore_role(context.runner, data["name"], content, data.get("port", ""))


def _remove_policy(context: Context, data: t.Mapping[str, t.Any]) -> None:
    path = context.layout.at("/usr/sbin/policy-rc.d")
    temporary(path).unlink(missing_ok=True)
    if data["aside"] is not None:
        _restore_path(context, {"path": "/usr/sbin/policy-rc.d", "before": data["aside"]})
        return
    if path.exists() and POLICY_MARK in path.read_text("utf-8", "replace"):
        path.unlink()
        fsync_directory(path.parent)


def _remove_masks(context: Context, data: t.Mapping[str, t.Any]) -> None:
    removed = False
    for unit in data["units"]:
        path = context.layout.at(f"/run/systemd/system/{unit}")
        if path.is_symlink() and os.readlink(path) == "/dev/null":
            path.unlink()
            removed = True
    if removed and not context.early:
        context.runner.run(["systemctl", "daemon-reload"])


def _stop_timer(context: Context, data: t.Mapping[str, t.Any]) -> None:
    context.call(["systemctl", "stop", "--", data["unit"]])


def _nothing(context: Context, data: t.Mapping[str, t.Any]) -> None:
    """Units are brought back together, after everything else."""


UNDO: dict[str, t.Callable[[Context, t.Mapping[str, t.Any]], None]] = {
    "path": _restore_path,
    "secret": _restore_secret,
    "podman_secret": _restore_podman_secret,
    "firewall": _restore_firewall,
    "hostname": _restore_hostname,
    "user": _restore_user,
    "enabled": _restore_enabled,
    "package_units": _restore_package_units,
    "initialize": _set_aside,
    "postgresql_role": _restore_role,
    "policy-rc.d": _remove_policy,
    "masks": _remove_masks,
    "timer": _stop_timer,
    "unit": _nothing,
}


def undo_steps(context: Context, steps: t.Sequence[Step]) -> None:
    """Undo steps, in the order given. What fails is put into ``context.problems``; the others go on."""
    finished: list[int] = []
    for step in steps:
        data = step.undo or {}
        if context.early and data["do"] not in _EARLY and not step.cleanup:
            continue
        if data["do"] == "initialize" and step.done:
            finished.append(step.number)  # the first data of a service: it stays
            continue
        try:
            UNDO[data["do"]](context, data)
        except (OSError, CommandError, ValueError, KeyError) as error:
            context.problems.append(context.redactor.text(f"{step.id} could not be undone: {error}"))
        finished.append(step.number)
        if len(finished) >= 50:
            context.journal.undone(*finished, early=context.early)
            finished.clear()
    context.journal.undone(*finished, early=context.early)


def clean(context: Context) -> None:
    """Remove what must not outlive a run, whatever its result: policy-rc.d, run-time masks, timers."""
    undo_steps(context, context.journal.state.to_clean())


def reads_unit_files(steps: t.Iterable[Step]) -> bool:
    """Whether systemd must read its unit files again after these steps."""
    return any(
        (step.undo or {}).get("do") == "enabled" or str((step.undo or {}).get("path", "")).startswith(_UNIT_DIRECTORIES)
        for step in steps
    )


def consumers(manifests: t.Iterable[Manifest | None], ids: t.Collection[str]) -> dict[str, str]:
    """Units that read items of ``ids``: unit -> ``restart`` or ``reload`` (a restart wins)."""
    result: dict[str, str] = {}
    for manifest in manifests:
        for item in manifest.items if manifest else ():
            if isinstance(item, Unit):
                if triggered(item.restart_on, ids):
                    result[item.name] = "restart"
                elif triggered(item.reload_on, ids):
                    result.setdefault(item.name, "reload")
    return result


@dataclass(frozen=True)
class UnitWork:
    """What brings units back to their state before the run."""

    stop: tuple[str, ...] = ()
    start: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    reload: tuple[str, ...] = ()
    disable: tuple[str, ...] = ()


def unit_work(
    steps: t.Sequence[Step],
    services: t.Collection[str] | None,
    baseline: t.Mapping[str, t.Mapping[str, t.Any]],
    touched: t.Collection[str],
    manifest: Manifest,
    previous: Manifest | None,
    rebooted: bool,
    leave_stopped: t.Collection[str] = (),
    absorbed: t.Collection[int] = (),
) -> UnitWork:
    """Which units go back to what, when ``steps`` (those of ``services``, or all) are undone. Pure.

    ``touched`` are the units that this run has acted on at all, ``leave_stopped`` services whose old program must not
    be started on data that a newer one has written. ``absorbed`` are numbers of steps that were undone before units
    started in this boot.
    """
    own = {step.id.partition(":")[2]: step.operation for step in steps if (step.undo or {}).get("do") == "unit"}
    owners = {item.name: item.service for m in (previous, manifest) if m for item in m.items if isinstance(item, Unit)}
    readers = consumers((previous, manifest), {step.id for step in steps if step.number not in absorbed})
    if rebooted:
        touched = set(readers)  # whatever runs has read its files in this boot
    stop, start, restart, reload, disable = set[str](), set[str](), set[str](), set[str](), set[str]()
    if services is not None:
        kept = {item.id for item in previous.items} if previous else set()
        # Whatever of a held service runs now and did not run before is stopped, also what a dependency started.
        for item in manifest.items:
            if isinstance(item, Unit) and item.service in services and item.running and item.name in baseline:
                if not baseline[item.name]["active"]:
                    stop.add(item.name)
                if item.id not in kept and baseline[item.name]["enabled"] is not True:
                    disable.add(item.name)  # also what its package enabled in this run
    for unit in {*own, *(name for name in readers if name in touched)}:
        if owners.get(unit) in leave_stopped:
            stop.add(unit)
        elif not baseline.get(unit, {}).get("active", False):
            if unit in own:
                stop.add(unit)
            elif unit in touched:
                reload.add(unit)  # another service's unit, new in this run: it stays and reads its files again
        elif own.get(unit) == "stop" or (rebooted and unit not in readers):
            start.add(unit)
        elif readers.get(unit) == "restart" or (own.get(unit) == "restart" and not rebooted):
            restart.add(unit)
        elif own.get(unit) == "reload" or unit in readers:
            reload.add(unit)
        else:
            start.add(unit)
    groups = (stop, start - stop, restart - stop, reload - stop, disable)
    return UnitWork(*(tuple(sorted(units)) for units in groups))


def take_back(
    context: Context,
    services: t.Collection[str] | None,
    manifest: Manifest,
    previous: Manifest | None,
    leave_stopped: t.Collection[str] = (),
) -> UnitWork:
    """Undo this run's steps of ``services`` (None: of all) and bring their units back; what was done to units."""
    state = context.journal.state
    steps = state.to_undo(services)
    touched = {step.id.partition(":")[2] for step in state.steps if (step.undo or {}).get("do") == "unit"}
    boot = boot_id()
    rebooted = bool(state.boot) and state.boot != boot
    # All steps of these services, also those undone before an interruption: their units may still have to follow.
    all_steps = [
        step
        for step in reversed(state.steps)
        if step.undo is not None and not step.cleanup and (services is None or step.service in services)
    ]
    absorbed = {step.number for step in all_steps if step.undone and (step.undone_early or step.undone_boot != boot)}
    work = unit_work(
        all_steps,
        services,
        state.baseline,
        touched,
        manifest,
        previous,
        rebooted,
        leave_stopped,
        absorbed if rebooted else (),
    )
    if context.early:
        undo_steps(context, steps)
        _boot_with_these(context, all_steps, consumers((previous, manifest), {step.id for step in all_steps}))
        return work
    # First: systemd knows how to stop a unit only while its file is there.
    _act(context, "stop", _loaded(context, work.stop))
    if work.disable:
        # Generated and static units cannot be disabled; systemctl says so and that is all.
        context.call(["systemctl", "disable", "--no-reload", "--quiet", "--", *work.disable])
    undo_steps(context, steps)
    if reads_unit_files(all_steps):
        context.call(["systemctl", "daemon-reload"])
    # All steps here, too: an interruption may have come between a fragment's way back and this.
    firewalls = [step for step in all_steps if (step.undo or {}).get("do") == "firewall"]
    if services is not None and not firewalls:
        _reload_firewall(context, manifest, all_steps)
    if work.stop or work.restart or work.start:
        # A unit that is gone is not a failed one, and one that starts again has its start limit anew.
        for unit in (*work.stop, *work.restart, *work.start):
            context.call(["systemctl", "reset-failed", "--", unit])
    _act(context, "start", work.start)
    _act(context, "restart", work.restart)
    _act(context, "reload-or-restart", work.reload)
    return work


def _loaded(context: Context, units: t.Sequence[str]) -> list[str]:
    """Those of ``units`` that systemd knows: stopping another one is an error (systemctl(1))."""
    return [
        name for name, unit in context.units(units).items() if unit.load != "not-found" or unit.active != "inactive"
    ]


def _reload_firewall(context: Context, manifest: Manifest, steps: t.Sequence[Step]) -> None:
    """Load the ruleset again when one of its fragments went back."""
    paths = [str((step.undo or {}).get("path", "")) for step in steps]
    for item in manifest.items:
        if isinstance(item, Firewall):
            directory = os.path.dirname(item.path)
            # As in planner: fragments are below the main file's directory, when it has one of its own.
            if any(path == item.path or (directory != "/etc" and path.startswith(directory + "/")) for path in paths):
                code, _, error = context.call(["nft", "-f", item.path])
                if code != 0:
                    context.problems.append(context.redactor.text(f"loading {item.name} again failed: {error.strip()}"))


def _act(context: Context, verb: str, units: t.Sequence[str]) -> None:
    """One systemctl call for all: systemd orders them itself. A failure is a problem, not the end."""
    if not units:
        return
    context.say(f"{verb} {', '.join(units)}")
    code, _, error = context.call(["systemctl", verb, "--", *units], 300)
    if code != 0:
        context.problems.append(context.redactor.text(f"systemctl {verb} {' '.join(units)}: {error.strip()}"))
