# Copyright (c) 2026 The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL roles, databases and extensions in one batch through psql, as the user postgres.

Passwords are sent as SCRAM verifiers, so that the server's log never has one. Nothing is ever dropped.

Standard library only: this module runs on hosts.
"""

from __future__ import annotations

import json
import typing as t
from dataclasses import asdict, dataclass

from ansible_collections.hearth.homelab.plugins.module_utils import scram
from ansible_collections.hearth.homelab.plugins.module_utils.actions import Action
from ansible_collections.hearth.homelab.plugins.module_utils.manifest import (
    Item,
    Manifest,
    PostgresqlDatabase,
    PostgresqlRole,
)
from ansible_collections.hearth.homelab.plugins.module_utils.runner import CommandError, Completed, Runner, explain

#: -X: no psqlrc; -q: quiet; ON_ERROR_STOP: the first error ends the batch with exit status 3 (psql(1)).
PSQL = ("psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", "postgres")


def port(manifest: Manifest, previous: Manifest | None, todo: t.Iterable[Action], items: t.Mapping[str, Item]) -> str:
    """The port in the name of the server's socket, from the provider's listeners; empty: the client's default."""
    old = previous.by_id() if previous else {}
    for action in todo:
        item = items.get(action.id) or old.get(action.id)
        if isinstance(item, (PostgresqlRole, PostgresqlDatabase)):
            for source in (manifest, previous):
                state = source.services.get(item.provider) if source else None
                for entry in state.listeners if state else ():
                    protocol, _, number = entry.split("/")
                    if protocol == "tcp":
                        return number
    return ""


#: Attributes of a role (CREATE ROLE) that no role of Hearth's has, and their columns in pg_authid.
RIGHTS: dict[str, str] = {
    "SUPERUSER": "rolsuper",
    "CREATEDB": "rolcreatedb",
    "CREATEROLE": "rolcreaterole",
    "REPLICATION": "rolreplication",
    "BYPASSRLS": "rolbypassrls",
}

#: A membership with other options than memberships_sql gives; ``a`` is a row of pg_auth_members.
_UNDECLARED = "(a.admin_option OR NOT a.inherit_option OR NOT a.set_option)"

#: The names of predefined roles that a role of pg_authid is a member of, as an array. Names that begin with pg_ are
#: PostgreSQL's own (CREATE ROLE refuses them). One with undeclared options has a name that is never declared.
MEMBERSHIPS = (
    f"ARRAY(SELECT DISTINCT r.rolname || CASE WHEN {_UNDECLARED} THEN ' with undeclared options' ELSE '' END "  # noqa: S608 (constant)
    "FROM pg_auth_members a JOIN pg_authid r ON r.oid = a.roleid "
    "WHERE a.member = pg_authid.oid AND starts_with(r.rolname, 'pg_') ORDER BY 1)"
)


def identifier(name: str) -> str:
    """A quoted identifier; ValueError for what PostgreSQL cannot name."""
    if not name or "\0" in name or len(name.encode()) > 63:
        raise ValueError(f"{name!r} cannot be the name of a PostgreSQL object")
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A quoted string, the same whatever standard_conforming_strings says."""
    if "\0" in text:
        raise ValueError("a PostgreSQL string cannot contain a zero byte")
    quoted = "'" + text.replace("'", "''") + "'"
    return "E" + quoted.replace("\\", "\\\\") if "\\" in text else quoted


@dataclass(frozen=True)
class RoleState:
    """A role before a run changed it. ``password`` is its verifier, ``member_of`` as in its item."""

    login: bool
    password: str | None
    member_of: tuple[str, ...] = ()

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, content: bytes) -> RoleState:
        data = json.loads(content)
        return cls(data["login"], data["password"], tuple(data.get("member_of", ())))


def memberships_sql(name: str, member_of: t.Sequence[str], exists: bool) -> list[str]:
    """Statements that make a role a member of these predefined roles and of no other one."""
    lines: list[str] = []
    if exists:
        kept = (
            f"r.rolname IN ({', '.join(literal(role) for role in sorted(member_of))}) AND "
            if member_of
            else "false AND "
        )
        # \gexec runs each statement that the query returns. A membership belongs to whoever granted it, and PostgreSQL
        # takes back one's own only unless told whose. No CASCADE: what the role granted to others is not ours to take.
        lines.append(
            "SELECT format('REVOKE %I FROM %I GRANTED BY %I', r.rolname, m.rolname, g.rolname) "  # noqa: S608 (quoted)
            "FROM pg_auth_members a JOIN pg_roles r ON r.oid = a.roleid JOIN pg_roles m ON m.oid = a.member "
            f"JOIN pg_roles g ON g.oid = a.grantor WHERE m.rolname = {literal(name)} AND starts_with(r.rolname, 'pg_') "
            f"AND NOT ({kept}NOT {_UNDECLARED}) \\gexec"
        )
    options = "WITH ADMIN FALSE, INHERIT TRUE, SET TRUE"
    lines += [f"GRANT {identifier(role)} TO {identifier(name)} {options};" for role in sorted(member_of)]
    return lines


def role_sql(item: PostgresqlRole, password: str | None, exists: bool) -> list[str]:
    """Statements that make a role what its item says. The role is made in one statement: never without its password."""
    options = "LOGIN" if item.login else "NOLOGIN"
    if exists:
        options = " ".join((options, *(f"NO{right}" for right in sorted(RIGHTS))))
    if password is not None:
        options += f" PASSWORD {literal(scram.verifier(password))}"
    made = f"{'ALTER' if exists else 'CREATE'} ROLE {identifier(item.name)} {options};"
    return [made, *memberships_sql(item.name, item.member_of, exists)]


def database_sql(item: PostgresqlDatabase, exists: bool) -> list[str]:
    """Statements and psql commands that make a database what its item says. Ends connected to ``postgres``."""
    name = identifier(item.name)
    lines: list[str] = []
    if not exists:
        owner = f" OWNER {identifier(item.owner)}" if item.owner else ""
        # template0: the only template that takes another encoding; the locale stays the cluster's.
        lines.append(f"CREATE DATABASE {name}{owner} ENCODING {literal(item.encoding)} TEMPLATE template0;")
    elif item.owner:
        lines.append(f"ALTER DATABASE {name} OWNER TO {identifier(item.owner)};")
    if item.extensions:
        # \connect takes one argument; a quoted one keeps its case.
        lines.append(f"\\connect {name}")
        lines += [f"CREATE EXTENSION IF NOT EXISTS {identifier(extension)};" for extension in item.extensions]
        lines.append("\\connect postgres")
    return lines


def batch(actions: t.Iterable[Action], items: t.Mapping[str, Item], secret: t.Callable[[str], str]) -> list[str]:
    """The whole batch: roles first, since databases name them as owners."""
    roles: list[str] = []
    databases: list[str] = []
    for action in actions:
        item = items.get(action.id)
        if action.operation == "disable":
            roles.append(f"ALTER ROLE {identifier(action.name)} NOLOGIN;")
        elif isinstance(item, PostgresqlRole):
            password = secret(item.secret) if item.secret else None
            roles += role_sql(item, password, action.operation != "create")
        elif isinstance(item, PostgresqlDatabase):
            databases += database_sql(item, action.operation != "create")
    return roles + databases


def execute(runner: Runner, lines: t.Sequence[str], port: str = "") -> Completed:
    """Run a batch; CommandError without the statements (they may have verifiers)."""
    done = runner.run(
        [*PSQL, *(["-p", port] if port else []), "-f", "-"],
        input=("\n".join(lines) + "\n").encode(),
        user="postgres",
        timeout=300,
        check=False,
        env={"PGOPTIONS": "-c client_min_messages=warning"},
    )
    if done.returncode != 0:
        raise CommandError(done)
    return done


def error_text(error: CommandError) -> str:
    return explain(error.completed)


def roles_before(runner: Runner, names: t.Sequence[str], port: str = "") -> dict[str, RoleState]:
    """The roles that exist, with what is needed to make them so again."""
    if not names:
        return {}
    wanted = ", ".join(literal(name) for name in names)
    query = (
        "SELECT json_build_object('name', rolname, 'login', rolcanlogin, 'password', rolpassword, "  # noqa: S608 (quoted)
        f"'member_of', {MEMBERSHIPS}) FROM pg_authid WHERE rolname IN ({wanted});"
    )
    found: dict[str, RoleState] = {}
    for line in execute(runner, [query], port).stdout.splitlines():
        if line.strip():
            data = json.loads(line)
            found[data["name"]] = RoleState(data["login"], data["password"], _plain(data["member_of"]))
    return found


def _plain(names: t.Sequence[str]) -> tuple[str, ...]:
    """Memberships by name alone: one with undeclared options is given back with the usual ones."""
    return tuple(sorted({name.partition(" ")[0] for name in names}))


def restore_role(runner: Runner, name: str, before: RoleState | None, port: str = "") -> None:
    """Make a role what it was; one that was not there may not log in any more (its data is not touched)."""
    quoted = identifier(name)
    if before is None:
        exists = f"EXISTS (SELECT 1 FROM pg_roles WHERE rolname = {literal(name)})"  # noqa: S608 (quoted)
        # \gexec runs what the query returns: nothing, when there is no such role.
        statement = literal(f"ALTER ROLE {quoted} NOLOGIN")
        execute(runner, [" ".join(("SELECT", statement, "WHERE", exists, "\\gexec"))], port)
        return
    password = "NULL" if before.password is None else literal(before.password)
    alter = f"ALTER ROLE {quoted} {'LOGIN' if before.login else 'NOLOGIN'} PASSWORD {password};"
    execute(runner, [alter, *memberships_sql(name, before.member_of, exists=True)], port)
