"""The workload, the same for every system: load what a model is to see, then store a question of 200 bytes and an answer of 800.

This module and those that use the peers run in environments without convmem: they import nothing of it.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

WINDOW = 50
"""Messages: what is loaded where a system can load less than everything."""
FEWEST_TURNS = 4
_WORDS = [
    "what",
    "is",
    "new",
    "in",
    "a",
    "turn",
    "of",
    "the",
    "long",
    "conversation",
    "and",
    "seen",
    "costs",
    "whatever",
    "else",
    "was",
    "said",
]


def text(size: int) -> str:
    """Return so many bytes of words, other ones each time."""
    words = random.choices(_WORDS, k=size // 2)
    return " ".join(words)[:size]


_QUESTIONS = itertools.cycle([text(200) for _ in range(251)])
_ANSWERS = itertools.cycle([text(800) for _ in range(509)])


def question() -> str:
    """Return what the user says: one of many, made before, for making it would cost as much as a lean turn."""
    return next(_QUESTIONS)


def answer() -> str:
    """Return what the assistant says."""
    return next(_ANSWERS)


class Loan(NamedTuple):
    """A session, and how many turns it is good for."""

    session: str
    turns: float


class Sessions:
    """The conversations of one length that a system has.

    Where the length decides what a turn costs, each is good for a few turns only: a conversation of ten messages does not stay one.

    Args:
        prefix: Of their names.
        messages: Stored in each. With none, every turn is the first of a new session.
        windowed: Whether the system loads a window.
    """

    def __init__(self, prefix: str, messages: int, *, windowed: bool) -> None:
        """Have none."""
        self.messages = messages
        self._names: Iterator[str] = (f"{prefix.replace(' ', '-')}-{messages}-{number}" for number in itertools.count())
        self._turns = float("inf") if windowed and messages >= WINDOW else max(3, messages // 20)
        self._free: deque[Loan] = deque()

    def missing(self, wanted: int) -> list[str]:
        """Return names of sessions to be filled, so that there are as many as wanted."""
        return [next(self._names) for _ in range(wanted - len(self._free))] if self.messages else []

    def add(self, session: str) -> None:
        """Have one more, that has been filled."""
        self._free.append(Loan(session, self._turns))

    def take(self) -> Loan | None:
        """Return one that nobody else uses meanwhile; None when there is none left."""
        if not self.messages:
            return Loan(next(self._names), 1)
        return self._free.popleft() if self._free else None

    def give_back(self, loan: Loan) -> None:
        """Have it again, unless it is too long now."""
        if loan.turns > 0 and self.messages:
            self._free.append(loan)


class System(ABC):
    """One way to keep conversations. Made for one place, used by the tasks of one event loop; each session by one task at a time.

    Attributes:
        idle: Bytes of memory that a process of its own held after its first request; 0 without one.
    """

    idle = 0

    def __init__(self, place: str) -> None:
        """Know the URL of a server, or a folder of its own."""
        self.place = place

    async def open(self) -> None:  # noqa: B027 - not all have something to open
        """Connect, and make what has to be there."""

    @abstractmethod
    async def fill(self, session: str, messages: int) -> None:
        """Store so many messages, as fast as it can."""

    @abstractmethod
    async def turn(self, session: str) -> int:
        """Do one turn; return how many messages were loaded."""

    async def talk(self, sessions: Sessions, at_once: int, seconds: float, fewest: int = FEWEST_TURNS) -> list[float]:
        """Do turns in so many sessions at once, for so long or until no session is left; return how long each took.

        Args:
            fewest: So many are done, however long they take.

        Raises:
            AssertionError: A turn loaded fewer messages than there are.
        """
        latencies: list[float] = []
        clock, expected = time.perf_counter, min(sessions.messages, WINDOW)
        end = clock() + seconds

        async def one() -> None:
            nonlocal end
            while (clock() < end or len(latencies) < fewest) and (loan := sessions.take()):
                session, left = loan
                while left > 0:
                    began = clock()
                    loaded = await self.turn(session)
                    now = clock()
                    assert loaded >= expected, f"loaded {loaded} messages of {sessions.messages}"
                    latencies.append(now - began)
                    left -= 1
                    if now >= end:
                        break
                sessions.give_back(Loan(session, left))
            end = 0.0  # with fewer at once the rest would be another cell

        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(one())
        assert latencies, "there was no session"
        return latencies

    def cpu(self) -> float:
        """Return the seconds of CPU that the process under measure has used: this one."""
        return time.process_time()

    async def aclose(self) -> None:  # noqa: B027 - nor to close
        """Let go of everything."""
