# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host in a temporary directory, for crash states: what a kill -9 leaves at any instant of a run.

Files are real ones below a root; what programs keep elsewhere (running units, dpkg's database, the live firewall,
images, databases) is plain data, changed by small models of these programs. A program with several effects has them
one by one. Before every effect, be it of a program or of the engine's own file operations, ``moment`` may take a
snapshot: that is exactly what a kill at this instant leaves. A program that is not modelled is an error, so that no
new command of the engine goes untested.

A running unit has *loaded* the files that it reads, as they were when it was started or reloaded: whether a restart
was forgotten is seen in what it has loaded.
"""

from __future__ import annotations

import copy
import errno
import fnmatch
import json
import os
import re
import shlex
import shutil
import stat
import sys
import threading
import typing as t
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible_collections.hearth.homelab.plugins.module_utils import (
    agent,
    apply,
    configure,
    generations,
    health,
    journal,
    scram,
    settle,
    undo,
    validate,
)
from ansible_collections.hearth.homelab.plugins.module_utils.layout import Layout
from ansible_collections.hearth.homelab.plugins.module_utils.runner import CommandError, Completed

Tree = dict[str, tuple[t.Any, ...]]

UNIT_DIRECTORIES = ("/run/systemd/system", "/etc/systemd/system", "/usr/lib/systemd/system")
WANTS = "/etc/systemd/system/multi-user.target.wants"

#: States of a package with dpkg's flag ``reinstreq``.
WANTED_ANEW = ("half-installed", "unpacked reinstreq")

#: Packages of the simulated distribution: files (with units), whether their units are enabled by the installation,
#: and units that their maintainer scripts start.
PACKAGES: dict[str, dict[str, str]] = {
    "caddy": {
        "/usr/lib/systemd/system/caddy.service": "Reads=/etc/caddy/\nExecReload=yes\nWantedBy=multi-user.target\n",
        "/etc/caddy/Caddyfile": "# package default\n",
    },
    "postgresql": {
        "/usr/lib/systemd/system/postgresql.service": (
            "Reads=/etc/postgresql/\nNeeds=/var/lib/postgresql/17/main/PG_VERSION\nWantedBy=multi-user.target\n"
        ),
        "/usr/lib/postgresql/17/bin/psql": "",
    },
    "extra": {"/usr/lib/systemd/system/extra.service": "WantedBy=multi-user.target\n"},
}

#: Units of the distribution itself.
BASE_UNITS = {
    "ssh.service": "Reads=/etc/ssh/\nExecReload=yes\nWantedBy=multi-user.target\n",
    "nftables.service": "Reads=/etc/nftables/\nLoadsFirewall=/etc/nftables/hearth.nft\nWantedBy=multi-user.target\n",
    "atd.service": "WantedBy=multi-user.target\n",
    "cron.service": "WantedBy=multi-user.target\n",
}

_STATE: dict[str, t.Any] = {
    "boot": 1, "booted": True, "jobs": [], "clock": 1_000_000.0, "units": {}, "known": {}, "packages": {}, "firewall": {}, "images": [],
    "podman_secrets": {}, "roles": {}, "databases": {}, "objects": {}, "locales": ["C.utf8"], "timers": {}, "queued": [],
    "invocation": 0, "next_object": 0,
}  # fmt: skip


_NOBODY: dict[str, t.Any] = {"member_of": []}


def _public(role: dict[str, t.Any]) -> dict[str, t.Any]:
    return {"login": role["login"], "member_of": list(role["member_of"])}


class Full(OSError):
    """The disk is full (errno ENOSPC)."""

    def __init__(self) -> None:
        super().__init__(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Killed(BaseException):
    """The process was killed here; the host is dead to it: every further effect is refused."""


class SimulatedHost:
    """The host. Implements the engine's Runner; ``moment`` is called before every effect with its name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state: dict[str, t.Any] = copy.deepcopy(_STATE)
        self.moment: t.Callable[[str], None] | None = None
        self.full = False  # nothing can be written
        self.confirm = True  # whether the controller comes back after a guarded change
        self.started: list[str] = []  # transient units of runs, as agent.apply asked for them
        self.violations: list[str] = []
        self.layout = Layout(root)

    # -- files ----------------------------------------------------------------------------------------------------

    def at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def put(self, path: str, text: str, mode: int = 0o644) -> None:
        real = self.at(path)
        real.parent.mkdir(parents=True, exist_ok=True)
        real.write_text(text)
        real.chmod(mode)

    def text(self, path: str) -> str | None:
        try:
            return self.at(path).read_text()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def install_base(self) -> None:
        """A fresh Debian 13, as far as it concerns the engine."""
        uid, gid = os.geteuid(), os.getegid()
        self.put("/etc/passwd", f"root:x:{uid}:{gid}:root:/root:/bin/bash\nrydev:x:1500:1500:Ry:/home/rydev:/bin/sh\n")
        self.put("/etc/group", f"root:x:{gid}:\nrydev:x:1500:\nmedia:x:2000:\n")
        self.put("/etc/os-release", 'ID=debian\nVERSION_ID="13"\n')
        self.put("/etc/hostname", "debian\n")
        self.put("/proc/sys/kernel/hostname", "debian\n")
        self.put("/etc/motd", "Welcome to Debian\n")
        self.at("/etc/localtime").symlink_to("/usr/share/zoneinfo/Etc/UTC")
        for path in (
            "/usr/sbin",
            "/var/lib/dpkg/updates",
            "/var/lib/apt/lists",
            "/run/systemd/system",
            "/etc/systemd/system",
        ):
            self.at(path).mkdir(parents=True, exist_ok=True)
        self.put("/var/lib/apt/lists/debian_Packages", "")
        self.state["packages"]["dpkg"] = "installed"
        for name, text in BASE_UNITS.items():
            self.put(f"/usr/lib/systemd/system/{name}", text)
        self._reload()
        for name in ("ssh.service", "cron.service"):
            self._enable(name)
            self._start(name)

    def snapshot(self) -> tuple[Tree, dict[str, t.Any]]:
        """Everything that outlives a process that is killed now."""
        tree: Tree = {}

        def walk(directory: str, name: str) -> None:
            with os.scandir(directory) as entries:
                for entry in entries:
                    path = f"{name}/{entry.name}"
                    if entry.is_symlink():
                        tree[path] = ("l", os.readlink(entry.path))
                    elif entry.is_dir():
                        tree[path] = ("d", stat.S_IMODE(entry.stat().st_mode))
                        walk(entry.path, path)
                    else:
                        with open(entry.path, "rb") as stream:
                            tree[path] = ("f", stat.S_IMODE(entry.stat().st_mode), stream.read())

        walk(str(self.root), "")
        return tree, copy.deepcopy(self.state)

    def restore(self, snapshot: tuple[Tree, dict[str, t.Any]]) -> None:
        """Make this host what a snapshot says."""
        tree, state = snapshot
        for entry in os.scandir(self.root):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)
        for path, entry in tree.items():  # parents come before what is in them
            real = f"{self.root}{path}"
            if entry[0] == "d":
                os.mkdir(real)
                os.chmod(real, entry[1] | 0o700)
            elif entry[0] == "l":
                os.symlink(entry[1], real)
            else:
                with open(real, "wb") as stream:
                    stream.write(entry[2])
                os.chmod(real, entry[1])
        for path, entry in tree.items():
            if entry[0] == "d" and entry[1] & 0o700 != 0o700:
                os.chmod(f"{self.root}{path}", entry[1])
        self.state = copy.deepcopy(state)
        self.full = False

    # -- power ----------------------------------------------------------------------------------------------------

    def power_cut(self) -> None:
        """What is left after the power came back: nothing that ran, nothing below /run."""
        shutil.rmtree(self.at("/run"))
        self.at("/run/systemd/system").mkdir(parents=True)
        self.at("/proc/sys/kernel/hostname").write_text(self.text("/etc/hostname") or "")
        self.state.update(boot=self.state["boot"] + 1, booted=False, units={}, firewall={}, timers={}, queued=[])
        # The first that systemd does: it reads the unit files, and queues what is enabled by them as they are now.
        self._reload()
        wants, quadlets = self.at(WANTS), self.at("/etc/containers/systemd").glob("*.container")
        self.state["jobs"] = sorted(os.listdir(wants)) if wants.is_dir() else []
        self.state["jobs"] += sorted(f"{path.stem}.service" for path in quadlets)

    def boot(self) -> None:
        """Start what was queued, in the order of requirements."""
        for name in self.state["jobs"]:
            self._start(name)
        self.state.update(booted=True, jobs=[])

    # -- units ----------------------------------------------------------------------------------------------------

    def _fragment(self, name: str) -> str | None:
        for directory in UNIT_DIRECTORIES:
            path = self.at(f"{directory}/{name}")
            if path.is_symlink() and os.readlink(path) == "/dev/null":
                return "masked"
            if path.is_file():
                return f"{directory}/{name}"
        quadlet = f"/etc/containers/systemd/{name.removesuffix('.service')}.container"
        if self.at(quadlet).is_file():
            return quadlet
        return None

    def _definition(self, name: str) -> dict[str, str]:
        """A unit's settings as systemd has read them."""
        return dict(line.partition("=")[::2] for line in self.state["known"].get(name, "").splitlines() if "=" in line)

    def _on_disk(self, name: str) -> str | None:
        """A unit file with its drop-ins, as it is now."""
        fragment = self._fragment(name)
        if fragment is None or fragment == "masked":
            return fragment
        dropins = self.at(f"/etc/systemd/system/{name}.d")
        more = sorted(os.listdir(dropins)) if dropins.is_dir() else []
        return (self.text(fragment) or "") + "".join((dropins / entry).read_text() for entry in more)

    def _reload(self) -> None:
        """daemon-reload: read all unit files."""
        names: set[str] = set()
        for directory in UNIT_DIRECTORIES:
            real = self.at(directory)
            names |= {entry for entry in os.listdir(real) if entry.endswith(".service")} if real.is_dir() else set()
        quadlets = self.at("/etc/containers/systemd")
        found = [entry for entry in os.listdir(quadlets) if entry.endswith(".container")] if quadlets.is_dir() else []
        names |= {f"{entry.removesuffix('.container')}.service" for entry in found}
        known = {name: self._on_disk(name) for name in sorted(names)}
        self.state["known"] = {name: text for name, text in known.items() if text is not None}

    def _loads(self, name: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for entry in self._definition(name).get("Reads", "").split():
            real = self.at(entry)
            paths = sorted(real.rglob("*")) if entry.endswith("/") and real.is_dir() else [real]
            for path in paths:
                if path.is_file() and not path.name.endswith(".hearth-tmp"):
                    found["/" + str(path.relative_to(self.root))] = path.read_text()
        return found

    def unit(self, name: str) -> dict[str, t.Any]:
        return self.state["units"].setdefault(name, {"active": "inactive", "invocation": 0, "loaded": {}, "result": ""})

    def _required_by(self, name: str) -> list[str]:
        return [
            other
            for other in sorted(self.state["known"])
            if name in self._definition(other).get("Requires", "").split()
        ]

    def _start(self, name: str) -> bool:
        """Start a unit with what it requires; whether it runs."""
        unit = self.unit(name)
        if unit["active"] == "active":
            return True
        known = self.state["known"].get(name)
        if known is None or known == "masked":
            return False
        definition = self._definition(name)
        for other in definition.get("Requires", "").split():
            if other.startswith("hearth-gate@"):
                service = other.removeprefix("hearth-gate@").removesuffix(".service")
                if agent.gate(self.layout, service) != 0:
                    return False
            elif not self._start(other):
                return False
        loaded = self._loads(name)
        image = definition.get("Image", "")
        works = not any("crash" in text for text in loaded.values()) and (not image or image in self.state["images"])
        works = works and (not definition.get("Secret") or definition["Secret"] in self.state["podman_secrets"])
        works = works and (not definition.get("Needs") or self.at(definition["Needs"]).is_file())
        self.state["invocation"] += 1
        unit.update(invocation=self.state["invocation"], loaded=loaded, secret="", definition=known)
        if definition.get("Secret"):
            unit["secret"] = self.state["podman_secrets"].get(definition["Secret"], "")
        if not works:
            unit.update(active="failed", result="exit-code")
            return False
        unit.update(active="active", result="success")
        data = definition.get("Data", "")
        if data and self.at(data).is_dir() and not self.at(f"{data}/data").exists():
            self.put(f"{data}/data", f"precious data of {name}")
        if definition.get("LoadsFirewall"):
            self._load_rules(self.text(definition["LoadsFirewall"]) or "")
        return True

    def _stop(self, name: str) -> None:
        for other in self._required_by(name):
            if self.unit(other)["active"] == "active":
                self._stop(other)
        self.unit(name).update(active="inactive", loaded={}, result="success")

    def _restart(self, name: str) -> bool:
        before = [other for other in sorted(self.state["units"]) if self.unit(other)["active"] == "active"]
        self._stop(name)
        again = [other for other in before if other != name and self.unit(other)["active"] != "active"]
        done = self._start(name)
        return all([done, *(self._start(other) for other in again)])

    def _enable(self, name: str) -> bool:
        fragment = self._fragment(name)
        if fragment is None or fragment == "masked" or "WantedBy=" not in (self.text(fragment) or ""):
            return False
        self.at(WANTS).mkdir(parents=True, exist_ok=True)
        link = self.at(f"{WANTS}/{name}")
        link.unlink(missing_ok=True)
        link.symlink_to(fragment)
        return True

    def enabled(self, name: str) -> bool:
        return os.path.lexists(self.at(f"{WANTS}/{name}"))

    def _file_state(self, name: str) -> str:
        fragment = self._fragment(name)
        if fragment is None:
            return "enabled" if self.enabled(name) else ""
        if fragment == "masked":
            return "masked-runtime"
        if fragment.startswith("/etc/containers/"):
            return "generated"
        if "WantedBy=" not in (self.text(fragment) or ""):
            return "static"
        return "enabled" if self.enabled(name) else "disabled"

    def _show(self, name: str, properties: t.Sequence[str]) -> str:
        unit, known = self.unit(name), self.state["known"].get(name)
        load = "not-found" if known is None else "masked" if known == "masked" else "loaded"
        values = {
            "Id": name, "Names": name, "LoadState": load, "ActiveState": unit["active"],
            "SubState": {"active": "running", "failed": "failed"}.get(unit["active"], "dead"),
            "UnitFileState": self._file_state(name), "NRestarts": "0", "InvocationID": str(unit["invocation"]), "Job": "",
            "Result": unit["result"], "NeedDaemonReload": "no" if known is None or self._current(name) else "yes",
            "FragmentPath": self._fragment(name) or "", "CanReload": "yes" if "ExecReload" in (known or "") else "no",
            "Type": "simple",
        }  # fmt: skip
        return "\n".join(f"{key}={values[key]}" for key in properties if key in values)

    def _current(self, name: str) -> bool:
        """Whether systemd has read the unit file as it is on disk."""
        return bool(self._on_disk(name) == self.state["known"].get(name))

    def _load_rules(self, text: str) -> None:
        found = re.search(r"^table (\S+ \S+) \{$", text, re.MULTILINE)
        if found:
            self.state["firewall"][found[1]] = self._resolve(text)

    def _resolve(self, text: str) -> str:
        """A ruleset with the fragments that it includes, as `nft list` shows it."""
        lines = []
        for line in text.splitlines():
            if line.startswith("include "):
                pattern = line.split('"')[1]
                paths = sorted(self.at(os.path.dirname(pattern)).glob(os.path.basename(pattern)))
                lines += [path.read_text().strip() for path in paths]
            elif not line.startswith(("delete ", "table inet hearth {}")):
                lines.append(line)
        return "\n".join(lines) + "\n"

    def fresh(self, name: str) -> bool:
        """Whether a running unit runs with its files as they are now. nftables.service only loads; nft(8) may since."""
        unit, definition = self.unit(name), self._definition(name)
        if unit["active"] != "active" or "LoadsFirewall" in definition:
            return True
        secret = self.state["podman_secrets"].get(definition.get("Secret", ""), "")
        known = self.state["known"].get(name)
        return bool(
            unit["loaded"] == self._loads(name)
            and unit["definition"] == known
            and unit["secret"] == secret
            and self._current(name)
        )

    # -- programs -------------------------------------------------------------------------------------------------

    def effect(self, name: str) -> None:
        """A program is about to change something."""
        if self.moment:
            self.moment(name)

    def run(
        self,
        argv: t.Sequence[str],
        *,
        input: bytes | None = None,  # noqa: A002 (as in the protocol)
        timeout: float = 0.0,
        env: t.Mapping[str, str] | None = None,
        user: str | None = None,
        check: bool = True,
    ) -> Completed:
        argv = tuple(argv)
        program = "".join(part for part in os.path.basename(argv[0]) if part.isalnum())
        model = getattr(self, f"_run_{program}", None)
        assert model is not None, f"the engine runs {shlex.join(argv)}, which is not modelled"
        found = model([*argv[1:]], (input or b"").decode())
        code, out, err = (0, found, "") if isinstance(found, str) else found
        completed = Completed(argv, code, out, err)
        if check and code:
            raise CommandError(completed)
        return completed

    def _run_systemctl(self, argv: list[str], _text: str) -> t.Any:
        options = [word for word in argv if word.startswith("-") and word != "--"]
        words = [word for word in argv if not word.startswith("-")]
        if "--property" in argv:
            properties = words.pop(1).split(",")
        else:
            properties = next((o.partition("=")[2] for o in options if o.startswith("--property=")), "").split(",")
        verb, names = words[0], words[1:]
        if verb == "show":
            if names == ["*.socket"]:
                return ""
            return "\n\n".join(self._show(name, properties) for name in names) + "\n"
        if verb == "is-active":
            states = [
                "active" if name == "sysinit.target" and self.state["booted"] else self.unit(name)["active"]
                for name in names
            ]
            return 0 if "active" in states else 3, "\n".join(states) + "\n", ""
        if verb == "list-unit-files":
            wants = self.at(WANTS)
            return "".join(f"{name} enabled enabled\n" for name in sorted(os.listdir(wants) if wants.is_dir() else ()))
        if verb == "reset-failed":
            for name in [known for word in names for known in fnmatch.filter(self.state["units"], word)]:
                if self.unit(name)["active"] == "failed":
                    self.effect(f"systemctl {verb} {name}")
                    self.unit(name)["active"] = "inactive"
            return ""
        if verb == "daemon-reload":
            self.effect("systemctl daemon-reload")
            self._reload()
            return ""
        failed = []
        for name in names:
            self.effect(f"systemctl {verb} {name}")
            if verb in ("enable", "disable"):
                if verb == "enable" and not self._enable(name):
                    failed.append(name)
                elif verb == "disable":
                    self.at(f"{WANTS}/{name}").unlink(missing_ok=True)
                if "--no-reload" not in options:
                    self._reload()
            elif verb == "stop" and name in self.state["timers"]:
                del self.state["timers"][name]
            elif verb == "stop":
                if name.endswith(".timer"):
                    return 5, "", f"Unit {name} not loaded."
                if name in self.state["jobs"]:
                    self.state["jobs"].remove(name)  # a stop takes the place of a start that has not begun
                self._stop(name)
            elif verb == "start" and "--no-block" in options and not self.state["booted"]:
                self.state["jobs"].append(name)
            elif verb == "start":
                failed += [] if self._start(name) else [name]
            elif verb == "restart":
                failed += [] if self._restart(name) else [name]
            elif verb == "reload-or-restart":
                if self.unit(name)["active"] == "active" and "ExecReload" in self.state["known"].get(name, ""):
                    loaded = self._loads(name)
                    if any("crash" in text for text in loaded.values()):
                        failed.append(name)
                    else:
                        self.unit(name)["loaded"] = loaded
                else:
                    failed += [] if self._restart(name) else [name]
            elif verb == "kill":
                pass
            else:
                raise AssertionError(f"systemctl {verb} is not modelled")
        if failed and "--no-block" not in options:
            return 1, "", f"{verb} of {', '.join(failed)} failed"
        return ""

    def _run_systemdrun(self, argv: list[str], _text: str) -> t.Any:
        unit = next(word.partition("=")[2] for word in argv if word.startswith("--unit="))
        self.effect(f"systemd-run {unit.partition('-2')[0]}")
        if any(word.startswith("--on-active=") for word in argv):
            self.state["timers"][f"{unit}.timer"] = argv
        elif unit == "hearth-settle-late":
            self.state["queued"].append(unit)
        else:
            self.started.append(unit)
        return ""

    def _run_dpkgquery(self, argv: list[str], _text: str) -> t.Any:
        if "db:Status-Eflag" in argv[2]:
            return "".join(
                f"{'reinstreq' if status in WANTED_ANEW else 'ok'} {name}\n"
                for name, status in self.state["packages"].items()
            )
        lines = [
            f"{name}\t{self.state['packages'][name]}\tamd64\t1\n" for name in argv[3:] if name in self.state["packages"]
        ]
        return 0 if len(lines) == len(argv[3:]) else 1, "".join(lines), ""

    def _run_dpkg(self, argv: list[str], _text: str) -> t.Any:
        half = sorted(name for name, status in self.state["packages"].items() if status != "installed")
        if "--audit" in argv:
            return "".join(f" {name} is not configured\n" for name in half)
        assert "--configure" in argv, argv
        for name in half:
            if self.state["packages"][name] == "unpacked":
                self._configure_package(name)
        refused = [name for name in half if self.state["packages"][name] == "unpacked reinstreq"]
        return (1, "", f"{refused[0]} is in a very bad inconsistent state") if refused else ""

    def _run_aptget(self, argv: list[str], _text: str) -> t.Any:
        simulated = "-s" in argv or "--simulate" in argv
        names = []
        skip = False
        for word in argv:
            if not skip and not word.startswith("-") and word != "install":
                names.append(word)
            skip = word == "-o"
        missing = [name for name in names if self.state["packages"].get(name) != "installed"]
        unknown = [name for name in names if name not in PACKAGES]
        if unknown:
            return 100, "", f"E: Unable to locate package {unknown[0]}\n"
        if simulated:
            return "".join(f"Inst {name} (1)\nConf {name} (1)\n" for name in missing)
        if "--download-only" in argv:
            self.effect("apt-get --download-only")
            return ""
        assert "install" in argv, argv
        half = [name for name, status in self.state["packages"].items() if status == "half-installed"]
        missing = sorted({*missing, *half}) if "-f" in argv else missing
        refused = [name for name, status in self.state["packages"].items() if status == "unpacked reinstreq"]
        if refused and "--reinstall" not in argv:
            return 100, "", f"{refused[0]} is in a very bad inconsistent state"
        for name in missing:
            if self.state["packages"].get(name) != "unpacked":
                self.effect(f"apt-get unpack {name}: begin")
                self.state["packages"][name] = "half-installed"  # dpkg wants it anew when it is killed here
                self.effect(f"apt-get unpack {name}: files")
                for path, text in PACKAGES[name].items():
                    if not os.path.lexists(self.at(path)):  # --force-confold
                        self.put(path, text)
                self.state["packages"][name] = "unpacked reinstreq"  # dpkg's mark goes with a step of its own
                self.effect(f"apt-get unpack {name}: end")
                self.state["packages"][name] = "unpacked"
        for name in missing:
            self._configure_package(name)
        return ""

    def _configure_package(self, name: str) -> None:
        units = [os.path.basename(path) for path in PACKAGES[name] if path.startswith("/usr/lib/systemd/system/")]
        self.effect(f"dpkg configure {name}: enabling")
        for unit in units:
            # deb-systemd-helper makes the links itself, also of a unit that is masked at run time.
            self.at(WANTS).mkdir(parents=True, exist_ok=True)
            if not self.enabled(unit):
                self.at(f"{WANTS}/{unit}").symlink_to(f"/usr/lib/systemd/system/{unit}")
        self._reload()
        self.effect(f"dpkg configure {name}: starting")
        for unit in units:
            if "exit 101" in (self.text("/usr/sbin/policy-rc.d") or ""):
                continue
            if self._start(unit):
                self.violations.append(f"{unit} was started by its package's installation")
        self.effect(f"dpkg configure {name}: done")
        self.state["packages"][name] = "installed"

    def _run_aptcache(self, argv: list[str], _text: str) -> t.Any:
        return "".join(f"Package: {name}\nInstalled-Size: 100\n\n" for name in argv if name in PACKAGES)

    def _run_groupadd(self, argv: list[str], _text: str) -> t.Any:
        if f"\n{argv[-1]}:" in "\n" + (self.text("/etc/group") or ""):
            return 9, "", f"groupadd: group '{argv[-1]}' already exists"
        self.effect("groupadd")
        with self.at("/etc/group").open("a") as stream:
            stream.write(f"{argv[-1]}:x:{argv[argv.index('--gid') + 1]}:\n")
        return ""

    def _groups(self, name: str, add: t.Iterable[str], only: bool = False) -> None:
        lines = []
        for line in (self.text("/etc/group") or "").splitlines():
            group, password, gid, members = line.split(":")
            found = [member for member in members.split(",") if member and not (only and member == name)]
            if group in add and name not in found:
                found.append(name)
            lines.append(":".join((group, password, gid, ",".join(found))))
        self.put("/etc/group", "\n".join(lines) + "\n")

    def _run_useradd(self, argv: list[str], _text: str) -> t.Any:
        values = {key: argv[argv.index(key) + 1] for key in ("--uid", "--gid", "--home-dir", "--shell", "--comment", "--groups")
                  if key in argv}  # fmt: skip
        if f"\n{argv[-1]}:" in "\n" + (self.text("/etc/passwd") or ""):
            return 9, "", f"useradd: user '{argv[-1]}' already exists"
        gid = next(line.split(":")[2] for line in (self.text("/etc/group") or "").splitlines()
                   if line.split(":")[0] == values["--gid"])  # fmt: skip
        self.effect("useradd")
        with self.at("/etc/passwd").open("a") as stream:
            line = (argv[-1], "x", values["--uid"], gid, values["--comment"], values["--home-dir"], values["--shell"])
            stream.write(":".join(line) + "\n")
        self._groups(argv[-1], values.get("--groups", "").split(","))
        return ""

    def _run_usermod(self, argv: list[str], _text: str) -> t.Any:
        options = {"-s": "--shell", "-c": "--comment", "-G": "--groups"}
        words = [options.get(word, word) for word in argv]
        value = {
            word: words[index + 1] for index, word in enumerate(words) if word.startswith("--") and word != "--append"
        }
        lines = []
        for line in (self.text("/etc/passwd") or "").splitlines():
            fields = line.split(":")
            if fields[0] == argv[-1]:
                fields[4], fields[6] = value.get("--comment", fields[4]), value.get("--shell", fields[6])
                fields[5] = value.get("--home", fields[5])
            lines.append(":".join(fields))
        self.effect("usermod passwd")
        self.put("/etc/passwd", "\n".join(lines) + "\n")
        if "--groups" in value:
            self.effect("usermod group")
            self._groups(argv[-1], value["--groups"].split(","), "--append" not in words)
        return ""

    def _run_initdb(self, argv: list[str], _text: str) -> t.Any:
        """Makes a database cluster; refuses a directory that is not empty, as initdb(1) does."""
        directory = self.at(argv[-1])
        if directory.exists() and os.listdir(directory):
            return 1, "", f"initdb: error: directory {argv[-1]} exists but is not empty"
        for number, (name, text) in enumerate((("base", "1"), ("PG_VERSION", "17\n"), ("pg_wal", "wal"))):
            self.effect(f"initdb {number}")
            self.put(f"{argv[-1]}/{name}", text)
        self.effect("initdb end")
        return ""

    def _run_localedef(self, argv: list[str], _text: str) -> t.Any:
        self.effect("localedef")
        self.state["locales"].append(argv[-1].replace("UTF-8", "utf8"))
        return ""

    def _run_locale(self, _argv: list[str], _text: str) -> t.Any:
        return "\n".join(self.state["locales"]) + "\n"

    def _run_ss(self, _argv: list[str], _text: str) -> t.Any:
        return ""

    def _run_journalctl(self, _argv: list[str], _text: str) -> t.Any:
        return "its last words\n"

    def _run_nft(self, argv: list[str], text: str) -> t.Any:
        if "list" in argv:
            table = " ".join(argv[-2:])
            if table not in self.state["firewall"]:
                return 1, "", "Error: No such file or directory"
            return self.state["firewall"][table]
        text = text or self.text(argv[-1]) or ""
        self.effect("nft -f")
        deleted = re.findall(r"^delete table (.+)$", text, re.MULTILINE)
        for table in deleted:
            self.state["firewall"].pop(table, None)
        self._load_rules(text)  # one transaction: nft -f is atomic
        return ""

    def _run_unshare(self, argv: list[str], _text: str) -> t.Any:
        path = argv[argv.index("sh", argv.index("-c") + 2) + 1]
        text = Path(path).read_text()
        return self._resolve(text)

    def _run_podman(self, argv: list[str], text: str) -> t.Any:
        if argv[0] == "images":
            return json.dumps([{"Names": self.state["images"]}])
        if argv[:2] == ["image", "exists"]:
            return (0 if argv[2] in self.state["images"] else 1), "", ""
        if argv[0] == "pull":
            self.effect("podman pull")
            self.state["images"].append(argv[-1])
            return ""
        if argv[:2] == ["secret", "inspect"]:
            there = self.state["podman_secrets"]
            if "--format" in argv:
                return f"{there[argv[-1]]}\n" if argv[-1] in there else (125, "", f"Error: no such secret {argv[-1]}\n")
            found = [{"Spec": {"Name": name}, "SecretData": there[name]} for name in argv[3:] if name in there]
            lost = [name for name in argv[3:] if name not in there]
            return (125 if lost else 0), json.dumps(found), "".join(f"Error: no such secret {name}\n" for name in lost)
        if argv[:2] == ["secret", "create"]:
            name = argv[-2]
            # --replace removes the old one first (podman 5.4, cmd/podman/secrets/create.go): it may be lost between.
            if name in self.state["podman_secrets"]:
                self.effect("podman secret create: replacing")
                del self.state["podman_secrets"][name]
            self.effect("podman secret create")
            self.state["podman_secrets"][name] = text
            return ""
        assert argv[:2] == ["secret", "rm"], argv
        self.effect("podman secret rm")
        self.state["podman_secrets"].pop(argv[-1], None)
        return ""

    def _run_psql(self, _argv: list[str], text: str) -> t.Any:
        if self.unit("postgresql.service")["active"] != "active":
            return 2, "", "psql: error: connection to server failed"
        roles, databases = self.state["roles"], self.state["databases"]
        out = []
        database = "postgres"
        for line in text.splitlines():
            names = re.findall(r"'((?:[^']|'')*)'", line.partition(" IN (")[2])
            if "FROM pg_authid" in line:
                label = "role" if "'role'" in line else "name"
                for name in names:
                    if name in roles:
                        secret = "verifier" if label == "role" else "password"
                        out.append({label: name, secret: roles[name]["verifier"], **_public(roles[name])})
            elif "FROM pg_database" in line and "json_build_object" in line:
                out += [
                    {"database": n, "owner": databases[n]["owner"], "encoding": "UTF8"} for n in names if n in databases
                ]
            elif "FROM pg_extension" in line:
                there = databases.get(database, {}).get("extensions", [])
                out += [{"extension": name, "in": database} for name in names if name in there]
            elif line.startswith("\\connect"):
                database = line.split()[1].strip('"')
            elif match := re.match(
                r'(CREATE|ALTER) ROLE "([^"]+)" (LOGIN|NOLOGIN)(?: NO[A-Z]+)*(?: PASSWORD (?:\'([^\']*)\'|NULL))?;',
                line,
            ):
                self.effect(f"psql {match[1].lower()} role")
                if (match[2] in roles) == (match[1] == "CREATE"):
                    return 3, "", f"ERROR: role {match[2]}"
                old = roles.get(match[2], {"verifier": None, "member_of": []})
                roles[match[2]] = {**old, "login": match[3] == "LOGIN", "verifier": match[4] or old["verifier"]}
            elif match := re.match(r'GRANT "([^"]+)" TO "([^"]+)" WITH ADMIN FALSE, INHERIT TRUE, SET TRUE;', line):
                self.effect("psql grant")
                roles[match[2]]["member_of"] = sorted({*roles[match[2]]["member_of"], match[1]})
            elif match := re.match(r"SELECT format\('REVOKE .* m\.rolname = '([^']+)' .* \\gexec", line):
                for role in [role for role in roles.get(match[1], _NOBODY)["member_of"] if role not in names]:
                    self.effect("psql revoke")
                    roles[match[1]]["member_of"].remove(role)
            elif match := re.match(r'CREATE DATABASE "([^"]+)"(?: OWNER "([^"]+)")?', line):
                self.effect("psql create database")
                if match[1] in databases:
                    return 3, "", f"ERROR: database {match[1]} exists"
                databases[match[1]] = {"owner": match[2], "extensions": [], "rows": "precious rows"}
            elif match := re.match(r'ALTER DATABASE "([^"]+)" OWNER TO "([^"]+)"', line):
                self.effect("psql alter database")
                databases[match[1]]["owner"] = match[2]
            elif match := re.match(r'CREATE EXTENSION IF NOT EXISTS "([^"]+)"', line):
                self.effect("psql create extension")
                if match[1] not in databases[database]["extensions"]:
                    databases[database]["extensions"].append(match[1])
            elif match := re.match(r"SELECT '(ALTER ROLE \"([^\"]+)\" NOLOGIN)' WHERE EXISTS .* \\gexec", line):
                self.effect("psql nologin")
                if match[2] in roles:
                    roles[match[2]]["login"] = False
            elif not line.startswith(("SELECT EXISTS", "\\if", "\\endif")) and line.strip():
                raise AssertionError(f"SQL that is not modelled: {line}")
        return "".join(json.dumps(entry) + "\n" for entry in out)

    # -- applications' APIs, checks, time ---------------------------------------------------------------------------

    def request(self, method: str, url: str, _headers: t.Mapping[str, str], body: t.Any, _timeout: float) -> t.Any:
        """An application that keeps objects, as configure._request reaches it."""
        if self.unit("box.service")["active"] != "active":
            raise configure.ApiError(f"{method} {url}: connection refused")
        objects = self.state["objects"]
        if method == "GET":
            return [dict(value, id=int(key)) for key, value in objects.items()]
        self.effect(f"api {method}")
        if method == "POST":
            self.state["next_object"] += 1
            objects[str(self.state["next_object"])] = dict(body)
        elif method == "PUT":
            objects[url.rpartition("/")[2]] = {key: value for key, value in body.items() if key != "id"}
        else:
            objects.pop(url.rpartition("/")[2], None)
        return None

    def checks(self, wanted: t.Mapping[str, t.Sequence[t.Any]]) -> dict[str, list[str]]:
        """A service is well when its unit runs and has not loaded anything sick."""
        result: dict[str, list[str]] = {}
        for service, entries in wanted.items():
            unit = self.unit(f"{service}.service")
            sick = unit["active"] != "active" or any("sick" in text for text in unit["loaded"].values())
            result[service] = ["it answers nonsense"] if sick and entries else []
        return result

    def validators(self, _chosen: t.Any, staged: t.Sequence[validate.Staged], *_: t.Any) -> list[validate.Failure]:
        bad = [entry.path for entry in staged if b"nonsense" in (entry.content or b"")]
        return [validate.Failure("caddy", "caddy", ("caddy",), f"{path}: nonsense") for path in bad]

    def monotonic(self) -> float:
        self.state["clock"] += 0.01
        return float(self.state["clock"])

    def sleep(self, seconds: float) -> None:
        self.state["clock"] += seconds
        for path in self.layout.runs.iterdir() if self.confirm and self.layout.runs.is_dir() else ():
            if (path / "awaiting").exists() and not (path / "confirmed").exists():
                (path / "confirmed").touch()

    def getpwnam(self, name: str) -> t.Any:
        for line in (self.text("/etc/passwd") or "").splitlines():
            fields = line.split(":")
            if fields[0] == name:
                return SimpleNamespace(pw_name=name, pw_uid=int(fields[2]), pw_gid=int(fields[3]), pw_gecos=fields[4],
                                       pw_dir=fields[5], pw_shell=fields[6])  # fmt: skip
        raise KeyError(name)

    def getgrall(self) -> list[t.Any]:
        return [
            SimpleNamespace(gr_name=fields[0], gr_gid=int(fields[2]), gr_mem=[m for m in fields[3].split(",") if m])
            for fields in (line.split(":") for line in (self.text("/etc/group") or "").splitlines())
        ]

    def getgrnam(self, name: str) -> t.Any:
        for group in self.getgrall():
            if group.gr_name == name:
                return group
        raise KeyError(name)


# --- the engine on a simulated host -----------------------------------------------------------------------------------


@dataclass
class _Now:
    """The host that is simulated now, and whether its audit hook was installed: one process has one of each."""

    host: SimulatedHost | None = None
    hooked: bool = False


_now = _Now()
_inside = threading.local()
_CHANGES = {
    "shutil.rmtree",  # what it removes, it names relative to an open directory
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "os.symlink",
    "os.link",
    "os.chmod",
    "os.chown",
    "os.truncate",
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def _audit(event: str, arguments: tuple[t.Any, ...]) -> None:
    """Python's own audit events (PEP 578): every change of the file system, whatever function makes it."""
    host = _now.host
    if host is None or _quiet():
        return
    if event == "open":
        path, _mode, flags = arguments
        if not isinstance(flags, int) or not flags & _WRITING:
            return
        if flags & os.O_ACCMODE == os.O_RDONLY and not flags & (os.O_CREAT | os.O_TRUNC):
            return
    elif event in _CHANGES:
        path = arguments[1] if event == "os.symlink" else arguments[0]
    else:
        return
    if isinstance(path, (str, os.PathLike)) and str(path).startswith(str(host.root)):
        _happens(host, f"{event} {str(path)[len(str(host.root)) :]}", event in ("open", "os.mkdir", "os.symlink"))


def _quiet() -> bool:
    return getattr(_inside, "depth", 0) > 0


def _happens(host: SimulatedHost, what: str, writes: bool) -> None:
    with Quiet():
        if host.full and writes:
            raise Full
        if host.moment:
            host.moment(what)


class Quiet:
    """While the host itself changes things (programs), its file operations are no events of the engine."""

    def __enter__(self) -> None:
        _inside.depth = getattr(_inside, "depth", 0) + 1

    def __exit__(self, *_: object) -> None:
        _inside.depth -= 1


@pytest.fixture
def simulate(monkeypatch: pytest.MonkeyPatch) -> t.Iterator[t.Callable[[SimulatedHost], None]]:
    """Gives the engine a simulated host to work on: programs, accounts, time, checks and validators are its."""
    if not _now.hooked:
        sys.addaudithook(_audit)  # cannot be taken back: it does nothing without a host
        _now.hooked = True
    real_write, real_fsync = os.write, os.fsync

    def write(handle: int, content: bytes) -> int:
        host = _now.host
        path = os.readlink(f"/proc/self/fd/{handle}") if host is not None and not _quiet() else ""
        if host is None or not path.startswith(str(host.root)):
            return real_write(handle, content)
        name = f"write {path[len(str(host.root)) :]}"
        if host.full:
            # As much as there was room for, then nothing.
            if len(content) > 20:
                return real_write(handle, content[:20])
            raise Full
        _happens(host, name, False)
        if len(content) > 1:
            done = real_write(handle, content[: len(content) // 2])  # a kill leaves half of a line
            _happens(host, f"{name} (half)", False)
            if len(content) - done > 1:
                done += real_write(handle, content[done:-1])  # or all of it but its end
                _happens(host, f"{name} (no newline)", False)
            return done + real_write(handle, content[done:])
        return real_write(handle, content)

    def fsync(handle: int) -> None:
        host = _now.host
        if host is None:
            real_fsync(handle)
        elif not _quiet():
            _happens(host, "fsync", False)

    class Runner:
        """What SystemRunner() is on the simulated host."""

        def __new__(cls) -> t.Any:
            return _runner(_now.host)

    clock = SimpleNamespace(
        monotonic=lambda: _host().monotonic(), time=lambda: _host().monotonic(), sleep=lambda s: _quietly("sleep", s)
    )
    accounts = SimpleNamespace(
        getpwnam=lambda name: _host().getpwnam(name), getgrnam=lambda name: _host().getgrnam(name),
        getgrall=lambda: _host().getgrall(),
    )  # fmt: skip
    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(agent, "SystemRunner", Runner)
    monkeypatch.setattr(agent, "signal", SimpleNamespace(signal=lambda *_: None, SIGTERM=15))
    monkeypatch.setattr(apply, "PULLS", 1)  # one after the other, so that each run of a test is like the last
    for module in (apply, journal, generations, settle):
        monkeypatch.setattr(module, "time", clock)
    for module in (apply, health):
        monkeypatch.setattr(module, "pwd", accounts)
    monkeypatch.setattr(apply, "grp", accounts)
    monkeypatch.setattr(health, "run_checks", lambda checks: _host().checks(checks))
    monkeypatch.setattr(validate, "run", lambda *arguments: _host().validators(*arguments))
    monkeypatch.setattr(configure, "_request", lambda *arguments: _host().request(*arguments))
    monkeypatch.setattr(
        undo, "kernel_hostname", lambda _layout: (_host().text("/proc/sys/kernel/hostname") or "").strip()
    )
    monkeypatch.setattr(undo, "set_kernel_hostname", _set_hostname)
    monkeypatch.setattr(apply, "MARGIN", 0)
    monkeypatch.setattr(journal, "RESERVED", 64)
    monkeypatch.setattr(generations, "STALE", float("-inf"))  # there is no controller beside the one that the test is
    # The same verifier for the same password, quickly.
    verifier = scram.verifier
    monkeypatch.setattr(
        scram, "verifier", lambda password, salt=b"salt", iterations=1: verifier(password, salt, iterations)
    )
    for module in (journal, undo):
        monkeypatch.setattr(module, "boot_id", lambda: f"boot-{_host().state['boot']}")
    monkeypatch.setattr(os, "umask", lambda mode: mode)

    def choose(host: SimulatedHost) -> None:
        _now.host = host

    yield choose
    _now.host = None


def _host() -> SimulatedHost:
    assert _now.host is not None
    return _now.host


def _quietly(method: str, *arguments: t.Any) -> t.Any:
    with Quiet():
        return getattr(_host(), method)(*arguments)


def _set_hostname(_layout: Layout, name: str) -> None:
    host = _host()
    host.effect("sethostname")
    with Quiet():
        host.put("/proc/sys/kernel/hostname", f"{name}\n")


def _runner(host: SimulatedHost | None) -> t.Any:
    assert host is not None

    class Runner:
        def run(self, argv: t.Sequence[str], **options: t.Any) -> Completed:
            with Quiet():
                return host.run(argv, **options)

    return Runner()
