# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""systemd: drop-ins for the units of native services, and what core roles set for the whole system."""

from __future__ import annotations

from collections.abc import Iterable

from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.plugin_utils.model import Fleet, Host, Service
from ansible_collections.hearth.homelab.plugins.plugin_utils.plan import PlanBuilder
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import common
from ansible_collections.hearth.homelab.plugins.plugin_utils.schema import Native, UnitSpec

UNITS = "/etc/systemd/system"
DROP_IN = f"{UNITS}/{{0}}.d/50-hearth.conf"

#: The sandbox of native services (systemd.exec(5)): what daemons of Debian 13 live with. A drop-in replaces what the
#: package's own unit says, so only options are here whose value cannot be weaker than the package's: the strictest
#: value of a boolean, or lists that add restrictions. That is why there is ReadOnlyPaths= and not ProtectSystem=full
#: (miniflux ships ProtectSystem=strict), a deny list of address families and not an allow list, and neither
#: SystemCallFilter= (a second allow list is united with the first) nor MemoryDenyWriteExecute= (kills JIT compilers).
HARDENING: dict[str, bool | str | list[str]] = {
    "LockPersonality": True,
    "NoNewPrivileges": True,
    "PrivateDevices": True,
    "PrivateTmp": True,
    "ProtectClock": True,
    "ProtectControlGroups": True,
    "ProtectHome": True,
    "ProtectHostname": True,
    "ProtectKernelLogs": True,
    "ProtectKernelModules": True,
    "ProtectKernelTunables": True,
    "ReadOnlyPaths": ["-/usr", "-/boot", "-/efi", "-/etc"],
    "RestrictAddressFamilies": "~AF_PACKET AF_ALG AF_VSOCK AF_TIPC AF_RDS AF_BLUETOOTH AF_CAN",
    "RestrictNamespaces": True,
    "RestrictRealtime": True,
    "RestrictSUIDSGID": True,
    "SystemCallArchitectures": "native",
}
#: What ProtectHome= hides.
_HOMES = ("/home/", "/root/", "/run/user/")


def render(_fleet: Fleet, host: Host, plan: PlanBuilder) -> None:
    for service in host.services.values():
        native = service.contribution.run.native
        if native:
            _native(host, service, native, plan)
        _system(service, plan)
        _recover(service, plan)
        verify(service, plan)


def verify(service: Service, plan: PlanBuilder) -> None:
    """systemd's own parser reads a native service's units with their drop-ins, and its timers, before they are placed.

    It loads them as the manager would, without generators; a unit of a quadlet that is only wanted may be missing.
    """
    native = service.contribution.run.native
    units = {f"{service.name}-{name}.{kind}" for name in service.contribution.timers for kind in ("service", "timer")}
    for unit in native.units if native else ():
        own = (f"{UNITS}/{unit.name}", f"{UNITS}/{unit.name}.d/")
        if plan.has(f"file:{DROP_IN.format(unit.name)}") or any(
            spec.path.startswith(own) for spec in service.contribution.files
        ):
            units.add(unit.name)
    if units:
        plan.validator(
            f"systemd:{service.name}",
            service.name,
            ("/usr/bin/systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *sorted(units)),
            [path for unit in units for path in (f"{UNITS}/{unit}", f"{UNITS}/{unit}.d/")],
        )


def hardening(service: Service, native: Native) -> common.Pairs:
    """[Service] sandbox options: the defaults, with the contribution's exceptions over them."""
    options = dict(HARDENING)
    contribution = service.contribution
    paths = [*common.storage_paths(service), *(mount.source for mount in contribution.mounts.values())]
    if any(f"{path}/".startswith(_HOMES) for path in paths):
        options["ProtectHome"] = False
    options.update(native.hardening)
    return [(key, common.yes(value)) for key, value in sorted(options.items())]


def _native(host: Host, service: Service, native: Native, plan: PlanBuilder) -> None:
    name = service.name
    credentials = {
        secret.deliver.credential: key
        for key, secret in sorted(service.contribution.secrets.items())
        if secret.deliver and secret.deliver.credential
    }
    for unit in native.units:
        plan.add(m.Unit(unit.name, name, enabled=unit.enabled, running=unit.running, guarded=unit.guarded))
        if not unit.name.endswith(".service"):
            continue
        plan.trigger(unit.name, "restart", *(f"secret:{service.secret(key)}" for key in credentials.values()))
        text = _drop_in(host, service, native, unit, credentials)
        if text is None:
            continue
        path = DROP_IN.format(unit.name)
        common.directory(plan, service, path.rpartition("/")[0])
        plan.trigger(unit.name, "restart", plan.file(name, path, text))


def _drop_in(host: Host, service: Service, native: Native, unit: UnitSpec, credentials: dict[str, str]) -> str | None:
    """The drop-in of one unit. ``drop_in: false`` keeps the package's own sandbox and restart policy; dependencies,
    the storage gate, environment and credentials are not a matter of taste and stay."""
    contribution = service.contribution
    depends = common.dependencies(host, service)
    if unit.running:
        depends += common.recovery(service)
    options: common.Pairs = []
    if unit.drop_in:
        # A oneshot that a timer starts is tried again by its timer.
        if unit.running:
            depends += common.start_limit(contribution)
            options += common.restart_policy(contribution.run)
        options.append(("TimeoutStopSec", f"{contribution.run.stop_timeout}s"))
        options.append(("SyslogIdentifier", service.name))
        if contribution.user and contribution.user.umask != "0022":  # never weaker than a package's stricter one
            options.append(("UMask", contribution.user.umask))
        options += common.resources(contribution.run)
        options += hardening(service, native)
    options += [("Environment", common.assignment(key, value)) for key, value in sorted(native.environment.items())]
    options += [
        ("LoadCredential", f"{credential}:{common.SECRETS}/{service.secret(key)}")
        for credential, key in sorted(credentials.items())
    ]
    for key, value in sorted(native.unit_options.items()):
        options = [(known, text) for known, text in options if known != key]
        options += [(key, text) for text in (value if isinstance(value, list) else [value])]
    if not (depends or options):
        return None
    return common.unit_file(service.name, {"Unit": depends, "Service": options})


def _recover(service: Service, plan: PlanBuilder) -> None:
    """Starts a service again whose mount was away, until it runs.

    A unit whose dependency failed stays ``inactive``; one that crashes is ``failed`` or ``activating`` and is its own
    restart policy's business. Starting the service tries its mounts again.
    """
    if not service.contribution.mounts:
        return
    units = " ".join(common.running_units(service))
    loop = (
        # A service that was taken back meanwhile has no unit any more.
        f"while sleep {common.RECOVER_SECONDS}; do systemctl cat {units} >/dev/null || exit 0; "
        f"again=; for unit in {units}; do "
        'test "$(systemctl show -P ActiveState "$unit")" != inactive || again="$again $unit"; done; '
        'test -n "$again" || exit 0; systemctl start $again && exit 0; done'
    )
    text = common.unit_file(
        service.name,
        {
            "Unit": [("Description", f"{service.name}: started again when its mounts are back")],
            "Service": [
                ("Type", "exec"),
                ("ExecStart", common.command_line(["/bin/sh", "-c", loop])),
                ("SyslogIdentifier", service.name),
            ],
        },
    )
    unit = common.RECOVER.format(service.name)
    plan.file(service.name, f"{UNITS}/{unit}", text)
    # Listed so that it is stopped and gone with its service; it runs only when it is needed.
    plan.add(m.Unit(unit, service.name, enabled=None, running=None))


def _system(service: Service, plan: PlanBuilder) -> None:
    """Settings of the whole system, which only core roles contribute."""
    system = service.contribution.system
    name = service.name
    if system.sysctl:
        text = "".join(f"{key} = {value}\n" for key, value in sorted(system.sysctl.items()))
        effects = [f"{sysctl_path(key)}={value}" for key, value in system.sysctl.items() if "*" not in key]
        _boot_setting(plan, name, f"/etc/sysctl.d/60-hearth-{name}.conf", text, "systemd-sysctl.service", effects)
    if system.modules:
        text = "".join(f"{module}\n" for module in sorted(set(system.modules)))
        effects = [f"/sys/module/{module.replace('-', '_')}" for module in system.modules]
        _boot_setting(
            plan, name, f"/etc/modules-load.d/hearth-{name}.conf", text, "systemd-modules-load.service", effects
        )
    if system.hostname:
        plan.add(m.Hostname(system.hostname, name))
    if system.timezone:
        # localtime(5); /etc/timezone is read by programs that came before it, Debian 13 itself does without.
        plan.add(m.Symlink("/etc/localtime", name, target=f"/usr/share/zoneinfo/{system.timezone}"))
        plan.file(name, "/etc/timezone", f"{system.timezone}\n")
    if system.locale:
        if system.locale.partition(".")[0] not in ("C", "POSIX"):  # these are part of libc-bin, not generated
            plan.add(m.Locale(system.locale, name))
        plan.file(name, "/etc/locale.conf", f"LANG={system.locale}\n")
        # PAM reads /etc/default/locale; in Debian 13 it is this link (measured).
        plan.add(m.Symlink("/etc/default/locale", name, target="../locale.conf"))


def sysctl_path(key: str) -> str:
    """The file of a kernel parameter. In names separated by dots a slash stands for a dot (sysctl.d(5))."""
    key = key.removeprefix("-")
    first = next((letter for letter in key if letter in "./"), "/")
    return "/proc/sys/" + (key if first == "/" else key.translate(str.maketrans("./", "/.")))


def _boot_setting(
    plan: PlanBuilder, service: str, path: str, text: str, unit: str, effects: Iterable[str] = ()
) -> None:
    """A file that a static oneshot of systemd reads at boot, again when it changes, and when somebody undid it."""
    plan.trigger(unit, "restart", plan.file(service, path, text))
    # running=None: in a container its conditions fail and it is never active, which is right there.
    plan.add(m.Unit(unit, service, enabled=None, running=None))
    plan.effects(unit, effects)
