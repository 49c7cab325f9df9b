# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every role by itself, one after the other on one disposable host: `make roles`, or `make roles ROLES="redis sonarr"`."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / ".collections")]

import yaml

from tests.integration.conftest import Site
from tests.integration.role.alone import CORE, Alone


def roles() -> dict[str, str]:
    """Every role that contributes a service, with its tier, in the order of names."""
    found = {}
    for path in sorted((ROOT / "roles").glob("*/vars/contribution.yml")):
        name = path.parts[-3]
        found[name] = yaml.safe_load(path.read_text())[f"{name}_contribution"]["tier"]
    return found


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
    site.play(playbook="playbooks/core.yml")
    failed: dict[str, str] = {}
    todo = [name for name in arguments.roles or every if every[name] != CORE]
    for name in todo:
        alone, step, start = Alone(site, name), "", time.monotonic()
        times = []
        try:
            for work in (alone.bare, alone.comes, alone.again, alone.goes, alone.comes_back, alone.no_trace):
                step, begun = work.__name__, time.monotonic()
                work()
                times.append(f"{step} {time.monotonic() - begun:.0f}")
        except Exception:
            failed[name] = f"{step}: {traceback.format_exc()}"
        state = f"FAILED at {step}" if name in failed else "ok"
        print(f"{name:22} {time.monotonic() - start:5.0f} s  {state} ({', '.join(times)})", flush=True)
        if name in failed:
            print(failed[name][-6000:], flush=True)
    print(f"{len(todo) - len(failed)} of {len(todo)} roles work alone" + (f"; not: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
