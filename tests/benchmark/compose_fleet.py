#!/usr/bin/env python3
# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Composes a generated fleet once and prints its cost: compose_fleet.py HOSTS SERVICES

Every service has a role of its own (the worst case: nothing is shared between hosts) with options, types, a
configuration template, storage, a route, a secret, metrics and an alert. Counted: reading the inventory and the roles,
composing, conflicts, and the plans of all hosts; not counted: making the fleet, importing Python modules.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "unit"), str(TESTS / "unit" / "controller")]

import conftest  # noqa: F401 (installs Ansible's finder for this checkout)
import fleets
from ansible_collections.hearth.homelab.plugins.plugin_utils import compose


def main() -> None:
    hosts, services = int(sys.argv[1]), int(sys.argv[2])
    with tempfile.TemporaryDirectory() as directory:
        repository = fleets.large(Path(directory), hosts, services // hosts)
        start = time.perf_counter()
        source = repository.source()
        made = compose.make_plans(source, source.hosts)
        digests = {plan.manifest.digest for plan in made.plans.values() if plan}
        seconds = time.perf_counter() - start
    if len(digests) != hosts:
        sys.exit(f"{len(digests)} plans for {hosts} hosts")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    megabytes = peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)  # bytes on macOS, KiB on Linux
    print(json.dumps({"seconds": round(seconds, 3), "megabytes": round(megabytes, 1)}))


main()
