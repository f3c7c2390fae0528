"""The signing keys: the first signs, all verify, and a key nobody knows yet is looked for once in a while."""

from __future__ import annotations

import asyncio
import hmac
import time
from base64 import urlsafe_b64encode
from typing import TYPE_CHECKING

from convmem.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

SHORTEST_SECRET = 32
KEY_ID_LENGTH = 8
MAC_LENGTH = 43
REREAD_SECONDS = 5.0


class KeyRing:
    """Signs and verifies with HMAC-SHA256 under secrets that rotate.

    A key's id is derived from the key, so that two processes with the same secrets agree on it in whatever order they list them.

    Args:
        secrets: The first signs, all verify; each at least 32 bytes.
        refresh: Reads the key record again and returns all secrets, which replace the present ones. None when the keys are fixed.
        clock: Monotonic seconds.

    Raises:
        ConfigurationError: There is no secret, or one is too short; the message never repeats it.
    """

    def __init__(
        self,
        secrets: Sequence[bytes],
        *,
        refresh: Callable[[], Awaitable[Sequence[bytes]]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = _by_id(secrets)
        self._refresh = refresh
        self._clock = clock
        self._reread: asyncio.Task[None] | None = None
        self._reread_at = 0.0

    @property
    def key_id(self) -> str:
        """The id of the key that signs: 8 characters of ``[A-Za-z0-9_-]``, safe to show."""
        return next(iter(self._keys))

    def knows(self, key_id: str) -> bool:
        """Return whether this key is in the ring now."""
        return key_id in self._keys

    async def find(self, key_id: str) -> bool:
        """Return whether this key is known, after one more look at the key record when it is not.

        The record is read at most once in 5 seconds, and by one caller for all who ask meanwhile. A reading that failed fails for all of
        them until the next one is due: a store that is down does not make a visitor unknown.

        Raises:
            ConvmemError: Whatever `refresh` raised.
        """
        if key_id in self._keys or self._refresh is None:
            return key_id in self._keys
        if self._reread is None or self._is_due(self._reread):
            self._reread_at = self._clock()
            self._reread = asyncio.create_task(self._read_again(self._refresh))
        await asyncio.shield(self._reread)
        return key_id in self._keys

    def sign(self, purpose: str, *parts: bytes) -> str:
        """Return the MAC of the parts, by the first key, as 43 characters of ``[A-Za-z0-9_-]``.

        The purpose and each part go in with their lengths, so neither two purposes nor two ways to cut the same bytes share a MAC.
        """
        return _mac(self._keys[self.key_id], purpose, parts)

    def verify(self, mac: str, key_id: str, purpose: str, *parts: bytes, length: int = MAC_LENGTH) -> bool:
        """Return whether `mac` is the first `length` characters of the parts' MAC by that key; False for a key that is not known.

        Compared as text and in constant time: another spelling of the same bytes is another MAC.
        """
        key = self._keys.get(key_id)
        if key is None:
            return False
        return hmac.compare_digest(mac.encode("utf-8", "surrogatepass"), _mac(key, purpose, parts)[:length].encode())

    def _is_due(self, reread: asyncio.Task[None]) -> bool:
        if not reread.done():
            return reread.get_loop() is not asyncio.get_running_loop()
        return reread.cancelled() or self._clock() - self._reread_at >= REREAD_SECONDS

    async def _read_again(self, refresh: Callable[[], Awaitable[Sequence[bytes]]]) -> None:
        self._keys = _by_id(await refresh())


def _by_id(secrets: Sequence[bytes]) -> dict[str, bytes]:
    if not secrets:
        msg = "There is no signing key; set CONVMEM_SECRET_KEY to at least 32 random bytes."
        raise ConfigurationError(msg)
    for secret in secrets:
        if len(secret) < SHORTEST_SECRET:
            msg = f"A key in CONVMEM_SECRET_KEY has {len(secret)} bytes; use at least {SHORTEST_SECRET} random ones."
            raise ConfigurationError(msg)
    return {_mac(secret, "convmem key id", ())[:KEY_ID_LENGTH]: secret for secret in secrets}


def _mac(key: bytes, purpose: str, parts: tuple[bytes, ...]) -> str:
    message = b"".join([len(part).to_bytes(4, "big") + part for part in (purpose.encode(), *parts)])
    return urlsafe_b64encode(hmac.digest(key, message, "sha256")).rstrip(b"=").decode("ascii")
