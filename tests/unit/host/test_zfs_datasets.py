# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The plan for a tree of datasets, on what zfs(8) prints."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.hearth.homelab.plugins.module_utils import zfs
from ansible_collections.hearth.homelab.plugins.module_utils import zfs_datasets as zd
from ansible_collections.hearth.homelab.plugins.module_utils.runner import Completed, FakeRunner


class Numbers:
    def uid(self, name: str) -> int:
        return {"root": 0, "sonarr": 2041}[name]

    def gid(self, name: str) -> int:
        return {"root": 0, "sonarr": 2041}[name]


@pytest.mark.parametrize(
    ("prop", "declared", "found"),
    [
        ("quota", "10G", "10737418240"),
        ("quota", 10737418240, "10737418240"),
        ("quota", "none", "0"),
        ("quota", 0, "0"),
        ("recordsize", "16k", "16384"),
        ("recordsize", "128KiB", "131072"),
        ("reservation", "1.5G", "1610612736"),
        ("snapshot_limit", "none", "18446744073709551615"),
        ("snapshot_limit", 0, "0"),
        ("atime", False, "off"),
        ("atime", "no", "off"),
        ("canmount", True, "on"),
        ("canmount", "noauto", "noauto"),
        ("mountpoint", "/srv/x/", "/srv/x"),
        ("acltype", "posixacl", "posix"),
        ("compression", "gzip", "gzip-6"),
        ("encryption", "on", "aes-256-gcm"),
        ("copies", 2, "2"),
        ("xattr", "sa", "on"),
        ("org.example:note", "Yes", "Yes"),
    ],
)
def test_one_meaning_has_one_spelling(prop: str, declared: t.Any, found: str) -> None:
    assert zfs.canonical(prop, declared) == zfs.canonical(prop, found)


@pytest.mark.parametrize(
    ("prop", "one", "other"),
    [
        ("snapshot_limit", "none", "0"),
        ("quota", "10G", "10000000000"),
        ("sync", "standard", "always"),
        ("compression", "on", "lz4"),
        ("org.example:note", "yes", "on"),
        ("mountpoint", "/", "none"),
    ],
)
def test_different_meanings_stay_different(prop: str, one: str, other: str) -> None:
    assert zfs.canonical(prop, one) != zfs.canonical(prop, other)


@pytest.mark.parametrize(
    ("prop", "value", "says"),
    [
        ("recordsize", "big", "'big' is not a size"),
        ("recordsizes", "16K", "there is no property recordsizes"),
        ("used", "1", "there is no property used"),
        ("mountpoint", "srv", "neither an absolute path"),
        ("hearth.homelab:managed", "x", "is Hearth's own"),
        ("Org:x", "1", "not a user property's name"),
        ("casesensitivity", None, "has no inherited value"),
        ("filesystem_limit", "many", "invalid literal"),
    ],
)
def test_what_cannot_be_declared(prop: str, value: t.Any, says: str) -> None:
    assert says in zfs.problem(prop, value)


@pytest.mark.parametrize("name", ["", "/x", "x/", "tank//x", "tank/x@y", "tank/..", "1tank", "tank/ü", "t" * 256])
def test_what_is_not_a_name(name: str) -> None:
    assert not zfs.valid_name(name)


# --- plans ------------------------------------------------------------------------------------------------------------

TANK = {
    "type": ("filesystem", "-"), "guid": ("1", "-"), "mounted": ("yes", "-"), "mountpoint": ("/tank", "default"),
    "canmount": ("on", "default"), "keystatus": ("-", "-"), "atime": ("on", "default"),
    "recordsize": ("131072", "default"), "quota": ("0", "default"), "compression": ("on", "default"),
}  # fmt: skip


def dataset(name: str, **properties: tuple[str, str]) -> zfs.Dataset:
    values = {
        key.replace("managed", zfs.MANAGED): zfs.Property(*value) for key, value in {**TANK, **properties}.items()
    }
    return zfs.Dataset(name, values)


def current(*datasets: zfs.Dataset, **more: t.Any) -> zd.Current:
    return zd.Current({entry.name: entry for entry in (dataset("tank"), *datasets)}, **more)


def wanted(name: str, **properties: t.Any) -> zd.Desired:
    return zd.Desired(name, properties)


def steps(state: zd.Current, *desired: zd.Desired, **more: t.Any) -> list[str]:
    found = zd.plan(state, desired, identities=Numbers(), **more)
    assert found.problems == []
    return [" ".join(step.argv) or f"{step.operation} {step.dataset} {dict(step.after)}" for step in found.steps]


def problem(state: zd.Current, *desired: zd.Desired, **more: t.Any) -> str:
    found = zd.plan(state, desired, identities=Numbers(), **more)
    assert found.problems
    return "\n".join(found.problems)


def test_parents_are_made_before_children_each_with_one_command() -> None:
    found = steps(
        current(),
        wanted("tank/a/b", recordsize="16K", atime=False),
        wanted("tank/a-b"),
        wanted("tank/a", compression="zstd"),
    )
    assert found == [
        f"zfs create -o compression=zstd -o {zfs.MANAGED}=compression tank/a",
        f"zfs create -o atime=off -o recordsize=16384 -o {zfs.MANAGED}=atime,recordsize tank/a/b",
        "zfs create tank/a-b",
    ]


def test_what_is_as_declared_needs_nothing() -> None:
    there = dataset("tank/a", quota=("10737418240", "local"), atime=("off", "local"), managed=("atime,quota", "local"))
    assert steps(current(there), wanted("tank/a", quota="10G", atime=False)) == []


def test_all_changes_of_a_dataset_are_one_command() -> None:
    there = dataset("tank/a", quota=("1", "local"), atime=("on", "local"), managed=("atime,quota", "local"))
    assert steps(current(there), wanted("tank/a", quota="none", atime="no")) == ["zfs set atime=off quota=none tank/a"]


@pytest.mark.parametrize("source", ["default", "inherited from tank", "received"])
def test_an_equal_value_of_somebody_else_is_set(source: str) -> None:
    there = dataset("tank/a", atime=("off", source), managed=("atime", "local"))
    assert steps(current(there), wanted("tank/a", atime=False)) == ["zfs set atime=off tank/a"]


def test_what_was_set_and_is_not_declared_any_more_is_inherited_again() -> None:
    there = dataset(
        "tank/a",
        atime=("off", "local"), recordsize=("16384", "local"), quota=("5", "local"), compression=("lz4", "local"),
        managed=("atime,quota,recordsize", "local"),
    )  # fmt: skip
    # compression was set by somebody else.
    assert steps(current(there), wanted("tank/a", recordsize="16K")) == [
        "zfs inherit atime tank/a",
        f"zfs set quota=none {zfs.MANAGED}=recordsize tank/a",
    ]


def test_a_mark_of_the_parent_says_nothing_of_the_child() -> None:
    there = dataset("tank/a", atime=("off", "local"), managed=("atime", "inherited from tank"))
    assert steps(current(there), wanted("tank/a")) == []


def test_null_returns_to_the_inherited_value() -> None:
    there = dataset("tank/a", atime=("off", "local"), quota=("5", "local"))
    assert steps(current(there), wanted("tank/a", atime=None, quota=None)) == [
        "zfs inherit atime tank/a",
        "zfs set quota=none tank/a",
    ]
    plain = dataset("tank/a")
    assert steps(current(plain), wanted("tank/a", atime=None, quota=None)) == []


@pytest.mark.parametrize(
    ("properties", "says"),
    [
        ({"casesensitivity": "insensitive"}, "casesensitivity is sensitive and is set once"),
        ({"encryption": "on"}, "encryption is off and is set once"),
    ],
)
def test_create_only_properties_are_refused(properties: dict[str, str], says: str) -> None:
    there = dataset("tank/a", casesensitivity=("sensitive", "-"), encryption=("off", "default"))
    assert says in problem(current(there), zd.Desired("tank/a", properties))


def test_create_only_properties_that_agree_are_fine() -> None:
    there = dataset("tank/a", casesensitivity=("sensitive", "-"), encryption=("aes-256-gcm", "-"),
                    managed=("casesensitivity,encryption", "local"))  # fmt: skip
    assert steps(current(there), wanted("tank/a", casesensitivity="sensitive", encryption=True)) == []


def test_a_mount_point_with_content_is_never_hidden() -> None:
    full = {"/srv/a": zd.Mountpoint(True, 0, 0, 0o755, ("photo.jpg",))}
    says = problem(current(mountpoints=full), wanted("tank/a", mountpoint="/srv/a"))
    assert "its mount point /srv/a is not empty (photo.jpg)" in says
    unmounted = dataset("tank/a", mounted=("no", "-"), mountpoint=("/srv/a", "local"))
    assert "is not mounted, and its mount point /srv/a is not empty" in problem(
        current(unmounted, mountpoints=full), wanted("tank/a", mountpoint="/srv/a")
    )


def test_an_unmounted_dataset_is_mounted_unless_it_should_not_be() -> None:
    unmounted = dataset("tank/a", mounted=("no", "-"), mountpoint=("/srv/a", "local"), managed=("mountpoint", "local"))
    state = current(unmounted, mountpoints={"/srv/a": zd.Mountpoint(True, 0, 0, 0o755)})
    assert steps(state, wanted("tank/a", mountpoint="/srv/a")) == ["zfs mount tank/a"]
    noauto = wanted("tank/a", mountpoint="/srv/a", canmount="noauto")
    assert "zfs mount tank/a" not in steps(state, noauto)


def test_owner_group_and_mode_of_the_root() -> None:
    there = dataset("tank/a", mountpoint=("/srv/a", "local"), managed=("mountpoint", "local"))
    item = zd.Desired("tank/a", {"mountpoint": "/srv/a"}, "sonarr", "sonarr", "0750")
    state = current(there, mountpoints={"/srv/a": zd.Mountpoint(True, 0, 2041, 0o755)})
    assert steps(state, item) == ["attributes tank/a {'owner': 'sonarr', 'mode': '0750'}"]
    state.mountpoints["/srv/a"] = zd.Mountpoint(True, 2041, 2041, 0o750)
    assert steps(state, item) == []
    assert "there is no user or group 'nobody'" in problem(state, zd.Desired("tank/a", item.properties, "nobody"))


def test_attributes_of_the_directory_under_an_unmounted_dataset_are_not_those_of_the_dataset() -> None:
    there = dataset("tank/a", mounted=("no", "-"), mountpoint=("/srv/a", "local"), managed=("mountpoint", "local"))
    state = current(there, mountpoints={"/srv/a": zd.Mountpoint(True, 2041, 2041, 0o750)})
    item = zd.Desired("tank/a", {"mountpoint": "/srv/a"}, "sonarr", "sonarr", "0750")
    assert steps(state, item)[-1] == "attributes tank/a {'owner': 'sonarr', 'group': 'sonarr', 'mode': '0750'}"


def test_volumes() -> None:
    assert steps(current(), wanted("tank/v", volsize="1G", refreservation="none")) == [
        f"zfs create -V 1073741824 -s -o refreservation=none -o {zfs.MANAGED}=refreservation,volsize tank/v"
    ]
    there = dataset("tank/v", type=("volume", "-"), volsize=("1073741824", "local"), mounted=("-", "-"),
                    mountpoint=("-", "-"), managed=("volsize", "local"))  # fmt: skip
    assert steps(current(there), wanted("tank/v", volsize="1G")) == []
    assert steps(current(there), wanted("tank/v", volsize="2G")) == ["zfs set volsize=2147483648 tank/v"]
    assert "cannot shrink" in problem(current(there), wanted("tank/v", volsize="512M"))
    assert "is a volume, a file system is declared" in problem(current(there), wanted("tank/v"))


@pytest.mark.parametrize(
    ("item", "state", "says"),
    [
        (wanted("pond/a"), current(), "there is no pool pond on this host"),
        (wanted("tank/a/b"), current(), "its parent tank/a does not exist and is not declared"),
        (wanted("tank/a", recordsize="huge"), current(), "'huge' is not a size"),
        (wanted("tank/a", receive="x"), current(), "there is no property receive"),
        (wanted("tank/a"), current(dataset("tank/a", receive_resume_token=("1-abc", "-"))), "it has a resume token"),
        (
            wanted("tank/a"),
            current(dataset("tank/a", keystatus=("unavailable", "-"), encryptionroot=("tank/a", "-"))),
            "its key is not loaded",
        ),
        (wanted("tank/a"), current(problems=["cannot open 'tank': pool I/O is currently suspended"]), "suspended"),
    ],
)  # fmt: skip
def test_what_is_refused(item: zd.Desired, state: zd.Current, says: str) -> None:
    assert says in problem(state, item)


def test_a_key_at_hand_is_loaded_first() -> None:
    locked = dataset("tank/a", keystatus=("unavailable", "-"), encryptionroot=("tank/a", "-"), mounted=("no", "-"))
    state = current(locked, mountpoints={"/tank": zd.Mountpoint()})
    assert steps(state, wanted("tank/a"), keys=frozenset({"tank/a"}))[0] == "zfs load-key -L prompt tank/a"


# --- absence ----------------------------------------------------------------------------------------------------------


def gone(*destroy: str) -> zd.Desired:
    return zd.Desired("tank/a", absent=True, destroy=frozenset(destroy))


EMPTY = {"/srv/a": zd.Mountpoint(True, 0, 0, 0o755)}
THERE = dataset("tank/a", mountpoint=("/srv/a", "local"))
SNAPSHOT = zd.Snapshot("tank/a@one")


@pytest.mark.parametrize(
    ("item", "state", "argv"),
    [
        (gone(), current(), []),
        (gone(), current(THERE, mountpoints=EMPTY), ["zfs destroy tank/a"]),
        (gone("snapshots"), current(THERE, mountpoints=EMPTY, snapshots={"tank/a": (SNAPSHOT,)}), ["zfs destroy -r tank/a"]),
        (
            gone("children", "content"),
            current(THERE, children={"tank/a": ("tank/a/b",)}),
            ["zfs destroy -r tank/a"],
        ),
    ],
)  # fmt: skip
def test_absent(item: zd.Desired, state: zd.Current, argv: list[str]) -> None:
    assert steps(state, item) == argv


@pytest.mark.parametrize(
    ("item", "state", "says"),
    [
        (gone(), current(THERE, mountpoints={"/srv/a": zd.Mountpoint(True, 0, 0, 0, ("x",))}), "it is not empty (x)"),
        (gone(), current(dataset("tank/a", mounted=("no", "-"))), "nobody can say that it is empty"),
        (gone(), current(THERE, mountpoints=EMPTY, snapshots={"tank/a": (SNAPSHOT,)}), "1 snapshots"),
        (gone(), current(THERE, mountpoints=EMPTY, children={"tank/a": ("tank/a/b",)}), "it has children (tank/a/b)"),
        (
            gone("content", "snapshots", "children"),
            current(THERE, snapshots={"tank/a": (zd.Snapshot("tank/a@one", 1),)}),
            "tank/a@one is held",
        ),
        (
            gone("content", "snapshots", "children"),
            current(THERE, snapshots={"tank/a": (zd.Snapshot("tank/a@one", 0, ("tank/clone",)),)}),
            "tank/clone is a clone",
        ),
        (zd.Desired("tank", absent=True, destroy=frozenset(zd.DESTROYABLE)), current(), "a pool is never destroyed"),
    ],
)  # fmt: skip
def test_what_is_not_destroyed(item: zd.Desired, state: zd.Current, says: str) -> None:
    assert says in problem(state, item)


def test_a_declared_child_keeps_its_parent() -> None:
    child = dataset("tank/a/b")
    state = current(THERE, child, children={"tank/a": ("tank/a/b",)})
    assert "tank/a/b below it is declared" in problem(state, gone(*zd.DESTROYABLE), wanted("tank/a/b"))


# --- delegations ------------------------------------------------------------------------------------------------------

ALLOW = """\
---- Permissions on tank/services ------------------------------------
Permission sets:
\t@backup send,snapshot
Local permissions:
\tgroup admins mount
Local+Descendent permissions:
\tuser syncoid bookmark,hold,send
\teveryone mount
---- Permissions on tank ---------------------------------------------
Local+Descendent permissions:
\tuser syncoid destroy
"""


def test_permissions_are_read_of_the_dataset_itself() -> None:
    assert zfs.parse_allow(ALLOW, "tank/services") == {
        zfs.Delegation("group", "admins", "local"): frozenset({"mount"}),
        zfs.Delegation("user", "syncoid"): frozenset({"bookmark", "hold", "send"}),
        zfs.Delegation("everyone", ""): frozenset({"mount"}),
    }


def test_exactly_the_declared_permissions() -> None:
    state = current(dataset("tank/services"), delegations={"tank/services": zfs.parse_allow(ALLOW, "tank/services")})
    want = {"tank/services": {zfs.Delegation("user", "syncoid"): frozenset({"hold", "send", "snapshot"})}}
    assert steps(state, delegations=want) == [
        "zfs unallow -e mount tank/services",
        "zfs unallow -l -g admins mount tank/services",
        "zfs unallow -u syncoid bookmark tank/services",
        "zfs allow -u syncoid snapshot tank/services",
    ]


# --- reading ----------------------------------------------------------------------------------------------------------


def test_reading_takes_one_process_however_many_datasets() -> None:
    lines = "".join(f"tank/d{number}\ttype\tfilesystem\t-\n" for number in range(200)) + "tank\ttype\tfilesystem\t-\n"
    runner = FakeRunner({"zfs get": lines})
    found = zd.read(runner, [wanted(f"tank/d{number}", atime=False) for number in range(200)])
    assert len(found.datasets) == 201
    assert len(runner.calls) == 1


def test_what_does_not_exist_is_no_problem_and_everything_else_is() -> None:
    answer = Completed(
        ("zfs",), 1, "tank\ttype\tfilesystem\t-\n",
        "cannot open 'tank/a': dataset does not exist\ncannot open 'tank/b': I/O error\n",
    )  # fmt: skip
    found = zd.read(FakeRunner({"zfs get": answer}), [wanted("tank/a"), wanted("tank/b")])
    assert set(found.datasets) == {"tank"}
    assert found.problems == ["cannot open 'tank/b': I/O error"]


def test_a_value_may_have_tabulators() -> None:
    found = zfs.parse_get("tank\torg.example:x\ta\tb\tlocal\n")
    assert found["tank"].properties["org.example:x"] == zfs.Property("a\tb", "local")


# --- declarations -----------------------------------------------------------------------------------------------------


def test_a_wrong_declaration_says_all_that_is_wrong() -> None:
    with pytest.raises(ValueError) as caught:
        zd.declared(
            {"tank/a": {"property": {}, "mode": 488}, "tank/b": [], "tank/c": {"state": "gone", "destroy": ["all"]}},
            {"tank/a": {"users": {"x": "send"}, "scope": "here"}, "tank/b": {"users": {"x": "send"}}},
        )
    assert str(caught.value).splitlines() == [
        "datasets.tank/a: there is no 'property'; there are properties, owner, group, mode, state, destroy",
        'datasets.tank/a.mode: write it in quotation marks ("0750"), YAML made 488 of it',
        "datasets.tank/b: a dictionary is expected, found []",
        "datasets.tank/c.state: 'gone' is neither present nor absent",
        "datasets.tank/c.destroy: a list of content, snapshots, children is expected, found ['all']",
        "delegations.tank/a.scope: 'here' is none of local, descendent, both",
        "delegations.tank/b.users.x: a list of permissions is expected (zfs-allow(8)), found 'send'",
    ]
