# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The parts of the lab that need no root: what it refuses, what it writes, what it counts as its own."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

import hearth_lab
from lablib import core, lab, machine, qemu, spec, standins, wheels


def parse(*arguments: str) -> spec.Spec:
    return spec.make_spec(hearth_lab.parser().parse_args(["up", *arguments]))


def test_hosts_are_numbered_and_have_both_families() -> None:
    found = parse("--subnet=10.231.40.0/24", "--subnet6=fd00:1::/64", "forge", "nas=10.231.40.50")
    assert [(host.name, host.address, host.address6) for host in found.hosts] == [
        ("forge", "10.231.40.11", "fd00:1::b"),
        ("nas", "10.231.40.50", "fd00:1::32"),
    ]
    assert found.wildcard == "forge"
    assert found.gateway == "10.231.40.1"
    assert spec.Spec.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_every_name_has_its_own_networks_and_names_the_kernel_takes() -> None:
    names = ["demo", "t1", "a-name-of-some-length", "another-name-of-length"]
    specs = [parse(f"--name={name}", "host") for name in names]
    assert len({found.subnet for found in specs}) == len({found.bridge for found in specs}) == len(names)
    assert len({found.subnet6 for found in specs}) == len(names)
    assert all(len(found.bridge) <= 15 for found in specs)
    assert len(f"vb-{lab.Lab(machine.Cache(Path('/x')), names[2]).machine('some-long-host-name')}") <= 15


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--name=Bad", "a1"], ["lab name 'Bad'", "lower-case"]),
        (["up_", "a1"], ["host name 'up_'"]),
        (["--subnet=10.1.2.0/28", "a1"], ["lab_subnet 10.1.2.0/28", "/24 or larger"]),
        (["--subnet=8.8.8.0/24", "a1"], ["8.8.8.0/24", "private"]),
        (["--subnet=nonsense", "a1"], ["lab_subnet", "nonsense"]),
        (["--subnet=10.1.2.0/24", "a1=10.1.3.4"], ["host a1", "10.1.3.4", "not usable in lab_subnet 10.1.2.0/24"]),
        (["--subnet=10.1.2.0/24", "a1=10.1.2.1"], ["host a1", "10.1.2.1"]),
        (["--subnet=10.1.2.0/24", "a1", "b1=10.1.2.11"], ["host b1", "10.1.2.11", "twice"]),
        (["--wildcard=zz", "a1", "b1"], ["lab_wildcard_host 'zz'", "a1, b1"]),
        (["a1,kind=lxc"], ["host a1", "'kind=lxc'", "kind=nspawn|qemu"]),
        (["a1,kind=qemu,memory=2G"], ["host a1", "'memory=2G'", "memory=MEBIBYTES"]),
        (["a1,kind=qemu,cpus=0"], ["host a1", "'cpus=0'"]),
        (["a1,kind=qemu,disk=8"], ["host a1", "'disk=8'", "disk=SIZE"]),
        (["a1,kind=qemu,disk=63M"], ["host a1", "'disk=63M'", "at least 64M"]),
        (["a1,kind=qemu,snapshot"], ["host a1", "'snapshot'"]),
        (["a1,disk=8G,memory=512"], ["host a1", "disk=8G, memory=512 is for a host of kind=qemu"]),
    ],
)
def test_what_a_lab_cannot_be_is_said(arguments: list[str], expected: list[str]) -> None:
    with pytest.raises(core.LabError) as found:
        parse(*arguments)
    for text in expected:
        assert text in str(found.value)


def test_python_packages_are_pinned_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text("# why\n\nthing==2  # because\nanother==1.0\n")
    found = parse(f"--python-requirements={path}", "a1")
    assert found.python_requirements == ("another==1.0", "thing==2")
    assert spec.Spec.from_json(json.loads(json.dumps(found.to_json()))) == found
    # What a lab of an earlier version has recorded.
    older = {key: value for key, value in parse("a1").to_json().items() if not key.startswith("python_")}
    assert spec.Spec.from_json(older) == parse("a1")
    for line in ("thing", "thing>=2", "-r other.txt", "--index-url=https://example.com/"):
        path.write_text(line)
        with pytest.raises(core.LabError, match="only lines of the form NAME==VERSION"):
            parse(f"--python-requirements={path}", "a1")
    with pytest.raises(core.LabError, match="nowhere"):
        parse(f"--python-requirements={tmp_path}/nowhere", "a1")


def make_wheel(folder: Path, name: str, requires: str = "") -> None:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-1-py3-none-any.whl", "w") as archive:
        lines = [
            "Metadata-Version: 2.1",
            f"Name: {name}",
            "Version: 1",
            *([f"Requires-Dist: {requires}"] if requires else ()),
        ]
        archive.writestr(f"{name}-1.dist-info/METADATA", "\n".join(lines) + "\n")
        archive.writestr(f"{name}-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{name}-1.dist-info/RECORD", "")


def test_python_packages_come_from_where_the_machines_pip_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(tmp_path / "mirror", "thing", "needed")
    make_wheel(tmp_path / "mirror", "needed")
    make_wheel(tmp_path / "mirror", "unwanted")
    monkeypatch.setattr(wheels, "architecture", lambda: "amd64")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "mirror"))
    cache = machine.Cache(tmp_path / "cache")
    leftover = cache.wheels / ".build-killed"
    leftover.mkdir(parents=True)
    for name, age in (("python3.13-old", 40), ("python3.13-recent", 5)):
        (cache.wheels / name).mkdir()
        os.utime(cache.wheels / name, (time.time() - age * 86400,) * 2)
    found = wheels.ensure_wheels(cache, ("thing==1",), "3.13")
    assert sorted(path.name for path in found.iterdir()) == ["needed-1-py3-none-any.whl", "thing-1-py3-none-any.whl"]
    assert {path.name for path in cache.wheels.iterdir()} == {found.name, "python3.13-recent"}
    # Fetched once: the second time nothing is asked any more.
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert wheels.ensure_wheels(cache, ("thing==1",), "3.13") == found
    with pytest.raises(core.LabError, match="pip download failed"):
        wheels.ensure_wheels(cache, ("thing==1",), "3.14")
    assert sorted(path.name for path in cache.wheels.iterdir() if not path.name.startswith(".build")) == sorted(
        [found.name, "python3.13-recent"]
    )


def test_a_qemu_host_has_memory_processors_and_disks() -> None:
    found = parse(
        "--subnet=10.231.40.0/24", "one", "two=10.231.40.9,kind=qemu,cpus=1,disk=64M,disk=8G", "three,kind=qemu"
    )
    assert [(host.kind, host.memory, host.cpus, host.disks) for host in found.hosts] == [
        ("nspawn", 0, 0, ()),
        ("qemu", spec.MEMORY, 1, (64 << 20, 8 << 30)),
        ("qemu", spec.MEMORY, spec.CPUS, ()),
    ]
    assert [host.address for host in found.hosts] == ["10.231.40.11", "10.231.40.9", "10.231.40.13"]
    assert found.qemu_hosts == found.hosts[1:]
    assert spec.Spec.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_lab_made_before_there_were_kinds_is_still_known() -> None:
    data = json.loads(json.dumps(parse("one").to_json()))
    for key in ("kind", "memory", "cpus", "disks"):
        del data["hosts"][0][key]
    assert spec.Spec.from_json(data) == parse("one")


def qemu_argv(accelerator: str) -> list[str]:
    host = parse("forge,kind=qemu,memory=1536,cpus=1,disk=1G,disk=2G").hosts[0]
    folder = Path("/labs/a,b")
    return qemu.qemu_command(
        "qemu", host, accelerator, "h01234567", folder / "disks", folder / "kernel", folder / "log"
    )


def options(argv: list[str], name: str) -> list[str]:
    return [value for option, value in itertools.pairwise(argv) if option == name]


def test_qemu_is_started_with_disks_that_keep_what_is_written() -> None:
    argv = qemu_argv("tcg")
    drives = options(argv, "-drive")
    # A comma in a path is doubled, or QEMU takes the rest for an option.
    assert [drive.split(",if=")[0] for drive in drives] == [
        f"file=/labs/a,,b/disks/{name}.raw" for name in ("root", "disk1", "disk2")
    ]
    assert not [drive for drive in drives if "snapshot" in drive or "format=raw" not in drive]
    devices = options(argv, "-device")
    assert [device for device in devices if device.startswith("virtio-blk-pci")] == [
        f"virtio-blk-pci,drive={name},serial={name}" for name in ("root", "disk1", "disk2")
    ]
    assert options(argv, "-kernel") == ["/labs/a,b/kernel/vmlinuz"]
    assert options(argv, "-chardev") == ["file,id=console,path=/labs/a,,b/log,append=on"]
    assert (options(argv, "-m"), options(argv, "-smp")) == (["1536M"], ["1"])
    # A reboot is QEMU's own affair: nothing starts it again.
    assert "-no-reboot" not in argv


def test_qemu_is_on_the_labs_bridge_and_nowhere_else() -> None:
    argv = qemu_argv("tcg")
    assert options(argv, "-netdev") == ["tap,id=lab,ifname=vb-h01234567,script=no,downscript=no"]
    (card,) = [device for device in options(argv, "-device") if "net" in device]
    assert f"mac={qemu.mac_address('h01234567')}" in card
    assert re.fullmatch(r"52:54:00(:[0-9a-f]{2}){3}", qemu.mac_address("h01234567"))
    assert qemu.mac_address("h01234567") != qemu.mac_address("h01234568")


def test_processors_are_emulated_in_one_thread_and_without_cx16() -> None:
    """Otherwise QEMU 7.2 corrupts the guest's memory and runs code that its kernel has patched away (`Oops: int3`)."""
    (accelerator,) = options(qemu_argv("tcg"), "-accel")
    assert "thread=single" in accelerator.split(",")
    (processor,) = options(qemu_argv("tcg"), "-cpu")
    assert "-cx16" in processor.split(",")
    assert options(qemu_argv("kvm"), "-cpu") == ["host"]
    assert options(qemu_argv("kvm"), "-accel") == ["kvm"]


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("echo '[    0.9] Run /init as init process'; exec sleep 60", ""),
        ("echo 'failed to set MSR 0x10a'; exit 134", "the guest ended at once (status 134): failed to set MSR 0x10a"),
        ("echo 'SeaBIOS (version 1.16)'; exec sleep 60", "no kernel started within 1 s: SeaBIOS (version 1.16)"),
    ],
)
def test_only_a_kernel_that_starts_its_first_program_has_booted(program: str, expected: str, tmp_path: Path) -> None:
    assert qemu.boots(["sh", "-c", program], 1, tmp_path) == expected
    assert not core.processes_of(tmp_path)


def test_without_a_kvm_device_the_processor_is_emulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu, "KVM", tmp_path / "kvm")
    found, reason = qemu.find_accelerator("false", tmp_path / "vmlinuz", tmp_path / "initrd", tmp_path)
    assert found == "tcg"
    assert "No such file" in reason


def test_what_qemu_hosts_need_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu, "TUN", tmp_path / "tun")
    monkeypatch.setattr(qemu, "architecture", lambda: "arm64")
    monkeypatch.setattr(qemu, "total_memory", lambda: 3000)
    with pytest.raises(core.LabError) as found:
        qemu.require_qemu_hosts(parse("a1,kind=qemu", "b1,kind=qemu", "c1"))
    for text in (
        "(a1, b1)",
        "amd64 machine (this is arm64)",
        str(tmp_path / "tun"),
        "4096 MiB",
        "this machine has 3000",
    ):
        assert text in str(found.value)
    qemu.require_qemu_hosts(parse("c1"))


def test_qemu_is_installed_for_qemu_hosts_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_tool", lambda name: None)
    assert "qemu-system-x86" not in machine.missing_packages()
    assert {"qemu-system-x86", "e2fsprogs", *machine.missing_packages()} <= {*machine.missing_packages(qemu=True)}


@pytest.mark.skipif(core.find_tool("mkfs.ext4") is None, reason="mkfs.ext4 is not installed here")
def test_empty_disks_take_no_space(tmp_path: Path) -> None:
    host = parse("forge,kind=qemu,disk=8G").hosts[0]
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/hostname").write_text("forge\n")
    qemu.make_disks(host, tree, tmp_path, tmp_path)
    sizes = {path.name: path.stat() for path in tmp_path.glob("*.raw")}
    assert {name: found.st_size for name, found in sizes.items()} == {"root.raw": qemu.ROOT_DISK, "disk1.raw": 8 << 30}
    assert sizes["disk1.raw"].st_blocks == 0
    assert sizes["root.raw"].st_blocks * 512 < 1 << 30
    shown = subprocess.run(
        ["debugfs", "-R", "cat /etc/hostname", tmp_path / "root.raw"],
        env=core.environment(), capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert shown == "forge\n"


def test_controllers_that_the_lab_was_given_are_taken_back() -> None:
    assert core.added_controllers("cpu io\n", "cpu io memory pids\n") == "-memory -pids"
    assert core.added_controllers("", "cpu\n") == "-cpu"
    assert core.added_controllers("cpu memory", "memory cpu") == ""


def test_a_subnet_the_machine_has_a_route_to_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def routes(argv: list[str], **_options: Any) -> subprocess.CompletedProcess[str]:
        known = [
            {"dst": "default", "dev": "eth0"},
            {"dst": "10.231.40.128/25", "dev": "vpn0"},
            {"dst": "224.0.0.0/4", "type": "multicast"},
        ]
        return subprocess.CompletedProcess(argv, 0, json.dumps(known if "-4" in argv else []), "")

    monkeypatch.setattr(lab, "run", routes)
    one = lab.Lab(machine.Cache(Path("/x")), "demo")
    one.check_routes(parse("--subnet=10.231.41.0/24", "a1"))
    with pytest.raises(
        core.LabError, match=r"10\.231\.40\.0/24 overlaps the machine's route 10\.231\.40\.128/25 on vpn0"
    ):
        one.check_routes(parse("--subnet=10.231.40.0/24", "a1"))


def test_the_resolver_answers_for_the_lab_alone() -> None:
    found = parse("--subnet=10.231.40.0/24", "--subnet6=fd00:1::/64", "--domain=lab.example.com", "forge", "nas")
    text = lab.Lab(machine.Cache(Path("/x")), "demo").resolver_configuration(found).splitlines()
    assert "host-record=nas.lab.example.com,nas,10.231.40.12,fd00:1::c" in text
    assert "address=/lab.example.com/10.231.40.11" in text
    assert "address=/#/" in text
    assert "no-resolv" in text
    assert not [line for line in text if line.startswith("server=")]


DEFINITION = {
    "tag": "1",
    "port": 80,
    "state": "/config",
    "answers": [{"path": "/ping", "body": "ok"}, {"path": "/x", "body": "y", "header": "X-Key", "environment": "KEY"}],
}


def test_a_stand_in_is_a_valid_image_and_always_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standins, "architecture", lambda: "amd64")
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"\x7fELF")
    digests = {standins.build_standin("thing", DEFINITION, busybox, tmp_path / name) for name in ("one", "two")}
    assert len(digests) == 1

    layout = tmp_path / "one"

    def blob(digest: str) -> bytes:
        content = (layout / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes()
        assert f"sha256:{hashlib.sha256(content).hexdigest()}" == digest
        return content

    index = json.loads((layout / "index.json").read_text())
    assert index["manifests"][0]["digest"] in digests
    manifest = json.loads(blob(index["manifests"][0]["digest"]))
    config = json.loads(blob(manifest["config"]["digest"]))
    layer = blob(manifest["layers"][0]["digest"])
    assert manifest["layers"][0]["size"] == len(layer)
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(gzip.decompress(layer)).hexdigest()}"]
    (tmp_path / "layer.tar.gz").write_bytes(layer)
    with tarfile.open(tmp_path / "layer.tar.gz") as archive:
        members = {member.name: member for member in archive}
        answers = archive.extractfile("standin/answers")
        assert answers is not None
        assert answers.read().decode() == (
            "/ping\t200\tapplication/json\t-\t-\tok\n/x\t200\tapplication/json\tx-key\tKEY\ty\n"
        )
    assert members["standin/serve"].mode == 0o755
    assert all(member.uid == 0 and member.mtime == 0 for member in members.values())


def test_the_delivered_stand_ins_are_well_formed() -> None:
    for name, definition in standins.standin_definitions().items():
        assert standins.standin_answers(name, definition)
        assert definition["tag"] != "latest"


@pytest.mark.parametrize("body", ["a\tb", "a\nb", ""])
def test_an_answer_that_cannot_be_told_apart_is_refused(body: str) -> None:
    with pytest.raises(core.LabError, match="thing"):
        standins.standin_answers("thing", DEFINITION | {"answers": [{"path": "/", "body": body}]})


def test_a_variable_name_is_never_shell_code() -> None:
    answer = {"path": "/", "body": "x", "header": "X", "environment": "A;reboot"}
    with pytest.raises(core.LabError, match="A;reboot"):
        standins.standin_answers("thing", DEFINITION | {"answers": [answer]})


def test_only_marked_processes_are_the_labs_own(tmp_path: Path) -> None:
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    other = subprocess.Popen(sleeper)
    try:
        core.spawn(tmp_path, "sleeper", sleeper, tmp_path / "log")
        deadline = time.monotonic() + 10
        while not (found := core.processes_of(tmp_path)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert [process.part for process in found] == ["sleeper"]
        assert os.getpid() not in {process.pid for process in found}
        core.end(found, grace=5)
        assert not core.processes_of(tmp_path)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_link_replaces_only_a_link(tmp_path: Path) -> None:
    one = lab.Lab(machine.Cache(tmp_path / "cache"), "demo")
    link = tmp_path / "checkout" / "build" / "lab"
    one.make_link(link)
    one.make_link(link)
    assert os.readlink(link) == str(one.directory)
    link.unlink()
    link.mkdir()
    with pytest.raises(core.LabError, match="exists and is not a link"):
        one.make_link(link)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://mirror.example.com/debian/", "http://mirror.example.com/debian/"),
        ("mirror+file:{file}", "https://mirror.example.com/debian"),
    ],
)
def test_the_mirror_is_the_machines_own(uri: str, expected: str, tmp_path: Path) -> None:
    listed = tmp_path / "debian.list"
    listed.write_text("# comment\n\nhttps://mirror.example.com/debian\tpriority:1\nhttps://second.example.com/debian\n")
    assert machine.real_uri(uri.format(file=listed)) == expected


def test_what_is_needed_is_said_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(machine.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(sys, "argv", ["hearth_lab.py", "up", "a1"])
    with pytest.raises(SystemExit) as found:
        hearth_lab.entry()
    assert found.value.code == 1
    assert "Linux (this is Darwin)" in capsys.readouterr().err


def test_without_root_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.platform, "system", lambda: "Linux")
    monkeypatch.setattr(machine.os, "geteuid", lambda: 1000)
    with pytest.raises(core.LabError, match="root, because it makes a bridge"):
        machine.require_machine()
