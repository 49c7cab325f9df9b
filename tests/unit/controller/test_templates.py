# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The project's own Jinja environment: native values, strictness, errors with file and line."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
from ansible_collections.hearth.homelab.plugins.plugin_utils import templates
from ansible_collections.hearth.homelab.plugins.plugin_utils.templates import Compiled, Environment, TemplateError

VARIABLES: dict[str, t.Any] = {
    "port": 8989,
    "name": "sonarr",
    "empty": None,
    "flags": [True, False],
    "service": {"name": "sonarr", "ports": {"http": 80, "items": 81}, "secrets": {}},
}


def evaluate(source: str) -> t.Any:
    environment = templates.environment()
    return environment.expression(source)(environment.scope(VARIABLES))


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("{{ port }}", 8989),
        ("{{port}}", 8989),
        ("{{ port + 1 }}", 8990),
        ("{{ port }}0", "89890"),
        ("/var/lib/{{ name }}", "/var/lib/sonarr"),
        ("{{ name }}:{{ service.ports.http }}", "sonarr:80"),
        ("{{ service.ports }}", {"http": 80, "items": 81}),
        ("{{ service.ports.items }}", 81),
        ("{{ service.secrets.items() | list }}", []),
        ("{{ empty }}", None),
        ("{{ true }}", True),
        ("{{ none }}", None),
        ("{{ flags | map('bool') | list }}", [True, False]),
        ("{{ flags | map('bool') }}", [True, False]),
        ("{% if flags[0] %}yes{% else %}no{% endif %}", "yes"),
        ("{{ missing | default(3) }}", 3),
        ("{{ missing is defined }}", False),
        ("{{ [1, 1, 2] | unique | length }}", 2),  # Ansible's unique: a list, not a generator
        ("{{ name | b64encode }}", "c29uYXJy"),
        ("{{ name | ansible.builtin.hash('md5') | length }}", 32),
        ("{{ '1.10' is version('1.9', '>') }}", True),
        ("{{ {'a': 1} | combine({'b': 2}) }}", {"a": 1, "b": 2}),
        ("{{ range(3) | list }}", [0, 1, 2]),
        ("a\n{# gone #}b", "a\nb"),
        ("plain {not} a template", "plain {not} a template"),
    ],
)
def test_expressions(source: str, value: t.Any) -> None:
    assert evaluate(source) == value
    assert type(evaluate(source)) is type(value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ missing }}", "'missing' is undefined"),
        ("{{ missing.key }}", "'missing' is undefined"),
        ("x{{ missing }}", "'missing' is undefined"),
        ("{{ service.nope }}", "has no attribute 'nope'"),
        ("{{ service.nope + 1 }}", "has no attribute 'nope'"),
        ("{{ empty }}x", "gives null where text is made of it"),
        ("{{ empty | string | upper }}{{ none }}", "gives null"),
        ("{{ lookup('env', 'HOME') }}", "lookups are not available"),
        ("{{ q('env', 'HOME') }}", "set a variable to the lookup"),
        ("{{ now() }}", "there is no time in it"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ a b }}", "syntax error in the template '{{ a b }}'"),
        ("{{ name | nofilter }}", "No filter named 'nofilter'"),
        ("{{ name is notest }}", "No test named 'notest'"),
        ("{{ name | mandatory }}{{ port | from_json }}", "JSON"),
    ],
)
def test_errors(source: str, message: str) -> None:
    with pytest.raises(TemplateError) as caught:
        evaluate(source)
    assert message in caught.value.message


def test_simple_references_give_the_same_as_jinja() -> None:
    """The short cut for `{{ a.b }}` must not differ from the compiled form, which a filter forces."""
    for name in ("port", "service.name", "service.ports", "service.ports.items", "flags"):
        assert evaluate(f"{{{{ {name} }}}}") == evaluate(f"{{{{ {name} | default(none) }}}}")
    for name in ("missing", "service.nope", "missing.a.b"):
        messages = []
        for source in (f"{{{{ {name} }}}}", f"{{{{ ({name}) }}}}"):
            with pytest.raises(TemplateError) as caught:
                evaluate(source)
            messages.append(caught.value.message)
        assert messages[0] == messages[1]


def test_equal_strings_are_compiled_once() -> None:
    environment = Environment()
    assert environment.expression("{{ a | upper }}") is environment.expression("{{ a | upper }}")


def test_names_of_an_expression() -> None:
    environment = Environment()
    assert environment.expression("{{ a }}{{ b.c }}").names == {"a", "b"}
    assert environment.expression("{% for x in a %}{{ x }}{{ range(b) }}{% endfor %}").names == {"a", "b"}


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "templates" / "parts").mkdir(parents=True)
    return tmp_path / "templates"


def render(path: Path, **variables: t.Any) -> str:
    return Environment().render_file(path, {**VARIABLES, **variables})


def test_a_file_is_rendered_as_ansible_does(folder: Path) -> None:
    path = folder / "a.j2"
    path.write_text("{% for flag in flags %}\nflag={{ flag }}\n{% endfor %}\nport={{ port }}\n\n")
    assert render(path) == "flag=True\nflag=False\nport=8989\n\n"


def test_includes_are_found_beside_and_below_templates(folder: Path) -> None:
    (folder / "main.j2").write_text("{% include 'parts/one.j2' %}|{% import 'macros.j2' as m %}{{ m.hi(name) }}\n")
    (folder / "parts" / "one.j2").write_text("{% include 'two.j2' %}{% include 'top.j2' %}")
    (folder / "parts" / "two.j2").write_text("two {{ port }}\n")
    (folder / "top.j2").write_text("top")
    (folder / "macros.j2").write_text("{% macro hi(who) %}hi {{ who }}{% endmacro %}")
    assert render(folder / "main.j2") == "two 8989\ntop|hi sonarr\n"


@pytest.mark.parametrize(
    ("files", "file", "line", "message"),
    [
        ({"a.j2": "one\n{{ missing }}\n"}, "a.j2", 2, "'missing' is undefined"),
        ({"a.j2": "one\n{% if %}\n"}, "a.j2", 2, "syntax error"),
        ({"a.j2": "one\n{{ empty }}\n"}, "a.j2", 2, "gives null"),
        ({"a.j2": "one\n\n{{ lookup('env', 'x') }}\n"}, "a.j2", 3, "lookups are not available"),
        ({"a.j2": "{% include 'b.j2' %}", "b.j2": "\n\n{{ missing }}"}, "b.j2", 3, "'missing' is undefined"),
        ({"a.j2": "\n{% include 'nowhere.j2' %}"}, "a.j2", 2, "nowhere.j2 does not exist"),
        ({"a.j2": "{{ port | nofilter }}"}, "a.j2", 1, "No filter named 'nofilter'"),
    ],
)
def test_errors_in_files(folder: Path, files: dict[str, str], file: str, line: int, message: str) -> None:
    for name, content in files.items():
        (folder / name).write_text(content)
    with pytest.raises(TemplateError) as caught:
        render(folder / "a.j2")
    assert message in caught.value.message
    assert (caught.value.file, caught.value.line) == (str(folder / file), line)


def test_a_file_that_does_not_exist(folder: Path) -> None:
    with pytest.raises(TemplateError, match="does not exist"):
        render(folder / "nowhere.j2")


def test_names_of_files(folder: Path) -> None:
    environment = Environment()
    (folder / "a.j2").write_text(
        "name {{ port | default('word') }}\n{% for x in flags %}{{ x.key }}{% endfor %}{% include 'b.j2' %}"
    )
    (folder / "b.j2").write_text("{{ other }}")
    assert {"port", "flags"} <= environment.file_names(folder / "a.j2")
    assert not {"name", "word", "key"} & environment.file_names(folder / "a.j2")
    assert environment.names_of_file(folder / "a.j2") == {"port", "flags", "other"}


# --- data ----------------------------------------------------------------------------------------------------------


def test_data_is_resolved_and_errors_have_paths() -> None:
    environment = Environment()
    compiled = Compiled(environment, {"a": ["{{ port }}", {"b": "{{ missing }}"}], "c": "{{ a b }}", "d": 1})
    failed: list[tuple[t.Any, str]] = []
    value = compiled.resolve(environment.scope(VARIABLES), lambda path, message: failed.append((path, message)))
    assert value == {"a": [8989, {"b": None}], "c": "{{ a b }}", "d": 1}
    assert failed == [(("a", 1, "b"), "'missing' is undefined")]
    assert [path for path, _message in compiled.errors] == [("c",)]
    assert compiled.names == {"port", "missing"}
    assert compiled.resolve({}, lambda *_args: None, "d") == {"d": 1}
    assert compiled.resolve({}, lambda *_args: None, "z") == {}


def test_untrusted_strings_are_never_rendered() -> None:
    environment = Environment()
    compiled = Compiled(environment, ["{{ port }}", "{{ name }}"], lambda text: "name" in text)
    assert compiled.resolve(environment.scope(VARIABLES), lambda *_args: None) == ["{{ port }}", "sonarr"]
