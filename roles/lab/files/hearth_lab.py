#!/usr/bin/env python3
# Copyright: hearth.homelab contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Disposable Debian hosts on one Linux machine: real systemd, SSH, apt and podman, in systemd-nspawn or QEMU.

A lab is a bridge with its own addresses, a handful of hosts on it, and a few services on the bridge's address:
an apt proxy, a resolver for the lab's names, an image registry with stand-ins and, where it is asked for some, Python
packages. The hosts reach each other and those, nothing else. `up` records what it changes, `down` takes all of it back;
caches stay.

Several labs run side by side: each has a name, and from it a directory, a bridge and a subnet of its own.

Only the standard library is used: this runs before any virtual environment exists.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from lablib.background import host_main, relay_main
from lablib.core import LabError, say
from lablib.image import ensure_image
from lablib.lab import Lab
from lablib.machine import Cache, find_mirror, install_tools, missing_packages, require_machine
from lablib.proxy import release_proxy
from lablib.qemu import require_qemu
from lablib.qemu_image import ensure_qemu_image
from lablib.spec import NAME, NAME_RULE, make_spec


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="hearth_lab.py", description=(__doc__ or "").split("\n")[0])
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--name", default="demo", help="name of the lab (demo)")
        return command

    def add_source(command: argparse.ArgumentParser) -> None:
        command.add_argument("--suite", default="trixie", help="Debian release of the hosts (trixie)")
        command.add_argument("--mirror", default="", help="Debian mirror; by default the one this machine's apt uses")

    def add_kind(command: argparse.ArgumentParser) -> None:
        command.add_argument("--qemu", action="store_true", help="also what QEMU hosts need")

    add_kind(add("check", "say what the machine lacks; change nothing"))
    for name, text in (
        ("prepare", "install tools and build the image, if missing"),
        ("image", "build the image, if missing"),
    ):
        command = add(name, text)
        add_source(command)
        add_kind(command)
    command = add("up", "make a lab and boot its hosts; nothing happens when it is up already")
    add_source(command)
    command.add_argument("--subnet", default="", help="private IPv4 network, /24 or larger")
    command.add_argument("--subnet6", default="", help="IPv6 network")
    command.add_argument("--domain", default="lab.example.com", help="the lab's DNS domain")
    command.add_argument("--wildcard", default="", metavar="HOST", help="host that *.DOMAIN leads to (the first)")
    command.add_argument("--apt-port", type=int, default=3142)
    command.add_argument("--registry-port", type=int, default=5000)
    command.add_argument("--python-requirements", default="", metavar="FILE", help="Python packages for the hosts' pip")
    command.add_argument("--python-port", type=int, default=3141)
    command.add_argument("--link", default="", metavar="PATH", help="make a link there to the lab's directory")
    command.add_argument(
        "hosts",
        nargs="+",
        metavar="HOST[=ADDRESS][,KEY=VALUE...]",
        help="kind=nspawn (default) or kind=qemu; for qemu also memory=MEBIBYTES, cpus=NUMBER and, as often as there are "
        "disks beside the root disk, disk=SIZE: luna,kind=qemu,memory=3072,disk=8G,disk=8G",
    )
    command = add("down", "take everything of a lab back; caches stay")
    command.add_argument("--link", default="", metavar="PATH")
    command.add_argument("--all", action="store_true", help="all labs of this cache, whatever their names")
    add("status", "what is up").add_argument("--json", action="store_true")
    for name, text in (
        ("crash", "end a host as if its plug was pulled"),
        ("stop", "shut a host down"),
        ("start", "boot a host again"),
    ):
        add(name, text).add_argument("host")
    command = add("ssh", "run a command on a host, or log in")
    command.add_argument("host")
    command.add_argument("arguments", nargs=argparse.REMAINDER)

    command = commands.add_parser("_host")
    command.add_argument("--lab", required=True)
    command.add_argument("--bridge", required=True)
    command.add_argument("--cgroup", required=True)
    command.add_argument("--machine", required=True)
    command.add_argument("--console", type=Path, required=True)
    command.add_argument("host")
    command = commands.add_parser("_relay")
    command.add_argument("--listen", action="append", required=True)
    command.add_argument("--port", type=int, required=True)
    command.add_argument("--proxy", required=True)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    if args.command == "_host":
        return host_main(args)
    if args.command == "_relay":
        asyncio.run(relay_main(args))
        return 0
    require_machine()
    if getattr(args, "qemu", False):
        require_qemu()
    cache = Cache.find()
    if args.command == "check":
        say(f"packages to install: {', '.join(missing_packages(qemu=args.qemu)) or 'none'}")
        return 0
    if args.command in ("prepare", "image"):
        mirror = find_mirror(args.mirror)
        if args.command == "prepare":
            if packages := missing_packages(qemu=args.qemu):
                say(f"The lab will install these Debian packages on this machine: {', '.join(packages)}")
            say(f"The lab keeps its images, packages and logs in {cache.root}; Debian comes from {mirror.main}")
            install_tools(cache, qemu=args.qemu)
        say(str(ensure_image(cache, args.suite, mirror)))
        if args.qemu:
            say(str(ensure_qemu_image(cache, args.suite, mirror).directory))
        release_proxy(cache)
        return 0
    if not NAME.fullmatch(args.name):
        raise LabError(f"lab name {args.name!r}: {NAME_RULE}")
    lab = Lab(cache, args.name)
    return run_lab_command(lab, args)


def run_lab_command(lab: Lab, args: argparse.Namespace) -> int:
    if args.command == "up":
        link = Path(args.link).absolute() if args.link else None
        started = time.monotonic()
        changed = lab.up(make_spec(args), link)
        say(
            f"Lab {args.name} is up after {time.monotonic() - started:.1f} s."
            if changed
            else f"Lab {args.name} was up already."
        )
        return 0
    if args.command == "down" and args.all:
        for name in sorted(path.name for path in lab.cache.labs.glob("*") if path.is_dir()):
            Lab(lab.cache, name).down()
            say(f"Lab {name} is down.")
        return 0
    if args.command == "down":
        changed = lab.down()
        if args.link and Path(args.link).is_symlink() and os.readlink(args.link) == str(lab.directory):
            Path(args.link).unlink()
        say(
            f"Lab {args.name} is down; {lab.cache.root} keeps the caches."
            if changed
            else f"Lab {args.name} was down already."
        )
        return 0
    if args.command == "status":
        status = lab.status()
        if args.json:
            say(json.dumps(status, indent=2, sort_keys=True))
        else:
            say(f"lab {status['name']}: {'up' if status['up'] else 'not up, missing ' + ', '.join(status['missing'])}")
            for name, host in status.get("hosts", {}).items():
                say(f"  {name}: {host['address']} {'running' if host['running'] else 'stopped'}")
        return 0 if status["up"] else 1
    if args.command == "ssh":
        lab.host(args.host)
        argv = ["ssh", "-F", str(lab.directory / "ssh/config"), args.host, *args.arguments]
        return subprocess.run(argv, check=False).returncode
    if args.command in ("crash", "stop"):
        lab.power_off(args.host, orderly=args.command == "stop")
    elif args.command == "start":
        lab.power_on(args.host)
    return 0


def entry() -> NoReturn:
    try:
        status = main()
    except LabError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        status = 1
    except KeyboardInterrupt:
        print("interrupted; `hearth_lab.py down` takes back what was started", file=sys.stderr, flush=True)
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    entry()
