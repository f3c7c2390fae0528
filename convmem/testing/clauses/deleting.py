"""Delete: the end of a life, and a tombstone that keeps late writers out of the next one."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from convmem.stores.base import Head, Holder, Lease, Outcome, Store
from convmem.testing.writer import LONG, PAST_SHORT, SHORT, Writer


class DeletingClauses:
    """Clauses on `Store.delete` and on what it leaves."""

    async def test_a_deleted_conversation_is_empty(self, store: Store) -> None:
        """Deleted is deleted: no entry, no count, no pinned system message; when it happened is evidence against false alarms."""
        writer = Writer(store)
        await writer.append(writer.entry(pins=True))
        await writer.append()
        assert await store.delete(writer.key)
        log = await store.load(writer.key)
        assert (log.entries, log.pinned, log.holder, log.expired) == ((), (), Holder(), False)
        assert log.head == Head(id=log.head.id)
        assert log.head.id
        assert log.deleted_at is not None
        assert abs(log.deleted_at - datetime.now(UTC)) < timedelta(minutes=5)

    async def test_delete_says_whether_there_was_something(self, store: Store) -> None:
        """Deleting twice is no error, and only the first one ended anything."""
        writer = Writer(store)
        assert not await store.delete(writer.key)
        await writer.load()
        await writer.append()
        assert await store.delete(writer.key)
        assert not await store.delete(writer.key)

    async def test_a_delete_of_nothing_leaves_a_mark(self, store: Store) -> None:
        """The first turn is still at the model when its owner deletes: its answer must not bring the conversation back."""
        writer = Writer(store)
        await writer.load()
        await store.delete(writer.key)
        assert (await writer.offer()).outcome is Outcome.GONE
        assert await writer.visible() == ()

    async def test_every_delete_leaves_a_new_mark(self, store: Store) -> None:
        """A turn that began between two deletes belongs to neither life."""
        writer = Writer(store)
        await store.delete(writer.key)
        await writer.load()
        between = writer.head
        await store.delete(writer.key)
        await writer.load()
        assert writer.head.id != between.id
        current, writer.head = writer.head, between
        assert (await writer.offer()).outcome is Outcome.GONE
        writer.head = current
        await writer.append()

    async def test_a_turn_that_a_delete_overtakes_is_gone(self, store: Store) -> None:
        """What the owner deleted stays deleted, and the turn learns why: neither a gap nor a silent new conversation."""
        writer = Writer(store)
        await writer.append()
        await writer.seize(LONG)
        await store.delete(writer.key)
        answer = await writer.offer(release=True)
        assert answer.outcome is Outcome.GONE
        assert answer.head == (await store.load(writer.key)).head
        assert await writer.visible() == ()

    async def test_a_turn_of_an_old_life_never_enters_the_next(self, store: Store) -> None:
        """Delete, and reuse up to the same position: the old text would stand in the new conversation."""
        old = Writer(store)
        for _ in range(3):
            await old.append()
        await store.delete(old.key)
        new = Writer(store, old.key)
        await new.load()
        fresh = [(await new.append()).id for _ in range(3)]
        answer = await old.offer()
        assert (answer.outcome, answer.head) == (Outcome.GONE, new.head)
        assert list(await new.visible()) == fresh

    async def test_the_epochs_of_all_lives_stay_known(self, store: Store) -> None:
        """The tombstone keeps every life that ended, not only the last; a forgotten one would read as a lost history."""
        writer = Writer(store)
        heads = []
        for _ in range(3):
            await writer.load()
            await writer.append()
            heads.append(writer.head)
            await store.delete(writer.key)
        await writer.load()
        await writer.append()
        for head in heads:
            writer.head = head
            assert (await writer.offer()).outcome is Outcome.GONE

    async def test_a_first_append_under_an_old_mark_is_gone_in_the_next_life(self, store: Store) -> None:
        """The mark outlives the next life: a first turn from before the delete is not a competitor in it."""
        late, writer = Writer(store), Writer(store)
        late.key = writer.key
        await late.load()
        await store.delete(writer.key)
        await writer.load()
        await writer.append()
        assert (await late.offer()).outcome is Outcome.GONE

    async def test_the_next_life_starts_anew(self, store: Store) -> None:
        """A new epoch from position one, of which the tombstone is remembered, and nothing else."""
        writer = Writer(store)
        await writer.append()
        old = writer.head
        await store.delete(writer.key)
        await writer.load()
        entry = await writer.append()
        log = await store.load(writer.key)
        assert (log.head.n, log.head.turns, log.head.epoch) == (1, 1, entry.epoch)
        assert log.head.epoch != old.epoch
        assert [stored.entry for stored in log.entries] == [entry]
        assert log.deleted_at is not None

    async def test_delete_ends_the_lease(self, store: Store) -> None:
        """The turn that was at work has lost its conversation: the next life must not wait for it, nor be renewed by it."""
        writer = Writer(store)
        await writer.append()
        await writer.seize(LONG)
        await store.delete(writer.key)
        assert (await store.load(writer.key)).holder == Holder()
        assert not await store.renew(writer.key, Lease(writer.token, LONG), writer.head)
        await Writer(store, writer.key).seize(LONG)

    async def test_delete_ends_the_lease_on_nothing(self, store: Store) -> None:
        """A first turn holds a lease before there is a conversation; its renewal must fail after a delete all the same."""
        writer = Writer(store)
        await writer.seize(LONG)
        await store.delete(writer.key)
        assert not await store.renew(writer.key, Lease(writer.token, LONG), writer.head)
        assert (await store.load(writer.key)).holder == Holder()

    async def test_the_log_names_every_life_that_ended(self, store: Store) -> None:
        """A client that comes with the revision of a deleted life was not robbed: by these epochs the two are told apart."""
        writer = Writer(store)
        epochs: set[str] = set()
        for _ in range(2):
            await writer.load()
            epochs.add((await writer.append()).epoch)
            await store.delete(writer.key)
            assert (await store.load(writer.key)).ended == epochs
        await writer.load()
        await writer.append()
        assert (await store.load(writer.key)).ended == epochs

    async def test_a_delete_at_a_head_spares_what_was_written_since(self, store: Store) -> None:
        """A job found it idle; its owner wrote before the job came to delete: a moved log is left alone, and no mark is set."""
        writer = Writer(store)
        await writer.append()
        idle = writer.head
        await writer.append()
        assert not await store.delete(writer.key, at=idle)
        assert (await store.load(writer.key)).deleted_at is None
        await writer.append()
        assert await store.delete(writer.key, at=writer.head)
        assert await writer.visible() == ()
        assert not await store.delete(writer.key, at=writer.head)

    async def test_a_delete_at_a_head_knows_another_life(self, store: Store) -> None:
        """The same position of the next life is not what was looked at."""
        writer = Writer(store)
        await writer.append()
        old = writer.head
        await store.delete(writer.key)
        await writer.load()
        await writer.append()
        assert not await store.delete(writer.key, at=old)
        assert len(await writer.visible()) == 1

    async def test_a_delete_at_a_head_removes_what_expired(self, store: Store) -> None:
        """What no reader sees still takes room: housekeeping removes it, and is told that it did."""
        writer = Writer(store)
        await writer.append(ttl=SHORT)
        await asyncio.sleep(PAST_SHORT)
        assert await store.delete(writer.key, at=writer.head)
        log = await store.load(writer.key)
        assert (log.expired, log.head.epoch) == (False, "")

    async def test_a_delete_at_a_head_compares_the_entry(self, store: Store) -> None:
        """After a failover another entry may stand at the same position of the same life: it was not what was looked at."""
        writer = Writer(store)
        await writer.append()
        head = writer.head
        for other in (
            replace(head, id="another"),
            replace(head, n=head.n - 1),
            replace(head, n=head.n + 1),
            replace(head, epoch="another"),
        ):
            assert not await store.delete(writer.key, at=other)
        log = await store.load(writer.key)
        assert (log.head, log.deleted_at, log.ended) == (head, None, frozenset())

    async def test_a_delete_that_is_refused_leaves_the_lease(self, store: Store) -> None:
        """A turn is at work on what a job wanted to delete: it must not lose its lease to a delete that did nothing."""
        writer = Writer(store)
        await writer.append()
        idle = writer.head
        await writer.append()
        await writer.seize(LONG)
        assert not await store.delete(writer.key, at=idle)
        assert (await store.load(writer.key)).holder.token == writer.token
        await writer.append()

    async def test_a_delete_at_no_head_deletes_nothing(self, store: Store) -> None:
        """What was absent when a job looked may have begun since; and of what is absent still there is nothing to delete."""
        writer = Writer(store)
        absent = (await writer.load()).head
        await writer.append()
        assert not await store.delete(writer.key, at=absent)
        assert len(await writer.visible()) == 1
        assert not await store.delete(Writer(store).key, at=absent)

    async def test_a_delete_at_a_head_leaves_a_tombstone(self, store: Store) -> None:
        """It is a delete like any other: a turn from before it stores nothing afterwards."""
        writer = Writer(store)
        await writer.append()
        assert await store.delete(writer.key, at=writer.head)
        assert (await writer.offer()).outcome is Outcome.GONE
        log = await store.load(writer.key)
        assert log.ended == {writer.head.epoch}
        assert log.deleted_at is not None

    async def test_of_many_deletes_at_one_head_one_deletes(self, store: Store) -> None:
        """Two jobs run at once: each conversation is counted by one of them."""
        writer = Writer(store)
        await writer.append()
        assert sum(await asyncio.gather(*(store.delete(writer.key, at=writer.head) for _ in range(8)))) == 1

    async def test_a_sweep_leaves_everything_that_counts(self, store: Store) -> None:
        """Young tombstones keep late writers out, leases keep others out: removed too early, either is a broken promise."""
        kept, deleted, leased = Writer(store), Writer(store), Writer(store)
        await kept.append()
        await deleted.append()
        await store.delete(deleted.key)
        await leased.seize(LONG)
        for _ in range(1000):
            if not await store.sweep():
                break
        else:
            pytest.fail("a sweep says for ever that something is left")
        assert len(await kept.visible()) == 1
        assert (await deleted.offer()).outcome is Outcome.GONE
        assert (await store.load(leased.key)).holder.token == leased.token

    async def test_writers_and_a_delete_at_once_leave_no_remains(self, store: Store) -> None:
        """Whoever comes before the delete is removed by it, whoever comes after is told so; nothing survives it."""
        for _ in range(5):
            writer = Writer(store)
            await writer.append()
            copies = [Writer(store, writer.key) for _ in range(3)]
            for copy in copies:
                copy.head = writer.head
            deleted = asyncio.Event()
            writing = asyncio.gather(*(self._keep_on(copy, deleted) for copy in copies))
            await asyncio.sleep(0.002)
            await store.delete(writer.key)
            deleted.set()
            await writing
            assert await writer.visible() == ()
            assert (await store.load(writer.key)).head.epoch == ""

    async def _keep_on(self, writer: Writer, deleted: asyncio.Event) -> None:
        while not deleted.is_set():
            answer = await writer.offer()
            if answer.outcome is Outcome.GONE:
                return
            writer.head = answer.head
            await asyncio.sleep(0)
        await writer.offer()
