"""Mixed traffic for half an hour: what four workers hold is to stay what it was, and no answer is to take longer than before.

Visitors talk, read, stream, leave in the middle of an answer, send two questions at once, delete, and come for the first time, in
a hundred thousand conversations that are there from the beginning, so that nothing that is kept for each of them stays small.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections import Counter
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks import charts, processes
from benchmarks.own import first_entry
from benchmarks.run import Places
from benchmarks.served import Served
from benchmarks.still import SECRET
from benchmarks.systems import System
from benchmarks.workload import question
from convmem import SessionKey, open_store
from convmem.identity import KeyRing
from convmem.identity.policy import VisitorPolicy
from convmem.identity.visitor import Visitors, new_visitor_id
from convmem.stores.base import Head

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.run import Say

WORKERS, CLIENTS, CONVERSATIONS = 4, 32, 100_000
_ACTIONS = {"chat": 60, "stream": 18, "bare": 10, "history": 10, "leave": 5, "twice": 4, "new": 2, "delete": 1}
_ROUTES = {
    "chat": ("POST", "/chat"),
    "new": ("POST", "/chat"),
    "stream": ("POST", "/stream"),
    "leave": ("POST", "/stream"),
    "history": ("GET", "/history"),
    "delete": ("DELETE", "/conversation"),
    "bare": ("GET", "/bare"),
}
_FINE = {200, 409, 410}
"""Two questions at once may find the conversation taken, and one that was deleted meanwhile is gone: both are answers."""
_SELDOM = 10_000
_SAMPLES = 120
_QUIET = 3.0
_MEGABYTE = 1e6


class Sample(NamedTuple):
    """What was held at one moment, and how long a turn took since the last.

    Attributes:
        minute: Since the traffic began.
        resident: Bytes of memory of each worker.
        descriptors: Open files and sockets of each.
        tasks: Tasks of each event loop.
        connections: To the store's server, of everybody.
        p99: Of the plain turns, in seconds.
        bare: The same of requests that have nothing to do with a conversation: what the machine makes all wait for.
        cpu: Seconds of CPU that the workers used for each request.
        rate: Requests a second.
    """

    minute: float
    resident: Sequence[int]
    descriptors: Sequence[int]
    tasks: Sequence[int]
    connections: int
    p99: float
    bare: float
    cpu: float
    rate: float


_BOUNDS: tuple[tuple[str, Callable[[Sample], float], float, float], ...] = (
    ("the memory of the workers, in MB,", lambda sample: sum(sample.resident) / _MEGABYTE, 1.05, 8.0),
    ("open files and sockets", lambda sample: sum(sample.descriptors), 1.1, 8.0),
    ("tasks", lambda sample: sum(sample.tasks), 1.2, 16.0),
    ("connections to the store", lambda sample: sample.connections, 1.1, 8.0),
    ("p99 over that of a bare request", lambda sample: sample.p99 / max(sample.bare, 1e-3), 1.5, 1.0),
    ("CPU for each request, in ms,", lambda sample: sample.cpu * 1e3, 1.2, 0.1),
)
"""What is watched, how it is read, and how much more of it is no growth: a factor and something on top."""


def grown(samples: Sequence[Sample]) -> list[str]:
    """Return what grew from the second eighth to the last quarter, as sentences; nothing when all is flat.

    The first eighth is left out: caches with a bound fill, and so do the allocator's arenas.
    """
    eighth = max(len(samples) // 8, 1)
    early, late = samples[eighth : 2 * eighth] or samples[:1], samples[-2 * eighth :]
    said = []
    for name, of, times, more in _BOUNDS:
        before, after = (statistics.median(of(sample) for sample in part) for part in (early, late))
        if after > before * times + more:
            said.append(f"{name} grew from {before:,.3g} to {after:,.3g}")
    return said


@dataclass
class Traffic:
    """What the clients saw.

    Attributes:
        took: Seconds of each plain turn since the last sample.
        bare: And of each bare request.
        requests: Since the last sample.
        done: Requests by action and status.
        wrong: Answers nobody expects, the first few of them.
    """

    took: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    requests: int = 0
    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def note(self, action: str, status: int, answer: bytes, seconds: float) -> None:
        """Take one answer."""
        self.requests += 1
        self.done[f"{action} {status}"] += 1
        if action == "chat" and status == 200:  # noqa: PLR2004 - a turn that was done
            self.took.append(seconds)
        if action == "bare":
            self.bare.append(seconds)
        if status not in _FINE and len(self.wrong) < 10:  # noqa: PLR2004 - more would say no more
            self.wrong.append(f"{action}: {status} {answer[:200]!r}")

    def cut(self, action: str) -> None:
        """Take an answer that broke off; one in a while may, and more are wrong."""
        self.requests += 1
        self.done[f"{action} cut"] += 1
        if self.done[f"{action} cut"] > 1 + self.done[f"{action} 200"] // _SELDOM and len(self.wrong) < 10:  # noqa: PLR2004 - as above
            self.wrong.append(f"{action}: the answer broke off")


class Mixed(Served):
    """The app of a worker."""

    app = "benchmarks.apps:mixed"

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._address[1]

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid


class Client:
    """One browser after the other, on connections that are kept."""

    def __init__(self, ports: Sequence[int], cookies: Sequence[str], traffic: Traffic) -> None:
        """Connect to nothing yet."""
        self._ports, self._cookies, self._traffic = ports, cookies, traffic
        self._open: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}

    async def talk(self, until: float) -> None:
        """Do one thing after the other."""
        try:
            while time.monotonic() < until:
                (action,) = random.choices(list(_ACTIONS), list(_ACTIONS.values()))
                port, cookie = random.choice(self._ports), random.choice(self._cookies)
                if action == "twice":
                    await asyncio.gather(*(self._alone(random.choice(self._ports), cookie) for _ in range(2)))
                else:
                    await self._do(action, port, "" if action == "new" else cookie)
        finally:
            for _, writer in self._open.values():
                writer.close()

    async def _do(self, action: str, port: int, cookie: str) -> None:
        began = time.monotonic()
        method, path = _ROUTES[action]
        if port not in self._open:
            self._open[port] = await asyncio.open_connection("127.0.0.1", port)
        reader, writer = self._open[port]
        writer.write(request(method, path, cookie))
        if action == "leave":
            await reader.readuntil(b"\r\n\r\n")
            self._open.pop(port)[1].close()
            self._traffic.note(action, 200, b"", 0.0)
            return
        try:
            status, answer = await answer_of(reader)
        except asyncio.IncompleteReadError:  # a turn that cannot be stored has no end: perhaps somebody has deleted its conversation
            self._open.pop(port)[1].close()
            self._traffic.cut(action)
            return
        self._traffic.note(action, status, answer, time.monotonic() - began)

    async def _alone(self, port: int, cookie: str) -> None:
        """Ask on a connection of its own."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request("POST", "/chat", cookie))
        status, answer = await answer_of(reader)
        self._traffic.note("twice", status, answer, 0.0)
        writer.close()


def request(method: str, path: str, cookie: str = "") -> bytes:
    """Return what a browser would send."""
    body = json.dumps({"question": question()}) if method == "POST" else ""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Sec-Fetch-Site: same-origin", f"Content-Length: {len(body)}"]
    lines += [f"Cookie: {cookie}"] if cookie else []
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


async def answer_of(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Read one answer: its status and its body, chunks with their marks."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head.split(b" ", 2)[1])
    if b"\r\ntransfer-encoding: chunked" in head:
        return status, await reader.readuntil(b"0\r\n\r\n")
    length = int(head.partition(b"\r\ncontent-length: ")[2].split(b"\r\n", 1)[0] or 0)
    return status, await reader.readexactly(length)


class Soak:
    """A soak under way.

    Args:
        place: The store's URL.
        places: The servers, which are asked for their connections.
        say: Told how far it is.
    """

    def __init__(self, place: str, places: Places, say: Say) -> None:
        """Begin with nothing."""
        self._place, self._places, self._say = place, places, say
        self._workers: list[Mixed] = []
        self._cpu = 0.0
        self.traffic = Traffic()
        self.samples: list[Sample] = []
        self.left: list[str] = []

    async def run(self, minutes: float, conversations: int = CONVERSATIONS) -> None:
        """Fill, talk for so long, then see what is left when all is quiet."""
        cookies = await self._fill(conversations)
        async with AsyncExitStack() as stack:
            for _ in range(WORKERS):
                worker = Mixed(self._place)
                await worker.open()
                stack.push_async_callback(worker.aclose)
                self._workers.append(worker)
            await self._talk(cookies, 2.0)  # every worker has connected to everything
            quiet = await self._when_quiet()
            self.traffic = Traffic()
            talking = asyncio.create_task(self._talk(cookies, minutes * 60))
            await self._watch(talking, minutes * 60)
            self._compare(quiet, await self._when_quiet())

    async def _fill(self, conversations: int) -> list[str]:
        """Have so many conversations of one turn; return their visitors' cookies."""
        store = open_store(self._place)
        policy = VisitorPolicy(secure=False)
        visitors, made = Visitors(policy, KeyRing([SECRET.encode()])), [new_visitor_id() for _ in range(conversations)]
        todo = iter(enumerate(made))

        async def some() -> None:
            for number, visitor in todo:
                if not number % 1000:
                    self._say("filling", number, conversations)
                await store.append(SessionKey(f"visitor:{visitor}"), Head(), first_entry())

        async with asyncio.TaskGroup() as group:
            for _ in range(64):
                group.create_task(some())
        await store.aclose()
        return [f"{policy.full_cookie_name}={visitors.sign(visitor)}" for visitor in made]

    async def _talk(self, cookies: Sequence[str], seconds: float) -> None:
        until = time.monotonic() + seconds
        ports = [worker.port for worker in self._workers]
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(Client(ports, cookies, self.traffic).talk(until))

    async def _watch(self, talking: asyncio.Task[None], seconds: float) -> None:
        began, every = time.monotonic(), max(seconds / _SAMPLES, 0.5)
        while not talking.done():
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(talking), every)
            if not talking.done():
                self.samples.append(await self._sample((time.monotonic() - began) / 60, every))
                self._say("talking", round(time.monotonic() - began), round(seconds))
        talking.result()

    async def _when_quiet(self) -> Sample:
        await asyncio.sleep(_QUIET)
        return await self._sample(0.0, 1.0)

    async def _sample(self, minute: float, every: float) -> Sample:
        took, self.traffic.took = self.traffic.took, []
        bare, self.traffic.bare = self.traffic.bare, []
        requests, self.traffic.requests = self.traffic.requests, 0
        cpu, self._cpu = self._cpu, sum(processes.cpu(worker.pid) for worker in self._workers)
        return Sample(
            minute,
            [processes.resident(worker.pid) for worker in self._workers],
            [processes.descriptors(worker.pid) for worker in self._workers],
            [await self._tasks(worker.port) for worker in self._workers],
            await self._places.connections(self._place),
            p99_of(took),
            p99_of(bare),
            (self._cpu - cpu) / max(requests, 1),
            requests / every,
        )

    async def _tasks(self, port: int) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request("GET", "/state"))
        _, answer = await answer_of(reader)
        writer.close()
        tasks: int = json.loads(answer)["tasks"]
        return tasks

    def _compare(self, before: Sample, after: Sample) -> None:
        """Note what is left of a talk that has ended."""
        if sum(after.tasks) > sum(before.tasks):
            self.left.append(f"{sum(after.tasks) - sum(before.tasks)} tasks are left when all is quiet")
        if sum(after.descriptors) > sum(before.descriptors) + WORKERS:
            self.left.append(f"{sum(after.descriptors) - sum(before.descriptors)} files and sockets are left when all is quiet")


def p99_of(values: Sequence[float]) -> float:
    """Return what 99 of 100 stay below; 0 for none."""
    return sorted(values)[len(values) * 99 // 100] if values else 0.0


async def run(minutes: float, only: Sequence[str], out: Path, say: Say) -> int:
    """Soak, write samples and charts, say what grew; return the exit code, 1 when something did or an answer was wrong."""
    store = next((store for store in ("postgresql", "sqlite") if store in only), "redis")
    with ExitStack() as stack:
        say("servers")
        places = Places(stack)
        where = places.of(System("soak", "convmem", store, "own", ""))
        place = where if "://" in where else f"sqlite:///{where}/convmem.db"
        talk = Soak(place, places, say)
        await talk.run(minutes)
    wrong = [*grown(talk.samples), *talk.left, *talk.traffic.wrong]
    rows: list[dict[str, Any]] = [{"store": store, "minutes": minutes, "done": talk.traffic.done, "wrong": wrong}]
    lines = "\n".join(json.dumps(row) for row in rows + [sample._asdict() for sample in talk.samples])
    (out / "soak.jsonl").write_text(lines + "\n", encoding="utf-8")
    for name, chart in draw(talk.samples, store).items():
        (out / name).write_text(chart, encoding="utf-8")
    for line in [f"{sum(talk.traffic.done.values()):,} requests: {dict(talk.traffic.done)}", *(wrong or ["nothing grew"])]:
        say(line)
    return 1 if wrong else 0


_WORKERS = [f"worker {number + 1}" for number in range(WORKERS)]
_LINES = {"connections": ["all workers"], "p99": ["a turn", "a request without a conversation"], "cpu": ["all workers"]}


def draw(samples: Sequence[Sample], store: str) -> dict[str, str]:
    """Return the charts by file name."""
    kinds: dict[str, tuple[str, str, Callable[[Sample], Sequence[float]]]] = {
        "memory": ("Memory of each worker", "MB", lambda sample: [each / _MEGABYTE for each in sample.resident]),
        "descriptors": ("Open files and sockets of each worker", "", lambda sample: sample.descriptors),
        "tasks": ("Tasks of each worker", "", lambda sample: sample.tasks),
        "connections": ("Connections to the store", "", lambda sample: [sample.connections]),
        "p99": ("The 99th percentile", "milliseconds", lambda sample: [sample.p99 * 1e3, sample.bare * 1e3]),
        "cpu": ("CPU of the workers for each request", "milliseconds", lambda sample: [sample.cpu * 1e3]),
    }
    drawn = {}
    for name, (title, up, of) in kinds.items():
        lines = zip(*(of(sample) for sample in samples), strict=True)
        series = {
            _LINES.get(name, _WORKERS)[number]: [(sample.minute, float(value)) for sample, value in zip(samples, line, strict=True)]
            for number, line in enumerate(lines)
        }
        drawn[f"soak-{name}.svg"] = charts.over_time(f"{title}, {store}", up, series)
    return drawn
