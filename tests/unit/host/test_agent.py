# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The exchange, redaction, and the small parsers and stores of the agent."""

from __future__ import annotations

import base64
import io
import os
import sys
import urllib.parse
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible_collections.hearth.homelab.plugins.module_utils import (
    agent,
    generations,
    health,
    packages,
    postgresql,
    protocol,
    scram,
)
from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.module_utils.actions import Action
from ansible_collections.hearth.homelab.plugins.module_utils.layout import Layout, write_json
from ansible_collections.hearth.homelab.plugins.module_utils.redact import MASK, Redactor
from ansible_collections.hearth.homelab.plugins.module_utils.runner import Completed

# --- protocol ---------------------------------------------------------------------------------------------------


def test_requests_and_answers_survive() -> None:
    data = {"text": "ü\n@@HEARTH@@", "list": [1, None, True]}
    assert protocol.decode_request(protocol.encode_request(data)) == data
    assert protocol.decode_request(b' {"a": 1}\n') == {"a": 1}
    assert protocol.decode_request(b"") == {}
    noise = "Last login: today\n" + protocol.encode_response(data) + "\nlogout\n"
    assert protocol.decode_response(noise) == data


@pytest.mark.parametrize("content", [b"!!!", b"[1]", protocol.encode_request({"a": 1})[:-5]])
def test_what_is_no_request_is_refused(content: bytes) -> None:
    with pytest.raises(protocol.ProtocolError):
        protocol.decode_request(content)


def test_no_answer_shows_what_came_instead() -> None:
    with pytest.raises(protocol.ProtocolError, match="python3: not found"):
        protocol.decode_response("sh: 1: python3: not found\n")


def test_the_answer_of_a_failed_command_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"run": "../../etc"}')))
    assert agent.main(["watch"], Layout(tmp_path)) == 1
    assert "is not a run id" in protocol.decode_response(capsys.readouterr().out)["error"]


def test_events_are_read_in_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert agent._events(path, 0) == ([], 0)
    path.write_text('{"text": "a"}\n{"te')
    found, offset = agent._events(path, 0)
    assert (found, offset) == ([{"text": "a"}], 14)
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    assert agent._events(path, offset)[0] == [{"text": "b"}]


@pytest.mark.parametrize("name", ["a", "a/b/c", "../x", "a/..", "/x", "a/"])
def test_secret_names_do_not_leave_the_store(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not a secret's name"):
        Layout(tmp_path).secret(name)


# --- redaction --------------------------------------------------------------------------------------------------

SECRET = "p@ss word'\"/ü+x"


@pytest.mark.parametrize(
    "text",
    [
        SECRET,
        urllib.parse.quote(SECRET, safe=""),
        urllib.parse.quote_plus(SECRET),
        base64.b64encode(SECRET.encode()).decode(),
        base64.b64encode(f"u:{SECRET}".encode()).decode(),  # HTTP basic authentication
        base64.b64encode(f"us:{SECRET}:x".encode()).decode(),
        base64.urlsafe_b64encode(f"use:{SECRET}".encode()).decode(),
        SECRET.encode().hex(),
        'x"' + SECRET.replace('"', '\\"') + '"',
    ],
)
def test_every_form_of_a_secret_is_replaced(text: str) -> None:
    found = Redactor([SECRET]).text(f"before {text} after")
    assert MASK in found
    assert SECRET not in found
    assert found.startswith("before ")
    assert found.endswith(" after")
    # What is left of an encoded text does not contain the secret either.
    for part in found.split():
        for padding in ("", "=", "=="):
            try:
                assert SECRET.encode() not in base64.b64decode(part.replace(MASK, "") + padding)
            except ValueError:
                continue


def test_lines_of_a_key_are_replaced_and_its_frame_is_not() -> None:
    key = "-----BEGIN KEY-----\nQUJDREVGR0hJSktM\nMTIzNDU2Nzg5MDEy\n-----END KEY-----\n"
    found = Redactor([key]).data({"error": ["-----BEGIN KEY----- line 2: MTIzNDU2Nzg5MDEy"], "n": 1})
    assert found == {"error": [f"-----BEGIN KEY----- line 2: {MASK}"], "n": 1}


def test_empty_values_replace_nothing() -> None:
    assert Redactor(["", " ", "\n"]).text("a b") == "a b"


# --- PostgreSQL -------------------------------------------------------------------------------------------------


def test_scram_is_that_of_rfc_7677() -> None:
    # RFC 7677 section 3: user "user", password "pencil"; the server signature there follows from this ServerKey.
    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    assert scram.verifier("pencil", salt, 4096) == (
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$"
        "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
    )


@pytest.mark.parametrize("password", ["pencil", "p'w\"\\ x", "I\u00adX", "\u2168", "a\u00a0b", "\u0627\u0031", "\x07"])
def test_a_verifier_matches_its_password_only(password: str) -> None:
    stored = scram.verifier(password)
    assert scram.matches(password, stored)
    assert not scram.matches(password + "x", stored)


@pytest.mark.parametrize(
    ("password", "prepared"),
    # RFC 4013 section 3; what is forbidden is taken as it is, as the server does.
    [("I\u00adX", "IX"), ("user", "user"), ("\u00aa", "a"), ("\u2168", "IX"), ("\u0007", "\u0007"), ("\u0627\u0031", "\u0627\u0031")],
)  # fmt: skip
def test_saslprep(password: str, prepared: str) -> None:
    assert scram.saslprep(password) == prepared


@pytest.mark.parametrize("stored", ["", "md5abc", "SCRAM-SHA-256$x", "SCRAM-SHA-256$4096:W22Z$a:b"])
def test_other_stored_passwords_do_not_match(stored: str) -> None:
    assert not scram.matches("pencil", stored)


def test_the_batch_quotes_names_and_never_has_a_password() -> None:
    items: dict[str, m.Item] = {
        "postgresql_role:a\"b": m.PostgresqlRole('a"b', "s", secret="s/pw"),
        "postgresql_database:d": m.PostgresqlDatabase("d", "s", owner='a"b', extensions=("hstore",)),
    }  # fmt: skip
    todo = [
        Action("postgresql_database:d", "create", "s"),
        Action('postgresql_role:a"b', "create", "s"),
        Action("postgresql_role:gone", "disable", "s"),
    ]
    lines = postgresql.batch(todo, items, lambda name: f"plain {name}")
    assert lines[0].startswith('CREATE ROLE "a""b" LOGIN PASSWORD \'SCRAM-SHA-256$')
    assert lines[1] == 'ALTER ROLE "gone" NOLOGIN;'
    assert lines[2].startswith('CREATE DATABASE "d" OWNER "a""b"')
    assert lines[3:] == ['\\connect "d"', 'CREATE EXTENSION IF NOT EXISTS "hstore";', "\\connect postgres"]
    assert "plain" not in "\n".join(lines)


def test_memberships_are_made_exact() -> None:
    item = m.PostgresqlRole("o'hara", "s", member_of=("pg_monitor", "pg_checkpoint"))
    grants = [
        f'GRANT "{role}" TO "o\'hara" WITH ADMIN FALSE, INHERIT TRUE, SET TRUE;'
        for role in ("pg_checkpoint", "pg_monitor")
    ]
    assert postgresql.batch([Action(item.id, "create", "s")], {item.id: item}, str)[1:] == grants
    _alter, revoke, *rest = postgresql.batch([Action(item.id, "modify", "s")], {item.id: item}, str)
    assert rest == grants
    assert "m.rolname = 'o''hara'" in revoke
    assert "r.rolname IN ('pg_checkpoint', 'pg_monitor')" in revoke


def test_a_role_is_given_back_the_memberships_that_it_had() -> None:
    before = postgresql.RoleState(True, None, ("pg_monitor",))
    assert postgresql.RoleState.from_json(before.to_json()) == before
    # A journal of an older version, settled by this one.
    assert postgresql.RoleState.from_json(b'{"login": true, "password": null}').member_of == ()


@pytest.mark.parametrize(("text", "expected"), [("a", "'a'"), ("a'b", "'a''b'"), ("a\\b'", "E'a\\\\b'''")])
def test_literals(text: str, expected: str) -> None:
    assert postgresql.literal(text) == expected


# --- packages and units -----------------------------------------------------------------------------------------


def test_what_apt_would_do() -> None:
    output = "NOTE: x\nInst caddy (2.6 Debian:13 [amd64])\nRemv systemd-timesyncd [257]\nConf caddy (2.6)\n"
    assert packages.parse_simulation(output) == packages.Simulation(("caddy",), ("systemd-timesyncd",))


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("E: Unable to locate package nope\nE: Unable to locate package nope2\n", ["nope", "nope2"]),
        ("E: Package 'old' has no installation candidate\n", ["old"]),
        ("E: Unmet dependencies.\n", []),
    ],
)
def test_packages_that_apt_does_not_know(output: str, expected: list[str]) -> None:
    assert packages.parse_unknown(output) == expected


def test_space_that_packages_take() -> None:
    output = (
        "Package: ntfy\nVersion: 2.11.0-2+b4\nInstalled-Size: 15110\nSize: 4560048\n\n"
        "Package: redis-server\nInstalled-Size: 212\nSize: 89000\n"
    )
    assert packages.parse_space(output) == (15110 + 212) * 1024


def test_asking_for_space_installs_nothing() -> None:
    """apt-get --assume-no installs when it has nothing to ask: a package came before its user had its id."""

    class Recorder:
        def __init__(self) -> None:
            self.commands: list[list[str]] = []

        def run(self, argv: list[str], **_options: object) -> Completed:
            self.commands.append(list(argv))
            output = (
                "Inst ntfy (2.11.0-2+b4 Debian:13.7/stable [amd64])\n"
                if argv[0] == "apt-get"
                else "Installed-Size: 15110\n"
            )
            return Completed(tuple(argv), 0, output, "")

    runner = Recorder()
    assert packages.space_needed(SimpleNamespace(runner=runner), ["ntfy"]) == 15110 * 1024
    assert all("-s" in command for command in runner.commands if command[0] == "apt-get")


def test_units_are_told_by_position_not_by_id() -> None:
    output = (
        "Id=ssh.service\nLoadState=loaded\nActiveState=active\nSubState=running\nNRestarts=2\nJob=0\nUnitFileState=enabled\n\n"
        "Id=x.service\nLoadState=not-found\nActiveState=inactive\nSubState=dead\nUnitFileState=\n"
    )
    units = health.parse_units(["sshd.service", "x.service"], output)
    assert units["sshd.service"].running
    assert (units["sshd.service"].restarts, units["sshd.service"].enabled) == (2, True)
    assert (units["x.service"].load, units["x.service"].enabled) == ("not-found", None)


# --- generations ------------------------------------------------------------------------------------------------


def manifest(*services: str, text: str = "") -> m.Manifest:
    items = [m.File(f"/etc/{name}", name, digest=m.digest(f"{name}{text}".encode())) for name in services]
    states = {name: m.ServiceState(name, "services", summary=text) for name in services}
    validators = tuple(m.Validator(name, name, ("true",), (f"/etc/{name}",)) for name in services)
    return m.Manifest("h", "debian13", "amd64", states, m.sort_items(items), validators)


def test_held_services_stay_as_they_were() -> None:
    old, new = manifest("a", "b", text="old"), manifest("a", "b", "c", text="new")
    found = generations.effective(new, old, {"b", "c"})
    assert sorted(found.services) == ["a", "b"]
    assert found.services["a"].summary == "new"
    assert found.services["b"].summary == "old"
    assert {item.id: item for item in found.items} == {
        "file:/etc/a": new.by_id()["file:/etc/a"],
        "file:/etc/b": old.by_id()["file:/etc/b"],
    }
    assert sorted(entry.service for entry in found.validators) == ["a", "b"]
    assert generations.effective(new, old, set()) is new


def test_generations_are_recorded_once_and_pruned(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.prepare()
    assert generations.current(layout) is None
    first = generations.record(layout, manifest("a"))
    assert generations.record(layout, manifest("a")).number == first.number
    for number in range(30):
        generations.record(layout, manifest("a", text=str(number)), partial={"b": "why"})
    found = generations.current(layout)
    assert found is not None
    assert (found.number, found.partial) == (31, {"b": "why"})
    blob = found.manifest.by_id()["file:/etc/a"]
    assert isinstance(blob, m.File)
    for name in (blob.digest, "unreferenced"):
        (layout.blobs / name).write_text("x")
    generations.prune(layout)
    assert generations.numbers(layout) == list(range(12, 32))
    assert os.listdir(layout.blobs) == [blob.digest]


def test_generation_0_keeps_what_was_there_first(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.prepare()
    layout.at("/etc").mkdir()
    layout.at("/etc/file").write_text("first")
    layout.at("/etc/link").symlink_to("first")
    assert generations.keep_originals(layout, ["/etc/file", "/etc/link", "/etc/none", "/etc"]) == [
        "/etc/file",
        "/etc/link",
    ]
    layout.at("/etc/file").write_text("second")
    assert generations.keep_originals(layout, ["/etc/file"]) == []
    entries = generations.originals(layout)
    assert generations.original_content(layout, entries["/etc/file"]) == b"first"
    assert entries["/etc/link"]["target"] == "first"


def test_directories_that_were_made_are_remembered_while_they_are_there(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.prepare()
    generations.keep_made_directories(layout, ["/etc/a", "/etc/b"])
    assert generations.made_directories(layout) == ["/etc/a", "/etc/b"]
    layout.at("/etc/a").mkdir(parents=True)
    generations.keep_made_directories(layout, ["/etc/c"])
    assert generations.made_directories(layout) == ["/etc/a", "/etc/c"]


def test_generation_0_keeps_how_units_were_first(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.prepare()
    assert generations.original_units(layout) == {}
    first = {
        "ssh.service": {"active": True, "enabled": True, "loaded": True},
        "static.service": {"active": True, "enabled": None, "loaded": True},
        "new.service": {"active": False, "enabled": None, "loaded": False},
    }
    generations.keep_original_units(layout, first)
    # What they were like first is what counts: one of ours that something started again was not there before Hearth.
    generations.keep_original_units(layout, {"ssh.service": {"active": False, "enabled": False, "loaded": True}})
    generations.keep_original_units(layout, {"new.service": {"active": True, "enabled": True, "loaded": True}})
    assert generations.original_units(layout) == {
        "ssh.service": {"active": True, "enabled": True},
        "static.service": {"active": True, "enabled": False},
        "new.service": {"active": False, "enabled": False},
    }


def test_a_manifest_of_another_format_is_refused() -> None:
    data = replace(manifest("a"), schema=2).to_dict()
    with pytest.raises(ValueError, match="has schema 2"):
        m.Manifest.from_dict(data)


# --- runs that ended while nobody watched -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"ok": True}, "it was finished"),
        (
            {"ok": False, "undone": True, "problems": [{"message": "it was killed"}]},
            "everything was undone (it was killed)",
        ),
        ({"ok": False, "taken_back": {"b": "", "a": ""}}, "it was finished, but a, b held back"),
        ({"ok": False, "problems": [{"message": "full"}]}, "it failed (full)"),
    ],
)
def test_a_run_that_nobody_watched_is_said_once(tmp_path: Path, result: dict[str, object], expected: str) -> None:
    layout = Layout(tmp_path)
    layout.prepare()
    for name, age in (("old", 100), ("last", 1)):
        (layout.runs / name).mkdir()
        write_json(layout.runs / name / "request.json", {"owner": "rydev@laptop"})
        write_json(layout.runs / name / "result.json", result)
        os.utime(layout.runs / name / "result.json", (1000 - age, 1000 - age))
    for check in (True, True, False):  # a check changes nothing, so it says it again
        (notice,) = agent._missed(layout)
        assert notice.message == f"run last of rydev@laptop ended while nobody watched it: {expected}"
        agent.told(layout, "compare", {"check": check}, {})
    assert agent._missed(layout) == []


def test_a_run_whose_controller_has_the_result_is_not_said(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.prepare()
    (layout.runs / "r1").mkdir()
    write_json(layout.runs / "r1" / "request.json", {})
    write_json(layout.runs / "r1" / "result.json", {"ok": True})
    answer = agent.watch(layout, {"run": "r1", "timeout": 0})
    assert answer["done"]
    assert agent._missed(layout) != []  # the answer may never arrive
    agent.told(layout, "watch", {"run": "r1"}, answer)
    assert agent._missed(layout) == []


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        # systemctl show of systemd 257: the run, hearth-settle, hearth-settle-late.
        ("ActiveState=inactive\nJob=\n\nActiveState=inactive\nJob=\n\nActiveState=inactive\nJob=\n", False),
        ("ActiveState=active\nJob=\n\nActiveState=inactive\nJob=\n\nActiveState=inactive\nJob=\n", True),
        ("ActiveState=inactive\nJob=\n\nActiveState=activating\nJob=\n\nActiveState=inactive\nJob=\n", True),
        # Queued by OnFailure=, or by the boot, and not started yet.
        ("ActiveState=failed\nJob=\n\nActiveState=inactive\nJob=3044\n\nActiveState=inactive\nJob=\n", True),
        ("ActiveState=inactive\nJob=\n\nActiveState=inactive\nJob=\n\nActiveState=inactive\nJob=12\n", True),
    ],
)
def test_a_run_ended_without_a_result_only_if_nothing_will_settle_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: str, expected: bool
) -> None:
    class Runner:
        def run(self, argv: list[str], **_options: object) -> Completed:
            assert argv[:2] == ["systemctl", "show"]
            assert argv[-3:] == ["hearth-apply-r1.service", "hearth-settle.service", "hearth-settle-late.service"]
            return Completed(argv, 0, shown, "")

    monkeypatch.setattr(agent, "SystemRunner", Runner)
    layout = Layout(tmp_path)
    layout.prepare()
    (layout.runs / "r1").mkdir()
    write_json(layout.runs / "r1" / "request.json", {})
    answer = agent.watch(layout, {"run": "r1", "timeout": 0})
    assert answer["done"] is not expected
    if answer["done"]:
        assert answer["result"]["problems"][0]["message"] == "run r1 ended without a result"
