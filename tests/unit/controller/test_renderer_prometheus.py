# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Targets and rules of the whole fleet, one file per host and service."""

from __future__ import annotations

import json
import shutil
import subprocess
import typing as t

import pytest
import yaml
from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import prometheus
from ansible_collections.hearth.homelab.tests.unit.controller import rendering as r

PROMETHEUS: dict[str, t.Any] = {
    "summary": "Metrics",
    "tier": "infrastructure",
    "run": {"native": {"packages": ["prometheus"], "units": ["prometheus.service"]}},
    "provides": {"metrics": "prometheus", "alerts": "prometheus"},
    "listen": {"http": {"port": 9090}},
    "metrics": {"port": "http", "interval": "15s"},
}
APP: dict[str, t.Any] = {
    "summary": "An application",
    "tier": "services",
    "run": {
        "native": {
            "packages": ["app"],
            "units": [
                "app.service",
                "app.socket",
                {"name": "app-job.service", "running": None},
                {"name": "other.service", "enabled": False, "running": False},
            ],
        }
    },
    "listen": {"http": {"port": 8080}},
    "metrics": {"port": "http", "params": {"module": ["http_2xx"]}, "labels": {"team": "home", "host": "spoofed"}},
    "alerts": [
        {
            "alert": "AppSlow",
            "expr": 'app_latency_seconds{host="forge"} > 1',
            "for": "5m",
            "severity": "medium",
            "summary": "The application is slow",
            "labels": {"team": "home", "severity": "low"},
            "unit": "app.service",
        }
    ],
}


def fleet(**further: dict[str, t.Any]) -> t.Any:
    services = {"prometheus": PROMETHEUS, "node_exporter": r.EXPORTER, **further}
    return r.fleet(r.host("forge", services), r.host("nas-1", {"node_exporter": r.EXPORTER, "sshd": r.SSHD}))


def targets(plan: t.Any, name: str) -> dict[str, t.Any]:
    found = json.loads(r.text(plan, f"/etc/prometheus/hearth/targets/{name}.json"))
    assert len(found) == 1
    return t.cast("dict[str, t.Any]", found[0])


def rules(plan: t.Any, name: str) -> list[dict[str, t.Any]]:
    data = yaml.safe_load(r.text(plan, f"/etc/prometheus/hearth/rules/{name}.yml"))
    (group,) = data["groups"]
    return t.cast("list[dict[str, t.Any]]", group["rules"])


@pytest.mark.parametrize(
    ("file", "target", "host", "job"),
    [
        ("forge.prometheus", "127.0.0.1:9090", "forge", "prometheus"),
        ("forge.node_exporter", "192.0.2.10:9100", "forge", "node_exporter"),
        ("nas-1.node_exporter", "192.0.2.11:9100", "nas-1", "node_exporter"),
    ],
)
def test_targets_of_the_whole_fleet(file: str, target: str, host: str, job: str) -> None:
    found = targets(r.plan_of(prometheus.render, fleet()), file)
    assert found["targets"] == [target]
    assert found["labels"]["host"] == host
    assert found["labels"]["job"] == job
    assert found["labels"]["instance"] == f"{host}:{target.rpartition(':')[2]}"


def test_labels_of_a_target() -> None:
    labels = targets(r.plan_of(prometheus.render, fleet(app=APP)), "forge.app")["labels"]
    assert labels == {
        "host": "forge", "service": "app", "job": "app", "instance": "forge:8080", "team": "home",
        "__metrics_path__": "/metrics", "__scrape_interval__": "60s", "__scrape_timeout__": "10s",
        "__param_module": "http_2xx",
    }  # fmt: skip


def test_a_timeout_is_never_longer_than_the_interval() -> None:
    app = r.merged(APP, metrics={"port": "http", "interval": "5s", "timeout": "10s"})
    assert targets(r.plan_of(prometheus.render, fleet(app=app)), "forge.app")["labels"]["__scrape_timeout__"] == "5s"


def test_fragments_belong_to_the_service_on_its_own_host_and_to_prometheus_elsewhere() -> None:
    items = r.plan_of(prometheus.render, fleet(app=APP)).manifest.by_id()
    owners = {name.rpartition("/")[2]: item.service for name, item in items.items() if item.kind == "file"}
    assert owners == {
        "forge.app.json": "app", "forge.app.yml": "app",
        "forge.prometheus.json": "prometheus", "forge.prometheus.yml": "prometheus",
        "forge.node_exporter.json": "node_exporter", "forge.node_exporter.yml": "node_exporter",
        "nas-1.node_exporter.json": "prometheus", "nas-1.node_exporter.yml": "prometheus",
        "nas-1.sshd.yml": "prometheus",
    }  # fmt: skip


def test_rules_reload_and_targets_do_not() -> None:
    made = fleet()
    host = made.hosts["forge"]
    builder = r.PlanBuilder("forge", host.release, host.architecture)
    prometheus.render(made, host, builder)
    builder.add(m.Unit("prometheus.service", "prometheus"))
    unit = r.unit(builder.build(), "prometheus.service")
    assert unit.reload_on == ("file:/etc/prometheus/hearth/rules/",)
    assert unit.restart_on == ()


def test_every_unit_that_shall_run_is_watched() -> None:
    found = rules(r.plan_of(prometheus.render, fleet(app=APP)), "forge.app")
    assert [(rule["alert"], rule["labels"]["unit"]) for rule in found] == [
        ("ServiceDown", "app.service"),
        ("RestartChurn", "app.service"),
        ("ServiceDown", "app.socket"),
        ("AppSlow", "app.service"),
    ]


def test_service_down_and_restart_churn() -> None:
    down, churn = rules(r.plan_of(prometheus.render, fleet()), "nas-1.sshd")
    assert down["for"] == "120s"
    assert down["labels"] == {"host": "nas-1", "service": "sshd", "severity": "high", "unit": "ssh.service"}
    assert 'node_systemd_unit_state{host="nas-1",name="ssh.service",state="active"}' in down["expr"]
    assert 'up{host="nas-1",job="node_exporter"} == 1' in down["expr"]
    assert "for" not in churn
    assert churn["expr"].endswith("[15m])) > 5")
    assert 'node_systemd_service_restart_total{host="nas-1",name="ssh.service"}' in churn["expr"]


def test_containers_are_watched_as_the_unit_that_podman_makes() -> None:
    made = r.fleet(
        r.host("forge", {"prometheus": PROMETHEUS, "node_exporter": r.EXPORTER, "podman": r.PODMAN, "sonarr": r.SONARR})
    )
    assert rules(r.plan_of(prometheus.render, made), "forge.sonarr")[0]["labels"]["unit"] == "sonarr.service"


def test_contributed_alerts_say_host_service_and_severity() -> None:
    rule = rules(r.plan_of(prometheus.render, fleet(app=APP)), "forge.app")[-1]
    assert rule["labels"] == {
        "host": "forge", "service": "app", "severity": "medium", "team": "home", "unit": "app.service"
    }  # fmt: skip
    assert rule["annotations"] == {"summary": "The application is slow"}
    assert rule["for"] == "300s"


def test_a_host_without_node_exporter_is_said() -> None:
    made = r.fleet(r.host("forge", {"prometheus": PROMETHEUS}), r.host("nas-1", {"sshd": r.SSHD}))
    plan = r.plan_of(prometheus.render, made)
    assert "file:/etc/prometheus/hearth/rules/nas-1.sshd.yml" not in r.ids(plan)
    assert [notice for notice in plan.notices if "nas-1" in notice and "node_exporter" in notice]


def test_what_listens_on_another_hosts_loopback_is_said() -> None:
    made = r.fleet(r.host("forge", {"prometheus": PROMETHEUS}), r.host("nas-1", {"app": APP}))
    plan = r.plan_of(prometheus.render, made)
    assert "file:/etc/prometheus/hearth/targets/nas-1.app.json" not in r.ids(plan)
    assert any("metrics of app on nas-1" in notice for notice in plan.notices)


def test_a_mac_has_no_units() -> None:
    mac = r.host("rymac", {"sshd": r.SSHD}, {"hearth_platform": {"system": "darwin", "architecture": "arm64"}})
    plan = r.plan_of(
        prometheus.render, r.fleet(r.host("forge", {"prometheus": PROMETHEUS, "node_exporter": r.EXPORTER}), mac)
    )
    assert not [item for item in r.ids(plan) if "rymac" in item]


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed here")
def test_promtool_accepts_the_rules(tmp_path: t.Any) -> None:
    plan = r.plan_of(prometheus.render, fleet(app=APP))
    for item in plan.manifest.items:
        if isinstance(item, m.File) and item.name.endswith(".yml"):
            path = tmp_path / item.name.rpartition("/")[2]
            path.write_text(plan.contents[item.digest])
            found = subprocess.run(["promtool", "check", "rules", str(path)], capture_output=True, check=False)
            assert found.returncode == 0, found.stderr
