# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Registries: what is asked, on recorded answers of docker-registry; redirects and tokens on a server of this process."""

from __future__ import annotations

import http.server
import json
import threading
import typing as t
from pathlib import Path

import pytest
from ansible_collections.hearth.homelab.plugins.plugin_utils import distribution
from ansible_collections.hearth.homelab.plugins.plugin_utils.distribution import Registries, RegistryError, Response
from ansible_collections.hearth.homelab.plugins.plugin_utils.images import Pin, Reference

RECORDED = json.loads((Path(__file__).parent / "recorded" / "registry.json").read_text())["answers"]
HOST = "registry.example.com:5000"
BOTH = ("linux/amd64", "linux/arm64")


def recorded(name: str) -> Response:
    entry = RECORDED[name]
    return Response(
        entry["status"], {key.lower(): text for key, text in entry["headers"].items()}, entry["body"].encode()
    )


INDEX = recorded("index").headers["docker-content-digest"]
AMD64, ARM64 = (entry["digest"] for entry in json.loads(recorded("index").body)["manifests"][:2])


class Replay:
    """Answers with what was recorded, and remembers what was asked."""

    def __init__(self, **changes: Response | Exception) -> None:
        self.asked: list[str] = []
        self.answers: dict[str, Response | Exception] = {
            f"{entry['method']} http://{HOST}{entry['path']}": recorded(name) for name, entry in RECORDED.items()
            if name != "challenge"
        }  # fmt: skip
        for key, answer in changes.items():
            self.answers[f"{RECORDED[key]['method']} http://{HOST}{RECORDED[key]['path']}"] = answer

    def __call__(self, method: str, url: str, headers: t.Mapping[str, str]) -> Response:
        self.asked.append(f"{method} {url}")
        assert distribution.INDEXES[0] in headers["Accept"]
        answer = self.answers[f"{method} {url}"]
        if isinstance(answer, Exception):
            raise answer
        return answer


def pin(replay: Replay, tag: str = "1", known: Pin | None = None, wanted: t.Sequence[str] = BOTH) -> Pin:
    return Registries(replay, plain=[HOST]).pin(Reference(HOST, "app", tag), wanted, known)


def test_an_index_gives_the_manifest_of_each_platform() -> None:
    replay = Replay()
    found = pin(replay)
    # arm64 is in the index as arm64/v8, and there is an attestation for unknown/unknown.
    assert found == Pin(INDEX, {"linux/amd64": AMD64, "linux/arm64": ARM64})
    assert replay.asked == [f"HEAD http://{HOST}/v2/app/manifests/1", f"GET http://{HOST}/v2/app/manifests/{INDEX}"]


def test_nothing_is_read_again_when_nothing_has_moved() -> None:
    replay = Replay()
    known = Pin(INDEX, {"linux/amd64": AMD64, "linux/arm64": ARM64})
    assert pin(replay, known=known) is known
    assert replay.asked == [f"HEAD http://{HOST}/v2/app/manifests/1"]
    assert pin(Replay(), known=Pin(INDEX, {"linux/amd64": AMD64})) == known  # a platform more is wanted
    assert pin(Replay(), known=Pin(f"sha256:{'0' * 64}", dict(known.platforms))) == known


def test_an_image_without_an_index_says_its_platform_in_its_configuration() -> None:
    assert pin(Replay(), "single") == Pin(AMD64, {"linux/amd64": AMD64})


def test_a_registry_that_names_no_digest_is_hashed() -> None:
    body = recorded("index").body
    nameless = Replay(head_index=Response(200, {"content-type": distribution.INDEXES[0]}, b""))
    nameless.answers[f"GET http://{HOST}/v2/app/manifests/1"] = Response(200, {}, body)
    assert pin(nameless).digest == INDEX


@pytest.mark.parametrize(
    ("changes", "tag", "message", "unreachable"),
    [
        pytest.param({}, "nope", r"answers 404 \(MANIFEST_UNKNOWN: manifest unknown\)", False, id="no such tag"),
        pytest.param({"index": Response(200, {}, b"{}")}, "1", r"was asked for sha256:31eb.* and gave sha256:44136f",
                     False, id="another content"),
        pytest.param({"head_index": Response(200, {"docker-content-digest": "sha512:ab"}, b"")}, "1", "not SHA-256",
                     False, id="another algorithm"),
        pytest.param({"head_missing": Response(503, {}, b""), "missing": Response(503, {}, b"<html>busy</html>")},
                     "nope", r"answers 503$", True, id="overloaded"),
        pytest.param({"head_missing": Response(429, {}, b""), "missing": Response(429, {}, b'{"errors":[{"code":"TOOMANYREQUESTS"}]}')},
                     "nope", r"answers 429 \(TOOMANYREQUESTS\)", True, id="too many requests"),
        pytest.param({"head_missing": Response(401, {"www-authenticate": 'Basic realm="x"'}, b"")}, "nope",
                     r"wants a login \(Basic", False, id="a login"),
        pytest.param({"head_missing": RegistryError("r: refused", unreachable=True)}, "nope", "r: refused", True,
                     id="no answer"),
    ],
)  # fmt: skip
def test_what_a_registry_does_not_give(changes: dict[str, t.Any], tag: str, message: str, unreachable: bool) -> None:
    with pytest.raises(RegistryError, match=message) as error:
        pin(Replay(**changes), tag)
    assert error.value.unreachable is unreachable


def test_an_image_for_none_of_the_platforms_is_said() -> None:
    with pytest.raises(RegistryError, match=r"it has linux/amd64, and none of linux/arm64"):
        pin(Replay(), "single", wanted=["linux/arm64"])


def test_a_registry_that_does_not_answer_is_waited_for_once() -> None:
    replay = Replay(head_index=RegistryError("timed out", unreachable=True))
    registries = Registries(replay, plain=[HOST])
    for tag in ("1", "single"):
        with pytest.raises(RegistryError, match="timed out"):
            registries.pin(Reference(HOST, "app", tag), BOTH)
    assert len(replay.asked) == 1


def test_docker_hub_is_asked_where_its_api_is() -> None:
    asked = []

    def fetch(method: str, url: str, headers: t.Mapping[str, str]) -> Response:
        asked.append(url)
        raise RegistryError("no network", unreachable=True)

    with pytest.raises(RegistryError):
        Registries(fetch).pin(Reference.parse("docker.io/redis:8.2"), BOTH)
    assert asked == ["https://registry-1.docker.io/v2/library/redis/manifests/8.2"]


# --- a server ------------------------------------------------------------------------------------------------------


class Server(http.server.ThreadingHTTPServer):
    """Wants a token for everything below /v2/, and leads to another place for contents, as large registries do."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, str | None]] = []
        super().__init__(("127.0.0.1", 0), Handler)
        self.name = f"127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    def _answer(self) -> None:
        server = t.cast("Server", self.server)
        token = self.headers.get("Authorization")
        server.seen.append((self.command, self.path.split("?")[0], token))
        if self.path.startswith("/token?"):
            assert self.path == "/token?scope=repository%3Aapp%3Apull&service=registry.example.com"
            return self._send(200, {}, b'{"token": "anonymous"}')
        if self.path.startswith("/contents/"):
            return self._send(200, {}, recorded("config").body)
        if token != "Bearer anonymous":
            # The challenge is docker-registry's own.
            challenge = recorded("challenge").headers["www-authenticate"].replace("127.0.0.1:5556", server.name)
            return self._send(401, {"WWW-Authenticate": challenge}, b"{}")
        if "/blobs/" in self.path:
            return self._send(307, {"Location": f"http://{server.name}/contents/x"}, b"")
        name = {"single": "head_single" if self.command == "HEAD" else "single"}.get(
            self.path.rsplit("/", 1)[-1], "single"
        )
        return self._send(200, recorded(name).headers, recorded(name).body)

    do_GET = do_HEAD = _answer

    def _send(self, status: int, headers: t.Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_arguments: t.Any) -> None:
        """Nothing: tests are quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> t.Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def test_an_anonymous_token_is_fetched_once_and_goes_to_the_registry_only(server: Server) -> None:
    registries = Registries(plain=[server.name])
    found = registries.pin(Reference(server.name, "app", "single"), BOTH)
    assert found == Pin(AMD64, {"linux/amd64": AMD64})
    assert [entry for entry in server.seen if entry[1] == "/token"] == [("GET", "/token", None)]
    assert ("GET", "/contents/x", None) in server.seen
    assert {token for _method, path, token in server.seen[2:] if path.startswith("/v2/")} == {"Bearer anonymous"}


def test_the_environments_proxy_is_used(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("http_proxy", f"http://{server.name}")
    with pytest.raises(RegistryError, match=r"no anonymous token|wants a login"):
        Registries(plain=["registry.example.com"]).pin(Reference("registry.example.com", "app", "1"), BOTH)
    assert server.seen[0][1] == "http://registry.example.com/v2/app/manifests/1"


def test_nothing_listens_there(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(RegistryError, match="refused") as error:
        distribution.fetch("GET", f"http://{server.name}/v2/", {})
    assert error.value.unreachable


def test_a_step_down_from_https_is_refused() -> None:
    handler = distribution._Redirects()
    request = distribution.urllib.request.Request("https://registry.example.com/v2/x")
    with pytest.raises(RegistryError, match="not https"):
        handler.redirect_request(request, None, 307, "", {}, "http://elsewhere.example.com/x")
