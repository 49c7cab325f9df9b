# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every instant at which a run can be killed, on a simulated host (simulated_host.py).

One undisturbed run of a plan is recorded: before each effect (a file operation, a piece of a journal line, an fsync, an
effect of a program) the host is remembered. Each of these crash states is then settled, as hearth-settle.service does,
or after a power cut, as a boot does; settling is killed as well. What must hold is said in ``Judge``.

Every step of the journal and every effect of a program is among them always, of the file operations in between a
fifth; settling is killed at other instants for other crash states. HEARTH_KILLS=all takes every instant of the run,
both ways of settling, and every instant of each (hours).
"""

from __future__ import annotations

import base64
import contextlib
import os
import tempfile
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ansible_collections.hearth.homelab.plugins.module_utils import actions, agent, generations, lock, undo
from ansible_collections.hearth.homelab.plugins.module_utils import journal as journals
from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.module_utils.layout import read_json

from .simulated_host import Full, Quiet, SimulatedHost, Tree, simulate  # noqa: F401 (a fixture)

Snapshot = tuple[Tree, dict[str, t.Any]]
RULES = 'table inet hearth {}\ndelete table inet hearth\ntable inet hearth {\n  port %d\n}\ninclude "/etc/nftables/hearth.d/*.nft"\n'
UNIT = "[Unit]\nRequires={requires}\nReads={reads}\nData={data}\n[Install]\nWantedBy=multi-user.target\n"
IMAGE = "registry.example.com/box:%s"


class World:
    """A manifest under construction, its contents and secrets."""

    def __init__(self) -> None:
        self.services: dict[str, m.ServiceState] = {}
        self.items: list[m.Item] = []
        self.validators: list[m.Validator] = []
        self.blobs: dict[str, bytes] = {}
        self.secrets: dict[str, str] = {}

    def service(self, name: str, tier: str = "services", **more: t.Any) -> None:
        checks = (m.Check("tcp", port=1),)
        self.services[name] = m.ServiceState(name, tier, **{"checks": checks, "start_period": 5, "settle": 2, **more})

    def file(self, service: str, path: str, text: str, **more: t.Any) -> None:
        digest = m.digest(text.encode())
        self.blobs[digest] = text.encode()
        self.items.append(m.File(path, service, digest=digest, size=len(text), **more))

    def secret(self, service: str, key: str, value: str) -> None:
        self.items.append(m.Secret(f"{service}/{key}", service))
        self.secrets[f"{service}/{key}"] = value

    def add(self, *items: m.Item) -> None:
        self.items += items

    @property
    def manifest(self) -> m.Manifest:
        return m.Manifest(
            "sim", "debian13", "amd64", self.services, m.sort_items(self.items), tuple(self.validators)
        )  # fmt: skip


def world(
    text: str = "old",
    *,
    change: bool = False,
    gone: t.Collection[str] = (),
    port: int = 1,
    caddyfile: str = "",
    app: str = "",
) -> World:
    """A host with one of everything. ``change``: nearly everything of it is another; ``gone``: services without."""
    w = World()
    w.service("base", "core", checks=())
    w.add(m.Hostname("forge" if change else "sim", "base"), m.Locale("en_GB.UTF-8", "base"))
    w.file("base", "/etc/motd", f"motd {text}\n")
    w.add(m.Symlink("/etc/localtime", "base", target="/usr/share/zoneinfo/Europe/" + ("Paris" if change else "London")))
    w.add(m.Directory("/etc/base.d", "base", mode="0750" if change else "0755"))
    w.file("base", "/etc/base.d/attributes", "same\n", mode="0600" if change else "0644")
    w.add(m.User("rydev", "base", uid=1500, group="rydev", groups=("media",) if change else (), home="/home/rydev",
                 shell="/bin/bash" if change else "/bin/sh", comment="Ry", system=False))  # fmt: skip
    w.add(m.Group("rydev", "base", gid=1500))
    w.add(m.Configure("base/box", "base", provider="box", url="http://127.0.0.1:9/objects", desired={"name": "base"}))
    # Enabled and running before, neither afterwards, and the other way round.
    reads = ("file:/etc/motd",)
    w.add(m.Unit("cron.service", "base", enabled=not change, running=not change, restart_on=reads))
    w.add(m.Unit("atd.service", "base", enabled=change, running=change))
    w.service("nftables", "core", checks=())
    w.file("nftables", "/etc/nftables/hearth.nft", RULES % port)
    w.add(m.Directory("/etc/nftables/hearth.d", "nftables"))
    w.add(
        m.Firewall("inet hearth", "nftables", path="/etc/nftables/hearth.nft"), m.Unit("nftables.service", "nftables")
    )
    w.service("sshd", "core", checks=())
    w.file("sshd", "/etc/ssh/hearth.conf", f"Port {21 + port}\n")
    w.add(m.Unit("ssh.service", "sshd", guarded=True, reload_on=("file:/etc/ssh/hearth.conf",)))
    w.service("caddy", "infrastructure")
    w.add(m.Package("caddy", "caddy"), m.Directory("/etc/caddy/sites", "caddy"))
    w.file("caddy", "/etc/caddy/Caddyfile", f"import sites/*\n{caddyfile}")
    w.add(m.Unit("caddy.service", "caddy", reload_on=("file:/etc/caddy/Caddyfile", "file:/etc/caddy/sites/")))
    w.validators.append(m.Validator("caddy", "caddy", ("caddy", "validate"), ("/etc/caddy/",)))
    w.service("postgresql", "infrastructure")
    w.add(m.Package("postgresql", "postgresql"), m.Group("postgres", "postgresql", gid=2002))
    w.add(m.User("postgres", "postgresql", uid=2002, group="postgres"))
    w.add(m.Storage("/var/lib/postgresql", "postgresql", mode="0755" if change else "0750"))
    w.add(m.Initialize("main", "postgresql", argv=("initdb", "-D", "/var/lib/postgresql/17/main"),
                       creates="/var/lib/postgresql/17/main/PG_VERSION", storage="/var/lib/postgresql"))  # fmt: skip
    w.file("postgresql", "/etc/postgresql-common/createcluster.conf", "create_main_cluster = false\n", early=True)
    w.file("postgresql", "/etc/postgresql/conf", f"max_connections = {50 + port}\n")
    w.add(m.Unit("postgresql.service", "postgresql", restart_on=("file:/etc/postgresql/conf",)))
    service(w, "app", 2101, app or text, requires=("postgresql",))
    # A change gives it one predefined role and takes another one.
    member_of = ("pg_monitor", "pg_read_all_data") if change else ("pg_checkpoint", "pg_monitor")
    w.add(m.PostgresqlRole("app", "app", secret="app/key", member_of=member_of))
    w.add(m.PostgresqlDatabase("app", "app", owner="app", extensions=("pg_trgm",) if change else ()))
    service(w, "dep", 2102, "constant", requires=("app",))
    w.service("box", requires=("dep",))
    w.secret("box", "token", f"box-token-{text}")
    w.add(m.Image(IMAGE % ("2" if change else "1"), "box"), m.PodmanSecret("box-token", "box", secret="box/token"))
    w.file("box", "/etc/containers/systemd/box.container",
           f"Image={IMAGE % ('2' if change else '1')}\nSecret=box-token\nRequires=dep.service\n")  # fmt: skip
    reads = ("file:/etc/containers/systemd/box.container", "podman_secret:box-token")
    w.add(m.Unit("box.service", "box", enabled=None, restart_on=reads))
    w.add(m.Configure("app/box", "app", provider="box", url="http://127.0.0.1:9/objects",
                      desired={"name": "app", "text": text}))  # fmt: skip
    if change:
        w.service("extra", checks=())
        w.add(m.Package("extra", "extra"), m.Unit("extra.service", "extra"))
        service(w, "fresh", 2104, "fresh", requires=("app",))
    if "box" in gone:
        w.items = [item for item in w.items if item.id != "configure:base/box"]
    for name in gone:
        w.services.pop(name)
        w.items = [item for item in w.items if item.service != name]
        w.secrets = {key: value for key, value in w.secrets.items() if not key.startswith(f"{name}/")}
    return w


def service(w: World, name: str, uid: int, text: str, requires: tuple[str, ...] = ()) -> None:
    """A native service: user, storage with its gate, secret, configuration with a hole, route, port."""
    w.service(name, requires=requires)
    w.add(m.Group(name, name, gid=uid), m.User(name, name, uid=uid, group=name))
    w.add(m.Storage(f"/var/lib/{name}", name, mode="0750"), m.Directory(f"/etc/{name}", name))
    w.add(m.Symlink(f"/etc/{name}/link", name, target="conf"))
    w.secret(name, "key", f"secret-{name}-{text}")
    w.file(name, f"/etc/{name}/conf", f"text {text}\nkey @@hearth:{name}/key@@\n", holes=(f"{name}/key",), mode="0640")
    units = " ".join((f"hearth-gate@{name}.service", *(f"{other}.service" for other in requires)))
    unit = UNIT.format(requires=units, reads=f"/etc/{name}/conf", data=f"/var/lib/{name}")
    w.file(name, f"/etc/systemd/system/{name}.service", unit)
    w.file(name, f"/etc/caddy/sites/{name}", f"{name} {'old' if text == 'old' else 'new'}\n")
    w.file(name, f"/etc/nftables/hearth.d/{name}.nft", f"allow {uid}\n")
    reads = (f"file:/etc/{name}/conf", f"file:/etc/systemd/system/{name}.service", f"secret:{name}/key")
    w.add(m.Unit(f"{name}.service", name, restart_on=reads))


# --- what a service is -------------------------------------------------------------------------------------------------


def picture(host: SimulatedHost, worlds: t.Iterable[World]) -> dict[str, dict[str, t.Any]]:
    """Each service as it is: what of it is on disk, in its programs and in what it runs with.

    Not what stays by design: packages, users, storage, images, databases. ``exists`` says whether the service does."""
    result: dict[str, dict[str, t.Any]] = {}
    for w in worlds:
        for item in w.items:
            own = result.setdefault(item.service, {})
            if isinstance(item, (m.File, m.Symlink, m.Directory)):
                own[item.id.replace("symlink:", "file:")] = _path(host, item.name)
            elif isinstance(item, m.Secret):
                own[item.id] = host.text(f"/var/lib/hearth/secrets/{item.name}")
            elif isinstance(item, m.PodmanSecret):
                own[item.id] = host.state["podman_secrets"].get(item.name)
            elif isinstance(item, m.Hostname):
                own["hostname"] = ((host.text("/etc/hostname") or "").strip(), host.text("/proc/sys/kernel/hostname"))
            elif isinstance(item, m.Firewall):
                own[item.id] = host.state["firewall"].get(item.name)
            elif isinstance(item, m.Unit):
                active = host.unit(item.name)["active"]
                own[item.id] = (
                    active,
                    host.enabled(item.name),
                    "" if host.fresh(item.name) else "runs with other files",
                )
            elif isinstance(item, m.PostgresqlRole):
                role = host.state["roles"].get(item.name)
                own[item.id] = (role["verifier"], *role["member_of"]) if role and role["login"] else None
            elif isinstance(item, m.Configure):
                found = [o for o in host.state["objects"].values() if o.get("name") == item.desired["name"]]
                own[item.id] = found
    return result


def _path(host: SimulatedHost, path: str) -> t.Any:
    real = host.at(path)
    if real.is_symlink():
        return ("link", os.readlink(real))
    if real.is_dir():
        return ("directory", oct(real.stat().st_mode))
    text = host.text(path)
    # What a package brings stays with its package.
    return None if text is None or text.startswith("# package default") else (text, oct(real.stat().st_mode))


# --- a case: from one world to another --------------------------------------------------------------------------------


@dataclass
class Case:
    """A change of the host: ``before`` (None: it never had a run), ``after``, and how the undisturbed run ends."""

    name: str
    before: World | None
    after: World
    confirm: bool = True
    outcome: str = "new"  # or "undone"
    held: tuple[str, ...] = ()
    next: World | None = None  # what converges afterwards, where ``after`` cannot
    drift: t.Callable[[SimulatedHost], None] | None = None  # what somebody did between the two

    def prepare(self, host: SimulatedHost) -> None:
        """Makes the host what it is before the run."""
        if self.before:
            result = converge(host, self.before, "first")
            assert result["ok"], result
        if self.drift:
            with Quiet():
                self.drift(host)


@dataclass
class Recorded:
    """The undisturbed run: pictures before and after, and every instant of it."""

    old: dict[str, dict[str, t.Any]]
    new: dict[str, dict[str, t.Any]]
    old_generation: m.Manifest | None
    new_generation: m.Manifest | None
    data: dict[str, str]
    originals: frozenset[str]  # what generation 0 keeps in the end
    moments: list[tuple[str, Snapshot]] = field(default_factory=list)


def request(host: SimulatedHost, w: World, run: str) -> None:
    """The controller's half: everything is sent, and the run's unit would start."""
    answer = agent.apply(
        host.layout,
        {
            "manifest": w.manifest.to_dict(), "secrets": w.secrets, "run": {"id": run, "owner": "tester"},
            "blobs": {digest: base64.b64encode(content).decode() for digest, content in w.blobs.items()},
        },
    )  # fmt: skip
    assert answer == {"run": run}


def result_of(host: SimulatedHost, run: str) -> dict[str, t.Any]:
    return t.cast("dict[str, t.Any]", read_json(host.layout.run(run) / "result.json"))


def converge(host: SimulatedHost, w: World, run: str) -> dict[str, t.Any]:
    request(host, w, run)
    agent.run_unit(host.layout, run)
    return result_of(host, run)


def data_of(host: SimulatedHost) -> dict[str, str]:
    """What belongs to people: contents of storage, and databases' rows."""
    found = {str(path): path.read_text() for path in host.at("/var/lib").glob("*/data")}
    found |= {f"database {name}": entry["rows"] for name, entry in host.state["databases"].items()}
    return found


class Judge:
    """Settles crash states of a case and says what does not hold."""

    def __init__(self, host: SimulatedHost, case: Case, recorded: Recorded) -> None:
        self.host, self.case, self.recorded = host, case, recorded
        self.worlds = [w for w in (case.before, case.after, case.next) if w]
        self.next = case.next or case.after

    def settled(self, shipping: bool = False) -> list[str]:
        """What does not hold after settling. ``shipping``: the run had not begun, and nobody is told that it never will."""
        host, wrong = self.host, list(self.host.violations)
        now = picture(host, [w for w in (self.case.before, self.case.after) if w])
        sides = {}
        for name, state in now.items():
            matches = {side for side, known in (("old", self.recorded.old), ("new", self.recorded.new))
                       if state == known.get(name)}  # fmt: skip
            if not matches:
                wrong.append(f"{name} is neither old nor new: {difference(state, self.recorded, name)}")
            sides[name] = matches
        common = set.intersection(*sides.values()) if sides else set()
        if not common and not wrong:
            wrong.append(f"some services are old and others new: {sides}")
        present = generations.current(host.layout)
        manifest = present.manifest if present else None
        for side, known in (("old", self.recorded.old_generation), ("new", self.recorded.new_generation)):
            if side in common and manifest == known:
                break
        else:
            wrong.append("the recorded generation is not what is there")
        for path, text in self.recorded.data.items():
            if data_of(host).get(path) != text:
                wrong.append(f"data was touched: {path}")
        # What the interrupted run itself had placed came back when its service was removed.
        foreign = set(generations.originals(host.layout)) - self.recorded.originals
        if foreign:
            wrong.append(f"kept as if it had existed before Hearth: {sorted(foreign)}")
        return wrong + ([] if shipping else self.leftovers())

    def leftovers(self) -> list[str]:
        """What must not outlive a run."""
        host, layout = self.host, self.host.layout
        wrong = [f"{path} is left" for path in host.root.rglob("*.hearth-tmp")]
        if lock.holder(layout) is not None:
            wrong.append("the lock is held")
        if host.at("/usr/sbin/policy-rc.d").exists():
            wrong.append("policy-rc.d is left")
        wrong += [f"{path.name} is masked" for path in host.at("/run/systemd/system").iterdir()]
        if list(layout.runtime.iterdir()) if layout.runtime.is_dir() else ():
            wrong.append(f"secrets in transit are left: {sorted(path.name for path in layout.runtime.iterdir())}")
        if os.path.lexists(layout.state / "active"):
            wrong.append("the run is still active")
        if host.state["timers"]:
            wrong.append("the guard's timer is left")
        if generations.unfinished_runs(layout):
            wrong.append("the journal has not ended")
        for run in layout.runs.iterdir():
            if not (run / "result.json").exists():
                wrong.append(f"run {run.name} has no result")
            if (run / "before").exists():
                wrong.append(f"what run {run.name} replaced is left")
        half = [name for name, status in host.state["packages"].items() if status != "installed"]
        if half:
            wrong.append(f"packages are half installed: {half}")
        for name, unit in host.state["units"].items():
            if unit["active"] == "failed":
                wrong.append(f"{name} failed")
        return wrong

    def again(self) -> list[str]:
        """The next run of the same, then one more."""
        result = converge(self.host, self.next, "next")
        expected = not self.case.held and (self.case.outcome == "new" or self.case.next is not None)
        wrong = [] if result["ok"] == expected else [f"the next run: {result['problems']} {result['taken_back']}"]
        if sorted(result["taken_back"]) != sorted(self.case.held):
            wrong.append(f"the next run took back {result['taken_back']}")
        now = picture(self.host, self.worlds)
        known = self.recorded.new if self.case.outcome == "new" else self.recorded.old
        if not self.case.next:
            for name, state in now.items():
                if state != known[name]:
                    wrong.append(f"after the next run {name} differs: {difference(state, self.recorded, name)}")
        if expected:
            request_ = {"manifest": self.next.manifest.to_dict(), "secrets": {}}
            answer = agent.compare(self.host.layout, request_)
            if answer["status"] != "converged":
                wrong.append(
                    f"the run after that is no no-op: {answer['plan']['actions']} {answer['plan']['problems']}"
                )
        for path, text in self.recorded.data.items():
            if data_of(self.host).get(path) != text:
                wrong.append(f"data was touched by the next run: {path}")
        return wrong + self.leftovers()


def difference(state: dict[str, t.Any], recorded: Recorded, name: str) -> str:
    lines = []
    for key, found in state.items():
        old, new = recorded.old.get(name, {}).get(key), recorded.new.get(name, {}).get(key)
        if old != new or found not in (old, new):
            which = "old" if found == old else "new" if found == new else f"{found!r}, not {old!r} or {new!r}"
            lines.append(f"{key} is {which}")
    return "; ".join(lines)


RUN_UNIT = "hearth-apply-run.service"


def settle_unit(host: SimulatedHost) -> None:
    """OnFailure= of the run's unit, which systemd does not always collect by itself."""
    host.unit(RUN_UNIT)["active"] = "failed"
    agent.settle_unit(host.layout)


def boot(host: SimulatedHost) -> None:
    """hearth-settle.service early in the boot, then the boot, then what it queued. Each part can be killed."""
    if os.path.lexists(host.layout.state / "active"):
        agent.settle_unit(host.layout)
    with Quiet():
        host.boot()
        host.state["units"].pop(RUN_UNIT, None)
    while host.state["queued"]:
        host.state["queued"].pop()
        agent.settle_unit(host.layout)


def record(host: SimulatedHost, work: t.Callable[[], t.Any]) -> list[tuple[str, Snapshot]]:
    """Every instant of ``work`` at which something had changed since the last one."""
    found: list[tuple[str, Snapshot]] = []

    def moment(name: str) -> None:
        now = host.snapshot()
        if not found or found[-1][1][0] != now[0] or _without_clock(found[-1][1][1]) != _without_clock(now[1]):
            found.append((name, now))

    host.moment = moment
    try:
        work()
    finally:
        host.moment = None
    return found


def _without_clock(state: dict[str, t.Any]) -> dict[str, t.Any]:
    return {key: value for key, value in state.items() if key != "clock"}


def open_secret(host: SimulatedHost) -> None:
    (host.root / "var/lib/hearth/secrets/app/key").chmod(0o644)


WORLD = world()
CASES = [
    Case("first converge", None, WORLD),
    Case("nearly everything changes", WORLD, world("new", change=True, port=2)),
    Case("services go", WORLD, world(gone=("app", "dep", "box"))),
    Case("configuration goes", WORLD, world(gone=("base",)), drift=open_secret),
    Case("the firewall goes", WORLD, world(gone=("nftables",))),
    Case("a service does not become healthy", WORLD, world("new", app="sick"), held=("app", "box")),
    Case("a new service fails", WORLD, None, held=("bad",)),  # type: ignore[arg-type] (made below)
    Case("nobody confirms", WORLD, world(port=2), confirm=False, outcome="undone", next=WORLD),
    Case("a configuration is refused", WORLD, world("new", caddyfile="nonsense"), outcome="undone", next=world("new")),
]
_bad = world("new")
service(_bad, "bad", 2105, "crash")
CASES[6].after = _bad
# What ran before Hearth keeps running, and without what the plan told it; the controller comes back.
CASES.append(Case("the way in is handed back", WORLD, world(gone=("sshd",))))


@pytest.fixture
def host(simulate: t.Callable[[SimulatedHost], None]) -> t.Iterator[SimulatedHost]:  # noqa: F811 (the fixture is asked for by its name)
    # In memory where there is such a place: a thousand times a hundred files are written here.
    shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="hearth-kills-", dir=shm) as directory:
        found = SimulatedHost(Path(directory))
        simulate(found)
        with Quiet():
            found.install_base()
        yield found


def recorded_run(host: SimulatedHost, case: Case) -> Recorded:
    worlds = [w for w in (case.before, case.after) if w]
    case.prepare(host)
    old, generation, data = picture(host, worlds), generations.current(host.layout), data_of(host)
    host.confirm = case.confirm

    moments = record(host, lambda: converge(host, case.after, "run"))
    result = result_of(host, "run")
    assert sorted(result["taken_back"]) == sorted(case.held), (result["taken_back"], result["problems"])
    assert result["ok"] == (case.outcome == "new" and not case.held), result["problems"]
    assert result["undone"] == (case.outcome == "undone"), result
    after = generations.current(host.layout)
    host.confirm = True
    return Recorded(
        old,
        picture(host, worlds),
        generation.manifest if generation else None,
        after.manifest if after else None,
        data,
        frozenset(generations.originals(host.layout)),
        moments,
    )


def canonical(host: SimulatedHost) -> str:
    """What of a settled host can matter to the next run: neither times nor the logs of runs."""
    tree, state = host.snapshot()
    kept = {
        path: entry
        for path, entry in tree.items()
        if not path.startswith(("/var/lib/hearth/runs/", "/var/lib/hearth/generations/", "/var/lib/hearth/lock"))
    }
    units = {name: {**unit, "invocation": 0} for name, unit in state["units"].items()}
    objects = sorted(map(repr, state["objects"].values()))
    rest = {
        key: value
        for key, value in state.items()
        if key not in ("clock", "invocation", "next_object", "objects", "units")
    }
    present = generations.current(host.layout)
    record = (present.manifest.digest, sorted(present.partial)) if present else None
    return repr((sorted(kept.items()), sorted(rest.items()), sorted(units.items()), objects, record))


class Killer:
    """Puts a host into crash states and judges what settling makes of them."""

    def __init__(self, judge: Judge) -> None:
        self.judge, self.host = judge, judge.host
        self.good: set[str] = set()  # settled hosts from which the next run is known to converge
        self.wrong: list[str] = []
        self.judged = 0
        self.length = 1  # how many instants the last settling had

    def kill(
        self, name: str, snapshot: Snapshot, how: t.Callable[[SimulatedHost], None], again: t.Iterable[int]
    ) -> None:
        """Settle one crash state; ``again``: instants of the settling at which that is killed, too."""
        with Quiet():
            self.host.restore(snapshot)
            begun = os.path.lexists(self.host.layout.state / "active")
            self.host.violations.clear()
            if how is boot:
                self.host.power_cut()
        wanted = {number % self.length for number in again}
        instants: list[tuple[str, Snapshot]] = []
        count = 0

        def moment(what: str) -> None:
            nonlocal count
            if count in wanted:
                instants.append((what, self.host.snapshot()))
            count += 1

        self.host.moment = moment
        self.judge_one(f"{name}, {how.__name__}", how, begun)
        self.length = count or 1
        for what, inside in instants:
            # Killed in a boot is killed by another power cut.
            next_ = settle_unit if how is settle_unit and self.judged % 2 else boot
            self.kill(f"{name}, {how.__name__} killed at {what}", inside, next_, ())

    def judge_one(self, name: str, how: t.Callable[[SimulatedHost], None], begun: bool) -> None:
        self.judged += 1
        try:
            how(self.host)
            self.host.moment = None
            found = self.judge.settled(shipping=not begun)
            if not found and (state := canonical(self.host)) not in self.good:
                found = self.judge.again()
                self.good.add(state)
        except Exception as error:
            found = [f"{type(error).__name__}: {error}"]
        finally:
            self.host.moment = None
        self.wrong += [f"killed at {name}: {text}".replace(str(self.host.root), "") for text in found]


def journalled(name: str) -> bool:
    """A step begins or ends here, or a program does something in between; not one of the many file operations."""
    return ("journal.jsonl" in name and "half" not in name) or not name.startswith(("os.", "open ", "fsync", "write "))


ALL = os.environ.get("HEARTH_KILLS") == "all"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_killed_at_every_instant(host: SimulatedHost, case: Case) -> None:
    recorded = recorded_run(host, case)
    judge = Judge(host, case, recorded)
    assert judge.leftovers() == []
    killer = Killer(judge)
    for number, (name, snapshot) in enumerate(recorded.moments):
        last = len(recorded.moments) - number < 10  # its journal has ended: what is left has to go all the same
        if not (ALL or journalled(name) or number % 5 == 0 or last):
            continue
        # Settling configures packages late in a boot, and may lose its power at any instant of that.
        whole = ALL or name == "apt-get unpack caddy: files"
        for how in (settle_unit, boot) if whole else ((settle_unit, boot)[number % 2],):
            again = range(10_000) if whole else (number * 7,) if number % 5 == 0 else ()
            killer.kill(f"{number} ({name})", snapshot, how, again)
    print(f"\n{case.name}: {len(recorded.moments)} instants, {killer.judged} crash states, {len(killer.good)} results")
    assert killer.judged > 20
    assert len(recorded.moments) > 50
    assert not killer.wrong, "\n".join(killer.wrong[:20]) + f"\n{len(killer.wrong)} in all"


def test_what_ran_before_hearth_is_handed_back(host: SimulatedHost) -> None:
    assert converge(host, WORLD, "first")["ok"]
    cron = host.unit("cron.service")["invocation"]
    result = converge(host, world(gone=("sshd", "base")), "second")
    assert result["ok"], result
    assert host.unit("cron.service")["invocation"] != cron  # what it reads is what it was before
    done = {(action["operation"], action["id"]) for action in result["actions"]}
    assert ("reload", "unit:ssh.service") in done
    assert {action for action in done if action[0] in ("stop", "disable")} == set()
    for unit in ("ssh.service", "cron.service"):
        assert (host.unit(unit)["active"], host.enabled(unit), host.fresh(unit)) == ("active", True, True), unit
    # Nothing of it was there before: it goes with the role that brought it.
    assert converge(host, world(gone=("sshd", "base", "app", "dep", "box")), "third")["ok"]
    assert host.unit("app.service")["active"] == "inactive"


def test_every_kind_of_step_is_among_them(host: SimulatedHost) -> None:
    """A new operation, kind of undo data or phase must be part of a case above: none is left that nothing plans."""
    fresh = host.snapshot()
    steps: set[tuple[str, str]] = set()
    undos: set[str] = set()
    phases: set[str] = set()
    for case in CASES:
        with Quiet():
            host.restore(fresh)
        host.confirm = True
        case.prepare(host)
        host.confirm = case.confirm
        converge(host, case.after, "run")
        for record in journals.read(host.layout.run("run") / "journal.jsonl"):
            if record["type"] == "begin":
                steps.add((record["id"].partition(":")[0], record["operation"]))
                undos |= {record["undo"]["do"]} if record["undo"] else set()
            elif record["type"] == "phase":
                phases.add(record["phase"])
    known = {(kind, operation) for kind, operations in actions.OPERATIONS.items() for operation in operations}
    known -= {("package", "install")}  # one step for all packages
    known |= {("packages", "install"), ("engine", "install"), ("cleanup", "create")}
    assert (known - steps, steps - known) == (set(), set())
    assert undos == set(undo.UNDO)
    assert phases == {*journals.PHASES, *journals.ENDED, journals.UNDOING}


@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[5]], ids=lambda case: case.name)
def test_the_disk_fills_up_at_any_instant(host: SimulatedHost, case: Case) -> None:
    """From some instant on nothing can be written, until space that the run reserved for undoing is given back."""
    fresh = host.snapshot()
    recorded = recorded_run(host, case)
    with Quiet():
        host.restore(fresh)
    case.prepare(host)
    request(host, case.after, "run")
    begun = host.snapshot()
    killer = Killer(Judge(host, case, recorded))
    for number in range(0, len(recorded.moments), 1 if ALL else 6):
        with Quiet():
            host.restore(begun)
        count, held = 0, False
        reserve = host.layout.run("run") / journals.RESERVE

        def moment(what: str, number: int = number, reserve: Path = reserve) -> None:
            nonlocal count, held
            count += 1
            if count == number + 1:
                host.full, held = True, reserve.exists()
            if what.startswith("os.remove") and what.endswith(f"/{journals.RESERVE}"):
                host.full = False

        host.moment = moment
        # The unit fails, as it may; OnFailure= settles.
        with contextlib.suppress(Full):
            agent.run_unit(host.layout, "run")
        host.moment = None
        # With the reserved space a run ends by itself, undone or finished, and says why: nobody needs to make room first.
        if held and not (host.layout.run("run") / "result.json").exists():
            killer.wrong.append(f"{number} (disk full): it ends only when there is room again")
        stuck = bool(host.full) and os.path.lexists(host.layout.state / "active")
        host.full = False
        killer.judge_one(f"{number} (disk full)", settle_unit, bool(stuck))
    assert not killer.wrong, "\n".join(killer.wrong[:20]) + f"\n{len(killer.wrong)} in all"
