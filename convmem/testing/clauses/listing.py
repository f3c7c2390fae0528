"""An owner's conversations, page by page."""

from __future__ import annotations

import asyncio
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from convmem.keys import SessionKey
from convmem.stores.base import Store
from convmem.testing.writer import LONG, PAST_SHORT, SHORT, Writer, fresh_key


def _as_cursor(place: bytes) -> str:
    """Return what a cursor of ours would be that names this place."""
    return urlsafe_b64encode(place).decode()


async def _fill(store: Store, owner: str, *names: str) -> dict[str, Writer]:
    writers = {name: Writer(store, SessionKey(owner, name)) for name in names}
    for writer in writers.values():
        await writer.append()
        await asyncio.sleep(0.002)
    return writers


async def _pages(store: Store, owner: str, limit: int) -> list[list[str]]:
    pages, after = [], None
    while True:
        page = await store.list(owner, after=after, limit=limit)
        pages.append([item.session_id for item in page.items])
        after = page.after
        if after is None:
            return pages


async def _walk(
    store: Store, tenant: str | None, limit: int = 50, written_before: datetime | None = None
) -> AsyncIterator[tuple[SessionKey, bool]]:
    after = None
    while True:
        page = await store.list(None, tenant=tenant, after=after, limit=limit, written_before=written_before)
        for item in page.items:
            yield item.key, item.expired
        after = page.after
        if after is None:
            return


class ListingClauses:
    """Clauses on `Store.list`."""

    async def test_conversations_are_listed_newest_first(self, store: Store) -> None:
        """The one written last stands on top, as every chat app shows it."""
        owner = fresh_key().owner
        writers = await _fill(store, owner, "a", "b", "c")
        await writers["a"].append()
        page = await store.list(owner)
        assert [item.session_id for item in page.items] == ["a", "c", "b"]
        assert page.after is None

    async def test_a_listed_conversation_tells_its_facts(self, store: Store) -> None:
        """A list is drawn from these alone, without loading each conversation."""
        writer = Writer(store, fresh_key("chat"))
        await writer.append()
        await asyncio.sleep(0.02)
        await writer.append()
        (item,) = (await store.list(writer.key.owner)).items
        assert (item.session_id, item.turns, item.revision) == ("chat", 2, writer.head.revision)
        assert item.updated_at - item.created_at >= timedelta(milliseconds=10)
        assert abs(item.updated_at - datetime.now(UTC)) < timedelta(minutes=5)

    async def test_pages_follow_each_other_without_gap_or_overlap(self, store: Store) -> None:
        """Whatever the page size, the pages together are the list, and the last one says that it is."""
        owner = fresh_key().owner
        names = ["e", "d", "c", "b", "a"]
        await _fill(store, owner, *reversed(names))
        assert await _pages(store, owner, 2) == [["e", "d"], ["c", "b"], ["a"]]
        assert await _pages(store, owner, 5) == [names]
        assert await _pages(store, owner, 1) == [[name] for name in names]

    async def test_conversations_written_at_once_are_all_listed(self, store: Store) -> None:
        """Two with the same time of writing must both get a page: a cursor of the time alone skips one."""
        owner = fresh_key().owner
        names = [f"s{number:02}" for number in range(24)]
        await asyncio.gather(*(Writer(store, SessionKey(owner, name)).append() for name in names))
        assert sorted(name for page in await _pages(store, owner, 1) for name in page) == names

    async def test_a_conversation_that_moves_is_never_shown_twice(self, store: Store) -> None:
        """Somebody pages while a conversation goes on: it is on the first page already, not on the next one too."""
        owner = fresh_key().owner
        writers = await _fill(store, owner, "a", "b", "c", "d")
        first = await store.list(owner, limit=2)
        await writers["d"].append()
        await writers["a"].append()
        rest = await store.list(owner, after=first.after, limit=9)
        assert [item.session_id for item in first.items] == ["d", "c"]
        assert [item.session_id for item in rest.items] == ["b"]

    async def test_another_owners_conversations_are_not_listed(self, store: Store) -> None:
        """Neither another owner's, nor one whose name begins or matches alike, nor the same name's in another tenant."""
        owner = fresh_key().owner
        mine = Writer(store, SessionKey(owner, "mine"))
        await mine.append()
        for other in (SessionKey(f"{owner}x"), SessionKey(owner[:-1]), SessionKey(f"{owner}%"), SessionKey(owner, tenant="t")):
            await Writer(store, other).append()
        assert [item.session_id for item in (await store.list(owner)).items] == ["mine"]
        assert [item.session_id for item in (await store.list(owner, tenant="t")).items] == ["default"]
        assert (await store.list(f"{owner[:-1]}_")).items == ()

    async def test_deleted_conversations_are_not_listed(self, store: Store) -> None:
        """A tombstone is not a conversation; neither is a lease."""
        owner = fresh_key().owner
        writers = await _fill(store, owner, "kept", "deleted")
        await store.delete(writers["deleted"].key)
        await store.delete(SessionKey(owner, "never"))
        await Writer(store, SessionKey(owner, "leased")).seize(LONG)
        assert [item.session_id for item in (await store.list(owner)).items] == ["kept"]

    async def test_expired_conversations_are_not_listed(self, store: Store) -> None:
        """What reads as empty must not be offered for reading; written again, it is back."""
        owner = fresh_key().owner
        kept, expired = (Writer(store, SessionKey(owner, name)) for name in ("kept", "expired"))
        await kept.append(ttl=LONG)
        await expired.append(ttl=SHORT)
        await asyncio.sleep(PAST_SHORT)
        assert [item.session_id for item in (await store.list(owner)).items] == ["kept"]
        await expired.load()
        await expired.append(ttl=LONG)
        assert [item.session_id for item in (await store.list(owner)).items] == ["expired", "kept"]

    async def test_only_what_was_written_before_a_moment_is_listed(self, store: Store) -> None:
        """A retention job asks for the idle ones: what was written since must not be among what it deletes."""
        owner = fresh_key().owner
        await _fill(store, owner, "idle", "idler")
        moment = (await store.list(owner, limit=1)).items[0].updated_at + timedelta(milliseconds=1)
        await asyncio.sleep(0.005)
        await _fill(store, owner, "busy")
        assert [item.session_id for item in (await store.list(owner, written_before=moment)).items] == ["idler", "idle"]
        walked = {key async for key, _ in _walk(store, "", limit=2, written_before=moment)}
        assert {key.session_id for key in walked if key.owner == owner} == {"idle", "idler"}

    async def test_a_walk_goes_through_every_owner_of_a_tenant(self, store: Store) -> None:
        """What a tenant's deletion does not find stays for ever; what it finds too much is somebody else's."""
        tenant = fresh_key().owner
        keys = {SessionKey(fresh_key().owner, name, tenant) for name in ("a", "b") for _ in range(3)}
        keys |= {SessionKey(f"user:\U0001f408 {tenant}/%", name, tenant) for name in ("a", "b")}
        elsewhere = SessionKey(next(iter(keys)).owner, "a", f"{tenant}x")
        for key in (*keys, elsewhere):
            await Writer(store, key).append()
        for limit in (1, 3, 50):
            assert {key async for key, _ in _walk(store, tenant, limit=limit)} == keys
        everything = {key async for key, _ in _walk(store, None, limit=50)}
        assert everything >= keys | {elsewhere}

    async def test_a_walk_shows_what_expired_and_not_what_was_deleted(self, store: Store) -> None:
        """An expired conversation still takes room, so housekeeping must see it; a deleted one is done with."""
        tenant = fresh_key().owner
        kept, expired, deleted = (Writer(store, SessionKey(fresh_key().owner, tenant=tenant)) for _ in range(3))
        await kept.append(ttl=LONG)
        await expired.append(ttl=SHORT)
        await deleted.append()
        await store.delete(deleted.key)
        await Writer(store, SessionKey(fresh_key().owner, tenant=tenant)).seize(LONG)
        await asyncio.sleep(PAST_SHORT)
        assert {key: shown async for key, shown in _walk(store, tenant)} == {kept.key: False, expired.key: True}

    async def test_a_walk_under_writes_shows_all_that_stays(self, store: Store) -> None:
        """Conversations come and go while a job walks: each that is there throughout is shown all the same."""
        tenant = fresh_key().owner
        writers = [Writer(store, SessionKey(fresh_key().owner, tenant=tenant)) for _ in range(12)]
        for writer in writers:
            await writer.append()
        seen = set()
        async for key, _ in _walk(store, tenant, limit=2):
            seen.add(key)
            await writers[len(seen) % 12].append()
            passing = Writer(store, SessionKey(fresh_key().owner, tenant=tenant))
            await passing.append()
            await store.delete(passing.key)
        assert seen >= {writer.key for writer in writers}

    async def test_a_walk_leaves_out_what_is_reserved(self, store: Store) -> None:
        """What convmem keeps for itself has no owner: a job that deletes idle conversations would delete the signing key."""
        reserved, writer = Writer(store, SessionKey.reserved(fresh_key().session_id)), Writer(store)
        for each in (reserved, writer):
            await each.append()
        for tenant in ("", None):
            owners = {key.owner async for key, _ in _walk(store, tenant)}
            assert writer.key.owner in owners
            assert all(owner.startswith(("user:", "visitor:", "header:")) for owner in owners)

    async def test_a_walk_deletes_behind_itself_and_leaves_nothing_out(self, store: Store) -> None:
        """A job deletes what it is shown, page by page: what stands behind must not move up into a page already turned."""
        tenant = fresh_key().owner
        keys = {SessionKey(fresh_key().owner, name, tenant) for name in ("a", "b", "c") for _ in range(3)}
        for key in keys:
            await Writer(store, key).append()
        moment = datetime.now(UTC) + timedelta(hours=1)
        seen = set()
        async for key, _ in _walk(store, tenant, limit=2, written_before=moment):
            seen.add(key)
            await store.delete(key)
        assert seen == keys
        assert [key async for key, _ in _walk(store, tenant)] == []

    async def test_a_walk_through_the_idle_shows_all_that_stays_idle(self, store: Store) -> None:
        """Some of what a job walks through is written meanwhile, and leaves; each of the rest is shown all the same."""
        writers = [Writer(store) for _ in range(9)]
        for writer in writers:
            await writer.append()
        moment = (await store.list(writers[-1].key.owner)).items[0].updated_at + timedelta(milliseconds=1)
        await asyncio.sleep(0.005)
        idle, seen = {writer.key for writer in writers[::2]}, set()
        busy = iter(writers[1::2])
        async for key, _ in _walk(store, None, limit=2, written_before=moment):
            seen.add(key)
            woken = next(busy, None) if key in idle else None
            if woken is not None:
                await woken.append()
        assert idle <= seen
        assert {key async for key, _ in _walk(store, None, written_before=moment)} & {writer.key for writer in writers} == idle

    async def test_a_walk_tells_the_facts_of_what_it_shows(self, store: Store) -> None:
        """By its revision a job deletes what it looked at, and by its time it decides whether to."""
        writer = Writer(store, SessionKey(fresh_key().owner, "chat", fresh_key().owner))
        await writer.append()
        await writer.append()
        (item,) = (await store.list(None, tenant=writer.key.tenant)).items
        (same,) = (await store.list(writer.key.owner, tenant=writer.key.tenant)).items
        assert item == same
        assert (item.key, item.turns, item.revision) == (writer.key, 2, writer.head.revision)

    async def test_the_cursor_of_one_list_is_none_of_another(self, store: Store) -> None:
        """An owner's page and a walk have different orders: going on from the wrong place would leave something out."""
        owner, tenant = fresh_key().owner, fresh_key().owner
        for name in ("a", "b", "c"):
            await Writer(store, SessionKey(owner, name, tenant)).append()
        of_owner = (await store.list(owner, tenant=tenant, limit=1)).after
        of_walk = (await store.list(None, tenant=tenant, limit=1)).after
        assert of_owner
        assert of_walk
        with pytest.raises(ValueError):  # noqa: PT011 - the message is the store's own
            await store.list(None, tenant=tenant, after=of_owner)
        with pytest.raises(ValueError):  # noqa: PT011 - the message is the store's own
            await store.list(owner, tenant=tenant, after=of_walk)

    async def test_an_owner_of_every_tenant_is_refused(self, store: Store) -> None:
        """One name in two tenants is two people."""
        with pytest.raises(ValueError):  # noqa: PT011 - the message is the store's own
            await store.list(fresh_key().owner, tenant=None)

    async def test_a_walks_cursor_that_is_none_is_refused(self, store: Store) -> None:
        """A job that went on from an invented place would leave out what stands before it."""
        for after in ("", "!", "nonsense", "\ud83e", "9" * 40, *map(_as_cursor, (b"a b\0 c", b"[" * 100_000))):
            with pytest.raises(ValueError):  # noqa: PT011 - the message is the store's own
                await store.list(None, after=after)

    async def test_a_cursor_that_is_none_is_refused(self, store: Store) -> None:
        """A cursor comes from a client: an invented one is an error, not the first page again."""
        owner = fresh_key().owner
        await _fill(store, owner, "a")
        for after in ("", "!", "nonsense", "\ud83e", "9" * 40, *map(_as_cursor, (b"1.0 a\0b", "1.0 \u00e9".encode()))):
            with pytest.raises(ValueError):  # noqa: PT011 - the message is the store's own
                await store.list(owner, after=after)

    async def test_a_cursor_reaches_nobody_elses_conversations(self, store: Store) -> None:
        """A cursor says where in a list, never whose."""
        owner, other = fresh_key().owner, fresh_key().owner
        await _fill(store, owner, "a", "b")
        await _fill(store, other, "secret")
        page = await store.list(owner, limit=1)
        assert [item.session_id for item in (await store.list(other, after=page.after)).items] in ([], ["secret"])
        assert [item.session_id for item in (await store.list(owner, after=page.after)).items] == ["a"]

    async def test_a_walks_cursor_reaches_no_other_tenant(self, store: Store) -> None:
        """A job for one tenant that is handed the place of another's must not export, or delete, what is theirs."""
        tenants = [f"{letter}-{fresh_key().owner}" for letter in "abc"]
        for tenant in tenants:
            for name in ("first", "second"):
                await Writer(store, fresh_key(name, tenant=tenant)).append()
        for tenant in tenants:
            cursor = (await store.list(None, tenant=tenant, limit=1)).after
            assert cursor
            for other in {*tenants} - {tenant}:
                after: str | None = cursor
                while after:
                    try:
                        page = await store.list(None, tenant=other, after=after, limit=1)
                    except ValueError:  # it may as well be refused
                        break
                    assert {item.key.tenant for item in page.items} <= {other}
                    after = page.after
