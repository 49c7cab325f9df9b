# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Storage: the persistent data of services, a dataset each, or directories on hosts without a pool."""

from __future__ import annotations

from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.plugin_utils.model import Fleet, Host
from ansible_collections.hearth.homelab.plugins.plugin_utils.plan import PlanBuilder
from ansible_collections.hearth.homelab.plugins.plugin_utils.schema import StorageSpec


def render(_fleet: Fleet, host: Host, plan: PlanBuilder) -> None:
    kept = []
    for service in host.services.values():
        contribution = service.contribution
        protect = contribution.protect
        for name, spec in contribution.storage.items():
            dataset = dataset_of(host, service.name, name)
            plan.add(
                m.Storage(
                    spec.mountpoint,
                    service.name,
                    provider="zfs" if dataset else "directory",
                    dataset=dataset,
                    properties=properties(spec) if dataset else {},
                    owner=spec.owner or service.user,
                    group=spec.group or (service.group if spec.owner in (None, service.user) else spec.owner or "root"),
                    mode=spec.mode,
                    protection=protect.class_ if protect else "standard",
                    # No tier (snapshot, replica, repository) is declared anywhere yet, so none could hold data.
                    empty_start=protect.empty_start if protect and protect.empty_start is not None else True,
                )
            )
        if contribution.storage:
            kept.append(service.name)
        for mount in contribution.mounts.values():
            point = plan.add(_mount_point(host, service.name, mount.source))
            for unit in service.units:
                plan.need(unit, point)
    if kept and host.variables.hearth_zfs is None:
        names = ", ".join(sorted(kept))
        plan.notices.append(
            f"storage: {host.name} has no pool: directories, without snapshots and replication, for {names}"
        )


def dataset_of(host: Host, service: str, storage: str) -> str:
    """The dataset of a service's storage; empty on a host without ZFS.

    ``state``, which most services have alone, is the service's own; others lie beside it and not below it, so that
    each can be renamed, received and rolled back by itself. No service's name has a hyphen.
    """
    if host.variables.hearth_zfs is None:
        return ""
    return f"{host.variables.hearth_zfs.services}/{service}{'' if storage == 'state' else f'-{storage}'}"


def properties(spec: StorageSpec) -> dict[str, str]:
    """ZFS properties, in zfs(8)'s spelling. What a service states has its own words; anything else is passed on."""
    return {
        "compression": spec.compression,
        "quota": "none" if spec.quota == "none" else str(spec.quota),
        "recordsize": str(spec.recordsize),
        **spec.properties,
    }


def _mount_point(host: Host, service: str, path: str) -> m.Directory:
    """The directory of a mount, so that a container can bind it. Below hearth_media it is the media group's."""
    media = host.variables.hearth_media
    shared = "media" in host.variables.hearth_groups and (path == media or path.startswith(f"{media}/"))
    group, mode = ("media", "2775") if shared else ("root", "0755")
    return m.Directory(path, service, group=group, mode=mode, create_only=True)
