# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The status page (``provides: {status: gatus}``): one endpoint file for each service with a health check.

Gatus merges every ``.yaml`` below the directory ``GATUS_CONFIG_PATH``; lists are appended. It notices changed files but
not removed ones, and stops when it reads a broken one, so it is restarted when its endpoints change; its history is in
SQLite. ``$`` starts a variable in its configuration, ``$$`` is one dollar sign.
"""

from __future__ import annotations

import json
import typing as t

from ansible_collections.hearth.homelab.plugins.plugin_utils.model import Fleet, Host, Service
from ansible_collections.hearth.homelab.plugins.plugin_utils.plan import PlanBuilder
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import common

#: How often an endpoint is asked.
INTERVAL = "1m"


def render(fleet: Fleet, host: Host, plan: PlanBuilder) -> None:
    provider = host.provider("status")
    if provider is None:
        return
    base = f"/etc/{provider.name}"
    folder = f"{base}/endpoints"
    common.directory(plan, provider, base)
    common.directory(plan, provider, folder)
    unreachable: dict[str, list[str]] = {}
    for origin, service in fleet.services():
        if not origin.managed:
            continue
        here = origin.name == host.name
        found = endpoint(origin, service, here=here)
        if found is not None:
            text = common.header(service.name) + _escaped(json.dumps({"endpoints": [found]}, indent=2)) + "\n"
            plan.file(service.name if here else provider.name, f"{folder}/{origin.name}.{service.name}.yaml", text)
        elif not here and _port(service):
            unreachable.setdefault(origin.name, []).append(service.name)
    for name, services in sorted(unreachable.items()):
        plan.notices.append(
            f"status of {', '.join(sorted(services))} on {name}: {provider.name} on {host.name} may not reach their "
            "ports, so the page does not show them"
        )
    common.trigger(plan, provider, "restart", f"file:{folder}/")


def endpoint(origin: Host, service: Service, *, here: bool) -> dict[str, t.Any] | None:
    """One endpoint of Gatus; None for a service without a check that can be made over the network."""
    name = _port(service)
    if not name:
        return None
    listen = service.listen(name)
    address = common.reach(origin, listen, "status", here=here)
    if address is None:
        return None
    target = f"{common.in_url(address)}:{listen.port}"
    found: dict[str, t.Any] = {
        "name": f"{service.name} on {origin.name}",
        "group": service.contribution.category,
        "interval": INTERVAL,
    }
    health, route = service.contribution.health, service.contribution.route
    # A certificate does not name an address: such a port is only asked whether it listens, as by the health check.
    if health.http and not (route and route.scheme == "https" and route.to == name):
        found["url"] = f"http://{target}{health.http.path}"
        if health.http.headers:
            found["headers"] = dict(sorted(health.http.headers.items()))
        # Exactly this answer: a redirect is one, too.
        found["client"] = {"ignore-redirect": True}
        found["conditions"] = [f"[STATUS] == {health.http.status}"]
    else:
        found["url"] = f"tcp://{target}"
        found["conditions"] = ["[CONNECTED] == true"]
    # The page may be public: it shows names and states, not where things are.
    found["ui"] = {"hide-hostname": True, "hide-url": True, "hide-errors": True}
    return found


def _port(service: Service) -> str:
    """The ``listen`` entry that the health check asks; empty where there is none."""
    health = service.contribution.health
    if health.http:
        return health.http.port
    return health.tcp.port if health.tcp else ""


def _escaped(text: str) -> str:
    return text.replace("$", "$$")
