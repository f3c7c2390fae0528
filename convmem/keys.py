"""The address of a conversation: whose it is, and which."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from urllib.parse import quote, unquote_to_bytes

from convmem.exceptions import InvalidIdentity

DEFAULT_SESSION = "default"
OWNER_KINDS = ("user", "visitor", "header")
RESERVED_OWNER = "convmem:"
LONGEST_NAME = 512
_LONGEST_SESSION_ID = 128
_OF_SESSION_IDS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
_PLAIN = _OF_SESSION_IDS + b".~:"


@dataclass(frozen=True, slots=True)
class SessionKey:
    """The address of one conversation: `tenant`, `owner`, `session_id`. Two keys name the same one only when all are equal.

    Because the owner is part of the address, another's conversation cannot be addressed; missing and foreign are one outcome.

    Args:
        owner: Its kind in front: ``user:<identity>``, ``visitor:<id>`` or ``header:<id>``; at most 512 bytes in UTF-8.
        session_id: 1 to 128 of ``A-Z a-z 0-9 _ -``.
        tenant: At most 512 bytes in UTF-8; empty when the app has no tenants. Never taken from a client.

    Attributes:
        path: Tenant, owner and session id in printable ASCII, for a store's keys and columns: different parts, different text.
            Everything but letters, digits and ``_.-~:`` is percent-encoded (RFC 3986 §2.1), lone surrogates too.

    Raises:
        InvalidIdentity: A part has another form. The message never repeats the value.
    """

    owner: str
    session_id: str = DEFAULT_SESSION
    tenant: str = ""
    path: tuple[str, str, str] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse what is not an address."""
        parts: tuple[tuple[str, object], ...] = (("owner", self.owner), ("session_id", self.session_id), ("tenant", self.tenant))
        for name, value in parts:
            if not isinstance(value, str):
                msg = f"{name} must be a string, not {type(value).__name__}."
                raise InvalidIdentity(msg)
        kind, colon, identity = self.owner.partition(":")
        if kind not in OWNER_KINDS or not colon or not identity:
            msg = "An owner is user:<identity>, visitor:<id> or header:<id>; SessionKey.for_user(identity) builds a user's."
            raise InvalidIdentity(msg)
        for name, text in (("owner", self.owner), ("tenant", self.tenant)):
            if 4 * len(text) > LONGEST_NAME and len(text.encode("utf-8", "surrogatepass")) > LONGEST_NAME:
                msg = f"{name} is longer than {LONGEST_NAME} bytes; use the principal's id, not a document about it."
                raise InvalidIdentity(msg)
        if not valid_session_id(self.session_id):
            msg = "A session id is 1 to 128 of A-Z a-z 0-9 _ and -."
            raise InvalidIdentity(msg)
        object.__setattr__(self, "path", (_ascii(self.tenant), _ascii(self.owner), self.session_id))

    @classmethod
    def for_user(cls, identity: str | int, session_id: str = DEFAULT_SESSION, *, tenant: str = "") -> SessionKey:
        """Return the address of a user's conversation, the one that user reaches in the web app."""
        return cls(f"user:{identity}", session_id, tenant)

    @classmethod
    def reserved(cls, purpose: str) -> SessionKey:
        """Return an address no owner can have, for what convmem itself keeps in a store."""
        key, owner = object.__new__(cls), f"{RESERVED_OWNER}{purpose}"
        path = ("", _ascii(owner), DEFAULT_SESSION)
        for name, value in (("owner", owner), ("session_id", DEFAULT_SESSION), ("tenant", ""), ("path", path)):
            object.__setattr__(key, name, value)
        return key

    @classmethod
    def of_path(cls, path: tuple[str, str, str]) -> SessionKey:
        """Return the address that has this path."""
        tenant, owner, session_id = path
        return cls(_text(owner), session_id, _text(tenant))

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that stand for the address in logs and debug headers; not reversible, not unique enough to be a key."""
        return hashlib.sha256("/".join(self.path).encode()).hexdigest()[:16]

    def __repr__(self) -> str:
        """Return a form that is safe to log: the kind of owner and the digest, no id."""
        return f"SessionKey({self.owner.partition(':')[0]}, {self.digest})"


def valid_session_id(session_id: str | bytes) -> bool:
    """Return whether this is a session id; compared byte by byte, so no Unicode digit or letter passes."""
    if isinstance(session_id, str):
        session_id = session_id.encode("utf-8", "surrogatepass")
    return 0 < len(session_id) <= _LONGEST_SESSION_ID and not session_id.translate(None, _OF_SESSION_IDS)


def _ascii(text: str) -> str:
    encoded = text.encode("utf-8", "surrogatepass")
    return quote(encoded, safe=":") if encoded.translate(None, _PLAIN) else text


def _text(ascii_text: str) -> str:
    return unquote_to_bytes(ascii_text).decode("utf-8", "surrogatepass")
