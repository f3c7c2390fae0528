"""Identity: whose conversation a request means, and which. The only place that reads request headers for it.

`IdentityReader.read` runs all resolvers over one ASGI scope and returns one `Resolved`.
"""

from convmem.identity.keyring import KeyRing
from convmem.identity.policy import IdentityPolicy, VisitorPolicy
from convmem.identity.resolution import IdentityReader, Resolved
from convmem.identity.resolvers import (
    Identity,
    Resolver,
    from_callable,
    from_header,
    from_path,
    from_query,
    from_user,
    from_visitor,
    route_path,
)
from convmem.identity.session_ids import new_session_id, verify_issued
from convmem.identity.visitor import Rejection

__all__ = [
    "Identity",
    "IdentityPolicy",
    "IdentityReader",
    "KeyRing",
    "Rejection",
    "Resolved",
    "Resolver",
    "VisitorPolicy",
    "from_callable",
    "from_header",
    "from_path",
    "from_query",
    "from_user",
    "from_visitor",
    "new_session_id",
    "route_path",
    "verify_issued",
]
