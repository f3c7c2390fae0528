"""Header, cookie and query bytes, read exactly as they came.

Names are compared byte for byte, in the lower case in which ASGI delivers header names: ``X_Session_ID`` is never ``X-Session-ID``.
Values are never decoded before they are checked, because a decoded value can be trimmed into another one: the bytes A0 and 85 are spaces
to `str.strip`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from convmem.exceptions import InvalidIdentity

if TYPE_CHECKING:
    from starlette.types import Scope

_OPTIONAL_WHITESPACE = b" \t"


def header_values(scope: Scope, name: bytes) -> list[bytes]:
    """Return every value of a header, in order of arrival; `name` in lower case."""
    return [value for key, value in scope["headers"] if key == name]


def single_header(scope: Scope, name: bytes) -> bytes | None:
    """Return the value of a header that may come once; None when it did not come.

    Raises:
        InvalidIdentity: It came more than once, even with equal values: proxies and frameworks disagree on which of them counts.
    """
    values = header_values(scope, name)
    if len(values) > 1:
        msg = f"The header {name.decode('ascii')} came {len(values)} times; send it once."
        raise InvalidIdentity(msg)
    return values[0] if values else None


def cookie_values(scope: Scope, name: bytes) -> list[bytes]:
    """Return every value that came under exactly this cookie name, in order of arrival.

    Pairs are split on ``;`` and only SP and HTAB around a pair are dropped; nothing is unquoted. Several ``Cookie`` headers are one list
    (RFC 9113 §8.2.3 allows a client to split it).
    """
    values = []
    for header in header_values(scope, b"cookie"):
        for pair in header.split(b";"):
            key, equals, value = pair.strip(_OPTIONAL_WHITESPACE).partition(b"=")
            if equals and key == name:
                values.append(value)
    return values


def query_values(scope: Scope, name: bytes) -> list[bytes]:
    """Return every value of a query parameter, percent-decoded to bytes; names are decoded too, as frameworks do before they compare."""
    values = []
    for pair in scope.get("query_string", b"").split(b"&"):
        key, _, value = pair.replace(b"+", b" ").partition(b"=")
        if unquote_to_bytes(key) == name:
            values.append(unquote_to_bytes(value))
    return values
