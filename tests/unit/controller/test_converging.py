# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Scope, results and redaction of the converge action."""

from __future__ import annotations

import base64

import pytest
from ansible.errors import AnsibleActionFail
from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.plugin_utils import converging, secret_values
from ansible_collections.hearth.homelab.plugins.plugin_utils.plan import DuplicateItemError, HostPlan, PlanBuilder


def plan() -> HostPlan:
    builder = PlanBuilder("forge", "debian13", "amd64")
    builder.services = {
        "base": m.ServiceState("base", "core"),
        "postgresql": m.ServiceState("postgresql", "infrastructure"),
        "miniflux": m.ServiceState("miniflux", "services", requires=("postgresql",)),
        "reader": m.ServiceState("reader", "services", requires=("miniflux",)),
    }
    builder.add(m.Secret("miniflux/admin_password", "miniflux"))
    builder.add(m.Secret("reader/key", "reader"))
    builder.file("miniflux", "/etc/miniflux.conf", "password=@@hearth:miniflux/admin_password@@\n")
    return builder.build()


@pytest.mark.parametrize(
    ("only", "tiers", "expected"),
    [
        (None, None, None),
        (["miniflux"], None, {"miniflux", "postgresql"}),
        (["reader, base"], None, {"reader", "miniflux", "postgresql", "base"}),
        (None, ["core", "infrastructure"], {"base", "postgresql"}),
    ],
)
def test_scope(only: list[str] | None, tiers: list[str] | None, expected: set[str] | None) -> None:
    found = converging.scope(plan().manifest, only=only, tiers=tiers)
    assert found == (None if expected is None else frozenset(expected))


def test_scope_of_an_unknown_service_names_the_nearest() -> None:
    with pytest.raises(AnsibleActionFail, match=r"host forge has no service 'minflux'.*did you mean miniflux"):
        converging.scope(plan().manifest, only=["minflux"], tiers=None)


def test_a_service_of_another_host_is_nothing_to_do_here() -> None:
    assert converging.scope(plan().manifest, only=["plex"], tiers=None, elsewhere=lambda: {"plex"}) == frozenset()


def test_only_secrets_in_scope_are_compared() -> None:
    manifest = plan().manifest
    assert converging.secret_names(manifest, None) == ["miniflux/admin_password", "reader/key"]
    assert converging.secret_names(manifest, frozenset({"reader"})) == ["reader/key"]


def test_a_file_with_a_secret_is_planned_with_its_hole() -> None:
    item = plan().manifest.by_id()["file:/etc/miniflux.conf"]
    assert isinstance(item, m.File)
    assert item.holes == ("miniflux/admin_password",)


def test_two_services_may_not_declare_one_file_differently() -> None:
    builder = PlanBuilder("forge", "debian13", "amd64")
    builder.file("a", "/etc/x", "one")
    with pytest.raises(DuplicateItemError, match="file:/etc/x is declared by a and by b"):
        builder.file("b", "/etc/x", "two")


def test_equal_inputs_give_equal_bytes() -> None:
    assert plan().to_json() == plan().to_json()
    assert HostPlan.from_json(plan().to_json()) == plan()


def test_problems_name_host_service_item_and_remedy() -> None:
    answer = {
        "status": "problems",
        "plan": {
            "actions": [],
            "unknown": [],
            "notices": [],
            "problems": [
                {
                    "service": "caddy",
                    "item": "unit:caddy.service",
                    "message": "port 80 is held by nginx",
                    "remedy": "stop it",
                }
            ],
        },
    }
    with pytest.raises(AnsibleActionFail) as caught:
        converging.compared(plan(), answer, check=False)
    text = str(caught.value)
    for part in ("host forge", "nothing was changed", "caddy", "port 80 is held by nginx", "stop it"):
        assert part in text


def test_a_service_taken_back_fails_the_task_by_name() -> None:
    result = converging.applied(
        "forge",
        {"actions": []},
        {"ok": False, "changed": True, "actions": [], "taken_back": {"sonarr": "never answered /ping"}},
    )
    assert result["failed"]
    assert "service sonarr was taken back: never answered /ping" in result["msg"]


def test_redaction_finds_every_form() -> None:
    secret = "s3cret/value+1"
    found = converging.redact(
        {"a": [f"x{secret}y", base64.b64encode(secret.encode()).decode(), "s3cret%2Fvalue%2B1"], "b": 1}, [secret]
    )
    assert found == {"a": ["x********y", "********", "********"], "b": 1}


def test_keyed_digests_depend_on_the_nonce() -> None:
    one = secret_values.keyed_digests({"a/b": "x"}, ["a/b"], "n1")
    two = secret_values.keyed_digests({"a/b": "x"}, ["a/b"], "n2")
    assert one.keys() == two.keys() == {"a/b"}
    assert one != two


def test_flatten_reads_people() -> None:
    data = {"miniflux": {"key": 1}, "people": {"ana": {"password_hash": "$2b$x"}}, "sops": "metadata"}
    assert secret_values.flatten(data) == {"miniflux/key": "1", "people/ana": "$2b$x"}
