# Copyright: hearth.homelab contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What runs in the background: the supervisor of a host, and the relay to the apt proxy."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
from pathlib import Path

from lablib.core import cgroup_roots, end_cgroup, own_cgroup
from lablib.machine import need_tool
from lablib.qemu import QEMU, qemu_command
from lablib.spec import Host, Spec


def host_main(args: argparse.Namespace) -> int:
    """Keep one host running, of either kind."""
    directory = Path(args.lab)
    if not Path("/run/systemd/system").exists():
        own_cgroup(args.cgroup)
    state = json.loads((directory / "state.json").read_text(encoding="utf-8"))
    host = next(host for host in Spec.from_json(state["spec"]).hosts if host.name == args.host)
    if host.qemu:
        return qemu_main(args, directory, host, state["accelerator"])
    return nspawn_main(args, directory)


def qemu_main(args: argparse.Namespace, directory: Path, host: Host, accelerator: str) -> int:
    """QEMU until its guest powers off or it is killed, on an interface in the lab's bridge."""
    interface = f"vb-{args.machine}"
    for command in (
        f"ip tuntap add dev {interface} mode tap",
        f"ip link set dev {interface} master {args.bridge} up",
    ):
        subprocess.run(command.split(), check=True)
    argv = qemu_command(
        need_tool(QEMU),
        host,
        accelerator,
        args.machine,
        directory / "hosts" / host.name,
        directory / "kernel",
        args.console,
    )
    # It ends with this process, as nothing would be there to take its interface away.
    status = subprocess.run(["setpriv", "--pdeathsig", "KILL", *argv], stdin=subprocess.DEVNULL, check=False).returncode
    print(f"hearth-lab: QEMU ended with status {status}", flush=True)
    subprocess.run(["ip", "link", "delete", "dev", interface], check=False)
    return status


def nspawn_main(args: argparse.Namespace, directory: Path) -> int:
    """nspawn, and again after the host reboots itself."""
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
            # Read every time: a proxy that was started again may listen on another port.
            port = json.loads(Path(args.proxy).read_text(encoding="utf-8"))["port"]
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", port)
        except (OSError, ValueError, KeyError):
            writer.close()
            return
        await asyncio.gather(_pump(reader, up_writer), _pump(up_reader, writer))

    server = await asyncio.start_server(accept, args.listen, args.port)
    async with server:
        await server.serve_forever()
