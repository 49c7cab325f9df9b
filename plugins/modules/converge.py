#!/usr/bin/python
# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin of the same name, which does the work."""

from __future__ import annotations

DOCUMENTATION = r"""
module: converge
short_description: Make a host equal to its plan, in one transaction
version_added: 0.1.0
description:
  - Composes the fleet (or takes the plan that M(hearth.homelab.compose) made in this run), asks the host in one exchange
    what differs from its plan, ships only that, and lets the host apply it in a systemd unit of its own.
  - When nothing differs the run is over after that one exchange, however many services the host has.
  - Configuration is validated by the programs that read it before it replaces anything. A service that does not become
    healthy is taken back with what requires it; everything else stands. Changes of the firewall and of SSH are undone
    by the host unless this controller reaches it again over a new connection.
author: The Hearth developers (@hearth)
options:
  service:
    description:
      - Add this service to the host's services if it has not got it, and apply only what belongs to it and to what it
        requires. This is what the roles do when they are used alone.
    type: str
  tiers:
    description: Apply only the items of these tiers; the rest of the last generation is carried over.
    type: list
    elements: str
    choices: [core, infrastructure, services]
  only:
    description:
      - Apply only these services and what they require; the rest of the last generation is carried over.
      - Names, or names separated by commas.
    type: list
    elements: str
  start_empty:
    description:
      - Services whose storage may start empty although it should hold data, or although a tier that could hold data of
        it was not asked; and whose database is made anew although the last run had it. Said by name, for one run.
    type: list
    elements: str
  confirm_timeout:
    description:
      - Seconds within which the controller must reach the host over a new connection after a change of the firewall
        or of SSH. Without that the host undoes the whole run.
    type: int
    default: 45
attributes:
  check_mode:
    support: full
    description: The host compares exactly as it would for a run, with the same plan function, and changes nothing.
  diff_mode:
    support: full
    description: Contents of changed files, and a line for every other item. Files with secrets are not shown.
seealso:
  - module: hearth.homelab.compose
  - module: hearth.homelab.service_status
"""

EXAMPLES = r"""
- name: Make the host equal to its plan
  hearth.homelab.converge:

- name: Apply two services and what they require
  hearth.homelab.converge:
    only: [sonarr, radarr]
"""

RETURN = r"""
actions:
  description: What differed (check mode) or was changed, in the order of application.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: Kind and name of the item, such as C(file:/etc/caddy/Caddyfile).
      type: str
    operation:
      description: What is done to it.
      type: str
    service:
      description: The service that owns the item.
      type: str
    before:
      description: What was found; never a secret.
      type: raw
    after:
      description: What is declared; never a secret.
      type: raw
    reason:
      description: Why, in a few words.
      type: str
unknown:
  description: Items that cannot be compared before others are applied, each with the reason.
  returned: success
  type: list
  elements: dict
notices:
  description: Things people should know, such as data that stays or files that were changed by hand.
  returned: success
  type: list
  elements: dict
taken_back:
  description: Services that did not become healthy and were taken back, with the reason.
  returned: when services were taken back
  type: dict
generation:
  description: Number of the host's generation after the run.
  returned: success
  type: int
exchanges:
  description: Round trips with the host; 1 when nothing differed.
  returned: success
  type: int
"""
