"""Heartbeat: one timer that renews the leases of all open turns, each when its time has come."""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import Protocol


class Renewable(Protocol):
    """What is to be renewed as long as it is open."""

    def renew_soon(self) -> bool:
        """Begin to renew; return whether it will have to be done again."""
        ...


class Heartbeat:
    """The timer of one event loop. Most turns end long before they have to be renewed: one for each would be made for nothing.

    Attributes:
        loop: The event loop.
    """

    _timer: asyncio.TimerHandle | None = None
    _next = float("inf")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin without a timer."""
        self.loop = loop
        self._due: dict[Renewable, tuple[float, float]] = {}

    def add(self, turn: Renewable, pause: float) -> None:
        """Renew this one every so many seconds."""
        when = self.loop.time() + pause
        self._due[turn] = when, pause
        if when < self._next:
            self._set(when)

    def remove(self, turn: Renewable) -> None:
        """Renew this one no more."""
        self._due.pop(turn, None)

    def _set(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = when
        self._timer = self.loop.call_at(when, self._beat, context=Context())  # not that of whichever turn came first

    def _beat(self) -> None:
        now = self.loop.time()
        for turn, (when, pause) in list(self._due.items()):
            if when <= now:
                if turn.renew_soon():
                    self._due[turn] = now + pause, pause
                else:
                    del self._due[turn]
        self._timer, self._next = None, float("inf")
        if self._due:
            self._set(min(when for when, _ in self._due.values()))
