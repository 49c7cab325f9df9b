# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The converged site of molecule's scenario `sops`: lab-forge alone, and its secrets as canaries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import typing as t
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..conftest import BIN, ROOT, Site

sys.path.insert(0, str(ROOT / ".collections"))

from ansible_collections.hearth.homelab.plugins.module_utils.redact import forms

SCAN = Path(__file__).with_name("scan.py")
HOST = "lab-forge"

Canaries = dict[str, list[str]]
Hits = set[tuple[str, str]]


@dataclass
class Secrets:
    """The site's secrets file: its values, changed and searched for."""

    site: Site

    @property
    def path(self) -> Path:
        return self.site.inventory / "secrets" / f"{HOST}.sops.yml"

    def sops(self, *arguments: str, stdin: str = "") -> str:
        found = subprocess.run(
            [str(BIN / "sops"), *arguments],
            env={**os.environ, "SOPS_AGE_KEY_FILE": str(self.path.parent / "age-key.txt")},
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.returncode == 0, found.stderr
        return found.stdout

    def values(self) -> dict[str, str]:
        """SERVICE/KEY -> value, people's hashes included."""
        data = json.loads(self.sops("decrypt", "--output-type", "json", str(self.path)))
        return {
            f"{service}/{key}": value["password_hash"] if isinstance(value, dict) else value
            for service, entries in data.items()
            for key, value in entries.items()
        }

    def set(self, name: str, value: str) -> None:
        """As its owner does it, with sops."""
        service, _slash, key = name.partition("/")
        self.sops("set", "--value-stdin", str(self.path), f'["{service}"]["{key}"]', stdin=json.dumps(value))

    def unset(self, name: str) -> None:
        service, _slash, key = name.partition("/")
        self.sops("unset", str(self.path), f'["{service}"]["{key}"]')

    def canaries(self) -> Canaries:
        """What to search for: every value in every form in which it could leak, and the age key itself."""
        found = {name: sorted(_forms(value)) for name, value in self.values().items()}
        key = (self.path.parent / "age-key.txt").read_text()
        found["age key"] = [line for line in key.splitlines() if line.startswith("AGE-SECRET-KEY-")]
        assert all(found.values())
        return found


def _forms(value: str) -> set[str]:
    """One line each. The first line of every OpenSSH private key is the same: it is no secret."""
    lines = value.strip().splitlines()
    if len(lines) == 1:
        return {form for form in forms(value) if "\n" not in form}
    return {form for line in lines[2:-1] for form in forms(line)}


@pytest.fixture(scope="session")
def secrets(site: Site) -> Secrets:
    return Secrets(site)


@pytest.fixture(scope="session")
def scanner(site: Site) -> Scanner:
    site.ssh(HOST, "cat > /root/scan.py", stdin=SCAN.read_text())
    return Scanner(site)


@dataclass
class Scanner:
    """scan.py on the host and on this machine."""

    site: Site

    def files(self, canaries: Canaries) -> Hits:
        """Everything that is not a kernel's file system, Debian's own or a cache of packages."""
        skipped = " ".join(f"-{path}" for path in ("/proc", "/sys", "/dev", "/usr", "/var/cache/apt", "/var/lib/apt"))
        return self._on_host(f"files / {skipped}", canaries)

    def journal(self, canaries: Canaries) -> Hits:
        return self._on_host("journal", canaries)

    def processes(self, canaries: Canaries) -> Hits:
        """What runs now, looked at once."""
        return self._on_host("processes /etc/passwd", canaries)

    def here(self, canaries: Canaries, directory: Path) -> Hits:
        """Files of a directory of this machine."""
        found = subprocess.run(
            [sys.executable, str(SCAN), "files", str(directory)],
            input=json.dumps(canaries), capture_output=True, text=True, check=True,
        )  # fmt: skip
        return {(name, place) for name, place in json.loads(found.stdout)}

    @contextmanager
    def watching(self, canaries: Canaries, directory: Path) -> t.Iterator[Hits]:
        """Samples all processes of the host and of this machine meanwhile; what was seen is there at the end."""
        seen: Hits = set()
        stop = directory / "stop"
        self.site.ssh(HOST, "rm -f /run/stop-scan")
        there = threading.Thread(
            target=lambda: seen.update(self._on_host("processes /run/stop-scan", canaries, timeout=900))
        )
        here = subprocess.Popen(
            [sys.executable, str(SCAN), "processes", str(stop)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert here.stdin
        here.stdin.write(json.dumps(canaries))
        here.stdin.close()
        here.stdin = None
        there.start()
        try:
            yield seen
        finally:
            self.site.ssh(HOST, "touch /run/stop-scan")
            stop.touch()
            there.join()
            output = here.communicate(timeout=60)[0]
            seen.update((name, place) for name, place in json.loads(output))

    def _on_host(self, what: str, canaries: Canaries, timeout: int = 300) -> Hits:
        text = self.site.ssh(HOST, f"python3 /root/scan.py {what}", stdin=json.dumps(canaries), timeout=timeout)
        return {(name, place) for name, place in json.loads(text)}


def leaks(text: str, canaries: Canaries) -> set[str]:
    """The canaries that a text holds."""
    return {name for name, known in canaries.items() if any(form in text for form in known)}
