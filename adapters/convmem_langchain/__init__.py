"""LangChain's memory in convmem: histories, middleware for agents, and conversion of messages.

Inside a request all of it takes the conversation from ``convmem.ConversationMiddleware``; in a job, from
``convmem.open_conversation``.
"""

from __future__ import annotations

try:
    import langchain_core as _langchain_core  # noqa: F401 - only to say in time what is missing
except ModuleNotFoundError as error:
    if error.name != "langchain_core":
        raise
    _msg = 'convmem_langchain needs: pip install "convmem[langchain]"'
    raise ImportError(_msg, name="langchain_core") from error

from ._messages import UnknownMessageClassWarning, chunk_text, from_langchain, to_langchain

__all__ = ["UnknownMessageClassWarning", "chunk_text", "from_langchain", "to_langchain"]
