"""Imports from the stores of other libraries, each filled by the library itself, and compared with what it reads."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from llama_index.core.base.llms.types import ChatMessage
from redis.cluster import RedisCluster

from convmem import (
    ConfigurationError,
    Imported,
    LeftOut,
    MemoryStore,
    Message,
    SessionKey,
    SourceUnreadable,
    StoreUnavailable,
    import_conversations,
    open_conversation,
)
from convmem.testing import FaultyStore
from convmem_langchain import ConversationHistory
from tests.adapters.origins import (
    IN_OWN_ENVIRONMENTS,
    ORIGINS,
    LangChainPostgres,
    LangChainSQLite,
    LlamaIndexFile,
    LlamaIndexRedis,
    OpenAIAgentsSQLite,
    Origin,
)
from tests.environments import environment
from tests.wheels import valkey

pytestmark = [pytest.mark.asyncio]
OWNER = "user:42"


class Filler:
    """Stores of LlamaIndex's in an environment of their own."""

    def __init__(self) -> None:
        packages = ("llama-index-core", "llama-index-storage-chat-store-postgres", "psycopg[binary]", "pydantic<2.14")
        python = environment("llamaindex-older", *packages)
        command = [str(python), str(Path(__file__).with_name("filler.py"))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def say(self, kind: str, place: str, name: str, messages: Sequence[ChatMessage]) -> None:
        """Let a store add messages."""
        self._ask(kind=kind, place=place, name=name, messages=[message.model_dump(mode="json") for message in messages])

    def said(self, kind: str, place: str, name: str) -> list[ChatMessage]:
        """Return what a store reads."""
        return [ChatMessage.model_validate(message) for message in self._ask(kind=kind, place=place, name=name)]

    def _ask(self, **asked: Any) -> list[Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        said: list[Any] = json.loads(self._process.stdout.readline())
        return said

    def close(self) -> None:
        self._process.communicate(timeout=30)


@pytest.fixture(scope="session")
def filler() -> Iterator[Filler]:
    """One process for all tests: it takes seconds to import what it needs."""
    with closing(Filler()) as filler:
        yield filler


SLOW = [pytest.param(kind, marks=pytest.mark.all_only) for kind in IN_OWN_ENVIRONMENTS]


@pytest.fixture(params=(*ORIGINS, *SLOW), ids=lambda kind: kind.__name__)
def origin(request: pytest.FixtureRequest, tmp_path: Path) -> Origin:
    """Each library's store in turn."""
    made: Origin = request.param(request, tmp_path)
    return made


class Importing:
    """Imports from one place into one store."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.store = MemoryStore()
        self.left_out: list[LeftOut] = []

    async def run(self, store=None, **options) -> Imported:
        self.left_out.clear()
        options = {"owner": OWNER, **self.origin.options, **options}
        store = self.store if store is None else store
        return await import_conversations(self.origin.place, self.origin.source, store=store, left_out=self.left_out.append, **options)

    async def history(self, name: str) -> list[Message]:
        async with open_conversation(SessionKey(OWNER, name), store=self.store) as conversation:
            return await conversation.history()


@pytest.fixture
def importing(origin: Origin) -> Importing:
    return Importing(origin)


class TestEverySource:
    """What every one of them is promised."""

    async def test_every_message_comes_back_equal(self, origin: Origin, importing: Importing) -> None:
        """To the framework that wrote it: all kinds of messages, with tool calls, images, thoughts, and strange characters."""
        name = origin.name(1)
        await origin.say(name, origin.corpus)
        receipt = await importing.run()
        assert importing.left_out == []
        assert (receipt.conversations, receipt.renamed) == (1, 0)
        assert origin.native(await importing.history(name)) == await origin.said(name)

    async def test_turns_begin_at_a_users_message(self, origin: Origin, importing: Importing) -> None:
        """So that a window of turns is what it says, with the system message, and no tool call without its result."""
        name, talk = origin.name(1), origin.talk(60)
        await origin.say(name, talk)
        await importing.run()
        async with open_conversation(SessionKey(OWNER, name), store=importing.store) as conversation:
            assert conversation.total_turns == 60
            window = conversation.messages
            history = await conversation.history()
        assert conversation.left_out > 0
        assert [window[0].role, window[1].role] == ["system", "user"]
        assert [message.role for message in window].count("user") == 60 - conversation.left_out
        assert {message.state for message in history} == {"complete"}
        calls = [call.id for message in window for call in message.tool_calls]
        assert calls == [message.tool_call_id for message in window if message.role == "tool"]
        assert calls

    async def test_a_conversation_of_ten_thousand_messages(self, origin: Origin, importing: Importing, longer: bool) -> None:
        """In order, all of them, once; most libraries take so long to write them that it is for ``--all``."""
        name, talk = origin.name(1), origin.talk(4_000)[: 10_000 if longer or origin.is_fast else 700]
        await origin.say(name, talk)
        await origin.say(origin.name(2), origin.talk(1))
        receipt = await importing.run()
        assert receipt.conversations == 2
        assert origin.native(await importing.history(name)) == await origin.said(name)

    async def test_many_conversations_keep_apart(self, origin: Origin, importing: Importing) -> None:
        """Written at the same time, one message here and one there."""
        names = [origin.name(n) for n in range(4)]
        for turn in range(3):
            for name in names:
                await origin.say(name, origin.talk(1)[1 if turn else 0 :])
        assert (await importing.run()).conversations == 4
        for name in names:
            assert origin.native(await importing.history(name)) == await origin.said(name)

    async def test_twice_is_as_good_as_once(self, origin: Origin, importing: Importing) -> None:
        """Nothing is there twice; what was said there since is added; and what was said here stays."""
        one, other = origin.name(1), origin.name(2)
        for name in (one, other):
            await origin.say(name, origin.talk(4))
        first = await importing.run()
        assert await importing.run() == Imported(conversations=2, already=2)
        await origin.say(one, origin.talk(2)[1:])
        async with open_conversation(SessionKey(OWNER, other), store=importing.store) as conversation:
            conversation.append(Message.user("said here"))
        again = await importing.run()
        assert (again.conversations, again.already, importing.left_out) == (2, 1, [])
        assert 0 < again.messages < first.messages
        assert origin.native(await importing.history(one)) == await origin.said(one)
        assert (await importing.history(other))[-1].text == "said here"

    async def test_stopped_anywhere_it_goes_on_there(self, origin: Origin, importing: Importing) -> None:
        """And the result is that of an import nobody stopped, entry for entry."""
        name = origin.name(1)
        await origin.say(name, origin.talk(3))
        await importing.run()
        key = SessionKey(OWNER, name)
        whole = [(stored.n, stored.entry.id, stored.entry.turn) for stored in (await importing.store.load(key)).entries]
        for stop in range(len(whole)):
            inner = MemoryStore()
            store = Stopping(inner, stop)
            with pytest.raises(StoreUnavailable):
                await importing.run(store)
            assert (await inner.load(key)).head.n == stop
            assert (await importing.run(inner)).conversations == 1
            assert [(stored.n, stored.entry.id, stored.entry.turn) for stored in (await inner.load(key)).entries] == whole

    async def test_what_cannot_be_carried_is_named(self, origin: Origin, importing: Importing) -> None:
        """By its conversation, its place in it and the reason; everything else is carried."""
        name, talk = origin.name(1), origin.talk(2)
        await origin.say(name, talk)
        readable = await origin.said(name)
        await origin.damage(name)
        await origin.say(name, talk[1:])
        receipt = await importing.run()
        (left_out,) = importing.left_out
        assert (left_out.conversation, left_out.message) == (name, len(talk) + 1)
        assert "document" in left_out.reason
        assert (receipt.conversations, receipt.left_out) == (1, 1)
        assert origin.native(await importing.history(name)) == [*readable, *readable[1:]]

    async def test_a_dry_run_says_the_same_and_stores_nothing(self, origin: Origin, importing: Importing) -> None:
        """Before the night of the move."""
        name = origin.name(1)
        await origin.say(name, origin.talk(3))
        await origin.damage(name)
        would, left_out = await importing.run(dry_run=True), list(importing.left_out)
        assert (await importing.store.list(OWNER)).items == ()
        assert (await importing.run(), importing.left_out) == (would, left_out)

    async def test_a_place_that_is_not_there_is_an_error(self, origin: Origin) -> None:
        """Not an import of nothing."""
        nowhere = {"redis": "redis://127.0.0.1:1", "postg": "postgresql://127.0.0.1:1/x"}.get(origin.place[:5], origin.place)
        with pytest.raises(SourceUnreadable):
            await import_conversations(nowhere, origin.source, owner=OWNER, store=MemoryStore(), **origin.options)


class TestAddresses:
    """Whose a conversation becomes, and which: other libraries' session ids know no owner."""

    @pytest.fixture
    def origin(self, request: pytest.FixtureRequest, tmp_path: Path) -> Origin:
        return LlamaIndexFile(request, tmp_path)

    @pytest.mark.parametrize(
        ("options", "name", "owner", "session"),
        [
            ({"owner": OWNER}, "chat-1", OWNER, "chat-1"),
            ({"owner": OWNER, "ids": "app:{session}"}, "app:1", OWNER, "1"),
            ({"ids": "{user}"}, "ada@example.org", "user:ada@example.org", "default"),
            ({"ids": "{user}:{session}"}, "ada:b_1", "user:ada", "b_1"),
            ({"ids": "{session}@{visitor}"}, "1@v@2", "visitor:v@2", "1"),
            ({"ids": "{header}"}, "s1", "header:s1", "default"),
            ({"ids": "[{user}]*"}, "[ada]*", "user:ada", "default"),
            ({"ids": "{user}/{session}"}, "ada\n/1", "user:ada\n", "1"),
        ],
    )
    async def test_an_id_becomes_an_address(self, origin, importing, options, name, owner, session) -> None:
        """As the one who moves says it: each part as short as it can be, everything else literally."""
        await origin.say(name, origin.talk(1))
        receipt = await importing.run(**{"owner": None, **options})
        assert (receipt.conversations, receipt.renamed, importing.left_out) == (1, 0, [])
        (item,) = (await importing.store.list(None, tenant=None)).items
        assert (item.key.owner, item.key.session_id, item.key.tenant) == (owner, session, "")

    async def test_a_tenant_is_in_the_id_or_given(self, origin, importing) -> None:
        """Never both."""
        await origin.say("acme/ada", origin.talk(1))
        await importing.run(owner=None, ids="{tenant}/{user}")
        await importing.run(owner=None, ids="acme/{user}", tenant="other")
        keys = {item.key for item in (await importing.store.list(None, tenant=None)).items}
        assert keys == {SessionKey("user:ada", tenant="acme"), SessionKey("user:ada", tenant="other")}

    async def test_a_session_id_that_is_none_of_ours_gets_another_one(self, origin, importing) -> None:
        """Always the same, told in the receipt; the conversation is among its owner's."""
        for name in ("a/b", "a b", "ok"):
            await origin.say(name, origin.talk(1))
        assert (await importing.run()).renamed == 2
        assert await importing.run() == Imported(conversations=3, already=3, renamed=2)
        ids = {item.session_id for item in (await importing.store.list(OWNER)).items}
        assert len(ids) == 3
        assert "ok" in ids
        assert sum(identifier.startswith("imported-") for identifier in ids) == 2

    async def test_an_id_of_another_form_is_named(self, origin, importing) -> None:
        """It is somebody's, and nobody knows whose."""
        for name in ("ada:1", "ghost", "x" * 600 + ":1"):
            await origin.say(name, origin.talk(1))
        assert (await importing.run(owner=None, ids="{user}:{session}")).conversations == 1
        assert [said.conversation[:5] for said in importing.left_out] == ["ghost", "xxxxx"]
        assert "does not look like {user}:{session}" in importing.left_out[0].reason

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({}, "Say once whose"),
            ({"ids": "{session}"}, "Say once whose"),
            ({"ids": "{user}", "owner": OWNER}, "Say once whose"),
            ({"ids": "{user}{visitor}"}, "Say once whose"),
            ({"ids": "{user}{user}"}, "Say once whose"),
            ({"ids": "{name}"}, "ids has {name}"),
            ({"ids": "{user}{tenant}", "tenant": "acme"}, "The tenant is given"),
            ({"owner": OWNER, "table": "x"}, "llamaindex-file takes no table"),
            ({"owner": OWNER, "prefix": "x"}, "llamaindex-file takes no prefix"),
            ({"owner": OWNER, "source": "langchain-postgres"}, "Name the table"),
            ({"source": "convmem", "ids": "{user}"}, "convmem takes no ids"),
        ],
    )
    async def test_what_cannot_be_meant_is_refused(self, origin, options, sentence) -> None:
        """Before anything is read."""
        options = {"source": origin.source, **options}
        with pytest.raises(ConfigurationError, match=sentence):
            await import_conversations(origin.place, store=MemoryStore(), **options)


async def test_times_are_kept_where_they_are_known(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """LangChain's PostgreSQL history and the SDK's sessions have one for each message."""
    for kind in (LangChainPostgres, OpenAIAgentsSQLite):
        origin = kind(request, tmp_path)
        importing = Importing(origin)
        name = origin.name(1)
        await origin.say(name, origin.talk(1))
        long_ago = datetime(2020, 2, 3, 4, 5, 6, tzinfo=UTC)
        origin.date(long_ago)
        await importing.run()
        assert {message.created_at for message in await importing.history(name)} == {long_ago}


async def test_a_chunk_is_the_message_it_is_a_chunk_of(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """LangChain stores what it streamed as chunks."""
    origin = LangChainSQLite(request, tmp_path)
    importing = Importing(origin)
    await origin.say("s", [HumanMessage("hello"), AIMessageChunk("hi", id="m1")])
    await importing.run()
    assert origin.native(await importing.history("s")) == [HumanMessage("hello"), AIMessage("hi", id="m1")]


async def test_another_prefix_and_another_table(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """What stands in no such key and no such table is not read; characters of a pattern are taken literally."""
    redis = LlamaIndexRedis(request, tmp_path)
    for name in ("chat[1]*:a", "chat[1]*:b", "chat1:c", "other"):
        await redis.say(name, redis.talk(1))
    importing = Importing(redis)
    assert (await importing.run(prefix="chat[1]*:")).conversations == 2
    assert {item.session_id for item in (await importing.store.list(OWNER)).items} == {"a", "b"}
    sqlite = LangChainSQLite(request, tmp_path)
    await sqlite.say("s", sqlite.talk(1))
    with closing(sqlite3.connect(sqlite.place)) as link, link:
        link.execute('ALTER TABLE message_store RENAME TO "a ""table"""')
    assert (await Importing(sqlite).run(table='a "table"')).conversations == 1
    with pytest.raises(SourceUnreadable, match="no such table"):
        await Importing(sqlite).run()


async def test_a_cluster_is_read_as_a_whole(valkey_cluster: valkey.Cluster) -> None:
    """One node shows its own keys only; what stands on the others would be missing without a word."""
    url = valkey_cluster.url.removeprefix("redis+cluster://").partition(",")[0]
    said = [ChatMessage("hello"), ChatMessage("hi", role="assistant")]
    with closing(RedisCluster.from_url(f"redis://{url}")) as redis:
        for n in range(30):
            for message in said:
                redis.rpush(f"moving:{n}", message.model_dump_json())
    store = MemoryStore()
    receipt = await import_conversations(f"redis://{url}", "llamaindex-redis", owner=OWNER, prefix="moving:", store=store)
    assert receipt == Imported(conversations=30, messages=60)


async def test_the_source_is_not_changed(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """It is read beside the app that still uses it."""
    origin = LangChainSQLite(request, tmp_path)
    await origin.say("s", origin.talk(3))
    before = contents(tmp_path)
    await Importing(origin).run()
    assert contents(tmp_path) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


async def test_a_turn_that_grew_is_named_and_not_doubled(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Its question was imported before its answer came: what is here is no longer what is there, and nobody guesses."""
    origin = LangChainSQLite(request, tmp_path)
    importing = Importing(origin)
    await origin.say("s", [HumanMessage("hello"), AIMessage("hi"), HumanMessage("and?")])
    assert (await importing.run()).messages == 3
    await origin.say("s", [AIMessage("so")])
    assert await importing.run() == Imported(left_out=1)
    assert "goes on differently" in importing.left_out[0].reason
    assert [message.text for message in await importing.history("s")] == ["hello", "hi", "and?"]


async def test_a_long_turn_is_several_entries_and_one_turn(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """An agent that worked for hours; also where the end of it cannot be read, the turn has an end."""
    origin = LlamaIndexFile(request, tmp_path)
    importing = Importing(origin)
    await origin.say("s", [ChatMessage("go", role="user"), *(ChatMessage(f"step {n}", role="assistant") for n in range(399))])
    await origin.damage("s")
    assert await importing.run() == Imported(conversations=1, messages=400, left_out=1)
    log = await importing.store.load(SessionKey(OWNER, "s"))
    assert [stored.entry.count for stored in log.entries] == [200, 200, 0]
    assert (log.size, log.head.turns) == (1, 1)
    history = await importing.history("s")
    assert [message.text for message in history] == ["go", *(f"step {n}" for n in range(399))]
    assert {message.state for message in history} == {"complete"}


async def test_another_conversation_of_the_same_form_is_another_one(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """As many messages, as long, by the same speakers; what is here is compared by what it says."""
    origin = LlamaIndexFile(request, tmp_path)
    importing = Importing(origin)
    await origin.say("s", [ChatMessage("one", role="user")])
    await importing.run()
    Path(origin.place).unlink()  # noqa: ASYNC240
    await origin.say("s", [ChatMessage("two", role="user")])
    assert await importing.run() == Imported(left_out=1)
    assert [message.text for message in await importing.history("s")] == ["one"]


async def test_a_conversation_that_was_moved_goes_on(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """In the app that was moved too: the framework's history finds what was said, and appends."""
    origin = LangChainSQLite(request, tmp_path)
    importing = Importing(origin)
    await origin.say("s", origin.talk(2))
    await importing.run()
    async with open_conversation(SessionKey(OWNER, "s"), store=importing.store):
        history = ConversationHistory()
        before = await history.aget_messages()
        await history.aadd_messages([HumanMessage("on"), AIMessage("and on")])
    assert before == await origin.said("s")
    assert [message.text for message in await importing.history("s")][-2:] == ["on", "and on"]


class Stopping(FaultyStore):
    """A store that goes down after some appends."""

    def __init__(self, store: MemoryStore, appends: int) -> None:
        super().__init__(store)
        self._left = appends

    async def append(self, key, after, entry, **options):
        if not self._left:
            self.fail("append")
        self._left -= 1
        return await super().append(key, after, entry, **options)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an import ask again soon."""
    monkeypatch.setattr("convmem.walks.PAUSES", (0.001, 0.002))
