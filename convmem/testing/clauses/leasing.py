"""The lease: one turn at a time, by the store's clock, and whoever gets it sees what its predecessor left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

from convmem.identifiers import new_token
from convmem.stores.base import Head, Holder, Kind, Lease, Outcome, Store
from convmem.testing.writer import LONG, PAST_SHORT, SHORT, Writer


class LeasingClauses:
    """Clauses on taking, keeping, losing and ending the lease."""

    async def test_a_lease_is_taken_and_keeps_others_out(self, store: Store) -> None:
        """Two turns at once would answer from the same history; the second is told who is in its way, and for how long."""
        writer, other = Writer(store), Writer(store)
        other.key = writer.key
        mine = await writer.seize(LONG)
        assert timedelta() < mine.holder.remaining <= LONG
        for term in (LONG, None):
            log = await other.load(term=term)
            assert log.holder.token == writer.token
            assert timedelta() <= log.holder.running < LONG
            assert timedelta() < log.holder.remaining <= LONG

    async def test_running_counts_from_when_the_lease_was_taken(self, store: Store) -> None:
        """Whoever waits is told how long the other has been at work; a renewal does not make it young again."""
        writer = Writer(store)
        await writer.seize(LONG)
        await asyncio.sleep(PAST_SHORT)
        await store.renew(writer.key, Lease(writer.token, LONG), writer.head)
        await writer.load(term=LONG)
        assert (await store.load(writer.key)).holder.running >= SHORT

    async def test_a_load_without_a_lease_takes_none(self, store: Store) -> None:
        """A page that only reads must not block the one who writes."""
        writer = Writer(store)
        await writer.append()
        assert (await store.load(writer.key)).holder == Holder()
        assert (await store.load(writer.key)).holder == Holder()

    async def test_of_many_one_gets_the_lease(self, store: Store) -> None:
        """Ten tabs at once: exactly one of them is the turn."""
        first = Writer(store)
        writers = [Writer(store, first.key) for _ in range(16)]
        logs = await asyncio.gather(*(writer.load(term=LONG) for writer in writers))
        winners = {log.holder.token for log in logs}
        assert len(winners) == 1
        assert winners < {writer.token for writer in writers}

    async def test_a_lease_on_nothing_creates_no_conversation(self, store: Store) -> None:
        """A turn that fails before it stored anything leaves no empty conversation in the list."""
        writer = Writer(store)
        log = await writer.seize(LONG)
        assert log.head == Head()
        assert (await store.list(writer.key.owner)).items == ()
        await store.release(writer.key, writer.token)
        assert (await store.load(writer.key)).head == Head()

    async def test_the_same_token_twice_is_its_own(self, store: Store) -> None:
        """A load whose answer got lost is repeated: it must not find itself in its way."""
        writer = Writer(store)
        await writer.seize(LONG)
        await writer.seize(LONG)
        assert await store.renew(writer.key, Lease(writer.token, LONG), writer.head)

    async def test_a_lease_runs_out_by_itself(self, store: Store) -> None:
        """A dead worker blocks its conversation for the lease and no longer; a read tells so at once."""
        writer, other = Writer(store), Writer(store)
        other.key = writer.key
        await writer.append()
        await writer.seize(SHORT)
        await asyncio.sleep(PAST_SHORT)
        assert (await store.load(writer.key)).holder == Holder()
        assert (await other.seize(LONG)).head == writer.head

    async def test_a_renewed_lease_holds_another_term(self, store: Store) -> None:
        """A turn may take longer than a lease as long as its worker lives."""
        writer, other = Writer(store), Writer(store)
        other.key = writer.key
        await writer.seize(timedelta(seconds=0.3))
        assert await store.renew(writer.key, Lease(writer.token, LONG), writer.head)
        await asyncio.sleep(0.4)
        assert (await other.load(term=LONG)).holder.token == writer.token

    async def test_a_live_lease_is_renewed_although_the_head_moved(self, store: Store) -> None:
        """The holder's own early save moves the head; its timer need not know."""
        writer = Writer(store)
        await writer.seize(LONG)
        before = writer.head
        await writer.append(writer.entry(closing=False))
        assert await store.renew(writer.key, Lease(writer.token, LONG), before)

    async def test_a_stranger_cannot_renew(self, store: Store) -> None:
        """A worker that lost its lease must learn it, not win it back from the one at work."""
        writer = Writer(store)
        await writer.append()
        await writer.seize(LONG)
        assert not await store.renew(writer.key, Lease(new_token(), LONG), writer.head)
        assert (await store.load(writer.key)).holder.token == writer.token

    async def test_a_lease_that_ran_out_is_renewed_while_nothing_happened(self, store: Store) -> None:
        """A worker that was paused for a moment goes on: nobody took the turn, nothing was written."""
        writer = Writer(store)
        await writer.append()
        await writer.seize(SHORT)
        await asyncio.sleep(PAST_SHORT)
        assert await store.renew(writer.key, Lease(writer.token, LONG), writer.head)
        assert (await store.load(writer.key)).holder.token == writer.token

    async def test_a_lease_that_ran_out_is_lost_when_the_head_moved(self, store: Store) -> None:
        """Somebody came and went: the history this turn answers from is old, and so is its lease."""
        writer, other = Writer(store), Writer(store)
        other.key = writer.key
        await writer.append()
        await writer.seize(SHORT)
        await asyncio.sleep(PAST_SHORT)
        await other.seize(LONG)
        await other.append(release=True)
        assert not await store.renew(writer.key, Lease(writer.token, LONG), writer.head)
        assert (await store.load(writer.key)).holder == Holder()

    async def test_a_lease_that_ran_out_is_lost_when_another_took_it(self, store: Store) -> None:
        """Its successor has begun, even if it has stored nothing yet."""
        writer, other = Writer(store), Writer(store)
        other.key = writer.key
        await writer.seize(SHORT)
        await asyncio.sleep(PAST_SHORT)
        await other.seize(LONG)
        assert not await store.renew(writer.key, Lease(writer.token, LONG), writer.head)

    async def test_a_released_lease_is_free_at_once(self, store: Store) -> None:
        """The next turn begins when this one ends, not when its term does."""
        writer = Writer(store)
        await writer.seize(LONG)
        await store.release(writer.key, writer.token)
        assert (await store.load(writer.key)).holder == Holder()
        await Writer(store, writer.key).seize(LONG)

    async def test_a_stranger_releases_nothing(self, store: Store) -> None:
        """Every turn that fails releases its own lease, also when it has long lost it: that must not free another's."""
        writer = Writer(store)
        await store.release(writer.key, new_token())
        await writer.seize(LONG)
        await store.release(writer.key, new_token())
        assert (await store.load(writer.key)).holder.token == writer.token

    async def test_an_append_ends_its_lease_in_the_same_step(self, store: Store) -> None:
        """The end of a turn is one trip; the next turn sees it stored and the conversation free."""
        writer = Writer(store)
        await writer.seize(LONG)
        await writer.append(release=True)
        assert (await store.load(writer.key)).holder == Holder()

    async def test_an_append_keeps_its_lease_unless_told(self, store: Store) -> None:
        """An early save is the middle of a turn: nobody may come between it and the answer."""
        writer = Writer(store)
        await writer.seize(LONG)
        await writer.append(writer.entry(closing=False))
        assert (await store.load(writer.key)).holder.token == writer.token

    async def test_a_duplicate_ends_its_lease_too(self, store: Store) -> None:
        """The repeat of a closing append is the end of the turn as well; a kept lease would block the next one for nothing."""
        writer = Writer(store)
        entry = writer.entry()
        await writer.offer(entry)
        await writer.load(term=LONG)
        writer.head = Head()
        assert (await writer.offer(entry, release=True)).outcome is Outcome.DUPLICATE
        assert (await store.load(writer.key)).holder == Holder()

    async def test_an_append_ends_no_lease_but_its_own(self, store: Store) -> None:
        """A repeat that comes late finds the next turn at work and leaves it alone."""
        writer = Writer(store)
        entry = writer.entry()
        await writer.offer(entry)
        other = Writer(store, writer.key)
        await other.seize(LONG)
        assert (await writer.offer(entry, release=True)).outcome is Outcome.DUPLICATE
        assert (await store.load(writer.key)).holder.token == other.token

    async def test_whoever_gets_the_lease_sees_the_head_its_predecessor_left(self, store: Store, open_store: Callable[[], Store]) -> None:
        """A statement that waited for the lease may still see the old head; the winner's append would be a false conflict."""
        key = Writer(store).key

        async def take_turns(store: Store) -> None:
            done = 0
            while done < 8:
                writer = Writer(store, key)
                log = await writer.load(turns=1, term=LONG)
                if log.holder.token != writer.token:
                    await asyncio.sleep(0)
                    continue
                kind = Kind.EDIT if done % 3 == 2 else Kind.TURN
                await writer.append(writer.entry(kind=kind), release=True)
                done += 1

        async with open_store() as other:
            await asyncio.gather(*(take_turns(each) for each in (store, other, store, other)))
        assert (await store.load(key)).head.n == 32
