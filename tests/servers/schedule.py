"""What befalls the workers of several servers: kills with -9 and long pauses, at moments drawn from a seed."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.servers.processes import PATIENCE, Server

LONGEST_STOP = 2.5
"""Seconds: more than two leases, and less than the five after which uvicorn gives a worker up."""


@dataclass(frozen=True)
class Mishap:
    """One signal to one worker.

    Attributes:
        at: Seconds after the beginning.
        which: Where among the workers it is, from 0 to 1.
        lasts: After how many seconds a stopped worker goes on.
    """

    at: float
    number: signal.Signals
    which: float
    lasts: float = 0.0


class Schedule:
    """Signals for so many seconds. The same seed is the same schedule; what a worker was doing at that moment is not.

    Attributes:
        struck: The workers that each kind of signal went to.
    """

    def __init__(
        self, seed: int, servers: Sequence[Server], answering: Callable[[], set[int]], *, seconds: float, kills: int, stops: int
    ) -> None:
        """Draw it; the servers run already.

        Args:
            seed: What all follows from.
            servers: Alone, or supervisors of workers.
            answering: Returns who has answered of late: while any of them lives, one of them is struck, and not one that only begins.
            seconds: For how long.
            kills: How many.
            stops: How many.
        """
        chance = random.Random(seed)
        mishaps = [Mishap(chance.uniform(0.2, seconds), signal.SIGKILL, chance.random()) for _ in range(kills)]
        mishaps += [
            Mishap(chance.uniform(0.2, seconds), signal.SIGSTOP, chance.random(), chance.uniform(0.2, LONGEST_STOP)) for _ in range(stops)
        ]
        self.mishaps = sorted(mishaps, key=lambda mishap: mishap.at)
        self.servers, self.answering = servers, answering
        self.struck: dict[signal.Signals, list[int]] = {signal.SIGKILL: [], signal.SIGSTOP: []}
        self._alone = {server.pid for server in servers if not _children(server.pid)}

    def run(self) -> None:
        """Let it all happen; return when the last stopped worker goes on. A server that is its own worker is started again."""
        began = time.monotonic()
        going_on: list[threading.Timer] = []
        for mishap in self.mishaps:
            time.sleep(max(0.0, began + mishap.at - time.monotonic()))
            workers = self._workers()
            workers = [pid for pid in workers if pid in self.answering()] or workers
            pid = workers[int(mishap.which * len(workers))]
            self._strike(pid, mishap.number)
            if mishap.number == signal.SIGSTOP:
                going_on.append(threading.Timer(mishap.lasts, _send, (pid, signal.SIGCONT)))
                going_on[-1].start()
        for timer in going_on:
            timer.join()

    def _strike(self, pid: int, number: signal.Signals) -> None:
        self.struck[number].append(pid)
        if number == signal.SIGKILL and pid in self._alone:
            server = next(server for server in self.servers if server.pid == pid)
            server.kill()
            server.start(wait=None)
            self._alone = self._alone - {pid} | {server.pid}
            return
        _send(pid, number)

    def _workers(self, seconds: float = PATIENCE) -> list[int]:
        """Return the processes that answer requests; right after a kill there may be none for a while."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            workers = [pid for server in self.servers for pid in ([server.pid] if server.pid in self._alone else _children(server.pid))]
            if workers:
                return workers
            time.sleep(0.05)
        raise TimeoutError("no worker runs")


def is_alive(pid: int) -> bool:
    """Return whether a process runs, and is not only waiting to be collected by its parent."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return not state.startswith("Z")


def _children(pid: int) -> list[int]:
    """Return the workers a supervisor has started."""
    children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split())
    return [child for child in children if is_alive(child) and not _keeps_count(child)]


def _keeps_count(pid: int) -> bool:
    """Return whether a process is the one in which Python's multiprocessing keeps count of what workers share."""
    with suppress(OSError):
        return b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
