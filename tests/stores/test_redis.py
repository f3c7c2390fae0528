"""What RedisStore promises beyond the contract: its trips and bytes, and that nothing a server does is a silent loss."""

from __future__ import annotations

import asyncio
import gc
import re
import ssl
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from redis.asyncio import Redis, RedisCluster
from redis.crc import key_slot

from benchmarks.counting import calls
from convmem import ConfigurationError, Message, RedisStore, SessionKey, Store, StoreUnavailable, open_conversation, open_store
from convmem.identifiers import new_id, new_token
from convmem.messages import encode_message, encode_messages
from convmem.stores.base import TOMBSTONE_LIFE, Entry, Head, Kind, Lease, Outcome
from convmem.stores.redis import UnsafeRedisWarning
from convmem.stores.redis_address import wire_at
from convmem.stores.redis_layout import Keys
from convmem.stores.redis_server import Report
from convmem.stores.redis_wire import Acks, Patience, SingleWire, slot_of
from convmem.testing import Writer
from convmem.testing.writer import LONG, PAST_SHORT, SHORT, fresh_key
from tests.awake import Awake
from tests.faults.pods import ticking
from tests.faults.proxy import Proxy
from tests.faults.waiting import until
from tests.servers.processes import HOST, PATIENCE, free_port
from tests.wheels import valkey
from tests.wheels.certificate import certificate

pytestmark = pytest.mark.asyncio

WINDOW = 50
QUESTION, ANSWER = "q" * 200, "a" * 800
OF_REDIS_6 = b"-ERR Error running script (call to f_24): @user_script:5: @user_script: 5: "
"""How it begins what a command in a script is told."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[valkey.Valkey]:
    """Return a server that a test may hurt."""
    with valkey.server(tmp_path / "server", "--appendfsync", "always", "--enable-debug-command", "yes") as running:
        yield running


@asynccontextmanager
async def saying(port: int, instead_of: bytes, words: bytes) -> AsyncIterator[int]:
    """Yield a port behind which is a server that says something in other words."""

    async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(2**16):
                target.write(data.replace(instead_of, words))
        target.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(HOST, port)
        carried.append(asyncio.gather(pass_on(reader, back), pass_on(there, writer)))

    carried: list[asyncio.Future[Any]] = []
    listener = await asyncio.start_server(serve, HOST, 0)
    yield listener.sockets[0].getsockname()[1]
    listener.close()
    await asyncio.gather(*carried)


def at(port: int, **options: str | int) -> Store:
    """Return a store at a port of the loopback."""
    return open_store(f"redis://{HOST}:{port}?{urlencode(options)}")


def body() -> bytes:
    """Return a question of 200 bytes and an answer of 800, as they are stored."""
    return encode_messages(encode_message(message) for message in (Message.user(QUESTION), Message.assistant(ANSWER)))


def whole(writer: Writer) -> Entry:
    """Return a turn of one entry, which names it, as convmem's own do."""
    turn = new_id()
    return replace(writer.entry(turn=turn, body=body(), count=2), id=turn)


async def grown(store: Store, turns: int) -> Writer:
    """Return the writer of a conversation of so many turns."""
    writer = Writer(store)
    for _ in range(turns):
        await writer.append(whole(writer))
    return writer


class TestCost:
    """One round trip each way, and nothing grows with what is stored."""

    async def turn(self, proxy: Proxy, writer: Writer) -> tuple[int, int]:
        """Do what a request does; return its trips, and its bytes beyond the messages themselves."""
        proxy.count_anew()
        writer.token = new_token()
        log = await writer.store.load(writer.key, turns=WINDOW, lease=Lease(writer.token, LONG))
        assert log.holder.token == writer.token
        entry = whole(writer)
        await writer.append(entry, release=True)
        messages = len(entry.body) + sum(len(stored.entry.body) for stored in log.entries)
        return proxy.round_trips, proxy.sent + proxy.received - messages - 53 * len(log.entries)

    async def cost(self, sizes: tuple[int, ...], server: valkey.Valkey) -> dict[int, tuple[int, int]]:
        costs = {}
        async with Proxy(HOST, server.port) as proxy, at(proxy.port) as store, at(server.port) as direct:
            for size in sizes:
                grown_one = await grown(direct, size)
                writer = Writer(store, grown_one.key)
                writer.head = grown_one.head
                await self.turn(proxy, writer)
                costs[size] = await self.turn(proxy, writer)
        return costs

    async def test_a_turn_is_two_trips_and_its_bytes_do_not_grow(self, server: valkey.Valkey) -> None:
        """P9, counted on the wire: the window, the new messages, 53 bytes an entry, and what two calls take: half of it the keys."""
        costs = await self.cost((0, 10, 100, 1000), server)
        assert {trips for trips, _ in costs.values()} == {2}
        assert all(beyond <= 830 for _, beyond in costs.values()), costs
        assert abs(costs[1000][1] - costs[100][1]) < 53, costs

    async def test_a_turn_is_so_many_commands_of_the_server(self, server: valkey.Valkey) -> None:
        """The server is what all workers share: what a turn costs it are the commands of its scripts, and none of them is for nothing."""
        async with at(server.port) as store:
            writer = await grown(store, 60)
            await store.load(writer.key, turns=WINDOW)
            server.ask("CONFIG", "RESETSTAT")
            log = await store.load(writer.key, turns=WINDOW, lease=Lease(writer.token, LONG))
            await writer.append(whole(writer), release=True)
            done = dict(re.findall(r"cmdstat_(\w+):calls=(\d+)", server.ask("INFO", "commandstats")))
            assert len(log.entries) == WINDOW
            assert {name: int(calls) for name, calls in done.items()} == {
                "evalsha": 2,
                "lrange": 1,
                "time": 2,
                "hmget": 2,
                "llen": 2,
                "hset": 2,
                "rpush": 1,
                "zadd": 1,
            }

    async def test_a_window_nobody_looks_at_is_not_unpacked(self, server: valkey.Valkey) -> None:
        """A handler that only appends pays for bytes that arrive, not for what is in them; and whoever looks sees all of it."""
        async with at(server.port) as store:
            writer = await grown(store, WINDOW)
            counts = []
            for turns in (5, WINDOW):
                log = await store.load(writer.key, turns=turns)
                with calls() as counted:
                    again = await store.load(writer.key, turns=turns)
                counts.append(counted.total)
                assert len(again.entries) == turns
                assert [stored.n for stored in log.entries] == list(range(WINDOW - turns + 1, WINDOW + 1))
            assert counts[0] == counts[1] <= 29

    async def test_a_turn_calls_no_more_functions_than_it_did(self, server: valkey.Valkey) -> None:
        """With many sessions at once the client's Python is the limit: it is the same on every machine, and in every release."""
        async with at(server.port) as store:
            writer = await grown(store, 1)
            await store.load(writer.key, turns=WINDOW)
            entry, lease = whole(writer), Lease(writer.token, LONG)
            with calls() as counted:
                log = await store.load(writer.key, turns=WINDOW, lease=lease)
                await store.append(writer.key, log.head, entry, release=True)
            assert counted.total <= 59, counted.of
            assert counted.of["stores/redis_wire.py:data_received"] == 2
            assert [stored.entry for stored in (await store.load(writer.key)).entries][-1:] == [entry]

    async def test_a_turn_with_an_edit_in_its_middle_comes_whole(self, server: valkey.Valkey) -> None:
        """What is out of sight just in front of the last entries may stand between two of one turn."""
        async with at(server.port) as store:
            writer = await grown(store, 1)
            first = await writer.append(writer.entry(closing=False))
            await writer.append(writer.entry(kind=Kind.EDIT, adds=0))
            await writer.append(writer.entry(turn=first.turn, adds=0))
            assert [stored.n for stored in (await store.load(writer.key, turns=1)).entries] == [2, 4]

    @pytest.mark.parametrize("meanwhile", ["another turn", "a deletion", "a new life"])
    async def test_a_log_that_moves_in_the_middle_of_a_load_is_loaded_again(self, server: valkey.Valkey, meanwhile: str) -> None:
        """The entries are read by a command behind the script: what another worker writes between the two is never mixed in."""
        async with at(server.port) as other:
            writer = await grown(other, 3)

            async def write() -> None:
                if meanwhile == "another turn":
                    await writer.append()
                    return
                await other.delete(writer.key)
                if meanwhile == "a new life":
                    await writer.load()
                    for _ in range(3):
                        await writer.append()

            wire = Interrupted(server.port, write)
            async with RedisStore(wire) as store:
                await store.load(writer.key)
                wire.armed = True
                log = await store.load(writer.key, turns=2)
                assert not wire.armed
            await writer.load()
            assert log.head == writer.head
            assert [stored.n for stored in log.entries] == list(range(1, writer.head.n + 1))[-2:]
            assert all(stored.entry.epoch == writer.head.epoch for stored in log.entries)

    @pytest.mark.all_only
    async def test_also_with_ten_thousand_messages(self, server: valkey.Valkey) -> None:
        """The same, longer."""
        costs = await self.cost((100, 10_000), server)
        assert costs[10_000][0] == 2
        assert abs(costs[10_000][1] - costs[100][1]) < 56, costs

    async def test_a_load_does_not_read_what_is_hidden(self, server: valkey.Valkey) -> None:
        """A history that was archived entry by entry costs next to nothing to pass."""
        async with Proxy(HOST, server.port) as proxy, at(proxy.port) as store:
            writer = await grown(store, 300)
            await writer.append(writer.entry(kind=Kind.EDIT, hides=tuple(range(3, 300)), adds=-297))
            await store.load(writer.key, turns=1)
            proxy.count_anew()
            server.ask("CONFIG", "RESETSTAT")
            log = await store.load(writer.key, turns=2)
            assert [stored.n for stored in log.entries] == [2, 300]
            assert (proxy.round_trips, proxy.received < 10_000) == (1, True)
            # One of the reads is that of the last entries, by the caller.
            reads, chunks = (int(re.findall(r"calls=(\d+)", server.info(f"cmdstat_{name}"))[0]) for name in ("lrange", "hget"))
            assert (reads <= 3, chunks <= 6) == (True, True)

    async def test_a_stored_message_takes_little_more_than_its_text(self, server: valkey.Valkey) -> None:
        """Memory is what Redis costs: at most 1.15 times the bytes of the messages, with head, index and turns."""
        async with at(server.port) as store:
            await grown(store, 1)
            before = int(server.info("used_memory"))
            size = 0
            for _ in range(4):
                writer = await grown(store, 250)
                size += 250 * len(writer.entry(body=body()).body)
            assert (int(server.info("used_memory")) - before) / size < 1.15

    async def test_calls_of_many_tasks_share_trips(self, server: valkey.Valkey) -> None:
        """What waits in one step of the event loop is written at once: the client library is the limit, not Redis."""
        async with Proxy(HOST, server.port) as proxy, at(proxy.port) as store:
            await store.check()
            proxy.count_anew()
            await asyncio.gather(*(store.load(fresh_key()) for _ in range(32)))
            assert proxy.round_trips <= 3


class Interrupted(SingleWire):
    """A way on which somebody else's commands come between two that were sent together, once."""

    def __init__(self, port: int, meanwhile: Callable[[], Awaitable[None]]) -> None:
        """Know what happens in between."""
        way = wire_at("redis", f"{HOST}:{port}", {}, Patience())
        super().__init__(lambda: way._make(None), Patience(), "interrupted")
        self.meanwhile, self.armed = meanwhile, False

    async def send(self, key: bytes | None, *commands: bytes, acks: Acks | None = None, again: bool = True) -> list[Any]:
        """Send one command after the other."""
        if not self.armed or len(commands) == 1:
            return await super().send(key, *commands, acks=acks, again=again)
        self.armed = False
        first = await super().send(key, commands[0])
        await self.meanwhile()
        return first + await super().send(key, *commands[1:])


class TestLeases:
    """A lease need not survive a crash, so it costs no flush and no replica anything."""

    async def test_a_lease_costs_no_log_and_no_replication(self, tmp_path: Path) -> None:
        """Every request takes and releases one; an append-only file would grow by them for ever."""
        with valkey.Replicated(tmp_path, 1, "--repl-ping-replica-period", "3600") as group:
            async with at(group.primary.port) as store:
                writer = await grown(store, 1)
                group.wait_until_equal()
                names = ("master_repl_offset", "aof_current_size")
                before = [group.primary.info(name) for name in names]
                for key in (writer.key, fresh_key()):
                    for _ in range(20):
                        lease = Lease(new_token(), LONG)
                        head = (await store.load(key, lease=lease)).head
                        assert await store.renew(key, lease, head)
                        await store.release(key, lease.token)
                assert [group.primary.info(name) for name in names] == before
                await writer.append()
                assert [group.primary.info(name) for name in names] != before

    async def test_a_replica_and_a_restart_have_what_the_primary_has(self, tmp_path: Path) -> None:
        """What is not replicated must never lead to a log that differs: not after a full sync, a rewrite or a restart between."""
        with valkey.Replicated(tmp_path, 1, "--enable-debug-command", "yes", "--appendfsync", "always") as group:
            async with at(group.primary.port) as store:
                writers = [Writer(store) for _ in range(8)]
                await writers[0].append()
                await writers[1].append(ttl=LONG)
                await store.delete(writers[2].key)
                for writer in writers:
                    await writer.seize(LONG)
                group.replicas[0].kill()
                group.primary.ask("BGREWRITEAOF")
                group.replicas[0].start()
                group.wait_until_ready()
                valkey.until(lambda: group.primary.info("aof_rewrite_in_progress") == "0")
                for number, writer in enumerate(writers):
                    if number in (3, 4):
                        await store.release(writer.key, writer.token)
                    await writer.append(release=number != 5, ttl=SHORT if number == 6 else None)
                await asyncio.sleep(PAST_SHORT)
                await writers[6].load()
                await writers[6].append()
                await store.delete(writers[7].key)
                await store.release(writers[5].key, writers[5].token)
                group.wait_until_equal()
                expected = await contents(group.primary)
                assert len(expected) == 7 * 3 + 1
                assert all(lives for _, lives in expected.values())
                assert await contents(group.replicas[0]) == expected
                group.primary.kill()
                group.primary.start()
                assert await contents(group.primary) == expected
                for writer in writers[:7]:
                    assert (await store.load(writer.key)).head == writer.head


async def contents(server: valkey.Valkey) -> dict[bytes, tuple[object, bool]]:
    """Return all a server holds but leases, with whether it stays for ever or as long as a tombstone."""
    client = Redis(port=server.port)
    found: dict[bytes, tuple[object, bool]] = {}
    async for key in client.scan_iter():
        kind, value = await client.type(key), object()
        if kind == b"hash":
            value = {name: text for name, text in (await client.hgetall(key)).items() if name != b"l"}
        elif kind == b"list":
            value = await client.lrange(key, 0, -1)
        else:
            value = await client.zrange(key, 0, -1, withscores=True)
        lives = await client.pttl(key)
        found[key] = value, lives == -1 or (key.startswith(b"convmem:c:") and b"m" in value and b"h" not in value)
    await client.aclose()
    return {key: each for key, each in found.items() if each[0]}


class TestLosses:
    """Whatever a server forgets, evicts or refuses is an error or evidence, never a new conversation in silence."""

    @pytest.mark.parametrize("half", ["c", "e"])
    async def test_an_evicted_half_is_an_absent_conversation_and_a_gap(self, server: valkey.Valkey, half: str) -> None:
        """The two keys of a conversation are evicted one by one: what is left of it is never taken for the whole."""
        async with at(server.port) as store:
            writer = await grown(store, 3)
            server.ask("DEL", f"convmem:{half}:{{{'/'.join(writer.key.path)}}}")
            log = await store.load(writer.key, turn="x")
            assert (log.head, log.entries, log.expired) == (Head(), (), False)
            assert (await store.list(writer.key.owner)).items == ()
            answer = await writer.offer()
            assert (answer.outcome, answer.head) == (Outcome.GAP, Head())
            again = Writer(store, writer.key)
            entry = await again.append(again.entry(kind=Kind.EDIT))
            await again.append()
            assert again.head.n == 2
            assert (await store.load(writer.key, turn=entry.turn)).turn is not None
            assert len(await again.visible()) == 1
            assert (await writer.offer()).outcome is Outcome.GAP

    @pytest.mark.parametrize(("policy", "ttl"), [("allkeys-lru", None), ("allkeys-random", None), ("volatile-ttl", LONG)])
    async def test_a_server_that_evicts_never_restarts_a_conversation_in_silence(
        self, server: valkey.Valkey, policy: str, ttl: timedelta | None
    ) -> None:
        """Every acknowledged conversation is whole, or gone and a gap to who wrote it; and some are gone, or this tested nothing."""
        server.ask("CONFIG", "SET", "maxmemory-policy", policy)
        server.ask("CONFIG", "SET", "maxmemory", int(server.info("used_memory")) + 1_500_000)
        async with at(server.port, unsafe="allow") as store:
            writers = [Writer(store) for _ in range(120)]
            outcomes = []
            for _ in range(12):
                for writer in writers:
                    log = await store.load(writer.key)
                    assert log.head in (writer.head, Head())
                    assert [stored.n for stored in log.entries] == list(range(1, log.head.n + 1))
                    answer = await writer.offer(writer.entry(body=body(), count=2), ttl=ttl)
                    outcomes.append(answer.outcome)
                    if answer.outcome is Outcome.STORED:
                        assert answer.head.n == writer.head.n + 1
                        writer.head = answer.head
                    else:
                        assert (answer.outcome, answer.head) == (Outcome.GAP, Head())
                        writer.head = Head()
            assert outcomes.count(Outcome.GAP) > 20

    async def test_a_full_server_refuses_before_the_model_is_called(self, server: valkey.Valkey) -> None:
        """Out of memory is said at the load that takes the lease; nothing is half stored, and a delete makes room."""
        async with at(server.port) as store:
            writer = await grown(store, 3)
            server.ask("CONFIG", "SET", "maxmemory", 1)
            digest = server.ask("DEBUG", "DIGEST")
            for call in (
                lambda: store.load(writer.key, lease=Lease(writer.token, LONG)),
                writer.offer,
                lambda: writer.offer(writer.entry(kind=Kind.RESET), ttl=LONG, release=True),
                Writer(store).offer,
                store.check,
            ):
                with pytest.raises(StoreUnavailable, match="reached its maxmemory and refuses to write; raise maxmemory") as caught:
                    await call()
                assert not caught.value.unknown
            assert server.ask("DEBUG", "DIGEST") == digest
            assert len((await store.load(writer.key)).entries) == 3
            assert await store.delete(writer.key)
            server.ask("CONFIG", "SET", "maxmemory", 0)
            await writer.load()
            await writer.append()

    async def test_a_server_that_forgets_its_scripts_is_taught_again(self, server: valkey.Valkey) -> None:
        """A restart, a failover or SCRIPT FLUSH empties the cache of scripts in the middle of a turn."""
        async with at(server.port) as store:
            writer = Writer(store)
            for _ in range(2):
                server.ask("SCRIPT", "FLUSH")
                await writer.seize()
                server.ask("SCRIPT", "FLUSH")
                await writer.append(release=True)
            assert len(await writer.visible()) == 2

    async def test_what_was_acknowledged_outlives_a_kill(self, server: valkey.Valkey) -> None:
        """The same object goes on by itself when the server is back."""
        async with at(server.port) as store:
            writer = await grown(store, 2)
            server.kill()
            with pytest.raises(StoreUnavailable):
                await at(server.port, connect_timeout="0.1s").load(writer.key)
            server.start()
            await writer.append()
            assert (await store.load(writer.key)).head == writer.head


class TestReplicas:
    """durability=replicas: an append is acknowledged when so many replicas have it."""

    async def test_too_few_replicas_is_unknown_also_for_the_repeat(self, tmp_path: Path) -> None:
        """WAIT counts the writes of its own connection: a repeat that wrote nothing would be confirmed for nothing."""
        with valkey.Replicated(tmp_path) as group:
            options = {"durability": "replicas", "replicas_timeout": "100ms"}
            async with at(group.primary.port, **options) as store:
                writer = Writer(store)
                await writer.append()
                group.replicas[0].pause()
                entry = writer.entry()
                with pytest.raises(StoreUnavailable, match="0 of 1 replicas have confirmed it in time") as caught:
                    await writer.offer(entry)
                assert caught.value.unknown
                async with at(group.primary.port, **options) as other:
                    writer.store = other
                    with pytest.raises(StoreUnavailable) as caught:
                        await writer.offer(entry)
                    assert caught.value.unknown
                    group.replicas[0].resume()
                    assert (await writer.offer(entry)).outcome is Outcome.DUPLICATE
                group.primary.kill()
                group.replicas[0].ask("REPLICAOF", "NO", "ONE")
                async with at(group.replicas[0].port) as promoted:
                    assert entry.id in await Writer(promoted, writer.key).visible()

    async def test_what_is_refused_needs_no_replica(self, tmp_path: Path) -> None:
        """A conflict stored nothing, so there is nothing to confirm; a load waits for no replica either."""
        with valkey.Replicated(tmp_path) as group:
            async with at(group.primary.port, durability="replicas", replicas_timeout="4s") as store:
                writer = Writer(store)
                await writer.append()
                group.replicas[0].pause()
                late = Writer(store, writer.key)
                slow = asyncio.create_task(late.offer())
                with Awake() as clock:
                    assert (await store.load(writer.key)).head == writer.head
                    assert clock() < 3
                await asyncio.wait([slow])
                assert slow.result().outcome is Outcome.CONFLICT
                group.replicas[0].resume()

    async def test_a_confirmed_append_is_one_trip(self, tmp_path: Path) -> None:
        """WAIT goes with the append, on the same connection."""
        with valkey.Replicated(tmp_path) as group:
            async with Proxy(HOST, group.primary.port) as proxy, at(proxy.port, durability="replicas") as store:
                writer = await grown(store, 1)
                proxy.count_anew()
                await writer.append()
                assert proxy.round_trips == 1


class TestDurability:
    """What an acknowledged append survives, by how the server is set up: the table of docs/how-to/redis.md."""

    @pytest.mark.parametrize(
        ("options", "loses"),
        [
            (("--save", "3600 1", "--appendonly", "no"), True),
            (("--save", "", "--appendonly", "yes", "--appendfsync", "everysec"), False),
            (("--save", "", "--appendonly", "yes", "--appendfsync", "always"), False),
        ],
        ids=["snapshots", "everysec", "always"],
    )
    async def test_a_server_killed_and_started_again(self, tmp_path: Path, options: tuple[str, ...], loses: bool) -> None:
        """With snapshots alone acknowledged turns are gone: it is what a warning is about, and shows that this test can see a loss."""
        with valkey.Valkey(tmp_path / "server", *options) as server:
            async with at(server.port, unsafe="allow") as store:
                acknowledged = await written_until(store, server.kill)
                server.start()
                lost = await missing(store, acknowledged)
        print(f"acknowledged {len(acknowledged)}, lost {len(lost)}")
        assert bool(lost) == loses, (len(acknowledged), len(lost))

    @pytest.mark.parametrize(("durability", "loses"), [("none", True), ("replicas", False)])
    async def test_a_primary_that_dies_while_its_replica_is_cut_off(self, tmp_path: Path, durability: str, loses: bool) -> None:
        """A failover to a replica that is behind: what it had not confirmed is gone, and with durability=replicas never acknowledged."""
        with valkey.Replicated(tmp_path) as group:
            async with at(group.primary.port, durability=durability, replicas_timeout="100ms", unsafe="allow") as store:
                await store.check()

                def cut() -> None:
                    group.primary.ask("CONFIG", "SET", "requirepass", "changed")
                    with suppress(OSError):
                        group.replicas[0].ask("CLIENT", "KILL", "TYPE", "master")

                acknowledged = await written_until(store, cut, more=20 if loses else 0, seconds=0.4)
                group.primary.kill()
                group.replicas[0].ask("REPLICAOF", "NO", "ONE")
                async with at(group.replicas[0].port, unsafe="allow") as promoted:
                    lost = await missing(promoted, acknowledged)
        print(f"acknowledged {len(acknowledged)}, lost {len(lost)}")
        assert bool(lost) == loses, (len(acknowledged), len(lost))


async def written_until(store: Store, accident: Callable[[], None], *, more: int = 0, seconds: float = 0.0) -> list[tuple[SessionKey, str]]:
    """Write from eight tasks, have an accident, and go on for some more entries and seconds; return what was acknowledged."""
    acknowledged: list[tuple[SessionKey, str]] = []

    async def write() -> None:
        while True:
            writer = Writer(store)
            with suppress(StoreUnavailable):
                while writer.head.n < 5:
                    entry = await writer.append()
                    acknowledged.append((writer.key, entry.id))

    writing = [asyncio.create_task(write()) for _ in range(8)]
    await until(lambda: len(acknowledged) >= 100)
    await asyncio.to_thread(accident)
    had = len(acknowledged)
    await until(lambda: len(acknowledged) >= had + more)
    await asyncio.sleep(seconds)
    for task in writing:
        task.cancel()
    await asyncio.gather(*writing, return_exceptions=True)
    return acknowledged


async def missing(store: Store, acknowledged: list[tuple[SessionKey, str]]) -> list[str]:
    """Return what was acknowledged and is not there."""
    keys = list({key for key, _ in acknowledged})
    logs = await asyncio.gather(*(store.load(key) for key in keys))
    there = {stored.entry.id for log in logs for stored in log.entries}
    return [entry for _, entry in acknowledged if entry not in there]


class TestOutages:
    """A server that is down or slow is an error in bounded time, and the event loop goes on meanwhile."""

    @pytest.mark.parametrize("durability", ["none", "replicas"])
    async def test_a_server_that_is_still_reading_its_file_is_waited_for(self, tmp_path: Path, durability: str) -> None:
        """It takes connections and answers no question yet; whoever has less patience is told, and that nothing was done."""
        with valkey.Valkey(tmp_path / "server", "--save", "3600 1", "--appendonly", "no") as server:
            async with at(server.port, unsafe="allow") as store:
                writers = [Writer(store) for _ in range(80)]
                for writer in writers:
                    await writer.append()
            server.ask("SAVE")
            server.kill()
            server.options += ["--key-load-delay", "8000", "--loading-process-events-interval-bytes", "1024"]
            server.start()
            async with (
                at(server.port, unsafe="allow", durability=durability) as store,
                at(server.port, unsafe="allow", durability=durability, connect_timeout="300ms") as hasty,
            ):
                assert server.ask("PING").startswith("-LOADING")
                entry = writers[0].entry()
                for call in (hasty.load(writers[0].key), hasty.append(writers[0].key, writers[0].head, entry), hasty.list(None)):
                    with pytest.raises(StoreUnavailable, match="loading") as caught:
                        await call
                    assert not caught.value.unknown
                    assert "refuses" not in str(caught.value)
                assert server.ask("PING").startswith("-LOADING")
                assert (await store.load(writers[0].key)).head == writers[0].head

    async def test_a_server_that_hangs_blocks_neither_the_loop_nor_for_ever(self, server: valkey.Valkey) -> None:
        """What was on its way is unknown; its repeat, once the server is back, is stored once."""
        async with at(server.port, timeout="1s", connect_timeout="1s") as store:
            writer = await grown(store, 1)
            server.pause()
            entry = writer.entry()
            with Awake() as clock:
                async with ticking(clock) as gaps:
                    with pytest.raises(StoreUnavailable) as caught:
                        await writer.offer(entry)
                assert (clock() < 25, max(gaps) < 0.9) == (True, True)
            assert caught.value.unknown
            with pytest.raises(StoreUnavailable, match=r"within 1 s|Timeout"):
                await store.load(writer.key)
            server.resume()
            assert (await writer.offer(entry)).outcome in {Outcome.DUPLICATE, Outcome.STORED}
            assert (await store.load(writer.key)).head.n == 2

    @pytest.mark.parametrize("after", [0, 1, 3])
    async def test_a_reply_cut_short_is_unknown_and_its_repeat_is_stored_once(self, server: valkey.Valkey, after: int) -> None:
        """The usual accident of a network: the server has stored it, and the answer is lost on the way."""
        async with Proxy(HOST, server.port) as proxy, at(proxy.port) as store:
            writer = await grown(store, 1)
            proxy.cut_reply_after(after)
            entry = writer.entry()
            with pytest.raises(StoreUnavailable) as caught:
                await writer.offer(entry)
            assert (caught.value.unknown, caught.value.operation) == (True, "append")
            answer = await writer.offer(entry)
            assert (answer.outcome, answer.head.n) == (Outcome.DUPLICATE, 2)

    async def test_a_store_that_is_closed_keeps_nobody_waiting(self, server: valkey.Valkey) -> None:
        """A shutdown in the middle of a call: what was on its way is unknown, and whoever waits for it is told."""
        async with at(server.port) as store:
            writer = await grown(store, 1)
            server.pause()
            offered = asyncio.ensure_future(writer.offer())
            await asyncio.sleep(0.05)
        with pytest.raises(StoreUnavailable, match="the connection was closed") as caught:
            async with asyncio.timeout(10):
                await offered
        assert caught.value.unknown
        server.resume()

    async def test_a_store_that_is_closed_opens_no_connection_for_what_was_on_its_way(self, server: valkey.Valkey) -> None:
        """What only reads is asked for again when its connection ends; after a shutdown nobody would close the next one."""
        async with at(server.port) as store:
            writer = await grown(store, 1)
            server.pause()
            load = asyncio.ensure_future(store.load(writer.key))
            await asyncio.sleep(0.05)
        server.resume()
        with pytest.raises(StoreUnavailable, match="the connection was closed"):
            await load
        await until(lambda: server.info("connected_clients") == "1")  # that of this question

    async def test_a_server_with_too_many_connections_is_waited_for(self, server: valkey.Valkey) -> None:
        """It says so and hangs up: nothing was done, and a moment later there may be room."""
        server.ask("CONFIG", "SET", "requirepass", "right")
        async with open_store(f"redis://:right@{HOST}:{server.port}?connect_timeout=10s") as store:
            writer = Writer(store)
            first = Redis(port=server.port, password="right", single_connection_client=True)
            await first.config_set("maxclients", 1)
            offered = asyncio.ensure_future(writer.offer())
            await asyncio.sleep(0.1)
            await first.config_set("maxclients", 100)
            assert (await offered).outcome is Outcome.STORED
            await first.aclose()

    async def test_what_a_server_says_before_it_was_asked_is_no_connection(self) -> None:
        """It is full, and takes its time to hang up: nothing is sent to it, and whoever calls is told why."""
        heard = []

        async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"-ERR max number of clients reached\r\n")
            heard.append(await reader.read(1000))
            with suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    heard.append(await reader.read(1000))
            writer.transport.abort()

        listener = await asyncio.start_server(refuse, HOST, 0)
        async with at(listener.sockets[0].getsockname()[1], connect_timeout="0.5s") as store:
            with pytest.raises(StoreUnavailable, match="max number of clients reached"):
                await store.load(fresh_key())
        assert not [said for said in heard if b"\r\nINFO\r\n" in said]
        await asyncio.sleep(0.1)  # until the last of them has gone
        listener.close()

    async def test_a_call_that_comes_in_the_very_step_a_connection_ends_goes_by_the_next_one(self, server: valkey.Valkey) -> None:
        """Nobody owes it a reply on the one that has ended: it would wait for ever."""
        async with at(server.port) as store:
            writer = await grown(store, 1)
            assert isinstance(store, RedisStore)
            for lanes in store._wire._lanes.values():  # no server can be made to hang up in a given step
                for lane in lanes.values():
                    assert lane._link is not None
                    lane._link.connection_lost(None)
            async with asyncio.timeout(PATIENCE):
                assert (await store.load(writer.key)).head == writer.head

    async def test_a_server_that_refuses_connections_for_a_moment_is_waited_for(self, server: valkey.Valkey) -> None:
        """A restart behind a load balancer; what was never sent may be tried again without harm."""
        async with Proxy(HOST, server.port) as proxy, at(proxy.port) as store:
            writer = await grown(store, 1)
            proxy.turn_away()
            await asyncio.sleep(0.05)
            offered = asyncio.ensure_future(writer.offer())
            await asyncio.sleep(0.3)
            await proxy.mend()
            assert (await offered).outcome is Outcome.STORED

    async def test_a_connection_that_died_without_a_word_is_left(self, server: valkey.Valkey) -> None:
        """A firewall forgets idle connections and tells nobody: one call finds out, and the next has a new connection."""
        async with Proxy(HOST, server.port) as proxy, at(proxy.port, timeout="0.5s") as store:
            writer = await grown(store, 1)
            proxy.silence()
            with pytest.raises(StoreUnavailable):
                await writer.offer()
            await writer.append()

    async def test_many_calls_in_an_outage_make_few_connections(self, server: valkey.Valkey) -> None:
        """A thousand requests that reconnect at once would hold a server down that tries to come back."""
        attempts = 0

        async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal attempts
            attempts += 1
            writer.transport.abort()

        listener = await asyncio.start_server(refuse, HOST, 0)
        store = at(listener.sockets[0].getsockname()[1], connect_timeout="1s")
        results = await asyncio.gather(*(store.load(fresh_key()) for _ in range(500)), return_exceptions=True)
        assert all(isinstance(result, StoreUnavailable) for result in results)
        assert 2 <= attempts < 30
        await store.aclose()
        listener.close()

    async def test_a_cancelled_call_leaves_the_others_alone(self, server: valkey.Valkey) -> None:
        """Calls share a connection: a reply that nobody waits for any more must not reach the next one."""
        async with at(server.port) as store:
            writers = [await grown(store, number) for number in range(1, 9)]
            for _ in range(20):
                loads = [asyncio.ensure_future(store.load(writer.key)) for writer in writers]
                await asyncio.sleep(0)
                for load in loads[::2]:
                    load.cancel()
                await asyncio.gather(*loads, return_exceptions=True)
                for writer, load in list(zip(writers, loads, strict=True))[1::2]:
                    assert load.result().head == writer.head

    async def test_a_reply_is_never_handed_to_a_call_on_another_connection(self, server: valkey.Valkey) -> None:
        """A connection that is slow to close must not leave calls behind: the next reply would be somebody else's history."""
        async with Proxy(HOST, server.port) as proxy, at(server.port) as direct:
            writers = [await grown(direct, number) for number in range(1, 9)]
            async with at(proxy.port, connect_timeout="1s", timeout="0.2s") as store:
                await store.load(writers[0].key)
                proxy.silence()
                lost = []
                for _ in range(6):  # each runs out of patience at a moment of its own
                    lost.append(asyncio.ensure_future(store.append(writers[0].key, writers[0].head, writers[0].entry())))
                    await asyncio.sleep(0.03)
                assert all(isinstance(error, StoreUnavailable) for error in await asyncio.gather(*lost, return_exceptions=True))
                for _ in range(3):
                    logs = await asyncio.gather(*(store.load(writer.key) for writer in writers))
                    assert [log.head for log in logs] == [writer.head for writer in writers]

    @pytest.mark.parametrize("words", [b"-READONLY", OF_REDIS_6 + b"-READONLY"], ids=["as it is", "as Redis 6 says it"])
    async def test_a_demoted_primary_is_left_without_a_lost_call(self, server: valkey.Valkey, words: bytes) -> None:
        """A failover behind one name: each call is told READONLY, and all of them wait for the new primary together."""
        async with saying(server.port, b"-READONLY", words) as port, at(port, connect_timeout="5s") as store:
            writers = [await grown(store, 1) for _ in range(40)]
            server.ask("REPLICAOF", HOST, free_port())
            offers = []
            for writer in writers:
                offers.append(asyncio.ensure_future(writer.offer()))
                await asyncio.sleep(0.002)
            server.ask("REPLICAOF", "NO", "ONE")
            assert {answer.outcome for answer in await asyncio.gather(*offers)} == {Outcome.STORED}


class TestServers:
    """What a server is, and how it is reached."""

    async def test_a_host_that_cannot_be_is_told_to_who_calls_and_to_nobody_else(self) -> None:
        """A slip in the address is found at the first call; a log full of lost exceptions would hide it."""
        said: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
        async with open_store("redis://no..host?connect_timeout=0.2s") as store:
            with pytest.raises(StoreUnavailable):
                await store.load(fresh_key())
        gc.collect()
        assert not said

    async def test_a_wrong_password_is_a_sentence_without_it(self, server: valkey.Valkey) -> None:
        """It says who refused what, at once, and the log of an app gets no secret."""
        server.ask("CONFIG", "SET", "requirepass", "right")
        for url in (f"redis://:hush@{HOST}:{server.port}", f"redis://{HOST}:{server.port}"):
            async with open_store(url) as store:
                with Awake() as clock:
                    with pytest.raises(StoreUnavailable, match="refused the user name or the password") as caught:
                        await store.check()
                    assert clock() < 4
                assert "hush" not in str(caught.value)
                with pytest.raises(StoreUnavailable, match="refused the user name or the password"):
                    await store.list(None)
        async with open_store(f"redis://:right@{HOST}:{server.port}/3") as store:
            assert "right" not in str(await store.check())

    async def test_what_is_dangerous_is_said_once_with_its_cure(self, tmp_path: Path) -> None:
        """The defaults of a Redis image lose conversations; whoever starts the app is told before a user is."""
        options = ("--maxmemory-policy", "allkeys-lru", "--appendonly", "no")
        with valkey.Valkey(tmp_path / "server", *options) as server:
            store = at(server.port)
            with pytest.warns(UnsafeRedisWarning) as told:
                await store.load(fresh_key())
            assert [re.split(": |; ", str(each.message))[-1] for each in told] == [
                "set maxmemory-policy noeviction.",
                "set appendonly yes.",
            ]
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert "snapshot" in (await store.check()).durability
            await store.aclose()
            async with at(server.port, unsafe="refuse") as strict:
                with pytest.raises(ConfigurationError, match="set maxmemory-policy noeviction"):
                    await strict.check()
            async with at(server.port, unsafe="allow") as lax:
                await lax.check()

    async def test_a_server_that_forbids_being_asked_is_used_all_the_same(self, server: valkey.Valkey) -> None:
        """Managed services forbid CONFIG, some INFO too."""
        server.ask("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all", "-config", "-info")
        async with open_store(f"redis://app:secret@{HOST}:{server.port}") as store:
            health = await store.check()
            assert (health.durability, health.server) == ("not known: the server does not say", "Redis of an unknown version")
            await Writer(store).append()

    async def test_a_server_that_is_too_old_is_refused(self) -> None:
        """It lacks commands: the sentence says what it is and what is needed."""
        report = Report.of(b"redis_version:6.0.16\r\nmaxmemory_policy:noeviction\r\naof_enabled:1\r\n", ())
        assert report.too_old == "The server is Redis 6.0.16; convmem needs Redis 6.2 or later, or Valkey."
        assert Report.of(b"redis_version:6.2.0\r\n", ()).too_old == ""

    async def test_tls_is_checked(self, server: valkey.Valkey, tmp_path: Path) -> None:
        """rediss:// means a certificate that verifies, not only encryption."""
        cert, context = certificate(tmp_path)
        async with Proxy(HOST, server.port, context) as front:
            async with open_store(f"rediss://{HOST}:{front.port}?{urlencode({'ssl_ca_certs': cert})}") as store:
                await Writer(store).append()
            async with open_store(f"rediss://{HOST}:{front.port}?connect_timeout=1.5s") as distrusting:
                with pytest.raises(StoreUnavailable, match="certificate"):
                    await distrusting.check()

    async def test_a_name_that_is_not_the_certificates_is_refused(self, server: valkey.Valkey, tmp_path: Path) -> None:
        """A certificate somebody trusts is not yet this server's; whoever says so may have it all the same."""
        cert, context = certificate(tmp_path)
        async with Proxy(HOST, server.port, context) as front:
            url = f"rediss://localhost:{front.port}?connect_timeout=1.5s&{urlencode({'ssl_ca_certs': cert})}"
            async with open_store(url) as strict:
                with pytest.raises(StoreUnavailable, match="certificate"):
                    await strict.check()
            for lax in (f"{url}&ssl_check_hostname=false", f"rediss://localhost:{front.port}?ssl_cert_reqs=none"):
                async with open_store(lax) as store:
                    await Writer(store).append()

    async def test_a_client_shows_its_certificate(self, server: valkey.Valkey, tmp_path: Path) -> None:
        """Servers that let nobody in without one are usual where a company signs them."""
        cert, context = certificate(tmp_path)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cert)
        trusts = {"ssl_ca_certs": cert, "connect_timeout": "1.5s"}
        async with Proxy(HOST, server.port, context) as front:
            shows = {"ssl_certfile": cert, "ssl_keyfile": tmp_path / "key.pem", "ssl_ciphers": "ECDHE+AESGCM"}
            async with open_store(f"rediss://{HOST}:{front.port}?{urlencode(trusts | shows)}") as store:
                await Writer(store).append()
            async with open_store(f"rediss://{HOST}:{front.port}?{urlencode(trusts)}") as nobody:
                with pytest.raises(StoreUnavailable):
                    await nobody.check()

    @pytest.mark.parametrize("protocol", [2, 3])
    async def test_a_connection_is_what_the_url_says(self, server: valkey.Valkey, protocol: int) -> None:
        """Who it is, its name, its database and its protocol; and the list of clients says whose it is."""
        server.ask("ACL", "SETUSER", "app", "on", ">se cret", "~*", "+@all", "-client|setinfo")
        server.ask("CONFIG", "SET", "requirepass", "main")
        for who, user in (("app:se%20cret@", "app"), (":main@", "default"), ("wrong:wrong@", "app")):
            given = "&username=app&password=se+cret" if user == "app" and "wrong" in who else ""
            async with open_store(f"redis://{who}{HOST}:{server.port}/3?client_name=worker-1&protocol={protocol}{given}") as store:
                await Writer(store).append()
                client = Redis(port=server.port, password="main")
                (ours,) = [each for each in await client.client_list() if each["name"] == "worker-1"]
                await client.aclose()
                expected = {"user": user, "db": "3", "resp": str(protocol), "lib-name": "" if user == "app" else "convmem"}
                assert {name: ours[name] for name in expected} == expected
        for nobody in (f"app:hush@{HOST}:{server.port}", f"app@{HOST}:{server.port}", f"{HOST}:{server.port}"):
            async with open_store(f"redis://{nobody}?protocol={protocol}") as store:
                with pytest.raises(StoreUnavailable, match="refused the user name or the password"):
                    await store.check()
        async with open_store(f"redis://:main@{HOST}:{server.port}/99?protocol={protocol}") as store:
            with pytest.raises(StoreUnavailable, match="DB index is out of range"):
                await store.load(fresh_key())

    async def test_a_password_where_there_is_none_is_a_sentence(self, server: valkey.Valkey) -> None:
        """A server that was set up without one may be another than was meant."""
        async with open_store(f"redis://:hush@{HOST}:{server.port}") as store:
            with pytest.raises(StoreUnavailable, match="refused the user name or the password: ERR AUTH"):
                await store.check()

    async def test_a_slot_is_the_clusters(self) -> None:
        """By another count each call would be sent on by the node it went to, and go twice."""
        keys = Keys("convmem")
        for key in (fresh_key(), SessionKey("user:a}{b", "s", tenant="{t}")):
            for each in (*keys.of(key), keys.index(key)):
                assert slot_of(each) == key_slot(each)

    async def test_a_socket_file_is_a_server_too(self, tmp_path: Path) -> None:
        """On one host, without a port."""
        with valkey.folder() as folder, valkey.server(tmp_path / "server", "--unixsocket", f"{folder}/r.sock"):
            async with open_store(f"unix://{folder}/r.sock?db=1") as store:
                await Writer(store).append()
                assert (await store.check()).location == f"{folder}/r.sock"

    async def test_a_client_that_was_passed_in_is_never_closed(self, server: valkey.Valkey) -> None:
        """It belongs to the app, also when it decodes every reply."""
        client = Redis(port=server.port, decode_responses=True)
        await client.set("mine", "1")
        async with RedisStore(client, namespace="other", patience=Patience(connect=1, reply=1)) as store:
            writer = await grown(store, 2)
            assert len(await writer.visible()) == 2
        assert await client.get("mine") == "1"
        assert await client.exists(f"other:c:{{{'/'.join(writer.key.path)}}}")
        await client.aclose()

    async def test_a_cluster_store_that_is_closed_asks_no_other_node_where_the_slots_are(self, valkey_cluster: valkey.Cluster) -> None:
        """The node it had asked will not answer any more; a connection to the next one would be closed by nobody."""
        asked = valkey_cluster.primaries[0]
        async with open_store(valkey_cluster.url) as store:
            asked.pause()
            load = asyncio.ensure_future(store.load(Writer(store).key))
            await asyncio.sleep(0.05)
        asked.resume()
        with pytest.raises(StoreUnavailable, match="the connection was closed"):
            await load

    async def test_a_cluster_client_that_was_passed_in_says_where_the_cluster_is(self, valkey_cluster: valkey.Cluster) -> None:
        """One of its nodes is enough."""
        client = RedisCluster(host=HOST, port=valkey_cluster.primaries[0].port)
        async with RedisStore(client) as store:
            await asyncio.gather(*(grown(store, 2) for _ in range(8)))
            assert "Valkey" in (await store.check()).server
        await client.aclose()

    async def test_nothing_a_client_sent_stands_unencoded_in_a_key(self, server: valkey.Valkey) -> None:
        """A brace would choose a slot, a star would match others' keys, a line break would forge a log line."""
        async with at(server.port) as store:
            for owner in ("user:{a}*\r\n x\u00e9/", "user:\ud83e%"):
                writer = Writer(store, SessionKey(owner, "s", tenant="{t}/*"))
                await writer.seize()
                await writer.append()
        client = Redis(port=server.port)
        keys = [key async for key in client.scan_iter()]
        await client.aclose()
        assert len(keys) == 6
        for key in keys:
            assert re.fullmatch(rb"convmem:(o:[\w.~%:-]*/[\w.~%:-]+|[ce]:\{[\w.~%:-]*/[\w.~%:-]+/[\w-]+\})", key), key

    @pytest.mark.parametrize("namespace", ["", "a*", "a[1]", "{a}", "a{", "a:o", "a b", "\u00e4"])
    async def test_a_namespace_means_nothing_else(self, namespace: str) -> None:
        """A brace moves conversations to one slot, or tears them apart; with a pattern's character a walk finds nothing."""
        with pytest.raises(ValueError, match="namespace is"):
            RedisStore(Redis(), namespace=namespace)

    async def test_a_server_that_forbids_the_walk_says_so(self, server: valkey.Valkey) -> None:
        """A list of its users is not always for an app to see: that is the store's error, with the server's words."""
        server.ask("ACL", "SETUSER", "limited", "on", ">secret", "~*", "+@all", "-scan")
        async with open_store(f"redis://limited:secret@{HOST}:{server.port}") as store:
            await Writer(store).append()
            with pytest.raises(StoreUnavailable, match="refuses to be walked through"):
                await store.list(None)

    async def test_everything_of_a_namespace_begins_with_it(self, server: valkey.Valkey) -> None:
        """Two apps share a server: neither sees the other's conversations, nor walks through them."""
        one, other = (open_store(f"redis://{HOST}:{server.port}", namespace=name) for name in ("one", "other"))
        writer = await grown(one, 1)
        assert (await other.load(writer.key)).head == Head()
        assert (await other.list(None)).items == ()
        assert [item.key for item in (await one.list(None)).items] == [writer.key]
        for store in (one, other):
            await store.aclose()


def port_of(client: RedisCluster, name: str) -> int:
    """Return where a key is."""
    node = client.get_node_from_key(name)
    assert node is not None
    return int(node.port)


class TestIndex:
    """The list of an owner's conversations, which in a cluster is on another node than they are."""

    async def test_a_conversation_is_in_no_list_before_it_is_stored_and_never_missing_after(self, tmp_path: Path) -> None:
        """A crash between the two writes: listed and not stored is hidden, stored and not listed cannot be."""
        with valkey.Cluster(tmp_path) as cluster:
            async with open_store(f"{cluster.url}?timeout=1.5s&connect_timeout=1.5s") as store:
                await store.check()
                client = RedisCluster(host=HOST, port=cluster.primaries[0].port)
                await client.initialize()
                nodes = {node.port: node for node in cluster.primaries}

                def node_of(name: str) -> valkey.Valkey:
                    return nodes[port_of(client, name)]

                def apart() -> tuple[Writer, valkey.Valkey, valkey.Valkey]:
                    while True:
                        key = fresh_key()
                        row = node_of(f"convmem:c:{{{'/'.join(key.path)}}}")
                        index = node_of(f"convmem:o:/{key.path[1]}")
                        if row is not index:
                            return Writer(store, key), row, index

                writer, row, _ = apart()
                row.pause()
                with pytest.raises(StoreUnavailable):
                    await writer.offer()
                row.resume()
                assert await client.zscore(f"convmem:o:/{writer.key.path[1]}", "default") is not None

                writer, _, index = apart()
                index.pause()
                with pytest.raises(StoreUnavailable) as caught:
                    await writer.offer()
                index.resume()
                assert not caught.value.unknown
                assert (await store.load(writer.key)).head == Head()
                await client.aclose()

    @pytest.mark.parametrize("protocol", [2, 3])
    async def test_a_deleted_conversation_leaves_its_owners_index(self, valkey_cluster: valkey.Cluster, protocol: int) -> None:
        """Where the index is on another node, and by a protocol in which a score is no text: no session id stays behind."""
        async with (
            open_store(f"{valkey_cluster.url}?protocol={protocol}") as store,
            RedisCluster(host=HOST, port=valkey_cluster.primaries[0].port) as raw,
        ):
            writer = await grown(store, 2)
            index = Keys("convmem").index(writer.key)
            assert await raw.zcard(index) == 1
            assert await store.delete(writer.key)
            assert await raw.zcard(index) == 0

    async def test_a_list_drops_what_was_never_stored_once_nobody_can_be_storing_it(self, valkey_cluster: valkey.Cluster) -> None:
        """A leftover of a crash is hidden at once, and goes when no append can be on its way any more."""
        client = RedisCluster(host=HOST, port=valkey_cluster.primaries[0].port)
        async with open_store(valkey_cluster.url) as store:
            writer = await grown(store, 1)
            index = f"convmem:o:/{writer.key.path[1]}"
            now = time.time_ns() // 1000
            await client.zadd(index, {"young": now, "old": now - 3_700_000_000})
            assert [item.session_id for item in (await store.list(writer.key.owner)).items] == ["default"]
            assert await client.zrange(index, 0, -1) == [b"default", b"young"]
        await client.aclose()

    async def test_a_list_mends_what_missed_an_append(self, valkey_cluster: valkey.Cluster) -> None:
        """The index's node was down while the conversation's stored a turn: the next list puts it where it belongs."""
        client = RedisCluster(host=HOST, port=valkey_cluster.primaries[0].port)
        async with open_store(valkey_cluster.url) as store:
            writer = await grown(store, 1)
            index = f"convmem:o:/{writer.key.path[1]}"
            await client.zadd(index, {"default": 1_000_000})
            assert len((await store.list(writer.key.owner)).items) == 1
            assert (await client.zscore(index, "default") or 0) > 1_000_000
        await client.aclose()

    async def test_an_index_lives_as_long_as_what_it_lists(self, server: valkey.Valkey) -> None:
        """Visitors who never come back leave nothing; an owner with one conversation for ever keeps the list for ever."""
        async with at(server.port) as store:
            owner = fresh_key().owner
            index = f"convmem:o:/{SessionKey(owner).path[1]}"
            short, long, ever = (Writer(store, SessionKey(owner, name)) for name in ("short", "long", "ever"))
            await long.append(ttl=timedelta(hours=5))
            await short.append(ttl=timedelta(minutes=1))
            assert int(server.ask("PTTL", index)) > timedelta(hours=5).total_seconds() * 1000
            await ever.append()
            assert server.ask("PTTL", index) == "-1"
            await short.append(ttl=timedelta(minutes=1))
            assert server.ask("PTTL", index) == "-1"

    async def test_a_long_walk_shows_everybody(self, server: valkey.Valkey) -> None:
        """More owners than one step of a scan holds, and one with more conversations than a page."""
        async with at(server.port) as store:
            keys = [fresh_key() for _ in range(700)] + [SessionKey("user:many", f"s{number}") for number in range(30)]
            await asyncio.gather(*(Writer(store, key).append() for key in keys))
            seen, after = [], None
            while True:
                page = await store.list(None, tenant=None, after=after, limit=20)
                assert len(page.items) <= 20
                seen += [item.key for item in page.items]
                after = page.after
                if after is None:
                    break
            assert set(seen) == set(keys)


class TestLife:
    """What goes by itself, and when."""

    async def test_an_expired_conversation_leaves_the_memory(self, server: valkey.Valkey) -> None:
        """An hour after it expired, so that no turn that began before it finds half of it; a tombstone stays its own time."""
        async with at(server.port) as store:
            writer = Writer(store)
            await writer.append(ttl=timedelta(minutes=10))
            row, log = (f"convmem:{kind}:{{{'/'.join(writer.key.path)}}}" for kind in "ce")
            for key in (row, log):
                assert 4_190_000 < int(server.ask("PTTL", key)) <= 4_200_000
            await store.delete(writer.key)
            month = TOMBSTONE_LIFE // timedelta(milliseconds=1)
            assert (server.ask("EXISTS", log), month - 5000 < int(server.ask("PTTL", row)) <= month) == ("0", True)
            await writer.load()
            await writer.append(ttl=timedelta(minutes=10))
            assert int(server.ask("PTTL", row)) > month - 10_000
            assert int(server.ask("PTTL", log)) <= 4_200_000
            await writer.append()
            assert (server.ask("PTTL", row), server.ask("PTTL", log)) == ("-1", "-1")

    async def test_a_conversation_whose_log_has_left_the_memory_reads_as_expired(self, server: valkey.Valkey) -> None:
        """The row stays for its tombstone: positions go on, a turn of before is found, and nobody is told of a loss."""
        async with at(server.port) as store:
            writer = Writer(store)
            await store.delete(writer.key)
            await writer.load()
            first = await writer.append(ttl=SHORT)
            before = writer.head
            await writer.append(ttl=SHORT)
            await asyncio.sleep(PAST_SHORT)
            server.ask("DEL", f"convmem:e:{{{'/'.join(writer.key.path)}}}")
            log = await writer.load(turn=first.turn, term=LONG)
            assert (log.expired, log.head.n, log.entries) == (True, 2, ())
            assert log.turn is not None
            assert (log.turn.state, log.turn.position, log.turn.visible) == ("complete", 1, False)
            entry = await writer.append()
            assert (writer.head.n, await writer.visible()) == (3, (entry.id,))
            writer.head = before
            assert (await writer.offer()).outcome is Outcome.CONFLICT

    async def test_an_expired_history_leaves_with_the_next_turn(self, server: valkey.Valkey) -> None:
        """Who sets a TTL wants the text gone, not only out of sight."""
        async with at(server.port) as store:
            writer = Writer(store)
            await writer.append(writer.entry(body=b'["secret"]'), ttl=SHORT)
            await writer.append(ttl=SHORT)
            (begun,) = (item.created_at for item in (await store.list(writer.key.owner)).items)
            await asyncio.sleep(PAST_SHORT)
            await writer.load()
            await writer.append()
            assert [item.created_at for item in (await store.list(writer.key.owner)).items] == [begun]
            client = Redis(port=server.port)
            stored = await client.lrange(f"convmem:e:{{{'/'.join(writer.key.path)}}}", 0, -1)
            await client.aclose()
            assert len(stored) == 2
            assert not any(b"secret" in text for text in stored)

    async def test_a_lease_of_a_worker_that_died_leaves_the_memory(self, server: valkey.Valkey) -> None:
        """A worker that died before its first turn stored anything leaves nothing at all."""
        async with at(server.port) as store:
            await Writer(store).seize(SHORT)
            await asyncio.sleep(PAST_SHORT)
            assert server.ask("DBSIZE") == "0"

    async def test_names_and_numbers_of_any_size_come_back(self, server: valkey.Valkey) -> None:
        """Ids that look like ours and are not, and long ones; the packed form is for space, never for loss."""
        async with at(server.port) as store:
            names = ["A" * 32, "0" * 32, "z" * 22, "A" * 22, "_-" * 11, "x", "y" * 252, "y" * 253, "y" * 300, " ", "~" * 40_000]
            names += ["+/" * 10 + "aA", " " * 5 + "A" * 17, "=" + "A" * 21, "a" * 21 + "Q", "0 " * 16]
            writer = Writer(store)
            for number, name in enumerate(names):
                entry = Entry(
                    f"{name}i" if number % 2 else name,
                    name,
                    name,
                    writer.head.epoch or names[8],
                    b"\x00\xff" * number,
                    (0, 1, 127, 128, 300, 16384, 2**31, 1, 1, 1, 1, 1, 1, 1, 1, 1)[number],
                    turns=2**number,
                    closing=number % 2 == 0,
                    format=number + 1,
                    key_id="\u00e9",
                )
                assert (await writer.offer(entry)).outcome is Outcome.STORED, name[:40]
                writer.head = entry.head_at(number + 1)
                assert (await store.load(writer.key, turns=1, turn=name)).entries[0].entry == entry
                assert (await store.load(writer.key, turn=name)).turn is not None

    async def test_an_entry_comes_back_whoever_names_its_turn(self, server: valkey.Valkey) -> None:
        """Most turns are named by their entry, and that name is stored once: it is never taken for another's, nor looked for in vain."""
        async with Proxy(HOST, server.port) as proxy, at(proxy.port) as store:
            writer = Writer(store)
            for count in (1, 127, 128, 16384):
                for made in (whole, Writer.entry):
                    entry = replace(made(writer), count=count)
                    await writer.append(entry)
                    await store.load(writer.key, turns=1)
                    proxy.count_anew()
                    log = await store.load(writer.key, turns=1, turn=entry.turn)
                    assert proxy.round_trips == 1
                    assert [stored.entry for stored in log.entries] == [entry]
                    assert log.turn is not None
                    assert (log.turn.state, log.turn.position) == ("complete", writer.head.n)
                    assert len((await store.load(writer.key, messages=count)).entries) == 1
                    assert len((await store.load(writer.key, messages=count + 1)).entries) == min(2, writer.head.n)


async def test_a_slot_that_moves_is_followed(tmp_path: Path) -> None:
    """A cluster is resharded under load: no error reaches an app, and no turn is lost."""
    with valkey.Cluster(tmp_path) as cluster:
        async with open_store(cluster.url) as store:
            writer = await grown(store, 3)
            client = RedisCluster(host=HOST, port=cluster.primaries[0].port)
            await client.initialize()
            row = f"convmem:c:{{{'/'.join(writer.key.path)}}}"
            slot = client.keyslot(row)
            source = next(node for node in cluster.primaries if node.port == port_of(client, row))
            target = next(node for node in cluster.primaries if node is not source)
            await client.aclose()
            ids = {node.port: node.ask("CLUSTER", "MYID") for node in (source, target)}
            target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source.port])
            source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target.port])
            await writer.append()
            for kind in "ce":
                assert source.ask("MIGRATE", HOST, target.port, f"convmem:{kind}:{{{'/'.join(writer.key.path)}}}", 0, 1000) == "OK"
            await writer.append()
            for node in (target, source):
                node.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[target.port])
            await writer.append()
            assert len(await writer.visible()) == 6


async def test_nodes_that_do_not_agree_yet_who_has_a_slot_are_asked_again(tmp_path: Path) -> None:
    """At the end of a move the old node says where the slot went, and for a moment the new one has not heard of it."""
    with valkey.Cluster(tmp_path) as cluster:
        async with open_store(cluster.url) as store:
            writer = Writer(store)
            await store.load(writer.key)
            client = RedisCluster(host=HOST, port=cluster.primaries[0].port)
            await client.initialize()
            row = f"convmem:c:{{{'/'.join(writer.key.path)}}}"
            slot = client.keyslot(row)
            source = next(node for node in cluster.primaries if node.port == port_of(client, row))
            target = next(node for node in cluster.primaries if node is not source)
            await client.aclose()
            name = target.ask("CLUSTER", "MYID")
            source.ask("CLUSTER", "SETSLOT", slot, "NODE", name)
            offered = asyncio.ensure_future(writer.offer())
            await asyncio.sleep(0.3)
            target.ask("CLUSTER", "SETSLOT", slot, "NODE", name)
            assert (await offered).outcome is Outcome.STORED


async def test_a_cluster_and_its_app_go_on_after_a_failover(tmp_path: Path) -> None:
    """The node of a conversation dies for good; its replica takes over, and with a replica confirmed nothing is lost."""
    with valkey.Cluster(tmp_path) as cluster:
        async with open_store(f"{cluster.url}?durability=replicas&connect_timeout=90s") as store:
            writer = await grown(store, 3)
            client = RedisCluster(host=HOST, port=cluster.primaries[0].port)
            await client.initialize()
            port = port_of(client, f"convmem:c:{{{'/'.join(writer.key.path)}}}")
            await client.aclose()
            next(node for node in cluster.primaries if node.port == port).kill()
            cluster.fail_over_soon()
            log = await store.load(writer.key)
            assert log.head == writer.head


async def test_a_worker_that_starts_while_a_node_is_down_serves_and_finds_the_new_one(tmp_path: Path) -> None:
    """Pods are moved just when something is down: the rest of the cluster is served at once, and all of it after the failover."""
    with valkey.Cluster(tmp_path) as cluster:
        async with open_store(cluster.url) as store:
            writers = [await grown(store, 1) for _ in range(30)]
        cluster.primaries[1].kill()
        async with open_store(f"{cluster.url}?unsafe=allow") as store:
            with pytest.raises(StoreUnavailable):
                await store.check()
            loads = await asyncio.gather(*(store.load(writer.key) for writer in writers), return_exceptions=True)
            assert any(not isinstance(log, BaseException) for log in loads)
            cluster.fail_over_soon()
            async with asyncio.timeout(PATIENCE):
                while any(isinstance(log, StoreUnavailable) for log in loads):
                    await asyncio.sleep(0.1)
                    loads = await asyncio.gather(*(store.load(writer.key) for writer in writers), return_exceptions=True)
            assert [log.head for log in loads if not isinstance(log, BaseException)] == [writer.head for writer in writers]


async def test_a_cluster_named_as_one_server_is_a_sentence(valkey_cluster: valkey.Cluster) -> None:
    """Some keys would work there and some not: that is for the start to say."""
    async with open_store(valkey_cluster.primaries[0].url) as store:
        for call in (store.check, Writer(store).append):
            with pytest.raises(ConfigurationError, match=r"redis\+cluster://"):
                await call()


async def test_sentinels_name_the_new_primary(tmp_path: Path) -> None:
    """The primary dies for good; the same object finds its successor."""
    with valkey.Sentinels(tmp_path) as sentinels:
        async with open_store(f"{sentinels.url}?durability=replicas&connect_timeout=90s") as store:
            writer = await grown(store, 3)
            sentinels.data.primary.kill()
            sentinels.fail_over_soon()
            assert (await store.load(writer.key)).head == writer.head


async def test_who_runs_out_of_time_while_sentinels_are_asked_leaves_no_connection_open(valkey_sentinels: valkey.Sentinels) -> None:
    """At whatever step that is: in a failover it happens often, and a connection that is left stays until somebody collects it."""
    with warnings.catch_warnings(record=True) as left:
        warnings.simplefilter("always")
        for tenths in range(5, 65):
            async with open_store(f"{valkey_sentinels.url}?unsafe=allow&connect_timeout={tenths / 10_000}s") as store:
                with suppress(StoreUnavailable):
                    await store.load(fresh_key())
            del store
        gc.collect()
    assert not [str(each.message) for each in left if issubclass(each.category, ResourceWarning)]


async def test_turns_of_a_whole_app_go_through_it(server: valkey.Valkey) -> None:
    """The way an app uses it, with a window, an edit and a deletion."""
    key = fresh_key()
    async with at(server.port) as store:
        for number in range(4):
            async with open_conversation(key, store=store) as conversation:
                assert conversation.total_turns == number
                conversation.append(Message.user(f"question {number}"))
                await conversation.save()
                conversation.append(Message.assistant(f"answer {number}"))
        assert [item.turns for item in (await store.list(key.owner)).items] == [4]
