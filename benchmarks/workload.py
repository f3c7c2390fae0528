"""The workload, the same for every system: load what a model is to see, then store a question of 200 bytes and an answer of 800.

This module and those that use the peers run in environments without convmem: they import nothing of it.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod

WINDOW = 50
"""Messages: what is loaded where a system can load less than everything."""
_WORDS = (
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
)


def text(size: int) -> str:
    """Return so many bytes of words; other ones each time, so that nothing is found to be the same."""
    words = random.choices(_WORDS, k=size // 4 + 2)
    return " ".join(words)[:size].ljust(size, ".")


def question() -> str:
    """Return what the user says."""
    return text(200)


def answer() -> str:
    """Return what the assistant says."""
    return text(800)


class System(ABC):
    """One way to keep conversations. Made for one place, used by the tasks of one event loop; each session by one task at a time."""

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

    async def aclose(self) -> None:  # noqa: B027 - nor to close
        """Let go of everything."""
