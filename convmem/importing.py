"""Conversations from elsewhere: an export of ours, or what another library has kept.

Written once above all stores. A conversation is appended entry by entry under a lease. The ids of its entries come from the source,
and say what stands in front of them too: where the log's head is one of them, everything before it is there. So an import that was
killed goes on where it was, one that is done does nothing, and a conversation that goes on differently here is left alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from hashlib import sha256

from convmem.access import ledger_at_hand
from convmem.exceptions import StoreUnavailable
from convmem.messages import Edit, Item, Message, edited
from convmem.sources import open_source
from convmem.sources.base import Batch, LeftOut
from convmem.stores.base import Entry, Head, Lease, Log, Outcome, Store
from convmem.turns import edit_pins, entry_after
from convmem.walks import patiently

_TERM = timedelta(seconds=10)
"""Of the lease under which a conversation is written."""
_RENEW_AFTER = 3.0


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import has done; while it runs, what it has done so far. With `dry_run`, what it would do.

    Attributes:
        conversations: How many are here now, by this import or an earlier one.
        already: How many of these had been here, whole.
        messages: How many messages this import has stored.
        renamed: How many have another session id here, because the one they had is not 1 to 128 of ``A-Z a-z 0-9 _ -``.
        left_out: How many conversations, messages or lines could not be carried.
    """

    conversations: int = 0
    already: int = 0
    messages: int = 0
    renamed: int = 0
    left_out: int = 0


async def import_conversations(
    place: str,
    source: str = "convmem",
    *,
    owner: str | None = None,
    ids: str | None = None,
    tenant: str | None = None,
    table: str | None = None,
    prefix: str | None = None,
    store: Store | None = None,
    dry_run: bool = False,
    undelete: bool = False,
    progress: Callable[[Imported], None] | None = None,
    left_out: Callable[[LeftOut], None] | None = None,
) -> Imported:
    """Read conversations from a place and store them. Nothing is changed there; repeated, it goes on where it was.

    A conversation that is here already and goes on differently, is being written at this moment, was deleted or has expired is left
    alone, and named. Apps may run meanwhile: each conversation is written under its lease. One that is written here counts as new: its
    TTL and its retention begin now. Its messages keep their times where the source has them.

    Args:
        place: A file, or the URL of a database, without a driver's name or with one.
        source: Who wrote it: ``convmem`` for an export, or a name in `convmem.sources.SOURCES`.
        owner: Whose they all are to be, such as ``user:42``. None: as an export says, or as `ids` finds.
        ids: What their session ids look like, such as ``{user}:{session}``: the owner by its kind (``user``, ``visitor``, ``header``),
            ``session`` and ``tenant``; each is as short as it can be. None with an owner: ``{session}``.
        tenant: In which tenant; None: as an export says, or as `ids` finds, else the empty one.
        table: The table, where the source is a database; None: the library's default.
        prefix: What the keys begin with, where the source is Redis; None: the library's default.
        store: As in `open_conversation`.
        dry_run: Read and compare all, and store nothing.
        undelete: Store conversations that were deleted here, too.
        progress: Told the receipt so far, after each entry.
        left_out: Told what could not be carried, one by one.

    Raises:
        ConfigurationError: An argument cannot work, or a package is missing.
        SourceUnreadable: The source cannot be read, or stopped answering; what was stored stays, so call it again.
        StoreUnavailable: The store does not answer; the same.
    """
    reading = open_source(source, place, owner=owner, ids=ids, tenant=tenant, table=table, prefix=prefix)
    async with ledger_at_hand(store) as ledger, aclosing(reading) as batches:
        job = _Job(progress, left_out)
        writing: _Conversation | None = None
        try:
            async for said in batches:
                if isinstance(said, LeftOut):
                    job.leave_out(said)
                    continue
                if writing is None or (writing.name, writing.key) != (said.name, said.key):
                    if writing is not None:
                        await writing.end()
                    writing = _Conversation(job, ledger.store, ledger.rules.ttl, said, dry_run=dry_run, undelete=undelete)
                    await writing.begin()
                await writing.take(said)
            if writing is not None:
                await writing.end()
        finally:
            if writing is not None:
                await writing.release()
        return job.receipt


class _Job:
    """What one import tells, and its receipt."""

    def __init__(self, progress: Callable[[Imported], None] | None, left_out: Callable[[LeftOut], None] | None) -> None:
        self.receipt = Imported()
        self._progress = progress
        self._left_out = left_out

    def count(self, **more: int) -> None:
        self.receipt = replace(self.receipt, **{name: getattr(self.receipt, name) + number for name, number in more.items()})
        if self._progress is not None:
            self._progress(self.receipt)

    def leave_out(self, what: LeftOut) -> None:
        if self._left_out is not None:
            self._left_out(what)
        self.count(left_out=1)


class _Conversation:
    """One conversation on its way into a store.

    Attributes:
        name: Its name where it comes from.
        key: Its address here.
    """

    def __init__(self, job: _Job, store: Store, ttl: timedelta | None, first: Batch, *, dry_run: bool, undelete: bool) -> None:
        """Begin with its first batch, which is still to be taken."""
        self.name = first.name
        self.key = first.key
        self._renamed = first.renamed
        self._job = job
        self._store = store
        self._ttl = ttl
        self._dry_run = dry_run
        self._undelete = undelete
        self._head = Head()
        self._caught_up = False  # what follows is not in the log yet
        self._wrote = False
        self._refused = False
        self._turn = ""
        self._counted = False
        self._system: list[Message] = []  # those in sight
        self._token = _digest("lease", *self.key.path)
        self._renewed: float | None = None

    async def begin(self) -> None:
        """Look at what is here."""
        log = await patiently(lambda: self._store.load(self.key, turns=0))
        self._head, self._caught_up = log.head, not log.head.epoch
        if log.expired:
            self._refuse("it was here and has outlived its TTL")
        elif self._caught_up and log.deleted_at is not None and not self._undelete:
            self._refuse(f"it was deleted here on {log.deleted_at:%Y-%m-%d}")

    async def take(self, batch: Batch) -> None:
        """Store a batch, unless it is here."""
        if batch.turn != self._turn:
            self._turn, self._counted = batch.turn, False
        entry, self._counted = self._entry(batch)
        if self._refused:
            return
        if not self._caught_up:
            self._caught_up = batch.id == self._head.id
            return
        if not self._dry_run:
            await self._append(entry)
        if not self._refused:
            self._wrote = True
            self._job.count(messages=entry.count)

    async def end(self) -> None:
        """Give the lease back; count the conversation, or say that it goes on differently here."""
        await self.release()
        if not self._refused and not self._caught_up and not await self._is_behind():
            self._refuse("there is another conversation at its address, or it goes on differently there")
        if not self._refused:
            self._job.count(conversations=1, already=not self._wrote, renamed=self._renamed)

    async def release(self) -> None:
        """Give the lease back, if it was taken; one that cannot be given back runs out."""
        if self._renewed is not None:
            self._renewed = None
            with suppress(StoreUnavailable):
                await patiently(lambda: self._store.release(self.key, self._token))

    async def _is_behind(self) -> bool:
        """Return whether all of it is here, and more was said since: its last turn is in the log."""
        log = await patiently(lambda: self._store.load(self.key, turns=0, turn=self._turn))
        return log.turn is not None and log.turn.state != "absent"

    def _entry(self, batch: Batch) -> tuple[Entry, bool]:
        return entry_after(
            self._head,
            [(item, self._pins(item)) for item in batch.said],
            batch.body,
            id=batch.id,
            turn=batch.turn,
            token=self._token,
            epoch=self._head.epoch or _digest("epoch", *self.key.path, self._head.id),
            closing=batch.closing,
            counted=self._counted,
            format=batch.format,
            key_id=batch.key_id,
        )

    def _pins(self, item: Item) -> bool:
        """Return whether this is to be loaded with every window: a system message, or an edit of one."""
        if isinstance(item, Message):
            if item.role == "system":
                self._system.append(item)
            return item.role == "system"
        if not isinstance(item, Edit):
            return False
        pins = edit_pins(item, self._system)
        (self._system, _) = edited([self._system, [item]])
        return pins

    async def _append(self, entry: Entry) -> None:
        if not await self._holds(entry):
            return
        appended = await patiently(lambda: self._store.append(self.key, self._head, entry, ttl=self._ttl))
        match appended.outcome:
            case Outcome.STORED | Outcome.DUPLICATE:
                self._head = appended.head
            case Outcome.GONE:
                self._refuse("it was deleted here meanwhile")
            case Outcome.GAP:
                self._refuse("the store has lost what was stored of it before")
            case Outcome.CONFLICT | Outcome.FENCED:
                self._refuse("somebody else wrote to it here meanwhile")

    async def _holds(self, entry: Entry) -> bool:
        """Take the lease, or hold it for longer; refuse the conversation when another has it, or has begun the turn that goes on."""
        now = asyncio.get_running_loop().time()
        if self._renewed is not None and now - self._renewed < _RENEW_AFTER:
            return True
        log = await patiently(lambda: self._store.load(self.key, turns=1, lease=Lease(self._token, _TERM)))
        if log.holder.token != self._token:
            self._refuse("somebody is writing to it here at this moment; import it again")
            return False
        self._renewed = now
        if _goes_on(log, entry) and log.entries[-1].entry.token != entry.token:
            self._refuse("its last turn here was not finished, and not by an import")
            return False
        return True

    def _refuse(self, reason: str) -> None:
        self._refused = True
        self._job.leave_out(LeftOut(self.name, reason))


def _digest(*parts: str) -> str:
    """Return a name that is always the same: who goes on after a crash holds the lease of who crashed, and two at once write as one."""
    return sha256("/".join(parts).encode()).hexdigest()[:32]


def _goes_on(log: Log, entry: Entry) -> bool:
    return bool(log.entries) and log.entries[-1].entry.turn == entry.turn
