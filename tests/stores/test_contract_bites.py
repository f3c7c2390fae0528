"""Every clause of the contract turns red for a store that breaks it: a clause that cannot fail is none."""

from __future__ import annotations

import inspect

import pytest

from convmem.stores.base import Store
from convmem.testing import StoreContract

from .bent import Bent, Planted
from .broken import BROKEN, opener

CLAUSES = [name for name, _ in inspect.getmembers(StoreContract, inspect.isfunction) if name.startswith("test_")]


class Contract(StoreContract):
    """The contract as a test of a store would subclass it, called without pytest's fixtures."""

    async def break_store(self, store: Store) -> Store | None:
        """Take the broken store for one whose storage cannot be reached."""
        return store if store.reach != "process" else await super().break_store(store)


async def run(clause: str, broken: type[Bent]) -> None:
    open_store = opener(broken)
    test = getattr(Contract(), clause)
    given = {"store": open_store(), "open_store": open_store}
    await test(**{name: given[name] for name in inspect.signature(test).parameters})


def test_every_clause_has_a_store_that_breaks_it() -> None:
    """A new clause comes with its broken twin."""
    assert sorted(BROKEN) == sorted(CLAUSES)


@pytest.mark.asyncio
@pytest.mark.parametrize("clause", CLAUSES)
async def test_a_clause_is_red_for_the_store_that_breaks_it(clause: str) -> None:
    """The clause fails, by its own assertion or by what the broken store raises, and not by an accident of the test."""
    with pytest.raises((AssertionError, pytest.fail.Exception, Planted)):
        await run(clause, BROKEN[clause])


@pytest.mark.asyncio
@pytest.mark.parametrize("clause", CLAUSES)
async def test_a_clause_is_green_for_the_store_before_it_was_bent(clause: str) -> None:
    """The twin: what the broken ones are made from keeps every clause, so each is red for its one fault."""
    await run(clause, Bent)
