# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of one host: its manifest and the contents that the manifest names by digest."""

from __future__ import annotations

import dataclasses
import json
import typing as t
from dataclasses import dataclass, field

from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m


class DuplicateItemError(ValueError):
    """Two services declare one item; compose reports it as a conflict."""

    def __init__(self, item: str, first: str, second: str) -> None:
        super().__init__(f"{item} is declared by {first} and by {second}")
        self.item, self.first, self.second = item, first, second


@dataclass(frozen=True)
class HostPlan:
    """What one host shall be. Plain data: no secret, no time stamp; equal inputs give equal bytes."""

    manifest: m.Manifest
    contents: dict[str, str]  # digest -> text, with holes where secrets go
    notices: tuple[str, ...] = ()  # standing warnings, contracts without a provider

    def to_json(self) -> str:
        data = {"manifest": self.manifest.to_dict(), "contents": self.contents, "notices": list(self.notices)}
        return json.dumps(data, sort_keys=True, indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> HostPlan:
        data = json.loads(text)
        return cls(m.Manifest.from_dict(data["manifest"]), data["contents"], tuple(data["notices"]))


@dataclass
class PlanBuilder:
    """Collects the items of one host from the renderers."""

    host: str
    release: str
    architecture: str
    services: dict[str, m.ServiceState] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    _items: dict[str, m.Item] = field(default_factory=dict)
    _contents: dict[str, str] = field(default_factory=dict)
    _validators: dict[str, m.Validator] = field(default_factory=dict)
    _triggers: dict[str, dict[str, set[str]]] = field(default_factory=dict)
    _needs: dict[str, set[str]] = field(default_factory=dict)
    _effects: dict[str, set[str]] = field(default_factory=dict)

    def add(self, item: m.Item) -> str:
        """Adds an item and returns its id. The same item twice is one; a differing one is a DuplicateItemError."""
        known = self._items.get(item.id)
        if known is not None and known != item:
            if dataclasses.replace(known, service=item.service) != item or known.service == item.service:
                raise DuplicateItemError(item.id, known.service, item.service)
            return item.id  # a shared item (user, group, directory): its first owner keeps it
        self._items[item.id] = item
        return item.id

    def file(self, service: str, path: str, content: str, **attributes: t.Any) -> str:
        """Adds a file with its content; holes are found in the text. Returns the item's id."""
        data = content.encode()
        digest = m.digest(data)
        self._contents[digest] = content
        found = m.holes(content)
        return self.add(m.File(path, service, digest=digest, size=len(data), holes=found, **attributes))

    def validator(
        self, name: str, service: str, argv: t.Iterable[str], paths: t.Iterable[str], user: str = "root"
    ) -> None:
        self._validators[name] = m.Validator(name, service, tuple(argv), tuple(sorted(set(paths))), user)

    def trigger(self, unit: str, how: t.Literal["restart", "reload"], *items: str) -> None:
        """The unit is restarted (reloaded) when one of the items changes; an id ending in / is a prefix."""
        self._triggers.setdefault(unit, {"restart": set(), "reload": set()})[how].update(items)

    def effects(self, unit: str, entries: t.Iterable[str]) -> None:
        """What an active oneshot has made (Unit.effects), for several services together."""
        self._effects.setdefault(unit, set()).update(entries)

    def need(self, unit: str, item: str) -> None:
        """The unit cannot start without the item, whichever service has it."""
        self._needs.setdefault(unit, set()).add(item)

    def has(self, item: str) -> bool:
        return item in self._items

    def build(self) -> HostPlan:
        items = []
        for item in self._items.values():
            if isinstance(item, m.Unit) and item.name in self._triggers:
                triggers = self._triggers[item.name]
                item = dataclasses.replace(
                    item,
                    restart_on=tuple(sorted(triggers["restart"] | set(item.restart_on))),
                    reload_on=tuple(sorted(triggers["reload"] | set(item.reload_on))),
                )
            if isinstance(item, m.Unit) and item.name in self._effects:
                item = dataclasses.replace(item, effects=tuple(sorted(self._effects[item.name])))
            if isinstance(item, m.Unit) and item.name in self._needs:
                item = dataclasses.replace(item, needs=tuple(sorted(self._needs[item.name])))
            items.append(item)
        manifest = m.Manifest(
            host=self.host,
            release=self.release,
            architecture=self.architecture,
            services=self.services,
            items=m.sort_items(items),
            validators=tuple(self._validators[name] for name in sorted(self._validators)),
        )
        return HostPlan(manifest, dict(sorted(self._contents.items())), tuple(sorted(set(self.notices))))
