"""Heartbeat: a lease is renewed when its time has come, whoever else holds one, and by one timer."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import NamedTuple, cast

import pytest

from convmem import Message, SessionKey
from convmem.heartbeat import Heartbeat
from convmem.stores.memory import MemoryStore
from convmem.turns import Ledger, Rules, Turn

pytestmark = pytest.mark.asyncio


class Timer(NamedTuple):
    """One timer, in the list of those that have not run."""

    when: float
    work: Callable[[], None]
    waiting: list[Timer]

    def cancel(self) -> None:
        self.waiting.remove(self)


class Clockwork:
    """An event loop's time and its timers, turned by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, work: Callable[[], None], **_options: object) -> Timer:
        timer = Timer(when, work, self.timers)
        self.timers.append(timer)
        return timer

    def turn_to(self, now: float) -> None:
        """Let the time pass, and every timer run when it is due."""
        while due := [timer for timer in self.timers if timer.when <= now]:
            timer = min(due, key=lambda one: one.when)
            self.timers.remove(timer)
            self.now = timer.when
            timer.work()
        self.now = now


class Noting:
    """A turn that notes when it is to be renewed, and is open for so many times."""

    def __init__(self, clock: Clockwork, times: int = 1000) -> None:
        self.at: list[float] = []
        self.clock, self.times = clock, times

    def renew_soon(self) -> bool:
        self.at.append(self.clock.now)
        return len(self.at) < self.times


def wound() -> tuple[Clockwork, Heartbeat]:
    clock = Clockwork()
    return clock, Heartbeat(cast("asyncio.AbstractEventLoop", clock))  # as much of one as it needs


async def test_each_is_renewed_at_its_own_times() -> None:
    """When a third of its lease is over, counted from where it began, and not from where another did."""
    clock, heartbeat = wound()
    one, other, brief = Noting(clock), Noting(clock), Noting(clock)
    heartbeat.add(one, 3.0)
    clock.turn_to(1.0)
    heartbeat.add(other, 3.0)
    heartbeat.add(brief, 0.75)
    clock.turn_to(7.5)
    assert [one.at, other.at] == [[3.0, 6.0], [4.0, 7.0]]
    assert brief.at == [1.75, 2.5, 3.25, 4.0, 4.75, 5.5, 6.25, 7.0]


async def test_what_has_ended_is_renewed_no_more_and_the_timer_stops_with_the_last() -> None:
    """Whether it was taken out, or says so itself; and whoever comes then is renewed again."""
    clock, heartbeat = wound()
    gone, over, later = Noting(clock), Noting(clock, times=2), Noting(clock)
    heartbeat.add(gone, 3.0)
    heartbeat.add(over, 3.0)
    clock.turn_to(4.0)
    heartbeat.remove(gone)
    clock.turn_to(60.0)
    assert [gone.at, over.at, clock.timers] == [[3.0], [3.0, 6.0], []]
    heartbeat.add(later, 3.0)
    clock.turn_to(64.0)
    assert later.at == [63.0]


async def test_there_is_one_timer_for_all() -> None:
    """A thousand turns that end at once have set one timer, and cancelled none."""
    clock, heartbeat = wound()
    for _ in range(1000):
        turn = Noting(clock)
        heartbeat.add(turn, 3.0)
        heartbeat.remove(turn)
        assert len(clock.timers) == 1
    clock.turn_to(4.0)
    assert clock.timers == []


async def test_the_timer_keeps_nothing_of_the_request_that_set_it() -> None:
    """It outlives it by seconds; and the next one's renewal is none of the first one's doing."""
    variable: ContextVar[object] = ContextVar("variable")

    class Payload:
        """A window, for instance."""

    async def request() -> weakref.ref[Payload]:
        payload = Payload()
        variable.set(payload)
        turn = Turn(ledger, SessionKey.for_user("ada"))
        await turn.begin()
        turn.stage([Message.user("hi")])
        await turn.close()
        return weakref.ref(payload)

    ledger = Ledger(MemoryStore(), Rules())
    known = await asyncio.create_task(request())
    await asyncio.sleep(0)
    gc.collect()
    assert known() is None


async def test_a_turn_that_has_ended_is_let_go_at_once() -> None:
    """And its window with it, not when the timer comes by."""
    turn = Turn(Ledger(MemoryStore(), Rules()), SessionKey.for_user("ada"))
    known = weakref.ref(turn)
    ledger = turn.ledger
    await turn.begin()
    await turn.close()
    del turn
    gc.collect()
    assert known() is None
    assert ledger.heartbeat.loop is asyncio.get_running_loop()


async def test_a_ledger_has_a_timer_in_each_event_loop_it_is_used_from() -> None:
    """A timer of a loop that is closed would never run."""
    ledger = Ledger(MemoryStore(), Rules())
    here = ledger.heartbeat
    there = await asyncio.to_thread(lambda: asyncio.run(_heartbeat_of(ledger)))
    assert [here is there, there.loop is here.loop] == [False, False]
    assert ledger.heartbeat.loop is asyncio.get_running_loop()


async def _heartbeat_of(ledger: Ledger) -> Heartbeat:
    return ledger.heartbeat
