#!/usr/bin/env python3
# Copyright: hearth.homelab contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Disposable Debian hosts on one Linux machine: real systemd, SSH, apt and podman in systemd-nspawn.

A lab is a bridge with its own addresses, a handful of nspawn hosts on it, and three services on the bridge's address:
an apt proxy, a resolver for the lab's names, and an image registry with stand-ins. The hosts reach each other and those
three, nothing else. `up` records what it changes, `down` takes all of it back; caches stay.

Several labs run side by side: each has a name, and from it a directory, a bridge and a subnet of its own.

Only the standard library is used: this runs before any virtual environment exists.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import gzip
import hashlib
import io
import ipaddress
import json
import os
import platform
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import tomllib
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

FILES = Path(__file__).resolve().parent

# Every process of a lab carries this variable with the lab's directory as its value. It is the record of what was
# started that survives whatever happens to the program that started it; nothing without it is ever signalled.
OWNER = "HEARTH_LAB_OWNER"
PART = "HEARTH_LAB_PART"
WORK = "work"  # the part of a command that this program waits for

# The base image is what a plain Debian 13 cloud image has, and no package that a service declares: those must be
# installed by the converge under test, with its own ids and into its own storage.
IMAGE_PACKAGES = (
    "ca-certificates",
    "curl",
    "dbus",
    "iproute2",
    "iputils-ping",
    "kmod",
    "less",
    "libpam-systemd",
    "netbase",
    "nftables",
    "openssh-server",
    "procps",
    "python3",
    "python3-apt",
    "sudo",
    "systemd",
    "systemd-sysv",
    "systemd-timesyncd",
    "tzdata",
    "udev",
)
# Background apt runs would hold dpkg's lock while a converge needs it.
IMAGE_MASKED_UNITS = ("apt-daily.timer", "apt-daily-upgrade.timer")
# Raised when what is done to the tree after mmdebstrap changes: part of the image's key.
IMAGE_FORMAT = 5
# Left out of the base packages: a fifth of what is copied for every host. Packages installed later are complete.
IMAGE_WITHOUT = ("/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*")

# Command or file -> Debian package that has it.
TOOLS: Mapping[str, str] = {
    "age": "age",
    "apt-cacher-ng": "apt-cacher-ng",
    "dnsmasq": "dnsmasq-base",
    "docker-registry": "docker-registry",
    "dpkg-deb": "dpkg",
    "ip": "iproute2",
    "mmdebstrap": "mmdebstrap",
    "nft": "nftables",
    "skopeo": "skopeo",
    "ssh": "openssh-client",
    "systemd-nspawn": "systemd-container",
    "unshare": "util-linux",
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
}
# Units of packages this program may install: they are for the lab's own instances, so the distribution's are neither
# started nor left enabled for the next boot.
TOOL_UNITS: Mapping[str, tuple[str, ...]] = {
    "apt-cacher-ng": ("apt-cacher-ng.service",),
    "docker-registry": ("docker-registry.service",),
}
POLICY_RC_D = Path("/usr/sbin/policy-rc.d")

NAME = re.compile(r"[a-z][a-z0-9-]{0,30}[a-z0-9]")
NAME_RULE = "lower-case letters, digits and hyphens, 2 to 32 characters, are allowed"
CONSOLE_TAIL = 40
SSH_TIMEOUT = 60.0


class LabError(Exception):
    """A failure whose message already says what, where and what to do."""


# --- small helpers ---------------------------------------------------------------------------------------------------


def say(message: str) -> None:
    print(message, flush=True)


def environment(**extra: str) -> dict[str, str]:
    """A clean environment: a locale, proxy or Python setting of the caller must not reach the hosts or the services."""
    base = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"}
    return base | extra


def find_tool(name: str) -> str | None:
    if name.startswith("/"):
        return name if os.path.exists(name) else None
    return shutil.which(name, path=environment()["PATH"])


def run(
    argv: Sequence[str | Path], *, check: bool = True, stdin: str = "", owner: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. With `owner` it carries the mark: it may outlive a killed run of this program."""
    command = [str(part) for part in argv]
    marks = {OWNER: str(owner), PART: WORK} if owner else {}
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        input=stdin,
        env=environment(DEBIAN_FRONTEND="noninteractive", **marks),
    )
    if check and done.returncode != 0:
        raise LabError(f"`{shlex.join(command)}` failed with status {done.returncode}:\n{done.stderr.strip()[-2000:]}")
    return done


def run_with_progress(what: str, argv: Sequence[str | Path], log: Path, owner: Path) -> None:
    """Run a long command; print what it is doing at least every 10 seconds, keep its output in a log."""
    started = time.monotonic()
    command = [str(part) for part in argv]
    env = environment(DEBIAN_FRONTEND="noninteractive", **{OWNER: str(owner), PART: WORK})
    last = ""
    with log.open("w", encoding="utf-8") as sink:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
        )

        def read() -> None:
            nonlocal last
            for line in process.stdout or ():
                sink.write(line)
                if line.strip():
                    last = line.strip()[:100]

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        while True:
            try:
                status = process.wait(timeout=10)
                break
            except subprocess.TimeoutExpired:
                say(f"  {what}: {time.monotonic() - started:.0f} s ({last})")
        reader.join(timeout=5)
    if status != 0:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:])
        raise LabError(f"{what} failed (`{shlex.join(command)}`, status {status}). The end of {log}:\n{tail}")
    say(f"  {what}: done in {time.monotonic() - started:.0f} s")


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file as a whole: a reader, or a run after a crash, sees the old text or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.chmod(mode)
    temporary.replace(path)


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with path.open("w", encoding="utf-8") as handle:
        waited = 0
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if waited % 15 == 0:
                    say(f"  waiting for another run that holds {what} ({path})")
                waited += 1
                time.sleep(1)
        yield


def remove_tree(path: Path) -> None:
    """Delete a directory of ours; never through a mount that somebody left below it."""
    below = f"{path}/"
    mounts = [point for point in mount_points() if point == str(path) or point.startswith(below)]
    for point in sorted(mounts, reverse=True):
        run(["umount", "--lazy", point])
    if path.exists():
        run(["rm", "-rf", "--one-file-system", "--", path])


def mount_points() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    return [line.split()[4].replace("\\040", " ") for line in lines]


# --- processes -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Process:
    pid: int
    part: str
    started: str  # field 22 of /proc/PID/stat: tells a process from a later one with the same number

    def alive(self) -> bool:
        return _start_time(self.pid) == self.started


def _start_time(pid: int) -> str | None:
    """When a process started, or None when it is gone (a zombie holds nothing and counts as gone)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def processes_of(directory: Path) -> list[Process]:
    wanted = f"{OWNER}={directory}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            variables = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if wanted not in variables:
            continue
        part = next((v[len(PART) + 1 :].decode() for v in variables if v.startswith(f"{PART}=".encode())), "")
        started = _start_time(int(entry))
        if started is not None:
            found.append(Process(int(entry), part, started))
    return found


def spawn(
    directory: Path, part: str, argv: Sequence[str | Path], log: Path, extra: Mapping[str, str] | None = None
) -> None:
    """Start a process that outlives this program and its terminal (its own session), marked as belonging to the lab."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as sink:
        # Not waited for on purpose: it is meant to run on after this program has ended.
        subprocess.Popen(
            [str(part_) for part_ in argv],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
            cwd="/",
            env=environment(**{OWNER: str(directory), PART: part}, **(extra or {})),
        )


def end(processes: Sequence[Process], *, grace: float) -> None:
    """Ask, then insist. The caller passes only processes it found by the lab's mark."""
    for process in processes:
        if process.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM if grace else signal.SIGKILL)
    if grace and not wait_gone(processes, grace):
        end(processes, grace=0)
    elif not grace and not wait_gone(processes, 10):
        left = ", ".join(f"{process.pid} ({process.part})" for process in processes if process.alive())
        raise LabError(f"processes {left} do not end; look at them with `ps` and run this again")


def wait_gone(processes: Sequence[Process], seconds: float) -> bool:
    limit = time.monotonic() + seconds
    while any(process.alive() for process in processes):
        if time.monotonic() > limit:
            return False
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
        time.sleep(0.05)
    return True


def listens(address: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=1):
        return True
    return False


def wait_for_port(address: str, port: int, what: str, log: Path) -> None:
    limit = time.monotonic() + 20
    while time.monotonic() < limit:
        if listens(address, port):
            return
        time.sleep(0.1)
    raise LabError(f"{what} does not listen on {address} port {port} after 20 s. The end of {log}:\n{tail(log)}")


def free_port() -> int:
    """A free port on loopback below 32768: apt-cacher-ng 3.7 fails with "Error resolving address" on a higher one."""
    for port in range(31420, 32768):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise LabError("no free port between 31420 and 32767 on 127.0.0.1 for the apt proxy")


def tail(log: Path, lines: int = CONSOLE_TAIL) -> str:
    if not log.exists():
        return "(empty)"
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]) or "(empty)"


# --- control groups: which processes belong to a host ----------------------------------------------------------------
#
# A killed nspawn leaves its host's PID 1 running, and two hosts below one control group would manage each other's
# units. So every host has a group of its own, and what is in it is what has to end with it.


def cgroup_roots() -> list[Path]:
    """Where groups are made: the v2 hierarchy, and on a hybrid machine systemd's v1 one, which nspawn keeps in step."""
    unified = Path("/sys/fs/cgroup/unified")
    if unified.is_dir():
        return [path for path in (unified, Path("/sys/fs/cgroup/systemd")) if path.is_dir()]
    return [Path("/sys/fs/cgroup")]


def own_cgroup(path: str) -> None:
    """Move this process into its own group; systemd-run has done that already where systemd is PID 1."""
    for root in cgroup_roots():
        group = root / path
        group.mkdir(parents=True, exist_ok=True)
        for parent in [*reversed(group.relative_to(root).parents)]:
            with contextlib.suppress(OSError):  # a controller that the machine keeps elsewhere
                (root / parent / "cgroup.subtree_control").write_text("+cpu +memory +pids", encoding="utf-8")
        (group / "cgroup.procs").write_text(str(os.getpid()), encoding="utf-8")


def end_cgroup(path: str) -> None:
    """Kill everything in a group and remove it. Nothing of a host outlives this."""
    if not path.strip("/"):
        return
    limit = time.monotonic() + 15
    for root in cgroup_roots():
        group = root / path.strip("/")
        while group.is_dir():
            folders = sorted((Path(folder) for folder, _, _ in os.walk(group)), reverse=True)
            for folder in folders:
                with contextlib.suppress(OSError):
                    for pid in (folder / "cgroup.procs").read_text(encoding="utf-8").split():
                        os.kill(int(pid), signal.SIGKILL)
            for folder in folders:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            if not group.is_dir():
                break
            if time.monotonic() > limit:
                raise LabError(f"processes in {group} do not end; look at {group}/cgroup.procs and run this again")
            time.sleep(0.05)
        # The groups above, made for all labs, go with the last one.
        parent = group.parent
        while parent != root and "hearth-lab" in parent.relative_to(root).parts:
            try:
                parent.rmdir()
            except OSError:
                break
            parent = parent.parent


# --- the machine: what is needed, where its packages come from -------------------------------------------------------


def require_machine() -> None:
    """Say everything that is missing at once, before anything else happens."""
    problems = []
    if platform.system() != "Linux":
        problems.append(f"Linux (this is {platform.system()}): use a Debian 12 or 13 machine or virtual machine")
    else:
        if os.geteuid() != 0:
            problems.append(
                "root, because it makes a bridge, a firewall table and systemd-nspawn hosts: run it with sudo"
            )
        if not Path("/usr/bin/apt-get").exists():
            problems.append("a Debian 12 or 13 machine (there is no apt-get here)")
        if not any(Path(path).exists() for path in ("/sys/fs/cgroup/cgroup.controllers", "/sys/fs/cgroup/unified")):
            problems.append("cgroup v2, alone or as a hybrid (neither is mounted below /sys/fs/cgroup)")
        if not problems and run(["unshare", "--mount", "true"], check=False).returncode != 0:
            problems.append(
                "the right to make namespaces (`unshare --mount` is refused): not inside an unprivileged container"
            )
    if problems:
        raise LabError("The lab needs:\n" + "\n".join(f"  - {problem}" for problem in problems))


def missing_packages() -> list[str]:
    return sorted({package for tool, package in TOOLS.items() if find_tool(tool) is None})


def install_tools(cache: Cache) -> None:
    """Install what is missing without starting any of it, and without leaving it enabled for the next boot."""
    with locked(cache.root / "tools.lock", "the installation of tools"):
        # An installation that outlived a killed run is left to finish: half-configured packages help nobody.
        while processes_of(cache.policy):
            say("  waiting for an installation that an earlier run began")
            time.sleep(5)
        settle_installation(cache)
        packages = missing_packages()
        if not packages:
            return
        say(f"Installing {', '.join(packages)} (their services are neither started nor enabled)")
        cache.policy.mkdir(parents=True, exist_ok=True)
        units = [unit for package in packages for unit in TOOL_UNITS.get(package, ()) if not _unit_exists(unit)]
        try:
            # The record comes first, so that a killed run leaves enough for the next one to put things in order.
            if POLICY_RC_D.exists():
                shutil.copy2(POLICY_RC_D, cache.policy / "original")
            write(cache.policy / "record.json", json.dumps({"disable": units}) + "\n")
            reason = "hearth lab: nothing is started while its tools are installed"
            write(POLICY_RC_D, f"#!/bin/sh\n# {reason}\nexit 101\n", 0o755)
            install = ["apt-get", "--yes", "--no-install-recommends", "install", *packages]
            if run([*install, "--simulate"], check=False).returncode != 0:
                run_with_progress("apt-get update", ["apt-get", "update"], cache.log("apt-update"), cache.policy)
            run_with_progress("apt-get install", install, cache.log("apt-install"), cache.policy)
        finally:
            settle_installation(cache)
        if still := missing_packages():
            raise LabError(f"still missing after the installation: {', '.join(still)}; install them by hand")


def _unit_exists(unit: str) -> bool:
    return any(Path(folder, unit).exists() for folder in ("/lib/systemd/system", "/usr/lib/systemd/system"))


def settle_installation(cache: Cache) -> None:
    """Put policy-rc.d back as it was and disable new units, also for a run that was killed before it could."""
    record = cache.policy / "record.json"
    if not record.exists():
        return
    original = cache.policy / "original"
    if original.exists():
        shutil.copy2(original, POLICY_RC_D)
    else:
        POLICY_RC_D.unlink(missing_ok=True)
    if find_tool("systemctl") is not None:
        for unit in json.loads(record.read_text(encoding="utf-8"))["disable"]:
            run(["systemctl", "disable", unit], check=False)
    remove_tree(cache.policy)


@dataclasses.dataclass(frozen=True)
class Mirror:
    """Where this machine takes Debian from: the hosts use the same, through the lab's proxy."""

    main: str
    security: str
    options: tuple[tuple[str, str], ...]  # apt options of the machine without which its mirror does not work
    proxy: str | None


def find_mirror(override: str | None) -> Mirror:
    codename = _os_release().get("VERSION_CODENAME", "")
    main = security = ""
    listed = run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)|$(RELEASE)|$(COMPONENT)", "Created-By: Packages"],
        check=False,
    )
    for line in listed.stdout.splitlines():
        uri, release, component = [*line.split("|"), "", ""][:3]
        if component != "main":
            continue
        if release in (codename, "stable") and not main:
            main = _real_uri(uri)
        if release in (f"{codename}-security", "stable-security") and not security:
            security = _real_uri(uri)
    if override:
        main, security = override, override.rstrip("/") + "-security"
    if not main:
        raise LabError(
            "no Debian mirror found in this machine's apt configuration (`apt-get indextargets` names no release "
            f"{codename!r} with component main). Add one, or give it with lab_mirror / --mirror."
        )
    config = run(["apt-config", "dump", "--no-empty"]).stdout
    values = dict(re.findall(r'^(\S+) "(.*)";$', config, flags=re.MULTILINE))
    kept = ("Acquire::Check-Valid-Until", "Acquire::Check-Date")
    options = tuple((key, values[key]) for key in kept if values.get(key, "").lower() in ("false", "no", "0"))
    proxy = values.get("Acquire::http::Proxy") or None
    return Mirror(main.rstrip("/"), (security or main.rstrip("/") + "-security").rstrip("/"), options, proxy)


def _real_uri(uri: str) -> str:
    """Debian's cloud images use mirror+file:/etc/apt/mirrors/debian.list: the first line of that file is the mirror."""
    if not uri.startswith("mirror+file:"):
        return uri
    listed = Path("/" + uri.removeprefix("mirror+file:").strip("/"))
    for line in listed.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            return line.split()[0]
    return ""


def _os_release() -> dict[str, str]:
    text = Path("/etc/os-release").read_text(encoding="utf-8")
    return {key: value.strip('"') for key, _, value in (line.partition("=") for line in text.splitlines()) if value}


# --- directories -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Cache:
    """What survives `down`: images, packages, logs. Outside any checkout, shared by all labs of this user."""

    root: Path

    @staticmethod
    def find() -> Cache:
        base = os.environ.get("HEARTH_LAB_CACHE")
        if not base:
            home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
            base = str(Path(home) / "hearth-lab")
        root = Path(base).absolute()
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        return Cache(root)

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def labs(self) -> Path:
        return self.root / "labs"

    @property
    def shared(self) -> Path:
        """The apt proxy: one for all labs, because two must not share one store."""
        return self.root / "proxy"

    @property
    def policy(self) -> Path:
        return self.root / "policy-rc.d"

    def log(self, name: str) -> Path:
        folder = self.root / "log"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}.log"


@dataclasses.dataclass(frozen=True)
class Host:
    name: str
    address: str
    address6: str


@dataclasses.dataclass(frozen=True)
class Spec:
    """One lab, completely: equal specs mean that nothing has to change."""

    name: str
    subnet: str
    subnet6: str
    domain: str
    hosts: tuple[Host, ...]
    wildcard: str
    apt_port: int
    registry_port: int
    suite: str
    mirror: str

    @property
    def bridge(self) -> str:
        """At most 15 characters, as the kernel demands."""
        plain = f"hl-{self.name}"
        return plain if len(plain) <= 15 else f"hl-{zlib.crc32(self.name.encode()):08x}"

    @property
    def table(self) -> str:
        return f"hearth_lab_{self.name.replace('-', '_')}"

    @property
    def network(self) -> ipaddress.IPv4Network:
        return ipaddress.IPv4Network(self.subnet)

    @property
    def network6(self) -> ipaddress.IPv6Network:
        return ipaddress.IPv6Network(self.subnet6)

    @property
    def gateway(self) -> str:
        return str(self.network[1])

    @property
    def gateway6(self) -> str:
        return str(self.network6[1])

    @property
    def registry(self) -> str:
        return f"registry.{self.domain}:{self.registry_port}"

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Spec:
        hosts = tuple(Host(**host) for host in data["hosts"])
        return Spec(**{**data, "hosts": hosts})


def default_subnet(name: str) -> str:
    """A private /24 of the lab's own, the same for the same name."""
    return f"10.231.{16 + zlib.crc32(name.encode()) % 240}.0/24"


def default_subnet6(subnet: str) -> str:
    """The IPv6 counterpart: one random ULA prefix of this project, the subnet number taken from the IPv4 network."""
    octets = ipaddress.IPv4Network(subnet).network_address.packed
    return f"fd6b:9b1e:4c27:{octets[1]:02x}{octets[2]:02x}::/64"


def make_spec(args: argparse.Namespace) -> Spec:
    if not NAME.fullmatch(args.name):
        raise LabError(f"lab name {args.name!r}: {NAME_RULE}")
    subnet = args.subnet or default_subnet(args.name)
    try:
        network = ipaddress.IPv4Network(subnet)
        network6 = ipaddress.IPv6Network(args.subnet6 or default_subnet6(subnet))
    except ValueError as error:
        raise LabError(f"lab_subnet / lab_subnet6: {error}") from error
    if not network.is_private or network.prefixlen > 24:
        raise LabError(f"lab_subnet {network}: a private network of at least 256 addresses (/24 or larger) is needed")
    hosts: list[Host] = []
    for number, text in enumerate(args.hosts):
        name, _, address = text.partition("=")
        if not NAME.fullmatch(name):
            raise LabError(f"host name {name!r}: {NAME_RULE}")
        try:
            own = ipaddress.IPv4Address(address) if address else network[11 + number]
        except ValueError as error:
            raise LabError(f"host {name}: {error}") from error
        if own not in network or own in (network[0], network[1], network[-1]):
            raise LabError(f"host {name}: address {own} is not usable in lab_subnet {network} (.1 is the machine's)")
        offset = int(own) - int(network.network_address)
        if any(name == other.name or str(own) == other.address for other in hosts):
            raise LabError(f"host {name} with address {own}: the name or the address is given twice")
        hosts.append(Host(name, str(own), str(network6[offset])))
    wildcard = args.wildcard or (hosts[0].name if hosts else "")
    if wildcard and wildcard not in {host.name for host in hosts}:
        raise LabError(f"lab_wildcard_host {wildcard!r} is none of the hosts: {', '.join(host.name for host in hosts)}")
    return Spec(
        name=args.name,
        subnet=str(network),
        subnet6=str(network6),
        domain=args.domain,
        hosts=tuple(hosts),
        wildcard=wildcard,
        apt_port=args.apt_port,
        registry_port=args.registry_port,
        suite=args.suite,
        mirror=args.mirror or "",
    )


# --- apt proxy: one for all labs -------------------------------------------------------------------------------------


def proxy_state(cache: Cache) -> dict[str, Any]:
    path = cache.shared / "state.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def ensure_proxy(cache: Cache, mirror: Mirror) -> int:
    """Run apt-cacher-ng on loopback; give its port. It serves Debian's archive and refuses every other address."""
    with locked(cache.root / "proxy.lock", "the apt proxy"):
        state = proxy_state(cache)
        running = [process for process in processes_of(cache.shared) if process.part == "apt-proxy"]
        wanted = dataclasses.asdict(mirror) | {"options": [list(option) for option in mirror.options]}
        if running and state.get("mirror") == wanted and listens("127.0.0.1", int(state["port"])):
            return int(state["port"])
        end(running, grace=5)
        for folder in ("conf", "store", "log"):
            (cache.shared / folder).mkdir(parents=True, exist_ok=True)
        port = free_port()
        lines = [
            f"CacheDir: {cache.shared / 'store'}",
            f"LogDir: {cache.shared / 'log'}",
            "SupportDir: /usr/lib/apt-cacher-ng",
            "BindAddress: 127.0.0.1",
            f"Port: {port}",
            "ForeGround: 1",
            "ReportPage:",
            "ExThreshold: 30",
            # Only what is mapped below: the hosts must not reach the rest of the world through the proxy.
            "ForceManaged: 1",
            *(
                f"Remap-{name}: {plain_http(uri)} ; {uri}"
                for name, uri in (("main", mirror.main), ("security", mirror.security))
            ),
        ]
        if mirror.proxy:
            lines.append(f"Proxy: {mirror.proxy}")
        write(cache.shared / "conf" / "acng.conf", "\n".join(lines) + "\n")
        write(cache.shared / "state.json", json.dumps({"port": port, "mirror": wanted}, indent=2) + "\n")
        log = cache.shared / "apt-cacher-ng.log"
        spawn(cache.shared, "apt-proxy", [_tool("apt-cacher-ng"), "-c", cache.shared / "conf"], log)
        wait_for_port("127.0.0.1", port, "apt-cacher-ng", log)
        return port


def release_proxy(cache: Cache) -> None:
    """End the proxy when no lab is left that uses it."""
    with locked(cache.root / "proxy.lock", "the apt proxy"):
        if cache.labs.exists() and any(cache.labs.glob("*/state.json")):
            return
        end(processes_of(cache.shared), grace=5)
        (cache.shared / "state.json").unlink(missing_ok=True)


def plain_http(uri: str) -> str:
    """The address the hosts ask for: plain HTTP up to the proxy, which speaks what the real mirror speaks."""
    return re.sub(r"^https:", "http:", uri)


def _tool(name: str) -> str:
    found = find_tool(name)
    if found is None:
        raise LabError(f"{name} is not installed (package {TOOLS.get(name, name)}): run `hearth_lab.py prepare`")
    return found


# --- image -----------------------------------------------------------------------------------------------------------


def architecture() -> str:
    return run(["dpkg", "--print-architecture"]).stdout.strip()


def image_key(suite: str, mirror: Mirror) -> str:
    inputs = {
        "format": IMAGE_FORMAT,
        "suite": suite,
        "architecture": architecture(),
        "packages": IMAGE_PACKAGES,
        "masked": IMAGE_MASKED_UNITS,
        "without": IMAGE_WITHOUT,
        "mirror": [mirror.main, mirror.security],
        "options": mirror.options,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def apt_sources(suite: str, mirror: Mirror) -> str:
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    parts = [(mirror.main, f"{suite} {suite}-updates"), (mirror.security, f"{suite}-security")]
    return "\n".join(
        f"Types: deb\nURIs: {plain_http(uri)}\nSuites: {suites}\nComponents: main\nSigned-By: {keyring}\n"
        for uri, suites in parts
    )


def ensure_image(cache: Cache, suite: str, mirror: Mirror) -> Path:
    """The tree that every host starts from; built when there is none for these inputs."""
    tree = cache.images / f"{suite}-{architecture()}-{image_key(suite, mirror)}"
    with locked(cache.root / "image.lock", "the image"):
        end(processes_of(cache.images), grace=0)  # what a killed run left at work
        for leftover in cache.images.glob(".build-*"):
            remove_tree(leftover)
        if tree.exists():
            return tree
        say(f"Building the Debian {suite} image (once; kept in {tree})")
        port = ensure_proxy(cache, mirror)
        build = cache.images / f".build-{tree.name}"
        build.mkdir(parents=True)
        write(build / "debian.sources", apt_sources(suite, mirror))
        options = [f'--aptopt={key} "{value}"' for key, value in mirror.options]
        run_with_progress(
            "image",
            [
                _tool("mmdebstrap"),
                "--mode=root",
                "--variant=minbase",
                f"--include={','.join(IMAGE_PACKAGES)}",
                f'--aptopt=Acquire::http::Proxy "http://127.0.0.1:{port}"',
                '--aptopt=Acquire::Languages "none"',
                *options,
                *(f"--dpkgopt=path-exclude={pattern}" for pattern in IMAGE_WITHOUT),
                "--dpkgopt=path-include=/usr/share/doc/*/copyright",
                # The package lists stay, so that the first installation in a host needs no `apt-get update`.
                "--skip=cleanup/apt/lists",
                suite,
                build / "tree",
                build / "debian.sources",
            ],
            cache.log("image"),
            cache.images,
        )
        finish_image(build / "tree", suite, mirror)
        (build / "tree").rename(tree)
        remove_tree(build)
        for other in cache.images.glob(f"{suite}-{architecture()}-*"):
            if other != tree:
                remove_tree(other)  # an image of older inputs: nothing will ask for it again
    return tree


def finish_image(tree: Path, suite: str, mirror: Mirror) -> None:
    for pattern in (
        "etc/ssh/ssh_host_*",
        "etc/apt/sources.list.d/*",
        "etc/apt/apt.conf.d/99mmdebstrap",
        "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
        "var/log/*.log",
    ):
        for path in tree.glob(pattern):
            path.unlink()
    write(tree / "etc/apt/sources.list.d/debian.sources", apt_sources(suite, mirror))
    lines = ['Acquire::Languages "none";', *(f'{key} "{value}";' for key, value in mirror.options)]
    write(tree / "etc/apt/apt.conf.d/90lab", "// written by the hearth lab\n" + "\n".join(lines) + "\n")
    for name in ("etc/hostname", "etc/resolv.conf"):
        (tree / name).unlink(missing_ok=True)
    (tree / "etc/machine-id").write_text("", encoding="utf-8")
    run(["systemctl", f"--root={tree}", "enable", "systemd-networkd.service", "ssh.service"])
    run(["systemctl", f"--root={tree}", "mask", *IMAGE_MASKED_UNITS])


# --- stand-in images -------------------------------------------------------------------------------------------------


def standin_definitions() -> dict[str, Any]:
    return tomllib.loads((FILES / "standins.toml").read_text(encoding="utf-8"))


def ensure_busybox(cache: Cache, suite: str) -> Path:
    """A static busybox from the image's own Debian release, unpacked and never installed on the machine."""
    folder = cache.root / "busybox"
    target = folder / f"busybox-{suite}-{architecture()}"
    if target.exists():
        return target
    remove_tree(folder)
    download = folder / "download"
    download.mkdir(parents=True)
    (download / "package").mkdir()
    chroot = next(cache.images.glob(f"{suite}-{architecture()}-*"), None)
    if chroot is None:
        raise LabError(f"no {suite} image to take busybox from: run `hearth_lab.py image` first")
    # The image's lists name the package's file; the proxy on loopback has it. Nothing of the machine's apt is used.
    wanted = _package_file(chroot, "busybox-static")
    port = int(proxy_state(cache)["port"])
    package = download / "busybox-static.deb"
    options = ["-o", f"Acquire::http::Proxy=http://127.0.0.1:{port}", "-o", "APT::Sandbox::User=root"]
    run(["/usr/lib/apt/apt-helper", *options, "download-file", wanted[0], package, f"SHA256:{wanted[1]}"])
    run(["dpkg-deb", "--extract", package, download / "package"])
    found = next(path for path in (download / "package").glob("**/bin/busybox") if path.is_file())
    shutil.copy2(found, target)
    remove_tree(download)
    return target


def _package_file(tree: Path, package: str) -> tuple[str, str]:
    """URL and SHA-256 of a package as the tree's own, signed lists have it."""
    base = ""
    for line in (tree / "etc/apt/sources.list.d/debian.sources").read_text(encoding="utf-8").splitlines():
        if line.startswith("URIs:"):
            base = line.split()[1]
            break
    prefix = re.sub(r"^https?://", "", base).replace("/", "_")
    for path in sorted((tree / "var/lib/apt/lists").glob(f"{prefix}_dists_*_Packages")):
        with path.open(encoding="utf-8") as lines:
            entry: dict[str, str] = {}
            for line in lines:
                if line == "\n":
                    if entry.get("Package") == package:
                        return f"{base}/{entry['Filename']}", entry["SHA256"]
                    entry = {}
                elif not line.startswith(" "):
                    key, _, value = line.partition(":")
                    entry[key] = value.strip()
    raise LabError(f"{package} is in none of the package lists of {tree}")


def standin_answers(name: str, definition: Mapping[str, Any]) -> str:
    lines = []
    for answer in definition["answers"]:
        fields = [
            answer["path"],
            str(answer.get("status", 200)),
            answer.get("type", "application/json"),
            answer.get("header", "-").lower(),
            answer.get("environment", "-"),
            answer["body"],
        ]
        if any("\t" in field or "\n" in field or not field for field in fields):
            raise LabError(f"standins.toml: {name}: an answer must have no tabs, newlines or empty values")
        if not re.fullmatch(r"-|[A-Za-z_][A-Za-z0-9_]*", fields[4]):
            raise LabError(f"standins.toml: {name}: {fields[4]!r} is not the name of an environment variable")
        lines.append("\t".join(fields))
    return "\n".join(lines) + "\n"


def build_standin(name: str, definition: Mapping[str, Any], busybox: Path, target: Path) -> str:
    """Write an OCI image layout by hand and give its digest. Bytes depend on the inputs alone."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w", format=tarfile.USTAR_FORMAT) as archive:

        def add(path: str, content: bytes | None, mode: int) -> None:
            entry = tarfile.TarInfo(path)
            entry.mode = mode
            if content is None:
                entry.type = tarfile.DIRTYPE
                archive.addfile(entry)
            else:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))

        state = str(definition["state"]).strip("/")
        for folder in sorted({"bin", "etc", "standin", "tmp", state}):
            add(folder, None, 0o1777 if folder == "tmp" else 0o755)
        add("bin/busybox", busybox.read_bytes(), 0o755)
        link = tarfile.TarInfo("bin/sh")
        link.type, link.linkname = tarfile.SYMTYPE, "busybox"
        archive.addfile(link)
        add("etc/passwd", b"root:x:0:0:root:/:/bin/sh\n", 0o644)
        for script in ("serve", "respond"):
            add(f"standin/{script}", (FILES / "standin" / script).read_bytes(), 0o755)
        add("standin/answers", standin_answers(name, definition).encode(), 0o644)

    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as stream:
        stream.write(layer.getvalue())

    blobs = target / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(content: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    config = {
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Entrypoint": ["/standin/serve"],
            "Env": ["PATH=/bin", f"STANDIN_PORT={definition['port']}", f"STANDIN_STATE={definition['state']}"],
            "ExposedPorts": {f"{definition['port']}/tcp": {}},
            "Labels": {
                "org.opencontainers.image.title": name,
                "org.opencontainers.image.description": f"stand-in for {name}: proves wiring, never the application",
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"]},
    }
    kind = "application/vnd.oci.image"
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{kind}.manifest.v1+json",
        "config": blob(json.dumps(config, sort_keys=True).encode(), f"{kind}.config.v1+json"),
        "layers": [blob(packed.getvalue(), f"{kind}.layer.v1.tar+gzip")],
    }
    top = blob(json.dumps(manifest, sort_keys=True).encode(), f"{kind}.manifest.v1+json")
    index = {"schemaVersion": 2, "manifests": [top | {"annotations": {"org.opencontainers.image.ref.name": "standin"}}]}
    (target / "index.json").write_text(json.dumps(index), encoding="utf-8")
    (target / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}', encoding="utf-8")
    return str(top["digest"])


# --- one lab ---------------------------------------------------------------------------------------------------------


class Lab:
    """A lab's directory below <cache>/labs/, and everything that lives from it."""

    def __init__(self, cache: Cache, name: str) -> None:
        self.cache = cache
        self.directory = cache.labs / name
        self.state_file = self.directory / "state.json"

    # -- records

    def load(self) -> dict[str, Any]:
        return json.loads(self.state_file.read_text(encoding="utf-8")) if self.state_file.exists() else {}

    def record(self, **changes: Any) -> dict[str, Any]:
        """Write down a change before it is made: `down` after a crash must know of it."""
        state = self.load() | changes
        write(self.state_file, json.dumps(state, indent=2, sort_keys=True) + "\n", 0o600)
        return state

    def record_processes(self) -> None:
        found = [dataclasses.asdict(process) for process in processes_of(self.directory)]
        self.record(processes=sorted(found, key=lambda process: (process["part"], process["pid"])))

    def running(self, part: str) -> list[Process]:
        return [process for process in processes_of(self.directory) if process.part == part]

    def host_directory(self, name: str) -> Path:
        return self.directory / "hosts" / name

    def console(self, name: str) -> Path:
        return self.directory / "log" / f"console-{name}.log"

    # -- up

    def up(self, spec: Spec, link: Path | None) -> bool:
        """Make the lab as `spec` says; True when anything had to be done."""
        with locked(self.cache.labs / f"{spec.name}.lock", f"lab {spec.name}"):
            known = self.load()
            if "spec" in known and Spec.from_json(known["spec"]) != spec:
                raise LabError(
                    f"lab {spec.name} exists with other settings. Found: {json.dumps(known['spec'])}. "
                    f"Wanted: {json.dumps(spec.to_json())}. Shut it down first: `hearth_lab.py down --name {spec.name}`"
                )
            if not known:
                self.check_routes(spec)
            mirror = find_mirror(spec.mirror)
            end([process for process in processes_of(self.directory) if process.part == WORK], grace=0)
            missing = self.missing(spec)
            self.make_link(link)
            if not missing:
                return False
            if not known:
                self.announce(spec)
            install_tools(self.cache)
            image = ensure_image(self.cache, spec.suite, mirror)
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.record(spec=spec.to_json(), bridge=spec.bridge, table=spec.table)
            proxy = ensure_proxy(self.cache, mirror)
            self.ensure_keys()
            self.ensure_bridge(spec)
            self.ensure_firewall(spec)
            self.ensure_services(spec, proxy)
            with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as copies:
                for done in [copies.submit(self.ensure_tree, spec, host, image) for host in spec.hosts]:
                    done.result()
            self.write_ssh(spec)
            for host in spec.hosts:
                self.start(spec, host)
            for host in spec.hosts:
                self.wait_for_ssh(host)
            self.ensure_standins(spec)
            self.refresh_lists(spec)
            self.record_processes()
            return True

    def missing(self, spec: Spec) -> list[str]:
        """What of the lab is not there. Empty means that `up` has nothing to do."""
        if self.load().get("spec") is None:
            return ["everything"]
        parts = {process.part for process in processes_of(self.directory)}
        wanted = {"resolver", "registry", "apt-relay", *(f"host-{host.name}" for host in spec.hosts)}
        missing = sorted(wanted - parts)
        if not processes_of(self.cache.shared):
            missing.append("apt proxy")
        if not Path("/sys/class/net", spec.bridge).exists():
            missing.append(f"bridge {spec.bridge}")
        elif run(["nft", "list", "table", "inet", spec.table], check=False).returncode != 0:
            missing.append(f"nft table {spec.table}")
        if not missing:
            missing += [f"SSH on {host.name}" for host in spec.hosts if not self.ssh_answers(host)]
        if not (self.directory / "registry.json").exists():
            missing.append("stand-in images")
        return missing

    def announce(self, spec: Spec) -> None:
        packages = missing_packages()
        say(f"Lab {spec.name}: this changes on the machine, until `down`:")
        say(f"  bridge {spec.bridge} with {spec.gateway} and {spec.gateway6}, and one nspawn host per name on it: "
            + ", ".join(f"{host.name} ({host.address})" for host in spec.hosts))  # fmt: skip
        say(f"  nft table inet {spec.table}: those hosts reach each other and the services below, nothing else")
        say(f"  on {spec.gateway}: resolver (53), apt proxy ({spec.apt_port}), image registry ({spec.registry_port})")
        say("and stays afterwards:")
        say(f"  {self.cache.root} (images, packages, logs)")
        say(f"  Debian packages installed now: {', '.join(packages) or 'none'}")

    def check_routes(self, spec: Spec) -> None:
        """Refuse a subnet that the machine already knows: its own traffic would disappear into the lab."""
        wanted: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = [spec.network, spec.network6]
        for family in ("-4", "-6"):
            listed = run([_tool_or("ip"), "-json", family, "route", "show", "table", "all"], check=False).stdout or "[]"
            for route in json.loads(listed):
                destination = str(route.get("dst", "default"))
                if destination == "default" or route.get("type") in ("multicast", "broadcast", "anycast"):
                    continue
                try:
                    network = ipaddress.ip_network(destination, strict=False)
                except ValueError:
                    continue
                for own in wanted:
                    if network.version == own.version and network.overlaps(own) and network.prefixlen > 0:
                        device = route.get("dev", "?")
                        raise LabError(
                            f"lab_subnet {own} overlaps the machine's route {network} on {device}. "
                            f"Choose another lab_subnet (or lab_subnet6) for lab {spec.name}, or remove that route."
                        )

    def make_link(self, link: Path | None) -> None:
        """A stable place inside a checkout that an inventory can name; never replaces anything but a link."""
        if link is None:
            return
        if link.is_symlink():
            if os.readlink(link) == str(self.directory):
                return
            link.unlink()
        elif link.exists():
            raise LabError(f"{link} exists and is not a link: move it away, the lab's keys are linked there")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(self.directory)

    def ensure_keys(self) -> None:
        folder = self.directory / "ssh"
        folder.mkdir(exist_ok=True, mode=0o700)
        if not (folder / "id_ed25519").exists():
            self.make_key(folder / "id_ed25519", f"hearth-lab-{self.directory.name}")

    def make_key(self, path: Path, comment: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for leftover in (path, path.with_name(path.name + ".pub")):
            leftover.unlink(missing_ok=True)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path])

    def ensure_bridge(self, spec: Spec) -> None:
        mark = f"hearth-lab:{self.directory}"
        present = Path("/sys/class/net", spec.bridge)
        if present.exists():
            alias = (present / "ifalias").read_text(encoding="utf-8").strip()
            if alias != mark:
                raise LabError(
                    f"interface {spec.bridge} exists and is not this lab's (alias {alias!r}): use another lab_name"
                )
        else:
            run(["ip", "link", "add", "name", spec.bridge, "type", "bridge"])
            run(["ip", "link", "set", "dev", spec.bridge, "alias", mark])
        # Settings of this interface alone; they vanish with it.
        for setting in (f"ipv6/conf/{spec.bridge}/accept_ra=0", f"ipv6/conf/{spec.bridge}/disable_ipv6=0"):
            path, _, value = setting.partition("=")
            with contextlib.suppress(FileNotFoundError):
                Path("/proc/sys/net", path).write_text(value, encoding="utf-8")
        run(["ip", "address", "replace", f"{spec.gateway}/{spec.network.prefixlen}", "dev", spec.bridge])
        run(
            [
                "ip",
                "-6",
                "address",
                "replace",
                f"{spec.gateway6}/{spec.network6.prefixlen}",
                "dev",
                spec.bridge,
                "nodad",
            ]
        )
        run(["ip", "link", "set", "dev", spec.bridge, "up"])
        for host in spec.hosts:  # hosts that ran on while somebody removed the bridge
            interface = f"vb-{self.machine(host.name)}"
            if Path("/sys/class/net", interface).exists():
                run(["ip", "link", "set", "dev", interface, "master", spec.bridge, "up"])
        self.ensure_bridge_traffic(spec)

    def ensure_bridge_traffic(self, spec: Spec) -> None:
        """Where br_netfilter is on (Docker does that), iptables' FORWARD chain also sees frames between the hosts."""
        for family, command in (("iptables", "iptables"), ("ip6tables", "ip6tables")):
            switch = Path(f"/proc/sys/net/bridge/bridge-nf-call-{family}")
            if not switch.exists() or switch.read_text(encoding="utf-8").strip() != "1" or find_tool(command) is None:
                continue
            rule = self.bridge_rule(spec.bridge)
            if run([command, "-w", "-C", "FORWARD", *rule], check=False).returncode != 0:
                self.record(forward_rules=sorted({*self.load().get("forward_rules", []), command}))
                run([command, "-w", "-I", "FORWARD", "1", *rule])

    @staticmethod
    def bridge_rule(bridge: str) -> list[str]:
        return ["-i", bridge, "-o", bridge, "-m", "comment", "--comment", "hearth-lab", "-j", "ACCEPT"]

    def ensure_firewall(self, spec: Spec) -> None:
        ports = f"{{ 53, {spec.apt_port}, {spec.registry_port} }}"
        # `add` before `delete`, so that one transaction replaces the table whether it was there or not.
        rules = f"""
add table inet {spec.table}
delete table inet {spec.table}
table inet {spec.table} {{
  comment "hearth-lab:{self.directory}"
  chain prerouting {{
    # Before routing: nothing from the hosts leaves the bridge, whether the machine forwards or not, and they learn it
    # at once instead of waiting for a time-out.
    type filter hook prerouting priority -150; policy accept;
    iifname != "{spec.bridge}" accept
    ip daddr {{ {spec.subnet}, 224.0.0.0/4, 255.255.255.255 }} accept
    ip6 daddr {{ {spec.subnet6}, fe80::/10, ff00::/8 }} accept
    meta protocol {{ ip, ip6 }} reject with icmpx type admin-prohibited
  }}
  chain input {{
    type filter hook input priority -10; policy accept;
    iifname "{spec.bridge}" jump from_hosts
    # The services are for the hosts: not for the machine's other networks.
    iifname != "lo" ip daddr {spec.gateway} drop
    iifname != "lo" ip6 daddr {spec.gateway6} drop
  }}
  chain from_hosts {{
    ct state established,related accept
    icmp type echo-request accept
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, echo-request }} accept
    ip daddr {spec.gateway} meta l4proto {{ tcp, udp }} th dport {ports} accept
    ip6 daddr {spec.gateway6} meta l4proto {{ tcp, udp }} th dport {ports} accept
    meta pkttype {{ broadcast, multicast }} drop
    reject with icmpx type admin-prohibited
  }}
  chain forward {{
    type filter hook forward priority -10; policy accept;
    iifname "{spec.bridge}" oifname "{spec.bridge}" accept
    iifname "{spec.bridge}" drop
    oifname "{spec.bridge}" drop
  }}
}}
"""
        run(["nft", "-f", "-"], stdin=rules)

    def ensure_services(self, spec: Spec, proxy: int) -> None:
        logs = self.directory / "log"
        logs.mkdir(exist_ok=True)
        if not self.running("apt-relay"):
            listen = [f"--listen={address}" for address in (spec.gateway, spec.gateway6)]
            ports = [f"--port={spec.apt_port}", f"--to={proxy}"]
            argv = [sys.executable, str(Path(__file__).resolve()), "_relay", *listen, *ports]
            spawn(self.directory, "apt-relay", argv, logs / "apt-relay.log")
            wait_for_port(spec.gateway, spec.apt_port, "the apt relay", logs / "apt-relay.log")
        if not self.running("resolver"):
            write(self.directory / "dnsmasq.conf", self.resolver_configuration(spec))
            spawn(
                self.directory,
                "resolver",
                [_tool("dnsmasq"), "--keep-in-foreground", f"--conf-file={self.directory / 'dnsmasq.conf'}"],
                logs / "resolver.log",
            )
            wait_for_port(spec.gateway, 53, "dnsmasq", logs / "resolver.log")
        if not self.running("registry"):
            # JSON is YAML: the registry reads it.
            configuration = {
                "version": 0.1,
                "log": {"level": "warn"},
                "storage": {
                    "filesystem": {"rootdirectory": str(self.directory / "registry")},
                    "delete": {"enabled": True},
                },
                "http": {"addr": f"{spec.gateway}:{spec.registry_port}"},
            }
            write(self.directory / "registry.yml", json.dumps(configuration, indent=2) + "\n")
            spawn(
                self.directory,
                "registry",
                [_tool("docker-registry"), "serve", self.directory / "registry.yml"],
                logs / "registry.log",
                # A bug of its otel client: without this it looks for a collector on localhost.
                {"OTEL_TRACES_EXPORTER": "none"},
            )
            wait_for_port(spec.gateway, spec.registry_port, "docker-registry", logs / "registry.log")

    def resolver_configuration(self, spec: Spec) -> str:
        lines = [
            "# written by the hearth lab: the lab's own names, and nothing else",
            "user=nobody",
            "group=nogroup",
            "no-resolv",
            "no-hosts",
            "no-poll",
            "bind-interfaces",
            "except-interface=lo",
            f"listen-address={spec.gateway},{spec.gateway6}",
            "pid-file=",
            f"host-record=registry.{spec.domain},{spec.gateway},{spec.gateway6}",
            f"host-record=apt.{spec.domain},{spec.gateway},{spec.gateway6}",
        ]
        for host in spec.hosts:
            lines.append(f"host-record={host.name}.{spec.domain},{host.name},{host.address},{host.address6}")
            if host.name == spec.wildcard:
                lines += [f"address=/{spec.domain}/{address}" for address in (host.address, host.address6)]
        # Everything else does not exist, said at once.
        lines.append("address=/#/")
        return "\n".join(lines) + "\n"

    def ensure_tree(self, spec: Spec, host: Host, image: Path) -> None:
        """A host's own root: a copy, not an overlay, because podman cannot put its overlays on an overlay, and because
        renaming a directory that comes from a lower layer fails, which no real host does."""
        root = self.host_directory(host.name)
        if root.exists():
            return
        fresh = root.with_name(f".{host.name}.new")
        remove_tree(fresh)
        fresh.parent.mkdir(parents=True, exist_ok=True)
        run(["cp", "--archive", "--reflink=auto", "--one-file-system", image, fresh], owner=self.directory)
        self.make_key(fresh / "etc/ssh/ssh_host_ed25519_key", f"root@{host.name}")
        write(fresh / "etc/machine-id", uuid.uuid4().hex + "\n", 0o444)
        write(fresh / "etc/hostname", host.name + "\n")
        write(fresh / "etc/hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
              f"127.0.1.1 {host.name}.{spec.domain} {host.name}\n")  # fmt: skip
        # No search domain: with the wildcard below it, any unknown name would lead to the wildcard's host.
        write(fresh / "etc/resolv.conf", f"nameserver {spec.gateway}\n")
        write(fresh / "etc/systemd/network/10-lab.network", self.network_configuration(spec, host))
        write(
            fresh / "etc/apt/apt.conf.d/91lab-proxy", f'Acquire::http::Proxy "http://{spec.gateway}:{spec.apt_port}";\n'
        )
        (fresh / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
        public = (self.directory / "ssh/id_ed25519.pub").read_text(encoding="utf-8")
        write(fresh / "root/.ssh/authorized_keys", public, 0o600)
        registry = f'[[registry]]\nlocation = "{spec.registry}"\ninsecure = true\n'
        write(fresh / "etc/containers/registries.conf.d/90-lab.conf", "# written by the hearth lab\n" + registry)
        if not Path("/sys/fs/cgroup/cgroup.controllers").exists():
            # A hybrid machine keeps the pids controller in cgroup v1, out of a host's reach: podman's default fails.
            limit = "# written by the hearth lab\n[containers]\npids_limit = 0\n"
            write(fresh / "etc/containers/containers.conf.d/90-lab.conf", limit)
        fresh.rename(root)

    @staticmethod
    def network_configuration(spec: Spec, host: Host) -> str:
        return (
            "# written by the hearth lab\n"
            "[Match]\nName=host0\n\n"
            "[Network]\n"
            f"Address={host.address}/{spec.network.prefixlen}\n"
            f"Gateway={spec.gateway}\nGateway={spec.gateway6}\n"
            "IPv6AcceptRA=no\nLLMNR=no\nMulticastDNS=no\n\n"
            "[Address]\n"
            f"Address={host.address6}/{spec.network6.prefixlen}\n"
            # Static addresses on a private bridge: a second of waiting for duplicates buys nothing.
            "DuplicateAddressDetection=none\n"
        )

    def write_ssh(self, spec: Spec) -> None:
        folder = self.directory / "ssh"
        known, config = [], []
        for host in spec.hosts:
            public = self.host_directory(host.name) / "etc/ssh/ssh_host_ed25519_key.pub"
            key = " ".join(public.read_text(encoding="utf-8").split()[:2])
            known.append(f"{host.name},{host.name}.{spec.domain},{host.address},{host.address6} {key}")
            config.append(
                f"Host {host.name} {host.name}.{spec.domain} {host.address}\n"
                f"  HostName {host.address}\n  User root\n"
                f"  IdentityFile {folder / 'id_ed25519'}\n  IdentitiesOnly yes\n"
                f"  UserKnownHostsFile {folder / 'known_hosts'}\n  StrictHostKeyChecking yes\n  BatchMode yes\n"
            )
        write(folder / "known_hosts", "\n".join(known) + "\n")
        write(folder / "config", "\n".join(config), 0o600)

    def cgroup(self, name: str) -> str:
        """The control group of a host, below each root."""
        if Path("/run/systemd/system").exists():
            return f"machine.slice/{self.scope(name)}"
        return f"hearth-lab/{self.directory.name}/{name}"

    def scope(self, name: str) -> str:
        return f"hearth_lab_{self.directory.name}_{name}.scope".replace("-", "_")

    def machine(self, name: str) -> str:
        """nspawn's name for a host: unique among all labs, and short enough that "vb-" + it is its interface's name."""
        return f"h{zlib.crc32(f'{self.directory}/{name}'.encode()):08x}"

    def end_host(self, name: str) -> None:
        """Leave nothing of a host running, however it or its supervisor ended. Its disk stays."""
        end(self.running(f"host-{name}"), grace=0)
        end_cgroup(self.cgroup(name))
        interface = Path("/sys/class/net", f"vb-{self.machine(name)}")
        # Connections that were open keep a dead host's network, and with it this interface, for minutes. A short wait
        # lets them close in the ordinary way first.
        limit = time.monotonic() + 0.5
        while interface.exists() and time.monotonic() < limit:
            time.sleep(0.05)
        if interface.exists():
            run(["ip", "link", "delete", "dev", interface.name], check=False)

    def start(self, spec: Spec, host: Host) -> None:
        if self.running(f"host-{host.name}"):
            return
        self.end_host(host.name)  # what a killed supervisor left running
        argv: list[str | Path] = []
        if Path("/run/systemd/system").exists():
            # Out of the session's scope, which ends with the login, into one that systemd leaves alone.
            argv += ["systemd-run", "--quiet", "--scope", "--collect", f"--unit={self.scope(host.name)}"]
            argv += ["--slice=machine.slice", "--property=Delegate=yes"]
        # A mount namespace of its own: what nspawn leaves behind when it is killed vanishes with it.
        argv += ["unshare", "--mount", "--propagation", "private"]
        argv += [
            sys.executable,
            Path(__file__).resolve(),
            "_host",
            f"--lab={self.directory}",
            f"--bridge={spec.bridge}",
        ]
        argv += [f"--cgroup={self.cgroup(host.name)}", f"--machine={self.machine(host.name)}", host.name]
        spawn(self.directory, f"host-{host.name}", argv, self.console(host.name))

    def ssh(self, host: str, command: Sequence[str], timeout: float = 60) -> subprocess.CompletedProcess[str]:
        argv = ["ssh", "-F", str(self.directory / "ssh/config"), "-o", "ConnectTimeout=5", host, shlex.join(command)]
        return subprocess.run(
            argv,
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout,
            env=environment(),
        )

    def ssh_answers(self, host: Host) -> bool:
        try:
            return self.ssh(host.name, ["true"], timeout=10).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def wait_for_ssh(self, host: Host) -> None:
        started = time.monotonic()
        reported = started
        while time.monotonic() - started < SSH_TIMEOUT:
            if not self.running(f"host-{host.name}"):
                break
            with contextlib.suppress(OSError), socket.create_connection((host.address, 22), timeout=1):
                if self.ssh_answers(host):
                    say(f"  {host.name}: SSH after {time.monotonic() - started:.1f} s at {host.address}")
                    return
            if time.monotonic() - reported > 10:
                reported = time.monotonic()
                say(f"  {host.name}: waiting for SSH, {time.monotonic() - started:.0f} s")
            time.sleep(0.2)
        running = "is running" if self.running(f"host-{host.name}") else "has ended"
        raise LabError(
            f"{host.name} does not answer on SSH ({host.address}); its nspawn {running}. "
            f"The end of its console ({self.console(host.name)}):\n{tail(self.console(host.name))}"
        )

    def ensure_standins(self, spec: Spec) -> None:
        """Push what the registry does not have; remember each reference and digest."""
        if (self.directory / "registry.json").exists():
            return
        with locked(self.cache.root / "busybox.lock", "busybox"):
            busybox = ensure_busybox(self.cache, spec.suite)
        pushed = {}
        for name, definition in sorted(standin_definitions().items()):
            layout = self.directory / "standins" / name
            remove_tree(layout)
            digest = build_standin(name, definition, busybox, layout)
            reference = f"standin/{name}:{definition['tag']}"
            target = f"docker://{spec.gateway}:{spec.registry_port}/{reference}"
            run([_tool("skopeo"), "--insecure-policy", "copy", "--preserve-digests", "--dest-tls-verify=false",
                 f"oci:{layout}:standin", target])  # fmt: skip
            pushed[name] = {"reference": f"{spec.registry}/{reference}", "digest": digest}
        write(self.directory / "registry.json", json.dumps(pushed, indent=2, sort_keys=True) + "\n")

    def refresh_lists(self, spec: Spec) -> None:
        """A mirror moves on: package lists older than a day name files that may be gone."""
        for host in spec.hosts:
            lists = self.host_directory(host.name) / "var/lib/apt/lists"
            newest = max((path.stat().st_mtime for path in lists.glob("*_InRelease")), default=0.0)
            marker = self.host_directory(host.name) / "var/lib/apt/periodic/update-success-stamp"
            if marker.exists():
                newest = max(newest, marker.stat().st_mtime)
            image_age = time.time() - lists.stat().st_mtime
            if image_age > 86400 and time.time() - newest > 86400:
                done = self.ssh(host.name, ["apt-get", "-q", "update"], timeout=300)
                if done.returncode != 0:
                    raise LabError(
                        f"{host.name}: `apt-get update` failed through the lab's proxy:\n{done.stderr[-2000:]}"
                    )

    # -- single hosts

    def spec(self) -> Spec:
        known = self.load()
        if "spec" not in known:
            raise LabError(f"lab {self.directory.name} is not up: there is no {self.state_file}")
        return Spec.from_json(known["spec"])

    def host(self, name: str) -> Host:
        for host in self.spec().hosts:
            if host.name == name:
                return host
        raise LabError(
            f"lab {self.directory.name} has no host {name}: it has {', '.join(h.name for h in self.spec().hosts)}"
        )

    def power_off(self, name: str, *, orderly: bool) -> None:
        """Orderly: as `poweroff` does. Otherwise as if the plug was pulled; what was written stays as it is."""
        processes = self.running(f"host-{self.host(name).name}")
        if orderly and processes:
            self.ssh(name, ["systemctl", "poweroff"])
            wait_gone(processes, 60)
        self.end_host(name)
        self.record_processes()

    def power_on(self, name: str) -> None:
        self.start(self.spec(), self.host(name))
        self.wait_for_ssh(self.host(name))
        self.record_processes()

    # -- down

    def down(self) -> bool:
        """Undo all of `up`, from whatever state it or a crash left. True when there was anything."""
        with locked(self.cache.labs / f"{self.directory.name}.lock", f"lab {self.directory.name}"):
            state = self.load()
            existed = self.directory.exists() or bool(processes_of(self.directory))
            # Their disks are deleted in a moment: no shutdown to wait for.
            for host in state.get("spec", {}).get("hosts", []):
                self.end_host(host["name"])
            end(processes_of(self.directory), grace=3)
            if table := state.get("table"):
                run(["nft", "delete", "table", "inet", table], check=False)
            if bridge := state.get("bridge"):
                for command in state.get("forward_rules", []):
                    run([command, "-w", "-D", "FORWARD", *self.bridge_rule(bridge)], check=False)
                alias = Path("/sys/class/net", bridge, "ifalias")
                if alias.exists() and alias.read_text(encoding="utf-8").strip() in ("", f"hearth-lab:{self.directory}"):
                    run(["ip", "link", "delete", "dev", bridge])
            remove_tree(self.directory)
        (self.cache.labs / f"{self.directory.name}.lock").unlink(missing_ok=True)
        if find_tool("apt-cacher-ng") is not None:
            release_proxy(self.cache)
        return existed

    def status(self) -> dict[str, Any]:
        state = self.load()
        if "spec" not in state:
            return {
                "name": self.directory.name,
                "up": False,
                "directory": str(self.directory),
                "missing": ["everything"],
            }
        spec = Spec.from_json(state["spec"])
        missing = self.missing(spec)
        images = self.directory / "registry.json"
        return {
            "name": spec.name,
            "up": not missing,
            "missing": missing,
            "directory": str(self.directory),
            "domain": spec.domain,
            "bridge": spec.bridge,
            "gateway": spec.gateway,
            "apt_proxy": f"http://{spec.gateway}:{spec.apt_port}",
            "registry": spec.registry,
            "images": json.loads(images.read_text(encoding="utf-8")) if images.exists() else {},
            "ssh_config": str(self.directory / "ssh/config"),
            "ssh_key": str(self.directory / "ssh/id_ed25519"),
            "known_hosts": str(self.directory / "ssh/known_hosts"),
            "hosts": {
                host.name: dataclasses.asdict(host)
                | {"running": bool(self.running(f"host-{host.name}")), "root": str(self.host_directory(host.name))}
                for host in spec.hosts
            },
            "processes": [dataclasses.asdict(process) for process in processes_of(self.directory)],
        }


def _tool_or(name: str) -> str:
    """`ip` is asked before tools are installed; a machine without it has no routes worth asking for either."""
    return find_tool(name) or "false"


# --- what runs in the background -------------------------------------------------------------------------------------


def host_main(args: argparse.Namespace) -> int:
    """Keep one host running: nspawn, and again after the host reboots itself."""
    directory = Path(args.lab)
    if not Path("/run/systemd/system").exists():
        own_cgroup(args.cgroup)
    for folder in ("/tmp", "/run/systemd/nspawn"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "hearth-lab", folder], check=True)
    argv = [
        "systemd-nspawn",
        "--quiet",
        "--settings=no",
        f"--directory={directory / 'hosts' / args.host}",
        "--boot",
        # The control group is made already: by own_cgroup(), or by systemd-run where systemd is PID 1.
        "--register=no",
        "--keep-unit",
        f"--machine={args.machine}",
        f"--hostname={args.host}",
        f"--network-bridge={args.bridge}",
        "--console=pipe",
        "--resolv-conf=off",
        "--timezone=off",
        "--link-journal=no",
        # podman and nftables inside need nearly all of them. Root in a host is root on the machine: the README says so.
        "--capability=all",
        "--system-call-filter=@keyring bpf @mount",
    ]
    if Path("/dev/net/tun").exists():
        argv.append("--bind=/dev/net/tun")
    if Path("/dev/fuse").exists():
        argv.append("--bind=/dev/fuse")
    # Makes systemd >= 256 boot on a machine with hybrid cgroups.
    variables = dict(os.environ) | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
    while True:
        status = subprocess.run(argv, stdin=subprocess.DEVNULL, env=variables, check=False).returncode
        print(f"hearth-lab: nspawn ended with status {status}", flush=True)
        for root in cgroup_roots():
            # Killed rather than ended: its host would run on without network and console.
            for name in ("payload", "supervisor"):
                if (root / args.cgroup / name).is_dir():
                    end_cgroup(f"{args.cgroup}/{name}")
        if status != 133:  # 133: the host asked for a reboot
            return status


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except (ConnectionError, TimeoutError):
        pass
    finally:
        writer.close()


async def relay_main(args: argparse.Namespace) -> None:
    """Carry connections on the bridge's address to the one apt proxy of this machine."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", args.to)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_pump(reader, up_writer), _pump(up_reader, writer))

    server = await asyncio.start_server(accept, args.listen, args.port)
    async with server:
        await server.serve_forever()


# --- command line ----------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="hearth_lab.py", description=(__doc__ or "").split("\n")[0])
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--name", default="demo", help="name of the lab (demo)")
        return command

    def add_source(command: argparse.ArgumentParser) -> None:
        command.add_argument("--suite", default="trixie", help="Debian release of the hosts (trixie)")
        command.add_argument("--mirror", default="", help="Debian mirror; by default the one this machine's apt uses")

    add("check", "say what the machine lacks; change nothing")
    for name, text in (
        ("prepare", "install tools and build the image, if missing"),
        ("image", "build the image, if missing"),
    ):
        add_source(add(name, text))
    command = add("up", "make a lab and boot its hosts; nothing happens when it is up already")
    add_source(command)
    command.add_argument("--subnet", default="", help="private IPv4 network, /24 or larger")
    command.add_argument("--subnet6", default="", help="IPv6 network")
    command.add_argument("--domain", default="lab.example.com", help="the lab's DNS domain")
    command.add_argument("--wildcard", default="", metavar="HOST", help="host that *.DOMAIN leads to (the first)")
    command.add_argument("--apt-port", type=int, default=3142)
    command.add_argument("--registry-port", type=int, default=5000)
    command.add_argument("--link", default="", metavar="PATH", help="make a link there to the lab's directory")
    command.add_argument("hosts", nargs="+", metavar="HOST[=ADDRESS]")
    add("down", "take everything of a lab back; caches stay").add_argument("--link", default="", metavar="PATH")
    add("status", "what is up").add_argument("--json", action="store_true")
    for name, text in (
        ("crash", "end a host as if its plug was pulled"),
        ("stop", "shut a host down"),
        ("start", "boot a host again"),
    ):
        add(name, text).add_argument("host")
    command = add("ssh", "run a command on a host, or log in")
    command.add_argument("host")
    command.add_argument("arguments", nargs=argparse.REMAINDER)

    command = commands.add_parser("_host")
    command.add_argument("--lab", required=True)
    command.add_argument("--bridge", required=True)
    command.add_argument("--cgroup", required=True)
    command.add_argument("--machine", required=True)
    command.add_argument("host")
    command = commands.add_parser("_relay")
    command.add_argument("--listen", action="append", required=True)
    command.add_argument("--port", type=int, required=True)
    command.add_argument("--to", type=int, required=True)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    if args.command == "_host":
        return host_main(args)
    if args.command == "_relay":
        asyncio.run(relay_main(args))
        return 0
    require_machine()
    cache = Cache.find()
    if args.command == "check":
        say(f"packages to install: {', '.join(missing_packages()) or 'none'}")
        return 0
    if args.command in ("prepare", "image"):
        if args.command == "prepare":
            install_tools(cache)
        mirror = find_mirror(args.mirror)
        say(str(ensure_image(cache, args.suite, mirror)))
        release_proxy(cache)
        return 0
    if not NAME.fullmatch(args.name):
        raise LabError(f"lab name {args.name!r}: {NAME_RULE}")
    lab = Lab(cache, args.name)
    return run_lab_command(lab, args)


def run_lab_command(lab: Lab, args: argparse.Namespace) -> int:
    if args.command == "up":
        link = Path(args.link).absolute() if args.link else None
        started = time.monotonic()
        changed = lab.up(make_spec(args), link)
        say(
            f"Lab {args.name} is up after {time.monotonic() - started:.1f} s."
            if changed
            else f"Lab {args.name} was up already."
        )
        return 0
    if args.command == "down":
        changed = lab.down()
        if args.link and Path(args.link).is_symlink() and os.readlink(args.link) == str(lab.directory):
            Path(args.link).unlink()
        say(
            f"Lab {args.name} is down; {lab.cache.root} keeps the caches."
            if changed
            else f"Lab {args.name} was down already."
        )
        return 0
    if args.command == "status":
        status = lab.status()
        if args.json:
            say(json.dumps(status, indent=2, sort_keys=True))
        else:
            say(f"lab {status['name']}: {'up' if status['up'] else 'not up, missing ' + ', '.join(status['missing'])}")
            for name, host in status.get("hosts", {}).items():
                say(f"  {name}: {host['address']} {'running' if host['running'] else 'stopped'}")
        return 0 if status["up"] else 1
    if args.command == "ssh":
        lab.host(args.host)
        argv = ["ssh", "-F", str(lab.directory / "ssh/config"), args.host, *args.arguments]
        return subprocess.run(argv, check=False).returncode
    if args.command in ("crash", "stop"):
        lab.power_off(args.host, orderly=args.command == "stop")
    elif args.command == "start":
        lab.power_on(args.host)
    return 0


def entry() -> NoReturn:
    try:
        status = main()
    except LabError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        status = 1
    except KeyboardInterrupt:
        print("interrupted; `hearth_lab.py down` takes back what was started", file=sys.stderr, flush=True)
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    entry()
