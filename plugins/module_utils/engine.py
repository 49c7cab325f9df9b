# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine's own units: they settle an interrupted run and gate services on their storage, without the controller.

Standard library only: this module runs on hosts.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ansible_collections.hearth.homelab.plugins.module_utils.layout import Layout, fsync_directory, write_atomic
from ansible_collections.hearth.homelab.plugins.module_utils.undo import Context, place_link

PYTHON = "/usr/bin/python3"

#: On failure of a run, and at boot before everything that a run may have changed: sysinit.target comes before all
#: services, network-pre.target before the network and its firewall. Neither apt nor podman nor D-Bus is up then: files
#: go back at once, the rest follows when the boot is done (settle.py). ``active`` exists while a run is unfinished.
#: Not before systemd-modules-load.service: zfs-mount.service comes after that and before local-fs.target, and systemd
#: breaks such a cycle by leaving a unit out of the boot, here the one that mounts the data. What ran earlier than this
#: and reads what went back is restarted (undo.py).
SETTLE = f"""\
# Written by Hearth.
[Unit]
Description=Finish or undo an interrupted Hearth run
Documentation=https://github.com/hearth-homelab/hearth.homelab
DefaultDependencies=no
RequiresMountsFor=/var/lib/hearth
After=local-fs.target
Before=sysinit.target network-pre.target nftables.service systemd-sysctl.service
Conflicts=shutdown.target
Before=shutdown.target
ConditionPathExists=/var/lib/hearth/agent/current/main.py
# A run is under way, or the unit of one is loaded: it failed, and may have been killed when the run was over.
ConditionPathIsSymbolicLink=|/var/lib/hearth/active
ConditionPathExistsGlob=|/run/systemd/transient/hearth-apply-*.service
StartLimitIntervalSec=0

[Service]
Type=oneshot
ExecStart={PYTHON} -I /var/lib/hearth/agent/current/main.py settle
TimeoutStartSec=2h
# Killed itself, or without room on the disk: what is half done must not stay so until somebody looks.
Restart=on-failure
RestartSec=30
SyslogIdentifier=hearth-settle

[Install]
WantedBy=sysinit.target
"""

GATE = f"""\
# Written by Hearth.
[Unit]
Description=Storage gate of %i
Documentation=https://github.com/hearth-homelab/hearth.homelab
# zfs-mount.service is no part of local-fs.target for those who wait for it at boot only; without ZFS it does not exist.
After=local-fs.target zfs-mount.service
# It runs at each start of its service: how often that may fail is the service's own limit.
StartLimitIntervalSec=0

[Service]
Type=oneshot
ExecStart={PYTHON} -I /var/lib/hearth/agent/current/main.py gate %i
TimeoutStartSec=30
SyslogIdentifier=hearth-gate
"""

UNITS = {
    "/etc/systemd/system/hearth-settle.service": SETTLE,
    "/etc/systemd/system/hearth-gate@.service": GATE,
}

#: What ``systemctl enable`` would make of the [Install] section.
LINK = "/etc/systemd/system/sysinit.target.wants/hearth-settle.service"


def command(layout: Layout, *arguments: str) -> list[str]:
    """The agent's command line, by the link that stays while agents come and go."""
    return [PYTHON, "-I", str(layout.agent), *arguments]


def select(layout: Layout) -> None:
    """Make the agent that runs now the current one."""
    here = Path(sys.argv[0]).resolve().parent
    if here.parent == layout.agents.resolve() and (here / "main.py").is_file():
        link = layout.agents / "current"
        if not link.is_symlink() or os.readlink(link) != here.name:
            place_link(link, here.name)


def install(context: Context) -> None:
    """Put the engine's units in place. They are never undone: without an unfinished run they do nothing."""
    changed = []
    for path, text in UNITS.items():
        real = context.layout.at(path)
        if not real.is_file() or real.read_text("utf-8") != text:
            changed.append((real, text))
    link = context.layout.at(LINK)
    target = "/etc/systemd/system/hearth-settle.service"
    linked = link.is_symlink() and os.readlink(link) == target
    if not changed and linked:
        return
    step = context.journal.begin("engine", "install", "")
    for real, text in changed:
        real.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(real, text.encode(), 0o644)
    if not linked:
        link.parent.mkdir(parents=True, exist_ok=True)
        place_link(link, target)
        fsync_directory(link.parent)
    context.call(["systemctl", "daemon-reload"])
    context.journal.done(step)
