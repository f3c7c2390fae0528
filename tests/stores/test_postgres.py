"""What PostgresStore promises beyond the contract: trips and bytes, tables, rights, poolers, connections, several loops."""
# ruff: noqa: E501 - statements that fill tables

from __future__ import annotations

import asyncio
import gc
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from benchmarks.counting import calls
from convmem import ConfigurationError, SessionKey, StoreUnavailable, open_store
from convmem.identifiers import new_id, new_token
from convmem.keys import RESERVED_OWNER
from convmem.stores import postgres_schema
from convmem.stores.base import Entry, Head, Kind, Lease, Outcome
from convmem.stores.packing import pack_name
from convmem.stores.postgres import PostgresStore
from convmem.stores.postgres_connections import OwnConnections, Pooling
from convmem.stores.postgres_database import UnsafePostgresWarning
from convmem.stores.postgres_schema import Migration, in_schema, migration_sql, migrations, statement, statements
from convmem.testing import StoreContract
from convmem.testing.writer import LONG, Writer, fresh_key
from tests.awake import Awake
from tests.faults.proxy import Proxy
from tests.servers.processes import HOST, PATIENCE
from tests.wheels.pooler import Pooler
from tests.wheels.postgres import PostgresServer, PostgresWheel

ROOT = Path(__file__).parents[2]


def port_of(url: str) -> int:
    """Return the port in a URL."""
    return int(url.rpartition(":")[2].partition("/")[0])


def through(url: str, port: int) -> str:
    """Return the URL of the same database by way of another port."""
    return re.sub(r":\d+/", f":{port}/", url)


@asynccontextmanager
async def proxied(url: str) -> AsyncIterator[tuple[PostgresStore, Proxy]]:
    """Return a store behind a proxy, its connection open and its statements prepared."""
    port = port_of(url)
    async with Proxy(HOST, port) as proxy, PostgresStore.at(through(url, proxy.port)) as store:
        writer = Writer(store)
        for _ in range(6):
            await writer.load(turns=1, turn="nobody", term=LONG)
            await writer.append()
            await writer.load(turns=1, term=LONG)
            await writer.append(release=True)
            await store.renew(writer.key, Lease("nobody", LONG), Head())
            await store.release(writer.key, "nobody")
            await store.list(writer.key.owner)
            await store.delete(writer.key)
            writer = Writer(store)
        yield store, proxy


async def fill(url: str, key: SessionKey, entries: int) -> Head:
    """Write a long log at once, as that many appends would have left it; return its head."""
    epoch, last = new_token(), new_id()
    link = await asyncpg.connect(url)
    try:
        store = PostgresStore.at(url)
        if entries:
            writer = Writer(store, key)
            await writer.append(replace(writer.entry(count=2, body=b"x" * 1000), epoch=epoch))
        await store.aclose()
        if entries > 1:
            which = "(SELECT id FROM convmem.convmem_conversation WHERE owner = $1)"
            await link.execute(  # turn and id are others, the token stays
                "INSERT INTO convmem.convmem_entry SELECT conversation, g, opens, overlay(overlay(facts PLACING"
                " uuid_send(md5('t' || g::text || conversation::text)::uuid) FROM 9) PLACING CASE WHEN g = $2::integer THEN $3"
                " ELSE uuid_send(md5(g::text || conversation::text)::uuid) END FROM 41), body"
                f" FROM convmem.convmem_entry, generate_series(2, $2::integer) AS g WHERE conversation = {which}",
                *(key.path[1], entries, bytes.fromhex(last)),
            )
            for table, columns in (("conversation", "n = $2::integer, turns = $2::integer"), ("lease", "n = $2::integer")):
                name = {"conversation": "id", "lease": "conversation"}[table]
                await link.execute(
                    f"UPDATE convmem.convmem_{table} SET {columns}, entry = $3 WHERE {name} = {which}",
                    *(key.path[1], entries, pack_name(last)),
                )
    finally:
        await link.close()
    return Head(epoch, entries, last, entries) if entries > 1 else Head()


async def cost_of_a_turn(store: PostgresStore, proxy: Proxy, key: SessionKey) -> tuple[int, int, int]:
    """Return round trips, bytes sent and bytes received of one turn: load with look-up and lease, append with release."""
    before = (proxy.round_trips, proxy.sent, proxy.received)
    writer = Writer(store, key)
    await writer.load(turns=20, turn=new_id(), term=LONG)
    await writer.append(writer.entry(body=b"x" * 1000, count=2), release=True)
    await asyncio.sleep(0.02)  # what was sent after the last answer, of which there must be nothing
    return proxy.round_trips - before[0], proxy.sent - before[1], proxy.received - before[2]


async def check_flat(url: str, sizes: tuple[int, ...]) -> None:
    received: list[int] = []
    async with proxied(url) as (store, proxy):
        for entries in sizes:
            key = fresh_key()
            await fill(url, key, entries)
            trips, sent, got = await cost_of_a_turn(store, proxy, key)
            assert trips == 2, f"{trips} round trips with {entries} entries stored"
            assert sent < 1000 + 500, f"{sent} bytes sent with {entries} entries stored"
            if entries >= 20:
                received.append(got)
            assert got < 20 * (1000 + 77) + 220, f"{got} bytes received with {entries} entries stored"
    assert max(received) - min(received) < 200, received


@pytest.mark.asyncio
async def test_a_turn_is_two_round_trips_whatever_is_stored(postgres_url: str) -> None:
    """A history that is read whole costs more with every turn; this is where others grow with the length of the conversation."""
    await check_flat(postgres_url, (0, 10, 100, 1000))


@pytest.mark.all_only
@pytest.mark.asyncio
async def test_a_turn_is_two_round_trips_with_ten_thousand_entries(postgres_url: str) -> None:
    """The same, longer."""
    await check_flat(postgres_url, (100, 10_000))


@pytest.mark.asyncio
async def test_a_window_of_messages_is_one_round_trip_and_bounded(postgres_url: str) -> None:
    """Not only a window of turns is found without reading what is before it."""
    async with proxied(postgres_url) as (store, proxy):
        key = fresh_key()
        await fill(postgres_url, key, 2000)
        for _ in range(6):
            await store.load(key, messages=10)
        trips, received = proxy.round_trips, proxy.received
        log = await store.load(key, messages=10)
        assert [stored.n for stored in log.entries] == list(range(1996, 2001))
        assert proxy.round_trips - trips == 1
        assert proxy.received - received < 10_000


def called(entry: Entry, how: str) -> Entry:
    """Return an entry with the names of one of the forms in which it is packed."""
    if how == "otherwise":
        return replace(entry, id=f"id {entry.id}", turn=f"turn {entry.turn}")
    return replace(entry, turn=entry.id) if how == "as its turn" else entry


CALLED = pytest.mark.parametrize("how", ["as its turn", "by itself", "otherwise"])


@pytest.mark.asyncio
@pytest.mark.parametrize("count", [2, 200, 20_000])
@CALLED
async def test_messages_are_counted_whatever_an_entry_is_called(postgres_url: str, how: str, count: int) -> None:
    """The server counts them in the packed entry, where names that are not ours, or one that is left out, must not move the number."""
    async with PostgresStore.at(postgres_url) as store:
        writer = Writer(store)
        entries = [await writer.append(called(writer.entry(count=count, body=b"[1]"), how)) for _ in range(12)]
        log = await store.load(writer.key, messages=5 * count)
        assert [stored.n for stored in log.entries] == list(range(8, 13))
        assert [stored.entry for stored in log.entries] == entries[-5:]


@pytest.mark.asyncio
@CALLED
async def test_an_entry_is_known_again_whatever_it_is_called(postgres_url: str, how: str) -> None:
    """The server compares ids in the packed entry: a repeat is told from another entry, and the head it stands behind from another."""
    async with PostgresStore.at(postgres_url) as store:
        writer = Writer(store)
        await writer.append(called(writer.entry(), how))
        before, entry = writer.head, called(writer.entry(), how)
        await writer.append(entry)
        await writer.append(called(writer.entry(), how))
        assert (await store.append(writer.key, before, entry)).outcome is Outcome.DUPLICATE
        assert (await store.append(writer.key, before, called(writer.entry(), how))).outcome is Outcome.CONFLICT
        elsewhere = Head(before.epoch, before.n, new_id())
        assert (await store.append(writer.key, elsewhere, called(writer.entry(), how))).outcome is Outcome.GAP
        found = (await store.load(writer.key, turn=entry.turn)).turn
        assert found is not None
        assert (found.state, found.position, found.visible) == ("complete", 2, True)


@pytest.mark.asyncio
async def test_what_is_stored_for_a_turn_is_little_more_than_what_was_said(postgres_server: PostgresServer) -> None:
    """A row for each turn, its place in two indexes, and its share of the pages of everything else."""
    url = postgres_server.database()
    sizes = "SELECT sum(pg_relation_size(oid))::bigint FROM pg_class WHERE oid >= 16384 AND relkind IN ('r', 'i', 't')"
    async with PostgresStore.at(url) as store:
        await store.check()
        link = await asyncpg.connect(url)
        empty = await link.fetchval(sizes)
        writers, turns, said = [Writer(store) for _ in range(8)], 50, b"x" * 1240
        for _ in range(turns):
            for writer in writers:
                entry = writer.entry(body=said, count=2)
                await writer.append(replace(entry, turn=entry.id))
        stored = (await link.fetchval(sizes) - empty) / len(writers) / turns
        await link.close()
    assert stored < 1.31 * len(said), f"{stored:.0f} bytes for a turn of {len(said)}; bare rows of (text, bigint, bytea) take 1540"


@pytest.mark.asyncio
async def test_a_lone_turn_calls_no_more_functions_than_it_did(postgres_url: str) -> None:
    """Who is alone waits for nobody: no task, no future, and of 25 turns that nobody looks at none is unpacked."""
    async with PostgresStore.at(postgres_url) as store:
        writer, tasks = Writer(store), 0
        for _ in range(30):
            await writer.append()
        await writer.seize()
        await writer.append(release=True)  # the statements are prepared

        def note(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
            nonlocal tasks
            tasks += 1
            return asyncio.Task(work, loop=loop, **options)

        writer.token = new_token()
        entry = writer.entry()
        asyncio.get_running_loop().set_task_factory(note)
        try:
            with calls() as counted:
                log = await store.load(writer.key, turns=25, lease=Lease(writer.token, LONG))
                answer = await store.append(writer.key, log.head, entry, release=True)
                assert len(log.entries) == 25
        finally:
            asyncio.get_running_loop().set_task_factory(None)
        assert answer.outcome is Outcome.STORED
        assert counted.total <= 51, counted.of
        assert tasks == 0
        assert [each.n for each in log.entries] == list(range(7, 32))


@pytest.mark.asyncio
async def test_a_window_in_which_the_beginning_of_a_turn_is_hidden_holds_no_turn_too_many(postgres_url: str) -> None:
    """Where a window begins is told by the entries that open a turn; one of them may be out of sight, and the rest of its turn not."""
    async with PostgresStore.at(postgres_url) as store:
        writer = Writer(store)
        for turn in ("first", "second"):
            await writer.append(writer.entry(turn=turn, closing=False))
            await writer.append(writer.entry(turn=turn, adds=0))
        await writer.append(writer.entry(kind=Kind.EDIT, hides=(3,), adds=0))
        assert [each.n for each in (await store.load(writer.key, turns=1)).entries] == [4]
        assert [each.n for each in (await store.load(writer.key, turns=2)).entries] == [1, 2, 4]


@pytest.mark.asyncio
async def test_a_load_does_not_read_what_is_hidden(postgres_server: PostgresServer) -> None:
    """A history that was archived costs nothing to pass: the pages a load touches are counted, by a statement of any kind of window."""
    url, key = postgres_server.database(), fresh_key()
    await fill(url, key, 20_000)
    link = await asyncpg.connect(url)
    await link.execute("UPDATE convmem.convmem_entry SET n = -n WHERE n BETWEEN 3 AND 19990")
    await link.execute("VACUUM ANALYZE")
    conversation = await link.fetchval("SELECT id FROM convmem.convmem_conversation")
    await link.execute("SET plan_cache_mode = force_generic_plan")
    for window, *parts in (("12",), ("NULL", "messages"), ("2", "before")):
        await link.execute(f"PREPARE load_plan AS {statement('load', 'convmem', 'one', 'more', *parts)}")
        arguments = f"'{conversation}', {window}, NULL, NULL, NULL, 24, 68, 19000"
        plan = await link.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE load_plan ({arguments})")
        await link.execute("DEALLOCATE load_plan")
        node = json.loads(plan)[0]["Plan"]
        assert node["Shared Hit Blocks"] + node["Shared Read Blocks"] < 200, (window, plan)
    await link.close()
    async with PostgresStore.at(url) as store:
        assert [stored.n for stored in (await store.load(key, turns=12)).entries] == [1, 2, *range(19_991, 20_001)]


@pytest.mark.asyncio
async def test_every_verb_is_one_round_trip(postgres_url: str) -> None:
    """Each trip more is a millisecond between hosts, for every turn of every user."""
    async with proxied(postgres_url) as (store, proxy):
        writer = Writer(store)
        lease = Lease(writer.token, LONG)
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "load": lambda: writer.load(turns=1, turn="t", term=LONG),
            "append": writer.append,
            "renew": lambda: store.renew(writer.key, lease, writer.head),
            "release": lambda: store.release(writer.key, writer.token),
            "list": lambda: store.list(writer.key.owner),
            "delete": lambda: store.delete(writer.key),
        }
        for name, call in calls.items():
            before = proxy.round_trips
            await call()
            await asyncio.sleep(0.01)
            assert proxy.round_trips - before == 1, name


@pytest.mark.asyncio
async def test_no_verb_reads_a_table_from_end_to_end(postgres_wheel: PostgresWheel, postgres_server: PostgresServer) -> None:
    """A plan that is quick in a test and scans a million rows in production is the most usual surprise of a database."""
    url = postgres_server.database()
    key = fresh_key()
    async with PostgresStore.at(url) as store:
        await store.check()
    link = await asyncpg.connect(url)
    await link.execute(
        "INSERT INTO convmem.convmem_conversation (id, n, start, created, updated, turns, day, tenant, owner, session, epoch, entry)"
        " SELECT md5(g::text)::uuid, 20, 0, now() - g * interval '1 minute', now() - g * interval '1 minute', 20,"
        " (now() - g * interval '1 minute')::date, '', 'user:' || g % 7, 's' || g, '\\x0165', '\\xff' || decode(md5('e20' || g::text), 'hex') FROM generate_series(1, 5000) AS g"
    )
    await link.execute(
        "INSERT INTO convmem.convmem_entry (conversation, n, opens, facts, body) SELECT md5(g::text)::uuid, n, true,"
        " '\\x0000000000000014' || uuid_send(md5('t' || n::text || g::text)::uuid) || uuid_send(md5('token')::uuid)"
        " || uuid_send(md5(n::text || g::text)::uuid) || '\\x020100', 'x' FROM generate_series(1, 5000) AS g, generate_series(1, 20) AS n"
    )
    await link.execute(
        "INSERT INTO convmem.convmem_lease SELECT id, now(), '-infinity', n, '2020-01-01', '', epoch, entry FROM convmem.convmem_conversation"
    )
    await fill(url, key, 50_000)
    await link.execute("SET plan_cache_mode = force_generic_plan")
    uuid = "'00000000-0000-0000-0000-000000000001'"
    facts = f"'{'x' * 60}'"
    entry = f"'', 0, '', 'id', 'token', 1, 0, NULL, {facts}, 'x', NULL, true"
    first = f"{entry}, '', 'user:x', 's', 'epoch'"
    of_bytes = ("''", "'id'", "'token'", facts, "'x'")
    many = ", ".join(f"ARRAY[{value}{'::bytea' * (value in of_bytes)}]" for value in entry.split(", "))
    many = many.replace("[NULL], ARRAY[true]", "[NULL::interval], ARRAY[true]")
    arguments = {
        "load one": f"{uuid}, 20, 'token', 8",
        "load one more turn messages before": f"{uuid}, 20, 'token', 8, 'turn', 30, 68, 10",
        "load many": f"ARRAY[{uuid}::uuid], '{{20}}', '{{token}}', '{{8}}'",
        "follow one next": f"{uuid}, {entry}",
        "follow one first": f"{uuid}, {first}",
        "follow many next": f"ARRAY[{uuid}::uuid], {many}",
        "follow many first": f"ARRAY[{uuid}::uuid], {many}, ARRAY[''], ARRAY['user:x'], ARRAY['s'], ARRAY['epoch'::bytea]",
        "append": f"{uuid}, {first}, 'id', '{{1}}'",
        "renew": f"{uuid}, 'token', '8 s', '', 0, ''",
        "release": f"{uuid}, 'token'",
        "list": "'', 'user:1', NULL, '', NULL, 51",
        "walk": "'', '', '', NULL, NULL, 1000",
        "delete": f"{uuid}, '', 'user:x', 's', 'mark', NULL, NULL, NULL, '30 d'",
        "sweep": "'30 d', 500",
    }
    for name in arguments:
        file, *parts = name.split()
        await link.execute(f'PREPARE "{name}" AS {statement(file, "convmem", *parts)}')
    await link.execute("SET enable_seqscan = off")
    for when in ("before the server has looked at the tables", "afterwards"):
        for name, values in arguments.items():
            rows = await link.fetch(f'EXPLAIN (COSTS OFF) EXECUTE "{name}" ({values})')
            plan = "\n".join(row[0] for row in rows)
            assert "Seq Scan" not in plan, f"{name}, {when}:\n{plan}"
            for line, condition in re.findall(r"(Index .*Scan.* on convmem_entry .*)\n\s+Index Cond: (.*)", plan):
                assert "conversation" in condition or "substr(facts, 9, 7) =" in condition, f"{name}, {when}: {line} {condition}"
            turns, found = len(re.findall(r"substr\((?:\w+\.)?facts, 9, 16\) =", plan)), plan.count("convmem_entry_of_turn")
            assert turns == found, f"{name}, {when}: a turn is not looked up by its index\n{plan}"
        await link.execute("SET enable_seqscan = on")  # as where a pooler is in between
        await link.execute("ANALYZE")
    await link.close()
    async with PostgresStore.at(url) as store:
        for call in (lambda: store.load(key, turns=20), lambda: store.load(key, messages=20), lambda: store.list("user:1")):
            await call()
            took: list[float] = []
            for _ in range(5):
                began = time.perf_counter()
                await call()
                took.append(time.perf_counter() - began)
            assert min(took) < 0.2, "milliseconds were expected, of an owner with hundreds and a log of 50,000"


@pytest.mark.asyncio
async def test_a_worker_that_began_on_empty_tables_reads_no_table_from_end_to_end(postgres_server: PostgresServer) -> None:
    """A plan is made once on a connection, when reading all of a small table is the quickest; the table does not stay small."""
    url = postgres_server.database()
    async with PostgresStore.at(url) as store:
        await Writer(store).append()
    link = await asyncpg.connect(url)
    await link.execute("ANALYZE")
    scans = "SELECT sum(seq_scan) FROM pg_stat_user_tables WHERE relname IN ('convmem_conversation', 'convmem_entry', 'convmem_lease')"
    before = await link.fetchval(scans)
    async with PostgresStore.at(url) as store:
        writers = [Writer(store) for _ in range(20)]
        for _ in range(3):
            await asyncio.gather(*(writer.load(turns=3, term=LONG) for writer in writers))
            await asyncio.gather(*(writer.append(release=True) for writer in writers))
    until = time.monotonic() + PATIENCE
    while await link.fetchval("SELECT n_tup_ins FROM pg_stat_user_tables WHERE relname = 'convmem_entry'") < 61:
        assert time.monotonic() < until
        await asyncio.sleep(0.1)  # a connection hands in its counts when it ends
        await link.execute("SELECT pg_stat_clear_snapshot()")
    assert await link.fetchval(scans) == before
    await link.close()


@pytest.mark.asyncio
async def test_a_table_that_is_changed_under_a_worker_costs_it_nothing(postgres_server: PostgresServer) -> None:
    """A turn goes on where it was. A prepared statement whose result would change is refused by the server, and prepared anew."""
    url = postgres_server.database()
    async with PostgresStore.at(url) as store:
        writer = Writer(store)
        await writer.append()
        await writer.load(turns=1)
        await store.list(writer.key.owner)
        link = await asyncpg.connect(url)
        await link.execute("ALTER TABLE convmem.convmem_entry ALTER COLUMN n TYPE bigint")
        backends = await pids(url)
        for _ in range(2):
            assert (await store.load(writer.key, turns=1)).head == writer.head
            await writer.append()
        assert await pids(url) == backends
        await link.execute("ALTER TABLE convmem.convmem_conversation ALTER COLUMN session TYPE varchar(200)")
        await link.close()
        for _ in range(2):
            assert [item.key for item in (await store.list(writer.key.owner)).items] == [writer.key]


@pytest.mark.asyncio
async def test_an_owner_with_ten_thousand_conversations_is_paged_by_day(postgres_server: PostgresServer) -> None:
    """Only the conversations of the day where a page ends are sorted; an index on the time itself would be written by every append."""
    url = postgres_server.database()
    async with PostgresStore.at(url) as store:
        await store.check()
        link = await asyncpg.connect(url)
        await link.execute(
            "INSERT INTO convmem.convmem_conversation (id, n, start, created, updated, turns, day, tenant, owner, session, epoch, entry)"
            " SELECT md5(g::text)::uuid, 1, 0, at, at, 1, (at AT TIME ZONE 'UTC')::date, '', 'user:1', 's' || g, '\\x0165', '\\x0169'"
            " FROM (SELECT g, now() - g * interval '7 minutes' AS at FROM generate_series(1, 10000) AS g) AS each"
        )
        await link.execute("ANALYZE")
        await link.execute("SET plan_cache_mode = force_generic_plan")
        await link.execute(f"PREPARE list_plan AS {statement('list', 'convmem')}")
        plan = "\n".join(
            row[0] for row in await link.fetch("EXPLAIN (ANALYZE, COSTS OFF) EXECUTE list_plan ('', 'user:1', NULL, '', NULL, 51)")
        )
        await link.close()
        assert "Incremental Sort" in plan, plan
        read = max(int(float(rows)) for rows in re.findall(r"Index Scan.*rows=([\d.]+)", plan))
        assert read < 600, f"{read} conversations were read for a page of 50"
        seen: list[str] = []
        after = None
        for _ in range(20):
            page = await store.list("user:1", after=after, limit=500)
            seen += [item.session_id for item in page.items]
            after = page.after
        assert after is None
        assert seen == [f"s{number}" for number in range(1, 10_001)]


MIGRATOR = """
import asyncio, os, sys
from convmem.stores.postgres import PostgresStore
from convmem.testing.writer import Writer

async def main():
    async with PostgresStore.at(sys.argv[1]) as store:
        writer = Writer(store)
        await writer.append()
        assert len(await writer.visible()) == 1

def work():
    try:
        asyncio.run(main())
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)

children = [os.fork() or work() for _ in range(20)]
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""


def test_twenty_processes_that_start_at_once_agree_on_one_schema(postgres_server: PostgresServer) -> None:
    """A deployment starts all its workers at the same moment on an empty database; CREATE TABLE IF NOT EXISTS alone fails then."""
    command = [sys.executable, "-W", "error", "-c", MIGRATOR, postgres_server.database()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.asyncio
async def test_many_stores_at_once_make_the_tables_once(postgres_server: PostgresServer) -> None:
    """The same within one process, where all of them arrive within a millisecond."""
    url = postgres_server.database()
    stores = [PostgresStore.at(url) for _ in range(20)]
    applied = await asyncio.gather(*(store.migrate() for store in stores))
    assert max(applied, key=len) == tuple(migration.name for migration in migrations())
    assert sum(bool(names) for names in applied) == 1
    for store in stores:
        await store.check()
        await store.aclose()


NEXT = Migration(
    2,
    "002_invented.sql",
    "ALTER TABLE convmem.convmem_entry ADD COLUMN invented text;"
    "ALTER TABLE convmem.convmem_conversation ADD COLUMN invented bigint NOT NULL DEFAULT 7;"
    "ALTER TABLE convmem.convmem_lease ADD COLUMN invented text NOT NULL DEFAULT '';"
    "CREATE INDEX invented ON convmem.convmem_entry (opens);",
)


async def migrate_beyond(url: str) -> None:
    """Bring a database to a version that this code does not know."""
    async with PostgresStore.at(url) as store:
        await store.check()
    link = await asyncpg.connect(url)
    for one in statements(NEXT.sql):
        await link.execute(one)
    await link.execute("INSERT INTO convmem.convmem_migration (number) VALUES (2)")
    await link.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["auto", "check", "off"])
async def test_old_code_works_on_a_newer_schema(postgres_server: PostgresServer, how: str) -> None:
    """During a rolling deployment old workers meet the tables of the new ones."""
    url = postgres_server.database()
    await migrate_beyond(url)
    async with PostgresStore.at(url, migrate=how) as store:  # type: ignore[arg-type]
        writer = Writer(store)
        await writer.seize()
        await writer.append(release=True)
        assert await store.delete(writer.key)
        assert await store.migrate() == ()


@pytest.fixture(scope="module")
def newer(postgres_server: PostgresServer) -> str:
    """Return the URL of a database that is a version ahead."""
    url = postgres_server.database()
    asyncio.run(migrate_beyond(url))
    return url


@pytest.mark.all_only
class TestOldCodeOnANewerSchema(StoreContract):
    """The whole contract, on tables that have more columns than the code knows."""

    @pytest.fixture
    def open_store(self, newer: str):
        return lambda: PostgresStore.at(newer)

    async def break_store(self, store):
        return PostgresStore.at("postgresql://127.0.0.1:1/none", timeout=timedelta(seconds=0.5))


@pytest.mark.asyncio
async def test_the_next_migration_is_applied_once(postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upgrade finds the tables of the version before, with conversations in them."""
    url = postgres_server.database()
    async with PostgresStore.at(url) as store:
        writer = Writer(store)
        entry = await writer.append()
    before = migrations()
    monkeypatch.setattr(postgres_schema, "migrations", lambda: [*before, NEXT])
    async with PostgresStore.at(url, migrate="check") as store:
        with pytest.raises(StoreUnavailable, match=r"are of version 1, and this is version 2; run: convmem migrate"):
            await store.load(writer.key)
    async with PostgresStore.at(url) as store:
        assert await store.migrate() == ("002_invented.sql",)
        assert await store.migrate() == ()
        assert await Writer(store, writer.key).visible() == (entry.id,)


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["check", "off"])
async def test_missing_tables_are_a_sentence_with_the_command(postgres_server: PostgresServer, how: str) -> None:
    """Who forbids a worker to make tables is told what to type, not that a relation does not exist."""
    async with PostgresStore.at(postgres_server.database(), migrate=how) as store:  # type: ignore[arg-type]
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="tables in the schema convmem are missing; run: convmem migrate") as caught:
                await store.load(fresh_key())
            assert not caught.value.unknown
        assert await store.migrate()
        await store.load(fresh_key())


@pytest.mark.asyncio
async def test_another_schema_is_used_for_everything(postgres_server: PostgresServer) -> None:
    """Two apps in one database, or a schema that was handed out: nothing is made beside it."""
    url = postgres_server.database()
    async with PostgresStore.at(url, schema="Some-schema") as store:
        await (writer := Writer(store)).append()
        await store.check()
        await store.list(None)
        await store.delete(writer.key)
    link = await asyncpg.connect(url)
    rows = await link.fetch("SELECT DISTINCT schemaname FROM pg_tables WHERE tablename LIKE 'convmem%'")
    await link.close()
    assert [row[0] for row in rows] == ["Some-schema"]
    for wrong in ("", 'a"b', "a.b", "a b", "\u00e4"):
        with pytest.raises(ValueError, match="use letters"):
            PostgresStore.at(url, schema=wrong)


@pytest_asyncio.fixture
async def fenced_in(postgres_server: PostgresServer) -> AsyncIterator[tuple[asyncpg.Connection, str]]:
    """Return a superuser's connection and the URL of a user who may do nothing, in a new database."""
    url = postgres_server.database()
    user = f"user_{new_id()[-8:]}"
    link = await asyncpg.connect(url)
    await link.execute(f"CREATE ROLE {user} LOGIN")
    yield link, url.replace("postgres@", f"{user}@", 1)
    await link.execute(f"DROP OWNED BY {user} CASCADE")
    await link.execute(f"DROP ROLE {user}")
    await link.close()


@pytest.mark.asyncio
async def test_reading_and_writing_rows_is_all_a_worker_has_to_be_allowed(fenced_in: tuple[asyncpg.Connection, str]) -> None:
    """Each missing right is a sentence with the GRANT, and following them leads to a working store with no right to make anything."""
    link, url = fenced_in
    followed: list[str] = []
    async with PostgresStore.at(url) as store:
        writer = Writer(store)
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match=r"GRANT [^;]*?TO \w+") as caught:
                await writer.append()
            assert not caught.value.unknown
            (grant, *_) = re.findall(r"GRANT [^;]*?TO \w+", str(caught.value))
            followed.append(grant.split(" TO ")[0].split(" ON ")[0])
            if "ON DATABASE" in grant:
                assert "convmem migrate --sql" in str(caught.value)
                grant = migration_sql("convmem")  # what the sentence offers instead of the right
            await link.execute(grant)
        assert followed == ["GRANT CREATE", "GRANT USAGE", "GRANT SELECT, INSERT, UPDATE, DELETE"]
        await writer.append()
        await store.check()
        await store.delete(writer.key)
        await store.list(None)


@pytest.mark.asyncio
async def test_one_who_owns_only_the_schema_can_migrate(fenced_in: tuple[asyncpg.Connection, str]) -> None:
    """Shared hosts hand out a schema, and no right to make another."""
    link, url = fenced_in
    user = url.split("//")[1].split("@")[0]
    await link.execute(f"CREATE SCHEMA theirs AUTHORIZATION {user}")
    async with PostgresStore.at(url, schema="theirs") as store:
        await Writer(store).append()


@pytest.mark.asyncio
async def test_a_pool_that_was_passed_in_is_used_and_not_closed(postgres_url: str) -> None:
    """It is the app's, which has more to do with it than we."""
    async with asyncpg.create_pool(postgres_url, min_size=1, max_size=2) as pool:
        async with PostgresStore(pool) as store:
            await (writer := Writer(store)).append()
            await asyncio.gather(*(store.load(writer.key) for _ in range(8)))
        assert await pool.fetchval("SELECT 1") == 1
        assert pool.get_idle_size() == pool.get_size()


@pytest.mark.asyncio
async def test_connections_that_are_all_busy_are_waited_for_and_not_for_ever(postgres_url: str) -> None:
    """A pool that is too small makes requests slow first, and then says so; it never hangs."""
    async with PostgresStore.at(postgres_url, pool_max=2, timeout=timedelta(seconds=0.6)) as store:
        writer = Writer(store)
        await writer.append()
        assert len(await asyncio.gather(*(store.load(writer.key) for _ in range(50)))) == 50
        link = await asyncpg.connect(postgres_url)
        blocked = link.transaction()
        await blocked.start()
        await link.execute("LOCK TABLE convmem.convmem_conversation IN ACCESS EXCLUSIVE MODE")
        with Awake() as clock:
            answers = await asyncio.gather(*(store.load(writer.key) for _ in range(5)), return_exceptions=True)
            assert clock() < 6
        assert all(isinstance(answer, StoreUnavailable) for answer in answers)
        for answer in answers:  # which of them came to a connection in its last moment is luck
            assert "all 2 connections" in str(answer) or "did not answer in time" in str(answer)
        await blocked.rollback()
        await link.close()
        assert (await store.load(writer.key)).head == writer.head


@pytest.mark.asyncio
async def test_a_call_that_timed_out_leaves_nothing_running_on_the_server(postgres_url: str) -> None:
    """A request that gave up and still waits for a lock would take the next one's place in the queue, and write after all."""
    async with PostgresStore.at(postgres_url, timeout=timedelta(seconds=0.4)) as store:
        writer = Writer(store)
        await writer.append()
        link = await asyncpg.connect(postgres_url)
        transaction = link.transaction()
        await transaction.start()
        await link.execute("LOCK TABLE convmem.convmem_entry IN EXCLUSIVE MODE")
        with pytest.raises(StoreUnavailable, match="did not answer in time") as caught:
            await writer.offer()
        assert caught.value.unknown
        until = time.monotonic() + PATIENCE
        while await link.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
            assert time.monotonic() < until
            await asyncio.sleep(0.05)
        await transaction.rollback()
        await link.close()
        assert (await store.load(writer.key)).head == writer.head


@pytest.mark.asyncio
async def test_a_statement_the_server_ended_costs_no_connection(postgres_url: str) -> None:
    """Many servers have a statement_timeout: one slow statement must not make every worker connect anew."""
    async with PostgresStore.at(f"{postgres_url}?options=-c%20statement_timeout%3D500", pool_max=3) as store:
        slow, *others = [Writer(store) for _ in range(3)]
        await slow.append()
        await asyncio.gather(*(writer.append() for writer in others), slow.load())
        backends = await pids(postgres_url)
        blocker = await asyncpg.connect(postgres_url)
        async with blocker.transaction():
            await blocker.execute("LOCK TABLE convmem.convmem_conversation")
            with pytest.raises(StoreUnavailable, match="statement timeout"):
                await slow.offer()
        await blocker.close()
        await slow.append()
        assert backends <= await pids(postgres_url)


async def pids(url: str) -> set[int]:
    """Return the server processes that have run a statement of a store in this database."""
    link = await asyncpg.connect(url)
    try:
        rows = await link.fetch(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE '%convmem_%'"
        )
    finally:
        await link.close()
    return {row[0] for row in rows}


@pytest.mark.asyncio
async def test_idle_connections_are_kept_and_used_again(postgres_url: str) -> None:
    """A connection a request is ten times the cost of the request."""
    async with Proxy(HOST, port_of(postgres_url)) as proxy:
        async with PostgresStore.at(through(postgres_url, proxy.port)) as store:
            for _ in range(20):
                await store.load(fresh_key())
            assert proxy.connections == 1
            await asyncio.gather(*(store.load(fresh_key()) for _ in range(100)))
            assert proxy.connections <= 10
        await asyncio.sleep(0.05)
        assert proxy.open == 0


@pytest.mark.asyncio
async def test_more_connections_than_are_kept_are_closed_when_idle(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rush of an hour ago must not hold the server's connections for ever."""
    monkeypatch.setattr("convmem.stores.postgres_connections.IDLE_FOR", 0.05)
    port = port_of(postgres_url)
    async with Proxy(HOST, port) as proxy, PostgresStore.at(through(postgres_url, proxy.port), pool_max=8, pool_min=2) as store:
        await asyncio.gather(*(store.list("user:1") for _ in range(100)))
        assert proxy.open > 2
        for _ in range(12):
            await asyncio.sleep(0.06)
            await store.load(fresh_key())
        assert proxy.open == 2


@pytest.mark.asyncio
async def test_an_outage_is_over_when_the_server_is_back(postgres_url: str) -> None:
    """Connections recover by themselves; a short outage is waited out, a long one is answered at once, and nobody storms the server."""
    port = port_of(postgres_url)
    async with Proxy(HOST, port) as proxy, PostgresStore.at(through(postgres_url, proxy.port), timeout=timedelta(seconds=1)) as store:
        writer = Writer(store)
        await writer.append()
        async with PostgresStore.at(through(postgres_url, proxy.port), timeout=timedelta(seconds=PATIENCE)) as patient:
            await patient.load(writer.key)
            await proxy.refuse()
            short = asyncio.create_task(patient.load(writer.key))
            await asyncio.sleep(0.3)
            await proxy.mend()
            assert (await short).head == writer.head
        await proxy.refuse()
        with pytest.raises(StoreUnavailable):
            await store.load(writer.key)
        await asyncio.sleep(0.2)
        with Awake() as clock:
            for _ in range(20):
                with pytest.raises(StoreUnavailable):
                    await store.load(writer.key)
            assert clock() < 4, "while a server is away for long, nobody waits for it"
        await proxy.mend()
        connections = proxy.connections
        proxy.turn_away()
        until = time.monotonic() + 2
        while time.monotonic() < until:
            await asyncio.gather(*(store.load(writer.key) for _ in range(50)), return_exceptions=True)
            await asyncio.sleep(0.01)
        assert proxy.connections - connections < 60, "a reconnect storm"
        await proxy.mend()
        await asyncio.sleep(2.1)
        assert (await store.load(writer.key)).head == writer.head


@pytest.mark.asyncio
@pytest.mark.parametrize("cut", [0, 1, 30])
async def test_an_append_whose_answer_is_lost_is_unknown_and_stored_once(postgres_url: str, cut: int) -> None:
    """A reset after sending says nothing about what the server did; the repeat of the very same entry finds out."""
    port = port_of(postgres_url)
    async with Proxy(HOST, port) as proxy, PostgresStore.at(through(postgres_url, proxy.port)) as store:
        writer = Writer(store)
        for _ in range(3):
            await writer.append()
        entry = writer.entry()
        proxy.cut_reply_after(cut)
        with pytest.raises(StoreUnavailable) as caught:
            await writer.offer(entry)
        assert caught.value.unknown
        assert (await writer.offer(entry)).outcome in {Outcome.STORED, Outcome.DUPLICATE}
        assert (await store.load(writer.key)).head.n == 4


@pytest.mark.asyncio
async def test_several_event_loops_at_once_each_have_their_connections(postgres_url: str) -> None:
    """Sync frameworks run handlers in threads with a loop each; connections of asyncpg belong to the loop that made them."""
    store = PostgresStore.at(postgres_url)
    writer = Writer(store)
    await writer.append()

    def elsewhere() -> int:
        return asyncio.run(store.load(writer.key)).head.n

    assert await asyncio.gather(*(asyncio.to_thread(elsewhere) for _ in range(4))) == [1] * 4
    await store.aclose()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_event_loops_that_were_only_closed_leave_no_connection_behind(postgres_server: PostgresServer) -> None:
    """A job that makes a loop, runs it and closes it ends no asynchronous generator: a hundred of them would fill up a server."""
    url, key = postgres_server.database(), fresh_key()
    store = PostgresStore.at(url)

    def load() -> None:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(store.load(key))
        loop.close()

    for _ in range(4):
        load()
    gc.collect()

    async def look() -> None:
        link = await asyncpg.connect(url)
        async with asyncio.timeout(PATIENCE):  # that of the last loop goes when the next one comes
            while await link.fetchval("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()") > 2:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await link.close()

    asyncio.run(look())
    asyncio.run(store.aclose())
    gc.collect()  # what the driver says of connections that nobody closed is for the filter of this test


@pytest.mark.asyncio
@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
async def test_a_server_that_serialises_is_asked_again(postgres_url: str, isolation: str) -> None:
    """READ COMMITTED is enough, but some set more for a whole database; 40001 then means: the same entry, once more."""
    url = f"{postgres_url}?options=-c%20default_transaction_isolation%3D{isolation.replace(' ', '%5C%20')}"
    async with PostgresStore.at(url) as store:
        key = fresh_key()

        async def write(number: int) -> None:
            writer, done = Writer(store, key), 0
            while done < 5:
                await writer.load(turns=0)
                done += (await writer.offer()).outcome is Outcome.STORED

        await asyncio.gather(*(write(number) for number in range(6)))
        assert (await store.load(key)).head.n == 30


class TestBehindAPoolerInTransactionMode:
    """pgbouncer as most run it: no session belongs to anybody."""

    @pytest_asyncio.fixture
    async def pooler(self, postgres_server: PostgresServer) -> AsyncIterator[Pooler]:
        async with Pooler(HOST, postgres_server.port) as pooler:
            yield pooler

    @pytest.mark.asyncio
    async def test_it_is_found_out_and_nothing_fails(self, postgres_url: str, pooler: Pooler) -> None:
        """Nobody reads about statement_cache_size before the first error in production."""
        async with PostgresStore.at(through(postgres_url, pooler.port)) as store:
            await self._write(store)
            assert options_of(store)["statement_cache_size"] == 0

    @pytest.mark.asyncio
    async def test_prepared_statements_fail_there(self, postgres_url: str, pooler: Pooler) -> None:
        """The twin: what happens to a client that does not find out, so that the test above tests something."""
        link = [await asyncpg.connect(through(postgres_url, pooler.port)) for _ in range(4)]
        await link[0].fetch("SELECT $1::int", 1)  # prepared and run in one transaction
        with pytest.raises(asyncpg.InvalidSQLStatementNameError):
            await link[0].fetch("SELECT $1::int", 1)
        for each in link:
            each.terminate()

    @pytest.mark.asyncio
    async def test_a_pool_with_prepared_statements_is_told_what_to_set(self, postgres_url: str, pooler: Pooler) -> None:
        """A pool that was passed in is not ours to change."""
        async with asyncpg.create_pool(through(postgres_url, pooler.port), min_size=4, max_size=4, reset=_no_reset) as pool:
            with pytest.raises(StoreUnavailable, match="statement_cache_size=0"):
                await self._write(PostgresStore(pool, migrate="off"))

    @pytest.mark.asyncio
    async def test_no_pooler_means_prepared_statements(self, postgres_url: str) -> None:
        """They save a trip for every call."""
        async with PostgresStore.at(postgres_url) as store:
            await store.load(fresh_key())
            assert options_of(store)["statement_cache_size"] > 0

    async def _write(self, store: PostgresStore) -> None:
        async def turns() -> None:
            writer = Writer(store)
            for _ in range(10):
                await writer.seize()
                await writer.append(release=True)
            assert len(await writer.visible()) == 10

        await asyncio.gather(*(turns() for _ in range(8)))

    def test_pgbouncer_itself(self) -> None:
        """There is no wheel of it; where it is installed this would be the place."""
        if shutil.which("pgbouncer") is None:
            pytest.skip("declared: pgbouncer has no wheel, and is not installed")


def options_of(store: PostgresStore) -> dict[str, Any]:
    """Return what a store connects with."""
    connections = store._database.connections
    assert isinstance(connections, OwnConnections)
    return connections._options


async def _no_reset(connection: asyncpg.Connection) -> None:
    """Leave a connection as it is."""


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"synchronous_commit": "off"}, "synchronous_commit=off and loses the last acknowledged turns"),
        ({"fsync": "off"}, "fsync=off and may lose everything"),
        ({"full_page_writes": "off"}, "full_page_writes=off"),
    ],
)
async def test_a_server_that_may_lose_turns_is_named_once(postgres_wheel: PostgresWheel, settings: dict[str, str], says: str) -> None:
    """Nobody looks at the server's configuration until turns are missing; the warning says what to set."""
    server = postgres_wheel.server(**settings)
    store = PostgresStore.at(server.url())
    with pytest.warns(UnsafePostgresWarning, match=says):
        await Writer(store).append()
    await store.check()  # a second warning would be an error here
    await store.aclose()
    async with PostgresStore.at(server.url(), unsafe="refuse") as strict:
        for call in (strict.check, Writer(strict).append):
            with pytest.raises(ConfigurationError, match=says):
                await call()
    async with PostgresStore.at(server.url(), unsafe="allow") as easy:
        await Writer(easy).append()
        durability = (await easy.check()).durability
    assert ("may" in durability) == (settings != {"full_page_writes": "off"}) or "failover" in durability
    server.kill()


@pytest.mark.asyncio
async def test_what_an_acknowledged_turn_survives_is_named(postgres_wheel: PostgresWheel) -> None:
    """Alone, with a standby that follows, and with one that is waited for: three promises, and three texts."""
    primary = postgres_wheel.server()
    async with PostgresStore.at(primary.url()) as store:
        health = await store.check()
        assert health.server.startswith("PostgreSQL 18")
        assert "no standby is synchronous (synchronous_commit=on)" in health.durability
    replica = postgres_wheel.replica(primary)
    primary.sql("ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (*)'")
    primary.sql("SELECT pg_reload_conf()")
    link = await asyncpg.connect(primary.url())
    while await link.fetchval("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum'") != 1:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.02)
    await link.close()
    async with PostgresStore.at(primary.url()) as store:
        assert "failover to a synchronous standby (synchronous_commit=on, ANY 1 (*))" in (await store.check()).durability
        writer = Writer(store)
        await writer.seize()
        await writer.append(writer.entry(closing=False))
    async with PostgresStore.at(replica.url(), timeout=timedelta(seconds=2)) as standby:
        with pytest.raises(StoreUnavailable, match="a standby, or read-only; name the primary"):
            await standby.load(writer.key)
    async with PostgresStore.at(f"postgresql://postgres@{HOST}:{primary.port},{HOST}:{replica.port}/postgres") as both:
        assert (await both.load(writer.key)).head == writer.head
        primary.kill()
        replica.sql("ALTER SYSTEM SET synchronous_standby_names = ''")
        await asyncio.to_thread(replica.promote)
        late = Writer(both, writer.key)
        log = await late.seize()  # the lease of the server that died is gone with it: nobody waits for it
        assert log.head == writer.head
        await late.append(release=True)
        assert (await writer_on(both, writer).offer()).outcome is Outcome.CONFLICT
    replica.kill()


def writer_on(store: PostgresStore, writer: Writer) -> Writer:
    """The same writer over another store."""
    writer.store = store
    return writer


@pytest.mark.asyncio
async def test_a_crash_of_the_server_loses_nothing_but_leases(postgres_wheel: PostgresWheel) -> None:
    """Kill -9 in the middle of turns: what was acknowledged is there, conversations are free, connections come back by themselves."""
    server = postgres_wheel.server()
    async with PostgresStore.at(server.url(), timeout=timedelta(seconds=20)) as store:
        writers = [Writer(store) for _ in range(10)]
        for writer in writers:
            await writer.seize()
            await writer.append(writer.entry(closing=False))
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        for writer in writers:
            assert (await store.load(writer.key)).head == writer.head
            assert await store.renew(writer.key, Lease(writer.token, LONG), writer.head)
            await writer.append(release=True)
    server.kill()


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Return a certificate for the loopback, signed by itself, and its key."""
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


@pytest.mark.asyncio
async def test_tls_is_spoken_and_its_certificate_is_checked(postgres_17_wheel: PostgresWheel, tmp_path: Path) -> None:
    """Between hosts the history must not be readable, nor anybody pass for the server; on the second version of it."""
    if shutil.which("openssl") is None:
        pytest.skip("declared: openssl is needed to make a certificate")
    certificate, key = make_certificate(tmp_path, "server")
    base = postgres_17_wheel.base
    for file in (certificate, key):
        target = base / file.name
        shutil.copy(file, target)
        target.chmod(0o600)
        if postgres_17_wheel.user:
            shutil.chown(target, postgres_17_wheel.user["user"], postgres_17_wheel.user["group"])
    server = postgres_17_wheel.server(ssl="on", ssl_cert_file=str(base / "server.crt"), ssl_key_file=str(base / "server.key"))
    async with open_store(server.url(query=f"?sslmode=verify-full&sslrootcert={certificate}")) as store:
        await (writer := Writer(store)).append()
        assert (await store.check()).server.startswith("PostgreSQL 17")
    link = await asyncpg.connect(server.url())
    transport = link._transport.get_extra_info("ssl_object")
    assert transport is not None
    await link.close()
    stranger, _ = make_certificate(tmp_path, "stranger")
    async with open_store(server.url(query=f"?sslmode=verify-full&sslrootcert={stranger}&timeout=1s")) as store:
        with pytest.raises(StoreUnavailable, match="certificate"):
            await store.load(writer.key)
    server.kill()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda url: re.sub(r"/db_\w+", "/no_such_database", url), "the database in CONVMEM_STORE does not exist"),
        (lambda url: url.replace("postgres@", "nobody_here@", 1), "the server refused the user or the password"),
        (lambda url: through(url, 1), "no connection: "),
        (lambda url: url.replace(HOST, "no..host", 1), "no connection: "),
        (lambda url: f"{url}?sslmode=require", "no connection: "),
    ],
)
async def test_a_server_that_cannot_be_used_is_a_sentence_without_secrets(postgres_url: str, change, says: str) -> None:
    """The first run against a new database fails in one of these ways."""
    url = change(postgres_url).replace("@", ":hush@", 1)
    async with PostgresStore.at(url, timeout=timedelta(seconds=0.5)) as store:
        with pytest.raises(StoreUnavailable, match=says) as caught:
            await store.load(fresh_key())
        assert "hush" not in str(caught.value)
        assert not caught.value.unknown
        with pytest.raises(StoreUnavailable) as caught:
            await Writer(store).append()
        assert not caught.value.unknown  # nothing was sent


@pytest.mark.asyncio
async def test_a_lease_costs_no_log_and_an_append_little(postgres_url: str) -> None:
    """A lease need not survive a crash, so it must not wait for the disk; what an append writes is counted, and has a ceiling."""
    link = await asyncpg.connect(postgres_url)

    async def written() -> int:
        return int(await link.fetchval("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))

    async with PostgresStore.at(postgres_url) as store:
        writer = Writer(store)
        for _ in range(30):
            await writer.append(writer.entry(body=b"x" * 1000))
        await link.execute("CHECKPOINT")
        await writer.append(writer.entry(body=b"x" * 1000))  # the first after a checkpoint writes whole pages
        quiet = []
        flushed = []
        for _ in range(5):
            before, disk = await written(), await link.fetchval("SELECT pg_current_wal_flush_lsn()::text")
            await store.load(writer.key, lease=Lease(writer.token, LONG))
            await store.renew(writer.key, Lease(writer.token, LONG), writer.head)
            await store.release(writer.key, writer.token)
            flushed.append(disk != await link.fetchval("SELECT pg_current_wal_flush_lsn()::text"))
            quiet.append(await written() - before)
        assert min(quiet) <= 3 * 48, quiet  # the records of three commits, and nothing of what they wrote
        assert not all(flushed)
        costs = []
        for _ in range(9):
            before = await written()
            await writer.append(writer.entry(body=b"x" * 1000))
            costs.append(await written() - before)
        assert sorted(costs)[4] < 2200, costs
    await link.close()


@pytest.mark.asyncio
async def test_an_append_moves_no_row_to_another_page(postgres_server: PostgresServer) -> None:
    """The row of a conversation is updated where it stands and in no index (HOT); the rest of the table keeps its size."""
    url = postgres_server.database()
    async with PostgresStore.at(url) as store:
        writer = Writer(store)
        for _ in range(60):
            await writer.append()
    link = await asyncpg.connect(url)
    counts = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'convmem_conversation'"
    until = time.monotonic() + PATIENCE
    while (row := await link.fetchrow(counts))["n_tup_upd"] < 59:
        assert time.monotonic() < until
        await asyncio.sleep(0.1)  # a connection hands in its counts when it ends
    await link.close()
    assert row["n_tup_hot_upd"] >= 0.9 * row["n_tup_upd"]


@pytest.mark.asyncio
async def test_dead_leases_and_old_tombstones_are_cleared_by_deletes(postgres_server: PostgresServer) -> None:
    """Visitors who never came back leave a row each; a table that only grows is found in production."""
    url = postgres_server.database()
    async with PostgresStore.at(url) as store:
        for _ in range(5):
            await Writer(store).seize(timedelta(milliseconds=1))
            await store.delete(fresh_key())
        kept = Writer(store)
        await kept.append()
        link = await asyncpg.connect(url)
        await link.execute("UPDATE convmem.convmem_lease SET day = day - 3")
        await link.execute("UPDATE convmem.convmem_conversation SET deleted = deleted - interval '31 days'")
        await store.delete(fresh_key())
        assert await link.fetchval("SELECT count(*) FROM convmem.convmem_lease") <= 2
        rows = await link.fetch("SELECT epoch FROM convmem.convmem_conversation")
        await link.close()
        assert sorted(bool(row[0]) for row in rows) == [False, True]  # the newest tombstone, and what was kept
        assert len(await kept.visible()) == 1


@pytest.mark.asyncio
async def test_a_sweep_removes_what_is_dead_in_batches(postgres_server: PostgresServer) -> None:
    """Where nobody deletes, nothing else would; young tombstones stay, a locked row holds nobody up, and no batch is long."""
    url = postgres_server.database()
    async with PostgresStore.at(url) as store:
        young, kept = fresh_key(), Writer(store)
        await store.delete(young)
        await kept.append()
        link, other = await asyncpg.connect(url), await asyncpg.connect(url)
        await link.execute(
            "INSERT INTO convmem.convmem_conversation"
            " (id, n, start, created, updated, turns, day, tenant, owner, session, epoch, entry, mark, deleted)"
            " SELECT md5(g::text)::uuid, 0, 0, now(), now(), 0, current_date, '', 'user:' || g, 's', '', 'm', 'm', now() - interval '31 days'"
            " FROM generate_series(1, 1200) AS g"
        )
        await link.execute(
            "INSERT INTO convmem.convmem_lease (conversation, taken, until, n, day, token, epoch, entry)"
            " SELECT md5(g::text)::uuid, now(), now() + (g - 700) * interval '1 day', 0, current_date - 3, 'token', '', ''"
            " FROM generate_series(1, 710) AS g"
        )
        async with other.transaction():
            await other.execute("UPDATE convmem.convmem_conversation SET deleted = deleted WHERE owner = 'user:7'")
            removed = []
            while number := await store.sweep():
                removed.append(number)
        assert sum(removed) == 1199 + 700
        assert max(removed) <= 1000
        assert (await store.sweep(), await store.sweep()) == (1, 0)
        assert await link.fetchval("SELECT count(*) FROM convmem.convmem_lease WHERE until > now()") == 10
        await link.close()
        await other.close()
        assert (await store.load(young)).deleted_at is not None
        assert len(await kept.visible()) == 1


@pytest.mark.asyncio
async def test_a_walk_looks_at_so_many_addresses_a_page(postgres_server: PostgresServer) -> None:
    """A retention job that finds little must not hold a connection for the whole table; it gets an empty page and goes on."""
    url = postgres_server.database()
    async with PostgresStore.at(url) as store:
        for number in range(50):
            await store.append(SessionKey(f"user:{number:02}"), Head(), Entry(f"e{number}", "t", "token", "epoch", turns=1))
        await store.append(SessionKey.reserved("keys"), Head(), Entry("e", "t", "token", "epoch"))
        pages, after = [], None
        while True:
            page = await store.list(
                None, tenant=None, after=after, limit=1, written_before=(await store.list("user:00")).items[0].updated_at
            )
            pages.append(len(page.items))
            after = page.after
            if after is None:
                break
        assert pages == [0, 0, 0]
        found, after = [], None
        while True:
            page = await store.list(None, tenant=None, after=after, limit=2)
            found += [item.key.owner for item in page.items]
            after = page.after
            if after is None:
                break
        assert found == [f"user:{number:02}" for number in range(50)]
        assert not any(owner.startswith(RESERVED_OWNER) for owner in found)


def test_the_printed_statements_make_the_tables(postgres_server: PostgresServer) -> None:
    """What `convmem migrate --sql` prints is what a database administrator runs, in any schema."""
    url = postgres_server.database()
    postgres_server.sql(migration_sql("handed_out"), url.rpartition("/")[2])

    async def use() -> None:
        async with PostgresStore.at(url, schema="handed_out", migrate="check") as store:
            await Writer(store).append()

    asyncio.run(use())
    assert "convmem." not in in_schema(migrations()[0].sql, "x").replace('"x".convmem_', "")


@pytest.mark.asyncio
async def test_connections_wait_their_turn(postgres_url: str) -> None:
    """Whoever waits longest is next: with a last-in-first-out pool a request can starve."""
    connections = OwnConnections({"dsn": postgres_url}, location="here", pooling=Pooling(1, 1))
    order: list[int] = []

    async def use(number: int) -> None:
        async with connections.use(time.monotonic() + 5) as link:
            order.append(number)
            await link.fetch("SELECT pg_sleep(0.01)")

    await asyncio.gather(*(use(number) for number in range(12)))
    assert order == sorted(order)
    await connections.aclose()
