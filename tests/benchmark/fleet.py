#!/usr/bin/env python3
# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes build/bench: the lab's inventory at addresses of its own, with services multiplied by inline copies.

One lab, several inventories of it, so that what is measured for one host does not pay for composing the others:

- ``lab``: all hosts; boots them
- ``forge``: lab-forge with 45 services (the lab's own roles and copies) and lab-nas-1, as the demo has
- ``many``: lab-many with 200 services, otherwise as lab-forge, and lab-nas-1
- ``ten``: ten hosts with 45 services each, with fewer packages (no database, containers or metrics)
- ``one``: the first of these ten alone

A copy is a small inline service with all that an ordinary one has: a user, a unit, two more files, storage, a route and
an alert. Standard library and yaml only.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import typing as t
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "build" / "bench"

SERVICES, MANY, HOSTS = 45, 200, 10
FORGE, BIG, NAS = "lab-forge", "lab-many", "lab-nas-1"
TEN = [f"lab-ten-{index:02}" for index in range(1, HOSTS + 1)]
#: Address of each host in the lab's network, the last number.
ADDRESSES = {FORGE: 11, NAS: 12, BIG: 13, **{name: 20 + index for index, name in enumerate(TEN)}}
#: What the ten hosts have besides copies.
SMALL = ("base", "users", "sshd", "nftables", "chrony", "caddy")

Data = dict[str, t.Any]


def copy_name(index: int) -> str:
    return f"copy_{index:03}"


def copy(index: int) -> Data:
    """An inline service; all of them differ, in what they are called and in what their files say."""
    name = copy_name(index)
    unit = (
        f"[Unit]\nDescription=Benchmark service {index}\n[Service]\nExecStart=/usr/bin/sleep infinity\n"
        f"EnvironmentFile=/etc/bench/{name}.env\nUser={name}\n[Install]\nWantedBy=multi-user.target\n"
    )
    settings = "".join(f"option_{line} = {index * 100 + line}\n" for line in range(30))
    if index == 1:  # the one that `-e bench_revision=1` changes
        settings += "revision = {{ bench_revision | default(0) }}\n"
    return {
        "summary": f"Benchmark service {index}",
        "tier": "services",
        "run": {"native": {"units": [f"{name}.service"]}, "stop_timeout": "5s"},
        "user": {"name": name, "id": 3000 + index},
        "listen": {"http": {"port": 20000 + index}},
        "storage": {"state": {"mountpoint": f"/var/lib/{name}"}},
        "protect": {"class": "standard"},
        "route": {"name": f"{{{{ inventory_hostname }}}}-{index}", "to": "http", "access": "media"},
        "files": [
            {"path": f"/etc/systemd/system/{name}.service", "content": unit},
            {"path": f"/etc/bench/{name}.env", "content": f"MODE=copy\nNUMBER={index}\nTZ={{{{ hearth_timezone }}}}\n"},
            {"path": f"/etc/bench/{name}.conf", "content": f"# {{{{ service.name }}}}\n{settings}", "mode": "0640"},
        ],
        "alerts": [
            {
                "alert": "QueueStuck",
                "expr": f'queue{{service="{name}"}} > 5',
                "for": "10m",
                "severity": "low",
                "summary": f"{name} is stuck",
            }
        ],
    }


def copies(count: int) -> Data:
    return {copy_name(index): {"contribution": copy(index)} for index in range(1, count + 1)}


def _write(path: Path, content: Data) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False, width=1000))


def _inventory(name: str, hosts: t.Sequence[str], base: Data, groups: t.Mapping[str, t.Sequence[str]]) -> Path:
    """An inventory with the lab's group_vars and secrets; ``base`` is the lab's hosts.yml."""
    lab, made = SITE / "inventories" / "lab", SITE / "inventories" / name
    if made != lab:
        shutil.copytree(lab, made)
    everyone: Data = base["all"]
    prefix = everyone["vars"]["lab_subnet"].rpartition(".")[0]
    addressed = {host: {"ansible_host": f"{prefix}.{ADDRESSES[host]}"} for host in hosts}
    children = {"lab": {"vars": everyone["children"]["lab"]["vars"], "hosts": addressed}}
    for group, names in groups.items():
        children[group] = {"hosts": {host: {} for host in names}}
    _write(made / "hosts.yml", {"all": {"vars": everyone["vars"], "children": children}})
    # Nobody needs to read them, but every host has people and services whose secrets it decrypts.
    secrets = made / "secrets" / f"{FORGE}.sops.yml"
    for host in hosts:
        if host not in (FORGE, NAS):
            shutil.copy(secrets, made / "secrets" / f"{host}.sops.yml")
    if FORGE not in hosts:
        secrets.unlink()
    return made


def _enabled(made: Path, group: str) -> list[str]:
    """The services that the lab's own variables enable for a group."""
    return list(yaml.safe_load((made / "group_vars" / f"{group}.yml").read_text())["hearth_services"])


def make() -> Path:
    """Writes all inventories; an older site is replaced."""
    subprocess.run([sys.executable, str(ROOT / "tools" / "test_site.py"), "bench"], cwd=ROOT, check=True)
    lab = SITE / "inventories" / "lab"
    base = yaml.safe_load((lab / "hosts.yml").read_text())
    roles = len(_enabled(lab, "lab")) + len(_enabled(lab, "forge"))
    for name, host, count in (("forge", FORGE, SERVICES), ("many", BIG, MANY)):
        made = _inventory(name, [host, NAS], base, {"forge": [host], "nas": [NAS]})
        _write(made / "host_vars" / f"{host}.yml", {"hearth_services": copies(count - roles)})
    for name, hosts in (("ten", TEN), ("one", TEN[:1])):
        made = _inventory(name, hosts, base, {"ten": hosts})
        for group in ("lab", "forge", "nas"):
            (made / "group_vars" / f"{group}.yml").unlink()
        own = yaml.safe_load((lab / "group_vars" / "lab.yml").read_text())
        own["hearth_services"] = {**{role: {} for role in SMALL}, **copies(SERVICES - len(SMALL))}
        own |= {"chrony_sources": [], "chrony_local_stratum": 10}
        _write(made / "group_vars" / "ten.yml", own)
    _inventory("lab", [FORGE, NAS, BIG, *TEN], base, {"forge": [FORGE, BIG], "nas": [NAS]})
    return SITE


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(make())
    return 0


if __name__ == "__main__":
    sys.exit(main())
