"""AdapterContract: what an adapter promises, as tests, for whoever connects a framework."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Any, ClassVar

import pytest

from convmem import (
    AudioPart,
    Citation,
    FilePart,
    ImagePart,
    InvalidMessage,
    MemoryStore,
    Message,
    ReasoningPart,
    SessionKey,
    Store,
    TextPart,
    ToolCall,
    open_conversation,
)
from convmem.messages import decode_messages
from convmem.stores.base import Appended, Entry, Head
from convmem.testing.passing import PassingStore, Verb

PICTURE = b"\x89PNG\r\n\x1a\n"
CONVERSATION = (
    Message.system("Be brief."),
    Message.user(
        (TextPart(text="What is on these?"), ImagePart(data=PICTURE, media_type="image/png"), ImagePart(url="https://a.example/b"))
    ),
    Message.assistant(
        (ReasoningPart(text="Look first.", signature="c2ln"), TextPart(text="I look.")),
        tool_calls=(ToolCall(id="c1", name="look", arguments={"at": ["a", 1, None]}), ToolCall(id="c2", name="look")),
    ),
    Message.tool("a cat", tool_call_id="c1", name="look"),
    Message.tool("nothing", tool_call_id="c2", name="look"),
    Message.assistant((TextPart(text="A cat.", citations=(Citation(start=0, end=5, url="https://a.example", title="Cats"),)),)),
    Message.user((AudioPart(data=b"RIFF", media_type="audio/wav"), FilePart(data=b"%PDF", media_type="application/pdf", name="a.pdf"))),
    Message.assistant("Zwölf \x00 🐈"),
)
"""What another framework may have written: every kind of part, and calls with their results."""


class CountedStore(PassingStore):
    """A store that counts the calls it passes on, and the bytes it is given.

    Attributes:
        calls: By verb, without renewals, which depend on time, and checks.
        written: Bytes of all entries.
    """

    name: ClassVar[str] = "counted"

    def __init__(self, store: Store) -> None:
        """Begin at zero."""
        super().__init__(store)
        self.calls: Counter[str] = Counter()
        self.written = 0

    async def append(self, key: SessionKey, after: Head, entry: Entry, *, ttl: timedelta | None = None, release: bool = False) -> Appended:
        """Pass it on, and weigh it."""
        self.written += len(entry.body)
        return await super().append(key, after, entry, ttl=ttl, release=release)

    def _call(self, verb: Verb) -> AbstractAsyncContextManager[None]:
        if verb not in {"renew", "check"}:
            self.calls[verb] += 1
        return super()._call(verb)


@pytest.mark.asyncio
class AdapterContract:
    """Every promise of an adapter, one test each.

    Subclass it and give it these::

    class TestMyAdapter(AdapterContract):
        to_native = staticmethod(to_framework)
        from_native = staticmethod(from_framework)
        natives = [...]  # the framework's own messages, of every kind it has
        refused = [(message, "metadata.tool"), ...]  # messages that cannot be stored, and the field that is named
        has_ids = True  # False: the framework's messages have none
        names_results = True  # False: a result of the framework's has the id of its call only, and not the tool's name

        async def speak(self, question): ...  # one turn through the framework, inside the conversation that runs
    """

    to_native: Any
    from_native: Any
    natives: Sequence[Any]
    refused: Sequence[tuple[Any, str]] = ()
    has_ids: bool = True
    names_results: bool = True

    @pytest.fixture
    def store(self) -> CountedStore:
        """A fresh store."""
        return CountedStore(MemoryStore())

    async def speak(self, question: str) -> None:
        """Have the framework answer a question within the current conversation, its memory being the adapter's."""
        raise NotImplementedError

    # Messages

    async def test_every_message_comes_back_from_a_store_equal(self, store: CountedStore) -> None:
        """Lossless: what the framework wrote is what it reads, through the stored form."""
        for i, native in enumerate(self.natives):
            key = SessionKey.for_user("ada", str(i))
            async with open_conversation(key, store=store) as conversation:
                conversation.append(Message.user("before"), self.from_native(native))
            (entry,) = (await store.load(key)).entries
            assert self.to_native(decode_messages(entry.entry.body)[1]) == native, f"natives[{i}]"

    async def test_lists_are_converted_too(self) -> None:
        """A whole conversation in, a whole conversation out."""
        assert self.to_native(self.from_native(list(self.natives))) == list(self.natives)

    async def test_what_another_framework_wrote_is_read_whole(self) -> None:
        """A conversation may be continued under another framework: text, media, reasoning, calls and results are there."""
        for message in CONVERSATION:
            again = self.from_native(self.to_native(message))
            for name in ("role", "text", "tool_calls", "tool_call_id", *(["name"] if self.names_results else [])):
                assert getattr(again, name) == getattr(message, name), (name, message)
            assert _said(again) == _said(message)

    async def test_ids_stay(self) -> None:
        """By its id a message is known again, in whatever framework; one that has no place for it makes new messages."""
        ids = [message.id for message in CONVERSATION]
        again = [message.id for message in self.from_native(self.to_native(list(CONVERSATION)))]
        if self.has_ids:
            assert again == ids
        else:
            assert len({*again, *ids}) == len(again) + len(ids)

    async def test_what_cannot_be_stored_is_refused_by_its_field(self) -> None:
        """A value that would come back changed is an error that names it, never a silent change."""
        for native, field in self.refused:
            with pytest.raises(InvalidMessage) as caught:
                self.from_native(native)
            assert caught.value.field == field

    # Memory

    async def test_the_next_turn_sees_this_one(self, store: CountedStore) -> None:
        """The point of it all."""
        for question in ("one", "two"):
            async with open_conversation(SessionKey.for_user("ada"), store=store):
                await self.speak(question)
        async with open_conversation(SessionKey.for_user("ada"), store=store) as conversation:
            assert [message.text for message in conversation.messages if message.role == "user"] == ["one", "two"]
            assert [message.role for message in conversation.messages].count("assistant") >= 2
            assert conversation.total_turns == 2

    async def test_a_turn_costs_the_same_however_long_the_conversation_is(self, store: CountedStore) -> None:
        """One load, and appends of what is new: neither trips nor bytes grow with the history."""
        costs = []
        for i in range(20):
            before, written = store.calls.copy(), store.written
            async with open_conversation(SessionKey.for_user("ada"), store=store):
                await self.speak(f"question {i:02}")
            costs.append((store.calls - before, store.written - written))
        assert costs[1][0] == costs[-1][0]
        assert costs[-1][0]["load"] == 1
        assert abs(costs[1][1] - costs[-1][1]) < 64


def _said(message: Message) -> list[Any]:
    """Return the parts without what only some frameworks have words for."""
    if isinstance(message.content, str):
        return [("text", message.content)]
    return [
        ("text", part.text) if isinstance(part, TextPart) else part.model_copy(update={"name": None} if isinstance(part, FilePart) else {})
        for part in message.content
        if not isinstance(part, TextPart) or part.text  # some frameworks cite beside the text
    ]
