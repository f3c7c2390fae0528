"""An outage: pods under load, a store that does not answer for a while, and what the app made of it meanwhile and afterwards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from tests.awake import Awake
from tests.faults.checker import Anomaly
from tests.faults.pods import Clients, Pod, ticking
from tests.faults.waiting import until

PODS = 2
CLIENTS = 4


@dataclass(frozen=True)
class Report:
    """What was seen.

    Attributes:
        codes: The problems clients were told during the outage.
        codes_afterwards: Those they were told when it was over.
        longest: Seconds the longest turn took, until the store was back. These and those below are `Awake`.
        gap: Seconds the event loop did not come round, at most.
        alive: Seconds the liveness route took, at most; it never failed.
        asked: How many turns were sent during the outage.
        model_calls: How often the model was called in them.
        recovered: Seconds from the end of the outage until each client had been served again.
        anomalies: What is wrong with the whole history.
    """

    codes: frozenset[str]
    codes_afterwards: frozenset[str]
    longest: float
    gap: float
    alive: float
    asked: int
    model_calls: int
    recovered: float
    anomalies: list[Anomaly]

    def complaints(self, *, longest: float, gap: float = 1.5) -> list[str]:
        """Return what an operator would complain about; the bounds are in seconds."""
        said = {
            f"a turn took {self.longest:.1f} s": self.longest > longest,
            f"the event loop stood still for {self.gap:.2f} s": self.gap > gap,
            f"liveness took {self.alive:.2f} s": self.alive > gap,
            "nobody was told": not self.codes - {""},
            f"clients were told {sorted(self.codes)}": not self.codes <= {"", "store_unavailable", "conversation_busy"},
            **{str(anomaly): True for anomaly in self.anomalies},
        }
        return [complaint for complaint, holds in said.items() if holds]


async def outage(
    url: str,
    direct: str,
    folder: Path,
    begin: Callable[[], Awaitable[None]],
    end: Callable[[], Awaitable[None]],
    *,
    seconds: float,
    plant: str = "",
) -> Report:
    """Let clients take turns at pods, begin an outage, end it after some seconds, wait until all are served again, and judge.

    Each client has a conversation of its own, so that nobody waits for another's turn. The outage begins while a model is at work,
    whose answer then cannot be stored.

    Args:
        url: The store as the pods reach it.
        direct: The same store, whatever is between.
    """
    pods = [Pod(url, plant=plant, think=0.1, turn_wait="2s") for _ in range(PODS)]
    clock, names = Awake(), [f"c{number}" for number in range(CLIENTS)]
    clients = Clients(pods, folder, count=CLIENTS, conversations=names, pause=0.05, roam=False, clock=clock)
    try:
        with clock:
            async with ticking(clock) as gaps, clients:
                await clients.until(2 * CLIENTS)
                gaps.clear()
                await until(lambda: any(pod.thinking for pod in pods))
                began = time.monotonic()
                await begin()
                calls = sum(pod.calls for pod in pods)
                alive = await _watch(pods, clock, seconds)
                longest, model_calls = clients.longest(), sum(pod.calls for pod in pods) - calls
                codes = frozenset(clients.codes(began))
                asked = sum(taken.sent >= began for taken in clients.taken)
                ended, over = time.monotonic(), clock()
                await end()
                await clients.until_each_is_served()
                recovered, gap = clock() - over, max(gaps)
                anomalies = await clients.judge(direct)
                afterwards = frozenset(clients.codes(ended))
    finally:
        for pod in pods:
            await pod.aclose()
    return Report(codes, afterwards, longest, gap, alive, asked, model_calls, recovered, anomalies)


async def _watch(pods: list[Pod], clock: Awake, seconds: float) -> float:
    """Ask each pod again and again whether it is alive; return the longest it took to say so."""
    longest, until = 0.0, clock() + seconds
    while clock() < until:
        for pod in pods:
            began = clock()
            await pod.alive()
            longest = max(longest, clock() - began)
        await asyncio.sleep(0.05)
    return longest
