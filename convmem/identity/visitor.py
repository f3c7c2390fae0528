"""The anonymous visitor: a random id in a signed token, carried by a cookie or by the ``Convmem-Visitor`` header.

A token is ``v1.<key id>.<visitor id>.<issued at>.<mac>``. The MAC covers the purpose, the key id, the visitor id and the time, but not
the name of the cookie: one token is good in the cookie and in the header, and renaming the cookie or switching ``CONVMEM_COOKIE_SECURE``
does not make a token that an app carries over worthless. What is given up: two apps that share a secret accept each other's visitors,
each in its own store. The visitor id is the owner, so no address depends on a key; a key that rotates out makes tokens unreadable, not
conversations.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

from convmem.identity.headers import cookie_values, header_values, single_header
from convmem.identity.resolvers import header_name
from convmem.identity.sites import names_site, withholds_cookie

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from starlette.types import Scope

    from convmem.identity.keyring import KeyRing
    from convmem.identity.policy import VisitorPolicy

logger = logging.getLogger("convmem.identity")

_PURPOSE = "convmem visitor v1"
_TOKEN = re.compile(rb"v1\.([A-Za-z0-9_-]{8})\.([A-Za-z0-9_-]{43})\.([1-9][0-9]{0,11})\.([A-Za-z0-9_-]{43})")
_CLOCK_SKEW = 300
_WARN_EVERY_SECONDS = 60.0
_ASK_FOR_NEW = b"new"

Carrier = Literal["cookie", "cookie over https", "header"]


@dataclass(frozen=True, slots=True)
class VisitorToken:
    """A token whose signature was verified."""

    visitor_id: str
    issued_at: int
    key_id: str


class TokenStatus(StrEnum):
    """Whether a request's token counts: none came (or none was looked at), one was accepted, or some came and none was."""

    NONE = "none"
    ACCEPTED = "accepted"
    REJECTED = "rejected"


class Rejection(StrEnum):
    """Why a token was not accepted: the name in the warning and in the count."""

    MALFORMED = "malformed"
    UNKNOWN_KEY = "unknown_key"
    BAD_SIGNATURE = "bad_signature"
    EXPIRED = "expired"
    AMBIGUOUS = "ambiguous"


_ADVICE = {
    Rejection.MALFORMED: "Not one of ours; another app may set a cookie of the same name: change CONVMEM_COOKIE_NAME.",
    Rejection.UNKNOWN_KEY: "Its key is not in CONVMEM_SECRET_KEY; all workers need the same keys, old ones after the new one.",
    Rejection.BAD_SIGNATURE: "It was changed after it was signed.",
    Rejection.EXPIRED: "It is older than CONVMEM_COOKIE_MAX_AGE; the visitor was away for longer than that.",
    Rejection.AMBIGUOUS: "One request brought two valid visitors; two cookies of the same name, or a cookie and a header that differ.",
}


class Rejections:
    """Counts the tokens that were not accepted, and warns of each reason at most once a minute.

    Attributes:
        counts: How many, by reason, since the start.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.counts: Counter[Rejection] = Counter()
        self._clock = clock
        self._warned_at: dict[Rejection, float] = {}

    def add(self, reason: Rejection) -> None:
        """Count one; the warning names the reason and the count, never the token."""
        self.counts[reason] += 1
        now = self._clock()
        if now - self._warned_at.get(reason, -_WARN_EVERY_SECONDS) < _WARN_EVERY_SECONDS:
            return
        self._warned_at[reason] = now
        count = self.counts[reason]
        logger.warning(
            "visitor_token_rejected: %s (%d so far). %s",
            reason.value,
            count,
            _ADVICE[reason],
            extra={"reason": reason.value, "count": count},
        )


@dataclass(frozen=True, slots=True)
class Visit:
    """What a request says about its visitor, and how an answer may hand out a token.

    Args:
        token: The one that was accepted; None when none came or none was.
        source: ``visitor cookie`` or ``visitor header``, where the accepted token came from.
        status: ``rejected`` when tokens came and none was accepted.
        asks_for_new: The client sent ``Convmem-Visitor: new``.
        carrier: Where an answer's token goes; None where the answer must not carry one.
    """

    token: VisitorToken | None = field(default=None, repr=False)
    source: str = "none"
    status: TokenStatus = TokenStatus.NONE
    asks_for_new: bool = False
    carrier: Carrier | None = None


class Visitors:
    """Reads visitors' tokens from requests, and makes new ones.

    Attributes:
        rejections: What was not accepted so far.
    """

    def __init__(self, policy: VisitorPolicy, keyring: KeyRing, *, clock: Callable[[], float] = time.time) -> None:
        self.policy = policy
        self.rejections = Rejections()
        self.header = header_name(policy.header)
        self._cookie = policy.full_cookie_name.encode("ascii")
        self._keyring = keyring
        self._clock = clock
        self._max_age = policy.max_age.total_seconds()

    async def read(self, scope: Scope) -> Visit:
        """Return the visitor whose token came with this request.

        Exactly one valid visitor, however often, is accepted; two different ones are none. A token that does not verify is never adopted.

        Raises:
            InvalidIdentity: The header came twice.
            ConvmemError: A token has a key nobody knows here, and the key record could not be read.
        """
        header = single_header(scope, self.header)
        cookies = cookie_values(scope, self._cookie)
        asks_for_new = header == _ASK_FOR_NEW
        presented = cookies if header is None or asks_for_new else [*cookies, header]
        if not presented:
            return Visit(asks_for_new=asks_for_new, carrier=self._carrier(scope, header))
        opened = await self._open_all(presented)
        reason = _rejection(opened.values())
        if reason is not None:
            self.rejections.add(reason)
            return Visit(status=TokenStatus.REJECTED, asks_for_new=asks_for_new, carrier=self._carrier(scope, header))
        if token := _newest(opened[cookie] for cookie in cookies):
            renewed_by = None if withholds_cookie(scope, self.policy.samesite) else _cookie_over(scope)
            return Visit(token, "visitor cookie", TokenStatus.ACCEPTED, asks_for_new, renewed_by)
        return Visit(_newest(opened.values()), "visitor header", TokenStatus.ACCEPTED, asks_for_new, "header")

    def still_accepts(self, token: VisitorToken) -> bool:
        """Return whether a token that was accepted before would be now: its key is still there, and it has not grown too old."""
        return self._keyring.knows(token.key_id) and self._clock() - token.issued_at <= self._max_age

    def sign(self, visitor_id: str) -> str:
        """Return a token for this visitor, issued now and signed by the first key."""
        issued_at, key_id = int(self._clock()), self._keyring.key_id
        mac = self._keyring.sign(_PURPOSE, *_signed(key_id, visitor_id, issued_at))
        return f"v1.{key_id}.{visitor_id}.{issued_at}.{mac}"

    def is_due(self, token: VisitorToken) -> bool:
        """Return whether a token has to be issued anew: past half its life, from a clock ahead of ours, or signed by an older key."""
        age = self._clock() - token.issued_at
        return token.key_id != self._keyring.key_id or not -_CLOCK_SKEW <= age <= self._max_age / 2

    def carry(self, visitor_id: str, carrier: Carrier) -> tuple[bytes, bytes]:
        """Return the response header that hands this visitor a new token."""
        token = self.sign(visitor_id)
        if carrier == "header":
            return self.header, token.encode("ascii")
        return b"set-cookie", self.policy.set_cookie(token, https=carrier == "cookie over https")

    def _carrier(self, scope: Scope, header: bytes | None) -> Carrier | None:
        """Return how a new visitor gets its token; in the header only where no page's script can read what HttpOnly hides."""
        if withholds_cookie(scope, self.policy.samesite):
            return None
        if header is not None and not names_site(scope) and not header_values(scope, b"cookie"):
            return "header"
        return _cookie_over(scope)

    async def _open_all(self, presented: list[bytes]) -> dict[bytes, VisitorToken | Rejection]:
        opened = {value: self._open(value) for value in presented}
        if Rejection.UNKNOWN_KEY not in opened.values() or _newest(opened.values()):
            return opened
        for value in opened:
            await self._look_for_key(value)
        return {value: self._open(value) for value in presented}

    def _open(self, value: bytes) -> VisitorToken | Rejection:
        match = _TOKEN.fullmatch(value)
        if match is None:
            return Rejection.MALFORMED
        key_id, visitor_id, issued_at, mac = (part.decode("ascii") for part in match.groups())
        token = VisitorToken(visitor_id, int(issued_at), key_id)
        if not self._keyring.verify(mac, key_id, _PURPOSE, *_signed(key_id, visitor_id, token.issued_at)):
            return Rejection.BAD_SIGNATURE if self._keyring.knows(key_id) else Rejection.UNKNOWN_KEY
        if self._clock() - token.issued_at > self._max_age:
            return Rejection.EXPIRED
        return token

    async def _look_for_key(self, value: bytes) -> None:
        if match := _TOKEN.fullmatch(value):
            await self._keyring.find(match[1].decode("ascii"))


def new_visitor_id() -> str:
    """Return 256 random bits as 43 characters of ``[A-Za-z0-9_-]``."""
    return secrets.token_urlsafe(32)


def _newest(opened: Iterable[VisitorToken | Rejection]) -> VisitorToken | None:
    tokens = (each for each in opened if isinstance(each, VisitorToken))
    return max(tokens, key=lambda token: token.issued_at, default=None)


def _rejection(opened: Collection[VisitorToken | Rejection]) -> Rejection | None:
    visitors = {each.visitor_id for each in opened if isinstance(each, VisitorToken)}
    if len(visitors) == 1:
        return None
    return Rejection.AMBIGUOUS if visitors else next(each for each in opened if isinstance(each, Rejection))


def _signed(key_id: str, visitor_id: str, issued_at: int) -> tuple[bytes, ...]:
    return key_id.encode(), visitor_id.encode(), str(issued_at).encode()


def _cookie_over(scope: Scope) -> Carrier:
    return "cookie over https" if scope.get("scheme") in ("https", "wss") else "cookie"
