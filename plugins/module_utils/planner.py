# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what is true to what shall be: the one function behind check mode and apply.

``plan`` compares the observed state with a manifest and answers with actions in the order of application. It is pure:
equal arguments give equal plans. Whatever was not observed is unknown, never absent, and never left out silently.

Standard library only: this module runs on hosts.
"""

from __future__ import annotations

import heapq
import os.path
import typing as t
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from ansible_collections.hearth.homelab.plugins.module_utils import configure, storage, zfs_storage
from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.module_utils.actions import (
    ATTRIBUTES_ONLY,
    Action,
    Notice,
    Plan,
    Problem,
)
from ansible_collections.hearth.homelab.plugins.module_utils.observe import (
    FileState,
    Listener,
    Observed,
    PackageState,
    PostgresqlState,
    UnitState,
    normal_locale,
)

#: Where systemd and its generators read units: a change below one of these needs a daemon-reload (systemd.unit(5),
#: podman-systemd.unit(5)).
UNIT_DIRECTORIES: tuple[str, ...] = (
    "/etc/systemd/system/",
    "/etc/systemd/system.control/",
    "/run/systemd/system/",
    "/usr/local/lib/systemd/system/",
    "/usr/lib/systemd/system/",
    "/lib/systemd/system/",
    "/etc/containers/systemd/",
    "/usr/share/containers/systemd/",
    "/run/containers/systemd/",
)

#: UnitFileState values (systemctl(1), is-enabled) of units that cannot be enabled or need not be.
_NOT_ENABLEABLE = frozenset({"static", "generated", "transient", "alias", "indirect"})

#: UnitFileState values of units that somebody forbade (systemctl(1), mask).
_MASKED = frozenset({"masked", "masked-runtime"})

#: Where administrators put drop-ins, and systemctl set-property does.
_DROP_INS = (
    "/etc/systemd/system/", "/etc/systemd/system.control/", "/run/systemd/system/", "/run/systemd/system.control/",
)  # fmt: skip

#: The query that answers for a kind, where it is not of the same name (``Observed.errors``).
_QUERIES = {"hostname": "release", "group": "user", "directory": "file", "symlink": "file"}

#: Shells that let nobody in, whichever of them a package or the plan chose.
_NO_LOGIN = frozenset({"/usr/sbin/nologin", "/sbin/nologin", "/bin/false", "/usr/bin/false"})

#: Order of application (design section 5). ``services`` are units and databases, service by service.
_PHASES: tuple[str, ...] = (
    "hostname", "group", "user", "storage", "early secret", "early directory", "early file", "package", "initialize",
    "secret", "stop", "directory", "symlink", "file", "directory removal", "locale", "firewall", "image",
    "podman_secret", "services", "configure",
)  # fmt: skip


def merge(manifest: m.Manifest, previous: m.Manifest | None, scope: Collection[str] | None) -> m.Manifest:
    """The manifest of the generation that results: ``manifest`` for the services of ``scope`` (None: all of them),
    everything else as ``previous`` has it.

    An item that moves to a service outside of the scope stays as it is, with its old owner, until that one is applied.
    """
    if scope is None:
        return manifest
    ids = applied(manifest, scope)
    items = [item for item in manifest.items if item.id in ids]
    services = {name: state for name, state in manifest.services.items() if name in scope}
    validators = [entry for entry in manifest.validators if entry.service in scope]
    if previous is not None:
        taken = {item.id for item in items}
        moving = manifest.by_id()
        items += [
            item for item in previous.items if item.id not in taken and (item.service not in scope or item.id in moving)
        ]
        services.update({name: state for name, state in previous.services.items() if name not in scope})
        validators += [entry for entry in previous.validators if entry.service not in scope]
    return replace(
        manifest,
        services=dict(sorted(services.items())),
        items=m.sort_items(items),
        validators=tuple(sorted(validators, key=lambda entry: entry.name)),
    )


def applied(manifest: m.Manifest, scope: Collection[str] | None) -> frozenset[str]:
    """Ids of the items that a run with this scope applies.

    An item that two services share has one owner; so those of the scope bring along what they refer to, whoever owns
    it: users and groups, directories above their paths, secrets, images.
    """
    if scope is None:
        return frozenset(item.id for item in manifest.items)
    own = [item for item in manifest.items if item.service in scope]
    ids = {item.id for item in own}
    declared = manifest.by_id()
    pending = own
    while pending:
        more = {id_ for item in pending for id_ in _references(item) if id_ in declared} - ids
        ids |= more
        pending = [declared[id_] for id_ in more]
    return frozenset(ids)


def _references(item: m.Item) -> Iterable[str]:
    """Ids of what an item cannot do without, declared or not."""
    if isinstance(item, (m.Storage, m.Directory, m.File)):
        yield from (f"user:{item.owner}", f"group:{item.group}")
    if isinstance(item, m.Initialize):
        yield f"user:{item.user}"
    if isinstance(item, m.User):
        yield from (f"group:{name}" for name in (item.group, *item.groups))
    if isinstance(item, (m.File, m.Configure)):
        yield from (f"secret:{name}" for name in item.holes)
    if isinstance(item, (m.PodmanSecret, m.PostgresqlRole)) and item.secret:
        yield f"secret:{item.secret}"
    if isinstance(item, m.Unit):
        yield from (entry for entry in item.restart_on if entry.startswith("image:"))
        yield from item.needs
    if isinstance(item, (m.File, m.Symlink, m.Directory, m.Storage)):
        path = os.path.dirname(item.name)
        while len(path) > 1:
            yield f"directory:{path}"
            path = os.path.dirname(path)


def service_order(services: Mapping[str, m.ServiceState]) -> list[str]:
    """Services in the order of their ``requires`` and ``wants``; of those that are ready, by tier, then by name.

    A cycle is broken at its ``wants`` first: those are wishes.
    """

    def key(name: str) -> tuple[int, str]:
        tier = services[name].tier
        return (m.TIERS.index(tier) if tier in m.TIERS else len(m.TIERS), name)

    hard = {name: {other for other in state.requires if other in services} for name, state in services.items()}
    soft = {name: {other for other in state.wants if other in services} for name, state in services.items()}
    remaining = set(services)
    order: list[str] = []
    ready: list[tuple[int, str]] = []

    def push() -> None:
        queued = {name for _, name in ready}
        for name in remaining - queued:
            if not ((hard[name] | soft[name]) - {name}) & remaining:
                heapq.heappush(ready, key(name))

    push()
    while remaining:
        if ready:
            name = heapq.heappop(ready)[1]
        else:
            free = [name for name in remaining if not (hard[name] - {name}) & remaining]
            name = min(free or remaining, key=key)
        order.append(name)
        remaining.discard(name)
        push()
    return order


def triggered(entries: Iterable[str], changed: Collection[str]) -> list[str]:
    """Those of the ids ``changed`` that ``restart_on`` or ``reload_on`` name; an entry ending in ``/`` is a prefix."""
    exact = {entry for entry in entries if not entry.endswith("/")}
    prefixes = tuple(entry for entry in entries if entry.endswith("/"))
    return sorted(id_ for id_ in changed if id_ in exact or (prefixes and id_.startswith(prefixes)))


def needs_daemon_reload(actions: Iterable[Action], observed: Observed | None = None) -> bool:
    """Whether systemd must read its unit files again: one changes, or a unit that is acted on is not loaded as it is
    on disk (an interrupted run)."""
    for action in actions:
        if action.kind in ("file", "symlink") and action.name.startswith(UNIT_DIRECTORIES):
            return True
        if action.kind == "unit" and observed is not None and action.operation not in ("stop", "disable"):
            state = observed.units.get(action.name)
            if state is not None and (state.need_daemon_reload or state.load == "not-found"):
                return True
    return False


def plan(
    observed: Observed,
    manifest: m.Manifest,
    previous: m.Manifest | None,
    *,
    scope: frozenset[str] | None = None,
    secret_digests: Mapping[str, str] | None = None,
    blobs_present: Collection[str] = frozenset(),
    start_empty: Collection[str] = frozenset(),
) -> Plan:
    """What makes the host equal to ``manifest`` within ``scope`` (names of services; None: all).

    ``secret_digests`` are the controller's keyed digests by secret, under the nonce that ``observe`` was given; a
    secret without one is taken as it is stored. ``blobs_present`` are the contents in the host's store.
    ``start_empty`` are services whose storage a person said may start empty.
    """
    planner = _Planner(observed, manifest, previous, scope, secret_digests or {}, blobs_present, start_empty)
    return planner.run()


class _Planner:
    def __init__(
        self,
        observed: Observed,
        manifest: m.Manifest,
        previous: m.Manifest | None,
        scope: frozenset[str] | None,
        secret_digests: Mapping[str, str],
        blobs_present: Collection[str],
        start_empty: Collection[str],
    ) -> None:
        self.observed, self.manifest, self.previous, self.scope = observed, manifest, previous, scope
        self.secret_digests, self.blobs_present = secret_digests, blobs_present
        self.start_empty = frozenset(start_empty)
        self.merged = merge(manifest, previous, scope)
        self.target = self.merged.by_id()
        self.declared = manifest.by_id()
        self.old = previous.by_id() if previous else {}
        self.applied = applied(manifest, scope)
        self.wanted = [item for item in manifest.items if item.id in self.applied]
        leaving = [item for item in self.old.values() if item.id not in self.target]
        self.removed = [item for item in leaving if scope is None or item.service in scope]
        self.units: dict[str, list[m.Unit]] = {}  # of the resulting generation, by service
        for item in self.target.values():
            if isinstance(item, m.Unit):
                self.units.setdefault(item.service, []).append(item)
        self.databases: dict[str, list[m.PostgresqlRole | m.PostgresqlDatabase]] = {}  # roles first, by server
        for item in self.wanted:
            if isinstance(item, (m.PostgresqlRole, m.PostgresqlDatabase)):
                self.databases.setdefault(item.provider, []).append(item)
        #: Paths of the resulting generation: whatever is there is replaced, not removed.
        self.paths = {item.name for item in self.target.values() if isinstance(item, (m.File, m.Symlink, m.Directory))}
        self.result = Plan()
        self.phases: dict[str, list[Action]] = {phase: [] for phase in _PHASES}
        self.stale = {name for name in self._needed_secrets() if self._is_stale(name)}
        self.blocked: set[str] = set()  # storage items with a problem
        self.initialized: set[str] = set()  # services whose first data is made in this run
        self.made: dict[str, dict[str, str]] = {"user": {}, "group": {}}  # accounts made in this run: id -> name

    def run(self) -> Plan:
        self._host()
        for kind, step in (
            ("hostname", self._hostname),
            ("group", self._group),
            ("user", self._user),
            ("storage", self._storage),
            ("directory", self._directory),
            ("symlink", self._symlink),
            ("file", self._file),
            ("initialize", self._initialize),
            ("locale", self._locale),
            ("image", self._image),
            ("podman_secret", self._podman_secret),
        ):
            for item in self.wanted:
                if item.kind == kind and not self._failed(item):
                    t.cast("Callable[[m.Item], None]", step)(item)
        self._secrets()
        self._packages()
        self._remove_paths()
        self._remove_podman_secrets()
        self._firewall()
        self._stop_removed_units()
        self._services()
        self._configure()
        self._listeners()
        self._staying()
        result = self.result
        result.actions = [action for phase in _PHASES for action in self.phases[phase]]
        result.needs_secrets = sorted(self.stale)
        result.needs_blobs = sorted(set(result.needs_blobs))
        result.problems = list(dict.fromkeys(result.problems))
        return result

    # -- helpers ------------------------------------------------------------------------------------------------

    def _in_scope(self, item: m.Item) -> bool:
        return item.id in self.applied

    def _act(
        self, phase: str, item: m.Item, operation: str, reason: str, before: t.Any = None, after: t.Any = None
    ) -> Action:
        action = Action(item.id, operation, item.service, before, after, reason)
        self.phases[phase].append(action)
        return action

    def _problem(self, item: m.Item, message: str, remedy: str = "") -> None:
        self.result.problems.append(Problem(item.service, item.id, message, remedy))

    def _notice(self, item: m.Item, message: str) -> None:
        self.result.notices.append(Notice(item.service, item.id, message))

    def _attributes(self, state: FileState | storage.StorageFacts) -> dict[str, t.Any]:
        """Owner, group and mode of what is there; the number of an account that this run makes is its name."""
        owner, group = self.made["user"].get(state.owner, state.owner), self.made["group"].get(state.group, state.group)
        return {"owner": owner, "group": group, "mode": state.mode}

    def _unknown(self, item: m.Item, message: str) -> None:
        self.result.unknown.append(Notice(item.service, item.id, message))

    def _failed(self, item: m.Item) -> bool:
        """Whether the query of this item's kind failed; the item is unknown then."""
        message = self.observed.errors.get(_QUERIES.get(item.kind, item.kind))
        if message is None:
            return False
        if item.kind == "storage":
            # Starting a service on storage of which nothing is known is what must never happen.
            self._problem(item, f"the storage {item.name} cannot be examined: {message}", "mend that first")
        else:
            self._unknown(item, f"{item.name} cannot be compared: {message}")
        return True

    def _changed(self) -> tuple[set[str], set[str]]:
        """Ids of what this run changes so far: what stays, and what is removed."""
        actions = [action for phase in self.phases.values() for action in phase]
        changed = {action.id for action in actions if (action.kind, action.operation) not in ATTRIBUTES_ONLY}
        removed = {id_ for id_ in changed if id_ not in self.target}
        return changed - removed, removed

    # -- the host itself ----------------------------------------------------------------------------------------

    def _host(self) -> None:
        for what, found, wanted in (
            ("release", self.observed.release, self.manifest.release),
            ("architecture", self.observed.architecture, self.manifest.architecture),
        ):
            error = self.observed.errors.get("release" if what == "release" else "package")
            if error is not None:
                self.result.unknown.append(Notice("", "", f"the host's {what} cannot be compared: {error}"))
            elif found != wanted:
                message = f"the plan is for {what} {wanted}, {self.manifest.host} has {found or 'an unknown one'}"
                remedy = "correct the groups of this host in the inventory"
                self.result.problems.append(Problem("", "", message, remedy))

    def _hostname(self, item: m.Item) -> None:
        static, running = self.observed.hostname, self.observed.running_hostname
        if (static, running) != (item.name, item.name):
            found = static if static != item.name else running
            self._act("hostname", item, "set", f"is {found or 'not set'}", {"name": found}, {"name": item.name})

    # -- accounts -----------------------------------------------------------------------------------------------

    def _group(self, item: m.Group) -> None:
        gid = self.observed.groups.get(item.name)
        if gid is None:
            owner = next((name for name, number in self.observed.groups.items() if number == item.gid), None)
            if owner is None:
                self._act("group", item, "create", "missing", None, {"gid": item.gid})
                self.made["group"][str(item.gid)] = item.name
            else:
                self._taken(item, "group", item.gid, owner)
        elif gid != item.gid:
            self._other_id(item, "group", gid, item.gid)

    def _user(self, item: m.User) -> None:
        state = self.observed.users.get(item.name)
        after: dict[str, t.Any] = {"uid": item.uid, "group": item.group, "groups": sorted(item.groups)}
        if state is None:
            owner = next((user.name for user in self.observed.users.values() if user.uid == item.uid), None)
            if owner is None:
                after |= {"home": item.home, "shell": item.shell, "comment": item.comment}
                self._act("user", item, "create", "missing", None, after)
                self.made["user"][str(item.uid)] = item.name
            else:
                self._taken(item, "user", item.uid, owner)
            return
        if state.uid != item.uid:
            self._other_id(item, "user", state.uid, item.uid)
            return
        if item.group and state.group != item.group:
            self._problem(
                item,
                f"user {item.name} has the primary group {state.group}, the plan has {item.group}",
                f"look at the files of group {state.group}, then usermod --gid {item.group} {item.name}",
            )
            return
        before: dict[str, t.Any] = {}
        after = {}
        missing = sorted(set(item.groups) - state.groups - {state.group})
        if missing:
            before["groups"], after["groups"] = sorted(state.groups), sorted(state.groups | set(missing))
        # The comment of a system user is its package's, which sets it.
        fields = ("shell",) if item.system else ("home", "shell", "comment")
        for field in fields:
            found = getattr(state, field)
            if found != getattr(item, field) and not (item.system and found in _NO_LOGIN):
                before[field], after[field] = found, getattr(item, field)
        if item.system and item.home != "/nonexistent" and state.home != item.home:
            # usermod(8) refuses while the user has a process, and its service nearly always has one.
            self._notice(
                item,
                f"the home of {item.name} is {state.home}, the plan has {item.home}; it is left so: to change it, stop "
                f"what runs as {item.name}, then usermod --home {item.home} {item.name}",
            )
        if after:
            reason = f"not in {', '.join(missing)}" if missing else f"{' and '.join(after)} differ"
            self._act("user", item, "modify", reason, before, after)

    def _taken(self, item: m.Item, what: str, number: int, owner: str) -> None:
        self._problem(
            item,
            f"the id {number} of {what} {item.name} belongs to {what} {owner} on this host",
            f"choose another id for {item.name} with hearth_ids in the inventory, or give {owner} another one by hand",
        )

    def _other_id(self, item: m.Item, what: str, found: int, wanted: int) -> None:
        files = self.observed.id_files.get(item.id)
        carried = "how many files carry it could not be counted"
        if files is not None:
            number = f"{'' if files.complete else 'at least '}{_count(files.count, 'file')}"
            examples = f" ({', '.join(files.examples)})" if files.examples else ""
            carried = f"{number} carry {found}{examples}"
        change = "usermod --uid" if what == "user" else "groupmod --gid"
        self._problem(
            item,
            f"{what} {item.name} has the id {found} on this host, the plan has {wanted}; {carried}",
            f"keep {found} with hearth_ids in the inventory, or change it by hand: stop what uses it, "
            f"{change} {wanted} {item.name}, then change the owner of exactly those files",
        )

    # -- storage ------------------------------------------------------------------------------------------------

    def _storage(self, item: m.Storage) -> None:
        facts = self.observed.storage.get(item.name, storage.StorageFacts(item.name))
        if facts.error:
            self.blocked.add(item.name)
            self._problem(item, f"the storage {item.name} cannot be read: {facts.error}", "mend that first")
            return
        state = storage.classify(facts, self.manifest.host, item.service)
        after = {"owner": item.owner, "group": item.group, "mode": item.mode}
        named = item.service in self.start_empty
        fresh = state.state == "new" and (item.empty_start or named)
        # A fresh start that a person asked for by name: only where nothing is left that it could hide.
        fresh = fresh or (state.state == "lost" and named and facts.empty and facts.mark is None and not facts.foreign)
        if fresh:
            before, more = self._dataset(item, "new")
            if item.name in self.blocked:
                return
            self._act("storage", item, "create", "new", None, {**after, **more})
            why = "as asked for by name" if named else "no tier is declared that could hold data of it"
            self._notice(item, f"{item.name} starts empty: {why}")
        elif state.state in ("data", "empty_marked", "away"):
            # Its own root only: ids and modes of the data below are never changed. Those of the directory under a
            # dataset that is not mounted are not the dataset's.
            before = after if state.state == "away" else self._attributes(facts)
            old, new = self._dataset(item, state.state)
            if item.name not in self.blocked and (before != after or new):
                reason = ", ".join(filter(None, (_differing(before, after), "dataset" if new else "")))
                self._act("storage", item, "modify", reason, {**before, **old}, {**after, **new})
        else:
            self.blocked.add(item.name)
            if state.state == "new":
                self._problem(
                    item,
                    f"the storage {item.name} of {item.service} is new, and its data may exist elsewhere",
                    f"restore it, or start empty on purpose with -e start_empty={item.service}",
                )
            else:
                self._problem(item, state.message, storage.remedy(state.state, item.name, item.service))

    def _dataset(self, item: m.Storage, state: storage.State) -> tuple[dict[str, t.Any], dict[str, t.Any]]:
        """What changes of a storage's dataset, before and after; a problem blocks the storage."""
        if item.provider != "zfs":
            return {}, {}
        plan = zfs_storage.plan(item, self.observed.datasets, state)
        if plan.problems:
            self.blocked.add(item.name)
            for message in plan.problems:
                self._problem(item, message, "nothing of it is changed until that is decided")
        return zfs_storage.changes(plan.steps)

    def _initialize(self, item: m.Initialize) -> None:
        if item.storage in self.blocked:
            return
        created = self.observed.files.get(item.creates, FileState())
        if created.type == "error":
            self._unknown(item, f"whether {item.creates} exists is not known: {created.message}")
            return
        if created.type != "absent":
            return
        facts = self.observed.storage.get(item.storage)
        if facts is not None and storage.classify(facts, self.manifest.host, item.service).state == "data":
            self._problem(
                item,
                f"{item.storage} held data of {item.service}, but {item.creates} is missing",
                "restore it; it is not initialised again, which would hide what was lost",
            )
            return
        self.initialized.add(item.service)
        self._act("initialize", item, "run", f"{item.creates} does not exist", None, {"creates": item.creates})

    # -- secrets ------------------------------------------------------------------------------------------------

    def _needed_secrets(self) -> dict[str, m.Item]:
        """Secrets that are applied: those of the scope, and whatever items of the scope read. Name -> an item."""
        needed: dict[str, m.Item] = {}
        for item in self.wanted:
            if isinstance(item, m.Secret):
                needed[item.name] = item
        for item in self.wanted:
            names: Sequence[str] = item.holes if isinstance(item, (m.File, m.Configure)) else ()
            if isinstance(item, (m.PodmanSecret, m.PostgresqlRole)) and item.secret:
                names = (item.secret,)
            for name in names:
                if name not in needed:
                    needed[name] = self.declared.get(f"secret:{name}", m.Secret(name, item.service))
        return needed

    def _is_stale(self, name: str) -> bool:
        if "secret" in self.observed.errors:
            return False
        stored, sent = self.observed.secrets.get(name), self.secret_digests.get(name)
        return stored is None or (sent is not None and stored != sent)

    def _secrets(self) -> None:
        early = {name for item in self.wanted if isinstance(item, m.File) and item.early for name in item.holes}
        for name, item in sorted(self._needed_secrets().items()):
            if name in self.stale:
                known = name in self.observed.secrets
                if known and isinstance(item, m.Secret) and item.data and self._holds_data(item.service):
                    self._problem(
                        item,
                        f"the value of {name} is not the one that the data of {item.service} was encrypted with (or its "
                        "devices were paired with): with another one that could not be read any more",
                        "set the old value again (sops shows the file's values; git has its history; the host's own is in "
                        f"/var/lib/hearth/secrets/{name}). When the data was encrypted anew on purpose, remove that file "
                        "from the host and converge",
                    )
                    continue
                reason = "value differs" if known else "not stored"
                self._act("early secret" if name in early else "secret", item, "store", reason)
            elif "secret" in self.observed.errors:
                self._unknown(item, self.observed.errors["secret"])
            elif name in self.observed.open_secrets:
                self._act("secret", item, "attributes", self.observed.open_secrets[name])

    def _holds_data(self, service: str) -> bool:
        """Whether a service has data already: in storage with a sentinel, or, in a database or elsewhere, since it ran."""
        items = [item for item in self.target.values() if item.service == service]
        paths = [item.name for item in items if isinstance(item, m.Storage)]
        facts = [self.observed.storage.get(path, storage.StorageFacts(path)) for path in paths]
        if any(
            storage.classify(each, self.manifest.host, service).state not in ("new", "empty_marked") for each in facts
        ):
            return True
        elsewhere = not paths or any(isinstance(item, m.PostgresqlDatabase) for item in items)
        return elsewhere and self.previous is not None and service in self.previous.services

    # -- packages -----------------------------------------------------------------------------------------------

    def _packages(self) -> None:
        wanted = [item for item in self.wanted if isinstance(item, m.Package)]
        missing = []
        for item in wanted:
            state = self.observed.packages.get(item.name, PackageState("not-installed", ""))
            if not self._failed(item) and not state.installed:
                missing.append(item)
                reason = "not installed" if state.status in ("not-installed", "config-files") else f"is {state.status}"
                self._act("package", item, "install", reason)
        apt = self.observed.apt
        if not missing or apt is None:
            return
        # New sources of this run are not read yet; what they offer cannot be known.
        early = [action for action in self.phases["early file"] if action.operation != "attributes"]
        sources = any(action.name.startswith("/etc/apt/") for action in early)
        unproven = "apt's sources change in this run" if sources else apt.stale
        for item in missing:
            if item.name in apt.unavailable:
                if unproven:
                    self._unknown(item, f"{apt.unavailable[item.name]}; {unproven}")
                else:
                    self._problem(
                        item,
                        f"package {item.name} cannot be installed: {apt.unavailable[item.name]}",
                        "correct its name, or declare the repository that has it",
                    )
        names = ", ".join(item.name for item in missing if item.name not in apt.unavailable)
        if apt.message:
            if unproven:
                self._unknown(missing[0], f"what installing {names} needs is not known: {apt.message}; {unproven}")
            else:
                self._problem(missing[0], f"apt cannot install {names}: {apt.message}", "see what apt-get says")
        # Every package of the plan may replace what it says it replaces, whichever of them apt removes it for.
        allowed = {name for item in wanted for name in item.replaces}
        for name in apt.removes:
            if name not in allowed:
                self._problem(
                    missing[0],
                    f"installing {names} would remove {name}",
                    f"list {name} under native.replaces of the service that takes its place, or remove it by hand",
                )

    # -- paths --------------------------------------------------------------------------------------------------

    def _state(self, path: str) -> FileState:
        return self.observed.files.get(path, FileState())

    def _unusable(self, item: m.Item, state: FileState) -> bool:
        if state.type != "error":
            return False
        if "parent" in state.message:
            self._problem(item, f"{item.name} cannot be made: {state.message}", "move what is in the way")
        else:
            self._unknown(item, f"{item.name} cannot be read: {state.message}")
        return True

    def _ours(self, kind: str, path: str) -> m.Item | None:
        """What the generation before has at a path as another kind."""
        return self.old.get(f"{kind}:{path}")

    def _directory(self, item: m.Directory) -> None:
        state = self._state(item.name)
        after = {"owner": item.owner, "group": item.group, "mode": item.mode}
        if self._unusable(item, state):
            return
        if state.type == "absent":
            self._act(self._directory_phase(item), item, "create", "missing", None, after)
        elif item.create_only:
            pass
        elif state.type != "directory":
            self._problem(
                item,
                f"{item.name} shall be a directory and is {_type(state)} on this host",
                "move it away",
            )
        else:
            before = self._attributes(state)
            if before != after:
                self._act(self._directory_phase(item), item, "modify", _differing(before, after), before, after)

    def _directory_phase(self, item: m.Directory) -> str:
        """Directories of files that are placed before packages are made before them."""
        inside = item.name.rstrip("/") + "/"
        early = (other.name for other in self.wanted if isinstance(other, m.File) and other.early)
        return "early directory" if any(path.startswith(inside) for path in early) else "directory"

    def _symlink(self, item: m.Symlink) -> None:
        state = self._state(item.name)
        after = {"target": item.target}
        if self._unusable(item, state):
            return
        if state.type == "absent":
            self._act("symlink", item, "create", "missing", None, after)
        elif state.type == "symlink":
            if state.target != item.target:
                self._taken_over(item)
                self._act("symlink", item, "modify", "target differs", {"target": state.target}, after)
        elif state.type == "file":
            if self._ours("file", item.name) is None:
                self._taken_over(item)
            self._act("symlink", item, "modify", "is a file", {"type": "file"}, after)
        else:
            self._problem(
                item, f"{item.name} shall be a symbolic link and is {_type(state)} on this host", "move it away"
            )

    def _taken_over(self, item: m.Item) -> None:
        if item.id not in self.old and item.name not in self.observed.originals:
            self._notice(item, f"{item.name} existed before Hearth; what was there is kept in generation 0")
        elif item.id in self.old and isinstance(item, m.Symlink):
            before = t.cast("m.Symlink", self.old[item.id])
            if self._state(item.name).target not in (before.target, item.target):
                self._notice(item, f"{item.name} was changed by hand since the last run and will be overwritten")

    def _file(self, item: m.File) -> None:
        state = self._state(item.name)
        if self._unusable(item, state):
            return
        if state.type == "symlink":
            link = self._ours("symlink", item.name)
            if not (isinstance(link, m.Symlink) and link.target == state.target):
                self._problem(
                    item,
                    f"{item.name} is a symbolic link to {state.target} on this host",
                    "remove the link, or declare the file at its target",
                )
                return
        elif state.type in ("directory", "other"):
            self._problem(item, f"{item.name} shall be a file and is {_type(state)} on this host", "move it away")
            return
        phase = "early file" if item.early else "file"
        if state.type != "file":
            reason = "missing" if state.type == "absent" else "is a symbolic link of the last generation"
            self._act(phase, item, "create", reason, None, self._described(item))
            self._needs_blob(item)
            return
        if item.create_only:
            return  # it belongs to the application
        expected = self._expected(item)
        if expected is None and "secret" in self.observed.errors:
            self._unknown(item, f"{item.name} cannot be compared: {self.observed.errors['secret']}")
            return
        attributes = self._attributes(state)
        wanted = {"mode": item.mode, "owner": item.owner, "group": item.group}
        if expected == state.digest:
            if attributes != wanted:
                self._act(phase, item, "attributes", _differing(attributes, wanted), attributes, wanted)
            return
        before = self.old.get(item.id)
        secret = bool(item.holes) or (isinstance(before, m.File) and bool(before.holes))
        self._hand_edits(item, state, expected)
        changed = [name for name in item.holes if name in self.stale]
        if changed:
            reason = f"secret {', '.join(changed)} differs"
        elif expected is None:
            reason = "its template is not stored on the host"
        else:
            reason = "content differs"
        self._act(
            # A digest of a file with secrets would give its value to whoever tries enough of them.
            phase, item, "modify", reason, {**attributes, "digest": None if secret else state.digest},
            self._described(item),
        )  # fmt: skip
        self._needs_blob(item)

    def _expected(self, item: m.File) -> str | None:
        """The digest on disk when the file is right; None when that is not known or changes in this run."""
        if not item.holes:
            return item.digest
        if any(name in self.stale for name in item.holes):
            return None
        return self.observed.filled.get(item.digest)

    def _described(self, item: m.File) -> dict[str, t.Any]:
        return {"digest": item.digest, "mode": item.mode, "owner": item.owner, "group": item.group}

    def _needs_blob(self, item: m.File) -> None:
        if item.digest not in self.blobs_present:
            self.result.needs_blobs.append(item.digest)

    def _hand_edits(self, item: m.Item, state: FileState, expected: str | None) -> None:
        """Say what will be lost: edits since the last run, or what was there before the first."""
        before = self.old.get(item.id)
        if isinstance(before, m.File):
            if self._edited(before, state) and state.digest != expected:
                # The store has only today's values: a run of other services may have replaced a secret since.
                how = "or one of its secrets was replaced " if before.holes else ""
                self._notice(item, f"{item.name} was changed by hand {how}since the last run and will be overwritten")
        elif item.name not in self.observed.originals:
            self._notice(item, f"{item.name} existed before Hearth; what was there is kept in generation 0")

    def _edited(self, before: m.File, state: FileState) -> bool:
        """Whether a file is not as the last generation left it. Not claimed where that cannot be known."""
        if before.create_only:
            return False
        left = self.observed.filled.get(before.digest) if before.holes else before.digest
        return left is not None and state.digest != left

    def _remove_paths(self) -> None:
        gone: set[str] = set()
        for item in self.removed:
            if not isinstance(item, (m.File, m.Symlink)) or item.name in self.paths or self._failed(item):
                continue
            if self._remove_path(item):
                gone.add(item.name)
        directories = [item for item in self.removed if isinstance(item, m.Directory) and item.name not in self.paths]
        directories += self._made_directories({item.name for item in directories})
        for item in sorted(directories, key=lambda item: item.name, reverse=True):
            state = self._state(item.name)
            if self._failed(item) or state.type != "directory" or item.name in self.observed.originals:
                continue
            left = [name for name in state.entries if os.path.join(item.name, name) not in gone]
            if not left:
                gone.add(item.name)
                self._act("directory removal", item, "remove", "no longer declared")
            elif item.name in self.observed.made_directories:
                pass  # somebody else's by now
            elif not any(path.startswith(item.name.rstrip("/") + "/") for path in self._kept_paths()):
                names = ", ".join(left[:3]) + (" ..." if len(left) > 3 else "")
                self._notice(item, f"{item.name} stays: it is not empty ({names})")

    def _made_directories(self, declared: Collection[str]) -> list[m.Directory]:
        """Directories that were made for files which go now, and that nothing declared."""
        found = []
        for path in sorted(self.observed.made_directories - set(declared) - self.paths):
            inside = [item for item in self.removed if isinstance(item, (m.File, m.Symlink, m.Directory))]
            owner = next((item.service for item in inside if item.name.startswith(f"{path}/")), None)
            if owner is not None:
                found.append(m.Directory(path, owner))
        return found

    def _kept_paths(self) -> set[str]:
        return self.paths | {item.name for item in self.target.values() if isinstance(item, m.Storage)}

    def _remove_path(self, item: m.File | m.Symlink) -> bool:
        """Remove or restore; whether the path is gone afterwards."""
        state = self._state(item.name)
        kept = item.name in self.observed.originals
        kind = "file" if isinstance(item, m.File) else "symlink"
        if state.type == "absent" and not kept:
            return True
        if state.type not in ("absent", kind):
            self._notice(item, f"{item.name} was replaced by {_type(state)} and stays")
            return False
        if isinstance(item, m.File) and item.create_only:
            data = tuple(f"{other.name}/" for other in self.old.values() if isinstance(other, m.Storage))
            if not item.name.startswith(data):  # the notice on the storage speaks for what is in it
                self._notice(item, f"{item.name} stays: it belongs to the application")
            return False
        if isinstance(item, m.File) and state.type == "file" and self._edited(item, state):
            self._notice(item, f"{item.name} was changed by hand since the last run and is removed")
        if isinstance(item, m.Symlink) and state.type == "symlink" and state.target != item.target:
            self._notice(item, f"{item.name} was changed by hand since the last run and is removed")
        if kept:
            self._act(kind, item, "restore", "no longer declared; existed before Hearth")
        else:
            self._act(kind, item, "remove", "no longer declared")
        return not kept

    # -- locales, images, podman secrets, firewall --------------------------------------------------------------

    def _locale(self, item: m.Locale) -> None:
        # glibc 2.35 and later have C.UTF-8 built in.
        if normal_locale(item.name) not in (self.observed.locales | {"C.utf8"}):
            self._act("locale", item, "generate", "missing")

    def _image(self, item: m.Image) -> None:
        if item.name not in self.observed.images:
            self._act("image", item, "pull", "missing")

    def _podman_secret(self, item: m.PodmanSecret) -> None:
        same = self.observed.podman_secrets.get(item.name)
        if same is None:
            self._act("podman_secret", item, "create", "missing")
        elif item.secret in self.stale or not same:
            self._act("podman_secret", item, "modify", "value differs")

    def _remove_podman_secrets(self) -> None:
        for item in self.removed:
            if not isinstance(item, m.PodmanSecret) or self._failed(item):
                continue
            if item.name in self.observed.podman_secrets:
                self._act("podman_secret", item, "remove", "no longer declared")

    def _firewall(self) -> None:
        changed, removed = self._changed()
        for item in self.target.values():
            if not isinstance(item, m.Firewall) or (self._in_scope(item) and self._failed(item)):
                continue
            # The fragments of all services are below the directory of the main file, when it has one of its own.
            directory = os.path.dirname(item.path)
            entries = [f"file:{item.path}", *([f"file:{directory}/"] if directory != "/etc" else [])]
            causes = triggered(entries, changed | removed)
            state = self.observed.firewall.get(item.name)
            if causes:
                self._act("firewall", item, "load", f"{_causes(causes)} changed")
            elif not self._in_scope(item) or state is None:
                continue
            elif state.same is None:
                self._unknown(item, f"the live table {item.name} cannot be compared: {state.message}")
            elif not state.same:
                self._act("firewall", item, "load", "live rules differ" if state.exists else "not loaded")
        for item in self.removed:
            if isinstance(item, m.Firewall) and not self._failed(item):
                state = self.observed.firewall.get(item.name)
                if state is not None and state.exists:
                    self._act("firewall", item, "remove", "no longer declared")
                elif state is not None and state.exists is None and "not installed" not in state.message:
                    self._unknown(item, f"whether the table {item.name} is loaded is not known: {state.message}")

    # -- units --------------------------------------------------------------------------------------------------

    def _stop_removed_units(self) -> None:
        units = [item for item in self.removed if isinstance(item, m.Unit)]
        order = service_order(self.previous.services) if self.previous else []
        rank = {name: index for index, name in enumerate(reversed(order))}
        names = self._declared_units()
        for item in sorted(units, key=lambda item: (rank.get(item.service, len(rank)), item.name)):
            if self._failed(item):
                continue
            state = self.observed.units.get(item.name)
            if state is None or state.name in names:
                continue  # never loaded, or declared by another of its names
            before = {"active": state.active, "enabled": state.file_state}
            runs, starts = self._handed_back(item, state)
            if state.active not in ("inactive", "failed") and not runs:
                self._act("stop", item, "stop", "no longer declared", before, {"active": "inactive"})
            enabled = state.file_state == "enabled" or (state.file_state == "enabled-runtime" and "@" not in item.name)
            if enabled and not starts:
                self._act("stop", item, "disable", "no longer declared", before, {"enabled": "disabled"})

    def _handed_back(self, item: m.Unit, state: UnitState) -> tuple[bool, bool]:
        """Whether a unit that nothing declares any more keeps running, and stays enabled: what was so before Hearth is
        not ours to stop, and a guarded one may be the way to this host. One whose file goes is always stopped."""
        if self._goes(state.fragment) or self._goes(f"/etc/systemd/system/{item.name}"):
            return False, False
        kept = self.observed.original_units.get(item.name, {})
        if item.guarded and not kept.get("active"):
            self._notice(item, f"{item.name} is no longer declared and keeps running: it may be the way to this host")
            return True, True
        if kept.get("active"):
            self._notice(item, f"{item.name} is no longer declared and keeps running, as before Hearth")
        return bool(kept.get("active")), bool(kept.get("enabled"))

    def _goes(self, path: str) -> bool:
        """Whether this run removes the file at a path."""
        return f"file:{path}" in self.old and path not in self.paths

    def _declared_units(self) -> set[str]:
        """All names of the units of the resulting generation."""
        return {name for item in self.target.values() if isinstance(item, m.Unit) for name in self._names(item.name)}

    def _names(self, unit: str) -> set[str]:
        """All names of a unit: its own, and its aliases."""
        state = self.observed.units.get(unit)
        return {unit, *(({state.name} | state.names) if state else ())}

    def _services(self) -> None:
        """Units and databases, service by service in dependency order."""
        order = service_order(self.merged.services)
        for service in [*order, *sorted((set(self.units) | set(self.databases)) - set(order))]:
            state = self.merged.services.get(service)
            position = {name: index for index, name in enumerate(state.units if state else ())}
            units = self.units.get(service, [])
            for unit in sorted(units, key=lambda item: (position.get(item.name, len(position)), item.name)):
                self._unit(unit)
            self._postgresql(service)
        for item in self.removed:
            if isinstance(item, m.Unit) and not self._failed(item):
                self._left_running(item)

    def _left_running(self, item: m.Unit) -> None:
        """A unit that was handed back reads its files again when some of them go."""
        stopped = {action.name for action in self.phases["stop"] if action.operation == "stop"}
        state = self.observed.units.get(item.name)
        if state is None or not _runs(state) or item.name in stopped or state.name in self._declared_units():
            return
        _changed, removed = self._changed()
        before = {"active": state.active, "enabled": state.file_state}
        restart, reload = triggered(item.restart_on, removed), triggered(item.reload_on, removed)
        if restart or (reload and not state.can_reload):
            self._act("services", item, "restart", f"{_causes([*restart, *reload])} changed", before)
        elif reload:
            self._act("services", item, "reload", f"{_causes(reload)} changed", before)

    def _unit(self, item: m.Unit) -> None:
        if not self._in_scope(item):
            self._consumer(item)
            return
        if self._failed(item):
            return
        state = self.observed.units.get(item.name, UnitState(item.name))
        if "@." in item.name:
            self._problem(item, f"{item.name} is a template", "declare an instance of it")
            return
        if state.load == "masked" and state.file_state in _MASKED and (item.running or item.enabled):
            runtime = " --runtime" if state.file_state == "masked-runtime" else ""
            self._problem(
                item,
                f"{item.name} is masked on this host, so it cannot be started",
                f"systemctl unmask{runtime} {item.name}, or do not declare it",
            )
            return
        self._foreign_drop_ins(item, state)
        before = {"active": state.active, "enabled": state.file_state}
        self._enable(item, state, before)
        if item.running is False:
            if state.active not in ("inactive", "failed"):
                self._act("services", item, "stop", "shall not run", before, {"active": "inactive"})
        elif item.running and not _runs(state):
            self._act("services", item, "start", _why_not(state), before, {"active": "active"})
        else:
            self._consumer(item)

    def _foreign_drop_ins(self, item: m.Unit, state: UnitState) -> None:
        """Drop-ins of an administrator (systemctl edit, set-property) change what the plan says of a unit."""
        ours = self.paths | {entry.name for entry in self.removed if isinstance(entry, m.File)}
        found = [
            path
            for path in state.drop_ins
            if path.startswith(_DROP_INS) and path not in ours and not path.endswith("/")
        ]
        # Those for all units, such as service.d/, are not about this one.
        found = [path for path in found if os.path.basename(os.path.dirname(path)) not in ("service.d", "timer.d")]
        if found:
            self._notice(item, f"{item.name} has drop-ins that are not Hearth's and stay: {', '.join(found)}")

    def _lost_effects(self, item: m.Unit) -> list[str]:
        """What an active oneshot had made and is not there any more."""
        lost = []
        for entry in item.effects:
            state = self.observed.effects.get(entry)
            path = entry.partition("=")[0]
            if state is not None and state.ok is None:
                self._notice(item, f"{item.name} is asked for {path} on this host in vain: {state.found}")
            elif state is not None and not state.ok:
                lost.append(f"{path} {state.found}")
        return lost

    def _enable(self, item: m.Unit, state: UnitState, before: dict[str, t.Any]) -> None:
        found = state.file_state
        # Generators (postgresql-common's) link instances at run time; that is how they are enabled.
        enabled = found == "enabled" or (found == "enabled-runtime" and "@" in item.name)
        if item.enabled is True and not enabled:
            if found in _NOT_ENABLEABLE:
                if found != "generated":
                    self._notice(item, f"{item.name} cannot be enabled: it is {found} (it has no [Install] section)")
            else:
                reason = f"is {found}" if found else "is not there yet"
                self._act("services", item, "enable", reason, before, {"enabled": "enabled"})
        elif item.enabled is False and (enabled or found == "enabled-runtime"):
            self._act("services", item, "disable", "shall not start at boot", before, {"enabled": "disabled"})

    def _consumer(self, item: m.Unit) -> None:
        """Restart or reload a running unit when what it reads changes, also one outside of the scope."""
        state = self.observed.units.get(item.name)
        if state is None or state.active not in ("active", "reloading", "refreshing", "activating"):
            return
        if item.running is None and state.active != "active":
            return  # a job that a timer started: the next one reads the new files
        changed, removed = self._changed()
        versions = [item]
        if not self._in_scope(item) and isinstance(declared := self.declared.get(item.id), m.Unit):
            versions.append(declared)  # it may name what other services add in this run
        old = self.old.get(item.id)

        def causes(field: str) -> list[str]:
            entries = [entry for version in versions for entry in getattr(version, field)]
            found = triggered(entries, changed | removed)
            if old is not None:  # what is removed is named by the generation that had it
                found += triggered(getattr(old, field), removed)
            return sorted(set(found))

        before = {"active": state.active, "enabled": state.file_state}
        restart, reload = causes("restart_on"), causes("reload_on")
        if restart:
            self._act("services", item, "restart", f"{_causes(restart)} changed", before)
        elif reload and state.can_reload:
            self._act("services", item, "reload", f"{_causes(reload)} changed", before)
        elif reload:
            self._act("services", item, "restart", f"{_causes(reload)} changed (it cannot reload)", before)
        elif self._in_scope(item) and (lost := self._lost_effects(item)):
            self._act("services", item, "restart", "; ".join(lost), before)

    # -- PostgreSQL ---------------------------------------------------------------------------------------------

    def _postgresql(self, provider: str) -> None:
        """Roles and databases of one server, right after its units."""
        state = self.observed.postgresql.get(provider)
        if provider in self.initialized:
            state = PostgresqlState()  # its first data is made in this run: there is nothing in it
        for item in self.databases.get(provider, ()):
            message = self.observed.errors.get(f"postgresql {provider}") or (state.error if state else "")
            if state is None or message:
                what = "role" if isinstance(item, m.PostgresqlRole) else "database"
                why = message or "it was not asked"
                self._unknown(item, f"the {what} {item.name} is not known before PostgreSQL answers: {why}")
            elif isinstance(item, m.PostgresqlRole):
                self._role(item, state)
            else:
                self._database(item, state)
        for gone in self.removed:
            if isinstance(gone, m.PostgresqlRole) and gone.provider == provider and provider in self.merged.services:
                if state is None or state.error:
                    self._unknown(gone, f"whether the role {gone.name} can still log in is not known")
                elif gone.name in state.roles and state.roles[gone.name].login:
                    self._act("services", gone, "disable", "no longer declared", {"login": True}, {"login": False})

    def _role(self, item: m.PostgresqlRole, state: PostgresqlState) -> None:
        role = state.roles.get(item.name)
        after: dict[str, t.Any] = {"login": item.login}
        if item.member_of:
            after["member_of"] = sorted(item.member_of)
        if role is None:
            self._act("services", item, "create", "missing", None, after)
        elif role.login != item.login:
            reason = "may not log in" if item.login else "may log in"
            self._act("services", item, "modify", reason, {"login": role.login}, after)
        elif role.rights:
            before = {"login": role.login, "rights": list(role.rights)}
            self._act("services", item, "modify", f"has {', '.join(role.rights)}", before, {**after, "rights": []})
        elif set(role.member_of) != set(item.member_of):
            missing, more = set(item.member_of) - set(role.member_of), set(role.member_of) - set(item.member_of)
            reasons = [
                f"{what} {', '.join(sorted(names))}"
                for what, names in (("is not in", missing), ("is in", more))
                if names
            ]
            before = {"login": role.login, "member_of": list(role.member_of)}
            self._act(
                "services", item, "modify", ", ".join(reasons), before, {**after, "member_of": sorted(item.member_of)}
            )
        elif item.secret and (item.secret in self.stale or not role.password_matches):
            self._act("services", item, "modify", "password differs", {"login": role.login}, after)

    def _database(self, item: m.PostgresqlDatabase, state: PostgresqlState) -> None:
        database = state.databases.get(item.name)
        after: dict[str, t.Any] = {"owner": item.owner, "encoding": item.encoding}
        after["extensions"] = sorted(item.extensions)
        if database is None and self._database_lost(item):
            self._problem(
                item,
                f"the database {item.name} of {item.service} was there at the last run and is gone",
                f"restore it, or make it anew and empty with -e start_empty={item.service}",
            )
            return
        if database is None:
            self._act("services", item, "create", "missing", None, after)
            return
        if database.encoding != item.encoding:
            self._problem(
                item,
                f"the database {item.name} has the encoding {database.encoding}, the plan has {item.encoding}",
                "an encoding cannot be changed: dump the database, make it anew and load the dump",
            )
            return
        missing = sorted(set(item.extensions) - database.extensions)
        if missing or (item.owner and database.owner != item.owner):
            reason = f"extension {', '.join(missing)} missing" if missing else f"owner is {database.owner}"
            before = {
                "owner": database.owner, "encoding": database.encoding, "extensions": sorted(database.extensions),
            }  # fmt: skip
            self._act("services", item, "modify", reason, before, after)

    def _database_lost(self, item: m.PostgresqlDatabase) -> bool:
        """Whether a generation had the database: it is data, and an empty one would hide that it was lost."""
        if item.provider in self.initialized or self.start_empty & {item.service, item.provider}:
            return False
        before = self.old.get(item.id)
        return isinstance(before, m.PostgresqlDatabase) and before.provider == item.provider

    # -- objects of applications --------------------------------------------------------------------------------

    def _configure(self) -> None:
        """What applications' APIs have: compared while they run, read again after the services of this run."""
        for item in self.wanted:
            if not isinstance(item, m.Configure) or self._failed(item):
                continue
            if item.provider in self.merged.services:
                self._object(item)
            else:
                self._notice(
                    item, f"{item.provider} is not on this host yet: a run with it makes what {item.name} asks of it"
                )
        for gone in self.removed:
            if isinstance(gone, m.Configure) and gone.provider in self.merged.services and not self._failed(gone):
                self._object_gone(gone)

    def _starts(self, service: str) -> bool:
        """Whether a service is not running before this run, or starts anew in it."""
        units = self.units.get(service, ())
        acted = {action.name for action in self.phases["services"] if action.operation in ("start", "restart")}
        return any(unit.name in acted for unit in units)

    def _object(self, item: m.Configure) -> None:
        state = self.observed.configured.get(item.name)
        key = str(item.desired.get(item.match, item.name))
        after = {item.match: key}
        changed = [name for name in item.holes if name in self.stale and name in configure.holes(item.desired)]
        if state is None or state.error:
            why = "it is started by this run" if self._starts(item.provider) else state.error if state else "not asked"
            self._unknown(item, f"what {item.provider} has as {key} is not known before it answers: {why}")
        elif not state.found:
            self._act("configure", item, "create", "missing", None, after)
        elif state.differs:
            self._act("configure", item, "modify", f"{', '.join(state.differs)} differ", after, after)
        elif changed:
            # The application does not show secrets; that this one is stored anew says that it is another.
            self._act("configure", item, "modify", f"secret {', '.join(changed)} differs", after, after)

    def _object_gone(self, item: m.Configure) -> None:
        state = self.observed.configured.get(item.name)
        key = str(item.desired.get(item.match, item.name))
        if state is None or (state.error and not state.found):
            self._unknown(item, f"whether {item.provider} still has {key} is not known: {state.error if state else ''}")
        elif state.found:
            self._act("configure", item, "remove", "no longer declared", {item.match: key}, None)

    # -- listeners ----------------------------------------------------------------------------------------------

    def _listeners(self) -> None:
        """Ports of services that will be started, held by what belongs to no unit of this or the last plan."""
        acted = {action.service for action in self.phases["services"] if action.operation in ("start", "restart")}
        ours = [item for item in (*self.target.values(), *self.old.values()) if isinstance(item, m.Unit)]
        known = {name for item in ours for name in self._names(item.name)}
        for service in sorted(acted):
            state = self.merged.services.get(service)
            if state is None or (self.scope is not None and service not in self.scope):
                continue
            error = self.observed.errors.get("listener")
            if error is not None and state.listeners:
                message = f"whether the ports of {service} are free is not known: {error}"
                self.result.unknown.append(Notice(service, "", message))
                continue
            for entry in state.listeners:
                protocol, _, rest = entry.partition("/")
                address, _, port = rest.rpartition("/")
                holders = [
                    listener
                    for listener in self.observed.listeners or ()
                    if (listener.protocol, str(listener.port)) == (protocol, port)
                    and addresses_clash(address, listener.address)
                    and not known & set(listener.units)
                ]
                for holder in {(holder.process, holder.pid): holder for holder in holders}.values():
                    self._held(service, entry, holder)

    def _held(self, service: str, entry: str, holder: Listener) -> None:
        protocol, _, rest = entry.partition("/")
        port = rest.rpartition("/")[2]
        if holder.pid == 0:
            message = f"{protocol} port {port} of {service} is held by the kernel (no process)"
            self.result.notices.append(Notice(service, "", message))
            return
        unit = next((name for name in holder.units if not name.endswith(".scope")), "")
        named = f"{holder.process} (process {holder.pid}{', ' + unit if unit else ''})"
        remedy = f"systemctl disable --now {unit}" if unit else f"stop process {holder.pid}"
        message = f"{protocol} port {port}, which {service} listens on, is held by {named}"
        self.result.problems.append(Problem(service, "", message, f"{remedy}, or give {service} another port"))

    # -- what stays ---------------------------------------------------------------------------------------------

    def _staying(self) -> None:
        """Say of every service that goes which of its data stays, and where."""
        described: dict[str, list[str]] = {}
        for item in self.removed:
            if isinstance(item, m.Storage):
                self._notice(item, f"the data of {item.service} stays in {item.name}")
            elif isinstance(item, m.PostgresqlDatabase):
                self._notice(item, f"the database {item.name} of {item.service} stays in PostgreSQL ({item.provider})")
            elif isinstance(item, (m.User, m.Group, m.Package, m.Image)):
                described.setdefault(item.service, []).append(f"{item.kind} {item.name}")
        stored = [item for item in self.removed if isinstance(item, m.Secret) and item.name in self.observed.secrets]
        for service in sorted({item.service for item in stored}):
            number = sum(1 for item in stored if item.service == service)
            described.setdefault(service, []).append(f"{_count(number, 'secret')} in the host's store")
        for service, names in sorted(described.items()):
            self.result.notices.append(Notice(service, "", f"of {service} stay: {', '.join(sorted(names))}"))


def _differing(before: Mapping[str, t.Any], after: Mapping[str, t.Any]) -> str:
    """What differs, for people: ``mode is 0644, owner is root``."""
    return ", ".join(f"{key} is {before[key]}" for key in after if before[key] != after[key])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _type(state: FileState) -> str:
    return {
        "file": "a file", "directory": "a directory", "symlink": f"a symbolic link to {state.target}",
        "other": "neither a file nor a directory",
    }.get(state.type, state.type)  # fmt: skip


def _causes(ids: Sequence[str]) -> str:
    names = [id_.partition(":")[2] for id_ in ids]
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _runs(state: UnitState) -> bool:
    """Whether a unit runs or is on its way; one between two restarts does not (SubState, systemd(1))."""
    if state.active in ("active", "reloading", "refreshing"):
        return True
    return state.active == "activating" and not state.sub.startswith("auto-restart")


def _why_not(state: UnitState) -> str:
    if state.sub.startswith("auto-restart"):
        return f"fails and is restarted ({state.restarts} times)"
    if state.active == "failed":
        return f"failed ({state.result})" if state.result else "failed"
    return "not running"


def addresses_clash(wanted: str, held: str) -> bool:
    """Whether a listener on ``wanted`` cannot be had beside one on ``held``; ``*`` is both families (ss(8))."""
    wildcards = {"*": {4, 6}, "0.0.0.0": {4}, "::": {6}}  # noqa: S104 (compared, not bound)
    families = [wildcards.get(address, {6} if ":" in address else {4}) for address in (wanted, held)]
    if wanted in wildcards or held in wildcards:
        return bool(families[0] & families[1])
    return wanted == held
