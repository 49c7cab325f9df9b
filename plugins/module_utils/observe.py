# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is true on the host now, for exactly the items of a manifest and of the generation before it.

One batched query per kind, only for kinds that are asked for; the queries are separate programs and run side by
side. Nothing is remembered from earlier runs and nothing is changed. A query that fails is never "absent": its
message is kept in ``Observed.errors`` and the planner says that the items are unknown.

Standard library only: this module runs on hosts.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import json
import os
import re
import stat
import threading
import time
import typing as t
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ansible_collections.hearth.homelab.plugins.module_utils import configure, scram, zfs_datasets, zfs_storage
from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.module_utils.postgresql import MEMBERSHIPS, RIGHTS, identifier, literal
from ansible_collections.hearth.homelab.plugins.module_utils.protocol import secret_digest
from ansible_collections.hearth.homelab.plugins.module_utils.runner import (
    CommandError,
    Completed,
    Runner,
    System,
    explain,
)
from ansible_collections.hearth.homelab.plugins.module_utils.storage import (
    StorageFacts,
    read_ledger,
    read_storage_facts,
)

#: Seconds for queries of local state, and for what may have to read a large file system.
QUERY_TIMEOUT = 30.0
FIND_TIMEOUT = 15.0

#: Package lists older than this (seconds) prove nothing about a package that is not in them.
LISTS_AGE = 3600.0

#: At most this many files are counted for a user or group that has another id than planned.
FIND_LIMIT = 1000

#: Where the kernel shows its modules (sysfs).
MODULES = "/sys/module/"

UNIT_PROPERTIES = (
    "Id", "Names", "LoadState", "ActiveState", "SubState", "UnitFileState", "NRestarts", "NeedDaemonReload",
    "FragmentPath", "CanReload", "Result", "DropInPaths",
)  # fmt: skip

#: Reads a stored secret (``SERVICE/KEY``), None when it is not stored.
SecretReader = Callable[[str], "str | None"]


@dataclass(frozen=True)
class UserState:
    """One line of passwd(5); ``group`` is the primary group's name, or its number where it has none."""

    name: str
    uid: int
    gid: int
    group: str
    groups: frozenset[str]
    comment: str
    home: str
    shell: str


@dataclass(frozen=True)
class IdFiles:
    """Files that carry a foreign id: how many, at most FIND_LIMIT; ``complete`` False when there are more or it took
    too long."""

    count: int
    complete: bool
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class PackageState:
    """A package in dpkg's database. ``status`` as in dpkg-query(1) db:Status-Status."""

    status: str
    version: str

    @property
    def installed(self) -> bool:
        return self.status == "installed"


@dataclass(frozen=True)
class AptState:
    """What apt-get would do to install the missing packages.

    ``stale``: why the package lists prove nothing (empty when they are fresh). ``unavailable``: packages that apt
    cannot install, with its message. ``removes``: packages that it would remove. ``message``: why it would do nothing.
    """

    stale: str = ""
    unavailable: Mapping[str, str] = field(default_factory=dict)
    removes: tuple[str, ...] = ()
    message: str = ""


@dataclass(frozen=True)
class FileState:
    """What is at a path: ``type`` is absent, file, directory, symlink, other or error (with ``message``)."""

    type: str = "absent"
    digest: str = ""  # of a regular file that was hashed
    mode: str = ""
    owner: str = ""
    group: str = ""
    target: str = ""  # of a symbolic link
    entries: tuple[str, ...] = ()  # of a directory that may be removed
    message: str = ""


@dataclass(frozen=True)
class UnitState:
    """A unit as ``systemctl show`` describes it; the words are systemd's (systemd(1), systemctl(1))."""

    name: str
    names: frozenset[str] = frozenset()
    load: str = "not-found"
    active: str = "inactive"
    sub: str = "dead"
    file_state: str = ""
    restarts: int = 0
    need_daemon_reload: bool = False
    fragment: str = ""
    can_reload: bool = False
    result: str = ""
    drop_ins: tuple[str, ...] = ()


@dataclass(frozen=True)
class EffectState:
    """What a unit's effect is: as declared or not, None where this host cannot have it; ``found`` says what is there."""

    ok: bool | None
    found: str = ""


@dataclass(frozen=True)
class FirewallState:
    """Whether the live table equals the ruleset file; None with a message when that cannot be told.

    ``exists`` is the live table's; None when it cannot be told."""

    same: bool | None
    exists: bool | None = None
    message: str = ""


@dataclass(frozen=True)
class RoleState:
    """A PostgreSQL role. ``password_matches`` is None where no password is asked for or none is stored. ``rights``
    are attributes that a role of Hearth's never has (postgresql.RIGHTS), ``member_of`` predefined roles."""

    login: bool
    password_matches: bool | None = None
    rights: tuple[str, ...] = ()
    member_of: tuple[str, ...] = ()


@dataclass(frozen=True)
class DatabaseState:
    """A PostgreSQL database with those of its extensions that were asked for."""

    owner: str
    encoding: str
    extensions: frozenset[str] = frozenset()


@dataclass(frozen=True)
class PostgresqlState:
    """The roles and databases of one server; ``error`` when it did not answer."""

    roles: Mapping[str, RoleState] = field(default_factory=dict)
    databases: Mapping[str, DatabaseState] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class Listener:
    """A listening socket. ``units`` are the systemd units of its process, the innermost first, and for a socket of
    systemd itself the socket unit and what it starts. ``pid`` is 0 for a socket of the kernel."""

    protocol: str
    address: str  # "*" is all addresses of both families
    port: int
    process: str = ""
    pid: int = 0
    units: tuple[str, ...] = ()


@dataclass
class Observed:
    """The observed state. Digests of filled files and of secrets never leave the host."""

    release: str = ""
    architecture: str = ""
    hostname: str = ""  # /etc/hostname
    running_hostname: str = ""  # the kernel's
    groups: dict[str, int] = field(default_factory=dict)
    users: dict[str, UserState] = field(default_factory=dict)
    id_files: dict[str, IdFiles] = field(default_factory=dict)  # by item id
    packages: dict[str, PackageState] = field(default_factory=dict)
    apt: AptState | None = None  # None: nothing is missing
    storage: dict[str, StorageFacts] = field(default_factory=dict)
    datasets: zfs_datasets.Current = field(default_factory=zfs_datasets.Current)
    secrets: dict[str, str] = field(default_factory=dict)  # keyed digest of each stored secret
    open_secrets: dict[str, str] = field(default_factory=dict)  # whose files others than root may read or change: why
    files: dict[str, FileState] = field(default_factory=dict)  # files, directories, links and markers by path
    originals: frozenset[str] = frozenset()  # paths that generation 0 keeps
    made_directories: frozenset[str] = frozenset()  # that Hearth made for its files, and nothing declares
    original_units: dict[str, dict[str, bool]] = field(default_factory=dict)  # units that it keeps: active, enabled
    filled: dict[str, str] = field(default_factory=dict)  # template's digest -> digest with this host's secrets
    locales: frozenset[str] = frozenset()
    firewall: dict[str, FirewallState] = field(default_factory=dict)
    images: frozenset[str] = frozenset()  # those of the manifest that are there
    podman_secrets: dict[str, bool] = field(default_factory=dict)  # present -> holds the stored value
    units: dict[str, UnitState] = field(default_factory=dict)
    effects: dict[str, EffectState] = field(default_factory=dict)  # by entry of Unit.effects
    postgresql: dict[str, PostgresqlState] = field(default_factory=dict)  # by provider
    configured: dict[str, configure.ObjectState] = field(default_factory=dict)  # objects of APIs by item name
    listeners: list[Listener] | None = None  # None: not asked for
    errors: dict[str, str] = field(default_factory=dict)  # kind (or "listener", "release") -> message


def observe(
    manifest: m.Manifest,
    previous: m.Manifest | None,
    originals: Mapping[str, t.Any],
    runner: Runner,
    *,
    root: str = "/",
    secret_reader: SecretReader,
    state_dir: str = "/var/lib/hearth",
    nonce: str = "",
    applied: Collection[str] | None = None,
    made_directories: Collection[str] = (),
) -> Observed:
    """The host's state for the items of both manifests.

    ``originals`` are the paths that generation 0 keeps (None as a value: the path did not exist). ``nonce`` is the
    run's, for the keyed digests of secrets. ``applied`` are ids of the items that the run applies (None: all): apt is
    asked for their packages alone, because what others would install or remove is not done. ``made_directories`` are
    those that Hearth made and nothing declares.
    """
    observer = _Observer(manifest, previous, originals, System(runner, root), secret_reader, state_dir, nonce)
    observer.applied, observer.observed.made_directories = applied, frozenset(made_directories)
    return observer.run()


class _Observer:
    def __init__(
        self,
        manifest: m.Manifest,
        previous: m.Manifest | None,
        originals: Mapping[str, t.Any],
        system: System,
        secret_reader: SecretReader,
        state_dir: str,
        nonce: str,
    ) -> None:
        self.manifest, self.previous, self.system = manifest, previous, system
        self.applied: Collection[str] | None = None
        self.secret_reader, self.state_dir, self.nonce = secret_reader, state_dir, nonce
        self.observed = Observed(originals=frozenset(path for path, kept in originals.items() if kept is not None))
        self.wanted: dict[str, list[m.Item]] = {}
        self.all: dict[str, list[m.Item]] = {}
        for item in manifest.items:
            self.wanted.setdefault(item.kind, []).append(item)
            self.all.setdefault(item.kind, []).append(item)
        for item in previous.items if previous else ():
            self.all.setdefault(item.kind, []).append(item)
        self.values: dict[str, str | None] = {}
        self.user_names: dict[int, str] = {}
        self.group_names: dict[int, str] = {}

    def run(self) -> Observed:
        # The accounts first: they give the names of owners. Then programs wait side by side with hashing.
        self._guard("user", self._accounts)
        self._read_secrets()
        jobs: list[tuple[str, Callable[[], None]]] = [("package", self._packages)]
        for kind, job in (
            ("user", self._id_files),
            ("unit", self._units),
            ("locale", self._locales),
            ("firewall", self._firewall),
            ("image", self._images),
            ("podman_secret", self._podman_secrets),
            ("configure", self._configured),
        ):
            if kind in self.all or (kind == "user" and "group" in self.all):
                jobs.append((kind, job))
        for provider in self._providers():
            jobs.append((f"postgresql {provider}", functools.partial(self._postgresql, provider)))
        threads = [_Job(self._guard, kind, job) for kind, job in jobs]
        for thread in threads:
            thread.start()
        self._guard("release", self._identity)
        self._guard("storage", self._storage)
        self._guard("file", self._files)
        self._guard("effect", self._effects)
        for thread in threads:
            thread.finish()
        return self.observed

    def _guard(self, kind: str, job: Callable[[], None]) -> None:
        """Run one query; a failure is kept as the kind's message."""
        try:
            job()
        except CommandError as error:
            self.observed.errors[kind] = str(error)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            self.observed.errors[kind] = f"{where}{error.strerror or error}"
        except ValueError as error:
            self.observed.errors[kind] = str(error)

    def _run(self, argv: Sequence[str], **options: t.Any) -> Completed:
        options.setdefault("timeout", QUERY_TIMEOUT)
        return self.system.runner.run(argv, **options)

    def _names(self, kind: str) -> list[str]:
        return sorted({item.name for item in self.all.get(kind, ())})

    # -- the host itself ----------------------------------------------------------------------------------------

    def _identity(self) -> None:
        fields = parse_assignments(self.system.text("/etc/os-release") or self.system.text("/usr/lib/os-release") or "")
        if not fields.get("ID"):
            raise ValueError("/etc/os-release does not say what this host runs")
        self.observed.release = fields["ID"] + fields.get("VERSION_ID", "")
        self.observed.hostname = (self.system.text("/etc/hostname") or "").strip()
        self.observed.running_hostname = (self.system.text("/proc/sys/kernel/hostname") or "").strip()

    # -- accounts -----------------------------------------------------------------------------------------------

    def _accounts(self) -> None:
        groups, members = parse_group(self.system.text("/etc/group") or "")
        self.observed.groups = groups
        self.group_names = {gid: name for name, gid in reversed(groups.items())}
        self.observed.users = parse_passwd(self.system.text("/etc/passwd") or "", self.group_names, members)
        self.user_names = {user.uid: user.name for user in reversed(self.observed.users.values())}

    def _id_files(self) -> None:
        """Files that carry the id of an account whose id is not the planned one. Nothing is searched otherwise."""
        for item in self.wanted.get("user", []):
            state = self.observed.users.get(item.name)
            if isinstance(item, m.User) and state is not None and state.uid != item.uid:
                self.observed.id_files[item.id] = self._find("-uid", state.uid)
        for item in self.wanted.get("group", []):
            gid = self.observed.groups.get(item.name)
            if isinstance(item, m.Group) and gid is not None and gid != item.gid:
                self.observed.id_files[item.id] = self._find("-gid", gid)

    def _find(self, option: str, number: int) -> IdFiles:
        places = ["/", *self._names("storage")]
        script = 'find "$@" -xdev ' + f"{option} {number} -print 2>/dev/null | head -n {FIND_LIMIT + 1}"
        argv = ["sh", "-c", script, "sh", *(self.system.path(place) for place in places)]
        result = self._run(argv, timeout=FIND_TIMEOUT, check=False)
        # A service's data below / is found twice where it is no file system of its own.
        found = sorted(set(result.stdout.splitlines()))
        complete = result.returncode == 0 and len(found) <= FIND_LIMIT
        return IdFiles(min(len(found), FIND_LIMIT), complete, tuple(found[:3]))

    # -- secrets ------------------------------------------------------------------------------------------------

    def _secret(self, name: str) -> str | None:
        return self.values.get(name)

    def _read_secrets(self) -> None:
        """Every secret that an item names, read once, before the threads start."""
        names = {item.name for item in self.all.get("secret", [])}
        for items in self.all.values():
            for item in items:
                if isinstance(item, (m.File, m.Configure)):
                    names.update(item.holes)
                elif isinstance(item, (m.PodmanSecret, m.PostgresqlRole)) and item.secret:
                    names.add(item.secret)
        for name in sorted(names):
            try:
                value = self.secret_reader(name)
            except (OSError, ValueError) as error:
                self.observed.errors["secret"] = f"secret {name} cannot be read from the host's store: {error}"
                continue
            self.values[name] = value
            if value is not None:
                self.observed.secrets[name] = secret_digest(self.nonce, value)
                self._secret_file(name)

    def _secret_file(self, name: str) -> None:
        status = self.system.lstat(f"{self.state_dir}/secrets/{name}")
        if status is None:
            return  # a reader that keeps them elsewhere (tests)
        mode = stat.S_IMODE(status.st_mode)
        if mode != 0o400:
            self.observed.open_secrets[name] = f"mode is {mode:04o}"
        elif status.st_uid != os.geteuid():
            self.observed.open_secrets[name] = f"owner is {self.user_names.get(status.st_uid, str(status.st_uid))}"

    # -- storage and files --------------------------------------------------------------------------------------

    def _storage(self) -> None:
        if "storage" not in self.wanted:
            return
        ledger = read_ledger(self.state_dir, self.system.root)
        names = (self.user_names, self.group_names)
        items = [item for item in self.wanted["storage"] if isinstance(item, m.Storage)]
        for item in items:
            if item.provider != "zfs":
                self.observed.storage[item.name] = read_storage_facts(
                    item.name, self.system.root, ledger=ledger, names=names
                )
        datasets = [item for item in items if item.provider == "zfs"]
        if datasets:
            found, self.observed.datasets = zfs_storage.read(
                datasets, self.system.runner, ledger, root=self.system.root, names=names
            )
            self.observed.storage.update(found)

    def _files(self) -> None:
        hashed: set[str] = set()
        paths: set[str] = set()
        for kind in ("file", "symlink", "directory"):
            for item in self.all.get(kind, []):
                paths.add(item.name)
                if isinstance(item, m.File) and not item.create_only:
                    hashed.add(item.name)
        for item in self.all.get("initialize", []):
            if isinstance(item, m.Initialize) and item.creates:
                paths.add(item.creates)
        kept = {item.name for kind in ("directory", "storage") for item in self.wanted.get(kind, [])}
        leaving = {item.name for item in self.all.get("directory", [])} - kept
        # Where something of ours is or was; the others are somebody else's by now.
        made = {path for path in self.observed.made_directories if any(entry.startswith(f"{path}/") for entry in paths)}
        leaving |= made - kept
        for path in sorted(paths | made):
            self.observed.files[path] = self._file(path, path in hashed, path in leaving)
        for item in self.all.get("file", []):
            if isinstance(item, m.File) and item.holes and item.digest not in self.observed.filled:
                content = self._filled(item)
                if content is not None:
                    self.observed.filled[item.digest] = m.digest(content)

    def _file(self, path: str, hashed: bool, leaving: bool) -> FileState:
        real = self.system.path(path)
        try:
            status = os.lstat(real)
        except FileNotFoundError:
            return FileState()
        except NotADirectoryError:
            return FileState("error", message="a parent of it is not a directory")
        except OSError as error:
            return FileState("error", message=error.strerror or str(error))
        mode = f"{stat.S_IMODE(status.st_mode):04o}"
        owner = self.user_names.get(status.st_uid, str(status.st_uid))
        group = self.group_names.get(status.st_gid, str(status.st_gid))
        try:
            if stat.S_ISLNK(status.st_mode):
                return FileState("symlink", mode=mode, owner=owner, group=group, target=os.readlink(real))
            if stat.S_ISDIR(status.st_mode):
                entries = tuple(sorted(os.listdir(real))) if leaving else ()
                return FileState("directory", mode=mode, owner=owner, group=group, entries=entries)
            if not stat.S_ISREG(status.st_mode):
                return FileState("other", mode=mode, owner=owner, group=group)
            digest = ""
            if hashed:
                with open(real, "rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
            return FileState("file", digest, mode, owner, group)
        except OSError as error:
            return FileState("error", message=error.strerror or str(error))

    def _filled(self, item: m.File) -> bytes | None:
        """The file's content with this host's secrets, None when the template or a secret is not stored."""
        values = {name: self._secret(name) for name in item.holes}
        blob = self.system.read(os.path.join(self.state_dir, "blobs", item.digest))
        if blob is None or any(value is None for value in values.values()):
            return None
        return fill_holes(blob, {name: value for name, value in values.items() if value is not None})

    def _effects(self) -> None:
        """What oneshot units have made: files of the kernel and of podman, read directly."""
        for item in self.wanted.get("unit", []):
            for entry in item.effects if isinstance(item, m.Unit) else ():
                self.observed.effects[entry] = self._effect(entry)

    def _effect(self, entry: str) -> EffectState:
        path, separator, text = entry.partition("=")
        try:
            if not separator:
                if self.system.lstat(path) is not None:
                    return EffectState(True)
                if not path.startswith(MODULES):
                    return EffectState(False, "missing")
                return self._module(path.removeprefix(MODULES))
            found = self.system.text(path)
        except OSError as error:
            return EffectState(None, f"{path} cannot be read: {error.strerror}")
        if found is None:
            return EffectState(None, "this kernel does not have it")
        return EffectState(found.split() == text.split(), f"is {' '.join(found.split())}")

    def _module(self, name: str) -> EffectState:
        """A module that /sys/module does not have: not loaded, built in (without parameters), or not of this kernel
        (modules.dep(5), modules.builtin; names have - and _ alike)."""
        release = (self.system.text("/proc/sys/kernel/osrelease") or "").strip()
        pattern = re.compile(rf"(?m)^(?:\S*/)?{name.replace('_', '[-_]')}\.ko(?:\.\w+)?(?::|$)")
        if pattern.search(self.system.text(f"/lib/modules/{release}/modules.builtin") or ""):
            return EffectState(True)
        if pattern.search(self.system.text(f"/lib/modules/{release}/modules.dep") or ""):
            return EffectState(False, "missing")
        return EffectState(None, "this kernel has no such module")

    # -- packages -----------------------------------------------------------------------------------------------

    def _packages(self) -> None:
        # dpkg itself is asked for too: its architecture is the host's, without another process.
        names = sorted({"dpkg", *(item.name for item in self.wanted.get("package", []))})
        result = self._run(
            ["dpkg-query", "-W", "-f", "${Package}\\t${db:Status-Status}\\t${Architecture}\\t${Version}\\n", *names],
            check=False,
        )
        # Exit status 1: at least one package is not known; anything else is a failure (dpkg-query(1)).
        if result.returncode not in (0, 1) or "dpkg\t" not in result.stdout:
            raise CommandError(result)
        states, architectures = parse_dpkg(result.stdout)
        self.observed.architecture = architectures.get("dpkg", "")
        self.observed.packages = {name: state for name, state in states.items() if name in names}
        wanted = [item for item in self.wanted.get("package", []) if self.applied is None or item.id in self.applied]
        missing = sorted(item.name for item in wanted if not states.get(item.name, PackageState("", "")).installed)
        if missing:
            self.observed.apt = self._simulate(missing)

    def _simulate(self, missing: list[str]) -> AptState:
        stale = self._stale_lists()
        state = parse_simulation(missing, self._apt(missing))
        rest = [name for name in missing if name not in state.unavailable]
        if state.unavailable and rest:
            # apt stops at the first packages that it does not know: what the others need is asked again.
            other = parse_simulation(rest, self._apt(rest))
            state = AptState("", {**other.unavailable, **state.unavailable}, other.removes, other.message)
        return AptState(stale, state.unavailable, state.removes, state.message)

    def _apt(self, names: Sequence[str]) -> Completed:
        return self._run(
            [
                "apt-get", "--simulate", "-o", "Debug::NoLocking=1", "-o", "APT::Install-Recommends=0", "install",
                "--", *names,
            ],
            check=False, timeout=120.0, env={"DEBIAN_FRONTEND": "noninteractive"},
        )  # fmt: skip

    def _stale_lists(self) -> str:
        """Why the package lists prove nothing, empty when they are fresh."""
        lists = "/var/lib/apt/lists"
        try:
            names = os.listdir(self.system.path(lists))
        except FileNotFoundError:
            names = []
        if not any("_Packages" in name for name in names):
            return "there are no package lists yet"
        # Measured with apt 3.0: an update that finds nothing new still changes partial/, not the lists' directory.
        updated = max(self._mtime(lists), self._mtime(f"{lists}/partial"))
        sources = ["/etc/apt/sources.list", "/etc/apt/sources.list.d"]
        with contextlib.suppress(FileNotFoundError):
            sources += [f"{sources[1]}/{name}" for name in os.listdir(self.system.path(sources[1]))]
        if max(self._mtime(path) for path in sources) > updated:
            return "apt's sources changed after the package lists were fetched"
        age = time.time() - updated
        return f"the package lists are {age / 3600:.0f} h old" if age > LISTS_AGE else ""

    def _mtime(self, path: str) -> float:
        status = self.system.lstat(path)
        return status.st_mtime if status else 0.0

    # -- units and listeners ------------------------------------------------------------------------------------

    def _units(self) -> None:
        # systemctl refuses the whole query for a template (foo@.service) without an instance.
        names = [name for name in self._names("unit") if "@." not in name]
        if names:
            result = self._run(["systemctl", "show", f"--property={','.join(UNIT_PROPERTIES)}", "--", *names])
            self.observed.units = parse_units(names, result.stdout)
        if self._asks_for_listeners():
            self._guard("listener", self._listeners)

    def _asks_for_listeners(self) -> bool:
        """Only when something will start to listen: a unit that does not run, or a listener that is new."""
        if not any(state.listeners for state in self.manifest.services.values()):
            return False
        for item in self.wanted.get("unit", []):
            unit = self.observed.units.get(item.name, UnitState(item.name))
            if isinstance(item, m.Unit) and item.running and unit.active != "active":
                return True
        before = self.previous.services.values() if self.previous else ()
        known = {entry for state in before for entry in state.listeners}
        return any(set(state.listeners) - known for state in self.manifest.services.values())

    def _listeners(self) -> None:
        listeners = parse_listeners(self._run(["ss", "-H", "-ltnup"]).stdout, self._units_of)
        if any(listener.pid == 1 for listener in listeners):
            result = self._run(["systemctl", "show", "--property=Id,Listen,Triggers", "--", "*.socket"], check=False)
            listeners = resolve_sockets(listeners, result.stdout)
        self.observed.listeners = listeners

    def _units_of(self, pid: int) -> tuple[str, ...]:
        return parse_cgroup(self.system.text(f"/proc/{pid}/cgroup") or "")

    # -- the rest -----------------------------------------------------------------------------------------------

    def _locales(self) -> None:
        result = self._run(["locale", "-a"])
        self.observed.locales = frozenset(normal_locale(line.strip()) for line in result.stdout.splitlines())

    def _firewall(self) -> None:
        for item in self.all["firewall"]:
            if isinstance(item, m.Firewall) and item.name not in self.observed.firewall:
                self.observed.firewall[item.name] = self._table(item)

    def _table(self, item: m.Firewall) -> FirewallState:
        family, _, table = item.name.partition(" ")
        live = self._run(["nft", "-s", "list", "table", family, table], check=False)
        if live.missing:
            return FirewallState(None, None, explain(live))
        exists = live.returncode == 0
        if not exists and "No such file or directory" not in live.stderr:
            return FirewallState(None, None, f"nft list table {item.name}: {explain(live)}")
        if self.system.lstat(item.path) is None:
            return FirewallState(None, exists, f"{item.path} does not exist")
        # In a network namespace of its own, so that loading changes nothing here. Two processes: measured with nft
        # 1.1, a listing in the script that loads does not show the rules yet.
        load = 'nft -f "$1" && exec nft -s list table "$2" "$3"'
        expected = self._run(
            ["unshare", "--net", "--", "sh", "-c", load, "sh", self.system.path(item.path), family, table], check=False
        )
        if expected.returncode != 0:
            return FirewallState(None, exists, f"{item.path} cannot be loaded: {explain(expected)}")
        return FirewallState(exists and normal_ruleset(live.stdout) == normal_ruleset(expected.stdout), exists)

    def _images(self) -> None:
        wanted = [item.name for item in self.wanted.get("image", [])]
        if not wanted:
            return
        result = self._run(["podman", "images", "--format", "json"], check=False)
        if result.missing:
            return  # without podman there is no image either
        if result.returncode != 0:
            raise CommandError(result)
        self.observed.images = present_images(wanted, result.stdout)

    def _podman_secrets(self) -> None:
        every = (*self.all["podman_secret"], *self.wanted.get("podman_secret", ()))  # the wanted ones last: they win
        items = {item.name: item for item in every if isinstance(item, m.PodmanSecret)}
        # Those that do not exist are named on standard error, the others are printed all the same (podman 5.4).
        result = self._run(["podman", "secret", "inspect", "--showsecret", *sorted(items)], check=False)
        if result.missing:
            return
        unexpected = [line for line in result.stderr.splitlines() if line.strip() and "no such secret" not in line]
        if result.returncode != 0 and (unexpected or not result.stderr.strip()):
            raise CommandError(Completed(result.argv, result.returncode, "", result.stderr))
        for entry in json.loads(result.stdout or "[]"):
            item = items.get(entry["Spec"]["Name"])
            if item is not None:
                value = self._secret(item.secret)
                held = str(entry.get("SecretData", ""))
                same = value is not None and hmac.compare_digest(value.encode(), held.encode())
                self.observed.podman_secrets[item.name] = same

    def _configured(self) -> None:
        """Objects of applications' APIs, those of the generation before included; the wanted ones last: they win."""
        every = (*self.all["configure"], *self.wanted.get("configure", ()))
        items = {item.name: item for item in every if isinstance(item, m.Configure)}
        self.observed.configured = configure.observe(items.values(), self._secret)

    # -- PostgreSQL ---------------------------------------------------------------------------------------------

    def _providers(self) -> list[str]:
        found = set()
        for kind in ("postgresql_role", "postgresql_database"):
            for item in self.all.get(kind, []):
                if isinstance(item, (m.PostgresqlRole, m.PostgresqlDatabase)):
                    found.add(item.provider)
        return sorted(found)

    def _postgresql(self, provider: str) -> None:
        roles: dict[str, m.PostgresqlRole] = {}
        databases: dict[str, m.PostgresqlDatabase] = {}
        for items, kind in ((self.all, "all"), (self.wanted, "wanted")):  # the wanted ones win
            for item in items.get("postgresql_role", []):
                if isinstance(item, m.PostgresqlRole) and item.provider == provider:
                    roles[item.name] = item
            for item in items.get("postgresql_database", []) if kind == "wanted" else ():
                if isinstance(item, m.PostgresqlDatabase) and item.provider == provider:
                    databases[item.name] = item
        result = self._run(
            [*self._psql(provider), "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "postgres", "-f", "-"],
            input=postgresql_script(roles, databases).encode(), user="postgres", check=False,
            env={"PGCONNECT_TIMEOUT": "5", "PGOPTIONS": "-c statement_timeout=10s"},
        )  # fmt: skip
        if result.returncode != 0:
            self.observed.postgresql[provider] = PostgresqlState(error=explain(result))
            return
        passwords = {name: self._secret(role.secret) if role.secret else None for name, role in roles.items()}
        self.observed.postgresql[provider] = parse_postgresql(result.stdout, passwords)

    def _psql(self, provider: str) -> list[str]:
        """psql over the local socket. The client itself where Debian has it: the wrapper in PATH costs 40 ms."""
        argv = ["psql"]
        versions = "/usr/lib/postgresql"
        names: list[str] = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            names = [name for name in os.listdir(self.system.path(versions)) if name.isdigit()]
        for name in sorted(names, key=int, reverse=True):
            if self.system.lstat(f"{versions}/{name}/bin/psql") is not None:
                argv = [f"{versions}/{name}/bin/psql", "-h", "/var/run/postgresql"]
                break
        for state in (self.manifest.services.get(provider), self.previous and self.previous.services.get(provider)):
            for entry in state.listeners if state else ():
                protocol, _, port = entry.split("/")
                if protocol == "tcp":
                    return [*argv, "-p", port]  # the socket's name has the port in it
        return argv


class _Job(threading.Thread):
    """A query of its own thread; ``finish`` raises what the query raised."""

    def __init__(self, guard: Callable[[str, Callable[[], None]], None], kind: str, job: Callable[[], None]) -> None:
        super().__init__(name=f"observe {kind}", daemon=True)
        self._guarded = functools.partial(guard, kind, job)
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._guarded()
        except BaseException as error:  # raised again by finish
            self._error = error

    def finish(self) -> None:
        self.join()
        if self._error is not None:
            raise self._error


# -- pure functions: parsers of recorded formats ----------------------------------------------------------------


def fill_holes(template: bytes, values: Mapping[str, str]) -> bytes:
    """A template with its holes filled, in one pass: a value that looks like a hole stays as it is."""
    holes = {m.HOLE.format(name).encode(): value.encode() for name, value in values.items()}
    if not holes:
        return template
    pattern = re.compile(b"|".join(re.escape(hole) for hole in sorted(holes)))
    return pattern.sub(lambda match: holes[match.group()], template)


def parse_assignments(text: str) -> dict[str, str]:
    """The assignments of os-release(5)."""
    found = {}
    for line in text.splitlines():
        key, separator, value = line.strip().partition("=")
        if separator and not key.startswith("#"):
            found[key] = value.strip().strip("\"'")
    return found


def parse_group(text: str) -> tuple[dict[str, int], dict[str, set[str]]]:
    """group(5): ids by name, and each user's supplementary groups."""
    groups: dict[str, int] = {}
    members: dict[str, set[str]] = {}
    for line in text.splitlines():
        parts = line.split(":")
        if len(parts) >= 4 and parts[2].isdigit():
            groups.setdefault(parts[0], int(parts[2]))
            for user in filter(None, parts[3].split(",")):
                members.setdefault(user, set()).add(parts[0])
    return groups, members


def parse_passwd(
    text: str, group_names: Mapping[int, str], members: Mapping[str, Collection[str]]
) -> dict[str, UserState]:
    """passwd(5) with each user's groups."""
    users: dict[str, UserState] = {}
    for line in text.splitlines():
        parts = line.split(":")
        if len(parts) == 7 and parts[2].isdigit() and parts[3].isdigit() and parts[0] not in users:
            name, gid = parts[0], int(parts[3])
            users[name] = UserState(
                name, int(parts[2]), gid, group_names.get(gid, str(gid)), frozenset(members.get(name, ())),
                parts[4], parts[5], parts[6],
            )  # fmt: skip
    return users


def parse_dpkg(text: str) -> tuple[dict[str, PackageState], dict[str, str]]:
    """dpkg-query's lines (package, status, architecture, version): states and architectures.

    A package may be there for several architectures: an installed one counts.
    """
    states: dict[str, PackageState] = {}
    architectures: dict[str, str] = {}
    for line in text.splitlines():
        parts = line.split("\t")
        if len(parts) == 4 and not (parts[0] in states and states[parts[0]].installed):
            states[parts[0]] = PackageState(parts[1], parts[3])
            architectures[parts[0]] = parts[2]
    return states, architectures


_APT_UNKNOWN = re.compile(r"^E: (?:Unable to locate package (\S+)|Package '([^']+)' has no installation candidate)")


def parse_simulation(wanted: Sequence[str], result: Completed) -> AptState:
    """What ``apt-get --simulate install`` said."""
    unavailable: dict[str, str] = {}
    for line in (*result.stdout.splitlines(), *result.stderr.splitlines()):
        match = _APT_UNKNOWN.match(line)
        if match:
            unavailable[match.group(1) or match.group(2)] = line.removeprefix("E: ")
    if result.returncode != 0:
        # apt 3 explains a conflict in more lines than other programs do.
        return AptState(unavailable=unavailable, message="" if unavailable else explain(result, 12))
    handled = set()
    removes = []
    for line in result.stdout.splitlines():
        verb, _, rest = line.partition(" ")
        name = rest.split(" ", 1)[0].split(":")[0]
        if verb == "Remv":
            removes.append(name)
        elif verb in ("Inst", "Conf"):
            handled.add(name)
    for name in wanted:
        if name.split(":")[0] not in handled:
            unavailable[name] = f"apt has no package that is named {name} itself"
    return AptState(unavailable=unavailable, removes=tuple(sorted(removes)))


def parse_units(names: Sequence[str], text: str) -> dict[str, UnitState]:
    """``systemctl show``: one block for each name, in the order of the names."""
    blocks = [block for block in text.strip().split("\n\n") if block.strip()]
    if len(blocks) != len(names):
        raise ValueError(f"systemctl show described {len(blocks)} units instead of {len(names)}")
    units = {}
    for name, block in zip(names, blocks, strict=True):
        fields = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        restarts = fields.get("NRestarts", "")
        units[name] = UnitState(
            name=fields.get("Id", name),
            names=frozenset(fields.get("Names", "").split()),
            load=fields.get("LoadState", ""),
            active=fields.get("ActiveState", ""),
            sub=fields.get("SubState", ""),
            file_state=fields.get("UnitFileState", ""),
            restarts=int(restarts) if restarts.isdigit() else 0,
            need_daemon_reload=fields.get("NeedDaemonReload") == "yes",
            fragment=fields.get("FragmentPath", ""),
            can_reload=fields.get("CanReload") == "yes",
            result=fields.get("Result", ""),
            drop_ins=tuple(fields.get("DropInPaths", "").split()),
        )
    return units


_SS_USER = re.compile(r'\("((?:[^"\\]|\\.)*)",pid=(\d+),')


def parse_listeners(text: str, units_of: Callable[[int], tuple[str, ...]]) -> list[Listener]:
    """``ss -H -ltnup``: one listener for each socket and process."""
    listeners = []
    for line in text.splitlines():
        parts = line.split(None, 6)
        if len(parts) < 6:
            continue
        address, _, port = parts[4].rpartition(":")
        if not port.isdigit():
            continue
        address = address.strip("[]").partition("%")[0].removeprefix("::ffff:")
        users = _SS_USER.findall(parts[6]) if len(parts) > 6 else []
        for process, number in users or [("", "0")]:
            pid = int(number)
            listeners.append(Listener(parts[0], address, int(port), process, pid, units_of(pid) if pid > 1 else ()))
    return listeners


def resolve_sockets(listeners: Iterable[Listener], text: str) -> list[Listener]:
    """Listeners of systemd itself with their socket units and what these start (``systemctl show *.socket``)."""
    owners: dict[tuple[str, int], tuple[str, ...]] = {}
    for block in text.strip().split("\n\n"):
        fields: dict[str, list[str]] = {}
        for line in block.splitlines():
            key, _, value = line.partition("=")
            fields.setdefault(key, []).append(value)
        units = (*fields.get("Id", ()), *(unit for value in fields.get("Triggers", ()) for unit in value.split()))
        for entry in fields.get("Listen", ()):
            where, _, how = entry.partition(" ")
            port = where.rpartition(":")[2]
            protocol = {"(Stream)": "tcp", "(Datagram)": "udp"}.get(how)
            if protocol and port.isdigit():
                owners[protocol, int(port)] = units
    return [
        replace(entry, units=owners.get((entry.protocol, entry.port), ())) if entry.pid == 1 else entry
        for entry in listeners
    ]


_UNIT_SUFFIXES = (".service", ".scope", ".socket", ".mount")


def parse_cgroup(text: str) -> tuple[str, ...]:
    """The units in a process's cgroup path (cgroups(7)), the innermost first.

    On a host with cgroup v1 beside v2 systemd's own hierarchy is ``0::`` or ``name=systemd``: the one with a unit.
    """
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" or controllers == "name=systemd":
            units = tuple(part for part in reversed(path.split("/")) if part.endswith(_UNIT_SUFFIXES))
            if units:
                return units
    return ()


def normal_locale(name: str) -> str:
    """A locale's name with its codeset as glibc compares it: ``en_GB.UTF-8`` and ``en_GB.utf8`` are one."""
    language, dot, rest = name.partition(".")
    codeset, at, modifier = rest.partition("@")
    return f"{language}{dot}{codeset.lower().replace('-', '')}{at}{modifier}"


_SET = re.compile(r"^\t(?:set|map) \S+ \{$")


def normal_ruleset(text: str) -> str:
    """A table's listing without what packets put into it: elements of dynamic sets (nft(8)).

    The kernel gives such a set a size once something was added; a set that is only declared has none.
    """
    lines: list[str] = []
    block: list[str] = []
    for line in text.splitlines():
        if _SET.match(line):
            block = [line]
        elif block:
            block.append(line)
            if line == "\t}":
                lines.extend(_without_elements(block) if _is_dynamic(block) else block)
                block = []
        else:
            lines.append(line)
    return "\n".join(lines)


def _is_dynamic(block: Iterable[str]) -> bool:
    return any(line.strip().startswith("flags ") and "dynamic" in line.replace(",", " ").split() for line in block)


def _without_elements(block: Iterable[str]) -> list[str]:
    kept = []
    inside = False
    for line in block:
        inside = inside or line.strip().startswith("elements = {")
        if not inside and not line.strip().startswith("size "):
            kept.append(line)
        inside = inside and not line.rstrip().endswith("}")
    return kept


def present_images(wanted: Iterable[str], text: str) -> frozenset[str]:
    """Those of the references ``wanted`` that ``podman images --format json`` lists.

    With a digest the digest decides and the tag is decoration, as podman itself has it.
    """
    known: set[str] = set()
    for image in json.loads(text or "[]"):
        known.update(image.get("Names") or ())
        known.update(image.get("RepoTags") or ())
        known.update(image.get("RepoDigests") or ())
    found = set()
    for reference in wanted:
        name, at, digest = reference.partition("@")
        repository, colon, tag = name.rpartition(":")
        if not colon or "/" in tag:  # a port of the registry, not a tag
            repository, tag = name, "latest"
        if (f"{repository}@{digest}" if at else f"{repository}:{tag}") in known:
            found.add(reference)
    return frozenset(found)


def postgresql_script(roles: Collection[str], databases: Mapping[str, m.PostgresqlDatabase]) -> str:
    """One psql script that prints a JSON object per line: roles, databases, and extensions of each database."""
    lines = []
    if roles:
        names = ", ".join(literal(name) for name in sorted(roles))
        columns = "'role', rolname, 'login', rolcanlogin, 'verifier', rolpassword"
        columns += "".join(f", '{right}', {column}" for right, column in sorted(RIGHTS.items()))
        columns += f", 'member_of', {MEMBERSHIPS}"
        lines.append(f"SELECT json_build_object({columns}) FROM pg_authid WHERE rolname IN ({names});")  # noqa: S608 (quoted)
    if databases:
        names = ", ".join(literal(name) for name in sorted(databases))
        columns = "'database', datname, 'owner', pg_get_userbyid(datdba), 'encoding', pg_encoding_to_char(encoding)"
        lines.append(f"SELECT json_build_object({columns}) FROM pg_database WHERE datname IN ({names});")  # noqa: S608 (quoted)
    for name in sorted(databases):
        if databases[name].extensions:
            extensions = ", ".join(literal(extension) for extension in databases[name].extensions)
            columns = "'extension', extname, 'in', current_database()"
            there = f"FROM pg_database WHERE datname = {literal(name)} AND datallowconn"
            lines += [
                f"SELECT EXISTS (SELECT {there}) AS there \\gset",
                "\\if :there",
                f"\\connect {identifier(name)}",
                f"SELECT json_build_object({columns}) FROM pg_extension WHERE extname IN ({extensions});",  # noqa: S608 (quoted)
                "\\connect postgres",
                "\\endif",
            ]
    return "\n".join(lines) + "\n"


def parse_postgresql(text: str, passwords: Mapping[str, str | None]) -> PostgresqlState:
    """What ``postgresql_script`` printed; ``passwords`` are the stored ones by role, None where there is none."""
    roles: dict[str, RoleState] = {}
    databases: dict[str, DatabaseState] = {}
    extensions: dict[str, set[str]] = {}
    for line in text.splitlines():
        if not line.startswith("{"):
            continue
        data = json.loads(line)
        if "role" in data:
            password = passwords.get(data["role"])
            same = None if password is None else scram.matches(password, data["verifier"] or "")
            rights = tuple(right for right in sorted(RIGHTS) if data.get(right))
            roles[data["role"]] = RoleState(data["login"], same, rights, tuple(data["member_of"]))
        elif "database" in data:
            databases[data["database"]] = DatabaseState(data["owner"], data["encoding"])
        elif "extension" in data:
            extensions.setdefault(data["in"], set()).add(data["extension"])
    for name, names in extensions.items():
        state = databases[name]
        databases[name] = DatabaseState(state.owner, state.encoding, frozenset(names))
    return PostgresqlState(roles, databases)
