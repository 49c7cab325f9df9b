# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Composition of small fleets: what services become, and what people read when something is wrong."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
import yaml
from ansible_collections.hearth.homelab.plugins.plugin_utils import compose
from ansible_collections.hearth.homelab.plugins.plugin_utils.compose import Composition
from ansible_collections.hearth.homelab.plugins.plugin_utils.errors import listing
from ansible_collections.hearth.homelab.plugins.plugin_utils.model import Service
from ansible_collections.hearth.homelab.plugins.plugin_utils.schema import Route

from .fleets import Repository, native, repository

#: A role with everything that the tests below play with.
SONARR = """\
sonarr_contribution:
  summary: TV series management
  tier: services
  run:
    native:
      packages: [sonarr]
      environment:
        TZ: "{{ hearth_timezone }}"
        URL: "{{ service.url }}"
  user: {name: "{{ service.role }}", id: 2041}
  listen:
    http: {port: "{{ sonarr_port }}"}
  storage:
    state: {mountpoint: "/var/lib/{{ service.name }}"}
  protect: {class: standard}
  route: {name: "{{ sonarr_route }}", to: http, access: media}
  files:
    - {template: config.j2, path: "{{ service.storage.state }}/config"}
  health: {http: {port: http, path: /ping}}
"""
DEFAULTS = """\
# Port of the web interface.
sonarr_port: 8989
# Name of the route.
sonarr_route: "{{ service.name }}"
sonarr_level: info
"""
OPTIONS = {
    "sonarr_port": {"type": "int", "description": "Port."},
    "sonarr_route": {"type": "str", "description": "Route."},
    "sonarr_level": {"type": "str", "choices": ["info", "debug"], "description": "Level."},
}
SECOND = "hearth_services:\n  sonarr: {}\n  sonarr_4k:\n    role: sonarr\n    options: {port: 8990}\n"


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    made = repository(tmp_path, groups={"servers": ["forge"], "media": ["forge"]})
    made.role("sonarr", SONARR, defaults=DEFAULTS, options=OPTIONS, templates={"config.j2": "port={{ sonarr_port }}\n"})
    made.role("proxy", native(tier="infrastructure", provides={"route": "caddy"}))
    made.role("prowlarr", native())
    made.vars("group_vars/all/services.yml", {"hearth_services__base": {"proxy": {}}})
    return made


def composed(repo: Repository, services: t.Any = None, extra: dict[str, t.Any] | None = None) -> Composition:
    if services is not None:
        repo.vars("host_vars/forge.yml", services if isinstance(services, str) else {"hearth_services": services})
    return compose.compose(repo.source(extra))


def service(made: Composition, name: str, host: str = "forge") -> Service:
    assert not made.report.problems, listing(made.report.problems)
    return made.fleet.hosts[host].services[name]


def route(of: Service) -> Route:
    assert of.contribution.route is not None
    return of.contribution.route


# --- what services become ------------------------------------------------------------------------------------------


def test_a_role_with_its_defaults(repo: Repository) -> None:
    sonarr = service(composed(repo, {"sonarr": None}), "sonarr")
    contribution = sonarr.contribution
    assert contribution.listen["http"].port == 8989
    assert contribution.storage["state"].mountpoint == "/var/lib/sonarr"
    assert contribution.files[0].path == "/var/lib/sonarr/config"
    assert contribution.run.native is not None
    assert contribution.run.native.environment == {"TZ": "Etc/UTC", "URL": "https://sonarr.example.com/"}
    assert sonarr.options == {"port": 8989, "route": "sonarr", "level": "info"}
    assert (sonarr.user, sonarr.uid, sonarr.gid) == ("sonarr", 2041, 2041)
    assert sonarr.role_path == repo.path / "roles" / "sonarr"


def test_every_value_is_plain_data(repo: Repository) -> None:
    """Strings with Ansible's tags would be written differently by YAML and JSON."""
    made = composed(repo, {"sonarr": {}})

    def check(value: t.Any) -> None:
        assert type(value) in (str, int, float, bool, type(None), dict, list, tuple, compose.View), type(value)
        for entry in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
            check(entry)
        if isinstance(value, dict):
            check(list(value))

    sonarr = service(made, "sonarr")
    check(sonarr.variables)
    check(sonarr.contribution.model_dump(by_alias=True))
    assert type(sonarr.host) is str


def test_precedence_of_options(repo: Repository) -> None:
    repo.vars("group_vars/all/ports.yml", "sonarr_port: 1111\nsonarr_level: debug\n")
    repo.vars("group_vars/servers.yml", "sonarr_port: 2222\n")
    assert service(composed(repo, {"sonarr": {}}), "sonarr").options["port"] == 2222
    assert service(composed(repo, extra={"sonarr_port": "3333"}), "sonarr").options == {
        "port": 3333,
        "route": "sonarr",
        "level": "debug",
    }


def test_a_second_instance_has_options_of_its_own_and_the_same_user(repo: Repository) -> None:
    made = composed(repo, SECOND)
    first, second = service(made, "sonarr"), service(made, "sonarr_4k")
    assert (first.contribution.listen["http"].port, second.contribution.listen["http"].port) == (8989, 8990)
    assert (route(first).name, route(second).name) == ("sonarr", "sonarr-4k")
    assert second.variables["service"].url == "https://sonarr-4k.example.com/"
    assert second.contribution.storage["state"].mountpoint == "/var/lib/sonarr_4k"
    assert (second.role, second.user, second.uid) == ("sonarr", "sonarr", 2041)
    assert second.variables["sonarr_port"] == 8990
    assert first.variables["sonarr_port"] == 8989


def test_an_override_is_merged_over_the_resolved_contribution(repo: Repository) -> None:
    made = composed(
        repo,
        "hearth_services:\n  sonarr:\n    override:\n      route: {access: admin}\n"
        "      listen: {http: {port: 9000}}\n      health: null\n"
        "      run: {native: {packages: ['{{ service.name }}-x']}}\n",
    )
    contribution = service(made, "sonarr").contribution
    assert contribution.model_dump()["route"]["access"] == "admin"
    assert contribution.model_dump()["route"]["to"] == "http"
    assert contribution.health.http is None
    assert contribution.model_dump()["run"]["native"]["packages"] == ["sonarr-x"]
    assert service(made, "sonarr").variables["service"].ports == {"http": 9000}


def test_an_inline_service_needs_no_role(repo: Repository) -> None:
    repo.vars("host_vars/forge.yml", "my_dir: /srv/{{ inventory_hostname }}\n")
    made = composed(
        repo,
        {
            "myapp": {
                "contribution": {
                    **native(),
                    "listen": {"http": {"port": 9999}},
                    "route": {"name": "{{ service.name }}", "to": "http", "access": "public"},
                    "files": [
                        {"path": "{{ my_dir | default('/srv/none') }}/x", "content": "{{ service.ports.http }}\n"}
                    ],
                }
            }
        },
    )
    myapp = service(made, "myapp")
    assert myapp.inline
    assert myapp.contribution.files[0].content == "9999\n"


def test_variables_that_only_templates_name_are_resolved(repo: Repository) -> None:
    repo.vars("group_vars/all/mine.yml", "mine: '{{ theirs }}!'\ntheirs: hello\nunused: '{{ nowhere }}'\n")
    repo.role("echo", native(files=[{"path": "/etc/echo", "content": "{{ mine }}"}]))
    assert service(composed(repo, {"echo": {}}), "echo").contribution.files[0].content == "hello!"


def test_providers_are_visible_to_templates(repo: Repository) -> None:
    repo.write(
        "inventories/x/hosts.yml",
        "all:\n  hosts:\n    forge: {hearth_addresses: {lan: 192.0.2.10}}\n"
        "    nas-1: {hearth_addresses: {lan: 192.0.2.11}}\n",
    )
    repo.role(
        "alertmanager", native(provides={"notify": "alertmanager"}, listen={"http": {"port": 9093, "address": "lan"}})
    )
    repo.vars("host_vars/nas-1.yml", {"hearth_services": {"alertmanager": {}}})
    repo.role("echo", native(files=[{"path": "/etc/echo", "content": "{{ providers.notify[0].address }}"}]))
    made = composed(repo, {"echo": {}})
    echo = service(made, "echo")
    assert echo.contribution.files[0].content == "192.0.2.11"
    assert echo.variables["providers"]["notify"] == [
        {"host": "nas-1", "service": "alertmanager", "address": "192.0.2.11", "ports": {"http": 9093}}
    ]
    here = service(made, "alertmanager", "nas-1").variables["providers"]["notify"]
    assert here[0]["address"] == "127.0.0.1"


def test_database_facts(repo: Repository) -> None:
    repo.role(
        "postgresql",
        native(tier="infrastructure", provides={"postgresql": "postgresql"}, listen={"sql": {"port": 5433}}),
    )
    repo.role(
        "app",
        native(
            database={"postgresql": {"name": "{{ service.name }}"}},
            protect={"class": "standard"},
            files=[
                {"path": "/etc/app", "content": "{{ service.database.socket }}:{{ service.database.postgresql.port }}"}
            ],
        ),
    )
    made = composed(repo, {"app": {}, "postgresql": {}})
    assert service(made, "app").contribution.files[0].content == "/run/postgresql:5433"
    assert list(made.fleet.hosts["forge"].services) == ["postgresql", "proxy", "app"]


def test_ids_of_the_inventory_win(repo: Repository) -> None:
    repo.vars("group_vars/all/ids.yml", "hearth_ids: {users: {sonarr: 3041}, groups: {tv: 3100}}\n")
    made = composed(repo, {"sonarr": {"override": {"user": {"group": "tv"}}}})
    sonarr = service(made, "sonarr")
    assert (sonarr.uid, sonarr.gid, sonarr.group) == (3041, 3100, "tv")
    assert sonarr.contribution.model_dump()["user"]["id"] == 3041


def test_dependency_order_is_by_need_then_tier_then_name(repo: Repository) -> None:
    repo.role("zeta", native(tier="core", wants=["alpha"]))
    repo.role("alpha", native())
    repo.role("beta", native(requires=["proxy"]))
    made = composed(repo, {"zeta": {}, "alpha": {}, "beta": {}})
    assert list(made.fleet.hosts["forge"].services) == ["proxy", "alpha", "zeta", "beta"]


def test_x_keys_are_the_owners(repo: Repository) -> None:
    service(composed(repo, {"sonarr": {"x_note": "mine", "override": {"x_why": 1}}}), "sonarr")


def test_darwin_hosts_are_composed(repo: Repository) -> None:
    repo.vars("group_vars/all/platform.yml", "hearth_platform: {system: darwin, release: '15', architecture: arm64}\n")
    repo.vars("group_vars/all/services.yml", "hearth_services__base: {}\n")
    repo.role("mac", native(platforms=["darwin/arm64"]))
    made = composed(repo, {"mac": {}})
    assert service(made, "mac")
    assert not made.fleet.hosts["forge"].managed
    assert compose.make_plans(repo.source(), ["forge"]).plans == {"forge": None}


# --- layers of hearth_services -------------------------------------------------------------------------------------


def test_layers_are_merged_by_key(repo: Repository) -> None:
    repo.vars("group_vars/media.yml", "hearth_services:\n  sonarr: {override: {route: {access: admin}}}\n  prowlarr:\n")
    repo.vars("group_vars/servers.yml", "hearth_services: {sonarr: {options: {level: debug}}, prowlarr: {}}\n")
    repo.vars("host_vars/forge.yml", "hearth_services: {prowlarr: {enabled: false}}\n")
    made = compose.compose(repo.source())
    sonarr = service(made, "sonarr")
    assert sonarr.options["level"] == "debug"
    assert route(sonarr).access == "admin"
    assert "prowlarr" not in made.fleet.hosts["forge"].services


def test_extra_variables_are_the_last_layer(repo: Repository) -> None:
    made = composed(repo, {"sonarr": {}}, {"hearth_services": {"sonarr": {"enabled": False}, "prowlarr": {}}})
    assert set(made.fleet.hosts["forge"].services) == {"proxy", "prowlarr"}


def test_a_disabled_service_stays_disabled_and_says_so(repo: Repository) -> None:
    repo.vars("group_vars/media.yml", "hearth_services: {prowlarr: {enabled: false}}\n")
    made = composed(repo, {"prowlarr": {}})
    assert "prowlarr" not in made.fleet.hosts["forge"].services
    assert "it stays disabled" in listing(made.report.warnings)
    assert "prowlarr" in composed(repo, {"prowlarr": {"enabled": True}}).fleet.hosts["forge"].services


def test_flags_and_whole_variables_may_be_templates(repo: Repository) -> None:
    repo.vars("group_vars/all/mine.yml", "wanted: true\nmore: {prowlarr: {}}\nhearth_services__more: '{{ more }}'\n")
    made = composed(repo, {"sonarr": {"enabled": "{{ wanted }}"}})
    assert set(made.fleet.hosts["forge"].services) == {"proxy", "prowlarr", "sonarr"}


def test_extra_services_of_a_role_alone(repo: Repository) -> None:
    repo.vars("host_vars/forge.yml", "hearth_services: {sonarr: {enabled: false, options: {port: 1234}}}\n")
    made = compose.compose(repo.source(), {"forge": ["sonarr", "prowlarr"]})
    assert service(made, "sonarr").options["port"] == 1234
    assert service(made, "prowlarr")


# --- bad input -----------------------------------------------------------------------------------------------------

HOST = "inventories/x/host_vars/forge.yml"
ROLE = "roles/sonarr/vars/contribution.yml"

Bad = tuple[t.Any, tuple[str, ...]]

BAD: dict[str, Bad] = {
    "a misspelt option": (
        "hearth_services: {sonarr: {}}\nsonarr_prot: 1\n",
        ("host forge", "service sonarr", "sonarr_prot", "did you mean sonarr_port", f"{HOST}:2"),
    ),
    "a misspelt prefix": (
        "hearth_services: {sonarr: {}}\nsonar_port: 1\n",
        ("sonar_port", "did you mean sonarr_port", f"{HOST}:2"),
    ),
    "a misspelt core variable": (
        "hearth_domian: example.com\n",
        ("host forge", "unknown variable hearth_domian", "did you mean hearth_domain", f"{HOST}:1"),
    ),
    "an unknown service": (
        "hearth_services:\n  sonar: {}\n",
        ("service sonar", "no role 'sonar'", "did you mean sonarr", f"{HOST}:2"),
    ),
    "an unknown role": (
        "hearth_services:\n  tv:\n    role: sonar\n",
        ("service tv", "no role 'sonar'", "did you mean sonarr", f"{HOST}:3"),
    ),
    "a wrong type of an option": (
        "hearth_services: {sonarr: {}}\nsonarr_port: eighty\n",
        ("service sonarr", "sonarr_port", "found 'eighty'", "an integer", f"{HOST}:2"),
    ),
    "a value outside the choices": (
        "hearth_services: {sonarr: {}}\nsonarr_level: loud\n",
        ("sonarr_level", "found 'loud'", "info, debug", f"{HOST}:2"),
    ),
    "a wrong type in an instance's options": (
        "hearth_services:\n  sonarr:\n    options:\n      port: true\n",
        ("hearth_services.sonarr.options.port", "found True", "an integer", f"{HOST}:4"),
    ),
    "an unknown option of an instance": (
        "hearth_services:\n  sonarr:\n    options: {prot: 1}\n",
        ("unknown option 'prot'", "did you mean port", f"{HOST}:3"),
    ),
    "options of an inline service": (
        {"a": {"contribution": native(), "options": {"x": 1}}},
        ("service a", "an inline service has no options", HOST),
    ),
    "an unknown key of an entry": (
        "hearth_services:\n  sonarr:\n    overide: {}\n",
        ("hearth_services.sonarr.overide", "unknown key 'overide'", "did you mean override", f"{HOST}:3"),
    ),
    "an entry that is no mapping": (
        "hearth_services:\n  sonarr: true\n",
        ("found true; allowed: a mapping", "sonarr: {} enables it", f"{HOST}:2"),
    ),
    "services that are no mapping": (
        "hearth_services:\n  - sonarr\n",
        ('found ["sonarr"]; allowed: a mapping of services', f"{HOST}:2"),
    ),
    "an impossible name": (
        "hearth_services:\n  sonarr-4k: {role: sonarr}\n",
        ("'sonarr-4k' cannot be a service's name", "call it sonarr_4k", f"{HOST}:2"),
    ),
    "a reserved name": ("hearth_services:\n  people: {}\n", ("'people' cannot be a service's name",)),
    "an unknown key of an override": (
        "hearth_services:\n  sonarr:\n    override:\n      rout: {}\n",
        ("service sonarr: rout: unknown key 'rout'", "did you mean route", f"{HOST}:4"),
    ),
    "a deep unknown key": (
        "hearth_services:\n  sonarr:\n    override:\n      route:\n        acess: x\n",
        ("route.acess", "unknown key 'acess'", "did you mean access", f"{HOST}:5"),
    ),
    "an unknown key in a list": (
        "hearth_services:\n  sonarr:\n    override:\n      files:\n        - path: /a\n"
        "          content: b\n          mod: x\n",
        ("files[0].mod", "unknown key 'mod'", "did you mean mode", f"{HOST}:7"),
    ),
    "a value that the schema refuses": (
        "hearth_services:\n  sonarr:\n    override:\n      protect:\n        class: standart\n",
        (
            "protect.class",
            'found "standart"',
            "system, critical, standard, ephemeral",
            "did you mean standard",
            f"{HOST}:5",
        ),
    ),
    "a port out of range": (
        "hearth_services:\n  sonarr:\n    override: {listen: {http: {port: 99999}}}\n",
        ("listen.http.port", "found 99999", "1 to 65535", f"{HOST}:3"),
    ),
    "a mode that YAML reads as a number": (
        "hearth_services:\n  sonarr:\n    override: {storage: {state: {mode: 0750}}}\n",
        ("storage.state.mode", "the number 488", "in quotes", f"{HOST}:3"),
    ),
    "a size that is none": (
        "hearth_services:\n  sonarr:\n    override: {storage: {state: {quota: lots}}}\n",
        ("storage.state.quota", "'lots' is not a size", f"{HOST}:3"),
    ),
    "a missing key": (
        {"a": {"contribution": {"tier": "services", "run": {"native": {}}}}},
        ("service a: summary: the key 'summary' is missing", HOST),
    ),
    "a route to no port": (
        "hearth_services:\n  sonarr: {override: {route: {to: https}}}\n",
        ("route.to names the listen entry 'https'", "allowed: http"),
    ),
    "a wrong core variable": (
        "hearth_platform: {architecture: amd46}\n",
        ("hearth_platform.architecture", 'found "amd46"', "did you mean amd64", f"{HOST}:1"),
    ),
    "an unknown key of a core variable": (
        "hearth_addresses:\n  lann: 192.0.2.9\n",
        ("hearth_addresses.lann", "did you mean lan", f"{HOST}:2"),
    ),
    "an undefined variable in a core variable": (
        "hearth_media: '{{ nowhere }}'\n",
        ("hearth_media", "'nowhere' is undefined", f"{HOST}:1"),
    ),
    "an undefined variable in an option": (
        "hearth_services: {sonarr: {}}\nsonarr_level: '{{ nowhere }}'\n",
        ("service sonarr", "sonarr_level", "'nowhere' is undefined", f"{HOST}:2"),
    ),
    "an undefined variable in an override": (
        "hearth_services:\n  sonarr:\n    override:\n      route:\n        name: '{{ sonarr_rout }}'\n",
        ("route.name", "'sonarr_rout' is undefined", "did you mean sonarr_route", f"{HOST}:5"),
    ),
    "an unknown attribute of service": (
        "hearth_services:\n  sonarr:\n    override: {run: {native: {packages: ['{{ service.prots.http }}']}}}\n",
        ("run.native.packages[0]", "`service` has no 'prots'", "did you mean ports", f"{HOST}:3"),
    ),
    "a lookup": (
        "hearth_services:\n  sonarr: {override: {route: {name: \"{{ lookup('env', 'HOME') }}\"}}}\n",
        ("route.name", "lookups are not available", "set a variable to the lookup"),
    ),
    "a secret's variable": (
        "sonarr_secrets: {key: x}\nhearth_services:\n  sonarr: {override: {route: {name: '{{ sonarr_secrets.key }}'}}}\n",
        ("'sonarr_secrets' is undefined", "use service.secrets.KEY", f"{HOST}:3"),
    ),
    "variables of other hosts": (
        "hearth_services:\n  sonarr: {override: {route: {name: '{{ hostvars.luna.x }}'}}}\n",
        ("'hostvars' is undefined", "set a variable to what you need of it"),
    ),
    "a syntax error": (
        "hearth_services:\n  sonarr: {override: {route: {name: '{{ a b }}'}}}\n",
        ("override.route.name", "syntax error in the template", f"{HOST}:2"),
    ),
    "an unresolvable flag": (
        "hearth_services:\n  sonarr:\n    enabled: '{{ nowhere }}'\n",
        ("hearth_services.sonarr.enabled", "'nowhere' is undefined", f"{HOST}:3"),
    ),
    "a missing template": (
        "hearth_services:\n  sonarr: {override: {files: [{template: confg.j2, path: /a}]}}\n",
        ("files[0].template", "there is no template confg.j2", "did you mean config.j2", f"{HOST}:2"),
    ),
    "a template of an inline service": (
        {"a": {"contribution": {**native(), "files": [{"template": "a.j2", "path": "/a"}]}}},
        ("files[0].template", "an inline service has no templates/", HOST),
    ),
    "a group without an id": (
        "hearth_services:\n  sonarr: {override: {user: {group: tv}}}\n",
        ("user.group", "the group tv has no id", "hearth_groups", f"{HOST}:2"),
    ),
}


@pytest.mark.parametrize(("variables", "expected"), BAD.values(), ids=BAD.keys())
def test_bad_input(
    repo: Repository, variables: t.Any, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repo.path)
    text = listing(composed(repo, variables).report.problems)
    for part in expected:
        assert part in text, text


BROKEN_ROLES: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "another variable": (
        {"vars/contribution.yml": "sonar_contribution: {}\n"},
        ("does not set the variable odd_contribution", ":1"),
    ),
    "no YAML": ({"vars/contribution.yml": "odd_contribution:\n  a: [\n"}, ("not valid YAML", "contribution.yml:3")),
    "a key twice": (
        {"vars/contribution.yml": "odd_contribution:\n  tier: core\n  tier: core\n"},
        ("the key 'tier' is given twice", "contribution.yml:3"),
    ),
    "a syntax error": (
        {"vars/contribution.yml": "odd_contribution:\n  tier: core\n  summary: '{{ a b }}'\n"},
        ("summary: syntax error", "contribution.yml:3"),
    ),
    "an unknown key": (
        {"vars/contribution.yml": yaml.safe_dump({"odd_contribution": {**native(), "liste": {}}}, sort_keys=False)},
        ("unknown key 'liste'", "did you mean listen", "contribution.yml:7"),
    ),
    "defaults that are no mapping": (
        {"defaults/main.yml": "- a\n"},
        ("is not a mapping of variables", "defaults/main.yml:1"),
    ),
    "an undefined name in a default": (
        {"defaults/main.yml": "odd_a: 1\nodd_b: '{{ nowhere }}'\n"},
        ("odd_b", "'nowhere' is undefined", "defaults/main.yml:2"),
    ),
    "no contribution": ({"vars/contribution.yml": ""}, ("does not set the variable odd_contribution",)),
}  # fmt: skip


@pytest.mark.parametrize(("files", "expected"), BROKEN_ROLES.values(), ids=BROKEN_ROLES.keys())
def test_a_broken_role(repo: Repository, files: dict[str, str], expected: tuple[str, ...]) -> None:
    repo.role("odd", native())
    for name, content in files.items():
        repo.write(f"roles/odd/{name}", content)
    text = listing(composed(repo, {"odd": {}}).report.problems)
    for part in ("service odd", *expected):
        assert part in text, text


def test_a_role_without_contribution_is_named(repo: Repository) -> None:
    repo.write("roles/other/tasks/main.yml", "[]\n")
    text = listing(composed(repo, {"other": {}}).report.problems)
    assert "has no vars/contribution.yml" in text


def test_two_files_that_disagree(repo: Repository) -> None:
    repo.vars("host_vars/forge/one.yml", "hearth_services:\n  sonarr: {options: {port: 1}}\n")
    repo.vars("host_vars/forge/two.yml", "hearth_services__two:\n  sonarr: {options: {port: 2}}\n")
    text = listing(compose.compose(repo.source()).report.problems)
    for part in ("service sonarr", "disagree", "one.yml:2", "two.yml:2", "the same in both"):
        assert part in text, text


@pytest.mark.parametrize("names", [("hearth_services", "hearth_services"), ("hearth_services", "hearth_services__b")])
def test_two_files_that_agree_or_add(repo: Repository, names: tuple[str, str]) -> None:
    """Ansible would keep one of two files' variables of the same name; here both count."""
    repo.vars("host_vars/forge/one.yml", {names[0]: {"sonarr": {"options": {"port": 1}}}})
    repo.vars("host_vars/forge/two.yml", {names[1]: {"sonarr": {"options": {"port": 1}}, "prowlarr": {}}})
    assert set(compose.compose(repo.source()).fleet.hosts["forge"].services) == {"prowlarr", "proxy", "sonarr"}


def test_an_inventory_without_hearth_names_the_folders(tmp_path: Path) -> None:
    repo = Repository(tmp_path)
    repo.write("inventories/x/hosts.yml", "all: {hosts: {forge: {}}}\n")
    text = str(compose.compose(repo.source()).report.problems[0])
    for part in ("no host of the inventory", "inventories/x/group_vars", "playbooks/host_vars", "-i"):
        assert part in text, text


def test_one_error_of_many_hosts_is_said_once(tmp_path: Path) -> None:
    repo = repository(tmp_path, {"a": {}, "b": {}, "c": {}})
    repo.vars("group_vars/all/bad.yml", "hearth_domian: x\nhearth_services: {nothing: {}}\n")
    repo.vars("host_vars/c.yml", "hearth_meda: /x\n")
    text = listing(compose.compose(repo.source()).report.problems)
    assert text.count("hearth_domian") == 1 + text.count("path hearth_domian") + 1
    assert "hosts a, b, c:" in text
    assert "host c:" in text


# --- variables that nobody reads -----------------------------------------------------------------------------------

MISSPELT: dict[str, tuple[str, list[str], list[str]]] = {
    "a variable of the role's prefix": ("sonarr_colour: red\n", [], ["sonarr_colour is no option of this service"]),
    "silenced": ("sonarr_colour: red\nhearth_ignore: [sonarr_col*]\n", [], []),
    "an ignored misspelling": ("sonarr_prot: 1\nhearth_ignore: [sonarr_prot]\n", [], []),
    "secrets": ("sonarr_secrets: {api_key: x}\n", [], []),
    "something else": ("house_colour: red\nansible_user: root\nsonarr: 1\n", [], []),
    "an option of a role that is not enabled": ("sonorr_port: 1\n", [], []),
    "the longest name wins": ("sonarr_ai_port: 1\nsonarr_ai_prot: 1\n", [], []),
    "the longest enabled name wins": (
        "hearth_services__more: {sonarr_ai: {}}\nsonarr_ai_prot: 1\n",
        ["did you mean sonarr_ai_port"],
        [],
    ),
    "an instance's name": (
        "hearth_services__more: {sonarr_4k: {role: sonarr, options: {port: 1}}}\nsonarr_4k_port: 2\n",
        [],
        ["options of one instance are set in hearth_services: {sonarr_4k: {options: ...}}"],
    ),
}


@pytest.mark.parametrize(("variables", "errors", "warnings"), MISSPELT.values(), ids=MISSPELT.keys())
def test_variables_that_nobody_reads(repo: Repository, variables: str, errors: list[str], warnings: list[str]) -> None:
    repo.role("sonorr", native(), defaults="sonorr_port: 1\n")  # not enabled, and near sonarr
    repo.role("sonarr_ai", native(), defaults="sonarr_ai_port: 1\n")
    report = composed(repo, "hearth_services: {sonarr: {}}\n" + variables).report
    assert len(report.problems) == len(errors), listing(report.problems)
    found = [warning for warning in report.warnings if warning.host]
    assert len(found) == len(warnings), listing(found)
    for part, problem in zip((*errors, *warnings), (*report.problems, *found), strict=True):
        assert part in str(problem)


# --- the limit -----------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> Repository:
    made = repository(
        tmp_path,
        {"forge": {"hearth_addresses": {"lan": "192.0.2.10"}}, "luna": {"hearth_addresses": {"lan": "192.0.2.11"}}},
    )
    made.role("prometheus", native(provides={"metrics": "prometheus"}))
    made.role("app", native())
    made.role("open", native(listen={"http": {"port": 80, "address": "lan", "from": ["metrics"]}}))
    return made


def test_an_error_elsewhere_is_a_warning(pair: Repository) -> None:
    pair.vars("host_vars/forge.yml", "hearth_services: {app: {}}\n")
    pair.vars("host_vars/luna.yml", "hearth_services: {nothing: {}}\n")
    made = compose.compose(pair.source())
    assert made.stopping(["forge"]) == []
    assert [problem.host for problem in made.stopping(["luna"])] == ["luna"]
    plans = compose.make_plans(pair.source(), ["forge"])
    assert list(plans.plans) == ["forge"]
    assert "hosts that this run does not concern" in plans.warnings[-1]
    assert "no role 'nothing'" in plans.warnings[-1]


def test_a_host_that_cannot_be_composed_stops_who_is_made_of_it(pair: Repository) -> None:
    pair.vars("host_vars/forge.yml", "hearth_services: {prometheus: {}}\n")
    pair.vars("host_vars/luna.yml", "hearth_services: {nothing: {}}\n")
    assert [problem.host for problem in compose.compose(pair.source()).stopping(["forge"])] == ["luna"]


def test_a_conflict_elsewhere_does_not_stop_even_a_provider(pair: Repository) -> None:
    pair.vars("host_vars/forge.yml", "hearth_services: {prometheus: {}}\n")
    pair.role("other", native(listen={"http": {"port": 80, "address": "lan"}}))
    pair.vars("host_vars/luna.yml", "hearth_services: {open: {}, other: {}}\n")
    made = compose.compose(pair.source())
    assert [problem.host for problem in made.report.problems] == ["luna"]
    assert made.stopping(["forge"]) == []


def test_a_firewall_that_names_a_broken_provider_stops(pair: Repository) -> None:
    pair.vars("host_vars/forge.yml", "hearth_services: {open: {}}\n")
    pair.vars("host_vars/luna.yml", "hearth_services: {prometheus: {override: {summry: x}}}\n")
    assert [problem.host for problem in compose.compose(pair.source()).stopping(["forge"])] == ["luna"]


def test_the_report_has_all_problems_and_the_stopping_ones_first(pair: Repository) -> None:
    pair.vars("host_vars/forge.yml", "hearth_services: {ap: {}, prometeus: {}}\n")
    pair.vars("host_vars/luna.yml", "hearth_services: {nothing: {}}\n")
    with pytest.raises(compose.ComposeError) as caught:
        compose.make_plans(pair.source(), ["forge"])
    text = str(caught.value)
    assert text.startswith("2 problems; nothing was changed.")
    assert text.index("host forge:") < text.index("does not concern") < text.index("host luna:")
    assert len(caught.value.problems) == 3


# --- roles ---------------------------------------------------------------------------------------------------------


def test_a_users_role_stands_for_the_collections(repo: Repository) -> None:
    repo.role("chrony", native(summary="My own clock"))
    made = composed(repo, {"chrony": {}})
    assert service(made, "chrony").contribution.summary == "My own clock"
    assert any("the role chrony of" in warning.message for warning in made.report.warnings)


def test_roles_of_the_collection_need_no_checkout(repo: Repository) -> None:
    made = composed(repo, {"chrony": {}, "users": {}})
    chrony = service(made, "chrony")
    assert chrony.role_path is not None
    assert chrony.role_path.parts[-2:] == ("roles", "chrony")
    assert not chrony.role_path.is_relative_to(repo.path)
