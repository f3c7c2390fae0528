"""Forks, on every store: a conversation up to some place, as another one of the same owner."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import pytest
import pytest_asyncio
from fastapi import FastAPI
from fastapi.testclient import TestClient

from convmem import (
    ConversationConflict,
    ConversationGone,
    ConversationMiddleware,
    Edit,
    InvalidIdentity,
    Message,
    SessionKey,
    Settings,
    StoreUnavailable,
    UnknownConversation,
    UnknownRevision,
    conversations,
    current_conversation,
    fork,
    from_callable,
    open_conversation,
)
from convmem.stores.base import Store
from convmem.stores.memory import MemoryStore
from convmem.testing import CountedStore, FaultyStore, Writer
from convmem.testing.writer import PAST_SHORT, SHORT, fresh_key
from tests.stores import conftest as stores

backend = stores.backend
on_each_kind = pytest.mark.parametrize("backend", ["memory", "sqlite", "redis", "postgresql"], indirect=True)


@pytest_asyncio.fixture
async def store(backend: stores.Backend) -> AsyncIterator[Store]:
    """Each store in turn."""
    async with backend.open() as store:
        yield store


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a fork ask again soon."""
    monkeypatch.setattr("convmem.walks.PAUSES", (0.001, 0.002))


async def say(store: Store, key: SessionKey, *texts: str) -> str:
    """Have a turn; return the revision after it."""
    async with open_conversation(key, store=store) as conversation:
        conversation.append(*(Message.assistant(text) if i else Message.user(text) for i, text in enumerate(texts)))
    return (await store.load(key, turns=0)).head.revision


async def texts(store: Store, key: SessionKey) -> list[str]:
    async with open_conversation(key, store=store) as conversation:
        return [message.text for message in await conversation.history()]


async def attempt(store: Store, key: SessionKey, *, finish: bool) -> None:
    """Begin a turn that a retry finds again, and finish it or break off."""
    async with open_conversation(key, store=store, idempotency_key="job") as conversation:
        conversation.append(Message.user("broken off"))
        await conversation.save()
        if not finish:
            raise RuntimeError


class Full(CountedStore):
    """A store with room for the first two entries of a fork."""

    when_it_is_full: Callable[[], Awaitable[object]] | None = None

    async def append(self, key, after, entry, **options):
        if key.session_id == "fork" and after.n == 2:
            happens, self.when_it_is_full = self.when_it_is_full, None
            if happens is not None:
                await happens()
            raise StoreUnavailable("counted", "append", "the disk is full")
        return await super().append(key, after, entry, **options)


class Turning(FaultyStore):
    """A store in which something happens when a reader that went to the beginning of a conversation comes back towards its end."""

    when_it_turns: Callable[[], Awaitable[None]] | None = None
    _place = 0

    async def load(self, key, *, before=None, **options):
        if self.when_it_turns is not None:
            back, self._place = 0 < self._place < (before or 0), before or 0
            if back:
                await self.when_it_turns()
        return await super().load(key, before=before, **options)


@pytest.mark.asyncio
@on_each_kind
class TestWhatItShows:
    """The source as it was at that place."""

    async def test_all_of_it_by_default(self, store: Store) -> None:
        """Messages equal to those of the source, under an id nobody has had, in a conversation that goes on by itself."""
        key = fresh_key("chat", tenant="acme")
        await say(store, key, "one", "first")
        await say(store, key, "two", "second")
        copy = await fork(key, store=store)
        assert (copy.owner, copy.tenant) == (key.owner, key.tenant)
        assert copy.session_id != key.session_id
        async with open_conversation(key, store=store) as source, open_conversation(copy, store=store) as other:
            assert other.messages == source.messages
            assert (other.total_turns, other.is_new, other.interrupted) == (2, False, False)
            other.append(Message.user("three"))
        assert await texts(store, key) == ["one", "first", "two", "second"]
        assert await texts(store, copy) == ["one", "first", "two", "second", "three"]

    async def test_a_place_is_a_revision_or_a_position(self, store: Store) -> None:
        """What an app keeps beside a message, or what an export has; before the first turn there is nothing to copy."""
        key = fresh_key()
        revisions = ["-.0.-", *[await say(store, key, text) for text in ("one", "two", "three")]]
        for at, revision in enumerate(revisions):
            for place in (at, revision):
                assert await texts(store, await fork(key, place, store=store)) == ["one", "two", "three"][:at]

    async def test_an_edit_counts_from_where_it_stands(self, store: Store) -> None:
        """A fork of an earlier place shows what was hidden later; one of a later place does not, and neither counts it wrong."""
        key = fresh_key()
        async with open_conversation(key, store=store) as conversation:
            conversation.append(Message.system("rules"), Message.user("one"), Message.assistant("wrong"))
            wrong = conversation.new_messages[-1].id
        before = (await store.load(key, turns=0)).head.revision
        async with open_conversation(key, store=store) as conversation:
            conversation.edit(Edit(action="hide", ids=(wrong,)), Message.assistant("right"))
        assert await texts(store, await fork(key, before, store=store)) == ["rules", "one", "wrong"]
        assert await texts(store, await fork(key, store=store)) == ["rules", "one", "right"]
        async with open_conversation(key, store=store) as conversation:
            conversation.edit(Edit(action="hide", before="all"), Message.user("anew"))
        copy = await fork(key, store=store)
        async with open_conversation(copy, store=store) as conversation:
            assert ([message.text for message in conversation.messages], conversation.total_turns) == (["anew"], 1)

    async def test_what_was_cleared_is_not_shown_again(self, store: Store) -> None:
        """Clearing is the log's own border: a fork behind it begins there, and one before it is refused."""
        key = fresh_key()
        old = await say(store, key, "one")
        async with open_conversation(key, store=store) as conversation:
            await conversation.clear()
        cleared = (await store.load(key, turns=0)).head.revision
        await say(store, key, "two")
        assert await texts(store, await fork(key, store=store)) == ["two"]
        assert await texts(store, await fork(key, cleared, store=store)) == []
        with pytest.raises(UnknownRevision):
            await fork(key, old, store=store)

    async def test_an_interrupted_turn_stays_interrupted(self, store: Store) -> None:
        """Its question was asked; that it has no answer is said in the copy too, and a running turn is left out of it."""
        key = fresh_key()
        with pytest.raises(RuntimeError):  # noqa: PT012 - the turn breaks off
            async with open_conversation(key, store=store) as conversation:
                conversation.append(Message.user("one"))
                await conversation.save()
                raise RuntimeError
        async with open_conversation(key, store=store) as conversation:
            conversation.append(Message.user("two"))
            await conversation.save()
            copy = await fork(key, store=store)
        async with open_conversation(copy, store=store) as conversation:
            assert [(message.text, message.state) for message in conversation.messages] == [("one", "interrupted")]

    async def test_bytes_that_nobody_can_decode_are_copied(self, store: Store) -> None:
        """They may be readable tomorrow; the fork names them as the source does."""
        writer = Writer(store)
        for body in (b'["good"]', b"\x80not json"):
            await writer.append(writer.entry(body=body))
        copy = await fork(writer.key, store=store)
        assert [stored.entry.body for stored in (await store.load(copy)).entries] == [b'["good"]', b"\x80not json"]


@pytest.mark.asyncio
@on_each_kind
class TestRefusals:
    """Typed, and nothing is left behind."""

    async def test_a_missing_source_is_an_unknown_conversation(self, store: Store) -> None:
        """Never written, deleted, or somebody else's: one answer."""
        key = fresh_key()
        with pytest.raises(UnknownConversation):
            await fork(key, store=store)
        await say(store, key, "one")
        await store.delete(key)
        with pytest.raises(UnknownConversation):
            await fork(key, store=store)
        assert (await conversations(key.owner, store=store)).items == ()

    async def test_a_place_that_is_not_there_is_an_unknown_revision(self, store: Store) -> None:
        """Beyond the end, of another conversation, of an earlier life, or no place at all."""
        key, other = fresh_key(), fresh_key()
        old = await say(store, key, "one")
        await store.delete(key)
        await say(store, key, "two")
        epoch = (await store.load(key, turns=0)).head.epoch
        for place in (2, -1, old, await say(store, other, "one"), f"{epoch}.1.another", "nonsense"):
            with pytest.raises(UnknownRevision):
                await fork(key, place, store=store)
        assert len((await conversations(key.owner, store=store)).items) == 1

    async def test_a_place_of_an_earlier_life_is_none_of_this_one(self, store: Store) -> None:
        """Not even where nothing is in sight at that position now, to tell the two apart by."""
        writer = Writer(store)
        await writer.append()
        old = writer.head
        await store.delete(writer.key)
        await writer.load()
        for token in ("first", "second"):
            writer.token = token
            await writer.append(writer.entry(turn="again", closing=token == "second", adds=token == "first"))
        with pytest.raises(UnknownRevision):
            await fork(writer.key, old.revision, store=store)

    async def test_what_has_expired_is_not_there(self, store: Store) -> None:
        """A fork is no way back to what its time has taken."""
        writer = Writer(store)
        await writer.append(ttl=SHORT)
        await asyncio.sleep(PAST_SHORT)
        with pytest.raises(UnknownConversation):
            await fork(writer.key, store=store)

    async def test_an_id_that_is_taken_is_a_conflict(self, store: Store) -> None:
        """A fork never goes into a conversation that is there, not even into the source itself."""
        key = fresh_key()
        revision = await say(store, key, "one")
        taken = SessionKey(key.owner, "taken")
        for text in ("another", "and more"):
            await say(store, taken, text)
        for place in (None, 1, revision):
            with pytest.raises(ConversationConflict):
                await fork(key, place, session_id="taken", store=store)
        assert await texts(store, taken) == ["another", "and more"]
        with pytest.raises(InvalidIdentity):
            await fork(key, session_id="no id", store=store)

    async def test_a_shorter_conversation_is_not_gone_on_with(self, store: Store) -> None:
        """Somebody else's first turn and the source's second would read as one conversation; nor is one as long taken for the copy."""
        key = fresh_key()
        await say(store, key, "one")
        revision = await say(store, key, "two")
        taken = SessionKey(key.owner, "taken")
        await say(store, taken, "another")
        for place in (1, 2, revision):
            with pytest.raises(ConversationConflict):
                await fork(key, place, session_id="taken", store=store)
        assert await texts(store, taken) == ["another"]

    async def test_a_repeated_fork_is_the_same_fork(self, store: Store) -> None:
        """By its id and its place, also when its owner has gone on with it; without a place the end may have moved, so it is refused."""
        key = fresh_key()
        revision = await say(store, key, "one")
        copy = await fork(key, revision, session_id="fork", store=store)
        await say(store, copy, "mine")
        await say(store, key, "two")
        assert await fork(key, revision, session_id="fork", store=store) == copy
        assert await texts(store, copy) == ["one", "mine"]
        with pytest.raises(ConversationConflict):
            await fork(key, session_id="fork", store=store)
        await fork(key, revision, session_id="early", store=store)
        with pytest.raises(ConversationConflict):
            await fork(key, session_id="early", store=store)
        assert await texts(store, SessionKey(key.owner, "early")) == ["one"]


@pytest.mark.asyncio
class TestInTrouble:
    """A copy is whole, or it is not there."""

    async def test_a_store_that_fails_for_a_moment_is_asked_again(self) -> None:
        """Also where nobody knows whether an entry was stored."""
        store = FaultyStore(MemoryStore())
        key = fresh_key()
        for number in range(5):
            await say(store, key, f"number {number}")
        store.fail("load", times=1)
        store.lose_answer("append")
        assert await texts(store, await fork(key, store=store)) == [f"number {number}" for number in range(5)]

    async def test_a_copy_that_fails_is_taken_away(self) -> None:
        """Half a conversation in the list of conversations would look like a whole one."""
        store, key = Full(MemoryStore()), fresh_key()
        for number in range(4):
            await say(store, key, f"number {number}")
        with pytest.raises(StoreUnavailable):
            await fork(key, session_id="fork", store=store)
        assert [item.session_id for item in (await conversations(key.owner, store=store)).items] == ["default"]

    async def test_a_copy_that_somebody_has_gone_on_with_is_left(self) -> None:
        """Half a copy is ours to take away, and a turn of its owner's is not."""
        inner, key = MemoryStore(), fresh_key()
        store, copy = Full(inner), SessionKey(key.owner, "fork")
        for number in range(4):
            await say(store, key, f"number {number}")
        store.when_it_is_full = lambda: say(inner, copy, "mine")
        with pytest.raises(StoreUnavailable):
            await fork(key, session_id="fork", store=store)
        assert await texts(inner, copy) == ["number 0", "number 1", "mine"]

    async def test_a_repetition_that_fails_takes_nothing_away(self) -> None:
        """The first try's copy is whole, and may be in use."""
        inner, key = MemoryStore(), fresh_key()
        store = Turning(inner)
        for number in range(29):
            await say(store, key, f"number {number}")
        revision = await say(store, key, "number 29")
        copy = await fork(key, revision, session_id="fork", store=store)

        async def fail() -> None:
            store.fail("load")

        store.when_it_turns = fail
        with pytest.raises(StoreUnavailable):
            await fork(key, revision, session_id="fork", store=store)
        assert len(await texts(inner, copy)) == 30

    async def test_an_attempt_that_is_superseded_while_it_copies_moves_nothing(self) -> None:
        """A page then reaches one turn further back, to one that was copied before."""
        store, key = Turning(MemoryStore()), fresh_key()
        for number in range(30):
            if number == 24:
                with pytest.raises(RuntimeError):
                    await attempt(store, key, finish=False)
            else:
                await say(store, key, f"number {number}")

        async def again() -> None:
            store.when_it_turns = None
            await attempt(store, key, finish=True)

        store.when_it_turns = again
        copy = await fork(key, session_id="fork", store=store)
        assert await texts(store, copy) == [f"number {number}" for number in range(30) if number != 24]

    async def test_it_lives_as_long_as_a_conversation_does(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A copy that never ended would be a way around the TTL."""
        monkeypatch.setenv("CONVMEM_TTL", "1h")
        lives = []

        class Watched(CountedStore):
            async def append(self, key, after, entry, *, ttl=None, release=False):
                lives.append((key.session_id, ttl))
                return await super().append(key, after, entry, ttl=ttl, release=release)

        store, key = Watched(MemoryStore()), fresh_key()
        await say(store, key, "one")
        await fork(key, session_id="fork", store=store)
        assert lives == [("default", timedelta(hours=1)), ("fork", timedelta(hours=1))]

    @pytest.mark.parametrize("what", ["delete", "clear"])
    async def test_a_source_that_goes_away_meanwhile_leaves_no_copy(self, what: str) -> None:
        """Somebody who deletes what they said does not find it again as a fork."""

        class Going(CountedStore):
            gone = True

            async def load(self, key, *, before=None, **options):
                if before is not None and not self.gone:
                    self.gone = True
                    if what == "delete":
                        await self.delete(source)
                    else:
                        async with open_conversation(source, store=self) as conversation:
                            await conversation.clear()
                return await super().load(key, before=before, **options)

        store, source = Going(MemoryStore()), fresh_key()
        for number in range(30):
            await say(store, source, f"number {number}")
        store.gone = False
        with pytest.raises(ConversationGone if what == "delete" else UnknownRevision):
            await fork(source, store=store)
        assert {item.session_id for item in (await conversations(source.owner, store=store)).items} <= {"default"}

    async def test_memory_is_bounded(self) -> None:
        """Never more turns at once than a page has, and each page is read twice at most."""
        sizes = []

        class Watched(CountedStore):
            async def load(self, key, **options):
                log = await super().load(key, **options)
                sizes.append(len(log.entries))
                return log

        store = Watched(MemoryStore())
        writer = Writer(store)
        for _ in range(500):
            await writer.append()
        await fork(writer.key, store=store)
        assert max(sizes) <= 100
        assert len(sizes) <= 2 * 9 + 1

    @on_each_kind
    async def test_turns_go_on_while_it_copies(self, store: Store) -> None:
        """A fork takes no lease and is in nobody's way; what came later is not in it."""
        key = fresh_key()
        for number in range(20):
            await say(store, key, f"number {number}")
        later = asyncio.gather(*(say(store, key, f"later {i}") for i in range(3)))
        copy = await fork(key, store=store)
        await later
        copied = await texts(store, copy)
        assert copied == (await texts(store, key))[: len(copied)]
        assert len(copied) >= 20


def test_a_handler_forks_the_conversation_it_has() -> None:
    """In a request the store is the middleware's, and an error is answered as all of convmem's are."""
    app = FastAPI()
    settings = Settings({}, secret_key="a secret key of thirty-two bytes")
    owner = from_callable(lambda scope: "ada")
    app.add_middleware(ConversationMiddleware, store=MemoryStore(), settings=settings, resolvers=[owner], turns=["POST /chat"])

    @app.post("/chat")
    async def chat(text: str) -> str:
        conversation = current_conversation()
        revision = conversation.revision
        conversation.append(Message.user(text), Message.assistant("Noted."))
        return revision

    @app.post("/forks")
    async def branch(at: str) -> str:
        return (await fork(current_conversation().key, at)).session_id

    @app.get("/chat")
    async def said() -> list[str]:
        return [message.text for message in current_conversation().messages if message.role == "user"]

    with TestClient(app) as client:
        places = [client.post("/chat", params={"text": text}).json() for text in ("one", "two", "three")]
        for place, texts in zip(places, ([], ["one"], ["one", "two"]), strict=True):
            copy = client.post("/forks", params={"at": place}).json()
            assert client.get("/chat", headers={"X-Session-ID": copy}).json() == texts
        answer = client.post("/forks", params={"at": "nothing"})
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_revision")
