"""Ids that were handed out are known again; others are not."""

import pytest
from hypothesis import given, strategies as st

from convmem.exceptions import ConfigurationError, InvalidIdentity
from convmem.identity import KeyRing, new_session_id, verify_issued
from convmem.identity.session_ids import is_issued
from convmem.keys import valid_session_id
from tests.identity.scopes import NEW, OLD

RING = KeyRing([NEW])
ISSUED = new_session_id("user:42", "acme", keyring=RING, issued=True)


@pytest.mark.parametrize("issued", [False, True])
def test_every_id_is_new_and_valid(issued):
    """It has to pass the check that every id from a client passes."""
    ids = {new_session_id("user:42", keyring=RING, issued=issued) for _ in range(50)}
    assert len(ids) == 50
    assert all(valid_session_id(each) for each in ids)


def test_an_issued_id_verifies_for_its_owner_and_tenant_only():
    """Handed to somebody else it names nothing."""
    assert verify_issued(ISSUED, "user:42", "acme", RING)
    assert not verify_issued(ISSUED, "user:43", "acme", RING)
    assert not verify_issued(ISSUED, "user:42", "", RING)
    assert not verify_issued(ISSUED, "user:42a", "cme", RING)


def test_an_issued_id_does_not_show_its_owner():
    """Ids stand in addresses and in logs of proxies."""
    assert "quarante" not in new_session_id("user:quarante-deux", "acme", keyring=RING, issued=True)


@given(st.integers(0, len(ISSUED) - 1), st.sampled_from("ABCabc019_-"))
def test_an_id_changed_anywhere_does_not_verify(place, letter):
    """The MAC covers the id's own random part as well, else one id would be a pattern for many."""
    changed = ISSUED[:place] + letter + ISSUED[place + 1 :]
    assert verify_issued(changed, "user:42", "acme", RING) is (changed == ISSUED)


@given(st.text(alphabet="ABCabc019_-", min_size=1, max_size=128))
def test_an_invented_id_does_not_verify(session_id):
    """Whatever its length."""
    assert not verify_issued(session_id, "user:42", "acme", RING)


@pytest.mark.parametrize(
    "session_id",
    ["", ISSUED[32:], ISSUED[:32], ISSUED * 2, "x" + ISSUED, ISSUED + "x"],
    ids=["nothing", "its end", "its beginning", "twice", "more before it", "more behind it"],
)
def test_a_part_of_an_id_does_not_verify(session_id):
    """A MAC without the id it is for says nothing."""
    assert not verify_issued(session_id, "user:42", "acme", RING)


def test_ids_survive_a_rotation_while_the_old_key_is_in_the_ring():
    """All keys verify; the first signs."""
    assert verify_issued(ISSUED, "user:42", "acme", KeyRing([OLD, NEW]))
    assert not verify_issued(ISSUED, "user:42", "acme", KeyRing([OLD]))


@pytest.mark.asyncio
async def test_an_id_signed_with_a_key_of_another_worker_is_known_after_a_look_at_the_record():
    """The worker that handed it out had the new key first."""

    async def record():
        return [NEW, OLD]

    assert await is_issued(ISSUED, "user:42", "acme", KeyRing([OLD], refresh=record))


def test_signing_needs_a_key_and_every_id_a_usable_owner():
    """Said when the id is made, not when it is used."""
    with pytest.raises(ConfigurationError, match="keyring"):
        new_session_id("user:42", issued=True)
    with pytest.raises(InvalidIdentity, match="for_user"):
        new_session_id("42")
