# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kill runs at random, on a fresh disposable host: `make soak SOAK_KILLS=200`.

Each run changes the host; it is killed after a random time, or its settling is, or the power goes. Then the host must be
wholly what it was or wholly what it shall be, and the next run converges. Some new versions have a service that does not
start: that one alone is as it was. The seed is printed, so that a series can be begun again; times differ all the same.
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import time
import typing as t
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / ".collections"), str(ROOT / "tests/integration/host")]

from ansible_collections.hearth.homelab.plugins.module_utils import generations
from drive import World

from tests.integration.conftest import Site
from tests.integration.kills.conftest import LabHost
from tests.integration.kills.test_kills import Fleet

#: How a run ends, as often as it is named.
WAYS = ("kill",) * 6 + ("kill-all",) * 2 + ("settling",) * 2 + ("power",)
#: How often a run's new version of the service app does not start, and is held back where the run comes that far.
SICK = 0.25


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path, help="a site that tools/test_site.py made, its lab up")
    parser.add_argument("lab", help="the lab's name")
    parser.add_argument("-n", "--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    print(f"{arguments.kills} kills, seed {arguments.seed}", flush=True)
    host = LabHost(Site(arguments.site.resolve(), arguments.lab))
    fleet = Fleet(host)
    fleet.converge(fleet.current)
    fleet.make_precious()
    fleet.well(fleet.current)
    ends: collections.Counter[str] = collections.Counter()
    for number in range(1, arguments.kills + 1):
        # A run is past its files within a second or two once it is confirmed: half of them are killed before.
        way, confirm = random.choice(WAYS), random.random() < 0.5
        delay = random.uniform(0.0, 9.0 if confirm else 2.0)
        what, run = f"{number}: {way} after {delay:.1f} s", host.name_run()
        try:
            ended = kill(fleet, run, way, delay, confirm)
        except (AssertionError, RuntimeError) as error:
            print(f"{what}: WRONG\n{error}\nThe run's journal and events:", flush=True)
            print(host.sh(f"cd /var/lib/hearth/runs/{run} && cat journal.jsonl events.jsonl", check=False))
            print(f"failed at kill {number} of {arguments.kills}, seed {arguments.seed}")
            return 1
        ends[f"{way}: {ended}"] += 1
        print(f"{what}: {ended}", flush=True)
    print("\n".join(f"{count:4} {what}" for what, count in sorted(ends.items())))
    print(f"{arguments.kills} kills: each left the host wholly old or wholly new, but for services held back")
    return 0


def kill(fleet: Fleet, run: str, way: str, delay: float, confirm: bool) -> str:
    """One run that changes the host and is killed; how it ended, once the host was found well."""
    host, old, sick = fleet.host, fleet.current, random.random() < SICK
    new = fleet.next(command="/bin/false" if sick else "")
    host.start(new.manifest, new.blobs, new.secrets, run=run, confirm_timeout=20)
    if confirm:
        host.call("confirm", {"run": run})
    time.sleep(delay)
    if way == "power":
        host.power_cut()
    else:
        # To every process of the run, or to its own alone; systemd ends the others then.
        whom = "all" if way == "kill-all" else "main"
        host.sh(f"systemctl kill --kill-whom={whom} -s KILL hearth-apply-{run}.service 2>/dev/null", check=False)
        if way == "settling":
            time.sleep(random.uniform(0.0, 2.0))
            host.sh("systemctl kill -s KILL hearth-settle.service 2>/dev/null", check=False)
    host.call("recover", {"timeout": 120})
    result = host.follow(run, confirm=False, show=False)
    held = result.get("taken_back", {})  # none where the run was never begun
    # A kill is no reason to hold a healthy service back, and a run with a sick one does not become ok by one.
    assert not held or (sick and set(held) == {"app"}), held
    assert not (sick and result["ok"]), result
    if result["ok"] or held:
        fleet.current = mixed(new, old, held)
        partial = fleet.well(fleet.current)
        assert partial == held, (partial, held)
        return "finished, app held back" if held else "finished"
    fleet.well(old)
    if not sick and random.random() < 0.2:
        fleet.converge(new)
        fleet.well(new)
    return "undone" if result.get("undone") else "not begun"


def mixed(new: World, old: World, held: t.Collection[str]) -> World:
    """``new``, but the ``held`` services as they are in ``old``: what a run leaves that holds some back."""
    world = World(new.host)
    manifest = generations.effective(new.manifest, old.manifest, held)
    world.services, world.items = manifest.services, list(manifest.items)
    world.validators, world.blobs = list(manifest.validators), {**old.blobs, **new.blobs}
    world.secrets = {name: value for name, value in new.secrets.items() if name.partition("/")[0] not in held}
    world.secrets.update({name: value for name, value in old.secrets.items() if name.partition("/")[0] in held})
    return world


if __name__ == "__main__":
    sys.exit(main())
