"""Where the adapters are tried: each store that people have behind them."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from convmem import Store, conversations
from tests.stores.conftest import STORES as EVERY, Place

STORES = ("memory", "sqlite", "redis", "postgresql")
OWNERS = ("user:ada", "user:bob")


@pytest.fixture(params=STORES)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Return each in turn, with nothing of these owners: a server is shared by all tests."""
    store = EVERY[request.param](Place(request, tmp_path)).open()
    asyncio.run(_empty(store))
    yield store
    asyncio.run(store.aclose())


async def _empty(store: Store) -> None:
    for owner in OWNERS:
        for item in (await conversations(owner, store=store, limit=1000)).items:
            await store.delete(item.key)
