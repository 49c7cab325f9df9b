# Copyright: hearth.homelab contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""QEMU hosts: what the machine must have for them, their disks, and how QEMU is started."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

from lablib.core import OWNER, PART, WORK, LabError, environment, run
from lablib.image import architecture
from lablib.spec import Host, Spec

QEMU = "qemu-system-x86_64"
TUN = Path("/dev/net/tun")
KVM = Path("/dev/kvm")
#: Sparse: it takes what is written.
ROOT_DISK = 16 << 30
#: Seconds in which a kernel that really runs on KVM has reached its first program; it takes about one.
KVM_LIMIT = 15.0
#: What the kernel prints when it starts the first program of its initrd.
BOOTED = b"Run /init as init process"
#: Seconds until SSH must answer. Emulated: measured 50 alone; several at once on a busy machine take their time.
SSH_TIMEOUT = {"kvm": 90.0, "tcg": 240.0}
#: Seconds a shutdown may take.
STOP_TIMEOUT = {"kvm": 60.0, "tcg": 180.0}

KERNEL_ARGUMENTS = "root=/dev/vda rw console=ttyS0 net.ifnames=0 mitigations=off"
# A fifth of an emulated boot: 31 serial ports that are not there, modules for sockets to a hypervisor, and systemd's BPF
# programs (RestrictFileSystems= does nothing without that security module).
EMULATED_ARGUMENTS = "8250.nr_uarts=1 systemd.ssh_auto=no lsm=landlock,lockdown,yama,integrity,apparmor"
ACCELERATORS = {
    "kvm": ("-accel", "kvm", "-cpu", "host"),
    # With a thread for each processor, QEMU 7.2 now and then runs code that the guest's kernel has already patched, and
    # corrupts its memory where it uses cx16: the guest panics at 3 s. A boot in one thread takes no longer (measured).
    # With la57, page tables have a level more to walk; with svm, the guest loads its KVM.
    "tcg": ("-accel", "tcg,thread=single,tb-size=512", "-cpu", "max,-cx16,-la57,-svm"),
}


def require_qemu(who: str = "QEMU hosts", memory: int = 0) -> None:
    """Say what this machine lacks for them, all at once, before anything is changed. `memory`: MiB of all of them."""
    problems = []
    if (found := architecture()) != "amd64":
        problems.append(f"an amd64 machine (this is {found}): their image has Debian's kernel for amd64")
    try:
        os.close(os.open(TUN, os.O_RDWR))
    except OSError as error:
        problems.append(
            f"{TUN}, for their network interfaces ({error.strerror}): `modprobe tun`, or not in a container"
        )
    if memory > (there := total_memory()):
        problems.append(f"{memory} MiB of memory (this machine has {there}): lower lab_memory, or fewer hosts")
    if problems:
        raise LabError(f"{who} need:\n" + "\n".join(f"  - {problem}" for problem in problems))


def require_qemu_hosts(spec: Spec) -> None:
    if spec.qemu_hosts:
        names = ", ".join(host.name for host in spec.qemu_hosts)
        require_qemu(f"The QEMU hosts ({names})", sum(host.memory for host in spec.qemu_hosts))


def total_memory(meminfo: Path = Path("/proc/meminfo")) -> int:
    """MiB."""
    for line in meminfo.read_text(encoding="utf-8").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) // 1024
    return 0


def machine_options(accelerator: str, memory: int, cpus: int) -> list[str]:
    return [
        "-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none",
        "-machine", "q35,sata=off", *ACCELERATORS[accelerator], "-smp", str(cpus), "-m", f"{memory}M",
    ]  # fmt: skip


def disk_names(host: Host) -> list[str]:
    """Of a host's disks, in the order of /dev/vda, /dev/vdb ...: the file is NAME.raw, the guest has a link
    /dev/disk/by-id/virtio-NAME."""
    return ["root", *(f"disk{number}" for number, _ in enumerate(host.disks, 1))]


def mac_address(machine: str) -> str:
    """Of a host's interface, from its unique name; 52:54:00 is QEMU's prefix."""
    number = zlib.crc32(machine.encode())
    return f"52:54:00:{number >> 16 & 255:02x}:{number >> 8 & 255:02x}:{number & 255:02x}"


def qemu_command(
    program: str, host: Host, accelerator: str, machine: str, disks: Path, kernel: Path, console: Path
) -> list[str]:
    """How a host is started. Its disks are in one directory, kernel and initrd in another.

    A reboot of the guest is QEMU's own affair; it ends when the guest powers off.
    """
    argv = [program, "-name", host.name, *machine_options(accelerator, host.memory, host.cpus)]
    argv += ["-kernel", str(kernel / "vmlinuz"), "-initrd", str(kernel / "initrd")]
    argv += ["-append", KERNEL_ARGUMENTS if accelerator == "kvm" else f"{KERNEL_ARGUMENTS} {EMULATED_ARGUMENTS}"]
    for name in disk_names(host):
        # unsafe: flushes stop at the machine's page cache. That loses nothing when QEMU is killed, only when the machine
        # itself loses its power, and the lab is gone then.
        file = str(disks / f"{name}.raw").replace(",", ",,")
        argv += ["-drive", f"file={file},if=none,id={name},format=raw,cache=unsafe,discard=unmap"]
        argv += ["-device", f"virtio-blk-pci,drive={name},serial={name}"]
    argv += ["-netdev", f"tap,id=lab,ifname=vb-{machine},script=no,downscript=no"]
    argv += ["-device", f"virtio-net-pci,netdev=lab,mac={mac_address(machine)},romfile="]
    escaped = str(console).replace(",", ",,")
    return [*argv, "-chardev", f"file,id=console,path={escaped},append=on", "-serial", "chardev:console"]


def make_disks(host: Host, tree: Path, folder: Path, owner: Path) -> None:
    """The disk with the root file system, straight from a tree, and the empty ones."""
    root = folder / "root.raw"
    run(["mkfs.ext4", "-q", "-F", "-L", "root", "-d", tree, root, f"{ROOT_DISK >> 10}k"], owner=owner)
    for name, size in zip(disk_names(host)[1:], host.disks, strict=True):
        with (folder / f"{name}.raw").open("wb") as disk:
            disk.truncate(size)


def find_accelerator(program: str, kernel: Path, initrd: Path, owner: Path) -> tuple[str, str]:
    """`kvm` where it works, else `tcg` and why. There are machines whose /dev/kvm opens, but runs no stock kernel: so
    the kernel is booted, without a disk, up to its first program."""
    try:
        os.close(os.open(KVM, os.O_RDWR))
    except OSError as error:
        return "tcg", f"{KVM}: {error.strerror}"
    argv = [program, *machine_options("kvm", 512, 1), "-kernel", str(kernel), "-initrd", str(initrd)]
    argv += ["-append", "console=ttyS0 panic=-1", "-no-reboot", "-serial", "stdio"]
    problem = boots(argv, KVM_LIMIT, owner)
    return ("tcg", f"{KVM} opens, but {problem}") if problem else ("kvm", "")


def boots(argv: Sequence[str], limit: float, owner: Path) -> str:
    """Empty when a guest says on its standard output, in time, that it has started its first program; else the reason."""
    with tempfile.TemporaryFile() as output:
        env = environment(**{OWNER: str(owner), PART: WORK})
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=env)
        try:
            started = time.monotonic()
            while True:
                ended = process.poll()
                text = os.pread(output.fileno(), 1 << 20, 0)
                if BOOTED in text:
                    return ""
                last = text.decode(errors="replace").strip().splitlines()[-1:]
                if ended is not None:
                    return f"the guest ended at once (status {ended}): {(last or ['no output'])[0]}"
                if time.monotonic() - started > limit:
                    return f"no kernel started within {limit:.0f} s: {(last or ['no output'])[0]}"
                time.sleep(0.05)
        finally:
            process.kill()
            process.wait()
