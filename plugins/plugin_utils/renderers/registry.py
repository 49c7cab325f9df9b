# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The renderers in order, and ``render_host``, which makes the plan of one host with them."""

from __future__ import annotations

import importlib
import json
import typing as t

from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.plugin_utils.errors import Problem, nearest
from ansible_collections.hearth.homelab.plugins.plugin_utils.model import Fleet, Host, Service
from ansible_collections.hearth.homelab.plugins.plugin_utils.plan import DuplicateItemError, HostPlan, PlanBuilder
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import (
    common,
    configure,
    files,
    health,
    native,
    quadlet,
    secrets,
    storage,
    systemd,
    timers,
    users,
)

Renderer = t.Callable[[Fleet, Host, PlanBuilder], None]

#: Run on every host. The order decides only which of two equal shared items is kept; the manifest is sorted.
GENERAL: tuple[tuple[str, Renderer], ...] = (
    ("users", users.render),
    ("storage", storage.render),
    ("native", native.render),
    ("secrets", secrets.render),
    ("files", files.render),
    ("systemd", systemd.render),
    ("timers", timers.render),
    ("quadlet", quadlet.render),
    ("health", health.render),
    ("configure", configure.render),
)

#: Run on the hosts whose service says ``provides: {CONTRACT: RENDERER}``: (contract, renderer) -> module here.
RENDERERS: dict[tuple[str, str], str] = {
    ("route", "caddy"): "caddy",
    ("metrics", "prometheus"): "prometheus",
    ("alerts", "prometheus"): "prometheus",
    ("notify", "alertmanager"): "alertmanager",
    ("postgresql", "postgresql"): "postgresql",
    ("mqtt", "mosquitto"): "mosquitto",
    ("firewall", "nftables"): "firewall",
    ("status", "gatus"): "gatus",
    ("dashboard", "homepage"): "homepage",
    ("grafana", "grafana"): "grafana",
}

#: How every hole begins.
_HOLE = m.HOLE.partition("{")[0]

#: Contracts whose provider may be on another host.
ELSEWHERE: tuple[str, ...] = ("route", "metrics", "alerts", "dashboard", "grafana")


class HostRenderError(ValueError):
    """Everything about one host that cannot be rendered."""

    def __init__(self, problems: t.Iterable[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        super().__init__("\n".join(str(problem) for problem in self.problems))


def render_host(fleet: Fleet, host: Host) -> HostPlan:
    """The plan of one host. Raises HostRenderError with all problems that were found.

    A renderer stops at its first problem; the others still run, so that one report has as many as possible.
    """
    plan = PlanBuilder(host.name, host.release, host.architecture)
    problems: list[Problem] = []
    for render in [render for _name, render in GENERAL] + _providers(host, problems):
        try:
            render(fleet, host, plan)
        except common.RenderError as error:
            problems.append(error.problem)
        except DuplicateItemError as error:
            problems.append(Problem(host=host.name, service=error.second, message=str(error)))
    if problems:
        raise HostRenderError(problems)
    plan.notices += _without_provider(fleet, host)
    made = plan.build()
    exposed = _exposed(made)
    if exposed:
        raise HostRenderError(exposed)
    return made


def _exposed(plan: HostPlan) -> list[Problem]:
    """Secrets in places that others read: files that are not closed, command lines, addresses, texts for people.

    The host fills holes in files and in requests only; anywhere else the hole itself would be taken for the value.
    """
    manifest = plan.manifest
    problems = []

    def problem(service: str, what: str, remedy: str) -> None:
        problems.append(Problem(host=manifest.host, service=service, message=what, remedy=remedy))

    for item in manifest.items:
        if isinstance(item, m.File) and item.holes and not m.holes(item.name):
            if int(item.mode, 8) & 0o007:
                problem(
                    item.service,
                    f"the file {item.name} has a secret ({', '.join(item.holes)}) and mode {item.mode}: everybody reads it",
                    'mode: "0400" or "0640" with a group; for what a unit needs: deliver',
                )
            continue
        if _HOLE not in repr(item):
            continue  # nearly all of them, in a hundredth of the time
        data = item.to_dict()
        if isinstance(item, m.Configure):
            data = {key: value for key, value in data.items() if key not in ("desired", "headers", "holes")}
        if found := m.holes(json.dumps(data, ensure_ascii=False)):
            where = f"{item.kind} {item.name}" if not m.holes(item.name) else f"the name of a {item.kind}"
            problem(item.service, f"the secret {found[0]} is used in {where}", "secrets go into files, or use deliver")
    for validator in manifest.validators:
        if found := m.holes(repr(validator)):
            problem(validator.service, f"the secret {found[0]} is used in a validator", "no secret in a command line")
    for name, state in manifest.services.items():
        if found := m.holes(repr(state)):
            problem(
                name,
                f"the secret {found[0]} is used in a health check or the summary",
                "health needs no login: see health",
            )
    return problems


def _providers(host: Host, problems: list[Problem]) -> list[Renderer]:
    """The provider renderers of this host, each once, however many contracts it fulfils."""
    contracts = {contract for contract, _renderer in RENDERERS}
    modules: dict[str, None] = {}
    for service in host.services.values():
        for contract, renderer in sorted(service.contribution.provides.items()):
            module = RENDERERS.get((contract, renderer))
            if module:
                modules[module] = None
            elif contract in contracts:  # the others (container, people, time ...) have no renderer to choose
                known = sorted(name for entry, name in RENDERERS if entry == contract)
                problems.append(
                    Problem(
                        host=host.name,
                        service=service.name,
                        path=f"provides.{contract}",
                        message=f"there is no renderer {renderer!r}",
                        remedy=nearest(renderer, known) or f"known: {', '.join(known)}",
                    )
                )
    return [_load(module) for module in sorted(modules)]


def _load(module: str) -> Renderer:
    # Late: a host without Prometheus does not pay for its renderer.
    return t.cast(Renderer, importlib.import_module(f"{__package__}.{module}").render)


def _without_provider(fleet: Fleet, host: Host) -> list[str]:
    """Standing notices: contracts with a renderer that services of this host use and nobody in the fleet provides.

    Those that no renderer exists for are named by compose (conflicts.UNREALISED).
    """
    users: dict[str, list[str]] = {}
    for service in host.services.values():
        for contract in _contracts(service):
            users.setdefault(contract, []).append(service.name)
    return [
        f"{contract}: nothing provides it; declared by {', '.join(sorted(names))}"
        for contract, names in sorted(users.items())
        if not (fleet.providers(contract) if contract in ELSEWHERE else host.provider(contract))
    ]


def _contracts(service: Service) -> list[str]:
    """The contracts that a service asks for."""
    entry = service.contribution
    asked = {
        "route": entry.route,
        "alerts": entry.alerts,
        "dashboard": entry.dashboard,
        "grafana": entry.grafana,
        "postgresql": entry.database.postgresql,
        "mqtt": entry.mqtt,
        "firewall": any(listen.from_ for listen in entry.listen.values()),
    }
    return [contract for contract, value in asked.items() if value]
