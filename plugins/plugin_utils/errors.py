# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Errors of a composition: all of them at once, each with host, service, key, file and line."""

from __future__ import annotations

import difflib
import typing as t
from dataclasses import dataclass, field


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong. ``path`` is a key path such as ``route.access``; ``line`` counts from 1."""

    host: str = ""
    service: str = ""
    path: str = ""
    message: str = ""
    file: str = ""
    line: int = 0
    remedy: str = ""

    def __str__(self) -> str:
        where = " ".join(
            part for part in (self.host and f"host {self.host},", self.service and f"service {self.service},") if part
        ).rstrip(",")
        place = f"{self.file}:{self.line}" if self.file and self.line else self.file
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
        return sorted({problem for problem in self.problems if not problem.host or problem.host in hosts})


def nearest(word: str, candidates: t.Iterable[str]) -> str:
    """`` Did you mean X?`` with the nearest candidate, or nothing."""
    found = difflib.get_close_matches(word, sorted(set(candidates)), n=1, cutoff=0.6)
    return f"did you mean {found[0]}?" if found else ""
