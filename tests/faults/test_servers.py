"""A store's server is killed, stopped and cut off while clients talk to pods; what they were told is held against what is stored.

The evidence: what each client was told with the last byte of each answer, the turns each handler saw before it called its model,
one read in the end, the liveness route, the gaps of a ticking task, and the connections and bytes the proxy counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.faults.checker import Anomaly, names
from tests.faults.deployments import Deployment
from tests.faults.outages import Report, outage
from tests.faults.pods import Clients, Pod
from tests.faults.workers import told

LONGEST = 5.5
"""Seconds: an append is tried four times, each time waits 0.4 s for a connection and 0.4 s for a reply, and 0.75 s lie between; a busy
machine has the rest."""


MOST_TRIES_A_POD = 24
MOST_CONNECTIONS_A_POD = 10


# Killed, and started again


async def killed(deployment: Deployment, folder, **options) -> Report:
    """Kill the server with -9 under load, start it again after two seconds."""

    async def begin() -> None:
        await asyncio.to_thread(deployment.server.kill)

    async def end() -> None:
        await asyncio.to_thread(deployment.server.start)

    return await outage(deployment.url, deployment.direct, folder, begin, end, seconds=2.0, **options)


@pytest.mark.asyncio
async def test_a_server_killed_under_load_comes_back_with_every_acknowledged_turn(deployment, tmp_path):
    """Clients are told in time, nobody restarts anything, and nothing is lost, doubled or torn."""
    report = await killed(deployment, tmp_path / "history")
    assert report.complaints(longest=LONGEST) == []
    assert report.model_calls <= 8, "a model was called, and paid for, while nothing could be stored"
    assert report.recovered < 10


@pytest.mark.asyncio
async def test_twin_a_server_that_keeps_nothing_is_found_to_lose_turns(forgetful_deployment, tmp_path):
    """The same kill of a server without persistence; and then the losses are not silent."""
    report = await killed(forgetful_deployment, tmp_path / "history")
    assert "lost-turn" in names(report.anomalies), told(report.anomalies)
    assert "history_lost" in report.codes_afterwards


# Stopped


async def stopped(deployment: Deployment, folder, **options) -> Report:
    """Stop the server for longer than any turn has patience: it answers nothing, and then all that it was asked."""

    async def begin() -> None:
        deployment.server.pause()

    async def end() -> None:
        deployment.server.resume()

    try:
        return await outage(deployment.url, deployment.direct, folder, begin, end, seconds=6.5, **options)
    finally:
        deployment.server.resume()


@pytest.mark.asyncio
async def test_a_server_that_stands_still_is_a_503_in_bounded_time_and_no_turn_is_doubled(deployment, tmp_path):
    """What was sent is done when it goes on, although nobody waits for it any more: the very same entry is stored once."""
    report = await stopped(deployment, tmp_path / "history")
    assert report.complaints(longest=LONGEST) == []
    assert report.recovered < 10


@pytest.mark.asyncio
async def test_twin_a_blind_retry_is_found_to_double_turns(small_deployment, tmp_path):
    """The same pause, where what had no answer is sent again as something new."""
    report = await stopped(small_deployment, tmp_path / "history", plant="blind-retry")
    assert "duplicate" in names(report.anomalies), told(report.anomalies)


# The link


@asynccontextmanager
async def one_client(deployment: Deployment, folder, plant: str = "") -> AsyncIterator[tuple[Pod, Clients]]:
    """Return one pod, one client with a first turn stored, and a conversation."""
    pod = Pod(deployment.url, plant=plant)
    clients = Clients([pod], folder, count=1, conversations=["c0"])
    try:
        assert await take(pod, clients) == ""
        yield pod, clients
    finally:
        await pod.aclose()


async def take(pod: Pod, clients: Clients, *, stream: bool = False) -> str:
    """Take one turn; return the problem its client was told, empty for a success."""
    answer = await clients.clients[0].take(pod, "c0", stream=stream)
    return answer.code or ("" if answer.status == 200 else str(answer.status))


CUTS = [0, 1, 4, 7, 20]
"""Bytes of the reply to the append that still arrive."""


async def cut(deployment: Deployment, folder, after: int, plant: str = "") -> tuple[list[str], list[Anomaly], int]:
    """Cut the reply to an append; return what the client was told, what is wrong, and how many connections that took."""
    async with one_client(deployment, folder, plant) as (pod, clients):

        async def meanwhile() -> None:
            deployment.proxy.cut_reply_after(after)

        had = deployment.proxy.connections
        pod.meanwhile = meanwhile
        codes = [await take(pod, clients), await take(pod, clients)]
        await deployment.proxy.mend()
        return codes, await clients.judge(deployment.direct), deployment.proxy.connections - had


@pytest.mark.parametrize("after", CUTS)
@pytest.mark.asyncio
async def test_an_append_whose_reply_is_cut_is_sent_again_and_stored_once(deployment, tmp_path, after):
    """The outcome is unknown: only the entry's own id tells a retry from a new turn. The client sees a plain success."""
    codes, anomalies, connections = await cut(deployment, tmp_path / "history", after)
    assert codes == ["", ""]
    assert not anomalies, told(anomalies)
    assert connections >= 1, "nothing was cut"


@pytest.mark.asyncio
async def test_twin_a_blind_retry_of_a_cut_append_is_found_to_double_it(small_deployment, tmp_path):
    """The same cut, where the retry has a new id."""
    _, anomalies, connections = await cut(small_deployment, tmp_path / "history", 0, "blind-retry")
    assert connections >= 1
    assert "duplicate" in names(anomalies), told(anomalies)


@pytest.mark.parametrize("fault", ["reset", "turn_away", "refuse", "stall"])
@pytest.mark.asyncio
async def test_a_link_that_breaks_while_the_model_answers_costs_no_turn(deployment, tmp_path, fault):
    """Shorter than the patience of an append: it is stored all the same, once, and the client sees a plain success."""
    async with one_client(deployment, tmp_path / "history") as (pod, clients):

        async def meanwhile() -> None:
            done = getattr(deployment.proxy, fault)()
            if done is not None:
                await done
            asyncio.get_running_loop().call_later(0.15, lambda: mending.append(asyncio.ensure_future(deployment.proxy.mend())))

        mending: list[asyncio.Future[None]] = []
        pod.meanwhile = meanwhile
        codes = [await take(pod, clients), await take(pod, clients, stream=True)]
        await asyncio.gather(*mending)
        anomalies = await clients.judge(deployment.direct)
    assert codes == ["", ""]
    assert not anomalies, told(anomalies)


@pytest.mark.asyncio
async def test_a_slow_link_only_costs_time(deployment, tmp_path):
    """0.1 s in each direction: two round trips for a turn in one piece, and not one more."""
    async with one_client(deployment, tmp_path / "history") as (pod, clients):
        assert await take(pod, clients) == ""  # a statement is prepared when it is first needed
        deployment.proxy.delay = 0.1
        began, trips = time.monotonic(), deployment.proxy.round_trips
        assert await take(pod, clients) == ""
        seconds, trips = time.monotonic() - began, deployment.proxy.round_trips - trips
        await deployment.proxy.mend()
        anomalies = await clients.judge(deployment.direct)
    assert not anomalies, told(anomalies)
    assert trips == 2
    assert seconds >= 0.4


# Nobody there


async def away(deployment: Deployment, folder, how: str, *, seconds: float = 3.0, **options) -> tuple[Report, int, list[float]]:
    """Turn every connection away, or refuse it, or leave it without an answer; return how many were tried, and when."""
    proxy = deployment.proxy
    tried: list[int] = []

    async def begin() -> None:
        tried.append(proxy.connections)
        done = getattr(proxy, how)()
        if done is not None:
            await done

    async def end() -> None:
        tried.append(proxy.connections)
        await proxy.mend()

    report = await outage(deployment.url, deployment.direct, folder, begin, end, seconds=seconds, **options)
    return report, tried[1] - tried[0], proxy.connected_at[tried[0] :]


@pytest.mark.parametrize(("how", "seconds", "longest"), [("refuse", 4.0, 3.0), ("turn_away", 4.0, LONGEST), ("stall", 6.5, LONGEST)])
@pytest.mark.asyncio
async def test_a_store_out_of_reach_is_told_in_time_and_not_stormed(deployment, tmp_path, how, seconds, longest):
    """The app stays alive, no client waits long, the workers do not hammer at the door, and nobody has to restart them."""
    report, tried, at = await away(deployment, tmp_path / "history", how, seconds=seconds)
    assert report.complaints(longest=longest) == []
    assert report.recovered < 10
    assert tried <= 2 * MOST_TRIES_A_POD, f"{tried} connections for {report.asked} turns"
    assert len(at) - tried <= 2 * MOST_CONNECTIONS_A_POD, "when it came back, everybody came at once"
    assert deployment.proxy.open <= 2 * MOST_CONNECTIONS_A_POD


@pytest.mark.parametrize(("plant", "complaint"), [("blocking", "the event loop stood still"), ("patient", "a turn took")])
@pytest.mark.asyncio
async def test_twin_a_store_that_blocks_or_never_gives_up_is_complained_about(small_deployment, tmp_path, plant, complaint):
    """The same outage with a synchronous client, and with one that has no timeout."""
    report, _, _ = await away(small_deployment, tmp_path / "history", "refuse", seconds=5.0, plant=plant)
    assert any(said.startswith(complaint) for said in report.complaints(longest=3.0)), report


@pytest.mark.asyncio
async def test_twin_a_store_that_takes_an_outage_for_a_new_conversation_is_found(small_deployment, tmp_path):
    """The model is called with nothing before it, as if the user were new."""
    report, _, _ = await away(small_deployment, tmp_path / "history", "refuse", plant="outage-is-empty")
    assert names(report.anomalies) & {"stale-read-after-ack", "read-your-writes", "monotonic-reads"}, told(report.anomalies)
