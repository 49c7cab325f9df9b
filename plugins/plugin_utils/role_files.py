# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Role directories: the contribution, the options with their defaults and types.

Each role is read once per composition. Its files are read by libyaml's plain loader (0.4 ms for a contribution;
Ansible's, which tags every value with its origin, takes 1.8 ms): lines are looked up when an error needs them.
"""

from __future__ import annotations

import difflib
import functools
import re
import typing as t
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml
from ansible.module_utils.common.validation import (
    check_type_bool,
    check_type_dict,
    check_type_float,
    check_type_int,
    check_type_list,
    check_type_str,
)
from ansible_collections.hearth.homelab.plugins.plugin_utils.explain import dotted
from ansible_collections.hearth.homelab.plugins.plugin_utils.layers import Place, trust
from ansible_collections.hearth.homelab.plugins.plugin_utils.templates import Compiled, Environment

_Base: t.Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

#: What a contribution gives first: the rest of it, and other services, may name these through `service`.
FIRST = ("provides", "user", "storage", "listen", "secrets", "database", "route")


class RoleError(Exception):
    """A role that cannot be read; ``place`` says where."""

    def __init__(self, message: str, place: Place) -> None:
        super().__init__(message)
        self.message, self.place = message, place


class _Loader(_Base):
    """Plain YAML that refuses a key given twice."""

    def resolve(self, kind: t.Any, value: t.Any, implicit: t.Any) -> t.Any:
        """The tag of a node. A fleet's roles repeat the same few words thousands of times."""
        if kind is yaml.ScalarNode and implicit == (True, False):
            tag = _TAGS.get(value)
            if tag is None:
                tag = _TAGS[value] = super().resolve(kind, value, implicit)
            return tag
        return super().resolve(kind, value, implicit)


_TAGS: dict[str, str] = {}
_STR = "tag:yaml.org,2002:str"
_MERGE = "tag:yaml.org,2002:merge"


class _Unsafe(str):
    """A string that is never a template, whatever it looks like."""

    __slots__ = ()


_Loader.add_constructor("!unsafe", lambda loader, node: _Unsafe(loader.construct_scalar(node)))


def _build(loader: t.Any, node: yaml.Node) -> t.Any:
    """The data of a node. PyYAML's own constructor does the same with two generators per mapping and takes twice as
    long, which is most of what reading 500 roles costs."""
    if isinstance(node, yaml.ScalarNode):
        return node.value if node.tag == _STR else loader.construct_object(node)
    if isinstance(node, yaml.SequenceNode):
        return [_build(loader, entry) for entry in node.value]
    merged = any(key_node.tag == _MERGE for key_node, _value in node.value)
    if merged:
        loader.flatten_mapping(node)  # what is merged in comes first and may be given again
    result: dict[t.Any, t.Any] = {}
    for key_node, value_node in node.value:
        key = _build(loader, key_node)
        if not isinstance(key, t.Hashable):
            raise yaml.constructor.ConstructorError(None, None, "a key that is no scalar", key_node.start_mark)
        if key in result and not merged:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", key_node.start_mark)
        result[key] = _build(loader, value_node)
    return result


def read_yaml(path: Path) -> t.Any:
    """The data of a YAML file; RoleError says the line that cannot be read."""
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        return None if node is None else _build(loader, node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise RoleError(f"not valid YAML: {error.problem}", Place(str(path), mark.line + 1 if mark else 0)) from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError, RecursionError) as error:
        raise RoleError(f"cannot be read: {error}", Place(str(path))) from error


@functools.lru_cache(maxsize=256)
def _nodes(path: str, _mtime: int) -> yaml.Node | None:
    try:
        return yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, OSError):  # pragma: no cover (it was read before)
        return None


def locate(path: Path, keys: Sequence[str | int]) -> tuple[int, Place]:
    """How many steps of a key path exist in a YAML file, and the line of the last one. Steps that do not exist are
    passed over."""
    node = _nodes(str(path), path.stat().st_mtime_ns if path.exists() else 0)
    depth, line = 0, 0
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            for key_node, value_node in node.value:
                if key_node.value == str(key):
                    node, line, depth = value_node, key_node.start_mark.line + 1, depth + 1
                    break
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line, depth = node.start_mark.line + 1, depth + 1
    return depth, Place(str(path), line)


# --- options ---------------------------------------------------------------------------------------------------------


class WrongTypeError(ValueError):
    """A value that is not of the declared type: ``path`` below the option, what was found and what is allowed."""

    def __init__(self, path: str, found: t.Any, allowed: str) -> None:
        super().__init__(f"found {found!r}; allowed: {allowed}")
        self.path = path


_Check = t.Callable[[t.Any, str], t.Any]

#: Declared type -> Python types that need no conversion, how others are converted, and the type in words.
_TYPES: dict[str, tuple[tuple[type, ...], t.Callable[[t.Any], t.Any] | None, str]] = {
    "str": ((str,), check_type_str, "a string"),
    "path": ((str,), check_type_str, "a path"),
    "int": ((int,), check_type_int, "an integer"),
    "float": ((float,), check_type_float, "a number"),
    "bool": ((bool,), check_type_bool, "true or false"),
    "list": ((list,), check_type_list, "a list"),
    "dict": ((dict,), check_type_dict, "a mapping"),
}


def _checker(spec: Mapping[str, t.Any]) -> _Check:
    """A function that checks and converts a value as Ansible does for arguments of a module."""
    name = spec.get("type", "str")
    exact, convert, words = _TYPES.get(name, ((), None, name))
    choices = spec.get("choices")
    elements = _checker({"type": spec["elements"], **_inner(spec)}) if name == "list" and spec.get("elements") else None
    nested = {key: _checker(entry) for key, entry in (spec.get("options") or {}).items()} if name == "dict" else {}
    required = [key for key, entry in (spec.get("options") or {}).items() if entry.get("required")] if nested else []

    def check(value: t.Any, path: str) -> t.Any:
        if convert is not None and type(value) not in exact:
            if (name in ("str", "path") and isinstance(value, list | dict)) or (
                name != "bool" and isinstance(value, bool)
            ):
                raise WrongTypeError(path, value, words)
            try:
                value = convert(value)
            except (TypeError, ValueError) as error:
                raise WrongTypeError(path, value, words) from error
        if choices is not None:
            for entry in value if name == "list" else [value]:
                if entry not in choices:
                    raise WrongTypeError(path, entry, ", ".join(str(choice) for choice in choices))
        if elements is not None:
            value = [elements(entry, f"{path}[{index}]") for index, entry in enumerate(value)]
        if nested:
            unknown = [key for key in value if key not in nested and not str(key).startswith("x_")]
            if unknown:
                raise WrongTypeError(f"{path}.{unknown[0]}", unknown[0], "one of " + ", ".join(sorted(nested)))
            for key in required:
                if key not in value:
                    raise WrongTypeError(path, value, f"a mapping with {key}")
            value = {
                key: nested[key](entry, f"{path}.{key}") if entry is not None and key in nested else entry
                for key, entry in value.items()
            }
        return value

    return check


def _inner(spec: Mapping[str, t.Any]) -> dict[str, t.Any]:
    return {"options": spec["options"]} if spec.get("options") and spec.get("elements") == "dict" else {}


# --- roles -----------------------------------------------------------------------------------------------------------


class Role:
    """One role directory with a contribution."""

    def __init__(self, name: str, path: Path, environment: Environment) -> None:
        """Reads the role; RoleError names the file and line that is wrong."""
        self.name = name
        self.path = path
        self.file = _first(path / "vars", "contribution") or path / "vars" / "contribution.yml"
        self.variable = f"{name}_contribution"
        data = read_yaml(self.file)
        if not isinstance(data, dict) or not isinstance(data.get(self.variable), dict):
            found = ", ".join(sorted(map(str, data))) if isinstance(data, dict) and data else "nothing"
            raise RoleError(
                f"does not set the variable {self.variable} to a mapping (it sets {found})", Place(str(self.file), 1)
            )
        self.contribution: dict[str, t.Any] = data[self.variable]
        self.first = Compiled(environment, {key: self.contribution[key] for key in FIRST if key in self.contribution})
        self.rest = Compiled(
            environment, {key: self.contribution[key] for key in self.contribution if key not in FIRST}
        )
        for keys, message in (*self.first.errors, *self.rest.errors):
            raise RoleError(f"{dotted(keys)}: {message}", self.locate(keys)[1])
        self.defaults_files = _all(path / "defaults")
        self.defaults: dict[str, t.Any] = {}
        for file in self.defaults_files:
            defaults = read_yaml(file)
            if isinstance(defaults, dict):
                self.defaults.update(trust(defaults))
            elif defaults is not None:
                raise RoleError("is not a mapping of variables", Place(str(file), 1))
        self._checks, self._required = self._specs()
        self.options = frozenset(self.defaults) | frozenset(self._checks)
        folder = path / "templates"
        self.templates = sorted(file for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else []
        names = set(self.first.names | self.rest.names)
        for template in self.templates:
            names |= environment.file_names(template)
        #: Variables that the contribution and the templates name, and perhaps a few words that are none.
        self.names = frozenset(names)
        self._environment = environment

    def _specs(self) -> tuple[dict[str, _Check], list[str]]:
        file = _first(self.path / "meta", "argument_specs")
        data = read_yaml(file) if file else None
        specs = data.get("argument_specs") if isinstance(data, dict) else None
        main = specs.get("main") if isinstance(specs, dict) else None
        options = (main.get("options") if isinstance(main, dict) else None) or {}
        return (
            {str(name): _checker(spec or {}) for name, spec in options.items()},
            [str(name) for name, spec in options.items() if spec and spec.get("required")],
        )

    def typed(self, option: str, value: t.Any) -> t.Any:
        """The value of an option as its declared type; WrongTypeError if it is none. Null stands for no value."""
        check = self._checks.get(option)
        return value if check is None or value is None else check(value, option)

    @property
    def required(self) -> list[str]:
        """Options without which the role does not work."""
        return self._required

    def uses(self, name: str) -> bool:
        """Whether a template or the contribution really uses a variable: exact, and slower than ``names``."""
        return name in self.first.names | self.rest.names or any(
            name in self._environment.names_of_file(file) for file in self.templates
        )

    def short(self, option: str) -> str:
        """An option's name without the role's: ``port`` of ``sonarr_port``."""
        return option.removeprefix(f"{self.name}_")

    def locate(self, keys: Sequence[str | int]) -> tuple[int, Place]:
        """The line of a key path of the contribution; the depth does not count the variable's own name."""
        depth, found = locate(self.file, (self.variable, *keys))
        return depth - 1, found

    def locate_default(self, option: str) -> Place:
        """The line of an option's default."""
        for file in reversed(self.defaults_files):
            depth, found = locate(file, (option,))
            if depth:
                return found
        return Place(str(self.defaults_files[-1])) if self.defaults_files else Place(str(self.path))


class Roles:
    """All roles that services can be made of: the user's own win over the collection's."""

    def __init__(self, directories: Iterable[Path], environment: Environment) -> None:
        own = Path(__file__).resolve().parents[2] / "roles"
        self._environment = environment
        self._directories = [*(entry for entry in dict.fromkeys(directories) if entry != own and entry.is_dir()), own]
        self._own = own
        self._roles: dict[str, Role | None] = {}
        self._paths: dict[str, Path] | None = None
        #: Roles of the collection that a user's role of the same name stands for.
        self.shadowed: dict[str, Path] = {}

    def get(self, name: str) -> Role | None:
        """The role, read once; None if there is none with a contribution. RoleError if it cannot be read."""
        if name in self._roles:
            return self._roles[name]
        path = self.paths.get(name)
        self._roles[name] = None  # also after an error: it is said once
        if path is not None:
            self._roles[name] = Role(name, path, self._environment)
        return self._roles[name]

    @property
    def paths(self) -> dict[str, Path]:
        """Every role with a contribution, by name."""
        if self._paths is None:
            self._paths = {}
            for directory in self._directories:
                for path in sorted(directory.iterdir()) if directory.is_dir() else ():
                    if _first(path / "vars", "contribution") is None:
                        continue
                    if path.name in self._paths:
                        if directory == self._own:
                            self.shadowed[path.name] = self._paths[path.name]
                    else:
                        self._paths[path.name] = path
        return self._paths

    @property
    def searched(self) -> list[str]:
        return [str(directory) for directory in self._directories]

    def without_contribution(self, name: str) -> Path | None:
        """A role of that name that has no contribution: most likely what was meant."""
        for directory in self._directories:
            if (directory / name).is_dir():
                return directory / name
        return None


def _first(directory: Path, stem: str) -> Path | None:
    for suffix in (".yml", ".yaml"):
        if (directory / f"{stem}{suffix}").is_file():
            return directory / f"{stem}{suffix}"
    return None


def _all(directory: Path) -> list[Path]:
    """Files of a role's ``main``: one, or a directory of them, as Ansible reads it."""
    main = _first(directory, "main")
    if main:
        return [main]
    folder = directory / "main"
    return sorted(entry for entry in folder.iterdir() if entry.suffix in (".yml", ".yaml")) if folder.is_dir() else []


# --- misspelt variables ----------------------------------------------------------------------------------------------


def _mask(word: str) -> int:
    mask = 0
    for letter in word:
        mask |= 1 << (ord(letter) & 63)
    return mask


def within_two(word: str, other: str) -> bool:
    """Whether two names differ by at most two insertions, deletions, replacements or swaps of neighbours."""
    if abs(len(word) - len(other)) > 2 or (_mask(word) ^ _mask(other)).bit_count() > 4:
        return False  # one edit changes at most two letters of the set
    return distance(word, other) <= 2


def distance(word: str, other: str) -> int:
    """Damerau-Levenshtein distance (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(word, 1):
        older, before, row = before, row, [i]
        for j, against in enumerate(other, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != against))
            if older and j > 1 and letter == other[j - 2] and word[i - 2] == against:
                cost = min(cost, older[j - 2] + 1)
            row.append(cost)
    return row[-1]


def misspelt(word: str, options: Iterable[str]) -> str | None:
    """The option that a name is most likely meant to be, within distance 2."""
    near = [option for option in options if within_two(word, option)]
    return max(near, key=lambda option: (difflib.SequenceMatcher(None, word, option).ratio(), option)) if near else None


def prefix_owner(variable: str, names: Mapping[str, t.Any] | frozenset[str] | set[str]) -> str | None:
    """The longest role or instance name that a variable belongs to: ``paperless_ai`` before ``paperless``."""
    for match in reversed(list(re.finditer("_", variable))):
        if variable[: match.start()] in names:
            return variable[: match.start()]
    return None
