"""The way to the Redis servers a URL names: one, by TCP, TLS or a socket file; a cluster; the one that Sentinels name."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, partial
from typing import Any
from urllib.parse import unquote

from convmem.stores.redis_wire import Address, ClusterWire, Link, Patience, Refused, SingleWire, Wire, pack

_PORT, _SENTINEL_PORT = 6379, 26379
_TRUE = ("1", "true", "yes", "on")
_KEEPALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
"""In seconds, seconds and probes, as redis-py has them: a connection whose other end is gone is known to be so in less than a minute."""
_LIBRARY = pack("CLIENT", "SETINFO", "LIB-NAME", "convmem")


def wire_at(scheme: str, rest: str, options: Mapping[str, str], patience: Patience) -> Wire:
    """Return the way to the server a URL names.

    Args:
        scheme: redis, rediss, redis+unix, redis+cluster or redis+sentinel.
        rest: What stands between ``://`` and ``?``.
        options: How to connect, as redis-py calls them; `convmem.store_parameters` has refused others.
        patience: How long calls wait.

    Raises:
        ImportError: Sentinels are asked by redis-py, which is not there.
    """
    credentials, _, place = rest.rpartition("@")
    user, _, password = credentials.partition(":")
    given = {"username": unquote(user), "password": unquote(password), **options}
    if scheme == "rediss":
        given["ssl"] = "true"
    if scheme == "redis+unix":
        path = unquote(place)
        return SingleWire(partial(_Dial(given).to, path), patience, path)
    hosts, _, tail = place.partition("/")
    if scheme == "redis+cluster":
        return ClusterWire(_Dial(given).to, _addresses(hosts, _PORT), patience, hosts)
    service = ""
    if scheme == "redis+sentinel":
        service, _, tail = tail.partition("/")
    if tail:
        given["db"] = tail
    if service:
        return SingleWire(_named_by(_addresses(hosts, _SENTINEL_PORT), service, given), patience, f"{service} of {hosts}")
    (address,) = _addresses(hosts, _PORT)
    return SingleWire(partial(_Dial(given).to, address), patience, hosts)


class _Dial:
    """How to connect to a server, and what is said first.

    Args:
        given: How, as redis-py calls it.
    """

    def __init__(self, given: Mapping[str, str]) -> None:
        """Connect to nothing yet."""
        self._given = given
        self._sign_in = [pack(*command) for command in _sign_in(given)]

    async def to(self, place: Address | str) -> Link:
        """Connect to an address, or by a socket file; return it signed in and silent."""
        loop = asyncio.get_running_loop()
        if isinstance(place, str):
            _, link = await loop.create_unix_connection(Link, place)
        else:
            transport, link = await loop.create_connection(Link, *place, ssl=self._tls)
            if _is_true(self._given.get("socket_keepalive", "true")):
                _keep_alive(transport.get_extra_info("socket"))
        try:
            if self._sign_in:
                await link.ask(*self._sign_in)
            try:
                await link.ask(_LIBRARY)
            except Refused as error:  # older than Redis 7.2, or it forbids it: it is for those who look at the list of clients
                if error.is_for_now:
                    raise
        except BaseException as error:
            link.end(error)
            raise
        return link

    @cached_property
    def _tls(self) -> ssl.SSLContext | None:
        given = self._given
        if not _is_true(given.get("ssl", "")):
            return None
        context = ssl.create_default_context()
        required = ssl.VerifyMode[f"CERT_{given.get('ssl_cert_reqs', 'required').upper()}"]
        context.check_hostname = required is not ssl.CERT_NONE and _is_true(given.get("ssl_check_hostname", "true"))
        context.verify_mode = required
        if "ssl_certfile" in given:
            context.load_cert_chain(given["ssl_certfile"], given.get("ssl_keyfile"), given.get("ssl_password"))
        if "ssl_ca_certs" in given or "ssl_ca_path" in given:
            context.load_verify_locations(given.get("ssl_ca_certs"), given.get("ssl_ca_path"))
        if "ssl_ciphers" in given:
            context.set_ciphers(given["ssl_ciphers"])
        return context


def _sign_in(given: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    """Yield the commands that come before any other on a connection."""
    user, password = given["username"], given["password"]
    if given.get("protocol") == "3":
        yield "HELLO", "3", *(("AUTH", user or "default", password) if user or password else ())
    elif user or password:
        yield "AUTH", *((user,) if user else ()), password
    if "client_name" in given:
        yield "CLIENT", "SETNAME", given["client_name"]
    if int(given.get("db", 0)):
        yield "SELECT", given["db"]


def _keep_alive(connected: socket.socket) -> None:
    with suppress(OSError):
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            if hasattr(socket, name):  # each system has its own
                connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _named_by(sentinels: Sequence[Address], service: str, given: Mapping[str, str]) -> Callable[[], Awaitable[Link]]:
    """Return how to connect to the server that Sentinels name as the primary of a service; they are asked anew each time."""
    from convmem.stores.redis_driver import primary_named_by

    options: dict[str, Any] = {name: value for name, value in given.items() if name.startswith("ssl_")}
    options |= {name: _is_true(given[name]) for name in ("ssl", "ssl_check_hostname") if name in given}
    options["socket_keepalive"] = _is_true(given.get("socket_keepalive", "true"))
    options |= {name: given[f"sentinel_{name}"] for name in ("username", "password") if f"sentinel_{name}" in given}
    dial = _Dial(given)

    async def make() -> Link:
        return await dial.to(await primary_named_by(sentinels, service, options))

    return make


def _is_true(text: str) -> bool:
    return text.lower() in _TRUE


def _addresses(hosts: str, port: int) -> list[Address]:
    found = []
    for each in hosts.split(","):
        host, colon, number = each.rpartition(":")
        if not colon or number.endswith("]"):
            host, number = each, ""
        found.append((host.strip("[]") or "localhost", int(number or port)))
    return found
