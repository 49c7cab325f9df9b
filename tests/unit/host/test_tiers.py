# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What tiers answer, from what restic 0.18 and zfs print. Nothing that could be a mistake is ever "empty"."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.hearth.homelab.plugins.module_utils import tiers
from ansible_collections.hearth.homelab.plugins.module_utils.preseed import Point
from ansible_collections.hearth.homelab.plugins.module_utils.runner import Completed, FakeRunner

ID = "47dfa0c5" + 56 * "0"

#: As Debian 13's restic printed it; the ids are made up.
CONFIG = f"""{{
  "version": 2,
  "id": "{ID}",
  "chunker_polynomial": "3742"
}}
"""
SNAPSHOTS = (
    '[{"time":"2026-11-21T14:21:18.209571323Z","tree":"16aee4a1",'
    '"paths":["/tmp/apt/data"],"hostname":"forge","username":"root","tags":["sonarr"],"program_version":"restic 0.18.0",'
    '"summary":{"backup_start":"2026-11-21T14:21:18.209571323Z","backup_end":"2026-11-21T14:21:18.961038149Z",'
    '"files_new":2,"total_files_processed":2,"total_bytes_processed":2097155},'
    '"id":"6446b868f93a","short_id":"6446b868"}]\n'
)
MISSING = Completed(
    ("restic",),
    10,
    "",
    "Fatal: repository does not exist: unable to open config file: stat nope/config: no such file\n",
)
PASSWORD = Completed(("restic",), 12, "", "Fatal: wrong password or no key found\n")
LOCKED = Completed(("restic",), 11, "", "unable to create lock in backend: repository is already locked\n")

REPOSITORY = tiers.Restic("offsite", ID, {"RESTIC_REPOSITORY": "/mnt/backup"}, mount="/mnt/backup")
CAT, LIST = "restic --no-lock cat config", "restic --no-lock snapshots --json --host forge --tag sonarr"


def restic(config: str | Completed, snapshots: str | Completed = "[]\n", mounted: bool = True) -> t.Any:
    runner = FakeRunner({CAT: config, LIST: snapshots})
    return tiers.restic(runner, REPOSITORY, "forge", "sonarr", lambda _path: mounted)


def test_restic_points() -> None:
    found = restic(CONFIG, SNAPSHOTS)
    assert found.answer == "points"
    (point,) = found.points
    assert point.id.startswith("6446b868")
    assert point.time == pytest.approx(1795270878.209571)
    assert point.bytes == 2097155


def test_restic_is_empty_only_as_the_recorded_repository() -> None:
    assert restic(CONFIG).answer == "empty"
    other = restic(CONFIG.replace("47dfa0c5", "00000000"))
    assert other.answer == "unknown"
    assert "the repository there is 00000000, and 47dfa0c5 is recorded" in other.reason


@pytest.mark.parametrize(
    ("config", "snapshots", "says"),
    [
        (MISSING, "[]", "there is no repository"),
        (PASSWORD, "[]", "its password is not the repository's"),
        (CONFIG, LOCKED, "is locked"),
        (CONFIG, Completed(("restic",), 1, "", "Fatal: unexpected HTTP response (503)\n"), "503"),
        (CONFIG, "", "not understood"),
        (CONFIG, '[{"id": "x"}]', "not understood"),
        (CONFIG, '[{"id": "x", "time": "yesterday"}]', "not understood"),
        ("{}", "[]", "printed no id"),
        (Completed(("restic",), 124, "", "\nstopped after 60 s"), "[]", "stopped after 60 s"),
    ],
)  # fmt: skip
def test_whatever_goes_wrong_with_restic_is_not_empty(config: t.Any, snapshots: t.Any, says: str) -> None:
    found = restic(config, snapshots)
    assert found.answer == "unknown"
    assert says in found.reason


def test_a_path_that_is_not_mounted_is_not_even_asked() -> None:
    runner = FakeRunner({CAT: CONFIG, LIST: "[]"})
    found = tiers.restic(runner, REPOSITORY, "forge", "sonarr", lambda _path: False)
    assert (found.answer, found.reason) == ("unknown", "/mnt/backup is not mounted")
    assert runner.calls == []


NAS = tiers.Replica("nas-1", "pond/replicas/sonarr", ("ssh", "nas-1"), "123")
LISTED = "pond/replicas/sonarr@hourly-1\t11\t1795270000\npond/replicas/sonarr@hourly-2\t12\t1795273600\n"


def replica(stdout: str, code: int = 0, stderr: str = "") -> t.Any:
    return tiers.replica(FakeRunner({"ssh": Completed(("ssh",), code, stdout, stderr)}), NAS)


def test_replica_points() -> None:
    found = replica(f"123\n{LISTED}")
    assert found.points == (Point(1795270000.0, "hourly-1"), Point(1795273600.0, "hourly-2"))


@pytest.mark.parametrize(
    ("stdout", "code", "stderr", "answer", "says"),
    [
        ("123\n", 0, "", "empty", ""),
        ("123\n", 1, "cannot open 'pond/replicas/sonarr': dataset does not exist\n", "empty", ""),
        ("999\n", 0, "", "unknown", "pool pond there is 999, and 123 is recorded"),
        (f"999\n{LISTED}", 0, "", "unknown", "another pool"),
        ("", 255, "ssh: connect to host nas-1 port 22: No route to host\n", "unknown", "No route to host"),
        ("", 255, "Host key verification failed.\n", "unknown", "Host key verification failed"),
        ("", 1, "cannot open 'pond': no such pool\n", "unknown", "no such pool"),
        ("123\n", 1, "cannot open 'pond/replicas/sonarr': I/O error\n", "unknown", "I/O error"),
    ],
)  # fmt: skip
def test_replica_is_empty_only_in_the_recorded_pool(
    stdout: str, code: int, stderr: str, answer: str, says: str
) -> None:
    found = replica(stdout, code, stderr)
    assert found.answer == answer
    assert says in found.reason


def test_own_snapshots() -> None:
    gone = Completed(("zfs",), 1, "", "cannot open 'tank/x': dataset does not exist\n")
    assert tiers.snapshots(FakeRunner({"zfs list": gone}), "tank/x").answer == "empty"
    broken = Completed(("zfs",), 1, "", "cannot open 'tank/x': I/O error\n")
    assert tiers.snapshots(FakeRunner({"zfs list": broken}), "tank/x").answer == "unknown"
    assert len(tiers.snapshots(FakeRunner({"zfs list": LISTED}), "tank/x").points) == 2


def test_all_are_asked_and_a_silent_one_hides_no_other() -> None:
    runner = FakeRunner(
        {
            "zfs list": LISTED,
            "ssh": Completed(("ssh",), 255, "", "No route to host\n"),
            "restic --no-lock cat config": CONFIG,
            LIST: SNAPSHOTS,
        }
    )
    found = tiers.ask(
        runner,
        dataset="tank/x",
        replicas=[NAS],
        repositories=[tiers.Restic("offsite", ID)],
        host="forge",
        service="sonarr",
    )
    assert [(entry.method, entry.answer) for entry in found] == [
        ("snapshot", "points"), ("replica", "unknown"), ("restic", "points"),
    ]  # fmt: skip
