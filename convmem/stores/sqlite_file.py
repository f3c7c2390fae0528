"""The file of a `SQLiteStore`: its connections, the threads that use them, and what is done together.

In each process one thread writes and one reads, each with its connection, so that the event loop never waits for the disk. What waits
when a thread is free is done in one transaction. The statements are in `convmem.stores.sqlite`.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from importlib import resources
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

Synchronous = Literal["normal", "full", "extra"]


class Needs(NamedTuple):
    """What a piece of work needs around it.

    Attributes:
        lane: The thread that does it.
        begin: How its transaction begins; empty when there must be none.
        flushed: Whether it is acknowledged only when it survives what the store promises to survive.
    """

    lane: str
    begin: str
    flushed: bool = False


READ = Needs("reading", "BEGIN")
LEASE = Needs("writing", "BEGIN IMMEDIATE")
STORE = Needs("writing", "BEGIN IMMEDIATE", flushed=True)
BARE = Needs("writing", "")
_IN_ORDER = (READ, LEASE, STORE, BARE)
"""In the order in which a thread does what waits: a lease waits for no flush."""


class Job(NamedTuple):
    """A piece of work, and who waits for it where."""

    needs: Needs
    work: Callable[..., Any]
    arguments: tuple[Any, ...]
    answer: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


class File:
    """The open file in one process: connections must not cross a fork, so a child opens its own."""

    def __init__(self, opening: Opening) -> None:
        self.process = os.getpid()
        self.lanes = {name: _Lane(opening, f"convmem-sqlite-{name}") for name in ("writing", "reading")}
        for lane in self.lanes.values():
            weakref.finalize(self, lane.jobs.put, None)  # a store nobody closed and nobody holds ends its threads

    def close(self) -> None:
        """Do what was asked for before, and end the threads."""
        for lane in self.lanes.values():
            lane.close()


class _Lane:
    """A thread with a connection. What waits when the thread is free is done together: one transaction for all with the same needs."""

    def __init__(self, opening: Opening, name: str) -> None:
        self.jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._asked: dict[asyncio.AbstractEventLoop, list[Job]] = {}
        self._handing = threading.Lock()
        self._thread = threading.Thread(target=_serve, args=(self.jobs, opening), name=name, daemon=True)

    def put(self, job: Job) -> None:
        """Hand over what one step of an event loop asks for together: a thread that wakes for the first finds all the others."""
        with self._handing:
            asked = self._asked.setdefault(job.loop, [])
            asked.append(job)
        if len(asked) == 1:
            job.loop.call_soon(self._hand_over, job.loop)

    def _hand_over(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._handing:
            for job in self._asked.pop(loop, ()):
                self.jobs.put(job)
            if not self._thread.ident:
                self._thread.start()

    def close(self) -> None:
        for loop in tuple(self._asked):
            self._hand_over(loop)
        self.jobs.put(None)
        if self._thread.ident:
            self._thread.join()


def _serve(jobs: SimpleQueue[Job | None], opening: Opening) -> None:
    """Work until there is None. The connection belongs to this frame alone: a forked child, which has no such thread, leaves it alone."""
    connection = _Connection(opening)
    open_ = True
    while open_:
        waiting = [jobs.get()]
        with suppress(Empty):
            while len(waiting) < _TOGETHER:
                waiting.append(jobs.get_nowait())
        wanted = [job for job in waiting if job is not None and not job.answer.cancelled()]
        open_ = None not in waiting
        del waiting
        for needs in _IN_ORDER:
            some = [job for job in wanted if job.needs is needs]
            if some:
                _answer(some, connection.do(some, needs))
        del wanted
    connection.close()


def _answer(jobs: list[Job], outcomes: Sequence[_Result]) -> None:
    """Wake each event loop once."""
    for loop in {job.loop for job in jobs}:
        done = [(job.answer, *outcome) for job, outcome in zip(jobs, outcomes, strict=True) if job.loop is loop]
        with suppress(RuntimeError):  # the loop is closed, and nobody waits there
            loop.call_soon_threadsafe(_tell, done)


class _Connection:
    """A connection that is made when it is needed."""

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._level = ""
        self._link: sqlite3.Connection | None = None

    def close(self) -> None:
        if self._link is not None:
            self._link.close()
        self._link, self._level = None, ""

    def do(self, jobs: list[Job], needs: Needs) -> Sequence[_Result]:
        """Do work in one transaction. If a piece of it fails, nothing was done yet, and each piece is done alone.

        Beginning and committing are everybody's: nobody is told of success unless the commit had it.
        """
        try:
            link = self._begin(needs)
        except Exception as error:  # noqa: BLE001 - who asked raises it; this thread goes on
            return [(None, error)] * len(jobs)
        try:
            results = [(job.work(link, *job.arguments), None) for job in jobs]
        except Exception as error:  # noqa: BLE001
            self._roll_back(link)
            return [(None, error)] if len(jobs) == 1 else [result for job in jobs for result in self.do([job], needs)]
        try:
            if needs.begin:
                link.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back(link)
            return [(None, error)] * len(jobs)
        return results

    def _begin(self, needs: Needs) -> sqlite3.Connection:
        if self._link is None:
            self._link = self._opening.connect()
        level = self._opening.synchronous if needs.flushed else "normal"
        if level != self._level:
            self._link.execute(f"PRAGMA synchronous = {level}")
            self._level = level
        if needs.begin:
            self._link.execute(needs.begin)
        return self._link

    def _roll_back(self, link: sqlite3.Connection) -> None:
        try:
            if link.in_transaction:  # SQLite has rolled back already after some errors
                link.execute("ROLLBACK")
        except sqlite3.Error:
            self.close()


class Opening(NamedTuple):
    """How the file is opened; see `SQLiteStore`."""

    path: Path
    synchronous: Synchronous
    busy_timeout: timedelta
    mode: str

    def connect(self) -> sqlite3.Connection:
        """Return a connection to the file, made and brought up to date where that is due."""
        if not self.path.parent.is_dir():
            msg = f"the folder {self.path.parent} does not exist; make it, or set another path"
            raise sqlite3.OperationalError(msg)
        if self.mode == "rw" and not self.path.exists():
            msg = f"{self.path} does not exist, and mode=rw says it must; drop mode=rw to have it made"
            raise sqlite3.OperationalError(msg)
        seconds = self.busy_timeout.total_seconds()
        uri = f"file:{quote(str(self.path))}?mode={self.mode}"
        link = sqlite3.connect(uri, uri=True, timeout=seconds, isolation_level=None, cached_statements=64)
        try:
            link.execute("PRAGMA page_size = 8192")
            _retry_while_locked(lambda: link.execute("PRAGMA journal_mode = WAL"), seconds)
            link.execute("PRAGMA cache_size = -16384")
            link.execute("PRAGMA secure_delete = ON")  # what was deleted is overwritten, not only given free
            _migrate(link)
        except BaseException:
            link.close()  # which rolls back
            raise
        return link


_Result = tuple[Any, Exception | None]
_TOGETHER = 128
"""So much work is done in one transaction at most: meanwhile other processes wait."""


def _tell(done: list[tuple[asyncio.Future[Any], Any, Exception | None]]) -> None:
    for answer, result, error in done:
        if answer.cancelled():
            continue
        if error is None:
            answer.set_result(result)
        else:
            answer.set_exception(error)


def _retry_while_locked(action: Callable[[], object], seconds: float) -> None:
    """Switching to WAL does not honour the busy timeout when several processes meet on a new file."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            action()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() >= deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _migrate(link: sqlite3.Connection) -> None:
    """Apply the numbered files this database has not seen; `user_version` is the last one applied.

    A newer number than ours is left alone: migrations only add, so that old code works on a new schema.
    """
    files = sorted(
        (item for item in resources.files("convmem.stores").joinpath("sql", "sqlite").iterdir() if item.name.endswith(".sql")),
        key=lambda item: item.name,
    )
    if link.execute("PRAGMA user_version").fetchone()[0] >= len(files):
        return
    link.execute("BEGIN IMMEDIATE")
    applied = link.execute("PRAGMA user_version").fetchone()[0]
    for number, file in enumerate(files[applied:], start=applied + 1):
        for statement in _statements(file.read_text(encoding="utf-8")):
            link.execute(statement)
        link.execute(f"PRAGMA user_version = {number}")
    link.execute("COMMIT")


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
