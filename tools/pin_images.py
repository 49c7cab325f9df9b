#!/usr/bin/env python3
# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write each container role's images.lock.yml from what its registry answers (make pin).

A lock has the digest of the role's own image for every platform that the role runs on. A registry that does not answer is
named, and the locks of its images stay as they are. With --check nothing is written. Exit status: 0 when every lock is as
its registry has it, 1 when one is stale (--check), could not be asked for, or names what the registry does not have.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# An installed collection has no such link: it is below ansible_collections itself.
sys.path.insert(0, str(ROOT / ".collections" if (ROOT / ".collections").is_dir() else ROOT.parents[2]))

from ansible_collections.hearth.homelab.plugins.plugin_utils import images, templates
from ansible_collections.hearth.homelab.plugins.plugin_utils.distribution import Registries
from ansible_collections.hearth.homelab.plugins.plugin_utils.pinning import Outcome, pin_role
from ansible_collections.hearth.homelab.plugins.plugin_utils.role_files import RoleError, Roles


def write(path: Path, text: str | None) -> None:
    """Replaces (or with None removes) a file so that whoever reads it sees the old one or the new one."""
    if text is None:
        path.unlink()
        return
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--role", action="append", default=[], help="this role only (may be given again)")
    parser.add_argument("--roles", action="append", type=Path, default=[], metavar="DIRECTORY",
                        help="where roles are (may be given again; default: the checkout's)")  # fmt: skip
    parser.add_argument("--check", action="store_true", help="write nothing; say what is stale")
    parser.add_argument("--insecure", action="append", default=[], metavar="HOST[:PORT]",
                        help="a registry that is spoken to without TLS (may be given again)")  # fmt: skip
    arguments = parser.parse_args()

    environment = templates.environment()
    roles = Roles([path.resolve() for path in arguments.roles], environment)
    folders = [path.resolve() for path in arguments.roles] or [ROOT / "roles"]
    names = sorted(name for name, path in roles.paths.items() if path.parent in folders)
    if unknown := sorted(set(arguments.role) - set(names)):
        parser.error(f"there is no role {', '.join(unknown)} with a contribution in {', '.join(map(str, folders))}")
    registries = Registries(plain=arguments.insecure)
    outcomes: list[Outcome] = []
    for name in arguments.role or names:
        try:
            role = roles.get(name)
        except RoleError as error:
            outcomes.append(Outcome(name, failed=f"{error.place.file}:{error.place.line}: {error.message}"))
            continue
        if role is not None:
            found = images.read(role, environment)
            outcomes.append(pin_role(name, found, registries))
            if outcomes[-1].stale and not arguments.check:
                write(found.file, outcomes[-1].text)
    for outcome in outcomes:
        for line in outcome.lines(check=arguments.check):
            print(line)
    failed = [outcome for outcome in outcomes if outcome.failed]
    stale = [outcome for outcome in outcomes if outcome.stale]
    locked = [outcome for outcome in outcomes if outcome.reference and not outcome.failed]
    print(f"{len(locked)} of {len([o for o in outcomes if o.reference or o.failed])} images asked for; "
          f"{len(stale)} locks {'stale' if arguments.check else 'written'}; {len(failed)} could not be pinned")  # fmt: skip
    return int(bool(failed) or (arguments.check and bool(stale)))


if __name__ == "__main__":
    sys.exit(main())
