# Copyright: hearth.homelab contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The machine: what it must have, where its Debian packages come from, and the caches it keeps."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from lablib.core import LabError, find_tool, locked, processes_of, remove_tree, run, run_with_progress, say, write

# Command or file -> Debian package that has it. age makes the throwaway keys; the table of the demo and the tests use
# curl on the machine.
TOOLS: Mapping[str, str] = {
    "age": "age",
    "apt-cacher-ng": "apt-cacher-ng",
    "curl": "curl",
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
# What only QEMU hosts need.
QEMU_TOOLS: Mapping[str, str] = {
    "mkfs.ext4": "e2fsprogs",
    "qemu-system-x86_64": "qemu-system-x86",
    "setpriv": "util-linux",
}
# Units of packages this program may install: they are for the lab's own instances, so the distribution's are neither
# started nor left enabled for the next boot.
TOOL_UNITS: Mapping[str, tuple[str, ...]] = {
    "apt-cacher-ng": ("apt-cacher-ng.service",),
    "docker-registry": ("docker-registry.service",),
}
POLICY_RC_D = Path("/usr/sbin/policy-rc.d")


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
    def qemu(self) -> Path:
        """Images of QEMU hosts, and the modules that are in them."""
        return self.root / "qemu"

    @property
    def labs(self) -> Path:
        return self.root / "labs"

    @property
    def shared(self) -> Path:
        """The apt proxy: one for all labs, because two must not share one store."""
        return self.root / "proxy"

    @property
    def wheels(self) -> Path:
        return self.root / "wheels"

    @property
    def policy(self) -> Path:
        return self.root / "policy-rc.d"

    def lock(self, name: str) -> Path:
        """Lock files stay: removing one while somebody waits for it would let two in."""
        return self.root / "lock" / name

    def log(self, name: str) -> Path:
        folder = self.root / "log"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}.log"


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


def missing_packages(*, qemu: bool = False) -> list[str]:
    wanted = {**TOOLS, **(QEMU_TOOLS if qemu else {})}
    return sorted({package for tool, package in wanted.items() if find_tool(tool) is None})


def install_tools(cache: Cache, *, qemu: bool = False) -> None:
    """Install what is missing without starting any of it, and without leaving it enabled for the next boot."""
    with locked(cache.lock("tools"), "the installation of tools"):
        # An installation that outlived a killed run is left to finish: half-configured packages help nobody.
        while processes_of(cache.policy):
            say("  waiting for an installation that an earlier run began")
            time.sleep(5)
        settle_installation(cache)
        packages = missing_packages(qemu=qemu)
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
        if still := missing_packages(qemu=qemu):
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
            main = real_uri(uri)
        if release in (f"{codename}-security", "stable-security") and not security:
            security = real_uri(uri)
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


def real_uri(uri: str) -> str:
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


def plain_http(uri: str) -> str:
    """The address the hosts ask for: plain HTTP up to the proxy, which speaks what the real mirror speaks."""
    return re.sub(r"^https:", "http:", uri)


def need_tool(name: str) -> str:
    found = find_tool(name)
    if found is None:
        raise LabError(
            f"{name} is not installed (package {({**TOOLS, **QEMU_TOOLS}).get(name, name)}): run `hearth_lab.py prepare`"
        )
    return found


def optional_tool(name: str) -> str:
    """`ip` is asked before tools are installed; a machine without it has no routes worth asking for either."""
    return find_tool(name) or "false"
