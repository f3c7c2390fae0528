"""OwnerConversationStore: the conversations of one owner as Pydantic AI's own `ConversationStore`.

Each save is one entry of the log: the messages it adds, and on the last of them the record the framework keeps beside a
conversation (its usage, the calls it waits for, the branches it left). Where a save adds no message, one that says nothing has it.
What another framework writes is there too, under ids made of its messages'.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from pydantic import TypeAdapter
from pydantic_ai.conversation_store import ConversationConflict, ConversationEntry, ConversationRecord, ConversationStore
from pydantic_ai.exceptions import UserError

from convmem import (
    Conversation,
    ConversationConflict as Conflict,
    ConversationFenced,
    ConversationGone,
    Edit,
    Message,
    NoConversation,
    SessionKey,
    Store,
    conversations,
    current_conversation,
    fork,
    open_conversation,
    read_conversation,
)

from ._messages import NAME, from_model_messages, groups_of, is_record, to_model_messages

_RECORDS = TypeAdapter(ConversationRecord)
_REMEMBERED = 1000
_LOOKS = (1, 64, None)
"""How many messages to look through for the newest record: it is on the last one, unless others have written since."""


class _Stored(NamedTuple):
    """An entry, and the messages that it is."""

    entry: ConversationEntry
    messages: list[Message]


class OwnerConversationStore(ConversationStore):
    """Pydantic AI's `ConversationStore` over one owner's conversations; another's cannot be addressed.

    The framework's ``conversation_id`` is the session id, and its ``scope`` the owner. In a request, and inside
    ``open_conversation``, what concerns the running conversation joins its turn; everything else is a turn of its own. Reading
    waits for nobody. A fork is a copy, so deleting a conversation deletes all its messages.
    """

    def __init__(self, owner: str | None = None, *, tenant: str = "", store: Store | None = None) -> None:
        """Take an owner; None: that of the request that runs, or of the ``open_conversation`` around this.

        Args:
            owner: Such as ``user:42``.
            tenant: As in `SessionKey`.
            store: As in `open_conversation`.

        Raises:
            NoConversation: No owner is given, and nothing runs here.
            InvalidIdentity: `owner` or `tenant` has another form.
        """
        if owner is None:
            key = current_conversation().key
            owner, tenant = key.owner, key.tenant
        self._key = SessionKey(owner, tenant=tenant)
        self._store = store
        self._places: dict[str, str] = {}

    async def read_record(self, conversation_id: str) -> ConversationRecord | None:
        """Return the record of a conversation; None where nothing is in sight."""
        async with self._opened(conversation_id) as conversation:
            return await self._record(conversation)

    async def read_records(self, *, scope: str | None = None, limit: int | None = None) -> Sequence[ConversationRecord]:
        """Return the owner's records, the last written first; none for a scope that is not the owner."""
        found: list[ConversationRecord] = []
        async for session_id, updated_at in self._each() if scope in (None, self._key.owner) else _none():
            if limit is not None and len(found) >= limit:
                break
            record = await self.read_record(session_id)
            if record is not None:
                found.append(replace(record, updated_at=updated_at))
        return found

    async def write_record(
        self, record: ConversationRecord, *, new_entries: Sequence[ConversationEntry] = (), expected_revision: str | None
    ) -> None:
        """Store a record and its new entries in one step.

        Raises:
            ConversationConflict: The conversation changed since it was read, or was deleted.
            UserError: The scope is not the owner.
            ConversationBusy: Another turn of the conversation is still running.
            InvalidMessage: A message cannot be stored.
            StoreUnavailable: The store did not answer.
        """
        if record.scope not in (None, self._key.owner):
            msg = f"This store is that of {self._key.owner!r}, and scope= is {record.scope!r}; leave scope= out, or pass that owner."
            raise UserError(msg)
        try:
            forked = await self._forked(record, expected_revision)
            async with self._turn(record.conversation_id) as conversation:
                now = await self._record(conversation)
                if not forked and (now and now.revision) != expected_revision:
                    raise ConversationConflict(record.conversation_id)
                await self._write(conversation, now, record, new_entries)
        except (Conflict, ConversationFenced, ConversationGone) as error:
            raise ConversationConflict(record.conversation_id) from error
        self._remember(record)

    async def delete_record(self, conversation_id: str, *, expected_revision: str) -> None:
        """Delete a conversation with all its messages.

        Raises:
            ConversationConflict: It changed since it was read, or was deleted.
            StoreUnavailable: The store did not answer.
        """
        async with self._turn(conversation_id) as conversation:
            now = await self._record(conversation)
            if now is None or now.revision != expected_revision:
                raise ConversationConflict(conversation_id)
            await conversation.delete()

    async def read_entry(self, entry_id: str) -> ConversationEntry:
        """Return an entry by its id, also of a branch that was left.

        Raises:
            LookupError: No conversation of the owner has it.
        """
        return (await self._line(entry_id))[-1].entry

    async def read_history(self, head_id: str | None, *, limit: int | None = None) -> list[ConversationEntry]:
        """Return the entries up to this one, the oldest first, or the last of them; raises `LookupError` where there is none."""
        if head_id is None or limit == 0:
            return []
        return [stored.entry for stored in await self._line(head_id, limit)]

    # Where things are

    def _address(self, conversation_id: str) -> SessionKey:
        return SessionKey(self._key.owner, conversation_id, self._key.tenant)

    def _running(self, key: SessionKey) -> Conversation | None:
        """Return the conversation whose turn runs here, if it is this one."""
        try:
            around = current_conversation()
        except NoConversation:
            return None
        mine = around.key == key and not around.closed and (self._store is None or self._store is around.store)
        return around if mine else None

    @asynccontextmanager
    async def _opened(self, conversation_id: str) -> AsyncGenerator[Conversation, None]:
        key = self._address(conversation_id)
        running = self._running(key)
        if running is not None:
            yield running
            return
        async with read_conversation(key, store=self._store) as conversation:
            yield conversation

    @asynccontextmanager
    async def _turn(self, conversation_id: str) -> AsyncGenerator[Conversation, None]:
        key = self._address(conversation_id)
        running = self._running(key)
        if running is None:
            async with open_conversation(key, store=self._store) as conversation:
                yield conversation
            return
        yield running
        if not running.closed:
            await running.save()

    async def _each(self) -> AsyncGenerator[tuple[str, Any], None]:
        after: str | None = None
        while True:
            page = await conversations(self._key.owner, tenant=self._key.tenant, store=self._store, after=after)
            for item in page.items:
                yield item.session_id, item.updated_at
            after = page.after
            if after is None:
                return

    def _remember(self, record: ConversationRecord) -> None:
        """Remember where entries are that the framework asks for next, by their ids alone."""
        for entry_id in (record.head_id, *record.branches):
            if entry_id is not None:
                self._places.pop(entry_id, None)
                self._places[entry_id] = record.conversation_id
        while len(self._places) > _REMEMBERED:
            del self._places[next(iter(self._places))]

    # What is there

    async def _record(self, conversation: Conversation) -> ConversationRecord | None:
        """Return the record as it was saved; what was written since by others moves its end and its revision."""
        messages: list[Message] = []
        for limit in _LOOKS:
            messages = await conversation.history(limit=limit)
            if not messages:
                return None
            if any(map(_saved, messages)):
                break
        last = messages[-1]
        document = next((document for message in reversed(messages) if (document := _saved(message))), {})
        where = {"conversation_id": conversation.session_id, "scope": conversation.owner}
        record = _RECORDS.validate_json(json.dumps({"head_id": None, **document, **where}))
        if not _saved(last):
            record = replace(record, deferred_tool_requests=None, head_id=_entry_id(last), revision=last.id, updated_at=last.created_at)
        self._remember(record)
        return record

    async def _line(self, entry_id: str, limit: int | None = None) -> list[_Stored]:
        """Return the entries up to one, from wherever it is."""
        known = self._places.get(entry_id)
        if known is not None:
            async with self._opened(known) as conversation:
                if line := await _line_in(conversation, entry_id, limit):
                    return line
        async for session_id, _ in self._each():
            if session_id != known:
                async with self._opened(session_id) as conversation:
                    if line := await _line_in(conversation, entry_id, limit):
                        return line
        raise LookupError(entry_id)

    # Writing

    async def _forked(self, record: ConversationRecord, expected_revision: str | None) -> bool:
        """Copy what a new fork shares with its source; return whether it is one."""
        if record.forked_from is None or record.head_id is None or expected_revision is not None:
            return False
        await fork(self._address(record.forked_from), session_id=record.conversation_id, store=self._store)
        return True

    async def _write(
        self, conversation: Conversation, now: ConversationRecord | None, record: ConversationRecord, new: Sequence[ConversationEntry]
    ) -> None:
        base = new[0].parent_id if new else record.head_id
        hidden: list[str] = []
        messages: list[Message] = []
        if base != (now and now.head_id):
            line = [] if base is None else await self._line(base)
            seen = _entries(await conversation.history())
            shared = next((i for i, (one, other) in enumerate(zip(seen, line, strict=False)) if one.entry.id != other.entry.id), None)
            shared = min(len(seen), len(line)) if shared is None else shared
            hidden = [message.id for stored in seen[shared:] for message in stored.messages]
            messages = [message for stored in line[shared:] for message in _messages(stored.entry)]
        messages += [message for entry in new for message in _messages(entry)]
        document = _RECORDS.dump_python(record, mode="json", exclude={"conversation_id", "scope"}, exclude_defaults=True)
        carrier = messages.pop() if messages else Message(role="tool")
        messages.append(_with(carrier, record=document))
        if hidden:
            conversation.edit(Edit(action="hide", ids=tuple(hidden)), *messages)
        else:
            conversation.append(*messages)


async def _line_in(conversation: Conversation, entry_id: str, limit: int | None) -> list[_Stored]:
    """Return the entries up to one, as it is in sight, or in a branch that was left; none where it is not there."""
    if limit is not None:
        messages = await conversation.history(limit=4 * limit)
        whole = len(messages) < 4 * limit
        newest = _entries(messages)[0 if whole else 1 :]  # the first may lack its beginning
        if newest and newest[-1].entry.id == entry_id and (whole or len(newest) >= limit):
            return newest[-limit:]
    seen = _entries(await conversation.history())
    ids = [stored.entry.id for stored in seen]
    if entry_id in ids:
        return seen[: ids.index(entry_id) + 1][-limit if limit else 0 :]
    said = [item for turn in (await conversation.all_said()).turns for item in turn if isinstance(item, Message)]
    everything = {stored.entry.id: stored for stored in _entries(said)}
    line: list[_Stored] = []
    place: str | None = entry_id
    while place in everything and (limit is None or len(line) < limit):
        line.append(everything.pop(place))
        place = line[-1].entry.parent_id
    return line[::-1]


def _entries(messages: Iterable[Message]) -> list[_Stored]:
    groups = list(groups_of(message for message in messages if not is_record(message)))
    natives = to_model_messages(message for group in groups for message in group)
    stored: list[_Stored] = []
    before: str | None = None
    for group, message in zip(groups, natives, strict=True):
        name = _entry_id(group[0])
        parent = group[0].extras.get(NAME, {}).get("entry", [None, before])[1]
        stored.append(_Stored(ConversationEntry(id=name, parent_id=parent, message=message), group))
        before = name
    return stored


def _entry_id(message: Message) -> str:
    extras = message.extras.get(NAME, {})
    name: str = extras["entry"][0] if "entry" in extras else extras.get("request", message.id)
    return name


def _messages(entry: ConversationEntry) -> list[Message]:
    return [_with(message, entry=[entry.id, entry.parent_id]) for message in from_model_messages([entry.message])]


def _saved(message: Message) -> dict[str, Any]:
    document: dict[str, Any] = message.extras.get(NAME, {}).get("record", {})
    return document


def _with(message: Message, **more: Any) -> Message:
    return message.model_copy(update={"extras": {**message.extras, NAME: {**message.extras.get(NAME, {}), **more}}})


async def _none() -> AsyncGenerator[tuple[str, Any], None]:
    return
    yield
