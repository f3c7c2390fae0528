"""memory_for: a `Memory` over a conversation, in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llama_index.core.memory import BaseMemoryBlock, Memory
from llama_index.core.memory.memory import DEFAULT_TOKEN_LIMIT

from convmem import Conversation, current_conversation
from convmem_llamaindex._chat_store import ConversationChatStore


def memory_for(
    conversation: Conversation | None = None,
    *,
    token_limit: int = DEFAULT_TOKEN_LIMIT,
    memory_blocks: list[BaseMemoryBlock[Any]] | None = None,
    tokenizer_fn: Callable[[str], list[Any]] | None = None,
) -> Memory:
    """Return a ``Memory`` that remembers this conversation; make one for each request, it costs nothing.

    Args:
        conversation: None: that of the request in whose context this is called, or of the ``open_conversation`` around it.
        token_limit: As in ``Memory``. What no longer fits is archived: out of the queue, still in the conversation.
        memory_blocks: As in ``Memory``; they are given what is archived.
        tokenizer_fn: As in ``Memory``.

    Raises:
        NoConversation: There is none; the message has the line to change.
    """
    conversation = current_conversation() if conversation is None else conversation
    return Memory.from_defaults(
        session_id=conversation.session_id,
        chat_store=ConversationChatStore(conversation),
        token_limit=token_limit,
        memory_blocks=memory_blocks,
        tokenizer_fn=tokenizer_fn,
    )
