# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the plans of a run lie on the controller between compose and converge."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
import typing as t
from pathlib import Path

from ansible import constants
from ansible_collections.hearth.homelab.plugins.plugin_utils.plan import HostPlan


class Store:
    """Plans of this process, in a private directory below Ansible's own temporary one, which ends with the process.

    One composition serves all batches of a play (``serial``) and all hosts' converge tasks.
    """

    def __init__(self, root: Path, key: str) -> None:
        self.root = root
        self._directory = root / key

    @classmethod
    def of(cls, play: str, services: t.Iterable[str]) -> Store:
        """The store of a play, and of the services that are added to its hosts."""
        chosen = hashlib.sha256(json.dumps(sorted(services)).encode()).hexdigest()[:8]
        return cls(Path(constants.DEFAULT_LOCAL_TMP) / "hearth-plans", f"{play or 'no-play'}-{chosen}")

    @contextlib.contextmanager
    def locked(self) -> t.Iterator[None]:
        """Only one of the workers that need the plans at the same time composes them."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.root / "lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def index(self) -> dict[str, t.Any] | None:
        try:
            return t.cast("dict[str, t.Any]", json.loads((self._directory / "index.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def write(self, index: dict[str, t.Any], plans: t.Mapping[str, HostPlan | None]) -> None:
        """The plans first, then the index that names them; each file appears whole or not at all."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        for name, plan in plans.items():
            if plan is not None:
                self._place(f"plan-{name}.json", plan.to_json())
        self._place("index.json", json.dumps(index, sort_keys=True))

    def _place(self, name: str, text: str) -> None:
        handle, temporary = tempfile.mkstemp(dir=self._directory, prefix=".new-")
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.replace(temporary, self._directory / name)

    def plan(self, host: str) -> HostPlan:
        return HostPlan.from_json((self._directory / f"plan-{host}.json").read_text(encoding="utf-8"))

    def siblings(self) -> list[dict[str, t.Any]]:
        """The indexes of all compositions of the same play."""
        play = self._directory.name.rpartition("-")[0]
        return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.root.glob(f"{play}-*/index.json"))]
