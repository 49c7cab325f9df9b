#!/usr/bin/env python3
# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measures the budgets of the design on this machine, as ratios within one run.

Prints a table and writes build/bench.json: a list of {name, value, unit, budget, ok}. Runs alternate (A B A B ...), so
that a machine whose speed drifts does not favour one side; medians are compared, minimum and maximum are printed.

The hosts are those of fleet.py, booted and converged (`make bench` does so). Other tools take minutes, so what they
took is kept in baselines.json as a ratio to the empty play of the same run; `--peers` measures them again.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import typing as t
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import fleet
import peers
from measure import ROOT, Figure, alternate, peak_memory, ratios, run, timed

BASELINES = Path(__file__).with_name("baselines.json")
#: What each peer shall be slower by.
PEERS = {"ansible": ("one task per resource, plain Ansible", 100.0), "pyinfra": ("the same in pyinfra", 30.0)}


def inventory(name: str) -> str:
    return str(fleet.SITE / "inventories" / name)


def site(name: str, limit: str, *arguments: str) -> list[str]:
    return ["ansible-playbook", "-i", inventory(name), "-l", limit, "site.yml", *arguments]


def empty(directory: Path, name: str = "forge", host: str = fleet.FORGE) -> list[str]:
    """The smallest play that uses the connection: one raw command, no module, no facts."""
    path = directory / "empty.yml"
    path.write_text(
        "- name: Empty play\n  hosts: all\n  gather_facts: false\n  tasks:\n"
        "    - name: Touch the connection\n      ansible.builtin.raw: 'true'\n      changed_when: false\n"
    )
    return ["ansible-playbook", "-i", inventory(name), "-l", host, str(path)]


def noop(base: list[str], large: list[str], runs: int) -> t.Iterator[Figure]:
    """An unchanged site.yml, for more services and for more hosts, against an empty play over the same SSH."""
    forge, many = site("forge", fleet.FORGE), site("many", fleet.BIG)
    one, ten = site("one", "all"), site("ten", "all")
    for command in (forge, many, ten):
        if "changed=0 " not in (said := run(command)) or "changed=1 " in said:
            sys.exit(f"{' '.join(command)} has something to change:\n{said[-2000:]}")
    found = alternate({"empty": base, "forge": forge, "large": large, "many": many}, runs)
    yield Figure.of("empty play over the same SSH", found["empty"], "s")
    yield Figure.of(f"no-op site.yml -l forge, {fleet.SERVICES} services", found["forge"], "s")
    yield Figure.of("  over the empty play", ratios(found["forge"], found["empty"]), "x", 3.0)
    yield Figure.of("  peak memory of all its processes", [peak_memory(forge)], "MB")
    yield Figure.of(f"no-op with {fleet.MANY} services", found["many"], "s")
    yield Figure.of(f"  over {fleet.SERVICES} services", ratios(found["many"], found["forge"]), "x", 1.5)
    # Not in the budget, but it tells what reading a large inventory costs Ansible itself.
    yield Figure.of(
        "  (an empty play on that inventory over one on the smaller)", ratios(found["large"], found["empty"]), "x"
    )
    found = alternate({"one": one, "ten": ten}, max(3, runs // 2))
    yield Figure.of(f"no-op of one such host, {fleet.SERVICES} services, few packages", found["one"], "s")
    yield Figure.of(f"no-op of {fleet.HOSTS} such hosts in one run", found["ten"], "s")
    yield Figure.of("  over one host", ratios(found["ten"], found["one"]), "x", 4.0)
    yield Figure.of("  peak memory of all its processes", [peak_memory(ten)], "MB", 500.0)


def invocations() -> dict[str, str]:
    """Each service unit that runs on lab-forge -> the id of its start; those of sessions and of Hearth's runs are not."""
    text = peers.ssh(
        fleet.FORGE, "systemctl show --property=Id,InvocationID $(systemctl list-units --type=service --state=running "
        "--plain --no-legend | cut -d' ' -f1 | grep -Ev '^(user@|ssh@|hearth-)')"
    ).decode()  # fmt: skip
    found = {}
    for block in text.strip().split("\n\n"):
        values = dict(line.partition("=")[::2] for line in block.splitlines())
        found[values["Id"]] = values["InvocationID"]
    return found


def one_file() -> Figure:
    """Changes one file of one service; which units of the host were started again?"""
    before = invocations()
    run(site("forge", fleet.FORGE, "-e", "bench_revision=1"))
    after = invocations()
    restarted = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    run(site("forge", fleet.FORGE))
    own = f"{fleet.copy_name(1)}.service"
    figure = Figure(f"services restarted by one changed file, of {len(before)}", len(restarted), "", 1.0)
    figure.ok, figure.spread = restarted == [own], ", ".join(restarted)
    return figure


def compared(base: list[str], again: bool) -> t.Iterator[Figure]:
    """How much faster than other tools; each as a multiple of the empty play that ran beside it."""
    known = json.loads(BASELINES.read_text()) if BASELINES.exists() else {}
    if again:
        for tool in PEERS:
            known[tool] = _peer(tool, base)
            print(f"{tool}: {known[tool]['ratio']} times the empty play")
        BASELINES.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
    if not known:
        return
    found = alternate({"empty": base, "hearth": site("forge", fleet.FORGE)}, 5)
    own = ratios(found["hearth"], found["empty"])
    for tool, (what, budget) in PEERS.items():
        entry = known[tool]
        yield Figure(f"{what} ({entry['measured']})", entry["ratio"], "x", spread="over the empty play")
        yield Figure.at_least("  Hearth is faster by", [entry["ratio"] / value for value in own], "x", budget)


def _peer(tool: str, base: list[str]) -> dict[str, t.Any]:
    """One tool, once (it takes minutes), between empty plays."""
    command = peers.playbook() if tool == "ansible" else peers.pyinfra()
    timed(base)
    before = [timed(base)[0] for _ in range(5)]
    seconds, said = timed(command)
    after = [timed(base)[0] for _ in range(5)]
    peers.unchanged(tool, said)
    beside = statistics.median(before + after)
    return {
        "command": f"{peers.SERVICES} services x {peers.TASKS} resources, unchanged",
        "measured": datetime.now(UTC).date().isoformat(),
        "version": peers.version(tool),
        "python": platform.python_version(),
        "seconds": round(seconds, 1),
        "empty_play_seconds": round(beside, 3),
        "ratio": round(seconds / beside, 1),
    }


def composition(runs: int, hosts: int, services: int) -> t.Iterator[Figure]:
    """Composing a generated fleet, without a connection, in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("compose_fleet.py")), str(hosts), str(services)]
    found = [json.loads(run(command).splitlines()[-1]) for _ in range(runs)]
    name = f"compose: {hosts} hosts, {services} services"
    yield Figure.of(name, [entry["seconds"] for entry in found], "s", 3.0)
    yield Figure.of(f"{name}, memory", [entry["megabytes"] for entry in found], "MB", 300.0)


def row(figure: Figure) -> str:
    mark = "" if figure.budget is None else f"budget {figure.budget:g} {'ok' if figure.ok else 'OVER'}"
    return f"{figure.name:60}  {figure.value:8.2f} {figure.unit:3} ({figure.spread})  {mark}".rstrip()


def measure(directory: Path, arguments: argparse.Namespace) -> t.Iterator[Figure]:
    """All rows, in the order of the table."""
    base = empty(directory)
    yield from composition(max(3, arguments.runs // 2), 20, 500)
    if not arguments.skip_hosts:
        yield from noop(base, empty(directory, "many", fleet.BIG), arguments.runs)
        yield one_file()
        yield from compared(base, arguments.peers)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--peers", action="store_true", help="measure plain Ansible and pyinfra again (10 minutes)")
    parser.add_argument("--skip-hosts", action="store_true", help="only what needs no lab host")
    arguments = parser.parse_args()
    figures: list[Figure] = []
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        # Row by row: a run that ends early, or that somebody stops, has still said what it measured.
        for figure in measure(Path(directory), arguments):
            figures.append(figure)
            print(row(figure), flush=True)
            written = json.dumps([asdict(entry) for entry in figures], indent=1)
            (ROOT / "build" / "bench.json").write_text(written + "\n")
    return 0 if all(figure.ok for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
