"""Idempotency: the name that an Idempotency-Key, or a job, gives to a turn, and the fingerprint of the request it came with.

After draft-ietf-httpapi-idempotency-key-header-07. The value is a string of structured fields (RFC 9651 §3.3.3); most clients send
the bare key, which is taken for the same one.
"""

from __future__ import annotations

import hashlib
import re
from base64 import urlsafe_b64encode
from collections import deque
from collections.abc import Iterable

from starlette.types import Message, Receive, Scope

from convmem.exceptions import InvalidIdempotencyKey

LONGEST_KEY = 255
FINGERPRINTED = 64 * 2**10
"""How many bytes of a body are read ahead of the app and count in its fingerprint."""
_STRING = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')
_BARE = re.compile(r"[!#-+\--:<-\[\]-~]+")  # visible ASCII without quote, comma, semicolon and backslash
_ESCAPED = re.compile(r"\\(.)")
_BOUNDARY = re.compile(rb'boundary="?([^";,\s]+)')


def turn_of(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str | None:
    """Return the turn id that a request's idempotency key stands for; None when it carries none.

    It is a digest: nothing a client sent becomes part of what is stored. Whose key it is needs no place in it, because turns are
    looked up within one conversation.

    Raises:
        InvalidIdempotencyKey: The key has another form, or comes twice.
    """
    values = [value for key, value in headers if key == name]
    if not values:
        return None
    if len(values) > 1:
        msg = "The idempotency key comes twice; send one."
        raise InvalidIdempotencyKey(msg)
    value = values[0].decode("latin-1").strip()
    string = _STRING.fullmatch(value)
    key = _ESCAPED.sub(r"\1", string[1]) if string else value
    if not 1 <= len(key) <= LONGEST_KEY or not (string or _BARE.fullmatch(key)):
        msg = f'An idempotency key is a string in double quotes, as in "8e03978e-40d5", of 1 to {LONGEST_KEY} printable ASCII characters.'
        raise InvalidIdempotencyKey(msg)
    return f"key-{_digest(key.encode())}"


def turn_of_job(key: str | None) -> str | None:
    """Return the turn id that a job's own key stands for; None when it has none. It is never that of a client's key.

    Raises:
        InvalidIdempotencyKey: The key is empty: all jobs would be one.
    """
    if key is None:
        return None
    if not key:
        msg = "idempotency_key is empty; use the id of the job, or None."
        raise InvalidIdempotencyKey(msg)
    return f"job-{_digest(key.encode('utf-8', 'surrogatepass'))}"


class ReadAhead:
    """A request's `receive`, of whose body the beginning can be looked at before the app asks for it.

    What was read is handed on event by event, so that the app sees what the server sent.
    """

    def __init__(self, receive: Receive) -> None:
        """Read nothing yet."""
        self._receive = receive
        self._events: deque[Message] = deque()

    async def __call__(self) -> Message:
        """Return the next event: those read ahead first."""
        return self._events.popleft() if self._events else await self._receive()

    async def fingerprint(self, scope: Scope, path: str) -> str:
        """Return what tells this request from another with the same key: method, path, query, and the beginning of the body.

        The body counts up to `FINGERPRINTED` bytes, a longer one with its announced length too. The boundary of a multipart body,
        which clients make anew for each try, does not count. Empty, which compares with nothing, when the client left before.
        """
        body = bytearray()
        more = True
        while more and len(body) <= FINGERPRINTED:
            event = await self._receive()
            self._events.append(event)
            if event["type"] != "http.request":
                return ""
            body += event.get("body", b"")
            more = event.get("more_body", False)
        fields = dict(scope["headers"])
        boundary = _BOUNDARY.search(fields.get(b"content-type", b""))
        length = b"" if boundary or len(body) <= FINGERPRINTED else fields.get(b"content-length", b"")
        seen = bytes(body[:FINGERPRINTED])
        if boundary:
            seen = seen.replace(b"--" + boundary[1], b"--")
        parts = (scope["method"].encode(), path.encode("utf-8", "surrogatepass"), scope.get("query_string", b""), length, seen)
        return _digest(b"".join(b"%d:%b" % (len(part), part) for part in parts))


def _digest(data: bytes) -> str:
    """Return 192 bits of SHA-256, in 32 characters of ``[A-Za-z0-9_-]``."""
    return urlsafe_b64encode(hashlib.sha256(data).digest()[:24]).decode()
