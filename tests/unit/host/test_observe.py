# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What observe makes of outputs that were recorded on Debian 13 (recorded/), and of a small file tree."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.module_utils import observe as o
from ansible_collections.hearth.homelab.plugins.module_utils.protocol import secret_digest
from ansible_collections.hearth.homelab.plugins.module_utils.runner import Completed, FakeRunner

RECORDED = Path(__file__).parent / "recorded"
SECRETS = {"sonarr/key": "hello", "sonarr/other": "x\nz"}


def recorded(name: str) -> Completed:
    data = json.loads((RECORDED / f"{name}.json").read_text())
    out, err = ("".join(f"{line}\n" for line in data[stream]) for stream in ("stdout", "stderr"))
    return Completed(tuple(data["argv"]), data["returncode"], out, err)


def text(name: str) -> str:
    return (RECORDED / name).read_text()


@pytest.fixture
def tree(tmp_path):
    """A host's files, as far as observe reads them."""
    for path, content in {
        "etc/os-release": text("os-release"),
        "etc/passwd": text("passwd"),
        "etc/group": text("group"),
        "etc/hostname": "forge\n",
        "proc/sys/kernel/hostname": "forge\n",
        "etc/apt/sources.list": "",
        "var/lib/apt/lists/mirror.example.com_debian_dists_trixie_main_binary-amd64_Packages": "",
    }.items():
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)
    os.utime(tmp_path / "etc/apt/sources.list", (1, 1))
    for number, content in json.loads(text("cgroup.json")).items():
        (tmp_path / "proc" / number).mkdir(parents=True)
        (tmp_path / "proc" / number / "cgroup").write_text(content)
    return tmp_path


def runner(**more) -> FakeRunner:
    """A Debian 13 host; ``more`` replaces answers (``dpkg_query=...``)."""
    names = {
        "dpkg_query": "dpkg-query",
        "apt": "apt-get",
        "systemctl": f"systemctl show --property={','.join(o.UNIT_PROPERTIES)}",
        "sockets": "systemctl show --property=Id,Listen,Triggers",
        "ss": "ss",
        "locale": "locale -a",
        "images": "podman images",
        "secret": "podman secret inspect",
        "nft": "nft -s list",
        "unshare": "unshare",
        "psql": "psql",
    }
    answers = {
        "dpkg_query": recorded("dpkg_query"),
        "systemctl": lambda argv, _: units(*argv[argv.index("--") + 1 :]),
        "sockets": recorded("systemctl_show_sockets"),
        "ss": recorded("ss"),
        "locale": recorded("locale"),
        "images": recorded("podman_images"),
        "secret": recorded("podman_secret"),
        "nft": recorded("nft_live"),
        "unshare": recorded("nft_expected"),
        "psql": recorded("psql"),
        **more,
    }
    return FakeRunner({names[key]: answer for key, answer in answers.items() if answer is not None})


def units(*names: str) -> str:
    """The recorded blocks of these units, in this order."""
    blocks = recorded("systemctl_show").stdout.strip().split("\n\n")
    by_name = {}
    for block in blocks:
        fields = dict(line.split("=", 1) for line in block.splitlines())
        by_name.update(dict.fromkeys(fields["Names"].split(), block))
    return "\n\n".join(by_name[name] for name in names) + "\n"


def manifest(*items: m.Item, **services: m.ServiceState) -> m.Manifest:
    names = {item.service for item in items} | {"sonarr"}
    states = {name: m.ServiceState(name, "services") for name in names} | services
    return m.Manifest("forge", "debian13", "amd64", states, m.sort_items(items))


def look(tree, *items, previous=(), originals=(), run=None, services=None, before=None, applied=None) -> o.Observed:
    return o.observe(
        manifest(*items, **(services or {})),
        manifest(*previous, **(before or {})) if previous or before else None,
        {path: {} for path in originals},
        run or runner(),
        root=str(tree),
        secret_reader=SECRETS.get,
        nonce="nonce",
        applied=applied,
    )


# -- only what is asked for, in one query ----------------------------------------------------------------------


def test_an_empty_manifest_asks_only_for_the_hosts_identity(tree):
    run = runner()
    observed = look(tree, run=run)
    assert [argv[0] for argv in run.calls] == ["dpkg-query"]
    assert (observed.release, observed.architecture, observed.hostname) == ("debian13", "amd64", "forge")
    assert not observed.errors


def test_one_query_for_each_kind(tree):
    items = [m.Package(name, "sonarr") for name in ("caddy", "postgresql-17")]
    items += [m.Unit(name, "sonarr") for name in ("caddy.service", "sshd.service")]
    items += [m.Image("localhost/stand-in:1.0", "sonarr"), m.Image("lscr.io/linuxserver/sonarr:4.0.9", "sonarr")]
    items += [m.PodmanSecret(name, "sonarr", secret="sonarr/key") for name in ("alpha", "beta")]
    items += [m.Locale("C.UTF-8", "sonarr"), m.Locale("en_GB.UTF-8", "sonarr")]
    items += [m.PostgresqlRole("mini", "sonarr"), m.PostgresqlDatabase("mini", "sonarr", extensions=("plpgsql",))]
    run = runner()
    observed = look(tree, *items, run=run)
    assert sorted(argv[0] for argv in run.calls) == ["dpkg-query", "locale", "podman", "podman", "psql", "systemctl"]
    assert not observed.errors


def test_what_only_the_previous_generation_has_is_observed_too(tree):
    previous = [m.Unit("caddy.service", "x"), m.File("/etc/hostname", "x"), m.PostgresqlRole("mini", "x")]
    observed = look(tree, previous=previous)
    assert observed.units["caddy.service"].active == "active"
    assert observed.files["/etc/hostname"].type == "file"
    assert observed.postgresql["postgresql"].roles["mini"].login


# -- accounts --------------------------------------------------------------------------------------------------


def test_accounts(tree):
    observed = look(tree, m.User("postgres", "sonarr", uid=100), m.Group("ssl-cert", "sonarr", gid=102))
    user = observed.users["postgres"]
    assert (user.uid, user.gid, user.group) == (100, 103, "postgres")
    assert "ssl-cert" in user.groups
    assert observed.groups["ssl-cert"] == 102
    assert not observed.id_files


def test_files_of_a_foreign_id_are_counted_only_then(tree):
    run = runner()
    run.answers["sh -c find"] = "/var/lib/postgresql\n/var/lib/postgresql/17\n"
    observed = look(tree, m.User("postgres", "sonarr", uid=2000), m.Group("ssl-cert", "sonarr", gid=2001), run=run)
    assert observed.id_files["user:postgres"] == o.IdFiles(2, True, ("/var/lib/postgresql", "/var/lib/postgresql/17"))
    assert set(observed.id_files) == {"user:postgres", "group:ssl-cert"}
    searches = [argv for argv in run.calls if argv[0] == "sh"]
    assert [("-uid 100" in argv[2], "-gid 102" in argv[2]) for argv in searches] == [(True, False), (False, True)]


def test_the_search_for_files_is_bounded(tree):
    run = runner()
    run.answers["sh -c find"] = "".join(f"/srv/{number}\n" for number in range(o.FIND_LIMIT + 1))
    user = m.User("postgres", "sonarr", uid=2000)
    found = look(tree, user, run=run).id_files["user:postgres"]
    assert (found.count, found.complete) == (o.FIND_LIMIT, False)
    run.answers["sh -c find"] = Completed(("sh",), 124, "/srv/1\n", "stopped after 15 s")
    found = look(tree, user, run=run).id_files["user:postgres"]
    assert (found.count, found.complete) == (1, False)


# -- packages --------------------------------------------------------------------------------------------------


def test_packages(tree):
    run = runner(apt=recorded("apt_removes"))
    observed = look(tree, m.Package("caddy", "sonarr"), m.Package("chrony", "sonarr"), run=run)
    assert observed.packages["caddy"].installed
    assert observed.packages["caddy"].version == "2.6.2-12+deb13u1"
    assert not observed.packages["chrony"].installed
    assert observed.apt == o.AptState(removes=("systemd-timesyncd",))


def test_nothing_is_simulated_when_nothing_is_missing(tree):
    run = runner()
    assert look(tree, m.Package("caddy", "sonarr"), run=run).apt is None
    assert not [argv for argv in run.calls if argv[0] == "apt-get"]


def test_what_other_services_would_install_is_not_simulated(tree):
    # A run for base alone was refused because chrony, which it does not apply, would replace systemd-timesyncd.
    run = runner(apt=recorded("apt_removes"))
    items = (m.Package("locales", "base"), m.Package("chrony", "chrony"))
    assert look(tree, *items, run=run, applied={"package:locales"}).apt is not None
    asked = [argv[argv.index("--") + 1 :] for argv in run.calls if argv[0] == "apt-get"]
    assert asked == [("locales",)] or asked == [["locales"]]
    assert look(tree, *items, applied=set()).apt is None


def test_an_unknown_package_does_not_hide_what_the_others_remove(tree):
    run = runner(apt=lambda argv, _: recorded("apt_unknown" if "nosuchpkg" in argv else "apt_removes"))
    observed = look(tree, m.Package("nosuchpkg", "sonarr"), m.Package("chrony", "sonarr"), run=run)
    assert observed.apt is not None
    assert observed.apt.unavailable == {"nosuchpkg": "Unable to locate package nosuchpkg"}
    assert observed.apt.removes == ("systemd-timesyncd",)


@pytest.mark.parametrize(
    ("name", "wanted", "unavailable", "message"),
    [
        ("apt_virtual", ["awk", "mail-transport-agent"], {"awk", "mail-transport-agent"}, ""),
        ("apt_other", ["default-mta"], {"default-mta"}, ""),
        ("apt_conflict", ["systemd-timesyncd", "chrony"], set(), "held broken packages"),
        ("apt_removes", ["chrony"], set(), ""),
    ],
)
def test_simulations(name, wanted, unavailable, message):
    state = o.parse_simulation(wanted, recorded(name))
    assert set(state.unavailable) == unavailable
    assert message in state.message
    assert bool(state.message) == bool(message)


@pytest.mark.parametrize(
    ("prepare", "stale"),
    [
        (lambda tree: None, ""),
        (lambda tree: [path.unlink() for path in (tree / "var/lib/apt/lists").iterdir()], "no package lists"),
        (lambda tree: os.utime(tree / "var/lib/apt/lists", (time.time() - 7300,) * 2), "2 h old"),
        (lambda tree: os.utime(tree / "etc/apt/sources.list", (time.time() + 60,) * 2), "sources changed"),
    ],
)
def test_package_lists_that_prove_nothing(tree, prepare, stale):
    prepare(tree)
    observed = look(tree, m.Package("chrony", "sonarr"), run=runner(apt=recorded("apt_removes")))
    assert observed.apt is not None
    assert stale in observed.apt.stale
    assert bool(observed.apt.stale) == bool(stale)


def test_an_update_without_news_makes_the_lists_fresh(tree):
    lists = tree / "var/lib/apt/lists"
    (lists / "partial").mkdir()
    os.utime(lists, (1, 1))
    observed = look(tree, m.Package("chrony", "sonarr"), run=runner(apt=recorded("apt_removes")))
    assert observed.apt is not None
    assert observed.apt.stale == ""


# -- files -----------------------------------------------------------------------------------------------------


def test_files_directories_and_links(tree):
    (tree / "etc/caddy").mkdir()
    (tree / "etc/caddy/Caddyfile").write_text(":80\n")
    os.chmod(tree / "etc/caddy/Caddyfile", 0o640)
    (tree / "etc/localtime").symlink_to("/usr/share/zoneinfo/Etc/UTC")
    os.mkfifo(tree / "etc/fifo")
    observed = look(
        tree,
        m.File("/etc/caddy/Caddyfile", "sonarr"),
        m.Symlink("/etc/localtime", "sonarr"),
        m.Directory("/etc/caddy", "sonarr"),
        m.File("/etc/fifo", "sonarr"),
        m.File("/etc/missing/file", "sonarr"),
        m.File("/etc/hostname/file", "sonarr"),
        m.File("/etc/hosts", "sonarr", create_only=True),
    )
    name = next((user.name for user in observed.users.values() if user.uid == os.getuid()), str(os.getuid()))
    file = observed.files["/etc/caddy/Caddyfile"]
    assert (file.type, file.digest, file.mode, file.owner) == ("file", m.digest(b":80\n"), "0640", name)
    assert observed.files["/etc/localtime"].target == "/usr/share/zoneinfo/Etc/UTC"
    assert observed.files["/etc/caddy"].type == "directory"
    assert observed.files["/etc/fifo"].type == "other"
    assert observed.files["/etc/missing/file"].type == "absent"
    assert observed.files["/etc/hostname/file"].type == "error"
    assert observed.files["/etc/hosts"].type == "absent"


def test_a_leaving_directory_is_listed(tree):
    previous = [m.Directory("/etc", "sonarr"), m.Directory("/etc/apt", "sonarr")]
    observed = look(tree, m.Directory("/etc/apt", "sonarr"), previous=previous)
    assert "hostname" in observed.files["/etc"].entries
    assert observed.files["/etc/apt"].entries == ()


def test_an_applications_own_file_is_not_read(tree):
    (tree / "etc/config.xml").write_text("its own\n")
    observed = look(tree, m.File("/etc/config.xml", "sonarr", create_only=True))
    assert observed.files["/etc/config.xml"].digest == ""


def test_holes_are_filled_with_the_hosts_secrets(tree):
    template = b"key=@@hearth:sonarr/key@@\nother=@@hearth:sonarr/other@@\n"
    blobs = tree / "var/lib/hearth/blobs"
    blobs.mkdir(parents=True)
    (blobs / m.digest(template)).write_bytes(template)
    holes = ("sonarr/key", "sonarr/other")
    observed = look(
        tree,
        m.File("/etc/one", "sonarr", digest=m.digest(template), holes=holes),
        m.File("/etc/no-blob", "sonarr", digest="ab" * 32, holes=holes),
        m.File("/etc/no-secret", "sonarr", digest=m.digest(template + b"#"), holes=("sonarr/absent",)),
    )
    assert observed.filled == {m.digest(template): m.digest(b"key=hello\nother=x\nz\n")}


def test_a_value_that_looks_like_a_hole_is_not_filled_again():
    template = b"@@hearth:a/x@@ @@hearth:a/y@@"
    assert o.fill_holes(template, {"a/x": "@@hearth:a/y@@", "a/y": "secret"}) == b"@@hearth:a/y@@ secret"


def test_secrets_are_keyed_digests_only(tree):
    observed = look(tree, m.Secret("sonarr/key", "sonarr"), m.Secret("sonarr/absent", "sonarr"))
    assert observed.secrets == {"sonarr/key": secret_digest("nonce", "hello")}
    assert "hello" not in repr(observed)


def test_a_store_that_cannot_be_read_is_an_error(tree):
    def reader(name: str) -> str | None:
        raise PermissionError(13, "Permission denied", name)

    observed = o.observe(
        manifest(m.Secret("sonarr/key", "sonarr")), None, {}, runner(), root=str(tree), secret_reader=reader
    )
    assert "sonarr/key cannot be read" in observed.errors["secret"]
    assert not observed.secrets


def test_paths_that_did_not_exist_before_are_no_originals(tree):
    originals = {"/etc/a": {"kind": "file"}, "/etc/b": None}
    observed = o.observe(manifest(), None, originals, runner(), root=str(tree), secret_reader=SECRETS.get)
    assert observed.originals == {"/etc/a"}


def test_storage(tree):
    (tree / "srv/data").mkdir(parents=True)
    (tree / "srv/data/file").write_text("x")
    observed = look(tree, m.Storage("/srv/data", "sonarr"), m.Storage("/srv/new", "sonarr"))
    assert observed.storage["/srv/data"].entries == ("file",)
    assert not observed.storage["/srv/new"].exists


def test_a_damaged_ledger_is_an_error(tree):
    (tree / "var/lib/hearth").mkdir(parents=True)
    (tree / "var/lib/hearth/storage.json").write_text("{")
    assert "storage.json" in look(tree, m.Storage("/srv/data", "sonarr")).errors["storage"]


# -- units -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "load", "active", "sub", "file_state"),
    [
        ("barred.service", "masked", "inactive", "dead", "masked"),
        ("broken.service", "loaded", "failed", "failed", "disabled"),
        ("caddy.service", "loaded", "active", "running", "enabled"),
        ("looping.service", "loaded", "activating", "auto-restart", "static"),
        ("nowhere.service", "not-found", "inactive", "dead", ""),
        ("postgresql@17-main.service", "loaded", "active", "running", "enabled-runtime"),
        ("sonarr.service", "loaded", "inactive", "dead", "generated"),
        ("systemd-tmpfiles-clean.timer", "loaded", "active", "waiting", "static"),
    ],
)
def test_units(tree, name, load, active, sub, file_state):
    unit = look(tree, m.Unit(name, "sonarr")).units[name]
    assert (unit.load, unit.active, unit.sub, unit.file_state) == (load, active, sub, file_state)


def test_a_unit_by_its_alias(tree):
    unit = look(tree, m.Unit("sshd.service", "sonarr")).units["sshd.service"]
    assert (unit.name, unit.names) == ("ssh.service", {"ssh.service", "sshd.service"})


def test_details_of_units(tree):
    observed = look(tree, m.Unit("looping.service", "sonarr"), m.Unit("caddy.service", "sonarr"))
    assert observed.units["looping.service"].need_daemon_reload
    assert not observed.units["looping.service"].can_reload
    assert observed.units["caddy.service"].can_reload
    assert observed.units["caddy.service"].fragment == "/usr/lib/systemd/system/caddy.service"


def test_a_template_would_make_systemctl_fail_and_is_not_asked_for(tree):
    assert recorded("systemctl_show_template").returncode == 1
    run = runner()
    observed = look(tree, m.Unit("foo@.service", "sonarr"), m.Unit("caddy.service", "sonarr"), run=run)
    assert list(observed.units) == ["caddy.service"]


def test_units_that_systemd_does_not_describe_are_an_error(tree):
    run = runner(systemctl=lambda argv, _: units("caddy.service"))
    observed = look(tree, m.Unit("a.service", "x"), m.Unit("b.service", "x"), run=run)
    assert "1 units instead of 2" in observed.errors["unit"]


# -- listeners -------------------------------------------------------------------------------------------------


SONARR = {"sonarr": m.ServiceState("sonarr", "services", listeners=("tcp/127.0.0.1/8989",))}


@pytest.mark.parametrize(
    ("unit", "before", "asked"),
    [
        ("sonarr.service", SONARR, True),  # will be started
        ("caddy.service", SONARR, False),  # runs, and listens as before
        ("caddy.service", {}, True),  # a new listener
    ],
)
def test_listeners_are_asked_for_when_something_will_start_to_listen(tree, unit, before, asked):
    run = runner()
    before = before or {"x": m.ServiceState("x", "core")}
    observed = look(tree, m.Unit(unit, "sonarr"), services=SONARR, before=before, run=run)
    assert ("ss" in {argv[0] for argv in run.calls}) is asked
    assert (observed.listeners is not None) is asked


def test_listeners_with_their_units(tree):
    observed = look(tree, m.Unit("sonarr.service", "sonarr"), services=SONARR)
    found = {(entry.address, entry.port): (entry.process, entry.units) for entry in observed.listeners or ()}
    assert found["*", 80] == ("caddy", ("caddy.service",))
    assert found["::1", 5432] == ("postgres", ("postgresql@17-main.service",))
    assert found["0.0.0.0", 8081] == ("python3", ())
    assert found["127.0.0.1", 9999] == ("systemd", ("echo.socket", "echo.service"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('udp UNCONN 0 0 127.0.0.53%lo:53 0.0.0.0:* users:(("resolved",pid=7,fd=3))', ("udp", "127.0.0.53", 53, 7)),
        ("udp UNCONN 0 0 0.0.0.0:51820 0.0.0.0:*", ("udp", "0.0.0.0", 51820, 0)),
        ('tcp LISTEN 0 5 [::ffff:127.0.0.1]:80 *:* users:(("java",pid=9,fd=3))', ("tcp", "127.0.0.1", 80, 9)),
    ],
)
def test_lines_of_ss(line, expected):
    [entry] = o.parse_listeners(line + "\n", lambda pid: ())
    assert (entry.protocol, entry.address, entry.port, entry.pid) == expected


def test_a_socket_of_several_processes():
    line = 'tcp LISTEN 0 511 0.0.0.0:80 0.0.0.0:* users:(("nginx",pid=8,fd=6),("nginx",pid=7,fd=6))\n'
    assert [entry.pid for entry in o.parse_listeners(line, lambda pid: ())] == [8, 7]


@pytest.mark.parametrize(
    ("cgroup", "units"),
    [
        ("0::/system.slice/sonarr.service/libpod-payload-1234\n", ("sonarr.service",)),
        ("0::/user.slice/user-1000.slice/session-3.scope\n", ("session-3.scope",)),
        (
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/x.service\n",
            ("x.service", "user@1000.service"),
        ),
        ("1:name=systemd:/system.slice/caddy.service\n0::/\n", ("caddy.service",)),
        ("0::/\n", ()),
        ("", ()),
    ],
)
def test_units_of_a_process(cgroup, units):
    assert o.parse_cgroup(cgroup) == units


# -- locales, firewall, podman ---------------------------------------------------------------------------------


def test_locales(tree):
    observed = look(tree, m.Locale("C.UTF-8", "sonarr"))
    assert observed.locales == {"C", "C.utf8", "POSIX"}


@pytest.mark.parametrize(
    ("one", "other"),
    [("en_GB.UTF-8", "en_GB.utf8"), ("de_DE.ISO-8859-1", "de_DE.iso88591"), ("sr_RS.UTF-8@latin", "sr_RS.utf8@latin")],
)
def test_names_of_one_locale(one, other):
    assert o.normal_locale(one) == o.normal_locale(other)


DIGEST = "sha256:1d025cf166d0e65a7a544cfc33d3deb6938539cbc77a4d84068a08b5a8f3faea"
FIREWALL = m.Firewall("inet hearth", "sonarr", path="/etc/hearth.nft")


@pytest.mark.parametrize(
    ("answers", "file", "same", "exists", "message"),
    [
        ({}, True, True, True, ""),  # the live one has an element in a dynamic set
        ({"nft": recorded("nft_live").stdout.replace("iif", "oif")}, True, False, True, ""),
        ({"nft": recorded("nft_live").stdout.replace("10.0.0.0/8", "0.0.0.0/0")}, True, False, True, ""),
        ({"nft": recorded("nft_absent")}, True, False, False, ""),
        ({"nft": None}, True, None, None, "nft is not installed"),
        ({}, False, None, True, "does not exist"),
        ({"unshare": Completed((), 1, "", "Error: syntax error\n")}, True, None, True, "cannot be loaded"),
        ({"nft": Completed((), 1, "", "Operation not permitted\n")}, True, None, None, "Operation not permitted"),
    ],
)
def test_firewall(tree, answers, file, same, exists, message):
    if file:
        (tree / "etc/hearth.nft").write_text("")
    state = look(tree, FIREWALL, run=runner(**answers)).firewall["inet hearth"]
    assert (state.same, state.exists) == (same, exists)
    assert message in state.message
    assert bool(message) == bool(state.message)


def test_the_recorded_rulesets_differ_only_by_what_packets_added():
    live, expected = recorded("nft_live").stdout, recorded("nft_expected").stdout
    assert live != expected
    assert o.normal_ruleset(live) == o.normal_ruleset(expected)
    assert "192.168.1.0/24 . 443" in o.normal_ruleset(live)


@pytest.mark.parametrize(
    ("reference", "there"),
    [
        ("localhost/stand-in:1.0", True),
        ("localhost/stand-in:2.0", False),
        ("localhost/stand-in", False),  # means :latest
        ("lscr.io/linuxserver/sonarr:4.0.9", True),
        ("docker.io/linuxserver/sonarr:4.0.9", False),
        ("lscr.io/linuxserver/sonarr:4.0.9@" + DIGEST, True),
        ("lscr.io/linuxserver/sonarr@" + DIGEST, True),
        ("lscr.io/linuxserver/sonarr:4.0.9@sha256:" + "0" * 64, False),
        ("registry.lan:5000/stand-in", False),
    ],
)
def test_images(tree, reference, there):
    assert (reference in look(tree, m.Image(reference, "sonarr")).images) is there


def test_a_registry_with_a_port_and_no_tag():
    listing = json.dumps([{"Names": ["registry.lan:5000/stand-in:latest"]}])
    assert o.present_images(["registry.lan:5000/stand-in"], listing) == {"registry.lan:5000/stand-in"}


def test_podman_secrets_are_compared_with_the_store(tree):
    observed = look(
        tree,
        m.PodmanSecret("alpha", "sonarr", secret="sonarr/key"),
        m.PodmanSecret("beta", "sonarr", secret="sonarr/key"),
        m.PodmanSecret("nope", "sonarr", secret="sonarr/key"),
    )
    assert observed.podman_secrets == {"alpha": True, "beta": False}
    assert "hello" not in repr(observed)


def test_no_podman_secret_at_all(tree):
    run = runner(secret=recorded("podman_secret_none"))
    observed = look(tree, m.PodmanSecret("nope", "sonarr", secret="sonarr/key"), run=run)
    assert observed.podman_secrets == {}
    assert not observed.errors


def test_without_podman_there_is_nothing_of_podman(tree):
    run = runner(images=None, secret=None)
    observed = look(tree, m.Image("x/y:1", "sonarr"), m.PodmanSecret("nope", "sonarr", secret="sonarr/key"), run=run)
    assert (observed.images, observed.podman_secrets, observed.errors) == (frozenset(), {}, {})


# -- what oneshots have made, drop-ins, the store ----------------------------------------------------------------


def test_effects(tree):
    for path, content in {
        "proc/sys/net/ipv4/ip_default_ttl": "65\n",
        "proc/sys/kernel/printk": "4\t4\t1\t7\n",
        "proc/sys/kernel/osrelease": "6.12.57\n",
        "etc/containers/networks/hearth-media.json": "{}",
        "sys/module/loop/refcnt": "0\n",
        "lib/modules/6.12.57/modules.dep": "kernel/net/bridge/br_netfilter.ko.xz: kernel/net/bridge/bridge.ko.xz\n"
        "kernel/drivers/net/nlmon-x.ko:\n",
        "lib/modules/6.12.57/modules.builtin": "kernel/net/bridge/bridge.ko\n",
    }.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(content)
    expected = {
        "/proc/sys/net/ipv4/ip_default_ttl=65": o.EffectState(True, "is 65"),
        "/proc/sys/net/ipv4/ip_default_ttl=64 ": o.EffectState(False, "is 65"),
        "/proc/sys/kernel/printk=4 4 1 7": o.EffectState(True, "is 4 4 1 7"),
        "/proc/sys/net/absent=1": o.EffectState(None, "this kernel does not have it"),
        "/etc/containers/networks/hearth-media.json": o.EffectState(True),
        "/etc/containers/networks/hearth-other.json": o.EffectState(False, "missing"),
        "/sys/module/loop": o.EffectState(True),
        "/sys/module/br_netfilter": o.EffectState(False, "missing"),
        "/sys/module/nlmon_x": o.EffectState(False, "missing"),
        "/sys/module/bridge": o.EffectState(True),
        "/sys/module/nosuch": o.EffectState(None, "this kernel has no such module"),
    }
    unit = m.Unit("a.service", "sonarr", effects=tuple(expected))
    run = runner(systemctl=recorded("systemctl_show_one"))
    assert look(tree, unit, run=run).effects == expected


def test_drop_ins(tree):
    unit = m.Unit("drift.service", "sonarr")
    [state] = look(tree, unit, run=runner(systemctl=recorded("systemctl_show_one"))).units.values()
    assert state.drop_ins == ("/etc/systemd/system/drift.service.d/50-hearth.conf",)


@pytest.mark.parametrize(("mode", "expected"), [(0o400, {}), (0o444, {"sonarr/key": "mode is 0444"})])
def test_the_file_of_a_secret_is_roots_alone(tree, mode, expected):
    path = tree / "var/lib/hearth/secrets/sonarr/key"
    path.parent.mkdir(parents=True)
    path.write_text("hello")
    path.chmod(mode)
    assert look(tree, m.Secret("sonarr/key", "sonarr")).open_secrets == expected


# -- PostgreSQL ------------------------------------------------------------------------------------------------


def test_postgresql(tree):
    run = runner()
    state = look(
        tree,
        m.PostgresqlRole("mini", "sonarr", secret="sonarr/key"),
        m.PostgresqlRole("bare", "sonarr", secret="sonarr/key"),
        m.PostgresqlRole("o'hara", "sonarr"),
        m.PostgresqlRole("absent", "sonarr"),
        m.PostgresqlDatabase('we"ird X', "sonarr", extensions=("hstore", "plpgsql")),
        m.PostgresqlDatabase("mini", "sonarr", extensions=("hstore", "plpgsql")),
        m.PostgresqlDatabase("absent", "sonarr", extensions=("hstore", "plpgsql")),
        run=run,
    ).postgresql["postgresql"]
    assert state.roles == {
        "mini": o.RoleState(True, True, (), ("pg_monitor",)),
        # Its membership in mini, no role of PostgreSQL's own, is nobody's business.
        "bare": o.RoleState(
            False, False, ("BYPASSRLS", "CREATEDB"), ("pg_monitor", "pg_read_all_data with undeclared options")
        ),
        "o'hara": o.RoleState(True, None),
    }
    assert set(state.databases) == {'we"ird X', "mini"}
    assert state.databases["mini"] == o.DatabaseState("mini", "UTF8", frozenset({"plpgsql"}))
    recorded_input = json.loads((RECORDED / "psql.json").read_text())["input"]
    [script] = [entry for entry in run.inputs if entry]
    assert script.decode().splitlines() == recorded_input


def test_a_wrong_password_is_seen(tree):
    role = m.PostgresqlRole("mini", "sonarr", secret="sonarr/other")
    assert look(tree, role).postgresql["postgresql"].roles["mini"].password_matches is False


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "psql is not installed"),
        (recorded("psql_down"), "connection to server on socket"),
    ],
)
def test_postgresql_that_does_not_answer(tree, answer, message):
    state = look(tree, m.PostgresqlRole("mini", "sonarr"), run=runner(psql=answer)).postgresql["postgresql"]
    assert message in state.error
    assert not state.roles


def test_the_newest_client_and_the_servers_port(tree):
    for version in ("9", "17"):
        (tree / f"usr/lib/postgresql/{version}/bin").mkdir(parents=True)
        (tree / f"usr/lib/postgresql/{version}/bin/psql").touch()
    run = runner()
    run.answers["/usr/lib/postgresql/17/bin/psql"] = recorded("psql")
    services = {"postgresql": m.ServiceState("postgresql", "infrastructure", listeners=("tcp/127.0.0.1/5433",))}
    assert look(tree, m.PostgresqlRole("mini", "sonarr"), services=services, run=run).postgresql["postgresql"].roles
    [argv] = [argv for argv in run.calls if "psql" in argv[0]]
    assert argv[:5] == ("/usr/lib/postgresql/17/bin/psql", "-h", "/var/run/postgresql", "-p", "5433")


# -- failures are never "absent" -------------------------------------------------------------------------------


FAILED = Completed((), 1, "", "something is wrong\n")


@pytest.mark.parametrize(
    ("kind", "item", "answers"),
    [
        ("package", m.Package("caddy", "sonarr"), {"dpkg_query": Completed((), 2, "", "something is wrong\n")}),
        ("unit", m.Unit("caddy.service", "sonarr"), {"systemctl": FAILED}),
        ("locale", m.Locale("C.UTF-8", "sonarr"), {"locale": FAILED}),
        ("image", m.Image("x/y:1", "sonarr"), {"images": FAILED}),
        ("podman_secret", m.PodmanSecret("alpha", "sonarr", secret="sonarr/key"), {"secret": FAILED}),
    ],
)
def test_failures_keep_their_message(tree, kind, item, answers):
    observed = look(tree, item, run=runner(**answers))
    assert "something is wrong" in observed.errors[kind]
    assert set(observed.errors) == {kind}


def test_an_unknown_release_is_an_error(tree):
    (tree / "etc/os-release").write_text("NAME=something\n")
    assert "os-release" in look(tree).errors["release"]


def test_a_bug_in_a_query_is_raised(tree):
    def broken(argv, _):
        raise KeyError("bug")

    with pytest.raises(KeyError):
        look(tree, m.Locale("C.UTF-8", "sonarr"), run=runner(locale=broken))
