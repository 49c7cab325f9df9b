# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the controller and the agent say to each other, and how the agent gets to the host.

A request is JSON on the agent's standard input, plain or compressed (base64 of zlib). The answer is one line on
its standard output, ``@@HEARTH@@`` and base64 of zlib of JSON; any other output is noise of shells and is ignored.
Used by both sides; standard library only.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import typing as t
import zlib
from pathlib import Path

#: Version of the protocol. It is part of the agent's digest, so both sides always agree.
VERSION = 1

#: Begins the one line of the answer.
MARKER = "@@HEARTH@@"

#: Requests are limited to this many bytes after decompression (a manifest of 200 services has about 1 MB).
LIMIT = 512 * 1024 * 1024

#: Package path of the code on the host.
PACKAGE = "ansible_collections/hearth/homelab/plugins/module_utils"

#: The agent's entry point: its own directory is the only one added to the import path.
MAIN = '''\
"""Entry point of the Hearth agent; see plugins/module_utils/agent.py."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from ansible_collections.hearth.homelab.plugins.module_utils import agent  # noqa: E402 (the path comes first)

if __name__ == "__main__":
    sys.exit(agent.main(sys.argv[1:]))
'''


class ProtocolError(Exception):
    """The other side did not speak the protocol; the message says what arrived instead."""


def _pack(data: t.Any) -> bytes:
    return base64.b64encode(zlib.compress(json.dumps(data, sort_keys=True, ensure_ascii=False).encode(), 6))


def _unpack(content: bytes) -> t.Any:
    decompressor = zlib.decompressobj()
    plain = decompressor.decompress(base64.b64decode(content, validate=True), LIMIT)
    if decompressor.unconsumed_tail or not decompressor.eof:
        raise ValueError("is cut off or too large")
    return json.loads(plain)


def encode_request(data: t.Mapping[str, t.Any]) -> bytes:
    """One request for the agent's standard input."""
    return _pack(data) + b"\n"


def decode_request(content: bytes) -> dict[str, t.Any]:
    """The request; empty input is an empty request. ProtocolError for anything that is not one JSON object."""
    text = content.strip()
    try:
        data = json.loads(text) if text.startswith(b"{") else _unpack(text) if text else {}
    except (ValueError, binascii.Error, zlib.error) as error:
        raise ProtocolError(f"the request is not JSON or compressed JSON: {error}") from error
    if not isinstance(data, dict):
        raise ProtocolError("the request is not a JSON object")
    return data


def encode_response(data: t.Mapping[str, t.Any]) -> str:
    """The agent's answer: one marked line without its line end."""
    return MARKER + _pack(data).decode()


def decode_response(output: str) -> dict[str, t.Any]:
    """The answer among whatever else was printed. ProtocolError shows the last lines of that noise."""
    for line in reversed(output.splitlines()):
        _, marker, content = line.partition(MARKER)
        if marker:
            try:
                data = _unpack(content.strip().encode())
            except (ValueError, binascii.Error, zlib.error) as error:
                raise ProtocolError(f"the agent's answer is damaged: {error}") from error
            if not isinstance(data, dict):
                raise ProtocolError("the agent's answer is not a JSON object")
            return data
    noise = "\n".join(output.strip().splitlines()[-10:])
    raise ProtocolError(f"the agent gave no answer{': ' + noise if noise else ''}")


def secret_digest(nonce: str, value: str) -> str:
    """The keyed digest (HMAC-SHA-256 under the run's nonce) by which both sides compare a secret without showing it."""
    return hmac.new(nonce.encode(), value.encode(), hashlib.sha256).hexdigest()


def agent_files(module_utils: Path) -> dict[str, str]:
    """The agent's files, relative path to text, from the collection's ``plugins/module_utils``."""
    files = {f"{PACKAGE}/{path.name}": path.read_text("utf-8") for path in sorted(module_utils.glob("*.py"))}
    files["main.py"] = MAIN
    return files


def agent_digest(files: t.Mapping[str, str]) -> str:
    """Names the agent's directory on the host: equal digests are equal code."""
    return hashlib.sha256(json.dumps([VERSION, files], sort_keys=True).encode()).hexdigest()[:16]
