# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Is a service well: the state of its units and its own checks.

Standard library only: this module runs on hosts.
"""

from __future__ import annotations

import http.client
import pwd
import socket
import ssl
import subprocess
import typing as t
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

from ansible_collections.hearth.homelab.plugins.module_utils.manifest import Check

#: Checks run at the same time; each waits for the network most of the time.
WORKERS = 16

_PROPERTIES = (
    "Id,LoadState,ActiveState,SubState,UnitFileState,NRestarts,InvocationID,Job,Result,"
    "ExecMainStartTimestampMonotonic,ExecMainStatus,Type"
)


@dataclass(frozen=True)
class UnitStatus:
    """What ``systemctl show`` says of one unit (org.freedesktop.systemd1(5))."""

    name: str
    load: str = "not-found"
    active: str = "inactive"
    sub: str = "dead"
    file: str = ""
    restarts: int = 0
    invocation: str = ""
    job: bool = False
    result: str = ""
    started: int = 0  # microseconds, CLOCK_MONOTONIC: when its main process was last started
    type: str = ""

    @property
    def running(self) -> bool:
        """Active, and nothing under way that would change it."""
        return self.active == "active" and not self.job

    @property
    def failed(self) -> bool:
        """In the state "failed", where systemd does not start it again by itself."""
        return self.active == "failed" and not self.job

    @property
    def enabled(self) -> bool | None:
        """Whether it is enabled; None for units that cannot be (static, generated, absent)."""
        if self.file.startswith("enabled") or self.file == "linked":
            return True
        return False if self.file in ("disabled", "masked", "masked-runtime") else None


class Call(t.Protocol):
    """Runs a program and gives its exit status, output and error output."""

    def __call__(self, argv: t.Sequence[str], timeout: float | None = None) -> tuple[int, str, str]: ...


def show_units(call: Call, names: t.Iterable[str]) -> dict[str, UnitStatus]:
    """The state of many units by one ``systemctl show``. Blocks are in the order asked for; aliases change the Id."""
    wanted = list(dict.fromkeys(names))
    if not wanted:
        return {}
    _, output, _ = call(["systemctl", "show", "--property", _PROPERTIES, "--", *wanted], 30)
    return parse_units(wanted, output)


def waits_for(call: Call, units: t.Sequence[str]) -> list[str]:
    """What units that are not up yet wait for, one sentence each: jobs of systemd that are under way and that they come
    After=, such as a mount whose server does not answer."""
    if not units:
        return []
    _, jobs, _ = call(["systemctl", "list-jobs", "--no-legend", "--plain"], 30)
    _, after, _ = call(["systemctl", "show", "--property=Id,After", "--", *units], 30)
    return parse_waits(jobs, after)


def parse_waits(jobs: str, after: str) -> list[str]:
    """From ``systemctl list-jobs`` (number, unit, type, state) and ``systemctl show --property=Id,After``."""
    rows = [line.split() for line in jobs.splitlines()]
    states = {row[1]: row[3] for row in rows if len(row) == 4}
    found = []
    for block in after.split("\n\n"):
        values = dict(line.partition("=")[::2] for line in block.strip().splitlines())
        if states.get(values.get("Id", "")) == "waiting":
            others = sorted(unit for unit in values.get("After", "").split() if states.get(unit) == "running")
            if others:
                found.append(f"{values['Id']} waits for {', '.join(others)}, which does not come up")
    return found


def parse_units(wanted: t.Sequence[str], output: str) -> dict[str, UnitStatus]:
    """The states in the output of ``systemctl show``, by the names asked for."""
    result = {name: UnitStatus(name) for name in wanted}
    blocks = [block for block in output.split("\n\n") if block.strip()]
    for name, block in zip(wanted, blocks, strict=False):
        values = dict(line.partition("=")[::2] for line in block.strip().splitlines())
        result[name] = UnitStatus(
            name=name,
            load=values.get("LoadState", "not-found"),
            active=values.get("ActiveState", "inactive"),
            sub=values.get("SubState", "dead"),
            file=values.get("UnitFileState", ""),
            restarts=_number(values.get("NRestarts")),
            invocation=values.get("InvocationID", ""),
            job=_number(values.get("Job")) != 0,
            result=values.get("Result", ""),
            started=_number(values.get("ExecMainStartTimestampMonotonic")),
            type=values.get("Type", ""),
        )
    return result


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0


def run_check(check: Check) -> str:
    """Run one check; empty if it passes, otherwise what was found."""
    try:
        if check.type == "http":
            return _http(check)
        if check.type == "tcp":
            with socket.create_connection((check.address, check.port), timeout=check.timeout):
                return ""
        if check.type == "command":
            return _command(check)
        return f"unknown type of check {check.type!r}"
    except TimeoutError:
        return f"{describe(check)}: no answer in {check.timeout:g} s"
    except (OSError, http.client.HTTPException, ValueError) as error:
        return f"{describe(check)}: {getattr(error, 'strerror', None) or error or type(error).__name__}"


def describe(check: Check) -> str:
    """The check in words."""
    if check.type == "http":
        return f"GET {check.url}"
    if check.type == "tcp":
        return f"connecting to {check.address} port {check.port}"
    return " ".join(check.argv)


def _http(check: Check) -> str:
    """One GET, no redirects: the status is that of exactly this URL."""
    url = urlsplit(check.url)
    host = url.hostname or "127.0.0.1"
    connection: http.client.HTTPConnection
    if url.scheme == "https":
        connection = http.client.HTTPSConnection(
            host, url.port, timeout=check.timeout, context=ssl.create_default_context()
        )
    else:
        connection = http.client.HTTPConnection(host, url.port, timeout=check.timeout)
    try:
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        connection.request("GET", path, headers={"User-Agent": "hearth", "Connection": "close", **check.headers})
        status = connection.getresponse().status
    finally:
        connection.close()
    return "" if status == check.status else f"GET {check.url}: status {status}, expected {check.status}"


def _command(check: Check) -> str:
    try:
        done = subprocess.run(
            as_user(check.user, check.argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=check.timeout,
            cwd="/",
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{describe(check)}: not done in {check.timeout:g} s"
    if done.returncode == 0:
        return ""
    text = (done.stderr or done.stdout).decode("utf-8", "replace").strip().splitlines()
    return f"{describe(check)}: exit status {done.returncode}{': ' + text[-1] if text else ''}"


def as_user(user: str, argv: t.Sequence[str]) -> list[str]:
    """``argv`` run as ``user``, by setpriv(1): no PAM session, no log entry at each check."""
    if user in ("", "root"):
        return list(argv)
    entry = pwd.getpwnam(user) if not user.isdecimal() else pwd.getpwuid(int(user))
    return [
        "setpriv",
        f"--reuid={entry.pw_uid}",
        f"--regid={entry.pw_gid}",
        "--init-groups",
        "env",
        f"HOME={entry.pw_dir}",
        f"USER={entry.pw_name}",
        f"LOGNAME={entry.pw_name}",
        *argv,
    ]


def run_checks(checks: t.Mapping[str, t.Sequence[Check]]) -> dict[str, list[str]]:
    """The checks of many services at the same time: service -> what was found wrong (nothing: well)."""
    jobs = [(service, check) for service, entries in checks.items() for check in entries]
    result: dict[str, list[str]] = {service: [] for service in checks}
    if jobs:
        with ThreadPoolExecutor(min(WORKERS, len(jobs))) as pool:
            for (service, _), found in zip(jobs, pool.map(lambda job: run_check(job[1]), jobs), strict=True):
                if found:
                    result[service].append(found)
    return result
