# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What units wait for, on recorded output of systemd 257."""

from __future__ import annotations

import pytest
from ansible_collections.hearth.homelab.plugins.module_utils import health

JOBS = "21073 drift.service   start waiting\n21146 srv-media.mount start running\n"
AFTER = "Id=drift.service\nAfter=basic.target srv-media.mount system.slice\n"


@pytest.mark.parametrize(
    ("jobs", "after", "expected"),
    [
        (JOBS, AFTER, ["drift.service waits for srv-media.mount, which does not come up"]),
        (JOBS, f"{AFTER}\nId=other.service\nAfter=srv-media.mount\n", [
            "drift.service waits for srv-media.mount, which does not come up"
        ]),
        (JOBS, "Id=drift.service\nAfter=basic.target\n", []),  # that mount is somebody else's
        ("No jobs running.\n", AFTER, []),
        ("", "", []),
    ],
)  # fmt: skip
def test_what_a_unit_waits_for(jobs: str, after: str, expected: list[str]) -> None:
    assert health.parse_waits(jobs, after) == expected


def test_nothing_is_asked_for_no_unit() -> None:
    def call(*_arguments: object) -> tuple[int, str, str]:
        raise AssertionError("nothing to ask")

    assert health.waits_for(call, []) == []
