"""Sight: what of a loaded log is to be seen: its entries decoded, and what edits have left of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import cast

from convmem import windows
from convmem.keys import SessionKey
from convmem.messages import Edit, Item, Message, State, edited
from convmem.recollection import RECOLLECTION
from convmem.stores.base import Log

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
        size: How many turns were loaded, one that is left out of them included.
        corrupt: Positions of entries that cannot be decoded.
    """

    log: Log
    size: int
    turns: tuple[windows.Turn[Item], ...]
    pinned: tuple[Item, ...]
    corrupt: tuple[int, ...]

    def seen(self, edits: Sequence[Edit] = ()) -> tuple[tuple[windows.Turn[Message], ...], tuple[Message, ...]]:
        """Return what edits have left of the turns, and of the pinned system messages; `edits` stand behind all of them."""
        said = [self.pinned, *[items for items, _ in self.turns]]
        turns, pinned = cast("tuple[windows.Turn[Message], ...]", self.turns), cast("tuple[Message, ...]", self.pinned)
        if edits or not {Message}.issuperset(map(type, chain(*said))):
            pinned, *rest = map(tuple, edited([*said, edits]))
            turns = tuple(windows.Turn(messages, turn.state) for messages, turn in zip(rest, turns, strict=False))
        return tuple([turn for turn in turns if turn[0]]), tuple([message for message in pinned if message.role == "system"])

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
        return Decoded(log, page.size + self.size, (*page.turns, *self.turns), page.pinned, (*page.corrupt, *self.corrupt))


def decode(log: Log, *, without: str | None, key: SessionKey) -> Decoded:
    """Decode what was loaded.

    Args:
        log: It.
        without: A turn to leave out, because another attempt at it is under way, or it is shown as the present one.
        key: The conversation's, for the log.
    """
    RECOLLECTION.age()
    corrupt: list[int] = []
    turns: list[windows.Turn[Item]] = []
    unclosed: dict[int, int] = {}  # which turns have no closing entry, and where the last one they have stands
    left_out, name = None, ""
    for n, turn, closing, body in log.skim():
        items = _items(n, body, corrupt)
        if turn != name:
            name = turn
            if turn == without:
                left_out = len(turns)
            turns.append(windows.Turn(items))
        else:
            turns[-1] = windows.Turn((*turns[-1].messages, *items))
            unclosed.pop(len(turns) - 1, None)
        if not closing:
            unclosed[len(turns) - 1] = n
    size = len(turns)
    for place, n in unclosed.items():
        turns[place] = windows.Turn(turns[place].messages, log.going_on(n))
    if left_out is not None:
        del turns[left_out]
    pinned = tuple([item for stored in log.pinned for item in _items(stored.n, stored.entry.body, corrupt)])
    if corrupt:
        logger.warning("conversation %s: entries %s cannot be decoded; the rest is loaded", key.digest, corrupt)
    return Decoded(log, size, tuple(turns), pinned, tuple(corrupt))


def _items(n: int, body: bytes, corrupt: list[int]) -> tuple[Item, ...]:
    try:
        return RECOLLECTION.read(body)
    except ValueError:
        corrupt.append(n)
        return ()
