"""Sight: what of a loaded log is to be seen: its entries decoded, and what edits have left of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import cast

from convmem import windows
from convmem.keys import SessionKey
from convmem.messages import Edit, Item, Message, State, decode_body, edited
from convmem.stores.base import Log, StoredEntry

logger = logging.getLogger("convmem.conversation")


@dataclass(frozen=True, slots=True)
class Said:
    """What was said, as it stands in the log.

    Attributes:
        turns: The messages, edits and notes of each turn in order, also what edits have hidden; the present turn is the last one.
        messages: Those messages that are in sight, as they were said: not made valid for a model.
        whole: Whether nothing older is stored.
    """

    turns: tuple[tuple[Item, ...], ...]
    messages: tuple[Message, ...]
    whole: bool

    def then(self, turn: Sequence[Item]) -> Said:
        """Return what stands there once another turn has followed."""
        return Said((*self.turns, tuple(turn)), tuple(chain(*edited([self.messages, turn]))), self.whole)


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """What was loaded: the messages, edits and notes of each turn, with its state, and what is pinned before them.

    Attributes:
        corrupt: Positions of entries that cannot be decoded.
    """

    log: Log
    turns: tuple[tuple[tuple[Item, ...], State], ...]
    pinned: tuple[Item, ...]
    corrupt: tuple[int, ...]

    def seen(self, edits: Sequence[Edit] = ()) -> tuple[tuple[windows.Turn, ...], tuple[Message, ...]]:
        """Return what edits have left of the turns, and of the pinned system messages; `edits` stand behind all of them."""
        said = [self.pinned, *[items for items, _ in self.turns]]
        nothing_edited = not edits and {Message}.issuperset(map(type, chain(*said)))
        pinned, *rest = cast("list[tuple[Message, ...]]", said) if nothing_edited else map(tuple, edited([*said, edits]))
        turns = tuple([windows.Turn(messages, state) for messages, (_, state) in zip(rest, self.turns, strict=False) if messages])
        return turns, tuple([message for message in pinned if message.role == "system"])

    def said(self, present: Sequence[Item]) -> Said:
        """Return all of it, with what the present turn says behind it."""
        turns = (self.pinned, *(items for items, _ in self.turns))
        states: list[State] = ["complete", *(state for _, state in self.turns)]
        in_sight = [message.in_state(state) for said, state in zip(edited(turns), states, strict=True) for message in said]
        entries = self.log.entries
        whole = not entries or entries[0].n == self.log.head.start + 1
        return Said(turns, tuple(in_sight), whole).then(present)

    def behind(self, page: Decoded, log: Log) -> Decoded:
        """Return these turns behind those of the page before them."""
        return Decoded(log, (*page.turns, *self.turns), page.pinned, (*page.corrupt, *self.corrupt))


def decode(log: Log, *, without: str | None, key: SessionKey) -> Decoded:
    """Decode what was loaded.

    Args:
        log: It.
        without: A turn to leave out, because another attempt at it is under way, or it is shown as the present one.
        key: The conversation's, for the log.
    """
    corrupt: list[int] = []
    decoded = [(turn.id, _items(turn.entries, corrupt), turn.state) for turn in log.turns]
    turns = tuple([(items, state) for turn, items, state in decoded if turn != without])
    pinned = _items(log.pinned, corrupt)
    if corrupt:
        logger.warning("conversation %s: entries %s cannot be decoded; the rest is loaded", key.digest, corrupt)
    return Decoded(log, turns, pinned, tuple(corrupt))


def _items(entries: Iterable[StoredEntry], corrupt: list[int]) -> tuple[Item, ...]:
    items: list[Item] = []
    for stored in entries:
        try:
            items += decode_body(stored.entry.body)
        except ValueError:
            corrupt.append(stored.n)
    return tuple(items)
