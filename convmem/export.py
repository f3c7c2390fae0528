"""Conversations as lines of JSON: a person's, a tenant's, or one.

One JSON object a line (NDJSON), in UTF-8; each says in ``type`` what it is. ``docs/reference/export.md`` has the format in words.

``export``
    The first line: ``version``, ``exported_at``, ``tenant``, and ``owner`` unless it is a whole tenant's.
``conversation``
    Its address, its times, and the ``revision`` it is exported at.
``entry``
    One batch of messages where it stood, oldest first: ``messages`` is the stored body itself, edits included. One that cannot be
    decoded has ``error`` and the ``body`` in base64 instead.
``conversation_end``
    How many entries and messages there were, and which positions could not be decoded.
``end``
    The last line; a file without it is not whole.
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from tempfile import SpooledTemporaryFile
from typing import Any

from convmem.access import store_at_hand
from convmem.keys import SessionKey
from convmem.messages import Message, decode_body
from convmem.sources.exports import FORMAT, encoded
from convmem.stores.base import Head, Listed, LoadedTurn, Log, Store
from convmem.walks import each, newest_first, patiently

_IN_MEMORY = 8 * 2**20
_TRIES = 3


async def export_owner(owner: str, *, tenant: str = "", store: Store | None = None) -> AsyncGenerator[bytes, None]:
    """Yield an export of all conversations of an owner, some lines at a time: for a file, or for a ``StreamingResponse``.

    It has what its owner could read: not what was cleared, superseded or has expired. Each conversation is as it was at one moment,
    also while somebody writes to it. Memory is bounded: a long conversation waits in a temporary file for its turn.

    Args:
        owner: Such as ``user:42`` or ``conversation.owner``.
        tenant: As in the key.
        store: As in `open_conversation`.

    Raises:
        InvalidIdentity: `owner` or `tenant` has another form.
        StoreUnavailable: The store does not answer; what was yielded so far has no last line.
    """
    SessionKey(owner, tenant=tenant)
    async with store_at_hand(store) as opened:
        async for line in _export(opened, each(opened, owner, tenant), {"tenant": tenant, "owner": owner}):
            yield line


async def export_tenant(tenant: str, *, store: Store | None = None) -> AsyncGenerator[bytes, None]:
    """Yield an export of all conversations of a tenant; the empty one is that of an app without tenants.

    Args and errors as in `export_owner`.
    """
    SessionKey.for_user("-", tenant=tenant)  # refuses what is no tenant
    async with store_at_hand(store) as opened:
        async for line in _export(opened, each(opened, None, tenant), {"tenant": tenant}):
            yield line


async def export_conversation(key: SessionKey, *, store: Store | None = None) -> AsyncGenerator[bytes, None]:
    """Yield an export of one conversation; one without a conversation when there is none.

    Args and errors as in `export_owner`.
    """
    async with store_at_hand(store) as opened:
        async for line in _export(opened, _only(each(opened, key.owner, key.tenant), key), {"tenant": key.tenant, "owner": key.owner}):
            yield line


async def _only(items: AsyncIterator[Listed], key: SessionKey) -> AsyncGenerator[Listed, None]:
    async for item in items:
        if item.key == key:
            yield item
            return


async def _export(store: Store, items: AsyncIterator[Listed], whose: dict[str, str]) -> AsyncGenerator[bytes, None]:
    yield _line("export", version=FORMAT, exported_at=datetime.now(UTC).isoformat(), **whose)
    conversations = 0
    totals = _Counts()
    async for item in items:
        with SpooledTemporaryFile(_IN_MEMORY) as file:
            reading = await _read(store, item.key, _Pages(file))
            if not reading.head.epoch:  # deleted, or expired, since it was listed
                continue
            yield _line(
                "conversation",
                tenant=item.key.tenant,
                owner=item.key.owner,
                session_id=item.key.session_id,
                created_at=item.created_at.isoformat(),
                updated_at=item.updated_at.isoformat(),
                revision=reading.head.revision,
            )
            async for lines in reading.pages.oldest_first():
                yield lines
            yield _line("conversation_end", **reading.counts.facts())
        conversations += 1
        totals.add(reading.counts)
    yield _line("end", conversations=conversations, entries=totals.entries, messages=totals.messages, corrupt=len(totals.corrupt))


@dataclass(slots=True)
class _Counts:
    entries: int = 0
    messages: int = 0
    corrupt: list[int] = field(default_factory=list)

    def add(self, other: _Counts) -> None:
        self.entries += other.entries
        self.messages += other.messages
        self.corrupt += other.corrupt

    def facts(self) -> dict[str, Any]:
        return {"entries": self.entries, "messages": self.messages, "corrupt": sorted(self.corrupt)}


class _Pages:
    """The lines of a conversation, put down the newest page first and taken up the oldest first."""

    def __init__(self, file: SpooledTemporaryFile[bytes]) -> None:
        self._file = file
        self._ends: list[int] = []

    async def put(self, lines: bytes) -> None:
        end = (self._ends[-1] if self._ends else 0) + len(lines)
        if end <= _IN_MEMORY:
            self._file.write(lines)
        else:  # it is on the disk now
            await asyncio.to_thread(self._file.write, lines)
        self._ends.append(end)

    def clear(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._ends.clear()

    async def oldest_first(self) -> AsyncGenerator[bytes, None]:
        starts = [0, *self._ends[:-1]]
        for start, end in zip(reversed(starts), reversed(self._ends), strict=True):
            yield self._take(start, end) if self._ends[-1] <= _IN_MEMORY else await asyncio.to_thread(self._take, start, end)

    def _take(self, start: int, end: int) -> bytes:
        self._file.seek(start)
        return self._file.read(end - start)


@dataclass(slots=True)
class _Reading:
    """One conversation at one head."""

    head: Head
    pages: _Pages
    counts: _Counts


async def _read(store: Store, key: SessionKey, pages: _Pages) -> _Reading:
    """Read a conversation as it was at one head.

    A head that moves while pages are read may have taken away from the pages that were still to come, as a retry does with what it
    supersedes: then it is read anew. One that never rests is read in one piece, which is one view of one moment whatever its size.
    """
    for _ in range(_TRIES):
        reading = await _read_paged(store, key, pages)
        if reading is not None:
            return reading
    pages.clear()
    log, counts = await patiently(lambda: store.load(key)), _Counts()
    await pages.put(_encoded(log, counts))
    return _Reading(_living(log), pages, counts)


async def _read_paged(store: Store, key: SessionKey, pages: _Pages) -> _Reading | None:
    """Return the conversation, read a page at a time from its end; None when its head moved on the way."""
    pages.clear()
    head: Head | None = None
    counts = _Counts()
    async with aclosing(newest_first(store, key)) as logs:
        async for log in logs:
            if head is not None and not _living(log).same(head):
                return None
            head = _living(log)
            await pages.put(_encoded(log, counts))
    return _Reading(head or Head(), pages, counts)


def _living(log: Log) -> Head:
    return Head() if log.expired else log.head


def _encoded(log: Log, counts: _Counts) -> bytes:
    return b"".join(line for turn in log.turns for line in _entries(turn, counts))


def _entries(turn: LoadedTurn, counts: _Counts) -> Iterator[bytes]:
    for stored in turn.entries:
        entry = stored.entry
        facts = {
            "position": stored.n,
            "id": entry.id,
            "turn": turn.id,
            "state": turn.state,
            "closing": entry.closing,
            "stored_at": stored.stored_at.isoformat(),
            "format": entry.format,
            **({"key_id": entry.key_id} if entry.key_id else {}),
        }
        counts.entries += 1
        try:
            items = decode_body(entry.body)
            document = json.loads(entry.body, parse_constant=_refuse)
            line = _line("entry", **facts, messages=document)
        except ValueError as error:
            counts.corrupt.append(stored.n)
            yield _line("entry", **facts, error=str(error), body=b64encode(entry.body).decode())
            continue
        counts.messages += sum(isinstance(item, Message) for item in items)
        yield line


def _refuse(constant: str) -> float:
    msg = f"{constant} is no JSON"
    raise ValueError(msg)


def _line(kind: str, **facts: Any) -> bytes:
    """Return one line."""
    return encoded({"type": kind, **facts}) + b"\n"
