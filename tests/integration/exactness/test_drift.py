# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Drift: every kind of item is broken by hand on the host; check mode names exactly that, and what it causes; a run
mends it; the next one finds nothing to do. What would hide that data was lost is refused instead.

Breaks that do not touch each other share a round: the actions of a round are compared as a whole, so that one that is
missing, or one too many, fails.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

import pytest
from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m

from ..conftest import Site
from .conftest import Exact, reasons, unknown


@dataclass(frozen=True)
class Break:
    """A thing done by hand, and the actions (``OPERATION ID``) that it makes. ``unknown`` are ids that cannot be
    compared before, and why that is right is said beside the row. ``said`` is a part of what is said about it: the reason
    of its first action, or a notice where there is none. ``after`` shows, or takes away, what a run leaves alone."""

    kind: str
    what: str
    command: str
    actions: tuple[str, ...]
    unknown: tuple[str, ...] = ()
    said: str = ""
    after: str = ""
    variables: tuple[tuple[str, str], ...] = ()  # what a person says with -e


OBJECTS = "/var/lib/prowlarr/collection-api-v1-applications"
PSQL = "runuser -u postgres -- psql -qXc"

# What a running program does not read again, or what is read by the kernel: nothing is restarted.
QUIET = [
    Break("file", "mode", "chmod 0604 /etc/drift/drift.conf", ("attributes file:/etc/drift/drift.conf",)),
    Break("file", "owner", "chown carla /etc/caddy/Caddyfile", ("attributes file:/etc/caddy/Caddyfile",)),
    Break("file", "group", "chgrp carla /etc/sudoers.d/hearth-carla", ("attributes file:/etc/sudoers.d/hearth-carla",)),
    Break("file", "removed", "rm /etc/drift/public/index.html", ("create file:/etc/drift/public/index.html",)),
    Break("file", "early", "echo >> /etc/apt/apt.conf.d/90drift", ("modify file:/etc/apt/apt.conf.d/90drift",)),
    Break("file", "create_only, removed", "rm /var/lib/drift/seed.conf", ("create file:/var/lib/drift/seed.conf",)),
    Break("directory", "mode", "chmod 0700 /etc/caddy/sites", ("modify directory:/etc/caddy/sites",)),
    Break("directory", "owner and group", "chown carla:carla /etc/mosquitto/hearth", ("modify directory:/etc/mosquitto/hearth",)),
    Break("directory", "removed", "rmdir /etc/hearth/nftables/forward.d", ("create directory:/etc/hearth/nftables/forward.d",)),
    Break("symlink", "target", "ln -sfn /usr/share/zoneinfo/Europe/Paris /etc/localtime", ("modify symlink:/etc/localtime",)),
    Break(
        "symlink", "a file instead", "rm /etc/default/locale; echo LANG=C > /etc/default/locale",
        ("modify symlink:/etc/default/locale",),
    ),
    Break("hostname", "the kernel's", "hostname other", ("set hostname:lab-forge",)),
    Break("locale", "removed", "localedef --delete-from-archive en_GB.utf8", ("generate locale:en_GB.UTF-8",)),
    Break(
        "group", "removed, and with it who is in it", "groupdel media",
        ("create group:media", "modify user:drift", "modify user:sonarr"),
    ),
    Break("user", "shell, home, comment and groups of a person", "usermod -s /bin/sh -d /tmp/c -c x -G '' carla", ("modify user:carla",)),
    Break(
        "user", "a login shell for a system user; its comment is its package's",
        "usermod -s /bin/bash -c theirs miniflux", ("modify user:miniflux",),
        after="getent passwd miniflux | grep -q :theirs:",
    ),
    Break("storage", "mode", "chmod 0777 /var/lib/drift", ("modify storage:/var/lib/drift",)),
    Break("storage", "owner and group", "chown root:root /var/lib/sonarr", ("modify storage:/var/lib/sonarr",)),
    Break("secret", "readable by others", "chmod 0444 /var/lib/hearth/secrets/drift/token", ("attributes secret:drift/token",)),
    Break("package", "removed", "dpkg --force-depends --remove catatonit", ("install package:catatonit",)),
    Break("unit", "disabled", "systemctl disable miniflux", ("enable unit:miniflux.service",)),
    Break(
        "unit", "a timer disabled and stopped", "systemctl disable --now drift-tidy.timer",
        ("enable unit:drift-tidy.timer", "start unit:drift-tidy.timer"),
    ),
    Break("unit", "a container removed", "podman rm --force sonarr", ("start unit:sonarr.service",), said="not running"),
    Break(
        "unit", "kernel parameter", "sysctl -qw net.ipv4.ip_default_ttl=33", ("restart unit:systemd-sysctl.service",),
        said="/proc/sys/net/ipv4/ip_default_ttl is 33",
    ),
    Break(
        "firewall", "a rule of somebody else in our table", "nft add rule inet hearth input tcp dport 4444 accept",
        ("load firewall:inet hearth",),
    ),
    Break("postgresql_role", "password", f"{PSQL} \"ALTER ROLE drift PASSWORD 'other'\"", ("modify postgresql_role:drift",)),
    Break("postgresql_role", "superuser", f"{PSQL} 'ALTER ROLE miniflux SUPERUSER'", ("modify postgresql_role:miniflux",)),
    Break("postgresql_database", "extension", f"{PSQL} 'DROP EXTENSION pg_trgm' drift", ("modify postgresql_database:drift",)),
    Break("postgresql_database", "owner", f"{PSQL} 'ALTER DATABASE miniflux OWNER TO postgres'", ("modify postgresql_database:miniflux",)),
    Break(
        "configure", "an object changed in the application",
        f"sed -i s#http://sonarr:8989#http://elsewhere# {OBJECTS}/*.json", ("modify configure:sonarr/prowlarr",),
    ),
]  # fmt: skip

# What a program reads: exactly that unit is restarted or reloaded.
LOUD = [
    Break(
        "file", "content", "echo x >> /etc/drift/drift.conf",
        ("modify file:/etc/drift/drift.conf", "restart unit:drift.service"),
    ),
    Break("file", "create_only, changed: the application's", "echo x >> /var/lib/drift/seed.conf", ()),
    Break(
        "unit", "drop-in changed, and the unit restarted with it",
        "sed -i s/^MemoryMax=.*/MemoryMax=1G/ /etc/systemd/system/miniflux.service.d/50-hearth.conf; "
        "systemctl daemon-reload; systemctl restart miniflux",
        ("modify file:/etc/systemd/system/miniflux.service.d/50-hearth.conf", "restart unit:miniflux.service"),
    ),
    Break(
        "unit", "unit file removed", "rm /etc/systemd/system/drift-tidy.service",
        ("create file:/etc/systemd/system/drift-tidy.service",),
    ),
    Break(
        "unit", "a drop-in by somebody else: said, and left alone", "systemctl set-property caddy.service CPUWeight=77", (),
        said="caddy.service has drop-ins that are not Hearth's",
        after="rm -r /etc/systemd/system.control/caddy.service.d; systemctl daemon-reload",
    ),
    Break(
        "file", "a fragment in a shared place", "echo '# x' >> /etc/caddy/sites/drift.caddy",
        ("modify file:/etc/caddy/sites/drift.caddy", "reload unit:caddy.service"),
    ),
    Break(
        "file", "a login of MQTT, with a secret", "echo x:y >> /etc/mosquitto/hearth/users/drift",
        ("modify file:/etc/mosquitto/hearth/users/drift", "reload unit:mosquitto.service"),
    ),
    Break(
        "secret", "another value in the store", "echo -n other > /var/lib/hearth/secrets/drift/token",
        ("store secret:drift/token",),  # and the restart of drift, named above
    ),
    Break(
        "podman_secret", "another value",
        "printf other | podman secret create --replace hearth-sonarr-api_key -",
        ("modify podman_secret:hearth-sonarr-api_key", "restart unit:sonarr.service"),
    ),
    Break(
        "firewall", "its file, and with it the rules", "echo '# x' >> /etc/hearth/nftables/input.d/caddy.nft",
        ("modify file:/etc/hearth/nftables/input.d/caddy.nft", "load firewall:inet hearth"),
    ),
    Break(
        "file", "what may cut the way in", "echo '# x' >> /etc/ssh/sshd_config.d/50-hearth.conf",
        ("modify file:/etc/ssh/sshd_config.d/50-hearth.conf", "reload unit:ssh.service"),
    ),
    Break("configure", "an object removed in the application", f"rm {OBJECTS}/*.json", ("create configure:sonarr/prowlarr",)),
    Break(
        "postgresql_role", "a membership that somebody gave it",
        f"{PSQL} 'GRANT pg_read_all_data TO miniflux WITH ADMIN OPTION'", ("modify postgresql_role:miniflux",),
        said="is in pg_read_all_data with undeclared options",
    ),
    Break("postgresql_role", "may not log in", f"{PSQL} 'ALTER ROLE drift NOLOGIN'", ("modify postgresql_role:drift",)),
]  # fmt: skip

# What is gone altogether.
GONE = [
    Break("unit", "stopped", "systemctl stop drift", ("start unit:drift.service",)),
    Break(
        "unit", "containers and their network removed",
        "systemctl stop sonarr prowlarr; podman network rm --force hearth-media",
        ("restart unit:media-network.service", "start unit:sonarr.service", "start unit:prowlarr.service"),
        # Nobody can ask an application that does not run; it is asked when it does.
        unknown=("configure:sonarr/prowlarr",),
    ),
    Break(
        "image", "removed", "podman image rm --force registry.lab.example.com:5000/standin/sonarr:1",
        ("pull image:registry.lab.example.com:5000/standin/sonarr:1",),
    ),
    Break(
        "podman_secret", "removed", "podman secret rm hearth-prowlarr-api_key",
        ("create podman_secret:hearth-prowlarr-api_key",),
    ),
    Break(
        "user", "removed, and with it its group; the data keeps the ids", "userdel prowlarr",
        ("create user:prowlarr", "create group:prowlarr"),
    ),
    Break("secret", "removed", "rm /var/lib/hearth/secrets/drift/token", ("store secret:drift/token",)),
    Break(
        "postgresql_role", "a membership revoked", f"{PSQL} 'REVOKE pg_monitor FROM drift'", ("modify postgresql_role:drift",),
        said="is not in pg_monitor",
    ),
    Break("firewall", "the whole table", "nft delete table inet hearth", ("load firewall:inet hearth",)),
    Break("hostname", "/etc/hostname", "echo other > /etc/hostname", ("set hostname:lab-forge",)),
    Break("symlink", "removed", "rm /etc/localtime", ("create symlink:/etc/localtime",)),
    Break(
        "directory", "with what is in it", "rm -r /etc/drift/public",
        ("create file:/etc/drift/public/index.html",),
    ),
]  # fmt: skip

# What somebody says may be made anew, and what else needs a round in which nothing else has that action.
ANEW = [
    Break(
        "postgresql_database", "gone; a person says that it may start empty", f"{PSQL} 'ALTER DATABASE drift RENAME TO kept'",
        ("create postgresql_database:drift",), said="missing",
        after=f"{PSQL} 'DROP DATABASE drift'; {PSQL} 'ALTER DATABASE kept RENAME TO drift'",
        variables=(("start_empty", "drift"),),
    ),
    Break(
        "firewall", "a single rule of ours deleted",
        "nft delete rule inet hearth input handle "
        "$(nft -a list chain inet hearth input | sed -n 's/.* comment \"mqtt from lan\" # handle //p')",
        ("load firewall:inet hearth",), after="nft list chain inet hearth input | grep -q 'mqtt from lan'",
    ),
]  # fmt: skip
ROUNDS = {"quiet": QUIET, "loud": LOUD, "gone": GONE, "anew": ANEW}
ROWS = [row for rows in ROUNDS.values() for row in rows]


@dataclass(frozen=True)
class Refusal:
    """What is not mended: it could hide that data was lost, or hit what somebody needs. ``undo`` makes it good again."""

    item: str
    what: str
    command: str
    undo: str
    message: str

    @property
    def kind(self) -> str:
        return self.item.partition(":")[0]


MADE = "/var/lib/postgresql/17/main/PG_VERSION"
REFUSED = [
    Refusal(
        "storage:/var/lib/drift", "content without our mark", "mv /var/lib/drift/.hearth-storage /root/",
        "mv /root/.hearth-storage /var/lib/drift/", "/var/lib/drift",
    ),
    Refusal(
        "initialize:postgresql", "made once, and gone", f"cp -a {MADE} /root/; rm {MADE}", f"cp -a /root/PG_VERSION {MADE}",
        "held data of postgresql",
    ),
    Refusal(
        "postgresql_database:drift", "gone", f"{PSQL} 'ALTER DATABASE drift RENAME TO kept'",
        f"{PSQL} 'ALTER DATABASE kept RENAME TO drift'", "was there at the last run and is gone",
    ),
    Refusal(
        "unit:miniflux.service", "masked", "systemctl mask miniflux", "systemctl unmask miniflux", "is masked",
    ),
    Refusal(
        "unit:mosquitto.service", "masked at run time", "systemctl mask --runtime mosquitto",
        "systemctl unmask --runtime mosquitto", "is masked",
    ),
    Refusal("group:media", "another id", "groupmod -g 2977 media", "groupmod -g 2900 media", "has the id 2977"),
    Refusal("user:carla", "another id", "usermod -u 1577 carla", "usermod -u 1500 carla", "has the id 1577"),
    Refusal(
        "user:sonarr", "another primary group", "usermod -g carla sonarr", "usermod -g sonarr sonarr",
        "has the primary group carla",
    ),
    Refusal(
        "file:/etc/drift/drift.conf", "a link instead", "mv /etc/drift/drift.conf /root/; ln -s /dev/null /etc/drift/drift.conf",
        "rm /etc/drift/drift.conf; mv /root/drift.conf /etc/drift/", "is a symbolic link to /dev/null",
    ),
    Refusal(
        "file:/etc/timezone", "a directory instead", "mv /etc/timezone /root/; mkdir /etc/timezone",
        "rmdir /etc/timezone; mv /root/timezone /etc/", "shall be a file and is a directory",
    ),
    Refusal(
        "symlink:/etc/localtime", "a directory instead", "rm /etc/localtime; mkdir /etc/localtime",
        "rmdir /etc/localtime; ln -s /usr/share/zoneinfo/Etc/UTC /etc/localtime", "shall be a symbolic link",
    ),
    Refusal(
        "directory:/etc/hearth/nftables/forward.d", "a file instead",
        "rmdir /etc/hearth/nftables/forward.d; touch /etc/hearth/nftables/forward.d",
        "rm /etc/hearth/nftables/forward.d; mkdir /etc/hearth/nftables/forward.d", "shall be a directory and is a file",
    ),
]  # fmt: skip


def test_every_kind_of_item_is_broken_and_is_on_this_host(exact: Exact) -> None:
    """A new kind of item needs a row here, and a service in inventory/ that has one."""
    rows = {row.kind for row in ROWS} | {row.kind for row in REFUSED}
    assert rows == set(m.ITEM_TYPES) == set(m.KINDS)
    assert {item["kind"] for item in exact.manifest()["items"]} == set(m.ITEM_TYPES)
    # Only what could lose data is never mended.
    assert set(m.ITEM_TYPES) - {row.kind for row in ROWS if row.actions} == {"initialize"}


@pytest.mark.parametrize("breaks", ROUNDS.values(), ids=ROUNDS.keys())
def test_what_is_broken_by_hand_is_named_and_mended(site: Site, exact: Exact, breaks: list[Break]) -> None:
    exact.sh("set -e\n" + "\n".join(row.command for row in breaks))
    expected = {action for row in breaks for action in row.actions}
    unsure = {item for row in breaks for item in row.unknown}
    variables = dict(entry for row in breaks for entry in row.variables)
    checked = exact.check(variables=variables)
    assert checked.actions() == expected, reasons(checked)
    assert unknown(checked) == unsure
    notices = [notice["message"] for notice in checked.converge()["notices"]]
    for row in breaks:
        texts = [reasons(checked)[row.actions[0]]] if row.actions else notices
        assert any(row.said in text for text in texts), (row, texts)
    applied = site.play("--diff", variables=variables)
    more = {action for action in applied.actions() - expected if action.partition(" ")[2] in unsure}
    assert applied.actions() - more == expected, reasons(applied)
    exact.sh("set -e\n" + "\n".join(row.after for row in breaks))
    exact.settled()


def test_what_could_hide_a_loss_is_refused(site: Site, exact: Exact) -> None:
    done: list[Refusal] = []
    try:
        for row in REFUSED:
            done.append(row)
            exact.sh(row.command)
        checked = exact.check(expect=2)
        refused = site.play(expect=2)
    finally:
        for row in reversed(done):
            exact.sh(row.undo)
    for outcome in (checked, refused):
        found = problems(outcome.message)
        assert {item for item in found if item} == {row.item for row in REFUSED}, outcome.message
        for row in REFUSED:
            assert row.message in found[row.item], found[row.item]
        assert "nothing was changed" in outcome.message
    exact.settled()


def problems(message: str) -> dict[str, str]:
    """The problems of a refusal by item, each with its remedy."""
    found: dict[str, str] = {}
    item = ""
    for line in message.splitlines()[1:]:
        if line.startswith("    "):
            found[item] += f" ({line.strip()})"
            continue
        place, _, text = line.strip().partition(": ")
        item = place.rpartition(", ")[2]
        found[item] = t.cast("str", text)
    return found
