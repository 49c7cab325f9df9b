# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Throwaway secrets: as the contributions declare them, kept once made, encrypted."""

from __future__ import annotations

import base64
import importlib.util
import json
import shutil
import stat
import sys
import typing as t
from pathlib import Path

import pytest
import yaml
from ansible_collections.hearth.homelab.plugins.plugin_utils.schema import SecretSpec

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def tool() -> t.Any:
    spec = importlib.util.spec_from_file_location("lab_secrets", ROOT / "tools" / "lab_secrets.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def spec(**generate: t.Any) -> SecretSpec:
    return SecretSpec.model_validate({"kind": "access", "generate": generate or None})


@pytest.mark.parametrize(
    ("generate", "length", "charset"),
    [
        ({"length": 32, "charset": "hex"}, 32, "0123456789abcdef"),
        ({"length": 12, "charset": "digits"}, 12, "0123456789"),
        ({"length": 40}, 40, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"),
        ({"length": 24, "charset": "base64"}, 24, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/="),
        ({}, 32, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"),
    ],
)
def test_values_are_as_declared(tool: t.Any, generate: dict[str, t.Any], length: int, charset: str) -> None:
    first, second = tool.generate(spec(**generate)), tool.generate(spec(**generate))
    assert len(first) == length
    assert set(first) <= set(charset)
    assert first != second


def test_keys(tool: t.Any) -> None:
    assert len(base64.b64decode(tool.generate(spec(keypair="wireguard")))) == 32
    if shutil.which("ssh-keygen"):
        assert tool.generate(spec(keypair="ssh-ed25519")).startswith("-----BEGIN OPENSSH PRIVATE KEY-----")


def test_what_exists_is_kept(tool: t.Any) -> None:
    values: dict[str, t.Any] = {"sonarr": {"api_key": "known"}}
    passwords: dict[str, str] = {}
    services = {"sonarr": {"api_key": spec(), "other": spec()}}
    assert tool.complete(values, services, {"anna"}, passwords) == ["sonarr/other", "people/anna"]
    assert values["sonarr"]["api_key"] == "known"
    assert values["people"]["anna"]["password_hash"].startswith("$2b$10$")
    before = json.dumps(values)
    assert tool.complete(values, services, {"anna"}, passwords) == []
    assert json.dumps(values) == before


def test_a_hash_without_its_password_is_made_again(tool: t.Any) -> None:
    values: dict[str, t.Any] = {"people": {"anna": {"password_hash": "$2b$10$old"}}}
    assert tool.complete(values, {}, {"anna"}, {}) == ["people/anna"]
    assert values["people"]["anna"]["password_hash"] != "$2b$10$old"


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
    for path in (made, passwords, inventory / "secrets" / "age-key.txt"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    plain = json.loads(passwords.read_text())["lab"]
    assert plain["services"]["lab-forge"]["sonarr"]["api_key"] not in made.read_text()
    before = made.read_bytes()
    assert tool.main([str(inventory), "--passwords", str(passwords)]) == 0
    assert made.read_bytes() == before
