"""StoreContract: the storage contract as tests, for whoever writes a store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from convmem.stores.base import Store
from convmem.testing.clauses.addressing import AddressingClauses
from convmem.testing.clauses.appending import AppendingClauses, OutcomeOrderClauses
from convmem.testing.clauses.deleting import DeletingClauses
from convmem.testing.clauses.expiring import ExpiringClauses
from convmem.testing.clauses.forking import ForkingClauses
from convmem.testing.clauses.leasing import LeasingClauses
from convmem.testing.clauses.listing import ListingClauses
from convmem.testing.clauses.reading import ReadingClauses
from convmem.testing.clauses.serving import ServingClauses
from convmem.testing.clauses.turns import TurnClauses


@pytest.mark.asyncio
class StoreContract(
    ReadingClauses,
    AddressingClauses,
    AppendingClauses,
    OutcomeOrderClauses,
    TurnClauses,
    LeasingClauses,
    DeletingClauses,
    ExpiringClauses,
    ListingClauses,
    ForkingClauses,
    ServingClauses,
):
    """Every promise of `convmem.stores.base`, one test each. A store that passes may stand behind the middleware.

    Subclass it and give it one fixture, `open_store`: a function that returns a new `Store` object on the same storage each
    time it is called. Override `break_store` as well, unless the store lives in one process. Every test writes under an
    owner of its own, so one storage may serve them all::

        class TestMyStore(StoreContract):
            @pytest.fixture
            def open_store(self, tmp_path):
                return lambda: MyStore(tmp_path / "conversations")

            async def break_store(self, store):
                return MyStore("/nowhere/at/all")
    """

    @pytest_asyncio.fixture
    async def store(self, open_store: Callable[[], Store]) -> AsyncIterator[Store]:
        """One object of the store under test, closed afterwards."""
        async with open_store() as store:
            yield store
