# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``make pin``: which lock a role gets, what is said, and what stays as it is."""

from __future__ import annotations

import importlib.util
import sys
import typing as t
from pathlib import Path

import pytest
from ansible_collections.hearth.homelab.plugins.plugin_utils import images, pinning, templates
from ansible_collections.hearth.homelab.plugins.plugin_utils.distribution import RegistryError
from ansible_collections.hearth.homelab.plugins.plugin_utils.images import Pin, Reference
from ansible_collections.hearth.homelab.plugins.plugin_utils.role_files import Role

from .fleets import Repository, native, repository

ROOT = Path(__file__).resolve().parents[3]
INDEX, AMD64, ARM64, MOVED = (f"sha256:{digit * 64}" for digit in "abcd")
REFERENCE = "registry.example.com/media/app:1.2.3"
FULL = Pin(INDEX, {"linux/amd64": AMD64, "linux/arm64": ARM64})
CONTAINER = native(run={"container": {"image": "{{ app_image }}", "reason": "a test", "run_as": "image"}})


class Answers:
    """A registry that answers the same always, or never."""

    def __init__(self, answer: Pin | Exception) -> None:
        self.answer = answer
        self.asked: list[tuple[Reference, Pin | None]] = []

    def pin(self, reference: Reference, wanted: t.Collection[str], known: Pin | None = None) -> Pin:
        self.asked.append((reference, known))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    made = repository(tmp_path)
    made.role("app", CONTAINER, defaults={"app_image": REFERENCE})
    return made


def outcome(repo: Repository, answer: Pin | Exception, lock: str | None = None) -> pinning.Outcome:
    if lock is not None:
        repo.write(f"roles/app/{images.FILE}", lock)
    environment = templates.environment()
    return pinning.pin_role(
        "app", images.read(Role("app", repo.path / "roles/app", environment), environment), Answers(answer)
    )


def text(pin: Pin = FULL, reference: str = REFERENCE) -> str:
    return images.render({reference: pin})


@pytest.mark.parametrize(
    ("lock", "answer", "stale", "said"),
    [
        pytest.param(None, FULL, True, f"{REFERENCE} is {INDEX} for linux/amd64, linux/arm64", id="no lock yet"),
        pytest.param(text(), FULL, False, "", id="as the registry has it"),
        pytest.param(text(), Pin(MOVED, FULL.platforms), True, f"has moved: it was {INDEX}, it is {MOVED}", id="moved"),
        pytest.param(text(reference="registry.example.com/media/app:1.2.2"), FULL, True,
                     f"the image of the role is {REFERENCE}", id="another version"),
        pytest.param("schema: 1\nimages: 7\n", FULL, True, "allowed: a mapping of references", id="malformed"),
        pytest.param(text(Pin(INDEX, {"linux/amd64": AMD64})), FULL, True,
                     "is locked for linux/amd64, linux/arm64, not for linux/amd64", id="a platform more"),
    ],
)  # fmt: skip
def test_locks(repo: Repository, lock: str | None, answer: Pin, stale: bool, said: str) -> None:
    found = outcome(repo, answer, lock)
    assert (found.stale, found.failed) == (stale, "")
    assert said in "".join(found.lines(check=True))
    if stale:
        assert found.text == text(answer)
        assert found.lines(check=True)[0].startswith("app: stale: ")
        assert found.lines(check=False)[0].startswith("app: written: ")


@pytest.mark.parametrize(("lock", "end"), [(None, "it has no lock"), (text(), "images.lock.yml stays as it is")])
@pytest.mark.parametrize(
    ("error", "words"),
    [(RegistryError("no network", unreachable=True), "its registry cannot be reached: no network"),
     (RegistryError("answers 404"), "cannot be pinned: answers 404")],
)  # fmt: skip
def test_a_registry_that_gives_nothing_leaves_the_lock(
    repo: Repository, lock: str | None, end: str, error: RegistryError, words: str
) -> None:
    found = outcome(repo, error, lock)
    assert not found.stale
    assert found.lines(check=False) == [f"app: error: {REFERENCE}: {words}; {end}"]


def test_a_platform_that_the_image_lacks_is_said_and_the_others_are_locked(repo: Repository) -> None:
    found = outcome(repo, Pin(INDEX, {"linux/amd64": AMD64}))
    assert found.text == text(Pin(INDEX, {"linux/amd64": AMD64}))
    assert "the image has no linux/arm64: take it out of the role's `platforms`" in found.failed


def test_only_the_platforms_of_the_role_are_locked(repo: Repository) -> None:
    repo.role("app", {**CONTAINER, "platforms": ["debian/arm64"]}, defaults={"app_image": REFERENCE})
    environment = templates.environment()
    found = images.read(Role("app", repo.path / "roles/app", environment), environment)
    assert found.platforms == ("linux/arm64",)


def test_a_reference_without_a_registry_is_never_guessed(repo: Repository) -> None:
    repo.role("app", CONTAINER, defaults={"app_image": "redis:8"})
    assert "'redis:8' names no registry" in outcome(repo, FULL).failed


def test_a_lock_that_can_never_be_right_is_removed(repo: Repository) -> None:
    repo.role("app", native())
    found = outcome(repo, FULL, text())
    assert (found.stale, found.text) == (True, None)
    assert "the role has no container" in found.lines(check=False)[0]


def test_a_well_formed_lock_is_what_the_registry_is_asked_with(repo: Repository) -> None:
    repo.write(f"roles/app/{images.FILE}", text())
    environment = templates.environment()
    found = images.read(Role("app", repo.path / "roles/app", environment), environment)
    answers = Answers(FULL)
    pinning.pin_role("app", found, answers)
    assert answers.asked == [(Reference.parse(REFERENCE), FULL)]


# --- the program ---------------------------------------------------------------------------------------------------


@pytest.fixture
def program(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> t.Callable[..., int]:
    spec = importlib.util.spec_from_file_location("pin_images", ROOT / "tools/pin_images.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(answer: Pin | Exception, *arguments: str) -> int:
        monkeypatch.setattr(module, "Registries", lambda plain: Answers(answer))
        monkeypatch.setattr(sys, "argv", ["pin_images.py", f"--roles={repo.path / 'roles'}", *arguments])
        return t.cast("int", module.main())

    return run


def test_the_program_writes_the_lock_and_checks_it(
    repo: Repository, program: t.Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    lock = repo.path / "roles/app" / images.FILE
    assert program(FULL, "--check") == 1
    assert not lock.exists()
    assert program(FULL) == 0
    assert lock.read_text() == text()
    assert lock.stat().st_mode & 0o777 == 0o644
    assert program(FULL, "--check", "--role=app") == 0
    before = lock.stat()
    assert program(RegistryError("no network", unreachable=True)) == 1
    assert program(FULL) == 0
    assert lock.stat().st_mtime_ns == before.st_mtime_ns
    assert program(Pin(MOVED, FULL.platforms), "--check") == 1
    assert lock.stat().st_mtime_ns == before.st_mtime_ns
    assert [path.name for path in lock.parent.iterdir() if "lock" in path.name] == [images.FILE]
    shown = capsys.readouterr().out
    assert "has moved" in shown
    assert "its registry cannot be reached: no network" in shown


def test_a_role_that_is_not_there_is_said(program: t.Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        program(FULL, "--role=ap")
    assert error.value.code == 2
    assert "there is no role ap" in capsys.readouterr().err
