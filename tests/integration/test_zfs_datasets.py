# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module zfs_datasets on real ZFS: ad hoc calls against a QEMU host with a pool."""

from __future__ import annotations

import json
import os
import subprocess
import typing as t
from pathlib import Path

import pytest

from . import machine
from .conftest import BIN, ROOT
from .labs import Lab, program

NAME = f"{os.environ.get('HEARTH_TEST_LAB', 'selftest')}-zfs"
LAB = Lab(NAME, ["forge,kind=qemu,memory=1536,cpus=1,disk=1G"])
MODULE = "hearth.homelab.zfs_datasets"

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="the lab needs root")]


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Path]:
    program("down", f"--name={NAME}")
    before = machine.snapshot(NAME)
    LAB.up()
    path = tmp_path_factory.mktemp("inventory") / "hosts.yml"
    host = {"ansible_ssh_common_args": f"-F {LAB.ssh_config}", "ansible_python_interpreter": "/usr/bin/python3"}
    path.write_text(json.dumps({"all": {"hosts": {"forge": host}}}))
    LAB.on("forge", "zpool create -f tank /dev/disk/by-id/virtio-disk1")
    yield path
    LAB.down()
    assert machine.differences(before, machine.snapshot(NAME)) == []


@pytest.fixture
def call(inventory: Path) -> t.Callable[..., dict[str, t.Any]]:
    def run(*, check: bool = False, fails: bool = False, **arguments: t.Any) -> dict[str, t.Any]:
        command = [str(BIN / "ansible"), "-i", str(inventory), "forge", "-m", MODULE, "-a", json.dumps(arguments)]
        command += ["--check", "--diff"] if check else []
        environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
        found = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        text = found.stdout[found.stdout.index("{\n") :]
        result = json.JSONDecoder().raw_decode(text)[0]
        assert bool(result.get("failed")) is fails or found.returncode == (2 if fails else 0), (
            found.stdout + found.stderr
        )
        return t.cast("dict[str, t.Any]", result)

    return run


def on(command: str, *, check: bool = True) -> str:
    return LAB.on("forge", command, check=check)


TREE: dict[str, t.Any] = {
    "tank/services": {"properties": {"mountpoint": "none", "canmount": False, "compression": "zstd", "atime": False}},
    "tank/services/sonarr": {
        "properties": {
            "mountpoint": "/var/lib/sonarr", "recordsize": "16K", "quota": "200M", "snapshot_limit": 50,
            "acltype": "posixacl", "xattr": "sa", "org.example:note": "it's a \"note\"",
        },
        "owner": "root", "group": "adm", "mode": "0750",
    },
    "tank/services/paperless": {
        "properties": {"mountpoint": "/var/lib/paperless", "canmount": "noauto", "normalization": "formD", "quota": "none"},
    },
    "tank/vol": {"properties": {"volsize": "64M", "refreservation": "none", "volblocksize": "16K"}},
    "tank/secure": {
        "properties": {
            "encryption": True, "keyformat": "passphrase", "keylocation": "prompt", "mountpoint": "/srv/secure",
        },
    },
}  # fmt: skip
KEYS = {"tank/secure": "correct horse"}
RIGHTS = {"tank/services": {"users": {"nobody": ["send", "snapshot"]}, "everyone": ["mount"]}}


def names(result: dict[str, t.Any]) -> list[str]:
    return [f"{action['operation']} {action['dataset']}" for action in result["actions"]]


def test_check_and_the_run_name_the_same_then_nothing_changes(call: t.Callable[..., dict[str, t.Any]]) -> None:
    planned = call(check=True, datasets=TREE, keys=KEYS, delegations=RIGHTS)
    assert planned["changed"]
    assert on("zfs list -H -o name").split() == ["tank"]
    done = call(datasets=TREE, keys=KEYS, delegations=RIGHTS)
    assert names(done) == names(planned)
    assert on("stat -c '%U %G %a' /var/lib/sonarr").strip() == "root adm 750"
    assert on("zfs get -Hp -o value quota,recordsize,acltype tank/services/sonarr").split() == [
        "209715200", "16384", "posix",
    ]  # fmt: skip
    again = call(datasets=TREE, keys=KEYS, delegations=RIGHTS)
    assert not again["changed"], again["actions"]
    # One zfs get, and one zfs allow for the dataset with delegations.
    assert [command.split()[1] for command in again["commands"]] == ["get", "allow"]
    # The key is nowhere in what a run says.
    assert KEYS["tank/secure"] not in json.dumps([planned, done, again])


def test_what_changed_is_found_and_mended(call: t.Callable[..., dict[str, t.Any]]) -> None:
    on(
        "zfs set quota=1G tank/services/sonarr; zfs inherit recordsize tank/services/sonarr; zfs unmount tank/services/sonarr;"
        "zfs unload-key -r tank/secure 2>/dev/null || { zfs unmount tank/secure; zfs unload-key tank/secure; };"
        "zfs allow -u nobody destroy tank/services; zfs unallow -u nobody send tank/services"
    )
    result = call(datasets=TREE, keys=KEYS, delegations=RIGHTS)
    assert set(names(result)) >= {
        "set tank/services/sonarr", "mount tank/services/sonarr", "load-key tank/secure", "mount tank/secure",
        "allow tank/services", "unallow tank/services",
    }  # fmt: skip
    assert not call(datasets=TREE, keys=KEYS, delegations=RIGHTS)["changed"]
    assert on("zfs get -Ho value mounted,keystatus tank/secure").split() == ["yes", "available"]


def test_what_is_not_declared_any_more_is_inherited_and_the_owners_settings_stay(
    call: t.Callable[..., dict[str, t.Any]],
) -> None:
    on("zfs set sync=disabled tank/services/sonarr")  # somebody's own
    less = json.loads(json.dumps(TREE["tank/services/sonarr"]))
    for name in ("quota", "recordsize", "org.example:note"):
        del less["properties"][name]
    call(datasets={"tank/services/sonarr": less})
    found = on(
        "zfs get -Hp -o property,value,source quota,recordsize,org.example:note,sync tank/services/sonarr"
    ).splitlines()
    assert found == [
        "quota\t0\tlocal",
        "recordsize\t131072\tdefault",
        "org.example:note\t-\t-",
        "sync\tdisabled\tlocal",
    ]
    call(datasets=TREE, keys=KEYS)


@pytest.mark.parametrize(
    ("datasets", "says"),
    [
        ({"tank/services/paperless": {"properties": {"normalization": "none"}}}, "is set once, when a dataset is made"),
        ({"tank/vol": {"properties": {"volsize": "32M"}}}, "cannot shrink"),
        ({"tank/vol": {}}, "is a volume, a file system is declared"),
        ({"pond/x": {}}, "there is no pool pond"),
        ({"tank/a/b": {}}, "its parent tank/a does not exist"),
        ({"tank/full": {"properties": {"mountpoint": "/etc"}}}, "its mount point /etc is not empty"),
        ({"tank/services": {"state": "absent"}}, "it has children"),
        ({"tank": {"state": "absent", "destroy": ["content", "snapshots", "children"]}}, "a pool is never destroyed"),
    ],
)  # fmt: skip
def test_what_is_refused_changes_nothing(
    call: t.Callable[..., dict[str, t.Any]], datasets: dict[str, t.Any], says: str
) -> None:
    before = on(
        "zfs get -Hp -t filesystem,volume -o name,property,value,source all | grep -v -E 'used|available|refer|written'"
    )
    # The good one beside it is not applied either.
    result = call(fails=True, datasets={**datasets, "tank/good": {}})
    assert says in result["msg"]
    assert (
        on(
            "zfs get -Hp -t filesystem,volume -o name,property,value,source all | grep -v -E 'used|available|refer|written'"
        )
        == before
    )


def test_nothing_is_destroyed_by_surprise(call: t.Callable[..., dict[str, t.Any]]) -> None:
    on(
        "zfs create -o mountpoint=/srv/old tank/old; touch /srv/old/file; zfs snapshot tank/old@one; zfs hold keep tank/old@one;"
        "zfs clone tank/old@one tank/services/clone"
    )

    def absent(*destroy: str, fails: bool = True) -> str:
        result = call(fails=fails, datasets={"tank/old": {"state": "absent", "destroy": list(destroy)}})
        return str(result.get("msg", ""))

    assert "it is not empty (file)" in absent("snapshots")
    assert "1 snapshots" in absent("content")
    assert "tank/services/clone is a clone" in absent("content", "snapshots")
    on("zfs destroy tank/services/clone")
    assert "tank/old@one is held" in absent("content", "snapshots")
    on("zfs release keep tank/old@one")
    assert absent("content", "snapshots", fails=False) == ""
    assert "does not exist" in on("zfs list tank/old", check=False)
    assert absent(fails=False) == ""


def test_many_converged_datasets_take_one_process(call: t.Callable[..., dict[str, t.Any]]) -> None:
    many = {f"tank/many/d{number}": {"properties": {"recordsize": "16K"}} for number in range(40)}
    many["tank/many"] = {"properties": {"mountpoint": "none", "canmount": False}}
    # By hand, in one shell: this test is about the second run.
    on(
        "zfs create -o canmount=off -o mountpoint=none -o hearth.homelab:managed=canmount,mountpoint tank/many;"
        "for n in $(seq 0 39); do zfs create -o recordsize=16384 -o hearth.homelab:managed=recordsize tank/many/d$n; done"
    )
    result = call(datasets=many)
    assert not result["changed"], result["actions"][:3]
    assert len(result["commands"]) == 1
