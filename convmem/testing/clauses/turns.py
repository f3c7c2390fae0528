"""Turns: looked up before anything else, never stored twice, the newest attempt alone in sight."""

from __future__ import annotations

import asyncio

from convmem.identifiers import new_id, new_token
from convmem.stores.base import Kind, Lookup, Outcome, Store
from convmem.testing.writer import LONG, PAST_SHORT, SHORT, Writer


async def _look_up(store: Store, writer: Writer, turn: str) -> Lookup:
    found = (await store.load(writer.key, turns=1, turn=turn)).turn
    assert found is not None, "a load that is given a turn id answers with a look-up"
    return found


class TurnClauses:
    """Clauses on the look-up and on superseding."""

    async def test_a_turn_nobody_stored_is_absent(self, store: Store) -> None:
        """Absent says: go on and run it. Without a turn id there is no answer to mistake for one."""
        writer = Writer(store)
        assert await _look_up(store, writer, "nobody") == Lookup("absent", 0, visible=False)
        await writer.append()
        for name in ("nobody", ""):
            assert await _look_up(store, writer, name) == Lookup("absent", 0, visible=False)
        assert (await store.load(writer.key)).turn is None

    async def test_a_turn_retried_after_ten_others_is_found(self, store: Store) -> None:
        """A client retries when it gets back online, not at once: looking at the newest entry alone stores it twice."""
        writer = Writer(store)
        await writer.append(writer.entry(turn="mine", closing=False))
        await writer.append(writer.entry(turn="mine", adds=0))
        for _ in range(10):
            await writer.append()
        assert await _look_up(store, writer, "mine") == Lookup("complete", 2, visible=True)

    async def test_turns_of_different_names_are_apart(self, store: Store) -> None:
        """The name is the client's: one that is folded, trimmed or taken for a pattern replays another turn's answer."""
        names = ["a", "A", "a ", "a%", "a_", "a*", "'", "x" * 255]
        writer = Writer(store)
        for n, name in enumerate(names, start=1):
            assert (await _look_up(store, writer, name)).state == "absent"
            await writer.append(writer.entry(turn=name))
            assert await _look_up(store, writer, name) == Lookup("complete", n, visible=True)

    async def test_a_turn_is_found_before_a_reset_and_behind_an_edit(self, store: Store) -> None:
        """Clearing the conversation must not make an old request run, and be paid for, again."""
        writer = Writer(store)
        await writer.append(writer.entry(turn="cleared"))
        await writer.append(writer.entry(kind=Kind.RESET))
        await writer.append(writer.entry(turn="hidden"))
        await writer.append(writer.entry(turn="edit", kind=Kind.EDIT, hides=(3,), adds=-1))
        assert await _look_up(store, writer, "cleared") == Lookup("complete", 1, visible=False)
        assert await _look_up(store, writer, "hidden") == Lookup("complete", 3, visible=False)
        assert await _look_up(store, writer, "edit") == Lookup("complete", 4, visible=False)

    async def test_a_turn_of_an_earlier_life_is_absent(self, store: Store) -> None:
        """What was deleted is unknown; it would otherwise be replayed to whoever asks."""
        writer = Writer(store)
        await writer.append(writer.entry(turn="mine"))
        await store.delete(writer.key)
        assert (await _look_up(store, writer, "mine")).state == "absent"
        await writer.load()
        await writer.append()
        assert (await _look_up(store, writer, "mine")).state == "absent"

    async def test_an_unfinished_turn_is_running_while_its_lease_lives(self, store: Store) -> None:
        """A retry must not start a second run beside the first, and a reader sees that an answer is on its way."""
        writer = Writer(store)
        await writer.seize(LONG)
        await writer.append(writer.entry(turn="mine", closing=False))
        log = await store.load(writer.key, turn="mine")
        assert log.turn == Lookup("running", 1, visible=True)
        assert [turn.state for turn in log.turns] == ["running"]

    async def test_an_unfinished_turn_is_interrupted_without_its_lease(self, store: Store) -> None:
        """A worker killed with -9 writes nothing any more: interrupted is read from what stands there."""
        writer = Writer(store)
        await writer.seize(SHORT)
        await writer.append(writer.entry(turn="killed", closing=False))
        await asyncio.sleep(PAST_SHORT)
        log = await store.load(writer.key, turn="killed")
        assert log.turn == Lookup("interrupted", 1, visible=True)
        other = Writer(store, writer.key)
        await other.seize(LONG)
        log = await store.load(writer.key, turn="killed")
        assert log.turn == Lookup("interrupted", 1, visible=True)
        assert [turn.state for turn in log.turns] == ["interrupted"]

    async def test_a_retry_supersedes_the_interrupted_attempt(self, store: Store) -> None:
        """A question that was retried is in the history once, with the answer that belongs to it."""
        writer = Writer(store)
        before = await writer.append()
        await writer.append(writer.entry(turn="mine", closing=False))
        await writer.append(writer.entry(turn="mine", closing=False, adds=0))
        writer.token = new_token()
        first = await writer.append(writer.entry(turn="mine", closing=False, adds=0))
        assert await writer.visible() == (before.id, first.id)
        last = await writer.append(writer.entry(turn="mine", adds=0))
        assert await writer.visible() == (before.id, first.id, last.id)
        assert await _look_up(store, writer, "mine") == Lookup("complete", 5, visible=True)

    async def test_a_retry_that_stores_nothing_supersedes_nothing(self, store: Store) -> None:
        """A retry that fails at once must not take what the first attempt had saved out of sight."""
        writer = Writer(store)
        saved = await writer.append(writer.entry(turn="mine", closing=False))
        retry = Writer(store, writer.key)
        log = await retry.load(turn="mine", term=LONG)
        assert log.turn == Lookup("interrupted", 1, visible=True)
        assert log.holder.token == retry.token
        assert await writer.visible() == (saved.id,)
        await store.release(writer.key, retry.token)
        assert await writer.visible() == (saved.id,)

    async def test_entries_of_one_attempt_stay_together(self, store: Store) -> None:
        """An early save and the closing entry are one turn; superseding is between attempts, not within one."""
        writer = Writer(store)
        parts = [(await writer.append(writer.entry(turn="mine", closing=number == 2, adds=number == 0))).id for number in range(3)]
        log = await store.load(writer.key)
        assert [stored.entry.id for stored in log.entries] == parts
        assert [(turn.id, turn.state, len(turn.entries)) for turn in log.turns] == [("mine", "complete", 3)]

    async def test_a_retry_supersedes_an_attempt_before_a_later_turn(self, store: Store) -> None:
        """The retried turn stands where it was answered, behind what happened meanwhile."""
        writer = Writer(store)
        await writer.append(writer.entry(turn="mine", closing=False))
        later = await writer.append(writer.entry(turn="later"))
        writer.token = new_token()
        retried = await writer.append(writer.entry(turn="mine", adds=0))
        assert await writer.visible() == (later.id, retried.id)

    async def test_the_newest_attempt_is_the_one_looked_up(self, store: Store) -> None:
        """An old attempt's fate says nothing about the one under way."""
        writer = Writer(store)
        await writer.append(writer.entry(turn="mine", closing=False))
        retry = Writer(store, writer.key)
        await retry.seize(LONG)
        await retry.append(retry.entry(turn="mine", closing=False, adds=0))
        assert await _look_up(store, writer, "mine") == Lookup("running", 2, visible=True)
        await store.release(writer.key, retry.token)
        assert await _look_up(store, writer, "mine") == Lookup("interrupted", 2, visible=True)

    async def test_what_stands_between_the_entries_of_a_turn_does_not_show_it(self, store: Store) -> None:
        """A retry of what an edit took out of sight adds a turn: whoever counts it as still visible is one short ever after."""
        writer, turn = Writer(store), new_id()
        await writer.append(writer.entry(turn=turn, closing=False))
        await writer.append()
        await writer.append(writer.entry(turn=turn, adds=0))
        await writer.append(writer.entry(kind=Kind.EDIT, adds=-1, hides=(1, 3)))
        assert await _look_up(store, writer, turn) == Lookup("complete", 3, visible=False)

    async def test_a_complete_turn_takes_no_lease(self, store: Store) -> None:
        """A replay needs nothing but the answer; a lease taken for it would block the conversation for nothing."""
        writer = Writer(store)
        await writer.append(writer.entry(turn="mine"))
        log = await Writer(store, writer.key).load(turn="mine", term=LONG)
        assert log.turn == Lookup("complete", 1, visible=True)
        assert log.holder.token == ""
        await Writer(store, writer.key).seize(LONG)

    async def test_a_complete_turn_waits_for_no_lease(self, store: Store) -> None:
        """A retry of a stored turn is answered although another turn is at work, and leaves that one its lease."""
        writer = Writer(store)
        await writer.append(writer.entry(turn="mine"))
        holder = Writer(store, writer.key)
        await holder.seize(LONG)
        log = await Writer(store, writer.key).load(turn="mine", term=LONG)
        assert log.turn == Lookup("complete", 1, visible=True)
        assert log.holder.token == holder.token

    async def test_retries_at_once_store_a_turn_once(self, store: Store) -> None:
        """Look-up and lease are one step: between the two another retry of the same turn could finish it."""
        for _ in range(5):
            key = Writer(store).key

            async def retry(writer: Writer) -> bool:
                while True:
                    log = await writer.load(turn="mine", term=LONG)
                    if log.turn and log.turn.state == "complete":
                        return False
                    if log.holder.token == writer.token:
                        await asyncio.sleep(0)
                        return (await writer.offer(writer.entry(turn="mine"), release=True)).outcome is Outcome.STORED
                    await asyncio.sleep(0.001)

            ran = await asyncio.gather(*(retry(Writer(store, key)) for _ in range(6)))
            assert sum(ran) == 1
            assert (await store.load(key)).head.n == 1
