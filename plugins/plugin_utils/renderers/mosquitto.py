# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mosquitto (``provides: {mqtt: mosquitto}``): logins and access rules of the services of this host.

Each service has two files of its own: its login, with a hole for the password, and its rules. Mosquitto reads one file
of each kind, and hashed passwords only: the role's ``assemble`` makes them at each start and reload, with
mosquitto_passwd, so that neither this plan nor a fragment in it needs to know a salt.
"""

from __future__ import annotations

from ansible_collections.hearth.homelab.plugins.plugin_utils.model import Fleet, Host
from ansible_collections.hearth.homelab.plugins.plugin_utils.plan import PlanBuilder
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import common

BASE = "/etc/mosquitto/hearth"
USERS = f"{BASE}/users"
ACL = f"{BASE}/acl"


def render(_fleet: Fleet, host: Host, plan: PlanBuilder) -> None:
    provider = host.provider("mqtt")
    if provider is None:
        return
    common.directory(plan, provider, BASE)
    for path in (USERS, ACL):
        common.directory(plan, provider, path, "0700")
    owners: dict[str, str] = {}
    for service in host.services.values():
        wanted = service.contribution.mqtt
        if wanted is None:
            continue
        other = owners.setdefault(wanted.user, service.name)
        if other != service.name:
            raise common.fail(
                host,
                service,
                "mqtt.user",
                f"{wanted.user} is the login of {other} already",
                "give each service a login of its own",
            )
        login = f"{wanted.user}:{common.hole(service, wanted.password)}\n"
        plan.file(service.name, f"{USERS}/{service.name}", login, mode="0400")
        # A user without rules may do nothing.
        rules = "".join(f"topic {rule}\n" for rule in wanted.acl)
        text = f"{common.header(service.name)}user {wanted.user}\n{rules}"
        plan.file(service.name, f"{ACL}/{service.name}", text, mode="0400")
    for unit in common.running_units(provider):
        plan.trigger(unit, "reload", f"file:{USERS}/", f"file:{ACL}/")
