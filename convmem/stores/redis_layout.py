"""How a conversation lies in Redis: its keys, its scripts, and the packed form of an entry. Imports no driver.

Each conversation is one hash and one list in one cluster slot; `lua/redis/row.lua` says what is in them. An owner's index is
a sorted set of session ids, in a slot of its own.

An entry is one element of the list: seven bytes of when it was stored (microseconds since 1970, big-endian), then what
`pack_entry` makes: the count, turn, token, id, flags, turns, start, the rarer fields as JSON when there are any, and the body.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error, b2a_base64
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b, sha1
from importlib import resources

from convmem.keys import SessionKey
from convmem.stores.base import ENTRY_FORMAT, Entry, Head, Kind, StoredEntry, path_of_tenant

_KINDS = (Kind.TURN, Kind.EDIT, Kind.RESET)
_CLOSING, _MORE = 4, 8
_HEX, _BASE64, _LONG = 255, 254, 253
_STORED = 7
_URL_SAFE = bytes.maketrans(b"+/", b"-_")

_PARTS = {
    "load": ("clock", "row", "load"),
    "append": ("clock", "index", "row", "append"),
    "renew": ("clock", "row", "renew"),
    "release": ("clock", "row", "release"),
    "delete": ("clock", "row", "delete"),
    "peek": ("clock", "row", "peek"),
    "enlist": ("clock", "index", "enlist"),
    "browse": ("clock", "browse"),
    "forget": ("forget",),
}


class Script:
    """One verb's script, as it is sent: by its digest, and whole to a server that does not know it yet."""

    __slots__ = ("digest", "source")

    def __init__(self, verb: str) -> None:
        """Read it from the package."""
        folder = resources.files("convmem.stores").joinpath("lua", "redis")
        self.source = "\n".join(folder.joinpath(f"{part}.lua").read_text(encoding="utf-8") for part in _PARTS[verb]).encode()
        self.digest = sha1(self.source, usedforsecurity=False).hexdigest().encode()


@lru_cache(maxsize=len(_PARTS))
def script(verb: str) -> Script:
    """Return a verb's script; each is read once."""
    return Script(verb)


class Keys:
    """The keys of one namespace. What stands in braces is the hash tag: a conversation's keys share a slot, an owner's do not."""

    def __init__(self, namespace: str) -> None:
        """Put this in front of every key."""
        self.namespace = namespace.encode()
        self._index = f"{namespace}:o:"

    def of(self, key: SessionKey) -> tuple[bytes, ...]:
        """Return the keys of a conversation's row and log."""
        path = "{{{}/{}/{}}}".format(*key.path).encode()
        return tuple(b"%s:%s:%s" % (self.namespace, kind, path) for kind in (b"c", b"e"))

    def index(self, key: SessionKey) -> bytes:
        """Return the key of the index of a conversation's owner."""
        tenant, owner, _ = key.path
        return f"{self._index}{tenant}/{owner}".encode()

    def begin(self, tenant: str | None) -> str:
        """Return how the keys of all owners' indexes of a tenant begin, or of every tenant's. Nothing in it means anything in a pattern."""
        return self._index if tenant is None else f"{self._index}{path_of_tenant(tenant)}/"

    def owner_of(self, index: bytes) -> tuple[str, str]:
        """Return the tenant and the owner, as in `SessionKey.path`, whose index a key is."""
        tenant, _, owner = index.decode().removeprefix(self._index).partition("/")
        return tenant, owner


def turn_field(turn: str) -> bytes:
    """Return the field of the row that says where a turn stands: a digest, so that a long id costs no more than a short one."""
    return b"t" + urlsafe_b64encode(blake2b(turn.encode(), digest_size=9).digest())


def pack_name(name: str) -> bytes:
    """Return a name as it is stored: 16 bytes for the ids and the tokens this package makes, else its text; empty for none."""
    if not name:
        return b""
    size = len(name)
    if size == 32:  # noqa: PLR2004 - a UUID
        try:
            packed = bytes.fromhex(name)
        except ValueError:
            packed = b""
        if packed.hex() == name:
            return b"\xff" + packed
    if size == 22:  # noqa: PLR2004 - 128 bits in base64
        try:
            packed = urlsafe_b64decode(name + "==")
        except Base64Error:
            packed = b""
        if len(packed) == 16 and urlsafe_b64encode(packed)[:22].decode() == name:  # noqa: PLR2004 - 128 bits
            return b"\xfe" + packed
    text = name.encode()
    if len(text) < _LONG:
        return bytes((len(text),)) + text
    return b"\xfd" + len(text).to_bytes(2, "big") + text


def unpack_name(data: bytes, at: int = 0) -> tuple[str, int]:
    """Return the name at a place, and where the next one begins."""
    tag = data[at]
    if tag == _HEX:
        return data[at + 1 : at + 17].hex(), at + 17
    if tag == _BASE64:
        return str(b2a_base64(data[at + 1 : at + 17], newline=False)[:22].translate(_URL_SAFE), "ascii"), at + 17
    begin, size = (at + 3, int.from_bytes(data[at + 1 : at + 3], "big")) if tag == _LONG else (at + 1, tag)
    return data[begin : begin + size].decode(), begin + size


def unpack_only(data: bytes) -> str:
    """Return the one name in a text; empty for none."""
    return unpack_name(data)[0] if data else ""


def pack_number(number: int) -> bytes:
    """Return a number in seven bits a byte, the lowest first (LEB128)."""
    if number < 128:  # noqa: PLR2004 - seven bits
        return bytes((number,))
    return bytes((number & 127 | 128,)) + pack_number(number >> 7)


def unpack_number(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at a place, and where the next thing begins."""
    byte = data[at]
    at += 1
    if byte < 128:  # noqa: PLR2004 - seven bits
        return byte, at
    number, shift = byte & 127, 7
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:  # noqa: PLR2004 - seven bits
            return number, at
        shift += 7


def pack_entry(entry: Entry) -> bytes:
    """Return an entry without its epoch, which the row holds."""
    more = b""
    if entry.pinned or entry.hides or entry.key_id or entry.format != ENTRY_FORMAT:
        document = json.dumps([entry.pinned, entry.hides, entry.format, entry.key_id], separators=(",", ":")).encode()
        more = pack_number(len(document)) + document
    return b"".join(
        (
            pack_number(entry.count),
            pack_name(entry.turn),
            pack_name(entry.token),
            pack_name(entry.id),
            bytes((_KINDS.index(entry.kind) | (_CLOSING if entry.closing else 0) | (_MORE if more else 0),)),
            pack_number(entry.turns),
            pack_number(entry.start),
            more,
            entry.body,
        )
    )


def unpack_entry(data: bytes, n: int, epoch: str) -> StoredEntry:
    """Return an entry of the list, at its position."""
    count = data[_STORED]
    at = _STORED + 1
    if count >= 128:  # noqa: PLR2004 - seven bits
        count, at = unpack_number(data, _STORED)
    turn, at = unpack_name(data, at)
    token, at = unpack_name(data, at)
    identifier, at = unpack_name(data, at)
    flags, turns, start = data[at], data[at + 1], data[at + 2]
    at += 3
    if turns | start >= 128:  # noqa: PLR2004 - seven bits
        turns, at = unpack_number(data, at - 2)
        start, at = unpack_number(data, at)
    pinned: tuple[int, ...] = ()
    hides: tuple[int, ...] = ()
    format_, key_id = ENTRY_FORMAT, ""
    if flags & _MORE:
        size, at = unpack_number(data, at)
        positions, hidden, format_, key_id = json.loads(data[at : at + size])
        pinned, hides = tuple(positions), tuple(hidden)
        at += size
    kind, closing = _KINDS[flags & 3], flags & _CLOSING != 0
    entry = Entry.read(identifier, turn, token, epoch, data[at:], count, kind, closing, turns, start, pinned, hides, format_, key_id)
    return StoredEntry(n, entry, moment(int.from_bytes(data[:_STORED], "big")))


def unpack_window(window: Sequence[int | bytes], epoch: str) -> Iterator[StoredEntry]:
    """Return the entries of a reply in its order, newest first: a number is the position of the entry behind it."""
    n = 0
    for item in window:
        if isinstance(item, int):
            n = item
        else:
            yield unpack_entry(item, n, epoch)
            n -= 1


def unpack_head(reply: Sequence[bytes]) -> Head:
    """Return the head that scripts tell: epoch, id, "n turns start", pinned positions, mark."""
    epoch, identifier, numbers, pinned, mark = reply
    if not epoch:
        return Head(id=unpack_only(mark))
    n, turns, start = map(int, numbers.split())
    return Head(epoch.decode(), n, unpack_only(identifier), turns, start, tuple(map(int, pinned.split(b","))) if pinned else ())


def unpack_ended(text: bytes) -> frozenset[str]:
    """Return the epochs that deletes have ended."""
    return frozenset(line.partition("\t")[0] for line in text.decode().split("\n") if line)


def positions(numbers: Iterable[int]) -> bytes:
    """Return positions as scripts read them."""
    return ",".join(map(str, numbers)).encode()


def moment(microseconds: int) -> datetime:
    """Return a time of the server's clock."""
    return datetime.fromtimestamp(microseconds / 1_000_000, UTC)  # exact to the microsecond until 2255
