# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Every molecule scenario, each as one test: real hosts, made, converged, proven and taken away again."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from . import machine
from .conftest import BIN, ROOT

SCENARIOS = sorted(path.parent.name for path in (ROOT / "molecule").glob("*/molecule.yml"))


@pytest.mark.lab
@pytest.mark.molecule
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(scenario: str, capfd: pytest.CaptureFixture[str]) -> None:
    log = ROOT / "build" / f"molecule-{scenario}.log"
    log.parent.mkdir(exist_ok=True)
    before = machine.snapshot(scenario)
    with capfd.disabled(), log.open("w") as stream:
        print(f"\nscenario {scenario}: its output goes to {log.relative_to(ROOT)}", flush=True)
        found = subprocess.run(
            [str(BIN / "molecule"), "test", "-s", scenario],
            cwd=ROOT,
            env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "ANSIBLE_FORCE_COLOR": "0"},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            check=False,
        )
    assert found.returncode == 0, _end(log)
    # Its hosts were converged, broken and mended, and are gone: nothing of that may have reached the machine.
    assert machine.differences(before, machine.snapshot(scenario)) == []


def _end(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-200:])
