"""Turnstile: lets one turn of a conversation through at a time, in this process, in the order they came."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from convmem.exceptions import ConversationBusy
from convmem.keys import SessionKey

_REMEMBERED = 1024
_SHARED_SECONDS = 30.0
_RUN = 2.0
_SHARED_RUN = 0.5
_BREATH = 0.25
"""A run ends when nobody is inside for this long: whoever polls has then looked."""


@dataclass(slots=True)
class _Passage:
    """A conversation in use.

    Attributes:
        since: When the turn inside went in.
        run_since: Since when turns of this process follow each other.
        met: When a turn of another process was in the way last.
        queue: Who waits.
    """

    since: float
    run_since: float
    met: float
    queue: deque[asyncio.Future[None]] | None = None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.since

    @property
    def is_shared(self) -> bool:
        return time.monotonic() - self.met < _SHARED_SECONDS


class _Left(NamedTuple):
    """What is remembered of a conversation that is not in use: when it was left, and what its passage knew."""

    at: float
    run_since: float
    met: float


_NEVER = _Left(float("-inf"), float("-inf"), float("-inf"))


class Turnstile:
    """A queue for each conversation that is in use in this process; nobody polls, and whoever leaves hands over directly.

    Waiters may be in different event loops.
    """

    def __init__(self, max_waiting: int) -> None:
        """Allow this many to wait for one conversation."""
        self._max_waiting = max_waiting
        self._passages: dict[tuple[str, str, str], _Passage] = {}
        self._left: OrderedDict[tuple[str, str, str], _Left] = OrderedDict()
        self._awaiting_rest: list[asyncio.Future[None]] = []

    def occupied(self, key: SessionKey) -> bool:
        """Return whether a turn of this conversation is inside."""
        return key.path in self._passages

    def seconds(self, key: SessionKey) -> float:
        """Return how long the turn inside has been there; 0 when nobody is."""
        passage = self._passages.get(key.path)
        return 0.0 if passage is None else passage.seconds

    def run_is_long(self, key: SessionKey) -> bool:
        """Return whether turns of this process have followed each other for so long that others should have a chance."""
        passage = self._passages[key.path]
        return time.monotonic() - passage.run_since > (_SHARED_RUN if passage.is_shared else _RUN)

    def is_wanted(self, key: SessionKey) -> bool:
        """Return whether somebody waits here, or a turn of another process was in the way lately. Who waits elsewhere is not seen."""
        passage = self._passages[key.path]
        return bool(passage.queue) or passage.is_shared

    def begin_run(self, key: SessionKey) -> None:
        """Note that other processes had their chance."""
        self._passages[key.path].run_since = time.monotonic()

    def met_another(self, key: SessionKey) -> None:
        """Note that a turn of another process was in the way."""
        self.begin_run(key)
        self._passages[key.path].met = time.monotonic()

    async def enter(self, key: SessionKey, seconds: float) -> None:
        """Go through, or wait for at most so many seconds; 0 waits for nobody.

        Raises:
            ConversationBusy: The time is over, or too many wait already. It says how long the turn inside has been running.
        """
        passage = self._passages.get(key.path)
        if passage is None:
            now = time.monotonic()
            left = self._left.get(key.path, _NEVER)
            self._passages[key.path] = _Passage(now, left.run_since if now - left.at < _BREATH else now, left.met)
            return
        if passage.queue is None:
            passage.queue = deque()
        if seconds <= 0 or len(passage.queue) >= self._max_waiting:
            raise ConversationBusy(passage.seconds)
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        passage.queue.append(waiting)
        try:
            async with asyncio.timeout(seconds):
                await waiting
        except BaseException as error:
            if waiting.done() and not waiting.cancelled():
                self.leave(key)
            elif waiting in passage.queue:
                passage.queue.remove(waiting)
            if isinstance(error, TimeoutError):
                raise ConversationBusy(passage.seconds) from None
            raise

    def leave(self, key: SessionKey) -> None:
        """Let the next one in."""
        path = key.path
        passage = self._passages[path]
        if passage.queue:
            passage.since = time.monotonic()
        while passage.queue:
            waiting = passage.queue.popleft()
            loop = waiting.get_loop()
            if waiting.cancelled() or loop.is_closed():
                continue
            if loop is _running_loop():
                waiting.set_result(None)
            else:
                loop.call_soon_threadsafe(self._hand_over, key, waiting)
            return
        del self._passages[path]
        self._left[path] = _Left(time.monotonic(), passage.run_since, passage.met)
        self._left.move_to_end(path)
        if len(self._left) > _REMEMBERED:
            self._left.popitem(last=False)
        if self._awaiting_rest and not self._passages:
            resting, self._awaiting_rest = self._awaiting_rest, []
            for waiting in resting:
                with suppress(RuntimeError):  # its loop is closed
                    waiting.get_loop().call_soon_threadsafe(_wake, waiting)

    async def rest(self, seconds: float) -> None:
        """Wait until nobody is inside, at most so long."""
        if not self._passages:
            return
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._awaiting_rest.append(waiting)
        await asyncio.wait([waiting], timeout=seconds)

    def _hand_over(self, key: SessionKey, waiting: asyncio.Future[None]) -> None:
        if waiting.done():
            self.leave(key)
        else:
            waiting.set_result(None)


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
