# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A secret in a place that others read is an error before any host is touched, wherever a contribution may put it."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import registry
from ansible_collections.hearth.homelab.tests.unit.controller import rendering as r

HOLE = "@@hearth:app/key@@"
APP: dict[str, t.Any] = {
    "summary": "A test service",
    "tier": "services",
    "run": {"native": {"units": ["app.service"]}},
    "secrets": {"key": {"kind": "access"}},
}


def render(**contribution: t.Any) -> None:
    made = r.fleet(r.host("forge", {"app": r.merged(APP, **contribution)}))
    registry.render_host(made, made.hosts["forge"])


def file(**more: t.Any) -> dict[str, t.Any]:
    return {"files": [{"path": "/etc/app/config", "content": f"key = {HOLE}\n", "on_change": "none", **more}]}


@pytest.mark.parametrize(
    ("contribution", "said"),
    [
        (file(), "the file /etc/app/config has a secret (app/key) and mode 0644: everybody reads it"),
        (file(mode="0604"), "mode 0604"),
        (file(mode="0400", validate={"argv": ["check", HOLE]}), "used in a validator"),
        ({"run": {"native": {"units": ["app.service"], "environment": {"KEY": HOLE}}}}, "50-hearth.conf has a secret"),
        ({"run": {"native": {"units": ["app.service"], "unit_options": {"ExecReload": f"/bin/x {HOLE}"}}}}, "50-hearth.conf"),
        ({"health": {"command": {"argv": ["check", HOLE]}}}, "used in a health check"),
        ({"summary": f"Opens with {HOLE}"}, "used in a health check or the summary"),
    ],
)  # fmt: skip
def test_where_others_read_it(contribution: dict[str, t.Any], said: str) -> None:
    with pytest.raises(registry.HostRenderError) as caught:
        render(**contribution)
    assert said in str(caught.value)
    [problem] = caught.value.problems
    assert (problem.host, problem.service) == ("forge", "app")
    assert problem.remedy


@pytest.mark.parametrize("mode", ["0400", "0600", "0640"])
def test_where_only_its_service_does(mode: str) -> None:
    render(**file(mode=mode))
