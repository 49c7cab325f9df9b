# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How this benchmark measures: alternating runs, medians, and the memory of everything that a run starts."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
import typing as t
import uuid
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

Command = t.Sequence[str]


@dataclass
class Figure:
    """One line of the table; ``budget`` is the largest value that is still good (or the smallest, if ``at_least``),
    None for plain information."""

    name: str
    value: float
    unit: str
    budget: float | None = None
    ok: bool = True
    spread: str = ""

    @classmethod
    def of(cls, name: str, values: t.Sequence[float], unit: str, budget: float | None = None) -> Figure:
        """The median of several measurements, at most ``budget``."""
        value = statistics.median(values)
        return cls(name, value, unit, budget, budget is None or value <= budget, _spread(values))

    @classmethod
    def at_least(cls, name: str, values: t.Sequence[float], unit: str, budget: float) -> Figure:
        value = statistics.median(values)
        return cls(name, value, unit, budget, value >= budget, _spread(values))


def _spread(values: t.Sequence[float]) -> str:
    return f"{min(values):.2f} .. {max(values):.2f}"


def environment() -> dict[str, str]:
    """As the Makefile runs Ansible; the programs beside this Python come first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "PATH": path, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}


def run(command: Command, env: t.Mapping[str, str] | None = None) -> str:
    """Standard output of a command; a failing one ends the benchmark with what it said."""
    found = subprocess.run(command, cwd=ROOT, env=env or environment(), capture_output=True, text=True, check=False)
    if found.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{found.stdout[-4000:]}\n{found.stderr[-4000:]}")
    return found.stdout


def timed(command: Command) -> tuple[float, str]:
    """Wall seconds of a command, and its output."""
    start = time.perf_counter()
    said = run(command)
    return time.perf_counter() - start, said


def alternate(commands: t.Mapping[str, Command], runs: int) -> dict[str, list[float]]:
    """Seconds of each command, A B A B ...: a machine whose speed drifts favours none. One run of each goes unmeasured."""
    for command in commands.values():
        run(command)
    found: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            found[name].append(timed(command)[0])
    return found


def ratios(values: t.Sequence[float], base: t.Sequence[float]) -> list[float]:
    """Each run against the one beside it."""
    return [a / b for a, b in zip(values, base, strict=True)]


def peak_memory(command: Command) -> float:
    """MB of the run's processes together, at the worst moment seen (every 20 ms; Linux).

    Proportional set sizes: what forks share counts once. Processes are known by a variable of their environment, so
    that also those count that leave the process group (SSH's connection masters).
    """
    mark = f"HEARTH_BENCH={uuid.uuid4().hex}"
    name, _, value = mark.partition("=")
    running = subprocess.Popen(
        command, cwd=ROOT, env={**environment(), name: value}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    known: dict[str, bool] = {}
    peak = 0
    while running.poll() is None:
        total = 0
        for pid in filter(str.isdigit, os.listdir("/proc")):
            # Asked once per process: a fork has its parent's environment, and keeps it over exec.
            if pid not in known:
                known[pid] = mark.encode() in _read(f"/proc/{pid}/environ")
            if known[pid]:
                total += _pss(pid)
        peak = max(peak, total)
        time.sleep(0.02)
    if running.returncode:
        sys.exit(f"{' '.join(command)} failed with {running.returncode}")
    return peak / 1024


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:  # it has ended
        return b""


def _pss(pid: str) -> int:
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1])
    return 0
