# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scenarios for the agent alone, on a disposable Debian 13 host that may be broken.

    python tests/integration/host/scenarios.py [-n KILLS] -- ssh -i KEY -o ControlMaster=auto ... root@HOST

Each scenario asserts what must hold; the last one kills runs at random and looks whether the host is wholly old or
wholly new. The host needs python3, nftables, openssh-server and a package source that has caddy.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import typing as t
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[3] / ".collections"), str(Path(__file__).resolve().parent)]

from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from drive import Host, World

UNIT = """[Unit]
Description={name}
Requires=hearth-gate@{name}.service {requires}
After=hearth-gate@{name}.service {requires}
StartLimitBurst=5
StartLimitIntervalSec=30
[Service]
User={name}
ExecStart={command}
Restart=on-failure
RestartSec=0.5
[Install]
WantedBy=multi-user.target
"""
SERVE = "/bin/sh -c 'cp /etc/{0}/conf /var/lib/{0}/index.html; exec /usr/bin/python3 -m http.server {1} --bind 127.0.0.1 -d /var/lib/{0}'"
RULES = """table inet hearth {{}}
delete table inet hearth
table inet hearth {{
  chain input {{
    type filter hook input priority 0; policy drop;
    iif lo accept
    ct state established,related accept
    tcp dport {{ 22, {port} }} accept
  }}
}}
"""


def app(
    world: World, name: str, uid: int, text: str = "old", requires: tuple[str, ...] = (), command: str = ""
) -> None:
    """A service with everything: user, storage, gate, secret, configuration with a hole, route, check."""
    port = 6000 + uid
    check = m.Check("http", url=f"http://127.0.0.1:{port}/index.html")
    world.service(name, requires=requires, units=(f"{name}.service",), checks=(check,), start_period=20, settle=4)
    world.add(m.Group(name, name, gid=uid), m.User(name, name, uid=uid, group=name))
    world.add(m.Storage(f"/var/lib/{name}", name, owner=name, group=name), m.Directory(f"/etc/{name}", name))
    world.secrets[f"{name}/key"] = f"s3cret-{name}-{text}!"
    world.add(m.Secret(f"{name}/key", name))
    conf = f"message={text}\nkey=@@hearth:{name}/key@@\n"
    world.file(name, f"/etc/{name}/conf", conf, holes=(f"{name}/key",), mode="0640", group=name)
    command = command or SERVE.format(name, port)
    units = " ".join(f"{other}.service" for other in requires)
    world.file(name, f"/etc/systemd/system/{name}.service", UNIT.format(name=name, command=command, requires=units))
    world.file(
        name, f"/etc/caddy/sites/{name}", f"http://{name}.example.com {{\n\treverse_proxy 127.0.0.1:{port}\n}}\n"
    )
    reads = (f"file:/etc/{name}/conf", f"file:/etc/systemd/system/{name}.service", f"secret:{name}/key")
    world.add(m.Unit(f"{name}.service", name, restart_on=reads))


def fleet(text: str = "old", port: int = 9000, apps: bool = True, caddyfile: str = "", command: str = "") -> World:
    """Firewall, sshd, Caddy, and two services of which one requires the other."""
    world = World("scenario")
    world.service("nftables", tier="core", units=("nftables.service",), settle=4)
    # Debian's unit flushes everything when it stops.
    world.file("nftables", "/etc/systemd/system/nftables.service.d/hearth.conf", "[Service]\nExecStop=\n")
    world.file("nftables", "/etc/nftables/hearth.nft", RULES.format(port=port))
    world.file(
        "nftables", "/etc/nftables.conf", '#!/usr/sbin/nft -f\ninclude "/etc/nftables/hearth.nft"\n', mode="0755"
    )
    world.add(
        m.Unit("nftables.service", "nftables"), m.Firewall("inet hearth", "nftables", path="/etc/nftables/hearth.nft")
    )
    world.validators.append(
        m.Validator("nft", "nftables", ("nft", "-c", "-f", "/etc/nftables.conf"), ("/etc/nftables/",))
    )
    world.service("sshd", tier="core", units=("ssh.service",), settle=4)
    world.file("sshd", "/etc/ssh/sshd_config.d/10-hearth.conf", "PasswordAuthentication no\n")
    world.add(m.Unit("ssh.service", "sshd", guarded=True, reload_on=("file:/etc/ssh/sshd_config.d/10-hearth.conf",)))
    world.validators.append(m.Validator("sshd", "sshd", ("/usr/sbin/sshd", "-t"), ("/etc/ssh/",)))
    world.service("caddy", tier="infrastructure", units=("caddy.service",), checks=(m.Check("tcp", port=80),), settle=4)
    world.add(m.Package("caddy", "caddy"), m.Directory("/etc/caddy/sites", "caddy"))
    base = "{\n\tauto_https off\n}\nimport sites/*\nhttp://default.example.com {\n\trespond ok\n}\n"
    world.file("caddy", "/etc/caddy/Caddyfile", base + caddyfile)
    world.add(m.Unit("caddy.service", "caddy", reload_on=("file:/etc/caddy/Caddyfile", "file:/etc/caddy/sites/")))
    argv = ("caddy", "validate", "--config", "/etc/caddy/Caddyfile", "--adapter", "caddyfile")
    world.validators.append(m.Validator("caddy", "caddy", argv, ("/etc/caddy/",)))
    if apps:
        app(world, "app", 2101, text, command=command)
        app(world, "dep", 2102, requires=("app",))
    return world


#: What must agree: the files' version, the rules on disk and live, the units, and what must not be left.
STATE = {
    "text": "sed -n 's/message=//p' /etc/app/conf",
    "disk": "grep -o '90[0-9]*' /etc/nftables/hearth.nft",
    "live": "nft list table inet hearth | grep -o '90[0-9]*'",
    "units": "systemctl is-active app dep caddy ssh | paste -sd ' '",
    "served": "curl -s http://127.0.0.1:8101/index.html | sed -n 's/message=//p'",
    "left": "find / /etc /var/lib/hearth -xdev -name '*.hearth-tmp'; ls /usr/sbin/policy-rc.d /var/lib/hearth/active "
    "/run/systemd/system/*.service; ls -A /run/hearth; dpkg --audit",
}


def state(host: Host) -> dict[str, str]:
    return host.ask(STATE)


def well(host: Host, text: str, port: int) -> None:
    found, expected = state(host), {"text": text, "served": text, "disk": str(port), "live": str(port), "left": ""}
    expected["units"] = "active active active active"
    assert found == expected, (found, expected)


def scenarios(host: Host, kills: int) -> t.Iterator[str]:
    result = host.converge(fleet())
    assert result["ok"], result
    well(host, "old", 9000)
    answer = host.compare(fleet().manifest, fleet().secrets)
    assert (answer["status"], answer["plan"]["actions"]) == ("converged", []), answer
    yield "a fresh host converges, and a second comparison finds nothing"

    result = host.converge(fleet(caddyfile="nonsense {\n"))
    assert result["undone"], result
    assert "caddy refuses the new configuration" in result["problems"][0]["message"], result
    well(host, "old", 9000)
    yield "a configuration that its program rejects replaces nothing"

    world = fleet()
    app(world, "bad", 2103, command="/bin/sh -c 'echo dying of s3cret-bad-old!; exit 3'")
    app(world, "bdep", 2104, requires=("bad",))
    result = host.converge(world)
    assert sorted(result["taken_back"]) == ["bad", "bdep"], result
    assert "s3cret" not in str(result), result
    assert "bad" not in host.sh("ls /etc/caddy/sites /etc/systemd/system")
    well(host, "old", 9000)
    yield "a new service that loops is stopped and removed, alone with what requires it"

    result = host.converge(fleet(text="new", command="/bin/false"))
    assert list(result["taken_back"]) == ["app"], result
    well(host, "old", 9000)
    yield "an old service goes back to its old configuration, and what requires it runs again"

    result = host.converge(fleet(port=9001), confirm=False, confirm_timeout=4)
    assert result["undone"], result
    well(host, "old", 9000)
    yield "an unconfirmed change of the firewall is undone"

    result = host.converge(fleet(apps=False))
    assert result["ok"], result
    assert any("the data of app stays in /var/lib/app" in notice["message"] for notice in result["notices"]), result
    assert not host.sh("ls -d /etc/app /etc/systemd/system/app.service /etc/caddy/sites/app 2>/dev/null", check=False)
    assert host.sh("ls -d /var/lib/app")
    result = host.converge(fleet())
    assert result["ok"], result
    well(host, "old", 9000)
    yield "what is no longer declared goes, its data stays and is used again"

    text, port = "old", 9000
    for number in range(1, kills + 1):
        world = fleet(text=f"v{number}", port=9000 + number)
        run = host.start(world.manifest, world.blobs, world.secrets, confirm_timeout=5)
        if random.random() < 0.8:
            host.call("confirm", {"run": run})
        time.sleep(random.uniform(0, 3))
        host.sh(f"systemctl kill -s KILL hearth-apply-{run} hearth-settle 2>/dev/null", check=False)
        host.call("recover", {"timeout": 60})
        result = host.follow(run, confirm=False, show=False)
        if result["ok"]:
            text, port = f"v{number}", 9000 + number
        well(host, text, port)
        yield f"kill -9 number {number}: {'finished' if result['ok'] else 'undone'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--kills", type=int, default=10)
    parser.add_argument("ssh", nargs="+", help="the command that runs its last argument on the host")
    arguments = parser.parse_args()
    for line in scenarios(Host(arguments.ssh), arguments.kills):
        print(f"ok: {line}", flush=True)


if __name__ == "__main__":
    main()
