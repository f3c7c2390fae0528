"""What the URL of a store may say: its place, and its parameters, by store. A mistake is found at the start, and named."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from convmem.exceptions import ConfigurationError
from convmem.surroundings import nearest, parse_duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from convmem.store_url import StoreURL

_SQLITE_PARAMETERS = {"mode": ("rwc", "rw"), "synchronous": ("full", "normal", "extra"), "busy_timeout": ()}
REDIS_SCHEMES = ("redis", "rediss", "redis+unix", "redis+cluster", "redis+sentinel")
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
POSTGRES_OPTIONS = ("timeout", "pool_max", "pool_min", "statement_cache_size", "unsafe")
"""The parameters of a PostgreSQL URL that are the store's own; the others are the driver's."""
_POSTGRES_PARAMETERS = (
    *POSTGRES_OPTIONS,
    *("host", "port", "user", "password", "dbname", "database", "passfile", "service", "target_session_attrs", "application_name"),
    *("sslmode", "sslcert", "sslkey", "sslrootcert", "sslcrl", "sslpassword", "sslnegotiation"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version", "krbsrvname", "gsslib", "options"),
)
_POSTGRES_ADVICE = {
    "channel_binding": "the driver cannot do it; leave it out, and use sslmode=verify-full.",
    "connect_timeout": "use timeout=5s, which holds for a whole call.",
    "connection_limit": "use pool_max.",
    "pgbouncer": "a pooler is found by itself; statement_cache_size=0 says that there is one.",
    "pool_size": "use pool_max.",
    "pool_timeout": "use timeout=5s, which holds for a whole call.",
    "schema": "set CONVMEM_NAMESPACE.",
    "ssl": "use sslmode=require, or sslmode=verify-full.",
}
"""What people bring from other drivers, and what says the same here."""
_POSTGRES_LEAST = {"pool_max": 1, "pool_min": 0, "statement_cache_size": 0}
_UNSAFE = ("warn", "refuse", "allow")


def check(url: StoreURL) -> None:
    """Raise when a URL, its scheme normalised, cannot name a store.

    Raises:
        ConfigurationError: As in `parse_store_url`.
    """
    if url.scheme == "memory":
        _check_memory(url)
    elif url.scheme == "sqlite":
        _check_sqlite(url)
    elif url.scheme == "postgresql":
        _check_postgres(url)
    else:
        _check_redis(url)


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
    _check_value(name, value, choices=_SQLITE_PARAMETERS[name], is_duration=name == "busy_timeout")


def _check_redis(url: StoreURL) -> None:
    if url.scheme == "redis+unix":
        if not url.rest.rpartition("@")[2].startswith("/"):
            msg = "CONVMEM_STORE names no socket file; use unix:///run/redis/redis.sock."
            raise ConfigurationError(msg)
    else:
        _check_redis_place(url)
    is_tls = url.scheme == "rediss" or (url.scheme in ("redis+cluster", "redis+sentinel") and url.options.get("ssl") == "true")
    for name, value in url.query:
        _check_redis_parameter(url.scheme, name, value, is_tls=is_tls)
    if "ssl_keyfile" in url.options and "ssl_certfile" not in url.options:
        msg = "CONVMEM_STORE has ssl_keyfile without ssl_certfile, the certificate the key is for; add it."
        raise ConfigurationError(msg)
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


def _check_redis_parameter(scheme: str, name: str, value: str, *, is_tls: bool) -> None:
    if name not in _REDIS_PARAMETERS or (name.startswith("sentinel_") and scheme != "redis+sentinel"):
        hint = nearest(name, _REDIS_PARAMETERS)
        advice = f"did you mean {hint}?" if hint and hint != name else f"Redis has {', '.join(_REDIS_PARAMETERS)}."
        msg = f"CONVMEM_STORE has the unknown parameter {name[:40]!r}; {advice}"
        raise ConfigurationError(msg)
    if not is_tls and (name.startswith("ssl_") or (name == "ssl" and scheme in ("redis", "redis+unix"))):
        cure = "use rediss://" if scheme in ("redis", "redis+unix") else "add ssl=true"
        msg = f"CONVMEM_STORE has {name}, which is for TLS; {cure}."
        raise ConfigurationError(msg)
    _check_value(name, value, choices=_REDIS_PARAMETERS[name], least=_COUNTS.get(name), is_duration=name in _DURATIONS)


def _check_postgres(url: StoreURL) -> None:
    for name, value in url.query:
        _check_postgres_parameter(name, value)
    most, least = (int(url.options.get(name, default)) for name, default in (("pool_max", "10"), ("pool_min", "1")))
    if least > most:
        msg = f"CONVMEM_STORE has a pool_min of {least} and a pool_max of {most}; raise the second or lower the first."
        raise ConfigurationError(msg)


def _check_postgres_parameter(name: str, value: str) -> None:
    if name not in _POSTGRES_PARAMETERS:
        hint = nearest(name, _POSTGRES_PARAMETERS)
        advice = _POSTGRES_ADVICE.get(name) or (f"did you mean {hint}?" if hint else f"PostgreSQL has {', '.join(_POSTGRES_PARAMETERS)}.")
        msg = f"CONVMEM_STORE has the unknown parameter {name[:40]!r}; {advice}"
        raise ConfigurationError(msg)
    _check_value(name, value, choices=_UNSAFE if name == "unsafe" else (), least=_POSTGRES_LEAST.get(name), is_duration=name == "timeout")


def _check_value(name: str, value: str, *, choices: Sequence[str] = (), least: int | None = None, is_duration: bool = False) -> None:
    """Raise when a known parameter's value is not one of its choices, no whole number from `least`, or no duration."""
    if choices and value not in choices:
        msg = f"CONVMEM_STORE has {name}={value[:40]!r}; use {', '.join(choices[:-1])} or {choices[-1]}."
        raise ConfigurationError(msg)
    if least is not None and not (value.isascii() and value.isdigit() and int(value) >= least):
        msg = f"CONVMEM_STORE has {name}={value[:40]!r}; use a whole number, {least} or more."
        raise ConfigurationError(msg)
    if is_duration:
        try:
            parse_duration(value)
        except ValueError as error:
            msg = f"CONVMEM_STORE has a {name} that {error}."
            raise ConfigurationError(msg) from None
