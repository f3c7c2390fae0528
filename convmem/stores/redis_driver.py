"""What is redis-py's of the way to a server: a client that was passed in says where that is, and Sentinels which it is.

Nothing else imports redis-py, and a worker whose URL needs neither does without: importing it takes 6 MB.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

try:
    from redis.asyncio import RedisCluster
    from redis.asyncio.retry import Retry
    from redis.asyncio.sentinel import Sentinel
    from redis.backoff import NoBackoff
    from redis.exceptions import AuthenticationError, RedisError, ResponseError
except ImportError as error:  # pragma: no cover - the extra that brings hiredis brings it too
    msg = 'Sentinels, and a client that is passed in, need: pip install "convmem[redis]"'
    raise ImportError(msg) from error

from convmem.stores.redis_wire import Address, ClusterWire, Link, Patience, Refused, SingleWire, Wire

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.connection import AbstractConnection


def wire_of(client: Redis | RedisCluster, patience: Patience) -> Wire:
    """Return the way to where a client leads; its connections are made by the client's own classes, and the client is not used."""
    if isinstance(client, RedisCluster):
        nodes = client.get_nodes() or list(client.nodes_manager.startup_nodes.values())
        kind, kwargs = nodes[0].connection_class, {**nodes[0].connection_kwargs}
        for name in ("host", "port"):
            kwargs.pop(name, None)

        async def to(address: Address) -> Link:
            return await _connected(lambda: kind(**kwargs, host=address[0], port=address[1]))

        return ClusterWire(to, [(node.host, int(node.port)) for node in nodes], patience, ",".join(node.name for node in nodes))
    pool = client.connection_pool

    async def make() -> Link:
        return await _connected(pool.make_connection)

    kwargs = pool.connection_kwargs
    location = kwargs.get("path") or f"{kwargs.get('host', 'the primary named by Sentinels')}:{kwargs.get('port', 6379)}"
    return SingleWire(make, patience, str(location))


async def primary_named_by(sentinels: Sequence[Address], service: str, options: dict[str, Any]) -> Address:
    """Ask Sentinels which server is the primary of a service.

    Args:
        sentinels: Where they are; the first to answer is believed.
        service: Its name.
        options: For the connections to them, as redis-py calls them.
    """
    once = Retry(NoBackoff(), 0)  # trying again is the wire's, with one pause for all that wait
    with _as_the_wire_says():
        asked = Sentinel(sentinels, sentinel_kwargs={**options, "retry": once})  # type: ignore[no-untyped-call]
        try:
            host, port = await asked.discover_master(service)
        finally:
            # The driver's own close leaves a connection open when it is cancelled before it began.
            await asyncio.shield(asyncio.gather(*(each.aclose() for each in asked.sentinels)))
    return str(host), int(port)


async def _connected(new: Callable[[], AbstractConnection]) -> Link:
    """Connect as redis-py does, and take the connection over: what it does for each command takes longer than all that is done here."""
    connection = new()
    try:
        with _as_the_wire_says():
            await connection.connect()  # type: ignore[no-untyped-call]
            can_read = getattr(connection, "can_read", None) or connection.can_read_destructive  # before redis-py 8
            is_silent = not await can_read()
        stream = connection._writer  # noqa: SLF001 - the driver has no other way to it
        if stream and is_silent:
            connection._reader = connection._writer = None  # noqa: SLF001 - it is not the driver's any more
            return _Taken(stream)
    finally:
        with suppress(RedisError, OSError):
            await connection.disconnect(nowait=True)
    reason = "it has ended, or says something that nobody asked for"  # half of that must not be read as half of a reply
    raise ConnectionError(reason)


class _Taken(Link):
    """A connection that was a stream of redis-py's, which would close it when nobody holds the stream."""

    __slots__ = ("_stream",)

    def __init__(self, stream: asyncio.StreamWriter) -> None:
        """Take it over."""
        super().__init__()
        self._stream = stream
        self.connection_made(stream.transport)
        stream.transport.set_protocol(self)


@contextmanager
def _as_the_wire_says() -> Iterator[None]:
    """Say redis-py's errors as the wire does."""
    try:
        yield
    except AuthenticationError as error:
        msg = f"WRONGPASS {error}"
        raise Refused(msg) from error
    except ResponseError as error:
        msg = f"ERR {error}"
        raise Refused(msg) from error
    except RedisError as error:
        raise ConnectionError(str(error)) from error
