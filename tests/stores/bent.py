"""A right store with handles, and functions that each bend it in one place."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

from convmem.keys import SessionKey
from convmem.stores.base import (
    Appended,
    Entry,
    Head,
    Lease,
    Log,
    Outcome,
    Page,
    decide as decide_right,
)
from convmem.stores.memory import MemoryStore, _Conversation

STORED, DUPLICATE, CONFLICT, FENCED, GAP, GONE = (
    Outcome.STORED,
    Outcome.DUPLICATE,
    Outcome.CONFLICT,
    Outcome.FENCED,
    Outcome.GAP,
    Outcome.GONE,
)


class Planted(Exception):
    """What a broken store raises where it should not raise."""


class Bent(MemoryStore):
    """A right store, with handles to bend it by."""

    def __init__(self) -> None:
        super().__init__()
        self._warned = True

    def row(self, key: SessionKey) -> _Conversation:
        return self._conversations.setdefault(key.path, _Conversation())

    def live(self, key: SessionKey) -> str:
        return self.row(key).live_token(time.time())

    def decide(self, facts: Facts) -> Outcome:
        row = facts.row
        return decide_right(facts.after, facts.entry, head=row.head, mark=row.mark, ended=row.ended, id_at=row.id_at, live_token=facts.live)

    async def append(self, key: SessionKey, after: Head, entry: Entry, *, ttl: timedelta | None = None, release: bool = False) -> Appended:
        now = time.time()
        row = self.row(key)
        outcome = self.decide(Facts(row, after, entry, row.live_token(now)))
        if outcome is STORED:
            await self.pause(row)
            self._store(row, len(row.log) + 1, entry, now, ttl)
        if outcome in {STORED, DUPLICATE}:
            if self.ends_lease(outcome, release=release):
                self._let_go(key, row, self.lease_to_end(row, entry))
            return Appended(outcome, self.answer(row, after, entry))
        self.refused(row, entry)
        return Appended(outcome, self.found(row, after))

    async def pause(self, row: _Conversation) -> None:
        """Between deciding and storing."""

    def ends_lease(self, outcome: Outcome, *, release: bool) -> bool:
        return release

    def lease_to_end(self, row: _Conversation, entry: Entry) -> str:
        return entry.token

    def answer(self, row: _Conversation, after: Head, entry: Entry) -> Head:
        return entry.head_at(after.n + 1)

    def found(self, row: _Conversation, after: Head) -> Head:
        return row.head if row.head.epoch else Head(id=row.mark)

    def refused(self, row: _Conversation, entry: Entry) -> None:
        """After a refusal."""


@dataclass(frozen=True)
class Facts:
    """What an outcome depends on."""

    row: _Conversation
    after: Head
    entry: Entry
    live: str

    @property
    def standing(self) -> bool:
        return self.row.id_at(self.after.n + 1) == self.entry.id

    @property
    def fencing(self) -> bool:
        return self.live not in {"", self.entry.token}


class Reading:
    """What a load was asked, and of which store."""

    def __init__(self, store: Bent, key: SessionKey, asked: dict) -> None:
        self.row = store.row(key)
        self.turns, self.messages, self.turn, self.lease = (asked.get(name) for name in ("turns", "messages", "turn", "lease"))


def reading(change: Callable[[Log, Reading], Log]) -> type[Bent]:
    class Store(Bent):
        async def load(self, key, **asked):
            return change(await super().load(key, **asked), Reading(self, key, asked))

    return Store


def deciding(wrong: Outcome, when: Callable[[Facts], bool], instead_of: Outcome) -> type[Bent]:
    """Answer `wrong` instead of the right outcome, in some state."""

    class Store(Bent):
        def decide(self, facts):
            right = super().decide(facts)
            return wrong if right is instead_of and when(facts) else right

    return Store


def addressing(fold: Callable[[SessionKey], SessionKey]) -> type[Bent]:
    class Store(Bent):
        async def load(self, key, **asked):
            return await super().load(fold(key), **asked)

        async def append(self, key, after, entry, **asked):
            return await super().append(fold(key), after, entry, **asked)

        async def delete(self, key, **asked):
            return await super().delete(fold(key), **asked)

    return Store


def storing(change: Callable[[Entry], Entry]) -> type[Bent]:
    """Keep something else than what was handed in."""

    class Store(Bent):
        def _store(self, row, n, entry, now, ttl):
            super()._store(row, n, change(entry), now, ttl)

    return Store


def stored_then(change: Callable[[_Conversation, Entry, _Conversation], None]) -> type[Bent]:
    """Do something more when an entry is stored; the last argument is the row as it was before."""

    class Store(Bent):
        def _store(self, row, n, entry, now, ttl):
            before = replace(row, log=list(row.log), turns={turn: list(at) for turn, at in row.turns.items()}, unseen=set(row.unseen))
            super()._store(row, n, entry, now, ttl)
            change(row, entry, before)

    return Store


def deleting(change: Callable[[_Conversation, _Conversation], None]) -> type[Bent]:
    """Do something more after a delete; the last argument is the row as it was before."""

    class Store(Bent):
        async def delete(self, key, **asked):
            before = replace(self.row(key), ended=dict(self.row(key).ended))
            existed = await super().delete(key, **asked)
            change(self.row(key), before)
            return existed

    return Store


def put(row: _Conversation, **changes) -> None:
    for name, value in changes.items():
        setattr(row, name, value)


def renewing(change: Callable[[Bent, SessionKey, Lease, Head], bool | None]) -> type[Bent]:
    """Answer a renewal otherwise, where the change does not return None."""

    class Store(Bent):
        async def renew(self, key, lease, head):
            answer = change(self, key, lease, head)
            return await super().renew(key, lease, head) if answer is None else answer

    return Store


def listing(change: Callable[[Page, Bent, str], Page]) -> type[Bent]:
    class Store(Bent):
        async def list(self, owner, **asked):
            return change(await super().list(owner, **asked), self, owner)

    return Store


def unseen(change: Callable[[_Conversation, Entry, set[int], int], set[int]]) -> type[Bent]:
    """Take something else out of sight when an entry is stored: `change(row, entry, out of sight before, position)`."""
    return stored_then(lambda row, entry, before: put(row, unseen=change(row, entry, before.unseen, len(row.log))))
