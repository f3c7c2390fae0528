"""Pods: workers as a deployment runs them, each an ASGI app in the middleware with a store of its own, and the clients they serve."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from convmem import ConversationMiddleware, Message, from_callable, get_conversation, open_conversation
from convmem.config import open_store
from convmem.stores.base import Store
from tests.asgi_client import Answer, Client, quick, user_header
from tests.faults.checker import Anomaly, check
from tests.faults.history import Kind, Operation, Outcome, Recorder, read_histories
from tests.faults.plants import PLANTS
from tests.faults.waiting import until
from tests.faults.workload import Seen, elements_of, key_of
from tests.servers.processes import PATIENCE

CERTAIN = {"conversation_busy", "conversation_conflict", "conversation_fenced", "conversation_gone", "history_lost"}
"""Problems after which the turn is not stored, for certain."""


@dataclass
class _Asked:
    """A turn on its way through a pod: who records it, and under which number once its question was put."""

    recorder: Recorder
    number: int = 0


class Pod:
    """One worker: an app whose model repeats the turn's name, with a count of how often it was called.

    `POST /turn` takes a turn in one piece, `POST /stream` as a stream; `GET /alive` is what a kubelet asks, on a path with no
    conversation.

    Attributes:
        calls: How often the model was called.
        thinking: How many models are at work.
        think: Seconds the model takes.
        meanwhile: What happens while the model is called the next time; once.
    """

    def __init__(self, url: str, *, plant: str = "", think: float = 0.002, turn_wait: str = "30s") -> None:
        """Connect to nothing."""
        self.store: Store = PLANTS[plant](open_store(url))
        self.calls = self.thinking = 0
        self.think = think
        self.meanwhile: Callable[[], Awaitable[object]] | None = None
        self._asked: dict[str, _Asked] = {}
        routes = [
            Route("/turn", self._turn, methods=["POST"]),
            Route("/stream", self._stream, methods=["POST"]),
            Route("/alive", self._alive),
        ]
        self.app = ConversationMiddleware(
            Starlette(routes=routes),
            store=self.store,
            settings=quick(turn_wait=turn_wait, lease="1s", window_turns=None),
            resolvers=[from_callable(user_header)],
            paths=["/turn", "/stream"],
        )

    async def take(self, client: PodClient, conversation: str, turn: str, *, stream: bool) -> Answer:
        """Send one turn, and record what its client was told by the last byte."""
        asked = self._asked[turn] = _Asked(client.recorder)
        headers = {"conversation-revision": client.revisions[conversation]} if conversation in client.revisions else {}
        path = "/stream" if stream else "/turn"
        answer = await Client(self.app).post(path, turn, user=f"workload-{conversation}", headers=headers)
        del self._asked[turn]
        if asked.number:
            self._record(asked, answer)
        if answer.header("conversation-revision"):
            client.revisions[conversation] = answer.header("conversation-revision") or ""
        return answer

    async def alive(self) -> None:
        """Ask the liveness route."""
        answer = await Client(self.app).get("/alive", user=None)
        assert (answer.status, answer.text) == (200, "alive")

    async def aclose(self) -> None:
        """Close its store."""
        await self.store.aclose()

    def _record(self, asked: _Asked, answer: Answer) -> None:
        if answer.whole and answer.status == 200:
            asked.recorder.ok(asked.number)
        elif answer.code in CERTAIN:
            asked.recorder.fail(asked.number, answer.code)
        else:
            asked.recorder.unknown(asked.number, answer.code or repr(answer.raised))

    async def _begin(self, request: Request) -> tuple[Message, list[Message]]:
        """Note what the handler has before it and what it is about to append; return that."""
        turn = (await request.body()).decode()
        conversation = await get_conversation(request)
        asked, name = self._asked[turn], conversation.owner.removeprefix("user:workload-")
        seen = Seen.of(conversation.messages)
        read = asked.recorder.invoke(Kind.READ, name)
        asked.recorder.ok(read, elements=seen.elements, unfinished=seen.unfinished)
        elements = elements_of(turn)
        asked.number = asked.recorder.invoke(Kind.APPEND, name, turn=turn, elements=elements, before=seen.finished)
        question, *answers = [Message.user(elements[0]), *map(Message.assistant, elements[1:])]
        conversation.append(question)
        return question, answers

    async def _turn(self, request: Request) -> Response:
        _, answers = await self._begin(request)
        await self._model()
        (await get_conversation(request)).append(*answers)
        return JSONResponse("done")

    async def _stream(self, request: Request) -> Response:
        _, answers = await self._begin(request)
        conversation = await get_conversation(request)

        async def model() -> AsyncIterator[str]:
            await self._model()
            conversation.append(answers[0])
            yield answers[1].text

        return StreamingResponse(conversation.record(model()))

    async def _alive(self, request: Request) -> Response:
        return PlainTextResponse("alive")

    async def _model(self) -> None:
        self.calls += 1
        self.thinking += 1
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            await meanwhile()
        await asyncio.sleep(self.think)
        self.thinking -= 1


@dataclass(frozen=True)
class Taken:
    """One turn as its client saw it.

    Attributes:
        sent: When, in seconds of the monotonic clock.
        answered: When it had its answer.
        seconds: How long that took, by the clock of its `Clients`.
    """

    turn: str
    conversation: str
    stream: bool
    sent: float
    answered: float
    seconds: float
    answer: Answer

    @property
    def stored(self) -> bool:
        """Whether the client was told so."""
        return self.answer.status == 200 and self.answer.whole


@dataclass
class PodClient:
    """One client: takes one turn after the other, and remembers the newest revision of each conversation, as a page does.

    Attributes:
        clock: By which turns are timed.
        taken: Every turn that was answered.
        under_way: When the turn that has no answer yet was sent, by the monotonic clock and by that one; None when there is none.
    """

    recorder: Recorder
    clock: Callable[[], float] = time.monotonic
    revisions: dict[str, str] = field(default_factory=dict)
    taken: list[Taken] = field(default_factory=list)
    turns: int = 0
    under_way: tuple[float, float] | None = None

    async def take(self, pod: Pod, conversation: str, *, stream: bool = False) -> Answer:
        """Take one turn at a pod."""
        self.turns += 1
        sent, began = self.under_way = time.monotonic(), self.clock()
        turn = f"{self.recorder.process}-{self.turns}"
        answer = await pod.take(self, conversation, turn, stream=stream)
        self.under_way = None
        self.taken.append(Taken(turn, conversation, stream, sent, time.monotonic(), self.clock() - began, answer))
        return answer


class Clients:
    """Several clients that take turns at several pods until they are stopped; a context that ends them.

    Each stays with its pod but for every fifth turn, which goes to the next one, as behind a balancer. Half the turns are streams.
    With `roam` each changes its conversation every three turns; else each keeps to one. Turns are timed by `clock`.
    """

    def __init__(
        self,
        pods: list[Pod],
        folder: Path,
        *,
        count: int = 4,
        conversations: Iterable[str] = ("c0", "c1"),
        pause: float = 0.01,
        roam: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare them."""
        folder.mkdir(parents=True, exist_ok=True)
        self.pods, self.folder, self.conversations = pods, folder, list(conversations)
        self.pause, self.roam, self.clock = pause, roam, clock
        self.clients = [PodClient(Recorder(folder, f"p{number}"), clock) for number in range(count)]
        self._stopped = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Let them begin."""
        self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """End them, whatever happened."""
        await self.stop()
        for client in self.clients:
            client.recorder.close()

    def start(self) -> None:
        """Let them begin, or go on after `stop`."""
        self._stopped.clear()
        self._tasks = [asyncio.create_task(self._run(number, client)) for number, client in enumerate(self.clients)]

    @property
    def taken(self) -> list[Taken]:
        """All turns that were answered so far, in the order they were sent."""
        return sorted((taken for client in self.clients for taken in client.taken), key=lambda taken: taken.sent)

    def codes(self, since: float = 0.0) -> set[str]:
        """Return the problems clients were told from a moment on; empty for a success."""
        return {taken.answer.code for taken in self.taken if taken.answered >= since}

    def longest(self, since: float = 0.0) -> float:
        """Return how long the longest turn has taken that was sent from a moment on, those that are still under way included."""
        now = self.clock()
        waiting = [now - began for sent, began in (client.under_way for client in self.clients if client.under_way) if sent >= since]
        return max([*waiting, *(taken.seconds for taken in self.taken if taken.sent >= since)], default=0.0)

    def stored_since(self, moment: float) -> int:
        """Return how many turns that were sent after a moment are stored, as their clients were told."""
        return sum(taken.stored and taken.sent > moment for taken in self.taken)

    async def until(self, successes: int, *, seconds: float = PATIENCE) -> None:
        """Wait for so many more turns to succeed."""
        wanted = self._successes() + successes
        await until(lambda: self._successes() >= wanted or any(task.done() for task in self._tasks), seconds=seconds)

    async def until_each_is_served(self, *, seconds: float = PATIENCE) -> None:
        """Wait until every client has had a turn stored that was sent from now on."""
        now = time.monotonic()

        def served(client: PodClient) -> bool:
            return any(taken.sent >= now and taken.stored for taken in client.taken)

        await until(lambda: all(map(served, self.clients)) or any(task.done() for task in self._tasks), seconds=seconds)

    async def stop(self) -> None:
        """Let each end the turn it is in; raise what went wrong in a client."""
        self._stopped.set()
        tasks, self._tasks = self._tasks, []
        await asyncio.gather(*tasks)

    async def judge(self, url: str) -> list[Anomaly]:
        """Stop, read what is stored, and check the history."""
        await self.stop()
        final = Recorder(self.folder, "final")
        async with open_store(url) as store:
            for name in self.conversations:
                asked = final.invoke(Kind.READ, name, final=True)
                seen = await stored(store, name)
                final.ok(asked, elements=seen.elements, unfinished=seen.unfinished)
        final.close()
        return check(self.operations())

    def operations(self) -> list[Operation]:
        """Return the history so far."""
        return read_histories(self.folder)

    def unaware(self, lost: set[str], since: float) -> list[str]:
        """Return what of these lost turns its own client was never told of, though it came back to the conversation.

        Streams are left out: the revision their client has is that of the head of the response, when the answer was not stored.

        Args:
            lost: Names of turns.
            since: From when on they were gone.
        """
        unaware = []
        for client in self.clients:
            for mine in (taken for taken in client.taken if taken.turn in lost and taken.stored and not taken.stream):
                later = [taken for taken in client.taken if taken.sent > mine.sent and taken.conversation == mine.conversation]
                told = any(taken.answer.code == "history_lost" for taken in later)
                if not told and any(taken.stored and taken.sent >= since for taken in later):
                    unaware.append(mine.turn)
        return unaware

    def most_often_told(self) -> int:
        """Return how often one client was told of the loss of one conversation, at most: evidence is spent by telling of it."""
        told = Counter(
            (number, taken.conversation)
            for number, client in enumerate(self.clients)
            for taken in client.taken
            if taken.answer.code == "history_lost"
        )
        return max(told.values(), default=0)

    def acknowledged(self) -> int:
        """Return how many turns their clients were told are stored."""
        return sum(one.kind is Kind.APPEND and one.outcome is Outcome.OK for one in self.operations())

    def _successes(self) -> int:
        return sum(taken.stored for taken in self.taken)

    async def _run(self, number: int, client: PodClient) -> None:
        while not self._stopped.is_set():
            pod = self.pods[(number + (client.turns % 5 == 4)) % len(self.pods)]
            conversation = self.conversations[(number + self.roam * client.turns // 3) % len(self.conversations)]
            await client.take(pod, conversation, stream=client.turns % 2 == 1)
            await asyncio.sleep(self.pause)


async def stored(store: Store, conversation: str) -> Seen:
    """Return what a conversation of the workload holds, as a handler reads it."""
    async with open_conversation(key_of(conversation), store=store) as found:
        return Seen.of(await found.history())


@asynccontextmanager
async def ticking(clock: Callable[[], float], every: float = 0.005) -> AsyncIterator[list[float]]:
    """Measure the gaps of a task that sleeps for `every`: how long the event loop did not come round, by a clock."""
    gaps: list[float] = []

    async def tick() -> None:
        while True:
            began = clock()
            await asyncio.sleep(every)
            gaps.append(clock() - began - every)

    task = asyncio.create_task(tick())
    try:
        yield gaps
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def facts_of(answer: Answer) -> dict[str, object]:
    """Return the members of a problem document."""
    return dict(json.loads(answer.text))
