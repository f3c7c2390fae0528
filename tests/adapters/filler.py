"""LlamaIndex's own stores, in an environment of their own: ``python filler.py``, one JSON object a line in, one out.

They pin versions, of asyncpg and of pydantic, that clash with what convmem is tested with. This file imports nothing of convmem.
"""

import json
import sys

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.storage.chat_store import SimpleChatStore
from llama_index.storage.chat_store.postgres import PostgresChatStore

_ONE_BY_ONE = 100


def _open(kind, place):
    if kind == "file":
        return SimpleChatStore.from_persist_path(place)
    address = place.partition("://")[2]
    return PostgresChatStore.from_params(
        connection_string=f"postgresql+psycopg://{address}", async_connection_string=f"postgresql+asyncpg://{address}"
    )


def main():
    """Answer until standard input ends."""
    opened = {}
    for line in sys.stdin:
        asked = json.loads(line)
        place = (asked["kind"], asked["place"])
        store = opened.setdefault(place, None) if asked["kind"] == "postgres" else None
        if store is None:
            store = opened[place] = _open(*place)
        name = asked["name"]
        messages = [ChatMessage.model_validate(message) for message in asked.get("messages", ())]
        if len(messages) > _ONE_BY_ONE:
            store.set_messages(name, [*store.get_messages(name), *messages])
        else:
            for message in messages:
                store.add_message(name, message)
        if messages and asked["kind"] == "file":
            store.persist(asked["place"])
        said = [] if messages else [message.model_dump(mode="json") for message in store.get_messages(name)]
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()


main()
