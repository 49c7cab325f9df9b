# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A lab with a QEMU host beside an nspawn host: its own kernel, real ZFS and WireGuard, and the same walls."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import pytest

from . import machine
from .conftest import BIN, ROOT
from .labs import PROGRAM, Lab, Surroundings, answering, neighbour, program

NAME = os.environ.get("HEARTH_TEST_QEMU_LAB", "selftest-qemu")
KILLED = f"{NAME}-killed"
# Two numbers and two names, so that it runs beside the other lab's test.
PORT = 18098
NEIGHBOUR = 1
DISK = 1 << 30
LAB = Lab(NAME, ["forge,kind=qemu,memory=1536,disk=1G,disk=1G", "two"], patience=10)
on = LAB.on
#: Seconds for a boot whose processor is emulated, on a machine that does other things as well.
BOOT = 240

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="the lab needs root")]


@pytest.fixture(scope="module", autouse=True)
def the_lab(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[None]:
    for name in (NAME, KILLED):
        program("down", f"--name={name}")
    # Tools and images stay on the machine: they are no change that `down` could take back. Minutes, the first time: it
    # prints what it is doing.
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        subprocess.run([sys.executable, str(PROGRAM), "prepare", "--qemu"], check=True)
    before = machine.snapshot(NAME)
    print(made_by_the_role(tmp_path_factory.mktemp("lab")))
    directory = LAB.status()["directory"]
    yield
    LAB.down()
    assert machine.differences(before, machine.snapshot(NAME)) == []
    assert not Path(directory).exists()


def made_by_the_role(folder: Path) -> str:
    """What a host is stands in the inventory, among its variables; `up` with the same in arguments then has nothing to do."""
    forge = {"lab_kind": "qemu", "lab_memory": 1536, "lab_disks": ["1G", "1G"]}
    (folder / "hosts.json").write_text(json.dumps({"all": {"hosts": {"forge": forge, "two": {}}}}))
    role = {"name": "hearth.homelab.lab"}
    variables = {"lab_name": NAME, "lab_hosts": ["forge", "two"]}
    play = {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "tasks": [{"import_role": role, "vars": variables}],
    }
    (folder / "play.yml").write_text(json.dumps([play]))
    found = subprocess.run(
        [str(BIN / "ansible-playbook"), "-i", str(folder / "hosts.json"), str(folder / "play.yml")],
        cwd=ROOT, env=os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def processes(part: str) -> list[dict[str, t.Any]]:
    return [process for process in LAB.status()["processes"] if process["part"] == part]


def supervisor() -> int:
    """The process of this program that started QEMU."""
    return next(
        int(process["pid"])
        for process in processes("host-forge")
        if b"_host" in Path(f"/proc/{process['pid']}/cmdline").read_bytes().split(b"\0")
    )


def boot_id() -> str:
    return on("forge", "cat /proc/sys/kernel/random/boot_id", check=False).strip()


def test_up_again_does_nothing() -> None:
    assert "was up already" in LAB.up()


def test_the_host_has_a_kernel_of_its_own_and_no_declared_service() -> None:
    state = on("forge", "systemctl is-system-running --wait; systemctl --failed --no-legend", check=False, timeout=BOOT)
    assert state.strip() == "running"
    kernel = on("forge", "uname -r").strip()
    assert kernel.endswith("-cloud-amd64")
    assert kernel != os.uname().release
    assert on("forge", "systemd-detect-virt").strip() in ("qemu", "kvm")
    installed = set(on("forge", "dpkg-query -W -f '${Package}\\n'").split())
    # What builds modules stays out: an upgrade in an emulated processor would take an hour.
    assert not installed & {"postgresql", "caddy", "podman", "chrony", "sanoid", "zfs-dkms", "dkms", "gcc"}
    disks = json.loads(on("forge", "lsblk --json --bytes --nodeps --output NAME,SIZE,SERIAL"))["blockdevices"]
    assert {disk["serial"]: disk["size"] for disk in disks if disk["serial"] in ("disk1", "disk2")} == {
        "disk1": DISK,
        "disk2": DISK,
    }


def test_hosts_of_both_kinds_reach_each_other_over_ssh() -> None:
    """As replication does it: with a key of their own and known host keys, over both families."""
    found = LAB.status()
    known = Path(found["known_hosts"]).read_text()
    key = "test -e /root/.ssh/id_ed25519 || ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519"
    for host, other in (("forge", "two"), ("two", "forge")):
        public = on(host, f"{key}; cat /root/.ssh/id_ed25519.pub").strip()
        on(other, f"echo '{public}' >>/root/.ssh/authorized_keys")
        on(host, f"echo '{known}' >/root/.ssh/known_hosts")
        for address in (
            found["hosts"][other]["address"],
            found["hosts"][other]["address6"],
            f"{other}.lab.example.com",
        ):
            command = f"ssh -o BatchMode=yes -o StrictHostKeyChecking=yes root@{address} hostname"
            assert on(host, command).strip() == other, (host, address)


def test_the_host_uses_the_labs_resolver_and_apt_proxy() -> None:
    found = LAB.status()
    assert found["hosts"]["two"]["address"] in on("forge", "getent ahostsv4 two.lab.example.com")
    assert found["hosts"]["forge"]["address"] in on("two", "getent ahostsv4 anything.lab.example.com")
    assert on("forge", "getent hosts example.org; true").strip() == ""
    # The lists are there and fresh, and the archive has ZFS's friends (contrib).
    on("forge", "cd /tmp && apt-get download sanoid && rm sanoid_*", timeout=300)


def test_pools_are_real() -> None:
    started = time.monotonic()
    on("forge", "zpool create -O mountpoint=/tank -O compression=zstd tank /dev/disk/by-id/virtio-disk1")
    print(f"zpool create over SSH: {time.monotonic() - started:.1f} s")
    on("forge", "zpool create -O mountpoint=none backup /dev/disk/by-id/virtio-disk2")
    assert "zfs-2." in on("forge", "zfs version")
    on("forge", """set -e
zfs create -p -o recordsize=16K tank/services/sonarr
cd /tank/services/sonarr
head -c 5000000 /dev/urandom >data
chown 2041:2041 data; chmod 640 data
zfs snapshot tank/services/sonarr@first
zfs send tank/services/sonarr@first | zfs receive -u backup/sonarr
echo more >>data
zfs snapshot tank/services/sonarr@second
zfs send -i @first tank/services/sonarr@second | zfs receive -u backup/sonarr
zfs set mountpoint=/restored backup/sonarr
zfs mount backup/sonarr 2>/dev/null || true
cmp data /restored/data
test "$(stat -c %u:%g:%a /restored/data)" = 2041:2041:640
sync
""")  # fmt: skip
    listed = on("forge", "zfs list -H -t snapshot -o name -r backup").split()
    assert listed == ["backup/sonarr@first", "backup/sonarr@second"]


def test_wireguard_is_the_kernels() -> None:
    """Two interfaces in two network namespaces of the host, through its loopback."""
    on("forge", """set -e
umask 077; cd /tmp
for name in a b; do wg genkey >$name.key; wg pubkey <$name.key >$name.pub; done
ip netns add peer
ip link add wg0 type wireguard
ip link add wg1 type wireguard
ip link set wg1 netns peer
wg set wg0 private-key a.key listen-port 51820 peer "$(cat b.pub)" allowed-ips 192.0.2.2/32 endpoint 127.0.0.1:51821
ip netns exec peer wg set wg1 private-key b.key listen-port 51821 peer "$(cat a.pub)" allowed-ips 192.0.2.1/32 \
  endpoint 127.0.0.1:51820
ip address add 192.0.2.1/24 dev wg0; ip link set wg0 up
ip -n peer address add 192.0.2.2/24 dev wg1; ip -n peer link set wg1 up
ping -c 3 -i 0.2 -W 10 192.0.2.2
test "$(wg show wg0 latest-handshakes | cut -f 2)" -gt 0
ip link delete wg0; ip netns delete peer; rm a.key b.key a.pub b.pub
""")  # fmt: skip


def test_a_qemu_host_reaches_the_lab_and_nothing_else() -> None:
    found = LAB.status()
    with answering(PORT), neighbour(found["bridge"], PORT, NEIGHBOUR) as lan:
        around = Surroundings.find(found, "two", "eth0", lan, PORT)
        beyond = around.machine | around.lan | around.far
        assert set(LAB.attempts("forge", around.allowed).values()) == {"open"}
        before = {name: LAB.refused(name) for name in ("elsewhere", "machine")}
        outcomes = LAB.attempts("forge", around.bridge | beyond)
        assert not {entry: outcome for entry, outcome in outcomes.items() if outcome == "open"}
        assert LAB.refused("machine") - before["machine"] >= len(around.bridge)
        assert LAB.refused("elsewhere") - before["elsewhere"] >= len(beyond)
        # Without the rules the same attempts succeed.
        subprocess.run(["nft", "delete", "table", "inet", LAB.table], check=True)
        try:
            outcomes = LAB.attempts("forge", around.bridge | around.machine | around.lan)
        finally:
            LAB.up()
        assert set(outcomes.values()) == {"open"}, outcomes


def check_what_was_written() -> None:
    """The pools are imported by the boot itself, and have what they had."""
    on("forge", "systemctl is-system-running --wait; zpool status -x | grep -q 'all pools are healthy'", timeout=BOOT)
    on("forge", "cmp /tank/services/sonarr/data /restored/data && test -s /root/kept")


def test_the_host_reboots() -> None:
    on("forge", "echo kept >/root/kept; sync")
    before = boot_id()
    running = supervisor()
    on("forge", "systemctl reboot", check=False)
    deadline = time.monotonic() + BOOT
    while (now := boot_id()) in (before, "") or "-" not in now:
        assert time.monotonic() < deadline
        time.sleep(1)
    check_what_was_written()
    assert supervisor() == running


def test_the_host_loses_its_power() -> None:
    before = boot_id()
    on("forge", "echo later >>/root/kept; zfs create tank/later; sync")
    program("crash", f"--name={NAME}", "forge")
    assert not processes("host-forge")
    assert "host-forge" in LAB.status()["missing"]
    assert processes("host-two")
    program("start", f"--name={NAME}", "forge")
    assert boot_id() != before
    check_what_was_written()
    assert on("forge", "tail -1 /root/kept; zfs list -H -o name tank/later").split() == ["later", "tank/later"]


def test_an_up_that_was_killed_is_taken_back() -> None:
    """While a disk is filled, and while a host boots."""
    before = machine.snapshot(KILLED)
    directory = Path(LAB.status()["directory"]).with_name(KILLED)
    mark = f"HEARTH_LAB_OWNER={directory}".encode()

    def boots() -> bool:
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if b"qemu-system-x86_64" in entry.read_bytes() and mark in (entry.parent / "environ").read_bytes():
                    return (directory / "hosts/three").exists()
        return False

    for moment in ((directory / "hosts/.three.new/root.raw").exists, boots):
        command = [sys.executable, str(PROGRAM), "up", f"--name={KILLED}", "three,kind=qemu,memory=512,disk=64M"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 120
            while not moment():
                assert process.poll() is None
                assert time.monotonic() < deadline
            process.kill()
        assert directory.exists()
        program("down", f"--name={KILLED}")
        assert machine.differences(before, machine.snapshot(KILLED)) == []
        assert not directory.exists()


def test_nothing_runs_on_without_its_supervisor() -> None:
    """The end of this module then shows that `down` takes the rest back."""
    os.kill(supervisor(), signal.SIGKILL)
    deadline = time.monotonic() + 10
    while processes("host-forge"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert "host-forge" in LAB.status()["missing"]
