# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Monitoring (``provides: {metrics: prometheus, alerts: prometheus}``): targets and rules of the whole fleet.

One target file and one rule file for each host and service. Every service gets ServiceDown and RestartChurn for each
of its units without asking; what it contributes comes on top.
"""

from __future__ import annotations

import json
import re
import typing as t

from ansible_collections.hearth.homelab.plugins.plugin_utils.model import Fleet, Host, Service
from ansible_collections.hearth.homelab.plugins.plugin_utils.plan import PlanBuilder
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import common
from ansible_collections.hearth.homelab.plugins.plugin_utils.schema import Alert, Metrics

BASE = "/etc/prometheus/hearth"
TARGETS = f"{BASE}/targets"
RULES = f"{BASE}/rules"
#: The role whose metrics say which units run.
NODE_EXPORTER = "node_exporter"

Rule = dict[str, t.Any]


def render(fleet: Fleet, host: Host, plan: PlanBuilder) -> None:
    metrics, alerts = host.provider("metrics"), host.provider("alerts")
    for provider, path in ((metrics, TARGETS), (alerts, RULES)):
        if provider:
            common.directory(plan, provider, BASE)
            common.directory(plan, provider, path)
    for origin in fleet.hosts.values():
        if not origin.managed:
            continue
        watched = any(service.role == NODE_EXPORTER for service in origin.services.values())
        if alerts and origin.services and not watched:
            plan.notices.append(
                f"alerts of {origin.name}: it has no {NODE_EXPORTER}, so nobody sees whether its services run"
            )
        for service in origin.services.values():
            here = origin.name == host.name
            file = f"{origin.name}.{service.name}"
            if metrics and service.contribution.metrics:
                found = target(origin, service, service.contribution.metrics, here=here)
                if found is None:
                    plan.notices.append(
                        f"metrics of {service.name} on {origin.name}: {metrics.name} on {host.name} cannot reach it: "
                        "it listens on loopback only"
                    )
                else:
                    # Prometheus watches these files itself.
                    text = json.dumps([found], indent=2, sort_keys=True) + "\n"
                    plan.file(service.name if here else metrics.name, f"{TARGETS}/{file}.json", text)
            if alerts:
                group = rules(origin, service, watched=watched)
                if group:
                    text = _yaml(f"{origin.name}/{service.name}", group, service.name)
                    plan.file(service.name if here else alerts.name, f"{RULES}/{file}.yml", text)
    if alerts:
        for unit in common.running_units(alerts):
            plan.trigger(unit, "reload", f"file:{RULES}/")


def target(origin: Host, service: Service, metrics: Metrics, *, here: bool) -> dict[str, t.Any] | None:
    """One entry of a file_sd file; None when it cannot be reached."""
    listen = service.listen(metrics.port)
    address: str | None
    if here:
        first = next(iter(common.addresses(origin, listen)), None)
        address = "127.0.0.1" if first == "*" else first
    elif listen.address == "loopback":
        address = None
    else:
        literal = common.literal(origin.address("mesh" if listen.address == "mesh" else "lan") or "")
        address = str(literal) if literal else None
    if address is None:
        return None
    labels = {
        **metrics.labels,
        "host": origin.name,
        "service": service.name,
        "job": service.role,
        "instance": f"{origin.name}:{listen.port}",
        "__metrics_path__": metrics.path,
        "__scrape_interval__": f"{metrics.interval}s",
        "__scrape_timeout__": f"{min(metrics.timeout, metrics.interval)}s",
    }
    if service.contribution.route and service.contribution.route.to == metrics.port:
        labels["__scheme__"] = service.contribution.route.scheme
    # A label holds one value; further values of a parameter cannot be said in a target file.
    labels.update({f"__param_{name}": values[0] for name, values in metrics.params.items() if values})
    return {"targets": [f"{common.in_url(address)}:{listen.port}"], "labels": labels}


def rules(origin: Host, service: Service, *, watched: bool) -> list[Rule]:
    """The rules of one service: two for each of its units where the host's units are known, then its own."""
    found: list[Rule] = []
    if watched:
        for unit in sorted(common.running_units(service)):
            found += unit_rules(origin, service, unit)
    found += [contributed(origin, service, alert) for alert in service.contribution.alerts]
    return found


def unit_rules(origin: Host, service: Service, unit: str) -> list[Rule]:
    """ServiceDown and RestartChurn of one unit."""
    selector = f'host="{origin.name}",name="{unit}"'
    # systemd forgets a stopped unit that nothing refers to, and its series ends. As long as the node exporter answers,
    # no series means not active; when it does not, InstanceDown says so and this rule says nothing.
    down = (
        f'(max by (host) (node_systemd_unit_state{{{selector},state="active"}})'
        f' or max by (host) (up{{host="{origin.name}",job="{NODE_EXPORTER}"}} == 1) * 0) == 0'
    )
    found = [
        _rule(
            "ServiceDown",
            down,
            120,
            _labels(origin, service, "high", unit=unit),
            summary=f"{service.name} on {origin.name} is down",
            description=f"{unit} has not been active for 2 minutes.",
            runbook=f"On {origin.name}: systemctl status {unit}; journalctl -u {unit}",
        )
    ]
    if unit.endswith(".service"):
        found.append(
            _rule(
                "RestartChurn",
                f"max by (host) (increase(node_systemd_service_restart_total{{{selector}}}[15m])) > 5",
                0,
                _labels(origin, service, "high", unit=unit),
                summary=f"{service.name} on {origin.name} keeps restarting",
                description=f"systemd restarted {unit} more than 5 times in 15 minutes.",
                runbook=f"On {origin.name}: journalctl -u {unit}",
            )
        )
    return found


def contributed(origin: Host, service: Service, alert: Alert) -> Rule:
    """An alert of the contribution. Its host and service are always said."""
    labels = {**alert.labels, **_labels(origin, service, alert.severity)}
    if alert.unit:
        labels["unit"] = alert.unit
    return _rule(
        alert.alert,
        alert.expr,
        alert.for_,
        labels,
        summary=alert.summary,
        description=alert.description,
        runbook=alert.runbook,
    )


def _labels(origin: Host, service: Service, severity: str, **further: str) -> dict[str, str]:
    return {"host": origin.name, "service": service.name, "severity": severity, **further}


def _rule(alert: str, expr: str, for_: int, labels: dict[str, str], **annotations: str) -> Rule:
    rule: Rule = {"alert": alert, "expr": expr}
    if for_:
        rule["for"] = f"{for_}s"
    rule["labels"] = dict(sorted(labels.items()))
    rule["annotations"] = {key: value for key, value in annotations.items() if value}
    return rule


#: Strings that YAML reads as such without quotes; what begins otherwise, or reads as something else, is quoted.
_PLAIN = re.compile(r"(?:[A-Za-z_/(][^\x00-\x1f\x7f-\xa0\ud800-\udfff\ufeff\u2028\u2029]*|\d+s)\Z")
_UNREADABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff]")
_WORDS = frozenset(("true", "false", "yes", "no", "on", "off", "y", "n", "null"))


def _scalar(value: str) -> str:
    """A string in YAML: plain, in single quotes, or (line breaks, control characters) as JSON."""
    if _PLAIN.match(value):
        special = ": " in value or " #" in value or value[-1] in " :" or value.lower() in _WORDS
        return "'" + value.replace("'", "''") + "'" if special else value
    if value.isascii() and value.isprintable():
        return "'" + value.replace("'", "''") + "'"
    # JSON is YAML but for what YAML's reader does not take as it is.
    text = json.dumps(value, ensure_ascii=False)
    return _UNREADABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _yaml(name: str, group: t.Sequence[Rule], service: str) -> str:
    """A rule file. Written here, because a general YAML library takes 0.2 s for the files of 45 services."""
    lines = [
        f"# Managed by Hearth for the service {service}. Changes made here are reported and overwritten.",
        "groups:",
        f"  - name: {_scalar(name)}",
        "    rules:",
    ]
    for rule in group:
        begin = "      - "
        for key, value in rule.items():
            if isinstance(value, dict):
                lines.append(f"{begin}{key}:" if value else f"{begin}{key}: {{}}")
                lines += [f"          {_scalar(inner)}: {_scalar(entry)}" for inner, entry in value.items()]
            else:
                lines.append(f"{begin}{key}: {_scalar(value)}")
            begin = "        "
    return "\n".join(lines) + "\n"
