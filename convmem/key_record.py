"""The key record: signing keys kept in the store itself, at an address no owner can have.

For apps whose only shared place is the store. The record is a conversation of its own, so that every store keeps it with the
eight methods it has; two workers that make the first key at once are told apart by the append, and both use the one stored.
"""

from __future__ import annotations

import secrets

from convmem.exceptions import StoreUnavailable
from convmem.identifiers import new_id, new_token
from convmem.keys import SessionKey
from convmem.stores.base import Entry, Log, Store

_ADDRESS = SessionKey.reserved("signing-keys")
_KEY_BYTES = 32
_KEPT = 8
_ATTEMPTS = 5


async def read_keys(store: Store) -> list[bytes]:
    """Return the signing keys, the newest first; empty when there is none yet.

    Raises:
        StoreUnavailable: The store did not answer.
    """
    return _keys(await store.load(_ADDRESS, turns=_KEPT))


async def read_or_make_keys(store: Store) -> list[bytes]:
    """Return the signing keys, the newest first, and make the first one when there is none.

    Raises:
        StoreUnavailable: The store did not answer.
    """
    for _ in range(_ATTEMPTS):
        log = await store.load(_ADDRESS, turns=_KEPT)
        if keys := _keys(log):
            return keys
        entry = Entry(
            id=new_id(), turn=new_id(), token=new_token(), epoch=log.head.epoch or new_token(), body=secrets.token_bytes(_KEY_BYTES),
            closing=True, turns=log.head.turns + 1,
        )  # fmt: skip
        await store.append(_ADDRESS, log.head, entry)
    raise StoreUnavailable(store.name, "append", "the signing key could not be stored")


def _keys(log: Log) -> list[bytes]:
    return [stored.entry.body for stored in reversed(log.entries) if len(stored.entry.body) >= _KEY_BYTES]
