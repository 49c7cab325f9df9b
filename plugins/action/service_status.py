# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks a host's agent how the services of its current generation are."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleActionFail
from ansible_collections.hearth.homelab.plugins.plugin_utils.agent import AgentError
from ansible_collections.hearth.homelab.plugins.plugin_utils.agent_action import AgentAction


class ActionModule(AgentAction):
    """See the documentation of the module of the same name."""

    _VALID_ARGS = frozenset(())

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        super().run(tmp, task_vars)
        variables = task_vars or {}
        try:
            answer = self.agent(variables, keep=False).call("status", {})
        except AgentError as error:
            raise AnsibleActionFail(f"host {variables['inventory_hostname']}: {error}") from error
        services = [
            {**entry, "real": not entry["stand_in"], "detail": entry["held_back"] or "; ".join(entry["problems"])}
            for entry in answer["services"]
        ]
        return {"changed": False, "services": services, "generation": answer["generation"]}
