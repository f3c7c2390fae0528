"""The storage contract: a log of entries for each conversation, written only by "append after a head".

Words. An *entry* is one atomic batch of messages at a *position* n, dense from 1. A *turn* is everything one request
appended: usually one entry, several after an early save, tied by a turn id; the last one is marked *closing*. An *attempt*
is one try at a turn, named by its lease token. An *epoch* is one life of a conversation: random, made by its first append,
ended by a delete. The *head* is (epoch, n, id of entry n); an absent conversation's head is its newest delete mark.

A store sees bytes and a few columns, never HTTP and never a framework. Whoever writes one implements the eight methods of
`Store` and subclasses `convmem.testing.StoreContract`, which holds one clause for every rule written here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import groupby
from math import isfinite
from typing import Any, ClassVar, Literal, Self, TypeAlias, TypeVar, overload

from convmem.keys import SessionKey
from convmem.records import record

Packed = TypeVar("Packed")

ENTRY_FORMAT = 1
NO_PAGE_CURSOR = "after is not a cursor of a page of conversations."
TOMBSTONE_LIFE = timedelta(days=30)
"""How long a delete is remembered, and so how long evidence of a lost history counts; longer than any turn may run."""


class Kind(StrEnum):
    """What an entry is."""

    TURN = "turn"
    EDIT = "edit"
    RESET = "reset"


class Outcome(StrEnum):
    """How an append ended. Decided in the order of `Store.append`; a timeout is none of these but `StoreUnavailable`."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    FENCED = "fenced"
    GAP = "gap"
    GONE = "gone"


@record
class Head:
    """Where a log ends. `Head()` is that of a conversation nobody has ever written.

    Attributes:
        epoch: The life of the conversation; empty when it is absent.
        n: Position of the newest entry; 0 when it is absent.
        id: Id of that entry; for an absent conversation its newest delete mark, empty when there is none.
        turns: How many turns are visible.
        start: Nothing at or before this position is visible: the last reset, or what had expired.
        pinned: Positions of the newest entries that hold system messages, oldest first.
    """

    epoch: str = ""
    n: int = 0
    id: str = ""
    turns: int = 0
    start: int = 0
    pinned: tuple[int, ...] = ()

    def same(self, other: Head) -> bool:
        """Return whether both name the same place in the same life."""
        return (self.epoch, self.n, self.id) == (other.epoch, other.n, other.id)

    @property
    def revision(self) -> str:
        """The head as an opaque string, to compare with another and to send to a client."""
        return f"{self.epoch or '-'}.{self.n}.{self.id or '-'}"

    @classmethod
    def of_revision(cls, revision: str) -> Head | None:
        """Return the head a revision names (epoch, n and id only); None when the text is not a revision."""
        epoch, _, rest = revision.partition(".")
        n, _, entry = rest.partition(".")
        if not (revision.isascii() and epoch and entry and n.isdigit() and len(n) <= 18):  # noqa: PLR2004 - fits 64 bits
            return None
        return cls(epoch="" if epoch == "-" else epoch, n=int(n), id="" if entry == "-" else entry)


@record
class Entry:
    """One atomic batch of messages, as the caller hands it to `Store.append`. It carries the head it becomes.

    Attributes:
        id: Made once and repeated by a retry: the store recognises it. Like the other names printable ASCII, and not empty.
        turn: The turn it belongs to; an edit or a reset is a turn of its own.
        token: The attempt: the token of the lease under which it was written, or a random one where no lease was taken.
        epoch: That of the head it is appended after; a fresh random one when that conversation is absent.
        body: The encoded messages; opaque to the store.
        count: How many messages are in the body.
        kind: A `turn` counts; an `edit` hides the positions in `hides`; a `reset` hides everything before it.
        closing: Whether the turn ends with it, whole.
        turns: How many turns are visible once it is stored.
        start: See `Head`; for a reset the position it takes.
        pinned: See `Head`.
        hides: Positions it takes out of sight, of whole turns; they stay in the log.
        format: Version of the body's encoding.
        key_id: Reserved for the id of an encryption key; empty when the body is not encrypted.
    """

    id: str
    turn: str
    token: str
    epoch: str
    body: bytes = b"[]"
    count: int = 0
    kind: Kind = Kind.TURN
    closing: bool = False
    turns: int = 0
    start: int = 0
    pinned: tuple[int, ...] = ()
    hides: tuple[int, ...] = ()
    format: int = ENTRY_FORMAT
    key_id: str = ""

    def __post_init__(self) -> None:
        """Refuse names no store could keep: they are made by us, of printable ASCII, and none is empty."""
        names = (self.id, self.turn, self.token, self.epoch)
        together = "".join(names)
        if not all(names) or not together.isascii() or not together.isprintable():
            msg = "An entry's id, turn, token and epoch are printable ASCII, and not empty; encode what a client sent."
            raise ValueError(msg)

    @classmethod
    def read(  # noqa: PLR0917 - the fields in their order, as stores keep them
        cls,
        id: str,  # noqa: A002 - the field's name
        turn: str,
        token: str,
        epoch: str,
        body: bytes,
        count: int,
        kind: Kind,
        closing: bool,  # noqa: FBT001
        turns: int,
        start: int,
        pinned: tuple[int, ...] = (),
        hides: tuple[int, ...] = (),
        format: int = ENTRY_FORMAT,  # noqa: A002
        key_id: str = "",
    ) -> Entry:
        """Return an entry as a store has kept it: checked when it was stored, and not again."""
        entry = cls.__new__(cls)
        entry.id, entry.turn, entry.token, entry.epoch, entry.body, entry.count = id, turn, token, epoch, body, count  # type: ignore[misc]
        entry.kind, entry.closing, entry.turns, entry.start, entry.pinned = kind, closing, turns, start, pinned  # type: ignore[misc]
        entry.hides, entry.format, entry.key_id = hides, format, key_id  # type: ignore[misc]
        return entry

    def head_at(self, n: int) -> Head:
        """Return the head this entry is, once it stands at position n."""
        return Head(self.epoch, n, self.id, self.turns, self.start, self.pinned)


@record
class StoredEntry:
    """An entry where it stands.

    Attributes:
        n: Its position.
        stored_at: When, by the store's clock.
    """

    n: int
    entry: Entry
    stored_at: datetime


@record
class Lease:
    """The wish to hold a conversation: a random token, and how long it is held when nobody renews it."""

    token: str
    term: timedelta


@record
class Holder:
    """Who holds a conversation at the moment of a load, by the store's clock.

    Attributes:
        token: The live lease's token; empty when nobody holds it.
        running: How long it has been held.
        remaining: How long it is held still, when nobody renews it.
    """

    token: str = ""
    running: timedelta = timedelta()
    remaining: timedelta = timedelta()


@record
class Lookup:
    """What became of a turn, looked up in the whole life of the conversation, before resets and behind edits too.

    Attributes:
        state: `complete` when its newest attempt has a closing entry; else `running` when that attempt's token is the live
            lease, `interrupted` when it is not; `absent` when no entry has this turn id.
        position: Of the newest attempt's last entry; 0 when absent.
        visible: Whether the turn counts in `Head.turns`, so that an attempt that supersedes it does not add one.
    """

    state: Literal["absent", "running", "interrupted", "complete"] = "absent"
    position: int = 0
    visible: bool = False


Skimmed: TypeAlias = tuple[int, str, bool, bytes]


@record
class LoadedTurn:
    """The visible entries of one turn.

    Attributes:
        state: As in `Lookup`.
    """

    id: str
    entries: tuple[StoredEntry, ...]
    state: Literal["running", "interrupted", "complete"]


@record
class Log:
    """What a load returns: one consistent view.

    Attributes:
        head: The head at that moment.
        entries: The entries of the newest visible turns, oldest first; a store may unpack them when they are looked at.
        pinned: Visible entries older than those that hold system messages, oldest first.
        holder: The lease at that moment; with the caller's own token when it was taken.
        turn: The answer to the look-up; None when none was asked for.
        expired: Whether there was a history that outlived its TTL; then `entries` is empty and `head` is still the log's.
        deleted_at: When the conversation was last deleted; None when that was never, or is forgotten.
        ended: The epochs that deletes have ended, as far back as tombstones are kept.
    """

    head: Head = field(default_factory=Head)
    entries: Sequence[StoredEntry] = ()
    pinned: tuple[StoredEntry, ...] = ()
    holder: Holder = field(default_factory=Holder)
    turn: Lookup | None = None
    expired: bool = False
    deleted_at: datetime | None = None
    ended: frozenset[str] = frozenset()

    @property
    def turns(self) -> tuple[LoadedTurn, ...]:
        """The entries as turns, oldest first, each with its state."""
        turns: list[LoadedTurn] = []
        entries, first = tuple(self.entries), 0
        names = [stored.entry.turn for stored in entries]
        for place, name in enumerate(names, 1):
            if place == len(names) or names[place] != name:
                last = entries[place - 1]
                turns.append(LoadedTurn(name, entries[first:place], "complete" if last.entry.closing else self.going_on(last.n)))
                first = place
        return tuple(turns)

    def going_on(self, n: int) -> Literal["running", "interrupted"]:
        """Return the state of the turn whose last entry, at this position, does not close it."""
        token = next(stored.entry.token for stored in self.entries if stored.n == n)
        return "running" if token == self.holder.token else "interrupted"

    def skim(self) -> Iterable[Skimmed]:
        """Return what a window is made of: of each entry its position, its turn, whether it closes that, and its body."""
        if isinstance(self.entries, Unread):
            return self.entries.skim()
        return [(stored.n, stored.entry.turn, stored.entry.closing, stored.entry.body) for stored in self.entries]

    @property
    def size(self) -> int:
        """How many turns the entries are."""
        return sum(1 for _ in groupby([stored.entry.turn for stored in self.entries]))


@record
class Appended:
    """How an append ended.

    Attributes:
        head: For `stored` and `duplicate` the head this very entry is, also when others follow it; else the head found.
    """

    outcome: Outcome
    head: Head


@dataclass(frozen=True, slots=True)
class Listed:
    """One conversation in a list.

    Attributes:
        key: Its address.
        turns: How many are visible.
        expired: Whether it outlived its TTL; only a walk over several owners shows such.
    """

    key: SessionKey
    turns: int
    created_at: datetime
    updated_at: datetime
    revision: str
    expired: bool = False

    @property
    def session_id(self) -> str:
        """Which of its owner's conversations it is."""
        return self.key.session_id


@dataclass(frozen=True, slots=True)
class Page:
    """Conversations: an owner's with the last written first, several owners' in no promised order.

    Attributes:
        after: Hand this to the next call for the following page; None when this is the last.
    """

    items: tuple[Listed, ...] = ()
    after: str | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """What a store says of itself. No part holds a secret.

    Attributes:
        store: Its name, as in its URL scheme.
        location: Where, readable for an operator.
        durability: What an acknowledged append survives.
        server: The software and its version.
    """

    store: str
    location: str
    durability: str
    server: str


class Store(ABC):
    """The contract. Every method is atomic, safe to call at once from many tasks, processes and hosts, and raises only
    `StoreUnavailable` (the store did not answer in time, or failed) besides what its docstring names.

    Constructing one connects to nothing; the first call does. Methods may be called from any event loop.

    Attributes:
        name: Its URL scheme.
        reach: How far two processes may be apart and still meet in it.
    """  # noqa: D205 - the first sentence is the promise, and it is long

    name: ClassVar[str]
    reach: ClassVar[Literal["process", "host", "network"]]

    @abstractmethod
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
        """Return the newest visible turns of a conversation, oldest first; an empty log when it is unknown or expired.

        One view of one moment, in one round trip, at a cost that does not depend on how much is stored. Visible are the
        entries of kind `turn` after `Head.start`, of each turn's newest attempt only, and not hidden by an edit. Turns
        come whole: never part of one. A turn whose entries cannot be decoded is returned all the same.

        Args:
            key: The conversation.
            turns: At most this many turns, 0 or more; None means no such limit.
            messages: At most as many turns as it takes to hold this many messages; None means no such limit.
            before: Only entries at positions before this one, for the page in front of one whose first entry stands there;
                None starts at the head. `Log.head` is the log's all the same: compare it with that of the page after.
            turn: Look this turn up, first of all.
            lease: Take the lease, in the same step: when nobody holds it, when it ran out by the store's clock, or when it
                has this very token (a load repeated after an unknown outcome). Not taken when the turn looked up is
                complete. `Log.holder` says who holds it now. Whoever gets it sees the head its predecessor left behind.
        """

    @abstractmethod
    async def append(self, key: SessionKey, after: Head, entry: Entry, *, ttl: timedelta | None = None, release: bool = False) -> Appended:
        """Store an entry if the log ends where the caller saw it end. Nothing is ever rewritten.

        The outcome is decided in this order:

        1. `gone`: the epoch of `after` was ended by a delete; or `after` is an absent head and a newer delete mark is there.
        2. `gap`: nobody knows the epoch of `after`.
        3. `duplicate`: this very entry is at position n + 1, whatever follows it.
        4. `gap`: the log ends before n, or holds another entry at n: acknowledged entries are missing. What expired in front
           of `Head.start`, and was removed for that, is not missing.
        5. `fenced`: a live lease with another token holds the conversation.
        6. `conflict`: the log goes on beyond n; also when two first appends meet.
        7. `stored`. A lease that ran out and that nobody took does not stand in the way.

        In the same step as `stored`: the head becomes `entry.head_at(n + 1)`; the entries of earlier attempts at the same
        turn, and the positions in `entry.hides`, go out of sight; what had expired under an older `start` may be removed.

        Args:
            key: The conversation.
            after: The head the caller loaded, or got from its last append; its epoch, n and id are compared.
            entry: What to store.
            ttl: The conversation expires as a whole, this long after its newest append; None means never.
            release: End the lease with the entry's token in the same step, also when the outcome is `duplicate`.

        Raises:
            StoreUnavailable: With `unknown=True` the entry may be stored: repeat the call with the same entry.
        """

    @abstractmethod
    async def renew(self, key: SessionKey, lease: Lease, head: Head) -> bool:
        """Hold the lease for another term from now; return False when it is lost.

        A lease that ran out is renewed only when nobody holds it and the log still ends at `head`.
        """

    @abstractmethod
    async def release(self, key: SessionKey, token: str) -> None:
        """End the lease with this token; do nothing when another holds the conversation, or nobody."""

    @abstractmethod
    async def list(
        self,
        owner: str | None,
        *,
        tenant: str | None = "",
        after: str | None = None,
        limit: int = 50,
        written_before: datetime | None = None,
    ) -> Page:
        """Return an owner's conversations, the last written first; absent, deleted and expired ones are not among them.

        A conversation written while somebody pages moves to the front: no page shows it twice, a later page may not show it.

        With None for the owner it is a walk, for housekeeping: through a tenant, or with None for the tenant as well through
        the whole store. It has no promised order, shows each conversation that is there throughout at least once, expired
        ones too, and never what convmem keeps at a reserved address. A page may hold few items, or none, before the last.

        Args:
            owner: In the form of `SessionKey.owner`; None for every owner's.
            tenant: As in the key; None for every tenant's, of every owner.
            after: `Page.after` of the page before; None starts at the front.
            limit: At most this many, 1 or more.
            written_before: Only those whose newest entry was stored before this moment, by the store's clock.

        Raises:
            ValueError: `after` is not from `Page.after` of such a list, or an owner is given without a tenant.
        """

    @abstractmethod
    async def delete(self, key: SessionKey, *, at: Head | None = None) -> bool:
        """End this life of a conversation; return whether there was one.

        Its entries are removed, its lease ends, and a tombstone stays, also when there was nothing to delete: a new random
        mark, and every epoch ended so far. It outlives the next life and is kept for `TOMBSTONE_LIFE`.

        Args:
            key: The conversation.
            at: Delete only if the log still ends at this head (epoch, n and id are compared); else nothing happens, and the
                answer is False. For housekeeping that must not remove what was written since it looked. An expired
                conversation is there in this sense, and the answer is whether it was removed.
        """

    async def sweep(self) -> int:
        """Remove a batch of what nobody can reach any more; return how much that was, 0 when nothing is left to remove.

        That is: tombstones older than `TOMBSTONE_LIFE`, and leases that ran out where there is no conversation. Never needed for
        a right answer; `convmem prune` repeats it until it returns 0. A store that leaves nothing behind need not implement it.
        """
        return 0

    @abstractmethod
    async def check(self) -> Health:
        """Return what the store is, after it really answered a read and a write."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close what the store opened itself, and nothing that was passed in. Calling it twice is a no-op."""

    async def __aenter__(self) -> Self:
        """Return the store itself."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close it."""
        await self.aclose()


def _turn_and_count(stored: StoredEntry) -> tuple[str, int]:
    return stored.entry.turn, stored.entry.count


@overload
def newest_turns(newest_first: Iterable[StoredEntry], turns: int | None, messages: int | None) -> tuple[StoredEntry, ...]: ...


@overload
def newest_turns(
    newest_first: Iterable[Packed], turns: int | None, messages: int | None, of: Callable[[Packed], tuple[Hashable, int]]
) -> tuple[Packed, ...]: ...


def newest_turns(
    newest_first: Iterable[Any], turns: int | None, messages: int | None, of: Callable[[Any], tuple[Hashable, int]] = _turn_and_count
) -> tuple[Any, ...]:
    """Return the entries of the newest whole turns, oldest first, reading no more of `newest_first` than one entry beyond.

    Args:
        newest_first: Visible entries, the newest first.
        turns: See `Store.load`.
        messages: See `Store.load`.
        of: Returns the turn and the count of one of them; for a store that hands in what it has not unpacked yet.
    """
    taken: list[Any] = []
    seen_turns = seen_messages = 0
    newest: Hashable = None
    if turns == 0 or messages == 0:
        return ()
    for stored in newest_first:
        turn, count = of(stored)
        if turn != newest:
            if seen_turns == turns:
                break
            if messages is not None and seen_messages >= messages:
                break
            seen_turns += 1
            newest = turn
        taken.append(stored)
        seen_messages += count
    taken.reverse()
    return tuple(taken)


class Unread(Sequence[StoredEntry], ABC):
    """Entries that were read and not unpacked yet: all are when somebody looks at one of them.

    Whoever makes it says how many there are, and that none is unpacked.
    """

    __slots__ = ("_size", "_unpacked")
    _size: int
    _unpacked: tuple[StoredEntry, ...] | None

    @abstractmethod
    def unpack(self) -> tuple[StoredEntry, ...]:
        """Return them, in their order; called once."""

    @abstractmethod
    def skim(self) -> Iterable[Skimmed]:
        """See `Log.skim`. No entry is made for it."""

    def _entries(self) -> tuple[StoredEntry, ...]:
        if self._unpacked is None:
            self._unpacked = self.unpack()
        return self._unpacked

    def __len__(self) -> int:
        """Return how many there are; none is unpacked for that."""
        return self._size

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


def decide(  # noqa: PLR0911 - one for each outcome
    after: Head, entry: Entry, *, head: Head, mark: str, ended: Container[str], id_at: Callable[[int], str | None], live_token: str
) -> Outcome:
    """Return the outcome of an append, for a store that decides in Python inside its own atomic step.

    Args:
        after: The head the caller saw.
        entry: What it wants to store.
        head: The head now.
        mark: The newest delete mark; empty when there is none.
        ended: The epochs that deletes have ended.
        id_at: The id of the entry at a position of the present life; None where there is none.
        live_token: The token of the live lease; empty when there is none.
    """
    if after.epoch in ended or (not after.epoch and mark and mark != after.id):
        return Outcome.GONE
    if after.epoch and after.epoch != head.epoch:
        return Outcome.GAP
    if id_at(after.n + 1) == entry.id:
        return Outcome.DUPLICATE
    there = id_at(after.n) if after.n else after.id
    removed = there is None and after.n < head.start
    if head.n < after.n or (there != after.id and not removed):
        return Outcome.GAP
    if live_token and live_token != entry.token:
        return Outcome.FENCED
    if head.n > after.n:
        return Outcome.CONFLICT
    return Outcome.STORED


def page_cursor(updated: float, session_id: str) -> str:
    """Return `Page.after` for the last conversation of a page.

    Args:
        updated: When it was last written, in seconds since 1970.
        session_id: Its id, which breaks a tie.
    """
    return urlsafe_b64encode(f"{updated!r} {session_id}".encode()).decode()


def key_of_owner(owner: str, tenant: str | None) -> SessionKey:
    """Return a key of this owner, for its path.

    Raises:
        ValueError: There is no tenant: only a walk goes through all of them.
    """
    if tenant is None:
        msg = "tenant=None goes through every tenant, and only with None for the owner too; name the owner's tenant."
        raise ValueError(msg)
    return SessionKey(owner, tenant=tenant)


def path_of_tenant(tenant: str) -> str:
    """Return a tenant as it stands in `SessionKey.path`."""
    return SessionKey.for_user("-", tenant=tenant).path[0]


def walk_cursor(path: tuple[str, str, str]) -> str:
    """Return `Page.after` for a page of a walk that goes by address; `path` is that of the last key it looked at."""
    return urlsafe_b64encode(" ".join(path).encode()).decode()


def read_walk_cursor(after: str | None) -> tuple[str, str, str] | None:
    """Return the path `walk_cursor` was given; None for None.

    Raises:
        ValueError: This is not one of its cursors.
    """
    if after is None:
        return None
    try:
        tenant, owner, session = _in_cursor(after)
    except ValueError as error:
        msg = "after is not a cursor of a walk through conversations."
        raise ValueError(msg) from error
    return tenant, owner, session


def _in_cursor(after: str) -> list[str]:
    """Return the parts of a cursor, in which nothing stands but printable ASCII: a database refuses some of the rest as an error."""
    text = urlsafe_b64decode(after.encode()).decode("ascii")
    return text.split(" ") if text.isprintable() else []


def read_page_cursor(after: str | None) -> tuple[float, str] | None:
    """Return what `page_cursor` was given; None for None.

    Raises:
        ValueError: This is not one of its cursors.
    """
    if after is None:
        return None
    try:
        text, session = _in_cursor(after)
        updated = float(text)
    except ValueError as error:
        raise ValueError(NO_PAGE_CURSOR) from error
    if not isfinite(updated):
        raise ValueError(NO_PAGE_CURSOR)
    return updated, session
