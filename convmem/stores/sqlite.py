"""SQLiteStore: one file, any number of processes on one host. The default.

Write-ahead logging, and in each process one connection that writes and one that reads, each with a thread of its own, so the
event loop never waits for the disk. What waits when the writing thread is free is done in one transaction: appends with one
flush at the chosen `synchronous` level, leases before them and without one, for they need not survive a power loss. Every
write is `BEGIN IMMEDIATE`: a deferred transaction that upgrades ignores the busy timeout.

Of a conversation there is a column for each thing that a statement compares; an entry is packed: to read a row costs by its columns.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, TypeVarTuple

from convmem.exceptions import StoreUnavailable
from convmem.identifiers import new_token
from convmem.keys import RESERVED_OWNER, SessionKey
from convmem.stores.base import (
    TOMBSTONE_LIFE,
    Appended,
    Entry,
    Head,
    Health,
    Holder,
    Kind,
    Lease,
    Listed,
    Log,
    Lookup,
    Outcome,
    Page,
    Store,
    StoredEntry,
    Unread,
    decide,
    key_of_owner,
    newest_turns,
    page_cursor,
    path_of_tenant,
    read_page_cursor,
    read_walk_cursor,
    walk_cursor,
)
from convmem.stores.packing import bits_of, count_of, pack_facts, token_of, turn_of, unpack_entry
from convmem.stores.sqlite_file import BARE, LEASE, READ, STORE, File, Job, Needs, Opening, Synchronous

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_POSITION_BITS = 32
_POSITION = (1 << _POSITION_BITS) - 1
_HOUR = 3600.0
_MICROSECONDS = 1_000_000
_Packed = tuple[int, bytes]
_OF_TURN = "substr(packed, 9, 16) = ? AND id > ? AND id <= ?"
_SELECT_ENTRY = "SELECT id, packed FROM entry WHERE id = ? AND visible"
_SELECT_NEWEST = "SELECT id, packed FROM entry WHERE id > ? AND id < ? AND visible ORDER BY id DESC"
_SELECT_TURN = f"SELECT id, packed, visible FROM entry WHERE {_OF_TURN} ORDER BY id"  # noqa: S608 - a constant
_HIDE_EARLIER = f"UPDATE entry SET visible = 0 WHERE {_OF_TURN} AND visible AND substr(packed, 25, 16) <> ?"  # noqa: S608
_HIDE = "UPDATE entry SET visible = 0 WHERE id = ?"
_INSERT_ENTRY = "INSERT INTO entry (id, visible, packed) VALUES (?, ?, ?)"
_LISTED = "tenant, owner, session, turns, created, updated, expires, epoch, n, entry"
_DURABILITY: dict[Synchronous, str] = {
    "normal": "a crash of the process; the last turns may be lost when the power fails (synchronous=NORMAL)",
    "full": "a crash of the process and a power failure (synchronous=FULL)",
    "extra": "a crash of the process and a power failure, also just after the file was made (synchronous=EXTRA)",
}


class SQLiteStore(Store):
    """A store in one SQLite file.

    Several processes may use the file at once, on one host: WAL needs shared memory, so never put it on a network drive.

    Args:
        path: The file; its folder must exist. Made on first use unless `mode` is ``rw``.
        synchronous: What an acknowledged append survives: ``full`` and ``extra`` a power failure, ``normal`` a crash.
        busy_timeout: How long a call waits for another process's write before `StoreUnavailable`.
        mode: ``rwc`` makes the file when it is missing; ``rw`` says it must exist.
    """

    name: ClassVar[str] = "sqlite"
    reach: ClassVar[Literal["process", "host", "network"]] = "host"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: Synchronous = "full",
        busy_timeout: timedelta = timedelta(seconds=5),
        mode: Literal["rwc", "rw"] = "rwc",
    ) -> None:
        """Remember where; the first call opens the file."""
        self.path = Path(path).absolute()
        self._opening = Opening(self.path, synchronous, busy_timeout, mode)
        self._filing = threading.Lock()
        self._file: File | None = None

    async def load(
        self,
        key: SessionKey,
        *,
        turns: int | None = None,
        messages: int | None = None,
        before: int | None = None,
        turn: str | None = None,
        lease: Lease | None = None,
    ) -> Log:
        """See `Store.load`."""
        return await self._run("load", READ if lease is None else LEASE, _load, key, turns, messages, before, turn, lease)

    async def append(self, key: SessionKey, after: Head, entry: Entry, *, ttl: timedelta | None = None, release: bool = False) -> Appended:
        """See `Store.append`."""
        return await self._run("append", STORE, _append, key, after, entry, ttl, release)

    async def renew(self, key: SessionKey, lease: Lease, head: Head) -> bool:
        """See `Store.renew`."""
        return await self._run("renew", LEASE, _renew, key, lease, head)

    async def release(self, key: SessionKey, token: str) -> None:
        """See `Store.release`."""
        await self._run("release", LEASE, _release, key, token)

    async def list(
        self,
        owner: str | None,
        *,
        tenant: str | None = "",
        after: str | None = None,
        limit: int = 50,
        written_before: datetime | None = None,
    ) -> Page:
        """See `Store.list`."""
        until = float("inf") if written_before is None else written_before.timestamp()
        if owner is None and tenant is None and written_before is not None:
            since = read_page_cursor(after)
            place = None if since is None else (since[0], int(since[1]))
            return await self._run("list", READ, _walk_idle, place, limit, until)
        if owner is None:
            path, address = None if tenant is None else path_of_tenant(tenant), read_walk_cursor(after)
            return await self._run("list", READ, _walk, path, address, limit, until)
        key, beyond = key_of_owner(owner, tenant), read_page_cursor(after)
        return await self._run("list", READ, _list, key, beyond, limit, until)

    async def delete(self, key: SessionKey, *, at: Head | None = None) -> bool:
        """See `Store.delete`."""
        return await self._run("delete", STORE, _delete, key, at)

    async def sweep(self) -> int:
        """See `Store.sweep`. At the end the write-ahead log is emptied too, in which deleted text may still stand."""
        removed = await self._run("sweep", STORE, _sweep)
        if not removed:
            await self._run("sweep", BARE, _empty_log)
        return removed

    async def check(self) -> Health:
        """See `Store.check`."""
        await self._run("check", STORE, _probe)
        return Health(self.name, str(self.path), _DURABILITY[self._opening.synchronous], f"SQLite {sqlite3.sqlite_version}")

    async def aclose(self) -> None:
        """See `Store.aclose`. What was asked for before is done first; a later call opens the file again."""
        with self._filing:
            file, self._file = self._file, None
        if file is not None:
            await asyncio.get_running_loop().run_in_executor(None, file.close)

    async def _run(self, operation: str, needs: Needs, work: Callable[[sqlite3.Connection, *Ts], T], *arguments: *Ts) -> T:
        """Have work done by the thread of its kind. Of a caller that is cancelled meanwhile the outcome is unknown."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        job = Job(needs, work, arguments, answer, loop)
        with self._filing:  # a file that is being closed gets no more work
            if self._file is None or self._file.process != os.getpid():
                self._file = File(self._opening)
            self._file.lanes[needs.lane].put(job)
        try:
            return await answer
        except sqlite3.Error as error:
            raise StoreUnavailable(self.name, operation, f"{self.path.name}: {error}", unknown=operation in ("append", "delete")) from error


_SELECT_ROW = (
    "SELECT id, updated, expires, token, taken, until, mark, ended, deleted, epoch, n, entry, turns, start, pinned"
    " FROM conversation WHERE tenant = ? AND owner = ? AND session = ?"
)
_NOBODYS = (None, 0.0, None, "", 0.0, 0.0, "", "{}", 0.0, "", 0, "", 0, 0, "")


class _Row:
    """One row of `conversation`, or the default of an address nobody has used."""

    __slots__ = ("deleted", "ended", "expires", "head", "id", "mark", "taken", "token", "until", "updated")

    id: int | None
    updated: float
    expires: float | None
    token: str
    taken: float
    until: float
    mark: str
    ended: str
    deleted: float

    def __init__(self, link: sqlite3.Connection, key: SessionKey) -> None:
        found: tuple[Any, ...] = link.execute(_SELECT_ROW, key.path).fetchone() or _NOBODYS
        self.id, self.updated, self.expires, self.token, self.taken, self.until, self.mark, self.ended, self.deleted, *head = found
        epoch, n, entry, turns, start, pinned = head
        self.head = Head(epoch, n, entry, turns, start, _positions(pinned))

    def ended_epochs(self) -> dict[str, float]:
        """Return the epochs that deletes have ended, and when."""
        ended: dict[str, float] = {} if self.ended == "{}" else json.loads(self.ended)
        return ended

    def live_token(self, now: float) -> str:
        return self.token if now < self.until else ""

    def expired(self, now: float) -> bool:
        return self.expires is not None and now >= self.expires

    def present(self) -> Head:
        return self.head if self.head.epoch else Head(id=self.mark)

    def position(self, n: int) -> int:
        assert self.id is not None
        return self.id << _POSITION_BITS | n

    def claim(self, link: sqlite3.Connection, key: SessionKey) -> None:
        """Make the row if there is none yet."""
        if self.id is None:
            self.id = link.execute("INSERT INTO conversation (tenant, owner, session) VALUES (?, ?, ?)", key.path).lastrowid


def _load(
    link: sqlite3.Connection,
    key: SessionKey,
    turns: int | None,
    messages: int | None,
    before: int | None,
    turn: str | None,
    lease: Lease | None,
) -> Log:
    now = time.time()
    row = _Row(link, key)
    found = None if turn is None else _look_up(link, row, turn, now)
    if lease and not (found and found.state == "complete") and row.live_token(now) in ("", lease.token):
        _hold(link, key, row, lease, now)
    held = row.live_token(now)
    holder = Holder(held, timedelta(0, now - row.taken), timedelta(0, row.until - now)) if held else Holder()
    deleted_at = _time(row.deleted) if row.mark else None
    ended = frozenset(row.ended_epochs())
    if row.expired(now):
        head = Head(row.head.epoch, row.head.n, row.head.id, 0, row.head.n)
        return Log(head, (), (), holder, found, expired=True, deleted_at=deleted_at, ended=ended)
    if not row.head.epoch:
        return Log(row.present(), (), (), holder, found, deleted_at=deleted_at, ended=ended)
    end = row.head.n + 1 if before is None else min(before, row.head.n + 1)
    between = (row.position(row.head.start), row.position(max(end, 0)))
    rows = _newest(link.execute(_SELECT_NEWEST, between), turns, messages)
    entries = Unread(len(rows), partial(_unpacked, row.head.epoch, rows))
    first = rows[0][0] & _POSITION if rows else end
    pinned = _pinned(link, row, first) if row.head.pinned else ()
    return Log(row.head, entries, pinned, holder, found, deleted_at=deleted_at, ended=ended)


def _newest(cursor: sqlite3.Cursor, turns: int | None, messages: int | None) -> Sequence[_Packed]:
    """Return the rows of the newest turns, oldest first. Where each is one entry, as most are, no row is looked at alone."""
    some: list[_Packed] = []
    if turns and turns < _EXAMINED and messages is None:
        some = cursor.fetchmany(turns + 1)
        if len({turn_of(packed) for _, packed in some}) == len(some):
            return some[:turns][::-1]
    return newest_turns(chain(some, cursor), turns, messages, _turn_and_count)


def _turn_and_count(row: _Packed) -> tuple[bytes, int]:
    return turn_of(row[1]), count_of(row[1])


def _pinned(link: sqlite3.Connection, row: _Row, before: int) -> tuple[StoredEntry, ...]:
    found = [link.execute(_SELECT_ENTRY, (row.position(n),)).fetchone() for n in row.head.pinned if row.head.start < n < before]
    return _unpacked(row.head.epoch, [each for each in found if each is not None])


def _packed(entry: Entry, now: float) -> bytes:
    return b"".join((int(now * _MICROSECONDS).to_bytes(7), pack_facts(entry, in_place=True), entry.body))


def _unpacked(epoch: str, rows: Sequence[_Packed]) -> tuple[StoredEntry, ...]:
    return tuple([unpack_entry(packed, identifier & _POSITION, epoch) for identifier, packed in rows])


def _look_up(link: sqlite3.Connection, row: _Row, turn: str, now: float) -> Lookup:
    if row.id is None or not row.head.epoch:
        return Lookup()
    rows = link.execute(_SELECT_TURN, (bits_of(turn), row.position(0), row.position(row.head.n))).fetchall()
    if not rows:
        return Lookup()
    last, packed, _ = rows[-1]
    newest, first_visible = unpack_entry(packed, last & _POSITION, row.head.epoch), row.position(row.head.start)
    visible = not row.expired(now) and any(shown and identifier > first_visible for identifier, _, shown in rows)
    state: Literal["running", "interrupted", "complete"]
    state = "complete" if newest.entry.closing else "running" if newest.entry.token == row.live_token(now) else "interrupted"
    return Lookup(state, newest.n, visible)


def _hold(link: sqlite3.Connection, key: SessionKey, row: _Row, lease: Lease, now: float) -> None:
    if row.live_token(now) != lease.token:
        row.taken = now
    row.token, row.until = lease.token, now + lease.term.total_seconds()
    if row.id is None:
        link.execute(
            "INSERT INTO conversation (tenant, owner, session, token, taken, until) VALUES (?, ?, ?, ?, ?, ?)",
            (*key.path, row.token, row.taken, row.until),
        )
        return
    link.execute("UPDATE conversation SET token = ?, taken = ?, until = ? WHERE id = ?", (row.token, row.taken, row.until, row.id))


def _append(link: sqlite3.Connection, key: SessionKey, after: Head, entry: Entry, ttl: timedelta | None, release: bool) -> Appended:  # noqa: FBT001
    now = time.time()
    row = _Row(link, key)

    def id_at(n: int) -> str | None:
        if row.id is None or not 1 <= n <= row.head.n:
            return None
        if n == row.head.n:
            return row.head.id
        found = link.execute("SELECT packed FROM entry WHERE id = ?", (row.position(n),)).fetchone()
        return None if found is None else unpack_entry(found[0], n, "").entry.id

    outcome = decide(after, entry, head=row.head, mark=row.mark, ended=row.ended_epochs(), id_at=id_at, live_token=row.live_token(now))
    if outcome is Outcome.STORED:
        row.claim(link, key)
        if release and row.token == entry.token:
            row.token, row.until = "", 0.0
        _store(link, row, after.n + 1, entry, now, ttl)
    elif outcome is not Outcome.DUPLICATE:
        return Appended(outcome, row.present())
    elif release:
        _let_go(link, row, entry.token)
    return Appended(outcome, entry.head_at(after.n + 1))


def _store(link: sqlite3.Connection, row: _Row, n: int, entry: Entry, now: float, ttl: timedelta | None) -> None:
    first, last, packed = row.position(0), row.position(n), _packed(entry, now)
    link.execute(_HIDE_EARLIER, (turn_of(packed), first, last, token_of(packed)))
    for hidden in entry.hides:
        link.execute(_HIDE, (row.position(hidden),))
    if row.expired(now) and entry.start > row.head.start:
        link.execute("DELETE FROM entry WHERE id > ? AND id <= ?", (first, row.position(entry.start) - 1))
    link.execute(_INSERT_ENTRY, (last, entry.kind is Kind.TURN, packed))
    expires = None if ttl is None else now + ttl.total_seconds()
    updated = max(now, row.updated)
    link.execute(
        "UPDATE conversation SET n = ?, entry = ?, turns = ?, start = ?, pinned = ?, updated = ?, expires = ?, token = ?, until = ?"
        " WHERE id = ?",
        (n, entry.id, entry.turns, entry.start, _text(entry.pinned), updated, expires, row.token, row.until, row.id),
    )
    if not row.head.epoch or updated // _HOUR != row.updated // _HOUR:  # what indexes are of: they are written only where it changes
        link.execute(
            "UPDATE conversation SET epoch = ?, hour = ?, created = CASE epoch WHEN '' THEN ? ELSE created END WHERE id = ?",
            (entry.epoch, updated // _HOUR, now, row.id),
        )


def _renew(link: sqlite3.Connection, key: SessionKey, lease: Lease, head: Head) -> bool:
    now = time.time()
    row = _Row(link, key)
    held = row.live_token(now)
    if held != lease.token and (held or not row.present().same(head)):
        return False
    _hold(link, key, row, lease, now)
    return True


def _release(link: sqlite3.Connection, key: SessionKey, token: str) -> None:
    _let_go(link, _Row(link, key), token)


def _let_go(link: sqlite3.Connection, row: _Row, token: str) -> None:
    link.execute("UPDATE conversation SET token = '', until = 0 WHERE id = ? AND token = ?", (row.id, token))
    link.execute("DELETE FROM conversation WHERE id = ? AND token = '' AND epoch = '' AND mark = ''", (row.id,))


def _list(link: sqlite3.Connection, key: SessionKey, beyond: tuple[float, str] | None, limit: int, until: float) -> Page:
    tenant, owner, _ = key.path
    last, session = beyond or (float("inf"), "")
    now = time.time()
    rows = link.execute(
        f"SELECT {_LISTED} FROM conversation"  # noqa: S608 - a constant
        " WHERE tenant = ? AND owner = ? AND epoch <> '' AND hour <= ? AND (expires IS NULL OR expires > ?)"
        " AND (updated, session) < (?, ?) AND updated < ? ORDER BY hour DESC, updated DESC, session DESC LIMIT ?",
        (tenant, owner, min(last, until) / _HOUR, now, last, session, until, limit + 1),
    ).fetchall()
    items = tuple(_listed(row, now) for row in rows[:limit])
    return Page(items, page_cursor(rows[limit - 1][5], items[-1].session_id) if len(rows) > limit else None)


_EXAMINED = 1000
"""How many rows one call looks at, at most: other calls wait for the same thread."""


def _walk(link: sqlite3.Connection, tenant: str | None, beyond: tuple[str, str, str] | None, limit: int, until: float) -> Page:
    """Go by address, along the unique index: what is written meanwhile keeps its place.

    The place is bounded here and not in the statement, which would then begin each page at the tenant's first address.
    """
    place = max(beyond or ("", "", ""), (tenant or "", "", ""))
    rows = link.execute(
        f"SELECT {_LISTED} FROM conversation"  # noqa: S608 - a constant
        " WHERE (tenant, owner, session) > (?, ?, ?) AND tenant <= ? ORDER BY tenant, owner, session LIMIT ?",
        (*place, "\x7f" if tenant is None else tenant, _EXAMINED),
    ).fetchall()
    shown, last = _shown(rows, limit, until)
    return Page(shown, None if last is None else walk_cursor(last[:3]))


def _walk_idle(link: sqlite3.Connection, beyond: tuple[float, int] | None, limit: int, until: float) -> Page:
    """Go by the hour of writing: what is written meanwhile leaves, and the rest keeps its place."""
    rows = link.execute(
        f"SELECT {_LISTED}, id FROM conversation"  # noqa: S608 - a constant
        " WHERE epoch <> '' AND hour <= ? AND (hour, id) > (?, ?) ORDER BY hour, id LIMIT ?",
        (until / _HOUR, *(beyond or (-1.0, 0)), _EXAMINED),
    ).fetchall()
    shown, last = _shown(rows, limit, until)
    return Page(shown, None if last is None else page_cursor(last[5] // _HOUR, str(last[10])))


def _shown(rows: list[tuple[Any, ...]], limit: int, until: float) -> tuple[tuple[Listed, ...], tuple[Any, ...] | None]:
    """Return the first conversations among the rows of a walk, and the row to go on behind; None for that when they are all."""
    now = time.time()
    shown: list[Listed] = []
    for row in rows:
        if row[7] and row[5] < until and not row[1].startswith(RESERVED_OWNER):
            shown.append(_listed(row, now))
            if len(shown) == limit:
                return tuple(shown), None if row is rows[-1] and len(rows) < _EXAMINED else row
    return tuple(shown), rows[-1] if len(rows) == _EXAMINED else None


def _listed(row: tuple[Any, ...], now: float) -> Listed:
    tenant, owner, session, turns, created, updated, expires, epoch, n, entry = row[:10]
    key, revision = SessionKey.of_path((tenant, owner, session)), Head(epoch, n, entry).revision
    return Listed(key, turns, _time(created), _time(updated), revision, expired=expires is not None and now >= expires)


def _delete(link: sqlite3.Connection, key: SessionKey, at: Head | None) -> bool:
    now = time.time()
    _forget(link, now)
    row = _Row(link, key)
    if at is not None and not row.present().same(at):
        return False
    existed = bool(row.head.epoch) and (at is not None or not row.expired(now))
    row.claim(link, key)
    oldest = now - TOMBSTONE_LIFE.total_seconds()
    ended = {epoch: at for epoch, at in row.ended_epochs().items() if at > oldest}
    if row.head.epoch:
        ended[row.head.epoch] = now
    link.execute("DELETE FROM entry WHERE id > ? AND id <= ?", (row.position(0), row.position(row.head.n)))
    link.execute(
        "UPDATE conversation SET epoch = '', n = 0, entry = '', turns = 0, start = 0, pinned = '', expires = NULL,"
        " token = '', until = 0, mark = ?, ended = ?, deleted = ? WHERE id = ?",
        (new_token(), json.dumps(ended), now, row.id),
    )
    return existed


def _forget(link: sqlite3.Connection, now: float, most: int = 10) -> int:
    """Drop a few addresses nobody needs: tombstones past their life, and leases of workers that died before a first turn."""
    return link.execute(
        "DELETE FROM conversation WHERE id IN (SELECT id FROM conversation WHERE epoch = '' AND deleted < ? AND until < ? LIMIT ?)",
        (now - TOMBSTONE_LIFE.total_seconds(), now, most),
    ).rowcount


def _sweep(link: sqlite3.Connection) -> int:
    return _forget(link, time.time(), _EXAMINED)


def _empty_log(link: sqlite3.Connection) -> None:
    """Do it when nobody is reading: a checkpoint that has to wait is given up, and the next sweep tries again."""
    link.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


def _probe(link: sqlite3.Connection) -> None:
    """Write and read, and leave nothing behind."""
    link.execute("SAVEPOINT probe")
    link.execute("INSERT INTO conversation (tenant, owner, session) VALUES ('', '', '')")
    link.execute("SELECT id FROM conversation WHERE tenant = '' AND owner = '' AND session = ''").fetchone()
    link.execute("ROLLBACK TO probe")
    link.execute("RELEASE probe")


def _positions(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(","))) if text else ()


def _text(positions: tuple[int, ...]) -> str:
    return ",".join(map(str, positions))


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
