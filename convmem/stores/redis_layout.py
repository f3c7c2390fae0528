"""How a conversation lies in Redis: its keys, its scripts, and the packed form of an entry. Imports no driver.

Each conversation is one hash and one list in one cluster slot; `lua/redis/row.lua` says what is in them. An owner's index is
a sorted set of session ids, in a slot of its own.

An entry is one element of the list, packed as `convmem.stores.packing` says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import timedelta
from functools import cache
from hashlib import sha1
from importlib import resources
from itertools import chain
from struct import Struct
from typing import Any, Literal

from convmem.keys import SessionKey
from convmem.stores.base import Entry, Head, Holder, Kind, Lease, Log, Lookup, path_of_tenant
from convmem.stores.packing import STORED, Window, apart, id_of, moment, pack_facts, pack_name, unpack_entry, unpack_name

_EXPIRED, _VISIBLE, _MINE = 1, 2, 16
_NOBODY = Holder()
_INCLUDE = re.compile(r"^ *-- include (\w+)\n", re.MULTILINE)
_STATES: tuple[Literal["absent", "running", "interrupted", "complete"], ...] = ("absent", "running", "interrupted", "complete")
_MOST = 2**32 - 1
_LOAD, _APPEND, _RENEW, _DELETE = Struct(">IIIII"), Struct(">BBBBBIIIQ"), Struct(">QI"), Struct(">I")
_FACTS, _HEAD = Struct(">BIIQQQ"), Struct(">III")
_MILLISECOND = timedelta(milliseconds=1)


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


def pack_load(turns: int | None, messages: int | None, before: int | None, tail: int, turn: str | None, lease: Lease | None) -> list[bytes]:
    """Return what the script `load` is told; `tail` is how many elements of the list are read behind it."""
    limits = [0 if limit is None else min(limit + 1, _MOST) for limit in (turns, messages)]
    at = 0 if before is None else min(max(before, 1), _MOST)
    term = 0 if lease is None else min(milliseconds(lease.term), _MOST)
    args = [_LOAD.pack(*limits, at, tail, term), pack_name(lease.token) if lease else b""]
    if turn:
        args.append(pack_name(turn))
    return args


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
        _window(head, tail[-own:] if own else (), window) if own or window else (),
        tuple([unpack_entry(data, n, head.epoch) for n, data in apart(pins)]) if pins else (),
        Holder(held, timedelta(0, 0, running), timedelta(0, 0, remaining)) if held else _NOBODY,
        None if turn is None else Lookup(_STATES[flags >> 2 & 3], position, flags & _VISIBLE != 0),
        expired,
        moment(deleted) if deleted else None,
        _unpack_ended(ended) if ended else frozenset(),
    )


def _window(head: Head, newest: Sequence[bytes], older: Sequence[int | bytes]) -> Window:
    """Return the entries of a load.

    Args:
        head: The log's.
        newest: The last elements of the list, up to the head.
        older: What a script told of those in front of them, the newest first.
    """
    size = len(newest) + (sum(isinstance(item, bytes) for item in older) if older else 0)
    return Window(size, head.epoch, lambda: chain(reversed([*apart(older)]), enumerate(newest, head.n - len(newest) + 1)))


def pack_append(after: Head, entry: Entry, ttl: timedelta | None, *, release: bool, confirm: bool) -> list[bytes]:
    """Return what the script `append` is told."""
    expires = 0 if ttl is None else milliseconds(ttl)
    counts, begins = entry.kind is Kind.TURN, not after.epoch
    numbers = _APPEND.pack(entry.closing, counts, release, confirm, begins, min(after.n, _MOST), entry.turns, entry.start, expires)
    args = [numbers, pack_name(after.epoch or entry.epoch), pack_name(after.id) if after.id else b"", pack_facts(entry) + entry.body]
    if entry.pinned or entry.hides:
        args += [_positions(entry.pinned), _positions(entry.hides)]
    return args


def pack_renew(lease: Lease, head: Head) -> list[bytes]:
    """Return what the script `renew` is told."""
    return [_RENEW.pack(milliseconds(lease.term), min(head.n, _MOST)), pack_name(lease.token), _name(head.epoch), _name(head.id)]


def pack_delete(mark: str, at: Head | None) -> list[bytes]:
    """Return what the script `delete` is told."""
    only = [] if at is None else [_DELETE.pack(min(at.n, _MOST)), _name(at.epoch), _name(at.id)]
    return [pack_name(mark), *only]


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
        at += STORED
    return frozenset(epochs)


def _name(name: str) -> bytes:
    return pack_name(name) if name else b""


def _positions(numbers: Iterable[int]) -> bytes:
    return ",".join(map(str, numbers)).encode()


def milliseconds(duration: timedelta) -> int:
    """Return a duration in milliseconds, at least one, and none of it lost."""
    return max(1, -(-duration // _MILLISECOND))
