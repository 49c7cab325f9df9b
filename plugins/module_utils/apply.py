# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a host equal to its manifest, in one transaction (design section 5). Runs in a transient unit of its own.

Up to the phase ``guarded`` anything that goes wrong undoes the whole run. From ``services`` on a service that does
not become healthy is taken back alone, with what requires it, and everything else stands.

Standard library only: this module runs on hosts.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import re
import time
import typing as t
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from ansible_collections.hearth.homelab.plugins.module_utils import (
    configure,
    engine,
    evaluate,
    generations,
    health,
    packages,
    planner,
    postgresql,
    services,
    storage,
    undo,
    validate,
    zfs_datasets,
    zfs_storage,
)
from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.module_utils.actions import Action, Notice, Plan, Problem
from ansible_collections.hearth.homelab.plugins.module_utils.journal import UNDOING
from ansible_collections.hearth.homelab.plugins.module_utils.layout import (
    fsync_directory,
    read_json,
    write_atomic,
    write_json,
)
from ansible_collections.hearth.homelab.plugins.module_utils.observe import fill_holes
from ansible_collections.hearth.homelab.plugins.module_utils.runner import CommandError, explain
from ansible_collections.hearth.homelab.plugins.module_utils.undo import Context

#: Free space that must be left after the files are placed (bytes).
MARGIN = 100 * 1024 * 1024

#: Errors of a full disk (open(2), write(2)), and what to do.
FULL = (errno.ENOSPC, errno.EDQUOT)
MAKE_ROOM = "everything was undone: make room on this host, then run again"

#: Seconds that the guard's timer waits longer than the run itself does for the controller.
GUARD_MARGIN = 30

#: Images are pulled side by side; registries limit more.
PULLS = 3

_LEFT_HOLE = re.compile(rb"@@hearth:[^@\s]{1,200}@@")


class RunError(Exception):
    """The run cannot go on: it is undone. ``service`` and ``item`` may be empty."""

    def __init__(self, service: str, message: str, item: str = "", remedy: str = "") -> None:
        super().__init__(message)
        self.problem = Problem(service, item, message, remedy)


@dataclass(frozen=True)
class Request:
    """What the controller asked for."""

    run: str
    manifest: m.Manifest
    scope: tuple[str, ...] | None = None  # names of services; None: all
    owner: str = ""
    commit: str = ""
    confirm_timeout: int = 45  # seconds
    start_empty: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, t.Any]:
        return {**self.__dict__, "manifest": self.manifest.to_dict()}

    @classmethod
    def from_dict(cls, data: t.Mapping[str, t.Any]) -> Request:
        scope = data.get("scope")
        return cls(
            run=data["run"],
            manifest=m.Manifest.from_dict(data["manifest"]),
            scope=None if scope is None else tuple(scope),
            owner=data.get("owner", ""),
            commit=data.get("commit", ""),
            confirm_timeout=data.get("confirm_timeout", 45),
            start_empty=tuple(data.get("start_empty", ())),
        )


@dataclass
class Result:
    """How a run ended. ``ok``: everything is as declared. ``changed``: the host is not as it was before."""

    run: str
    ok: bool = False
    changed: bool = False
    undone: bool = False
    actions: list[dict[str, t.Any]] = field(default_factory=list)
    taken_back: dict[str, str] = field(default_factory=dict)
    notices: list[dict[str, t.Any]] = field(default_factory=list)
    problems: list[dict[str, t.Any]] = field(default_factory=list)
    generation: int | None = None
    timings: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, t.Any]:
        return dict(self.__dict__)


class Apply:
    """One run. ``secrets`` are those in transit, ``confirmed`` says whether the controller came back."""

    def __init__(
        self, context: Context, request: Request, secrets: t.Mapping[str, str], confirmed: t.Callable[[], bool]
    ) -> None:
        self.context, self.request, self.secrets, self.confirmed = context, request, dict(secrets), confirmed
        self.layout, self.journal = context.layout, context.journal
        generation = generations.current(self.layout)
        self.previous = generation.manifest if generation else None
        self.partial = dict(generation.partial) if generation else {}
        self.full = planner.merge(request.manifest, self.previous, request.scope)
        self._leave_out()
        self.reload = False
        self.result = Result(request.run)
        self.actions: dict[tuple[str, str], Action] = {}
        self._clock = time.monotonic()

    def _leave_out(self) -> None:
        """What is applied now: the request without the services that were taken back."""
        held = self.journal.state.held
        self.requested = generations.effective(self.request.manifest, self.previous, held)
        self.manifest = planner.merge(self.requested, self.previous, self.request.scope)

    # -- the run as a whole -------------------------------------------------------------------------------------

    def run(self) -> Result:
        """Apply from the beginning. Never raises but for what ends the process (SIGTERM)."""
        plan = self._plan()
        if plan.problems:
            self._problems(plan)
            return self.result
        try:
            self._check_space(plan)
        except RunError as failure:
            self.result.problems.append(failure.problem.to_dict())
            return self.result
        try:
            self.journal.reserve()
            self.journal.phase("prepare")
        except OSError as error:
            self.journal.release()
            message = f"the space for undoing this run cannot be had: {error.strerror}"
            self.result.problems.append(Problem("", "", message, "make room; nothing was changed").to_dict())
            return self.result
        return self._guard(lambda: self._all(plan))

    def resume(self) -> Result:
        """Finish an interrupted run whose files were all placed."""
        self.context.say("finishing the interrupted run")
        return self._guard(self._resume)

    def _guard(self, work: t.Callable[[], None]) -> Result:
        try:
            work()
            self._commit()
        except RunError as failure:
            self._undo(failure.problem)
        except packages.PackageError as error:
            concerned = sorted(
                {item.service for item in self.manifest.items if item.kind == "package" and item.name in error.names}
            )
            self._undo(Problem(", ".join(concerned), "", str(error), ""))
        except (CommandError, OSError, ValueError, KeyError) as error:
            if isinstance(error, OSError) and error.errno in FULL:
                where = f" ({error.filename})" if error.filename else ""
                self._undo(Problem("", "", f"the disk is full: {error.strerror}{where}", MAKE_ROOM))
            else:
                self._undo(Problem("", "", f"{type(error).__name__}: {error}", ""))
        return self.result

    def _undo(self, problem: Problem) -> None:
        """Everything back; the result says why."""
        self.context.say(f"undoing the run: {problem.message.splitlines()[0]}")
        self.journal.phase(UNDOING, self.context.redactor.text(problem.message))
        undo.clean(self.context)
        undo.take_back(self.context, None, self.full, self.previous)
        self._time("undo")
        self.result.ok, self.result.undone, self.result.changed = False, True, False
        self.result.problems.append(problem.to_dict())
        self.result.problems += [Problem("", "", text, "").to_dict() for text in self.context.problems]

    def _problems(self, plan: Plan) -> None:
        self.result.problems += [problem.to_dict() for problem in plan.problems]
        self._notices(plan.notices)

    def _notices(self, notices: t.Iterable[Notice]) -> None:
        known = {(entry["service"], entry["item"], entry["message"]) for entry in self.result.notices}
        self.result.notices += [
            notice.to_dict() for notice in notices if (notice.service, notice.item, notice.message) not in known
        ]

    def _time(self, name: str) -> None:
        now = time.monotonic()
        self.result.timings[name] = round(self.result.timings.get(name, 0.0) + now - self._clock, 3)
        self._clock = now

    def _plan(self) -> Plan:
        """Observe and plan: the same function as in check mode."""
        result = evaluate.evaluate(
            self.layout,
            self.context.runner,
            self.requested,
            self.previous,
            self.request.scope,
            evaluate.Wanted.of(self.secrets),
            self.request.start_empty,
        )
        self.reload = result.reload
        self._time("plan")
        return result.plan

    def _remember(self, plan: Plan) -> None:
        """What is done and what should be known, from the plan made first and those made again."""
        planned = {name for name, _ in self.actions}
        for action in plan.actions:
            # A configuration file that its package brought meanwhile was planned as missing: that is what it was.
            if action.kind == "unit" or action.id not in planned:
                self.actions.setdefault((action.id, action.operation), action)
        self._notices(notice for notice in plan.notices if notice.item not in planned)

    # -- the phases ---------------------------------------------------------------------------------------------

    def _all(self, plan: Plan) -> None:
        self._remember(plan)
        # For the result, should an interruption leave it to settle: public descriptions, never a secret.
        write_json(self.journal.directory / "actions.json", [action.to_dict() for action in plan.actions])
        engine.install(self.context)
        self._baseline(plan)
        self._accounts(plan)
        self._storage(plan)
        stored = self._store_secrets(plan)
        early = self._early(plan)
        if early:
            # Their validators may not be installed yet; they are checked with all others later.
            self._put(self._stage(early))
        installed = self._packages(plan, early)
        if stored or early or installed:
            plan = self._again()
            self._baseline(plan)
            self._accounts(plan)
            self._storage(plan)
        self._initialize(plan)
        self._time("prepare")
        self.journal.phase("files")
        self._files(plan)
        self._time("files")
        self.journal.phase("guarded")
        self._guarded(plan)
        self._time("guarded")
        self.journal.phase("services")
        self._services(plan)

    def _resume(self) -> None:
        """From the service phase on, with the undo data of the same run."""
        for entry in read_json(self.journal.directory / "actions.json", []):
            action = Action.from_dict(entry)
            self.actions[action.id, action.operation] = action
        state = self.journal.state
        begun = set(state.held) - state.settled
        if begun:
            self._take_back(begun)
        self._leave_out()
        plan = self._again()
        self._accounts(plan)
        self._storage(plan)
        self._files(plan)
        self._services(plan)

    def _again(self) -> Plan:
        plan = self._plan()
        if plan.problems:
            first = plan.problems[0]
            self.result.problems += [problem.to_dict() for problem in plan.problems[1:]]
            raise RunError(first.service, first.message, first.item, first.remedy)
        self._remember(plan)
        return plan

    def _check_space(self, plan: Plan) -> None:
        """The files three times (kept, staged, placed) and room for state, on each file system concerned."""
        items = self.manifest.by_id()
        needed = MARGIN + 3 * sum(
            item.size for item in (items.get(action.id) for action in plan.actions) if isinstance(item, m.File)
        )
        missing = [action.name for action in plan.actions if action.kind == "package"]
        installed = packages.space_needed(self.context, missing) if missing else 0
        seen: set[int] = set()
        for path, extra in (("/var", installed), ("/", installed), ("/etc", 0), ("/var/lib/hearth", 0)):
            real = self.layout.at(path)
            if not real.exists() or real.stat().st_dev in seen:
                continue
            seen.add(real.stat().st_dev)
            found = os.statvfs(real)
            free = found.f_bavail * found.f_frsize
            if free < needed + extra:
                raise RunError(
                    "",
                    f"{path} has {free // 2**20} MiB free, this run needs {(needed + extra) // 2**20} MiB",
                    "",
                    "make room there; nothing was changed",
                )

    def _baseline(self, plan: Plan) -> None:
        """How units are before this run touches them."""
        names = {item.name for item in self.full.items if item.kind == "unit"}
        names |= {item.name for item in (self.previous.items if self.previous else ()) if item.kind == "unit"}
        names |= {action.name for action in plan.actions if action.kind == "unit"}
        names -= set(self.journal.state.baseline)
        found = self.context.units(sorted(name for name in names if "@." not in name))
        if found:
            self.journal.baseline(
                {
                    name: {
                        "active": unit.active in ("active", "reloading", "activating"),
                        "enabled": unit.enabled,
                        "loaded": unit.load == "loaded",
                    }
                    for name, unit in found.items()
                }
            )

    # -- accounts and storage -----------------------------------------------------------------------------------

    def _accounts(self, plan: Plan) -> None:
        items = self.manifest.by_id()
        for action in plan.actions:
            item = items.get(action.id)
            if isinstance(item, m.Hostname):
                self._hostname(action)
            elif isinstance(item, m.Group):
                step = self.journal.begin(action.id, action.operation, action.service)
                self._must(action, ["groupadd", "--gid", str(item.gid), item.name])
                self.journal.done(step)
            elif isinstance(item, m.User):
                self._user(action, item)

    def _user(self, action: Action, item: m.User) -> None:
        present = {entry.gr_name for entry in grp.getgrall()}
        # A group that a package brings is joined after the installation, when the plan is made again.
        groups = [name for name in item.groups if name in present]
        if action.operation == "create":
            argv = [
                "useradd",
                "--uid",
                str(item.uid),
                "--gid",
                item.group,
                "--home-dir",
                item.home,
                "--shell",
                item.shell,
            ]
            argv += ["--comment", item.comment]
            argv += ["--groups", ",".join(groups)] if groups else []
            # -M: a service's home is its storage or nobody's, never made or chowned here.
            argv += ["--system", "--no-create-home"] if item.system else ["--create-home"]
            step = self.journal.begin(action.id, action.operation, action.service)
            self._must(action, [*argv, item.name])
            self.journal.done(step)
            return
        entry = pwd.getpwnam(item.name)
        joined = sorted(group.gr_name for group in grp.getgrall() if item.name in group.gr_mem)
        data = {
            "do": "user",
            "name": item.name,
            "shell": entry.pw_shell,
            "comment": entry.pw_gecos,
            "groups": joined,
        }
        missing = sorted(set(groups) - set(joined))
        # Only what the plan names: the rest of a system user is its package's. Without --move-home no file is touched.
        argv = ["usermod"]
        for key in ("home", "shell", "comment"):
            if key in (action.after or {}):
                argv += [f"--{key}", getattr(item, key)]
        argv += ["--append", "--groups", ",".join(missing)] if missing else []
        if len(argv) == 1:
            return  # the group that is missing comes with a package
        step = self.journal.begin(action.id, action.operation, action.service, data)
        self._must(action, [*argv, item.name])
        self.journal.done(step)

    def _storage(self, plan: Plan) -> None:
        items = self.manifest.by_id()
        for action in plan.actions:
            item = items.get(action.id)
            if not isinstance(item, m.Storage):
                continue
            if item.provider not in ("directory", "zfs"):
                raise RunError(item.service, f"storage provider {item.provider!r} is not known on this host", item.id)
            step = self.journal.begin(action.id, action.operation, action.service)
            path = self.layout.at(item.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            if item.provider == "zfs":
                self._dataset(item)
            else:
                path.mkdir(mode=0o700, exist_ok=True)
            # The directory alone: what is in it belongs to its application.
            os.chown(path, self._uid(item.owner, item), self._gid(item.group, item))
            os.chmod(path, int(item.mode, 8))
            if item.provider == "directory":
                storage.write_mark(item.name, self.manifest.host, item.service, root=str(self.layout.root))
                fsync_directory(path.parent)
            self.journal.done(step)

    def _dataset(self, item: m.Storage) -> None:
        """Make, change and mount a storage's dataset as planned, on what is there now, and mark it."""
        runner, root, host = self.context.runner, str(self.layout.root), self.manifest.host
        found, current = zfs_storage.read([item], runner, storage.read_ledger(root=root), root=root)
        facts = found[item.name]
        state = storage.classify(facts, host, item.service).state
        plan = zfs_storage.plan(item, current, "new" if state == "lost" else state)
        if facts.error or plan.problems:
            raise RunError(item.service, "; ".join([facts.error, *plan.problems]).strip("; "), item.id)
        try:
            zfs_datasets.apply(runner, plan.steps, root=root)
            zfs_storage.write_mark(item, host, runner, root=root)
        except (zfs_datasets.StepError, CommandError, ValueError) as error:
            raise RunError(item.service, f"{item.name}: {error}", item.id) from error
        # Before its owner is changed: without the mount this would be the directory under it.
        again = zfs_storage.read([item], runner, storage.read_ledger(root=root), root=root)[0][item.name]
        if again.error or again.away or again.mark is None:
            raise RunError(item.service, f"{item.name}: {again.error or again.away or 'it has no mark'}", item.id)

    def _uid(self, name: str, item: m.Item) -> int:
        try:
            return int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid
        except KeyError:
            raise RunError(item.service, f"{item.name}: there is no user {name} on this host", item.id) from None

    def _gid(self, name: str, item: m.Item) -> int:
        try:
            return int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
        except KeyError:
            raise RunError(item.service, f"{item.name}: there is no group {name} on this host", item.id) from None

    def _must(self, action: Action, argv: t.Sequence[str], timeout: float = 120) -> None:
        done = self.context.runner.run(argv, check=False, timeout=timeout)
        if done.returncode != 0:
            raise RunError(action.service, f"{action.id}: {argv[0]}: {explain(done)}", action.id)

    # -- packages -----------------------------------------------------------------------------------------------

    def _packages(self, plan: Plan, early: t.Sequence[Action]) -> bool:
        """Install what is missing, with starts denied; whether anything was installed."""
        items = self.manifest.by_id()
        wanted = [item for item in (items.get(a.id) for a in plan.actions) if isinstance(item, m.Package)]
        if not wanted:
            return False
        self.journal.phase("packages")
        names = [item.name for item in wanted]
        units = self.context.units(
            sorted(item.name for item in self.manifest.items if item.kind == "unit" and "@." not in item.name)
        )
        packages.deny_starts(self.context, (name for name, unit in units.items() if unit.load == "not-found"))
        packages.repair(self.context)
        fresh = any(action.name.startswith("/etc/apt/") for action in early)
        simulation = packages.simulate(self.context, names, fresh)
        allowed = {name for item in self.manifest.items if isinstance(item, m.Package) for name in item.replaces}
        unexpected = sorted(set(simulation.removes) - allowed)
        if unexpected:
            owners = sorted({item.service for item in wanted})
            raise RunError(
                ", ".join(owners),
                f"installing {', '.join(names)} would remove {', '.join(unexpected)}",
                "",
                "list what may be removed in native.replaces, or declare other packages",
            )
        self.context.say(f"downloading {len(simulation.installs)} packages")
        packages.download(self.context, names)
        before = undo.enabled_units(self.context)
        step = self.journal.begin("packages", "install", "", {"do": "package_units", "enabled": before})
        self.context.say(f"installing {len(simulation.installs)} packages")
        packages.install(self.context, names, set(simulation.removes))
        self.journal.done(step)
        undo.clean(self.context)
        planned = {item.name for item in self.manifest.items if item.kind == "unit"}
        fresh_units = sorted(set(undo.enabled_units(self.context)) - set(before) - planned)
        if fresh_units:
            self._notices(
                [
                    Notice(
                        "",
                        "",
                        f"packages enabled {', '.join(fresh_units)}, which no service of the plan names: not "
                        "started now, but they will be at the next boot unless a contribution lists them",
                    )
                ]
            )
        self._time("packages")
        return True

    def _initialize(self, plan: Plan) -> None:
        items = self.manifest.by_id()
        for action in plan.actions:
            item = items.get(action.id)
            if isinstance(item, m.Initialize):
                self.context.say(f"initialising the data of {item.service}")
                there = self.layout.at(item.storage)
                data = {
                    "do": "initialize",
                    "storage": item.storage,
                    "before": sorted(os.listdir(there)) if there.is_dir() else [],
                    "makes": [path for path in item.makes if not os.path.lexists(self.layout.at(path))],
                }
                step = self.journal.begin(action.id, action.operation, action.service, data)
                self._must(action, health.as_user(item.user, item.argv), 900)
                if item.creates and not os.path.lexists(self.layout.at(item.creates)):
                    raise RunError(item.service, f"{item.argv[0]} succeeded without making {item.creates}", item.id)
                self.journal.done(step)

    # -- secrets and files --------------------------------------------------------------------------------------

    def _store_secrets(self, plan: Plan) -> bool:
        """Store what was sent; whether anything was."""
        todo = [action for action in plan.actions if action.kind == "secret"]
        for action in [action for action in todo if action.operation == "attributes"]:
            step = self.journal.begin(action.id, action.operation, action.service)
            path = self.layout.secret(action.name)
            os.chown(path, os.geteuid(), os.getegid())
            os.chmod(path, 0o400)
            self.journal.done(step)
            todo.remove(action)
        for action in todo:
            path = self.layout.secret(action.name)
            before = self.journal.keep(path.read_bytes()) if path.exists() else None
            data = {"do": "secret", "name": action.name, "before": before}
            step = self.journal.begin(action.id, action.operation, action.service, data)
            if action.name in self.secrets:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_atomic(path, self.secrets[action.name].encode(), 0o400)
            else:
                raise RunError(action.service, f"the controller sent no value for the secret {action.name}", action.id)
            self.journal.done(step)
        return bool(todo)

    def _secret(self, name: str, service: str) -> str:
        try:
            return self.layout.secret(name).read_text("utf-8")
        except FileNotFoundError:
            raise RunError(service, f"the secret {name} is not stored on this host", f"secret:{name}") from None

    def _early(self, plan: Plan) -> list[Action]:
        """Files that come before packages, and the directories that they are in."""
        items = self.manifest.by_id()
        files = [a for a in plan.actions if getattr(items.get(a.id), "early", False)]
        directories = [
            a
            for a in plan.actions
            if a.kind == "directory" and any(file.name.startswith(a.name.rstrip("/") + "/") for file in files)
        ]
        return [*directories, *files]

    def _files(self, plan: Plan) -> None:
        todo = [action for action in plan.actions if action.kind in ("file", "symlink", "directory")]
        staged = self._stage(todo)
        self._validate(staged)
        self._keep_equal(staged)
        # Units that go are stopped while systemd still has their files, the others after everything is placed.
        self._stop(plan)
        if todo:
            self.context.say(f"placing {len(todo)} files")
        self._put(staged)
        for action in plan.actions:
            if action.kind == "locale":
                self._locale(action)

    def _stage(self, todo: t.Iterable[Action]) -> dict[str, tuple[Action, validate.Staged]]:
        """What shall be at each path, parents that are missing included."""
        items = self.manifest.by_id()
        kept = generations.originals(self.layout)
        staged: dict[str, tuple[Action, validate.Staged]] = {}
        for action in todo:
            path, item = action.name, items.get(action.id)
            if action.operation == "restore":
                entry = self._original(path, kept)
            elif action.operation == "remove" or item is None:
                entry = validate.Staged(path, removed=True, directory=action.kind == "directory")
            elif isinstance(item, m.File):
                entry = validate.Staged(
                    path,
                    self._content(item),
                    mode=int(item.mode, 8),
                    uid=self._uid(item.owner, item),
                    gid=self._gid(item.group, item),
                )
            elif isinstance(item, m.Symlink):
                entry = validate.Staged(path, target=item.target)
            else:
                directory = t.cast(m.Directory, item)
                entry = validate.Staged(
                    path,
                    directory=True,
                    mode=int(directory.mode, 8),
                    uid=self._uid(directory.owner, item),
                    gid=self._gid(directory.group, item),
                )
            staged[path] = (action, entry)
        for path, (action, entry) in list(staged.items()):
            parent = os.path.dirname(path)
            while not entry.removed and parent != "/" and parent not in staged and not self.layout.at(parent).is_dir():
                implied = Action(f"directory:{parent}", "create", action.service, None, None, "missing")
                staged[parent] = (implied, validate.Staged(parent, directory=True, mode=0o755))
                parent = os.path.dirname(parent)
        return staged

    def _original(self, path: str, kept: t.Mapping[str, t.Mapping[str, t.Any]]) -> validate.Staged:
        entry = kept.get(path)
        if entry is None:
            return validate.Staged(path, removed=True)
        if entry["kind"] == "symlink":
            return validate.Staged(path, target=entry["target"])
        content = generations.original_content(self.layout, entry)
        return validate.Staged(path, content, mode=int(entry["mode"], 8), uid=entry["uid"], gid=entry["gid"])

    def _content(self, item: m.File) -> bytes:
        """The final content of a file, its holes filled from the host's secret store."""
        try:
            content = (self.layout.blobs / item.digest).read_bytes()
        except FileNotFoundError:
            raise RunError(item.service, f"the content of {item.name} was not sent", item.id, "run again") from None
        if not item.holes:
            return content
        content = fill_holes(content, {name: self._secret(name, item.service) for name in item.holes})
        left = _LEFT_HOLE.search(content)
        if left:
            raise RunError(
                item.service, f"{item.name} has the hole {left[0].decode()}, which its item does not name", item.id
            )
        return content

    def _validate(self, staged: t.Mapping[str, tuple[Action, validate.Staged]]) -> None:
        chosen = validate.select(self.manifest.validators, list(staged))
        if not chosen:
            return
        self.context.say(f"validating {len(staged)} files with {len(chosen)} programs")
        mountpoint = self.layout.transit(self.request.run) / "stage"
        mountpoint.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            failures = validate.run(chosen, [entry for _, entry in staged.values()], mountpoint, self.layout.agent)
        except OSError as error:
            raise RunError("", self.context.redactor.text(str(error))) from error
        if failures:
            texts = [self.context.redactor.text(str(failure)) for failure in failures]
            self.result.problems += [
                Problem(failure.service, "", text, "").to_dict()
                for failure, text in zip(failures[1:], texts[1:], strict=True)
            ]
            raise RunError(failures[0].service, texts[0], "", "correct the configuration; nothing was replaced")

    def _keep_equal(self, staged: t.Container[str]) -> None:
        """Keep what was there before Hearth and is as declared already: no action replaces it, but a removal would."""
        mine = {item.id for item in (self.previous.items if self.previous else ())}
        # What this run has placed before it was interrupted is as declared, and was not there before Hearth.
        mine |= {step.id for step in self.journal.state.steps}
        generations.keep_originals(
            self.layout,
            [
                item.name
                for item in self.manifest.items
                if item.kind in ("file", "symlink") and item.id not in mine and item.name not in staged
            ],
        )

    def _put(self, staged: t.Mapping[str, tuple[Action, validate.Staged]]) -> None:
        """Replace each path, atomically; what was there is kept first (undo data, and generation 0 once)."""
        if not staged:
            return
        mine = {
            item.name for item in (self.previous.items if self.previous else ()) if item.kind in ("file", "symlink")
        }
        generations.keep_originals(
            self.layout,
            [
                path
                for path, (_, entry) in staged.items()
                if path not in mine and not entry.directory and not entry.removed
            ],
        )
        declared = self.manifest.by_id()
        generations.keep_made_directories(
            self.layout,
            [
                path
                for path, (_, entry) in staged.items()
                if entry.directory and not entry.removed and f"directory:{path}" not in declared
            ],
        )
        # Directories before what is in them; removals last, the deepest first.
        order = sorted(
            staged.values(),
            key=lambda pair: (
                pair[1].removed,
                pair[1].removed == pair[1].directory,
                -len(pair[1].path) if pair[1].removed else 0,
                pair[1].path,
            ),
        )
        steps = self.journal.begin_all(
            (action.id, action.operation, action.service, undo.path_undo(self.context, entry.path))
            for action, entry in order
        )
        touched: set[Path] = set()
        for action, entry in order:
            real = self.layout.at(entry.path)
            try:
                self._put_one(real, entry)
            except OSError as error:
                message = f"{entry.path} cannot be written: {error.strerror}"
                remedy = MAKE_ROOM if error.errno in FULL else ""
                raise RunError(action.service, message, action.id, remedy) from error
            touched.add(real.parent)
        for directory in touched:
            if directory.is_dir():
                fsync_directory(directory)
        self.journal.done(*steps)

    def _put_one(self, path: Path, entry: validate.Staged) -> None:
        if entry.removed:
            if not entry.directory:
                path.unlink(missing_ok=True)
            elif path.is_dir() and not path.is_symlink() and not os.listdir(path):
                path.rmdir()
        elif entry.directory:
            path.mkdir(mode=0o700, exist_ok=True)
            os.chown(path, entry.uid, entry.gid)
            os.chmod(path, entry.mode)
        elif entry.target:
            undo.place_link(path, entry.target)
        else:
            write_atomic(path, entry.content or b"", entry.mode, entry.uid, entry.gid)

    def _hostname(self, action: Action) -> None:
        data = undo.path_undo(self.context, "/etc/hostname")
        first = self.journal.begin(action.id, action.operation, action.service, data)
        old = {"do": "hostname", "before": undo.kernel_hostname(self.layout)}
        second = self.journal.begin(action.id, action.operation, action.service, old)
        write_atomic(self.layout.at("/etc/hostname"), f"{action.name}\n".encode(), 0o644)
        undo.set_kernel_hostname(self.layout, action.name)
        self.journal.done(first, second)

    def _locale(self, action: Action) -> None:
        """localedef(1) as locale-gen(8) calls it; locale-gen itself would first delete all others."""
        language, _, charset = action.name.partition(".")
        charset, _, modifier = charset.partition("@")
        source = language.partition("@")[0] + (f"@{modifier}" if modifier else "")
        argv = [
            "localedef",
            "-i",
            source,
            "-c",
            "-f",
            charset or "UTF-8",
            "-A",
            "/usr/share/locale/locale.alias",
            action.name,
        ]
        step = self.journal.begin(action.id, action.operation, action.service)
        self.context.say(f"generating the locale {action.name}")
        self._must(action, argv)
        self.journal.done(step)

    def _stop(self, plan: Plan) -> None:
        """Units that shall not run or be enabled any more."""
        for verb in ("stop", "disable"):
            todo = [action for action in plan.actions if action.kind == "unit" and action.operation == verb]
            if not todo:
                continue
            baseline = self.journal.state.baseline
            steps = self.journal.begin_all(
                (action.id, verb, action.service, self._unit_undo(action.name, verb, baseline)) for action in todo
            )
            names = [action.name for action in todo]
            self.context.say(f"{'stopping' if verb == 'stop' else 'disabling'} {', '.join(names)}")
            argv = ["systemctl", verb, *(["--no-reload"] if verb == "disable" else []), "--", *names]
            done = self.context.runner.run(argv, check=False, timeout=600)
            if done.returncode != 0:
                raise RunError(todo[0].service, f"systemctl {verb}: {explain(done)}", todo[0].id)
            self.journal.done(*steps)

    @staticmethod
    def _unit_undo(unit: str, verb: str, baseline: t.Mapping[str, t.Mapping[str, t.Any]]) -> dict[str, t.Any]:
        if verb in ("enable", "disable"):
            return {"do": "enabled", "unit": unit, "before": baseline.get(unit, {}).get("enabled") is True}
        return {"do": "unit", "unit": unit}

    # -- what may cut the controller off ------------------------------------------------------------------------

    def _guarded(self, plan: Plan) -> None:
        """Firewall and guarded units, armed: undone unless the controller comes back over a new connection."""
        placed = self.journal.state.changed
        if self.reload or undo.reads_unit_files(self.journal.state.steps):
            self.context.runner.run(["systemctl", "daemon-reload"])
        # Those that nothing declares any more as well: they keep running, without what the plan told them.
        items = {**(self.previous.by_id() if self.previous else {}), **self.manifest.by_id()}
        firewall = [action for action in plan.actions if action.kind == "firewall"]
        units = [
            action
            for action in self._unit_actions(plan, placed)
            if action.operation in ("start", "restart", "reload") and getattr(items.get(action.id), "guarded", False)
        ]
        if not firewall and not units:
            return
        timer = f"hearth-guard-{self.request.run}"
        step = self.journal.begin(
            "cleanup:timer", "create", "", {"do": "timer", "unit": f"{timer}.timer"}, cleanup=True
        )
        self.context.runner.run(
            [
                "systemd-run",
                "--quiet",
                "--collect",
                f"--unit={timer}",
                "--timer-property=AccuracySec=1s",
                f"--on-active={self.request.confirm_timeout + GUARD_MARGIN}",
                *engine.command(self.layout, "settle", self.request.run),
            ]
        )
        self.journal.done(step)
        for action in firewall:
            self._firewall(action, items)
        for action in units:
            step = self.journal.begin(action.id, action.operation, action.service, {"do": "unit", "unit": action.name})
            self.context.say(f"{action.operation} {action.name}")
            verb = "reload-or-restart" if action.operation == "reload" else action.operation
            self._must(action, ["systemctl", verb, "--", action.name])
            self.journal.done(step)
        self._await_controller()
        self.journal.confirmed()
        undo.clean(self.context)

    def _firewall(self, action: Action, items: t.Mapping[str, m.Item]) -> None:
        family, _, table = action.name.partition(" ")
        live = self.context.runner.run(["nft", "-s", "list", "table", family, table], check=False)
        before = self.journal.keep(live.stdout.encode()) if live.returncode == 0 else None
        data = {"do": "firewall", "table": action.name, "before": before}
        step = self.journal.begin(action.id, action.operation, action.service, data)
        item = items.get(action.id)
        self.context.say(f"{'loading' if action.operation == 'load' else 'removing'} the firewall table {action.name}")
        if action.operation == "load" and isinstance(item, m.Firewall):
            self._must(action, ["nft", "-f", item.path])
        else:
            undo.remove_table(self.context.runner, action.name)
        self.journal.done(step)

    def _await_controller(self) -> None:
        limit = self.request.confirm_timeout
        before = self.previous.items if self.previous else ()
        declared = self.manifest.by_id()
        gone = sorted({
            item.service for item in before if isinstance(item, m.Unit) and item.guarded and item.id not in declared
        })  # fmt: skip
        self.context.say("waiting for the controller to confirm over a new connection")
        write_atomic(self.journal.directory / "awaiting", b"", uid=os.geteuid(), gid=os.getegid())
        end = time.monotonic() + limit
        while not self.confirmed():
            if time.monotonic() > end:
                raise RunError(
                    "",
                    f"the controller did not reach this host over a new connection within {limit} s after the "
                    "change of firewall or SSH: everything was undone",
                    "",
                    f"{' and '.join(gone)} is no longer declared: a firewall lets nobody in through ports that nothing "
                    "declares. Keep it, or take the firewall away as well"
                    if gone
                    else "check the address, port and keys that the plan gives SSH, and that the firewall has its port",
                )
            time.sleep(0.2)

    # -- services -----------------------------------------------------------------------------------------------

    def _unit_actions(self, plan: Plan, changed: t.Collection[str]) -> list[Action]:
        """The plan's unit actions, and restarts for items that changed before the plan was made again."""
        found = {(a.name, a.operation): a for a in plan.actions if a.kind == "unit"}
        acted = {name for name, operation in found if operation in ("start", "restart", "reload", "stop")}
        done = {
            step.id
            for step in self.journal.state.steps
            if step.done and not step.undone and step.operation in ("start", "restart", "reload")
        }
        for item in self.manifest.items:
            if not isinstance(item, m.Unit) or not item.running or item.id in done:
                continue
            restart = bool(planner.triggered(item.restart_on, changed))
            if restart and (item.name, "reload") in found:
                del found[item.name, "reload"]
            elif item.name in acted:
                continue
            verb = "restart" if restart else "reload"
            if restart or planner.triggered(item.reload_on, changed):
                found[item.name, verb] = Action(item.id, verb, item.service, None, None, "its configuration changed")
        return list(found.values())

    def _services(self, plan: Plan) -> None:
        """Images, podman secrets, enabling, databases, units, health; services that fail are taken back."""
        items = self.manifest.by_id()
        held: dict[str, str] = {}
        unknown = [
            Action(
                notice.item,
                "pull" if _kind(notice) == "image" else "create",
                notice.service,
                None,
                None,
                notice.message,
            )
            for notice in plan.unknown
            if _kind(notice) in ("image", "podman_secret") and notice.item in items
        ]
        todo = [*plan.actions, *(a for a in unknown if a.kind != "image" or not self._has_image(a.name))]
        self._images([a for a in todo if a.kind == "image"], held)
        self._podman_secrets([a for a in todo if a.kind == "podman_secret"], items, held)
        actions = self._unit_actions(plan, self.journal.state.changed)
        self._enable([a for a in actions if a.operation == "enable"], held)
        if held:
            for service, reason in held.items():
                self._hold(service, reason)
            items = self.manifest.by_id()
        self._time("images")
        out = self.journal.state.held
        actions = [a for a in actions if a.service not in out]
        for action in actions:
            self.actions.setdefault((action.id, action.operation), action)
        databases = {a.service for a in plan.actions if a.kind.startswith("postgresql_")}
        databases |= {n.service for n in plan.unknown if _kind(n).startswith("postgresql_")}
        databases -= set(out)
        host = _Host(self)
        loop = services.Services(
            host, self._watches(actions, databases), self.previous.services if self.previous else {}
        )
        loop.run()
        # Logins of services that are gone: nothing waits for them.
        for name in sorted(databases - set(loop.watches) - set(self.journal.state.held)):
            error = host.prepare(name)
            if error:
                self.result.problems.append(Problem(name, "", f"{name}: {error}", "run again").to_dict())
        self._handed_back(actions)
        for name, watch in loop.watches.items():
            if watch.phase == "unhealthy":
                self.result.problems.append(
                    Problem(name, "", f"{name}: {watch.reason}", "it was not changed by this run").to_dict()
                )
            elif watch.phase == "returned" and watch.reason:
                self.result.taken_back[name] = self.context.redactor.text(watch.reason)
        self._sentinels(loop)
        self._time("services")
        self._configure(plan)

    def _handed_back(self, actions: t.Sequence[Action]) -> None:
        """Units that keep running and that nothing declares any more read their files again. Nobody watches them."""
        declared = self.manifest.by_id()
        done = {(step.id, step.operation) for step in self.journal.state.steps if step.done and not step.undone}
        for action in actions:
            if action.id in declared or action.operation not in ("restart", "reload"):
                continue
            if (action.id, action.operation) in done:
                continue  # a guarded one, which the controller confirmed
            step = self.journal.begin(action.id, action.operation, action.service, {"do": "unit", "unit": action.name})
            self.context.say(f"{action.operation} {action.name}, which no longer belongs to {action.service}")
            found = self.context.runner.run(
                ["systemctl", action.operation, "--", action.name], check=False, timeout=300
            )
            if found.returncode != 0:
                message = self.context.redactor.text(f"{action.name}: {explain(found)}")
                remedy = f"journalctl -u {action.name}"
                self.result.problems.append(Problem(action.service, action.id, message, remedy).to_dict())
            self.journal.done(step)

    def _configure(self, plan: Plan) -> None:
        """Objects that only applications' APIs can make, after all services are well. Read again: what was started in
        this run could not be asked before. One that cannot be made is said; its service runs and stands."""
        wanted = {item.id: item for item in self.manifest.items if isinstance(item, m.Configure)}
        gone = {item.id: item for item in (self.previous.items if self.previous else ()) if item.id not in wanted}
        pending = any(action.kind == "configure" for action in plan.actions)
        pending = pending or any(_kind(notice) == "configure" for notice in plan.unknown)
        touched = {step.service for step in self.journal.state.steps if step.id.startswith("unit:")}
        if not pending and not any(item.provider in touched for item in wanted.values()):
            return
        # A secret that was stored in this run is not stale any more, and applications do not show theirs.
        todo = {action.id: action for action in self.actions.values() if action.kind == "configure"}
        fresh = self._plan()
        todo.update({action.id: action for action in fresh.actions if action.kind == "configure"})
        held = self.journal.state.held
        for notice in fresh.unknown:
            if _kind(notice) == "configure" and notice.service not in held and notice.item not in todo:
                message = self.context.redactor.text(notice.message)
                self.result.problems.append(Problem(notice.service, notice.item, message, "run again").to_dict())
        for action in todo.values():
            item = wanted.get(action.id) or gone.get(action.id)
            if not isinstance(item, m.Configure) or action.service in held or item.provider in held:
                continue
            step = self.journal.begin(action.id, action.operation, action.service)
            self.context.say(f"configuring {item.provider}: {item.name}")
            try:
                if action.operation == "remove":
                    configure.remove(item, self._stored)
                else:
                    configure.write(item, self._stored)
            except configure.ApiError as error:
                self.journal.undone(step)
                self.actions.pop((action.id, action.operation), None)
                message = self.context.redactor.text(f"{item.provider} cannot be told of {item.name}: {error}")
                remedy = f"journalctl -u {item.provider}, then run again"
                self.result.problems.append(Problem(action.service, action.id, message, remedy).to_dict())
                continue
            self.journal.done(step)
            self.actions.setdefault((action.id, action.operation), action)
        self._time("configure")

    def _stored(self, name: str) -> str | None:
        try:
            return self.layout.secret(name).read_text("utf-8")
        except FileNotFoundError:
            return None

    def _watches(self, actions: t.Sequence[Action], databases: t.Collection[str]) -> list[services.Watch]:
        """What is acted on or has been, what only needs its databases, and what requires something that restarts."""
        state = self.journal.state
        done = {(step.id, step.operation) for step in state.steps if step.done and not step.undone}
        verbs: dict[str, dict[str, list[str]]] = {}
        for action in actions:
            if action.operation in ("start", "restart", "reload") and (action.id, action.operation) not in done:
                verbs.setdefault(action.service, {}).setdefault(action.operation, []).append(action.name)
        # Guarded units, and what an interrupted run has started and not watched to the end.
        acted = set(verbs) | {
            step.service
            for step in state.steps
            if (step.undo or {}).get("do") == "unit" and not step.undone and step.operation != "stop"
        }
        disturbed = {name for name, todo in verbs.items() if "restart" in todo or "start" in todo}
        dependents = services.requiring(self.manifest, disturbed) - acted
        watches: list[services.Watch] = []
        for name in planner.service_order(self.manifest.services):
            if name in state.held or name not in acted | dependents | set(databases):
                continue
            service = self.manifest.services[name]
            own = [item for item in self.manifest.items if item.service == name]
            providers = {item.provider for item in own if isinstance(item, (m.PostgresqlRole, m.PostgresqlDatabase))}
            watched = name in acted or name in dependents
            todo = verbs.get(name, {})
            watches.append(
                services.Watch(
                    state=service if watched else replace(service, checks=()),
                    start=todo.get("start", []),
                    restart=todo.get("restart", []),
                    reload=todo.get("reload", []),
                    units=tuple(item.name for item in own if isinstance(item, m.Unit) and item.running)
                    if watched
                    else (),
                    after=frozenset({*service.requires, *service.wants, *providers}),
                    changed=name in acted or name in databases,
                )
            )
        return watches

    def _has_image(self, name: str) -> bool:
        return self.context.call(["podman", "image", "exists", name])[0] == 0

    def _images(self, todo: t.Sequence[Action], held: dict[str, str]) -> None:
        if not todo:
            return

        def pull(action: Action) -> str:
            self.context.say(f"pulling {action.name}")
            done = self.context.runner.run(["podman", "pull", "--quiet", action.name], check=False, timeout=3600)
            return "" if done.returncode == 0 else explain(done, lines=1)  # above it: each attempt that failed

        steps = self.journal.begin_all((action.id, action.operation, action.service, None) for action in todo)
        with ThreadPoolExecutor(PULLS) as pool:
            for action, error in zip(todo, pool.map(pull, todo), strict=True):
                if error:
                    held.setdefault(
                        action.service,
                        f"the image {action.name} cannot be pulled: {error}\nCorrect the reference (or its lock: make "
                        "pin), or make its registry reachable from this host, and converge again.",
                    )
        self.journal.done(*steps)

    def _podman_secrets(self, todo: t.Sequence[Action], items: t.Mapping[str, m.Item], held: dict[str, str]) -> None:
        for action in todo:
            item = items.get(action.id)
            shown = self.context.runner.run(
                ["podman", "secret", "inspect", "--showsecret", "--format", "{{.SecretData}}", action.name], check=False
            )
            # Go's template adds one line end.
            before = self.journal.keep(shown.stdout.removesuffix("\n").encode()) if shown.returncode == 0 else None
            data = {"do": "podman_secret", "name": action.name, "before": before}
            step = self.journal.begin(action.id, action.operation, action.service, data)
            try:
                if isinstance(item, m.PodmanSecret):
                    value = self._secret(item.secret, item.service)
                    undo.put_podman_secret(self.context.runner, action.name, value.encode())
                else:
                    self.context.runner.run(["podman", "secret", "rm", "--ignore", action.name])
            except CommandError as error:
                held.setdefault(action.service, f"podman secret {action.name}: {explain(error.completed)}")
            self.journal.done(step)

    def _enable(self, todo: t.Sequence[Action], held: dict[str, str]) -> None:
        if not todo:
            return
        baseline = self.journal.state.baseline
        steps = self.journal.begin_all(
            (a.id, "enable", a.service, self._unit_undo(a.name, "enable", baseline)) for a in todo
        )
        argv = ["systemctl", "enable", "--no-reload", "--quiet", "--"]
        if self.context.runner.run([*argv, *(a.name for a in todo)], check=False).returncode != 0:
            for action in todo:  # one by one, to find whose fault it is
                done = self.context.runner.run([*argv, action.name], check=False)
                if done.returncode != 0:
                    held.setdefault(action.service, f"{action.name} cannot be enabled: {explain(done)}")
        self.context.runner.run(["systemctl", "daemon-reload"])
        self.journal.done(*steps)

    # -- taking back --------------------------------------------------------------------------------------------

    def _hold(self, service: str, reason: str) -> dict[str, tuple[str, ...]]:
        """Take back a service and what requires it; each with the units that run again."""
        state = self.journal.state
        if service in state.settled:
            return {}
        changed = {step.service for step in state.steps if step.undo is not None and not step.undone}
        closure = {service} | {
            name
            for name in services.requiring(self.full, {service})
            if name in changed or self.previous is None or name not in self.previous.services
        }
        closure -= set(state.settled)
        self.context.say(f"taking back {', '.join(sorted(closure))}: {reason.splitlines()[0]}")
        texts = dict.fromkeys(sorted(closure), f"requires {service}, which is held back")
        texts[service] = self.context.redactor.text(reason)
        self.journal.held(texts)
        self._take_back(closure)
        self._leave_out()
        self._start_dependents(closure)
        old = [item for item in (self.previous.items if self.previous else ()) if isinstance(item, m.Unit)]
        baseline = self.journal.state.baseline
        stopped = self._newer_data(closure)
        # One that did not run as a whole before cannot be expected to be healthy again.
        units = {name: [u.name for u in old if u.service == name and u.running] for name in closure}
        return {
            name: tuple(names)
            if name not in stopped and all(baseline.get(unit, {}).get("active") for unit in names)
            else ()
            for name, names in units.items()
        }

    def _start_dependents(self, closure: t.Collection[str]) -> None:
        """What was not changed but stopped along with a service that it requires (Requires=) runs again."""
        baseline = self.journal.state.baseline
        wanted = services.requiring(self.full, closure) - set(self.journal.state.held)
        names = [
            item.name
            for item in self.manifest.items
            if isinstance(item, m.Unit)
            and item.service in wanted
            and item.running
            and baseline.get(item.name, {}).get("active")
        ]
        down = [name for name, unit in self.context.units(names).items() if unit.active in ("inactive", "failed")]
        if down:
            self.context.call(["systemctl", "reset-failed", "--", *down])
            done = self.context.runner.run(["systemctl", "start", "--", *down], check=False, timeout=300)
            if done.returncode != 0:
                self.context.problems.append(self.context.redactor.text(f"starting {', '.join(down)}: {explain(done)}"))

    def _take_back(self, names: t.Collection[str]) -> None:
        held = self.journal.state.held
        leave = self._newer_data(names)
        undo.take_back(self.context, names, self.full, self.previous, leave)
        for name in names:
            text = held[name]
            if name in leave:
                text += (
                    "\nThe new version has run on the data and the change is not declared reversible: the old version is "
                    "not started on it. Correct the new version and converge again, or restore the data from before and "
                    "the old version with it."
                )
            self.result.taken_back[name] = text
        self.journal.settled(names)

    def _newer_data(self, names: t.Collection[str]) -> set[str]:
        """Services whose data a newer program has had: another image than before, run on storage, not reversible."""
        if self.previous is None:
            return set()
        ran = {
            step.service
            for step in self.journal.state.steps
            if step.operation in ("start", "restart") and step.done and step.id.startswith("unit:")
        }
        found: set[str] = set()
        for name in names:
            state = self.full.services.get(name)
            images = [
                {item.name for item in source.items if item.kind == "image" and item.service == name}
                for source in (self.full, self.previous)
            ]
            stored = any(item.kind == "storage" and item.service == name for item in self.full.items)
            if state and not state.reversible and stored and all(images) and images[0] != images[1] and name in ran:
                found.add(name)
        return found

    def _sentinels(self, loop: services.Services) -> None:
        """After the first healthy start storage holds data: from then on an empty one is a loss."""
        out = self.journal.state.held
        entries = [item for item in self.manifest.items if isinstance(item, m.Storage) and item.service not in out]
        running: dict[str, list[str]] = {}
        for item in self.manifest.items:
            if isinstance(item, m.Unit) and item.running:
                running.setdefault(item.service, []).append(item.name)
        wanted = []
        for entry, facts in self._facts(entries):
            if facts.mark is not None and not facts.mark.sentinel and entry.service in running:
                wanted.append(entry)
        if not wanted:
            return
        units = self.context.units(sorted({unit for entry in wanted for unit in running[entry.service]}))
        for entry in wanted:
            watch = loop.watches.get(entry.service)
            well = watch.phase == "well" if watch else all(units[unit].running for unit in running[entry.service])
            if well:
                self._write_sentinel(entry)

    def _facts(self, entries: t.Sequence[m.Storage]) -> list[tuple[m.Storage, storage.StorageFacts]]:
        found = zfs_storage.read_all(entries, self.context.runner, {}, root=str(self.layout.root))
        return [(entry, found[entry.name]) for entry in entries]

    def _write_sentinel(self, entry: m.Storage) -> None:
        root = str(self.layout.root)
        if entry.provider == "zfs":
            zfs_storage.write_mark(entry, self.manifest.host, self.context.runner, sentinel=True, root=root)
        else:
            storage.write_sentinel(entry.name, self.manifest.host, entry.service, root=root)

    # -- the end ------------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        """Record the generation, then end the journal."""
        state = self.journal.state
        self._leave_out()
        for name, reason in state.held.items():
            self.result.taken_back.setdefault(name, reason)
        scoped = {item.service for item in self.request.manifest.items} | set(self.request.manifest.services)
        # What an earlier run held back stays named until it is part of a run again.
        carried = {
            name: reason
            for name, reason in self.partial.items()
            if self.request.scope is not None and name not in scoped and name not in self.result.taken_back
        }
        partial = {**carried, **{name: self.context.redactor.text(r) for name, r in self.result.taken_back.items()}}
        had = {item.name for item in (self.previous.items if self.previous else ()) if item.kind == "unit"}
        services = self.previous.services if self.previous else {}
        # One that a role comes to name later was its package's, and is not what the host was before Hearth.
        new = {item.name for item in self.manifest.items if item.kind == "unit" and item.service not in services} - had
        generations.keep_original_units(
            self.layout, {name: unit for name, unit in state.baseline.items() if name in new}
        )
        generation = generations.record(
            self.layout,
            self.manifest,
            commit=self.request.commit,
            controller=self.request.owner,
            partial=partial,
            scope=self.request.scope,
        )
        self.result.generation = generation.number
        self.result.actions = [action.to_dict() for action in self.actions.values()]
        self.result.changed = any(
            not step.undone and not step.cleanup for step in state.steps if step.service or step.id == "packages"
        )
        self.result.problems += [Problem("", "", text, "").to_dict() for text in self.context.problems]
        self.result.ok = not self.result.problems and not self.result.taken_back


def _kind(notice: Notice) -> str:
    return notice.item.partition(":")[0]


class _Host:
    """The service loop's view of this host."""

    def __init__(self, run: Apply) -> None:
        self.apply, self.context = run, run.context
        self._databases: set[str] = set()

    def clock(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def say(self, text: str) -> None:
        self.context.say(text)

    def show(self, units: t.Sequence[str]) -> dict[str, health.UnitStatus]:
        return self.context.units(units)

    def check(self, checks: t.Mapping[str, t.Sequence[m.Check]]) -> dict[str, list[str]]:
        found = health.run_checks(checks)
        return {name: [self.context.redactor.text(text) for text in texts] for name, texts in found.items()}

    def prepare(self, service: str) -> str:
        """The service's roles and databases. Planned now: before, its server may not have been there to be asked."""
        names = {
            item.id
            for item in self.apply.manifest.items
            if isinstance(item, (m.PostgresqlRole, m.PostgresqlDatabase)) and item.service == service
        }
        old = {
            item.id
            for item in (self.apply.previous.items if self.apply.previous else ())
            if isinstance(item, (m.PostgresqlRole, m.PostgresqlDatabase)) and item.service == service
        }
        if not names | old or service in self._databases:
            return ""
        return self._prepare_databases(service)

    def _prepare_databases(self, service: str) -> str:
        run = self.apply
        plan = run._plan()
        items = run.manifest.by_id()
        pending = [
            a for a in plan.actions if a.kind.startswith("postgresql_") and a.service not in run.journal.state.held
        ]
        unknown = [n for n in plan.unknown if _kind(n).startswith("postgresql_") and n.service == service]
        if unknown:
            return f"PostgreSQL cannot be asked for {unknown[0].item.partition(':')[2]}: {unknown[0].message}"
        # All services' items in one batch; one by one only if that fails, to find whose fault it is.
        groups: list[list[Action]] = [pending]
        first = True
        while groups:
            group = groups.pop(0)
            error = self._batch(group, items)
            if error and first and len({a.service for a in group}) > 1:
                groups = [[a for a in group if a.service == name] for name in sorted({a.service for a in group})]
            elif error and any(a.service == service for a in group):
                return f"its PostgreSQL roles or databases: {error}"
            elif not error:
                self._databases |= {a.service for a in group}
            first = False
        self._databases.add(service)
        return ""

    def _batch(self, todo: t.Sequence[Action], items: t.Mapping[str, m.Item]) -> str:
        if not todo:
            return ""
        run = self.apply
        try:
            port = postgresql.port(run.manifest, run.previous, todo, items)
            before = postgresql.roles_before(
                run.context.runner, [a.name for a in todo if a.kind == "postgresql_role"], port
            )
            steps = run.journal.begin_all((a.id, a.operation, a.service, self._undo(a, before, port)) for a in todo)
            self.say(f"making {len(todo)} PostgreSQL roles and databases")
            lines = postgresql.batch(todo, items, lambda name: run._secret(name, todo[0].service))
            postgresql.execute(run.context.runner, lines, port)
        except (CommandError, ValueError) as error:
            text = postgresql.error_text(error) if isinstance(error, CommandError) else str(error)
            return run.context.redactor.text(text)
        except RunError as failure:
            return str(failure)
        run.journal.done(*steps)
        for action in todo:
            run.actions.setdefault((action.id, action.operation), action)
        return ""

    def _undo(self, action: Action, before: t.Mapping[str, postgresql.RoleState], port: str) -> dict[str, t.Any] | None:
        if action.kind != "postgresql_role":
            return None
        found = before.get(action.name)
        kept = None if found is None else self.apply.journal.keep(found.to_json())
        return {"do": "postgresql_role", "name": action.name, "before": kept, "port": port}

    def _along(self, service: str) -> list[str]:
        """Units of the services that require this one."""
        requiring = services.requiring(self.apply.full, {service}) - {service}
        return sorted(
            item.name
            for item in self.apply.full.items
            if isinstance(item, m.Unit) and item.running and item.service in requiring
        )

    def act(self, service: str, verb: str, units: t.Sequence[str]) -> str:
        journal = self.apply.journal
        steps = journal.begin_all((f"unit:{unit}", verb, service, {"do": "unit", "unit": unit}) for unit in units)
        self.say(f"{verb}ing {', '.join(units)}" if verb != "reload" else f"reloading {', '.join(units)}")
        if verb == "reload":
            # Waited for: a failed reload leaves a unit active, its state does not show it.
            done = self.context.runner.run(["systemctl", "reload-or-restart", "--", *units], check=False, timeout=120)
        else:
            # Clears a start limit that earlier failures have used up, and the count of restarts: also of what systemd restarts
            # along (Requires=), which would be held to be failing after a few runs within a minute.
            self.context.runner.run(["systemctl", "reset-failed", "--", *units, *self._along(service)], check=False)
            done = self.context.runner.run(["systemctl", "--no-block", verb, "--", *units], check=False)
        journal.done(*steps)
        return (
            ""
            if done.returncode == 0
            else f"systemctl {verb} {' '.join(units)}: {self.context.redactor.text(explain(done))}"
        )

    def hold(self, service: str, reason: str) -> dict[str, tuple[str, ...]]:
        return self.apply._hold(service, reason)

    def last_lines(self, units: t.Sequence[str]) -> str:
        waits = health.waits_for(self.context.call, units)
        options = [option for unit in units for option in ("--unit", unit)]
        since = f"@{int(self.apply.journal.state.started or time.time())}"
        argv = ["journalctl", "--no-pager", "-q", "-o", "cat", "-n", "12", "--since", since, *options]
        done = self.context.runner.run(argv, check=False)
        return self.context.redactor.text("\n".join([*waits, done.stdout.strip()[-3000:]]).strip())
