"""TTL: a conversation expires as a whole, and its positions go on."""

from __future__ import annotations

import asyncio

from convmem.identifiers import new_token
from convmem.stores.base import Kind, Outcome, Store
from convmem.testing.writer import LONG, PAST_SHORT, SHORT, Writer


class ExpiringClauses:
    """Clauses on the time to live."""

    async def test_without_a_ttl_nothing_expires(self, store: Store) -> None:
        """None means never, also for a conversation that had a time to live before."""
        writer = Writer(store)
        first = await writer.append(ttl=SHORT)
        second = await writer.append(ttl=None)
        await asyncio.sleep(PAST_SHORT)
        log = await store.load(writer.key)
        assert [stored.entry.id for stored in log.entries] == [first.id, second.id]
        assert not log.expired

    async def test_a_conversation_expires_as_a_whole(self, store: Store) -> None:
        """Half a history is worse than none; and that there was one is told, so that nobody takes it for a new visitor."""
        writer = Writer(store)
        await writer.append(writer.entry(pins=True), ttl=LONG)
        await writer.append(ttl=SHORT)
        await asyncio.sleep(PAST_SHORT)
        log = await store.load(writer.key, turns=1)
        assert (log.entries, log.pinned, log.expired) == ((), (), True)
        assert log.deleted_at is None

    async def test_every_append_slides_the_expiry(self, store: Store) -> None:
        """It is the time since the last message that counts, for the oldest entry as for the newest."""
        writer = Writer(store)
        first = await writer.append(ttl=SHORT)
        second = await writer.append(ttl=LONG)
        await asyncio.sleep(PAST_SHORT)
        assert await writer.visible() == (first.id, second.id)

    async def test_the_head_of_an_expired_conversation_is_still_the_logs(self, store: Store) -> None:
        """Expiry hides and does not rewrite: the next entry follows the last, starts behind it, and counts from none."""
        writer = Writer(store)
        await writer.append(writer.entry(pins=True))
        await writer.append(ttl=SHORT)
        await asyncio.sleep(PAST_SHORT)
        head = (await store.load(writer.key)).head
        assert head.same(writer.head)
        assert (head.turns, head.start, head.pinned) == (0, 2, ())

    async def test_the_next_append_after_an_expiry_starts_anew(self, store: Store) -> None:
        """What had expired does not come back with the next message."""
        writer = Writer(store)
        await writer.append(ttl=SHORT)
        await asyncio.sleep(PAST_SHORT)
        await writer.load()
        entry = await writer.append(ttl=LONG)
        log = await store.load(writer.key)
        assert [(stored.n, stored.entry.id) for stored in log.entries] == [(2, entry.id)]
        assert (log.expired, log.head) == (False, writer.head)
        assert (log.head.turns, log.head.start) == (1, 1)

    async def test_of_two_appends_after_an_expiry_one_wins(self, store: Store) -> None:
        """The second is a conflict and no gap, although what stood before may have been removed with the first."""
        writer = Writer(store)
        await writer.append()
        await writer.append(ttl=SHORT)
        await asyncio.sleep(PAST_SHORT)
        await writer.load()
        outcomes = [(await writer.offer()).outcome for _ in range(2)]
        assert outcomes == [Outcome.STORED, Outcome.CONFLICT]

    async def test_a_writer_from_before_an_expiry_is_no_sign_of_a_loss(self, store: Store) -> None:
        """What expired may be gone with the next entry, a reset too; whoever is late by that is late, and nothing was lost."""
        for kind in (Kind.TURN, Kind.RESET):
            writer = Writer(store)
            heads = []
            for _ in range(2):
                await writer.append(ttl=SHORT)
                heads.append(writer.head)
            await asyncio.sleep(PAST_SHORT)
            await writer.load()
            await writer.append(writer.entry(kind=kind))
            for head in heads:
                writer.head = head
                assert (await writer.offer()).outcome is Outcome.CONFLICT

    async def test_a_turn_of_an_expired_conversation_is_found(self, store: Store) -> None:
        """A retry after the expiry was stored all the same: it is neither run again nor stored twice, and not visible."""
        writer = Writer(store)
        before = writer.head
        entry = await writer.append(writer.entry(turn="mine"), ttl=SHORT)
        await asyncio.sleep(PAST_SHORT)
        found = (await store.load(writer.key, turn="mine")).turn
        assert found is not None
        assert (found.state, found.position, found.visible) == ("complete", 1, False)
        writer.head = before
        assert (await writer.offer(entry)).outcome is Outcome.DUPLICATE

    async def test_an_expired_conversation_can_be_leased(self, store: Store) -> None:
        """The turn that begins anew is a turn like any other, with its lease kept through the load."""
        writer = Writer(store)
        await writer.append(ttl=SHORT)
        await asyncio.sleep(PAST_SHORT)
        log = await writer.load(term=LONG)
        assert log.expired
        assert log.holder.token == writer.token
        late = Writer(store, writer.key)
        late.head, late.token = writer.head, new_token()
        assert (await late.offer()).outcome is Outcome.FENCED
