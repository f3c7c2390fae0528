"""What passes between PostgresStore and its statements as bytes, and what a load answers. Imports no driver."""

from __future__ import annotations

import json
from bisect import bisect_left
from datetime import timedelta
from functools import partial
from itertools import groupby
from operator import itemgetter
from struct import Struct
from typing import Any

from convmem.stores.base import Head, Holder, Lease, Log, Lookup, StoredEntry, Unread, newest_turns
from convmem.stores.packing import moment, pack_name, turn_of, unpack_entry, unpack_name

MOST = 2**31 - 2
"""The greatest position, and the longest window; one more can be counted."""
_HEAD, _TIMES, _LOOKED_UP = Struct(">4xHIIII"), Struct(">qqq"), Struct(">4xI?")
_FOUND = 255
_EXPIRED, _TAKEN, _NEWEST, _HELD, _SHORT = 1, 2, 4, 8, 16
_VALUE = itemgetter(0)


def pack(name: str) -> bytes:
    """Return a name as a column holds it; an empty one is an empty value."""
    return pack_name(name) if name else b""


def unpack(data: bytes) -> str:
    """Return the name in a column."""
    return unpack_name(data)[0] if data else ""


class Seen:
    """What one load statement saw of a conversation.

    Attributes:
        head: Where its log ends.
        is_taken: Whether the statement took the lease.
        is_newest: Whether it took it with the head that the lease row names: nobody has written unseen.
        is_short: Whether it looked at too few entries to find so many messages.
        is_complete: Whether the turn that was looked up is: nobody takes a lease for it.
        holder: Who held the conversation before.
    """

    def __init__(self, rows: list[Any]) -> None:
        """Unpack all but the entries; the rows are sorted where they are."""
        rows.sort(key=_VALUE)
        log: bytes = rows[0][0]
        flags, n, turns, start, self._low = _HEAD.unpack_from(log)
        epoch, at = unpack_name(log, _HEAD.size)
        entry, at = unpack_name(log, at)
        self.holder, self._running, self._remaining = "", 0, 0
        if flags & _HELD:
            self.holder, at = unpack_name(log, at)
            now, since, until = _TIMES.unpack_from(log, at)
            self._running, self._remaining = now - since, until - now
            at += _TIMES.size
        pinned, deleted, ended = json.loads(log[at:]) if at < len(log) else (None, None, ())
        self.head = Head(epoch, n, entry, turns, start, tuple(pinned) if pinned else ())
        self._expired, self.is_taken, self.is_newest = flags & _EXPIRED != 0, flags & _TAKEN != 0, flags & _NEWEST != 0
        self.is_short = flags & _SHORT != 0
        self._deleted, self._ended = deleted, frozenset([unpack(bytes.fromhex(each)) for each in ended]) if ended else frozenset()
        self._entries: list[bytes] = list(map(_VALUE, rows))
        self._found: StoredEntry | None = None
        if self._entries[-1][0] == _FOUND:
            n, self._is_visible = _LOOKED_UP.unpack_from(last := self._entries.pop())
            self._found = unpack_entry(last[_LOOKED_UP.size :], n, "")
        self.is_complete = self._found is not None and self._found.entry.closing

    def is_answer(self, token: str | None) -> bool:
        """Return whether it saw enough, and the newest; a lease that somebody else got meanwhile, or whose row it waited for, is news."""
        if self.is_short:
            return False
        if token is None or self.is_complete:
            return True
        return self.is_newest if self.is_taken else self.holder not in ("", token)

    def look_up(self, holder: str) -> Lookup:
        """Return what became of the turn, for whom nobody but `holder` held the conversation when the load began."""
        if self._found is None:
            return Lookup()
        newest, n = self._found.entry, self._found.n
        if newest.closing:
            return Lookup("complete", n, self._is_visible)
        return Lookup("running" if newest.token == holder else "interrupted", n, self._is_visible)

    def log(self, lease: Lease | None, found: Lookup | None, turns: int | None, messages: int | None) -> Log:
        """Return the answer of a load that asked for this lease."""
        deleted, holder = None if self._deleted is None else moment(self._deleted), self._holder(lease)
        if self._expired:
            head = Head(self.head.epoch, self.head.n, self.head.id, 0, self.head.n)
            return Log(head, (), (), holder, found, True, deleted, self._ended)  # noqa: FBT003
        low = bisect_left(self._entries, (self._low + 1).to_bytes(4), 1)  # what is pinned in front of the window comes first
        window, pins = self._entries[low:], self._entries[1:low]
        entries: Unread | tuple[StoredEntry, ...] = Unread(len(window), partial(self._unpacked, window)) if window else ()
        pinned = self._unpacked(pins) if pins else ()
        begins_too_early = (
            turns is not None and len(window) > turns and sum(1 for _ in groupby(turn_of(data[4:]) for data in window)) > turns
        )
        if messages is not None or begins_too_early:
            stored = (*pinned, *entries)
            entries = newest_turns(reversed(entries), turns, messages)
            pinned = tuple(each for each in stored[: len(stored) - len(entries)] if each.n in self.head.pinned)
        return Log(self.head, entries, pinned, holder, found, False, deleted, self._ended)  # noqa: FBT003

    def _holder(self, lease: Lease | None) -> Holder:
        if self.is_taken and lease:  # its own before, or new
            return Holder(lease.token, timedelta(0, 0, self._running if self.holder else 0), lease.term)
        return Holder(self.holder, timedelta(0, 0, self._running), timedelta(0, 0, self._remaining)) if self.holder else Holder()

    def _unpacked(self, packed: list[bytes]) -> tuple[StoredEntry, ...]:
        epoch = self.head.epoch
        return tuple([unpack_entry(data[4:], int.from_bytes(data[:4]), epoch) for data in packed])
