"""The address of a conversation: nobody else's can be written in it."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from convmem import InvalidIdentity, SessionKey
from convmem.keys import valid_session_id

TEXT = st.text(st.characters(), min_size=1, max_size=40)


@given(TEXT, TEXT, TEXT, TEXT)
def test_different_owners_and_tenants_have_different_addresses(owner: str, tenant: str, other_owner: str, other_tenant: str) -> None:
    """A separator in a name must not make "a:b" + "c" and "a" + "b:c" one address."""
    mine, theirs = SessionKey(f"user:{owner}", tenant=tenant), SessionKey(f"user:{other_owner}", tenant=other_tenant)
    assert (mine == theirs) == (mine.path == theirs.path) == ((owner, tenant) == (other_owner, other_tenant))
    assert all(part.isascii() and part.isprintable() and "/" not in part for part in mine.path)


@pytest.mark.parametrize("owner", ["", "42", "user:", "admin:1", "User:1", ":1", "convmem:signing-keys"])
def test_an_owner_says_its_kind(owner: str) -> None:
    """A bare id could be a user's in one place and a visitor's in another; the reserved kind is out of reach."""
    with pytest.raises(InvalidIdentity, match="for_user"):
        SessionKey(owner)


@pytest.mark.parametrize("session_id", ["", "a b", "a/b", "a.b", "é", "a" * 129, "a\n", "\x00", "\uff11", "a\ud800"])
def test_a_session_id_has_no_other_characters(session_id: str) -> None:
    """It stands in URLs, headers and logs."""
    assert not valid_session_id(session_id)
    with pytest.raises(InvalidIdentity):
        SessionKey.for_user("42", session_id)


def test_the_parts_are_strings_of_a_bounded_length() -> None:
    """A number or None would be somebody else's conversation named "None"; a document is no id."""
    wrong: tuple[dict[str, object], ...] = ({"owner": None}, {"owner": "user:1", "session_id": None}, {"owner": "user:1", "tenant": 7})
    for parts in wrong:
        with pytest.raises(InvalidIdentity, match="must be a string"):
            SessionKey(**parts)  # type: ignore[arg-type]
    for long in ({"owner": "user:" + "é" * 300}, {"owner": "user:1", "tenant": "t" * 513}):
        with pytest.raises(InvalidIdentity, match="longer than 512 bytes"):
            SessionKey(**long)


def test_nothing_of_an_address_is_in_its_repr() -> None:
    """A key that lands in a log or a traceback must not show whose it is."""
    key = SessionKey.for_user("ada@example.org", "secret-project", tenant="acme")
    assert not any(part in repr(key) + str(key) for part in ("ada", "secret-project", "acme"))
    assert key.digest in repr(key)
    assert SessionKey.for_user("ada@example.org", "secret-project", tenant="acme").digest == key.digest
