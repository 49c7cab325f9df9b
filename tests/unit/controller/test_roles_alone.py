# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What lets a role of this collection be used alone, in `roles:` of anybody's play."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROLES = sorted(
    path.parent.parent for path in (Path(__file__).resolve().parents[3] / "roles").glob("*/vars/contribution.yml")
)


def trusted(value: t.Any) -> t.Any:
    """As Ansible reads it from the role's own file: its strings are templates."""
    if isinstance(value, dict):
        return {key: trusted(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [trusted(entry) for entry in value]
    return trust_as_template(value) if isinstance(value, str) else value


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_its_options_need_nothing_that_only_compose_knows(role: Path) -> None:
    """Ansible validates a role's arguments before its tasks, and resolves every default for that: outside of a
    contribution there is no `service`."""
    defaults = role / "defaults" / "main.yml"
    for name, value in (yaml.safe_load(defaults.read_text()) or {}).items():
        assert "service." not in str(value), f"{name}: use it in vars/contribution.yml instead"


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_its_options_need_no_variable_of_the_inventory(role: Path) -> None:
    """Ansible knows no default of a hearth_ variable: what the inventory does not set is undefined for it."""
    defaults = yaml.safe_load((role / "defaults" / "main.yml").read_text()) or {}
    templar = Templar(loader=DataLoader(), variables={**trusted(defaults), "inventory_hostname_short": "forge"})
    for value in trusted(defaults).values():
        templar.template(value)  # fails on what is undefined


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_its_only_task_converges_it(role: Path) -> None:
    tasks = yaml.safe_load((role / "tasks" / "main.yml").read_text())
    assert [task.get("hearth.homelab.converge") for task in tasks] == [{"service": role.name}]
