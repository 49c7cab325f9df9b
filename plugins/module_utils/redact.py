# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Replace secrets in text that leaves the host: diffs, programs' messages, log lines.

Standard library only: this module runs on hosts.
"""

from __future__ import annotations

import base64
import json
import re
import typing as t
from urllib.parse import quote, quote_plus

#: What stands for a secret.
MASK = "********"

#: Shorter parts of a value (a line of a key, a piece of base64) would also hide ordinary words.
_SHORTEST_PART = 8


def forms(value: str) -> set[str]:
    """The forms in which a secret may appear: plain, per line, URL-encoded, JSON, shell, hexadecimal, base64.

    Base64 of a text that contains the secret differs with the secret's position modulo 3: for each of the three
    the characters that depend on the secret alone are given.
    """
    found = {value, quote(value, safe=""), quote(value), quote_plus(value), json.dumps(value)[1:-1]}
    found.add(json.dumps(value, ensure_ascii=False)[1:-1])
    found.add(value.replace("'", "'\\''"))
    stripped = value.strip()
    found.add(stripped)
    raw = stripped.encode()
    if len(raw) >= 4:
        found.add(raw.hex())
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        whole = encode(raw).decode()  # of the value alone: its last characters do not depend on what follows either
        found.update(form for form in (whole, whole.rstrip("=")) if len(form) >= _SHORTEST_PART)
    for offset in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            text = encode(b"\0" * offset + raw).decode().rstrip("=")
            tail = 0 if (offset + len(raw)) % 3 == 0 else 1
            part = text[(0, 2, 3)[offset] : len(text) - tail]
            if len(part) >= _SHORTEST_PART:
                found.add(part)
    if "\n" in stripped:
        found.update(
            line.strip()
            for line in stripped.splitlines()
            if len(line.strip()) >= _SHORTEST_PART and not line.startswith("-----")
        )
    return {form for form in found if form.strip()}


class Redactor:
    """Replaces every form of every known secret by MASK. Empty values are ignored."""

    def __init__(self, values: t.Iterable[str] = ()) -> None:
        self._values: set[str] = set()
        self._pattern: re.Pattern[str] | None = None
        self.add(*values)

    def add(self, *values: str) -> None:
        """Learn more values."""
        fresh = {value for value in values if value.strip()} - self._values
        if fresh:
            self._values |= fresh
            texts = {form for value in self._values for form in forms(value)}
            # The longest first: a form may contain another one.
            self._pattern = re.compile("|".join(re.escape(text) for text in sorted(texts, key=lambda x: (-len(x), x))))

    def text(self, text: str) -> str:
        """``text`` without secrets."""
        return text if self._pattern is None else self._pattern.sub(MASK, text)

    def data(self, data: t.Any) -> t.Any:
        """JSON data with every string, also keys, redacted."""
        if isinstance(data, str):
            return self.text(data)
        if isinstance(data, dict):
            return {self.text(key) if isinstance(key, str) else key: self.data(value) for key, value in data.items()}
        if isinstance(data, (list, tuple)):
            return [self.data(entry) for entry in data]
        return data
