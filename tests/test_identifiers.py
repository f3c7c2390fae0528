"""Identifiers sort by the time they were made, and nobody guesses them."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from uuid import UUID

from convmem.identifiers import new_id, new_token, time_of


def test_ids_sort_by_the_time_they_were_made() -> None:
    """Messages of two workers merge in order by their ids alone."""
    made = []
    for _ in range(50):
        made.append(new_id())
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


def test_what_is_no_id_has_no_time() -> None:
    """A client may send any text as a revision."""
    for text in ("", "x" * 32, "0" * 32, new_token(), "g" * 12 + "7" + "0" * 19):
        assert time_of(text) is None


def test_tokens_do_not_repeat() -> None:
    """A lease token is all that tells two attempts apart."""
    assert len({new_token() for _ in range(1000)}) == 1000
