# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The schema of contributions (version 1) and of the ``hearth_*`` variables, as pydantic models.

A contribution states everything a service needs. Each contract is one model here; its documentation is the
``description`` of its fields, from which the JSON Schema and the reference pages are made. Strings are already
resolved when they get here: nothing in this module templates.
"""

from __future__ import annotations

import ipaddress
import re
import typing as t

try:
    from pydantic import BaseModel as BaseModel
    from pydantic import BeforeValidator, ConfigDict, Field, model_validator
    from pydantic import ValidationError as ValidationError
    from pydantic_core import PydanticCustomError
except ImportError as error:  # pragma: no cover (said in words by the action plugins)
    raise ImportError(
        "hearth.homelab needs pydantic 2 on the controller: pip install -r requirements.txt of the collection"
    ) from error

SCHEMA_VERSION = 1

Tier = t.Literal["core", "infrastructure", "services"]
ProtectionClass = t.Literal["system", "critical", "standard", "ephemeral"]

_NAME = re.compile(r"^[a-z][a-z0-9_]{0,31}$")
_UNIT = re.compile(r"^[A-Za-z0-9:_.\\@-]+\.(service|socket|timer|path|target|mount|slice)$")
_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([KMGTP]?)(?:i?B)?$", re.IGNORECASE)
_DURATION = re.compile(r"^(\d+)\s*(ms|s|m|min|h|d|w)?$")
_MODE = re.compile(r"^0?[0-7]{3,4}$")
_PREFIX = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_SECONDS = {"ms": 0.001, "s": 1, None: 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}


def _fail(what: str, allowed: str) -> t.NoReturn:
    raise PydanticCustomError("hearth", "{what}; allowed: {allowed}", {"what": what, "allowed": allowed})


def parse_size(value: t.Any) -> int:
    """Bytes of ``1G`` or ``512 MiB`` (powers of 1024, as ZFS and systemd read them) or of a plain number."""
    if isinstance(value, bool):
        _fail(f"{value!r} is not a size", "a number of bytes, or a number with K, M, G, T or P")
    if isinstance(value, int):
        return value
    match = _SIZE.match(str(value).strip())
    if not match:
        _fail(f"{value!r} is not a size", "a number of bytes, or a number with K, M, G, T or P")
    return int(float(match[1]) * _PREFIX[match[2].upper()])


def parse_duration(value: t.Any) -> int:
    """Whole seconds of ``90s``, ``5m``, ``1h``, ``7d`` or of a plain number."""
    if isinstance(value, bool):
        _fail(f"{value!r} is not a duration", "a number of seconds, or a number with s, m, h, d or w")
    if isinstance(value, int):
        return value
    match = _DURATION.match(str(value).strip())
    if not match:
        _fail(f"{value!r} is not a duration", "a number of seconds, or a number with s, m, h, d or w")
    return int(int(match[1]) * _SECONDS[match[2]])


def _mode(value: t.Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        # YAML 1.1 reads 0640 as octal 416 and 640 as decimal: which one was meant cannot be known.
        _fail(f"the number {value}", 'a mode in quotes, such as "0640"')
    if not _MODE.match(str(value)):
        _fail(f"{value!r} is not a mode", 'an octal mode in quotes, such as "0640"')
    return str(value).rjust(4, "0")


def _path(value: t.Any) -> str:
    text = str(value)
    if not text.startswith("/") or ".." in text.split("/"):
        _fail(f"{text!r} is not an absolute path", "a path that starts with / and has no ..")
    return text.rstrip("/") or "/"


def _relative_path(value: t.Any) -> str:
    text = str(value)
    if not text or text.startswith("/") or ".." in text.split("/"):
        _fail(f"{text!r} is not a path below a folder", "a path that does not start with / and has no ..")
    return text


def _name(value: t.Any) -> str:
    if not isinstance(value, str) or not _NAME.match(value):
        _fail(f"{value!r} is not a name", "a lower-case letter, then lower-case letters, digits and _, at most 32")
    return value


def _unit(value: t.Any) -> str:
    if not isinstance(value, str) or not _UNIT.match(value):
        _fail(f"{value!r} is not a unit's name", "a systemd unit with its suffix, such as miniflux.service")
    return value


def _text(value: t.Any) -> t.Any:
    """A scalar as a string: environment values and labels are often written as numbers or booleans in YAML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


def _network(value: t.Any) -> str:
    try:
        return str(ipaddress.ip_network(str(value), strict=True))
    except ValueError as error:
        _fail(f"{value!r} is not a network ({error})", "a CIDR such as 192.0.2.0/24 or 2001:db8::/32")


def route_name(value: t.Any) -> t.Any:
    """A service's name as a host name: ``sonarr_4k`` is reached as ``sonarr-4k``."""
    return value.replace("_", "-") if isinstance(value, str) else value


Size = t.Annotated[int, BeforeValidator(parse_size)]
Duration = t.Annotated[int, BeforeValidator(parse_duration)]
Mode = t.Annotated[str, BeforeValidator(_mode)]
AbsolutePath = t.Annotated[str, BeforeValidator(_path)]
RelativePath = t.Annotated[str, BeforeValidator(_relative_path)]
Name = t.Annotated[str, BeforeValidator(_name)]
UnitName = t.Annotated[str, BeforeValidator(_unit)]
Text = t.Annotated[str, BeforeValidator(_text)]
Network = t.Annotated[str, BeforeValidator(_network)]
Port = t.Annotated[int, Field(ge=1, le=65535)]


class Model(BaseModel):
    """Unknown keys are errors; ``x_*`` keys are the owner's and ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_owner_keys(cls, data: t.Any) -> t.Any:
        if isinstance(data, dict) and any(isinstance(key, str) and key.startswith("x_") for key in data):
            return {key: value for key, value in data.items() if not (isinstance(key, str) and key.startswith("x_"))}
        return data


class External(Model):
    """A target that is called: base of every type that names one. Hosts with ``hearth_external: false``, which are the
    lab's, refuse a target that is not marked ``external: false``, and one that is and yet leads elsewhere."""

    external: bool = Field(
        True, description="Whether it is outside. Hosts with `hearth_external: false` refuse what is."
    )

    def addresses(self) -> list[str]:
        """What is called: URLs, or HOST with or without a port."""
        raise NotImplementedError


# --- run -------------------------------------------------------------------------------------------------------------


class Container(Model):
    """A podman quadlet."""

    image: str = Field(description="Reference with a tag or digest; never `latest`.")
    reason: str = Field(min_length=3, description="Why this is not native: native packages are preferred.")
    environment: dict[str, Text] = Field({}, description="Environment without secrets.")
    command: list[Text] = Field([], description="Arguments of the entry point.")
    entrypoint: str | None = Field(None, description="Replaces the image's entry point.")
    devices: list[str] = Field([], description="Host devices, such as /dev/dri.")
    capabilities: list[str] = Field([], description="Capabilities added; all others are dropped.")
    read_only: bool = Field(True, description="The image's root file system is read-only.")
    tmpfs: list[AbsolutePath] = Field([], description="Writable temporary directories in the container.")
    volumes: list[str] = Field([], description="Further `host:container[:options]` binds that are not data.")
    labels: dict[str, Text] = Field({}, description="Labels of the container.")
    run_as: t.Literal["user", "root", "image"] = Field(
        "user", description="`user`: the service's own ids; `root`: root in the container; `image`: as the image says."
    )
    network: t.Literal["bridge", "host"] = Field("bridge", description="`host` needs a reason in `reason`.")

    @model_validator(mode="after")
    def _pinned(self) -> Container:
        last = self.image.rsplit("/", 1)[-1]
        if "@sha256:" not in self.image and (":" not in last or last.endswith(":latest")):
            _fail(f"the image {self.image!r} is not pinned", "a reference with a tag other than latest, or a digest")
        return self


class UnitSpec(Model):
    """A systemd unit of a native service."""

    name: UnitName = Field(description="The unit with its suffix.")
    enabled: bool | None = Field(True, description="null: static or left alone.")
    running: bool | None = Field(True, description="null: left alone (a oneshot that a timer starts).")
    on_change: t.Literal["restart", "reload"] = Field(
        "restart", description="What a changed configuration file asks for, where the file does not say otherwise."
    )
    drop_in: bool = Field(True, description="Hearth's drop-in: hardening, restart policy, limits, gate.")
    guarded: bool = Field(False, description="A change may cut the controller off: taken back unless confirmed.")


class AptSource(External):
    """A vendor's apt repository."""

    url: str = Field(description="Base address of the repository.")
    suite: str = Field(description="Suite or codename.")
    components: list[str] = Field(["main"], description="Components of the repository.")
    key_url: str = Field(description="Where the signing key is published.")
    fingerprint: str = Field(pattern=r"^[0-9A-F]{40}$", description="The key's full fingerprint.")
    architectures: list[str] = Field([], description="Architectures to ask for; empty: the host's.")

    def addresses(self) -> list[str]:
        return [self.url, self.key_url]


class Initialize(Model):
    """A command that makes a native service's first data, run once on new storage."""

    argv: list[Text] = Field(min_length=1, description="The command and its arguments, without a shell.")
    creates: AbsolutePath = Field(description="Exists when it has run.")
    user: str = Field("root", description="The user that runs it.")
    storage: Name = Field("state", description="The storage entry that must be new.")
    makes: list[AbsolutePath] = Field(
        [], description="What else it makes, outside the storage: set aside with it when the command was interrupted."
    )


def _units(value: t.Any) -> t.Any:
    return (
        [{"name": entry} if isinstance(entry, str) else entry for entry in value] if isinstance(value, list) else value
    )


class Native(Model):
    """Debian packages with their units; without units it is configuration only."""

    packages: list[str] = Field([], description="Debian packages.")
    replaces: list[str] = Field([], description="Packages that the installation may remove.")
    units: t.Annotated[list[UnitSpec], BeforeValidator(_units)] = Field(
        [], description="Units of the service; without any it is configuration only."
    )
    repository: AptSource | None = Field(None, description="The vendor's repository that has the packages.")
    environment: dict[str, Text] = Field({}, description="Environment of all units, without secrets.")
    initialize: Initialize | None = Field(None, description="Makes the first data.")
    hardening: dict[str, bool | Text | list[Text]] = Field(
        {}, description="systemd sandbox options that differ from Hearth's defaults, such as {PrivateDevices: false}."
    )
    unit_options: dict[str, Text | list[Text]] = Field({}, description="Further [Service] options of all units.")


class Resources(Model):
    memory_max: Size | None = Field(None, description="Limit above which the kernel ends the service (MemoryMax=).")
    memory_high: Size | None = Field(None, description="Limit above which it is slowed down (MemoryHigh=).")
    cpu_weight: int | None = Field(None, ge=1, le=10000, description="Share of the processor under load (CPUWeight=).")
    cpu_quota: str | None = Field(None, pattern=r"^\d+%$", description="Percentage of one processor (CPUQuota=).")
    tasks_max: int | None = Field(None, ge=1, description="Number of processes and threads (TasksMax=).")
    io_weight: int | None = Field(None, ge=1, le=10000, description="Share of disk bandwidth under load (IOWeight=).")


class Run(Model):
    container: Container | None = Field(None, description="It runs as a container.")
    native: Native | None = Field(None, description="It runs from Debian packages.")
    resources: Resources = Field(Resources(), description="Limits of its units.")
    stop_timeout: Duration = Field(90, description="How long it may take to stop before it is killed.")
    restart: t.Literal["on-failure", "always", "no"] = Field("on-failure", description="When systemd starts it again.")

    @model_validator(mode="after")
    def _one(self) -> Run:
        if (self.container is None) == (self.native is None):
            _fail("neither or both of container and native", "exactly one of run.container and run.native")
        return self


# --- identity, network, storage --------------------------------------------------------------------------------------


class UserSpec(Model):
    name: str = Field(pattern=r"^[a-z_][a-z0-9_-]{0,31}$", description="Name of the user.")
    id: int = Field(ge=1, le=59999, description="The fixed user and group id; `hearth_ids` of the inventory wins.")
    group: str | None = Field(None, description="The primary group, if it is not called as the user.")
    groups: list[str] = Field([], description="Further groups.")
    umask: t.Annotated[str, BeforeValidator(_mode)] = Field("0022", description="Umask of the service's processes.")
    home: AbsolutePath | None = Field(None, description="Home directory.")
    shared: bool = Field(False, description="Other services may use the same user.")


Address = t.Literal["loopback", "lan", "mesh", "any"]


class Listen(Model):
    port: Port = Field(description="Port on the host.")
    container_port: Port | None = Field(None, description="Port in the container; default: the same.")
    protocol: list[t.Literal["tcp", "udp"]] = Field(["tcp"], min_length=1, description="Protocols of the port.")
    address: Address = Field("loopback", description="Where the program listens.")
    from_: list[str] = Field(
        [],
        alias="from",
        description="Who may connect from outside the host: zones, hosts, groups of hosts, or a contract "
        "(`metrics`: the hosts whose service provides it).",
    )


class StorageSpec(Model):
    mountpoint: AbsolutePath = Field(description="Directory on the host.")
    target: AbsolutePath | None = Field(None, description="Where a container sees it.")
    owner: str | None = Field(None, description="Default: the service's user.")
    group: str | None = Field(None, description="Default: the service's group.")
    mode: Mode = Field("0750", description="Mode of the directory.")
    recordsize: Size = Field(131072, description="ZFS record size.")
    compression: str = Field("zstd", description="ZFS compression.")
    quota: Size | t.Literal["none"] = Field("none", description="ZFS quota.")
    properties: dict[str, Text] = Field({}, description="Further ZFS properties.")


class MountSpec(Model):
    source: AbsolutePath = Field(description="A path on the host, usually below a declared mount.")
    target: AbsolutePath | None = Field(None, description="Where a container sees it.")
    access: t.Literal["ro", "rw"] = Field("ro", description="Read only, or read and write.")


class Protect(Model):
    class_: ProtectionClass = Field(alias="class", description="The protection policy.")
    rpo: Duration | None = Field(None, description="Most data that may be lost, as time; default: the class's.")
    rto: Duration | None = Field(None, description="Longest time that a restore may take; default: the class's.")
    empty_start: bool | None = Field(None, description="Exception to the class's rule for new storage.")


class Backup(Model):
    exclude: list[str] = Field([], description="Patterns below the storage that are not backed up.")
    quiesce: dict[t.Literal["sqlite", "postgresql", "command"], list[str]] = Field(
        {}, description="What is made consistent before a backup."
    )
    validate_: dict[t.Literal["sqlite", "postgresql", "command"], list[str]] = Field(
        {}, alias="validate", description="What is checked after a restore."
    )
    tags: list[str] = Field([], description="Tags of its backups.")


class Version(Model):
    data: dict[t.Literal["sqlite", "file", "command"], list[str]] = Field(
        {}, description="Where the data says which program version wrote it."
    )


# --- exposure --------------------------------------------------------------------------------------------------------


class Bypass(Model):
    path: str | None = Field(None, description="This path exactly.")
    prefix: str | None = Field(None, description="This path and everything below it.")
    auth: t.Literal["none", "application"] = Field("none", description="What protects it instead.")

    @model_validator(mode="after")
    def _one(self) -> Bypass:
        value = self.path or self.prefix
        if (self.path is None) == (self.prefix is None) or not (value or "").startswith("/") or value == "/":
            _fail("a bypass", "exactly one of path and prefix, starting with / and longer than it")
        if re.search(r"[^A-Za-z0-9/._~-]|//|/\.\.?(/|$)", value or ""):
            _fail(f"the bypass {value!r} is not a plain path", "letters, digits and / . _ ~ - without // and ..")
        return self


class Route(Model):
    name: t.Annotated[str, BeforeValidator(route_name)] = Field(
        pattern=r"^(@|[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9-]+)*)$",
        description="Below hearth_domain; @ is the domain itself. An instance's _ becomes -: host names have none.",
    )
    to: Name = Field(description="The name of a `listen` entry.")
    access: str | None = Field(None, description="A group of hearth_access, `application` or `public`.")
    bypass: list[Bypass] = Field([], description="Paths that need no login of the proxy.")
    scheme: t.Literal["http", "https"] = Field("http", description="How the proxy talks to the service.")
    websocket: bool = Field(True, description="Whether web sockets are passed on.")
    max_body: Size | None = Field(None, description="Largest request body.")
    headers: dict[str, Text] = Field({}, description="Response headers.")
    external: bool = Field(False, description="Whether it is reachable from outside the home.")


class Oidc(Model):
    client: Name = Field(description="Client id.")
    redirect: list[str] = Field(min_length=1, description="Redirect addresses.")
    groups: list[str] = Field([], description="Groups that may log in; empty: all people.")
    scopes: list[str] = Field(
        ["openid", "profile", "email", "groups"], description="Scopes that the client may ask for."
    )
    public: bool = Field(False, description="A client without a secret.")


#: PostgreSQL's predefined roles that a service's role may be a member of (PostgreSQL 17, "Predefined Roles"). Not:
#: pg_database_owner (nobody can be made a member of it), pg_execute_server_program, pg_read_server_files and
#: pg_write_server_files (whoever has one of them can become a superuser).
PredefinedRole = t.Literal[
    "pg_checkpoint", "pg_create_subscription", "pg_maintain", "pg_monitor", "pg_read_all_data", "pg_read_all_settings",
    "pg_read_all_stats", "pg_signal_backend", "pg_stat_scan_tables", "pg_use_reserved_connections", "pg_write_all_data",
]  # fmt: skip


class PostgresqlDatabase(Model):
    name: str = Field(pattern=r"^[a-z_][a-z0-9_]{0,62}$", description="Name of the database.")
    user: str | None = Field(None, pattern=r"^[a-z_][a-z0-9_]{0,62}$", description="Default: the database's name.")
    extensions: list[str] = Field([], description="Extensions made in the database.")
    password: Name | None = Field(None, description="A secret of this service; without one, peer authentication.")
    member_of: list[PredefinedRole] = Field(
        [], description="Predefined roles of PostgreSQL that the user is a member of, and of no others."
    )


class MariadbDatabase(Model):
    name: str = Field(pattern=r"^[a-z_][a-z0-9_]{0,62}$", description="Name of the database.")
    user: str | None = Field(None, description="Default: the database's name.")
    password: Name | None = Field(None, description="A secret of this service.")


class RedisDatabase(Model):
    index: int = Field(0, ge=0, le=15, description="Number of the database.")


class Database(Model):
    postgresql: PostgresqlDatabase | None = Field(None, description="A PostgreSQL database.")
    mariadb: MariadbDatabase | None = Field(None, description="A MariaDB database.")
    redis: RedisDatabase | None = Field(None, description="A redis database.")


class Mqtt(Model):
    user: Name = Field(description="Name of the user at the broker.")
    password: Name = Field("mqtt_password", description="The name of the secret with the password.")
    acl: list[t.Annotated[str, Field(pattern=r"^(read|write|readwrite|deny) \S+$")]] = Field(
        [], description="Access to topics: a right and a topic."
    )


class GenerateLength(Model):
    length: int = Field(32, ge=8, le=4096, description="Number of characters.")
    charset: t.Literal["hex", "alphanumeric", "base64", "digits"] = Field(
        "alphanumeric", description="Which characters."
    )


class GenerateKeypair(Model):
    keypair: t.Literal["ssh-ed25519", "wireguard"] = Field(description="Kind of the key pair.")


class Deliver(Model):
    environment: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Name of an environment variable; only for a container that reads nothing else.",
    )
    file: AbsolutePath | None = Field(None, description="A file 0400 of the service's user (in a container: its path).")
    credential: str | None = Field(None, pattern=r"^[A-Za-z0-9_.-]+$", description="A systemd credential.")

    @model_validator(mode="after")
    def _one(self) -> Deliver:
        if sum(value is not None for value in (self.environment, self.file, self.credential)) != 1:
            _fail("a delivery", "exactly one of environment, file and credential")
        return self


class SecretSpec(Model):
    kind: t.Literal["access", "data"] = Field(
        description="`data` encrypts data or pairs devices: never rotated lightly."
    )
    generate: GenerateLength | GenerateKeypair | None = Field(
        None, description="How `make secrets` makes it; without: the owner writes it."
    )
    deliver: Deliver | None = Field(None, description="Without: only templates use it.")


# --- files, timers, configuration ------------------------------------------------------------------------------------


class ValidateSpec(Model):
    argv: list[Text] = Field(min_length=1, description="The program that reads the file, and its arguments.")
    covers: list[str] = Field([], description="Further paths it reads: exact, or a prefix ending in /.")
    user: str = Field("root", description="The user that runs it.")


def _validate(value: t.Any) -> t.Any:
    return {"argv": value} if isinstance(value, list) and value else None if value == [] else value


class FileSpec(Model):
    path: AbsolutePath = Field(description="Where it lies.")
    template: str | None = Field(None, description="A file below the role's templates/.")
    content: str | None = Field(None, description="The content itself.")
    owner: str | None = Field(None, description="Default: root; for create_only files the service's user.")
    group: str | None = Field(None, description="Default: the service's group for files of its user, else root.")
    mode: Mode = Field("0644", description="Mode, in quotes.")
    validate_: t.Annotated[ValidateSpec | None, BeforeValidator(_validate)] = Field(
        None, alias="validate", description="The program that reads it before it replaces anything."
    )
    create_only: bool = Field(False, description="The application owns it once it exists.")
    on_change: t.Literal["restart", "reload", "none"] | None = Field(None, description="Default: as the unit says.")
    early: bool = Field(False, description="Placed before packages are installed.")

    @model_validator(mode="after")
    def _one(self) -> FileSpec:
        if (self.template is None) == (self.content is None):
            _fail("a file", "exactly one of template and content")
        return self


class TimerSpec(Model):
    calendar: str = Field(description="systemd.time(7) calendar expression.")
    argv: list[Text] = Field(min_length=1, description="The command and its arguments, without a shell.")
    user: str | None = Field(None, description="Default: the service's user.")
    random_delay: Duration = Field(0, description="Longest random delay (RandomizedDelaySec=).")
    persistent: bool = Field(True, description="Whether a missed run is made up for.")
    timeout: Duration = Field(3600, description="How long a run may take.")


class Api(Model):
    """How an application's HTTP API is asked by the host itself, for ``configure`` requests."""

    port: Name = Field("http", description="The name of a `listen` entry.")
    header: str = Field("X-Api-Key", pattern=r"^[A-Za-z0-9-]+$", description="The header that carries the secret.")
    secret: Name | None = Field(None, description="A secret of this service; without one the API asks for none.")


class ConfigureRequest(Model):
    """One object that only an application's API can make, in a collection of such objects (a JSON list)."""

    name: Name = Field(description="Name of the request, unique in the contribution.")
    service: Name | None = Field(
        None, description="Another service whose API it is; nothing is done where the host has no such service."
    )
    request: str = Field(
        pattern=r"^/[A-Za-z0-9/._~-]+$", description="Path of the collection, such as /api/v1/applications."
    )
    match: str = Field("name", description="The key by which an existing object is found.")
    desired: dict[str, t.Any] = Field(description="What the object shall have; everything else of it is left alone.")
    method_create: t.Literal["POST", "PUT"] = Field("POST", description="Method that makes an object.")
    method_update: t.Literal["PUT", "PATCH", "POST"] = Field("PUT", description="Sent to REQUEST/ID, the whole object.")
    headers: dict[str, Text] = Field({}, description="Further headers.")
    ignore: list[str] = Field([], description="Keys that are only said when the object is made.")

    @model_validator(mode="after")
    def _matched(self) -> ConfigureRequest:
        if not isinstance(self.desired.get(self.match), str | int):
            _fail(f"configure {self.name}: desired has no {self.match!r}", "a text or number by which it is found")
        return self


# --- health and observability ----------------------------------------------------------------------------------------


class HealthHttp(Model):
    port: Name = Field(description="The name of a `listen` entry.")
    path: str = Field("/", description="Path of the check.")
    status: int = Field(200, ge=100, le=599, description="Status that means healthy.")
    headers: dict[str, Text] = Field({}, description="Headers of the request.")


class HealthTcp(Model):
    port: Name = Field(description="The name of a `listen` entry.")


class HealthCommand(Model):
    argv: list[Text] = Field(min_length=1, description="A command that exits with 0 when the service is healthy.")
    user: str = Field("root", description="The user that runs it.")


class Health(Model):
    http: HealthHttp | None = Field(None, description="A request that must be answered.")
    tcp: HealthTcp | None = Field(None, description="A port that must accept connections.")
    command: HealthCommand | None = Field(None, description="A command that must succeed.")
    start_period: Duration = Field(60, description="How long the service may take to become healthy.")
    timeout: Duration = Field(5, description="How long one check may take.")


class Metrics(Model):
    port: Name = Field(description="The name of a `listen` entry.")
    path: str = Field("/metrics", description="Path of the metrics.")
    interval: Duration = Field(60, description="Time between two scrapes.")
    timeout: Duration = Field(10, description="How long a scrape may take.")
    labels: dict[str, Text] = Field({}, description="Further labels of the target.")
    params: dict[str, list[Text]] = Field({}, description="Query parameters of the scrape.")


class Alert(Model):
    alert: str = Field(pattern=r"^[A-Z][A-Za-z0-9]*$", description="Name of the alert.")
    expr: str = Field(description="PromQL expression.")
    for_: Duration = Field(0, alias="for", description="How long it must hold before it fires.")
    severity: t.Literal["critical", "high", "medium", "low"] = Field(description="Where it is sent and how soon.")
    summary: str = Field(description="One line for people.")
    description: str = Field("", description="What it means.")
    runbook: str = Field("", description="What a person does about it.")
    labels: dict[str, Text] = Field({}, description="Further labels.")
    unit: UnitName | None = Field(None, description="The unit the expression names: must be in the plan.")


class DataSource(Model):
    type: str = Field(description="Grafana's plugin for it: prometheus, loki, postgres ...")
    uid: Name | None = Field(None, description="What dashboards call it; default: the service's name.")
    name: str | None = Field(None, description="What people read; default: its uid.")
    port: Name = Field("http", description="The name of a `listen` entry.")
    path: str = Field("", pattern=r"^(/[^\s]*)?$", description="Path below the address.")
    default: bool = Field(False, description="Used where a dashboard names none.")
    options: dict[str, t.Any] = Field({}, description="Its settings (jsonData).")
    secure_options: dict[str, Text] = Field({}, description="Its secret settings (secureJsonData).")


class Grafana(Model):
    dashboards: list[RelativePath] = Field(
        [], description="Dashboards, JSON with uid and title, below the role's files/."
    )
    datasources: list[DataSource] = Field([], description="What the service is to Grafana as a source of data.")


class Dashboard(Model):
    group: str = Field(description="Heading on the start page.")
    name: str | None = Field(None, description="Default: the service's name.")
    icon: str | None = Field(None, description="Name of its icon.")
    description: str = Field("", description="One line below the name.")
    widget: dict[str, t.Any] = Field({}, description="Widget of the start page.")


Priority = t.Literal["critical", "high", "medium", "low", "none"]


class Notify(Model):
    failure: Priority = Field("high", description="Priority of a failed unit.")
    backup: Priority = Field("medium", description="Priority of a failed backup.")
    success: Priority = Field("none", description="Priority of a success.")


class Person(Model):
    """A login user of hosts; passwords only ever come from secrets."""

    keys: list[str] = Field([], description="SSH public keys.")
    id: int | None = Field(None, ge=1000, le=59999, description="The fixed user id.")
    groups: list[str] = Field([], description="Further groups.")
    shell: AbsolutePath = Field("/bin/bash", description="Login shell.")
    comment: str = Field("", description="Full name or remark.")
    sudo: t.Literal["none", "nopasswd"] = Field("none", description="Whether the person may become root.")
    hosts: list[str] = Field(["all"], description="Hosts or groups on which the person has a login; [] for none.")


class System(Model):
    """Only for core roles."""

    sysctl: dict[str, Text] = Field({}, description="Kernel parameters.")
    modules: list[str] = Field([], description="Kernel modules that are loaded.")
    apt_sources: list[AptSource] = Field([], description="Further apt repositories.")
    hostname: str | None = Field(None, pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", description="Name of the host.")
    timezone: str | None = Field(None, description="Time zone of the host.")
    locale: str | None = Field(None, description="Locale of the host.")
    people: dict[str, Person] = Field({}, description="Login users.")


class Upgrade(Model):
    reversible: bool = Field(False, description="Whether an older program may run on data that a newer one wrote.")
    notes: str = Field("", description="What people should know before an upgrade.")


Contract = t.Literal[
    "route", "metrics", "alerts", "notify", "firewall", "container", "people", "postgresql", "mariadb", "redis",
    "mqtt", "oidc", "grafana", "dashboard", "status", "smtp", "names", "mesh", "time",
]  # fmt: skip


class Contribution(Model):
    """Everything that one service needs."""

    schema_: t.Literal[1] = Field(1, alias="schema", description="Version of the schema.")
    summary: str = Field(min_length=3, max_length=120, description="What the service is, in a few words.")
    tier: Tier = Field(description="When it is applied.")
    run: Run = Field(description="How it runs.")
    category: str = Field("other", description="Group of services, for pages.")
    platforms: list[t.Literal["debian/amd64", "debian/arm64", "darwin/arm64"]] = Field(
        ["debian/amd64", "debian/arm64"], description="Where it can run."
    )
    provides: dict[Contract, str] = Field({}, description="Contracts that this service fulfils, and the renderer.")
    user: UserSpec | None = Field(None, description="The user it runs as.")
    listen: dict[Name, Listen] = Field({}, description="Ports by name.")
    networks: list[Name] = Field([], description="Container networks it joins.")
    storage: dict[Name, StorageSpec] = Field({}, description="Data by name.")
    mounts: dict[Name, MountSpec] = Field({}, description="Directories of the host that are not its own data.")
    protect: Protect | None = Field(None, description="How its data is protected.")
    backup: Backup = Field(Backup(), description="What a backup of it needs.")
    version: Version = Field(Version(), description="Where its data says its version.")
    route: Route | None = Field(None, description="Its name in the browser.")
    oidc: Oidc | None = Field(None, description="Its client at the identity provider.")
    database: Database = Field(Database(), description="Its databases.")
    mqtt: Mqtt | None = Field(None, description="Its user at the MQTT broker.")
    secrets: dict[Name, SecretSpec] = Field({}, description="Its secrets by name.")
    files: list[FileSpec] = Field([], description="Configuration files.")
    timers: dict[Name, TimerSpec] = Field({}, description="Jobs by name.")
    api: Api | None = Field(None, description="How its HTTP API is asked, for `configure`.")
    configure: list[ConfigureRequest] = Field([], description="Objects that only its API can make.")
    health: Health = Field(Health(), description="When it is healthy.")
    metrics: Metrics | None = Field(None, description="Where Prometheus reads its metrics.")
    alerts: list[Alert] = Field([], description="Alerts beyond the ones that every service gets.")
    grafana: Grafana | None = Field(None, description="Dashboards and data sources.")
    dashboard: Dashboard | None = Field(None, description="Its entry on the start page.")
    notify: Notify = Field(Notify(), description="Priorities of its notifications.")
    smtp: bool = Field(False, description="Whether it sends mail.")
    external: dict[Name, list[str]] = Field(
        {},
        description="What its options make it call that is not a URL in an option's value: option -> HOST with or without a "
        "port, or URLs. Hosts with `hearth_external: false` refuse what does not lead inside, as they do URLs in options.",
    )
    persist: list[AbsolutePath] = Field([], description="Paths to keep on hosts whose root is not kept.")
    system: System = Field(System(), description="Settings of the whole host; only in tier core.")
    requires: list[Name] = Field([], description="Services that must run before it.")
    wants: list[Name] = Field(
        [], description="Services that start before it where they exist, and with it where they are containers."
    )
    renamed_from: list[Name] = Field([], description="Earlier names of the service.")
    upgrade: Upgrade = Field(Upgrade(), description="What an upgrade may do.")

    def _datasources(self) -> t.Iterator[tuple[int, DataSource]]:
        return enumerate(self.grafana.datasources if self.grafana else ())

    @model_validator(mode="after")
    def _references(self) -> Contribution:
        """References within one contribution; those to other services are checked for the whole fleet."""
        ports = ", ".join(sorted(self.listen)) or "none: there is no listen entry"
        for key, value in (
            ("route.to", self.route and self.route.to),
            ("metrics.port", self.metrics and self.metrics.port),
            ("health.http.port", self.health.http and self.health.http.port),
            ("health.tcp.port", self.health.tcp and self.health.tcp.port),
            ("api.port", self.api and self.api.port),
            *((f"grafana.datasources.{index}.port", entry.port) for index, entry in self._datasources()),
        ):
            if value and value not in self.listen:
                _fail(f"{key} names the listen entry {value!r} that does not exist", ports)
        postgresql = self.database.postgresql
        if postgresql and postgresql.password and postgresql.password not in self.secrets:
            _fail(
                f"database.postgresql.password names the secret {postgresql.password!r} that does not exist",
                ", ".join(sorted(self.secrets)) or "none: there is no secret",
            )
        if self.api and self.api.secret and self.api.secret not in self.secrets:
            _fail(
                f"api.secret names the secret {self.api.secret!r} that does not exist",
                ", ".join(sorted(self.secrets)) or "none: there is no secret",
            )
        if self.api is None and any(request.service is None for request in self.configure):
            _fail("`configure` of the service itself without `api`", "api: {port: ..., secret: ...}")
        names = [request.name for request in self.configure]
        if len(set(names)) != len(names):
            _fail("two `configure` requests of one name", "a name of its own for each")
        if self.mqtt and self.mqtt.password not in self.secrets:
            _fail(
                f"mqtt.password names the secret {self.mqtt.password!r} that does not exist",
                ", ".join(sorted(self.secrets)) or "none: there is no secret",
            )
        shown = sorted(key for key, spec in self.secrets.items() if spec.deliver and spec.deliver.environment)
        if shown and self.run.container is None:
            _fail(
                f"the secret {shown[0]} in the environment of a native service, where its whole process tree and /proc show it",
                "deliver: {credential: NAME} or {file: PATH}; environment is for containers",
            )
        if self.tier != "core" and self.system != System():
            _fail("`system` in a service that is not of tier core", "tier: core")
        if self.run.container and self.user is None and self.run.container.run_as == "user":
            _fail("a container that runs as the service's user, without `user`", "user, or run.container.run_as: image")
        return self


# --- inventory -------------------------------------------------------------------------------------------------------


class ServiceEntry(Model):
    """One entry of ``hearth_services``."""

    enabled: bool = Field(True, description="False switches the service off for these hosts.")
    role: Name | None = Field(None, description="The role; default: the name of the entry.")
    options: dict[str, t.Any] = Field(
        {}, description="Options of the role for this instance, without the role's prefix."
    )
    override: dict[str, t.Any] = Field({}, description="Merged over the contribution; null removes a contract.")
    contribution: dict[str, t.Any] | None = Field(None, description="An inline contribution instead of a role.")

    @model_validator(mode="after")
    def _one(self) -> ServiceEntry:
        if self.contribution is not None and self.role is not None:
            _fail("both role and contribution", "a role, or an inline contribution")
        return self


class Addresses(Model):
    lan: list[str] | str | None = Field(None, description="Addresses in the local network.")
    wan: list[str] | str | None = Field(None, description="Addresses on the internet.")
    mesh: str | None = Field(None, description="Address in the mesh, or auto.")


class Platform(Model):
    """What a host is, declared by groups and checked against the host."""

    system: t.Literal["debian", "darwin"] = Field("debian", description="Operating system.")
    release: str = Field("13", description="Release of the operating system.")
    architecture: t.Literal["amd64", "arm64"] = Field("amd64", description="Processor architecture.")


class Zone(Model):
    networks: list[Network] = Field([], description="Networks of the zone.")
    interfaces: list[str] = Field([], description="Interfaces of the zone.")


class ContainerNetwork(Model):
    subnet: Network | None = Field(None, description="Subnet; default: podman's choice.")
    internal: bool = Field(False, description="No way out of the network.")


class Acme(External):
    email: str = Field(description="Address for the account.")
    directory: str = Field("https://acme-v02.api.letsencrypt.org/directory", description="The ACME server.")

    def addresses(self) -> list[str]:
        return [self.directory]


class Certificates(Model):
    issuer: t.Literal["internal", "acme"] = Field("internal", description="Who signs the certificates.")
    acme: Acme | None = Field(None, description="The ACME account.")

    @model_validator(mode="after")
    def _acme(self) -> Certificates:
        if self.issuer == "acme" and self.acme is None:
            _fail("issuer acme without acme", "acme: {email: ...}")
        return self


def _certificates(value: t.Any) -> t.Any:
    return {"issuer": value} if isinstance(value, str) else value


class Zfs(Model):
    """ZFS on a host that has a pool. Without it storage is directories."""

    services: t.Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.:-]*(/[A-Za-z0-9_.:-]+)*$")] = Field(
        description="The dataset below which every service's storage gets its own, such as tank/services."
    )


class Ids(Model):
    users: dict[str, int] = Field({}, description="User name -> id.")
    groups: dict[str, int] = Field({}, description="Group name -> id.")


class Receiver(External):
    """Where alerts go."""

    webhook: str | None = Field(None, description="Address that alerts are posted to.")
    email: str | None = Field(None, description="Mail address.")
    severities: list[t.Literal["critical", "high", "medium", "low"]] = Field(
        ["critical", "high", "medium", "low"], description="Severities that it gets."
    )

    def addresses(self) -> list[str]:
        # What carries a mail on is the relay's business; the domain that it ends up in is named here.
        return [*([self.webhook] if self.webhook else []), *([self.email.rpartition("@")[2]] if self.email else [])]


class CoreVariables(Model):
    """The ``hearth_*`` variables of one host (``hearth_services`` is read layer by layer, not from here)."""

    hearth_domain: str | None = Field(None, pattern=r"^[a-z0-9-]+(\.[a-z0-9-]+)*$", description="No default.")
    hearth_timezone: str = Field("Etc/UTC", description="Time zone.")
    hearth_locale: str = Field("C.UTF-8", description="Locale.")
    hearth_platform: Platform = Field(Platform(), description="What the host is.")
    hearth_addresses: Addresses = Field(Addresses(), description="Where other hosts reach this one.")
    hearth_access: dict[Name, list[Name]] = Field({}, description="Access groups: group name -> people.")
    hearth_people: dict[str, Person] = Field({}, description="Login users by name.")
    hearth_zones: dict[Name, Zone] = Field(
        {}, description="Networks by zone; wan, lan, mesh and containers always exist."
    )
    hearth_networks: dict[Name, ContainerNetwork] = Field({}, description="Container networks.")
    hearth_groups: dict[str, int] = Field({"media": 2900}, description="Groups that services share: name -> id.")
    hearth_media: AbsolutePath = Field("/srv/media", description="Where media lie, usually below a declared mount.")
    hearth_meshes: dict[Name, dict[str, t.Any]] = Field({}, description="Meshes by name.")
    hearth_exclusive: list[t.Literal["users", "keys", "services"]] = Field(
        [], description="Kinds of which nothing but what is declared may exist."
    )
    hearth_certificates: t.Annotated[Certificates, BeforeValidator(_certificates)] = Field(
        Certificates(), description="Who signs the certificates of routes."
    )
    hearth_zfs: Zfs | None = Field(None, description="ZFS: where the datasets of services are.")
    hearth_ids: Ids = Field(Ids(), description="Ids that differ from the roles'.")
    hearth_image_overrides: dict[str, str] = Field({}, description="Reference or its prefix -> stand-in.")
    hearth_protect_accept: dict[t.Literal["offsite", "onsite"], str] = Field(
        {}, description="Protection tiers that are missing on purpose, each with the reason."
    )
    hearth_ignore: list[str] = Field([], description="Names or patterns of variables not to warn about.")
    hearth_receivers: dict[Name, Receiver] = Field({}, description="Where alerts go, by name.")
    hearth_external: bool = Field(True, description="False in the lab: nothing outside may be called.")
    hearth_secrets: AbsolutePath | None = Field(None, description="Default: secrets/ beside the inventory.")


#: Zones that exist in every fleet.
ZONES: tuple[str, ...] = ("wan", "lan", "mesh", "containers")
#: Words for ``route.access`` that are not groups.
OPEN_ACCESS: tuple[str, ...] = ("application", "public")
