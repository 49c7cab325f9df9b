#!/usr/bin/env python3
# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table at the end of `make demo`: every service with its state and how to open it; the same in build/demo.json.

Exit status 1 when a service is not healthy or a host did not answer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import typing as t
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def ask(inventory: str) -> dict[str, dict[str, t.Any]]:
    """Host -> result of the status task."""
    found = subprocess.run(
        [str(Path(sys.executable).parent / "ansible-playbook"), "-i", inventory, "playbooks/status.yml"],
        cwd=ROOT,
        env={
            **os.environ,
            "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    start = found.stdout.find("{\n")
    if start < 0:
        sys.exit(f"the hosts could not be asked:\n{found.stdout}{found.stderr}")
    data = json.JSONDecoder().raw_decode(found.stdout[start:])[0]
    return {host: result for play in data["plays"] for task in play["tasks"] for host, result in task["hosts"].items()}


def rows(results: dict[str, dict[str, t.Any]]) -> list[dict[str, t.Any]]:
    """One {host, service, state, healthy, real, url} for each service."""
    found = []
    for host, result in sorted(results.items()):
        for service in result.get("services") or []:
            found.append(
                {
                    "host": host,
                    "service": service["service"],
                    "state": service["state"],
                    "healthy": service["healthy"],
                    "real": service["real"],
                    "url": service["url"],
                }
            )
    return found


def table(entries: list[dict[str, t.Any]]) -> str:
    head = ("host", "service", "state", "health", "application", "URL")
    lines = [head] + [
        (
            entry["host"],
            entry["service"],
            entry["state"],
            "healthy" if entry["healthy"] else "NOT HEALTHY",
            "real" if entry["real"] else "stand-in",
            entry["url"] or "-",
        )
        for entry in entries
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = ["  ".join(value.ljust(width) for value, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([text[0], "  ".join("-" * width for width in widths), *text[1:]])


def how_to_open(entries: list[dict[str, t.Any]], addresses: dict[str, str]) -> str:
    """One command for each host with routes, and what a browser needs; `addresses` is where each host is reached."""
    text = []
    for host in sorted({entry["host"] for entry in entries if entry["url"]}):
        urls = [entry["url"] for entry in entries if entry["host"] == host and entry["url"]]
        names = " ".join(sorted(url.removeprefix("https://").rstrip("/") for url in urls))
        text += [
            "\nTo open one from this machine (people and their passwords are in build/lab-passwords.json):",
            f"  curl --insecure --user NAME:PASSWORD --resolve '*:443:{addresses[host]}' {urls[0]}",
            "In a browser, with this line in /etc/hosts:",
            f"  {addresses[host]} {names}",
        ]
    return "\n".join(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inventory", default="inventories/lab")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "demo.json")
    arguments = parser.parse_args()
    results = ask(arguments.inventory)
    entries = rows(results)
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps(entries, indent=1) + "\n")
    print(table(entries))
    real = sum(entry["real"] for entry in entries)
    print(f"\n{len(entries)} services: {real} real applications, {len(entries) - real} stand-ins.")
    passwords = ROOT / "build" / "lab-passwords.json"
    if passwords.exists():
        opened = {entry["host"] for entry in entries if entry["url"]}
        print(how_to_open(entries, {host: _address(arguments.inventory, host) for host in opened}))
    print("\nTo shut the lab down:  make demo-down")
    silent = [host for host, result in results.items() if not result.get("services")]
    for host in silent:
        print(f"\nhost {host} did not answer: {results[host].get('msg', 'no services')}")
    return 0 if entries and not silent and all(entry["healthy"] for entry in entries) else 1


def _address(inventory: str, host: str) -> str:
    found = subprocess.run(
        [str(Path(sys.executable).parent / "ansible-inventory"), "-i", inventory, "--host", host],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
    )
    return str(json.loads(found.stdout or "{}").get("ansible_host", host))


if __name__ == "__main__":
    sys.exit(main())
