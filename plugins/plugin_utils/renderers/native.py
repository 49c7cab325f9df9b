# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Native services: Debian packages and the command that makes a service's first data."""

from __future__ import annotations

from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.plugin_utils.model import Fleet, Host
from ansible_collections.hearth.homelab.plugins.plugin_utils.plan import PlanBuilder
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import common


def render(_fleet: Fleet, host: Host, plan: PlanBuilder) -> None:
    owners: dict[str, str] = {}
    replaces: dict[str, set[str]] = {}
    for service in host.services.values():
        native = service.contribution.run.native
        sources = list(service.contribution.system.apt_sources)
        if native:
            for package in native.packages:
                owners.setdefault(package, service.name)  # two services may need one package: the first keeps it
                replaces.setdefault(package, set()).update(native.replaces)
            if native.repository:
                sources.append(native.repository)
            if native.initialize:
                storage = service.contribution.storage.get(native.initialize.storage)
                if storage is None:
                    raise common.fail(
                        host,
                        service,
                        "run.native.initialize.storage",
                        f"the storage entry {native.initialize.storage!r} does not exist",
                        f"one of: {', '.join(sorted(service.contribution.storage)) or 'none is declared'}",
                    )
                plan.add(
                    m.Initialize(
                        service.name,
                        service.name,
                        argv=tuple(native.initialize.argv),
                        creates=native.initialize.creates,
                        storage=storage.mountpoint,
                        user=native.initialize.user,
                        makes=tuple(native.initialize.makes),
                    )
                )
        for source in sources:
            # Its key has to be fetched by the host and compared with the fingerprint: nothing here could do that.
            plan.notices.append(
                f"apt repository: no provider yet: {source.url} of {service.name} is not set up; its packages must be "
                "installable from the host's present sources"
            )
    for package in sorted(owners):
        plan.add(m.Package(package, owners[package], replaces=tuple(sorted(replaces[package]))))
