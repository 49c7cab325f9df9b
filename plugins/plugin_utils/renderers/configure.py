# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``configure``: objects that only an application's API can make, of the service itself or of another on its host.

The request belongs to the service that contributes it, so that it goes with that one. The key of the API is a secret of
the application; only its name is in the plan.
"""

from __future__ import annotations

from ansible_collections.hearth.homelab.plugins.module_utils import configure
from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.plugin_utils.model import Fleet, Host, Service
from ansible_collections.hearth.homelab.plugins.plugin_utils.plan import PlanBuilder
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import common
from ansible_collections.hearth.homelab.plugins.plugin_utils.schema import ConfigureRequest


def render(_fleet: Fleet, host: Host, plan: PlanBuilder) -> None:
    for service in host.services.values():
        for index, request in enumerate(service.contribution.configure):
            provider = host.services.get(request.service) if request.service else service
            if provider is not None:  # like `wants`: with whom is not there, there is nothing to do
                _request(host, service, provider, request, f"configure.{index}", plan)


def _request(
    host: Host, service: Service, provider: Service, request: ConfigureRequest, path: str, plan: PlanBuilder
) -> None:
    api = provider.contribution.api
    if api is None:
        raise common.fail(
            host, service, f"{path}.service", f"{provider.name} does not say how its API is asked",
            "its contribution needs api: {port: ..., secret: ...}",
        )  # fmt: skip
    listen = provider.listen(api.port)
    address = next(iter(common.addresses(host, listen)), None)
    if address is None:
        raise common.fail(
            host, service, path, f"{provider.name} listens on {listen.address}, where {host.name} has none"
        )
    headers = dict(request.headers)
    if api.secret:
        headers[api.header] = common.hole(provider, api.secret)
    base = f"http://{common.in_url('127.0.0.1' if address == '*' else address)}:{listen.port}"
    plan.add(
        m.Configure(
            f"{service.name}/{request.name}",
            service.name,
            provider=provider.name,
            url=base + request.request,
            match=request.match,
            desired=request.desired,
            headers=dict(sorted(headers.items())),
            holes=configure.holes([request.desired, headers]),
            ignore=tuple(sorted(request.ignore)),
            method_create=request.method_create,
            method_update=request.method_update,
        )
    )
