# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands and files of a host, behind small objects that tests replace.

Standard library only: this module runs on hosts.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import stat
import subprocess
import threading
import typing as t
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

#: Seconds that a command may take unless its caller says otherwise.
TIMEOUT = 120.0

#: Exit status of a program that is not installed and of one that was stopped (sh(1), timeout(1)).
NOT_FOUND = 127
TIMED_OUT = 124


@dataclass(frozen=True)
class Completed:
    """A command that ended. ``returncode`` is NOT_FOUND or TIMED_OUT where it could not run or end by itself."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str

    @property
    def missing(self) -> bool:
        """The program is not installed (programs that exist also use 127, but say something of their own)."""
        return self.returncode == NOT_FOUND and self.stderr == _not_installed(self.argv)


def _not_installed(argv: Sequence[str]) -> str:
    return f"{argv[0]} is not installed"


class CommandError(Exception):
    """A command failed: the message has the command, its exit status and the last lines of its standard error."""

    def __init__(self, completed: Completed) -> None:
        self.completed = completed
        super().__init__(f"{shlex.join(completed.argv)}: {explain(completed)}")


def explain(completed: Completed, lines: int = 6) -> str:
    """Why a command failed, for people: exit status and the last lines of what it said."""
    said = [line.rstrip() for line in (completed.stderr or completed.stdout).splitlines() if line.strip()][-lines:]
    if completed.missing:
        return completed.stderr
    if completed.returncode < 0:
        try:
            end = f"killed by {signal.Signals(-completed.returncode).name}"
        except ValueError:
            end = f"killed by signal {-completed.returncode}"
    else:
        end = f"exit status {completed.returncode}"
    return f"{end}: " + "\n".join(said) if said else end


class Runner(t.Protocol):
    """Runs commands. ``env`` is added to the environment, ``timeout`` is in seconds, ``user`` a user's name.

    With ``check`` a command that fails, is not installed or takes too long raises CommandError.
    """

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,  # noqa: A002 (as subprocess.run has it)
        timeout: float = TIMEOUT,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        check: bool = True,
    ) -> Completed: ...


class SystemRunner:
    """Runs commands on this host, in the C.UTF-8 locale, from ``/``. ``commands`` are those that it ran.

    Input is never recorded: it may be secret. May be used by several threads.
    """

    def __init__(self) -> None:
        self.commands: list[tuple[str, ...]] = []

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,  # noqa: A002 (as subprocess.run has it)
        timeout: float = TIMEOUT,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        check: bool = True,
    ) -> Completed:
        argv = tuple(argv)
        self.commands.append(argv)
        environment = {**os.environ, "LC_ALL": "C.UTF-8", **(env or {})}
        identity: dict[str, t.Any] = {}
        if user is not None and user != "root":
            try:
                identity, environment["HOME"] = _identity(user)
            except KeyError:
                return _checked(Completed(argv, NOT_FOUND, "", f"there is no user {user}"), check)
            environment["USER"] = environment["LOGNAME"] = user
        try:
            # A session of its own, so that a command that takes too long ends with everything that it started.
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL if input is None else subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, cwd="/", env=environment, start_new_session=True, **identity,
            )  # fmt: skip
        except FileNotFoundError:
            return _checked(Completed(argv, NOT_FOUND, "", _not_installed(argv)), check)
        except OSError as error:
            return _checked(Completed(argv, 126, "", f"{argv[0]} cannot be run: {error.strerror}"), check)
        with process:
            try:
                out, err = process.communicate(input, timeout)
                code = process.returncode
            except subprocess.TimeoutExpired:
                _kill(process)
                out, err = process.communicate()
                code, err = TIMED_OUT, err + f"\nstopped after {timeout:g} s".encode()
            except BaseException:
                _kill(process)
                raise
        return _checked(Completed(argv, code, out.decode(errors="replace"), err.decode(errors="replace")), check)

    def pipe(self, argv: Sequence[str], into: Sequence[str], *, timeout: float = TIMEOUT) -> Completed:
        """``argv | into``, with nothing in between: what moves the data is the kernel. Both must succeed.

        The result is the failed command's, else that of ``into`` (whose output is small). Neither asks on a terminal.
        """
        self.commands += [tuple(argv), tuple(into)]
        environment = {**os.environ, "LC_ALL": "C.UTF-8"}
        try:
            source = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/", env=environment,
                start_new_session=True,
            )  # fmt: skip
        except FileNotFoundError:
            return Completed(tuple(argv), NOT_FOUND, "", _not_installed(argv))
        said: list[bytes] = []
        listener = threading.Thread(target=lambda: said.append(source.stderr.read() if source.stderr else b""))
        listener.start()
        try:
            target = subprocess.Popen(
                into, stdin=source.stdout, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/", env=environment,
                start_new_session=True,
            )  # fmt: skip
        except FileNotFoundError:
            _kill(source)
            source.wait()
            listener.join()
            return Completed(tuple(into), NOT_FOUND, "", _not_installed(into))
        if source.stdout is not None:
            source.stdout.close()  # so that the source learns when the target ends
        try:
            out, err = target.communicate(timeout=timeout)
            code = target.returncode
        except subprocess.TimeoutExpired:
            _kill(target)
            out, err = target.communicate()
            code, err = TIMED_OUT, err + f"\nstopped after {timeout:g} s".encode()
        except BaseException:
            _kill(target)
            _kill(source)
            raise
        if code:
            _kill(source)
        source.wait()
        listener.join()
        if code == 0 and source.returncode:
            return Completed(tuple(argv), source.returncode, "", b"".join(said).decode(errors="replace"))
        return Completed(tuple(into), code, out.decode(errors="replace"), err.decode(errors="replace"))


def _identity(user: str) -> tuple[dict[str, t.Any], str]:
    import grp
    import pwd

    entry = pwd.getpwnam(user)
    groups = [group.gr_gid for group in grp.getgrall() if user in group.gr_mem]
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": groups}, entry.pw_dir


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _checked(completed: Completed, check: bool) -> Completed:
    if check and completed.returncode != 0:
        raise CommandError(completed)
    return completed


@dataclass
class FakeRunner:
    """Answers from recorded outputs; for tests.

    ``answers`` maps a command line (joined by spaces), or the beginning of one, to what the command printed, to
    a Completed, or to a function of argv and input; the longest beginning that fits wins. A command without an
    answer is not installed. ``calls`` are the commands that were run.
    """

    answers: dict[str, str | Completed | t.Callable[[tuple[str, ...], bytes | None], str | Completed]] = field(
        default_factory=dict
    )
    calls: list[tuple[str, ...]] = field(default_factory=list)
    inputs: list[bytes | None] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,  # noqa: A002 (as subprocess.run has it)
        timeout: float = TIMEOUT,  # noqa: ARG002 (Runner's signature)
        env: Mapping[str, str] | None = None,  # noqa: ARG002 (Runner's signature)
        user: str | None = None,  # noqa: ARG002 (Runner's signature)
        check: bool = True,
    ) -> Completed:
        argv = tuple(argv)
        with self._lock:
            self.calls.append(argv)
            self.inputs.append(input)
        line = " ".join(argv)
        known = [key for key in self.answers if line == key or line.startswith(f"{key} ")]
        if not known:
            return _checked(Completed(argv, NOT_FOUND, "", _not_installed(argv)), check)
        answer = self.answers[max(known, key=len)]
        if callable(answer):
            answer = answer(argv, input)
        if isinstance(answer, str):
            answer = Completed(argv, 0, answer, "")
        return _checked(Completed(argv, answer.returncode, answer.stdout, answer.stderr), check)


@dataclass(frozen=True)
class System:
    """A host as observe sees it: commands, and files below ``root`` (``/`` on hosts, a temporary tree in tests)."""

    runner: Runner
    root: str = "/"

    def path(self, path: str) -> str:
        """``path`` (absolute) below ``root``."""
        return path if self.root == "/" else os.path.join(self.root, path.lstrip("/"))

    def lstat(self, path: str) -> os.stat_result | None:
        """The path's own status, None when it does not exist. OSError when that cannot be told."""
        try:
            return os.lstat(self.path(path))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read(self, path: str) -> bytes | None:
        """A regular file's content, None when there is none. Never waits (a FIFO is not read)."""
        try:
            handle = os.open(self.path(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        with os.fdopen(handle, "rb") as stream:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                return None
            return stream.read()

    def text(self, path: str) -> str | None:
        """A file as text (UTF-8, damaged characters replaced), None when there is none."""
        content = self.read(path)
        return None if content is None else content.decode(errors="replace")
