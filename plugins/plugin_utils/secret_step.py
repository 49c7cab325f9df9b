# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The generating step: what playbooks/secrets.yml and the lab's tool do, from the inventory to the encrypted files.

``Step`` reads the inventory once. ``questions`` says what hosts have to be asked first, ``run`` generates with their
answers. Deciding is secret_generation.py's, writing secret_files.py's.
"""

from __future__ import annotations

import os
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.hearth.homelab.plugins.plugin_utils import (
    compose,
    conflicts,
    known,
    secret_files,
    secret_generation,
    secret_values,
)
from ansible_collections.hearth.homelab.plugins.plugin_utils.errors import listing, short_path
from ansible_collections.hearth.homelab.plugins.plugin_utils.layers import Source
from ansible_collections.hearth.homelab.plugins.plugin_utils.secret_files import FileError, Sops
from ansible_collections.hearth.homelab.plugins.plugin_utils.secret_generation import (
    Answer,
    GenerationError,
    GenerationPlan,
    Make,
    Need,
)
from ansible_collections.hearth.homelab.plugins.plugin_utils.sops_keys import PEOPLE

#: community.sops' options, as variables of the inventory.
SOPS_VARIABLES = (
    "sops_binary",
    "sops_age_key",
    "sops_age_keyfile",
    "sops_age_ssh_private_keyfile",
    "sops_config_path",
)

#: Variables that AWX (and Tower before it) give to every job: what such a job writes is gone with it.
_AWX = ("awx_job_id", "tower_job_id")


@dataclass
class Outcome:
    """What was (or in check mode would be) done. Names, never values."""

    check: bool
    plan: GenerationPlan
    made: list[Make] = field(default_factory=list)
    public: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)  # new in known.yml
    files: list[str] = field(default_factory=list)  # written, or to be written
    problems: list[str] = field(default_factory=list)
    people: list[str] = field(default_factory=list)  # HOST: PERSON without a password hash
    unwritable: str = ""  # why nothing can be written here

    @property
    def changed(self) -> bool:
        return bool(self.files)

    def lines(self) -> list[str]:
        """What people read, one thing per line."""
        verb = "would make" if self.check else "made"
        again = "would make anew" if self.check else "made anew"
        said = [
            f"{again if make.rotate else verb} {make.describe()} for {', '.join(make.hosts)} in {short_path(make.file)}"
            for make in self.made
        ]
        for host, services in sorted(self.public.items()):
            names = ", ".join(f"{service}/{key}" for service, keys in sorted(services.items()) for key in sorted(keys))
            said.append(
                f"{'would write' if self.check else 'wrote'} the public half of {names} of {host} to {known.FILE}"
            )
        for need in self.plan.owner:
            said.append(
                f"host {need.host}: {need.name} is missing, and its contribution does not say how to generate it: "
                f"sops {short_path(need.file)} and set {need.key} below {need.service}"
            )
        for person in self.people:
            said.append(f"{person} has no password hash: `caddy hash-password` prints one; sops puts it into the file")
        if self.made and not self.check:
            said.append(
                f"commit {', '.join(short_path(file) for file in self.files)} now: a host that is converged uses them"
            )
            kept = sorted({make.name for make in self.made if make.spec.kind == "data"})
            if kept:
                said.append(
                    f"{', '.join(kept)}: of kind data. What such a key encrypts cannot be read without it: commit it, and "
                    "keep a copy of the age key elsewhere, before the service runs for the first time"
                )
        elif self.public and not self.check:
            said.append(f"commit {', '.join(short_path(file) for file in self.files)}")
        return said

    def failure(self) -> str:
        """What went wrong or was refused; empty when nothing did."""
        parts = []
        if self.unwritable and (self.plan.make or self.public):
            listed = "\n".join(
                f"  {make.name}: {make.describe().partition(' ')[2]}, for {', '.join(make.hosts)}"
                for make in self.plan.make
            )
            parts.append(f"nothing was written: {self.unwritable}.")
            if listed:
                parts.append(
                    f"These secrets are missing:\n{listed}\n"
                    "Make them from a checkout (make secrets) and commit the files, or give them as <service>_secrets: "
                    "{KEY: VALUE} in a credential or vault."
                )
            if self.public:
                parts.append(f"Add to {known.FILE} and commit it:\n{known.text({known.PUBLIC_KEYS: self.public})}")
        if self.plan.refused:
            parts.append("refused:\n" + "\n".join(f"  {refusal}" for refusal in self.plan.refused))
        parts += self.problems
        return "\n".join(parts)


class Step:
    """The secrets of an inventory. GenerationError when it cannot be composed or ``rotate`` names nothing."""

    def __init__(self, source: Source, hosts: t.Collection[str], rotate: t.Iterable[str] = ()) -> None:
        self.source, self.rotate = source, tuple(rotate)
        self.hosts = frozenset(hosts)
        self.composition = compose.compose(source)
        # A missing secret is what this is run for: only what cannot be composed at all stops it.
        if not self.composition.fleet.hosts:
            raise GenerationError(listing(self.composition.report.problems))
        broken = {(host, service) for host, service in self.composition.broken if host in self.hosts}
        stopping = [
            problem
            for problem in self.composition.report.problems
            if (problem.host, problem.service) in broken or (problem.host, "") in broken
        ]
        if broken:
            raise GenerationError(f"the secrets of these hosts cannot be told:\n\n{listing(sorted(stopping))}")
        self.needs = secret_generation.needs(self.composition.fleet, self.composition.secrets)
        self.chosen = secret_generation.selected(self.needs, self.hosts, self.rotate)
        self._variables: dict[str, dict[str, t.Any]] = {}

    def questions(self) -> dict[str, dict[str, t.Any]]:
        """Host -> the arguments of storage_status."""
        return secret_generation.question(
            need for need in self.chosen if need.state == "missing" and need.spec.generate is not None
        )

    def run(
        self, answers: t.Mapping[str, Answer], *, check: bool = False, start_empty: t.Collection[str] = ()
    ) -> Outcome:
        """Generates what may be generated, one file after the other; what cannot be written is said, the rest stands."""
        broken = {
            host: f"{short_path(file)} {message}"
            for host, names in self.composition.secrets.items()
            for file, _line, message in names.unreadable
        }
        plan = secret_generation.plan(self.chosen, answers, rotate=self.rotate, start_empty=start_empty, broken=broken)
        outcome = Outcome(check, plan, people=self._people(), unwritable=self._unwritable())
        made: dict[tuple[str, str], str] = {}  # (file, name) -> value, of key pairs
        if not outcome.unwritable:
            self._make(plan, outcome, made, check=check)
        self._publish(outcome, made, check=check)
        return outcome

    def _make(self, plan: GenerationPlan, outcome: Outcome, made: dict[tuple[str, str], str], *, check: bool) -> None:
        files: dict[str, list[Make]] = {}
        for make in plan.make:
            files.setdefault(make.file, []).append(make)
        for file, makes in files.items():
            if check:
                outcome.made += makes
                outcome.files.append(file)
                continue
            values = {(make.service, make.key): _generator(make) for make in makes}
            replace = {(make.service, make.key) for make in makes if make.rotate}
            try:
                added = secret_files.add(Path(file), values, self.sops(makes[0].hosts[0]), replace)
            except (FileError, OSError) as error:
                outcome.problems.append(str(error))
                continue
            outcome.made += [make for make in makes if (make.service, make.key) in added]
            if added:
                outcome.files.append(file)
            made.update({(file, f"{service}/{key}"): value for (service, key), value in added.items()})

    def _publish(self, outcome: Outcome, made: t.Mapping[tuple[str, str], str], *, check: bool) -> None:
        """The public halves of key pairs, where known.yml does not have them (or has others)."""
        pairs = [need for need in self.needs if need.host in self.hosts and need.keypair]
        texts: dict[str, secret_files.Values] = {}
        planned = {(make.file, make.name) for make in outcome.made} if check else set()
        for need in pairs:
            if (need.file, need.name) in planned:
                outcome.public.setdefault(need.host, {}).setdefault(need.service, {})[need.key] = "(not generated yet)"
                continue
            value = made.get((need.file, need.name))
            try:
                if value is None and need.state == "present":
                    if need.file not in texts:
                        texts[need.file] = self.sops(need.host).decrypt(Path(need.file))
                    value = (texts[need.file].get(need.service) or {}).get(need.key)
                elif value is None and need.state == "variable":
                    value = self._variable(need)
                if not value:
                    continue
                public = secret_generation.public_half(need.keypair, str(value))
            except FileError as error:
                outcome.problems.append(str(error))
                continue
            except ValueError as error:
                outcome.problems.append(f"host {need.host}, service {need.service}: the secret {need.key} {error}")
                continue
            if self.composition.fleet.hosts[need.host].public_keys.get(need.name) != public:
                outcome.public.setdefault(need.host, {}).setdefault(need.service, {})[need.key] = public
        if outcome.unwritable:
            return
        places: dict[str, secret_files.Values] = {}
        for host, found in outcome.public.items():
            places.setdefault(self.composition.secrets[host].known, {})[host] = found
        for path, hosts in sorted(places.items()):
            try:
                if not check:
                    known.write(Path(path).parent, hosts)
            except (FileError, OSError) as error:
                outcome.problems.append(str(error))
                continue
            outcome.files.append(path)

    # --- what it reads --------------------------------------------------------------------------------------------------

    def sops(self, host: str) -> Sops:
        """sops as the variables of a host have it."""
        if host not in self._variables:
            raw = self.source.variables(host)
            self._variables[host] = self.source.resolve(raw, SOPS_VARIABLES, secrets=True)[0]
        return Sops(secret_values.sops_option(self._variables[host]))

    def _variable(self, need: Need) -> str | None:
        name = f"{need.service}_secrets"
        data = self.source.resolve(self.source.variables(need.host), [name], secrets=True)[0].get(name)
        value = data.get(need.key) if isinstance(data, dict) else None
        return None if value is None else str(value)

    def _unwritable(self) -> str:
        for host in sorted(self.hosts)[:1]:  # they are extra variables: the same for all hosts
            job = next((name for name in _AWX if name in self.source.variables(host)), None)
            if job:
                return f"this is a job of AWX ({job} is set), whose files are gone with it"
        if not self.source.inventory_dirs:
            return "the inventory is no file or directory, so there is no place for secrets beside it"
        for file in {need.file for need in self.chosen} | {self.composition.secrets[host].known for host in self.hosts}:
            directory = Path(file).parent
            while not directory.exists():
                directory = directory.parent
            if not os.access(directory, os.W_OK):
                return f"{short_path(str(directory))} is not writable"
        return ""

    def _people(self) -> list[str]:
        """People whose password hash composition misses; they choose their passwords themselves."""
        missing = []
        for host, persons in sorted(conflicts.people(self.composition.fleet).items()):
            names = self.composition.secrets[host]
            for person in sorted(persons) if host in self.hosts else ():
                name = f"{PEOPLE}/{person}"
                entry = names.entries.get(name)
                if name not in names.variables and (entry is None or entry.state != "encrypted"):
                    missing.append(f"host {host}: {person}")
        return missing


def _generator(make: Make) -> t.Callable[[], str]:
    return lambda: secret_generation.generate(make.how)
