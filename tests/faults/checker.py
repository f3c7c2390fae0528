"""Says which promises a history breaks, each by its name in the literature.

Complete for one list per conversation to which turns are appended: with the order read off the final list, every operation has a
level (an append that became turn k: k - 0.5; a read of k turns: k), and the history is linearizable exactly if no operation was
asked for after another of a higher level had been answered. One sweep, no search. That holds because a turn touches one conversation
only; operations over several would need Elle's graph.

`python -m tests.faults.checker FOLDER` checks the histories of a folder.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

from tests.faults.history import Kind, Operation, Outcome, read_histories

ANOMALIES = {
    "lost-turn": "a turn was acknowledged and nothing of it is there",
    "lost-part-of-turn": "a turn was acknowledged and is not whole",
    "lost-after-read": "a turn was read whole and is not there any more; nobody had an answer for it",
    "resurrected": "a turn was seen after the conversation it was in had been deleted",
    "duplicate": "an element is there twice",
    "phantom": "an element that nobody appended",
    "cross-session": "an element of another conversation",
    "aborted-read": "a turn that was refused is there as if it had not been (G1a)",
    "dirty-read": "a read saw a turn that was refused afterwards, and is gone (G1a)",
    "partial-turn-read": "a read saw part of a turn, and was not told that it has no end (G1b)",
    "torn-turn": "what is left of a turn nobody had an answer for is a part, and not marked as such",
    "interleaved-turn": "another turn stands inside a turn",
    "reordered-in-turn": "the elements of a turn are not in the order they were appended",
    "incompatible-order": "a read saw an order that is not the beginning of the final one (G0)",
    "order-changed-between-reads": "two reads saw the same turns in different orders",
    "read-your-writes": "a client did not see its own acknowledged turn",
    "stale-read-after-ack": "a read did not see a turn acknowledged before it was asked for",
    "monotonic-reads": "a client saw less than it had seen before",
    "stale-read-after-read": "a read saw less than another had seen before it was asked for",
    "append-order-against-real-time": "a turn stands before one that was acknowledged before it was asked for",
    "append-before-observed-state": "a turn stands before what its writer had read (writes follow reads)",
    "computed-on-another-history": "the turns before a turn are not those its answer was computed on",
    "wrong-position-reported": "a writer was told another number of turns than there are up to its own",
}


@dataclass(frozen=True, slots=True)
class Anomaly:
    """One broken promise; `name` is a key of `ANOMALIES`."""

    name: str
    conversation: str
    detail: str

    def __str__(self) -> str:
        """Say it in one line."""
        return f"{self.name} in {self.conversation}: {self.detail} ({ANOMALIES[self.name]})"


def check(operations: Sequence[Operation]) -> list[Anomaly]:
    """Return every anomaly of a history, each once; an empty list when it keeps all promises.

    Raises:
        ValueError: A conversation that was appended to has no final read: nobody could say what was lost.
    """
    homes = {
        element: (operation.conversation, operation.turn, index)
        for operation in operations
        if operation.kind is Kind.APPEND
        for index, element in enumerate(operation.elements)
    }
    found: dict[Anomaly, None] = {}
    for conversation in sorted({operation.conversation for operation in operations}):
        own = [operation for operation in operations if operation.conversation == conversation]
        found.update(dict.fromkeys(_Conversation(conversation, own, homes).anomalies()))
    return list(found)


def names(anomalies: Iterable[Anomaly]) -> set[str]:
    """Return the names of anomalies."""
    return {anomaly.name for anomaly in anomalies}


class _Turn:
    """What is known of a turn from all its attempts."""

    def __init__(self, name: str, attempts: list[Operation]) -> None:
        self.name = name
        self.attempts = attempts
        self.elements = attempts[0].elements
        self.invoked = min(attempt.invoked for attempt in attempts)
        outcomes = {attempt.outcome for attempt in attempts}
        self.refused = outcomes == {Outcome.FAIL}
        answers = [attempt.completed for attempt in attempts if attempt.outcome is Outcome.OK and attempt.completed is not None]
        self.acknowledged = min(answers, default=None)


class _View:
    """What one read saw, turn by turn."""

    def __init__(self, read: Operation, turns: dict[str, _Turn], homes: dict[str, tuple[str, str, int]]) -> None:
        self.read = read
        self.own = [element for element in read.elements if element in homes and homes[element][0] == read.conversation]
        runs = [(turn, [homes[element][2] for element in run]) for turn, run in groupby(self.own, key=lambda element: homes[element][1])]
        self.runs = runs
        self.parts: dict[str, list[int]] = {}
        for turn, indexes in runs:
            self.parts.setdefault(turn, []).extend(indexes)
        self.whole = [
            turn
            for turn, indexes in self.parts.items()
            if turn not in read.unfinished and set(indexes) == set(range(len(turns[turn].elements)))
        ]


class _Conversation:
    """One conversation's operations, and what is wrong with them."""

    def __init__(self, name: str, operations: list[Operation], homes: dict[str, tuple[str, str, int]]) -> None:
        self.name = name
        self.homes = homes
        appends = [operation for operation in operations if operation.kind is Kind.APPEND]
        self.turns = {
            turn: _Turn(turn, [one for one in appends if one.turn == turn]) for turn in dict.fromkeys(one.turn for one in appends)
        }
        reads = [one for one in operations if one.kind is Kind.READ and one.outcome is Outcome.OK and one.completed is not None]
        self.views = [_View(read, self.turns, homes) for read in sorted(reads, key=lambda read: read.completed or 0)]
        self.deletes = [one for one in operations if one.kind is Kind.DELETE and one.outcome is not Outcome.FAIL]
        finals = [view for view in self.views if view.read.final]
        if self.turns and not finals:
            raise ValueError(f"the history of {name} has no final read")
        self.final = finals[-1] if finals else None
        self.found: list[Anomaly] = []

    def anomalies(self) -> list[Anomaly]:
        for view in self.views:
            self._check_elements(view)
            self._check_turns(view)
            self._check_deletes(view)
        if self.final is None:
            return self.found
        self._check_loss(self.final)
        for earlier, later in pairwise(view for view in self.views if self._this_life(view.read)):
            common = set(earlier.whole) & set(later.whole)
            if [turn for turn in earlier.whole if turn in common] != [turn for turn in later.whole if turn in common]:
                self._say("order-changed-between-reads", f"{_who(earlier.read)} and {_who(later.read)}")
        self._check_order(self.final.whole)
        return self.found

    def _say(self, name: str, detail: str) -> None:
        self.found.append(Anomaly(name, self.name, detail))

    def _this_life(self, operation: Operation | _Turn) -> bool:
        """Return whether it began after the last delete had ended, so that nothing excuses it."""
        return all(delete.completed is not None and operation.invoked > delete.completed for delete in self.deletes)

    # What one read may look like

    def _check_elements(self, view: _View) -> None:
        for element, times in Counter(view.read.elements).items():
            if element not in self.homes:
                self._say("phantom", element)
                continue
            if self.homes[element][0] != self.name:
                self._say("cross-session", f"{element} is of {self.homes[element][0]}")
            if times > 1:
                self._say("duplicate", element)

    def _check_turns(self, view: _View) -> None:
        runs = Counter(turn for turn, _ in view.runs)
        for name, indexes in view.parts.items():
            turn, marked = self.turns[name], name in view.read.unfinished
            once = list(dict.fromkeys(indexes))
            if runs[name] > 1 and len(once) == len(indexes):
                self._say("interleaved-turn", name)
            if once != sorted(once):
                self._say("reordered-in-turn", name)
            if turn.refused and not marked:
                gone = self.final is not None and name not in self.final.parts
                self._say("dirty-read" if gone else "aborted-read", name)
            elif marked or len(once) < len(turn.elements):
                self._check_part(view, turn, sorted(once), marked=marked)

    def _check_part(self, view: _View, turn: _Turn, indexes: list[int], *, marked: bool) -> None:
        if marked and indexes == list(range(len(indexes))) and not (turn.acknowledged and turn.acknowledged < view.read.invoked):
            return
        if turn.acknowledged and (view.read.final or turn.acknowledged < view.read.invoked):
            self._say("lost-part-of-turn", turn.name)
        elif view.read.final:
            self._say("torn-turn", turn.name)
        else:
            self._say("partial-turn-read", turn.name)

    def _check_deletes(self, view: _View) -> None:
        for delete in self.deletes:
            if delete.completed is None or delete.outcome is not Outcome.OK or view.read.invoked < delete.completed:
                continue
            for name in view.parts:
                turn = self.turns[name]
                if turn.acknowledged is not None and turn.acknowledged < delete.invoked:
                    self._say("resurrected", name)

    # What must be there in the end

    def _check_loss(self, final: _View) -> None:
        missing = [turn for turn in self.turns.values() if turn.name not in final.parts and self._this_life(turn)]
        read_whole = {turn for view in self.views for turn in view.whole}
        for turn in missing:
            if turn.acknowledged is not None:
                self._say("lost-turn", turn.name)
            elif turn.name in read_whole and not turn.refused:
                self._say("lost-after-read", turn.name)

    # In which order

    def _check_order(self, order: list[str]) -> None:
        place = {turn: index for index, turn in enumerate(order)}
        done: list[tuple[int, float, Operation]] = []
        asked: list[tuple[int, float, Operation]] = []
        for view in self.views:
            if not self._this_life(view.read):
                continue
            kept = [turn for turn in view.whole if turn in place]
            if kept != order[: len(kept)]:
                self._say("incompatible-order", f"{_who(view.read)} saw {_short(kept)}")
                self._check_what_followed(view.read, max(place[turn] for turn in kept), place)
                continue
            asked.append((view.read.invoked, len(kept), view.read))
            done.append((view.read.completed or 0, len(kept), view.read))
        for name, index in place.items():
            turn = self.turns[name]
            self._check_before(turn, order[:index], index + 1)
            if not self._this_life(turn):
                continue
            asked.append((turn.invoked, index + 0.5, turn.attempts[0]))
            if turn.acknowledged is not None:
                done.append((turn.acknowledged, index + 0.5, turn.attempts[0]))
        self._sweep(sorted(asked, key=lambda event: event[0]), sorted(done, key=lambda event: event[0]))

    def _check_what_followed(self, read: Operation, newest: int, place: dict[str, int]) -> None:
        """Say which later turns of the same process stand before something this read saw, which has no level of its own."""
        for name, index in place.items():
            first = self.turns[name].attempts[0]
            if index < newest and first.process == read.process and first.invoked > (read.completed or 0):
                self._say("append-before-observed-state", f"{_who(first)} after {_who(read)}")

    def _check_before(self, turn: _Turn, order: list[str], position: int) -> None:
        looked = [attempt for attempt in turn.attempts if attempt.before is not None and attempt.outcome is not Outcome.FAIL]
        if looked and not any(self._turns_of(attempt.before or ()) == order for attempt in looked):
            self._say("computed-on-another-history", turn.name)
        told = {attempt.position for attempt in turn.attempts if attempt.position is not None and attempt.outcome is Outcome.OK}
        if told and position not in told:
            self._say("wrong-position-reported", f"{turn.name} is turn {position}, its writer was told {sorted(told)}")

    def _turns_of(self, elements: Iterable[str]) -> list[str]:
        """Return the turns of which all elements are among these, in the order of their first."""
        seen = Counter(self.homes[element][1] for element in elements if element in self.homes)
        return [turn for turn in seen if turn in self.turns and seen[turn] == len(self.turns[turn].elements)]

    def _sweep(self, asked: list[tuple[int, float, Operation]], done: list[tuple[int, float, Operation]]) -> None:
        """Compare each operation with the highest level answered before it was asked for: of its own process, and of all."""
        highest: tuple[float, Operation] | None = None
        own: dict[str, tuple[float, Operation]] = {}
        next_done = 0
        for moment, level, operation in asked:
            while next_done < len(done) and done[next_done][0] < moment:
                _, reached, answered = done[next_done]
                next_done += 1
                if highest is None or reached > highest[0]:
                    highest = (reached, answered)
                if answered.process not in own or reached > own[answered.process][0]:
                    own[answered.process] = (reached, answered)
            for known in dict.fromkeys((own.get(operation.process), highest)):
                if known is not None and known[0] > level:
                    self._say(_out_of_order(known[1], operation), f"{_who(operation)} after {_who(known[1])}")


def _out_of_order(answered: Operation, asked: Operation) -> str:
    same = answered.process == asked.process
    if asked.kind is Kind.READ:
        if answered.kind is Kind.APPEND:
            return "read-your-writes" if same else "stale-read-after-ack"
        return "monotonic-reads" if same else "stale-read-after-read"
    if answered.kind is Kind.APPEND:
        return "append-order-against-real-time"
    return "append-before-observed-state"


def _who(operation: Operation) -> str:
    what = operation.turn or f"read of {len(operation.elements)}"
    return f"{operation.process}'s {what}"


def _short(turns: Sequence[str]) -> str:
    return ", ".join(turns[-4:])


if __name__ == "__main__":
    anomalies = check(read_histories(Path(sys.argv[1])))
    for anomaly in anomalies:
        print(anomaly)
    sys.exit(1 if anomalies else 0)
