"""An event loop in a thread of its own, for code without one: started at the first use, one in a process.

A store keeps its connections per event loop. Every synchronous call that has to reach a store goes through this one loop, so that
none of them opens a connection of its own.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from convmem import Conversation, SessionKey, Store, open_conversation

T = TypeVar("T")


class Portal:
    """The loop and its thread. A forked child starts its own."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = 0

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The running loop."""
        with self._starting:
            if self._loop is None or self._process != os.getpid():
                self._loop, self._process = asyncio.new_event_loop(), os.getpid()
                threading.Thread(target=self._loop.run_forever, name="convmem-llamaindex", daemon=True).start()
            return self._loop

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run work there, in the context of the caller."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)


portal = Portal()


@contextmanager
def sync_conversation(key: SessionKey, *, store: Store | None = None) -> Iterator[Conversation]:
    """Open a turn from code that has no event loop: a script, a notebook, a worker of a synchronous framework.

    As ``open_conversation``, errors too. Hand the conversation to `memory_for`: there is no context to find it in.
    """
    opened: Future[Conversation] = Future()
    ended: Future[None] = Future()

    async def hold() -> None:
        async with open_conversation(key, store=store) as conversation:
            opened.set_result(conversation)
            await asyncio.wrap_future(ended)

    turn = portal.submit(hold())
    turn.add_done_callback(lambda done: None if opened.done() else opened.set_exception(done.exception() or RuntimeError()))
    conversation = opened.result()
    try:
        yield conversation
    except BaseException as error:
        ended.set_exception(error if isinstance(error, Exception) else RuntimeError(type(error).__name__))
        turn.exception()
        raise
    ended.set_result(None)
    turn.result()
