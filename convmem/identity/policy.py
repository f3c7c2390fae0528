"""The policies: how a visitor's token travels, and where owners and conversations are looked for, checked before the first request."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from convmem.exceptions import ConfigurationError
from convmem.identity.resolvers import (
    DEFAULT_SESSION_HEADER,
    FromHeader,
    Resolver,
    from_header,
    from_path,
    from_query,
    from_user,
    from_visitor,
    header_name,
)
from convmem.identity.sites import SameSite, parse_origin

if TYPE_CHECKING:
    from collections.abc import Sequence

_COOKIE_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_COOKIE_PATH = re.compile(r"/[\x21-\x3a\x3c-\x7e]*")
_COOKIE_DOMAIN = re.compile(r"[A-Za-z0-9.-]+")


@dataclass(frozen=True, slots=True)
class VisitorPolicy:
    """How the visitor's token travels and how long it lasts.

    Args:
        cookie_name: The setting's name; the cookie is called ``__Host-<name>`` when `secure`, path and domain allow that prefix.
        secure: True for ``always``, False for ``never``; ``auto`` marks the cookie `Secure` on HTTPS, under a name without prefix.
        samesite: ``none`` needs `secure`.
        max_age: From the last time a token was issued; an older one is not accepted. Used tokens are renewed after half of it.
        path: Of the cookie.
        domain: Of the cookie; None is this host only.
        partitioned: One cookie per embedding site (CHIPS); needs `secure`.
        header: Carries the token, or the word ``new``, for clients without cookies.

    Raises:
        ConfigurationError: A value cannot make a working cookie.
    """

    cookie_name: str = "convmem"
    secure: bool | Literal["auto"] = True
    samesite: SameSite = "lax"
    max_age: timedelta = timedelta(days=30)
    path: str = "/"
    domain: str | None = None
    partitioned: bool = False
    header: str = "Convmem-Visitor"

    def __post_init__(self) -> None:
        """Refuse what a browser would drop without a word."""
        header_name(self.header)
        if _COOKIE_NAME.fullmatch(self.cookie_name) is None:
            msg = f"CONVMEM_COOKIE_NAME is {self.cookie_name!r}; use letters, digits, - and _."
            raise ConfigurationError(msg)
        if self._has_prefix("__host-", "__secure-") and not (self._is_host_only if self._has_prefix("__host-") else self.secure is True):
            msg = (
                f"CONVMEM_COOKIE_NAME is {self.cookie_name!r}, whose prefix needs CONVMEM_COOKIE_SECURE=always, and __Host- allows no "
                "CONVMEM_COOKIE_DOMAIN and no CONVMEM_COOKIE_PATH but /; leave the prefix out, it is added where it works."
            )
            raise ConfigurationError(msg)
        if self.samesite not in ("lax", "strict", "none"):
            msg = f"CONVMEM_COOKIE_SAMESITE is {self.samesite!r}; use lax, strict or none."
            raise ConfigurationError(msg)
        if self.secure is not True and (self.samesite == "none" or self.partitioned):
            msg = "CONVMEM_COOKIE_SAMESITE=none and partitioned cookies need CONVMEM_COOKIE_SECURE=always: browsers drop them otherwise."
            raise ConfigurationError(msg)
        if self.max_age < timedelta(seconds=1):
            msg = "CONVMEM_COOKIE_MAX_AGE is shorter than a second; a visitor would be forgotten at once."
            raise ConfigurationError(msg)
        if _COOKIE_PATH.fullmatch(self.path) is None or (self.domain is not None and _COOKIE_DOMAIN.fullmatch(self.domain) is None):
            msg = "CONVMEM_COOKIE_PATH begins with a slash, CONVMEM_COOKIE_DOMAIN is a host name; neither holds spaces or semicolons."
            raise ConfigurationError(msg)

    @property
    def full_cookie_name(self) -> str:
        """The name on the wire: it follows the settings, never the request, because a name that flips is a lost memory."""
        prefix = "__Host-" if self._is_host_only and not self._has_prefix("__host-", "__secure-") else ""
        return prefix + self.cookie_name

    @property
    def _is_host_only(self) -> bool:
        return self.secure is True and self.path == "/" and self.domain is None

    def _has_prefix(self, *prefixes: str) -> bool:
        """Return whether the name begins so, in any case, as browsers compare (RFC 6265bis §5.7)."""
        return self.cookie_name.lower().startswith(prefixes)

    def set_cookie(self, token: str, *, https: bool = True) -> bytes:
        """Return the value of the ``Set-Cookie`` header that carries this token, on a response over HTTPS or not."""
        parts = [f"{self.full_cookie_name}={token}", f"Path={self.path}", f"Max-Age={int(self.max_age.total_seconds())}", "HttpOnly"]
        parts.append(f"SameSite={self.samesite.capitalize()}")
        if self.domain is not None:
            parts.append(f"Domain={self.domain}")
        if self.secure is True or (self.secure == "auto" and https):
            parts.append("Secure")
        if self.partitioned:
            parts.append("Partitioned")
        return "; ".join(parts).encode("ascii")


@dataclass(frozen=True, slots=True)
class IdentityPolicy:
    """How owners and conversations are found in requests.

    Args:
        who: ``user`` and ``visitor``, in this order: ``CONVMEM_IDENTITY``.
        session_from: ``header``, ``query:NAME``, ``path:PATTERN``: ``CONVMEM_SESSION_FROM``.
        session_header: The header that names the conversation.
        trust_session_header: An id in that header that comes without an owner is its own owner: services behind their own gateway.
        client_ids: ``own``, an owner may name new conversations, or ``issued``, only ids that were handed out.
        visitor: The token's cookie and header.
        resolvers: The app's own; they run first.
        websocket_origins: Origins besides the app's own whose pages may open WebSockets: ``CONVMEM_WEBSOCKET_ORIGINS``.

    Raises:
        ConfigurationError: A value is not one of these; the message names the setting.
    """

    who: tuple[str, ...] = ("user", "visitor")
    session_from: tuple[str, ...] = ("header",)
    session_header: str = DEFAULT_SESSION_HEADER
    trust_session_header: bool = False
    client_ids: Literal["own", "issued"] = "own"
    visitor: VisitorPolicy = field(default_factory=VisitorPolicy)
    resolvers: Sequence[Resolver] = ()
    websocket_origins: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Refuse what no request could be resolved by."""
        header_name(self.session_header)
        for name in self.who:
            if name not in ("user", "visitor"):
                msg = f"CONVMEM_IDENTITY names {name!r}; use user, visitor or both. An app's own way is resolvers=[from_callable(...)]."
                raise ConfigurationError(msg)
        if not self.who and not self.resolvers and not self.trust_session_header:
            msg = "CONVMEM_IDENTITY is empty and there are no resolvers, so nobody could have a conversation; use user,visitor."
            raise ConfigurationError(msg)
        if self.client_ids not in ("own", "issued"):
            msg = f"CONVMEM_CLIENT_IDS is {self.client_ids!r}; use own or issued."
            raise ConfigurationError(msg)
        if self.trust_session_header and not any(isinstance(each, FromHeader) for each in (*self.resolvers, *self.session_resolvers())):
            msg = "CONVMEM_TRUST_SESSION_HEADER is on, but no header is read; add header to CONVMEM_SESSION_FROM."
            raise ConfigurationError(msg)
        self.session_resolvers()
        for origin in self.websocket_origins:
            if parse_origin(origin) != origin:
                msg = f"CONVMEM_WEBSOCKET_ORIGINS names {origin!r}; an origin is a scheme and a host, such as https://app.example."
                raise ConfigurationError(msg)

    def owner_resolvers(self) -> tuple[Resolver, ...]:
        """Return the resolvers in the order in which they fill the owner, the app's own first."""
        built_in = {"user": from_user, "visitor": from_visitor}
        return (*self.resolvers, *(built_in[name]() for name in self.who))

    def session_resolvers(self) -> tuple[Resolver, ...]:
        """Return a resolver for each of `session_from`.

        Raises:
            ConfigurationError: One has another form.
        """
        return tuple(self._session_resolver(source) for source in self.session_from)

    def _session_resolver(self, source: str) -> Resolver:
        kind, colon, rest = source.partition(":")
        if source == "header":
            return from_header(self.session_header)
        if kind == "query" and colon:
            return from_query(rest)
        if kind == "path" and colon:
            return from_path(rest)
        msg = f"CONVMEM_SESSION_FROM names {source!r}; use header, query:NAME or path:PATTERN, comma separated."
        raise ConfigurationError(msg)
