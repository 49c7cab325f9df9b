# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The whole way on real hosts: what a converged site does, and what changes and mistakes do to it.

The tests run in this order and share the hosts; each leaves them as it found them.
"""

from __future__ import annotations

import concurrent.futures
import json
import shutil
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import pytest

from .. import declared
from ..conftest import BIN, ROOT, Site, wait_until

FORGE = "host_vars/lab-forge/zz_test.yml"
DOMAIN = "lab.example.com"

# Connects to every TCP port of an address; prints the open ones. A filtered port times out, a closed one refuses. The
# time runs from the last connection of a batch (on a busy machine 4000 of them take a while), and is long enough for
# one SYN that has to be sent again (after 1 s, RFC 6298).
SCAN = """
import json, select, socket, sys, time
address, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
found, batch = [], 4000
for start in range(first, last + 1, batch):
    ready, waiting = select.poll(), {}
    for port in range(start, min(start + batch, last + 1)):
        tried = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        tried.connect_ex((address, port))
        waiting[tried.fileno()] = (tried, port)
        ready.register(tried, select.POLLOUT)
    end = time.monotonic() + 1.3
    while waiting and (left := end - time.monotonic()) > 0:
        for number, _events in ready.poll(left * 1000):
            ready.unregister(number)
            tried, port = waiting.pop(number)
            if not tried.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                found.append(port)
            tried.close()
    for tried, _port in waiting.values():
        tried.close()
print(json.dumps(sorted(found)))
"""


def scan(site: Site, source: str, address: str) -> list[int]:
    found = site.ssh(source, f"ulimit -n 8192; python3 - {address} 1 65535", stdin=SCAN, timeout=180)
    return t.cast("list[int]", json.loads(found))


def passwords(site: Site) -> dict[str, t.Any]:
    return t.cast("dict[str, t.Any]", json.loads((ROOT / "build" / "lab-passwords.json").read_text())["lab"])


def starts(site: Site, unit: str) -> str:
    """When a unit last started, as systemd says it: another value means it was restarted."""
    return site.ssh("lab-forge", f"systemctl show -P ExecMainStartTimestampMonotonic {unit}").strip()


def test_running_again_changes_nothing_in_one_exchange(site: Site) -> None:
    outcome = site.play(limit=None)
    for host in ("lab-forge", "lab-nas-1"):
        result = outcome.converge(host)
        assert not result["changed"], result
        assert result["exchanges"] == 1


def test_every_service_is_healthy(site: Site) -> None:
    """What `make demo` ends with: its table, of the same inventory."""
    found = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "demo_table.py"), "--inventory", str(site.inventory),
         "--output", str(site.directory / "demo.json")],
        env=site.environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    entries = json.loads((site.directory / "demo.json").read_text())
    assert not [entry for entry in entries if not entry["healthy"]]
    fleet = declared.read(site.inventory)
    running = {(host.name, service.name): service for host, service in fleet.services()}
    assert {(entry["host"], entry["service"]) for entry in entries} == set(running)
    assert len({service.role for service in running.values()}) >= 24
    # The lab's images are stand-ins, everything else is the application itself; and the table says so.
    stand_ins = {name for name, service in running.items() if service.container}
    assert {(entry["host"], entry["service"]) for entry in entries if not entry["real"]} == stand_ins
    real = len(running) - len(stand_ins)
    assert f"{len(running)} services: {real} real applications, {len(stand_ins)} stand-ins." in found.stdout


class TestAlert:
    """Stopping a service by hand makes its alert fire. On lab-nas-1: the other tests converge lab-forge only."""

    def test_stop(self, site: Site) -> None:
        site.ssh("lab-nas-1", "systemctl stop chrony.service")

    def test_prometheus_sees_every_target_and_every_rule(self, site: Site) -> None:
        targets = json.loads(site.ssh("lab-forge", "curl -s localhost:9090/api/v1/targets"))["data"]["activeTargets"]
        assert {target["labels"]["host"] for target in targets} == {"lab-forge", "lab-nas-1"}
        assert {target["labels"]["service"] for target in targets} >= {
            "node_exporter",
            "prometheus",
            "caddy",
            "miniflux",
        }

        def up() -> bool:
            answer = json.loads(site.ssh("lab-forge", "curl -s localhost:9090/api/v1/query?query=up"))
            return all(series["value"][1] == "1" for series in answer["data"]["result"])

        wait_until("every target up", up, 120)
        groups = json.loads(site.ssh("lab-forge", "curl -s localhost:9090/api/v1/rules"))["data"]["groups"]
        loaded = {(rule["name"], rule["labels"].get("service")) for group in groups for rule in group["rules"]}
        assert {("ServiceDown", "miniflux"), ("RestartChurn", "sonarr"), ("ServiceDown", "chrony")} <= loaded
        files = site.ssh("lab-forge", "find /etc/prometheus -name '*.yml' -path '*rules*' | wc -l")
        assert int(files) <= len(groups)
        unhealthy = [rule for group in groups for rule in group["rules"] if rule["health"] == "err"]
        assert not unhealthy


QUERIES = """
import json, pathlib, sys, urllib.parse, urllib.request
boards = [json.loads(path.read_text()) for path in pathlib.Path("/etc/grafana/dashboards").rglob("*.json")]
found = {}
for board in boards:
    for panel in board["panels"]:
        for target in panel["targets"]:
            query = urllib.parse.urlencode({"query": target["expr"].replace("$host", ".*")})
            with urllib.request.urlopen("http://127.0.0.1:9090/api/v1/query?" + query) as answer:
                found[board["title"] + ": " + panel["title"]] = len(json.load(answer)["data"]["result"])
print(json.dumps(found))
"""


def test_every_panel_of_the_dashboards_shows_something(site: Site) -> None:
    """Grafana itself is a stand-in here: what its dashboards ask is asked of the real Prometheus."""

    def empty() -> list[str]:
        found = json.loads(site.ssh("lab-forge", "python3 -", stdin=QUERIES))
        assert len(found) >= 10
        return [panel for panel, series in found.items() if not series]

    # Rates need two samples.
    wait_until("data in every panel", lambda: not empty(), 150)


def test_the_exporter_of_postgresql_sees_what_only_members_of_pg_monitor_see(site: Site) -> None:
    """Whose sessions there are: to others, PostgreSQL shows those of other users without their names."""

    def seen() -> bool:
        found = site.ssh("lab-forge", "curl -s http://127.0.0.1:9187/metrics")
        sessions = [line for line in found.splitlines() if line.startswith("pg_stat_activity_count{")]
        return any('usename="miniflux"' in line for line in sessions)

    wait_until("a session of miniflux", seen, 90)


def test_routes_answer_over_https_with_their_access_policy(site: Site) -> None:
    people = passwords(site)["people"]
    status, _body = site.fetch(f"https://sonarr.{DOMAIN}/")
    assert status == 401
    name, password = sorted(people.items())[0]
    status, _body = site.fetch(f"https://sonarr.{DOMAIN}/", user=name, password="wrong" + password)
    assert status == 401
    statuses = {person: site.fetch(f"https://sonarr.{DOMAIN}/ping", user=person, password=secret)[0]
                for person, secret in people.items()}  # fmt: skip
    assert 200 in statuses.values(), statuses
    status, body = site.fetch(f"https://miniflux.{DOMAIN}/healthcheck")
    assert (status, body.strip()) == (200, "OK")


def test_exactly_the_declared_ports_are_open(site: Site) -> None:
    fleet = declared.read(site.inventory)
    forge, nas = site.address("lab-forge"), site.address("lab-nas-1")
    address6 = site.ssh("lab-forge", "ip -6 -json addr show dev host0 scope global")
    forge6 = [
        entry["local"] for link in json.loads(address6) for entry in link.get("addr_info", []) if "local" in entry
    ]
    assert forge6
    # Together: a scan is mostly waiting. But never in both directions: with each host connecting to the other from
    # thousands of ports, now and then two attempts meet (one's source is the other's destination and the reverse), and
    # TCP makes one open connection of them (RFC 9293, 3.5), to a port where nothing listens.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        of_forge = pool.submit(scan, site, "lab-nas-1", forge)
        of_forge6 = [pool.submit(scan, site, "lab-nas-1", address) for address in forge6]
    of_nas = scan(site, "lab-forge", nas)
    expected = declared.open_to(fleet, "lab-forge", "lab-nas-1", nas)
    assert {22, 80, 443} <= set(expected) < set(declared.listening(fleet, "lab-forge"))
    assert of_forge.result() == expected
    # The lab's zone lan has IPv4 networks only: nothing is open over IPv6, whatever listens there.
    for found in of_forge6:
        assert found.result() == []
    # The exporter of lab-nas-1 is open to the host that scrapes it and to nobody else: the controller is refused.
    expected = declared.open_to(fleet, "lab-nas-1", "lab-forge", forge)
    assert 9100 in expected
    assert of_nas == expected


def test_no_undeclared_port_was_open_while_packages_were_installed(site: Site) -> None:
    """molecule's converge step ran a scanner on lab-nas-1 beside the first converge of lab-forge."""
    lines = (site.directory / "scan-during-converge.jsonl").read_text().splitlines()
    assert len(lines) >= 3, "the scanner did not run"
    fleet = declared.read(site.inventory)
    expected = set(declared.open_to(fleet, "lab-forge", "lab-nas-1", site.address("lab-nas-1")))
    for line in lines:
        assert set(json.loads(line)) <= expected
    assert set(json.loads(lines[-1])) == expected, "at its end the scanner saw them open: it did look at them"


def test_check_mode_names_what_the_run_changes_and_changes_nothing(site: Site, changed: t.Any) -> None:
    changed(FORGE, {"hearth_timezone": "Europe/London"})
    everything = (
        "find /etc /var/lib/hearth /usr/local /run/systemd/system -printf '%p %T@ %m %u %g\\n' | sort | sha256sum"
    )
    before = site.ssh("lab-forge", everything)
    checked = site.play("--check", "--diff")
    after = site.ssh("lab-forge", everything)
    assert checked.actions()
    assert before == after
    assert site.play().actions() == checked.actions()


def test_an_edited_template_restarts_exactly_its_service(site: Site) -> None:
    """The role in a repository of the owner's, with one line more in its template."""
    units = ("miniflux.service", "sonarr.service", "caddy.service", "prometheus.service", "postgresql@17-main.service")
    before = {unit: starts(site, unit) for unit in units}
    role = site.directory / "roles" / "miniflux"
    shutil.copytree(ROOT / "roles" / "miniflux", role)
    playbook = site.directory / "site.yml"
    playbook.write_text((ROOT / "playbooks" / "site.yml").read_text())
    try:
        template = role / "templates" / "miniflux.conf.j2"
        template.write_text(template.read_text() + "# edited\n")
        actions = site.play(playbook=playbook).actions()
    finally:
        shutil.rmtree(role)
    after = {unit: starts(site, unit) for unit in units}
    assert actions == {"modify file:/etc/miniflux/miniflux.conf", "restart unit:miniflux.service"}
    assert [unit for unit in units if before[unit] != after[unit]] == ["miniflux.service"]
    site.play()


def test_drift_is_found_and_mended(site: Site) -> None:
    site.ssh(
        "lab-forge",
        "echo '# by hand' >> /etc/prometheus/prometheus.yml; chmod 0600 /etc/caddy/Caddyfile; systemctl stop sonarr",
    )
    outcome = site.play()
    assert {"modify file:/etc/prometheus/prometheus.yml", "start unit:sonarr.service"} <= outcome.actions()
    assert any("by hand" in notice["message"] for notice in outcome.converge()["notices"])
    assert not site.play().converge()["changed"]


class TestDisabling:
    """Disabling removes every trace but the data; enabling brings the data back."""

    def test_disable(self, site: Site) -> None:
        site.ssh(
            "lab-forge",
            "sudo -u postgres psql -d miniflux -c 'create table kept (x int); insert into kept values (42)'",
        )
        site.set_vars(FORGE, {"hearth_services__test": {"miniflux": {"enabled": False}}})
        outcome = site.play()
        text = json.dumps(outcome.converge()["notices"])
        assert "miniflux" in text
        assert "data" in text
        assert site.ssh("lab-forge", "systemctl is-active miniflux.service || true").strip() == "inactive"
        assert site.ssh("lab-forge", "systemctl is-enabled miniflux.service || true").strip() in ("disabled", "masked")
        left = site.ssh(
            "lab-forge", "grep -rl miniflux /etc/caddy /etc/prometheus /etc/hearth /etc/systemd /etc/sysusers.d || true"
        )
        assert left.strip() == ""
        login = site.ssh(
            "lab-forge", "sudo -u postgres psql -Atc \"select rolcanlogin from pg_roles where rolname = 'miniflux'\""
        )
        assert login.strip() == "f"
        groups = json.loads(site.ssh("lab-forge", "curl -s localhost:9090/api/v1/rules"))["data"]["groups"]
        assert not [rule for group in groups for rule in group["rules"] if rule["labels"].get("service") == "miniflux"]
        assert not site.play().converge()["changed"]

    def test_enable_again(self, site: Site) -> None:
        site.set_vars(FORGE, None)
        site.play()
        kept = site.ssh("lab-forge", "sudo -u postgres psql -d miniflux -Atc 'select x from kept'")
        assert kept.strip() == "42"
        status, _body = site.fetch(f"https://miniflux.{DOMAIN}/healthcheck")
        assert status == 200
        site.ssh("lab-forge", "sudo -u postgres psql -d miniflux -c 'drop table kept'")


def service(**contribution: t.Any) -> dict[str, t.Any]:
    return {"contribution": {"summary": "A test service", "tier": "services", **contribution}}


def unit_service(command: str, **contribution: t.Any) -> dict[str, t.Any]:
    """An inline service that is one unit file of its own."""
    unit = f"[Unit]\nDescription=test\n[Service]\nExecStart={command}\n[Install]\nWantedBy=multi-user.target\n"
    return service(
        run={"native": {"units": ["thing.service"]}},
        files=[{"path": "/etc/systemd/system/thing.service", "content": unit}],
        **contribution,
    )


class TestTakeBack:
    """A service that never becomes healthy is taken back alone."""

    def test_with_nothing_to_go_back_to_it_is_stopped_and_named(self, site: Site, changed: t.Any) -> None:
        before = starts(site, "miniflux.service")
        changed(FORGE, {"hearth_services__test": {"thing": unit_service("/bin/false")}})
        outcome = site.play(expect=2)
        assert "thing" in outcome.message
        assert site.ssh("lab-forge", "systemctl is-active thing.service || true").strip() in ("inactive", "failed")
        assert starts(site, "miniflux.service") == before
        assert "thing" in site.generation()["partial"]

    def test_it_goes_back_to_what_ran_before(self, site: Site, changed: t.Any) -> None:
        good = "/usr/bin/python3 -m http.server --bind 127.0.0.1 8765"
        listen = {"listen": {"http": {"port": 8765}}, "health": {"http": {"port": "http"}, "start_period": "20s"}}
        changed(FORGE, {"hearth_services__test": {"thing": unit_service(good, **listen)}})
        site.play()
        changed(FORGE, {"hearth_services__test": {"thing": unit_service("/usr/bin/sleep 1000", **listen)}})
        outcome = site.play(expect=2)
        assert "thing" in outcome.message
        assert "http.server" in site.ssh("lab-forge", "systemctl show -P ExecStart thing.service")
        assert site.ssh("lab-forge", "curl -s -o /dev/null -w '%{http_code}' localhost:8765/").strip() == "200"


class TestSafety:
    def test_what_existed_before_hearth_comes_back(self, site: Site, changed: t.Any) -> None:
        site.ssh(
            "lab-forge", "echo equal > /etc/before-equal; echo mine > /etc/before-other; chmod 0600 /etc/before-other"
        )
        files = [
            {"path": "/etc/before-equal", "content": "equal\n"},
            {"path": "/etc/before-other", "content": "theirs\n"},
        ]
        changed(FORGE, {"hearth_services__test": {"thing": service(run={"native": {}}, files=files)}})
        outcome = site.play()
        assert "modify file:/etc/before-other" in outcome.actions()
        assert any(
            "/etc/before-other existed before Hearth" in notice["message"] for notice in outcome.converge()["notices"]
        )
        assert site.ssh("lab-forge", "cat /etc/before-other") == "theirs\n"
        changed(FORGE, None)
        site.play()
        found = site.ssh("lab-forge", "cat /etc/before-equal /etc/before-other; stat -c %a /etc/before-other")
        assert found == "equal\nmine\n600\n"
        site.ssh("lab-forge", "rm /etc/before-equal /etc/before-other")

    def test_a_configuration_its_program_rejects_replaces_nothing(self, site: Site, changed: t.Any) -> None:
        before = site.ssh("lab-forge", "sha256sum /etc/caddy/Caddyfile; ls /etc/caddy/sites")
        changed(
            FORGE,
            {
                "hearth_services__test": {
                    "thing": service(
                        run={"native": {}},
                        files=[{"path": "/etc/caddy/sites/thing.caddy", "content": "not { a caddy file"}],
                    )
                }
            },
        )
        outcome = site.play(expect=2)
        for part in ("lab-forge", "caddy"):
            assert part in outcome.message, outcome.message
        assert site.ssh("lab-forge", "sha256sum /etc/caddy/Caddyfile; ls /etc/caddy/sites") == before
        assert site.fetch(f"https://miniflux.{DOMAIN}/healthcheck")[0] == 200

    def test_a_service_never_starts_on_storage_that_lost_its_data(self, site: Site) -> None:
        path = "/var/lib/prometheus/alertmanager"
        site.ssh(
            "lab-forge",
            f"systemctl stop prometheus-alertmanager; mv {path} {path}.aside; install -d -o prometheus -g prometheus {path}",
        )
        try:
            # By hand, at boot, or by anything else: the gate is a unit of the host and needs no controller.
            started = site.ssh("lab-forge", "systemctl start prometheus-alertmanager 2>&1; echo $?")
            assert started.strip()[-1] != "0", started
            said = site.ssh("lab-forge", "journalctl -u hearth-gate@alertmanager -n 5 -o cat --no-pager")
            assert path in said, said
            outcome = site.play(expect=2)
            for part in ("lab-forge", "alertmanager", path):
                assert part in outcome.message, outcome.message
            assert site.ssh("lab-forge", f"ls -A {path}").strip() == ""
        finally:
            site.ssh(
                "lab-forge", f"rmdir {path}; mv {path}.aside {path}; systemctl reset-failed 'hearth-gate@*' || true"
            )
        assert "start unit:prometheus-alertmanager.service" in site.play().actions()

    def test_found_data_is_never_touched(self, site: Site, changed: t.Any) -> None:
        site.ssh(
            "lab-forge", "mkdir -p /var/lib/thing && echo precious > /var/lib/thing/data && chmod 0700 /var/lib/thing"
        )
        storage = {"storage": {"state": {"mountpoint": "/var/lib/thing"}}, "protect": {"class": "standard"}}
        try:
            changed(FORGE, {"hearth_services__test": {"thing": unit_service("/usr/bin/sleep 1000", **storage)}})
            outcome = site.play(expect=2)
            for part in ("lab-forge", "thing", "/var/lib/thing", "adopt"):
                assert part in outcome.message, outcome.message
            found = site.ssh(
                "lab-forge", "cat /var/lib/thing/data; stat -c '%a %U' /var/lib/thing; ls -A /var/lib/thing"
            )
            assert found == "precious\n700 root\ndata\n"
        finally:
            site.ssh("lab-forge", "rm -r /var/lib/thing")

    def test_a_package_that_does_not_exist(self, site: Site, changed: t.Any) -> None:
        changed(FORGE, {"hearth_services__test": {"thing": service(run={"native": {"packages": ["no-such-package"]}})}})
        outcome = site.play(expect=2)
        for part in ("lab-forge", "thing", "no-such-package"):
            assert part in outcome.message, outcome.message

    def test_a_port_held_by_something_unmanaged(self, site: Site, changed: t.Any) -> None:
        site.ssh("lab-forge", "systemd-run --unit=squatter python3 -m http.server --bind 127.0.0.1 8765")
        try:
            changed(
                FORGE,
                {
                    "hearth_services__test": {
                        "thing": unit_service("/usr/bin/sleep 1000", listen={"http": {"port": 8765}})
                    }
                },
            )
            outcome = site.play(expect=2)
            for part in ("lab-forge", "thing", "8765", "squatter.service"):
                assert part in outcome.message, outcome.message
            assert not site.ssh("lab-forge", "ls /etc/systemd/system/thing.service 2>/dev/null || true").strip()
        finally:
            site.ssh("lab-forge", "systemctl stop squatter.service")

    def test_a_host_that_cannot_be_reached(self, site: Site) -> None:
        """Nothing answers at this port; the other host of the run is converged all the same."""
        site.set_vars("host_vars/lab-nas-1/zz_test.yml", {"ansible_port": 9})
        try:
            outcome = site.play(limit=None, expect=4, env={"ANSIBLE_TIMEOUT": "5"})
        finally:
            site.set_vars("host_vars/lab-nas-1/zz_test.yml", None)
        for part in ("host lab-nas-1 cannot be reached", "nothing was changed", "ansible_host"):
            assert part in outcome.message, outcome.message
        assert not outcome.converge("lab-forge")["changed"]

    def test_a_full_disk_changes_nothing(self, site: Site, changed: t.Any) -> None:
        # The state directory on a file system of its own that is nearly full.
        site.ssh(
            "lab-forge",
            "mkdir -p /mnt/full && mount -t tmpfs -o size=16m tmpfs /mnt/full && cp -a /var/lib/hearth/. /mnt/full/ "
            "&& mount --bind /mnt/full /var/lib/hearth",
        )
        try:
            changed(FORGE, {"hearth_services__test": {"thing": unit_service("/usr/bin/sleep 1000")}})
            outcome = site.play(expect=2)
            for part in ("lab-forge", "MiB free", "/var/lib/hearth", "make room"):
                assert part in outcome.message, outcome.message
            assert not site.ssh("lab-forge", "ls /etc/systemd/system/thing.service 2>/dev/null || true").strip()
        finally:
            site.ssh("lab-forge", "umount /var/lib/hearth /mnt/full")

    def test_a_firewall_that_cuts_the_controller_off_is_undone(self, site: Site, changed: t.Any) -> None:
        before = site.ssh("lab-forge", "nft -s list table inet hearth")
        changed(FORGE, {"hearth_services__test": {"sshd": {"override": {"listen": {"ssh": {"from": []}}}}}})
        outcome = site.play(expect=None, timeout=400)
        assert outcome.status != 0
        wait_until("the host lets us in again", lambda: _reachable(site), 120)
        assert site.ssh("lab-forge", "nft -s list table inet hearth") == before

    @pytest.mark.parametrize("seconds", [0.3, 1.5, 4.0])
    def test_a_killed_apply_leaves_no_service_between_two_states(
        self, site: Site, changed: t.Any, seconds: float
    ) -> None:
        good = "/usr/bin/python3 -m http.server --bind 127.0.0.1 8765"
        changed(FORGE, {"hearth_services__test": {"thing": unit_service(good, listen={"http": {"port": 8765}})}})
        with subprocess.Popen(
            [str(BIN / "ansible-playbook"), "-i", str(site.inventory), "site.yml", "-l", "lab-forge"],
            cwd=ROOT, env=site.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            wait_until(
                "the apply unit",
                lambda: "hearth-apply" in site.ssh("lab-forge", "systemctl list-units --no-legend 'hearth-apply-*'"),
                60,
                interval=0.1,
            )
            time.sleep(seconds)
            site.ssh("lab-forge", "systemctl kill --signal=KILL 'hearth-apply-*' || true")
            process.communicate(timeout=300)
        state = site.ssh(
            "lab-forge", "ls /etc/systemd/system/thing.service 2>/dev/null; systemctl is-active thing.service || true"
        )
        assert state.split() in (["inactive"], ["/etc/systemd/system/thing.service", "active"]), state
        outcome = site.play()
        assert site.ssh("lab-forge", "systemctl is-active thing.service").strip() == "active", outcome.text
        assert not site.play().converge()["changed"]


def _reachable(site: Site) -> bool:
    try:
        return site.ssh("lab-forge", "true; echo ok", timeout=15).strip() == "ok"
    except (AssertionError, subprocess.TimeoutExpired):
        return False


class TestAdding:
    def test_the_documentation_s_own_example(self, site: Site, changed: t.Any, tmp_path: Path) -> None:
        """docs/add-a-service.md: its files, in a user's own repository, are a service."""
        text = (ROOT / "docs" / "add-a-service.md").read_text()
        parts = text.split("<!-- file: ")[1:]
        assert len(parts) == 5
        for part in parts:
            name, _, rest = part.partition(" -->")
            target = site.directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(rest.split("```yaml\n", 1)[1].split("```", 1)[0])
        playbook = site.directory / "site.yml"
        playbook.write_text((ROOT / "playbooks" / "site.yml").read_text())
        changed(FORGE, {"hearth_services": {"ntfy": {}}})
        site.play(playbook=playbook)
        people = passwords(site)["people"]
        statuses = [
            site.fetch(f"https://ntfy.{DOMAIN}/v1/health", user=name, password=secret)[0]
            for name, secret in people.items()
        ]
        assert 200 in statuses, statuses
        assert site.ssh("lab-forge", "stat -c %U:%G /var/lib/ntfy").strip() == "_ntfy:_ntfy"
        changed(FORGE, {})
        site.play(playbook=playbook)
        assert site.ssh("lab-forge", "systemctl is-active ntfy.service || true").strip() == "inactive"
        assert site.ssh("lab-forge", "ls -d /var/lib/ntfy").strip() == "/var/lib/ntfy"

    def test_a_second_instance_and_an_inline_service(self, site: Site, changed: t.Any) -> None:
        changed(
            FORGE,
            {
                # An instance has secrets of its own, here from a variable as vault or AWX would give it.
                "sonarr_4k_secrets": {"api_key": "0123456789abcdef0123456789abcdef"},
                "hearth_services__test": {
                    "sonarr_4k": {"role": "sonarr", "options": {"port": 8990}},
                    "thing": unit_service(
                        "/usr/bin/python3 -m http.server --bind 127.0.0.1 8765", listen={"http": {"port": 8765}}
                    ),
                },
            },
        )
        site.play()
        assert site.ssh("lab-forge", "curl -s localhost:8990/ping").strip() != ""
        assert site.ssh("lab-forge", "curl -s localhost:8989/ping").strip() != ""
        assert site.ssh("lab-forge", "systemctl is-active thing.service").strip() == "active"

    def test_two_groups_services_merge(self, site: Site) -> None:
        outcome = site.play(playbook="playbooks/status.yml")
        services = {entry["service"] for hosts in outcome.results.values() for entry in hosts["lab-forge"]["services"]}
        assert {"base", "postgresql", "miniflux", "sonarr"} <= services

    def test_only_and_tiers_leave_the_rest_alone(self, site: Site, changed: t.Any) -> None:
        changed(
            FORGE,
            {
                "hearth_timezone": "Europe/London",
                "hearth_services__test": {
                    "thing": unit_service("/usr/bin/sleep 1000"),
                    "miniflux": {"override": {"alerts": []}},
                    "radarr": {"enabled": False},
                },
            },
        )
        listed = "cd /etc/prometheus/hearth/rules && sha256sum *.yml"
        rules = site.ssh("lab-forge", listed).splitlines()
        outcome = site.play(variables={"only": "thing"})
        # Alerts of services that are left out stay, whatever the inventory says of them now; its own are added.
        added = set(site.ssh("lab-forge", listed).splitlines()) ^ set(rules)
        assert [line.split()[1] for line in added] == ["lab-forge.thing.yml"]

        def loaded() -> set[str]:
            groups = json.loads(site.ssh("lab-forge", "curl -s localhost:9090/api/v1/rules"))["data"]["groups"]
            return {group["name"] for group in groups}

        wait_until("Prometheus has the new rules", lambda: "lab-forge/thing" in loaded(), 30)
        assert {"lab-forge/miniflux", "lab-forge/radarr"} <= loaded()
        assert not [action for action in outcome.actions() if "timezone" in action or "localtime" in action]
        assert "start unit:thing.service" in outcome.actions()
        outcome = site.play(playbook="playbooks/core.yml")
        assert [action for action in outcome.actions() if "localtime" in action]


def test_the_built_collection_works_without_a_checkout(site: Site, tmp_path: Path) -> None:
    galaxy = str(BIN / "ansible-galaxy")
    subprocess.run(
        [galaxy, "collection", "build", "--output-path", str(tmp_path)], cwd=ROOT, check=True, capture_output=True
    )
    tarball = next(tmp_path.glob("hearth-homelab-*.tar.gz"))
    listed = subprocess.run(["tar", "tzf", str(tarball)], check=True, capture_output=True, text=True).stdout
    for unwanted in (".git/", ".venv/", ".collections/", "build/"):
        assert not [line for line in listed.splitlines() if line.startswith(unwanted)]
    home = tmp_path / "somebody"
    home.mkdir()
    (home / "ansible.cfg").write_text("[defaults]\n")
    (home / "play.yml").write_text(
        "- name: Somebody's play\n  hosts: all\n  gather_facts: false\n  tasks:\n"
        "    - name: Compose\n      hearth.homelab.compose:\n    - name: Converge\n      hearth.homelab.converge:\n"
    )
    environment = site.environment(
        ANSIBLE_CONFIG=str(home / "ansible.cfg"), ANSIBLE_COLLECTIONS_PATH=str(home / "collections")
    )
    subprocess.run(
        [galaxy, "collection", "install", "--no-deps", str(tarball), "-p", str(home / "collections")],
        cwd=home, env=environment, check=True, capture_output=True,
    )  # fmt: skip
    environment["ANSIBLE_PIPELINING"] = "1"
    found = subprocess.run(
        [str(BIN / "ansible-playbook"), "-i", str(site.inventory / "hosts.yml"), str(home / "play.yml"), "-l", "lab-forge"],
        cwd=home, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-4000:]
    assert '"changed": false' in found.stdout


class TestAlertFired:
    """The end of TestAlert: by now the service has been down for longer than the alert waits."""

    def test_the_alert_reached_the_real_alertmanager(self, site: Site) -> None:
        def fired() -> bool:
            alerts = json.loads(site.ssh("lab-forge", "curl -s localhost:9093/api/v2/alerts"))
            return any(
                # What a receiver gets says what to do: webhooks and mails carry the annotations.
                "systemctl status chrony.service" in alert["annotations"]["runbook"]
                and alert["labels"]["alertname"] == "ServiceDown"
                and alert["labels"]["service"] == "chrony"
                and alert["labels"]["host"] == "lab-nas-1"
                for alert in alerts
            )

        wait_until("ServiceDown of chrony on lab-nas-1", fired, 300, interval=5)

    def test_mended(self, site: Site) -> None:
        outcome = site.play(limit="lab-nas-1")
        assert "start unit:chrony.service" in outcome.actions("lab-nas-1")
