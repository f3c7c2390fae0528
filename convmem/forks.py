"""Copying what a conversation held at some place into another one of the same owner: written once, above all stores."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import replace
from datetime import timedelta

from convmem.exceptions import ConversationConflict, ConversationGone, StoreUnavailable, UnknownConversation, UnknownRevision
from convmem.identifiers import new_token
from convmem.keys import SessionKey
from convmem.messages import Item, decode_body
from convmem.stores.base import Entry, Head, Log, Outcome, Store, StoredEntry
from convmem.turns import entry_after
from convmem.walks import newest_first, patiently

_ATTEMPTS = 3


async def copy(store: Store, source: SessionKey, target: SessionKey, at: str | int | None, *, ttl: timedelta | None = None) -> None:
    """Store in `target` the entries that were in sight in `source` at some place.

    They keep their ids: whoever copies the same again goes on where the first try ended, and stores nothing twice. A copy that
    fails is taken away again, unless something was there before. No more than a page is in memory, however long the source is.

    Args:
        store: Of both.
        source: What is copied.
        target: The address of the copy.
        at: A revision, or a position. None is the end; then nothing may be at `target`, for the end moves.
        ttl: Of the copy.

    Raises:
        UnknownConversation: There is no source.
        UnknownRevision: The source has no such place, or what was there was cleared.
        ConversationConflict: Something else is at `target`.
        ConversationGone: The source was deleted meanwhile.
        StoreUnavailable: The store did not answer.
    """
    found = await _Source.at(store, source, at)
    for _ in range(_ATTEMPTS):
        there = (await patiently(lambda: store.load(target, turns=0))).head
        if there.epoch and at is None:
            break
        made = _Copy(store, target, there, ttl)
        try:
            async with aclosing(found.entries()) as entries:
                if await made.write(entries):
                    return
        except BaseException:
            if not there.epoch:
                await made.take_away()
            raise
    msg = "Another conversation has this session id; leave session_id out for a fresh one."
    raise ConversationConflict(msg)


class _Source:
    """What was in sight at a place, page by page. Nobody adds to it; a turn that goes on meanwhile is no part of it."""

    def __init__(self, store: Store, key: SessionKey) -> None:
        self._store, self._key = store, key
        self._pages: list[tuple[int, int]] = []
        self._oldest = Log()

    @classmethod
    async def at(cls, store: Store, key: SessionKey, at: str | int | None) -> _Source:
        """Look for the borders of the pages, from the end on. Errors as in `copy`."""
        source, place = cls(store, key), _place(at)
        async with aclosing(newest_first(store, key, before=None if place is None else place.n + 1)) as logs:
            async for log in logs:
                source._add(log, place)
        return source

    def _add(self, log: Log, place: Head | None) -> None:
        if self._pages:
            self._need_same(log)
            before = self._oldest.entries[0].n
        else:
            _check(log, place)
            before = _end(log, place) + 1
        self._pages.append((before, log.size))
        self._oldest = log

    def _need_same(self, log: Log) -> None:
        """Need the life and the beginning that the first page had; between them nothing is ever rewritten."""
        if log.head.epoch != self._oldest.head.epoch or log.expired:
            msg = "The conversation was deleted while it was copied."
            raise ConversationGone(msg)
        if log.head.start != self._oldest.head.start:
            raise UnknownRevision(_CLEARED)

    async def entries(self) -> AsyncGenerator[StoredEntry, None]:
        """Yield the entries, the oldest first."""
        log, last = self._oldest, 0
        for i, (before, size) in enumerate(reversed(self._pages)):
            if i:
                log = await patiently(lambda: self._store.load(self._key, turns=size, before=before))  # noqa: B023 - called at once
                self._need_same(log)
            for stored in log.entries:
                if last < stored.n < before:  # a page reaches further back once a turn of it was superseded
                    last = stored.n
                    yield stored


class _Copy:
    """The entries as they are to stand in the copy: positions dense from 1, and what says where they stood said anew."""

    def __init__(self, store: Store, key: SessionKey, there: Head, ttl: timedelta | None) -> None:
        self._store, self._key, self._there, self._ttl = store, key, there, ttl
        self._epoch = there.epoch or new_token()
        self._head = there

    async def write(self, entries: AsyncIterator[StoredEntry]) -> bool:
        """Append what is not there yet; return False when something else is, or came in between."""
        place, turn, is_counted = Head(), "", False
        async for stored in entries:
            entry = stored.entry
            made, is_counted = entry_after(
                place,
                _items(stored),
                entry.body,
                id=entry.id,
                turn=entry.turn,
                token=entry.token,
                epoch=self._epoch,
                closing=entry.closing,
                counted=is_counted and entry.turn == turn,
                format=entry.format,
                key_id=entry.key_id,
            )
            made, turn = replace(made, count=entry.count), entry.turn
            place = made.head_at(place.n + 1)
            if place.n == self._there.n and place.id != self._there.id:
                return False
            if place.n > self._there.n and not await self._append(made):
                return False
            self._head = place
        if self._there.n <= place.n or not place.n:
            return True
        log = await patiently(lambda: self._store.load(self._key, turns=1, before=place.n + 1))
        return bool(log.entries) and log.entries[-1].entry.id == place.id

    async def _append(self, entry: Entry) -> bool:
        after = self._head
        appended = await patiently(lambda: self._store.append(self._key, after, entry, ttl=self._ttl))
        return appended.outcome in {Outcome.STORED, Outcome.DUPLICATE}

    async def take_away(self) -> None:
        """Delete what was stored, unless somebody went on with it."""
        with suppress(StoreUnavailable):
            await self._store.delete(self._key, at=self._head)


def _place(at: str | int | None) -> Head | None:
    if at is None:
        return None
    place = Head.of_revision(at) if isinstance(at, str) else Head(n=at)
    if place is None or place.n < 0:
        msg = "at= is a revision as `conversation.revision` gives it, or the position of an entry, 0 or more."
        raise UnknownRevision(msg)
    return place


def _check(log: Log, place: Head | None) -> None:
    """Need a conversation, and the place in it."""
    if log.expired or not log.head.epoch:
        msg = "There is no conversation to copy."
        raise UnknownConversation(msg)
    if place is None or place.n == 0:
        return
    other = log.entries[-1].entry.id if log.entries and log.entries[-1].n == place.n else place.id
    if place.n > log.head.n or place.epoch not in {"", log.head.epoch} or place.id not in {"", other}:
        msg = "The conversation has no such place: it is of another one, or of a life that a delete has ended."
        raise UnknownRevision(msg)
    if place.n < log.head.start:
        raise UnknownRevision(_CLEARED)


_CLEARED = "What stood at this place was cleared since."


def _end(log: Log, place: Head | None) -> int:
    """Return the last position to copy: without a turn that still runs."""
    if log.entries and log.turns[-1].state == "running":
        return log.turns[-1].entries[0].n - 1
    return log.head.n if place is None else place.n


def _items(stored: StoredEntry) -> list[tuple[Item, bool]]:
    """Return what an entry says; the last of it knows whether the entry is to be loaded with every window."""
    try:
        items = decode_body(stored.entry.body)
    except ValueError:
        return []
    pins = stored.n in stored.entry.pinned
    return [(item, pins and item is items[-1]) for item in items]
