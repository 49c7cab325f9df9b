# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible's variables: the layers of the whole inventory, where each value comes from, and the templar.

This is the only file that uses ansible-core's private parts (the variable manager behind ``hostvars``, origin and
trust tags, the vars plugins' file search). A minor version of ansible-core may change them: `TESTED` has those with which
tests/unit/controller/test_layers.py and the integration tests pass, and another one fails the former.

Sources: ``ansible/vars/manager.py`` (order of the layers), ``ansible/inventory/helpers.py`` (order of groups).
"""

from __future__ import annotations

import os
import typing as t
from dataclasses import dataclass
from pathlib import Path

from ansible import constants, context
from ansible._internal._datatag._tags import Origin, TrustedAsTemplate, VaultedValue
from ansible.errors import AnsibleError
from ansible.inventory.helpers import sort_groups
from ansible.parsing.vault import EncryptedString
from ansible.template import Templar, trust_as_template
from ansible.vars.plugins import get_vars_from_path
from ansible_collections.hearth.homelab.plugins.plugin_utils.templates import is_template

#: ansible-core's minor versions that the tests pass with: the one of requirements.txt, and the newest that Debian 13's Python
#: takes (make molecule SCENARIO=controllers). meta/runtime.yml ends after the last one: Ansible itself warns of a later one.
TESTED = ("2.19", "2.21")

#: Variables of this name, and of this name with a suffix, are merged by key over all layers.
SERVICES = "hearth_services"

#: What Ansible puts among a host's variables besides those of the inventory and the play.
MAGIC = frozenset(
    (
        "ansible_facts", "ansible_version", "environment", "group_names", "groups", "hostvars", "inventory_dir",
        "inventory_file", "inventory_hostname", "inventory_hostname_short", "omit", "play_hosts", "playbook_dir",
        "role_name", "role_names", "role_path", "role_uuid", "vars",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a value was written; ``line`` and ``column`` count from 1 (0: unknown)."""

    file: str
    line: int = 0
    column: int = 0

    @property
    def where(self) -> dict[str, t.Any]:
        """As keyword arguments of a Problem."""
        return {"file": self.file, "line": self.line}


NOWHERE = Place("")


def place(value: t.Any) -> Place:
    """Where a value comes from: its own tag, or that of the first thing in it that has one."""
    origin = Origin.get_tag(value)
    if origin is not None:
        if origin.path:
            return Place(str(origin.path), origin.line_num or 0, origin.col_num or 0)
        return Place(str(origin.description or "").strip("<>"), origin.line_num or 0)
    if isinstance(value, dict):
        for key, entry in value.items():
            found = place(key)
            if found is NOWHERE:
                found = place(entry)
            if found is not NOWHERE:
                return found
    elif isinstance(value, list | tuple):
        for entry in value:
            found = place(entry)
            if found is not NOWHERE:
                return found
    return NOWHERE


def entry_place(mapping: t.Mapping[t.Any, t.Any], key: str) -> Place:
    """Where ``key`` of a mapping was written: booleans and nulls carry no tag, their keys do."""
    for candidate in mapping:
        if candidate == key:
            found = place(candidate)
            return found if found is not NOWHERE else place(mapping[candidate])
    return NOWHERE


def walk(value: t.Any, path: t.Sequence[str | int]) -> tuple[int, Place]:
    """How many steps of ``path`` exist in a value, and where the last one was written.

    Steps that do not exist and are no keys of it (pydantic names the branches of a union) are passed over.
    """
    depth, found = 0, place(value)
    for step in path:
        if isinstance(value, dict) and isinstance(step, str) and step in value:
            here = entry_place(value, step)
            value = value[step]
        elif isinstance(value, list | tuple) and isinstance(step, int) and step < len(value):
            value = value[step]
            here = place(value)
        else:
            continue
        depth += 1
        if here is not NOWHERE:
            found = here
    return depth, found


def trusted(value: str) -> bool:
    """Whether Ansible would render this string: what comes from modules or the network is never a template."""
    return bool(TrustedAsTemplate.is_tagged_on(value))


def trust(value: t.Any) -> t.Any:
    """The same data with all strings that hold templates trusted: for files of roles, read without Ansible's loader.

    A subclass of str (what ``!unsafe`` gave) stays as it is.
    """
    if isinstance(value, str):
        return trust_as_template(value) if type(value) is str and is_template(value) else value
    if isinstance(value, dict):
        return {key: trust(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [trust(entry) for entry in value]
    return value


def plain(value: t.Any) -> t.Any:
    """The same data as Python's own types, without tags. Something that is no data is its text."""
    kind = type(value)
    if kind in _NATIVE:
        return value
    if isinstance(value, bool):
        return value
    if isinstance(value, EncryptedString):
        return str(value)
    for base in (str, int, float):
        if isinstance(value, base):
            return base(value)
    if isinstance(value, t.Mapping):
        return {plain(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in value]
    return str(value)


_NATIVE = frozenset((str, int, float, bool, type(None)))


def templated(value: t.Any) -> bool:
    """Whether the templar has something to do here: a trusted template or a vaulted string, at any depth."""
    if isinstance(value, EncryptedString):
        return True
    if isinstance(value, str):
        return is_template(value) and trusted(value)
    if isinstance(value, dict):
        return any(templated(entry) for entry in value.values())
    if isinstance(value, list | tuple):
        return any(templated(entry) for entry in value)
    return False


def vaulted(value: t.Any) -> bool:
    """Whether a value, at any depth, is or was a string encrypted with Ansible Vault."""
    if isinstance(value, EncryptedString) or VaultedValue.is_tagged_on(value):
        return True
    if isinstance(value, dict):
        return any(vaulted(entry) for entry in value.values())
    return isinstance(value, list | tuple) and any(vaulted(entry) for entry in value)


#: Why a vaulted value cannot be used here.
NO_SECRETS = (
    "it is encrypted with Ansible Vault, and a plan never contains a secret: give it in a secrets file, or in the variable "
    "<service>_secrets, and use service.secrets.KEY"
)


@dataclass(frozen=True)
class Setting:
    """One ``hearth_services`` or ``hearth_services__*`` variable as one source sets it."""

    variable: str
    value: t.Any
    file: str  # where it is, for messages


@dataclass(frozen=True)
class Layer:
    """Settings of equal rank: those of one group (or host) in one place."""

    name: str
    settings: tuple[Setting, ...]


@dataclass(frozen=True)
class Unresolved:
    """A variable that cannot be resolved."""

    name: str
    message: str
    place: Place


class Source:
    """All variables of the whole inventory, whatever the limit is."""

    def __init__(self, inventory: t.Any, manager: t.Any, loader: t.Any, play: t.Any = None, task: t.Any = None) -> None:
        """``inventory``, ``manager`` and ``loader`` are Ansible's InventoryManager, VariableManager, DataLoader.

        ``task`` is that of a role that is used alone: the role's parameters and variables count then.
        """
        self._inventory = inventory
        self._manager = manager
        self._loader = loader
        self._play = play
        self._task = task
        self._cache: dict[tuple[str, str, str], tuple[Layer, ...]] = {}
        self._plain: dict[int, tuple[t.Any, bool, t.Any]] = {}
        self._hosts: dict[str, t.Any] = {
            plain(host.name): host for host in inventory.get_hosts("all", ignore_limits=True, ignore_restrictions=True)
        }

    @classmethod
    def of_action(cls, action: t.Any, task_vars: t.Mapping[str, t.Any], alone: bool = False) -> Source:
        """The source behind a running action plugin; ``alone`` in a role that is used without the site's play."""
        hostvars = task_vars["hostvars"]
        task = action._task
        return cls(
            hostvars._inventory, hostvars._variable_manager, hostvars._loader, task.get_play(), task if alone else None
        )

    @property
    def hosts(self) -> list[str]:
        return sorted(self._hosts)

    @property
    def play_id(self) -> str:
        """Names the play: one composition serves all batches of a play."""
        return str(self._play._uuid) if self._play is not None else ""

    def groups(self, host: str) -> tuple[str, ...]:
        """The host's groups in the order in which Ansible merges their variables, without ``all``."""
        found = sort_groups(self._hosts[host].get_groups())
        return tuple(plain(group.name) for group in found if group.name != "all")

    @property
    def all_groups(self) -> dict[str, tuple[str, ...]]:
        """Every group of the inventory with its hosts."""
        return {
            plain(name): tuple(sorted(map(plain, hosts))) for name, hosts in self._inventory.get_groups_dict().items()
        }

    @property
    def basedirs(self) -> list[str]:
        """Directories beside the play, whose group_vars and host_vars count."""
        return [os.path.abspath(self._loader.get_basedir())] if self._manager.safe_basedir else []

    @property
    def inventory_dirs(self) -> list[str]:
        """Directories of the inventory's sources."""
        found = []
        for source in self._inventory._sources:
            if source is None or ("," in source and not os.path.exists(source)):
                continue  # a list of hosts
            directory = source if os.path.isdir(source) else os.path.dirname(source)
            found.append(os.path.abspath(directory))
        return list(dict.fromkeys(found))

    @property
    def searched(self) -> list[str]:
        """Where variables were looked for."""
        return [
            os.path.join(directory, kind)
            for directory in dict.fromkeys((*self.inventory_dirs, *self.basedirs))
            for kind in ("group_vars", "host_vars")
        ]

    @property
    def role_dirs(self) -> list[Path]:
        """Directories of the user's own roles: beside the play, the playbook and the inventory, and roles_path."""
        found = [os.path.join(directory, "roles") for directory in self.basedirs]
        for argument in context.CLIARGS.get("args") or ():
            if isinstance(argument, str) and os.path.isfile(argument):  # ansible-playbook's playbooks
                found.append(os.path.join(os.path.dirname(os.path.abspath(argument)), "roles"))
        for directory in self.inventory_dirs:
            found.append(os.path.join(directory, "roles"))
            if os.path.basename(os.path.dirname(directory)) == "inventories":
                found.append(os.path.join(os.path.dirname(os.path.dirname(directory)), "roles"))
        found.extend(constants.DEFAULT_ROLES_PATH or ())
        return [Path(directory) for directory in dict.fromkeys(os.path.realpath(entry) for entry in found)]

    def variables(self, host: str) -> dict[str, t.Any]:
        """All variables of one host as Ansible's own precedence has them, not yet templated."""
        names = self.hosts if self._play is not None else None
        return t.cast(
            "dict[str, t.Any]",
            self._manager.get_vars(
                play=self._play, host=self._hosts[host], task=self._task, _hosts=names, _hosts_all=names
            ),
        )

    # --- hearth_services, layer by layer -----------------------------------------------------------------------------

    def layers(self, host: str, variables: t.Mapping[str, t.Any]) -> list[Layer]:
        """The layers of ``hearth_services*`` of one host, lowest precedence first.

        Ansible itself would keep only one of two groups' variables of the same name (measured).
        """
        entity = self._hosts[host]
        groups = [group for group in sort_groups(entity.get_groups()) if group.name != "all"]
        everyone = [self._inventory.groups["all"]]
        found: list[Layer] = []
        for entry in constants.VARIABLE_PRECEDENCE:
            scope, _underscore, kind = entry.partition("_")
            for group in everyone if scope == "all" else groups:
                found.extend(self._entity_layers(group, "group", kind))
        for kind in ("inventory", "plugins_inventory", "plugins_play"):
            found.extend(self._entity_layers(entity, "host", kind))
        known = [setting for layer in found for setting in layer.settings]
        late: list[Layer] = []
        if self._play is not None:
            late.extend(self._layer("the play's variables", self._play.get_vars()))
        late.extend(self._layer("include_vars", self._manager._vars_cache.get(host, {})))
        late.extend(self._layer("set_fact", self._manager._nonpersistent_fact_cache.get(host, {})))
        last = self._layer("extra variables (-e)", self._manager.extra_vars)
        known.extend(setting for layer in (*late, *last) for setting in layer.settings)
        # vars_files, role variables and whatever else Ansible may add: seen only by its result.
        rest = {
            name: value
            for name, value in variables.items()
            if _is_services(name) and not any(name == entry.variable and value == entry.value for entry in known)
        }
        return [*found, *self._layer("the play", rest), *late, *last]

    def _entity_layers(self, entity: t.Any, what: str, kind: str) -> tuple[Layer, ...]:
        key = (what, entity.name, kind)
        found = self._cache.get(key)
        if found is None:
            if kind == "inventory":
                found = self._layer(f"{what} {entity.name} in the inventory", entity.vars)
            elif kind in ("plugins_inventory", "plugins_play"):
                directories = self.inventory_dirs if kind == "plugins_inventory" else self.basedirs
                layers = [self._file_layer(directory, entity, what) for directory in directories]
                found = tuple(layer for layer in layers if layer.settings)
            else:
                found = ()
            self._cache[key] = found
        return found

    def _file_layer(self, directory: str, entity: t.Any, what: str) -> Layer:
        """What group_vars (host_vars) beside ``directory`` say of a group (host): all its files are one layer."""
        settings: list[Setting] = []
        folder = os.path.join(os.path.realpath(directory), f"{what}_vars")
        if os.path.isdir(folder):
            for file in self._loader.find_vars_files(folder, entity.name):
                # The same call as Ansible's own vars plugin makes, so that this is answered from its cache.
                name = file if isinstance(file, str) else os.fsdecode(file)
                data = self._loader.load_from_file(name, cache="all", unsafe=True, trusted_as_template=True)
                if isinstance(data, dict):
                    settings.extend(Setting(str(key), data[key], name) for key in data if _is_services(key))
        # Other vars plugins: seen only by the combined result.
        combined = get_vars_from_path(self._loader, directory, [entity], "task")
        for key, value in combined.items():
            if _is_services(key) and not any(key == entry.variable and value == entry.value for entry in settings):
                settings.append(Setting(str(key), value, place(value).file or directory))
        return Layer(f"{what} {entity.name}", tuple(settings))

    @staticmethod
    def _layer(name: str, variables: t.Mapping[str, t.Any]) -> tuple[Layer, ...]:
        settings = tuple(
            Setting(str(key), value, place(value).file or name) for key, value in variables.items() if _is_services(key)
        )
        return (Layer(name, settings),) if settings else ()

    # --- resolving ---------------------------------------------------------------------------------------------------

    def _as_plain(self, value: t.Any) -> tuple[bool, t.Any]:
        """Whether the templar is needed and, if not, the plain value. Hosts share the values of their groups."""
        known = self._plain.get(id(value))
        if known is None:
            needed = templated(value)
            known = self._plain[id(value)] = (value, needed, None if needed else plain(value))
        return known[1], known[2]

    def resolve(
        self, variables: dict[str, t.Any], names: t.Iterable[str], secrets: bool = False
    ) -> tuple[dict[str, t.Any], list[Unresolved]]:
        """The values of these variables (those that exist), resolved, without tags; and those that cannot be.

        A value that comes out of Ansible Vault is one of the latter, unless ``secrets`` are asked for.

        One compound expression for all that hold templates: the templar costs 1 ms per string, and 46 ms for
        1,000 in one expression (measured). Only when that fails each is tried alone, to say which one it is.
        """
        values: dict[str, t.Any] = {}
        pending: list[str] = []
        for name in names:
            if name in variables:
                needed, value = self._as_plain(variables[name])
                if needed:
                    pending.append(name)
                else:
                    values[name] = value
        if not pending:
            return values, []
        templar = Templar(loader=self._loader, variables=variables)
        try:
            found = self._evaluate(templar, pending)
            failed = (
                []
                if secrets
                else [Unresolved(name, NO_SECRETS, place(variables[name])) for name in pending if vaulted(found[name])]
            )
            hidden = {problem.name for problem in failed}
            values.update({name: plain(value) for name, value in found.items() if name not in hidden})
            return values, failed
        except AnsibleError:
            pass
        failed = []
        for name in pending:
            try:
                value = self._evaluate(templar, [name])[name]
                if vaulted(value) and not secrets:
                    failed.append(Unresolved(name, NO_SECRETS, place(variables[name])))
                else:
                    values[name] = plain(value)
            except AnsibleError as error:
                failed.append(Unresolved(name, _reason(error), _error_place(error, variables[name])))
        return values, failed

    @staticmethod
    def _evaluate(templar: Templar, names: list[str]) -> dict[str, t.Any]:
        expression = "{" + ", ".join(f"'{name}': {name}" for name in names) + "}"
        return t.cast("dict[str, t.Any]", templar.evaluate_expression(trust_as_template(expression)))


def _is_services(name: object) -> bool:
    return isinstance(name, str) and (name == SERVICES or name.startswith(f"{SERVICES}__"))


def _reason(error: BaseException) -> str:
    """The innermost message of Ansible's chain of errors: the outer ones only say where."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(getattr(error, "message", None) or error).strip().rstrip(".")


def _error_place(error: BaseException, value: t.Any) -> Place:
    """Where the failing string was written: of the innermost error that knows, else of the variable."""
    found = place(value)
    current: BaseException | None = error
    while current is not None:
        here = place(getattr(current, "obj", None))
        if here is not NOWHERE and Path(here.file).is_file():
            found = here
        current = current.__cause__
    return found
