"""What happens to a file: another process holds it, the disk is full, an old copy is put in its place, it is removed."""

from __future__ import annotations

import resource
import shutil
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.checker import names
from tests.faults.outages import Report, outage
from tests.faults.pods import Clients, Pod
from tests.faults.workers import Workers, told
from tests.servers.processes import PATIENCE

# Another process holds the lock


LONGEST = 4.5
"""Awake seconds: an append is tried four times, each time waits 0.3 s for the file, and 0.75 s lie between; a busy machine has the rest."""


async def locked(tmp_path: Path, plant: str = "", *, seconds: float = 5.0) -> Report:
    """Hold the file's write lock for a while, as a stuck process does."""
    path = tmp_path / "convmem.db"
    other = sqlite3.connect(path, isolation_level=None, timeout=PATIENCE)

    async def begin() -> None:
        other.execute("BEGIN IMMEDIATE")

    async def end() -> None:
        other.execute("ROLLBACK")

    try:
        url = f"sqlite:///{path}?busy_timeout=0.3s"
        return await outage(url, f"sqlite:///{path}", tmp_path / "history", begin, end, seconds=seconds, plant=plant)
    finally:
        other.close()


@pytest.mark.asyncio
async def test_a_locked_file_is_a_503_in_bounded_time_and_the_app_stays_alive(tmp_path):
    """The evidence: what each client was told and when, the liveness route, the gaps of a ticking task, the history."""
    report = await locked(tmp_path)
    assert report.complaints(longest=LONGEST) == []
    assert report.model_calls <= 4, "a model was called, and paid for, while nothing could be stored"
    assert report.recovered < 8.0


@pytest.mark.parametrize(("plant", "complaint"), [("blocking", "the event loop stood still"), ("patient", "a turn took")])
@pytest.mark.asyncio
async def test_twin_a_store_that_blocks_or_never_gives_up_is_complained_about(tmp_path, plant, complaint):
    """The same outage with a synchronous client, and with one that has no timeout."""
    report = await locked(tmp_path, plant, seconds=7.0 if plant == "patient" else 5.0)
    assert any(said.startswith(complaint) for said in report.complaints(longest=LONGEST))


@pytest.mark.asyncio
async def test_twin_a_store_that_takes_an_outage_for_a_new_conversation_is_found(tmp_path):
    """The model is called with nothing before it, as if the user were new."""
    report = await locked(tmp_path, "outage-is-empty")  # longer than a turn takes to give up, so that others begin
    assert names(report.anomalies) & {"stale-read-after-ack", "read-your-writes", "monotonic-reads"}, told(report.anomalies)


# The disk is full


@pytest.mark.asyncio
async def test_a_full_disk_refuses_turns_and_tears_none(tmp_path):
    """The evidence: what each worker was told, and what is in the file when there is room again."""
    path = tmp_path / "convmem.db"
    async with Workers(f"sqlite:///{path}", tmp_path / "history", 2, turns=40, think=0.03) as workers:
        await workers.until(10)
        size = (tmp_path / "convmem.db-wal").stat().st_size
        for worker in workers.workers:
            resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        await workers.refusals(4)
        for worker in workers.workers:
            resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        verdict = await workers.end()
    assert not verdict.anomalies, told(verdict.anomalies)
    details = {operation.detail.partition(":")[0] for operation in verdict.operations}
    assert (
        {"", "StoreUnavailable"} <= details <= {"", "StoreUnavailable", "ConversationFenced"}
    )  # a lease of a second may run out meanwhile
    assert verdict.acknowledged > 10


# An older copy, or nothing, in its place


@dataclass(frozen=True)
class Restored:
    """What came of it: the turns that are lost, and those of them nobody was told of."""

    clients: Clients
    lost: set[str]
    unaware: list[str]


async def replaced(tmp_path: Path, *, keep: bool, plant: str = "") -> Restored:
    """Let pods write, copy the file, let them write on, and put the copy in its place: a restored backup. Without it, nothing."""
    path = tmp_path / "convmem.db"
    url = f"sqlite:///{path}"
    pods = [Pod(url, plant=plant) for _ in range(2)]

    async def write(clients: Clients) -> None:
        clients.start()
        await clients.until(24)
        await clients.stop()
        for pod in pods:
            await pod.aclose()

    clients = Clients(pods, tmp_path / "history")
    await write(clients)
    shutil.copy(path, tmp_path / "copy.db")
    await write(clients)
    _put(tmp_path / "copy.db" if keep else None, path)
    since = time.monotonic()
    await write(clients)
    anomalies = await clients.judge(url)
    lost = {anomaly.detail for anomaly in anomalies if anomaly.name == "lost-turn"}
    return Restored(clients, lost, clients.unaware(lost, since))


def _put(copy: Path | None, path: Path) -> None:
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    if copy is not None:
        shutil.copy(copy, path)


@pytest.mark.parametrize("keep", [True, False], ids=["an older copy", "nothing"])
@pytest.mark.asyncio
async def test_a_file_that_went_back_is_noticed_by_everybody_who_had_seen_more(tmp_path, keep):
    """The evidence: the checker finds acknowledged turns missing, and each client was told, before its model was called, and once."""
    restored = await replaced(tmp_path, keep=keep)
    assert restored.lost, "the test did not bite"
    assert restored.unaware == []
    assert restored.clients.most_often_told() <= 3, "for a conversation once by each pod, and once by what the client itself had seen"


@pytest.mark.asyncio
async def test_twin_an_app_that_does_not_look_begins_anew_in_silence(tmp_path):
    """The same, where entries that are gone are taken for ones that never were."""
    restored = await replaced(tmp_path, keep=False, plant="forgetful")
    assert restored.lost
    assert restored.unaware
