# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on a host under test: waits for a record in a run's journal, then kills or stops the process that writes it.

    python3 watcher.py RUN {"type": "begin", "id": "unit:"} kill|kill-all|stop|fill [run|settle]

The journal is watched from outside; the engine knows nothing of it. A record fits when it has each key's value (of
``id`` the beginning; ``unit`` looks into the undo data); ``{"done": {...}}`` is the completion of the first step whose
begin record fits; ``{"file": NAME}`` waits for a file, absolute or in the run's directory. ``kill`` is SIGKILL to the
process, as kill -9 or the kernel's OOM killer does it, ``kill-all`` to all that it started as well, so that no program
tidies up; ``stop`` freezes them where they are, for a power cut; ``fill`` freezes them, fills the file system of FILLER
and lets them go on. Prints the record. Standard library only.

A run that ends without the record is said at once, with how it ended: there is nothing to wait for then. Status 3: the
record is there, and the process has ended meanwhile by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time

TIMEOUT = 120.0
TOO_LATE = 3

#: What ``fill`` makes as large as there is room, but for SPARE bytes.
FILLER = "/run/small/filler"
SPARE = 5 * 4096


def process(run: str, command: str) -> int | None:
    """The agent's process that applies or settles."""
    wanted = [b"run", run.encode()] if command == "run" else [b"settle"]
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as stream:
                    words = stream.read().split(b"\0")[:-1]
            except OSError:
                continue
            if len(words) > 3 and words[2].endswith(b"main.py") and words[3 : 3 + len(wanted)] == wanted:
                return int(name)
    return None


def children(pid: int) -> list[int]:
    """A process and everything that it started."""
    found = [pid]
    for parent in found:
        try:
            for task in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{task}/children", encoding="ascii") as stream:
                    found += [int(word) for word in stream.read().split()]
        except OSError:
            continue
    return found


def fits(record: dict, wanted: dict) -> bool:
    return all(
        str(record.get(key, "")).startswith(value) if key == "id" else record.get(key) == value
        for key, value in wanted.items()
    )


def fill() -> None:
    """Leaves SPARE bytes free where FILLER is."""
    handle = os.open(FILLER, os.O_WRONLY | os.O_CREAT)
    block = bytes(1 << 20)
    while block:
        try:
            os.write(handle, block)
        except OSError:
            block = block[: len(block) // 2]
    os.ftruncate(handle, os.fstat(handle).st_size - SPARE)
    os.close(handle)


def send(pids: list[int], number: signal.Signals) -> None:
    """To the first one, and to the others as far as they are still there: programs that it started come and go."""
    os.kill(pids[0], number)
    for pid in pids[1:]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def strike(pid: int, how: str) -> None:
    """What happens to the process at the record. ProcessLookupError: it has ended by itself."""
    send([pid] if how == "kill" else children(pid), signal.SIGSTOP if how in ("stop", "fill") else signal.SIGKILL)
    if how == "fill":
        fill()
        send(children(pid), signal.SIGCONT)


def main(run: str, text: str, how: str, command: str = "run") -> int:
    wanted = json.loads(text)
    directory = f"/var/lib/hearth/runs/{run}"
    after = wanted.get("done")
    number, offset, end, pid = None, 0, time.monotonic() + TIMEOUT, None
    # What settling does is appended to what the run did: only the new records count.
    if command == "settle" and os.path.exists(f"{directory}/journal.jsonl"):
        offset = os.path.getsize(f"{directory}/journal.jsonl")
    print("watching", flush=True)
    while time.monotonic() < end:
        # Before its records are read: a process that has written one is found, then, unless it is gone already.
        pid = pid or process(run, command)
        result = ""
        with contextlib.suppress(FileNotFoundError), open(f"{directory}/result.json", encoding="utf-8") as stream:
            result = stream.read()
        if "file" in wanted:
            found = {"file": wanted["file"]} if os.path.exists(os.path.join(directory, wanted["file"])) else None
            records = [found] if found else []
        else:
            try:
                with open(f"{directory}/journal.jsonl", "rb") as stream:
                    stream.seek(offset)
                    content = stream.read()
            except FileNotFoundError:
                content = b""
            complete = content[: content.rfind(b"\n") + 1]
            offset += len(complete)
            records = [json.loads(line) for line in complete.splitlines()]
        for record in records:
            if after and number is None and record.get("type") == "begin" and fits(record, after):
                number = record["step"]
            hit = (
                (number in record.get("steps", ()) and record["type"] == "done")
                if after
                else "file" in wanted or fits(record, wanted)
            )
            if hit:
                pid = pid or process(run, command)
                try:
                    if pid is None:
                        raise ProcessLookupError
                    strike(pid, how)
                except ProcessLookupError:
                    print(f"{record} is there, its process is not", file=sys.stderr)
                    return TOO_LATE
                print(json.dumps(record), flush=True)
                return 0
        if result:
            print(f"run {run} ended before: {result}", file=sys.stderr)
            return 1
        time.sleep(0.0005)
    state = os.listdir(directory) if os.path.isdir(directory) else "no such run"
    print(f"not in {TIMEOUT:g} s; process {pid}; {directory}: {state}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
