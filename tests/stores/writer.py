"""A process that writes turns to one conversation and says which were acknowledged: `python -m tests.stores.writer FILE NAME TURNS`."""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta
from pathlib import Path

from convmem import Message, SessionKey, SQLiteStore, open_conversation

KEY = SessionKey.for_user("everybody", "shared")


async def write(path: Path, name: str, first: int, last: int) -> None:
    """Write turns of three messages, one after the other; print each when it is acknowledged."""
    store = SQLiteStore(path, busy_timeout=timedelta(seconds=30))
    for number in range(first, last):
        turn = f"{name}-{number}"
        async with open_conversation(KEY, store=store) as conversation:
            conversation.append(Message.user(f"{turn}:0"))
            if number % 3 == 0:
                await conversation.save()
            conversation.append(Message.assistant(f"{turn}:1"), Message.assistant(f"{turn}:2"))
        print(number, flush=True)
    await store.aclose()


if __name__ == "__main__":
    asyncio.run(write(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
