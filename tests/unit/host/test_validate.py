# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which validators run, and which directories are covered so that the staged tree is under its final paths."""

from __future__ import annotations

import pytest
from ansible_collections.hearth.homelab.plugins.module_utils import validate as v
from ansible_collections.hearth.homelab.plugins.module_utils.manifest import Validator

CADDY = Validator("caddy", "caddy", ("caddy", "validate"), ("/etc/caddy/",))
SSHD = Validator("sshd", "sshd", ("sshd", "-t"), ("/etc/ssh/sshd_config", "/etc/ssh/sshd_config.d/"))
CADDY_AGAIN = Validator("site", "sonarr", ("caddy", "validate"), ("/etc/caddy/sites/",))


@pytest.mark.parametrize(
    ("touched", "expected"),
    [
        (["/etc/caddy/Caddyfile"], ["caddy"]),
        (["/etc/caddy/sites/sonarr"], ["caddy"]),  # the same call once, although two validators name it
        (["/etc/caddy"], []),
        (["/etc/ssh/sshd_config"], ["sshd"]),
        (["/etc/ssh/ssh_config"], []),
        (["/etc/ssh/sshd_config.d/10", "/etc/caddy/x"], ["caddy", "sshd"]),
        ([], []),
    ],
)
def test_validators_of_touched_paths(touched: list[str], expected: list[str]) -> None:
    assert [entry.name for entry in v.select([CADDY, SSHD, CADDY_AGAIN], touched)] == expected


DEVICES: dict[str, int | None] = {
    "/": 1,
    "/etc": 1,
    "/etc/caddy": 1,
    "/etc/caddy/sites": 1,
    "/etc/ssh": 2,
    "/etcetera": 1,
    "/var/lib": 1,
    "/opt": 3,
}


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["/etc/caddy/Caddyfile", "/etc/caddy/sites/a"], ["/etc/caddy"]),
        (["/etc/caddy/sites/a"], ["/etc/caddy/sites"]),
        (["/etc/hostname", "/etc/caddy/sites/a"], ["/etc"]),
        (["/etc/hostname", "/etcetera/x"], ["/etc", "/etcetera"]),
        # A file system mounted below is not shown by the overlay above it: it gets one of its own, afterwards.
        (["/etc/hostname", "/etc/ssh/sshd_config"], ["/etc", "/etc/ssh"]),
        (["/var/lib/new/deep/file"], ["/var/lib"]),
        (["/nowhere/file"], ["/"]),
    ],
)
def test_directories_to_cover(paths: list[str], expected: list[str]) -> None:
    assert v.covers(paths, DEVICES.get) == expected


def test_staged_entries_survive_the_pipe() -> None:
    for entry in (
        v.Staged("/a", b"\0\xff", mode=0o640, uid=3, gid=4),
        v.Staged("/b", target="/a"),
        v.Staged("/c", removed=True),
        v.Staged("/d", directory=True, mode=0o755),
    ):
        assert v.Staged.from_dict(entry.to_dict()) == entry


def test_a_failure_names_service_program_and_what_it_said() -> None:
    text = str(v.Failure("sonarr", "site", ("caddy", "validate"), "exit status 1: no such directive"))
    assert text.splitlines() == [
        "sonarr: caddy refuses the new configuration (site):",
        "exit status 1: no such directive",
    ]


def test_nothing_runs_outside_of_a_namespace_of_its_own() -> None:
    assert "error" in v.inside({"validators": [], "staged": [], "mountpoint": "/nonexistent", "timeout": 1})
