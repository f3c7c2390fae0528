"""The way to the Redis servers a URL names: one, by TCP, TLS or a socket file; a cluster; the one that Sentinels name."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import unquote

from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from convmem.stores.redis_wire import Address, ClusterWire, Patience, SingleWire, Wire

_PORT, _SENTINEL_PORT = 6379, 26379
_TRUE = ("1", "true", "yes", "on")
_SIGN_IN = ("username", "password")


def wire_at(scheme: str, rest: str, options: Mapping[str, str], patience: Patience) -> Wire:
    """Return the way to the server a URL names.

    Args:
        scheme: redis, rediss, redis+unix, redis+cluster or redis+sentinel.
        rest: What stands between ``://`` and ``?``.
        options: The parameters for the driver; `convmem.store_url` has refused those it does not have.
        patience: How long calls wait.
    """
    credentials, _, place = rest.rpartition("@")
    kwargs = _kwargs(scheme, credentials, options)
    tls = scheme == "rediss" or options.get("ssl", "").lower() in _TRUE
    kind: type[Connection] = SSLConnection if tls else Connection
    if scheme == "redis+unix":
        path = unquote(place)
        return SingleWire(_to(UnixDomainSocketConnection, path=path, **kwargs), patience, path)
    hosts, _, tail = place.partition("/")
    if scheme == "redis+cluster":
        seeds = _addresses(hosts, _PORT)
        return ClusterWire(lambda at: _to(kind, host=at[0], port=at[1], **kwargs)(), seeds, patience, hosts)
    if scheme == "redis+sentinel":
        service, _, database = tail.partition("/")
        if database:
            kwargs["db"] = int(database)
        watch = {name: kwargs.pop(f"sentinel_{name}") for name in _SIGN_IN if f"sentinel_{name}" in kwargs}
        watch |= {name: value for name, value in kwargs.items() if name.startswith(("ssl", "socket_"))} | ({"ssl": True} if tls else {})
        named = _named_by(_addresses(hosts, _SENTINEL_PORT), service, watch | {"retry": _once()}, kind, kwargs)
        return SingleWire(named, patience, f"{service} of {hosts}")
    if tail:
        kwargs["db"] = int(tail)
    (host, port), *_ = _addresses(hosts, _PORT)
    return SingleWire(_to(kind, host=host, port=port, **kwargs), patience, hosts)


def _named_by(
    sentinels: list[Address], service: str, watch: dict[str, Any], kind: type[Connection], kwargs: dict[str, Any]
) -> Callable[[], Awaitable[AbstractConnection]]:
    """Return how to connect to the server that Sentinels name as the primary of a service; they are asked anew each time."""

    async def make() -> AbstractConnection:
        asked = Sentinel(sentinels, sentinel_kwargs=watch)  # type: ignore[no-untyped-call]
        try:
            host, port = await asked.discover_master(service)
        finally:
            # The driver's own close leaves a connection open when it is cancelled before it began.
            await asyncio.shield(asyncio.gather(*(each.aclose() for each in asked.sentinels)))
        return kind(host=host, port=port, **kwargs)

    return make


def _to(kind: type[AbstractConnection], **kwargs: Any) -> Callable[[], Awaitable[AbstractConnection]]:
    async def make() -> AbstractConnection:
        return kind(**kwargs)

    return make


def _kwargs(scheme: str, credentials: str, options: Mapping[str, str]) -> dict[str, Any]:
    kwargs: dict[str, Any] = {"protocol": 2, "retry": _once()}
    if scheme != "redis+unix":
        kwargs["socket_keepalive"] = True
    user, colon, password = credentials.partition(":")
    if user:
        kwargs["username"] = unquote(user)
    if colon:
        kwargs["password"] = unquote(password)
    for name, value in options.items():
        if name == "ssl":
            continue
        if name in ("db", "protocol"):
            kwargs[name] = int(value)
        elif name in ("ssl_check_hostname", "socket_keepalive"):
            kwargs[name] = value.lower() in _TRUE
        else:
            kwargs[name] = value
    return kwargs


def _once() -> Retry:
    """Return the driver's policy of trying once: trying again is the wire's, with one pause for all that wait."""
    return Retry(NoBackoff(), 0)


def _addresses(hosts: str, port: int) -> list[Address]:
    found = []
    for each in hosts.split(","):
        host, colon, number = each.rpartition(":")
        if not colon or number.endswith("]"):
            host, number = each, ""
        found.append((host.strip("[]") or "localhost", int(number or port)))
    return found
