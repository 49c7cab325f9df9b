# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starting in order, settling together, taking back alone: with a clock of their own."""

from __future__ import annotations

import typing as t

from ansible_collections.hearth.homelab.plugins.module_utils import services as s
from ansible_collections.hearth.homelab.plugins.module_utils.health import UnitStatus
from ansible_collections.hearth.homelab.plugins.module_utils.manifest import Check, Manifest, ServiceState


class World:
    """Units that behave as told: name -> function of the seconds since its start -> (active, restarts)."""

    def __init__(self, behaviour: dict[str, t.Callable[[float], tuple[str, int]]]) -> None:
        self.time, self.behaviour = 0.0, behaviour
        self.started: dict[str, float] = {}
        self.acts: list[tuple[float, str, str]] = []
        self.held: list[str] = []
        self.closure: dict[str, dict[str, tuple[str, ...]]] = {}
        self.unwell: set[str] = set()
        self.unprepared: dict[str, str] = {}
        self.said: list[str] = []

    def clock(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        assert self.time < 1000, "endless"

    def say(self, text: str) -> None:
        self.said.append(text)

    def show(self, units: t.Sequence[str]) -> dict[str, UnitStatus]:
        result = {}
        for unit in units:
            begun = self.started.get(unit)
            active, restarts = ("inactive", 0) if begun is None else self.behaviour[unit](self.time - begun)
            result[unit] = UnitStatus(unit, "loaded", active, restarts=restarts, invocation=f"{unit}{restarts}")
        return result

    def check(self, checks: t.Mapping[str, t.Sequence[Check]]) -> dict[str, list[str]]:
        return {name: ["no answer"] if name in self.unwell else [] for name in checks}

    def prepare(self, service: str) -> str:
        return self.unprepared.get(service, "")

    def act(self, service: str, verb: str, units: t.Sequence[str]) -> str:
        for unit in units:
            self.acts.append((self.time, verb, unit))
            self.started[unit] = self.time
        return ""

    def hold(self, service: str, reason: str) -> dict[str, tuple[str, ...]]:
        self.held.append(service)
        return self.closure.get(service, {service: ()})

    def last_lines(self, units: t.Sequence[str]) -> str:
        return "log line"


def fine(after: float) -> t.Callable[[float], tuple[str, int]]:
    return lambda seconds: ("active", 0) if seconds >= after else ("activating", 0)


def watch(name: str, *requires: str, **more: t.Any) -> s.Watch:
    state = ServiceState(name, "services", requires=requires, start_period=30, settle=10)
    more.setdefault("start", [f"{name}.service"])
    return s.Watch(state, units=(f"{name}.service",), after=frozenset(requires), **more)


def test_fifteen_services_settle_together() -> None:
    world = World({f"s{n}.service": fine(1) for n in range(15)})
    loop = s.Services(world, [watch(f"s{n}") for n in range(15)])
    loop.run()
    assert {entry.phase for entry in loop.watches.values()} == {"well"}
    assert world.time < 13


def test_dependents_wait_for_well_once_not_for_settled() -> None:
    world = World({"db.service": fine(2), "app.service": fine(1), "top.service": fine(0)})
    loop = s.Services(world, [watch("top", "app"), watch("app", "db"), watch("db")])
    loop.run()
    assert [unit for _, _, unit in world.acts] == ["db.service", "app.service", "top.service"]
    assert world.acts[2][0] < 6
    assert world.time < 16


def test_a_failed_unit_takes_back_its_service_and_what_requires_it() -> None:
    world = World(
        {"bad.service": lambda seconds: ("failed" if seconds > 1 else "activating", 0), "good.service": fine(0)}
    )
    world.closure = {"bad": {"bad": (), "dep": ()}}
    loop = s.Services(world, [watch("bad"), watch("dep", "bad"), watch("good")])
    loop.run()
    assert world.held == ["bad"]
    assert {name: entry.phase for name, entry in loop.watches.items()} == {"bad": "held", "dep": "held", "good": "well"}
    assert "log line" in loop.watches["bad"].reason
    assert "requires bad" in loop.watches["dep"].reason
    assert ("start", "dep.service") not in {(verb, unit) for _, verb, unit in world.acts}


def test_the_start_period_ends_in_taking_back() -> None:
    world = World({"slow.service": fine(0)})
    world.unwell = {"slow"}
    loop = s.Services(world, [watch("slow")])
    loop.run()
    assert loop.watches["slow"].phase == "held"
    assert 30 <= world.time < 33
    assert "not healthy after 30 s: no answer" in loop.watches["slow"].reason
    assert any(text.startswith("waiting for slow (5 s of 30 s)") for text in world.said)


def test_a_restart_within_the_settle_time_is_a_failure() -> None:
    # A check that looks once would have passed.
    world = World({"loop.service": lambda seconds: ("active", int(seconds // 4))})
    loop = s.Services(world, [watch("loop")])
    loop.run()
    assert loop.watches["loop"].phase == "held"
    assert "restarted within 10 s" in loop.watches["loop"].reason


def test_restarts_before_the_checks_pass_are_tolerated() -> None:
    world = World({"slow.service": lambda seconds: ("active", 2) if seconds > 8 else ("activating", int(seconds // 4))})
    loop = s.Services(world, [watch("slow")])
    loop.run()
    assert loop.watches["slow"].phase == "well"


def test_a_unit_that_ends_by_itself_has_not_started() -> None:
    world = World({"gone.service": lambda _: ("inactive", 0)})
    loop = s.Services(world, [watch("gone")])
    loop.run()
    assert loop.watches["gone"].phase == "held"
    assert world.time < 5


def test_what_cannot_be_prepared_is_not_started() -> None:
    world = World({"app.service": fine(0)})
    world.unprepared = {"app": "no such role"}
    loop = s.Services(world, [watch("app")])
    loop.run()
    assert (loop.watches["app"].phase, loop.watches["app"].reason) == ("held", "no such role")
    assert world.acts == []


def test_the_old_state_is_watched_after_taking_back() -> None:
    world = World(
        {"app.service": lambda seconds: ("failed" if seconds > 1 else "activating", 0), "old.service": fine(2)}
    )
    world.closure = {"app": {"app": ("old.service",)}}
    world.started["old.service"] = 0.0
    old = ServiceState("app", "services", start_period=20)
    loop = s.Services(world, [watch("app")], {"app": old})
    loop.run()
    assert loop.watches["app"].phase == "returned"
    assert loop.watches["app"].reason.startswith("app.service failed")


def test_an_unchanged_dependent_is_reported_not_taken_back() -> None:
    world = World({"db.service": fine(0), "app.service": lambda _: ("failed", 0)})
    world.started["app.service"] = 0.0
    loop = s.Services(world, [watch("db"), watch("app", "db", start=[], changed=False)])
    loop.run()
    assert loop.watches["app"].phase == "unhealthy"
    assert world.held == []


def test_wants_in_a_circle_do_not_wait_for_ever() -> None:
    world = World({"a.service": fine(0), "b.service": fine(0)})
    one, two = watch("a"), watch("b")
    one.after, two.after = frozenset({"b"}), frozenset({"a"})
    loop = s.Services(world, [one, two])
    loop.run()
    assert {entry.phase for entry in loop.watches.values()} == {"well"}


def test_requiring_is_transitive() -> None:
    services = {
        "a": ServiceState("a", "services"),
        "b": ServiceState("b", "services", requires=("a",)),
        "c": ServiceState("c", "services", requires=("b",)),
        "d": ServiceState("d", "services", wants=("a",)),
    }
    manifest = Manifest("h", "debian13", "amd64", services, ())
    assert s.requiring(manifest, {"a"}) == {"a", "b", "c"}
    assert s.requiring(manifest, {"c"}) == {"c"}
