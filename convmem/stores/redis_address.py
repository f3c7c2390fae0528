"""The way to the Redis servers a URL names: one, by TCP, TLS or a socket file; a cluster; the one that Sentinels name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
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


def wire_at(scheme: str, rest: str, options: Mapping[str, str], patience: Patience) -> tuple[Wire, str]:
    """Return the way to a server, and where that is, readable for an operator, without secrets.

    Args:
        scheme: redis, rediss, redis+unix, redis+cluster or redis+sentinel.
        rest: What stands between ``://`` and ``?``.
        options: The parameters for the driver; `convmem.store_url` has refused those it does not have.
        patience: How long calls wait.
    """
    credentials, _, place = rest.rpartition("@")
    kwargs = _kwargs(scheme, credentials, options)
    tls = scheme == "rediss" or options.get("ssl", "").lower() in _TRUE
    kind: type[AbstractConnection] = SSLConnection if tls else Connection
    if scheme == "redis+unix":
        path = unquote(place)
        return SingleWire(lambda: UnixDomainSocketConnection(path=path, **kwargs), patience), path
    hosts, _, tail = place.partition("/")
    if scheme == "redis+cluster":
        seeds = _addresses(hosts, _PORT)
        return ClusterWire(lambda at: kind(host=at[0], port=at[1], **kwargs), seeds, patience), hosts
    if scheme == "redis+sentinel":
        service, _, database = tail.partition("/")
        if database:
            kwargs["db"] = int(database)
        watch = {name: kwargs.pop(f"sentinel_{name}") for name in _SIGN_IN if f"sentinel_{name}" in kwargs}
        watch |= {name: value for name, value in kwargs.items() if name.startswith(("ssl", "socket_"))} | ({"ssl": True} if tls else {})
        named = _Named(_addresses(hosts, _SENTINEL_PORT), service, watch | {"retry": _once()}, kwargs | ({"ssl": True} if tls else {}))
        return SingleWire(named.connection, patience), f"{service} of {hosts}"
    if tail:
        kwargs["db"] = int(tail)
    (host, port), *_ = _addresses(hosts, _PORT)
    return SingleWire(lambda: kind(host=host, port=port, **kwargs), patience), hosts


class _Named:
    """The server that Sentinels name as the primary of a service; each event loop has connections of its own to them."""

    def __init__(self, sentinels: list[Address], service: str, watch: dict[str, Any], kwargs: dict[str, Any]) -> None:
        self._make: Callable[[], Sentinel] = lambda: Sentinel(sentinels, sentinel_kwargs=watch)
        self._service = service
        self._kwargs = kwargs
        self._pools: dict[asyncio.AbstractEventLoop, Any] = {}

    def connection(self) -> AbstractConnection:
        loop = asyncio.get_running_loop()
        if loop not in self._pools:
            self._pools = {other: pool for other, pool in self._pools.items() if not other.is_closed()}
            self._pools[loop] = self._make().master_for(self._service, **self._kwargs).connection_pool
        made: AbstractConnection = self._pools[loop].make_connection()
        return made


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
