"""The stores under test: one line each."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest

from convmem.stores.base import Store
from convmem.stores.memory import MemoryStore
from convmem.stores.postgres import PostgresStore
from convmem.stores.sqlite import SQLiteStore
from tests.servers.processes import HOST, free_port


class Backend(NamedTuple):
    """A storage: how to open a store object on it, and one that cannot reach its own."""

    open: Callable[[], Store]
    unreachable: Callable[[], Store | None]


def _memory(_: pytest.FixtureRequest) -> Backend:
    store = MemoryStore()
    return Backend(lambda: store, lambda: None)


def _sqlite(request: pytest.FixtureRequest) -> Backend:
    path: Path = request.getfixturevalue("tmp_path")
    return Backend(lambda: SQLiteStore(path / "convmem.db"), lambda: SQLiteStore(path / "nowhere" / "convmem.db"))


def _postgres(request: pytest.FixtureRequest) -> Backend:
    url: str = request.getfixturevalue("postgres_url")
    nowhere = f"postgresql://postgres@{HOST}:{free_port()}/postgres"
    return Backend(lambda: PostgresStore.at(url), lambda: PostgresStore.at(nowhere, timeout=timedelta(seconds=0.5)))


STORES: dict[str, Callable[[pytest.FixtureRequest], Backend]] = {
    "memory": _memory,
    "sqlite": _sqlite,
    "postgresql": _postgres,
}


@pytest.fixture(params=STORES)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Return each storage in turn; one that tests share is told apart by their owners."""
    return STORES[request.param](request)
