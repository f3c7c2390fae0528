"""A process that forked after it had used a store: the child's calls go over connections of its own."""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import Callable

import pytest

from convmem.config import open_store
from convmem.stores.base import Store
from convmem.stores.postgres import PostgresStore
from convmem.testing import Writer
from tests.wheels import valkey

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="declared: this system cannot fork")


@pytest.fixture(params=["redis", "postgresql"])
def opened(request: pytest.FixtureRequest) -> Callable[[], Store]:
    """Return how to open a store over a network."""
    if request.param == "redis":
        server: valkey.Valkey = request.getfixturevalue("valkey_server")
        return lambda: open_store(server.url)
    url: str = request.getfixturevalue("postgres_url")
    return lambda: PostgresStore.at(url)


def test_a_forked_worker_shares_no_connection(opened: Callable[[], Store]) -> None:
    """Two processes on one connection read each other's replies: one's history in the other's conversation.

    The child makes an event loop of its own, as every server's worker does; that of the parent is open still, and so are its
    connections.
    """
    store, loop = opened(), asyncio.new_event_loop()
    mine, other = Writer(store), Writer(store)
    loop.run_until_complete(grow(mine, 1))
    loop.run_until_complete(grow(other, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later warn of threads that other tests left
        child = os.fork()
    if not child:
        wrong = 1
        try:
            wrong = asyncio.run(mixed_up(other))
        finally:
            os._exit(wrong)
    try:
        assert loop.run_until_complete(mixed_up(mine)) == 0
    finally:
        _, status = os.waitpid(child, 0)
        loop.run_until_complete(store.aclose())
        loop.close()
    assert os.waitstatus_to_exitcode(status) == 0


async def grow(writer: Writer, entries: int) -> None:
    """Append so many."""
    for _ in range(entries):
        await writer.append()


async def mixed_up(writer: Writer) -> int:
    """Load again and again; return whether any answer was not the conversation's own."""
    async with asyncio.timeout(20):
        for _ in range(200):
            if (await writer.store.load(writer.key)).head != writer.head:
                return 2
    return 0
