"""What is asked of an SQLiteStore at once is done in one transaction; each caller is told only of their own."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from convmem import SessionKey, SQLiteStore, StoreUnavailable
from convmem.stores.base import Appended, Entry, Head, Lease, Outcome
from convmem.stores.sqlite_file import BARE
from tests.awake import Awake
from tests.servers.processes import PATIENCE

ROOT = Path(__file__).parents[2]
CALLERS = 32


def key(number: int) -> SessionKey:
    return SessionKey.for_user(number)


def turn(number: int, after: Head = Head(), body: bytes = b"[]", turns: int = 1) -> Entry:  # noqa: B008 - frozen
    return Entry(f"e{number}.{after.n}", f"t{number}.{after.n}", f"token{number}", after.epoch or f"epoch{number}", body, 2, turns=turns)


async def first_turn(store: SQLiteStore, number: int) -> Appended:
    return await store.append(key(number), Head(), turn(number))


@asynccontextmanager
async def thread_held(store: SQLiteStore) -> AsyncIterator[None]:
    """Keep the writing thread busy, so that whatever is asked for inside waits until the end, and is done together."""
    holding, letting_go = threading.Event(), threading.Event()

    def hold(link: sqlite3.Connection) -> None:
        holding.set()
        letting_go.wait()

    held = asyncio.create_task(store._run("check", BARE, hold))
    await asyncio.to_thread(holding.wait)
    try:
        yield
        await asyncio.sleep(0)  # what was made a task inside begins
    finally:
        letting_go.set()
    await held


async def traced(store: SQLiteStore) -> list[str]:
    """Return a list that is going to have every statement that ends a transaction, and the level it was flushed at."""
    seen: list[str] = []

    def note(statement: str) -> None:
        if statement in ("COMMIT", "ROLLBACK") or statement.startswith("PRAGMA synchronous ="):
            seen.append(statement.removeprefix("PRAGMA synchronous = "))

    await store._run("check", BARE, lambda link: link.set_trace_callback(note))
    return seen


async def together(store: SQLiteStore, *calls: Callable[[], Awaitable[object]]) -> list[object]:
    """Call all at once, so that they are one group; return each one's result or exception."""
    async with thread_held(store):
        answers = asyncio.gather(*(call() for call in calls), return_exceptions=True)
    return await answers


async def stored(path: Path, numbers: range) -> set[int]:
    """Return who has a turn in the file, as another process sees it."""
    async with SQLiteStore(path) as store:
        return {number for number in numbers if (await store.load(key(number))).entries}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "convmem.db"


@pytest.mark.asyncio
async def test_each_of_a_group_has_an_outcome_of_its_own(path: Path) -> None:
    """A turn that is refused is refused alone, and a repeated one is known, in the same transaction as those that are stored."""
    async with SQLiteStore(path) as store:
        head = (await first_turn(store, 0)).head
        await store.load(key(1), lease=Lease("another", timedelta(minutes=1)))
        seen = await traced(store)
        outcomes = await together(
            store,
            lambda: store.append(key(0), head, turn(0, head)),
            lambda: store.append(key(0), head, Entry("other", "other", "token0", head.epoch, turns=2)),
            lambda: store.append(key(0), Head(), turn(0)),
            lambda: store.append(key(1), Head(), turn(1)),
            lambda: store.append(key(2), Head(), turn(2)),
            lambda: store.append(key(2), Head("never", 3, "seen"), turn(2, Head("never", 3, "seen"))),
        )
        assert [each.outcome for each in outcomes if isinstance(each, Appended)] == [
            Outcome.STORED,
            Outcome.CONFLICT,
            Outcome.DUPLICATE,
            Outcome.FENCED,
            Outcome.STORED,
            Outcome.GAP,
        ]
        assert seen.count("COMMIT") == 1
    assert await stored(path, range(3)) == {0, 2}


@pytest.mark.asyncio
async def test_leases_wait_for_no_flush_and_acknowledged_turns_had_one(path: Path) -> None:
    """In a group the leases come first, in a transaction that is not flushed; appends have one that is."""
    async with SQLiteStore(path) as store:
        seen = await traced(store)
        answered: list[str] = []

        async def append(number: int) -> None:
            await first_turn(store, number)
            answered.append("append")

        async def lease(number: int) -> None:
            await store.load(key(number), lease=Lease("token", timedelta(seconds=8)))
            answered.append("lease")

        for first in (0, 10):
            seen.clear()
            await together(store, partial(append, first), partial(lease, first + 1), partial(append, first + 2))
            assert [line for line in seen if line != "normal"] == ["COMMIT", "full", "COMMIT"]
        assert seen[0] == "normal"
        assert answered == ["lease", "append", "append"] * 2


@pytest.mark.asyncio
async def test_who_fails_in_a_group_fails_alone(path: Path) -> None:
    """An entry too large for what is left of the disk is refused; the others are stored, each with a flush of its own."""
    async with SQLiteStore(path) as store:
        await first_turn(store, 0)

        def leave_little_room(link: sqlite3.Connection) -> None:
            pages = link.execute("PRAGMA page_count").fetchone()[0]
            link.execute(f"PRAGMA max_page_count = {pages + 4}")

        await store._run("check", BARE, leave_little_room)
        seen = await traced(store)
        answers = await together(
            store,
            lambda: first_turn(store, 1),
            lambda: store.append(key(2), Head(), turn(2, body=b"[" + b" " * 200_000 + b"]")),
            lambda: store.append(key(3), Head(), turn(3, turns=2**64)),
            lambda: first_turn(store, 4),
        )
        assert [type(answer) for answer in answers] == [Appended, StoreUnavailable, OverflowError, Appended]
        assert isinstance(answers[1], StoreUnavailable)
        assert "full" in str(answers[1])
        assert seen.count("COMMIT") == 2
    assert await stored(path, range(5)) == {0, 1, 4}


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """Let no file of this process grow beyond the size of the write-ahead log."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.with_name(f"{path.name}-wal").stat().st_size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.asyncio
async def test_a_commit_that_fails_acknowledges_nobody(path: Path) -> None:
    """The disk is full when the group is written out: every caller is told, nothing of it is there, and a repetition stores it."""
    async with SQLiteStore(path) as store:
        await first_turn(store, 0)
        calls = [partial(first_turn, store, number) for number in range(1, CALLERS)]
        with full_disk(path):
            answers = await together(store, *calls)
        assert [type(answer) for answer in answers] == [StoreUnavailable] * len(calls)
        assert all(answer.unknown for answer in answers if isinstance(answer, StoreUnavailable))
        assert await stored(path, range(CALLERS)) == {0}
        outcomes = {answer.outcome for answer in await together(store, *calls) if isinstance(answer, Appended)}
        assert outcomes == {Outcome.STORED}
    assert await stored(path, range(CALLERS)) == set(range(CALLERS))


@pytest.mark.asyncio
async def test_a_commit_that_is_refused_leaves_the_connection_usable(path: Path) -> None:
    """SQLite rolls back by itself after some errors and not after others: the next call finds no transaction open."""

    def refuse(action: int, argument: str | None, *_: object) -> int:
        return sqlite3.SQLITE_DENY if (action, argument) == (sqlite3.SQLITE_TRANSACTION, "COMMIT") else sqlite3.SQLITE_OK

    async with SQLiteStore(path) as store:
        await first_turn(store, 0)
        await store._run("check", BARE, lambda link: link.set_authorizer(refuse))
        answers = await together(store, *[partial(first_turn, store, number) for number in (1, 2)])
        assert [type(answer) for answer in answers] == [StoreUnavailable] * 2
        await store._run("check", BARE, lambda link: link.set_authorizer(None))
        assert (await first_turn(store, 3)).outcome is Outcome.STORED
    assert await stored(path, range(4)) == {0, 3}


@pytest.mark.asyncio
async def test_a_group_waits_for_a_lock_once(path: Path) -> None:
    """Thirty callers behind another process's lock wait together, not one after the other."""
    async with SQLiteStore(path, busy_timeout=timedelta(seconds=0.3)) as store:
        await first_turn(store, 0)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            calls = (first_turn(store, number) for number in range(1, CALLERS))
            with Awake() as clock:
                answers = await asyncio.gather(*calls, return_exceptions=True)
                assert clock() < CALLERS * 0.3 / 3
        assert {type(answer) for answer in answers} == {StoreUnavailable}
        assert "locked" in str(answers[0])
    assert await stored(path, range(CALLERS)) == {0}


@pytest.mark.asyncio
async def test_who_only_reads_waits_for_no_writer(path: Path) -> None:
    """While another process holds the lock a history can still be shown; writers go on when it lets go."""
    async with SQLiteStore(path, busy_timeout=timedelta(seconds=60)) as store:
        await first_turn(store, 0)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            waiting = asyncio.create_task(first_turn(store, 1))
            async with asyncio.timeout(PATIENCE):
                assert len((await store.load(key(0))).entries) == 1
                assert len((await store.list("user:0")).items) == 1
            assert not waiting.done()
            other.execute("ROLLBACK")
            assert (await waiting).outcome is Outcome.STORED


@pytest.mark.asyncio
async def test_a_caller_who_leaves_takes_nobody_along(path: Path) -> None:
    """Of a group that waits, one is cancelled: it is not begun any more, and the others are stored."""
    async with SQLiteStore(path) as store:
        async with thread_held(store):
            tasks = [asyncio.create_task(first_turn(store, number)) for number in range(4)]
            await asyncio.sleep(0)
            tasks[1].cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(answer) for answer in answers] == [Appended, asyncio.CancelledError, Appended, Appended]
    assert await stored(path, range(4)) == {0, 2, 3}


def test_a_group_may_be_of_several_event_loops(path: Path) -> None:
    """Each loop is woken for its own, and one that is closed meanwhile keeps no other from its answer."""
    store = SQLiteStore(path)
    answers: dict[int, Appended] = {}
    asked = threading.Barrier(3)

    def elsewhere(number: int) -> None:
        async def ask() -> None:
            task = asyncio.create_task(first_turn(store, number))
            await asyncio.sleep(0)
            asked.wait(10)
            answers[number] = await task

        asyncio.run(ask())

    async def leave() -> None:
        task = asyncio.create_task(first_turn(store, 9))
        await asyncio.sleep(0)
        assert not task.done()

    async def main() -> None:
        threads = [threading.Thread(target=elsewhere, args=(number,)) for number in (1, 2)]
        async with thread_held(store):
            gone = threading.Thread(target=asyncio.run, args=(leave(),))
            gone.start()
            await asyncio.to_thread(gone.join)
            for thread in threads:
                thread.start()
            await asyncio.to_thread(asked.wait, 10)
        for thread in threads:
            await asyncio.to_thread(thread.join)
        await store.aclose()

    asyncio.run(main())
    assert {number: answer.outcome for number, answer in answers.items()} == {1: Outcome.STORED, 2: Outcome.STORED}


def test_what_a_loop_asked_for_before_the_store_was_closed_is_done(path: Path) -> None:
    """The jobs of a step are handed over at its end: a close from another loop must not come between."""
    store = SQLiteStore(path)
    answers: list[Appended] = []
    asked, closed = threading.Event(), threading.Event()

    async def ask() -> None:
        task = asyncio.create_task(first_turn(store, 0))
        await asyncio.sleep(0)
        asked.set()
        assert closed.wait(60)  # this loop stands still meanwhile
        async with asyncio.timeout(60):
            answers.append(await task)

    async def close() -> None:
        assert await asyncio.to_thread(asked.wait, 60)
        await store.aclose()

    asyncio.run(first_turn(store, 1))  # the thread is there
    asking = threading.Thread(target=asyncio.run, args=(ask(),))
    asking.start()
    asyncio.run(close())
    closed.set()
    asking.join()
    assert [answer.outcome for answer in answers] == [Outcome.STORED]
    assert asyncio.run(stored(path, range(2))) == {0, 1}


@pytest.fixture
def threads() -> Callable[[], set[str]]:
    """Return the names of the threads that stores have started since; those of other tests may still be about to end."""
    before = set(threading.enumerate())
    return lambda: {thread.name for thread in threading.enumerate() if thread not in before and thread.name.startswith("convmem-sqlite")}


@pytest.mark.asyncio
async def test_closing_finishes_what_was_asked_for_and_ends_the_threads(path: Path, threads: Callable[[], set[str]]) -> None:
    """A shutdown loses no turn that was on its way, and leaves nothing behind."""
    store = SQLiteStore(path)
    await store.load(key(0))
    async with thread_held(store):
        tasks = [asyncio.create_task(first_turn(store, number)) for number in range(4)]
        await asyncio.sleep(0)
        closing_ = asyncio.create_task(store.aclose())
        await asyncio.sleep(0)
        late = asyncio.create_task(first_turn(store, 4))
    assert {answer.outcome for answer in await asyncio.gather(*tasks, late)} == {Outcome.STORED}
    await closing_
    await store.aclose()
    assert threads() == set()


@pytest.mark.asyncio
async def test_a_store_that_nobody_closed_ends_its_threads_too(path: Path, threads: Callable[[], set[str]]) -> None:
    """Tests and scripts forget; a thread for each store they made would stay for ever."""
    store = SQLiteStore(path)
    await first_turn(store, 0)
    assert threads() == {"convmem-sqlite-writing"}
    del store
    for _ in range(1000):
        if not threads():
            break
        await asyncio.sleep(0.01)
    assert threads() == set()


ENDLESS = """
    import asyncio, sys
    from tests.stores.test_sqlite_groups import key, turn
    from convmem import SQLiteStore
    from convmem.stores.base import Head

    async def talk(store, number):
        head = Head()
        for _ in range({turns}):
            head = (await store.append(key(number), head, turn(number, head))).head
            print(number, head.n, flush=True)

    async def main():
        await asyncio.gather(*(talk(store, number) for number in range(32)))

    store = SQLiteStore(sys.argv[1])
    asyncio.run(main())
"""


def worker(path: Path, turns: int) -> subprocess.Popen[str]:
    code = textwrap.dedent(ENDLESS.format(turns=turns))
    return subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.asyncio
async def test_a_worker_that_is_killed_between_groups_loses_no_acknowledged_turn(path: Path) -> None:
    """Killed with -9 while thirty-two callers append, three times over: what anybody was told is stored."""
    for _ in range(3):
        told: dict[int, int] = {}
        folder = path.with_name(f"{path.name}-{len(list(path.parent.iterdir()))}")
        with worker(folder, 10**6) as process:
            assert process.stdout is not None
            for count, line in enumerate(process.stdout):
                if line.endswith("\n"):  # it may die in the middle of saying so
                    number, n = map(int, line.split())
                    told[number] = n
                if count == 500:
                    os.kill(process.pid, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert sum(told.values()) >= 500
        async with SQLiteStore(folder) as store:
            for number, n in told.items():
                log = await store.load(key(number))
                assert log.head.n >= n
                assert [each.n for each in log.entries] == list(range(1, log.head.n + 1))


def test_a_process_that_forgets_to_close_ends_all_the_same(path: Path) -> None:
    """A script ends with its last line; a thread that waits for work must not keep it."""
    with worker(path, 2) as process:
        assert process.stdout is not None
        assert len(process.stdout.readlines()) == 2 * CALLERS
        assert process.wait(60) == 0
    assert asyncio.run(stored(path, range(CALLERS))) == set(range(CALLERS))
