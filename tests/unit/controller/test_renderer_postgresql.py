# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Login roles and databases of the services of a host."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import common, postgresql
from ansible_collections.hearth.homelab.plugins.plugin_utils.schema import Contribution
from ansible_collections.hearth.homelab.tests.unit.controller import rendering as r
from pydantic import ValidationError

PASSWORD = {"database_password": {"kind": "access"}}


def plan(**services: dict[str, t.Any]) -> t.Any:
    return r.plan_of(postgresql.render, r.fleet(r.host("forge", {"postgresql": r.POSTGRESQL, **services})))


def app(name: str = "app", **database: t.Any) -> dict[str, t.Any]:
    return r.merged(
        r.MINIFLUX,
        database={"postgresql": {"name": name, **database}},
        user={"name": "app", "id": 2050},
        secrets=PASSWORD,
    )


@pytest.mark.parametrize(
    ("database", "role", "made"),
    [
        (
            {"name": "app"},
            m.PostgresqlRole("app", "app"),
            m.PostgresqlDatabase("app", "app", owner="app"),
        ),
        (
            {"name": "news", "user": "app", "extensions": ["unaccent", "pg_trgm", "unaccent"]},
            m.PostgresqlRole("app", "app"),
            m.PostgresqlDatabase("news", "app", owner="app", extensions=("pg_trgm", "unaccent")),
        ),
        (
            {"name": "news", "user": "writer", "password": "database_password"},
            m.PostgresqlRole("writer", "app", secret="app/database_password"),
            m.PostgresqlDatabase("news", "app", owner="writer"),
        ),
        (
            {"name": "app", "member_of": ["pg_monitor", "pg_checkpoint", "pg_monitor"]},
            m.PostgresqlRole("app", "app", member_of=("pg_checkpoint", "pg_monitor")),
            m.PostgresqlDatabase("app", "app", owner="app"),
        ),
    ],
    ids=["by peer", "own role", "by password", "member of predefined roles"],
)
def test_a_database_with_its_role(
    database: dict[str, t.Any], role: m.PostgresqlRole, made: m.PostgresqlDatabase
) -> None:
    items = plan(app=app(**database)).manifest.by_id()
    assert items[role.id] == role
    assert items[made.id] == made


def test_peer_authentication_needs_the_role_of_the_user() -> None:
    with pytest.raises(common.RenderError) as caught:
        plan(app=app(user="somebody"))
    assert caught.value.problem.path == "database.postgresql.user"
    assert "app" in caught.value.problem.remedy


def test_services_may_share_a_role_but_not_its_password() -> None:
    first = app("one", user="writer", password="database_password")
    with pytest.raises(common.RenderError) as caught:
        plan(first=first, second=r.merged(first, database__postgresql__name="two"))
    assert "writer" in str(caught.value)


def test_two_instances_share_the_users_role() -> None:
    made = plan(app=app("one", user="app"), app_two=app("two", user="app"))
    assert [item for item in r.ids(made) if item.startswith("postgresql")] == [
        "postgresql_role:app", "postgresql_database:one", "postgresql_database:two"
    ]  # fmt: skip


def test_services_that_share_a_role_share_its_memberships() -> None:
    made = plan(
        app=app("one", user="app", member_of=["pg_monitor"]),
        app_two=app("two", user="app", member_of=["pg_checkpoint"]),
    )
    role = made.manifest.by_id()["postgresql_role:app"]
    assert role == m.PostgresqlRole("app", "app", member_of=("pg_checkpoint", "pg_monitor"))


@pytest.mark.parametrize("role", ["pg_monitors", "writer", "pg_execute_server_program", "pg_database_owner"])
def test_only_predefined_roles_that_are_not_a_way_to_become_superuser(role: str) -> None:
    with pytest.raises(ValidationError, match="pg_monitor"):
        Contribution.model_validate(app(member_of=[role]))
