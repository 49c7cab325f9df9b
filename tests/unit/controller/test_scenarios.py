# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Molecule scenarios: each has tests, and no playbook that nothing runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
SHARED = yaml.safe_load((ROOT / ".config/molecule/config.yml").read_text())["ansible"]["playbooks"]


@pytest.mark.parametrize("scenario", sorted(path.parent.name for path in ROOT.glob("molecule/*/molecule.yml")))
def test_a_scenario(scenario: str) -> None:
    folder = ROOT / "molecule" / scenario
    own = (yaml.safe_load((folder / "molecule.yml").read_text()).get("ansible") or {}).get("playbooks") or {}
    # The shared configuration names shared playbooks: one beside molecule.yml runs only if that says so.
    used = {(folder / name).resolve() for name in {**SHARED, **own}.values()}
    assert not {path for path in used if not path.is_file()}
    assert not {path for path in folder.glob("*.yml") if path.name != "molecule.yml"} - used
    assert list(ROOT.glob(f"tests/integration/{scenario}/test_*.py"))
