#!/usr/bin/python
# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: compose
short_description: Compose the fleet's services into one plan per host
description:
  - Reads the variables of every host of the inventory, loads the contributions of the enabled services, validates
    them, aggregates them across the fleet and looks for conflicts. The result is one immutable plan for each host of
    the play.
  - It runs on the controller only, once for the play, and connects to no host. The whole inventory is composed,
    whatever the limit is.
  - All errors of all hosts arrive in one report, each with host, service, key path, file and line, what was found,
    what is allowed and the nearest match. An error of a host outside the limit is a warning, unless a plan within the
    limit is made of what that host contributes.
  - Plans lie in a private directory that ends with the run; M(hearth.homelab.converge) finds them there. Results carry
    digests and a summary only.
author: The Hearth developers (@hearth-homelab)
version_added: 0.1.0
requirements:
  - pydantic >= 2 (on the controller)
options:
  services:
    description:
      - Services to add to every host of the play with their defaults, as if the inventory enabled them.
      - This is how a role of the collection works alone.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Can run in check mode; it changes nothing anyway.
    support: full
  diff_mode:
    description: There is nothing to show a difference of; M(hearth.homelab.converge) does.
    support: none
  action:
    description: It is an action plugin, run on the controller.
    support: full
  bypass_host_loop:
    description: It runs once for all hosts of the play.
    support: full
seealso:
  - module: hearth.homelab.converge
"""

EXAMPLES = r"""
- name: Compose the fleet
  hearth.homelab.compose:

- name: Compose the fleet with one more service on the hosts of this play
  hearth.homelab.compose:
    services: [sonarr]
"""

RETURN = r"""
hosts:
  description: One entry for each host of the play.
  returned: success
  type: dict
  contains:
    managed:
      description: Whether there is a plan; false for a platform that is composed only.
      type: bool
    digest:
      description: SHA-256 of the plan's manifest. Equal inputs give equal digests.
      type: str
    services:
      description: Names of the host's services.
      type: list
      elements: str
    items:
      description: Number of items in the plan.
      type: int
    notices:
      description: Standing notices, such as contracts without a provider.
      type: list
      elements: str
  sample:
    forge:
      managed: true
      digest: 4f0a...
      services: [base, caddy, miniflux]
      items: 183
      notices: []
problems:
  description: Everything that is wrong.
  returned: failure
  type: list
  elements: dict
  contains:
    host:
      description: The host; empty for the fleet.
      type: str
    others:
      description: Further hosts that it concerns.
      type: list
      elements: str
    service:
      description: The service, or empty.
      type: str
    path:
      description: The key path, such as C(route.access).
      type: str
    message:
      description: What was found and what is allowed.
      type: str
    file:
      description: The file that says so.
      type: str
    line:
      description: The line in that file, from 1; 0 if it is not known.
      type: int
    remedy:
      description: What to do about it.
      type: str
"""
