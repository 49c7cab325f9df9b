# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The host of the scenario, with the pool that a person makes, converged."""

from __future__ import annotations

import pytest

from ..conftest import Site


@pytest.fixture(scope="session", autouse=True)
def converged(site: Site) -> None:
    site.ssh("lab-forge", "zpool list tank >/dev/null 2>&1 || zpool create tank /dev/disk/by-id/virtio-disk1")
    assert site.play(limit="lab-forge").converge("lab-forge")["changed"]
