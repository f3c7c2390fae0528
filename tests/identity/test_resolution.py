"""Who and which, joined: the rules of one request."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser, UnauthenticatedUser
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from convmem.exceptions import (
    CrossSite,
    IdentityOrderError,
    InvalidIdentity,
    PrincipalConflict,
    SessionNotTrusted,
    StoreUnavailable,
)
from convmem.identity import (
    Identity,
    KeyRing,
    Rejection,
    VisitorPolicy,
    from_callable,
    from_header,
    from_user,
    from_visitor,
    new_session_id,
)
from tests.identity.scopes import BROWSER, COOKIE, CROSS_SITE, DAY, NEW, NOW, OLD, Clock, answer, cookie_of, http, reader, sent, token_of


async def refused(read, scope):
    """Return the error that touching the conversation raises, after seeing that no owner was left beside it."""
    resolved = await read.read(scope)
    assert resolved.owner is None
    assert not resolved.may_mint
    with pytest.raises(type(resolved.refusal)):
        resolved.mint()
    return resolved.refusal


# who


@pytest.mark.asyncio
async def test_a_user_reaches_the_default_conversation():
    """The usual case of an app with accounts."""
    resolved = await reader().read(http(user="42"))
    assert (resolved.owner, resolved.session_id, resolved.tenant, resolved.source) == ("user:42", "default", "", "user")
    assert not resolved.may_mint
    assert resolved.refusal is None


@pytest.mark.asyncio
async def test_a_visitor_is_minted_once_and_comes_back_as_the_same():
    """Any worker with the key knows the visitor again, also another process with its own reader."""
    first = await reader().read(http())
    assert (first.owner, first.may_mint, first.source) == (None, True, "none")
    owner = first.mint()
    assert first.mint() == owner == first.owner
    assert (first.minted, first.may_mint, first.source) == (True, False, "new visitor")
    assert owner.startswith("visitor:")
    again = await reader().read(http(cookie=cookie_of(first)))
    assert (again.owner, again.source, again.token_status, again.minted) == (owner, "visitor cookie", "accepted", False)


@pytest.mark.asyncio
async def test_threads_that_touch_at_once_share_one_new_visitor():
    """A sync handler may use the conversation from a pool: two visitors would be a turn stored where the cookie does not lead."""
    threads = 4
    start = threading.Barrier(threads)

    def touch(resolved):
        start.wait(5)
        return resolved.mint()

    with ThreadPoolExecutor(threads) as pool:
        for _ in range(20):
            resolved = await reader().read(http())
            assert set(pool.map(touch, [resolved] * threads)) == {resolved.owner}
            assert (await reader().read(http(cookie=cookie_of(resolved)))).owner == resolved.owner


@pytest.mark.asyncio
async def test_authenticated_beats_anonymous_and_the_token_is_ignored(caplog):
    """In every order: signing in must not leave the person with a visitor's memory, nor a bad cookie stand in the way."""
    visitor, token = await token_of(reader())
    for who in (("user", "visitor"), ("visitor", "user")):
        read = reader(who=who)
        for presented in (token, "garbage"):
            resolved = await read.read(http(user="42", convmem_visitor=presented))
            assert (resolved.owner, resolved.source, resolved.token_status) == ("user:42", "user", "none")
            assert set(answer(resolved)) == {"vary", "cache-control"}
        assert (await read.read(http(convmem_visitor=token))).owner == visitor
        assert not read.rejected_tokens
    assert not caplog.records


@pytest.mark.asyncio
async def test_two_different_principals_are_refused_and_two_equal_ones_are_one():
    """One of them is not the person whose memory this would be."""
    read = reader(resolvers=[from_callable(lambda scope: "42")])
    error = await refused(read, http(user="43"))
    assert isinstance(error, PrincipalConflict)
    assert error.status == 401
    assert "42" not in str(error)
    resolved = await read.read(http(user="42"))
    assert (resolved.owner, resolved.source) == ("user:42", "callable")


@pytest.mark.asyncio
async def test_the_first_to_fill_a_field_wins():
    """Resolvers run in order, the app's own before the setting's, and each adds what is still open."""
    read = reader(
        resolvers=[
            from_callable(lambda scope: Identity(tenant="acme")),
            from_callable(lambda scope: Identity(owner="user:42", session_id="first", tenant="other")),
            from_callable(lambda scope: Identity(session_id="second")),
        ],
    )
    resolved = await read.read(http(x_session_id="third"))
    assert (resolved.owner, resolved.session_id, resolved.tenant) == ("user:42", "first", "acme")


@pytest.mark.asyncio
async def test_an_anonymous_owner_of_the_apps_keeps_its_place_in_the_order():
    """Where the app puts from_visitor() in front of its own anonymous owners, an accepted token comes first."""
    visitor, token = await token_of(reader())
    own = from_callable(lambda scope: Identity(owner="visitor:own"))
    scope = http(convmem_visitor=token)
    assert (await reader(resolvers=[own]).read(scope)).owner == "visitor:own"
    front = reader(who=("user",), resolvers=[from_visitor(), own])
    assert (await front.read(scope)).owner == visitor
    assert (await front.read(http())).owner == "visitor:own"
    assert (await front.read(http(user="42"))).owner == "user:42"
    assert (await reader(resolvers=[own]).read(http(user="42"))).source == "user"


@pytest.mark.asyncio
async def test_the_tenant_comes_from_a_resolver_only():
    """A client that could name it would choose whose data it sees."""
    resolved = await reader().read(http(user="42", x_tenant="acme", tenant="acme", query=b"tenant=acme"))
    assert resolved.tenant == ""


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "identity",
    [
        Identity(owner="42"),
        Identity(owner=42),  # type: ignore[arg-type]
        Identity(owner="user:"),
        Identity(owner="user:42", session_id=""),
        Identity(owner="user:42", session_id="a b"),
        Identity(owner="user:42", tenant="x" * 513),
        Identity(tenant="x" * 513),
        "42",
    ],
)
async def test_what_a_resolver_says_is_checked(identity):
    """It becomes part of an address; a wrong form is an error, not another conversation."""

    async def resolver(scope):
        return identity

    assert isinstance(await refused(reader(resolvers=[resolver]), http()), InvalidIdentity)


@pytest.mark.asyncio
async def test_an_error_of_a_resolver_is_kept_for_the_first_touch():
    """A path that uses no conversation works while the user database is down; a bug of the app's is not hidden."""

    def down(scope):
        raise StoreUnavailable("users", "load")

    def broken(scope):
        raise KeyError("sub")

    assert isinstance(await refused(reader(resolvers=[from_callable(down)]), http()), StoreUnavailable)
    with pytest.raises(KeyError):
        await reader(resolvers=[from_callable(broken)]).read(http())


@pytest.mark.asyncio
async def test_a_user_that_cannot_be_named_is_never_a_visitor():
    """Falling back would give a signed-in person an anonymous memory."""
    assert isinstance(await refused(reader(), http(user={"id": 42})), InvalidIdentity)


@pytest.mark.asyncio
async def test_without_visitors_nobody_is_minted():
    """CONVMEM_IDENTITY=user: the answer says that nobody is signed in, and a token is not even looked at."""
    _, token = await token_of(reader())
    read = reader(who=("user",))
    assert "CONVMEM_IDENTITY" in str(await refused(read, http(convmem_visitor=token)))
    error = await refused(read, http(x_session_id="a", **BROWSER))
    assert isinstance(error, SessionNotTrusted)
    assert "cookie" not in str(error)


# which


@pytest.mark.asyncio
async def test_every_owner_may_name_conversations():
    """Users and visitors alike; the id is a choice among the owner's own."""
    visitor, token = await token_of(reader())
    user = await reader().read(http(user="42", x_session_id="a"))
    assert (user.owner, user.session_id, user.needs_existing) == ("user:42", "a", False)
    resolved = await reader().read(http(convmem_visitor=token, x_session_id="a"))
    assert (resolved.owner, resolved.session_id) == (visitor, "a")


@pytest.mark.asyncio
async def test_two_identity_headers_are_refused():
    """For signed-in users too, and when they are equal."""
    for name in ("x_session_id", "convmem_visitor"):
        error = await refused(reader(), http(*sent(**{name: "a"}), *sent(**{name: "a"})))
        assert type(error) is InvalidIdentity
        assert error.status == 400
    assert isinstance(await refused(reader(), http(*sent(x_session_id="a"), *sent(x_session_id="b"), user="42")), InvalidIdentity)


@pytest.mark.asyncio
async def test_two_sources_that_differ_are_refused_and_two_that_agree_are_one():
    """Whichever won, a proxy or a handler might have looked at the other."""
    read = reader(session_from=("header", "query:s", "path:/chats/{id}"))
    assert isinstance(await refused(read, http(user="42", x_session_id="a", query=b"s=b")), InvalidIdentity)
    assert isinstance(await refused(read, http(user="42", path="/chats/a", query=b"s=b")), InvalidIdentity)
    resolved = await read.read(http(user="42", x_session_id="a", query=b"s=a", path="/chats/a"))
    assert resolved.session_id == "a"
    own = reader(resolvers=[from_header("X-Chat")])
    assert isinstance(await refused(own, http(user="42", x_session_id="a", x_chat="b")), InvalidIdentity)


@pytest.mark.asyncio
async def test_a_header_that_is_no_source_is_not_read():
    """SESSION_FROM says where to look."""
    resolved = await reader(session_from=("query:s",)).read(http(user="42", x_session_id="not an id"))
    assert resolved.session_id == "default"


@pytest.mark.asyncio
async def test_the_session_header_may_have_another_name():
    """X-Session-ID is only its default."""
    assert (await reader(session_header="X-Chat").read(http(user="42", x_chat="a", x_session_id="b"))).session_id == "a"


# a session id without an owner


@pytest.mark.asyncio
@pytest.mark.parametrize("site", ["same-origin", "same-site", "none"])
async def test_a_browser_on_our_site_gets_a_visitor_and_its_conversation(site):
    """It will keep the cookie; the id never leads to what somebody else stored under it."""
    resolved = await reader().read(http(x_session_id="a", sec_fetch_site=site))
    assert resolved.may_mint
    assert resolved.session_id == "a"
    assert resolved.mint().startswith("visitor:")


@pytest.mark.asyncio
async def test_an_id_alone_is_not_trusted_and_the_answer_names_the_three_ways():
    """A client that keeps no cookie would be a new visitor each time: forgetting without a word."""
    error = await refused(reader(), http(x_session_id="a"))
    assert (type(error), error.status, error.code) == (SessionNotTrusted, 400, "session_id_not_trusted")
    for way in (COOKIE, "Convmem-Visitor: new", "CONVMEM_TRUST_SESSION_HEADER"):
        assert way in str(error)
    for named in (http(query=b"s=a"), http(path="/chats/a"), http(x_session_id="default")):
        assert isinstance(await refused(reader(session_from=("header", "query:s", "path:/chats/{id}")), named), SessionNotTrusted)


@pytest.mark.asyncio
async def test_a_rejected_token_does_not_make_an_id_trusted():
    """Else anybody could send garbage to be let in, and a client would lose its memory without an error."""
    error = await refused(reader(), http(x_session_id="a", convmem_visitor="garbage"))
    assert isinstance(error, SessionNotTrusted)


@pytest.mark.asyncio
async def test_a_client_that_asks_to_be_new_may_name_its_conversation():
    """It has said that it keeps the token."""
    resolved = await reader().read(http(x_session_id="a", convmem_visitor="new"))
    assert resolved.may_mint
    assert resolved.session_id == "a"


@pytest.mark.asyncio
async def test_a_trusted_header_is_its_own_owner():
    """For services behind their own gateway: two ids are two owners, and neither is a user or a visitor."""
    read = reader(trust_session_header=True, client_ids="issued")
    resolved = await read.read(http(x_session_id="a"))
    assert (resolved.owner, resolved.session_id, resolved.source, resolved.needs_existing) == ("header:a", "a", "session header", False)
    assert (await read.read(http(x_session_id="b", **BROWSER))).owner == "header:b"
    assert (await read.read(http(x_session_id="b", **CROSS_SITE))).owner == "header:b"
    assert (await read.read(http(x_session_id="a", user="42"))).owner == "user:42"
    assert (await read.read(http())).may_mint


@pytest.mark.asyncio
async def test_trust_covers_the_header_only():
    """A gateway sets or strips a header; query and path come from the client as they are."""
    read = reader(trust_session_header=True, session_from=("header", "query:s"))
    assert isinstance(await refused(read, http(query=b"s=a")), SessionNotTrusted)
    assert (await read.read(http(query=b"s=a", x_session_id="a"))).owner == "header:a"
    other = reader(trust_session_header=True, resolvers=[from_header("X-Chat")])
    assert isinstance(await refused(other, http(x_chat="a")), SessionNotTrusted)


# ids that were handed out


@pytest.mark.asyncio
async def test_under_issued_only_our_own_ids_may_be_new():
    """Any other id has to exist already; `default` always does."""
    read = reader(client_ids="issued")
    issued = new_session_id("user:42", keyring=KeyRing([NEW]), issued=True)
    assert not (await read.read(http(user="42", x_session_id=issued))).needs_existing
    assert (await read.read(http(user="43", x_session_id=issued))).needs_existing
    assert (await read.read(http(user="42", x_session_id="invented"))).needs_existing
    assert not (await read.read(http(user="42"))).needs_existing
    assert not (await read.read(http(user="42", x_session_id="default"))).needs_existing
    assert (await read.read(http(x_session_id="invented", **BROWSER))).needs_existing
    assert not (await reader().read(http(user="42", x_session_id="invented"))).needs_existing


# cross-site


@pytest.mark.asyncio
async def test_where_the_browser_withheld_the_cookie_nobody_is_minted():
    """The visitor has a cookie; a new one in the answer would overwrite it and lose the memory."""
    resolved = await reader().read(http(method="POST", **CROSS_SITE))
    error = resolved.refusal
    assert isinstance(error, CrossSite)
    assert (error.status, error.code) == (403, "identity_cross_site")
    for word in ("CORS credentials", "CONVMEM_COOKIE_SAMESITE", COOKIE):
        assert word in str(error)
    assert "set-cookie" not in answer(resolved)
    assert "convmem-visitor" not in answer(resolved)
    for more in ({"x_session_id": "a"}, {"convmem_visitor": "new"}, {"cookie": f"{COOKIE}=garbage"}):
        resolved = await reader().read(http(method="POST", **CROSS_SITE, **more))
        assert isinstance(resolved.refusal, CrossSite)
        assert "set-cookie" not in answer(resolved)


@pytest.mark.asyncio
async def test_a_link_from_another_site_still_opens_the_chat():
    """Under lax a top-level GET carries the cookie, so its absence means a new visitor; under none every request may."""
    navigation = {**CROSS_SITE, "sec_fetch_mode": "navigate"}
    assert (await reader().read(http(**navigation))).may_mint
    assert isinstance(await refused(reader(visitor=VisitorPolicy(samesite="strict")), http(**navigation)), CrossSite)
    assert (await reader(visitor=VisitorPolicy(samesite="none")).read(http(method="POST", **CROSS_SITE))).may_mint


@pytest.mark.asyncio
async def test_users_and_header_tokens_work_across_sites():
    """The rule is about cookies that were withheld, not about who asks."""
    visitor, token = await token_of(reader())
    assert (await reader().read(http(user="42", method="POST", **CROSS_SITE))).owner == "user:42"
    resolved = await reader().read(http(convmem_visitor=token, method="POST", **CROSS_SITE))
    assert resolved.owner == visitor
    assert "set-cookie" not in answer(resolved)


# the answer


@pytest.mark.asyncio
async def test_an_untouched_conversation_leaves_no_trace_in_the_answer():
    """Pages that need no memory stay cacheable and set no cookie."""
    for scope in (http(), http(user="42"), http(convmem_visitor="new")):
        assert (await reader().read(scope)).response_headers(touched=False) == []


@pytest.mark.asyncio
async def test_a_token_that_was_not_accepted_is_said_on_every_answer():
    """A front end that looks at any of its requests learns why the chat is somebody else's."""
    resolved = await reader().read(http(cookie=f"{COOKIE}=garbage"))
    assert resolved.response_headers(touched=False) == [(b"convmem-identity", b"rejected")]


@pytest.mark.asyncio
async def test_a_minted_visitor_is_announced_with_its_cookie():
    """A front end can tell that it talks to somebody new."""
    resolved = await reader().read(http())
    assert set(answer(resolved)) == {"vary", "cache-control"}
    resolved.mint()
    headers = answer(resolved)
    assert headers["convmem-identity"] == "new"
    assert headers["set-cookie"].startswith(f"{COOKIE}=v1.")
    assert headers["cache-control"] == "private, no-store"
    assert headers["vary"] == "Cookie, Convmem-Visitor, X-Session-ID"


@pytest.mark.asyncio
async def test_vary_names_every_header_that_was_considered():
    """A cache in front must not answer one with what another may see."""
    resolved = await reader(resolvers=[from_header("X-Chat")], session_from=("query:s",)).read(http(user="42"))
    assert answer(resolved)["vary"] == "Cookie, Convmem-Visitor, x-chat"
    assert answer(await reader(who=("user",)).read(http(user="42")))["vary"] == "Cookie, X-Session-ID"


@pytest.mark.asyncio
async def test_a_rejected_token_is_said_and_the_visitor_is_new(caplog):
    """Never quietly somebody new: a header, a count and a warning."""
    read = reader()
    resolved = await read.read(http(cookie=f"{COOKIE}=garbage"))
    assert (resolved.owner, resolved.token_status, resolved.may_mint) == (None, "rejected", True)
    assert resolved.mint() != (await read.read(http())).mint()
    assert answer(resolved)["convmem-identity"] == "rejected"
    assert "set-cookie" in answer(resolved)
    assert read.rejected_tokens == {Rejection.MALFORMED: 1}
    assert len(caplog.records) == 1


@pytest.mark.asyncio
async def test_a_client_without_cookies_gets_its_token_in_the_header_and_only_it():
    """With no-store, and never where a page's script could read it."""
    resolved = await reader().read(http(convmem_visitor="new"))
    owner = resolved.mint()
    headers = answer(resolved)
    assert "set-cookie" not in headers
    assert headers["convmem-identity"] == "new"
    assert "no-store" in headers["cache-control"]
    assert (await reader().read(http(convmem_visitor=headers["convmem-visitor"]))).owner == owner
    for more in (BROWSER, {"cookie": "a=b"}):
        resolved = await reader().read(http(convmem_visitor="new", **more))
        resolved.mint()
        assert "convmem-visitor" not in answer(resolved)
        assert "set-cookie" in answer(resolved)


@pytest.mark.asyncio
async def test_asking_to_be_new_does_not_throw_a_known_visitor_away():
    """A page that sends the header with every request would forget with every request."""
    first = await reader().read(http())
    owner = first.mint()
    resolved = await reader().read(http(cookie=cookie_of(first), convmem_visitor="new"))
    assert resolved.owner == owner
    assert "set-cookie" not in answer(resolved)


@pytest.mark.asyncio
async def test_a_token_rolls_the_way_it_came_and_keeps_its_visitor():
    """After half its life or under a new key; a cookie as a cookie, a header as a header, and only on a touched conversation."""
    early = reader(clock=Clock(NOW - 20 * DAY))
    first = await early.read(http())
    owner = first.mint()
    cookie, (header_owner, token) = cookie_of(first), await token_of(early)

    resolved = await reader().read(http(cookie=cookie))
    assert resolved.response_headers(touched=False) == []
    headers = answer(resolved)
    assert "convmem-identity" not in headers
    assert (await reader(clock=Clock(NOW + 29 * DAY)).read(http(cookie=headers["set-cookie"].partition(";")[0]))).owner == owner

    headers = answer(await reader().read(http(convmem_visitor=token)))
    assert "set-cookie" not in headers
    assert (await reader(clock=Clock(NOW + 29 * DAY)).read(http(convmem_visitor=headers["convmem-visitor"]))).owner == header_owner

    assert "set-cookie" not in answer(await early.read(http(cookie=cookie)))


@pytest.mark.asyncio
async def test_a_rotation_moves_every_visitor_to_the_new_key():
    """After it the old key can go, and the address is the same all the while."""
    before = await reader(secrets=[OLD]).read(http())
    owner = before.mint()
    during = await reader(secrets=[NEW, OLD]).read(http(cookie=cookie_of(before)))
    assert during.owner == owner
    after = await reader(secrets=[NEW]).read(http(cookie=cookie_of(during)))
    assert (after.owner, after.token_status) == (owner, "accepted")
    assert (await reader(secrets=[NEW]).read(http(cookie=cookie_of(before)))).token_status == "rejected"


@pytest.mark.asyncio
async def test_a_key_record_that_cannot_be_read_refuses_instead_of_forgetting():
    """The store is down, the key is unknown: a 503 on touch, and no cookie that overwrites the good one."""

    async def record():
        raise StoreUnavailable("redis", "load")

    before = await reader(secrets=[NEW]).read(http())
    before.mint()
    resolved = await reader(secrets=[OLD], refresh=record).read(http(cookie=cookie_of(before)))
    assert isinstance(resolved.refusal, StoreUnavailable)
    assert "set-cookie" not in answer(resolved)


@pytest.mark.asyncio
async def test_what_is_printed_of_a_resolved_request_shows_no_id():
    """It will be logged by somebody."""
    visitor, token = await token_of(reader())
    resolved = await reader().read(http(convmem_visitor=token, x_session_id="secret-chat"))
    for text in (visitor.partition(":")[2], token, "secret-chat"):
        assert text not in repr(resolved)


# the order of middlewares


class Backend(AuthenticationBackend):
    """Signs in who sends a name."""

    async def authenticate(self, conn):
        name = conn.headers.get("authorization")
        return (AuthCredentials(), SimpleUser(name)) if name else None


class Wrapper:
    """What a middleware around an app does with the reader: resolve before, ask about the order after."""

    def __init__(self, app, read) -> None:
        self.app = app
        self.read = read

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            scope = {**scope}
            resolved = await self.read.read(scope)
            await self.app(scope, receive, send)
            self.error, self.resolved = resolved.order_error(scope), resolved
            return
        await self.app(scope, receive, send)


def app() -> Starlette:
    return Starlette(routes=[Route("/chat", lambda request: PlainTextResponse("ok"))])


def test_a_user_who_signs_in_after_the_owner_was_resolved_is_an_order_error():
    """Through Starlette's own middleware: the outer one cannot see whom the inner one signs in."""
    wrapped = Wrapper(AuthenticationMiddleware(app(), backend=Backend()), reader())
    client = TestClient(wrapped)
    client.get("/chat", headers={"authorization": "42"})
    assert isinstance(wrapped.error, IdentityOrderError)
    for way in ("add_middleware", 'load="deferred"', "load(owner=...)"):
        assert way in str(wrapped.error)
    client.get("/chat")
    assert wrapped.error is None


def test_in_the_right_order_there_is_no_error():
    """Then the owner is the user who signed in."""
    wrapped = Wrapper(app(), reader())
    client = TestClient(AuthenticationMiddleware(wrapped, backend=Backend()))
    client.get("/chat", headers={"authorization": "42"})
    assert (wrapped.error, wrapped.resolved.owner) == (None, "user:42")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("before", "after", "owner", "wrong"),
    [
        (None, None, None, False),
        (None, UnauthenticatedUser(), None, False),
        (None, SimpleUser("42"), None, True),
        (UnauthenticatedUser(), SimpleUser("42"), None, True),
        (SimpleUser("42"), SimpleUser("42"), None, False),
        (SimpleUser("42"), SimpleUser("43"), None, True),
        (SimpleUser("42"), None, None, False),
        (None, SimpleUser("42"), "user:42", False),
        (None, SimpleUser("42"), "user:43", True),
        (None, {"id": 42}, None, True),
        (None, {"id": 42}, "user:42", False),
        ({"id": 42}, {"id": 42}, None, False),
    ],
)
async def test_the_order_is_wrong_when_the_owner_is_not_who_is_signed_in_now(before, after, owner, wrong):
    """An owner named by load(owner=...) is compared too; a user object nobody can read is trusted to be that owner."""
    resolved = await reader().read(http(user=before))
    error = resolved.order_error({**http(), "user": after}, owner=owner)
    assert (error is not None) is wrong


@pytest.mark.asyncio
async def test_an_app_that_does_not_ask_for_users_is_not_told_about_them():
    """CONVMEM_IDENTITY=visitor is a decision."""
    resolved = await reader(who=("visitor",)).read(http())
    assert resolved.order_error(http(user="42")) is None
    resolved = await reader(who=("visitor",), resolvers=[from_user()]).read(http())
    assert resolved.order_error(http(user="42")) is not None


@pytest.mark.asyncio
async def test_the_order_error_can_be_asked_for_beside_a_refusal():
    """The missing user may be why there is no owner, and is the better sentence."""
    resolved = await reader().read(http(x_session_id="a"))
    assert isinstance(resolved.refusal, SessionNotTrusted)
    assert resolved.order_error(http(user="42")) is not None


@pytest.mark.asyncio
async def test_a_websocket_is_resolved_by_the_same_rules():
    """Its handshake carries the same headers and has no method."""
    first = await reader().read(http())
    owner = first.mint()
    scope = {**http(cookie=cookie_of(first), x_session_id="a"), "type": "websocket"}
    del scope["method"]
    resolved = await reader().read(scope)
    assert (resolved.owner, resolved.session_id) == (owner, "a")
