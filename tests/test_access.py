"""Ways to a conversation without a request: jobs, scripts, notebooks, webhooks."""

import asyncio
import gc
import weakref

import pytest
from starlette.responses import JSONResponse

from convmem import (
    ConfigurationError,
    ConversationBusy,
    HistoryLost,
    InvalidIdempotencyKey,
    InvalidIdentity,
    Message,
    NoConversation,
    SessionKey,
    Settings,
    SQLiteStore,
    TurnClosed,
    conversations,
    current_conversation,
    get_conversation,
    new_session_id,
    open_conversation,
    read_conversation,
)
from convmem.conversation import work_of
from convmem.stores.memory import MemoryStore
from tests import asgi_client
from tests.asgi_client import ADA, AT_ONCE, BOB, SECRET
from tests.test_middleware import app_of

pytestmark = pytest.mark.asyncio
world, memory_world = asgi_client.world, asgi_client.memory_world


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    """Configure a process outside any request."""
    monkeypatch.setenv("CONVMEM_STORE", f"sqlite:///{tmp_path}/outside.db")


async def test_a_job_goes_on_with_a_users_conversation(world):
    """What a request said, a job reads, and the other way round."""
    client = world.serve(app_of())
    await client.post()
    async with open_conversation(ADA, store=world.store) as conversation:
        assert (conversation.owner, len(conversation.messages)) == ("user:ada", 1)
        assert current_conversation() is conversation
        conversation.append(Message.assistant("by the way"))
    assert (await client.post()).data["count"] == 3
    assert await world.states() == ["complete"] * 3


async def test_the_store_of_the_environment_is_opened_and_closed(tmp_path):
    """A script needs one line."""
    for count in range(3):
        async with open_conversation(ADA) as conversation:
            assert len(conversation.messages) == count
            conversation.append(Message.user("x"))
    assert [item.turns for item in (await conversations("user:ada")).items] == [3]
    async with SQLiteStore(tmp_path / "outside.db") as store:
        assert (await store.load(ADA)).holder.token == ""


async def test_a_block_that_raises_stores_what_was_saved_and_drops_the_rest(world):
    """The same rules as in a request."""
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is what raises
        async with open_conversation(ADA, store=world.store) as conversation:
            conversation.append(Message.user("saved"))
            await conversation.save()
            conversation.append(Message.user("dropped"))
            raise ZeroDivisionError
    assert await world.texts() == ["user: saved"]
    assert await world.states() == ["interrupted"]


async def test_a_block_that_is_cancelled_keeps_what_it_appended(world):
    """Interrupted is not lost."""
    inside = asyncio.Event()

    async def job():
        async with open_conversation(ADA, store=world.store) as conversation:
            conversation.append(Message.user("x"))
            inside.set()
            await asyncio.sleep(30)

    running = asyncio.create_task(job())
    await inside.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await world.at_rest()
    assert await world.states() == ["interrupted"]


async def test_a_turn_opened_inside_ones_own_request_is_refused_at_once(memory_world):
    """It would wait for itself."""

    async def handler(request):
        conversation = await get_conversation(request)
        async with open_conversation(conversation.key):
            pass

    answer = await asyncio.wait_for(memory_world.serve(app_of(handler)).post(), AT_ONCE)
    assert (answer.status, answer.code, answer.data["own_turn"]) == (409, "conversation_busy", True)


async def test_inside_a_request_another_conversation_is_opened_in_the_same_store(world):
    """A tool that writes to a colleague."""
    bob = SessionKey.for_user("bob")

    async def handler(request):
        await get_conversation(request)
        async with open_conversation(bob) as other:
            other.append(Message.assistant("ada says hi"))
        page = await conversations("user:bob")
        return JSONResponse([item.session_id for item in page.items])

    assert (await world.serve(app_of(handler)).post()).data == ["default"]
    assert await world.texts(bob) == ["assistant: ada says hi"]


async def test_it_cannot_be_loaded_again_and_ends_with_its_block(world):
    """`load()` belongs to requests."""
    async with open_conversation(ADA, store=world.store) as conversation:
        with pytest.raises(TurnClosed, match="open_conversation"):
            await conversation.load(session_id="other")
    with pytest.raises(TurnClosed):
        conversation.append(Message.user("late"))
    async with conversation.turn():
        conversation.append(Message.user("in a turn of its own"))
    assert await world.texts() == ["user: in a turn of its own"]


async def test_a_loss_is_reported_to_a_job_once_too(memory_world):
    """Through the worker's own memory of what it stored."""

    async def handler(request):
        async with open_conversation(SessionKey.for_user("bob")) as other:
            other.append(Message.user("x"))
        memory_world.store.store = MemoryStore()
        with pytest.raises(HistoryLost):
            async with open_conversation(SessionKey.for_user("bob")):
                pass
        async with open_conversation(SessionKey.for_user("bob")) as other:
            return JSONResponse(other.is_new)

    assert (await memory_world.serve(app_of(handler)).get()).data is True


async def test_two_blocks_at_once_are_ordered(world):
    """Across two ledgers that know nothing of each other."""

    async def job(i: int) -> int:
        async with open_conversation(ADA, store=SameStore(world)) as conversation:
            conversation.append(Message.user(str(i)))
            await asyncio.sleep(0.01)
            return len(conversation.messages)

    assert sorted(await asyncio.gather(*(job(i) for i in range(4)))) == [1, 2, 3, 4]


async def test_jobs_on_one_store_hand_their_conversation_over_in_the_order_they_came(memory_world):
    """None asks the store over and over whether it is its turn: each loads once and appends once, also from several places in a program."""
    said = []

    async def job(i: int) -> None:
        async with open_conversation(ADA, store=memory_world.store) as conversation:
            conversation.append(Message.user(str(i)))
            await asyncio.sleep(0.01)
            said.append(i)

    await asyncio.gather(*(job(i) for i in range(12)))
    assert said == list(range(12)), "more than requests may wait for a conversation"
    assert memory_world.store.calls == ["load", "append"] * 12


async def test_a_job_that_died_with_its_event_loop_is_waited_for_as_long_as_its_lease_and_no_longer(monkeypatch):
    """A thread for each job, as task queues run them: what waits in one event loop depends on nothing in another."""
    monkeypatch.setenv("CONVMEM_LEASE", "300ms")
    store, left = MemoryStore(), []

    async def dying() -> None:
        opened = open_conversation(ADA, store=store)
        left.append((opened, await opened.__aenter__()))

    async def next_one() -> None:
        async with asyncio.timeout(AT_ONCE), open_conversation(ADA, store=store):
            pass

    await asyncio.to_thread(lambda: asyncio.run(dying()))
    await asyncio.to_thread(lambda: asyncio.run(next_one()))


async def test_a_job_that_ends_does_not_wait_for_one_that_goes_on(memory_world):
    """Only for what it still writes itself."""
    ended, begun = asyncio.Event(), asyncio.Event()

    async def goes_on() -> None:
        async with open_conversation(BOB, store=memory_world.store):
            begun.set()
            await ended.wait()

    other = asyncio.create_task(goes_on())
    await begun.wait()
    async with asyncio.timeout(AT_ONCE), open_conversation(ADA, store=memory_world.store):
        pass
    ended.set()
    await other


async def test_the_end_of_a_cancelled_job_is_stored_before_its_store_is_closed(tmp_path):
    """The store of the environment is closed with the block, and what was appended is in it by then."""

    class Slow(SQLiteStore):
        async def append(self, *arguments, **options):
            await asyncio.sleep(0.1)
            return await super().append(*arguments, **options)

    inside = asyncio.Event()

    async def cancelled(store: SQLiteStore) -> None:
        async with open_conversation(ADA, store=store) as conversation:
            conversation.append(Message.user("kept"))
            inside.set()

    async with Slow(tmp_path / "slow.db") as store:
        task = asyncio.create_task(cancelled(store))
        await inside.wait()
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len((await store.load(ADA)).entries) == 1


async def test_a_job_in_a_generator_that_is_left_behind_ends_in_whichever_task_closes_it(tmp_path):
    """Nobody closes a stream whose client has left but the garbage collector, in a context of its own."""

    async def stream():
        async with open_conversation(ADA) as conversation:
            conversation.append(Message.user("x"))
            await conversation.save()
            yield "a"

    left = stream()
    assert await asyncio.create_task(anext(left)) == "a"
    await asyncio.create_task(left.aclose())
    async with SQLiteStore(tmp_path / "outside.db") as store:
        assert [turn.state for turn in (await store.load(ADA)).turns] == ["interrupted"]
    with pytest.raises(NoConversation):
        current_conversation()


async def test_a_store_is_kept_by_no_job_that_is_over():
    """A script may open as many as it likes."""
    store = MemoryStore()
    known = weakref.ref(store)
    async with open_conversation(ADA, store=store) as conversation:
        conversation.append(Message.user("x"))
    del store, conversation
    gc.collect()
    assert known() is None


async def job(world, text: str = "done", key: str = "job-17") -> tuple[bool, list[str]]:
    """Run a job that a queue delivers at least once; each run stands for a process of its own."""
    async with open_conversation(ADA, store=SameStore(world), idempotency_key=key) as conversation:
        conversation.append(Message.assistant(text))
        return conversation.replayed, [message.text for message in conversation.new_messages]


async def test_a_job_that_is_run_again_stores_its_turn_once(world):
    """However much was said in between; the second run sees what the first one stored."""
    assert await job(world) == (False, ["done"])
    for _ in range(10):
        await world.put(Message.user("meanwhile"))
    assert await job(world, "done again") == (True, ["done"])
    assert await job(world, "another", key="job-18") == (False, ["another"])
    assert [text for text in await world.texts() if text.startswith("assistant")] == ["assistant: done", "assistant: another"]
    await world.at_rest()


async def test_a_job_that_died_is_run_again_in_its_own_place(world):
    """What it had saved is superseded, not doubled; a run that stored nothing leaves nothing to find."""
    for saved in (False, True):
        with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is what raises
            async with open_conversation(ADA, store=world.store, idempotency_key="job-17") as conversation:
                conversation.append(Message.assistant("half"))
                if saved:
                    await conversation.save()
                raise ZeroDivisionError
    assert await job(world) == (False, ["done"])
    async with open_conversation(ADA, store=world.store) as conversation:
        assert [message.text for message in await conversation.history()] == ["done"]


async def test_a_job_delivered_twice_at_once_runs_once(world):
    """The second one is told at once, whatever the waiting time, and comes back for the answer."""
    async with open_conversation(ADA, store=world.store, idempotency_key="job-17") as conversation:
        conversation.append(Message.assistant("done"))
        with pytest.raises(ConversationBusy) as busy:
            async with asyncio.timeout(AT_ONCE):
                await job(world)
        assert busy.value.same_turn
    assert await job(world, "done again") == (True, ["done"])


async def test_a_client_cannot_take_the_name_of_a_job(world):
    """It may know how jobs are named: its Idempotency-Key names a turn of its own, and the job still runs."""
    client = world.serve(app_of())
    for replayed in (None, "true"):
        assert (await client.post(headers={"idempotency-key": "job-17"})).header("convmem-replayed") == replayed
    assert await job(world) == (False, ["done"])


async def test_an_empty_name_of_a_job_is_refused(world):
    """All jobs without an id would be one."""
    with pytest.raises(InvalidIdempotencyKey, match="idempotency_key is empty"):
        await job(world, key="")
    await world.at_rest()


async def test_an_owners_conversations_are_paged_newest_first(world):
    """For a visitor as for a user, and nobody else's."""
    for i in range(5):
        await world.put(Message.user("x"), key=SessionKey.for_user("ada", f"s{i}"))
        await asyncio.sleep(0.002)
    await world.put(Message.user("x"), key=SessionKey("visitor:v", "mine"))
    first = await conversations("user:ada", store=world.store, limit=3)
    rest = await conversations("user:ada", store=world.store, limit=3, after=first.after)
    assert [item.session_id for item in (*first.items, *rest.items)] == ["s4", "s3", "s2", "s1", "s0"]
    assert rest.after is None
    assert [item.session_id for item in (await conversations("visitor:v", store=world.store)).items] == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"owner": "ada"}, InvalidIdentity),
        ({"owner": "user:ada", "limit": 0}, ValueError),
        ({"owner": "user:ada", "limit": 10_000}, ValueError),
        ({"owner": "user:ada", "after": "nonsense"}, ValueError),
    ],
)
async def test_a_list_refuses_what_makes_no_sense(world, arguments, error):
    """With a sentence, not with an empty page."""
    with pytest.raises(error):
        await conversations(**arguments, store=world.store)


async def test_a_session_id_outside_a_request_is_signed_with_the_key_of_the_environment(monkeypatch):
    """Under `issued`; where the key is in the store, the line to add is named."""
    assert new_session_id("user:ada") != new_session_id("user:ada")
    monkeypatch.setenv("CONVMEM_CLIENT_IDS", "issued")
    with pytest.raises(ConfigurationError, match="CONVMEM_SECRET_KEY"):
        new_session_id("user:ada")
    monkeypatch.setenv("CONVMEM_SECRET_KEY", SECRET)
    assert len(new_session_id("user:ada")) == 64


async def test_a_job_sees_its_environment_as_it_is_and_reads_it_once(world, monkeypatch, tmp_path):
    """A variable that is set meanwhile counts, and so does a file of a secret that was written anew; wherever ``os.environ`` is kept."""

    async def window() -> int | None:
        async with open_conversation(ADA, store=world.store) as conversation:
            return work_of(conversation).ledger.rules.window.turns

    assert await window() == 50
    assert Settings.at_hand() is Settings.at_hand()
    monkeypatch.setenv("CONVMEM_WINDOW_TURNS", "7")
    assert await window() == 7
    monkeypatch.delenv("CONVMEM_WINDOW_TURNS")
    assert await window() == 50
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    monkeypatch.setenv("CONVMEM_SECRET_KEY_FILE", str(secret))
    assert Settings.at_hand() is Settings.at_hand()
    secret.write_text(SECRET[::-1])
    assert Settings.at_hand().signing_keys == (SECRET[::-1].encode(),)
    monkeypatch.setattr("os.environ", {"CONVMEM_WINDOW_TURNS": "3"})
    assert [await window(), Settings.at_hand() is Settings.at_hand()] == [3, True]


async def test_a_job_waits_no_longer_than_its_settings_say(world, monkeypatch):
    """The environment's, where no middleware is around."""
    monkeypatch.setenv("CONVMEM_CONCURRENCY", "reject")
    async with open_conversation(ADA, store=world.store):
        with pytest.raises(ConversationBusy):
            async with asyncio.timeout(AT_ONCE), open_conversation(ADA, store=SameStore(world)):
                pass


def SameStore(world):  # noqa: N802 - another store object on the same storage
    from convmem.testing import FaultyStore

    return FaultyStore(world.inner)


async def test_an_error_of_a_list_inside_a_request_is_answered_by_its_problem(memory_world):
    """Whichever way into the store it came from."""

    async def handler(request):
        await get_conversation(request)
        return JSONResponse(len((await conversations("user:ada")).items))

    memory_world.store.fail("list")
    answer = await memory_world.serve(app_of(handler)).get()
    assert (answer.status, answer.code) == (503, "store_unavailable")


async def test_the_same_address_in_another_store_is_another_conversation(memory_world):
    """An archive beside the app's own store."""
    archive = MemoryStore()

    async def handler(request):
        conversation = await get_conversation(request)
        conversation.append(Message.user("kept twice"))
        async with open_conversation(conversation.key, store=archive) as copy:
            copy.append(*conversation.new_messages)
        return JSONResponse("ok")

    assert (await memory_world.serve(app_of(handler)).post()).data == "ok"
    assert len((await archive.load(ADA)).entries) == 1


async def test_an_id_is_issued_by_the_request_around_an_opened_conversation(memory_world):
    """The middleware's key, not the environment's."""

    async def handler(request):
        await get_conversation(request)
        async with open_conversation(SessionKey.for_user("bob")) as other:
            return JSONResponse(len(new_session_id(other.owner)))

    client = memory_world.serve(app_of(handler), settings=asgi_client.quick(client_ids="issued"))
    assert (await client.post()).data == 64


async def test_only_in_a_thread_the_missing_conversation_may_be_a_lost_context():
    """On the loop, the middleware is what is missing; in a thread it may be the way the thread was started."""
    with pytest.raises(NoConversation) as on_the_loop:
        current_conversation()
    assert "asyncio.to_thread" not in str(on_the_loop.value)
    with pytest.raises(NoConversation, match=r"No conversation here.*asyncio\.to_thread"):
        await asyncio.get_running_loop().run_in_executor(None, current_conversation)


async def test_a_conversation_is_read_without_a_turn(memory_world):
    """A list beside a chat is shown while the chat is being answered; what is read is not to be written."""
    store = memory_world.store
    async with open_conversation(ADA, store=store) as running:
        running.append(Message.user("one"))
        await running.save()
        async with read_conversation(ADA, store=store) as conversation:
            assert [message.text for message in conversation.messages] == ["one"]
            assert (conversation.busy, conversation.closed, conversation.total_turns) == (True, True, 1)
            assert [message.text for message in await conversation.history()] == ["one"]
            with pytest.raises(TurnClosed):
                conversation.append(Message.user("two"))
            with pytest.raises(TurnClosed):
                await conversation.clear()
            assert current_conversation() is running
    assert await memory_world.texts() == ["user: one"]


async def test_a_loss_is_reported_to_a_reader_once(memory_world):
    """As to everybody else: the next look starts from what is there."""

    async def handler(request):
        async with open_conversation(SessionKey.for_user("bob")) as other:
            other.append(Message.user("x"))
        memory_world.store.store = MemoryStore()
        with pytest.raises(HistoryLost):
            async with read_conversation(SessionKey.for_user("bob")):
                pass
        async with read_conversation(SessionKey.for_user("bob")) as other:
            return JSONResponse(other.is_new)

    assert (await memory_world.serve(app_of(handler)).get()).data is True
