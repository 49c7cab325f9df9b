# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The planner, kind by kind: made, mended, converged, removed; and every problem."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.module_utils import observe as o
from ansible_collections.hearth.homelab.plugins.module_utils import planner, storage
from ansible_collections.hearth.homelab.plugins.module_utils.actions import OPERATIONS, Action, Plan

A, B, C = (letter * 64 for letter in "abc")  # digests
SONARR = m.ServiceState("sonarr", "services", summary="TV series")
FILE = m.File("/etc/sonarr.conf", "sonarr", digest=A, size=1)
ROOT = {"owner": "root", "group": "root"}
THERE = o.FileState("file", A, "0644", **ROOT)
DIRECTORY = o.FileState("directory", "", "0755", **ROOT)
RUNNING = o.UnitState(
    "sonarr.service", frozenset({"sonarr.service"}), "loaded", "active", "running", "enabled", can_reload=True
)
STOPPED = replace(RUNNING, active="inactive", sub="dead")
MARK = storage.Mark("forge", "sonarr", "1")
FACTS = storage.StorageFacts(
    "/var/lib/sonarr", exists=True, is_directory=True, mark=MARK, owner="sonarr", group="media", mode="0750"
)
STORAGE = m.Storage("/var/lib/sonarr", "sonarr", owner="sonarr", group="media")
USER = o.UserState("sonarr", 2041, 2041, "sonarr", frozenset({"media"}), "", "/nonexistent", "/usr/sbin/nologin")


def manifest(*items: m.Item, services=(SONARR,), **more) -> m.Manifest:
    return m.Manifest(
        "forge", "debian13", "amd64", {state.name: state for state in services}, m.sort_items(items), **more
    )


def observed(**facts) -> o.Observed:
    state = o.Observed(release="debian13", architecture="amd64", hostname="forge", running_hostname="forge")
    for name, value in facts.items():
        assert hasattr(state, name)
        setattr(state, name, value)
    return state


def plan(state, items=(), previous=None, services=(SONARR,), before=None, **options) -> Plan:
    """``previous`` are the items of the generation before (None: there is none), ``before`` its services."""
    old = None if previous is None else manifest(*previous, services=services if before is None else before)
    result = planner.plan(state, manifest(*items, services=services), old, **options)
    for action in result.actions:
        assert action.operation in OPERATIONS[action.kind]
        assert action.reason
    json.dumps(result.to_dict())
    return result


def done(result: Plan) -> list[str]:
    return [f"{action.operation} {action.id}" for action in result.actions]


def only(result: Plan) -> Action:
    [action] = result.actions
    return action


# -- every kind: what is wanted, what is there, what is done ---------------------------------------------------

GROUP = m.Group("media", "sonarr", gid=3000)
PERSON = m.User(
    "anna", "sonarr", uid=1000, group="anna", groups=("media",), home="/home/anna", shell="/bin/bash", system=False
)
ANNA = o.UserState("anna", 1000, 1000, "anna", frozenset({"media"}), "", "/home/anna", "/bin/bash")
SYSTEM = m.User("sonarr", "sonarr", uid=2041, group="sonarr", groups=("media",))
TABLE = m.Firewall("inet hearth", "sonarr", path="/etc/hearth/nftables/hearth.nft")
ROLE = m.PostgresqlRole("sonarr", "sonarr", secret="sonarr/db")
MONITOR = m.PostgresqlRole("sonarr", "sonarr", member_of=("pg_monitor",))
ADMIN = ("pg_monitor", "pg_monitor with undeclared options", "pg_read_all_data")
DATABASE = m.PostgresqlDatabase("sonarr", "sonarr", owner="sonarr", extensions=("hstore",))
POSTGRESQL = m.ServiceState("postgresql", "infrastructure", units=("postgresql.service",))
UNIT = m.Unit("sonarr.service", "sonarr")
NETWORK = m.Unit(
    "media-network.service", "sonarr", enabled=None, effects=("/etc/containers/networks/hearth-media.json",)
)
ONESHOT = o.UnitState(NETWORK.name, frozenset({NETWORK.name}), "loaded", "active", "exited", "generated")


def server(roles=None, databases=None, error="") -> dict:
    return {"postgresql": {"postgresql": o.PostgresqlState(roles or {}, databases or {}, error)}}


KINDS = [
    # item, facts, what is done
    (m.Hostname("forge", "sonarr"), {}, []),
    (m.Hostname("forge", "sonarr"), {"hostname": "debian"}, ["set hostname:forge"]),
    (m.Hostname("forge", "sonarr"), {"running_hostname": "debian"}, ["set hostname:forge"]),
    (GROUP, {}, ["create group:media"]),
    (GROUP, {"groups": {"media": 3000}}, []),
    (SYSTEM, {}, ["create user:sonarr"]),
    (SYSTEM, {"users": {"sonarr": USER}}, []),
    (SYSTEM, {"users": {"sonarr": replace(USER, groups=frozenset())}}, ["modify user:sonarr"]),
    (SYSTEM, {"users": {"sonarr": replace(USER, home="/var/lib/sonarr", comment="TV")}}, []),  # its package's
    (SYSTEM, {"users": {"sonarr": replace(USER, shell="/bin/false")}}, []),  # as good as the plan's
    (SYSTEM, {"users": {"sonarr": replace(USER, shell="/bin/sh")}}, ["modify user:sonarr"]),
    (SYSTEM, {"users": {"sonarr": replace(USER, groups=frozenset({"media", "video"}))}}, []),  # never taken away
    (PERSON, {"users": {"anna": ANNA}}, []),
    (PERSON, {"users": {"anna": replace(ANNA, shell="/bin/sh")}}, ["modify user:anna"]),
    (PERSON, {"users": {"anna": replace(ANNA, home="/srv/anna")}}, ["modify user:anna"]),
    (PERSON, {"users": {"anna": replace(ANNA, comment="Anna")}}, ["modify user:anna"]),
    (STORAGE, {}, ["create storage:/var/lib/sonarr"]),
    (STORAGE, {"storage": {STORAGE.name: replace(FACTS, mark=None)}}, ["create storage:/var/lib/sonarr"]),
    (STORAGE, {"storage": {STORAGE.name: FACTS}}, []),
    (STORAGE, {"storage": {STORAGE.name: replace(FACTS, mode="0755")}}, ["modify storage:/var/lib/sonarr"]),
    (STORAGE, {"storage": {STORAGE.name: replace(FACTS, owner="2041")}}, ["modify storage:/var/lib/sonarr"]),
    (m.Package("caddy", "sonarr"), {}, ["install package:caddy"]),
    (m.Package("caddy", "sonarr"), {"packages": {"caddy": o.PackageState("installed", "2")}}, []),
    (
        m.Package("caddy", "sonarr"),
        {"packages": {"caddy": o.PackageState("config-files", "2")}},
        ["install package:caddy"],
    ),
    (m.Package("caddy", "sonarr"), {"packages": {"caddy": o.PackageState("unpacked", "2")}}, ["install package:caddy"]),
    (m.Secret("sonarr/key", "sonarr"), {}, ["store secret:sonarr/key"]),
    (m.Secret("sonarr/key", "sonarr"), {"secrets": {"sonarr/key": "1"}}, []),
    (
        m.Secret("sonarr/key", "sonarr"),
        {"secrets": {"sonarr/key": "1"}, "open_secrets": {"sonarr/key": "mode is 0644"}},
        ["attributes secret:sonarr/key"],
    ),
    (m.Directory("/etc/sonarr", "sonarr"), {}, ["create directory:/etc/sonarr"]),
    (m.Directory("/etc/sonarr", "sonarr"), {"files": {"/etc/sonarr": DIRECTORY}}, []),
    (
        m.Directory("/etc/sonarr", "sonarr"),
        {"files": {"/etc/sonarr": replace(DIRECTORY, group="adm")}},
        ["modify directory:/etc/sonarr"],
    ),
    (m.Symlink("/etc/link", "sonarr", target="/a"), {}, ["create symlink:/etc/link"]),
    (m.Symlink("/etc/link", "sonarr", target="/a"), {"files": {"/etc/link": o.FileState("symlink", target="/a")}}, []),
    (
        m.Symlink("/etc/link", "sonarr", target="/a"),
        {"files": {"/etc/link": o.FileState("symlink", target="/b")}},
        ["modify symlink:/etc/link"],
    ),
    (m.Symlink("/etc/link", "sonarr", target="/a"), {"files": {"/etc/link": THERE}}, ["modify symlink:/etc/link"]),
    (FILE, {}, ["create file:/etc/sonarr.conf"]),
    (FILE, {"files": {FILE.name: THERE}}, []),
    (FILE, {"files": {FILE.name: replace(THERE, digest=B)}}, ["modify file:/etc/sonarr.conf"]),
    (FILE, {"files": {FILE.name: replace(THERE, mode="0600")}}, ["attributes file:/etc/sonarr.conf"]),
    (FILE, {"files": {FILE.name: replace(THERE, owner="1000")}}, ["attributes file:/etc/sonarr.conf"]),
    (FILE, {"files": {FILE.name: replace(THERE, digest=B, mode="0600")}}, ["modify file:/etc/sonarr.conf"]),
    (replace(FILE, create_only=True), {}, ["create file:/etc/sonarr.conf"]),
    (replace(FILE, create_only=True), {"files": {FILE.name: replace(THERE, digest="", mode="0600")}}, []),
    (m.Locale("en_GB.UTF-8", "sonarr"), {"locales": frozenset({"C.utf8"})}, ["generate locale:en_GB.UTF-8"]),
    (m.Locale("en_GB.UTF-8", "sonarr"), {"locales": frozenset({"en_GB.utf8"})}, []),
    (m.Locale("C.UTF-8", "sonarr"), {}, []),
    (TABLE, {"firewall": {TABLE.name: o.FirewallState(True, True)}}, []),
    (TABLE, {"firewall": {TABLE.name: o.FirewallState(False, True)}}, ["load firewall:inet hearth"]),
    (TABLE, {"firewall": {TABLE.name: o.FirewallState(False, False)}}, ["load firewall:inet hearth"]),
    (m.Image("x/y:1", "sonarr"), {}, ["pull image:x/y:1"]),
    (m.Image("x/y:1", "sonarr"), {"images": frozenset({"x/y:1"})}, []),
    (
        m.PodmanSecret("key", "sonarr", secret="sonarr/key"),
        {"secrets": {"sonarr/key": "1"}},
        ["create podman_secret:key"],
    ),
    (
        m.PodmanSecret("key", "sonarr", secret="sonarr/key"),
        {"secrets": {"sonarr/key": "1"}, "podman_secrets": {"key": False}},
        ["modify podman_secret:key"],
    ),
    (
        m.PodmanSecret("key", "sonarr", secret="sonarr/key"),
        {"secrets": {"sonarr/key": "1"}, "podman_secrets": {"key": True}},
        [],
    ),
    (UNIT, {}, ["enable unit:sonarr.service", "start unit:sonarr.service"]),
    (UNIT, {"units": {UNIT.name: RUNNING}}, []),
    (UNIT, {"units": {UNIT.name: STOPPED}}, ["start unit:sonarr.service"]),
    (UNIT, {"units": {UNIT.name: replace(RUNNING, file_state="disabled")}}, ["enable unit:sonarr.service"]),
    (UNIT, {"units": {UNIT.name: replace(RUNNING, file_state="enabled-runtime")}}, ["enable unit:sonarr.service"]),
    (UNIT, {"units": {UNIT.name: replace(RUNNING, file_state="generated")}}, []),
    (UNIT, {"units": {UNIT.name: replace(RUNNING, active="failed", sub="failed")}}, ["start unit:sonarr.service"]),
    (UNIT, {"units": {UNIT.name: replace(RUNNING, active="reloading")}}, []),
    (UNIT, {"units": {UNIT.name: replace(RUNNING, active="activating", sub="start")}}, []),
    (
        UNIT,
        {"units": {UNIT.name: replace(RUNNING, active="activating", sub="auto-restart")}},
        ["start unit:sonarr.service"],
    ),
    (UNIT, {"units": {UNIT.name: replace(RUNNING, active="deactivating")}}, ["start unit:sonarr.service"]),
    (replace(UNIT, enabled=None, running=None), {"units": {UNIT.name: STOPPED}}, []),
    (replace(UNIT, enabled=False, running=False), {"units": {UNIT.name: replace(STOPPED, file_state="disabled")}}, []),
    (
        replace(UNIT, enabled=False, running=False),
        {"units": {UNIT.name: RUNNING}},
        ["disable unit:sonarr.service", "stop unit:sonarr.service"],
    ),
    (NETWORK, {"units": {NETWORK.name: ONESHOT}, "effects": {NETWORK.effects[0]: o.EffectState(True)}}, []),
    (
        NETWORK,
        {"units": {NETWORK.name: ONESHOT}, "effects": {NETWORK.effects[0]: o.EffectState(False, "missing")}},
        ["restart unit:media-network.service"],
    ),
    (NETWORK, {"units": {NETWORK.name: ONESHOT}, "effects": {NETWORK.effects[0]: o.EffectState(None, "why")}}, []),
    (  # where it was never active, such as in a container, there is nothing to make again
        replace(NETWORK, running=None),
        {
            "units": {NETWORK.name: replace(ONESHOT, active="inactive")},
            "effects": {NETWORK.effects[0]: o.EffectState(False, "missing")},
        },
        [],
    ),
    (
        m.Unit("postgresql@17-main.service", "sonarr"),
        {"units": {"postgresql@17-main.service": replace(RUNNING, file_state="enabled-runtime")}},
        [],
    ),
    (ROLE, {"secrets": {"sonarr/db": "1"}, **server()}, ["create postgresql_role:sonarr"]),
    (ROLE, {"secrets": {"sonarr/db": "1"}, **server({"sonarr": o.RoleState(True, True)})}, []),
    (
        ROLE,
        {"secrets": {"sonarr/db": "1"}, **server({"sonarr": o.RoleState(True, False)})},
        ["modify postgresql_role:sonarr"],
    ),
    (
        ROLE,
        {"secrets": {"sonarr/db": "1"}, **server({"sonarr": o.RoleState(False, True)})},
        ["modify postgresql_role:sonarr"],
    ),
    (replace(ROLE, secret=""), server({"sonarr": o.RoleState(True, None)}), []),
    (
        replace(ROLE, secret=""),
        server({"sonarr": o.RoleState(True, None, ("SUPERUSER",))}),
        ["modify postgresql_role:sonarr"],
    ),
    (MONITOR, server({"sonarr": o.RoleState(True, None, (), ("pg_monitor",))}), []),
    (MONITOR, server({"sonarr": o.RoleState(True)}), ["modify postgresql_role:sonarr"]),
    (MONITOR, server({"sonarr": o.RoleState(True, None, (), ADMIN)}), ["modify postgresql_role:sonarr"]),
    (
        replace(ROLE, secret=""),
        server({"sonarr": o.RoleState(True, None, (), ("pg_monitor",))}),
        ["modify postgresql_role:sonarr"],
    ),
    (DATABASE, server(), ["create postgresql_database:sonarr"]),
    (DATABASE, server(databases={"sonarr": o.DatabaseState("sonarr", "UTF8", frozenset({"hstore"}))}), []),
    (
        DATABASE,
        server(databases={"sonarr": o.DatabaseState("sonarr", "UTF8")}),
        ["modify postgresql_database:sonarr"],
    ),
    (
        DATABASE,
        server(databases={"sonarr": o.DatabaseState("postgres", "UTF8", frozenset({"hstore"}))}),
        ["modify postgresql_database:sonarr"],
    ),
]


@pytest.mark.parametrize(
    ("item", "facts", "expected"), KINDS, ids=[f"{row[0].kind}-{n}" for n, row in enumerate(KINDS)]
)
def test_each_kind(item, facts, expected):
    services = (SONARR, POSTGRESQL) if item.kind.startswith("postgresql") else (SONARR,)
    result = plan(observed(**facts), [item], services=services)
    assert done(result) == expected
    assert not result.problems
    assert not result.unknown
    assert result.converged is (not expected)
    # Converged once is converged after the generation is recorded.
    again = plan(observed(**facts), [item], previous=[item], services=services)
    if done(result) == [f"create {DATABASE.id}"]:
        assert "gone" in again.problems[0].message  # data that was there once is never made anew and empty
    else:
        assert done(again) == expected


@pytest.mark.parametrize("named", ["", "sonarr", "postgresql"])
def test_a_database_that_is_gone_is_made_anew_only_when_a_person_says_so(named):
    services = (SONARR, POSTGRESQL)
    result = plan(
        observed(**server()), [DATABASE], previous=[DATABASE], services=services, start_empty=[named] if named else []
    )
    assert done(result) == (["create postgresql_database:sonarr"] if named else [])
    assert [problem.remedy for problem in result.problems] == (
        [] if named else ["restore it, or make it anew and empty with -e start_empty=sonarr"]
    )
    # What the server was not asked for is unknown, not lost.
    down = plan(observed(**server(error="down")), [DATABASE], previous=[DATABASE], services=services)
    assert (down.problems, len(down.unknown)) == ([], 1)


def test_the_number_of_an_account_that_is_made_in_this_run_is_its_name():
    group = m.Group("media", "sonarr", gid=3000)
    there = o.FileState("file", A, "0644", owner="2041", group="3000")
    file = replace(FILE, owner="sonarr", group="media")
    facts = {STORAGE.name: replace(FACTS, owner="2041", group="3000")}
    result = plan(
        observed(files={FILE.name: there}, storage=facts),
        [SYSTEM, group, file, STORAGE],
        previous=[SYSTEM, group, file, STORAGE],
    )
    assert done(result) == ["create group:media", "create user:sonarr"]


def test_effects_that_a_host_cannot_have_are_said():
    state = observed(units={NETWORK.name: ONESHOT}, effects={NETWORK.effects[0]: o.EffectState(None, "no such module")})
    [notice] = plan(state, [NETWORK], previous=[NETWORK]).notices
    assert "no such module" in notice.message


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/etc/systemd/system/sonarr.service.d/zz.conf", True),
        ("/etc/systemd/system.control/sonarr.service.d/50-MemoryMax.conf", True),
        ("/etc/systemd/system/sonarr.service.d/50-hearth.conf", False),  # the plan's
        ("/usr/lib/systemd/system/sonarr.service.d/vendor.conf", False),
        ("/etc/systemd/system/service.d/all.conf", False),
    ],
)
def test_drop_ins_by_hand_are_said(path, said):
    ours = m.File("/etc/systemd/system/sonarr.service.d/50-hearth.conf", "sonarr", digest=A, size=1)
    state = observed(units={UNIT.name: replace(RUNNING, drop_ins=(path,))}, files={ours.name: THERE})
    result = plan(state, [UNIT, ours], previous=[UNIT, ours])
    assert result.actions == []
    assert [path in notice.message for notice in result.notices] == ([True] if said else [])


def test_the_home_of_a_system_user_is_said():
    item = replace(SYSTEM, home="/var/lib/sonarr")
    result = plan(observed(users={"sonarr": USER}), [item])
    assert result.actions == []
    assert "the home of sonarr is /nonexistent, the plan has /var/lib/sonarr" in result.notices[0].message


def test_the_table_has_every_kind():
    assert {row[0].kind for row in KINDS} | {"initialize", "configure"} == set(m.KINDS)


# -- removal ---------------------------------------------------------------------------------------------------

REMOVED = [
    # item, facts, what is done, what is said
    (m.Hostname("forge", "sonarr"), {}, [], ""),
    (GROUP, {"groups": {"media": 3000}}, [], "of sonarr stay: group media"),
    (SYSTEM, {"users": {"sonarr": USER}}, [], "of sonarr stay: user sonarr"),
    (STORAGE, {}, [], "the data of sonarr stays in /var/lib/sonarr"),
    (m.Package("caddy", "sonarr"), {}, [], "of sonarr stay: package caddy"),
    (
        m.Secret("sonarr/key", "sonarr"),
        {"secrets": {"sonarr/key": "1"}},
        [],
        "of sonarr stay: 1 secret in the host's store",
    ),
    (m.Image("x/y:1", "sonarr"), {}, [], "of sonarr stay: image x/y:1"),
    (m.Locale("en_GB.UTF-8", "sonarr"), {}, [], ""),
    (DATABASE, server(), [], "the database sonarr of sonarr stays in PostgreSQL (postgresql)"),
    (FILE, {"files": {FILE.name: THERE}}, ["remove file:/etc/sonarr.conf"], ""),
    (FILE, {}, [], ""),  # somebody removed it already
    (FILE, {"files": {FILE.name: THERE}, "originals": frozenset({FILE.name})}, ["restore file:/etc/sonarr.conf"], ""),
    (FILE, {"originals": frozenset({FILE.name})}, ["restore file:/etc/sonarr.conf"], ""),
    (FILE, {"files": {FILE.name: replace(THERE, digest=B)}}, ["remove file:/etc/sonarr.conf"], "changed by hand"),
    (FILE, {"files": {FILE.name: DIRECTORY}}, [], "was replaced by a directory and stays"),
    (replace(FILE, create_only=True), {"files": {FILE.name: THERE}}, [], "belongs to the application"),
    (
        m.Symlink("/etc/link", "sonarr", target="/a"),
        {"files": {"/etc/link": o.FileState("symlink", target="/a")}},
        ["remove symlink:/etc/link"],
        "",
    ),
    (
        m.Symlink("/etc/link", "sonarr", target="/a"),
        {"files": {"/etc/link": o.FileState("symlink", target="/b")}, "originals": frozenset({"/etc/link"})},
        ["restore symlink:/etc/link"],
        "changed by hand",
    ),
    (
        m.Directory("/etc/sonarr", "sonarr"),
        {"files": {"/etc/sonarr": DIRECTORY}},
        ["remove directory:/etc/sonarr"],
        "",
    ),
    (
        m.Directory("/etc/sonarr", "sonarr"),
        {"files": {"/etc/sonarr": replace(DIRECTORY, entries=("mine",))}},
        [],
        "/etc/sonarr stays: it is not empty (mine)",
    ),
    (m.Directory("/etc/sonarr", "sonarr"), {}, [], ""),
    (TABLE, {"firewall": {TABLE.name: o.FirewallState(None, True)}}, ["remove firewall:inet hearth"], ""),
    (TABLE, {"firewall": {TABLE.name: o.FirewallState(None, False)}}, [], ""),
    (TABLE, {"firewall": {TABLE.name: o.FirewallState(None, None, "nft is not installed")}}, [], ""),
    (
        m.PodmanSecret("key", "sonarr", secret="sonarr/key"),
        {"podman_secrets": {"key": True}},
        ["remove podman_secret:key"],
        "",
    ),
    (m.PodmanSecret("key", "sonarr", secret="sonarr/key"), {}, [], ""),
    (UNIT, {"units": {UNIT.name: RUNNING}}, ["stop unit:sonarr.service", "disable unit:sonarr.service"], ""),
    (UNIT, {"units": {UNIT.name: STOPPED}}, ["disable unit:sonarr.service"], ""),
    (UNIT, {"units": {UNIT.name: replace(RUNNING, file_state="generated")}}, ["stop unit:sonarr.service"], ""),
    (UNIT, {"units": {UNIT.name: replace(RUNNING, active="failed", file_state="static")}}, [], ""),
    (UNIT, {}, [], ""),
    (ROLE, server({"sonarr": o.RoleState(True, True)}), ["disable postgresql_role:sonarr"], ""),
    (ROLE, server({"sonarr": o.RoleState(False, True)}), [], ""),
    (ROLE, server(), [], ""),
]


@pytest.mark.parametrize(
    ("item", "facts", "expected", "said"), REMOVED, ids=[f"{row[0].kind}-{n}" for n, row in enumerate(REMOVED)]
)
def test_removal_of_each_kind(item, facts, expected, said):
    # The server of a database stays when its user goes.
    result = plan(observed(**facts), [], previous=[item], services=(POSTGRESQL,), before=(SONARR, POSTGRESQL))
    assert done(result) == expected
    assert [said in notice.message for notice in result.notices] == [True] * bool(said)
    assert not result.problems


SSH = m.Unit("ssh.service", "sonarr", guarded=True, reload_on=(f"file:{FILE.name}",))


@pytest.mark.parametrize(
    ("unit", "before_hearth", "expected", "said"),
    [
        # journald's own unit, and that of SSH, which may be the way in: they stay, and read what the role leaves them.
        (UNIT, {"active": True, "enabled": True}, ["restart unit:sonarr.service"], "as before Hearth"),
        (UNIT, {"active": False, "enabled": True}, ["stop unit:sonarr.service"], ""),
        (
            UNIT,
            {"active": True, "enabled": False},
            ["disable unit:sonarr.service", "restart unit:sonarr.service"],
            "as before",
        ),
        (UNIT, {}, ["stop unit:sonarr.service", "disable unit:sonarr.service"], ""),
        (SSH, {"active": True, "enabled": True}, ["reload unit:ssh.service"], "as before Hearth"),
        (SSH, {}, ["reload unit:ssh.service"], "may be the way to this host"),
    ],
)
def test_a_unit_that_ran_before_hearth_is_handed_back(unit, before_hearth, expected, said):
    unit = unit if unit is SSH else replace(unit, restart_on=(f"file:{FILE.name}",))
    state = observed(
        files={FILE.name: THERE},
        units={unit.name: replace(RUNNING, name=unit.name, names=frozenset({unit.name}), can_reload=True)},
        original_units={unit.name: before_hearth} if before_hearth else {},
    )
    result = plan(state, [], previous=[unit, FILE], services=(), before=(SONARR,))
    assert [entry for entry in done(result) if "unit:" in entry] == expected
    assert [said in notice.message for notice in result.notices] == [True] * bool(said)
    # Nothing of it goes: it need not read anything again.
    assert plan(state, [FILE], previous=[unit, FILE]).actions == [
        action for action in result.actions if action.operation in ("stop", "disable")
    ]


@pytest.mark.parametrize("unit", [UNIT, SSH])
def test_a_unit_whose_file_goes_is_stopped_whatever_was_there_before(unit):
    file = replace(FILE, name=f"/etc/systemd/system/{unit.name}")
    state = observed(
        files={file.name: THERE},
        units={unit.name: replace(RUNNING, name=unit.name, names=frozenset({unit.name}), fragment=file.name)},
        original_units={unit.name: {"active": True, "enabled": True}},
    )
    result = plan(state, [], previous=[unit, file], services=(), before=(SONARR,))
    assert done(result) == [f"stop unit:{unit.name}", f"disable unit:{unit.name}", f"remove file:{file.name}"]


def test_an_initialisation_is_not_undone():
    item = m.Initialize("sonarr", "sonarr", argv=("true",), creates="/x")
    assert plan(observed(), [], previous=[item], services=()).actions == []


def test_directories_go_with_what_is_removed_from_them_the_deepest_first():
    previous = [
        m.Directory("/etc/sonarr", "sonarr"),
        m.Directory("/etc/sonarr/conf.d", "sonarr"),
        m.File("/etc/sonarr/conf.d/a", "sonarr", digest=A),
    ]
    files = {
        "/etc/sonarr": replace(DIRECTORY, entries=("conf.d",)),
        "/etc/sonarr/conf.d": replace(DIRECTORY, entries=("a",)),
        "/etc/sonarr/conf.d/a": THERE,
    }
    assert done(plan(observed(files=files), [], previous=previous)) == [
        "remove file:/etc/sonarr/conf.d/a",
        "remove directory:/etc/sonarr/conf.d",
        "remove directory:/etc/sonarr",
    ]
    kept = plan(observed(files=files, originals=frozenset({"/etc/sonarr/conf.d/a"})), [], previous=previous)
    assert done(kept) == ["restore file:/etc/sonarr/conf.d/a"]


def test_directories_that_were_made_for_a_file_go_with_it():
    files = {
        FILE.name: THERE,
        "/etc/made/for": replace(DIRECTORY, entries=("it",)),
        "/etc/made": replace(DIRECTORY, entries=("for",)),
        "/etc/made/for/it": THERE,
    }
    previous = [FILE, m.File("/etc/made/for/it", "sonarr", digest=A)]
    made = frozenset({"/etc/made", "/etc/made/for", "/etc/other"})
    result = plan(observed(files=files, made_directories=made), [FILE], previous=previous)
    gone = ["remove file:/etc/made/for/it", "remove directory:/etc/made/for", "remove directory:/etc/made"]
    assert done(result) == gone
    # Not where somebody put something meanwhile, nor where a file of ours stays; and those of nobody are not touched.
    files["/etc/made"] = replace(DIRECTORY, entries=("for", "mine"))
    result = plan(observed(files=files, made_directories=made), [FILE], previous=previous)
    assert (done(result), result.notices) == (gone[:2], [])
    assert plan(observed(files=files, made_directories=made), previous, previous=previous).converged


def test_a_directory_with_something_declared_in_it_stays_silently():
    previous = [m.Directory("/etc/caddy", "sonarr"), m.File("/etc/caddy/a", "sonarr", digest=A)]
    files = {"/etc/caddy": replace(DIRECTORY, entries=("a",)), "/etc/caddy/a": THERE}
    result = plan(observed(files=files), [previous[1]], previous=previous)
    assert (done(result), result.notices) == ([], [])


def test_an_applications_file_inside_its_data_is_not_mentioned_twice():
    config = m.File("/var/lib/sonarr/config.xml", "sonarr", digest=A, create_only=True)
    result = plan(observed(files={config.name: THERE}), [], previous=[STORAGE, config])
    assert [notice.message for notice in result.notices] == ["the data of sonarr stays in /var/lib/sonarr"]


def test_what_moves_to_another_service_is_not_removed():
    radarr = m.ServiceState("radarr", "services")
    before = [FILE, UNIT, m.PostgresqlRole("sonarr", "sonarr")]
    after = [replace(item, service="radarr") for item in before]
    state = observed(files={FILE.name: THERE}, units={UNIT.name: RUNNING}, **server({"sonarr": o.RoleState(True)}))
    result = plan(state, after, previous=before, services=(radarr, POSTGRESQL), before=(SONARR, POSTGRESQL))
    assert result.converged


def test_a_unit_that_is_declared_by_its_other_name_is_not_stopped():
    ssh = replace(RUNNING, name="ssh.service", names=frozenset({"ssh.service", "sshd.service"}))
    state = observed(units={"ssh.service": ssh, "sshd.service": ssh})
    assert plan(state, [m.Unit("ssh.service", "sonarr")], previous=[m.Unit("sshd.service", "sonarr")]).converged


def test_a_role_is_left_alone_when_its_server_goes_too():
    state = observed(**server({"sonarr": o.RoleState(True)}))
    assert plan(state, [], previous=[ROLE], services=(), before=(SONARR, POSTGRESQL)).actions == []


def test_memberships_that_differ_are_named():
    state = observed(**server({"sonarr": o.RoleState(True, None, (), ("pg_read_all_data",))}))
    [action] = plan(state, [MONITOR], services=(SONARR, POSTGRESQL)).actions
    assert action.reason == "is not in pg_monitor, is in pg_read_all_data"
    assert (action.before["member_of"], action.after["member_of"]) == (["pg_read_all_data"], ["pg_monitor"])


def test_a_role_that_cannot_be_seen_is_not_said_to_be_gone():
    result = plan(observed(**server(error="down")), [], previous=[ROLE], services=(POSTGRESQL,))
    assert ["can still log in" in notice.message for notice in result.unknown] == [True]


def test_a_kind_changes_at_one_path():
    link = m.Symlink(FILE.name, "sonarr", target="/a")
    state = observed(files={FILE.name: o.FileState("symlink", target="/a")})
    result = plan(state, [FILE], previous=[link])
    assert (done(result), result.problems) == ([f"create file:{FILE.name}"], [])
    state = observed(files={FILE.name: THERE})
    result = plan(state, [link], previous=[FILE])
    assert (done(result), result.notices) == ([f"modify symlink:{FILE.name}"], [])


# -- files: what is said, what is needed -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("digest", "previous", "originals", "said"),
    [
        (C, [replace(FILE, digest=B)], (), "changed by hand since the last run and will be overwritten"),
        (B, [replace(FILE, digest=B)], (), ""),
        (A, [replace(FILE, digest=B)], (), ""),  # by hand to exactly what is wanted
        (C, None, (), "existed before Hearth; what was there is kept in generation 0"),
        (C, [], (), "existed before Hearth"),
        (A, None, (), ""),
        (C, None, (FILE.name,), ""),  # kept by an earlier run
    ],
)
def test_what_is_said_of_a_file(digest, previous, originals, said):
    state = observed(files={FILE.name: replace(THERE, digest=digest)}, originals=frozenset(originals))
    result = plan(state, [FILE], previous=previous)
    assert [said in notice.message for notice in result.notices] == [True] * bool(said)


def test_contents_are_needed_once_and_only_where_they_are_written():
    other = replace(FILE, name="/etc/other.conf")
    attributes = replace(FILE, name="/etc/third.conf", digest=B)
    files = {"/etc/third.conf": replace(THERE, digest=B, mode="0600")}
    assert plan(observed(files=files), [FILE, other, attributes]).needs_blobs == [A]
    assert plan(observed(files=files), [FILE, other, attributes], blobs_present={A}).needs_blobs == []


def test_before_and_after_of_a_file():
    action = only(plan(observed(files={FILE.name: replace(THERE, digest=B, mode="0600")}), [FILE]))
    assert action.before == {"digest": B, "mode": "0600", **ROOT}
    assert action.after == {"digest": A, "mode": "0644", **ROOT}


HOLED = replace(FILE, holes=("sonarr/key",), mode="0400")
KEY = m.Secret("sonarr/key", "sonarr")
FILLED = o.FileState("file", C, "0400", **ROOT)


@pytest.mark.parametrize(
    ("facts", "sent", "expected", "blobs", "names"),
    [
        # converged
        ({"secrets": {"sonarr/key": "1"}, "filled": {A: C}}, {"sonarr/key": "1"}, [], [], []),
        # another value
        (
            {"secrets": {"sonarr/key": "1"}, "filled": {A: C}},
            {"sonarr/key": "2"},
            ["store secret:sonarr/key", f"modify file:{FILE.name}"],
            [A],
            ["sonarr/key"],
        ),
        # nothing stored
        (
            {},
            {"sonarr/key": "2"},
            ["store secret:sonarr/key", f"modify file:{FILE.name}"],
            [A],
            ["sonarr/key"],
        ),
        # the template is not stored
        ({"secrets": {"sonarr/key": "1"}}, {"sonarr/key": "1"}, [f"modify file:{FILE.name}"], [A], []),
        # changed by hand
        ({"secrets": {"sonarr/key": "1"}, "filled": {A: B}}, {}, [f"modify file:{FILE.name}"], [A], []),
    ],
)
def test_files_with_holes(facts, sent, expected, blobs, names):
    result = plan(observed(files={FILE.name: FILLED}, **facts), [KEY, HOLED], secret_digests=sent)
    assert (done(result), result.needs_blobs, result.needs_secrets) == (expected, blobs, names)
    # Digests of filled files and of secrets stay on the host.
    text = json.dumps(result.to_dict())
    assert C not in text
    assert B not in text


def test_hand_edits_of_a_file_with_holes():
    state = observed(files={FILE.name: replace(FILLED, digest=B)}, secrets={"sonarr/key": "1"}, filled={A: C})
    [notice] = plan(state, [KEY, HOLED], previous=[KEY, HOLED]).notices
    assert "changed by hand" in notice.message
    # Without the template nobody knows what the last run left: nothing is claimed.
    state.filled = {}
    assert plan(state, [KEY, HOLED], previous=[KEY, HOLED]).notices == []


def test_a_secret_that_a_file_reads_is_stored_even_when_no_item_declares_it():
    result = plan(observed(), [HOLED])
    assert done(result) == ["store secret:sonarr/key", f"create file:{FILE.name}"]
    assert result.needs_secrets == ["sonarr/key"]


def test_a_new_value_reaches_every_reader():
    items = [KEY, m.PodmanSecret("key", "sonarr", secret="sonarr/key"), replace(ROLE, secret="sonarr/key")]
    state = observed(
        secrets={"sonarr/key": "1"}, podman_secrets={"key": True}, **server({"sonarr": o.RoleState(True, True)})
    )
    services = (SONARR, POSTGRESQL)
    assert plan(state, items, services=services, secret_digests={"sonarr/key": "1"}).converged
    assert done(plan(state, items, services=services, secret_digests={"sonarr/key": "2"})) == [
        "store secret:sonarr/key",
        "modify podman_secret:key",
        "modify postgresql_role:sonarr",
    ]


DATA_KEY = m.Secret("sonarr/key", "sonarr", data=True)
WITH_DATA = {STORAGE.name: replace(FACTS, mark=replace(MARK, sentinel=True))}


@pytest.mark.parametrize(
    ("what", "item", "items", "facts", "previous", "refused"),
    [
        ("data", DATA_KEY, [STORAGE], {"storage": WITH_DATA}, [STORAGE], True),
        ("an access key", KEY, [STORAGE], {"storage": WITH_DATA}, [STORAGE], False),
        ("no sentinel yet", DATA_KEY, [STORAGE], {"storage": {STORAGE.name: FACTS}}, [STORAGE], False),
        ("new storage", DATA_KEY, [STORAGE], {}, None, False),
        ("a database since it ran", DATA_KEY, [DATABASE], server(databases={}), [], True),
        ("a database, at its first start", DATA_KEY, [DATABASE], server(databases={}), None, False),
        ("a repository or devices elsewhere", DATA_KEY, [], {}, [], True),
        ("elsewhere, at its first start", DATA_KEY, [], {}, None, False),
    ],
)
def test_another_key_over_data_is_refused(what, item, items, facts, previous, refused):
    services = (SONARR, POSTGRESQL)
    state = observed(secrets={"sonarr/key": "1"}, **facts)
    old = None if previous is None else [item, *previous]
    made = plan(state, [item, *items], previous=old, services=services, secret_digests={"sonarr/key": "2"})
    assert ("store secret:sonarr/key" in done(made)) != refused
    problems = [problem for problem in made.problems if problem.item == "secret:sonarr/key"]
    assert bool(problems) == refused
    if refused:
        assert "/var/lib/hearth/secrets/sonarr/key" in problems[0].remedy
    # The same value, or one that the host's store has lost: nothing to refuse.
    for stored in ({"sonarr/key": "2"}, {}):
        state.secrets = stored
        again = plan(state, [item, *items], previous=old, services=services, secret_digests={"sonarr/key": "2"})
        assert [problem for problem in again.problems if problem.item == "secret:sonarr/key"] == []
        assert ("store secret:sonarr/key" in done(again)) == (not stored)


def test_a_store_that_cannot_be_read_makes_its_readers_unknown():
    state = observed(files={FILE.name: FILLED}, errors={"secret": "Permission denied"})
    result = plan(state, [KEY, HOLED], secret_digests={"sonarr/key": "1"})
    assert result.actions == []
    assert {notice.item for notice in result.unknown} == {KEY.id, HOLED.id}


# -- problems --------------------------------------------------------------------------------------------------

PROBLEMS = [
    # what, items, facts, message, remedy
    ("release", [], {"release": "debian12"}, "the plan is for release debian13, forge has debian12", "inventory"),
    ("architecture", [], {"architecture": "arm64"}, "architecture amd64, forge has arm64", "inventory"),
    (
        "user's id",
        [SYSTEM],
        {
            "users": {"sonarr": replace(USER, uid=999)},
            "id_files": {"user:sonarr": o.IdFiles(2, True, ("/srv/a", "/srv/b"))},
        },
        "user sonarr has the id 999 on this host, the plan has 2041; 2 files carry 999 (/srv/a, /srv/b)",
        "hearth_ids",
    ),
    (
        "user's id, many files",
        [SYSTEM],
        {"users": {"sonarr": replace(USER, uid=999)}, "id_files": {"user:sonarr": o.IdFiles(1000, False)}},
        "at least 1000 files",
        "usermod --uid 2041 sonarr",
    ),
    ("group's id", [GROUP], {"groups": {"media": 2999}}, "group media has the id 2999", "groupmod --gid 3000 media"),
    (
        "user's id taken",
        [SYSTEM],
        {"users": {"x": replace(USER, name="x")}},
        "2041 of user sonarr belongs to user x",
        "hearth_ids",
    ),
    ("group's id taken", [GROUP], {"groups": {"x": 3000}}, "3000 of group media belongs to group x", "hearth_ids"),
    (
        "primary group",
        [SYSTEM],
        {"users": {"sonarr": replace(USER, group="users")}},
        "primary group users, the plan has sonarr",
        "usermod --gid",
    ),
    (
        "found data",
        [STORAGE],
        {"storage": {STORAGE.name: replace(FACTS, mark=None, empty=False, entries=("db",))}},
        "has content that Hearth did not make (db)",
        "adopt",
    ),
    (
        "lost data",
        [STORAGE],
        {"storage": {STORAGE.name: replace(FACTS, mark=None, ledger=storage.LedgerEntry("1", "sonarr", True))}},
        "held data of sonarr, but it is empty now",
        "-e start_empty=sonarr",
    ),
    (
        "new storage with data elsewhere",
        [replace(STORAGE, empty_start=False)],
        {},
        "is new, and its data may exist elsewhere",
        "-e start_empty=sonarr",
    ),
    (
        "unreadable storage",
        [STORAGE],
        {"storage": {STORAGE.name: replace(FACTS, error="I/O error")}},
        "I/O error",
        "mend",
    ),
    (
        "damaged ledger",
        [STORAGE],
        {"errors": {"storage": "storage.json is damaged"}},
        "storage.json is damaged",
        "mend",
    ),
    (
        "lost first data",
        [STORAGE, m.Initialize("sonarr", "sonarr", argv=("true",), creates="/var/lib/sonarr/db", storage=STORAGE.name)],
        {"storage": {STORAGE.name: replace(FACTS, mark=replace(MARK, sentinel=True))}},
        "/var/lib/sonarr held data of sonarr, but /var/lib/sonarr/db is missing",
        "restore",
    ),
    ("directory for a file", [FILE], {"files": {FILE.name: DIRECTORY}}, "shall be a file and is a directory", "move"),
    (
        "device for a file",
        [FILE],
        {"files": {FILE.name: o.FileState("other")}},
        "neither a file nor a directory",
        "move",
    ),
    (
        "link for a file",
        [FILE],
        {"files": {FILE.name: o.FileState("symlink", target="/srv/x")}},
        "is a symbolic link to /srv/x",
        "remove the link",
    ),
    (
        "file above a file",
        [FILE],
        {"files": {FILE.name: o.FileState("error", message="a parent of it is not a directory")}},
        "a parent of it is not a directory",
        "move",
    ),
    ("file for a directory", [m.Directory("/etc/a", "sonarr")], {"files": {"/etc/a": THERE}}, "is a file", "move"),
    (
        "directory for a link",
        [m.Symlink("/etc/a", "sonarr")],
        {"files": {"/etc/a": DIRECTORY}},
        "is a directory",
        "move",
    ),
    (
        "unknown package",
        [m.Package("nosuch", "sonarr")],
        {"apt": o.AptState(unavailable={"nosuch": "Unable to locate package nosuch"})},
        "package nosuch cannot be installed: Unable to locate package nosuch",
        "repository",
    ),
    (
        "removal of a package",
        [m.Package("chrony", "sonarr")],
        {"apt": o.AptState(removes=("systemd-timesyncd",))},
        "installing chrony would remove systemd-timesyncd",
        "native.replaces",
    ),
    (
        "packages that exclude each other",
        [m.Package("chrony", "sonarr")],
        {"apt": o.AptState(message="held broken packages")},
        "apt cannot install chrony: held broken packages",
        "apt-get",
    ),
    (
        "masked unit",
        [UNIT],
        {"units": {UNIT.name: replace(STOPPED, load="masked", file_state="masked")}},
        "masked",
        "unmask",
    ),
    (
        "unit masked at run time",
        [UNIT],
        {"units": {UNIT.name: replace(RUNNING, load="masked", file_state="masked-runtime")}},
        "masked",
        "unmask --runtime",
    ),
    ("template", [m.Unit("a@.service", "sonarr")], {}, "is a template", "instance"),
    (
        "encoding",
        [DATABASE],
        server(databases={"sonarr": o.DatabaseState("sonarr", "SQL_ASCII")}),
        "has the encoding SQL_ASCII, the plan has UTF8",
        "dump",
    ),
]


@pytest.mark.parametrize(
    ("items", "facts", "message", "remedy"), [row[1:] for row in PROBLEMS], ids=[row[0] for row in PROBLEMS]
)
def test_problems(items, facts, message, remedy):
    result = plan(observed(**facts), items, services=(SONARR, POSTGRESQL))
    [problem] = result.problems
    assert message in problem.message
    assert remedy in problem.remedy
    assert problem.service == ("sonarr" if items else "")
    assert not result.converged


def test_all_problems_at_once():
    items = [SYSTEM, GROUP, FILE]
    facts = {"users": {"sonarr": replace(USER, uid=1)}, "groups": {"media": 1}, "files": {FILE.name: DIRECTORY}}
    assert len(plan(observed(release="debian12", **facts), items).problems) == 4


def test_a_declared_replacement_may_remove_a_package():
    chrony = m.Package("chrony", "sonarr", replaces=("systemd-timesyncd",))
    result = plan(observed(apt=o.AptState(removes=("systemd-timesyncd",))), [chrony])
    assert (done(result), result.problems) == (["install package:chrony"], [])


@pytest.mark.parametrize(
    ("items", "apt"),
    [
        (
            [],
            o.AptState(stale="the package lists are 30 h old", unavailable={"caddy": "Unable to locate package caddy"}),
        ),
        ([], o.AptState(stale="the package lists are 30 h old", message="held broken packages")),
        (
            [m.File("/etc/apt/sources.list.d/x.sources", "sonarr", digest=A, early=True)],
            o.AptState(unavailable={"caddy": "Unable to locate package caddy"}),
        ),
    ],
)
def test_lists_that_prove_nothing_make_packages_unknown(items, apt):
    result = plan(observed(apt=apt), [*items, m.Package("caddy", "sonarr")])
    assert result.problems == []
    assert [notice.item for notice in result.unknown] == ["package:caddy"]
    assert "install package:caddy" in done(result)


def test_a_fresh_start_by_name():
    wanted = replace(STORAGE, empty_start=False)
    assert done(plan(observed(), [wanted], start_empty={"sonarr"})) == ["create storage:/var/lib/sonarr"]
    ledger = storage.LedgerEntry("1", "sonarr", True)
    wiped = observed(storage={STORAGE.name: replace(FACTS, mark=None, ledger=ledger)})
    assert done(plan(wiped, [wanted], start_empty={"sonarr"})) == ["create storage:/var/lib/sonarr"]
    # Never over what is there, whoever says so.
    found = observed(storage={STORAGE.name: replace(FACTS, mark=None, empty=False, entries=("db",), ledger=ledger)})
    result = plan(found, [wanted], start_empty={"sonarr"})
    assert (done(result), len(result.problems)) == ([], 1)


def test_new_storage_says_that_it_starts_empty():
    [notice] = plan(observed(), [STORAGE]).notices
    assert notice.message == "/var/lib/sonarr starts empty: no tier is declared that could hold data of it"


# -- initialize ------------------------------------------------------------------------------------------------

INITIALIZE = m.Initialize(
    "main", "sonarr", argv=("initdb",), creates="/var/lib/sonarr/PG_VERSION", storage=STORAGE.name
)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (None, ["create storage:/var/lib/sonarr", "run initialize:main"]),
        (FACTS, ["run initialize:main"]),  # marked, no sentinel
        (replace(FACTS, mark=replace(MARK, sentinel=True)), []),  # a problem
        (replace(FACTS, mark=None, empty=False, entries=("x",)), []),  # a problem
    ],
)
def test_first_data_is_made_only_in_storage_that_is_known_to_be_empty(facts, expected):
    state = observed(storage={STORAGE.name: facts} if facts else {})
    result = plan(state, [STORAGE, INITIALIZE])
    assert done(result) == expected
    assert bool(result.problems) is (not expected)


def test_first_data_is_made_once():
    state = observed(storage={STORAGE.name: FACTS}, files={INITIALIZE.creates: THERE})
    assert plan(state, [STORAGE, INITIALIZE]).converged


def test_in_first_data_there_are_no_databases():
    first = m.Initialize("main", "postgresql", argv=("initdb",), creates="/var/lib/postgresql/PG_VERSION")
    items = [first, replace(ROLE, secret=""), DATABASE]
    result = plan(observed(**server(error="psql is not installed")), items, services=(SONARR, POSTGRESQL))
    assert done(result) == ["run initialize:main", "create postgresql_role:sonarr", "create postgresql_database:sonarr"]
    assert result.unknown == []


# -- unknown ---------------------------------------------------------------------------------------------------

UNKNOWN = [
    ("group", GROUP, {"errors": {"user": "E"}}),
    ("user", SYSTEM, {"errors": {"user": "E"}}),
    ("unit", UNIT, {"errors": {"unit": "E"}}),
    ("locale", m.Locale("en_GB.UTF-8", "sonarr"), {"errors": {"locale": "E"}}),
    ("image", m.Image("x/y:1", "sonarr"), {"errors": {"image": "E"}}),
    ("podman secret", m.PodmanSecret("k", "sonarr"), {"errors": {"podman_secret": "E"}}),
    ("firewall", TABLE, {"firewall": {TABLE.name: o.FirewallState(None, None, "E")}}),
    ("firewall query", TABLE, {"errors": {"firewall": "E"}}),
    ("file", FILE, {"files": {FILE.name: o.FileState("error", message="E")}}),
    ("file query", FILE, {"errors": {"file": "E"}}),
    ("directory", m.Directory("/etc/a", "sonarr"), {"errors": {"file": "E"}}),
    ("link", m.Symlink("/etc/a", "sonarr"), {"errors": {"file": "E"}}),
    ("role", replace(ROLE, secret=""), server(error="E")),
    ("database", DATABASE, server(error="E")),
    ("database query", DATABASE, {"errors": {"postgresql postgresql": "E"}}),
    (
        "first data",
        m.Initialize("x", "sonarr", creates="/x"),
        {"files": {"/x": o.FileState("error", message="E")}},
    ),
]


@pytest.mark.parametrize(("item", "facts"), [row[1:] for row in UNKNOWN], ids=[row[0] for row in UNKNOWN])
def test_what_was_not_observed_is_unknown_and_nothing_is_done_to_it(item, facts):
    result = plan(observed(**facts), [item], services=(SONARR, POSTGRESQL))
    [notice] = result.unknown
    assert (notice.item, result.actions, result.problems) == (item.id, [], [])
    assert notice.message.endswith("E")
    assert not result.converged
    # Nor is it removed.
    result = plan(observed(**facts), [], previous=[item], services=(POSTGRESQL,), before=(SONARR, POSTGRESQL))
    assert result.actions == []


def test_unknown_identity_and_packages():
    result = plan(
        observed(errors={"release": "E", "package": "E"}), [m.Hostname("forge", "sonarr"), m.Package("x", "sonarr")]
    )
    assert [notice.item for notice in result.unknown] == ["", "", "hostname:forge", "package:x"]
    assert result.problems == []


# -- purity ----------------------------------------------------------------------------------------------------


def test_equal_arguments_give_equal_plans_and_nothing_is_changed():
    items = [row[0] for row in KINDS]
    unique = list({item.id: item for item in items}.values())
    state = observed(files={FILE.name: replace(THERE, digest=B)}, units={UNIT.name: STOPPED})
    before = copy.deepcopy(state)
    first = plan(state, unique, previous=[FILE])
    second = plan(state, list(reversed(unique)), previous=[FILE])
    assert first.to_dict() == second.to_dict()
    assert state == before


# -- configure: what only an application's API can do -----------------------------------------------------------

PROWLARR = m.ServiceState("prowlarr", "services")
APP = m.Configure(
    "sonarr/prowlarr",
    "sonarr",
    provider="prowlarr",
    url="http://127.0.0.1:9696/api/v1/applications",
    desired={"name": "sonarr", "key": "@@hearth:sonarr/api_key@@"},
    headers={"X-Api-Key": "@@hearth:prowlarr/api_key@@"},
    holes=("prowlarr/api_key", "sonarr/api_key"),
)
STORED = {"sonarr/api_key": "1", "prowlarr/api_key": "2"}


def configured(found: o.configure.ObjectState, previous=None, items=(APP,), **more) -> Plan:
    state = observed(secrets=dict(STORED), configured={APP.name: found})
    return plan(state, items, previous=previous, services=(SONARR, PROWLARR), **more)


def test_an_application_that_the_host_never_had_is_not_asked() -> None:
    """Found with `ROLE=radarr`: alone it failed because prowlarr, which the inventory has for the host, was not there."""
    state = observed(secrets=dict(STORED))
    result = plan(state, [APP], services=(SONARR, PROWLARR), scope=frozenset({"sonarr"}))
    assert done(result) == []
    assert not result.unknown
    assert [notice.message for notice in result.notices if notice.item == APP.id] == [
        "prowlarr is not on this host yet: a run with it makes what sonarr/prowlarr asks of it"
    ]
    # It was there before: then it is asked, whatever this run is about.
    known = plan(state, [APP], services=(SONARR, PROWLARR), previous=[APP], scope=frozenset({"sonarr"}))
    assert [notice.item for notice in known.unknown] == [APP.id]


def test_an_object_of_an_api_is_made_mended_and_left_alone() -> None:
    assert done(configured(o.configure.ObjectState())) == ["create configure:sonarr/prowlarr"]
    assert done(configured(o.configure.ObjectState(True, ("fields.baseUrl",)))) == ["modify configure:sonarr/prowlarr"]
    assert configured(o.configure.ObjectState(True)).converged


def test_an_api_that_does_not_answer_is_unknown_never_absent() -> None:
    result = configured(o.configure.ObjectState(error="GET /x: status 500"))
    assert result.actions == []
    assert [notice.item for notice in result.unknown] == [APP.id]
    assert "status 500" in result.unknown[0].message
    assert not result.converged


def test_an_object_with_a_new_secret_is_written_again_though_it_shows_none() -> None:
    result = configured(o.configure.ObjectState(True), secret_digests={"sonarr/api_key": "other"})
    assert done(result) == ["store secret:sonarr/api_key", "modify configure:sonarr/prowlarr"]
    # The key of the API itself is not in the object.
    result = configured(o.configure.ObjectState(True), secret_digests={"prowlarr/api_key": "other"})
    assert done(result) == ["store secret:prowlarr/api_key"]


def test_an_object_that_is_no_longer_declared_is_removed() -> None:
    gone = configured(o.configure.ObjectState(True), items=(), previous=(APP,))
    assert done(gone) == ["remove configure:sonarr/prowlarr"]
    assert done(configured(o.configure.ObjectState(), items=(), previous=(APP,))) == []
    failing = configured(o.configure.ObjectState(error="no answer"), items=(), previous=(APP,))
    assert [notice.item for notice in failing.unknown] == [APP.id]
