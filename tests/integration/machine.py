# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a lab must leave on the machine as it was: rules, addresses, routes, settings, mounts, processes, files.

Other labs may come and go meanwhile. They are told apart by the mark of their bridge, and left out.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import typing as t
from dataclasses import dataclass
from pathlib import Path

#: Settings below /proc/sys that the kernel changes by itself.
VOLATILE = re.compile(
    r"fs/(aio-nr|dentry-state|file-nr|inode-nr|inode-state|quota/.*|.*state)|kernel/(ns_last_pid|pty/nr|random/.*|perf_.*)"
    r"|net/netfilter/nf_conntrack_count|vm/(stat_refresh|compact_memory|drop_caches)|net/ipv[46]/route/flush|kernel/.*domain.*"
)
#: Directories of settings in which every interface has one of its own.
PER_INTERFACE = re.compile(r"net/(?:ipv4|ipv6|mpls)/(?:conf|neigh)/([^/]+)/")
FILES = ("/etc", "/usr/local", "/usr/sbin/policy-rc.d", "/var/lib/machines", "/root/.ssh")
#: Where other programs work as well: what a lab leaves there is known by its name.
SHARED = ("/run", "/run/systemd", "/run/netns", "/run/lock", "/tmp", "/var/tmp", "/var/lib", "/dev/shm")
SHARED_NAMES = re.compile(r"hearth[-_]lab|nspawn|unix-export")


def _json(*command: str) -> list[dict[str, t.Any]]:
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return t.cast("list[dict[str, t.Any]]", json.loads(found or "[]"))


def _without(value: t.Any, *keys: str) -> t.Any:
    if isinstance(value, dict):
        return {key: _without(entry, *keys) for key, entry in value.items() if key not in keys}
    return [_without(entry, *keys) for entry in value] if isinstance(value, list) else value


def _is_ours(lab: str, name: str) -> bool:
    """`role-killed` is a lab of the test that runs `role`; `roles` is somebody else's."""
    return lab == name or lab.startswith(f"{name}-")


@dataclass(frozen=True)
class Others:
    """What belongs to labs of other names. Ours are `name` itself and those whose names go on after it with a hyphen."""

    interfaces: frozenset[str]
    labs: frozenset[str]

    @staticmethod
    def find(name: str) -> Others:
        bridges, labs = set(), set()
        for alias in Path("/sys/class/net").glob("*/ifalias"):
            mark = alias.read_text().strip()
            if mark.startswith("hearth-lab:") and not _is_ours(Path(mark).name, name):
                bridges.add(alias.parent.name)
                labs.add(Path(mark).name)
        ports = {port.name for bridge in bridges for port in Path("/sys/class/net", bridge, "brif").glob("*")}
        return Others(frozenset(bridges | ports), frozenset(labs))


def nft(others: Others) -> list[str]:
    """Every rule of every family, without numbers that count."""
    found = []
    tables = {f"hearth_lab_{lab.replace('-', '_')}" for lab in others.labs}
    for entry in json.loads(subprocess.check_output(["nft", "--json", "list", "ruleset"], text=True))["nftables"]:
        kind, data = next(iter(entry.items()))
        if kind == "metainfo" or data.get("table" if kind != "table" else "name") in tables:
            continue
        if not any(f'"{interface}"' in json.dumps(data) for interface in others.interfaces):
            found.append(json.dumps({kind: _without(data, "handle", "index", "packets", "bytes")}, sort_keys=True))
    for family, command in (("ip", "iptables-legacy-save"), ("ip6", "ip6tables-legacy-save")):
        names = Path(f"/proc/net/{family}_tables_names")
        if names.exists() and names.read_text().strip() and shutil.which(command):
            lines = subprocess.check_output([command], text=True).splitlines()
            found += [re.sub(r"\[\d+:\d+\]", "", line) for line in lines if not line.startswith("#")]
    return sorted(found)


def settings(others: Others) -> dict[str, str]:
    found = {}
    root = Path("/proc/sys")
    for folder, _folders, files in os.walk(root):
        for file in files:
            path = Path(folder, file)
            name = str(path.relative_to(root))
            interface = PER_INTERFACE.match(name)
            if VOLATILE.fullmatch(name) or (interface and interface[1] in others.interfaces):
                continue
            try:
                if path.stat().st_mode & 0o444:
                    found[name] = path.read_text(errors="replace")
            except OSError:
                continue
    return found


def processes(name: str, others: Others) -> list[str]:
    """What a lab runs: by its mark, by its root directory, and the proxy that all labs share when there are no others."""
    found = []
    own = re.compile(rf"/labs/{re.escape(name)}(-[^/]*)?(/|$)")
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            marks = [v for v in (entry / "environ").read_bytes().split(b"\0") if v.startswith(b"HEARTH_LAB_OWNER=")]
            mark = marks[0].decode().partition("=")[2] if marks else ""
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                continue
            shared = mark.endswith("/proxy") and not others.labs
            if shared or any(own.search(text) for text in (mark, os.readlink(entry / "root"))):
                found.append(f"{mark}: {command[:200]}")
        except OSError:
            continue
    return sorted(found)


def files() -> dict[str, str]:
    found = {}

    def add(path: str) -> None:
        state = os.lstat(path)
        link = os.readlink(path) if os.path.islink(path) else ""
        found[path] = f"{state.st_mode:o} {state.st_uid} {state.st_gid} {state.st_size} {state.st_mtime_ns} {link}"

    for top in FILES:
        if os.path.lexists(top):
            add(top)
        for folder, folders, names in os.walk(top):
            for name in [*folders, *names]:
                add(os.path.join(folder, name))
    for top in SHARED:
        if os.path.isdir(top):
            for name in os.listdir(top):
                if SHARED_NAMES.search(name):
                    found[f"{top}/{name}"] = "there"
    return found


def snapshot(name: str) -> dict[str, t.Any]:
    """The machine now, apart from what belongs to labs other than `name` and `name-*`."""
    others = Others.find(name)

    def about(entries: list[dict[str, t.Any]], *volatile: str) -> list[str]:
        kept = [e for e in entries if not {e.get("ifname"), e.get("dev"), e.get("master")} & others.interfaces]
        return sorted(json.dumps(_without(entry, *volatile), sort_keys=True) for entry in kept)

    link = ("ifindex", "link_index", "link_netnsid", "valid_life_time", "preferred_life_time", "stats64")
    mounts = set()
    for table in ("/proc/1/mountinfo", "/proc/self/mountinfo"):
        for line in Path(table).read_text().splitlines():
            fields = line.split()
            if not any(f"/labs/{lab}/" in line for lab in others.labs):
                mounts.add(" ".join(fields[3:6]))
    roots = [path for path in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*")) if path.is_dir()]
    groups = {str(path) for root in roots for path in root.glob("**/hearth*") if path.is_dir()}
    named = [*others.labs, *(lab.replace("-", "_") for lab in others.labs)]
    groups = {path for path in groups if not any(re.search(rf"[/_]{lab}[_/.]", path + "/") for lab in named)}
    if others.labs:
        groups = {path for path in groups if not path.endswith("/hearth-lab")}
    units = []
    if Path("/run/systemd/system").exists():
        listed = subprocess.run(["systemctl", "list-units", "--all", "--plain", "--no-legend", "hearth*"],
                                capture_output=True, text=True, check=True).stdout  # fmt: skip
        units = [line.split()[0] for line in listed.splitlines() if not any(f"_{lab}_" in line for lab in named)]
    return {
        "rules": nft(others),
        "links": about(_json("ip", "-json", "-details", "link"), *link),
        "addresses": about(_json("ip", "-json", "address"), *link),
        "routes": about(_json("ip", "-json", "-4", "route", "show", "table", "all"), "expires")
        + about(_json("ip", "-json", "-6", "route", "show", "table", "all"), "expires"),
        "policies": about(_json("ip", "-json", "rule")) + about(_json("ip", "-json", "-6", "rule")),
        "settings": settings(others),
        "mounts": sorted(mounts),
        "groups": sorted(groups),
        "controllers": {str(p): p.read_text() for root in roots for p in root.glob("cgroup.subtree_control")},
        "processes": processes(name, others),
        "units": units,
        "files": files(),
        "clock": _clock_source(),
    }


def _clock_source() -> dict[str, str]:
    names = ("/sys/devices/system/clocksource/clocksource0/current_clocksource", "/proc/sys/kernel/hostname")
    return {name: Path(name).read_text() for name in names if Path(name).exists()}


def differences(before: dict[str, t.Any], after: dict[str, t.Any]) -> list[str]:
    """What one has and the other has not, each as a line; none means that the machine is as it was."""
    found = []
    for key, old in before.items():
        new = after[key]
        if isinstance(old, dict):
            for name in sorted({*old, *new}):
                # A kernel module that was loaded for the lab brings settings of its own: they change nothing that was.
                if old.get(name) != new.get(name) and not (key == "settings" and name not in old):
                    found.append(f"{key}: {name}: {old.get(name)!r} became {new.get(name)!r}")
        else:
            found += [f"{key}: gone: {entry}" for entry in old if entry not in new]
            found += [f"{key}: new: {entry}" for entry in new if entry not in old]
    return found
