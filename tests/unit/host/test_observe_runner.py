# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running commands: real processes."""

from __future__ import annotations

import os
import time

import pytest
from ansible_collections.hearth.homelab.plugins.module_utils.runner import (
    TIMED_OUT,
    CommandError,
    FakeRunner,
    System,
    SystemRunner,
)


def test_output_input_and_locale():
    runner = SystemRunner()
    done = runner.run(["sh", "-c", 'cat; echo "$LC_ALL $X" >&2; pwd'], input=b"text\n", env={"X": "y"})
    assert (done.stdout, done.stderr, done.returncode) == ("text\n/\n", "C.UTF-8 y\n", 0)
    assert runner.commands == [("sh", "-c", 'cat; echo "$LC_ALL $X" >&2; pwd')]
    assert "text" not in repr(vars(runner))


def test_a_failure_names_command_status_and_last_lines():
    with pytest.raises(CommandError) as caught:
        SystemRunner().run(["sh", "-c", "for i in 1 2 3 4 5 6 7 8; do echo line $i >&2; done; exit 3"])
    message = str(caught.value)
    assert "exit status 3" in message
    assert "line 8" in message
    assert "line 2" not in message


def test_without_check_the_status_is_the_answer():
    assert SystemRunner().run(["false"], check=False).returncode == 1


def test_a_signal_is_named():
    with pytest.raises(CommandError, match="killed by SIGTERM"):
        SystemRunner().run(["sh", "-c", "kill -TERM $$"])


def test_a_program_that_is_not_installed():
    done = SystemRunner().run(["no-such-program", "x"], check=False)
    assert done.missing
    with pytest.raises(CommandError, match="no-such-program is not installed"):
        SystemRunner().run(["no-such-program", "x"])
    assert not SystemRunner().run(["sh", "-c", "exit 127"], check=False).missing


def test_a_command_that_takes_too_long_ends_with_all_that_it_started():
    started = time.monotonic()
    done = SystemRunner().run(["sh", "-c", "echo begun; sleep 30 & wait"], timeout=0.3, check=False)
    assert time.monotonic() - started < 5
    assert (done.returncode, done.stdout) == (TIMED_OUT, "begun\n")
    assert "stopped after 0.3 s" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user():
    done = SystemRunner().run(["sh", "-c", "id -un; echo $HOME"], user="nobody")
    assert done.stdout == "nobody\n/nonexistent\n"


def test_an_unknown_user():
    with pytest.raises(CommandError, match="there is no user nosuchuser"):
        SystemRunner().run(["id"], user="nosuchuser")


def test_bytes_that_are_not_utf8():
    assert SystemRunner().run(["printf", r"\377"]).stdout == "�"


def test_recorded_answers():
    runner = FakeRunner({"nft": "any", "nft list": lambda argv, content: f"{len(argv)} {content!r}"})
    assert runner.run(["nft", "-f", "x"]).stdout == "any"
    assert runner.run(["nft", "list", "tables"], input=b"in").stdout == "3 b'in'"
    assert runner.run(["nftables"], check=False).missing
    assert len(runner.calls) == 3


def test_files_of_a_tree(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/x").write_text("y")
    os.mkfifo(tmp_path / "etc/fifo")
    system = System(FakeRunner(), str(tmp_path))
    assert system.text("/etc/x") == "y"
    assert system.read("/etc/absent") is None
    assert system.read("/etc/x/below") is None
    assert system.read("/etc/fifo") is None
    assert system.lstat("/etc/absent") is None
