"""What counts as evidence that a store lost a history, and what does not."""

from datetime import UTC, datetime, timedelta

import pytest

from convmem import HistoryExpired, HistoryLost, SessionKey
from convmem.evidence import Evidence
from convmem.identifiers import new_id
from convmem.stores.base import TOMBSTONE_LIFE, Entry, Head, Log, StoredEntry

KEY = SessionKey.for_user("ada")


def id_of(age: timedelta) -> str:
    """Return an entry id made so long ago."""
    milliseconds = int((datetime.now(UTC) - age).timestamp() * 1000)
    return f"{milliseconds:012x}7{new_id()[13:]}"


SEEN = Head("life", 3, id_of(timedelta(seconds=5)))


def log_with(n: int, entries: dict[int, str], *, pinned: dict[int, str] | None = None) -> Log:
    """Return a log of the same life with these entries in sight, by position."""
    rows = {n: StoredEntry(n, Entry(name, name, "token", "life"), datetime.now(UTC)) for n, name in {**entries, **(pinned or {})}.items()}
    return Log(Head("life", n, "later"), tuple(rows[n] for n in entries), tuple(rows[n] for n in pinned or {}))


@pytest.mark.parametrize(
    ("log", "lost"),
    [
        (Log(Head("life", 3, SEEN.id)), False),
        (Log(Head("life", 4, "later")), False),
        (log_with(4, {2: "x", 3: SEEN.id, 4: "later"}), False),
        (log_with(4, {3: "another", 4: "later"}), True),
        (log_with(9, {8: "y", 9: "later"}), False),
        (log_with(9, {8: "y", 9: "later"}, pinned={3: "another"}), True),
        (Log(Head("life", 2, "x")), True),
        (Log(Head("life", 3, "another")), True),
        (Log(Head("another", 9, "x")), True),
        (Log(Head()), True),
        (Log(Head(id="mark")), True),
        (Log(Head(id="mark"), ended=frozenset({"life"})), False),
        (Log(Head("another", 1, "x"), ended=frozenset({"life"})), False),
    ],
)
def test_a_head_that_went_back_is_a_loss_and_an_end_that_is_known_is_none(log, lost):
    """Both for what the worker remembers and for what the client says."""
    remembering, claimed = Evidence(), Evidence()
    remembering.remember(KEY, SEEN)
    for error in (remembering.against(KEY, log, remembering.known(KEY)), claimed.against(KEY, log, None, SEEN)):
        assert isinstance(error, HistoryLost) == lost
        if error is not None:
            assert error.revision == log.head.revision


def test_without_evidence_a_conversation_is_new():
    """No guessing."""
    assert Evidence().against(KEY, Log(), None) is None
    assert Evidence().against(KEY, Log(), None, Head()) is None


def test_evidence_older_than_tombstones_are_kept_is_ignored():
    """Nobody knows any more whether it was deleted."""
    old = Head("life", 3, id_of(TOMBSTONE_LIFE + timedelta(days=1)))
    assert Evidence().against(KEY, Log(), None, old) is None


def test_past_its_ttl_it_has_expired():
    """Whether the store still has the row or not."""
    evidence = Evidence(timedelta(hours=1))
    assert isinstance(evidence.against(KEY, Log(), None, Head("life", 3, id_of(timedelta(hours=2)))), HistoryExpired)
    assert isinstance(evidence.against(KEY, Log(), None, Head("life", 3, id_of(timedelta(minutes=2)))), HistoryLost)
    assert isinstance(evidence.against(KEY, Log(Head("life", 3, "x"), expired=True), None, SEEN), HistoryExpired)


def test_it_is_spent_by_whoever_reports_it():
    """Looking does not spend it."""
    evidence = Evidence()
    evidence.remember(KEY, SEEN)
    assert evidence.against(KEY, Log(), evidence.known(KEY)) is not None
    assert evidence.against(KEY, Log(), evidence.known(KEY)) is not None
    evidence.forget(KEY)
    assert evidence.against(KEY, Log(), evidence.known(KEY)) is None


def test_it_is_bounded_and_the_oldest_goes_first():
    """A worker that serves millions keeps a few thousand."""
    evidence = Evidence()
    keys = [SessionKey.for_user(i) for i in range(4200)]
    evidence.remember(keys[0], SEEN)
    for key in keys:
        evidence.remember(key, SEEN)
        evidence.remember(keys[0], SEEN)
    assert evidence.against(keys[0], Log(), evidence.known(keys[0])) is not None
    assert evidence.against(keys[1], Log(), evidence.known(keys[1])) is None
    assert evidence.against(keys[-1], Log(), evidence.known(keys[-1])) is not None
