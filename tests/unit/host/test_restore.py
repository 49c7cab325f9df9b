# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A restore, killed before each of its effects and begun again: the data is there, and nothing that was is lost."""

from __future__ import annotations

import shutil
import typing as t
from collections.abc import Sequence
from pathlib import Path

import pytest
from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.module_utils import restore, storage, zfs_storage
from ansible_collections.hearth.homelab.plugins.module_utils.restore import Goal, Restore, Snapshot, StoppedError
from ansible_collections.hearth.homelab.plugins.module_utils.runner import CommandError, Completed

from .simulated_zfs import SimulatedZfs

ITEM = m.Storage(
    "/var/lib/sonarr", "sonarr", provider="zfs", dataset="tank/services/sonarr", properties={"recordsize": "16384"}
)
REPLICA = "pond/replicas/sonarr"


class Killed(BaseException):
    """kill -9 here."""


class World:
    """A host with a pool, and another machine that has a replica. ``effects`` are those that happened."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "forge/var/lib/hearth").mkdir(parents=True)
        self.zfs = SimulatedZfs(root / "forge")
        self.nas = SimulatedZfs(root / "nas", ("pond",), first=5000)
        self.zfs.run(["zfs", "create", "-o", "canmount=off", "-o", "mountpoint=none", "tank/services"])
        self.effects: list[str] = []
        self.kill_before = -1

    def effect(self, name: str) -> None:
        if len(self.effects) == self.kill_before:
            raise Killed(name)
        self.effects.append(name)

    # The runner.

    def run(self, argv: Sequence[str], *, check: bool = True, **_more: t.Any) -> Completed:
        done = self.zfs.run(argv)
        if check and done.returncode:
            raise CommandError(done)
        return done

    def pipe(self, argv: Sequence[str], into: Sequence[str], *, timeout: float = 0) -> Completed:
        assert argv[0] == "zfs"
        return self.zfs.receive(self.nas, argv, into)

    # What is there before.

    def replica(self) -> Goal:
        """Two snapshots on the other machine, the last with what is wanted."""
        if REPLICA not in self.nas.nodes:
            self.nas.run(["zfs", "create", "pond/replicas"])
            self.nas.run(["zfs", "create", REPLICA])
            for name in ("hourly-1", "hourly-2"):
                (self.nas.content(REPLICA) / "sonarr.db").write_text(name)
                self.nas.run(["zfs", "snapshot", f"{REPLICA}@{name}"])
        found = tuple(Snapshot(name, snap.guid) for name, snap in self.nas.nodes[REPLICA].snapshots.items())
        return Goal("replica", "hourly-2", found, REPLICA)

    def make(self, content: str, *snapshots: str) -> None:
        """The dataset itself, with content, and marked as what holds no data yet."""
        self.zfs.run(["zfs", "create", "-o", "mountpoint=/var/lib/sonarr", ITEM.dataset])
        for name in snapshots:
            (self.zfs.content(ITEM.dataset) / "sonarr.db").write_text(name)
            self.zfs.run(["zfs", "snapshot", f"{ITEM.dataset}@{name}"])
        (self.zfs.content(ITEM.dataset) / "sonarr.db").write_text(content)
        zfs_storage.write_mark(ITEM, "forge", self, root=str(self.root / "forge"))

    def local(self) -> Goal:
        """Its own snapshots."""
        name = ITEM.dataset if ITEM.dataset in self.zfs.nodes else ""
        dataset = name if name and "hourly-1" in self.zfs.nodes[name].snapshots else restore.incoming(ITEM.dataset)
        found = [Snapshot(name, snap.guid) for name, snap in self.zfs.nodes[dataset].snapshots.items()]
        return Goal("snapshot", "hourly-1", tuple(found[:1]))

    def fill(self, _goal: Goal, path: str) -> None:
        real = self.root / "forge" / path.lstrip("/")
        for entry in real.iterdir():
            entry.unlink()
        self.effect("fill half")
        (real / "sonarr.db").write_text("ha")
        self.effect("fill")
        (real / "sonarr.db").write_text("hourly-2")

    def restore(self, goal: Goal, stamp: str = "20261121T1200") -> list[str]:
        self.zfs.effect = self.effect
        try:
            return Restore(ITEM, goal, "forge", self, stamp, fill=self.fill, root=str(self.root / "forge")).run()
        finally:
            self.zfs.effect = lambda _name: None

    # What is there now.

    @property
    def state(self) -> str:
        root = str(self.root / "forge")
        facts = zfs_storage.read([ITEM], self, storage.read_ledger(root=root), root=root)[0][ITEM.name]
        return storage.classify(facts, "forge", "sonarr").state

    def contents(self) -> dict[str, str]:
        """Every version of the file that exists anywhere on the host: in datasets and in their snapshots."""
        found = {}
        for name, node in self.zfs.nodes.items():
            path = self.zfs.content(name) / "sonarr.db"
            if path.is_file():
                found[name] = path.read_text()
            for snapshot in node.snapshots:
                path = self.zfs._snapshot_content(name, snapshot) / "sonarr.db"
                if path.is_file():
                    found[f"{name}@{snapshot}"] = path.read_text()
        return found


Case = t.Callable[[World], Goal]


def nothing(world: World) -> Goal:
    """A replaced disk: there is no dataset."""
    return world.replica()


def skeleton(world: World) -> Goal:
    """What an application left before anybody noticed."""
    if ITEM.dataset not in world.zfs.nodes and restore.incoming(ITEM.dataset) not in world.zfs.nodes:
        world.make("skeleton")
    return world.replica()


def own_snapshot(world: World) -> Goal:
    if ITEM.dataset not in world.zfs.nodes and restore.incoming(ITEM.dataset) not in world.zfs.nodes:
        world.make("damaged", "hourly-1", "hourly-2")
    return world.local()


def by_program(world: World) -> Goal:
    if ITEM.dataset not in world.zfs.nodes and restore.incoming(ITEM.dataset) not in world.zfs.nodes:
        world.make("skeleton")
    return Goal("restic", "abc123")


CASES: dict[str, tuple[Case, str]] = {
    "nothing": (nothing, "hourly-2"),
    "skeleton": (skeleton, "hourly-2"),
    "own snapshot": (own_snapshot, "hourly-1"),
    "by a program": (by_program, "hourly-2"),
}


@pytest.mark.parametrize("name", CASES)
def test_it_comes_back_and_is_data(tmp_path: Path, name: str) -> None:
    prepare, wanted = CASES[name]
    world = World(tmp_path)
    goal = prepare(world)
    before = set(world.contents().values())
    world.restore(goal)
    assert world.state == "data"
    assert world.contents()[ITEM.dataset] == wanted
    assert before <= set(world.contents().values())
    assert world.zfs.get(ITEM.dataset, "recordsize") == ("16384", "local")
    assert (tmp_path / "forge/var/lib/sonarr/sonarr.db").read_text() == wanted
    # Nothing of the restore is left on it, and another one of the same point is a restore again.
    assert world.zfs.get(ITEM.dataset, restore.GOAL) == ("-", "-")


@pytest.mark.parametrize("name", CASES)
def test_killed_anywhere_it_goes_on(tmp_path: Path, name: str) -> None:
    prepare, wanted = CASES[name]
    whole = World(tmp_path / "whole")
    whole.restore(prepare(whole))
    effects = whole.effects
    shutil.rmtree(tmp_path / "whole")
    for at in range(len(effects)):
        world = World(tmp_path / str(at))
        goal = prepare(world)
        before = set(world.contents().values())
        world.kill_before = at
        with pytest.raises(Killed):
            world.restore(goal)
        where = f"killed before {effects[at]}"
        # Whatever the moment: nothing is gone, and the service is either refused or has the whole data.
        assert before <= set(world.contents().values()), where
        if world.state == "data":
            assert world.contents()[ITEM.dataset] == wanted, where
        world.kill_before = -1
        # A minute later, as the gate or a person tries again.
        world.restore(prepare(world), "20261121T1201")
        assert world.state == "data", where
        assert world.contents()[ITEM.dataset] == wanted, where
        assert before <= set(world.contents().values()), where
        shutil.rmtree(tmp_path / str(at))


def test_a_replica_comes_with_its_snapshots_so_that_replication_goes_on(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.restore(world.replica())
    here, there = world.zfs.nodes[ITEM.dataset].snapshots, world.nas.nodes[REPLICA].snapshots
    assert {name: snap.guid for name, snap in here.items()} == {name: snap.guid for name, snap in there.items()}


@pytest.mark.parametrize(
    "effect", ["receive tank/services/sonarr.restore@hourly-1", "receive tank/services/sonarr.restore@hourly-2"]
)
def test_a_transfer_that_was_cut_off_is_resumed(tmp_path: Path, effect: str) -> None:
    whole = World(tmp_path / "whole")
    whole.restore(whole.replica())
    world = World(tmp_path / "cut")
    goal = world.replica()
    world.kill_before = whole.effects.index(effect)
    with pytest.raises(Killed):
        world.restore(goal)
    world.kill_before = -1
    assert world.restore(goal)[0] == "resume"


def test_what_the_replica_got_meanwhile_is_no_obstacle(tmp_path: Path) -> None:
    world = World(tmp_path)
    goal = world.replica()
    world.kill_before = 3
    with pytest.raises(Killed):
        world.restore(goal)
    world.kill_before = -1
    (world.nas.content(REPLICA) / "sonarr.db").write_text("hourly-3")
    world.nas.run(["zfs", "snapshot", f"{REPLICA}@hourly-3"])
    world.restore(goal)
    assert world.contents()[ITEM.dataset] == "hourly-2"


def test_another_goal_begins_anew(tmp_path: Path) -> None:
    world = World(tmp_path)
    goal = world.replica()
    world.kill_before = 3
    with pytest.raises(Killed):
        world.restore(goal)
    world.kill_before = -1
    steps = world.restore(Goal("replica", "hourly-1", goal.snapshots[:1], REPLICA))
    assert steps[0] == "discard"
    assert world.contents()[ITEM.dataset] == "hourly-1"


def test_somebody_elses_dataset_of_that_name_is_left_alone(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.zfs.run(["zfs", "create", restore.incoming(ITEM.dataset)])
    with pytest.raises(StoppedError, match="exists and is no restore of Hearth's"):
        world.restore(world.replica())


def test_half_done_it_is_not_begun_with_another_goal(tmp_path: Path) -> None:
    world = World(tmp_path)
    goal = world.replica()
    world.restore(goal)
    effects = len(world.effects)
    again = World(tmp_path / "again")
    goal = again.replica()
    again.kill_before = effects - 3  # it has the name already, not yet its mark
    with pytest.raises(Killed):
        again.restore(goal)
    again.kill_before = -1
    with pytest.raises(StoppedError, match="is being restored to replica/hourly-2"):
        again.restore(Goal("replica", "hourly-1", goal.snapshots[:1], REPLICA))


def test_the_command_line_on_another_host_is_one_argument_for_its_shell() -> None:
    goal = Goal("replica", "a b", (Snapshot("a b", "1"),), "pond/x", ("ssh", "nas-1"))
    step = restore.next_step(ITEM, goal, restore.Seen(), "now")
    assert step is not None
    assert step.argv == ("ssh", "nas-1", "zfs send -L -c -e 'pond/x@a b'")
