"""Deleting many conversations: a person's, a tenant's, or what nobody has written for long.

Written once above all stores. Every conversation goes by a delete of its own, a few at a time, so nothing waits for a job; a job
that was stopped is simply run again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from convmem.access import store_at_hand
from convmem.config import Settings
from convmem.exceptions import StoreUnavailable
from convmem.identifiers import new_token
from convmem.keys import SessionKey
from convmem.recollection import RECOLLECTION
from convmem.stores.base import Head, Lease, Listed, Store
from convmem.walks import PAUSES, pages, patiently

_AT_ONCE = 8
_PASSES = 5
_MOST_FAILURES = 100
_TERM = timedelta(seconds=30)
"""Of the lease under which a conversation is pruned; how long a job that was killed holds up the one it was at."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a job has done; while it runs, what it has done so far.

    Attributes:
        deleted: How many conversations were deleted; with `dry_run`, how many would be.
        spared: How many were left because somebody was using them, or had written meanwhile.
        swept: How many old tombstones and leases of the dead were removed.
        failed: What could not be deleted, because the store did not answer; another run tries again.
        whole: Whether nothing is left to do: nothing failed, and the last look found nothing.
    """

    deleted: int = 0
    spared: int = 0
    swept: int = 0
    failed: tuple[SessionKey, ...] = ()
    whole: bool = False


Progress: TypeAlias = Callable[[Receipt], None]
"""Called with the receipt so far, after each page of conversations."""


async def delete_owner(owner: str, *, tenant: str = "", store: Store | None = None, progress: Progress | None = None) -> Receipt:
    """Delete every conversation of an owner, expired ones too, and what is written meanwhile.

    Sign the person out first: a turn that is under way stores nothing more, but one that begins after the last look would. What
    stays is a tombstone for each conversation, without content, for 30 days. What has expired is found by going through the whole
    tenant, so this takes time where there are many conversations: run it in a job.

    Args:
        owner: Such as ``user:42`` or ``conversation.owner``.
        tenant: As in the key.
        store: As in `open_conversation`.
        progress: Told from time to time how far it is.

    Raises:
        InvalidIdentity: `owner` or `tenant` has another form.
        StoreUnavailable: The store does not answer, or refuses to delete; what was deleted stays deleted, so call it again.
    """
    key = SessionKey(owner, tenant=tenant)

    def mine(items: Iterable[Listed]) -> list[SessionKey]:
        return [item.key for item in items if item.key.path[1] == key.path[1]]

    async with store_at_hand(store) as opened:
        job = _Job(opened, progress)
        for _ in range(_PASSES):
            found = await job.delete_all(owner, tenant, mine)
            if not found:
                found = await job.delete_all(None, tenant, mine)
            if not found:
                return job.finished()
        return job.unfinished()


async def delete_tenant(tenant: str, *, store: Store | None = None, progress: Progress | None = None) -> Receipt:
    """Delete every conversation of every owner of a tenant. The empty tenant is that of an app without tenants.

    Args and errors as in `delete_owner`.
    """
    SessionKey.for_user("-", tenant=tenant)  # refuses what is no tenant
    async with store_at_hand(store) as opened:
        job = _Job(opened, progress)
        for _ in range(_PASSES):
            if not await job.delete_all(None, tenant, lambda items: [item.key for item in items]):
                return job.finished()
        return job.unfinished()


async def prune(
    older_than: timedelta | None = None, *, store: Store | None = None, dry_run: bool = False, progress: Progress | None = None
) -> Receipt:
    """Delete, in every tenant, what nobody has written for so long, and what has outlived its TTL; then sweep the store.

    A conversation that is in use, or is written before its turn comes, is spared. Two of these at once do no harm.

    Args:
        older_than: None: as ``CONVMEM_RETENTION`` says; where that says none, only what has outlived its TTL.
        store: As in `open_conversation`.
        dry_run: Only count, without a look at whether anybody is using them.
        progress: Told from time to time how far it is.

    Raises:
        ValueError: `older_than` is not positive.
        ConfigurationError: The environment's settings cannot work.
        StoreUnavailable: The store does not answer; what was deleted stays deleted, so call it again.
    """
    if older_than is None:
        older_than = Settings.from_environment().retention
    elif older_than <= timedelta():
        msg = f"older_than is {older_than}; use a time above 0, such as timedelta(days=90)."
        raise ValueError(msg)
    oldest = None if older_than is None else datetime.now(UTC) - older_than
    async with store_at_hand(store) as opened:
        job = _Job(opened, progress)
        if oldest is not None:
            async for items in pages(opened, None, None, written_before=oldest):
                await job.prune(items, dry_run=dry_run)
        async for items in pages(opened, None, None):
            await job.prune([item for item in items if item.expired and (oldest is None or item.updated_at >= oldest)], dry_run=dry_run)
        if not dry_run:
            await job.sweep()
        return job.finished()


class _Job:
    """One job over one store, and its receipt."""

    def __init__(self, store: Store, progress: Progress | None) -> None:
        self._store = store
        self._progress = progress
        self._receipt = Receipt()
        self._few = asyncio.Semaphore(_AT_ONCE)

    def finished(self) -> Receipt:
        return replace(self._receipt, whole=not self._receipt.failed)

    def unfinished(self) -> Receipt:
        return replace(self._receipt, whole=False)

    async def delete_all(self, owner: str | None, tenant: str, chosen: Callable[[Iterable[Listed]], list[SessionKey]]) -> bool:
        """Delete the chosen ones among all that are listed; return whether there were any. What failed in an earlier pass is tried anew."""
        self._receipt = replace(self._receipt, failed=())
        found = False
        async for items in pages(self._store, owner, tenant):
            keys = chosen(items)
            found = found or bool(keys)
            await self._each(keys, self._delete)
        return found

    async def prune(self, items: Sequence[Listed], *, dry_run: bool) -> None:
        if dry_run:
            self._receipt = replace(self._receipt, deleted=self._receipt.deleted + len(items))
            self._tell()
            return
        listed = {item.key: item for item in items}
        await self._each(listed, lambda key: self._prune(listed[key]))

    async def sweep(self) -> None:
        while number := await patiently(self._store.sweep):
            self._receipt = replace(self._receipt, swept=self._receipt.swept + number)
            self._tell()

    async def _each(self, keys: Iterable[SessionKey], work: Callable[[SessionKey], Awaitable[bool]]) -> None:
        """Do the work for each key, a few at a time, and count how it ended."""

        async def one(key: SessionKey) -> StoreUnavailable | None:
            async with self._few:
                try:
                    deleted = await work(key)
                except StoreUnavailable as error:
                    self._receipt = replace(self._receipt, failed=(*self._receipt.failed, key))
                    return error
            done = self._receipt
            self._receipt = replace(done, deleted=done.deleted + 1) if deleted else replace(done, spared=done.spared + 1)
            return None

        errors = [error for error in await asyncio.gather(*map(one, keys)) if error]
        RECOLLECTION.forget()
        self._tell()
        if errors and len(self._receipt.failed) >= _MOST_FAILURES:
            raise errors[-1]

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(self._receipt)

    async def _delete(self, key: SessionKey) -> bool:
        """Delete whatever is there. It was there when it was listed: who comes too late finds it deleted, which is the same."""
        await patiently(lambda: self._store.delete(key))
        return True

    async def _prune(self, item: Listed) -> bool:
        """Delete what was listed, unless it is in use or was written since: under its lease, so that no turn begins meanwhile."""
        token = new_token()
        log = await patiently(lambda: self._store.load(item.key, turns=0, lease=Lease(token, _TERM)))
        if log.holder.token != token:
            return False
        deleted = False
        try:
            if log.head.revision == item.revision:
                deleted = await self._delete_at(item.key, log.head)
        finally:
            if not deleted:
                with suppress(StoreUnavailable):  # a lease that cannot be given back runs out
                    await self._store.release(item.key, token)
        return deleted

    async def _delete_at(self, key: SessionKey, head: Head) -> bool:
        """Delete at a head. When an answer was lost, a conversation that is no longer there was deleted by us: we hold its lease."""
        unsure = False
        for pause in (*PAUSES, None):
            try:
                return await self._store.delete(key, at=head) or unsure
            except StoreUnavailable as error:
                if pause is None:
                    raise
                unsure = unsure or error.unknown
                await asyncio.sleep(pause)
        raise AssertionError
