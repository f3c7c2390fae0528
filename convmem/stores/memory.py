"""MemoryStore: one process, gone with it. For tests, notebooks and trying things out."""

from __future__ import annotations

import multiprocessing
import os
import platform
import threading
import time
import warnings
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from heapq import nsmallest
from operator import itemgetter
from typing import ClassVar, Literal

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
    decide,
    key_of_owner,
    newest_turns,
    page_cursor,
    path_of_tenant,
    read_page_cursor,
    read_walk_cursor,
    walk_cursor,
)

_FORGET_EVERY = 60.0
"""Seconds."""


class ProcessLocalMemoryWarning(UserWarning):
    """Several processes were started, and each has a memory of its own."""


@dataclass(slots=True)
class _Conversation:
    """One address: its life, its lease and its tombstone. `log[n - 1]` is the entry at n."""

    head: Head = field(default_factory=Head)
    log: list[StoredEntry] = field(default_factory=list)
    turns: dict[str, list[int]] = field(default_factory=dict)
    unseen: set[int] = field(default_factory=set)
    created: float = 0.0
    updated: float = 0.0
    expires: float | None = None
    token: str = ""
    taken: float = 0.0
    until: float = 0.0
    mark: str = ""
    ended: dict[str, float] = field(default_factory=dict)
    deleted: float = 0.0

    def live_token(self, now: float) -> str:
        return self.token if now < self.until else ""

    def expired(self, now: float) -> bool:
        return self.expires is not None and now >= self.expires

    def present(self) -> Head:
        return self.head if self.head.epoch else Head(id=self.mark)

    def id_at(self, n: int) -> str | None:
        return self.log[n - 1].entry.id if 1 <= n <= len(self.log) else None

    def visible(self, n: int) -> bool:
        return n > self.head.start and n not in self.unseen and self.log[n - 1].entry.kind is Kind.TURN


class MemoryStore(Store):
    """A store in the memory of one process.

    It warns once, with `ProcessLocalMemoryWarning`, where its process looks like one of several workers: each of them would
    have a memory of its own. Safe to use from several threads and event loops of the one process.
    """

    name: ClassVar[str] = "memory"
    reach: ClassVar[Literal["process", "host", "network"]] = "process"

    def __init__(self) -> None:
        """Start empty."""
        self._conversations: dict[tuple[str, str, str], _Conversation] = {}
        self._lock = threading.Lock()
        self._warned = False
        self._forgot = 0.0

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
        self._warn_about_workers()
        with self._lock:
            now = time.time()
            row = self._conversations.get(key.path) or _Conversation()
            found = _look_up(row, turn, now) if turn is not None else None
            if lease and not (found and found.state == "complete") and row.live_token(now) in ("", lease.token):
                self._conversations[key.path] = row
                if row.live_token(now) != lease.token:
                    row.taken = now
                row.token, row.until = lease.token, now + lease.term.total_seconds()
            held = row.live_token(now)
            holder = Holder(held, timedelta(seconds=now - row.taken), timedelta(seconds=row.until - now)) if held else Holder()
            deleted_at = datetime.fromtimestamp(row.deleted, UTC) if row.mark else None
            ended = frozenset(row.ended)
            if row.expired(now):
                head = Head(row.head.epoch, row.head.n, row.head.id, 0, row.head.n)
                return Log(head, (), (), holder, found, expired=True, deleted_at=deleted_at, ended=ended)
            end = row.head.n + 1 if before is None else before
            entries = newest_turns((s for s in reversed(row.log[: max(end - 1, 0)]) if row.visible(s.n)), turns, messages)
            first = entries[0].n if entries else end
            pinned = tuple(row.log[n - 1] for n in row.head.pinned if n < first and row.visible(n))
            return Log(row.present(), entries, pinned, holder, found, deleted_at=deleted_at, ended=ended)

    async def append(self, key: SessionKey, after: Head, entry: Entry, *, ttl: timedelta | None = None, release: bool = False) -> Appended:
        """See `Store.append`."""
        self._warn_about_workers()
        with self._lock:
            now = time.time()
            row = self._conversations.get(key.path) or _Conversation()
            outcome = decide(after, entry, head=row.head, mark=row.mark, ended=row.ended, id_at=row.id_at, live_token=row.live_token(now))
            if outcome is Outcome.STORED:
                self._conversations[key.path] = row
                self._store(row, after.n + 1, entry, now, ttl)
            if outcome in (Outcome.STORED, Outcome.DUPLICATE):
                if release:
                    self._let_go(key, row, entry.token)
                return Appended(outcome, entry.head_at(after.n + 1))
            return Appended(outcome, row.present())

    def _store(self, row: _Conversation, n: int, entry: Entry, now: float, ttl: timedelta | None) -> None:
        if not row.head.epoch:
            row.created = now
        attempts = row.turns.setdefault(entry.turn, [])
        row.unseen.update(m for m in attempts if row.log[m - 1].entry.token != entry.token)
        attempts.append(n)
        row.unseen.update(entry.hides)
        row.log.append(StoredEntry(n, entry, datetime.fromtimestamp(now, UTC)))
        row.head = entry.head_at(n)
        row.updated = max(now, row.updated)
        row.expires = None if ttl is None else now + ttl.total_seconds()

    async def renew(self, key: SessionKey, lease: Lease, head: Head) -> bool:
        """See `Store.renew`."""
        with self._lock:
            now = time.time()
            row = self._conversations.get(key.path)
            if row is None:
                row = _Conversation()
            held = row.live_token(now)
            if held != lease.token and (held or not row.present().same(head)):
                return False
            if held != lease.token:
                row.taken = now
            row.token, row.until = lease.token, now + lease.term.total_seconds()
            self._conversations[key.path] = row
            return True

    async def release(self, key: SessionKey, token: str) -> None:
        """See `Store.release`."""
        with self._lock:
            row = self._conversations.get(key.path)
            if row is not None:
                self._let_go(key, row, token)

    def _let_go(self, key: SessionKey, row: _Conversation, token: str) -> None:
        if row.token == token:
            row.token, row.until = "", 0.0
        if not row.token and not row.head.epoch and not row.mark:
            self._conversations.pop(key.path, None)

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
        if owner is None:
            return self._walk(None if tenant is None else path_of_tenant(tenant), after, limit, until)
        key, beyond = key_of_owner(owner, tenant), read_page_cursor(after)
        with self._lock:
            now = time.time()
            found: list[tuple[float, str, _Conversation]] = []
            for (of_tenant, of_owner, session), row in self._conversations.items():
                if (of_tenant, of_owner) != key.path[:2] or not row.head.epoch or row.expired(now):
                    continue
                if row.updated < until and (beyond is None or (row.updated, session) < beyond):
                    found.append((row.updated, session, row))
            found.sort(key=itemgetter(0, 1), reverse=True)
            items = tuple(_listed((*key.path[:2], session), row, now) for _, session, row in found[:limit])
            return Page(items, page_cursor(*found[limit - 1][:2]) if len(found) > limit else None)

    def _walk(self, tenant: str | None, after: str | None, limit: int, until: float) -> Page:
        """Go by address: what is written meanwhile keeps its place."""
        beyond = read_walk_cursor(after)
        with self._lock:
            now = time.time()
            rest = nsmallest(
                limit + 1,
                (
                    path
                    for path, row in self._conversations.items()
                    if (beyond is None or path > beyond) and tenant in (None, path[0]) and row.head.epoch and row.updated < until
                    if not path[1].startswith(RESERVED_OWNER)
                ),
            )
            items = tuple(_listed(path, self._conversations[path], now) for path in rest[:limit])
            return Page(items, walk_cursor(rest[limit - 1]) if len(rest) > limit else None)

    async def delete(self, key: SessionKey, *, at: Head | None = None) -> bool:
        """See `Store.delete`."""
        with self._lock:
            now = time.time()
            self._forget(now)
            row = self._conversations.get(key.path) or _Conversation()
            if at is not None and not row.present().same(at):
                return False
            self._conversations[key.path] = row
            existed = bool(row.head.epoch) and (at is not None or not row.expired(now))
            if row.head.epoch:
                row.ended[row.head.epoch] = now
            row.head, row.log, row.turns, row.unseen, row.expires = Head(), [], {}, set(), None
            row.token, row.until, row.mark, row.deleted = "", 0.0, new_token(), now
            return existed

    async def sweep(self) -> int:
        """See `Store.sweep`."""
        with self._lock:
            before, self._forgot = len(self._conversations), 0.0
            self._forget(time.time())
            return before - len(self._conversations)

    def _forget(self, now: float) -> None:
        """Drop tombstones past their life, and with them what only they kept; now and then, for it looks at everything."""
        if now < self._forgot + _FORGET_EVERY:
            return
        self._forgot = now
        oldest = now - TOMBSTONE_LIFE.total_seconds()
        for path, row in list(self._conversations.items()):
            row.ended = {epoch: at for epoch, at in row.ended.items() if at > oldest}
            if row.mark and row.deleted <= oldest:
                row.mark = ""
            if not row.mark and not row.head.epoch and not row.live_token(now):
                del self._conversations[path]

    async def check(self) -> Health:
        """See `Store.check`."""
        self._warn_about_workers()
        return Health(self.name, f"process {os.getpid()}", "nothing: gone when this process ends", f"Python {platform.python_version()}")

    async def aclose(self) -> None:
        """Forget nothing: the same object may be used again."""

    def _warn_about_workers(self) -> None:
        if self._warned:
            return
        self._warned = True
        why = _sign_of_workers()
        if why:
            msg = f"MemoryStore keeps conversations in this process alone, and {why}; set CONVMEM_STORE=sqlite:///convmem.db."
            warnings.warn(msg, ProcessLocalMemoryWarning, stacklevel=4)


def _listed(path: tuple[str, str, str], row: _Conversation, now: float) -> Listed:
    return Listed(
        SessionKey.of_path(path), row.head.turns, _time(row.created), _time(row.updated), row.head.revision, expired=row.expired(now)
    )


def _look_up(row: _Conversation, turn: str, now: float) -> Lookup:
    mine = row.turns.get(turn)
    if not mine:
        return Lookup()
    last = row.log[mine[-1] - 1]
    visible = not row.expired(now) and any(row.visible(n) for n in mine)
    if last.entry.closing:
        return Lookup("complete", last.n, visible)
    return Lookup("running" if last.entry.token == row.live_token(now) else "interrupted", last.n, visible)


def _sign_of_workers() -> str:
    workers = os.environ.get("WEB_CONCURRENCY", "")  # noqa: TID251 - a sign of the process, not a setting of ours
    if workers.isdigit() and int(workers) > 1:
        return f"WEB_CONCURRENCY is {workers}"
    if multiprocessing.parent_process() is not None:
        return "this process was started by multiprocessing, as a server's worker is"
    if "gunicorn" in os.environ.get("SERVER_SOFTWARE", ""):  # noqa: TID251 - as above
        return "this process is a gunicorn worker"
    return ""


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
