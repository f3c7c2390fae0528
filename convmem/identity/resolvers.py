"""Resolvers: each reads one place of a request and says what it knows about whose conversation it is, and which."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from uuid import UUID

from starlette.authentication import SimpleUser
from starlette.types import Scope

from convmem.exceptions import ConfigurationError, InvalidIdentity
from convmem.identity.headers import query_values, single_header
from convmem.keys import valid_session_id

DEFAULT_SESSION_HEADER = "X-Session-ID"

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_PLACEHOLDER = re.compile(r"\{[A-Za-z_][A-Za-z0-9_]*\}")


@dataclass(frozen=True, slots=True)
class Identity:
    """What one resolver knows of a request; it leaves the rest empty for the next one.

    Args:
        owner: Its kind in front: ``user:<identity>`` for somebody who proved who they are.
        session_id: Which of the owner's conversations.
        tenant: Comes only from a resolver of the app's, never from a client's header.
    """

    owner: str | None = None
    session_id: str | None = None
    tenant: str = ""


Resolver = Callable[[Scope], Awaitable[Identity | None]]
Answer = Identity | str | None


@dataclass(frozen=True, slots=True)
class FromUser:
    """See `from_user`."""

    async def __call__(self, scope: Scope) -> Identity | None:
        """Return what `look` does."""
        return self.look(scope)

    def look(self, scope: Scope) -> Identity | None:
        """Return the signed-in user as owner; None when nobody is."""
        owner = user_of(scope)
        return None if owner is None else Identity(owner=owner)


@dataclass(frozen=True, slots=True)
class FromVisitor:
    """See `from_visitor`."""

    async def __call__(self, scope: Scope) -> Identity | None:
        """Return what `look` does."""
        return self.look(scope)

    def look(self, scope: Scope) -> Identity | None:  # noqa: ARG002 - the form of every resolver
        """Return None: by itself it knows nobody."""
        return None


@dataclass(frozen=True, slots=True)
class FromCallable:
    """See `from_callable`."""

    function: Callable[[Scope], Answer | Awaitable[Answer]]

    async def __call__(self, scope: Scope) -> Identity | None:
        """Return what the function says, a string as a user's identity."""
        answer = self.function(scope)
        if inspect.isawaitable(answer):
            answer = await answer
        if answer is None or isinstance(answer, Identity):
            return answer
        if answer and isinstance(answer, str):
            return Identity(owner=f"user:{answer}")
        msg = "The function given to from_callable must return an Identity, a user's identity as a non-empty str, or None for nobody."
        raise InvalidIdentity(msg)


@dataclass(frozen=True, slots=True)
class FromHeader:
    """See `from_header`."""

    name: bytes

    async def __call__(self, scope: Scope) -> Identity | None:
        """Return what `look` does."""
        return self.look(scope)

    def look(self, scope: Scope) -> Identity | None:
        """Return the header's value as session id; None when it did not come."""
        return _which(single_header(scope, self.name), "header")


@dataclass(frozen=True, slots=True)
class FromQuery:
    """See `from_query`."""

    name: bytes

    async def __call__(self, scope: Scope) -> Identity | None:
        """Return what `look` does."""
        return self.look(scope)

    def look(self, scope: Scope) -> Identity | None:
        """Return the parameter's value as session id; None when it did not come."""
        values = query_values(scope, self.name)
        if len(values) > 1:
            msg = f"The query parameter that names the conversation came {len(values)} times; send it once."
            raise InvalidIdentity(msg)
        return _which(values[0] if values else None, "query parameter")


@dataclass(frozen=True, slots=True)
class FromPath:
    """See `from_path`."""

    pattern: re.Pattern[str]

    async def __call__(self, scope: Scope) -> Identity | None:
        """Return what `look` does."""
        return self.look(scope)

    def look(self, scope: Scope) -> Identity | None:
        """Return the part of the path at the placeholder as session id; None when the path has another form."""
        match = self.pattern.fullmatch(route_path(scope))
        return _which(match[1] if match else None, "path")


ClientSource = FromHeader | FromQuery | FromPath
BUILT_IN = (FromUser, FromVisitor, FromHeader, FromQuery, FromPath)
"""Resolvers that wait for nothing: they have a `look`, which takes no coroutine."""


def from_user() -> Resolver:
    """Return a resolver for the signed-in user in ``scope["user"]``: who.

    It reads `identity`, for Starlette's `SimpleUser` the user name, for a Django user `pk`; a display name never. Where
    ``is_authenticated`` is False, it knows nobody. Any other user raises `InvalidIdentity`, which names `from_callable`.
    """
    return FromUser()


def from_visitor() -> Resolver:
    """Return the place of the visitor's signed token, in the cookie or in ``Convmem-Visitor``, among other resolvers: who.

    Only a marker: the token is read with the keys and the cookie settings, which a resolver does not have.
    """
    return FromVisitor()


def from_callable(function: Callable[[Scope], Answer | Awaitable[Answer]]) -> Resolver:
    """Return a resolver for an app's own way to know its callers: who, which, and the tenant.

    Args:
        function: Sync (called directly, so it must not block) or async; takes the scope. A `str` is a user's identity, ``"42"`` becomes
            ``user:42``; None means that it knows nobody; an `Identity` says more.
    """
    return FromCallable(function)


def from_header(name: str = DEFAULT_SESSION_HEADER) -> Resolver:
    """Return a resolver for the session id in a request header: which, never who.

    Raises:
        ConfigurationError: This is not a header's name.
    """
    return FromHeader(header_name(name))


def from_query(name: str) -> Resolver:
    """Return a resolver for the session id in a query parameter: which, never who.

    Raises:
        ConfigurationError: The name is empty.
    """
    if not name:
        msg = "from_query() and CONVMEM_SESSION_FROM=query:NAME need the name of a parameter, such as query:session_id."
        raise ConfigurationError(msg)
    return FromQuery(name.encode())


def from_path(pattern: str) -> Resolver:
    """Return a resolver for the session id in the path: which, never who.

    Args:
        pattern: Compared with the whole path below ``root_path``. ``{name}`` is the id, once, and ends at a slash; ``*`` matches anything,
            slashes too; the rest is literal: ``/chats/{id}/*``.

    Raises:
        ConfigurationError: The pattern does not begin with a slash, or has not exactly one placeholder.
    """
    literals = _PLACEHOLDER.split(pattern)
    if not pattern.startswith("/") or len(literals) != 2 or any(brace in part for part in literals for brace in "{}"):  # noqa: PLR2004 - one cut
        msg = f"The path pattern {pattern!r} needs a slash in front and one placeholder, as in /chats/{{id}}/*."
        raise ConfigurationError(msg)
    before, after = (".*".join(map(re.escape, part.split("*"))) for part in literals)
    return FromPath(re.compile(f"{before}([^/]+){after}", re.DOTALL))


def header_name(name: str) -> bytes:
    """Return a header's name as ASGI delivers it.

    Raises:
        ConfigurationError: It is not a token (RFC 9110 §5.1).
    """
    if _TOKEN.fullmatch(name) is None:
        msg = f"{name!r} is not the name of an HTTP header."
        raise ConfigurationError(msg)
    return name.lower().encode()


def route_path(scope: Scope) -> str:
    """Return the path below ``root_path``, by Starlette's rule: servers put ``root_path`` in front of ``path``, older ones do not."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    below = path.removeprefix(root)
    return below if path == root or below.startswith("/") else path


def user_of(scope: Scope) -> str | None:
    """Return the owner that ``scope["user"]`` stands for; None when nobody is signed in.

    Raises:
        InvalidIdentity: There is a user that does not say who it is.
    """
    user = scope.get("user")
    if user is None:
        return None
    try:
        signed_in = user.is_authenticated
    except (AttributeError, NotImplementedError):
        signed_in = None
    if signed_in is False:
        return None
    identity = _identity_of(scope) if signed_in is True else None
    if isinstance(identity, bool) or not isinstance(identity, str | int | UUID) or identity == "":
        msg = (
            f'scope["user"] is a {type(user).__name__} without a usable `is_authenticated` and `identity`: '
            "say who it is with a resolver, resolvers=[from_callable(lambda scope: ...)]."
        )
        raise InvalidIdentity(msg)
    return f"user:{identity}"


def _identity_of(scope: Scope) -> object:
    user = scope["user"]
    if hasattr(user, "_meta") and hasattr(user, "pk"):
        return user.pk
    try:
        return user.identity
    except (AttributeError, NotImplementedError):
        return user.username if isinstance(user, SimpleUser) else None


def _which(session_id: bytes | str | None, source: str) -> Identity | None:
    if session_id is None:
        return None
    if not valid_session_id(session_id):
        msg = f"The session id in the {source} must be 1 to 128 of A-Z a-z 0-9 _ and -."
        raise InvalidIdentity(msg)
    return Identity(session_id=session_id if isinstance(session_id, str) else session_id.decode("ascii"))
