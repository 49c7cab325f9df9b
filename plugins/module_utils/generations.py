# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Generations: what the host was made equal to, run by run, and generation 0, what was there before.

``generations/NUMBER.json`` is written once; ``generations/current`` is a symbolic link that is replaced atomically.
Generation 0 (``originals/``) has the files and links that existed before Hearth first wrote their paths, and how units
were that ran before Hearth first had them.

Standard library only: this module runs on hosts.
"""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
import shutil
import stat
import time
import typing as t
from dataclasses import dataclass, field, replace
from pathlib import Path

from ansible_collections.hearth.homelab.plugins.module_utils import journal as journals
from ansible_collections.hearth.homelab.plugins.module_utils.layout import (
    KEEP,
    Layout,
    fsync_directory,
    read_json,
    write_atomic,
    write_json,
)
from ansible_collections.hearth.homelab.plugins.module_utils.manifest import File, Manifest, sort_items

#: Seconds after which what only an interrupted command can have left is taken away: a controller may be sending a run
#: without holding the lock.
STALE = 600.0


@dataclass(frozen=True)
class Generation:
    """One recorded state. ``partial`` names the services that were held back, with the reason."""

    number: int
    manifest: Manifest
    created: float = 0.0  # seconds since the epoch
    commit: str = ""
    controller: str = ""
    partial: dict[str, str] = field(default_factory=dict)
    scope: t.Any = None

    def to_dict(self) -> dict[str, t.Any]:
        return {
            "number": self.number,
            "created": self.created,
            "commit": self.commit,
            "controller": self.controller,
            "partial": self.partial,
            "scope": self.scope,
            "manifest": self.manifest.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: t.Mapping[str, t.Any]) -> Generation:
        return cls(
            data["number"],
            Manifest.from_dict(data["manifest"]),
            data.get("created", 0.0),
            data.get("commit", ""),
            data.get("controller", ""),
            data.get("partial", {}),
            data.get("scope"),
        )


def current(layout: Layout) -> Generation | None:
    """The generation that the host was last made equal to; None before the first run."""
    data = read_json(layout.generations / "current")
    return None if data is None else Generation.from_dict(data)


def numbers(layout: Layout) -> list[int]:
    """The recorded generations' numbers, ascending."""
    if not layout.generations.is_dir():
        return []
    return sorted(int(path.stem) for path in layout.generations.glob("*.json") if path.stem.isdecimal())


def record(
    layout: Layout,
    manifest: Manifest,
    *,
    commit: str = "",
    controller: str = "",
    partial: t.Mapping[str, str] | None = None,
    scope: t.Any = None,
) -> Generation:
    """Record a generation and make it the current one. The same state twice is one generation."""
    present = current(layout)
    if present is not None and present.manifest == manifest and present.partial == dict(partial or {}):
        return present
    number = max(numbers(layout), default=0) + 1
    generation = Generation(number, manifest, time.time(), commit, controller, dict(partial or {}), scope)
    write_json(layout.generations / f"{number}.json", generation.to_dict())
    link = layout.generations / ".current.hearth-tmp"
    link.unlink(missing_ok=True)
    link.symlink_to(f"{number}.json")
    os.rename(link, layout.generations / "current")
    fsync_directory(layout.generations)
    return generation


def effective(manifest: Manifest, previous: Manifest | None, held: t.Collection[str]) -> Manifest:
    """``manifest`` with everything of the ``held`` services as ``previous`` has it (nothing, if they are new)."""
    if not held:
        return manifest
    old_items = previous.items if previous else ()
    old_services = previous.services if previous else {}
    old_validators = previous.validators if previous else ()
    services = {name: state for name, state in manifest.services.items() if name not in held}
    services.update({name: state for name, state in old_services.items() if name in held})
    items = [item for item in manifest.items if item.service not in held]
    taken = {item.id for item in items}
    # An item that moved to another service in this run stays with its new owner.
    items += [item for item in old_items if item.service in held and item.id not in taken]
    validators = [entry for entry in manifest.validators if entry.service not in held]
    validators += [entry for entry in old_validators if entry.service in held]
    return replace(manifest, services=services, items=sort_items(items), validators=tuple(validators))


# --- generation 0 -----------------------------------------------------------------------------------------------


def originals(layout: Layout) -> dict[str, dict[str, t.Any]]:
    """What existed before Hearth wrote a path: path -> kind, mode, owner, group, uid, gid, and target or content."""
    data = read_json(layout.originals / "index.json", {})
    return t.cast("dict[str, dict[str, t.Any]]", data)


def describe(path: Path) -> tuple[dict[str, t.Any], bytes | None] | None:
    """A file's or link's attributes and content; None if there is neither."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    data: dict[str, t.Any] = {
        "mode": f"{stat.S_IMODE(status.st_mode):04o}",
        "owner": _owner(status.st_uid),
        "group": _group(status.st_gid),
        "uid": status.st_uid,
        "gid": status.st_gid,
    }
    if stat.S_ISLNK(status.st_mode):
        return {**data, "kind": "symlink", "target": os.readlink(path)}, None
    if stat.S_ISREG(status.st_mode):
        return {**data, "kind": "file"}, path.read_bytes()
    if stat.S_ISDIR(status.st_mode):
        return {**data, "kind": "directory"}, None
    return {**data, "kind": "other"}, None


def _owner(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def keep_original(layout: Layout, path: str) -> bool:
    """Keep what is at ``path``, the first time Hearth overwrites it. Whether something was kept now."""
    return bool(keep_originals(layout, [path]))


def keep_originals(layout: Layout, paths: t.Iterable[str]) -> list[str]:
    """Keep what is at ``paths``, each the first time; the paths kept now. Durable when it returns."""
    index = originals(layout)
    kept: list[str] = []
    for path in paths:
        found = None if path in index else describe(layout.at(path))
        if found is None or found[0]["kind"] not in ("file", "symlink"):
            continue
        data, content = found
        if content is not None:
            data["content"] = hashlib.sha256(content).hexdigest()
            if not (layout.originals / data["content"]).exists():
                write_atomic(layout.originals / data["content"], content, uid=os.geteuid(), gid=os.getegid())
        index[path] = data
        kept.append(path)
    if kept:
        write_json(layout.originals / "index.json", index)
    return kept


def original_units(layout: Layout) -> dict[str, dict[str, bool]]:
    """How units were before Hearth first had them: name -> active, enabled."""
    return t.cast("dict[str, dict[str, bool]]", read_json(layout.originals / "units.json", {}))


def keep_original_units(layout: Layout, units: t.Mapping[str, t.Mapping[str, t.Any]]) -> None:
    """Keep how units are that a generation has for the first time, also that they were not there: whatever starts them
    later has them from Hearth. The caller leaves out what an earlier generation had. Durable when it returns.
    """
    known = original_units(layout)
    new = {
        name: {"active": bool(state["active"]), "enabled": state["enabled"] is True}
        for name, state in units.items()
        if name not in known
    }
    if new:
        write_json(layout.originals / "units.json", {**known, **new})


def made_directories(layout: Layout) -> list[str]:
    """Directories that nothing declares and that Hearth made because a file of its own goes into them."""
    return t.cast("list[str]", read_json(layout.originals / "directories.json", []))


def keep_made_directories(layout: Layout, paths: t.Iterable[str]) -> None:
    """Remember directories that are about to be made; those that are gone by now are forgotten."""
    known = made_directories(layout)
    wanted = sorted({path for path in known if layout.at(path).is_dir()} | set(paths))
    if wanted != known:
        write_json(layout.originals / "directories.json", wanted)


def original_content(layout: Layout, entry: t.Mapping[str, t.Any]) -> bytes:
    """The content of a kept file."""
    return (layout.originals / str(entry["content"])).read_bytes()


# --- keeping the store small ------------------------------------------------------------------------------------


def unfinished_runs(layout: Layout) -> list[Path]:
    """Directories of runs whose journal has not ended, the oldest first."""
    found: list[tuple[float, Path]] = []
    if layout.runs.is_dir():
        for path in layout.runs.iterdir():
            records = journals.read(path / "journal.jsonl")
            if not records:
                continue
            # The last record of an ended run is its last phase: no need to replay twenty journals for each compare.
            state = journals.replay(records[-1:]) if records[-1].get("type") == "phase" else journals.State()
            if not state.ended:
                found.append((records[0].get("time", 0.0), path))
    return [path for _, path in sorted(found)]


def prune(layout: Layout, keep: int = KEEP) -> None:
    """Remove old runs, generations, blobs nothing refers to, and old agents. Never what is in use."""
    runs = sorted((path for path in layout.runs.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    # Also those that were sent and have not begun: such a one may be settling this one first.
    unfinished = {path.name for path in unfinished_runs(layout)}
    unfinished |= {path.name for path in runs if not (path / "result.json").exists()}
    for path in runs[:-keep]:
        if path.name not in unfinished:
            shutil.rmtree(path, ignore_errors=True)
    present = current(layout)
    for number in numbers(layout)[:-keep]:
        if present is None or number != present.number:
            (layout.generations / f"{number}.json").unlink(missing_ok=True)
    referenced: set[str] = set()
    for number in numbers(layout):
        referenced |= _digests(read_json(layout.generations / f"{number}.json", {}).get("manifest", {}))
    for name in unfinished:
        referenced |= _digests((read_json(layout.runs / name / "request.json") or {}).get("manifest", {}))
    for path in layout.blobs.iterdir():
        if path.name not in referenced:
            path.unlink(missing_ok=True)
    in_use = os.path.realpath(layout.agents / "current")
    agents = sorted(
        (path for path in layout.agents.iterdir() if path.is_dir() and not path.is_symlink()),
        key=lambda path: path.stat().st_mtime,
    )
    for path in agents[:-3]:
        if os.path.realpath(path) != in_use:
            shutil.rmtree(path, ignore_errors=True)


def sweep(layout: Layout, own: str = "") -> None:
    """Remove what interrupted commands left: runs that never began, secrets in transit, contents half written.

    The caller holds the lock; ``own`` is the run that is about to begin.
    """
    limit = time.time() - STALE
    unfinished = {path.name for path in unfinished_runs(layout)} | {own}
    for path in _older(layout.runs.glob("*"), limit):
        if path.name not in unfinished and not (path / "result.json").exists():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name not in unfinished:
            shutil.rmtree(path / "before", ignore_errors=True)
    for path in _older(layout.runtime.glob("*"), limit):
        if path.name not in unfinished:
            shutil.rmtree(path, ignore_errors=True)
    for path in _older(layout.state.rglob("*.hearth-tmp"), limit):
        path.unlink(missing_ok=True)


def _older(paths: t.Iterable[Path], limit: float) -> list[Path]:
    found = []
    for path in paths:
        try:
            if path.lstat().st_mtime < limit:
                found.append(path)
        except FileNotFoundError:
            continue  # a controller renamed or removed it
    return found


def _digests(manifest: t.Mapping[str, t.Any]) -> set[str]:
    return {
        entry["digest"] for entry in manifest.get("items", ()) if entry.get("kind") == File.kind and "digest" in entry
    }
