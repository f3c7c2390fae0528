"""Counts that are the same on every machine: calls of Python functions, bytes held."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

HOUSE = str(Path(__file__).resolve().parent.parent / "convmem")


class Calls:
    """How often functions of convmem ran: every start and every resumption of a frame counts, of a generator or coroutine too.

    Attributes:
        of: By file and name.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self.of: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """All of them."""
        return self.of.total()

    def note(self, frame: FrameType, event: str, _argument: Any) -> None:
        """Count one event of the interpreter, if it is a call of ours."""
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(HOUSE):
            self.of[f"{code.co_filename.removeprefix(HOUSE + '/')}:{code.co_name}"] += 1


@contextmanager
def calls() -> Iterator[Calls]:
    """Count what this thread calls inside the block."""
    counted = Calls()
    before = sys.getprofile()
    sys.setprofile(counted.note)
    try:
        yield counted
    finally:
        sys.setprofile(before)


class Held:
    """How much memory Python held at most at once, above what it held before.

    Attributes:
        peak: In bytes.
    """

    peak = 0


@contextmanager
def held() -> Iterator[Held]:
    """Measure what is allocated inside the block, in all threads."""
    found = Held()
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        yield found
        found.peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
