# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Composition: from the inventory's variables and the roles' contributions to one plan per host.

Nothing here connects to a host. The whole inventory is composed, whatever the limit is; all errors of all hosts are
collected before anything stops. The order for each contribution: resolve, merge the inventory's ``override``,
validate. What other services may name through ``service`` and ``providers`` (ports, paths, databases) is resolved
first, for all hosts, then the rest.
"""

from __future__ import annotations

import fnmatch
import heapq
import re
import typing as t
from dataclasses import dataclass, field, replace
from pathlib import Path

from ansible.errors import AnsibleActionFail
from ansible_collections.hearth.homelab.plugins.module_utils.manifest import HOLE, TIERS
from ansible_collections.hearth.homelab.plugins.plugin_utils import (
    conflicts,
    images,
    known,
    layers,
    role_files,
    secret_values,
    sops_keys,
    templates,
)
from ansible_collections.hearth.homelab.plugins.plugin_utils.errors import Problem, Report, listing, nearest, short_path
from ansible_collections.hearth.homelab.plugins.plugin_utils.explain import dotted, explain, key_path, shown
from ansible_collections.hearth.homelab.plugins.plugin_utils.layers import NOWHERE, Layer, Place, Source
from ansible_collections.hearth.homelab.plugins.plugin_utils.model import Fleet, Host, Service
from ansible_collections.hearth.homelab.plugins.plugin_utils.plan import HostPlan
from ansible_collections.hearth.homelab.plugins.plugin_utils.plan_store import Store
from ansible_collections.hearth.homelab.plugins.plugin_utils.role_files import FIRST, Role, RoleError, Roles
from ansible_collections.hearth.homelab.plugins.plugin_utils.schema import (
    BaseModel,
    Contribution,
    CoreVariables,
    ServiceEntry,
    ValidationError,
    route_name,
)
from ansible_collections.hearth.homelab.plugins.plugin_utils.templates import Compiled

_NAME = re.compile(r"^[a-z][a-z0-9_]{0,31}$")
_RESERVED = frozenset((sops_keys.PEOPLE, "sops"))
_CORE_NAMES = frozenset(CoreVariables.model_fields)
_CORE_DEFAULTS: dict[str, t.Any] = CoreVariables().model_dump(by_alias=True)
#: Names that a contribution gets from composition itself, not from the inventory.
_OWN_NAMES = frozenset(("service", "providers", "hearth", "inventory_hostname", "group_names"))
#: Variables that are no data and so are never handed to templates.
_OPAQUE = frozenset(("hostvars", "vars", "environment", "omit", "ansible_facts"))


class View(dict[str, t.Any]):
    """What templates see as ``service``: a mapping whose keys are attributes."""

    def __getattr__(self, name: str) -> t.Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass
class _Draft:
    """A service on its way to a Service."""

    name: str
    role_name: str
    role: Role | None
    entry: dict[str, t.Any]
    view: View
    overlay: dict[str, t.Any] = field(default_factory=dict)  # options of this instance alone
    data: dict[str, t.Any] = field(default_factory=dict)
    own: dict[str, t.Any] = field(default_factory=dict)  # the inline contribution, as written
    override: dict[str, t.Any] = field(default_factory=dict)
    first: Compiled | None = None
    rest: Compiled | None = None
    first_override: Compiled | None = None
    rest_override: Compiled | None = None
    names: frozenset[str] = frozenset()
    uid: int | None = None
    gid: int | None = None
    broken: bool = False


@dataclass
class _HostDraft:
    name: str
    groups: tuple[str, ...]
    raw: dict[str, t.Any]
    core: CoreVariables = field(default_factory=CoreVariables)
    core_plain: dict[str, t.Any] = field(default_factory=dict)
    drafts: dict[str, _Draft] = field(default_factory=dict)
    disabled: dict[str, Place] = field(default_factory=dict)
    layers: list[Layer] | None = None
    options: dict[str, t.Any] = field(default_factory=dict)
    variables: dict[str, t.Any] = field(default_factory=dict)  # what all templates of this host see
    broken: bool = False  # its own variables could not be composed
    failed: set[str] = field(default_factory=set)  # names of services that could not be composed


@dataclass
class Composition:
    """The composed fleet, with everything that is wrong or noteworthy."""

    fleet: Fleet
    report: Report
    #: Problems of single services and hosts, found before conflicts were looked for: (host, service or "").
    broken: set[tuple[str, str]]
    #: Contracts that the broken services offer, as far as known.
    broken_provides: dict[tuple[str, str], set[str]]
    secret_files: dict[str, list[str]]
    #: What is known of each host's secrets: names and states, never values.
    secrets: dict[str, conflicts.SecretNames] = field(default_factory=dict)
    #: Where a key path of a service of a host was written.
    locate: t.Callable[[str, str, t.Sequence[str | int]], Place] = lambda _host, _service, _path: NOWHERE

    def stopping(self, limit: t.Container[str]) -> list[Problem]:
        """The problems that stop a run on these hosts.

        Their own, and those of a host elsewhere that cannot be composed, if a plan in the limit is made of it.
        """
        found = set(self.report.of(limit))
        for name in {host for host, _service in self.broken if host not in limit}:
            if any(self._depends(host, name) for host in self.fleet.hosts.values() if host.name in limit):
                found.update(problem for problem in self.report.problems if problem.host == name)
        return sorted(found)

    def _depends(self, host: Host, other: str) -> bool:
        """Whether the plan of a host is made of what a broken host contributes."""
        if any(host.provider(contract) for contract in conflicts.FLEET_CONTRACTS):
            return True
        offered = set().union(*(found for (name, _service), found in self.broken_provides.items() if name == other))
        groups = self.fleet.hosts[other].groups if other in self.fleet.hosts else ()
        addressed = {other, *groups} if (other, "") in self.broken else set()
        return any(
            name in offered or name in addressed
            for service in host.services.values()
            for listen in service.contribution.listen.values()
            for name in listen.from_
        )


def compose(source: Source, extra: t.Mapping[str, t.Iterable[str]] | None = None) -> Composition:
    """Composes the whole inventory. ``extra`` adds services to hosts: roles that are used alone."""
    return _Composer(source, extra or {}).run()


class _Composer:
    def __init__(self, source: Source, extra: t.Mapping[str, t.Iterable[str]]) -> None:
        self.source = source
        self.extra = {host: tuple(names) for host, names in extra.items()}
        self.report = Report()
        self.environment = templates.environment()
        self.roles = Roles(source.role_dirs, self.environment)
        self.hosts: dict[str, _HostDraft] = {}
        self._groups = source.all_groups
        self._role_errors: dict[str, list[Problem]] = {}
        self._near: dict[tuple[str, str], str | None] = {}
        self._images: dict[str, images.RoleImages | None] = {}
        found, self._known_error = known.read(Path(directory) for directory in source.inventory_dirs)
        self._public_keys: known.PublicKeys = found.get(known.PUBLIC_KEYS, {})

    def run(self) -> Composition:
        for name in self.source.hosts:
            self.hosts[name] = _HostDraft(name, self.source.groups(name), self.source.variables(name))
        if not any(str(variable).startswith("hearth_") for host in self.hosts.values() for variable in host.raw):
            folders = "\n    ".join(self.source.searched) or "nowhere: no inventory was given"
            self.report.error(
                f"no host of the inventory ({len(self.hosts)} in all) has a hearth_ variable; searched:\n    {folders}",
                remedy="give the inventory with -i; its group_vars and host_vars lie beside it, or beside the playbook",
            )
            return Composition(Fleet({}), self.report, set(), {}, {})
        for host in self.hosts.values():
            self._core(host)
            self._services(host)
            self._options(host)
            self._first(host)
        providers = self._providers()
        fleet: dict[str, Host] = {}
        for host in self.hosts.values():
            self._addressed(host, providers)
            fleet[host.name] = self._rest(host)
            self._misspelt(host)
        used = {draft.role_name for host in self.hosts.values() for draft in host.drafts.values() if draft.role}
        for name, path in sorted(self.roles.shadowed.items()):
            if name in used:
                self.report.warn(f"the role {name} of {path} is used, not hearth.homelab's role of that name")
        composed = Fleet(fleet)
        files = {name: self._secret_files(host) for name, host in self.hosts.items()}
        facts = self._facts(files)
        self.report.merge(conflicts.check(composed, facts))
        if self._known_error:
            self.report.error(self._known_error, remedy="mend it, or remove it: playbooks/secrets.yml writes it again")
        broken = {(host.name, service) for host in self.hosts.values() for service in host.failed}
        broken |= {(host.name, "") for host in self.hosts.values() if host.broken}
        provides = {
            (host.name, draft.name): set(map(str, draft.data["provides"]))
            for host in self.hosts.values()
            for draft in host.drafts.values()
            if draft.name in host.failed and isinstance(draft.data.get("provides"), dict)
        }
        paths = {name: [str(path) for path in found] for name, found in files.items()}
        return Composition(composed, self.report, broken, provides, paths, dict(facts.secrets), self.locate)

    # --- core variables ----------------------------------------------------------------------------------------------

    def _core(self, host: _HostDraft) -> None:
        """The ``hearth_*`` variables: known names, resolved, typed."""
        names = []
        for name in host.raw:
            if not isinstance(name, str) or not name.startswith("hearth_"):
                continue
            if name == layers.SERVICES or name.startswith(f"{layers.SERVICES}__"):
                continue
            if name in _CORE_NAMES:
                names.append(name)
                continue
            host.broken = True
            self.report.error(
                f"unknown variable {name}", host=host.name, path=name,
                remedy=nearest(name, (*_CORE_NAMES, layers.SERVICES)) or "names with hearth_ are Hearth's own",
                **self._variable_place(host, name).where,
            )  # fmt: skip
        values, failed = self.source.resolve(_CORE_DEFAULTS | host.raw, names)
        for problem in failed:
            host.broken = True
            self.report.error(
                f"cannot be resolved: {problem.message}", host=host.name, path=problem.name, **problem.place.where
            )
        while True:
            try:
                host.core = CoreVariables.model_validate(
                    {key: value for key, value in values.items() if value is not None}
                )
                break
            except ValidationError as error:
                host.broken = True
                for entry in error.errors(include_url=False):
                    location = entry["loc"]
                    name = str(location[0])
                    place = layers.walk(host.raw.get(name), location[1:])[1]
                    if place is NOWHERE:
                        place = self._variable_place(host, name)
                    self._invalid(CoreVariables, entry, host.name, "", place)
                    values.pop(name, None)  # its default, so that everything else is looked at as well
        host.core_plain = host.core.model_dump(by_alias=True)

    def _variable_place(self, host: _HostDraft, name: str) -> Place:
        found = layers.place(host.raw.get(name))
        return found if found is not NOWHERE else layers.entry_place(host.raw, name)

    def _invalid(
        self, model: type[BaseModel], entry: t.Any, host: str, service: str, place: Place, prefix: str = ""
    ) -> None:
        """One of pydantic's errors in words: what was found, what is allowed, the nearest match."""
        location = key_path(entry["loc"])
        message, remedy = explain(model, entry, location)
        path = dotted(location)
        path = f"{prefix}.{path}" if prefix and path else prefix or path
        self.report.error(message, host=host, service=service, path=path, remedy=remedy, **place.where)

    # --- which services ----------------------------------------------------------------------------------------------

    def _services(self, host: _HostDraft) -> None:
        """Merges the layers of ``hearth_services`` and makes a draft of each enabled service."""
        entries: dict[str, t.Any] = {}
        off: dict[str, Place] = {}
        for layer in self._layers(host):
            for name, (value, place) in self._layer(host, layer).items():
                before = entries.get(name)
                if name in off and not (isinstance(value, dict) and "enabled" in value):
                    self.report.warn(
                        f"is disabled ({short_path(off[name].file)}:{off[name].line}) and named again in a later "
                        "layer, which does not say enabled: true: it stays disabled",
                        host=host.name, service=name, path=f"{layers.SERVICES}.{name}", **place.where,
                    )  # fmt: skip
                if isinstance(value, dict) and "enabled" in value:
                    off.pop(name, None)
                    if value["enabled"] is False:
                        off[name] = layers.entry_place(value, "enabled")
                entries[name] = (
                    _merge_layers(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
                )
        for name in self.extra.get(host.name, ()):
            entry = entries.get(name)
            entries[name] = {**entry, "enabled": True} if isinstance(entry, dict) else {}
        self._resolve_flags(host, entries)
        for name in sorted(entries):
            self._draft(host, name, entries[name])

    def _layers(self, host: _HostDraft) -> list[Layer]:
        if host.layers is None:
            host.layers = self.source.layers(host.name, host.raw)
        return host.layers

    def _layer(self, host: _HostDraft, layer: Layer) -> dict[str, tuple[t.Any, Place]]:
        """The services that one layer sets. Two of its variables, or files, that disagree are an error."""
        found: dict[str, tuple[t.Any, Place]] = {}
        for setting in layer.settings:
            value = setting.value
            if isinstance(value, str):
                resolved, failed = self.source.resolve(
                    {**_CORE_DEFAULTS, **host.raw, "hearth_value": value}, ["hearth_value"]
                )
                if failed:
                    host.broken = True
                    self.report.error(
                        f"cannot be resolved: {failed[0].message}",
                        host=host.name,
                        path=setting.variable,
                        **failed[0].place.where,
                    )
                    continue
                value = resolved["hearth_value"]
            if value is None:
                continue
            if not isinstance(value, dict):
                host.broken = True
                place = layers.place(setting.value)
                self.report.error(
                    f"found {shown(value)}; allowed: a mapping of services, such as {{sonarr: {{}}}}",
                    host=host.name, path=setting.variable, file=place.file or setting.file, line=place.line,
                )  # fmt: skip
                continue
            for key, entry in value.items():
                name, given = str(key), {} if entry is None else entry
                place = layers.entry_place(value, key)
                place = place if place.file else Place(setting.file)
                if name in found and layers.plain(found[name][0]) != layers.plain(given):
                    other = found[name][1]
                    host.failed.add(name)
                    self.report.error(
                        f"two variables of {layer.name} disagree: "
                        f"{short_path(other.file)}:{other.line} and {short_path(place.file)}:{place.line}",
                        host=host.name, service=name, path=f"{setting.variable}.{name}",
                        remedy="set the service in one of them, or the same in both", **place.where,
                    )  # fmt: skip
                    continue
                found.setdefault(name, (given, place))
        return found

    def _resolve_flags(self, host: _HostDraft, entries: dict[str, t.Any]) -> None:
        """``enabled`` and ``role`` decide what is composed: they are resolved before anything else."""
        pending: dict[str, tuple[str, str]] = {}
        for name, entry in entries.items():
            if isinstance(entry, dict):
                for key in ("enabled", "role"):
                    if isinstance(entry.get(key), str) and layers.templated(entry[key]):
                        pending[f"hearth_flag_{len(pending)}"] = (name, key)
        if not pending:
            return
        variables = _CORE_DEFAULTS | host.raw | {flag: entries[name][key] for flag, (name, key) in pending.items()}
        values, failed = self.source.resolve(variables, pending)
        for flag, (name, key) in pending.items():
            entries[name] = {**entries[name], key: values.get(flag)}
        for problem in failed:
            name, key = pending[problem.name]
            host.failed.add(name)
            entries[name] = {**entries[name], "enabled": False}
            self.report.error(
                f"cannot be resolved: {problem.message}",
                host=host.name, service=name, path=f"{layers.SERVICES}.{name}.{key}", **problem.place.where,
            )  # fmt: skip

    def _draft(self, host: _HostDraft, name: str, entry: t.Any) -> None:
        key = f"{layers.SERVICES}.{name}"
        place = self._entry_place(host, name)

        def error(message: str, remedy: str = "", path: str = key, at: Place = place) -> None:
            host.failed.add(name)
            self.report.error(message, host=host.name, service=name, path=path, remedy=remedy, **at.where)

        if not _NAME.match(name) or name in _RESERVED:
            allowed = "a lower-case letter, then lower-case letters, digits and _, at most 32; not people or sops"
            error(f"{name!r} cannot be a service's name; allowed: {allowed}", f"call it {_valid_name(name)}")
            return
        if not isinstance(entry, dict):
            words = f"{name}: {{}} enables it, {name}: {{enabled: false}} disables it"
            error(f"found {shown(entry)}; allowed: a mapping", words)
            return
        try:
            checked = ServiceEntry.model_validate(
                {
                    **layers.plain(entry),
                    **({"enabled": entry["enabled"]} if isinstance(entry.get("enabled"), bool) else {}),
                }
            )
        except ValidationError as problem:
            for detail in problem.errors(include_url=False):
                host.failed.add(name)
                at = layers.walk(entry, detail["loc"])[1]
                self._invalid(ServiceEntry, detail, host.name, name, at if at is not NOWHERE else place, key)
            return
        if not checked.enabled:
            host.disabled[name] = layers.entry_place(entry, "enabled") if "enabled" in entry else place
            return
        role_name = checked.role or name
        role: Role | None = None
        if checked.contribution is None:
            try:
                role = self.roles.get(role_name)
            except RoleError as problem:
                self._role_errors[role_name] = [
                    Problem(
                        service=role_name, message=problem.message, remedy="correct the role", **problem.place.where
                    )
                ]
            if role_name in self._role_errors:
                for found in self._role_errors[role_name]:
                    error(found.message, found.remedy, "", Place(found.file, found.line))
                return
            if role is None:
                there = self.roles.without_contribution(role_name)
                at = layers.entry_place(entry, "role") if "role" in entry else place
                if there:
                    error(
                        f"the role {there} has no vars/contribution.yml",
                        "write one, or use `contribution:` here",
                        at=at,
                    )
                else:
                    hint = nearest(role_name, self.roles.paths)
                    error(
                        f"unknown service: there is no role {role_name!r}",
                        hint or f"`contribution:` needs none; roles are searched in {', '.join(self.roles.searched)}",
                        at=at,
                    )
                return
        draft = _Draft(
            name, role_name if role else name, role, entry, View(name=name, role=role_name if role else name)
        )
        self._compile(host, draft)
        host.drafts[name] = draft

    def _compile(self, host: _HostDraft, draft: _Draft) -> None:
        """Compiles what the inventory says; a role is compiled once, when it is read."""
        override = draft.entry.get("override") or {}
        own = draft.entry.get("contribution") or {}
        for key, data in (("override", override), ("contribution", own)):
            if layers.vaulted(data):
                draft.broken = True
                host.failed.add(draft.name)
                self.report.error(
                    layers.NO_SECRETS, host=host.name, service=draft.name, path=f"{layers.SERVICES}.{draft.name}.{key}",
                    **layers.entry_place(draft.entry, key).where,
                )  # fmt: skip
                return
        draft.override, draft.own = override, own
        if draft.role:
            draft.first, draft.rest = draft.role.first, draft.role.rest
        else:
            draft.first, draft.rest = self._split(own)
        if override:
            draft.first_override, draft.rest_override = self._split(override)
        names: set[str] = set(draft.role.names) if draft.role else set()
        for compiled, key in (
            (None if draft.role else draft.first, "contribution"),
            (None if draft.role else draft.rest, "contribution"),
            (draft.first_override, "override"),
            (draft.rest_override, "override"),
        ):
            if compiled is not None:
                names |= compiled.names
                for path, message in compiled.errors:
                    self._failed(host, draft, path, message, key)
        draft.names = frozenset(names)

    def _split(self, data: dict[str, t.Any]) -> tuple[Compiled, Compiled]:
        first = {key: data[key] for key in FIRST if key in data}
        rest = {key: value for key, value in data.items() if key not in FIRST}
        return Compiled(self.environment, first, layers.trusted), Compiled(self.environment, rest, layers.trusted)

    def _entry_place(self, host: _HostDraft, name: str) -> Place:
        """Where a service is named; of several layers the last one."""
        for layer in reversed(self._layers(host)):
            for setting in layer.settings:
                if isinstance(setting.value, dict) and name in setting.value:
                    found = layers.entry_place(setting.value, name)
                    return found if found.file else Place(setting.file)
        return NOWHERE

    # --- options -----------------------------------------------------------------------------------------------------

    def _options(self, host: _HostDraft) -> None:
        """Resolves the options of all enabled roles, and every other variable that a template names."""
        defaults: dict[str, t.Any] = {}
        roles: dict[str, Role] = {}
        names: set[str] = set()
        for draft in host.drafts.values():
            names |= draft.names
            if draft.role and draft.role.name not in roles:
                roles[draft.role.name] = draft.role
                defaults.update(draft.role.defaults)
        raw = _CORE_DEFAULTS | defaults | host.raw
        late = {option for role in roles.values() for option in self._late(role, raw)}
        options = [option for role in roles.values() for option in role.options if option in raw and option not in late]
        others = [
            name for name in names
            if name in raw and name not in _CORE_NAMES and name not in defaults and name not in _OWN_NAMES
            and name not in _OPAQUE and not name.endswith("_secrets") and name not in late
        ]  # fmt: skip
        values, failed = self.source.resolve(raw, [*options, *others])
        unresolved = {problem.name: problem for problem in failed}
        host.options = values
        host.variables = {
            **values,
            **host.core_plain,
            "hearth": host.core_plain,
            "inventory_hostname": host.name,
            "group_names": sorted(host.groups),
            "inventory_hostname_short": host.name.split(".")[0],
        }
        said: set[str] = set()
        for draft in host.drafts.values():
            self._instance(host, draft, raw)
            for name in (draft.role.options | draft.names) if draft.role else draft.names:
                if name in unresolved and name not in draft.overlay:
                    if draft.role and name not in draft.role.options and not draft.role.uses(name):
                        continue  # a word of a template that is no variable there
                    host.failed.add(draft.name)
                    draft.broken = True
                    if name not in said:
                        said.add(name)
                        problem = unresolved[name]
                        place = problem.place
                        if place is NOWHERE and draft.role and name in draft.role.defaults:
                            place = draft.role.locate_default(name)
                        self.report.error(
                            f"cannot be resolved: {problem.message}",
                            host=host.name,
                            service=draft.name,
                            path=name,
                            **place.where,
                        )

    def _late(self, role: Role, raw: t.Mapping[str, t.Any]) -> dict[str, Compiled]:
        """Options that name ``service``: they differ between instances, so each instance resolves its own."""
        late: dict[str, Compiled] = {}
        candidates: dict[str, Compiled] = {}
        for option in role.options:
            value = raw.get(option)
            if layers.templated(value):
                compiled = Compiled(self.environment, value)
                if not compiled.errors:
                    candidates[option] = compiled
        names = {"service"}
        while True:
            found = [option for option in candidates if option not in late and candidates[option].names & names]
            if not found:
                return late
            for option in found:
                late[option] = candidates[option]
                names.add(option)

    def _instance(self, host: _HostDraft, draft: _Draft, raw: dict[str, t.Any]) -> None:
        """The options of one service: the host's, and its own ``options:`` over them; then their types."""
        role = draft.role
        given = draft.entry.get("options") or {}
        if role is None:
            if given:
                host.failed.add(draft.name)
                self.report.error(
                    "an inline service has no options: there is no role that would use them",
                    host=host.name, service=draft.name, path=f"{layers.SERVICES}.{draft.name}.options",
                    **layers.entry_place(draft.entry, "options").where,
                )  # fmt: skip
            return
        own: dict[str, t.Any] = {}
        for key, value in given.items():
            option = (
                f"{role.name}_{key}" if f"{role.name}_{key}" in role.options or key not in role.options else str(key)
            )
            if option not in role.options:
                host.failed.add(draft.name)
                known = [role.short(name) for name in role.options]
                self.report.error(
                    f"unknown option {key!r} of the role {role.name}; it has: {', '.join(sorted(known)) or 'none'}",
                    host=host.name, service=draft.name, path=f"{layers.SERVICES}.{draft.name}.options.{key}",
                    remedy=nearest(str(key), known), **layers.entry_place(given, key).where,
                )  # fmt: skip
                continue
            own[option] = value
        if own:
            self._overlay(host, draft, role, raw, own)
        late = self._late(role, {**raw, **own})
        if late:
            self._resolve_late(host, draft, late)
        self._typed(host, draft, role, own)
        if draft.name == role.name:
            # What others see of this role; options given to one instance are its own.
            host.variables.update({option: value for option, value in draft.overlay.items() if option not in own})

    def _overlay(
        self, host: _HostDraft, draft: _Draft, role: Role, raw: dict[str, t.Any], own: dict[str, t.Any]
    ) -> None:
        """Options of one instance: the given ones, and those of the role's that are made of them."""
        merged = {**raw, **own}
        late = self._late(role, merged)
        names = [option for option in role.options if option in own or layers.templated(raw.get(option))]
        values, failed = self.source.resolve(merged, [name for name in names if name not in late])
        draft.overlay = values
        for problem in failed:
            host.failed.add(draft.name)
            draft.broken = True
            key = role.short(problem.name)
            path = f"{layers.SERVICES}.{draft.name}.options.{key}" if problem.name in own else problem.name
            self.report.error(
                f"cannot be resolved: {problem.message}",
                host=host.name,
                service=draft.name,
                path=path,
                **problem.place.where,
            )

    def _resolve_late(self, host: _HostDraft, draft: _Draft, late: dict[str, Compiled]) -> None:
        scope = self.environment.scope(host.variables, draft.overlay, {"service": draft.view})
        todo = dict(late)
        while todo:
            ready = [option for option in todo if not (todo[option].names - {option}) & todo.keys()] or list(todo)
            for option in ready:

                def failed(_path: tuple[str | int, ...], message: str, option: str = option) -> None:
                    host.failed.add(draft.name)
                    draft.broken = True
                    self.report.error(
                        f"cannot be resolved: {_nicer(message, draft.view)}",
                        host=host.name, service=draft.name, path=option,
                        **self._option_place(host, draft, option).where,
                    )  # fmt: skip

                value = todo.pop(option).resolve(scope, failed)
                draft.overlay[option] = scope[option] = value

    def _typed(self, host: _HostDraft, draft: _Draft, role: Role, own: t.Mapping[str, t.Any]) -> None:
        """Checks the options' types, and keeps what had to be converted (``-e sonarr_port=8990`` is a string)."""
        short: dict[str, t.Any] = {}
        for option in role.options:
            value = draft.overlay.get(option, host.options.get(option))
            if value is None:
                if option in role.required and not draft.broken:
                    host.failed.add(draft.name)
                    self.report.error(
                        f"the role {role.name} needs the option {option}, which has no value", host=host.name,
                        service=draft.name, path=option, **self._option_place(host, draft, option).where,
                    )  # fmt: skip
                short[role.short(option)] = None
                continue
            try:
                typed = role.typed(option, value)
            except role_files.WrongTypeError as error:
                host.failed.add(draft.name)
                draft.broken = True
                path = f"{layers.SERVICES}.{draft.name}.options.{role.short(option)}" if option in own else error.path
                self.report.error(
                    f"wrong type of the option {option}: {error}", host=host.name, service=draft.name, path=path,
                    **self._option_place(host, draft, option).where,
                )  # fmt: skip
                continue
            if typed is not value and (type(typed) is not type(value) or typed != value):
                draft.overlay[option] = typed
            short[role.short(option)] = typed
        draft.view["options"] = short

    def _option_place(self, host: _HostDraft, draft: _Draft, option: str) -> Place:
        role = draft.role
        given = draft.entry.get("options")
        if role is not None and isinstance(given, dict):
            for key in (role.short(option), option):
                if key in given:
                    return layers.entry_place(given, key)
        if option in host.raw:
            return self._variable_place(host, option)
        return role.locate_default(option) if role else NOWHERE

    # --- contributions -----------------------------------------------------------------------------------------------

    def _failed(
        self, host: _HostDraft, draft: _Draft, path: t.Sequence[str | int], message: str, key: str = ""
    ) -> None:
        host.failed.add(draft.name)
        draft.broken = True
        place = self.locate(host.name, draft.name, path)
        text = _nicer(message, draft.view)
        hint = ""
        if match := re.match(r"^'(\w+)' is undefined", text):
            hint = _unavailable(match[1]) or nearest(
                match[1], (*host.variables, *draft.overlay, "service", "providers")
            )
        shown = dotted(path)
        self.report.error(
            text,
            host=host.name,
            service=draft.name,
            path=f"{key}.{shown}" if key else shown,
            remedy=hint,
            **place.where,
        )

    def _scope(self, host: _HostDraft, draft: _Draft) -> dict[str, t.Any]:
        return self.environment.scope(host.variables, draft.overlay, {"service": draft.view})

    def _resolve(
        self,
        host: _HostDraft,
        draft: _Draft,
        base: Compiled | None,
        override: Compiled | None,
        scope: dict[str, t.Any],
        only: str | None = None,
    ) -> dict[str, t.Any]:
        """Resolves, then merges the override over it. ``only`` is one top-level key."""

        def failed(path: tuple[str | int, ...], message: str) -> None:
            self._failed(host, draft, path, message)

        data = base.resolve(scope, failed, only) if base else {}
        if override is not None:
            data = merge(data, override.resolve(scope, failed, only))
        return t.cast("dict[str, t.Any]", data)

    def _first(self, host: _HostDraft) -> None:
        """Users, storage, ports, names: what others, and the rest of a contribution, refer to."""
        for draft in host.drafts.values():
            if draft.broken:
                continue
            scope = self._scope(host, draft)
            view = draft.view
            view.update(host=host.name, user="root", group="root", uid=None, gid=None, storage={}, ports={}, secrets={},
                        public_keys={}, url="", database={}, certificate={})  # fmt: skip
            for key in FIRST:
                draft.data.update(self._resolve(host, draft, draft.first, draft.first_override, scope, key))
                value = draft.data.get(key)
                if not isinstance(value, dict):
                    continue
                if key == "user":
                    self._user(host, draft, value)
                elif key == "storage":
                    view["storage"] = {name: entry.get("mountpoint") for name, entry in _mappings(value)}
                elif key == "listen":
                    view["ports"] = {name: _number(entry.get("port")) for name, entry in _mappings(value)}
                elif key == "secrets":
                    view["secrets"] = {name: HOLE.format(f"{draft.name}/{name}") for name in value}
                    # Without one (see conflicts.py) there is no plan, but the rest of the fleet is still looked at.
                    public = self._public_keys.get(host.name, {}).get(draft.name, {})
                    pairs = [name for name, entry in _mappings(value) if _is_keypair(entry.get("generate"))]
                    view["public_keys"] = {name: public.get(name, "") for name in pairs}
                elif key == "route" and host.core.hearth_domain and isinstance(value.get("name"), str):
                    domain = host.core.hearth_domain
                    name = domain if value["name"] == "@" else f"{route_name(value['name'])}.{domain}"
                    view["url"] = f"https://{name}/"
                    view["certificate"] = {"name": name, "issuer": host.core.hearth_certificates.issuer}
        self._group_ids(host)

    def _user(self, host: _HostDraft, draft: _Draft, value: dict[str, t.Any]) -> None:
        name = value.get("name")
        if not isinstance(name, str):
            return  # validation says so
        number = host.core.hearth_ids.users.get(name, _number(value.get("id")))
        if isinstance(number, int):
            draft.data["user"] = {**value, "id": number}
            draft.uid = number
        group = value.get("group")
        draft.view.update(user=name, group=group if isinstance(group, str) else name, uid=draft.uid)

    def _group_ids(self, host: _HostDraft) -> None:
        """The ids of primary groups: of the inventory, of the service's own user, or of another service's."""
        known = {**host.core.hearth_groups}
        for draft in host.drafts.values():
            if draft.uid is not None and draft.view["group"] == draft.view["user"]:
                known.setdefault(draft.view["group"], draft.uid)
        known.update(host.core.hearth_ids.groups)
        for draft in host.drafts.values():
            if draft.uid is None:
                continue
            draft.gid = known.get(draft.view["group"])
            draft.view["gid"] = draft.gid
            if draft.gid is None:
                group = draft.view["group"]
                self._failed(
                    host, draft, ("user", "group"),
                    f"the group {group} has no id: give it one in hearth_groups: {{{group}: NUMBER}}",
                )  # fmt: skip

    def _providers(self) -> dict[str, list[dict[str, t.Any]]]:
        """Contract -> what provides it, of the whole fleet, by host name."""
        found: dict[str, list[dict[str, t.Any]]] = {}
        for host in self.hosts.values():
            for draft in host.drafts.values():
                provides = draft.data.get("provides")
                for contract in provides if isinstance(provides, dict) else ():
                    lan = _addresses(host.core)["lan"]
                    found.setdefault(str(contract), []).append(
                        {
                            "host": host.name,
                            "service": draft.name,
                            "address": lan[0] if lan else None,
                            "ports": draft.view["ports"],
                        }
                    )
        return found

    def _addressed(self, host: _HostDraft, providers: dict[str, list[dict[str, t.Any]]]) -> None:
        """Adds to a host's variables where the fleet's providers are, as seen from this host."""
        here = {
            contract: [{**entry, "address": "127.0.0.1"} if entry["host"] == host.name else entry for entry in entries]
            for contract, entries in providers.items()
        }
        host.variables["providers"] = here
        for draft in host.drafts.values():
            wanted = draft.data.get("database")
            for kind, entry in _mappings(wanted) if isinstance(wanted, dict) else ():
                server = next((entry for entry in here.get(kind, ()) if entry["host"] == host.name), None)
                server = server or next(iter(here.get(kind, ())), None)
                ports = list(server["ports"].values()) if server else []
                database = {
                    "host": server["address"] if server else None,
                    "port": server["ports"].get(kind, ports[0] if ports else None) if server else None,
                    "name": entry.get("name", draft.name),
                    "user": entry.get("user") or entry.get("name", draft.name),
                    "socket": f"/run/{kind}",
                }
                draft.view["database"] = {**draft.view["database"], **database, kind: database}

    def _rest(self, host: _HostDraft) -> Host:
        """Resolves and validates the rest; gives the finished host."""
        services: dict[str, Service] = {}
        for draft in host.drafts.values():
            if draft.broken:
                continue
            scope = self._scope(host, draft)
            rest = self._resolve(host, draft, draft.rest, draft.rest_override, scope)
            if draft.broken:
                continue
            draft.data.update(rest)
            try:
                contribution = Contribution.model_validate(draft.data)
            except ValidationError as error:
                host.failed.add(draft.name)
                for entry in error.errors(include_url=False):
                    self._invalid(
                        Contribution, entry, host.name, draft.name, self.locate(host.name, draft.name, entry["loc"])
                    )
                continue
            if not self._templates_exist(host, draft, contribution):
                continue
            digest = self._digest(host, draft, contribution)
            services[draft.name] = Service(
                name=draft.name,
                host=host.name,
                role=draft.role_name,
                inline=draft.role is None,
                contribution=contribution,
                options=draft.view.get("options", {}),
                variables={**host.variables, **draft.overlay, "service": draft.view},
                role_path=draft.role.path if draft.role else None,
                uid=draft.uid,
                gid=draft.gid,
                digest=digest,
            )
        pairs = self._public_keys.get(host.name, {})
        public = {f"{service}/{key}": text for service, keys in pairs.items() for key, text in keys.items()}
        made = Host(host.name, host.groups, host.core, _addresses(host.core), services, public)
        return replace(made, services={name: services[name] for name in order(made)})

    def _digest(self, host: _HostDraft, draft: _Draft, contribution: Contribution) -> str:
        """The digest that the role's lock has for the service's image on this host; empty if nothing pins it."""
        if draft.role is None:
            return ""
        name = draft.role.name
        if name not in self._images:
            exists = (draft.role.path / images.FILE).exists()
            self._images[name] = images.read(draft.role, self.environment) if exists else None
        lock, container = self._images[name], contribution.run.container
        if lock is None:
            return ""
        for problem in lock.problems:
            host.failed.add(draft.name)
            self.report.problems.append(replace(problem, host=host.name, service=draft.name))
        pin = lock.pins.get(container.image) if container else None
        if not container or not pin or images.stand_in(host.core.hearth_image_overrides, container.image) is not None:
            return ""
        platform = images.PLATFORMS[host.core.hearth_platform.architecture]
        if platform not in pin.platforms and not lock.problems:
            host.failed.add(draft.name)
            keys = ("images", container.image, "platforms")
            self.report.error(
                f"{container.image} is not locked for {platform}; locked: {', '.join(sorted(pin.platforms))}",
                host=host.name, service=draft.name, path=dotted(keys), remedy=images.remedy(name),
                **role_files.locate(lock.file, keys)[1].where,
            )  # fmt: skip
        return pin.platforms.get(platform, "")

    def _templates_exist(self, host: _HostDraft, draft: _Draft, contribution: Contribution) -> bool:
        fine = True
        for index, file in enumerate(contribution.files):
            if file.template is None:
                continue
            path = ("files", index, "template")
            if draft.role is None:
                self._failed(host, draft, path, "an inline service has no templates/: write the text as `content`")
                fine = False
            elif not (draft.role.path / "templates" / file.template).is_file():
                folder = draft.role.path / "templates"
                present = [str(entry.relative_to(folder)) for entry in folder.rglob("*")] if folder.is_dir() else []
                hint = nearest(file.template, present)
                self._failed(
                    host,
                    draft,
                    path,
                    f"there is no template {file.template} in {folder}" + (f"; {hint}" if hint else ""),
                )
                fine = False
        return fine

    def locate(self, host_name: str, service: str, path: t.Sequence[str | int]) -> Place:
        """File and line of a key path of a service: in the inventory, if it says so there, else in its role."""
        host = self.hosts.get(host_name)
        if host is None:
            return NOWHERE
        if not service:
            value = host.raw.get(str(path[0])) if path else None
            found = layers.walk(value, [int(step) if str(step).isdigit() else step for step in path[1:]])[1]
            return found if found is not NOWHERE or not path else self._variable_place(host, str(path[0]))
        draft = host.drafts.get(service)
        if draft is None:
            return self._entry_place(host, service)
        depth, found = layers.walk(draft.override, path) if draft.override else (0, NOWHERE)
        if draft.role is None:
            own_depth, own = layers.walk(draft.own, path)
            if own is NOWHERE:
                own = self._entry_place(host, service)
            return found if depth and depth >= own_depth else own
        own_depth, own = draft.role.locate(path)
        return found if depth and depth >= own_depth and found is not NOWHERE else own

    # --- variables that nobody reads ---------------------------------------------------------------------------------

    def _misspelt(self, host: _HostDraft) -> None:
        """Variables that look like an option of an enabled role and are none."""
        enabled: dict[str, Role] = {draft.role.name: draft.role for draft in host.drafts.values() if draft.role}
        every = {option for role in enabled.values() for option in role.options}
        owners = {*self.roles.paths, *host.drafts}
        for name in host.raw:
            if not isinstance(name, str) or name in every or name in layers.MAGIC or "_" not in name:
                continue
            if name.startswith(("ansible_", "hearth_")) or any(
                fnmatch.fnmatchcase(name, pattern) for pattern in host.core.hearth_ignore
            ):
                continue
            owner = role_files.prefix_owner(name, owners)
            if owner is None:
                meant = self._cached_misspelt(name, enabled)
                if meant:
                    self._unknown(host, name, meant)
                continue
            if name == f"{owner}_secrets" or (owner not in host.drafts and owner not in enabled):
                continue
            role = enabled.get(owner)
            if role is None:
                draft = host.drafts[owner]
                instead = f"options of one instance are set in hearth_services: {{{owner}: {{options: ...}}}}"
                self._unread(host, name, draft.name, instead if draft.role else "an inline service has no options")
                continue
            meant = role_files.misspelt(name, role.options)
            if meant:
                self._unknown(host, name, meant)
            else:
                self._unread(host, name, owner, nearest(name, role.options))

    def _cached_misspelt(self, name: str, enabled: t.Mapping[str, Role]) -> str | None:
        for role in enabled.values():
            key = (name, role.name)
            if key not in self._near:
                self._near[key] = role_files.misspelt(name, role.options)
            if self._near[key]:
                return self._near[key]
        return None

    def _unknown(self, host: _HostDraft, name: str, meant: str) -> None:
        owner = next((draft.name for draft in host.drafts.values() if draft.role and meant in draft.role.options), "")
        self.report.error(
            f"unknown variable {name}", host=host.name, service=owner, path=name,
            remedy=f"did you mean {meant}? (hearth_ignore: [{name}] if it is a variable of your own)",
            **self._variable_place(host, name).where,
        )  # fmt: skip

    def _unread(self, host: _HostDraft, name: str, service: str, hint: str) -> None:
        self.report.warn(
            f"the variable {name} is no option of this service and is not read",
            host=host.name, service=service, path=name,
            remedy=f"{hint} (hearth_ignore: [{name}] silences this)".strip(),
            **self._variable_place(host, name).where,
        )  # fmt: skip

    # --- secrets and facts -------------------------------------------------------------------------------------------

    def _secret_dirs(self, host: _HostDraft) -> list[Path]:
        if host.core.hearth_secrets:
            return [Path(host.core.hearth_secrets)]
        return [Path(directory) / "secrets" for directory in self.source.inventory_dirs]

    def _home(self, host: _HostDraft) -> Path:
        """The inventory's directory where what is missing for a host is written: the one that defines the host."""
        directories = self.source.inventory_dirs
        own = str(host.raw.get("inventory_dir") or "")
        return Path(own if own in directories else next(iter(directories), ""))

    def _secret_files(self, host: _HostDraft) -> list[Path]:
        return sops_keys.files_of(self._secret_dirs(host), host.groups, host.name)

    def _facts(self, files: t.Mapping[str, list[Path]]) -> conflicts.Facts:
        secrets: dict[str, conflicts.SecretNames] = {}
        for name, host in self.hosts.items():
            entries: dict[str, sops_keys.Entry] = {}
            unreadable = []
            for path in files[name]:
                keys = sops_keys.read(path)
                if keys.error:
                    unreadable.append((str(path), keys.error_line, keys.error))
                entries.update(keys.entries)
            variables = self._secret_variables(host)
            home = self._home(host)
            place = Path(host.core.hearth_secrets or home / "secrets") / f"{name}.sops.yml"
            secrets[name] = conflicts.SecretNames(
                entries, variables, tuple(unreadable), str(place), str(home / known.FILE)
            )
        return conflicts.Facts(
            locate=self.locate,
            disabled={name: host.disabled for name, host in self.hosts.items()},
            broken=frozenset((host.name, service) for host in self.hosts.values() for service in host.failed),
            groups=self._groups,
            secrets=secrets,
            roles=frozenset(self.roles.paths),
        )

    def _secret_variables(self, host: _HostDraft) -> frozenset[str]:
        """Names in ``<service>_secrets`` variables (vault, AWX credentials). Values stay where they are."""
        found: set[str] = set()
        for service in (*host.drafts, sops_keys.PEOPLE):
            value = host.raw.get(f"{service}_secrets")
            if isinstance(value, str):
                name = f"{service}_secrets"
                value = self.source.resolve(_CORE_DEFAULTS | host.raw, [name], secrets=True)[0].get(name)
            if isinstance(value, dict):
                found.update(f"{service}/{key}" for key, entry in value.items() if entry is not None)
        return frozenset(found)


# --- small parts -----------------------------------------------------------------------------------------------------


def merge(base: t.Any, override: t.Any) -> t.Any:
    """``override`` over ``base``: mappings deeply, lists replaced, null removes."""
    if not isinstance(base, dict) or not isinstance(override, dict):
        return _without_nulls(override)
    result = dict(base)
    for key, value in override.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


def _without_nulls(value: t.Any) -> t.Any:
    return (
        {key: _without_nulls(entry) for key, entry in value.items() if entry is not None}
        if isinstance(value, dict)
        else value
    )


def _merge_layers(earlier: dict[t.Any, t.Any], later: dict[t.Any, t.Any]) -> dict[t.Any, t.Any]:
    """One layer over another: as ``merge``, but nulls stay, and each key keeps the tag of who wrote it last."""
    result = {key: value for key, value in earlier.items() if key not in later}
    for key, value in later.items():
        before = earlier.get(key)
        result[key] = _merge_layers(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return result


def order(host: Host) -> list[str]:
    """Names in dependency order: what is required, wanted or provides a contract first; then by tier, then by name."""
    before = {name: set(entries) for name, entries in conflicts.edges(host).items()}
    services = host.services
    after: dict[str, list[str]] = {name: [] for name in services}
    for name, entries in before.items():
        for entry in entries:
            after[entry].append(name)
    ready = [(TIERS.index(services[name].tier), name) for name, entries in before.items() if not entries]
    heapq.heapify(ready)
    found: list[str] = []
    while ready:
        _tier, name = heapq.heappop(ready)
        found.append(name)
        for following in after[name]:
            before[following].discard(name)
            if not before[following]:
                heapq.heappush(ready, (TIERS.index(services[following].tier), following))
    return [*found, *sorted(set(services) - set(found))]  # the rest is a cycle, which conflicts.py names


def _addresses(core: CoreVariables) -> dict[str, tuple[str, ...]]:
    given = core.hearth_addresses
    found: dict[str, tuple[str, ...]] = {}
    for zone in ("lan", "wan"):
        value = getattr(given, zone)
        found[zone] = (value,) if isinstance(value, str) else tuple(value or ())
    # `auto`: the mesh gives it; no mesh exists in this release.
    found["mesh"] = (given.mesh,) if given.mesh and given.mesh != "auto" else ()
    return found


def _mappings(value: dict[str, t.Any]) -> list[tuple[str, dict[str, t.Any]]]:
    return [(name, entry) for name, entry in value.items() if isinstance(entry, dict)]


def _is_keypair(generate: t.Any) -> bool:
    return isinstance(generate, dict) and "keypair" in generate


def _number(value: t.Any) -> t.Any:
    return int(value) if isinstance(value, str) and value.isdigit() else value


def _unavailable(name: str) -> str:
    """What to do about a variable that Ansible has and that templates here do not see."""
    if name in _OPAQUE:
        return f"{name} is not available here: set a variable to what you need of it, and use that"
    if name.endswith("_secrets"):
        return "a plan never contains a secret: use service.secrets.KEY, which is filled in on the host"
    return ""


def _valid_name(name: str) -> str:
    text = re.sub(r"[^a-z0-9_]", "_", name.lower())[:32]
    return text if _NAME.match(text) and text not in _RESERVED else f"s_{text}"[:32]


def _nicer(message: str, view: View) -> str:
    """Jinja's words for an unknown attribute of ``service``, in ours."""
    match = re.match(r"^'[\w.]*View object' has no attribute '(\w+)'$", message)
    if match is None:
        return message
    hint = nearest(match[1], view)
    return f"`service` has no {match[1]!r}; it has {', '.join(sorted(view))}" + (f"; {hint}" if hint else "")


# --- plans -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plans:
    """The plans of the limited hosts, and what people shall read."""

    plans: dict[str, HostPlan | None]  # None: composed, but no provider converges such a host yet
    warnings: tuple[str, ...]
    secret_files: dict[str, list[str]]


class ComposeError(Exception):
    """The composition cannot be used: ``problems`` are all of the fleet's, the stopping ones first in the text."""

    def __init__(self, problems: t.Sequence[Problem], others: t.Sequence[Problem] = ()) -> None:
        self.problems = [*problems, *others]
        count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
        text = f"{count}; nothing was changed.\n\n{listing(problems)}"
        if others:
            text += f"\n\nAlso, on hosts that this run does not concern:\n\n{listing(others)}"
        super().__init__(text)


def make_plans(source: Source, limit: t.Collection[str], extra: t.Mapping[str, t.Iterable[str]] | None = None) -> Plans:
    """Composes the fleet and renders the plans of the hosts in the limit. ComposeError has every problem."""
    from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import registry

    composition = compose(source, extra)
    fleet, report = composition.fleet, composition.report
    stopping = composition.stopping(limit)
    plans: dict[str, HostPlan | None] = {}
    rendered: set[Problem] = set()
    whole = {name for name in fleet.hosts if not any(host == name for host, _service in composition.broken)}
    for name in sorted(set(limit) & fleet.hosts.keys()):
        host = fleet.hosts[name]
        if name not in whole:
            continue
        if not host.managed:
            plans[name] = None
            continue
        try:
            plans[name] = _with_notices(fleet, host, registry.render_host(fleet, host))
        except registry.HostRenderError as error:
            rendered.update(_located(problem, composition) for problem in error.problems)
    # What a conflict has said already is not said again in the renderer's words.
    said = {(problem.host, problem.service, problem.path) for problem in stopping}
    stopping = sorted(
        {*stopping, *(entry for entry in rendered if (entry.host, entry.service, entry.path) not in said)}
    )
    others = sorted(set(report.problems) - set(stopping))
    if stopping:
        raise ComposeError(stopping, others)
    warnings = [_line(problem) for problem in sorted(set(report.warnings)) if problem.concerns(limit)]
    if others:
        warnings.append(f"problems of hosts that this run does not concern:\n{listing(others)}")
    return Plans(plans, tuple(dict.fromkeys(warnings)), composition.secret_files)


def _located(problem: Problem, composition: Composition) -> Problem:
    """A renderer's problem with the file and line of its key path, which renderers do not know."""
    path = [int(step) if step.isdigit() else step for step in problem.path.split(".")]
    if problem.file or not problem.path:
        return replace(problem, path=dotted(path))
    return replace(problem, path=dotted(path), **composition.locate(problem.host, problem.service, path).where)


def _line(problem: Problem) -> str:
    return str(problem).replace("\n    ", ": ")


def _with_notices(fleet: Fleet, host: Host, plan: HostPlan) -> HostPlan:
    said = {notice.partition(":")[0] for notice in plan.notices}
    ours = [text for contract, text in conflicts.notices(fleet, host) if contract not in said]
    return HostPlan(plan.manifest, plan.contents, tuple(sorted({*plan.notices, *ours})))


def ensure(
    action: t.Any, task_vars: t.Mapping[str, t.Any], hosts: t.Iterable[str] = (), services: t.Iterable[str] = ()
) -> tuple[Store, dict[str, t.Any]]:
    """Composes for the hosts of the play (and ``hosts``), unless this play has done so; gives the store and its index.

    ``services`` are added to these hosts: roles that are used alone. AnsibleActionFail carries the whole report, and
    ``problems`` in its result.
    """
    names = tuple(dict.fromkeys(services))
    source = Source.of_action(action, task_vars, alone=bool(names))
    limit = [
        host
        for host in dict.fromkeys((*(task_vars.get("ansible_play_hosts_all") or ()), *hosts))
        if host in source.hosts
    ]
    store = Store.of(source.play_id, names)
    with store.locked():
        index = store.index()
        if index is None or not set(limit) <= set(index["limit"]):
            index = _write(store, source, limit, names)
    if index["failure"]:
        raise AnsibleActionFail(index["failure"], result={"problems": index["problems"]})
    return store, index


def _write(store: Store, source: Source, limit: list[str], services: tuple[str, ...]) -> dict[str, t.Any]:
    index: dict[str, t.Any] = {
        "limit": limit,
        "failure": "",
        "problems": [],
        "hosts": {},
        "warnings": [],
        "secret_files": {},
        "sops": {},
    }
    sops = secret_values.Version()
    try:
        made = make_plans(source, limit, dict.fromkeys(limit, services) if services else None)
    except ComposeError as error:
        index |= {"failure": str(error), "problems": [problem.to_dict() for problem in error.problems]}
        store.write(index, {})
        return index
    index |= {
        "hosts": {name: _summary(plan) for name, plan in made.plans.items()},
        "warnings": list(made.warnings),
        "secret_files": made.secret_files,
        "sops": sops.known(),
    }
    store.write(index, made.plans)
    return index


def _summary(plan: HostPlan | None) -> dict[str, t.Any]:
    if plan is None:
        return {"managed": False}
    return {
        "managed": True,
        "digest": plan.manifest.digest,
        "services": sorted(plan.manifest.services),
        "items": len(plan.manifest.items),
        "notices": list(plan.notices),
    }


def plans_for(
    action: t.Any,
    task_vars: t.Mapping[str, t.Any],
    hosts: t.Iterable[str] | None = None,
    services: t.Iterable[str] | None = None,
) -> dict[str, HostPlan | None]:
    """The plans of ``hosts`` (without: of the play's), composed now if this play has not composed yet.

    None for a host that is composed and that nothing converges yet. ``services`` as in ``ensure``.
    """
    wanted = list(hosts or ())
    store, index = ensure(action, task_vars, wanted, services or ())
    return {name: store.plan(name) if index["hosts"][name]["managed"] else None for name in wanted or index["hosts"]}


def secret_files(action: t.Any, task_vars: t.Mapping[str, t.Any], host: str) -> tuple[list[str], dict[str, str]]:
    """The SOPS files of a host, lowest precedence first: of its groups, then its own. And which sops there is."""
    source = Source.of_action(action, task_vars)
    # Any composition of this play knows them: they do not depend on the services that a role alone adds.
    for index in Store.of(source.play_id, ()).siblings():
        if host in index["secret_files"]:
            return index["secret_files"][host], index["sops"]
    index = ensure(action, task_vars, [host])[1]
    return index["secret_files"].get(host, []), index["sops"]
