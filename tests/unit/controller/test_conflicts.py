# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Conflicts between services and hosts: what is said about each, and what is no conflict."""

from __future__ import annotations

import dataclasses
import typing as t

import pytest
from ansible_collections.hearth.homelab.plugins.plugin_utils import conflicts
from ansible_collections.hearth.homelab.plugins.plugin_utils.conflicts import Facts, SecretNames
from ansible_collections.hearth.homelab.plugins.plugin_utils.errors import Problem, listing
from ansible_collections.hearth.homelab.plugins.plugin_utils.layers import Place
from ansible_collections.hearth.homelab.plugins.plugin_utils.model import Fleet
from ansible_collections.hearth.homelab.plugins.plugin_utils.schema import Contribution
from ansible_collections.hearth.homelab.plugins.plugin_utils.sops_keys import Entry

from . import rendering
from .fleets import native

Services = dict[str, dict[str, t.Any]]

PROXY = native(tier="infrastructure", provides={"route": "caddy"})
PODMAN = native(tier="infrastructure", provides={"container": "podman"})
CONTAINER = {"container": {"image": "example.com/a:1", "reason": "not packaged", "run_as": "image"}}
SHARED = {"name": "u", "id": 2000, "shared": True}
REPOSITORY = {
    "url": "https://apt.example.org", "suite": "trixie", "key_url": "https://apt.example.org/key", "fingerprint": "A" * 40,
}  # fmt: skip
CORE = {"hearth_access": {"media": ["anna"], "home": []}, "hearth_zones": {}}


def port(number: int = 80, **more: t.Any) -> dict[str, t.Any]:
    return {"http": {"port": number, **more}}


def fleet(forge: Services, luna: Services | None = None, core: dict[str, t.Any] | None = None) -> Fleet:
    hosts = [rendering.host("forge", forge, {**CORE, **(core or {})}, "servers")]
    if luna is not None:
        hosts.append(rendering.host("nas-1", luna, {**CORE, **(core or {})}, "servers", "storage"))
    return rendering.fleet(*hosts)


def locate(host: str, service: str, path: t.Sequence[str | int]) -> Place:
    return Place(f"{host}-{service}.yml", len(path))


FACTS = Facts(
    locate=locate, groups={"servers": ["forge", "nas-1"], "storage": ["nas-1"]}, roles=["podman", "postgresql"]
)


def found(made: Fleet, facts: Facts = FACTS) -> list[Problem]:
    return conflicts.check(made, facts).problems


Case = tuple[Fleet, tuple[str, ...]]

CONFLICTS: dict[str, Case] = {
    "one port": (
        fleet({"a": native(listen=port()), "b": native(listen=port(address="any"))}),
        ("host forge", "service b", "listen.http.port", "port 80/tcp: service a listens there too", "forge-a.yml:3",
         "another port"),
    ),
    "one port of one service": (
        fleet({"a": native(listen={"x": {"port": 80}, "y": {"port": 80, "protocol": ["udp", "tcp"]}})}),
        ("listen.y.port", "port 80/tcp: its own x listens there too"),
    ),
    "one mountpoint": (
        fleet({
            "a": native(storage={"state": {"mountpoint": "/srv/x"}}, protect={"class": "standard"}),
            "b": native(storage={"data": {"mountpoint": "/srv/x"}}, protect={"class": "standard"}),
        }),
        ("service b", "storage.data.mountpoint", "/srv/x is the mountpoint /srv/x of service a", "forge-a.yml:3"),
    ),
    "a mountpoint below another": (
        fleet({
            "a": native(storage={"state": {"mountpoint": "/srv/x"}}, protect={"class": "standard"}),
            "c": native(storage={"data": {"mountpoint": "/srv/x-y"}}, protect={"class": "standard"}),
            "b": native(storage={"data": {"mountpoint": "/srv/x/y"}}, protect={"class": "standard"}),
        }),
        ("service b", "/srv/x/y lies below the mountpoint /srv/x of service a"),
    ),
    "one route in the fleet": (
        fleet(
            {"proxy": PROXY, "a": native(listen=port(), route={"name": "x", "to": "http", "access": "public"})},
            {"proxy": PROXY, "b": native(listen=port(), route={"name": "x", "to": "http", "access": "public"})},
        ),
        ("host nas-1", "service b", "route.name", "x.example.com is that of service a on host forge too"),
    ),
    "one database": (
        fleet({
            "postgresql": rendering.POSTGRESQL,
            "a": native(database={"postgresql": {"name": "x"}}, protect={"class": "standard"}),
            "b": native(database={"postgresql": {"name": "x"}}, protect={"class": "standard"}),
        }, core={"hearth_protect_accept": {"offsite": "test"}}),
        ("service b", "database.postgresql.name", "the postgresql database x is service a's too"),
    ),
    "one unit": (
        fleet({
            "a": {**native(), "run": {"native": {"units": ["x.service"]}}},
            "b": {**native(), "run": {"native": {"units": ["x.service"]}}},
        }),
        ("service b", "the unit x.service is service a's too"),
    ),
    "a unit of a container": (
        fleet({"podman": PODMAN, "a": native(run=CONTAINER), "b": native(run={"native": {"units": ["a.service"]}})}),
        ("service b", "the unit a.service is service a's too"),
    ),
    "one user that is not shared": (
        fleet({"a": native(user=SHARED), "b": native(user={"name": "u", "id": 2000})}),
        ("service b", "the user u (id 2000) is service a's too", "shared: true"),
    ),
    "one id of two users": (
        fleet({
            "a": native(user={"name": "u", "id": 2000, "shared": True}),
            "b": native(user={"name": "v", "id": 2000, "shared": True}),
        }),
        ("service b", "user.id", "the user id 2000 of v is that of u", "hearth_ids: {users: {v: NUMBER}}"),
    ),
    "one file": (
        fleet({
            "a": native(files=[{"path": "/etc/x", "content": "1"}]),
            "b": native(files=[{"path": "/etc/y", "content": "1"}, {"path": "/etc/x", "content": "1"}]),
        }),
        ("service b", "files[1].path", "the file /etc/x is made by service a too"),
    ),
    "a requirement that nobody provides": (
        fleet({"a": native(requires=["postgresq"])}),
        ("service a", "requires[0]", "requires 'postgresq', which no host of the fleet provides",
         "did you mean postgresql"),
    ),
    "a requirement that is not enabled": (
        fleet({"a": native(requires=["postgresql"])}),
        ("requires 'postgresql'", "enable it: hearth_services: {postgresql: {}}"),
    ),
    "a cycle": (
        fleet({"a": native(requires=["b"]), "b": native(wants=["c"]), "c": native(requires=["a"])}),
        ("a cycle: a -> b -> c -> a", "remove one of these"),
    ),
    "a route without access": (
        fleet({"proxy": PROXY, "a": native(listen=port(), route={"name": "x", "to": "http"})}),
        ("service a", "route.access", "does not say who may use it", "home, media", "application", "public"),
    ),
    "an unknown access group": (
        fleet({"proxy": PROXY, "a": native(listen=port(), route={"name": "x", "to": "http", "access": "meda"})}),
        ("route.access", "'meda' is no access group", "did you mean media"),
    ),
    "a route without a domain": (
        fleet(
            {"proxy": PROXY, "a": native(listen=port(), route={"name": "x", "to": "http", "access": "media"})},
            core={"hearth_domain": None},
        ),
        ("has a route, and hearth_domain is not set", "set hearth_domain to a domain of yours"),
    ),
    "storage without protection": (
        fleet({"a": native(storage={"state": {"mountpoint": "/srv/x"}})}),
        ("service a: protect: has data (storage state) and no protection class", "ephemeral"),
    ),
    "a database without protection": (
        fleet({"postgresql": rendering.POSTGRESQL, "a": native(database={"postgresql": {"name": "x"}})},
              core={"hearth_protect_accept": {"offsite": "test"}}),
        ("service a", "has data (postgresql) and no protection class"),
    ),
    "critical without an offsite tier": (
        fleet({"a": native(storage={"state": {"mountpoint": "/srv/x"}}, protect={"class": "critical"})}),
        ("protect.class", "class critical needs an offsite tier", "hearth_protect_accept: {offsite: REASON}"),
    ),
    "a container without an engine": (
        fleet({"a": native(run=CONTAINER)}),
        ("service a", "run.container", "nothing provides container on this host", "{podman: {}}"),
    ),
    "a database without a server": (
        fleet({"a": native(database={"postgresql": {"name": "x"}}, protect={"class": "standard"})}),
        ("database.postgresql", "nothing provides postgresql on this host"),
    ),
    "a route without a proxy": (
        fleet({"a": native(listen=port(), route={"name": "x", "to": "http", "access": "media"})}),
        ("service a: route: nothing provides route in the fleet", "{caddy: {}}"),
    ),
    "two providers": (
        fleet({"a": PODMAN, "b": PODMAN}),
        ("service b", "provides.container", "service a provides container on this host too"),
    ),
    "overlapping zones": (
        fleet({"a": native()}, core={
            "hearth_zones": {"lan": {"networks": ["192.0.2.0/24"]}, "guests": {"networks": ["192.0.2.128/25"]}},
        }),
        ("hearth_zones.guests.networks.0", "192.0.2.128/25 (zone guests) overlaps 192.0.2.0/24 (zone lan)"),
    ),
    "a container network over a zone": (
        fleet({"a": native()}, core={
            "hearth_zones": {"lan": {"networks": ["10.89.0.0/16"]}},
            "hearth_networks": {"media": {"subnet": "10.89.1.0/24"}},
        }),
        ("hearth_networks.media.subnet", "10.89.1.0/24 (container network media) overlaps 10.89.0.0/16"),
    ),
    "an unknown from": (
        fleet({"a": native(listen=port(**{"address": "lan", "from": ["lan", "storag"]}))}),
        ("listen.http.from[1]", "'storag' is no zone, host, group or contract", "did you mean storage"),
    ),
    "an unknown container network": (
        fleet({"podman": PODMAN, "a": native(run=CONTAINER, networks=["meda"])}),
        ("networks[0]", "the container network 'meda' is not declared", "did you mean media"),
    ),
    "an alert that never fires": (
        fleet({"a": native(run={"native": {"units": ["a.service"]}}, alerts=[
            {"alert": "Down", "expr": "up == 0", "severity": "low", "summary": "x", "unit": "aa.service"},
        ])}),
        ("alerts[0].unit", "names the unit aa.service, which is in no plan", "did you mean a.service"),
    ),
    "metrics on loopback of another host": (
        fleet({"prometheus": native(provides={"metrics": "prometheus"})},
              {"a": native(listen=port(), metrics={"port": "http"})}),
        ("host nas-1", "service a", "prometheus on host forge needs port 80 (metrics of this service)", "loopback only",
         "override: {listen: {http: {address: lan, from: [metrics]}}}"),
    ),
    "metrics that are not open": (
        fleet({"prometheus": native(provides={"metrics": "prometheus"})},
              {"a": native(listen=port(**{"address": "lan", "from": ["storage"]}), metrics={"port": "http"})}),
        ("needs port 80", "which is not open to it", "from: [storage, metrics]"),
    ),
    "a route of another host's service": (
        fleet({"proxy": PROXY}, {"a": native(listen=port(), route={"name": "x", "to": "http", "access": "media"})}),
        ("host nas-1", "proxy on host forge needs port 80 (route of this service)"),
    ),
    "a platform that it does not support": (
        fleet({"a": native(platforms=["debian/arm64"])}),
        ("service a", "platforms", "the host is debian/amd64; allowed: debian/arm64", "{a: {enabled: false}}"),
    ),
    "an external receiver in the lab": (
        fleet({"a": native()}, core={"hearth_external": False, "hearth_receivers": {"phone": {"webhook": "https://x"}}}),
        ("host forge", "hearth_receivers.phone", "a target outside, and hearth_external is false", "external: false"),
    ),
    "an ACME server in the lab": (
        fleet({"a": native()}, core={
            "hearth_external": False, "hearth_certificates": {"issuer": "acme", "acme": {"email": "a@example.com"}},
        }),
        ("hearth_certificates.acme", "a target outside, and hearth_external is false"),
    ),
    "a vendor's repository in the lab": (
        fleet({"a": native(run={"native": {"packages": ["x"], "repository": REPOSITORY}})}, core={"hearth_external": False}),
        ("service a", "run.native.repository", "a target outside, and hearth_external is false"),
    ),
    "a further repository in the lab": (
        fleet({"a": native(tier="core", system={"apt_sources": [REPOSITORY]})}, core={"hearth_external": False}),
        ("service a", "system.apt_sources[0]", "a target outside, and hearth_external is false"),
    ),
    "a target of an option in the lab": (
        fleet({"a": native(external={"a_peers": ["localhost:25", "x.example.com", "198.51.100.9"]})}, core={
            "hearth_external": False, "hearth_zones": {"lan": {"networks": ["192.0.2.0/24"]}}}),
        ("service a", "a_peers", "calls 198.51.100.9, which is outside, and hearth_external is false", "example.com"),
    ),
    "a URL deep in an option in the lab": (
        fleet({"a": rendering.service("a", native(), options={"settings": {"x": ["proxy 'http://example.org:3128/', y"]}})},
              core={"hearth_external": False}),
        ("service a", "a_settings", "calls http://example.org:3128/, which is outside"),
    ),
    "an image from outside in the lab": (
        fleet({"podman": PODMAN, "a": native(run={"container": {**CONTAINER["container"], "image": "ghcr.io/a/b:1"}})},
              core={"hearth_external": False, "hearth_image_overrides": {"ghcr.io/c": "registry.example.com/c:1"}}),
        ("service a", "run.container.image", "is pulled from ghcr.io, which is outside", "hearth_image_overrides"),
    ),
    "a mail address in the lab": (
        fleet({"a": native()}, core={
            "hearth_external": False, "hearth_receivers": {"me": {"email": "me@example.org", "external": False}},
        }),
        ("hearth_receivers.me", "marked external: false, but example.org is not inside", "names below example.com"),
    ),
    **{
        f"{address} is not inside": (
            fleet({"a": native()}, core={
                "hearth_external": False, "hearth_receivers": {"x": {"webhook": address, "external": False}},
                "hearth_zones": {"lan": {"networks": ["198.51.100.0/24", "2001:db8:1::/64"]}},
            }),
            ("hearth_receivers.x", f"but {address} is not inside", "addresses of hearth_zones"),
        )
        for address in (
            "https://example.org/", "https://notexample.com", "https://example.com.example.org", "http://203.0.113.200:80/",
            "http://example.com@example.org/", "http://[2001:db8:2::1]/", "http://[bad/", "single",
        )
    },
}  # fmt: skip


@pytest.mark.parametrize(("made", "expected"), CONFLICTS.values(), ids=CONFLICTS.keys())
def test_conflicts(made: Fleet, expected: tuple[str, ...]) -> None:
    text = listing(found(made))
    for part in expected:
        assert part in text, text
    assert len(found(made)) == 1, text


FINE: dict[str, Fleet] = {
    "a port on two addresses": fleet({"a": native(listen=port()), "b": native(listen=port(address="lan"))}),
    "a port with two protocols": fleet({"a": native(listen=port()), "b": native(listen=port(protocol=["udp"]))}),
    "a port on two hosts": fleet({"a": native(listen=port())}, {"a": native(listen=port())}),
    "storage below storage of the same service": fleet({"a": native(
        storage={"state": {"mountpoint": "/srv/x"}, "wal": {"mountpoint": "/srv/x/wal"}}, protect={"class": "standard"},
    )}),
    "a shared user": fleet({
        "a": native(user=SHARED), "b": native(user=SHARED),
    }),
    "two instances": fleet({
        name: rendering.service(name, native(user={"name": "u", "id": 2000}), role="a") for name in ("a", "a_2")
    }),
    "a requirement on another host": fleet({"a": native(requires=["b"])}, {"b": native()}),
    "a requirement of a contract": fleet({"a": native(requires=["container"]), "podman": PODMAN}),
    "a wish that nobody grants": fleet({"a": native(wants=["b"])}),
    "accepted": fleet({"a": native(storage={"state": {"mountpoint": "/srv/x"}}, protect={"class": "critical"})},
                      core={"hearth_protect_accept": {"offsite": "REASON"}}),
    "metrics without a provider": fleet({"a": native(listen=port(), metrics={"port": "http"})}),
    "metrics open to the contract": fleet(
        {"prometheus": native(provides={"metrics": "prometheus"})},
        {"a": native(listen=port(**{"address": "lan", "from": ["metrics"]}), metrics={"port": "http"})},
    ),
    "metrics open to a group": fleet(
        {"prometheus": native(provides={"metrics": "prometheus"})},
        {"a": native(listen=port(**{"address": "any", "from": ["servers"]}), metrics={"port": "http"})},
    ),
    "metrics open to the zone": fleet(
        {"prometheus": native(provides={"metrics": "prometheus"})},
        {"a": native(listen=port(**{"address": "lan", "from": ["lan"]}), metrics={"port": "http"})},
        {"hearth_zones": {"lan": {"networks": ["192.0.2.0/24"]}}},
    ),
    "a route through the host's own proxy": fleet(
        {"proxy": PROXY},
        {"proxy": PROXY, "a": native(listen=port(), route={"name": "x", "to": "http", "access": "media"})},
    ),
    "images and options that stay inside": fleet({
        "podman": PODMAN,
        "a": rendering.service("a", native(
            run={"container": {**CONTAINER["container"], "image": "ghcr.io/c/b:1"}}, external={"a_relay": ["mail.example.com:25"]},
        ), options={"urls": {"http://localhost:80": "text without any"}}),
    }, core={"hearth_external": False, "hearth_image_overrides": {"ghcr.io/c": "registry.example.com/c:1"}}),
    "what is outside, elsewhere": fleet({"a": native(external={"a_relay": ["mail.example.org:25"]})}),
    "targets inside": fleet({"a": native(run={"native": {"packages": ["x"], "repository": {
        **REPOSITORY, "external": False, "url": "http://apt.example.com/x", "key_url": "http://nas-1/key"}}})}, {}, core={
        "hearth_external": False,
        "hearth_zones": {"lan": {"networks": ["198.51.100.0/24", "2001:db8:1::/64"]}},
        "hearth_certificates": {"issuer": "acme", "acme": {
            "email": "a@example.com", "directory": "https://acme.example.com:14000/dir", "external": False}},
        "hearth_receivers": {
            f"r{number}": {"webhook": address, "external": False} for number, address in enumerate((
                "http://127.0.0.1", "http://localhost:8080/x", "https://example.com", "http://[2001:db8:1::5]:80/",
                "http://198.51.100.7/", "http://[::1]/",
            ))
        },
    }),
    "the containers' zone": fleet({"a": native()}, core={
        "hearth_zones": {"containers": {"networks": ["10.89.0.0/16"]}},
        "hearth_networks": {"media": {"subnet": "10.89.1.0/24"}},
    }),
}  # fmt: skip


@pytest.mark.parametrize("made", FINE.values(), ids=FINE.keys())
def test_no_conflict(made: Fleet) -> None:
    assert found(made) == []


def test_a_conflict_of_two_hosts_concerns_both() -> None:
    problem = found(CONFLICTS["one route in the fleet"][0])[0]
    assert [problem.concerns([name]) for name in ("forge", "nas-1", "luna")] == [True, True, False]


def test_a_disabled_requirement_names_where() -> None:
    facts = Facts(locate=locate, disabled={"forge": {"b": Place("all.yml", 7)}})
    text = listing(found(fleet({"a": native(requires=["b"])}), facts))
    assert "requires b, which is disabled on this host (all.yml:7)" in text


def test_what_depends_on_a_broken_service_is_no_problem_of_its_own() -> None:
    facts = Facts(broken=frozenset({("forge", "b"), ("forge", "podman"), ("forge", "caddy")}))
    made = fleet({
        "a": native(
            requires=["b"], run=CONTAINER, listen=port(), route={"name": "x", "to": "http", "access": "public"}
        ),
    })  # fmt: skip
    assert found(made, facts) == []


def test_every_knot_of_a_graph_is_found() -> None:
    graph = {"a": ["b"], "b": ["a", "c"], "c": ["d"], "d": ["e"], "e": ["c"], "f": ["f"]}
    assert conflicts.find_cycles(graph) == [["a", "b", "a"], ["c", "d", "e", "c"], ["f", "f"]]


# --- secrets -------------------------------------------------------------------------------------------------------

SECRET = native(secrets={"api_key": {"kind": "access"}})
PATH = "inventories/x/secrets/forge.sops.yml"


def names(**entries: str) -> dict[str, Entry]:
    return {key.replace("__", "/"): Entry(t.cast(t.Any, state), PATH, 3) for key, state in entries.items()}


SECRETS: dict[str, tuple[SecretNames, tuple[str, ...]]] = {
    "missing": (
        SecretNames(names(a__api_kye="encrypted"), file=PATH),
        ("service a: secrets.api_key: the secret api_key is missing", f"{PATH} has no key a.api_key",
         f"sops {PATH} and set api_key below a", "did you mean api_kye"),
    ),
    "null": (SecretNames(names(a__api_key="null"), file=PATH), ("the secret api_key has no value", f"{PATH}:3")),
    "in the clear": (
        SecretNames(names(a__api_key="plain"), file=PATH), ("the secret api_key is not encrypted", f"{PATH}:3"),
    ),
    "in a file that is not encrypted": (
        SecretNames({}, unreadable=((PATH, 1, "is not encrypted: it has no `sops` key"),), file=PATH),
        ("the secrets file is not encrypted", f"{PATH}:1", f"sops encrypt --in-place {PATH}"),
    ),
    "there": (SecretNames(names(a__api_key="encrypted"), file=PATH), ()),
    "a variable": (SecretNames({}, frozenset({"a/api_key"}), file=PATH), ()),
}  # fmt: skip


@pytest.mark.parametrize(("secrets", "expected"), SECRETS.values(), ids=SECRETS.keys())
def test_secrets(secrets: SecretNames, expected: tuple[str, ...]) -> None:
    problems = found(fleet({"a": SECRET}), Facts(secrets={"forge": secrets}))
    assert len(problems) == bool(expected)
    for part in expected:
        assert part in listing(problems)


def test_a_missing_secret_that_can_be_generated_names_the_step() -> None:
    made = fleet({"a": native(secrets={"api_key": {"kind": "access", "generate": {"length": 16}}})})
    problems = found(made, Facts(secrets={"forge": SecretNames({}, file=PATH)}))
    assert f"make it with playbooks/secrets.yml (make secrets), or sops {PATH} and set" in listing(problems)


def test_the_public_half_of_a_key_pair_is_known_or_missing() -> None:
    made = fleet({"a": native(secrets={"tunnel": {"kind": "access", "generate": {"keypair": "wireguard"}}})})
    facts = Facts(
        secrets={"forge": SecretNames(names(a__tunnel="encrypted"), file=PATH, known="inventories/x/known.yml")}
    )
    [problem] = found(made, facts)
    for part in ("host forge", "service a", "secrets.tunnel", "inventories/x/known.yml", "playbooks/secrets.yml"):
        assert part in listing([problem])
    forge = dataclasses.replace(made.hosts["forge"], public_keys={"a/tunnel": "x"})
    assert found(Fleet({"forge": forge}), facts) == []


def test_the_people_of_access_groups_need_a_hash() -> None:
    made = fleet({"proxy": PROXY, "a": native(listen=port(), route={"name": "x", "to": "http", "access": "media"})})
    problems = found(made, Facts(secrets={"forge": SecretNames({}, file=PATH)}))
    for part in ("host forge", "service proxy", "the password hash of anna", "people.anna.password_hash", PATH):
        assert part in listing(problems)
    assert found(made, Facts(secrets={"forge": SecretNames(names(people__anna="encrypted"), file=PATH)})) == []


# --- notices -------------------------------------------------------------------------------------------------------


def test_what_nothing_realises_is_said() -> None:
    made = fleet({
        "a": native(smtp=True, listen=port(), metrics={"port": "http"}),
        "b": native(smtp=True, storage={"state": {"mountpoint": "/srv/x"}}, protect={"class": "standard"}),
    })  # fmt: skip
    assert conflicts.notices(made, made.hosts["forge"]) == [
        ("metrics", "contract metrics has no provider yet: declared by a"),
        ("smtp", "contract smtp has no provider yet: declared by a, b"),
        ("offsite", "no offsite tier for b (hearth_protect_accept: {offsite: REASON} accepts it)"),
    ]


def test_an_accepted_risk_stays_in_the_plan() -> None:
    made = fleet(
        {"a": native(storage={"state": {"mountpoint": "/srv/x"}}, protect={"class": "critical"})},
        core={"hearth_protect_accept": {"offsite": "a lab"}},
    )
    assert conflicts.notices(made, made.hosts["forge"]) == [("offsite", "no offsite tier for a (accepted: a lab)")]


DIGEST = f"sha256:{'a' * 64}"


@pytest.mark.parametrize(
    ("image", "digest", "overrides", "said"),
    [
        pytest.param("registry.example.com/a:1", "", {}, True, id="unlocked"),
        pytest.param("registry.example.com/a:1", DIGEST, {}, False, id="locked by the role"),
        pytest.param(f"registry.example.com/a:1@{DIGEST}", "", {}, False, id="locked by the owner"),
        pytest.param("registry.example.com/a:1", "", {"registry.example.com": "r/standin:1"}, False, id="stand-in"),
    ],
)
def test_an_image_that_nothing_locks_is_said(image: str, digest: str, overrides: dict[str, str], said: bool) -> None:
    run = {"container": {"image": image, "reason": "a test", "run_as": "image"}}
    entry = rendering.service("a", native(run=run), digest=digest)
    host = rendering.host("forge", {"a": entry}, {"hearth_image_overrides": overrides})
    found = conflicts.notices(rendering.fleet(host), host)
    assert [contract for contract, _text in found] == (["images"] if said else [])
    if said:
        assert f"no digest locks {image} (a): " in found[0][1]


def test_every_contract_is_realised_checked_or_said() -> None:
    """A field of the schema that nothing reads would be a dead option."""
    said = {name.partition(".")[0] for name, _used in conflicts.UNREALISED}
    read = {
        "schema_", "summary", "tier", "run", "category", "platforms", "provides", "user", "listen", "networks",
        "storage", "mounts", "protect", "route", "database", "secrets", "files", "timers", "health", "metrics",
        "alerts", "grafana", "mqtt", "notify", "dashboard", "api", "configure",
        "system", "external", "requires", "wants", "upgrade",
    }  # fmt: skip
    assert said | read == set(Contribution.model_fields)
