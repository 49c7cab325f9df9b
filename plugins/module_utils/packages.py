# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Install Debian packages in one transaction, with nothing started, replaced or removed behind our back.

Standard library only: this module runs on hosts.
"""

from __future__ import annotations

import os
import re
import time
import typing as t
from dataclasses import dataclass

from ansible_collections.hearth.homelab.plugins.module_utils import undo
from ansible_collections.hearth.homelab.plugins.module_utils.layout import write_atomic
from ansible_collections.hearth.homelab.plugins.module_utils.runner import Completed, explain
from ansible_collections.hearth.homelab.plugins.module_utils.undo import Context

#: Seconds after which package lists count as old.
LISTS_AGE = 24 * 3600

#: Conffiles: ours stay (a file that was placed before its package is such a one); apt waits for other apt processes.
APT = (
    "apt-get",
    "-y",
    "-q",
    "--no-install-recommends",
    "-o",
    "Dpkg::Options::=--force-confold",
    "-o",
    "Dpkg::Options::=--force-confdef",
    "-o",
    "DPkg::Lock::Timeout=120",
    "-o",
    "Dpkg::Use-Pty=0",
)

#: needrestart(1) lists only; ucf(1) keeps what is there.
ENVIRONMENT = {
    "DEBIAN_FRONTEND": "noninteractive",
    "NEEDRESTART_MODE": "l",
    "NEEDRESTART_SUSPEND": "1",
    "APT_LISTCHANGES_FRONTEND": "none",
    "UCF_FORCE_CONFFOLD": "1",
}

#: Seconds that downloading and installing may take.
TIMEOUT = 3600.0

_UNKNOWN = re.compile(r"^E: (?:Unable to locate package|Package '?)\s*([^\s']+)", re.MULTILINE)
_INSTALLED_SIZE = re.compile(r"^Installed-Size: (\d+)$", re.MULTILINE)


class PackageError(Exception):
    """Packages cannot be installed; the message says which and why. ``names`` are the packages concerned."""

    def __init__(self, message: str, names: t.Sequence[str] = ()) -> None:
        super().__init__(message)
        self.names = tuple(names)


@dataclass(frozen=True)
class Simulation:
    """What an installation would do (apt-get -s)."""

    installs: tuple[str, ...] = ()
    removes: tuple[str, ...] = ()


def parse_simulation(output: str) -> Simulation:
    """The ``Inst`` and ``Remv`` lines of ``apt-get -s install``."""
    found: dict[str, list[str]] = {"Inst": [], "Remv": []}
    for line in output.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] in found:
            found[words[0]].append(words[1])
    return Simulation(tuple(found["Inst"]), tuple(found["Remv"]))


def parse_unknown(output: str) -> list[str]:
    """Packages that apt does not know or cannot install for want of a candidate."""
    return sorted(set(_UNKNOWN.findall(output)))


def parse_space(output: str) -> int:
    """Bytes that packages take when installed: Installed-Size of ``apt-cache show`` is in KiB (deb-control(5))."""
    return sum(int(size) for size in _INSTALLED_SIZE.findall(output)) * 1024


def _apt(context: Context, *arguments: str, timeout: float = TIMEOUT) -> Completed:
    return context.runner.run([*APT, *arguments], env=ENVIRONMENT, timeout=timeout, check=False)


def lists_age(context: Context) -> float | None:
    """Seconds since the package lists were read; None when there are none."""
    directory = context.layout.at("/var/lib/apt/lists")
    try:
        times = [entry.stat().st_mtime for entry in os.scandir(directory) if "_Packages" in entry.name]
    except FileNotFoundError:
        times = []
    return time.time() - max(times) if times else None


def update(context: Context) -> None:
    """apt-get update; PackageError if a source cannot be read."""
    context.say("reading the package lists")
    done = _apt(context, "-o", "APT::Update::Error-Mode=any", "update", timeout=600)
    if done.returncode != 0:
        raise PackageError(f"apt-get update: {context.redactor.text(explain(done))}")


def repair(context: Context) -> None:
    """Finish an interrupted dpkg(1) run, with starts denied by the caller; PackageError when it cannot be."""
    updates = context.layout.at("/var/lib/dpkg/updates")
    pending = updates.is_dir() and any(name.isdecimal() for name in os.listdir(updates))
    if not pending and not _unfinished(context):
        return
    context.say("finishing an interrupted installation of packages (dpkg --configure -a)")
    argv = ["dpkg", "--force-confold", "--force-confdef", "--configure", "-a"]
    done = context.runner.run(argv, env=ENVIRONMENT, timeout=TIMEOUT, check=False)
    if done.returncode == 0 and not _unfinished(context):
        return
    # Killed while it unpacked: a package that dpkg wants anew, or one whose dependencies are not unpacked yet. apt gets
    # both right, from what it has downloaded.
    context.say("installing what was left half unpacked (apt-get -f install)")
    done = _apt(context, "-f", "--no-remove", "install")
    anew = _wanted_anew(context)
    if anew:
        # Killed after its files were in place, before dpkg took its mark away: apt counts such a package as unpacked,
        # tries to configure it, and dpkg refuses that. Its dependencies are there by now, as --reinstall needs them.
        context.say(f"installing anew what dpkg had marked so: {', '.join(anew)}")
        done = _apt(context, "--no-remove", "--reinstall", "install", *anew)
    left = _unfinished(context)
    if done.returncode != 0 or left:
        why = context.redactor.text(explain(done, 15) if done.returncode else left)
        raise PackageError(f"an interrupted installation cannot be finished: {why}")


def _wanted_anew(context: Context) -> list[str]:
    """Packages with dpkg's flag ``reinstreq`` (dpkg-query(1), db:Status-Eflag)."""
    argv = ["dpkg-query", "-W", "-f", "${db:Status-Eflag} ${binary:Package}\\n"]
    lines = context.runner.run(argv, timeout=60).stdout.splitlines()
    return sorted(name for flag, _, name in (line.partition(" ") for line in lines) if flag == "reinstreq")


def _unfinished(context: Context) -> str:
    """What dpkg(1) says of packages that are neither installed nor removed; empty when there are none."""
    return context.runner.run(["dpkg", "--audit"], check=False, timeout=60).stdout.strip()


def simulate(context: Context, names: t.Sequence[str], fresh_sources: bool) -> Simulation:
    """What installing ``names`` would do; reads the package lists when a name is unknown or sources changed."""
    if fresh_sources or lists_age(context) is None:
        update(context)
    done = _apt(context, "-s", "install", *names, timeout=300)
    if done.returncode != 0 and not fresh_sources:
        update(context)
        done = _apt(context, "-s", "install", *names, timeout=300)
    if done.returncode != 0:
        unknown = parse_unknown(done.stderr) or []
        if unknown:
            raise PackageError(
                f"there is no package {', '.join(unknown)} in this host's package sources; correct the name, or "
                "declare the source that has it (native.repository)",
                unknown,
            )
        raise PackageError(f"the packages cannot be installed together: {explain(done, 15)}", names)
    return parse_simulation(done.stdout)


def space_needed(context: Context, names: t.Sequence[str]) -> int:
    """Bytes on /usr and /var that the installation takes (apt checks the space for downloads itself).

    Only ``-s`` never installs: with ``--assume-no`` apt still installs when it has nothing to ask.
    """
    found = parse_simulation(_apt(context, "-s", "install", *names, timeout=300).stdout).installs
    if not found:
        return 0
    done = context.runner.run(
        ["apt-cache", "show", "--no-all-versions", *found], env=ENVIRONMENT, timeout=120, check=False
    )
    return parse_space(done.stdout)


def download(context: Context, names: t.Sequence[str]) -> None:
    """Fetch all packages before anything is unpacked: a mirror that is out of reach changes nothing."""
    done = _apt(context, "--download-only", "install", *names)
    if done.returncode != 0:
        update(context)
        done = _apt(context, "--download-only", "install", *names)
    if done.returncode != 0:
        raise PackageError(f"packages cannot be downloaded: {explain(done, 8)}", names)


def deny_starts(context: Context, units: t.Iterable[str]) -> None:
    """From now on nothing is started by maintainer scripts; ``undo.clean`` ends that, also after kill -9.

    policy-rc.d(8) as invoke-rc.d(8) reads it, and run-time masks for ``units`` that do not exist yet: some
    maintainer scripts call systemctl themselves.
    """
    path = context.layout.at("/usr/sbin/policy-rc.d")
    before = undo.path_undo(context, "/usr/sbin/policy-rc.d")["before"]
    if before is not None and path.is_file() and undo.POLICY_MARK in path.read_text("utf-8", "replace"):
        before = None
    context.journal.begin("cleanup:policy-rc.d", "create", "", {"do": "policy-rc.d", "aside": before}, cleanup=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, undo.POLICY.encode(), 0o755)
    directory = context.layout.at("/run/systemd/system")
    directory.mkdir(parents=True, exist_ok=True)
    masked = sorted(unit for unit in set(units) if not os.path.lexists(directory / unit))
    if masked:
        context.journal.begin("cleanup:masks", "create", "", {"do": "masks", "units": masked}, cleanup=True)
        for unit in masked:
            (directory / unit).symlink_to("/dev/null")
        context.call(["systemctl", "daemon-reload"])


def install(context: Context, names: t.Sequence[str], allowed: t.Collection[str]) -> None:
    """Install with starts denied by the caller. Nothing may be removed but ``allowed``."""
    arguments = ["install", *names] if allowed else ["--no-remove", "install", *names]
    done = _apt(context, *arguments)
    if done.returncode != 0:
        raise PackageError(f"installing packages failed: {explain(done, 15)}", names)
