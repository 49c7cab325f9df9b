# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL (``provides: {postgresql: postgresql}``): login roles and databases of the services of this host."""

from __future__ import annotations

from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.plugin_utils.model import Fleet, Host
from ansible_collections.hearth.homelab.plugins.plugin_utils.plan import PlanBuilder
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import common


def render(_fleet: Fleet, host: Host, plan: PlanBuilder) -> None:
    provider = host.provider("postgresql")
    if provider is None:
        return
    secrets: dict[str, tuple[str, str]] = {}
    member_of = _member_of(host)
    for service in host.services.values():
        wanted = service.contribution.database.postgresql
        if wanted is None:
            continue
        role = wanted.user or wanted.name
        if wanted.password is None and role != service.user:
            # Peer authentication takes the operating system's name (pg_hba.conf: local all all peer).
            raise common.fail(
                host,
                service,
                "database.postgresql.user",
                f"without a password the role is the user that the service runs as, {service.user}, not {role}",
                f"user: {service.user}, or password: NAME of a secret of this service",
            )
        secret = service.secret(wanted.password) if wanted.password else ""
        other, known = secrets.setdefault(role, (service.name, secret))
        if known != secret:
            raise common.fail(
                host,
                service,
                "database.postgresql.password",
                f"the role {role} logs in with another password in service {other}",
                "give each service a role of its own",
            )
        plan.add(
            m.PostgresqlRole(
                role, service.name, secret=secret, member_of=tuple(sorted(member_of[role])), provider=provider.name
            )
        )
        plan.add(
            m.PostgresqlDatabase(
                wanted.name,
                service.name,
                owner=role,
                extensions=tuple(sorted(set(wanted.extensions))),
                provider=provider.name,
            )
        )


def _member_of(host: Host) -> dict[str, set[str]]:
    """Memberships by role: services that share a role share what it may do."""
    found: dict[str, set[str]] = {}
    for service in host.services.values():
        wanted = service.contribution.database.postgresql
        if wanted is not None:
            found.setdefault(wanted.user or wanted.name, set()).update(wanted.member_of)
    return found
