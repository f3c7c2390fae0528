"""Calls that wait for PostgreSQL at the same time go together: fewer trips, and for each call what it would have been told alone."""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import asyncpg
import pytest

from convmem.exceptions import StoreUnavailable
from convmem.identifiers import new_id, new_token
from convmem.stores.base import Head, Lease, Outcome
from convmem.stores.packing import pack_name
from convmem.stores.postgres import PostgresStore
from convmem.stores.postgres_batches import MOST_TOGETHER, Batches, Statement
from convmem.testing.writer import LONG, PAST_SHORT, SHORT, Writer, fresh_key
from tests.awake import Awake
from tests.faults.proxy import Proxy
from tests.servers.processes import HOST, PATIENCE
from tests.stores.test_postgres import port_of, through
from tests.wheels.postgres import PostgresServer

pytestmark = pytest.mark.asyncio
MANY = 24


async def seized(store: PostgresStore, count: int = MANY) -> list[Writer]:
    """Return writers that hold a conversation with one turn each."""
    writers = [Writer(store) for _ in range(count)]
    await asyncio.gather(*(writer.append() for writer in writers))
    logs = await asyncio.gather(*(writer.load(turns=1, term=LONG) for writer in writers))
    assert [log.head for log in logs] == [writer.head for writer in writers]
    return writers


async def test_calls_that_wait_go_to_the_server_together(postgres_url: str) -> None:
    """One trip, one plan and one flush for all of them: this is where the turns a second of a busy worker come from."""
    async with Proxy(HOST, port_of(postgres_url)) as proxy, PostgresStore.at(through(postgres_url, proxy.port)) as store:
        writers: list[Writer] = []
        for _ in range(3):  # the statements are prepared on each connection
            writers = await seized(store)
            await asyncio.gather(*(writer.append(release=True) for writer in writers))
        trips = proxy.round_trips
        await asyncio.gather(*(writer.load(turns=1, term=LONG) for writer in writers))
        await asyncio.gather(*(writer.append(release=True) for writer in writers))
        assert proxy.round_trips - trips <= 2 * MANY // 3
        trips = proxy.round_trips
        for writer in writers[:4]:
            await writer.load(turns=1, term=LONG)
            await writer.append(release=True)
        assert proxy.round_trips - trips == 4 * 2, "who is alone waits for nobody, and pays nothing"


async def test_each_call_of_many_gets_its_own_log(postgres_url: str) -> None:
    """Windows of different sizes, pinned entries, an unknown conversation, one that somebody else holds: nobody reads another's."""
    async with PostgresStore.at(postgres_url) as store:
        writers = [Writer(store) for _ in range(MANY)]
        for writer in writers:
            for number in range(4):
                await writer.append(writer.entry(body=f'["{writer.key.owner} {number}"]'.encode(), pins=number == 0))
        await writers[5].seize()
        stranger = fresh_key()
        keys = [*(writer.key for writer in writers), stranger]
        logs = await asyncio.gather(*(store.load(key, turns=1 + at % 3, lease=Lease(f"t{at}", LONG)) for at, key in enumerate(keys)))
        alone = [await store.load(key, turns=1 + at % 3) for at, key in enumerate(keys)]
        for at, (log, expected) in enumerate(zip(logs, alone, strict=True)):
            assert (log.head, log.entries, log.pinned) == (expected.head, expected.entries, expected.pinned), at
            assert log.holder.token == (writers[5].token if at == 5 else f"t{at}")
        assert logs[-1].head == Head()
        assert all(len(log.entries) == 1 + at % 3 and [each.n for each in log.pinned] == [1] for at, log in enumerate(logs[:-1]))


async def test_each_append_of_many_has_its_own_outcome(postgres_url: str) -> None:
    """Those that are refused, repeated, or the first of their conversation are among those that are stored."""
    async with PostgresStore.at(postgres_url) as store:
        writers = await seized(store)
        late, fenced, twice, lost, fresh, second = writers[:6]
        late.head = Head(late.head.epoch, 0, "")
        fenced.token = "another"
        repeated = await twice.append()
        twice.head = Head(twice.head.epoch, 1, twice.head.id, 1)
        twice.head = (await store.load(twice.key, turns=0)).head
        before = Head(repeated.epoch, 1, (await store.load(twice.key)).entries[0].entry.id, 1)
        lost.head = Head(lost.head.epoch, 7, new_id())
        fresh = Writer(store)
        first = await second.append(second.entry(turn="one turn", closing=False))
        offers = {
            late: late.offer(), fenced: fenced.offer(), lost: lost.offer(), fresh: fresh.offer(),
            twice: store.append(twice.key, before, repeated, release=True),
            second: second.offer(second.entry(turn="one turn", adds=0), release=True),
        }  # fmt: skip
        others = writers[6:]
        released, held = [writer.offer(release=True) for writer in others[:9]], [writer.offer() for writer in others[9:]]
        answers = await asyncio.gather(*released, *offers.values(), *held)
        outcomes = [answer.outcome for answer in answers]
        told = dict(zip(offers, outcomes[9 : 9 + len(offers)], strict=True))
        assert outcomes[:9] + outcomes[9 + len(offers) :] == [Outcome.STORED] * len(others)
        assert list(told.values()) == [
            Outcome.CONFLICT, Outcome.FENCED, Outcome.GAP, Outcome.STORED, Outcome.DUPLICATE, Outcome.STORED,
        ]  # fmt: skip
        assert await second.visible() == ((await store.load(second.key)).entries[0].entry.id, first.id, answers[9 + 5].head.id)
        for writer, free in [(others[0], True), (others[-1], False), (twice, True), (second, True)]:
            assert ((await store.load(writer.key)).holder.token == "") is free


async def test_an_append_under_a_lease_hides_and_removes_what_one_without_does(postgres_url: str) -> None:
    """The short statement that most appends are leaves to the long one what it does not do: nothing is forgotten on the way."""
    async with PostgresStore.at(postgres_url) as store:
        writer = Writer(store)
        await writer.seize()
        await writer.append(writer.entry(turn="first try", closing=False))
        later = await writer.append(writer.entry(turn="first try", adds=0), release=True)
        assert [each.n for each in (await store.load(writer.key, turns=1)).entries] == [1, 2]
        assert (await store.load(writer.key, turns=1)).head.id == later.id
        writer.token = "second try"
        await writer.seize()
        again = await writer.append(writer.entry(turn="first try", adds=0), release=True)
        assert await writer.visible() == (again.id,)
        await writer.seize()
        await writer.append(writer.entry(), ttl=SHORT, release=True)
        await asyncio.sleep(PAST_SHORT)
        await writer.seize()
        alone = await writer.append(writer.entry(), release=True)
        assert await writer.visible() == (alone.id,)
        link = await asyncpg.connect(postgres_url)
        left = await link.fetch(
            "SELECT e.n FROM convmem.convmem_entry AS e JOIN convmem.convmem_conversation AS c ON c.id = e.conversation"
            " WHERE c.owner = $1 AND abs(e.n) < $2",
            *(writer.key.path[1], writer.head.start),
        )
        await link.close()
        assert left == [], "what expired goes with the first append after it"


async def test_two_calls_to_one_conversation_are_not_one_statement(postgres_url: str) -> None:
    """One statement can change a row once: of two appends behind one head one is stored, wherever they wait."""
    async with PostgresStore.at(postgres_url) as store:
        writers = await seized(store, 8)
        answers = await asyncio.gather(*(writer.offer() for writer in writers for _ in range(3)))
        for at, writer in enumerate(writers):
            outcomes = [answer.outcome for answer in answers[3 * at : 3 * at + 3]]
            assert sorted(outcomes) == [Outcome.CONFLICT, Outcome.CONFLICT, Outcome.STORED]
            assert (await store.load(writer.key)).head.n == 2


async def test_a_row_that_somebody_has_locked_holds_up_nobody_else(postgres_url: str) -> None:
    """One statement for all of them must not wait for the slowest."""
    link = await asyncpg.connect(postgres_url)
    async with PostgresStore.at(postgres_url) as store:
        writers = await seized(store)
        blocked, *others = writers[4:]
        transaction = link.transaction()
        await transaction.start()
        await link.execute("SELECT FROM convmem.convmem_lease WHERE token = $1 FOR UPDATE", pack_name(blocked.token))
        first = [asyncio.create_task(writer.append(release=True)) for writer in writers[:4]]
        stuck = asyncio.create_task(blocked.append(release=True))  # waits with the others, and is sent with them
        await asyncio.wait_for(asyncio.gather(*first, *(writer.append(release=True) for writer in others)), PATIENCE)
        again = [asyncio.create_task(store.load(blocked.key, turns=1, lease=Lease(blocked.token, LONG))) for _ in range(2)]
        await asyncio.wait_for(asyncio.gather(*(writer.load(turns=1, term=LONG) for writer in (*writers[:4], *others))), PATIENCE)
        assert not stuck.done()
        assert not any(task.done() for task in again)
        await transaction.commit()
        await asyncio.gather(stuck, *again)
    await link.close()


async def test_workers_that_meet_the_same_new_conversations_never_wait_for_each_other(postgres_server: PostgresServer) -> None:
    """One that makes two rows while another makes them the other way round: the server lets both wait, and then fails one of them."""
    url = postgres_server.database()
    link = await asyncpg.connect(url)
    patient = f"{url}?options=-c%20deadlock_timeout%3D10min"
    async with PostgresStore.at(patient) as here, PostgresStore.at(patient) as there:
        known = await seized(here, 2)
        await asyncio.gather(there.load(fresh_key()), *(writer.append(release=True) for writer in known))
        first, gate, last = (fresh_key() for _ in range(3))
        transaction = link.transaction()
        await transaction.start()  # who is alone waits for its rows, and so the others go together; these wait where they come to the gate
        await link.execute("SELECT FROM convmem.convmem_lease FOR UPDATE")
        of_gate = uuid.UUID(bytes=hashlib.sha256("/".join(gate.path).encode()).digest()[:16])
        await link.execute("INSERT INTO convmem.convmem_lease VALUES ($1, now(), now(), 0, now(), '', '', '')", of_gate)
        loads = [
            asyncio.create_task(store.load(key, turns=1, lease=Lease(new_token(), LONG)))
            for store, keys in ((here, (first, gate, last)), (there, (last, gate, first)))
            for key in (*(writer.key for writer in known), *keys)
        ]
        async with asyncio.timeout(PATIENCE):
            while await link.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted") < 6:  # noqa: ASYNC110 - who waits
                await asyncio.sleep(0.05)
        await transaction.rollback()
        await asyncio.gather(*loads)
    await link.close()


async def test_what_fails_for_one_fails_for_nobody_else(postgres_server: PostgresServer) -> None:
    """A row that should not be there makes a statement fail; whoever only came along is asked for alone, and stored."""
    url = postgres_server.database()
    async with PostgresStore.at(url) as store:
        writers = await seized(store)
        link = await asyncpg.connect(url)
        await link.execute(
            "INSERT INTO convmem.convmem_entry SELECT e.conversation, 2, opens, set_byte(facts, 20, get_byte(facts, 20) # 1), body"
            " FROM convmem.convmem_entry AS e JOIN convmem.convmem_lease AS l ON l.conversation = e.conversation WHERE l.token = $1",
            pack_name(writers[9].token),
        )
        await link.close()
        answers = await asyncio.gather(*(writer.offer() for writer in writers), return_exceptions=True)
        assert isinstance(answers[9], StoreUnavailable)
        del answers[9]
        assert [answer.outcome for answer in answers if not isinstance(answer, BaseException)] == [Outcome.STORED] * (MANY - 1)


async def test_many_appends_whose_answer_is_lost_are_unknown_and_stored_once(postgres_url: str) -> None:
    """A reset says nothing about what the server did, for each that was in the statement; the repeat of each entry finds out."""
    async with Proxy(HOST, port_of(postgres_url)) as proxy, PostgresStore.at(through(postgres_url, proxy.port)) as store:
        await seized(store)
        writers = await seized(store)
        entries = [writer.entry() for writer in writers]
        proxy.cut_reply_after(1)
        answers = await asyncio.gather(*(w.offer(e) for w, e in zip(writers, entries, strict=True)), return_exceptions=True)
        assert any(isinstance(answer, StoreUnavailable) and answer.unknown for answer in answers)
        for writer, entry, answer in zip(writers, entries, answers, strict=True):
            if isinstance(answer, BaseException):
                assert isinstance(answer, StoreUnavailable)
                assert (await writer.offer(entry)).outcome in {Outcome.STORED, Outcome.DUPLICATE}
            assert (await store.load(writer.key)).head.n == 2


async def test_a_server_that_stands_still_is_told_to_all_who_wait_in_time(postgres_url: str) -> None:
    """Nobody waits twice: for the statement that is under way, and then for the own one."""
    link = await asyncpg.connect(postgres_url)
    async with PostgresStore.at(postgres_url, timeout=timedelta(seconds=0.5)) as store:
        writers = await seized(store)
        transaction = link.transaction()
        await transaction.start()
        await link.execute("LOCK TABLE convmem.convmem_lease IN ACCESS EXCLUSIVE MODE")
        with Awake() as clock:
            answers = await asyncio.gather(*(writer.offer() for writer in writers), return_exceptions=True)
            took = clock()
        assert all(isinstance(answer, StoreUnavailable) for answer in answers)
        assert took < 3 * 0.5
        await transaction.rollback()
        for writer in writers:
            assert (await writer.offer()).outcome is Outcome.STORED
    await link.close()


@dataclass
class Overdue(Exception):
    """What a call is told that waited until its deadline."""

    sent: bool


async def overdue(call: asyncio.Task[Any]) -> Overdue:
    with pytest.raises(Overdue) as caught:
        await call
    return caught.value


class Desk:
    """A server that answers when it is told to."""

    def __init__(self) -> None:
        self.batches = Batches(self._send, self._overdue)
        self.sent: list[tuple[list[str], float]] = []
        self._answers: list[asyncio.Future[list[Any]]] = []

    async def _send(self, statement: Statement, form: str, arguments: Sequence[Any], deadline: float) -> list[Any]:
        assert statement is _STATEMENT
        self.sent.append(([arguments[0]] if form == "one" else list(arguments[0]), deadline))
        self._answers.append(asyncio.get_running_loop().create_future())
        return await self._answers[-1]

    def _overdue(self, operation: str, *, sent: bool) -> NoReturn:
        assert operation == _STATEMENT.operation
        raise Overdue(sent)

    async def ask(self, *names: str, within: float = 60.0) -> list[asyncio.Task[Any]]:
        """Have calls wait, or go."""
        tasks = [asyncio.create_task(self.batches.call(_STATEMENT, (name,), time.monotonic() + within)) for name in names]
        await asyncio.sleep(0)
        return tasks

    async def answer(self, at: int, answer: list[Any] | Exception | None = None) -> None:
        """Answer a statement: each call by its name, or so."""
        names, _ = self.sent[at]
        if isinstance(answer, Exception):
            self._answers[at].set_exception(answer)
        else:
            self._answers[at].set_result([{"at": i, "name": name} for i, name in enumerate(names, 1)] if answer is None else answer)
        for _ in range(5):
            await asyncio.sleep(0)


_STATEMENT = Statement("append", "append")


class TestWhoWaits:
    """What becomes of a call between those it goes with, whatever the server does."""

    async def test_who_gave_up_is_never_sent(self) -> None:
        """Whether by itself or at its deadline: it was told for certain that nothing was done."""
        desk = Desk()
        busy = await desk.ask("a", "b")
        (gone,) = await desk.ask("gone")
        (late,) = await desk.ask("late", within=0.05)
        gone.cancel()
        assert await overdue(late) == Overdue(sent=False)
        await desk.answer(0)
        await desk.answer(1)
        assert [names for names, _ in desk.sent] == [["a"], ["b"]]
        assert all(task.done() for task in busy)

    async def test_who_was_sent_and_not_answered_in_time_is_told_so(self) -> None:
        """What became of it nobody knows."""
        desk = Desk()
        await desk.ask("a", "b")
        (late,) = await desk.ask("late", within=0.05)
        await desk.answer(0)
        assert desk.sent[2][0] == ["late"]
        assert await overdue(late) == Overdue(sent=True)

    async def test_who_gives_up_on_the_way_takes_nobody_else_along(self) -> None:
        """Its answer is thrown away, and the next one's is not."""
        desk = Desk()
        await desk.ask("a", "b")
        gone, stays = await desk.ask("gone", "stays")
        await desk.answer(0)
        gone.cancel()
        await desk.answer(2)
        assert [row["name"] for row in await asyncio.wait_for(stays, 5)] == ["stays"]

    async def test_who_has_little_time_left_cuts_nobody_short(self) -> None:
        """The statement may take as long as the most patient of them waits."""
        desk = Desk()
        await desk.ask("a", "b")
        await desk.ask("short", within=1.0)
        await desk.ask("long", within=60.0)
        await desk.answer(0)
        names, deadline = desk.sent[2]
        assert names == ["short", "long"]
        assert deadline - time.monotonic() > 30

    async def test_a_statement_has_a_size(self) -> None:
        """Of many that wait, it leaves some to the next."""
        desk = Desk()
        tasks = await desk.ask("a", "b", *map(str, range(MOST_TOGETHER + 8)))
        await desk.answer(0)
        await desk.answer(1)
        assert [len(names) for names, _ in desk.sent] == [1, 1, MOST_TOGETHER, 8]
        await desk.answer(2)
        await desk.answer(3)
        assert all(task.done() for task in tasks)

    async def test_what_may_have_been_done_is_not_asked_for_again(self) -> None:
        """All of them are told that nobody knows, and look for themselves."""
        desk = Desk()
        await desk.ask("a", "b")
        unsure = await desk.ask("c", "d")
        await desk.answer(0)
        await desk.answer(2, StoreUnavailable("postgresql", "append", "the connection was reset", unknown=True))
        for task in unsure:
            with pytest.raises(StoreUnavailable) as caught:
                await task
            assert caught.value.unknown
        assert len(desk.sent) == 3
