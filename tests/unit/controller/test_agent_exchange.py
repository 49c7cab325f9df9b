# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The controller's side of the exchange, against a shell on this machine instead of a host."""

from __future__ import annotations

import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
from ansible_collections.hearth.homelab.plugins.module_utils import protocol
from ansible_collections.hearth.homelab.plugins.plugin_utils import agent as controller

ECHO = """\
import sys
from ansible_collections.hearth.homelab.plugins.module_utils import protocol
request = protocol.decode_request(sys.stdin.buffer.read())
print("Welcome to forge")
print(protocol.encode_response({"command": sys.argv[1], "request": request}))
"""


def _forget() -> None:
    for part in (controller._files, controller.digest, controller.archive):
        part.cache_clear()


@pytest.fixture
def execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> t.Callable[[str, bytes], dict[str, t.Any]]:
    """A host whose agent echoes: the bundle keeps its protocol module and gets another entry point."""
    real = protocol.agent_files

    def files(source: Path) -> dict[str, str]:
        return {**real(source), "main.py": "import os, sys\nsys.path.insert(0, os.path.dirname(__file__))\n" + ECHO}

    monkeypatch.setattr(protocol, "agent_files", files)
    monkeypatch.setattr(controller, "AGENT_DIRECTORY", str(tmp_path / "hearth" / "agent"))
    _forget()

    def run(command: str, data: bytes) -> dict[str, t.Any]:
        found = subprocess.run(["sh", "-c", command], input=data, capture_output=True, check=False)
        return {"rc": found.returncode, "stdout": found.stdout.decode(), "stderr": found.stderr.decode()}

    yield run
    _forget()


def test_the_agent_is_shipped_once_and_then_answers_in_one_exchange(tmp_path: Path, execute: t.Any) -> None:
    first = controller.Agent(execute, python=sys.executable)
    assert first.call("compare", {"a": 1}) == {"command": "compare", "request": {"a": 1}}
    assert first.exchanges == 2
    second = controller.Agent(execute, python=sys.executable)
    assert second.call("compare", {"a": 2})["request"] == {"a": 2}
    assert second.exchanges == 1
    installed = tmp_path / "hearth" / "agent" / "current"
    assert installed.resolve().name == controller.digest()
    assert list(installed.rglob("protocol.*.pyc")), "not byte-compiled"


def test_check_mode_leaves_nothing_on_the_host(tmp_path: Path, execute: t.Any) -> None:
    answer = controller.Agent(execute, python=sys.executable, keep=False).call("compare", {"a": 1})
    assert answer["request"] == {"a": 1}
    assert not (tmp_path / "hearth").exists()


def test_a_host_that_does_not_answer_is_quoted() -> None:
    def broken(command: str, data: bytes) -> dict[str, t.Any]:
        return {"rc": 127, "stdout": "", "stderr": "python3: not found"}

    with pytest.raises(controller.AgentError, match=r"exit status 127\): python3: not found"):
        controller.Agent(broken).call("compare", {})


def test_equal_sources_give_an_equal_bundle() -> None:
    _forget()
    one = controller.digest(), controller.archive()
    _forget()
    assert (controller.digest(), controller.archive()) == one
