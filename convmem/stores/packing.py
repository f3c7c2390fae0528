"""An entry as it lies in a server, packed: its names in 17 bytes each, its numbers in as few as they need. Imports no driver.

An entry is seven bytes of when it was stored (microseconds since 1970, big-endian), which the server puts in front; then what
`pack_facts` makes: flags, turn, token, the id unless it is the turn's, the count, turns, start, the rarer fields as JSON when there
are any; and its body.
"""

from __future__ import annotations

import json
from binascii import Error as Base64Error, a2b_base64, b2a_base64
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from operator import itemgetter
from struct import Struct
from typing import Any

from convmem.stores.base import ENTRY_FORMAT, Entry, Kind, Skimmed, StoredEntry, Unread

_KINDS = (Kind.TURN, Kind.EDIT, Kind.RESET)
_CLOSING, _MORE, _PLAIN, _ALONE = 4, 8, 16, 32
_HEX, _BASE64, _LONG = 255, 254, 253
_TAGS = (_HEX, _BASE64, _HEX)
STORED = 7
"""How many bytes of an entry say when it was stored."""
_PLAIN_ENTRY = Struct(">8x16s16sBBB")
turn_of, token_of = itemgetter(slice(8, 24)), itemgetter(slice(24, 40))
"""Of an entry that was packed in place: the 16 bytes for its turn (`bits_of`), and for its token."""
_BEGIN = datetime(1970, 1, 1, tzinfo=UTC)
_URL_SAFE, _STANDARD = bytes.maketrans(b"+/", b"-_"), bytes.maketrans(b"-_+/", b"+/!!")


@lru_cache(maxsize=1024)
def pack_name(name: str) -> bytes:
    """Return a name as it is stored: a tag and 16 bytes for the ids and the tokens this package makes, else its length and text.

    A turn names its token, its epoch and its id several times; who packs the last thousand again finds them.
    """
    size = len(name)
    if size == 22 and name[21] in "AQgw":  # noqa: PLR2004 - 128 bits in base64 are 21 characters and a quarter
        try:
            packed = a2b_base64(name.encode().translate(_STANDARD) + b"==")  # it passes over what is not of its alphabet
        except Base64Error:
            packed = b""
        if len(packed) == 16:  # noqa: PLR2004 - 128 bits
            return b"\xfe" + packed
    elif size == 32:  # noqa: PLR2004 - a UUID
        try:
            packed = bytes.fromhex(name)
        except ValueError:
            packed = b""
        if packed.hex() == name:
            return b"\xff" + packed
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
        return _base64(data[at + 1 : at + 17]), at + 17
    begin, size = (at + 3, int.from_bytes(data[at + 1 : at + 3], "big")) if tag == _LONG else (at + 1, tag)
    return data[begin : begin + size].decode(), begin + size


def _base64(bits: bytes) -> str:
    return b2a_base64(bits)[:22].translate(_URL_SAFE).decode()


def pack_numbers(*numbers: int) -> bytes:
    """Return each number in seven bits a byte, the lowest first (LEB128)."""
    packed = bytearray()
    for number in numbers:
        while number > 127:  # noqa: PLR2004 - seven bits
            packed.append(number & 127 | 128)
            number >>= 7  # noqa: PLW2901 - what is left of it
        packed.append(number)
    return bytes(packed)


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


def pack_facts(entry: Entry, *, in_place: bool = False) -> bytes:
    """Return what is packed of an entry, but for its body; and for its epoch, which is kept once for the conversation.

    Args:
        entry: The entry.
        in_place: Whether turn, token and id have to be at their places, 16 bytes each, for somebody who compares them there. Those that
            are no ids and tokens of this package have what `bits_of` returns there, and are among the rarer fields. An id that is the
            turn's is at the turn's place (flag 32).
    """
    turn, token = pack_name(entry.turn), pack_name(entry.token)
    identifier = turn if entry.id == entry.turn else pack_name(entry.id)
    is_plain = (turn[0], token[0], identifier[0]) == _TAGS
    rare: tuple[object, ...] = ()
    if entry.pinned or entry.hides or entry.key_id or entry.format != ENTRY_FORMAT or (in_place and not is_plain):
        rare = (entry.pinned, entry.hides, entry.format, entry.key_id)
    flags = _KINDS.index(entry.kind) | (_CLOSING if entry.closing else 0) | (_MORE if rare else 0)
    if is_plain:
        turn, token, identifier = turn[1:], token[1:], identifier[1:]
    elif in_place:
        rare += (entry.turn, entry.token, entry.id)
        turn, token, identifier = _bits(turn, _HEX), _bits(token, _BASE64), _bits(identifier, _HEX)
    if is_plain or in_place:
        flags |= _PLAIN
        if entry.id == entry.turn:
            flags, identifier = flags | _ALONE, b""
    numbers = pack_numbers(entry.count, entry.turns, entry.start)
    document = json.dumps(rare, separators=(",", ":")).encode() if rare else b""
    return b"".join((bytes((flags,)), turn, token, identifier, numbers, pack_numbers(len(document)) + document if rare else b""))


def bits_of(name: str) -> bytes:
    """Return the 16 bytes at the place of a turn or an id: those it is made of, else half its SHA-256."""
    return _bits(pack_name(name), _HEX)


def _bits(packed: bytes, tag: int) -> bytes:
    return packed[1:] if packed[0] == tag else sha256(packed).digest()[:16]


class _Stored(StoredEntry):
    """An entry whose time is read when somebody asks: that takes a quarter of the time to unpack it, and few do."""

    __slots__ = ("_when",)

    def __init__(self, n: int, entry: Entry, when: bytes) -> None:
        """Keep the time as it is stored."""
        self.n, self.entry, self._when = n, entry, when  # type: ignore[misc]

    @property
    def stored_at(self) -> datetime:
        """See `StoredEntry`."""
        return moment(int.from_bytes(self._when, "big"))


def unpack_entry(data: bytes, n: int, epoch: str) -> StoredEntry:
    """Return an entry of the list, at its position."""
    flags = data[STORED]
    if flags & _PLAIN:
        turn_bits, token_bits, count, turns, start = _PLAIN_ENTRY.unpack_from(data)
        turn, token, at = turn_bits.hex(), _base64(token_bits), _PLAIN_ENTRY.size
        if flags & _ALONE:
            identifier = turn
        else:
            identifier, at = data[40:56].hex(), at + 16
            count, turns, start = data[56:59]
    else:
        turn, at = unpack_name(data, STORED + 1)
        token, at = unpack_name(data, at)
        identifier, at = unpack_name(data, at)
        count, turns, start = data[at : at + 3]
        at += 3
    if count | turns | start >= 128:  # noqa: PLR2004 - seven bits
        count, at = unpack_number(data, at - 3)
        turns, at = unpack_number(data, at)
        start, at = unpack_number(data, at)
    rare: tuple[Any, ...] = ()
    if flags & _MORE:
        size, at = unpack_number(data, at)
        pinned, hides, format_, key_id, *names = json.loads(data[at : at + size])
        if names:
            turn, token, identifier = names
        rare = tuple(pinned), tuple(hides), format_, key_id
        at += size
    kind, closing = _KINDS[flags & 3], flags & _CLOSING != 0
    entry = Entry.read(identifier, turn, token, epoch, data[at:], count, kind, closing, turns, start, *rare)
    return _Stored(n, entry, data[:STORED])


def apart(window: Iterable[int | bytes]) -> Iterator[tuple[int, bytes]]:
    """Return the entries of a script's reply, with their positions, in its order.

    A number is the position of the entry behind it; the next one's is one less.
    """
    n = 0
    for item in window:
        if isinstance(item, int):
            n = item
        else:
            yield n, item
            n -= 1


class Window(Unread):
    """The entries of a load, oldest first, unpacked when somebody looks at one of them.

    Args:
        size: How many there are.
        epoch: Theirs.
        places: Returns each one's position, and how it is packed.
    """

    __slots__ = ("_epoch", "_places")

    def __init__(self, size: int, epoch: str, places: Callable[[], Iterable[tuple[int, bytes]]]) -> None:
        """Unpack nothing yet."""
        self._size, self._unpacked, self._epoch, self._places = size, None, epoch, places

    def unpack(self) -> tuple[StoredEntry, ...]:
        """See `Unread`."""
        return tuple([unpack_entry(data, n, self._epoch) for n, data in self._places()])

    def skim(self) -> Iterator[Skimmed]:
        """See `Unread`. Nearly all entries have names of this package, and none of the rarer fields."""
        for n, data in self._places():
            flags = data[STORED]
            if flags & (_PLAIN | _MORE) == _PLAIN:
                at = 40 if flags & _ALONE else 56
                for _ in range(3):
                    while data[at] > 127:  # noqa: PLR2004 - seven bits
                        at += 1
                    at += 1
                yield n, data[8:24].hex(), flags & _CLOSING != 0, data[at:]
            else:
                entry = unpack_entry(data, n, self._epoch).entry
                yield n, entry.turn, entry.closing, entry.body


def id_of(data: bytes) -> str:
    """Return the id of an entry of the list."""
    if data[STORED] & _PLAIN:
        return (data[8:24] if data[STORED] & _ALONE else data[40:56]).hex()
    _, at = unpack_name(data, STORED + 1)
    _, at = unpack_name(data, at)
    return unpack_name(data, at)[0]


def count_of(data: bytes) -> int:
    """Return how many messages are in an entry that was packed in place."""
    return unpack_number(data, 40 if data[STORED] & _ALONE else 56)[0]


def moment(microseconds: int) -> datetime:
    """Return a time of the server's clock."""
    return _BEGIN + timedelta(0, 0, microseconds)
