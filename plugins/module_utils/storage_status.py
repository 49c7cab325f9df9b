# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host says of its storage, databases and stored secrets, before anybody generates a key for them.

Read-only. Standard library only: this module runs on hosts.
"""

from __future__ import annotations

import typing as t

from ansible_collections.hearth.homelab.plugins.module_utils import generations, storage
from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.module_utils.layout import Layout
from ansible_collections.hearth.homelab.plugins.module_utils.runner import Runner

#: Names of all databases, as the server's own user sees them (postgresql.org/docs/17/catalog-pg-database.html).
_DATABASES = "SELECT datname FROM pg_database"


def look(layout: Layout, runner: Runner, request: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """``host``, ``storage`` {path: service}, ``databases`` [name], ``secrets`` [SERVICE/KEY] -> what is there.

    Without ``storage``: that of the current generation. A database is None when nobody can say whether it exists.
    """
    generation = generations.current(layout)
    manifest = generation.manifest if generation else None
    wanted = dict(request.get("storage") or {})
    if not wanted and manifest is not None:
        wanted = {item.name: item.service for item in manifest.items if isinstance(item, m.Storage)}
    host = str(request.get("host") or (manifest.host if manifest else ""))
    root = str(layout.root)
    ledger = storage.read_ledger(root=root)
    found = []
    for path, service in sorted(wanted.items()):
        facts = storage.read_storage_facts(path, root, ledger=ledger)
        if facts.error:
            state, message = "unknown", f"{path} cannot be read: {facts.error}"
        else:
            known = storage.classify(facts, host, service)
            state, message = known.state, known.message
        found.append({"path": path, "service": service, "state": state, "message": message})
    return {
        "storage": found,
        "databases": _databases(runner, manifest, list(request.get("databases") or ())),
        "secrets": sorted(name for name in request.get("secrets") or () if layout.secret(name).exists()),
    }


def _databases(runner: Runner, manifest: m.Manifest | None, names: list[str]) -> dict[str, bool | None]:
    if not names:
        return {}
    providers = {item.provider for item in manifest.items if isinstance(item, m.PostgresqlDatabase)} if manifest else ()
    port: list[str] = []
    for provider in providers:
        state = manifest.services.get(provider) if manifest else None
        for entry in state.listeners if state else ():
            protocol, _, number = entry.split("/")
            if protocol == "tcp":
                port = ["-p", number]  # the socket's name has the port in it
    done = runner.run(
        ["psql", "-XAtq", *port, "-d", "postgres", "-c", _DATABASES],
        user="postgres",
        check=False,
        timeout=30,
        env={"PGCONNECT_TIMEOUT": "5"},
    )
    if done.returncode != 0:
        return dict.fromkeys(names)
    present = set(done.stdout.splitlines())
    return {name: name in present for name in names}
