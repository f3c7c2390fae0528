"""What both chat stores do with a conversation: its active queue, and the edits that change it. Nothing here waits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from typing import Literal

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory.types import DEFAULT_CHAT_STORE_KEY

from convmem import Conversation, Edit, Message, SessionKey, current_conversation
from convmem_llamaindex._messages import from_llamaindex, to_llamaindex

Status = Literal["active", "archived", "all"]

_seen: ContextVar[tuple[Conversation, tuple[Message, ...]] | None] = ContextVar("convmem_llamaindex_seen", default=None)
"""The queue as the running task last read it. Two tasks that put at once each count from what they saw, so that none of them
archives what the other has just added: a position means nothing without the list it was counted in."""


class NewConversationWarning(UserWarning):
    """A memory writes to a conversation nobody has used before, and not to the request's: its ``session_id`` was made up."""


def named(bound: Conversation | None, key: str) -> tuple[Conversation, SessionKey | None]:
    """Return the conversation at hand, and the address of the one that `key` names when that is another one."""
    conversation = current_conversation() if bound is None else bound
    if key in (conversation.session_id, DEFAULT_CHAT_STORE_KEY):
        return conversation, None
    return conversation, SessionKey(conversation.owner, key, conversation.key.tenant)


def read(conversation: Conversation) -> list[Message]:
    """Return the active queue, and note that the running task has seen it."""
    queue = active(conversation)
    _seen.set((conversation, tuple(queue)))
    return queue


def active(conversation: Conversation) -> list[Message]:
    """Return what the model is to see, without what was archived."""
    return [message for message in conversation.messages if not message.archived]


def add(conversation: Conversation, messages: Sequence[ChatMessage], *, archived: bool = False) -> bool:
    """Append; return whether a question is among the messages, which is to be stored before the model runs."""
    said = from_llamaindex(messages)
    conversation.append(*said)
    if archived and said:
        conversation.edit(Edit(action="archive", ids=_ids(said)))
    _seen.set(None)
    return any(message.role == "user" for message in said)


def put(conversation: Conversation, messages: Sequence[ChatMessage], *, archived: bool = False) -> None:
    """Replace the queue, or what is archived, in one step. A queue that only grew at its end is appended to, and not rewritten."""
    if archived:
        said = from_llamaindex(messages)
        conversation.edit(Edit(action="hide", before="archived"), *said)
        conversation.edit(Edit(action="archive", ids=_ids(said)))
        return
    queue = to_llamaindex(active(conversation))
    if list(messages[: len(queue)]) == queue:
        add(conversation, messages[len(queue) :])
        return
    conversation.edit(Edit(action="hide", before="active"), *from_llamaindex(messages))
    _seen.set(None)


def remove(conversation: Conversation, index: int) -> ChatMessage | None:
    """Hide the message at an index of the active queue and return it; None when there is none."""
    queue = active(conversation)
    if not -len(queue) <= index < len(queue):
        return None
    message = queue[index]
    conversation.edit(Edit(action="hide", ids=(message.id,)))
    _seen.set(None)
    return to_llamaindex(message)


def remove_all(conversation: Conversation, status: Status) -> None:
    """Hide everything with this status."""
    conversation.edit(Edit(action="hide", before=status))
    _seen.set(None)


def take_oldest(conversation: Conversation, count: int, action: Literal["hide", "archive"]) -> list[ChatMessage]:
    """Archive or hide the oldest messages of the queue the running task has seen; return those that this changed.

    System messages are counted, as the caller counts them, and stay.
    """
    seen = _seen.get()
    queue = active(conversation)
    known = seen[1] if seen is not None and seen[0] is conversation else tuple(queue)
    count = max(0, count)
    oldest = {message.id for message in known[:count] if message.role != "system"}
    taken = [message for message in queue if message.id in oldest]
    if taken:
        conversation.edit(Edit(action=action, ids=_ids(taken)))
    _seen.set((conversation, known[count:]))
    return to_llamaindex(taken)


def _ids(messages: Iterable[Message]) -> tuple[str, ...]:
    return tuple(message.id for message in messages)
