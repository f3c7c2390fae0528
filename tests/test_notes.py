"""Notes: what an adapter keeps between the messages is loaded with them, and nobody else meets it."""

import pytest

from convmem import Edit, InvalidMessage, LimitExceeded, MemoryStore, Message, Note, SessionKey, open_conversation
from convmem.messages import decode_body, decode_messages, encode_messages, encode_note
from convmem.testing import CountedStore

KEY = SessionKey.for_user("42")
pytestmark = pytest.mark.asyncio


def note(**data):
    return Note(kind="test", data=data)


def notes(said):
    return [item.data for turn in said.turns for item in turn if isinstance(item, Note)]


async def test_a_note_comes_back_where_it_was_appended():
    """Its place between the messages is what it is about; any JSON value, bytes and odd text come back equal."""
    question, answer = Message.user("question"), Message.assistant("answer")
    data = {"bytes": b"\x00\xff", "nested": [1, None, {"$text": "\ud800"}], "nan": "no"}
    async with MemoryStore() as store:
        async with open_conversation(KEY, store=store) as conversation:
            conversation.append(question, note(**data), answer)
        async with open_conversation(KEY, store=store) as conversation:
            (*_, before, present) = conversation.said.turns
            assert [item.data if isinstance(item, Note) else item for item in before] == [question, data, answer]
            assert present == ()


async def test_nobody_sees_a_note():
    """Not the model, not the reader of the page, not another adapter, and it is no turn."""
    async with MemoryStore() as store:
        async with open_conversation(KEY, store=store) as conversation:
            conversation.append(note(i=1), Message.user("question"), note(i=2))
            assert [message.text for message in conversation.messages] == ["question"]
        async with open_conversation(KEY, store=store) as conversation:
            conversation.append(note(i=3))
            assert conversation.new_messages == []
        async with open_conversation(KEY, store=store) as conversation:
            assert [message.text for message in conversation.messages] == ["question"]
            assert [message.text for message in await conversation.history()] == ["question"]
            assert (conversation.total_turns, conversation.left_out, conversation.truncated) == (1, 0, False)
            assert notes(conversation.said) == [{"i": 1}, {"i": 2}, {"i": 3}]


async def test_what_is_hidden_is_said_and_out_of_sight():
    """An adapter that names old messages still finds them."""
    secret = Message.user("secret")
    async with MemoryStore() as store:
        async with open_conversation(KEY, store=store) as conversation:
            conversation.append(secret, Message.assistant("answer"))
        async with open_conversation(KEY, store=store) as conversation:
            conversation.edit(Edit(action="hide", ids=(secret.id,)), Message.user("public"))
            said = conversation.said
            assert secret in [item for turn in said.turns for item in turn]
            assert [message.text for message in said.messages] == ["answer", "public"]
            assert said.then([Edit(action="hide", before="all")]).messages == ()


async def test_what_was_loaded_says_whether_it_is_everything():
    """Within the window nothing has to be read again; beyond it, one read brings the rest."""
    async with CountedStore(MemoryStore()) as store:
        for i in range(60):
            async with open_conversation(KEY, store=store) as conversation:
                conversation.append(Message.user(f"question {i}"), note(i=i))
                assert conversation.said.whole == (i <= 50)
        async with open_conversation(KEY, store=store) as conversation:
            conversation.append(note(i="now"))
            before = store.calls["load"]
            assert notes(conversation.said) == [*({"i": i} for i in range(10, 60)), {"i": "now"}]
            assert store.calls["load"] == before
            said = await conversation.all_said()
            assert said.whole
            assert notes(said) == [*({"i": i} for i in range(60)), {"i": "now"}]
            assert len(said.messages) == 60


async def broken_off(store):
    async with open_conversation(KEY, store=store) as conversation:
        conversation.append(Message.user("question"), note(i=1))
        await conversation.save()
        conversation.append(note(i=2))
        raise LookupError


async def test_a_note_has_the_fate_of_its_turn():
    """A turn that is broken off takes its notes along, a cleared conversation too; an entry that holds notes alone is stored."""
    async with MemoryStore() as store:
        with pytest.raises(LookupError):
            await broken_off(store)
        async with open_conversation(KEY, store=store) as conversation:
            assert notes(conversation.said) == [{"i": 1}]
            await conversation.clear()
        async with open_conversation(KEY, store=store) as conversation:
            assert notes(conversation.said) == []
            assert conversation.said.whole


async def test_what_cannot_be_stored_is_refused(monkeypatch):
    """Before anything is appended, with the name of the field; a note takes its room of the turn as a message does."""
    monkeypatch.setenv("CONVMEM_MAX_MESSAGE_BYTES", "1 KiB")
    async with MemoryStore() as store, open_conversation(KEY, store=store) as conversation:
        with pytest.raises(InvalidMessage) as caught:
            conversation.append(Message.user("question"), note(tool=object()))
        assert caught.value.field == "data.tool"
        with pytest.raises(LimitExceeded):
            conversation.append(note(text="x" * 2000))
        assert conversation.new_messages == []


async def test_the_body_says_which_is_which():
    """Readers of bodies that only want messages get messages."""
    body = encode_messages([encode_note(note(i=1))])
    assert decode_body(body) == [note(i=1)]
    assert decode_messages(body) == []
