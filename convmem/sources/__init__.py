"""Where conversations are imported from: an export of ours, and what other libraries have kept in files and databases.

Other libraries' stores are read with the drivers alone, so that nothing of theirs has to be installed. What their messages mean is
known by the adapters, which are asked for it (`convmem.sources.documents`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from convmem.exceptions import ConfigurationError
from convmem.keys import SessionKey
from convmem.sources.addresses import Addresses
from convmem.sources.base import Source
from convmem.sources.documents import Rows, read_documents
from convmem.sources.exports import read_export


@dataclass(frozen=True, slots=True)
class _Library:
    """Another library's store.

    Attributes:
        package: The adapter that reads its messages.
        rows: Returns the rows at a place, in a table, or under a prefix.
        table: The library's default; None: it has none. Empty: there are no tables.
        prefix: The library's default; None: there are no prefixes.
    """

    package: str
    rows: Callable[[str, str, str], Rows]
    table: str | None = ""
    prefix: str | None = None

    @property
    def takes(self) -> tuple[str, ...]:
        """What can be said about such a place."""
        return "ids", *(("table",) if self.table != "" else ()), *(("prefix",) if self.prefix is not None else ())


def _langchain_redis(place: str, _table: str, prefix: str) -> Rows:
    from convmem.sources.redis import rows_of_redis

    return rows_of_redis(place, prefix, newest_first=True)


def _langchain_postgres(place: str, table: str, _prefix: str) -> Rows:
    from convmem.sources.postgres import rows_of_postgres

    return rows_of_postgres(place, table, "message", created_at="created_at")


def _langchain_sql(place: str, table: str, _prefix: str) -> Rows:
    if place.startswith("postgres"):
        from convmem.sources.postgres import rows_of_postgres

        return rows_of_postgres(place, table, "message")
    from convmem.sources.sqlite import rows_of_sqlite

    return rows_of_sqlite(place, table, "message")


def _llamaindex_redis(place: str, _table: str, prefix: str) -> Rows:
    from convmem.sources.redis import rows_of_redis

    return rows_of_redis(place, prefix, newest_first=False)


def _llamaindex_postgres(place: str, table: str, _prefix: str) -> Rows:
    from convmem.sources.postgres import rows_of_arrays

    return rows_of_arrays(place, table)


def _llamaindex_file(place: str, _table: str, _prefix: str) -> Rows:
    from convmem.sources.files import rows_of_file

    return rows_of_file(place)


def _openai_agents_sqlite(place: str, table: str, _prefix: str) -> Rows:
    from convmem.sources.sqlite import rows_of_sqlite

    return rows_of_sqlite(place, table, "message_data", created_at="created_at")


_LIBRARIES = {
    "langchain-redis": _Library("convmem_langchain", _langchain_redis, prefix="message_store:"),
    "langchain-postgres": _Library("convmem_langchain", _langchain_postgres, table=None),
    "langchain-sql": _Library("convmem_langchain", _langchain_sql, table="message_store"),
    "llamaindex-redis": _Library("convmem_llamaindex", _llamaindex_redis, prefix=""),
    "llamaindex-postgres": _Library("convmem_llamaindex", _llamaindex_postgres, table="chatstore"),
    "llamaindex-file": _Library("convmem_llamaindex", _llamaindex_file),
    "openai-agents-sqlite": _Library("convmem_openai_agents", _openai_agents_sqlite, table="agent_messages"),
}
SOURCES = ("convmem", *_LIBRARIES)


def open_source(
    source: str, place: str, *, owner: str | None, ids: str | None, tenant: str | None, table: str | None, prefix: str | None
) -> Source:
    """Return what a source says; nothing is opened before it is read. Args and errors as in `convmem.import_conversations`."""
    SessionKey(owner or "user:-", tenant=tenant or "")  # refuses what is no owner and no tenant
    library = _LIBRARIES.get(source)
    if library is None and source != "convmem":
        msg = f"There is no source {source!r}; use {', '.join(SOURCES)}."
        raise ConfigurationError(msg)
    takes = library.takes if library else ()
    for name, value in (("ids", ids), ("table", table), ("prefix", prefix)):
        if value is not None and name not in takes:
            msg = f"{source} takes no {name}."
            raise ConfigurationError(msg)
    if library is None:
        return read_export(place, owner=owner, tenant=tenant)
    table = library.table if table is None else table
    if table is None:
        msg = f"Name the table with table: {source} has no default."
        raise ConfigurationError(msg)
    rows = library.rows(place, table, prefix if prefix is not None else library.prefix or "")
    return read_documents(rows, source, library.package, Addresses(owner, ids, tenant))
