#!/usr/bin/env python3
# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measures the budgets of the design on this machine, as ratios within one run.

Prints a table and writes build/bench.json: a list of {name, value, unit, budget, ok}. Runs alternate (A B A B ...), so
that a machine whose speed drifts does not favour one side; medians are compared, minimum and maximum are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import typing as t
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Figure:
    """One line of the table; ``budget`` is the largest value that is still good, None for plain information."""

    name: str
    value: float
    unit: str
    budget: float | None
    ok: bool
    spread: str = ""


def timed(command: list[str], env: dict[str, str]) -> float:
    """Wall seconds of a command; a failing one ends the benchmark with its output."""
    start = time.perf_counter()
    found = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if found.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{found.stdout[-4000:]}\n{found.stderr[-4000:]}")
    return seconds


def spread(values: list[float]) -> str:
    return f"{min(values):.2f} .. {max(values):.2f}"


def noop(inventory: str, limit: str, runs: int, env: dict[str, str]) -> t.Iterator[Figure]:
    """An unchanged site.yml against an empty play with one connection over the same SSH."""
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as directory:
        empty = Path(directory) / "empty.yml"
        # The smallest play that uses the connection: one raw command, no module, no facts.
        empty.write_text(
            "- name: Empty play\n  hosts: all\n  gather_facts: false\n  tasks:\n"
            "    - name: Touch the connection\n      ansible.builtin.raw: 'true'\n      changed_when: false\n"
        )
        playbook = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", inventory, "-l", limit]
        timed([*playbook, "site.yml"], env)
        timed([*playbook, str(empty)], env)
        site, base = [], []
        for _ in range(runs):
            base.append(timed([*playbook, str(empty)], env))
            site.append(timed([*playbook, "site.yml"], env))
    ratio = statistics.median(site) / statistics.median(base)
    yield Figure("empty play over the same SSH", statistics.median(base), "s", None, True, spread(base))
    yield Figure(f"no-op site.yml -l {limit}", statistics.median(site), "s", None, True, spread(site))
    ratios = [a / b for a, b in zip(site, base, strict=True)]
    yield Figure("no-op site.yml / empty play", ratio, "x", 3.0, ratio <= 3.0, spread(ratios))


def composition(runs: int, hosts: int, services: int) -> t.Iterator[Figure]:
    """Composing a generated fleet, without a connection, in a process of its own."""
    script = ROOT / "tests" / "benchmark" / "compose_fleet.py"
    seconds, memory = [], []
    for _ in range(runs):
        found = subprocess.run(
            [sys.executable, str(script), str(hosts), str(services)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if found.returncode:
            sys.exit(f"compose_fleet failed:\n{found.stderr[-4000:]}")
        data = json.loads(found.stdout.splitlines()[-1])
        seconds.append(data["seconds"])
        memory.append(data["megabytes"])
    value = statistics.median(seconds)
    yield Figure(f"compose: {hosts} hosts, {services} services", value, "s", 3.0, value <= 3.0, spread(seconds))
    value = statistics.median(memory)
    yield Figure(f"compose: {hosts} hosts, {services} services", value, "MB", 300.0, value <= 300, spread(memory))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inventory", default="inventories/lab")
    parser.add_argument("--limit", default="forge")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--skip-hosts", action="store_true", help="only what needs no lab host")
    arguments = parser.parse_args()
    (ROOT / "build").mkdir(exist_ok=True)
    env = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    figures: list[Figure] = []
    if not arguments.skip_hosts:
        figures += noop(arguments.inventory, arguments.limit, arguments.runs, env)
    if (ROOT / "tests" / "benchmark" / "compose_fleet.py").exists():
        figures += composition(max(3, arguments.runs // 2), 20, 500)
    (ROOT / "build" / "bench.json").write_text(json.dumps([asdict(figure) for figure in figures], indent=1) + "\n")
    width = max(len(figure.name) for figure in figures)
    for figure in figures:
        budget = f"budget {figure.budget:g} {figure.unit}" if figure.budget is not None else ""
        mark = "" if figure.budget is None else ("ok" if figure.ok else "OVER")
        print(f"{figure.name:{width}}  {figure.value:8.2f} {figure.unit:3} ({figure.spread})  {budget} {mark}".rstrip())
    print(f"peak memory of the benchmark itself: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024} MB")
    return 0 if all(figure.ok for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
