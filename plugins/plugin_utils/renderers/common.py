# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What several renderers share: errors, dependencies between services, unit files and their quoting."""

from __future__ import annotations

import ipaddress
import re
import typing as t

from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.plugin_utils.errors import Problem
from ansible_collections.hearth.homelab.plugins.plugin_utils.model import Host, Service
from ansible_collections.hearth.homelab.plugins.plugin_utils.plan import PlanBuilder
from ansible_collections.hearth.homelab.plugins.plugin_utils.schema import Contribution, Listen, Run

#: Where the host keeps the values of secrets (module_utils/layout.py): root's only, one file each.
SECRETS = "/var/lib/hearth/secrets"
#: Configuration that Hearth itself introduces on hosts.
ETC = "/etc/hearth"
#: The unit that lets a service start only on storage that holds what it should (design section 6).
GATE = "hearth-gate@{0}.service"
#: The nftables table that is ours; nothing else is ever touched.
TABLE = "inet hearth"

How = t.Literal["restart", "reload"]
Pairs = list[tuple[str, str]]


class RenderError(ValueError):
    """Something in a contribution cannot be rendered for this host. ``registry.render_host`` collects them."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def fail(host: Host, service: Service | None, path: str, message: str, remedy: str = "", **where: t.Any) -> RenderError:
    """The error for a key path of a service (or of the host's own variables)."""
    name = service.name if service else ""
    return RenderError(Problem(host=host.name, service=name, path=path, message=message, remedy=remedy, **where))


# --- services and their dependencies ---------------------------------------------------------------------------------


def resolve(host: Host, name: str) -> Service | None:
    """The service of this host that a ``requires`` or ``wants`` names: by its name, else by a contract it provides."""
    return host.services.get(name) or host.provider(name)


def required(host: Host, service: Service) -> list[Service]:
    """The services of this host that it cannot run without: those it names, its database and its container engine."""
    wanted = list(service.contribution.requires)
    if service.contribution.database.postgresql:
        wanted.append("postgresql")
    if service.container:
        wanted.append("container")
    return _distinct(host, service, wanted)


def wanted(host: Host, service: Service) -> list[Service]:
    """The services of this host that it uses when they are there."""
    strong = {entry.name for entry in required(host, service)}
    return [entry for entry in _distinct(host, service, service.contribution.wants) if entry.name not in strong]


def _distinct(host: Host, service: Service, names: t.Iterable[str]) -> list[Service]:
    found = {entry.name: entry for entry in (resolve(host, name) for name in names) if entry is not None}
    found.pop(service.name, None)
    return [found[name] for name in sorted(found)]


def running_units(service: Service) -> tuple[str, ...]:
    """The units of a service that are kept running (not oneshots that a timer starts)."""
    native = service.contribution.run.native
    if native is None:
        return service.units
    return tuple(unit.name for unit in native.units if unit.running)


def trigger(plan: PlanBuilder, service: Service, how: How | None, *items: str) -> None:
    """The service's own daemons are restarted or reloaded (``None``: as each unit says) when an item changes.

    Only running ``.service`` units: a changed configuration file is no reason to restart a timer or a socket.
    A container is always restarted: a quadlet has no reload before podman 5.5.
    """
    native = service.contribution.run.native
    if native is None:
        plan.trigger(f"{service.name}.service", "restart", *items)
        return
    for unit in native.units:
        if unit.running and unit.name.endswith(".service"):
            plan.trigger(unit.name, how or unit.on_change, *items)


def directory(plan: PlanBuilder, service: Service | str, path: str, mode: str = "0755") -> None:
    """A directory that Hearth introduces (removed again when it is empty), owned by the first service that needs it."""
    plan.add(m.Directory(path, service if isinstance(service, str) else service.name, mode=mode))


def hole(service: Service, key: str) -> str:
    """The place in a file where the host puts the value of a secret of this service."""
    return m.HOLE.format(service.secret(key))


def storage_paths(service: Service) -> tuple[str, ...]:
    return tuple(sorted(entry.mountpoint for entry in service.contribution.storage.values()))


def group_ids(host: Host) -> dict[str, int]:
    """The groups whose ids the inventory or a contribution fixes: shared ones, and the services' own."""
    found = {service.group: service.gid for service in host.services.values() if service.gid is not None}
    found.update(host.variables.hearth_groups)
    found.update(host.variables.hearth_ids.groups)
    found.pop("root", None)
    return found


# --- addresses -------------------------------------------------------------------------------------------------------


def literal(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address without a prefix length; None for what is not one (``auto``)."""
    try:
        return ipaddress.ip_interface(address).ip
    except ValueError:
        return None


def addresses(host: Host, listen: Listen) -> tuple[str, ...]:
    """Where a listener is bound: addresses of this host, or ``*`` for all."""
    if listen.address == "loopback":
        return ("127.0.0.1",)
    if listen.address == "any":
        return ("*",)
    return tuple(str(found) for entry in host.addresses.get(listen.address, ()) if (found := literal(entry)))


def reach(origin: Host, listen: Listen, contract: str, *, here: bool) -> str | None:
    """Where the provider of a contract finds a listener: on its own host, or on another that lets it (or the LAN) in."""
    if here:
        first = next(iter(addresses(origin, listen)), None)
        return "127.0.0.1" if first == "*" else first
    if listen.address == "loopback" or not {"lan", contract} & set(listen.from_):
        return None
    found = literal(origin.address("mesh" if listen.address == "mesh" else "lan") or "")
    return str(found) if found else None


def in_url(address: str) -> str:
    return f"[{address}]" if ":" in address else address


# --- unit files ------------------------------------------------------------------------------------------------------

_PLAIN = re.compile(r"^[A-Za-z0-9_@%+=:,./\[\]~^{}()*?&|!<>#$-]+$")
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def _quoted(word: str) -> str:
    if _PLAIN.match(word):
        return word
    return '"' + "".join(_ESCAPES.get(character, character) for character in word) + '"'


def specifiers(text: str) -> str:
    """A literal text in a unit file: ``%`` starts a specifier there (systemd.unit(5))."""
    return text.replace("%", "%%")


def command_line(argv: t.Iterable[str]) -> str:
    """``ExecStart=`` with exactly these arguments: ``%`` and ``$`` are doubled (systemd.service(5))."""
    return " ".join(_quoted(specifiers(word).replace("$", "$$")) for word in argv)


def assignment(name: str, value: str, exec_line: bool = False) -> str:
    """``NAME=value`` for ``Environment=``.

    In quadlets (``exec_line``) it becomes part of an ExecStart line, where ``$`` is special (measured with podman
    5.4.2: the generator copies it as it is).
    """
    text = specifiers(value)
    return _quoted(f"{name}={text.replace('$', '$$') if exec_line else text}")


def yes(value: bool | str | list[str]) -> str:
    """A value as unit files have it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else " ".join(value)


def header(service: str) -> str:
    """The first line of files that Hearth writes."""
    return f"# Managed by Hearth for the service {service}. Changes made here are reported and overwritten.\n"


def unit_file(service: str, sections: t.Mapping[str, Pairs]) -> str:
    """A unit file; sections without an entry are left out."""
    parts = [header(service)]
    for section, pairs in sections.items():
        if pairs:
            lines = "".join(f"{key}={value}\n" for key, value in pairs)
            parts.append(f"[{section}]\n{lines}")
    return "\n".join(parts)


def dependencies(host: Host, service: Service) -> Pairs:
    """[Unit] options: the storage gate, mounts, and the units of required and wanted services of the same host.

    systemd's Requires= does not order: each has its After=. Wants= is for containers only, whose units are gone when
    their service is not applied (a role by itself, ``only``) or was removed. A package's unit is still there then: it would
    start as the distribution has it, on all addresses (measured with prometheus-alertmanager). What is applied is enabled,
    so that its own start needs no Wants=.
    """
    pairs: Pairs = []
    strong = [unit for entry in required(host, service) for unit in running_units(entry)]
    weak = [unit for entry in wanted(host, service) for unit in running_units(entry)]
    own = [unit for entry in wanted(host, service) if entry.contribution.run.container for unit in running_units(entry)]
    gate = GATE.format(service.name) if service.contribution.storage else None
    for key, units in (("Requires", [gate] if gate else []), ("Requires", strong), ("Wants", own)):
        if units:
            pairs.append((key, " ".join(units)))
    after = ([gate] if gate else []) + strong + weak
    if after:
        pairs.append(("After", " ".join(after)))
    paths = {*storage_paths(service), *(mount.source for mount in service.contribution.mounts.values())}
    if paths:
        pairs.append(("RequiresMountsFor", " ".join(_quoted(specifiers(path)) for path in sorted(paths))))
    return pairs


#: The unit that starts a service again whose mount was away.
RECOVER = "{0}-recover.service"
#: Seconds between its attempts.
RECOVER_SECONDS = 30


def recovery(service: Service) -> Pairs:
    """[Unit] options of a unit that needs mounts: systemd gives up on it when one of them fails at boot.

    OnFailure= is also triggered by a start that failed because of a dependency (measured with systemd 257).
    """
    return [("OnFailure", RECOVER.format(service.name))] if service.contribution.mounts else []


#: Seconds between two attempts, and attempts until the unit is ``failed``.
RESTART_SECONDS = 5
RESTART_BURST = 5


def start_limit(contribution: Contribution) -> Pairs:
    """[Unit] options under which a crash loop ends in ``failed`` instead of going on for ever.

    Five starts fit in the interval even when each of them dies only at the end of its start period (a minute at
    least): (burst - 1) x (RestartSec + that) + 1. systemd's own default, 5 in 10 s, never triggers with RestartSec=5.
    """
    if contribution.run.restart == "no":
        return []
    attempt = RESTART_SECONDS + max(60, contribution.health.start_period)
    return [
        ("StartLimitIntervalSec", f"{(RESTART_BURST - 1) * attempt + 1}s"),
        ("StartLimitBurst", str(RESTART_BURST)),
    ]


def restart_policy(run: Run) -> Pairs:
    if run.restart == "no":
        return [("Restart", "no")]
    return [("Restart", run.restart), ("RestartSec", f"{RESTART_SECONDS}s")]


def resources(run: Run) -> Pairs:
    """[Service] limits. In the unit and not as podman flags: systemd ignores a controller that the machine lacks."""
    options: tuple[tuple[str, int | str | None], ...] = (
        ("MemoryMax", run.resources.memory_max),
        ("MemoryHigh", run.resources.memory_high),
        ("CPUWeight", run.resources.cpu_weight),
        ("CPUQuota", run.resources.cpu_quota),
        ("TasksMax", run.resources.tasks_max),
        ("IOWeight", run.resources.io_weight),
    )
    return [(key, str(value)) for key, value in options if value is not None]
