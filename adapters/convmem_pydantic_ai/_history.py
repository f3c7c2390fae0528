"""A conversation as the history of a run: what was said before, the question, and what the run said."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

from pydantic_ai.messages import ModelMessage, ModelRequest, UserContent, UserPromptPart
from pydantic_ai.result import StreamedRunResult
from pydantic_ai.run import AgentRunResult

from convmem import Conversation, Message, TurnClosed, current_conversation

from ._messages import from_model_messages, to_model_messages


def message_history(conversation: Conversation | None = None) -> list[ModelMessage]:
    """Return the window of the conversation, and what this turn has appended: ``agent.run(question, message_history=message_history())``.

    Args:
        conversation: None: that of the request that runs, or of the ``open_conversation`` around this.

    Raises:
        NoConversation: There is none; the message has the line to change.
        ConvmemError: Whatever kept it from being loaded.
    """
    return to_model_messages(_given(conversation).messages)


async def ask(question: str | Sequence[UserContent], conversation: Conversation | None = None) -> list[ModelMessage]:
    """Store a question, so that it outlives a model that fails, and return the history that ends with it.

    ``result = await agent.run(message_history=await ask(text))``, and then ``keep(result)``.

    Args:
        question: As `Agent.run` takes it.
        conversation: As in `message_history`.

    Raises:
        InvalidMessage: It cannot be stored.
        StoreUnavailable: It could not be stored.
        ConvmemError: As in `message_history`.
    """
    conversation = _given(conversation)
    conversation.append(*from_model_messages([ModelRequest([UserPromptPart(question)])]))
    await conversation.save()
    return message_history(conversation)


def keep(result: AgentRunResult[Any] | StreamedRunResult[Any, Any], conversation: Conversation | None = None) -> None:
    """Append what a run said to the turn: ``result.new_messages()``. It is stored with the response.

    Args:
        result: Of ``agent.run``, or of a stream that came to its end.
        conversation: As in `message_history`.

    Raises:
        InvalidMessage: A value cannot be stored; its place is named, and nothing was appended.
        TurnClosed: The turn has ended.
    """
    _given(conversation).append(*from_model_messages(result.new_messages()))


async def stream_answer(
    run: AbstractAsyncContextManager[StreamedRunResult[Any, Any]], conversation: Conversation | None = None
) -> AsyncGenerator[str, None]:
    """Pass on the text a run streams, and keep what it said: all of it, or what arrived when the client leaves or the model breaks off.

    Args:
        run: ``agent.run_stream(message_history=await ask(text))``, which is entered here.
        conversation: As in `message_history`.
    """
    conversation = _given(conversation)
    async with run as result:
        said, before = "", result.new_messages()
        try:
            async for text in result.stream_text(delta=True, debounce_by=None):
                said += text
                yield text
        except BaseException:
            with suppress(TurnClosed):
                conversation.append(*from_model_messages(before), *([Message.assistant(said)] if said else []))
            raise
        keep(result, conversation)


def _given(conversation: Conversation | None) -> Conversation:
    return current_conversation() if conversation is None else conversation
