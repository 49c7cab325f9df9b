# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Logins and access rules of MQTT, and folders of files that applications write."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import common, files, mosquitto
from ansible_collections.hearth.homelab.plugins.plugin_utils.schema import Contribution, ValidationError
from ansible_collections.hearth.homelab.tests.unit.controller import rendering as r

BROKER: dict[str, t.Any] = {
    "summary": "MQTT broker",
    "tier": "services",
    "provides": {"mqtt": "mosquitto"},
    "run": {"native": {"packages": ["mosquitto"], "units": ["mosquitto.service"]}},
}


def device(user: str, *acl: str) -> dict[str, t.Any]:
    return {
        "summary": "A device",
        "tier": "services",
        "run": {"native": {}},
        "mqtt": {"user": user, "acl": list(acl)},
        "secrets": {"mqtt_password": {"kind": "access"}},
    }


def plan(**services: dict[str, t.Any]) -> t.Any:
    return r.plan_of(mosquitto.render, r.fleet(r.host("forge", services)))


def test_each_service_has_files_of_its_own() -> None:
    made = plan(broker=BROKER, meter=device("meter", "readwrite meter/#", "read time"))
    items = made.manifest.by_id()
    login, rules = items["file:/etc/mosquitto/hearth/users/meter"], items["file:/etc/mosquitto/hearth/acl/meter"]
    assert isinstance(login, m.File)
    assert isinstance(rules, m.File)
    assert {(item.service, item.mode, item.owner) for item in (login, rules)} == {("meter", "0400", "root")}
    assert made.contents[login.digest] == "meter:@@hearth:meter/mqtt_password@@\n"
    assert made.contents[rules.digest].splitlines()[1:] == ["user meter", "topic readwrite meter/#", "topic read time"]


def test_a_login_has_one_owner() -> None:
    with pytest.raises(common.RenderError, match="meter is the login of a already"):
        plan(broker=BROKER, a=device("meter"), b=device("meter"))


def test_without_a_broker_there_is_nothing() -> None:
    assert plan(meter=device("meter")).manifest.items == ()


def test_the_password_is_a_secret_of_the_service() -> None:
    with pytest.raises(ValidationError, match=r"mqtt\.password names the secret 'mqtt_password'"):
        Contribution.model_validate({**device("meter"), "secrets": {}})


def test_folders_around_a_file_that_the_application_writes_are_its_own() -> None:
    service = {
        "summary": "An application",
        "tier": "services",
        "run": {"native": {}},
        "user": {"name": "app", "id": 2050},
        "storage": {"state": {"mountpoint": "/var/lib/app"}},
        "protect": {"class": "standard"},
        "files": [
            {"path": "/var/lib/app/one/two/app.conf", "content": "x\n", "create_only": True},
            {"path": "/var/lib/app/other/fixed.conf", "content": "x\n"},
        ],
    }
    items = r.plan_of(files.render, r.fleet(r.host("forge", {"app": service}))).manifest.items
    found = {(item.name, item.owner, item.mode) for item in items if isinstance(item, m.Directory)}
    assert found == {("/var/lib/app/one", "app", "0700"), ("/var/lib/app/one/two", "app", "0700")}
