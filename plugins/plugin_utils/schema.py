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
except ImportError as error:  # pragma: no cover - said in words by the action plugins
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


# --- run -------------------------------------------------------------------------------------------------------------


class Container(Model):
    """A podman quadlet."""

    image: str = Field(description="Reference with a tag or digest; never `latest`.")
    reason: str = Field(min_length=3, description="Why this is not native: native packages are preferred.")
    environment: dict[str, Text] = Field({}, description="Environment without secrets.")
    command: list[Text] = Field([], description="Arguments of the entry point.")
    entrypoint: str | None = None
    devices: list[str] = Field([], description="Host devices, such as /dev/dri.")
    capabilities: list[str] = Field([], description="Capabilities added; all others are dropped.")
    read_only: bool = Field(True, description="The image's root file system is read-only.")
    tmpfs: list[AbsolutePath] = Field([], description="Writable temporary directories in the container.")
    volumes: list[str] = Field([], description="Further `host:container[:options]` binds that are not data.")
    labels: dict[str, Text] = {}
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

    name: UnitName
    enabled: bool | None = Field(True, description="null: static or left alone.")
    running: bool | None = Field(True, description="null: left alone (a oneshot that a timer starts).")
    on_change: t.Literal["restart", "reload"] = Field(
        "restart", description="What a changed configuration file asks for, where the file does not say otherwise."
    )
    drop_in: bool = Field(True, description="Hearth's drop-in: hardening, restart policy, limits, gate.")
    guarded: bool = Field(False, description="A change may cut the controller off: taken back unless confirmed.")


class AptSource(Model):
    """A vendor's apt repository."""

    url: str
    suite: str
    components: list[str] = ["main"]
    key_url: str = Field(description="Where the signing key is published.")
    fingerprint: str = Field(pattern=r"^[0-9A-F]{40}$", description="The key's full fingerprint.")
    architectures: list[str] = []


class Initialize(Model):
    """A command that makes a native service's first data, run once on new storage."""

    argv: list[Text] = Field(min_length=1)
    creates: AbsolutePath = Field(description="Exists when it has run.")
    user: str = "root"
    storage: Name = "state"


def _units(value: t.Any) -> t.Any:
    return (
        [{"name": entry} if isinstance(entry, str) else entry for entry in value] if isinstance(value, list) else value
    )


class Native(Model):
    """Debian packages with their units; without units it is configuration only."""

    packages: list[str] = []
    replaces: list[str] = Field([], description="Packages that the installation may remove.")
    units: t.Annotated[list[UnitSpec], BeforeValidator(_units)] = []
    repository: AptSource | None = None
    environment: dict[str, Text] = Field({}, description="Environment of all units, without secrets.")
    initialize: Initialize | None = None
    hardening: dict[str, bool | Text | list[Text]] = Field(
        {}, description="systemd sandbox options that differ from Hearth's defaults, such as {PrivateDevices: false}."
    )
    unit_options: dict[str, Text | list[Text]] = Field({}, description="Further [Service] options of all units.")


class Resources(Model):
    memory_max: Size | None = None
    memory_high: Size | None = None
    cpu_weight: int | None = Field(None, ge=1, le=10000)
    cpu_quota: str | None = Field(None, pattern=r"^\d+%$")
    tasks_max: int | None = Field(None, ge=1)
    io_weight: int | None = Field(None, ge=1, le=10000)


class Run(Model):
    container: Container | None = None
    native: Native | None = None
    resources: Resources = Resources()
    stop_timeout: Duration = 90
    restart: t.Literal["on-failure", "always", "no"] = "on-failure"

    @model_validator(mode="after")
    def _one(self) -> Run:
        if (self.container is None) == (self.native is None):
            _fail("neither or both of container and native", "exactly one of run.container and run.native")
        return self


# --- identity, network, storage --------------------------------------------------------------------------------------


class UserSpec(Model):
    name: str = Field(pattern=r"^[a-z_][a-z0-9_-]{0,31}$")
    id: int = Field(ge=1, le=59999, description="The fixed user and group id; `hearth_ids` of the inventory wins.")
    group: str | None = Field(None, description="The primary group, if it is not called as the user.")
    groups: list[str] = []
    umask: t.Annotated[str, BeforeValidator(_mode)] = "0022"
    home: AbsolutePath | None = None
    shared: bool = Field(False, description="Other services may use the same user.")


Address = t.Literal["loopback", "lan", "mesh", "any"]


class Listen(Model):
    port: Port
    container_port: Port | None = None
    protocol: list[t.Literal["tcp", "udp"]] = Field(["tcp"], min_length=1)
    address: Address = Field("loopback", description="Where the program listens.")
    from_: list[str] = Field(
        [],
        alias="from",
        description="Who may connect from outside the host: zones, hosts, groups of hosts, or a contract "
        "(`metrics`: the hosts whose service provides it).",
    )


class StorageSpec(Model):
    mountpoint: AbsolutePath
    target: AbsolutePath | None = Field(None, description="Where a container sees it.")
    owner: str | None = Field(None, description="Default: the service's user.")
    group: str | None = None
    mode: Mode = "0750"
    recordsize: Size = 131072
    compression: str = "zstd"
    quota: Size | t.Literal["none"] = "none"
    properties: dict[str, Text] = {}


class MountSpec(Model):
    source: AbsolutePath = Field(description="A path on the host, usually below a declared mount.")
    target: AbsolutePath | None = None
    access: t.Literal["ro", "rw"] = "ro"


class Protect(Model):
    class_: ProtectionClass = Field(alias="class")
    rpo: Duration | None = None
    rto: Duration | None = None
    empty_start: bool | None = Field(None, description="Exception to the class's rule for new storage.")


class Backup(Model):
    exclude: list[str] = []
    quiesce: dict[t.Literal["sqlite", "postgresql", "command"], list[str]] = {}
    validate_: dict[t.Literal["sqlite", "postgresql", "command"], list[str]] = Field({}, alias="validate")
    tags: list[str] = []


class Version(Model):
    data: dict[t.Literal["sqlite", "file", "command"], list[str]] = {}


# --- exposure --------------------------------------------------------------------------------------------------------


class Bypass(Model):
    path: str | None = None
    prefix: str | None = None
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
    bypass: list[Bypass] = []
    scheme: t.Literal["http", "https"] = "http"
    websocket: bool = True
    max_body: Size | None = None
    headers: dict[str, Text] = {}
    external: bool = False


class Oidc(Model):
    client: Name
    redirect: list[str] = Field(min_length=1)
    groups: list[str] = []
    scopes: list[str] = ["openid", "profile", "email", "groups"]
    public: bool = False


class PostgresqlDatabase(Model):
    name: str = Field(pattern=r"^[a-z_][a-z0-9_]{0,62}$")
    user: str | None = Field(None, pattern=r"^[a-z_][a-z0-9_]{0,62}$", description="Default: the database's name.")
    extensions: list[str] = []
    password: Name | None = Field(None, description="A secret of this service; without one, peer authentication.")


class MariadbDatabase(Model):
    name: str = Field(pattern=r"^[a-z_][a-z0-9_]{0,62}$")
    user: str | None = None
    password: Name | None = None


class RedisDatabase(Model):
    index: int = Field(0, ge=0, le=15)


class Database(Model):
    postgresql: PostgresqlDatabase | None = None
    mariadb: MariadbDatabase | None = None
    redis: RedisDatabase | None = None


class Mqtt(Model):
    user: Name
    password: Name = "mqtt_password"  # noqa: S105 - the name of a secret
    acl: list[t.Annotated[str, Field(pattern=r"^(read|write|readwrite|deny) \S+$")]] = []


class GenerateLength(Model):
    length: int = Field(32, ge=8, le=4096)
    charset: t.Literal["hex", "alphanumeric", "base64", "digits"] = "alphanumeric"


class GenerateKeypair(Model):
    keypair: t.Literal["ssh-ed25519", "wireguard"]


class Deliver(Model):
    environment: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
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
    generate: GenerateLength | GenerateKeypair | None = None
    deliver: Deliver | None = Field(None, description="Without: only templates use it.")


# --- files, timers, configuration ------------------------------------------------------------------------------------


class ValidateSpec(Model):
    argv: list[Text] = Field(min_length=1)
    covers: list[str] = Field([], description="Further paths it reads: exact, or a prefix ending in /.")
    user: str = "root"


def _validate(value: t.Any) -> t.Any:
    return {"argv": value} if isinstance(value, list) and value else None if value == [] else value


class FileSpec(Model):
    path: AbsolutePath
    template: str | None = Field(None, description="A file below the role's templates/.")
    content: str | None = None
    owner: str | None = Field(None, description="Default: root; for create_only files the service's user.")
    group: str | None = None
    mode: Mode = "0644"
    validate_: t.Annotated[ValidateSpec | None, BeforeValidator(_validate)] = Field(None, alias="validate")
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
    argv: list[Text] = Field(min_length=1)
    user: str | None = None
    random_delay: Duration = 0
    persistent: bool = True
    timeout: Duration = 3600


class Api(Model):
    """How an application's HTTP API is asked by the host itself, for ``configure`` requests."""

    port: Name = Field("http", description="The name of a `listen` entry.")
    header: str = Field("X-Api-Key", pattern=r"^[A-Za-z0-9-]+$", description="The header that carries the secret.")
    secret: Name | None = Field(None, description="A secret of this service; without one the API asks for none.")


class ConfigureRequest(Model):
    """One object that only an application's API can make, in a collection of such objects (a JSON list)."""

    name: Name
    service: Name | None = Field(
        None, description="Another service whose API it is; nothing is done where the host has no such service."
    )
    request: str = Field(
        pattern=r"^/[A-Za-z0-9/._~-]+$", description="Path of the collection, such as /api/v1/applications."
    )
    match: str = Field("name", description="The key by which an existing object is found.")
    desired: dict[str, t.Any] = Field(description="What the object shall have; everything else of it is left alone.")
    method_create: t.Literal["POST", "PUT"] = "POST"
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
    port: Name
    path: str = "/"
    status: int = Field(200, ge=100, le=599)
    headers: dict[str, Text] = {}


class HealthTcp(Model):
    port: Name


class HealthCommand(Model):
    argv: list[Text] = Field(min_length=1)
    user: str = "root"


class Health(Model):
    http: HealthHttp | None = None
    tcp: HealthTcp | None = None
    command: HealthCommand | None = None
    start_period: Duration = 60
    timeout: Duration = 5


class Metrics(Model):
    port: Name = Field(description="The name of a `listen` entry.")
    path: str = "/metrics"
    interval: Duration = 60
    timeout: Duration = 10
    labels: dict[str, Text] = {}
    params: dict[str, list[Text]] = {}


class Alert(Model):
    alert: str = Field(pattern=r"^[A-Z][A-Za-z0-9]*$")
    expr: str
    for_: Duration = Field(0, alias="for")
    severity: t.Literal["critical", "high", "medium", "low"]
    summary: str
    description: str = ""
    runbook: str = Field("", description="What a person does about it.")
    labels: dict[str, Text] = {}
    unit: UnitName | None = Field(None, description="The unit the expression names: must be in the plan.")


class Grafana(Model):
    dashboards: list[str] = []
    datasources: list[dict[str, t.Any]] = []


class Dashboard(Model):
    group: str
    name: str | None = None
    icon: str | None = None
    description: str = ""
    widget: dict[str, t.Any] = {}


Priority = t.Literal["critical", "high", "medium", "low", "none"]


class Notify(Model):
    failure: Priority = "high"
    backup: Priority = "medium"
    success: Priority = "none"


class Person(Model):
    """A login user of hosts; passwords only ever come from secrets."""

    keys: list[str] = Field([], description="SSH public keys.")
    id: int | None = Field(None, ge=1000, le=59999)
    groups: list[str] = []
    shell: AbsolutePath = "/bin/bash"
    comment: str = ""
    sudo: t.Literal["none", "nopasswd"] = "none"
    hosts: list[str] = Field(["all"], description="Hosts or groups on which the person has a login; [] for none.")


class System(Model):
    """Only for core roles."""

    sysctl: dict[str, Text] = {}
    modules: list[str] = []
    apt_sources: list[AptSource] = []
    hostname: str | None = Field(None, pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
    timezone: str | None = None
    locale: str | None = None
    people: dict[str, Person] = {}


class Upgrade(Model):
    reversible: bool = False
    notes: str = ""


Contract = t.Literal[
    "route", "metrics", "alerts", "notify", "firewall", "container", "people", "postgresql", "mariadb", "redis",
    "mqtt", "oidc", "grafana", "dashboard", "status", "smtp", "names", "mesh", "time",
]  # fmt: skip


class Contribution(Model):
    """Everything that one service needs."""

    schema_: t.Literal[1] = Field(1, alias="schema")
    summary: str = Field(min_length=3, max_length=120)
    tier: Tier
    run: Run
    category: str = "other"
    platforms: list[t.Literal["debian/amd64", "debian/arm64", "darwin/arm64"]] = ["debian/amd64", "debian/arm64"]
    provides: dict[Contract, str] = Field({}, description="Contracts that this service fulfils, and the renderer.")
    user: UserSpec | None = None
    listen: dict[Name, Listen] = {}
    networks: list[Name] = []
    storage: dict[Name, StorageSpec] = {}
    mounts: dict[Name, MountSpec] = {}
    protect: Protect | None = None
    backup: Backup = Backup()
    version: Version = Version()
    route: Route | None = None
    oidc: Oidc | None = None
    database: Database = Database()
    mqtt: Mqtt | None = None
    secrets: dict[Name, SecretSpec] = {}
    files: list[FileSpec] = []
    timers: dict[Name, TimerSpec] = {}
    api: Api | None = None
    configure: list[ConfigureRequest] = []
    health: Health = Health()
    metrics: Metrics | None = None
    alerts: list[Alert] = []
    grafana: Grafana | None = None
    dashboard: Dashboard | None = None
    notify: Notify = Notify()
    smtp: bool = False
    persist: list[AbsolutePath] = []
    system: System = System()
    requires: list[Name] = []
    wants: list[Name] = []
    renamed_from: list[Name] = []
    upgrade: Upgrade = Upgrade()

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
        if self.tier != "core" and self.system != System():
            _fail("`system` in a service that is not of tier core", "tier: core")
        if self.run.container and self.user is None and self.run.container.run_as == "user":
            _fail("a container that runs as the service's user, without `user`", "user, or run.container.run_as: image")
        return self


# --- inventory -------------------------------------------------------------------------------------------------------


class ServiceEntry(Model):
    """One entry of ``hearth_services``."""

    enabled: bool = True
    role: Name | None = None
    options: dict[str, t.Any] = {}
    override: dict[str, t.Any] = {}
    contribution: dict[str, t.Any] | None = None

    @model_validator(mode="after")
    def _one(self) -> ServiceEntry:
        if self.contribution is not None and self.role is not None:
            _fail("both role and contribution", "a role, or an inline contribution")
        return self


class Addresses(Model):
    lan: list[str] | str | None = None
    wan: list[str] | str | None = None
    mesh: str | None = None


class Platform(Model):
    """What a host is, declared by groups and checked against the host."""

    system: t.Literal["debian", "darwin"] = "debian"
    release: str = "13"
    architecture: t.Literal["amd64", "arm64"] = "amd64"


class Zone(Model):
    networks: list[Network] = []
    interfaces: list[str] = []


class ContainerNetwork(Model):
    subnet: Network | None = None
    internal: bool = Field(False, description="No way out of the network.")


class Acme(Model):
    email: str
    directory: str = Field("https://acme-v02.api.letsencrypt.org/directory", description="The ACME server.")


class Certificates(Model):
    issuer: t.Literal["internal", "acme"] = "internal"
    acme: Acme | None = None

    @model_validator(mode="after")
    def _acme(self) -> Certificates:
        if self.issuer == "acme" and self.acme is None:
            _fail("issuer acme without acme", "acme: {email: ...}")
        return self


def _certificates(value: t.Any) -> t.Any:
    return {"issuer": value} if isinstance(value, str) else value


class Ids(Model):
    users: dict[str, int] = {}
    groups: dict[str, int] = {}


class Receiver(Model):
    """Where alerts go. `external` marks a target outside the lab, which lab hosts refuse."""

    webhook: str | None = None
    email: str | None = None
    external: bool = True
    severities: list[t.Literal["critical", "high", "medium", "low"]] = ["critical", "high", "medium", "low"]


class CoreVariables(Model):
    """The ``hearth_*`` variables of one host (``hearth_services`` is read layer by layer, not from here)."""

    hearth_domain: str | None = Field(None, pattern=r"^[a-z0-9-]+(\.[a-z0-9-]+)*$", description="No default.")
    hearth_timezone: str = "Etc/UTC"
    hearth_locale: str = "C.UTF-8"
    hearth_platform: Platform = Platform()
    hearth_addresses: Addresses = Addresses()
    hearth_access: dict[Name, list[Name]] = Field({}, description="Access groups: group name -> people.")
    hearth_people: dict[str, Person] = {}
    hearth_zones: dict[Name, Zone] = {}
    hearth_networks: dict[Name, ContainerNetwork] = {}
    hearth_groups: dict[str, int] = Field({"media": 2900}, description="Groups that services share: name -> id.")
    hearth_media: AbsolutePath = "/srv/media"
    hearth_meshes: dict[Name, dict[str, t.Any]] = {}
    hearth_exclusive: list[t.Literal["users", "keys", "services"]] = []
    hearth_certificates: t.Annotated[Certificates, BeforeValidator(_certificates)] = Certificates()
    hearth_ids: Ids = Ids()
    hearth_image_overrides: dict[str, str] = Field({}, description="Reference or its prefix -> stand-in.")
    hearth_protect_accept: dict[t.Literal["offsite", "onsite"], str] = {}
    hearth_ignore: list[str] = Field([], description="Names or patterns of variables not to warn about.")
    hearth_receivers: dict[Name, Receiver] = {}
    hearth_external: bool = Field(True, description="False in the lab: targets marked external are refused.")
    hearth_secrets: AbsolutePath | None = Field(None, description="Default: secrets/ beside the inventory.")


#: Zones that exist in every fleet.
ZONES: tuple[str, ...] = ("wan", "lan", "mesh", "containers")
#: Words for ``route.access`` that are not groups.
OPEN_ACCESS: tuple[str, ...] = ("application", "public")
