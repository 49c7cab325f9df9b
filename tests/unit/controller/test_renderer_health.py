# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state of services (health.py), and the plan of a whole host (registry.py)."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.plugin_utils.model import Fleet
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import common, health, registry
from ansible_collections.hearth.homelab.tests.unit.controller import rendering as r

ALL: dict[str, t.Any] = {
    "nftables": r.FIREWALL,
    "sshd": r.SSHD,
    "podman": r.PODMAN,
    "postgresql": r.merged(r.POSTGRESQL, provides={}),
    "node_exporter": r.EXPORTER,
    "miniflux": r.merged(r.MINIFLUX, database={}, requires=["postgresql", "elsewhere"]),
    "sonarr": r.SONARR,
}


def state(contribution: dict[str, t.Any], core: dict[str, t.Any] | None = None, **others: t.Any) -> m.ServiceState:
    made = r.fleet(r.host("forge", {**others, "app": contribution}, core))
    return r.plan_of(health.render, made).manifest.services["app"]


def test_the_state_of_a_container() -> None:
    found = state(r.SONARR, {"hearth_image_overrides": {"ghcr.io": "registry/standin:1"}}, podman=r.PODMAN)
    assert found == m.ServiceState(
        "app",
        "services",
        summary="TV series management",
        requires=("podman",),
        units=("app.service",),
        checks=(m.Check("http", url="http://127.0.0.1:8990/ping"),),
        start_period=300,
        settle=10,
        listeners=("tcp/127.0.0.1/8990", "tcp/192.0.2.10/9000", "udp/192.0.2.10/9000"),
        url="https://sonarr.example.com/",
        stand_in=True,
    )


def test_the_state_of_a_native_service_with_a_database() -> None:
    found = state(r.MINIFLUX, None, postgresql=r.POSTGRESQL, sonarr=r.SONARR)
    assert (found.requires, found.wants, found.stand_in) == (("postgresql",), ("sonarr",), False)


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({}, ()),
        ({"health": {"tcp": {"port": "http"}}}, (m.Check("tcp", address="192.0.2.10", port=9100),)),
        (
            {"health": {"http": {"port": "http", "path": "/x", "status": 401, "headers": {"A": "b"}}, "timeout": "9s"}},
            (m.Check("http", url="http://192.0.2.10:9100/x", status=401, headers={"A": "b"}, timeout=9.0),),
        ),
        (
            {"listen__http__address": "any", "listen__http__from": [], "health": {"http": {"port": "http"}}},
            (m.Check("http", url="http://127.0.0.1:9100/"),),
        ),
        # its certificate does not name an address
        (
            {"route": {"name": "x", "to": "http", "scheme": "https"}, "health": {"http": {"port": "http"}}},
            (m.Check("tcp", address="192.0.2.10", port=9100),),
        ),
        (
            {"health": {"command": {"argv": ["/usr/bin/pg_isready"], "user": "postgres"}}},
            (m.Check("command", argv=("/usr/bin/pg_isready",), user="postgres"),),
        ),
    ],
)
def test_checks(change: dict[str, t.Any], check: tuple[m.Check, ...]) -> None:
    assert state(r.merged(r.EXPORTER, **change)).checks == check


def test_a_check_where_the_host_has_no_address_is_an_error() -> None:
    made = r.fleet(r.host("luna", {"app": r.merged(r.EXPORTER, health={"tcp": {"port": "http"}})}))
    with pytest.raises(common.RenderError, match="http listens on lan, where luna has no address"):
        r.plan_of(health.render, made, "luna")


def test_ipv6_in_urls_and_listeners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(r.ADDRESSES, "forge", {"lan": ("2001:db8:1::10/64", "192.0.2.10")})
    found = state(r.merged(r.EXPORTER, health={"http": {"port": "http"}}))
    assert found.checks[0].url == "http://[2001:db8:1::10]:9100/"
    assert found.listeners == ("tcp/192.0.2.10/9100", "tcp/2001:db8:1::10/9100")


def fleet(**services: t.Any) -> Fleet:
    return r.fleet(r.host("forge", {**ALL, **services}), r.host("nas-1", {}))


def test_a_whole_host_is_the_same_whatever_the_order_of_its_variables() -> None:
    made = fleet()
    plan = registry.render_host(made, made.hosts["forge"])
    assert set(plan.manifest.services) == set(ALL)
    again = fleet()
    assert registry.render_host(again, again.hosts["forge"]).to_json() == plan.to_json()
    # Every item belongs to a service of the host, and every trigger is an item.
    found = plan.manifest.by_id()
    assert {item.service for item in found.values()} <= set(ALL)
    triggers = {entry for item in found.values() if isinstance(item, m.Unit) for entry in item.restart_on}
    assert triggers - set(found) == set()
    # A service's unit restarts for what is its own, and for nothing else.
    for item in found.values():
        if isinstance(item, m.Unit):
            assert {found[entry].service for entry in (*item.restart_on, *item.reload_on)} <= {item.service}


def test_all_problems_of_a_host_come_together() -> None:
    made = fleet(
        sonarr=r.merged(r.SONARR, networks=["medai"]),
        node_exporter=r.merged(r.EXPORTER, listen__http__from=["lna"]),
        caddy=r.merged(r.PODMAN, provides={"route": "caddyy"}),
    )
    with pytest.raises(registry.HostRenderError) as error:
        registry.render_host(made, made.hosts["forge"])
    assert [(problem.service, problem.path) for problem in error.value.problems] == [
        ("caddy", "provides.route"),
        ("node_exporter", "listen.http.from"),
        ("sonarr", "networks"),
    ]
    assert "there is no renderer 'caddyy'\n    did you mean caddy?" in str(error.value)


def test_two_services_with_one_file_are_a_problem_of_the_second() -> None:
    files = [{"path": "/etc/shared.conf", "content": "one\n"}]
    made = fleet(
        node_exporter=r.merged(r.EXPORTER, files=files),
        sshd=r.merged(r.SSHD, files=[{"path": "/etc/shared.conf", "content": "two\n"}]),
    )
    with pytest.raises(
        registry.HostRenderError, match=r"file:/etc/shared\.conf is declared by sshd and by node_exporter"
    ):
        registry.render_host(made, made.hosts["forge"])


def test_contracts_without_a_provider_are_standing_notices() -> None:
    made = fleet(postgresql=r.POSTGRESQL)
    del made.hosts["forge"].services["nftables"]
    del made.hosts["forge"].services["postgresql"]
    plan = registry.render_host(made, made.hosts["forge"])
    assert "route: nothing provides it; declared by miniflux, sonarr" in plan.notices
    assert "firewall: nothing provides it; declared by node_exporter, sonarr, sshd" in plan.notices
