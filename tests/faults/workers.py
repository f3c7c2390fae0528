"""Worker processes of one workload: started together, killed, stopped and continued, and their history judged in the end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.faults.checker import Anomaly, check
from tests.faults.history import Kind, Operation, Outcome, read_histories
from tests.faults.waiting import until
from tests.faults.workload import Plan, read_all
from tests.servers.processes import clean_environment

ROOT = Path(__file__).parents[2]
SETTINGS = {"CONVMEM_LEASE": "1s", "CONVMEM_TURN_WAIT": "60s", "CONVMEM_WINDOW_TURNS": "none", "CONVMEM_STORE": "memory://"}
"""Of a worker: a dead one blocks for a second, nobody gives up, and each read sees everything."""


class Worker:
    """One worker; after a kill another process goes on with what it has not begun yet."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._life = 0
        self._lives: list[Plan] = []
        self._process = self._start(plan)

    @property
    def record(self) -> Path:
        """The history of the process that runs now."""
        return self._lives[-1].folder / f"{self._lives[-1].name}.jsonl"

    @property
    def in_turn(self) -> bool:
        """Whether it has a question and no answer yet, as far as its record says."""
        lines = self.record.read_text().splitlines() if self.record.exists() else []
        return bool(lines) and '"kind":"append"' in lines[-1]

    @property
    def pid(self) -> int:
        """The process that runs now."""
        return self._process.pid

    @property
    def acknowledged(self) -> int:
        """How many turns the process that runs now was told are stored."""
        lines = self.record.read_text().splitlines() if self.record.exists() else []
        return sum('"type":"ok"' in line and '"position":null' not in line for line in lines)

    def kill(self) -> None:
        """Kill it with -9."""
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        """Go on in a new process with the turns the last one had not begun. The turn that was cut off is not tried again."""
        begun = self.record.read_text().count('"kind":"append"') if self.record.exists() else 0
        last = self._lives[-1]
        self._life += 1
        self._process = self._start(replace(last, name=f"{self.plan.name}.{self._life}", turns=max(0, last.turns - begun)))

    @property
    def stopped(self) -> bool:
        """Whether it has stopped itself and was not resumed."""
        return os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None

    def resume(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def end(self, seconds: float) -> None:
        """Wait until it is done; it must have ended well."""
        assert self._process.wait(seconds) == 0, f"{self.plan.name} failed"

    def close(self) -> None:
        """Kill what still runs."""
        self._process.kill()
        self._process.wait()

    def _start(self, plan: Plan) -> subprocess.Popen[bytes]:
        self._lives.append(plan)
        options = ["turns", "conversations", "seed", "think", "plant", "stops"]
        arguments = [f"--{option}={getattr(plan, option)}" for option in options]
        command = [sys.executable, "-m", "tests.faults.workload", plan.store, str(plan.folder), plan.name, *arguments]
        return subprocess.Popen(command, cwd=ROOT, env=clean_environment(SETTINGS))


@dataclass(frozen=True)
class Verdict:
    """What came of a workload.

    Attributes:
        seconds: From the first start to the last end.
    """

    operations: list[Operation]
    anomalies: list[Anomaly]
    seconds: float

    @property
    def acknowledged(self) -> int:
        """How many turns their workers were told are stored."""
        return self._appends(Outcome.OK)

    @property
    def refused(self) -> int:
        """How many turns failed for certain."""
        return self._appends(Outcome.FAIL)

    @property
    def unknown(self) -> int:
        """How many turns ended with a killed worker or without an answer."""
        return self._appends(Outcome.UNKNOWN)

    def elements(self) -> list[str]:
        """Return what is stored in the end, in all conversations."""
        finals = [operation for operation in self.operations if operation.final]
        return [element for final in finals for element in final.elements]

    def _appends(self, outcome: Outcome) -> int:
        return sum(operation.kind is Kind.APPEND and operation.outcome is outcome for operation in self.operations)


class Workers:
    """Several workers on the same conversations; as a context it starts them, and kills them in the end."""

    def __init__(
        self,
        url: str,
        folder: Path,
        count: int,
        *,
        turns: int = 20,
        conversations: int = 1,
        seed: int = 0,
        think: float = 0.002,
        plant: str = "",
        stops: int = 0,
        prefix: str = "w",
    ) -> None:
        """Plan them all alike; their names are w0, w1 and so on, or with another prefix. See `Plan`."""
        self.url, self.folder, self.conversations = url, folder, conversations
        self._plans = [Plan(url, folder, f"{prefix}{number}", turns, conversations, seed, think, plant, stops) for number in range(count)]
        self.workers: list[Worker] = []
        self._began = 0.0

    async def __aenter__(self) -> Self:
        """Start them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._began = time.monotonic()
        self.workers = [Worker(plan) for plan in self._plans]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Kill what still runs."""
        for worker in self.workers:
            worker.close()

    async def until(self, appends: int, *, seconds: float = 60.0) -> None:
        """Wait until so many turns have been begun, so that a fault meets work under way."""
        await until(lambda: self._begun() >= appends, seconds=seconds)

    async def refusals(self, number: int, *, seconds: float = 60.0) -> None:
        """Wait until so many calls have failed or had no answer."""
        await until(lambda: sum(self._count(f'"type":"{word}"') for word in ("fail", "unknown")) >= number, seconds=seconds)

    async def in_turn(self, *, seconds: float = 60.0) -> Worker:
        """Wait until a worker is in the middle of a turn, and return it."""
        found: list[Worker] = []

        def look() -> bool:
            found.extend(worker for worker in self.workers if worker.in_turn)
            return bool(found)

        await until(look, seconds=seconds)
        return found[0]

    async def end(self, seconds: float = 60.0, *, url: str | None = None) -> Verdict:
        """Wait until all are done, read what is stored, and judge.

        Args:
            url: Where to read, when the workers went through something that broke connections.
        """
        give_up = time.monotonic() + seconds
        for worker in self.workers:
            await asyncio.to_thread(worker.end, max(1.0, give_up - time.monotonic()))
        took = time.monotonic() - self._began
        await read_all(url or self.url, self.folder, [f"c{number}" for number in range(self.conversations)])
        operations = read_histories(self.folder)
        return Verdict(operations, check(operations), took)

    def _begun(self) -> int:
        return self._count('"kind":"append"')

    def _count(self, words: str) -> int:
        return sum(file.read_text().count(words) for file in self.folder.glob("*.jsonl"))


def told(anomalies: Sequence[Anomaly]) -> str:
    """Return anomalies as lines, for the message of a failed test."""
    return "\n".join(map(str, anomalies[:20]))
