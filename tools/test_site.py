#!/usr/bin/env python3
# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes build/NAME: a repository like a user's, with a copy of the lab's inventory at addresses of its own.

The lab NAME then runs beside the demo's, and its tests may change their variables. Standard library only.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import typing as t
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def make(name: str, without: t.Collection[str] = ()) -> Path:
    """The site's directory; an older one of the same name is replaced. `without`: services that its tests do not need."""
    source = ROOT / "inventories" / "lab"
    subprocess.run([sys.executable, str(ROOT / "tools" / "lab_secrets.py")], cwd=ROOT, check=True)
    site = ROOT / "build" / name
    shutil.rmtree(site, ignore_errors=True)
    inventory = site / "inventories" / "lab"
    shutil.copytree(source, inventory, symlinks=False)
    (site / "build").mkdir()
    # The inventory finds keys and secrets below ../../build; the throwaway age key is shared, the hosts' keys are not.
    for path in sorted((ROOT / "build").iterdir()):
        if path.name not in ("lab", name):
            (site / "build" / path.name).symlink_to(path)
    hosts = (inventory / "hosts.yml").read_text()
    found = re.search(r"lab_subnet: (\d+\.\d+)\.(\d+)\.0/24", hosts)
    if not found:
        sys.exit("inventories/lab/hosts.yml has no lab_subnet of the form a.b.c.0/24")
    third = 100 + zlib.crc32(name.encode()) % 100
    for path in sorted(inventory.rglob("*.yml")):
        text = path.read_text()
        changed = text.replace(f"{found[1]}.{found[2]}.", f"{found[1]}.{third}.")
        changed = changed.replace("lab_name: demo", f"lab_name: {name}")
        if changed != text:
            path.write_text(changed)
    if without:
        text = "".join(f"  {service}: {{enabled: false}}\n" for service in sorted(without))
        path = inventory / "host_vars" / "lab-forge" / "without.yml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"---\nhearth_services__without:\n{text}")
    return site


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument(
        "--without", nargs="+", default=[], metavar="SERVICE", help="services to leave out on lab-forge"
    )
    arguments = parser.parse_args()
    print(make(arguments.name, arguments.without))
    return 0


if __name__ == "__main__":
    sys.exit(main())
