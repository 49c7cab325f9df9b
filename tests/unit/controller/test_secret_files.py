# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Secrets files written by the real sops for a real age key: added to, never changed otherwise, never lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import pytest
import yaml
from ansible_collections.hearth.homelab.plugins.plugin_utils import known, secret_files, secret_values
from ansible_collections.hearth.homelab.plugins.plugin_utils.secret_files import FileError, Sops

SOPS = shutil.which("sops", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")

pytestmark = pytest.mark.skipif(not (SOPS and shutil.which("age-keygen")), reason="sops or age is not installed here")


def option(**variables: str) -> t.Callable[[str], t.Any]:
    return secret_values.sops_option({"sops_binary": SOPS, **variables})


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory for secrets with an age key and the rule that names it."""
    directory = tmp_path / "secrets"
    directory.mkdir()
    _rules(directory, _key(directory / "age-key.txt"))
    return directory


def _key(path: Path) -> str:
    subprocess.run(["age-keygen", "-o", str(path)], capture_output=True, check=True)
    return next(line.split()[-1] for line in path.read_text().splitlines() if "public key" in line)


def _rules(directory: Path, *recipients: str, **more: str) -> None:
    rule = {"path_regex": r"\.sops\.yml$", "age": ",".join(recipients), **more}
    (directory / ".sops.yaml").write_text(yaml.safe_dump({"creation_rules": [rule]}))


def sops(place: Path, **variables: str) -> Sops:
    return Sops(option(sops_age_keyfile=str(place / "age-key.txt"), **variables))


def value(text: str) -> t.Callable[[], str]:
    return lambda: text


def add(path: Path, values: dict[tuple[str, str], str], **more: t.Any) -> dict[tuple[str, str], str]:
    return secret_files.add(path, {key: value(text) for key, text in values.items()}, sops(path.parent), **more)


FIRST = {("sonarr", "api_key"): "a" * 32, ("canary", "pair"): "-----BEGIN-----\nx: y\n-----END-----\n"}


def test_a_new_file_is_encrypted_for_who_may_read_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")  # sops itself would look for its rules from here on
    path = place / "forge.sops.yml"
    assert add(path, FIRST) == FIRST
    text = path.read_text()
    assert "a" * 32 not in text
    assert "BEGIN-----" not in text.replace("-----BEGIN AGE", "")
    assert yaml.safe_load(text)["sonarr"]["api_key"].startswith("ENC[")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sops(place).decrypt(path) == {
        "sonarr": {"api_key": "a" * 32}, "canary": {"pair": FIRST["canary", "pair"]},
    }  # fmt: skip
    assert sorted(entry.name for entry in place.iterdir()) == [".sops.yaml", "age-key.txt", "forge.sops.yml"]


def test_what_is_there_stays_as_it_is(place: Path) -> None:
    path = place / "forge.sops.yml"
    add(path, FIRST)
    path.chmod(0o640)
    before = path.read_text()
    # The rules name somebody else now: the file keeps its recipients.
    _rules(place, _key(place / "other.txt"))
    assert add(path, {**FIRST, ("sonarr", "api_key"): "b" * 32}) == {}
    assert path.read_text() == before
    new = {("sonarr", "other"): "c" * 32, ("radarr", "api_key"): 'd"\\\n\u00e9'}
    assert add(path, {**FIRST, **new}) == new
    after = path.read_text()
    encrypted = [line for line in before.splitlines() if "ENC[" in line and "mac:" not in line]
    assert [line for line in encrypted if line not in after] == []
    assert yaml.safe_load(after)["sops"]["age"] == yaml.safe_load(before)["sops"]["age"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sops(place).decrypt(path)["radarr"] == {"api_key": 'd"\\\n\u00e9'}


def test_a_null_is_filled_and_a_value_replaced_only_when_told(place: Path) -> None:
    path = place / "all.sops.yml"
    text = sops(place).encrypt({"app": {"key": None, "kept": "k"}, "later": None}, path)
    path.write_text(text)
    assert add(path, {("app", "key"): "1", ("app", "kept"): "2", ("later", "key"): "3"}) == {
        ("app", "key"): "1", ("later", "key"): "3",
    }  # fmt: skip
    assert add(path, {("app", "kept"): "4"}, replace={("app", "kept")}) == {("app", "kept"): "4"}
    assert sops(place).decrypt(path) == {"app": {"key": "1", "kept": "4"}, "later": {"key": "3"}}


def test_a_link_stays_a_link(place: Path, tmp_path: Path) -> None:
    path = place / "forge.sops.yml"
    add(path, FIRST)
    elsewhere = tmp_path / "vault"
    elsewhere.mkdir()
    path.rename(elsewhere / "forge.sops.yml")
    path.symlink_to(elsewhere / "forge.sops.yml")
    secret_files.add(path, {("a", "b"): value("c")}, sops(place))
    assert path.is_symlink()
    assert sops(place).decrypt(path)["a"] == {"b": "c"}


class TestNothingIsLost:
    """Whatever goes wrong, the file is what it was, and no copy is left."""

    @pytest.fixture
    def path(self, place: Path) -> Path:
        add(place / "forge.sops.yml", FIRST)
        return place / "forge.sops.yml"

    def fails(self, path: Path, tool: Sops, said: str) -> str:
        before = path.read_bytes() if path.exists() else None
        with pytest.raises(FileError) as caught:
            secret_files.add(path, {("app", "key"): value("hunter2hunter2")}, tool)
        assert said in str(caught.value)
        assert "hunter2" not in str(caught.value)
        assert path.name in str(caught.value)
        assert (path.read_bytes() if path.exists() else None) == before
        assert list(path.parent.glob(".new-*")) == []
        return str(caught.value)

    def test_no_key(self, path: Path) -> None:
        self.fails(path, Sops(option(sops_age_keyfile="/nonexistent")), "SOPS_AGE_KEY_FILE")

    def test_no_sops(self, path: Path) -> None:
        self.fails(path, Sops(secret_values.sops_option({"sops_binary": "/nonexistent/sops"})), "Install sops")

    def test_no_rules(self, place: Path) -> None:
        (place / ".sops.yaml").unlink()
        message = self.fails(
            place / "new.sops.yml", sops(place), "neither its directory nor one above has a .sops.yaml"
        )
        assert "creation_rules:" in message
        assert "age-keygen" in message

    def test_rules_for_other_files(self, place: Path) -> None:
        self.fails(
            place / "new.sops.yml", sops(place, sops_config_path=str(_other_rules(place))), "no matching creation"
        )

    def test_a_new_file_that_could_not_be_read_here(self, place: Path) -> None:
        _rules(place, _key(place / "other.txt"))
        self.fails(place / "new.sops.yml", sops(place), "cannot be decrypted")

    def test_rules_that_leave_it_in_the_clear(self, place: Path) -> None:
        recipient = next(
            line.split()[-1] for line in (place / "age-key.txt").read_text().splitlines() if "public" in line
        )
        _rules(place, recipient, encrypted_regex="^nothing$")
        self.fails(place / "new.sops.yml", sops(place), "would leave app.key in the clear")

    def test_a_file_that_is_not_encrypted(self, place: Path) -> None:
        path = place / "plain.sops.yml"
        path.write_text("app: {other: x}\n")
        self.fails(path, sops(place), "is not encrypted")

    def test_a_damaged_file(self, path: Path) -> None:
        path.write_text(path.read_text().replace("api_key: ENC[AES256_GCM,data:", "api_key: ENC[AES256_GCM,data:AAAA"))
        self.fails(path, sops(path.parent), "cannot be decrypted")

    @pytest.mark.parametrize(
        "script",
        [
            'case "$1" in set) : > "$7"; exit 1;; *) exec SOPS "$@";; esac',  # empties its file, then fails
            'case "$1" in set) : > "$7"; exit 0;; *) exec SOPS "$@";; esac',  # empties it and says that all is well
            'case "$1" in set) exit 0;; *) exec SOPS "$@";; esac',  # does nothing
            'case "$1" in set) cat >&2; exit 1;; *) exec SOPS "$@";; esac',  # prints what it was given
        ],
        ids=["truncates", "lies", "idles", "shows"],
    )
    def test_a_bad_sops(self, script: str, path: Path) -> None:
        tool = path.parent.parent / "bad-sops"
        tool.write_text("#!/bin/sh\n" + script.replace("SOPS", str(SOPS)) + "\n")
        tool.chmod(0o755)
        self.fails(path, sops(path.parent, sops_binary=str(tool)), "forge.sops.yml")

    @pytest.mark.parametrize("moment", ["set", "decrypt"])
    def test_kill_9(self, moment: str, path: Path) -> None:
        """Killed while sops works on the copy, and after it did: the next run finishes what was begun."""
        tool = path.parent.parent / "slow-sops"
        flag = path.parent.parent / "reached"
        # Decrypting comes before and after: of the copy is after.
        slow = f'case "$1 $*" in {moment}*.new-*) touch {flag}; sleep 60;; esac; exec {SOPS} "$@"'
        tool.write_text(f"#!/bin/sh\n{slow}\n")
        tool.chmod(0o755)
        program = (
            "import sys; from pathlib import Path\n"
            "from ansible_collections.hearth.homelab.plugins.plugin_utils import secret_files, secret_values\n"
            "tool = secret_files.Sops(secret_values.sops_option("
            "{'sops_binary': sys.argv[2], 'sops_age_keyfile': sys.argv[3]}))\n"
            "secret_files.add(Path(sys.argv[1]), {('app', 'key'): lambda: 'new'}, tool)\n"
        )
        arguments = [str(path), str(tool), str(path.parent / "age-key.txt")]
        before = path.read_bytes()
        running = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, start_new_session=True,
        )  # fmt: skip
        try:
            end = time.monotonic() + 60
            while not flag.exists():
                assert running.poll() is None
                assert time.monotonic() < end
                time.sleep(0.02)
        finally:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
        assert path.read_bytes() == before
        assert list(path.parent.glob(".new-*"))
        assert add(path, {("app", "key"): "newer"}) == {("app", "key"): "newer"}
        assert sops(path.parent).decrypt(path)["sonarr"] == {"api_key": "a" * 32}
        assert list(path.parent.glob(".new-*")) == []

    def test_two_writers(self, path: Path) -> None:
        """Runs at the same time add to each other's work."""
        program = (
            "import sys; from pathlib import Path\n"
            "from ansible_collections.hearth.homelab.plugins.plugin_utils import secret_files, secret_values\n"
            "tool = secret_files.Sops(secret_values.sops_option("
            "{'sops_binary': sys.argv[2], 'sops_age_keyfile': sys.argv[3]}))\n"
            "secret_files.add(Path(sys.argv[1]), {('app', sys.argv[4]): lambda: 'new'}, tool)\n"
        )
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", program, str(path), str(SOPS), str(path.parent / "age-key.txt"), f"key{number}"],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
            for number in range(3)
        ]
        assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
        assert set(sops(path.parent).decrypt(path)["app"]) == {"key0", "key1", "key2"}


def _other_rules(place: Path) -> Path:
    path = place / "other-rules.yaml"
    path.write_text("creation_rules:\n  - path_regex: nothing-like-it$\n    age: age1x\n")
    return path


# --- known.yml -----------------------------------------------------------------------------------------------------------


def test_public_halves_are_added_and_the_rest_stays(tmp_path: Path) -> None:
    path = tmp_path / known.FILE
    path.write_text("repositories: {nas: {id: abc}}\npublic_keys: {forge: {mesh: {key: old, other: kept}}}\n")
    assert known.write(tmp_path, {"forge": {"mesh": {"key": "new"}}, "nas": {"mesh": {"key": "x"}}})
    data = yaml.safe_load(path.read_text())
    assert data == {
        "repositories": {"nas": {"id": "abc"}},
        "public_keys": {"forge": {"mesh": {"key": "new", "other": "kept"}}, "nas": {"mesh": {"key": "x"}}},
    }
    before = path.read_bytes()
    assert not known.write(tmp_path, {"forge": {"mesh": {"key": "new"}}})
    assert path.read_bytes() == before
    assert known.read([tmp_path, tmp_path / "nowhere"]) == (data, "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("public_keys: [a]\n", "is not what Hearth writes"),
        ("public_keys: {forge: {mesh: key}}\n", "is not what Hearth writes"),
        ("- a\n", "is not what Hearth writes"),
        ("a: [\n", "cannot be read"),
    ],
)
def test_a_damaged_known_file_is_said_and_kept(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / known.FILE).write_text(text)
    assert said in known.read([tmp_path])[1]
    with pytest.raises(FileError, match=said):
        known.write(tmp_path, {"forge": {"mesh": {"key": "new"}}})
    assert (tmp_path / known.FILE).read_text() == text
    assert json.dumps(known.read([tmp_path])[0]) == "{}"
