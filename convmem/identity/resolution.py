"""Who and which, joined: every resolver looks at one request, and one answer comes out."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from convmem.exceptions import (
    ConvmemError,
    CrossSite,
    ForeignOrigin,
    IdentityOrderError,
    InvalidIdentity,
    PrincipalConflict,
    SessionNotTrusted,
)
from convmem.identity.resolvers import BUILT_IN, ClientSource, FromHeader, FromUser, FromVisitor, Identity, Resolver, header_name, user_of
from convmem.identity.session_ids import is_issued
from convmem.identity.sites import is_foreign_origin, is_own_site, withholds_cookie
from convmem.identity.visitor import Rejection, TokenStatus, Visit, Visitors, new_visitor_id
from convmem.keys import DEFAULT_SESSION, SessionKey

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.types import Scope

    from convmem.identity.keyring import KeyRing
    from convmem.identity.policy import IdentityPolicy

_NO_VISIT = Visit()
_REMEMBERED = 1024
_LONGEST_REMEMBERED = 1024
_NOTHING = Identity()
_UNREADABLE_USER = "a user who cannot be named"


@dataclass(slots=True)
class Resolved:
    """Whose conversation one request means, and which; and what its answer has to say about that.

    There is an owner, or `refusal` says why there is none, or a visitor may be minted. Only `mint` changes it, and only where there is
    no owner: one with an owner is shared by all requests it is the answer to.

    Attributes:
        owner: Its kind in front, as in ``user:42``; None when nobody is known (yet).
        key: The address that owner, session id and tenant make; None without an owner.
        session_id: A valid one; ``default`` when the request names none.
        tenant: Empty when the app has none.
        source: What found the owner: ``user``, ``callable``, ``visitor cookie``, ``visitor header``, ``session header``; ``new visitor``
            after `mint`; else ``none``.
        token_status: Whether a visitor's token came and was accepted; ``none`` too where it was not looked at, because a user is signed in.
        needs_existing: The id was not handed out to this owner, so only an existing conversation may have it (``CLIENT_IDS=issued``).
        refusal: To be raised when the handler touches the conversation; `owner` is None then.
        visit: What the request says about its visitor.
        names_session: Whether `session_id` is what the request says; not when the refusal is about that, or came before it was read.
    """

    owner: str | None = field(default=None, repr=False)
    session_id: str = field(default=DEFAULT_SESSION, repr=False)
    tenant: str = field(default="", repr=False)
    source: str = "none"
    token_status: TokenStatus = TokenStatus.NONE
    needs_existing: bool = False
    refusal: ConvmemError | None = None
    names_session: bool = True
    _visitors: Visitors | None = field(default=None, repr=False)
    visit: Visit = field(default=_NO_VISIT, repr=False)
    _vary: bytes = field(default=b"Cookie", repr=False)
    _user_before: str | None = field(default=None, repr=False)
    _watches_user: bool = field(default=False, repr=False)
    key: SessionKey | None = field(default=None, init=False, repr=False)
    _newcomer: str = field(default="", init=False, repr=False)
    _minted: str | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Make the address, or choose who a new visitor would be: handlers may touch a conversation from several threads at once.

        Raises:
            InvalidIdentity: They make no address.
        """
        if self.owner is not None:
            self.key = SessionKey(self.owner, self.session_id, self.tenant)
        elif self.refusal is None:
            self._newcomer = new_visitor_id()

    @property
    def may_mint(self) -> bool:
        """Whether the request has no owner and touching its conversation makes a new visitor."""
        return self.owner is None and self.refusal is None

    @property
    def minted(self) -> bool:
        """Whether `mint` made the owner: the conversation is known to be new, and the response has to carry the token."""
        return self._minted is not None

    def mint(self) -> str:
        """Return the owner, made now when there was none: a new visitor, whom the response headers introduce.

        Called again, or by two threads at once, it returns the same one.

        Raises:
            ConvmemError: The refusal.
        """
        if self.refusal is not None:
            raise self.refusal
        if self.owner is None:
            self._minted = self._newcomer
            self.source = "new visitor"
            self.owner = f"visitor:{self._newcomer}"
            self.key = SessionKey(self.owner, self.session_id, self.tenant)
        return self.owner

    def response_headers(self, *, touched: bool) -> list[tuple[bytes, bytes]]:
        """Return the headers to append to the response.

        When the handler did not touch the conversation, that is at most the news that the visitor's token was not accepted.

        They are appended, never put in the place of the app's: caches read several ``Vary`` and ``Cache-Control`` fields as one list, and
        the strictest directive holds (RFC 9110 §5.3, RFC 9111 §4.2.1).
        """
        rejected = [(b"convmem-identity", b"rejected")] if self.token_status is TokenStatus.REJECTED else []
        if not touched:
            return rejected
        headers = [(b"vary", self._vary), (b"cache-control", b"private, no-store"), *rejected]
        if self._minted is not None and not rejected:
            headers.append((b"convmem-identity", b"new"))
        token = self.visit.token
        visitor_id = self._minted
        if visitor_id is None and token is not None and self._visitors is not None and self._visitors.is_due(token):
            visitor_id = token.visitor_id
        if visitor_id is not None and self._visitors is not None and self.visit.carrier is not None:
            headers.append(self._visitors.carry(visitor_id, self.visit.carrier))
        return headers

    def order_error(self, scope: Scope, *, owner: str | None = None) -> IdentityOrderError | None:
        """Return the error to raise when a user signed in after the owner was resolved; None when all is well.

        Ask before anything is stored, and before `refusal` is raised: the mistake may be its cause.

        Args:
            scope: The one that was passed to the app, as it is now.
            owner: Whose conversation it is, when ``load(owner=...)`` said so; None takes the resolved owner.
        """
        if not self._watches_user or scope.get("user") is None:
            return None
        now, owner = _user_now(scope), owner or self.owner
        if now in (None, self._user_before, owner):
            return None
        if now == _UNREADABLE_USER and owner is not None and owner.startswith("user:"):
            return None
        msg = (
            'scope["user"] was signed in inside the app, after convmem had resolved whose conversation this is. Starlette runs the '
            "middleware that was added last first: call app.add_middleware(ConversationMiddleware, ...) before "
            "app.add_middleware(AuthenticationMiddleware, ...). Where the framework signs in inside the app, use "
            'load="deferred" and await conversation.load(owner=...).'
        )
        return IdentityOrderError(msg)


@dataclass(frozen=True, slots=True)
class _Claim:
    """What the resolvers said, before the rules about what is missing."""

    owner: str | None
    source: str
    session_id: str | None
    in_session_header: bool
    tenant: str
    visit: Visit


class IdentityReader:
    """Resolves requests under one policy; built once and shared by all requests.

    Args:
        policy: Where to look.
        keyring: Signs and verifies visitors and issued ids.
        clock: Seconds since the epoch.
    """

    def __init__(self, policy: IdentityPolicy, keyring: KeyRing, *, clock: Callable[[], float] = time.time) -> None:
        self._policy = policy
        self._keyring = keyring
        self._visitors = Visitors(policy.visitor, keyring, clock=clock)
        self._who = policy.owner_resolvers()
        self._which = policy.session_resolvers()
        self._trusted = FromHeader(header_name(policy.session_header))
        self._knows_visitors = any(isinstance(each, FromVisitor) for each in self._who)
        self._watches_user = any(isinstance(each, FromUser) for each in self._who)
        self._vary = _vary(policy, (*self._who, *self._which), knows_visitors=self._knows_visitors)
        self._usual = policy.who == ("user", "visitor") and not policy.resolvers and policy.session_from == ("header",)
        self._telling = frozenset((self._trusted.name, self._visitors.header))
        self._remembered: dict[tuple[bytes, str], Resolved] = {}

    @property
    def rejected_tokens(self) -> dict[Rejection, int]:
        """How many visitors' tokens were not accepted since the start, by reason."""
        return dict(self._visitors.rejections.counts)

    async def read(self, scope: Scope) -> Resolved:
        """Return whose conversation this HTTP or WebSocket request means, and which.

        What is wrong with the request is not raised but returned as `refusal`, so that it costs nothing where no conversation is touched:
        `InvalidIdentity` (a malformed or doubled id, two sources that differ, nobody known), `PrincipalConflict`, `SessionNotTrusted`,
        `CrossSite`, and any other `ConvmemError` of a resolver or of reading the key record. Other exceptions of a resolver pass through.
        """
        cookies = self._all_there_is(scope) if self._usual else None
        if cookies is None:
            return await self._read_anew(scope)
        known = self._remembered.get(cookies)
        if known is not None and known.visit.token is not None and self._visitors.still_accepts(known.visit.token):
            return known
        resolved = await self._read_anew(scope)
        if resolved.visit.token is not None and len(cookies[0]) <= _LONGEST_REMEMBERED:
            self._remembered[cookies] = resolved
            while len(self._remembered) > _REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
        return resolved

    async def _read_anew(self, scope: Scope) -> Resolved:
        try:
            return await self._read(scope)
        except ConvmemError as error:
            return self._resolved(scope, refusal=error, names_session=False)

    def _all_there_is(self, scope: Scope) -> tuple[bytes, str] | None:
        """Return all that says who makes a request, where that is one ``Cookie`` header and the scheme, as in nearly every request.

        What was made of them before is good for every request that has the same; None where anything else counts too.
        """
        if scope.get("user") is not None:
            return None
        cookies = None
        for name, value in scope["headers"]:
            if name == b"cookie":
                if cookies is not None:
                    return None
                cookies = value
            elif name in self._telling or (name == b"sec-fetch-site" and value == b"cross-site"):
                return None
        return None if cookies is None else (cookies, scope.get("scheme", ""))

    async def needs_existing(self, owner: str | None, session_id: str, tenant: str) -> bool:
        """Return whether only an existing conversation may have this id: under ``CLIENT_IDS=issued``, when it was not handed out.

        Raises:
            ConvmemError: The key record could not be read.
        """
        if self._policy.client_ids == "own" or session_id == DEFAULT_SESSION:
            return False
        return owner is None or not await is_issued(session_id, owner, tenant, self._keyring)

    def refuses_id(self, scope: Scope, resolved: Resolved, session_id: str) -> ConvmemError | None:
        """Return why a request without an owner may not name this conversation, as in a body a handler has read; None when it may."""
        if session_id == DEFAULT_SESSION:
            return None
        return self._refusal(scope, _Claim(None, "none", session_id, in_session_header=False, tenant=resolved.tenant, visit=resolved.visit))

    def refuses_origin(self, scope: Scope) -> ForeignOrigin | None:
        """Return why a WebSocket may not use any conversation, because of the page that opened it; None when it may."""
        if not is_foreign_origin(scope, self._policy.websocket_origins):
            return None
        return ForeignOrigin(
            "A page of another origin opened this WebSocket, and could read what the browser's user said: open it from a page of this "
            "origin, or name the page's origin in CONVMEM_WEBSOCKET_ORIGINS, such as https://app.example. Behind a proxy, have it pass the "
            "Host header on."
        )

    async def _read(self, scope: Scope) -> Resolved:
        claim = await self._claim(scope)
        owner, source = claim.owner, claim.source
        session_id = DEFAULT_SESSION if claim.session_id is None else claim.session_id
        trusted = owner is None and claim.in_session_header and self._policy.trust_session_header
        if trusted:
            owner, source = f"header:{session_id}", "session header"
        if owner is None and (refusal := self._refusal(scope, claim)):
            return self._resolved(scope, session_id=session_id, tenant=claim.tenant, visit=claim.visit, refusal=refusal)
        if owner is None:
            SessionKey("visitor:new", session_id, claim.tenant)
        return self._resolved(
            scope,
            owner=owner,
            session_id=session_id,
            tenant=claim.tenant,
            source=source,
            needs_existing=not trusted and await self.needs_existing(owner, session_id, claim.tenant),
            visit=claim.visit,
        )

    async def _claim(self, scope: Scope) -> _Claim:
        """Run the resolvers: all who can name a principal first, the visitor's token only when none did and its turn in the order comes."""
        said = [await _ask(resolve, scope) for resolve in self._who]
        owners = {place: identity.owner for place, identity in enumerate(said) if identity.owner is not None}
        principals = {place: owner for place, owner in owners.items() if owner.startswith("user:")}
        if len(set(principals.values())) > 1:
            msg = 'Two different principals are signed in: the resolvers and scope["user"] name different users.'
            raise PrincipalConflict(msg)
        session_id, in_session_header = await self._session(scope, said)
        tenant = next((identity.tenant for identity in said if identity.tenant), "")
        visit = _NO_VISIT
        place = next((place for place, resolve in enumerate(self._who) if isinstance(resolve, FromVisitor)), None)
        if place is not None and not principals and place < min(owners, default=len(said)):
            visit = await self._visitors.read(scope)
            if visit.token is not None:
                return _Claim(f"visitor:{visit.token.visitor_id}", visit.source, session_id, in_session_header, tenant, visit)
        if not owners:
            return _Claim(None, "none", session_id, in_session_header, tenant, visit)
        first = min(principals or owners)
        source = "user" if isinstance(self._who[first], FromUser) else "callable"
        return _Claim(owners[first], source, session_id, in_session_header, tenant, visit)

    async def _session(self, scope: Scope, said: list[Identity]) -> tuple[str | None, bool]:
        """Return the session id, and whether it came in the trusted header. What the app says beats what the client says."""
        named_by_app = None
        named_by_client = set()
        in_header = False
        for resolve, identity in zip(self._who, said, strict=True):
            if isinstance(resolve, ClientSource) and identity.session_id is not None:
                named_by_client.add(identity.session_id)
                in_header |= resolve == self._trusted
            elif named_by_app is None:
                named_by_app = identity.session_id
        for resolve in self._which:
            identity = await _ask(resolve, scope)
            if identity.session_id is not None:
                named_by_client.add(identity.session_id)
                in_header |= resolve == self._trusted
        if named_by_app is not None:
            return named_by_app, False
        if len(named_by_client) > 1:
            msg = "The request names two different conversations (header, query parameter or path); name one."
            raise InvalidIdentity(msg)
        return next(iter(named_by_client), None), in_header

    def _refusal(self, scope: Scope, claim: _Claim) -> ConvmemError | None:
        """Return why no visitor is minted for a request without an owner; None when one may be."""
        header = self._policy.session_header
        if not self._knows_visitors:
            if claim.session_id is None:
                return InvalidIdentity("Nobody is signed in, and CONVMEM_IDENTITY does not allow visitors: sign in, or add visitor to it.")
            return SessionNotTrusted(
                "A session id does not say whose conversation it is: sign in; or, for services behind their own gateway, "
                f"send it in {header} and set CONVMEM_TRUST_SESSION_HEADER=true."
            )
        cookie, visitor = self._policy.visitor.full_cookie_name, self._policy.visitor
        if withholds_cookie(scope, visitor.samesite):
            return CrossSite(
                f"This is a cross-site request and the cookie {cookie} has SameSite={visitor.samesite.capitalize()}, so the browser does "
                "not send it: call from the same site; or set CONVMEM_COOKIE_SAMESITE=none, allow CORS credentials "
                "(Access-Control-Allow-Credentials) and fetch with credentials: 'include'."
            )
        if claim.session_id is not None and not claim.visit.asks_for_new and not is_own_site(scope):
            return SessionNotTrusted(
                f"A session id does not say whose conversation it is: send the cookie {cookie} back; or, without cookies, send "
                f"{visitor.header}: new once and then the token of the answer; or, for services behind their own gateway, "
                f"send the id in {header} and set CONVMEM_TRUST_SESSION_HEADER=true."
            )
        return None

    def _resolved(
        self,
        scope: Scope,
        *,
        owner: str | None = None,
        session_id: str = DEFAULT_SESSION,
        tenant: str = "",
        source: str = "none",
        needs_existing: bool = False,
        refusal: ConvmemError | None = None,
        names_session: bool = True,
        visit: Visit = _NO_VISIT,
    ) -> Resolved:
        return Resolved(
            owner,
            session_id,
            tenant,
            source,
            visit.status,
            needs_existing,
            refusal,
            names_session,
            _visitors=self._visitors,
            visit=visit,
            _vary=self._vary,
            _user_before=_user_now(scope) if self._watches_user else None,
            _watches_user=self._watches_user,
        )


async def _ask(resolve: Resolver, scope: Scope) -> Identity:
    answer: object = resolve.look(scope) if isinstance(resolve, BUILT_IN) else await resolve(scope)
    if answer is None:
        return _NOTHING
    if isinstance(answer, Identity) and isinstance(answer.owner, str | None):
        return answer
    msg = "A resolver returned neither None nor an Identity with a string as owner; from_callable() makes one of a user's identity."
    raise InvalidIdentity(msg)


def _user_now(scope: Scope) -> str | None:
    try:
        return user_of(scope)
    except InvalidIdentity:
        return _UNREADABLE_USER


def _vary(policy: IdentityPolicy, resolvers: Sequence[Resolver], *, knows_visitors: bool) -> bytes:
    names = ["Cookie"]
    if knows_visitors:
        names.append(policy.visitor.header)
    if "header" in policy.session_from:
        names.append(policy.session_header)
    listed = {name.lower().encode() for name in names}
    names += [each.name.decode("ascii") for each in resolvers if isinstance(each, FromHeader) and each.name not in listed]
    return ", ".join(names).encode("ascii")
