#!/usr/bin/env python3
# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes throwaway secrets for the lab and the example fleet, outside version control.

For each inventory: an age key and a .sops.yaml that names it, then, by the step that playbooks/secrets.yml runs, every
secret that the contributions of its enabled services declare, and the password hashes of the people who may use its
routes. What exists is kept, so it can be run again at any time. Plain passwords for the demo go to
build/lab-passwords.json, readable by its owner only.

This is for hosts that are thrown away: nobody is asked whether storage is new.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import typing as t
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / ".collections"))
# Before Ansible is imported: it reads its configuration once.
os.environ.setdefault("ANSIBLE_CONFIG", str(ROOT / "ansible.cfg"))
# Ansible takes every file below an inventory directory for a part of the inventory.
os.environ.setdefault("ANSIBLE_INVENTORY_IGNORE_REGEX", r"^secrets$,^known\.yml$")

from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.vars.hostvars import HostVars
from ansible.vars.manager import VariableManager
from ansible_collections.hearth.homelab.plugins.plugin_utils import (
    secret_files,
    secret_generation,
    secret_step,
    secret_values,
)
from ansible_collections.hearth.homelab.plugins.plugin_utils.layers import Source
from ansible_collections.hearth.homelab.plugins.plugin_utils.model import Fleet
from ansible_collections.hearth.homelab.plugins.plugin_utils.schema import GenerateLength

#: bcrypt's cost: 2^10 rounds are about 0.1 s, enough for passwords of 20 random characters.
BCRYPT_ROUNDS = 10
PASSWORD = GenerateLength(length=20)


class SecretsError(Exception):
    """Something that stops the tool, in words."""


def run(argv: list[str], *, text: str | None = None, env: dict[str, str] | None = None) -> str:
    found = subprocess.run(
        argv, input=text, capture_output=True, text=True, check=False, env={**os.environ, **(env or {})}
    )
    if found.returncode != 0:
        raise SecretsError(f"{Path(argv[0]).name} failed: {found.stderr.strip() or found.stdout.strip()}")
    return found.stdout


def age_key(path: Path) -> str:
    """The public key of an age key file, which is made if it is not there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        keygen = shutil.which("age-keygen")
        if keygen is None and hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get"):
            print("Installing the Debian package age")
            run(["apt-get", "--quiet", "--yes", "--no-install-recommends", "install", "age"])
            keygen = shutil.which("age-keygen")
        if keygen is None:
            raise SecretsError("age-keygen is needed: apt-get install age, or brew install age")
        write(path, run([keygen]))
        print(f"made the key {shown(path)}")
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# public key: "):
            return line.removeprefix("# public key: ")
    raise SecretsError(f"{path} has no line `# public key:`; remove it to have a new one made")


def write(path: Path, text: str, mode: int = 0o600) -> None:
    """A file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)
    Path(temporary).chmod(mode)
    Path(temporary).replace(path)


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def bcrypt_hash(password: str) -> str:
    """The hash that Caddy's basic authentication compares with: by Debian's libcrypt, elsewhere by PyPI's bcrypt."""
    try:
        library = ctypes.CDLL("libcrypt.so.1")  # libxcrypt, in every Debian
    except OSError:
        return _bcrypt_package(password)
    for name in ("crypt_gensalt", "crypt"):
        getattr(library, name).restype = ctypes.c_char_p
    random = secrets.token_bytes(16)
    setting = library.crypt_gensalt(b"$2b$", ctypes.c_ulong(BCRYPT_ROUNDS), random, len(random))
    found = library.crypt(password.encode(), setting) if setting else None
    if not found or not found.startswith(b"$2b$"):
        return _bcrypt_package(password)
    return str(found.decode())


def _bcrypt_package(password: str) -> str:
    try:
        import bcrypt
    except ImportError as error:
        raise SecretsError("this machine's libcrypt has no bcrypt: pip install bcrypt") from error
    return str(bcrypt.hashpw(password.encode(), bcrypt.gensalt(BCRYPT_ROUNDS)).decode())


class NewStorage(dict[str, secret_generation.Answer]):
    """Every host's answer: what is thrown away holds nothing that a new key could not read."""

    def __init__(self, questions: dict[str, dict[str, t.Any]]) -> None:
        for host, asked in questions.items():
            self[host] = secret_generation.Answer(storage=dict.fromkeys(asked["storage"], ("new", "")))


def step_of(inventory: Path) -> secret_step.Step:
    """The generating step over a whole inventory, as playbooks/secrets.yml has it."""
    loader = DataLoader()
    # As for site.yml: variables beside the playbook count, and the example fleet's are at the top of the checkout.
    loader.set_basedir(str(ROOT / "playbooks"))
    hosts = InventoryManager(loader=loader, sources=[str(inventory)])
    manager = VariableManager(loader=loader, inventory=hosts)
    HostVars(hosts, manager, loader)  # makes itself known to the manager
    source = Source(hosts, manager, loader)
    try:
        return secret_step.Step(source, source.hosts)
    except secret_generation.GenerationError as error:
        raise SecretsError(f"{shown(inventory)}: {error}") from error


def prepare(inventory: Path) -> Path:
    """The age key, and the .sops.yaml that says that secrets are for it; returns the key."""
    key = inventory / "secrets" / "age-key.txt"
    recipient = age_key(key)
    os.environ["SOPS_AGE_KEY_FILE"] = str(key)  # for an inventory without sops_age_keyfile
    rules = f"creation_rules:\n  - path_regex: \\.sops\\.yml$\n    age: {recipient}\n"
    path = inventory / "secrets" / ".sops.yaml"
    if not path.exists() or path.read_text(encoding="utf-8") != rules:
        write(path, rules)
    return key


def logins(fleet: Fleet) -> dict[str, set[str]]:
    """Host with a proxy -> everybody in any access group, so that enabling another service needs no new hash."""
    found: dict[str, set[str]] = {}
    for host in fleet.hosts.values():
        if host.provider("route"):
            found[host.name] = set().union(*host.variables.hearth_access.values())
    return {name: persons for name, persons in found.items() if persons}


def people(inventory: Path, passwords_file: Path, step: secret_step.Step | None = None) -> None:
    """A password for every person, the same on all hosts: hashes into the hosts' files, passwords into one of their own."""
    prepare(inventory)
    step = step or step_of(inventory)
    known = _passwords(passwords_file)
    passwords: dict[str, str] = known.setdefault(inventory.name, {}).setdefault("people", {})
    for host, persons in sorted(logins(step.composition.fleet).items()):
        path = inventory / "secrets" / f"{host}.sops.yml"
        have = step.sops(host).decrypt(path).get("people", {}) if path.exists() else {}
        missing = {person for person in persons if person not in passwords or not have.get(person)}
        for person in sorted(missing):
            passwords.setdefault(person, secret_generation.generate(PASSWORD))
        if missing:
            values = {("people", person): _hasher(passwords[person]) for person in sorted(missing)}
            secret_files.add(path, values, step.sops(host), set(values))
            print(f"{shown(path)}: made {', '.join(f'people/{person}' for person in sorted(missing))}")
    write(passwords_file, json.dumps(known, indent=2, sort_keys=True) + "\n")


def _hasher(password: str) -> t.Callable[[], dict[str, str]]:
    return lambda: {"password_hash": bcrypt_hash(password)}


def _passwords(path: Path) -> dict[str, t.Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "inventory", nargs="*", type=Path, default=[ROOT / "inventories/lab", ROOT / "inventories/homelab"],
        help="inventory directories (default: the lab's and the example fleet's)",
    )  # fmt: skip
    parser.add_argument("--passwords", type=Path, default=ROOT / "build/lab-passwords.json", help="plain passwords")
    parser.add_argument(
        "--prepare", action="store_true", help="only key, rule and people: the rest is playbooks/secrets.yml's"
    )
    options = parser.parse_args(arguments)
    try:
        for inventory in options.inventory:
            prepare(inventory)
            if options.prepare:
                people(inventory, options.passwords)
            else:
                make(inventory, options.passwords)
    except (SecretsError, secret_files.FileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def make(inventory: Path, passwords_file: Path) -> None:
    step = step_of(inventory)
    outcome = step.run(NewStorage(step.questions()))
    for made in outcome.made:
        print(f"{shown(Path(made.file))}: made {made.name}")
    if outcome.failure():
        raise SecretsError(outcome.failure())
    # What owners write themselves, here nobody does.
    for need in outcome.plan.owner:
        value = secret_generation.generate(GenerateLength())
        secret_files.add(Path(need.file), {(need.service, need.key): lambda text=value: text}, step.sops(need.host))
        print(f"{shown(Path(need.file))}: made {need.name}")
    people(inventory, passwords_file, step)
    plain: dict[str, t.Any] = {}
    for host, files in step_of(inventory).composition.secret_files.items():
        for name, value in secret_values.decrypt(map(Path, files), step.sops(host).option).items():
            service, _slash, key = name.partition("/")
            if service != "people":
                plain.setdefault(host, {}).setdefault(service, {})[key] = value
    known = _passwords(passwords_file)
    known[inventory.name]["services"] = plain
    write(passwords_file, json.dumps(known, indent=2, sort_keys=True) + "\n")
    print(f"{shown(passwords_file)}: plain passwords, for the demo")


if __name__ == "__main__":
    sys.exit(main())
