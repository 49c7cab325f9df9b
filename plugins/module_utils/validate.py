# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Validate the staged files under their final paths, by the programs that read them, before any is replaced.

Programs follow includes: a fragment checked on its own is checked against its OLD siblings. So the whole staged tree
is laid over the real one in a private mount namespace (unshare(1)): for each directory concerned an overlay whose
lower layer is the real directory and whose upper one is a tmpfs. Nothing outside the namespace sees it, and contents
with secrets never reach a disk. Where overlays are refused, a copy of the directory on the tmpfs stands in.

Standard library only: this module runs on hosts.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import shutil
import subprocess
import sys
import typing as t
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.hearth.homelab.plugins.module_utils.health import as_user
from ansible_collections.hearth.homelab.plugins.module_utils.manifest import Validator

#: Seconds that one validator may take.
TIMEOUT = 120.0

#: A directory that must be copied because overlays are refused may have this many bytes.
COPY_LIMIT = 64 * 1024 * 1024

_MS_NOSUID, _MS_NODEV = 2, 4


@dataclass(frozen=True)
class Staged:
    """What shall be at ``path``: a file (``content``), link (``target``), ``directory``, or nothing (``removed``)."""

    path: str
    content: bytes | None = None
    target: str = ""
    directory: bool = False
    removed: bool = False
    mode: int = 0o644
    uid: int = 0
    gid: int = 0

    def to_dict(self) -> dict[str, t.Any]:
        content = None if self.content is None else base64.b64encode(self.content).decode()
        return {**self.__dict__, "content": content}

    @classmethod
    def from_dict(cls, data: t.Mapping[str, t.Any]) -> Staged:
        content = data["content"]
        return cls(**{**data, "content": None if content is None else base64.b64decode(content)})


@dataclass(frozen=True)
class Failure:
    """A validator that refused the staged files."""

    service: str
    validator: str
    argv: tuple[str, ...]
    message: str

    def __str__(self) -> str:
        return f"{self.service}: {self.argv[0]} refuses the new configuration ({self.validator}):\n{self.message}"


def select(validators: t.Iterable[Validator], touched: t.Collection[str]) -> list[Validator]:
    """The validators that read one of the ``touched`` paths; each program call once."""
    chosen: dict[tuple[str, ...], Validator] = {}
    for validator in validators:
        if any(validator.covers(path) for path in touched):
            chosen.setdefault((validator.user, *validator.argv), validator)
    return list(chosen.values())


def covers(paths: t.Iterable[str], device: t.Callable[[str], int | None]) -> list[str]:
    """The directories to lay an overlay over, parents first, so that every one of ``paths`` can be staged.

    ``device`` gives the device number of an existing directory, None if there is none: a path's directory is its
    nearest existing one. A directory below another one needs no overlay of its own unless it is on another device (an
    overlay does not show what is mounted below its lower directory).
    """
    wanted: set[str] = set()
    for path in paths:
        parent = os.path.dirname(path)
        while parent != "/" and device(parent) is None:
            parent = os.path.dirname(parent)
        wanted.add(parent)
    chosen: list[str] = []
    for directory in sorted(wanted):
        above = [top for top in chosen if directory.startswith(top + "/")]
        if not above or device(above[-1]) != device(directory):
            chosen.append(directory)
    return chosen


def run(
    validators: t.Sequence[Validator],
    staged: t.Sequence[Staged],
    mountpoint: Path,
    agent: Path,
    timeout: float = TIMEOUT,
) -> list[Failure]:
    """Run ``validators`` on the ``staged`` tree in a namespace of its own; what they refused.

    ``mountpoint`` is an existing, empty directory for the namespace's tmpfs, ``agent`` the agent's entry point.
    OSError when the namespace cannot be made.
    """
    if not validators:
        return []
    request = {
        "validators": [validator.to_dict() for validator in validators],
        "staged": [entry.to_dict() for entry in staged],
        "mountpoint": str(mountpoint),
        "timeout": timeout,
    }
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "--", sys.executable, "-I", str(agent), "validate"],
        input=json.dumps(request).encode(),
        capture_output=True,
        check=False,
        timeout=timeout * (1 + len(validators)),
    )
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        noise = (done.stderr or done.stdout).decode("utf-8", "replace").strip()
        raise OSError(f"the staged files cannot be shown to their validators: {noise[-2000:]}") from None
    if "error" in answer:
        raise OSError(f"the staged files cannot be shown to their validators: {answer['error']}")
    return [
        Failure(entry["service"], entry["name"], tuple(entry["argv"]), entry["message"]) for entry in answer["failures"]
    ]


# --- inside the namespace ---------------------------------------------------------------------------------------


def inside(request: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """What the process in the namespace does: stage, run the validators, answer. Never called outside of one."""
    if os.readlink("/proc/self/ns/mnt") == os.readlink(f"/proc/{os.getppid()}/ns/mnt"):
        return {"error": "not in a mount namespace of its own"}
    validators = [Validator.from_dict(entry) for entry in request["validators"]]
    staged = [Staged.from_dict(entry) for entry in request["staged"]]
    try:
        _stage(staged, request["mountpoint"])
    except OSError as error:
        return {"error": str(error)}
    with ThreadPoolExecutor(4) as pool:
        messages = list(pool.map(lambda validator: _validate(validator, request["timeout"]), validators))
    return {
        "failures": [
            {"service": validator.service, "name": validator.name, "argv": list(validator.argv), "message": message}
            for validator, message in zip(validators, messages, strict=True)
            if message is not None
        ]
    }


def _validate(validator: Validator, timeout: float) -> str | None:
    """None if the validator accepts, otherwise what it said."""
    try:
        done = subprocess.run(
            as_user(validator.user, validator.argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd="/",
            check=False,
            timeout=timeout,
            env={**os.environ, "LC_ALL": "C.UTF-8", "SYSTEMD_COLORS": "0", "NO_COLOR": "1"},
        )
    except FileNotFoundError:
        return "the program is not installed"
    except (OSError, KeyError) as error:
        return f"the program cannot be run: {error}"
    except subprocess.TimeoutExpired:
        return f"no result in {timeout:g} s"
    if done.returncode == 0:
        return None
    text = "\n".join(
        part for part in (done.stderr.decode("utf-8", "replace"), done.stdout.decode("utf-8", "replace")) if part
    )
    return f"exit status {done.returncode}: {text.strip()[-4000:]}"


def _mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    """mount(2); OSError names the target."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mounting {kind} on {target}: {os.strerror(number)}")


def _device(path: str) -> int | None:
    return os.stat(path).st_dev if os.path.isdir(path) else None


def _stage(staged: t.Sequence[Staged], mountpoint: str) -> None:
    """Lay the staged tree over the real one: first the overlays, then ordinary file operations through them."""
    _mount("tmpfs", mountpoint, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0700,size=50%")
    tops = covers([entry.path for entry in staged], _device)
    if "/" in tops:
        missing = sorted(entry.path for entry in staged if covers([entry.path], _device) == ["/"])
        raise OSError(f"no directory above {missing[0]} exists")
    # Opened before anything is mounted: an overlay on a parent would hide a file system mounted below it.
    lower = {top: os.open(top, os.O_RDONLY | os.O_DIRECTORY) for top in tops}
    for number, top in enumerate(tops):
        _cover(top, lower[top], os.path.join(mountpoint, str(number)))
    for entry in sorted(staged, key=lambda item: (not item.removed, not item.directory, item.path)):
        _put(entry)


def _cover(top: str, lower: int, base: str) -> None:
    """Make ``top`` writable without touching it: an overlay, or a copy where overlays are refused."""
    before = os.stat(f"/proc/self/fd/{lower}")
    for name in ("upper", "work"):
        os.makedirs(os.path.join(base, name))
    # The root of an overlay takes its attributes from the upper directory.
    os.chown(os.path.join(base, "upper"), before.st_uid, before.st_gid)
    os.chmod(os.path.join(base, "upper"), before.st_mode & 0o7777)
    options = f"lowerdir=/proc/self/fd/{lower},upperdir={base}/upper,workdir={base}/work"
    try:
        _mount("overlay", top, "overlay", _MS_NODEV, options)
    except OSError as refused:
        source = f"/proc/self/fd/{lower}/"
        if _size(source) > COPY_LIMIT:
            raise OSError(f"{refused}, and {top} is too large to be copied for the validation") from refused
        copy = os.path.join(base, "copy")
        shutil.copytree(source, copy, symlinks=True, ignore=_special, copy_function=_copy)
        os.chown(copy, before.st_uid, before.st_gid)
        os.chmod(copy, before.st_mode & 0o7777)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(copy.encode(), top.encode(), None, ctypes.c_ulong(4096), None) != 0:  # MS_BIND
            raise OSError(f"binding a copy over {top}: {os.strerror(ctypes.get_errno())}") from refused
    if os.stat(top).st_dev == before.st_dev:
        raise OSError(f"{top} is not covered")


def _size(path: str) -> int:
    return sum(os.lstat(os.path.join(base, name)).st_size for base, _, names in os.walk(path) for name in names)


def _special(directory: str, names: list[str]) -> list[str]:
    """Sockets, pipes and devices: not copied."""
    paths = [(name, Path(directory, name)) for name in names]
    return [name for name, path in paths if not (path.is_symlink() or path.is_dir() or path.is_file())]


def _copy(source: str, target: str) -> str:
    status = os.lstat(source)
    shutil.copy2(source, target, follow_symlinks=False)
    os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
    return target


def _put(entry: Staged) -> None:
    """One staged entry, through the overlay."""
    path = Path(entry.path)
    if entry.removed:
        if path.is_dir() and not path.is_symlink():
            return  # directories are removed only when empty: an empty one changes no validator's answer
        path.unlink(missing_ok=True)
        return
    if entry.directory:
        path.mkdir(parents=True, exist_ok=True)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if entry.target:
            path.symlink_to(entry.target)
            return
        path.write_bytes(entry.content or b"")
    os.chown(path, entry.uid, entry.gid)
    os.chmod(path, entry.mode)
