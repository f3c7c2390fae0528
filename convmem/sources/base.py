"""What every source says: batches, each of them one entry to be, and what could not become one.

A source begins anew each time it is read and then says the same again: the same batches with the same ids. So an import that was
stopped finds the place where it was, and one that is done finds nothing to do.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TypeAlias

from convmem.keys import SessionKey
from convmem.messages import Item
from convmem.stores.base import ENTRY_FORMAT


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something an import could not carry.

    Attributes:
        conversation: Its name where it came from; empty when what is wrong stands in none.
        message: Which of its messages, counted from 1; None when it is all of the conversation.
        reason: A sentence.
    """

    conversation: str
    reason: str
    message: int | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """What one entry is to be. The batches of a conversation follow each other, oldest first.

    Attributes:
        name: Of the conversation, where it comes from.
        key: Its address here.
        id: Of the entry: always the same for what stands at this place behind what stands before it.
        turn: Its turn.
        body: The encoded messages, edits and notes.
        said: The same, decoded.
        closing: Whether the turn ends with it.
        format: See `Entry`.
        key_id: See `Entry`.
        renamed: Whether the session id is another one than it had.
    """

    name: str
    key: SessionKey
    id: str
    turn: str
    body: bytes
    said: tuple[Item, ...]
    closing: bool
    format: int = ENTRY_FORMAT
    key_id: str = ""
    renamed: bool = False


Source: TypeAlias = AsyncGenerator[Batch | LeftOut, None]
