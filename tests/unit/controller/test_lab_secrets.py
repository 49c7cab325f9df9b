# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Throwaway secrets: by the step that playbooks/secrets.yml runs, kept once made, encrypted."""

from __future__ import annotations

import importlib.util
import json
import shutil
import stat
import sys
import typing as t
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def tool() -> t.Any:
    spec = importlib.util.spec_from_file_location("lab_secrets", ROOT / "tools" / "lab_secrets.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not shutil.which("age-keygen"), reason="age is not installed here")
def test_the_lab(tool: t.Any, tmp_path: Path) -> None:
    if not (Path(sys.executable).parent / "sops").exists() and not shutil.which("sops"):
        pytest.skip("sops is not installed here")
    inventory = tmp_path / "inventories" / "lab"
    shutil.copytree(ROOT / "inventories" / "lab", inventory, ignore=shutil.ignore_patterns("secrets"))
    passwords = tmp_path / "passwords.json"
    assert tool.main([str(inventory), "--passwords", str(passwords)]) == 0
    made = inventory / "secrets" / "lab-forge.sops.yml"
    data = yaml.safe_load(made.read_text())
    assert data["sonarr"]["api_key"].startswith("ENC[")
    assert data["people"]["demo"]["password_hash"].startswith("ENC[")
    recipient = yaml.safe_load((inventory / "secrets" / ".sops.yaml").read_text())["creation_rules"][0]["age"]
    assert [entry["recipient"] for entry in data["sops"]["age"]] == [recipient]
    for path in (made, passwords, inventory / "secrets" / "age-key.txt"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    plain = json.loads(passwords.read_text())["lab"]
    assert plain["services"]["lab-forge"]["sonarr"]["api_key"] not in made.read_text()
    before = made.read_bytes()
    assert tool.main([str(inventory), "--passwords", str(passwords)]) == 0
    assert made.read_bytes() == before

    # A hash whose password nobody knows is worth nothing: both are made again, everything else stays.
    known = json.loads(passwords.read_text())
    del known["lab"]["people"]["demo"]
    passwords.write_text(json.dumps(known))
    assert tool.main([str(inventory), "--passwords", str(passwords)]) == 0
    after = yaml.safe_load(made.read_text())
    changed = {f"{name}/{key}" for name in data for key in data[name] if data[name][key] != after[name][key]}
    assert {name for name in changed if not name.startswith("sops/")} == {"people/demo"}
    assert json.loads(passwords.read_text())["lab"]["people"]["demo"]


@pytest.mark.skipif(not shutil.which("age-keygen"), reason="age is not installed here")
def test_what_the_demo_leaves_to_the_playbook(tool: t.Any, tmp_path: Path) -> None:
    inventory = tmp_path / "inventories" / "lab"
    shutil.copytree(ROOT / "inventories" / "lab", inventory, ignore=shutil.ignore_patterns("secrets"))
    assert tool.main([str(inventory), "--prepare", "--passwords", str(tmp_path / "passwords.json")]) == 0
    assert set(yaml.safe_load((inventory / "secrets" / "lab-forge.sops.yml").read_text())) == {"people", "sops"}
