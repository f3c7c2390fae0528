"""Where the workers of the fault tests meet: one line for each store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio


@asynccontextmanager
async def _sqlite(path: Path) -> AsyncIterator[str]:
    yield f"sqlite:///{path}/convmem.db?busy_timeout=30s"


PLACES: dict[str, Callable[[Path], AbstractAsyncContextManager[str]]] = {
    "sqlite": _sqlite,
}


@pytest_asyncio.fixture(params=PLACES)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """Return the URL of each kind of store in turn, empty, its servers running."""
    async with PLACES[request.param](tmp_path) as url:
        yield url


@pytest.fixture
def smallest(tmp_path: Path) -> str:
    """Return the URL of the store that needs no server, for twins: what they break is the same on all."""
    return f"sqlite:///{tmp_path}/convmem.db?busy_timeout=30s"
