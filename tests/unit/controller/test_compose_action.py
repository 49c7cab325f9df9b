# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The compose action in real runs of ansible-playbook and ansible: somebody else's repository, no checkout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
from ansible.parsing.vault import VaultLib, VaultSecret

from .fleets import Repository, native, repository

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[3]

PLAY = """\
- hosts: all
  gather_facts: false
  tasks:
    - hearth.homelab.compose:
      register: made
    - ansible.builtin.debug:
        msg: "DIGESTS {{ made.hosts | to_json }}"
      run_once: true
"""


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    """Top-level group_vars with links beside the inventory, a root site.yml that imports playbooks/site.yml."""
    hosts = {
        name: {"hearth_addresses": {"lan": f"192.0.2.{number}"}}
        for number, name in enumerate(("forge", "luna", "nas-1"), 10)
    }
    made = repository(tmp_path, hosts, {"servers": ["forge", "nas-1"]})
    made.role("app", native(files=[{"path": "/etc/app", "content": "{{ app_word }}"}]), defaults="app_word: hello\n")
    made.role("other", native())
    (made.inventory / "group_vars").rename(tmp_path / "group_vars")
    (tmp_path / "host_vars").mkdir()
    for name in ("group_vars", "host_vars"):
        (made.inventory / name).symlink_to(Path("../..") / name)
    made.write("group_vars/servers.yml", {"hearth_services": {"app": {}}})
    made.write("playbooks/site.yml", PLAY)
    made.write("playbooks/other.yml", PLAY)
    made.write("site.yml", "- import_playbook: playbooks/site.yml\n")
    return made


def run(
    repo: Repository, *arguments: str, program: str = "ansible-playbook", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")},
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".collections"),
        "ANSIBLE_HOME": str(repo.path / "home"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_LOCALHOST_WARNING": "0",
        "ANSIBLE_CONFIG": str(repo.write("ansible.cfg", "[defaults]\n")),
    }
    return subprocess.run(
        [str(BIN / program), "-i", str(repo.inventory), *arguments],
        cwd=cwd or repo.path, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def digests(found: subprocess.CompletedProcess[str]) -> dict[str, str]:
    assert found.returncode == 0, found.stdout + found.stderr
    match = re.search(r'"msg": "DIGESTS (\{.*\})"', found.stdout)
    text = json.loads(f'"{match[1]}"') if match else re.sub(r"^[^{]*SUCCESS => ", "", found.stdout)
    data = json.loads(text)
    hosts = data if match else data["hosts"]
    return {name: entry["digest"] for name, entry in hosts.items()}


def test_every_way_to_start_composes_the_same(repo: Repository) -> None:
    """How Ansible is started decides which group_vars it reads: the playbook's, the working directory's ..."""
    site = digests(run(repo, "site.yml"))
    assert set(site) == {"forge", "luna", "nas-1"}
    assert site["forge"] != site["luna"]
    assert digests(run(repo, "other.yml", cwd=repo.path / "playbooks")) == site
    assert digests(run(repo, str(repo.path / "site.yml"), cwd=repo.inventory)) == site
    assert digests(run(repo, "all", "-m", "hearth.homelab.compose", program="ansible")) == site
    assert digests(run(repo, "site.yml", "--check")) == site
    assert digests(run(repo, "site.yml", "-l", "forge")) == {"forge": site["forge"]}
    assert digests(run(repo, "site.yml", "-e", "app_word=hello")) == site
    assert digests(run(repo, "site.yml", "-e", "app_word=hallo"))["forge"] != site["forge"]


def test_nothing_stays_and_no_content_is_in_the_results(repo: Repository) -> None:
    found = run(repo, "site.yml", "-vvv", "-e", "app_word=confidential")
    assert found.returncode == 0
    assert "confidential" not in found.stdout.replace("app_word=confidential", "")
    assert not list((repo.path / "home" / "tmp").glob("**/plan-*.json"))


SERIAL = """\
- hosts: all
  gather_facts: false
  serial: 1
  tasks:
    - hearth.homelab.compose:
    - ansible.builtin.shell: |
        find "$HOME/tmp" -name 'plan-*' -printf '%m %f %i\\n' | sort
        find "$HOME/tmp" -name hearth-plans -printf '%m\\n'
      environment: {HOME: "{{ lookup('env', 'ANSIBLE_HOME') }}"}
      delegate_to: localhost
      register: found
      changed_when: false
    - ansible.builtin.debug:
        msg: "FOUND {{ found.stdout_lines | join(';') }}"
"""


def test_one_composition_serves_all_batches_from_a_private_directory(repo: Repository) -> None:
    repo.write("serial.yml", SERIAL)
    found = run(repo, "serial.yml")
    assert found.returncode == 0, found.stdout + found.stderr
    seen = re.findall(r'"msg": "FOUND (.*)"', found.stdout)
    assert len(seen) == 3
    assert len(set(seen)) == 1  # the same files, down to the inode
    assert [part.split()[:2] for part in seen[0].split(";")] == [
        ["600", "plan-forge.json"],
        ["600", "plan-luna.json"],
        ["600", "plan-nas-1.json"],
        ["700"],
    ]


def test_the_whole_report_in_one_failure(repo: Repository) -> None:
    repo.write("host_vars/forge.yml", {"hearth_services": {"ap": {}}, "hearth_domian": "x"})
    repo.write("host_vars/luna.yml", {"hearth_services": {"oter": {}}})
    found = run(repo, "site.yml")
    assert found.returncode == 2
    text = found.stdout + found.stderr
    for part in (
        "3 problems; nothing was changed",
        "host forge:",
        "hearth_domian",
        "did you mean app",
        "host luna:",
        "did you mean other",
    ):
        assert part in text, text
    assert "DIGESTS" not in text
    match = re.search(r"FAILED! => (\{.*\})", found.stdout)
    assert match
    problems = json.loads(match[1])["problems"]
    assert sorted((problem["host"], problem["line"]) for problem in problems) == [
        ("forge", 2),
        ("forge", 3),
        ("luna", 2),
    ]


def test_an_error_outside_the_limit_is_a_warning(repo: Repository) -> None:
    repo.write("host_vars/luna.yml", {"hearth_services": {"oter": {}}})
    found = run(repo, "site.yml", "-l", "forge")
    assert set(digests(found)) == {"forge"}
    assert "did you mean other" in found.stderr + found.stdout
    assert run(repo, "site.yml").returncode == 2


def test_a_role_alone_adds_its_service(repo: Repository) -> None:
    play = PLAY.replace("hearth.homelab.compose:\n", "hearth.homelab.compose: {services: [other]}\n")
    repo.write("playbooks/alone.yml", play)
    alone, site = digests(run(repo, "playbooks/alone.yml")), digests(run(repo, "site.yml"))
    assert all(alone[name] != site[name] for name in site)


@pytest.mark.parametrize(
    ("argument", "message"),
    [("nothing: 1", "nothing"), ("services: {a: 1}", "services"), ("services: [nope]", "no role 'nope'")],
)
def test_wrong_arguments(repo: Repository, argument: str, message: str) -> None:
    repo.write("site.yml", PLAY.replace("compose:\n", f"compose: {{{argument}}}\n"))
    found = run(repo, "site.yml")
    assert found.returncode == 2
    assert message in found.stdout + found.stderr


def test_a_vaulted_value_never_gets_into_a_plan(repo: Repository) -> None:
    secret = VaultLib([("default", VaultSecret(b"password"))]).encrypt(b"hunter2").decode()
    block = "!vault |\n" + "".join(f"  {line}\n" for line in secret.splitlines())
    repo.write("vault", "password")
    repo.write("group_vars/all/secret.yml", f"app_word: {block}mine: {block}theirs: '{{{{ mine }}}}'\n")
    repo.role("echo", native(files=[{"path": "/etc/echo", "content": "{{ theirs }}"}]))
    repo.write("host_vars/luna.yml", {"hearth_services": {"echo": {}}})
    repo.write("host_vars/nas-1.yml", {"hearth_services": {"other": {}}, "other_secrets": {"key": "{{ mine }}"}})
    found = run(repo, "site.yml", "--vault-password-file", str(repo.path / "vault"), "-vvv")
    text = found.stdout + found.stderr
    assert found.returncode == 2
    assert "service app: app_word: cannot be resolved: it is encrypted with Ansible Vault" in text
    assert "service echo: theirs: cannot be resolved: it is encrypted" in text
    assert "service other" not in text
    assert "hunter2" not in text


def test_plan_is_plain_and_stable(repo: Repository) -> None:
    from ansible_collections.hearth.homelab.plugins.plugin_utils import compose
    from ansible_collections.hearth.homelab.plugins.plugin_utils.plan import HostPlan

    source = repo.source(basedir=repo.path / "playbooks")
    first, second = (compose.make_plans(source, ["forge"]).plans["forge"] for _ in range(2))
    assert first
    assert second
    assert first.to_json() == second.to_json()
    again: t.Any = HostPlan.from_json(first.to_json())
    assert again.manifest.digest == first.manifest.digest
    assert str(repo.path) not in first.to_json()  # publishable, and the same from any checkout
