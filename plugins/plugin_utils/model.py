# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The composed fleet that renderers read: hosts with their resolved, validated services.

Everything here is resolved: no template is left in any string, ids and addresses are final.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.hearth.homelab.plugins.plugin_utils.schema import Contribution, CoreVariables, Listen


@dataclass(frozen=True)
class Service:
    """One enabled service of one host."""

    name: str
    host: str
    role: str  # the role's name; an inline service has its own name here
    inline: bool
    contribution: Contribution
    options: dict[str, t.Any]  # the role's options without the role's prefix: {"port": 8989, ...}
    variables: dict[str, t.Any]  # what configuration templates see besides `service`
    role_path: Path | None  # where templates/ lies; None for an inline service
    uid: int | None = None
    gid: int | None = None
    digest: str = ""  # of its container image on this host's platform, from the role's lock

    @property
    def user(self) -> str:
        """The user that runs it; root for a service without `user`."""
        return self.contribution.user.name if self.contribution.user else "root"

    @property
    def group(self) -> str:
        user = self.contribution.user
        return (user.group or user.name) if user else "root"

    @property
    def tier(self) -> str:
        return self.contribution.tier

    @property
    def container(self) -> bool:
        return self.contribution.run.container is not None

    @property
    def units(self) -> tuple[str, ...]:
        """The systemd units that are this service."""
        if self.container:
            return (f"{self.name}.service",)
        native = self.contribution.run.native
        return tuple(unit.name for unit in native.units) if native else ()

    def listen(self, name: str) -> Listen:
        return self.contribution.listen[name]

    def secret(self, key: str) -> str:
        """The name of one of its secrets in manifests and holes: ``SERVICE/KEY``."""
        return f"{self.name}/{key}"


@dataclass(frozen=True)
class Host:
    """One host of the fleet with its services in dependency order."""

    name: str
    groups: tuple[str, ...]
    variables: CoreVariables
    addresses: dict[str, tuple[str, ...]]  # zone -> addresses, "lan" first
    services: dict[str, Service] = field(default_factory=dict)
    #: Public halves of its services' key pairs, from known.yml: ``SERVICE/KEY`` -> text.
    public_keys: dict[str, str] = field(default_factory=dict)

    @property
    def release(self) -> str:
        platform = self.variables.hearth_platform
        return f"{platform.system}{platform.release}"

    @property
    def architecture(self) -> str:
        return self.variables.hearth_platform.architecture

    @property
    def managed(self) -> bool:
        """False where no provider can converge the host yet (macOS): it is composed and left alone."""
        return self.variables.hearth_platform.system == "debian"

    def provider(self, contract: str) -> Service | None:
        """The service of this host that provides a contract (unique: a conflict otherwise)."""
        for service in self.services.values():
            if contract in service.contribution.provides:
                return service
        return None

    def address(self, zone: str = "lan") -> str | None:
        """The first address in a zone."""
        found = self.addresses.get(zone) or ()
        return found[0] if found else None


@dataclass(frozen=True)
class Fleet:
    """All hosts of the inventory, whatever the limit is."""

    hosts: dict[str, Host]

    def providers(self, contract: str) -> list[tuple[Host, Service]]:
        """Hosts with the service that provides a contract, by host name."""
        found = []
        for host in self.hosts.values():
            service = host.provider(contract)
            if service:
                found.append((host, service))
        return found

    def services(self) -> t.Iterator[tuple[Host, Service]]:
        for host in self.hosts.values():
            for service in host.services.values():
                yield host, service
