# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The hosts of molecule's scenario `controllers`: lab-nas-1 as somebody's workstation, lab-forge as the host to converge.

On the workstation an account without any rights has a copy of this checkout, a virtual environment of Debian's Python with
the packages of requirements.txt, and the site's inventory. lab-forge has an account that may use sudo, as installers of
machines make one.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import typing as t
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..conftest import ROOT, Outcome, Site, results

WORKSTATION = "lab-nas-1"
HOST = "lab-forge"
HERE = Path(__file__).resolve().parent.relative_to(ROOT)
#: Debian's packages that the account cannot install itself. age: the unit tests of encrypted files make keys with it.
PACKAGES = "python3-venv age"
#: Names of a checkout's files that hold throwaway secrets, which git does not know.
SECRETS = "inventories/homelab/secrets"


@dataclass
class Workstation:
    """What the account `anna` does on lab-nas-1."""

    site: Site

    def run(self, command: str, *, timeout: int = 120, **environment: str) -> str:
        """Runs a shell command in the checkout, as somebody who has logged in, and returns what it printed."""
        variables = {
            "ANSIBLE_NOCOLOR": "1",
            # Said when it is used, not when it is gone.
            "ANSIBLE_DEPRECATION_WARNINGS": "1",
            **environment,
        }
        exports = "".join(f"export {name}={shlex.quote(value)}; " for name, value in variables.items())
        script = f'cd ~/checkout && export PATH="$PWD/.venv/bin:$PATH" && {exports}{command}'
        return self.site.ssh(WORKSTATION, f"runuser --login anna --command {shlex.quote(script)}", timeout=timeout)

    def play(self, *arguments: str, playbook: str = "site.yml", timeout: int = 600, **environment: str) -> Outcome:
        """A run that succeeds, through sudo on lab-forge; nothing in it may warn of what goes away."""
        command = ["ansible-playbook", "-i", "../site/inventories/lab", "--become", "-l", HOST, playbook, *arguments]
        environment = {"ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json", **environment}
        text = self.run(f"{shlex.join(command)} 2>&1", timeout=timeout, **environment)
        # On the screen, or in the result of a task.
        assert not re.search(r'DEPRECATION WARNING|"deprecations"', text), text
        return Outcome(0, text, results(text))

    def sops(self, arguments: str) -> str:
        """Runs sops on the host's secrets; {} stands for their file."""
        folder = "../site/inventories/lab/secrets"
        command = f"sops {arguments.format(f'{folder}/{HOST}.sops.yml')}"
        return self.run(command, SOPS_AGE_KEY_FILE=f"{folder}/age-key.txt")

    def copy(self, source: Path, names: t.Iterable[str], target: str, *options: str) -> None:
        """Copies files below a directory into one that belongs to the account."""
        packed = subprocess.run(
            ["tar", "--create", *options, "--null", "--files-from=-"],
            cwd=source, input="\0".join(names).encode(), capture_output=True, check=True,
        ).stdout  # fmt: skip
        unpack = f"mkdir -p {target} && tar --extract --directory {target} && chown -R anna: {target}"
        subprocess.run([*self.site.login(WORKSTATION), unpack], input=packed, check=True, timeout=120)


def tracked() -> list[str]:
    """What git knows of this checkout or would know."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [name for name in found if name and (ROOT / name).exists()]


@pytest.fixture(scope="session")
def workstation(site: Site) -> Workstation:
    found = Workstation(site)
    site.ssh(
        WORKSTATION,
        "export DEBIAN_FRONTEND=noninteractive; "
        f"apt-get -qq --yes --no-install-recommends install {PACKAGES} >/dev/null; "
        "id anna >/dev/null 2>&1 || useradd --create-home --shell /bin/bash anna",
        timeout=300,
    )
    found.copy(ROOT, [*tracked(), SECRETS], "/home/anna/checkout")
    found.copy(site.directory, ["inventories", "build/lab/ssh"], "/home/anna/site", "--dereference")
    # Later runs find root locked out.
    if subprocess.run([*site.login(HOST, "deploy"), "true"], check=False, capture_output=True).returncode != 0:
        site.ssh(
            HOST,
            "useradd --create-home --shell /bin/bash deploy;"
            "install -d -m 700 -o deploy -g deploy /home/deploy/.ssh;"
            "install -m 600 -o deploy -g deploy /root/.ssh/authorized_keys /home/deploy/.ssh/authorized_keys;"
            "umask 227; echo 'deploy ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/deploy",
        )
    found.run(
        # Compiling all of Ansible's collections takes longer than everything that is run from them.
        f"python3 -m venv .venv && .venv/bin/pip install --quiet --no-compile -r {HERE}/requirements.txt",
        timeout=600,
    )
    return found
