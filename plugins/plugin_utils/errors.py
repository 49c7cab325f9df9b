# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Errors of a composition: all of them at once, each with host, service, key, file and line."""

from __future__ import annotations

import difflib
import typing as t
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong. ``path`` is a key path such as ``route.access``; ``line`` counts from 1.

    ``others`` are further hosts that it concerns: two hosts with one route are a problem of both.
    """

    host: str = ""
    service: str = ""
    path: str = ""
    message: str = ""
    file: str = ""
    line: int = 0
    remedy: str = ""
    others: tuple[str, ...] = ()

    def concerns(self, hosts: t.Container[str]) -> bool:
        """Whether it is a problem of one of these hosts, or of no particular host."""
        return not self.host or self.host in hosts or any(host in hosts for host in self.others)

    def to_dict(self) -> dict[str, t.Any]:
        return asdict(self) | {"others": list(self.others)}

    def __str__(self) -> str:
        where = " ".join(
            part for part in (self.host and f"host {self.host},", self.service and f"service {self.service},") if part
        ).rstrip(",")
        file = short_path(self.file)
        place = f"{file}:{self.line}" if file and self.line else file
        head = ": ".join(part for part in (where, self.path, self.message) if part)
        tail = f" ({place})" if place else ""
        return f"{head}{tail}" + (f"\n    {self.remedy}" if self.remedy else "")


@dataclass
class Report:
    """Collects problems (which stop) and warnings (which do not) of the whole fleet."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    def error(self, message: str, **where: t.Any) -> None:
        self.problems.append(Problem(message=message, **where))

    def warn(self, message: str, **where: t.Any) -> None:
        self.warnings.append(Problem(message=message, **where))

    def of(self, hosts: t.Container[str]) -> list[Problem]:
        """The problems that concern these hosts: their own, and those of no particular host."""
        return sorted({problem for problem in self.problems if problem.concerns(hosts)})

    def merge(self, other: Report) -> None:
        self.problems.extend(other.problems)
        self.warnings.extend(other.warnings)


def short_path(path: str) -> str:
    """The path as people write it: relative to the working directory when it is below it."""
    try:
        return str(Path(path).relative_to(Path.cwd())) if path.startswith("/") else path
    except (ValueError, OSError):
        return path


def listing(problems: t.Iterable[Problem]) -> str:
    """All problems as text, by host. What one line of a group's variables breaks on ten hosts is said once."""
    hosts: dict[Problem, set[str]] = {}
    for problem in problems:
        found = hosts.setdefault(replace(problem, host="", others=()), set())
        found.update([problem.host] if problem.host else [])
    groups: dict[str, list[str]] = {}
    for problem, names in sorted(hosts.items(), key=lambda entry: (sorted(entry[1]), entry[0])):
        title = f"{'hosts' if len(names) > 1 else 'host'} {', '.join(sorted(names))}" if names else "the fleet"
        groups.setdefault(title, []).append("  " + str(problem).replace("\n", "\n  "))
    return "\n".join(f"{title}:\n" + "\n".join(lines) for title, lines in groups.items())


def nearest(word: str, candidates: t.Iterable[str]) -> str:
    """`` Did you mean X?`` with the nearest candidate, or nothing."""
    found = difflib.get_close_matches(word, sorted(set(candidates)), n=1, cutoff=0.6)
    return f"did you mean {found[0]}?" if found else ""
