# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent: the engine's entry point on a host.

``python3 -I /var/lib/hearth/agent/DIGEST/main.py COMMAND``, one request on standard input, one answer on standard
output (protocol.py). Nothing stays running: the controller asks, the agent answers and ends; applying is done by a
transient systemd unit that does not depend on the SSH session.

====================  =======================================================================================
command               request -> answer
====================  =======================================================================================
compare               manifest, scope, secrets {nonce, digests}, check, diff, start_empty -> status (converged, stale,
                      problems), plan, diffs, generation, running, unfinished, reload
apply                 manifest, scope, blobs {digest: base64}, secrets {name: value}, run {id, owner, commit},
                      confirm_timeout, start_empty -> run
watch                 run, offset, timeout -> events, offset, done, result, awaiting_confirmation
confirm               run -> run (over a NEW connection)
status                nothing -> generation, services
storage               host, storage {path: service}, databases, secrets -> storage, databases, secrets: what is there
recover               nothing -> results: settles an interrupted run, and waits for it
run ID, settle [ID],  called by units of the host; no request, no answer
gate SERVICE
====================  =======================================================================================

An answer with ``error`` means that the command itself failed. Standard library only: this module runs on hosts.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import sys
import time
import typing as t
from pathlib import Path

from ansible_collections.hearth.homelab.plugins.module_utils import evaluate, generations, lock, planner, protocol
from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.module_utils.actions import Plan
from ansible_collections.hearth.homelab.plugins.module_utils.layout import Layout, read_json, write_atomic, write_json
from ansible_collections.hearth.homelab.plugins.module_utils.redact import Redactor
from ansible_collections.hearth.homelab.plugins.module_utils.runner import SystemRunner, explain

# What only applying needs is imported where it is used: a comparison shall be over in a fraction of a second.

#: Seconds that ``watch`` waits for news, unless asked otherwise.
POLL = 15.0

#: Files larger than this (bytes) are not shown in diffs.
DIFF_LIMIT = 100_000

#: In a run's directory: a controller has its result.
SEEN = "seen"

Answer = dict[str, t.Any]


class RefusedError(Exception):
    """The request cannot be served; the message says why."""


def compare(layout: Layout, request: t.Mapping[str, t.Any]) -> Answer:
    """What is stale. Read-only, always."""
    manifest = m.Manifest.from_dict(request["manifest"])
    generation = generations.current(layout)
    previous = generation.manifest if generation else None
    scope = _scope(request, previous)
    secrets = request.get("secrets") or {}
    wanted = evaluate.Wanted(secrets.get("nonce", ""), dict(secrets.get("digests") or {}))
    result = evaluate.evaluate(
        layout, SystemRunner(), manifest, previous, scope, wanted, request.get("start_empty") or ()
    )
    plan = result.plan
    running = lock.holder(layout)
    unfinished = [path.name for path in generations.unfinished_runs(layout)] if running is None else []
    if running is not None:
        plan.problems.insert(0, _problem(lock.describe(running), "wait for it to end, then run again"))
    elif unfinished and request.get("check"):
        plan.problems.insert(
            0,
            _problem(
                f"run {unfinished[0]} was interrupted: what is compared here may be half of it", "converge to settle it"
            ),
        )
    plan.notices += _missed(layout)
    merged = planner.merge(manifest, previous, None if scope is None else frozenset(scope))
    # Nothing to do, but something to record: a check, an address or a unit's order changed.
    record = (
        generation is None or merged != generation.manifest or not set(generation.partial) <= set(manifest.services)
    )
    status = (
        "problems" if plan.problems else "converged" if plan.converged and not record and not unfinished else "stale"
    )
    redactor = Redactor(_stored(layout)) if plan.actions or plan.problems or plan.unknown else Redactor()
    return {
        "status": status,
        "plan": redactor.data(plan.to_dict()),
        "diffs": _diffs(layout, manifest, previous, plan, redactor) if request.get("diff") else [],
        "generation": generation.number if generation else None,
        "partial": generation.partial if generation else {},
        "running": running,
        "unfinished": unfinished,
    }


def _scope(request: t.Mapping[str, t.Any], previous: m.Manifest | None) -> list[str] | None:
    """The services to apply: the controller's, and those of its tiers that only the last generation still has.

    Only the host knows what a tier had before: without them a service taken out of the inventory would stay.
    """
    scope = request.get("scope")
    if scope is None:
        return None
    tiers = request.get("tiers") or ()
    left = [name for name, service in (previous.services if previous else {}).items() if service.tier in tiers]
    return sorted({*scope, *left})


def _missed(layout: Layout) -> list[t.Any]:
    """How the last run ended, when no controller heard of it: its own was killed, or lost the way here."""
    from ansible_collections.hearth.homelab.plugins.module_utils.actions import Notice

    last = _last(layout)
    if last is None or (last.parent / SEEN).exists():
        return []
    result = read_json(last, {})
    why = "; ".join(problem["message"] for problem in result.get("problems", ()))
    how = "everything was undone" if result.get("undone") else "it was finished" if result.get("ok") else "it failed"
    if result.get("taken_back"):
        how = f"it was finished, but {', '.join(sorted(result['taken_back']))} held back"
    owner = (read_json(last.parent / "request.json") or {}).get("owner") or "somebody"
    text = f"run {last.parent.name} of {owner} ended while nobody watched it: {how}{f' ({why})' if why else ''}"
    return [Notice("", "", text)]


def _last(layout: Layout) -> Path | None:
    """The newest result."""
    ended = list(layout.runs.glob("*/result.json"))
    return max(ended, key=lambda path: path.stat().st_mtime, default=None)


def told(layout: Layout, command: str, request: t.Mapping[str, t.Any], answer: Answer) -> None:
    """After an answer was written: whoever asked knows how a run ended. A check notes nothing."""
    result = None
    if command == "watch" and answer.get("done"):
        result = layout.run(request["run"]) / "result.json"
    elif command == "compare" and not request.get("check"):
        result = _last(layout)
    if result is not None and result.exists() and not (result.parent / SEEN).exists():
        write_atomic(result.parent / SEEN, b"")


def _problem(message: str, remedy: str) -> t.Any:
    from ansible_collections.hearth.homelab.plugins.module_utils.actions import Problem

    return Problem("", "", message, remedy)


def _stored(layout: Layout) -> list[str]:
    from ansible_collections.hearth.homelab.plugins.module_utils.settle import stored_secrets

    return stored_secrets(layout)


def _diffs(
    layout: Layout, manifest: m.Manifest, previous: m.Manifest | None, plan: Plan, redactor: Redactor
) -> list[dict[str, t.Any]]:
    """What stale files contain now; the controller knows what they will contain."""
    items, old = manifest.by_id(), previous.by_id() if previous else {}
    result: list[dict[str, t.Any]] = []
    for action in plan.actions:
        if action.kind != "file" or action.operation == "attributes":
            continue
        entry: dict[str, t.Any] = {"path": action.name, "operation": action.operation, "before": None}
        result.append(entry)
        path = layout.at(action.name)
        holes = any(isinstance(i, m.File) and i.holes for i in (items.get(action.id), old.get(action.id)))
        try:
            status = path.lstat()
            if holes:
                entry["hidden"] = "content not shown: contains secrets"
            elif not status.st_mode & 0o004:
                entry["hidden"] = "content not shown: not readable by everybody"
            elif status.st_size > DIFF_LIMIT or not path.is_file():
                entry["hidden"] = "content not shown: too large"
            else:
                entry["before"] = redactor.text(path.read_text("utf-8"))
        except FileNotFoundError:
            entry["before"] = ""
        except (OSError, UnicodeDecodeError):
            entry["hidden"] = "content not shown: not text"
    return result


def apply(layout: Layout, request: t.Mapping[str, t.Any]) -> Answer:
    """Take everything in, then start the unit that applies it. Nothing of the host itself is changed here."""
    from ansible_collections.hearth.homelab.plugins.module_utils.apply import Request

    run = request["run"]
    current = generations.current(layout)
    wanted = Request.from_dict(
        {
            **{key: run[key] for key in ("owner", "commit") if key in run},
            **request,
            "run": run["id"],
            "scope": _scope(request, current.manifest if current else None),
        }
    )
    running = lock.holder(layout)
    if running is not None:
        raise RefusedError(lock.describe(running))
    layout.prepare()
    directory = layout.run(wanted.run)
    if directory.exists():
        raise RefusedError(f"run {wanted.run} exists already")
    for digest, encoded in (request.get("blobs") or {}).items():
        content = base64.b64decode(encoded, validate=True)
        if m.digest(content) != digest:
            raise RefusedError(f"the content sent as {digest} has another digest: it was damaged on the way")
        if not (layout.blobs / digest).exists():
            write_atomic(layout.blobs / digest, content)
    transit = layout.transit(wanted.run)
    transit.mkdir(mode=0o700, parents=True)
    for name in request.get("secrets") or {}:
        layout.secret(name)  # refuses a name that would leave the store
    write_json(transit / "secrets.json", dict(request.get("secrets") or {}))
    directory.mkdir(mode=0o700)
    write_json(directory / "request.json", wanted.to_dict())
    agent = Path(sys.argv[0]).resolve()
    done = SystemRunner().run(
        [
            "systemd-run",
            "--quiet",
            "--collect",
            f"--unit=hearth-apply-{wanted.run}",
            f"--description=Hearth run {wanted.run}",
            "--property=OnFailure=hearth-settle.service",
            "--property=SyslogIdentifier=hearth-apply",
            "--property=TimeoutStopSec=30",
            "--property=OOMPolicy=continue",
            "--setenv=HOME=/root",
            sys.executable,
            "-I",
            str(agent),
            "run",
            wanted.run,
        ],
        check=False,
    )
    if done.returncode != 0:
        raise RefusedError(f"the run cannot be started: {explain(done)}")
    return {"run": wanted.run}


def watch(layout: Layout, request: t.Mapping[str, t.Any]) -> Answer:
    """News of a run: waits until there is something, the run is over, or the time is."""
    run, offset = request["run"], int(request.get("offset", 0))
    directory = layout.run(run)
    if not (directory / "request.json").exists():
        raise RefusedError(f"there is no run {run} on this host")
    end = time.monotonic() + float(request.get("timeout", POLL))
    asked = bool(request.get("awaiting"))
    while True:
        events, offset = _events(directory / "events.jsonl", offset)
        result = read_json(directory / "result.json")
        awaiting = result is None and (directory / "awaiting").exists() and not (directory / "confirmed").exists()
        if events or result is not None or (awaiting and not asked) or time.monotonic() > end:
            break
        time.sleep(0.1)
    if result is None and not events and not _alive(run):
        result = read_json(directory / "result.json") or {
            "run": run,
            "ok": False,
            "changed": False,
            "problems": [
                _problem(f"run {run} ended without a result", "converge again: that settles it first").to_dict()
            ],
        }
    return {
        "events": events,
        "offset": offset,
        "done": result is not None,
        "result": result,
        "awaiting_confirmation": awaiting,
    }


def _events(path: Path, offset: int) -> tuple[list[t.Any], int]:
    """Complete lines from ``offset`` (bytes) on, and where the next one begins."""
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            content = stream.read()
    except FileNotFoundError:
        return [], offset
    complete = content[: content.rfind(b"\n") + 1]
    return [json.loads(line) for line in complete.splitlines()], offset + len(complete)


def _alive(run: str) -> bool:
    """Whether something applies or settles a run, or will: a unit that OnFailure= or the boot has queued is inactive yet."""
    names = [f"hearth-apply-{run}.service", "hearth-settle.service", "hearth-settle-late.service"]
    argv = ["systemctl", "show", "--property=ActiveState", "--property=Job", "--", *names]
    done = SystemRunner().run(argv, check=False)
    busy = {f"ActiveState={state}" for state in ("active", "activating", "deactivating", "reloading")}
    return any(line in busy or (line.startswith("Job=") and line != "Job=") for line in done.stdout.split())


def confirm(layout: Layout, request: t.Mapping[str, t.Any]) -> Answer:
    """The controller reached this host after the guarded change."""
    directory = layout.run(request["run"])
    if not directory.is_dir():
        raise RefusedError(f"there is no run {request['run']} on this host")
    write_atomic(directory / "confirmed", b"")
    return {"run": request["run"]}


def status(layout: Layout, _request: t.Mapping[str, t.Any]) -> Answer:
    """How every service of the current generation is."""
    from ansible_collections.hearth.homelab.plugins.module_utils import health

    generation = generations.current(layout)
    if generation is None:
        return {"generation": None, "services": []}
    runner = SystemRunner()

    def call(argv: t.Sequence[str], timeout: float | None = None) -> tuple[int, str, str]:
        done = runner.run(argv, timeout=timeout or 30, check=False)
        return done.returncode, done.stdout, done.stderr

    manifest = generation.manifest
    units: dict[str, list[str]] = {}
    for item in manifest.items:
        if isinstance(item, m.Unit) and item.running:
            units.setdefault(item.service, []).append(item.name)
    states = health.show_units(call, sorted({name for names in units.values() for name in names}))
    checks = health.run_checks({name: state.checks for name, state in manifest.services.items()})
    redactor = Redactor(_stored(layout))
    result = []
    for name, state in sorted(manifest.services.items(), key=lambda pair: (m.TIERS.index(pair[1].tier), pair[0])):
        own = [states[unit] for unit in units.get(name, ())]
        down = [f"{unit.name} is {unit.active} ({unit.sub})" for unit in own if unit.active != "active"]
        problems = [redactor.text(text) for text in [*down, *checks[name]]]
        result.append(
            {
                "service": name,
                "tier": state.tier,
                "summary": state.summary,
                "url": state.url,
                "stand_in": state.stand_in,
                "state": "running" if own and not down else "down" if down else "configured",
                "units": {unit.name: unit.active for unit in own},
                "restarts": sum(unit.restarts for unit in own),
                "healthy": not problems and name not in generation.partial,
                "problems": problems,
                "held_back": generation.partial.get(name, ""),
            }
        )
    for name in sorted(set(generation.partial) - set(manifest.services)):
        result.append(
            {
                "service": name,
                "tier": "",
                "summary": "",
                "url": "",
                "stand_in": False,
                "state": "held back",
                "units": {},
                "restarts": 0,
                "healthy": False,
                "problems": [],
                "held_back": generation.partial[name],
            }
        )
    return {"generation": generation.number, "created": generation.created, "services": result}


def storage_status(layout: Layout, request: t.Mapping[str, t.Any]) -> Answer:
    """How storage, databases and stored secrets are. Read-only."""
    from ansible_collections.hearth.homelab.plugins.module_utils import storage_status as asked

    return asked.look(layout, SystemRunner(), request)


def recover(layout: Layout, request: t.Mapping[str, t.Any]) -> Answer:
    """Settle an interrupted run now."""
    from ansible_collections.hearth.homelab.plugins.module_utils import settle

    try:
        with lock.Lock(layout, "settle", "settle", wait=float(request.get("timeout", 30))):
            return {"results": [result.to_dict() for result in settle.settle(layout, SystemRunner(), early=False)]}
    except lock.LockedError as locked:
        raise RefusedError(str(locked)) from locked


# --- called by the host's own units -----------------------------------------------------------------------------


def _terminated(*_: object) -> None:
    """SIGTERM counts as a failure: OnFailure= settles what a stopped run leaves (systemd takes the signal as clean)."""
    raise SystemExit(1)


def run_unit(layout: Layout, run: str) -> int:
    """Inside the transient unit: apply."""
    from ansible_collections.hearth.homelab.plugins.module_utils import engine, settle
    from ansible_collections.hearth.homelab.plugins.module_utils.actions import Problem
    from ansible_collections.hearth.homelab.plugins.module_utils.apply import Apply, Request, Result

    signal.signal(signal.SIGTERM, _terminated)
    os.umask(0o022)
    directory, runner = layout.run(run), SystemRunner()
    request = Request.from_dict(read_json(directory / "request.json"))
    try:
        with lock.Lock(layout, run, request.owner):
            engine.select(layout)
            settle.settle(layout, runner, early=False, own=run)
            sent = settle.transit_secrets(layout, run)
            redactor = Redactor([*settle.stored_secrets(layout), *sent.values()])
            settle.begin(layout, run)
            context = settle.context_of(layout, runner, directory, redactor)
            work = Apply(context, request, sent, (directory / "confirmed").exists)
            result = work.run()
            applied = result.generation is not None
            settle.finish(layout, context, result, "committed" if applied else "undone")
    except lock.LockedError as locked:
        problem = Problem("", "", str(locked), "wait for it to end, then run again")
        write_json(directory / "result.json", Result(run, problems=[problem.to_dict()]).to_dict())
        shutil.rmtree(layout.transit(run), ignore_errors=True)
    return 0


def settle_unit(layout: Layout, guarded: str = "") -> int:
    """hearth-settle.service, and the timer that guards a change of firewall or SSH (``guarded``: its run)."""
    from ansible_collections.hearth.homelab.plugins.module_utils import settle
    from ansible_collections.hearth.homelab.plugins.module_utils.journal import read, replay

    runner = SystemRunner()
    os.umask(0o022)
    if guarded:
        state = replay(read(layout.run(guarded) / "journal.jsonl"))
        if state.ended or state.confirmed:
            return 0
        # The run itself undoes an unconfirmed change. That it has not, this long after, means that it hangs.
        runner.run(["systemctl", "kill", "--signal=SIGKILL", "--", f"hearth-apply-{guarded}.service"], check=False)
    try:
        with lock.Lock(layout, "settle", "hearth-settle.service", wait=60.0 if guarded else 20.0):
            results = settle.settle(layout, runner)
    except lock.LockedError as locked:
        print(f"nothing to settle: {locked}")
        results = []
    # systemd does not always collect the unit of a killed run by itself, and one that stays failed is one that people
    # look at. Here, because that unit's failure calls for this one: whether the run was settled here, by the next run, or
    # was killed when it was over.
    runner.run(["systemctl", "reset-failed", "--", "hearth-apply-*.service"], check=False)
    for result in results:
        for problem in result.problems:
            print(problem["message"])
    return 0


def gate(layout: Layout, service: str) -> int:
    """hearth-gate@SERVICE.service: whether the service may start on the storage that is there."""
    from ansible_collections.hearth.homelab.plugins.module_utils import storage, zfs_storage
    from ansible_collections.hearth.homelab.plugins.module_utils.apply import Request
    from ansible_collections.hearth.homelab.plugins.module_utils.journal import read, replay

    generation = generations.current(layout)
    previous = generation.manifest if generation else None
    manifests: list[m.Manifest] = []
    for directory in generations.unfinished_runs(layout):
        data = read_json(directory / "request.json")
        if data is not None:
            request = Request.from_dict(data)
            merged = planner.merge(
                request.manifest, previous, None if request.scope is None else frozenset(request.scope)
            )
            manifests.append(generations.effective(merged, previous, replay(read(directory / "journal.jsonl")).held))
    manifests += [previous] if previous else []
    for manifest in manifests:
        if service in manifest.services:
            root = str(layout.root)
            ledger = storage.read_ledger(root=root)
            items = [item for item in manifest.items if isinstance(item, m.Storage) and item.service == service]
            facts = zfs_storage.read_all(items, SystemRunner(), ledger, root=root)
            problems = storage.gate(manifest.host, service, facts.values())
            for problem in problems:
                print(f"{problem.message}. {problem.remedy}", file=sys.stderr)
            return 1 if problems else 0
    print(f"{service} is in no generation of this host: it is not started", file=sys.stderr)
    return 1


def validate_unit() -> int:
    """Inside the mount namespace that validate.run made."""
    from ansible_collections.hearth.homelab.plugins.module_utils import validate

    print(json.dumps(validate.inside(json.loads(sys.stdin.buffer.read()))))
    return 0


COMMANDS: dict[str, t.Callable[[Layout, t.Mapping[str, t.Any]], Answer]] = {
    "compare": compare,
    "apply": apply,
    "watch": watch,
    "confirm": confirm,
    "status": status,
    "storage": storage_status,
    "recover": recover,
}


def main(argv: t.Sequence[str], layout: Layout | None = None) -> int:
    """The entry point; the exit status is 0 if the command did its work, whatever the answer."""
    layout = layout or Layout()
    command, arguments = (argv[0], list(argv[1:])) if argv else ("", [])
    if command == "run" and len(arguments) == 1:
        return run_unit(layout, arguments[0])
    if command == "settle" and len(arguments) <= 1:
        return settle_unit(layout, *arguments)
    if command == "gate" and len(arguments) == 1:
        return gate(layout, arguments[0])
    if command == "validate" and not arguments:
        return validate_unit()
    handler = COMMANDS.get(command)
    if handler is None or arguments:
        print(f"usage: main.py {'|'.join([*COMMANDS, 'run ID', 'settle [ID]', 'gate SERVICE'])}", file=sys.stderr)
        return 2
    os.umask(0o077)
    sent: t.Mapping[str, t.Any] = {}
    try:
        sent = protocol.decode_request(sys.stdin.buffer.read())
        answer = handler(layout, sent)
        code = 0
    except Exception as error:
        known = [str(value) for value in (sent.get("secrets") or {}).values()] if command == "apply" else []
        message = (
            str(error) if isinstance(error, (RefusedError, OSError, ValueError)) else f"{type(error).__name__}: {error}"
        )
        answer, code = {"error": Redactor([*known, *_stored(layout)]).text(message), "command": command}, 1
    # A connection that is gone ends this here: then nobody was told.
    print(protocol.encode_response(answer), flush=True)
    if code == 0:
        told(layout, command, sent, answer)
    return code
