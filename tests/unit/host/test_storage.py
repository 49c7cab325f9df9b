# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Storage: every state, the mark and the sentinel on real directories, and the gate."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
from ansible_collections.hearth.homelab.plugins.module_utils import storage as s

PATH = "/var/lib/sonarr"
OURS = s.Mark("forge", "sonarr", "1")
DATA = replace(OURS, sentinel=True)
ABSENT = s.StorageFacts(PATH)
EMPTY = s.StorageFacts(PATH, exists=True, is_directory=True)
FULL = replace(EMPTY, empty=False, entries=("config.xml", "sonarr.db"))
KNOWN = s.LedgerEntry("1", "sonarr", sentinel=True)
MARKED = s.LedgerEntry("1", "sonarr")

STATES = [
    ("absent", ABSENT, "new", ""),
    ("an empty directory that a package left", EMPTY, "new", ""),
    ("data", replace(FULL, mark=DATA), "data", ""),
    ("data on a host that was installed anew", replace(FULL, mark=DATA, ledger=None), "data", ""),
    ("data as the ledger knows it", replace(FULL, mark=DATA, ledger=KNOWN), "data", ""),
    ("data whose sentinel the ledger has not seen", replace(FULL, mark=DATA, ledger=MARKED), "data", ""),
    ("marked and empty", replace(EMPTY, mark=OURS), "empty_marked", ""),
    ("an application's skeleton", replace(FULL, mark=OURS, ledger=MARKED), "empty_marked", ""),
    ("a sentinel and no content", replace(EMPTY, mark=DATA), "data", ""),
    ("content without a mark", FULL, "found", "config.xml, sonarr.db"),
    ("a mark that is not root's", replace(FULL, foreign="is not owned by root"), "found", "not owned by root"),
    ("a foreign mark and nothing else", replace(EMPTY, foreign="has an unknown format"), "found", "unknown format"),
    ("another host's", replace(FULL, mark=replace(DATA, host="luna")), "found", "sonarr on luna"),
    ("another service's", replace(FULL, mark=replace(DATA, service="radarr")), "found", "radarr on forge"),
    ("a link", replace(ABSENT, exists=True, is_symlink=True, empty=False), "found", "symbolic link"),
    ("a file", replace(ABSENT, exists=True, empty=False), "found", "not a directory"),
    ("gone", replace(ABSENT, ledger=KNOWN), "lost", "does not exist now"),
    ("wiped", replace(EMPTY, ledger=KNOWN), "lost", "is empty now"),
    ("its mark is gone", replace(FULL, ledger=KNOWN), "lost", "its mark is gone"),
    ("another storage", replace(FULL, mark=replace(DATA, id="2"), ledger=KNOWN), "lost", "another id"),
    ("its sentinel is gone", replace(FULL, mark=OURS, ledger=KNOWN), "lost", "holds none"),
    ("gone before it ever held data", replace(ABSENT, ledger=MARKED), "new", ""),
    ("content in the place of a mark without data", replace(FULL, ledger=MARKED), "found", "config.xml"),
]


@pytest.mark.parametrize(("facts", "state", "message"), [row[1:] for row in STATES], ids=[row[0] for row in STATES])
def test_states(facts, state, message):
    found = s.classify(facts, "forge", "sonarr")
    assert found.state == state
    assert message in found.message
    assert bool(found.message) == bool(message)


@pytest.mark.parametrize(("facts", "state", "message"), [row[1:] for row in STATES], ids=[row[0] for row in STATES])
def test_the_gate_opens_for_marked_storage_only(facts, state, message):
    problems = s.gate("forge", "sonarr", [facts])
    assert (not problems) is (state in ("data", "empty_marked"))
    for problem in problems:
        assert (problem.service, problem.item) == ("sonarr", f"storage:{PATH}")
        assert "sonarr is not started" in problem.message
        assert problem.remedy


def test_the_gate_names_every_storage_and_what_cannot_be_read():
    problems = s.gate(
        "forge", "sonarr", [replace(EMPTY, mark=DATA), EMPTY, replace(ABSENT, error="Input/output error")]
    )
    assert [problem.message for problem in problems] == [
        f"sonarr is not started: {PATH} has no mark of Hearth",
        f"{PATH} cannot be read: Input/output error",
    ]


# -- on real directories ---------------------------------------------------------------------------------------


@pytest.fixture
def host(tmp_path):
    (tmp_path / "var/lib/hearth").mkdir(parents=True)
    (tmp_path / "var/lib/sonarr").mkdir()
    return tmp_path


def facts_of(host, path=PATH):
    return s.read_storage_facts(path, str(host), ledger=s.read_ledger(root=str(host)))


def test_the_life_of_a_storage(host):
    state = s.classify(facts_of(host), "forge", "sonarr")
    assert state.state == "new"
    mark = s.write_mark(PATH, "forge", "sonarr", root=str(host))
    assert s.classify(facts_of(host), "forge", "sonarr").state == "empty_marked"
    (host / "var/lib/sonarr/sonarr.db").write_text("data")
    assert s.write_mark(PATH, "forge", "sonarr", root=str(host)) == mark  # again: the same id
    s.write_sentinel(PATH, "forge", "sonarr", root=str(host))
    facts = facts_of(host)
    assert s.classify(facts, "forge", "sonarr").state == "data"
    assert facts.ledger == s.LedgerEntry(mark.id, "sonarr", True)
    for name in os.listdir(host / "var/lib/sonarr"):
        (host / "var/lib/sonarr" / name).unlink()
    assert s.classify(facts_of(host), "forge", "sonarr").state == "lost"
    # A fresh start that a person asked for: a new mark, and the ledger forgets the data.
    assert s.write_mark(PATH, "forge", "sonarr", root=str(host)).id != mark.id
    assert s.classify(facts_of(host), "forge", "sonarr").state == "empty_marked"


def test_the_mark_is_never_taken_away_by_marking_again(host):
    s.write_mark(PATH, "forge", "sonarr", root=str(host))
    s.write_sentinel(PATH, "forge", "sonarr", root=str(host))
    assert s.write_mark(PATH, "forge", "sonarr", root=str(host)).sentinel
    with pytest.raises(ValueError, match="sonarr on forge"):
        s.write_mark(PATH, "forge", "radarr", root=str(host))


def test_a_sentinel_never_makes_found_data_ours(host):
    (host / "var/lib/sonarr/sonarr.db").write_text("somebody's")
    with pytest.raises(ValueError, match="no mark"):
        s.write_sentinel(PATH, "forge", "sonarr", root=str(host))
    assert not (host / "var/lib/sonarr" / s.MARK).exists()


def test_killed_between_mark_and_ledger(host):
    s.write_mark(PATH, "forge", "sonarr", root=str(host))
    (host / "var/lib/hearth/storage.json").unlink()
    assert s.classify(facts_of(host), "forge", "sonarr").state == "empty_marked"
    mark = s.write_mark(PATH, "forge", "sonarr", root=str(host))
    assert s.read_ledger(root=str(host))[PATH].id == mark.id


def test_what_an_interrupted_write_leaves_is_no_content(host):
    (host / "var/lib/sonarr" / f".{s.MARK}.hearth-tmp").write_text("{")
    (host / "var/lib/sonarr/lost+found").mkdir()
    assert facts_of(host).empty


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "unknown format"),
        ("not json", "unknown format"),
        ("[]", "unknown format"),
        (json.dumps({"schema": 99, "host": "forge", "service": "sonarr", "id": "1"}), "unknown format"),
        (json.dumps({"schema": 1, "host": "forge", "service": "sonarr"}), "unknown format"),
        (json.dumps({"schema": 1, "host": "forge", "service": "sonarr", "id": 1}), "unknown format"),
        ("x" * 5000, "unknown format"),
    ],
)
def test_marks_that_are_not_ours(host, content, reason):
    (host / "var/lib/sonarr" / s.MARK).write_text(content)
    facts = facts_of(host)
    assert reason in facts.foreign
    assert s.classify(facts, "forge", "sonarr").state == "found"
    with pytest.raises(ValueError, match=reason):
        s.write_mark(PATH, "forge", "sonarr", root=str(host))


def test_marks_that_are_no_files(host):
    mark = host / "var/lib/sonarr" / s.MARK
    os.mkfifo(mark)  # must not wait for a writer
    assert "not a regular file" in facts_of(host).foreign
    mark.unlink()
    mark.symlink_to("/etc/hostname")
    assert "cannot be opened" in facts_of(host).foreign


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_mark_that_the_service_wrote_itself(host):
    s.write_mark(PATH, "forge", "sonarr", root=str(host))
    os.chown(host / "var/lib/sonarr" / s.MARK, 65534, 65534)
    assert "not owned by root" in facts_of(host).foreign


def test_links_files_and_absence(host):
    (host / "var/lib/link").symlink_to("sonarr")
    (host / "var/lib/file").write_text("x")
    assert facts_of(host, "/var/lib/link").is_symlink
    file = facts_of(host, "/var/lib/file")
    assert (file.exists, file.is_directory, file.empty) == (True, False, False)
    assert not facts_of(host, "/var/lib/none").exists
    assert not facts_of(host, "/var/lib/file/below").exists


def test_attributes_by_name_and_number(host):
    os.chmod(host / "var/lib/sonarr", 0o750)
    uid, gid = os.getuid(), os.getgid()
    facts = s.read_storage_facts(PATH, str(host), names=({uid: "me"}, {}))
    assert (facts.owner, facts.group, facts.mode) == ("me", str(gid), "0750")


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": 2}', '{"schema": 1, "storage": {"/a": {"bad": 1}}}'])
def test_a_damaged_ledger_is_never_no_ledger(host, content):
    (host / "var/lib/hearth/storage.json").write_text(content)
    with pytest.raises(ValueError, match="storage"):
        s.read_ledger(root=str(host))


def test_remedies():
    assert "start_empty=sonarr" in s.remedy("lost", PATH, "sonarr")
    assert "adopt" in s.remedy("found", PATH, "sonarr")
    assert s.remedy("data", PATH, "sonarr") == ""
