"""What the browser says about where a request came from, and whether it withheld the visitor's cookie.

``Sec-Fetch-Site`` is set by browsers and cannot be set by a page's script (Fetch Metadata Request Headers §2). Its absence says only that
this is not a present-day browser.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from convmem.identity.headers import header_values

if TYPE_CHECKING:
    from starlette.types import Scope

SameSite = Literal["lax", "strict", "none"]

_OWN_SITE = (b"same-origin", b"same-site", b"none")


def names_site(scope: Scope) -> bool:
    """Return whether ``Sec-Fetch-Site`` came at all, so that a page's script may be reading the answer."""
    return bool(header_values(scope, b"sec-fetch-site"))


def is_own_site(scope: Scope) -> bool:
    """Return whether a browser says that its user or a page of our own site made the request; said twice is not said."""
    values = header_values(scope, b"sec-fetch-site")
    return len(values) == 1 and values[0] in _OWN_SITE


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
