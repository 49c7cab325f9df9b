# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure parts of the converge action: what is in scope, and how answers become results that people read."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleActionFail
from ansible_collections.hearth.homelab.plugins.module_utils import planner
from ansible_collections.hearth.homelab.plugins.module_utils.manifest import Manifest
from ansible_collections.hearth.homelab.plugins.module_utils.redact import Redactor
from ansible_collections.hearth.homelab.plugins.plugin_utils.errors import nearest
from ansible_collections.hearth.homelab.plugins.plugin_utils.plan import HostPlan


def scope(
    manifest: Manifest,
    *,
    only: t.Sequence[str] | None,
    tiers: t.Sequence[str] | None,
    elsewhere: t.Callable[[], t.Collection[str]] = frozenset,
) -> frozenset[str] | None:
    """The services to apply: None for all; ``only`` with everything they require; or the services of some tiers.

    ``only`` accepts names and comma-separated names (``-e only=sonarr,radarr``).
    """
    if tiers:
        return frozenset(name for name, service in manifest.services.items() if service.tier in tiers)
    if not only:
        return None
    wanted = names(manifest, only, elsewhere)
    found: set[str] = set()
    todo = list(wanted)
    while todo:
        name = todo.pop()
        if name not in found and name in manifest.services:
            found.add(name)
            todo.extend(manifest.services[name].requires)
    return frozenset(found)


def names(
    manifest: Manifest, entries: t.Sequence[str] | None, elsewhere: t.Callable[[], t.Collection[str]] = frozenset
) -> list[str]:
    """This host's services among those that people name: a list whose entries may hold several, separated by commas.

    ``elsewhere`` gives the services of the whole fleet; a name that is not among them either is an error.
    """
    found = [name for entry in entries or () for name in entry.replace(" ", "").split(",") if name]
    unknown = [name for name in found if name not in manifest.services]
    if unknown:
        fleet = elsewhere()
        for name in unknown:
            if name not in fleet:
                hint = nearest(name, {*manifest.services, *fleet})
                raise AnsibleActionFail(
                    f"host {manifest.host} has no service {name!r}, nor has another host; "
                    f"{hint or 'it has ' + ', '.join(sorted(manifest.services))}"
                )
    return [name for name in found if name in manifest.services]


def secret_names(manifest: Manifest, services: frozenset[str] | None) -> list[str]:
    """Names of the secrets whose values this run compares: those of the services, and those that their items use."""
    ids = planner.applied(manifest, services)
    return [item.name for item in manifest.items if item.kind == "secret" and item.id in ids]


def compared(plan: HostPlan, answer: t.Mapping[str, t.Any], *, check: bool) -> dict[str, t.Any]:
    """The task's result after the comparison; AnsibleActionFail for problems, before anything was changed."""
    found = answer["plan"]
    if found["problems"]:
        raise AnsibleActionFail(_problems(plan.manifest.host, found["problems"]))
    return {
        "changed": bool(found["actions"]),
        "actions": found["actions"],
        "unknown": found["unknown"],
        "notices": found["notices"],
        "generation": answer.get("generation"),
        "diff": [_diff(plan, entry) for entry in answer.get("diffs") or ()] + _listed(found["actions"]),
        "msg": _summary(found["actions"], check=check),
    }


def applied(host: str, result: dict[str, t.Any], outcome: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The task's result after an apply; AnsibleActionFail when it failed as a whole.

    Services that were taken back make the task fail too, and the message names them: everything else stands.
    """
    result = dict(result)
    for key in ("actions", "notices", "generation", "timings", "taken_back"):
        if key in outcome:
            result[key] = outcome[key]
    result["changed"] = bool(outcome.get("changed"))
    # The run plans again after its packages are there: what was unknown before is among its actions now.
    result["unknown"] = []
    if outcome.get("ok"):
        result["msg"] = _summary(result["actions"], check=False)
        return result
    parts = []
    if outcome.get("problems"):
        # A run that recorded its generation went to its end: what an application refused does not undo it.
        done = not outcome.get("undone") and (result["changed"] or outcome.get("generation") is not None)
        head = "not everything was done" if done else "the run was undone"
        parts.append(_problems(host, outcome["problems"], head))
    for service, reason in sorted((outcome.get("taken_back") or {}).items()):
        parts.append(f"host {host}: service {service} was taken back: {reason}")
    result["failed"] = True
    result["msg"] = "\n".join(parts) or "the host could not apply its plan; see the events above"
    return result


def redact(value: t.Any, secrets: t.Iterable[str]) -> t.Any:
    """Replaces every secret, in every form in which it may appear, in whatever comes back: data or text.

    The host did so already with what it knows; this is for what never reached it. Values of fewer than four characters
    cannot be told from ordinary text.
    """
    return Redactor(secret for secret in secrets if len(secret) >= 4).data(value)


def _problems(host: str, problems: t.Sequence[t.Mapping[str, t.Any]], head: str = "nothing was changed") -> str:
    lines = [f"host {host}: {head}:"]
    for problem in problems:
        place = ", ".join(
            part for part in (problem["service"] and f"service {problem['service']}", problem["item"]) if part
        )
        lines.append(f"  {place}: {problem['message']}" if place else f"  {problem['message']}")
        if problem.get("remedy"):
            lines.append(f"    {problem['remedy']}")
    return "\n".join(lines)


def _summary(actions: t.Sequence[t.Mapping[str, t.Any]], *, check: bool) -> str:
    if not actions:
        return "nothing to change"
    counts: dict[str, int] = {}
    for action in actions:
        kind = action["id"].partition(":")[0]
        counts[kind] = counts.get(kind, 0) + 1
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    return f"{'would change' if check else 'changed'} {len(actions)} items: {listed}"


def _diff(plan: HostPlan, entry: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """One file's difference; the new content is the controller's own, so that it need not travel back."""
    path = entry["path"]
    if entry.get("hidden"):
        return {"before_header": path, "after_header": path, "before": "", "after": f"({entry['hidden']})\n"}
    item = plan.manifest.by_id().get(f"file:{path}")
    after = plan.contents.get(getattr(item, "digest", ""), "") if item else ""
    return {"before_header": path, "after_header": path, "before": entry.get("before") or "", "after": after}


def _listed(actions: t.Sequence[t.Mapping[str, t.Any]]) -> list[dict[str, t.Any]]:
    """Everything but file contents, as one readable difference."""
    before, after = [], []
    for action in actions:
        if action["id"].startswith("file:") and action["operation"] in ("create", "modify"):
            continue
        if action["before"] is not None:
            before.append(f"{action['id']}: {_plain(action['before'])}")
        after.append(f"{action['id']}: {action['operation']}" + (f" ({action['reason']})" if action["reason"] else ""))
    if not after:
        return []
    return [
        {
            "before_header": "items",
            "after_header": "items",
            "before": "\n".join(before) + "\n" if before else "",
            "after": "\n".join(after) + "\n",
        }
    ]


def _plain(value: t.Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {entry}" for key, entry in sorted(value.items()))
    return str(value)
