# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's side of the exchange: ships the agent once, then speaks with it in single round trips.

The agent is this collection's module_utils, unpacked and byte-compiled under /var/lib/hearth/agent/DIGEST: an
AnsiballZ call costs 0.3 s of compiling on the host for every task, this costs it once per version.
"""

from __future__ import annotations

import base64
import functools
import io
import shlex
import tarfile
import typing as t
from pathlib import Path

from ansible_collections.hearth.homelab.plugins.module_utils import protocol

#: Where hosts keep the agent; the same path is in module_utils/layout.py.
AGENT_DIRECTORY = "/var/lib/hearth/agent"
_MISSING = "@@HEARTH-AGENT-MISSING@@"
# Reads "LENGTH\\n", the agent's archive and the request from stdin. `install` unpacks it for good, atomically:
# a reader sees the whole agent or none; `once` (check mode) runs it from a directory that is removed again.
_BOOTSTRAP = """\
import compileall, io, os, shutil, subprocess, sys, tarfile, tempfile
how, digest, command, base = sys.argv[1:5]
size = int(sys.stdin.buffer.readline())
archive = sys.stdin.buffer.read(size)
try:
    if how == "install":
        os.makedirs(base, mode=0o700, exist_ok=True)
        os.chmod(os.path.dirname(base), 0o700)
except PermissionError:
    sys.exit("hearth: this must run as root on the host: use --become, or connect as root")
work = tempfile.mkdtemp(prefix=".new-", dir=base if how == "install" else None)
try:
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:xz") as tar:
        # Python before 3.11.4 (Debian 12's is 3.11.2) has no filters; the archive is our own.
        tar.extractall(work, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    if how == "install":
        compileall.compile_dir(work, quiet=2, stripdir=work, prependdir=os.path.join(base, digest))
        target = os.path.join(base, digest)
        shutil.rmtree(target, ignore_errors=True)
        os.rename(work, target)
        link = os.path.join(base, ".current-%d" % os.getpid())
        os.symlink(digest, link)
        os.rename(link, os.path.join(base, "current"))
        work_main = os.path.join(target, "main.py")
    else:
        work_main = os.path.join(work, "main.py")
    sys.exit(subprocess.run([sys.executable, "-I", work_main, command], input=sys.stdin.buffer.read()).returncode)
finally:
    shutil.rmtree(work, ignore_errors=True)
"""


class AgentError(Exception):
    """The host did not answer as an agent does; the message says what it printed instead."""


@functools.cache
def _files() -> dict[str, str]:
    return protocol.agent_files(Path(protocol.__file__).parent)


@functools.cache
def digest() -> str:
    """What names this version of the agent (16 hexadecimal digits); known without making the archive, which takes 0.2 s."""
    return protocol.agent_digest(_files())


@functools.cache
def archive() -> bytes:
    """The agent as tar.xz; equal sources give equal bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as tar:
        for name, text in sorted(_files().items()):
            content = text.encode()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


class Agent:
    """Speaks with the agent of one host through an action plugin's connection."""

    def __init__(
        self,
        execute: t.Callable[[str, bytes], dict[str, t.Any]],
        *,
        python: str = "/usr/bin/python3",
        keep: bool = True,
    ) -> None:
        """``execute(command, stdin)`` returns rc, stdout and stderr; ``keep=False`` never installs (check mode)."""
        self._execute, self._python, self._keep = execute, python, keep
        self.exchanges = 0

    def call(self, command: str, request: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        """Sends one request and returns the answer; AgentError when there is none."""
        payload = protocol.encode_request(request)
        target = f"{AGENT_DIRECTORY}/{digest()}/main.py"
        answer = self._run(
            f"if [ -f {target} ]; then exec {shlex.quote(self._python)} -I {target} {command}; "
            f"else cat >/dev/null; echo {_MISSING}; fi",
            payload,
        )
        if _MISSING in answer["stdout"]:
            how = "install" if self._keep else "once"
            program = base64.b64encode(_BOOTSTRAP.encode()).decode()
            run = f"import base64;exec(base64.b64decode('{program}'))"
            answer = self._run(
                " ".join(
                    shlex.quote(word) for word in (self._python, "-Ic", run, how, digest(), command, AGENT_DIRECTORY)
                ),
                f"{len(archive())}\n".encode() + archive() + payload,
            )
        try:
            found = protocol.decode_response(answer["stdout"])
        except protocol.ProtocolError as error:
            said = " ".join((answer["stderr"] or answer["stdout"] or "nothing").split())[-2000:]
            raise AgentError(
                f"the host's agent gave no answer to {command} (exit status {answer['rc']}): {said}"
            ) from error
        if "error" in found:
            raise AgentError(str(found["error"]))
        return found

    def _run(self, command: str, data: bytes) -> dict[str, t.Any]:
        self.exchanges += 1
        return self._execute(command, data)
