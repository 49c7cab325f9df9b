# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The lab itself: what its hosts reach, that it survives being killed, and that it leaves nothing behind."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "roles/lab/files/hearth_lab.py"
NAME = "selftest"
HOSTS = ("one", "two")

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="the lab needs root")]


def program(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    found = subprocess.run([sys.executable, str(PROGRAM), *arguments], capture_output=True, text=True, check=False)
    if check:
        assert found.returncode == 0, found.stdout + found.stderr
    return found


def up() -> str:
    return program("up", f"--name={NAME}", *HOSTS).stdout


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


def machine() -> dict[str, t.Any]:
    """What `down` has to give back, as far as this lab is concerned."""

    def listed(*command: str) -> list[t.Any]:
        return t.cast("list[t.Any]", json.loads(subprocess.check_output(command, text=True) or "[]"))

    tables = subprocess.check_output(["nft", "list", "tables"], text=True).splitlines()
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    settings = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")
    return {
        # Other labs may come and go beside this one: they have names of their own.
        "links": sorted(x["ifname"] for x in listed("ip", "-json", "link") if x["ifname"].startswith("hl-self")),
        "tables": [table for table in tables if NAME in table],
        "filter": sorted(table for table in tables if table in ("table ip filter", "table ip6 filter")),
        "mounts": [mount for mount in mounts if f"labs/{NAME}" in mount],
        "groups": [str(path) for root in Path("/sys/fs/cgroup").glob("**/hearth-lab") for path in root.glob(NAME)],
        "settings": {name: Path("/proc/sys", name).read_text() for name in settings},
        "policy": Path("/usr/sbin/policy-rc.d").read_text() if Path("/usr/sbin/policy-rc.d").exists() else None,
    }


def marked(directory: str) -> list[int]:
    wanted = f"HEARTH_LAB_OWNER={directory}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.fixture(scope="module", autouse=True)
def the_lab() -> t.Iterator[None]:
    program("down", f"--name={NAME}")
    before = machine()
    up()
    directory = status()["directory"]
    inits = [int(process["pid"]) for process in status()["processes"]]
    yield
    program("down", f"--name={NAME}")
    assert machine() == before
    assert not marked(directory)
    assert not [pid for pid in inits if Path(f"/proc/{pid}").exists() and f"labs/{NAME}" in _command(pid)]
    assert not Path(directory).exists()
    assert "was down already" in program("down", f"--name={NAME}").stdout


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


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


def test_hosts_reach_each_other_and_nothing_else(tmp_path: Path) -> None:
    found = status()
    two = found["hosts"]["two"]
    assert opens("one", two["address"], 22)
    assert opens("one", two["address6"], 22)
    assert opens("one", found["gateway"], 3142)
    # Not the machine's own services, through any of its addresses, and not the world behind it.
    listening = subprocess.Popen(
        [sys.executable, "-m", "http.server", "18099", "--bind", "0.0.0.0", "--directory", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(1)
        routes = json.loads(subprocess.check_output(["ip", "-json", "-4", "address"], text=True))
        addresses = [a["local"] for link in routes for a in link["addr_info"] if a["scope"] == "global"]
        for address in {*addresses, found["gateway"]}:
            assert not opens("one", address, 18099), address
    finally:
        listening.kill()
        listening.wait()
    for address, port in (("192.0.2.1", 53), ("1.1.1.1", 53), ("2001:db8::1", 80)):
        assert not opens("one", address, port), address


def test_packages_come_through_the_proxy_which_serves_debian_alone() -> None:
    proxy = status()["apt_proxy"]
    on("one", "apt-get --quiet update", timeout=300)
    on("one", "cd /tmp && apt-get download hello && rm hello_*")
    assert "403" in on("one", f"curl -s -o /dev/null -w '%{{http_code}}' -x {proxy} http://example.com/", check=False)


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
        if process["part"] in ("resolver", "registry", "apt-relay", "host-one"):
            os.kill(process["pid"], signal.SIGKILL)
    time.sleep(1)
    assert {"resolver", "registry", "apt-relay", "host-one"} <= set(status()["missing"])
    up()
    assert status()["up"]
    assert "two" in on("one", "getent ahostsv4 two.lab.example.com")


def test_an_up_that_was_killed_is_taken_back() -> None:
    other = "selftest-killed"
    for moment in (0.4, 1.5, 3.5):
        killed = subprocess.Popen(
            [sys.executable, str(PROGRAM), "up", f"--name={other}", "three"], stdout=subprocess.DEVNULL
        )
        time.sleep(moment)
        killed.kill()
        killed.wait()
        program("down", f"--name={other}")
        directory = str(Path(status()["directory"]).with_name(other))
        assert not Path(directory).exists()
        assert not marked(directory)


def test_networks_that_overlap_are_refused() -> None:
    subnet = ".".join([*str(status()["gateway"]).split(".")[:3], "0"]) + "/24"
    found = program("up", "--name=selftest-overlap", f"--subnet={subnet}", "three", check=False)
    assert found.returncode == 1
    assert "overlaps the machine's route" in found.stderr
    assert status()["bridge"] in found.stderr
