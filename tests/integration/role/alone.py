# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One role by itself on a real host: the steps of test_role.py (one role, with pytest) and every.py (all roles).

Nothing here knows a role. What must be gone is what the host itself recorded as the role's before, and what the host has
more than before the role came.
"""

from __future__ import annotations

import json
import re
import typing as t
from pathlib import Path

import yaml

from ..conftest import Outcome, Site

HOST = "lab-forge"
FORGE = f"host_vars/{HOST}/zz_role.yml"
KEPT = ".kept-by-the-test"
CORE = "core"

#: What packages' maintainer scripts make and keep: alternatives, links of init, enabled and masked units, accounts, caches.
PACKAGED = re.compile(
    r"/etc/(alternatives|rc[0-9S]\.d|init\.d|ssl/certs|fonts|apparmor\.d|ld\.so\.cache|mailcap|shells|services|\.pwd\.lock|"
    r"(passwd|group|shadow|gshadow|subuid|subgid)-?$|systemd/(system|user)/[^/]+\.(wants|requires)(/|$))"
)


class Alone:
    """A role, the site whose inventory declares it among others, and the host that has the core only."""

    def __init__(self, site: Site, role: str) -> None:
        self.site, self.role = site, role
        self.before: dict[str, t.Any] = {}
        self.clean: dict[str, t.Any] = {}

    # -- what is done to the host ---------------------------------------------------------------------------------

    def alone(self) -> Outcome:
        """The role by itself in somebody's play; the inventory does not enable it."""
        self.site.set_vars(FORGE, {"hearth_services__role": {self.role: {"enabled": False}}})
        play = self.site.directory / "role.yml"
        roles = [f"hearth.homelab.{self.role}"]
        play.write_text(yaml.safe_dump([{"name": "Alone", "hosts": HOST, "gather_facts": False, "roles": roles}]))
        return self.site.play(playbook=play)

    def only(self, services: t.Collection[str]) -> Outcome:
        """The whole site with these services of the host, and no others."""
        groups = ("lab", "forge")
        files = [self.site.inventory / "group_vars" / f"{group}.yml" for group in groups]
        declared = {name for path in files for name in yaml.safe_load(path.read_text())["hearth_services"]}
        named = {*declared, *self.services(), *services, self.role}
        self.site.set_vars(FORGE, {"hearth_services__role": {name: {"enabled": name in services} for name in sorted(named)}})
        return self.site.play(playbook="site.yml")

    def core(self) -> set[str]:
        return {name for name, state in self.services().items() if state["tier"] == CORE}

    def services(self) -> dict[str, t.Any]:
        return t.cast("dict[str, t.Any]", self.site.generation()["manifest"]["services"])

    # -- the steps ------------------------------------------------------------------------------------------------

    def bare(self) -> None:
        """The host has its core and nothing else."""
        core = self.core()
        if set(self.services()) != core:
            self.only(core)
            assert set(self.services()) == core
        self.clean = self.traces()

    def comes(self) -> None:
        self.alone()
        generation = self.site.generation()
        assert self.role in generation["manifest"]["services"]
        self.before = {**generation, "sums": self.sums([item["name"] for item in self.items(generation, "file")])}
        self.healthy()

    def again(self) -> None:
        result = self.alone().converge()
        assert not result["changed"], result["actions"]
        assert result["exchanges"] == 1

    def goes(self) -> None:
        for item in self.items(self.before, "storage"):
            self.ssh(f"echo kept > {item['name']}/{KEPT}")
        for item in self.items(self.before, "postgresql_database"):
            self.sql(item["name"], "drop table if exists kept; create table kept as select 42 as x")
        stay = set(self.services()) - {self.role}
        assert self.only(stay).converge()["changed"]
        assert set(self.services()) == stay, self.services().keys()
        assert self.left() == []
        self.data()

    def comes_back(self) -> None:
        self.alone()
        self.healthy()
        self.data()
        assert json.dumps(self.services()[self.role], sort_keys=True) == json.dumps(
            self.before["manifest"]["services"][self.role], sort_keys=True
        )
        for item in self.items(self.before, "storage"):
            self.ssh(f"rm {item['name']}/{KEPT}")

    def no_trace(self) -> None:
        """With everything it required gone as well, the host is as it was before the role came."""
        generation = self.site.generation()
        self.only(self.core())
        assert self.differences(generation) == []

    # -- what is looked at ----------------------------------------------------------------------------------------

    def healthy(self) -> None:
        outcome = self.site.play(playbook="playbooks/status.yml")
        services = [entry for hosts in outcome.results.values() for entry in hosts[HOST].get("services", [])]
        assert self.role in {entry["service"] for entry in services}
        assert [entry for entry in services if not entry["healthy"]] == []

    def items(self, generation: dict[str, t.Any], kind: str) -> list[dict[str, t.Any]]:
        found = generation["manifest"]["items"]
        return [item for item in found if item["kind"] == kind and item["service"] == self.role]

    def ssh(self, command: str, *, stdin: str | None = None) -> str:
        return self.site.ssh(HOST, command, stdin=stdin)

    def sql(self, database: str, statement: str) -> str:
        return self.ssh(f"runuser -u postgres -- psql -d {database} -At", stdin=statement).strip()

    def sums(self, paths: list[str]) -> dict[str, str]:
        """SHA-256 of those files that exist."""
        found = self.ssh("xargs -d '\\n' -r sha256sum 2>/dev/null || true", stdin="\n".join(paths))
        return {path: digest for digest, _blank, path in (line.partition("  ") for line in found.splitlines())}

    def left(self) -> list[str]:
        """What the host still has of the items that it recorded as the role's."""
        left = []
        data = tuple(f"{item['name']}/" for item in self.items(self.before, "storage"))
        own = {item["name"] for item in self.items(self.before, "file") if not item.get("create_only")}
        for path, digest in self.sums(sorted(self.before["sums"])).items():
            # A file that was there before Hearth came is back; what Hearth wrote is not. What the application writes to
            # itself is data.
            if digest == self.before["sums"][path] and (path in own or not path.startswith(data)):
                left.append(path)
        for item in self.items(self.before, "symlink"):
            if self.ssh(f"readlink {item['name']} || true").strip() == item["target"]:
                left.append(item["name"])
        for item in self.items(self.before, "unit"):
            state = self.ssh(f"systemctl is-active {item['name']}; systemctl is-enabled {item['name']}; true").split()
            if {"active", "activating", "failed", "enabled", "enabled-runtime"} & set(state):
                left.append(f"{item['name']} {state}")
        for item in self.items(self.before, "user"):
            account = self.ssh(f"getent passwd {item['name']} || true").strip()
            if account and not account.endswith(("/nologin", "/false")):
                left.append(account)
        for item in self.items(self.before, "postgresql_role"):
            left += self.sql("postgres", f"select rolname from pg_roles where rolcanlogin and rolname = '{item['name']}'").split()
        for item in self.items(self.before, "podman_secret"):
            left += self.ssh(
                f"podman secret inspect {item['name']} --format '{{{{.Spec.Name}}}}' 2>/dev/null || true"
            ).split()
        sockets = self.ssh("ss -Hlntu | awk '{print $1, $5}'").splitlines()
        for listener in self.before["manifest"]["services"][self.role].get("listeners", []):
            protocol, _address, port = listener.split("/")
            left += [line for line in sockets if line.startswith(protocol) and line.endswith(f":{port}")]
        return left

    def data(self) -> None:
        for item in self.items(self.before, "storage"):
            assert self.ssh(f"cat {item['name']}/{KEPT}").strip() == "kept"
        for item in self.items(self.before, "postgresql_database"):
            assert self.sql(item["name"], "select x from kept") == "42"

    def traces(self) -> dict[str, t.Any]:
        program = Path(__file__).with_name("traces.py").read_text()
        return t.cast("dict[str, t.Any]", json.loads(self.ssh("python3 -", stdin=program)))

    def differences(self, generation: dict[str, t.Any]) -> list[str]:
        """What the host has more than before the role came, apart from what stays on purpose, which the generation names."""
        after = self.traces()
        found = []
        for what in ("units", "enabled", "sockets", "rules", "podman", "logins", "processes", "links", "mounts"):
            found += [f"{what}: new: {entry}" for entry in after[what] if entry not in self.clean[what]]
            found += [f"{what}: gone: {entry}" for entry in self.clean[what] if entry not in after[what]]
        items = generation["manifest"]["items"]
        data = [item["name"] for item in items if item["kind"] == "storage"]
        data += [item["name"] for item in items if item["kind"] == "file" and item.get("create_only")]
        old, new = self.clean["files"], after["files"]
        for path in sorted({*old, *new}):
            name = path.removeprefix("= ")
            if old.get(path) == new.get(path) or PACKAGED.match(name):
                continue
            if any(name == entry or name.startswith(f"{entry}/") or entry.startswith(f"{name}/") for entry in data):
                continue
            found.append(f"files: {path}: {old.get(path)} became {new.get(path)}")
        return found
