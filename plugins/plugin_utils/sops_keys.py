# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of secrets, read from SOPS files without decrypting anything.

SOPS encrypts values and leaves keys clear. A file has one mapping per service (or instance), key -> value, and the
reserved mapping ``people``: person -> {password_hash}, or person -> hash. Composition needs the names only; values
are decrypted by converge, for the host that it converges and no other.
"""

from __future__ import annotations

import functools
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

import yaml

#: The reserved top-level key: person -> {password_hash}.
PEOPLE = "people"

_Loader: t.Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

State = t.Literal["encrypted", "null", "plain"]


@dataclass(frozen=True)
class Entry:
    """One key of one file."""

    state: State
    file: str
    line: int


@dataclass(frozen=True)
class Keys:
    """Clear key names: ``SERVICE/KEY`` (or ``people/PERSON``) -> what it holds. ``error``: the file is no SOPS file."""

    entries: dict[str, Entry] = field(default_factory=dict)
    error: str = ""
    error_line: int = 0


@functools.lru_cache(maxsize=1024)
def _read(path: str, _mtime: int, _size: int) -> Keys:
    try:
        tree = yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        mark = getattr(error, "problem_mark", None)
        return Keys(
            error=f"is not valid YAML: {getattr(error, 'problem', error)}", error_line=mark.line + 1 if mark else 0
        )
    if not isinstance(tree, yaml.MappingNode):
        return Keys(error="is empty" if tree is None else "is not a mapping of services", error_line=1)
    top = {key.value: value for key, value in tree.value}
    if "sops" not in top:
        return Keys(error="is not encrypted: it has no `sops` key", error_line=1)
    entries: dict[str, Entry] = {}
    for service, value in top.items():
        if service == "sops" or not isinstance(value, yaml.MappingNode):
            continue
        for key, inner in value.value:
            line = key.start_mark.line + 1
            if service == PEOPLE and isinstance(inner, yaml.MappingNode):
                hashes = {entry.value: content for entry, content in inner.value}
                inner = hashes.get("password_hash")
            entries[f"{service}/{key.value}"] = Entry(_state(inner), path, line)
    return Keys(entries)


def _state(node: yaml.Node | None) -> State:
    if node is None or (isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"):
        return "null"
    if isinstance(node, yaml.ScalarNode):
        return "encrypted" if node.value.startswith("ENC[") else "null" if node.value == "" else "plain"
    if isinstance(node, yaml.MappingNode):
        states = {_state(value) for _key, value in node.value}
    else:
        states = {_state(value) for value in node.value}
    return "plain" if "plain" in states else "encrypted" if "encrypted" in states else "null"


def read(path: Path) -> Keys:
    """The key names of one file."""
    status = path.stat()
    return _read(str(path), status.st_mtime_ns, status.st_size)


def files_of(directories: t.Iterable[Path], groups: t.Iterable[str], host: str) -> list[Path]:
    """The existing secrets files of a host, lowest precedence first: ``all``, its groups in order, itself."""
    found = []
    for directory in directories:
        for name in dict.fromkeys(("all", *groups, host)):
            path = directory / f"{name}.sops.yml"
            if path.is_file():
                found.append(path)
    return found
