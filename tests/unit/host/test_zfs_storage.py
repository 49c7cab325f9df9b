# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Storage that is a dataset: what is there, what it means, and what is done to it."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.module_utils import storage, zfs_datasets, zfs_storage
from ansible_collections.hearth.homelab.plugins.module_utils.runner import FakeRunner

from .simulated_zfs import Node, SimulatedZfs

SONARR = m.Storage(
    "/var/lib/sonarr", "sonarr", provider="zfs", dataset="tank/services/sonarr", properties={"recordsize": "16384"}
)


class Host:
    def __init__(self, root: Path) -> None:
        self.root, self.zfs = root, SimulatedZfs(root)
        (root / "var/lib/hearth").mkdir(parents=True)
        self.runner = FakeRunner({"zfs": self.zfs.run})

    @property
    def facts(self) -> storage.StorageFacts:
        ledger = storage.read_ledger(root=str(self.root))
        return zfs_storage.read([SONARR], self.runner, ledger, root=str(self.root))[0][SONARR.name]

    @property
    def state(self) -> str:
        return storage.classify(self.facts, "forge", "sonarr").state

    @property
    def message(self) -> str:
        return storage.classify(self.facts, "forge", "sonarr").message

    def apply(self) -> list[str]:
        """As the engine does it; the commands that changed something."""
        root = str(self.root)
        _found, current = zfs_storage.read([SONARR], self.runner, {}, root=root)
        plan = zfs_storage.plan(SONARR, current, t.cast("storage.State", self.state))
        assert plan.problems == []
        zfs_datasets.apply(self.runner, plan.steps, root=root)
        return [" ".join(step.argv[:2]) for step in plan.steps]

    def make(self, *, sentinel: bool = False) -> None:
        self.apply()
        zfs_storage.write_mark(SONARR, "forge", self.runner, sentinel=sentinel, root=str(self.root))

    def write(self, path: str, text: str = "data") -> None:
        real = self.root / path.lstrip("/")
        real.parent.mkdir(parents=True, exist_ok=True)
        real.write_text(text)

    @property
    def node(self) -> Node:
        return self.zfs.nodes[SONARR.dataset]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_it_is_made_with_its_parents_marked_and_then_nothing_is_left_to_do(host: Host) -> None:
    assert host.state == "new"
    assert host.apply() == ["zfs create", "zfs create"]
    assert host.zfs.get("tank/services", "canmount") == ("off", "local")
    zfs_storage.write_mark(SONARR, "forge", host.runner, root=str(host.root))
    assert host.state == "empty_marked"
    assert host.apply() == []
    assert storage.read_ledger(root=str(host.root))[SONARR.name].id == host.node.guid


def test_the_sentinel_makes_it_data_and_an_older_mark_keeps_it(host: Host) -> None:
    host.make(sentinel=True)
    assert host.state == "data"
    zfs_storage.write_mark(SONARR, "forge", host.runner, root=str(host.root))
    assert host.state == "data"


def test_a_directory_with_content_is_found_data_and_nothing_is_mounted_over_it(host: Host) -> None:
    host.write("/var/lib/sonarr/sonarr.db")
    assert host.state == "found"
    assert "content that Hearth did not make (sonarr.db)" in host.message


def test_a_directory_that_hearth_marked_is_named_so(host: Host) -> None:
    (host.root / "var/lib/sonarr").mkdir(parents=True)
    storage.write_mark(SONARR.name, "forge", "sonarr", root=str(host.root))
    assert host.state == "found"
    assert "a directory that Hearth marked, and the dataset tank/services/sonarr is declared" in host.message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"origin": "tank/other@one"}, "it is a clone of tank/other@one"),
        ({"resume": "1-abc"}, "it is being received"),
        ({"local": {"hearth.homelab:mark": "forge/sonarr/999"}}, "names another dataset"),
        ({"received": {"hearth.homelab:mark": "forge/sonarr/999"}}, "it was received, with the mark"),
        ({"local": {"hearth.homelab:mark": "nonsense"}}, "names another dataset"),
    ],
)
def test_what_is_not_ours(host: Host, change: dict[str, t.Any], message: str) -> None:
    host.apply()
    for name, value in change.items():
        held = getattr(host.node, name)
        if isinstance(held, dict):
            held.update(value)
        else:
            setattr(host.node, name, value)
    assert host.state == "found"
    assert message in host.message
    assert zfs_storage.plan(SONARR, zfs_datasets.Current(), "found").steps == []


def test_a_mark_of_another_service_is_refused(host: Host) -> None:
    host.apply()
    other = m.Storage(SONARR.name, "radarr", provider="zfs", dataset=SONARR.dataset)
    zfs_storage.write_mark(other, "forge", host.runner, root=str(host.root))
    assert host.state == "found"
    assert "marked as storage of radarr on forge" in host.message
    with pytest.raises(ValueError, match="marked as storage of radarr"):
        zfs_storage.write_mark(SONARR, "forge", host.runner, root=str(host.root))


def test_an_existing_dataset_without_mark_is_new_only_when_it_is_empty(host: Host) -> None:
    host.apply()
    assert host.state == "new"
    host.write("/var/lib/sonarr/sonarr.db")
    assert host.state == "found"


def test_not_mounted_is_never_empty(host: Host) -> None:
    host.make(sentinel=True)
    host.zfs._unmount(SONARR.dataset)
    assert host.state == "away"
    problems = storage.gate("forge", "sonarr", [host.facts])
    assert "tank/services/sonarr is not mounted, and it holds data of sonarr" in problems[0].message
    assert host.apply() == ["zfs mount"]
    assert host.state == "data"


def test_not_mounted_without_mark_is_found_data(host: Host) -> None:
    host.apply()
    host.zfs._unmount(SONARR.dataset)
    assert host.state == "found"
    assert "nobody can say what is in it" in host.message


def test_something_in_the_directory_under_it_keeps_it_unmounted(host: Host) -> None:
    host.make(sentinel=True)
    host.zfs._unmount(SONARR.dataset)
    host.write("/var/lib/sonarr/stray.db")
    _found, current = zfs_storage.read([SONARR], host.runner, {}, root=str(host.root))
    problems = zfs_storage.plan(SONARR, current, "away").problems
    assert "its mount point /var/lib/sonarr is not empty (stray.db)" in problems[0]


def test_a_destroyed_dataset_that_held_data_is_lost(host: Host) -> None:
    host.make(sentinel=True)
    host.zfs.run(["zfs", "destroy", "-r", SONARR.dataset])
    assert host.state == "lost"
    # Another one in its place is not it.
    host.zfs.run(["zfs", "create", "-o", "mountpoint=/var/lib/sonarr", SONARR.dataset])
    assert host.state == "lost"


def test_without_a_pool_nothing_is_known(host: Host) -> None:
    item = m.Storage("/var/lib/x", "sonarr", provider="zfs", dataset="pond/x")
    facts = zfs_storage.read([item], host.runner, {}, root=str(host.root))[0]["/var/lib/x"]
    assert "there is no pool pond on this host" in facts.error


def test_without_zfs_nothing_is_known(tmp_path: Path) -> None:
    facts = zfs_storage.read([SONARR], FakeRunner(), {}, root=str(tmp_path))[0][SONARR.name]
    assert "ZFS cannot be asked: zfs get" in facts.error
    assert "zfs is not installed" in facts.error


def test_both_providers_are_read_together(host: Host) -> None:
    plain = m.Storage("/var/lib/plain", "sonarr")
    found = zfs_storage.read_all([SONARR, plain], host.runner, {}, root=str(host.root))
    assert {path: facts.dataset for path, facts in found.items()} == {
        "/var/lib/plain": "",
        "/var/lib/sonarr": "tank/services/sonarr",
    }
