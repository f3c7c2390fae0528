"""What clients did to conversations and what they were told, as it happened: one file of JSON lines for each process.

`python -m tests.faults.history FOLDER` prints the histories of a folder in EDN, as Jepsen writes them, so that anyone can run another
checker over them: `elle-cli --model list-append history.edn`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Self


class Kind(StrEnum):
    """What a client asked for."""

    APPEND = "append"
    READ = "read"
    DELETE = "delete"


class Outcome(StrEnum):
    """What it was told. Who was killed, or got no answer, knows nothing: `unknown`."""

    OK = "ok"
    FAIL = "fail"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One call of one client.

    Times are nanoseconds of the monotonic clock, which all processes of a host share.

    Attributes:
        process: Who called; one thing after the other, and never again after a kill.
        conversation: Which one.
        invoked: When it was asked for.
        completed: When the answer was there; None when there was none.
        turn: Of an append: its name. A retry of a turn is another operation with the same name.
        elements: Of an append what it appends, in order; each element belongs to one place of one turn of one conversation. Of a
            read what it saw, in order.
        unfinished: Of a read: turns it was told have no end, running or interrupted.
        before: Of an append: the elements of finished turns its answer was computed on; None when it did not look.
        position: Of an append: how many finished turns there were with it, as it was told; None when it was not.
        final: Whether this read came after everything else had ended.
        detail: Which error it was.
    """

    process: str
    kind: Kind
    conversation: str
    invoked: int
    completed: int | None = None
    outcome: Outcome = Outcome.UNKNOWN
    turn: str = ""
    elements: tuple[str, ...] = ()
    unfinished: frozenset[str] = frozenset()
    before: tuple[str, ...] | None = None
    position: int | None = None
    final: bool = False
    detail: str = ""


class Recorder:
    """Writes the history of one process.

    Each line is one write to a file opened for appending: a process killed with -9 leaves whole lines, and whatever it had asked
    for without an answer stays *unknown*.
    """

    def __init__(self, folder: Path, process: str) -> None:
        """Open a file of its own in the folder.

        Raises:
            FileExistsError: There was a process of this name before.
        """
        self.process = process
        self._file = os.open(folder / f"{process}.jsonl", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644)
        self._number = 0

    def invoke(
        self,
        kind: Kind,
        conversation: str,
        *,
        turn: str = "",
        elements: Sequence[str] = (),
        before: Sequence[str] | None = None,
        final: bool = False,
    ) -> int:
        """Note that something is asked for, before it is; return its number in this process."""
        self._number += 1
        facts = {"turn": turn, "elements": list(elements), "before": None if before is None else list(before), "final": final}
        self._write({"type": "invoke", "op": self._number, "kind": kind, "conversation": conversation, **facts})
        return self._number

    def ok(self, number: int, *, elements: Sequence[str] = (), unfinished: Iterable[str] = (), position: int | None = None) -> None:
        """Note that it was done, and for a read what was seen."""
        self._write({"type": "ok", "op": number, "elements": list(elements), "unfinished": sorted(unfinished), "position": position})

    def fail(self, number: int, detail: str) -> None:
        """Note that it was refused: it did not happen, and never will."""
        self._write({"type": "fail", "op": number, "detail": detail})

    def unknown(self, number: int, detail: str) -> None:
        """Note that nobody knows."""
        self._write({"type": "unknown", "op": number, "detail": detail})

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def __enter__(self) -> Self:
        """Return the recorder itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close it."""
        self.close()

    def _write(self, line: dict[str, object]) -> None:
        text = json.dumps({"time": time.monotonic_ns(), **line}, separators=(",", ":"))
        os.write(self._file, text.encode() + b"\n")


def read_histories(folder: Path) -> list[Operation]:
    """Return the operations of all processes of a folder, in the order they were asked for."""
    operations = [operation for file in sorted(folder.glob("*.jsonl")) for operation in _read(file)]
    return sorted(operations, key=lambda operation: operation.invoked)


def _read(file: Path) -> list[Operation]:
    operations: dict[int, Operation] = {}
    for line in file.read_text().splitlines():
        event = json.loads(line)
        number = event["op"]
        if event["type"] == "invoke":
            operations[number] = Operation(
                process=file.stem,
                kind=Kind(event["kind"]),
                conversation=event["conversation"],
                invoked=event["time"],
                turn=event["turn"],
                elements=tuple(event["elements"]),
                before=None if event["before"] is None else tuple(event["before"]),
                final=event["final"],
            )
            continue
        asked = operations[number]
        seen = tuple(event.get("elements", ())) if asked.kind is Kind.READ else asked.elements
        operations[number] = replace(
            asked,
            completed=event["time"],
            outcome=Outcome(event["type"]),
            elements=seen,
            unfinished=frozenset(event.get("unfinished", ())),
            position=event.get("position"),
            detail=event.get("detail", ""),
        )
    return list(operations.values())


def to_edn(operations: Sequence[Operation]) -> str:
    """Return a list-append history as Jepsen and Elle read it: a turn is one transaction that appends all its elements to one list.

    Deletes have no place in that model and are left out, and so are elements of turns without an end: Elle would call them aborted
    reads.
    """
    processes = {name: number for number, name in enumerate(sorted({operation.process for operation in operations}))}
    events: list[tuple[int, str, Operation]] = []
    for operation in operations:
        if operation.kind is Kind.DELETE:
            continue
        events.append((operation.invoked, "invoke", operation))
        if operation.completed is not None:
            word = {Outcome.OK: "ok", Outcome.FAIL: "fail", Outcome.UNKNOWN: "info"}[operation.outcome]
            events.append((operation.completed, word, operation))
    owners = {element: append.turn for append in operations if append.kind is Kind.APPEND for element in append.elements}
    lines = []
    for index, (moment, word, operation) in enumerate(sorted(events, key=lambda event: event[:2])):
        value = _edn_value(operation, owners, done=word == "ok")
        facts = f":index {index}, :time {moment}, :process {processes[operation.process]}, :type :{word}, :f :txn"
        lines.append(f"{{{facts}, :value {value}}}")
    return "\n".join(lines) + "\n"


def _edn_value(operation: Operation, owners: dict[str, str], *, done: bool) -> str:
    place = json.dumps(operation.conversation)
    if operation.kind is Kind.APPEND:
        return "[" + " ".join(f"[:append {place} {json.dumps(element)}]" for element in operation.elements) + "]"
    if not done:
        return f"[[:r {place} nil]]"
    whole = [element for element in operation.elements if owners.get(element, "") not in operation.unfinished]
    return f"[[:r {place} [{' '.join(json.dumps(element) for element in whole)}]]]"


if __name__ == "__main__":
    sys.stdout.write(to_edn(read_histories(Path(sys.argv[1]))))
