# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a registry says about an image: the digest behind a tag, and the manifest of each platform.

Anonymous requests of the distribution API, nothing else. What a digest names is read by that digest and hashed here, so
that neither a registry nor a proxy can answer with something else. Proxies are those of the environment.

Sources: github.com/opencontainers/distribution-spec (spec.md: "Pulling manifests"); the anonymous token of
distribution's "Token Authentication Specification"; media types of github.com/opencontainers/image-spec and Docker's
"Image Manifest Version 2, Schema 2".
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import typing as t
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field

from ansible_collections.hearth.homelab.plugins.plugin_utils.images import Pin, Reference

INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_ACCEPT = ", ".join(INDEXES + MANIFESTS)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
#: The distribution specification asks registries to take manifests of at least this size; larger ones are no manifests.
LARGEST = 4 * 1024 * 1024
TIMEOUT = 30.0
#: Docker Hub's API is on a host of its own, and its official images are in a repository that people leave out.
_HUB, _HUB_API = "docker.io", "registry-1.docker.io"


class RegistryError(Exception):
    """What a registry did not give. ``unreachable``: it did not answer at all, or not for now."""

    def __init__(self, message: str, *, unreachable: bool = False) -> None:
        super().__init__(message)
        self.unreachable = unreachable


@dataclass(frozen=True)
class Response:
    """An answer; names of headers in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Fetch(t.Protocol):
    """One request. RegistryError when there is no answer; a status that is an error is an answer."""

    def __call__(self, method: str, url: str, headers: t.Mapping[str, str]) -> Response: ...


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: t.Any, fp: t.Any, code: t.Any, msg: t.Any, headers: t.Any, newurl: str) -> t.Any:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise RegistryError(f"{req.host} leads to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(method: str, url: str, headers: t.Mapping[str, str]) -> Response:
    """One request by urllib. Registries lead to other hosts for contents: the token does not go there."""
    request = urllib.request.Request(url, method=method)  # noqa: S310 (http or https: Registry makes the URL)
    for name, value in headers.items():
        request.add_unredirected_header(name, value) if name == "Authorization" else request.add_header(name, value)
    host = urllib.parse.urlsplit(url).netloc
    try:
        with urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT) as answer:
            found = Response(answer.status, _lower(answer.headers), answer.read(LARGEST + 1))
    except urllib.error.HTTPError as error:
        with error:
            found = Response(error.code, _lower(error.headers), error.read(LARGEST + 1))
    except (OSError, http.client.HTTPException) as error:
        raise RegistryError(f"{host}: {getattr(error, 'reason', '') or error}", unreachable=True) from error
    if len(found.body) > LARGEST:
        raise RegistryError(f"{host}: an answer of more than {LARGEST} bytes")
    return found


def _lower(headers: t.Any) -> dict[str, str]:
    return {str(name).lower(): str(value) for name, value in headers.items()}


@dataclass
class Registries:
    """Reads images of any registry. ``plain``: registries that are spoken to without TLS, as ``HOST[:PORT]``."""

    fetch: Fetch = fetch
    plain: t.Collection[str] = ()
    _tokens: dict[tuple[str, str], str] = field(default_factory=dict)
    _away: dict[str, str] = field(default_factory=dict)

    def pin(self, reference: Reference, wanted: t.Collection[str], known: Pin | None = None) -> Pin:
        """What a tag names now: its digest, and the manifests of the platforms that are ``wanted`` and there.

        ``known`` is given back when nothing has moved: then one HEAD request is all. RegistryError in words.
        """
        digest = self._head(reference)
        if known and known.digest == digest and set(wanted) <= set(known.platforms):
            return known
        data, kind = self._manifest(reference, digest)
        if kind in INDEXES:
            platforms = _of_index(data)
        elif kind in MANIFESTS:
            platforms = {self._platform(reference, data): digest}
        else:
            raise RegistryError(f"it is a {kind or 'manifest of no known type'}, not an image")
        found = {name: platforms[name] for name in wanted if name in platforms}
        if not found:
            raise RegistryError(
                f"it has {', '.join(sorted(platforms)) or 'no platform'}, and none of {', '.join(wanted)}"
            )
        return Pin(digest, found)

    def _head(self, reference: Reference) -> str:
        path = f"manifests/{reference.tag}"
        answer = self._ask("HEAD", reference, path)
        if answer.status != 200:
            self._ask_well(reference, path)  # the answer to HEAD has no words
            raise RegistryError(f"{_host(reference)} answers HEAD with status {answer.status}")
        digest = answer.headers.get("docker-content-digest", "")
        if not digest:  # optional in the specification
            digest = f"sha256:{hashlib.sha256(self._ask_well(reference, path).body).hexdigest()}"
        if not _DIGEST.fullmatch(digest):
            raise RegistryError(f"{_host(reference)} names the digest {digest[:80]!r}, which is not SHA-256")
        return digest

    def _manifest(self, reference: Reference, digest: str) -> tuple[dict[str, t.Any], str]:
        """A manifest and its media type, read by its digest."""
        answer = self._ask_well(reference, f"manifests/{digest}")
        data = _checked(reference, answer, digest)
        return data, str(data.get("mediaType") or answer.headers.get("content-type", "").partition(";")[0].strip())

    def _platform(self, reference: Reference, manifest: t.Mapping[str, t.Any]) -> str:
        """Of an image without an index: its configuration says what it runs on."""
        entry = manifest.get("config")
        digest = str(entry.get("digest")) if isinstance(entry, dict) else ""
        if not _DIGEST.fullmatch(digest):
            raise RegistryError("its manifest names no configuration")
        return _name(_checked(reference, self._ask_well(reference, f"blobs/{digest}"), digest))

    def _ask_well(self, reference: Reference, path: str) -> Response:
        """A GET that must succeed; else what the registry said."""
        answer = self._ask("GET", reference, path)
        if answer.status != 200:
            later = answer.status == 429 or answer.status >= 500
            raise RegistryError(_refusal(_host(reference), answer), unreachable=later)
        return answer

    def _ask(self, method: str, reference: Reference, path: str) -> Response:
        """A request, with an anonymous token if the registry asks for one."""
        host, repository = _host(reference), _repository(reference)
        if host in self._away:  # said once per registry, waited for once
            raise RegistryError(self._away[host], unreachable=True)
        scheme = "http" if reference.registry in self.plain else "https"
        url = f"{scheme}://{host}/v2/{repository}/{path}"
        headers = {"Accept": _ACCEPT, "User-Agent": "hearth.homelab"}
        try:
            for _attempt in range(2):
                token = self._tokens.get((host, repository))
                answer = self.fetch(method, url, {**headers, "Authorization": f"Bearer {token}"} if token else headers)
                if answer.status != 401:
                    return answer
                self._tokens[(host, repository)] = self._token(host, repository, scheme, answer)
            return answer
        except RegistryError as error:
            if error.unreachable:
                self._away[host] = str(error)
            raise

    def _token(self, host: str, repository: str, scheme: str, answer: Response) -> str:
        challenge = answer.headers.get("www-authenticate", "")
        kind, _blank, rest = challenge.partition(" ")
        fields = {name.lower(): value for name, value in re.findall(r'(\w+)="([^"]*)"', rest)}
        realm = fields.get("realm", "")
        if kind.lower() != "bearer" or not realm.startswith(("https://", f"{scheme}://")):
            raise RegistryError(
                f"{host} wants a login ({challenge[:80] or 'status 401'}); only public images can be read"
            )
        query = {"scope": fields.get("scope") or f"repository:{repository}:pull"}
        if fields.get("service"):
            query["service"] = fields["service"]
        mark = "&" if "?" in realm else "?"
        url = f"{realm}{mark}{urllib.parse.urlencode(sorted(query.items()))}"
        given = self.fetch("GET", url, {"User-Agent": "hearth.homelab"})
        if given.status != 200:
            raise RegistryError(
                f"{host} gives no anonymous token: {_refusal(urllib.parse.urlsplit(realm).netloc, given)}",
                unreachable=given.status == 429 or given.status >= 500,
            )
        data = _json(given.body)
        token = data.get("token") or data.get("access_token")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise RegistryError(f"{host} gives no anonymous token")
        return token


def _host(reference: Reference) -> str:
    return _HUB_API if reference.registry == _HUB else reference.registry


def _repository(reference: Reference) -> str:
    short = reference.registry == _HUB and "/" not in reference.repository
    return f"library/{reference.repository}" if short else reference.repository


def _json(body: bytes) -> dict[str, t.Any]:
    try:
        data = json.loads(body)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _checked(reference: Reference, answer: Response, digest: str) -> dict[str, t.Any]:
    found = f"sha256:{hashlib.sha256(answer.body).hexdigest()}"
    if found != digest:
        raise RegistryError(f"{_host(reference)} was asked for {digest} and gave {found}")
    return _json(answer.body)


def _of_index(data: t.Mapping[str, t.Any]) -> dict[str, str]:
    """Platform -> digest. Attestations are in an index too, for the platform unknown/unknown: nobody wants it."""
    found: dict[str, str] = {}
    entries = data.get("manifests")
    for entry in entries if isinstance(entries, list) else ():
        platform, digest = (entry.get("platform"), entry.get("digest")) if isinstance(entry, dict) else (None, None)
        if isinstance(platform, dict) and isinstance(digest, str) and _DIGEST.fullmatch(digest):
            found.setdefault(_name(platform), digest)
    return found


def _name(platform: t.Mapping[str, t.Any]) -> str:
    """``linux/amd64``. Variant v8 is every arm64's and is not said; another variant is another platform."""
    name = f"{platform.get('os')}/{platform.get('architecture')}"
    variant = str(platform.get("variant") or "")
    return name if not variant or (name, variant) == ("linux/arm64", "v8") else f"{name}/{variant}"


def _refusal(host: str, answer: Response) -> str:
    """The registry's own words, which are JSON, or else the status."""
    errors = _json(answer.body).get("errors")
    said = [
        ": ".join(str(entry[key]) for key in ("code", "message") if entry.get(key))
        for entry in (errors if isinstance(errors, list) else ())
        if isinstance(entry, dict)
    ]
    words = "; ".join(text for text in said if text)
    return f"{host} answers {answer.status}" + (f" ({words[:300]})" if words else "")
