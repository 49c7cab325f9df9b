# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A host that has nothing: check mode names everything that the first run makes."""

from __future__ import annotations

import pytest

from .conftest import Exact, unknown


def test_check_mode_on_a_fresh_host_names_what_the_first_run_makes(exact: Exact) -> None:
    if exact.first is None:
        pytest.fail("the host was not fresh: run `make molecule SCENARIO=exactness`, or deselect this test")
    checked, applied = exact.first
    # Prowlarr is made by this run, so what it has cannot be known before.
    assert unknown(checked) == {"configure:sonarr/prowlarr"}
    assert applied.actions() - checked.actions() == {"create configure:sonarr/prowlarr"}
    assert checked.actions() - applied.actions() == set()
    kinds = {action["id"].partition(":")[0] for action in applied.converge()["actions"]}
    made = {item["kind"] for item in exact.manifest()["items"]}
    assert kinds == made - {"hostname", "symlink"}  # the lab's hosts have their names and Debian's links already
    exact.settled()
