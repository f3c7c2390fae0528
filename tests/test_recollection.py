"""What was read lately is not decoded again, and nobody can tell by what they are given."""

from collections.abc import Awaitable, Callable

import pytest

from convmem import MemoryStore, Message, Store, TextPart, ToolCall, delete_owner, open_conversation
from convmem.messages import decode_body, encode_message, encode_messages
from convmem.recollection import RECOLLECTION, Recollection
from convmem.turns import Ledger, Rules, Turn
from tests.asgi_client import ADA

MINUTES = 60
PLAIN = [Message.user("Where do I live?"), Message.assistant("In Rome."), Message.tool("Rome", tool_call_id="a", name="where")]
OTHERS = {
    "metadata": Message.user("x", metadata={"tags": ["a"]}),
    "extras": Message.user("x", extras={"langchain": {"fields": ["a"]}}),
    "a call": Message.assistant("", tool_calls=[ToolCall(id="a", name="where", arguments={"who": ["me"]})]),
    "parts": Message.user([TextPart(text="x")]),
}


class Clock:
    """Goes on when it is told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def body_of(*messages: Message) -> bytes:
    return encode_messages(map(encode_message, messages))


def again(body: bytes) -> bytes:
    """Return the same bytes as the next load brings them: as another object."""
    return bytes(bytearray(body))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def recollection(clock: Clock) -> Recollection:
    return Recollection(clock)


def test_a_body_read_again_is_the_same_messages(recollection: Recollection) -> None:
    """Nobody can change them, so all may have them."""
    body = body_of(*PLAIN)
    first, second = recollection.read(body), recollection.read(again(body))
    assert list(first) == PLAIN == decode_body(body)
    assert all(one is other for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("message", OTHERS.values(), ids=OTHERS)
def test_what_could_be_changed_is_everybodys_own(recollection: Recollection, message: Message) -> None:
    """A list inside, changed by one handler, must not change what the next one is given."""
    body = body_of(*PLAIN, message)
    *_, first = recollection.read(body)
    *_, second = recollection.read(again(body))
    assert first == second == message
    assert first is not second


@pytest.mark.asyncio
async def test_a_handler_changes_nothing_for_others() -> None:
    """What it can change others do not see, and what they would see it cannot change."""
    store = MemoryStore()
    async with open_conversation(ADA, store=store) as conversation:
        conversation.append(OTHERS["metadata"])
    async with open_conversation(ADA, store=store) as conversation:
        conversation.append(PLAIN[0])
    for _ in range(2):
        async with open_conversation(ADA, store=store) as conversation:
            tagged, plain = conversation.messages
            assert (tagged.metadata, plain.metadata, plain.extras) == ({"tags": ["a"]}, {}, {})
            tagged.metadata["tags"].append("b")
            for fields in (tagged.metadata, plain.metadata, plain.extras):
                with pytest.raises(TypeError, match="model_copy"):
                    fields["seen"] = True


@pytest.mark.asyncio
async def test_a_turn_that_was_read_while_it_ran_reads_as_complete_later() -> None:
    """The state of a message is that of its turn when it was loaded, whoever read its body before."""
    store = MemoryStore()
    async with open_conversation(ADA, store=store) as conversation:
        conversation.append(PLAIN[0])
        await conversation.save()
        onlooker = Turn(Ledger(store, Rules()), ADA)
        await onlooker.look()
        assert [message.state for message in onlooker.decoded().said([]).messages] == ["running"]
    async with open_conversation(ADA, store=store) as conversation:
        assert [message.state for message in conversation.messages] == ["complete"]


def test_what_is_not_read_for_long_is_forgotten(recollection: Recollection, clock: Clock) -> None:
    """What others deleted does not stay for ever with a worker that had read it; what is read every few minutes does stay."""
    read, unread = body_of(PLAIN[0]), body_of(PLAIN[1])
    (first,), (other,) = recollection.read(read), recollection.read(unread)
    for _ in range(4):
        clock.now += 4 * MINUTES
        recollection.age()
        assert recollection.read(again(read))[0] is first
    assert recollection.read(again(unread))[0] is not other


def test_no_more_is_kept_than_fits(recollection: Recollection) -> None:
    """However much is read, the newest two megabytes are there, and at most four."""
    bodies = [body_of(Message.user("x" * 2000)) for _ in range(3000)]
    kept = [recollection.read(body) for body in bodies]
    found = [recollection.read(again(body)) is said for body, said in zip(reversed(bodies), reversed(kept), strict=True)]
    assert all(found[:900])
    assert sum(found) * len(bodies[0]) <= 4 * 2**20


def test_a_long_text_does_not_push_out_all_others(recollection: Recollection) -> None:
    """It is decoded each time: what it saves is small beside what it would take away."""
    short, long = body_of(PLAIN[0]), body_of(Message.user("x" * 100_000))
    (first,) = recollection.read(short)
    texts = [recollection.read(again(long))[0] for _ in range(60)]
    assert len(set(map(id, texts))) == 60
    assert recollection.read(again(short))[0] is first


def test_a_body_that_cannot_be_decoded_is_told_each_time(recollection: Recollection) -> None:
    """There is nothing to remember."""
    for _ in range(2):
        with pytest.raises(ValueError, match="not a list"):
            recollection.read(b'[{"role": "user"}]')


async def _delete_this_one(store: Store) -> None:
    async with open_conversation(ADA, store=store) as conversation:
        await conversation.delete()


async def _delete_the_owners(store: Store) -> None:
    await delete_owner(ADA.owner, store=store)


@pytest.mark.asyncio
@pytest.mark.parametrize("delete", [_delete_this_one, _delete_the_owners], ids=["a conversation", "an owner's"])
async def test_what_is_deleted_here_is_forgotten_here(delete: Callable[[Store], Awaitable[None]]) -> None:
    """At once, young and old."""
    store = MemoryStore()
    async with open_conversation(ADA, store=store) as conversation:
        conversation.append(PLAIN[0])
    async with open_conversation(ADA, store=store) as conversation:
        (read,) = conversation.messages
    async with open_conversation(ADA, store=store) as conversation:
        assert conversation.messages[0] is read
    await delete(store)
    assert RECOLLECTION.read(body_of(PLAIN[0]))[0] is not read
