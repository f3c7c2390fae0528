"""The names in an entry: what every store can keep, whatever its columns are made of."""

from __future__ import annotations

import inspect
import pickle
from dataclasses import astuple, fields, replace

import pytest

from convmem.stores.base import Entry, Head, Kind

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


def test_an_entry_read_back_is_the_entry() -> None:
    """A store makes it without the checks; nothing else may tell the two apart."""
    whole = Entry("id", "turn", "token", "epoch", b"[1]", 1, Kind.EDIT, True, 4, 3, (1,), (2,), 7, "key")
    read = Entry.read(*astuple(whole))
    assert (read, hash(read), repr(read), type(read)) == (whole, hash(whole), repr(whole), Entry)
    assert pickle.loads(pickle.dumps(read)) == whole
    assert replace(read, id="other") == replace(whole, id="other")


def test_type_checkers_refuse_to_change_what_is_shared() -> None:
    """A head or an entry is handed around and never copied. Mypy fails here when one of these comments is no longer needed."""
    head, entry = Head(), replace(ENTRY)
    head.n = 1  # type: ignore[misc]
    entry.id = "changed"  # type: ignore[misc]


def test_an_entry_is_read_back_in_the_order_of_its_fields() -> None:
    """Stores pass columns by position."""
    assert list(inspect.signature(Entry.read).parameters) == [each.name for each in fields(Entry)]


def test_an_entry_that_is_read_back_is_not_checked_again() -> None:
    """What an older version has stored is still there, whatever is refused now."""
    assert Entry.read("", "é", "t", "e", b"", 0, Kind.TURN, False, 0, 0).turn == "é"
