"""Imports of our own exports, on every store: equal, once, and never over what somebody else has said."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from convmem import (
    ConfigurationError,
    Edit,
    Imported,
    InvalidIdentity,
    LeftOut,
    Message,
    Note,
    SessionKey,
    SourceUnreadable,
    SQLiteStore,
    StoreUnavailable,
    export_conversation,
    export_owner,
    export_tenant,
    import_conversations,
    open_conversation,
)
from convmem.messages import encode_message, encode_messages
from convmem.stores.base import Store
from convmem.stores.memory import MemoryStore
from convmem.testing import FaultyStore, Writer
from convmem.testing.writer import LONG, PAST_SHORT, SHORT, fresh_key
from tests.servers.processes import clean_environment
from tests.stores import conftest as stores
from tests.test_export import EVERYTHING, lines_of, of_type, say

pytestmark = pytest.mark.asyncio
backend = stores.backend
MOVED = ("exported_at", "created_at", "updated_at", "revision", "position", "stored_at")
"""What is another one in another store: where and when an entry stands. All else is equal."""


@pytest_asyncio.fixture
async def store(backend: stores.Backend) -> AsyncIterator[Store]:
    """Each store in turn."""
    async with backend.open() as store:
        yield store


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an import ask again soon."""
    monkeypatch.setattr("convmem.walks.PAUSES", (0.001, 0.002))


class Importing:
    """An export in a file, and imports of it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "export.ndjson"
        self.left_out: list[LeftOut] = []

    async def export(self, pieces: AsyncIterator[bytes]) -> list[dict]:
        """Write an export, and return what a reader may count on."""
        text = b"".join([piece async for piece in pieces])
        self.file.write_bytes(text)
        return content(json.loads(line) for line in text.splitlines())

    def rewrite(self, *lines: bytes) -> None:
        self.file.write_bytes(b"".join(line + b"\n" for line in lines))

    @property
    def lines(self) -> list[bytes]:
        return self.file.read_bytes().splitlines()

    async def run(self, store: Store, **options) -> Imported:
        self.left_out.clear()
        return await import_conversations(str(self.file), store=store, left_out=self.left_out.append, **options)


@pytest.fixture
def importing(tmp_path: Path) -> Importing:
    return Importing(tmp_path)


def content(lines: Iterable[dict]) -> list[dict]:
    """Return the lines of an export without what is another one in another store."""
    return [{name: value for name, value in line.items() if name not in MOVED} for line in lines]


async def exported(pieces) -> list[dict]:
    return content(await lines_of(pieces))


async def rich(store: Store, key: SessionKey) -> None:
    """Store a conversation with everything in it: all kinds of messages, a broken turn, a turn of three entries, edits, a note."""
    await say(store, key, *EVERYTHING)
    with pytest.raises(RuntimeError):  # noqa: PT012 - the turn breaks off
        async with open_conversation(key, store=store) as conversation:
            conversation.append(Message.user("broken off"))
            await conversation.save()
            raise RuntimeError
    async with open_conversation(key, store=store) as conversation:
        for text in ("one", "two", "three"):
            conversation.append(Message.user(text))
            await conversation.save()
    async with open_conversation(key, store=store) as conversation:
        conversation.edit(Edit(action="hide", ids=(EVERYTHING[0].id,)))
        conversation.append(Note(kind="test", data={"bytes": b"\xff"}), Message.system("be long"), Message.user("go on"))
        conversation.edit(Edit(action="archive", ids=(EVERYTHING[1].id,)))


class TestAnExportReadBack:
    """Everything that was exported is in the store as it was."""

    async def test_it_is_equal(self, store: Store, importing: Importing) -> None:
        """Exported again it says the same: owners, ids, turns, their ends and their order, every message and edit, what is damaged."""
        source, tenant = MemoryStore(), fresh_key().owner
        keys = [SessionKey(owner, name, tenant) for owner in ("user:1", "visitor:\ud83e\n") for name in ("a", "b")]
        for key in keys:
            await rich(source, key)
        writer = Writer(source, keys[0])
        await writer.load()
        await writer.append(writer.entry(body=b"\xff\x00["))
        before = await importing.export(export_tenant(tenant, store=source))
        receipt = await importing.run(store)
        assert importing.left_out == []
        assert receipt == Imported(conversations=4, messages=4 * 11 + 1)
        after = await exported(export_tenant(tenant, store=store))
        assert sorted(after, key=json.dumps) == sorted(before, key=json.dumps)
        for key in keys:
            one, other = [await exported(export_conversation(key, store=each)) for each in (source, store)]
            assert of_type(one, "entry") == of_type(other, "entry")

    async def test_an_app_sees_the_same_window(self, store: Store, importing: Importing) -> None:
        """Turns are counted, system messages pinned and hidden, as if it had been said here."""
        source, key = MemoryStore(), fresh_key()
        await rich(source, key)
        for n in range(60):
            await say(source, key, Message.user(f"more {n}"))
        await importing.export(export_conversation(key, store=source))
        await importing.run(store)
        seen = []
        for each in (source, store):
            async with open_conversation(key, store=each) as conversation:
                said, history = conversation.messages, await conversation.history()
                seen.append((said, conversation.total_turns, conversation.left_out, [(m, m.state, m.archived) for m in history]))
        assert seen[0] == seen[1]
        assert [message.text for message in seen[1][0] if message.role == "system"] == ["be long"]
        assert seen[1][2] > 0

    async def test_a_system_message_is_in_every_window_until_it_is_hidden(self, store: Store, importing: Importing) -> None:
        """Also long before it: the entry that says it is loaded with every window, and so is the one that hides it."""
        source, key, dropped = MemoryStore(), fresh_key(), Message.system("drop")
        await say(source, key, Message.system("keep"), Message.user("one"))
        await say(source, key, dropped, Message.user("two"))
        async with open_conversation(key, store=source) as conversation:
            conversation.edit(Edit(action="hide", ids=(dropped.id,)), Message.user("three"))
        for n in range(50):
            await say(source, key, Message.user(f"more {n}"))
        await importing.export(export_conversation(key, store=source))
        await importing.run(store)
        async with open_conversation(key, store=store) as conversation:
            assert [message.text for message in conversation.messages][:2] == ["keep", "more 0"]

    async def test_a_system_message_that_was_archived_and_then_hidden_stays_hidden(self, store: Store, importing: Importing) -> None:
        """The edit that hides what is archived names nobody, and is loaded with every window all the same."""
        source, key, dropped = MemoryStore(), fresh_key(), Message.system("drop")
        await say(source, key, dropped, Message.user("one"))
        async with open_conversation(key, store=source) as conversation:
            conversation.edit(Edit(action="archive", ids=(dropped.id,)))
        async with open_conversation(key, store=source) as conversation:
            conversation.edit(Edit(action="hide", before="archived"), Message.user("two"))
        for n in range(50):
            await say(source, key, Message.user(f"more {n}"))
        await importing.export(export_conversation(key, store=source))
        await importing.run(store)
        for each in (source, store):
            async with open_conversation(key, store=each) as conversation:
                assert conversation.messages[0].text == "more 0"

    async def test_twice_is_as_good_as_once(self, store: Store, importing: Importing) -> None:
        """Who is not sure that it ran runs it again."""
        source, key = MemoryStore(), fresh_key()
        await rich(source, key)
        before = await importing.export(export_conversation(key, store=source))
        await importing.run(store)
        head = (await store.load(key)).head
        assert await importing.run(store) == Imported(conversations=1, already=1)
        assert importing.left_out == []
        assert (await store.load(key)).head == head
        assert await exported(export_conversation(key, store=store)) == before

    async def test_a_conversation_that_went_on_here_is_left_as_it_is(self, store: Store, importing: Importing) -> None:
        """After the move the app writes; a second import takes nothing back and calls nothing wrong."""
        source, key = MemoryStore(), fresh_key()
        await rich(source, key)
        await importing.export(export_conversation(key, store=source))
        await importing.run(store)
        await say(store, key, Message.user("said here"))
        head = (await store.load(key)).head
        assert await importing.run(store) == Imported(conversations=1, already=1)
        assert (await store.load(key)).head == head

    async def test_what_was_said_there_since_is_added(self, store: Store, importing: Importing) -> None:
        """The first import can run days before the move, and the second one is short."""
        source, key = MemoryStore(), fresh_key()
        await rich(source, key)
        await importing.export(export_conversation(key, store=source))
        await importing.run(store)
        await say(source, key, Message.user("said there"))
        before = await importing.export(export_conversation(key, store=source))
        assert await importing.run(store) == Imported(conversations=1, messages=1)
        assert await exported(export_conversation(key, store=store)) == before

    async def test_they_can_become_another_owners(self, store: Store, importing: Importing) -> None:
        """An account that is renamed, a customer that moves into a tenant."""
        source, key, other = MemoryStore(), fresh_key("chat"), fresh_key("chat", tenant="acme")
        await say(source, key, Message.user("hello"))
        await importing.export(export_owner(key.owner, store=source))
        await importing.run(store, owner=other.owner, tenant="acme")
        async with open_conversation(other, store=store) as conversation:
            assert [message.text for message in conversation.messages] == ["hello"]
        assert (await store.list(key.owner)).items == ()

    async def test_two_that_would_become_one_are_not_mixed(self, store: Store, importing: Importing) -> None:
        """Two people's default conversations, both to be one owner's: the second has to go elsewhere, and is named."""
        source, tenant, heir = MemoryStore(), fresh_key().owner, fresh_key().owner
        for owner in ("user:1", "user:2"):
            await rich(source, SessionKey(owner, tenant=tenant))
        await importing.export(export_tenant(tenant, store=source))
        assert await importing.run(store, owner=heir) == Imported(conversations=1, messages=11, left_out=1)
        assert "another conversation" in importing.left_out[0].reason

    async def test_a_dry_run_stores_nothing_and_says_what_would_be(self, store: Store, importing: Importing) -> None:
        """And the import that follows does that."""
        source, key = MemoryStore(), fresh_key()
        taken = SessionKey(key.owner, "taken")
        for one in (key, taken):
            await rich(source, one)
        await say(store, taken, Message.user("somebody else's"))
        await importing.export(export_owner(key.owner, store=source))
        would = await importing.run(store, dry_run=True)
        assert would == Imported(conversations=1, messages=11, left_out=1)
        assert not (await store.load(key)).head.epoch
        left_out = list(importing.left_out)
        assert await importing.run(store) == would
        assert importing.left_out == left_out


class TestWhoElseWrites:
    """An import never stores anything over, between or after what somebody else has said."""

    async def test_another_conversation_at_the_address_is_left_alone(self, store: Store, importing: Importing) -> None:
        """It is named, and the others are carried."""
        source, key = MemoryStore(), fresh_key("a")
        for name in ("a", "b"):
            await rich(source, SessionKey(key.owner, name))
        await importing.export(export_owner(key.owner, store=source))
        await say(store, key, Message.user("mine"))
        head = (await store.load(key)).head
        assert await importing.run(store) == Imported(conversations=1, messages=11, left_out=1)
        (left_out,) = importing.left_out
        assert (left_out.conversation, left_out.message) == (f"{key.owner}/a", None)
        assert "another conversation" in left_out.reason
        assert (await store.load(key)).head == head

    async def test_one_that_went_another_way_is_left_alone(self, store: Store, importing: Importing) -> None:
        """Half an import, then a turn of the app's, then the rest would put answers under the wrong questions."""
        source, key = MemoryStore(), fresh_key()
        await rich(source, key)
        await importing.export(export_conversation(key, store=source))
        whole = importing.lines
        importing.rewrite(*whole[:4])
        await importing.run(store)
        await say(store, key, Message.user("said here"))
        head = (await store.load(key)).head
        importing.rewrite(*whole)
        assert await importing.run(store) == Imported(left_out=1)
        assert (await store.load(key)).head == head

    async def test_a_turn_that_somebody_else_left_unfinished_is_not_finished(self, store: Store, importing: Importing) -> None:
        """Its beginning would go out of sight, as an attempt's does when another attempt at the same turn is stored."""
        source = Writer(MemoryStore())
        first = await source.append(source.entry(turn="t", closing=False, body=body("one")))
        await source.append(source.entry(turn="t", adds=0, body=body("two")))
        await importing.export(export_conversation(source.key, store=source.store))
        here = Writer(store, source.key)
        await here.append(replace(here.entry(turn="t", closing=False, body=body("one")), id=first.id))
        assert await importing.run(store) == Imported(left_out=1)
        assert "not finished" in importing.left_out[0].reason
        assert await here.visible() == (first.id,)

    async def test_one_whose_turn_is_running_is_left_alone(self, store: Store, importing: Importing) -> None:
        """Its handler has loaded, and its answer is on the way."""
        source, key = MemoryStore(), fresh_key()
        await rich(source, key)
        before = await importing.export(export_conversation(key, store=source))
        live = Writer(store, key)
        await live.seize(LONG)
        assert await importing.run(store) == Imported(left_out=1)
        assert "at this moment" in importing.left_out[0].reason
        await store.release(key, live.token)
        assert await importing.run(store) == Imported(conversations=1, messages=11)
        assert await exported(export_conversation(key, store=store)) == before

    async def test_the_lease_is_given_back(self, store: Store, importing: Importing) -> None:
        """The person whose conversation was moved just now is not told to wait."""
        source, key = MemoryStore(), fresh_key()
        await rich(source, key)
        await importing.export(export_conversation(key, store=source))
        await importing.run(store)
        assert (await store.load(key)).holder.token == ""

    async def test_it_holds_the_lease_for_as_long_as_it_writes(self, importing: Importing, monkeypatch: pytest.MonkeyPatch) -> None:
        """A long conversation takes longer than one term."""
        monkeypatch.setattr("convmem.importing._RENEW_AFTER", 0.0)
        terms = []

        class Watched(FaultyStore):
            async def load(self, key, *, lease=None, **options):
                terms.extend([lease.term] if lease else [])
                return await super().load(key, lease=lease, **options)

        source, key = MemoryStore(), fresh_key()
        await rich(source, key)
        await importing.export(export_conversation(key, store=source))
        await importing.run(Watched(MemoryStore()))
        assert len(terms) == (await source.load(key)).head.n

    async def test_what_it_stores_lives_as_long_as_the_apps_own(self, importing: Importing, monkeypatch: pytest.MonkeyPatch) -> None:
        """From now on."""
        monkeypatch.setenv("CONVMEM_TTL", "1h")
        lives = set()

        class Watched(FaultyStore):
            async def append(self, key, after, entry, *, ttl=None, release=False):
                lives.add(ttl)
                return await super().append(key, after, entry, ttl=ttl, release=release)

        source, key = MemoryStore(), fresh_key()
        await rich(source, key)
        await importing.export(export_conversation(key, store=source))
        await importing.run(Watched(MemoryStore()))
        assert lives == {timedelta(hours=1)}

    async def test_who_wrote_between_two_entries_is_not_written_over(self, importing: Importing) -> None:
        """A lease ran out while the source was slow, and somebody took it: what is stored stays, and nothing comes after."""
        source, key, store = MemoryStore(), fresh_key(), Hooked(MemoryStore())
        await rich(source, key)
        await importing.export(export_conversation(key, store=source))
        store.after_appends = 2
        store.then = lambda: intrude(store.inner, key)
        assert await importing.run(store) == Imported(messages=6, left_out=1)
        assert "meanwhile" in importing.left_out[0].reason
        async with open_conversation(key, store=store.inner) as conversation:
            assert [message.text for message in await conversation.history()][-2:] == ["broken off", "intruder"]

    async def test_one_that_was_deleted_here_stays_deleted(self, store: Store, importing: Importing) -> None:
        """Whoever asked to be forgotten does not come back with the next import; who restores a backup says so."""
        source, key = MemoryStore(), fresh_key()
        await rich(source, key)
        before = await importing.export(export_conversation(key, store=source))
        await importing.run(store)
        await store.delete(key)
        assert await importing.run(store) == Imported(left_out=1)
        assert "deleted here on 20" in importing.left_out[0].reason
        assert await importing.run(store, undelete=True) == Imported(conversations=1, messages=11)
        assert await exported(export_conversation(key, store=store)) == before

    async def test_one_that_has_expired_here_stays_expired(self, store: Store, importing: Importing) -> None:
        """Its TTL was a promise too."""
        source, key = MemoryStore(), fresh_key()
        await rich(source, key)
        await importing.export(export_conversation(key, store=source))
        await Writer(store, key).append(ttl=SHORT)
        await asyncio.sleep(PAST_SHORT)
        assert await importing.run(store) == Imported(left_out=1)
        assert "outlived its TTL" in importing.left_out[0].reason

    async def test_two_imports_at_once_store_everything_once(self, backend: stores.Backend, importing: Importing) -> None:
        """A cron job and an impatient operator."""
        source, key = MemoryStore(), fresh_key("0")
        for n in range(10):
            await rich(source, SessionKey(key.owner, str(n)))
        before = await importing.export(export_owner(key.owner, store=source))
        async with backend.open() as one, backend.open() as other:
            receipts = await asyncio.gather(importing.run(one), importing.run(other))
            assert importing.left_out == []
            assert [receipt.conversations for receipt in receipts] == [10, 10]
            after = await exported(export_owner(key.owner, store=one))
        assert sorted(after, key=json.dumps) == sorted(before, key=json.dumps)


async def intrude(store: Store, key: SessionKey) -> None:
    log = await store.load(key)
    await store.release(key, log.holder.token)
    await say(store, key, Message.user("intruder"))


class Hooked(FaultyStore):
    """A store in which something happens after some appends."""

    after_appends = 0
    then: Callable[[], Awaitable[None]]

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.inner = store

    async def append(self, key, after, entry, **options):
        appended = await super().append(key, after, entry, **options)
        self.after_appends -= 1
        if self.after_appends == 0:
            await self.then()
        return appended


class TestInterruptions:
    """An import that stopped in the middle goes on there."""

    @pytest.mark.parametrize("verb", ["load", "append", "release"])
    async def test_a_store_that_does_not_answer_now_and_then_is_asked_again(self, verb, importing: Importing) -> None:
        """Also when it had stored what it did not acknowledge."""
        source, key, inner = MemoryStore(), fresh_key(), MemoryStore()
        await rich(source, key)
        before = await importing.export(export_conversation(key, store=source))
        store = FaultyStore(inner)
        store.fail(verb, times=1)
        store.lose_answer(verb, times=1)
        receipt = await importing.run(store)
        assert (receipt.conversations, receipt.left_out) == (1, 0)
        assert await exported(export_conversation(key, store=inner)) == before

    async def test_a_store_that_stays_down_ends_it_and_the_next_run_goes_on(self, importing: Importing) -> None:
        """What was stored is not stored again."""
        source, key, inner = MemoryStore(), fresh_key(), MemoryStore()
        await rich(source, key)
        before = await importing.export(export_conversation(key, store=source))
        store = Hooked(inner)

        async def down() -> None:
            store.fail("append")

        store.after_appends, store.then = 3, down
        with pytest.raises(StoreUnavailable):
            await importing.run(store)
        log = await inner.load(key)
        assert (log.head.n, log.holder.token) == (3, "")  # who asks the app now is not told to wait
        assert (await importing.run(inner)).conversations == 1
        assert await exported(export_conversation(key, store=inner)) == before

    async def test_killed_in_the_middle_and_started_again_it_has_the_same_result(self, tmp_path: Path, importing: Importing) -> None:
        """With -9, several times, at whatever place that is; the lease of the dead holds up nobody."""
        source, owner = MemoryStore(), fresh_key().owner
        for n in range(5):
            writer = Writer(source, SessionKey(owner, f"s{n}"))
            for m in range(100):
                await writer.append(writer.entry(turn=f"{n}.{m // 3}", closing=m % 3 == 2, adds=m % 3 == 0, body=body(f"{n} {m}")))
        before = await importing.export(export_owner(owner, store=source))
        database = tmp_path / "convmem.db"
        code = f"""
import asyncio
from convmem import SQLiteStore, import_conversations
async def run():
    async with SQLiteStore({str(database)!r}) as store:
        await import_conversations({str(importing.file)!r}, store=store, progress=lambda receipt: print(receipt.messages, flush=True))
asyncio.run(run())
"""
        kills = 0
        for stop in (1, 40, 110, 170):
            environment = clean_environment({})
            with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, text=True) as process:  # noqa: ASYNC220
                assert process.stdout is not None
                for line in process.stdout:
                    if int(line) >= stop:
                        os.kill(process.pid, signal.SIGKILL)
                        kills += 1
                        break
        assert kills == 4
        async with SQLiteStore(database) as store:
            there = sum([(await store.load(SessionKey(owner, f"s{n}"), turns=0)).head.n for n in range(5)])
            assert 0 < there < 500
            receipt = await importing.run(store)
            assert importing.left_out == []
            assert (receipt.conversations, receipt.messages) == (5, 500 - there)
            after = await exported(export_owner(owner, store=store))
        assert sorted(after, key=json.dumps) == sorted(before, key=json.dumps)


def body(text: str) -> bytes:
    return encode_messages([encode_message(Message.user(text))])


class TestDamagedFiles:
    """What can be carried is, the rest is named, and nothing wrong is taken for an export."""

    async def test_a_file_that_breaks_off_is_found_out(self, importing: Importing) -> None:
        """A disk that was full when it was written. What is there is carried."""
        source, key, store = MemoryStore(), fresh_key(), MemoryStore()
        await rich(source, key)
        await importing.export(export_conversation(key, store=source))
        whole = importing.file.read_bytes()
        importing.file.write_bytes(whole[: whole.index(b"three")])
        receipt = await importing.run(store)
        assert [said.reason for said in importing.left_out] == [
            "line 7 of the file is damaged: JSONDecodeError",
            "the file breaks off here: it has no last line",
        ]
        assert (receipt.messages, receipt.left_out) == (8, 2)
        importing.file.write_bytes(whole)
        assert await importing.run(store) == Imported(conversations=1, messages=3)

    @pytest.mark.parametrize(
        "damage",
        [b'{"type":"entry"', b"[]", b"\xff", b'{"type":"entry","id":"\\u00e9","turn":"t","closing":true,"messages":[]}',
         b'{"type":"entry","id":"e","turn":"t","closing":true,"messages":[{"role":"nobody"}]}',
         b'{"type":"entry","id":"e","turn":"t","closing":true,"body":"?"}'],
    )  # fmt: skip
    async def test_a_damaged_line_is_named_and_the_rest_carried(self, damage, importing: Importing) -> None:
        """By its number, so that somebody can look at it."""
        source, key, store = MemoryStore(), fresh_key(), MemoryStore()
        await say(source, key, Message.user("one"))
        await say(source, key, Message.user("two"))
        await importing.export(export_conversation(key, store=source))
        lines = importing.lines
        importing.rewrite(*lines[:2], damage, *lines[3:])
        receipt = await importing.run(store)
        assert importing.left_out[0].conversation == f"{key.owner}/default"
        assert "line 3" in importing.left_out[0].reason
        assert receipt.messages == 1

    async def test_a_line_that_is_missing_is_found_out(self, importing: Importing) -> None:
        """Each conversation says at its end how many entries it had."""
        source, key, store = MemoryStore(), fresh_key(), MemoryStore()
        await rich(source, key)
        await importing.export(export_conversation(key, store=source))
        lines = importing.lines
        importing.rewrite(*lines[:4], *lines[5:])
        assert (await importing.run(store)).left_out == 1
        assert importing.left_out[0].reason == f"the file has {len(lines) - 5} of its {len(lines) - 4} entries"

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            (b"", "empty"),
            (b"hello\n", "no export"),
            (b'{"type":"export","version":2}\n', "version 2"),
            (b'{"type":"conversation","version":1}\n', "no export"),
            (b'{"role":"user","content":"hello"}\n', "no export"),
        ],
    )
    async def test_what_is_no_export_is_refused(self, text, sentence, importing: Importing) -> None:
        """Before anything is stored."""
        importing.file.write_bytes(text)
        with pytest.raises(SourceUnreadable, match=sentence):
            await importing.run(MemoryStore())

    async def test_a_file_that_is_not_there_is_an_error(self, importing: Importing) -> None:
        """Not an import of nothing."""
        with pytest.raises(SourceUnreadable, match="No such file"):
            await importing.run(MemoryStore())

    async def test_an_address_that_is_none_is_named(self, importing: Importing) -> None:
        """An edited file; the other conversations are carried."""
        source, key, store = MemoryStore(), fresh_key("a"), MemoryStore()
        for name in ("a", "b"):
            await say(source, SessionKey(key.owner, name), Message.user(name))
        await importing.export(export_owner(key.owner, store=source))
        importing.rewrite(*[line.replace(b'"session_id":"a"', b'"session_id":"a/b"') for line in importing.lines])
        assert (await importing.run(store)).conversations == 1
        assert [said.conversation for said in importing.left_out] == [f"{key.owner}/a/b"]

    async def test_it_reads_standard_input(self, importing: Importing, monkeypatch: pytest.MonkeyPatch) -> None:
        """From one store to another without a file between."""
        source, key, store = MemoryStore(), fresh_key(), MemoryStore()
        await say(source, key, Message.user("piped"))
        await importing.export(export_conversation(key, store=source))
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(importing.file.read_bytes())))
        assert await import_conversations("-", store=store) == Imported(conversations=1, messages=1)

    async def test_what_was_asked_for_wrongly_is_refused(self, importing: Importing) -> None:
        """Before the file is opened."""
        with pytest.raises(ConfigurationError, match="convmem"):
            await import_conversations("x", "nowhere", store=MemoryStore())
        with pytest.raises(InvalidIdentity):
            await import_conversations(str(importing.file), owner="42", store=MemoryStore())

    async def test_memory_is_bounded(self, importing: Importing) -> None:
        """An export is larger than the machine that imports it."""
        store = Dropping(MemoryStore())
        with importing.file.open("wb") as file:
            file.write(b'{"type":"export","version":1,"tenant":""}\n')
            for name in range(30):
                address = {"tenant": "", "owner": "user:1", "session_id": str(name)}
                file.write(json.dumps({"type": "conversation", **address}).encode() + b"\n")
                for n in range(10):
                    messages = json.loads(body("x" * 200_000))
                    entry = {"type": "entry", "id": f"{name}.{n}", "turn": str(n), "closing": True, "messages": messages}
                    file.write(json.dumps(entry).encode() + b"\n")
                file.write(b'{"type":"conversation_end","entries":10}\n')
            file.write(b'{"type":"end"}\n')
        assert importing.file.stat().st_size > 60_000_000
        tracemalloc.start()
        receipt = await importing.run(store)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert receipt.messages == 300
        assert peak < 20_000_000


class Dropping(FaultyStore):
    """A store that keeps no bodies."""

    async def append(self, key, after, entry, **options):
        return await super().append(key, after, replace(entry, body=b"[]"), **options)
