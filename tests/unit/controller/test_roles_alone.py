# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What lets a role of this collection be used alone, in `roles:` of anybody's play."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

ROLES = sorted(
    path.parent.parent for path in (Path(__file__).resolve().parents[3] / "roles").glob("*/vars/contribution.yml")
)


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_its_options_need_nothing_that_only_compose_knows(role: Path) -> None:
    """Ansible validates a role's arguments before its tasks, and resolves every default for that: outside of a
    contribution there is no `service`."""
    defaults = role / "defaults" / "main.yml"
    for name, value in (yaml.safe_load(defaults.read_text()) or {}).items():
        assert "service." not in str(value), f"{name}: use it in vars/contribution.yml instead"


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_its_only_task_converges_it(role: Path) -> None:
    tasks = yaml.safe_load((role / "tasks" / "main.yml").read_text())
    assert [task.get("hearth.homelab.converge") for task in tasks] == [{"service": role.name}]
