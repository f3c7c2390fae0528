"""Thread: the checkpoints of a graph in the log of a conversation. Pure: it reads what was said, and returns what to append.

What the graph keeps in its list of messages is the conversation: it is appended as messages, once, and what it removes is hidden.
The rest of a checkpoint is a note behind them, in which a list of messages says from which message to which one the log goes on::

    {"id": …, "ns": …, "parent": …, "whole": …, "state": [type, bytes]}      a checkpoint
    {"of": …, "ns": …, "task": …, "path": …, "said": …, "writes": [[i, channel, type, bytes], …]}      what a task wrote on top of one

The bytes are the serializer's: of the checkpoint without its values, its metadata, and the values of its channels: all of them in the
first checkpoint of a turn (``whole``), and after that those that have a new version. So no checkpoint needs the note of another turn.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, takewhile
from math import inf
from operator import itemgetter
from typing import Any
from uuid import uuid4

from langchain_core.messages import BaseMessage, RemoveMessage, message_chunk_to_message
from langchain_core.messages.base import BaseMessageChunk
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    PendingWrite,
    empty_checkpoint,
    get_checkpoint_metadata,
    writes_sort_key,
)
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.constants import START
from langgraph.types import Send

from convmem import Edit, Message, Note, Said

from ._messages import NAME, from_langchain, identified, native_id, to_langchain

KIND = "langgraph"
READ = "__convmem_read"
"""In the config of a checkpoint that was read: its id, the newest message then, and whether the thread had moved past it."""
_MARK = "convmem:messages"
_FIRST = "00000000-0000-6000-8000-000000000000"
"""The checkpoint of a conversation that other frameworks began."""


class Incomplete(Exception):
    """The answer is not in what was loaded; it takes all that is stored."""


@dataclass(frozen=True, slots=True)
class _Saved:
    """A checkpoint where it stands.

    Attributes:
        place: Where in the log it stands.
        present: Whether it was put in the present turn.
    """

    ns: str
    id: str
    parent: str | None
    whole: bool
    state: tuple[str, bytes]
    place: int
    present: bool


@dataclass(frozen=True, slots=True)
class Added:
    """What is to be appended.

    Attributes:
        note: Behind the messages.
        messages: Those that are new.
        hidden: Ids of those that are to go out of sight.
        asks: Whether the graph's list has gained a question of this turn.
    """

    note: Note
    messages: tuple[Message, ...] = ()
    hidden: tuple[str, ...] = ()
    asks: bool = False

    @property
    def edit(self) -> Edit | None:
        """What hides them."""
        return Edit(action="hide", ids=self.hidden) if self.hidden else None


class Thread:
    """The checkpoints of one conversation, as far as it is loaded. Made anew for each question; it changes nothing.

    Args:
        said: What stands in the log.
        shown: The messages the graph is to see at its newest checkpoint.
        channel: The graph's list of messages that is the conversation.
        serde: Writes and reads what is no message of the conversation.
        natives: Messages converted before, by id; more are added.
    """

    def __init__(
        self, said: Said, shown: Sequence[Message], *, channel: str, serde: SerializerProtocol, natives: dict[str, BaseMessage]
    ) -> None:
        """Find the notes."""
        self._said, self._channel, self._serde, self._natives = said, channel, serde, natives
        self._order = _in_order_of_tasks(chain(*said.turns))
        self._loaded = len(self._order)
        self._place = {message.id: i for i, message in enumerate(self._order)}
        self._present = [item for item in said.turns[-1] if isinstance(item, Message)]
        self._shown = {message.id: message for message in self._in_place(shown)}
        self._in_sight = {message.id for message in said.messages}
        self._alike: defaultdict[str | None, list[Message]] = defaultdict(list)
        for message in self._order:
            self._alike[native_id(message)].append(message)
        self._saved: dict[tuple[str, str], _Saved] = {}
        self._newest: dict[str, _Saved] = {}
        self._writes: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        placed = enumerate((item, turn is said.turns[-1]) for turn in said.turns for item in turn)
        for place, (item, present) in placed:
            if isinstance(item, Note) and item.kind == KIND:
                self._find(item.data, place, present=present)

    def _in_place(self, shown: Sequence[Message]) -> list[Message]:
        """Return them in their order; a result that stands for one that never came stays behind its call."""
        placed: list[tuple[int, Message]] = []
        for message in shown:
            before = placed[-1][0] if placed else -1
            placed.append((self._place.get(message.id, before), message))
        return [message for _, message in sorted(placed, key=itemgetter(0))]

    def _find(self, data: dict[str, Any], place: int, *, present: bool) -> None:
        if "of" in data:
            self._writes[data["ns"], data["of"]].append(data)
            return
        kind, body = data["state"]
        saved = _Saved(data["ns"], data["id"], data["parent"], data["whole"], (kind, body), place, present)
        self._saved[saved.ns, saved.id] = self._newest[saved.ns] = saved

    # Reading

    def get(self, thread_id: str, ns: str, checkpoint_id: str | None) -> CheckpointTuple | None:
        """Return a checkpoint, None for the newest one; None when there is none.

        Raises:
            Incomplete: It may be older than what was loaded.
        """
        saved = self._saved.get((ns, checkpoint_id)) if checkpoint_id else self._newest.get(ns)
        if saved is not None:
            return self._tuple(thread_id, saved)
        if not self._said.whole and (checkpoint_id or not _is_of_one_run(ns)):
            raise Incomplete
        if not checkpoint_id and not ns and self._shown:
            return self._begun_by_others(thread_id)
        return None

    def newest_first(
        self,
        thread_id: str,
        ns: str | None,
        checkpoint_id: str | None,
        *,
        matching: Mapping[str, Any] | None,
        before: str | None,
        limit: int | None,
    ) -> list[CheckpointTuple]:
        """Return checkpoints, the newest first.

        Args:
            thread_id: For their configs.
            ns: Only of this namespace; None for all.
            checkpoint_id: Only this one.
            matching: Only those whose metadata has these values.
            before: Only those before this checkpoint, whatever its namespace.
            limit: At most so many.

        Raises:
            Incomplete: Not everything was loaded.
        """
        if not self._said.whole:
            raise Incomplete
        bound = next((saved.place for saved in self._saved.values() if saved.id == before), -1 if before else inf)
        found: list[CheckpointTuple] = []
        for saved in sorted(self._saved.values(), key=lambda saved: saved.place, reverse=True):
            if limit is not None and len(found) >= limit:
                break
            if saved.place >= bound or ns not in (None, saved.ns) or checkpoint_id not in (None, "", saved.id):
                continue
            metadata = self._state(saved)["metadata"]
            if all(metadata.get(name) == value for name, value in (matching or {}).items()):
                found.append(self._tuple(thread_id, saved))
        return found

    def _tuple(self, thread_id: str, saved: _Saved) -> CheckpointTuple:
        state = self._state(saved)
        values = self._values(saved, state["checkpoint"]["channel_versions"])
        pending = self._pending(saved)
        newest = self._newest[""].id == saved.id if not saved.ns else False
        if newest and _is_folded_list(values.get(self._channel)):
            own = set(self._listed(values[self._channel]))
            waiting = {*self._pending_messages(saved), *self._asked(values)} - own
            there = [message for id_, message in self._shown.items() if id_ not in waiting]
            values = {**values, self._channel: [to_langchain(message) if message.id in own else identified(message) for message in there]}
        return CheckpointTuple(
            config=_config(thread_id, saved.ns, saved.id, [saved.id, self._last, not newest]),
            checkpoint={  # type: ignore[typeddict-item]  # what `put` was given, without its values
                **state["checkpoint"],
                "channel_values": {name: self._unfolded(value) for name, value in values.items()},
            },
            metadata=state["metadata"],
            parent_config=_config(thread_id, saved.ns, saved.parent) if saved.parent else None,
            pending_writes=pending,
        )

    def _begun_by_others(self, thread_id: str) -> CheckpointTuple:
        """Return a checkpoint that is stored nowhere: of a graph that goes on with what others have said."""
        checkpoint = empty_checkpoint()
        checkpoint["id"] = _FIRST
        checkpoint["channel_values"] = {self._channel: [identified(message) for message in self._shown.values()]}
        checkpoint["channel_versions"] = {self._channel: next_version(None)}
        metadata = CheckpointMetadata(source="update", step=-2, parents={})
        return CheckpointTuple(_config(thread_id, "", _FIRST, [_FIRST, self._last, False]), checkpoint, metadata, None, [])

    @property
    def _last(self) -> str | None:
        return self._order[-1].id if self._order else None

    def _state(self, saved: _Saved) -> dict[str, Any]:
        state: dict[str, Any] = self._serde.loads_typed(saved.state)
        return state

    def _values(self, saved: _Saved, versions: ChannelVersions) -> dict[str, Any]:
        """Return the folded value of each channel: of the nearest checkpoint up the line that has it in that version."""
        values: dict[str, Any] = {}
        wanted = dict(versions)
        above: _Saved | None = saved
        while above is not None:
            state = self._state(above)
            if above is saved:
                wanted = {name: version for name, version in wanted.items() if name not in state["values"]}
                values.update(state["values"])
            else:
                there = state["checkpoint"]["channel_versions"]
                wanted = {name: version for name, version in wanted.items() if there.get(name) == version}
                values.update({name: value for name, value in state["values"].items() if name in wanted})
                wanted = {name: version for name, version in wanted.items() if name not in values}
            if above.whole or not wanted:
                break
            above = self._saved.get((above.ns, above.parent or ""))
        return values

    def _pending(self, saved: _Saved) -> list[PendingWrite]:
        found: dict[tuple[str, int], tuple[str, str, tuple[str, bytes]]] = {}
        for data in self._writes[saved.ns, saved.id]:
            for i, channel, kind, body in data["writes"]:
                if i < 0 or (data["task"], i) not in found:  # a task that is run again writes the same; an error may be another
                    found[data["task"], i] = (data["path"], channel, (kind, body))
        ordered = sorted(found.items(), key=lambda item: writes_sort_key(item[1][0], *item[0]))
        return [(task, channel, self._unfolded(self._serde.loads_typed(blob))) for (task, _), (_, channel, blob) in ordered]

    def _pending_messages(self, saved: _Saved) -> set[str]:
        """Return the ids of the messages that tasks have written on top of it: in the conversation, and not yet in the graph's list."""
        return {
            id_
            for data in self._writes[saved.ns, saved.id]
            for _, channel, kind, body in data["writes"]
            if channel == self._channel
            for id_ in self._listed(self._serde.loads_typed((kind, body)))
        }

    # Writing

    def put(self, config: RunnableConfig, checkpoint: Checkpoint, metadata: CheckpointMetadata, new_versions: ChannelVersions) -> Added:
        """Return what a checkpoint adds.

        Raises:
            InvalidMessage: A message cannot be stored and come back equal.
            Incomplete: The thread goes on from an old checkpoint, and what that leaves behind may not be loaded.
        """
        where = config["configurable"]
        ns, parent = where.get("checkpoint_ns", ""), where.get("checkpoint_id")
        values = checkpoint["channel_values"]
        before = self._saved.get((ns, parent or ""))
        whole = before is None or not before.present
        stored = {name: values[name] for name in (values if whole else new_versions) if name in values}
        folded: dict[str, Any] = {}
        hidden: list[str] = []
        new: list[Message] = []
        asks = False
        listed: Any = values.get(self._channel) if self._channel in checkpoint["channel_versions"] else []
        if not ns and _is_list_of_messages(listed):
            earlier = self._list_of(before)
            given = self._given(before, earlier, where.get(READ), parent)
            ids, new = self._follow(listed)
            kept = set(ids)
            hidden = [id_ for id_ in given if id_ not in kept]
            asks = any(message.role == "user" and message.id in kept - earlier for message in (*self._present, *new))
            if self._channel in stored:
                del stored[self._channel]
                folded[self._channel] = {_MARK: "list", "of": self._ranges(ids)}
            if START in stored and isinstance(stored[START], dict) and self._channel in stored[START]:
                self._said_now(stored[START][self._channel], new)
        folded |= {name: self._folded(value) for name, value in stored.items()}
        without_values = {name: value for name, value in checkpoint.items() if name != "channel_values"}
        state = {"checkpoint": without_values, "metadata": get_checkpoint_metadata(config, metadata), "values": folded}
        note = Note(
            kind=KIND,
            data={
                "id": checkpoint["id"],
                "ns": ns,
                "parent": None if parent == _FIRST else parent,
                "whole": whole,
                "state": list(self._serde.dumps_typed(state)),
            },
        )
        return Added(note, tuple(new), tuple(hidden), asks)

    def put_writes(self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str) -> Added:
        """Return what the writes of a task add. Errors as in `put`, but for `Incomplete`."""
        ns = config["configurable"].get("checkpoint_ns", "")
        new: list[Message] = []
        stored: list[list[Any]] = []
        for i, (channel, value) in enumerate(writes):
            folded = self._said_now(value, new) if not ns and channel == self._channel else self._folded(value)
            stored.append([WRITES_IDX_MAP.get(channel, i), channel, *self._serde.dumps_typed(folded)])
        of = config["configurable"]["checkpoint_id"]
        data = {"of": of, "ns": ns, "task": task_id, "path": task_path, "said": [message.id for message in new], "writes": stored}
        return Added(Note(kind=KIND, data=data), tuple(new))

    def _said_now(self, value: Any, new: list[Message]) -> Any:
        """Return what is about to be in the list of messages, folded; what it says anew is added to `new`.

        Messages are given their ids here, as `add_messages` would a moment later: by them the list's are known to be these.
        """
        one = not isinstance(value, list | tuple)
        for message in [value] if one else value:
            if _is_message(message):
                message.id = message.id or str(uuid4())
                if self._known(message, in_sight=True) is None:
                    new.append(self._as_new(message))
        return _single(self._folded([value])) if one else self._folded(value)

    def _asked(self, values: Mapping[str, Any]) -> Iterator[str]:
        """Yield the ids of the messages in an input that no task has taken up yet."""
        given = values.get(START)
        return self._listed(given.get(self._channel) if isinstance(given, dict) else None)

    def _list_of(self, before: _Saved | None) -> set[str]:
        """Return the ids in the graph's list at a checkpoint."""
        if before is None:
            return set()
        values = self._values(before, self._state(before)["checkpoint"]["channel_versions"])
        return set(self._listed(values.get(self._channel)))

    def _given(self, before: _Saved | None, earlier: set[str], read: Any, parent: str | None) -> list[str]:
        """Return the ids of the messages in sight that a graph had before this checkpoint: those it lacks now were removed."""
        ids = earlier
        if read is not None and read[0] == parent:
            _, last, moved_on = read
            if moved_on and not self._said.whole:
                raise Incomplete
            until = self._place.get(last, -1)
            ids = {id_ for id_ in (self._in_sight if moved_on else self._shown) if self._place.get(id_, until + 1) <= until}
        if before is not None:
            ids = ids | self._pending_messages(before)
        return sorted(ids & self._in_sight, key=self._place.__getitem__)

    def _follow(self, messages: Sequence[BaseMessage]) -> tuple[list[str], list[Message]]:
        """Return the ids of a graph's list, and those of its messages that are new. What is in sight is in the list's order.

        So whatever comes behind a new message is said again behind it: after a summary in front, what was left; after a change, the rest.
        """
        ids: list[str] = []
        new: list[Message] = []
        last = -1
        for message in messages:
            if message.id in self._shown and message.id not in self._place:
                continue  # a result that stands for one that never came: it is shown, and not stored
            known = None if new else self._known(message, in_sight=True, after=last)
            if known is None:
                known = self._as_new(message)
                new.append(known)
            last = self._place[known.id]
            ids.append(known.id)
        return ids, new

    def _as_new(self, message: BaseMessage) -> Message:
        """Return the message to append, by an id of its own where the log has its id already."""
        neutral = from_langchain(message)
        if neutral.id in self._place:
            extras = {**neutral.extras, NAME: {**neutral.extras.get(NAME, {}), "id": message.id}}
            neutral = neutral.model_copy(update={"id": str(uuid4()), "extras": extras})
        self._place[neutral.id] = len(self._order)
        self._order.append(neutral)
        self._alike[native_id(neutral)].append(neutral)
        self._in_sight.add(neutral.id)
        return neutral

    def _known(self, message: BaseMessage, *, in_sight: bool = False, after: int = -1) -> Message | None:
        """Return the message of the log that this one is; None when it is none of them, or was changed."""
        if isinstance(message, BaseMessageChunk):
            message = message_chunk_to_message(message)
        candidates = self._alike.get(message.id or None, [])
        if message.id and not candidates and message.id in self._place:  # it had no id until it was read
            candidates = [self._order[self._place[message.id]]]
        for candidate in reversed(candidates) if message.id else candidates:
            if self._place[candidate.id] <= after or (in_sight and candidate.id not in self._in_sight):
                continue
            if self._is(candidate, message):
                return candidate
        return None

    def _is(self, candidate: Message, message: BaseMessage) -> bool:
        native = self._natives.get(candidate.id)
        if native is None:
            native = self._natives[candidate.id] = identified(candidate)
        if not message.id:
            native = native.model_copy(update={"id": message.id})
        if native == message:
            return True
        shown = self._shown.get(candidate.id)  # a window may have left out a call that has no result
        return shown is not None and shown != candidate and identified(shown) == message

    # Values that hold messages of the conversation

    def _folded(self, value: Any) -> Any:
        """Return a value in which lists name the messages of the conversation instead of holding them."""
        kind = type(value)
        if kind in (list, tuple):
            known = [self._known(item) if _is_message(item) else None for item in value]
            if not any(known):
                return kind(self._folded(item) for item in value)
            parts = (message.id if message else {"is": self._folded(item)} for message, item in zip(known, value, strict=True))
            return {_MARK: kind.__name__, "of": self._ranges(parts, self._loaded)}
        if kind is dict:
            folded = {name: self._folded(item) for name, item in value.items()}
            return {_MARK: "dict", "of": list(folded.items())} if _MARK in value else folded
        return Send(value.node, self._folded(value.arg), timeout=value.timeout) if kind is Send else value

    def _unfolded(self, value: Any) -> Any:
        """Return a value as it was.

        Raises:
            Incomplete: It names a message that was not loaded.
        """
        kind = type(value)
        if kind is dict and _MARK in value:
            if value[_MARK] == "dict":
                return {name: self._unfolded(item) for name, item in value["of"]}
            items = [item for part in value["of"] for item in self._part(part)]
            return items[0] if value[_MARK] == "one" else tuple(items) if value[_MARK] == "tuple" else items
        if kind in (list, tuple):
            return kind(self._unfolded(item) for item in value)
        if kind is dict:
            return {name: self._unfolded(item) for name, item in value.items()}
        return Send(value.node, self._unfolded(value.arg), timeout=value.timeout) if kind is Send else value

    def _part(self, part: dict[str, Any]) -> Iterator[Any]:
        if "is" in part:
            yield self._unfolded(part["is"])
            return
        if not self._said.whole and part["from"] not in self._place:
            raise Incomplete
        yield from to_langchain(self._span(part))

    def _span(self, part: dict[str, Any]) -> list[Message]:
        """Return the messages from one to another. Where one is gone with a turn that was superseded, the other says where they were."""
        first, last = self._place.get(part["from"]), self._place.get(part["to"])
        if first is None or last is None:
            left = part["n"] - 1
            first, last = (
                (first, first + left - 1) if first is not None else (max(0, last - left + 1), last) if last is not None else (0, -1)
            )
        return self._order[first : last + 1]

    def _listed(self, folded: Any) -> Iterator[str]:
        """Yield the ids of the conversation's messages in a folded list."""
        if _is_folded_list(folded):
            for part in folded["of"]:
                if "from" in part:
                    yield from (message.id for message in self._span(part))

    def _ranges(self, parts: Iterable[str | dict[str, Any]], apart: int = -1) -> list[dict[str, Any]]:
        """Return ids as the ranges of the log they are; what is no id stays, and no range goes on at the place `apart`."""
        ranges: list[dict[str, Any]] = []
        end = -1
        for part in parts:
            if isinstance(part, dict):
                ranges.append(part)
                end = -1
            elif ranges and end >= 0 and self._place[part] == end + 1 != apart:
                ranges[-1]["to"] = part
                ranges[-1]["n"] += 1
                end += 1
            else:
                ranges.append({"from": part, "to": part, "n": 1})
                end = self._place[part]
        return ranges


def _in_order_of_tasks(items: Iterable[Message | Edit | Note]) -> list[Message]:
    """Return the messages of a log; those that tasks have written on one checkpoint in the order in which the graph takes them up.

    Tasks that run at once are stored as they end.
    """
    order: list[list[Message]] = []
    said: list[Message] = []
    written: dict[str, dict[tuple[str, str], list[Message]]] = {}

    def settle() -> None:
        order.extend(messages for tasks in written.values() for _, messages in sorted(tasks.items(), key=itemgetter(0)))
        written.clear()

    for item in items:
        if isinstance(item, Message):
            said.append(item)
        elif isinstance(item, Note) and item.kind == KIND and (item.data.get("said") or ("state" in item.data and not item.data["ns"])):
            own = item.data.get("said", ())
            others = [message for message in said if message.id not in own]
            if others or not own:
                settle()
                order.append(others)
            if own:
                task = written.setdefault(item.data["of"], {}).setdefault((item.data["path"], item.data["task"]), [])
                task += [message for message in said if message.id in own]
            said = []
    settle()
    return [*chain(*order), *said]


def next_version(current: str | None) -> str:
    """Return the version after this one: unlike those of other branches of the thread, so that none is taken for another."""
    number = int(current.partition(".")[0]) if current else 0
    return f"{number + 1:032}.{uuid4().hex[:16]}"


def with_both_ends(shown: Sequence[Message], said: Said) -> list[Message]:
    """Return what a window shows, and of what was said the two ends that a graph may be in the middle of.

    At the end a call may be without its result, because the graph waits for somebody. At the beginning somebody else than a user may
    speak, where the graph has left it so and no window has cut there.
    """
    tail = [*takewhile(lambda message: message.role == "tool", reversed(said.messages))][::-1]
    speaker = said.messages[-len(tail) - 1] if len(tail) < len(said.messages) else None
    if speaker is not None and speaker.tool_calls:
        open_end = {speaker.id, *(message.id for message in tail)}
        shown = [*takewhile(lambda message: message.id not in open_end, shown), speaker, *tail]
    lead = [*takewhile(lambda message: message.role != "user", said.messages)]
    there = {message.id for message in shown}
    if len(lead) == len(said.messages) or (said.whole and said.messages[len(lead)].id in there):
        leading = {message.id for message in lead}
        shown = [*lead, *(message for message in shown if message.id not in leading)]
    return list(shown)


def _config(thread_id: str, ns: str, checkpoint_id: str, read: Any = None) -> RunnableConfig:
    where = {"thread_id": thread_id, "checkpoint_ns": ns, "checkpoint_id": checkpoint_id}
    return {"configurable": where if read is None else {**where, READ: read}}


def _is_of_one_run(ns: str) -> bool:
    """Return whether a namespace is a subgraph's that begins anew each time: it ends with the id of the task."""
    return ":" in ns.rpartition("|")[2]


def _is_message(value: object) -> bool:
    return isinstance(value, BaseMessage) and not isinstance(value, RemoveMessage)


def _is_list_of_messages(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_message, value))


def _is_folded_list(value: object) -> bool:
    return isinstance(value, dict) and value.get(_MARK) in ("list", "tuple", "one")


def _single(folded: Any) -> Any:
    """Return the one item of a folded list, folded."""
    return {**folded, _MARK: "one"} if _is_folded_list(folded) else folded[0]
