# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Secrets: what the host's store shall hold, and files that are nothing but a secret.

Values are never here: a file has a hole where the host puts the value. Credentials of native services
are rendered with their units (systemd.py), podman secrets with the container (quadlet.py).
"""

from __future__ import annotations

from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.plugin_utils.model import Fleet, Host
from ansible_collections.hearth.homelab.plugins.plugin_utils.plan import PlanBuilder
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import common


def render(_fleet: Fleet, host: Host, plan: PlanBuilder) -> None:
    for service in host.services.values():
        for key, secret in sorted(service.contribution.secrets.items()):
            plan.add(m.Secret(service.secret(key), service.name, data=secret.kind == "data"))
            if secret.deliver and secret.deliver.file and not service.container:
                # No newline after the value: many programs would read it as part of the password.
                item = plan.file(
                    service.name,
                    secret.deliver.file,
                    common.hole(service, key),
                    owner=service.user,
                    group=service.group,
                    mode="0400",
                )
                common.trigger(plan, service, None, item)
