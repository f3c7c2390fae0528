"""What SQLiteStore promises beyond the contract: several processes on one file, and an event loop that never waits."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from convmem import Message, SessionKey, SQLiteStore, StoreUnavailable, open_conversation
from convmem.stores.base import Entry, Head, Kind, Lease, Lookup, Outcome
from convmem.stores.sqlite_file import LEASE, READ, STORE
from tests.awake import Awake
from tests.faults.pods import ticking

ROOT = Path(__file__).parents[2]
KEY = SessionKey.for_user("everybody", "shared")


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
    store = SQLiteStore(locked, busy_timeout=timedelta(seconds=2))
    with Awake() as clock:
        async with ticking(clock) as gaps:
            with pytest.raises(StoreUnavailable, match="locked"):
                await store.load(SessionKey.for_user("1"), lease=Lease("token", timedelta(seconds=1)))
        assert clock() < 10
    assert max(gaps) < 1.5, "the loop waited with the thread"
    await store.aclose()


@pytest.mark.asyncio
@pytest.mark.parametrize(("synchronous", "pragma"), [("normal", 1), ("full", 2), ("extra", 3)])
async def test_the_durability_is_the_chosen_one_and_is_named(tmp_path: Path, synchronous: str, pragma: int) -> None:
    """Who chose to survive a power failure is told so, by the connection that writes and by `check`."""
    store = SQLiteStore(tmp_path / "convmem.db", synchronous=synchronous)  # type: ignore[arg-type]
    health = await store.check()
    assert f"synchronous={synchronous.upper()}" in health.durability
    for kind, level in ((LEASE, 1), (STORE, pragma), (LEASE, 1), (STORE, pragma)):
        assert await store._run("check", kind, lambda link: link.execute("PRAGMA synchronous").fetchone()[0]) == level
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
    appended = await store.append(KEY, Head(), Entry("e1", "t1", "token", "epoch", turns=1, closing=True))
    assert appended.outcome is Outcome.STORED
    log = await store.load(KEY, turn="t1")
    assert log.turn == Lookup("complete", 1, visible=True)
    assert [stored.entry for stored in log.entries] == [Entry("e1", "t1", "token", "epoch", turns=1, closing=True)]
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
        entries = [packed for (packed,) in link.execute("SELECT packed FROM entry")]
    link.close()
    assert not any(b"secret" in packed for packed in entries)


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


@pytest.fixture
def idle_and_dead(tmp_path: Path) -> Path:
    """A file with 5,000 conversations, 3,000 young tombstones, 1,500 old ones and 500 leases of the dead."""
    path = tmp_path / "convmem.db"
    asyncio.run(_prepare(SQLiteStore(path)))
    now = time.time()
    with closing(sqlite3.connect(path)) as link, link:
        link.executemany(
            "INSERT INTO conversation (tenant, owner, session, epoch, n, entry, turns, updated, hour)"
            " VALUES (?, ?, 's', 'e', 1, 'i', 1, ?, ?)",
            [("acme" if i % 2 else "", f"user:{i:05}", float(i), i // 3600) for i in range(5000)],
        )
        absent = "INSERT INTO conversation (tenant, owner, session, mark, deleted, token, until) VALUES ('', ?, 'gone', ?, ?, ?, ?)"
        link.executemany(absent, [(f"user:y{i}", "mark", now - 60, "", 0) for i in range(3000)])
        link.executemany(absent, [(f"user:o{i}", "mark", now - 31 * 86400, "", 0) for i in range(1500)])
        link.executemany(absent, [(f"user:d{i}", "", 0, "token", now - 1) for i in range(500)])
    return path


@pytest.mark.asyncio
async def test_a_walk_examines_a_bounded_number_of_rows_for_each_page(idle_and_dead: Path) -> None:
    """Loads of the same process wait for the thread a walk runs on: a page must not read a whole file to find nothing."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    async with SQLiteStore(idle_and_dead) as store:
        await store.list("user:x")
        await store._run("list", READ, lambda link: link.set_progress_handler(count, 1000))
        for tenant, before in (("", None), ("acme", 1.0), (None, None), (None, 1.0), (None, 4000.5)):
            moment = None if before is None else datetime.fromtimestamp(before, UTC)
            steps, most, found, after = 0, 0, 0, None
            while True:
                page = await store.list(None, tenant=tenant, limit=500, after=after, written_before=moment)
                found, most, steps, after = found + len(page.items), max(most, steps), 0, page.after
                if after is None:
                    break
            assert found == {("", None): 2500, ("acme", 1.0): 0, (None, None): 5000, (None, 1.0): 1, (None, 4000.5): 4001}[tenant, before]
            assert most < 100, f"one page of {tenant!r}, {before} took {most} thousand steps"


@pytest.mark.asyncio
async def test_no_part_of_housekeeping_scans_the_file(idle_and_dead: Path) -> None:
    """A scan is what makes a nightly job slower with every conversation that is kept."""
    statements: list[str] = []
    async with SQLiteStore(idle_and_dead) as store:
        await store.list("user:x")
        await store.delete(SessionKey.for_user("x"))
        for kind in (READ, STORE):
            await store._run("check", kind, lambda link: link.set_trace_callback(statements.append))
        for tenant in ("acme", None):
            await store.list(None, tenant=tenant)
            await store.list(None, tenant=tenant, written_before=datetime.now(UTC))
        await store.list("user:00001")
        await store.delete(SessionKey.for_user("00001"), at=Head("e", 1, "i"))
        await store.sweep()
    asked = {text.replace("Inf", "9e999") for text in statements if text.startswith(("SELECT", "UPDATE", "DELETE"))}
    with closing(sqlite3.connect(idle_and_dead)) as link:
        plans = {text: [row[3] for row in link.execute(f"EXPLAIN QUERY PLAN {text}")] for text in asked}
    used = " ".join(step for steps in plans.values() for step in steps)
    assert all(index in used for index in ("conversation_by_hour", "conversation_dead", "conversation_by_owner"))
    for text, steps in plans.items():
        assert not any(step.startswith("SCAN") or "TEMP B-TREE FOR ORDER BY" in step for step in steps), (text, steps)


@pytest.mark.asyncio
async def test_a_sweep_removes_what_is_dead_in_batches(idle_and_dead: Path) -> None:
    """Old tombstones and the leases of the dead go, young tombstones stay; and no batch holds the write lock for long."""
    async with SQLiteStore(idle_and_dead) as store:
        removed = []
        while number := await store.sweep():
            removed.append(number)
        assert sum(removed) == 2000
        assert max(removed) <= 1000
        assert (await store.load(SessionKey.for_user("y7", "gone"))).deleted_at is not None
    with closing(sqlite3.connect(idle_and_dead)) as link:
        assert link.execute("SELECT count(*) FROM conversation").fetchone() == (8000,)


def _bytes_below(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.iterdir())


@pytest.mark.asyncio
async def test_deleted_text_is_in_no_file_after_a_sweep(tmp_path: Path) -> None:
    """Deleted means gone from the disk: SQLite by itself may give the pages free and leave the text in them, and in the log."""
    store, kept = SQLiteStore(tmp_path / "convmem.db"), SessionKey.for_user("kept")
    for key, text in ((KEY, b"what nobody may read again"), (kept, b"what stays")):
        head = Head()
        for n, size in enumerate((1, 3000)):
            entry = Entry(f"e{n}", f"t{n}", "token", "epoch", b"[" + text * size + b"]", closing=True, turns=n + 1)
            head = (await store.append(key, head, entry)).head
    assert (await store.load(KEY)).entries
    assert b"may read again" in _bytes_below(tmp_path)
    await store.delete(KEY)
    while await store.sweep():
        pass
    there = _bytes_below(tmp_path)
    assert b"may read again" not in there
    assert b"what stays" in there
    await store.aclose()


@pytest.mark.asyncio
async def test_a_file_of_the_first_schema_is_brought_up_to_date(tmp_path: Path) -> None:
    """Whoever upgrades keeps their conversations, and the version before still works beside the new one."""
    path = tmp_path / "convmem.db"
    first = (ROOT / "convmem/stores/sql/sqlite/001_log.sql").read_text()
    with closing(sqlite3.connect(path)) as link:
        link.executescript(f"{first} PRAGMA user_version = 1;")
        link.execute(
            "INSERT INTO conversation (tenant, owner, session, epoch, n, entry, turns) VALUES ('', 'user:1', 'default', 'e', 1, 'i', 1)"
        )
        link.commit()
    async with SQLiteStore(path) as store:
        assert [item.key for item in (await store.list(None)).items] == [SessionKey.for_user("1")]
    with closing(sqlite3.connect(path)) as link:
        assert link.execute("PRAGMA user_version").fetchone() == (2,)


@pytest.mark.asyncio
async def test_a_window_is_what_the_file_says_now(tmp_path: Path) -> None:
    """A process sees at once what another hides, deletes, or puts in its place."""
    path = tmp_path / "convmem.db"

    def entry(n: int, epoch: str, **fields: Any) -> Entry:
        return Entry(f"e{n}", f"t{n}", "token", epoch, f'["{epoch}"]'.encode(), turns=n, **fields)

    async with SQLiteStore(path) as ours, SQLiteStore(path) as theirs:

        async def seen(**asked: Any) -> list[tuple[int, bytes]]:
            return [(each.n, each.entry.body) for each in (await ours.load(KEY, **asked)).entries]

        head = Head()
        for n in (1, 2, 3, 4):
            head = (await theirs.append(KEY, head, entry(n, "first"))).head
            assert await seen() == [(m, b'["first"]') for m in range(1, n + 1)]
        head = (await theirs.append(KEY, head, Entry("hide", "hide", "token", "first", kind=Kind.EDIT, hides=(2,), turns=3))).head
        assert [n for n, _ in await seen()] == [1, 3, 4]
        assert [n for n, _ in await seen(before=4, turns=1)] == [3]
        await theirs.delete(KEY)
        assert await seen() == []
        head = Head(id=(await theirs.load(KEY)).head.id)
        for n in (1, 2, 3):
            head = (await theirs.append(KEY, head, entry(n, "second"))).head
        assert await seen() == [(n, b'["second"]') for n in (1, 2, 3)]


@pytest.mark.asyncio
async def test_a_turn_keeps_the_name_it_has(tmp_path: Path) -> None:
    """A UUID is stored in half the room; what only looks like one, or nearly, is another turn and comes back as it was."""
    names = ["ab" * 16, "AB" * 16, "Ab" * 16, "ab " * 16, "ab", "AB", "t", "x" * 16]
    async with SQLiteStore(tmp_path / "convmem.db") as store:
        head = Head()
        for n, name in enumerate(names):
            entry = Entry(f"e{n}", name, "token", "epoch", closing=True, turns=n + 1)
            head = (await store.append(KEY, head, entry)).head
        assert [stored.entry.turn for stored in (await store.load(KEY)).entries] == names
        for n, name in enumerate(names, 1):
            assert (await store.load(KEY, turn=name)).turn == Lookup("complete", n, visible=True)


HOUR = 3600


async def written_at(path: Path, ages: dict[str, float]) -> SQLiteStore:
    """Return a store with conversations of one user that were written so many seconds ago."""
    store, now = SQLiteStore(path), time.time() // HOUR * HOUR + HOUR / 2
    for session in ages:
        await store.append(SessionKey.for_user("1", session), Head(), Entry("e", "t", "token", "epoch", turns=1))
    with closing(sqlite3.connect(path)) as link, link:
        for session, age in ages.items():
            times = (now - age, (now - age) // HOUR, session)
            link.execute("UPDATE conversation SET updated = ?, hour = ? WHERE session = ?", times)
    return store


async def listed(store: SQLiteStore, limit: int, **asked: Any) -> list[str]:
    sessions: list[str] = []
    after = None
    while True:
        page = await store.list(after=after, limit=limit, **asked)
        assert len(page.items) <= limit
        sessions += [item.session_id for item in page.items]
        after = page.after
        if after is None:
            return sessions


@pytest.mark.asyncio
@pytest.mark.parametrize("limit", [1, 2, 3, 50])
async def test_a_list_is_in_order_within_an_hour_and_across_hours(tmp_path: Path, limit: int) -> None:
    """The index knows the hour of the last turn only; whoever reads the list must not notice."""
    ages = {"d": 2 * HOUR + 1, "a": 0, "f": 9 * HOUR, "b": 0.5, "e": 2 * HOUR + 2, "c": 2 * HOUR}
    store = await written_at(tmp_path / "convmem.db", ages)
    assert await listed(store, limit, owner="user:1") == ["a", "b", "c", "d", "e", "f"]
    moment = datetime.fromtimestamp(time.time() // HOUR * HOUR + HOUR / 2 - 2 * HOUR, UTC)
    assert await listed(store, limit, owner="user:1", written_before=moment) == ["d", "e", "f"]
    assert sorted(await listed(store, limit, owner=None, tenant=None, written_before=moment)) == ["d", "e", "f"]
    await store.aclose()


@pytest.mark.asyncio
async def test_a_turn_in_another_hour_moves_its_conversation(tmp_path: Path) -> None:
    """What was written again is the newest of its owner's, and no job takes it for idle."""
    store = await written_at(tmp_path / "convmem.db", {"old": 30 * HOUR, "older": 40 * HOUR, "new": 3 * HOUR})
    key = SessionKey.for_user("1", "older")
    moment = datetime.fromtimestamp(time.time() - 10 * HOUR, UTC)
    assert await listed(store, 2, owner=None, tenant=None, written_before=moment) == ["older", "old"]
    log, begun = await store.load(key), (await store.list("user:1")).items[-1].created_at
    await store.append(key, log.head, Entry("e2", "t2", "token", "epoch", turns=2))
    assert await listed(store, 2, owner="user:1") == ["older", "new", "old"]
    assert (await store.list("user:1")).items[0].created_at == begun
    assert await listed(store, 2, owner=None, tenant=None, written_before=moment) == ["old"]
    await store.aclose()
