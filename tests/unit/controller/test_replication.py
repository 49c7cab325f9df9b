# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""sanoid.conf and the command lines of syncoid."""

from __future__ import annotations

import configparser
import typing as t

import pytest
from ansible_collections.hearth.homelab.plugins.plugin_utils import replication

TEMPLATES = {"services": {"hourly": 48, "daily": 14}, "replica": {"daily": 30, "autosnap": False}}


def read(text: str) -> dict[str, dict[str, str]]:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(text)
    return {name: dict(parser[name]) for name in parser.sections()}


def test_a_template_keeps_exactly_what_it_says() -> None:
    found = read(replication.sanoid_conf({}, TEMPLATES))
    assert found["template_services"] == {
        "frequently": "0", "hourly": "48", "daily": "14", "weekly": "0", "monthly": "0", "yearly": "0",
    }  # fmt: skip
    assert found["template_replica"]["autosnap"] == "no"


def test_datasets_name_their_template_and_their_exceptions() -> None:
    datasets = {
        "tank/services/sonarr": "services",
        "tank/media": {"template": "services", "recursive": "zfs", "hourly": 0},
        "tank/replicas": {"template": "replica", "recursive": True, "process_children_only": True},
    }
    found = read(replication.sanoid_conf(datasets, TEMPLATES))
    assert found["tank/services/sonarr"] == {"use_template": "services"}
    assert found["tank/media"] == {"use_template": "services", "recursive": "zfs", "hourly": "0"}
    assert found["tank/replicas"] == {"use_template": "replica", "recursive": "yes", "process_children_only": "yes"}


def test_everything_that_is_wrong_is_said_at_once() -> None:
    datasets = {
        "tank/a": "service",
        "/tank": "services",
        "tank/b": {"template": "services", "recursive": 2, "hours": 1},
    }
    with pytest.raises(ValueError) as caught:
        replication.sanoid_conf(datasets, {**TEMPLATES, "default": {"daily": True, "autosnap": "no"}})
    assert str(caught.value).splitlines() == [
        "template 'default': letters, digits, _ and - are allowed, and default is sanoid's own",
        "template default: daily is a number, found True",
        "template default: autosnap is true or false, found 'no'",
        "dataset '/tank': this is not a dataset's name",
        "dataset tank/a: there is no template 'service'; there are default, replica, services",
        "dataset tank/b: recursive is true, false or zfs, found 2",
        "dataset tank/b: sanoid has no setting 'hours'",
    ]


def job(**changes: t.Any) -> list[str]:
    data = {"source": "tank/services/sonarr", "target": {"dataset": "tank/r/sonarr", "host": "nas-1"}, **changes}
    return t.cast("list[str]", replication.syncoid_jobs({"sonarr": data})["sonarr"]["argv"])


def test_a_job_never_forces_and_keeps_the_last_common_snapshot() -> None:
    argv = job(target={"dataset": "tank/r/sonarr", "host": "nas-1", "user": "syncoid"})
    assert argv[-2:] == ["tank/services/sonarr", "syncoid@nas-1:tank/r/sonarr"]
    assert {"--no-rollback", "--use-hold", "--create-bookmark", "--no-sync-snap", "--no-privilege-elevation"} <= set(
        argv
    )
    assert not {"--force-delete", "--delete-target-snapshots", "--no-resume"} & set(argv)
    (receive,) = [entry for entry in argv if entry.startswith("--recvoptions=")]
    assert "canmount=noauto" in receive
    assert " x mountpoint" in receive


def test_another_host_is_known_beforehand() -> None:
    argv = job(ssh={"key": "/k", "known_hosts": "/h", "port": 2222})
    assert {"--sshoption=StrictHostKeyChecking=yes", "--sshoption=UserKnownHostsFile=/h", "--sshkey=/k"} <= set(argv)
    assert "--sshport=2222" in argv
    assert not [entry for entry in job(target="pond/r") if entry.startswith("--ssh")]


def test_options() -> None:
    argv = job(raw=True, recursive=True, bandwidth="20m", identifier="nas", exclude=["/cache$"])
    assert {"--sendoptions=w", "--recursive", "--source-bwlimit=20m", "--identifier=nas", "--exclude=/cache$"} <= set(
        argv
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"target": "tank/services/sonarr/copy"}, "the target tank/services/sonarr/copy is inside its source"),
        ({"target": "tank/services/sonarr"}, "is inside its source"),
        ({"source": {"dataset": "tank/a", "host": "forge"}}, "both on another host"),
        ({"source": "tank/a@b"}, "job sonarr: source: 'tank/a@b' is not a dataset's name"),
        ({"target": {"dataset": "tank/a", "host": "nas; rm"}}, "is not a host's name"),
        ({"bandwidth": "fast"}, "bandwidth is a number of bytes"),
        ({"to": "x"}, "there is no 'to'"),
        ({"ssh": {"keys": "x"}}, "there is no 'keys'"),
    ],
)  # fmt: skip
def test_what_is_refused(changes: dict[str, t.Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        job(**changes)
