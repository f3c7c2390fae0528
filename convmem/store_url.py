"""The URL of a store: the spellings people bring, its parameters, and a form that is safe to print."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, urlencode

from convmem.exceptions import ConfigurationError
from convmem.store_parameters import check

Reach = Literal["process", "host", "network"]
"""How far two processes may be apart and still meet in a store; as `Store.reach`."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^?]*)(?:\?(.*))?")
_SPELLINGS = {
    "memory": "memory",
    "sqlite": "sqlite",
    "sqlite+aiosqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "redis": "redis",
    "rediss": "rediss",
    "redis+cluster": "redis+cluster",
    "redis+sentinel": "redis+sentinel",
    "redis+unix": "redis+unix",
    "unix": "redis+unix",
    "valkey": "redis",
    "valkeys": "rediss",
    "postgres": "postgresql",
    "postgresql": "postgresql",
    "postgresql+asyncpg": "postgresql",
    "postgresql+psycopg": "postgresql",
    "postgresql+psycopg2": "postgresql",
}


@dataclass(frozen=True, repr=False)
class StoreURL:
    """Where a store is. Printing it, or its `repr`, never shows a user name, a password or a networked store's parameters.

    Attributes:
        scheme: Normalised: memory, sqlite, redis, rediss, redis+unix, redis+cluster, redis+sentinel or postgresql.
        rest: What stands between ``://`` and ``?``, credentials included.
        query: The parameters, decoded, in their order.
    """

    scheme: str
    rest: str = ""
    query: tuple[tuple[str, str], ...] = ()

    @property
    def reach(self) -> Reach:
        """How far the store reaches."""
        if self.scheme == "memory":
            return "process"
        return "host" if self.scheme == "sqlite" else "network"

    @property
    def options(self) -> dict[str, str]:
        """The parameters by name."""
        return dict(self.query)

    @property
    def path(self) -> Path:
        """The file of an SQLite URL: relative after three slashes, absolute after four, as in SQLAlchemy."""
        return Path(self.rest.removeprefix("/"))

    @property
    def secret_text(self) -> str:
        """The whole URL, credentials included: for the driver, never for a log."""
        return f"{self.scheme}://{self.rest}" + (f"?{urlencode(self.query)}" if self.query else "")

    def without(self, *names: str) -> StoreURL:
        """Return the same URL without some of its parameters."""
        return StoreURL(self.scheme, self.rest, tuple(pair for pair in self.query if pair[0] not in names))

    def absolute(self) -> StoreURL:
        """Return the same URL, with an SQLite file's path made absolute from the working directory."""
        if self.scheme != "sqlite":
            return self
        return StoreURL(self.scheme, f"/{self.path.absolute()}", self.query)

    def __str__(self) -> str:
        """Return the URL without its secrets."""
        if self.reach != "network":
            return self.secret_text
        _, at, place = self.rest.rpartition("@")
        query = "&".join(f"{name}=***" for name, _ in self.query)
        return f"{self.scheme}://{'***@' if at else ''}{place}" + (f"?{query}" if query else "")

    def __repr__(self) -> str:
        """Return the same, named."""
        return f"StoreURL({str(self)!r})"


def parse_store_url(url: str) -> StoreURL:
    """Return what a store's URL says, its scheme normalised.

    Args:
        url: ``memory://``, ``sqlite:///path`` (``sqlite:////absolute/path``) with ``mode``, ``synchronous`` or
            ``busy_timeout``, ``redis://``, ``rediss://``, ``unix:///path``, ``redis+cluster://h1,h2``,
            ``redis+sentinel://h1,h2/service``, ``postgresql://``;
            ``postgres://`` and the forms with a driver's name, such as ``sqlite+aiosqlite:///path``, mean the same.

    Raises:
        ConfigurationError: It cannot name a store. The message never repeats more than the scheme, a parameter's name
            or an SQLite parameter's value.
    """
    url = url.strip()
    match = _URL.fullmatch(url)
    if match is None or not url.isprintable():
        hint = "SQLite's :memory: is memory://" if url == ":memory:" else "use memory://, sqlite:///convmem.db, redis://… or postgresql://…"
        msg = f"CONVMEM_STORE is not a URL; {hint}"
        raise ConfigurationError(msg)
    scheme = _SPELLINGS.get(match[1].lower())
    if scheme is None:
        msg = f"CONVMEM_STORE is {match[1][:40]!r}; use memory, sqlite, redis or postgresql."
        raise ConfigurationError(msg)
    rest, query = match[2], match[3] or ""
    if scheme not in ("memory", "sqlite") and "@" in query:
        msg = "CONVMEM_STORE has an @ after a ?; percent-encode the characters ? # / @ in its password (%3F %23 %2F %40)."
        raise ConfigurationError(msg)
    parsed = StoreURL(scheme, rest, _parameters(query))
    check(parsed)
    return parsed


def _parameters(query: str) -> tuple[tuple[str, str], ...]:
    try:
        parameters = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError:
        parameters = []
    if query and not parameters:
        msg = "CONVMEM_STORE has something after its ? that is not name=value&name=value; percent-encode a ? that belongs to a password."
        raise ConfigurationError(msg)
    names = [name for name, _ in parameters]
    for name in names:
        if names.count(name) > 1:
            msg = f"CONVMEM_STORE has the parameter {name[:40]!r} twice; keep one."
            raise ConfigurationError(msg)
    return tuple(parameters)
