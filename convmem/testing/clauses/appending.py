"""The only write: append after a head, and the outcome it has."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from convmem.identifiers import new_id, new_token
from convmem.stores.base import Head, Lease, Outcome, Store
from convmem.testing.writer import LONG, PAST_SHORT, SHORT, Writer


class AppendingClauses:
    """Clauses on each outcome of `Store.append`."""

    async def test_a_second_store_object_sees_what_the_first_stored(self, store: Store, open_store: Callable[[], Store]) -> None:
        """The next request meets another worker: what only one object knows is forgotten."""
        writer = Writer(store)
        first = await writer.append()
        async with open_store() as other:
            assert await Writer(other, writer.key).visible() == (first.id,)
            there = Writer(other, writer.key)
            await there.load()
            second = await there.append()
        assert await writer.visible() == (first.id, second.id)

    async def test_a_refused_append_changes_nothing(self, store: Store) -> None:
        """A late writer is turned away, never merged: not its entry, not the head, not who holds the conversation."""
        writer = Writer(store)
        await writer.append()
        late = Writer(store, writer.key)
        late.head = writer.head
        await writer.append()
        before = await store.load(writer.key)
        for head in (late.head, replace(late.head, id=new_id()), replace(late.head, epoch=new_token())):
            late.head = head
            assert (await late.offer()).outcome is not Outcome.STORED
            assert await store.load(writer.key) == before

    async def test_a_refused_append_answers_with_the_head_it_found(self, store: Store) -> None:
        """The caller tells what happened by that head, and starts again from it."""
        writer = Writer(store)
        late = Writer(store, writer.key)
        await writer.append()
        answer = await late.offer()
        assert (answer.outcome, answer.head) == (Outcome.CONFLICT, writer.head)

    async def test_an_entry_is_stored_whole_or_not_at_all(self, store: Store) -> None:
        """A client that leaves cancels its request in any instruction; what stands in the log is a whole batch."""
        writer = Writer(store)
        await writer.append()
        for turns_of_the_loop in range(12):
            entry = writer.entry(body=b"x" * 20_000, count=50)
            task = asyncio.create_task(writer.offer(entry))
            for _ in range(turns_of_the_loop):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            seen = await store.load(writer.key)
            assert seen.entries[-1].n == seen.head.n
            assert seen.entries[-1].entry.id == seen.head.id
            repeated = await writer.offer(entry)
            assert repeated.outcome in {Outcome.STORED, Outcome.DUPLICATE}
            writer.head = repeated.head
            assert (await store.load(writer.key)).entries[-1].entry == entry

    async def test_of_many_writers_at_one_head_one_wins(self, store: Store) -> None:
        """Two tabs at once: one is stored, the other is told; overwriting and interleaving are how others lose messages."""
        writer = Writer(store)
        await writer.append()
        outcomes = Counter(answer.outcome for answer in await asyncio.gather(*(writer.offer() for _ in range(8))))
        assert outcomes == {Outcome.STORED: 1, Outcome.CONFLICT: 7}
        assert (await store.load(writer.key)).head.n == 2

    async def test_of_many_first_appends_one_wins(self, store: Store) -> None:
        """The first append has no row to lock, which is where a store forgets to compare."""
        writer = Writer(store)
        outcomes = Counter(answer.outcome for answer in await asyncio.gather(*(writer.offer() for _ in range(8))))
        assert outcomes == {Outcome.STORED: 1, Outcome.CONFLICT: 7}
        assert len(await writer.visible()) == 1

    async def test_of_two_first_appends_under_one_mark_one_wins(self, store: Store) -> None:
        """After a delete, too, two tabs may begin at once."""
        writer = Writer(store)
        await store.delete(writer.key)
        await writer.load()
        outcomes = [(await writer.offer()).outcome for _ in range(2)]
        assert outcomes == [Outcome.STORED, Outcome.CONFLICT]

    async def test_a_repeated_entry_is_stored_once(self, store: Store) -> None:
        """An answer that got lost is repeated with the same entry; the caller is told where it stands."""
        writer = Writer(store)
        await writer.append()
        entry = writer.entry()
        first = await writer.offer(entry)
        again = await writer.offer(entry)
        assert (first.outcome, again.outcome) == (Outcome.STORED, Outcome.DUPLICATE)
        assert again.head == first.head == entry.head_at(2)
        assert (await store.load(writer.key)).head.n == 2

    async def test_an_entry_repeated_at_once_is_stored_once(self, store: Store) -> None:
        """The first try may still be under way when the second arrives."""
        writer = Writer(store)
        entry = writer.entry()
        outcomes = Counter(answer.outcome for answer in await asyncio.gather(*(writer.offer(entry) for _ in range(6))))
        assert outcomes == {Outcome.STORED: 1, Outcome.DUPLICATE: 5}

    async def test_a_repeated_entry_is_found_behind_others(self, store: Store) -> None:
        """A duplicate is answered with its own position: with the head, the writer would go on behind another's turn."""
        writer = Writer(store)
        await writer.append()
        late = Writer(store, writer.key)
        late.head = writer.head
        entry = await writer.append()
        for _ in range(3):
            await writer.append()
        answer = await late.offer(entry)
        assert (answer.outcome, answer.head) == (Outcome.DUPLICATE, entry.head_at(2))

    async def test_a_repeated_first_append_is_a_duplicate(self, store: Store) -> None:
        """The very first message is the one whose answer a cold start loses most; under a delete mark as without."""
        writer = Writer(store)
        for _ in range(2):
            await writer.load()
            absent = writer.head
            entry = await writer.append()
            await writer.append()
            writer.head = absent
            answer = await writer.offer(entry)
            assert (answer.outcome, answer.head) == (Outcome.DUPLICATE, entry.head_at(1))
            await store.delete(writer.key)

    async def test_an_unknown_epoch_is_a_gap(self, store: Store) -> None:
        """A log that was wiped or restored elsewhere must not go on as if it were the old one: the history is lost, and said so."""
        writer = Writer(store)
        writer.head = Head(new_token(), 3, new_id(), turns=3)
        answer = await writer.offer()
        assert (answer.outcome, answer.head) == (Outcome.GAP, Head())
        other = Writer(store)
        await other.append()
        other.head = replace(other.head, epoch=new_token())
        assert (await other.offer()).outcome is Outcome.GAP

    async def test_a_log_that_ends_too_early_is_a_gap(self, store: Store) -> None:
        """A failover that lost acknowledged entries is noticed by the next append, not by the user."""
        writer = Writer(store)
        await writer.append()
        writer.head = replace(writer.head, n=4, id=new_id())
        assert (await writer.offer()).outcome is Outcome.GAP

    async def test_a_head_beyond_every_log_is_a_gap(self, store: Store) -> None:
        """However a store keeps a position, a greater one is only further away than any log ends."""
        writer = Writer(store)
        await writer.append()
        for bits in (31, 32, 53, 59):
            beyond = replace(writer.head, n=2**bits)
            assert (await store.append(writer.key, beyond, writer.entry())).outcome is Outcome.GAP
            assert not await store.renew(writer.key, Lease(writer.token, LONG), beyond)
            assert not await store.delete(writer.key, at=beyond)

    async def test_another_entry_at_the_position_is_a_gap(self, store: Store) -> None:
        """After a failover others may have filled the lost positions: the number alone proves nothing."""
        writer = Writer(store)
        await writer.append()
        writer.head = replace(writer.head, id=new_id())
        assert (await writer.offer()).outcome is Outcome.GAP

    async def test_a_live_lease_of_another_fences(self, store: Store) -> None:
        """The one who holds the turn must not be the one who fails: without the fence the late writer wins."""
        holder, late = Writer(store), Writer(store)
        late.key = holder.key
        await holder.append()
        await holder.seize(LONG)
        await late.load()
        assert (await late.offer()).outcome is Outcome.FENCED
        await holder.append()

    async def test_a_lease_that_ran_out_untaken_does_not_stand_in_the_way(self, store: Store) -> None:
        """A turn that took longer than its lease, with nobody waiting, harmed nobody: its answer is paid for."""
        writer = Writer(store)
        await writer.seize(SHORT)
        await asyncio.sleep(PAST_SHORT)
        await writer.append()
        other = Writer(store, writer.key)
        await writer.seize(SHORT)
        await asyncio.sleep(PAST_SHORT)
        await other.load()
        await other.append()

    async def test_a_lease_that_was_taken_over_fences_the_late_writer(self, store: Store) -> None:
        """The worker that hung comes back after its successor began: it may not write into that turn."""
        late = Writer(store)
        await late.seize(SHORT)
        await asyncio.sleep(PAST_SHORT)
        successor = Writer(store, late.key)
        await successor.seize(LONG)
        assert (await late.offer(release=True)).outcome is Outcome.FENCED
        await successor.append(release=True)
        assert (await late.offer(release=True)).outcome is Outcome.CONFLICT

    async def test_a_log_that_went_on_is_a_conflict(self, store: Store) -> None:
        """Somebody wrote since the load: the answer was made from an old history."""
        writer = Writer(store)
        await writer.append()
        late = Writer(store, writer.key)
        late.head = writer.head
        await writer.append()
        await writer.append()
        assert (await late.offer()).outcome is Outcome.CONFLICT

    async def test_sixteen_writers_lose_nothing(self, store: Store, open_store: Callable[[], Store]) -> None:
        """Load, append, and again after a conflict: every acknowledged entry is in the log, once, in its writer's order."""
        key = Writer(store).key

        async def write(store: Store, number: int) -> list[str]:
            writer = Writer(store, key)
            mine: list[str] = []
            while len(mine) < 2:
                await writer.load(turns=0)
                entry = writer.entry(body=b"%d" % number)
                if (await writer.offer(entry)).outcome is Outcome.STORED:
                    mine.append(entry.id)
            return mine

        async with open_store() as other:
            acknowledged = await asyncio.gather(*(write((store, other)[number % 2], number) for number in range(16)))
        log = await store.load(key)
        assert sorted(stored.entry.id for stored in log.entries) == sorted(id_ for mine in acknowledged for id_ in mine)
        assert [stored.n for stored in log.entries] == list(range(1, 33))
        for number, mine in enumerate(acknowledged):
            assert [stored.entry.id for stored in log.entries if stored.entry.body == b"%d" % number] == mine


class OutcomeOrderClauses:
    """Clauses on the order of the outcomes, each in a state in which two of them apply."""

    async def test_gone_is_told_before_gap(self, store: Store) -> None:
        """A delete during a turn is the owner's wish; called a gap it would be a false alarm of a lost history."""
        writer = Writer(store)
        await writer.append()
        await store.delete(writer.key)
        assert (await writer.offer()).outcome is Outcome.GONE

    async def test_gone_is_told_before_duplicate(self, store: Store) -> None:
        """What a deleted life had stored is not stored: a repeat must not be told that its text is kept."""
        writer = Writer(store)
        entry = writer.entry()
        await writer.offer(entry)
        await store.delete(writer.key)
        next_life = Writer(store, writer.key)
        await next_life.load()
        await next_life.append(replace(entry, epoch=new_token()))
        assert (await writer.offer(entry)).outcome is Outcome.GONE

    async def test_gone_is_told_before_fenced(self, store: Store) -> None:
        """The turn of the old life learns why it cannot be stored, also when the next life is already at work."""
        writer = Writer(store)
        await writer.append()
        await store.delete(writer.key)
        await Writer(store, writer.key).seize(LONG)
        assert (await writer.offer()).outcome is Outcome.GONE

    async def test_an_unknown_epoch_is_told_before_duplicate(self, store: Store) -> None:
        """An entry with the same id in another life is not this one."""
        writer = Writer(store)
        await writer.append()
        after = writer.head
        entry = await writer.append()
        writer.head = replace(after, epoch=new_token())
        assert (await writer.offer(entry)).outcome is Outcome.GAP

    async def test_duplicate_is_told_before_another_entry_at_the_position(self, store: Store) -> None:
        """What stands in the log is stored, whatever else may be wrong with the caller's view."""
        writer = Writer(store)
        await writer.append()
        after = writer.head
        entry = await writer.append()
        writer.head = replace(after, id=new_id())
        assert (await writer.offer(entry)).outcome is Outcome.DUPLICATE

    async def test_duplicate_is_told_before_fenced(self, store: Store) -> None:
        """A stored turn whose answer got lost is stored, also when the next turn has begun."""
        writer = Writer(store)
        entry = writer.entry()
        first = await writer.offer(entry)
        await Writer(store, writer.key).seize(LONG)
        again = await writer.offer(entry)
        assert (again.outcome, again.head) == (Outcome.DUPLICATE, first.head)

    async def test_gap_is_told_before_fenced(self, store: Store) -> None:
        """Lost entries are never covered up by a lease: the writer would come back and go on without them."""
        writer = Writer(store)
        await writer.append()
        await Writer(store, writer.key).seize(LONG)
        kept = writer.head
        for head in (replace(kept, n=9, id=new_id()), replace(kept, id=new_id()), replace(kept, epoch=new_token())):
            writer.head = head
            assert (await writer.offer()).outcome is Outcome.GAP

    async def test_gap_is_told_before_conflict(self, store: Store) -> None:
        """Another entry at the position, and the log goes on: that is loss, not competition."""
        writer = Writer(store)
        await writer.append()
        after = replace(writer.head, id=new_id())
        await writer.append()
        writer.head = after
        assert (await writer.offer()).outcome is Outcome.GAP

    async def test_fenced_is_told_before_conflict(self, store: Store) -> None:
        """Who lost the turn is told so, also when its successor has already stored something."""
        holder = Writer(store)
        await holder.append()
        late = Writer(store, holder.key)
        late.head = holder.head
        await holder.seize(LONG)
        await holder.append()
        assert (await late.offer()).outcome is Outcome.FENCED
