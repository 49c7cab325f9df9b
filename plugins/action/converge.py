# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controller half of converge: one exchange tells what is stale, only that is shipped, the host does the rest."""

from __future__ import annotations

import base64
import getpass
import secrets
import socket
import subprocess
import time
import typing as t
from pathlib import Path

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure, AnsibleError
from ansible.utils.display import Display
from ansible_collections.hearth.homelab.plugins.plugin_utils import compose, converging, secret_values
from ansible_collections.hearth.homelab.plugins.plugin_utils.agent import Agent, AgentError
from ansible_collections.hearth.homelab.plugins.plugin_utils.agent_action import AgentAction

display = Display()

#: Seconds during which a lost connection is tried again while the host applies (it goes on without us).
_RECONNECT = 120


class ActionModule(AgentAction):
    """See the documentation of the module of the same name."""

    _VALID_ARGS = frozenset(("service", "tiers", "only", "start_empty", "confirm_timeout"))

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        super().run(tmp, task_vars)
        variables = task_vars or {}
        _dummy, arguments = self.validate_argument_spec(
            argument_spec={
                "service": {"type": "str"},
                "tiers": {"type": "list", "elements": "str", "choices": ["core", "infrastructure", "services"]},
                "only": {"type": "list", "elements": "str"},
                "start_empty": {"type": "list", "elements": "str"},
                "confirm_timeout": {"type": "int", "default": 45},
            },
            mutually_exclusive=[["service", "tiers", "only"]],
        )
        name: str = variables["inventory_hostname"]
        extra = [arguments["service"]] if arguments["service"] else []
        plan = compose.plans_for(self, variables, hosts=[name], services=extra)[name]
        if plan is None:
            return {
                "changed": False,
                "skipped": True,
                "msg": f"{name} is composed, and left alone: its platform has no provider that converges it yet",
            }

        def elsewhere() -> set[str]:
            plans = compose.plans_for(self, variables, services=extra)
            return {service for other in plans.values() if other for service in other.manifest.services}

        only = arguments["only"] or extra or None
        scope = converging.scope(plan.manifest, only=only, tiers=arguments["tiers"] or None, elsewhere=elsewhere)
        if only and not scope:
            return {"changed": False, "skipped": True, "msg": f"{name} has none of {', '.join(only)}"}
        values = self._secrets(plan.manifest.host, variables)
        names = converging.secret_names(plan.manifest, scope)
        missing = [entry for entry in names if entry not in values]
        if missing:
            raise AnsibleActionFail(
                f"host {name}: no value for the secret{'s' if len(missing) > 1 else ''} {', '.join(missing)}: "
                "neither a secrets file of the host or its groups nor a <service>_secrets variable has it"
            )
        nonce = secrets.token_hex(16)
        check: bool = self._task.check_mode
        agent = self.agent(variables, keep=not check)
        request = {
            "manifest": plan.manifest.to_dict(),
            "scope": sorted(scope) if scope is not None else None,
            "tiers": arguments["tiers"] or [],
            "start_empty": converging.names(plan.manifest, arguments["start_empty"], elsewhere),
            "secrets": {"nonce": nonce, "digests": secret_values.keyed_digests(values, names, nonce)},
            "check": check,
            "diff": bool(self._task.diff),
        }
        try:
            answer = agent.call("compare", request)
            if answer["unfinished"] and not answer["running"] and not check:
                # A run was interrupted: the host finishes or undoes it first, and only then tells what differs.
                display.display(f"  {name}: settling run {answer['unfinished'][0]}, which was interrupted")
                agent.call("recover", {})
                answer = agent.call("compare", request)
            result = converging.compared(plan, answer, check=check)
            if answer["status"] == "stale" and not check:
                outcome = self._apply(agent, plan, answer, request, values, arguments["confirm_timeout"])
                result = converging.applied(name, result, outcome)
        except AgentError as error:
            # It may quote what a host printed instead of an answer. Ansible would show the cause a second time.
            raise AnsibleActionFail(converging.redact(f"host {name}: {error}", values.values())) from None
        except AnsibleConnectionFailure as error:
            if agent.exchanges > 1:
                raise  # what was already said to the host is in the message
            raise AnsibleConnectionFailure(
                f"host {name} cannot be reached, and nothing was changed on it: {error}. "
                "Is it up, and is ansible_host (with ansible_port and ansible_user) your way in to it?"
            ) from None
        result["exchanges"] = agent.exchanges
        result = converging.redact(result, [values[entry] for entry in names])
        for notice in result["notices"]:
            display.display(f"  {name}: note: {notice['message']}")
        for notice in result["unknown"]:
            display.display(f"  {name}: unknown before applying: {notice['message']}")
        return result

    def _apply(
        self,
        agent: Agent,
        plan: t.Any,
        answer: dict[str, t.Any],
        request: dict[str, t.Any],
        values: dict[str, str],
        confirm_timeout: int,
    ) -> dict[str, t.Any]:
        """Ships what is stale, lets the host apply it in a unit of its own, and watches."""
        needs = answer["plan"]
        run = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
        started = agent.call(
            "apply",
            {
                **request,
                "blobs": {
                    digest: base64.b64encode(plan.contents[digest].encode()).decode() for digest in needs["needs_blobs"]
                },
                "secrets": {entry: values[entry] for entry in needs["needs_secrets"]},
                "run": {"id": run, "owner": _owner(), "commit": _commit(self._loader.get_basedir())},
                "confirm_timeout": confirm_timeout,
            },
        )
        return self._watch(agent, plan.manifest.host, started["run"])

    def _watch(self, agent: Agent, host: str, run: str) -> dict[str, t.Any]:
        """Follows a run to its end. A lost connection is no end: the host goes on, so we come back."""
        offset, lost_since = 0, None
        while True:
            try:
                state = agent.call("watch", {"run": run, "offset": offset})
                if state["awaiting_confirmation"]:
                    # Over a connection that did not exist before the change: the old one proves nothing. Refused, it is
                    # tried again until the host, which nobody confirmed, is as it was before and says why.
                    self.reconnect()
                    agent.call("confirm", {"run": run})
            except (AnsibleConnectionFailure, AgentError) as error:
                lost_since = lost_since or time.monotonic()
                if time.monotonic() - lost_since > _RECONNECT:
                    raise AnsibleConnectionFailure(
                        f"host {host}: lost while it applied run {run}, and not back within {_RECONNECT} s ({error}). "
                        "The host finishes or undoes the run by itself; run the same command again to see what it is."
                    ) from error
                time.sleep(2)
                self.reconnect()
                continue
            lost_since = None
            offset = state["offset"]
            for event in state["events"]:
                display.display(f"  {host}: {event['text'] if isinstance(event, dict) else event}")
            if state["done"]:
                return t.cast("dict[str, t.Any]", state["result"])

    def _secrets(self, host: str, variables: dict[str, t.Any]) -> dict[str, str]:
        """Values from the SOPS files of this host and its groups, then from ``<service>_secrets`` variables."""
        files, sops = compose.secret_files(self, variables, host)
        option_names = (
            "sops_binary",
            "sops_age_key",
            "sops_age_keyfile",
            "sops_age_ssh_private_keyfile",
            "sops_config_path",
        )
        options = {name: self._templar.template(variables[name]) for name in option_names if name in variables}
        values = secret_values.decrypt([Path(path) for path in files], secret_values.sops_option(options), sops)
        for name, value in variables.items():
            if name.endswith("_secrets") and isinstance(name, str):
                try:
                    data = self._templar.template(value)
                except AnsibleError as error:
                    raise AnsibleActionFail(f"host {host}: the variable {name} cannot be resolved: {error}") from error
                if isinstance(data, dict):
                    values.update(secret_values.flatten({name.removesuffix("_secrets"): data}))
        return values


def _owner() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"


def _commit(directory: str) -> str:
    """The git commit of the playbook's repository, with ``-dirty`` when it has changes; empty outside one."""
    try:
        found = subprocess.run(
            ["git", "-C", directory, "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except OSError:
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""
