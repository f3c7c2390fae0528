"""PassingStore: a store that does nothing but pass every call on; what a test wants to see or to break is one method."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from datetime import datetime, timedelta
from typing import ClassVar, Literal

from convmem.keys import SessionKey
from convmem.stores.base import Appended, Entry, Head, Health, Lease, Log, Page, Store

Verb = Literal["load", "append", "renew", "release", "list", "delete", "sweep", "check"]


class PassingStore(Store):
    """Any store, with `_call` around each call to it.

    Attributes:
        store: The store inside.
    """

    name: ClassVar[str] = "passing"
    reach: ClassVar[Literal["process", "host", "network"]] = "process"

    def __init__(self, store: Store) -> None:
        """Wrap a store; closing this one closes that one."""
        self.store = store

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

    def _call(self, verb: Verb) -> AbstractAsyncContextManager[None]:  # noqa: ARG002 - for subclasses
        """Surround one call; nothing, unless a subclass says so."""
        return nullcontext()
