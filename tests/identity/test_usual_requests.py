"""The short way through a request that is like the one before says what the long way does, whatever else is in the request."""

import pytest
from hypothesis import given, settings, strategies as st

from convmem.identity import VisitorPolicy
from tests.identity.scopes import COOKIE, DAY, NEW, NOW, OLD, Clock, http, reader

TOKENS = [
    reader(secrets=(secret,), clock=Clock(NOW - age))._visitors.sign(name * 43)
    for secret, age, name in [(NEW, 0, "a"), (NEW, 20 * DAY, "a"), (NEW, 29 * DAY, "b"), (NEW, 40 * DAY, "c"), (OLD, 0, "d")]
]
COOKIES = [
    *(f"{COOKIE}={token}".encode() for token in TOKENS),
    f"theme=dark; {COOKIE}={TOKENS[0]}".encode(),
    f"{COOKIE}={TOKENS[0]}; {COOKIE}={TOKENS[2]}".encode(),
    f"{COOKIE}={TOKENS[0]}x".encode(),
    b"theme=dark",
]
HEADERS = st.lists(
    st.one_of(
        st.tuples(st.just(b"cookie"), st.sampled_from(COOKIES)),
        st.tuples(st.just(b"x-session-id"), st.sampled_from([b"one", b"two", b"not one"])),
        st.tuples(st.just(b"convmem-visitor"), st.sampled_from([b"new", TOKENS[0].encode(), TOKENS[2].encode(), b"rubbish"])),
        st.tuples(st.just(b"sec-fetch-site"), st.sampled_from([b"same-origin", b"same-site", b"cross-site", b"none"])),
        st.tuples(st.just(b"accept"), st.just(b"*/*")),
    ),
    max_size=4,
)
POLICIES = [
    {},
    {"trust_session_header": True},
    {"visitor": VisitorPolicy(samesite="strict")},
    {"client_ids": "issued"},
    {"who": ("visitor",)},
]


async def said(read, scope):
    """Return everything a request's answer can depend on."""
    resolved = await read.read(scope)
    order = resolved.order_error({**scope, "user": None})
    facts = (resolved.owner, resolved.session_id, resolved.tenant, resolved.source, resolved.token_status, resolved.needs_existing)
    refusal = None if resolved.refusal is None else (type(resolved.refusal), str(resolved.refusal))
    headers = None if resolved.may_mint else resolved.response_headers(touched=True)
    return facts, refusal, resolved.names_session, resolved.may_mint, resolved.visit, headers, order


@pytest.mark.asyncio
@settings(max_examples=300)
@given(
    policy=st.sampled_from(POLICIES),
    headers=HEADERS,
    user=st.sampled_from([None, None, "ada"]),
    later=st.sampled_from([0, 5, 16, 35]),
    scheme=st.sampled_from(["https", "http"]),
)
async def test_a_request_that_came_before_is_answered_as_it_was(policy, headers, user, later, scheme):
    """A cookie that was accepted before must be refused, renewed or outdone by a header as if it had never been seen."""
    clock = Clock()
    short, long = reader(secrets=(NEW,), clock=clock, **policy), reader(secrets=(NEW,), clock=clock, **policy)
    for cookie in COOKIES:
        await short.read(http((b"cookie", cookie)))
    clock.now += later * DAY
    scope = {**http(*headers, user=user), "scheme": scheme}
    assert await said(short, scope) == await said(long, scope)


@pytest.mark.asyncio
async def test_a_key_that_rotated_out_ends_what_was_remembered():
    """A token that was accepted under a key nobody has any more is an unknown one."""
    kept = [OLD]

    async def refresh():
        return [NEW]

    read = reader(secrets=kept, refresh=refresh)
    scope = http((b"cookie", COOKIES[4]))
    assert (await read.read(scope)).owner == f"visitor:{'d' * 43}"
    assert await read._keyring.find("nobody's") is False
    assert (await read.read(scope)).owner is None


@pytest.mark.asyncio
async def test_what_is_remembered_is_bounded():
    """Cookies are the client's: nobody may fill a worker's memory with them."""
    read = reader()
    for number in range(1500):
        await read.read(http((b"cookie", f"n={number}; {COOKIE}={TOKENS[0]}".encode())))
    await read.read(http((b"cookie", f"n={'x' * 5000}; {COOKIE}={TOKENS[0]}".encode())))
    remembered = read._remembered
    assert len(remembered) <= 1024
    assert max(len(cookies) for cookies, _ in remembered) <= 1024


@pytest.mark.asyncio
async def test_a_request_like_one_before_is_told_the_very_same():
    """Nothing is parsed and no signature computed for it; and nothing can be changed in what others are told."""
    read, scope = reader(), http((b"cookie", COOKIES[0]))
    first = await read.read(scope)
    assert await read.read(dict(scope)) is first
    owner, key = first.owner, first.key
    assert first.mint() == owner
    assert (first.key, first.source, first.minted) == (key, "visitor cookie", False)
    assert await read.read({**scope, "scheme": "http" if scope["scheme"] == "https" else "https"}) is not first
