# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL's SCRAM-SHA-256 password verifiers, made and checked here.

A verifier instead of the password goes to the server, so the password reaches neither its log nor its statistics.
Format: postgresql.org/docs/17/catalog-pg-authid.html; algorithm: RFC 5802 and RFC 7677; the password is prepared
by SASLprep (RFC 4013) and taken as it is where that forbids it, as the server does.

Standard library only: this module runs on hosts.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import stringprep
import unicodedata

#: PostgreSQL's default (scram_iterations).
ITERATIONS = 4096


def saslprep(text: str) -> str:
    """The password as both sides hash it."""
    if text.isascii():
        return text
    mapped = "".join(
        " " if stringprep.in_table_c12(char) else char for char in text if not stringprep.in_table_b1(char)
    )
    prepared = unicodedata.normalize("NFKC", mapped)
    forbidden = (
        stringprep.in_table_c12,
        stringprep.in_table_c21_c22,
        stringprep.in_table_c3,
        stringprep.in_table_c4,
        stringprep.in_table_c5,
        stringprep.in_table_c6,
        stringprep.in_table_c7,
        stringprep.in_table_c8,
        stringprep.in_table_c9,
        stringprep.in_table_a1,
    )
    if not prepared or any(check(char) for char in prepared for check in forbidden):
        return text
    if any(stringprep.in_table_d1(char) for char in prepared):  # right to left: RFC 3454 section 6
        ends = stringprep.in_table_d1(prepared[0]) and stringprep.in_table_d1(prepared[-1])
        if not ends or any(stringprep.in_table_d2(char) for char in prepared):
            return text
    return prepared


def verifier(password: str, salt: bytes | None = None, iterations: int = ITERATIONS) -> str:
    """``SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey`` for ``ALTER ROLE ... PASSWORD``."""
    salt = os.urandom(16) if salt is None else salt
    salted = hashlib.pbkdf2_hmac("sha256", saslprep(password).encode(), salt, iterations)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    encode = base64.b64encode
    return f"SCRAM-SHA-256${iterations}:{encode(salt).decode()}${encode(stored).decode()}:{encode(server).decode()}"


def matches(password: str, stored: str) -> bool:
    """Whether a stored verifier is that of ``password``; False for any other kind of stored password."""
    try:
        scheme, parameters, _ = stored.split("$")
        iterations, _, salt = parameters.partition(":")
        if scheme != "SCRAM-SHA-256":
            return False
        return hmac.compare_digest(verifier(password, base64.b64decode(salt), int(iterations)), stored)
    except ValueError:
        return False
