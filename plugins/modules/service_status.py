#!/usr/bin/python
# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin of the same name, which does the work."""

from __future__ import annotations

DOCUMENTATION = r"""
module: service_status
short_description: State and health of a host's services
version_added: 0.1.0
description:
  - Asks the host how the services of its current generation are, in one exchange. Every unit is looked at and every
    declared health check is run, concurrently.
author: The Hearth developers (@hearth)
extends_documentation_fragment: [hearth.homelab.read_only]
"""

EXAMPLES = r"""
- name: See how the services are
  hearth.homelab.service_status:
  register: status
"""

RETURN = r"""
generation:
  description: Number of the host's current generation, or null before the first.
  returned: success
  type: int
services:
  description: One entry for each service of the generation.
  returned: success
  type: list
  elements: dict
  contains:
    service:
      description: The service's name.
      type: str
    state:
      description: What systemd says of its units, such as C(active), or the worst of them.
      type: str
    healthy:
      description: Whether its units run and its checks pass.
      type: bool
    real:
      description: Whether it is the application itself (false for a stand-in image).
      type: bool
    url:
      description: Where people open it; empty without a route.
      type: str
    detail:
      description: What is wrong, for people.
      type: str
"""
