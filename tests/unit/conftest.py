# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes ``ansible_collections.hearth.homelab`` this checkout, whatever its path is.

Imports go through Ansible's own finder from the start: a package that was imported before the finder is installed
stays half known to it ("collection metadata was not loaded").
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_COLLECTIONS = str(_ROOT / ".collections")
if _COLLECTIONS not in sys.path:
    sys.path.insert(0, _COLLECTIONS)
# A run must not depend on the configuration of whoever runs it.
os.environ["ANSIBLE_CONFIG"] = str(_ROOT / "ansible.cfg")

from ansible.plugins.loader import init_plugin_loader

init_plugin_loader([_COLLECTIONS])
