"""The signing key that is kept in the store: one for all workers, out of every owner's reach."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from convmem import MemoryStore, SQLiteStore
from convmem.key_record import read_keys, read_or_make_keys


@pytest.mark.asyncio
async def test_workers_that_start_at_once_agree_on_one_key(tmp_path: Path) -> None:
    """Two keys would make each worker reject the visitors of the other."""
    stores = [SQLiteStore(tmp_path / "convmem.db") for _ in range(8)]
    made = await asyncio.gather(*(read_or_make_keys(store) for store in stores))
    assert len({tuple(keys) for keys in made}) == 1
    assert len(made[0][0]) == 32
    assert await read_keys(stores[3]) == made[0]
    for store in stores:
        await store.aclose()


@pytest.mark.asyncio
async def test_reading_makes_no_key() -> None:
    """A look at the record must not write."""
    assert await read_keys(MemoryStore()) == []
