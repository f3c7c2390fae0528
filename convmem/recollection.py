"""Recollection: bodies that were lately read, decoded: so that the next turn of a conversation decodes only what is new in it."""

from __future__ import annotations

import time
from collections.abc import Callable

from convmem.messages import NOTHING, Item, Message, decode_body

_MOST = 2 * 2**20
_LARGEST = 2**16
_LONG = 300.0


class Recollection:
    """Decoded bodies, found by their bytes: who has the same bytes is given the same messages, and nobody is given any without.

    It knows nothing of conversations, so it cannot be out of date. Only messages that nobody can change are kept: of text, without
    calls, metadata and extras. There are two generations of 2 MiB of bodies each, and a body goes from the old one to the young one when
    it is read; so it is forgotten when it was not read for five to ten minutes, or while 2 to 4 MiB of others were.

    May be used by several threads at once.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with none."""
        self._clock = clock
        self._young: dict[bytes, tuple[Item, ...]] = {}
        self._old: dict[bytes, tuple[Item, ...]] = {}
        self._size = 0
        self._begun = clock()

    def read(self, body: bytes) -> tuple[Item, ...]:
        """Return what `decode_body` does, and raise what it does."""
        items = self._young.get(body)
        if items is None:
            items = self._old.get(body)
            if items is None:
                items = tuple(decode_body(body))
                if len(body) > _LARGEST or not _can_be_shared(items):
                    return items
            self._young[body] = items
            self._size += len(body)
            if self._size > _MOST:
                self._begin()
        return items

    def age(self) -> None:
        """Forget what was not read for long. Called by who begins to read, for a body alone does not look at the clock."""
        if self._clock() - self._begun > _LONG:
            self._begin()

    def forget(self) -> None:
        """Forget everything, because something was deleted."""
        self._begin()
        self._old = {}

    def _begin(self) -> None:
        self._old, self._young, self._size, self._begun = self._young, {}, 0, self._clock()


def _can_be_shared(items: tuple[Item, ...]) -> bool:
    for item in items:
        if type(item) is not Message:
            return False
        has = item.__dict__  # to ask the message for each takes three times as long
        if type(has["content"]) is not str or has["tool_calls"] or has["metadata"] is not NOTHING or has["extras"] is not NOTHING:
            return False
    return True


RECOLLECTION = Recollection()
"""That of this process."""
