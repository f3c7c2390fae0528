"""Scopes as a server makes them, and the policies and keys they are read with."""

from starlette.authentication import SimpleUser
from starlette.types import Scope

from convmem.identity import IdentityPolicy, IdentityReader, KeyRing, Resolved, VisitorPolicy

OLD = b"an old key of thirty-two bytes.."
NEW = b"a new key of thirty-two bytes..."
NOW = 1_800_000_000.0
DAY = 86_400.0
BROWSER = {"sec-fetch-site": "same-origin"}
CROSS_SITE = {"sec-fetch-site": "cross-site"}
COOKIE = "__Host-convmem"


class Clock:
    """A clock that a test sets."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def http(*pairs, path="/chat", query=b"", method="GET", user=None, root_path="", **headers) -> Scope:
    """Return an HTTP scope; `pairs` are raw header tuples, `headers` are written with underscores for dashes."""
    named = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "https",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": root_path,
        "query_string": query,
        "headers": [*named, *pairs],
    }
    return scope if user is None else {**scope, "user": SimpleUser(user) if isinstance(user, str) else user}


def sent(**values: str) -> list[tuple[bytes, bytes]]:
    """Return raw headers by their names in lower case."""
    return [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in values.items()]


def reader(*, secrets=(NEW,), clock=None, visitor=None, refresh=None, **policy) -> IdentityReader:
    """Return a reader over these keys, with the rest of the policy as an app would set it."""
    whole = IdentityPolicy(visitor=visitor or VisitorPolicy(), **policy)
    return IdentityReader(whole, KeyRing(secrets, refresh=refresh), clock=clock or Clock())


async def token_of(read: IdentityReader) -> tuple[str, str]:
    """Return a new visitor as owner and the token the answer carries."""
    resolved = await read.read(http(convmem_visitor="new"))
    owner = resolved.mint()
    return owner, answer(resolved)["convmem-visitor"]


def answer(resolved: Resolved, *, touched: bool = True) -> dict[str, str]:
    """Return the response headers; each came once."""
    headers = resolved.response_headers(touched=touched)
    assert len({name for name, _ in headers}) == len(headers)
    return {name.decode(): value.decode() for name, value in headers}


def cookie_of(resolved: Resolved) -> str:
    """Return the pair that the answer sets, as the browser sends it back."""
    return answer(resolved)["set-cookie"].partition(";")[0]
