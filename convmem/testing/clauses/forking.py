"""What a fork needs of a store: pages that follow each other, and entries of one id in two conversations."""

from __future__ import annotations

import asyncio

from convmem import forks
from convmem.identifiers import new_token
from convmem.keys import SessionKey
from convmem.stores.base import Log, Store
from convmem.testing.writer import LONG, Writer


def _shown(log: Log) -> list[tuple[str, bytes, str]]:
    return [(turn.id, stored.entry.body, turn.state) for turn in log.turns for stored in turn.entries]


def _beside(key: SessionKey, session_id: str) -> SessionKey:
    return SessionKey(key.owner, session_id, key.tenant)


def _said(text: str) -> bytes:
    return b'[{"role":"user","content":"%s","id":"%s","created_at":"2026-01-01T00:00:00+00:00"}]' % (text.encode(), text.encode())


class ForkingClauses:
    """Clauses on what `convmem.fork` does with `Store.load` and `Store.append`."""

    async def test_a_fork_shows_what_its_source_shows(self, store: Store) -> None:
        """Turns with their ends, what is pinned, and nothing of what was superseded or hidden: ids are known in two conversations."""
        writer = Writer(store)
        copy = _beside(writer.key, "fork")
        await writer.append(writer.entry(body=_said("hidden")))
        await writer.append(writer.entry(body=_said("rules"), pins=True))
        await writer.append(writer.entry(turn="again", body=_said("asked"), closing=False))
        await writer.append(writer.entry(body=_said("kept"), hides=(1,), adds=0))
        writer.token = new_token()
        await writer.append(writer.entry(turn="again", body=_said("asked"), closing=False, adds=0))
        await forks.copy(store, writer.key, copy, None)
        source, fork = await store.load(writer.key), await store.load(copy)
        assert _shown(fork) == _shown(source)
        assert [state for _, _, state in _shown(fork)] == ["complete", "complete", "interrupted"]
        assert (fork.head.turns, fork.head.n, [stored.n for stored in fork.entries]) == (3, 3, [1, 2, 3])
        newest = await store.load(copy, turns=1)
        assert [stored.entry.body for stored in newest.pinned] == [_said("rules")]

    async def test_a_fork_at_an_earlier_place_shows_what_was_there(self, store: Store) -> None:
        """Up to this entry, and with it; the one behind it is the question somebody wants to ask otherwise."""
        writer = Writer(store)
        for text in ("one", "two", "three"):
            await writer.append(writer.entry(body=_said(text)))
        for at in range(3):
            copy = _beside(writer.key, f"fork-{at}")
            await forks.copy(store, writer.key, copy, at)
            assert [stored.entry.body for stored in (await store.load(copy)).entries] == [_said("one"), _said("two")][:at]

    async def test_a_fork_and_its_source_go_their_own_ways(self, store: Store) -> None:
        """An answer given in one is not in the other, and who deletes one keeps the other."""
        writer = Writer(store)
        for text in ("one", "two"):
            await writer.append(writer.entry(body=_said(text)))
        other = Writer(store, _beside(writer.key, "fork"))
        await forks.copy(store, writer.key, other.key, None)
        await other.load()
        await other.append(other.entry(body=_said("there")))
        await writer.append(writer.entry(body=_said("here")))
        assert [body for _, body, _ in _shown(await store.load(writer.key))] == [_said("one"), _said("two"), _said("here")]
        await store.delete(writer.key)
        assert [body for _, body, _ in _shown(await store.load(other.key))] == [_said("one"), _said("two"), _said("there")]

    async def test_a_fork_made_twice_at_once_is_one(self, store: Store) -> None:
        """A client that asks again stores nothing twice: whoever comes second goes on where the first one is."""
        writer = Writer(store)
        for number in range(6):
            await writer.append(writer.entry(body=_said(f"number {number}")))
        copy = _beside(writer.key, "fork")
        ends = await asyncio.gather(*(forks.copy(store, writer.key, copy, 6) for _ in range(2)), return_exceptions=True)
        assert ends == [None, None]
        await forks.copy(store, writer.key, copy, 6)
        log = await store.load(copy)
        assert ([stored.n for stored in log.entries], _shown(log)) == ([1, 2, 3, 4, 5, 6], _shown(await store.load(writer.key)))

    async def test_a_long_conversation_is_copied_whole(self, store: Store) -> None:
        """It is read in pages, while its owner goes on; the turn that runs is no part of the copy."""
        writer = Writer(store)
        bodies = [_said(f"number {number}") for number in range(40)]
        for body in bodies:
            await writer.append(writer.entry(body=body))
        await writer.seize(LONG)
        await writer.append(writer.entry(body=_said("running"), closing=False))
        copy = _beside(writer.key, "fork")
        await forks.copy(store, writer.key, copy, None)
        log = await store.load(copy)
        assert ([stored.entry.body for stored in log.entries], log.head.turns) == (bodies, 40)
