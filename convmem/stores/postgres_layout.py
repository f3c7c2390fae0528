"""What passes between PostgresStore and its statements as bytes, and what a load answers. Imports no driver."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from itertools import groupby
from operator import attrgetter, itemgetter
from struct import Struct
from typing import Any

from convmem.stores.base import Head, Holder, Lease, Log, Lookup, StoredEntry, newest_turns
from convmem.stores.packing import Window, moment, pack_name, turn_of, unpack_entry, unpack_name

MOST = 2**31 - 2
"""The greatest position, and the longest window; one more can be counted."""
_FACTS, _TIMES = Struct(">HIII"), Struct(">qqq")
_EXPIRED, _TAKEN, _NEWEST, _HELD, _SHORT = 1, 2, 4, 8, 16
_POSITION = attrgetter("n")


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
        holder: Who held the conversation before.
    """

    def __init__(self, rows: list[Any]) -> None:
        """Unpack all but the entries."""
        first = next(row for row in rows if row["log"] is not None)
        log: bytes = first["log"]
        flags, n, turns, start = _FACTS.unpack_from(log)
        epoch, at = unpack_name(log, _FACTS.size)
        entry, at = unpack_name(log, at)
        self.holder, self._running, self._remaining = "", 0, 0
        if flags & _HELD:
            self.holder, at = unpack_name(log, at)
            now, since, until = _TIMES.unpack_from(log, at)
            self._running, self._remaining = now - since, until - now
            at += _TIMES.size
        pinned, deleted, ended = json.loads(log[at:]) if at < len(log) else ((), None, None)
        self.head = Head(epoch, n, entry, turns, start, tuple(pinned or ()))
        self._expired, self.is_taken, self.is_newest = flags & _EXPIRED != 0, flags & _TAKEN != 0, flags & _NEWEST != 0
        self.is_short = flags & _SHORT != 0
        self._deleted, self._ended = deleted, frozenset(unpack(bytes.fromhex(each)) for each in ended or ())
        self._first, self._rows = first, rows

    @property
    def is_complete(self) -> bool:
        """Whether the turn that was looked up is: nobody takes a lease for it."""
        found = self._first.get("found")
        return found is not None and unpack_entry(found, 0, "").entry.closing

    def is_answer(self, token: str | None) -> bool:
        """Return whether it saw enough, and the newest; a lease that somebody else got meanwhile, or whose row it waited for, is news."""
        if self.is_short:
            return False
        if token is None or self.is_complete:
            return True
        return self.is_newest if self.is_taken else self.holder not in ("", token)

    def look_up(self, holder: str) -> Lookup:
        """Return what became of the turn, for whom nobody but `holder` held the conversation when the load began."""
        found = self._first["found"]
        if found is None:
            return Lookup()
        n, visible = self._first["found_n"], self._first["found_visible"]
        newest = unpack_entry(found, n, "").entry
        if newest.closing:
            return Lookup("complete", n, visible)
        return Lookup("running" if newest.token == holder else "interrupted", n, visible)

    def log(self, lease: Lease | None, found: Lookup | None, turns: int | None, messages: int | None) -> Log:
        """Return the answer of a load that asked for this lease."""
        deleted = None if self._deleted is None else moment(self._deleted)
        answer = partial(Log, holder=self._holder(lease), turn=found, deleted_at=deleted, ended=self._ended)
        if self._expired:
            return answer(Head(self.head.epoch, self.head.n, self.head.id, 0, self.head.n), expired=True)
        places, packed = self._entries()
        low = bisect_right(places, self._first["n"])  # what is pinned in front of the window comes first
        runs = sum(1 for _ in groupby(map(turn_of, packed[low:])))
        if messages is None and (turns is None or runs <= turns):
            pinned = tuple(map(self._unpack, packed[:low], places[:low]))
            return answer(self.head, self._window(places[low:], packed[low:]), pinned)
        stored = list(map(self._unpack, packed, places))
        entries = newest_turns(reversed(stored[low:]), turns, messages)
        pinned = tuple(each for each in stored[: len(stored) - len(entries)] if each.n in self.head.pinned)
        return answer(self.head, entries, pinned)

    def _holder(self, lease: Lease | None) -> Holder:
        if self.is_taken and lease:  # its own before, or new
            running = self._running if self.holder else 0
            return Holder(lease.token, timedelta(0, 0, running), lease.term)
        return Holder(self.holder, timedelta(0, 0, self._running), timedelta(0, 0, self._remaining)) if self.holder else Holder()

    def _entries(self) -> tuple[list[int], list[bytes]]:
        """Return the positions, in their order, and the packed entries at them."""
        places: list[int] = []
        packed: list[bytes] = []
        groups = [(row["n"], row["positions"], row["entries"]) for row in self._rows if row is not self._first]
        for n, positions, entries in sorted(groups, key=itemgetter(0)):
            places += positions or range(n, n + len(entries))
            packed += entries
        return places, packed

    def _window(self, places: list[int], packed: list[bytes]) -> Window | tuple[()]:
        if not places:
            return ()
        if places[0] == self.head.n - len(places) + 1:
            return Window(self.head, packed, ())
        return Window(self.head, (), list(_apart(places, packed)))

    def _unpack(self, data: bytes, n: int) -> StoredEntry:
        return unpack_entry(data, n, self.head.epoch)


def _apart(places: list[int], packed: list[bytes]) -> Iterator[int | bytes]:
    """Return entries as `unpack_apart` takes them, the newest first: its position in front of each that is not the next."""
    expected = 0
    for n, data in zip(reversed(places), reversed(packed), strict=True):
        if n != expected:
            yield n
        yield data
        expected = n - 1
