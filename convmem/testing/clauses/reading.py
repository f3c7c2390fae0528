"""What a load returns: order, windows of whole turns, edits, resets, pinned entries, every byte."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from convmem.identifiers import new_token
from convmem.stores.base import Head, Holder, Kind, Log, Store
from convmem.testing.writer import LONG, Writer, fresh_key


def _ids(log: Log) -> tuple[str, ...]:
    return tuple(stored.entry.id for stored in log.entries)


def _positions(log: Log) -> tuple[int, ...]:
    return tuple(stored.n for stored in log.entries)


class ReadingClauses:
    """Clauses on `Store.load` without a lease."""

    async def test_an_unknown_conversation_is_empty(self, store: Store) -> None:
        """Absent is a value: a first visit is no error, and looking is not writing."""
        key = fresh_key()
        assert await store.load(key) == Log()
        assert await store.load(key) == Log(head=Head(), holder=Holder())
        assert (await store.list(key.owner)).items == ()

    async def test_entries_come_back_in_the_order_they_were_appended(self, store: Store) -> None:
        """The order of a conversation is its meaning; it is the log's and no clock's."""
        writer = Writer(store)
        stored = [(await writer.append()).id for _ in range(12)]
        log = await store.load(writer.key)
        assert list(_ids(log)) == stored
        assert _positions(log) == tuple(range(1, 13))

    async def test_every_field_of_an_entry_comes_back(self, store: Store) -> None:
        """A store that forgets a column loses what a later version, or a retry, depends on."""
        writer = Writer(store)
        await writer.append()
        before = datetime.now(UTC) - timedelta(minutes=5)
        entry = replace(
            writer.entry(turn="turn-1", body=b'["x"]', count=3, closing=False, hides=(1,), pins=True), format=7, key_id="key-9", turns=41
        )
        await writer.append(entry)
        (stored,) = (await store.load(writer.key)).entries
        assert stored.entry == entry
        assert stored.n == 2
        assert stored.stored_at.utcoffset() is not None
        assert before < stored.stored_at < datetime.now(UTC) + timedelta(minutes=5)

    async def test_a_body_comes_back_byte_for_byte(self, store: Store) -> None:
        """The body is opaque: no text encoding, no trimming, no newline or NUL rules of a database."""
        writer = Writer(store)
        bodies = [b"", b"\x00", bytes(range(256)), b"\xff\xfe\x00 '\"\\%s\r\n", "\U0001f9e0 e\u0301".encode(), b" [] \n"]
        for body in bodies:
            await writer.append(writer.entry(body=body))
        assert [stored.entry.body for stored in (await store.load(writer.key)).entries] == bodies

    async def test_a_body_of_four_megabytes_comes_back(self, store: Store) -> None:
        """An image in a message is large; a limit below the documented one would be found in production."""
        writer = Writer(store)
        body = bytes(range(256)) * (4 * 1024 * 4)
        await writer.append(writer.entry(body=body))
        (stored,) = (await store.load(writer.key)).entries
        assert stored.entry.body == body

    async def test_a_body_nobody_can_decode_hides_nothing(self, store: Store) -> None:
        """One bad entry must not cost the whole history; decoding is not the store's business."""
        writer = Writer(store)
        for body in (b'["good"]', b"\x80not json{{{", b'["good too"]'):
            await writer.append(writer.entry(body=body))
        assert [stored.entry.body for stored in (await store.load(writer.key)).entries] == [
            b'["good"]',
            b"\x80not json{{{",
            b'["good too"]',
        ]

    async def test_a_window_of_turns_holds_whole_turns(self, store: Store) -> None:
        """Half a turn is a question without its answer, or a tool call without its result."""
        writer = Writer(store)
        for turn, entries in (("a", 2), ("b", 1), ("c", 3)):
            for number in range(entries):
                await writer.append(writer.entry(turn=turn, closing=number == entries - 1, adds=number == 0))
        expected = {0: (), 1: (4, 5, 6), 2: (3, 4, 5, 6), 3: (1, 2, 3, 4, 5, 6), 4: (1, 2, 3, 4, 5, 6)}
        for turns, positions in expected.items():
            assert _positions(await store.load(writer.key, turns=turns)) == positions

    async def test_a_window_of_messages_holds_whole_turns(self, store: Store) -> None:
        """As many whole turns as it takes to hold the messages asked for, never a part of one."""
        writer = Writer(store)
        for turn, counts in (("a", (2,)), ("b", (2, 1)), ("c", (1, 1))):
            for number, count in enumerate(counts):
                await writer.append(writer.entry(turn=turn, count=count, closing=number == len(counts) - 1, adds=number == 0))
        expected = {0: (), 1: (4, 5), 2: (4, 5), 3: (2, 3, 4, 5), 5: (2, 3, 4, 5), 6: (1, 2, 3, 4, 5), 99: (1, 2, 3, 4, 5)}
        for messages, positions in expected.items():
            assert _positions(await store.load(writer.key, messages=messages)) == positions

    async def test_of_two_limits_the_tighter_one_counts(self, store: Store) -> None:
        """Somebody who bounds both wants neither exceeded."""
        writer = Writer(store)
        for _ in range(4):
            await writer.append(writer.entry(count=2))
        assert _positions(await store.load(writer.key, turns=1, messages=99)) == (4,)
        assert _positions(await store.load(writer.key, turns=99, messages=3)) == (3, 4)

    async def test_pages_before_a_position_follow_each_other(self, store: Store) -> None:
        """A window of tokens is read page by page: together the pages are the history, with no entry twice and none left out."""
        writer = Writer(store)
        for _ in range(7):
            await writer.append()
        await writer.append(writer.entry(kind=Kind.EDIT, hides=(4,), adds=-1))
        pages: list[tuple[int, ...]] = []
        before: int | None = None
        for _ in range(4):
            log = await store.load(writer.key, turns=2, before=before)
            assert log.head == writer.head
            pages.append(_positions(log))
            before = pages[-1][0] if pages[-1] else before
        assert pages == [(6, 7), (3, 5), (1, 2), ()]

    async def test_a_page_tells_the_pinned_entries_before_it(self, store: Store) -> None:
        """What the page itself holds is not told twice, and what comes after it was told by the page after."""
        writer = Writer(store)
        for number in range(6):
            await writer.append(writer.entry(pins=number in (0, 2, 4)))
        log = await store.load(writer.key, turns=2, before=5)
        assert (_positions(log), [stored.n for stored in log.pinned]) == ((3, 4), [1])

    async def test_a_page_shows_no_attempt_that_was_superseded_after_it(self, store: Store) -> None:
        """What is out of sight at the head is out of sight on every page: else a retried question is in the window twice."""
        writer = Writer(store)
        await writer.append()
        await writer.append(writer.entry(turn="again", closing=False))
        for _ in range(2):
            await writer.append()
        writer.token = new_token()
        await writer.append(writer.entry(turn="again", adds=0))
        assert _positions(await store.load(writer.key, turns=9, before=4)) == (1, 3)

    async def test_an_edit_hides_its_positions_and_nothing_else(self, store: Store) -> None:
        """What a user took back is out of sight; the log itself is never rewritten, so positions go on."""
        writer = Writer(store)
        for _ in range(4):
            await writer.append()
        await writer.append(writer.entry(kind=Kind.EDIT, hides=(2, 3), adds=-2))
        await writer.append()
        log = await store.load(writer.key)
        assert _positions(log) == (1, 4, 6)
        assert (log.head.n, log.head.turns) == (6, 3)

    async def test_an_edit_is_never_shown_as_a_turn(self, store: Store) -> None:
        """An edit is bookkeeping; its body is not something anybody said."""
        writer = Writer(store)
        await writer.append()
        await writer.append(writer.entry(kind=Kind.EDIT, body=b'["edit"]', adds=0))
        assert _positions(await store.load(writer.key)) == (1,)

    async def test_a_turn_replaces_what_it_hides(self, store: Store) -> None:
        """Regenerating an answer is one atomic step: the old one never vanishes before the new one is there."""
        writer = Writer(store)
        await writer.append()
        await writer.append()
        await writer.append(writer.entry(hides=(2,), adds=0))
        assert _positions(await store.load(writer.key)) == (1, 3)

    async def test_what_is_out_of_sight_takes_no_room_in_a_window(self, store: Store) -> None:
        """The newest K *visible* turns: hidden ones, edits and superseded attempts would silently shorten the memory."""
        writer = Writer(store)
        for _ in range(3):
            await writer.append()
        await writer.append(writer.entry(turn="again", closing=False))
        writer.token = new_token()
        await writer.append(writer.entry(turn="again", adds=0))
        await writer.append(writer.entry(kind=Kind.EDIT, hides=(3,), adds=-1))
        assert _positions(await store.load(writer.key, turns=2)) == (2, 5)
        assert _positions(await store.load(writer.key, messages=3)) == (1, 2, 5)

    async def test_a_reset_hides_everything_before_it(self, store: Store) -> None:
        """A cleared conversation starts empty for every reader, and its number of turns starts at none."""
        writer = Writer(store)
        await writer.append()
        await writer.append(writer.entry(kind=Kind.RESET))
        log = await store.load(writer.key)
        assert log.entries == ()
        assert (log.head.n, log.head.turns, log.head.start) == (2, 0, 2)
        await writer.append()
        log = await store.load(writer.key)
        assert _positions(log) == (3,)
        assert (log.head.n, log.head.turns, log.head.start) == (3, 1, 2)

    async def test_the_head_is_the_newest_entry(self, store: Store) -> None:
        """The next append, the number of turns and the revision all come from it, so every entry must rewrite it."""
        writer = Writer(store)
        for number, kind in enumerate((Kind.TURN, Kind.EDIT, Kind.TURN)):
            stored = await writer.append(writer.entry(kind=kind, adds=kind is Kind.TURN, pins=number == 0, closing=number != 2))
            assert writer.head == stored.head_at(writer.head.n)
            assert (await store.load(writer.key)).head == writer.head
        assert (await store.load(writer.key, turns=0)).head == writer.head

    async def test_pinned_entries_before_the_window_are_returned(self, store: Store) -> None:
        """A system message is the app's instruction; a window that drops it changes how the model behaves."""
        writer = Writer(store)
        pinned = [(await writer.append(writer.entry(pins=True))).id for _ in range(2)]
        for _ in range(3):
            await writer.append()
        log = await store.load(writer.key, turns=2)
        assert [stored.entry.id for stored in log.pinned] == pinned
        assert _positions(log) == (4, 5)
        assert [stored.n for stored in (await store.load(writer.key, turns=0)).pinned] == [1, 2]

    async def test_a_pinned_entry_inside_the_window_is_returned_once(self, store: Store) -> None:
        """An instruction that comes twice is not what was stored."""
        writer = Writer(store)
        await writer.append(writer.entry(pins=True))
        await writer.append()
        log = await store.load(writer.key)
        assert log.pinned == ()
        assert _positions(log) == (1, 2)

    async def test_a_pinned_entry_that_is_hidden_stays_hidden(self, store: Store) -> None:
        """Pinned means kept in front of a window, not kept against an edit."""
        writer = Writer(store)
        await writer.append(writer.entry(pins=True))
        await writer.append(writer.entry(pins=True))
        await writer.append(writer.entry(kind=Kind.EDIT, hides=(1,), adds=-1))
        await writer.append()
        assert [stored.n for stored in (await store.load(writer.key, turns=1)).pinned] == [2]

    async def test_a_load_is_one_view_of_one_moment(self, store: Store) -> None:
        """A head beyond the entries beside it makes the next append a false conflict, or a history with a hole."""
        writer = Writer(store)
        await writer.append()
        reader = asyncio.create_task(self._read_while(store, writer, times=60))
        for _ in range(30):
            await writer.append()
            await asyncio.sleep(0)
        await reader

    async def _read_while(self, store: Store, writer: Writer, times: int) -> None:
        for _ in range(times):
            log = await store.load(writer.key)
            assert _positions(log) == tuple(range(1, log.head.n + 1))
            assert log.entries[-1].entry.id == log.head.id
            await asyncio.sleep(0)

    async def test_reading_never_waits_for_a_lease(self, store: Store) -> None:
        """A page that only shows the history must not queue behind a turn that is at the model."""
        writer = Writer(store)
        await writer.append()
        await writer.seize(LONG)
        reading = asyncio.create_task(store.load(writer.key))
        done, _ = await asyncio.wait([reading], timeout=3)
        reading.cancel()
        assert done, "a load without a lease waited for somebody else's"
        assert _positions(await reading) == (1,)
