"""stream_answer: a chat engine's streamed answer, kept as far as it came."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import suppress

from llama_index.core.chat_engine.types import StreamingAgentChatResponse

from convmem import Conversation, Message, TurnClosed, current_conversation


async def stream_answer(answer: StreamingAgentChatResponse, conversation: Conversation | None = None) -> AsyncGenerator[str, None]:
    """Pass the answer of ``astream_chat`` on, so that what arrived is stored when the client leaves or the model breaks off.

    The engine puts an answer into its memory when that is whole, and not before. An engine whose client has left is stopped.

    Args:
        answer: Of an engine whose memory is `memory_for`.
        conversation: None: that of the request in whose context this runs.
    """
    conversation = current_conversation() if conversation is None else conversation
    pieces = answer.async_response_gen()
    try:
        async for piece in pieces:
            yield piece
    finally:
        if not _remembered(answer):
            with suppress(TurnClosed):
                _keep(answer, conversation)
        await pieces.aclose()


def _remembered(answer: StreamingAgentChatResponse) -> bool:
    """Return whether the engine has put the answer into its memory: its task has ended, and well."""
    task = answer.awrite_response_to_history_task
    return task is None or (task.done() and not task.cancelled() and task.exception() is None)


def _keep(answer: StreamingAgentChatResponse, conversation: Conversation) -> None:
    task, answer.awrite_response_to_history_task = answer.awrite_response_to_history_task, None
    if task is not None:
        task.cancel()
    if answer.unformatted_response:
        conversation.append(Message.assistant(answer.unformatted_response))
