"""The life of a turn: it ends once, whatever happens, and every end gives the lease back."""

import asyncio
import random
from datetime import timedelta

import pytest

from convmem import ConversationBusy, ConversationConflict, Message, SessionKey, StoreUnavailable, TurnClosed, Window, open_store
from convmem.stores.base import Lease
from convmem.turns import Ledger, Rules, Turn
from tests import asgi_client
from tests.asgi_client import ADA, AT_ONCE

pytestmark = pytest.mark.asyncio
world = asgi_client.world


@pytest.fixture
def ledger(world):
    """Return what the turns of one worker share."""
    return Ledger(world.store, Rules(lease=timedelta(seconds=10), turn_wait=timedelta(seconds=30)))


async def begun(ledger, turn_id=None, *said: str) -> Turn:
    turn = Turn(ledger, ADA, turn_id=turn_id)
    await turn.begin()
    turn.stage([Message.user(text) for text in said])
    return turn


@pytest.mark.parametrize("end", ["close", "interrupt", "abandon", "delete"])
async def test_every_end_gives_the_lease_back_and_comes_once(world, ledger, end):
    """A second end is a no-op, and nothing can be appended any more."""
    turn = await begun(ledger, None, "hi")
    for _ in range(2):
        await getattr(turn, end)()
        assert turn.ended
    with pytest.raises(TurnClosed):
        turn.stage([Message.user("more")])
    assert (await world.log()).holder.token == ""
    assert await world.states() == {"close": ["complete"], "interrupt": ["interrupted"]}.get(end, [])


async def test_a_retry_of_a_turn_that_is_complete_is_replayed_even_ten_turns_later(world, ledger):
    """P6: looked up first, in the whole life; no lease is taken and nothing is stored."""
    await (await begun(ledger, "once", "hi")).close()
    for i in range(10):
        await (await begun(ledger, None, str(i))).close()
    before = (await world.log()).head
    again = Turn(ledger, ADA, turn_id="once")
    await again.begin()
    assert again.replayed
    assert again.ended
    assert (await world.log()).head == before


async def test_a_retry_of_a_turn_that_was_interrupted_supersedes_it(world, ledger):
    """Only the newest attempt is seen, and it counts once."""
    first = await begun(ledger, "once", "first try")
    await first.save()
    await first.interrupt()
    second = await begun(ledger, "once", "second try")
    await second.close()
    assert await world.texts() == ["user: second try"]
    assert (await world.log()).head.turns == 1


async def test_a_retry_elsewhere_that_won_is_replayed_by_the_one_that_lost(world, ledger):
    """After conflict the turn is looked up once; if it is complete, that is the answer."""
    late = Turn(ledger, ADA, turn_id="once")
    await late.look()
    late.stage([Message.user("mine")])
    await (await begun(ledger, "once", "theirs")).close()
    await late.close()
    assert late.replayed
    assert await world.texts() == ["user: theirs"]


async def test_a_refused_turn_has_ended_and_says_why_again(world, ledger):
    """Nothing of it is stored by another save."""
    turn = Turn(ledger, ADA)
    await turn.look()
    turn.stage([Message.user("mine")])
    await world.put(Message.user("theirs"))
    with pytest.raises(ConversationConflict):
        await turn.save()
    assert turn.ended
    assert isinstance(turn.refused, ConversationConflict)
    await turn.save()
    await turn.close()
    assert await world.texts() == ["user: theirs"]


async def test_the_lease_is_given_back_when_the_end_could_not_be_stored(world, ledger):
    """The next turn must not wait for a dead lease."""
    turn = await begun(ledger, None, "hi")
    world.store.fail("append", times=1)
    with pytest.raises(StoreUnavailable):
        await turn.close()
    await ledger.drain(2)
    assert (await world.log()).holder.token == ""


async def test_the_store_that_fails_at_the_beginning_leaves_the_turnstile_open(world, ledger):
    """Whoever comes next does not wait for one that never began."""
    world.store.fail("load", times=1)
    with pytest.raises(StoreUnavailable):
        await begun(ledger)
    turn = await asyncio.wait_for(begun(ledger), AT_ONCE)
    await turn.abandon()


async def test_a_load_whose_answer_was_lost_leaves_no_lease(world, ledger):
    """It may have been taken; it is given back."""
    world.store.lose_answer("load")
    with pytest.raises(StoreUnavailable):
        await begun(ledger)
    await ledger.drain(2)
    assert (await world.log()).holder.token == ""


async def test_an_append_nobody_answered_is_repeated_also_while_the_store_is_down(world, ledger):
    """The server stored it, died, and came back: a refused connection in between does not end the turn."""
    turn = await begun(ledger, None, "hi")
    world.store.lose_answer("append")
    world.store.fail("append", times=1)
    await turn.close()
    assert await world.states() == ["complete"]
    assert (await world.log()).head.n == 1


async def test_what_may_have_been_stored_is_never_said_to_have_failed_for_certain(world, ledger):
    """Whoever is told so would send it again as something new."""
    turn = await begun(ledger, None, "hi")
    world.store.lose_answer("append")
    world.store.fail("append")
    with pytest.raises(StoreUnavailable) as failed:
        await turn.close()
    assert failed.value.unknown
    assert await world.texts() == ["user: hi"]


async def test_saves_of_one_turn_happen_one_after_the_other(world, ledger):
    """A handler may save from several tasks."""
    turn = await begun(ledger)
    world.store.delay = timedelta(milliseconds=5)

    async def say(i: int) -> None:
        await asyncio.sleep(i / 400)
        turn.stage([Message.user(str(i))])
        await turn.save()

    await asyncio.gather(*(say(i) for i in range(5)))
    await turn.close()
    assert await world.texts() == [f"user: {i}" for i in range(5)]
    assert (await world.log()).head.turns == 1


async def test_a_renewal_never_takes_back_what_an_end_has_released(world, ledger):
    """They wait for each other."""
    ledger.rules = Rules(lease=timedelta(milliseconds=60))
    world.store.delay = timedelta(milliseconds=10)
    for _ in range(10):
        turn = await begun(ledger, None, "x")
        await asyncio.sleep(0.018)
        await turn.close()
    await ledger.drain(2)
    assert (await world.log()).holder.token == ""


async def test_a_lease_that_ran_out_and_nobody_took_does_not_fail_the_turn(world, ledger):
    """The store was away for longer than the lease; nobody came between."""
    ledger.rules = Rules(lease=timedelta(milliseconds=60))
    world.store.fail("renew")
    turn = await begun(ledger, None, "hi")
    await asyncio.sleep(0.15)
    await turn.close()
    assert await world.states() == ["complete"]


async def test_a_message_is_appended_once_and_a_list_of_them_all_or_none(ledger):
    """By id; and a message that is refused takes the others along."""
    turn = await begun(ledger)
    one, two = Message.user("1"), Message.user("2")
    turn.stage([one, two, one])
    turn.stage([two])
    assert turn.messages == [one, two]
    with pytest.raises(ValueError, match="metadata"):
        turn.stage([Message.user("3"), Message.user("4", metadata={"x": object()})])
    assert turn.messages == [one, two]
    await turn.abandon()


async def test_a_reject_does_not_touch_the_lease_of_the_one_inside(world, ledger):
    """Neither its own worker's nor another's."""
    await world.inner.load(ADA, lease=Lease("other", timedelta(seconds=30)))
    turn = Turn(ledger, ADA)
    with pytest.raises(ConversationBusy):
        await turn.begin("reject")
    await ledger.drain(2)
    assert (await world.log()).holder.token == "other"
    await world.inner.release(ADA, "other")


async def test_the_pinned_positions_follow_the_system_messages(world, ledger):
    """A system message stays in every window, however old."""
    turn = await begun(ledger)
    turn.stage([Message.system("be kind")])
    await turn.close()
    for i in range(3):
        await (await begun(ledger, None, str(i))).close()
    log = await world.inner.load(ADA, turns=1)
    assert [stored.n for stored in log.pinned] == [1]


@pytest.mark.parametrize("saved", [0, 1])
async def test_a_turn_cancelled_at_any_moment_of_its_end_is_stored_once_and_whole(world, ledger, saved):
    """What was cancelled is done again, with the same entry: the store knows it, whether or not it had stored it before."""
    world.store.delay = timedelta(milliseconds=2)
    for moment in range(12):
        turn = await begun(ledger, None, "hi")
        if saved:
            await turn.save()
        ending = asyncio.create_task(turn.close())
        await asyncio.sleep(moment / 2000)
        ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)
        await ledger.drain(5)
        assert turn.ended
        log = await world.log()
        own = [stored.entry for stored in log.entries if stored.entry.turn == turn.id]
        assert (len(own), own[-1].closing, sum(entry.count for entry in own)) == (1 + saved, True, 1)
        assert log.holder.token == ""


async def test_the_next_turn_here_waits_until_a_cancelled_one_is_stored(world, ledger):
    """It takes its place in the queue, and need not poll the store for a lease of its own process."""
    turn = await begun(ledger, None, "hi")
    world.store.delay = timedelta(milliseconds=400)
    ending = asyncio.create_task(turn.close())
    await asyncio.sleep(0.01)
    ending.cancel()
    world.store.calls.clear()
    following = await begun(ledger, None, "ho")
    assert world.store.calls == ["append", "load"]
    assert turn.ended
    await following.close()


async def test_a_save_that_was_cancelled_is_stored_once_and_the_turn_goes_on(world, ledger):
    """A handler may give up waiting for it; what it appended is under way."""
    turn = await begun(ledger, None, "hi")
    world.store.delay = timedelta(milliseconds=20)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(turn.save(), 0.01)
    turn.stage([Message.assistant("ho")])
    await turn.close()
    assert await world.texts() == ["user: hi", "assistant: ho"]
    assert await world.states() == ["complete"]


@pytest.mark.all_only
@pytest.mark.parametrize("name", ["valkey_server", "postgres_url"])
async def test_turns_that_are_cancelled_at_their_end_are_stored_once_on_a_server(request, name):
    """A driver sees its call cancelled, and another one of the same entry; 320 turns of eight conversations at once."""
    server = request.getfixturevalue(name)
    store = open_store(getattr(server, "url", server))
    ledger, chance = Ledger(store, Rules()), random.Random(7)

    async def talk(key: SessionKey) -> None:
        turns = []
        for _ in range(40):
            turn = Turn(ledger, key)
            await turn.begin()
            turn.stage([Message.user("hi")])
            if chance.random() < 0.3:
                await turn.save()
            ending = asyncio.create_task(turn.close())
            await asyncio.sleep(chance.choice([0, chance.random() / 1000, chance.random() / 250]))
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)
            assert await turn.over(timedelta(seconds=20))
            turns.append(turn.id)
        log = await store.load(key)
        assert [(turn.id, turn.state) for turn in log.turns] == [(name, "complete") for name in turns]
        assert sum(stored.entry.count for stored in log.entries) == 40
        assert log.holder.token == ""

    async with store:
        await asyncio.gather(*(talk(SessionKey.for_user(f"cancelled {number}")) for number in range(8)))
        await ledger.drain(5)


async def test_a_retry_sees_as_much_before_it_as_the_first_try_did(world):
    """A window in tokens is read page by page; the try that is left out of the first page does not make that one short."""
    ledger = Ledger(world.store, Rules(window=Window(turns=None, tokens=900)))
    for i in range(9):
        await (await begun(ledger, None, str(i))).close()
    await (await begun(ledger, "once", "first try")).interrupt()
    retry = await begun(ledger, "once")
    assert [message.text for message in retry.decoded().said([]).messages] == [str(i) for i in range(9)]
    await retry.abandon()


async def test_a_key_that_was_used_before_holds_nobody_up_though_its_request_is_cancelled(world, ledger):
    """While the lease is given back the client may leave: the conversation would be busy for as long as the worker lives."""
    first = Turn(ledger, ADA, turn_id="once", fingerprint="a")
    await first.begin()
    first.stage([Message.user("hi")])
    await first.close()
    world.store.delay = timedelta(milliseconds=20)
    other = asyncio.create_task(Turn(ledger, ADA, turn_id="once", fingerprint="b").begin())
    while world.store.calls[-1] != "release":  # noqa: ASYNC110 - the store announces nothing
        await asyncio.sleep(0.001)
    other.cancel()
    with pytest.raises(asyncio.CancelledError):
        await other
    world.store.mend()
    await (await begun(ledger, None, "next")).close()
