"""The conversation of the code that runs now, wherever it is called from."""

from __future__ import annotations

from contextvars import ContextVar

from convmem.conversation import Conversation, work_of
from convmem.work import Work

current: ContextVar[Conversation | None] = ContextVar("convmem_current", default=None)


def work_around() -> Work | None:
    """Return the worker's side of the conversation of the code that runs now; None where there is none."""
    conversation = current.get()
    return None if conversation is None else work_of(conversation)
