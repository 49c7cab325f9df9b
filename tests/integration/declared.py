# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The ports that the contributions of an inventory declare: what a port scan is compared with.

Worked out from `listen` alone, not by the firewall's renderer, which is what the scan is there to check.
As a program: `declared.py INVENTORY HOST` prints every TCP port that a service of the host listens on, with commas.
"""

from __future__ import annotations

import ipaddress
import os
import sys
import typing as t
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / ".collections"))
# Before Ansible is imported: it reads its configuration once.
os.environ["ANSIBLE_CONFIG"] = str(ROOT / "ansible.cfg")

from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.vars.hostvars import HostVars
from ansible.vars.manager import VariableManager

init_plugin_loader([str(ROOT / ".collections")])

from ansible_collections.hearth.homelab.plugins.plugin_utils import compose
from ansible_collections.hearth.homelab.plugins.plugin_utils.layers import Source
from ansible_collections.hearth.homelab.plugins.plugin_utils.model import Fleet


def read(inventory: Path) -> Fleet:
    """The composed fleet of an inventory directory."""
    loader = DataLoader()
    loader.set_basedir(str(ROOT / "playbooks"))
    hosts = InventoryManager(loader=loader, sources=[str(inventory / "hosts.yml")])
    manager = VariableManager(loader=loader, inventory=hosts)
    HostVars(hosts, manager, loader)
    made = compose.compose(Source(hosts, manager, loader))
    assert not made.broken, made.report.problems
    return made.fleet


def listening(fleet: Fleet, host: str) -> list[int]:
    """Every TCP port of a host, also those on loopback."""
    services = fleet.hosts[host].services.values()
    return sorted({
        listen.port for service in services for listen in service.contribution.listen.values() if "tcp" in listen.protocol
    })  # fmt: skip


def open_to(fleet: Fleet, host: str, source: str, address: str) -> list[int]:
    """The TCP ports of a host that another one may connect to from this address of its own."""
    zones = {
        name
        for name, zone in fleet.hosts[host].variables.hearth_zones.items()
        if any(ipaddress.ip_address(address) in ipaddress.ip_network(network) for network in zone.networks)
    }
    peer = fleet.hosts[source]
    is_declared = any(address in found for found in peer.addresses.values())
    allowed = zones | ({"all", source, *peer.groups} if is_declared else set())
    if is_declared:
        contracts = {contract for service in peer.services.values() for contract in service.contribution.provides}
        allowed |= t.cast("set[str]", contracts)
    found = set()
    for service in fleet.hosts[host].services.values():
        for listen in service.contribution.listen.values():
            if "tcp" in listen.protocol and listen.address != "loopback" and allowed & set(listen.from_):
                found.add(listen.port)
    return sorted(found)


if __name__ == "__main__":
    print(",".join(map(str, listening(read(Path(sys.argv[1])), sys.argv[2]))))
