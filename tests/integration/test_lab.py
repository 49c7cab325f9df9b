# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The lab itself: what its hosts reach, that it survives being killed, and that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import pytest

from . import machine

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "roles/lab/files/hearth_lab.py"
# Two runs on one machine need two names.
NAME = os.environ.get("HEARTH_TEST_LAB", "selftest")
SECOND = f"{NAME}-second"
KILLED = f"{NAME}-killed"
HOSTS = ("one", "two")
PORT = 18099
# Any small package will do.
REQUIREMENTS = ROOT / "build" / f"{NAME}-requirements.txt"
PACKAGE = "iniconfig==2.3.1"

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="the lab needs root")]


def program(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    found = subprocess.run([sys.executable, str(PROGRAM), *arguments], capture_output=True, text=True, check=False)
    if check:
        assert found.returncode == 0, found.stdout + found.stderr
    return found


def up() -> str:
    return program("up", f"--name={NAME}", f"--python-requirements={REQUIREMENTS}", *HOSTS).stdout


def status() -> dict[str, t.Any]:
    found = program("status", f"--name={NAME}", "--json", check=False).stdout
    return t.cast("dict[str, t.Any]", json.loads(found))


@functools.cache
def ssh_config() -> str:
    return str(status()["ssh_config"])


def on(host: str, command: str, *, check: bool = True, timeout: int = 180) -> str:
    found = subprocess.run(
        ["ssh", "-F", ssh_config(), host, command],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )
    if check:
        assert found.returncode == 0, f"{command}: {found.stdout}{found.stderr}"
    return found.stdout + found.stderr


def opens(host: str, address: str, port: int) -> bool:
    return "open" in on(host, f"timeout 3 bash -c '</dev/tcp/{address}/{port}' && echo open", check=False)


@pytest.fixture(scope="module", autouse=True)
def the_lab() -> t.Iterator[None]:
    for name in (NAME, SECOND, KILLED):
        program("down", f"--name={name}")
    REQUIREMENTS.parent.mkdir(exist_ok=True)
    REQUIREMENTS.write_text(f"{PACKAGE}\n")
    before = machine.snapshot(NAME)
    up()
    directory = status()["directory"]
    seen = machine.snapshot(NAME)
    yield
    program("down", f"--name={NAME}")
    # The comparison sees a lab that is up, in every part of the machine that it changes.
    for part in ("rules", "links", "addresses", "routes", "processes"):
        assert [line for line in machine.differences(before, seen) if line.startswith(part)], part
    assert machine.differences(before, machine.snapshot(NAME)) == []
    assert not Path(directory).exists()
    assert "was down already" in program("down", f"--name={NAME}").stdout


def test_up_again_does_nothing() -> None:
    assert "was up already" in up()


def test_the_hosts_are_whole_and_have_no_declared_service() -> None:
    for host in HOSTS:
        assert on(host, "systemctl is-system-running").strip() == "running"
        installed = on(host, "dpkg-query -W -f '${Package}\\n'").split()
        for package in ("postgresql", "postgresql-17", "caddy", "prometheus", "podman", "chrony", "miniflux"):
            assert package not in installed
    # Keys and identities are each host's own.
    assert len({on(host, "cat /etc/ssh/ssh_host_*_key.pub") for host in HOSTS}) == len(HOSTS)
    assert len({on(host, "cat /etc/machine-id") for host in HOSTS}) == len(HOSTS)


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
        s.settimeout(2)
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
Attempt = tuple[str, str, int]


def attempts(host: str, wanted: t.Iterable[Attempt]) -> dict[Attempt, str]:
    found = subprocess.run(
        ["ssh", "-F", ssh_config(), host, f"python3 -c {shlex.quote(TRY)}"],
        input=json.dumps(sorted(wanted)), capture_output=True, text=True, check=True, timeout=300,
    ).stdout  # fmt: skip
    return {(kind, address, port): outcome for kind, address, port, outcome in json.loads(found)}


def refused(counter: str, name: str = NAME) -> int:
    table = f"hearth_lab_{name.replace('-', '_')}"
    found = json.loads(
        subprocess.check_output(["nft", "--json", "list", "counters", "table", "inet", table], text=True)
    )
    return next(int(e["counter"]["packets"]) for e in found["nftables"] if e.get("counter", {}).get("name") == counter)


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


@contextlib.contextmanager
def answering(*prefix: str) -> t.Iterator[None]:
    with subprocess.Popen([*prefix, sys.executable, "-c", ANSWER, str(PORT)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            yield
        finally:
            process.kill()


@contextlib.contextmanager
def neighbour(bridge: str) -> t.Iterator[tuple[str, str]]:
    """A machine in a network behind this one, as its LAN is; the machine forwards between it and the lab over IPv4."""
    outer = "hl-neighbour"
    # Not `ip netns add`, which leaves a mount on /run/netns behind for ever.
    with subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep 300"], stdout=subprocess.PIPE) as space:
        try:
            assert space.stdout
            space.stdout.readline()
            inside = ["nsenter", f"--target={space.pid}", "--net"]
            for command in (
                f"ip link add {outer} type veth peer name nb1 netns {space.pid}",
                f"ip address add 198.51.100.1/24 dev {outer}", f"ip -6 address add 2001:db8:5e1f::1/64 dev {outer} nodad",
                f"ip link set {outer} up",
            ):  # fmt: skip
                subprocess.run(command.split(), check=True)
            for command in (
                "ip address add 198.51.100.2/24 dev nb1", "ip -6 address add 2001:db8:5e1f::2/64 dev nb1 nodad",
                "ip link set nb1 up", "ip link set lo up", "ip route add default via 198.51.100.1",
                "ip -6 route add default via 2001:db8:5e1f::1",
            ):  # fmt: skip
                subprocess.run([*inside, *command.split()], check=True)
            # Settings of these two interfaces alone, which vanish with them; the machine's own are left as they are.
            for interface in (outer, bridge):
                Path(f"/proc/sys/net/ipv4/conf/{interface}/forwarding").write_text("1")
            with answering(*inside):
                yield "198.51.100.2", "2001:db8:5e1f::2"
        finally:
            subprocess.run(["ip", "link", "delete", outer], check=False)
            space.kill()


def test_hosts_reach_each_other_and_nothing_else() -> None:
    found = status()
    gateway, bridge, two = found["gateway"], found["bridge"], found["hosts"]["two"]
    program("up", f"--name={SECOND}", "three")
    three = json.loads(program("status", f"--name={SECOND}", "--json").stdout)["hosts"]["three"]
    links = json.loads(subprocess.check_output(["ip", "-json", "address"], text=True))
    addresses = {link["ifname"]: [a["local"] for a in link["addr_info"]] for link in links}
    gateway6 = next(a for a in addresses[bridge] if a.startswith("fd6b:"))
    local6 = next(a for a in addresses[bridge] if a.startswith("fe80:"))
    allowed: set[Attempt] = {
        *(("tcp", address, 22) for address in (two["address"], two["address6"])),
        *(("tcp", address, port) for address in (gateway, gateway6) for port in (53, 3142)),
        *(("tcp", gateway, port) for port in (3141, 5000)),
        *(("ping", address, 0) for address in (gateway, gateway6, two["address6"])),
    }
    with answering(), neighbour(bridge) as (lan, lan6):
        # The machine's own services, through every address it has: the LAN's, the bridge's, and what all listen to.
        local = {a for name, known in addresses.items() if not name.startswith(("hl-", "vb-", "lo")) for a in known}
        local = {a for a in local if not a.startswith("fe80:")} | {"198.51.100.1", "2001:db8:5e1f::1"}
        subnet = gateway.rpartition(".")[0]
        to_bridge: set[Attempt] = {
            *((kind, a, PORT) for kind in ("tcp", "udp") for a in (gateway, gateway6, f"{local6}%host0")),
            ("udp", "ff02::1%host0", PORT), ("udp", f"{subnet}.255", PORT), ("udp", "255.255.255.255", PORT),
        }  # fmt: skip
        to_machine: set[Attempt] = {(kind, a, PORT) for kind in ("tcp", "udp") for a in local}
        to_lan: set[Attempt] = {("tcp", lan, PORT), ("udp", lan, PORT), ("ping", lan, 0)}
        to_other: set[Attempt] = {("tcp", three["address"], 22), ("ping", three["address"], 0)}
        beyond: set[Attempt] = {
            *to_machine, *to_lan, *to_other, ("tcp", lan6, PORT), ("tcp", three["address6"], 22),
            ("tcp", "1.1.1.1", 443), ("udp", "9.9.9.9", 53), ("ping", "1.1.1.1", 0), ("tcp", "169.254.169.254", 80),
            ("tcp", "2606:4700:4700::1111", 443), ("udp", "2620:fe::fe", 53), ("ping", "2606:4700:4700::1111", 0),
            *((kind, route["gateway"], 80) for kind in ("tcp", "udp") for family in ("-4", "-6")
              for route in json.loads(subprocess.check_output(["ip", "-json", family, "route", "show", "default"], text=True))
              if "gateway" in route and not route["gateway"].startswith("fe80:")),
        }  # fmt: skip
        # Everything that is there is answering: it is the rules that keep the hosts away.
        assert set(attempts("one", allowed).values()) == {"open"}
        before = {name: refused(name) for name in ("elsewhere", "machine")}
        outcomes = attempts("one", to_bridge | beyond)
        assert not {entry: outcome for entry, outcome in outcomes.items() if outcome == "open"}
        assert refused("machine") - before["machine"] >= len(to_bridge)
        assert refused("elsewhere") - before["elsewhere"] >= len(beyond)
        # Without the rules the same attempts succeed, but for what the other lab's own rules keep out.
        kept_out = refused("forwarded", SECOND)
        subprocess.run(["nft", "delete", "table", "inet", f"hearth_lab_{NAME}"], check=True)
        try:
            outcomes = attempts("one", to_bridge | to_machine | to_lan | to_other)
            missing = status()["missing"]
        finally:
            up()
        assert missing == [f"nft table hearth_lab_{NAME}"]
        assert {entry for entry, outcome in outcomes.items() if outcome != "open"} == to_other
        assert refused("forwarded", SECOND) > kept_out
        outcomes = attempts("one", to_bridge | beyond | allowed)
        assert {entry for entry, outcome in outcomes.items() if outcome == "open"} == allowed


def test_the_proxy_leads_nowhere_else() -> None:
    """Neither to the world nor back to the machine's own services, by request or by tunnel."""
    proxy = status()["apt_proxy"]
    with answering():
        for url in (f"http://127.0.0.1:{PORT}/", f"http://localhost:{PORT}/", f"http://{status()['gateway']}:{PORT}/",
                    "http://example.com/", "https://deb.debian.org/"):  # fmt: skip
            asked = f"curl -s -o /dev/null -w '%{{http_code}} %{{http_connect}}' --max-time 10 -x {proxy}"
            for tunnel in ("", " --proxytunnel"):
                codes = on("one", f"{asked}{tunnel} {url}; true").split()
                assert not {"200", "301", "302"} & set(codes), (url, tunnel, codes)
                assert {"403", "400", "501"} & set(codes), (url, tunnel, codes)


def test_the_end_of_one_lab_leaves_the_other_alone() -> None:
    bridge = json.loads(program("status", f"--name={SECOND}", "--json").stdout)["bridge"]
    ports = [port.name for port in Path("/sys/class/net", bridge, "brif").glob("*")]
    rules = ["nft", "--stateless", "list", "table", "inet", f"hearth_lab_{NAME}"]
    before = subprocess.check_output(rules, text=True)
    program("down", f"--name={SECOND}")
    assert not Path("/sys/class/net", bridge).exists()
    assert not [port for port in ports if Path("/sys/class/net", port).exists()]
    assert subprocess.check_output(rules, text=True) == before
    assert status()["up"]
    assert opens("one", status()["gateway"], 3142)
    assert not opens("one", "1.1.1.1", 443)


def test_packages_come_through_the_proxy_which_serves_debian_alone() -> None:
    proxy = status()["apt_proxy"]
    on("one", "apt-get --quiet update", timeout=300)
    on("one", "cd /tmp && apt-get download hello && rm hello_*")
    # The same archive under the name that inventories use, whatever this machine's mirror is.
    listed = on("one", f"curl -sf -x {proxy} http://apt.lab.example.com/debian/dists/trixie/InRelease")
    assert "Suite: stable" in listed or "Codename: trixie" in listed
    assert "403" in on("one", f"curl -s -o /dev/null -w '%{{http_code}}' -x {proxy} http://example.com/", check=False)


def test_python_packages_are_those_that_were_asked_for() -> None:
    """Offered to the host's own pip without any setting, and nothing else of the machine's files."""
    name, _equals, version = PACKAGE.partition("==")
    listed = on("one", f"curl -sf {status()['python_packages']}")
    assert re.findall(r'href="([^"]+)"', listed) == [f"{name}-{version}-py3-none-any.whl"]
    for path in ("../", "%2e%2e/", "..%2f..%2fstate.json", "/etc/passwd"):
        asked = f"curl -s --path-as-is {status()['python_packages']}{path}"
        text = on("one", asked)
        assert "root:" not in text, path
        assert set(re.findall(r'href="([^"]+)"', text)) <= {f"{name}-{version}-py3-none-any.whl"}, path
    on("one", "apt-get install --quiet --yes --no-install-recommends python3-venv", timeout=400)
    on("one", f"python3 -m venv /opt/venv && /opt/venv/bin/pip install --quiet {PACKAGE}", timeout=300)
    assert on("one", f"/opt/venv/bin/python -c 'import {name}; print({name}.__name__)'").strip() == name
    assert "No matching distribution" in on("one", "/opt/venv/bin/pip install six", check=False)


def test_names_of_the_lab_resolve_and_no_others() -> None:
    found = status()
    assert found["hosts"]["two"]["address"] in on("one", "getent ahostsv4 two.lab.example.com")
    assert found["hosts"]["one"]["address"] in on("two", "getent ahostsv4 anything.lab.example.com")
    assert found["gateway"] in on("one", "getent ahostsv4 registry.lab.example.com")
    assert on("one", "getent hosts example.org; true").strip() == ""


def test_a_stand_in_runs_with_no_rights_and_checks_its_key() -> None:
    image = status()["images"]["sonarr"]["reference"]
    on("one", "apt-get install --quiet --yes --no-install-recommends podman", timeout=400)
    on("one", "install -d -o 2041 -g 2041 /srv/standin")
    run = (
        "podman run --detach --name standin --read-only --cap-drop=all --security-opt=no-new-privileges"
        " --user 2041:2041 --env SONARR__AUTH__APIKEY=k1"
        f" --volume /srv/standin:/config --publish 127.0.0.1:8989:8989 {image}"
    )
    on("one", run)
    ask = "curl -s -w '%{http_code}' --retry 5 --retry-all-errors --max-time 5"
    assert on("one", f"{ask} http://127.0.0.1:8989/ping") == '{"status":"OK"}200'
    assert on("one", f"{ask} -H 'X-Api-Key: k1' http://127.0.0.1:8989/api/v3/system/status").endswith("200")
    for header in ("", "-H 'X-Api-Key: k2'", "-H 'X-Api-Key;'"):
        assert on("one", f"{ask} {header} http://127.0.0.1:8989/api/v3/system/status").endswith("401")
    assert on("one", f"{ask} http://127.0.0.1:8989/elsewhere").endswith("404")
    started = time.monotonic()
    on("one", "podman restart standin")
    assert time.monotonic() - started < 8, "it does not end when asked"
    assert on("one", "grep -c 'start uid=2041 gid=2041' /srv/standin/standin.log").strip() == "2"
    on("one", "podman rm --force standin")


def test_a_host_can_reboot_and_lose_power() -> None:
    on("two", "echo kept > /root/kept; sync")
    before = on("two", "cat /proc/sys/kernel/random/boot_id; stat -c %Y /run/systemd/units")
    on("two", "systemctl reboot", check=False)
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        if (
            now := on("two", "cat /proc/sys/kernel/random/boot_id; stat -c %Y /run/systemd/units", check=False)
        ) != before:
            break
        time.sleep(1)
    assert now != before
    program("crash", f"--name={NAME}", "two")
    assert not status()["up"]
    program("start", f"--name={NAME}", "two")
    assert on("two", "cat /root/kept").strip() == "kept"
    assert status()["up"]


def test_up_repairs_what_was_killed() -> None:
    for process in status()["processes"]:
        if process["part"] in ("resolver", "registry", "apt-relay", "wheels", "host-one"):
            os.kill(process["pid"], signal.SIGKILL)
    time.sleep(1)
    assert {"resolver", "registry", "apt-relay", "wheels", "host-one"} <= set(status()["missing"])
    up()
    assert status()["up"]
    assert "two" in on("one", "getent ahostsv4 two.lab.example.com")


def kill_when(process: subprocess.Popen[bytes], moment: t.Callable[[], bool]) -> bool:
    """Kills a run of the program at a moment of its work; False when it was over before."""
    deadline = time.monotonic() + 60
    while process.poll() is None and not moment():
        assert time.monotonic() < deadline
    process.kill()
    return process.wait() == -signal.SIGKILL


def moments(name: str) -> dict[str, t.Callable[[], bool]]:
    """Points on the way up, each by what is there then."""
    directory = Path(status()["directory"]).with_name(name)

    def running(part: str) -> bool:
        wanted = [f"HEARTH_LAB_OWNER={directory}".encode(), f"HEARTH_LAB_PART={part}".encode()]
        for entry in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if set(wanted) <= set(entry.read_bytes().split(b"\0")):
                    return True
        return False

    def table() -> bool:
        listed = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
        return f"hearth_lab_{name.replace('-', '_')}\n" in listed

    def bridge() -> bool:
        marks = [path.read_text().strip() for path in Path("/sys/class/net").glob("*/ifalias")]
        return f"hearth-lab:{directory}" in marks

    return {
        "a record": (directory / "state.json").exists,
        "a bridge": bridge,
        "rules": table,
        "a resolver": lambda: running("resolver"),
        "a copy of the image": (directory / "hosts/.three.new/etc").exists,
        "a host": lambda: running("host-three"),
        "stand-ins": (directory / "standins").exists,
    }


def test_an_up_that_was_killed_is_taken_back() -> None:
    before = machine.snapshot(KILLED)
    directory = Path(status()["directory"]).with_name(KILLED)
    reached = moments(KILLED)
    for name in ("a record", "rules", "a copy of the image", "stand-ins"):
        command = [sys.executable, str(PROGRAM), "up", f"--name={KILLED}", "three"]
        assert kill_when(subprocess.Popen(command, stdout=subprocess.DEVNULL), reached[name]), name
        assert machine.differences(before, machine.snapshot(KILLED)) or directory.exists(), name
        program("down", f"--name={KILLED}")
        assert machine.differences(before, machine.snapshot(KILLED)) == [], name
        assert not directory.exists()


def test_a_down_that_was_killed_is_finished_by_the_next() -> None:
    before = machine.snapshot(KILLED)
    directory = Path(status()["directory"]).with_name(KILLED)
    there = moments(KILLED)
    gone = {
        "the host ended": lambda: not there["a host"](),
        "the services ended": lambda: not there["a resolver"](),
        "the rules went": lambda: not there["rules"](),
        "the bridge went": lambda: not there["a bridge"](),
        "its disk is going": lambda: not (directory / "hosts/three/etc").exists(),
    }
    program("up", f"--name={KILLED}", "three")
    killed = []
    for name, moment in gone.items():
        command = [sys.executable, str(PROGRAM), "down", f"--name={KILLED}"]
        # Each run goes on where the last was killed; one that is over sooner leaves nothing to kill.
        if kill_when(subprocess.Popen(command, stdout=subprocess.DEVNULL), moment):
            killed.append(name)
    assert len(killed) >= 3, killed
    program("down", f"--name={KILLED}")
    assert machine.differences(before, machine.snapshot(KILLED)) == []
    assert not directory.exists()


def test_networks_that_overlap_are_refused() -> None:
    subnet = ".".join([*str(status()["gateway"]).split(".")[:3], "0"]) + "/24"
    found = program("up", f"--name={NAME}-overlap", f"--subnet={subnet}", "three", check=False)
    assert found.returncode == 1
    assert "overlaps the machine's route" in found.stderr
    assert status()["bridge"] in found.stderr
