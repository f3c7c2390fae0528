"""The checker of histories is tested as what it tests: each anomaly is planted and named, and right histories are left in peace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from tests.faults.checker import ANOMALIES, check, names
from tests.faults.history import Kind, Operation, Outcome, Recorder, read_histories, to_edn

PARTS = 3


def parts(*turns: str) -> tuple[str, ...]:
    return tuple(f"{turn}/{index}" for turn in turns for index in range(PARTS))


class Story:
    """A history told line by line; each operation begins after the one before it was answered, unless `at` says when."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.clock = 0

    def _tell(self, operation: Operation, at: tuple[int, int] | None) -> Story:
        self.clock += 10
        invoked, completed = at or (self.clock, self.clock + 5)
        answered = operation.outcome is not Outcome.UNKNOWN
        self.operations.append(replace(operation, invoked=invoked, completed=completed if answered else None))
        return self

    def append(
        self,
        turn: str,
        process: str = "p",
        *,
        outcome: Outcome = Outcome.OK,
        at: tuple[int, int] | None = None,
        before: tuple[str, ...] | None = None,
        position: int | None = None,
        conversation: str = "c",
    ) -> Story:
        operation = Operation(process=process, kind=Kind.APPEND, conversation=conversation, invoked=0, turn=turn, elements=parts(turn))
        return self._tell(replace(operation, outcome=outcome, before=before, position=position), at)

    def read(
        self,
        *elements: str,
        process: str = "p",
        at: tuple[int, int] | None = None,
        unfinished: tuple[str, ...] = (),
        final: bool = False,
        conversation: str = "c",
    ) -> Story:
        operation = Operation(process=process, kind=Kind.READ, conversation=conversation, invoked=0, outcome=Outcome.OK, elements=elements)
        return self._tell(replace(operation, unfinished=frozenset(unfinished), final=final), at)

    def end(self, *elements: str, unfinished: tuple[str, ...] = (), conversation: str = "c") -> Story:
        self.clock += 1000
        return self.read(*elements, process="last", unfinished=unfinished, final=True, conversation=conversation)

    def delete(self, at: tuple[int, int] | None = None, outcome: Outcome = Outcome.OK) -> Story:
        return self._tell(Operation(process="p", kind=Kind.DELETE, conversation="c", invoked=0, outcome=outcome), at)


A, B, AB = parts("a"), parts("b"), parts("a", "b")
BA = parts("b", "a")

PLANTED: dict[str, Callable[[Story], Story]] = {
    "lost-turn": lambda s: s.append("a").append("b").end(*B),
    "lost-part-of-turn": lambda s: s.append("a").end(*A[:2]),
    "lost-after-read": lambda s: s.append("a", outcome=Outcome.UNKNOWN).read(*A).end(),
    "resurrected": lambda s: s.append("a").delete().append("b").end(*AB),
    "duplicate": lambda s: s.append("a").end(*A, *A),
    "phantom": lambda s: s.append("a").end(*A, "nobody/0"),
    "cross-session": lambda s: s.append("a").append("b", conversation="d").end(*AB).end(*B, conversation="d"),
    "aborted-read": lambda s: s.append("a", outcome=Outcome.FAIL).end(*A),
    "dirty-read": lambda s: s.append("a", at=(10, 100), outcome=Outcome.FAIL).read(*A, at=(20, 30)).end(),
    "partial-turn-read": lambda s: s.append("a", at=(10, 100)).read(*A[:1], at=(20, 30)).end(*A),
    "torn-turn": lambda s: s.append("a", outcome=Outcome.UNKNOWN).end(*A[:2]),
    "interleaved-turn": lambda s: s.append("a").append("b", "q", at=(5, 40)).end(*A[:1], *B, *A[1:]),
    "reordered-in-turn": lambda s: s.append("a").end(A[1], A[0], A[2]),
    "incompatible-order": lambda s: s.append("a", at=(1, 99)).append("b", "q", at=(1, 99)).read(*B, at=(20, 30)).end(*AB),
    "order-changed-between-reads": lambda s: (
        s.append("a", at=(1, 99)).append("b", "q", at=(1, 99)).read(*BA, at=(20, 30)).read(*AB, at=(40, 50)).end(*AB)
    ),
    "read-your-writes": lambda s: s.append("a").read().end(*A),
    "stale-read-after-ack": lambda s: s.append("a").read(process="q").end(*A),
    "monotonic-reads": lambda s: s.append("a", "q", at=(1, 99)).read(*A, at=(20, 30)).read(at=(40, 50)).end(*A),
    "stale-read-after-read": lambda s: s.append("a", "q", at=(1, 99)).read(*A, at=(20, 30)).read(process="r", at=(40, 50)).end(*A),
    "append-order-against-real-time": lambda s: s.append("a").append("b", "q").end(*BA),
    "append-before-observed-state": lambda s: s.append("a", "q", at=(1, 99)).read(*A, at=(20, 30)).append("b", at=(40, 50)).end(*BA),
    "computed-on-another-history": lambda s: s.append("a", "q", at=(1, 99)).append("b", at=(2, 98), before=()).end(*AB),
    "wrong-position-reported": lambda s: s.append("a", position=1).append("b", position=1).end(*AB),
}


@pytest.mark.parametrize("name", ANOMALIES)
def test_each_anomaly_is_named(name):
    """A checker that finds nothing proves nothing."""
    assert name in names(check(PLANTED[name](Story()).operations))


@pytest.mark.parametrize(
    "name", ["lost-turn", "duplicate", "phantom", "aborted-read", "torn-turn", "read-your-writes", "stale-read-after-ack", "resurrected"]
)
def test_one_fault_is_one_name(name):
    """Who reads the report must find the fault, not a list of guesses."""
    assert names(check(PLANTED[name](Story()).operations)) == {name}


def test_an_answer_that_outlived_the_conversation_it_was_computed_on_is_named():
    """A delete excuses what is gone, and not what was stored after it as if nothing had happened."""
    story = Story().append("a").append("b", "q", at=(20, 99), before=A).delete(at=(50, 60)).end(*B)
    assert names(check(story.operations)) == {"computed-on-another-history"}


RIGHT: dict[str, Callable[[Story], Story]] = {
    "nothing happened": lambda s: s.end(),
    "one after the other": lambda s: s.append("a", before=(), position=1).read(*A).append("b", before=A, position=2).read(*AB).end(*AB),
    "two at once, either order": lambda s: s.append("a", at=(1, 99)).append("b", "q", at=(2, 98)).end(*BA),
    "no answer, and stored": lambda s: s.append("a", outcome=Outcome.UNKNOWN).end(*A),
    "no answer, and not stored": lambda s: s.append("a", outcome=Outcome.UNKNOWN).append("b").end(*B),
    "no answer, and stored later": lambda s: s.append("a", outcome=Outcome.UNKNOWN).append("b").read(*B).read(*BA).end(*BA),
    "no answer, and marked as without end": lambda s: s.append("a", outcome=Outcome.UNKNOWN).end(*A[:1], unfinished=("a",)),
    "refused after an early save": lambda s: s.append("a", outcome=Outcome.FAIL).end(*A[:1], unfinished=("a",)),
    "refused, retried and whole": lambda s: s.append("a", outcome=Outcome.FAIL).append("a").end(*A),
    "no answer, retried, stored once": lambda s: s.append("a", outcome=Outcome.UNKNOWN).append("b").append("a").end(*BA),
    "read while it ran": lambda s: s.append("a", at=(1, 99)).read(*A[:2], at=(20, 30), unfinished=("a",)).end(*A),
    "read before and after the answer": lambda s: s.append("a", at=(1, 99)).read(at=(20, 30)).read(*A, at=(40, 50)).end(*A),
    "deleted": lambda s: s.append("a").delete().read().append("b").end(*B),
    "deleted while it ran": lambda s: s.append("a", at=(1, 99)).delete(at=(50, 60)).end(),
    "a delete nobody had an answer for": lambda s: s.append("a").delete(outcome=Outcome.UNKNOWN).end(*A),
    "two conversations": lambda s: s.append("a").append("b", conversation="d").end(*A).end(*B, conversation="d"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_allowed_is_not_reported(name):
    """A false alarm costs a day of search, and then the alarm."""
    assert check(RIGHT[name](Story()).operations) == []


def test_a_history_without_a_final_read_cannot_be_judged():
    """Nothing found would mean nothing looked for."""
    with pytest.raises(ValueError, match="no final read"):
        check(Story().append("a").operations)


# Histories nobody thought of


@st.composite
def right_histories(draw: st.DrawFn) -> list[Operation]:
    """Return what clients of a store that keeps every promise would have recorded: each operation happens at one moment."""
    moments: list[tuple[int, str, str, Outcome, int, int]] = []
    for number in range(draw(st.integers(2, 4))):
        clock = draw(st.integers(0, 5))
        for step in range(draw(st.integers(1, 5))):
            invoked = clock + draw(st.integers(1, 10))
            happened = invoked + draw(st.integers(1, 10))
            completed = happened + draw(st.integers(1, 10))
            outcome = draw(st.sampled_from([Outcome.OK, Outcome.OK, Outcome.OK, Outcome.UNKNOWN, Outcome.FAIL]))
            kind = draw(st.sampled_from(["append", "append", "read"]))
            moments.append(
                (happened * 100 + number, f"p{number}", f"p{number}-{step}" if kind == "append" else "", outcome, invoked, completed)
            )
            clock = completed
            if outcome is Outcome.UNKNOWN:
                break
    log: list[str] = []
    operations: list[Operation] = []
    for _, process, turn, outcome, invoked, completed in sorted(moments):
        kind = Kind.APPEND if turn else Kind.READ
        asked = Operation(process=process, kind=kind, conversation="c", invoked=invoked * 100, outcome=outcome)
        answered = replace(asked, completed=None if outcome is Outcome.UNKNOWN else completed * 100)
        if not turn:
            operations.append(replace(answered, elements=parts(*log)))
            continue
        position = len(log) + 1 if outcome is Outcome.OK else None
        operations.append(replace(answered, turn=turn, elements=parts(turn), before=parts(*log), position=position))
        if outcome is Outcome.OK or (outcome is Outcome.UNKNOWN and draw(st.booleans())):
            log.append(turn)
    last = Operation(process="last", kind=Kind.READ, conversation="c", invoked=10**6, completed=10**6 + 1, outcome=Outcome.OK, final=True)
    return [*operations, replace(last, elements=parts(*log))]


@settings(max_examples=300, deadline=None)
@given(right_histories())
def test_no_right_history_is_reported(operations):
    """Whatever the interleaving, and whoever got no answer."""
    assert check(operations) == []


def _change_final(operations: list[Operation], change: Callable[[tuple[str, ...]], tuple[str, ...]]) -> list[Operation]:
    return [*operations[:-1], replace(operations[-1], elements=change(operations[-1].elements))]


MUTATIONS: dict[str, Callable[[tuple[str, ...], int], tuple[str, ...]]] = {
    "an element twice": lambda seen, at: (*seen[: at + 1], seen[at], *seen[at + 1 :]),
    "an element gone": lambda seen, at: (*seen[:at], *seen[at + 1 :]),
    "an element of nobody": lambda seen, at: (*seen[:at], "nobody/0", *seen[at:]),
    "a turn moved into another": lambda seen, at: (*seen[: (at // 3) * 3][:-2], *seen[(at // 3) * 3 :], *seen[: (at // 3) * 3][-2:]),
    "a turn reversed": lambda seen, at: (
        *seen[: (at // 3) * 3],
        *seen[(at // 3) * 3 : (at // 3) * 3 + 3][::-1],
        *seen[(at // 3) * 3 + 3 :],
    ),
}


@settings(max_examples=300, deadline=None)
@given(right_histories(), st.sampled_from(sorted(MUTATIONS)), st.data())
def test_every_damage_to_what_is_stored_is_found(operations, mutation, data):
    """Whichever element of whichever history."""
    seen = operations[-1].elements
    first = 3 if mutation == "a turn moved into another" else 0
    if len(seen) <= first:
        return
    at = data.draw(st.integers(first, len(seen) - 1))
    assert check(_change_final(operations, lambda elements: MUTATIONS[mutation](elements, at)))


@settings(max_examples=200, deadline=None)
@given(right_histories(), st.data())
def test_every_acknowledged_turn_that_is_gone_is_found(operations, data):
    """Gone as a whole, which no look at what is stored can tell."""
    acknowledged = [one.turn for one in operations if one.kind is Kind.APPEND and one.outcome is Outcome.OK]
    if not acknowledged:
        return
    turn = data.draw(st.sampled_from(acknowledged))
    damaged = _change_final(operations, lambda seen: tuple(element for element in seen if not element.startswith(f"{turn}/")))
    assert "lost-turn" in names(check(damaged))


# The record itself


def test_what_was_recorded_is_what_is_read(tmp_path: Path):
    """Also of a process that was killed before its answer came."""
    with Recorder(tmp_path, "w0") as recorder:
        first = recorder.invoke(Kind.APPEND, "c", turn="a", elements=parts("a"), before=())
        recorder.ok(first, position=1)
        recorder.fail(recorder.invoke(Kind.APPEND, "c", turn="b", elements=parts("b")), "ConversationBusy")
        recorder.invoke(Kind.APPEND, "c", turn="killed", elements=parts("killed"))
    with Recorder(tmp_path, "w1") as recorder:
        recorder.ok(recorder.invoke(Kind.READ, "c", final=True), elements=parts("a"), unfinished=["x"])
    operations = read_histories(tmp_path)
    assert [(one.process, one.kind, one.outcome, one.turn) for one in operations] == [
        ("w0", "append", "ok", "a"),
        ("w0", "append", "fail", "b"),
        ("w0", "append", "unknown", "killed"),
        ("w1", "read", "ok", ""),
    ]
    assert operations[0].before == ()
    assert operations[0].position == 1
    assert operations[2].completed is None
    assert operations[3].elements == A
    assert operations[3].unfinished == frozenset({"x"})
    assert operations[3].final
    assert check(operations) == []


def test_a_process_never_writes_into_another_ones_record(tmp_path: Path):
    """After a kill a name is not used again: what it had asked for is still open."""
    with Recorder(tmp_path, "w0"), pytest.raises(FileExistsError):
        Recorder(tmp_path, "w0")


def test_a_history_can_be_handed_to_elle():
    """Anyone may run another checker over it: list-append, one transaction for a turn."""
    lines = to_edn(Story().append("a").append("b", "q", outcome=Outcome.UNKNOWN).end(*A).operations).splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("{:index 0, :time 10, :process 1, :type :invoke, :f :txn, :value [[:append ")
    assert lines[1].count('[:append "c" "a/') == 3
    assert ":type :invoke" in lines[2]
    assert ":process 2" in lines[2]
    assert lines[3].endswith(':value [[:r "c" nil]]}')
    assert lines[4].endswith(':value [[:r "c" ["a/0" "a/1" "a/2"]]]}')
