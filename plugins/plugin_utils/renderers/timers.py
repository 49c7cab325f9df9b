# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Timers: the jobs of a service as ``SERVICE-TIMER.timer`` and ``SERVICE-TIMER.service``."""

from __future__ import annotations

from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.plugin_utils.model import Fleet, Host, Service
from ansible_collections.hearth.homelab.plugins.plugin_utils.plan import PlanBuilder
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import common, systemd
from ansible_collections.hearth.homelab.plugins.plugin_utils.schema import TimerSpec


def render(_fleet: Fleet, host: Host, plan: PlanBuilder) -> None:
    for service in host.services.values():
        for name, spec in sorted(service.contribution.timers.items()):
            unit = f"{service.name}-{name}"
            plan.file(service.name, f"{systemd.UNITS}/{unit}.service", _job(host, service, name, spec))
            timer = plan.file(service.name, f"{systemd.UNITS}/{unit}.timer", _timer(service, name, spec))
            # The job itself is listed so that it is stopped and gone when the timer is; a running one is left alone.
            plan.add(m.Unit(f"{unit}.service", service.name, enabled=None, running=None))
            plan.add(m.Unit(f"{unit}.timer", service.name, enabled=True, running=True))
            plan.trigger(f"{unit}.timer", "restart", timer)


def _job(host: Host, service: Service, name: str, spec: TimerSpec) -> str:
    native = service.contribution.run.native
    options: common.Pairs = [
        ("Type", "oneshot"),
        ("ExecStart", common.command_line(spec.argv)),
        ("User", spec.user or service.user),
        ("TimeoutStartSec", f"{spec.timeout}s"),
        ("SyslogIdentifier", service.name),
    ]
    if service.contribution.user and service.contribution.user.umask != "0022":
        options.append(("UMask", service.contribution.user.umask))
    options += common.resources(service.contribution.run)
    if native:  # a container's job is mostly a call of podman, which needs everything that a sandbox takes away
        options += systemd.hardening(service, native)
    unit = [("Description", f"{service.name}: {common.specifiers(name)}"), *common.dependencies(host, service)]
    return common.unit_file(service.name, {"Unit": unit, "Service": options})


def _timer(service: Service, name: str, spec: TimerSpec) -> str:
    options: common.Pairs = [("OnCalendar", spec.calendar), ("Persistent", "true" if spec.persistent else "false")]
    if spec.random_delay:
        # Fixed per host and timer: spread over the fleet, at the same time every day.
        options += [("RandomizedDelaySec", f"{spec.random_delay}s"), ("FixedRandomDelay", "true")]
    return common.unit_file(
        service.name,
        {
            "Unit": [("Description", f"{service.name}: {common.specifiers(name)}")],
            "Timer": options,
            "Install": [("WantedBy", "timers.target")],
        },
    )
