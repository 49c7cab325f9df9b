# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Grafana's data sources and dashboards: one file for each, all that Grafana refuses is found before."""

from __future__ import annotations

import json
import re
import typing as t
from pathlib import Path

import pytest
import yaml
from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import common, grafana
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers.registry import render_host
from ansible_collections.hearth.homelab.plugins.plugin_utils.schema import Contribution, ValidationError
from ansible_collections.hearth.homelab.tests.unit.controller import rendering as r

ROLES = Path(__file__).resolve().parents[3] / "roles"
DASHBOARDS = sorted(ROLES.glob("*/files/*.json"))

Data = dict[str, t.Any]


def service(port: int, **more: t.Any) -> Data:
    return {
        "summary": "An application",
        "tier": "services",
        "category": "monitoring",
        "run": {"container": {"image": "a/b:1", "reason": "a test"}},
        "user": {"name": "app", "id": 2050},
        "listen": {"http": {"port": port}},
        **more,
    }


GRAFANA = service(3000, provides={"grafana": "grafana"}, user={"name": "grafana", "id": 2047})
SOURCE = {"datasources": [{"type": "prometheus", "name": "Metrics", "default": True, "options": {"q": "$x"}}]}


def files(plan: t.Any) -> dict[str, m.File]:
    return {item.name: item for item in plan.manifest.items if isinstance(item, m.File)}


def role(tmp_path: Path, text: str, name: str = "board.json") -> Path:
    folder = tmp_path / "files"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return tmp_path


def board(uid: str = "one", **more: t.Any) -> str:
    return json.dumps({"uid": uid, "title": "One", "id": None, **more})


def test_a_data_source_is_a_file_of_its_service() -> None:
    fleet = r.fleet(r.host("forge", {"grafana": GRAFANA, "metrics": service(9090, grafana=SOURCE)}))
    plan = r.plan_of(grafana.render, fleet, "forge")
    path = "/etc/grafana/provisioning/datasources/forge.metrics.yaml"
    item = files(plan)[path]
    assert (item.service, item.mode) == ("metrics", "0644")
    text = plan.contents[item.digest]
    assert '"$$x"' in text  # one dollar sign, to Grafana
    assert yaml.safe_load(text) == {
        "apiVersion": 1,
        "prune": True,
        "datasources": [
            {
                "name": "Metrics",
                "uid": "metrics",
                "type": "prometheus",
                "access": "proxy",
                "url": "http://127.0.0.1:9090",
                "isDefault": True,
                "editable": False,
                "jsonData": {"q": "$$x"},
            }
        ],
    }
    unit = r.unit(render_host(fleet, fleet.hosts["forge"]), "grafana.service")
    assert "file:/etc/grafana/provisioning/datasources/" in unit.restart_on
    assert not any("dashboards/" in entry for entry in unit.restart_on)  # Grafana looks for these by itself


@pytest.mark.parametrize(
    ("listen", "reached"),
    [
        ({"address": "loopback"}, None),
        ({"address": "lan", "from": ["nas-1"]}, None),
        ({"address": "lan", "from": ["grafana"]}, True),
        ({"address": "any", "from": ["lan"]}, True),
    ],
)
def test_a_data_source_of_another_host_is_one_where_its_port_is_open(listen: Data, reached: bool | None) -> None:
    far = service(9090, grafana=SOURCE, listen={"http": {"port": 9090, **listen}})
    fleet = r.fleet(r.host("forge", {"grafana": GRAFANA}), r.host("nas-1", {"far": far}))
    plan = r.plan_of(grafana.render, fleet, "forge")
    found = files(plan).get("/etc/grafana/provisioning/datasources/nas-1.far.yaml")
    if reached:
        assert found
        assert found.service == "grafana"  # nothing of this host's is the other's
        [source] = yaml.safe_load(plan.contents[found.digest])["datasources"]
        assert source["url"] == f"http://{r.ADDRESSES['nas-1']['lan'][0].partition('/')[0]}:9090"
    else:
        assert found is None
        assert any("far on nas-1" in notice for notice in plan.notices)


def test_a_data_source_with_a_secret_is_readable_by_grafana_only() -> None:
    source = {"datasources": [{"type": "postgres", "secure_options": {"password": m.HOLE.format("db/password")}}]}
    db = service(5432, grafana=source, secrets={"password": {"kind": "access"}})
    fleet = r.fleet(r.host("forge", {"grafana": GRAFANA, "db": db}), r.host("nas-1", {"db": db}))
    plan = r.plan_of(grafana.render, r.fleet(r.host("forge", {"grafana": GRAFANA, "db": db})), "forge")
    item = files(plan)["/etc/grafana/provisioning/datasources/forge.db.yaml"]
    assert (item.owner, item.group, item.mode) == ("grafana", "grafana", "0400")
    assert item.holes == ("db/password",)
    # Two of one name: Grafana keeps one uid once.
    with pytest.raises(common.RenderError, match="has a data source 'db' already"):
        r.plan_of(grafana.render, fleet, "forge")


def test_a_dashboard_is_its_roles_and_shared_by_instances(tmp_path: Path) -> None:
    app = service(9000, grafana={"dashboards": ["board.json"]}, category="media")
    path = role(tmp_path, board())
    both = {name: r.service(name, app, role_path=path, role="app") for name in ("app", "app_4k")}
    plan = r.plan_of(grafana.render, r.fleet(r.host("forge", {"grafana": GRAFANA, **both})), "forge")
    found = {name: item for name, item in files(plan).items() if "/dashboards/" in name}
    assert list(found) == ["/etc/grafana/dashboards/Media/app.board.json"]
    assert plan.contents[next(iter(found.values())).digest] == board()


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (board(), "bord.json", "did you mean"),
        ("{", "board.json", "not valid JSON"),
        ("[]", "board.json", "has no uid"),
        (board(uid=""), "board.json", "has no uid"),
        (json.dumps({"uid": "x"}), "board.json", "has no title"),
        (board(id=7), "board.json", "the id of somebody's database"),
    ],
)
def test_a_dashboard_that_grafana_would_not_take_is_named(tmp_path: Path, text: str, name: str, message: str) -> None:
    app = service(9000, grafana={"dashboards": [name]})
    entry = r.service("app", app, role_path=role(tmp_path, text))
    with pytest.raises(common.RenderError, match=message) as error:
        r.plan_of(grafana.render, r.fleet(r.host("forge", {"grafana": GRAFANA, "app": entry})), "forge")
    assert error.value.problem.path == "grafana.dashboards.0"


def test_two_dashboards_with_one_uid_are_named(tmp_path: Path) -> None:
    role(tmp_path, board())
    role(tmp_path, board(), "second.json")
    app = service(9000, grafana={"dashboards": ["board.json", "second.json"]})
    entry = r.service("app", app, role_path=tmp_path)
    with pytest.raises(common.RenderError, match=r"the uid 'one' is that of board\.json of app"):
        r.plan_of(grafana.render, r.fleet(r.host("forge", {"grafana": GRAFANA, "app": entry})), "forge")


def test_an_inline_service_has_no_dashboard_files() -> None:
    app = service(9000, grafana={"dashboards": ["board.json"]})
    with pytest.raises(common.RenderError, match="an inline service has no files/"):
        r.plan_of(grafana.render, r.fleet(r.host("forge", {"grafana": GRAFANA, "app": app})), "forge")


@pytest.mark.parametrize(
    "contract",
    [
        {"dashboards": ["../secret.json"]},
        {"dashboards": ["/etc/passwd"]},
        {"datasources": [{"type": "prometheus", "port": "nowhere"}]},
        {"datasources": [{"type": "prometheus", "path": "no slash"}]},
    ],
)
def test_what_the_contract_refuses(contract: Data) -> None:
    with pytest.raises(ValidationError):
        Contribution.model_validate(service(9000, grafana=contract))


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: f"{path.parents[1].name}/{path.name}")
def test_a_roles_dashboard_names_no_data_source_of_somebodys(path: Path) -> None:
    data = json.loads(path.read_text())
    assert next(entry["name"] for entry in data["templating"]["list"]) == "datasource"
    uids = set(re.findall(r'"uid": "([^"]*)"', path.read_text())) - {data["uid"]}
    assert uids == {"${datasource}"}
    assert len({panel["id"] for panel in data["panels"]}) == len(data["panels"])
