"""A PostgreSQL whose standby takes over, with and without a quorum that confirms each commit.

The evidence: what clients were told, and one read at the new primary, held against each other.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.checker import Anomaly, names
from tests.faults.pods import Clients, Pod
from tests.faults.waiting import until
from tests.faults.workers import told
from tests.servers.processes import HOST
from tests.wheels.postgres import PostgresWheel


@dataclass(frozen=True)
class Promoted:
    """What came of it.

    Attributes:
        lost: Acknowledged turns that are gone.
        unaware: Those of them whose client came back and was not told.
        anomalies: All that is wrong.
        codes: What clients were told.
        meanwhile: How many turns were acknowledged while the standby was behind.
    """

    lost: set[str]
    unaware: list[str]
    anomalies: list[Anomaly]
    codes: set[str]
    meanwhile: int


async def promote(wheel: PostgresWheel, folder: Path, *, quorum: bool) -> Promoted:
    """Hold the standby's stream up under load, kill the primary with -9, and promote the standby; the same pods go on."""
    primary = wheel.server()
    standby = await asyncio.to_thread(wheel.replica, primary)
    if quorum:
        primary.sql("ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (*)'")
        primary.sql("SELECT pg_reload_conf()")
    hosts = f"postgresql://postgres@{HOST}:{primary.port},{HOST}:{standby.port}/postgres"
    url = f"{hosts}?target_session_attrs=read-write&timeout=1s&unsafe=allow"
    pods = [Pod(url, turn_wait="2s") for _ in range(2)]
    try:
        async with Clients(pods, folder, count=4, pause=0.02) as clients:
            await clients.until(16)
            for pid in primary.senders():
                primary.pause(pid)
            behind = time.monotonic()
            if quorum:
                await asyncio.sleep(0.7)
            else:
                await until(lambda: clients.stored_since(behind) >= 8)
            meanwhile = clients.stored_since(behind)
            await asyncio.to_thread(primary.kill)
            await asyncio.to_thread(standby.promote)
            since = time.monotonic()
            await clients.until_each_is_served()
            await clients.until(12)
            anomalies = await clients.judge(standby.url(query="?unsafe=allow"))
    finally:
        for pod in pods:
            await pod.aclose()
        primary.kill()
        standby.kill()
    lost = {anomaly.detail for anomaly in anomalies if anomaly.name == "lost-turn"}
    return Promoted(lost, clients.unaware(lost, since), anomalies, clients.codes(), meanwhile)


@pytest.mark.asyncio
async def test_a_promoted_standby_has_every_acknowledged_turn_when_a_quorum_confirms_each(postgres_wheel, tmp_path):
    """`synchronous_standby_names`: what the standby had not got was never acknowledged, and is stored once by its retry."""
    promoted = await promote(postgres_wheel, tmp_path / "history", quorum=True)
    assert promoted.meanwhile == 0, "the standby was not behind"
    assert not promoted.anomalies, told(promoted.anomalies)


@pytest.mark.asyncio
async def test_twin_a_promoted_standby_nobody_waited_for_is_found_to_have_lost_turns_and_clients_are_told(postgres_wheel, tmp_path):
    """The same without a quorum: acknowledged turns are gone, and whoever had seen more is told once, before its model is called."""
    promoted = await promote(postgres_wheel, tmp_path / "history", quorum=False)
    assert promoted.meanwhile > 0
    assert promoted.lost
    assert "history_lost" in promoted.codes
    assert promoted.unaware == []
    lost = {"lost-turn", "lost-after-read", "lost-part-of-turn"}  # of a stream the question may have got there, and the answer not
    assert names(promoted.anomalies) <= lost, told(promoted.anomalies)
