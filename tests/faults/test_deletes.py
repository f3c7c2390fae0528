"""A conversation is deleted, and used again, while a turn of it is under way: the late answer belongs to a life that has ended."""

from __future__ import annotations

import pytest

from convmem import open_conversation
from convmem.config import open_store
from tests.faults.checker import Anomaly, names
from tests.faults.history import Kind
from tests.faults.pods import Clients, Pod
from tests.faults.workers import told
from tests.faults.workload import key_of


async def deleted(url: str, folder, *, reused: bool, stream: bool, plant: str = "") -> tuple[list[str], list[Anomaly]]:
    """Delete a conversation while the model answers, let another client use it again, and take one turn more.

    Return what the clients were told, the one whose turn was under way last but one; and what is wrong.
    """
    pods = [Pod(url, plant=plant) for _ in range(2)]
    clients = Clients(pods, folder, count=2, conversations=["c0"])
    mine, other = clients.clients

    async def take(pod: Pod, client, *, stream: bool = False) -> str:
        answer = await client.take(pod, "c0", stream=stream)
        return answer.code or ("" if answer.status == 200 and answer.whole else "broken off")

    async def meanwhile() -> None:
        asked = other.recorder.invoke(Kind.DELETE, "c0")
        async with open_store(url) as store:
            await store.delete(key_of("c0"))
        other.recorder.ok(asked)
        if reused:
            codes.append(await take(pods[1], other))

    codes: list[str] = []
    try:
        codes += [await take(pods[0], mine), await take(pods[1], mine)]
        pods[0].meanwhile = meanwhile
        codes += [await take(pods[0], mine, stream=stream), await take(pods[0], mine)]
        anomalies = await clients.judge(url)
    finally:
        for pod in pods:
            await pod.aclose()
    return codes, anomalies


@pytest.mark.parametrize("stream", [False, True], ids=["in one piece", "streamed"])
@pytest.mark.parametrize("reused", [False, True], ids=["left empty", "used again"])
@pytest.mark.asyncio
async def test_an_answer_to_a_conversation_that_was_deleted_meanwhile_is_gone_with_it(place, tmp_path, reused, stream):
    """Its client is told, nothing of the old life comes back, and the next turn begins the new one or goes on in it."""
    codes, anomalies = await deleted(place, tmp_path / "history", reused=reused, stream=stream)
    assert not anomalies, told(anomalies)
    *_, late, after = codes
    assert late == ("broken off" if stream else "conversation_gone")
    assert after == ""
    async with open_store(place) as store, open_conversation(key_of("c0"), store=store) as conversation:
        assert conversation.total_turns == 1 + reused


@pytest.mark.asyncio
async def test_twin_an_app_that_stores_it_all_the_same_is_found_to_mix_two_lives(smallest, tmp_path):
    """The same, where a late writer goes on with whatever is there."""
    codes, anomalies = await deleted(smallest, tmp_path / "history", reused=True, stream=False, plant="forgetful")
    assert "conversation_gone" not in codes
    assert "computed-on-another-history" in names(anomalies), told(anomalies)
