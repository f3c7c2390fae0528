"""What every command says and how it ends: sentences instead of tracebacks, and progress that also reads well in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn, Self

import typer
from rich.console import Console
from rich.status import Status
from rich.text import Text

from convmem import ConfigurationError, InvalidIdentity, Settings, SourceUnreadable, StoreUnavailable

EXIT_STORE_DOWN = 1
EXIT_UNFINISHED = 1
EXIT_CONFIGURATION = 2


def say(line: str, *, style: str = "", error: bool = False) -> None:
    """Print a line as it is: not wrapped, and nothing in it read as markup."""
    Console(stderr=error, highlight=False, soft_wrap=True).print(Text(line, style=style))


def stop(line: str, exit_code: int = EXIT_CONFIGURATION) -> NoReturn:
    """Say what is wrong, and end the command."""
    say(line, style="red", error=True)
    raise typer.Exit(exit_code) from None


@contextmanager
def sentences(*, again: str = "") -> Iterator[None]:
    """End with the sentence of a typed error, and the exit code of its kind.

    Args:
        again: Added where a store did not answer: what is done by then, and what to do.
    """
    try:
        yield
    except (ConfigurationError, InvalidIdentity) as error:
        stop(str(error))
    except (SourceUnreadable, StoreUnavailable) as error:
        stop(f"{error} {again}".strip(), EXIT_STORE_DOWN)


def settings_or_exit() -> Settings:
    """Return the settings of the environment."""
    with sentences():
        return Settings.from_environment()


class Progress:
    """How far a job is: one line that changes on a terminal, else a line now and then, on standard error.

    Args:
        every: Seconds between two lines where there is no terminal; a cron job's mail stays short.
    """

    def __init__(self, every: float = 30.0) -> None:
        """Say nothing yet."""
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._every = every
        self._said = time.monotonic()
        self._status: Status | None = None

    def tell(self, text: str) -> None:
        """Say how far it is."""
        if self._status is not None:
            self._status.update(Text(text))
        elif time.monotonic() - self._said >= self._every:
            self._said = time.monotonic()
            self._console.print(Text(text))

    def __enter__(self) -> Self:
        """Begin."""
        if self._console.is_terminal:
            self._status = self._console.status("")
            self._status.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Leave the terminal as it was."""
        if self._status is not None:
            self._status.stop()
