"""A server that may lose conversations, where the app was told to refuse one: on every store the app does not start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from convmem import ConversationMiddleware, Store, open_store
from tests.asgi_client import plain, quick
from tests.wheels import valkey
from tests.wheels.postgres import PostgresWheel


async def started(store: Store) -> dict[str, Any]:
    """Return what an app with this store answers to the server that starts it."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "lifespan.startup"}

    async def send(event: Any) -> None:
        sent.append(event)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            return
        await plain(send)

    async with store:
        await ConversationMiddleware(app, store=store, settings=quick())({"type": "lifespan", "state": {}}, receive, send)
    answer: dict[str, Any] = sent[0]
    return answer


@pytest.mark.asyncio
async def test_refuse_stops_the_start_on_redis(tmp_path: Path) -> None:
    """The sentence reaches whoever deploys, not the first user."""
    with valkey.Valkey(tmp_path / "server", "--save", "", "--maxmemory-policy", "allkeys-lru") as server:
        answer = await started(open_store(f"{server.url}?unsafe=refuse"))
    assert answer["type"] == "lifespan.startup.failed"
    assert "set maxmemory-policy noeviction" in answer["message"]
    assert "set appendonly yes" in answer["message"]


@pytest.mark.asyncio
async def test_refuse_stops_the_start_on_postgresql(postgres_wheel: PostgresWheel) -> None:
    """The same word means the same there."""
    server = postgres_wheel.server(synchronous_commit="off")
    answer = await started(open_store(server.url(query="?unsafe=refuse")))
    server.kill()
    assert answer["type"] == "lifespan.startup.failed"
    assert "ALTER ROLE ... SET synchronous_commit = on" in answer["message"]
