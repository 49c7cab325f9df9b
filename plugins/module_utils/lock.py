# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's lock. Alone here, because a comparison asks who holds it and needs nothing else of what applies.

Standard library only: this module runs on hosts.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import typing as t

from ansible_collections.hearth.homelab.plugins.module_utils.layout import Layout, read_json


class LockedError(Exception):
    """Another run holds the lock; the message names it."""

    def __init__(self, holder: t.Mapping[str, t.Any]) -> None:
        self.holder = dict(holder)
        super().__init__(describe(holder))


def describe(holder: t.Mapping[str, t.Any]) -> str:
    """Who holds the lock, for people."""
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(holder.get("since", 0)))
    who = holder.get("owner") or "somebody"
    return (
        f"{who} is applying run {holder.get('run', '?')} on this host since {since} (process {holder.get('pid', '?')})"
    )


class Lock:
    """The host's lock: flock(2) on a file that names its owner. Ends with the process, however that ends."""

    def __init__(self, layout: Layout, run: str, owner: str, wait: float = 5.0) -> None:
        layout.prepare()
        self._handle = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        end = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    found = read_json(layout.lock, {}) if layout.lock.stat().st_size else {}
                    os.close(self._handle)
                    raise LockedError(found) from None
                time.sleep(0.1)
        os.ftruncate(self._handle, 0)
        text = json.dumps({"run": run, "owner": owner, "pid": os.getpid(), "since": time.time()})
        os.pwrite(self._handle, text.encode(), 0)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        os.ftruncate(self._handle, 0)
        os.close(self._handle)


def holder(layout: Layout) -> dict[str, t.Any] | None:
    """Who holds the lock now; None if nobody does. Changes nothing."""
    try:
        handle = os.open(layout.lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        try:
            return t.cast("dict[str, t.Any]", read_json(layout.lock, {}))
        except ValueError:
            return {}  # just being written
    finally:
        os.close(handle)
