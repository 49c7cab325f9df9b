# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Routes: which proxy serves them, who may use them, what gets past authentication."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import re
import shutil
import socket
import subprocess
import threading
import time
import typing as t
from pathlib import Path

import pytest
from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m
from ansible_collections.hearth.homelab.plugins.plugin_utils.renderers import caddy
from ansible_collections.hearth.homelab.plugins.plugin_utils.schema import Bypass, Route
from ansible_collections.hearth.homelab.tests.unit.controller import rendering as r

CADDY: dict[str, t.Any] = {
    "summary": "Reverse proxy",
    "tier": "infrastructure",
    "run": {"native": {"packages": ["caddy"], "units": [{"name": "caddy.service", "on_change": "reload"}]}},
    "provides": {"route": "caddy"},
    "user": {"name": "caddy", "id": 2001},
    "listen": {"https": {"port": 443, "address": "any", "from": ["lan"]}},
}
APP: dict[str, t.Any] = {
    "summary": "An application",
    "tier": "services",
    "run": {"native": {"packages": ["app"], "units": ["app.service"]}},
    "listen": {"http": {"port": 8080}},
    "route": {"name": "app", "to": "http", "access": "media"},
}
PEOPLE = {"hearth_access": {"admin": ["anna"], "media": ["ben", "anna"], "nobody": []}}


def site(release: str = "debian13", people: tuple[str, ...] | None = ("anna",), **route: t.Any) -> str:
    model = Route.model_validate({"name": "app", "to": "http", "access": "media", **route})
    return caddy.site(release, "app.example.com", "app", model, "127.0.0.1:8080", people)


def plan(app: dict[str, t.Any] = APP, core: dict[str, t.Any] | None = None) -> t.Any:
    host = r.host("forge", {"caddy": CADDY, "app": app}, {**PEOPLE, **(core or {})})
    return r.plan_of(caddy.render, r.fleet(host))


def test_a_route_of_a_group_asks_its_people() -> None:
    made = plan()
    text = r.text(made, "/etc/caddy/sites/app.caddy")
    assert "app.example.com {" in text
    assert "\t\t\tanna @@hearth:people/anna@@\n\t\t\tben @@hearth:people/ben@@\n" in text
    assert "reverse_proxy 127.0.0.1:8080" in text
    item = made.manifest.by_id()["file:/etc/caddy/sites/app.caddy"]
    assert isinstance(item, m.File)
    assert (item.service, item.group, item.mode) == ("app", "caddy", "0640")
    assert item.holes == ("people/anna", "people/ben")
    assert {"secret:people/anna", "secret:people/ben"} <= set(r.ids(made))


def test_the_proxy_is_reloaded_when_a_site_changes() -> None:
    made = r.host("forge", {"caddy": CADDY, "app": APP}, PEOPLE)
    builder = r.PlanBuilder("forge", made.release, made.architecture)
    caddy.render(r.fleet(made), made, builder)
    builder.add(m.Unit("caddy.service", "caddy"))
    unit = r.unit(builder.build(), "caddy.service")
    assert unit.reload_on == ("file:/etc/caddy/sites/",)
    assert unit.restart_on == ()


@pytest.mark.parametrize("access", ["nobody", "unknown"])
def test_a_group_without_people_is_closed(access: str) -> None:
    """Also for what a bypass would let through: nobody is meant to be there."""
    made = plan(r.merged(APP, route__access=access, route__bypass=[{"path": "/ping"}]))
    text = r.text(made, "/etc/caddy/sites/app.caddy")
    assert "respond 403" in text
    assert "reverse_proxy" not in text
    assert not [item for item in r.ids(made) if item.startswith("secret:")]


@pytest.mark.parametrize("access", ["application", "public"])
def test_the_proxy_does_not_ask_where_it_is_not_meant_to(access: str) -> None:
    text = r.text(plan(r.merged(APP, route__access=access)), "/etc/caddy/sites/app.caddy")
    assert "basicauth" not in text
    assert "reverse_proxy 127.0.0.1:8080\n" in text


@pytest.mark.parametrize(
    ("release", "directive"), [("debian13", "basicauth bcrypt"), ("debian14", "basic_auth bcrypt")]
)
def test_the_directive_is_that_of_the_releases_caddy(release: str, directive: str) -> None:
    assert f"\t\t{directive} " in site(release)


def test_options_of_a_route() -> None:
    text = site(max_body="10M", websocket=False, scheme="https", headers={"X-Robots-Tag": 'no"index'})
    assert "max_size 10485760" in text
    assert "respond @websocket 403" in text
    assert "reverse_proxy https://127.0.0.1:8080" in text
    assert 'X-Robots-Tag "no\\"index"' in text


def test_the_password_stays_with_the_proxy() -> None:
    text = site(bypass=[{"prefix": "/api", "auth": "application"}])
    bypassed, _handle, asked = text.rpartition("\thandle {\n")
    assert "header_up -Authorization" in asked
    assert "header_up Remote-User {http.auth.user.id}" in asked
    assert "header_up" not in bypassed  # the application's own tokens come through


@pytest.mark.parametrize(
    ("name", "access"), [("@", "example.com"), ("app", "app.example.com"), ("a.b", "a.b.example.com")]
)
def test_names_are_below_the_domain(name: str, access: str) -> None:
    assert f"\n{access} {{\n" in r.text(plan(r.merged(APP, route__name=name)), "/etc/caddy/sites/app.caddy")


# --- what gets past authentication -----------------------------------------------------------------------------------

PREFIX = [
    ("/api", True), ("/api/", True), ("/api/v3/series", True), ("/api?apikey=1", True), ("/api/v3?x=/../y", True),
    ("/api/a%20b", True), ("/api/%C3%A9", True), ("/api/v3/file.json", True), ("/api/a=b,c:d@e", True),
    ("/", False), ("/apix", False), ("/API", False), ("/api.json", False), ("/x/api", False),
    ("/api/../secret", False), ("/api/..", False), ("/api/.", False), ("/api/./x", False), ("/x/../api/v3", False),
    ("//api", False), ("/api//x", False), ("/api/..;/secret", False), ("/api/x;y", False), ("/api\\..\\x", False),
    ("/api/%2e%2e/secret", False), ("/api/%2E%2E/x", False), ("/api/..%2fsecret", False), ("/api/..%5csecret", False),
    ("/api%2fv3", False), ("/%61pi/v3", False), ("/api/%00", False), ("/api/%25%32%65", False), ("/api/%c0%ae", False),
    ("/api/%", False), ("/api/%zz", False), ("/api/.hidden", False), ("/api\n/x", False), ("/api/x\n", False),
]  # fmt: skip
PATH = [
    ("/ping", True), ("/ping?x=1", True), ("/ping/", False), ("/ping/x", False), ("/pingx", False), ("/PING", False),
    ("/x/../ping", False), ("//ping", False), ("/ping%2f", False), ("/ping;x", False), ("/ping\n", False),
]  # fmt: skip


def _go(pattern: str) -> re.Pattern[str]:
    """The pattern as Go reads it: there, `$` is the very end of the text."""
    assert pattern.endswith("$")
    return re.compile(pattern[:-1] + r"\Z")


@pytest.mark.parametrize(("uri", "passes"), PREFIX)
def test_a_prefix_ends_at_a_segment_and_is_taken_literally(uri: str, passes: bool) -> None:
    assert bool(_go(caddy.bypass(Bypass(prefix="/api"))).match(uri)) is passes


@pytest.mark.parametrize(("uri", "passes"), PATH)
def test_a_path_is_exact(uri: str, passes: bool) -> None:
    assert bool(_go(caddy.bypass(Bypass(path="/ping"))).match(uri)) is passes


def test_a_dot_in_a_bypass_is_a_dot() -> None:
    pattern = _go(caddy.bypass(Bypass(path="/.well-known/a.json")))
    assert pattern.match("/.well-known/a.json")
    assert not pattern.match("/.well-known/aXjson")
    assert not pattern.match("/Xwell-known/a.json")


# --- several hosts ---------------------------------------------------------------------------------------------------


def test_a_host_without_a_proxy_is_served_by_the_others() -> None:
    remote = r.host(
        "nas-1",
        {"app": r.merged(APP, listen__http__address="lan", listen__http={"port": 8080, "address": "lan"})},
        PEOPLE,
    )
    made = r.plan_of(caddy.render, r.fleet(r.host("forge", {"caddy": CADDY}, PEOPLE), remote))
    path = "/etc/caddy/sites/nas-1.app.caddy"
    assert "reverse_proxy 192.0.2.11:8080" in r.text(made, path)
    assert made.manifest.by_id()[f"file:{path}"].service == "caddy"


def test_a_host_with_a_proxy_serves_itself() -> None:
    fleet = r.fleet(
        r.host("forge", {"caddy": CADDY}, PEOPLE),
        r.host("nas-1", {"caddy": CADDY, "app": r.merged(APP, listen__http={"port": 8080, "address": "lan"})}, PEOPLE),
    )
    assert not [item for item in r.ids(r.plan_of(caddy.render, fleet)) if item.startswith("file:")]
    assert "file:/etc/caddy/sites/app.caddy" in r.ids(r.plan_of(caddy.render, fleet, "nas-1"))


def test_what_listens_on_another_hosts_loopback_is_said() -> None:
    fleet = r.fleet(r.host("forge", {"caddy": CADDY}, PEOPLE), r.host("nas-1", {"app": APP}, PEOPLE))
    made = r.plan_of(caddy.render, fleet)
    assert not [item for item in r.ids(made) if item.startswith("file:")]
    assert any("app.example.com" in notice and "loopback" in notice for notice in made.notices)


def test_a_listener_on_the_local_network_is_reached_there_by_its_own_host() -> None:
    made = plan(r.merged(APP, listen__http={"port": 8080, "address": "lan"}))
    assert "reverse_proxy 192.0.2.10:8080" in r.text(made, "/etc/caddy/sites/app.caddy")


# --- the real program ------------------------------------------------------------------------------------------------


class _Echo(http.server.BaseHTTPRequestHandler):
    """Answers with what reached it."""

    def do_GET(self) -> None:
        body = json.dumps({"path": self.path, "headers": {k.lower(): v for k, v in self.headers.items()}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: t.Any) -> None:
        pass


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[t.Callable[..., tuple[int, dict[str, t.Any]]]]:
    """A running Caddy with three sites, and a function that sends it a request line as it is."""
    program = shutil.which("caddy")
    if program is None:
        pytest.skip("caddy is not installed here; the lab's hosts run the same sites in the integration tests")
    directory = tmp_path_factory.mktemp("caddy")
    hashed = subprocess.run(
        [program, "hash-password", "--plaintext", "secret"], capture_output=True, text=True, check=True
    ).stdout.strip()
    backend = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
    threading.Thread(target=backend.serve_forever, daemon=True).start()
    port = _free_port()
    bypass = [Bypass(path="/ping"), Bypass(prefix="/api", auth="application")]
    sites = [
        caddy.site(
            "debian13",
            f"http://{name}.localhost:{port}",
            name,
            Route(name=name, to="http", access=name, bypass=bypass, websocket=False),
            f"127.0.0.1:{backend.server_port}",
            people,
        )
        for name, people in (("media", ("anna",)), ("nobody", ()), ("public", None))
    ]
    text = "".join(sites).replace(m.HOLE.format("people/anna"), hashed)
    role = Path(__file__).resolve().parents[3] / "roles" / "caddy" / "templates" / "Caddyfile.j2"
    snippet = re.search(r"^\(hearth\) \{\n(?:.*\n)*?\}\n", role.read_text(), re.MULTILINE)
    assert snippet
    hearth = re.sub(r"\{%.*?%\}\n|\{\{.*?\}\}", "", snippet[0])
    socket_path = directory / "admin.sock"
    (directory / "Caddyfile").write_text(f"{{\n\tadmin unix/{socket_path}\n\tauto_https off\n}}\n{hearth}{text}")
    arguments = ["--config", str(directory / "Caddyfile"), "--adapter", "caddyfile"]
    environment = {"HOME": str(directory), "PATH": "/usr/bin:/bin"}
    valid = subprocess.run([program, "validate", *arguments], env=environment, capture_output=True, check=False)
    assert valid.returncode == 0, valid.stderr
    with (directory / "log").open("w") as log:
        running = subprocess.Popen([program, "run", *arguments], env=environment, stdout=log, stderr=log)

    def request(site: str, path: str, user: str = "", *headers: str) -> tuple[int, dict[str, t.Any]]:
        lines = [f"GET {path} HTTP/1.1", f"Host: {site}.localhost:{port}", "Connection: close", *headers]
        if user:
            lines.append("Authorization: Basic " + base64.b64encode(user.encode()).decode())
        with socket.create_connection(("127.0.0.1", port), 60) as connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode())
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        head, _blank, body = answer.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        return status, json.loads(body) if status == 200 and body.startswith(b"{") else {}

    try:
        for _attempt in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        else:
            raise AssertionError((directory / "log").read_text())
        yield request
    finally:
        running.terminate()
        running.wait(10)
        backend.shutdown()


@pytest.mark.parametrize(
    ("site", "path", "user", "status"),
    [
        ("media", "/", "", 401),
        ("media", "/", "anna:secret", 200),
        ("media", "/", "anna:wrong", 401),
        ("media", "/", "ben:secret", 401),
        ("media", "/ping", "", 200),
        ("media", "/ping/", "", 401),
        ("media", "/api/v3/series", "", 200),
        ("media", "/apix", "", 401),
        ("media", "/api/../secret", "", 401),
        ("media", "/api/%2e%2e/secret", "", 401),
        ("media", "/api/..%2fsecret", "", 401),
        ("media", "/api/..;/secret", "", 401),
        ("media", "/x/../api/v3", "", 401),
        ("media", "//api/v3", "", 401),
        ("media", "/API/v3", "", 401),
        ("media", "/ping%3f/../secret", "", 401),
        ("nobody", "/", "", 403),
        ("nobody", "/", "anna:secret", 403),
        ("nobody", "/ping", "", 403),
        ("public", "/", "", 200),
    ],
)
def test_who_gets_through_the_real_proxy(proxy: t.Any, site: str, path: str, user: str, status: int) -> None:
    found, echoed = proxy(site, path, user)
    assert found == status
    if status == 200:
        assert echoed["path"] == path


def test_only_the_proxy_says_who_somebody_is(proxy: t.Any) -> None:
    spoofed = ("Remote-User: root", "X-Forwarded-For: 203.0.113.9", "X-Forwarded-User: root")
    _status, asked = proxy("media", "/", "anna:secret", *spoofed)
    assert asked["headers"]["remote-user"] == "anna"
    assert "authorization" not in asked["headers"]
    assert asked["headers"]["x-forwarded-for"] == "127.0.0.1"
    assert "x-forwarded-user" not in asked["headers"]
    for site, path in (("public", "/"), ("media", "/ping")):
        _status, open_ = proxy(site, path, "", *spoofed)
        assert "remote-user" not in open_["headers"]
        assert open_["headers"]["x-forwarded-for"] == "127.0.0.1"


def test_a_token_of_the_application_gets_past_a_bypass(proxy: t.Any) -> None:
    _status, echoed = proxy("media", "/api/v3", "", "Authorization: Bearer token", "X-Api-Key: key")
    assert echoed["headers"]["authorization"] == "Bearer token"
    assert echoed["headers"]["x-api-key"] == "key"


def test_an_upgrade_is_refused_where_the_route_says_so(proxy: t.Any) -> None:
    assert proxy("public", "/", "", "Upgrade: websocket")[0] == 403
