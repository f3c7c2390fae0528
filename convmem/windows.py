"""Windows: which part of a history the model sees. Pure functions; they never change what is stored.

What comes out is valid for the model APIs we know: system messages stay, the first message after them is a user's, no tool
call stands without its result and no result without its call. Windows cut between turns; only the newest turn is cut inside, in
the same way, when it alone is larger than the window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Generic, Literal, NamedTuple, TypeVar

from convmem.exceptions import ConfigurationError
from convmem.messages import Item, Message, State, ToolCall
from convmem.records import record
from convmem.tokens import Counter, Meter

Said = TypeVar("Said", bound=Item)

NO_RESULT = "(There is no result: the call was interrupted.)"
"""What closes a tool call that never got its result, under ``Window(unanswered="close")``. It is shown, and never stored."""


@dataclass(frozen=True, slots=True)
class Window:
    """What part of the stored history `Conversation.messages` holds. The messages of the present turn come on top, all of them.

    Every limit that is given holds: ``Window(turns=None, tokens=8000)`` is one in tokens alone.

    Attributes:
        turns: At most the newest turns, 1 or more; None means no such limit.
        messages: At most this many messages, in whole turns; of a newest turn that alone has more, its question and its
            newest messages. System messages lifted from older turns do not count. None means no such limit.
        tokens: At most this many, the system messages and the present turn included. Of a newest turn that does not fit, its question
            and the newest messages that do; nothing, when not even the question fits. None means no such limit.
        counter: Returns how many tokens a message is; not a coroutine function. None: tiktoken where its vocabulary is at hand, else
            an estimate (`convmem.tokens`).
        unanswered: Whether a tool call that never got its result is left out (`drop`), or closed by a result that says so (`close`).
        unfinished: Whether turns that were interrupted, or still run, are kept or dropped.
    """

    turns: int | None = 50
    messages: int | None = None
    unfinished: Literal["keep", "drop"] = "keep"
    tokens: int | None = None
    counter: Counter | None = None
    unanswered: Literal["drop", "close"] = "drop"

    def __post_init__(self) -> None:
        """Refuse a window that could show nothing."""
        for name in ("turns", "messages", "tokens"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                msg = f"Window({name}={value!r}): use a whole number from 1, or None for no limit."
                raise ConfigurationError(msg)
        if self.unfinished not in ("keep", "drop"):
            msg = f"Window(unfinished={self.unfinished!r}): use 'keep' or 'drop'."
            raise ConfigurationError(msg)
        if self.unanswered not in ("drop", "close"):
            msg = f"Window(unanswered={self.unanswered!r}): use 'drop' or 'close'."
            raise ConfigurationError(msg)
        if self.counter is not None and (self.tokens is None or not callable(self.counter)):
            msg = "Window(counter=...) is a function that counts for tokens=: give both, as in Window(tokens=8000, counter=count)."
            raise ConfigurationError(msg)


class Turn(NamedTuple, Generic[Said]):
    """What one request appended.

    Attributes:
        messages: In order, each in the state `complete`, as it was decoded; among them edits and notes, before these are applied.
        state: Whether it has an end.
    """

    messages: tuple[Said, ...]
    state: State = "complete"


@record
class View:
    """What a window shows.

    Attributes:
        messages: Oldest first, each knowing its turn's state.
        turns: How many turns they are from, in whole or in part.
        cut: Whether a turn is shown only in part because it is larger than the window.
        full: Whether a limit keeps some of these turns out, so that it would keep all older ones out too.
    """

    messages: tuple[Message, ...]
    turns: int
    cut: bool
    full: bool = False


def view(
    turns: Sequence[Turn[Message]],
    window: Window,
    *,
    pinned: Iterable[Message] = (),
    present: Sequence[Message] = (),
    meter: Meter | None = None,
) -> View:
    """Return what the window shows of these turns, oldest first.

    Args:
        turns: The newest turns of a conversation, oldest first; more than the window holds is fine.
        window: The limits.
        pinned: System messages from turns before these.
        present: The messages of the present turn, which come behind what is shown: results at their beginning answer calls of the
            newest turn, and all of them take their part of the tokens.
        meter: Counts tokens, and remembers what it has counted.

    Raises:
        CounterFailed: The window's counter cannot be used.
    """
    seen = [turn for turn in turns if turn.state == "complete"] if window.unfinished == "drop" else turns
    answers = list(takewhile(lambda message: message.role == "tool", present))
    kept, cut = _newest(seen, window)
    if window.tokens is not None:
        system = [*pinned, *(message for turn in seen for message in turn.messages if message.role == "system")]
        meter = meter or Meter(window.counter)
        budget = _Budget(meter, window.tokens - meter.total(present), system, window.unanswered)
        kept, cut_shorter = budget.newest(kept, answers)
        cut = cut or cut_shorter
    full = cut or len(kept) < len(seen)
    while kept and not any(message.role == "user" for message in kept[0].messages):
        kept = kept[1:]
    lifted = [*pinned, *[message for turn in seen[: len(seen) - len(kept)] for message in turn.messages]]
    flat: list[Message] = []
    for turn in kept:
        flat += turn.messages if turn.state == "complete" else [message.in_state(turn.state) for message in turn.messages]
    valid = _begin_with_user(_paired(flat, window.unanswered, answers))
    return View((*_distinct_system(lifted, valid), *valid), len(kept), cut, full)


def _newest(turns: Sequence[Turn[Message]], window: Window) -> tuple[list[Turn[Message]], bool]:
    kept = list(turns if window.turns is None else turns[-window.turns :])
    if window.messages is None or not kept:
        return kept, False
    room = window.messages
    for i in range(len(kept) - 1, -1, -1):
        room -= len(kept[i].messages)
        if room < 0:
            if i == len(kept) - 1:
                opening, units = _parts(kept[i].messages)
                fitting = _last_fitting(units, [len(unit) for unit in units], window.messages - len(opening))
                return [Turn((*opening, *fitting), kept[i].state)], True
            return kept[i + 1 :], False
    return kept, False


class _Budget:
    """The tokens there are for the history, and what of them the system messages take wherever they stand."""

    def __init__(self, meter: Meter, tokens: int, system: Iterable[Message], unanswered: str) -> None:
        self._meter = meter
        self._unanswered = unanswered
        self._lifted = {message.text: message for message in system}
        self._room = tokens - meter.total(self._lifted.values())

    def newest(self, turns: list[Turn[Message]], answers: list[Message]) -> tuple[list[Turn[Message]], bool]:
        """Return the newest turns that fit, and whether the one returned is cut."""
        flat = [(i, message) for i, turn in enumerate(turns) for message in turn.messages]
        shown: list[list[Message]] = [[] for _ in turns]
        for at, said in _exchanges([message for _, message in flat] + answers, self._unanswered):
            shown[flat[at][0]] += [message for message in said if not _is_in(message, answers)]
        for i in range(len(turns) - 1, -1, -1):
            room = self._room
            self._take(shown[i])
            if self._room < 0:
                if i < len(turns) - 1:
                    return turns[i + 1 :], False
                return self._cut(turns[i], room)
        return turns, False

    def _take(self, messages: list[Message]) -> None:
        """Pay for what is shown; a system message that is shown in its place is no longer lifted from there."""
        self._room -= self._meter.total(messages)
        for message in messages:
            if message.role == "system" and (lifted := self._lifted.pop(message.text, None)) is not None:
                self._room += self._meter.of(lifted)

    def _cut(self, turn: Turn[Message], room: int) -> tuple[list[Turn[Message]], bool]:
        opening, units = _parts(turn.messages)
        own = [message for message in opening if message.role == "system"]
        room -= self._meter.total(opening) - self._meter.total({message.text: message for message in own}.values())
        if room < 0:
            return [], False
        costs = [self._meter.total(_paired(unit, self._unanswered)) for unit in units]
        return [Turn((*opening, *_last_fitting(units, costs, room)), turn.state)], True


def _parts(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """Return a turn's system messages and its question, and what follows that in units: a call and its results are one."""
    begin = next((i for i, message in enumerate(messages) if message.role == "user"), len(messages))
    opening = [*(message for message in messages if message.role == "system"), *messages[begin : begin + 1]]
    units: list[list[Message]] = []
    for message in messages[begin + 1 :]:
        if message.role == "system":
            continue
        if message.role == "tool" and units:
            units[-1].append(message)
        else:
            units.append([message])
    return opening, units


def _last_fitting(units: list[list[Message]], costs: list[int], room: int) -> list[Message]:
    kept: list[Message] = []
    for unit, cost in zip(reversed(units), reversed(costs), strict=True):
        if cost > room:
            break
        kept[:0] = unit
        room -= cost
    return kept


def _is_in(message: Message, messages: list[Message]) -> bool:
    return any(message is other for other in messages)


def _paired(messages: list[Message], unanswered: str, answers: list[Message] | None = None) -> list[Message]:
    """Return what is valid of these messages; results among `answers`, which stand behind them, count and are not returned."""
    answers = answers or []
    if not answers and not any([message.tool_calls or message.role == "tool" for message in messages]):  # noqa: C419 - twice as fast
        return messages
    said = [message for _, said in _exchanges(messages + answers, unanswered) for message in said]
    return [message for message in said if not _is_in(message, answers)] if answers else said


def _exchanges(messages: list[Message], unanswered: str) -> Iterator[tuple[int, list[Message]]]:
    """Yield what is shown of each message that is no result, with its results, and where it stands; a call counts with a result only.

    A result counts until the next one who speaks.
    """
    i = 0
    while i < len(messages):
        at, message = i, messages[i]
        i += 1
        if message.role == "tool":
            continue
        results: list[Message] = []
        while message.tool_calls and i < len(messages) and messages[i].role == "tool":
            results.append(messages[i])
            i += 1
        yield at, _answered(message, results, unanswered)


def _answered(message: Message, results: list[Message], unanswered: str) -> list[Message]:
    if not message.tool_calls:
        return [message]
    wanted = {call.id for call in message.tool_calls}
    kept: list[Message] = []
    for result in results:
        if result.tool_call_id in wanted:
            kept.append(result)
            wanted.discard(result.tool_call_id or "")
    if not wanted:
        return [message, *kept]
    if unanswered == "close":
        unanswered_calls = {call.id: call for call in message.tool_calls if call.id in wanted}
        return [message, *kept, *(_closing(call, message) for call in unanswered_calls.values())]
    calls = tuple(call for call in message.tool_calls if call.id not in wanted)
    if not calls and not message.content:
        return []
    return [message.model_copy(update={"tool_calls": calls}).in_state(message.state), *kept]


def _closing(call: ToolCall, message: Message) -> Message:
    """Return the result that says there is none: the same one each time."""
    return Message.tool(
        NO_RESULT, tool_call_id=call.id, name=call.name, id=f"{message.id}-{call.id}", created_at=message.created_at
    ).in_state(message.state)


def _begin_with_user(messages: list[Message]) -> list[Message]:
    """Leave out what others said before the first user; system messages stay."""
    begin = next((i for i, message in enumerate(messages) if message.role == "user"), len(messages))
    return [*[message for message in messages[:begin] if message.role == "system"], *messages[begin:]] if begin else messages


def _distinct_system(lifted: list[Message], shown: list[Message]) -> list[Message]:
    """Return the system messages to put in front: the newest of those that say the same, and none that is shown anyway."""
    lifted = [message for message in lifted if message.role == "system"]
    said = {message.text for message in shown if message.role == "system"} if lifted else set()
    system: list[Message] = []
    for message in reversed(lifted):
        if message.text not in said:
            said.add(message.text)
            system.append(message)
    return system[::-1]
