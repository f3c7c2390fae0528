"""ConversationSyncChatStore: what LlamaIndex's older memories, ChatMemoryBuffer before all, keep their messages in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Self, TypeVar

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.storage.chat_store.base import BaseChatStore
from llama_index.core.storage.chat_store.base_db import MessageStatus
from pydantic import PrivateAttr

from convmem import Conversation
from convmem_llamaindex import _queue as queue
from convmem_llamaindex._chat_store import ConversationChatStore
from convmem_llamaindex._messages import to_llamaindex
from convmem_llamaindex._portal import portal

T = TypeVar("T")


class ConversationSyncChatStore(BaseChatStore):
    """The chat store for ``ChatMemoryBuffer``; as `ConversationChatStore`, and its methods are synchronous.

    Args:
        conversation: None: that of the request in whose context the store is called.

    The key that ``ChatMemoryBuffer`` uses when it is given none is the conversation at hand, too. Calls on that conversation
    never wait for a store; the question is stored at once where the call comes from a thread, and with the next save or at the
    end of the turn where it comes from the event loop's own thread, which it blocks.
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
        return "ConversationSyncChatStore"

    def set_messages(self, key: str, messages: list[ChatMessage]) -> None:
        """Replace the messages of a key, in one step."""
        self._at(key, lambda conversation: queue.put(conversation, messages), lambda store: store.set_messages(key, messages))

    def get_messages(self, key: str) -> list[ChatMessage]:
        """Return the messages of a key, oldest first."""
        return self._at(key, lambda conversation: to_llamaindex(queue.read(conversation)), lambda store: store.get_messages(key))

    def add_message(self, key: str, message: ChatMessage) -> None:
        """Append a message."""

        def add(conversation: Conversation) -> None:
            if queue.add(conversation, [message]):
                conversation.save_from_thread()

        self._at(key, add, lambda store: store.add_message(key, message))

    def delete_messages(self, key: str) -> list[ChatMessage] | None:
        """Hide the messages of a key and return them; None when there are none. What is archived stays."""
        found = self.get_messages(key)
        if not found:
            return None
        self._at(
            key,
            lambda conversation: queue.remove_all(conversation, "active"),
            lambda store: store.delete_messages(key, MessageStatus.ACTIVE),
        )
        return found

    def delete_message(self, key: str, idx: int) -> ChatMessage | None:
        """Hide the message at this index and return it; None when there is none."""
        return self._at(key, lambda conversation: queue.remove(conversation, idx), lambda store: store.delete_message(key, idx))

    def delete_last_message(self, key: str) -> ChatMessage | None:
        """Hide the last message and return it; None when there is none."""
        return self.delete_message(key, -1)

    def get_keys(self) -> list[str]:
        """Return the session ids of the owner, the last written first."""
        return portal.submit(self._asynchronous().get_keys()).result()

    async def aset_messages(self, key: str, messages: list[ChatMessage]) -> None:
        """As `set_messages`."""
        await self._asynchronous().set_messages(key, messages)

    async def aget_messages(self, key: str) -> list[ChatMessage]:
        """As `get_messages`."""
        return await self._asynchronous().get_messages(key)

    async def async_add_message(self, key: str, message: ChatMessage) -> None:
        """As `add_message`; a question is stored when it returns."""
        await self._asynchronous().add_message(key, message)

    async def adelete_messages(self, key: str) -> list[ChatMessage] | None:
        """As `delete_messages`."""
        found = await self.aget_messages(key)
        if not found:
            return None
        await self._asynchronous().delete_messages(key, MessageStatus.ACTIVE)
        return found

    async def adelete_message(self, key: str, idx: int) -> ChatMessage | None:
        """As `delete_message`."""
        return await self._asynchronous().delete_message(key, idx)

    async def adelete_last_message(self, key: str) -> ChatMessage | None:
        """As `delete_last_message`."""
        return await self.adelete_message(key, -1)

    async def aget_keys(self) -> list[str]:
        """As `get_keys`."""
        return await self._asynchronous().get_keys()

    def _asynchronous(self) -> ConversationChatStore:
        return ConversationChatStore(self._conversation)

    def _at(self, key: str, here: Callable[[Conversation], T], there: Callable[[ConversationChatStore], Coroutine[Any, Any, T]]) -> T:
        """Work on the conversation at hand right here, and on another one through the portal."""
        conversation, other = queue.named(self._conversation, key)
        if other is None:
            return here(conversation)
        if asyncio._get_running_loop() is portal.loop:  # noqa: SLF001 - None instead of an error
            msg = "Another conversation cannot be reached synchronously from here; use the asynchronous methods."
            raise RuntimeError(msg)
        return portal.submit(there(ConversationChatStore(conversation))).result()
