#!/usr/bin/env python3
# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find ignores of a checker that give no reason. Exit 1 when there is one.

An ignore in a line says why in brackets behind it: `# noqa: S608 (quoted)`. In pyproject.toml and in ansible-test's ignore
files each entry has a comment behind it or above it. What the formatter leaves alone (`fmt: skip`) needs no reason: it hides
nothing.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: An ignore for one line or one file, up to where its reason begins.
INLINE = re.compile(
    r"#\s*(?:noqa\b(?::\s*[\w\[\]-]+(?:\s*,\s*[\w\[\]-]+)*)?|type:\s*ignore(?:\[[^\]]*\])?|nosec\b[\sB0-9,]*|pragma:\s*no cover"
    r"|(?:ruff|flake8):\s*noqa\S*|pylint:\s*disable=[\w,-]+|mypy:\s*\S+|shellcheck\s+disable=[\w,]+|yamllint\s+disable\S*[^#(]*)"
)
REASON = re.compile(r"\s*\([^()]*\w[^()]*\)")
#: The file that has these words as data.
NOT_CODE = ("tools/ignores.py", "tests/unit/controller/test_ignores.py")


def unexplained(name: str, text: str) -> Iterator[tuple[int, str]]:
    """Lines of a file with an ignore and no reason, with what stands there."""
    if name in NOT_CODE:
        return
    listed = name.startswith("tests/sanity/ignore-")
    inside = commented = False
    for number, line in enumerate(text.splitlines(), 1):
        entry = line.strip()
        if name == "pyproject.toml":
            if entry.startswith("["):
                inside = entry == "[tool.ruff.lint.per-file-ignores]"
            elif entry == "ignore = [":
                inside = True
            elif entry == "]":
                inside = False
        wanted = listed or (inside and not entry.startswith(("[", "ignore = [")))
        if wanted and entry and not entry.startswith("#") and "#" not in entry and not commented:
            yield number, entry
        commented = entry.startswith("#")
        if name.endswith((".md", ".txt", ".json")):
            continue
        for match in INLINE.finditer(line):
            if not REASON.match(line, match.end()):
                yield number, match[0].strip()


def main() -> int:
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    failed = False
    for name in sorted({name for name in names if name and (ROOT / name).is_file()}):
        for number, what in unexplained(name, (ROOT / name).read_text(errors="replace")):
            print(f"error: {name}:{number}: {what}: say why, in brackets behind it", file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
