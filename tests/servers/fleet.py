"""An app on several workers, whose model repeats the turn's name; and clients that repeat each turn until they have its answer.

`app_that_answers_first` makes the same app on a store that says *stored* and stores a moment later.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from convmem import ConversationMiddleware, Message, Settings, get_conversation
from tests.faults.checker import Anomaly, check
from tests.faults.history import Kind, Recorder, read_histories
from tests.faults.plants import AnswersFirst
from tests.faults.workload import Seen, elements_of
from tests.servers.processes import PATIENCE

# The app

LONGEST_THOUGHT = 0.1
"""Seconds between question and answer, so that a worker that dies dies in the middle of a turn as often as not."""


async def turn(request: Request) -> Response:
    """Take one turn; `stream` says in which form, and the pid of the worker comes along."""
    name = (await request.body()).decode()
    conversation = await get_conversation(request)
    seen = Seen.of(conversation.messages)
    question, tool, answer = elements_of(name)
    headers = {"x-pid": str(os.getpid())}
    conversation.append(Message.user(question))
    if "stream" in request.query_params:

        async def model() -> AsyncIterator[str]:
            conversation.append(Message.assistant(tool))
            await asyncio.sleep(random.uniform(0, LONGEST_THOUGHT))
            yield answer

        return StreamingResponse(conversation.record(model()), headers=headers)
    if not conversation.replayed:
        await conversation.save()
        await asyncio.sleep(random.uniform(0, LONGEST_THOUGHT))
        conversation.append(Message.assistant(tool), Message.assistant(answer))
    said = [message.text for message in conversation.new_messages]
    facts = {"replayed": conversation.replayed, "said": said, "seen": seen.elements, "unfinished": sorted(seen.unfinished)}
    return JSONResponse(facts, headers=headers)


async def history(request: Request) -> Response:
    """Show everything; no turn is taken."""
    seen = Seen.of(await (await get_conversation(request)).history())
    return JSONResponse({"seen": seen.elements, "unfinished": sorted(seen.unfinished)})


async def ready(request: Request) -> Response:
    return PlainTextResponse("ready")


routes = [Route("/turn", turn, methods=["POST"]), Route("/history", history), Route("/", ready)]
app = ConversationMiddleware(Starlette(routes=routes), paths=["/turn", "/history"])


def app_that_answers_first() -> ConversationMiddleware:
    """Return the planted twin."""
    return ConversationMiddleware(Starlette(routes=routes), store=AnswersFirst(Settings.from_environment().open_store()), paths=["/*"])


# Its clients


@dataclass
class Visitor:
    """One conversation: a visitor, whose cookie several clients share.

    Attributes:
        urls: Where to send requests, in turn.
    """

    name: str
    urls: Sequence[str]
    cookies: dict[str, str] = field(default_factory=dict)
    sent: int = 0

    def request(self, method: str, path: str, body: str = "", headers: dict[str, str] | None = None) -> httpx.Response:
        """Send one request to the next server."""
        self.sent += 1
        url = self.urls[self.sent % len(self.urls)]
        with httpx.Client(base_url=url, cookies=self.cookies, timeout=20) as client:
            answer = client.request(method, path, content=body, headers=headers)
            self.cookies.update(dict(client.cookies))
        return answer


class Caller:
    """One client of a visitor's conversation, which records what it asked for and was told.

    Attributes:
        pids: The workers that answered it.
        tries: How many requests its turns took.
        answers: Those whose last byte it saw.
        unfound: Those of them that a later read of its own did not show exactly once.
    """

    def __init__(self, folder: Path, name: str, visitor: Visitor) -> None:
        """Open its record."""
        self.recorder, self.visitor, self.name = Recorder(folder, name), visitor, name
        self.pids: list[int] = []
        self.answers: list[str] = []
        self.unfound: set[str] = set()
        self.turns = self.tries = 0

    def take(self, *, seconds: float = PATIENCE) -> None:
        """Take one turn, under its own Idempotency-Key, and repeat it until its answer has been seen whole."""
        self.turns += 1
        name = f"{self.name}-{self.turns}"
        path = "/turn?stream=1" if self.turns % 2 else "/turn"
        asked = self.recorder.invoke(Kind.APPEND, self.visitor.name, turn=name, elements=elements_of(name))
        deadline = time.monotonic() + seconds
        while True:
            self.tries += 1
            read = self.recorder.invoke(Kind.READ, self.visitor.name)
            answer = self._answer(path, name)
            if answer is not None and answer.status_code == 200:
                break
            assert answer is None or answer.status_code in (409, 502, 503), answer.text
            assert time.monotonic() < deadline, f"{name} has no answer: {answer and answer.text}"
            time.sleep(0.2)
        self.pids.append(int(answer.headers["x-pid"]))
        if "stream" in path:
            assert answer.text == elements_of(name)[-1]
        else:
            assert answer.json()["said"] == elements_of(name)
            if not answer.json()["replayed"]:
                self._saw(read, answer.json())
        self.answers.append(elements_of(name)[-1])
        self.recorder.ok(asked)

    def read(self, *, final: bool = False) -> list[str]:
        """Read everything there is, and look for all its answers; a server that is down is asked again."""
        deadline = time.monotonic() + PATIENCE
        while True:
            asked = self.recorder.invoke(Kind.READ, self.visitor.name, final=final)
            with suppress(httpx.HTTPError):
                answer = self.visitor.request("GET", "/history")
                assert answer.status_code == 200, answer.text
                self._saw(asked, answer.json())
                seen = Counter(answer.json()["seen"])
                self.unfound.update(text for text in self.answers if seen[text] != 1)
                return list(answer.json()["seen"])
            assert time.monotonic() < deadline, "no server answers"
            time.sleep(0.2)

    def _answer(self, path: str, name: str) -> httpx.Response | None:
        try:
            return self.visitor.request("POST", path, name, {"Idempotency-Key": name})
        except httpx.HTTPError:
            return None

    def _saw(self, asked: int, facts: dict[str, Any]) -> None:
        self.recorder.ok(asked, elements=facts["seen"], unfinished=facts["unfinished"])


def judge(folder: Path, visitors: Sequence[Visitor]) -> list[Anomaly]:
    """Read each conversation once more, and check the history."""
    for visitor in visitors:
        caller = Caller(folder, f"final-{visitor.name}", visitor)
        caller.read(final=True)
        caller.recorder.close()
    return check(read_histories(folder))
