# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The firewall (``provides: {firewall: nftables}``): one table, default deny, one fragment per service.

Only the table ``inet hearth`` is ours: it is replaced in one transaction, the ruleset is never flushed, and what other
programs forward is left alone. Ports that podman publishes are rewritten (DNAT) before routing and pass ``forward``,
never ``input``: they have fragments of their own in ``forward.d``.
"""

from __future__ import annotations

import ipaddress
import typing as t
from dataclasses import dataclass

from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.plugin_utils.errors import nearest
from ansible_collections.hearth.homelab.plugins.plugin_utils.model import Fleet, Host, Service
from ansible_collections.hearth.homelab.plugins.plugin_utils.plan import PlanBuilder
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import common, quadlet
from ansible_collections.hearth.homelab.plugins.plugin_utils.schema import ZONES, Contract, Listen

DIRECTORY = f"{common.ETC}/nftables"
MAIN = f"{DIRECTORY}/hearth.nft"
UNIT = "hearth-firewall.service"
CONTRACTS: tuple[str, ...] = t.get_args(Contract)

_RULESET = """\
{head}#
# Replaces the table `inet hearth` in one transaction (nft -f); no other table is touched.
table inet hearth
delete table inet hearth

table inet hearth {{
{sets}\
    chain input {{
        type filter hook input priority filter; policy drop;

        iifname "lo" accept
        ct state vmap {{ invalid : drop, established : accept, related : accept }}

        # Errors and path MTU (RFC 4890, RFC 1122), ping, group membership.
        icmp type {{ destination-unreachable, time-exceeded, parameter-problem, echo-request }} accept
        ip protocol igmp accept
        icmpv6 type {{ destination-unreachable, packet-too-big, time-exceeded, parameter-problem }} accept
        icmpv6 type {{ echo-request, echo-reply }} accept

        # IPv6 does not work without neighbour discovery (RFC 4861: never forwarded, so the hop limit is still 255),
        # multicast listener discovery (RFC 2710, RFC 3810) and, where a router asks for it, DHCPv6 (RFC 8415).
        icmpv6 type {{ nd-router-solicit, nd-router-advert }} ip6 hoplimit 255 accept
        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-redirect }} ip6 hoplimit 255 accept
        ip6 saddr fe80::/10 icmpv6 type {{ mld-listener-query, mld-listener-report }} accept
        ip6 saddr fe80::/10 icmpv6 type {{ mld-listener-done, mld2-listener-report }} accept
        ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept
{dns}
        # No rate limit for SSH: sshd has its own for each source (PerSourcePenalties, on by default since OpenSSH 9.8),
        # and a limit here would hit Ansible's own connections.
        include "{directory}/input.d/*.nft"
    }}

    chain forward {{
        type filter hook forward priority filter; policy accept;
{forward}\
    }}
{published}\
}}
"""

_FORWARD = """\

        # Only what goes to the bridges of our containers; everything else is other programs' business.
        ct state { established, related } accept
        oifname $container_bridges ct status dnat goto published
        # What is not published is reached by other containers only, not by who routes to a container's address.
        oifname $container_bridges iifname != $container_bridges drop
"""

_PUBLISHED = """\

    # Published ports, by the port that was asked for. What no fragment decides is accepted: it is not ours.
    chain published {{
        include "{directory}/forward.d/*.nft"
    }}
"""

_DNS = """\

        # The resolver of container networks listens on their bridges.
        iifname $container_bridges meta l4proto { tcp, udp } th dport 53 accept
"""

# A unit of our own: Debian's nftables.service begins with `flush ruleset`, which removes the tables of netavark, Docker
# and libvirt. No ExecStop: stopping it must not open the host.
_SERVICE: dict[str, common.Pairs] = {
    "Unit": [
        ("Description", "Hearth firewall (nftables table inet hearth)"),
        ("Documentation", "man:nft(8)"),
        ("DefaultDependencies", "no"),
        ("After", "local-fs.target systemd-modules-load.service"),
        ("Before", "network-pre.target shutdown.target"),
        ("Wants", "network-pre.target"),
        ("Conflicts", "shutdown.target"),
        ("RequiresMountsFor", DIRECTORY),
    ],
    "Service": [
        ("Type", "oneshot"),
        ("RemainAfterExit", "yes"),
        ("ExecStart", f"/usr/sbin/nft -f {MAIN}"),
        ("ExecReload", f"/usr/sbin/nft -f {MAIN}"),
        ("ProtectHome", "yes"),
        ("ProtectSystem", "full"),
    ],
    "Install": [("WantedBy", "sysinit.target")],
}


@dataclass(frozen=True)
class Source:
    """Who may connect: nftables expressions, one rule for each; an empty one is everybody."""

    name: str
    matches: tuple[str, ...]


@dataclass(frozen=True)
class ZoneSets:
    """What a zone is on this host: interface patterns and networks. With both, both must match."""

    interfaces: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()

    def of(self, version: int) -> list[str]:
        """The networks of one IP version, without overlaps."""
        parsed = [ipaddress.ip_network(network) for network in self.networks]
        if version == 4:
            return [
                str(net)
                for net in ipaddress.collapse_addresses(n for n in parsed if isinstance(n, ipaddress.IPv4Network))
            ]
        return [
            str(net) for net in ipaddress.collapse_addresses(n for n in parsed if isinstance(n, ipaddress.IPv6Network))
        ]


def render(fleet: Fleet, host: Host, plan: PlanBuilder) -> None:
    provider = host.provider("firewall")
    if provider is None:
        return
    owner = provider.name
    for path in (common.ETC, DIRECTORY, f"{DIRECTORY}/input.d", f"{DIRECTORY}/forward.d"):
        common.directory(plan, owner, path)
    zones = {name: _zone(fleet, host, name) for name in sorted({*ZONES, *host.variables.hearth_zones})}
    for service in host.services.values():
        for chain, text in (
            ("input", _input(fleet, host, service, zones)),
            ("forward", _published(fleet, host, service, zones)),
        ):
            if text:
                path = f"{DIRECTORY}/{chain}.d/{service.name}.nft"
                fragment = plan.file(service.name, path, common.header(service.name) + text)
                if _is_way_in(service):
                    # The firewall alone (its role by itself) must not close the port that its own controller came by.
                    plan.need(UNIT, fragment)
    plan.file(owner, MAIN, ruleset(host, owner, zones))
    plan.add(m.Firewall(common.TABLE, owner, path=MAIN))
    plan.validator("nftables", owner, ("/usr/sbin/nft", "-c", "-f", MAIN), (f"{DIRECTORY}/",))
    # The Firewall item loads a changed ruleset; the unit is for the next boot and restarts only for itself.
    plan.add(m.Unit(UNIT, owner, enabled=True, running=True, guarded=True))
    plan.trigger(UNIT, "restart", plan.file(owner, f"/etc/systemd/system/{UNIT}", common.unit_file(owner, _SERVICE)))


def _is_way_in(service: Service) -> bool:
    native = service.contribution.run.native
    return native is not None and any(unit.guarded for unit in native.units)


def ruleset(host: Host, service: str, zones: t.Mapping[str, ZoneSets]) -> str:
    """The main file. It names no service: fragments do."""
    bridges = quadlet.bridges(host)
    sets = ""
    if bridges:
        sets += f"    define container_bridges = {{ {_names(bridges)} }}\n\n"
    for name, zone in sorted(zones.items()):
        for version in (4, 6):
            networks = zone.of(version)
            if networks:
                elements = ", ".join(networks)
                sets += f"    set {name}_ipv{version} {{\n        type ipv{version}_addr\n        flags interval\n"
                sets += f"        elements = {{ {elements} }}\n    }}\n\n"
    return _RULESET.format(
        head=common.header(service),
        sets=sets,
        dns=_DNS if quadlet.networks(host) else "",
        directory=DIRECTORY,
        forward=_FORWARD if bridges else "",
        published=_PUBLISHED.format(directory=DIRECTORY) if bridges else "",
    )


# --- who -------------------------------------------------------------------------------------------------------------


def _zone(fleet: Fleet, host: Host, name: str) -> ZoneSets:
    """A zone as the inventory declares it, or what it is by itself: the mesh's addresses, the containers' bridges."""
    declared = host.variables.hearth_zones.get(name)
    if declared and (declared.interfaces or declared.networks):
        return ZoneSets(tuple(sorted(set(declared.interfaces))), tuple(sorted(set(declared.networks))))
    if name == "containers":
        return ZoneSets(interfaces=tuple(quadlet.bridges(host)))
    if name == "mesh":
        found = {str(ip) for peer in fleet.hosts.values() for ip in _literals(peer.addresses.get("mesh", ()))}
        return ZoneSets(networks=tuple(sorted(str(ipaddress.ip_network(ip)) for ip in found)))
    return ZoneSets()


def _literals(found: t.Iterable[str]) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    return [ip for entry in found if (ip := common.literal(entry)) is not None and not ip.is_loopback]


def sources(
    fleet: Fleet, host: Host, service: Service, entries: t.Iterable[str], zones: t.Mapping[str, ZoneSets], path: str
) -> list[Source]:
    """The ``from`` entries of a listener: zones, hosts, groups of hosts, or contracts (the hosts that provide them)."""
    groups = {group for peer in fleet.hosts.values() for group in peer.groups} | {"all"}
    found = []
    for entry in sorted(set(entries)):
        if entry in zones:
            found.append(Source(entry, _zone_matches(host, service, entry, zones[entry], path)))
            continue
        if entry in fleet.hosts:
            peers = [fleet.hosts[entry]]
        elif entry in groups:
            peers = [peer for peer in fleet.hosts.values() if entry == "all" or entry in peer.groups]
        elif entry in CONTRACTS:
            peers = [peer for peer, _provider in fleet.providers(entry)]
        else:
            known = {*zones, *fleet.hosts, *groups, *CONTRACTS}
            raise common.fail(
                host,
                service,
                path,
                f"{entry!r} is neither a zone nor a host, a group of hosts or a contract",
                nearest(entry, known) or f"zones: {', '.join(sorted(zones))}",
            )
        found.append(Source(entry, _host_matches(host, service, entry, peers, path)))
    return found


def _zone_matches(host: Host, service: Service, name: str, zone: ZoneSets, path: str) -> tuple[str, ...]:
    if not (zone.interfaces or zone.networks):
        if name == "wan":
            return ("",)  # everybody
        if name == "containers":
            return ()  # there is none on this host
        raise common.fail(
            host,
            service,
            path,
            f"the zone {name!r} has neither networks nor interfaces here: the port would stay closed",
            f"hearth_zones: {{{name}: {{networks: [192.0.2.0/24]}}}} in the inventory",
        )
    interfaces = f"iifname {{ {_names(zone.interfaces)} }}" if zone.interfaces else ""
    if not zone.networks:
        return (interfaces,)
    by_network = [
        f"{'ip' if version == 4 else 'ip6'} saddr @{name}_ipv{version}" for version in (4, 6) if zone.of(version)
    ]
    return tuple(f"{interfaces} {match}".strip() for match in by_network)


def _host_matches(host: Host, service: Service, name: str, peers: t.Iterable[Host], path: str) -> tuple[str, ...]:
    """Matches for the addresses of hosts. This host itself needs none: it comes through lo."""
    others = [peer for peer in peers if peer.name != host.name]
    found = {ip for peer in others for entries in peer.addresses.values() for ip in _literals(entries)}
    if others and not found:
        raise common.fail(
            host,
            service,
            path,
            f"{name!r} has no address: the port would stay closed",
            "hearth_addresses: {lan: ...} in the variables of " + ", ".join(sorted(peer.name for peer in others)),
        )
    matches = []
    for version, family in ((4, "ip"), (6, "ip6")):
        ordered = sorted((ip for ip in found if ip.version == version), key=int)
        if ordered:
            matches.append(f"{family} saddr {{ {', '.join(map(str, ordered))} }}")
    return tuple(matches)


def _names(interfaces: t.Iterable[str]) -> str:
    """Interface names in quotes; a trailing * is a wildcard for nft as well."""
    return ", ".join(f'"{name}"' for name in sorted(interfaces))


# --- what ------------------------------------------------------------------------------------------------------------


def _listens(host: Host, service: Service, verb: str) -> t.Iterator[tuple[str, Listen, str]]:
    """Its `listen` entries with the path of their `from`, which says nothing on loopback: RenderError."""
    for name, listen in sorted(service.contribution.listen.items()):
        path = f"listen.{name}.from"
        if listen.from_ and listen.address == "loopback":
            message = f"{name} {verb} on loopback only, where nobody else can connect"
            raise common.fail(host, service, path, message, "address: lan, or no from")
        yield name, listen, path


def _input(fleet: Fleet, host: Host, service: Service, zones: t.Mapping[str, ZoneSets]) -> str:
    """Rules for what programs on the host listen on."""
    if quadlet.bridged(service):
        return ""
    rules = []
    for name, listen, path in _listens(host, service, "listens"):
        for source in sources(fleet, host, service, listen.from_, zones, path):
            for match in source.matches:
                for protocol in sorted(set(listen.protocol)):
                    rules.append(
                        _rule(match, f"{protocol} dport {listen.port}", "accept", f"{name} from {source.name}")
                    )
    return "".join(rules)


def _published(fleet: Fleet, host: Host, service: Service, zones: t.Mapping[str, ZoneSets]) -> str:
    """Rules for ports that podman publishes to the outside: who may, then nobody else."""
    ports: dict[str, set[tuple[str, int]]] = {}
    for name, address, port, _inner, protocol in quadlet.published(host, service):
        if address != "127.0.0.1":
            ports.setdefault(name, set()).add((protocol, port))
    rules = []
    for name, listen, path in _listens(host, service, "is published"):
        for protocol, port in sorted(ports.get(name, ())):
            # The destination port is rewritten already: conntrack has the one that was asked for.
            what = f"meta l4proto {protocol} ct original proto-dst {port}"
            for source in sources(fleet, host, service, listen.from_, zones, path):
                rules += [_rule(match, what, "accept", f"{name} from {source.name}") for match in source.matches]
            rules.append(_rule("", what, "drop", f"{name} from nobody else"))
    return "".join(rules)


def _rule(match: str, what: str, verdict: str, comment: str) -> str:
    """One rule; nft's comments have at most 128 bytes."""
    return " ".join(part for part in (match, what, verdict, f'comment "{comment[:120]}"') if part) + "\n"
