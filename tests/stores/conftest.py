"""The stores under test: one line each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from convmem.stores.base import Store
from convmem.stores.memory import MemoryStore
from convmem.stores.sqlite import SQLiteStore


class Backend(NamedTuple):
    """A storage: how to open a store object on it, and one that cannot reach its own."""

    open: Callable[[], Store]
    unreachable: Callable[[], Store | None]


def _memory(_: Path) -> Backend:
    store = MemoryStore()
    return Backend(lambda: store, lambda: None)


STORES: dict[str, Callable[[Path], Backend]] = {
    "memory": _memory,
    "sqlite": lambda path: Backend(lambda: SQLiteStore(path / "convmem.db"), lambda: SQLiteStore(path / "nowhere" / "convmem.db")),
}


@pytest.fixture(params=STORES)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """Return each storage in turn, empty."""
    return STORES[request.param](tmp_path)
