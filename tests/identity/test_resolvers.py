"""Each resolver reads one place and says what it knows."""

from dataclasses import dataclass
from uuid import UUID

import pytest
from starlette._utils import get_route_path
from starlette.authentication import BaseUser, SimpleUser, UnauthenticatedUser

from convmem.exceptions import ConfigurationError, InvalidIdentity
from convmem.identity import Identity, from_callable, from_header, from_path, from_query, from_user, from_visitor, route_path
from tests.identity.scopes import http


class NamedUser(BaseUser):
    """A user class as Starlette's documentation asks for it."""

    def __init__(self, identity: object, signed_in: object = True) -> None:
        self._identity = identity
        self._signed_in = signed_in

    is_authenticated = property(lambda self: self._signed_in)
    identity = property(lambda self: self._identity)
    display_name = "Somebody"


class ShownUser(BaseUser):
    """A user with a name to show and no identity: BaseUser.identity raises NotImplementedError."""

    is_authenticated = True
    display_name = "Ann"


@dataclass
class DjangoUser:
    """The members of Django's user model that matter here."""

    pk: object
    identity: str = "a field of the app's"
    username: str = "ann"
    is_authenticated: bool = True
    _meta: object = None


@dataclass
class OldStarletteUser(SimpleUser):
    """SimpleUser before it had an identity of its own."""

    username: str

    @property
    def identity(self) -> str:
        raise NotImplementedError


class MethodUser:
    """A user whose is_authenticated is a method, which is true for everybody when it is not called."""

    identity = "42"

    def is_authenticated(self) -> bool:
        return False


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("user", "owner"),
    [
        (SimpleUser("ann"), "user:ann"),
        (OldStarletteUser("ann"), "user:ann"),
        (NamedUser("42"), "user:42"),
        (NamedUser(42), "user:42"),
        (NamedUser(UUID(int=1)), "user:00000000-0000-0000-0000-000000000001"),
        (DjangoUser(7), "user:7"),
    ],
)
async def test_a_signed_in_user_is_the_owner(user, owner):
    """By what identifies the user, which outlives a change of name."""
    assert await from_user()(http(user=user)) == Identity(owner=owner)


@pytest.mark.asyncio
@pytest.mark.parametrize("user", [None, UnauthenticatedUser(), NamedUser("42", signed_in=False), DjangoUser(None, is_authenticated=False)])
async def test_nobody_signed_in_is_nobody(user):
    """Then the next resolver is asked."""
    scope = http()
    assert await from_user()(scope) is None
    assert await from_user()({**scope, "user": user}) is None


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "user",
    [
        ShownUser(),
        BaseUser(),
        MethodUser(),
        DjangoUser(None),
        NamedUser(""),
        NamedUser(None),
        NamedUser(True),
        NamedUser(lambda: "42"),
        NamedUser("42", signed_in=1),
        {"id": 42},
    ],
)
async def test_a_user_that_does_not_say_who_it_is_is_an_error_naming_the_way_out(user):
    """A guess would be somebody else's memory, silence a lost one; a display name is shared by many."""
    with pytest.raises(InvalidIdentity, match="from_callable"):
        await from_user()(http(user=user))


@pytest.mark.asyncio
async def test_a_callable_may_be_sync_or_async_and_say_little_or_much():
    """One lambda is enough for an app with its own accounts."""

    async def later(scope):
        return Identity(tenant="acme")

    assert await from_callable(lambda scope: "42")(http()) == Identity(owner="user:42")
    assert await from_callable(lambda scope: None)(http()) is None
    assert await from_callable(later)(http()) == Identity(tenant="acme")


@pytest.mark.asyncio
@pytest.mark.parametrize("answer", ["", 42, b"42", ("user", "42")])
async def test_a_callable_that_says_anything_else_is_an_error(answer):
    """An empty user id is a bug in the app, and would be one memory for all it happens to."""
    with pytest.raises(InvalidIdentity, match="None for nobody"):
        await from_callable(lambda scope: answer)(http())


@pytest.mark.asyncio
async def test_header_query_and_path_name_a_conversation_and_never_an_owner():
    """What a client names is a choice among its own conversations."""
    scope = http(x_session_id="a", query=b"chat=b", path="/chats/c/messages")
    assert await from_header()(scope) == Identity(session_id="a")
    assert await from_query("chat")(scope) == Identity(session_id="b")
    assert await from_path("/chats/{id}/*")(scope) == Identity(session_id="c")


@pytest.mark.asyncio
async def test_what_did_not_come_names_nothing():
    """Absent is the owner's conversation `default`."""
    scope = http(path="/chats")
    assert await from_header()(scope) is None
    assert await from_query("chat")(scope) is None
    assert await from_path("/chats/{id}")(scope) is None


@pytest.mark.asyncio
@pytest.mark.parametrize("value", ["", " a", "a b", "a\x01", "a.b", "a/b", "ä", "\xa0a", "a" * 129, "a,b", "a\n"])
async def test_an_id_with_other_bytes_is_refused_wherever_it_stands(value):
    """Servers let control bytes and Latin-1 through; an empty id is a broken client, not a wish for `default`."""
    with pytest.raises(InvalidIdentity):
        await from_header()(http((b"x-session-id", value.encode("latin-1"))))
    with pytest.raises(InvalidIdentity):
        await from_query("s")(http(query=b"s=" + "".join(f"%{byte:02x}" for byte in value.encode()).encode()))
    if value and "/" not in value:
        with pytest.raises(InvalidIdentity):
            await from_path("/chats/{id}")(http(path=f"/chats/{value}"))


@pytest.mark.asyncio
@pytest.mark.parametrize("digit", ["\u0661", "\uff11", "\u2160"])
async def test_a_digit_of_another_script_is_no_digit(digit):
    """Python's own tests for digits, and regular expressions over text, let it pass."""
    with pytest.raises(InvalidIdentity):
        await from_path("/chats/{id}")(http(path=f"/chats/{digit}"))


@pytest.mark.asyncio
async def test_an_error_never_repeats_what_the_client_sent():
    """Messages reach logs and pages."""
    with pytest.raises(InvalidIdentity) as caught:
        await from_header()(http(x_session_id="<script>"))
    assert "<script>" not in str(caught.value)


@pytest.mark.asyncio
async def test_a_parameter_that_came_twice_is_an_error():
    """The handler's framework may take the other one."""
    with pytest.raises(InvalidIdentity, match="2 times"):
        await from_query("s")(http(query=b"s=a&s=a"))


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("pattern", "path", "session_id"),
    [
        ("/chats/{id}", "/chats/a", "a"),
        ("/chats/{id}", "/chats/a/b", None),
        ("/chats/{id}", "/xchats/a", None),
        ("/chats/{id}/*", "/chats/a/b/c", "a"),
        ("/chats/{id}/*", "/chats/a", None),
        ("/chats/{id}/*", "/chats/a/b\nc", "a"),
        ("/chats/{id}*", "/chats/a/b", "a"),
        ("/*/chats/{id}", "/v1/eu/chats/a", "a"),
        ("/c.h+t/{id}", "/c.h+t/a", "a"),
        ("/c.h+t/{id}", "/cxhht/a", None),
        ("/chat-{id}.json", "/chat-a.json", "a"),
        ("/chats/{id}", "/chats/", None),
    ],
)
async def test_a_pattern_takes_the_placeholder_and_nothing_else(pattern, path, session_id):
    """`*` matches anything, slashes too; the rest is literal."""
    identity = await from_path(pattern)(http(path=path))
    assert (identity and identity.session_id) == session_id


@pytest.mark.asyncio
async def test_a_mounted_app_compares_below_its_root_path():
    """The pattern must not change with the place where a proxy or a parent mounts the app."""
    assert await from_path("/chats/{id}")(http(path="/api/chats/a", root_path="/api")) == Identity(session_id="a")
    assert await from_path("/chats/{id}")(http(path="/chats/a", root_path="/api")) == Identity(session_id="a")


@pytest.mark.parametrize("root_path", ["", "/", "/api", "/api/", "/ap"])
@pytest.mark.parametrize("path", ["/api", "/api/x", "/apix", "/x", "/", ""])
def test_the_route_path_is_starlettes(path, root_path):
    """Routes and our patterns have to see one path."""
    scope = http(path=path, root_path=root_path)
    assert route_path(scope) == get_route_path(scope)


@pytest.mark.parametrize("pattern", ["", "chats/{id}", "/chats", "/{a}/{b}", "/{}", "/{a b}", "/chats/{id", "/{id}}"])
def test_a_pattern_needs_exactly_one_placeholder(pattern):
    """Said at the start, with an example."""
    with pytest.raises(ConfigurationError, match=r"/chats/\{id\}"):
        from_path(pattern)


def test_a_name_that_cannot_be_sent_is_a_configuration_error():
    """It would never be found, and every conversation would be `default`."""
    for name in ("", "X Session", "X-Session:", "X-Sessiön"):
        with pytest.raises(ConfigurationError):
            from_header(name)
    with pytest.raises(ConfigurationError, match="query:session_id"):
        from_query("")


@pytest.mark.asyncio
async def test_the_visitors_place_knows_nobody_by_itself():
    """The token is read with keys that a resolver does not have."""
    assert await from_visitor()(http()) is None
