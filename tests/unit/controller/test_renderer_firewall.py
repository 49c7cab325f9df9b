# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The firewall: who may connect where, and that the whole of it is something that nft accepts."""

from __future__ import annotations

import os
import shutil
import subprocess
import typing as t
from pathlib import Path

import pytest
from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.plugin_utils.plan import HostPlan
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import common, firewall
from ansible_collections.hearth.homelab.tests.unit.controller import rendering as r

FORWARD = """\
# Managed by Hearth for the service sonarr. Changes made here are reported and overwritten.
ip saddr @lan_ipv4 meta l4proto tcp ct original proto-dst 9000 accept comment "stream from lan"
ip6 saddr @lan_ipv6 meta l4proto tcp ct original proto-dst 9000 accept comment "stream from lan"
ip saddr { 192.0.2.11, 203.0.113.2 } meta l4proto tcp ct original proto-dst 9000 accept comment "stream from nas-1"
ip6 saddr { 2001:db8:1::11 } meta l4proto tcp ct original proto-dst 9000 accept comment "stream from nas-1"
meta l4proto tcp ct original proto-dst 9000 drop comment "stream from nobody else"
ip saddr @lan_ipv4 meta l4proto udp ct original proto-dst 9000 accept comment "stream from lan"
ip6 saddr @lan_ipv6 meta l4proto udp ct original proto-dst 9000 accept comment "stream from lan"
ip saddr { 192.0.2.11, 203.0.113.2 } meta l4proto udp ct original proto-dst 9000 accept comment "stream from nas-1"
ip6 saddr { 2001:db8:1::11 } meta l4proto udp ct original proto-dst 9000 accept comment "stream from nas-1"
meta l4proto udp ct original proto-dst 9000 drop comment "stream from nobody else"
"""

PROMETHEUS = r.merged(r.EXPORTER, provides={"metrics": "prometheus"})


def render(core: dict[str, t.Any] | None = None, **services: dict[str, t.Any]) -> HostPlan:
    made = r.fleet(
        r.host("forge", {"nftables": r.FIREWALL, **services}, core, "servers"),
        r.host("nas-1", {"prometheus": PROMETHEUS}, core, "servers", "storage"),
        r.host("luna", {}, core, "edge"),
    )
    return r.plan_of(firewall.render, made)


def rules(entry: dict[str, t.Any], core: dict[str, t.Any] | None = None) -> list[str]:
    """The rules of one native listener."""
    plan = render(core, app=r.merged(r.EXPORTER, listen={"http": entry}))
    path = "/etc/hearth/nftables/input.d/app.nft"
    return r.text(plan, path).splitlines()[1:] if f"file:{path}" in r.ids(plan) else []


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({}, []),
        ({"from": ["wan"]}, ['tcp dport 9100 accept comment "http from wan"']),
        (
            {"from": ["lan"], "protocol": ["udp"]},
            [
                'ip saddr @lan_ipv4 udp dport 9100 accept comment "http from lan"',
                'ip6 saddr @lan_ipv6 udp dport 9100 accept comment "http from lan"',
            ],
        ),
        # interfaces and networks: both must match
        (
            {"from": ["guests"]},
            [
                'iifname { "eth1", "vlan*" } ip saddr @guests_ipv4 tcp dport 9100 accept comment "http from guests"',
            ],
        ),
        ({"from": ["mesh"]}, ['ip saddr @mesh_ipv4 tcp dport 9100 accept comment "http from mesh"']),
        ({"from": ["containers"]}, []),  # there is none
        (
            {"from": ["nas-1"]},
            [
                'ip saddr { 192.0.2.11, 203.0.113.2 } tcp dport 9100 accept comment "http from nas-1"',
                'ip6 saddr { 2001:db8:1::11 } tcp dport 9100 accept comment "http from nas-1"',
            ],
        ),
        # a group with this host in it: it needs no rule for itself
        (
            {"from": ["servers"]},
            [
                'ip saddr { 192.0.2.11, 203.0.113.2 } tcp dport 9100 accept comment "http from servers"',
                'ip6 saddr { 2001:db8:1::11 } tcp dport 9100 accept comment "http from servers"',
            ],
        ),
        (
            {"from": ["metrics"]},
            [
                'ip saddr { 192.0.2.11, 203.0.113.2 } tcp dport 9100 accept comment "http from metrics"',
                'ip6 saddr { 2001:db8:1::11 } tcp dport 9100 accept comment "http from metrics"',
            ],
        ),
        ({"from": ["notify"]}, []),  # nobody provides it
    ],
)
def test_who_may_connect(entry: dict[str, t.Any], expected: list[str]) -> None:
    assert rules({"port": 9100, "address": "any", **entry}) == expected


@pytest.mark.parametrize(
    ("entry", "core", "message", "remedy"),
    [
        ({"from": ["metrcs"]}, {}, "'metrcs' is neither a zone nor a host", "did you mean metrics?"),
        ({"from": ["lan"]}, {"hearth_zones": {}}, "the zone 'lan' has neither networks nor interfaces", "hearth_zones"),
        ({"from": ["luna"]}, {}, "'luna' has no address", "hearth_addresses"),
        ({"from": ["edge"]}, {}, "'edge' has no address", "hearth_addresses"),
        ({"from": ["lan"], "address": "loopback"}, {}, "listens on loopback only", "address: lan"),
    ],
)
def test_who_cannot_be_rendered(entry: dict[str, t.Any], core: dict[str, t.Any], message: str, remedy: str) -> None:
    with pytest.raises(common.RenderError, match=message) as error:
        rules({"port": 9100, "address": "any", **entry}, core)
    assert error.value.problem.path == "listen.http.from"
    assert remedy in error.value.problem.remedy


def test_published_ports_are_filtered_where_they_are_forwarded() -> None:
    plan = render(sonarr=r.SONARR)
    assert r.text(plan, "/etc/hearth/nftables/forward.d/sonarr.nft") == FORWARD
    assert "file:/etc/hearth/nftables/input.d/sonarr.nft" not in r.ids(plan)
    main = r.text(plan, firewall.MAIN)
    assert 'define container_bridges = { "hb-media" }\n' in main
    assert "oifname $container_bridges ct status dnat goto published\n" in main
    assert "iifname $container_bridges meta l4proto { tcp, udp } th dport 53 accept\n" in main
    assert "sonarr" not in main  # a fragment can be held back alone


def test_a_container_on_the_host_s_network_is_filtered_like_a_native_service() -> None:
    plan = render(sonarr=r.merged(r.SONARR, run__container__network="host", networks=[]))
    assert "udp dport 9000 accept" in r.text(plan, "/etc/hearth/nftables/input.d/sonarr.nft")
    assert "file:/etc/hearth/nftables/forward.d/sonarr.nft" not in r.ids(plan)
    assert "$container_bridges" not in r.text(plan, firewall.MAIN)


def test_a_published_port_without_from_is_closed_to_everybody() -> None:
    contribution = r.merged(r.SONARR, listen={"http": {"port": 8989, "address": "any"}}, networks=[])
    plan = render(sonarr=contribution)
    lines = r.text(plan, "/etc/hearth/nftables/forward.d/sonarr.nft").splitlines()[1:]
    assert lines == ['meta l4proto tcp ct original proto-dst 8989 drop comment "http from nobody else"']
    assert "th dport 53" not in r.text(plan, firewall.MAIN)  # podman's default network has no resolver


def test_only_our_table_and_never_the_ruleset() -> None:
    plan = render(sshd=r.SSHD, sonarr=r.SONARR)
    main = r.text(plan, firewall.MAIN)
    commands = [line for line in main.splitlines() if line and line[0] not in "# }"]
    assert commands == ["table inet hearth", "delete table inet hearth", "table inet hearth {"]
    assert "flush" not in main
    assert "elements = { 192.0.2.0/24 }" in main  # 192.0.2.0/25 is in it: intervals must not overlap
    found = plan.manifest.by_id()
    assert found["firewall:inet hearth"] == m.Firewall("inet hearth", "nftables", path=firewall.MAIN)
    assert r.unit(plan, "hearth-firewall.service").guarded
    assert found["file:/etc/hearth/nftables/input.d/sshd.nft"].service == "sshd"
    # The firewall's role by itself never closes the way in: it brings the fragment of a guarded unit along, no other.
    assert r.unit(plan, "hearth-firewall.service").needs == ("file:/etc/hearth/nftables/input.d/sshd.nft",)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("nft") or not shutil.which("unshare"), reason="root and nft")
def test_nft_loads_it_in_a_network_namespace_of_its_own(tmp_path: Path) -> None:
    """Loaded twice: the second time replaces the table, and another program's table stays."""
    other = r.merged(r.SONARR, listen={"http": {"port": 80, "address": "any", "from": ["guests", "containers"]}})
    plan = render(sshd=r.SSHD, sonarr=r.SONARR, exporter=r.EXPORTER, other=other)
    for item in plan.manifest.items:
        if isinstance(item, m.File) and item.name.startswith(firewall.DIRECTORY):
            path = tmp_path / item.name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(plan.contents[item.digest].replace(firewall.DIRECTORY, f"{tmp_path}{firewall.DIRECTORY}"))
    main = f"{tmp_path}{firewall.MAIN}"
    script = f"nft add table inet foreign && nft -c -f {main} && nft -f {main} && nft -f {main} && nft list ruleset"
    done = subprocess.run(["unshare", "-n", "sh", "-c", script], capture_output=True, text=True, check=False)
    if "Operation not permitted" in done.stderr:
        pytest.skip("no network namespaces here")
    assert done.returncode == 0, done.stderr
    assert "table inet foreign" in done.stdout
    assert done.stdout.count("table inet hearth") == 1
    assert 'oifname "hb-media" ct status dnat goto published' in done.stdout
