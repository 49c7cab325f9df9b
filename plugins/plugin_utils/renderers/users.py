# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Users: those that run services, with fixed ids, and the people who log in."""

from __future__ import annotations

from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.plugin_utils.model import Fleet, Host, Service
from ansible_collections.hearth.homelab.plugins.plugin_utils.plan import PlanBuilder
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import common
from ansible_collections.hearth.homelab.plugins.plugin_utils.schema import Person

#: Read by sshd (AuthorizedKeysFile), root's: a login cannot add keys to itself.
AUTHORIZED_KEYS = "/etc/ssh/authorized_keys.d"
#: sudo skips files whose names contain a dot or end in ~ (sudoers(5)).
SUDOERS = "/etc/sudoers.d/hearth-{0}"


def render(_fleet: Fleet, host: Host, plan: PlanBuilder) -> None:
    _services(host, plan)
    provider = host.provider("people")
    found = people(host)
    if provider:
        _people(host, provider, found, plan)
    elif found:
        plan.notices.append(f"people: no service of {host.name} provides it: {', '.join(sorted(found))} get no login")
    for what in host.variables.hearth_exclusive:
        plan.notices.append(f"hearth_exclusive: what is not declared is not removed yet: {what}")


def _services(host: Host, plan: PlanBuilder) -> None:
    """One user for each name: services that share it (``shared: true``) add their supplementary groups to it."""
    owners: dict[str, list[Service]] = {}
    for service in host.services.values():
        if service.contribution.user:
            owners.setdefault(service.user, []).append(service)
    ids = common.group_ids(host)
    for name, services in sorted(owners.items()):
        first = services[0]
        if first.uid is None or first.gid is None:
            raise common.fail(host, first, "user.id", f"the user {name} has no id")
        specs = [service.contribution.user for service in services]
        homes = sorted({spec.home for spec in specs if spec and spec.home})
        if len(homes) > 1:
            raise common.fail(
                host, first, "user.home", f"services that share the user {name} disagree: {', '.join(homes)}"
            )
        groups = sorted({group for spec in specs if spec for group in spec.groups} - {first.group})
        _groups(plan, first.name, {first.group: first.gid, **{group: ids[group] for group in groups if group in ids}})
        plan.add(
            m.User(
                name,
                first.name,
                uid=first.uid,
                group=first.group,
                groups=tuple(groups),
                home=homes[0] if homes else "/nonexistent",
            )
        )


def _groups(plan: PlanBuilder, service: str, groups: dict[str, int]) -> None:
    """Groups whose id is known. Others are Debian's own (video, dialout): base-passwd or udev makes them."""
    for name, gid in sorted(groups.items()):
        plan.add(m.Group(name, service, gid=gid))


def people(host: Host) -> dict[str, Person]:
    """The people with a login on this host: ``hearth_people`` and what core roles contribute; the inventory wins."""
    found: dict[str, Person] = {}
    for service in host.services.values():
        found.update(service.contribution.system.people)
    found.update(host.variables.hearth_people)
    here = {"all", host.name, *host.groups}
    return {name: person for name, person in sorted(found.items()) if here & set(person.hosts)}


def _people(host: Host, provider: Service, found: dict[str, Person], plan: PlanBuilder) -> None:
    owner = provider.name
    known = common.group_ids(host)
    if any(person.keys for person in found.values()):
        common.directory(plan, owner, AUTHORIZED_KEYS)
    for name, person in found.items():
        uid = host.variables.hearth_ids.users.get(name, person.id)
        if uid is None:
            raise common.fail(
                host,
                None,
                f"hearth_people.{name}.id",
                f"{name} has a login on this host and no id",
                "give the person an id (1000 or more) that is the same on every host, or hosts: [] for no login",
            )
        _groups(plan, owner, {name: uid, **{group: known[group] for group in person.groups if group in known}})
        plan.add(
            m.User(
                name,
                owner,
                uid=uid,
                group=name,
                groups=tuple(sorted(set(person.groups))),
                home=f"/home/{name}",
                shell=person.shell,
                comment=person.comment,
                system=False,
            )
        )
        if person.keys:
            # World-readable: sshd reads it with the user's rights (sshd_config(5), AuthorizedKeysFile).
            keys = "".join(f"{key.strip()}\n" for key in sorted(set(person.keys)))
            plan.file(owner, f"{AUTHORIZED_KEYS}/{name}", keys)
        if person.sudo == "nopasswd":
            plan.file(owner, SUDOERS.format(name), f"{name} ALL=(ALL:ALL) NOPASSWD: ALL\n", mode="0440")
    if any(person.sudo != "none" for person in found.values()):
        # Without -f it reads /etc/sudoers and all it includes, and checks their owners and modes as sudo does.
        plan.validator("visudo", owner, ("/usr/sbin/visudo", "-c"), ("/etc/sudoers", "/etc/sudoers.d/"))
