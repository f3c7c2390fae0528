"""Where the workers of the fault tests meet: one line for each store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from tests.faults.deployments import DEPLOYMENTS, Deployment, a_postgres, started
from tests.wheels import valkey
from tests.wheels.postgres import PostgresWheel


@asynccontextmanager
async def _sqlite(path: Path, wheel: PostgresWheel | None = None) -> AsyncIterator[str]:
    yield f"sqlite:///{path}/convmem.db?busy_timeout=30s"


@asynccontextmanager
async def _redis(path: Path, wheel: PostgresWheel | None = None) -> AsyncIterator[str]:
    with valkey.folder() as folder, valkey.server(Path(folder)) as server:
        yield server.url


@asynccontextmanager
async def _cluster(path: Path, wheel: PostgresWheel | None = None) -> AsyncIterator[str]:
    with started(valkey.Cluster) as cluster:
        yield f"{cluster.url}?durability=replicas"


@asynccontextmanager
async def _sentinel(path: Path, wheel: PostgresWheel | None = None) -> AsyncIterator[str]:
    with started(valkey.Sentinels) as sentinels:
        yield f"{sentinels.url}?durability=replicas"


@asynccontextmanager
async def _postgresql(path: Path, wheel: PostgresWheel | None = None) -> AsyncIterator[str]:
    with a_postgres(wheel) as server:
        yield server.url(query="?unsafe=allow&timeout=30s")


PLACES: dict[str, Callable[..., AbstractAsyncContextManager[str]]] = {
    "sqlite": _sqlite,
    "redis": _redis,
    "postgresql": _postgresql,
    "redis-cluster": _cluster,
    "redis-sentinel": _sentinel,
}


@pytest_asyncio.fixture(params=PLACES)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """Return the URL of each kind of store in turn, empty, its servers running."""
    async with PLACES[request.param](tmp_path, wheel=_wheel(request)) as url:
        yield url


def _wheel(request: pytest.FixtureRequest) -> PostgresWheel | None:
    """Return the wheel the whole session shares, where it is needed."""
    return request.getfixturevalue("postgres_wheel") if request.param == "postgresql" else None


@pytest.fixture
def smallest(tmp_path: Path) -> str:
    """Return the URL of the store that needs no server, for twins: what they break is the same on all."""
    return f"sqlite:///{tmp_path}/convmem.db?busy_timeout=30s"


@pytest_asyncio.fixture(params=DEPLOYMENTS)
async def deployment(request: pytest.FixtureRequest) -> AsyncIterator[Deployment]:
    """Return each store with a server in turn, behind a proxy."""
    async with DEPLOYMENTS[request.param](wheel=_wheel(request)) as deployment:
        yield deployment


@pytest_asyncio.fixture
async def small_deployment() -> AsyncIterator[Deployment]:
    """Return the store whose server starts fastest, for twins: what they break is the same on all."""
    async with DEPLOYMENTS["redis"]() as deployment:
        yield deployment


@pytest_asyncio.fixture
async def forgetful_deployment() -> AsyncIterator[Deployment]:
    """Return a store whose server keeps nothing, for twins."""
    async with DEPLOYMENTS["redis"](durable=False) as deployment:
        yield deployment
