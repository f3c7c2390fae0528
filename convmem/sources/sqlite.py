"""Messages in a table of a SQLite file."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from convmem.exceptions import SourceUnreadable
from convmem.sources.documents import Row, Rows

_AT_ONCE = 200


async def rows_of_sqlite(path: str, table: str, document: str, *, created_at: str | None = None) -> Rows:
    """Read a table with the columns ``session_id`` and ``id``, in one read transaction, and change nothing.

    Args:
        path: The file.
        table: Its name.
        document: The column with the message.
        created_at: The column with its time in UTC; None: there is none.

    Raises:
        SourceUnreadable: There is no such file or table, or it cannot be read.
    """
    columns = ", ".join(_quoted(column) for column in ("session_id", document, *([created_at] if created_at else ())))
    query = f"SELECT {columns} FROM {_quoted(table)} ORDER BY session_id, id"  # noqa: S608 - quoted
    try:
        with closing(await asyncio.to_thread(_connected, path)) as link:
            cursor = await asyncio.to_thread(link.execute, query)
            while found := await asyncio.to_thread(cursor.fetchmany, _AT_ONCE):
                for name, text, *times in found:
                    yield Row(str(name), text if isinstance(text, bytes) else str(text), _time(times[0]) if times else None)
    except sqlite3.Error as error:
        raise SourceUnreadable(path, str(error)) from error


def _connected(path: str) -> sqlite3.Connection:
    if not Path(path).exists():
        raise SourceUnreadable(path, "No such file")
    return sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _time(text: object) -> datetime | None:
    """Return the time of ``CURRENT_TIMESTAMP``, which is in UTC."""
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
