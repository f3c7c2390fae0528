"""One environment's process: opens systems and measures cells of the table, as it is told on standard input, a JSON object a line."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import itertools
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.workload import System

_FEWEST_TURNS = 8


class Worker:
    """The systems of one environment, each opened once, and the sessions they were filled with."""

    def __init__(self) -> None:
        """Open nothing."""
        self._systems: dict[str, System] = {}
        self._sessions = itertools.count()

    async def open(self, name: str, code: str, place: str) -> None:
        """Make a system, under a name."""
        module, _, factory = code.partition(":")
        system: System = getattr(importlib.import_module(module), factory)(place)
        await system.open()
        self._systems[name] = system

    async def fill(self, name: str, messages: int, sessions: int) -> list[str]:
        """Make so many sessions with so many messages each; return them."""
        made = [f"{name.replace(' ', '-')}-{messages}-{next(self._sessions)}" for _ in range(sessions)]
        system, todo = self._systems[name], iter(made)

        async def some() -> None:
            for session in todo:
                await system.fill(session, messages)

        if messages:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(8, sessions)):
                    group.create_task(some())
        return made

    async def measure(self, name: str, messages: int, sessions: list[str], seconds: float) -> dict[str, Any]:
        """Do turns in each session at once for so long. With no messages every turn is the first of a new session."""
        system, expected = self._systems[name], min(messages, 50)
        latencies: list[float] = []
        clock, turns = time.perf_counter, 0

        async def talk(session: str) -> None:
            nonlocal turns
            done = 0
            while clock() < end or done * len(sessions) < _FEWEST_TURNS:
                where = session if messages else f"{session}-{next(self._sessions)}"
                began = clock()
                loaded = await system.turn(where)
                latencies.append(clock() - began)
                assert loaded >= expected, f"{name} loaded {loaded} messages of {messages}"
                done += 1
            turns += done

        for session in sessions[:2]:
            await system.turn(session if messages else f"{session}-warm")
        gc.collect()
        gc.freeze()
        began, cpu = clock(), time.process_time()
        end = began + seconds
        async with asyncio.TaskGroup() as group:
            for session in sessions:
                group.create_task(talk(session))
        took, cpu = clock() - began, time.process_time() - cpu
        gc.unfreeze()
        latencies.sort()
        return {
            "turns": turns,
            "p50": latencies[len(latencies) // 2],
            "p99": latencies[min(len(latencies) - 1, len(latencies) * 99 // 100)],
            "rate": turns / took,
            "cpu": cpu / turns,
        }

    async def turns(self, name: str, sessions: list[str]) -> int:
        """Do one turn in each session, one after the other; for counting."""
        for session in sessions:
            await self._systems[name].turn(session)
        return len(sessions)

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
