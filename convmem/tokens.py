"""Tokens: how many of them a message is. An estimate that needs nothing, tiktoken where it is there, or the app's own counter.

Model APIs wrap a message in a few tokens of their own, and count images, recordings and files in ways that differ by model; those
are estimated, generously, whatever counts the text. A window in tokens is a budget to plan with, not the model's own limit: leave room.
"""

from __future__ import annotations

import hashlib
import json
import logging
import operator
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from convmem.exceptions import CounterFailed
from convmem.messages import AudioPart, FilePart, ImagePart, Message, Part, ReasoningPart, TextPart

Counter = Callable[[Message], int]
"""Returns how many tokens one message is, 0 or more; called once a message and turn, in the event loop, so it should be quick."""

ENCODING = "o200k_base"
"""That of OpenAI's models since GPT-4o; for other models it is as good an estimate as any single encoding."""

_BYTES_A_TOKEN = 4
_OVERHEAD = 4
_CALL_OVERHEAD = 8
_BY_URL = 1000
_IMAGE = 1000
_BYTES_OF_MEDIA_A_TOKEN = 1600
"""A second of compressed speech is about 16 kB and ten tokens."""
_VOCABULARY = "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken"
_VOCABULARY_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"

logger = logging.getLogger("convmem.tokens")


def estimate(message: Message) -> int:
    """Return about how many tokens a message is: a token for four bytes of its text in UTF-8, and what `count` adds."""
    return count(message, _estimate_text)


def _estimate_text(text: str) -> int:
    return -(-len(text.encode("utf-8", "surrogatepass")) // _BYTES_A_TOKEN)


def count(message: Message, of_text: Callable[[str], int]) -> int:
    """Return how many tokens a message is, by how many a text is.

    On top come 4 for each message and 8 for each tool call, with its name and arguments; 1000 for each image, and for anything named
    only by a URL; a token for 1600 bytes of other media.
    """
    parts = [TextPart(text=message.content)] if isinstance(message.content, str) else message.content
    calls = sum(_CALL_OVERHEAD + of_text(call.name) + of_text(_json(call.arguments)) for call in message.tool_calls)
    return _OVERHEAD + sum(_of_part(part, of_text) for part in parts) + calls + (of_text(message.name) if message.name else 0)


def _of_part(part: Part, of_text: Callable[[str], int]) -> int:
    if isinstance(part, TextPart | ReasoningPart):
        return of_text(part.text)
    if isinstance(part, ImagePart):
        return _IMAGE
    if isinstance(part, AudioPart | FilePart):
        return _BY_URL if part.data is None else -(-len(part.data) // _BYTES_OF_MEDIA_A_TOKEN)
    return of_text(_json(part.fields))


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


@cache
def default_counter(cache_of_tiktoken: Path | None) -> Counter:
    """Return what counts where the app names no counter: tiktoken's `ENCODING`, if that can be had without a download, else `estimate`.

    Which of them it is, is logged once.

    Args:
        cache_of_tiktoken: Where tiktoken keeps vocabularies; None: it keeps none.
    """
    try:
        import tiktoken
    except ImportError:
        logger.info(
            "tokens are estimated; for tiktoken's count: pip install 'convmem[tokens]', and keep its vocabulary (TIKTOKEN_CACHE_DIR)"
        )
        return estimate
    if not _is_there(cache_of_tiktoken):
        logger.warning(
            "tiktoken_vocabulary_missing: tokens are estimated, because tiktoken would download %s at run time; do that when the image is "
            "built, with TIKTOKEN_CACHE_DIR set to a directory that stays: python -c \"import tiktoken; tiktoken.get_encoding('%s')\"",
            ENCODING,
            ENCODING,
        )
        return estimate
    encoding = tiktoken.get_encoding(ENCODING)

    def of_text(text: str) -> int:
        return len(encoding.encode_ordinary(text))

    logger.info("tokens are counted by tiktoken's %s", ENCODING)
    return lambda message: count(message, of_text)


def _is_there(directory: Path | None) -> bool:
    """Return whether tiktoken will find the vocabulary; a file that is not the right one it would replace by a download."""
    if directory is None:
        return False
    try:
        data = (directory / hashlib.sha1(_VOCABULARY.encode(), usedforsecurity=False).hexdigest()).read_bytes()
    except OSError:
        return False
    return hashlib.sha256(data).hexdigest() == _VOCABULARY_SHA256


class Meter:
    """Counts each message once, by one counter."""

    def __init__(self, counter: Counter | None) -> None:
        """Count with `counter`; None estimates."""
        self._counter = counter or estimate
        self._known: dict[Message, int] = {}

    def of(self, message: Message) -> int:
        """Return how many tokens a message is.

        Raises:
            CounterFailed: The counter raised, or returned no whole number from 0.
        """
        known = self._known.get(message)
        if known is None:
            known = self._known[message] = self._ask(message)
        return known

    def total(self, messages: Iterable[Message]) -> int:
        """Return how many tokens these messages are together. Errors as in `of`."""
        return sum(map(self.of, messages))

    def _ask(self, message: Message) -> int:
        try:
            answer: object = self._counter(message)
        except Exception as error:
            msg = f"Window(counter=...) raised {type(error).__name__} for a message of the role {message.role}."
            raise CounterFailed(msg) from error
        try:
            tokens = operator.index(answer)  # type: ignore[arg-type]
        except TypeError:
            tokens = -1
        if tokens < 0 or isinstance(answer, bool):
            close = getattr(answer, "close", None)
            if close is not None:  # a coroutine that nobody awaits
                close()
            msg = f"Window(counter=...) returned a {type(answer).__name__}; a counter is no coroutine, and returns a whole number from 0."
            raise CounterFailed(msg)
        return tokens
