# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter ``syncoid_jobs``."""

from __future__ import annotations

DOCUMENTATION = r"""
name: syncoid_jobs
short_description: Command lines of syncoid
version_added: 0.2.0
description:
  - Makes the command line of each replication. They send existing snapshots only, keep the last common one by a hold and a
    bookmark, go on where they were cut off, know the other host's key beforehand, and never mount, roll back or destroy
    anything on the target.
author: The Hearth developers (@hearth)
options:
  _input:
    description:
      - Jobs by name. C(source) and C(target) are a dataset or a dictionary of C(dataset), C(host) and C(user); at most one of
        them is on another host. C(identifier) keeps the holds of several targets apart. C(bandwidth) is in bytes per second,
        such as V(20m). C(raw) sends encrypted datasets as they are, C(recursive) the datasets below, without those that an
        C(exclude) (a list of regular expressions) fits. C(ssh) has C(key), C(known_hosts) and C(port).
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Show the command of a replication
  ansible.builtin.debug:
    msg: "{{ (jobs | hearth.homelab.syncoid_jobs).sonarr.command }}"
  vars:
    jobs:
      sonarr:
        source: tank/services/sonarr
        target: {dataset: tank/replicas/forge/sonarr, host: nas-1.example.com, user: syncoid}
        ssh: {key: /etc/syncoid/id_ed25519, known_hosts: /etc/syncoid/known_hosts}
"""

RETURN = r"""
_value:
  description: For each job C(argv), a list, and C(command), the same for a shell.
  type: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.hearth.homelab.plugins.plugin_utils import replication


def syncoid_jobs(jobs: dict[str, t.Any]) -> dict[str, dict[str, t.Any]]:
    try:
        return replication.syncoid_jobs(jobs)
    except ValueError as error:
        raise AnsibleFilterError(f"syncoid_jobs: {error}") from error


class FilterModule:
    def filters(self) -> dict[str, t.Any]:
        return {"syncoid_jobs": syncoid_jobs}
