# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible's private parts, as this core version has them: order of layers, origins, trust, resolving."""

from __future__ import annotations

import json
import re
import typing as t
from pathlib import Path

import ansible
import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible_collections.hearth.homelab.plugins.plugin_utils import layers
from ansible_collections.hearth.homelab.plugins.plugin_utils.layers import Place
from packaging.specifiers import SpecifierSet

from .fleets import Repository, repository

ROOT = Path(__file__).resolve().parents[3]


def test_core_version() -> None:
    version = ".".join(ansible.__version__.split(".")[:2])
    assert version in layers.TESTED, (
        "new to layers.py: when the other tests pass, here and in the scenarios, add it there"
    )


def test_the_tested_versions_are_those_that_are_said() -> None:
    first, last = (tuple(map(int, version.split("."))) for version in (layers.TESTED[0], layers.TESTED[-1]))
    declared = yaml.safe_load((ROOT / "meta/runtime.yml").read_text())["requires_ansible"]
    assert declared == f">={first[0]}.{first[1]}.0,<{last[0]}.{last[1] + 1}.0"
    roles = [yaml.safe_load(path.read_text())["galaxy_info"] for path in ROOT.glob("roles/*/meta/main.yml")]
    assert {role["min_ansible_version"] for role in roles} == {layers.TESTED[0]}
    page = (ROOT / "docs/controllers.md").read_text()
    assert re.findall(r"ansible-core (\d+\.\d+)", page.partition("## Versions")[2].partition("\n## ")[0]) == list(
        layers.TESTED
    )


def pins(name: str) -> dict[str, str]:
    text = (ROOT / name).read_text()
    return dict(re.findall(r"(?m)^([A-Za-z-]+)==(\S+)$", text))


def test_both_ends_have_the_same_packages_but_ansible() -> None:
    newest = pins("tests/integration/controllers/requirements.txt")
    assert newest.pop("ansible-core").startswith(f"{layers.TESTED[-1]}.")
    ours = pins("requirements.txt") | pins("requirements-dev.txt")
    assert set(pins("requirements.txt")) <= set(newest)
    assert newest.pop("ansible") != ours["ansible"]
    assert newest == {name: ours[name] for name in newest}


def test_the_collections_that_come_with_ansible_are_those_that_are_declared() -> None:
    """Also with the newest one, where this is run in the scenario `controllers`."""
    declared = yaml.safe_load((ROOT / "galaxy.yml").read_text())["dependencies"]
    listed = yaml.safe_load((ROOT / "requirements.yml").read_text())["collections"]
    assert {entry["name"]: entry["version"] for entry in listed} == declared
    installed = Path(ansible.__file__).parents[1] / "ansible_collections"
    for name, wanted in declared.items():
        found = json.loads((installed.joinpath(*name.split(".")) / "MANIFEST.json").read_text())
        assert SpecifierSet(wanted).contains(found["collection_info"]["version"]), name


def test_only_layers_uses_private_parts() -> None:
    private = re.compile(
        r"ansible\._internal|\._(variable_manager|inventory|vars_cache|hostvars|available_variables)\b"
    )
    users = {path.name for path in (ROOT / "plugins").rglob("*.py") if private.search(path.read_text())}
    assert users == {"layers.py"}


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    made = Repository(tmp_path)
    made.write(
        "inventories/x/hosts.yml",
        "all:\n"
        "  vars: {hearth_services: {a: {options: {from: inventory all}}}}\n"
        "  children:\n"
        "    zebra: {hosts: {forge: {hearth_services__host: {h: {}}}}}\n"
        "    apple:\n      hosts: {forge: {}}\n"
        "      vars: {ansible_group_priority: 5, hearth_services: {a: {options: {from: apple}}}}\n"
        "    parent: {children: {zebra: {}}}\n",
    )
    return made


def order(repo: Repository, extra: dict[str, t.Any] | None = None) -> list[str]:
    source = repo.source(extra)
    return [
        f"{layer.name}: {', '.join(setting.variable for setting in layer.settings)}"
        for layer in source.layers("forge", source.variables("forge"))
    ]


def test_layers_are_in_ansibles_order(repo: Repository) -> None:
    for name in (
        "group_vars/all.yml",
        "group_vars/zebra.yml",
        "group_vars/apple.yml",
        "group_vars/parent.yml",
        "host_vars/forge.yml",
    ):
        repo.vars(name, {"hearth_services": {"x": {}}, "hearth_services__more": {}})
    repo.write("playbooks/group_vars/zebra.yml", {"hearth_services": {}})
    repo.write("playbooks/host_vars/forge.yml", {"hearth_services": {}})
    both = "hearth_services, hearth_services__more"
    assert order(repo, {"hearth_services": {}}) == [
        # The inventory's own variables of all groups come before any group_vars ...
        "group all in the inventory: hearth_services",
        "group apple in the inventory: hearth_services",
        f"group all: {both}",
        # ... and groups are sorted by depth, then ansible_group_priority, then name.
        f"group parent: {both}",
        f"group apple: {both}",
        f"group zebra: {both}",
        "group zebra: hearth_services",  # beside the playbook
        "host forge in the inventory: hearth_services__host",
        f"host forge: {both}",
        "host forge: hearth_services",
        "extra variables (-e): hearth_services",
    ]


def test_our_order_is_that_of_ansibles_own_result(repo: Repository) -> None:
    """The last layer that sets a variable is the one whose value Ansible itself keeps."""
    for name in ("group_vars/all.yml", "group_vars/zebra.yml", "group_vars/apple.yml"):
        repo.vars(name, {"hearth_services": {"x": {"options": {"from": name}}}})
    source = repo.source()
    variables = source.variables("forge")
    last = [
        setting.value
        for layer in source.layers("forge", variables)
        for setting in layer.settings
        if setting.variable == "hearth_services"
    ][-1]
    assert last == variables["hearth_services"] == {"x": {"options": {"from": "group_vars/zebra.yml"}}}


def test_all_files_of_a_directory_are_one_layer(repo: Repository) -> None:
    repo.vars("group_vars/zebra/one.yml", {"hearth_services": {"x": {}}})
    repo.vars("group_vars/zebra/two.yml", {"hearth_services": {"y": {}}})
    source = repo.source()
    layer = [layer for layer in source.layers("forge", source.variables("forge")) if layer.name == "group zebra"]
    assert [Path(setting.file).name for setting in layer[0].settings] == ["one.yml", "two.yml"]


def test_a_limit_hides_no_host(repo: Repository) -> None:
    source = repo.source()
    source._inventory.subset("nothing")
    source._inventory.restrict_to_hosts([])
    again = layers.Source(source._inventory, source._manager, source._loader)
    assert again.hosts == ["forge"]


def test_groups_and_folders(repo: Repository) -> None:
    source = repo.source()
    assert source.groups("forge") == ("parent", "apple", "zebra")
    assert source.all_groups["parent"] == ("forge",)
    assert source.searched == [
        str(repo.path / directory / kind)
        for directory in ("inventories/x", "playbooks")
        for kind in ("group_vars", "host_vars")
    ]
    assert repo.path / "roles" in source.role_dirs
    assert repo.path / "playbooks" / "roles" in source.role_dirs


# --- origins -------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> t.Any:
    path = tmp_path / "x.yml"
    path.write_text("a: 1\nb:\n  c: null\n  d: [x, {e: true}]\nf: |\n  text\n")
    return DataLoader().load_from_file(str(path), trusted_as_template=True)


@pytest.mark.parametrize(
    ("path", "depth", "line"),
    [
        (("a",), 1, 1),
        (("b",), 1, 2),
        (("b", "c"), 2, 3),  # null carries no tag; its key does
        (("b", "d", 0), 3, 4),
        (("b", "d", 1, "e"), 4, 4),
        (("b", "nowhere"), 1, 2),
        (("b", "function-before[x(), int]", "c"), 2, 3),  # a branch of a union, as pydantic names it
        (("f",), 1, 5),
    ],
)
def test_where_a_value_was_written(data: t.Any, path: tuple[str | int, ...], depth: int, line: int) -> None:
    found = layers.walk(data, path)
    assert (found[0], found[1].line) == (depth, line)
    assert found[1].file.endswith("x.yml")


def test_places() -> None:
    assert layers.place("untagged") is layers.NOWHERE
    assert layers.place({}) is layers.NOWHERE
    assert Place("a", 3).where == {"file": "a", "line": 3}


def test_plain_data_has_no_tags(data: t.Any) -> None:
    value = layers.plain(data)
    assert value == {"a": 1, "b": {"c": None, "d": ["x", {"e": True}]}, "f": "text\n"}
    assert json.loads(json.dumps(value)) == value

    def types(entry: t.Any) -> set[type]:
        inner = [*entry, *entry.values()] if isinstance(entry, dict) else entry if isinstance(entry, list) else []
        return {type(entry)}.union(*(types(part) for part in inner))

    assert types(value) == {dict, list, str, int, bool, type(None)}


# --- resolving -----------------------------------------------------------------------------------------------------


def variables(tmp_path: Path, text: str) -> tuple[layers.Source, dict[str, t.Any]]:
    repo = repository(tmp_path)
    repo.vars("host_vars/forge.yml", text)
    source = repo.source()
    return source, source.variables("forge")


def test_resolving_many_and_finding_the_bad_one(tmp_path: Path) -> None:
    source, found = variables(
        tmp_path,
        "a: 1\nb: '{{ a + 1 }}'\nc: {d: ['{{ b }}', x]}\ne: '{{ nowhere.x }}'\nf: '{{ e }}'\ng: '{{ 1 / 0 }}'\n",
    )
    values, failed = source.resolve(found, ["a", "b", "c", "e", "f", "g", "missing"])
    assert values == {"a": 1, "b": 2, "c": {"d": [2, "x"]}}
    assert [(problem.name, problem.place.line) for problem in failed] == [("e", 4), ("f", 4), ("g", 6)]
    assert "'nowhere' is undefined" in failed[0].message
    assert failed[0].place.file.endswith("host_vars/forge.yml")


def test_untrusted_strings_stay_literal(tmp_path: Path) -> None:
    source, found = variables(tmp_path, "a: !unsafe '{{ b }}'\nb: 1\n")
    assert source.resolve(found, ["a"]) == ({"a": "{{ b }}"}, [])


def test_lookups_belong_into_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEARTH_TEST", "seen")
    source, found = variables(tmp_path, "a: \"{{ lookup('env', 'HEARTH_TEST') }}\"\n")
    assert source.resolve(found, ["a"])[0] == {"a": "seen"}


def test_trusting_what_was_read_without_ansibles_loader() -> None:
    value = layers.trust({"a": ["{{ x }}", "plain", 1]})
    assert layers.trusted(value["a"][0])
    assert layers.templated(value)
    assert not layers.templated({"a": ["{{ x }}"]})
