"""ConversationHistory: a conversation as LangChain's `BaseChatMessageHistory`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import BaseMessage, RemoveMessage

from convmem import (
    ConfigurationError,
    Conversation,
    ConvmemError,
    InvalidMessage,
    Message,
    NoConversation,
    SessionKey,
    Store,
    current_conversation,
    open_conversation,
)

from ._messages import from_langchain, to_langchain
from ._portal import Portal, here, run_on

logger = logging.getLogger("convmem_langchain")


class ConversationHistory(BaseChatMessageHistory):
    """The messages of a conversation for whatever takes a chat history: `RunnableWithMessageHistory`, the classic memories.

    Inside a request, and inside ``open_conversation``, it reads what was loaded and appends to the turn that runs: reading costs
    no trip to the store, and what is added is stored with the response. With the key of another conversation, or outside of both,
    each read opens that conversation, and each ``add_messages`` is a turn of its own.

    What goes wrong while messages are added is raised, and remembered: `RunnableWithMessageHistory` swallows what its history
    raises, and a request whose turn could not be kept must not look like one that was.

    Args:
        conversation: None is the one of the request that runs, at each use: for objects that outlive a request. The key of one
            opens it where it is not the running one.
        store: For a key: None is the middleware's inside a request, else the one of ``CONVMEM_STORE``, opened and closed each time.

    Attributes:
        failure: Why the last messages were not kept, where no turn is running that could fail instead.
    """

    def __init__(self, conversation: Conversation | SessionKey | None = None, *, store: Store | None = None) -> None:
        """Read nothing."""
        super().__init__()
        given: object = conversation
        if given is not None and not isinstance(given, Conversation | SessionKey):
            msg = (
                f"ConversationHistory takes a Conversation or a SessionKey, not a {type(given).__name__}; "
                "a session id alone is for ConversationHistory.for_session."
            )
            raise ConfigurationError(msg)
        self.failure: ConvmemError | None = None
        self._given = conversation
        self._store = store
        self._portal = Portal()
        self._one_run = False
        self._snapshot: list[BaseMessage] | None = None

    @classmethod
    def current(cls) -> ConversationHistory:
        """Return the history of the request that runs, for one run: ``RunnableWithMessageHistory(chain, ConversationHistory.current)``.

        Raises:
            NoConversation: No request runs here; the message has the line to add.
        """
        return cls._for_one_run(current_conversation())

    @classmethod
    def for_session(cls, session_id: str) -> ConversationHistory:
        """Return the history of one of the present owner's conversations, for one run; the owner is never the caller's choice.

        For ``RunnableWithMessageHistory(chain, ConversationHistory.for_session)``, whose ``configurable`` has the session id.

        Raises:
            NoConversation: No request runs here; outside of one, the owner is named: ``ConversationHistory(SessionKey(...))``.
            InvalidIdentity: That is no session id.
        """
        conversation = current_conversation()
        key = SessionKey(conversation.owner, session_id, conversation.key.tenant)
        return cls._for_one_run(conversation if key == conversation.key else key)

    @classmethod
    def opening(cls, key: SessionKey, *, store: Store | None = None) -> Callable[[], ConversationHistory]:
        """Return what makes histories for runs outside of requests, where an event loop runs and where none does.

        For ``RunnableWithMessageHistory(chain, ConversationHistory.opening(SessionKey.for_user("42")))``. A run reads once, and
        what it adds is a turn of its own.
        """

        def history() -> ConversationHistory:
            return cls._for_one_run(key, store)

        return history

    @classmethod
    def _for_one_run(cls, given: Conversation | SessionKey, store: Store | None = None) -> ConversationHistory:
        """Return a history that shows the same at the end of a run as at its beginning.

        `RunnableWithMessageHistory` tells the question from the history by counting what the history holds when the run ends.
        """
        history = cls(given, store=store)
        history._one_run = True
        return history

    # What LangChain calls

    @property
    def messages(self) -> list[BaseMessage]:  # type: ignore[override]  # LangChain declares an attribute and means a property
        """The window of the history, then what this turn added; a new list each time.

        Raises:
            ConvmemError: Whatever kept the conversation from being loaded.
        """
        if self._snapshot is not None:
            return list(self._snapshot)
        conversation = self._running()
        return self._shown(conversation.messages if conversation is not None else self._portal.run(self._read()))

    async def aget_messages(self) -> list[BaseMessage]:
        """Return what `messages` is."""
        if self._snapshot is not None:
            return list(self._snapshot)
        conversation = self._running()
        return self._shown(conversation.messages if conversation is not None else await self._read())

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Add messages to the turn; a chunk is added as the message it is a chunk of.

        Raises:
            InvalidMessage: One cannot be stored and come back equal. None of them was added.
            TurnClosed: The turn has ended.
            ConvmemError: The store, where this is a turn of its own.
        """
        with self._remembering():
            added = _neutral(messages)
            conversation = self._running()
            if conversation is not None:
                conversation.append(*added)
            else:
                self._portal.run(self._write(added))
            self._extend(added)

    async def aadd_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Do what `add_messages` does."""
        with self._remembering():
            added = _neutral(messages)
            conversation = self._running()
            if conversation is not None:
                conversation.append(*added)
            else:
                await self._write(added)
            self._extend(added)

    def clear(self) -> None:
        """Begin the history anew; what was said before stays in the log until the conversation is deleted.

        Raises:
            ConfigurationError: Called on the event loop that would have to do it: ``await history.aclear()`` there.
        """
        with self._remembering():
            conversation = self._running()
            if conversation is None:
                self._portal.run(self._clear())
            elif conversation.loop is here():
                msg = "clear() would wait for the event loop it runs on; use `await history.aclear()`."
                raise ConfigurationError(msg)
            else:
                run_on(conversation.loop, conversation.clear()).result()
            self._snapshot = None

    async def aclear(self) -> None:
        """Do what `clear` does."""
        with self._remembering():
            conversation = self._running()
            if conversation is None:
                await self._clear()
            elif conversation.loop is here():
                await conversation.clear()
            else:
                await asyncio.wrap_future(run_on(conversation.loop, conversation.clear()))
            self._snapshot = None

    # Behind it

    def _running(self) -> Conversation | None:
        """Return the conversation whose turn runs here; None when another one has to be opened."""
        if self._given is None:
            return current_conversation()
        if isinstance(self._given, Conversation):
            return self._given
        around = conversation_around()
        here = around is not None and around.key == self._given and self._store in (None, around.store) and not around.closed
        return around if here else None

    @property
    def _key(self) -> SessionKey:
        assert isinstance(self._given, SessionKey)
        return self._given

    async def _read(self) -> list[Message]:
        async with open_conversation(self._key, store=self._store) as conversation:
            return conversation.messages

    async def _write(self, messages: list[Message]) -> None:
        async with open_conversation(self._key, store=self._store) as conversation:
            conversation.append(*messages)

    async def _clear(self) -> None:
        async with open_conversation(self._key, store=self._store) as conversation:
            await conversation.clear()

    def _shown(self, messages: list[Message]) -> list[BaseMessage]:
        shown = to_langchain(messages)
        if self._one_run:
            self._snapshot = list(shown)
        return shown

    def _extend(self, added: list[Message]) -> None:
        if self._snapshot is not None:
            self._snapshot += to_langchain(added)

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        """Have the turn that runs fail with what goes wrong: who called may not let it through."""
        self.failure = None
        try:
            yield
        except ConvmemError as error:
            self._remember(error)
            raise
        except Exception as error:
            wrapped = InvalidMessage("add_messages", f"{type(error).__name__}: {error}")
            wrapped.__cause__ = error
            self._remember(wrapped)
            raise

    def _remember(self, error: ConvmemError) -> None:
        conversation = self._given if isinstance(self._given, Conversation) else conversation_around()
        if conversation is None:
            self.failure = error
            logger.error("messages were not kept: %s", error)
        else:
            conversation.fail(error)


def conversation_around() -> Conversation | None:
    """Return the conversation of the code that runs; None where there is none."""
    try:
        return current_conversation()
    except NoConversation:
        return None


def _neutral(messages: Sequence[BaseMessage]) -> list[Message]:
    for i, message in enumerate(messages):
        if isinstance(message, RemoveMessage):
            field = f"messages[{i}]"
            raise InvalidMessage(field, "a RemoveMessage is an instruction to a graph; to begin anew use clear()")
    return from_langchain(messages)
