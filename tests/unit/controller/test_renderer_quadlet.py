# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Containers as quadlets. The expected texts were started by podman 5.4.2 of Debian 13 (only with other addresses)."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.plugin_utils.plan import HostPlan
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import common, quadlet
from ansible_collections.hearth.homelab.tests.unit.controller import rendering as r

CONTAINER = """\
# Managed by Hearth for the service sonarr. Changes made here are reported and overwritten.

[Unit]
Description=TV series management
Requires=hearth-gate@sonarr.service
After=hearth-gate@sonarr.service
RequiresMountsFor=/srv/media /var/lib/sonarr
OnFailure=sonarr-recover.service
StartLimitIntervalSec=1221s
StartLimitBurst=5

[Container]
Image=ghcr.io/home-operations/sonarr:4.0.19.3001
ContainerName=sonarr
Pull=never
User=2041
Group=2041
GroupAdd=2900
GroupAdd=44
PodmanArgs=--umask=0002
DropCapability=all
AddCapability=CAP_CHOWN
NoNewPrivileges=true
ReadOnly=true
Tmpfs=/tmp:rw,nosuid,nodev
AddDevice=/dev/dri
Volume=/srv/media:/media:rw
Volume=/var/lib/sonarr:/config:rw
Network=media.network
PublishPort=127.0.0.1:8990:8989/tcp
PublishPort=192.0.2.10:9000:9000/tcp
PublishPort=192.0.2.10:9000:9000/udp
Environment="MOTTO=100%% $$free"
Environment=TZ=Europe/London
Secret=hearth-sonarr-api_key,type=env,target=SONARR__AUTH__APIKEY
Secret=hearth-sonarr-cert,type=mount,target=/run/cert.pem,uid=2041,gid=2041,mode=0400
Label=io.hearth.service=sonarr
Exec=--data /config "two words"
StopTimeout=90

[Service]
Restart=on-failure
RestartSec=5s
TimeoutStartSec=300s
TimeoutStopSec=100s
SuccessExitStatus=143
SyslogIdentifier=sonarr
MemoryMax=1073741824
CPUWeight=100

[Install]
WantedBy=multi-user.target
"""

NETWORK = """\
# Managed by Hearth for the service podman. Changes made here are reported and overwritten.

[Unit]
Description=container network media

[Network]
NetworkName=hearth-media
Subnet=10.89.10.0/24
Options=isolate=true
Label=io.hearth.network=media
PodmanArgs=--interface-name=hb-media

[Service]
ExecStopPost=-/usr/bin/podman network rm hearth-media
"""


def render(contribution: dict[str, t.Any], core: dict[str, t.Any] | None = None, name: str = "sonarr") -> HostPlan:
    return r.plan_of(quadlet.render, r.fleet(r.host("forge", {"podman": r.PODMAN, name: contribution}, core)))


def options(plan: HostPlan, key: str, name: str = "sonarr") -> list[str]:
    lines = r.text(plan, f"/etc/containers/systemd/{name}.container").splitlines()
    return [line.partition("=")[2] for line in lines if line.partition("=")[0] == key]


def test_a_container_with_storage_secrets_and_two_listeners() -> None:
    plan = render(r.SONARR)
    assert r.text(plan, "/etc/containers/systemd/sonarr.container") == CONTAINER
    assert r.text(plan, "/etc/containers/systemd/media.network") == NETWORK
    assert r.unit(plan, "sonarr.service") == m.Unit(
        "sonarr.service",
        "sonarr",
        enabled=None,
        restart_on=(
            "file:/etc/containers/systemd/sonarr.container",
            "image:ghcr.io/home-operations/sonarr:4.0.19.3001",
            "podman_secret:hearth-sonarr-api_key",
            "podman_secret:hearth-sonarr-cert",
        ),
    )
    # The network belongs to the engine: it stays when the first service that uses it goes.
    assert r.unit(plan, "media-network.service").service == "podman"
    found = plan.manifest.by_id()
    assert found["podman_secret:hearth-sonarr-cert"] == m.PodmanSecret(
        "hearth-sonarr-cert", "sonarr", secret="sonarr/cert"
    )
    (validator,) = plan.manifest.validators
    assert validator.argv == ("/usr/lib/systemd/system-generators/podman-system-generator", "--dryrun")


@pytest.mark.parametrize(
    ("run_as", "user", "access"),
    [
        ("user", ["2041"], "uid=2041,gid=2041,mode=0400"),
        ("root", ["0"], "uid=0,gid=0,mode=0400"),
        ("image", [], "mode=0444"),
    ],
)
def test_who_runs_in_the_container(run_as: str, user: list[str], access: str) -> None:
    plan = render(r.merged(r.SONARR, run__container__run_as=run_as))
    assert options(plan, "User") == options(plan, "Group") == user
    assert options(plan, "Secret")[1] == f"hearth-sonarr-cert,type=mount,target=/run/cert.pem,{access}"


@pytest.mark.parametrize(
    ("listen", "core", "published"),
    [
        ({"address": "loopback"}, {}, ["127.0.0.1:8989:8989/tcp"]),
        ({"address": "any"}, {}, ["8989:8989/tcp"]),
        ({"address": "lan"}, {}, ["192.0.2.10:8989:8989/tcp"]),
        ({"address": "mesh", "port": 80}, {}, ["203.0.113.1:80:8989/tcp"]),
        # A container has an IPv6 address in a network with an IPv6 subnet, and only there.
        (
            {"address": "lan"},
            {"hearth_networks": {"media": {"subnet": "2001:db8:89::/64"}}},
            ["[2001:db8:1::10]:8989:8989/tcp"],
        ),
    ],
)
def test_ports_are_published_where_the_service_listens(
    listen: dict[str, t.Any], core: dict[str, t.Any], published: list[str]
) -> None:
    entry = {"port": 8989, "container_port": 8989, **listen}
    plan = render(r.merged(r.SONARR, listen={"http": entry}), core)
    assert options(plan, "PublishPort") == published
    assert ("IPv6=true" in r.text(plan, "/etc/containers/systemd/media.network")) is ("[" in published[0])


def test_the_host_s_network_publishes_nothing() -> None:
    plan = render(r.merged(r.SONARR, run__container__network="host", networks=[]))
    assert options(plan, "Network") == ["host"]
    assert options(plan, "PublishPort") == []


@pytest.mark.parametrize(
    ("overrides", "image", "stand_in"),
    [
        ({}, "ghcr.io/home-operations/sonarr:4.0.19.3001", False),
        ({"ghcr.io": "r/all:1"}, "r/all:1", True),
        ({"ghcr.io/": "r/all:1", "ghcr.io/home-operations/sonarr": "r/sonarr:1"}, "r/sonarr:1", True),
        ({"ghcr.io/home-operations/sonarr:4.0.19.3001": "r/exact:1", "ghcr.io": "r/all:1"}, "r/exact:1", True),
        ({"ghcr.io/home": "r/all:1"}, "ghcr.io/home-operations/sonarr:4.0.19.3001", False),
        ({"ghcr.io/home-operations/sonarr:4.0": "r/x:1"}, "ghcr.io/home-operations/sonarr:4.0.19.3001", False),
    ],
)
def test_stand_ins(overrides: dict[str, str], image: str, stand_in: bool) -> None:
    core = {"hearth_image_overrides": overrides}
    plan = render(r.SONARR, core)
    assert options(plan, "Image") == [image]
    assert f"image:{image}" in r.ids(plan)
    # A digest that the role's lock has is that of the image itself: a stand-in never gets it.
    digest = f"sha256:{'a' * 64}"
    locked = r.service("sonarr", r.SONARR, digest=digest)
    host = r.host("forge", {"sonarr": locked}, core)
    wanted = image if stand_in else f"{image}@{digest}"
    container = locked.contribution.run.container
    assert container is not None
    assert quadlet.image(host, locked, container) == (wanted, stand_in)
    pinned = r.plan_of(quadlet.render, r.fleet(host))
    assert options(pinned, "Image") == [wanted]
    assert f"image:{wanted}" in r.ids(pinned)


def test_a_release_without_a_known_podman_and_a_newer_key_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(common.RenderError, match="no podman with quadlets is known for debian12") as error:
        render(r.SONARR, {"hearth_platform": {"release": "12"}})
    assert error.value.problem.remedy == "releases with one: debian13"
    older = {"Container": quadlet.KEYS["5.4"]["Container"] - {"StopTimeout"}, "Network": quadlet.KEYS["5.4"]["Network"]}
    monkeypatch.setitem(quadlet.KEYS, "5.4", older)
    with pytest.raises(common.RenderError, match=r"service sonarr: .*podman 5\.4 of debian13 .* StopTimeout="):
        render(r.SONARR)


@pytest.mark.parametrize(
    ("change", "core", "message"),
    [
        ({"networks": ["medai"]}, {}, "the container network 'medai' is not declared"),
        ({"user__groups": ["render"]}, {}, "the id of the group 'render' is not known"),
    ],
)
def test_what_cannot_be_rendered(change: dict[str, t.Any], core: dict[str, t.Any], message: str) -> None:
    with pytest.raises(common.RenderError, match=message):
        render(r.merged(r.SONARR, **change), core)


def test_an_id_of_the_inventory_makes_a_group_known() -> None:
    plan = render(r.merged(r.SONARR, user__groups=["render"]), {"hearth_ids": {"groups": {"render": 992}}})
    assert options(plan, "GroupAdd") == ["992"]


def test_bridges_have_names_that_fit_an_interface() -> None:
    assert quadlet.bridge("media") == "hb-media"
    long = [quadlet.bridge("a_network_with_a_long_name"), quadlet.bridge("a_network_with_a_long_name2")]
    assert all(len(name) <= 15 for name in long)
    assert long[0] != long[1]
    other = r.merged(r.SONARR, networks=[])
    assert quadlet.bridges(r.host("forge", {"sonarr": r.SONARR, "other": other})) == ["podman0", "hb-media"]
    assert quadlet.bridges(r.host("forge", {"sonarr": r.SONARR})) == ["hb-media"]
