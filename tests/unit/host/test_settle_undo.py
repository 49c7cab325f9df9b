# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Undoing: paths come back exactly, twice is as good as once, units return to what they were."""

from __future__ import annotations

import json
import os
import typing as t
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.hearth.homelab.plugins.module_utils import generations, lock, settle, undo
from ansible_collections.hearth.homelab.plugins.module_utils.apply import Request
from ansible_collections.hearth.homelab.plugins.module_utils.generations import unfinished_runs
from ansible_collections.hearth.homelab.plugins.module_utils.journal import Journal, Step, read, replay
from ansible_collections.hearth.homelab.plugins.module_utils.layout import Layout, write_atomic, write_json
from ansible_collections.hearth.homelab.plugins.module_utils.manifest import File, Manifest, ServiceState, Unit
from ansible_collections.hearth.homelab.plugins.module_utils.redact import Redactor
from ansible_collections.hearth.homelab.plugins.module_utils.runner import FakeRunner


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout(tmp_path)
    found.prepare()
    return found


@pytest.fixture
def runner() -> FakeRunner:
    return FakeRunner({"systemctl": "", "nft": "", "systemd-run": "", "dpkg": ""})


def context_of(layout: Layout, runner: FakeRunner, run: str = "r1", early: bool = False) -> undo.Context:
    (layout.runs / run).mkdir(exist_ok=True)
    return undo.Context(layout, runner, Journal(layout.run(run)), Redactor(), lambda _: None, early)


def snapshot(root: Path) -> dict[str, t.Any]:
    found: dict[str, t.Any] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_dir():
            found[name] = oct(path.stat().st_mode)
        else:
            found[name] = (path.read_bytes(), oct(path.stat().st_mode))
    return found


def change(context: undo.Context, path: str, action: t.Callable[[Path], None], service: str = "one") -> None:
    context.journal.begin(f"file:{path}", "modify", service, undo.path_undo(context, path))
    action(context.layout.at(path))


def test_paths_come_back_exactly(layout: Layout, runner: FakeRunner) -> None:
    etc = layout.at("/etc")
    etc.mkdir()
    (etc / "file").write_text("old")
    (etc / "file").chmod(0o640)
    (etc / "link").symlink_to("target")
    (etc / "gone").write_text("gone")
    (etc / "empty").mkdir(mode=0o750)
    (etc / "mode").mkdir(mode=0o755)
    before = snapshot(etc)
    context = context_of(layout, runner)
    change(context, "/etc/file", lambda path: write_atomic(path, b"new", 0o600, os.geteuid(), os.getegid()))
    change(context, "/etc/link", lambda path: undo.place_link(path, "elsewhere"))
    change(context, "/etc/gone", lambda path: path.unlink())
    change(context, "/etc/empty", lambda path: path.rmdir())
    change(context, "/etc/mode", lambda path: path.chmod(0o700))
    change(context, "/etc/new.d", lambda path: path.mkdir())
    change(context, "/etc/new.d/file", lambda path: path.write_text("x"))
    change(context, "/etc/begun", lambda path: undo.temporary(path).write_text("half"))  # killed before the rename
    assert snapshot(etc) != before
    undo.undo_steps(context, context.journal.state.to_undo())
    assert snapshot(etc) == before
    assert context.problems == []
    assert context.journal.state.to_undo() == []


def test_undoing_twice_is_undoing_once(layout: Layout, runner: FakeRunner) -> None:
    layout.at("/etc").mkdir()
    layout.at("/etc/file").write_text("old")
    context = context_of(layout, runner)
    change(context, "/etc/file", lambda path: path.write_text("new"))
    change(context, "/etc/other", lambda path: path.write_text("new"))
    steps = context.journal.state.to_undo()
    undo.undo_steps(context, steps)
    undo.undo_steps(context, steps)  # the journal's record of the first time was lost
    assert layout.at("/etc/file").read_text() == "old"
    assert not layout.at("/etc/other").exists()


def test_a_directory_with_content_stays(layout: Layout, runner: FakeRunner) -> None:
    context = context_of(layout, runner)
    layout.at("/etc").mkdir()
    change(context, "/etc/new", lambda path: path.mkdir())
    layout.at("/etc/new/by-somebody").write_text("x")
    undo.undo_steps(context, context.journal.state.to_undo())
    assert layout.at("/etc/new/by-somebody").exists()


def test_one_failure_does_not_keep_the_others(layout: Layout) -> None:
    runner = FakeRunner({"systemctl": ""})  # no nft
    context = context_of(layout, runner)
    layout.at("/etc").mkdir()
    change(context, "/etc/file", lambda path: path.write_text("new"))
    context.journal.begin(
        "firewall:inet hearth", "load", "one", {"do": "firewall", "table": "inet hearth", "before": None}
    )
    undo.undo_steps(context, context.journal.state.to_undo())
    assert not layout.at("/etc/file").exists()
    assert len(context.problems) == 1
    assert "nft" in context.problems[0]


def test_the_firewall_goes_back_to_what_was_loaded_and_never_by_a_flush(layout: Layout, runner: FakeRunner) -> None:
    context = context_of(layout, runner)
    kept = context.journal.keep(b"table inet hearth { chain x { } }\n")
    for before in (kept, None):
        data = {"do": "firewall", "table": "inet hearth", "before": before}
        context.journal.begin("firewall:inet hearth", "load", "one", data)
    undo.undo_steps(context, context.journal.state.to_undo())
    texts = [text.decode() for text in runner.inputs if text]
    assert texts[0] == "table inet hearth {}\ndelete table inet hearth\n"
    assert texts[1] == texts[0] + "table inet hearth { chain x { } }\n"
    assert not any("flush" in text for text in texts)


def test_policy_and_masks_are_removed_and_somebody_elses_policy_comes_back(layout: Layout, runner: FakeRunner) -> None:
    from ansible_collections.hearth.homelab.plugins.module_utils import packages

    policy = layout.at("/usr/sbin/policy-rc.d")
    policy.parent.mkdir(parents=True)
    policy.write_text("#!/bin/sh\nexit 104\n")
    policy.chmod(0o755)
    context = context_of(layout, runner)
    packages.deny_starts(context, ["caddy.service"])
    assert undo.POLICY_MARK in policy.read_text()
    assert os.readlink(layout.at("/run/systemd/system/caddy.service")) == "/dev/null"
    packages.deny_starts(context, [])  # a second attempt after a crash finds our own
    undo.clean(context)
    assert policy.read_text() == "#!/bin/sh\nexit 104\n"
    assert not os.path.lexists(layout.at("/run/systemd/system/caddy.service"))


MANIFEST = Manifest(
    "h",
    "debian13",
    "amd64",
    {name: ServiceState(name, "services") for name in ("caddy", "app")},
    (
        Unit("caddy.service", "caddy", reload_on=("file:/etc/caddy/sites/",)),
        Unit("app.service", "app", restart_on=("file:/etc/app",)),
    ),
)
NEW = Manifest("h", "debian13", "amd64", {"caddy": ServiceState("caddy", "services")}, MANIFEST.items[:1])
ON = {"active": True, "enabled": True}
OFF = {"active": False, "enabled": False}


def steps(*entries: tuple[str, str, str]) -> list[Step]:
    return [
        Step(number, name, operation, service, {"do": "unit" if name.startswith("unit:") else "path"})
        for number, (name, operation, service) in enumerate(entries, 1)
    ]


@pytest.mark.parametrize(
    ("done", "services", "baseline", "previous", "rebooted", "leave", "expected"),
    [
        pytest.param(
            [("file:/etc/app", "modify", "app"), ("unit:app.service", "restart", "app")], {"app"},
            {"app.service": ON, "caddy.service": ON}, MANIFEST, False, (), undo.UnitWork(restart=("app.service",)),
            id="an old service is restarted with its old files",
        ),
        pytest.param(
            [
                ("file:/etc/caddy/sites/app", "create", "app"), ("unit:caddy.service", "reload", "caddy"),
                ("unit:app.service", "start", "app"),
            ],
            {"app"}, {"app.service": OFF, "caddy.service": ON}, NEW, False, (),
            undo.UnitWork(stop=("app.service",), reload=("caddy.service",), disable=("app.service",)),
            id="a new service is stopped and disabled, who read its fragment reads again",
        ),
        pytest.param(
            [("file:/etc/caddy/sites/app", "create", "app"), ("unit:app.service", "start", "app")],
            {"app"}, {"app.service": OFF, "caddy.service": ON}, NEW, False, (),
            undo.UnitWork(stop=("app.service",), disable=("app.service",)),
            id="who has not read it yet is left alone",
        ),
        pytest.param(
            [("unit:app.service", "stop", "app")], None, {"app.service": ON}, MANIFEST, False, (),
            undo.UnitWork(start=("app.service",)), id="what was stopped starts",
        ),
        pytest.param(
            [("unit:app.service", "restart", "app")], None, {"app.service": ON}, MANIFEST, True, (),
            undo.UnitWork(start=("app.service",)), id="after a reboot nothing is restarted again",
        ),
        pytest.param(
            [("unit:app.service", "restart", "app")], {"app"}, {"app.service": ON}, MANIFEST, False, ("app",),
            undo.UnitWork(stop=("app.service",)), id="never on data of a newer version",
        ),
        pytest.param(
            [("unit:ssh.service", "reload", "sshd")], None, {"ssh.service": ON}, MANIFEST, False, (),
            undo.UnitWork(reload=("ssh.service",)), id="a reload is undone by a reload",
        ),
    ],
)  # fmt: skip
def test_units_go_back(
    done: list[tuple[str, str, str]], services: set[str] | None, baseline: dict[str, dict[str, t.Any]], previous: Manifest,
    rebooted: bool, leave: tuple[str, ...], expected: undo.UnitWork,
) -> None:  # fmt: skip
    all_steps = steps(*done)
    touched = {name.partition(":")[2] for name, _, _ in done if name.startswith("unit:")}
    undone = [step for step in reversed(all_steps) if services is None or step.service in services]
    assert undo.unit_work(undone, services, baseline, touched, MANIFEST, previous, rebooted, leave) == expected


@pytest.mark.parametrize(
    ("absorbed", "expected"),
    [
        # Taken back after a boot that brought it up with its new files: whoever read them then reads again.
        ((), undo.UnitWork(restart=("app.service",), reload=("caddy.service",))),
        # Undone before the services of this boot started.
        ((1, 2), undo.UnitWork(start=("app.service",))),
    ],
)
def test_after_a_reboot_units_follow_what_they_read_at_boot(absorbed: tuple[int, ...], expected: undo.UnitWork) -> None:
    done = steps(
        ("file:/etc/app", "modify", "app"), ("file:/etc/caddy/sites/app", "modify", "app"), ("unit:app.service", "restart", "app")
    )  # fmt: skip
    baseline = {"app.service": ON, "caddy.service": ON}
    assert undo.unit_work(done, {"app"}, baseline, {"app.service"}, MANIFEST, MANIFEST, True, (), absorbed) == expected


@pytest.mark.parametrize("done", [False, True])
def test_what_an_interrupted_initialisation_left_is_set_aside(layout: Layout, runner: FakeRunner, done: bool) -> None:
    context = context_of(layout, runner)
    for path in ("/var/lib/pg/own", "/var/lib/pg/main", "/etc/pg/main"):
        layout.at(path).mkdir(parents=True)
    (layout.at("/var/lib/pg/main") / "base").write_text("half")
    data = {"do": "initialize", "storage": "/var/lib/pg", "before": ["own"], "makes": ["/etc/pg/main", "/etc/pg/none"]}
    step = context.journal.begin("initialize:pg", "run", "pg", data)
    if done:
        context.journal.done(step)
    for _ in range(2):
        undo.undo_steps(context, list(context.journal.state.steps))
    assert layout.at("/var/lib/pg/own").is_dir()
    assert layout.at("/var/lib/pg/main").exists() == layout.at("/etc/pg/main").exists() == done
    if not done:
        assert (layout.at("/var/lib/pg/.hearth-interrupted-r1/main") / "base").read_text() == "half"
        assert (context.journal.directory / "interrupted" / "0-main").is_dir()
    assert context.problems == []


# --- settling ---------------------------------------------------------------------------------------------------


def interrupted(layout: Layout, runner: FakeRunner, *phases: str) -> Path:
    """A run that was killed after it replaced a file."""
    layout.at("/etc").mkdir(exist_ok=True)
    layout.at("/etc/file").write_text("old")
    context = context_of(layout, runner)
    write_json(layout.run("r1") / "request.json", Request("r1", NEW).to_dict())
    settle.begin(layout, "r1")
    context.journal.phase(phases[0])
    change(context, "/etc/file", lambda path: path.write_text("new"), "app")
    for phase in phases[1:]:
        context.journal.phase(phase)
    context.journal.close()
    return layout.run("r1")


@pytest.mark.parametrize("phases", [("prepare",), ("prepare", "files"), ("prepare", "files", "guarded")])
def test_before_the_services_everything_is_undone(layout: Layout, runner: FakeRunner, phases: tuple[str, ...]) -> None:
    directory = interrupted(layout, runner, *phases)
    results = settle.settle(layout, runner, early=False)
    assert layout.at("/etc/file").read_text() == "old"
    assert [(result.ok, result.undone) for result in results] == [(False, True)]
    assert unfinished_runs(layout) == []
    assert (directory / "result.json").exists()
    assert not os.path.lexists(layout.state / "active")
    assert settle.settle(layout, runner, early=False) == []


def test_early_in_the_boot_files_go_back_and_the_rest_is_queued(layout: Layout, runner: FakeRunner) -> None:
    directory = interrupted(layout, runner, "prepare", "files")
    context = context_of(layout, runner)
    context.journal.begin(
        "firewall:inet hearth", "load", "app", {"do": "firewall", "table": "inet hearth", "before": None}
    )
    context.journal.close()
    settle.settle(layout, runner, early=True)
    assert layout.at("/etc/file").read_text() == "old"
    assert not any(call[0] == "nft" for call in runner.calls)
    assert any(call[0] == "systemd-run" and "--no-block" in call for call in runner.calls)
    assert not replay(read(directory / "journal.jsonl")).ended
    settle.settle(layout, runner, early=False)
    assert any(call[0] == "nft" for call in runner.calls)
    assert replay(read(directory / "journal.jsonl")).phase == "undone"


def test_early_in_the_boot_systemd_reads_and_queues_what_went_back(layout: Layout) -> None:
    """It had read the new unit files, and queued what was enabled then."""
    runner = FakeRunner(
        {"systemctl": "dnsmasq.service enabled enabled\nssh.service enabled enabled\n", "systemd-run": ""}
    )
    context = context_of(layout, runner, early=True)
    journal = context.journal
    journal.phase("prepare")
    states = {"gone.service": True, "fresh.service": False, "started.service": True}
    journal.baseline({name: {"active": active, "enabled": False, "loaded": True} for name, active in states.items()})
    journal.begin("packages", "install", "", {"do": "package_units", "enabled": ["ssh.service"]})
    for unit, before in (("gone.service", True), ("fresh.service", False), ("started.service", False)):
        journal.begin(f"unit:{unit}", "enable", "one", {"do": "enabled", "unit": unit, "before": before})
    undo.take_back(context, None, Manifest("h", "debian13", "amd64", {}, (), ()), None)
    calls = [" ".join(argv) for argv in runner.calls if argv[0] == "systemctl"]
    queued = [call for call in calls if "--no-block" in call or call.endswith("daemon-reload")]
    # One that ran without being enabled is somebody's dependency: stopping it would stop who requires it, too.
    assert sorted(queued[:2]) == [
        "systemctl stop --no-block -- dnsmasq.service",
        "systemctl stop --no-block -- fresh.service",
    ]
    assert queued[2:] == ["systemctl daemon-reload", "systemctl start --no-block -- gone.service"]
    assert calls.index(queued[0]) < calls.index("systemctl disable --no-reload --quiet -- fresh.service")


def test_early_in_the_boot_what_ran_before_reads_again_what_went_back(layout: Layout) -> None:
    """systemd-modules-load.service is not after hearth-settle.service: that would keep zfs-mount.service out of the boot."""
    shown = "".join(
        f"Id={name}\nLoadState=loaded\nActiveState={state}\n\n"
        for name, state in (
            ("systemd-journald.service", "active"),
            ("systemd-modules-load.service", "active"),
            ("systemd-sysctl.service", "inactive"),
        )
    )
    runner = FakeRunner({"systemctl": "", "systemctl show": shown, "systemd-run": ""})
    files = ("/etc/journald.conf", "/etc/modules", "/etc/sysctl.conf")
    triggers: tuple[dict[str, t.Any], ...] = (
        {"reload_on": (files[0],)},
        {"restart_on": (files[1],)},
        {"restart_on": (files[2],)},
    )
    units = tuple(
        Unit(name, "base", **{key: (f"file:{value[0]}",) for key, value in trigger.items()})
        for name, trigger in zip(
            ("systemd-journald.service", "systemd-modules-load.service", "systemd-sysctl.service"),
            triggers,
            strict=True,
        )
    )
    context = context_of(layout, runner, early=True)
    context.journal.phase("files")
    for path in files:
        context.journal.begin(f"file:{path}", "create", "base", {"do": "path", "path": path, "before": None})
    undo.take_back(context, None, Manifest("h", "debian13", "amd64", {}, units, ()), None)
    assert [" ".join(argv) for argv in runner.calls if "--no-block" in argv] == [
        "systemctl restart --no-block -- systemd-modules-load.service",
        "systemctl reload-or-restart --no-block -- systemd-journald.service",
    ]


def test_early_in_the_boot_a_run_that_will_be_finished_is_left_alone(layout: Layout, runner: FakeRunner) -> None:
    interrupted(layout, runner, "prepare", "files", "guarded", "services")
    settle.settle(layout, runner, early=True)
    assert layout.at("/etc/file").read_text() == "new"
    assert len(unfinished_runs(layout)) == 1


def test_a_run_that_never_began_gets_a_result(layout: Layout, runner: FakeRunner) -> None:
    (layout.runs / "r2").mkdir()
    settle.begin(layout, "r2")
    settle.settle(layout, runner, early=False)
    assert (layout.runs / "r2" / "result.json").exists()
    assert not os.path.lexists(layout.state / "active")


def test_a_run_that_was_killed_when_it_was_over_leaves_nothing(layout: Layout, runner: FakeRunner) -> None:
    """Found by the scenario `kills`: its secrets in transit stayed until another run came, ten minutes later at least."""
    directory = interrupted(layout, runner, "prepare", "files", "guarded", "services", "committed")
    (directory / "result.json").write_text('{"run": "r1", "ok": true}')
    (layout.transit("r1")).mkdir(parents=True)
    (layout.transit("r1") / "secrets.json").write_text("{}")
    settle.begin(layout, "r1")
    settle.settle(layout, runner, early=False)
    assert not layout.transit("r1").exists()
    assert not (directory / "before").exists()
    assert not os.path.lexists(layout.state / "active")
    assert json.loads((directory / "result.json").read_text())["ok"]  # it is not called interrupted


def test_the_lock_names_its_owner(layout: Layout) -> None:
    assert lock.holder(layout) is None
    with lock.Lock(layout, "r1", "rydev@laptop"):
        holder = lock.holder(layout)
        assert holder is not None
        assert "rydev@laptop is applying run r1" in lock.describe(holder)
        with pytest.raises(lock.LockedError, match="rydev@laptop"):
            lock.Lock(layout, "r2", "somebody", wait=0.0)
    assert lock.holder(layout) is None


def test_what_commands_left_that_were_interrupted_is_removed_after_a_while(layout: Layout) -> None:
    for name in ("never-begun", "just-sent", "ended", "own"):
        (layout.runs / name).mkdir()
        (layout.runtime / name).mkdir()
        write_json(layout.runtime / name / "secrets.json", {"app/key": "secret"})
    write_json(layout.runs / "ended" / "result.json", {})
    (layout.blobs / ".digest.hearth-tmp").write_text("half")
    for path in (*layout.runs.iterdir(), *layout.runtime.iterdir(), *layout.blobs.iterdir()):
        if path.name != "just-sent":
            os.utime(path, (1, 1))
    generations.sweep(layout, "own")
    assert sorted(path.name for path in layout.runs.iterdir()) == ["ended", "just-sent", "own"]
    assert sorted(path.name for path in layout.runtime.iterdir()) == ["just-sent", "own"]
    assert list(layout.blobs.iterdir()) == []


def test_settling_another_run_keeps_what_was_sent_for_the_next(layout: Layout, runner: FakeRunner) -> None:
    interrupted(layout, runner, "prepare", "files")
    digest = "0" * 64
    item = File("/etc/new", "app", digest=digest, size=3)
    write_atomic(layout.blobs / digest, b"new")
    write_atomic(layout.blobs / ("1" * 64), b"nobody's")
    (layout.runs / "r2").mkdir()
    write_json(layout.runs / "r2" / "request.json", Request("r2", replace(NEW, items=(item,))).to_dict())
    settle.settle(layout, runner, early=False, own="r2")
    assert [path.name for path in layout.blobs.iterdir()] == [digest]
