"""Messages in lists of Redis, one list a conversation."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from hashlib import blake2b
from urllib.parse import urlsplit

from convmem.exceptions import ConfigurationError, SourceUnreadable
from convmem.sources.documents import Row, Rows

try:
    from redis.asyncio import Redis, RedisCluster
    from redis.exceptions import RedisError
except ModuleNotFoundError as error:
    msg = 'Reading from Redis needs: pip install "convmem[redis]"'
    raise ConfigurationError(msg) from error

_AT_ONCE = 200
_SCAN = 1000


async def rows_of_redis(url: str, prefix: str, *, newest_first: bool) -> Rows:
    """Read every list whose key begins so; what follows in the key is the conversation's name.

    Args:
        url: Of a server, or of a node of a cluster: redis, rediss or unix.
        prefix: Of the keys.
        newest_first: Whether the lists grow at their beginning.

    Raises:
        SourceUnreadable: The server does not answer, or is no such server.
    """
    address = urlsplit(url)
    place = f"{address.hostname or 'redis'}{address.path}"
    try:
        async with await _connected(url) as redis:
            seen: set[bytes] = set()  # SCAN may show a key twice
            async for key in redis.scan_iter(match=_escaped(prefix), count=_SCAN, _type="list"):
                mark = blake2b(key, digest_size=16).digest()
                if mark not in seen:
                    seen.add(mark)
                    name = key.removeprefix(prefix.encode()).decode("utf-8", "surrogateescape")
                    async with aclosing(_items(redis, key, newest_first=newest_first)) as items:
                        async for item in items:
                            yield Row(name, item)
    except (OSError, ValueError, RedisError) as error:
        raise SourceUnreadable(place, str(error) or type(error).__name__) from error


async def _connected(url: str) -> Redis | RedisCluster:
    """Return a client for the server, or for the cluster it is a part of: one node would show its own keys only."""
    redis = Redis.from_url(url)
    try:
        if not (await redis.info("cluster")).get("cluster_enabled"):
            return redis
    except BaseException:
        await redis.aclose()
        raise
    await redis.aclose()
    return RedisCluster.from_url(url)


async def _items(redis: Redis | RedisCluster, key: bytes, *, newest_first: bool) -> AsyncGenerator[bytes | str, None]:
    """Yield a list's items, the oldest first, counted from the end that does not grow."""
    done = 0
    while True:
        start, stop = (-done - _AT_ONCE, -done - 1) if newest_first else (done, done + _AT_ONCE - 1)
        found = await redis.lrange(key, start, stop)
        for item in reversed(found) if newest_first else found:
            yield item
        done += len(found)
        if len(found) < _AT_ONCE:
            return


def _escaped(prefix: str) -> str:
    return re.sub(r"([*?\[\]\\])", r"\\\1", prefix) + "*"
