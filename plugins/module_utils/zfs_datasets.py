# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host's tree of ZFS datasets: read at once, planned without I/O, applied parents before children.

However many datasets there are, reading takes one ``zfs get`` (and one ``zfs list`` when something shall be absent,
one ``zfs allow`` for each dataset with delegations). Standard library only: this module runs on hosts.
"""

from __future__ import annotations

import os
import stat
import typing as t
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ansible_collections.hearth.homelab.plugins.module_utils import zfs
from ansible_collections.hearth.homelab.plugins.module_utils.runner import CommandError, Runner, explain

#: Read beside the declared properties: what a plan needs to know of a dataset.
FACTS: tuple[str, ...] = (
    "type", "guid", "mounted", "mountpoint", "canmount", "keystatus", "keylocation", "encryptionroot", "origin",
    "receive_resume_token", "readonly", "available", zfs.MANAGED,
)  # fmt: skip

#: Seconds for one command: a pool that is busy with a scrub answers slowly.
TIMEOUT = 600.0

#: What a dataset that shall be absent may have, if its declaration says so.
DESTROYABLE = ("content", "snapshots", "children")


@dataclass(frozen=True)
class Desired:
    """A dataset as it shall be. A property whose value is None returns to its inherited value.

    ``mode`` is octal text. ``destroy`` are words of DESTROYABLE.
    """

    name: str
    properties: Mapping[str, t.Any] = field(default_factory=dict)
    owner: str | None = None
    group: str | None = None
    mode: str | None = None
    absent: bool = False
    destroy: frozenset[str] = frozenset()

    @property
    def volume(self) -> bool:
        return "volsize" in self.properties


@dataclass(frozen=True)
class Mountpoint:
    """The directory where a dataset is, or would be, mounted. ``entries`` are the first names in it."""

    exists: bool = False
    uid: int = -1
    gid: int = -1
    mode: int = -1  # permission bits
    entries: tuple[str, ...] = ()
    directory: bool = True


@dataclass(frozen=True)
class Snapshot:
    name: str
    holds: int = 0
    clones: tuple[str, ...] = ()


@dataclass
class Current:
    """What is there: datasets by name; mount points by path; delegations and what is below a dataset by its name."""

    datasets: dict[str, zfs.Dataset] = field(default_factory=dict)
    mountpoints: dict[str, Mountpoint] = field(default_factory=dict)
    snapshots: dict[str, tuple[Snapshot, ...]] = field(default_factory=dict)
    children: dict[str, tuple[str, ...]] = field(default_factory=dict)
    delegations: dict[str, dict[zfs.Delegation, frozenset[str]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)  # what ZFS itself said


@dataclass(frozen=True)
class Step:
    """One command, or one change of a mount point's attributes (``chown`` and ``chmod`` without argv).

    ``before`` and ``after`` are for people. ``key`` names the key that travels in the command's standard input.
    """

    dataset: str
    operation: str  # create, set, inherit, mount, load-key, attributes, destroy, allow, unallow
    argv: tuple[str, ...] = ()
    before: Mapping[str, t.Any] = field(default_factory=dict)
    after: Mapping[str, t.Any] = field(default_factory=dict)
    key: str = ""
    path: str = ""

    def to_dict(self) -> dict[str, t.Any]:
        return {
            "dataset": self.dataset,
            "operation": self.operation,
            "before": dict(self.before),
            "after": dict(self.after),
        }


@dataclass
class Plan:
    steps: list[Step] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Identities(t.Protocol):
    """Numbers of users and groups; KeyError for one that does not exist (yet)."""

    def uid(self, name: str) -> int: ...

    def gid(self, name: str) -> int: ...


class SystemIdentities:
    """Those of this host; a number is itself."""

    def uid(self, name: str) -> int:
        import pwd

        return int(name) if name.isdigit() else pwd.getpwnam(name).pw_uid

    def gid(self, name: str) -> int:
        import grp

        return int(name) if name.isdigit() else grp.getgrnam(name).gr_gid


# --- what people declare ----------------------------------------------------------------------------------------------

_DATASET_KEYS = ("properties", "owner", "group", "mode", "state", "destroy")
_DELEGATION_KEYS = ("users", "groups", "everyone", "scope")


def declared(
    datasets: Mapping[str, t.Any], delegations: Mapping[str, t.Any]
) -> tuple[list[Desired], dict[str, dict[zfs.Delegation, frozenset[str]]]]:
    """The declaration as plain data (module ``zfs_datasets``) -> datasets and permissions.

    ValueError with one line for each thing that is wrong.
    """
    problems: list[str] = []
    found = []
    for name, value in datasets.items():
        data = _mapping(f"datasets.{name}", value, _DATASET_KEYS, problems)
        destroy = data.get("destroy") or []
        state = data.get("state") or "present"
        properties = data.get("properties") or {}
        if state not in ("present", "absent"):
            problems.append(f"datasets.{name}.state: {state!r} is neither present nor absent")
        if not isinstance(destroy, list) or set(destroy) - set(DESTROYABLE):
            problems.append(
                f"datasets.{name}.destroy: a list of {', '.join(DESTROYABLE)} is expected, found {destroy!r}"
            )
            destroy = []
        if not isinstance(properties, Mapping):
            problems.append(f"datasets.{name}.properties: a dictionary is expected, found {properties!r}")
            properties = {}
        mode = data.get("mode")
        if mode is not None and not isinstance(mode, str):
            problems.append(f'datasets.{name}.mode: write it in quotation marks ("0750"), YAML made {mode!r} of it')
            mode = None
        owner, group = (None if data.get(key) is None else str(data[key]) for key in ("owner", "group"))
        found.append(Desired(str(name), properties, owner, group, mode, state == "absent", frozenset(destroy)))
    permissions = {}
    for name, value in delegations.items():
        where = f"delegations.{name}"
        data = _mapping(where, value, _DELEGATION_KEYS, problems)
        scope = data.get("scope") or "both"
        if scope not in ("local", "descendent", "both"):
            problems.append(f"{where}.scope: {scope!r} is none of local, descendent, both")
            continue
        entries: dict[zfs.Delegation, frozenset[str]] = {}
        for kind, key in (("user", "users"), ("group", "groups")):
            for who, rights in _mapping(f"{where}.{key}", data.get(key) or {}, None, problems).items():
                entries[zfs.Delegation(kind, str(who), scope)] = _permissions(f"{where}.{key}.{who}", rights, problems)
        if data.get("everyone"):
            rights = _permissions(f"{where}.everyone", data["everyone"], problems)
            entries[zfs.Delegation("everyone", "", scope)] = rights
        permissions[str(name)] = {who: rights for who, rights in entries.items() if rights}
    if problems:
        raise ValueError("\n".join(problems))
    return found, permissions


def _mapping(where: str, value: t.Any, keys: Sequence[str] | None, problems: list[str]) -> Mapping[str, t.Any]:
    if not isinstance(value, Mapping):
        problems.append(f"{where}: a dictionary is expected, found {value!r}")
        return {}
    for key in value:
        if keys is not None and key not in keys:
            problems.append(f"{where}: there is no {key!r}; there are {', '.join(keys)}")
    return value


def _permissions(where: str, value: t.Any, problems: list[str]) -> frozenset[str]:
    if not isinstance(value, list) or not all(isinstance(entry, str) and entry for entry in value):
        problems.append(f"{where}: a list of permissions is expected (zfs-allow(8)), found {value!r}")
        return frozenset()
    return frozenset(value)


# --- reading ----------------------------------------------------------------------------------------------------------


def read(
    runner: Runner,
    desired: Sequence[Desired],
    delegations: Sequence[str] = (),
    *,
    root: str = "/",
) -> Current:
    """Everything that ``plan`` looks at. CommandError when ZFS cannot be asked at all."""
    names = sorted({name for item in desired for name in (*zfs.parents(item.name), item.name)} | set(delegations))
    current = Current()
    if not names:
        return current
    properties = sorted({*FACTS, *(prop for item in desired for prop in item.properties)})
    current.datasets = get(runner, names, properties, current.problems)
    # What was set once and is not declared any more is known only by its name.
    further = sorted({prop for dataset in current.datasets.values() for prop in dataset.managed} - set(properties))
    if further:
        for name, dataset in get(runner, sorted(current.datasets), further, current.problems).items():
            known = current.datasets[name]
            current.datasets[name] = replace(known, properties={**known.properties, **dataset.properties})
    gone = [item.name for item in desired if item.absent and item.name in current.datasets]
    if gone:
        _read_below(runner, gone, current)
    for item in desired:
        path = mountpoint(item, current)
        if path:
            current.mountpoints[path] = read_mountpoint(path, root)
    for name in delegations:
        if name in current.datasets:
            done = runner.run(["zfs", "allow", name], timeout=TIMEOUT)
            current.delegations[name] = zfs.parse_allow(done.stdout, name)
    return current


def get(runner: Runner, names: Sequence[str], properties: Sequence[str], problems: list[str]) -> dict[str, zfs.Dataset]:
    """One ``zfs get`` for all of them. Those that do not exist are left out; what else ZFS says goes to ``problems``."""
    columns = "name,property,value,source"
    argv = ["zfs", "get", "-Hp", "-t", "filesystem,volume", "-o", columns, ",".join(properties), *names]
    done = runner.run(argv, timeout=TIMEOUT, check=False)
    _absent, other = zfs.missing(done.stderr)
    if done.returncode and (other or done.returncode not in (0, 1)):
        if done.missing or not done.stdout:
            raise CommandError(done)
        problems += other
    return zfs.parse_get(done.stdout)


def _read_below(runner: Runner, names: Sequence[str], current: Current) -> None:
    """Children and snapshots of datasets that shall be absent, with holds and clones."""
    done = runner.run(
        ["zfs", "list", "-Hp", "-r", "-t", "filesystem,volume,snapshot", "-o", "name,userrefs,clones", *names],
        timeout=TIMEOUT,
    )
    for name in names:
        current.snapshots[name], current.children[name] = (), ()
    for line in done.stdout.splitlines():
        found, holds, clones = line.split("\t")
        dataset, at, _snapshot = found.partition("@")
        for name in names:
            inside = dataset.startswith(f"{name}/")
            if at and (inside or dataset == name):
                origin = tuple(clone for clone in clones.split(",") if clone not in ("", "-"))
                current.snapshots[name] += (Snapshot(found, int(holds) if holds.isdigit() else 0, origin),)
            elif inside:
                current.children[name] += (found,)


def read_mountpoint(path: str, root: str = "/") -> Mountpoint:
    """The directory at ``path`` below ``root``; OSError when it cannot be read."""
    real = path if root == "/" else os.path.join(root, path.lstrip("/"))
    try:
        status = os.lstat(real)
    except (FileNotFoundError, NotADirectoryError):
        return Mountpoint()
    if not stat.S_ISDIR(status.st_mode):
        return Mountpoint(True, directory=False)
    entries: list[str] = []
    with os.scandir(real) as listing:
        for entry in listing:
            entries.append(entry.name)
            if len(entries) == 4:
                break
    return Mountpoint(True, status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode), tuple(sorted(entries)))


def mountpoint(item: Desired, current: Current) -> str:
    """Where the dataset is or will be mounted; empty when nowhere (a volume, none, legacy)."""
    if item.volume:
        return ""
    declared = item.properties.get("mountpoint")
    if declared is not None:
        path = zfs.canonical("mountpoint", declared)
        return path if path.startswith("/") else ""
    known = current.datasets.get(item.name)
    if known is not None and "mountpoint" not in item.properties:
        path = known.value("mountpoint")
        return path if path.startswith("/") else ""
    # Inherited from the nearest ancestor that exists, with the rest of the name behind it (zfsprops(7)).
    for ancestor in reversed(zfs.parents(item.name)):
        if ancestor in current.datasets:
            path = current.datasets[ancestor].value("mountpoint")
            return f"{path.rstrip('/')}/{item.name[len(ancestor) + 1 :]}" if path.startswith("/") else ""
    return ""


# --- planning ---------------------------------------------------------------------------------------------------------


def plan(
    current: Current,
    desired: Sequence[Desired],
    delegations: Mapping[str, Mapping[zfs.Delegation, frozenset[str]]] | None = None,
    *,
    keys: frozenset[str] = frozenset(),
    identities: Identities | None = None,
) -> Plan:
    """What makes ``current`` as ``desired``. Nothing is to be done when there is a problem.

    ``keys`` are the datasets whose encryption key is at hand. Creation and properties go parents first, destruction
    children first.
    """
    result = Plan(problems=list(current.problems))
    numbers = identities or SystemIdentities()
    present = sorted((item for item in desired if not item.absent), key=lambda item: item.name.split("/"))
    absent = sorted((item for item in desired if item.absent), key=lambda item: item.name.split("/"), reverse=True)
    coming = {item.name for item in present}
    for item in desired:
        result.problems += [f"{item.name}: {found}" for found in _invalid(item)]
    if result.problems:
        return result
    for item in present:
        pool = zfs.pool(item.name)
        if pool not in current.datasets:
            result.problems.append(
                f"{item.name}: there is no pool {pool} on this host. Import it (zpool import {pool}), or create it"
            )
            continue
        if item.name in current.datasets:
            _plan_existing(item, current, keys, result)
        else:
            _plan_creation(item, current, coming, keys, result)
        _plan_attributes(item, current, numbers, result)
    for item in absent:
        _plan_absence(item, current, coming, result)
    for name, wanted in sorted((delegations or {}).items()):
        _plan_delegations(name, wanted, current, coming, result)
    return result


def _invalid(item: Desired) -> list[str]:
    found = []
    if not zfs.valid_name(item.name):
        found.append("this is not a dataset's name")
    for prop, value in item.properties.items():
        why = zfs.problem(prop, value)
        if why:
            found.append(why)
    if item.volume and (item.owner or item.group or item.mode or "mountpoint" in item.properties):
        found.append("a volume has no owner, group, mode or mountpoint")
    if item.mode is not None and not (item.mode and set(item.mode) <= set("01234567") and len(item.mode) <= 5):
        found.append(f"mode {item.mode!r} is not an octal mode such as 0750")
    return found


def _declared(item: Desired) -> dict[str, str]:
    """Properties to set, in one spelling."""
    return {prop: zfs.canonical(prop, value) for prop, value in item.properties.items() if value is not None}


def _plan_creation(item: Desired, current: Current, coming: set[str], keys: frozenset[str], result: Plan) -> None:
    missing = [name for name in zfs.parents(item.name) if name not in current.datasets and name not in coming]
    if missing:
        result.problems.append(f"{item.name}: its parent {missing[-1]} does not exist and is not declared")
        return
    path = mountpoint(item, current)
    at = current.mountpoints.get(path, Mountpoint())
    mounts = item.properties.get("canmount", True) in (True, "on", "yes", "true")
    if path and mounts and at.exists and (at.entries or not at.directory):
        there = (
            ", ".join(at.entries[:3]) + (" ..." if len(at.entries) > 3 else "") if at.directory else "not a directory"
        )
        result.problems.append(
            f"{item.name}: its mount point {path} is not empty ({there}); the dataset would hide that. Move it away or "
            "adopt it"
        )
        return
    encrypted = zfs.text(item.properties.get("encryption", "off")).lower() not in ("off", "false", "no", "")
    prompt = encrypted and zfs.text(item.properties.get("keylocation", "prompt")) == "prompt"
    if prompt and "keyformat" in item.properties and item.name not in keys:
        result.problems.append(f"{item.name}: an encrypted dataset needs its key (keys)")
        return
    declared = _declared(item)
    after, managed = dict(declared), zfs.join(declared)
    options: list[str] = []
    if item.volume:
        options += ["-V", declared.pop("volsize")]
        if declared.get("refreservation") == "0":
            options.append("-s")  # sparse
    for prop, value in sorted(declared.items()):
        options += ["-o", f"{prop}={zfs.argument(prop, value)}"]
    if managed:
        options += ["-o", f"{zfs.MANAGED}={managed}"]
    key = item.name if prompt and item.name in keys else ""
    result.steps.append(Step(item.name, "create", ("zfs", "create", *options, item.name), {}, after, key))


def _plan_existing(item: Desired, current: Current, keys: frozenset[str], result: Plan) -> None:
    dataset = current.datasets[item.name]
    if (dataset.type == "volume") != item.volume:
        wanted = "volume" if item.volume else "file system"
        result.problems.append(f"{item.name} is a {dataset.type}, a {wanted} is declared; neither becomes the other")
        return
    if dataset.value("receive_resume_token"):
        result.problems.append(f"{item.name} is being received (it has a resume token): finish or abort that first")
        return
    if dataset.locked:
        if item.name in keys:
            result.steps.append(
                Step(item.name, "load-key", ("zfs", "load-key", "-L", "prompt", item.name), key=item.name)
            )
        elif dataset.value("encryptionroot") == item.name:
            result.problems.append(
                f"{item.name} is encrypted and its key is not loaded: give it (keys), or zfs load-key"
            )
            return
    declared = _declared(item)
    change: dict[str, str] = {}
    before: dict[str, str] = {}
    for prop, value in sorted(declared.items()):
        found = dataset.properties.get(prop, zfs.Property("-"))
        same = zfs.canonical(prop, found.value) == value
        if prop in zfs.CREATE_ONLY:
            if not same:
                result.problems.append(
                    f"{item.name}: {prop} is {found.value} and is set once, when a dataset is made. To have {value}, make "
                    "another dataset and copy the data"
                )
            continue
        if prop == "volsize" and not same and int(value) < int(found.value):
            result.problems.append(
                f"{item.name}: volsize {found.value} cannot shrink to {value}: data would be cut off"
            )
            continue
        # A property that is inherited, received or a default follows somebody else's decision.
        if not same or (prop not in zfs.NOT_INHERITED and not found.local):
            change[prop] = value
            before[prop] = found.value if not same else f"{found.value} ({found.source})"
    inherit = [prop for prop, value in item.properties.items() if value is None]
    inherit += sorted(dataset.managed - set(item.properties))
    for prop in dict.fromkeys(inherit):
        if prop not in dataset.properties or prop in zfs.CREATE_ONLY:
            continue
        found = dataset.properties[prop]
        if prop in zfs.NOT_INHERITED:
            cleared = zfs.NOT_INHERITED[prop]
            if cleared and zfs.canonical(prop, found.value) != zfs.canonical(prop, cleared):
                change[prop], before[prop] = cleared, found.value
        elif found.local:
            result.steps.append(
                Step(
                    item.name, "inherit", ("zfs", "inherit", prop, item.name), {prop: found.value}, {prop: "inherited"}
                )
            )
    managed = zfs.join(declared)
    arguments = [f"{prop}={zfs.argument(prop, value)}" for prop, value in sorted(change.items())]
    if managed and dataset.local(zfs.MANAGED) != managed:
        arguments.append(f"{zfs.MANAGED}={managed}")
    if arguments:
        result.steps.append(Step(item.name, "set", ("zfs", "set", *arguments, item.name), before, change))
    if not managed and dataset.local(zfs.MANAGED):
        result.steps.append(Step(item.name, "inherit", ("zfs", "inherit", zfs.MANAGED, item.name)))
    _plan_mount(item, dataset, declared, current, result)


def _plan_mount(
    item: Desired, dataset: zfs.Dataset, declared: Mapping[str, str], current: Current, result: Plan
) -> None:
    """A file system that mounts by itself is mounted, unless what is at its mount point would be hidden."""
    canmount = declared.get("canmount", dataset.value("canmount", "on"))
    path = mountpoint(item, current)
    if item.volume or dataset.mounted or canmount != "on" or not path:
        return
    at = current.mountpoints.get(path, Mountpoint())
    if at.entries or not at.directory:
        there = ", ".join(at.entries[:3]) if at.directory else "not a directory"
        result.problems.append(
            f"{item.name} is not mounted, and its mount point {path} is not empty ({there}): look which of both is the "
            "data, then move the other away"
        )
        return
    # zfs set mountpoint= of a dataset that is not mounted does not mount it; zfs mount is refused when it is.
    result.steps.append(Step(item.name, "mount", ("zfs", "mount", item.name), {"mounted": "no"}, {"mounted": "yes"}))


def _plan_attributes(item: Desired, current: Current, numbers: Identities, result: Plan) -> None:
    if item.owner is None and item.group is None and item.mode is None:
        return
    path = mountpoint(item, current)
    if not path:
        result.problems.append(f"{item.name}: it is mounted nowhere, so it has no owner, group or mode")
        return
    dataset = current.datasets.get(item.name)
    known = current.mountpoints.get(path, Mountpoint()) if dataset is not None and dataset.mounted else Mountpoint()
    before: dict[str, t.Any] = {}
    after: dict[str, t.Any] = {}
    try:
        wanted = {
            "owner": (item.owner, numbers.uid(item.owner) if item.owner is not None else None, known.uid),
            "group": (item.group, numbers.gid(item.group) if item.group is not None else None, known.gid),
        }
    except KeyError as error:
        result.problems.append(f"{item.name}: there is no user or group {error.args[0]!r} on this host")
        return
    for kind, (name, number, found) in wanted.items():
        if name is not None and number != found:
            after[kind] = name
            if found >= 0:
                before[kind] = found
    if item.mode is not None and int(item.mode, 8) != known.mode:
        after["mode"] = f"{int(item.mode, 8):04o}"
        if known.mode >= 0:
            before["mode"] = f"{known.mode:04o}"
    if after:
        result.steps.append(Step(item.name, "attributes", (), before, after, path=path))


def _plan_absence(item: Desired, current: Current, coming: set[str], result: Plan) -> None:
    dataset = current.datasets.get(item.name)
    if dataset is None:
        return
    name = item.name
    children = current.children.get(name, ())
    snapshots = current.snapshots.get(name, ())
    clones = sorted({clone for snapshot in snapshots for clone in snapshot.clones} - {name, *children})
    held = [snapshot.name for snapshot in snapshots if snapshot.holds]
    kept = sorted(coming & set(children))
    why = []
    if "/" not in name:
        why.append("it is a pool's root: a pool is never destroyed from here")
    if kept:
        why.append(f"{kept[0]} below it is declared")
    if clones:
        why.append(f"{clones[0]} is a clone of its snapshots (zfs promote makes that one independent)")
    if held:
        why.append(f"{held[0]} is held (zfs holds shows by whom)")
    if children and "children" not in item.destroy:
        why.append(f"it has children ({', '.join(children[:3])}): say destroy: [children]")
    if snapshots and "snapshots" not in item.destroy:
        why.append(f"it has {len(snapshots)} snapshots (newest {snapshots[-1].name}): say destroy: [snapshots]")
    if "content" not in item.destroy:
        at = current.mountpoints.get(dataset.value("mountpoint"), Mountpoint())
        if dataset.type == "volume":
            why.append("a volume's content cannot be judged: say destroy: [content]")
        elif not dataset.mounted:
            why.append("it is not mounted, so nobody can say that it is empty: say destroy: [content]")
        elif at.entries:
            why.append(f"it is not empty ({', '.join(at.entries[:3])}): say destroy: [content]")
    if why:
        result.problems.append(f"{name} is not destroyed: {'; '.join(why)}")
        return
    recursive = ("-r",) if children or snapshots else ()
    before = {"children": list(children), "snapshots": len(snapshots)}
    # Something may have been made since it was read: -r only where that was allowed, and never -R (dependents).
    result.steps.append(Step(name, "destroy", ("zfs", "destroy", *recursive, name), before, {}))


def _plan_delegations(
    name: str,
    wanted: Mapping[zfs.Delegation, frozenset[str]],
    current: Current,
    coming: set[str],
    result: Plan,
) -> None:
    """Exactly the declared permissions for users, groups and everyone on this dataset."""
    if name not in current.datasets and name not in coming:
        result.problems.append(f"{name}: permissions cannot be delegated on a dataset that does not exist")
        return
    found = current.delegations.get(name, {})
    for who in sorted({*found, *wanted}, key=lambda entry: (entry.kind, entry.name, entry.scope)):
        have, want = found.get(who, frozenset()), wanted.get(who, frozenset())
        for operation, permissions in (("unallow", have - want), ("allow", want - have)):
            if permissions:
                argv = ("zfs", operation, *who.arguments, zfs.join(permissions), name)
                label = f"{who.kind} {who.name}".strip()
                step = Step(name, operation, argv, {label: sorted(have)}, {label: sorted(want)})
                result.steps.append(step)


def diff(steps: Sequence[Step]) -> list[dict[str, t.Any]]:
    """For ``--diff``: one entry for each dataset, with every value that changes."""
    entries: dict[str, dict[str, t.Any]] = {}
    for step in steps:
        entry = entries.setdefault(step.dataset, {"before_header": step.dataset, "after_header": step.dataset})
        for side, values in (("before", step.before), ("after", step.after)):
            lines = [f"{step.operation} {key}: {value}\n" for key, value in sorted(values.items())]
            entry[side] = entry.get(side, "") + "".join(lines)
    return list(entries.values())


# --- applying ---------------------------------------------------------------------------------------------------------


class StepError(Exception):
    """A step that failed; those before it were applied, those after it not."""

    def __init__(self, step: Step, reason: str) -> None:
        self.step = step
        super().__init__(f"{step.dataset}: {step.operation} failed: {reason}")


def apply(
    runner: Runner,
    steps: Sequence[Step],
    *,
    keys: Mapping[str, str] | None = None,
    identities: Identities | None = None,
    root: str = "/",
) -> list[Step]:
    """Perform the steps in order and return them. StepError at the first that fails.

    What a creation or a mount makes true may make a later ``mount`` step needless: that is asked, not assumed.
    """
    numbers = identities or SystemIdentities()
    done = []
    for step in steps:
        if step.operation == "attributes":
            try:
                _set_attributes(step, numbers, root)
            except (OSError, KeyError) as error:
                raise StepError(step, str(error)) from error
        else:
            secret = (keys or {}).get(step.key, "") if step.key else ""
            completed = runner.run(
                step.argv, input=(secret + "\n").encode() if step.key else None, timeout=TIMEOUT, check=False
            )
            if completed.returncode and not (
                step.operation == "mount" and "filesystem already mounted" in completed.stderr
            ):
                raise StepError(step, explain(completed))
        done.append(step)
    return done


def _set_attributes(step: Step, numbers: Identities, root: str) -> None:
    """Owner and mode of a mount point's root, never of what is below it."""
    real = step.path if root == "/" else os.path.join(root, step.path.lstrip("/"))
    handle = os.open(real, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        uid = numbers.uid(str(step.after["owner"])) if "owner" in step.after else -1
        gid = numbers.gid(str(step.after["group"])) if "group" in step.after else -1
        if uid >= 0 or gid >= 0:
            os.fchown(handle, uid, gid)
        if "mode" in step.after:
            os.fchmod(handle, int(step.after["mode"], 8))
    finally:
        os.close(handle)
