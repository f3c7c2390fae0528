"""A visitor is known again by a token that nobody else can make, and by nothing else."""

import logging
from datetime import timedelta

import pytest
from hypothesis import given, strategies as st

from convmem.exceptions import InvalidIdentity, StoreUnavailable
from convmem.identity import KeyRing, Rejection, VisitorPolicy
from convmem.identity.visitor import Rejections, TokenStatus, Visitors, VisitorToken, new_visitor_id
from tests.identity.scopes import COOKIE, CROSS_SITE, DAY, NEW, NOW, OLD, Clock, http, sent

VISITOR = new_visitor_id()
OTHER = new_visitor_id()


def visitors(*secrets, clock=None, refresh=None, **policy) -> Visitors:
    return Visitors(VisitorPolicy(**policy), KeyRing(secrets or (NEW,), refresh=refresh), clock=clock or Clock())


TOKEN = visitors().sign(VISITOR)
OTHERS_TOKEN = visitors().sign(OTHER)


async def accepted(read: Visitors, scope) -> VisitorToken:
    """Return the token of a request whose visitor is known."""
    visit = await read.read(scope)
    assert visit.token is not None
    assert visit.status is TokenStatus.ACCEPTED
    return visit.token


def cookie(*values: str, name=COOKIE):
    return http(cookie="; ".join(f"{name}={value}" for value in values))


def test_a_token_is_opaque_and_fits_a_cookie():
    """Letters a cookie, a header and a URL all carry unchanged."""
    assert set(TOKEN) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.")
    assert len(TOKEN) < 128
    assert len({new_visitor_id() for _ in range(100)}) == 100


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("scope", "source"),
    [(cookie(TOKEN), "visitor cookie"), (http(convmem_visitor=TOKEN), "visitor header"), (cookie(TOKEN, TOKEN), "visitor cookie")],
)
async def test_a_signed_token_is_its_visitor(scope, source):
    """In the cookie or in the header, from any worker that has the key."""
    assert (await accepted(visitors(), scope)).visitor_id == VISITOR
    assert (await visitors().read(scope)).source == source


@given(st.data())
def test_a_token_changed_anywhere_never_verifies(data):
    """Also not by another spelling of the same base64 bytes."""
    raw = bytearray(TOKEN.encode())
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != raw[place]))
    assert isinstance(visitors()._open(bytes(raw)), Rejection)


@given(
    st.one_of(st.binary(max_size=200), st.lists(st.sampled_from([*TOKEN.split("."), "", "1"]), max_size=7).map(".".join).map(str.encode))
)
def test_what_was_not_signed_never_verifies(value):
    """Parts of a good token in another order or number are not one."""
    assert value == TOKEN.encode() or isinstance(visitors()._open(value), Rejection)


@pytest.mark.parametrize(
    "value", [f" {TOKEN}", f"{TOKEN}\n", f"{TOKEN}=", f'"{TOKEN}"', TOKEN.replace(".18", ".018"), TOKEN.replace("v1", "v2")]
)
def test_another_spelling_of_a_token_is_not_the_token(value):
    """One token, one text: nothing to smuggle past a comparison."""
    assert isinstance(visitors()._open(value.encode()), Rejection)


def test_a_token_signed_for_another_purpose_is_none():
    """A session id's MAC must not make a visitor."""
    ring = KeyRing([NEW])
    mac = ring.sign("convmem session id", ring.key_id.encode(), VISITOR.encode(), b"1800000000")
    assert visitors()._open(f"v1.{ring.key_id}.{VISITOR}.1800000000.{mac}".encode()) is Rejection.BAD_SIGNATURE


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("scope", "reason"),
    [
        (cookie("garbage"), Rejection.MALFORMED),
        (cookie(""), Rejection.MALFORMED),
        (http(convmem_visitor="NEW"), Rejection.MALFORMED),
        (cookie(TOKEN[:-4] + "AAAA"), Rejection.BAD_SIGNATURE),
        (cookie(visitors(OLD).sign(VISITOR)), Rejection.UNKNOWN_KEY),
        (cookie(visitors(clock=Clock(NOW - 31 * DAY)).sign(VISITOR)), Rejection.EXPIRED),
        (cookie(TOKEN, OTHERS_TOKEN), Rejection.AMBIGUOUS),
        (http(*sent(cookie=f"{COOKIE}={TOKEN}"), convmem_visitor=OTHERS_TOKEN), Rejection.AMBIGUOUS),
    ],
)
async def test_a_token_that_is_not_accepted_is_counted_and_named(scope, reason, caplog):
    """Each is a lost memory with a cause that somebody can mend."""
    read = visitors()
    visit = await read.read(scope)
    assert (visit.token, visit.status) == (None, TokenStatus.REJECTED)
    assert read.rejections.counts == {reason: 1}
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("convmem.identity", logging.WARNING)
    assert record.getMessage().startswith(f"visitor_token_rejected: {reason.value} (1 so far).")
    assert (record.reason, record.count) == (reason.value, 1)


@pytest.mark.asyncio
async def test_the_log_holds_neither_token_nor_visitor(caplog):
    """A token in a log is a way into somebody's memory."""
    with caplog.at_level(logging.DEBUG):
        await visitors().read(cookie(TOKEN, OTHERS_TOKEN))
        await visitors().read(cookie(visitors(OLD).sign(VISITOR)))
    assert caplog.records
    for secret in (VISITOR, OTHER, TOKEN.rpartition(".")[2], TOKEN.split(".")[1]):
        assert secret not in caplog.text
    assert VISITOR not in repr(await visitors().read(cookie(TOKEN)))


def test_a_warning_is_repeated_once_a_minute_with_the_whole_count(caplog):
    """An attacker may not fill the disk, and an operator still sees how many it hits."""
    clock = Clock(0.0)
    rejections = Rejections(clock=clock)
    for clock.now in (0.0, 1.0, 59.0, 60.0):
        rejections.add(Rejection.EXPIRED)
    assert [record.count for record in caplog.records] == [1, 4]


@pytest.mark.asyncio
async def test_one_valid_token_among_others_is_used():
    """Another app's cookie of the same name, or an old one, must not make the visitor forgotten."""
    assert (await accepted(visitors(), cookie("garbage", TOKEN, visitors(OLD).sign(OTHER)))).visitor_id == VISITOR


@pytest.mark.asyncio
@pytest.mark.parametrize("prefix", ["\xa0", "\x85", "\xa0\xa0", "\x1f"])
async def test_a_tossed_cookie_cannot_take_the_place_of_the_host_cookie(prefix):
    """A subdomain may set a name that other parsers trim to ours, with a valid token of the attacker's."""
    assert (await accepted(visitors(), http(cookie=f"{COOKIE}={TOKEN}; {prefix}{COOKIE}={OTHERS_TOKEN}"))).visitor_id == VISITOR


@pytest.mark.asyncio
async def test_a_cookie_without_the_prefix_is_not_read_where_the_settings_say_secure():
    """Any subdomain or plain-HTTP page can set the unprefixed name."""
    assert (await visitors().read(cookie(TOKEN, name="convmem"))).status is TokenStatus.NONE
    assert (await visitors(secure=False).read(cookie(TOKEN, name="convmem"))).status is TokenStatus.ACCEPTED


@pytest.mark.asyncio
async def test_a_token_is_good_under_another_cookie_name():
    """The setting of the name is not part of what was signed, so a token carried over keeps its visitor."""
    assert (await accepted(visitors(cookie_name="chat"), cookie(TOKEN, name="__Host-chat"))).visitor_id == VISITOR


@pytest.mark.asyncio
async def test_a_visitor_header_that_came_twice_is_an_error():
    """Two identity headers are a 400."""
    with pytest.raises(InvalidIdentity):
        await visitors().read(http(*sent(convmem_visitor=TOKEN), *sent(convmem_visitor=TOKEN)))


@pytest.mark.asyncio
async def test_a_rotation_keeps_every_visitor():
    """The visitor id is the owner and the key is not part of it: same person, same address, before and after."""
    token = await accepted(visitors(OLD, NEW), cookie(TOKEN))
    assert token.visitor_id == VISITOR
    assert visitors(OLD, NEW).is_due(token)
    assert not visitors(NEW, OLD).is_due(token)


@pytest.mark.asyncio
async def test_an_unknown_key_is_looked_for_before_the_visitor_is_given_up():
    """Another worker rotated; without the look its visitors are forgotten here."""

    async def record():
        return [NEW, OLD]

    assert (await visitors(OLD, refresh=record).read(cookie(TOKEN))).status is TokenStatus.ACCEPTED


@pytest.mark.asyncio
async def test_a_key_record_that_cannot_be_read_is_an_error_not_a_new_visitor(caplog):
    """An error is never an empty history."""

    async def record():
        raise StoreUnavailable("redis", "load")

    read = visitors(OLD, refresh=record)
    with pytest.raises(StoreUnavailable):
        await read.read(cookie(TOKEN))
    assert not read.rejections.counts
    assert not caplog.records
    good = visitors(OLD).sign(OTHER)
    assert (await accepted(read, cookie(good, TOKEN))).visitor_id == OTHER


@pytest.mark.asyncio
@pytest.mark.parametrize(("days", "due"), [(0, False), (14.9, False), (15.1, True), (29.9, True), (-1, True)])
async def test_a_used_token_is_renewed_after_half_its_life(days, due):
    """Rolling: who comes once a fortnight is never forgotten; a time from a wrong clock is put right."""
    issued = visitors(clock=Clock(NOW - days * DAY)).sign(VISITOR)
    assert visitors().is_due(await accepted(visitors(), cookie(issued))) is due


@pytest.mark.asyncio
async def test_a_shorter_max_age_holds_for_tokens_already_issued():
    """The setting is the promise, not what it was when the token was made."""
    issued = visitors(clock=Clock(NOW - 2 * DAY)).sign(VISITOR)
    assert (await visitors(max_age=timedelta(days=1)).read(cookie(issued))).status is TokenStatus.REJECTED


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("scope", "carrier"),
    [
        (http(), "cookie over https"),
        (http(convmem_visitor="new"), "header"),
        (http(convmem_visitor="new", cookie="a=b"), "cookie over https"),
        (http(convmem_visitor="new", sec_fetch_site="same-origin"), "cookie over https"),
        (http(convmem_visitor="new", sec_fetch_site="cross-site"), None),
        (http(convmem_visitor="garbage"), "header"),
        (http(convmem_visitor=TOKEN), "header"),
        (cookie(TOKEN), "cookie over https"),
        (http(cookie=f"{COOKIE}={TOKEN}", convmem_visitor=TOKEN), "cookie over https"),
        (http(*sent(**{"sec-fetch-site": "cross-site"}), cookie=f"{COOKIE}={TOKEN}"), None),
        (http(*sent(**CROSS_SITE)), None),
    ],
)
async def test_a_token_goes_out_the_way_the_client_keeps_it(scope, carrier):
    """A page's script must not read what HttpOnly hides, and a cross-site answer must not overwrite the visitor's cookie."""
    assert (await visitors().read(scope)).carrier == carrier


def test_auto_marks_the_cookie_secure_on_https_and_never_renames_it() -> None:
    """A name that flips between http and https is a lost memory; a cookie without Secure on https is a leaked one."""
    policy = VisitorPolicy(secure="auto")
    assert policy.full_cookie_name == "convmem"
    assert policy.set_cookie("token", https=True).endswith(b"; Secure")
    assert b"Secure" not in policy.set_cookie("token", https=False)
