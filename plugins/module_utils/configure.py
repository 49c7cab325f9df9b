# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What only an application's API can do: objects of a collection, read and written over HTTP on the host itself.

An object is found by one key (``match``); what is desired is a part of it. Whatever the application has besides is
left alone and sent back as it was read. Secrets are filled in here and leave neither in results nor in messages.

Standard library only: this module runs on hosts.
"""

from __future__ import annotations

import http.client
import json
import re
import typing as t
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from ansible_collections.hearth.homelab.plugins.module_utils.manifest import Configure

#: Seconds for a request that only reads (design section 5); no answer means unknown.
READ_TIMEOUT = 1.0
#: Seconds for one that writes: applications try the connection that they are told of.
WRITE_TIMEOUT = 30.0
#: Requests at the same time.
WORKERS = 16
#: The largest answer that is read (bytes).
LIMIT = 8 * 1024 * 1024

_HOLE = re.compile(r"@@hearth:([^@\s]+)@@")
#: How applications show a value that they do not give back.
_MASKED = re.compile(r"^\*+$")

Secret = t.Callable[[str], "str | None"]
Json = t.Any


class ApiError(Exception):
    """An API did not answer, or not as one. The text names no value of a request."""


@dataclass(frozen=True)
class ObjectState:
    """One object as the application has it. ``differs`` are the paths of what is not as desired, never values."""

    found: bool = False
    differs: tuple[str, ...] = ()
    error: str = ""


# -- comparing: pure ------------------------------------------------------------------------------------------------


def holes(value: Json) -> tuple[str, ...]:
    """Names of the secrets that a value refers to."""
    return tuple(sorted(set(_HOLE.findall(json.dumps(value)))))


def fill(value: Json, secret: Secret) -> Json:
    """The value with its secrets; ApiError for one that is not stored."""
    if isinstance(value, dict):
        return {key: fill(entry, secret) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [fill(entry, secret) for entry in value]
    if not isinstance(value, str):
        return value

    def stored(match: re.Match[str]) -> str:
        found = secret(match[1])
        if found is None:
            raise ApiError(f"the secret {match[1]} is not stored on this host")
        return found

    return _HOLE.sub(stored, value)


def differences(desired: Json, found: Json, template: Json = None, path: str = "") -> list[str]:
    """Paths at which ``found`` has not what is ``desired``. ``template`` is the desired value before secrets were filled
    in: what is a secret there and masked by the application cannot be read, and counts as equal."""
    if isinstance(desired, dict):
        if not isinstance(found, dict):
            return [path or "."]
        return [
            entry
            for key, value in desired.items()
            for entry in (
                differences(value, found[key], _at(template, key), _join(path, key))
                if key in found
                else [_join(path, key)]
            )
        ]
    named, there = _by_name(desired), _by_name(found)
    if named is not None and there is not None:
        templates = _by_name(template) or {}
        return [
            entry
            for name, value in named.items()
            for entry in (
                differences(value, there[name], templates.get(name), _join(path, name))
                if name in there
                else [_join(path, name)]
            )
        ]
    if isinstance(desired, list) and isinstance(found, list):
        return [] if _ordered(desired) == _ordered(found) else [path or "."]
    if isinstance(template, str) and _HOLE.search(template) and isinstance(found, str) and _MASKED.match(found):
        return []
    return [] if desired == found and isinstance(desired, bool) == isinstance(found, bool) else [path or "."]


def merged(desired: Json, found: Json) -> Json:
    """``found`` with what is desired over it: dictionaries by key, lists of named objects by name, all else whole."""
    if isinstance(desired, dict) and isinstance(found, dict):
        return {**found, **{key: merged(value, found.get(key)) for key, value in desired.items()}}
    named, there = _by_name(desired), _by_name(found)
    if named is not None and there is not None:
        return [merged(named.get(name, {}), value) for name, value in there.items()] + [
            value for name, value in named.items() if name not in there
        ]
    return desired


def _at(value: Json, key: str) -> Json:
    return value.get(key) if isinstance(value, dict) else None


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _by_name(value: Json) -> dict[str, Json] | None:
    """A list of objects with a ``name`` each, by name; None for anything else."""
    if not isinstance(value, list) or not value:
        return None
    if not all(isinstance(entry, dict) and isinstance(entry.get("name"), str) for entry in value):
        return None
    return {entry["name"]: entry for entry in value}


def _ordered(values: list[Json]) -> list[str]:
    """Lists of plain values are sets to the applications: no order."""
    texts = [json.dumps(value, sort_keys=True) for value in values]
    plain = not any(isinstance(value, (dict, list)) for value in values)
    return sorted(texts) if plain else texts


def select(item: Configure, answer: Json) -> dict[str, Json] | None:
    """The object that an item speaks of in the application's list."""
    if not isinstance(answer, list):
        raise ApiError(f"GET {path_of(item)}: the answer is no list of objects")
    key = item.desired.get(item.match)
    for entry in answer:
        if isinstance(entry, dict) and entry.get(item.match) == key:
            return entry
    return None


def compare(item: Configure, answer: Json, secret: Secret) -> ObjectState:
    """The state of an item's object in the application's answer."""
    found = select(item, answer)
    if found is None:
        return ObjectState()
    wanted = {key: value for key, value in item.desired.items() if key not in item.ignore}
    return ObjectState(True, tuple(differences(fill(wanted, secret), found, wanted)))


# -- requests -------------------------------------------------------------------------------------------------------


def path_of(item: Configure) -> str:
    return urlsplit(item.url).path


def observe(items: t.Iterable[Configure], secret: Secret) -> dict[str, ObjectState]:
    """The objects of many items; each collection is read once, all at the same time. Nothing is changed."""
    todo = list(items)
    collections = {(item.url, json.dumps(item.headers, sort_keys=True)): item for item in todo}

    def read_one(item: Configure) -> Json:
        try:
            return read(item, secret)
        except ApiError as error:
            return error

    answers: dict[tuple[str, str], Json] = {}
    if collections:
        with ThreadPoolExecutor(min(WORKERS, len(collections))) as pool:
            answers = dict(zip(collections, pool.map(read_one, collections.values()), strict=True))
    result: dict[str, ObjectState] = {}
    for item in todo:
        answer = answers[item.url, json.dumps(item.headers, sort_keys=True)]
        try:
            if isinstance(answer, ApiError):
                raise answer
            result[item.name] = compare(item, answer, secret)
        except ApiError as error:
            result[item.name] = ObjectState(error=str(error))
    return result


def read(item: Configure, secret: Secret, timeout: float = READ_TIMEOUT) -> Json:
    return _request("GET", item.url, fill(item.headers, secret), None, timeout)


def write(item: Configure, secret: Secret) -> None:
    """Make the object, or change the one that is there; it is read anew, so that nothing else of it is lost."""
    found = select(item, read(item, secret, WRITE_TIMEOUT))
    desired, headers = fill(item.desired, secret), fill(item.headers, secret)
    if found is None:
        _request(item.method_create, item.url, headers, desired, WRITE_TIMEOUT)
    else:
        body = merged({key: value for key, value in desired.items() if key not in item.ignore}, found)
        _request(item.method_update, _object(item, found), headers, body, WRITE_TIMEOUT)


def remove(item: Configure, secret: Secret) -> None:
    """Remove the object; one that is not there is removed already."""
    found = select(item, read(item, secret, WRITE_TIMEOUT))
    if found is not None:
        _request("DELETE", _object(item, found), fill(item.headers, secret), None, WRITE_TIMEOUT)


def _object(item: Configure, found: t.Mapping[str, Json]) -> str:
    if found.get("id") is None:
        raise ApiError(f"GET {path_of(item)}: the object {item.desired.get(item.match)!r} has no id")
    return f"{item.url}/{quote(str(found['id']), safe='')}"


def _request(method: str, url: str, headers: t.Mapping[str, str], body: Json, timeout: float) -> Json:
    """One request, no redirects. A message has the method, the path and the status, never the answer's text: an
    application may repeat there what it was sent."""
    parts = urlsplit(url)
    what = f"{method} {parts.path}"
    connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=timeout)
    sent = {"User-Agent": "hearth", "Accept": "application/json", "Connection": "close", **headers}
    data = None
    if body is not None:
        data = json.dumps(body).encode()
        sent["Content-Type"] = "application/json"
    try:
        connection.request(method, parts.path + (f"?{parts.query}" if parts.query else ""), data, sent)
        response = connection.getresponse()
        status, answer = response.status, response.read(LIMIT + 1)
    except TimeoutError:
        raise ApiError(f"{what}: no answer in {timeout:g} s") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ApiError(f"{what}: {getattr(error, 'strerror', None) or type(error).__name__}") from None
    finally:
        connection.close()
    if not 200 <= status < 300:
        raise ApiError(f"{what}: status {status}")
    if method != "GET":
        return None
    if len(answer) > LIMIT:
        raise ApiError(f"{what}: the answer is larger than {LIMIT // 2**20} MiB")
    try:
        return json.loads(answer)
    except ValueError:
        raise ApiError(f"{what}: the answer is not JSON") from None
