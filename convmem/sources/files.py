"""LlamaIndex's ``SimpleChatStore``, persisted: one JSON object in a file, ``{"store": {key: [message, …]}, …}``."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from convmem.exceptions import SourceUnreadable
from convmem.sources.documents import Row, Rows


async def rows_of_file(place: str) -> Rows:
    """Read the file. It is one JSON document, and is in memory as a whole, as it is for who wrote it.

    Raises:
        SourceUnreadable: It cannot be read, or is something else.
    """
    try:
        document = json.loads(await asyncio.to_thread(Path(place).read_bytes))
        conversations = {str(name): list(messages) for name, messages in document["store"].items()}
    except OSError as error:
        raise SourceUnreadable(place, error.strerror or str(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceUnreadable(place, "it is no persisted SimpleChatStore") from error
    for name, messages in conversations.items():
        for message in messages:
            yield Row(name, json.dumps(message))
