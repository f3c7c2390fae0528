"""The URL of a store: the spellings people bring, its parameters, and a form that is safe to print."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, urlencode

from convmem.exceptions import ConfigurationError
from convmem.surroundings import nearest, parse_duration

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
_REDIS = ("redis", "rediss", "redis+unix", "redis+cluster", "redis+sentinel")
_REDIS_PARAMETERS: dict[str, tuple[str, ...]] = {
    # the store's own
    "durability": ("none", "replicas"),
    "replicas": (),
    "replicas_timeout": (),
    "connect_timeout": (),
    "timeout": (),
    "unsafe": ("warn", "refuse", "allow"),
    # the driver's
    "client_name": (),
    "db": (),
    "password": (),
    "protocol": ("2", "3"),
    "sentinel_password": (),
    "sentinel_username": (),
    "socket_connect_timeout": (),
    "socket_keepalive": ("true", "false"),
    "socket_timeout": (),
    "ssl": ("true", "false"),
    "ssl_ca_certs": (),
    "ssl_ca_path": (),
    "ssl_cert_reqs": ("required", "optional", "none"),
    "ssl_certfile": (),
    "ssl_check_hostname": ("true", "false"),
    "ssl_ciphers": (),
    "ssl_keyfile": (),
    "ssl_password": (),
    "username": (),
}
_DURATIONS = ("replicas_timeout", "connect_timeout", "timeout", "socket_connect_timeout", "socket_timeout")
_COUNTS = {"replicas": 1, "db": 0}
_REDIS_PLACE = re.compile(
    r"(?:[^@/]*@)?(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]*)(?::[0-9]{1,5})?(?:,(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::[0-9]{1,5})?)*(/.*)?"
)
_SQLITE_PARAMETERS = {"mode": ("rwc", "rw"), "synchronous": ("full", "normal", "extra"), "busy_timeout": ()}


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
    if scheme == "memory":
        _check_memory(parsed)
    if scheme == "sqlite":
        _check_sqlite(parsed)
    if scheme in _REDIS:
        _check_redis(parsed)
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


def _check_memory(url: StoreURL) -> None:
    if url.rest or url.query:
        msg = "CONVMEM_STORE says more than memory://, which has no path and no parameters; use memory:// or sqlite:///path."
        raise ConfigurationError(msg)


def _check_sqlite(url: StoreURL) -> None:
    if url.rest in ("", "/") or ":memory:" in url.rest:
        msg = "CONVMEM_STORE names no SQLite file; use sqlite:///convmem.db, or memory:// to keep nothing."
        raise ConfigurationError(msg)
    if not url.rest.startswith("/"):
        msg = "CONVMEM_STORE needs three slashes before a relative path and four before an absolute one: sqlite:///convmem.db."
        raise ConfigurationError(msg)
    if url.rest.endswith("/"):
        msg = "CONVMEM_STORE names a directory; add the file's name, as in sqlite:////var/lib/app/convmem.db."
        raise ConfigurationError(msg)
    for name, value in url.query:
        _check_sqlite_parameter(name, value)


def _check_sqlite_parameter(name: str, value: str) -> None:
    if name not in _SQLITE_PARAMETERS:
        hint = nearest(name, _SQLITE_PARAMETERS)
        advice = f"did you mean {hint}?" if hint else "SQLite has mode, synchronous and busy_timeout."
        msg = f"CONVMEM_STORE has the unknown parameter {name[:40]!r}; {advice}"
        raise ConfigurationError(msg)
    choices = _SQLITE_PARAMETERS[name]
    if choices and value not in choices:
        msg = f"CONVMEM_STORE has {name}={value[:40]!r}; use {', '.join(choices[:-1])} or {choices[-1]}."
        raise ConfigurationError(msg)
    if name == "busy_timeout":
        try:
            parse_duration(value)
        except ValueError as error:
            msg = f"CONVMEM_STORE has a busy_timeout that {error}."
            raise ConfigurationError(msg) from None


def _check_redis(url: StoreURL) -> None:
    if url.scheme == "redis+unix":
        if not url.rest.rpartition("@")[2].startswith("/"):
            msg = "CONVMEM_STORE names no socket file; use unix:///run/redis/redis.sock."
            raise ConfigurationError(msg)
    else:
        _check_redis_place(url)
    for name, value in url.query:
        _check_redis_parameter(url.scheme, name, value)
    if "replicas" in url.options and url.options.get("durability") != "replicas":
        msg = "CONVMEM_STORE has replicas without durability=replicas, which alone waits for them; add it, or leave both out."
        raise ConfigurationError(msg)


def _check_redis_place(url: StoreURL) -> None:
    match = _REDIS_PLACE.fullmatch(url.rest)
    if match is None:
        msg = "CONVMEM_STORE has no host:port after its ://; percent-encode the characters ? # / @ : of its password (%3F %23 %2F %40 %3A)."
        raise ConfigurationError(msg)
    tail = (match[1] or "/")[1:]
    if url.scheme == "redis+sentinel":
        service, _, database = tail.partition("/")
        if not service or not re.fullmatch(r"[0-9]*", database):
            msg = "CONVMEM_STORE names no service; use redis+sentinel://host1,host2/SERVICE, as in the Sentinels' configuration."
            raise ConfigurationError(msg)
    elif "," in url.rest.rpartition("@")[2] and url.scheme != "redis+cluster":
        msg = f"CONVMEM_STORE has several hosts, and {url.scheme} takes one; use redis+cluster://h1,h2 or redis+sentinel://h1,h2/service."
        raise ConfigurationError(msg)
    elif not re.fullmatch(r"[0-9]*", tail) or (url.scheme == "redis+cluster" and tail.strip("0")):
        msg = "CONVMEM_STORE has something after its host that is not the number of a database; a cluster has only 0."
        raise ConfigurationError(msg)


def _check_redis_parameter(scheme: str, name: str, value: str) -> None:
    tls_only = name.startswith("ssl") and scheme in ("redis", "redis+unix")
    if name not in _REDIS_PARAMETERS or (name.startswith("sentinel_") and scheme != "redis+sentinel"):
        hint = nearest(name, _REDIS_PARAMETERS)
        advice = f"did you mean {hint}?" if hint and hint != name else f"Redis has {', '.join(_REDIS_PARAMETERS)}."
        msg = f"CONVMEM_STORE has the unknown parameter {name[:40]!r}; {advice}"
        raise ConfigurationError(msg)
    if tls_only:
        msg = f"CONVMEM_STORE has {name}, which is for TLS; use rediss://."
        raise ConfigurationError(msg)
    choices = _REDIS_PARAMETERS[name]
    if choices and value not in choices:
        msg = f"CONVMEM_STORE has {name}={value[:40]!r}; use {', '.join(choices[:-1])} or {choices[-1]}."
        raise ConfigurationError(msg)
    if name in _COUNTS and not (value.isascii() and value.isdigit() and int(value) >= _COUNTS[name]):
        msg = f"CONVMEM_STORE has {name}={value[:40]!r}; use a whole number, {_COUNTS[name]} or more."
        raise ConfigurationError(msg)
    if name in _DURATIONS:
        try:
            parse_duration(value)
        except ValueError as error:
            msg = f"CONVMEM_STORE has a {name} that {error}."
            raise ConfigurationError(msg) from None
