# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Where data comes back from: every answer of every tier, and what follows."""

from __future__ import annotations

import itertools
import typing as t

import pytest
from ansible_collections.hearth.homelab.plugins.module_utils.preseed import (
    METHODS,
    Choice,
    Decision,
    Point,
    Policy,
    Tier,
    decide,
)
from ansible_collections.hearth.homelab.plugins.module_utils.storage import State

NOW = 1_000_000.0
HOUR = 3600.0
DAY = 24 * HOUR


def tier(method: str, *ages: float, name: str = "", ledger: bool = False) -> Tier:
    points = tuple(Point(NOW - age, f"{method}-{age:g}") for age in ages)
    return Tier(method, name or method, "points" if points else "empty", points, ledger=ledger)


def silent(method: str, reason: str = "unreachable") -> Tier:
    return Tier(method, method, "unknown", reason=reason)


def choose(*tiers: Tier, state: State = "empty_marked", policy: Policy | None = None, **said: t.Any) -> Decision:
    return decide(state, tiers, policy or Policy(), now=NOW, choice=Choice(**said))


@pytest.mark.parametrize(
    ("tiers", "method"),
    [
        ([tier("replica", HOUR), tier("restic", 2 * HOUR)], "replica"),
        # Never past a newer point, whatever the order says.
        ([tier("replica", 2 * HOUR), tier("restic", HOUR)], "restic"),
        ([tier("replica", 2 * HOUR), tier("snapshot", 1800), tier("restic", HOUR)], "snapshot"),
        # The same snapshot in several tiers: the fastest way.
        ([tier("restic", HOUR), tier("snapshot", HOUR), tier("replica", HOUR)], "replica"),
        ([tier("replica"), tier("restic", HOUR)], "restic"),
        ([silent("replica"), tier("restic", HOUR)], "restic"),
        ([tier("replica", 400 * DAY)], "replica"),
    ],
)  # fmt: skip
def test_the_newest_point_comes_back(tiers: list[Tier], method: str) -> None:
    found = choose(*tiers)
    assert found.action == "restore"
    assert found.tier is not None
    assert found.tier.method == method


def test_the_policy_orders_equal_points() -> None:
    policy = Policy(order=("restic", "replica"))
    found = choose(tier("replica", HOUR), tier("restic", HOUR), policy=policy)
    assert found.tier is not None
    assert found.tier.method == "restic"


def test_an_old_point_does_not_pass_a_tier_that_is_silent() -> None:
    found = choose(silent("replica", "no route to nas-1"), tier("restic", 3 * DAY))
    assert found.action == "stop"
    assert "3 d old, more than its objective of 24 h" in found.reason
    assert "no route to nas-1" in found.reason
    assert "-e from=restic" in found.remedy
    # Who names it has decided.
    assert choose(silent("replica"), tier("restic", 3 * DAY), method="restic").action == "restore"


@pytest.mark.parametrize(
    ("tiers", "action", "says"),
    [
        ([], "empty", "no tier is declared"),
        ([tier("replica"), tier("restic")], "empty", "none has ever had data"),
        ([tier("replica"), silent("restic", "wrong password")], "stop", "wrong password"),
        ([silent("restic", "not the recorded repository")], "stop", "not the recorded repository"),
        ([tier("replica", ledger=True)], "stop", "had backups of it once"),
    ],
)  # fmt: skip
def test_an_empty_start_is_proven(tiers: list[Tier], action: str, says: str) -> None:
    for state in ("new", "empty_marked"):
        found = choose(*tiers, state=t.cast("State", state))
        assert (found.action, says in found.reason) == (action, True), found


def test_what_was_lost_never_starts_empty_by_itself() -> None:
    for tiers in ([], [tier("replica")], [tier("restic", ledger=True)]):
        found = choose(*tiers, state="lost", policy=Policy(empty_start=True))
        assert found.action == "stop"
        assert "start_empty" in found.remedy
    assert choose(state="lost", start_empty=True).action == "empty"


@pytest.mark.parametrize(("state", "action"), [("data", "none"), ("found", "stop"), ("away", "stop")])
def test_what_is_there_is_never_touched(state: State, action: str) -> None:
    for said in ({}, {"start_empty": True}, {"method": "replica"}):
        assert choose(tier("replica", HOUR), state=state, **said).action == action


def test_a_point_in_time() -> None:
    tiers = [tier("replica", HOUR, 5 * HOUR), tier("restic", 3 * HOUR)]
    found = choose(*tiers, at=NOW - 2 * HOUR)
    assert found.point == Point(NOW - 3 * HOUR, "restic-10800")
    assert choose(*tiers, at=NOW - 9 * HOUR).action == "stop"
    assert choose(*tiers, method="snapshot").reason == "no tier of its protection is snapshot"


def test_no_answer_whatever_makes_a_service_start_empty_over_a_point() -> None:
    """Every combination of answers of three tiers in every state: data that exists somewhere is never passed over."""
    answers: list[t.Callable[[str], Tier]] = [
        lambda method: tier(method, HOUR),
        lambda method: tier(method, 9 * DAY),
        tier,
        lambda method: tier(method, ledger=True),
        silent,
    ]
    seen = set()
    for state, chosen in itertools.product(("new", "empty_marked", "lost"), itertools.product(answers, repeat=3)):
        tiers = [make(method) for make, method in zip(chosen, METHODS, strict=False)]
        found = decide(t.cast("State", state), tiers, Policy(), now=NOW)
        seen.add(found.action)
        points = [point for entry in tiers for point in entry.points]
        if found.action == "empty":
            assert not points
            assert not any(entry.ledger or entry.answer == "unknown" for entry in tiers)
            assert state != "lost"
        if found.action == "restore":
            assert found.point is not None
            assert found.point.time == max(point.time for point in points)
        if found.action == "stop":
            assert found.remedy
    assert seen == {"restore", "empty", "stop"}
