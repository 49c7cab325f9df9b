# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The host of molecule's scenario `kills`: lab-forge alone, fresh."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from ..conftest import ROOT, Site, wait_until

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "host"))

from drive import Host

SMALL = """set -e
mkdir -p /run/small
mount -t tmpfs -o size=192m,mode=755 small /run/small
for directory in /etc /var/lib/hearth; do
    mkdir -p /run/small$directory
    cp -a $directory/. /run/small$directory
    mount --bind /run/small$directory $directory
done
"""
LARGE = """set -e
mkdir -p /run/disk
mount --bind / /run/disk
for directory in /etc /var/lib/hearth; do
    find /run/disk$directory -mindepth 1 -delete
    cp -a $directory/. /run/disk$directory
    umount --lazy $directory
done
umount /run/disk
umount --lazy /run/small
systemctl daemon-reload
"""


class LabHost(Host):
    """lab-forge, with a plug that can be pulled."""

    def __init__(self, site: Site) -> None:
        self.site, self.lab = site, site.directory / "build" / "lab"
        control = ("-o", "ControlMaster=auto", "-o", "ControlPersist=60", "-o", "ControlPath=/tmp/hearth-kills-%C")
        super().__init__(["ssh", "-F", str(self.lab / "ssh" / "config"), *control, "lab-forge"])

    def plug(self, command: str) -> None:
        program = [sys.executable, str(ROOT / "roles/lab/files/hearth_lab.py"), command, f"--name={self.site.name}"]
        subprocess.run([*program, "lab-forge"], check=True, capture_output=True, timeout=120)

    def power_cut(self) -> None:
        """Every process of the host ends at once; then it boots again, until the boot is over."""
        self.plug("crash")
        subprocess.run([*self.ssh[:-1], "-O", "exit", self.ssh[-1]], check=False, capture_output=True)
        self.plug("start")
        # "degraded", too: a unit that a power cut made fail is for the test to judge.
        boot = "systemctl is-system-running --wait"
        wait_until("the host is back", lambda: self.sh(boot, check=False).strip() in ("running", "degraded"), 120, 0.5)

    @contextlib.contextmanager
    def small_disk(self) -> t.Iterator[None]:
        """/etc and Hearth's own directory on one small file system, with what is in them, there and back.

        A tmpfs: a container has no loop devices, and its own disk is the machine's.
        """
        self.sh(SMALL)
        try:
            yield
        finally:
            self.sh(LARGE)


@pytest.fixture(scope="session")
def host(site: Site) -> LabHost:
    return LabHost(site)
