# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Drop-ins, environment and credentials of native services, timers and settings of the system."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.plugin_utils.plan import HostPlan, PlanBuilder
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import common, files, secrets, systemd, timers
from ansible_collections.hearth.homelab.plugins.plugin_utils.schema import ValidationError
from ansible_collections.hearth.homelab.tests.unit.controller import rendering as r

DROP_IN = """\
# Managed by Hearth for the service miniflux. Changes made here are reported and overwritten.

[Unit]
Requires=hearth-gate@miniflux.service
Requires=postgresql@17-main.service
Wants=sonarr.service
After=hearth-gate@miniflux.service postgresql@17-main.service sonarr.service
RequiresMountsFor=/var/lib/miniflux
StartLimitIntervalSec=501s
StartLimitBurst=5

[Service]
Restart=on-failure
RestartSec=5s
TimeoutStopSec=30s
SyslogIdentifier=miniflux
UMask=0027
MemoryMax=536870912
CPUWeight=50
CapabilityBoundingSet=CAP_NET_BIND_SERVICE CAP_CHOWN
LockPersonality=yes
NoNewPrivileges=yes
PrivateDevices=no
PrivateTmp=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHome=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ReadOnlyPaths=-/usr -/boot -/efi -/etc
RestrictAddressFamilies=~AF_PACKET AF_ALG AF_VSOCK AF_TIPC AF_RDS AF_BLUETOOTH AF_CAN
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
Environment="GREETING=say \\"50%%\\" $HOME"
Environment=LISTEN_ADDR=127.0.0.1:8080
LoadCredential=admin:/var/lib/hearth/secrets/miniflux/admin_password
LoadCredential=token:/var/lib/hearth/secrets/miniflux/token
LimitNOFILE=4096
"""

TIMER = """\
# Managed by Hearth for the service miniflux. Changes made here are reported and overwritten.

[Unit]
Description=miniflux: cleanup

[Timer]
OnCalendar=daily
Persistent=true
RandomizedDelaySec=3600s
FixedRandomDelay=true

[Install]
WantedBy=timers.target
"""


def render(*services: tuple[str, dict[str, t.Any]], core: dict[str, t.Any] | None = None) -> HostPlan:
    """What the renderers of native services make of a host."""
    made = r.fleet(r.host("forge", dict(services), core))
    plan = PlanBuilder("forge", "debian13", "amd64")
    for renderer in (secrets, files, systemd, timers):
        renderer.render(made, made.hosts["forge"], plan)
    return plan.build()


def test_the_drop_in_of_a_native_service() -> None:
    plan = render(("postgresql", r.POSTGRESQL), ("miniflux", r.MINIFLUX), ("sonarr", r.SONARR))
    assert r.text(plan, "/etc/systemd/system/miniflux.service.d/50-hearth.conf") == DROP_IN
    assert r.unit(plan, "miniflux.service") == m.Unit(
        "miniflux.service",
        "miniflux",
        restart_on=(
            "file:/etc/miniflux/key",
            "file:/etc/systemd/system/miniflux.service.d/50-hearth.conf",
            "secret:miniflux/admin_password",
            "secret:miniflux/token",
        ),
    )
    assert r.unit(plan, "postgresql@17-main.service").restart_on == (
        "file:/etc/systemd/system/postgresql@17-main.service.d/50-hearth.conf",
    )


def test_no_secret_reaches_the_environment_of_a_native_service() -> None:
    """/proc/PID/environ shows it to everything of the same user, and to what it starts."""
    secret = {"key": {"kind": "access", "deliver": {"environment": "KEY"}}}
    with pytest.raises(ValidationError, match="the secret key in the environment of a native service"):
        render(("miniflux", r.merged(r.MINIFLUX, secrets=secret)))


def test_what_is_not_on_this_host_is_not_in_its_units() -> None:
    plan = render(("miniflux", r.MINIFLUX))
    text = r.text(plan, "/etc/systemd/system/miniflux.service.d/50-hearth.conf")
    assert "Requires=hearth-gate@miniflux.service\nAfter=hearth-gate@miniflux.service\n" in text
    assert "postgresql" not in text


def test_a_wanted_package_is_never_started_by_it() -> None:
    """A role by itself, or `only`, does not apply what it wants: a package's unit would start as the distribution has it."""
    plan = render(("postgresql", r.POSTGRESQL), ("miniflux", r.merged(r.MINIFLUX, database={}, wants=["postgresql"])))
    text = r.text(plan, "/etc/systemd/system/miniflux.service.d/50-hearth.conf")
    assert "Wants=" not in text
    assert "After=hearth-gate@miniflux.service postgresql@17-main.service\n" in text


def test_drop_in_false_keeps_the_package_s_unit_but_never_drops_the_gate() -> None:
    plan = render(("sshd", r.SSHD))
    assert r.ids(plan) == ["unit:ssh.service"]
    assert r.unit(plan, "ssh.service").guarded
    stored = r.merged(r.POSTGRESQL, run={"native": {"units": [{"name": "db.service", "drop_in": False}]}})
    text = r.text(render(("db", stored)), "/etc/systemd/system/db.service.d/50-hearth.conf")
    assert text.partition("\n\n")[2] == (
        "[Unit]\nRequires=hearth-gate@db.service\nAfter=hearth-gate@db.service\nRequiresMountsFor=/var/lib/postgresql\n"
    )


@pytest.mark.parametrize(
    ("change", "present", "absent"),
    [
        ({"run__restart": "no"}, ["Restart=no\n"], ["StartLimit", "RestartSec"]),
        ({"run__restart": "always"}, ["Restart=always\n", "StartLimitBurst=5\n"], []),
        ({"storage__state__mountpoint": "/home/db"}, ["ProtectHome=no\n"], ["ProtectHome=yes"]),
        (
            {"run__native__unit_options": {"Restart": "always", "ExecStart": ["", "/usr/bin/x"]}},
            ["Restart=always\n", "ExecStart=\nExecStart=/usr/bin/x\n"],
            ["Restart=on-failure"],
        ),
        (
            {"run__native__units": [{"name": "x.service", "running": None, "enabled": None}]},
            ["TimeoutStopSec=90s\n"],
            ["Restart=", "StartLimit"],
        ),
    ],
)
def test_variants_of_the_drop_in(change: dict[str, t.Any], present: list[str], absent: list[str]) -> None:
    contribution = r.merged(r.POSTGRESQL, **{"run__native__units": ["x.service"], **change})
    text = r.text(render(("x", contribution)), "/etc/systemd/system/x.service.d/50-hearth.conf")
    assert [entry for entry in present if entry not in text] == []
    assert [entry for entry in absent if entry in text] == []


def test_the_start_limit_outlasts_five_crashes_at_the_end_of_the_start_period() -> None:
    contribution = r.merged(r.POSTGRESQL, health={"start_period": "300s"})
    parsed = r.service("x", contribution).contribution
    assert common.start_limit(parsed) == [("StartLimitIntervalSec", "1221s"), ("StartLimitBurst", "5")]


def test_a_timer_with_its_job() -> None:
    plan = render(("miniflux", r.MINIFLUX))
    assert r.text(plan, "/etc/systemd/system/miniflux-cleanup.timer") == TIMER
    job = r.text(plan, "/etc/systemd/system/miniflux-cleanup.service")
    assert '\nType=oneshot\nExecStart=/usr/bin/miniflux "-run cleanup"\nUser=miniflux\nTimeoutStartSec=3600s\n' in job
    assert "Requires=hearth-gate@miniflux.service\n" in job
    assert "NoNewPrivileges=yes\n" in job
    assert r.unit(plan, "miniflux-cleanup.timer").restart_on == ("file:/etc/systemd/system/miniflux-cleanup.timer",)
    assert r.unit(plan, "miniflux-cleanup.service").running is None
    (validator,) = plan.manifest.validators
    assert validator.argv[-3:] == ("miniflux-cleanup.service", "miniflux-cleanup.timer", "miniflux.service")
    assert validator.covers("/etc/systemd/system/miniflux.service.d/50-hearth.conf")
    assert validator.covers("/etc/systemd/system/miniflux-cleanup.timer")


def test_settings_of_the_system() -> None:
    base = {
        "summary": "Base",
        "tier": "core",
        "run": {"native": {}},
        "system": {
            "sysctl": {"vm.swappiness": 10, "net.ipv4.tcp_mtu_probing": 1},
            "modules": ["wireguard", "br_netfilter"],
            "hostname": "forge",
            "timezone": "Europe/London",
            "locale": "en_GB.UTF-8",
        },
    }
    plan = render(("base", base))
    assert r.text(plan, "/etc/sysctl.d/60-hearth-base.conf") == "net.ipv4.tcp_mtu_probing = 1\nvm.swappiness = 10\n"
    assert r.text(plan, "/etc/modules-load.d/hearth-base.conf") == "br_netfilter\nwireguard\n"
    assert r.text(plan, "/etc/timezone") == "Europe/London\n"
    assert r.text(plan, "/etc/locale.conf") == "LANG=en_GB.UTF-8\n"
    found = plan.manifest.by_id()
    assert found["hostname:forge"] == m.Hostname("forge", "base")
    assert found["locale:en_GB.UTF-8"] == m.Locale("en_GB.UTF-8", "base")
    assert found["symlink:/etc/localtime"] == m.Symlink(
        "/etc/localtime", "base", target="/usr/share/zoneinfo/Europe/London"
    )
    assert r.unit(plan, "systemd-sysctl.service") == m.Unit(
        "systemd-sysctl.service",
        "base",
        enabled=None,
        running=None,
        restart_on=("file:/etc/sysctl.d/60-hearth-base.conf",),
        effects=("/proc/sys/net/ipv4/tcp_mtu_probing=1", "/proc/sys/vm/swappiness=10"),
    )
    modules = r.unit(plan, "systemd-modules-load.service")
    assert modules.effects == ("/sys/module/br_netfilter", "/sys/module/wireguard")
    assert "locale:C.UTF-8" not in r.ids(render(("base", r.merged(base, system={"locale": "C.UTF-8"}))))


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["/bin/x", "a b", ""], '/bin/x "a b" ""'),
        (["/bin/x", "100%", "$HOME"], "/bin/x 100%% $$HOME"),
        (["/bin/x", 'say "hi"\\', "a;b", "l1\nl2"], '/bin/x "say \\"hi\\"\\\\" "a;b" "l1\\nl2"'),
    ],
)
def test_arguments_reach_the_program_as_they_are(argv: list[str], line: str) -> None:
    assert common.command_line(argv) == line


def test_files_restart_what_reads_them() -> None:
    contribution = r.merged(
        r.EXPORTER,
        run__native__units=["a.service", {"name": "b.service", "on_change": "reload"}, "a.socket"],
        files=[
            {"path": "/etc/a/one", "content": "1\n", "validate": {"argv": ["true"], "covers": ["/etc/a/"]}},
            {"path": "/etc/a/two", "content": "2\n", "on_change": "reload", "mode": "0600"},
            {"path": "/etc/a/three", "content": "3\n", "on_change": "none"},
            {"path": "/etc/systemd/system/b.service", "content": "[Service]\n"},
        ],
        user={"name": "x", "id": 2000},
    )
    contribution["files"].append({"path": "/var/lib/a/config.xml", "content": "", "create_only": True})
    plan = render(("a", contribution))
    # The drop-ins come on top of the files.
    assert [entry for entry in r.unit(plan, "a.service").restart_on if "50-hearth" not in entry] == [
        "file:/etc/a/one",
        "file:/var/lib/a/config.xml",
    ]
    assert r.unit(plan, "a.service").reload_on == ("file:/etc/a/two",)
    assert [entry for entry in r.unit(plan, "b.service").restart_on if "50-hearth" not in entry] == [
        "file:/etc/systemd/system/b.service"
    ]
    assert r.unit(plan, "b.service").reload_on == ("file:/etc/a/one", "file:/etc/a/two", "file:/var/lib/a/config.xml")
    assert r.unit(plan, "a.socket").restart_on == ()
    owned = plan.manifest.by_id()["file:/var/lib/a/config.xml"]
    assert isinstance(owned, m.File)
    assert (owned.owner, owned.group, owned.create_only) == ("x", "x", True)
    assert any(entry.name == "a:/etc/a/one" and entry.covers("/etc/a/other") for entry in plan.manifest.validators)


def test_a_template_sees_the_service_and_its_secrets_as_holes(tmp_path: t.Any) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "app.conf.j2").write_text(
        "{{ service.name }} {{ service.ports.http }} {{ colour }} {{ service.secrets.key }} {{ service.url }}\n"
    )
    contribution = r.merged(r.MINIFLUX, files=[{"path": "/etc/app.conf", "template": "app.conf.j2"}])
    made = r.service("miniflux", contribution, variables={"colour": "blue"}, role_path=tmp_path)
    plan = r.plan_of(files.render, r.fleet(r.host("forge", {"miniflux": made})))
    assert r.text(plan, "/etc/app.conf") == "miniflux 8080 blue @@hearth:miniflux/key@@ https://news.example.com/\n"


def test_a_template_that_is_missing_or_wrong_is_named(tmp_path: t.Any) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "app.conf.j2").write_text("one\n{{ nobody }}\n")
    for template, message in (("app.cnf.j2", "app.cnf.j2 does not exist"), ("app.conf.j2", "nobody")):
        contribution = r.merged(r.MINIFLUX, files=[{"path": "/etc/app.conf", "template": template}])
        made = r.service("miniflux", contribution, role_path=tmp_path)
        with pytest.raises(common.RenderError, match=message) as error:
            r.plan_of(files.render, r.fleet(r.host("forge", {"miniflux": made})))
        assert error.value.problem.path == "files.0.template"
    inline = r.merged(r.MINIFLUX, files=[{"path": "/etc/app.conf", "template": "x.j2"}])
    with pytest.raises(common.RenderError, match="an inline service has no templates/"):
        r.plan_of(files.render, r.fleet(r.host("forge", {"miniflux": inline})))


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/conf/enp3s0.200/forwarding", "net/ipv4/conf/enp3s0.200/forwarding"),
        ("net.ipv4.conf.enp3s0/200.forwarding", "net/ipv4/conf/enp3s0.200/forwarding"),
        ("-kernel.printk", "kernel/printk"),
    ],
)
def test_the_file_of_a_kernel_parameter(key: str, path: str) -> None:
    assert systemd.sysctl_path(key) == f"/proc/sys/{path}"


def test_two_services_may_set_kernel_parameters() -> None:
    one, two = (
        {"summary": "Kernel", "tier": "core", "run": {"native": {}}, "system": {"sysctl": {key: "1"}}}
        for key in ("net.ipv4.ip_forward", "vm.overcommit_memory")
    )
    unit = r.unit(render(("one", one), ("two", two)), "systemd-sysctl.service")
    assert unit.effects == ("/proc/sys/net/ipv4/ip_forward=1", "/proc/sys/vm/overcommit_memory=1")
