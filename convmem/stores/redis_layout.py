"""How a conversation lies in Redis: its keys, its scripts, and the packed form of an entry. Imports no driver.

Each conversation is one hash and one list in one cluster slot; `lua/redis/row.lua` says what is in them. An owner's index is
a sorted set of session ids, in a slot of its own.

An entry is one element of the list: seven bytes of when it was stored (microseconds since 1970, big-endian), then what
`pack_entry` makes: flags, id, token, turn, the count, turns, start, the rarer fields as JSON when there are any, and the body.
"""

from __future__ import annotations

import json
import re
from binascii import Error as Base64Error, a2b_base64, b2a_base64
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import sha1
from importlib import resources
from struct import Struct
from typing import Any, Literal, overload

from convmem.keys import SessionKey
from convmem.stores.base import ENTRY_FORMAT, Entry, Head, Holder, Kind, Lease, Log, Lookup, StoredEntry, path_of_tenant

_KINDS = (Kind.TURN, Kind.EDIT, Kind.RESET)
_CLOSING, _MORE, _PLAIN, _ALONE = 4, 8, 16, 32
_EXPIRED, _VISIBLE, _MINE = 1, 2, 16
_NOBODY = Holder()
_HEX, _BASE64, _LONG = 255, 254, 253
_STORED = 7
_NONE = b"\x00"
_INCLUDE = re.compile(r"^ *-- include (\w+)\n", re.MULTILINE)
_STATES: tuple[Literal["absent", "running", "interrupted", "complete"], ...] = ("absent", "running", "interrupted", "complete")
_MOST = 2**32 - 1
_LOAD, _APPEND, _RENEW, _DELETE = Struct(">IIIIQ"), Struct(">BBBBBIIIQ"), Struct(">QI"), Struct(">I")
_FACTS, _HEAD = Struct(">BIIQQQ"), Struct(">III")
_PLAIN_ENTRY = Struct(">8x16s16sBBB")
_MILLISECOND = timedelta(milliseconds=1)
_BEGIN = datetime(1970, 1, 1, tzinfo=UTC)
_URL_SAFE, _STANDARD = bytes.maketrans(b"+/", b"-_"), bytes.maketrans(b"-_+/", b"+/!!")


class Script:
    """One verb's script, as it is sent: by its digest, and whole to a server that does not know it yet."""

    __slots__ = ("digest", "source")

    def __init__(self, verb: str) -> None:
        """Read it from the package."""
        self.source = _source(verb).encode()
        self.digest = sha1(self.source, usedforsecurity=False).hexdigest().encode()


def _source(name: str) -> str:
    """Return a file of Lua, with the files it includes in their places."""
    text = resources.files("convmem.stores").joinpath("lua", "redis", f"{name}.lua").read_text(encoding="utf-8")
    return _INCLUDE.sub(lambda found: _source(found[1]), text)


@cache
def script(verb: str) -> Script:
    """Return a verb's script; each is read once."""
    return Script(verb)


class Keys:
    """The keys of one namespace. What stands in braces is the hash tag: a conversation's keys share a slot, an owner's do not."""

    def __init__(self, namespace: str) -> None:
        """Put this in front of every key."""
        self.namespace = namespace.encode()
        self._row, self._log = f"{namespace}:c:".encode(), f"{namespace}:e:".encode()
        self._index = f"{namespace}:o:"

    def of(self, key: SessionKey) -> tuple[bytes, bytes]:
        """Return the keys of a conversation's row and log."""
        path = b"{%s}" % "/".join(key.path).encode()
        return self._row + path, self._log + path

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


def pack_name(name: str) -> bytes:
    """Return a name as it is stored: a tag and 16 bytes for the ids and the tokens this package makes, else its length and text."""
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
    flags = _KINDS.index(entry.kind) | entry.closing << 2
    more = b""
    if entry.pinned or entry.hides or entry.key_id or entry.format != ENTRY_FORMAT:
        document = json.dumps([entry.pinned, entry.hides, entry.format, entry.key_id], separators=(",", ":")).encode()
        more = pack_number(len(document)) + document
        flags |= _MORE
    identifier, token = pack_name(entry.id), pack_name(entry.token)
    turn = identifier if entry.turn == entry.id else pack_name(entry.turn)
    if (identifier[0], token[0], turn[0]) == (_HEX, _BASE64, _HEX):
        flags |= _PLAIN | _ALONE if turn is identifier else _PLAIN
        identifier, token, turn = identifier[1:], token[1:], b"" if turn is identifier else turn[1:]
    numbers = pack_number(entry.count) + pack_number(entry.start) + pack_number(entry.turns)
    return b"".join((bytes((flags,)), identifier, token, turn, numbers, more, entry.body))


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
    flags = data[_STORED]
    if flags & _PLAIN:
        id_bits, token_bits, count, start, turns = _PLAIN_ENTRY.unpack_from(data)
        identifier, token, at = id_bits.hex(), _base64(token_bits), _PLAIN_ENTRY.size
        if flags & _ALONE:
            turn = identifier
        else:
            turn, at = data[40:56].hex(), at + 16
            count, start, turns = data[56:59]
    else:
        identifier, at = unpack_name(data, _STORED + 1)
        token, at = unpack_name(data, at)
        turn, at = unpack_name(data, at)
        count, start, turns = data[at : at + 3]
        at += 3
    if count | start | turns >= 128:  # noqa: PLR2004 - seven bits
        count, at = unpack_number(data, at - 3)
        start, at = unpack_number(data, at)
        turns, at = unpack_number(data, at)
    rare: tuple[Any, ...] = ()
    if flags & _MORE:
        size, at = unpack_number(data, at)
        pinned, hides, format_, key_id = json.loads(data[at : at + size])
        rare = tuple(pinned), tuple(hides), format_, key_id
        at += size
    kind, closing = _KINDS[flags & 3], flags & _CLOSING != 0
    entry = Entry.read(identifier, turn, token, epoch, data[at:], count, kind, closing, turns, start, *rare)
    return _Stored(n, entry, data[:_STORED])


def _unpack_apart(window: Sequence[int | bytes], epoch: str) -> Iterator[StoredEntry]:
    """Return the entries of a script's reply in its order: a number is the position of the entry behind it, the next is one less."""
    n = 0
    for item in window:
        if isinstance(item, int):
            n = item
        else:
            yield unpack_entry(item, n, epoch)
            n -= 1


class Window(Sequence[StoredEntry]):
    """The entries of a load, oldest first, unpacked when somebody looks at one of them.

    Args:
        head: The log's.
        newest: The last elements of the list, up to the head.
        older: What a script told of those in front of them, the newest first.
    """

    __slots__ = ("_epoch", "_first", "_newest", "_older", "_unpacked")

    def __init__(self, head: Head, newest: Sequence[bytes], older: Sequence[int | bytes]) -> None:
        """Unpack nothing yet."""
        self._epoch, self._first, self._newest, self._older = head.epoch, head.n - len(newest) + 1, newest, older
        self._unpacked: tuple[StoredEntry, ...] | None = None

    def _entries(self) -> tuple[StoredEntry, ...]:
        if self._unpacked is None:
            older = reversed(list(_unpack_apart(self._older, self._epoch)))
            newest = [unpack_entry(data, n, self._epoch) for n, data in enumerate(self._newest, self._first)]
            self._unpacked = (*older, *newest)
        return self._unpacked

    def __len__(self) -> int:
        """Return how many there are; none is unpacked for that."""
        return len(self._newest) + sum(isinstance(item, bytes) for item in self._older)

    @overload
    def __getitem__(self, index: int) -> StoredEntry: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[StoredEntry, ...]: ...

    def __getitem__(self, index: int | slice) -> StoredEntry | tuple[StoredEntry, ...]:
        """Return one, or several."""
        return self._entries()[index]

    def __iter__(self) -> Iterator[StoredEntry]:
        """Return them in their order."""
        return iter(self._entries())

    def __eq__(self, other: object) -> bool:
        """Return whether the other is a sequence of the same."""
        return isinstance(other, Sequence) and self._entries() == tuple(other)

    __hash__ = None  # type: ignore[assignment]  # as any that unpacks itself

    def __repr__(self) -> str:
        """Return them as a tuple shows itself."""
        return repr(self._entries())


def pack_load(turns: int | None, messages: int | None, before: int | None, tail: int, turn: str | None, lease: Lease | None) -> bytes:
    """Return what the script `load` is told; `tail` is how many elements of the list are read behind it."""
    limits = [0 if limit is None else min(limit + 1, _MOST) for limit in (turns, messages)]
    at = 0 if before is None else min(max(before, 1), _MOST)
    term = 0 if lease is None else milliseconds(lease.term)
    names = (pack_name(lease.token) if lease else _NONE) + (pack_name(turn) if turn else _NONE)
    return _LOAD.pack(*limits, at, tail, term) + names


def unpack_load(reply: Any, tail: Sequence[bytes], turn: str | None, lease: Lease | None) -> Log | None:
    """Return what a load has found; None when the log has moved between the script and the reading of its tail."""
    facts, window, pins, ended = (reply, (), (), b"") if isinstance(reply, bytes) else reply
    flags, position, own, running, remaining, deleted = _FACTS.unpack_from(facts)
    held, at = unpack_name(facts, _FACTS.size)
    if flags & _MINE and lease:
        held = lease.token
    head = unpack_head(facts, at)
    if own and (len(tail) < own or id_of(tail[-1]) != head.id):
        return None
    expired = flags & _EXPIRED != 0
    return Log(
        Head(head.epoch, head.n, head.id, 0, head.n) if expired else head,
        Window(head, tail[-own:], window) if own else Window(head, (), window) if window else (),
        tuple(_unpack_apart(pins, head.epoch)) if pins else (),
        Holder(held, timedelta(0, 0, running), timedelta(0, 0, remaining)) if held else _NOBODY,
        None if turn is None else Lookup(_STATES[flags >> 2 & 3], position, flags & _VISIBLE != 0),
        expired,
        moment(deleted) if deleted else None,
        _unpack_ended(ended) if ended else frozenset(),
    )


def pack_append(after: Head, entry: Entry, ttl: timedelta | None, *, release: bool, confirm: bool) -> list[bytes]:
    """Return what the script `append` is told."""
    expires = 0 if ttl is None else milliseconds(ttl)
    counts, begins = entry.kind is Kind.TURN, not after.epoch
    numbers = _APPEND.pack(entry.closing, counts, release, confirm, begins, after.n, entry.turns, entry.start, expires)
    args = [numbers + pack_name(after.epoch or entry.epoch) + pack_name(after.id), pack_entry(entry)]
    if entry.pinned or entry.hides:
        args += [_positions(entry.pinned), _positions(entry.hides)]
    return args


def pack_renew(lease: Lease, head: Head) -> bytes:
    """Return what the script `renew` is told."""
    return _RENEW.pack(milliseconds(lease.term), head.n) + b"".join(map(pack_name, (lease.token, head.epoch, head.id)))


def pack_delete(mark: str, at: Head | None) -> list[bytes]:
    """Return what the script `delete` is told."""
    only = [] if at is None else [_DELETE.pack(at.n) + pack_name(at.epoch) + pack_name(at.id)]
    return [pack_name(mark), *only]


def id_of(data: bytes) -> str:
    """Return the id of an entry of the list."""
    if data[_STORED] & _PLAIN:
        return data[8:24].hex()
    return unpack_name(data, _STORED + 1)[0]


def unpack_head(reply: bytes, at: int = 0) -> Head:
    """Return the head that scripts tell: n, turns, start, the epoch, the id or the newest mark, and the pinned positions."""
    n, turns, start = _HEAD.unpack_from(reply, at)
    epoch, at = unpack_name(reply, at + 12)
    identifier, at = unpack_name(reply, at)
    return Head(epoch, n, identifier, turns, start, tuple(map(int, reply[at:].split(b","))) if at < len(reply) else ())


def _unpack_ended(reply: bytes) -> frozenset[str]:
    """Return the epochs that deletes have ended; behind each is when that was."""
    epochs, at = set(), 0
    while at < len(reply):
        epoch, at = unpack_name(reply, at)
        epochs.add(epoch)
        at += _STORED
    return frozenset(epochs)


def _positions(numbers: Iterable[int]) -> bytes:
    return ",".join(map(str, numbers)).encode()


def milliseconds(duration: timedelta) -> int:
    """Return a duration in milliseconds, at least one, and none of it lost."""
    return max(1, -(-duration // _MILLISECOND))


def moment(microseconds: int) -> datetime:
    """Return a time of the server's clock."""
    return _BEGIN + timedelta(0, 0, microseconds)
