# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A service's data on ZFS: made, mended, never started without, never put over what is somebody's."""

from __future__ import annotations

import json
import typing as t

import pytest

from ..conftest import Site, wait_until

HOST = "lab-forge"
BOX = "tank/services/box"


def get(site: Site, dataset: str, *properties: str) -> list[str]:
    return site.ssh(HOST, f"zfs get -Hp -o value {','.join(properties)} {dataset}").splitlines()


def play(site: Site, *arguments: str, **more: t.Any) -> t.Any:
    return site.play(*arguments, limit=HOST, **more)


def active(site: Site) -> bool:
    return site.ssh(HOST, "systemctl is-active box.service || true").strip() == "active"


def starts(site: Site) -> int:
    return len(site.ssh(HOST, "cat /var/lib/box/starts").split())


def test_each_storage_is_a_dataset_with_mark_and_sentinel(site: Site) -> None:
    assert get(site, BOX, "mountpoint", "mounted", "recordsize", "quota", "compression") == [
        "/var/lib/box", "yes", "16384", "104857600", "zstd",
    ]  # fmt: skip
    assert get(site, f"{BOX}-cache", "mountpoint", "sync") == ["/var/cache/box", "disabled"]
    (guid,) = get(site, BOX, "guid")
    assert get(site, BOX, "hearth.homelab:mark", "hearth.homelab:sentinel") == [f"{HOST}/box/{guid}", guid]
    assert site.ssh(HOST, "stat -c '%U %a' /var/lib/box /var/cache/box").split() == ["box", "750", "box", "700"]
    ledger = json.loads(site.ssh(HOST, "cat /var/lib/hearth/storage.json"))
    assert ledger["storage"]["/var/lib/box"] == {"id": guid, "sentinel": True, "service": "box"}
    # Nothing of the mark is a file among the data.
    assert site.ssh(HOST, "ls -A /var/lib/box").split() == ["starts"]


def test_the_second_run_changes_nothing_in_one_exchange(site: Site) -> None:
    result = play(site).converge(HOST)
    assert not result["changed"], result["actions"]
    assert result["exchanges"] == 1


def test_a_changed_property_is_found_and_mended_and_restarts_nothing(site: Site) -> None:
    before = starts(site)
    site.ssh(HOST, f"zfs set recordsize=1M {BOX}; zfs inherit sync {BOX}-cache")
    planned = play(site, "--check", "--diff")
    assert planned.actions(HOST) == {"modify storage:/var/lib/box", "modify storage:/var/cache/box"}
    assert play(site).actions(HOST) == planned.actions(HOST)
    assert get(site, BOX, "recordsize") == ["16384"]
    assert get(site, f"{BOX}-cache", "sync") == ["disabled"]
    assert not play(site).converge(HOST)["changed"]
    assert starts(site) == before


def test_it_does_not_start_while_its_dataset_is_away_and_a_run_brings_both_back(site: Site) -> None:
    site.ssh(HOST, f"systemctl stop box.service && zfs unmount {BOX}")
    said = site.ssh(HOST, "systemctl start box.service 2>&1; journalctl -b -u hearth-gate@box.service -n 5 -o cat")
    assert f"{BOX} is not mounted, and it holds data of box" in said
    assert not active(site)
    assert site.ssh(HOST, "ls -A /var/lib/box") == ""  # nothing was written under it
    assert play(site).actions(HOST) >= {"modify storage:/var/lib/box", "start unit:box.service"}
    assert active(site)
    assert not play(site).converge(HOST)["changed"]


def test_it_comes_back_after_a_reboot(site: Site) -> None:
    before = starts(site)
    boot = site.ssh(HOST, "cat /proc/sys/kernel/random/boot_id")
    site.ssh(HOST, "systemctl reboot", check=False)
    wait_until(
        "another boot",
        lambda: site.ssh(HOST, "cat /proc/sys/kernel/random/boot_id", check=False) not in ("", boot),
        300,
        5,
    )
    # systemd breaks a cycle by leaving a unit out, such as the one that mounts the datasets.
    assert "ordering cycle" not in site.ssh(HOST, "journalctl -b -o cat _PID=1")
    wait_until("box", lambda: active(site), 60)
    assert starts(site) == before + 1


def test_data_that_is_lost_is_said_and_nothing_starts_in_its_place(site: Site) -> None:
    site.ssh(HOST, f"systemctl stop box.service && zfs destroy {BOX}")
    outcome = play(site, expect=2)
    assert "/var/lib/box held data of box, but it does not exist now" in outcome.message
    assert "-e start_empty=box" in outcome.message
    site.ssh(HOST, "systemctl start box.service", check=False)
    assert not active(site)
    assert site.ssh(HOST, f"zfs list {BOX} 2>&1 || true").endswith("dataset does not exist\n")
    # An empty one of the same name is not it.
    site.ssh(HOST, f"zfs create -o mountpoint=/var/lib/box {BOX}")
    assert "held data of box" in play(site, expect=2).message
    site.ssh(HOST, f"zfs destroy {BOX}")
    play(site, variables={"start_empty": "box"})
    assert active(site)
    assert starts(site) == 1
    assert not play(site).converge(HOST)["changed"]


#: What a person made before, by the name of the service that comes to it: how, and what is said of it.
FOUND = {
    "directory": ("mkdir -p {path}; echo mine > {path}/photo", "has content that Hearth did not make (photo)"),
    "dataset": ("zfs create -o mountpoint={path} {dataset}; echo mine > {path}/photo", "(photo)"),
    "unmounted": ("zfs create -o canmount=noauto -o mountpoint={path} {dataset}", "nobody can say what is in it"),
    "clone": (
        f"zfs snapshot {BOX}@x; zfs clone -o mountpoint={{path}} {BOX}@x {{dataset}}",
        f"it is a clone of {BOX}@x",
    ),
}  # fmt: skip


@pytest.fixture
def new(site: Site) -> t.Iterator[None]:
    """Further services, each on what a person made before."""
    services: dict[str, t.Any] = {
        name: {
            "contribution": {
                "summary": "Comes later", "tier": "services", "run": {"native": {}}, "user": {"name": name, "id": 3060 + number},
                "storage": {"state": {"mountpoint": f"/srv/{name}"}}, "protect": {"class": "standard"},
            }
        }
        for number, name in enumerate(FOUND)
    }  # fmt: skip
    site.set_vars(f"host_vars/{HOST}/zz_later.yml", {"hearth_services__later": services})
    made = [made.format(path=f"/srv/{name}", dataset=f"tank/services/{name}") for name, (made, _said) in FOUND.items()]
    site.ssh(HOST, "; ".join(made))
    yield
    site.set_vars(f"host_vars/{HOST}/zz_later.yml", None)
    for name in FOUND:
        site.ssh(HOST, f"zfs destroy -r tank/services/{name}; rm -rf /srv/{name}", check=False)
    site.ssh(HOST, f"zfs destroy {BOX}@x", check=False)
    play(site)


def test_what_is_somebodys_is_left_alone(site: Site, new: None) -> None:
    # Statistics, whose source is "-", change by themselves.
    datasets, paths = (" ".join(f"{below}/{name}" for name in FOUND) for below in ("tank/services", "/srv"))
    look = f"zfs get -Hp -s local,inherited,received,default all {datasets}; zfs get -Hp guid,mounted {datasets}; ls -lA {paths}"
    look = f"({look}; true) 2>&1"
    before = site.ssh(HOST, look)
    outcome = play(site, expect=2)
    for name, (_made, said) in FOUND.items():
        assert any(f"/{name} " in line and said in line for line in outcome.message.splitlines()), name
    assert before == site.ssh(HOST, look)
