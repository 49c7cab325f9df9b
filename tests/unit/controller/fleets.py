# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small fleets for tests: an inventory directory, roles, secrets, and the source that compose reads."""

from __future__ import annotations

import copy
import typing as t
from dataclasses import dataclass
from pathlib import Path

import yaml
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.vars.manager import VariableManager
from ansible_collections.hearth.homelab.plugins.plugin_utils.layers import Source

Data = t.Mapping[str, t.Any]


@dataclass
class Repository:
    """Somebody's repository: inventories/x, roles, play."""

    path: Path

    @property
    def inventory(self) -> Path:
        return self.path / "inventories" / "x"

    def write(self, name: str, content: t.Any) -> Path:
        """A file below the repository: text, or data as YAML."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
        return path

    def vars(self, name: str, content: t.Any) -> Path:
        """``group_vars/all.yml`` and the like, beside the inventory."""
        return self.write(f"inventories/x/{name}", content)

    def role(
        self,
        name: str,
        contribution: Data | str,
        *,
        defaults: Data | str | None = None,
        options: Data | None = None,
        templates: t.Mapping[str, str] | None = None,
    ) -> Path:
        """A role; ``contribution`` is the mapping, without the variable's name, or the file's text."""
        text = contribution if isinstance(contribution, str) else {f"{name}_contribution": dict(contribution)}
        self.write(f"roles/{name}/vars/contribution.yml", text)
        if defaults is not None:
            self.write(f"roles/{name}/defaults/main.yml", defaults)
        if options is not None:
            self.write(
                f"roles/{name}/meta/argument_specs.yml", {"argument_specs": {"main": {"options": dict(options)}}}
            )
        for file, content in (templates or {}).items():
            self.write(f"roles/{name}/templates/{file}", content)
        return self.path / "roles" / name

    def secrets(self, name: str, services: t.Mapping[str, t.Any], *, encrypted: bool = True) -> Path:
        """A SOPS file whose values are not really encrypted: only names are ever read here."""

        def hide(value: t.Any) -> t.Any:
            if isinstance(value, dict):
                return {key: hide(entry) for key, entry in value.items()}
            return "ENC[AES256_GCM,data:x,type:str]" if isinstance(value, str) and encrypted else value

        data = {service: hide(value) for service, value in services.items()}
        return self.vars(f"secrets/{name}.sops.yml", {**data, "sops": {"version": "3.9.0"}})

    def source(self, extra: Data | None = None, basedir: Path | None = None) -> Source:
        loader = DataLoader()
        loader.set_basedir(str(basedir or self.path / "playbooks"))
        inventory = InventoryManager(loader=loader, sources=[str(self.inventory)])
        manager = VariableManager(loader=loader, inventory=inventory)
        # Ansible keeps -e in a function's attribute: of this fleet, or of the first one of the process.
        manager._extra_vars = dict(extra or {})
        return Source(inventory, manager, loader)


NATIVE: dict[str, t.Any] = {"summary": "A test service", "tier": "services", "run": {"native": {"packages": []}}}


def native(**contribution: t.Any) -> dict[str, t.Any]:
    """A minimal contribution, and more."""
    return {**copy.deepcopy(NATIVE), **contribution}


def repository(
    path: Path, hosts: t.Mapping[str, Data] | None = None, groups: t.Mapping[str, t.Iterable[str]] | None = None
) -> Repository:
    """A repository with these hosts (and their inventory variables) in these groups, and a fleet that composes."""
    made = Repository(path)
    entries = dict(hosts or {"forge": {"hearth_addresses": {"lan": "192.0.2.10"}}})
    made.write(
        "inventories/x/hosts.yml",
        {
            "all": {
                "hosts": {name: dict(variables) for name, variables in entries.items()},
                "children": {group: {"hosts": {key: {} for key in names}} for group, names in (groups or {}).items()},
            }
        },
    )
    made.vars("group_vars/all/core.yml", {"hearth_domain": "example.com", "hearth_access": {"media": [], "admin": []}})
    return made


# --- a fleet of the size that the budget is about --------------------------------------------------------------------


def contribution(index: int) -> dict[str, t.Any]:
    """What a typical container service contributes."""
    name = f"svc{index:03}"
    return {
        "schema": 1,
        "summary": f"Service {index}",
        "tier": "services",
        "category": "media",
        "run": {
            "container": {
                "image": f"{{{{ {name}_image }}}}",
                "reason": "no Debian package",
                "environment": {"TZ": "{{ hearth_timezone }}", "NAME": "{{ service.name }}", "MODE": "External"},
            },
            "resources": {"memory_max": "1G", "cpu_weight": 100},
            "stop_timeout": "90s",
        },
        "user": {"name": "{{ service.role }}", "id": 3000 + index, "groups": ["media"], "umask": "0002"},
        "listen": {"http": {"port": f"{{{{ {name}_port }}}}", "container_port": 8989, "protocol": ["tcp"],
                            "address": "lan", "from": ["metrics", "lan"]}},
        "networks": ["media"],
        "storage": {"state": {"mountpoint": "/var/lib/{{ service.name }}", "target": "/config", "recordsize": "16K"}},
        "mounts": {"media": {"source": "{{ hearth_media }}", "target": "/media", "access": "rw"}},
        "protect": {"class": "standard"},
        "backup": {"exclude": ["logs/**"], "quiesce": {"sqlite": ["app.db"]}, "validate": {"sqlite": ["app.db"]}},
        "route": {"name": "{{ service.name }}", "to": "http", "access": f"{{{{ {name}_access }}}}",
                  "bypass": [{"path": "/ping"}, {"prefix": "/api", "auth": "application"}]},
        "secrets": {"api_key": {"kind": "access", "deliver": {"environment": "API_KEY"}}},
        "files": [{"template": "config.xml.j2", "path": "/var/lib/{{ service.name }}/config.xml", "mode": "0640"}],
        "health": {"http": {"port": "http", "path": "/ping"}, "start_period": "300s"},
        "metrics": {"port": "http", "path": "/metrics"},
        "alerts": [{"alert": "QueueStuck", "expr": 'queue{service="{{ service.name }}"} > 5', "severity": "low",
                    "summary": "{{ service.name }} is stuck", "for": "10m"}],
        "dashboard": {"group": "Media", "icon": name},
        "wants": [f"svc{index - 1:03}"] if index % 5 else [],
    }  # fmt: skip


def large(path: Path, hosts: int = 20, services: int = 25, distinct: bool = True) -> Repository:
    """``hosts`` x ``services`` services, of as many roles as services in all, or of ``services`` roles."""
    names = [f"host{index:02}" for index in range(hosts)]
    made = repository(
        path, {name: {"hearth_addresses": {"lan": f"192.0.2.{index + 1}"}} for index, name in enumerate(names)}
    )
    made.vars("group_vars/all/core.yml", {
        "hearth_domain": "example.com",
        "hearth_timezone": "Europe/Berlin",
        "hearth_access": {"media": ["anna"], "admin": []},
        "hearth_networks": {"media": {}},
        "hearth_zones": {"lan": {"networks": ["192.0.2.0/24"]}},
        "hearth_protect_accept": {"offsite": "a benchmark"},
    })  # fmt: skip
    for index in range(hosts * services if distinct else services):
        name = f"svc{index:03}"
        defaults = (
            f"# The port.\n{name}_port: {10000 + index}\n"
            f"# The image.\n{name}_image: registry.example.com/{name}:1.2.3\n"
            f'{name}_access: media\n{name}_log_level: info\n{name}_url: "https://{name}.{{{{ hearth_domain }}}}"\n'
            f"{name}_settings: {{a: 1, b: [x, y]}}\n"
        )
        options = {
            f"{name}_port": {"type": "int", "description": "The port."},
            f"{name}_image": {"type": "str", "description": "The image."},
            f"{name}_access": {"type": "str", "description": "Access group."},
            f"{name}_log_level": {"type": "str", "choices": ["debug", "info"], "description": "Level."},
            f"{name}_url": {"type": "str", "description": "URL."},
            f"{name}_settings": {"type": "dict", "description": "More."},
        }
        template = (
            f"<Config>\n{{% for key, value in {name}_settings | dictsort %}}\n"
            "  <{{ key }}>{{ value }}</{{ key }}>\n{% endfor %}\n"
            "  <Key>{{ service.secrets.api_key }}</Key>\n  <Port>{{ service.ports.http }}</Port>\n</Config>\n"
        )
        made.role(name, contribution(index), defaults=defaults, options=options, templates={"config.xml.j2": template})
    made.role("engine", native(tier="infrastructure", provides={"container": "podman", "route": "caddy"}))
    for host_index, host in enumerate(names):
        enabled: dict[str, t.Any] = {"engine": {}}
        for index in range(services):
            number = host_index * services + index if distinct else index
            enabled[f"svc{number:03}"] = (
                {"override": {"backup": {"exclude": ["cache/**"]}, "route": {"name": f"{host}-{index}"}}}
                if index % 5 == 0
                else {"override": {"route": {"name": f"{host}-{index}"}}}
            )
        made.vars(f"host_vars/{host}.yml", {"hearth_services": enabled})
        made.secrets(host, {
            **{name: {"api_key": "x"} for name in enabled}, "people": {"anna": {"password_hash": "x"}},
        })  # fmt: skip
    return made
