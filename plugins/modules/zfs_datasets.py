#!/usr/bin/python
# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host's tree of ZFS datasets in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: zfs_datasets
short_description: A host's whole tree of ZFS datasets, in one call
version_added: 0.2.0
description:
  - Makes file systems, volumes, their properties, the attributes of their mount points and delegated permissions as they
    are declared. One C(zfs get) reads all of them, however many there are; nothing to do means that nothing else runs.
  - Values are compared by their meaning, so C(10G) equals C(10737418240), C(yes) equals C(on), and an alias equals what it
    stands for. A declared property is set on the dataset itself even where an inherited or received value is the same.
  - Which properties were set is remembered in the user property C(hearth.homelab:managed); one that is taken out of
    O(datasets) returns to its inherited value. Properties, holds and datasets that nobody declared are left alone.
  - Nothing is applied when any part of the declaration cannot be.
author: The Hearth developers (@hearth)
options:
  datasets:
    description:
      - The datasets by name. Parents are made before children; a parent that does not exist must be declared as well.
    type: dict
    default: {}
    suboptions:
      properties:
        description:
          - Native and user properties. Sizes as ZFS takes them, booleans as YAML has them; V(null) returns a property to its
            inherited value. C(volsize) makes a volume, with C(refreservation=none) a sparse one.
          - Properties that ZFS sets only when a dataset is made are refused when they differ.
        type: dict
      owner:
        description: Owner of the mount point's root, a name or a number. What is below it is never touched.
        type: str
      group:
        description: Group of the mount point's root.
        type: str
      mode:
        description: Mode of the mount point's root, such as V("0750").
        type: str
      state:
        description: Whether the dataset shall exist.
        type: str
        choices: [present, absent]
        default: present
      destroy:
        description:
          - What an absent dataset may have and is destroyed with. Without a word only what is empty is destroyed. A dataset
            with held snapshots or with clones elsewhere, and a pool's root, never are.
        type: list
        elements: str
        choices: [content, snapshots, children]
  delegations:
    description:
      - Permissions (see zfs-allow(8)) by dataset. On a dataset named here exactly these hold for users, groups and everyone.
    type: dict
    default: {}
    suboptions:
      users:
        description: Lists of permissions by user.
        type: dict
      groups:
        description: Lists of permissions by group.
        type: dict
      everyone:
        description: Permissions of everyone.
        type: list
        elements: str
      scope:
        description: Whether they hold on the dataset, below it, or both.
        type: str
        choices: [local, descendent, both]
        default: both
  keys:
    description:
      - Keys or passphrases of encrypted datasets by name, for C(keylocation=prompt). They are passed by standard input only.
    type: dict
    default: {}
attributes:
  check_mode:
    support: full
    description: The same plan, not applied.
  diff_mode:
    support: full
    description: Shows the values of every dataset that changes, before and after.
"""

EXAMPLES = r"""
- name: The datasets of two services
  hearth.homelab.zfs_datasets:
    datasets:
      tank/services:
        properties: {mountpoint: none, compression: zstd, atime: false}
      tank/services/sonarr:
        properties: {mountpoint: /var/lib/sonarr, recordsize: 16K, quota: 20G}
        owner: sonarr
        group: sonarr
        mode: "0750"
    delegations:
      tank/services:
        users: {syncoid: [bookmark, hold, send, snapshot]}

- name: Take an old dataset away with its snapshots, if nothing is in it
  hearth.homelab.zfs_datasets:
    datasets:
      tank/services/old: {state: absent, destroy: [snapshots]}
"""

RETURN = r"""
actions:
  description: What was done (or would be), in order.
  returned: success
  type: list
  elements: dict
  contains:
    dataset:
      description: The dataset.
      type: str
    operation:
      description: C(create), C(set), C(inherit), C(mount), C(load-key), C(attributes), C(destroy), C(allow) or C(unallow).
      type: str
    before:
      description: The values that change, as they were.
      type: dict
    after:
      description: The same values afterwards.
      type: dict
commands:
  description: Every command that was run, those that only read included.
  returned: success
  type: list
  elements: str
problems:
  description: Why nothing was changed; one sentence for each thing, with what to do.
  returned: failure
  type: list
  elements: str
"""

import shlex
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.hearth.homelab.plugins.module_utils import zfs_datasets
from ansible_collections.hearth.homelab.plugins.module_utils.runner import CommandError, SystemRunner


def arguments() -> dict[str, t.Any]:
    """The argument spec. Dictionaries by name are checked by ``declared``, which says of which dataset it speaks."""
    return {
        "datasets": {"type": "dict", "default": {}},
        "delegations": {"type": "dict", "default": {}},
        "keys": {"type": "dict", "default": {}, "no_log": True},
    }


def main() -> None:
    module = AnsibleModule(argument_spec=arguments(), supports_check_mode=True)
    runner = SystemRunner()
    try:
        desired, delegations = zfs_datasets.declared(module.params["datasets"], module.params["delegations"])
    except ValueError as error:
        module.fail_json(msg=str(error), problems=str(error).splitlines())
    keys = {str(name): str(value) for name, value in module.params["keys"].items()}
    try:
        current = zfs_datasets.read(runner, desired, sorted(delegations))
        plan = zfs_datasets.plan(current, desired, delegations, keys=frozenset(keys))
    except (CommandError, OSError, ValueError) as error:
        module.fail_json(msg=f"ZFS cannot be asked: {error}", problems=[str(error)])
    if plan.problems:
        module.fail_json(msg="Nothing was changed:\n" + "\n".join(plan.problems), problems=plan.problems)
    result: dict[str, t.Any] = {
        "changed": bool(plan.steps),
        "actions": [step.to_dict() for step in plan.steps],
        "diff": zfs_datasets.diff(plan.steps),
    }
    if not module.check_mode:
        try:
            zfs_datasets.apply(runner, plan.steps, keys=keys)
        except zfs_datasets.StepError as error:
            module.fail_json(msg=str(error), problems=[str(error)], commands=_lines(runner))
    module.exit_json(**result, commands=_lines(runner))


def _lines(runner: SystemRunner) -> list[str]:
    return [shlex.join(argv) for argv in runner.commands]


if __name__ == "__main__":
    main()
