# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A role works alone: applied, unchanged the second time, taken away without traces but its data, and back again.

`make molecule SCENARIO=role ROLE=miniflux` says which; `make roles` does the same with all of them (every.py).
"""

from __future__ import annotations

import os
import typing as t

import pytest

from ..conftest import Site
from .alone import FORGE, Alone


@pytest.fixture(scope="module")
def role(site: Site) -> t.Iterator[Alone]:
    role = Alone(site, os.environ.get("ROLE") or "miniflux")
    role.bare()
    role.comes()
    yield role
    site.set_vars(FORGE, None)


def test_the_second_run_changes_nothing(role: Alone) -> None:
    role.again()


def test_disabled_it_leaves_nothing_but_data(role: Alone) -> None:
    role.goes()


def test_enabled_again_it_has_its_data(role: Alone) -> None:
    role.comes_back()


def test_with_what_it_required_gone_too_the_host_is_as_before(role: Alone) -> None:
    role.no_trace()
