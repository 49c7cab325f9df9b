# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the engine keeps its own state on a host, and the few file operations that keep it safe.

Everything below ``/var/lib/hearth`` is root's only (0700). Secrets in transit live below ``/run/hearth`` (tmpfs)
and never reach a disk. Standard library only: this module runs on hosts.
"""

from __future__ import annotations

import json
import os
import re
import typing as t
from dataclasses import dataclass
from pathlib import Path

#: How many runs and generations a host keeps; the current ones are kept besides.
KEEP = 20

_RUN_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")


@dataclass(frozen=True)
class Layout:
    """The engine's paths below ``root`` (``/`` on hosts, a temporary directory in tests)."""

    root: Path = Path("/")

    def at(self, path: str) -> Path:
        """``path`` (absolute) below ``root``."""
        return self.root / path.lstrip("/")

    @property
    def state(self) -> Path:
        return self.at("/var/lib/hearth")

    @property
    def runtime(self) -> Path:
        return self.at("/run/hearth")

    @property
    def lock(self) -> Path:
        return self.state / "lock"

    @property
    def agent(self) -> Path:
        """The entry point that the engine's own units call."""
        return self.state / "agent" / "current" / "main.py"

    @property
    def agents(self) -> Path:
        return self.state / "agent"

    @property
    def blobs(self) -> Path:
        return self.state / "blobs"

    @property
    def secrets(self) -> Path:
        return self.state / "secrets"

    @property
    def generations(self) -> Path:
        return self.state / "generations"

    @property
    def originals(self) -> Path:
        return self.state / "originals"

    @property
    def runs(self) -> Path:
        return self.state / "runs"

    def run(self, run_id: str) -> Path:
        """The directory of one run; ValueError for an id that is not a plain name."""
        if not _RUN_ID.match(run_id):
            raise ValueError(f"{run_id!r} is not a run id")
        return self.runs / run_id

    def transit(self, run_id: str) -> Path:
        """Where the secrets of one run wait to be stored (tmpfs)."""
        self.run(run_id)
        return self.runtime / run_id

    def secret(self, name: str) -> Path:
        """The stored secret ``SERVICE/KEY``; ValueError for a name that would leave the store."""
        service, _, key = name.partition("/")
        if not service or not key or "/" in key or service in (".", "..") or key in (".", ".."):
            raise ValueError(f"{name!r} is not a secret's name (SERVICE/KEY)")
        return self.secrets / service / key

    def prepare(self) -> None:
        """Make the state directories, root's only."""
        for path in (
            self.state,
            self.agents,
            self.blobs,
            self.secrets,
            self.generations,
            self.originals,
            self.runs,
            self.runtime,
        ):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (self.state, self.runtime):
            os.chmod(path, 0o700)


def fsync_directory(path: Path) -> None:
    """Make a rename, creation or removal in ``path`` durable (fsync(2): the directory needs one of its own)."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, content: bytes, mode: int = 0o600, uid: int = 0, gid: int = 0) -> None:
    """Write a file so that after a crash it has either its old or its new content. Owners only as root."""
    temporary = path.parent / f".{path.name}.hearth-tmp"
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(handle, "wb", closefd=False) as stream:
            stream.write(content)
        if os.geteuid() == 0:
            os.fchown(handle, uid, gid)
        os.fchmod(handle, mode)
        os.fsync(handle)
    finally:
        os.close(handle)
    os.rename(temporary, path)
    fsync_directory(path.parent)


def write_json(path: Path, data: t.Any, mode: int = 0o600) -> None:
    """JSON through ``write_atomic``."""
    write_atomic(path, json.dumps(data, sort_keys=True, ensure_ascii=False).encode(), mode)


def read_json(path: Path, default: t.Any = None) -> t.Any:
    """A JSON file's data; ``default`` when there is none. ValueError names a file that is not JSON."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return default
    try:
        return json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
