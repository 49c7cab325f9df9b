# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Changes of the inventory: check mode before a change and the change itself name the same items, check mode leaves the
host as it is, and the run after finds nothing to do. The steps build on each other; the last one takes all back."""

from __future__ import annotations

import typing as t

import yaml

from ..conftest import Site
from .conftest import FORGE, Exact, reasons, unknown

Data = dict[str, t.Any]

UNIT = """[Unit]
Description=Extra
[Service]
ExecStart=/usr/bin/python3 -m http.server 20060 --bind 127.0.0.1 --directory /var/lib/extra
User=extra
[Install]
WantedBy=multi-user.target
"""
EXTRA: Data = {
    "summary": "A service that comes and goes",
    "tier": "services",
    "run": {"native": {"packages": ["jq"], "units": ["extra.service"]}, "stop_timeout": "5s"},
    "user": {"name": "extra", "id": 3060, "groups": ["media"]},
    "listen": {"http": {"port": 20060, "address": "any", "from": ["lan"]}},
    "storage": {"state": {"mountpoint": "/var/lib/extra"}},
    "mounts": {"media": {"source": "/srv/media", "access": "ro"}},
    "protect": {"class": "standard"},
    "route": {"name": "extra", "to": "http", "access": "media"},
    "database": {"postgresql": {"name": "extra", "password": "db_password", "extensions": ["hstore"]}},
    "mqtt": {"user": "extra", "acl": ["read extra/#"]},
    "secrets": {"db_password": {"kind": "access"}, "mqtt_password": {"kind": "access"}},
    "files": [{"path": "/etc/systemd/system/extra.service", "content": UNIT}],
    "timers": {"tidy": {"calendar": "weekly", "argv": ["/usr/bin/true"]}},
    "health": {"http": {"port": "http", "path": "/"}, "start_period": "30s"},
    "requires": ["postgresql"],
}
SECRETS = {"db_password": "db-1-not-a-secret", "token": "token-1-not-a-secret", "mqtt_password": "mqtt-1-not-a-secret"}
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPi0hxeUWBLOvmJgqm5P9TOCOe0x5MsYsaYrGkQPRVxA"
CARLA: Data = {
    "id": 1500,
    "keys": [f"{KEY} carla@example.com"],
    "groups": ["media"],
    "comment": "Carla",
    "sudo": "nopasswd",
}

ADD = {
    "hearth_services__test": {"extra": {"contribution": EXTRA}, "radarr": {"enabled": True}},
    "extra_secrets": {"db_password": "db-2-not-a-secret", "mqtt_password": "mqtt-2-not-a-secret"},
}
DRIFT_OVERRIDE: Data = {
    "route": {"name": "drifting"},  # a route renamed
    "run": {"resources": {"memory_max": "96M"}},  # limits
    "timers": {"tidy": {"calendar": "weekly"}},
}
CHANGE = {
    **ADD,
    "hearth_services__test": {
        **ADD["hearth_services__test"],
        "drift": {"override": DRIFT_OVERRIDE},
        "caddy": {"override": {"run": {"native": {"hardening": {"PrivateMounts": True}}}}},  # hardening
    },
    "drift_greeting": "good morning",  # an option in a file
    "drift_secrets": {**SECRETS, "db_password": "db-3-not-a-secret", "mqtt_password": "mqtt-3-not-a-secret"},
    "miniflux_port": 18085,  # a port
}
SYSTEM = {
    **CHANGE,
    "hearth_services__test": {
        **CHANGE["hearth_services__test"],
        "kernel": {"override": {"system": {"sysctl": {"net.ipv4.ip_default_ttl": "66"}}}},
    },
    "hearth_people": {
        "carla": {**CARLA, "sudo": "none", "comment": "Carla C."},
        "dora": {"id": 1501, "keys": [f"{KEY} dora@example.com"], "groups": ["media"]},
    },
    "hearth_access": {"admin": ["demo"], "home": ["demo", "guest"], "media": ["demo", "guest"]},
    "base_extra_packages": ["tree"],
}


def changes(
    site: Site, exact: Exact, fleet: Data, expected: set[str], *, unsure: set[str] = frozenset(), **options: t.Any
) -> set[str]:  # fmt: skip
    """One change of the host's variables, checked and made. ``expected`` are actions that must be among those named,
    ``unsure`` ids that check mode may call unknown. Returns what both named."""
    site.set_vars(FORGE, fleet or None)
    checked = exact.check(**options)
    named = checked.actions()
    assert expected <= named, (expected - named, reasons(checked))
    assert unknown(checked) == set(unsure)
    applied = site.play("--diff", **options)
    done = applied.actions()
    assert named <= done, f"named and not done: {named - done}"
    assert {action.partition(" ")[2] for action in done - named} <= set(unsure), f"not named: {done - named}"
    again = site.play("--diff", **options).converge()
    assert not again["changed"], [(a["operation"], a["id"], a["reason"]) for a in again["actions"]]
    assert (again["unknown"], again["exchanges"]) == ([], 1)
    return named


def test_services_are_added(site: Site, exact: Exact) -> None:
    named = changes(
        site, exact, ADD,
        {
            "create group:extra", "create user:extra", "create storage:/var/lib/extra", "install package:jq",
            "store secret:extra/db_password", "create file:/etc/systemd/system/extra.service",
            "create file:/etc/caddy/sites/extra.caddy", "create file:/etc/mosquitto/hearth/users/extra",
            "create file:/etc/hearth/nftables/input.d/extra.nft", "load firewall:inet hearth",
            "create postgresql_role:extra", "create postgresql_database:extra", "enable unit:extra.service",
            "start unit:extra.service", "enable unit:extra-tidy.timer", "start unit:extra-tidy.timer",
            "reload unit:caddy.service", "reload unit:mosquitto.service",
            "create user:radarr", "pull image:registry.lab.example.com:5000/standin/radarr:1",
            "create podman_secret:hearth-radarr-api_key", "create file:/etc/containers/systemd/radarr.container",
            # Prowlarr runs, so it can be asked; no unknown.
            "start unit:radarr.service", "create configure:radarr/prowlarr",
        },
    )  # fmt: skip
    services = {"drift", "miniflux", "sonarr", "prowlarr"}
    assert not {action for action in named if action.endswith(tuple(f"unit:{name}.service" for name in services))}


def test_options_secrets_ports_limits_and_a_route_are_changed(site: Site, exact: Exact) -> None:
    digest = exact.sh(
        "podman image inspect --format '{{index .RepoDigests 0}}' registry.lab.example.com:5000/standin/sonarr:1"
    ).strip()
    overrides = site_overrides(site) | {"ghcr.io/home-operations/sonarr": digest}
    CHANGE["hearth_image_overrides"] = SYSTEM["hearth_image_overrides"] = overrides  # an image
    named = changes(
        site, exact, CHANGE,
        {
            "modify file:/etc/drift/drift.conf", "restart unit:drift.service", "store secret:drift/db_password",
            "modify file:/etc/drift/db_password", "modify postgresql_role:drift",
            "modify file:/etc/mosquitto/hearth/users/drift", "reload unit:mosquitto.service",
            "modify file:/etc/caddy/sites/drift.caddy", "modify file:/etc/caddy/sites/miniflux.caddy",
            "modify file:/etc/systemd/system/drift.service.d/50-hearth.conf",
            "modify file:/etc/systemd/system/drift-tidy.timer", "restart unit:drift-tidy.timer",
            "modify file:/etc/miniflux/miniflux.conf", "restart unit:miniflux.service",
            "modify file:/etc/systemd/system/caddy.service.d/50-hearth.conf", "restart unit:caddy.service",
            "modify file:/etc/containers/systemd/sonarr.container", "restart unit:sonarr.service",
        },
    )  # fmt: skip
    assert not {action for action in named if action.endswith(("unit:extra.service", "unit:prowlarr.service"))}


def site_overrides(site: Site) -> dict[str, str]:
    data = yaml.safe_load((site.inventory / "group_vars" / "all" / "main.yml").read_text())
    return t.cast("dict[str, str]", data["hearth_image_overrides"])


def test_people_packages_access_the_kernel_and_a_zone_are_changed(site: Site, exact: Exact) -> None:
    lan = site.address("lab-forge").rpartition(".")[0] + ".0/24"
    SYSTEM["hearth_zones"] = {"lan": {"networks": [lan, "198.51.100.0/24"]}}
    named = changes(
        site, exact, SYSTEM,
        {
            "create user:dora", "create group:dora", "create file:/etc/ssh/authorized_keys.d/dora",
            "modify user:carla", "remove file:/etc/sudoers.d/hearth-carla", "install package:tree",
            "modify file:/etc/sysctl.d/60-hearth-kernel.conf", "restart unit:systemd-sysctl.service",
            "reload unit:caddy.service", "store secret:people/guest",
            "modify file:/etc/hearth/nftables/hearth.nft", "load firewall:inet hearth",
        },
    )  # fmt: skip
    units = {action for action in named if " unit:" in action}
    assert units == {"restart unit:systemd-sysctl.service", "reload unit:caddy.service"}
    assert exact.sh("cat /proc/sys/net/ipv4/ip_default_ttl").strip() == "66"


def test_only_and_tiers_name_and_make_what_is_theirs(site: Site, exact: Exact) -> None:
    """Each makes its own part of one change, in an order that is not theirs, and leaves the others' parts to them."""
    pending = {
        **SYSTEM,
        "drift_greeting": "good night",
        "miniflux_keep_read_days": 61,
        "caddy_global_options": ["grace_period 9s"],
        "base_extra_packages": ["tree", "bc"],
    }
    site.set_vars(FORGE, pending)
    parts: list[tuple[dict[str, t.Any], set[str]]] = [
        ({"variables": {"only": "drift"}}, {"modify file:/etc/drift/drift.conf", "restart unit:drift.service"}),
        ({"playbook": "playbooks/services.yml"},
         {"modify file:/etc/miniflux/miniflux.conf", "restart unit:miniflux.service"}),
        ({"playbook": "playbooks/core.yml"}, {"install package:bc"}),
        ({"playbook": "playbooks/infrastructure.yml"}, {"modify file:/etc/caddy/Caddyfile", "reload unit:caddy.service"}),
    ]  # fmt: skip
    for options, expected in parts:
        assert exact.check(**options).actions() == expected, options
        assert site.play("--diff", **options).actions() == expected, options
    exact.settled()


def test_services_are_removed_and_disabled_and_all_is_as_it_was(site: Site, exact: Exact) -> None:
    """Back to the fleet of the other tests in one step: everything above at once, the other way round."""
    named = changes(
        site, exact, {},
        {
            "stop unit:extra.service", "disable unit:extra.service", "stop unit:extra-tidy.timer",
            "remove file:/etc/systemd/system/extra.service", "remove file:/etc/caddy/sites/extra.caddy",
            "disable postgresql_role:extra", "remove file:/etc/hearth/nftables/input.d/extra.nft",
            "load firewall:inet hearth", "stop unit:radarr.service", "remove podman_secret:hearth-radarr-api_key",
            "remove configure:radarr/prowlarr", "restart unit:drift.service", "restart unit:miniflux.service",
            "create file:/etc/sudoers.d/hearth-carla", "restart unit:systemd-sysctl.service",
        },
    )  # fmt: skip
    assert not {action for action in named if action.startswith(("create storage", "remove storage"))}
    assert exact.sh("ls -d /var/lib/extra /var/lib/radarr; id -u dora")
