# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every ignore of a checker has a written reason."""

from __future__ import annotations

import importlib.util
import typing as t
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def tool() -> t.Any:
    spec = importlib.util.spec_from_file_location("ignores", ROOT / "tools/ignores.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        ("a.py", "x = 1  # noqa: S608 (quoted)\n", []),
        ("a.py", "x = 1  # noqa: S608, E402 (a reason)\n", []),
        ("a.py", "x = 1  # noqa: S608\n", [1]),
        ("a.py", "x = 1  # noqa: S608 - quoted\n", [1]),
        ("a.py", "x = 1  # noqa\n", [1]),
        ("a.py", "x = 1  # noqa: S608 ()\n", [1]),
        ("a.py", "\nx: int = y  # type: ignore[misc]\n", [2]),
        ("a.py", "x: int = y  # type: ignore[misc] (the plugin is wrong)\n", []),
        ("a.py", "x = 1  # type: ignore (a)  # noqa: E1\n", [1]),
        ("a.py", "except E:  # pragma: no cover\n", [1]),
        ("a.py", "x = [1,\n 2]  # fmt: skip\n", []),
        ("a.py", "x()  # nosec B603\n", [1]),
        ("a.py", "# ruff: noqa\n", [1]),
        ("a.sh", "# shellcheck disable=SC2086\n", [1]),
        ("a.sh", "# shellcheck disable=SC2086 (words on purpose)\n", []),
        ("a.yml", "a: b # noqa var-naming[no-role-prefix]\n", [1]),
        ("a.yml", "a: b # noqa: var-naming[no-role-prefix] (a reason)\n", []),
        ("a.yml", "a: b # yamllint disable-line rule:line-length\n", [1]),
        ("a.yml", "a: b # yamllint disable-line rule:line-length (a URL)\n", []),
        ("a.md", "write `# noqa: E501`\n", []),
        ("tests/sanity/ignore-2.19.txt", "a.py pep8:W191\n", [1]),
        ("tests/sanity/ignore-2.19.txt", "a.py pep8:W191 # tabs are nft's\n", []),
        ("pyproject.toml", '[tool.ruff.lint]\nignore = [\n  "A",\n  "B",  # why\n]\n', [3]),
        ("pyproject.toml", '[tool.ruff.lint.per-file-ignores]\n"a" = ["S"]\n# why\n"b" = ["S"]\n[x]\ny = 1\n', [2]),
    ],
)
def test_ignores(tool: t.Any, name: str, text: str, lines: list[int]) -> None:
    assert [number for number, _what in tool.unexplained(name, text)] == lines
