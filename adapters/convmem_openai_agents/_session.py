"""ConversationSession: a conversation as the session of a run."""

from __future__ import annotations

import asyncio

from agents import TResponseInputItem
from agents.memory import SessionSettings

from convmem import Conversation, Edit, Message, ReasoningPart, current_conversation

from ._messages import from_items, of_this_sdk, to_items


class ConversationSession:
    """The SDK's ``Session``: ``Runner.run(agent, question, session=ConversationSession())``. Make one for each run; it costs nothing.

    Reading takes no trip: the conversation is loaded already. What a run says joins the turn, and is stored with the response; a
    question is stored at once, so that it outlives a model that fails. All errors are convmem's, and the run raises them.

    Attributes:
        session_id: Of the conversation.
        session_settings: As in the SDK: ``SessionSettings(limit=20)`` is what a run reads that says nothing else.
    """

    def __init__(self, conversation: Conversation | None = None, *, session_settings: SessionSettings | None = None) -> None:
        """Take a conversation; None: that of the request that runs, or of the ``open_conversation`` around this.

        Raises:
            NoConversation: There is none; the message has the line to change.
            ConvmemError: Whatever kept it from being loaded.
        """
        self._conversation = current_conversation() if conversation is None else conversation
        self.session_id: str = self._conversation.session_id
        self.session_settings: SessionSettings | None = session_settings

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """Return the window of the conversation, oldest first; what another framework wrote too, without what its model thought.

        Args:
            limit: At most so many items, the newest; None: as the settings say, or all.
        """
        if limit is None and self.session_settings is not None:
            limit = self.session_settings.limit
        items = to_items(map(_without_foreign_thoughts, self._conversation.messages))
        return items if limit is None else items[-limit:] if limit > 0 else []

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Append items to the turn, all or none; a question among them is stored when this returns.

        Raises:
            InvalidMessage: One cannot be stored and read back equal.
            TurnClosed: The turn has ended.
            StoreUnavailable: The question could not be stored.
        """
        messages = from_items(items)
        self._conversation.append(*messages)
        if any(message.role == "user" for message in messages):
            await self._save()

    async def pop_item(self) -> TResponseInputItem | None:
        """Take the newest item out of sight and return it; None when there is none. The log keeps it.

        What an earlier turn said is read from the store, whole: a window shows no call whose result was taken.
        """
        ids: list[str] = []
        for message in reversed(self._conversation.new_messages or await self._history()):
            ids.append(message.id)
            items = to_items([_without_foreign_thoughts(message)])
            if items:
                self._conversation.edit(Edit(action="hide", ids=tuple(ids)), *from_items(items[:-1]))
                return items[-1]
        return None

    async def clear_session(self) -> None:
        """Take everything out of sight. It stays in the log until the conversation is deleted."""
        self._conversation.edit(Edit(action="hide", before="all"))

    async def _history(self) -> list[Message]:
        """Return everything in sight, read by the event loop the store belongs to."""
        conversation = self._conversation
        if conversation.loop is asyncio.get_running_loop():
            return await conversation.history()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(conversation.history(), conversation.loop))

    async def _save(self) -> None:
        """Store the question, from whatever event loop: ``Runner.run_sync`` has one of its own."""
        if self._conversation.loop is asyncio.get_running_loop():
            await self._conversation.save()
        else:
            await asyncio.to_thread(self._conversation.save_from_thread)


def _without_foreign_thoughts(message: Message) -> Message:
    """Leave out the reasoning another provider has signed: OpenAI refuses what it did not write."""
    if of_this_sdk(message) or isinstance(message.content, str):
        return message
    return message.model_copy(update={"content": tuple(part for part in message.content if not isinstance(part, ReasoningPart))})
