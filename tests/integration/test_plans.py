# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whichever way Ansible is started, a host's plan is the same, byte for byte. Composing needs no connection.

Everything runs in a copy of this checkout, on the example fleet: its variables are at the top of the checkout, which
Ansible finds in some ways of being started and not in others. No host of it exists; converge finds each unreachable.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import typing as t
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from .conftest import BIN, ROOT

FLEET = "inventories/homelab"
COMPOSING = {"hearth.homelab.compose", "hearth.homelab.converge"}

#: Playbooks without a plan, and why.
NO_PLAN = {
    "lab_up.yml": "boots the lab's hosts on this machine",
    "lab_down.yml": "takes the lab's hosts away again",
    "status.yml": "asks each host how its last generation is, which needs no plan",
    "secrets.yml": "makes secrets, which plans name and never hold",
}

Plans = dict[str, bytes]


def _tasks(entries: t.Any) -> t.Iterator[dict[str, t.Any]]:
    for entry in entries or ():
        yield entry
        for key in ("tasks", "pre_tasks", "post_tasks", "block", "rescue", "always"):
            yield from _tasks(entry.get(key))


def composes(playbook: Path) -> bool:
    return any(COMPOSING & set(task) for task in _tasks(yaml.safe_load(playbook.read_text())))


FOUND = sorted((ROOT / "playbooks").glob("*.yml"))
PLAYBOOKS = [path.name for path in FOUND if composes(path)]


def test_every_playbook_composes_or_says_why_not() -> None:
    assert PLAYBOOKS
    silent = {path.name for path in FOUND} - set(PLAYBOOKS) - set(NO_PLAN)
    assert not silent, "a playbook that uses neither compose nor converge has its reason in NO_PLAN"
    assert not set(PLAYBOOKS) & set(NO_PLAN), "these have a plan, whatever NO_PLAN says"


@dataclass
class Checkout:
    """A copy of this checkout, with its throwaway secrets, that a run may do anything to."""

    directory: Path
    plans: Path

    def environment(self, name: str, **extra: str) -> dict[str, str]:
        """No connection is ever made: ssh is a program that fails."""
        kept = self.plans / name
        kept.mkdir()
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")},
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "ANSIBLE_CALLBACK_PLUGINS": str(ROOT / "tests" / "integration" / "callbacks"),
            "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1",  # ad-hoc calls load none otherwise
            "ANSIBLE_SSH_EXECUTABLE": "/bin/false",
            "ANSIBLE_NOCOLOR": "1",
            "KEEP_PLANS": str(kept),
            **extra,
        }

    def run(self, name: str, argv: list[str], *, cwd: Path | None = None, **extra: str) -> Plans:
        """Plans by host of one run of an Ansible program."""
        found = subprocess.run(
            [str(BIN / argv[0]), *argv[1:]], cwd=cwd or self.directory, env=self.environment(name, **extra),
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        return self.kept(name, found.stdout + found.stderr)

    def kept(self, name: str, text: str) -> Plans:
        plans: Plans = {}
        for path in sorted((self.plans / name).glob("*/plan-*.json")):
            host, content = path.stem.removeprefix("plan-"), path.read_bytes()
            assert plans.setdefault(host, content) == content, f"{name}: two plays of one run differ in {host}"
        assert plans, f"{name} composed nothing:\n{text[-6000:]}"
        return plans


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    top = tmp_path_factory.mktemp("plans")
    unwanted = shutil.ignore_patterns(".git", ".venv", "build", "tests", ".*_cache", "__pycache__")
    shutil.copytree(ROOT, top / "checkout", symlinks=True, ignore=unwanted)
    secrets = top / "checkout" / FLEET / "secrets"
    assert list(secrets.glob("*.sops.yml")), f"{secrets.relative_to(top)}: tools/lab_secrets.py makes what is missing"
    (top / "kept").mkdir()
    return Checkout(top / "checkout", top / "kept")


@pytest.fixture(scope="module")
def plans(checkout: Checkout) -> Plans:
    """What all other ways are compared with."""
    found = checkout.run("site", ["ansible-playbook", "-i", FLEET, "site.yml"])
    hosts = yaml.safe_load((ROOT / FLEET / "hosts.yml").read_text())["all"]["hosts"]
    assert set(found) == set(hosts) - {"rymac"}  # composed and left alone: it has no provider
    assert len(set(found.values())) == len(found)
    return found


def same(found: Plans, expected: Plans) -> None:
    assert sorted(found) == sorted(expected)
    for host, content in expected.items():
        # Not `==` alone: pytest would print two plans.
        if found[host] != content:
            pairs = zip(found[host].decode().splitlines(), content.decode().splitlines(), strict=False)
            lines = [f"  {one.strip()}\n  {other.strip()}" for one, other in pairs if one != other]
            pytest.fail(f"the plan of {host} differs:\n" + "\n".join(lines[:5]))


@pytest.mark.parametrize("playbook", PLAYBOOKS)
def test_every_playbook(checkout: Checkout, plans: Plans, playbook: str) -> None:
    same(checkout.run(playbook, ["ansible-playbook", "-i", FLEET, f"playbooks/{playbook}"]), plans)


def test_a_limit(checkout: Checkout, plans: Plans) -> None:
    found = checkout.run("limit", ["ansible-playbook", "-i", FLEET, "site.yml", "-l", "forge"])
    same(found, {"forge": plans["forge"]})


def test_batches(checkout: Checkout, plans: Plans) -> None:
    """A play of the owner's, beside the checkout's: one host at a time."""
    play = checkout.directory / "rolling.yml"
    tasks = [{"name": "Compose", "hearth.homelab.compose": None}, {"name": "Go on", "ansible.builtin.meta": "noop"}]
    play.write_text(
        yaml.safe_dump(
            [{"name": "Roll", "hosts": "forge,luna,nas-1", "gather_facts": False, "serial": 1, "tasks": tasks}]
        )
    )
    found = checkout.run("batches", ["ansible-playbook", "-i", FLEET, "rolling.yml"])
    same(found, {host: plans[host] for host in ("forge", "luna", "nas-1")})


def test_an_ad_hoc_call(checkout: Checkout, plans: Plans) -> None:
    found = checkout.run("ad-hoc", ["ansible", "-i", FLEET, "forge", "-m", "hearth.homelab.compose"])
    same(found, {"forge": plans["forge"]})


def test_a_linked_checkout(checkout: Checkout, plans: Plans) -> None:
    link = checkout.directory.parent / "elsewhere"
    link.symlink_to(checkout.directory)
    same(checkout.run("link", ["ansible-playbook", "-i", FLEET, "site.yml"], cwd=link), plans)


def test_the_tarball_in_somebodys_repository(checkout: Checkout, plans: Plans, tmp_path: Path) -> None:
    """No checkout: the built collection, their inventory with the variables inside it, a play of their own."""
    galaxy = str(BIN / "ansible-galaxy")
    home = tmp_path / "somebody"
    # Only theirs: what an account of this machine has installed before is none of it.
    path = {"ANSIBLE_COLLECTIONS_PATH": str(home / "collections")}
    environment = checkout.environment("galaxy", **path)
    subprocess.run([galaxy, "collection", "build", "--output-path", str(tmp_path)], cwd=checkout.directory,
                   env=environment, check=True, capture_output=True)  # fmt: skip
    tarball = next(tmp_path.glob("hearth-homelab-*.tar.gz"))
    shutil.copytree(checkout.directory / FLEET, home / "inventory", symlinks=False)
    (home / "ansible.cfg").write_text("[inventory]\nignore_patterns = ^secrets$, ^known\\.yml$\n")
    subprocess.run([galaxy, "collection", "install", "--no-deps", str(tarball), "-p", str(home / "collections")],
                   cwd=home, env=environment, check=True, capture_output=True)  # fmt: skip
    tasks = [{"name": "Compose", "hearth.homelab.compose": None}, {"name": "Do", "hearth.homelab.converge": None}]
    (home / "play.yml").write_text(
        yaml.safe_dump([{"name": "Theirs", "hosts": "all", "gather_facts": False, "tasks": tasks}])
    )
    found = checkout.run("tarball", ["ansible-playbook", "-i", "inventory", "play.yml"], cwd=home, **path)
    same(found, plans)


@pytest.fixture(scope="module")
def artifacts(checkout: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ansible-runner keeps of one run: it is what AWX runs playbooks with, and it writes every event to a file."""
    data = tmp_path_factory.mktemp("runner")
    environment = checkout.environment(
        "runner",
        ANSIBLE_CONFIG=str(checkout.directory / "ansible.cfg"),
        SOPS_AGE_KEY_FILE=str(checkout.directory / FLEET / "secrets" / "age-key.txt"),
    )
    # As a program, not in this process: it changes the environment of the process that it is called in.
    subprocess.run(
        [str(BIN / "ansible-runner"), "run", str(data), "--project-dir", str(checkout.directory), "--playbook", "site.yml",
         "--inventory", str(checkout.directory / FLEET), "--ident", "run", "--quiet", "-vvv"],
        cwd=data, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    return data / "artifacts" / "run"


def results(artifacts: Path, action: str) -> dict[str, dict[str, t.Any]]:
    """The results of a task's action by host, from the runner's events."""
    found = {}
    for path in sorted((artifacts / "job_events").glob("*.json")):
        data = json.loads(path.read_text()).get("event_data", {})  # verbose lines have none
        if data.get("task_action") == action and "res" in data:
            found[data["host"]] = data["res"]
    return found


def test_ansible_runner(checkout: Checkout, plans: Plans, artifacts: Path) -> None:
    same(checkout.kept("runner", (artifacts / "stdout").read_text()), plans)


def test_a_runners_artifacts_carry_digests_and_a_summary(plans: Plans, artifacts: Path) -> None:
    # compose runs once for the whole play, as its first host.
    summaries = next(iter(results(artifacts, "hearth.homelab.compose").values()))["hosts"]
    for host in plans:
        assert set(summaries[host]) == {"managed", "digest", "services", "items", "notices"}
        assert len(summaries[host]["digest"]) == 64


def test_a_runners_artifacts_carry_no_plan_and_no_secret(plans: Plans, artifacts: Path) -> None:
    """Verbose (-vvv), where arguments and invocations are kept too."""
    # It came as far as to speak to the host: its secrets were decrypted before that.
    assert "gave no answer to compare" in results(artifacts, "hearth.homelab.converge")["forge"]["msg"]
    kept = {path: path.read_text(errors="replace") for path in artifacts.rglob("*") if path.is_file()}
    assert len(kept) > 10
    lines = {
        json.dumps(line)[1:-1]
        for content in plans.values()
        for text in json.loads(content)["contents"].values()
        for line in text.splitlines()
        if len(line) > 40
    }
    assert len(lines) > 100
    passwords = json.loads((ROOT / "build" / "lab-passwords.json").read_text())["homelab"]
    values = {value for host in passwords["services"].values() for keys in host.values() for value in keys.values()}
    assert values
    for path, text in kept.items():
        assert not [line for line in lines if line in text], f"{path.name} holds a part of a plan"
        assert not [value for value in values if value in text], f"{path.name} holds a secret"
