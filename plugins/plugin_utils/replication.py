# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots and replication of ZFS datasets: sanoid.conf(5) and syncoid(8) jobs, as pure functions of plain data.

Facts are those of sanoid 2.2, as Debian 13 has it: /usr/share/sanoid/sanoid.defaults.conf names every setting, and
sanoid refuses a configuration with any other.
"""

from __future__ import annotations

import re
import shlex
import typing as t
from collections.abc import Mapping
from dataclasses import dataclass, field

from ansible_collections.hearth.homelab.plugins.module_utils import zfs

#: How many snapshots of each period are kept, in sanoid's words.
PERIODS: tuple[str, ...] = ("frequently", "hourly", "daily", "weekly", "monthly", "yearly")

#: Further settings of a template or dataset (sanoid.defaults.conf), with the type that they have.
_SWITCHES = (
    "autosnap", "autoprune", "monitor", "monitor_dont_warn", "monitor_dont_crit", "no_inconsistent_snapshot",
    "force_post_snapshot_script", "process_children_only", "skip_children",
)  # fmt: skip
_NUMBERS = (
    *PERIODS, "frequent_period", "prune_defer", "script_timeout", "hourly_min", "daily_hour", "daily_min", "weekly_wday",
    "weekly_hour", "weekly_min", "monthly_mday", "monthly_hour", "monthly_min", "yearly_mon", "yearly_mday",
    "yearly_hour", "yearly_min", "capacity_warn", "capacity_crit",
)  # fmt: skip
_TEXTS = (
    "pre_snapshot_script", "post_snapshot_script", "pre_pruning_script", "pruning_script",
    *(f"{period}_{level}" for period in PERIODS for level in ("warn", "crit")),
)  # fmt: skip

_TEMPLATE = re.compile(r"[A-Za-z0-9_-]+")
_HOST = re.compile(r"[A-Za-z0-9_.:\[\]-]+")
_BANDWIDTH = re.compile(r"[0-9]+[kmgt]?")


def sanoid_conf(datasets: Mapping[str, t.Any], templates: Mapping[str, t.Any]) -> str:
    """sanoid.conf for ``{dataset: template}`` or ``{dataset: {template, recursive, setting: value}}``.

    ValueError with one line for each thing that is wrong: sanoid itself stops at the first, when it runs.
    """
    problems: list[str] = []
    lines: list[str] = ["# Written by Hearth. Snapshots that a template does not keep are pruned.", ""]
    for name, settings in sorted(templates.items()):
        if not _TEMPLATE.fullmatch(str(name)) or name == "default":
            problems.append(f"template {name!r}: letters, digits, _ and - are allowed, and default is sanoid's own")
        lines += [f"[template_{name}]", *_settings(f"template {name}", settings, problems, periods=True), ""]
    for name, value in sorted(datasets.items()):
        entry = {"template": value} if isinstance(value, str) else value
        if not isinstance(entry, Mapping):
            problems.append(f"dataset {name}: the name of a template or a dictionary is expected, found {value!r}")
            continue
        if not zfs.valid_name(str(name)):
            problems.append(f"dataset {name!r}: this is not a dataset's name")
        template, recursive = entry.get("template"), entry.get("recursive", False)
        if template not in templates:
            known = ", ".join(sorted(map(str, templates))) or "none"
            problems.append(f"dataset {name}: there is no template {template!r}; there are {known}")
        if recursive not in (True, False, "zfs"):
            problems.append(f"dataset {name}: recursive is true, false or zfs, found {recursive!r}")
        settings = {key: setting for key, setting in entry.items() if key not in ("template", "recursive")}
        lines += [f"[{name}]", f"\tuse_template = {template}"]
        if recursive:
            lines.append(f"\trecursive = {'zfs' if recursive == 'zfs' else 'yes'}")
        lines += [*_settings(f"dataset {name}", settings, problems), ""]
    if problems:
        raise ValueError("\n".join(problems))
    return "\n".join(lines)


def _settings(where: str, settings: t.Any, problems: list[str], *, periods: bool = False) -> list[str]:
    """Lines of a section. A template says every period: sanoid's defaults keep 48 hours, 90 days and 6 months."""
    if not isinstance(settings, Mapping):
        problems.append(f"{where}: a dictionary is expected, found {settings!r}")
        return []
    values: dict[str, str] = dict.fromkeys(PERIODS, "0") if periods else {}
    for key, value in settings.items():
        if key in _SWITCHES:
            if not isinstance(value, bool):
                problems.append(f"{where}: {key} is true or false, found {value!r}")
            values[key] = "yes" if value else "no"
        elif key in _NUMBERS:
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                problems.append(f"{where}: {key} is a number, found {value!r}")
            values[key] = str(value)
        elif key in _TEXTS:
            values[key] = str(value)
        else:
            problems.append(f"{where}: sanoid has no setting {key!r}")
    return [f"\t{key} = {value}" for key, value in sorted(values.items(), key=_order)]


def _order(setting: tuple[str, str]) -> tuple[int, str]:
    return (PERIODS.index(setting[0]), "") if setting[0] in PERIODS else (len(PERIODS), setting[0])


@dataclass(frozen=True)
class Side:
    """One end of a job: a dataset, on this host or, with ``host``, on another one reached as ``user`` by SSH."""

    dataset: str
    host: str = ""
    user: str = "root"

    @property
    def argument(self) -> str:
        return f"{self.user}@{self.host}:{self.dataset}" if self.host else self.dataset


@dataclass(frozen=True)
class Ssh:
    """How the other host is reached; its key is known beforehand, never accepted at first sight."""

    key: str = ""
    known_hosts: str = ""
    port: int = 22


@dataclass(frozen=True)
class Job:
    """One replication. ``identifier`` keeps holds of several targets apart. ``bandwidth`` is bytes per second."""

    source: Side
    target: Side
    ssh: Ssh = field(default_factory=Ssh)
    identifier: str = ""
    bandwidth: str = ""
    recursive: bool = False
    raw: bool = False  # sends encrypted datasets as they are: the target never has the key
    exclude: tuple[str, ...] = ()


#: What a received dataset is not: mounted, at a live path, or writable. ``-x`` drops what the stream may carry.
RECEIVE = "u o canmount=noauto o readonly=on x mountpoint x sharenfs x sharesmb"


def syncoid_argv(job: Job) -> list[str]:
    """syncoid's command line for a job.

    It sends existing snapshots only, keeps the last common one by a hold and a bookmark, resumes what was cut off, and
    neither rolls back nor destroys anything on the target: a target that went its own way is for people to look at.
    """
    remote = bool(job.source.host or job.target.host)
    argv = [
        "syncoid", "--no-sync-snap", "--no-privilege-elevation", "--create-bookmark", "--use-hold", "--no-rollback",
        f"--sendoptions={'w' if job.raw else 'L c e'}", f"--recvoptions={RECEIVE}",
    ]  # fmt: skip
    if job.identifier:
        argv.append(f"--identifier={job.identifier}")
    if job.recursive:
        argv.append("--recursive")
    if job.bandwidth:
        argv.append(f"--source-bwlimit={job.bandwidth}")
    if remote:
        if job.ssh.key:
            argv.append(f"--sshkey={job.ssh.key}")
        if job.ssh.port != 22:
            argv.append(f"--sshport={job.ssh.port}")
        argv += ["--sshoption=StrictHostKeyChecking=yes", "--sshoption=BatchMode=yes"]
        if job.ssh.known_hosts:
            argv.append(f"--sshoption=UserKnownHostsFile={job.ssh.known_hosts}")
    argv += [f"--exclude={pattern}" for pattern in job.exclude]
    return [*argv, job.source.argument, job.target.argument]


_JOB_KEYS = ("source", "target", "identifier", "bandwidth", "recursive", "raw", "exclude", "ssh")
_SIDE_KEYS = ("dataset", "host", "user")
_SSH_KEYS = ("key", "known_hosts", "port")


def syncoid_jobs(jobs: Mapping[str, t.Any]) -> dict[str, dict[str, t.Any]]:
    """``{name: {source, target, ...}}`` -> ``{name: {argv: [...], command: "..."}}``.

    ``source`` and ``target`` are a dataset or ``{dataset, host, user}``; at most one of them is on another host.
    ValueError with one line for each thing that is wrong.
    """
    problems: list[str] = []
    found: dict[str, dict[str, t.Any]] = {}
    for name, value in sorted(jobs.items()):
        where = f"job {name}"
        data = _keys(where, value, _JOB_KEYS, problems)
        source, target = (_side(f"{where}: {end}", data.get(end), problems) for end in ("source", "target"))
        ssh = _keys(f"{where}: ssh", data.get("ssh") or {}, _SSH_KEYS, problems)
        if source.host and target.host:
            problems.append(f"{where}: source and target are both on another host; run it on one of them")
        if not (source.host or target.host) and _inside(target.dataset, source.dataset):
            problems.append(f"{where}: the target {target.dataset} is inside its source {source.dataset}")
        bandwidth = str(data.get("bandwidth") or "")
        if bandwidth and not _BANDWIDTH.fullmatch(bandwidth):
            problems.append(
                f"{where}: bandwidth is a number of bytes per second with k, m, g or t, found {bandwidth!r}"
            )
        job = Job(
            source,
            target,
            Ssh(str(ssh.get("key") or ""), str(ssh.get("known_hosts") or ""), int(ssh.get("port") or 22)),
            str(data.get("identifier") or ""),
            bandwidth,
            bool(data.get("recursive", False)),
            bool(data.get("raw", False)),
            tuple(map(str, data.get("exclude") or ())),
        )
        argv = syncoid_argv(job)
        found[str(name)] = {"argv": argv, "command": shlex.join(argv)}
    if problems:
        raise ValueError("\n".join(problems))
    return found


def _keys(where: str, value: t.Any, keys: tuple[str, ...], problems: list[str]) -> Mapping[str, t.Any]:
    if not isinstance(value, Mapping):
        problems.append(f"{where}: a dictionary is expected, found {value!r}")
        return {}
    problems += [f"{where}: there is no {key!r}; there are {', '.join(keys)}" for key in value if key not in keys]
    return value


def _side(where: str, value: t.Any, problems: list[str]) -> Side:
    data = {"dataset": value} if isinstance(value, str) else _keys(where, value, _SIDE_KEYS, problems)
    side = Side(str(data.get("dataset") or ""), str(data.get("host") or ""), str(data.get("user") or "root"))
    if not zfs.valid_name(side.dataset):
        problems.append(f"{where}: {side.dataset!r} is not a dataset's name")
    if side.host and not _HOST.fullmatch(side.host):
        problems.append(f"{where}: {side.host!r} is not a host's name or address")
    return side


def _inside(name: str, other: str) -> bool:
    return name == other or name.startswith(f"{other}/")
