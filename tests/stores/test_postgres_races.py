"""Two statements of PostgresStore at once, the first stopped between its writes and its commit: what the second sees, and does.

Each interleaving is a function over a store, and is run twice: over the store as it is, and over one whose statement or answer
lacks the line that is there for it, where it has to fail.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

import asyncpg
import pytest

from convmem.exceptions import StoreUnavailable
from convmem.stores import postgres, postgres_database
from convmem.stores.base import Head, Lease, Lookup, Outcome, Store
from convmem.stores.postgres import PostgresStore
from convmem.stores.postgres_connections import Connections, Link
from convmem.stores.postgres_schema import statement
from convmem.testing.writer import LONG, PAST_SHORT, SHORT, Writer

HELD = 0.3
"""Seconds for which the first transaction is held open: far more than the second statement needs to get there."""


class OneConnection(Connections):
    """One connection, in whatever transaction it is."""

    location = "a connection of the test's"

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.link = Link(connection)

    @asynccontextmanager
    async def use(self, deadline: float) -> AsyncIterator[Link]:
        yield self.link

    async def aclose(self) -> None:
        pass


class Stopped:
    """A store all of whose calls are in one transaction, until `commit`."""

    def __init__(self, link: asyncpg.Connection) -> None:
        self._transaction = link.transaction()
        self.store = PostgresStore(OneConnection(link), migrate="off")

    async def begin(self) -> None:
        await self._transaction.start()

    async def commit_after(self, *waiting: asyncio.Future) -> None:
        """Commit when the others have waited for a while, and make sure that they did."""
        await asyncio.sleep(HELD)
        assert not any(task.done() for task in waiting), "the second statement did not wait for the first: nothing was tested"
        await self._transaction.commit()


class Scene:
    """A store, and a second connection whose transaction can be stopped."""

    def __init__(self, store: Store, stopped: Stopped) -> None:
        self.store, self.stopped = store, stopped

    def writer(self, like: Writer | None = None) -> Writer:
        return Writer(self.store, like.key if like else None)

    def stopped_writer(self, like: Writer) -> Writer:
        """The same writer, on the connection that will be stopped."""
        writer = Writer(self.stopped.store, like.key)
        writer.head, writer.token = like.head, like.token
        return writer


async def a_release_is_seen_by_who_waited_for_it(scene: Scene) -> None:
    first = scene.writer()
    second = scene.writer(first)
    await first.append()
    await first.seize(SHORT)
    await asyncio.sleep(PAST_SHORT)  # while it lives, nobody waits: the load answers who holds it
    await scene.stopped.begin()
    left = scene.stopped_writer(first)
    await left.append(release=True)
    waiting = asyncio.create_task(second.seize())
    await scene.stopped.commit_after(waiting)
    log = await waiting
    assert log.head == left.head, "the lease was won with the head before the release"
    assert log.entries[-1].entry.id == left.head.id
    await second.append(release=True)


async def a_write_without_a_lease_is_seen_by_who_takes_one(scene: Scene) -> None:
    first = scene.writer()
    second = scene.writer(first)
    await first.append()
    await scene.stopped.begin()
    left = scene.stopped_writer(first)
    await left.append()
    waiting = asyncio.create_task(second.seize())
    await scene.stopped.commit_after(waiting)
    assert (await waiting).head == left.head
    await second.append(release=True)


async def an_append_is_fenced_by_a_lease_that_was_being_taken(scene: Scene) -> None:
    late = scene.writer()
    await late.append()
    await scene.stopped.begin()
    holder = scene.stopped_writer(late)
    holder.token = "another"
    await holder.seize(LONG)
    waiting = asyncio.create_task(late.offer())
    await scene.stopped.commit_after(waiting)
    assert (await waiting).outcome is Outcome.FENCED
    assert (await scene.store.load(late.key)).head == holder.head


async def of_two_first_appends_the_later_is_a_conflict(scene: Scene) -> None:
    late = scene.writer()
    await scene.stopped.begin()
    first = scene.stopped_writer(late)
    entry = await first.append()
    waiting = asyncio.create_task(late.offer())
    await scene.stopped.commit_after(waiting)
    answer = await waiting
    assert (answer.outcome, answer.head) == (Outcome.CONFLICT, entry.head_at(1))
    assert await late.visible() == (entry.id,)


async def an_entry_repeated_during_its_first_try_is_a_duplicate(scene: Scene) -> None:
    writer = scene.writer()
    await writer.append()
    entry = writer.entry()
    await scene.stopped.begin()
    await scene.stopped_writer(writer).append(entry)
    waiting = asyncio.create_task(writer.offer(entry))
    await scene.stopped.commit_after(waiting)
    assert (await waiting).outcome is Outcome.DUPLICATE
    assert (await scene.store.load(writer.key)).head.n == 2


async def a_delete_removes_what_was_being_written(scene: Scene) -> None:
    writer = scene.writer()
    await writer.append()
    await scene.stopped.begin()
    await scene.stopped_writer(writer).append()
    waiting = asyncio.create_task(scene.store.delete(writer.key))
    await scene.stopped.commit_after(waiting)
    assert await waiting
    assert await writer.visible() == ()
    await writer.load()
    for _ in range(3):
        await writer.append()  # at the positions of the life before: what a delete had left there would be in the way
    assert len(await writer.visible()) == 3


async def an_append_is_gone_with_a_delete_that_was_under_way(scene: Scene) -> None:
    writer = scene.writer()
    await writer.append()
    await scene.stopped.begin()
    await scene.stopped.store.delete(writer.key)
    waiting = asyncio.create_task(writer.offer())
    await scene.stopped.commit_after(waiting)
    assert (await waiting).outcome is Outcome.GONE
    assert await writer.visible() == ()


async def a_delete_at_a_head_spares_what_was_being_written(scene: Scene) -> None:
    writer = scene.writer()
    await writer.append()
    await scene.stopped.begin()
    await scene.stopped_writer(writer).append()
    waiting = asyncio.create_task(scene.store.delete(writer.key, at=writer.head))
    await scene.stopped.commit_after(waiting)
    assert not await waiting
    assert len(await writer.visible()) == 2


async def a_lease_that_ran_out_is_lost_to_a_write_under_way(scene: Scene) -> None:
    late = scene.writer()
    await late.append()
    await late.seize(SHORT)
    await asyncio.sleep(PAST_SHORT)
    await scene.stopped.begin()
    other = scene.stopped_writer(late)
    other.token = "another"
    await other.append()
    waiting = asyncio.create_task(scene.store.renew(late.key, Lease(late.token, LONG), late.head))
    await scene.stopped.commit_after(waiting)
    assert not await waiting


async def a_turn_that_was_being_completed_is_found_complete_and_takes_no_lease(scene: Scene) -> None:
    first = scene.writer()
    await first.seize(SHORT)
    await asyncio.sleep(PAST_SHORT)
    await scene.stopped.begin()
    await (left := scene.stopped_writer(first)).append(left.entry(turn="mine"), release=True)
    retry = scene.writer(first)
    waiting = asyncio.create_task(retry.load(turn="mine", term=LONG))
    await scene.stopped.commit_after(waiting)
    log = await waiting
    assert log.turn == Lookup("complete", 1, visible=True)
    assert log.holder.token == ""
    await scene.writer(first).seize()


async def of_two_who_take_a_lease_the_later_is_told_who_has_it(scene: Scene) -> None:
    first = scene.writer()
    await first.append()
    await scene.stopped.begin()
    holder = scene.stopped_writer(first)
    holder.token = "another"
    await holder.seize(timedelta(seconds=60))
    waiting = asyncio.create_task(first.load(term=LONG))
    await scene.stopped.commit_after(waiting)
    log = await waiting
    assert log.holder.token == "another"
    assert timedelta(seconds=50) < log.holder.remaining <= timedelta(seconds=60)


async def an_append_under_a_lease_that_ran_out_is_fenced_by_who_takes_it(scene: Scene) -> None:
    late = scene.writer()
    await late.append()
    await late.seize(SHORT)
    await asyncio.sleep(PAST_SHORT)
    await scene.stopped.begin()
    holder = scene.stopped_writer(late)
    holder.token = "another"
    await holder.seize(LONG)
    waiting = asyncio.create_task(late.offer())
    await scene.stopped.commit_after(waiting)
    assert (await waiting).outcome is Outcome.FENCED
    assert (await scene.store.load(late.key)).head == holder.head


async def an_entry_repeated_under_its_lease_during_its_first_try_is_a_duplicate(scene: Scene) -> None:
    writer = scene.writer()
    await writer.append()
    await writer.seize()
    entry = writer.entry()
    await scene.stopped.begin()
    await scene.stopped_writer(writer).append(entry)
    waiting = asyncio.create_task(writer.offer(entry))
    await scene.stopped.commit_after(waiting)
    assert (await waiting).outcome is Outcome.DUPLICATE
    assert (await scene.store.load(writer.key)).head.n == 2


async def of_two_first_appends_under_one_lease_the_later_is_a_conflict(scene: Scene) -> None:
    late = scene.writer()
    await late.seize()
    await scene.stopped.begin()
    entry = await scene.stopped_writer(late).append()
    waiting = asyncio.create_task(late.offer())
    await scene.stopped.commit_after(waiting)
    answer = await waiting
    assert (answer.outcome, answer.head) == (Outcome.CONFLICT, entry.head_at(1))


EVERY_PART = ("one", "turn", "messages", "before", "next", "first")
Interleaving = Callable[[Scene], Awaitable[None]]
Change = tuple[str, str, str]
"""A statement, a line of it, and what stands there in the broken store."""

BROKEN: dict[Interleaving, Change] = {
    a_release_is_seen_by_who_waited_for_it: (
        "load",
        "(held.epoch, held.n, held.entry) IS NOT DISTINCT FROM (seen.epoch, seen.n, seen.entry)",
        "true",
    ),
    a_write_without_a_lease_is_seen_by_who_takes_one: (
        "append",
        "epoch = excluded.epoch, n = excluded.n, entry = excluded.entry,",
        "epoch = l.epoch, n = l.n, entry = l.entry,",
    ),
    an_append_is_fenced_by_a_lease_that_was_being_taken: ("append", "WHERE l.token = $6::bytea OR l.until <= now()", ""),
    of_two_first_appends_the_later_is_a_conflict: ("append", "AND NOT EXISTS (SELECT FROM written) THEN 'again'", "AND false THEN 'again'"),
    an_entry_repeated_during_its_first_try_is_a_duplicate: (
        "append",
        "AND NOT EXISTS (SELECT FROM written) THEN 'again'",
        "AND NOT EXISTS (SELECT FROM written) THEN 'conflict'",
    ),
    an_append_under_a_lease_that_ran_out_is_fenced_by_who_takes_it: ("follow", "AND l.token = a.token", ""),
    an_entry_repeated_under_its_lease_during_its_first_try_is_a_duplicate: (
        "follow",
        "c.id = leased.conversation AND c.epoch = a.after_epoch AND c.n = a.after_n AND c.entry = a.after_id",
        "c.id = leased.conversation",
    ),
    of_two_first_appends_under_one_lease_the_later_is_a_conflict: ("follow", "ON CONFLICT (id) DO NOTHING", ""),
    a_delete_removes_what_was_being_written: (
        "delete",
        "AND (c.epoch, c.n, c.entry, c.mark) = (wanted.epoch, wanted.n, wanted.entry, wanted.mark)",
        "",
    ),
    an_append_is_gone_with_a_delete_that_was_under_way: (
        "append",
        "AND (c.epoch, c.n, c.entry, c.mark) = (decided.epoch, decided.n, decided.entry, decided.mark)",
        "",
    ),
    a_delete_at_a_head_spares_what_was_being_written: (
        "delete",
        "AND (c.epoch, c.n, c.entry, c.mark) = (wanted.epoch, wanted.n, wanted.entry, wanted.mark)",
        "",
    ),
    a_lease_that_ran_out_is_lost_to_a_write_under_way: (
        "renew",
        "OR (l.until <= now() AND (l.epoch, l.n, l.entry) = ($4::bytea, $5::integer, $6::bytea))",
        "OR l.until <= now()",
    ),
    a_turn_that_was_being_completed_is_found_complete_and_takes_no_lease: (
        "load",
        "(held.epoch, held.n, held.entry) IS NOT DISTINCT FROM (seen.epoch, seen.n, seen.entry)",
        "true",
    ),
    of_two_who_take_a_lease_the_later_is_told_who_has_it: ("load", "WHERE l.token = excluded.token OR l.until <= now()", ""),
}


@asynccontextmanager
async def scene_on(url: str) -> AsyncIterator[Scene]:
    async with PostgresStore.at(url) as store:
        await store.load(Writer(store).key)  # the tables are there, and every statement of a test is prepared or not alike
        link = await asyncpg.connect(url)
        try:
            yield Scene(store, Stopped(link))
        finally:
            await link.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("interleaving", BROKEN, ids=lambda each: each.__name__)
async def test_what_a_statement_that_waited_does_is_right(postgres_url: str, interleaving: Interleaving) -> None:
    """It sees an old snapshot: one that acted on it would win a lease with a stale head, or write over what it never saw."""
    async with scene_on(postgres_url) as scene:
        await interleaving(scene)


@pytest.mark.asyncio
@pytest.mark.parametrize("interleaving", BROKEN, ids=lambda each: each.__name__)
async def test_a_statement_without_the_line_for_it_is_found_out(
    postgres_url: str, interleaving: Interleaving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interleaving that a broken store survives would prove nothing about ours."""
    name, line, instead = BROKEN[interleaving]
    assert line in statement(name, "convmem", *EVERY_PART), f"{line!r} is not in {name}.sql any more"

    def broken(asked: str, schema: str, *parts: str) -> str:
        whole = statement(asked, schema, *parts)
        return whole.replace(line, instead) if asked == name else whole

    monkeypatch.setattr(postgres_database, "statement", broken)
    monkeypatch.setattr(postgres, "MOST_TRIES", 4)
    with pytest.raises((AssertionError, StoreUnavailable)) as caught:
        async with scene_on(postgres_url) as scene:
            await interleaving(scene)
    assert "nothing was tested" not in str(caught.value)
    assert not isinstance(caught.value.__cause__, asyncpg.PostgresSyntaxError)


@pytest.mark.asyncio
async def test_the_lease_table_may_be_emptied_in_the_middle_of_a_turn(postgres_url: str) -> None:
    """A crash of the server and a promoted standby do that: every conversation is free then, and nothing else has changed."""
    link = await asyncpg.connect(postgres_url)
    async with PostgresStore.at(postgres_url) as store:
        first = Writer(store)
        await first.append()
        await first.seize()
        await first.append(first.entry(closing=False))
        await link.execute("TRUNCATE convmem.convmem_lease")
        assert await store.renew(first.key, Lease(first.token, LONG), first.head)  # nobody took it, nothing was written
        await link.execute("TRUNCATE convmem.convmem_lease")
        second = Writer(store, first.key)
        assert (await second.seize()).head == first.head
        assert (await first.offer()).outcome is Outcome.FENCED
        assert not await store.renew(first.key, Lease(first.token, LONG), first.head)
        await second.append(release=True)
        assert (await first.offer()).outcome is Outcome.CONFLICT
        await link.execute("TRUNCATE convmem.convmem_lease")
        assert (await store.load(first.key)).head == second.head
        stale = Writer(store, first.key)
        stale.head = Head(second.head.epoch, 1, "nobody")
        assert (await stale.offer()).outcome is Outcome.GAP
    await link.close()
