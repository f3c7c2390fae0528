"""FaultyStore: any store, with the failures a test plants in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

from convmem.exceptions import StoreUnavailable
from convmem.stores.base import Store
from convmem.testing.passing import PassingStore, Verb


@dataclass(slots=True)
class _Fault:
    """What happens to the next calls of a verb; `times` None means all of them."""

    verb: Verb
    times: int | None
    after: bool


class FaultyStore(PassingStore):
    """A store that fails where a test says so, to see what an app does then.

    Without a planted failure it is the store it wraps::

        store = FaultyStore(MemoryStore())
        store.fail("append", times=1)      # never reaches the storage
        store.lose_answer("append")        # stored, and the answer is lost: StoreUnavailable with unknown=True

    Attributes:
        calls: The verbs that were called, in order; one is one trip to the storage.
        delay: How long every call takes at least.
    """

    name: ClassVar[str] = "faulty"

    def __init__(self, store: Store) -> None:
        """Wrap a store; closing this one closes that one."""
        super().__init__(store)
        self.calls: list[Verb] = []
        self.delay = timedelta()
        self._faults: list[_Fault] = []

    def fail(self, verb: Verb, *, times: int | None = None) -> None:
        """Let a verb raise `StoreUnavailable` before anything happened: the next `times` calls, or all until `mend`."""
        self._faults.append(_Fault(verb, times, after=False))

    def lose_answer(self, verb: Verb, *, times: int | None = 1) -> None:
        """Let a verb do its work and then raise `StoreUnavailable` with `unknown=True`."""
        self._faults.append(_Fault(verb, times, after=True))

    def mend(self) -> None:
        """Take every planted failure away."""
        self._faults.clear()
        self.delay = timedelta()

    @asynccontextmanager
    async def _call(self, verb: Verb) -> AsyncIterator[None]:
        self.calls.append(verb)
        if self.delay:
            await asyncio.sleep(self.delay.total_seconds())
        fault = self._next_fault(verb)
        if fault and not fault.after:
            raise StoreUnavailable(self.store.name, verb, "planted")
        yield
        if fault:
            raise StoreUnavailable(self.store.name, verb, "planted: the answer was lost", unknown=True)

    def _next_fault(self, verb: Verb) -> _Fault | None:
        for fault in self._faults:
            if fault.verb == verb and fault.times != 0:
                if fault.times is not None:
                    fault.times -= 1
                return fault
        return None
