"""Identifiers: unique, random where it matters, and sortable by the time they were made."""

from __future__ import annotations

import os
import time
from binascii import b2a_base64
from datetime import UTC, datetime
from functools import lru_cache

_RANDOM_BITS = 62
_URL_SAFE = bytes.maketrans(b"+/", b"-_")


def new_id() -> str:
    """Return a UUID version 7 in hexadecimal without dashes (RFC 9562 §5.7, with a sub-millisecond fraction).

    Two ids made by one process in different microseconds sort in that order.
    """
    nanoseconds = time.time_ns()
    milliseconds, rest = divmod(nanoseconds, 1_000_000)
    fraction = rest * 4096 // 1_000_000
    number = milliseconds << 80 | 0x7 << 76 | fraction << 64 | 0b10 << 62 | int.from_bytes(os.urandom(8)) >> 64 - _RANDOM_BITS
    return f"{number:032x}"


def new_message_id() -> str:
    """Return a time in UTC as text in ISO 8601, whose digits behind the microsecond are random: an id that says when it was made.

    ``20261121T171349.123456071828182845904Z``: 48 random bits. Ids made by one process in different microseconds sort in that order.
    """
    seconds, rest = divmod(time.time_ns(), 1_000_000_000)
    return f"{_second(seconds)}.{rest // 1000:06}{int.from_bytes(os.urandom(6)):015}Z"


@lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    return time.strftime("%Y%m%dT%H%M%S", time.gmtime(seconds))


def new_token() -> str:
    """Return 128 random bits as 22 characters of ``[A-Za-z0-9_-]``: lease tokens, epochs, delete marks."""
    return b2a_base64(os.urandom(16), newline=False)[:22].translate(_URL_SAFE).decode("ascii")


def time_of(identifier: str) -> datetime | None:
    """Return when an id of `new_id` was made, to the millisecond; None when it is not one."""
    if len(identifier) != 32 or identifier[12:13] != "7":  # noqa: PLR2004 - 32 hexadecimal digits, version 7
        return None
    try:
        milliseconds = int(identifier[:12], 16)
    except ValueError:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
