# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of secrets from SOPS files: nothing is decrypted, and values never get anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.hearth.homelab.plugins.plugin_utils import compose, layers, sops_keys
from ansible_collections.hearth.homelab.plugins.plugin_utils.errors import listing

from .fleets import native, repository

FILE = """\
miniflux:
    admin_password: ENC[AES256_GCM,data:x,iv:x,tag:x,type:str]
    empty: null
    blank: ""
    clear: hunter2
    list: [ENC[a], ENC[b]]
people:
    anna:
        password_hash: ENC[AES256_GCM,data:x,type:str]
    ben: ENC[AES256_GCM,data:x,type:str]
    carl: {}
note: ENC[x]
sops:
    version: 3.9.0
"""


def test_keys_and_their_state(tmp_path: Path) -> None:
    path = tmp_path / "forge.sops.yml"
    path.write_text(FILE.replace("[ENC[a], ENC[b]]", '["ENC[a]", "ENC[b]"]'))
    keys = sops_keys.read(path)
    assert keys.error == ""
    assert {name: (entry.state, entry.line) for name, entry in keys.entries.items()} == {
        "miniflux/admin_password": ("encrypted", 2),
        "miniflux/empty": ("null", 3),
        "miniflux/blank": ("null", 4),
        "miniflux/clear": ("plain", 5),
        "miniflux/list": ("encrypted", 6),
        "people/anna": ("encrypted", 8),
        "people/ben": ("encrypted", 10),
        "people/carl": ("null", 11),
    }


@pytest.mark.parametrize(
    ("content", "error", "line"),
    [
        ("miniflux: {admin_password: hunter2}\n", "is not encrypted: it has no `sops` key", 1),
        ("", "is empty", 1),
        ("- a\n", "is not a mapping of services", 1),
        ("a: [\n", "is not valid YAML", 2),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: str, error: str, line: int) -> None:
    path = tmp_path / "forge.sops.yml"
    path.write_text(content)
    keys = sops_keys.read(path)
    assert error in keys.error
    assert "hunter2" not in keys.error
    assert keys.error_line == line


def test_files_of_a_host_are_those_of_its_groups_and_its_own(tmp_path: Path) -> None:
    for name in ("forge", "servers", "all", "luna"):
        (tmp_path / f"{name}.sops.yml").write_text("sops: {}\n")
    found = sops_keys.files_of([tmp_path, tmp_path / "nowhere"], ["media", "servers"], "forge")
    assert [path.name for path in found] == ["all.sops.yml", "servers.sops.yml", "forge.sops.yml"]


# --- through compose -----------------------------------------------------------------------------------------------

APP = native(
    secrets={"key": {"kind": "access"}}, files=[{"path": "/etc/app", "content": "{{ service.secrets.key }}\n"}]
)


def test_the_host_wins_over_its_groups(tmp_path: Path) -> None:
    repo = repository(tmp_path, groups={"servers": ["forge"]})
    repo.role("app", APP)
    repo.vars("host_vars/forge.yml", {"hearth_services": {"app": {}}})
    repo.secrets("servers", {"app": {"key": "x"}})
    made = compose.compose(repo.source())
    assert made.report.problems == []
    assert made.fleet.hosts["forge"].services["app"].contribution.files[0].content == "@@hearth:app/key@@\n"
    repo.secrets("forge", {"app": {"key": None}})
    assert "has no value in" in listing(compose.compose(repo.source()).report.problems)
    repo.secrets("forge", {"app": {"key": "hunter2"}}, encrypted=False)
    text = listing(compose.compose(repo.source()).report.problems)
    assert "is not encrypted in" in text
    assert "hunter2" not in text


def test_another_directory_and_variables(tmp_path: Path) -> None:
    repo = repository(tmp_path)
    repo.role("app", APP)
    repo.vars("host_vars/forge.yml", {"hearth_services": {"app": {}}, "hearth_secrets": str(tmp_path / "vault")})
    (tmp_path / "vault").mkdir()
    (tmp_path / "vault" / "all.sops.yml").write_text("app:\n  key: ENC[x]\nsops: {}\n")
    made = compose.compose(repo.source())
    assert made.report.problems == []
    assert made.secret_files == {"forge": [str(tmp_path / "vault" / "all.sops.yml")]}
    (tmp_path / "vault" / "all.sops.yml").unlink()
    assert "the secret key is missing" in listing(compose.compose(repo.source()).report.problems)
    for value in ({"key": "from vault"}, layers.trust("{{ awx }}")):
        assert compose.compose(repo.source({"app_secrets": value, "awx": {"key": "x"}})).report.problems == []
