# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The converged site of molecule's scenario `role`: lab-forge and lab-nas-1."""

from __future__ import annotations

import os
import typing as t
from pathlib import Path

import pytest

from ..conftest import Site


@pytest.fixture(scope="session")
def site() -> Site:
    directory = os.environ.get("HEARTH_TEST_SITE")
    if not directory:
        pytest.fail("HEARTH_TEST_SITE names no site: run these tests with `make molecule SCENARIO=role`")
    return Site(Path(directory).resolve(), "role")


@pytest.fixture
def changed(site: Site) -> t.Iterator[t.Callable[[str, dict[str, t.Any] | None], None]]:
    """Sets variables files for one test and takes them away again, converging the host back to where it was."""
    names: set[str] = set()

    def set_vars(name: str, data: dict[str, t.Any] | None) -> None:
        names.add(name)
        site.set_vars(name, data)

    yield set_vars
    for name in names:
        site.set_vars(name, None)
    if names:
        site.play(expect=None)
