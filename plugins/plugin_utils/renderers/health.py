# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Health: what the host must know of each service to start, check and take it back."""

from __future__ import annotations

from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.plugin_utils.model import Fleet, Host, Service
from ansible_collections.hearth.homelab.plugins.plugin_utils.plan import PlanBuilder
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import common, quadlet

#: Seconds that a service's units must run without a restart before it counts as healthy.
SETTLE = 10


def render(_fleet: Fleet, host: Host, plan: PlanBuilder) -> None:
    for service in host.services.values():
        contribution = service.contribution
        container = contribution.run.container
        plan.services[service.name] = m.ServiceState(
            name=service.name,
            tier=service.tier,
            summary=contribution.summary,
            requires=tuple(entry.name for entry in common.required(host, service)),
            wants=tuple(entry.name for entry in common.wanted(host, service)),
            units=common.running_units(service),
            checks=checks(host, service),
            start_period=contribution.health.start_period,
            settle=SETTLE,
            listeners=listeners(host, service),
            url=url(host, service),
            stand_in=bool(container and quadlet.image(host, service, container)[1]),
            reversible=contribution.upgrade.reversible,
        )


def url(host: Host, service: Service) -> str:
    """Where people open it."""
    route, domain = service.contribution.route, host.variables.hearth_domain
    if route is None or domain is None:
        return ""
    return f"https://{domain}/" if route.name == "@" else f"https://{route.name}.{domain}/"


def listeners(host: Host, service: Service) -> tuple[str, ...]:
    """``PROTOCOL/ADDRESS/PORT`` of everything the service listens on; ``*`` for all addresses."""
    if quadlet.bridged(service):
        found = {
            (protocol, address, port) for _name, address, port, _inner, protocol in quadlet.published(host, service)
        }
    else:
        found = {
            (protocol, address, listen.port)
            for listen in service.contribution.listen.values()
            for address in common.addresses(host, listen)
            for protocol in listen.protocol
        }
    return tuple(f"{protocol}/{address}/{port}" for protocol, address, port in sorted(found))


def checks(host: Host, service: Service) -> tuple[m.Check, ...]:
    health = service.contribution.health
    found: list[m.Check] = []
    if health.http:
        listen = service.listen(health.http.port)
        address = _address(host, service, health.http.port, "health.http.port")
        route = service.contribution.route
        if route and route.scheme == "https" and route.to == health.http.port:
            # Its certificate does not name an address, and a check never skips verification: only that it listens.
            found.append(m.Check("tcp", address=address, port=listen.port, timeout=float(health.timeout)))
        else:
            found.append(
                m.Check(
                    "http",
                    url=f"http://{common.in_url(address)}:{listen.port}{health.http.path}",
                    status=health.http.status,
                    headers=dict(sorted(health.http.headers.items())),
                    timeout=float(health.timeout),
                )
            )
    if health.tcp:
        address = _address(host, service, health.tcp.port, "health.tcp.port")
        port = service.listen(health.tcp.port).port
        found.append(m.Check("tcp", address=address, port=port, timeout=float(health.timeout)))
    if health.command:
        found.append(
            m.Check("command", argv=tuple(health.command.argv), user=health.command.user, timeout=float(health.timeout))
        )
    return tuple(found)


def _address(host: Host, service: Service, name: str, path: str) -> str:
    """An address under which the host itself reaches a listener."""
    listen = service.listen(name)
    found = common.addresses(host, listen)
    if not found:
        raise common.fail(
            host,
            service,
            path,
            f"{name} listens on {listen.address}, where {host.name} has no address",
            f"hearth_addresses: {{{listen.address}: ...}} in the host's variables",
        )
    return "127.0.0.1" if found[0] == "*" else found[0]
