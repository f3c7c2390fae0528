"""Identifiers sort by the time they were made, and nobody guesses them."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from convmem.identifiers import new_id, new_message_id, new_token, time_of


@pytest.mark.parametrize("new", [new_id, new_message_id])
def test_ids_sort_by_the_time_they_were_made(new: Callable[[], str]) -> None:
    """Messages of two workers merge in order by their ids alone."""
    made = []
    for _ in range(50):
        made.append(new())
        time.sleep(0.0001)
    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_an_id_is_a_uuid_of_version_7_and_tells_its_time() -> None:
    """Evidence of a lost history is dated by the id of the entry it saw."""
    identifier = new_id()
    assert (UUID(identifier).version, UUID(identifier).variant) == (7, "specified in RFC 4122")
    told = time_of(identifier)
    assert told is not None
    assert abs(datetime.now(UTC) - told) < timedelta(seconds=5)


def test_an_id_of_a_message_is_the_time_it_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """In ISO 8601, in UTC, with as many digits in the first microsecond of a year as in its last one."""
    for moment in (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 12, 31, 23, 59, 59, 999_999, UTC)):
        nanoseconds = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000 + 999
        monkeypatch.setattr(time, "time_ns", lambda nanoseconds=nanoseconds: nanoseconds)
        made = {new_message_id() for _ in range(100)}
        assert {(len(identifier), datetime.fromisoformat(identifier)) for identifier in made} == {(38, moment)}
        assert len(made) == 100


def test_what_is_no_id_has_no_time() -> None:
    """A client may send any text as a revision."""
    for text in ("", "x" * 32, "0" * 32, new_token(), "g" * 12 + "7" + "0" * 19):
        assert time_of(text) is None


def test_tokens_do_not_repeat() -> None:
    """A lease token is all that tells two attempts apart."""
    assert len({new_token() for _ in range(1000)}) == 1000
