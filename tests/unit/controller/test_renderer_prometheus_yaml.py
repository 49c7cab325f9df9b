# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rule files are written without a YAML library: whatever people write must read back as it was."""

from __future__ import annotations

import pytest
import yaml
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import prometheus

TEXTS = [
    "plain", "two words", 'up{host="forge"} == 0', "(a or b)", "120s", "1", "1.5", "0x1f", "1e3", "12:30:45", "2026-01-01",
    "", " ", " a", "a ", "a: b", "a:", "a #b", "#a", "it's", "'quoted'", '"quoted"', "- a", "? a", "{a}", "[a]", "a, b",
    "&a", "*a", "!a", "|", ">", "%a", "@a", "`a`", "~", "null", "Null", "NO", "on", "y", "=", "<<", "---", "...",
    "a\nb", "a\n", "\ta", "a\tb", "a\\b", "ü", "aü", "😀", "a😀\n", "a\x85b", "a\u2028b", "\ufeffa", "a\xa0b", "a\x7fb",
    "https://forge/alerts?a=b#c", "{{ $labels.unit }}",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_reads_back(text: str) -> None:
    group = [
        {"alert": text, "expr": text, "labels": {"k": text}, "annotations": {}},
        {"alert": "B", "expr": "1", "for": "120s", "labels": {}, "annotations": {"summary": text}},
    ]
    written = prometheus._yaml(text, group, "app")
    for loader in (yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        assert yaml.load(written, Loader=loader) == {"groups": [{"name": text, "rules": group}]}
