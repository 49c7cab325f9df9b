# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal: replaying, the order of undoing, and what a crash leaves of it."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from ansible_collections.hearth.homelab.plugins.module_utils import journal as j


def open_journal(tmp_path: Path) -> j.Journal:
    directory = tmp_path / "run"
    directory.mkdir(exist_ok=True)
    return j.Journal(directory)


def test_steps_are_undone_in_reverse_and_by_service(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    journal.phase("prepare")
    first = journal.begin("file:/a", "create", "one", {"do": "path"})
    journal.done(first)
    journal.begin("file:/b", "create", "two", {"do": "path"})  # begun, never done: it may have happened
    journal.begin("user:x", "create", "one")  # nothing to undo
    journal.begin("cleanup:masks", "create", "", {"do": "masks"}, cleanup=True)
    third = journal.begin("file:/c", "create", "one", {"do": "path"})
    assert [step.id for step in journal.state.to_undo()] == ["file:/c", "file:/b", "file:/a"]
    assert [step.id for step in journal.state.to_undo({"one"})] == ["file:/c", "file:/a"]
    assert [step.id for step in journal.state.to_clean()] == ["cleanup:masks"]
    journal.undone(third)
    assert [step.id for step in journal.state.to_undo({"one"})] == ["file:/a"]
    assert journal.state.changed == {"file:/a", "file:/b", "user:x"}


def test_owner_and_mode_alone_are_no_change_that_restarts_anything(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    for id_, operation in (("file:/a", "attributes"), ("directory:/b", "modify"), ("secret:x/y", "attributes")):
        journal.begin(id_, operation, "one")
    assert journal.state.changed == set()
    journal.begin("file:/a", "modify", "one")
    assert journal.state.changed == {"file:/a"}


def test_a_journal_read_again_is_the_same(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    journal.phase("prepare")
    journal.baseline({"a.service": {"active": True, "enabled": True}})
    journal.done(*journal.begin_all([("file:/a", "create", "one", None), ("file:/b", "create", "one", None)]))
    journal.held({"one": "why"})
    journal.settled(["one"])
    journal.confirmed()
    journal.close()
    again = open_journal(tmp_path)
    assert again.state == journal.state
    assert again.begin("file:/c", "create", "one") == 3


def test_the_first_baseline_counts(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    journal.baseline({"a.service": {"active": True}})
    journal.baseline({"a.service": {"active": False}, "b.service": {"active": False}})
    assert journal.state.baseline == {"a.service": {"active": True}, "b.service": {"active": False}}


@pytest.mark.parametrize("cut", [2, 5, 20])
def test_a_line_that_a_crash_cut_off_is_ignored_and_repaired(tmp_path: Path, cut: int) -> None:
    journal = open_journal(tmp_path)
    journal.phase("prepare")
    journal.begin("file:/a", "create", "one", {"do": "path"})
    journal.close()
    content = journal.path.read_bytes()
    journal.path.write_bytes(content[:-cut])
    again = open_journal(tmp_path)
    assert again.state.steps == []
    again.begin("file:/b", "create", "one", {"do": "path"})
    again.close()
    lines = [json.loads(line) for line in journal.path.read_text().splitlines()]
    assert [line["type"] for line in lines] == ["phase", "begin"]
    assert lines[1]["step"] == 1


@pytest.mark.parametrize(
    ("phases", "forward", "ended"),
    [
        (["prepare"], False, False),
        (["prepare", "packages", "files", "guarded"], False, False),
        (["prepare", "files", "guarded", "services"], True, False),
        (["prepare", "services", "committed"], False, True),
        # Once undoing began it goes on, whatever a later attempt writes.
        (["prepare", "files", "undoing", "services"], False, False),
        (["prepare", "services", "undoing", "undone"], False, True),
    ],
)
def test_where_an_interrupted_run_goes(phases: list[str], forward: bool, ended: bool) -> None:
    state = j.replay({"type": "phase", "phase": phase, "time": 1.0} for phase in phases)
    assert (state.forward, state.ended) == (forward, ended)


def test_unknown_records_are_ignored() -> None:
    assert j.replay([{"type": "news", "x": 1}]).steps == []


def test_kept_contents_come_back(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    name = journal.keep(b"\0old")
    assert journal.keep(b"\0old") == name
    assert journal.kept(name) == b"\0old"
    assert (journal.before / name).stat().st_mode & 0o777 == 0o600


def test_what_follows_a_damaged_line_is_cut_off(tmp_path: Path) -> None:
    """A power cut may leave zeros in the middle: what is appended behind them would never be read."""
    journal = open_journal(tmp_path)
    journal.phase("prepare")
    journal.close()
    with journal.path.open("ab") as stream:
        stream.write(b"\0\0\0\0\n")
    open_journal(tmp_path).phase("undone")
    assert [record.get("phase") for record in j.read(journal.path)] == ["prepare", "undone"]


@pytest.mark.parametrize("room", [0, 1, 30, 200])
def test_a_full_disk_leaves_no_half_line_and_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    journal = open_journal(tmp_path)
    journal.phase("prepare")
    left, write = [room], os.write

    def full(handle: int, content: bytes) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = write(handle, content[: left[0]])
        left[0] -= done
        return done

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            journal.begin_all(
                [("file:/a", "create", "one", {"do": "path"}), ("file:/b", "create", "one", {"do": "path"})]
            )
    assert journal.path.read_bytes().endswith(b"}\n")
    step = journal.begin("file:/c", "create", "one", {"do": "path"})
    journal.done(step)
    journal.phase("undoing")
    again = j.replay(j.read(journal.path))
    assert again.phase == "undoing"
    assert [(found.id, found.done) for found in again.steps] == [("file:/c", True)]


def test_space_is_reserved_until_something_is_undone(tmp_path: Path) -> None:
    for phase in ("undoing", "committed"):
        journal = open_journal(tmp_path)
        journal.reserve()
        assert (journal.directory / j.RESERVE).stat().st_size == j.RESERVED
        journal.phase("files")
        assert (journal.directory / j.RESERVE).exists()
        journal.phase(phase)
        assert not (journal.directory / j.RESERVE).exists()
