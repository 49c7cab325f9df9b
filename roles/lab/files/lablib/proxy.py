# Copyright: hearth.homelab contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The apt proxy: one for all labs of a cache, because two must not share one store."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
from typing import Any

from lablib.core import LabError, end, listens, locked, processes_of, spawn, wait_for_port, write
from lablib.machine import Cache, Mirror, need_tool, plain_http

# The mirror of the machine under a name that is the same on every machine, so that an inventory can say it.
LAB_MIRROR = "http://apt.lab.example.com/debian"


def proxy_state(cache: Cache) -> dict[str, Any]:
    path = cache.shared / "state.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def free_port() -> int:
    """A free port on loopback below 32768: apt-cacher-ng 3.7 fails with "Error resolving address" on a higher one."""
    for port in range(31420, 32768):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise LabError("no free port between 31420 and 32767 on 127.0.0.1 for the apt proxy")


def ensure_proxy(cache: Cache, mirror: Mirror) -> int:
    """Run apt-cacher-ng on loopback; give its port. It serves Debian's archive and refuses every other address."""
    with locked(cache.lock("proxy"), "the apt proxy"):
        state = proxy_state(cache)
        running = [process for process in processes_of(cache.shared) if process.part == "apt-proxy"]
        wanted = dataclasses.asdict(mirror) | {
            "options": [list(option) for option in mirror.options],
            "name": LAB_MIRROR,
        }
        if running and state.get("mirror") == wanted and listens("127.0.0.1", int(state["port"])):
            return int(state["port"])
        end(running, grace=5)
        for folder in ("conf", "store", "log"):
            (cache.shared / folder).mkdir(parents=True, exist_ok=True)
        port = free_port()
        lines = [
            f"CacheDir: {cache.shared / 'store'}",
            f"LogDir: {cache.shared / 'log'}",
            "SupportDir: /usr/lib/apt-cacher-ng",
            "BindAddress: 127.0.0.1",
            f"Port: {port}",
            "ForeGround: 1",
            "ReportPage:",
            "ExThreshold: 30",
            # Only what is mapped below: the hosts must not reach the rest of the world through the proxy.
            "ForceManaged: 1",
            f"Remap-main: {plain_http(mirror.main)} {LAB_MIRROR} ; {mirror.main}",
            f"Remap-security: {plain_http(mirror.security)} ; {mirror.security}",
        ]
        if mirror.proxy:
            lines.append(f"Proxy: {mirror.proxy}")
        write(cache.shared / "conf" / "acng.conf", "\n".join(lines) + "\n")
        write(cache.shared / "state.json", json.dumps({"port": port, "mirror": wanted}, indent=2) + "\n")
        log = cache.shared / "apt-cacher-ng.log"
        spawn(cache.shared, "apt-proxy", [need_tool("apt-cacher-ng"), "-c", cache.shared / "conf"], log)
        wait_for_port("127.0.0.1", port, "apt-cacher-ng", log)
        return port


def release_proxy(cache: Cache) -> None:
    """End the proxy when no lab is left that uses it."""
    with locked(cache.lock("proxy"), "the apt proxy"):
        if cache.labs.exists() and any(cache.labs.glob("*/state.json")):
            return
        end(processes_of(cache.shared), grace=5)
        (cache.shared / "state.json").unlink(missing_ok=True)
