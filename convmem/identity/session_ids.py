"""Session ids that this service hands out, and how it knows them again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convmem.exceptions import ConfigurationError
from convmem.identifiers import new_id
from convmem.identity.keyring import KEY_ID_LENGTH
from convmem.keys import SessionKey

if TYPE_CHECKING:
    from convmem.identity.keyring import KeyRing

_PURPOSE = "convmem session id"
_MAC_LENGTH = 24
"""144 bits of the MAC: a multiple of six, so no spare bits, and the whole id stays at 64 characters."""


def new_session_id(owner: str, tenant: str = "", *, keyring: KeyRing | None = None, issued: bool = False) -> str:
    """Return an id for a conversation nobody has had yet; nothing is stored.

    Args:
        owner: Whose it will be, as in ``user:42``.
        tenant: The owner's tenant.
        keyring: Signs the id; needed with `issued`.
        issued: Let the id end in the key's id and a MAC over itself, the owner and the tenant: for ``CONVMEM_CLIENT_IDS=issued``.

    Raises:
        InvalidIdentity: The owner or the tenant has no usable form.
        ConfigurationError: `issued` without a key ring.
    """
    name = new_id()
    SessionKey(owner, name, tenant)
    if not issued:
        return name
    if keyring is None:
        msg = "Ids under CONVMEM_CLIENT_IDS=issued are signed: pass keyring=."
        raise ConfigurationError(msg)
    return f"{name}{keyring.key_id}{keyring.sign(_PURPOSE, *_signed(name, owner, tenant))[:_MAC_LENGTH]}"


def verify_issued(session_id: str, owner: str, tenant: str, keyring: KeyRing) -> bool:
    """Return whether `new_session_id` made this id for this owner and tenant, with any key of the ring."""
    name, key_id, mac = _cut(session_id)
    return bool(name) and keyring.verify(mac, key_id, _PURPOSE, *_signed(name, owner, tenant), length=_MAC_LENGTH)


async def is_issued(session_id: str, owner: str, tenant: str, keyring: KeyRing) -> bool:
    """Return the same as `verify_issued`, after looking for a key that is not known yet.

    Raises:
        ConvmemError: The key record could not be read.
    """
    name, key_id, _ = _cut(session_id)
    return bool(name) and await keyring.find(key_id) and verify_issued(session_id, owner, tenant, keyring)


def _cut(session_id: str) -> tuple[str, str, str]:
    mac_at = len(session_id) - _MAC_LENGTH
    key_at = mac_at - KEY_ID_LENGTH
    if key_at <= 0:
        return "", "", ""
    return session_id[:key_at], session_id[key_at:mac_at], session_id[mac_at:]


def _signed(*parts: str) -> tuple[bytes, ...]:
    return tuple(part.encode("utf-8", "surrogatepass") for part in parts)
