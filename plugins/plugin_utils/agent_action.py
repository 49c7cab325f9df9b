# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What action plugins that speak with a host's agent have in common."""

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase
from ansible_collections.hearth.homelab.plugins.plugin_utils.agent import Agent


class AgentAction(ActionBase):
    """An action whose host half is the agent, reached through the task's own connection and become."""

    TRANSFERS_FILES = False

    def agent(self, variables: t.Mapping[str, t.Any], *, keep: bool) -> Agent:
        """The host's agent; ``keep=False`` leaves nothing on a host that has none (check mode, status)."""
        return Agent(self._execute, python=self._python(variables), keep=keep)

    def reconnect(self) -> None:
        """Drops the connection, so that the next command makes one that did not exist before."""
        reset = getattr(self._connection, "reset", None)
        if reset:
            reset()

    def _execute(self, command: str, data: bytes) -> dict[str, t.Any]:
        return t.cast("dict[str, t.Any]", self._low_level_execute_command(command, in_data=data))

    def _python(self, variables: t.Mapping[str, t.Any]) -> str:
        """The interpreter named by the inventory; Debian's own otherwise (no discovery: it costs a round trip)."""
        named = variables.get("ansible_python_interpreter")
        text = self._templar.template(named) if named else ""
        return text if isinstance(text, str) and text.startswith("/") else "/usr/bin/python3"
