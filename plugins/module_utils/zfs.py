# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ZFS as its own programs show it: names, property values and their comparison, and what zfs(8) prints.

Facts are from zfsprops(7), zfs-get(8) and zfs-allow(8) of OpenZFS 2.3 and its property table (module/zcommon/zfs_prop.c).
Standard library only: this module runs on hosts.
"""

from __future__ import annotations

import re
import typing as t
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

#: What Hearth itself keeps in datasets. User properties are inherited by children: only source ``local`` counts.
PREFIX = "hearth.homelab:"

#: The names of the properties that were set by Hearth, comma-separated: what is taken out of the declaration
#: returns to its inherited value, and what somebody else set is left alone.
MANAGED = PREFIX + "managed"

#: Properties that zfs-create(8) sets and zfs-set(8) never changes (PROP_ONETIME and PROP_ONETIME_DEFAULT).
CREATE_ONLY = frozenset(
    {"casesensitivity", "encryption", "keyformat", "normalization", "pbkdf2iters", "utf8only", "volblocksize"}
)

#: Properties that are not inherited (PROP_DEFAULT), with the value that clears them: zfs-inherit(8) refuses them.
NOT_INHERITED: Mapping[str, str] = {
    "canmount": "on",
    "context": "none",
    "defcontext": "none",
    "filesystem_limit": "none",
    "fscontext": "none",
    "keylocation": "none",
    "quota": "none",
    "refquota": "none",
    "refreservation": "none",
    "reservation": "none",
    "rootcontext": "none",
    "snapshot_limit": "none",
    "volsize": "",  # a volume always has one
}

#: Sizes in bytes; ``none`` and 0 are the same.
_SIZES = frozenset(
    {
        "quota", "recordsize", "refquota", "refreservation", "reservation", "special_small_blocks", "volblocksize",
        "volsize",
    }
)  # fmt: skip

#: Counts. ``none`` is "no limit", which 0 is not: it allows none at all.
_COUNTS = frozenset({"filesystem_limit", "pbkdf2iters", "snapshot_limit"})

#: No limit, as zfs-get(8) -p may print it.
_UNLIMITED = str(2**64 - 1)

#: Properties that are on or off, and some that have other values beside these two.
_SWITCHES = frozenset(
    {
        "atime", "canmount", "checksum", "compression", "dedup", "devices", "encryption", "exec", "nbmand", "overlay",
        "readonly", "relatime", "setuid", "sharenfs", "sharesmb", "utf8only", "vscan", "xattr", "zoned",
    }
)  # fmt: skip

_WORDS = frozenset(
    {
        "aclinherit", "aclmode", "acltype", "casesensitivity", "context", "copies", "defcontext", "direct", "dnodesize",
        "fscontext", "keyformat", "keylocation", "logbias", "mlslabel", "mountpoint", "normalization", "prefetch",
        "primarycache", "redundant_metadata", "rootcontext", "secondarycache", "snapdev", "snapdir", "sync", "version",
        "volmode", "volthreading",
    }
)  # fmt: skip

#: Every native property that can be set.
SETTABLE = frozenset(CREATE_ONLY | set(NOT_INHERITED) | _SIZES | _COUNTS | _SWITCHES | _WORDS)

#: Values of one meaning, as they may be written -> as one of them.
_ALIASES: Mapping[str, Mapping[str, str]] = {
    "acltype": {"disabled": "off", "noacl": "off", "posixacl": "posix"},
    "aclinherit": {"secure": "restricted"},
    "compression": {"gzip": "gzip-6"},
    "encryption": {"on": "aes-256-gcm"},
    "volmode": {"geom": "full"},
    "xattr": {"sa": "on"},  # since 2.3, which prints on (zfsprops(7); it was dir before)
}

_UNITS = "BKMGTPEZ"
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([BKMGTPEZ])?(?:I?B)?", re.IGNORECASE)

#: A dataset's name: components of letters, digits and ``-_.: ``, at most 255 characters (zfs(8)); no snapshot.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.:-]*(/[A-Za-z0-9_.:-]+)*")
_USER_PROPERTY = re.compile(r"[a-z0-9_.-]*:[a-z0-9_.:-]*")


def valid_name(name: str) -> bool:
    """Whether ``name`` can be a file system's or a volume's."""
    parts = name.split("/")
    return len(name) <= 255 and _NAME.fullmatch(name) is not None and not {".", ".."} & set(parts)


def pool(name: str) -> str:
    return name.split("/", 1)[0]


def parents(name: str) -> list[str]:
    """The dataset's ancestors, the pool first."""
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def size(text: str) -> int:
    """Bytes of a size as zfs(8) takes it (``10G``, ``1.5T``, ``512``; 1024-based); ValueError otherwise."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size (such as 512, 16K, 1.5G)")
    power = _UNITS.index((match[2] or "B").upper())
    value = float(match[1]) * 1024**power if "." in match[1] else int(match[1]) * 1024**power
    return int(value)


def text(value: t.Any) -> str:
    """A value from YAML as zfs(8) takes it: booleans are on and off, None is nothing (an empty string)."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "" if value is None else str(value)


def canonical(prop: str, value: t.Any) -> str:
    """One spelling for each meaning of a property's value, on both sides of a comparison.

    ValueError when it cannot be one. User properties (with a colon) are compared as they are.
    """
    found = text(value)
    if ":" in prop:
        return found
    if prop == "refreservation" and found == "auto":
        return found
    if prop in _SIZES:
        return "0" if found in ("none", "-") else str(size(found))
    if prop in _COUNTS:
        return "none" if found in ("none", _UNLIMITED, "-") else str(int(found))
    lower = found.lower()
    if prop in _SWITCHES and lower in ("yes", "true", "on"):
        found = "on"
    elif prop in _SWITCHES and lower in ("no", "false", "off"):
        found = "off"
    elif prop == "mountpoint" and found.startswith("/"):
        found = found.rstrip("/") or "/"
    return _ALIASES.get(prop, {}).get(found, found)


def argument(prop: str, value: str) -> str:
    """A canonical value as zfs-set(8) takes it: it refuses 0 for "no quota" (measured with 2.3.9)."""
    return "none" if value == "0" and NOT_INHERITED.get(prop) == "none" and prop in _SIZES else value


def problem(prop: str, value: t.Any) -> str:
    """Why a property cannot be declared with this value; empty when it can, as far as ZFS' own rules are known here."""
    if ":" in prop:
        if _USER_PROPERTY.fullmatch(prop) is None or len(prop) > 255:
            return f"{prop} is not a user property's name (lower-case letters, digits and -_.: are allowed)"
        if prop.startswith(PREFIX):
            return f"{prop} is Hearth's own"
        return ""
    if prop not in SETTABLE and "quota@" not in prop:
        return f"there is no property {prop} that can be set"
    if value is None:
        return (
            f"{prop} is set once, when the dataset is made, and has no inherited value" if prop in CREATE_ONLY else ""
        )
    try:
        canonical(prop, value)
    except ValueError as error:
        return f"{prop}: {error}"
    if prop == "mountpoint" and not (text(value).startswith("/") or text(value) in ("none", "legacy")):
        return f"mountpoint: {value!r} is neither an absolute path nor none nor legacy"
    return ""


@dataclass(frozen=True)
class Property:
    """A value with where it comes from (zfs-get(8)): ``local``, ``default``, ``received``, ``inherited from X``, ``-``."""

    value: str
    source: str = "-"

    @property
    def local(self) -> bool:
        return self.source == "local"


@dataclass(frozen=True)
class Dataset:
    """A file system or volume as it is. ``properties`` are those that were asked for, and all user properties."""

    name: str
    properties: Mapping[str, Property] = field(default_factory=dict)

    def value(self, prop: str, default: str = "") -> str:
        found = self.properties.get(prop)
        return default if found is None or found.value == "-" else found.value

    def local(self, prop: str) -> str:
        """The value that was set on this very dataset, else empty: what children inherit says nothing about them."""
        found = self.properties.get(prop)
        return found.value if found is not None and found.local else ""

    @property
    def guid(self) -> str:
        return self.value("guid")

    @property
    def type(self) -> str:
        return self.value("type", "filesystem")

    @property
    def mounted(self) -> bool:
        return self.value("mounted") == "yes"

    @property
    def locked(self) -> bool:
        """Encrypted, and its key is not loaded."""
        return self.value("keystatus") == "unavailable"

    @property
    def managed(self) -> frozenset[str]:
        return frozenset(filter(None, self.local(MANAGED).split(",")))


def parse_get(output: str) -> dict[str, Dataset]:
    """Datasets by name, from ``zfs get -Hp -o name,property,value,source``. ValueError for anything else."""
    found: dict[str, dict[str, Property]] = {}
    for line in output.splitlines():
        parts = line.split("\t")
        if len(parts) < 4:
            raise ValueError(f"zfs get printed a line that is not understood: {line!r}")
        # A value (a user property's) may have tabulators itself.
        name, prop, source = parts[0], parts[1], parts[-1]
        found.setdefault(name, {})[prop] = Property("\t".join(parts[2:-1]), source)
    return {name: Dataset(name, properties) for name, properties in found.items()}


_MISSING = re.compile(r"cannot open '([^']+)': dataset does not exist")


def missing(stderr: str) -> tuple[set[str], list[str]]:
    """What zfs(8) said of names that do not exist, and everything else that it said."""
    absent, other = set(), []
    for line in stderr.splitlines():
        match = _MISSING.search(line)
        if match:
            absent.add(match[1])
        elif line.strip():
            other.append(line.strip())
    return absent, other


@dataclass(frozen=True)
class Delegation:
    """Who may do what: ``kind`` is user, group or everyone (``name`` empty), ``scope`` local, descendent or both."""

    kind: str
    name: str
    scope: str = "both"

    @property
    def arguments(self) -> tuple[str, ...]:
        """For zfs-allow(8) and zfs-unallow(8)."""
        scope = {"local": ("-l",), "descendent": ("-d",), "both": ()}[self.scope]
        return (
            (*scope, "-e") if self.kind == "everyone" else (*scope, {"user": "-u", "group": "-g"}[self.kind], self.name)
        )


_ALLOW_DATASET = re.compile(r"---- Permissions on (\S+) -+")
_ALLOW_SCOPES = {
    "Local permissions:": "local",
    "Descendent permissions:": "descendent",
    "Local+Descendent permissions:": "both",
}
_ALLOW_WHO = re.compile(r"\s+(?:(user|group) (\S+)|(everyone)) (\S+)")


def parse_allow(output: str, name: str) -> dict[Delegation, frozenset[str]]:
    """Permissions delegated on dataset ``name`` itself, from ``zfs allow NAME`` (which also shows its ancestors').

    Permission sets and create-time permissions are not Hearth's and are left out.
    """
    found: dict[Delegation, frozenset[str]] = {}
    here, scope = False, ""
    for line in output.splitlines():
        start = _ALLOW_DATASET.match(line)
        if start:
            here, scope = start[1] == name, ""
        elif line and not line[0].isspace():
            scope = _ALLOW_SCOPES.get(line.strip(), "")
        elif here and scope:
            who = _ALLOW_WHO.fullmatch(line.rstrip())
            if who:
                delegation = Delegation(who[1] or "everyone", who[2] or "", scope)
                found[delegation] = found.get(delegation, frozenset()) | frozenset(who[4].split(","))
    return found


def join(items: Iterable[str]) -> str:
    return ",".join(sorted(items))
