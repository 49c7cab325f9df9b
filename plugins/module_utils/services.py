# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start what changed, in dependency order, and watch it until it is settled.

A service waits for what it requires to be well once, then its units are acted on, then its checks must pass within
its start period; from then on it must run for its settle time without a restart. All of that goes on at the same
time for all services: fifteen services settle in one settle time, not in fifteen.

The rules are here, the host is behind ``Host``: tests drive them with a clock of their own. Standard library only.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from ansible_collections.hearth.homelab.plugins.module_utils.health import UnitStatus
from ansible_collections.hearth.homelab.plugins.module_utils.manifest import Check, Manifest, ServiceState

#: Seconds between two looks.
TICK = 0.5

#: Seconds between two rounds of a service's checks while it starts.
CHECK_INTERVAL = 1.0

#: Seconds after which a unit that is neither running nor about to be has not started.
INACTIVE_LIMIT = 3.0

#: Seconds between two progress lines.
PROGRESS = 5.0

Phase = t.Literal["waiting", "starting", "settling", "well", "held", "unhealthy", "returning", "returned"]


class Host(t.Protocol):
    """What the rules need of a host."""

    def clock(self) -> float: ...
    def sleep(self, seconds: float) -> None: ...
    def say(self, text: str) -> None: ...
    def show(self, units: t.Sequence[str]) -> dict[str, UnitStatus]: ...
    def check(self, checks: t.Mapping[str, t.Sequence[Check]]) -> dict[str, list[str]]: ...

    def prepare(self, service: str) -> str:
        """Whatever must be done right before a service starts (databases); empty, or why it cannot start."""

    def act(self, service: str, verb: str, units: t.Sequence[str]) -> str:
        """``systemctl VERB`` on units; empty, or why it failed."""

    def hold(self, service: str, reason: str) -> dict[str, tuple[str, ...]]:
        """Take a service and what requires it back; each with the units that run again (in their old state)."""

    def last_lines(self, units: t.Sequence[str]) -> str:
        """The last lines that units logged, for the reason."""


@dataclass
class Watch:
    """One service that is being acted on, or watched because something that it requires is."""

    state: ServiceState
    start: list[str] = field(default_factory=list)
    restart: list[str] = field(default_factory=list)
    reload: list[str] = field(default_factory=list)
    units: tuple[str, ...] = ()
    after: frozenset[str] = frozenset()  # services that are waited for when they are watched, too
    changed: bool = True  # False: only watched; there is nothing of it to take back
    phase: Phase = "waiting"
    since: float = 0.0
    reached: float = 0.0  # when the checks passed first
    checked: float = -1e9
    said: float = 0.0
    marks: dict[str, tuple[str, int]] = field(default_factory=dict)
    found: list[str] = field(default_factory=list)
    reason: str = ""

    @property
    def name(self) -> str:
        return self.state.name

    @property
    def begun(self) -> bool:
        return self.phase != "waiting"

    @property
    def over(self) -> bool:
        return self.phase in ("well", "held", "unhealthy", "returned")


def requiring(manifest: Manifest, services: t.Collection[str]) -> set[str]:
    """``services`` and everything that requires one of them, directly or not."""
    found = set(services)
    while True:
        more = {
            name
            for name, state in manifest.services.items()
            if name not in found and not found.isdisjoint(state.requires)
        }
        if not more:
            return found
        found |= more


class Services:
    """The loop. ``watches`` by service; after ``run`` each is well, held, unhealthy or returned."""

    def __init__(self, host: Host, watches: t.Iterable[Watch], old: t.Mapping[str, ServiceState] | None = None) -> None:
        self.host = host
        self.watches = {watch.name: watch for watch in watches}
        self.old = dict(old or {})

    def run(self) -> None:
        while True:
            self._begin_ready()
            watching = [watch for watch in self.watches.values() if not watch.over and watch.phase != "waiting"]
            if watching:
                self._look(watching)
            elif not any(watch.phase == "waiting" for watch in self.watches.values()):
                return
            if any(watch.phase in ("starting", "settling", "returning") for watch in self.watches.values()):
                self.host.sleep(TICK)

    # -- beginning ----------------------------------------------------------------------------------------------

    def _ready(self, watch: Watch) -> bool:
        """What it requires was well once; what it merely comes after has been dealt with."""
        for name in watch.after:
            other = self.watches.get(name)
            if other is None or other is watch:
                continue
            if name in watch.state.requires:
                # One that is over will not get better by waiting; what was changed and requires a held one is held.
                if other.phase not in ("settling", "well") and not other.over:
                    return False
            elif other.phase in ("waiting", "starting"):
                return False
        return True

    def _begin_ready(self) -> None:
        again = True
        while again:
            again = False
            waiting = [watch for watch in self.watches.values() if watch.phase == "waiting"]
            ready = [watch for watch in waiting if self._ready(watch)]
            if not ready and waiting and all(watch.over or watch.phase == "waiting" for watch in self.watches.values()):
                # Only wants can go round in a circle (compose refuses circles of requires): one has to be first.
                ready = waiting[:1]
            for watch in ready:
                if not watch.begun:  # holding another one may have taken it along
                    self._begin(watch)
                    again = again or watch.over

    def _begin(self, watch: Watch) -> None:
        problem = self.host.prepare(watch.name)
        for verb, units in (("start", watch.start), ("restart", watch.restart), ("reload", watch.reload)):
            if units and not problem:
                problem = self.host.act(watch.name, verb, units)
        watch.since = watch.said = self.host.clock()
        if problem:
            self._fail(watch, problem)
        elif not watch.units and not watch.state.checks:
            watch.phase = "well"
        else:
            watch.phase = "starting"

    # -- watching -----------------------------------------------------------------------------------------------

    def _look(self, watching: list[Watch]) -> None:
        statuses = self.host.show(sorted({unit for watch in watching for unit in watch.units}))
        now = self.host.clock()
        due = {
            watch.name: watch.state.checks
            for watch in watching
            if all(statuses[unit].running for unit in watch.units)
            and (
                (watch.phase in ("starting", "returning") and now - watch.checked >= CHECK_INTERVAL)
                or (watch.phase == "settling" and now - watch.reached >= watch.state.settle)
            )
        }
        results = self.host.check(due) if due else {}
        now = self.host.clock()
        for watch in watching:
            if watch.name in results:
                watch.checked, watch.found = now, results[watch.name]
            if watch.over or watch.phase == "waiting":
                continue  # taken back while another one was looked at
            if watch.phase == "settling":
                self._settling(watch, statuses, results, now)
            else:
                self._starting(watch, statuses, results, now)

    def _starting(
        self, watch: Watch, statuses: t.Mapping[str, UnitStatus], results: t.Mapping[str, list[str]], now: float
    ) -> None:
        elapsed = now - watch.since
        if watch.name in results and not results[watch.name]:
            watch.marks = {unit: (statuses[unit].invocation, statuses[unit].restarts) for unit in watch.units}
            watch.reached = now
            watch.phase = "settling" if watch.phase == "starting" else "returned"
            return
        units = [statuses[unit] for unit in watch.units]
        failed = [unit.name for unit in units if unit.failed]
        idle = [unit.name for unit in units if unit.active == "inactive" and not unit.job]
        missing = [
            unit.name
            for unit in units
            if unit.load in ("not-found", "bad-setting", "error") and unit.active == "inactive"
        ]
        if failed:
            self._fail(
                watch, f"{', '.join(failed)} failed ({', '.join(statuses[name].result for name in failed)})", failed
            )
        elif missing:
            self._fail(watch, f"{', '.join(missing)}: {statuses[missing[0]].load}", missing)
        elif idle and elapsed >= INACTIVE_LIMIT:
            self._fail(watch, f"{', '.join(idle)} did not start, or ended by itself", idle)
        elif elapsed >= watch.state.start_period:
            waiting = [unit.name for unit in units if not unit.running]
            found = watch.found or [f"{unit} is {statuses[unit].active} ({statuses[unit].sub})" for unit in waiting]
            self._fail(watch, f"not healthy after {watch.state.start_period} s: {'; '.join(found)}", list(watch.units))
        elif now - watch.said >= PROGRESS:
            watch.said = now
            self.host.say(f"waiting for {watch.name} ({elapsed:.0f} s of {watch.state.start_period} s)")

    def _settling(
        self, watch: Watch, statuses: t.Mapping[str, UnitStatus], results: t.Mapping[str, list[str]], now: float
    ) -> None:
        for unit in watch.units:
            status = statuses[unit]
            if status.failed:
                self._fail(watch, f"{unit} failed ({status.result})", [unit])
                return
            if (status.invocation, status.restarts) != watch.marks[unit] or status.active not in (
                "active",
                "reloading",
            ):
                text = "restarted" if status.active in ("active", "activating") else f"became {status.active}"
                self._fail(watch, f"{unit} {text} within {watch.state.settle} s after its start", [unit])
                return
        if watch.name in results:
            if not results[watch.name]:
                watch.phase = "well"
            elif now - watch.since >= max(watch.state.start_period, watch.state.settle + 5):
                self._fail(watch, f"not healthy: {'; '.join(results[watch.name])}", list(watch.units))
            else:
                watch.phase = "starting"  # one unanswered check is no verdict before the start period is over
                watch.checked = now

    def _fail(self, watch: Watch, reason: str, units: t.Sequence[str] = ()) -> None:
        """Take it back with what requires it, and watch what runs again."""
        lines = self.host.last_lines(units) if units else ""
        watch.reason = f"{reason}\n{lines}".strip()
        if watch.phase == "returning":
            watch.phase = "returned"
            watch.reason = f"the previous state is not healthy either: {watch.reason}"
            return
        if not watch.changed:
            watch.phase = "unhealthy"
            return
        now = self.host.clock()
        for name, running in self.host.hold(watch.name, watch.reason).items():
            held = self.watches.get(name)
            if held is None:
                continue
            held.reason = held.reason or f"requires {watch.name}, which is held back"
            previous = self.old.get(name)
            if running and previous is not None:
                held.state, held.units, held.phase, held.checked = previous, running, "returning", -1e9
                held.since = held.said = now
                held.found = []
            else:
                held.phase = "held"
