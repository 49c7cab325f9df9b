# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options' types, and names that are nearly right."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
from ansible_collections.hearth.homelab.plugins.plugin_utils import layers, role_files, templates
from ansible_collections.hearth.homelab.plugins.plugin_utils.role_files import Role, Roles, WrongTypeError

from .fleets import Repository, native

NESTED = {
    "type": "list",
    "elements": "dict",
    "options": {"name": {"type": "str", "required": True}, "port": {"type": "int"}},
}


@pytest.mark.parametrize(
    ("spec", "value", "expected"),
    [
        ({"type": "int"}, 1, 1),
        ({"type": "int"}, "8990", 8990),  # -e port=8990 is a string
        ({"type": "int"}, "eighty", "found 'eighty'; allowed: an integer"),
        ({"type": "int"}, True, "found True; allowed: an integer"),
        ({"type": "bool"}, "yes", True),
        ({"type": "bool"}, "maybe", "allowed: true or false"),
        ({"type": "str"}, 5, "5"),
        ({"type": "str"}, True, "found True; allowed: a string"),
        ({"type": "str"}, ["a"], "found ['a']; allowed: a string"),
        ({}, {"a": 1}, "allowed: a string"),
        ({"type": "float"}, "1.5", 1.5),
        ({"type": "list"}, "a,b", ["a", "b"]),
        ({"type": "list", "elements": "int"}, ["1", 2], [1, 2]),
        ({"type": "list", "elements": "int"}, [1, "x"], "found 'x'; allowed: an integer"),
        ({"type": "list", "elements": "str", "choices": ["a", "b"]}, ["a", "c"], "found 'c'; allowed: a, b"),
        ({"type": "dict"}, "x", "allowed: a mapping"),
        ({"type": "dict", "options": {"a": {"type": "int"}}}, {"a": "1", "x_note": 1}, {"a": 1, "x_note": 1}),
        ({"type": "dict", "options": {"a": {"type": "int"}}}, {"b": 1}, "found 'b'; allowed: one of a"),
        (NESTED, [{"name": "x", "port": "1"}], [{"name": "x", "port": 1}]),
        (NESTED, [{"port": 1}], "allowed: a mapping with name"),
        ({"type": "raw"}, {"any": [1]}, {"any": [1]}),
        ({"type": "int"}, None, None),
    ],
)
def test_types_of_options(tmp_path: Path, spec: dict[str, t.Any], value: t.Any, expected: t.Any) -> None:
    Repository(tmp_path).role("app", native(), options={"app_x": spec})
    role = Role("app", tmp_path / "roles" / "app", templates.environment())
    if isinstance(expected, str) and "allowed:" in expected:
        with pytest.raises(WrongTypeError) as caught:
            role.typed("app_x", value)
        assert expected in str(caught.value)
    else:
        found = role.typed("app_x", value)
        assert found == expected
        assert type(found) is type(expected)


def test_wrong_types_name_the_place_inside(tmp_path: Path) -> None:
    Repository(tmp_path).role("app", native(), options={"app_x": NESTED})
    role = Role("app", tmp_path / "roles" / "app", templates.environment())
    with pytest.raises(WrongTypeError) as caught:
        role.typed("app_x", [{"name": "a"}, {"name": "b", "port": "c"}])
    assert caught.value.path == "app_x[1].port"


def test_defaults_may_be_a_directory(tmp_path: Path) -> None:
    repo = Repository(tmp_path)
    repo.role("app", native())
    repo.write("roles/app/defaults/main/a.yml", "app_a: 1\n")
    repo.write("roles/app/defaults/main/b.yml", "# b\napp_b: 2\n")
    role = Role("app", tmp_path / "roles" / "app", templates.environment())
    assert role.defaults == {"app_a": 1, "app_b": 2}
    assert role.locate_default("app_b").line == 2


def test_a_role_without_contribution_is_none(tmp_path: Path) -> None:
    repo = Repository(tmp_path)
    repo.write("roles/plain/tasks/main.yml", "[]\n")
    roles = Roles([tmp_path / "roles"], templates.environment())
    assert roles.get("plain") is None
    assert roles.without_contribution("plain") == tmp_path / "roles" / "plain"
    assert "chrony" in roles.paths


@pytest.mark.parametrize(
    ("word", "other", "distance"),
    [
        ("port", "port", 0),
        ("prot", "port", 1),
        ("prt", "port", 1),
        ("pork", "port", 1),
        ("xport", "ports", 2),
        ("a", "abcd", 3),
    ],
)
def test_distance(word: str, other: str, distance: int) -> None:
    assert role_files.distance(word, other) == distance
    assert role_files.within_two(word, other) is (distance <= 2)


def test_misspelt() -> None:
    options = ["sonarr_port", "sonarr_image", "radarr_port"]
    assert role_files.misspelt("sonarr_prot", options) == "sonarr_port"
    assert role_files.misspelt("sonarr_colour", options) is None


@pytest.mark.parametrize(
    ("variable", "owner"),
    [("paperless_ai_port", "paperless_ai"), ("paperless_port", "paperless"), ("paper_port", None), ("paperless", None)],
)
def test_the_longest_name_wins(variable: str, owner: str | None) -> None:
    assert role_files.prefix_owner(variable, {"paperless", "paperless_ai"}) == owner


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}\n", {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}),
        (
            "a: [1, 1.5, yes, null, ~, '1', 0x10, 2024-01-01x]\n",
            {"a": [1, 1.5, True, None, None, "1", 16, "2024-01-01x"]},
        ),
        ("a: !unsafe '{{ b }}'\n", {"a": "{{ b }}"}),
        ("1: a\ntrue: b\n", {1: "b"}),
        ("", None),
    ],
)
def test_reading_yaml(tmp_path: Path, text: str, data: t.Any) -> None:
    path = tmp_path / "a.yml"
    path.write_text(text)
    if data == {1: "b"}:  # 1 and true are one key for Python, so the second would be lost
        with pytest.raises(role_files.RoleError, match="given twice"):
            role_files.read_yaml(path)
        return
    assert role_files.read_yaml(path) == data


@pytest.mark.parametrize("text", ["a: !vault x\n", "a: &a [*a]\n", "? [a]\n: b\n", "a: b: c\n"])
def test_yaml_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.yml"
    path.write_text(text)
    with pytest.raises(role_files.RoleError) as caught:
        role_files.read_yaml(path)
    assert caught.value.place.file == str(path)


def test_unsafe_defaults_are_never_rendered(tmp_path: Path) -> None:
    repo = Repository(tmp_path)
    repo.role("app", native(), defaults="app_a: !unsafe '{{ x }}'\napp_b: '{{ x }}'\n")
    role = Role("app", tmp_path / "roles" / "app", templates.environment())
    assert not layers.templated(role.defaults["app_a"])
    assert layers.templated(role.defaults["app_b"])
