# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Drive the agent on a real Debian 13 host over SSH, with manifests made by hand.

A stand-in for the controller's converge action, for tests of the agent alone.
"""

from __future__ import annotations

import base64
import contextlib
import json
import shlex
import subprocess
import time
import typing as t
import uuid
from pathlib import Path

from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.module_utils import protocol
from watcher import TOO_LATE

#: Puts the agent on the host; the controller has a way of its own (plugin_utils/agent.py).
INSTALL = """\
import base64, json, os, shutil, sys, zlib
data = json.loads(zlib.decompress(base64.b64decode(sys.stdin.buffer.read())))
base = "/var/lib/hearth/agent"
os.umask(0o077)
os.makedirs(base, mode=0o700, exist_ok=True)
os.chmod("/var/lib/hearth", 0o700)
final = os.path.join(base, data["digest"])
if not os.path.exists(os.path.join(final, "main.py")):
    temporary = final + ".tmp%d" % os.getpid()
    for name, text in data["files"].items():
        path = os.path.join(temporary, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
    shutil.rmtree(final, ignore_errors=True)
    os.rename(temporary, final)
print(final + "/main.py")
"""

WATCHER = Path(__file__).with_name("watcher.py")
MODULE_UTILS = Path(protocol.__file__).resolve().parent


class TooLateError(RuntimeError):
    """A run ended by itself before it could be killed at its last record."""


class Host:
    """One host. ``ssh`` is the command that runs its last argument on it."""

    def __init__(self, ssh: t.Sequence[str]) -> None:
        self.ssh = list(ssh)
        self.main = ""

    def sh(self, command: str, data: bytes = b"", check: bool = True) -> str:
        done = subprocess.run([*self.ssh, command], input=data, capture_output=True, check=False)
        if check and done.returncode != 0:
            raise RuntimeError(f"{command}: {done.returncode}: {done.stderr.decode()}{done.stdout.decode()}")
        return done.stdout.decode()

    def ask(self, questions: t.Mapping[str, str]) -> dict[str, str]:
        """What several shell commands print, whatever their exit status, over one session."""
        script = "".join(f"printf '\\0'\n{{ {command}\n}} 2>/dev/null\n" for command in questions.values())
        answers = self.sh(script, check=False).split("\0")[1:]
        if len(answers) != len(questions):
            raise RuntimeError(f"{len(questions)} questions, {len(answers)} answers")
        return {name: answer.strip() for name, answer in zip(questions, answers, strict=True)}

    def install(self) -> None:
        files = protocol.agent_files(MODULE_UTILS)
        digest = protocol.agent_digest(files)
        data = protocol.encode_request({"digest": digest, "files": files})
        quoted = INSTALL.replace("'", "'\\''")
        self.main = self.sh(f"python3 -I -c '{quoted}'", data).strip()

    def call(self, command: str, request: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        if not self.main:
            self.install()
        output = self.sh(f"python3 -I {self.main} {command}", protocol.encode_request(request or {}), check=False)
        return protocol.decode_response(output)

    def compare(self, manifest: m.Manifest, secrets: dict[str, str] | None = None, **more: t.Any) -> dict[str, t.Any]:
        nonce = uuid.uuid4().hex
        digests = {name: protocol.secret_digest(nonce, value) for name, value in (secrets or {}).items()}
        wanted = {"nonce": nonce, "digests": digests}
        return self.call("compare", {"manifest": manifest.to_dict(), "secrets": wanted, **more})

    def start(
        self,
        manifest: m.Manifest,
        blobs: dict[str, bytes],
        secrets: dict[str, str] | None = None,
        run: str = "",
        **more: t.Any,
    ) -> str:
        run = run or self.name_run()
        answer = self.call(
            "apply",
            {
                "manifest": manifest.to_dict(), "secrets": secrets or {}, "run": {"id": run, "owner": "tester@lab", "commit": "0"},
                "blobs": {digest: base64.b64encode(content).decode() for digest, content in blobs.items()}, **more,
            },
        )  # fmt: skip
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return run

    @staticmethod
    def name_run() -> str:
        return "t" + uuid.uuid4().hex[:8]

    @contextlib.contextmanager
    def killing(self, run: str, record: dict[str, t.Any], how: str = "kill", command: str = "run") -> t.Iterator[None]:
        """While the body goes on, wait on the host for a record of a run's journal and kill (watcher.py) there."""
        self.sh("cat > /run/watcher.py", WATCHER.read_bytes())
        argv = [*self.ssh, shlex.join(["python3", "-I", "/run/watcher.py", run, json.dumps(record), how, command])]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watcher:
            assert watcher.stdout is not None
            assert watcher.stdout.readline() == "watching\n"
            yield
            out, error = watcher.communicate(timeout=200)
            if watcher.returncode != 0:
                raise (TooLateError if watcher.returncode == TOO_LATE else RuntimeError)(f"{record}: {error}{out}")

    def follow(self, run: str, confirm: bool = True, show: bool = True) -> dict[str, t.Any]:
        offset, begun = 0, time.monotonic()
        while True:
            answer = self.call("watch", {"run": run, "offset": offset, "timeout": 3})
            if "error" in answer:
                raise RuntimeError(answer["error"])
            offset = answer["offset"]
            for event in answer["events"]:
                if show:
                    print(f"  {time.monotonic() - begun:6.1f} {event['text']}", flush=True)
            if answer["awaiting_confirmation"] and confirm:
                self.call("confirm", {"run": run})
            if answer["done"]:
                return t.cast("dict[str, t.Any]", answer["result"])

    def converge(self, world: World, confirm: bool = True, **more: t.Any) -> dict[str, t.Any]:
        return self.follow(self.start(world.manifest, world.blobs, world.secrets, **more), confirm)


class World:
    """A manifest under construction."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.services: dict[str, m.ServiceState] = {}
        self.items: list[m.Item] = []
        self.validators: list[m.Validator] = []
        self.blobs: dict[str, bytes] = {}
        self.secrets: dict[str, str] = {}

    def service(self, name: str, tier: str = "services", **more: t.Any) -> None:
        self.services[name] = m.ServiceState(name, tier, **more)

    def add(self, *items: m.Item) -> None:
        self.items += items

    def file(self, service: str, path: str, text: str, **more: t.Any) -> None:
        content = text.encode()
        digest = m.digest(content)
        self.blobs[digest] = content
        self.items.append(m.File(path, service, digest=digest, size=len(content), **more))

    @property
    def manifest(self) -> m.Manifest:
        return m.Manifest(
            self.host, "debian13", "amd64", self.services, m.sort_items(self.items), tuple(self.validators)
        )


def show(result: dict[str, t.Any]) -> None:
    """A result, short."""
    short = {key: value for key, value in result.items() if key not in ("actions", "plan")}
    short["actions"] = [f"{a['operation']} {a['id']} ({a['reason']})" for a in result.get("actions", [])]
    print(json.dumps(short, indent=1))
