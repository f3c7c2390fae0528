"""One writer at one conversation, so that a test reads as what happened and not as how an entry is built."""

from __future__ import annotations

from datetime import timedelta

from convmem.identifiers import new_id, new_token
from convmem.keys import SessionKey
from convmem.stores.base import Appended, Entry, Head, Kind, Lease, Log, Outcome, Store

LONG = timedelta(minutes=5)
"""A term nobody outlives in a test."""
SHORT = timedelta(milliseconds=60)
"""A term to wait for; nothing is ever asserted before it has run out."""
PAST_SHORT = 0.1
"""Seconds after which `SHORT` has run out, whatever the resolution of the store's clock."""


def fresh_key(session_id: str = "default", *, tenant: str = "") -> SessionKey:
    """Return an address nobody has used, so that tests may share one storage."""
    return SessionKey.for_user(new_id(), session_id, tenant=tenant)


class Writer:
    """A writer that remembers the head it saw and the token it writes under.

    Args:
        store: Where it writes.
        key: The conversation; a new one when absent.

    Attributes:
        head: What it loaded, or got from its last append. A test sets it to let the writer be late.
        token: The attempt its entries belong to.
    """

    def __init__(self, store: Store, key: SessionKey | None = None) -> None:
        """Start with the head of a conversation nobody has written."""
        self.store = store
        self.key = key or fresh_key()
        self.head = Head()
        self.token = new_token()

    async def load(self, *, turns: int | None = None, turn: str | None = None, term: timedelta | None = None) -> Log:
        """Load, remember the head, and with a term try to take the lease under the writer's token."""
        lease = Lease(self.token, term) if term else None
        log = await self.store.load(self.key, turns=turns, turn=turn, lease=lease)
        self.head = log.head
        return log

    async def seize(self, term: timedelta = LONG) -> Log:
        """Load with the lease and insist on getting it."""
        log = await self.load(term=term)
        assert log.holder.token == self.token, f"the lease is free, but {self.token!r} did not get it: {log.holder}"
        return log

    def entry(
        self,
        *,
        turn: str = "",
        body: bytes = b"[]",
        count: int = 1,
        kind: Kind = Kind.TURN,
        closing: bool = True,
        adds: int = 1,
        hides: tuple[int, ...] = (),
        pins: bool = False,
    ) -> Entry:
        """Return an entry that goes after the writer's head.

        Args:
            turn: Its turn; a new one when empty.
            body: See `Entry`.
            count: See `Entry`.
            kind: See `Entry`; a reset starts where it stands and leaves no visible turn.
            closing: See `Entry`.
            adds: How many turns become visible by it: 0 for a later entry of one turn, less for an edit.
            hides: See `Entry`.
            pins: Whether it holds a system message.
        """
        n = self.head.n + 1
        reset = kind is Kind.RESET
        pinned = () if reset else self.head.pinned
        return Entry(
            id=new_id(),
            turn=turn or new_id(),
            token=self.token,
            epoch=self.head.epoch or new_token(),
            body=body,
            count=count,
            kind=kind,
            closing=closing,
            turns=0 if reset else self.head.turns + adds,
            start=n if reset else self.head.start,
            pinned=(*pinned, n) if pins else pinned,
            hides=hides,
        )

    async def offer(self, entry: Entry | None = None, *, ttl: timedelta | None = None, release: bool = False) -> Appended:
        """Append after the writer's head, whatever comes of it; remember nothing."""
        return await self.store.append(self.key, self.head, entry or self.entry(), ttl=ttl, release=release)

    async def append(self, entry: Entry | None = None, *, ttl: timedelta | None = None, release: bool = False) -> Entry:
        """Append, insist on `stored`, and go on from the new head."""
        entry = entry or self.entry()
        appended = await self.offer(entry, ttl=ttl, release=release)
        assert appended.outcome is Outcome.STORED, f"expected stored, the store answered {appended}"
        self.head = appended.head
        return entry

    async def visible(self) -> tuple[str, ...]:
        """Return the ids of the entries everybody sees now, oldest first."""
        return tuple(stored.entry.id for stored in (await self.store.load(self.key)).entries)
