# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table at the end of `make demo`: what it counts, and when it says that the demo failed."""

from __future__ import annotations

import importlib.util
import json
import sys
import typing as t
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

_SPEC = importlib.util.spec_from_file_location("demo_table", ROOT / "tools" / "demo_table.py")
assert _SPEC
assert _SPEC.loader
demo_table = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(demo_table)


def service(name: str, *, healthy: bool = True, real: bool = True, url: str = "") -> dict[str, t.Any]:
    return {"service": name, "state": "running", "healthy": healthy, "real": real, "url": url}


FORGE = {"services": [service("caddy"), service("sonarr", real=False, url="https://sonarr.lab.example.com/"),
                      service("miniflux", url="https://miniflux.lab.example.com/")]}  # fmt: skip
NAS = {"services": [service("chrony")]}


@pytest.mark.parametrize(
    ("results", "status", "expected"),
    [
        ({"lab-forge": FORGE, "lab-nas-1": NAS}, 0, ["4 services: 3 real applications, 1 stand-ins."]),
        ({"lab-forge": {"services": [service("caddy", healthy=False)]}}, 1, ["NOT HEALTHY", "1 services"]),
        (
            {"lab-forge": FORGE, "lab-nas-1": {"msg": "no route to host"}},
            1,
            ["host lab-nas-1 did not answer: no route"],
        ),
        ({}, 1, ["0 services"]),
    ],
)
def test_the_demo_ends_well_only_when_every_host_answers_and_every_service_is_healthy(
    results: dict[str, t.Any],
    status: int,
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(demo_table, "ask", lambda _inventory: results)
    monkeypatch.setattr(demo_table, "_address", lambda _inventory, host: f"address of {host}")
    monkeypatch.setattr(sys, "argv", ["demo_table.py", f"--output={tmp_path / 'demo.json'}"])
    assert demo_table.main() == status
    printed = capsys.readouterr().out
    for text in expected:
        assert text in printed
    assert len(json.loads((tmp_path / "demo.json").read_text())) == sum(
        len(r.get("services", [])) for r in results.values()
    )


def test_what_can_be_opened_is_said_once_for_each_host() -> None:
    entries = demo_table.rows({"lab-forge": FORGE, "lab-nas-1": NAS})
    text = demo_table.how_to_open(entries, {"lab-forge": "192.0.2.10"})
    assert text.count("curl ") == 1
    assert "--resolve '*:443:192.0.2.10' https://sonarr.lab.example.com/" in text
    assert "  192.0.2.10 miniflux.lab.example.com sonarr.lab.example.com" in text
