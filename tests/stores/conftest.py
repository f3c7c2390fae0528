"""The stores under test: one line each."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest

from convmem.config import open_store
from convmem.stores.base import Store
from convmem.stores.memory import MemoryStore
from convmem.stores.postgres import PostgresStore
from convmem.stores.sqlite import SQLiteStore
from tests.servers.processes import HOST, free_port
from tests.wheels import valkey


class Backend(NamedTuple):
    """A storage: how to open a store object on it, and one that cannot reach its own."""

    open: Callable[[], Store]
    unreachable: Callable[[], Store | None]


class Place:
    """What a storage may be made of: a folder of the test's own, and the servers that run for the whole session."""

    def __init__(self, request: pytest.FixtureRequest, path: Path) -> None:
        self.request, self.path = request, path

    def server(self, name: str) -> valkey.Valkey | valkey.Cluster | valkey.Sentinels:
        running: valkey.Valkey | valkey.Cluster | valkey.Sentinels = self.request.getfixturevalue(name)
        return running


def _memory(_: Place) -> Backend:
    store = MemoryStore()
    return Backend(lambda: store, lambda: None)


def _sqlite(place: Place) -> Backend:
    return Backend(lambda: SQLiteStore(place.path / "convmem.db"), lambda: SQLiteStore(place.path / "nowhere" / "convmem.db"))


def _redis(fixture: str, nowhere: str) -> Callable[[Place], Backend]:
    def backend(place: Place) -> Backend:
        url = place.server(fixture).url
        return Backend(lambda: open_store(url), lambda: open_store(f"{nowhere}?connect_timeout=0.2s"))

    return backend


def _postgres(place: Place) -> Backend:
    url: str = place.request.getfixturevalue("postgres_url")
    nowhere = f"postgresql://postgres@{HOST}:{free_port()}/postgres"
    return Backend(lambda: PostgresStore.at(url), lambda: PostgresStore.at(nowhere, timeout=timedelta(seconds=0.5)))


STORES: dict[str, Callable[[Place], Backend]] = {
    "memory": _memory,
    "sqlite": _sqlite,
    "redis": _redis("valkey_server", f"redis://{HOST}:1"),
    "redis-cluster": _redis("valkey_cluster", f"redis+cluster://{HOST}:1,{HOST}:2"),
    "redis-sentinel": _redis("valkey_sentinels", f"redis+sentinel://{HOST}:1,{HOST}:2/conversations"),
    "postgresql": _postgres,
}


@pytest.fixture(params=STORES)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """Return each storage in turn; one that tests share is told apart by their owners."""
    return STORES[request.param](Place(request, tmp_path))
