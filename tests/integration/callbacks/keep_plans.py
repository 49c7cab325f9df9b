# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Copies the plans of a run to the directory that KEEP_PLANS names, before Ansible removes them with its temporary files.

No result of a task carries a plan: that is what keeps plans out of logs, so a test that compares plans looks here.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ansible import constants
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: keep_plans
type: aggregate
short_description: keeps the plans of a run
description: For tests that compare the plans of several runs.
author: hearth.homelab contributors
"""


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "keep_plans"

    def v2_playbook_on_stats(self, stats: object) -> None:
        target = Path(os.environ["KEEP_PLANS"])
        for path in sorted((Path(constants.DEFAULT_LOCAL_TMP) / "hearth-plans").glob("*/plan-*.json")):
            folder = target / path.parent.name  # one per play, and per set of added roles
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / path.name)
