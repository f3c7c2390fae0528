"""Messages in a table of PostgreSQL: one row each, or one row a conversation."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from convmem.exceptions import ConfigurationError, SourceUnreadable
from convmem.sources.documents import Row, Rows

try:
    import asyncpg
except ModuleNotFoundError as error:
    msg = 'Reading from PostgreSQL needs: pip install "convmem[postgres]"'
    raise ConfigurationError(msg) from error

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

_AT_ONCE = 200


async def rows_of_postgres(url: str, table: str, document: str, *, created_at: str | None = None) -> Rows:
    """Read a table with the columns ``session_id`` and ``id``, as it is at one moment, and change nothing.

    Args:
        url: Of the database.
        table: Its name, with that of its schema in front or not.
        document: The column with the message, as text or JSON.
        created_at: The column with its time; None: there is none.

    Raises:
        SourceUnreadable: The server does not answer, or there is no such table.
    """
    time = _quoted(created_at) if created_at else "NULL::timestamptz"
    query = f"SELECT session_id::text, {_quoted(document)}::text, {time} FROM {_qualified(table)} ORDER BY session_id, id"  # noqa: S608 - quoted
    async with _read(url) as link:
        async for name, text, moment in link.cursor(query, prefetch=_AT_ONCE):
            yield Row(name, text, moment)


async def rows_of_arrays(url: str, table: str) -> Rows:
    """Read a table with a row for each conversation: its ``key``, and in ``value`` the array of its messages.

    Args:
        url: Of the database.
        table: Its name. Versions of LlamaIndex put ``data_`` in front of it: that one is read where it exists, as they do.

    Raises:
        SourceUnreadable: The server does not answer, or there is no such table.
    """
    schema, dot, name = table.lower().rpartition(".")  # as they do
    older = _qualified(f"{schema}{dot}data_{name}")
    async with _read(url) as link:
        there = await link.fetchval("SELECT to_regclass($1) IS NOT NULL", older)
        source = older if there else _qualified(table.lower())
        query = f"SELECT t.key, m.v::text FROM {source} t, unnest(t.value) WITH ORDINALITY AS m(v, n) ORDER BY t.id, m.n"  # noqa: S608 - quoted
        async for key, text in link.cursor(query, prefetch=_AT_ONCE):
            yield Row(key, text)


@asynccontextmanager
async def _read(url: str) -> AsyncGenerator[Any, None]:
    """Connect, and begin a transaction that sees one moment and changes nothing."""
    address = urlsplit(url)
    place = f"{address.hostname or 'postgresql'}{address.path}"
    dsn = address._replace(scheme="postgresql").geturl()  # SQLAlchemy's URLs name a driver
    try:
        link = await asyncpg.connect(dsn, statement_cache_size=0)
        try:
            async with link.transaction(isolation="repeatable_read", readonly=True):
                yield link
        finally:
            await link.close(timeout=5)
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise SourceUnreadable(place, str(error) or type(error).__name__) from error


def _qualified(table: str) -> str:
    return ".".join(map(_quoted, table.split(".")))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
