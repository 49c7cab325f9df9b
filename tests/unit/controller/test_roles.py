# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every role of the collection keeps to: ids, options with their types and documentation, one task."""

from __future__ import annotations

import itertools
import re
import typing as t
from collections import defaultdict
from pathlib import Path

import pytest
import yaml
from ansible_collections.hearth.homelab.plugins.plugin_utils.schema import Contribution

ROLES = Path(__file__).resolve().parents[3] / "roles"
NAMES = sorted(path.parent.parent.name for path in ROLES.glob("*/vars/contribution.yml"))

#: Ids of services that are gone. Data on somebody's disk may still carry them: never given to anything else.
RETIRED: dict[int, str] = {}

#: (first, last, whose): ids that something else gives away, on Debian 13 (base-passwd's users-and-groups(5) and
#: systemd's docs/UIDS-GIDS).
FOREIGN: tuple[tuple[int, int, str], ...] = (
    (0, 99, "Debian, for every machine"),
    (100, 999, "adduser --system, useradd -r, systemd-sysusers"),
    (1000, 1999, "people"),
    (60000, 64999, "Debian, on demand; systemd-homed and nss-systemd"),
    (61184, 65519, "systemd's DynamicUser="),
    (65534, 65535, "nobody, and the id that is none"),
    (100000, 2147483647, "containers (subuid, systemd-nspawn from 524288 on)"),
)


def load(role: str, file: str) -> dict[str, t.Any]:
    data = yaml.safe_load((ROLES / role / file).read_text())
    return data if isinstance(data, dict) else {}


def contribution(role: str) -> dict[str, t.Any]:
    return t.cast("dict[str, t.Any]", load(role, "vars/contribution.yml")[f"{role}_contribution"])


def users() -> list[tuple[str, str, int, bool]]:
    """(role, user, id, shared) of every role with a user."""
    found = []
    for role in NAMES:
        user = contribution(role).get("user")
        if user:
            name = user["name"].replace("{{ service.role }}", role)
            found.append((role, name, user["id"], user.get("shared", False)))
    return found


def test_there_are_roles() -> None:
    assert {"base", "users", "sshd", "nftables", "caddy", "postgresql", "prometheus", "miniflux", "sonarr"} <= set(
        NAMES
    )


# --- ids -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("role", "user", "number", "shared"), users())
def test_an_id_is_a_plain_number_outside_everybody_elses(role: str, user: str, number: int, shared: bool) -> None:
    assert type(number) is int, f"{role}: the id of {user} must not depend on anything"
    for first, last, whose in FOREIGN:
        assert not first <= number <= last, f"{role}: {number} of {user} belongs to {whose}"
    assert number not in RETIRED, f"{role}: {number} was {RETIRED.get(number)}'s"


def test_an_id_has_one_owner() -> None:
    owners: dict[int, set[str]] = defaultdict(set)
    roles: dict[str, list[tuple[str, bool]]] = defaultdict(list)
    names: dict[str, set[int]] = defaultdict(set)
    for role, user, number, shared in users():
        owners[number].add(user)
        names[user].add(number)
        roles[user].append((role, shared))
    assert {number: sorted(found) for number, found in owners.items() if len(found) > 1} == {}
    assert {user: sorted(found) for user, found in names.items() if len(found) > 1} == {}
    for user, found in roles.items():
        assert len(found) == 1 or all(shared for _role, shared in found), f"{user} is used by {found}, not all shared"


def test_adduser_takes_the_ids_of_packages_for_system_users() -> None:
    """Debian's `adduser --system NAME` exits with 13 when NAME exists with a higher id (measured: adduser 3.152)."""
    last = load("users", "defaults/main.yml")["users_last_system_id"]
    for role, user, number, _shared in users():
        if "native" in contribution(role)["run"]:
            assert number <= last, f"{role}: installing its packages fails with id {number} of {user}"


# --- options ---------------------------------------------------------------------------------------------------------


def type_of(value: t.Any) -> str:
    for name, kinds in (("bool", bool), ("int", int), ("float", float), ("list", list), ("dict", dict)):
        if isinstance(value, kinds):
            return name
    return "str"


@pytest.mark.parametrize("role", NAMES)
def test_options_have_a_default_a_type_and_a_description(role: str) -> None:
    defaults = load(role, "defaults/main.yml")
    specs = load(role, "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    assert list(specs) == list(defaults)
    for name, spec in specs.items():
        assert name.startswith(f"{role}_")
        assert spec["description"].strip().endswith((".", "?", "!")), name
        value = defaults[name]
        if isinstance(value, str) and "{{" in value:
            assert "default" not in spec, f"{name}: its default depends on other variables"
        else:
            assert spec["default"] == value, name
            assert spec["type"] == type_of(value), name
        if spec["type"] == "list":
            assert spec["elements"], name


@pytest.mark.parametrize("role", NAMES)
def test_a_comment_stands_beside_every_default(role: str) -> None:
    lines = (ROLES / role / "defaults" / "main.yml").read_text().splitlines()
    for before, line in itertools.pairwise(lines):
        if re.match(r"^[a-z_]+:", line):
            assert before.startswith("# "), f"{role}: {line}"


@pytest.mark.parametrize("role", NAMES)
def test_every_option_is_used(role: str) -> None:
    """An option that is read nowhere is worse than none (pitfalls)."""
    # What `external` says of an option makes nothing of it.
    text = str({key: value for key, value in contribution(role).items() if key != "external"})
    text += "".join(path.read_text() for path in (ROLES / role / "templates").glob("**/*") if path.is_file())
    defaults = load(role, "defaults/main.yml")
    for name in defaults:
        elsewhere = "".join(str(value) for key, value in defaults.items() if key != name)
        assert re.search(rf"\b{name}\b", text + elsewhere), f"{name} is used nowhere"


@pytest.mark.parametrize("role", NAMES)
def test_what_is_external_are_options(role: str) -> None:
    """The name is shown to people, who look for it in the inventory."""
    assert set(contribution(role).get("external", {})) <= set(load(role, "defaults/main.yml"))


@pytest.mark.parametrize("role", NAMES)
def test_every_template_is_used(role: str) -> None:
    folder = ROLES / role / "templates"
    named = {file.get("template") for file in contribution(role).get("files", [])}
    assert {path.relative_to(folder).as_posix() for path in folder.glob("**/*") if path.is_file()} <= named


@pytest.mark.parametrize("role", NAMES)
def test_a_role_is_one_task(role: str) -> None:
    tasks = yaml.safe_load((ROLES / role / "tasks" / "main.yml").read_text())
    assert [task["hearth.homelab.converge"] for task in tasks] == [{"service": role}]


@pytest.mark.parametrize("role", NAMES)
def test_a_contribution_has_known_keys_only(role: str) -> None:
    aliases = {info.alias or name for name, info in Contribution.model_fields.items()}
    assert set(contribution(role)) <= aliases
    assert contribution(role)["schema"] == 1
