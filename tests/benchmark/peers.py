# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The same work in other tools: 45 services of lab-many, 14 resources each, one task (operation) per resource.

What they declare is what Hearth has made there, file by file, so that they have nothing to change either: a group, a
user, five directories, six files (half of them templates) and a unit for each service. No packages: apt would cost
Ansible most of its time, and Hearth asks for all packages in one query.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import typing as t

import fleet
import measure
import yaml

SERVICES = 45
TASKS = 14
DIRECTORY = fleet.SITE / "peers"
PYINFRA = measure.ROOT / "build" / "peers" / "bin" / "pyinfra"

#: Files of a copy, and who reads them (0640 with a group of their own for what is no public).
FILES = {
    "/etc/bench/{0}.conf": ("root", "0640"),
    "/etc/bench/{0}.env": ("root", "0644"),
    "/etc/caddy/sites/{0}.caddy": ("caddy", "0640"),
    "/etc/prometheus/hearth/rules/lab-many.{0}.yml": ("root", "0644"),
    "/etc/systemd/system/{0}.service": ("root", "0644"),
    "/etc/systemd/system/{0}.service.d/50-hearth.conf": ("root", "0644"),
}
SHARED = ("/etc/bench", "/etc/caddy/sites", "/etc/prometheus/hearth/rules")


def names() -> list[str]:
    return [fleet.copy_name(index) for index in range(1, SERVICES + 1)]


def ssh(host: str, command: str) -> bytes:
    """Output of a command on a host of the lab."""
    config = fleet.SITE / "build" / "lab" / "ssh" / "config"
    found = subprocess.run(["ssh", "-F", str(config), host, command], capture_output=True, check=False)
    if found.returncode:
        sys.exit(f"{host}: {command} failed: {found.stderr.decode()}")
    return found.stdout


def _resources() -> dict[str, t.Any]:
    """Files and directories as they are on the host, with contents below DIRECTORY/files."""
    paths = [path.format(name) for name in names() for path in FILES]
    files = DIRECTORY / "files"
    files.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(ssh(fleet.BIG, f"tar -C / -c {' '.join(path[1:] for path in paths)}"))) as tar:
        tar.extractall(files, filter="data")
    directories = [*SHARED, *(f"/etc/systemd/system/{name}.service.d" for name in names())]
    directories += [f"/var/lib/{name}" for name in names()]
    found = ssh(fleet.BIG, f"stat -c '%n %U %G %04a' {' '.join(directories)}").decode()
    return {path: (owner, group, mode) for path, owner, group, mode in map(str.split, found.splitlines())}


def playbook() -> list[str]:
    """Writes one task per resource, and returns the command."""
    known = _resources()
    tasks: list[dict[str, t.Any]] = []

    def task(module: str, what: str, **arguments: t.Any) -> None:
        tasks.append({"name": f"{what}", f"ansible.builtin.{module}": arguments})

    for index, name in enumerate(names(), 1):
        first = len(tasks)
        task("group", f"Group of {name}", name=name, gid=3000 + index)
        task("user", f"User of {name}", name=name, uid=3000 + index, group=name, shell="/usr/sbin/nologin",
             home="/nonexistent", create_home=False)  # fmt: skip
        for path in (*SHARED, f"/etc/systemd/system/{name}.service.d", f"/var/lib/{name}"):
            owner, group, mode = known[path]
            task("file", f"Directory {path}", path=path, state="directory", owner=owner, group=group, mode=mode)
        for number, (pattern, (group, mode)) in enumerate(FILES.items()):
            path = pattern.format(name)
            source = str(DIRECTORY / "files") + path
            module = "template" if number % 2 else "copy"
            task(module, f"File {path}", src=source, dest=path, owner="root", group=group, mode=mode)
        task("systemd_service", f"Unit of {name}", name=f"{name}.service", enabled=True, state="started")
        if len(tasks) - first != TASKS:
            raise AssertionError(f"{len(tasks) - first} tasks for a service")
    play = [{"name": "One task per resource", "hosts": fleet.BIG, "gather_facts": False, "tasks": tasks}]
    path = DIRECTORY / "ansible.yml"
    path.write_text(yaml.safe_dump(play, sort_keys=False, width=1000))
    return ["ansible-playbook", "-i", str(fleet.SITE / "inventories" / "many"), str(path)]


_INVENTORY = """\
hosts = [({address!r}, {{
    "ssh_user": "root", "ssh_key": {key!r}, "ssh_known_hosts_file": {known!r},
    "ssh_strict_host_key_checking": "yes",
}})]
"""

_DEPLOY = """\
import json
from pyinfra.operations import files, server, systemd

for entry in json.load(open({resources!r})):
    name = entry["name"]
    server.group(group=name, gid=entry["id"])
    server.user(user=name, uid=entry["id"], group=name, shell="/usr/sbin/nologin", home="/nonexistent", ensure_home=False)
    for path, user, group, mode in entry["directories"]:
        files.directory(path=path, user=user, group=group, mode=mode)
    for number, (path, source, group, mode) in enumerate(entry["files"]):
        put = files.template if number % 2 else files.put
        put(src=source, dest=path, user="root", group=group, mode=mode)
    systemd.service(service=name + ".service", running=True, enabled=True)
"""


def pyinfra() -> list[str]:
    """Writes one operation per resource, and returns the command."""
    known = _resources()
    entries = []
    for index, name in enumerate(names(), 1):
        directories = [
            [path, *known[path]] for path in (*SHARED, f"/etc/systemd/system/{name}.service.d", f"/var/lib/{name}")
        ]
        paths = [
            [path.format(name), str(DIRECTORY / "files") + path.format(name), *rest] for path, rest in FILES.items()
        ]
        entries.append({"name": name, "id": 3000 + index, "directories": directories, "files": paths})
    resources = DIRECTORY / "resources.json"
    resources.write_text(json.dumps(entries))
    inventory = yaml.safe_load((fleet.SITE / "inventories" / "many" / "hosts.yml").read_text())["all"]
    address = inventory["children"]["lab"]["hosts"][fleet.BIG]["ansible_host"]
    keys = fleet.SITE / "build" / "lab" / "ssh"
    (DIRECTORY / "inventory.py").write_text(
        _INVENTORY.format(address=address, key=str(keys / "id_ed25519"), known=str(keys / "known_hosts"))
    )
    (DIRECTORY / "deploy.py").write_text(_DEPLOY.format(resources=str(resources)))
    return [str(PYINFRA), "--yes", str(DIRECTORY / "inventory.py"), str(DIRECTORY / "deploy.py")]


def unchanged(tool: str, output: str) -> None:
    """Ends the benchmark if a tool that should have had nothing to do says that it changed something."""
    if tool == "ansible" and "changed=0 " not in output:
        sys.exit(f"the plain playbook changed something:\n{output[-2000:]}")


def version(tool: str) -> str:
    """The first line that a tool prints for --version."""
    command = ["ansible-playbook", "--version"] if tool == "ansible" else [str(PYINFRA), "--version"]
    return measure.run(command).splitlines()[0].strip()
