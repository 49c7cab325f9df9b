# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter ``sanoid_conf``."""

from __future__ import annotations

DOCUMENTATION = r"""
name: sanoid_conf
short_description: The content of sanoid.conf
version_added: 0.2.0
description:
  - Makes the configuration of sanoid from datasets and templates. A setting that sanoid does not know, a template that does
    not exist and a value of the wrong type are errors, all of them at once; sanoid itself would stop at the first.
  - A template keeps exactly what it says. What it leaves out is none, where sanoid's own defaults would keep 48 hourly, 90
    daily and 6 monthly snapshots.
author: The Hearth developers (@hearth)
options:
  _input:
    description:
      - Datasets, each with the name of a template or with a dictionary of C(template), C(recursive) (true, false or V(zfs))
        and sanoid's settings.
    type: dict
    required: true
  templates:
    description: Templates by name, each a dictionary of sanoid's settings.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Snapshots of the services
  ansible.builtin.copy:
    dest: /etc/sanoid/sanoid.conf
    content: "{{ {'tank/services/sonarr': 'services'} | hearth.homelab.sanoid_conf(templates) }}"
    mode: "0644"
  vars:
    templates:
      services: {hourly: 48, daily: 14, weekly: 8, monthly: 6}
"""

RETURN = r"""
_value:
  description: The content of the file.
  type: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.hearth.homelab.plugins.plugin_utils import replication


def sanoid_conf(datasets: dict[str, t.Any], templates: dict[str, t.Any]) -> str:
    try:
        return replication.sanoid_conf(datasets, templates)
    except ValueError as error:
        raise AnsibleFilterError(f"sanoid_conf: {error}") from error


class FilterModule:
    def filters(self) -> dict[str, t.Any]:
        return {"sanoid_conf": sanoid_conf}
