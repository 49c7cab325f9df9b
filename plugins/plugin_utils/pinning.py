# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``make pin`` decides about one role: which text its lock gets, and what people read about it. Writes nothing."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from ansible_collections.hearth.homelab.plugins.plugin_utils import images
from ansible_collections.hearth.homelab.plugins.plugin_utils.distribution import RegistryError
from ansible_collections.hearth.homelab.plugins.plugin_utils.images import Pin, Reference, RoleImages


class Asks(t.Protocol):
    """What answers for registries (distribution.Registries)."""

    def pin(self, reference: Reference, wanted: t.Collection[str], known: Pin | None = None) -> Pin: ...


@dataclass(frozen=True)
class Outcome:
    """One role. ``stale``: the lock is not ``text`` (None: there should be none)."""

    role: str
    reference: str = ""
    stale: bool = False
    text: str | None = None
    why: str = ""
    failed: str = ""

    def lines(self, *, check: bool) -> list[str]:
        """For people; nothing for a role without an image or with a lock that is as it should be."""
        found = []
        if self.stale:
            found.append(f"{self.role}: {'stale' if check else 'written' if self.text else 'removed'}: {self.why}")
        if self.failed:
            found.append(f"{self.role}: error: {self.failed}")
        return found


def pin_role(name: str, found: RoleImages, registries: Asks) -> Outcome:
    """Asks for the role's image and compares with its lock."""
    why = images.unlockable(found)
    if why or found.declared is None:
        # Without a container there is nothing to say; an image that nobody can lock is what the plan's notices name.
        return Outcome(name, stale=found.exists, why=f"{images.FILE} is removed: {why}" if found.exists else "")
    reference = found.declared
    old = None if found.problems else found.pins.get(reference)
    left = f"; {images.FILE} stays as it is" if found.exists else "; it has no lock"
    try:
        pin = registries.pin(Reference.parse(reference), found.platforms, old)
    except images.InvalidReferenceError as error:
        return Outcome(name, reference, failed=f"{error}{left}")
    except RegistryError as error:
        words = "its registry cannot be reached" if error.unreachable else "cannot be pinned"
        return Outcome(name, reference, failed=f"{reference}: {words}: {error}{left}")
    missing = [platform for platform in found.platforms if platform not in pin.platforms]
    lacks = (
        f"{reference}: the image has no {', '.join(missing)}: take it out of the role's `platforms`" if missing else ""
    )
    if found.pins == {reference: pin} and not found.problems:
        return Outcome(name, reference, failed=lacks)
    return Outcome(name, reference, True, images.render({reference: pin}), _change(found, reference, old, pin), lacks)


def _change(found: RoleImages, reference: str, old: Pin | None, new: Pin) -> str:
    if not found.exists:
        return f"{reference} is {new.digest} for {', '.join(sorted(new.platforms))}"
    if old is None:
        reason = found.problems[0].message if found.problems else "it has other images"
        return f"{reference} is {new.digest}; before: {reason}"
    if old.digest != new.digest:
        return f"{reference} has moved: it was {old.digest}, it is {new.digest}"
    return f"{reference} is locked for {', '.join(sorted(new.platforms))}, not for {', '.join(sorted(old.platforms))}"
