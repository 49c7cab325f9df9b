# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Configuration files of services: templates of their roles, or text of their contributions."""

from __future__ import annotations

import re
import typing as t

from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.plugin_utils import templates
from ansible_collections.hearth.homelab.plugins.plugin_utils.model import Fleet, Host, Service
from ansible_collections.hearth.homelab.plugins.plugin_utils.plan import PlanBuilder
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import common, health
from ansible_collections.hearth.homelab.plugins.plugin_utils.schema import FileSpec

#: Files that are a unit, or belong to one: they restart that unit and no other.
_UNIT_FILE = re.compile(
    r"^/etc/systemd/system/([^/]+\.(?:service|socket|timer|path|mount|target))(?:\.d/[^/]+\.conf)?$"
)


def render(_fleet: Fleet, host: Host, plan: PlanBuilder) -> None:
    for service in host.services.values():
        for index, spec in enumerate(service.contribution.files):
            _file(host, service, spec, index, plan)


def variables(host: Host, service: Service) -> dict[str, t.Any]:
    """What a configuration template sees: the service's variables, and ``service`` with its computed names."""
    contribution = service.contribution
    view = {
        "name": service.name,
        "role": service.role,
        "host": host.name,
        "user": service.user,
        "group": service.group,
        "uid": service.uid,
        "gid": service.gid,
        "options": service.options,
        "ports": {name: listen.port for name, listen in contribution.listen.items()},
        "addresses": {name: list(common.addresses(host, listen)) for name, listen in contribution.listen.items()},
        "storage": {name: storage.mountpoint for name, storage in contribution.storage.items()},
        "mounts": {name: mount.source for name, mount in contribution.mounts.items()},
        "secrets": {key: common.hole(service, key) for key in contribution.secrets},
        "url": health.url(host, service),
    }
    # compose's own view has what only it knows (database, certificate); here come the final ids and addresses.
    return {**service.variables, "service": {**service.variables.get("service", {}), **view}}


def _file(host: Host, service: Service, spec: FileSpec, index: int, plan: PlanBuilder) -> None:
    owner = spec.owner or (service.user if spec.create_only else "root")
    group = spec.group or (service.group if owner == service.user else "root")
    if spec.create_only:
        _folders(service, spec, owner, group, plan)
    item = plan.file(
        service.name,
        spec.path,
        _content(host, service, spec, index),
        owner=owner,
        group=group,
        mode=spec.mode,
        create_only=spec.create_only,
        early=spec.early,
    )
    if spec.validate_:
        plan.validator(
            f"{service.name}:{spec.path}",
            service.name,
            spec.validate_.argv,
            (spec.path, *spec.validate_.covers),
            spec.validate_.user,
        )
    if spec.on_change == "none":
        return
    unit = _UNIT_FILE.match(spec.path)
    if unit and unit[1] in service.units:
        plan.trigger(unit[1], "restart", item)
    else:
        common.trigger(plan, service, spec.on_change, item)


def _folders(service: Service, spec: FileSpec, owner: str, group: str, plan: PlanBuilder) -> None:
    """The folders between a service's storage and a file there that the application goes on writing are its own, too.

    It keeps further files beside that one: databases, keys, a new version of the file before it is renamed.
    """
    for storage in common.storage_paths(service):
        if spec.path.startswith(f"{storage}/"):
            inner = spec.path[len(storage) + 1 :].split("/")[:-1]
            for depth in range(1, len(inner) + 1):
                path = "/".join((storage, *inner[:depth]))
                if not plan.has(f"directory:{path}"):
                    plan.add(m.Directory(path, service.name, owner=owner, group=group, mode="0700"))


def _content(host: Host, service: Service, spec: FileSpec, index: int) -> str:
    if spec.content is not None:
        return spec.content
    path = f"files.{index}.template"
    if spec.template is None or service.role_path is None:
        raise common.fail(
            host, service, path, "an inline service has no templates/", "write the text as content, or make it a role"
        )
    folder = service.role_path / "templates"
    file = folder / spec.template
    if not file.is_file():
        present = sorted(entry.relative_to(folder).as_posix() for entry in folder.rglob("*") if entry.is_file())
        raise common.fail(
            host,
            service,
            path,
            f"{file} does not exist",
            f"there {'are' if present else 'is'} {', '.join(present) or 'nothing in templates/'}",
        )
    try:
        return templates.environment().render_file(file, variables(host, service))
    except templates.TemplateError as error:
        raise common.fail(host, service, path, error.message, file=error.file, line=error.line) from error
