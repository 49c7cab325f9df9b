# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Bad input that compose refuses, through site.yml itself: what people read, before any host is touched.

The hosts of this inventory do not exist: a run that got past compose would be unreachable, which the tests would see.
"""

from __future__ import annotations

import typing as t

import pytest
import yaml

from .conftest import Site

FORGE = "host_vars/lab-forge/zz_test.yml"
NAS = "host_vars/lab-nas-1/zz_test.yml"
NATIVE = {"summary": "A test service", "tier": "services", "run": {"native": {"packages": []}}}


def inline(**contribution: t.Any) -> dict[str, t.Any]:
    return {"contribution": {**NATIVE, **contribution}}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        pytest.param(
            {FORGE: {"miniflux_prt": 8081}},
            ["lab-forge", "miniflux_prt", "miniflux_port", "zz_test.yml:1"],
            id="misspelt option",
        ),
        pytest.param(
            {FORGE: {"hearth_services__test": {"minflux": {}}}},
            ["lab-forge", "minflux", "did you mean miniflux", "zz_test.yml:2"],
            id="unknown service",
        ),
        pytest.param(
            {FORGE: {"hearth_domian": "example.com"}},
            ["lab-forge", "hearth_domian", "hearth_domain", "zz_test.yml:1"],
            id="misspelt core variable",
        ),
        pytest.param(
            {FORGE: {"miniflux_port": "eighty"}},
            ["lab-forge", "miniflux", "miniflux_port", "eighty", "int", "zz_test.yml:1"],
            id="wrong type of an option",
        ),
        pytest.param(
            {FORGE: {"hearth_services__test": {"thing": inline(listen={"http": {"port": 99999}})}}},
            ["lab-forge", "thing", "listen.http.port", "99999", "65535", "zz_test.yml:"],
            id="wrong value in a contribution",
        ),
        pytest.param(
            {FORGE: {"hearth_services__test": {"thing": inline(lissten={})}}},
            ["lab-forge", "thing", "lissten", "did you mean listen", "zz_test.yml:"],
            id="unknown key of a contribution",
        ),
        pytest.param(
            {FORGE: {"sonarr_port": 8080, "miniflux_port": 8080}},
            ["lab-forge", "8080", "miniflux", "sonarr"],
            id="two services on one port",
        ),
        pytest.param(
            {FORGE: {"hearth_services__test": {"thing": inline(secrets={"token": {"kind": "access"}})}}},
            ["lab-forge", "thing", "token", ".sops.yml"],
            id="missing secret",
        ),
        pytest.param(
            {
                FORGE: {
                    "hearth_services__test": {
                        "thing": inline(listen={"http": {"port": 9999}}, route={"name": "thing", "to": "http"})
                    }
                }
            },
            ["lab-forge", "thing", "route.access", "public"],
            id="route without access",
        ),
        pytest.param(
            {FORGE: {"hearth_services__test": {"thing": inline(requires=["postgresq"])}}},
            ["lab-forge", "thing", "requires", "postgresq", "postgresql"],
            id="dependency nobody provides",
        ),
        pytest.param(
            {
                FORGE: {"hearth_services__one": {"thing": inline(category="a")}},
                "host_vars/lab-forge/zz_test2.yml": {"hearth_services__two": {"thing": inline(category="b")}},
            },
            ["lab-forge", "thing", "zz_test.yml", "zz_test2.yml"],
            id="two files that disagree",
        ),
        pytest.param(
            {FORGE: {"hearth_services__test": {"thing": inline(wants=["other"], requires=["other"]),
                                               "other": inline(requires=["thing"])}}},
            ["lab-forge", "thing", "other", "cycle"],
            id="a cycle",
        ),
    ],
)  # fmt: skip
def test_refused(paper: Site, variables: dict[str, dict[str, t.Any]], expected: list[str]) -> None:
    for name, data in variables.items():
        paper.set_vars(name, data)
    outcome = paper.play(expect=None)
    assert outcome.status != 0
    assert "unreachable" not in outcome.text.lower().replace('"unreachable": 0', "")
    for part in expected:
        assert part in outcome.message, outcome.message


def test_errors_of_several_hosts_arrive_in_one_report(paper: Site) -> None:
    paper.set_vars(FORGE, {"miniflux_prt": 1, "hearth_services__test": {"minflux": {}}})
    paper.set_vars(NAS, {"hearth_services__test": {"node_exportr": {}}})
    message = paper.play(limit=None, expect=None).message
    for part in ("lab-forge", "miniflux_prt", "minflux", "lab-nas-1", "node_exportr", "node_exporter"):
        assert part in message, message


def test_an_error_outside_the_limit_does_not_stop_a_host_it_does_not_concern(paper: Site) -> None:
    paper.set_vars(FORGE, {"hearth_services__test": {"minflux": {}}})
    outcome = paper.play(limit="lab-nas-1", expect=None, env={"ANSIBLE_SSH_TIMEOUT": "1", "ANSIBLE_TIMEOUT": "1"})
    assert "minflux" not in outcome.message, outcome.message


def test_an_empty_inventory_names_the_folders_searched(paper: Site) -> None:
    for folder in ("group_vars", "host_vars"):
        for path in sorted(paper.inventory.joinpath(folder).rglob("*.yml")):
            path.unlink()
    hosts = yaml.safe_load((paper.inventory / "hosts.yml").read_text())
    (paper.inventory / "hosts.yml").write_text(yaml.safe_dump(hosts))
    message = paper.play(expect=None).message
    assert "hearth_" in message
    assert str(paper.inventory / "group_vars") in message


def test_a_missing_secrets_file_is_named(paper: Site) -> None:
    for path in paper.inventory.joinpath("secrets").glob("*.sops.yml"):
        path.unlink()
    message = paper.play(expect=None).message
    for part in ("miniflux", "admin_password", "secrets/"):
        assert part in message, message


def test_an_unencrypted_secret_is_refused(paper: Site) -> None:
    for path in paper.inventory.joinpath("secrets").glob("*.sops.yml"):
        path.unlink()
    path = paper.inventory / "secrets" / "lab-forge.sops.yml"
    path.write_text("miniflux:\n  admin_password: in the clear\n")
    message = paper.play(expect=None).message
    for part in ("lab-forge.sops.yml", "encrypted"):
        assert part in message, message
    assert "in the clear" not in message
