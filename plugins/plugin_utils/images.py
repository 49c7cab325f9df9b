# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Container images: references, stand-ins, and the digests that a role's ``images.lock.yml`` pins them to.

A lock is written by ``make pin`` from what a registry answered, never by hand. It has the role's own reference (its
contribution resolved with its defaults alone), what the tag named (an image index or a manifest), and the manifest of
each platform::

    schema: 1
    images:
      registry.example.com/program:1.2.3:
        digest: sha256:...
        platforms: {linux/amd64: sha256:..., linux/arm64: sha256:...}

Sources: references as github.com/distribution/reference defines them; platforms as image indexes name them
(github.com/opencontainers/image-spec, image-index.md).
"""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.hearth.homelab.plugins.plugin_utils.errors import Problem, nearest
from ansible_collections.hearth.homelab.plugins.plugin_utils.explain import dotted, shown
from ansible_collections.hearth.homelab.plugins.plugin_utils.role_files import Role, RoleError, locate, read_yaml
from ansible_collections.hearth.homelab.plugins.plugin_utils.schema import CoreVariables
from ansible_collections.hearth.homelab.plugins.plugin_utils.templates import Compiled, Environment

FILE = "images.lock.yml"
SCHEMA = 1
#: Platforms that hosts may have: architecture of `hearth_platform` -> platform of an image.
PLATFORMS: dict[str, str] = {"amd64": "linux/amd64", "arm64": "linux/arm64"}

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_REGISTRY = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]+)?|\[[0-9A-Fa-f:]+\](?::[0-9]+)?")
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_HEAD = """\
# Digests that the registry gave for the image of this role. Written by `make pin`: do not edit it, run that again.
"""


class InvalidReferenceError(ValueError):
    """A reference that names no image of a registry."""


@dataclass(frozen=True)
class Reference:
    """``REGISTRY/REPOSITORY:TAG``, with or without a digest."""

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """InvalidReferenceError says what is wrong with it. The registry must be named: nothing is guessed."""
        name, at, digest = text.partition("@")
        registry, slash, path = name.partition("/")
        if not slash or not (registry == "localhost" or "." in registry or ":" in registry):
            raise InvalidReferenceError(f"{text!r} names no registry; allowed: REGISTRY/REPOSITORY:TAG")
        repository, _colon, tag = path.partition(":")
        if not _REGISTRY.fullmatch(registry) or not _REPOSITORY.fullmatch(repository):
            raise InvalidReferenceError(f"{text!r} is not the name of an image; allowed: REGISTRY/REPOSITORY:TAG")
        if (":" in path and not _TAG.fullmatch(tag)) or (at and not _DIGEST.fullmatch(digest)):
            raise InvalidReferenceError(f"{text!r} has a tag or digest that is none")
        return cls(registry, repository, tag, digest)

    @property
    def repository_name(self) -> str:
        return f"{self.registry}/{self.repository}"


@dataclass(frozen=True)
class Pin:
    """What a tag named when it was pinned: ``digest`` of the index or manifest, and each platform's manifest."""

    digest: str
    platforms: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RoleImages:
    """The lock of one role, read and compared with the role; ``problems`` have file and line and no host."""

    file: Path
    declared: str | None  # the role's own reference; None without a container, or when it depends on the inventory
    container: bool
    platforms: tuple[str, ...]  # that the role says it runs on, as images name them
    exists: bool = False
    pins: dict[str, Pin] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


def stand_in(overrides: t.Mapping[str, str], reference: str) -> str | None:
    """What ``hearth_image_overrides`` says to run instead; the longest match wins.

    A key is a full reference or a prefix of one that ends at a boundary (``ghcr.io/home-operations``).
    """
    best = ""
    for key in overrides:
        rest = reference[len(key) :]
        if reference.startswith(key) and (not rest or key.endswith("/") or rest[0] in "/:@") and len(key) > len(best):
            best = key
    return overrides[best] if best else None


def read(role: Role, environment: Environment) -> RoleImages:
    """What a role declares and what its lock says, with everything in which the two disagree."""
    file = role.path / FILE
    run = role.contribution.get("run")
    container = run.get("container") if isinstance(run, dict) else None
    image = container.get("image") if isinstance(container, dict) else None
    reference = declared(role, environment, image) if isinstance(image, str) else None
    systems = role.contribution.get("platforms") or ["debian/amd64", "debian/arm64"]
    architectures = {str(entry).partition("/")[2] for entry in systems} if isinstance(systems, list) else set()
    wanted = tuple(PLATFORMS[name] for name in PLATFORMS if name in architectures)
    made = RoleImages(file, reference, isinstance(container, dict), wanted, file.exists())
    if not made.exists:
        return made
    pins, problems = _parse(file, role.name)
    if not problems:
        problems = _disagreements(made, pins, role.name)
    return RoleImages(file, reference, made.container, wanted, True, pins, tuple(problems))


def declared(role: Role, environment: Environment, image: str) -> str | None:
    """The reference that a role means by itself: its template with its own defaults; None if it needs the inventory."""
    fixed = {**CoreVariables().model_dump(by_alias=True), "service": {"name": role.name, "role": role.name}}
    failed: list[str] = []

    def resolve(value: t.Any, above: tuple[str, ...]) -> t.Any:
        compiled = Compiled(environment, value)
        failed.extend(message for _path, message in compiled.errors)
        known = {
            name: resolve(role.defaults[name], (*above, name))
            for name in sorted(compiled.names)
            if name in role.defaults and name not in above
        }
        return compiled.resolve(environment.scope(fixed, known), lambda _path, message: failed.append(message))

    found = resolve(image, ())
    return found if isinstance(found, str) and found and not failed else None


def unlockable(images: RoleImages) -> str:
    """Why a lock of this role can never be right; empty if one can."""
    if not images.container:
        return "the role has no container"
    if images.declared is None:
        return "the reference of the role's image depends on the inventory"
    return "the role's reference has a digest already" if "@" in images.declared else ""


def remedy(role: str) -> str:
    return f"make pin ROLE={role} writes it anew from the registry"


def _parse(file: Path, role: str) -> tuple[dict[str, Pin], list[Problem]]:
    problems: list[Problem] = []

    def error(keys: t.Sequence[str | int], message: str, hint: str = "") -> None:
        line = locate(file, keys)[1].line or 1
        text = f"{hint}; {remedy(role)}" if hint else remedy(role)
        problems.append(Problem(path=dotted(keys), message=message, file=str(file), line=line, remedy=text))

    def unknown(keys: t.Sequence[str | int], found: t.Mapping[t.Any, t.Any], allowed: t.Sequence[str]) -> None:
        for key in found:
            if key not in allowed:
                error((*keys, str(key)), f"unknown key; allowed: {', '.join(allowed)}", nearest(str(key), allowed))

    try:
        data = read_yaml(file)
    except RoleError as found:
        return {}, [Problem(message=found.message, file=found.place.file, line=found.place.line, remedy=remedy(role))]
    if not isinstance(data, dict):
        error((), f"found {shown(data)}; allowed: a mapping with schema and images")
        return {}, problems
    unknown((), data, ("schema", "images"))
    if data.get("schema") != SCHEMA:
        error(("schema",), f"found {shown(data.get('schema'))}; allowed: {SCHEMA}")
    images = data.get("images")
    if not isinstance(images, dict) or not images:
        error(("images",), f"found {shown(images)}; allowed: a mapping of references")
        return {}, problems
    pins: dict[str, Pin] = {}
    for reference, entry in images.items():
        keys = ("images", str(reference))
        if not isinstance(entry, dict):
            error(keys, f"found {shown(entry)}; allowed: a mapping with digest and platforms")
            continue
        unknown(keys, entry, ("digest", "platforms"))
        platforms = entry.get("platforms")
        if not isinstance(platforms, dict) or not platforms:
            error((*keys, "platforms"), f"found {shown(platforms)}; allowed: a mapping of platforms to digests")
            platforms = {}
        unknown((*keys, "platforms"), platforms, tuple(PLATFORMS.values()))
        for path, digest in (
            ((*keys, "digest"), entry.get("digest")),
            *(((*keys, "platforms", str(name)), digest) for name, digest in platforms.items()),
        ):
            if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
                error(path, f"found {shown(digest)}; allowed: sha256: and 64 hexadecimal digits")
        pins[str(reference)] = Pin(str(entry.get("digest")), {str(key): str(value) for key, value in platforms.items()})
    return pins, problems


def _disagreements(images: RoleImages, pins: t.Mapping[str, Pin], role: str) -> list[Problem]:
    """A lock that is well formed and not this role's."""

    def problem(keys: t.Sequence[str | int], message: str, hint: str) -> Problem:
        line = locate(images.file, keys)[1].line or 1
        return Problem(path=dotted(keys), message=message, file=str(images.file), line=line, remedy=hint)

    why = unlockable(images)
    if why:
        return [problem(("images",), f"locks an image, but {why}", f"remove {FILE}; make pin ROLE={role} does it")]
    return [
        problem(
            ("images", reference),
            f"locks {reference}, but the image of the role is {images.declared}",
            remedy(role),
        )
        for reference in pins
        if reference != images.declared
    ]


def render(pins: t.Mapping[str, Pin]) -> str:
    """The text of a lock: sorted, one line for each digest, so that a change reads well in a diff."""
    lines = [_HEAD.rstrip(), f"schema: {SCHEMA}", "images:"]
    for reference, pin in sorted(pins.items()):
        key = reference if reference[0].isalnum() else f'"{reference}"'  # an IPv6 address in brackets
        lines += [f"  {key}:", f"    digest: {pin.digest}", "    platforms:"]
        lines += [f"      {name}: {digest}" for name, digest in sorted(pin.platforms.items())]
    return "\n".join(lines) + "\n"
