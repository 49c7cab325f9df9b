# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Generates missing secrets, once for all hosts of the play. The documentation is in the module of the same name."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.hearth.homelab.plugins.plugin_utils import secret_step
from ansible_collections.hearth.homelab.plugins.plugin_utils.layers import Source
from ansible_collections.hearth.homelab.plugins.plugin_utils.secret_generation import Answer, GenerationError

display = Display()


class ActionModule(ActionBase):
    """One run for the whole play: secrets of a group are those of several hosts."""

    BYPASS_HOST_LOOP = True
    TRANSFERS_FILES = False
    _supports_check_mode = True
    _VALID_ARGS = frozenset(("state", "rotate", "start_empty", "storage"))

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        super().run(tmp, task_vars)
        variables = task_vars or {}
        _dummy, arguments = self.validate_argument_spec(
            argument_spec={
                "state": {"type": "str", "choices": ["asked", "present"], "default": "present"},
                "rotate": {"type": "list", "elements": "str", "default": []},
                "start_empty": {"type": "list", "elements": "str", "default": []},
                "storage": {"type": "dict", "default": {}},
            }
        )
        hosts = list(variables.get("ansible_play_hosts_all") or ())
        try:
            step = secret_step.Step(Source.of_action(self, variables), hosts, arguments["rotate"])
        except GenerationError as error:
            raise AnsibleActionFail(f"nothing was changed. {error}") from error
        if arguments["state"] == "asked":
            return {"changed": False, "questions": step.questions()}
        answers = {host: Answer.from_result(result) for host, result in arguments["storage"].items()}
        outcome = step.run(answers, check=self._task.check_mode, start_empty=arguments["start_empty"])
        lines = outcome.lines()
        for line in lines:
            display.display(f"  {line}")
        result = {
            "changed": outcome.changed,
            "made": [
                {"hosts": list(make.hosts), "name": make.name, "kind": make.spec.kind, "file": make.file,
                 "rotated": make.rotate}
                for make in outcome.made
            ],
            "refused": [
                {"host": refusal.host, "name": f"{refusal.service}/{refusal.key}", "reason": refusal.reason,
                 "remedy": refusal.remedy}
                for refusal in outcome.plan.refused
            ],
            "missing": [
                {"host": host, "name": make.name} for make in outcome.plan.make if make not in outcome.made
                for host in make.hosts
            ] + [{"host": need.host, "name": need.name} for need in outcome.plan.owner],
            "public_keys": outcome.public,
            "files": outcome.files,
            "msg": "\n".join(lines) or "every secret is there",
        }  # fmt: skip
        failure = outcome.failure()
        if failure:
            raise AnsibleActionFail(failure, result=result)  # the lines were printed
        return result
