"""A clock for what a test wants to be quick: a machine that is busy, or stands still, is nobody's fault."""

from __future__ import annotations

import threading
import time
from typing import Self

_EVERY = 0.005
_LONGEST = 0.05


class Awake:
    """Seconds in which this process had the processor, as far as can be told; as a context it runs.

    A thread looks at the time every 5 ms. What is more than 50 ms between two looks was the machine's, unless this process computed
    for so long. A call that blocks the event loop lets the thread go on, and counts.
    """

    def __init__(self) -> None:
        """Stand still at zero."""
        self._seconds = 0.0
        self._looked = time.monotonic()
        self._computed = time.process_time()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __call__(self) -> float:
        """Return the seconds so far."""
        with self._lock:
            now, computed = time.monotonic(), time.process_time()
            self._seconds += min(now - self._looked, max(_LONGEST, computed - self._computed))
            self._looked, self._computed = now, computed
            return self._seconds

    def __enter__(self) -> Self:
        """Run."""
        self()
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Run no more."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(_EVERY):
            self()
