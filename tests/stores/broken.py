"""For every clause of the contract a store that breaks it: a right store with one thing wrong. `BROKEN` names them by clause."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from convmem.exceptions import StoreUnavailable
from convmem.identifiers import new_token
from convmem.keys import SessionKey
from convmem.stores.base import Appended, Entry, Head, Health, Holder, Kind, Lease, Listed, Log, Lookup, Page, Store, path_of_tenant
from convmem.stores.memory import _Conversation

from .bent import (
    CONFLICT,
    DUPLICATE,
    FENCED,
    GAP,
    GONE,
    STORED,
    Bent,
    Facts,
    Planted,
    Reading,
    addressing,
    deciding,
    deleting,
    listing,
    put,
    reading,
    renewing,
    stored_then,
    storing,
    unseen,
)

# forking


class KnowsIdsEverywhere(Bent):
    """An index on the ids of entries that leaves out whose they are."""

    async def append(self, key, after, entry, **asked):
        if any(stored.entry.id == entry.id for row in self._conversations.values() for stored in row.log):
            return Appended(DUPLICATE, entry.head_at(after.n + 1))
        return await super().append(key, after, entry, **asked)


class SharesEntries(Bent):
    """An entry that stands in two conversations is stored once, and deleted once."""

    async def delete(self, key, **asked):
        ids = {stored.entry.id for stored in self.row(key).log}
        for row in self._conversations.values():
            row.log = [replace(one, entry=replace(one.entry, body=b"[]")) if one.entry.id in ids else one for one in row.log]
        return await super().delete(key, **asked)


class StopsShort(Bent):
    """A page that lacks its last entry."""

    async def load(self, key, *, before=None, **asked):
        return await super().load(key, before=before and before - 1, **asked)


class CutsPages(Bent):
    """A limit of its own on what a load returns."""

    async def load(self, key, *, turns=None, **asked):
        return await super().load(key, turns=None if turns is None else min(turns, 10), **asked)


# addressing


def joined(key: SessionKey) -> SessionKey:
    text = f"{key.tenant}:{key.owner}:{key.session_id}".replace("/", ":").replace("_", "-")
    return SessionKey.for_user(hashlib.sha256(text.replace(":t", "").replace("-", "").encode("utf-8", "surrogatepass")).hexdigest())


def normalized(key: SessionKey) -> SessionKey:
    return SessionKey(unicodedata.normalize("NFC", key.owner), key.session_id, key.tenant)


class DeletesTheOwner(Bent):
    async def delete(self, key, **asked):
        for tenant, owner, session in list(self._conversations):
            if owner == key.path[1]:
                await super().delete(SessionKey(key.owner, session, tenant))
        return True


# appending


class Racing(Bent):
    """Decides, lets others in, and stores all the same."""

    async def pause(self, row):
        await asyncio.sleep(0)


class Overwriting(Racing):
    """The last write wins, as where a whole history is read, changed and written back."""

    def __init__(self):
        super().__init__()
        self.after: dict[str, int] = {}

    def decide(self, facts):
        self.after[facts.entry.id] = facts.after.n
        return super().decide(facts)

    def _store(self, row, n, entry, now, ttl):
        after = self.after[entry.id]
        del row.log[after:]
        row.turns = {}
        super()._store(row, after + 1, entry, now, ttl)


class RacingAtFirst(Bent):
    async def pause(self, row):
        if not row.log:
            await asyncio.sleep(0)


class Torn(Bent):
    """Moves the head first and brings the entry later."""

    def decide(self, facts):
        outcome = super().decide(facts)
        if outcome is STORED:
            facts.row.head = facts.entry.head_at(facts.after.n + 1)
        return outcome

    async def pause(self, row):
        for _ in range(4):
            await asyncio.sleep(0)


class RefusesAndCounts(Bent):
    def refused(self, row, entry):
        row.head = replace(row.head, turns=row.head.turns + 1)


class RefusesBlindly(Bent):
    def found(self, row, after):
        return after


class AnswersWithTheHead(Bent):
    def answer(self, row, after, entry):
        return row.head


# turns


class SupersedesAtLoad(Bent):
    async def load(self, key, **asked):
        if asked.get("lease") and asked.get("turn"):
            self.row(key).unseen.update(self.row(key).turns.get(asked["turn"], []))
        return await super().load(key, **asked)


class RemembersTurnsForEver(Bent):
    def __init__(self):
        super().__init__()
        self.all_turns: set[str] = set()

    async def append(self, key, after, entry, **asked):
        self.all_turns.add(entry.turn)
        return await super().append(key, after, entry, **asked)

    async def load(self, key, **asked):
        log = await super().load(key, **asked)
        if log.turn and log.turn.state == "absent" and asked["turn"] in self.all_turns:
            return replace(log, turn=Lookup("complete", 1))
        return log


class LeasesForAReplay(Bent):
    async def load(self, key, *, turn=None, **asked):
        found = (await super().load(key, turn=turn)).turn
        return replace(await super().load(key, **asked), turn=found)


class LooksUpEarlier(Bent):
    loads = 0

    async def load(self, key, *, turn=None, **asked):
        found = (await super().load(key, turn=turn)).turn
        self.loads += 1
        await asyncio.sleep(self.loads % 3 * 0.002)
        return replace(await super().load(key, **asked), turn=found)


def only_newest(log: Log, asked: Reading) -> Log:
    return replace(log, turn=Lookup()) if log.turn and log.turn.position < log.head.n else log


# leases


class Stealing(Bent):
    async def load(self, key, *, lease=None, **asked):
        if lease:
            self.row(key).token = ""
            self.row(key).until = 0.0
        return await super().load(key, lease=lease, **asked)


class TakesUnasked(Bent):
    async def load(self, key, *, lease=None, **asked):
        return await super().load(key, lease=lease or Lease(new_token(), timedelta(minutes=1)), **asked)


class RacingForLeases(Bent):
    async def load(self, key, *, lease=None, **asked):
        free = not self.live(key)
        await asyncio.sleep(0)
        if lease and free:
            self.row(key).until = 0.0
        return await super().load(key, lease=lease, **asked)


class InItsOwnWay(Bent):
    async def load(self, key, *, lease=None, **asked):
        own = lease is not None and self.live(key) == lease.token
        log = await super().load(key, lease=lease, **asked)
        return replace(log, holder=Holder("another")) if own else log


class NeverRunsOut(Bent):
    async def load(self, key, **asked):
        if self.row(key).token:
            self.row(key).until = time.time() + 99
        return await super().load(key, **asked)


def seize(store: Bent, key: SessionKey, lease: Lease) -> bool:
    put(store.row(key), token=lease.token, until=time.time() + lease.term.total_seconds())
    return True


class RenewsFromNow(Bent):
    async def renew(self, key, lease, head):
        kept = await super().renew(key, lease, head)
        self.row(key).taken = time.time()
        return kept


class ReleasesNothing(Bent):
    async def release(self, key, token):
        pass


class ReleasesAnyone(Bent):
    async def release(self, key, token):
        put(self.row(key), token="", until=0.0)


class KeepsTheLease(Bent):
    def ends_lease(self, outcome, *, release):
        return False


class EndsTheLease(Bent):
    def ends_lease(self, outcome, *, release):
        return True


class KeepsTheLeaseOfADuplicate(Bent):
    def ends_lease(self, outcome, *, release):
        return release and outcome is STORED


class EndsAnyonesLease(Bent):
    def lease_to_end(self, row, entry):
        return row.token


class SeesAnOldHead(Bent):
    async def load(self, key, *, lease=None, **asked):
        before = await super().load(key, **asked)
        await asyncio.sleep(0)
        return replace(await super().load(key, lease=lease, **asked), head=before.head)


class LeasesNothingExpired(Bent):
    async def load(self, key, **asked):
        log = await super().load(key, **asked)
        if log.expired and asked.get("lease"):
            await self.release(key, asked["lease"].token)
            return replace(log, holder=Holder())
        return log


# deleting


class AlwaysDeletes(Bent):
    async def delete(self, key, **asked):
        await super().delete(key, **asked)
        return True


class DeletesOnlySomething(Bent):
    async def delete(self, key, **asked):
        return bool(self.row(key).head.epoch) and await super().delete(key, **asked)


class DeletesWhateverItFinds(Bent):
    async def delete(self, key, *, at=None):
        return await super().delete(key)


class DeletesAtThePosition(Bent):
    async def delete(self, key, *, at=None):
        return await super().delete(key, at=self.row(key).head if at and self.row(key).head.n == at.n else at)


class DeletesOnlyWhatIsSeen(Bent):
    async def delete(self, key, *, at=None):
        row = self.row(key)
        return not (at and row.expired(time.time())) and await super().delete(key, at=at)


class DeletesWithoutTheEntry(Bent):
    """It compares how long the log is, and not what it ends with."""

    async def delete(self, key, *, at=None):
        head = self.row(key).head
        return await super().delete(key, at=head if at and (at.epoch, at.n) == (head.epoch, head.n) else at)


class ReleasesWhatItSpares(Bent):
    async def delete(self, key, *, at=None):
        self.row(key).until = 0.0
        return await super().delete(key, at=at)


class DeletesWhereNothingWas(Bent):
    async def delete(self, key, *, at=None):
        return await super().delete(key, at=at if at and at.epoch else None)


class DeletesWithoutATombstone(Bent):
    async def delete(self, key, *, at=None):
        existed = await super().delete(key, at=at)
        if at and existed:
            put(self.row(key), mark="", ended={})
        return existed


class LooksThenDeletes(Bent):
    async def delete(self, key, *, at=None):
        there = bool(self.row(key).head.epoch) and (at is None or self.row(key).head.same(at))
        await asyncio.sleep(0)
        return await super().delete(key) or there


class SweepsTombstones(Bent):
    async def sweep(self):
        dead = [path for path, row in self._conversations.items() if not row.head.epoch and not row.live_token(time.time())]
        for path in dead:
            del self._conversations[path]
        return len(dead)


class DeletesInTwoSteps(Bent):
    async def delete(self, key, **asked):
        row = self.row(key)
        epoch = row.head.epoch
        put(row, head=Head(), log=[], turns={}, unseen=set())
        await asyncio.sleep(0.005)
        put(row, mark=new_token(), ended={epoch: time.time()}, deleted=time.time())
        return True


# listing


class ListsByWholeSeconds(Bent):
    """Its cursor is a time, and nothing but a time."""

    async def list(self, owner, *, tenant="", after=None, limit=50, **asked):
        items = [
            item for item in (await super().list(owner, tenant=tenant, limit=999, **asked)).items if not after or _second(item) < int(after)
        ]
        return Page(tuple(items[:limit]), str(_second(items[limit - 1])) if len(items) > limit else None)


def _second(item: Listed) -> int:
    return int(item.updated_at.timestamp())


class ListsByOffset(Bent):
    async def list(self, owner, *, tenant="", after=None, limit=50, **asked):
        items = (await super().list(owner, tenant=tenant, limit=999, **asked)).items
        start = int(after or 0)
        return Page(items[start : start + limit], str(start + limit) if len(items) > start + limit else None)


class ListsByPrefix(Bent):
    async def list(self, owner, **asked):
        prefix = SessionKey(owner).path[1]
        rows = [(session, row) for (_, of, session), row in self._conversations.items() if of.startswith(prefix) and row.head.epoch]
        return Page(
            tuple(Listed(SessionKey(owner, session), row.head.turns, _now(row), _now(row), row.head.revision) for session, row in rows)
        )


def _now(row: _Conversation):
    return row.log[0].stored_at


class ListsTombstones(Bent):
    async def list(self, owner, **asked):
        page = await super().list(owner, **asked)
        dead = [session for (_, of, session), row in self._conversations.items() if of == SessionKey(owner).path[1] and row.mark]
        return replace(page, items=(*page.items, *(replace(page.items[0], key=SessionKey(owner, session)) for session in dead)))


class ListsExpired(Bent):
    async def list(self, owner, **asked):
        for row in self._conversations.values():
            row.expires = None
        return await super().list(owner, **asked)


class ListsFromAnyCursor(Bent):
    async def list(self, owner, *, after=None, **asked):
        try:
            return await super().list(owner, after=after, **asked)
        except ValueError:
            return await super().list(owner, **asked)


class TrustsTheCursor(Bent):
    async def list(self, owner, *, after=None, **asked):
        if after:
            owner, after = after.split(" ")
        page = await super().list(owner, after=after, **asked)
        return replace(page, after=page.after and f"{owner} {page.after}")


class SkipsThePast(Bent):
    """It takes `written_before` for a limit of pages alone."""

    async def list(self, owner, *, written_before=None, **asked):
        return await super().list(owner, **asked)


class WalksOneTenant(Bent):
    async def list(self, owner, *, tenant="", **asked):
        return await super().list(owner, tenant=tenant if owner else None, **asked)


class WalksTheLiving(Bent):
    async def list(self, owner, **asked):
        page = await super().list(owner, **asked)
        return replace(page, items=tuple(item for item in page.items if not item.expired))


class WalksByOffset(ListsByOffset):
    """It counts what it showed: when one in front goes, one behind is skipped."""

    async def list(self, owner, *, tenant="", after=None, limit=50, **asked):
        if owner is not None:
            return await super().list(owner, tenant=tenant, after=after, limit=limit, **asked)
        every = [SessionKey.of_path(path) for path, row in self._conversations.items() if path[0] == path_of_tenant(tenant)]
        every.sort(key=lambda key: self.row(key).updated, reverse=True)
        items = [Listed(key, 1, _now(self.row(key)), _now(self.row(key)), "") for key in every if self.row(key).head.epoch]
        start = int(after or 0)
        return Page(tuple(items[start : start + limit]), str(start + limit) if len(items) > start + limit else None)


class CountsWhatItShowed(WalksByOffset):
    """As above, with deletes instead of writes."""

    async def list(self, owner, *, written_before=None, **asked):
        return await super().list(owner, **asked)


class WalksTheIdleByOffset(Bent):
    """Its cursor counts, so what is written meanwhile and leaves makes it skip what stands behind."""

    async def list(self, owner, *, after=None, limit=50, written_before=None, **asked):
        if owner is not None or written_before is None:
            return await super().list(owner, after=after, limit=limit, written_before=written_before, **asked)
        page = await super().list(None, limit=99_999, written_before=written_before, **asked)
        items = sorted(page.items, key=lambda item: item.updated_at)[int(after or 0) :][:limit]
        return Page(tuple(items), str(int(after or 0) + limit) if len(items) == limit else None)


class WalksBlindly(Bent):
    async def list(self, owner, **asked):
        page = await super().list(owner, **asked)
        return page if owner else replace(page, items=tuple(replace(item, revision="-.0.-") for item in page.items))


class TakesAnyOfItsCursors(Bent):
    async def list(self, owner, *, after=None, **asked):
        try:
            return await super().list(owner, after=after, **asked)
        except ValueError:
            if not after or len(after) < 20:
                raise
            return await super().list(owner, **asked)


class WalksWhatIsReserved(Bent):
    async def list(self, owner, **asked):
        page = await super().list(owner, **asked)
        kept = [path for path, row in self._conversations.items() if path[1].startswith("convmem:") and row.head.epoch]
        return replace(page, items=page.items + tuple(replace(page.items[0], key=SessionKey.reserved("x")) for _ in kept if page.items))


class FollowsTheCursor(Bent):
    """It takes the cursor's word for whose turn it is."""

    async def list(self, owner, *, tenant="", after=None, **asked):
        anywhere = owner is None and after is not None
        return await super().list(owner, tenant=None if anywhere else tenant, after=after, **asked)


class ListsAnOwnerOfAnyTenant(Bent):
    async def list(self, owner, *, tenant="", **asked):
        return await super().list(owner, tenant=tenant if owner is None else tenant or "", **asked)


# reading


class IncludesThePosition(Bent):
    async def load(self, key, *, before=None, **asked):
        return await super().load(key, before=before and before + 1, **asked)


class ReadsAPageAsItWasThen(Bent):
    async def load(self, key, *, before=None, **asked):
        row = self.row(key)
        unseen = row.unseen
        if before is not None:
            later = {n for attempts in row.turns.values() if attempts[-1] >= before for n in attempts}
            row.unseen = unseen - later
        log = await super().load(key, before=before, **asked)
        row.unseen = unseen
        return log


class PinsWhatIsAfter(Bent):
    async def load(self, key, *, before=None, **asked):
        log = await super().load(key, before=before, **asked)
        shown = {stored.n for stored in log.entries}
        return replace(log, pinned=tuple(self.row(key).log[n - 1] for n in log.head.pinned if n not in shown))


class WaitsForTheLease(Bent):
    async def load(self, key, *, lease=None, **asked):
        if lease is None and self.live(key):
            await asyncio.sleep(99)
        return await super().load(key, lease=lease, **asked)


class ReadsInTwoSteps(Bent):
    async def load(self, key, **asked):
        before = await super().load(key, **asked)
        await asyncio.sleep(0)
        return replace(await super().load(key, **asked), entries=before.entries)


def decodable(log: Log, asked: Reading) -> Log:
    def fine(body: bytes) -> bool:
        try:
            json.loads(body)
        except ValueError:
            return False
        return True

    return replace(log, entries=tuple(stored for stored in log.entries if fine(stored.entry.body)))


def filtered_late(log: Log, asked: Reading) -> Log:
    if asked.turns is None:
        return log
    newest = {stored.n for stored in asked.row.log[-asked.turns :]}
    return replace(log, entries=tuple(stored for stored in log.entries if stored.n in newest))


class ReadsThroughResets(Bent):
    def _store(self, row, n, entry, now, ttl):
        super()._store(row, n, entry, now, ttl)
        row.head = replace(row.head, start=0)


class IgnoresMessagesBesideTurns(Bent):
    async def load(self, key, *, turns=None, messages=None, **asked):
        return await super().load(key, turns=turns, messages=messages if turns is None else None, **asked)


# serving


class NamesAnother(Bent):
    async def check(self) -> Health:
        return replace(await super().check(), store="another")


class ChecksByWiping(Bent):
    async def check(self) -> Health:
        self._conversations.clear()
        return await super().check()


class EmptyWhenDown(Bent):
    """Down, and says so, except when asked for a history."""

    name = "down"
    reach = "network"

    async def load(self, key, **asked):
        return Log()

    async def append(self, key, after, entry, **asked):
        raise StoreUnavailable(self.name, "append")


class ClosesOnce(Bent):
    closed = False

    async def aclose(self):
        if self.closed:
            raise Planted
        self.closed = True


class ForgetsWhenClosed(Bent):
    async def aclose(self):
        self._conversations.clear()


class BoundToItsLoop(Bent):
    loop: asyncio.AbstractEventLoop | None = None

    async def load(self, key, **asked):
        self.loop = self.loop or asyncio.get_running_loop()
        if self.loop is not asyncio.get_running_loop():
            raise Planted
        return await super().load(key, **asked)

    async def append(self, key, after, entry, **asked):
        self.loop = self.loop or asyncio.get_running_loop()
        return await super().append(key, after, entry, **asked)


def always(facts: Facts) -> bool:
    return True


def moved_on(facts: Facts) -> bool:
    return facts.row.head.n > facts.after.n


def superseded(row: _Conversation, entry: Entry) -> set[int]:
    return {n for n in row.turns[entry.turn] if row.log[n - 1].entry.token != entry.token}


class Apart(Bent):
    """Every object has a storage of its own."""


BROKEN: dict[str, type[Bent]] = {
    # addressing
    "test_owners_and_tenants_of_any_text_are_apart": addressing(normalized),
    "test_parts_that_join_to_one_text_are_apart": addressing(joined),
    "test_session_ids_differ_by_case": addressing(lambda key: replace(key, session_id=key.session_id.lower())),
    "test_a_lease_holds_one_conversation": addressing(lambda key: replace(key, session_id="default")),
    "test_a_delete_ends_one_conversation": DeletesTheOwner,
    # appending
    "test_a_second_store_object_sees_what_the_first_stored": Apart,
    "test_a_refused_append_changes_nothing": RefusesAndCounts,
    "test_a_refused_append_answers_with_the_head_it_found": RefusesBlindly,
    "test_an_entry_is_stored_whole_or_not_at_all": Torn,
    "test_of_many_writers_at_one_head_one_wins": Racing,
    "test_of_many_first_appends_one_wins": RacingAtFirst,
    "test_of_two_first_appends_under_one_mark_one_wins": deciding(STORED, lambda f: bool(f.row.mark and not f.after.n), CONFLICT),
    "test_a_repeated_entry_is_stored_once": deciding(CONFLICT, always, DUPLICATE),
    "test_an_entry_repeated_at_once_is_stored_once": Racing,
    "test_a_repeated_entry_is_found_behind_others": AnswersWithTheHead,
    "test_a_repeated_first_append_is_a_duplicate": deciding(CONFLICT, lambda f: f.after.n == 0, DUPLICATE),
    "test_an_unknown_epoch_is_a_gap": deciding(STORED, lambda f: not f.row.head.epoch, GAP),
    "test_a_log_that_ends_too_early_is_a_gap": deciding(STORED, lambda f: f.row.head.n < f.after.n, GAP),
    "test_a_head_beyond_every_log_is_a_gap": deciding(STORED, lambda f: f.after.n > 2**53, GAP),
    "test_another_entry_at_the_position_is_a_gap": deciding(STORED, lambda f: f.row.head.n == f.after.n, GAP),
    "test_a_live_lease_of_another_fences": deciding(STORED, always, FENCED),
    "test_a_lease_that_ran_out_untaken_does_not_stand_in_the_way": deciding(
        FENCED, lambda f: f.row.token not in {"", f.entry.token}, STORED
    ),
    "test_a_lease_that_was_taken_over_fences_the_late_writer": deciding(STORED, always, FENCED),
    "test_a_log_that_went_on_is_a_conflict": deciding(STORED, always, CONFLICT),
    "test_sixteen_writers_lose_nothing": Overwriting,
    # the order of outcomes
    "test_gone_is_told_before_gap": deciding(GAP, always, GONE),
    "test_gone_is_told_before_duplicate": deciding(DUPLICATE, lambda f: f.standing, GONE),
    "test_gone_is_told_before_fenced": deciding(FENCED, lambda f: f.fencing, GONE),
    "test_an_unknown_epoch_is_told_before_duplicate": deciding(DUPLICATE, lambda f: f.standing, GAP),
    "test_duplicate_is_told_before_another_entry_at_the_position": deciding(
        GAP, lambda f: f.after.n > 0 and f.row.id_at(f.after.n) != f.after.id, DUPLICATE
    ),
    "test_duplicate_is_told_before_fenced": deciding(FENCED, lambda f: f.fencing, DUPLICATE),
    "test_gap_is_told_before_fenced": deciding(FENCED, lambda f: f.fencing, GAP),
    "test_gap_is_told_before_conflict": deciding(CONFLICT, moved_on, GAP),
    "test_fenced_is_told_before_conflict": deciding(CONFLICT, moved_on, FENCED),
    # turns
    "test_a_turn_nobody_stored_is_absent": reading(
        lambda log, asked: replace(log, turn=Lookup("interrupted")) if log.turn == Lookup() else log
    ),
    "test_a_turn_retried_after_ten_others_is_found": reading(only_newest),
    "test_turns_of_different_names_are_apart": storing(lambda entry: replace(entry, turn=entry.turn.strip())),
    "test_a_turn_is_found_before_a_reset_and_behind_an_edit": reading(
        lambda log, asked: replace(log, turn=Lookup()) if log.turn and log.turn.position <= log.head.start else log
    ),
    "test_a_turn_of_an_earlier_life_is_absent": RemembersTurnsForEver,
    "test_an_unfinished_turn_is_running_while_its_lease_lives": reading(
        lambda log, asked: replace(log, turn=replace(log.turn, state="interrupted")) if log.turn and log.turn.state == "running" else log
    ),
    "test_an_unfinished_turn_is_interrupted_without_its_lease": reading(
        lambda log, asked: replace(log, turn=replace(log.turn, state="running")) if log.turn and log.turn.state == "interrupted" else log
    ),
    "test_a_retry_supersedes_the_interrupted_attempt": unseen(lambda row, entry, before, n: before),
    "test_a_retry_that_stores_nothing_supersedes_nothing": SupersedesAtLoad,
    "test_entries_of_one_attempt_stay_together": unseen(lambda row, entry, before, n: before | set(row.turns[entry.turn]) - {n}),
    "test_a_retry_supersedes_an_attempt_before_a_later_turn": unseen(
        lambda row, entry, before, n: before | (superseded(row, entry) & {n - 1})
    ),
    "test_the_newest_attempt_is_the_one_looked_up": reading(
        lambda log, asked: replace(log, turn=replace(log.turn, position=1)) if log.turn else log
    ),
    "test_what_stands_between_the_entries_of_a_turn_does_not_show_it": reading(
        lambda log, asked: replace(log, turn=replace(log.turn, visible=True)) if log.turn and log.turn.position else log
    ),
    "test_a_complete_turn_takes_no_lease": LeasesForAReplay,
    "test_a_complete_turn_waits_for_no_lease": reading(
        lambda log, asked: replace(log, turn=None) if asked.lease and log.holder.token not in {"", asked.lease.token} else log
    ),
    "test_retries_at_once_store_a_turn_once": LooksUpEarlier,
    # leases
    "test_a_lease_is_taken_and_keeps_others_out": Stealing,
    "test_running_counts_from_when_the_lease_was_taken": RenewsFromNow,
    "test_a_load_without_a_lease_takes_none": TakesUnasked,
    "test_of_many_one_gets_the_lease": RacingForLeases,
    "test_a_lease_on_nothing_creates_no_conversation": reading(
        lambda log, asked: replace(log, head=Head("epoch")) if asked.lease and log.head == Head() else log
    ),
    "test_the_same_token_twice_is_its_own": InItsOwnWay,
    "test_a_lease_runs_out_by_itself": NeverRunsOut,
    "test_a_renewed_lease_holds_another_term": renewing(lambda store, key, lease, head: store.live(key) == lease.token),
    "test_a_live_lease_is_renewed_although_the_head_moved": renewing(
        lambda store, key, lease, head: None if store.row(key).head.same(head) else False
    ),
    "test_a_stranger_cannot_renew": renewing(lambda store, key, lease, head: seize(store, key, lease)),
    "test_a_lease_that_ran_out_is_renewed_while_nothing_happened": renewing(
        lambda store, key, lease, head: None if store.live(key) else False
    ),
    "test_a_lease_that_ran_out_is_lost_when_the_head_moved": renewing(
        lambda store, key, lease, head: None if store.live(key) else seize(store, key, lease)
    ),
    "test_a_lease_that_ran_out_is_lost_when_another_took_it": renewing(
        lambda store, key, lease, head: seize(store, key, lease) if store.row(key).head.same(head) else None
    ),
    "test_a_released_lease_is_free_at_once": ReleasesNothing,
    "test_a_stranger_releases_nothing": ReleasesAnyone,
    "test_an_append_ends_its_lease_in_the_same_step": KeepsTheLease,
    "test_an_append_keeps_its_lease_unless_told": EndsTheLease,
    "test_a_duplicate_ends_its_lease_too": KeepsTheLeaseOfADuplicate,
    "test_an_append_ends_no_lease_but_its_own": EndsAnyonesLease,
    "test_whoever_gets_the_lease_sees_the_head_its_predecessor_left": SeesAnOldHead,
    # deleting
    "test_a_delete_at_a_head_spares_what_was_written_since": DeletesWhateverItFinds,
    "test_a_delete_at_a_head_knows_another_life": DeletesAtThePosition,
    "test_a_delete_at_a_head_removes_what_expired": DeletesOnlyWhatIsSeen,
    "test_a_delete_at_a_head_compares_the_entry": DeletesWithoutTheEntry,
    "test_a_delete_that_is_refused_leaves_the_lease": ReleasesWhatItSpares,
    "test_a_delete_at_no_head_deletes_nothing": DeletesWhereNothingWas,
    "test_a_delete_at_a_head_leaves_a_tombstone": DeletesWithoutATombstone,
    "test_of_many_deletes_at_one_head_one_deletes": LooksThenDeletes,
    "test_a_sweep_leaves_everything_that_counts": SweepsTombstones,
    "test_a_deleted_conversation_is_empty": reading(lambda log, asked: replace(log, deleted_at=None)),
    "test_delete_says_whether_there_was_something": AlwaysDeletes,
    "test_a_delete_of_nothing_leaves_a_mark": DeletesOnlySomething,
    "test_every_delete_leaves_a_new_mark": deleting(lambda row, before: put(row, mark="deleted")),
    "test_a_turn_that_a_delete_overtakes_is_gone": deciding(STORED, always, GONE),
    "test_a_turn_of_an_old_life_never_enters_the_next": deciding(STORED, lambda f: f.row.head.n == f.after.n > 0, GONE),
    "test_the_epochs_of_all_lives_stay_known": deleting(lambda row, before: put(row, ended={before.head.epoch: row.deleted})),
    "test_a_first_append_under_an_old_mark_is_gone_in_the_next_life": stored_then(lambda row, entry, before: put(row, mark="")),
    "test_the_next_life_starts_anew": reading(lambda log, asked: replace(log, deleted_at=None) if log.head.epoch else log),
    "test_delete_ends_the_lease": deleting(lambda row, before: put(row, token=before.token, until=before.until)),
    "test_delete_ends_the_lease_on_nothing": deleting(
        lambda row, before: None if before.head.epoch else put(row, token=before.token, until=before.until)
    ),
    "test_the_log_names_every_life_that_ended": reading(lambda log, asked: replace(log, ended=frozenset()) if log.head.epoch else log),
    "test_writers_and_a_delete_at_once_leave_no_remains": DeletesInTwoSteps,
    # expiring
    "test_without_a_ttl_nothing_expires": stored_then(lambda row, entry, before: put(row, expires=row.expires or before.expires)),
    "test_a_conversation_expires_as_a_whole": reading(lambda log, asked: replace(log, expired=False)),
    "test_every_append_slides_the_expiry": stored_then(lambda row, entry, before: put(row, expires=before.expires or row.expires)),
    "test_the_head_of_an_expired_conversation_is_still_the_logs": reading(
        lambda log, asked: replace(log, head=Head()) if log.expired else log
    ),
    "test_the_next_append_after_an_expiry_starts_anew": reading(
        lambda log, asked: replace(log, head=asked.row.head) if log.expired else log
    ),
    "test_of_two_appends_after_an_expiry_one_wins": deciding(GAP, lambda f: 0 < f.after.n <= f.row.head.start, CONFLICT),
    "test_a_writer_from_before_an_expiry_is_no_sign_of_a_loss": deciding(GAP, lambda f: 0 < f.after.n < f.row.head.start, CONFLICT),
    "test_a_turn_of_an_expired_conversation_is_found": reading(
        lambda log, asked: replace(log, turn=Lookup()) if log.expired and log.turn else log
    ),
    "test_an_expired_conversation_can_be_leased": LeasesNothingExpired,
    # listing
    "test_only_what_was_written_before_a_moment_is_listed": SkipsThePast,
    "test_a_walk_goes_through_every_owner_of_a_tenant": WalksOneTenant,
    "test_a_walk_shows_what_expired_and_not_what_was_deleted": WalksTheLiving,
    "test_a_walk_under_writes_shows_all_that_stays": WalksByOffset,
    "test_a_walk_deletes_behind_itself_and_leaves_nothing_out": CountsWhatItShowed,
    "test_a_walk_through_the_idle_shows_all_that_stays_idle": WalksTheIdleByOffset,
    "test_a_walk_tells_the_facts_of_what_it_shows": WalksBlindly,
    "test_the_cursor_of_one_list_is_none_of_another": TakesAnyOfItsCursors,
    "test_a_walk_leaves_out_what_is_reserved": WalksWhatIsReserved,
    "test_a_walks_cursor_reaches_no_other_tenant": FollowsTheCursor,
    "test_an_owner_of_every_tenant_is_refused": ListsAnOwnerOfAnyTenant,
    "test_a_walks_cursor_that_is_none_is_refused": ListsFromAnyCursor,
    "test_conversations_are_listed_newest_first": listing(lambda page, store, owner: replace(page, items=page.items[::-1])),
    "test_a_listed_conversation_tells_its_facts": listing(
        lambda page, store, owner: replace(page, items=tuple(replace(item, updated_at=item.created_at) for item in page.items))
    ),
    "test_pages_follow_each_other_without_gap_or_overlap": listing(
        lambda page, store, owner: replace(page, items=page.items[:-1]) if page.after else page
    ),
    "test_conversations_written_at_once_are_all_listed": ListsByWholeSeconds,
    "test_a_conversation_that_moves_is_never_shown_twice": ListsByOffset,
    "test_another_owners_conversations_are_not_listed": ListsByPrefix,
    "test_deleted_conversations_are_not_listed": ListsTombstones,
    "test_expired_conversations_are_not_listed": ListsExpired,
    "test_a_cursor_that_is_none_is_refused": ListsFromAnyCursor,
    "test_a_cursor_reaches_nobody_elses_conversations": TrustsTheCursor,
    # reading
    "test_pages_before_a_position_follow_each_other": IncludesThePosition,
    "test_a_page_tells_the_pinned_entries_before_it": PinsWhatIsAfter,
    "test_a_page_shows_no_attempt_that_was_superseded_after_it": ReadsAPageAsItWasThen,
    "test_an_unknown_conversation_is_empty": reading(lambda log, asked: replace(log, head=Head(id="new")) if log.head == Head() else log),
    "test_entries_come_back_in_the_order_they_were_appended": reading(lambda log, asked: replace(log, entries=log.entries[::-1])),
    "test_every_field_of_an_entry_comes_back": storing(lambda entry: replace(entry, key_id="")),
    "test_a_body_comes_back_byte_for_byte": storing(lambda entry: replace(entry, body=entry.body.decode("utf-8", "replace").encode())),
    "test_a_body_of_four_megabytes_comes_back": storing(lambda entry: replace(entry, body=entry.body[: 1 << 20])),
    "test_a_body_nobody_can_decode_hides_nothing": reading(decodable),
    "test_a_window_of_turns_holds_whole_turns": reading(
        lambda log, asked: replace(log, entries=log.entries[-asked.turns :]) if asked.turns else log
    ),
    "test_a_window_of_messages_holds_whole_turns": reading(
        lambda log, asked: replace(log, entries=log.entries[-asked.messages :]) if asked.messages else log
    ),
    "test_of_two_limits_the_tighter_one_counts": IgnoresMessagesBesideTurns,
    "test_an_edit_hides_its_positions_and_nothing_else": unseen(lambda row, entry, before, n: before | superseded(row, entry)),
    "test_an_edit_is_never_shown_as_a_turn": storing(lambda entry: replace(entry, kind=Kind.TURN)),
    "test_a_turn_replaces_what_it_hides": unseen(
        lambda row, entry, before, n: before | superseded(row, entry) | (set(entry.hides) if entry.kind is Kind.EDIT else set())
    ),
    "test_what_is_out_of_sight_takes_no_room_in_a_window": reading(filtered_late),
    "test_a_reset_hides_everything_before_it": ReadsThroughResets,
    "test_the_head_is_the_newest_entry": reading(lambda log, asked: replace(log, head=replace(log.head, turns=log.head.n))),
    "test_pinned_entries_before_the_window_are_returned": reading(lambda log, asked: replace(log, pinned=())),
    "test_a_pinned_entry_inside_the_window_is_returned_once": reading(
        lambda log, asked: replace(log, pinned=tuple(asked.row.log[n - 1] for n in log.head.pinned))
    ),
    "test_a_pinned_entry_that_is_hidden_stays_hidden": reading(
        lambda log, asked: replace(log, pinned=tuple(asked.row.log[n - 1] for n in log.head.pinned))
    ),
    "test_a_load_is_one_view_of_one_moment": ReadsInTwoSteps,
    "test_reading_never_waits_for_a_lease": WaitsForTheLease,
    # forking
    "test_a_fork_shows_what_its_source_shows": KnowsIdsEverywhere,
    "test_a_fork_at_an_earlier_place_shows_what_was_there": StopsShort,
    "test_a_fork_and_its_source_go_their_own_ways": SharesEntries,
    "test_a_fork_made_twice_at_once_is_one": Racing,
    "test_a_long_conversation_is_copied_whole": CutsPages,
    # serving
    "test_check_answers": NamesAnother,
    "test_check_leaves_nothing_behind": ChecksByWiping,
    "test_a_store_that_is_down_says_so_at_once": EmptyWhenDown,
    "test_closing_twice_is_a_no_op": ClosesOnce,
    "test_what_was_stored_outlives_the_object": ForgetsWhenClosed,
    "test_one_object_serves_several_event_loops": BoundToItsLoop,
}


def opener(broken: type[Bent]) -> Callable[[], Store]:
    """Return what opens objects on one broken storage."""
    if broken is Apart:
        return Apart
    store = broken()
    return lambda: store
