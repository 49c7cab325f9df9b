# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is told about which alerts, and that silence is said."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import alertmanager
from ansible_collections.hearth.homelab.tests.unit.controller import rendering as r

ALERTMANAGER: dict[str, t.Any] = {
    "summary": "Alerts",
    "tier": "infrastructure",
    "run": {"native": {"packages": ["prometheus-alertmanager"], "units": ["prometheus-alertmanager.service"]}},
    "provides": {"notify": "alertmanager"},
}


@pytest.mark.parametrize(
    ("receivers", "silent"),
    [
        ({}, "critical, high, medium, low"),
        ({"phone": {"webhook": "http://x", "severities": ["critical", "high"]}}, "medium, low"),
        ({"phone": {"severities": ["critical"]}}, "critical, high, medium, low"),
        ({"all": {"email": "anna@example.com"}}, None),
    ],
)
def test_severities_that_nobody_is_told_of(receivers: dict[str, t.Any], silent: str | None) -> None:
    host = r.host("forge", {"alertmanager": ALERTMANAGER}, {"hearth_receivers": receivers})
    notices = r.plan_of(alertmanager.render, r.fleet(host)).notices
    if silent is None:
        assert notices == ()
    else:
        assert len(notices) == 1
        assert f"severity {silent} are shown" in notices[0]
