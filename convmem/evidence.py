"""Evidence that a store lost what it had acknowledged: what this worker saw, and what the client says it saw. No guessing."""

from __future__ import annotations

from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from itertools import chain

from convmem.exceptions import HistoryExpired, HistoryLost
from convmem.identifiers import time_of
from convmem.keys import SessionKey
from convmem.stores.base import TOMBSTONE_LIFE, Head, Log

_REMEMBERED = 4096


class Evidence:
    """The newest heads this worker has seen acknowledged, of the conversations it served last.

    Bounded; shared by all requests of a worker. Evidence is spent by reporting it, so that nobody is locked out: whoever reports
    an error of `against` calls `forget`.
    """

    def __init__(self, ttl: timedelta | None = None) -> None:
        """Know after which age a missing history has expired rather than been lost; None: never."""
        self._ttl = ttl
        self._heads: OrderedDict[tuple[str, str, str], Head] = OrderedDict()

    def remember(self, key: SessionKey, head: Head) -> None:
        """Keep a head the store has acknowledged."""
        self._heads[key.path] = head
        self._heads.move_to_end(key.path)
        if len(self._heads) > _REMEMBERED:
            self._heads.popitem(last=False)

    def forget(self, key: SessionKey) -> None:
        """Drop what is known of a conversation: it has been deleted, or its loss was reported."""
        self._heads.pop(key.path, None)

    def known(self, key: SessionKey) -> Head | None:
        """Return the newest head acknowledged so far, to be asked for before a log is loaded; None where there is none."""
        return self._heads.get(key.path)

    def against(self, key: SessionKey, log: Log, known: Head | None, claimed: Head | None = None) -> HistoryLost | HistoryExpired | None:
        """Return the error a loaded log deserves; None when nothing speaks against it.

        Args:
            key: The conversation.
            log: What the store says.
            known: What `known` said before the log was loaded: an entry acknowledged while it was being read need not be in it.
            claimed: The head the client says it saw.
        """
        for head in (known if key.path in self._heads else None, claimed):
            if head is None or (head.same(log.head) and not log.expired):
                continue
            error = self._verdict(head, log)
            if error is not None:
                return error
        return None

    def _verdict(self, seen: Head, log: Log) -> HistoryLost | HistoryExpired | None:
        age = datetime.now(UTC) - (time_of(seen.id) or datetime.now(UTC))
        if not seen.epoch or seen.epoch in log.ended or age > TOMBSTONE_LIFE:
            return None
        revision = log.head.revision
        same_life = seen.epoch == log.head.epoch
        if log.expired or (not same_life and self._ttl is not None and age > self._ttl):
            return HistoryExpired("The conversation outlived its time to live; it starts anew with the next request.", revision=revision)
        if not same_life:
            return HistoryLost(f"The store had acknowledged {seen.n} entries and now has another history.", revision=revision)
        if log.head.n < seen.n:
            return HistoryLost(f"The store had acknowledged {seen.n} entries and now has {log.head.n}.", revision=revision)
        if _id_at(seen.n, log) in (seen.id, None):
            return None
        return HistoryLost(f"The store had acknowledged another entry at {seen.n} than the one that is there now.", revision=revision)


def _id_at(n: int, log: Log) -> str | None:
    """Return the id of the entry at a position; None when the load has not brought it: then nothing speaks against it."""
    if n == log.head.n:
        return log.head.id
    for stored in chain(reversed(log.entries), log.pinned):
        if stored.n == n:
            return stored.entry.id
    return None
