"""Workers die, hang and meet at one conversation, on every store; the history of what they were told is judged.

The evidence: what each process wrote down before and after each call, on a clock they share, and one read when all have ended.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from tests.faults.checker import names
from tests.faults.waiting import until
from tests.faults.workers import Verdict, Workers, told

SEED = 20_261


async def kill_in_turns(
    url: str, folder: Path, kills: int, *, count: int = 8, turns: int = 20, seconds: float = 90.0, **options
) -> Verdict:
    """Let workers take their turns, kill some in the middle of one and let another process go on for them; judge."""
    chance = random.Random(SEED)
    async with Workers(url, folder, count, turns=turns, seed=SEED, **options) as workers:
        for kill in range(kills):
            await workers.until(kill * count * turns // (kills + 1) + 1, seconds=seconds)
            await asyncio.sleep(chance.uniform(0, 0.1))
            worker = await workers.in_turn()
            worker.kill()
            worker.restart()
        return await workers.end(seconds)


@pytest.mark.asyncio
async def test_eight_processes_on_one_conversation_some_killed_lose_double_tear_and_reorder_nothing(place, tmp_path):
    """20 turns of 3 messages each, 4 kills -9 in the middle of a turn: stores that rewrite a history keep a fraction of it."""
    verdict = await kill_in_turns(place, tmp_path / "history", 4)
    assert not verdict.anomalies, told(verdict.anomalies)
    assert verdict.acknowledged + verdict.unknown == 160
    assert verdict.acknowledged >= 160 - 4
    assert len(verdict.elements()) >= 3 * verdict.acknowledged


@pytest.mark.asyncio
async def test_twin_without_a_fence_eight_processes_are_found_to_mix_their_turns(smallest, tmp_path):
    """The same workers on a store that appends after whatever is there."""
    verdict = await kill_in_turns(smallest, tmp_path / "history", 0, count=4, turns=8, plant="without-fence")
    assert names(verdict.anomalies) & {"interleaved-turn", "computed-on-another-history"}, told(verdict.anomalies)


@pytest.mark.asyncio
async def test_twin_a_store_that_answers_first_is_found_to_lose_the_turns_of_a_killed_worker(smallest, tmp_path):
    """Stored a moment later is not stored: one worker, killed after its first acknowledged turns."""
    async with Workers(smallest, tmp_path / "history", 1, turns=3, plant="answers-first") as workers:
        await until(lambda: workers.workers[0].acknowledged > 0)
        workers.workers[0].kill()
        workers.workers[0].restart()
        verdict = await workers.end()
    assert "lost-turn" in names(verdict.anomalies), told(verdict.anomalies)


async def stop_past_the_lease(url: str, folder: Path, **options) -> Verdict:
    """Let one worker stop in the middle of its first turn, until two that started then have gone on; then let it finish."""
    async with Workers(url, folder, 1, turns=3, stops=1, prefix="s", **options) as stopping:
        stopped = stopping.workers[0]
        await until(lambda: stopped.stopped)
        async with Workers(url, folder, 2, turns=3, **options) as others:
            await until(lambda: sum(worker.acknowledged for worker in others.workers) >= 2)
            stopped.resume()
            await asyncio.to_thread(stopped.end, 60.0)
            return await others.end()


@pytest.mark.asyncio
async def test_a_stopped_worker_that_comes_back_past_its_lease_is_refused(place, tmp_path):
    """Its answer was computed on a history that has gone on without it; it is told so, and all others are in order."""
    verdict = await stop_past_the_lease(place, tmp_path / "history")
    assert not verdict.anomalies, told(verdict.anomalies)
    refused = [operation.detail for operation in verdict.operations if operation.outcome == "fail"]
    assert len(refused) == 1
    assert refused[0].startswith(("ConversationFenced", "ConversationConflict"))
    assert verdict.acknowledged == 8


@pytest.mark.asyncio
async def test_twin_without_a_fence_the_stopped_workers_answer_is_found_among_the_others(smallest, tmp_path):
    """The same, where a late writer is merged."""
    verdict = await stop_past_the_lease(smallest, tmp_path / "history", plant="without-fence")
    assert "computed-on-another-history" in names(verdict.anomalies), told(verdict.anomalies)


@pytest.mark.all_only
@pytest.mark.asyncio
async def test_eight_processes_for_a_hundred_turns_each_on_three_conversations(place, tmp_path):
    """The same, longer, and with twenty kills."""
    verdict = await kill_in_turns(place, tmp_path / "history", 20, turns=100, seconds=600.0, conversations=3)
    assert not verdict.anomalies, told(verdict.anomalies)
    assert verdict.acknowledged >= 800 - 20
