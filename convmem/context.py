"""The conversation of the code that runs now, wherever it is called from."""

from __future__ import annotations

from contextvars import ContextVar

from convmem.conversation import Conversation

current: ContextVar[Conversation | None] = ContextVar("convmem_current", default=None)
