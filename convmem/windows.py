"""Windows: which part of a history the model sees. Pure functions; they never change what is stored.

What comes out is valid for the model APIs we know: system messages stay, the first message after them is a user's, no tool
call stands without its result and no result without its call. Windows cut between turns; only a single turn larger than the
window is cut inside, in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from convmem.exceptions import ConfigurationError
from convmem.messages import Message, State


@dataclass(frozen=True, slots=True)
class Window:
    """What part of the stored history `Conversation.messages` holds. The messages of the present turn come on top.

    Attributes:
        turns: At most the newest turns, 1 or more; None means no such limit.
        messages: At most this many messages, in whole turns; of a newest turn that alone has more, its question and its
            newest messages. System messages lifted from older turns do not count. None means no such limit.
        unfinished: Whether turns that were interrupted, or still run, are kept or dropped.
    """

    turns: int | None = 50
    messages: int | None = None
    unfinished: Literal["keep", "drop"] = "keep"

    def __post_init__(self) -> None:
        """Refuse a window that could show nothing."""
        for name in ("turns", "messages"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                msg = f"Window({name}={value!r}): use a whole number from 1, or None for no limit."
                raise ConfigurationError(msg)
        if self.unfinished not in ("keep", "drop"):
            msg = f"Window(unfinished={self.unfinished!r}): use 'keep' or 'drop'."
            raise ConfigurationError(msg)


@dataclass(frozen=True, slots=True)
class Turn:
    """What one request appended.

    Attributes:
        messages: In order.
        state: Whether it has an end.
    """

    messages: tuple[Message, ...]
    state: State = "complete"


@dataclass(frozen=True, slots=True)
class View:
    """What a window shows.

    Attributes:
        messages: Oldest first, each knowing its turn's state.
        turns: How many turns they are from, in whole or in part.
        cut: Whether a turn is shown only in part because it is larger than the window.
    """

    messages: tuple[Message, ...]
    turns: int
    cut: bool


def view(turns: Sequence[Turn], window: Window, *, pinned: Iterable[Message] = ()) -> View:
    """Return what the window shows of these turns, oldest first.

    Args:
        turns: The newest turns of a conversation, oldest first; more than the window holds is fine.
        window: The limits.
        pinned: System messages from turns before these.
    """
    seen = [turn for turn in turns if window.unfinished == "keep" or turn.state == "complete"]
    kept, cut = _newest(seen, window)
    while kept and not any(message.role == "user" for message in kept[0].messages):
        kept = kept[1:]
    lifted = [*pinned, *(message for turn in seen[: len(seen) - len(kept)] for message in turn.messages)]
    flat = [message.in_state(turn.state) for turn in kept for message in turn.messages]
    valid = _begin_with_user(_paired(flat))
    system = _distinct_system(lifted, valid)
    return View((*system, *valid), len(kept), cut)


def _newest(turns: list[Turn], window: Window) -> tuple[list[Turn], bool]:
    kept = turns[-window.turns :] if window.turns is not None else list(turns)
    if window.messages is None or not kept:
        return kept, False
    room = window.messages
    for i in range(len(kept) - 1, -1, -1):
        room -= len(kept[i].messages)
        if room < 0:
            if i == len(kept) - 1:
                return [Turn(_cut(kept[i].messages, window.messages), kept[i].state)], True
            return kept[i + 1 :], False
    return kept, False


def _cut(messages: tuple[Message, ...], limit: int) -> tuple[Message, ...]:
    """Cut one turn: its system messages and its question, then the newest units that fit; a call and its results are one unit."""
    opening = [message for message in messages if message.role == "system"]
    opening += [message for message in messages if message.role == "user"][:1]
    units = _units([message for message in messages if message.role != "system" and message not in opening])
    room = limit - len(opening)
    kept: list[Message] = []
    for unit in reversed(units):
        if len(unit) > room:
            break
        kept[:0] = unit
        room -= len(unit)
    return (*opening, *kept)


def _units(messages: list[Message]) -> list[list[Message]]:
    units: list[list[Message]] = []
    for message in messages:
        if message.role == "tool" and units:
            units[-1].append(message)
        else:
            units.append([message])
    return units


def _paired(messages: list[Message]) -> list[Message]:
    """Leave out calls that have no result and results that have no call; a result counts until the next one who speaks."""
    paired: list[Message] = []
    i = 0
    while i < len(messages):
        message = messages[i]
        i += 1
        if message.role == "tool":
            continue
        results: list[Message] = []
        while message.tool_calls and i < len(messages) and messages[i].role == "tool":
            results.append(messages[i])
            i += 1
        paired += _answered(message, results)
    return paired


def _answered(message: Message, results: list[Message]) -> list[Message]:
    if not message.tool_calls:
        return [message]
    answered = {result.tool_call_id for result in results}
    calls = tuple(call for call in message.tool_calls if call.id in answered)
    wanted = {call.id for call in calls}
    kept: list[Message] = []
    for result in results:
        if result.tool_call_id in wanted:
            kept.append(result)
            wanted.discard(result.tool_call_id or "")
    if calls == message.tool_calls:
        return [message, *kept]
    if not calls and not message.content:
        return []
    return [message.model_copy(update={"tool_calls": calls}).in_state(message.state), *kept]


def _begin_with_user(messages: list[Message]) -> list[Message]:
    """Leave out what others said before the first user; system messages stay."""
    begin = next((i for i, message in enumerate(messages) if message.role == "user"), len(messages))
    return [*(message for message in messages[:begin] if message.role == "system"), *messages[begin:]]


def _distinct_system(lifted: list[Message], shown: list[Message]) -> list[Message]:
    """Return the system messages to put in front: the newest of those that say the same, and none that is shown anyway."""
    said = {message.text for message in shown if message.role == "system"}
    system: list[Message] = []
    for message in reversed(lifted):
        if message.role == "system" and message.text not in said:
            said.add(message.text)
            system.append(message)
    return system[::-1]
