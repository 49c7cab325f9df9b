# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The lab itself: what its hosts reach, that it survives being killed, and that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import pytest

from . import machine
from .labs import PROGRAM, ROOT, Attempt, Lab, Surroundings, answering, neighbour, program

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


LAB = Lab(NAME, HOSTS, arguments=(f"--python-requirements={REQUIREMENTS}",))
up, status, on = LAB.up, LAB.status, LAB.on


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


def test_hosts_reach_each_other_and_nothing_else() -> None:
    found = status()
    program("up", f"--name={SECOND}", "three")
    three = json.loads(program("status", f"--name={SECOND}", "--json").stdout)["hosts"]["three"]
    other = Lab(SECOND, ["three"])
    with answering(PORT), neighbour(found["bridge"], PORT) as lan:
        around = Surroundings.find(found, "two", "host0", lan, PORT)
        allowed = around.allowed | {("tcp", found["gateway"], 3141)}
        to_other: set[Attempt] = {("tcp", three["address"], 22), ("ping", three["address"], 0)}
        beyond = around.machine | around.lan | around.far | to_other | {("tcp", three["address6"], 22)}
        # Everything that is there is answering: it is the rules that keep the hosts away.
        assert set(LAB.attempts("one", allowed).values()) == {"open"}
        before = {name: LAB.refused(name) for name in ("elsewhere", "machine")}
        outcomes = LAB.attempts("one", around.bridge | beyond)
        assert not {entry: outcome for entry, outcome in outcomes.items() if outcome == "open"}
        assert LAB.refused("machine") - before["machine"] >= len(around.bridge)
        assert LAB.refused("elsewhere") - before["elsewhere"] >= len(beyond)
        # Without the rules the same attempts succeed, but for what the other lab's own rules keep out.
        kept_out = other.refused("forwarded")
        subprocess.run(["nft", "delete", "table", "inet", LAB.table], check=True)
        try:
            outcomes = LAB.attempts("one", around.bridge | around.machine | around.lan | to_other)
            missing = status()["missing"]
        finally:
            up()
        assert missing == [f"nft table {LAB.table}"]
        assert {entry for entry, outcome in outcomes.items() if outcome != "open"} == to_other
        assert other.refused("forwarded") > kept_out
        outcomes = LAB.attempts("one", around.bridge | beyond | around.allowed)
        assert {entry for entry, outcome in outcomes.items() if outcome == "open"} == around.allowed


def test_the_proxy_leads_nowhere_else() -> None:
    """Neither to the world nor back to the machine's own services, by request or by tunnel."""
    proxy = status()["apt_proxy"]
    with answering(PORT):
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
