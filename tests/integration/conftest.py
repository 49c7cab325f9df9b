# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A site under test: a copy of the lab's inventory that tests may change, and ways to run plays and commands."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


@dataclass
class Outcome:
    """One run of ansible-playbook: exit status, what it printed, and the results of every task by host."""

    status: int
    text: str
    results: dict[str, dict[str, dict[str, t.Any]]] = field(default_factory=dict)
    seconds: float = 0.0

    def converge(self, host: str = "lab-forge") -> dict[str, t.Any]:
        """The result of the converge task of a host."""
        for name, hosts in self.results.items():
            if "onverge" in name and host in hosts:
                return hosts[host]
        raise AssertionError(f"no converge result of {host} in:\n{self.text[-6000:]}")

    def actions(self, host: str = "lab-forge") -> set[str]:
        return {f"{action['operation']} {action['id']}" for action in self.converge(host).get("actions", [])}

    @property
    def message(self) -> str:
        """All messages of failed tasks."""
        found = []
        for hosts in self.results.values():
            for result in hosts.values():
                if result.get("failed") or result.get("unreachable"):
                    found.append(str(result.get("msg", result)))
        return "\n".join(found) or self.text


@dataclass
class Site:
    """An inventory directory of its own, below a directory that looks like a user's repository."""

    directory: Path
    name: str

    @property
    def inventory(self) -> Path:
        return self.directory / "inventories" / "lab"

    def play(
        self,
        *arguments: str,
        playbook: str | Path = "site.yml",
        limit: str | None = "lab-forge",
        variables: dict[str, t.Any] | None = None,
        expect: int | None = 0,
        env: dict[str, str] | None = None,
        timeout: int = 900,
    ) -> Outcome:
        """Runs a playbook; ``expect`` is the exit status that is asserted (None: any)."""
        command = [str(BIN / "ansible-playbook"), "-i", str(self.inventory), str(playbook), *arguments]
        if limit:
            command += ["-l", limit]
        if variables:
            command += ["-e", json.dumps(variables)]
        log = self.directory / "results.json"
        log.unlink(missing_ok=True)
        start = time.monotonic()
        found = subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment(ANSIBLE_JSON_OUTPUT=str(log), **(env or {})),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        seconds = time.monotonic() - start
        outcome = Outcome(found.returncode, found.stdout + found.stderr, results(found.stdout), seconds)
        if expect is not None:
            assert outcome.status == expect, outcome.text[-12000:]
        return outcome

    def environment(self, **extra: str) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
            "ANSIBLE_NOCOLOR": "1",
            **extra,
        }

    def login(self, host: str, user: str = "root") -> list[str]:
        """The command that logs in on a host with the lab's key."""
        keys = self.directory / "build" / "lab" / "ssh"
        return [
            "ssh", "-i", str(keys / "id_ed25519"), "-o", f"UserKnownHostsFile={keys}/known_hosts",
            "-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes", "-o", "ConnectTimeout=10",
            "-o", "LogLevel=ERROR", "-o", "ControlMaster=no", f"{user}@{self.address(host)}",
        ]  # fmt: skip

    def ssh(self, host: str, command: str, *, check: bool = True, stdin: str | None = None, timeout: int = 120) -> str:
        """Runs a shell command on a host and returns what it printed."""
        found = subprocess.run(
            [*self.login(host), command], input=stdin, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip
        if check:
            assert found.returncode == 0, f"{command}: {found.stdout}{found.stderr}"
        return found.stdout

    def address(self, host: str) -> str:
        hosts = yaml.safe_load((self.inventory / "hosts.yml").read_text())["all"]["children"]["lab"]["hosts"]
        return str(hosts[host]["ansible_host"])

    def vars_file(self, name: str) -> Path:
        """A variables file of the tests' own, such as ``host_vars/lab-forge/zz_test.yml``."""
        return self.inventory / name

    def set_vars(self, name: str, data: dict[str, t.Any] | None) -> None:
        """Writes (or with None removes) a variables file below the inventory."""
        path = self.vars_file(name)
        if data is None:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(data, sort_keys=False))

    def generation(self, host: str = "lab-forge") -> dict[str, t.Any]:
        """The current generation as the host recorded it."""
        text = self.ssh(host, "cat /var/lib/hearth/generations/current")
        return t.cast("dict[str, t.Any]", json.loads(text))

    def fetch(
        self, url: str, *, user: str | None = None, password: str = "", address: str | None = None
    ) -> tuple[int, str]:
        """Status and body of a request to a route, with the certificate checked against the host's own authority."""
        match = re.match(r"https://([^/:]+)(?::(\d+))?(/.*)?$", url)
        assert match, url
        root = self.directory / "root.crt"
        if not root.exists():
            found = self.ssh("lab-forge", "cat $(find /var/lib/caddy -path '*authorities/local/root.crt')")
            root.write_text(found)
        command = [
            "curl", "--silent", "--show-error", "--max-time", "20", "--cacert", str(root), "--write-out", "\n%{http_code}",
            "--resolve", f"{match[1]}:{match[2] or 443}:{address or self.address('lab-forge')}", "--path-as-is",
        ]  # fmt: skip
        if user:
            command += ["--user", f"{user}:{password}"]
        found = subprocess.run([*command, url], capture_output=True, text=True, timeout=40, check=False)
        assert found.returncode == 0, found.stderr
        body, _newline, status = found.stdout.rpartition("\n")
        return int(status), body


def results(stdout: str) -> dict[str, dict[str, dict[str, t.Any]]]:
    start = stdout.find("{\n")
    if start < 0:
        return {}
    try:
        data = json.JSONDecoder().raw_decode(stdout[start:])[0]
    except ValueError:
        return {}
    return {task["task"]["name"]: task["hosts"] for play in data.get("plays", []) for task in play["tasks"]}


def wait_until(what: str, condition: t.Callable[[], t.Any], seconds: float, interval: float = 2.0) -> t.Any:
    """Polls until the condition holds and returns its value; fails with ``what`` after ``seconds``."""
    end = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
        time.sleep(interval)


def copy_inventory(target: Path) -> Path:
    """A user's repository with a copy of the lab's inventory and no connection: for what compose refuses."""
    inventory = target / "inventories" / "lab"
    shutil.copytree(ROOT / "inventories" / "lab", inventory, symlinks=False)
    return inventory


@pytest.fixture
def paper(tmp_path: Path) -> Site:
    """A site that is only composed, never connected to."""
    copy_inventory(tmp_path)
    return Site(tmp_path, "paper")


@pytest.fixture(scope="session")
def site() -> Site:
    """The converged site of the molecule scenario whose tests these are; its molecule.yml names the directory."""
    directory = os.environ.get("HEARTH_TEST_SITE")
    if not directory:
        pytest.fail("HEARTH_TEST_SITE names no site: run these tests with `make molecule SCENARIO=NAME`")
    path = Path(directory).resolve()
    return Site(path, path.name)


@pytest.fixture
def changed(site: Site) -> t.Iterator[t.Callable[[str, dict[str, t.Any] | None], None]]:
    """Sets variables files for one test and takes them away again, converging the host back to where it was."""
    names: set[str] = set()

    def set_vars(name: str, data: dict[str, t.Any] | None) -> None:
        names.add(name)
        site.set_vars(name, data)

    yield set_vars
    for name in names:
        site.set_vars(name, None)
    if names:
        site.play(expect=None)
