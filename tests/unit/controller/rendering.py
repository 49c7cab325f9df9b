# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small composed fleets for the tests of renderers, made from contributions as roles write them."""

from __future__ import annotations

import copy
import typing as t

from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.plugin_utils.model import Fleet, Host, Service
from ansible_collections.hearth.homelab.plugins.plugin_utils.plan import HostPlan, PlanBuilder
from ansible_collections.hearth.homelab.plugins.plugin_utils.schema import Contribution, CoreVariables

#: A native service with secrets of every delivery, a database and storage.
MINIFLUX: dict[str, t.Any] = {
    "summary": "Feed reader",
    "tier": "services",
    "run": {
        "native": {
            "packages": ["miniflux"],
            "units": ["miniflux.service"],
            "environment": {"LISTEN_ADDR": "127.0.0.1:8080", "GREETING": 'say "50%" $HOME'},
            "hardening": {"PrivateDevices": False, "CapabilityBoundingSet": ["CAP_NET_BIND_SERVICE", "CAP_CHOWN"]},
            "unit_options": {"LimitNOFILE": "4096"},
        },
        "resources": {"memory_max": "512M", "cpu_weight": 50},
        "stop_timeout": "30s",
    },
    "user": {"name": "miniflux", "id": 2040, "umask": "0027"},
    "listen": {"http": {"port": 8080}},
    "storage": {"state": {"mountpoint": "/var/lib/miniflux"}},
    "protect": {"class": "standard"},
    "route": {"name": "news", "to": "http", "access": "home"},
    "database": {"postgresql": {"name": "miniflux"}},
    "secrets": {
        "admin_password": {"kind": "access", "deliver": {"credential": "admin"}},
        "token": {"kind": "access", "deliver": {"credential": "token"}},
        "key": {"kind": "data", "deliver": {"file": "/etc/miniflux/key"}},
        "unused": {"kind": "access"},
    },
    "timers": {"cleanup": {"calendar": "daily", "argv": ["/usr/bin/miniflux", "-run cleanup"], "random_delay": "1h"}},
    "health": {"http": {"port": "http", "path": "/healthcheck"}, "start_period": "120s"},
    "wants": ["sonarr"],
}

#: A container with storage, a mount, a shared group, two listeners and secrets.
SONARR: dict[str, t.Any] = {
    "summary": "TV series management",
    "tier": "services",
    "run": {
        "container": {
            "image": "ghcr.io/home-operations/sonarr:4.0.19.3001",
            "reason": "no Debian package",
            "environment": {"TZ": "Europe/London", "MOTTO": "100% $free"},
            "tmpfs": ["/tmp"],
            "devices": ["/dev/dri"],
            "capabilities": ["CAP_CHOWN"],
            "command": ["--data", "/config", "two words"],
        },
        "resources": {"memory_max": "1G", "cpu_weight": 100},
        "stop_timeout": "90s",
    },
    "user": {"name": "sonarr", "id": 2041, "groups": ["media", "video"], "umask": "0002"},
    "listen": {
        "http": {"port": 8990, "container_port": 8989},
        "stream": {"port": 9000, "protocol": ["tcp", "udp"], "address": "lan", "from": ["lan", "nas-1"]},
    },
    "networks": ["media"],
    "storage": {"state": {"mountpoint": "/var/lib/sonarr", "target": "/config"}},
    "mounts": {"media": {"source": "/srv/media", "target": "/media", "access": "rw"}},
    "protect": {"class": "standard"},
    "route": {"name": "sonarr", "to": "http", "access": "media"},
    "secrets": {
        "api_key": {"kind": "access", "deliver": {"environment": "SONARR__AUTH__APIKEY"}},
        "cert": {"kind": "access", "deliver": {"file": "/run/cert.pem"}},
    },
    "health": {"http": {"port": "http", "path": "/ping"}, "start_period": "300s"},
}

POSTGRESQL: dict[str, t.Any] = {
    "summary": "PostgreSQL",
    "tier": "infrastructure",
    "run": {"native": {"packages": ["postgresql-17"], "units": ["postgresql@17-main.service"]}},
    "provides": {"postgresql": "postgresql"},
    "user": {"name": "postgres", "id": 2010},
    "listen": {"sql": {"port": 5432}},
    "storage": {"state": {"mountpoint": "/var/lib/postgresql"}},
    "protect": {"class": "critical"},
}

PODMAN: dict[str, t.Any] = {
    "summary": "Podman",
    "tier": "infrastructure",
    "run": {"native": {"packages": ["podman"]}},
    "provides": {"container": "podman"},
}

FIREWALL: dict[str, t.Any] = {
    "summary": "Firewall",
    "tier": "core",
    "run": {"native": {"packages": ["nftables"]}},
    "provides": {"firewall": "nftables"},
}

SSHD: dict[str, t.Any] = {
    "summary": "OpenSSH server",
    "tier": "core",
    "run": {
        "native": {
            "packages": ["openssh-server"],
            "units": [{"name": "ssh.service", "on_change": "reload", "drop_in": False, "guarded": True}],
        }
    },
    "provides": {"people": "sshd"},
    "listen": {"ssh": {"port": 22, "address": "any", "from": ["lan", "mesh"]}},
}

EXPORTER: dict[str, t.Any] = {
    "summary": "Metrics of the host",
    "tier": "infrastructure",
    "run": {"native": {"packages": ["prometheus-node-exporter"], "units": ["prometheus-node-exporter.service"]}},
    "listen": {"http": {"port": 9100, "address": "lan", "from": ["metrics"]}},
    "metrics": {"port": "http"},
}

#: What the inventory says of every host.
CORE: dict[str, t.Any] = {
    "hearth_domain": "example.com",
    "hearth_zones": {
        "lan": {"networks": ["192.0.2.0/24", "192.0.2.0/25", "2001:db8:1::/64"]},
        "guests": {"interfaces": ["eth1", "vlan*"], "networks": ["198.51.100.0/24"]},
    },
    "hearth_networks": {"media": {"subnet": "10.89.10.0/24"}},
}

ADDRESSES: dict[str, dict[str, tuple[str, ...]]] = {
    "forge": {"lan": ("192.0.2.10", "2001:db8:1::10"), "mesh": ("203.0.113.1",)},
    "nas-1": {"lan": ("192.0.2.11", "2001:db8:1::11"), "mesh": ("203.0.113.2",)},
}


def merged(base: dict[str, t.Any], **changes: t.Any) -> dict[str, t.Any]:
    """A contribution with some of its keys replaced (keys of nested mappings joined by ``__``)."""
    result = copy.deepcopy(base)
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return result


def service(name: str, contribution: dict[str, t.Any], host: str = "forge", **attributes: t.Any) -> Service:
    parsed = Contribution.model_validate(contribution)
    uid = parsed.user.id if parsed.user else None
    values: dict[str, t.Any] = {"role": name, "inline": False, "options": {}, "variables": {}, "role_path": None}
    values.update({"uid": uid, "gid": uid, **attributes})
    return Service(name=name, host=host, contribution=parsed, **values)


def host(
    name: str, services: dict[str, dict[str, t.Any] | Service], core: dict[str, t.Any] | None = None, *groups: str
) -> Host:
    return Host(
        name=name,
        groups=groups,
        variables=CoreVariables.model_validate(CORE if core is None else {**CORE, **core}),
        addresses=ADDRESSES.get(name, {}),
        services={
            key: value if isinstance(value, Service) else service(key, value, name) for key, value in services.items()
        },
    )


def fleet(*hosts: Host) -> Fleet:
    return Fleet({entry.name: entry for entry in hosts})


def plan_of(render: t.Callable[[Fleet, Host, PlanBuilder], None], made: Fleet, name: str = "forge") -> HostPlan:
    """What one renderer alone makes of a host."""
    target = made.hosts[name]
    plan = PlanBuilder(name, target.release, target.architecture)
    render(made, target, plan)
    return plan.build()


def text(plan: HostPlan, path: str) -> str:
    """The content of a file in the plan."""
    item = plan.manifest.by_id()[f"file:{path}"]
    assert isinstance(item, m.File)
    return plan.contents[item.digest]


def unit(plan: HostPlan, name: str) -> m.Unit:
    item = plan.manifest.by_id()[f"unit:{name}"]
    assert isinstance(item, m.Unit)
    return item


def ids(plan: HostPlan) -> list[str]:
    return [item.id for item in plan.manifest.items]
