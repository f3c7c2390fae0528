"""Turn: one request's part of a conversation, from taking the lease to the closing entry. All writes go through here.

A turn is *staged* (messages in memory), *open* (something stored, no closing entry), and ends *closed*, *interrupted*, *abandoned*
or *refused*. It ends once, whatever happens; every end gives the lease back.
"""

from __future__ import annotations

import asyncio
import random
import threading
import warnings
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cached_property
from math import ceil
from typing import Any, Literal, TypeVar

from convmem import windows
from convmem.evidence import Evidence
from convmem.exceptions import (
    ConversationBusy,
    ConversationConflict,
    ConversationFenced,
    ConversationGone,
    ConvmemError,
    HistoryExpired,
    HistoryLost,
    IdempotencyKeyReused,
    LimitExceeded,
    StoreUnavailable,
    TurnClosed,
)
from convmem.heartbeat import Heartbeat
from convmem.identifiers import new_id, new_token
from convmem.keys import SessionKey
from convmem.messages import Edit, Item, Message, Note, decode_body, encode_edit, encode_message, encode_messages, encode_note
from convmem.recollection import RECOLLECTION
from convmem.sight import Decoded, decode
from convmem.stores.base import ENTRY_FORMAT, Appended, Entry, Head, Kind, Lease, Log, Lookup, Outcome, Store, StoredEntry
from convmem.tokens import Meter
from convmem.turnstile import Turnstile
from convmem.windows import Window

T = TypeVar("T")
Policy = Literal["wait", "reject"]

_PINNED = 8
_PAUSES = (0.05, 0.2, 0.5)
_POLL = (0.05, 0.25)
_OLD, _OLD_POLL = 5.0, 3.0
"""Seconds after which whoever polls for a lease does so at so many times the rate, and so is as many times as likely to be next."""
_TOKENS_OF_A_TURN = 250
"""A question and an answer of a few sentences: what the first page of a window in tokens is planned with."""
_SMALLEST_PAGE, _LARGEST_FIRST_PAGE = 4, 64
_PAGE_GROWS = 2
_ATTEMPTS_TO_FILL = 3


class RepeatedTextWarning(UserWarning):
    """Two messages with different ids but the same role and text were appended in one turn: a handler and an adapter, perhaps."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The limits of turns, in the words of the settings of the same names."""

    window: Window = field(default_factory=Window)
    ttl: timedelta | None = None
    concurrency: Policy = "wait"
    turn_wait: timedelta = timedelta(seconds=20)
    lease: timedelta = timedelta(seconds=8)
    turn_max: timedelta = timedelta(minutes=15)
    max_waiting: int = 8
    max_message_bytes: int = 8 * 2**20
    max_turn_bytes: int = 16 * 2**20
    max_turn_messages: int = 256

    @cached_property
    def first_page(self) -> int | None:
        """How many turns to load at first; the whole window, when that can be said in turns."""
        window = self.window
        if window.tokens is None:
            return window.turns
        page = min(max(window.tokens // _TOKENS_OF_A_TURN, _SMALLEST_PAGE), _LARGEST_FIRST_PAGE)
        return page if window.turns is None else min(page, window.turns)


class Outgrown:
    """The conversations of which this worker has said that they are larger than their window; the oldest are forgotten."""

    _MOST = 10_000

    def __init__(self) -> None:
        """Begin with none."""
        self._said: dict[tuple[str, str, str], None] = {}

    def add(self, key: SessionKey) -> bool:
        """Return whether it is to be said of this one now."""
        if key.path in self._said:
            return False
        self._said[key.path] = None
        while len(self._said) > self._MOST:
            self._said.pop(next(iter(self._said)), None)
        return True


class Ledger:
    """What the turns of one worker share: the store, the rules, the turnstile, the evidence, and the writes under way.

    Attributes:
        named: The turns with a name of their client's that run or wait here, by conversation and turn id, each with its fingerprint.
    """

    def __init__(self, store: Store, rules: Rules, heartbeat: Heartbeat | None = None) -> None:
        """Open nothing; None for the heartbeat makes one when a turn is open."""
        self.store = store
        self.rules = rules
        self.turnstile = Turnstile(rules.max_waiting)
        self.evidence = Evidence(rules.ttl)
        self.named: dict[tuple[tuple[str, str, str], str], str] = {}
        self.outgrown = Outgrown()
        self._heartbeat = heartbeat
        self._under_way: dict[asyncio.Task[Any], SessionKey] = {}

    @property
    def heartbeat(self) -> Heartbeat:
        """That of the turns in this event loop."""
        loop = asyncio.get_running_loop()
        if self._heartbeat is None or self._heartbeat.loop is not loop:
            self._heartbeat = Heartbeat(loop)
        return self._heartbeat

    def start(self, key: SessionKey, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start work on a conversation that has to end even when nobody waits for it."""
        task = asyncio.ensure_future(work)
        self._under_way[task] = key
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        del self._under_way[task]
        if not task.cancelled():
            task.exception()

    async def settle(self, key: SessionKey, seconds: float) -> None:
        """Wait until no write to this conversation is under way, at most so long."""
        if self._under_way:
            await _end_of([task for task, of in self._under_way.items() if of == key], seconds)

    async def drain(self, seconds: float) -> None:
        """Wait until no turn is open and no write is under way, for each at most so long."""
        await self.turnstile.rest(seconds)
        await _end_of(list(self._under_way), seconds)


async def _end_of(tasks: Sequence[asyncio.Task[Any]], seconds: float) -> None:
    """Wait for those of the tasks that run in this event loop."""
    here = asyncio.get_running_loop()
    tasks = [task for task in tasks if task.get_loop() is here]
    if tasks:
        await asyncio.wait(tasks, timeout=seconds)


class Turn:
    """One attempt at one turn.

    Not to be shared by requests. Within one, `stage` may be called from any thread, the rest from tasks of one event loop; saves
    happen one after the other.

    Attributes:
        id: The name its client gave it, or the id of its first entry; empty before there is one.
        log: What was loaded at the beginning; an empty one for a conversation known to be new.
        head: Where the log ends as far as this turn knows.
        said: The messages, edits and notes of this turn in order, stored or not.
        replayed: This turn had been completed before; nothing of it is stored again, and `said` is what was stored.
        refused: Why the store refused a write of this turn, after which it has ended.
        ended: Whether nothing can be appended any more.
    """

    id = ""
    log = Log()
    head = Head()
    replayed = False
    refused: ConvmemError | None = None
    ended = False
    _over: asyncio.Event | None = None
    _known: Head | None = None
    _named = False
    _fresh_token = _fresh_epoch = ""
    _inside = _announced = _leased = False
    _pending: Entry | None = None
    _bytes = 0
    _stored = _leaves_trace = False
    _counted = _will_count = False
    _supersedes = False
    _heartbeat: Heartbeat | None = None
    _deadline = float("inf")
    _one_at_a_time: asyncio.Lock | None = None
    _decoded: Decoded | None = None

    def __init__(self, ledger: Ledger, key: SessionKey, *, turn_id: str | None = None, fingerprint: str = "", stored: bool = True) -> None:
        """Prepare a turn; nothing is loaded and no lease is taken yet.

        Args:
            ledger: Of this worker.
            key: The conversation.
            turn_id: The name by which a retry finds this turn; None: none will look for it.
            fingerprint: Of the request; another one with the same turn id is refused. Empty compares with nothing.
            stored: False lets it live and end in memory.
        """
        self.ledger = ledger
        self.key = key
        self.said: list[Item] = []
        if turn_id is not None:
            self.id, self._named = turn_id, True
        self._kept_nowhere = not stored
        self._fingerprint = fingerprint
        self._staged: list[tuple[Item, bool]] = []  # and whether its entry is to be loaded with every window
        self._encoded: list[bytes] = []
        self._staging = threading.Lock()

    @cached_property
    def meter(self) -> Meter:
        """Counts the tokens of its messages, and of those loaded."""
        return Meter(self.ledger.rules.window.counter)

    @property
    def _token(self) -> str:
        """The name of this attempt: always the same. A retry of a named turn knows it by its own name in there."""
        if not self._fresh_token:
            self._fresh_token = f"{new_token()}.{self.id}.{self._fingerprint}" if self._named else new_token()
        return self._fresh_token

    @property
    def _epoch(self) -> str:
        """The life this turn begins, if it begins one: always the same, as a retry must be."""
        self._fresh_epoch = self._fresh_epoch or new_token()
        return self._fresh_epoch

    @property
    def messages(self) -> list[Message]:
        """What was appended in this turn, stored or not, whether an edit hides it or not."""
        return [item for item in self.said if isinstance(item, Message)]

    # Beginning

    async def look(self, claimed: Head | None = None) -> None:
        """Load without a lease: appending works as long as nobody else writes.

        Raises:
            HistoryLost: The store lost what it had acknowledged. The evidence stays until whoever reports the error forgets it.
            HistoryExpired: The history outlived its TTL. The same.
            StoreUnavailable: The store did not answer.
        """
        self._deadline = asyncio.get_running_loop().time() + self.ledger.rules.turn_max.total_seconds()
        await self._load(None)
        self._judge(claimed)

    async def begin(self, policy: Policy | None = None, claimed: Head | None = None) -> None:
        """Take the lease and load, in one round trip when nobody else is in the way.

        Args:
            policy: Wait for another turn to end, or give up at once; None: as the rules say.
            claimed: The head the client says it saw.

        Raises:
            ConversationBusy: Another turn is still running, or another try of this one: for that nobody waits.
            IdempotencyKeyReused: This turn came with another fingerprint before.
            HistoryLost: The store lost what it had acknowledged.
            HistoryExpired: The history outlived its TTL.
            StoreUnavailable: The store did not answer.
        """
        if self._named and await self._is_known(claimed):
            return
        rules, clock = self.ledger.rules, asyncio.get_running_loop().time
        wait = rules.turn_wait.total_seconds() if (policy or rules.concurrency) == "wait" else 0.0
        give_up = clock() + wait
        try:
            await self.ledger.turnstile.enter(self.key, wait)
        except BaseException:
            self._end_now()
            raise
        self._inside = self._leased = True
        try:
            if self.ledger.store.reach != "process" and self.ledger.turnstile.run_is_long(self.key):
                await self._give_way(give_up)
            await self._take_lease(give_up)
            self._judge(claimed)
        except ConversationBusy:
            self._end_now()
            raise
        except IdempotencyKeyReused:
            await self._in_own_task(self._release_quietly())  # a lease in this name would refuse the rightful retry
            self._end_now()
            raise
        except BaseException as error:
            if isinstance(error, HistoryLost | HistoryExpired):
                self.ledger.evidence.forget(self.key)
            self.ledger.start(self.key, self._release_quietly())
            self._end_now()
            raise
        if self.replayed:
            self._end_now()
            return
        self._go_on_for_long()

    async def hold(self) -> None:
        """Take the lease of a conversation that was known to be new, before others are told of it; nobody can be in the way.

        Raises:
            StoreUnavailable: The store did not answer.
        """
        if self._leased or self.ended:
            return
        await self.ledger.turnstile.enter(self.key, 0.0)
        self._inside = self._leased = True
        await self.ledger.store.load(self.key, turns=1, lease=Lease(self._token, self.ledger.rules.lease))
        self._go_on_for_long()

    def _go_on_for_long(self) -> None:
        """Keep the lease, for as long as a turn may take."""
        rules = self.ledger.rules
        self._deadline = asyncio.get_running_loop().time() + rules.turn_max.total_seconds()
        self._heartbeat = self.ledger.heartbeat
        self._heartbeat.add(self, rules.lease.total_seconds() / 3)

    async def _give_way(self, give_up: float) -> None:
        """Wait for one poll of the others, as turns of this process have followed each other for long.

        Who leaves hands over to the next one here, and who comes right behind takes the lease anew, before another process that polls
        for it sees that it was free. Where nobody is known to want the conversation it is enough that those are let in who have waited
        for long: they poll more often.
        """
        rarest = _POLL[1] if self.ledger.turnstile.is_wanted(self.key) else _POLL[1] / _OLD_POLL
        await asyncio.sleep(max(0.0, min(give_up - asyncio.get_running_loop().time(), rarest * 1.25)))
        self.ledger.turnstile.begin_run(self.key)

    async def _is_known(self, claimed: Head | None) -> bool:
        """Return whether this turn is replayed without waiting for another that is inside. From here on it is known to run here.

        A complete turn needs no lease, so it waits for none: where one would have to wait, it is looked up first.
        """
        if self.ledger.turnstile.occupied(self.key):
            try:
                await self._load(None)
                if self.replayed:
                    self._judge(claimed)
            except BaseException:
                self._end_now()
                raise
            if self.replayed:
                self._end_now()
                return True
        name = (self.key.path, self.id)
        if name in self.ledger.named:
            self._need_same_request(self.ledger.named[name])
            raise ConversationBusy(self.ledger.turnstile.seconds(self.key), same_turn=True)
        self.ledger.named[name] = self._fingerprint
        self._announced = True
        return False

    def _need_same_request(self, fingerprint: str) -> None:
        if fingerprint and self._fingerprint and fingerprint != self._fingerprint:
            msg = "This key was sent before, with another request; use a new key for each message, and the same one only to repeat it."
            raise IdempotencyKeyReused(msg)

    async def _take_lease(self, give_up: float) -> None:
        token, clock = self._token, asyncio.get_running_loop().time
        lease, began = Lease(token, self.ledger.rules.lease), clock()
        while not await self._load(lease):
            holder = self.log.holder
            self.ledger.turnstile.met_another(self.key)
            other = _Attempt.of(holder.token)
            if self._named and other.turn == self.id:
                self._need_same_request(other.fingerprint)
                remaining = max(1, ceil(holder.remaining.total_seconds()))
                raise ConversationBusy(holder.running.total_seconds(), retry_after=remaining, same_turn=True)
            left = give_up - clock()
            if left <= 0:
                raise ConversationBusy(holder.running.total_seconds(), retry_after=max(1, ceil(holder.remaining.total_seconds())))
            age = min(1.0, (clock() - began) / _OLD)
            await asyncio.sleep(min(left, random.uniform(*_POLL) / (1 + age * (_OLD_POLL - 1))))  # noqa: S311 - jitter, not a secret

    async def _load(self, lease: Lease | None) -> bool:
        """Load, and fill the window; return False, and leave it as it is, when another has the lease that was to be taken with it."""
        ledger, rules = self.ledger, self.ledger.rules
        for _ in range(_ATTEMPTS_TO_FILL):
            self._known = ledger.evidence.known(self.key)
            self.log = log = await ledger.store.load(
                self.key, turns=rules.first_page, messages=rules.window.messages, turn=self.id if self._named else None, lease=lease
            )
            self.head = log.head
            found = log.turn
            if found is not None:
                self.replayed, self._supersedes = found.state == "complete", found.visible
                if found.state in ("complete", "interrupted"):
                    await self._recall(found)
            if lease is not None and log.holder.token != lease.token and not self.replayed:
                return False
            if rules.window.tokens is None or await self._fill():
                break
        return True

    async def _recall(self, found: Lookup) -> None:
        """Find what was stored of this turn, however long ago, and whether it was the same request.

        A replayed turn's log ends with it, as it did for the first try; a turn that was hidden or cleared since is not found again.
        """
        own = self._own_entries(self.log)
        if not own or (self.replayed and own[-1] is not self.log.entries[-1]):
            rules = self.ledger.rules
            then = await self.ledger.store.load(self.key, turns=rules.first_page, messages=rules.window.messages, before=found.position + 1)
            own = self._own_entries(then)
            if own and self.replayed:
                self.log = replace(self.log, entries=then.entries, pinned=then.pinned)
        if own:
            self._need_same_request(_Attempt.of(own[-1].entry.token).fingerprint)
        if self.replayed:
            self._take_staged()
            self.said = []
            for stored in own:
                with suppress(ValueError):  # its position is named where the rest of the log is decoded
                    self.said += decode_body(stored.entry.body)

    def _own_entries(self, log: Log) -> list[StoredEntry]:
        return [stored for stored in log.entries if stored.entry.turn == self.id]

    # Paging, for a window in tokens: nobody knows how many turns it holds before they are counted

    async def _fill(self) -> bool:
        """Read older pages until the window is full. Return False when the log has moved in between, so that it is to be loaded anew.

        All pages are of one moment. A log that keeps moving is left with its first page: a window that is too short, and says so by
        `Conversation.left_out`.

        Raises:
            CounterFailed: The window's counter cannot be used.
        """
        window, log = self.ledger.rules.window, self.log
        size = asked = self.ledger.rules.first_page or 0
        decoded = last = self._decode(log)
        while last.size == asked and decoded.size < log.head.turns and not self._is_full(decoded):
            size *= _PAGE_GROWS
            asked = size if window.turns is None else min(size, window.turns - decoded.size)
            if asked <= 0:
                break
            page = await self.ledger.store.load(self.key, turns=asked, before=log.entries[0].n)
            if not page.head.same(log.head) or page.expired:
                return False
            log = replace(log, entries=(*page.entries, *log.entries), pinned=page.pinned)
            last = self._decode(page)
            decoded = decoded.behind(last, log)
        self.log, self._decoded = log, decoded
        return True

    def _is_full(self, decoded: Decoded) -> bool:
        turns, pinned = decoded.seen()
        return windows.view(turns, self.ledger.rules.window, pinned=pinned, meter=self.meter).full

    def decoded(self, log: Log | None = None) -> Decoded:
        """Return what was loaded, decoded; or what another log of this conversation holds.

        Of this turn an earlier attempt is left out, and of one that is replayed what is in `said`.
        """
        if log is not None:
            return decode(log, without=None if self.replayed else self.id, key=self.key)
        if self._decoded is None or self._decoded.log is not self.log:
            self._decoded = self._decode(self.log)
        return self._decoded

    def _decode(self, log: Log) -> Decoded:
        return decode(log, without=self.id, key=self.key)

    async def read(self, *, messages: int | None = None) -> Log:
        """Return the log as it is now, whatever the window; this turn stands where it stood.

        Args:
            messages: Only as many turns as hold so many; None: all.
        """
        return self.log if self._kept_nowhere else await self.ledger.store.load(self.key, messages=messages)

    def _judge(self, claimed: Head | None) -> None:
        if self._known is not None or claimed is not None:
            error = self.ledger.evidence.against(self.key, self.log, self._known, claimed)
            if error is not None:
                raise error

    # Appending

    def stage(self, said: Sequence[Item], *, limited: bool = True, pins: bool = False) -> None:
        """Append messages, edits and notes, all or none: encode them now, store them with the next save, in one entry.

        A message whose id is already in this turn is left out. `limited=False` is for text already counted by a recording;
        `pins=True` is for an edit of a system message, which must be loaded wherever that message is (`edit_pins`).

        Raises:
            InvalidMessage: One cannot be stored and read back equal.
            LimitExceeded: One, or the turn with them, is too large.
            TurnClosed: The turn has ended.
        """
        if self.replayed:
            return
        if self.ended:
            msg = "No turn is open here; append in `async with conversation.turn():`, which opens one."
            raise TurnClosed(msg)
        with self._staging:
            self._stage(said, limited=limited, pins=pins)

    def _stage(self, said: Sequence[Item], *, limited: bool, pins: bool) -> None:
        known = {item.id for item in self.said if isinstance(item, Message)}
        staged: list[tuple[Item, bool]] = []
        encoded: list[bytes] = []
        size, largest = self._bytes, 0
        for item in said:
            if isinstance(item, Message):
                if item.id in known:
                    continue
                known.add(item.id)
                body, pinning = encode_message(item), item.role == "system"
            else:
                body, pinning = (encode_note(item), False) if isinstance(item, Note) else (encode_edit(item), pins)
            staged.append((item, pinning))
            encoded.append(body)
            size += len(body)
            largest = max(largest, len(body))
        if limited:
            self._need_room(largest, size, len(known))
        for item, _ in staged:
            self._warn_if_said(item)
            self.said.append(item)
        self._bytes = size
        self._staged += staged
        self._encoded += encoded

    def _need_room(self, largest: int, size: int, messages: int) -> None:
        rules = self.ledger.rules
        for setting, allowed, actual in (
            ("CONVMEM_MAX_MESSAGE_BYTES", rules.max_message_bytes, largest),
            ("CONVMEM_MAX_TURN_BYTES", rules.max_turn_bytes, size),
            ("CONVMEM_MAX_TURN_MESSAGES", rules.max_turn_messages, messages),
        ):
            if actual > allowed:
                raise LimitExceeded(setting, allowed, actual)

    def _warn_if_said(self, item: Item) -> None:
        if not self.said or not isinstance(item, Message) or not item.text:
            return
        hidden: set[str] = set()
        for other in reversed(self.said):
            if isinstance(other, Message):
                if _same_words(item, other) and other.id not in hidden:
                    msg = "The same text was appended twice in one turn; does an adapter append what the handler appends too?"
                    warnings.warn(msg, RepeatedTextWarning, stacklevel=6)
                    return
            elif isinstance(other, Edit):
                if other.begins_anew:
                    return
                hidden.update(other.ids)

    def _take_staged(self) -> tuple[list[tuple[Item, bool]], list[bytes]]:
        with self._staging:
            taken = self._staged, self._encoded
            self._staged, self._encoded = [], []
            return taken

    def holds(self, token: str) -> bool:
        """Return whether this is the token of this turn's lease."""
        return token == self._token

    def room(self) -> int:
        """Return how many more bytes one message may have."""
        return min(self.ledger.rules.max_message_bytes, self.ledger.rules.max_turn_bytes - self._bytes)

    async def save(self) -> None:
        """Store what was appended so far; the turn stays open.

        Raises:
            ConversationConflict: Somebody else wrote; this turn has ended.
            ConversationFenced: Another turn holds the conversation; this turn has ended.
            ConversationGone: The conversation was deleted meanwhile; this turn has ended.
            HistoryLost: Acknowledged entries are missing; this turn has ended.
            StoreUnavailable: The store did not answer. What was appended stays appended, and the next save tries again.
        """
        if self._staged or self._pending:
            await self._do(closing=False, ends=False)

    async def reset(self) -> None:
        """Take the whole history out of sight; it stays in the log. What was appended and not saved comes after. Errors as in `save`.

        Nothing happens in a replay: what the turn took out of sight is, and what came after it stays.
        """
        if self.replayed:
            return
        if self.ended:
            msg = "No turn is open here; clear the conversation in `async with conversation.turn():`, which opens one."
            raise TurnClosed(msg)
        await self._in_own_task(self._locked(self._reset()))

    async def delete(self) -> bool:
        """End the conversation's life, and with it this turn; return whether there was one."""
        existed = await self._in_own_task(self._locked(self.ledger.store.delete(self.key)))
        self._take_staged()
        self._pending = None
        self.ledger.evidence.forget(self.key)
        RECOLLECTION.forget()
        self.log, self.head = Log(), Head()
        self._end_now()
        return existed

    def stay_closed(self) -> None:
        """Be read only: what is appended needs another turn."""
        self._end_now()

    def detach(self) -> None:
        """Store nothing from now on: the store is down, and the app goes on without it."""
        self._kept_nowhere = True

    # Ending

    async def close(self) -> None:
        """End the turn, whole. Errors as in `save`."""
        if not self.ended:
            await self._do(closing=True, ends=True)

    async def interrupt(self) -> None:
        """End the turn with what it has; it reads as interrupted. Errors as in `save`."""
        if not self.ended:
            await self._do(closing=False, ends=True)

    async def abandon(self) -> None:
        """End the turn and store nothing more. Raises nothing."""
        if not self.ended:
            self._take_staged()
            self._pending = None
            await self._do(closing=False, ends=True)

    async def over(self, patience: timedelta) -> bool:
        """Wait until the turn has ended, for so long at most; return whether it has."""
        if self.ended:
            return True
        self._over = self._over or asyncio.Event()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), patience.total_seconds())
        return self.ended

    def _end_now(self) -> None:
        if self.ended:
            return
        self.ended = True
        if self._over is not None:
            self._over.set()
        if self._heartbeat is not None:
            self._heartbeat.remove(self)
        if self._announced:
            self.ledger.named.pop((self.key.path, self.id), None)
        if self._inside:
            self._inside = False
            self.ledger.turnstile.leave(self.key)

    async def _release_quietly(self) -> None:
        """A lease that cannot be given back runs out."""
        with suppress(StoreUnavailable):
            await self.ledger.store.release(self.key, self._token)

    # Writing, one at a time

    async def _do(self, *, closing: bool, ends: bool) -> None:
        """Write, which may be done twice. When the caller is cancelled meanwhile, it is done again, in a task of its own, to its end."""
        if ends and not (self._leased or self._staged or self._one_at_a_time):  # nothing was ever written, and nothing is to be
            self._end_now()
            return
        work = self._end if ends else self._write
        try:
            await work(closing=closing)
        except asyncio.CancelledError:
            self.ledger.start(self.key, work(closing=closing))
            raise

    async def _in_own_task(self, work: Coroutine[Any, Any, T]) -> T:
        """Do work that must not be done twice: a caller that is cancelled does not take it along."""
        return await asyncio.shield(self.ledger.start(self.key, work))

    @property
    def _lock(self) -> asyncio.Lock:
        self._one_at_a_time = lock = self._one_at_a_time or asyncio.Lock()
        return lock

    async def _locked(self, work: Coroutine[Any, Any, T]) -> T:
        async with self._lock:
            return await work

    async def _end(self, *, closing: bool) -> None:
        try:
            await self._write(closing=closing, release=self._leased)
        except asyncio.CancelledError:
            raise  # it is done again
        except BaseException as error:
            if isinstance(error, StoreUnavailable) and self._leased:
                self.ledger.start(self.key, self._locked(self._release_quietly()))
            self._end_now()
            raise
        self._end_now()

    async def _write(self, *, closing: bool, release: bool = False) -> None:
        """Store what is pending, then what is staged; an empty entry closes a turn that is already stored.

        Done again after it was cancelled, it goes on with the very entry whose outcome nobody has seen.
        """
        async with self._lock:
            if self.refused is not None:
                raise self.refused
            if self._kept_nowhere:
                self._take_staged()
                self._pending, self._stored, self._counted = None, False, False
            if self._pending is not None and not self._pending.closing:
                await self._append(self._pending)
            if self._pending is None and (self._staged or (closing and (self._stored or self._leaves_trace))):
                self._pending = self._entry(*self._take_staged(), closing=closing)
            if self._pending is not None:
                await self._append(self._pending, release=release)
            elif release:
                await self._release_quietly()

    async def _reset(self) -> None:
        if self._kept_nowhere:
            raise StoreUnavailable(self.ledger.store.name, "append", "this request runs without memory")
        if self._pending is not None:
            await self._append(self._pending)
        await self._append(self._reset_entry())
        self._leaves_trace = self._named

    async def _append(self, entry: Entry, *, release: bool = False) -> None:
        """Append, and repeat the very same entry while the outcome is unknown. Once it is, no later failure makes it certain."""
        self._pending = entry
        if asyncio.get_running_loop().time() > self._deadline:
            await self._refuse(ConversationFenced("The turn ran longer than CONVMEM_TURN_MAX; nothing more of it is stored."))
            return
        ledger, unknown = self.ledger, False
        for pause in (*_PAUSES, None):
            try:
                appended = await ledger.store.append(self.key, self.head, entry, ttl=ledger.rules.ttl, release=release)
                break
            except StoreUnavailable as error:
                unknown = unknown or error.unknown
                if unknown and not error.unknown and pause is None:
                    raise StoreUnavailable(error.store, error.operation, error.reason, unknown=True) from error
                if pause is None or not unknown:
                    raise
                await asyncio.sleep(pause)
        else:
            raise AssertionError
        self._pending = None
        if appended.outcome is Outcome.STORED or appended.outcome is Outcome.DUPLICATE:
            self.head = appended.head
            self._stored = entry.kind is Kind.TURN
            self._counted = self._stored and self._will_count
            self._supersedes = False
            ledger.evidence.remember(self.key, self.head)
        else:
            await self._refuse(self._refusal(appended))

    def _refusal(self, appended: Appended) -> ConvmemError:
        if appended.outcome is Outcome.CONFLICT:
            return ConversationConflict("Somebody else wrote to the conversation after this request had loaded it.")
        if appended.outcome is Outcome.FENCED:
            return ConversationFenced("Another turn holds the conversation; this one came too late.")
        self.ledger.evidence.forget(self.key)
        if appended.outcome is Outcome.GONE:
            return ConversationGone("The conversation was deleted while this request was at work.")
        return HistoryLost("The store no longer has the entries this request had loaded.", revision=appended.head.revision)

    async def _refuse(self, error: ConvmemError) -> None:
        """End the turn after a refusal, unless another attempt has completed it: then it is replayed."""
        self._pending = None
        self._take_staged()
        if self._leased:
            await self._release_quietly()
        self._end_now()
        if self._named:
            await self._load(None)
            await self._fill()
            if self.replayed:
                return
        self.refused = error
        raise error

    def _entry(self, staged: list[tuple[Item, bool]], encoded: list[bytes], *, closing: bool) -> Entry:
        identifier = new_id()
        self.id = self.id or identifier
        entry, self._will_count = entry_after(
            self.head,
            staged,
            encode_messages(encoded),
            id=identifier,
            turn=self.id,
            token=self._token,
            epoch=self.head.epoch or self._epoch,
            closing=closing,
            counted=self._counted or self._supersedes,
        )
        return entry

    def _reset_entry(self) -> Entry:
        identifier, epoch, n = new_id(), self.head.epoch or self._epoch, self.head.n + 1
        return Entry(identifier, identifier, self._token, epoch, kind=Kind.RESET, closing=True, turns=0, start=n)

    # The lease, held by the heartbeat

    def renew_soon(self) -> bool:
        """Begin to renew the lease, up to the end of the time a turn may take; return whether that is not over."""
        if self.ended or asyncio.get_running_loop().time() >= self._deadline:
            return False
        self.ledger.start(self.key, self._locked(self._renew()))
        return True

    async def _renew(self) -> None:
        """Renew under the lock, so that a renewal never takes back what an ending has released."""
        if not self.ended:
            with suppress(StoreUnavailable):
                await self.ledger.store.renew(self.key, Lease(self._token, self.ledger.rules.lease), self.head)


def entry_after(
    head: Head,
    said: Sequence[tuple[Item, bool]],
    body: bytes,
    *,
    id: str,  # noqa: A002 - the field's name
    turn: str,
    token: str,
    epoch: str,
    closing: bool,
    counted: bool,
    format: int = ENTRY_FORMAT,  # noqa: A002 - the field's name
    key_id: str = "",
) -> tuple[Entry, bool]:
    """Return the entry of a turn that goes after a head, and whether its turn counts among the visible ones by then.

    Args:
        head: It.
        said: What the body holds, and of each whether its entry is to be loaded with every window.
        body: The same, encoded.
        id: See `Entry`, as for those below.
        turn: It.
        token: Of the attempt.
        epoch: Of the head, or a fresh one.
        closing: Whether the turn ends with it.
        counted: Whether the turn counts already, by an earlier entry of it.
        format: See `Entry`.
        key_id: See `Entry`.
    """
    turns, pinned, pins, count = head.turns, head.pinned, False, 0
    for item, pinning in said:
        if isinstance(item, Message):
            count += 1
            if not counted:
                turns, counted = turns + 1, True
        elif isinstance(item, Edit) and item.begins_anew:
            turns, counted, pinned, pins = 0, False, (), False
        pins = pins or pinning
    entry = Entry(
        id=id,
        turn=turn,
        token=token,
        epoch=epoch,
        body=body,
        count=count,
        closing=closing,
        turns=turns,
        start=head.start,
        pinned=(*pinned, head.n + 1)[-_PINNED:] if pins else pinned,
        format=format,
        key_id=key_id,
    )
    return entry, counted


def edit_pins(edit: Edit, in_sight: Iterable[Message]) -> bool:
    """Return whether an edit is to be loaded with every window: when it concerns a system message, which is.

    One that begins anew is not: it ends what is loaded with every window.
    """
    return not edit.begins_anew and any(message.role == "system" and edit.concerns(message) for message in in_sight)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What the token of an attempt at a named turn says of it; empty for a turn nobody can name."""

    turn: str = ""
    fingerprint: str = ""

    @classmethod
    def of(cls, token: str) -> _Attempt:
        turn, _, fingerprint = token.partition(".")[2].rpartition(".")
        return cls(turn, fingerprint)


def _same_words(one: Message, other: Message) -> bool:
    """Return whether the same was said twice; two calls may have the same result."""
    return one.content == other.content and one.role == other.role and one.tool_call_id == other.tool_call_id
