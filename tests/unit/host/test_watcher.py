# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The program that kills runs on hosts under test (tests/integration/host/watcher.py)."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import typing as t
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[2] / "integration/host/watcher.py"


@pytest.fixture(scope="module")
def watcher() -> t.Any:
    spec = importlib.util.spec_from_file_location("watcher", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def gone() -> int:
    """The id of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def test_a_program_that_a_run_had_started_and_that_has_ended_is_no_fault(watcher: t.Any, gone: int) -> None:
    with subprocess.Popen(["sleep", "60"]) as run:
        watcher.send([run.pid, gone], signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL


def test_a_run_that_has_ended_cannot_be_killed(watcher: t.Any, gone: int) -> None:
    with pytest.raises(ProcessLookupError):
        watcher.strike(gone, "kill")
