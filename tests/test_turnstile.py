"""One turn of a conversation at a time in this process, in the order they came, and nobody waits for ever."""

import asyncio
import threading
import time

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


async def test_turns_that_follow_each_other_closely_are_one_run_though_nobody_waits_here():
    """Who polls elsewhere looks a few times a second, and sees none of the moments between them."""
    turnstile, seen = Turnstile(8), 0
    begun = time.monotonic()
    while time.monotonic() - begun < AT_ONCE:
        await turnstile.enter(KEY, 0)
        seen += 1
        if turnstile.run_is_long(KEY):
            break
        turnstile.leave(KEY)
        await asyncio.sleep(0)
    assert time.monotonic() - begun > 2
    assert seen > 1
    assert turnstile.run_is_long(KEY)
    turnstile.begin_run(KEY)
    assert not turnstile.run_is_long(KEY)
    turnstile.leave(KEY)


async def test_turns_with_a_pause_between_them_are_no_run():
    """Whoever polls has looked meanwhile: nobody has to be held up."""
    turnstile = Turnstile(8)
    for _ in range(9):
        await turnstile.enter(KEY, 0)
        assert not turnstile.run_is_long(KEY)
        turnstile.leave(KEY)
        await asyncio.sleep(0.3)


async def test_who_may_not_wait_is_told_how_long_the_other_is_inside():
    """`reject` is a wait of nothing."""
    turnstile = Turnstile(8)
    await turnstile.enter(KEY, 0)
    await asyncio.sleep(0.05)
    with pytest.raises(ConversationBusy) as caught:
        await turnstile.enter(KEY, 0)
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
    waiting = [asyncio.create_task(turnstile.enter(KEY, 60)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(ConversationBusy):
        await asyncio.wait_for(turnstile.enter(KEY, 60), AT_ONCE)
    for task in waiting:
        turnstile.leave(KEY)
        await task
    turnstile.leave(KEY)


async def test_a_waiter_that_is_cancelled_at_any_moment_passes_its_place_on():
    """Also in the very moment in which it was let in."""
    turnstile = Turnstile(8)
    await turnstile.enter(KEY, 0)
    doomed, heir = (asyncio.create_task(turnstile.enter(KEY, 60)) for _ in range(2))
    await asyncio.sleep(0)
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


async def test_rest_comes_when_the_last_one_has_left_and_is_waited_for_no_longer_than_asked():
    """A shutdown waits for turns at work, and not for ever."""
    turnstile = Turnstile(8)
    await asyncio.wait_for(turnstile.rest(60), AT_ONCE)
    await turnstile.enter(KEY, 0)
    await turnstile.enter(OTHER, 0)
    await turnstile.rest(0.05)
    resting = asyncio.create_task(turnstile.rest(60))
    await asyncio.sleep(0)
    turnstile.leave(KEY)
    await asyncio.sleep(0.05)
    assert not resting.done()
    turnstile.leave(OTHER)
    await asyncio.wait_for(resting, AT_ONCE)
