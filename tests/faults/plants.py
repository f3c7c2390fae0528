"""Stores that are broken on purpose, each in one way people really build them. A fault test that does not find its plant is no test."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from convmem.exceptions import StoreUnavailable
from convmem.identifiers import new_id
from convmem.stores.base import Appended, Head, Holder, Log, Outcome, Store
from convmem.testing import FaultyStore


class WithoutFence(FaultyStore):
    """Takes no lease, and appends after whatever is there: the usual "just add the messages"."""

    async def load(self, key, *, lease=None, **options: Any) -> Log:
        log = await super().load(key, **options)
        return log if lease is None else replace(log, holder=Holder(lease.token))

    async def append(self, key, after, entry, **options: Any) -> Appended:
        while True:
            appended = await super().append(key, after, entry, **options)
            if appended.outcome is not Outcome.CONFLICT:
                return appended
            after = appended.head
            entry = replace(entry, epoch=after.epoch, turns=after.turns + 1)


class BlindRetry(FaultyStore):
    """Repeats an append nobody answered as a new one: the usual retry around a client library."""

    async def append(self, key, after, entry, **options: Any) -> Appended:
        for pause in (0.05, 0.2, 0.5, 1.0, 2.0):
            try:
                return await super().append(key, after, entry, **options)
            except StoreUnavailable:
                await asyncio.sleep(pause)
            try:
                after = (await super().load(key)).head
            except StoreUnavailable:
                continue
            entry = replace(entry, id=new_id(), epoch=after.epoch or entry.epoch, turns=after.turns + 1)
        return await super().append(key, after, entry, **options)


class AnswersFirst(FaultyStore):
    """Says *stored* and stores a moment later: a queue, a background task, a write-behind cache."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._later: set[asyncio.Task[Appended]] = set()

    async def append(self, key, after, entry, **options: Any) -> Appended:
        async def store() -> Appended:
            await asyncio.sleep(3)
            return await self.store.append(key, after, entry, **options)

        task = asyncio.create_task(store())
        self._later.add(task)
        task.add_done_callback(self._later.discard)
        return Appended(Outcome.STORED, entry.head_at(after.n + 1))


class OutageIsEmpty(FaultyStore):
    """Takes a store that does not answer for a conversation that is new: `except Exception: history = []`."""

    async def load(self, key, *, lease=None, **options: Any) -> Log:
        try:
            return await super().load(key, lease=lease, **options)
        except StoreUnavailable:
            return Log() if lease is None else Log(holder=Holder(lease.token))


class Forgetful(FaultyStore):
    """Takes lost entries for ones that never were: begins anew where the log it knew has gone."""

    async def load(self, key, **options: Any) -> Log:
        log = await super().load(key, **options)
        return replace(log, ended=_Everything())

    async def append(self, key, after, entry, **options: Any) -> Appended:
        appended = await super().append(key, after, entry, **options)
        if appended.outcome not in {Outcome.GAP, Outcome.GONE}:
            return appended
        head = (await super().load(key)).head
        fresh = replace(entry, epoch=head.epoch or entry.epoch, turns=head.turns + 1)
        return await super().append(key, head if head.epoch else Head(id=head.id), fresh, **options)


class _Everything(frozenset[str]):
    """Claims that a delete has ended every life, so that no evidence counts."""

    def __contains__(self, item: object) -> bool:
        return True


class Blocking(FaultyStore):
    """Calls its server as a synchronous client does: the event loop waits."""

    async def load(self, key, **options: Any) -> Log:
        try:
            return await super().load(key, **options)
        except StoreUnavailable:
            time.sleep(2.5)  # noqa: ASYNC251 - the fault
            raise


class Patient(FaultyStore):
    """Has no timeout: asks again until it is answered."""

    async def load(self, key, **options: Any) -> Log:
        while True:
            try:
                return await super().load(key, **options)
            except StoreUnavailable:
                await asyncio.sleep(0.05)


PLANTS: dict[str, Callable[[Store], Store]] = {
    "": lambda store: store,
    "without-fence": WithoutFence,
    "blind-retry": BlindRetry,
    "answers-first": AnswersFirst,
    "outage-is-empty": OutageIsEmpty,
    "forgetful": Forgetful,
    "blocking": Blocking,
    "patient": Patient,
}
