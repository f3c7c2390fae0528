"""Other libraries' memories under the same workload: a process that appends turns to one conversation through a peer's public API.

None of them is needed by the tests; `tests.faults.compare` runs those it finds installed. `python -m tests.faults.peers --help`.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults.history import Kind, Recorder
from tests.faults.waiting import until
from tests.faults.workload import elements_of

NAME = "c0"


class Peer(ABC):
    """One conversation in a peer, as one process has it."""

    @abstractmethod
    async def read(self) -> list[str]:
        """Return the texts in it, oldest first."""

    @abstractmethod
    async def append(self, texts: Sequence[str], think: float) -> None:
        """Append a turn: a question, and after `think` seconds two answers, in as few calls as the peer's pages show."""


class Agents(Peer):
    """openai-agents: a session."""

    def __init__(self, session: Any) -> None:
        self.session = session

    async def read(self) -> list[str]:
        return [item["content"] for item in await self.session.get_items()]

    async def append(self, texts: Sequence[str], think: float) -> None:
        await asyncio.sleep(think)
        await self.session.add_items([{"role": "user", "content": text} for text in texts])


class LangChain(Peer):
    """langchain-community: a chat message history."""

    def __init__(self, history: Any) -> None:
        self.history = history
        messages = importlib.import_module("langchain_core.messages")
        self.message: Callable[[str], Any] = lambda text: messages.HumanMessage(content=text)

    async def read(self) -> list[str]:
        return [message.content for message in self.history.messages]

    async def append(self, texts: Sequence[str], think: float) -> None:
        await asyncio.sleep(think)
        self.history.add_messages([self.message(text) for text in texts])


class LlamaIndex(Peer):
    """llama-index: a chat store, message by message or as a whole."""

    def __init__(self, store: Any, *, whole: bool) -> None:
        self.store = store
        self.whole = whole
        self.message = importlib.import_module("llama_index.core.llms").ChatMessage

    async def read(self) -> list[str]:
        return [message.content for message in await self.store.aget_messages(NAME)]

    async def append(self, texts: Sequence[str], think: float) -> None:
        said = [self.message(role="user", content=text) for text in texts]
        if self.whole:
            before = await self.store.aget_messages(NAME)
            await asyncio.sleep(think)
            await self.store.aset_messages(NAME, [*before, *said])
            return
        await asyncio.sleep(think)
        for message in said:
            await self.store.async_add_message(NAME, message)


class LangGraph(Peer):
    """langgraph: MessagesState with a checkpointer, one thread."""

    def __init__(self, path: str) -> None:
        self.path = path

    async def _on(self, work: Callable[[Any, dict[str, Any]], Any]) -> Any:
        graphs = importlib.import_module("langgraph.graph")
        saver = importlib.import_module("langgraph.checkpoint.sqlite.aio").AsyncSqliteSaver
        messages = importlib.import_module("langchain_core.messages")

        async def answer(state: dict[str, Any]) -> dict[str, Any]:
            await asyncio.sleep(0.002)
            question = state["messages"][-1].content.rpartition("/")[0]
            return {"messages": [messages.AIMessage(content=f"{question}/{index}") for index in (1, 2)]}

        graph = graphs.StateGraph(graphs.MessagesState)
        graph.add_node("answer", answer)
        graph.add_edge("__start__", "answer")
        async with saver.from_conn_string(self.path) as checkpointer:
            return await work(graph.compile(checkpointer=checkpointer), {"configurable": {"thread_id": NAME}})

    async def read(self) -> list[str]:
        state = await self._on(lambda graph, config: graph.aget_state(config))
        return [message.content for message in state.values.get("messages", [])]

    async def append(self, texts: Sequence[str], think: float) -> None:
        message = importlib.import_module("langchain_core.messages").HumanMessage(content=texts[0])
        await self._on(lambda graph, config: graph.ainvoke({"messages": [message]}, config))


class StarSessions(Peer):
    """starsessions: a list in a server-side session, behind its ASGI middleware."""

    def __init__(self, url: str) -> None:
        starsessions = importlib.import_module("starsessions")
        store = importlib.import_module("starsessions.stores.redis").RedisStore(url)
        starlette = importlib.import_module("starlette.applications")
        routing = importlib.import_module("starlette.routing")
        responses = importlib.import_module("starlette.responses")

        async def messages(request: Any) -> Any:
            await starsessions.load_session(request)
            said = request.session.setdefault("messages", [])
            if request.method == "POST":
                new = await request.json()
                await asyncio.sleep(new["think"])
                request.session["messages"] = [*said, *new["texts"]]
            return responses.JSONResponse(request.session["messages"])

        app = starlette.Starlette(routes=[routing.Route("/", messages, methods=["GET", "POST"])])
        self.app = starsessions.SessionMiddleware(app, store=store, cookie_https_only=False, lifetime=3600)

    async def _ask(self, method: str, **body: Any) -> Any:
        httpx = importlib.import_module("httpx")
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://peer", cookies={"session": NAME}) as client:
            return (await client.request(method, "/", json=body or None)).json()

    async def read(self) -> list[str]:
        return list(await self._ask("GET"))

    async def append(self, texts: Sequence[str], think: float) -> None:
        await self._ask("POST", texts=list(texts), think=think)


class Offer(NamedTuple):
    """How a peer is opened, and what its row says.

    Attributes:
        call: What of it is called.
        needs: The packages whose versions are printed.
        server: `redis`, or `file`.
    """

    call: str
    needs: tuple[str, ...]
    server: str
    open: Callable[[str], Peer]


def _agents(name: str, *arguments: str) -> Callable[[str], Peer]:
    def opened(place: str) -> Peer:
        module = importlib.import_module("agents.extensions.memory" if name == "RedisSession" else "agents")
        kind = getattr(module, name)
        return Agents(kind.from_url(NAME, url=place) if name == "RedisSession" else kind(NAME, place))

    return opened


def _langchain(name: str, argument: str, form: str = "{}") -> Callable[[str], Peer]:
    def opened(place: str) -> Peer:
        kind = getattr(importlib.import_module("langchain_community.chat_message_histories"), name)
        return LangChain(kind(session_id=NAME, **{argument: form.format(place)}))

    return opened


def _llamaindex(*, whole: bool) -> Callable[[str], Peer]:
    return lambda place: LlamaIndex(
        importlib.import_module("llama_index.storage.chat_store.redis").RedisChatStore(redis_url=place), whole=whole
    )


PEERS = {
    "agents-redis": Offer("RedisSession.add_items", ("openai-agents",), "redis", _agents("RedisSession")),
    "agents-sqlite": Offer("SQLiteSession.add_items", ("openai-agents",), "file", _agents("SQLiteSession")),
    "langchain-redis": Offer(
        "RedisChatMessageHistory.add_messages", ("langchain-community",), "redis", _langchain("RedisChatMessageHistory", "url")
    ),
    "langchain-sql": Offer(
        "SQLChatMessageHistory.add_messages",
        ("langchain-community",),
        "file",
        _langchain("SQLChatMessageHistory", "connection", "sqlite:///{}?timeout=30"),
    ),
    "llamaindex-redis": Offer(
        "RedisChatStore.async_add_message", ("llama-index-storage-chat-store-redis",), "redis", _llamaindex(whole=False)
    ),
    "llamaindex-redis-set": Offer(
        "RedisChatStore.aset_messages", ("llama-index-storage-chat-store-redis",), "redis", _llamaindex(whole=True)
    ),
    "starsessions": Offer("a list in the session", ("starsessions",), "redis", StarSessions),
    "langgraph-sqlite": Offer("ainvoke on one thread, AsyncSqliteSaver", ("langgraph", "langgraph-checkpoint-sqlite"), "file", LangGraph),
}


def versions(offer: Offer) -> str | None:
    """Return which versions are installed; None when one is missing."""
    try:
        return ", ".join(f"{name} {version(name)}" for name in offer.needs)
    except PackageNotFoundError:
        return None


async def work(place: str, peer: str, folder: Path, name: str, *, turns: int, think: float, processes: int) -> None:
    """Append turns, one after the other, and read after each; record all. All processes begin together."""
    conversation = PEERS[peer].open(place)
    await conversation.read()  # what is imported late is there before the others are waited for
    with Recorder(folder, name) as recorder:
        await until(lambda: len(list(folder.glob("*.jsonl"))) == processes, seconds=120)
        for number in range(turns):
            turn = f"{name}-{number}"
            elements = elements_of(turn)
            asked = recorder.invoke(Kind.APPEND, NAME, turn=turn, elements=elements)
            try:
                await conversation.append(elements, think)
            except Exception as error:  # noqa: BLE001 - whatever a peer raises, the client knows nothing then
                recorder.unknown(asked, repr(error)[:200])
            else:
                recorder.ok(asked)
            await read(conversation, recorder)


async def read(conversation: Peer, recorder: Recorder, *, final: bool = False) -> None:
    """Record one read."""
    asked = recorder.invoke(Kind.READ, NAME, final=final)
    try:
        recorder.ok(asked, elements=await conversation.read())
    except Exception as error:
        recorder.unknown(asked, repr(error)[:200])
        if final:
            raise


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.faults.peers", description=__doc__)
    parser.add_argument("place", help="the URL of its server, or a file")
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("folder", type=Path, help="where its history goes")
    parser.add_argument("name", help="of the process in the history")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--think", type=float, default=0.002)
    parser.add_argument("--processes", type=int, default=1, help="how many to wait for")
    given = parser.parse_args()
    asyncio.run(work(given.place, given.peer, given.folder, given.name, turns=given.turns, think=given.think, processes=given.processes))
