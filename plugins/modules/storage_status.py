#!/usr/bin/python
# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin of the same name, which does the work."""

from __future__ import annotations

DOCUMENTATION = r"""
module: storage_status
short_description: State of a host's storage, databases and stored secrets
version_added: 0.1.0
description:
  - Asks the host, in one exchange, whether storage is new, holds data or holds something that is not Hearth's, which
    databases exist and which secrets its own store has. Nothing is changed, and no value of a secret is answered.
  - C(playbooks/secrets.yml) uses it, since a key that encrypts data is generated only for what is provably new.
author: The Hearth developers (@hearth)
extends_documentation_fragment: [hearth.homelab.read_only]
options:
  storage:
    description:
      - Paths, each with the name of the service whose storage it is.
      - Without any, the storage of the host's current generation.
    type: dict
    default: {}
  databases:
    description: Names of PostgreSQL databases to ask about.
    type: list
    elements: str
    default: []
  secrets:
    description: Names of secrets (C(SERVICE/KEY)) to ask about.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: See how the storage of the host's services is
  hearth.homelab.storage_status:
  register: storage

- name: Ask about storage that is to be
  hearth.homelab.storage_status:
    storage: {/var/lib/sonarr: sonarr}
"""

RETURN = r"""
storage:
  description: One entry for each path.
  returned: success
  type: list
  elements: dict
  contains:
    path:
      description: The path.
      type: str
    service:
      description: The service whose storage it is.
      type: str
    state:
      description:
        - C(new), C(empty_marked) (made for the service, no data yet), C(data), C(found) (somebody's, never touched),
          C(lost) (held data, and does not now) or C(unknown).
      type: str
    message:
      description: One sentence that says what led to it; may be empty.
      type: str
databases:
  description: Whether each of the databases exists; null when nobody can say.
  returned: success
  type: dict
secrets:
  description: Which of the secrets the host's store has.
  returned: success
  type: list
  elements: str
"""
