"""The store as a service: it answers, it fails aloud, it can be closed, it works from any event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from convmem.exceptions import StoreUnavailable
from convmem.stores.base import Head, Health, Lease, Store
from convmem.testing.writer import LONG, Writer

FAST = 10.0
"""Seconds within which a store that cannot be reached has to say so."""


class ServingClauses:
    """Clauses on checking, failing and closing."""

    async def break_store(self, store: Store) -> Store | None:
        """Make the storage unreachable and return a store that would need it: this one, or another.

        Override it; only a store inside one process has nothing it could lose.
        """
        assert store.reach == "process", f"{type(self).__name__}.break_store must be overridden: {store.name} can become unavailable"
        return None

    async def test_check_answers(self, store: Store) -> None:
        """An operator sees at the start what the store is and what an acknowledged append survives."""
        health = await store.check()
        assert isinstance(health, Health)
        assert health.store == store.name
        assert all((health.location, health.durability, health.server))

    async def test_check_leaves_nothing_behind(self, store: Store) -> None:
        """A health probe every few seconds must not fill the store or touch a conversation."""
        writer = Writer(store)
        await writer.append()
        before = await store.load(writer.key)
        await store.check()
        await store.check()
        assert await store.load(writer.key) == before

    async def test_a_store_that_is_down_says_so_at_once(self, store: Store) -> None:
        """An outage is an error and never an empty history, and nobody waits for it."""
        broken = await self.break_store(store)
        if broken is None:
            return
        writer = Writer(broken)
        lease = Lease(writer.token, LONG)
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "load": lambda: broken.load(writer.key),
            "load with a lease": lambda: broken.load(writer.key, lease=lease),
            "append": writer.offer,
            "renew": lambda: broken.renew(writer.key, lease, Head()),
            "release": lambda: broken.release(writer.key, writer.token),
            "list": lambda: broken.list(writer.key.owner),
            "delete": lambda: broken.delete(writer.key),
            "check": broken.check,
        }
        for name, call in calls.items():
            async with asyncio.timeout(FAST):
                try:
                    answer = await call()
                except StoreUnavailable as error:
                    assert error.operation == name.split()[0]
                    continue
            pytest.fail(f"{name} answered {answer!r} although the store is down")
        await broken.aclose()

    async def test_closing_twice_is_a_no_op(self, open_store: Callable[[], Store]) -> None:
        """Shutdown hooks run more than once, and a store that was never used is closed too."""
        unused = open_store()
        await unused.aclose()
        await unused.aclose()
        used = open_store()
        await used.load(Writer(used).key)
        await used.aclose()
        await used.aclose()

    async def test_what_was_stored_outlives_the_object(self, open_store: Callable[[], Store]) -> None:
        """A worker that is restarted finds everything its predecessor had acknowledged."""
        async with open_store() as store:
            writer = Writer(store)
            entry = await writer.append()
        async with open_store() as store:
            assert await Writer(store, writer.key).visible() == (entry.id,)

    async def test_one_object_serves_several_event_loops(self, store: Store) -> None:
        """Test clients and sync bridges run each call in a loop of their own; the object is not bound to its first one."""
        writer = Writer(store)
        first = await writer.append()

        def elsewhere() -> str:
            return asyncio.run(self._go_on(store, writer))

        second = await asyncio.to_thread(elsewhere)
        assert await writer.visible() == (first.id, second)

    async def _go_on(self, store: Store, before: Writer) -> str:
        writer = Writer(store, before.key)
        await writer.load()
        return (await writer.append()).id
