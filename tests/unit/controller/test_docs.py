# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is made for people: pages for every role, schemas that take what compose takes and refuse what is misspelt."""

from __future__ import annotations

import importlib.util
import json
import typing as t
from pathlib import Path

import pytest
import yaml

jsonschema = pytest.importorskip("jsonschema")
ROOT = Path(__file__).resolve().parents[3]
CONTRIBUTIONS = sorted(ROOT.glob("roles/*/vars/contribution.yml"))


@pytest.fixture(scope="module")
def tool() -> t.Any:
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "tools/make_docs.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(tool: t.Any) -> dict[str, str]:
    return t.cast("dict[str, str]", tool.everything())


def validator(pages: dict[str, str], name: str) -> t.Any:
    data = json.loads(pages[f"docs/schema/{name}.json"])
    jsonschema.Draft202012Validator.check_schema(data)
    return jsonschema.Draft202012Validator(data)


def test_every_field_of_the_schema_is_described(tool: t.Any) -> None:
    assert tool.undescribed() == []


def test_an_alert_without_a_runbook_is_found(tool: t.Any) -> None:
    assert tool.without_runbook(tool.alerts()) == []
    assert {"ClockNotSynchronised", "Watchdog"} <= {
        alert["alert"] for _title, found in tool.alerts() for alert in found
    }
    silent = [{"alert": "One", "runbook": "Do it"}, {"alert": "Two"}, {"alert": "Three", "runbook": " "}]
    assert tool.without_runbook([("thing", silent)]) == ["thing: Two", "thing: Three"]


def test_the_schema_takes_every_contribution(pages: dict[str, str]) -> None:
    checks = validator(pages, "contribution")
    for path in CONTRIBUTIONS:
        assert [error.message for error in checks.iter_errors(yaml.safe_load(path.read_text()))] == [], path


def test_the_schema_takes_the_example_fleet(pages: dict[str, str]) -> None:
    checks = validator(pages, "variables")
    for path in [*ROOT.glob("group_vars/**/*.yml"), *ROOT.glob("host_vars/*.yml")]:
        assert [error.message for error in checks.iter_errors(yaml.safe_load(path.read_text()))] == [], path


@pytest.mark.parametrize("change", [{"rout": {}}, {"tier": "service"}, {"listen": {"http": {"prot": 1}}}])
def test_the_schema_refuses_what_is_misspelt(pages: dict[str, str], change: dict[str, t.Any]) -> None:
    checks = validator(pages, "contribution")
    good = {"summary": "Something", "tier": "services", "run": {"native": {"packages": ["busybox"]}}, "x_mine": 1}
    assert checks.is_valid({"a_contribution": good})
    assert not checks.is_valid({"a_contribution": {**good, **change}})


def test_the_schema_refuses_an_unknown_variable(pages: dict[str, str]) -> None:
    checks = validator(pages, "variables")
    assert checks.is_valid({"hearth_domain": "example.com", "sonarr_port": 1, "hearth_services": {"sonarr": None}})
    assert not checks.is_valid({"hearth_domian": "example.com"})


def test_every_role_and_alert_has_its_place(pages: dict[str, str]) -> None:
    for path in CONTRIBUTIONS:
        role = path.parents[1].name
        assert f"docs/reference/roles/{role}.md" in pages
        contribution = yaml.safe_load(path.read_text())[f"{role}_contribution"]
        for alert in contribution.get("alerts") or []:
            if isinstance(alert, dict):
                assert f"### {alert['alert']}\n" in pages["docs/alerts.md"]
