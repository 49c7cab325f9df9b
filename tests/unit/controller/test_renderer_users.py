# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Users, groups and people, and what native.py, storage.py and secrets.py make of contributions."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import common, native, secrets, storage, users
from ansible_collections.hearth.homelab.tests.unit.controller import rendering as r

PEOPLE: dict[str, t.Any] = {
    "hearth_people": {
        "anna": {"id": 3000, "keys": ["ssh-ed25519 B b", "ssh-ed25519 A a"], "sudo": "nopasswd", "groups": ["media"]},
        "ben": {"id": 3001, "hosts": ["servers"], "comment": "Ben"},
        "carl": {"id": 3002, "hosts": ["nas-1"], "keys": ["ssh-ed25519 C"]},
        "dora": {"hosts": []},
    }
}


def test_service_users_have_their_fixed_ids_and_groups() -> None:
    plan = r.plan_of(users.render, r.fleet(r.host("forge", {"sonarr": r.SONARR})))
    assert plan.manifest.items == (
        m.Group("media", "sonarr", gid=2900),
        m.Group("sonarr", "sonarr", gid=2041),
        # video is Debian's own group: its id is not ours to set
        m.User("sonarr", "sonarr", uid=2041, group="sonarr", groups=("media", "video")),
    )


def test_a_shared_user_has_the_groups_of_all_its_services_and_the_first_as_owner() -> None:
    one = r.merged(r.SONARR, user={"name": "media", "id": 2050, "groups": ["media"], "shared": True})
    other = r.merged(
        r.SONARR, user={"name": "media", "id": 2050, "groups": ["video"], "shared": True, "home": "/srv/media"}
    )
    plan = r.plan_of(users.render, r.fleet(r.host("forge", {"sonarr": one, "radarr": other})))
    found = plan.manifest.by_id()
    # The user's own group has the service's id, not that of hearth_groups' group of the same name.
    user = found["user:media"]
    assert isinstance(user, m.User)
    assert (user.service, user.groups, user.home) == ("sonarr", ("video",), "/srv/media")


def test_services_that_share_a_user_must_agree_on_its_home() -> None:
    one = r.merged(r.SONARR, user={"name": "tv", "id": 2050, "home": "/a", "shared": True})
    other = r.merged(r.SONARR, user={"name": "tv", "id": 2050, "home": "/b", "shared": True})
    with pytest.raises(common.RenderError, match="share the user tv disagree: /a, /b"):
        r.plan_of(users.render, r.fleet(r.host("forge", {"one": one, "other": other})))


def test_people_get_a_login_where_they_are_scoped_to() -> None:
    plan = r.plan_of(users.render, r.fleet(r.host("forge", {"sshd": r.SSHD}, PEOPLE, "servers")))
    assert [entry for entry in r.ids(plan) if entry.startswith("user:")] == ["user:anna", "user:ben"]
    anna = plan.manifest.by_id()["user:anna"]
    assert anna == m.User(
        "anna", "sshd", uid=3000, group="anna", groups=("media",), home="/home/anna", shell="/bin/bash", system=False
    )
    assert r.text(plan, "/etc/ssh/authorized_keys.d/anna") == "ssh-ed25519 A a\nssh-ed25519 B b\n"
    assert r.text(plan, "/etc/sudoers.d/hearth-anna") == "anna ALL=(ALL:ALL) NOPASSWD: ALL\n"
    fragment = plan.manifest.by_id()["file:/etc/sudoers.d/hearth-anna"]
    assert isinstance(fragment, m.File)
    assert (fragment.mode, fragment.owner, fragment.service) == ("0440", "root", "sshd")
    assert "file:/etc/ssh/authorized_keys.d/ben" not in r.ids(plan)  # he has no key
    (visudo,) = plan.manifest.validators
    assert visudo.argv == ("/usr/sbin/visudo", "-c")
    assert visudo.covers("/etc/sudoers.d/hearth-anna")


def test_hearth_ids_wins_and_a_login_needs_an_id() -> None:
    core = {**PEOPLE, "hearth_ids": {"users": {"anna": 1000}}}
    plan = r.plan_of(users.render, r.fleet(r.host("forge", {"sshd": r.SSHD}, core)))
    assert m.Group("anna", "sshd", gid=1000) in plan.manifest.items
    core = {"hearth_people": {"eve": {"keys": ["ssh-ed25519 E"]}}}
    with pytest.raises(common.RenderError, match=r"hearth_people\.eve\.id.*no id"):
        r.plan_of(users.render, r.fleet(r.host("forge", {"sshd": r.SSHD}, core)))


def test_people_without_a_provider_are_a_notice() -> None:
    plan = r.plan_of(users.render, r.fleet(r.host("forge", {"sonarr": r.SONARR}, PEOPLE)))
    assert plan.notices == ("people: no service of forge provides it: anna get no login",)


def test_storage_belongs_to_the_service_and_its_class() -> None:
    owned = r.merged(r.POSTGRESQL, storage__state__owner="backup", protect__empty_start=False)
    plan = r.plan_of(storage.render, r.fleet(r.host("forge", {"miniflux": r.MINIFLUX, "postgresql": owned})))
    assert plan.manifest.items == (
        m.Storage("/var/lib/miniflux", "miniflux", owner="miniflux", group="miniflux", protection="standard"),
        m.Storage(
            "/var/lib/postgresql",
            "postgresql",
            owner="backup",
            group="backup",
            protection="critical",
            empty_start=False,
        ),
    )
    assert plan.notices[0].startswith("storage: forge has no pool")


def test_a_package_of_two_services_is_one_item() -> None:
    one = r.merged(r.PODMAN, run={"native": {"packages": ["chrony", "jq"], "replaces": ["systemd-timesyncd"]}})
    other = r.merged(r.PODMAN, run={"native": {"packages": ["jq"]}}, provides={})
    plan = r.plan_of(native.render, r.fleet(r.host("forge", {"other": other, "one": one})))
    assert plan.manifest.items == (
        m.Package("chrony", "one", replaces=("systemd-timesyncd",)),
        m.Package("jq", "other", replaces=("systemd-timesyncd",)),
    )


def test_first_data_is_made_in_declared_storage() -> None:
    first = {"argv": ["/usr/bin/pg_createcluster", "17", "main"], "creates": "/var/lib/postgresql/17/main/PG_VERSION"}
    made = r.merged(r.POSTGRESQL, run__native__initialize=first)
    plan = r.plan_of(native.render, r.fleet(r.host("forge", {"postgresql": made})))
    assert plan.manifest.by_id()["initialize:postgresql"] == m.Initialize(
        "postgresql",
        "postgresql",
        argv=("/usr/bin/pg_createcluster", "17", "main"),
        creates="/var/lib/postgresql/17/main/PG_VERSION",
        storage="/var/lib/postgresql",
    )
    made = r.merged(r.POSTGRESQL, run__native__initialize={**first, "storage": "data"})
    with pytest.raises(common.RenderError, match="storage entry 'data' does not exist") as error:
        r.plan_of(native.render, r.fleet(r.host("forge", {"postgresql": made})))
    assert error.value.problem.remedy == "one of: state"


def test_a_repository_is_said_not_to_be_set_up() -> None:
    source = {"url": "https://apt.example.com", "suite": "trixie", "key_url": "https://x", "fingerprint": "A" * 40}
    made = r.merged(r.POSTGRESQL, run__native__repository=source)
    plan = r.plan_of(native.render, r.fleet(r.host("forge", {"postgresql": made})))
    assert plan.notices[0].startswith("apt repository: no provider yet: https://apt.example.com of postgresql")


def test_every_secret_is_in_the_store_and_files_have_a_hole() -> None:
    plan = r.plan_of(secrets.render, r.fleet(r.host("forge", {"miniflux": r.MINIFLUX, "sonarr": r.SONARR})))
    assert [entry for entry in r.ids(plan) if entry.startswith("secret:")] == [
        "secret:miniflux/admin_password",
        "secret:miniflux/key",
        "secret:miniflux/token",
        "secret:miniflux/unused",
        "secret:sonarr/api_key",
        "secret:sonarr/cert",
    ]
    assert [entry for entry in r.ids(plan) if entry.startswith("file:")] == ["file:/etc/miniflux/key"]
    key = plan.manifest.by_id()["file:/etc/miniflux/key"]
    assert isinstance(key, m.File)
    assert (key.owner, key.mode, key.holes) == ("miniflux", "0400", ("miniflux/key",))
    assert r.text(plan, "/etc/miniflux/key") == "@@hearth:miniflux/key@@"
