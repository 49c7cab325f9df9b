# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Grafana (``provides: {grafana: grafana}``): one provisioning file for each data source and each dashboard.

Grafana looks for changed and removed dashboards by itself; data sources are read when it starts. A dashboard belongs to a
role: two instances share it, as its uid is one. In data source files ``$`` starts a variable, ``$$`` is one dollar
sign; dashboards are taken as they are (Grafana's documentation, "Provision Grafana").
"""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.plugin_utils.errors import nearest
from ansible_collections.hearth.homelab.plugins.plugin_utils.model import Fleet, Host, Service
from ansible_collections.hearth.homelab.plugins.plugin_utils.plan import PlanBuilder
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import common
from ansible_collections.hearth.homelab.plugins.plugin_utils.schema import DataSource


def render(fleet: Fleet, host: Host, plan: PlanBuilder) -> None:
    provider = host.provider("grafana")
    if provider is None:
        return
    base = f"/etc/{provider.name}"
    sources, boards = f"{base}/provisioning/datasources", f"{base}/dashboards"
    # Grafana reports an error for each folder of its own that is not there.
    for name in ("", "/provisioning", *(f"/provisioning/{kind}" for kind in ("alerting", "dashboards", "plugins"))):
        common.directory(plan, provider, f"{base}{name}")
    for path in (sources, boards):
        common.directory(plan, provider, path)
    uids: dict[str, str] = {}  # of a data source -> the service that has it
    seen: dict[str, tuple[str, str]] = {}  # uid of a dashboard -> (role, file)
    for origin, service in fleet.services():
        if service.contribution.grafana is None or not origin.managed:
            continue
        here = origin.name == host.name
        owner = service.name if here else provider.name
        for index, source in enumerate(service.contribution.grafana.datasources):
            uid = source.uid or service.name
            if uid in uids:
                raise common.fail(
                    origin,
                    service,
                    f"grafana.datasources.{index}.uid",
                    f"{uids[uid]} has a data source {uid!r} already",
                    "give one of them a uid of its own",
                )
            uids[uid] = f"{service.name} on {origin.name}"
            found = _source(origin, service, source, uid, here=here)
            if found is None:
                plan.notices.append(
                    f"data source {uid} of {service.name} on {origin.name}: {provider.name} on {host.name} may not "
                    f"reach its port {source.port}, so there is none"
                )
                continue
            text = (
                common.header(service.name) + json.dumps(found, indent=1, ensure_ascii=False).replace("$", "$$") + "\n"
            )
            secret = bool(m.holes(text))
            plan.file(
                owner,
                f"{sources}/{origin.name}.{uid}.yaml",
                text,
                **({"owner": provider.user, "group": provider.group, "mode": "0400"} if secret else {}),
            )
        for index, name in enumerate(service.contribution.grafana.dashboards):
            key = f"grafana.dashboards.{index}"
            text, uid = _dashboard(origin, service, name, key)
            known = seen.setdefault(uid, (service.role, name))
            if known != (service.role, name):
                raise common.fail(
                    origin,
                    service,
                    key,
                    f"the uid {uid!r} is that of {known[1]} of {known[0]}",
                    "another uid",
                )
            folder = f"{boards}/{service.contribution.category.capitalize()}"
            common.directory(plan, owner, folder)
            plan.file(owner, f"{folder}/{service.role}.{Path(name).name}", text)
    common.trigger(plan, provider, "restart", f"file:{sources}/")


def _source(origin: Host, service: Service, source: DataSource, uid: str, *, here: bool) -> dict[str, t.Any] | None:
    """A provisioning file with one data source; None where Grafana's host cannot reach it or its secrets are not."""
    listen = service.listen(source.port)
    address = common.reach(origin, listen, "grafana", here=here)
    if address is None or (source.secure_options and not here):
        return None
    entry: dict[str, t.Any] = {
        "name": source.name or uid,
        "uid": uid,
        "type": source.type,
        "access": "proxy",
        "url": f"http://{common.in_url(address)}:{listen.port}{source.path}",
        "isDefault": source.default,
        "editable": False,
    }
    if source.options:
        entry["jsonData"] = source.options
    if source.secure_options:
        entry["secureJsonData"] = source.secure_options
    # prune: what is in no file any more is removed from Grafana's database.
    return {"apiVersion": 1, "prune": True, "datasources": [entry]}


def _dashboard(origin: Host, service: Service, name: str, path: str) -> tuple[str, str]:
    """The text of a dashboard and its uid."""
    if service.role_path is None:
        raise common.fail(origin, service, path, "an inline service has no files/", "make it a role")
    folder = service.role_path / "files"
    file = folder / name
    if not file.is_file():
        present = sorted(entry.relative_to(folder).as_posix() for entry in folder.rglob("*.json"))
        raise common.fail(
            origin, service, path, f"{file} does not exist", nearest(name, present) or f"there is {present or 'none'}"
        )
    text = file.read_text(encoding="utf-8")
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise common.fail(
            origin, service, path, f"not valid JSON: {error.msg}", file=str(file), line=error.lineno
        ) from error
    for key in ("uid", "title"):
        if not isinstance(data, dict) or not isinstance(data.get(key), str) or not data[key]:
            raise common.fail(
                origin, service, path, f"{file} has no {key}", "export the dashboard from Grafana as JSON (classic)"
            )
    if data.get("id") is not None:
        raise common.fail(
            origin, service, path, f"{file} has the id of somebody's database", "id: null, as for sharing externally"
        )
    return text, data["uid"]
