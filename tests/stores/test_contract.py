"""Every store keeps the whole contract."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from convmem.stores.base import Store
from convmem.testing import StoreContract

from .conftest import Backend


class TestEveryStore(StoreContract):
    """The contract, once for each line in `conftest.STORES`."""

    backend: Backend

    @pytest.fixture
    def open_store(self, backend: Backend) -> Callable[[], Store]:
        """Open objects on one storage."""
        self.backend = backend
        return backend.open

    async def break_store(self, store: Store) -> Store | None:
        """Hand out a store whose storage cannot be reached."""
        assert (store.reach == "process") == (self.backend.unreachable() is None)
        return self.backend.unreachable()
