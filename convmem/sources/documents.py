"""Messages of other libraries, one JSON document each, as they have stored them; made into turns.

Their stores know no turns. One begins at a user's message, with the system messages directly before it. What a library's documents
say is the business of its adapter, in whose module ``stored`` there are two functions: ``role_of`` a document, and ``from_stored``.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from importlib import import_module
from typing import Any, TypeAlias

from convmem.exceptions import ConfigurationError, InvalidIdentity, InvalidMessage
from convmem.keys import SessionKey
from convmem.messages import Message, encode_message, encode_messages
from convmem.sources.addresses import Addresses
from convmem.sources.base import Batch, LeftOut, Source

_MOST_DOCUMENTS = 200
_MOST_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Row:
    """One stored message.

    Attributes:
        name: Of its conversation; the rows of one follow each other, oldest first.
        document: As it is stored.
        created_at: When, where the store knows.
    """

    name: str
    document: str | bytes
    created_at: datetime | None = None


Rows: TypeAlias = AsyncGenerator[Row, None]


@dataclass(frozen=True, slots=True)
class Adapter:
    """What an adapter knows of its framework's stored messages.

    Attributes:
        role_of: Returns who speaks in a document; None when that cannot be said.
        from_stored: Returns documents as messages; those of one turn together, for a framework in which several are one message.
    """

    role_of: Callable[[Any], str | None]
    from_stored: Callable[[Sequence[Any]], list[Message]]

    @classmethod
    def of(cls, package: str) -> Adapter:
        """Return that of a package. convmem depends on no framework: it is imported when its messages are.

        Raises:
            ConfigurationError: The framework is not installed; the sentence has the line that installs it.
        """
        try:
            module = import_module(f"{package}.stored")
        except ImportError as error:
            raise ConfigurationError(str(error)) from error
        return cls(module.role_of, module.from_stored)


async def read_documents(rows: Rows, source: str, package: str, addresses: Addresses) -> Source:
    """Read conversations from rows.

    Args:
        rows: They.
        source: Its name, which is part of the names of entries.
        package: The adapter's.
        addresses: How session ids become addresses.

    Raises:
        ConfigurationError: The adapter's framework is not installed.
        SourceUnreadable: The rows cannot be read.
    """
    adapter = Adapter.of(package)
    conversation: _Conversation | None = None
    async with aclosing(rows):
        async for row in rows:
            if conversation is None or conversation.name != row.name:
                for said in conversation.end() if conversation is not None else ():
                    yield said
                conversation = _Conversation(row.name, source, adapter, addresses)
            for said in conversation.take(row):
                yield said
        for said in conversation.end() if conversation is not None else ():
            yield said


@dataclass(frozen=True, slots=True)
class _Held:
    """A row that waits for the rest of its entry.

    Attributes:
        number: Which of the conversation's it is, from 1.
        parsed: The document; None when it is no JSON.
        role: Who speaks in it.
    """

    number: int
    row: Row
    parsed: Any
    role: str | None


class _Conversation:
    """A conversation whose rows come one by one.

    Attributes:
        name: Its name there.
    """

    def __init__(self, name: str, source: str, adapter: Adapter, addresses: Addresses) -> None:
        self.name = name
        self._adapter = adapter
        self._key: SessionKey | None = None
        self._reason = ""
        try:
            self._key, self._renamed = addresses.of(name)
        except InvalidIdentity as error:
            self._reason = str(error)
        self._behind = sha256(f"{source}\n{name}\n".encode("utf-8", "surrogatepass"))
        self._number = 0
        self._held: list[_Held] = []
        self._bytes = 0
        self._turn = ""
        self._begun = False

    def take(self, row: Row) -> Iterator[Batch | LeftOut]:
        """Take the next row; say what that has made complete."""
        self._number += 1
        if self._key is None:
            return
        held = self._parsed(row)
        if held.role == "user":
            last = len(self._held)
            while last and self._held[last - 1].role == "system":
                last -= 1
            if last or self._turn:
                opening = self._held[last:]
                yield from self._say(self._held[:last], closing=True)
                self._hold(opening)
        elif len(self._held) >= _MOST_DOCUMENTS or self._bytes >= _MOST_BYTES:
            yield from self._say(self._held, closing=False)
            self._hold([])
        self._held.append(held)
        self._bytes += len(row.document)

    def end(self) -> Iterator[Batch | LeftOut]:
        """Say what is left when there are no more rows."""
        if self._key is None:
            yield LeftOut(self.name, self._reason)
        else:
            yield from self._say(self._held, closing=True)

    def _hold(self, held: list[_Held]) -> None:
        self._held = held
        self._bytes = sum(len(one.row.document) for one in held)

    def _parsed(self, row: Row) -> _Held:
        try:
            parsed = json.loads(row.document)
            return _Held(self._number, row, parsed, self._adapter.role_of(parsed))
        except (ValueError, RecursionError):
            return _Held(self._number, row, None, None)

    def _say(self, held: Sequence[_Held], *, closing: bool) -> Iterator[Batch | LeftOut]:
        """Say one entry of the present turn; its name says what stands in it and in front of it."""
        for one in held:
            document = one.row.document
            data = document if isinstance(document, bytes) else document.encode("utf-8", "surrogatepass")
            self._behind.update(b"%d:%s" % (len(data), data))
        self._behind.update(b"." if closing else b",")
        name = self._behind.hexdigest()[:32]
        turn = self._turn or name
        self._turn = "" if closing else turn
        assert self._key is not None
        said, left_out = self._converted(held)
        yield from left_out
        if said or self._begun:  # a turn that has begun is closed, if by nothing else
            body = encode_messages([encoded for _, encoded in said])
            messages = tuple(message for message, _ in said)
            yield Batch(self.name, self._key, name, turn, body, messages, closing=closing, renamed=self._renamed)
        self._begun = not closing and (self._begun or bool(said))

    def _converted(self, held: Sequence[_Held]) -> tuple[list[tuple[Message, bytes]], list[LeftOut]]:
        """Return what some rows say, with its stored form; where not all of them can be converted, what the others say."""
        try:
            return self._messages(held), []
        except InvalidMessage:
            good, left_out = [], []
        for one in held:
            try:
                self._messages([one])
                good.append(one)
            except InvalidMessage as error:
                left_out.append(LeftOut(self.name, str(error), one.number))
        return self._messages(good), left_out

    def _messages(self, held: Sequence[_Held]) -> list[tuple[Message, bytes]]:
        if any(one.parsed is None for one in held):
            field = "document"
            raise InvalidMessage(field, "it is no JSON, or null")
        messages = self._adapter.from_stored([one.parsed for one in held])
        if held and held[0].row.created_at is not None:
            times = [one.row.created_at for one in held]
            if len(times) != len(messages):  # several documents are one message
                times = times[:1] * len(messages)
            messages = [message.model_copy(update={"created_at": time}) for message, time in zip(messages, times, strict=True)]
        return [(message, encode_message(message)) for message in messages]
