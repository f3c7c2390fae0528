"""Exports, on every store: what is stored, line by line, whole and as it was at one moment."""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
import pytest_asyncio
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from convmem import (
    ConversationMiddleware,
    Edit,
    ImagePart,
    InvalidIdentity,
    Message,
    SessionKey,
    StoreUnavailable,
    ToolCall,
    current_conversation,
    export_conversation,
    export_owner,
    export_tenant,
    from_callable,
    open_conversation,
)
from convmem.messages import Item, decode_body, decode_messages, encode_message, encode_messages
from convmem.stores.base import Kind, Store
from convmem.stores.memory import MemoryStore
from convmem.testing import FaultyStore, Writer
from convmem.testing.writer import LONG, PAST_SHORT, SHORT, fresh_key
from tests.asgi_client import quick, user_header
from tests.stores import conftest as stores

pytestmark = pytest.mark.asyncio
backend = stores.backend

EVERYTHING = [
    Message.system("be brief"),
    Message.user(
        [ImagePart(data=b"\x00\xff", media_type="image/png")], name="Ada", metadata={"half": "\ud83e", "nan": float("inf"), "$x": 1}
    ),
    Message.assistant(tool_calls=[ToolCall(id="c1", name="look", arguments={"at": "it\n\u2028"})], extras={"langchain": {"n": 2**70}}),
    Message.tool("a cat", tool_call_id="c1"),
    Message.assistant("A cat.\r\n\x00"),
]


@pytest_asyncio.fixture
async def store(backend: stores.Backend) -> AsyncIterator[Store]:
    """Each store in turn."""
    async with backend.open() as store:
        yield store


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an export ask again soon."""
    monkeypatch.setattr("convmem.walks.PAUSES", (0.001, 0.002))


async def lines_of(pieces) -> list[dict]:
    """Return an export as the objects on its lines, once its form was checked."""
    text = b"".join([piece async for piece in pieces])
    assert text.endswith(b"\n")
    lines = [json.loads(line) for line in text.removesuffix(b"\n").split(b"\n")]
    assert [line["type"] for line in lines].count("export") == 1
    assert (lines[0]["type"], lines[0]["version"], lines[-1]["type"]) == ("export", 1, "end")
    conversations = of_type(lines, "conversation")
    assert lines[-1]["conversations"] == len(conversations) == len(of_type(lines, "conversation_end"))
    assert lines[-1]["entries"] == len(of_type(lines, "entry"))
    return lines


def of_type(lines: list[dict], kind: str) -> list[dict]:
    return [line for line in lines if line["type"] == kind]


def bodies(lines: list[dict]) -> list[Item]:
    """Return every message, edit and note, decoded as from a store."""
    return [item for line in of_type(lines, "entry") for item in decode_body(json.dumps(line["messages"]).encode())]


async def say(store: Store, key: SessionKey, *messages: Message) -> None:
    async with open_conversation(key, store=store) as conversation:
        conversation.append(*messages)


def texts(lines: list[dict]) -> list[str]:
    return [item.text for item in bodies(lines) if isinstance(item, Message)]


class TestWhatIsExported:
    """Everything its owner could read, and what is needed to read it back."""

    async def test_every_message_comes_back_equal(self, store: Store) -> None:
        """An export that loses something is found out when the conversation is gone."""
        key = fresh_key("chat")
        await say(store, key, *EVERYTHING)
        lines = await lines_of(export_owner(key.owner, store=store))
        assert bodies(lines) == EVERYTHING
        (conversation,) = of_type(lines, "conversation")
        log = await store.load(key)
        assert (conversation["owner"], conversation["session_id"], conversation["tenant"]) == (key.owner, "chat", "")
        assert conversation["revision"] == log.head.revision
        assert lines[-1] == {"type": "end", "conversations": 1, "entries": 1, "messages": 5, "corrupt": 0}

    async def test_a_store_that_is_given_the_entries_again_has_the_same_conversation(self, store: Store) -> None:
        """What an import needs is there: the turns, which of them have ended, and every byte of the messages."""
        key, copy = fresh_key(), fresh_key()
        await say(store, key, *EVERYTHING[:2])
        with pytest.raises(RuntimeError):  # noqa: PT012 - the turn breaks off
            async with open_conversation(key, store=store) as conversation:
                conversation.append(Message.user("broken off"))
                await conversation.save()
                raise RuntimeError
        await say(store, key, Message.user("on"))
        async with open_conversation(key, store=store) as conversation:
            conversation.edit(Edit(action="archive", ids=(EVERYTHING[1].id,)), Message.assistant("archived"))
        writer = Writer(store, copy)
        for line in of_type(await lines_of(export_conversation(key, store=store)), "entry"):
            body = encode_messages(json.dumps(item).encode() for item in line["messages"])
            count = len(decode_messages(body))
            await writer.append(writer.entry(turn=line["turn"], body=body, count=count, closing=line["closing"]))
        seen = []
        for each in (key, copy):
            async with open_conversation(each, store=store) as conversation:
                messages = await conversation.history()
                seen.append([(message, message.state, message.archived) for message in messages])
        assert seen[0] == seen[1]
        assert Counter(state for _, state, _ in seen[0]) == {"complete": 4, "interrupted": 1}

    async def test_a_turn_without_an_end_is_marked(self, store: Store) -> None:
        """A question whose answer never came is no answered one; one that is being answered is neither."""
        broken, running = fresh_key("broken"), None
        running = SessionKey(broken.owner, "running")
        for key in (broken, running):
            writer = Writer(store, key)
            if key == running:
                await writer.seize(LONG)
            await writer.append(writer.entry(closing=False))
        lines = await lines_of(export_owner(broken.owner, store=store))
        ids = [line["session_id"] for line in of_type(lines, "conversation")]
        states = dict(zip(ids, [(line["state"], line["closing"]) for line in of_type(lines, "entry")], strict=True))
        assert states == {"broken": ("interrupted", False), "running": ("running", False)}

    async def test_what_cannot_be_decoded_is_there_byte_for_byte_and_named(self, store: Store) -> None:
        """Dropping it in silence would make the damage final."""
        writer = Writer(store)
        fine = encode_messages([encode_message(Message.user("fine"))])
        damaged = [b"\xff\x00[", b"{}", b'[{"role":"user"}]', fine.replace(b'"fine"', b'"fine","metadata":{"x":NaN}'), b"[" * 3000]
        for body in (fine, *damaged, fine):
            await writer.append(writer.entry(body=body))
        lines = await lines_of(export_conversation(writer.key, store=store))
        entries = of_type(lines, "entry")
        assert [b64decode(line["body"]) for line in entries if "body" in line] == damaged
        assert all(line["error"] and "messages" not in line for line in entries[1:-1])
        assert [line["messages"][0]["content"] for line in (entries[0], entries[-1])] == ["fine", "fine"]
        (end,) = of_type(lines, "conversation_end")
        assert (end["corrupt"], end["entries"], end["messages"]) == ([2, 3, 4, 5, 6], 7, 2)
        assert lines[-1]["corrupt"] == 5

    async def test_what_a_later_version_wrote_is_kept(self, store: Store) -> None:
        """Fields this version does not know are the next one's."""
        writer = Writer(store)
        body = b'[{"role":"user","content":"x","id":"1","created_at":"2026-01-01T00:00:00+00:00","mood":{"new":[1,2.50]}}]'
        await writer.append(writer.entry(body=body))
        (line,) = of_type(await lines_of(export_conversation(writer.key, store=store)), "entry")
        assert line["messages"] == json.loads(body)

    async def test_what_was_cleared_or_has_expired_is_not_there(self, store: Store) -> None:
        """It has what its owner could read."""
        key = fresh_key("cleared")
        await say(store, key, Message.user("before"))
        async with open_conversation(key, store=store) as conversation:
            await conversation.clear()
            conversation.append(Message.user("after"))
        expired = Writer(store, SessionKey(key.owner, "expired", key.tenant))
        await expired.append(ttl=SHORT)
        await asyncio.sleep(PAST_SHORT)
        lines = await lines_of(export_owner(key.owner, store=store))
        assert texts(lines) == ["after"]
        assert [line["session_id"] for line in of_type(lines, "conversation")] == ["cleared"]

    async def test_a_superseded_attempt_is_not_there(self, store: Store) -> None:
        """A retry stands for it."""
        writer = Writer(store)
        first = writer.entry(turn="t", closing=False)
        await writer.append(first)
        writer.token = "retry"
        again = await writer.append(writer.entry(turn="t", adds=0))
        (line,) = of_type(await lines_of(export_conversation(writer.key, store=store)), "entry")
        assert (line["id"], line["position"], line["turn"]) == (again.id, 2, "t")


class TestWhoseIsExported:
    """An owner's, a tenant's, one conversation's, and nobody else's."""

    async def test_an_owners_are_all_there_and_nobody_elses(self, store: Store) -> None:
        """More than a page of them."""
        owner = fresh_key().owner
        names = {f"s{n}" for n in range(203)}
        for name in names:
            await Writer(store, SessionKey(owner, name)).append()
        for other in (SessionKey(f"{owner}x"), SessionKey(owner, tenant="t"), fresh_key()):
            await Writer(store, other).append()
        lines = await lines_of(export_owner(owner, store=store))
        assert Counter(line["session_id"] for line in of_type(lines, "conversation")) == Counter(names)
        assert {(line["owner"], line["tenant"]) for line in of_type(lines, "conversation")} == {(owner, "")}
        assert (lines[0]["owner"], lines[0]["tenant"]) == (owner, "")

    async def test_one_that_is_written_while_others_are_exported_is_not_left_out(self, store: Store) -> None:
        """It moves to the front of the list, to a page that was turned already; and it is there once."""
        owner = fresh_key().owner
        writers = [Writer(store, SessionKey(owner, f"s{n}")) for n in range(230)]
        for writer in writers:
            await writer.append()
        seen: Counter[str] = Counter()
        async with aclosing(export_owner(owner, store=store)) as pieces:
            async for piece in pieces:
                for line in map(json.loads, piece.splitlines()):
                    if line["type"] == "conversation":
                        seen[line["session_id"]] += 1
                        if len(seen) % 20 == 1:
                            await writers[len(seen) // 20].append()
        assert seen == Counter(f"s{n}" for n in range(230))

    async def test_a_tenants_are_all_there_with_their_owners(self, store: Store) -> None:
        """A customer moves, without what has expired; the tenant beside it stays where it is."""
        tenant = fresh_key().owner
        keys = {SessionKey(owner, name, tenant) for owner in ("user:1", "visitor:\ud83e\n") for name in ("a", "b")}
        for key in (*keys, SessionKey("user:1", "a", f"{tenant}x")):
            await Writer(store, key).append()
        await Writer(store, SessionKey("user:old", tenant=tenant)).append(ttl=SHORT)
        await asyncio.sleep(PAST_SHORT)
        lines = await lines_of(export_tenant(tenant, store=store))
        found = [SessionKey(line["owner"], line["session_id"], line["tenant"]) for line in of_type(lines, "conversation")]
        assert Counter(found) == Counter(keys)
        assert "owner" not in lines[0]

    async def test_one_conversation_is_exported_alone(self, store: Store) -> None:
        """And one that does not exist is an export without one, not an error."""
        key = fresh_key("this")
        for name in ("this", "that"):
            await say(store, SessionKey(key.owner, name), Message.user(name))
        assert texts(await lines_of(export_conversation(key, store=store))) == ["this"]
        assert (await lines_of(export_conversation(fresh_key(), store=store)))[-1]["conversations"] == 0

    async def test_what_convmem_keeps_for_itself_is_in_no_export(self) -> None:
        """The signing key opens every visitor's conversation."""
        store = MemoryStore()
        await Writer(store, SessionKey.reserved("signing-key")).append()
        assert (await lines_of(export_tenant("", store=store)))[-1]["conversations"] == 0

    @pytest.mark.parametrize("owner", ["42", "convmem:key", ""])
    async def test_what_is_no_owner_is_refused(self, owner: str) -> None:
        """An empty export of a mistyped owner would be handed out as theirs."""
        with pytest.raises(InvalidIdentity):
            await anext(export_owner(owner, store=MemoryStore()))


class TestLongConversations:
    """Read a page at a time, and yet whole, in order, and at one head."""

    async def test_pages_follow_each_other_oldest_first(self, store: Store) -> None:
        """Turns of several entries, read in pages of other sizes: none lost, doubled or torn."""
        writer = Writer(store)
        ids = []
        for n in range(150):
            for part in range(1 + n % 3):
                entry = await writer.append(writer.entry(turn=f"t{n}", closing=part == n % 3, adds=not part))
                ids.append(entry.id)
        entries = of_type(await lines_of(export_conversation(writer.key, store=store)), "entry")
        assert [line["id"] for line in entries] == ids
        assert [line["position"] for line in entries] == list(range(1, len(ids) + 1))

    async def test_memory_is_bounded(self) -> None:
        """A conversation of images is larger than the worker that exports it: no piece and no load may hold all of it."""
        store = Watched(MemoryStore())
        writer = Writer(store)
        body = encode_messages([encode_message(Message.user("x" * 400_000))])
        for _ in range(100):
            await writer.append(writer.entry(body=body))
        largest = total = 0
        async with aclosing(export_conversation(writer.key, store=store)) as pieces:
            async for piece in pieces:
                largest, total = max(largest, len(piece)), total + len(piece)
        assert total > 40_000_000
        assert largest < 5_000_000
        assert store.largest < 5_000_000

    async def test_a_retry_on_the_way_neither_doubles_nor_drops_its_turn(self, store: Store) -> None:
        """It takes the attempt before it out of the pages still to come, and stands itself in one already read."""
        moving = Moving(store)
        writer = Writer(moving)
        interrupted = await writer.append(writer.entry(turn="retried", closing=False))
        for _ in range(40):
            await writer.append()

        async def retry() -> None:
            writer.token = "retry"
            await writer.append(writer.entry(turn="retried", adds=0))

        moving.between = [retry]
        lines = await lines_of(export_conversation(writer.key, store=moving))
        entries = of_type(lines, "entry")
        assert Counter(line["turn"] for line in entries)["retried"] == 1
        assert len(entries) == 41
        assert interrupted.id not in {line["id"] for line in entries}
        assert of_type(lines, "conversation")[0]["revision"] == writer.head.revision

    async def test_one_that_never_rests_is_exported_at_one_head(self, store: Store) -> None:
        """Somebody writes before every page: it is read in one piece in the end, and is what it was at that head."""
        moving = Moving(store)
        writer = Writer(moving)
        for _ in range(40):
            await writer.append()

        async def write() -> None:
            await writer.append()

        moving.between = [write] * 200
        lines = await lines_of(export_conversation(writer.key, store=moving))
        revision = of_type(lines, "conversation")[0]["revision"]
        positions = [line["position"] for line in of_type(lines, "entry")]
        assert positions == list(range(1, len(positions) + 1))
        assert revision.split(".")[1:] == [str(len(positions)), of_type(lines, "entry")[-1]["id"]]

    async def test_one_that_is_deleted_on_the_way_is_left_out(self, store: Store) -> None:
        """Half a conversation that is no longer there helps nobody."""
        moving = Moving(store)
        writer = Writer(moving)
        for _ in range(40):
            await writer.append()
        moving.between = [lambda: moving.delete(writer.key)]
        lines = await lines_of(export_conversation(writer.key, store=moving))
        assert lines[-1]["conversations"] == lines[-1]["entries"] == 0

    async def test_a_cleared_one_begins_where_it_was_cleared(self, store: Store) -> None:
        """Pages stop there, and do not go on to what is out of sight."""
        writer = Writer(store)
        for _ in range(30):
            await writer.append()
        await writer.append(writer.entry(kind=Kind.RESET))
        kept = [(await writer.append()).id for _ in range(12)]
        entries = of_type(await lines_of(export_conversation(writer.key, store=store)), "entry")
        assert [line["id"] for line in entries] == kept

    async def test_an_export_takes_no_lease_and_waits_for_none(self, store: Store) -> None:
        """Nobody has to stop talking to be exported."""
        writer = Writer(store)
        await writer.append()
        await writer.seize(LONG)
        await lines_of(export_conversation(writer.key, store=store))
        assert (await store.load(writer.key)).holder.token == writer.token


class TestOutages:
    """A file that is not whole says so."""

    async def test_a_store_that_does_not_answer_for_a_moment_is_asked_again(self) -> None:
        """An export of hours outlives a restart."""
        faulty = FaultyStore(MemoryStore())
        key = fresh_key()
        await say(faulty, key, Message.user("x"))
        faulty.fail("list", times=1)
        faulty.fail("load", times=2)
        assert texts(await lines_of(export_owner(key.owner, store=faulty))) == ["x"]

    async def test_an_export_that_breaks_off_has_no_last_line(self) -> None:
        """Who reads it later must not take it for everything."""
        faulty = FaultyStore(MemoryStore())
        key = fresh_key()
        await say(faulty, key, Message.user("x"))
        faulty.fail("load")
        pieces: list[bytes] = []
        with pytest.raises(StoreUnavailable):  # noqa: PT012 - what came before it counts
            async for piece in export_owner(key.owner, store=faulty):
                pieces.append(piece)  # noqa: PERF401 - a comprehension would lose them
        assert [json.loads(line)["type"] for line in b"".join(pieces).splitlines()] == ["export"]


async def test_a_person_downloads_their_own_from_the_app() -> None:
    """One route: the store is the middleware's, the owner the one who asks."""

    async def chat(request):
        current_conversation().append(Message.user("mine"))
        return StreamingResponse(iter(["ok"]))

    async def download(request):
        return StreamingResponse(export_owner(current_conversation().owner), media_type="application/x-ndjson")

    app = Starlette(routes=[Route("/chat", chat, methods=["POST"]), Route("/mine", download)])
    wrapped = ConversationMiddleware(app, store=MemoryStore(), settings=quick(), resolvers=[from_callable(user_header)])
    with TestClient(wrapped) as client:
        for user in ("ada", "bob"):
            assert client.post("/chat", headers={"x-user": user}).status_code == 200
        answer = client.get("/mine", headers={"x-user": "ada"})
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["owner"] for line in lines if line["type"] == "conversation"] == ["user:ada"]
    assert lines[-1]["messages"] == 1


class Watched(FaultyStore):
    """A store that knows how many bytes the largest load returned."""

    largest = 0

    async def load(self, key, **asked):
        log = await super().load(key, **asked)
        self.largest = max(self.largest, sum(len(stored.entry.body) for stored in log.entries))
        return log


class Moving(FaultyStore):
    """A store in which something happens after each load of a page, as long as there is something."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.between: list = []

    async def load(self, key, **asked):
        log = await super().load(key, **asked)
        if self.between and asked.get("turns"):
            happening, self.between = self.between[0], self.between[1:]
            await happening()
        return log
