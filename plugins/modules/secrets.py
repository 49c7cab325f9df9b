#!/usr/bin/python
# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin of the same name, which does the work."""

from __future__ import annotations

DOCUMENTATION = r"""
module: secrets
short_description: Generate the secrets that services declare and that are missing
version_added: 0.1.0
description:
  - Reads the whole inventory, finds every secret that the services of the play's hosts declare with C(generate) and that
    neither a secrets file nor a C(SERVICE_secrets) variable has, generates it and writes it, encrypted by SOPS, to the
    file of its host (or to a group's file that has the key without a value). The recipients are those of the file, of a
    new file those that C(.sops.yaml) names for it.
  - Values that exist are never changed, except those of I(rotate). A file is replaced whole or not at all.
  - Secrets of C(kind=data) are generated only where the host says that what they encrypt is new.
  - Public halves of key pairs are written to C(known.yml) beside the inventory.
  - Run by C(playbooks/secrets.yml) (C(make secrets)). It runs once for the whole play. No value is ever printed.
author: The Hearth developers (@hearth)
options:
  state:
    description:
      - C(present) generates.
      - C(asked) only tells, in C(questions), what M(hearth.homelab.storage_status) has to ask which hosts first.
    type: str
    choices: [asked, present]
    default: present
  rotate:
    description: Secrets of C(kind=access) to make anew, as C(SERVICE/KEY), on the hosts of the play.
    type: list
    elements: str
    default: []
  start_empty:
    description: Services whose new storage may start empty although a backup may hold data of them.
    type: list
    elements: str
    default: []
  storage:
    description: What M(hearth.homelab.storage_status) answered, by host. A host without an answer proves nothing.
    type: dict
    default: {}
attributes:
  check_mode:
    support: full
    description: Says what would be generated, decided by the same function.
  diff_mode:
    support: none
    description: There is nothing to show that is not secret.
"""

EXAMPLES = r"""
- name: Tell what has to be asked
  hearth.homelab.secrets:
    state: asked
  register: needed

- name: Generate what needs no answer of a host
  hearth.homelab.secrets:

- name: Give Sonarr a new key
  hearth.homelab.secrets:
    rotate: [sonarr/api_key]
"""

RETURN = r"""
questions:
  description: Host to arguments of M(hearth.homelab.storage_status).
  returned: with I(state=asked)
  type: dict
made:
  description: What was (in check mode, would be) generated.
  returned: with I(state=present)
  type: list
  elements: dict
  contains:
    name:
      description: C(SERVICE/KEY).
      type: str
    hosts:
      description: The hosts that use it.
      type: list
      elements: str
    kind:
      description: C(access) or C(data).
      type: str
    file:
      description: The secrets file.
      type: str
    rotated:
      description: Whether it replaced a value.
      type: bool
refused:
  description: What is not generated, with C(host), C(name), C(reason) and C(remedy). The task fails when there is any.
  returned: with I(state=present)
  type: list
  elements: dict
missing:
  description: What is still missing, with C(host) and C(name), because a person writes it or nothing can be written here.
  returned: with I(state=present)
  type: list
  elements: dict
public_keys:
  description: Public halves that were added to C(known.yml), by host, service and key.
  returned: with I(state=present)
  type: dict
files:
  description: The files that were written. They have to be committed.
  returned: with I(state=present)
  type: list
  elements: str
"""
