"""One environment's process: opens systems and measures cells of the table, as it is told on standard input, a JSON object a line."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.workload import Loan, Sessions

if TYPE_CHECKING:
    from benchmarks.workload import System

_FILLERS, _FEW_FILLERS = 32, 8
"""Conversations that are filled at once; who loads everything has a pool of its own size, and gives up when it waits for long."""


class Worker:
    """The systems of one environment, each opened once, and the sessions they were filled with."""

    def __init__(self) -> None:
        """Open nothing."""
        self._systems: dict[str, System] = {}
        self._sessions: dict[tuple[str, int], Sessions] = {}

    async def open(self, name: str, code: str, place: str) -> int:
        """Make a system, under a name; return what memory a process of its own takes."""
        module, _, factory = code.partition(":")
        system: System = getattr(importlib.import_module(module), factory)(place)
        await system.open()
        self._systems[name] = system
        return system.idle

    async def fill(self, name: str, of: str, messages: int, sessions: int, *, windowed: bool) -> int:
        """Have so many sessions with so many messages each, for all that use those `of` a system; return how many were made now."""
        system = self._systems[name]
        pool = self._sessions.setdefault((of, messages), Sessions(of, messages, windowed=windowed))
        missing = pool.missing(sessions)
        todo = iter(missing)

        async def some() -> None:
            for session in todo:
                await system.fill(session, messages)
                pool.add(session)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(_FILLERS if windowed else _FEW_FILLERS, len(missing))):
                group.create_task(some())
        return len(missing)

    async def warm(self, name: str, of: str, messages: int) -> None:
        """Do a turn that is not measured, and put out of sight what the collector would look through meanwhile."""
        await self._systems[name].talk(self._sessions[of, messages], 1, 0.0, fewest=1)
        gc.collect()
        gc.freeze()

    async def measure(self, name: str, of: str, messages: int, at_once: int, seconds: float) -> dict[str, Any]:
        """Do turns in so many sessions at once for so long."""
        system = self._systems[name]
        began, cpu = time.perf_counter(), system.cpu()
        latencies = await system.talk(self._sessions[of, messages], at_once, seconds)
        took, cpu = time.perf_counter() - began, system.cpu() - cpu
        gc.unfreeze()
        latencies.sort()
        turns = len(latencies)
        return {
            "turns": turns,
            "p50": latencies[turns // 2],
            "p99": latencies[min(turns - 1, turns * 99 // 100)],
            "rate": turns / took,
            "cpu": cpu / turns,
        }

    async def turns(self, name: str, of: str, messages: int, turns: int) -> None:
        """Do so many turns, one after the other; for counting."""
        system, pool = self._systems[name], self._sessions[of, messages]
        for _ in range(turns):
            loan = pool.take()
            assert loan is not None, "there is no session"
            await system.turn(loan.session)
            pool.give_back(Loan(loan.session, loan.turns - 1))

    async def grow(self, name: str, sessions: int, turns: int) -> None:
        """Do so many turns in each of so many new sessions, one after the other."""
        for session in range(sessions):
            for _ in range(turns):
                await self._systems[name].turn(f"{name.replace(' ', '-')}-{session}")

    async def close(self, name: str) -> None:
        """Let go of a system."""
        await self._systems.pop(name).aclose()


async def _serve() -> None:
    worker, loop = Worker(), asyncio.get_running_loop()
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        verb = command.pop("do")
        try:
            reply = {"reply": await getattr(worker, verb)(**command)}
        except Exception as error:  # noqa: BLE001 - whatever it is, the table says so
            while isinstance(error, ExceptionGroup):
                error = error.exceptions[0]
            reply = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


def main() -> None:
    """Serve until standard input ends."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    with contextlib.suppress(ImportError):
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve())
            return
    asyncio.run(_serve())


if __name__ == "__main__":
    main()
