"""The names in an entry: what every store can keep, whatever its columns are made of."""

from __future__ import annotations

from dataclasses import replace

import pytest

from convmem.stores.base import Entry, Head

ENTRY = Entry("id", "turn", "token", "epoch")


@pytest.mark.parametrize("name", ["id", "turn", "token", "epoch"])
@pytest.mark.parametrize("value", ["", "é", "a\x00b", "\ud800", "line\n"])
def test_a_name_that_some_store_could_not_keep_is_refused(name: str, value: str) -> None:
    """An empty token would read as running while nobody holds the lease; NUL and surrogates fail in one store and not in another."""
    with pytest.raises(ValueError, match="printable ASCII"):
        replace(ENTRY, **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "x", "..", "e.x.i", "e.1", "e.\u0661.i", "é.1.i", "e." + "9" * 30 + ".i"])
def test_what_is_no_revision_names_no_head(text: str) -> None:
    """A client may send anything as the revision it saw."""
    assert Head.of_revision(text) is None


def test_a_revision_names_its_head_again() -> None:
    """A client that echoes it is understood, for a conversation that is there and for one that is not."""
    for head in (Head(), Head(id="mark"), Head("epoch", 7, "id")):
        assert Head.of_revision(head.revision) == head
