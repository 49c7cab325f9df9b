# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Containers: podman quadlets (podman-systemd.unit(5)), their networks, images and secrets."""

from __future__ import annotations

import hashlib
import ipaddress

from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.plugin_utils import images
from ansible_collections.hearth.homelab.plugins.plugin_utils.model import Fleet, Host, Service
from ansible_collections.hearth.homelab.plugins.plugin_utils.plan import PlanBuilder
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import common
from ansible_collections.hearth.homelab.plugins.plugin_utils.schema import Container

DIRECTORY = "/etc/containers/systemd"
GENERATOR = "/usr/lib/systemd/system-generators/podman-system-generator"


def _keys(words: str) -> frozenset[str]:
    return frozenset(words.split())


#: The podman of each release that hosts may declare.
PODMAN: dict[str, str] = {"debian13": "5.4"}
#: The keys of quadlet sections that a podman knows: an unknown key makes its generator drop the whole unit.
#: Read from podman-systemd.unit(5) of Debian 13's podman 5.4.2.
KEYS: dict[str, dict[str, frozenset[str]]] = {
    "5.4": {
        "Container": _keys(
            "AddCapability AddDevice AddHost Annotation AutoUpdate CgroupsMode ContainerName ContainersConfModule DNS "
            "DNSOption DNSSearch DropCapability Entrypoint Environment EnvironmentFile EnvironmentHost Exec "
            "ExposeHostPort GIDMap GlobalArgs Group GroupAdd HealthCmd HealthInterval HealthLogDestination "
            "HealthMaxLogCount HealthMaxLogSize HealthOnFailure HealthRetries HealthStartPeriod HealthStartupCmd "
            "HealthStartupInterval HealthStartupRetries HealthStartupSuccess HealthStartupTimeout HealthTimeout "
            "HostName Image IP IP6 Label LogDriver LogOpt Mask Mount Network NetworkAlias NoNewPrivileges Notify "
            "PidsLimit Pod PodmanArgs PublishPort Pull ReadOnly ReadOnlyTmpfs Rootfs RunInit SeccompProfile Secret "
            "SecurityLabelDisable SecurityLabelFileType SecurityLabelLevel SecurityLabelNested SecurityLabelType "
            "ShmSize StartWithPod StopSignal StopTimeout SubGIDMap SubUIDMap Sysctl Timezone Tmpfs UIDMap Ulimit "
            "Unmask User UserNS Volume WorkingDir"
        ),
        "Network": _keys(
            "ContainersConfModule DisableDNS DNS Driver Gateway GlobalArgs Internal IPAMDriver IPRange IPv6 Label "
            "NetworkName Options PodmanArgs Subnet"
        ),
    }
}
#: Groups with the same id on every Debian (base-passwd's group.master). `render`, `input` and `kvm` have none.
DEBIAN_GROUPS: dict[str, int] = {
    "adm": 4, "tty": 5, "disk": 6, "lp": 7, "mail": 8, "dialout": 20, "cdrom": 24, "tape": 26, "audio": 29,
    "www-data": 33, "backup": 34, "shadow": 42, "video": 44, "plugdev": 46, "staff": 50, "games": 60, "users": 100,
}  # fmt: skip
#: The bridge of podman's default network, which containers without `networks` use.
DEFAULT_BRIDGE = "podman0"
#: How long podman may take to set up a container whose image is already there.
START_SECONDS = 300


def render(_fleet: Fleet, host: Host, plan: PlanBuilder) -> None:
    services = [service for service in host.services.values() if service.container]
    if not services:
        return
    engine = host.provider("container") or services[0]
    common.directory(plan, engine, DIRECTORY)
    for network in networks(host):
        _network(host, engine, network, plan)
    for service in services:
        if service.contribution.run.container:
            _container(host, service, service.contribution.run.container, plan)
    plan.validator("quadlet", engine.name, (GENERATOR, "--dryrun"), (f"{DIRECTORY}/",))


def networks(host: Host) -> list[str]:
    """The declared container networks that services of this host use."""
    used = {name for service in host.services.values() if service.container for name in service.contribution.networks}
    return sorted(used)


def bridge(network: str) -> str:
    """The interface of a container network. Interface names have at most 15 characters."""
    name = f"hb-{network}"
    return name if len(name) <= 15 else f"{name[:8]}-{hashlib.sha256(network.encode()).hexdigest()[:6]}"


def bridges(host: Host) -> list[str]:
    """The interfaces of all container networks of our services on this host."""
    containers = [service for service in host.services.values() if service.container]
    default = any(bridged(service) and not service.contribution.networks for service in containers)
    return ([DEFAULT_BRIDGE] if default else []) + [bridge(network) for network in networks(host)]


def bridged(service: Service) -> bool:
    """Whether a service is a container behind a bridge, whose ports are published (and not bound by the program)."""
    container = service.contribution.run.container
    return container is not None and container.network == "bridge"


def image(host: Host, service: Service, container: Container) -> tuple[str, bool]:
    """The image that runs, and whether it is a stand-in. A stand-in never has the digest of what it stands for.

    With a tag and a digest podman pulls, stores and looks up by the digest; the tag tells people what it is.
    """
    other = images.stand_in(host.variables.hearth_image_overrides, container.image)
    if other is not None:
        return other, True
    return (f"{container.image}@{service.digest}" if service.digest else container.image), False


def published(host: Host, service: Service) -> list[tuple[str, str, int, int, str]]:
    """Ports that podman publishes: (listen entry, address or ``*``, host port, container port, protocol)."""
    if not bridged(service):
        return []
    families = _families(host, service)
    found: list[tuple[str, str, int, int, str]] = []
    for name, listen in sorted(service.contribution.listen.items()):
        for address in common.addresses(host, listen):
            parsed = common.literal(address)
            if parsed is not None and parsed.version not in families:
                continue  # netavark forwards to an address of the same family only: the port would be open and dead
            for protocol in sorted(set(listen.protocol)):
                found.append((name, address, listen.port, listen.container_port or listen.port, protocol))
    return found


def _families(host: Host, service: Service) -> set[int]:
    """IP versions of a container's addresses: podman's networks are IPv4 unless their subnet says otherwise."""
    subnets = [host.variables.hearth_networks.get(name) for name in service.contribution.networks]
    return {ipaddress.ip_network(entry.subnet).version if entry and entry.subnet else 4 for entry in subnets} or {4}


def _section(host: Host, service: Service, section: str, pairs: common.Pairs) -> common.Pairs:
    """The pairs, if the podman of the host's release knows all their keys."""
    podman = PODMAN.get(host.release)
    if podman is None:
        raise common.fail(
            host,
            service,
            "hearth_platform.release",
            f"no podman with quadlets is known for {host.release}",
            f"releases with one: {', '.join(sorted(PODMAN))}",
        )
    unknown = sorted({key for key, _value in pairs} - KEYS[podman][section])
    if unknown:
        raise common.fail(
            host,
            service,
            "run.container",
            f"podman {podman} of {host.release} does not know the quadlet key {unknown[0]}= in [{section}]",
            "a newer podman would; its generator here would drop the whole unit",
        )
    return pairs


def _network(host: Host, engine: Service, name: str, plan: PlanBuilder) -> None:
    declared = host.variables.hearth_networks.get(name)
    if declared is None:
        users = [service for service in host.services.values() if name in service.contribution.networks]
        raise common.fail(
            host,
            users[0],
            "networks",
            f"the container network {name!r} is not declared",
            f"hearth_networks has: {', '.join(sorted(host.variables.hearth_networks)) or 'nothing'}",
        )
    pairs: common.Pairs = [("NetworkName", f"hearth-{name}")]
    if declared.subnet:
        pairs.append(("Subnet", declared.subnet))
        if ":" in declared.subnet:
            pairs.append(("IPv6", "true"))
    if declared.internal:
        pairs.append(("Internal", "true"))
    # Networks of one fleet do not reach each other, which is the point of having several.
    pairs += [
        ("Options", "isolate=true"),
        ("Label", f"io.hearth.network={name}"),
        ("PodmanArgs", f"--interface-name={bridge(name)}"),
    ]
    text = common.unit_file(
        engine.name,
        {
            "Unit": [("Description", f"container network {name}")],
            "Network": _section(host, engine, "Network", pairs),
            # podman 5.4 creates a network once and never changes it (NetworkDeleteOnStop= came later): removed when the
            # unit stops, it is made anew with a new subnet; containers on it are restarted by their Requires=.
            "Service": [("ExecStopPost", f"-/usr/bin/podman network rm hearth-{name}")],
        },
    )
    unit = f"{name}-network.service"
    # podman keeps a network in a file (netavark), which says that it is there when systemd only knows that it was made.
    plan.add(m.Unit(unit, engine.name, enabled=None, running=True))
    plan.effects(unit, (f"/etc/containers/networks/hearth-{name}.json",))
    plan.trigger(unit, "restart", plan.file(engine.name, f"{DIRECTORY}/{name}.network", text))


def _container(host: Host, service: Service, container: Container, plan: PlanBuilder) -> None:
    contribution = service.contribution
    name = service.name
    unit = f"{name}.service"
    reference, _stand_in = image(host, service, container)
    pairs: common.Pairs = [
        ("Image", reference),
        ("ContainerName", name),
        ("Pull", "never"),  # an Image item pulls it before anything is stopped
        *_identity(host, service, container),
        ("DropCapability", "all"),
        *(("AddCapability", capability) for capability in sorted(set(container.capabilities))),
        ("NoNewPrivileges", "true"),
        ("ReadOnly", "true" if container.read_only else "false"),
        *(("Tmpfs", f"{path}:rw,nosuid,nodev") for path in sorted(set(container.tmpfs))),
        *(("AddDevice", device) for device in sorted(set(container.devices))),
        *_volumes(service, container),
        *_network_options(host, service, container),
    ]
    pairs += [
        ("Environment", common.assignment(key, value, exec_line=True))
        for key, value in sorted(container.environment.items())
    ]
    pairs += _secrets(service, container, plan)
    labels = {**container.labels, "io.hearth.service": name}
    pairs += [("Label", common.assignment(key, value, exec_line=True)) for key, value in sorted(labels.items())]
    if container.entrypoint:
        pairs.append(("Entrypoint", common.specifiers(container.entrypoint).replace("$", "$$")))
    if container.command:
        pairs.append(("Exec", common.command_line(container.command)))
    # Without it `podman rm -f`, which stops the container, kills it after 10 s whatever the unit's timeout is.
    pairs.append(("StopTimeout", str(contribution.run.stop_timeout)))
    text = common.unit_file(
        name,
        {
            "Unit": [
                ("Description", common.specifiers(contribution.summary)),
                *common.dependencies(host, service),
                *common.recovery(service),
                *common.start_limit(contribution),
            ],
            "Container": _section(host, service, "Container", pairs),
            "Service": [
                *common.restart_policy(contribution.run),
                ("TimeoutStartSec", f"{START_SECONDS}s"),
                ("TimeoutStopSec", f"{contribution.run.stop_timeout + 10}s"),
                # What a stopped program's process reports (128 + SIGTERM): systemd would call the unit failed.
                ("SuccessExitStatus", "143"),
                ("SyslogIdentifier", name),
                *common.resources(contribution.run),
            ],
            "Install": [("WantedBy", "multi-user.target")],
        },
    )
    plan.add(m.Unit(unit, name, enabled=None, running=True))
    plan.trigger(unit, "restart", plan.file(name, f"{DIRECTORY}/{name}.container", text))
    plan.trigger(unit, "restart", plan.add(m.Image(reference, name)))


def _identity(host: Host, service: Service, container: Container) -> common.Pairs:
    """User, groups and umask inside the container."""
    user = service.contribution.user
    pairs: common.Pairs = []
    if container.run_as == "root":
        pairs += [("User", "0"), ("Group", "0")]
    elif container.run_as == "user":
        pairs += [("User", str(service.uid)), ("Group", str(service.gid))]
    if user and container.run_as != "image":
        ids = {**DEBIAN_GROUPS, **common.group_ids(host)}
        for group in sorted(set(user.groups)):
            if group not in ids:
                raise common.fail(
                    host,
                    service,
                    "user.groups",
                    f"the id of the group {group!r} is not known, and a container needs the number",
                    f"declare it: hearth_ids: {{groups: {{{group}: ...}}}} (getent group {group} on the host)",
                )
            pairs.append(("GroupAdd", str(ids[group])))
        if user.umask != "0022":  # podman's own default
            pairs.append(("PodmanArgs", f"--umask={user.umask}"))
    return pairs


def _volumes(service: Service, container: Container) -> common.Pairs:
    volumes = [
        f"{entry.mountpoint}:{entry.target or entry.mountpoint}:rw" for entry in service.contribution.storage.values()
    ]
    volumes += [
        f"{mount.source}:{mount.target or mount.source}:{mount.access}"
        for mount in service.contribution.mounts.values()
    ]
    return [("Volume", common.specifiers(volume)) for volume in sorted(volumes) + sorted(container.volumes)]


def _network_options(host: Host, service: Service, container: Container) -> common.Pairs:
    if container.network == "host":
        return [("Network", "host")]
    pairs: common.Pairs = [("Network", f"{network}.network") for network in sorted(set(service.contribution.networks))]
    for _name, address, port, inner, protocol in published(host, service):
        where = "" if address == "*" else f"{common.in_url(address)}:"
        pairs.append(("PublishPort", f"{where}{port}:{inner}/{protocol}"))
    return pairs


def _secrets(service: Service, container: Container, plan: PlanBuilder) -> common.Pairs:
    """Secrets as environment or as files. A container that runs as its image says has ids that nobody knows here: its
    files are readable by all of that one container."""
    pairs: common.Pairs = []
    ids = {"user": (service.uid, service.gid), "root": (0, 0)}.get(container.run_as)
    access = f"uid={ids[0]},gid={ids[1]},mode=0400" if ids else "mode=0444"
    for key, secret in sorted(service.contribution.secrets.items()):
        if secret.deliver is None:
            continue
        name = f"hearth-{service.name}-{key}"
        item = plan.add(m.PodmanSecret(name, service.name, secret=service.secret(key)))
        plan.trigger(f"{service.name}.service", "restart", item)
        if secret.deliver.environment:
            pairs.append(("Secret", f"{name},type=env,target={secret.deliver.environment}"))
        else:
            # podman puts a target that is not absolute below /run/secrets.
            target = secret.deliver.file or secret.deliver.credential
            pairs.append(("Secret", f"{name},type=mount,target={target},{access}"))
    return pairs
