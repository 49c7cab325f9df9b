# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Composes the fleet once for all hosts of the play. The documentation is in the module of the same name."""

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.hearth.homelab.plugins.plugin_utils import compose

display = Display()


class ActionModule(ActionBase):
    """One run for the whole play: the strategy sends the task to the first host only, and a failure stops them all."""

    BYPASS_HOST_LOOP = True
    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_diff = True
    _VALID_ARGS = frozenset(("services",))

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        super().run(tmp, task_vars)
        _dummy, arguments = self.validate_argument_spec(argument_spec={"services": {"type": "list", "elements": "str"}})
        _store, index = compose.ensure(self, task_vars or {}, services=arguments["services"] or ())
        hosts = index["hosts"]
        count = sum(len(entry.get("services", ())) for entry in hosts.values())
        for name, entry in sorted(hosts.items()):
            for notice in entry.get("notices", ()):
                display.display(f"  {name}: standing notice: {notice}")
        plural = "" if len(hosts) == 1 else "s"
        return {
            "changed": False,
            "hosts": hosts,
            "warnings": index["warnings"],
            "msg": f"composed {count} services on {len(hosts)} host{plural}",
        }
