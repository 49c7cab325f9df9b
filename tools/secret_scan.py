#!/usr/bin/env python3
# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look for secrets in all files that git tracks, with detect-secrets. Exit 1 when something is found.

There is no baseline: a file of accepted hashes says neither what they are nor why. What is not a secret is listed here, each
with its reason; anything else is an error.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from detect_secrets import SecretsCollection
from detect_secrets.settings import default_settings

ROOT = Path(__file__).resolve().parents[1]

#: (path, kind of finding, line), all regular expressions that must match, and the reason.
ALLOWED: tuple[tuple[str, str, str, str], ...] = (
    (
        r"tests/",
        "Secret Keyword",
        r"",
        "tests name secrets and use values that are made up; keys and tokens are still found",
    ),
    (r"", "Entropy", r"/var/lib/postgresql/17/main/PG_VERSION", "a path"),
    (r"", "Entropy", r"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", "an alphabet"),
    (r"tests/|tools/secret_scan", "Entropy", r"0123456789abcdef0123456789abcdef", "a made-up value"),
    (r"tests/", "Private Key", r'startswith\("-----BEGIN', "the head of a key that the test makes"),
    (r"", "Secret Keyword", r"password_encryption = '", "the name of a method"),
    (r"mkdocs\.yml$", "Secret Keyword", r"Secrets: secrets\.md", "the name of a page"),
    (
        r"tests/",
        "Entropy",
        r"77076d0a7318a57d3c16c17251b26645|8520f0098930a754748b7ddcb43ef75a",
        "the example keys of RFC 7748, section 6.1",
    ),
    (r"plugins/.*\.py$", "Secret Keyword", r"", "names of keys and variables; ruff's S105 to S107 read Python better"),
    (
        r"roles/[^/]+/vars/contribution\.yml$",
        "Secret Keyword",
        r"secret: [a-z_]+\b",
        "a contribution names its secrets",
    ),
    (r"roles/radicale/", "Secret Keyword", r"htpasswd_(filename|encryption) = ", "a path and the name of a method"),
    (r"roles/redis/", "Secret Keyword", r"There is no password:", "a sentence"),
    (r"docs/|README", "Secret Keyword", r"<|`|\.\.\.", "documentation names keys"),
)


def allowed(path: str, kind: str, line: str) -> bool:
    return any(re.match(where, path) and what in kind and re.search(text, line) for where, what, text, _why in ALLOWED)


def main() -> int:
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split("\0")
    found = SecretsCollection(root=str(ROOT))
    with default_settings():
        found.scan_files(*(name for name in names if name and (ROOT / name).is_file()))
    failed = False
    for path, secret in found:
        lines = (ROOT / path).read_text(errors="replace").splitlines()
        # In YAML the scanner's line is that of the block or a little off: flow mappings and folded text count differently.
        near = 3 if path.endswith((".yml", ".yaml")) else 0
        line = "\n".join(lines[max(0, secret.line_number - 1 - near) : secret.line_number + near])
        if not allowed(path, secret.type, line):
            # Never the value: the output of a check is public.
            print(f"error: {path}:{secret.line_number}: {secret.type}", file=sys.stderr)
            failed = True
    if failed:
        print(
            "Take the secret out and replace it where it is used; if it is none, say why in ALLOWED.", file=sys.stderr
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
