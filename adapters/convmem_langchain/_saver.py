"""ConversationSaver: a conversation as the checkpointer of a LangGraph graph."""

from __future__ import annotations

import asyncio
import builtins
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, ChannelVersions, Checkpoint, CheckpointMetadata, CheckpointTuple
from langgraph.checkpoint.serde.base import SerializerProtocol

from convmem import ConfigurationError, Conversation, NoConversation, Said, SessionKey, Store, current_conversation, open_conversation

from ._history import conversation_around
from ._portal import Portal, UnsavedQuestionWarning, here, run_on
from ._thread import Added, Incomplete, Thread, next_version, with_both_ends

T = TypeVar("T")
_REMEMBERED = 64


class ConversationSaver(BaseCheckpointSaver[str]):
    """LangGraph's checkpointer: ``builder.compile(checkpointer=ConversationSaver())``, or ``create_agent(…, checkpointer=…)``.

    The graph's list of messages is the conversation: each message is stored once, for every framework to read, and a checkpoint
    says which of them the graph had. At its newest checkpoint the graph has the window of the conversation, also with what others
    have said since; an older one is as it was. What a graph removes from its list goes out of sight and stays in the log.

    Inside a request and inside ``open_conversation``, the thread is the conversation that runs, or with another ``thread_id`` another
    one of the same owner. Reading it takes no trip to the store, what is put joins the turn, and a question is stored at once. With
    an owner given it works outside of both too: there every call opens the conversation and is a turn of its own.

    One instance serves all requests. The synchronous methods wait for the store in another thread; on the event loop of the
    conversation's own turn they store nothing themselves, and what they put is stored with the response.

    Args:
        owner: Whose threads these are, such as ``user:42``; None: the owner of the conversation that runs.
        tenant: As in the key, with `owner`.
        store: None: the middleware's inside a request, else the one of ``CONVMEM_STORE``, opened and closed each time.
        channel: The key of the graph's state that holds its list of messages.
        serde: Writes what is no message, such as ``EncryptedSerializer``; messages are stored as every adapter stores them.
    """

    def __init__(
        self,
        *,
        owner: str | None = None,
        tenant: str = "",
        store: Store | None = None,
        channel: str = "messages",
        serde: SerializerProtocol | None = None,
    ) -> None:
        """Read nothing."""
        super().__init__(serde=serde)
        self._owner, self._tenant, self._store, self._channel = owner, tenant, store, channel
        self._portal = Portal()
        self._natives: WeakKeyDictionary[Conversation, dict[str, BaseMessage]] = WeakKeyDictionary()
        self._remembered: dict[tuple[str, str, str], tuple[str, Said, dict[str, BaseMessage]]] = {}
        self._locks: WeakValueDictionary[tuple[int, tuple[str, str, str]], asyncio.Lock] = WeakValueDictionary()

    # What LangGraph calls

    def get_next_version(self, current: str | None, channel: None) -> str:  # noqa: ARG002 - the base's signature
        """Return a version that no other branch of the thread has."""
        return next_version(current)

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return the checkpoint a config names, or the newest one of its namespace; None when there is none.

        Raises:
            NoConversation: No conversation runs here, and the saver knows no owner.
            ConvmemError: Whatever kept the conversation from being loaded.
        """
        return await self._asked(config, _get(config))

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return what `aget_tuple` does.

        Raises:
            ConfigurationError: That takes a trip to the store, and the event loop that would have to make it waits for this call.
        """
        return self._asked_now(config, _get(config))

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - the base's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Yield the checkpoints of one thread, the newest first; reads the whole log. Errors as in `aget_tuple`."""
        for found in await self._asked(config, _list(config, filter, before, limit)):
            yield found

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - the base's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Yield what `alist` does. Errors as in `get_tuple`."""
        yield from self._asked_now(config, _list(config, filter, before, limit))

    async def aput(
        self, config: RunnableConfig, checkpoint: Checkpoint, metadata: CheckpointMetadata, new_versions: ChannelVersions
    ) -> RunnableConfig:
        """Append a checkpoint to the turn; it is stored with the turn, and at once with a question or under ``durability="sync"``.

        Raises:
            InvalidMessage: A message cannot be stored and come back equal.
            ConvmemError: As `Conversation.append` and `Conversation.save`.
        """
        await self._added(config, lambda thread: thread.put(config, checkpoint, metadata, new_versions))
        return _config_of(config, checkpoint)

    def put(
        self, config: RunnableConfig, checkpoint: Checkpoint, metadata: CheckpointMetadata, new_versions: ChannelVersions
    ) -> RunnableConfig:
        """Do what `aput` does. Errors as there."""
        self._added_now(config, lambda thread: thread.put(config, checkpoint, metadata, new_versions))
        return _config_of(config, checkpoint)

    async def aput_writes(self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = "") -> None:
        """Append what a task has written on top of a checkpoint. Errors as in `aput`."""
        await self._added(config, lambda thread: thread.put_writes(config, writes, task_id, task_path))

    def put_writes(self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = "") -> None:
        """Do what `aput_writes` does. Errors as there."""
        self._added_now(config, lambda thread: thread.put_writes(config, writes, task_id, task_path))

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete the conversation, messages and checkpoints; a turn that runs on it ends."""
        place = self._place(_thread_config(thread_id))
        if isinstance(place, Conversation):
            await _on_its_loop(place, place.delete)
            return
        async with self._opened(place) as (conversation, _):
            await conversation.delete()

    def delete_thread(self, thread_id: str) -> None:
        """Do what `adelete_thread` does. Errors as in `get_tuple`."""
        place = self._place(_thread_config(thread_id))
        if isinstance(place, Conversation):
            _wait_for(place, place.delete)
        else:
            self._portal.run(self.adelete_thread(thread_id))

    # Which conversation

    def _place(self, config: RunnableConfig | None) -> Conversation | SessionKey:
        """Return the conversation that runs here, where it is the thread; else the key of the thread."""
        around = conversation_around()
        thread_id = (config or {}).get("configurable", {}).get("thread_id")
        if self._owner is not None:
            key = SessionKey(self._owner, str(thread_id or "default"), self._tenant)
        elif around is not None:
            key = SessionKey(around.owner, str(thread_id or around.session_id), around.key.tenant)
        else:
            msg = (
                "No conversation runs here, so nobody knows whose thread this is: add app.add_middleware(ConversationMiddleware), run the "
                'graph inside `async with open_conversation(key)`, or name the owner: ConversationSaver(owner="user:42", store=store).'
            )
            raise NoConversation(msg)
        return around if around is not None and around.key == key and self._store in (None, around.store) else key

    # Asking and adding: within a turn that runs, or in a turn of its own

    async def _asked(self, config: RunnableConfig | None, ask: Callable[[Thread, str], T]) -> T:
        place = self._place(config)
        if isinstance(place, SessionKey):
            async with self._opened(place) as (_, thread):
                return ask(thread, _thread_id(config, place))
        thread_id = _thread_id(config, place.key)
        try:
            return ask(self._loaded(place), thread_id)
        except Incomplete:
            return ask(self._thread(place, await _on_its_loop(place, place.all_said)), thread_id)

    def _asked_now(self, config: RunnableConfig | None, ask: Callable[[Thread, str], T]) -> T:
        place = self._place(config)
        if isinstance(place, SessionKey):
            return self._portal.run(self._asked(config, ask))
        thread_id = _thread_id(config, place.key)
        try:
            return ask(self._loaded(place), thread_id)
        except Incomplete:
            return ask(self._thread(place, _wait_for(place, place.all_said)), thread_id)

    async def _added(self, config: RunnableConfig, make: Callable[[Thread], Added]) -> None:
        place = self._place(config)
        if isinstance(place, SessionKey):
            async with self._opened(place) as (conversation, thread):
                _append(conversation, make(thread))
            return
        try:
            added = make(self._loaded(place))
        except Incomplete:
            added = make(self._thread(place, await _on_its_loop(place, place.all_said)))
        _append(place, added)
        if added.asks or _is_to_be_sure(config):
            await _on_its_loop(place, place.save)

    def _added_now(self, config: RunnableConfig, make: Callable[[Thread], Added]) -> None:
        place = self._place(config)
        if isinstance(place, SessionKey):
            self._portal.run(self._added(config, make))
            return
        try:
            added = make(self._loaded(place))
        except Incomplete:
            added = make(self._thread(place, _wait_for(place, place.all_said)))
        _append(place, added)
        if (added.asks or _is_to_be_sure(config)) and not place.save_from_thread():
            msg = "graph.invoke() blocks the event loop: the question is stored only with its answer; use `await graph.ainvoke()`."
            warnings.warn(msg, UnsavedQuestionWarning, stacklevel=4)

    def _loaded(self, conversation: Conversation) -> Thread:
        """Return the thread as far as it is loaded, with the window to be shown."""
        return self._thread(conversation, conversation.said)

    def _thread(self, conversation: Conversation, said: Said) -> Thread:
        natives = self._natives.setdefault(conversation, {})
        shown = with_both_ends(conversation.messages, said)
        return Thread(said, shown, channel=self._channel, serde=self.serde, natives=natives)

    # A thread that nobody has opened

    @asynccontextmanager
    async def _opened(self, key: SessionKey) -> AsyncGenerator[tuple[Conversation, Thread], None]:
        """Open a conversation for one call, all of it; the calls of this event loop for one thread follow each other.

        What was read is remembered while nobody else writes, so that a run reads the log once.
        """
        async with self._locks.setdefault((id(asyncio.get_running_loop()), key.path), asyncio.Lock()):
            async with open_conversation(key, store=self._store) as conversation:
                revision, said, natives = self._remembered.pop(key.path, None) or ("", None, {})
                if said is None or revision != conversation.revision:
                    said = await conversation.all_said()
                present = said.then(())
                yield conversation, Thread(present, present.messages, channel=self._channel, serde=self.serde, natives=natives)
            added = conversation.said.turns[-1]
            self._remembered[key.path] = (conversation.revision, said.then(added) if added else said, natives)
            while len(self._remembered) > _REMEMBERED:
                del self._remembered[next(iter(self._remembered))]


def current_thread() -> RunnableConfig:
    """Return the config that names the conversation running here.

    LangGraph asks for one with each call: ``await graph.ainvoke(question, current_thread())``.

    Raises:
        NoConversation: None runs here.
        ConvmemError: Whatever kept it from being loaded.
    """
    return _thread_config(current_conversation().session_id)


def _get(config: RunnableConfig) -> Callable[[Thread, str], CheckpointTuple | None]:
    where = config["configurable"]
    return lambda thread, thread_id: thread.get(thread_id, where.get("checkpoint_ns", ""), where.get("checkpoint_id"))


def _list(
    config: RunnableConfig | None, matching: dict[str, Any] | None, before: RunnableConfig | None, limit: int | None
) -> Callable[[Thread, str], builtins.list[CheckpointTuple]]:
    where = (config or {}).get("configurable", {})
    bound = before["configurable"].get("checkpoint_id") if before else None
    return lambda thread, thread_id: thread.newest_first(
        thread_id, where.get("checkpoint_ns"), where.get("checkpoint_id"), matching=matching, before=bound, limit=limit
    )


def _append(conversation: Conversation, added: Added) -> None:
    if added.edit is not None:
        conversation.edit(added.edit, *added.messages)
        conversation.append(added.note)
    else:
        conversation.append(*added.messages, added.note)


def _config_of(config: RunnableConfig, checkpoint: Checkpoint) -> RunnableConfig:
    where = config["configurable"]
    names = {name: where[name] for name in ("thread_id",) if name in where}
    return {"configurable": {**names, "checkpoint_ns": where.get("checkpoint_ns", ""), "checkpoint_id": checkpoint["id"]}}


def _thread_config(thread_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id}}


def _thread_id(config: RunnableConfig | None, key: SessionKey) -> str:
    return str((config or {}).get("configurable", {}).get("thread_id") or key.session_id)


def _is_to_be_sure(config: RunnableConfig) -> bool:
    return bool(config["configurable"].get("__pregel_durability") == "sync")


async def _on_its_loop(conversation: Conversation, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Do something to a conversation, from whatever event loop."""
    if conversation.loop is here():
        return await work()
    return await asyncio.wrap_future(run_on(conversation.loop, work()))


def _wait_for(conversation: Conversation, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Do something to a conversation, and have this thread wait for it."""
    if conversation.loop is here():
        msg = (
            "This takes a trip to the store, and would wait for the event loop it runs on: use the graph's async methods, "
            "such as `await graph.aget_state(config)`."
        )
        raise ConfigurationError(msg)
    return run_on(conversation.loop, work()).result()
