# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The controller while a host applies: what it does when it is cut off."""

from __future__ import annotations

import typing as t

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible_collections.hearth.homelab.plugins.action import converge

WAITING = {"events": [], "offset": 0, "awaiting_confirmation": True, "done": False, "result": None}
UNDONE = {"events": [], "offset": 0, "awaiting_confirmation": False, "done": True, "result": {"undone": True}}


class LockedOut:
    """A host whose firewall lets only the old connection in, until it undoes the change."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.new_connection = False

    def reset(self) -> None:
        self.new_connection = True

    def call(self, command: str, _request: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        self.calls.append(command)
        if not self.new_connection:
            return WAITING
        if len(self.calls) < 5:
            raise AnsibleConnectionFailure("timed out")
        return UNDONE


def test_a_controller_that_is_locked_out_waits_until_the_host_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    host = LockedOut()
    module = converge.ActionModule.__new__(converge.ActionModule)
    monkeypatch.setattr(module, "reconnect", host.reset, raising=False)
    monkeypatch.setattr(converge.time, "sleep", lambda _seconds: None)
    assert module._watch(t.cast("t.Any", host), "forge", "run") == {"undone": True}
    assert host.calls == ["watch", "confirm", "watch", "watch", "watch"]
