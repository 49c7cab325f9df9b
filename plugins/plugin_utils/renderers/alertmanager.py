# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Alert delivery (``provides: {notify: alertmanager}``).

The whole configuration is one file of the role (``templates/alertmanager.yml.j2``): Alertmanager knows no directory of
fragments, and receivers are the fleet's (``hearth_receivers``), not a service's. What is left to do here is to say who
is told nothing.
"""

from __future__ import annotations

from ansible_collections.hearth.homelab.plugins.plugin_utils.model import Fleet, Host
from ansible_collections.hearth.homelab.plugins.plugin_utils.plan import PlanBuilder

SEVERITIES = ("critical", "high", "medium", "low")


def render(_fleet: Fleet, host: Host, plan: PlanBuilder) -> None:
    provider = host.provider("notify")
    if provider is None:
        return
    told: set[str] = set()
    for receiver in host.variables.hearth_receivers.values():
        if receiver.webhook or receiver.email:
            told.update(receiver.severities)
    silent = [severity for severity in SEVERITIES if severity not in told]
    if silent:
        plan.notices.append(
            f"alerts of severity {', '.join(silent)} are shown by {provider.name} on {host.name} and sent to nobody "
            "(hearth_receivers)"
        )
