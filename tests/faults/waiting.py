"""Waiting for what no event announces: another process, a server, the kernel."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tests.servers.processes import PATIENCE


async def until(happened: Callable[[], bool], *, seconds: float = PATIENCE) -> None:
    """Return as soon as it has happened.

    Raises:
        TimeoutError: It has not, for so long.
    """
    async with asyncio.timeout(seconds):
        while not happened():  # noqa: ASYNC110 - nothing in this event loop could set an event
            await asyncio.sleep(0.01)
