# Copyright: hearth.homelab contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a lab is: names, networks, hosts. Pure data."""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lablib.core import LabError
from lablib.wheels import read_requirements

NAME = re.compile(r"[a-z][a-z0-9-]{0,30}[a-z0-9]")
NAME_RULE = "lower-case letters, digits and hyphens, 2 to 32 characters, are allowed"


KINDS = ("nspawn", "qemu")
# What a QEMU host has when nothing is said. Two processors: a boot is mostly many small programs.
MEMORY = 2048
CPUS = 2
# ZFS refuses a device of less (SPA_MINDEVSIZE).
SMALLEST_DISK = 64 << 20
UNITS = {"M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclasses.dataclass(frozen=True)
class Host:
    name: str
    address: str
    address6: str
    kind: str = "nspawn"
    memory: int = 0  # MiB, of a QEMU host
    cpus: int = 0
    disks: tuple[int, ...] = ()  # bytes of each disk beside the one with the root file system

    @property
    def qemu(self) -> bool:
        return self.kind == "qemu"


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
    python_requirements: tuple[str, ...] = ()
    python_port: int = 3141

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
    def qemu_hosts(self) -> tuple[Host, ...]:
        return tuple(host for host in self.hosts if host.qemu)

    @property
    def registry(self) -> str:
        return f"registry.{self.domain}:{self.registry_port}"

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Spec:
        hosts = tuple(Host(**{**host, "disks": tuple(host.get("disks", ()))}) for host in data["hosts"])
        requirements = tuple(data.get("python_requirements", ()))
        return Spec(**{**data, "hosts": hosts, "python_requirements": requirements})


def default_subnet(name: str) -> str:
    """A private /24 of the lab's own, the same for the same name."""
    return f"10.231.{16 + zlib.crc32(name.encode()) % 240}.0/24"


def default_subnet6(subnet: str) -> str:
    """The IPv6 counterpart: one random ULA prefix of this project, the subnet number taken from the IPv4 network."""
    octets = ipaddress.IPv4Network(subnet).network_address.packed
    return f"fd6b:9b1e:4c27:{octets[1]:02x}{octets[2]:02x}::/64"


def host_settings(name: str, settings: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE of a host, checked: kind, memory, cpus, and disk as often as it has disks."""
    kind, numbers, disks = KINDS[0], {"memory": MEMORY, "cpus": CPUS}, []
    for setting in settings:
        key, _, value = setting.partition("=")
        if key == "kind" and value in KINDS:
            kind = value
        elif key in numbers and re.fullmatch(r"[1-9][0-9]{0,6}", value):
            numbers[key] = int(value)
        elif key == "disk" and (size := disk_size(value)) >= SMALLEST_DISK:
            disks.append(size)
        else:
            raise LabError(
                f"host {name}: {setting!r} is none of kind={'|'.join(KINDS)}, memory=MEBIBYTES, cpus=NUMBER, "
                "disk=SIZE (such as 64M, 8G: at least 64M; once for each disk)"
            )
    if kind == "qemu":
        return {"kind": kind, **numbers, "disks": tuple(disks)}
    if given := [setting for setting in settings if not setting.startswith("kind=")]:
        raise LabError(
            f"host {name}: {', '.join(given)} is for a host of kind=qemu; an nspawn host shares the machine's"
        )
    return {"kind": kind}


def disk_size(text: str) -> int:
    """Bytes; 0 when it is no size."""
    found = re.fullmatch(r"([1-9][0-9]{0,6})([MGT])", text)
    return int(found[1]) * UNITS[found[2]] if found else 0


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
        identity, *settings = text.split(",")
        name, _, address = identity.partition("=")
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
        hosts.append(Host(name, str(own), str(network6[offset]), **host_settings(name, settings)))
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
        python_requirements=read_requirements(Path(args.python_requirements)) if args.python_requirements else (),
        python_port=args.python_port,
    )
