"""LangChain's memory in convmem: histories, middleware for agents, a checkpointer for graphs, and conversion of messages.

Inside a request all of it takes the conversation from ``convmem.ConversationMiddleware``; in a job, from
``convmem.open_conversation``. `MemoryMiddleware` needs ``langchain``, `ConversationSaver` needs ``langgraph``, the rest only
``langchain-core``; they are imported when a name of theirs is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convmem_langchain._check import check_history_key as check_history_key
    from convmem_langchain._history import ConversationHistory as ConversationHistory
    from convmem_langchain._messages import (
        UnknownMessageClassWarning as UnknownMessageClassWarning,
        chunk_text as chunk_text,
        from_langchain as from_langchain,
        to_langchain as to_langchain,
    )
    from convmem_langchain._middleware import MemoryMiddleware as MemoryMiddleware
    from convmem_langchain._portal import UnsavedQuestionWarning as UnsavedQuestionWarning
    from convmem_langchain._saver import ConversationSaver as ConversationSaver, current_thread as current_thread

_HOMES = {
    "ConversationHistory": "_history",
    "ConversationSaver": "_saver",
    "MemoryMiddleware": "_middleware",
    "UnknownMessageClassWarning": "_messages",
    "UnsavedQuestionWarning": "_portal",
    "check_history_key": "_check",
    "chunk_text": "_messages",
    "current_thread": "_saver",
    "from_langchain": "_messages",
    "to_langchain": "_messages",
}
_NEEDS = {
    "langchain_core": 'convmem_langchain needs: pip install "convmem[langchain]"',
    "langchain": 'MemoryMiddleware needs create_agent\'s package: pip install "convmem[langchain]" "langchain>=1"',
    "langgraph": 'MemoryMiddleware and ConversationSaver need LangGraph: pip install "convmem[langgraph]"',
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    """Import a public name from its module when it is first asked for (PEP 562).

    Raises:
        ImportError: Its package of LangChain is not installed; the message has the line that installs it.
    """
    home = _HOMES.get(name)
    if home is None:
        msg = f"module 'convmem_langchain' has no attribute {name!r}"
        raise AttributeError(msg)
    try:
        value = getattr(import_module(f"{__name__}.{home}"), name)
    except ModuleNotFoundError as error:
        needed = _NEEDS.get((error.name or "").partition(".")[0])
        if needed is None:
            raise
        raise ImportError(needed, name=error.name) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, imported or not."""
    return sorted([*globals(), *_HOMES])
