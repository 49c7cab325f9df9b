# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A role works alone: applied, unchanged the second time, taken away without traces but its data, and back again.

`make molecule SCENARIO=role ROLE=miniflux` says which; nothing here knows a role. What must be gone is what the host itself
recorded as the role's before, and it is looked for on the host.
"""

from __future__ import annotations

import json
import os
import typing as t

import pytest
import yaml

from ..conftest import Outcome, Site

ROLE = os.environ.get("ROLE") or "miniflux"
FORGE = "host_vars/lab-forge/zz_role.yml"
KEPT = ".kept-by-the-test"


def alone(site: Site) -> Outcome:
    """The role by itself in somebody's play; the inventory does not enable it."""
    site.set_vars(FORGE, {"hearth_services__role": {ROLE: {"enabled": False}}})
    play = site.directory / "role.yml"
    roles = [f"hearth.homelab.{ROLE}"]
    play.write_text(yaml.safe_dump([{"name": "Alone", "hosts": "lab-forge", "gather_facts": False, "roles": roles}]))
    return site.play(playbook=play)


def without(site: Site) -> Outcome:
    """The site as the host has it, without the role: services that the host never got stay off."""
    every = yaml.safe_load((site.inventory / "group_vars" / "forge.yml").read_text())["hearth_services"]
    on = set(site.generation()["manifest"]["services"]) - {ROLE}
    flags = {name: {"enabled": name in on} for name in {*every, *on, ROLE}}
    site.set_vars(FORGE, {"hearth_services__role": flags})
    return site.play(playbook="site.yml")


def healthy(site: Site) -> None:
    outcome = site.play(playbook="playbooks/status.yml")
    services = [entry for hosts in outcome.results.values() for entry in hosts["lab-forge"].get("services", [])]
    assert ROLE in {entry["service"] for entry in services}
    assert [entry for entry in services if not entry["healthy"]] == []


def items(generation: dict[str, t.Any], kind: str) -> list[dict[str, t.Any]]:
    found = generation["manifest"]["items"]
    return [item for item in found if item["kind"] == kind and item["service"] == ROLE]


def sql(site: Site, database: str, statement: str) -> str:
    return site.ssh("lab-forge", f"runuser -u postgres -- psql -d {database} -At", stdin=statement).strip()


def sums(site: Site, paths: list[str]) -> dict[str, str]:
    """SHA-256 of those files that exist."""
    found = site.ssh("lab-forge", "xargs -d '\\n' -r sha256sum 2>/dev/null || true", stdin="\n".join(paths))
    return {path: digest for digest, _blank, path in (line.partition("  ") for line in found.splitlines())}


@pytest.fixture(scope="module")
def before(site: Site) -> dict[str, t.Any]:
    """The generation with the role, and the contents of its files."""
    alone(site)
    generation = site.generation()
    assert ROLE in generation["manifest"]["services"]
    return {**generation, "sums": sums(site, [item["name"] for item in items(generation, "file")])}


def test_it_is_healthy_with_what_it_requires(site: Site, before: dict[str, t.Any]) -> None:
    healthy(site)


def test_the_second_run_changes_nothing(site: Site, before: dict[str, t.Any]) -> None:
    result = alone(site).converge()
    assert not result["changed"], result["actions"]
    assert result["exchanges"] == 1


def test_disabled_it_leaves_nothing_but_data(site: Site, before: dict[str, t.Any]) -> None:
    for item in items(before, "storage"):
        site.ssh("lab-forge", f"echo kept > {item['name']}/{KEPT}")
    for item in items(before, "postgresql_database"):
        sql(site, item["name"], "drop table if exists kept; create table kept as select 42 as x")
    assert without(site).converge()["changed"]
    assert ROLE not in site.generation()["manifest"]["services"]
    left = []
    for path, digest in sums(site, sorted(before["sums"])).items():
        # A file that was there before Hearth came is back; what Hearth wrote is not.
        if digest == before["sums"][path]:
            left.append(path)
    for item in items(before, "symlink"):
        if site.ssh("lab-forge", f"readlink {item['name']} || true").strip() == item["target"]:
            left.append(item["name"])
    for item in items(before, "unit"):
        state = site.ssh(
            "lab-forge", f"systemctl is-active {item['name']}; systemctl is-enabled {item['name']}; true"
        ).split()
        if {"active", "activating", "enabled", "enabled-runtime"} & set(state):
            left.append(f"{item['name']} {state}")
    for item in items(before, "user"):
        account = site.ssh("lab-forge", f"getent passwd {item['name']} || true").strip()
        if account and not account.endswith(("/nologin", "/false")):
            left.append(account)
    for item in items(before, "postgresql_role"):
        left += sql(
            site, "postgres", f"select rolname from pg_roles where rolcanlogin and rolname = '{item['name']}'"
        ).split()
    for item in items(before, "podman_secret"):
        left += site.ssh(
            "lab-forge", f"podman secret inspect {item['name']} --format '{{{{.Spec.Name}}}}' 2>/dev/null || true"
        ).split()
    sockets = site.ssh("lab-forge", "ss -Hlntu | awk '{print $1, $5}'").splitlines()
    for listener in before["manifest"]["services"][ROLE].get("listeners", []):
        protocol, _address, port = listener.split("/")
        left += [line for line in sockets if line.startswith(protocol) and line.endswith(f":{port}")]
    assert left == []
    data(site, before)


def data(site: Site, before: dict[str, t.Any]) -> None:
    for item in items(before, "storage"):
        assert site.ssh("lab-forge", f"cat {item['name']}/{KEPT}").strip() == "kept"
    for item in items(before, "postgresql_database"):
        assert sql(site, item["name"], "select x from kept") == "42"


def test_enabled_again_it_has_its_data(site: Site, before: dict[str, t.Any]) -> None:
    alone(site)
    healthy(site)
    data(site, before)
    assert json.dumps(site.generation()["manifest"]["services"][ROLE], sort_keys=True) == json.dumps(
        before["manifest"]["services"][ROLE], sort_keys=True
    )
    for item in items(before, "storage"):
        site.ssh("lab-forge", f"rm {item['name']}/{KEPT}")
