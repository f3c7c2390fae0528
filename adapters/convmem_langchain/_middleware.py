"""MemoryMiddleware: a conversation as the memory of an agent made by ``langchain.agents.create_agent``."""

from __future__ import annotations

import warnings
from typing import Any

from langchain.agents.middleware import AgentMiddleware, AgentState
from langchain_core.messages import AnyMessage, BaseMessage, RemoveMessage
from langgraph.config import get_config
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.runtime import Runtime

from convmem import ConfigurationError, Conversation, current_conversation

from ._messages import from_langchain, identified
from ._portal import UnsavedQuestionWarning, here, run_on


class MemoryMiddleware(AgentMiddleware):
    """Gives an agent the history of the conversation that runs, and the conversation what the agent says.

    ``create_agent(model, tools, middleware=[MemoryMiddleware()])``, without a checkpointer. The question is stored before the
    model is asked, so it is there when the model fails. Tool calls and results join the turn as they come; the turn is stored
    with the response, or at the end of ``open_conversation``. Put it first among the middleware: it gives the history to the rest.

    One instance serves all requests. What another middleware writes for the model only, such as a summary in place of older
    messages, is not stored.
    """

    def __init__(self, *app: object, **options: object) -> None:
        """Take nothing.

        Raises:
            ConfigurationError: It was given to a web app.
        """
        super().__init__()
        if app or options:
            msg = (
                "MemoryMiddleware is an agent's, and takes no arguments: create_agent(model, tools, middleware=[MemoryMiddleware()]). "
                "A web app takes another: from convmem import ConversationMiddleware; app.add_middleware(ConversationMiddleware)."
            )
            raise ConfigurationError(msg)

    def before_agent(self, state: AgentState[Any], runtime: Runtime[Any]) -> dict[str, Any] | None:  # noqa: ARG002
        """Store the question and put the history before it. Errors as in `abefore_agent`."""
        conversation = _begin(state)
        if conversation.loop is not here():
            run_on(conversation.loop, conversation.save()).result()
        else:
            msg = "agent.invoke() blocks the event loop: the question is stored only with its answer; use `await agent.ainvoke()`."
            warnings.warn(msg, UnsavedQuestionWarning, stacklevel=2)
        return _with_history(conversation)

    async def abefore_agent(self, state: AgentState[Any], runtime: Runtime[Any]) -> dict[str, Any] | None:  # noqa: ARG002
        """Store the question and put the history before it.

        Raises:
            NoConversation: Neither a request nor ``open_conversation`` is around the agent.
            ConfigurationError: The agent has a checkpointer, which restores the same history once more.
            ConvmemError: The conversation could not be loaded, or the question not stored.
        """
        conversation = _begin(state)
        await conversation.save()
        return _with_history(conversation)

    def before_model(self, state: AgentState[Any], runtime: Runtime[Any]) -> dict[str, Any] | None:  # noqa: ARG002
        """Append the calls and results since the last time, so that they are kept if the next answer never comes."""
        _append_new(state)
        return None

    async def abefore_model(self, state: AgentState[Any], runtime: Runtime[Any]) -> dict[str, Any] | None:  # noqa: ARG002
        """Do what `before_model` does."""
        _append_new(state)
        return None

    def after_agent(self, state: AgentState[Any], runtime: Runtime[Any]) -> dict[str, Any] | None:  # noqa: ARG002
        """Append what is left, the answer."""
        _append_new(state)
        return None

    async def aafter_agent(self, state: AgentState[Any], runtime: Runtime[Any]) -> dict[str, Any] | None:  # noqa: ARG002
        """Do what `after_agent` does."""
        _append_new(state)
        return None


def _begin(state: AgentState[Any]) -> Conversation:
    conversation = current_conversation()
    if get_config().get("configurable", {}).get("__pregel_checkpointer") is not None:
        msg = (
            "This agent has a checkpointer, which restores the history that MemoryMiddleware gives it too, so the model would read "
            "everything twice. Leave out one of them: create_agent(model, tools, middleware=[MemoryMiddleware()])."
        )
        raise ConfigurationError(msg)
    # all of them, whatever their ids: who sends a message anew, sends a new one
    conversation.append(*map(from_langchain, state["messages"]))
    return conversation


def _with_history(conversation: Conversation) -> dict[str, Any]:
    return {"messages": [RemoveMessage(id=REMOVE_ALL_MESSAGES), *map(identified, conversation.messages)]}


def _append_new(state: AgentState[Any]) -> None:
    """Append the messages whose ids the conversation does not have; LangGraph has given each of them one.

    One with an id of the history is that message, whatever another middleware has made of it for the model.
    """
    conversation = current_conversation()
    known = {message.id for message in conversation.messages}
    said: list[AnyMessage] = state["messages"]
    conversation.append(*(from_langchain(message) for message in said if message.id not in known and not _is_for_the_model(message)))


def _is_for_the_model(message: BaseMessage) -> bool:
    """Return whether it stands for messages that are stored already."""
    return message.additional_kwargs.get("lc_source") == "summarization"
