# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which secrets are missing, which of them may be generated, and how their values are made. Pure: no files, no hosts.

A secret of ``kind: access`` only lets somebody in: it can be made at any time, and made anew (rotated). One of ``kind:
data`` encrypts data or pairs devices: another value makes what exists unreadable. It is generated only when what it
encrypts is provably new, which only the host can say, and it is never rotated.
"""

from __future__ import annotations

import base64
import secrets
import string
import typing as t
from dataclasses import dataclass, field

from ansible_collections.hearth.homelab.plugins.plugin_utils.conflicts import SecretNames
from ansible_collections.hearth.homelab.plugins.plugin_utils.errors import nearest, short_path
from ansible_collections.hearth.homelab.plugins.plugin_utils.model import Fleet, Host, Service
from ansible_collections.hearth.homelab.plugins.plugin_utils.schema import GenerateKeypair, GenerateLength, SecretSpec

#: Characters of generated values. base64 is that of random bytes, cut to the length.
CHARSETS = {
    "hex": "0123456789abcdef",
    "alphanumeric": string.ascii_letters + string.digits,
    "digits": string.digits,
}

#: States of storage that hold no data (module_utils/storage.py).
EMPTY = ("new", "empty_marked")


class GenerationError(Exception):
    """What was asked for makes no sense; the message says why, and what would."""


# --- values ----------------------------------------------------------------------------------------------------------


def generate(how: GenerateLength | GenerateKeypair) -> str:
    """A new value. Of a key pair: the private half, in the form in which programs read it."""
    if isinstance(how, GenerateKeypair):
        return _private_half(how.keypair)
    if how.charset == "base64":
        return base64.b64encode(secrets.token_bytes(how.length)).decode()[: how.length]
    return "".join(secrets.choice(CHARSETS[how.charset]) for _ in range(how.length))


def _private_half(kind: str) -> str:
    # cryptography comes with ansible-core; imported here, since most runs generate nothing.
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    if kind == "wireguard":  # wg(8): 32 bytes in base64
        return base64.b64encode(X25519PrivateKey.generate().private_bytes_raw()).decode()
    return (
        Ed25519PrivateKey.generate()
        .private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
        .decode()
    )


def public_half(kind: str, private: str) -> str:
    """The public half of a key pair: base64 for ``wireguard``, ``ssh-ed25519 AAAA...`` without a comment for SSH.

    ValueError for what is no private key of that kind; the message never has the value.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    try:
        if kind == "wireguard":
            raw = base64.b64decode(private.strip(), validate=True)
            return base64.b64encode(X25519PrivateKey.from_private_bytes(raw).public_key().public_bytes_raw()).decode()
        key = serialization.load_ssh_private_key(private.strip().encode() + b"\n", password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError(f"is no private key of kind {kind} (or has a passphrase)") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"is no private key of kind {kind}")
    encoding, form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return key.public_key().public_bytes(encoding, form).decode()


# --- what is declared, what the host says ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """What a secret of ``kind: data`` may encrypt on a host.

    ``storage`` are the paths of the service. ``databases`` maps what it has in a database server (``postgresql NAME``)
    to the paths of that server's storage: where those are empty, there is no database yet. ``elsewhere``: a tier of its
    protection may hold older data, so that new storage proves nothing.
    """

    storage: tuple[str, ...] = ()
    databases: t.Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    elsewhere: bool = False

    @property
    def paths(self) -> set[str]:
        return {*self.storage, *(path for paths in self.databases.values() for path in paths)}


@dataclass(frozen=True)
class Need:
    """One secret that a service of a host declares, and what there is of it."""

    host: str
    service: str
    key: str
    spec: SecretSpec
    state: t.Literal["present", "variable", "missing", "plain"]
    file: str  # where its value is, or belongs
    data: Data = Data()
    owners: t.Mapping[str, str] = field(default_factory=dict)  # path -> service whose storage it is

    @property
    def name(self) -> str:
        return f"{self.service}/{self.key}"

    @property
    def keypair(self) -> str:
        """The kind of its key pair, or nothing."""
        return self.spec.generate.keypair if isinstance(self.spec.generate, GenerateKeypair) else ""


def needs(fleet: Fleet, names: t.Mapping[str, SecretNames]) -> list[Need]:
    """Every secret of every service of the fleet. ``names`` are what composition knows of each host's secrets."""
    found = []
    for host, service in fleet.services():
        known = names.get(host.name, SecretNames())
        for key, spec in sorted(service.contribution.secrets.items()):
            name = service.secret(key)
            entry = known.entries.get(name)
            state: t.Literal["present", "variable", "missing", "plain"] = "missing"
            if name in known.variables:
                state = "variable"
            elif entry is not None and entry.state != "null":
                state = "present" if entry.state == "encrypted" else "plain"
            data, owners = _data(host, service) if spec.kind == "data" else (Data(), {})
            found.append(
                Need(host.name, service.name, key, spec, state, entry.file if entry else known.file, data, owners)
            )
    return found


def _data(host: Host, service: Service) -> tuple[Data, dict[str, str]]:
    contribution = service.contribution
    own = tuple(sorted(spec.mountpoint for spec in contribution.storage.values()))
    owners = dict.fromkeys(own, service.name)
    databases: dict[str, tuple[str, ...]] = {}
    for kind in ("postgresql", "mariadb", "redis"):
        wanted = getattr(contribution.database, kind)
        if wanted is None:
            continue
        server = host.provider(kind)
        paths = sorted(spec.mountpoint for spec in server.contribution.storage.values()) if server else []
        databases[f"{kind} {getattr(wanted, 'name', service.name)}"] = tuple(paths)
        owners.update(dict.fromkeys(paths, server.name if server else ""))
    protect = contribution.protect
    elsewhere = bool(protect and protect.empty_start is False)
    return Data(own, databases, elsewhere), owners


@dataclass(frozen=True)
class Answer:
    """What a host says. ``error``: why it says nothing.

    ``storage``: path -> (state, sentence). ``databases``: name -> whether it exists, None when nobody knows.
    ``stored`` are the secrets that the host's own store has.
    """

    error: str = ""
    storage: t.Mapping[str, tuple[str, str]] = field(default_factory=dict)
    databases: t.Mapping[str, bool | None] = field(default_factory=dict)
    stored: frozenset[str] = frozenset()

    @classmethod
    def from_result(cls, result: t.Mapping[str, t.Any] | None) -> Answer:
        """From the registered result of ``storage_status``; None or a skipped one: the host was not asked."""
        if not result or result.get("skipped"):
            return cls(error="it was not asked: it is not in this run (-l)")
        if result.get("unreachable") or result.get("failed") or "storage" not in result:
            return cls(error=" ".join(str(result.get("msg", "it gave no answer")).split()))
        return cls(
            storage={entry["path"]: (entry["state"], entry["message"]) for entry in result["storage"]},
            databases=dict(result.get("databases") or {}),
            stored=frozenset(result.get("secrets") or ()),
        )


def question(missing: t.Iterable[Need]) -> dict[str, dict[str, t.Any]]:
    """Host -> the arguments of ``storage_status``: what has to be known before these secrets are generated."""
    found: dict[str, dict[str, t.Any]] = {}
    for need in missing:
        if need.spec.kind != "data" or not (need.data.storage or need.data.databases):
            continue
        entry = found.setdefault(need.host, {"storage": {}, "databases": [], "secrets": []})
        entry["storage"].update({path: need.owners[path] for path in sorted(need.data.paths)})
        for database in sorted(need.data.databases):
            kind, _space, name = database.partition(" ")
            if kind == "postgresql" and name not in entry["databases"]:
                entry["databases"].append(name)
        entry["secrets"].append(need.name)
    return found


# --- the plan --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Make:
    """A value to generate, and the one file where it goes. ``hosts`` are all that read it there."""

    file: str
    service: str
    key: str
    spec: SecretSpec
    hosts: tuple[str, ...]
    rotate: bool = False

    @property
    def name(self) -> str:
        return f"{self.service}/{self.key}"

    @property
    def how(self) -> GenerateLength | GenerateKeypair:
        if self.spec.generate is None:
            raise GenerationError(f"{self.name} does not say how to generate it")  # plan() makes nothing else
        return self.spec.generate

    def describe(self) -> str:
        """``SERVICE/KEY (kind, how)`` for people."""
        how = self.how
        form = how.keypair if isinstance(how, GenerateKeypair) else f"{how.length} {how.charset}"
        return f"{self.name} ({self.spec.kind}, {form})"


@dataclass(frozen=True)
class Refusal:
    """A secret that is missing (or was to be rotated) and is not generated: why, and what a person can do."""

    host: str
    service: str
    key: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"host {self.host}, service {self.service}, secret {self.key}: {self.reason}\n    {self.remedy}"


@dataclass(frozen=True)
class GenerationPlan:
    """``make`` is generated, ``refused`` is not, ``owner`` is missing and written by a person (no ``generate``)."""

    make: tuple[Make, ...] = ()
    refused: tuple[Refusal, ...] = ()
    owner: tuple[Need, ...] = ()


def selected(needs: t.Sequence[Need], hosts: t.Collection[str], rotate: t.Iterable[str] = ()) -> list[Need]:
    """What this run is about: the missing secrets of these hosts, and those of others in the same place of the same file.

    ``rotate`` are names (``SERVICE/KEY``) to make anew; GenerationError for one that no host has.
    """
    asked = set(rotate)
    for name in sorted(asked - {need.name for need in needs if need.host in hosts}):
        hint = nearest(name, {need.name for need in needs if need.host in hosts})
        raise GenerationError(
            f"rotate: no service of these hosts has a secret {name!r} (write SERVICE/KEY)"
            + (f"; {hint}" if hint else "")
        )
    places = {
        (need.file, need.name)
        for need in needs
        if need.host in hosts and (need.state in ("missing", "plain") or need.name in asked)
    }
    return [need for need in needs if (need.file, need.name) in places]


def plan(
    chosen: t.Sequence[Need],
    answers: t.Mapping[str, Answer],
    *,
    rotate: t.Iterable[str] = (),
    start_empty: t.Collection[str] = (),
    broken: t.Mapping[str, str] | None = None,
) -> GenerationPlan:
    """Decides about every secret that ``selected`` chose. The same for check mode and for doing it.

    ``broken``: hosts with a secrets file that cannot be read, and what is wrong with it. ``start_empty``: services whose new storage a
    person said may start empty.
    """
    asked = set(rotate)
    places: dict[tuple[str, str], list[Need]] = {}
    for need in chosen:
        places.setdefault((need.file, need.name), []).append(need)
    make: list[Make] = []
    refused: list[Refusal] = []
    owner: list[Need] = []
    for (file, name), users in sorted(places.items()):
        first = users[0]
        if first.spec.generate is None and name not in asked and first.state == "missing":
            owner.append(first)
            continue
        found = [
            Refusal(need.host, need.service, need.key, *said)
            for need in users
            if (said := _refusal(need, answers.get(need.host), name in asked, start_empty, broken or {}))
        ]
        refused.extend(found)
        if not found:
            hosts = tuple(sorted({need.host for need in users}))
            make.append(
                Make(file, first.service, first.key, first.spec, hosts, name in asked and first.state == "present")
            )
    return GenerationPlan(tuple(make), tuple(refused), tuple(owner))


def _refusal(
    need: Need,
    answer: Answer | None,
    rotate: bool,
    start_empty: t.Collection[str],
    broken: t.Mapping[str, str],
) -> tuple[str, str] | None:
    """Why a value is not generated, and what a person can do; None when it may be."""
    file = short_path(need.file)
    by_hand = f"sops {file} and set {need.key} below {need.service}"
    if need.host in broken:
        return f"{broken[need.host]}, and may have it", "mend that file first"
    if need.state == "plain":
        return (
            f"its value in {file} is not encrypted",
            f"{by_hand}: sops encrypts what it writes; then think of it as known",
        )
    if need.state == "variable":
        return f"its value comes from the variable {need.service}_secrets", "change it where that variable is kept"
    if need.spec.generate is None:
        return "its contribution does not say how to generate it", by_hand
    if need.spec.kind == "access":
        return None
    if rotate and need.state == "present":
        return (
            "it is of kind data: what it encrypts could not be read with a new value, and the service has no step that "
            "encrypts it anew",
            "only secrets of kind access are rotated",
        )
    return _data_refusal(need, answer, need.service in start_empty, by_hand)


def _data_refusal(need: Need, answer: Answer | None, accepted: bool, by_hand: str) -> tuple[str, str] | None:
    """As ``_refusal``, for a missing secret of kind data: is what it encrypts provably new?"""
    old = f"{by_hand}: to the value that the data was encrypted with"
    if not need.data.storage and not need.data.databases:
        return (
            "it is of kind data, and the service has no storage and no database: nothing proves that nothing is encrypted "
            "with an older value",
            f"{by_hand}: to the older value, or to a new one if there is none",
        )
    if answer is None or answer.error:
        why = answer.error if answer else "it was not asked: it is not in this run (-l)"
        return (
            f"it is of kind data, so the host must say whether its storage is new, and it does not: {why}",
            "run this again when the host answers; nothing was generated for it",
        )
    if need.name in answer.stored:
        return (
            f"the host still has a value of it, in /var/lib/hearth/secrets/{need.name}: it is lost in the files only",
            f"{by_hand}: to that value",
        )
    for path in need.data.storage:
        state, message = answer.storage.get(path, ("unknown", "the host said nothing about it"))
        if state not in EMPTY:
            what = message or f"{path} holds data"
            return f"it is of kind data, and its storage is not new: {what}. A new value could not read it", old
    for database, paths in sorted(need.data.databases.items()):
        kind, _space, name = database.partition(" ")
        states = [answer.storage.get(path, ("unknown", ""))[0] for path in paths]
        if paths and all(state in EMPTY for state in states):
            continue
        exists = answer.databases.get(name) if kind == "postgresql" else None
        if exists is None:
            return f"it is of kind data, and nobody knows whether the {kind} database {name} exists", old
        if exists:
            return f"it is of kind data, and the {kind} database {name} exists. A new value could not read it", old
    if need.data.elsewhere and not accepted:
        return (
            "it is of kind data, and a backup may hold what an older value encrypted",
            f"{old}; to start empty on purpose say so with -e start_empty={need.service}",
        )
    return None
