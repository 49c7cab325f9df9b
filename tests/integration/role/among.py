# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Roles among the others: what running programs know of a service (targets, rules, routes, objects), and that they forget it.

Asked of those that provide a contract on the host, whichever roles they are.
"""

from __future__ import annotations

import json
import re
import shlex
import typing as t

from ..conftest import Site, wait_until
from ..declared import read
from .alone import CORE, FORGE, HOST, Alone, nothing

HOLE = re.compile(r"@@hearth:([a-z0-9_]+/[A-Za-z0-9_.-]+)@@")


class Among:
    """The whole site, from which all services go that nobody needs, and come back."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.generation: dict[str, t.Any] = {}
        self.leaving: list[Alone] = []

    def everything(self) -> None:
        self.site.set_vars(FORGE, None)
        self.site.play()
        self.generation = self.site.generation()
        needed = self.needed()
        services = self.generation["manifest"]["services"]
        for name, state in sorted(services.items()):
            if state["tier"] != CORE and name not in needed:
                alone = Alone(self.site, name)
                files = [item["name"] for item in self.items("file", name)]
                alone.before = {**self.generation, "sums": alone.sums(files)}
                alone.clean = {"units": [], "enabled": [], "sockets": [], "files": {}}
                self.leaving.append(alone)
        assert self.leaving
        names = {alone.role for alone in self.leaving}
        wait_until("everything is known", lambda: self.expected(names) <= self.known(), 90)
        # Of every kind there is something to forget.
        assert {entry.split()[0] for entry in self.of(names)} == {"target", "rules", "route", "object"}

    def go(self) -> None:
        names = {alone.role for alone in self.leaving}
        for alone in self.leaving:
            alone.keep()
        stay = set(self.generation["manifest"]["services"]) - names
        assert self.leaving[0].only(stay).converge()["changed"]
        nothing([f"{alone.role}: {left}" for alone in self.leaving for left in alone.left()])
        for alone in self.leaving:
            alone.data()
        wait_until(f"nobody knows them any more: {self.of(names)}", lambda: not self.of(names), 60)

    def come_back(self) -> None:
        self.site.set_vars(FORGE, None)
        self.site.play()
        for alone in self.leaving:
            alone.data()
            alone.forget()
        names = {alone.role for alone in self.leaving}
        wait_until("everything is known again", lambda: self.expected(names) <= self.known(), 90)
        result = self.site.play().converge()
        assert not result["changed"], result["actions"]

    # -- who needs whom -----------------------------------------------------------------------------------------

    def items(self, kind: str, service: str | None = None) -> list[dict[str, t.Any]]:
        found = self.generation["manifest"]["items"]
        return [item for item in found if item["kind"] == kind and service in (None, item["service"])]

    def needed(self) -> set[str]:
        """Services that others require, ask, or leave something to read."""
        found = {
            name for state in self.generation["manifest"]["services"].values() for name in state.get("requires", ())
        }
        for item in self.generation["manifest"]["items"]:
            if item.get("provider") and item["kind"] != "storage" and item["provider"] != item["service"]:
                found.add(item["provider"])
        files = {f"file:{item['name']}": item["service"] for item in self.items("file")}
        for unit in self.items("unit"):
            for entry in (*unit.get("restart_on", ()), *unit.get("reload_on", ())):
                reads = {
                    owner
                    for id_, owner in files.items()
                    if id_ == entry or (entry[-1] == "/" and id_.startswith(entry))
                }
                if reads - {unit["service"]}:
                    found.add(unit["service"])
        return found

    # -- what is known ------------------------------------------------------------------------------------------

    def expected(self, names: set[str]) -> set[str]:
        """What must be known of services while they are there, as the host recorded it."""
        services = self.generation["manifest"]["services"]
        found = {f"route {services[name]['url']}" for name in names if services[name].get("url")}
        return found | {f"object {item['name']}" for item in self.items("configure") if item["service"] in names}

    def of(self, names: set[str]) -> set[str]:
        """What is still known of services that are gone. Other hosts may have the same ones."""
        theirs = {f"{what} {HOST}/{name}" for what in ("target", "rules") for name in names}
        return self.known() & (theirs | self.expected(names))

    def known(self) -> set[str]:
        host = read(self.site.inventory).hosts[HOST]
        found = set()
        metrics = host.provider("metrics")
        if metrics is not None:
            port = metrics.listen("http").port
            targets = self.json(f"http://127.0.0.1:{port}/api/v1/targets")["data"]["activeTargets"]
            labels = [target["labels"] for target in targets]
            found |= {f"target {label.get('host')}/{label.get('service')}" for label in labels}
            groups = self.json(f"http://127.0.0.1:{port}/api/v1/rules")["data"]["groups"]
            # HOST.SERVICE.yml
            names = [group["file"].rpartition("/")[2].split(".") for group in groups]
            found |= {f"rules {name[0]}/{name[1]}" for name in names}
        for state in self.generation["manifest"]["services"].values():
            url = state.get("url")
            if url and self.answers(url):
                found.add(f"route {url}")
        for item in self.items("configure"):
            if item["provider"] in Alone(self.site, self.leaving[0].role if self.leaving else "base").services():
                headers = " ".join(
                    shlex.quote(f"{key}: ") + self.filled(value) for key, value in item["headers"].items()
                )
                found_objects = self.json(item["url"], f"-H {headers}" if headers else "")
                key = item.get("match", "name")
                if item["desired"][key] in {entry[key] for entry in found_objects}:
                    found.add(f"object {item['name']}")
        return found

    def filled(self, value: str) -> str:
        hole = HOLE.fullmatch(value)
        return f'"$(cat /var/lib/hearth/secrets/{hole[1]})"' if hole else shlex.quote(value)

    def json(self, url: str, options: str = "") -> t.Any:
        return json.loads(self.site.ssh(HOST, f"curl -sS --fail --max-time 10 {options} {shlex.quote(url)}"))

    def answers(self, url: str) -> bool:
        """Whether the host has a site of that name: there is a certificate for it."""
        name = url.removeprefix("https://").rstrip("/")
        options = (
            f"--resolve {name}:443:127.0.0.1 --insecure --max-time 10 --output /dev/null --write-out '%{{http_code}}'"
        )
        return self.site.ssh(HOST, f"curl -sS {options} {shlex.quote(url)} 2>/dev/null || true").strip() not in (
            "",
            "000",
        )
