# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Image references and the locks of roles: what compose makes of a lock, and what people read when it is wrong."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
from ansible_collections.hearth.homelab.plugins.plugin_utils import compose, images, templates
from ansible_collections.hearth.homelab.plugins.plugin_utils.errors import listing
from ansible_collections.hearth.homelab.plugins.plugin_utils.images import InvalidReferenceError, Pin, Reference
from ansible_collections.hearth.homelab.plugins.plugin_utils.role_files import Role

from .fleets import Repository, native, repository

INDEX, AMD64, ARM64 = (f"sha256:{digit * 64}" for digit in "abc")
REFERENCE = "registry.example.com/media/app:1.2.3"
DEFAULTS = {"app_version": "1.2.3", "app_image": "registry.example.com/media/app:{{ app_version }}"}
ENTRY = {"digest": INDEX, "platforms": {"linux/amd64": AMD64, "linux/arm64": ARM64}}
LOCK = {"schema": 1, "images": {REFERENCE: ENTRY}}
CONTAINER = native(run={"container": {"image": "{{ app_image }}", "reason": "a test", "run_as": "image"}})


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    made = repository(tmp_path, groups={"servers": ["forge"]})
    made.role("app", CONTAINER, defaults=DEFAULTS)
    made.role("engine", native(tier="infrastructure", provides={"container": "podman"}))
    made.vars("group_vars/all/services.yml", {"hearth_services": {"app": {}, "engine": {}}})
    return made


def lock(repo: Repository, content: t.Any = LOCK) -> Path:
    return repo.write(f"roles/app/{images.FILE}", content)


def role(repo: Repository) -> Role:
    return Role("app", repo.path / "roles" / "app", templates.environment())


def read(repo: Repository) -> images.RoleImages:
    return images.read(role(repo), templates.environment())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ghcr.io/a/b:1", Reference("ghcr.io", "a/b", "1")),
        ("docker.io/redis:8.2", Reference("docker.io", "redis", "8.2")),
        ("192.0.2.1:5000/a/b_c.d--e:v1.0-2", Reference("192.0.2.1:5000", "a/b_c.d--e", "v1.0-2")),
        ("localhost/a:1", Reference("localhost", "a", "1")),
        (f"ghcr.io/a/b:1@{AMD64}", Reference("ghcr.io", "a/b", "1", AMD64)),
        (f"ghcr.io/a/b@{AMD64}", Reference("ghcr.io", "a/b", "", AMD64)),
    ],
)
def test_references(text: str, expected: Reference) -> None:
    assert Reference.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["redis:8", "library/redis:8", "ghcr.io/A/b:1", "ghcr.io/a/b:", "ghcr.io/a/b:-x", "ghcr.io/a:1@sha256:ab",
             "ghcr.io/a b:1", "https://ghcr.io/a:1", "ghcr.io/../a:1"],
)  # fmt: skip
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(InvalidReferenceError, match=r"REGISTRY/REPOSITORY:TAG|tag or digest"):
        Reference.parse(text)


def test_a_lock_is_written_as_it_is_read(repo: Repository) -> None:
    pins = {REFERENCE: Pin(INDEX, {"linux/arm64": ARM64, "linux/amd64": AMD64})}
    text = images.render(pins)
    lock(repo, text)
    found = read(repo)
    assert (found.pins, found.problems) == (pins, ())
    assert text.splitlines()[1:] == [
        "schema: 1", "images:", f"  {REFERENCE}:", f"    digest: {INDEX}", "    platforms:",
        f"      linux/amd64: {AMD64}", f"      linux/arm64: {ARM64}",
    ]  # fmt: skip


def test_the_declared_reference_is_that_of_the_roles_own_defaults(repo: Repository) -> None:
    found = read(repo)
    assert (found.declared, found.container, found.exists) == (REFERENCE, True, False)
    assert found.platforms == ("linux/amd64", "linux/arm64")


@pytest.mark.parametrize(
    ("contribution", "defaults", "why"),
    [
        (native(), {}, "no container"),
        (CONTAINER, {}, "depends on the inventory"),
        (CONTAINER, {"app_image": "{{ site_registry }}/app:1"}, "depends on the inventory"),
        (CONTAINER, {"app_image": "{{ app_image }}"}, "depends on the inventory"),
        (CONTAINER, {"app_image": f"ghcr.io/a/b:1@{AMD64}"}, "has a digest already"),
    ],
)
def test_roles_that_have_nothing_to_lock(
    repo: Repository, contribution: dict[str, t.Any], defaults: dict[str, t.Any], why: str
) -> None:
    repo.role("app", contribution, defaults=defaults)
    assert why in images.unlockable(read(repo))
    lock(repo)
    (problem,) = read(repo).problems
    assert why in problem.message
    assert problem.line == 2


# --- in the plan ---------------------------------------------------------------------------------------------------


def digests(repo: Repository, variables: dict[str, t.Any] | None = None) -> dict[str, str]:
    repo.vars("host_vars/forge.yml", variables or {})
    made = compose.compose(repo.source())
    assert not made.report.problems, listing(made.report.problems)
    return {name: service.digest for name, service in made.fleet.hosts["forge"].services.items()}


def test_each_host_gets_the_digest_of_its_platform(repo: Repository) -> None:
    assert digests(repo)["app"] == ""
    lock(repo)
    assert digests(repo)["app"] == AMD64
    assert digests(repo, {"hearth_platform": {"architecture": "arm64"}})["app"] == ARM64


@pytest.mark.parametrize(
    "variables",
    [
        {"app_image": "mirror.example.com/app:1.2.3"},
        {"app_version": "1.2.4"},
        {"app_image": f"{REFERENCE}@{INDEX}"},
        {"hearth_services__x": {"app": {"override": {"run": {"container": {"image": "r.example.com/x:1"}}}}}},
        {"hearth_image_overrides": {"registry.example.com": "standin.example.com/app:1"}},
        # A stand-in needs no digest of what it stands for, on a platform that the lock does not have either.
        {"hearth_image_overrides": {"registry.example.com": "s.example.com/app:1"},
         "hearth_platform": {"architecture": "arm64"}},
    ],
)  # fmt: skip
def test_an_owners_reference_never_gets_the_roles_digest(repo: Repository, variables: dict[str, t.Any]) -> None:
    lock(repo, {"schema": 1, "images": {REFERENCE: {"digest": INDEX, "platforms": {"linux/amd64": AMD64}}}})
    assert digests(repo, variables)["app"] == ""


def changed(**changes: t.Any) -> dict[str, t.Any]:
    return {"schema": 1, "images": {REFERENCE: {"digest": INDEX, "platforms": {"linux/amd64": AMD64}, **changes}}}


@pytest.mark.parametrize(
    ("content", "line", "parts"),
    [
        pytest.param(
            {"schema": 1, "images": {"registry.example.com/media/app:1.2.2": ENTRY}},
            3, ["app:1.2.2", f"the image of the role is {REFERENCE}"], id="reference of an older version",
        ),
        pytest.param(changed(platforms={"linux/arm64": ARM64}), 5,
                     ["not locked for linux/amd64", "locked: linux/arm64"], id="platform of the host is missing"),
        pytest.param(changed(digest="sha256:abc"), 4, ['"sha256:abc"', "64 hexadecimal digits"], id="digest"),
        pytest.param(changed(platforms={"linux/amd64": AMD64.upper()}), 6, ["64 hexadecimal digits"], id="upper case"),
        pytest.param(changed(platforms={}), 5, ["platforms"], id="no platform"),
        pytest.param(changed(platforms={"linux/amd46": AMD64}), 6,
                     ["unknown key", "did you mean linux/amd64"], id="misspelt platform"),
        pytest.param(changed(platfroms={}), 7, ["unknown key", "did you mean platforms"], id="unknown key"),
        pytest.param({**LOCK, "note": "mine"}, 8, ["note", "allowed: schema, images"], id="unknown key at the top"),
        pytest.param({**LOCK, "schema": 2}, 1, ["found 2", "allowed: 1"], id="a later schema"),
        pytest.param({"schema": 1, "images": {}}, 2, ["found {}"], id="empty"),
        pytest.param("", 1, ["found null"], id="no content"),
        pytest.param("schema: 1\nimages: [\n", 3, ["not valid YAML"], id="not YAML"),
        pytest.param("schema: 1\nimages:\n  a: {}\n  a: {}\n", 4, ["given twice"], id="twice"),
    ],
)  # fmt: skip
def test_a_lock_that_disagrees_is_an_error_with_file_line_and_remedy(
    repo: Repository, content: t.Any, line: int, parts: list[str]
) -> None:
    path = lock(repo, content)
    found = compose.compose(repo.source()).report.problems
    assert found
    problem = found[0]
    assert (problem.host, problem.service, problem.file, problem.line) == ("forge", "app", str(path), line)
    text = listing(found)
    for part in (*parts, "make pin ROLE=app"):
        assert part in text
