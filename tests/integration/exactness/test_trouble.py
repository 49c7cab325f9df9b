# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What does not answer: an API, and a mount. Each is said clearly, everything else stands, and the run after the repair
finishes. (An API that answers 500, and mounts that are away at boot, are tests of the scenario `containers`.)"""

from __future__ import annotations

import time

from ..conftest import Site
from .conftest import FORGE, Exact, unknown

# A mount whose server takes the request and never answers.
HELPER = "#!/bin/sh\nexec sleep 3600\n"
MOUNT = "[Mount]\nWhat=share\nWhere=/srv/media\nType=hearthtest\n"


def test_an_api_that_never_answers_is_unknown_after_a_second(site: Site, exact: Exact) -> None:
    start = time.monotonic()
    exact.settled()
    usual = time.monotonic() - start
    # Stopped, not ended: the kernel takes connections for it, and nobody answers them.
    exact.sh("systemctl kill --signal=STOP prowlarr.service")
    try:
        start = time.monotonic()
        checked = site.play("--check")
        assert time.monotonic() - start < 2 * usual + 2
        assert checked.actions() == set()
        assert unknown(checked) == {"configure:sonarr/prowlarr"}
        assert "GET /api/v1/applications: no answer in 1 s" in checked.converge()["unknown"][0]["message"]
        site.set_vars(FORGE, {"drift_greeting": "hello again"})
        outcome = site.play(expect=2)
        assert "not everything was done" in outcome.message
        assert "configure:sonarr/prowlarr" in outcome.message
        assert "no answer in 1 s" in outcome.message
        assert outcome.converge()["taken_back"] == {}
        assert {"modify file:/etc/drift/drift.conf", "restart unit:drift.service"} <= outcome.actions()
    finally:
        exact.sh("systemctl kill --signal=CONT prowlarr.service")
    # Everything else was done by the run that failed. The variables stay: the next test makes other ones of them.
    exact.settled()


def test_a_mount_that_never_comes_holds_back_who_needs_it_alone(site: Site, exact: Exact) -> None:
    before = exact.sh("cat /etc/drift/drift.conf")
    try:
        exact.sh("cat > /usr/sbin/mount.hearthtest; chmod 755 /usr/sbin/mount.hearthtest", stdin=HELPER)
        exact.sh("cat > /etc/systemd/system/srv-media.mount; systemctl daemon-reload", stdin=MOUNT)
        exact.sh("systemctl stop drift.service")
        site.set_vars(FORGE, {"drift_greeting": "hello there", "miniflux_port": 18087})
        outcome = site.play(expect=2)
        assert "service drift was taken back" in outcome.message
        assert "drift.service waits for srv-media.mount, which does not come up" in outcome.message, outcome.message
        assert set(outcome.converge()["taken_back"]) == {"drift"}
        assert exact.sh("curl --fail --silent http://127.0.0.1:18087/healthcheck").strip() == "OK"
        assert exact.sh("cat /etc/drift/drift.conf") == before
    finally:
        site.set_vars(FORGE, None)
        exact.sh(
            "systemctl stop --no-block srv-media.mount drift.service; systemctl kill --signal=KILL srv-media.mount; "
            "rm -f /etc/systemd/system/srv-media.mount /usr/sbin/mount.hearthtest; systemctl daemon-reload; "
            "systemctl reset-failed"
        )
    assert "start unit:drift.service" in site.play().actions()
    exact.settled()
