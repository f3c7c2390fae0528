"""Edits: what is hidden or archived stays in the log, and every later request sees the same."""

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import pytest_asyncio

from convmem import Conversation, Edit, InvalidMessage, MemoryStore, Message, SessionKey, SQLiteStore, Store, open_conversation
from convmem.messages import decode_body, decode_messages, encode_edit, encode_message, encode_messages
from convmem.testing import CountedStore

KEY = SessionKey.for_user("42")
pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path) -> AsyncGenerator[Store, None]:
    async with MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "log.db") as opened:
        yield opened


async def say(store: Store, *messages: Message) -> None:
    async with open_conversation(KEY, store=store) as conversation:
        conversation.append(*messages)


async def texts(store: Store) -> list[str]:
    async with open_conversation(KEY, store=store) as conversation:
        return seen(conversation)


def seen(conversation: Conversation) -> list[str]:
    return [message.text for message in conversation.messages]


async def test_a_hidden_message_stays_hidden(store):
    """Hidden now is hidden for every later request; the log still has it."""
    secret = Message.user("secret")
    await say(store, secret, Message.user("public"))
    async with open_conversation(KEY, store=store) as conversation:
        conversation.edit(Edit(action="hide", ids=(secret.id,)))
        assert seen(conversation) == ["public"]
    assert await texts(store) == ["public"]
    log = await store.load(KEY)
    assert [message.text for stored in log.entries for message in decode_messages(stored.entry.body)] == ["secret", "public"]


async def test_an_archived_message_stays_in_sight_and_says_so(store):
    """A framework's queue is its own affair: who renders the page still sees the message."""
    old = Message.user("old")
    await say(store, old, Message.assistant("answer"))
    async with open_conversation(KEY, store=store) as conversation:
        conversation.edit(Edit(action="archive", ids=(old.id,)))
    async with open_conversation(KEY, store=store) as conversation:
        assert [(message.text, message.archived) for message in conversation.messages] == [("old", True), ("answer", False)]
        assert conversation.messages[0] == old


async def test_replacing_is_one_entry(store):
    """Either the old messages are in sight or the new ones, whatever dies between."""
    await say(store, Message.system("be brief"), Message.user("one"))
    await say(store, Message.user("two"))
    async with open_conversation(KEY, store=store) as conversation:
        conversation.edit(Edit(action="hide", before="active"), Message.user("new"), Message.assistant("start"))
        assert seen(conversation) == ["new", "start"]
        await conversation.save()
        body = (await store.load(KEY)).entries[-1].entry.body
        assert [type(item) for item in decode_body(body)] == [Edit, Message, Message]
        assert conversation.total_turns == 1
    assert await texts(store) == ["new", "start"]


async def test_a_replaced_system_message_does_not_come_back_when_the_window_moves_on(store):
    """Pinned entries are loaded without the turns around them; the edit has to come along."""
    system = Message.system("old rules")
    await say(store, system, Message.user("hi"))
    async with open_conversation(KEY, store=store) as conversation:
        conversation.edit(Edit(action="hide", ids=(system.id,)), Message.system("new rules"), Message.user("go on"))
    for i in range(60):
        await say(store, Message.user(f"turn {i}"))
    async with open_conversation(KEY, store=store) as conversation:
        assert [message.text for message in conversation.messages if message.role == "system"] == ["new rules"]
        assert conversation.left_out == 12


@pytest.mark.parametrize(
    "edits", [[Edit(action="hide", ids=("it",))], [Edit(action="archive", ids=("it",)), Edit(action="hide", before="archived")]]
)
async def test_a_hidden_system_message_does_not_come_back_when_the_window_moves_on(store, edits):
    """Nor one that was archived before: both edits are loaded with it."""
    await say(store, Message.system("rules", id="it"), Message.user("hi"))
    for edit in edits:
        async with open_conversation(KEY, store=store) as conversation:
            conversation.edit(edit)
    for n in range(60):
        await say(store, Message.user(f"number {n}"))
    assert (await texts(store))[0] == "number 10"


async def test_a_system_message_far_back_knows_that_it_is_archived(store):
    """As one within the window does."""
    await say(store, Message.system("rules", id="it"), Message.user("hi"))
    async with open_conversation(KEY, store=store) as conversation:
        conversation.edit(Edit(action="archive", ids=("it",)))
    for n in range(60):
        await say(store, Message.user(f"number {n}"))
    async with open_conversation(KEY, store=store) as conversation:
        assert [(message.text, message.archived) for message in conversation.messages][:2] == [("rules", True), ("number 10", False)]


async def test_beginning_anew_leaves_nothing_to_load_with_every_window(store):
    """What it takes out of sight needs no edit to be hidden by."""
    await say(store, Message.system("rules"), Message.user("hi"))
    async with open_conversation(KEY, store=store) as conversation:
        conversation.edit(Edit(action="hide", before="all"), Message.user("anew"))
    assert (await store.load(KEY)).head.pinned == ()


async def test_what_was_archived_survives_a_replacement(store):
    """`active` means what is not archived; `archived` and `all` mean what they say."""
    kept, gone = Message.user("archived"), Message.user("active")
    await say(store, kept, gone)
    async with open_conversation(KEY, store=store) as conversation:
        conversation.edit(Edit(action="archive", ids=(kept.id,)))
        conversation.edit(Edit(action="hide", before="active"))
        assert [message.text for message in await conversation.history()] == ["archived"]
    async with open_conversation(KEY, store=store) as conversation:
        assert [message.text for message in await conversation.history()] == ["archived"]
        conversation.edit(Edit(action="hide", before="archived"))
        assert await conversation.history() == []


async def test_an_edit_concerns_only_what_was_said_before_it(store):
    """Also within one turn, staged or saved."""
    async with open_conversation(KEY, store=store) as conversation:
        conversation.append(Message.user("before"))
        await conversation.save()
        conversation.edit(Edit(action="hide", before="all"))
        conversation.append(Message.user("after"))
        assert seen(conversation) == ["after"]
        assert [message.text for message in conversation.new_messages] == ["after"]
    assert await texts(store) == ["after"]


async def test_hiding_everything_leaves_no_turn(store):
    """A count that includes what nobody can see would say that something was left out."""
    await say(store, Message.user("one"))
    async with open_conversation(KEY, store=store) as conversation:
        conversation.edit(Edit(action="hide", before="all"))
    async with open_conversation(KEY, store=store) as conversation:
        assert (conversation.messages, conversation.total_turns, conversation.left_out) == ([], 0, 0)


async def test_history_has_every_message_whatever_the_window(store):
    """The window is for the model; an export wants all."""
    for i in range(60):
        await say(store, Message.user(f"turn {i}"))
    async with open_conversation(KEY, store=store) as conversation:
        conversation.append(Message.user("now"))
        await conversation.save()
        history = await conversation.history()
        assert len(conversation.messages) == 51
    assert [message.text for message in history] == [*(f"turn {i}" for i in range(60)), "now"]


async def test_the_edit_of_a_broken_off_block_is_dropped(store):
    """What is not saved is not done, as for messages."""
    message = Message.user("hello")
    await say(store, message)
    with pytest.raises(RuntimeError, match="stop"):  # noqa: PT012 - the block is what is tested
        async with open_conversation(KEY, store=store) as conversation:
            conversation.edit(Edit(action="hide", ids=(message.id,)))
            raise RuntimeError("stop")
    assert await texts(store) == ["hello"]


async def test_saving_from_a_thread(store):
    """A framework that calls from a thread can store the question before its model runs."""
    async with open_conversation(KEY, store=store) as conversation:
        conversation.append(Message.user("question"))
        assert conversation.save_from_thread() is False
        assert await asyncio.to_thread(conversation.save_from_thread) is True
        log = await store.load(KEY)
        assert [stored.entry.count for stored in log.entries] == [1]


async def test_a_blocked_loop_is_not_waited_for(store):
    """A synchronous call on the loop's own thread blocks it: waiting for it would never end."""
    async with open_conversation(KEY, store=store) as conversation:
        conversation.append(Message.user("question"))
        with ThreadPoolExecutor(1) as threads:
            assert threads.submit(conversation.save_from_thread, patience=0.01).result(timeout=5) is False
    assert await texts(store) == ["question"]


async def test_an_edit_comes_back_from_its_body():
    """In order, between messages, with ids that are any text."""
    edit = Edit(action="hide", ids=("a", "\ud800"), before="all")
    message = Message.user("x", created_at=Message.user("").created_at + timedelta(days=1))
    body = encode_messages([encode_message(message), encode_edit(edit)])
    assert decode_body(body) == [message, edit]
    assert decode_messages(body) == [message]
    with pytest.raises((ValueError, InvalidMessage)):
        Edit(action="burn")  # type: ignore[arg-type]


async def test_what_was_hidden_may_be_said_again(store):
    """A framework that takes its question back and asks again is not an app that appends twice."""
    async with open_conversation(KEY, store=store) as conversation:
        first = Message.user("question")
        conversation.append(first)
        conversation.edit(Edit(action="hide", ids=(first.id,)))
        conversation.append(Message.user("question"))
        assert seen(conversation) == ["question"]
        with pytest.warns(UserWarning, match="appended twice"):
            conversation.append(Message.user("question"))


async def test_two_calls_may_have_the_same_result(store):
    """An agent that looks twice sees the same twice; the same result of the same call is said twice."""
    async with open_conversation(KEY, store=store) as conversation:
        conversation.append(*(Message.tool("rain", tool_call_id=name) for name in ("c1", "c2")))
        with pytest.warns(UserWarning, match="appended twice"):
            conversation.append(Message.tool("rain", tool_call_id="c1"))


@pytest.mark.parametrize("limit", [0, 1, 2, 5, 60, 119, 121])
async def test_the_end_of_a_history_is_read_without_the_rest(store, limit):
    """What is loaded is not read again, and what is not costs as much as is asked for, also where much of it is hidden."""
    said = [Message.user(f"{i:03}") for i in range(120)]
    for message in said[:-1]:
        await say(store, message)
    await say(store, said[-1], *[Message.assistant(f"hidden {i}", id=f"h{i}") for i in range(90)])
    async with open_conversation(KEY, store=store) as conversation:
        conversation.edit(Edit(action="hide", ids=tuple(f"h{i}" for i in range(90))))
    counted = CountedStore(store)
    async with open_conversation(KEY, store=counted) as conversation:
        conversation.append(Message.assistant("present"))
        history = await conversation.history(limit=limit)
        assert [message.text for message in history] == [*(message.text for message in said), "present"][-limit or 200 :]
    assert (counted.calls["load"] > 1) == (limit > 50)
