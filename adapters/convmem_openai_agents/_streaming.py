"""stream_answer: a streamed run's answer, kept as far as it came."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

from agents.result import RunResultStreaming

from convmem import Conversation, Message, TurnClosed, current_conversation


async def stream_answer(result: RunResultStreaming, conversation: Conversation | None = None) -> AsyncGenerator[str, None]:
    """Pass on the text a run streams, so that what arrived is stored when the client leaves or the model breaks off.

    The SDK adds what a model said to its session when all of it has come, and not before. A run whose client has left is stopped.

    Args:
        result: Of ``Runner.run_streamed(agent, question, session=ConversationSession())``.
        conversation: None: that of the request in whose context this runs.
    """
    conversation = current_conversation() if conversation is None else conversation
    events = result.stream_events()
    said = ""
    whole = False
    try:
        async for event in events:
            data: Any = getattr(event, "data", None)
            kind = getattr(data, "type", None)
            if kind == "response.created":
                said = ""
            elif kind == "response.output_text.delta":
                said += data.delta
                yield data.delta
        whole = True
    finally:
        if not whole:
            result.cancel()
            with suppress(TurnClosed):
                _keep(said, conversation)
        await events.aclose()  # type: ignore[attr-defined]  # an async generator, which the SDK calls an iterator


def _keep(said: str, conversation: Conversation) -> None:
    """Append what arrived, unless the session was given it before the end came."""
    new = conversation.new_messages
    if said and not any(message.role == "assistant" and message.text == said for message in new):
        conversation.append(Message.assistant(said))
