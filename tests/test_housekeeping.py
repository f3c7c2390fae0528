"""Deleting many conversations, on every store: a person's, a tenant's, and what nobody has written for long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import count, islice

import pytest
import pytest_asyncio

from convmem import (
    ConfigurationError,
    ConversationGone,
    InvalidIdentity,
    Message,
    Receipt,
    SessionKey,
    SQLiteStore,
    StoreUnavailable,
    conversations,
    delete_owner,
    delete_tenant,
    open_conversation,
    prune,
)
from convmem.stores.base import Lease, Store
from convmem.stores.memory import MemoryStore
from convmem.testing import FaultyStore, Writer
from convmem.testing.writer import LONG, PAST_SHORT, SHORT, fresh_key
from tests.stores import conftest as stores

pytestmark = pytest.mark.asyncio
backend = stores.backend

IDLE = timedelta(milliseconds=60)
PAST_IDLE = 0.1


@pytest_asyncio.fixture
async def store(backend: stores.Backend) -> AsyncIterator[Store]:
    """Each store in turn."""
    async with backend.open() as store:
        yield store


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Let a job try again soon, and know no store but the one it is given."""
    monkeypatch.setattr("convmem.walks.PAUSES", (0.001, 0.002))
    monkeypatch.setattr("convmem.housekeeping.PAUSES", (0.001, 0.002))
    monkeypatch.setenv("CONVMEM_STORE", f"sqlite:///{tmp_path}/environment.db")


async def fill(store: Store, *keys: SessionKey, ttl: timedelta | None = None) -> list[Writer]:
    """Write one turn to each of these conversations."""
    writers = [Writer(store, key) for key in keys]
    for writer in writers:
        await writer.append(ttl=ttl)
    return writers


class Moment:
    """A moment between two writes: what was written before it is older than its age, however slow the machine is."""

    @classmethod
    async def now(cls) -> Moment:
        """Let a little time pass on both sides."""
        moment = cls()
        await asyncio.sleep(PAST_IDLE)
        moment.at = datetime.now(UTC)
        await asyncio.sleep(PAST_IDLE)
        return moment

    at: datetime

    @property
    def age(self) -> timedelta:
        return datetime.now(UTC) - self.at


async def living(store: Store, *keys: SessionKey) -> set[SessionKey]:
    """Return those that are there."""
    return {key for key in keys if (await store.load(key)).entries}


class TestDeletingAnOwner:
    """What a person may ask for."""

    async def test_every_conversation_of_the_owner_goes_and_nobody_elses(self, store: Store) -> None:
        """More than a page, and beside it the people whose names begin alike, and the same name in another tenant."""
        owner = fresh_key().owner
        mine = [SessionKey(owner, f"s{n}") for n in range(205)]
        others = [SessionKey(f"{owner}x"), SessionKey(owner[:-1]), SessionKey(owner, tenant="t"), fresh_key()]
        await fill(store, *mine, *others)
        receipt = await delete_owner(owner, store=store)
        assert receipt == Receipt(deleted=205, whole=True)
        assert await living(store, *mine, *others) == set(others)

    async def test_a_second_run_finds_nothing_to_do(self, store: Store) -> None:
        """A job that is repeated is no error, and says that all is done."""
        key = fresh_key()
        await fill(store, key)
        assert (await delete_owner(key.owner, store=store)).deleted == 1
        assert await delete_owner(key.owner, store=store) == Receipt(whole=True)

    async def test_what_has_expired_is_deleted_too(self, store: Store) -> None:
        """No list of the person's shows it, and the text is still on the disk."""
        key, other = fresh_key(), fresh_key()
        expired, kept = [*await fill(store, key, ttl=SHORT), *await fill(store, other, ttl=SHORT)]
        await asyncio.sleep(PAST_SHORT)
        assert (await conversations(key.owner, store=store)).items == ()
        assert await delete_owner(key.owner, store=store) == Receipt(deleted=1, whole=True)
        assert (await store.load(key)).ended == {expired.head.epoch}
        assert (await store.load(other)).head.same(kept.head)

    async def test_what_is_written_meanwhile_is_deleted_too(self, store: Store) -> None:
        """A tab is still open: what it begins while the job runs must not stay behind."""
        owner = fresh_key().owner
        late = [SessionKey(owner, name) for name in ("late", "later")]
        await fill(store, *(SessionKey(owner, f"s{n}") for n in range(3)))
        receipt = await delete_owner(owner, store=WrittenMeanwhile(store, iter(late)))
        assert await living(store, *late) == set()
        assert (receipt.deleted, receipt.whole) == (5, True)

    async def test_who_never_stops_writing_is_told_of(self, store: Store) -> None:
        """The job ends all the same, and does not say that nothing is left."""
        key = fresh_key()
        await fill(store, key)
        receipt = await delete_owner(key.owner, store=WrittenMeanwhile(store, (SessionKey(key.owner, f"s{n}") for n in count())))
        assert (receipt.whole, receipt.failed) == (False, ())

    async def test_a_turn_under_way_stores_nothing_more(self, store: Store) -> None:
        """Its answer would bring back a conversation of somebody who asked to be forgotten."""
        key = fresh_key()
        with pytest.raises(ConversationGone):  # noqa: PT012 - raised where the block ends
            async with open_conversation(key, store=store) as conversation:
                conversation.append(Message.user("my secret"))
                await conversation.save()
                await delete_owner(key.owner, store=store)
                conversation.append(Message.assistant("which was"))
        assert await living(store, key) == set()

    async def test_what_cannot_be_deleted_is_named_and_another_run_deletes_it(self) -> None:
        """A receipt that said "all" would be a false one."""
        faulty = FaultyStore(MemoryStore())
        key = fresh_key()
        await fill(faulty, key)
        faulty.fail("delete")
        assert await delete_owner(key.owner, store=faulty) == Receipt(failed=(key,), whole=False)
        faulty.mend()
        assert await delete_owner(key.owner, store=faulty) == Receipt(deleted=1, whole=True)

    async def test_a_store_that_does_not_answer_for_a_moment_is_asked_again(self) -> None:
        """A restart of the store is no reason to start a job of hours anew; a lost answer is none to count twice."""
        faulty = FaultyStore(MemoryStore())
        keys = [fresh_key("a"), fresh_key("b")]
        keys[1] = SessionKey(keys[0].owner, "b")
        await fill(faulty, *keys)
        faulty.fail("list", times=2)
        faulty.fail("delete", times=1)
        faulty.lose_answer("delete")
        assert await delete_owner(keys[0].owner, store=faulty) == Receipt(deleted=2, whole=True)

    async def test_a_store_that_is_down_says_so(self) -> None:
        """Zero deleted, because nothing was found, would read as done."""
        faulty = FaultyStore(MemoryStore())
        faulty.fail("list")
        with pytest.raises(StoreUnavailable):
            await delete_owner("user:1", store=faulty)

    async def test_a_store_that_refuses_every_delete_is_not_asked_a_million_times(self) -> None:
        """It can be read and not written: each try takes its time, so the job ends with the error."""
        faulty = FaultyStore(MemoryStore())
        owner = fresh_key().owner
        await fill(faulty, *(SessionKey(owner, f"s{n}") for n in range(450)))
        faulty.fail("delete")
        with pytest.raises(StoreUnavailable):
            await delete_owner(owner, store=faulty)
        assert faulty.calls.count("delete") <= 200 * 3

    async def test_a_few_at_a_time(self) -> None:
        """A job must not take every connection of the pool the app lives on."""
        busy = Slow(MemoryStore())
        owner = fresh_key().owner
        await fill(busy, *(SessionKey(owner, f"s{n}") for n in range(40)))
        await delete_owner(owner, store=busy)
        assert 1 < busy.most <= 8

    @pytest.mark.parametrize("owner", ["42", "", "convmem:key", "user:"])
    async def test_what_is_no_owner_is_refused(self, owner: str) -> None:
        """Nothing is deleted by mistake, least of all what convmem keeps for itself."""
        with pytest.raises(InvalidIdentity):
            await delete_owner(owner, store=MemoryStore())

    async def test_outside_a_request_the_store_is_the_environments(self, tmp_path) -> None:
        """A script needs one line, and leaves no file open."""
        key = SessionKey.for_user("1")
        async with SQLiteStore(tmp_path / "environment.db") as store:
            await fill(store, key)
        assert (await delete_owner("user:1")).deleted == 1
        async with SQLiteStore(tmp_path / "environment.db") as store:
            assert await living(store, key) == set()


class WrittenMeanwhile(FaultyStore):
    """A store in which, after each delete, somebody writes another conversation."""

    def __init__(self, store: Store, keys: Iterator[SessionKey]) -> None:
        super().__init__(store)
        self._keys = keys

    async def delete(self, key, **asked) -> bool:
        deleted = await super().delete(key, **asked)
        await fill(self.store, *islice(self._keys, 1))
        return deleted


class Slow(FaultyStore):
    """A store whose deletes take a moment, and that counts how many run at once."""

    now = most = 0

    async def delete(self, key, **asked) -> bool:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.005)
        self.now -= 1
        return await super().delete(key, **asked)


class TestDeletingATenant:
    """What a customer may ask for."""

    async def test_every_owner_of_the_tenant_goes_and_no_other_tenants(self, store: Store) -> None:
        """Expired ones and visitors' too; a tenant whose name begins alike stays."""
        tenant = fresh_key().owner
        mine = [SessionKey(f"{kind}:{n}", name, tenant) for kind in ("user", "visitor", "header") for n in range(3) for name in ("a", "b")]
        others = [SessionKey("user:1", tenant=f"{tenant}x"), SessionKey("user:1", tenant=tenant[:-1]), fresh_key()]
        await fill(store, *mine, *others)
        (expired,) = await fill(store, SessionKey("user:old", tenant=tenant), ttl=SHORT)
        await asyncio.sleep(PAST_SHORT)
        assert await delete_tenant(tenant, store=store) == Receipt(deleted=len(mine) + 1, whole=True)
        assert await living(store, *mine, *others) == set(others)
        assert (await store.load(expired.key)).ended == {expired.head.epoch}
        assert await delete_tenant(tenant, store=store) == Receipt(whole=True)

    async def test_what_convmem_keeps_for_itself_stays(self) -> None:
        """In the tenant without a name stands the signing key: without it every visitor is a stranger."""
        store, key = MemoryStore(), SessionKey.reserved("signing-key")
        await fill(store, key, fresh_key())
        assert (await delete_tenant("", store=store)).deleted == 1
        assert (await prune(timedelta(microseconds=1), store=store)).deleted == 0
        assert await living(store, key) == {key}


class TestPruning:
    """What a cron job does."""

    async def test_the_idle_go_and_the_busy_stay(self, store: Store) -> None:
        """In every tenant, and by their last turn, not their first."""
        idle = [SessionKey(fresh_key().owner, "idle", tenant) for tenant in ("", "t")]
        await fill(store, *idle)
        (woken,) = await fill(store, fresh_key())
        between = await Moment.now()
        await woken.append()
        (new,) = await fill(store, fresh_key())
        receipt = await prune(between.age, store=store)
        assert await living(store, *idle, woken.key, new.key) == {woken.key, new.key}
        assert receipt.whole
        assert receipt.deleted >= len(idle)
        assert (await store.load(idle[0])).deleted_at is not None

    async def test_the_expired_go_however_young(self, store: Store) -> None:
        """They are hidden from everybody and take their room all the same."""
        (expired,) = await fill(store, fresh_key(), ttl=SHORT)
        (kept,) = await fill(store, fresh_key(), ttl=LONG)
        await asyncio.sleep(PAST_SHORT)
        receipt = await prune(timedelta(days=1), store=store)
        assert receipt.whole
        assert receipt.deleted >= 1
        assert (await store.load(expired.key)).ended == {expired.head.epoch}
        assert await living(store, kept.key) == {kept.key}

    async def test_without_a_retention_only_the_expired_go(self, store: Store) -> None:
        """Nobody has said that anything else may be deleted."""
        (expired,) = await fill(store, fresh_key(), ttl=SHORT)
        (kept,) = await fill(store, fresh_key())
        await asyncio.sleep(PAST_SHORT)
        await prune(store=store)
        assert await living(store, kept.key) == {kept.key}
        assert (await store.load(expired.key)).head.epoch == ""

    async def test_the_retention_is_the_settings(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """The cron job's line needs no number."""
        (idle,) = await fill(store, fresh_key())
        await asyncio.sleep(PAST_IDLE)
        monkeypatch.setenv("CONVMEM_RETENTION", "1h")
        await prune(store=store)
        assert await living(store, idle.key) == {idle.key}
        monkeypatch.setenv("CONVMEM_RETENTION", "60ms")
        await prune(store=store)
        assert await living(store, idle.key) == set()

    async def test_a_conversation_in_use_is_spared(self, store: Store) -> None:
        """Idle for long, and just now its owner is back: the question is at the model, and must not be lost."""
        key = fresh_key()
        await fill(store, key)
        await asyncio.sleep(PAST_IDLE)
        async with open_conversation(key, store=store) as conversation:
            conversation.append(Message.user("I am back"))
            receipt = await prune(IDLE, store=store)
        assert receipt.spared >= 1
        assert (await store.load(key)).head.n == 2

    async def test_a_conversation_written_after_the_look_is_spared(self) -> None:
        """Between the list and the delete somebody wrote: its head is another one."""
        busy = Interrupted(MemoryStore())
        (idle,) = await fill(busy, fresh_key())
        await asyncio.sleep(PAST_IDLE)
        busy.meanwhile = idle.append
        receipt = await prune(IDLE, store=busy)
        assert (receipt.deleted, receipt.spared, receipt.whole) == (0, 1, True)
        log = await busy.load(idle.key)
        assert (log.head.n, log.holder.token, log.deleted_at) == (2, "", None)

    async def test_a_turn_that_begins_meanwhile_waits_and_is_stored(self) -> None:
        """The lease is what keeps it out of the life that is being ended: without it its answer would be refused as gone."""
        busy = Interrupted(MemoryStore(), verb="delete")
        key = fresh_key()
        await fill(busy, key)
        await asyncio.sleep(PAST_IDLE)

        async def turn() -> None:
            async with open_conversation(key, store=busy) as conversation:
                conversation.append(Message.user("I am back"))

        turns: list[asyncio.Task[None]] = []

        async def begin() -> None:
            turns.append(asyncio.create_task(turn()))
            await asyncio.sleep(0.03)

        busy.meanwhile = begin
        assert (await prune(IDLE, store=busy)).deleted == 1
        await turns[0]
        log = await busy.load(key)
        assert (log.head.n, log.head.turns) == (1, 1)

    async def test_two_jobs_at_once_delete_each_once(self, store: Store) -> None:
        """Two replicas of a cron job start at the same minute."""
        keys = [fresh_key() for _ in range(30)]
        await fill(store, *keys)
        await asyncio.sleep(PAST_IDLE)
        receipts = await asyncio.gather(*(prune(IDLE, store=store) for _ in range(2)))
        assert await living(store, *keys) == set()
        assert sum(receipt.deleted for receipt in receipts) >= len(keys)
        assert all(not receipt.failed for receipt in receipts)
        for key in keys:
            log = await store.load(key)
            assert (len(log.ended), log.holder.token) == (1, "")

    async def test_a_lost_answer_is_not_counted_as_spared(self) -> None:
        """The delete was done; its repetition finds nothing at that head."""
        faulty = FaultyStore(MemoryStore())
        await fill(faulty, fresh_key())
        await asyncio.sleep(PAST_IDLE)
        faulty.lose_answer("delete")
        receipt = await prune(IDLE, store=faulty)
        assert (receipt.deleted, receipt.spared, receipt.whole) == (1, 0, True)

    async def test_what_could_not_be_deleted_is_free_again(self) -> None:
        """Its owner comes back while the store refuses deletes: the job must not have left its lease on it."""
        faulty = FaultyStore(MemoryStore())
        (writer,) = await fill(faulty, fresh_key())
        await asyncio.sleep(PAST_IDLE)
        faulty.fail("delete")
        receipt = await prune(IDLE, store=faulty)
        assert (receipt.deleted, receipt.failed, receipt.whole) == (0, (writer.key,), False)
        assert (await faulty.load(writer.key)).holder.token == ""

    async def test_a_dry_run_counts_what_a_run_would_delete_and_deletes_nothing(self, store: Store) -> None:
        """Who sets a retention for the first time wants to know."""
        in_use = (await prune(IDLE, store=store)).spared  # of other tests, where they share a server
        idle = [writer.key for writer in await fill(store, fresh_key(), fresh_key())]
        (expired,) = await fill(store, fresh_key(), ttl=SHORT)
        between = await Moment.now()
        (young,) = await fill(store, fresh_key())
        would = await prune(between.age, store=store, dry_run=True)
        assert await living(store, *idle, young.key) == {*idle, young.key}
        assert (await store.load(expired.key)).expired
        done = await prune(between.age, store=store)
        assert (would.deleted, done.deleted) == (3 + in_use, 3)

    async def test_a_lease_of_a_worker_that_died_does_not_spare_for_ever(self, store: Store) -> None:
        """A lease that ran out is nobody's."""
        (writer,) = await fill(store, fresh_key())
        await store.load(writer.key, lease=Lease("dead", SHORT))
        await asyncio.sleep(max(PAST_IDLE, PAST_SHORT))
        await prune(IDLE, store=store)
        assert await living(store, writer.key) == set()

    async def test_what_is_dead_is_swept(self) -> None:
        """Leases of workers that died before a first turn, and old tombstones: nobody else removes them where nothing is deleted."""
        store = MemoryStore()
        for _ in range(3):
            await store.load(fresh_key(), lease=Lease("dead", SHORT))
        await asyncio.sleep(PAST_SHORT)
        assert (await prune(store=store, dry_run=True)).swept == 0
        assert await prune(store=store) == Receipt(swept=3, whole=True)

    @pytest.mark.parametrize("age", [timedelta(), timedelta(days=-1)])
    async def test_an_age_that_is_none_is_refused(self, age: timedelta) -> None:
        """It would delete everything."""
        with pytest.raises(ValueError, match="above 0"):
            await prune(age, store=MemoryStore())

    async def test_a_retention_without_a_unit_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ninety seconds, where ninety days were meant."""
        monkeypatch.setenv("CONVMEM_RETENTION", "90")
        with pytest.raises(ConfigurationError, match="CONVMEM_RETENTION is '90'; say the unit, such as 90d for days"):
            await prune(store=MemoryStore())


class Interrupted(FaultyStore):
    """A store in which something happens just before the first call of a verb."""

    def __init__(self, store: Store, verb: str = "load") -> None:
        super().__init__(store)
        self.verb = verb
        self.meanwhile: Callable[[], Awaitable[object]] | None = None

    async def load(self, key, **asked):
        await self._let_happen("load")
        return await super().load(key, **asked)

    async def delete(self, key, **asked):
        await self._let_happen("delete")
        return await super().delete(key, **asked)

    async def _let_happen(self, verb: str) -> None:
        if verb == self.verb and self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
