# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What cannot be seen in one contribution alone: conflicts between services, hosts and the inventory.

Pure functions over the composed fleet; every check looks at all hosts and adds what it finds to a Report.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
import typing as t
from collections import defaultdict
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ansible_collections.hearth.homelab.plugins.plugin_utils.errors import Report, nearest, short_path
from ansible_collections.hearth.homelab.plugins.plugin_utils.explain import dotted
from ansible_collections.hearth.homelab.plugins.plugin_utils.images import InvalidReferenceError, Reference, stand_in
from ansible_collections.hearth.homelab.plugins.plugin_utils.layers import NOWHERE, Place
from ansible_collections.hearth.homelab.plugins.plugin_utils.model import Fleet, Host, Service
from ansible_collections.hearth.homelab.plugins.plugin_utils.schema import (
    OPEN_ACCESS,
    ZONES,
    Backup,
    Contract,
    Contribution,
    External,
    GenerateKeypair,
    Listen,
    Model,
    SecretSpec,
    System,
    Version,
)
from ansible_collections.hearth.homelab.plugins.plugin_utils.sops_keys import PEOPLE, Entry

Path = t.Sequence[str | int]

#: Contracts of the schema that nothing realises in this release: (name, whether a contribution uses it). Each use is
#: said in the host's plan; none is ignored silently.
UNREALISED: tuple[tuple[str, t.Callable[[Contribution], bool]], ...] = (
    ("backup", lambda c: c.backup != Backup()),
    ("database.mariadb", lambda c: c.database.mariadb is not None),
    ("database.redis", lambda c: c.database.redis is not None),
    ("oidc", lambda c: c.oidc is not None),
    ("persist", lambda c: bool(c.persist)),
    ("renamed_from", lambda c: bool(c.renamed_from)),
    ("smtp", lambda c: c.smtp),
    ("version", lambda c: c.version != Version()),
)

#: Contracts whose provider renders what services of other hosts contribute.
FLEET_CONTRACTS: tuple[str, ...] = ("metrics", "alerts", "route", "dashboard", "status", "grafana", "names", "mesh")

_CONTRACTS: tuple[str, ...] = t.get_args(Contract)


@dataclass(frozen=True)
class SecretNames:
    """Names of one host's secrets: of its SOPS files (a later file has won) and of ``<service>_secrets`` variables."""

    entries: dict[str, Entry] = field(default_factory=dict)
    variables: frozenset[str] = frozenset()
    unreadable: tuple[tuple[str, int, str], ...] = ()  # file, line, what is wrong with it
    file: str = "secrets/HOST.sops.yml"  # where a missing one belongs
    known: str = ""  # where public halves of key pairs are


@dataclass(frozen=True)
class Facts:
    """What the checks need besides the fleet."""

    #: Where a key path of a service (or, with an empty service, of a host's variables) was written.
    locate: t.Callable[[str, str, Path], Place] = lambda _host, _service, _path: NOWHERE
    disabled: t.Mapping[str, t.Mapping[str, Place]] = field(default_factory=dict)
    #: Services that could not be composed: what depends on them is not a problem of its own.
    broken: t.Container[tuple[str, str]] = frozenset()
    groups: t.Mapping[str, t.Sequence[str]] = field(default_factory=dict)
    secrets: t.Mapping[str, SecretNames] = field(default_factory=dict)
    roles: t.Collection[str] = ()


@dataclass
class _Check:
    fleet: Fleet
    facts: Facts
    report: Report

    def error(
        self, host: str, service: str, path: Path, message: str, remedy: str = "", others: t.Iterable[str] = (),
        at: Place = NOWHERE,
    ) -> None:  # fmt: skip
        """``at``: where it is written, if that is not where ``path`` of the service is."""
        where = (self.facts.locate(host, service, path) if at is NOWHERE else at).where
        self.report.error(
            message,
            host=host,
            service=service,
            path=dotted(path),
            remedy=remedy,
            others=tuple(sorted(set(others) - {host})),
            **where,
        )

    def warn(self, host: str, service: str, path: Path, message: str, remedy: str = "") -> None:
        where = self.facts.locate(host, service, path).where
        self.report.warn(message, host=host, service=service, path=dotted(path), remedy=remedy, **where)

    def place(self, host: str, service: str, path: Path) -> str:
        found = self.facts.locate(host, service, path)
        return f" ({short_path(found.file)}:{found.line})" if found.file else ""


def check(fleet: Fleet, facts: Facts | None = None) -> Report:
    """All conflicts of a fleet."""
    context = _Check(fleet, facts or Facts(), Report())
    for function in (
        _platforms, _ports, _mountpoints, _routes, _databases, _units, _users, _files, _requires, _cycles,
        _access, _protect, _offsite, _secrets, _people_secrets, _providers, _ranges, _addresses, _from, _reachable,
        _networks, _alert_units, _external,
    ):  # fmt: skip
        function(context)
    return context.report


def notices(fleet: Fleet, host: Host) -> list[tuple[str, str]]:
    """Standing notices of a host's plan, as (contract, text): what nothing provides yet, and accepted risks."""
    users: dict[str, list[str]] = defaultdict(list)
    unprotected: list[str] = []
    unlocked: list[str] = []
    monitored = bool(fleet.providers("metrics"))
    for service in host.services.values():
        contribution = service.contribution
        for contract, used in UNREALISED:
            if used(contribution):
                users[contract].append(service.name)
        if contribution.metrics and not monitored:
            users["metrics"].append(service.name)
        if contribution.protect and contribution.protect.class_ in ("critical", "standard"):
            unprotected.append(service.name)
        container = contribution.run.container
        replaced = container and stand_in(host.variables.hearth_image_overrides, container.image) is not None
        if container and not replaced and not service.digest and "@" not in container.image:
            unlocked.append(f"{container.image} ({service.name})")
    found = [
        (contract, f"contract {contract} has no provider yet: declared by {', '.join(sorted(names))}")
        for contract, names in sorted(users.items())
    ]
    if unprotected:
        reason = host.variables.hearth_protect_accept.get("offsite")
        why = f"accepted: {reason}" if reason else "hearth_protect_accept: {offsite: REASON} accepts it"
        found.append(("offsite", f"no offsite tier for {', '.join(sorted(unprotected))} ({why})"))
    if unlocked:
        found.append(
            (
                "images",
                f"no digest locks {', '.join(sorted(unlocked))}: what such a tag names may change (make pin locks the "
                "image of a role; for another, write its digest into the reference: NAME:TAG@sha256:...)",
            )
        )
    return found


# --- within one host -------------------------------------------------------------------------------------------------


def _platforms(check: _Check) -> None:
    for host, service in check.fleet.services():
        system = host.variables.hearth_platform.system
        platform = f"{system}/{host.architecture}"
        allowed = service.contribution.platforms
        if platform not in allowed:
            check.error(
                host.name, service.name, ("platforms",),
                f"the host is {platform}; allowed: {', '.join(allowed)}",
                f"disable it on this host (hearth_services: {{{service.name}: {{enabled: false}}}}), or correct "
                "hearth_platform",
            )  # fmt: skip


def _overlap(one: str, other: str) -> bool:
    return one == other or "any" in (one, other)


def _ports(check: _Check) -> None:
    for host in check.fleet.hosts.values():
        taken: dict[tuple[str, int], list[tuple[Service, str, Listen]]] = defaultdict(list)
        for service in host.services.values():
            for name, listen in service.contribution.listen.items():
                for protocol in listen.protocol:
                    for other, entry, held in taken[(protocol, listen.port)]:
                        if _overlap(listen.address, held.address):
                            whose = (
                                f"service {other.name} listens there too as {entry}" if other is not service
                                else f"its own {entry} listens there too"
                            )  # fmt: skip
                            check.error(
                                host.name, service.name, ("listen", name, "port"),
                                f"port {listen.port}/{protocol}: {whose}"
                                + check.place(host.name, other.name, ("listen", entry, "port")),
                                "give one of them another port: an option of its role, `options:` of an instance, or "
                                f"override: {{listen: {{{name}: {{port: NUMBER}}}}}}",
                            )  # fmt: skip
                    taken[(protocol, listen.port)].append((service, name, listen))


def _mountpoints(check: _Check) -> None:
    for host in check.fleet.hosts.values():
        found = sorted(
            (entry.mountpoint, service.name, name)
            for service in host.services.values()
            for name, entry in service.contribution.storage.items()
        )
        for index, (path, service_name, name) in enumerate(found):
            for other_path, other, other_name in found[index + 1 :]:
                if not other_path.startswith(path):
                    break  # sorted: nothing further lies below
                if other_path != path and not other_path.startswith(path.rstrip("/") + "/"):
                    continue  # /a-b between /a and /a/b
                if other == service_name and other_path != path:
                    continue  # storage below storage of the same service is a choice of its role
                relation = "is" if other_path == path else "lies below"
                check.error(
                    host.name, other, ("storage", other_name, "mountpoint"),
                    f"{other_path} {relation} the mountpoint {path} of service {service_name}"
                    + check.place(host.name, service_name, ("storage", name, "mountpoint")),
                    "every storage has a path of its own; use {{ service.name }} in it",
                )  # fmt: skip


def _units(check: _Check) -> None:
    for host in check.fleet.hosts.values():
        taken: dict[str, str] = {}
        for service in host.services.values():
            for unit in service.units:
                other = taken.setdefault(unit, service.name)
                if other != service.name:
                    check.error(
                        host.name, service.name, ("run",), f"the unit {unit} is service {other}'s too",
                        "rename one of the services, or disable it",
                    )  # fmt: skip


def _users(check: _Check) -> None:
    for host in check.fleet.hosts.values():
        ids: dict[int, Service] = {}
        for service in host.services.values():
            user = service.contribution.user
            if user is None or service.uid is None:
                continue
            other = ids.setdefault(service.uid, service)
            if other is service:
                continue
            held = other.contribution.user or user  # only services with a user are in `ids`
            if held.name != user.name:
                check.error(
                    host.name, service.name, ("user", "id"),
                    f"the user id {service.uid} of {user.name} is that of {held.name} (service {other.name})"
                    + check.place(host.name, other.name, ("user", "id")),
                    f"give one of them another number in hearth_ids: {{users: {{{user.name}: NUMBER}}}}",
                )  # fmt: skip
            elif service.role != other.role and not (user.shared and held.shared):
                check.error(
                    host.name, service.name, ("user", "name"),
                    f"the user {user.name} (id {service.uid}) is service {other.name}'s too, and not both say "
                    "`shared: true`"
                    + check.place(host.name, other.name, ("user", "name")),
                    "user: {shared: true} on both shares it on purpose; else give one another name and id",
                )  # fmt: skip


def _files(check: _Check) -> None:
    for host in check.fleet.hosts.values():
        taken: dict[str, tuple[str, int]] = {}
        for service in host.services.values():
            for index, file in enumerate(service.contribution.files):
                other, entry = taken.setdefault(file.path, (service.name, index))
                if (other, entry) != (service.name, index):
                    whose = f"service {other}" if other != service.name else f"the entry files[{entry}]"
                    check.error(
                        host.name, service.name, ("files", index, "path"),
                        f"the file {file.path} is made by {whose} too"
                        + check.place(host.name, other, ("files", entry, "path")),
                        "one service owns a file; write a fragment of its own below a directory that the program reads",
                    )  # fmt: skip


def _databases(check: _Check) -> None:
    for host in check.fleet.hosts.values():
        taken: dict[tuple[str, str], str] = {}
        for service in host.services.values():
            database = service.contribution.database
            for kind in ("postgresql", "mariadb"):
                wanted = getattr(database, kind)
                if wanted is None:
                    continue
                other = taken.setdefault((kind, wanted.name), service.name)
                if other != service.name:
                    check.error(
                        host.name, service.name, ("database", kind, "name"),
                        f"the {kind} database {wanted.name} is service {other}'s too"
                        + check.place(host.name, other, ("database", kind, "name")),
                        "use {{ service.name }} in the database's name",
                    )  # fmt: skip


# --- dependencies ----------------------------------------------------------------------------------------------------


def _requires(check: _Check) -> None:
    everywhere = {service.name for _host, service in check.fleet.services()}
    for host, service in check.fleet.services():
        for index, name in enumerate(service.contribution.requires):
            path = ("requires", index)
            if name in host.services or host.provider(name) or (host.name, name) in check.facts.broken:
                continue  # by its name, or by a contract that it provides
            elsewhere = [other.name for other in check.fleet.hosts.values() if name in other.services]
            if (
                elsewhere
                or check.fleet.providers(name)
                or any((other, name) in check.facts.broken for other in check.fleet.hosts)
            ):
                continue  # requires is satisfied by the fleet
            disabled = check.facts.disabled.get(host.name, {}).get(name)
            if disabled is not None:
                at = f" ({short_path(disabled.file)}:{disabled.line})" if disabled.file else ""
                check.error(
                    host.name, service.name, path, f"requires {name}, which is disabled on this host{at}",
                    f"enable {name}, or disable {service.name} too",
                )  # fmt: skip
            else:
                hint = nearest(name, everywhere | set(check.facts.roles))
                known = name in check.facts.roles
                check.error(
                    host.name, service.name, path, f"requires {name!r}, which no host of the fleet provides",
                    f"enable it: hearth_services: {{{name}: {{}}}}" if known else hint or "no role has that name",
                )  # fmt: skip


def edges(host: Host) -> dict[str, list[str]]:
    """Service -> services of the same host that start before it: named ones, its database and container engine."""
    found: dict[str, list[str]] = {}
    for service in host.services.values():
        names = [*service.contribution.requires, *service.contribution.wants]
        if service.contribution.database.postgresql:
            names.append("postgresql")
        if service.container:
            names.append("container")
        before = [host.services.get(name) or host.provider(name) for name in names]
        found[service.name] = list(dict.fromkeys(entry.name for entry in before if entry and entry is not service))
    return found


def find_cycles(graph: t.Mapping[str, t.Sequence[str]]) -> list[list[str]]:
    """One cycle of each knot of a graph, as a path that ends where it starts."""
    cycles: list[list[str]] = []
    done: set[str] = set()
    for start in graph:
        path: list[str] = []
        on_path: dict[str, int] = {}
        stack: list[tuple[str, t.Iterator[str]]] = []
        if start in done:
            continue
        stack.append((start, iter(graph[start])))
        path.append(start)
        on_path[start] = 0
        while stack:
            node, rest = stack[-1]
            for following in rest:
                if following in on_path:
                    cycle = path[on_path[following] :]
                    first = cycle.index(min(cycle))
                    cycle = cycle[first:] + cycle[:first]
                    if [*cycle, cycle[0]] not in cycles:
                        cycles.append([*cycle, cycle[0]])
                elif following not in done and following in graph:
                    stack.append((following, iter(graph[following])))
                    on_path[following] = len(path)
                    path.append(following)
                    break
            else:
                stack.pop()
                path.pop()
                del on_path[node]
                done.add(node)
    return cycles


def _cycles(check: _Check) -> None:
    for host in check.fleet.hosts.values():
        for cycle in find_cycles(edges(host)):
            service = host.services[cycle[0]]
            key = "requires" if cycle[1] in service.contribution.requires else "wants"
            check.error(
                host.name, service.name, (key,),
                f"a cycle: {' -> '.join(cycle)} (each requires or wants the next, and would have to start after it)",
                "remove one of these from requires or wants",
            )  # fmt: skip


# --- exposure --------------------------------------------------------------------------------------------------------


def _routes(check: _Check) -> None:
    taken: dict[str, tuple[str, str]] = {}
    for host, service in check.fleet.services():
        route = service.contribution.route
        if route is None:
            continue
        domain = host.variables.hearth_domain
        if domain is None:
            check.error(
                host.name, service.name, ("route",), "has a route, and hearth_domain is not set",
                "set hearth_domain to a domain of yours, such as home.example.com (it has no default), or remove the "
                "route: override: {route: null}",
            )  # fmt: skip
            continue
        name = domain if route.name == "@" else f"{route.name}.{domain}"
        other = taken.setdefault(name, (host.name, service.name))
        if other != (host.name, service.name):
            check.error(
                host.name, service.name, ("route", "name"),
                f"the route {name} is that of service {other[1]} on host {other[0]} too"
                + check.place(other[0], other[1], ("route", "name")),
                "override: {route: {name: ANOTHER}} for one of them",
                others=[other[0]],
            )  # fmt: skip


def _access(check: _Check) -> None:
    for host, service in check.fleet.services():
        route = service.contribution.route
        if route is None:
            continue
        groups = host.variables.hearth_access
        allowed = f"a group of hearth_access ({', '.join(sorted(groups)) or 'it has none'}), application or public"
        if route.access is None:
            check.error(
                host.name, service.name, ("route", "access"),
                f"the route does not say who may use it; allowed: {allowed}",
                "say route.access: GROUP, `application` (its own login) or `public`",
            )  # fmt: skip
        elif route.access not in groups and route.access not in OPEN_ACCESS:
            check.error(
                host.name, service.name, ("route", "access"),
                f"{route.access!r} is no access group; allowed: {allowed}",
                nearest(route.access, (*groups, *OPEN_ACCESS)),
            )  # fmt: skip


def _reaches(check: _Check, host: Host, listen: Listen, client: Host, contract: str) -> bool:
    """Whether ``client`` may connect to an entry of another host."""
    if listen.address == "loopback":
        return False
    for name in listen.from_:
        if name in (contract, client.name) or client.name in check.facts.groups.get(name, ()):
            return True
        zone = host.variables.hearth_zones.get(name)
        if zone is not None and zone.networks:
            networks = [ipaddress.ip_network(network) for network in zone.networks]
            if any(_inside(address, networks) for addresses in client.addresses.values() for address in addresses):
                return True
        elif client.addresses.get(name):
            return True
    return False


def _inside(address: str, networks: t.Iterable[t.Any]) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(found in network for network in networks)


def _reachable(check: _Check) -> None:
    needs: list[tuple[str, str, t.Callable[[Contribution], str | None]]] = [
        ("metrics", "metrics", lambda c: c.metrics.port if c.metrics else None),
        ("route", "route", lambda c: c.route.to if c.route else None),
    ]
    for contract, key, port_of in needs:
        providers = check.fleet.providers(contract)
        # Metrics are scraped by every provider; a route is realised by the host's own provider, if it has one.
        for host, service in check.fleet.services():
            name = port_of(service.contribution)
            if name is None or (contract == "route" and host.provider("route")):
                continue
            listen = service.contribution.listen[name]
            for client, provider in providers:
                if client.name == host.name or _reaches(check, host, listen, client, contract):
                    continue
                change = ("address: lan, " if listen.address == "loopback" else "") + (
                    f"from: [{', '.join((*listen.from_, contract))}]"
                )
                check.error(
                    host.name, service.name, ("listen", name, "from"),
                    f"{provider.name} on host {client.name} needs port {listen.port} ({key} of this service), which "
                    + ("listens on loopback only" if listen.address == "loopback" else "is not open to it"),
                    f"override: {{listen: {{{name}: {{{change}}}}}}}",
                    others=[client.name],
                )  # fmt: skip


def _from(check: _Check) -> None:
    for host, service in check.fleet.services():
        zones = {*ZONES, *host.variables.hearth_zones}
        known = {*zones, *check.fleet.hosts, *check.facts.groups, *_CONTRACTS}
        for entry, listen in service.contribution.listen.items():
            for index, name in enumerate(listen.from_):
                if name not in known:
                    check.error(
                        host.name, service.name, ("listen", entry, "from", index),
                        f"{name!r} is no zone, host, group or contract; zones: {', '.join(sorted(zones))}",
                        nearest(name, known),
                    )  # fmt: skip
            if listen.from_ and listen.address == "loopback":
                check.warn(
                    host.name, service.name, ("listen", entry, "from"),
                    f"port {listen.port} is opened to {', '.join(listen.from_)} and listens on loopback only",
                    f"override: {{listen: {{{entry}: {{address: lan}}}}}}",
                )  # fmt: skip


def _networks(check: _Check) -> None:
    for host, service in check.fleet.services():
        declared = host.variables.hearth_networks
        for index, name in enumerate(service.contribution.networks):
            if name not in declared:
                check.error(
                    host.name, service.name, ("networks", index),
                    f"the container network {name!r} is not declared; hearth_networks has: "
                    f"{', '.join(sorted(declared)) or 'nothing'}",
                    nearest(name, declared) or f"declare it: hearth_networks: {{{name}: {{}}}}",
                )  # fmt: skip


def _ranges(check: _Check) -> None:
    for host in check.fleet.hosts.values():
        ranges: list[tuple[str, tuple[str, ...], t.Any]] = []
        for name, zone in host.variables.hearth_zones.items():
            if name == "containers":
                continue  # it is made of the containers' networks
            for index, network in enumerate(zone.networks):
                ranges.append(
                    (f"zone {name}", ("hearth_zones", name, "networks", str(index)), ipaddress.ip_network(network))
                )
        for name, entry in host.variables.hearth_networks.items():
            if entry.subnet:
                ranges.append(
                    (
                        f"container network {name}",
                        ("hearth_networks", name, "subnet"),
                        ipaddress.ip_network(entry.subnet),
                    )
                )
        for (one, _path, network), (other, path, against) in itertools.combinations(ranges, 2):
            if one != other and network.version == against.version and network.overlaps(against):
                check.error(
                    host.name, "", path, f"{against} ({other}) overlaps {network} ({one})",
                    "give each zone and container network a range of its own",
                )  # fmt: skip


def _addresses(check: _Check) -> None:
    taken: dict[str, str] = {}
    for host in check.fleet.hosts.values():
        for zone, addresses in host.addresses.items():
            for address in addresses:
                try:
                    ipaddress.ip_address(address)
                except ValueError:
                    check.error(
                        host.name, "", ("hearth_addresses", zone), f"{address!r} is not an IP address",
                        "a plain IPv4 or IPv6 address, without a prefix length",
                    )  # fmt: skip
                    continue
                other = taken.setdefault(address, host.name)
                if other != host.name:
                    check.error(
                        host.name, "", ("hearth_addresses", zone), f"{address} is host {other}'s address too",
                        "every host has addresses of its own", others=[other],
                    )  # fmt: skip


def targets(value: object, path: tuple[str | int, ...] = ()) -> t.Iterator[tuple[tuple[str | int, ...], External]]:
    """Every target that a model names, at whatever depth, with the path of its key."""
    if isinstance(value, External):
        yield path, value
    if isinstance(value, Model):
        for name, info in type(value).model_fields.items():
            yield from targets(getattr(value, name), (*path, info.alias or name))
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from targets(entry, (*path, key))
    elif isinstance(value, list):
        for number, entry in enumerate(value):
            yield from targets(entry, (*path, number))


#: An absolute URL anywhere in a text.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>|,;]+")


def _urls(value: object) -> t.Iterator[str]:
    """Every URL in an option's value, at whatever depth."""
    if isinstance(value, str):
        yield from _URL.findall(value)
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _urls(key)
            yield from _urls(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _urls(entry)


def _calls(service: Service) -> t.Iterator[tuple[str, str]]:
    """What the options of a service make it call: the option's name, and a URL or HOST with or without a port."""
    for option, addresses in service.contribution.external.items():
        yield from ((option, address) for address in addresses)
    for name, value in service.options.items():
        yield from ((f"{service.role}_{name}", address) for address in _urls(value))


def _external(check: _Check) -> None:
    for host in check.fleet.hosts.values():
        if host.variables.hearth_external:
            continue
        inside = (
            f"inside are names below {host.variables.hearth_domain or 'hearth_domain'}, hosts of the fleet and addresses of "
            "hearth_zones"
        )
        for service in host.services.values():
            for option, address in dict.fromkeys(_calls(service)):
                if not _leads_inside(check.fleet, host, address):
                    check.error(
                        host.name, service.name, (option,),
                        f"calls {address}, which is outside, and hearth_external is false", inside,
                        at=check.facts.locate(host.name, "", (option,)),
                    )  # fmt: skip
            container = service.contribution.run.container
            registry = _registry(host, container.image) if container else ""
            if registry and not _leads_inside(check.fleet, host, registry):
                check.error(
                    host.name, service.name, ("run", "container", "image"),
                    f"is pulled from {registry}, which is outside, and hearth_external is false",
                    f"hearth_image_overrides: {{{registry}: a registry inside}}",
                )  # fmt: skip
        named = [("", path, target) for path, target in targets(host.variables)]
        for service in host.services.values():
            named += [(service.name, path, target) for path, target in targets(service.contribution)]
        for name, path, target in named:
            if target.external:
                check.error(
                    host.name, name, path, "a target outside, and hearth_external is false",
                    "`external: false` marks a target inside the lab; lab hosts refuse any other",
                )  # fmt: skip
                continue
            for address in target.addresses():
                if not _leads_inside(check.fleet, host, address):
                    check.error(
                        host.name, name, path, f"marked external: false, but {address} is not inside", inside
                    )  # fmt: skip


def _registry(host: Host, image: str) -> str:
    """The registry that an image is pulled from; empty where the reference names none, which podman cannot pull."""
    try:
        return Reference.parse(stand_in(host.variables.hearth_image_overrides, image) or image).registry
    except InvalidReferenceError:
        return ""


def _leads_inside(fleet: Fleet, host: Host, address: str) -> bool:
    """Whether a URL, or a HOST with or without a port, is of the fleet: this machine, a host, a name of its domain, an
    address of one of its networks."""
    try:
        found = urlsplit(address if "://" in address else f"//{address}").hostname or ""
    except ValueError:  # brackets that are no IPv6 address
        return False
    try:
        literal = ipaddress.ip_address(found)
    except ValueError:
        domain = host.variables.hearth_domain
        return found == "localhost" or found in fleet.hosts or bool(domain and f".{found}".endswith(f".{domain}"))
    networks = [
        ipaddress.ip_network(network) for zone in host.variables.hearth_zones.values() for network in zone.networks
    ]
    known = {entry for peer in fleet.hosts.values() for entries in peer.addresses.values() for entry in entries}
    return literal.is_loopback or str(literal) in known or any(literal in network for network in networks)


# --- protection and secrets ------------------------------------------------------------------------------------------


def _protect(check: _Check) -> None:
    for host, service in check.fleet.services():
        contribution = service.contribution
        data = [f"storage {', '.join(contribution.storage)}"] if contribution.storage else []
        data += [kind for kind in ("postgresql", "mariadb") if getattr(contribution.database, kind)]
        if data and contribution.protect is None:
            check.error(
                host.name, service.name, ("protect",), f"has data ({' and '.join(data)}) and no protection class",
                "say protect: {class: system | critical | standard | ephemeral}",
            )  # fmt: skip


def _offsite(check: _Check) -> None:
    for host, service in check.fleet.services():
        protect = service.contribution.protect
        if protect and protect.class_ == "critical" and "offsite" not in host.variables.hearth_protect_accept:
            check.error(
                host.name, service.name, ("protect", "class"),
                "class critical needs an offsite tier, and the fleet has none",
                "hearth_protect_accept: {offsite: REASON} accepts that; the plan keeps saying so",
            )  # fmt: skip


def _secrets(check: _Check) -> None:
    for host in check.fleet.hosts.values():
        names = check.facts.secrets.get(host.name)
        if names is None:
            continue
        used = any(service.contribution.secrets for service in host.services.values())
        for file, line, message in names.unreadable:
            if used:
                check.report.error(
                    f"the secrets file {message}", host=host.name, file=file, line=line,
                    remedy=f"encrypt it: sops encrypt --in-place {short_path(file)}"
                    if "encrypted" in message else "correct it, or remove it",
                )  # fmt: skip
        broken = {file for file, _line, _message in names.unreadable}
        for service in host.services.values():
            for key, spec in service.contribution.secrets.items():
                if _secret(check, host, service.name, key, spec, names, broken):
                    _public_half(check, host, service, key, spec, names)


def _secret(
    check: _Check, host: Host, service: str, key: str, spec: SecretSpec, names: SecretNames, broken: set[str]
) -> bool:
    """Whether there is a value; an error when not."""
    name = f"{service}/{key}"
    entry = names.entries.get(name)
    if name in names.variables or (entry is not None and entry.state == "encrypted"):
        return True
    file = short_path(entry.file if entry else names.file)
    remedy = f"sops {file} and set {key} below {service}"
    if spec.generate and not (entry and entry.state == "plain"):
        remedy = f"make it with playbooks/secrets.yml (make secrets), or {remedy}"
    path = ("secrets", key)
    if entry is None:
        if broken:
            return False  # it may be in the file that cannot be read
        near = [known.partition("/")[2] for known in names.entries if known.startswith(f"{service}/")]
        hint = nearest(key, near)
        check.error(
            host.name, service, path,
            f"the secret {key} is missing: {file} has no key {service}.{key}, nor has a file of the host's groups, "
            f"nor the variable {service}_secrets",
            remedy + (f" ({hint})" if hint else ""),
        )  # fmt: skip
    else:
        what = "has no value" if entry.state == "null" else "is not encrypted"
        check.report.error(
            f"the secret {key} {what} in {file}", host=host.name, service=service, path=".".join(path),
            file=entry.file, line=entry.line, remedy=remedy,
        )  # fmt: skip
    return False


def _public_half(check: _Check, host: Host, service: Service, key: str, spec: SecretSpec, names: SecretNames) -> None:
    """The public half of a key pair is plain data that plans are made of."""
    if not isinstance(spec.generate, GenerateKeypair) or service.secret(key) in host.public_keys:
        return
    check.error(
        host.name, service.name, ("secrets", key),
        f"the public half of the key pair {key} is not known: {short_path(names.known) or 'known.yml'} does not have it",
        "run playbooks/secrets.yml (make secrets), which writes it, and commit the file",
    )  # fmt: skip


def people(fleet: Fleet) -> dict[str, set[str]]:
    """Host with a proxy -> the people of access groups who log in there with basic_auth: their hashes are its secrets."""
    groups: dict[str, set[str]] = defaultdict(set)
    for host, service in fleet.services():
        route = service.contribution.route
        if route and route.access and route.access in host.variables.hearth_access:
            for client, _provider in fleet.providers("route"):
                if client.name == host.name or not host.provider("route"):
                    groups[client.name].update(host.variables.hearth_access[route.access])
    return groups


def _people_secrets(check: _Check) -> None:
    for name, persons in people(check.fleet).items():
        names = check.facts.secrets.get(name)
        if names is None:
            continue
        for person in sorted(persons):
            entry = names.entries.get(f"{PEOPLE}/{person}")
            if f"{PEOPLE}/{person}" in names.variables or (entry is not None and entry.state == "encrypted"):
                continue
            provider = check.fleet.hosts[name].provider("route")
            if entry is None and names.unreadable:
                continue
            what = "is missing" if entry is None else "has no value" if entry.state == "null" else "is not encrypted"
            check.report.error(
                f"the password hash of {person}, of an access group, {what}: key {PEOPLE}.{person}.password_hash",
                host=name, service=provider.name if provider else "", file=entry.file if entry else names.file,
                line=entry.line if entry else 0,
                remedy=f"sops {short_path(entry.file if entry else names.file)} and set it to what "
                "`caddy hash-password` prints",
            )  # fmt: skip


# --- contracts -------------------------------------------------------------------------------------------------------


def _providers(check: _Check) -> None:
    routes = check.fleet.providers("route")
    for host in check.fleet.hosts.values():
        offered: dict[str, str] = {}
        for service in host.services.values():
            for contract in service.contribution.provides:
                other = offered.setdefault(contract, service.name)
                if other != service.name:
                    check.error(
                        host.name, service.name, ("provides", contract),
                        f"service {other} provides {contract} on this host too",
                        "one provider of a contract for each host: disable one of them",
                    )  # fmt: skip
        for service in host.services.values():
            contribution = service.contribution
            if contribution.run.container and "container" not in offered:
                _absent(check, host, service.name, "run.container", "container", "podman", "on this host")
            if contribution.database.postgresql and "postgresql" not in offered:
                _absent(check, host, service.name, "database.postgresql", "postgresql", "postgresql", "on this host")
            if contribution.route and not routes:
                _absent(check, host, service.name, "route", "route", "caddy", "in the fleet")


def _absent(check: _Check, host: Host, service: str, path: str, contract: str, role: str, where: str) -> None:
    broken = any(
        (name, role) in check.facts.broken for name in ((host.name,) if "host" in where else check.fleet.hosts)
    )
    if broken:
        return  # its provider could not be composed: that is the error
    check.error(
        host.name, service, tuple(path.split(".")), f"nothing provides {contract} {where}",
        f"enable a service that does, such as hearth_services: {{{role}: {{}}}}",
    )  # fmt: skip


def _alert_units(check: _Check) -> None:
    units = {unit for _host, service in check.fleet.services() for unit in service.units}
    units |= {
        f"{service.name}-{timer}.{kind}"
        for _host, service in check.fleet.services()
        for timer in service.contribution.timers
        for kind in ("timer", "service")
    }
    for host, service in check.fleet.services():
        for index, alert in enumerate(service.contribution.alerts):
            if alert.unit and alert.unit not in units and not alert.unit.startswith("hearth-"):
                check.error(
                    host.name, service.name, ("alerts", index, "unit"),
                    f"the alert {alert.alert} names the unit {alert.unit}, which is in no plan: it would never fire",
                    nearest(alert.unit, units),
                )  # fmt: skip


#: Contracts of core roles that say how the host itself is; used by tests that every field is checked or realised.
SYSTEM_FIELDS: tuple[str, ...] = tuple(System.model_fields)
