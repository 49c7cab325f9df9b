# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Objects of applications' APIs: compared, read, written and removed; and an API that fails in every way."""

from __future__ import annotations

import json
import threading
import time
import typing as t
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from ansible_collections.hearth.homelab.plugins.module_utils import configure
from ansible_collections.hearth.homelab.plugins.module_utils import manifest as m

SECRETS = {"prowlarr/api_key": "k1", "sonarr/api_key": "k2"}
DESIRED = {
    "name": "sonarr",
    "syncLevel": "fullSync",
    "fields": [
        {"name": "baseUrl", "value": "http://sonarr:8989"},
        {"name": "apiKey", "value": "@@hearth:sonarr/api_key@@"},
    ],
}


class Api(BaseHTTPRequestHandler):
    """A collection as Prowlarr has it."""

    objects: t.ClassVar[dict[int, dict[str, t.Any]]] = {}
    status: t.ClassVar[int] = 0
    delay: t.ClassVar[float] = 0
    raw: t.ClassVar[bytes] = b""

    def log_message(self, *_: t.Any) -> None: ...

    def _answer(self, status: int, data: t.Any) -> None:
        time.sleep(self.delay)
        body = self.raw or json.dumps(data).encode()
        self.send_response(self.status or status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _all(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("X-Api-Key") != "k1":
            return self._answer(401, {})
        if self.status:
            return self._answer(self.status, {"echo": body.decode()})
        number = self.path.rpartition("/")[2]
        if self.command == "GET":
            return self._answer(200, list(self.objects.values()))
        if self.command == "POST":
            new = max(self.objects, default=0) + 1
            self.objects[new] = {"id": new, "tags": [], **json.loads(body)}
            return self._answer(201, {})
        if self.command == "PUT":
            self.objects[int(number)] = json.loads(body)
            return self._answer(202, {})
        self.objects.pop(int(number))
        return self._answer(200, {})

    do_GET = do_POST = do_PUT = do_DELETE = _all


@pytest.fixture
def url() -> Iterator[str]:
    Api.objects, Api.status, Api.delay, Api.raw = {}, 0, 0, b""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/api/v1/applications"
    server.shutdown()
    server.server_close()


def item(url: str, **more: t.Any) -> m.Configure:
    headers = {"X-Api-Key": "@@hearth:prowlarr/api_key@@"}
    values: dict[str, t.Any] = {"desired": DESIRED, "headers": headers, **more}
    return m.Configure("sonarr/prowlarr", "sonarr", provider="prowlarr", url=url, **values)


def seen(url: str, **more: t.Any) -> configure.ObjectState:
    return configure.observe([item(url, **more)], SECRETS.get)["sonarr/prowlarr"]


def test_an_object_is_made_once_changed_and_removed(url: str) -> None:
    assert seen(url) == configure.ObjectState()
    configure.write(item(url), SECRETS.get)
    assert seen(url) == configure.ObjectState(True)
    assert Api.objects[1]["fields"][1]["value"] == "k2"
    Api.objects[1].update(syncLevel="disabled", tags=[7])
    Api.objects[1]["fields"][0]["value"] = "http://elsewhere"
    Api.objects[1]["fields"].append({"name": "syncCategories", "value": [5000]})
    assert seen(url).differs == ("syncLevel", "fields.baseUrl.value")
    configure.write(item(url), SECRETS.get)
    assert seen(url) == configure.ObjectState(True)
    # What the application or a person has added is sent back as it was.
    assert Api.objects[1]["tags"] == [7]
    assert Api.objects[1]["fields"][2] == {"name": "syncCategories", "value": [5000]}
    configure.remove(item(url), SECRETS.get)
    configure.remove(item(url), SECRETS.get)
    assert Api.objects == {}


def test_a_masked_secret_counts_as_equal_and_another_one_does_not(url: str) -> None:
    configure.write(item(url), SECRETS.get)
    Api.objects[1]["fields"][1]["value"] = "********"
    assert seen(url) == configure.ObjectState(True)
    Api.objects[1]["fields"][1]["value"] = "other"
    assert seen(url).differs == ("fields.apiKey.value",)
    Api.objects[1]["fields"][0]["value"] = "********"  # not a secret of ours: it differs
    assert seen(url).differs == ("fields.baseUrl.value", "fields.apiKey.value")


def test_a_key_that_is_only_said_at_first_is_left_alone(url: str) -> None:
    configure.write(item(url, ignore=("syncLevel",)), SECRETS.get)
    Api.objects[1]["syncLevel"] = "addOnly"
    assert seen(url, ignore=("syncLevel",)) == configure.ObjectState(True)
    configure.write(item(url, ignore=("syncLevel",)), SECRETS.get)
    assert Api.objects[1]["syncLevel"] == "addOnly"


@pytest.mark.parametrize("status", [301, 404, 500, 503])
def test_an_api_that_fails_is_unknown_and_its_answer_is_not_repeated(url: str, status: int) -> None:
    Api.status = status
    assert seen(url).error == f"GET /api/v1/applications: status {status}"
    assert not seen(url).found
    Api.status = 0
    Api.objects[1] = {"id": 1, **DESIRED}
    found = item(url)
    Api.status = status
    with pytest.raises(configure.ApiError, match=f"status {status}") as caught:
        configure.write(found, SECRETS.get)
    assert "k2" not in str(caught.value)


def test_an_api_that_does_not_answer_is_unknown_after_a_second(url: str) -> None:
    Api.delay = 3
    begun = time.monotonic()
    assert seen(url).error == "GET /api/v1/applications: no answer in 1 s"
    assert time.monotonic() - begun < 2.5


@pytest.mark.parametrize(("raw", "message"), [(b"<html>", "not JSON"), (b"{}", "no list of objects")])
def test_an_answer_that_is_none_is_unknown(url: str, raw: bytes, message: str) -> None:
    Api.raw = raw
    assert message in seen(url).error


def test_nobody_listening_and_a_missing_secret_are_unknown(url: str) -> None:
    assert "Connection refused" in seen("http://127.0.0.1:1/x").error
    found = configure.observe([item(url)], {}.get)["sonarr/prowlarr"]
    assert found.error == "the secret prowlarr/api_key is not stored on this host"


def test_true_is_not_one_and_plain_lists_have_no_order() -> None:
    assert configure.differences({"a": True}, {"a": 1}) == ["a"]
    assert configure.differences({"a": [2, 1]}, {"a": [1, 2]}) == []
    assert configure.differences({"a": {"b": 1}}, {"a": None}) == ["a"]
    assert configure.differences({"a": 1}, {}) == ["a"]


def test_the_manifest_carries_names_of_secrets_only() -> None:
    whole = item("http://127.0.0.1:9696/x", holes=configure.holes([DESIRED]))
    assert whole.holes == ("sonarr/api_key",)
    assert m.item_from_dict(json.loads(json.dumps(whole.to_dict()))) == whole
