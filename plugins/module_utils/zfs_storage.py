# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Storage of provider ``zfs``: a dataset for each, with mark and sentinel in user properties.

Design section 6. The mark is ``hearth.homelab:mark=HOST/SERVICE/GUID`` and the sentinel
``hearth.homelab:sentinel=GUID``, both of source ``local`` and naming the dataset's own guid: a child inherits the
properties, a replica receives them and a clone copies them, and none of these is the storage that was marked.
Standard library only: this module runs on hosts.
"""

from __future__ import annotations

import typing as t
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.module_utils import storage, zfs, zfs_datasets
from ansible_collections.hearth.homelab.plugins.module_utils.runner import CommandError, Runner

MARK = zfs.PREFIX + "mark"
SENTINEL = zfs.PREFIX + "sentinel"

#: Further user properties that the engine reads.
_PROPERTIES = (MARK, SENTINEL)

Names = tuple[Mapping[int, str], Mapping[int, str]]


def desired(item: m.Storage) -> zfs_datasets.Desired:
    """The dataset of a storage item. Owner and mode are the item's own business: it may be somebody else's data."""
    return zfs_datasets.Desired(item.dataset, {"mountpoint": item.name, **item.properties})


def read(
    items: Iterable[m.Storage],
    runner: Runner,
    ledger: Mapping[str, storage.LedgerEntry],
    *,
    root: str = "/",
    names: Names = ({}, {}),
) -> tuple[dict[str, storage.StorageFacts], zfs_datasets.Current]:
    """What is there for each storage, by its path, with what ``plan`` needs. One ``zfs get`` for all of them."""
    found: dict[str, storage.StorageFacts] = {}
    wanted = sorted(items, key=lambda item: item.name)
    try:
        current = zfs_datasets.read(runner, [_asked(item) for item in wanted], root=root)
    except (CommandError, OSError, ValueError) as error:
        reason = f"ZFS cannot be asked: {error}"
        return {item.name: storage.StorageFacts(item.name, error=reason) for item in wanted}, zfs_datasets.Current()
    for item in wanted:
        # Where the dataset is mounted, the directory is its root; else it is what would be hidden by it.
        plain = storage.read_storage_facts(item.name, root, ledger=ledger, names=names)
        found[item.name] = facts(item, current, plain)
    return found, current


def read_all(
    items: Iterable[m.Storage],
    runner: Runner,
    ledger: Mapping[str, storage.LedgerEntry],
    *,
    root: str = "/",
    names: Names = ({}, {}),
) -> dict[str, storage.StorageFacts]:
    """Facts of storage by path, whatever its provider."""
    entries = list(items)
    found = {
        item.name: storage.read_storage_facts(item.name, root, ledger=ledger, names=names)
        for item in entries
        if item.provider != "zfs"
    }
    datasets = [item for item in entries if item.provider == "zfs"]
    return {**found, **(read(datasets, runner, ledger, root=root, names=names)[0] if datasets else {})}


def _asked(item: m.Storage) -> zfs_datasets.Desired:
    """Marks are read with the rest: declared as properties whose value nobody compares."""
    entry = desired(item)
    return replace(entry, properties={**dict.fromkeys(_PROPERTIES), **entry.properties})


def facts(item: m.Storage, current: zfs_datasets.Current, plain: storage.StorageFacts) -> storage.StorageFacts:
    """A storage's facts from those of its dataset and of the directory at its path."""
    if plain.error:
        return plain
    if current.problems:
        return replace(plain, error="; ".join(current.problems))
    pool = zfs.pool(item.dataset)
    dataset = current.datasets.get(item.dataset)
    plain = replace(plain, dataset=item.dataset, directory_mark=plain.mark is not None)
    if dataset is None:
        if pool not in current.datasets:
            return replace(plain, error=f"there is no pool {pool} on this host; import it (zpool import {pool})")
        # A directory with content, marked or not, is not what is declared: nothing is mounted over it.
        return replace(plain, mark=None, exists=plain.exists and not plain.empty)
    if dataset.type != "filesystem":
        return replace(plain, error=f"{item.dataset} is a {dataset.type}, not a file system")
    mark = mark_of(dataset)
    away = _away(item, dataset)
    known = replace(
        plain,
        mark=mark,
        foreign="" if mark is not None else _foreign(dataset, plain),
        guid=dataset.guid,
        away=away,
        exists=True,
        is_directory=True,
        is_symlink=False,
    )
    # What is in a dataset that is away cannot be seen: that is never "empty". What is in the directory under it is
    # somebody's.
    return replace(known, empty=False, entries=(), beneath=plain.entries) if away else known


def mark_of(dataset: zfs.Dataset) -> storage.Mark | None:
    """Our mark, if it was set on this very dataset."""
    parts = dataset.local(MARK).split("/")
    if len(parts) != 3 or not all(parts) or parts[2] != dataset.guid:
        return None
    return storage.Mark(parts[0], parts[1], dataset.guid, dataset.local(SENTINEL) == dataset.guid)


def _foreign(dataset: zfs.Dataset, plain: storage.StorageFacts) -> str:
    """Why a dataset without our mark is somebody's, beside what is in it."""
    if dataset.value("receive_resume_token"):
        return "it is being received"
    if dataset.value("origin"):
        return f"it is a clone of {dataset.value('origin')}"
    if dataset.local(MARK):
        return f"its mark {dataset.local(MARK)} names another dataset"
    if dataset.value(MARK) and dataset.properties[MARK].source == "received":
        return f"it was received, with the mark {dataset.value(MARK)}"
    if plain.foreign and dataset.mounted:
        return plain.foreign
    return ""


def _away(item: m.Storage, dataset: zfs.Dataset) -> str:
    """Why the dataset's content is not at the storage's path; empty when it is."""
    if dataset.locked:
        return f"{item.dataset} is encrypted and its key is not loaded"
    if not dataset.mounted:
        return f"{item.dataset} is not mounted"
    if zfs.canonical("mountpoint", dataset.value("mountpoint")) != zfs.canonical("mountpoint", item.name):
        return f"{item.dataset} is mounted at {dataset.value('mountpoint')}, not at {item.name}"
    return ""


def plan(item: m.Storage, current: zfs_datasets.Current, state: storage.State) -> zfs_datasets.Plan:
    """Steps for a dataset that is ours or is to be made; found data is never re-propertied."""
    if state not in ("new", "data", "empty_marked", "away"):
        return zfs_datasets.Plan()
    return zfs_datasets.plan(current, [*_parents(item, current), desired(item)])


def _parents(item: m.Storage, current: zfs_datasets.Current) -> Sequence[zfs_datasets.Desired]:
    """Ancestors that are missing are made to group datasets: they hold nothing and are mounted nowhere."""
    missing = [name for name in zfs.parents(item.dataset) if name not in current.datasets and "/" in name]
    return [zfs_datasets.Desired(name, {"canmount": "off", "mountpoint": "none"}) for name in missing]


def write_mark(item: m.Storage, host: str, runner: Runner, *, sentinel: bool = False, root: str = "/") -> storage.Mark:
    """Mark the dataset as storage of the item's service, and enter it in the ledger.

    The dataset first, then the ledger, as with directories. ValueError on a foreign mark; CommandError from ZFS.
    """
    datasets = zfs_datasets.get(runner, [item.dataset], ["guid", "origin", "mounted", *_PROPERTIES], [])
    dataset = datasets.get(item.dataset)
    if dataset is None:
        raise ValueError(f"there is no dataset {item.dataset}")
    known = mark_of(dataset)
    if known is not None and (known.host, known.service) != (host, item.service):
        raise ValueError(f"{item.dataset} is marked as storage of {known.service} on {known.host}")
    mark = storage.Mark(host, item.service, dataset.guid, sentinel or (known is not None and known.sentinel))
    if mark != known:
        values = [f"{MARK}={host}/{item.service}/{dataset.guid}"]
        values += [f"{SENTINEL}={dataset.guid}"] if mark.sentinel else []
        runner.run(["zfs", "set", *values, item.dataset], timeout=zfs_datasets.TIMEOUT)
    storage.enter(item.name, mark, root=root)
    return mark


def changes(steps: Sequence[zfs_datasets.Step]) -> tuple[dict[str, t.Any], dict[str, t.Any]]:
    """What the steps of one storage change, before and after, for people."""
    before: dict[str, t.Any] = {}
    after: dict[str, t.Any] = {}
    for step in steps:
        before.update(step.before)
        after.update(step.after)
    return before, after
