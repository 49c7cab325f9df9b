# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Searches a machine for canaries: in files, in the journal, and in what processes show of themselves.

What to search for comes on standard input as JSON, {name: [form, ...]}, so that the search itself shows none of it:
    python3 scan.py files ROOT [-SKIPPED ...]
    python3 scan.py journal
    python3 scan.py processes STOPFILE      samples until the file exists
It prints a JSON list of [name, place]. Standard library only: it runs on hosts.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time

#: A file larger than this (bytes) is a database or an image; they are searched too, by grep, but not named in detail.
LIMIT = 256 * 1024 * 1024


def pattern_file(canaries: dict[str, list[str]]) -> int:
    """A file in memory with one form per line, for grep; nothing on a disk."""
    handle = os.memfd_create("patterns", 0)  # without MFD_CLOEXEC: the child reads it
    forms = {form for known in canaries.values() for form in known if form and "\n" not in form}
    os.write(handle, "\n".join(sorted(forms)).encode() + b"\n")
    return handle


def named(canaries: dict[str, list[str]], content: bytes) -> list[str]:
    return sorted(name for name, forms in canaries.items() if any(form.encode() in content for form in forms))


def files(canaries: dict[str, list[str]], root: str, skipped: list[str]) -> list[list[str]]:
    names: list[bytes] = []
    for directory, folders, entries in os.walk(root):
        folders[:] = [name for name in folders if os.path.join(directory, name) not in skipped]
        for entry in entries:
            path = os.path.join(directory, entry)
            if os.path.isfile(path) and not os.path.islink(path):
                names.append(path.encode(errors="surrogateescape"))
    handle = pattern_file(canaries)
    found = subprocess.run(
        ["xargs", "-0", "grep", "-laF", "-f", f"/proc/{os.getpid()}/fd/{handle}", "--"],
        input=b"\0".join(names),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    hits: list[list[str]] = []
    for line in found.stdout.splitlines():
        path = line.decode(errors="surrogateescape")
        try:
            with open(path, "rb") as stream:
                hits += [[name, path] for name in named(canaries, stream.read(LIMIT)) or ["?"]]
        except FileNotFoundError:
            continue
    return hits


def journal(canaries: dict[str, list[str]]) -> list[list[str]]:
    entries = subprocess.Popen(["journalctl", "--all", "--output=export", "--no-pager"], stdout=subprocess.PIPE)
    handle = pattern_file(canaries)
    found = subprocess.run(
        ["grep", "-aF", "-f", f"/proc/{os.getpid()}/fd/{handle}"],
        stdin=entries.stdout,
        stdout=subprocess.PIPE,
        check=False,
    )
    entries.wait()
    return [[name, "journal"] for name in named(canaries, found.stdout)]


def processes(canaries: dict[str, list[str]], stop: str) -> list[list[str]]:
    """What command lines and environments showed: [name, "KIND CGROUP-OF-THE-PROCESS"]."""
    plain = {name: [form.encode() for form in forms] for name, forms in canaries.items()}
    every = re.compile(b"|".join(re.escape(form) for forms in plain.values() for form in forms))
    hits: set[tuple[str, str]] = set()
    while True:
        last = os.path.exists(stop)
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            for kind in ("cmdline", "environ"):
                try:
                    with open(f"/proc/{entry}/{kind}", "rb") as stream:
                        content = stream.read()
                    if not every.search(content):
                        continue
                    with open(f"/proc/{entry}/cgroup") as stream:
                        group = stream.read().strip().rpartition(":")[2]
                except OSError:
                    continue
                for name, forms in plain.items():
                    if any(form in content for form in forms):
                        hits.add((name, f"{kind} {group}"))
        if last:
            return [list(hit) for hit in sorted(hits)]
        time.sleep(0.02)


def main() -> None:
    canaries = json.load(sys.stdin)
    what, *rest = sys.argv[1:]
    if what == "files":
        found = files(canaries, rest[0], [entry[1:] for entry in rest[1:]])
    elif what == "journal":
        found = journal(canaries)
    else:
        found = processes(canaries, rest[0])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
