# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The start page (``provides: {dashboard: homepage}``): one entry file for each service with ``dashboard``.

Homepage reads ``services.yaml`` as one file and shows only the first of two groups of one name, so fragments cannot
simply be appended. Each service has an entry of its own here; a program of the role makes ``services.yaml`` of those
that are there before the page starts. So one service is held back or removed by its own file alone.
"""

from __future__ import annotations

import json
import typing as t

from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.plugin_utils.model import Fleet, Host, Service
from ansible_collections.hearth.homelab.plugins.plugin_utils.plan import PlanBuilder
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import common, health, systemd
from ansible_collections.hearth.homelab.plugins.plugin_utils.schema import Dashboard

#: Programs of roles that hosts run.
PROGRAMS = "/usr/local/lib/hearth"


def render(fleet: Fleet, host: Host, plan: PlanBuilder) -> None:
    provider = host.provider("dashboard")
    if provider is None:
        return
    base = f"/etc/{provider.name}"
    folder = f"{base}/entries"
    for path in (base, folder, PROGRAMS):
        common.directory(plan, provider, path)
    for unit in provider.units:
        common.directory(plan, provider, systemd.DROP_IN.format(unit).rpartition("/")[0])
    for origin, service in fleet.services():
        dashboard = service.contribution.dashboard
        if dashboard is None or not origin.managed:
            continue
        here = origin.name == host.name
        found = {
            "group": dashboard.group,
            "name": dashboard.name or service.name,
            "entry": entry(origin, service, dashboard, here=here),
        }
        text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
        plan.file(
            service.name if here else provider.name,
            f"{folder}/{origin.name}.{service.name}.json",
            text,
            mode="0600" if m.holes(text) else "0644",
        )
    common.trigger(plan, provider, "restart", f"file:{folder}/")


def entry(origin: Host, service: Service, dashboard: Dashboard, *, here: bool) -> dict[str, t.Any]:
    """What services.yaml says of one service below its name."""
    found: dict[str, t.Any] = {}
    if dashboard.icon:
        found["icon"] = dashboard.icon
    url = health.url(origin, service)
    if url:
        found["href"] = url
    if dashboard.description:
        found["description"] = dashboard.description
    # Another host's secrets are not on this one.
    if dashboard.widget and (here or not m.holes(json.dumps(dashboard.widget))):
        found["widget"] = dashboard.widget
    return found
