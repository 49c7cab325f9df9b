# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The status page, the start page, `configure` and units that wait for mounts: one file or item for each service."""

from __future__ import annotations

import copy
import json
import runpy
import sys
import typing as t
from pathlib import Path

import pytest
import yaml
from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.plugin_utils import templates
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import (
    common,
    configure,
    gatus,
    homepage,
    systemd,
)
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers.registry import render_host
from ansible_collections.hearth.homelab.plugins.plugin_utils.schema import Contribution, ValidationError
from ansible_collections.hearth.homelab.tests.unit.controller import rendering as r

ROLES = Path(__file__).resolve().parents[3] / "roles"


def container(port: int, **more: t.Any) -> dict[str, t.Any]:
    return {
        "summary": "An application",
        "tier": "services",
        "category": "media",
        "run": {"container": {"image": "a/b:1", "reason": "a test"}},
        "user": {"name": "app", "id": 2050},
        "listen": {"http": {"port": port}},
        **more,
    }


STATUS = container(8090, provides={"status": "gatus"}, health={"http": {"port": "http", "path": "/health"}})
START = container(3003, provides={"dashboard": "homepage"})
APP = container(
    8989,
    health={"http": {"port": "http", "path": "/ping?a=$b"}},
    dashboard={"group": "Media", "name": "App", "icon": "app", "widget": {"key": "@@hearth:app/key@@"}},
    secrets={"key": {"kind": "access"}},
    route={"name": "app", "to": "http", "access": "public"},
)
FAR = {**container(9000), "health": {"tcp": {"port": "http"}}, "dashboard": {"group": "Media"}}


def files(plan: t.Any, folder: str) -> dict[str, str]:
    return {
        item.name: plan.contents[item.digest]
        for item in plan.manifest.items
        if isinstance(item, m.File) and item.name.startswith(folder)
    }


def test_each_service_has_an_endpoint_of_its_own() -> None:
    open_ = copy.deepcopy(FAR)
    open_["listen"]["http"].update({"address": "lan", "from": ["status"]})
    fleet = r.fleet(r.host("forge", {"gatus": STATUS, "app": APP}), r.host("nas-1", {"far": FAR, "open": open_}))
    plan = r.plan_of(gatus.render, fleet, "forge")
    found = files(plan, "/etc/gatus/endpoints/")
    assert sorted(path.rpartition("/")[2] for path in found) == [
        "forge.app.yaml", "forge.gatus.yaml", "nas-1.open.yaml",
    ]  # fmt: skip
    text = found["/etc/gatus/endpoints/forge.app.yaml"]
    [endpoint] = yaml.safe_load(text.replace("$$", "$"))["endpoints"]
    assert "$$b" in text  # one dollar sign, to Gatus
    assert endpoint["url"] == "http://127.0.0.1:8989/ping?a=$b"
    assert endpoint["conditions"] == ["[STATUS] == 200"]
    [far] = yaml.safe_load(found["/etc/gatus/endpoints/nas-1.open.yaml"])["endpoints"]
    assert far["url"].startswith("tcp://")
    assert far["url"].endswith(":9000")
    owners = {item.name: item.service for item in plan.manifest.items if isinstance(item, m.File)}
    assert owners["/etc/gatus/endpoints/forge.app.yaml"] == "app"
    assert owners["/etc/gatus/endpoints/nas-1.open.yaml"] == "gatus"
    assert any("status of far on nas-1" in notice for notice in plan.notices)


def test_each_service_has_an_entry_of_its_own_and_another_hosts_secret_stays_there() -> None:
    fleet = r.fleet(r.host("forge", {"homepage": START, "app": APP}), r.host("nas-1", {"far": FAR, "app": APP}))
    plan = r.plan_of(homepage.render, fleet, "forge")
    entries = {
        path.rpartition("/")[2]: json.loads(text) for path, text in files(plan, "/etc/homepage/entries/").items()
    }
    assert sorted(entries) == ["forge.app.json", "nas-1.app.json", "nas-1.far.json"]
    assert entries["forge.app.json"]["entry"]["widget"] == {"key": "@@hearth:app/key@@"}
    assert "widget" not in entries["nas-1.app.json"]["entry"]
    items = plan.manifest.by_id()
    assert items["file:/etc/homepage/entries/forge.app.json"].mode == "0600"
    assert items["file:/etc/homepage/entries/nas-1.far.json"].mode == "0644"


def test_the_start_page_is_made_of_the_entries_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = tmp_path / "entries"
    entries.mkdir()
    for name, group in (("b", "Media"), ("a", "Media"), ("c", "Home")):
        (entries / f"{name}.json").write_text(json.dumps({"group": group, "name": name, "entry": {"icon": name}}))
    view = {"service": {"name": "homepage", "gid": 0, "storage": {"state": str(tmp_path)}}}
    template = ROLES / "homepage" / "templates" / "entries.py.j2"
    text = templates.environment().render_file(template, view)
    program = tmp_path / "entries.py"
    program.write_text(text.replace('"/etc/homepage/entries"', repr(str(entries))))
    (tmp_path / "elsewhere").write_text("kept")
    (tmp_path / "services.yaml.new").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setattr("os.fchown", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(program))
    assert ended.value.code == 0
    assert yaml.safe_load((tmp_path / "services.yaml").read_text()) == [
        {"Home": [{"c": {"icon": "c"}}]},
        {"Media": [{"a": {"icon": "a"}}, {"b": {"icon": "b"}}]},
    ]
    assert (tmp_path / "elsewhere").read_text() == "kept"
    assert sys.version_info >= (3, 11)


REQUEST = {
    "name": "far", "service": "prowlarr", "request": "/api/v1/applications",
    "desired": {"name": "app", "key": "@@hearth:app/key@@"},
}  # fmt: skip
PROWLARR = container(9696, api={"secret": "api_key"}, secrets={"api_key": {"kind": "access"}})


def test_a_service_tells_another_of_itself_with_that_ones_key() -> None:
    asks = {**APP, "configure": [REQUEST]}
    fleet = r.fleet(r.host("forge", {"prowlarr": PROWLARR, "app": asks}), r.host("nas-1", {"app": asks}))
    [item] = [
        item for item in r.plan_of(configure.render, fleet, "forge").manifest.items if isinstance(item, m.Configure)
    ]
    assert (item.id, item.service, item.provider) == ("configure:app/far", "app", "prowlarr")
    assert item.url == "http://127.0.0.1:9696/api/v1/applications"
    assert item.headers == {"X-Api-Key": "@@hearth:prowlarr/api_key@@"}
    assert item.holes == ("app/key", "prowlarr/api_key")
    # Where there is no such service there is nothing to do.
    assert not r.plan_of(configure.render, fleet, "nas-1").manifest.items


def test_an_application_that_does_not_say_how_it_is_asked_is_an_error() -> None:
    asks = {**APP, "configure": [REQUEST]}
    fleet = r.fleet(r.host("forge", {"prowlarr": container(9696), "app": asks}))
    with pytest.raises(common.RenderError, match="does not say how its API is asked"):
        r.plan_of(configure.render, fleet, "forge")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"configure": [{**REQUEST, "desired": {}}]}, "desired has no 'name'"),
        ({"configure": [{**REQUEST, "service": None}]}, "without `api`"),
        ({"configure": [REQUEST, REQUEST]}, "of one name"),
        ({"api": {"secret": "nothing"}}, "api.secret names the secret"),
        ({"api": {"port": "nothing"}}, "api.port names the listen entry"),
    ],
)
def test_a_wrong_request_is_found_before_any_host_is_touched(change: dict[str, t.Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Contribution.model_validate({**APP, **change})


def test_a_service_with_mounts_is_started_again_when_they_are_back() -> None:
    plan = r.plan_of(systemd.render, r.fleet(r.host("forge", {"sonarr": r.SONARR, "app": APP})), "forge")
    text = files(plan, "/etc/systemd/system/")["/etc/systemd/system/sonarr-recover.service"]
    assert "systemctl start $$again" in text
    assert not any("app-recover" in item.name for item in plan.manifest.items)


def test_services_share_a_mount_point_that_both_need() -> None:
    media = {"media": {"source": "/srv/media", "target": "/media", "access": "ro"}}
    apps = {name: container(port, mounts=media) for name, port in (("one", 9001), ("two", 9002))}
    for app in apps.values():
        app["user"] = {**app["user"], "shared": True}
    fleet = r.fleet(r.host("forge", apps))
    plan = render_host(fleet, fleet.hosts["forge"])
    for name in apps:
        assert r.unit(plan, f"{name}.service").needs == ("directory:/srv/media",)
