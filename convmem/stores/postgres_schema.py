"""The tables of PostgresStore: numbered files that only add, applied by whoever comes first; and the statements over them."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib import resources
from typing import Literal, NamedTuple

import asyncpg

from convmem.stores.postgres_connections import Link

Migrate = Literal["auto", "check", "off"]
"""What a worker does about tables that are missing: make them, say so at the first call, or find out when a statement fails."""

_LOCK_WAIT = "30s"


class SchemaError(Exception):
    """The tables are not as this version needs them; the message says what to type."""


class Migration(NamedTuple):
    """One numbered file."""

    number: int
    name: str
    sql: str


@cache
def statement(name: str, schema: str, *parts: str) -> str:
    """Return a statement of the hot path, its schema put in, without comments and line breaks.

    Lines between ``-- if part`` and ``-- end`` are left out unless that part is wanted, or all of several: what a statement does not do
    costs no time.
    """
    text = resources.files("convmem.stores").joinpath("sql", "postgres", f"{name}.sql").read_text(encoding="utf-8")
    wanted, words = True, []
    for line in text.splitlines():
        if (mark := line.strip()).startswith(("-- if ", "-- end")):
            wanted = mark == "-- end" or set(mark.removeprefix("-- if ").split()) <= set(parts)
        elif wanted:
            words += line.partition("--")[0].split()
    return in_schema(" ".join(words), schema)


def in_schema(sql: str, schema: str) -> str:
    """Return SQL that names the schema convmem with another one in its place."""
    return re.sub(r"\bconvmem(?=\.convmem_|;)", f'"{schema}"', sql)


def migrations() -> list[Migration]:
    """Return the numbered files, in their order."""
    folder = resources.files("convmem.stores").joinpath("sql", "postgres", "migrations")
    files = sorted((item for item in folder.iterdir() if item.name.endswith(".sql")), key=lambda item: item.name)
    return [Migration(int(item.name.partition("_")[0]), item.name, item.read_text(encoding="utf-8")) for item in files]


def migration_sql(schema: str) -> str:
    """Return all files as one script, for whoever may make tables to run; running it twice fails and changes nothing."""
    parts = [
        f"-- {migration.name}\n{in_schema(migration.sql, schema)}\n{_applied(schema, migration.number)};\n" for migration in migrations()
    ]
    return "\n".join(["BEGIN;\n", *parts, "COMMIT;\n"])


async def migrate(connection: Link, schema: str, *, timeout: float) -> tuple[str, ...]:
    """Apply the files this database has not seen and return their names; of many who try at once one does, the others wait.

    A database that has seen more than we know is left alone: files only add, so that old code works on a newer schema.

    Raises:
        SchemaError: A right is missing; the message has the GRANT.
    """
    try:
        if await _newest(connection, schema, timeout) >= migrations()[-1].number:
            return ()
        async with connection.driver.transaction():
            await connection.fetch(f"SET LOCAL lock_timeout = '{_LOCK_WAIT}'")
            await connection.fetch("SELECT pg_advisory_xact_lock($1)", _lock_of(schema))
            newest = await _newest(connection, schema, timeout)
            missing = [migration for migration in migrations() if migration.number > newest]
            for migration in missing:
                for one in statements(in_schema(migration.sql, schema)):
                    if not one.startswith("CREATE SCHEMA") or not await _exists(connection, schema):
                        await connection.fetch(one, timeout=timeout)
                await connection.fetch(_applied(schema, migration.number))
            return tuple(migration.name for migration in missing)
    except asyncpg.InsufficientPrivilegeError as error:
        raise SchemaError(await missing_right(connection, schema, error)) from error


async def check_schema(connection: Link, schema: str, *, timeout: float) -> None:
    """Do nothing when every file was applied.

    Raises:
        SchemaError: One was not; the message has the command.
    """
    try:
        newest = await _newest(connection, schema, timeout)
    except asyncpg.InsufficientPrivilegeError as error:
        raise SchemaError(await missing_right(connection, schema, error)) from error
    known = migrations()[-1].number
    if newest < known:
        raise SchemaError(missing_tables(schema, newest))


def missing_tables(schema: str, newest: int = 0) -> str:
    """Return what to type when tables are missing, or older than the code."""
    what = f"are of version {newest}, and this is version {migrations()[-1].number}" if newest else "are missing"
    return f"the tables in the schema {schema} {what}; run: convmem migrate (or hand the output of: convmem migrate --sql to who may)"


async def missing_right(connection: Link, schema: str, error: asyncpg.PostgresError) -> str:
    """Return the GRANT for what a user may not do."""
    user, database = (await connection.fetch("SELECT quote_ident(current_user), quote_ident(current_database())"))[0]
    text = str(error)
    if "for database" in text:
        return (
            f"the user may not make the schema {schema}; run as an owner: GRANT CREATE ON DATABASE {database} TO {user}; "
            "or make the tables as somebody else with: convmem migrate --sql"
        )
    if "for schema" in text:
        return (
            f"the user may not use the schema {schema}, or make tables in it; run as its owner: "
            f'GRANT USAGE ON SCHEMA "{schema}" TO {user}; for convmem migrate also: GRANT CREATE ON SCHEMA "{schema}" TO {user};'
        )
    return (
        f"the user may not use the tables in the schema {schema}; run as their owner: "
        f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "{schema}" TO {user};'
    )


def statements(script: str) -> list[str]:
    """Return the statements of a migration; none of them has a semicolon inside."""
    text = "\n".join(line.partition("--")[0] for line in script.splitlines())
    return [part.strip() for part in text.split(";") if part.strip()]


async def _newest(connection: Link, schema: str, timeout: float) -> int:
    """Return the number of the newest file that was applied; 0 when none was.

    Looked up in the catalogue's tables: to_regclass still answers "no" to who waited for the lock, from its cache.
    """
    there = await connection.fetch(
        "SELECT FROM pg_catalog.pg_tables WHERE schemaname = $1 AND tablename = 'convmem_migration'", schema, timeout=timeout
    )
    if not there:
        return 0
    rows = await connection.fetch(in_schema("SELECT coalesce(max(number), 0) FROM convmem.convmem_migration", schema), timeout=timeout)
    return int(rows[0][0])


async def _exists(connection: Link, schema: str) -> bool:
    """Return whether the schema is there: to make one that is takes a right that its owner need not have."""
    return bool(await connection.fetch("SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1", schema))


def _applied(schema: str, number: int) -> str:
    return in_schema(f"INSERT INTO convmem.convmem_migration (number) VALUES ({number})", schema)  # noqa: S608 - a number of ours


def _lock_of(schema: str) -> int:
    return int.from_bytes(hashlib.sha256(f"convmem migrate {schema}".encode()).digest()[:8], signed=True)
