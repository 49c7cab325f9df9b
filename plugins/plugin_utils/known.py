# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""known.yml beside the inventory: plain data that compose needs and that no person writes.

So far public halves of key pairs, by host, service and key. Other playbooks may keep more in it: what is not known here
stays as it is.
"""

from __future__ import annotations

import os
import tempfile
import typing as t
from pathlib import Path

import yaml
from ansible_collections.hearth.homelab.plugins.plugin_utils.errors import short_path
from ansible_collections.hearth.homelab.plugins.plugin_utils.secret_files import COPY, FileError, locked, place

FILE = "known.yml"
#: host -> service -> key -> public half.
PUBLIC_KEYS = "public_keys"

_HEAD = """\
# Plain data that compose needs: public halves of key pairs, identities. Written by playbooks/secrets.yml and others;
# nothing in it is secret. Commit it.
"""

PublicKeys = dict[str, dict[str, dict[str, str]]]


def read(directories: t.Iterable[Path]) -> tuple[dict[str, t.Any], str]:
    """What the known.yml files of these directories say (a later one wins), and what is wrong with one of them."""
    merged: dict[str, t.Any] = {}
    for directory in directories:
        path = directory / FILE
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
            return merged, f"{short_path(str(path))} cannot be read: {getattr(error, 'problem', None) or error}"
        if data is None:
            continue
        if not _is_known(data):
            return merged, (
                f"{short_path(str(path))} is not what Hearth writes: {PUBLIC_KEYS} maps a host to services, these to keys, "
                "these to public halves"
            )
        for key, value in data.items():
            merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    return merged, ""


def _is_known(data: t.Any) -> bool:
    if not isinstance(data, dict):
        return False
    hosts = data.get(PUBLIC_KEYS, {})
    return isinstance(hosts, dict) and all(
        isinstance(services, dict)
        and all(
            isinstance(keys, dict) and all(isinstance(value, str) for value in keys.values())
            for keys in services.values()
        )
        for services in hosts.values()
    )


def write(directory: Path, found: t.Mapping[str, t.Mapping[str, t.Mapping[str, str]]]) -> bool:
    """Adds public halves to a directory's known.yml; whether that changed it. What else is in it stays."""
    path = (directory / FILE).resolve()
    with locked(directory):
        for left in directory.glob(f"{COPY}*"):
            left.unlink(missing_ok=True)
        data, error = read([directory])
        if error:
            raise FileError(f"{error}. Mend it, or remove it to have it made again")
        hosts: PublicKeys = data.setdefault(PUBLIC_KEYS, {})
        changed = False
        for host, services in found.items():
            for service, keys in services.items():
                section = hosts.setdefault(host, {}).setdefault(service, {})
                for key, value in keys.items():
                    changed = changed or section.get(key) != value
                    section[key] = value
        if not changed:
            return False
        handle, name = tempfile.mkstemp(dir=directory, prefix=COPY)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(_HEAD + text(data))
            Path(name).chmod(0o644)
            place(Path(name), path)
        finally:
            Path(name).unlink(missing_ok=True)
        return True


def text(data: t.Mapping[str, t.Any]) -> str:
    """The data as it stands in the file."""
    return yaml.safe_dump(dict(data), sort_keys=True, explicit_start=True, width=1000)
