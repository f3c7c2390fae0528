"""The names in an entry: what every store can keep, whatever its columns are made of."""

from __future__ import annotations

import copy
import pickle
from dataclasses import asdict, fields, replace

import pytest

from convmem.identifiers import new_id, new_token
from convmem.stores.base import Entry, Head, Kind
from convmem.stores.packing import pack_facts, unpack_entry

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


def kept(entry: Entry) -> Entry:
    """Return an entry as a store hands it out that has kept it packed."""
    return unpack_entry(bytes(7) + pack_facts(entry) + entry.body, 1, entry.epoch).entry


WHOLE = [
    Entry(new_id(), new_id(), new_token(), new_token(), b"[1]", 1, Kind.EDIT, True, 4, 3, (1,), (2,), 7, "key"),
    Entry("id", "turn", "token", "epoch", b"[1]", 1, Kind.RESET, False, 400, 3),
    replace(ENTRY, id="1" * 32, turn="1" * 32, token=new_token(), body=b"[1,2]", count=200, closing=True, turns=70_000, start=129),
]


@pytest.mark.parametrize("whole", WHOLE, ids=["rare", "named", "alone"])
def test_an_entry_read_back_is_the_entry(whole: Entry) -> None:
    """Whatever is looked at first: a store may unpack no more than that."""
    for name in (each.name for each in fields(Entry)):
        assert getattr(kept(whole), name) == getattr(whole, name), name
    assert kept(whole) == whole == kept(whole)
    assert hash(kept(whole)) == hash(whole)
    for again in (pickle.loads(pickle.dumps(kept(whole))), copy.copy(kept(whole)), copy.deepcopy(kept(whole)), replace(kept(whole))):
        assert again == whole
    assert replace(kept(whole), id="other") == replace(whole, id="other") != whole
    assert asdict(kept(whole)) == asdict(whole)
    with pytest.raises(AttributeError, match="mood"):
        kept(whole).mood  # type: ignore[attr-defined]  # noqa: B018 - that it is refused is the point


def test_type_checkers_refuse_to_change_what_is_shared() -> None:
    """A head or an entry is handed around and never copied. Mypy fails here when one of these comments is no longer needed."""
    head, entry = Head(), replace(ENTRY)
    head.n = 1  # type: ignore[misc]
    entry.id = "changed"  # type: ignore[misc]


def test_an_entry_that_is_read_back_is_not_checked_again() -> None:
    """What an older version has stored is still there, whatever is refused now."""
    old = replace(ENTRY)
    old.turn = "\u00e9"  # type: ignore[misc]
    assert kept(old).turn == "\u00e9"
