"""Keys rotate without anybody being forgotten."""

import asyncio

import pytest
from hypothesis import given, strategies as st

from convmem.exceptions import ConfigurationError, StoreUnavailable
from convmem.identity import KeyRing
from tests.identity.scopes import NEW, OLD, Clock


class Record:
    """A key record in a store, which counts how often it is read."""

    def __init__(self, *secrets: bytes) -> None:
        self.secrets = secrets
        self.reads = 0
        self.down = False

    async def __call__(self):
        self.reads += 1
        await asyncio.sleep(0)
        if self.down:
            raise StoreUnavailable("redis", "load")
        return self.secrets


@pytest.mark.parametrize("secrets", [[], [b"x" * 31], [NEW, b""]])
def test_a_missing_or_short_secret_is_a_configuration_error(secrets):
    """A signature is worth what its key is worth; the start stops, and the sentence names the setting."""
    with pytest.raises(ConfigurationError, match="CONVMEM_SECRET_KEY"):
        KeyRing(secrets)


def test_the_error_and_the_ring_do_not_show_a_secret():
    """Both end up in logs."""
    with pytest.raises(ConfigurationError) as caught:
        KeyRing([b"hunter2"])
    assert "hunter2" not in str(caught.value)
    assert NEW.decode() not in repr(KeyRing([NEW]))


def test_the_first_key_signs_and_all_verify():
    """That is what makes a rotation possible: add the new key in front, take the old one away a month later."""
    old, both, new = KeyRing([OLD]), KeyRing([NEW, OLD]), KeyRing([NEW])
    signed_before = old.sign("p", b"x")
    assert both.verify(signed_before, old.key_id, "p", b"x")
    assert both.key_id == new.key_id
    assert both.sign("p", b"x") == new.sign("p", b"x")
    assert not new.verify(signed_before, old.key_id, "p", b"x")
    assert not both.verify(signed_before, new.key_id, "p", b"x")


def test_a_key_id_belongs_to_the_key_not_to_its_place():
    """Two workers that list the same keys in another order read each other's tokens."""
    assert KeyRing([OLD, NEW]).knows(KeyRing([NEW]).key_id)
    assert KeyRing([OLD]).key_id != KeyRing([NEW]).key_id


@given(st.lists(st.binary(max_size=4), max_size=4), st.lists(st.binary(max_size=4), max_size=4), st.sampled_from(["p", "q"]))
def test_other_parts_or_another_purpose_never_verify(parts, others, purpose):
    """Lengths go into the MAC: a tenant "a" with owner "bc" is not "ab" with "c"."""
    ring = KeyRing([NEW])
    mac = ring.sign("p", *parts)
    assert ring.verify(mac, ring.key_id, purpose, *others) is (parts == others and purpose == "p")


@pytest.mark.parametrize("mac", ["", "é", "\udc80", "A" * 43])
def test_a_mac_of_any_text_is_refused_without_an_error(mac):
    """Nothing a client sends may become a 500."""
    ring = KeyRing([NEW])
    assert not ring.verify(mac, ring.key_id, "p", b"x")


@pytest.mark.asyncio
async def test_an_unknown_key_is_found_in_the_record():
    """Another worker made or rotated the key after this one had started."""
    record = Record(NEW, OLD)
    ring = KeyRing([OLD], refresh=record)
    assert await ring.find(KeyRing([NEW]).key_id)
    assert ring.key_id == KeyRing([NEW]).key_id
    assert ring.knows(KeyRing([OLD]).key_id)


@pytest.mark.asyncio
async def test_a_known_key_costs_no_reading():
    """The usual request must not pay for rotation."""
    record = Record(OLD)
    ring = KeyRing([OLD], refresh=record)
    assert await ring.find(ring.key_id)
    assert record.reads == 0


@pytest.mark.asyncio
async def test_the_record_is_read_at_most_once_in_five_seconds():
    """Anybody can send tokens with invented keys; they must not become load on the store."""
    clock, record = Clock(0.0), Record(OLD)
    ring = KeyRing([OLD], refresh=record, clock=clock)
    for clock.now in (0.0, 1.0, 4.9):
        assert not await ring.find("unknown1")
    assert record.reads == 1
    clock.now = 5.0
    assert not await ring.find("unknown1")
    assert record.reads == 2


@pytest.mark.asyncio
async def test_many_who_ask_at_once_share_one_reading():
    """After a rotation every open tab comes at the same moment."""
    record = Record(NEW)
    ring = KeyRing([OLD], refresh=record)
    assert await asyncio.gather(*(ring.find(KeyRing([NEW]).key_id) for _ in range(20))) == [True] * 20
    assert record.reads == 1


@pytest.mark.asyncio
async def test_one_who_leaves_does_not_stop_the_reading_for_the_others():
    """A client that disconnects cancels its own request only."""
    record = Record(NEW)
    ring = KeyRing([OLD], refresh=record)
    key_id = KeyRing([NEW]).key_id
    leaver, stayer = asyncio.create_task(ring.find(key_id)), asyncio.create_task(ring.find(key_id))
    await asyncio.sleep(0)
    leaver.cancel()
    assert await stayer
    assert record.reads == 1


@pytest.mark.asyncio
async def test_a_record_that_cannot_be_read_is_an_error_until_it_can():
    """A store that is down must not turn known visitors into new ones, also not within the five seconds."""
    clock, record = Clock(0.0), Record(NEW)
    record.down = True
    ring = KeyRing([OLD], refresh=record, clock=clock)
    key_id = KeyRing([NEW]).key_id
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await ring.find(key_id)
    assert record.reads == 1
    record.down, clock.now = False, 5.0
    assert await ring.find(key_id)


def test_a_ring_outlives_the_loop_of_its_last_reading():
    """Test clients and serverless hosts run one app on several loops, and end or freeze them in the middle."""
    key_id = KeyRing([NEW]).key_id

    async def begin(ring):
        reading = asyncio.get_running_loop().create_task(ring.find(key_id))
        await asyncio.sleep(0)
        return reading

    ended = KeyRing([OLD], refresh=Record(NEW))
    asyncio.run(begin(ended))
    assert asyncio.run(ended.find(key_id))

    frozen = KeyRing([OLD], refresh=Record(NEW))
    loop = asyncio.new_event_loop()
    reading = loop.run_until_complete(begin(frozen))
    assert asyncio.run(asyncio.wait_for(frozen.find(key_id), 5))
    assert loop.run_until_complete(reading)
    loop.close()
