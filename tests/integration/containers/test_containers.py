# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Containers on real hosts, with stand-in images: fragments of the status and start pages, objects that only an API can
make, and services whose mount was away at boot. Each test leaves the hosts as it found them."""

from __future__ import annotations

import json
import typing as t

from ..conftest import Site, wait_until

FORGE = "host_vars/lab-forge/zz_test.yml"
API = "http://127.0.0.1:9696/api/v1/applications"
OBJECTS = "/var/lib/prowlarr/collection-api-v1-applications"

# A mount that fails until /run/share-is-back exists, as one of a server that does not answer.
HELPER = """#!/bin/sh
test -e /run/share-is-back || { echo "the server does not answer" >&2; exit 32; }
exec mount -t tmpfs share "$2"
"""
MOUNT = """[Mount]
What=share
Where=/srv/media
Type=hearthtest
"""


def applications(site: Site) -> dict[str, dict[str, t.Any]]:
    key = '-H "X-Api-Key: $(cat /var/lib/hearth/secrets/prowlarr/api_key)"'
    found = json.loads(site.ssh("lab-forge", f"curl -sS --fail {key} {API}"))
    return {entry["name"]: entry for entry in found}


def page(site: Site) -> dict[str, list[str]]:
    found = json.loads(site.ssh("lab-forge", "cat /var/lib/homepage/services.yaml"))
    return {group: [next(iter(entry)) for entry in entries] for part in found for group, entries in part.items()}


def active(site: Site, unit: str) -> str:
    return site.ssh("lab-forge", f"systemctl show -P ActiveState {unit}").strip()


def converged(site: Site) -> None:
    result = site.play().converge()
    assert not result["changed"], result
    assert result["exchanges"] == 1


def test_running_again_changes_nothing(site: Site) -> None:
    converged(site)


def test_every_service_is_healthy(site: Site) -> None:
    outcome = site.play(playbook="playbooks/status.yml", limit=None)
    services = [
        s for hosts in outcome.results.values() for result in hosts.values() for s in result.get("services", [])
    ]
    assert {"radarr", "prowlarr", "plex", "gatus", "homepage"} <= {service["service"] for service in services}
    assert all(service["healthy"] for service in services), services


def test_prowlarr_knows_sonarr_and_radarr_and_no_key_is_anywhere_else(site: Site) -> None:
    assert {name: entry["configContract"] for name, entry in applications(site).items()} == {
        "radarr": "RadarrSettings", "sonarr": "SonarrSettings",
    }  # fmt: skip
    for service in ("sonarr", "prowlarr"):
        key = f'"$(cat /var/lib/hearth/secrets/{service}/api_key)"'
        places = "/var/lib/hearth/generations /var/lib/hearth/blobs /var/lib/hearth/runs /etc"
        assert site.ssh("lab-forge", f"grep -rlF {key} {places}; test $? -eq 1") == ""


def test_what_differs_is_found_and_mended(site: Site) -> None:
    site.ssh("lab-forge", f"rm $(grep -l SonarrSettings {OBJECTS}/*.json)")
    site.ssh("lab-forge", f"sed -i s#http://radarr:7878#http://elsewhere# {OBJECTS}/*.json")
    wanted = {"create configure:sonarr/prowlarr", "modify configure:radarr/prowlarr"}
    assert site.play("--check").actions() == wanted
    assert site.play().actions() == wanted
    assert set(applications(site)) == {"radarr", "sonarr"}
    converged(site)


def test_an_api_that_answers_500_is_said_and_takes_nothing_back(site: Site) -> None:
    site.ssh("lab-forge", "touch /var/lib/prowlarr/fail")
    try:
        assert len(site.play("--check").converge()["unknown"]) == 2
        outcome = site.play(expect=2)
        assert "not everything was done" in outcome.message
        assert "GET /api/v1/applications: status 500" in outcome.message
        assert outcome.converge()["taken_back"] == {}
        assert [active(site, unit) for unit in ("prowlarr", "sonarr", "radarr")] == ["active"] * 3
    finally:
        site.ssh("lab-forge", "rm /var/lib/prowlarr/fail")
    site.play()
    converged(site)


def test_a_service_that_goes_takes_its_endpoint_its_entry_and_its_object_along(site: Site) -> None:
    assert "Radarr" in page(site)["Media"]
    site.set_vars(FORGE, {"hearth_services__test": {"radarr": {"enabled": False}}})
    try:
        assert "remove configure:radarr/prowlarr" in site.play().actions()
        assert set(applications(site)) == {"sonarr"}
        assert "Radarr" not in page(site)["Media"]
        places = "/etc/gatus /etc/homepage /etc/systemd/system /etc/containers/systemd"
        assert site.ssh("lab-forge", f"find {places} -name '*radarr*'") == ""
        converged(site)
    finally:
        site.set_vars(FORGE, None)
    site.play()
    assert set(applications(site)) == {"radarr", "sonarr"}
    assert "Radarr" in page(site)["Media"]


class TestMount:
    """The whole host is booted again: a mount that fails then is what systemd gives up on."""

    def test_a_mount_is_away_at_boot(self, site: Site) -> None:
        site.ssh("lab-forge", "cat > /usr/sbin/mount.hearthtest; chmod 755 /usr/sbin/mount.hearthtest", stdin=HELPER)
        site.ssh("lab-forge", "cat > /etc/systemd/system/srv-media.mount", stdin=MOUNT)
        boot = site.ssh("lab-forge", "cat /proc/sys/kernel/random/boot_id; systemctl show -P UserspaceTimestamp")
        site.ssh("lab-forge", "systemctl reboot", check=False)

        def again() -> bool:
            now = "cat /proc/sys/kernel/random/boot_id; systemctl show -P UserspaceTimestamp"
            found = site.ssh("lab-forge", now, check=False)
            return bool(found) and found != boot

        wait_until("the host is back", again, 120)
        wait_until("services without the mount run", lambda: active(site, "prowlarr") == "active", 120)
        for unit in ("sonarr", "radarr", "plex"):
            assert active(site, unit) == "inactive", unit
            assert active(site, f"{unit}-recover") == "active", unit

    def test_they_run_when_it_is_back_and_see_it(self, site: Site) -> None:
        try:
            site.ssh("lab-forge", "touch /run/share-is-back")
            for unit in ("sonarr", "radarr", "plex"):
                wait_until(f"{unit} runs", lambda unit=unit: active(site, unit) == "active", 90)
            wait_until("nobody tries any more", lambda: active(site, "sonarr-recover") == "inactive", 60)
            assert "share" in site.ssh("lab-forge", "podman exec sonarr /bin/busybox df /media")
        finally:
            units = "sonarr radarr plex"
            site.ssh(
                "lab-forge",
                f"systemctl stop {units} srv-media.mount; rm -f /etc/systemd/system/srv-media.mount "
                f"/usr/sbin/mount.hearthtest /run/share-is-back; systemctl daemon-reload; systemctl start {units}",
            )
        converged(site)
