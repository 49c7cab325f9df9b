# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Routes (``provides: {route: caddy}``): one site file per route that this proxy serves.

A proxy serves the routes of its own host, and those of hosts that have no proxy of their own and that it can reach.
Access groups are enforced here with HTTP basic authentication; there is no way to a route of a group without people.
"""

from __future__ import annotations

import re
import typing as t

from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.plugin_utils.model import Fleet, Host, Service
from ansible_collections.hearth.homelab.plugins.plugin_utils.plan import PlanBuilder
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import common
from ansible_collections.hearth.homelab.plugins.plugin_utils.schema import OPEN_ACCESS, Bypass, Route

SITES = "/etc/caddy/sites"
#: Service name of people's password hashes in secrets files and holes.
PEOPLE = "people"

#: What a release's Caddy calls the directive: 2.6 (Debian 13) knows only the first, 2.8 renamed it.
BASIC_AUTH: dict[str, str] = {"debian13": "basicauth"}
BASIC_AUTH_NEWER = "basic_auth"

# A path segment of a bypassed URL as the client sent it, before anything is decoded. Caddy's own path matcher decodes,
# cleans and ignores case, and hands the raw path on: for /admin/../api it says "below /api", and a backend that does
# not clean paths answers with /admin. So only paths that every program reads alike get past authentication: no segment
# that begins with a dot, no empty one, nothing that decodes to . / \ ; % or a control character.
_ESCAPE = (
    "%(?:2[0-46-9A-Da-d]|3[0-9ACDEFacdef]|[46][0-9A-Fa-f]|5[0-9ABDEFabdef]|7[0-9A-Ea-e]"
    "|[89ABDEFabdef][0-9A-Fa-f]|[Cc][2-9A-Fa-f])"
)
_FIRST = rf"(?:[A-Za-z0-9_~!$&'()*+,=:@-]|{_ESCAPE})"
_FURTHER = rf"(?:[A-Za-z0-9._~!$&'()*+,=:@-]|{_ESCAPE})"
SEGMENT = f"{_FIRST}{_FURTHER}*"


def render(fleet: Fleet, host: Host, plan: PlanBuilder) -> None:
    provider = host.provider("route")
    if provider is None:
        return
    common.directory(plan, provider, SITES)
    for origin, service, route in routes(fleet, host):
        backend = _backend(origin, service, route, host)
        if backend is None:
            plan.notices.append(
                f"route {_name(origin, service, route)}: {provider.name} on {host.name} cannot reach {service.name} on "
                f"{origin.name}, which listens on loopback only"
            )
            continue
        here = origin.name == host.name
        owner = service.name if here else provider.name
        file = service.name if here else f"{origin.name}.{service.name}"
        people = _people(origin, route)
        for person in people or ():
            plan.add(m.Secret(f"{PEOPLE}/{person}", owner))
        plan.file(
            owner,
            f"{SITES}/{file}.caddy",
            site(host.release, _name(origin, service, route), service.name, route, backend, people),
            group=provider.group,
            mode="0640",  # password hashes
        )
    for unit in common.running_units(provider):
        plan.trigger(unit, "reload", f"file:{SITES}/")


def routes(fleet: Fleet, host: Host) -> t.Iterator[tuple[Host, Service, Route]]:
    """The routes that this host's proxy serves, in the inventory's order."""
    for origin, service in fleet.services():
        route = service.contribution.route
        if route is None or origin.variables.hearth_domain is None:
            continue
        if origin.name == host.name or origin.provider("route") is None:
            yield origin, service, route


def _name(origin: Host, service: Service, route: Route) -> str:
    domain = origin.variables.hearth_domain
    if domain is None:
        raise common.fail(origin, service, "route", "hearth_domain is not set", "it has no default outside the lab")
    return domain if route.name == "@" else f"{route.name}.{domain}"


def _backend(origin: Host, service: Service, route: Route, host: Host) -> str | None:
    """``ADDRESS:PORT`` of the service as this proxy reaches it."""
    listen = service.listen(route.to)
    found: str | None
    if origin.name == host.name:
        first = next(iter(common.addresses(origin, listen)), None)
        found = "127.0.0.1" if first == "*" else first
    elif listen.address == "loopback":
        found = None
    else:
        # A mesh listener is reached over the mesh; everything else over the local network.
        address = common.literal(origin.address("mesh" if listen.address == "mesh" else "lan") or "")
        found = str(address) if address else None
    return f"{common.in_url(found)}:{listen.port}" if found else None


def _people(origin: Host, route: Route) -> tuple[str, ...] | None:
    """Who may use the route; None where the proxy does not ask."""
    if route.access in OPEN_ACCESS:
        return None
    return tuple(sorted(set(origin.variables.hearth_access.get(route.access or "", ()))))


def site(release: str, name: str, service: str, route: Route, backend: str, people: tuple[str, ...] | None) -> str:
    """One site of the Caddyfile. ``people`` as ``_people`` gives them: an empty tuple is nobody."""
    lines = [
        f"# Managed by Hearth for the service {service}. Changes made here are reported and overwritten.",
        f"{name} {{",
        "\timport hearth",
    ]
    if people is not None and not people:
        lines += [f"\t# The access group {route.access} has no people.", "\trespond 403"]
        return "\n".join([*lines, "}", ""])
    if route.headers:
        lines.append("\theader {")
        lines += ["\t\tdefer", *(f"\t\t{key} {quoted(value)}" for key, value in sorted(route.headers.items()))]
        lines.append("\t}")
    if route.max_body is not None:
        lines += ["\trequest_body {", f"\t\tmax_size {route.max_body}", "\t}"]
    if not route.websocket:
        lines += ["\t@websocket header Upgrade *", "\trespond @websocket 403"]
    if people is None:
        lines += _proxy(route, backend, "\t", authenticated=False)
        return "\n".join([*lines, "}", ""])
    for number, entry in enumerate(route.bypass):
        lines += [
            f"\t@bypass{number} vars_regexp {{http.request.orig_uri}} `{bypass(entry)}`",
            f"\thandle @bypass{number} {{",
            *_proxy(route, backend, "\t\t", authenticated=False),
            "\t}",
        ]
    directive = BASIC_AUTH.get(release, BASIC_AUTH_NEWER)
    lines += ["\thandle {", f"\t\t{directive} bcrypt {quoted(name)} {{"]
    lines += [f"\t\t\t{person} {m.HOLE.format(f'{PEOPLE}/{person}')}" for person in people]
    lines += ["\t\t}", *_proxy(route, backend, "\t\t", authenticated=True), "\t}", "}", ""]
    return "\n".join(lines)


def _proxy(route: Route, backend: str, indent: str, *, authenticated: bool) -> list[str]:
    """The reverse proxy. Caddy itself replaces X-Forwarded-For, -Proto and -Host that a client sent."""
    scheme = "https://" if route.scheme == "https" else ""
    inner = []
    if authenticated:
        # The password was for the proxy; who it is, is for the application.
        inner = ["header_up -Authorization", "header_up Remote-User {http.auth.user.id}"]
    if not inner:
        return [f"{indent}reverse_proxy {scheme}{backend}"]
    return [f"{indent}reverse_proxy {scheme}{backend} {{", *(f"{indent}\t{line}" for line in inner), f"{indent}}}"]


def bypass(entry: Bypass) -> str:
    """The regular expression of the raw request URI for which authentication is skipped."""
    if entry.path is not None:
        return rf"^{_escaped(entry.path)}(?:\?.*)?$"
    prefix = (entry.prefix or "").rstrip("/")
    return rf"^{_escaped(prefix)}(?:/{SEGMENT})*/?(?:\?.*)?$"


def _escaped(path: str) -> str:
    # The schema allows letters, digits and / . _ ~ - only; of these, Go's regular expressions know the dot.
    return re.sub(r"([^A-Za-z0-9/_~-])", r"\\\1", path)


def quoted(text: str) -> str:
    """A Caddyfile token: in double quotes, where only a double quote is escaped. Placeholders are left to the owner."""
    return '"' + text.replace('"', '\\"') + '"'
