"""A way from synchronous code to the async core: an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class UnsavedQuestionWarning(UserWarning):
    """A synchronous agent or graph runs on the event loop of its app, which can therefore store nothing before the answer."""


class Portal:
    """An event loop for code that has none, or may not use the one it runs under; it ends with its last user.

    Safe to use from several threads. The work sees the context variables of the code that calls.
    """

    def __init__(self) -> None:
        """Start nothing; the first call of `run` does."""
        self._starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what the work returns, when it is done; the calling thread waits."""
        return asyncio.run_coroutine_threadsafe(work, self._started()).result()

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                thread = threading.Thread(target=_serve, args=(self._loop,), name="convmem-langchain", daemon=True)
                thread.start()
                weakref.finalize(self, _stop, self._loop, thread)
            return self._loop


def run_on(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> Future[T]:
    """Start work on a loop that runs in another thread."""
    return asyncio.run_coroutine_threadsafe(work, loop)


def here() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs this code, if one does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    if thread is not threading.current_thread():
        thread.join(timeout=5)
