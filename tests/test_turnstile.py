"""One turn of a conversation at a time in this process, in the order they came, and nobody waits for ever."""

import asyncio
import threading
import time
from types import SimpleNamespace

import pytest

from convmem import ConversationBusy, SessionKey
from convmem.turnstile import Turnstile
from tests.asgi_client import AT_ONCE

pytestmark = pytest.mark.asyncio
KEY, OTHER = SessionKey.for_user("ada"), SessionKey.for_user("bob")


async def test_the_first_goes_through_at_once_and_others_in_the_order_they_came():
    """Whoever leaves hands over directly."""
    turnstile, order = Turnstile(8), []

    async def pass_through(name: int) -> None:
        await turnstile.enter(KEY, 60)
        order.append(name)
        await asyncio.sleep(0)
        turnstile.leave(KEY)

    await asyncio.gather(*(pass_through(i) for i in range(6)))
    assert order == [0, 1, 2, 3, 4, 5]
    assert not turnstile.occupied(KEY)


async def test_conversations_do_not_wait_for_each_other():
    """A slow model blocks one conversation, not a worker."""
    turnstile = Turnstile(8)
    await turnstile.enter(KEY, 0)
    await asyncio.wait_for(turnstile.enter(OTHER, 0), AT_ONCE)


class Clock:
    """The turnstile's own, which goes on when it is told to."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("convmem.turnstile.time", clock)
    return clock


async def run_of(turnstile: Turnstile, clock: Clock, seconds: float, pause: float = 0.0) -> bool:
    """Take turns of a tenth of a second for so long; return whether others should have a chance when the last one is inside."""
    for turn in range(int(seconds * 10)):
        if turn:
            turnstile.leave(KEY)
            clock.now += pause
        await turnstile.enter(KEY, 0)
        clock.now += 0.1
    return turnstile.run_is_long(KEY)


async def test_turns_that_follow_each_other_closely_are_one_run_though_nobody_waits_here(clock):
    """Who polls elsewhere looks a few times a second, and sees none of the moments between them."""
    turnstile = Turnstile(8)
    assert not await run_of(turnstile, clock, 1.9, pause=0.0)
    turnstile.leave(KEY)
    assert await run_of(turnstile, clock, 0.2)
    turnstile.begin_run(KEY)
    assert not turnstile.run_is_long(KEY)


async def test_turns_with_a_pause_between_them_are_no_run(clock):
    """Whoever polls has looked meanwhile: nobody has to be held up."""
    assert not await run_of(Turnstile(8), clock, 9, pause=0.3)


async def test_where_another_was_met_a_run_is_shorter_for_half_a_minute(clock):
    """It is likely that it comes again, also when all have left in between."""
    turnstile = Turnstile(8)
    assert not await run_of(turnstile, clock, 0.6)
    assert not turnstile.is_wanted(KEY)
    turnstile.met_another(KEY)
    assert not turnstile.run_is_long(KEY)
    turnstile.leave(KEY)
    assert await run_of(turnstile, clock, 0.6)
    turnstile.leave(KEY)
    clock.now += 28
    assert await run_of(turnstile, clock, 0.6)
    turnstile.leave(KEY)
    clock.now += 1
    assert not await run_of(turnstile, clock, 0.6)
    assert not turnstile.is_wanted(KEY)


async def test_of_a_thousand_conversations_it_is_known_who_was_met_there(clock):
    """Of the last ones; what is not in use for longer is forgotten."""
    turnstile, keys = Turnstile(8), [SessionKey.for_user(str(n)) for n in range(1100)]

    async def visit(key: SessionKey, *, met: bool) -> bool:
        await turnstile.enter(key, 0)
        if met:
            turnstile.met_another(key)
        shared = turnstile.is_wanted(key)
        turnstile.leave(key)
        return shared

    for key in keys[:1000]:
        await visit(key, met=True)
    assert await visit(keys[0], met=False)
    for key in keys[1000:]:
        await visit(key, met=True)
    assert [await visit(key, met=False) for key in (keys[0], keys[1], keys[500])] == [True, False, True]


async def test_who_may_not_wait_is_told_how_long_the_other_is_inside():
    """`reject` is a wait of nothing."""
    turnstile = Turnstile(8)
    await turnstile.enter(KEY, 0)
    await asyncio.sleep(0.05)
    with pytest.raises(ConversationBusy) as caught:
        turnstile.enter(KEY, 0).send(None)
    assert 0.04 < caught.value.running_seconds < 10


async def test_the_clock_of_who_is_inside_starts_when_they_go_in():
    """Not when the one before them did."""
    turnstile = Turnstile(8)
    await turnstile.enter(KEY, 0)
    waiting = asyncio.create_task(turnstile.enter(KEY, 60))
    await asyncio.sleep(0.05)
    left = time.monotonic()
    turnstile.leave(KEY)
    await waiting
    with pytest.raises(ConversationBusy) as caught:
        await turnstile.enter(KEY, 0)
    assert caught.value.running_seconds <= time.monotonic() - left


async def test_a_wait_ends_when_its_time_is_over_and_blocks_nobody_after():
    """The place in the queue is given up."""
    turnstile = Turnstile(1)
    await turnstile.enter(KEY, 0)
    with pytest.raises(ConversationBusy):
        await turnstile.enter(KEY, 0.02)
    waiting = asyncio.create_task(turnstile.enter(KEY, 60))
    await asyncio.sleep(0.01)
    turnstile.leave(KEY)
    await asyncio.wait_for(waiting, AT_ONCE)
    turnstile.leave(KEY)
    assert not turnstile.occupied(KEY)


async def test_only_so_many_wait():
    """The rest is told at once."""
    turnstile = Turnstile(2)
    await turnstile.enter(KEY, 0)
    assert not turnstile.is_wanted(KEY)
    waiting = [asyncio.create_task(turnstile.enter(KEY, 60)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(ConversationBusy):
        await asyncio.wait_for(turnstile.enter(KEY, 60), AT_ONCE)
    for task in waiting:
        assert turnstile.is_wanted(KEY)
        turnstile.leave(KEY)
        await task
    turnstile.leave(KEY)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
async def test_a_waiter_that_is_cancelled_at_any_moment_passes_its_place_on(before):
    """Also in the very moment in which it was let in."""
    turnstile = Turnstile(8)
    await turnstile.enter(KEY, 0)
    doomed, heir = (asyncio.create_task(turnstile.enter(KEY, 60)) for _ in range(2))
    await asyncio.sleep(0)
    if before:
        doomed.cancel()
    turnstile.leave(KEY)
    doomed.cancel()
    await asyncio.wait_for(heir, AT_ONCE)
    with pytest.raises(asyncio.CancelledError):
        await doomed
    turnstile.leave(KEY)
    assert not turnstile.occupied(KEY)


async def test_waiters_may_be_in_different_event_loops():
    """A worker may run more than one, one thread each."""
    turnstile = Turnstile(8)
    await turnstile.enter(KEY, 0)
    entered = threading.Event()

    def elsewhere() -> None:
        async def wait() -> None:
            await turnstile.enter(KEY, 60)
            entered.set()
            turnstile.leave(KEY)

        asyncio.run(wait())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    await asyncio.sleep(0.1)
    assert not entered.is_set()
    turnstile.leave(KEY)
    await asyncio.to_thread(thread.join)
    assert entered.is_set()
    assert not turnstile.occupied(KEY)


async def test_of_two_threads_that_come_at_once_one_goes_in(monkeypatch):
    """Between looking and going in another thread may run; both inside, the second to leave found its conversation left."""
    turnstile, order = Turnstile(8), []

    def slow() -> float:
        time.sleep(0.02)
        return time.perf_counter()

    def pass_through() -> None:
        async def through() -> None:
            await turnstile.enter(KEY, 60)
            order.append("in")
            await asyncio.sleep(0.05)
            order.append("out")
            turnstile.leave(KEY)

        asyncio.run(through())

    monkeypatch.setattr("convmem.turnstile.time", SimpleNamespace(monotonic=slow))
    await asyncio.gather(*(asyncio.to_thread(pass_through) for _ in range(3)))
    assert order == ["in", "out"] * 3
    assert not turnstile.occupied(KEY)


async def test_who_waits_in_an_event_loop_that_was_closed_holds_nobody_up():
    """It cannot be let in, and nobody is told that it has gone."""
    turnstile = Turnstile(8)
    await turnstile.enter(KEY, 0)

    def stop_while_waiting() -> None:
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)  # it would tell that a task was left behind, which is so
        waiting = loop.create_task(turnstile.enter(KEY, 60))
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        left_behind.append(waiting)

    left_behind: list[asyncio.Task[None]] = []
    await asyncio.to_thread(stop_while_waiting)
    heir = asyncio.create_task(turnstile.enter(KEY, 60))
    await asyncio.sleep(0)
    turnstile.leave(KEY)
    await asyncio.wait_for(heir, AT_ONCE)
    turnstile.leave(KEY)


async def test_rest_comes_when_the_last_one_has_left_and_is_waited_for_no_longer_than_asked():
    """A shutdown waits for turns at work, and not for ever."""
    turnstile = Turnstile(8)
    await asyncio.wait_for(turnstile.rest(60), AT_ONCE)
    await turnstile.enter(KEY, 0)
    await turnstile.enter(OTHER, 0)
    await turnstile.rest(0.05)
    await asyncio.to_thread(asyncio.run, turnstile.rest(0.01))  # in an event loop that is closed when the last one leaves
    resting = asyncio.create_task(turnstile.rest(60))
    await asyncio.sleep(0)
    turnstile.leave(KEY)
    await asyncio.sleep(0.05)
    assert not resting.done()
    turnstile.leave(OTHER)
    await asyncio.wait_for(resting, AT_ONCE)
