"""How far a run is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

_EVERY = 10.0


class Bar:
    """Says what is being done."""

    def __init__(self) -> None:
        """Begin to count the seconds."""
        console = Console(stderr=True)
        self._began, self._told = time.monotonic(), float("-inf")
        self._rich = (
            Progress(TimeElapsedColumn(), BarColumn(), TextColumn("{task.description}"), console=console) if console.is_terminal else None
        )
        self._task = self._rich.add_task("", total=None) if self._rich else None

    def __call__(self, line: str, done: int = 0, of: int = 0) -> None:
        """Tell."""
        if self._rich and self._task is not None:
            self._rich.update(self._task, description=line, completed=done, total=of or None)
            return
        now = time.monotonic()
        if not of or done == 0 or now - self._told >= _EVERY:
            self._told = now
            Console(stderr=True, soft_wrap=True).print(
                f"{now - self._began:5.0f} s {f'{done}/{of}' if of else ''} {line}", markup=False, highlight=False
            )

    def __enter__(self) -> Self:
        """Draw."""
        if self._rich:
            self._rich.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stay as it is."""
        if self._rich:
            self._rich.stop()
