"""What the browser says about where a request or a WebSocket came from, and whether it withheld the visitor's cookie.

``Sec-Fetch-Site`` is set by browsers and cannot be set by a page's script (Fetch Metadata Request Headers §2). Its absence says only that
this is not a present-day browser.

A WebSocket is another matter: any page may open one to any host, the browser sends the cookies along, and there is no CORS to keep the
page's script from reading the answers (CWE-1385). So its ``Origin``, which browsers always send (RFC 6455 §4.1), has to be our own or
one that was named; being of the same site is not enough.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from convmem.identity.headers import header_values

if TYPE_CHECKING:
    from collections.abc import Collection

    from starlette.types import Scope

SameSite = Literal["lax", "strict", "none"]

_PORTS = {"http": 80, "https": 443}
_OWN_SITE = (b"same-origin", b"same-site", b"none")


def names_site(scope: Scope) -> bool:
    """Return whether ``Sec-Fetch-Site`` came at all, so that a page's script may be reading the answer."""
    return bool(header_values(scope, b"sec-fetch-site"))


def is_own_site(scope: Scope) -> bool:
    """Return whether a browser says that its user or a page of our own site made the request; said twice is not said."""
    values = header_values(scope, b"sec-fetch-site")
    if not values and scope["type"] == "websocket":  # not every browser says it there
        return is_own_origin(scope)
    return len(values) == 1 and values[0] in _OWN_SITE


def is_own_origin(scope: Scope) -> bool:
    """Return whether a browser says that a page of our own origin opened this WebSocket.

    It says so in ``Sec-Fetch-Site``, or by an ``Origin`` that is the ``Host`` it asked for. The scheme is compared where that can be
    told: a server behind a proxy that ends TLS sees ``ws`` for a page of ``https``.
    """
    origins, hosts = header_values(scope, b"origin"), header_values(scope, b"host")
    if header_values(scope, b"sec-fetch-site") == [b"same-origin"]:
        return len(origins) == 1
    if len(origins) != 1 or len(hosts) != 1:
        return False
    origin = parse_origin(origins[0].decode("latin-1"))
    if origin is None or (scope.get("scheme") == "wss" and not origin.startswith("https:")):
        return False
    scheme = origin.partition(":")[0]
    return parse_origin(f"{scheme}://{hosts[0].decode('latin-1')}") == origin


def is_foreign_origin(scope: Scope, allowed: Collection[str]) -> bool:
    """Return whether a page of an origin that is neither ours nor allowed opened this WebSocket; what sends no ``Origin`` is no page."""
    origins = header_values(scope, b"origin")
    if not origins or is_own_origin(scope):
        return False
    return len(origins) != 1 or parse_origin(origins[0].decode("latin-1")) not in allowed


def parse_origin(text: str) -> str | None:
    """Return an origin as browsers write it, ``https://app.example`` or with a port that is not the scheme's; None for anything else."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if (
        parts.scheme not in _PORTS
        or not host
        or not text.isascii()
        or text.lower() != f"{parts.scheme}://{parts.netloc.lower()}"
        or "@" in text
    ):
        return None
    name = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{name}" + ("" if port in (None, _PORTS[parts.scheme]) else f":{port}")


def withholds_cookie(scope: Scope, samesite: SameSite) -> bool:
    """Return whether the browser would have withheld a cookie with this SameSite value: its absence then says nothing about the visitor.

    Under ``lax`` only a top-level GET navigation carries the cookie across sites; one into a frame does not (RFC 6265bis §5.2, §5.8.3).
    """
    if samesite == "none" or b"cross-site" not in header_values(scope, b"sec-fetch-site"):
        return False
    return samesite == "strict" or not _is_top_level_get(scope)


def _is_top_level_get(scope: Scope) -> bool:
    return (
        scope.get("method") == "GET"
        and header_values(scope, b"sec-fetch-mode") == [b"navigate"]
        and header_values(scope, b"sec-fetch-dest") in ([], [b"document"])
    )
