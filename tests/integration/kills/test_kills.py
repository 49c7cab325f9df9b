# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Kills at chosen steps of runs on a real host: every class of step once. The journal is watched from outside.

That every instant of a run can be survived is enumerated on a simulated host (tests/unit/host/test_kill_points.py);
here real programs, a real systemd and a real boot are in it. Each test leaves a converged host to the next one.
"""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass, field, replace

import pytest
from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from drive import TooLateError, World
from scenarios import STATE, app, fleet

from ..conftest import ROOT, wait_until
from .conftest import LabHost

IMAGE = "registry.lab.example.com:5000/standin/{}:1"
QUADLET = """[Container]
Image={image}
Pull=never
Entrypoint=/bin/busybox
Exec=sleep infinity
StopTimeout=1
Secret=box-token
[Service]
Restart=no
[Install]
WantedBy=multi-user.target
"""
LOGIND = "/etc/systemd/logind.conf.d/50-hearth.conf"
CLUSTER = ("pg_createcluster", "17", "main", "--port=5432", "--start-conf=auto", "--encoding=UTF8", "--locale=C.UTF-8",
           "--", "--data-checksums")  # fmt: skip


def wanted(
    number: int, *, packages: t.Mapping[str, str] | None = None, extra: str = "", command: str = "", crate: bool = False
) -> World:
    """The host in its version ``number``: what changes with it are a template, a port, secrets, an image, a role.

    ``packages`` are further ones with their units, ``extra`` is the name of a further service, ``command`` breaks app,
    ``crate`` is one more container.
    """
    world = fleet(text=f"v{number}", port=9000 + number, command=command)
    world.host = "lab-forge"
    # As roles/base: postgresql-common's postinst runs `su postgres`, and ten seconds later, when logind has ended that
    # user's session, it would remove the shared memory of the server that runs by then.
    world.service("base", tier="core", units=("systemd-logind.service",))
    world.file("base", LOGIND, (ROOT / "roles/base/templates/logind.conf.j2").read_text(encoding="utf-8"))
    world.add(m.Unit("systemd-logind.service", "base", enabled=None, reload_on=(f"file:{LOGIND}",)))
    world.service("postgresql", tier="infrastructure", units=("postgresql@17-main.service",))
    world.add(m.Package("postgresql-17", "postgresql"), m.Group("postgres", "postgresql", gid=2002))
    world.add(m.User("postgres", "postgresql", uid=2002, group="postgres", home="/var/lib/postgresql"))
    world.add(m.Storage("/var/lib/postgresql", "postgresql", owner="postgres", group="postgres", mode="0755"))
    creates = "/var/lib/postgresql/17/main/PG_VERSION"
    world.add(m.Initialize("postgresql", "postgresql", CLUSTER, creates, "/var/lib/postgresql",
                           makes=("/etc/postgresql/17/main",)))  # fmt: skip
    world.file("postgresql", "/etc/postgresql-common/createcluster.conf", "create_main_cluster = false\n", early=True)
    world.add(m.Unit("postgresql@17-main.service", "postgresql"))
    world.service("box", units=("box.service",))
    world.secrets["box/token"] = f"box-token-v{number}"
    image = IMAGE.format(("gatus", "homepage", "plex", "sonarr", "radarr", "prowlarr")[number % 6])
    world.add(m.Package("podman", "box"), m.Secret("box/token", "box"), m.Image(image, "box"))
    world.add(m.PodmanSecret("box-token", "box", secret="box/token"))
    world.file("box", "/etc/containers/systemd/box.container", QUADLET.format(image=image))
    if crate:
        world.service("crate", units=("crate.service",))
        world.file("crate", "/etc/containers/systemd/crate.container", QUADLET.format(image=IMAGE.format("gatus")))
        world.add(m.Unit("crate.service", "crate", enabled=None))
    reads = ("file:/etc/containers/systemd/box.container", "podman_secret:box-token")
    world.add(m.Unit("box.service", "box", enabled=None, restart_on=reads))
    if number:
        world.add(m.PostgresqlRole(f"role{number}", "app", secret="app/key"))
        world.add(m.PostgresqlDatabase(f"database{number}", "app", owner=f"role{number}"))
        world.services["app"] = replace(world.services["app"], requires=("postgresql",))
    if extra:
        app(world, extra, 2150 + number)
    for name, unit in (packages or {}).items():
        world.service(name, units=(unit,))
        world.add(m.Package(name, name), m.Unit(unit, name))
    world.services = {name: replace(entry, settle=1) for name, entry in world.services.items()}
    return world


#: Questions to the host of which ``Fleet.well`` knows the answers.
LOOK = {
    **STATE,
    "secret": "podman secret inspect --showsecret --format {{.SecretData}} box-token",
    "others": "systemctl is-active postgresql@17-main box | paste -sd ' '",
    "guards": "systemctl list-units --all --no-legend --plain 'hearth-guard*'",
    "failed": "systemctl list-units --failed --no-legend --plain",
    "data": "stat -c '%n %u %g %a %s' /var/lib/app/precious; cat /var/lib/app/precious; "
    "runuser -u postgres -- psql -XAtc 'select * from precious' postgres 2>&1",
}


class Fleet:
    """The host and the version that it has."""

    def __init__(self, host: LabHost) -> None:
        self.host, self.number, self.current = host, 0, wanted(0)

    def next(self, **more: t.Any) -> World:
        self.number += 1
        return wanted(self.number, **more)

    def well(self, world: World) -> dict[str, str]:
        """The host is wholly ``world``: files, what runs, what is live, what is recorded; nothing else is left.

        Why services of it are held back, as the host's current generation says.
        """
        text = world.secrets["app/key"][len("s3cret-app-") : -1]
        (rules,) = (item for item in world.items if item.id == "file:/etc/nftables/hearth.nft")
        (port,) = re.findall("90[0-9]+", world.blobs[rules.digest].decode())
        expected = {
            "text": text, "served": text, "disk": port, "live": port, "left": "", "units": "active " * 3 + "active",
            "secret": world.secrets["box/token"], "others": "active active", "guards": "", "failed": "", "data": self.precious,
        }  # fmt: skip
        # The unit of the killed run itself is collected as soon as what it triggered is over.
        wait_until("no unit is failed", lambda: not self.host.ask({"failed": LOOK["failed"]})["failed"], 10, 0.5)
        found = self.host.ask(LOOK)
        # Said in words, too: the soak test has no pytest to compare them.
        assert found == expected, {
            name: (found[name], expected[name]) for name in found if found[name] != expected[name]
        }
        answer = self.host.compare(world.manifest, world.secrets)
        plan = answer["plan"]
        assert (answer["status"], plan["actions"], plan["problems"]) == ("converged", [], []), answer
        assert answer["unfinished"] == []
        return t.cast("dict[str, str]", answer["partial"])

    def make_precious(self) -> None:
        self.host.sh(
            "echo data >/var/lib/app/precious; chown app:app /var/lib/app/precious; chmod 600 /var/lib/app/precious"
        )
        self.host.sh("runuser -u postgres -- psql -qXAtc 'create table precious as select 42' postgres")
        self.precious = self.host.ask({"data": LOOK["data"]})["data"]

    def interrupt(self, world: World, record: dict[str, t.Any], how: str, confirm: bool = True) -> dict[str, t.Any]:
        """A run that is killed when ``record`` appears, or loses its power there; its result, once it is settled."""
        run = self.host.name_run()
        with self.host.killing(run, record, "stop" if how == "power" else how):
            self.host.start(world.manifest, world.blobs, world.secrets, run=run, confirm_timeout=20)
            if confirm:
                self.host.call("confirm", {"run": run})
        if how == "power":
            self.host.power_cut()
        result = self.host.follow(run, confirm=False, show=False)
        # A result that was there when the run was killed is no sign that it is settled.
        self.settled()
        return result

    def settled(self) -> None:
        active = {"active": "ls -d /var/lib/hearth/active"}
        wait_until("the run is settled", lambda: not self.host.ask(active)["active"], 60, 0.3)

    def converge(self, world: World) -> None:
        result = self.host.converge(world)
        assert result["ok"], result
        self.current = world


@pytest.fixture(scope="session")
def versions(host: LabHost) -> Fleet:
    return Fleet(host)


def test_a_fresh_host_is_killed_while_it_is_made(versions: Fleet) -> None:
    """Three times: while the engine's own units are made, while packages are installed, and while a database cluster is
    made. The next run takes up what stays and converges."""
    host = versions.host
    world = versions.current
    assert not host.sh("ls -d /var/lib/hearth /etc/caddy 2>/dev/null", check=False), (
        "the host is not fresh: make it anew"
    )
    run = host.name_run()
    with host.killing(run, {"type": "begin", "id": "engine"}):
        host.start(world.manifest, world.blobs, world.secrets, run=run)
    result = host.follow(run, confirm=False, show=False)
    if "undone" not in result:
        # Where the engine's units are not there yet nothing was changed, and the next run says how it ended.
        assert "ended without a result" in result["problems"][0]["message"]
        assert host.call("recover")["results"][0]["undone"]
    result = versions.interrupt(world, {"file": "/var/lib/dpkg/info/caddy.list"}, "kill-all")
    assert result["undone"], result
    assert (
        host.sh("ls /usr/sbin/policy-rc.d /run/systemd/system/*.service 2>/dev/null; dpkg --audit", check=False) == ""
    )
    # Nothing that was installed runs or will at the next boot: neither has this host a service yet.
    assert set(host.sh("systemctl is-active caddy podman postgresql", check=False).split()) <= {"inactive"}
    assert "enabled" not in host.sh("systemctl is-enabled caddy.service postgresql.service", check=False).split()
    result = versions.interrupt(world, {"file": "/var/lib/postgresql/17/main/PG_VERSION"}, "kill-all")
    assert result["undone"], result
    assert not host.sh("ls /var/lib/postgresql/17 /etc/postgresql/17/main 2>/dev/null", check=False)
    assert host.sh("ls -d /var/lib/postgresql/.hearth-interrupted-*")
    versions.converge(world)
    versions.make_precious()
    versions.well(world)


@dataclass(frozen=True)
class Kill:
    """One class of step: the record at which the run ends, and how."""

    id: str
    record: dict[str, t.Any]
    how: str = "kill"
    more: dict[str, t.Any] = field(default_factory=dict)
    confirm: bool = True
    first: str = ""  # a command on the host before


AT, DNSMASQ = {"at": "atd.service"}, {"dnsmasq": "dnsmasq.service"}

#: What is undone, in the order of a run. All are runs to the same version: each one must come past the point at which
#: the one before was killed, and the last one converges.
UNDONE = (
    Kill("the beginning", {"type": "phase", "phase": "prepare"}),
    Kill("a user", {"type": "begin", "id": "user:"}),
    Kill("storage", {"done": {"id": "storage:"}}),
    Kill("a secret", {"type": "begin", "id": "secret:"}),
    Kill("packages", {"type": "begin", "id": "packages"}, more={"packages": AT}),
    Kill("packages, unpacked", {"file": "/var/lib/dpkg/info/at.list"}, "kill-all", more={"packages": AT}),
    # Its unit is enabled by then, masked until the next boot only.
    Kill("packages, power cut", {"done": {"id": "packages"}}, "power", more={"packages": DNSMASQ}),
    Kill("files", {"type": "begin", "id": "file:"}),
    # systemd has read the new unit files, and queued what they want, before they go back early in the boot.
    Kill("files, power cut", {"done": {"id": "file:"}}, "power", more={"crate": True}),
    Kill("the firewall", {"done": {"id": "firewall:"}}),
    Kill("the guard's timer is armed", {"file": "awaiting"}, confirm=False),
    Kill("the guard's timer is armed, power cut", {"file": "awaiting"}, "power", confirm=False),
)

#: What is finished by settling: then the next run finds nothing to do.
FINISHED = (
    # Those of earlier versions are still there.
    Kill("an image", {"type": "begin", "id": "image:"}, first="podman image prune --all --force"),
    Kill("a podman secret", {"type": "begin", "id": "podman_secret:"}),
    Kill("enabling", {"type": "begin", "operation": "enable"}, more={"extra": "extra2"}),
    Kill("a restart", {"type": "begin", "id": "unit:", "operation": "restart"}),
    Kill("before health, power cut", {"done": {"id": "unit:", "operation": "restart"}}, "power"),
    Kill("a database", {"type": "begin", "id": "postgresql_"}),
    Kill("the end", {"file": "result.json"}),
)


def test_dpkg_wants_a_package_anew(versions: Fleet) -> None:
    """The moment between a package's files and the end of dpkg's mark that it has to be installed anew, which no kill
    hits on purpose: settling is held back, and the state of that moment is written."""
    old, new, host = versions.current, wanted(1, packages=AT), versions.host
    held = "/run/systemd/system/hearth-settle.service.d"
    condition = "[Unit]\\nConditionPathExists=/held/back\\n"
    host.sh(f"mkdir {held}; printf '{condition}' >{held}/held.conf; systemctl daemon-reload")
    run = host.name_run()
    with host.killing(run, {"file": "/var/lib/dpkg/info/at.list"}, "kill-all"):
        host.start(new.manifest, new.blobs, new.secrets, run=run)
    unit = f"systemctl is-active hearth-apply-{run}.service"
    wait_until("the run is killed", lambda: host.sh(unit, check=False).strip() in ("failed", "inactive"), 30, 0.2)
    # Setting what is set makes dpkg write its whole status file.
    host.sh("dpkg --get-selections at | dpkg --set-selections")
    host.sh("sed -i '/^Package: at$/,/^$/s/^Status: .*/Status: install reinstreq unpacked/' /var/lib/dpkg/status")
    assert "They must be reinstalled" in host.sh("dpkg --audit", check=False)
    host.sh(f"rm -r {held}; systemctl daemon-reload")
    (result,) = host.call("recover")["results"]
    assert result["undone"], result
    assert host.sh("dpkg --audit; dpkg-query -W -f '${db:Status-Abbrev}' at") == "ii "
    versions.well(old)
    host.sh("dpkg --purge at")


@pytest.mark.parametrize("kill", UNDONE, ids=lambda kill: kill.id)
def test_undone_when_killed_at(versions: Fleet, kill: Kill) -> None:
    result = versions.interrupt(wanted(1, extra="extra1", **kill.more), kill.record, kill.how, kill.confirm)
    assert (result["undone"], result["ok"]) == (True, False), result
    versions.well(versions.current)
    for name, unit in kill.more.get("packages", {}).items():
        # Installed by now or not at all, and neither running nor to be started by the next boot.
        there = versions.host.sh(f"dpkg-query -W -f '${{db:Status-Status}}' {name}", check=False)
        there = there.replace("not-installed", "")  # what dpkg says of a package that it has heard of
        assert there == ("" if kill.record.get("type") == "begin" else "installed")
        assert versions.host.sh(f"systemctl is-active {unit}; systemctl is-enabled {unit}", check=False).split() == [
            "inactive", "disabled" if there else "not-found",
        ]  # fmt: skip
    # The boot after a power cut has started neither of them.
    for unit in ("crate", *(unit for unit in kill.more.get("packages", {}).values())):
        assert not versions.host.sh(
            f"journalctl --boot --no-pager -q -o cat -u {unit} JOB_TYPE=start JOB_RESULT=done", check=False
        )


def test_the_next_run_converges(versions: Fleet) -> None:
    new = versions.next(extra="extra1", packages=AT)
    versions.converge(new)
    versions.well(new)
    assert versions.host.sh("systemctl is-active extra1 atd").split() == ["active"] * 2


@pytest.mark.parametrize("kill", FINISHED, ids=lambda kill: kill.id)
def test_finished_when_killed_at(versions: Fleet, kill: Kill) -> None:
    for _attempt in range(5):
        new = versions.next(**kill.more)
        if kill.first:
            versions.host.sh(kill.first)
        try:
            result = versions.interrupt(new, kill.record, kill.how)
            break
        except TooLateError:  # between a run's result and its end there are milliseconds: it has gone well by itself
            versions.settled()
            versions.converge(new)
    else:
        pytest.fail("no run could be killed in time")
    assert (result["undone"], result["ok"]) == (False, True), result
    versions.current = new
    versions.well(new)


def test_killed_while_a_service_is_taken_back(versions: Fleet) -> None:
    old, sick = versions.current, versions.next(command="/bin/false")
    result = versions.interrupt(sick, {"type": "held"}, "kill")
    assert (result["undone"], result["ok"], sorted(result["taken_back"])) == (False, False, ["app"]), result
    text = versions.host.sh("sed -n 's/message=//p' /etc/app/conf").strip()
    assert f"s3cret-app-{text}!" == old.secrets["app/key"]
    assert versions.host.sh("systemctl is-active app dep").split() == ["active"] * 2
    assert versions.host.sh("curl -s http://127.0.0.1:8101/index.html | sed -n 's/message=//p'").strip() == text
    healthy = versions.next()
    versions.converge(healthy)
    versions.well(healthy)


def test_settling_is_killed_as_well(versions: Fleet) -> None:
    old, new, host = versions.current, versions.next(), versions.host
    run = host.name_run()
    with (
        host.killing(run, {"type": "phase", "phase": "undoing"}, "kill", "settle"),
        host.killing(run, {"type": "begin", "id": "file:"}),
    ):
        host.start(new.manifest, new.blobs, new.secrets, run=run)
    answer = host.compare(new.manifest, new.secrets, check=True)
    assert answer["unfinished"] == [run]
    assert f"run {run} was interrupted" in answer["plan"]["problems"][0]["message"]
    # systemd would try again after half a minute; the next run does not wait for that.
    assert host.sh("systemctl is-active hearth-settle.service", check=False).strip() == "activating"
    assert host.call("recover")["results"][0]["undone"]
    versions.well(old)
    versions.converge(new)
    versions.well(new)


def test_the_disk_fills_up_while_files_are_placed(versions: Fleet) -> None:
    """Some of the new files still find room. The run is undone in the space that it reserved, and says why."""
    host, old, new = versions.host, versions.current, versions.next(extra="extra3")
    with host.small_disk():
        result = versions.interrupt(new, {"type": "phase", "phase": "files"}, "fill")
        assert result["undone"], result
        (problem,) = result["problems"]
        assert problem["message"].endswith("cannot be written: No space left on device"), problem
        assert "make room" in problem["remedy"]
        versions.well(old)
        (problem,) = host.converge(new)["problems"]
        assert "MiB free, this run needs" in problem["message"], problem
        versions.well(old)
        host.sh("rm /run/small/filler")
        versions.converge(new)
        versions.well(new)
    versions.well(new)
