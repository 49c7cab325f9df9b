# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The example fleet and the lab compose and render; only secrets, which are not in version control, may be missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import typing as t
from pathlib import Path

import pytest
import yaml
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.vars.hostvars import HostVars
from ansible.vars.manager import VariableManager
from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.plugin_utils import compose
from ansible_collections.hearth.homelab.plugins.plugin_utils.layers import Source
from ansible_collections.hearth.homelab.plugins.plugin_utils.plan import HostPlan
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import registry

ROOT = Path(__file__).resolve().parents[3]


def composition(name: str, extra: dict[str, t.Any] | None = None) -> compose.Composition:
    loader = DataLoader()
    loader.set_basedir(str(ROOT / "playbooks"))  # as for site.yml
    inventory = InventoryManager(loader=loader, sources=[str(ROOT / "inventories" / name / "hosts.yml")])
    manager = VariableManager(loader=loader, inventory=inventory)
    HostVars(inventory, manager, loader)
    manager._extra_vars = extra or {}
    return compose.compose(Source(inventory, manager, loader))


@pytest.fixture(scope="module", params=["homelab", "lab"])
def composed(request: pytest.FixtureRequest) -> compose.Composition:
    return composition(request.param)


@pytest.fixture(scope="module")
def plans(composed: compose.Composition) -> dict[str, HostPlan]:
    hosts = [host for host in composed.fleet.hosts.values() if host.managed]
    return {host.name: registry.render_host(composed.fleet, host) for host in hosts}


def text(plan: HostPlan, path: str) -> str:
    item = plan.manifest.by_id()[f"file:{path}"]
    assert isinstance(item, m.File)
    return plan.contents[item.digest]


def test_nothing_is_wrong_but_missing_secrets(composed: compose.Composition) -> None:
    assert not composed.broken
    others = [
        str(problem)
        for problem in composed.report.problems
        if not problem.message.startswith(("the secret ", "the password hash of "))
    ]
    assert others == []
    assert composed.report.warnings == []


def test_every_alert_of_a_plan_says_what_to_do(plans: dict[str, HostPlan]) -> None:
    """Those of services, those that every unit gets, and those about machines, as Prometheus reads them."""
    seen: dict[str, set[str]] = {}
    for plan in plans.values():
        for item in plan.manifest.items:
            if isinstance(item, m.File) and item.name.startswith("/etc/prometheus/hearth/rules/"):
                for group in yaml.safe_load(plan.contents[item.digest])["groups"]:
                    for rule in group["rules"]:
                        annotations = rule["annotations"]
                        assert len(annotations.get("runbook", "").strip()) > 15, (item.name, rule["alert"])
                        seen.setdefault(rule["alert"], set()).add(item.service)
    assert {"Watchdog", "InstanceDown", "ServiceDown", "RestartChurn", "PlexDown"} <= seen.keys()
    assert len(seen) > 20


def test_every_role_is_used_by_both_fleets(composed: compose.Composition) -> None:
    used = {service.role for _host, service in composed.fleet.services()}
    roles = {path.parent.parent.name for path in (ROOT / "roles").glob("*/vars/contribution.yml")}
    assert used == roles


def test_the_example_fleet_has_its_machines() -> None:
    fleet = composition("homelab").fleet
    found = {name: (host.variables.hearth_platform.system, host.architecture) for name, host in fleet.hosts.items()}
    assert found == {
        "forge": ("debian", "amd64"), "luna": ("debian", "amd64"), "nas-1": ("debian", "amd64"),
        "nixpi": ("debian", "arm64"), "rydev": ("debian", "amd64"), "rymac": ("darwin", "arm64"),
    }  # fmt: skip
    assert not fleet.hosts["rymac"].managed
    assert set(fleet.hosts["forge"].variables.hearth_access) == {"admin", "home", "media"}


def test_the_lab_stays_inside() -> None:
    for host in composition("lab").fleet.hosts.values():
        assert not host.variables.hearth_external
        assert host.variables.hearth_domain == "lab.example.com"
        assert not [name for name, receiver in host.variables.hearth_receivers.items() if receiver.external]


@pytest.mark.parametrize(
    ("option", "value", "service", "called"),
    [
        ("alertmanager_smarthost", "mail.example.org:587", "alertmanager", "mail.example.org:587"),
        ("chrony_sources", ["pool 2.debian.pool.ntp.org iburst"], "chrony", "2.debian.pool.ntp.org"),
        ("chrony_extra", ["refclock PHC /dev/ptp0", "Server 203.0.113.7"], "chrony", "203.0.113.7"),
        ("syncthing_outside", True, "syncthing", "https://relays.syncthing.net"),
        ("podman_mirrors", {"docker.io": "mirror.example.org/dockerhub"}, "podman", "mirror.example.org/dockerhub"),
        ("sabnzbd_mirror", "http://deb.example.org/debian", "sabnzbd", "http://deb.example.org/debian"),
        ("miniflux_settings", {"HTTP_CLIENT_PROXY": "http://203.0.113.8:3128"}, "miniflux", "http://203.0.113.8:3128"),
        (
            "unattended_upgrades_settings",
            {"Unattended-Upgrade::Mail": "me@example.org"},
            "unattended_upgrades",
            "example.org",
        ),
        ("caddy_global_options", ["acme_ca https://acme.example.org/dir"], "caddy", "https://acme.example.org/dir"),
    ],
)
def test_an_option_that_leads_outside_is_refused_in_the_lab(
    option: str, value: t.Any, service: str, called: str
) -> None:
    problems = [
        problem
        for problem in composition("lab", {option: value}).report.problems
        if not problem.message.startswith(("the secret ", "the password hash of "))
    ]
    assert problems
    assert {(problem.service, problem.path) for problem in problems} == {(service, option)}
    assert "lab-forge" in {problem.host for problem in problems}
    assert {problem.message for problem in problems} == {
        f"calls {called}, which is outside, and hearth_external is false"
    }


def test_an_image_from_outside_is_refused_in_the_lab() -> None:
    problems = [
        problem
        for problem in composition("lab", {"hearth_image_overrides": {}}).report.problems
        if problem.path == "run.container.image"
    ]
    found = {(problem.host, problem.service): problem.message for problem in problems}
    message = found["lab-forge", "sonarr"]
    assert message == "is pulled from ghcr.io, which is outside, and hearth_external is false"


def test_configuration_files_are_what_they_say(plans: dict[str, HostPlan]) -> None:
    for plan in plans.values():
        for item in plan.manifest.items:
            if isinstance(item, m.File):
                content = plan.contents[item.digest]
                # Prometheus and Grafana have such templates of their own.
                own = item.name.startswith(("/etc/prometheus/hearth/rules/", "/etc/grafana/dashboards/"))
                assert own or "{{" not in content, item.name
                assert content.endswith("\n"), item.name
                if item.name.endswith((".yml", ".json")):
                    assert yaml.safe_load(content), item.name


def test_arguments_in_environment_files_are_one_line(plans: dict[str, HostPlan]) -> None:
    """systemd reads ARGS="..." as one value and splits it at blanks; a line break in it would end up in an argument."""
    for plan in plans.values():
        for item in plan.manifest.items:
            if isinstance(item, m.File) and item.name.startswith("/etc/default/"):
                lines = [line for line in plan.contents[item.digest].splitlines() if line and not line.startswith("#")]
                for line in lines:
                    name, _equals, value = line.partition("=")
                    if name == "ARGS":
                        assert value.startswith('"--')
                        assert value.endswith('"')
                        assert value.count('"') == 2
                        assert "\\" not in value


@pytest.mark.skipif(not shutil.which("amtool"), reason="amtool is not installed here")
def test_amtool_accepts_the_configuration(plans: dict[str, HostPlan], tmp_path: Path) -> None:
    for plan in plans.values():
        if "file:/etc/prometheus/alertmanager.yml" in plan.manifest.by_id():
            path = tmp_path / "alertmanager.yml"
            path.write_text(text(plan, "/etc/prometheus/alertmanager.yml"))
            found = subprocess.run(
                ["amtool", "check-config", str(path)], env=dict(os.environ), capture_output=True, text=True, check=False
            )
            assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed here")
def test_promtool_accepts_the_rules(plans: dict[str, HostPlan], tmp_path: Path) -> None:
    for plan in plans.values():
        for item in plan.manifest.items:
            if isinstance(item, m.File) and item.name.startswith("/etc/prometheus/hearth/rules/"):
                path = tmp_path / item.name.rpartition("/")[2]
                path.write_text(plan.contents[item.digest])
                found = subprocess.run(["promtool", "check", "rules", str(path)], capture_output=True, check=False)
                assert found.returncode == 0, (item.name, found.stderr)


def receivers(plan: HostPlan) -> dict[str, t.Any]:
    return t.cast("dict[str, t.Any]", yaml.safe_load(text(plan, "/etc/prometheus/alertmanager.yml")))


def test_alerts_reach_the_receivers_of_their_severity() -> None:
    made = composition("homelab")
    data = receivers(registry.render_host(made.fleet, made.fleet.hosts["forge"]))
    told = {
        route["matchers"][0].partition('"')[2].rstrip('"'): [child["receiver"] for child in route["routes"]]
        for route in data["route"]["routes"]
        if "routes" in route
    }
    assert told == {"critical": ["phone"], "high": ["phone"], "medium": [], "low": []}
    assert [entry["name"] for entry in data["receivers"]] == ["nobody", "phone"]
