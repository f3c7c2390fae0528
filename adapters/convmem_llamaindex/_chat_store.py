"""ConversationChatStore: what LlamaIndex's `Memory` keeps its messages in."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Coroutine
from typing import Any, Self, TypeVar

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory.types import DEFAULT_CHAT_STORE_KEY
from llama_index.core.storage.chat_store.base_db import AsyncDBChatStore, MessageStatus
from pydantic import PrivateAttr

from convmem import Conversation, Message, conversations, open_conversation
from convmem_llamaindex import _queue as queue
from convmem_llamaindex._messages import to_llamaindex
from convmem_llamaindex._portal import portal

T = TypeVar("T")


class ConversationChatStore(AsyncDBChatStore):
    """The chat store for ``Memory``: the messages are those of a conversation, and what is written joins its turn.

    Args:
        conversation: None: that of the request in whose context the store is called, or of the ``open_conversation`` around it.

    Keys are session ids of the conversation's owner. The key of the conversation itself costs no trip: it is loaded already, and
    what is written is stored at the end of its turn; a question is stored at once, so that it outlives a model that fails. Any
    other key is opened as a turn of its own for each call.

    The active queue is the conversation's window without what was archived. Archived and deleted messages stay in the log;
    archived ones stay in ``conversation.messages`` too. All errors are convmem's, and none is swallowed.
    """

    _conversation: Conversation | None = PrivateAttr(default=None)

    def __init__(self, conversation: Conversation | None = None) -> None:
        super().__init__()
        self._conversation = conversation

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Return a store over the same conversation, which is one however many stores there are."""
        return type(self)(self._conversation)

    @classmethod
    def class_name(cls) -> str:
        """Return the class name."""
        return "ConversationChatStore"

    async def get_messages(
        self, key: str, status: MessageStatus | None = MessageStatus.ACTIVE, limit: int | None = None, offset: int | None = None
    ) -> list[ChatMessage]:
        """Return the messages of a key, oldest first: the active queue, or with another status all there are, read for it.

        Args:
            key: A session id.
            status: None: active and archived ones.
            limit: At most so many, from the oldest on.
            offset: How many of the oldest to leave out.
        """
        found = await self._at(key, lambda conversation: _read(conversation, status))
        begin = offset or 0
        return to_llamaindex(found[begin : None if limit is None else begin + limit])

    async def count_messages(self, key: str, status: MessageStatus | None = MessageStatus.ACTIVE) -> int:
        """Return how many messages `get_messages` returns."""
        return len(await self._at(key, lambda conversation: _read(conversation, status)))

    async def add_message(self, key: str, message: ChatMessage, status: MessageStatus = MessageStatus.ACTIVE) -> None:
        """Append a message."""
        await self.add_messages(key, [message], status)

    async def add_messages(self, key: str, messages: list[ChatMessage], status: MessageStatus = MessageStatus.ACTIVE) -> None:
        """Append messages, all or none."""

        async def add(conversation: Conversation) -> None:
            if queue.add(conversation, messages, archived=status is MessageStatus.ARCHIVED):
                await save(conversation)

        await self._at(key, add, writes=True)

    async def set_messages(self, key: str, messages: list[ChatMessage], status: MessageStatus = MessageStatus.ACTIVE) -> None:
        """Replace all messages with this status in one step; those with the other status stay."""

        async def put(conversation: Conversation) -> None:
            queue.put(conversation, messages, archived=status is MessageStatus.ARCHIVED)

        await self._at(key, put, writes=True)

    async def delete_message(self, key: str, idx: int) -> ChatMessage | None:
        """Hide the message at this index of the active queue and return it; None when there is none."""

        async def remove(conversation: Conversation) -> ChatMessage | None:
            return queue.remove(conversation, idx)

        return await self._at(key, remove)

    async def delete_messages(self, key: str, status: MessageStatus | None = None) -> None:
        """Hide all messages with this status; None: all there are."""

        async def remove(conversation: Conversation) -> None:
            queue.remove_all(conversation, _STATUS[status])

        await self._at(key, remove)

    async def delete_oldest_messages(self, key: str, n: int) -> list[ChatMessage]:
        """Hide the oldest n messages of the queue the caller has seen and return them; system messages among them stay."""

        async def take(conversation: Conversation) -> list[ChatMessage]:
            return queue.take_oldest(conversation, n, "hide")

        return await self._at(key, take)

    async def archive_oldest_messages(self, key: str, n: int) -> list[ChatMessage]:
        """Archive the oldest n messages of the queue the caller has seen and return them; system messages among them stay."""

        async def take(conversation: Conversation) -> list[ChatMessage]:
            return queue.take_oldest(conversation, n, "archive")

        return await self._at(key, take)

    async def get_keys(self) -> list[str]:
        """Return the session ids of the owner, the last written first; the conversation at hand is among them once it has messages."""
        conversation, _ = queue.named(self._conversation, DEFAULT_CHAT_STORE_KEY)

        async def stored() -> list[str]:
            return await session_ids(conversation)

        found = await elsewhere(conversation, stored())
        mine = [conversation.session_id] if conversation.messages and conversation.session_id not in found else []
        return [*mine, *found]

    async def _at(self, key: str, work: Callable[[Conversation], Coroutine[Any, Any, T]], *, writes: bool = False) -> T:
        """Do the work on the conversation a key names: on the one at hand here and now, on another in a turn of its own."""
        conversation, other = queue.named(self._conversation, key)
        if other is None:
            return await work(conversation)

        async def there() -> T:
            async with open_conversation(other, store=conversation.store) as opened:
                if writes and opened.is_new:
                    _warn(conversation, key)
                return await work(opened)

        return await elsewhere(conversation, there())


async def _read(conversation: Conversation, status: MessageStatus | None) -> list[Message]:
    if status is MessageStatus.ACTIVE:
        return queue.read(conversation)
    everything = await elsewhere(conversation, conversation.history())
    return [message for message in everything if status is None or message.archived]


async def save(conversation: Conversation) -> None:
    """Store the question. Called in another event loop than the conversation's, as far as that loop is not blocked by the call."""
    if conversation.loop is asyncio.get_running_loop():
        await conversation.save()
    else:
        await asyncio.to_thread(conversation.save_from_thread)


async def elsewhere(conversation: Conversation, work: Coroutine[Any, Any, T]) -> T:
    """Do what needs the store; not in a loop that was made for one synchronous call, where it would need a new connection."""
    here = asyncio.get_running_loop()
    if here in (conversation.loop, portal.loop):
        return await work
    return await asyncio.wrap_future(portal.submit(work))


async def session_ids(conversation: Conversation) -> list[str]:
    """Return the stored session ids of the owner, the last written first."""
    found: list[str] = []
    after: str | None = None
    while True:
        page = await conversations(conversation.owner, tenant=conversation.key.tenant, store=conversation.store, after=after)
        found += [item.session_id for item in page.items]
        after = page.after
        if after is None:
            return found


def _warn(conversation: Conversation, key: str) -> None:
    msg = (
        f"This memory writes to a new conversation {key!r}, and this is {conversation.session_id!r}: a Memory without session_id makes"
        " one up each time, and forgets. Use memory_for(), or session_id=conversation.session_id."
    )
    warnings.warn(msg, queue.NewConversationWarning, stacklevel=2)


_STATUS: dict[MessageStatus | None, queue.Status] = {
    None: "all",
    MessageStatus.ACTIVE: "active",
    MessageStatus.ARCHIVED: "archived",
}
