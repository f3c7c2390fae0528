"""Recording: collects the text of a stream while it passes through to the client."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Iterator
from typing import Generic, TypeVar

from convmem.exceptions import InvalidMessage, LimitExceeded

C = TypeVar("C")


class FramedStreamWarning(UserWarning):
    """The first chunk recorded looks like a server-sent event: record the model's stream, and frame what comes out of it."""


class Recording(Generic[C]):
    """What one stream has said so far.

    Attributes:
        finished: Whether the stream came to its own end.
        taken: Whether the text has become a message.
    """

    def __init__(self, text: Callable[[C], str | None] | None, room: int) -> None:
        """Collect with `text` at most `room` bytes in UTF-8."""
        self.finished = False
        self.taken = False
        self._text = text
        self._room = room
        self._size = 0
        self._pieces: list[str] = []

    def add(self, chunk: C) -> None:
        """Collect one chunk's text.

        Raises:
            InvalidMessage: The chunk is no text, and there is no `text=` to get it out.
            LimitExceeded: It is more text than a message may have; what came before is kept.
        """
        piece = self._text(chunk) if self._text is not None else chunk
        if piece is None:
            return
        if not isinstance(piece, str):
            field = "record(stream)"
            raise InvalidMessage(field, f"a chunk is {type(piece).__name__}, not text; pass text= with a function that returns its text")
        if not self._pieces and piece.startswith("data:"):
            msg = "The stream being recorded is framed as server-sent events; record the model's stream, and frame what comes out."
            warnings.warn(msg, FramedStreamWarning, stacklevel=2)
        self._size += len(piece.encode("utf-8", "surrogatepass"))
        if self._size > self._room:
            setting = "CONVMEM_MAX_MESSAGE_BYTES"
            raise LimitExceeded(setting, self._room, self._size)
        self._pieces.append(piece)

    @property
    def said(self) -> str:
        """The text so far; halves of a surrogate pair that met at a border of chunks are joined, others are kept."""
        text = "".join(self._pieces)
        try:
            text.encode()
        except UnicodeEncodeError:
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        return text


async def each(stream: AsyncIterable[C] | Iterable[C]) -> AsyncGenerator[C, None]:
    """Iterate over either kind of stream; a synchronous one runs in a thread, so that it blocks nobody."""
    if isinstance(stream, AsyncIterable):
        iterator = aiter(stream)
        try:
            async for chunk in iterator:
                yield chunk
        finally:
            await close(iterator)
        return
    steps = iter(stream)
    while (step := await asyncio.to_thread(_step, steps)) is not None:
        yield step[0]


async def close(stream: object) -> None:
    """Close an asynchronous stream that can be closed, whether it has begun or not."""
    aclose = getattr(stream, "aclose", None)
    if aclose is not None:
        await aclose()


def _step(steps: Iterator[C]) -> tuple[C] | None:
    """Return the next chunk, boxed; StopIteration cannot leave a thread."""
    for chunk in steps:
        return (chunk,)
    return None
