"""Going through many conversations, or through one that is long: page by page, patiently."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import datetime
from hashlib import blake2b
from typing import TypeVar

from convmem.exceptions import StoreUnavailable
from convmem.keys import SessionKey
from convmem.stores.base import Listed, Log, Store

T = TypeVar("T")

PAUSES = (0.05, 0.2, 0.5, 2.0)
"""Seconds between the tries of a call the store does not answer: a job of minutes outlives a restart of seconds."""
_PAGE = 200
_PASSES = 5
_PAGE_BYTES = 2 * 2**20
_FIRST_PAGE = 8
_LARGEST_PAGE = 100


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Return what a call returns that can be repeated without harm, trying again while the store does not answer.

    Raises:
        StoreUnavailable: It does not answer the last time either.
    """
    for pause in PAUSES:
        try:
            return await call()
        except StoreUnavailable:
            await asyncio.sleep(pause)
    return await call()


async def pages(
    store: Store, owner: str | None, tenant: str | None, *, written_before: datetime | None = None
) -> AsyncGenerator[tuple[Listed, ...], None]:
    """Yield conversations as `Store.list` shows them, page after page, without the empty ones."""
    after: str | None = None
    while True:
        place = after
        page = await patiently(lambda: store.list(owner, tenant=tenant, after=place, limit=_PAGE, written_before=written_before))  # noqa: B023 - called at once
        if page.items:
            yield page.items
        after = page.after
        if after is None:
            return


async def each(store: Store, owner: str | None, tenant: str) -> AsyncGenerator[Listed, None]:
    """Yield every conversation once: also one that is written meanwhile, and so moves to a page already turned."""
    seen: set[bytes] = set()
    for _ in range(_PASSES):
        before = len(seen)
        async for items in pages(store, owner, tenant):
            for item in items:
                mark = blake2b("/".join(item.key.path).encode(), digest_size=16).digest()
                if mark not in seen:
                    seen.add(mark)
                    yield item
        if owner is None or len(seen) == before:  # a walk over several owners leaves nothing out
            return


async def newest_first(store: Store, key: SessionKey, *, before: int | None = None) -> AsyncGenerator[Log, None]:
    """Yield a conversation from its end on, page after page, at least one; a page has more turns the smaller they are.

    Each is of its own moment: whoever needs one moment compares their heads.

    Args:
        store: Where it is.
        key: The conversation.
        before: Only what stands before this position; None: all of it.
    """
    turns = _FIRST_PAGE
    while True:
        size, end = turns, before
        log = await patiently(lambda: store.load(key, turns=size, before=end))  # noqa: B023 - called at once
        yield log
        if log.size < size:
            return
        before = log.entries[0].n
        read = sum(len(stored.entry.body) for stored in log.entries) + 1
        turns = max(1, min(_LARGEST_PAGE, turns * 2, turns * _PAGE_BYTES // read))
