# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A lab of a test, through its program; and ways to try what its hosts reach."""

from __future__ import annotations

import contextlib
import functools
import json
import shlex
import subprocess
import sys
import typing as t
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "roles/lab/files/hearth_lab.py"

Attempt = tuple[str, str, int]

# Tries addresses from inside a host: a list of [kind, address, port] as JSON on standard input, the same with what came
# of it on standard output. An answer is an answer, whoever gives it.
TRY = """
import concurrent.futures, json, socket, subprocess, sys
def attempt(entry):
    kind, address, port = entry
    if kind == "ping":
        return "open" if subprocess.run(["ping", "-c1", "-W1", address], capture_output=True).returncode == 0 else "silent"
    family, _, _, _, target = socket.getaddrinfo(address, port)[0]
    with socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as s:
        s.settimeout(float(sys.argv[1]))
        try:
            if kind == "tcp":
                s.connect(target)
                return "open"
            s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            s.sendto(b"hello", target)
            s.recvfrom(99)
            return "open"
        except OSError as error:
            return str(error)
wanted = json.load(sys.stdin)
with concurrent.futures.ThreadPoolExecutor(max_workers=40) as pool:
    print(json.dumps([[*entry, outcome] for entry, outcome in zip(wanted, pool.map(attempt, wanted))]))
"""

# Answers on a port, TCP and UDP, over both families and on all addresses.
ANSWER = """
import socket, sys, threading
tcp, udp = (socket.socket(socket.AF_INET6, kind) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM))
for s in (tcp, udp):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    s.bind(("::", int(sys.argv[1])))
tcp.listen(50)
def accept():
    while True:
        tcp.accept()[0].close()
threading.Thread(target=accept, daemon=True).start()
print("ready", flush=True)
while True:
    udp.sendto(b"here", udp.recvfrom(99)[1])
"""


def program(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    found = subprocess.run([sys.executable, str(PROGRAM), *arguments], capture_output=True, text=True, check=False)
    if check:
        assert found.returncode == 0, found.stdout + found.stderr
    return found


class Lab:
    """`hosts` and `arguments` as `hearth_lab.py up` takes them. `patience`: seconds that a host waits for an answer to an
    attempt."""

    def __init__(self, name: str, hosts: t.Sequence[str], patience: float = 2, arguments: t.Sequence[str] = ()) -> None:
        self.name, self.hosts, self.patience, self.arguments = name, hosts, patience, arguments

    def up(self) -> str:
        return program("up", f"--name={self.name}", *self.arguments, *self.hosts).stdout

    def down(self) -> str:
        return program("down", f"--name={self.name}").stdout

    def status(self) -> dict[str, t.Any]:
        found = program("status", f"--name={self.name}", "--json", check=False).stdout
        return t.cast("dict[str, t.Any]", json.loads(found))

    @functools.cached_property
    def ssh_config(self) -> str:
        return str(self.status()["ssh_config"])

    def on(self, host: str, command: str, *, check: bool = True, timeout: int = 180) -> str:
        found = subprocess.run(
            ["ssh", "-F", self.ssh_config, host, command],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
        if check:
            assert found.returncode == 0, f"{command}: {found.stdout}{found.stderr}"
        return found.stdout + found.stderr

    def attempts(self, host: str, wanted: t.Iterable[Attempt]) -> dict[Attempt, str]:
        found = subprocess.run(
            ["ssh", "-F", self.ssh_config, host, f"python3 -c {shlex.quote(TRY)} {self.patience}"],
            input=json.dumps(sorted(wanted)), capture_output=True, text=True, check=True, timeout=300,
        ).stdout  # fmt: skip
        return {(kind, address, port): outcome for kind, address, port, outcome in json.loads(found)}

    def refused(self, counter: str) -> int:
        command = ["nft", "--json", "list", "counters", "table", "inet", self.table]
        found = json.loads(subprocess.check_output(command, text=True))
        return next(
            int(e["counter"]["packets"]) for e in found["nftables"] if e.get("counter", {}).get("name") == counter
        )

    @property
    def table(self) -> str:
        return f"hearth_lab_{self.name.replace('-', '_')}"


@contextlib.contextmanager
def answering(port: int, *prefix: str) -> t.Iterator[None]:
    with subprocess.Popen([*prefix, sys.executable, "-c", ANSWER, str(port)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            yield
        finally:
            process.kill()


@dataclass(frozen=True)
class Neighbour:
    """A machine in a network behind this one, as its LAN is, and this one's addresses in that network."""

    address: str
    address6: str
    gateway: str
    gateway6: str


@contextlib.contextmanager
def neighbour(bridge: str, port: int, number: int = 0) -> t.Iterator[Neighbour]:
    """The machine forwards between it and the lab over IPv4. Two at a time have two numbers."""
    outer = f"hl-neighbour{number or ''}"
    net, net6 = ("198.51.100", "203.0.113")[number], f"2001:db8:5e1f:{number}:"
    # Not `ip netns add`, which leaves a mount on /run/netns behind for ever.
    with subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep 300"], stdout=subprocess.PIPE) as space:
        try:
            assert space.stdout
            space.stdout.readline()
            inside = ["nsenter", f"--target={space.pid}", "--net"]
            for command in (
                f"ip link add {outer} type veth peer name nb1 netns {space.pid}",
                f"ip address add {net}.1/24 dev {outer}", f"ip -6 address add {net6}:1/64 dev {outer} nodad",
                f"ip link set {outer} up",
            ):  # fmt: skip
                subprocess.run(command.split(), check=True)
            for command in (
                f"ip address add {net}.2/24 dev nb1", f"ip -6 address add {net6}:2/64 dev nb1 nodad",
                "ip link set nb1 up", "ip link set lo up", f"ip route add default via {net}.1",
                f"ip -6 route add default via {net6}:1",
            ):  # fmt: skip
                subprocess.run([*inside, *command.split()], check=True)
            # Settings of these two interfaces alone, which vanish with them; the machine's own are left as they are.
            for interface in (outer, bridge):
                Path(f"/proc/sys/net/ipv4/conf/{interface}/forwarding").write_text("1")
            with answering(port, *inside):
                yield Neighbour(f"{net}.2", f"{net6}:2", f"{net}.1", f"{net6}:1")
        finally:
            subprocess.run(["ip", "link", "delete", outer], check=False)
            space.kill()


@dataclass(frozen=True)
class Surroundings:
    """What a host may try. All but `far` is there and answers, so that only rules keep it away."""

    allowed: set[Attempt]
    bridge: set[Attempt]
    machine: set[Attempt]
    lan: set[Attempt]
    far: set[Attempt]

    @staticmethod
    def find(found: dict[str, t.Any], target: str, interface: str, lan: Neighbour, port: int) -> Surroundings:
        """As seen from a host with that interface in a lab with this status; `target` is another of its hosts."""
        gateway, bridge, other = found["gateway"], found["bridge"], found["hosts"][target]
        links = json.loads(subprocess.check_output(["ip", "-json", "address"], text=True))
        addresses = {link["ifname"]: [a["local"] for a in link["addr_info"]] for link in links}
        gateway6 = next(a for a in addresses[bridge] if a.startswith("fd6b:"))
        local6 = next(a for a in addresses[bridge] if a.startswith("fe80:"))
        # The machine's own services, through every address it has: the LAN's, the bridge's, and what all listen to.
        local = {a for name, known in addresses.items() if not name.startswith(("hl-", "vb-", "lo")) for a in known}
        local = {a for a in local if not a.startswith("fe80:")} | {lan.gateway, lan.gateway6}
        subnet = gateway.rpartition(".")[0]
        defaults = [
            route["gateway"]
            for family in ("-4", "-6")
            for route in json.loads(
                subprocess.check_output(["ip", "-json", family, "route", "show", "default"], text=True)
            )
            if "gateway" in route and not route["gateway"].startswith("fe80:")
        ]
        return Surroundings(
            allowed={
                *(("tcp", address, 22) for address in (other["address"], other["address6"])),
                *(("tcp", address, port) for address in (gateway, gateway6) for port in (53, 3142)),
                ("tcp", gateway, 5000),
                *(("ping", address, 0) for address in (gateway, gateway6, other["address6"])),
            },
            bridge={
                *((kind, a, port) for kind in ("tcp", "udp") for a in (gateway, gateway6, f"{local6}%{interface}")),
                ("udp", f"ff02::1%{interface}", port), ("udp", f"{subnet}.255", port), ("udp", "255.255.255.255", port),
            },
            machine={(kind, a, port) for kind in ("tcp", "udp") for a in local},
            lan={("tcp", lan.address, port), ("udp", lan.address, port), ("ping", lan.address, 0)},
            far={
                ("tcp", lan.address6, port),
                ("tcp", "1.1.1.1", 443), ("udp", "9.9.9.9", 53), ("ping", "1.1.1.1", 0), ("tcp", "169.254.169.254", 80),
                ("tcp", "2606:4700:4700::1111", 443), ("udp", "2620:fe::fe", 53), ("ping", "2606:4700:4700::1111", 0),
                *((kind, address, 80) for kind in ("tcp", "udp") for address in defaults),
            },
        )  # fmt: skip
