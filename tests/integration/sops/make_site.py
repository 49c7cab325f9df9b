#!/usr/bin/env python3
# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes build/sops: the lab's inventory with one host, few services, and no secret but the throwaway age key.

Everything else is for playbooks/secrets.yml to generate. Standard library and PyYAML.
"""

from __future__ import annotations

import sys
import typing as t
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tools"))

import lab_secrets
import test_site

UNIT = """\
[Unit]
Description=Holds a secret of every kind
[Service]
User=canary
ExecStart=/bin/sh -ec 'test -s "$CREDENTIALS_DIRECTORY/key"; test -s "$CREDENTIALS_DIRECTORY/data"; exec sleep infinity'
[Install]
WantedBy=multi-user.target
"""

#: One secret of every kind and delivery of a native service.
CANARY: dict[str, t.Any] = {
    "summary": "Holds a secret of every kind",
    "tier": "services",
    "run": {"native": {"units": ["canary.service"]}},
    "user": {"name": "canary", "id": 2990},
    "storage": {"state": {"mountpoint": "/var/lib/canary"}},
    "protect": {"class": "standard"},
    "database": {"postgresql": {"name": "canary", "password": "database"}},
    "mqtt": {"user": "canary", "password": "mqtt", "acl": ["readwrite canary/#"]},
    "secrets": {
        "credential": {"kind": "access", "generate": {"length": 40}, "deliver": {"credential": "key"}},
        "data": {
            "kind": "data", "generate": {"length": 64, "charset": "hex"}, "deliver": {"credential": "data"}
        },
        "file": {
            "kind": "access", "generate": {"length": 40, "charset": "base64"}, "deliver": {"file": "/etc/canary/file"}
        },
        "hole": {"kind": "access", "generate": {"length": 40, "charset": "hex"}},
        "database": {"kind": "access", "generate": {"length": 40}},
        "mqtt": {"kind": "access", "generate": {"length": 40}},
        "pair": {
            "kind": "access", "generate": {"keypair": "ssh-ed25519"}, "deliver": {"file": "/etc/canary/id_ed25519"}
        },
        "tunnel": {"kind": "access", "generate": {"keypair": "wireguard"}},
    },
    "files": [
        {"path": "/etc/systemd/system/canary.service", "content": UNIT},
        {
            "path": "/etc/canary/config",
            "content": "hole = {{ service.secrets.hole }}\ntunnel = {{ service.secrets.tunnel }}\n"
            "public = {{ service.public_keys.tunnel }}\n",
            "mode": "0400",
            "owner": "canary",
        },
    ],
    "requires": ["postgresql", "mosquitto"],
}  # fmt: skip

SERVICES: dict[str, t.Any] = {
    "postgresql": {},
    "caddy": {},
    "podman": {},
    "mosquitto": {},
    "prowlarr": {},
    # Besides its key, in its environment, one in a file.
    "sonarr": {
        "override": {
            "secrets": {"token": {"kind": "access", "generate": {"length": 40}, "deliver": {"file": "/run/token"}}}
        }
    },
    "canary": {"contribution": CANARY},
}


def make(name: str) -> Path:
    site = test_site.make(name)
    inventory = site / "inventories" / "lab"
    hosts = yaml.safe_load((inventory / "hosts.yml").read_text())
    del hosts["all"]["children"]["lab"]["hosts"]["lab-nas-1"], hosts["all"]["children"]["nas"]
    (inventory / "hosts.yml").write_text(yaml.safe_dump(hosts, sort_keys=False))
    variables = yaml.safe_load((inventory / "group_vars" / "forge.yml").read_text())
    variables |= {"hearth_services": SERVICES, "chrony_sources": []}
    (inventory / "group_vars" / "forge.yml").write_text(yaml.safe_dump(variables, sort_keys=False))
    (inventory / "group_vars" / "nas.yml").unlink()
    for path in (inventory / "secrets").glob("*.sops.yml"):
        path.unlink()
    lab_secrets.people(inventory, site / "build" / "passwords.json")
    return site


if __name__ == "__main__":
    print(make(sys.argv[1] if len(sys.argv) > 1 else "sops"))
