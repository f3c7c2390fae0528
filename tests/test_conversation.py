"""What a handler sees of the memory."""

import asyncio

import pytest
from starlette.responses import JSONResponse

from convmem import CorruptEntry, InvalidMessage, Message, ToolCall, TurnClosed, Window, get_conversation, open_conversation
from convmem.identifiers import new_id, new_token
from convmem.stores.base import Entry
from tests import asgi_client
from tests.asgi_client import ADA
from tests.test_middleware import app_of

pytestmark = pytest.mark.asyncio
world, memory_world = asgi_client.world, asgi_client.memory_world


async def test_a_new_conversation_knows_that_it_is_new(world):
    """Until something is stored and loaded again."""
    async with open_conversation(ADA, store=world.store) as conversation:
        assert conversation.is_new
        assert (conversation.messages, conversation.total_turns, conversation.left_out, conversation.truncated) == ([], 0, 0, False)
        facts = [conversation.busy, conversation.interrupted, conversation.replayed, conversation.degraded]
        assert facts == [False] * 4
        assert conversation.key == ADA
        before = conversation.revision
        conversation.append(Message.user("x"))
        await conversation.save()
        assert conversation.revision != before
    async with open_conversation(ADA, store=world.store) as conversation:
        assert not conversation.is_new
        assert conversation.total_turns == 1


async def test_messages_is_a_new_list_each_time(world):
    """What a handler does to it changes nothing."""
    async with open_conversation(ADA, store=world.store) as conversation:
        conversation.append(Message.user("x"))
        conversation.messages.clear()
        conversation.new_messages.clear()
        assert [m.text for m in conversation.messages] == [m.text for m in conversation.new_messages] == ["x"]


async def test_a_corrupt_entry_is_named_and_the_rest_loads(world, caplog):
    """Never overwritten; strict reading raises."""
    await world.put(Message.user("1"))
    head = (await world.log()).head
    await world.inner.append(ADA, head, Entry(new_id(), new_id(), new_token(), head.epoch, b"\xff\x00", count=1, closing=True, turns=2))
    async with open_conversation(ADA, store=world.store) as conversation:
        assert [m.text for m in conversation.messages] == ["1"]
        assert conversation.corrupt == (2,)
        with pytest.raises(CorruptEntry) as caught:
            conversation.verify()
        assert caught.value.position == 2
        conversation.append(Message.user("3"))
    assert any("entries [2] cannot be decoded" in record.getMessage() for record in caplog.records)
    assert (await world.log()).entries[1].entry.body == b"\xff\x00"


@pytest.mark.parametrize("wrong", ["text", {"role": "user", "content": "x"}, None, ["x"], 1])
async def test_what_is_no_message_is_refused_with_the_way_to_build_one(world, wrong):
    """The first mistake everybody makes."""
    async with open_conversation(ADA, store=world.store) as conversation:
        with pytest.raises(InvalidMessage, match=r"Message\.user\(text\)"):
            conversation.append(Message.user("fine"), wrong)
        assert conversation.messages == []


async def test_an_old_system_message_stays_in_the_window(world):
    """However many turns ago."""
    await world.put(Message.system("be kind"), Message.user("0"))
    async with open_conversation(ADA, store=world.store) as conversation:
        conversation.append(Message.system("in verse"), Message.user("1"), Message.assistant("roses"))
    client = world.serve(app_of(_texts), window=Window(turns=1))
    answers = [await client.post() for _ in range(3)]
    assert answers[-1].data == ["be kind", "in verse", "x", "x"]


async def _texts(request):
    conversation = await get_conversation(request)
    conversation.append(Message.user("x"))
    return JSONResponse([m.text for m in conversation.messages])


async def test_a_tool_call_that_never_got_its_result_is_left_out_of_what_the_model_sees(world):
    """P10, and nothing is deleted for it."""
    await world.put(Message.user("q"), Message.assistant("", tool_calls=[ToolCall(id="1", name="f")]))
    async with open_conversation(ADA, store=world.store) as conversation:
        assert [m.role for m in conversation.messages] == ["user"]
    assert len(await world.texts()) == 2


async def test_messages_of_a_turn_without_an_end_say_so(world):
    """A reader of a reloaded page wants to see the question."""
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is what raises
        async with open_conversation(ADA, store=world.store) as conversation:
            conversation.append(Message.user("q"))
            await conversation.save()
            raise ZeroDivisionError
    async with open_conversation(ADA, store=world.store) as conversation:
        assert [(m.text, m.state) for m in conversation.messages] == [("q", "interrupted")]
        assert conversation.interrupted


async def test_several_recordings_in_one_turn_are_several_messages(world):
    """Two models, one after the other or at once."""

    async def tell(*words: str):
        for word in words:
            await asyncio.sleep(0)
            yield word

    async with open_conversation(ADA, store=world.store) as conversation:
        conversation.append(Message.user("q"))
        for stream in (tell("a", "b"), tell("c"), tell()):
            async for _ in conversation.record(stream):
                pass
    assert await world.texts() == ["user: q", "assistant: ab", "assistant: c"]
    assert await world.states() == ["complete"]


async def test_a_recording_that_was_broken_off_makes_the_turn_an_interrupted_one(world):
    """The block ended well, its answer did not."""
    async with open_conversation(ADA, store=world.store) as conversation:
        conversation.append(Message.user("q"))
        async for _ in conversation.record(["a", "b", "c"]):
            break
    assert await world.texts() == ["user: q", "assistant: a"]
    assert await world.states() == ["interrupted"]


async def test_after_a_delete_nothing_can_be_appended_and_clear_says_so_too(world):
    """The turn ended with the conversation."""
    await world.put(Message.user("old"))
    async with open_conversation(ADA, store=world.store) as conversation:
        assert await conversation.delete()
        assert conversation.messages == []
        with pytest.raises(TurnClosed):
            conversation.append(Message.user("x"))
        with pytest.raises(TurnClosed):
            await conversation.clear()
        await conversation.save()
    assert (await world.log()).head.n == 0


async def test_the_first_truncation_is_logged_once_for_a_request(world, caplog):
    """Named, because it is the commonest cause of a model that forgets."""
    caplog.set_level("INFO", "convmem")

    async def handler(request):
        conversation = await get_conversation(request)
        conversation.append(Message.user("x"))
        return JSONResponse([len(conversation.messages) for _ in range(3)])

    client = world.serve(app_of(handler), window=Window(turns=2))
    for _ in range(4):
        await client.post()
    assert sum("outgrown its window" in record.getMessage() for record in caplog.records) == 1
