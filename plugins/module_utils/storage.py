# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Persistent storage of services: what is there, what it means, and whether a service may start on it.

Design section 6. The **mark** is a file that root writes into a storage's own root when the storage is made or
adopted for a service; the **sentinel** is a flag in it, set by the first healthy start or a verified restore:

========  ========  ==========================  ==============================================================
mark      sentinel  content                     state
========  ========  ==========================  ==============================================================
ours      yes       anything                    ``data``: what the service runs on
ours      no        anything                    ``empty_marked``: a skeleton at most, no data yet
none      -         none                        ``new``
none      -         something, or a foreign mark ``found``: somebody's data, never touched
ours      -         cannot be seen              ``away``: not mounted, or its key is not loaded
-         -         -                           ``lost``: the host's ledger says that data was here
========  ========  ==========================  ==============================================================

The **ledger** (``storage.json`` in the host's state directory) lives outside the storage: it tells a wiped or
unmounted storage from a new one. Here is what all providers share and the provider ``directory``, whose mark is a file;
``zfs_storage`` has datasets. Standard library only: this module runs on hosts.
"""

from __future__ import annotations

import json
import os
import stat
import typing as t
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ansible_collections.hearth.homelab.plugins.module_utils.actions import Problem
from ansible_collections.hearth.homelab.plugins.module_utils.layout import read_json, write_atomic

#: The mark's name in the storage's root. Backups exclude it: restored data is marked anew.
MARK = ".hearth-storage"

#: Version of the mark's and the ledger's format.
SCHEMA = 1

#: What an empty storage may contain: our mark, what mkfs.ext4(8) makes in a new file system,
#: and what an interrupted write_atomic leaves of a mark.
NOT_CONTENT = frozenset({MARK, "lost+found", f".{MARK}.hearth-tmp"})

#: A mark is tiny; anything larger is not one.
_MARK_LIMIT = 4096

State = t.Literal["new", "data", "empty_marked", "away", "found", "lost"]


@dataclass(frozen=True)
class Mark:
    """Whose storage this is. ``id`` is a random UUID: a replaced directory or disk has another one."""

    host: str
    service: str
    id: str
    sentinel: bool = False
    schema: int = SCHEMA


@dataclass(frozen=True)
class LedgerEntry:
    """What the host last knew about a storage: its mark's id and whether it held data."""

    id: str
    service: str = ""
    sentinel: bool = False


@dataclass(frozen=True)
class StorageFacts:
    """What was found at ``path``. ``foreign`` says why a mark is not one of ours; ``error`` why nothing is known."""

    path: str
    exists: bool = False
    is_directory: bool = False
    is_symlink: bool = False
    empty: bool = True
    entries: tuple[str, ...] = ()  # the first few names, for messages
    mark: Mark | None = None
    foreign: str = ""
    ledger: LedgerEntry | None = None
    owner: str = ""
    group: str = ""
    mode: str = ""
    error: str = ""
    # Of a dataset (zfs_storage):
    dataset: str = ""
    guid: str = ""
    away: str = ""  # why its content is not at the path
    beneath: tuple[str, ...] = ()  # names in the directory that it would hide when it is mounted
    directory_mark: bool = False  # the directory at the path has a mark of its own, from the provider ``directory``


@dataclass(frozen=True)
class StorageState:
    """A storage's state and one sentence that says what led to it."""

    state: State
    message: str = ""


def classify(facts: StorageFacts, host: str, service: str) -> StorageState:
    """The state of a storage that belongs to ``service`` on ``host``."""
    mark = facts.mark
    if facts.ledger is not None and facts.ledger.sentinel and not facts.away:
        missing = _missing(facts, facts.ledger)
        if missing:
            return StorageState("lost", f"{facts.path} held data of {facts.ledger.service or service}, but {missing}")
    if facts.is_symlink:
        return StorageState("found", f"{facts.path} is a symbolic link")
    if facts.exists and not facts.is_directory:
        return StorageState("found", f"{facts.path} is not a directory")
    if facts.foreign:
        return StorageState("found", f"{facts.path} has a mark that is not ours: {facts.foreign}")
    if mark is not None and (mark.host, mark.service) != (host, service):
        return StorageState("found", f"{facts.path} is marked as storage of {mark.service} on {mark.host}")
    if mark is not None and facts.away:
        return StorageState("away", f"{facts.away}, and it holds {'data' if mark.sentinel else 'storage'} of {service}")
    if mark is not None:
        return StorageState("data") if mark.sentinel else StorageState("empty_marked")
    if facts.away:
        return StorageState("found", f"{facts.away}, so nobody can say what is in it")
    if facts.directory_mark and not facts.guid:
        message = f"{facts.path} is a directory that Hearth marked, and the dataset {facts.dataset} is declared for it"
        return StorageState("found", message)
    if not facts.empty:
        names = ", ".join(facts.entries[:3]) + (" ..." if len(facts.entries) > 3 else "")
        return StorageState("found", f"{facts.path} has content that Hearth did not make ({names})")
    return StorageState("new")


def _missing(facts: StorageFacts, ledger: LedgerEntry) -> str:
    """What of a storage that held data is not there any more; empty if all is."""
    if not facts.exists:
        return "it does not exist now"
    if facts.mark is None:
        return "it is empty now" if facts.empty and facts.is_directory else "its mark is gone"
    if facts.mark.id != ledger.id:
        return "another storage is there now (its mark has another id)"
    if not facts.mark.sentinel:
        return "its mark says that it holds none"
    return ""


def gate(host: str, service: str, storages: Iterable[StorageFacts]) -> list[Problem]:
    """Why ``service`` must not start: storage without our mark, or without the data that it held.

    Used before a service's units start, by apply and by the gate unit; both reasons have one remedy: a person.
    """
    problems = []
    for facts in storages:
        item = f"storage:{facts.path}"
        if facts.error:
            problems.append(Problem(service, item, f"{facts.path} cannot be read: {facts.error}", "mend that first"))
            continue
        state = classify(facts, host, service)
        if state.state in ("data", "empty_marked"):
            continue
        message = state.message or f"{facts.path} has no mark of Hearth"
        message = f"{service} is not started: {message}"
        problems.append(Problem(service, item, message, remedy(state.state, facts.path, service)))
    return problems


def remedy(state: State, path: str, service: str) -> str:
    """What a person can do about a storage in this state."""
    return {
        "lost": f"mount or restore the data of {path}; to start empty on purpose say so with -e start_empty={service}",
        "found": f"adopt it with playbooks/adopt.yml, or move what is in {path} away",
        "away": f"mount it (zfs load-key, zfs mount), so that {path} is the data",
        "new": f"apply the host's plan, which makes and marks {path}",
    }.get(state, "")


def read_storage_facts(
    path: str,
    root: str = "/",
    *,
    ledger: Mapping[str, LedgerEntry] | None = None,
    names: tuple[Mapping[int, str], Mapping[int, str]] = ({}, {}),
) -> StorageFacts:
    """What is at ``path`` below ``root``. ``names`` are users by uid and groups by gid; without a name the number."""
    facts = StorageFacts(path, ledger=(ledger or {}).get(path))
    real = path if root == "/" else os.path.join(root, path.lstrip("/"))
    try:
        status = os.lstat(real)
        facts = replace(
            facts,
            exists=True,
            is_directory=stat.S_ISDIR(status.st_mode),
            is_symlink=stat.S_ISLNK(status.st_mode),
            owner=names[0].get(status.st_uid, str(status.st_uid)),
            group=names[1].get(status.st_gid, str(status.st_gid)),
            mode=f"{stat.S_IMODE(status.st_mode):04o}",
        )
        if not facts.is_directory:
            return replace(facts, empty=False)
        with os.scandir(real) as listing:
            found: list[str] = []
            for entry in listing:
                if entry.name not in NOT_CONTENT:
                    found.append(entry.name)
                    if len(found) == 4:
                        break
        mark, foreign = _read_mark(os.path.join(real, MARK))
        return replace(facts, empty=not found, entries=tuple(sorted(found)), mark=mark, foreign=foreign)
    except (FileNotFoundError, NotADirectoryError):
        return facts
    except OSError as error:
        return replace(facts, error=error.strerror or str(error))


def _read_mark(path: str) -> tuple[Mark | None, str]:
    """The mark, or why a file of its name is not one."""
    try:
        # Never follow a link and never wait on a FIFO: the storage's owner may write into this directory.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None, ""
    except OSError as error:
        return None, f"{MARK} cannot be opened ({error.strerror})"
    with os.fdopen(handle, "rb") as stream:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            return None, f"{MARK} is not a regular file"
        # The service owns the directory and could write a mark of its own; only root's counts.
        if status.st_uid != 0 and os.geteuid() == 0:
            return None, f"{MARK} is not owned by root"
        content = stream.read(_MARK_LIMIT + 1)
    try:
        data = json.loads(content) if len(content) <= _MARK_LIMIT else None
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            return None, f"{MARK} has an unknown format"
        mark = Mark(data["host"], data["service"], data["id"], data.get("sentinel") is True)
    except (ValueError, KeyError):
        return None, f"{MARK} has an unknown format"
    if not all(isinstance(value, str) and value for value in (mark.host, mark.service, mark.id)):
        return None, f"{MARK} has an unknown format"
    return mark, ""


def ledger_path(state_dir: str, root: str = "/") -> Path:
    """The ledger's file."""
    return Path(root, state_dir.lstrip("/"), "storage.json")


def read_ledger(state_dir: str = "/var/lib/hearth", root: str = "/") -> dict[str, LedgerEntry]:
    """The ledger by path; ValueError when it is damaged (that is never "no storage yet")."""
    path = ledger_path(state_dir, root)
    data = read_json(path)
    if data is None:
        return {}
    try:
        if data["schema"] != SCHEMA:
            raise ValueError(f"{path} has schema {data['schema']!r}, this host reads {SCHEMA}")
        return {name: LedgerEntry(**entry) for name, entry in data["storage"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def write_ledger(entries: Mapping[str, LedgerEntry], state_dir: str = "/var/lib/hearth", root: str = "/") -> None:
    """Replace the ledger, atomically and durably."""
    data = {"schema": SCHEMA, "storage": {path: asdict(entry) for path, entry in sorted(entries.items())}}
    write_atomic(ledger_path(state_dir, root), json.dumps(data, sort_keys=True, indent=1).encode())


def write_mark(
    path: str, host: str, service: str, *, sentinel: bool = False, root: str = "/", state_dir: str = "/var/lib/hearth"
) -> Mark:
    """Mark ``path`` (an existing directory) as storage of ``service``, and enter it in the ledger.

    The same mark again keeps its id. The storage first, then the ledger: killed between the two, the storage has
    a mark that the ledger learns at the next call. OSError when it cannot be written; ValueError on a foreign mark.
    """
    real = path if root == "/" else os.path.join(root, path.lstrip("/"))
    mark, foreign = _read_mark(os.path.join(real, MARK))
    if foreign:
        raise ValueError(f"{path}: {foreign}")
    if mark is not None and (mark.host, mark.service) != (host, service):
        raise ValueError(f"{path} is marked as storage of {mark.service} on {mark.host}")
    if mark is None:
        mark = Mark(host, service, str(uuid.uuid4()))
    mark = replace(mark, sentinel=mark.sentinel or sentinel)
    _write(real, mark)
    enter(path, mark, state_dir, root)
    return mark


def enter(path: str, mark: Mark, state_dir: str = "/var/lib/hearth", root: str = "/") -> None:
    """Let the ledger know of the mark that ``path`` has."""
    ledger = read_ledger(state_dir, root)
    entry = LedgerEntry(mark.id, mark.service, mark.sentinel)
    if ledger.get(path) != entry:
        write_ledger({**ledger, path: entry}, state_dir, root)


def write_sentinel(path: str, host: str, service: str, *, root: str = "/", state_dir: str = "/var/lib/hearth") -> Mark:
    """Record that marked storage holds data from now on (first healthy start, verified restore).

    ValueError when it has no mark: a sentinel never makes found data ours.
    """
    real = path if root == "/" else os.path.join(root, path.lstrip("/"))
    mark, foreign = _read_mark(os.path.join(real, MARK))
    if mark is None:
        raise ValueError(f"{path} has no mark of Hearth{': ' + foreign if foreign else ''}")
    return write_mark(path, host, service, sentinel=True, root=root, state_dir=state_dir)


def _write(real: str, mark: Mark) -> None:
    target = Path(real, MARK)
    content = json.dumps(asdict(mark), sort_keys=True).encode() + b"\n"
    try:
        if target.read_bytes() == content:
            return
    except FileNotFoundError:
        pass
    # World-readable: a service may look, only root may write.
    write_atomic(target, content, mode=0o644, uid=os.geteuid(), gid=os.getegid())
