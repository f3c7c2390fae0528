"""A conversation outlives its worker, and nobody ever sees another's."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from convmem import SessionKey, SQLiteStore
from convmem.messages import decode_messages
from tests.servers.commands import server
from tests.servers.processes import PATIENCE


@pytest.fixture
def settings(tmp_path):
    """Return the environment of a laptop where everybody has the time they need."""
    return {"CONVMEM_STORE": f"sqlite:///{tmp_path}/convmem.db", "CONVMEM_LEASE": "30s", "CONVMEM_TURN_WAIT": "60s"}


def texts_of(path, owner: str) -> list[tuple[str, str]]:
    """Return what is stored, as (state of its turn, text)."""

    async def load():
        async with SQLiteStore(path) as store:
            log = await store.load(SessionKey(owner))
        return [
            (turn.state, message.text) for turn in log.turns for stored in turn.entries for message in decode_messages(stored.entry.body)
        ]

    return asyncio.run(load())


def test_a_conversation_goes_on_after_kill_9(settings):
    """The worker is gone without a word; the same cookie finds the same conversation."""
    with server("uvicorn", "plain", settings) as process, httpx.Client(base_url=process.url, timeout=PATIENCE) as client:
        client.post("/chat", content="my name is Ada")
        process.kill()
        process.start()
        answer = client.post("/chat", content="what is my name?").json()
        assert answer["texts"] == ["my name is Ada", "what is my name?"]
        assert not answer["interrupted"]


def test_a_worker_killed_in_the_middle_of_a_stream_loses_no_question(settings, tmp_path):
    """It reads as interrupted, and the next turn works as soon as the dead worker's lease is over."""
    settings["CONVMEM_LEASE"] = "1s"
    with server("uvicorn", "plain", settings) as process, httpx.Client(base_url=process.url, timeout=PATIENCE) as client:
        owner = client.post("/chat", content="hi").json()["owner"]
        with client.stream("POST", "/stream?seconds=600") as answer:
            pieces = answer.iter_text()  # kept: an iterator that is dropped closes the connection
            assert next(pieces) == "first "
            process.kill()
        process.start()
        answer = client.post("/chat", content="again").json()
        assert (answer["texts"], answer["interrupted"]) == (["hi", "question", "again"], True)
        assert texts_of(tmp_path / "convmem.db", owner) == [("complete", "hi"), ("interrupted", "question"), ("complete", "again")]


def test_two_workers_are_one_memory_and_two_clients_never_meet(settings):
    """`--workers 2`: whichever answers, a visitor finds their own turns, in order, and nobody else's."""
    with server("uvicorn", "plain", settings, "--workers", "2") as process:
        pids: set[int] = set()

        def visit(name: str) -> list[str]:
            answer: dict = {}
            cookies = httpx.Cookies()
            for i in range(12):
                with httpx.Client(base_url=process.url, cookies=cookies, timeout=PATIENCE) as client:
                    answer = client.post("/chat", content=f"{name} {i}").json()
                    cookies.update(client.cookies)
                pids.add(answer["pid"])
            return answer["texts"]

        with ThreadPoolExecutor(4) as pool:
            for _ in range(20):
                for name, texts in zip("abcd", pool.map(visit, "abcd"), strict=True):
                    assert texts == [f"{name} {i}" for i in range(12)]
                if len(pids) == 2:  # the second may begin to answer much later
                    break
        assert len(pids) == 2


def test_turns_at_once_in_two_workers_are_ordered(settings):
    """One visitor, eight requests at the same time: each is stored once and sees all before it."""
    with server("uvicorn", "plain", settings, "--workers", "2") as process, httpx.Client(base_url=process.url, timeout=PATIENCE) as client:
        client.post("/chat", content="first")
        cookies = dict(client.cookies)

        def post(i: int) -> list[str]:
            return httpx.post(f"{process.url}/chat", content=str(i), cookies=cookies, timeout=PATIENCE).json()["texts"]

        with ThreadPoolExecutor(8) as pool:
            answers = sorted(pool.map(post, range(8)), key=len)
        longest = answers[-1]
        assert len(set(longest)) == 9
        assert [answer == longest[: i + 2] for i, answer in enumerate(answers)] == [True] * 8


def test_a_tampered_cookie_and_a_foreign_id_reach_nobody(settings):
    """A new visitor who is told, and a conversation of one's own."""
    with (
        server("uvicorn", "plain", settings) as process,
        httpx.Client(base_url=process.url, timeout=PATIENCE) as ada,
        httpx.Client(base_url=process.url, timeout=PATIENCE) as eve,
    ):
        ada.post("/chat", content="a secret", headers={"x-session-id": "plans", "sec-fetch-site": "same-origin"})
        (cookie,) = ada.cookies.jar
        token = cookie.value or ""
        for wrong in (token[:-2] + ("AA" if token[-2:] != "AA" else "BB"), token.upper(), f"{token}.", "x"):
            answer = httpx.post(f"{process.url}/chat", content="hi", cookies={cookie.name: wrong}, timeout=PATIENCE)
            assert answer.json()["texts"] == ["hi"]
            assert answer.headers["convmem-identity"] == "rejected"
        eve.post("/chat", content="hello")
        assert eve.post("/chat", content="hi", headers={"x-session-id": "plans"}).json()["texts"] == ["hi"]
        mine = ada.post("/chat", content="more", headers={"x-session-id": "plans"})
        assert mine.json()["texts"] == ["a secret", "more"]
        assert (
            httpx.post(f"{process.url}/chat", headers={"x-session-id": "plans"}, timeout=PATIENCE).json()["code"]
            == "session_id_not_trusted"
        )
