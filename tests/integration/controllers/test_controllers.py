# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The newest Ansible for Debian 13's Python, an account without rights on one side and sudo on the other."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
import typing as t
from pathlib import Path

import pytest

from ..conftest import BIN, ROOT, Site, wait_until
from .conftest import HERE, HOST, Workstation

DOMAIN = "lab.example.com"
SECRET = '["miniflux"]["admin_password"]'
#: What keeps the plans of a run (tests/integration/callbacks).
KEEP = {"ANSIBLE_CALLBACK_PLUGINS": "tests/integration/callbacks", "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1"}


def passwords() -> dict[str, t.Any]:
    return t.cast("dict[str, t.Any]", json.loads((ROOT / "build" / "lab-passwords.json").read_text()))


def kept(workstation: Workstation, name: str) -> dict[str, str]:
    """The digests of the plans that a run on the workstation kept, by host."""
    text = workstation.run(f"find ~/kept/{name} -name 'plan-*.json' -exec sha256sum {{}} +")
    return {match[2]: match[1] for match in re.finditer(r"(?m)^(\w{64}) .*/plan-(.*)\.json$", text)}


def own(inventory: Path, directory: Path) -> dict[str, str]:
    """The same of a run on this machine, with its Ansible."""
    command = [str(BIN / "ansible"), "-i", str(inventory), "all", "-m", "hearth.homelab.compose"]
    environment = {
        **os.environ, **KEEP, "PATH": f"{BIN}:{os.environ['PATH']}", "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "KEEP_PLANS": str(directory),
    }  # fmt: skip
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    return {
        path.stem.removeprefix("plan-"): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.glob("*/plan-*.json")
    }


def sudo(site: Site, command: str) -> str:
    """A command as root on lab-forge, through the only account that is let in."""
    argument = f"sudo sh -c {shlex.quote(command)}"
    found = subprocess.run([*site.login(HOST, "deploy"), argument], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.fixture(scope="session")
def password(workstation: Workstation) -> str:
    """A secret that the account made: miniflux's, which was taken out of the encrypted file before."""
    workstation.sops(f"unset {{}} '{SECRET}'")
    for expected in (["miniflux/admin_password"], []):
        found = workstation.play(playbook="playbooks/secrets.yml").results["Generate what is missing"][HOST]
        assert [entry["name"] for entry in found["made"]] == expected
    return workstation.sops(f"decrypt --extract '{SECRET}' {{}}")


@pytest.fixture(scope="session")
def converged(site: Site, workstation: Workstation, password: str) -> dict[str, t.Any]:
    """The first run of all tiers on a fresh host."""
    return workstation.play(KEEP_PLANS="/home/anna/kept/first", **KEEP).converge()


def test_the_account_has_the_pinned_ansible_and_no_rights(workstation: Workstation) -> None:
    pinned = dict(re.findall(r"(?m)^([a-z-]+)==(\S+)$", (ROOT / HERE / "requirements.txt").read_text()))
    found = workstation.run("ansible --version; sudo -n true 2>&1 || echo no sudo; id --groups --name")
    assert f"core {pinned['ansible-core']}]" in found
    assert re.search(r"python version = 3\.13\.", found)
    assert "no sudo" in found
    assert found.split()[-1] == "anna"


def test_the_controllers_unit_tests(workstation: Workstation) -> None:
    """layers.py, which uses Ansible's private parts, and everything that stands on it."""
    text = workstation.run(
        "python -m pytest -q -n 2 tests/unit/controller 2>&1 | tail -60; exit ${PIPESTATUS[0]}", timeout=600
    )
    assert re.search(r"\d{3,} passed", text), text
    assert "sops or age" not in text


@pytest.mark.parametrize("fleet", ["homelab", "lab"])
def test_plans_are_those_of_this_machine(site: Site, workstation: Workstation, tmp_path: Path, fleet: str) -> None:
    """Byte for byte, whichever Ansible and Python composed them."""
    inventory = "inventories/homelab" if fleet == "homelab" else "../site/inventories/lab"
    workstation.run(
        f"ansible -i {inventory} all -m hearth.homelab.compose", KEEP_PLANS=f"/home/anna/kept/{fleet}", **KEEP
    )
    here = own(ROOT / inventory if fleet == "homelab" else site.inventory, tmp_path)
    assert len(here) > 1
    assert kept(workstation, fleet) == here


def test_a_fresh_host_converges(site: Site, workstation: Workstation, converged: dict[str, t.Any]) -> None:
    assert converged["changed"]
    assert "install package:miniflux" in {f"{action['operation']} {action['id']}" for action in converged["actions"]}
    assert kept(workstation, "first")[HOST] == kept(workstation, "lab")[HOST]
    services = workstation.play(playbook="playbooks/status.yml").results["Ask the host how its services are"][HOST]
    states = {service["service"]: service["healthy"] for service in services["services"]}
    assert {"miniflux", "postgresql", "caddy", "sshd"} <= set(states)
    assert all(states.values()), states


def test_the_secret_that_the_account_made_is_the_one_in_use(
    site: Site, converged: dict[str, t.Any], password: str
) -> None:
    root = sudo(site, "cat $(find /var/lib/caddy -path '*authorities/local/root.crt')")
    (site.directory / "root.crt").write_text(root)
    before = passwords()["lab"]["services"][HOST]["miniflux"]["admin_password"]
    answers = [
        site.fetch(f"https://miniflux.{DOMAIN}/v1/me", user="admin", password=value) for value in (password, before)
    ]
    assert [status for status, _body in answers] == [200, 401]


def test_root_may_not_log_in(site: Site, converged: dict[str, t.Any]) -> None:
    found = subprocess.run([*site.login(HOST), "true"], capture_output=True, text=True, check=False)
    assert found.returncode == 255
    assert "Permission denied" in found.stderr


def test_nothing_is_left_to_do_and_nothing_of_the_account_is_left(
    site: Site, workstation: Workstation, converged: dict[str, t.Any]
) -> None:
    sudo(site, "touch /run/stamp")
    again = workstation.play("--diff").converge()
    assert not again["changed"], again["actions"]
    assert again["exchanges"] == 1
    # Everything travels through sudo's standard input: the account never holds a request, nor a secret in it.
    left = "find / /tmp /run /dev/shm -xdev -user deploy -newer /run/stamp -type f"
    assert sudo(site, left).split() == []
    # Nor does a plan stay on the workstation.
    assert workstation.run("find ~ -path ~/kept -prune -o -name 'plan-*.json' -print").split() == []


def test_a_change_is_foretold(site: Site, workstation: Workstation, converged: dict[str, t.Any]) -> None:
    sudo(site, "echo '# by hand' >>/etc/miniflux/miniflux.conf; systemctl stop miniflux")
    foretold = workstation.play("--check", "--diff").actions()
    assert "modify file:/etc/miniflux/miniflux.conf" in foretold
    assert workstation.play("--diff").actions() == foretold
    healthy = f"curl -s -o /dev/null -w '%{{http_code}}' --insecure --resolve miniflux.{DOMAIN}:443:127.0.0.1"
    wait_until("it answers", lambda: "200" in sudo(site, f"{healthy} https://miniflux.{DOMAIN}/healthcheck"), 20)


def test_ansible_runner(workstation: Workstation, converged: dict[str, t.Any], password: str) -> None:
    """As AWX runs it: the same plan, nothing to do in one exchange, and artifacts without secrets."""
    inventory = "/home/anna/site/inventories/lab"
    workstation.run(
        "rm -rf ~/runner && mkdir ~/runner && ansible-runner run ~/runner --project-dir ~/checkout --playbook site.yml"
        f" --inventory {inventory} --limit {HOST} --cmdline=--become --ident run --quiet -vvv",
        KEEP_PLANS="/home/anna/kept/runner", timeout=300, **KEEP,
    )  # fmt: skip
    assert kept(workstation, "runner")[HOST] == kept(workstation, "first")[HOST]
    events = workstation.run("cd ~/runner/artifacts/run/job_events && cat *.json | tr -d '\\n'")
    found, position = {}, 0
    while position < len(events):
        event, position = json.JSONDecoder().raw_decode(events, position)
        data = event.get("event_data", {})
        if event["event"] == "runner_on_ok":
            found[data["task_action"]] = data["res"]
    result = found["hearth.homelab.converge"]
    assert not result["changed"], result["actions"]
    assert result["exchanges"] == 1
    artifacts = workstation.run(
        "cat ~/runner/artifacts/run/{stdout,stderr,command} ~/runner/artifacts/run/fact_cache/* 2>&1; true"
    )
    values = {value for keys in passwords()["lab"]["services"][HOST].values() for value in keys.values()} | {password}
    assert all(len(value) >= 16 for value in values)
    assert not [value for value in values if value in events + artifacts]
