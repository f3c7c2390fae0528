"""FaultyStore: a right store until a test plants a failure in it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from convmem.exceptions import StoreUnavailable
from convmem.stores.base import Outcome, Store
from convmem.stores.memory import MemoryStore
from convmem.testing import FaultyStore, StoreContract, Writer


class TestWithoutAFault(StoreContract):
    """It keeps the whole contract, and being down is a planted failure."""

    @pytest.fixture
    def open_store(self) -> Callable[[], Store]:
        """Open a wrapper each time, on one storage."""
        inside = MemoryStore()
        return lambda: FaultyStore(inside)

    async def break_store(self, store: Store) -> Store | None:
        """Let every verb fail."""
        assert isinstance(store, FaultyStore)
        for verb in ("load", "append", "renew", "release", "list", "delete", "check"):
            store.fail(verb)
        return store


@pytest.fixture
def store() -> FaultyStore:
    """Return a faulty store without a fault."""
    return FaultyStore(MemoryStore())


@pytest.mark.asyncio
async def test_a_failed_append_stored_nothing(store: FaultyStore) -> None:
    """It never reached the storage, and says so: `unknown` is false."""
    writer = Writer(store)
    store.fail("append", times=1)
    with pytest.raises(StoreUnavailable) as raised:
        await writer.offer()
    assert not raised.value.unknown
    assert await writer.visible() == ()
    await writer.append()


@pytest.mark.asyncio
async def test_an_append_whose_answer_was_lost_is_stored(store: FaultyStore) -> None:
    """The caller cannot know; repeating the same entry tells."""
    writer = Writer(store)
    entry = writer.entry()
    store.lose_answer("append")
    with pytest.raises(StoreUnavailable) as raised:
        await writer.offer(entry)
    assert raised.value.unknown
    assert (await writer.offer(entry)).outcome is Outcome.DUPLICATE


@pytest.mark.asyncio
async def test_every_trip_is_counted(store: FaultyStore) -> None:
    """A test can say what a turn costs."""
    writer = Writer(store)
    await writer.seize()
    await writer.append(release=True)
    assert store.calls == ["load", "append"]


@pytest.mark.asyncio
async def test_a_mended_store_works(store: FaultyStore) -> None:
    """An outage ends."""
    writer = Writer(store)
    store.fail("load")
    store.delay = timedelta(milliseconds=5)
    with pytest.raises(StoreUnavailable):
        await writer.load()
    store.mend()
    await writer.load()
    assert store.delay == timedelta()
