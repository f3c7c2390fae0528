"""What SQLiteStore promises beyond the contract: several processes on one file, and an event loop that never waits."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from convmem import Message, SessionKey, SQLiteStore, StoreUnavailable, open_conversation
from convmem.stores.base import Entry, Head, Lease, Outcome


@pytest.mark.asyncio
async def test_many_first_uses_at_once_agree_on_one_schema(tmp_path: Path) -> None:
    """Twenty workers start at the same time on a file that does not exist yet."""
    path = tmp_path / "convmem.db"
    stores = [SQLiteStore(path) for _ in range(20)]
    answers = await asyncio.gather(*(store.check() for store in stores))
    assert {answer.location for answer in answers} == {str(path)}
    for store in stores:
        await store.aclose()


@pytest.mark.asyncio
async def test_mode_rw_says_that_the_file_must_exist(tmp_path: Path) -> None:
    """A mistyped path must not be a new, empty memory."""
    store = SQLiteStore(tmp_path / "convmem.db", mode="rw")
    with pytest.raises(StoreUnavailable, match="does not exist, and mode=rw says it must"):
        await store.load(SessionKey.for_user("1"))
    assert not (tmp_path / "convmem.db").exists()
    await store.aclose()


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """Return a file on which another connection holds the write lock."""
    path = tmp_path / "convmem.db"
    store = SQLiteStore(path)
    asyncio.run(_prepare(store))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield path
    other.close()


async def _prepare(store: SQLiteStore) -> None:
    await store.check()
    await store.aclose()


@pytest.mark.asyncio
async def test_a_locked_file_blocks_neither_the_event_loop_nor_for_ever(locked: Path) -> None:
    """A stuck process elsewhere is an error after the busy timeout, and the app's other requests go on meanwhile."""
    store = SQLiteStore(locked, busy_timeout=timedelta(seconds=0.5))
    began, longest = time.monotonic(), 0.0

    async def heartbeat() -> None:
        nonlocal longest
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.01)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()

    beating = asyncio.create_task(heartbeat())
    with pytest.raises(StoreUnavailable, match="locked"):
        await store.load(SessionKey.for_user("1"), lease=Lease("token", timedelta(seconds=1)))
    beating.cancel()
    assert time.monotonic() - began < 3
    assert longest < 0.3
    await store.aclose()


@pytest.mark.asyncio
@pytest.mark.parametrize(("synchronous", "pragma"), [("normal", 1), ("full", 2), ("extra", 3)])
async def test_the_durability_is_the_chosen_one_and_is_named(tmp_path: Path, synchronous: str, pragma: int) -> None:
    """Who chose to survive a power failure is told so, by the connection that writes and by `check`."""
    store = SQLiteStore(tmp_path / "convmem.db", synchronous=synchronous)  # type: ignore[arg-type]
    health = await store.check()
    assert f"synchronous={synchronous.upper()}" in health.durability
    file = store._opened()
    asked = file.durable.thread.submit(file.durable.run, lambda link: link.execute("PRAGMA synchronous").fetchone()[0])
    assert asked.result() == pragma
    await store.aclose()


@pytest.mark.asyncio
async def test_a_file_of_a_newer_version_is_used_as_it_is(tmp_path: Path) -> None:
    """Old workers go on while new ones have migrated the file already."""
    path = tmp_path / "convmem.db"
    store = SQLiteStore(path)
    await store.check()
    await store.aclose()
    with sqlite3.connect(path) as link:
        link.execute("ALTER TABLE entry ADD COLUMN invented_later TEXT")
        link.execute("PRAGMA user_version = 99")
    link.close()
    store = SQLiteStore(path)
    appended = await store.append(SessionKey.for_user("1"), Head(), Entry("e1", "t1", "token", "epoch", turns=1, closing=True))
    assert appended.outcome is Outcome.STORED
    await store.aclose()


@pytest.mark.asyncio
async def test_the_store_can_be_used_again_after_it_was_closed(tmp_path: Path) -> None:
    """An app that is started twice in one process, as tests do, finds its memory."""
    store = SQLiteStore(tmp_path / "convmem.db")
    for expected in (0, 1):
        async with open_conversation(SessionKey.for_user("1"), store=store) as conversation:
            assert conversation.total_turns == expected
            conversation.append(Message.user("hello"))
        await store.aclose()


@pytest.mark.asyncio
async def test_an_expired_history_leaves_the_file_with_the_next_turn(tmp_path: Path) -> None:
    """Who sets a TTL wants the text gone, not only out of sight."""
    path, key = tmp_path / "convmem.db", SessionKey.for_user("1")
    store = SQLiteStore(path)
    first = await store.append(key, Head(), Entry("e1", "t1", "a", "epoch", b'["secret"]', 1, turns=1), ttl=timedelta(seconds=0.05))
    second = await store.append(key, first.head, Entry("e2", "t2", "a", "epoch", b"[]", turns=2), ttl=timedelta(seconds=0.05))
    await asyncio.sleep(0.1)
    log = await store.load(key)
    assert (log.expired, log.entries, log.head.n) == (True, (), second.head.n)
    await store.append(key, log.head, Entry("e3", "t3", "a", "epoch", b"[]", turns=1, start=log.head.start))
    await store.aclose()
    with sqlite3.connect(path) as link:
        bodies = [body for (body,) in link.execute("SELECT body FROM entry")]
    link.close()
    assert b'["secret"]' not in bodies


@pytest.mark.asyncio
async def test_what_a_worker_that_died_before_a_first_turn_left_is_cleared(tmp_path: Path) -> None:
    """Each crash would leave a row for ever; a delete, whoever's it is, takes such rows along, and none whose lease still runs."""
    path = tmp_path / "convmem.db"
    store = SQLiteStore(path)
    for number, term in enumerate((0.01, 0.01, 60)):
        await store.load(SessionKey.for_user(number), lease=Lease("token", timedelta(seconds=term)))
    await asyncio.sleep(0.05)
    await store.delete(SessionKey.for_user("somebody-else"))
    await store.aclose()
    with sqlite3.connect(path) as link:
        owners = {owner for (owner,) in link.execute("SELECT owner FROM conversation")}
    link.close()
    assert owners == {"user:2", "user:somebody-else"}
