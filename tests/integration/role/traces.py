# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host has that a service could leave behind, as JSON. Sent to the host and run there; standard library only.

It asks the host's own programs and never Hearth: two of these, one before a role came and one after it went, differ by
nothing but what stays on purpose. What Debian's packages own is left out: packages are a floor.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
import sys
import time
import typing as t
from collections.abc import Iterator

#: Where services put things. Not /var/lib: a service's data, which stays, is there, and what programs make by themselves.
TREES = ("/etc", "/usr/local", "/opt", "/root", "/home", "/var/spool")
FOLDERS = ("/srv", "/mnt", "/")
#: Units that come and go by themselves: logins, Hearth's own runs, what a timer starts.
PASSING = re.compile(r"session-|user@|user-runtime-dir@|run-|hearth-(apply|guard|settle)|apt-daily|apt-news|man-db|dpkg-db|"
                     r"fstrim|e2scrub|systemd-tmpfiles|systemd-hostnamed|systemd-timedated|systemd-localed|modprobe@|"
                     r"systemd-networkd-wait|logrotate|motd|netavark_run")  # fmt: skip


def run(*command: str) -> str:
    """What a program prints; nothing where it is not installed."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout
    except FileNotFoundError:
        return ""


def units() -> set[str]:
    listed = run("systemctl", "list-units", "--all", "--plain", "--no-legend", "--type=service,socket,timer,path,mount")
    found = set()
    for line in listed.splitlines():
        name, load, active = line.split()[:3]
        if active not in ("inactive",) and not PASSING.match(name):
            found.add(f"{name} {load} {active}")
    return found


def enabled() -> set[str]:
    listed = run(
        "systemctl", "list-unit-files", "--no-legend", "--state=enabled,enabled-runtime,linked,masked,masked-runtime"
    )
    return {" ".join(line.split()[:2]) for line in listed.splitlines()}


def sockets() -> set[str]:
    found = set()
    for line in run("ss", "-Hlntup").splitlines():
        fields = line.split()
        # Another port for every request that a program sends.
        if fields[0] == "udp" and int(fields[4].rpartition(":")[2] or 0) >= 32768:
            continue
        found.add(f"{fields[0]} {fields[4]}")
    return found


def rules() -> set[str]:
    """Every table, chain, set and rule, without numbers that count."""
    text = run("nft", "--stateless", "list", "ruleset")
    found, place = set(), []
    for line in text.splitlines():
        entry = line.strip()
        if entry.endswith("{"):
            place.append(entry)
        found.add(" ".join([*place, entry]))
        if entry == "}":
            place.pop()
    return found


def podman() -> set[str]:
    return {
        f"{what} {name}"
        for what, command in {
            "container": ("ps", "--all", "--format", "{{.Names}}"),
            "network": ("network", "ls", "--format", "{{.Name}}"),
            "secret": ("secret", "ls", "--format", "{{.Name}}"),
            "volume": ("volume", "ls", "--format", "{{.Name}}"),
        }.items()
        for name in run("podman", *command).split()
    } - {"network podman"}  # always there


def logins() -> set[str]:
    found = set()
    for line in run("getent", "passwd").splitlines():
        fields = line.split(":")
        if not fields[6].endswith(("/nologin", "/false", "/sync")):
            found.add(f"{fields[0]} {fields[6]}")
    for line in run("getent", "shadow").splitlines():
        name, password = line.split(":")[:2]
        if password and password[0] not in "!*":
            found.add(f"{name} has a password")
    return found


def processes() -> set[str]:
    """Programs by their user: those that are not root's and nobody's session."""
    found = set()
    for line in run("ps", "-eo", "user:32=,comm=").splitlines():
        user, _blank, program = line.partition(" ")
        if user != "root":
            found.add(f"{user} {program.strip()}")
    return found


def owned() -> set[str]:
    """Paths of packages, and what dpkg and its helpers keep for them."""
    found: set[str] = set()
    for entry in os.scandir("/var/lib/dpkg/info"):
        if entry.name.endswith((".list", ".conffiles")):
            with open(entry.path, encoding="utf-8", errors="replace") as stream:
                found.update(line.split()[0] if entry.name.endswith(".conffiles") else line.rstrip("\n") for line in stream
                             if line.strip())  # fmt: skip
    for line in run("ucfq", "--with-colons").splitlines():
        found.add(line.partition(":")[0])
    return found


def configured() -> list[tuple[float, float]]:
    """When dpkg ran: what maintainer scripts made then is their packages'."""
    found: list[tuple[float, float]] = []
    try:
        with open("/var/log/dpkg.log", encoding="utf-8") as stream:
            for entry in stream:
                moment = time.mktime(time.strptime(entry[:19], "%Y-%m-%d %H:%M:%S"))
                if " startup " in entry or not found:
                    found.append((moment, moment + 1))
                else:
                    found[-1] = (found[-1][0], moment + 1)
    except FileNotFoundError:
        pass
    return found


def walk() -> Iterator[str]:
    for tree in TREES:
        for folder, folders, names in os.walk(tree):
            yield from (os.path.join(folder, name) for name in (*folders, *names))
    for folder in FOLDERS:
        if os.path.isdir(folder):
            yield from (os.path.join(folder, name) for name in os.listdir(folder))


def files() -> dict[str, str]:
    """Type, mode, owner and content of every path; those of packages are marked with =."""
    packaged, found, runs = owned(), {}, configured()
    for path in walk():
        try:
            status = os.lstat(path)
            text = f"{stat.filemode(status.st_mode)} {status.st_uid} {status.st_gid}"
            if stat.S_ISLNK(status.st_mode):
                text += f" -> {os.readlink(path)}"
            elif stat.S_ISREG(status.st_mode) and not path.startswith("/run/"):
                with open(path, "rb") as stream:
                    text += " " + hashlib.sha256(stream.read()).hexdigest()
        except OSError:
            continue
        is_packaged = path in packaged or any(start <= status.st_ctime <= end for start, end in runs)
        found[("= " if is_packaged else "") + path] = text
    return found


def main() -> None:
    found: dict[str, t.Any] = {
        check.__name__: sorted(check()) for check in (units, enabled, sockets, rules, podman, logins, processes)
    }
    found["files"] = files()
    # Not those that were removed and left their configuration files (rc).
    states = [line.split() for line in run("dpkg-query", "-W", "-f=${db:Status-Status} ${Package}\n").splitlines()]
    found["packages"] = [name for state, name in states if state == "installed"]
    found["links"] = sorted(os.listdir("/sys/class/net"))
    with open("/proc/self/mountinfo", encoding="utf-8") as stream:
        found["mounts"] = sorted({line.split()[4] for line in stream})
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
