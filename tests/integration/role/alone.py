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

from ..conftest import ROOT, Outcome, Site

HOST = "lab-forge"
FORGE = f"host_vars/{HOST}/zz_role.yml"
KEPT = ".kept-by-the-test"
CORE = "core"

#: What stays on purpose, whichever role it was: Hearth itself, accounts, whose numbers data carries, and the loader's cache
#: of the packages' libraries.
STAYS = re.compile(
    r"/etc/systemd/system/([^/]+\.wants/)?hearth-(settle|gate@)\.service|"
    r"/etc/((passwd|group|shadow|gshadow|subuid|subgid)-?|\.pwd\.lock|\.updated|ld\.so\.cache)|"
    r"/etc/rc[0-9S]\.d/K.*"  # systemctl disable says it to init scripts as well
)

#: What podman itself keeps after its first container with a network of its own: netavark's table, as long as no rule in it is
#: about a network, a port or an address, and the directory where namespaces are mounted.
PODMAN = re.compile(
    r"rules: new: table inet netavark \{(?!.*(nv_|dport|\d+\.\d+\.\d+\.\d+|[0-9a-f]*::)).*|mounts: new: /run/netns"
)


def tier(role: str) -> str:
    path = ROOT / "roles" / role / "vars" / "contribution.yml"
    return str(yaml.safe_load(path.read_text())[f"{role}_contribution"]["tier"])


def nothing(found: list[str]) -> None:
    """Fails with all of them: every.py runs without pytest, which would show them."""
    if found:
        raise AssertionError("\n".join(found))


class Alone:
    """A role, the site whose inventory declares it among others, and the host that has the core only.

    A role of the core comes to a host that has nothing of Hearth, with what Debian itself runs.
    """

    def __init__(self, site: Site, role: str) -> None:
        self.site, self.role = site, role
        self.is_core = tier(role) == CORE
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

    def only(self, services: t.Collection[str], expect: int | None = 0) -> Outcome:
        """The whole site with these services of the host, and no others."""
        groups = ("lab", "forge")
        files = [self.site.inventory / "group_vars" / f"{group}.yml" for group in groups]
        declared = {name for path in files for name in yaml.safe_load(path.read_text())["hearth_services"]}
        named = {*declared, *self.services(), *services, self.role}
        self.site.set_vars(
            FORGE, {"hearth_services__role": {name: {"enabled": name in services} for name in sorted(named)}}
        )
        return self.site.play(playbook="site.yml", expect=expect)

    def services(self) -> dict[str, t.Any]:
        """Services of the host as it recorded them; none before the first run."""
        if not self.ssh("ls /var/lib/hearth/generations/current 2>/dev/null || true"):
            return {}
        return t.cast("dict[str, t.Any]", self.site.generation()["manifest"]["services"])

    def floor(self) -> set[str]:
        """What is there before the role comes: the core, for a role of the core nothing at all."""
        return set() if self.is_core else {name for name, state in self.services().items() if state["tier"] == CORE}

    # -- the steps ------------------------------------------------------------------------------------------------

    def bare(self) -> None:
        """The host has its core and nothing else."""
        floor = self.floor()
        if floor or self.services():
            # In any case: with the others declared, the core leaves something for them to read.
            self.only(floor)
        assert set(self.services()) == floor
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
        assert result["exchanges"] == 1, result["exchanges"]

    def goes(self) -> None:
        self.keep()
        stay = set(self.services()) - {self.role}
        assert self.only(stay).converge()["changed"]
        assert set(self.services()) == stay, self.services().keys()
        nothing(self.left())
        self.data()

    def comes_back(self) -> None:
        self.alone()
        self.healthy()
        self.data()
        assert json.dumps(self.services()[self.role], sort_keys=True) == json.dumps(
            self.before["manifest"]["services"][self.role], sort_keys=True
        )
        self.forget()

    def no_trace(self) -> None:
        """With everything it required gone as well, the host is as it was before the role came."""
        generation = self.site.generation()
        self.only(self.floor())
        nothing(self.differences(generation))

    def keeps_the_way_in(self) -> None:
        """Disabled on a host whose core is whole, a role with the way in is refused, or somebody still comes in."""
        services, before = set(self.services()), self.traces()
        outcome = self.only(services - {self.role}, expect=None)
        after = self.traces()  # over a connection of its own
        if outcome.status:
            assert f"{self.role} is no longer declared" in outcome.message, outcome.message
            assert set(self.services()) == services
            assert after == before
        else:
            assert self.role not in self.services()
        assert self.only(services).converge()["changed"] is (outcome.status == 0)
        assert self.traces() == before

    def is_guarded(self) -> bool:
        """Whether the host has a unit of the role through which its controller may come."""
        return any(item.get("guarded") for item in self.items(self.site.generation(), "unit"))

    # -- what is looked at ----------------------------------------------------------------------------------------

    def healthy(self) -> None:
        outcome = self.site.play(playbook="playbooks/status.yml")
        services = [entry for hosts in outcome.results.values() for entry in hosts[HOST].get("services", [])]
        assert self.role in {entry["service"] for entry in services}
        nothing([str(entry) for entry in services if not entry["healthy"]])

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
        """What the host still has of the items that it recorded as the role's, and that no other service has by now."""
        left = []
        now = {(item["kind"], item["name"]) for item in self.site.generation()["manifest"]["items"]}
        taken = {name for kind, name in now if kind in ("file", "symlink", "directory")}
        before = {path.removeprefix("= "): text for path, text in self.clean["files"].items()}
        data = tuple(f"{item['name']}/" for item in self.items(self.before, "storage"))
        # What the application writes to itself, inside its data, is data.
        theirs = {item["name"] for item in self.items(self.before, "file") if item.get("create_only")}
        for path, digest in self.sums(sorted(self.before["sums"])).items():
            # A file that was there before Hearth came is back; what Hearth wrote is not.
            ours = digest == self.before["sums"][path] and not before.get(path, "").endswith(digest)
            if ours and path not in taken and not (path in theirs and path.startswith(data)):
                left.append(path)
        for item in self.items(self.before, "symlink"):
            name, target = item["name"], item["target"]
            if self.ssh(f"readlink {name} || true").strip() == target and target not in before.get(name, ""):
                left.append(name)
        # A directory with something in it that is not ours stays.
        names = " ".join(item["name"] for item in self.items(self.before, "directory"))
        if names:
            empty = self.ssh(f"find {names} -maxdepth 0 -empty 2>/dev/null || true").split()
            left += [name for name in empty if name not in before and name not in taken]
        for item in self.items(self.before, "unit"):
            state = self.ssh(f"systemctl is-active {item['name']}; systemctl is-enabled {item['name']}; true").split()
            # What Debian ran before the role came it runs afterwards.
            if state[:1] != ["inactive"] and f"{item['name']} loaded {state[0]}" not in self.clean["units"]:
                left.append(f"{item['name']} {state}")
            known = f"{item['name']} {state[-1]}" in self.clean["enabled"]
            if not known and ("enabled" in state or ("enabled-runtime" in state and self.is_wanted(item["name"]))):
                left.append(f"{item['name']} {state}")
        for item in self.items(self.before, "user"):
            account = self.ssh(f"getent passwd {item['name']} || true").strip()
            if account and not account.endswith(("/nologin", "/false")):
                left.append(account)
        for item in self.items(self.before, "postgresql_role"):
            left += self.sql(
                "postgres", f"select rolname from pg_roles where rolcanlogin and rolname = '{item['name']}'"
            ).split()
        for item in self.items(self.before, "podman_secret"):
            left += self.ssh(
                f"podman secret inspect {item['name']} --format '{{{{.Spec.Name}}}}' 2>/dev/null || true"
            ).split()
        sockets = self.ssh("ss -Hlntu | awk '{print $1, $5}'").splitlines()
        for listener in self.before["manifest"]["services"][self.role].get("listeners", []):
            protocol, _address, port = listener.split("/")
            left += [
                line
                for line in sockets
                if line.startswith(protocol) and line.endswith(f":{port}") and line not in self.clean["sockets"]
            ]
        return left

    def is_wanted(self, unit: str) -> bool:
        """Whether a unit comes at the next boot, which a package's generator says by links: something that is enabled
        wants it."""
        wanting = self.ssh(f"systemctl show --value --property=WantedBy,RequiredBy {unit}").split()
        states = self.ssh(f"systemctl is-enabled {' '.join(wanting)} 2>/dev/null; true").split() if wanting else []
        return any(state not in ("disabled", "masked") for state in states)

    def keep(self) -> None:
        """Something in its data that must outlast it."""
        for item in self.items(self.before, "storage"):
            self.ssh(f"echo kept > {item['name']}/{KEPT}")
        for item in self.items(self.before, "postgresql_database"):
            self.sql(item["name"], "drop table if exists kept; create table kept as select 42 as x")

    def forget(self) -> None:
        for item in self.items(self.before, "storage"):
            self.ssh(f"rm {item['name']}/{KEPT}")
        for item in self.items(self.before, "postgresql_database"):
            self.sql(item["name"], "drop table kept")

    def data(self) -> None:
        for item in self.items(self.before, "storage"):
            assert self.ssh(f"cat {item['name']}/{KEPT}").strip() == "kept", item["name"]
        for item in self.items(self.before, "postgresql_database"):
            assert self.sql(item["name"], "select x from kept") == "42", item["name"]

    def traces(self) -> dict[str, t.Any]:
        program = Path(__file__).with_name("traces.py").read_text()
        return t.cast("dict[str, t.Any]", json.loads(self.ssh("python3 -", stdin=program)))

    def differences(self, generation: dict[str, t.Any]) -> list[str]:
        """What the host has more than before the role came, apart from what stays on purpose, which the generation names."""
        after = self.traces()
        found = []
        removed = set(self.clean["packages"]) - set(after["packages"])  # a package took its place (native.replaces)
        for what in ("units", "enabled", "sockets", "rules", "podman", "logins", "processes", "links", "mounts"):
            found += [f"{what}: new: {entry}" for entry in after[what] if entry not in self.clean[what]]
            found += [
                f"{what}: gone: {entry}"
                for entry in self.clean[what]
                if entry not in after[what] and not any(name in entry for name in removed)
            ]
        kept_by_others = ("enabled: new: hearth-settle.service enabled",)
        found = [entry for entry in found if entry not in kept_by_others and not PODMAN.fullmatch(entry)]
        kept = json.loads(self.ssh("cat /var/lib/hearth/originals/index.json 2>/dev/null || echo {}"))
        items = generation["manifest"]["items"]
        data = [item["name"] for item in items if item["kind"] == "storage"]
        data += [item["name"] for item in items if item["kind"] == "file" and item.get("create_only")]
        data += [path for item in items if item["kind"] == "initialize" for path in item.get("makes", ())]
        # What is below a mount point is the owner's, such as finished downloads; the directory stays while it has some.
        mounts = [item["name"] for item in items if item["kind"] == "directory" and item.get("create_only")]
        data += (
            self.ssh(f"find {' '.join(mounts)} -maxdepth 0 -not -empty 2>/dev/null || true").split() if mounts else []
        )
        made = set(json.loads(self.ssh("cat /var/lib/hearth/originals/directories.json 2>/dev/null || echo []")))
        made |= {item["name"] for item in items if item["kind"] == "directory"}
        old, new = self.clean["files"], after["files"]
        for path in sorted({*old, *new}):
            name = path.removeprefix("= ")
            # Packages stay with what they have, also where Hearth had something else at its place meanwhile.
            was, now = old.get(path), new.get(path)
            of_package = name != path and None in (was, now) and not (now is None and not removed)
            of_package = of_package or (now is None and f"= {path}" in new)  # a maintainer script wrote it anew
            # Packages make directories in their scripts, too, and change those of others (ssl-cert).
            is_directory = (now or was or "").startswith("d")
            of_package = of_package or (is_directory and name not in made)
            given_back = now is not None and now.endswith(kept.get(name, {}).get("content", "-"))
            if was == now or of_package or given_back or STAYS.fullmatch(name):
                continue
            if any(name == entry or name.startswith(f"{entry}/") or entry.startswith(f"{name}/") for entry in data):
                continue
            found.append(f"files: {path}: {old.get(path)} became {new.get(path)}")
        return found
