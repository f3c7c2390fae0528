"""What happens to a Redis: it is flushed, evicts, runs out of memory, fails over with and without WAIT.

The evidence: what clients were told, how often the model was called, and one read in the end, held against each other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest
from redis.crc import key_slot

from convmem.stores.redis_layout import Keys
from tests.awake import Awake
from tests.faults.checker import Anomaly, names
from tests.faults.deployments import started
from tests.faults.pods import Clients, Pod
from tests.faults.waiting import until
from tests.faults.workers import told
from tests.faults.workload import key_of
from tests.servers.processes import HOST
from tests.wheels import valkey

QUICK = "?connect_timeout=1s&timeout=1s&unsafe=allow"


@dataclass(frozen=True)
class Stage:
    """One server, one pod on it, one client."""

    server: valkey.Valkey
    pod: Pod
    clients: Clients

    async def take(self, *, stream: bool = False) -> str:
        """Take one turn; return the problem the client was told, empty for a success."""
        answer = await self.clients.clients[0].take(self.pod, "c0", stream=stream)
        return answer.code or ("" if answer.status == 200 else str(answer.status))

    async def judge(self) -> list[Anomaly]:
        """Hold the history against what is stored."""
        return await self.clients.judge(f"{self.server.url}{QUICK}")


@asynccontextmanager
async def stage(folder: Path, *options: str, plant: str = "") -> AsyncIterator[Stage]:
    """Return a stage on which three turns have been stored."""
    with valkey.folder() as data, valkey.server(Path(data), *options) as server:
        pod = Pod(f"{server.url}{QUICK}", plant=plant)
        stage = Stage(server, pod, Clients([pod], folder, count=1, conversations=["c0"]))
        try:
            assert [await stage.take() for _ in range(3)] == ["", "", ""]
            yield stage
        finally:
            await pod.aclose()


# Flushed, evicted


LOSSES: dict[str, Callable[[valkey.Valkey], object]] = {
    "FLUSHALL": lambda server: server.ask("FLUSHALL"),
    "the row is evicted": lambda server: server.ask("DEL", Keys("convmem").of(key_of("c0"))[0].decode()),
    "the log is evicted": lambda server: server.ask("DEL", Keys("convmem").of(key_of("c0"))[1].decode()),
    "both are evicted": lambda server: server.ask("DEL", *(key.decode() for key in Keys("convmem").of(key_of("c0"))[:2])),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.asyncio
async def test_a_history_lost_between_turns_is_told_before_the_model_is_called_and_once(tmp_path, loss):
    """Also where only half of a conversation is gone. Nobody is locked out: the next turn begins anew."""
    async with stage(tmp_path / "history") as on:
        assert await asyncio.to_thread(LOSSES[loss], on.server) != "0"
        calls = on.pod.calls
        assert await on.take() == "history_lost"
        assert on.pod.calls == calls
        assert [await on.take(), await on.take(stream=True)] == ["", ""]
        assert names(await on.judge()) == {"lost-turn"}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.asyncio
async def test_a_history_lost_during_a_turn_is_told_and_the_turn_is_not_stored(tmp_path, loss):
    """Its answer was computed on what is gone."""
    async with stage(tmp_path / "history") as on:
        on.pod.meanwhile = lambda: asyncio.to_thread(LOSSES[loss], on.server)
        assert await on.take() == "history_lost"
        assert [await on.take(), await on.take(stream=True)] == ["", ""]
        anomalies = await on.judge()
        assert names(anomalies) == {"lost-turn"}
        assert "p0-4" not in {anomaly.detail for anomaly in anomalies}


@pytest.mark.parametrize("when", ["between", "during"])
@pytest.mark.asyncio
async def test_twin_an_app_that_does_not_look_begins_anew_in_silence(tmp_path, when):
    """The same FLUSHALL, where entries that are gone are taken for ones that never were: turns are lost and nobody is told."""
    async with stage(tmp_path / "history", plant="forgetful") as on:
        if when == "between":
            await asyncio.to_thread(LOSSES["FLUSHALL"], on.server)
        else:
            on.pod.meanwhile = lambda: asyncio.to_thread(LOSSES["FLUSHALL"], on.server)
        assert [await on.take(), await on.take()] == ["", ""]
        assert "lost-turn" in names(await on.judge())


@pytest.mark.asyncio
async def test_a_server_that_evicts_is_noticed_for_every_conversation_that_lost_a_turn(tmp_path):
    """`maxmemory-policy allkeys-random`, filled up by others: whatever goes, nothing goes in silence, and nothing is torn."""
    names_of = [f"c{number}" for number in range(12)]
    with valkey.folder() as data, valkey.server(Path(data), "--maxmemory", "8mb", "--maxmemory-policy", "allkeys-random") as server:
        pods = [Pod(f"{server.url}{QUICK}") for _ in range(2)]
        clients = Clients(pods, tmp_path / "history", count=4, conversations=names_of, pause=0.0)
        async with clients:
            await clients.until(60)
            await clients.stop()
            await asyncio.to_thread(fill, server, 9)
            since = time.monotonic()
            clients.start()
            await clients.until(80)
            anomalies = await clients.judge(f"{server.url}{QUICK}")
        for pod in pods:
            await pod.aclose()
    lost = {anomaly.detail for anomaly in anomalies if anomaly.name == "lost-turn"}
    assert lost, "the test did not bite"
    assert clients.unaware(lost, since) == []
    assert names(anomalies) <= {"lost-turn", "lost-after-read"}, told(anomalies)


def fill(server: valkey.Valkey, megabytes: int) -> None:
    """Fill the server with what has nothing to do with conversations."""
    for number in range(megabytes * 10):
        server.ask("SET", f"other:{number}", "x" * 100_000)


# Out of memory


@pytest.mark.asyncio
async def test_without_memory_a_turn_is_refused_before_the_model_is_called(tmp_path):
    """`noeviction`: writes fail with OOM. A 503 that costs nothing; reading goes on; with memory all goes on."""
    async with stage(tmp_path / "history") as on:
        await asyncio.to_thread(on.server.ask, "CONFIG", "SET", "maxmemory", "1mb")
        calls = on.pod.calls
        assert [await on.take(), await on.take(stream=True)] == ["store_unavailable", "store_unavailable"]
        assert on.pod.calls == calls
        await asyncio.to_thread(on.server.ask, "CONFIG", "SET", "maxmemory", "0")
        assert await on.take() == ""
        anomalies = await on.judge()
        assert not anomalies, told(anomalies)


@pytest.mark.asyncio
async def test_memory_that_runs_out_during_a_turn_refuses_it_whole(tmp_path):
    """Nothing of it is stored, or all: not half."""
    async with stage(tmp_path / "history") as on:
        on.pod.meanwhile = lambda: asyncio.to_thread(on.server.ask, "CONFIG", "SET", "maxmemory", "1mb")
        assert await on.take() == "store_unavailable"
        await asyncio.to_thread(on.server.ask, "CONFIG", "SET", "maxmemory", "0")
        assert await on.take() == ""
        anomalies = await on.judge()
        assert not anomalies, told(anomalies)


@pytest.mark.asyncio
async def test_twin_a_store_that_takes_a_refusal_for_an_empty_history_is_found_to_call_the_model(tmp_path):
    """The same, where a load that fails is a new conversation, at a worker that has not seen another and for a client without revision."""
    async with stage(tmp_path / "history") as on:
        await asyncio.to_thread(on.server.ask, "CONFIG", "SET", "maxmemory", "1mb")
        other = Pod(f"{on.server.url}{QUICK}", plant="outage-is-empty")
        on.clients.clients[0].revisions.clear()
        await on.clients.clients[0].take(other, "c0")
        await other.aclose()
        assert other.calls == 1
        await asyncio.to_thread(on.server.ask, "CONFIG", "SET", "maxmemory", "0")
        assert names(await on.judge()) & {"read-your-writes", "monotonic-reads"}


# Failing over


UNACKNOWLEDGED = {"dirty-read", "lost-after-read"}
"""A primary shows what no replica has confirmed yet. Who had read that is refused when it is gone: see docs/explanation/faults.md."""


CONFIRMED_BY = {"replicas": "&durability=replicas&replicas_timeout=0.3s", "none": "&durability=none"}
FELT: dict[str, Callable[[Clients, float], bool]] = {
    "replicas": lambda clients, since: clients.longest(since) > 0.6,
    "none": lambda clients, since: clients.stored_since(since) >= 8,
}
"""When a replica that was cut off has been: a client waits for it, or turns are stored that it has not got."""


@dataclass(frozen=True)
class Failover:
    """What came of one.

    Attributes:
        lost: Acknowledged turns that are gone.
        unaware: Those of them whose client came back and was not told.
        anomalies: All that is wrong.
        recovered: Awake seconds from when the servers were ready again until each client had a turn stored.
        codes: What clients were told.
    """

    lost: set[str]
    unaware: list[str]
    anomalies: list[Anomaly]
    recovered: float
    codes: set[str]


async def fail_over(
    url: str,
    folder: Path,
    behind: Callable[[], Awaitable[None]],
    die: Callable[[], Awaitable[None]],
    come_back: Callable[[], Awaitable[None]],
    *,
    durability: str,
    conversations: list[str],
) -> Failover:
    """Let clients write, cut the replica off, let them try on until they feel it, kill the primary, and wait until all are served again."""
    pods = [Pod(f"{url}{QUICK}{CONFIRMED_BY[durability]}", turn_wait="2s") for _ in range(2)]
    try:
        async with Clients(pods, folder, count=4, conversations=conversations, pause=0.02) as clients:
            await clients.until(16)
            await behind()
            cut = time.monotonic()
            await until(lambda: FELT[durability](clients, cut))
            await die()
            await come_back()
            since = time.monotonic()
            with Awake() as clock:
                await clients.until_each_is_served()
                recovered = clock()
            await clients.until(8)
            anomalies = await clients.judge(f"{url}{QUICK}")
    finally:
        for pod in pods:
            await pod.aclose()
    lost = {anomaly.detail for anomaly in anomalies if anomaly.name == "lost-turn"}
    return Failover(lost, clients.unaware(lost, since), anomalies, recovered, clients.codes())


def in_the_first_shard(count: int) -> list[str]:
    """Return names of conversations whose slot is one of the first third."""
    found = (name for name in map("c{}".format, range(1000)) if key_slot(Keys("convmem").of(key_of(name))[0]) < valkey.SLOTS // 3)
    return list(islice(found, count))


async def cluster_failover(folder: Path, durability: str) -> Failover:
    """Cut the replica of one of three shards off, kill its primary, and start it again once the replica has taken over."""
    with started(valkey.Cluster) as cluster:
        primary, replica = cluster.primaries[0], cluster.replicas[0]

        async def behind() -> None:
            replica.pause()
            await asyncio.to_thread(primary.ask, "CLIENT", "KILL", "TYPE", "replica")

        async def die() -> None:
            primary.kill()
            replica.resume()
            await asyncio.to_thread(cluster.fail_over_soon)

        async def come_back() -> None:
            await until(lambda: replica.info("role") == "master")
            await asyncio.to_thread(primary.start)

        try:
            return await fail_over(cluster.url, folder, behind, die, come_back, durability=durability, conversations=in_the_first_shard(4))
        finally:
            replica.resume()


@pytest.mark.asyncio
async def test_a_cluster_that_fails_over_loses_no_acknowledged_turn_when_a_replica_confirms_each(tmp_path):
    """`durability=replicas`: what the replica had not got was never acknowledged."""
    failover = await cluster_failover(tmp_path / "history", "replicas")
    assert names(failover.anomalies) <= UNACKNOWLEDGED, told(failover.anomalies)


@pytest.mark.asyncio
async def test_twin_a_cluster_nobody_waits_for_is_found_to_lose_turns_and_clients_are_told(tmp_path):
    """The same failover with `durability=none`: acknowledged turns are gone, and not in silence."""
    failover = await cluster_failover(tmp_path / "history", "none")
    assert failover.lost
    assert "history_lost" in failover.codes
    assert failover.unaware == []


async def sentinel_failover(folder: Path, durability: str) -> Failover:
    """Cut the one replica off and kill its primary; Sentinels promote the replica, and the dead server starts again as its replica."""
    with started(valkey.Sentinels) as sentinels:
        primary, replica = sentinels.data.primary, sentinels.data.replicas[0]

        async def behind() -> None:
            # Not paused, as in the cluster: Sentinels promote no server they had to do without a moment ago.
            replica.ask("CONFIG", "SET", "masterauth", "not the password")
            await asyncio.to_thread(primary.ask, "CLIENT", "KILL", "TYPE", "replica")
            await asyncio.to_thread(valkey.until, lambda: replica.info("master_link_status") == "down")

        async def die() -> None:
            primary.kill()
            await asyncio.to_thread(sentinels.fail_over_soon)

        async def come_back() -> None:
            await asyncio.to_thread(valkey.until, lambda: replica.info("role") == "master")  # it hangs up on clients meanwhile
            # Sentinels let a primary that comes back be one for eight seconds; who deploys it asks them first.
            primary.options += ["--replicaof", f"{HOST} {replica.port}"]
            await asyncio.to_thread(primary.start)

        names_of = [f"c{number}" for number in range(4)]
        return await fail_over(sentinels.url, folder, behind, die, come_back, durability=durability, conversations=names_of)


@pytest.mark.asyncio
async def test_sentinels_that_promote_a_replica_lose_no_acknowledged_turn_when_it_confirms_each(tmp_path):
    """`durability=replicas`; and the same pods find the new primary by themselves, before anybody restarts them."""
    failover = await sentinel_failover(tmp_path / "history", "replicas")
    assert names(failover.anomalies) <= UNACKNOWLEDGED, told(failover.anomalies)
    assert "history_lost" not in failover.codes
    assert failover.recovered < 12


@pytest.mark.asyncio
async def test_twin_a_primary_behind_sentinels_nobody_waited_for_is_found_to_have_lost_turns_and_clients_are_told(tmp_path):
    """The same failover with `durability=none`: acknowledged turns are gone, and not in silence."""
    failover = await sentinel_failover(tmp_path / "history", "none")
    assert failover.lost
    assert "history_lost" in failover.codes
    assert failover.unaware == []
