# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks a host's agent how its storage, databases and stored secrets are."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleActionFail
from ansible_collections.hearth.homelab.plugins.plugin_utils.agent import AgentError
from ansible_collections.hearth.homelab.plugins.plugin_utils.agent_action import AgentAction


class ActionModule(AgentAction):
    """See the documentation of the module of the same name."""

    _VALID_ARGS = frozenset(("storage", "databases", "secrets"))
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        super().run(tmp, task_vars)
        variables = task_vars or {}
        _dummy, arguments = self.validate_argument_spec(
            argument_spec={
                "storage": {"type": "dict", "default": {}},
                "databases": {"type": "list", "elements": "str", "default": []},
                "secrets": {"type": "list", "elements": "str", "default": [], "no_log": False},
            }
        )
        name = str(variables["inventory_hostname"])
        try:
            answer = self.agent(variables, keep=False).call("storage", {"host": name, **arguments})
        except AgentError as error:
            raise AnsibleActionFail(f"host {name}: {error}") from error
        return {"changed": False, **answer}
