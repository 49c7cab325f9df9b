# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every role by itself, one after the other on one disposable host: `make roles`, or `make roles ROLES="redis sonarr"`."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / ".collections")]

from tests.integration.conftest import Site
from tests.integration.role.alone import CORE, FORGE, Alone, tier
from tests.integration.role.among import Among


def roles() -> dict[str, str]:
    """Every role that contributes a service, with its tier, in the order of names."""
    return {path.parts[-3]: tier(path.parts[-3]) for path in sorted((ROOT / "roles").glob("*/vars/contribution.yml"))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", type=Path, help="a site that tools/test_site.py made, its lab up")
    parser.add_argument("roles", nargs="*")
    arguments = parser.parse_args()
    every = roles()
    unknown = sorted(set(arguments.roles) - set(every))
    if unknown:
        parser.error(f"no such role: {', '.join(unknown)}")
    directory = arguments.site.resolve()
    site = Site(directory, directory.name)
    failed: list[str] = []
    # The core first, on a host that has nothing yet.
    todo = sorted(arguments.roles or every, key=lambda name: (every[name] != CORE, name))
    has_core = False
    for name in todo:
        if every[name] != CORE and not has_core:
            core(site)
            has_core = True
        alone = Alone(site, name)
        if not line(name, alone.bare, alone.comes, alone.again, alone.goes, alone.comes_back, alone.no_trace):
            failed.append(name)
    if any(every[name] == CORE for name in todo):
        core(site)
        for name in todo:
            alone = Alone(site, name)
            if alone.is_core and alone.is_guarded() and not line(f"without {name}", alone.keeps_the_way_in):
                failed.append(f"without {name}")
    if not arguments.roles:
        among = Among(site)
        if not line("among the others", among.everything, among.go, among.come_back):
            failed.append("among the others")
    print(f"{len(todo)} roles: " + (f"FAILED: {', '.join(failed)}" if failed else "each works alone"))
    return 1 if failed else 0


def core(site: Site) -> None:
    """The host has the core of the inventory, which leaves nothing for others to read."""
    site.set_vars(FORGE, None)
    site.play(playbook="playbooks/core.yml")
    alone = Alone(site, next(name for name, its in roles().items() if its == CORE))
    alone.only(alone.services())


def line(name: str, *steps: Callable[[], None]) -> bool:
    """Runs the steps and prints one line; with what went wrong, when something did."""
    start, times, error = time.monotonic(), [], ""
    for step in steps:
        begun = time.monotonic()
        try:
            step()
        except Exception:
            error = traceback.format_exc()
        times.append(f"{step.__name__} {time.monotonic() - begun:.0f}")
        if error:
            break
    state = "FAILED" if error else "ok"
    print(f"{name:24} {time.monotonic() - start:4.0f} s  {state:6} ({', '.join(times)})", flush=True)
    if error:
        print(error[-8000:], flush=True)
    return not error


if __name__ == "__main__":
    sys.exit(main())
