"""FaultyStore: any store, with the failures a test plants in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import ClassVar, Literal

from convmem.exceptions import StoreUnavailable
from convmem.keys import SessionKey
from convmem.stores.base import Appended, Entry, Head, Health, Lease, Log, Page, Store

Verb = Literal["load", "append", "renew", "release", "list", "delete", "sweep", "check"]


@dataclass(slots=True)
class _Fault:
    """What happens to the next calls of a verb; `times` None means all of them."""

    verb: Verb
    times: int | None
    after: bool


class FaultyStore(Store):
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
    reach: ClassVar[Literal["process", "host", "network"]] = "process"

    def __init__(self, store: Store) -> None:
        """Wrap a store; closing this one closes that one."""
        self.store = store
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

    async def load(
        self,
        key: SessionKey,
        *,
        turns: int | None = None,
        messages: int | None = None,
        before: int | None = None,
        turn: str | None = None,
        lease: Lease | None = None,
    ) -> Log:
        """See `Store.load`."""
        async with self._call("load"):
            return await self.store.load(key, turns=turns, messages=messages, before=before, turn=turn, lease=lease)

    async def append(self, key: SessionKey, after: Head, entry: Entry, *, ttl: timedelta | None = None, release: bool = False) -> Appended:
        """See `Store.append`."""
        async with self._call("append"):
            return await self.store.append(key, after, entry, ttl=ttl, release=release)

    async def renew(self, key: SessionKey, lease: Lease, head: Head) -> bool:
        """See `Store.renew`."""
        async with self._call("renew"):
            return await self.store.renew(key, lease, head)

    async def release(self, key: SessionKey, token: str) -> None:
        """See `Store.release`."""
        async with self._call("release"):
            await self.store.release(key, token)

    async def list(
        self,
        owner: str | None,
        *,
        tenant: str | None = "",
        after: str | None = None,
        limit: int = 50,
        written_before: datetime | None = None,
    ) -> Page:
        """See `Store.list`."""
        async with self._call("list"):
            return await self.store.list(owner, tenant=tenant, after=after, limit=limit, written_before=written_before)

    async def delete(self, key: SessionKey, *, at: Head | None = None) -> bool:
        """See `Store.delete`."""
        async with self._call("delete"):
            return await self.store.delete(key, at=at)

    async def sweep(self) -> int:
        """See `Store.sweep`."""
        async with self._call("sweep"):
            return await self.store.sweep()

    async def check(self) -> Health:
        """See `Store.check`; where, how durable and which software are those of the store inside."""
        async with self._call("check"):
            return replace(await self.store.check(), store=self.name)

    async def aclose(self) -> None:
        """Close the store inside."""
        await self.store.aclose()

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
