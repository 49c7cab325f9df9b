# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The planner across items: order, scope, exact restarts, ports that are held."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.module_utils import observe as o
from ansible_collections.hearth.homelab.plugins.module_utils import planner, storage
from ansible_collections.hearth.homelab.plugins.module_utils.actions import Action

A, B = ("a" * 64, "b" * 64)


def service(name: str, tier: str = "services", **more) -> m.ServiceState:
    return m.ServiceState(name, tier, **more)


def manifest(services, *items, **more) -> m.Manifest:
    return m.Manifest(
        "forge", "debian13", "amd64", {entry.name: entry for entry in services}, m.sort_items(items), **more
    )


def observed(**facts) -> o.Observed:
    return o.Observed(release="debian13", architecture="amd64", hostname="forge", running_hostname="forge", **facts)


def running(name: str, **more) -> o.UnitState:
    values = {
        "load": "loaded",
        "active": "active",
        "sub": "running",
        "file_state": "enabled",
        "can_reload": True,
        **more,
    }
    return o.UnitState(name, frozenset({name}), **values)


def unit(name: str, owner: str | None = None, **more) -> m.Unit:
    return m.Unit(f"{name}.service", owner or name, **more)


def file(path: str, owner: str, digest: str = A, **more) -> m.File:
    return m.File(path, owner, digest=digest, **more)


def on_disk(*paths: str, digest: str = A) -> dict[str, o.FileState]:
    return {path: o.FileState("file", digest, "0644", "root", "root") for path in paths}


def done(plan) -> list[str]:
    return [f"{action.operation} {action.id}" for action in plan.actions]


def units_of(plan) -> list[str]:
    return [f"{action.operation} {action.name}" for action in plan.actions if action.kind == "unit"]


# -- order of services -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("services", "order"),
    [
        ([service("b"), service("a")], ["a", "b"]),
        ([service("a"), service("z", "core"), service("m", "infrastructure")], ["z", "m", "a"]),
        ([service("a", requires=("z",)), service("z")], ["z", "a"]),
        ([service("a", wants=("z",)), service("z")], ["z", "a"]),
        ([service("a", requires=("elsewhere",), wants=("gone",))], ["a"]),
        ([service("a", "core", requires=("z",)), service("b", "infrastructure"), service("z")], ["b", "z", "a"]),
        # a cycle is broken at its wish
        ([service("a", requires=("b",)), service("b", wants=("a",))], ["b", "a"]),
        ([service("a", requires=("b",)), service("b", requires=("a",)), service("c")], ["c", "a", "b"]),
        ([service("a", requires=("a",))], ["a"]),
    ],
)
def test_service_order(services, order):
    for _ in range(3):
        random.shuffle(services)
        assert planner.service_order({entry.name: entry for entry in services}) == order


# -- order of application --------------------------------------------------------------------------------------


def test_the_whole_order():
    services = [
        service("base", "core"),
        service("postgresql", "infrastructure"),
        service("miniflux", requires=("postgresql",)),
        service("alone"),
    ]
    items = [
        m.Hostname("nas-1", "base"),
        m.Group("miniflux", "miniflux", gid=2002),
        m.User("miniflux", "miniflux", uid=2002, group="miniflux"),
        m.Storage("/var/lib/miniflux", "miniflux"),
        m.Directory("/etc/postgresql-common", "postgresql"),
        file("/etc/postgresql-common/createcluster.conf", "postgresql", early=True, holes=("postgresql/early",)),
        m.Package("postgresql", "postgresql"),
        m.Initialize("main", "postgresql", argv=("true",), creates="/var/lib/postgresql/x"),
        m.Secret("postgresql/early", "postgresql"),
        m.Secret("miniflux/db", "miniflux"),
        m.Directory("/etc/miniflux", "miniflux"),
        m.Symlink("/etc/link", "base", target="/a"),
        file("/etc/miniflux/conf", "miniflux", holes=("miniflux/db",)),
        m.Locale("en_GB.UTF-8", "base"),
        m.Firewall("inet hearth", "base", path="/etc/hearth/nftables/hearth.nft"),
        file("/etc/hearth/nftables/hearth.nft", "base"),
        m.Image("x/y:1", "alone"),
        m.PodmanSecret("k", "miniflux", secret="miniflux/db"),
        unit("miniflux"),
        unit("postgresql", enabled=None),
        unit("alone", enabled=None),
        m.PostgresqlRole("miniflux", "miniflux", secret="miniflux/db"),
        m.PostgresqlDatabase("miniflux", "miniflux", owner="miniflux"),
    ]
    old = [
        unit("old"),
        m.Directory("/etc/old", "old"),
        file("/etc/old/conf", "old"),
        m.PodmanSecret("old", "old", secret="old/x"),
    ]
    state = observed(
        units={"old.service": running("old.service")},
        files={**on_disk("/etc/old/conf"), "/etc/old": o.FileState("directory", entries=("conf",))},
        podman_secrets={"old": True},
    )
    plan = planner.plan(state, manifest(services, *items), manifest([service("old")], *old))
    assert done(plan) == [
        "set hostname:nas-1",
        "create group:miniflux",
        "create user:miniflux",
        "create storage:/var/lib/miniflux",
        "store secret:postgresql/early",
        "create directory:/etc/postgresql-common",
        "create file:/etc/postgresql-common/createcluster.conf",
        "install package:postgresql",
        "run initialize:main",
        "store secret:miniflux/db",
        "stop unit:old.service",
        "disable unit:old.service",
        "create directory:/etc/miniflux",
        "create symlink:/etc/link",
        "create file:/etc/hearth/nftables/hearth.nft",
        "create file:/etc/miniflux/conf",
        "remove file:/etc/old/conf",
        "remove directory:/etc/old",
        "generate locale:en_GB.UTF-8",
        "load firewall:inet hearth",
        "pull image:x/y:1",
        "create podman_secret:k",
        "remove podman_secret:old",
        # postgresql first (its tier), then its databases, then who needs them
        "start unit:postgresql.service",
        "create postgresql_role:miniflux",
        "create postgresql_database:miniflux",
        "start unit:alone.service",
        "enable unit:miniflux.service",
        "start unit:miniflux.service",
    ]
    assert not plan.problems
    assert not plan.unknown


def test_units_of_a_service_in_its_own_order():
    services = [service("x", units=("b.socket", "a.service"))]
    items = [
        m.Unit("a.service", "x", enabled=None),
        m.Unit("b.socket", "x", enabled=None),
        m.Unit("0.service", "x", enabled=None),
    ]
    plan = planner.plan(observed(), manifest(services, *items), None)
    assert units_of(plan) == ["start b.socket", "start a.service", "start 0.service"]


def test_what_goes_is_stopped_before_what_it_requires():
    services = [
        service("postgresql", "infrastructure"),
        service("a", requires=("postgresql",)),
        service("b", requires=("a",)),
    ]
    names = ("a", "b", "postgresql")
    state = observed(units={f"{n}.service": running(f"{n}.service", file_state="static") for n in names})
    plan = planner.plan(state, manifest([]), manifest(services, *(unit(name) for name in names)))
    assert units_of(plan) == ["stop b.service", "stop a.service", "stop postgresql.service"]


# -- exact restarts --------------------------------------------------------------------------------------------

CADDY = unit(
    "caddy",
    restart_on=("file:/etc/default/caddy", "package:caddy", "secret:caddy/token"),
    reload_on=("file:/etc/caddy/Caddyfile", "file:/etc/caddy/sites/"),
)
CADDY_FILES = ("/etc/default/caddy", "/etc/caddy/Caddyfile", "/etc/caddy/sites/sonarr")
SERVICES = [service("caddy", "infrastructure"), service("sonarr")]
ITEMS = [CADDY, unit("sonarr"), *(file(path, "sonarr" if "sites" in path else "caddy") for path in CADDY_FILES)]
UNITS = {name: running(name) for name in ("caddy.service", "sonarr.service")}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ((), []),
        (("/etc/default/caddy",), ["restart caddy.service"]),
        (("/etc/caddy/Caddyfile",), ["reload caddy.service"]),
        (("/etc/caddy/sites/sonarr",), ["reload caddy.service"]),
        (("/etc/caddy/sites/sonarr", "/etc/default/caddy"), ["restart caddy.service"]),  # a restart wins
    ],
)
def test_restart_and_reload(changed, expected):
    files = {**on_disk(*CADDY_FILES), **on_disk(*changed, digest=B)}
    plan = planner.plan(observed(files=files, units=UNITS), manifest(SERVICES, *ITEMS), manifest(SERVICES, *ITEMS))
    assert units_of(plan) == expected


def test_a_prefix_ends_at_its_slash():
    assert planner.triggered(["file:/etc/caddy/sites/"], ["file:/etc/caddy/sites.d/x", "file:/etc/caddy/sites/x"]) == [
        "file:/etc/caddy/sites/x"
    ]
    assert planner.triggered(["file:/etc/caddy/sites"], ["file:/etc/caddy/sites/x"]) == []
    assert planner.triggered([], ["file:/x"]) == []


def test_the_reason_names_what_changed():
    files = on_disk(*CADDY_FILES, digest=B)
    plan = planner.plan(observed(files=files, units=UNITS), manifest(SERVICES, *ITEMS), None)
    [action] = [action for action in plan.actions if action.kind == "unit"]
    assert (action.operation, action.reason) == ("restart", "/etc/default/caddy changed")


def test_attributes_restart_nothing():
    files = on_disk(*CADDY_FILES)
    files["/etc/default/caddy"] = replace(files["/etc/default/caddy"], mode="0600")
    plan = planner.plan(observed(files=files, units=UNITS), manifest(SERVICES, *ITEMS), None)
    assert done(plan) == ["attributes file:/etc/default/caddy"]


@pytest.mark.parametrize("wanted", [CADDY, replace(CADDY, restart_on=("package:caddy",), reload_on=())])
def test_a_removed_fragment_reloads_its_reader(wanted):
    """Also where the reader named it one by one, and so names it no more."""
    before = replace(CADDY, reload_on=("file:/etc/caddy/sites/sonarr",)) if wanted is not CADDY else CADDY
    old = [before, *(item for item in ITEMS if item.id not in (CADDY.id, "unit:sonarr.service"))]
    new = [wanted, *(item for item in old if item is not before and item.service == "caddy")]
    state = observed(files=on_disk(*CADDY_FILES), units=UNITS)
    plan = planner.plan(state, manifest(SERVICES[:1], *new), manifest(SERVICES, *old))
    assert done(plan) == ["remove file:/etc/caddy/sites/sonarr", "reload unit:caddy.service"]


def test_other_triggers_alone_restart_nothing():
    """A unit that reads more or less than before is restarted by its own changed files, not by the list."""
    before = [replace(CADDY, restart_on=("file:/x",), reload_on=()), *ITEMS[1:]]
    state = observed(files=on_disk(*CADDY_FILES), units=UNITS)
    assert planner.plan(state, manifest(SERVICES, *ITEMS), manifest(SERVICES, *before)).converged


@pytest.mark.parametrize(
    ("state", "item", "expected"),
    [
        (running("caddy.service", active="inactive", sub="dead"), CADDY, ["start caddy.service"]),
        (running("caddy.service", can_reload=False), CADDY, ["restart caddy.service"]),
        (running("caddy.service"), replace(CADDY, running=None), ["reload caddy.service"]),
        (running("caddy.service", active="inactive"), replace(CADDY, running=None), []),
        (running("caddy.service", active="activating", sub="start"), replace(CADDY, running=None), []),
        (running("caddy.service"), replace(CADDY, running=False), ["stop caddy.service"]),
    ],
)
def test_a_changed_file_of_a_unit_in_every_state(state, item, expected):
    files = {**on_disk(*CADDY_FILES), **on_disk("/etc/caddy/Caddyfile", digest=B)}
    items = [item, *ITEMS[2:]]
    plan = planner.plan(observed(files=files, units={"caddy.service": state}), manifest(SERVICES, *items), None)
    assert units_of(plan) == expected


@pytest.mark.parametrize(
    ("trigger", "item", "facts"),
    [
        ("secret:x/key", m.Secret("x/key", "x"), {}),
        ("package:x", m.Package("x", "x"), {}),
        ("image:x/y:1", m.Image("x/y:1", "x"), {}),
        ("podman_secret:k", m.PodmanSecret("k", "x", secret="x/key"), {"secrets": {"x/key": "1"}}),
        ("directory:/etc/x", m.Directory("/etc/x", "x"), {}),
        ("symlink:/etc/x", m.Symlink("/etc/x", "x", target="/y"), {}),
        ("locale:de_DE.UTF-8", m.Locale("de_DE.UTF-8", "x"), {}),
        ("unit:other.service", unit("other", "x", enabled=None), {}),
        (
            "postgresql_role:x",
            m.PostgresqlRole("x", "x", provider="x"),
            {"postgresql": {"x": o.PostgresqlState()}},
        ),
    ],
)
def test_any_kind_may_restart_a_unit(trigger, item, facts):
    services = [service("a", requires=("x",)), service("x")]
    state = observed(units={"a.service": running("a.service")}, **facts)
    plan = planner.plan(state, manifest(services, unit("a", restart_on=(trigger,)), item), None)
    assert units_of(plan)[-1] == "restart a.service"


# -- the firewall and its fragments ----------------------------------------------------------------------------

NFT = "/etc/hearth/nftables"
TABLE = m.Firewall("inet hearth", "nftables", path=f"{NFT}/hearth.nft")
SAME = {TABLE.name: o.FirewallState(True, True)}


@pytest.mark.parametrize(
    ("path", "expected"),
    [(f"{NFT}/hearth.nft", True), (f"{NFT}/input.d/sonarr.nft", True), ("/etc/hearth/other", False)],
)
def test_a_changed_fragment_loads_the_firewall(path, expected):
    services = [service("nftables", "core"), service("sonarr")]
    items = [TABLE, file(path, "sonarr")]
    plan = planner.plan(observed(firewall=SAME), manifest(services, *items), None)
    assert ("load firewall:inet hearth" in done(plan)) is expected
    # Also when only the fragment's service is applied.
    plan = planner.plan(
        observed(firewall=SAME), manifest(services, *items), manifest(services, TABLE), scope=frozenset({"sonarr"})
    )
    assert ("load firewall:inet hearth" in done(plan)) is expected


def test_a_file_of_its_own_in_etc_loads_only_itself():
    table = replace(TABLE, path="/etc/hearth.nft")
    services = [service("nftables", "core")]
    plan = planner.plan(observed(firewall=SAME), manifest(services, table, file("/etc/x", "nftables")), None)
    assert done(plan) == ["create file:/etc/x"]


def test_on_a_host_without_nftables_the_new_rules_are_loaded_after_it_came():
    services = [service("nftables", "core")]
    firewall = {TABLE.name: o.FirewallState(None, None, "nft is not installed")}
    items = [TABLE, m.Package("nftables", "nftables"), file(TABLE.path, "nftables")]
    plan = planner.plan(observed(firewall=firewall), manifest(services, *items), None)
    assert done(plan)[-1] == "load firewall:inet hearth"
    assert plan.unknown == []


# -- scope -----------------------------------------------------------------------------------------------------

OLD = manifest(SERVICES, *ITEMS, validators=(m.Validator("caddy", "caddy", ("caddy",), ("/etc/caddy/",)),))


def test_merge_without_a_scope_is_the_manifest():
    assert planner.merge(OLD, None, None) is OLD


def test_merge_carries_the_rest_over():
    new = manifest(
        [service("caddy", "infrastructure", summary="new"), service("sonarr", summary="new"), service("radarr")],
        replace(CADDY, restart_on=()),
        unit("sonarr", restart_on=("file:/x",)),
        unit("radarr"),
        validators=(
            m.Validator("caddy", "caddy", ("caddy", "validate"), ()),
            m.Validator("sonarr", "sonarr", ("true",), ()),
        ),
    )
    merged = planner.merge(new, OLD, {"sonarr"})
    assert set(merged.services) == {"caddy", "sonarr"}
    assert (merged.services["sonarr"].summary, merged.services["caddy"].summary) == ("new", "")
    assert merged.by_id()["unit:sonarr.service"] == unit("sonarr", restart_on=("file:/x",))
    assert merged.by_id()[CADDY.id] == CADDY
    assert "file:/etc/caddy/sites/sonarr" not in merged.by_id()  # sonarr's, and no longer declared
    assert "unit:radarr.service" not in merged.by_id()  # never applied
    assert [(entry.name, entry.argv) for entry in merged.validators] == [("caddy", ("caddy",)), ("sonarr", ("true",))]
    assert merged.items == m.sort_items(merged.items)
    # Without a generation before there is only the scope.
    assert set(planner.merge(new, None, {"sonarr"}).services) == {"sonarr"}


def test_only_the_scope_is_applied():
    files = on_disk(*CADDY_FILES, digest=B)
    units = {"caddy.service": running("caddy.service"), "sonarr.service": running("sonarr.service", active="failed")}
    state = observed(files=files, units=units)
    plan = planner.plan(state, OLD, OLD, scope=frozenset({"sonarr"}))
    assert done(plan) == [
        "modify file:/etc/caddy/sites/sonarr",
        "reload unit:caddy.service",  # the fragment's reader, though it is not in scope
        "start unit:sonarr.service",
    ]


def test_a_reader_out_of_scope_is_not_started():
    units = {"caddy.service": running("caddy.service", active="inactive"), "sonarr.service": running("sonarr.service")}
    state = observed(files=on_disk(*CADDY_FILES, digest=B), units=units)
    plan = planner.plan(state, OLD, OLD, scope=frozenset({"sonarr"}))
    assert done(plan) == ["modify file:/etc/caddy/sites/sonarr"]


def test_a_reader_out_of_scope_learns_of_a_new_fragment_by_name():
    new_file = file("/etc/prometheus/rules/radarr.yml", "radarr")
    before = unit("prometheus", reload_on=())
    after = unit("prometheus", reload_on=(new_file.id,))
    services = [service("prometheus", "infrastructure"), service("radarr")]
    state = observed(units={"prometheus.service": running("prometheus.service")})
    plan = planner.plan(
        state, manifest(services, after, new_file), manifest(services[:1], before), scope=frozenset({"radarr"})
    )
    assert done(plan) == [f"create {new_file.id}", "reload unit:prometheus.service"]


def test_a_reader_that_was_never_applied_is_left_alone():
    services = [service("prometheus", "infrastructure"), service("radarr")]
    new_file = file("/etc/prometheus/rules/radarr.yml", "radarr")
    items = [unit("prometheus", reload_on=(new_file.id,)), new_file]
    state = observed(units={"prometheus.service": running("prometheus.service")})
    plan = planner.plan(state, manifest(services, *items), None, scope=frozenset({"radarr"}))
    assert done(plan) == [f"create {new_file.id}"]


def test_what_a_unit_of_the_scope_needs_is_made_whoever_has_it():
    """Found with `ROLE=radarr`: the mount point that it shares with plex was plex's, and radarr could not start."""
    services = [service("plex"), service("radarr")]
    shared = m.Directory("/srv/media", "plex", create_only=True)
    items = [shared, unit("plex", needs=(shared.id,)), unit("radarr", needs=(shared.id,))]
    units = {name: running(name, active="inactive") for name in ("plex.service", "radarr.service")}
    plan = planner.plan(observed(units=units), manifest(services, *items), None, scope=frozenset({"radarr"}))
    assert done(plan) == ["create directory:/srv/media", "start unit:radarr.service"]
    assert shared.id in planner.merge(manifest(services, *items), None, frozenset({"radarr"})).by_id()


def test_removal_within_the_scope_only():
    state = observed(files=on_disk(*CADDY_FILES), units=UNITS)
    plan = planner.plan(state, manifest([]), OLD, scope=frozenset({"sonarr"}))
    assert done(plan) == [
        "stop unit:sonarr.service",
        "disable unit:sonarr.service",
        "remove file:/etc/caddy/sites/sonarr",
        "reload unit:caddy.service",
    ]
    assert planner.plan(state, manifest([]), OLD, scope=frozenset({"radarr"})).actions == []


def test_what_moves_out_of_the_scope_waits_for_its_new_owner():
    shared = file("/etc/shared", "sonarr")
    old = manifest(SERVICES, shared)
    new = manifest(SERVICES, replace(shared, service="caddy", digest=B))
    state = observed(files=on_disk("/etc/shared"))
    assert planner.plan(state, new, old, scope=frozenset({"sonarr"})).converged
    assert planner.merge(new, old, {"sonarr"}).by_id()[shared.id] == shared
    assert done(planner.plan(state, new, old, scope=frozenset({"caddy"}))) == ["modify file:/etc/shared"]
    merged = planner.merge(new, old, {"caddy"})
    assert [item.service for item in merged.items] == ["caddy"]


def test_the_scope_brings_along_what_it_refers_to():
    """Items that services share have one owner, which need not be in scope."""
    items = [
        m.Group("media", "caddy", gid=3000),
        m.Group("sonarr", "sonarr", gid=2041),
        m.Group("unused", "caddy", gid=3001),
        m.User("sonarr", "sonarr", uid=2041, group="sonarr", groups=("media",)),
        m.Directory("/etc/hearth", "caddy"),
        m.Directory("/etc/hearth/x", "caddy"),
        m.Directory("/etc/other", "caddy"),
        file("/etc/hearth/x/sonarr", "sonarr", holes=("caddy/token",)),
        m.Secret("caddy/token", "caddy"),
        m.Secret("caddy/other", "caddy"),
        m.Image("x/y:1", "caddy"),
        unit("sonarr", enabled=None, restart_on=("image:x/y:1", "file:/etc/other/x")),
        file("/etc/other/x", "caddy"),
    ]
    new = manifest(SERVICES, *items)
    plan = planner.plan(observed(), new, None, scope=frozenset({"sonarr"}))
    expected = [
        "create group:media",
        "create group:sonarr",
        "create user:sonarr",
        "store secret:caddy/token",
        "create directory:/etc/hearth",
        "create directory:/etc/hearth/x",
        "create file:/etc/hearth/x/sonarr",
        "pull image:x/y:1",
        "start unit:sonarr.service",
    ]
    assert done(plan) == expected
    merged = planner.merge(new, None, {"sonarr"})
    assert {item.id for item in merged.items} == {entry.partition(" ")[2] for entry in expected}
    # They stay when the service that brought them goes: they are declared.
    assert (
        planner.plan(observed(), manifest(SERVICES[:1], *items[:3]), merged, scope=frozenset({"sonarr"})).problems == []
    )


def test_problems_out_of_scope_do_not_stop_the_scope():
    items = [m.Storage("/srv/x", "caddy"), unit("sonarr")]
    found = storage.StorageFacts("/srv/x", exists=True, is_directory=True, empty=False, entries=("db",))
    state = observed(storage={"/srv/x": found}, units=UNITS)
    assert planner.plan(state, manifest(SERVICES, *items), None, scope=frozenset({"sonarr"})).converged
    assert planner.plan(state, manifest(SERVICES, *items), None).problems


# -- daemon-reload ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (Action("file:/etc/systemd/system/x.service", "create", "x"), True),
        (Action("file:/etc/systemd/system/x.service.d/10.conf", "remove", "x"), True),
        (Action("file:/etc/containers/systemd/x.container", "modify", "x"), True),
        (Action("symlink:/etc/systemd/system/x.service", "create", "x"), True),
        (Action("file:/etc/systemd/journald.conf", "modify", "x"), False),
        (Action("directory:/etc/systemd/system/x.service.d", "create", "x"), False),
        (Action("unit:fine.service", "restart", "x"), False),
        (Action("unit:changed.service", "restart", "x"), True),
        (Action("unit:changed.service", "stop", "x"), False),
        (Action("unit:new.service", "start", "x"), True),
    ],
)
def test_daemon_reload(action, expected):
    units = {
        "fine.service": running("fine.service"),
        "changed.service": running("changed.service", need_daemon_reload=True),
        "new.service": o.UnitState("new.service"),
    }
    assert planner.needs_daemon_reload([action], observed(units=units)) is expected
    assert planner.needs_daemon_reload([action]) is (expected and action.kind != "unit")


# -- ports -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "held", "clash"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "192.0.2.1", False),
        ("127.0.0.1", "0.0.0.0", True),
        ("127.0.0.1", "*", True),
        ("127.0.0.1", "::", False),
        ("::1", "::", True),
        ("::1", "0.0.0.0", False),
        ("*", "192.0.2.1", True),
        ("*", "2001:db8::1", True),
        ("0.0.0.0", "::", False),
    ],
)
def test_addresses(wanted, held, clash):
    assert planner.addresses_clash(wanted, held) is clash


LISTENING = service("sonarr", listeners=("tcp/127.0.0.1/8989",))
STOPPED = {"sonarr.service": running("sonarr.service", active="inactive", sub="dead")}


@pytest.mark.parametrize(
    ("listener", "message", "remedy"),
    [
        (
            o.Listener("tcp", "0.0.0.0", 8989, "nginx", 12, ("nginx.service",)),
            "tcp port 8989, which sonarr listens on, is held by nginx (process 12, nginx.service)",
            "systemctl disable --now nginx.service",
        ),
        (
            o.Listener("tcp", "127.0.0.1", 8989, "python3", 13, ("session-3.scope",)),
            "is held by python3 (process 13)",
            "stop process 13",
        ),
        (o.Listener("tcp", "*", 8989, "systemd", 1, ("x.socket", "x.service")), "x.socket", "disable --now x.socket"),
        (o.Listener("tcp", "127.0.0.1", 8989, "conmon", 14, ("sonarr.service",)), "", ""),  # the plan's own
        (o.Listener("tcp", "127.0.0.1", 8989, "old", 15, ("old.service",)), "", ""),  # stopped by this plan
        (o.Listener("tcp", "127.0.0.1", 8989, "x", 16, ("libpod-1.scope", "sonarr.service")), "", ""),
        (o.Listener("tcp", "192.0.2.1", 8989, "nginx", 12), "", ""),
        (o.Listener("udp", "127.0.0.1", 8989, "nginx", 12), "", ""),
        (o.Listener("tcp", "127.0.0.1", 8990, "nginx", 12), "", ""),
    ],
)
def test_a_port_that_somebody_else_holds(listener, message, remedy):
    state = observed(units=STOPPED, listeners=[listener, listener])
    plan = planner.plan(state, manifest([LISTENING], unit("sonarr")), manifest([service("old")], unit("old")))
    assert [message in problem.message and remedy in problem.remedy for problem in plan.problems] == [True] * bool(
        message
    )


def test_a_port_of_a_running_service_is_its_own_business():
    state = observed(units=UNITS, listeners=[o.Listener("tcp", "127.0.0.1", 8989, "nginx", 12)])
    assert planner.plan(state, manifest([LISTENING], unit("sonarr")), None).converged


def test_a_port_of_a_unit_with_two_names():
    ssh = replace(running("ssh.service"), names=frozenset({"ssh.service", "sshd.service"}), active="inactive")
    services = [service("sshd", listeners=("tcp/*/22",))]
    state = observed(
        units={"sshd.service": ssh}, listeners=[o.Listener("tcp", "0.0.0.0", 22, "sshd", 9, ("ssh.service",))]
    )
    assert planner.plan(state, manifest(services, m.Unit("sshd.service", "sshd")), None).problems == []


def test_a_port_of_the_kernel_is_mentioned():
    state = observed(units=STOPPED, listeners=[o.Listener("tcp", "*", 8989)])
    plan = planner.plan(state, manifest([LISTENING], unit("sonarr")), None)
    assert plan.problems == []
    assert ["held by the kernel" in notice.message for notice in plan.notices] == [True]


def test_ports_that_could_not_be_read_are_unknown():
    state = observed(units=STOPPED, errors={"listener": "ss is not installed"})
    [notice] = planner.plan(state, manifest([LISTENING], unit("sonarr")), None).unknown
    assert notice.message == "whether the ports of sonarr are free is not known: ss is not installed"


# -- speed -----------------------------------------------------------------------------------------------------


def test_two_hundred_converged_services_have_an_empty_plan():
    services = [service(f"s{number:03}", requires=("s000",) if number else ()) for number in range(200)]
    items: list[m.Item] = []
    for entry in services:
        items.append(unit(entry.name, restart_on=(f"file:/etc/{entry.name}/",)))
        items += [file(f"/etc/{entry.name}/{number}", entry.name) for number in range(5)]
    wanted = manifest(services, *items)
    state = observed(
        files=on_disk(*(item.name for item in items if isinstance(item, m.File))),
        units={f"{entry.name}.service": running(f"{entry.name}.service") for entry in services},
    )
    assert planner.plan(state, wanted, wanted).converged
    assert planner.plan(state, wanted, wanted, scope=frozenset({"s001"})).converged
