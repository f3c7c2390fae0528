"""RedisStore: one script for each verb, one round trip each, on Redis 6.2 or later or Valkey: one node, Sentinel, a cluster.

The scripts are in `lua/redis/`, the layout is told in `row.lua` and `redis_layout.py`, the way to the server is `redis_wire.py`.
"""

from __future__ import annotations

import asyncio
import json
import warnings
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from datetime import datetime, timedelta
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

try:
    import hiredis as hiredis  # noqa: PLC0414 - only whether it is there; the wire uses it
except ImportError as error:  # pragma: no cover - tests/packaging looks
    msg = 'RedisStore needs: pip install "convmem[redis]"'
    raise ImportError(msg) from error

from convmem.exceptions import ConfigurationError, StoreUnavailable
from convmem.identifiers import new_token
from convmem.keys import RESERVED_OWNER, SessionKey
from convmem.stores import redis_layout as layout
from convmem.stores.base import (
    Appended,
    Entry,
    Head,
    Health,
    Lease,
    Listed,
    Log,
    Outcome,
    Page,
    Store,
    key_of_owner,
    page_cursor,
    read_page_cursor,
)
from convmem.stores.packing import moment, pack_name
from convmem.stores.redis_server import Report
from convmem.stores.redis_wire import Acks, Address, Lost, Part, Patience, Refused, Wire, pack

if TYPE_CHECKING:
    from redis.asyncio import Redis, RedisCluster

Durability = Literal["none", "replicas"]
Unsafe = Literal["warn", "refuse", "allow"]

_OUTCOMES = (Outcome.STORED, Outcome.DUPLICATE, Outcome.CONFLICT, Outcome.FENCED, Outcome.GAP, Outcome.GONE)
_SURELY_OVER = timedelta(hours=1)
_LAG = timedelta(minutes=1)
"""How far an index may be behind a conversation, by two nodes' clocks and a trip between, before it missed an append."""
_STORING = frozenset({"append", "delete"})
_NUMBERS = (b"0", b"1", b"2", b"3")
_SCANS = 20
_LONGEST_TAIL = 1000
_A_CLUSTER = "The server is a node of a cluster; CONVMEM_STORE has to begin with redis+cluster://, and a client has to be a RedisCluster."
_NO_CURSOR = "after is not a cursor of a walk through conversations."


class UnsafeRedisWarning(UserWarning):
    """The server is set up so that it may lose conversations; the message says how, and what to set."""


class RedisStore(Store):
    """A store in a Redis or Valkey server, behind Sentinels, or in a cluster.

    Args:
        client: A `redis.asyncio.Redis` (from a Sentinel's `master_for` too) or `RedisCluster`: it says where the server is and
            how to sign in. The store opens connections of its own by it, two at most for each node and event loop; the client
            itself is neither used nor closed. A `Wire` of `convmem.stores.redis_wire` carries the calls itself; it is closed.
        namespace: What every key begins with; only letters, digits, ``_`` and ``-``, for others mean something in a pattern or a slot.
        durability: ``replicas`` acknowledges an append only when so many replicas have it.
        replicas: How many, with ``durability="replicas"``.
        replicas_timeout: How long they are waited for; after that the outcome is unknown.
        patience: How long a call waits for a connection, all attempts together, and for its reply.
        unsafe: What happens at the first call when the server is set up so that it may lose conversations: an
            `UnsafeRedisWarning`, a `ConfigurationError`, or nothing.
    """

    name: ClassVar[str] = "redis"
    reach: ClassVar[Literal["process", "host", "network"]] = "network"

    def __init__(
        self,
        client: Redis | RedisCluster | Wire,
        *,
        namespace: str = "convmem",
        durability: Durability = "none",
        replicas: int = 1,
        replicas_timeout: timedelta = timedelta(seconds=1),
        patience: Patience = Patience(),  # noqa: B008 - frozen
        unsafe: Unsafe = "warn",
    ) -> None:
        """Remember where; the first call connects."""
        if not namespace.replace("_", "").replace("-", "").isalnum() or not namespace.isascii():
            msg = f"namespace is {namespace[:40]!r}; use letters, digits, _ and -."
            raise ValueError(msg)
        self._wire = client if isinstance(client, Wire) else _wire_of(client, patience)
        self._keys = layout.Keys(namespace)
        milliseconds = max(1, replicas_timeout // timedelta(milliseconds=1))
        self._acks = Acks(replicas, milliseconds) if durability == "replicas" else None
        self._unsafe = unsafe
        self._looked = False

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
        keys = self._keys.of(key)
        tail = min(turns, _LONGEST_TAIL) if turns and messages is None and before is None else 0
        if tail:
            behind = pack(b"LRANGE", keys[1], b"%d" % -tail, b"-1")
            reply, entries = await self._run("load", keys, layout.pack_load(turns, None, None, tail, turn, lease), behind)
            log = layout.unpack_load(reply, entries, turn, lease)
            if log is not None:
                return log
        (reply,) = await self._run("load", keys, layout.pack_load(turns, messages, before, 0, turn, lease))
        log = layout.unpack_load(reply, (), turn, lease)
        assert log is not None
        return log

    async def append(self, key: SessionKey, after: Head, entry: Entry, *, ttl: timedelta | None = None, release: bool = False) -> Appended:
        """See `Store.append`."""
        args = layout.pack_append(after, entry, ttl, release=release, confirm=self._acks is not None)
        keys: Sequence[bytes] = self._keys.of(key)
        if not _is_listed(key):
            reply, *_ = await self._run("append", keys, args, acks=self._acks)
        elif not self._wire.is_cluster:
            reply, *_ = await self._run("append", (*keys, self._keys.index(key)), args, acks=self._acks)
        else:
            reply = await self._append_apart(key, after, keys, args, ttl)
        if isinstance(reply, int):
            return Appended(_OUTCOMES[reply], entry.head_at(after.n + 1))
        return Appended(_OUTCOMES[reply[0]], layout.unpack_head(reply[1]))

    async def _append_apart(self, key: SessionKey, after: Head, keys: Sequence[bytes], args: Sequence[bytes], ttl: timedelta | None) -> Any:
        """Append where the owner's index is on another node.

        A first append is listed before it is stored, so that no crash leaves a conversation that no list shows; a listed one
        that was never stored is dropped by a later list. An append that follows is listed at the same time.
        """
        enlist = (self._keys.index(key),), (key.session_id.encode(), 0 if ttl is None else layout.milliseconds(ttl))
        if not after.epoch:
            await self._run("enlist", *enlist, acks=self._acks, operation="append", changes=False)
            return (await self._run("append", keys, args, acks=self._acks))[0]
        replies: Any
        replies, _ = await asyncio.gather(
            self._run("append", keys, args, acks=self._acks), self._run("enlist", *enlist, operation="append"), return_exceptions=True
        )
        if isinstance(replies, BaseException):
            raise replies
        return replies[0]

    async def renew(self, key: SessionKey, lease: Lease, head: Head) -> bool:
        """See `Store.renew`."""
        return bool((await self._run("renew", self._keys.of(key), layout.pack_renew(lease, head)))[0])

    async def release(self, key: SessionKey, token: str) -> None:
        """See `Store.release`."""
        await self._run("release", self._keys.of(key), (pack_name(token),))

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
        if owner is None:
            return await self._walk(tenant, after, limit, written_before)
        beyond = read_page_cursor(after)
        index = self._keys.index(key_of_owner(owner, tenant))
        items: list[tuple[float, _Row]] = []
        while len(items) <= limit:
            wanted = limit + 1 - len(items)
            now, found = await self._browse(index, "down", beyond, wanted)
            for (score, session), row in zip(found, await self._peek(index, found), strict=True):
                if await self._is_there(index, session, score, row, now) and not row.expired and _is_older(row, written_before):
                    items.append((score, row))
            if len(found) < wanted:
                break
            beyond = found[-1]
        for score, row in items[:limit]:  # one on a later page must not move in front of this one
            if moment(row.updated) - moment(int(score)) > _LAG:
                await self._command("list", index, "ZADD", index, "XX", "GT", row.updated, row.key.session_id)
        cursor = page_cursor(items[limit - 1][0], items[limit - 1][1].key.session_id) if len(items) > limit else None
        return Page(tuple(row.listed() for _, row in items[:limit]), cursor)

    async def _browse(
        self, index: bytes, direction: str, place: tuple[float, str] | None, limit: int
    ) -> tuple[datetime, Sequence[tuple[float, str]]]:
        """Return the server's time, and so many sessions of an index with their scores."""
        score, session = ("", "") if place is None else (f"{place[0]:.0f}", place[1])
        args = (direction, score, session.encode("utf-8", "replace"), limit)
        ((now, page),) = await self._run("browse", (index,), args, operation="list")
        return moment(now), [(float(score), session.decode()) for session, score in zip(page[::2], page[1::2], strict=True)]

    async def _peek(self, index: bytes, found: Sequence[tuple[float, str]]) -> Sequence[_Row]:
        """Return the facts of an index's sessions, all in one trip to each node."""
        tenant, owner = self._keys.owner_of(index)
        keys = [SessionKey.of_path((tenant, owner, session)) for _, session in found]
        replies = await asyncio.gather(*(self._run("peek", self._keys.of(key), (), operation="list") for key in keys))
        return [_Row.of(key, reply) for key, (reply,) in zip(keys, replies, strict=True)]

    async def _is_there(self, index: bytes, session: str, score: float, row: _Row, now: datetime) -> bool:
        """Return whether a listed conversation exists; take it out of the index where it surely does not."""
        if row.head.epoch:
            return True
        if now - moment(int(score)) > _SURELY_OVER:  # the append that was to follow its listing is not under way any more
            await self._run("forget", (index,), (session.encode(), f"{score:.0f}".encode()), operation="list")
        return False

    async def _walk(self, tenant: str | None, after: str | None, limit: int, written_before: datetime | None) -> Page:
        """Go through every owner's index; a walk that a server's restart interrupts begins anew, for no scan survives it."""
        begin = self._keys.begin(tenant)
        place = _Place.read(after, begin)
        nodes = await self._nodes("list")
        servers = [await self._identity(node) for node in nodes]
        if place.servers != servers or not 0 <= place.node <= len(nodes):
            place = _Place(servers, 0, "0", [], None)
        items: list[Listed] = []
        for _ in range(_SCANS):
            while place.indexes and len(items) < limit:
                index = place.indexes[0].encode()
                wanted = limit - len(items)
                now, found = await self._browse(index, "up", place.within, wanted)
                for (score, session), row in zip(found, await self._peek(index, found), strict=True):
                    if await self._is_there(index, session, score, row, now) and _is_older(row, written_before):
                        items.append(row.listed())
                place = place._replace(within=found[-1]) if len(found) == wanted else place._replace(indexes=place.indexes[1:], within=None)
            if items or place.node == len(nodes):
                break
            try:
                cursor, keys = await self._on(nodes[place.node], "list", "SCAN", place.scan, "MATCH", f"{begin}*", "COUNT", 500)
            except Refused as error:
                raise StoreUnavailable(self.name, "list", f"the server refuses to be walked through: {error}") from error
            over = cursor == b"0"
            place = place._replace(node=place.node + over, scan=cursor.decode(), indexes=[key.decode() for key in keys])
        done = place.node == len(nodes) and not place.indexes
        return Page(tuple(items), None if done else place.text())

    async def delete(self, key: SessionKey, *, at: Head | None = None) -> bool:
        """See `Store.delete`."""
        args = layout.pack_delete(new_token(), at)
        keys, index, session = self._keys.of(key), self._keys.index(key), key.session_id.encode()
        if not _is_listed(key):
            return bool((await self._run("delete", keys, args, acks=self._acks))[0])
        if not self._wire.is_cluster:
            return bool((await self._run("delete", (*keys, index), args, acks=self._acks))[0])
        score = await self._command("delete", index, "ZSCORE", index, session)
        existed = bool((await self._run("delete", keys, args, acks=self._acks))[0])
        if score is not None and (existed or at is None):
            await self._run("forget", (index,), (session, f"{float(score):.0f}"), operation="delete", changes=False)
        return existed

    async def check(self) -> Health:
        """See `Store.check`. It looks at every node that holds keys.

        Raises:
            ConfigurationError: A server is too old, or a cluster's where one alone was named, or is set up so that it may lose
                conversations and `unsafe` is ``refuse``.
        """
        reports = await self._look("check")
        probe = b"%s:check:%s" % (self._keys.namespace, new_token().encode())
        await self._command("check", probe, "SET", probe, "1", "PX", 10_000)
        if await self._command("check", probe, "GETDEL", probe) != b"1":
            raise StoreUnavailable(self.name, "check", "the server did not keep what was written")
        confirmed = f"; confirmed by {self._acks.replicas} of its replicas" if self._acks else ""
        software = ", ".join(dict.fromkeys(report.software for report in reports))
        durability = "; ".join(dict.fromkeys(report.durability for report in reports))
        return Health(self.name, self._wire.location, durability + confirmed, software)

    async def aclose(self) -> None:
        """See `Store.aclose`. A later call connects again."""
        await self._wire.aclose()

    async def _look(self, operation: str) -> Sequence[Report]:
        """Ask the servers what they are, and say once what of it is dangerous."""
        reports = await self._reports(operation)
        for report in reports:
            if report.too_old:
                raise ConfigurationError(report.too_old)
            if report.is_clustered and not self._wire.is_cluster:
                raise ConfigurationError(_A_CLUSTER)
        dangers = list(dict.fromkeys(danger for report in reports for danger in report.dangers))
        if self._acks and any(report.version and report.replicas < self._acks.replicas for report in reports):
            dangers.append(
                f"Redis has fewer replicas than the {self._acks.replicas} that have to confirm each append; connect more, or all fail."
            )
        if dangers and self._unsafe == "refuse":
            raise ConfigurationError(" ".join(dangers))
        if not self._looked and self._unsafe == "warn":
            for danger in dangers:
                warnings.warn(danger, UnsafeRedisWarning, stacklevel=2)
        self._looked = True
        return reports

    async def _reports(self, operation: str) -> Sequence[Report]:
        """Ask every server; for a check all have to answer, else one that is down holds up only whose conversations it has."""
        reports, silence = [], None
        for node in await self._nodes(operation):
            try:
                reports.append(await self._report(node, operation))
            except StoreUnavailable as error:
                silence = error
        if silence is not None and (operation == "check" or not reports):
            raise silence
        return reports

    async def _report(self, node: Address | None, operation: str) -> Report:
        answers: list[Any] = []
        for command in (("INFO",), ("CONFIG", "GET", "appendfsync"), ("CONFIG", "GET", "save")):
            try:
                answers.append(await self._on(node, operation, *command))
            except Refused:  # a managed service says less
                answers.append(b"" if command == ("INFO",) else [])
        return Report.of(answers[0], [*_pairs(answers[1]), *_pairs(answers[2])])

    async def _identity(self, node: Address | None) -> str:
        """Return what changes when a server starts anew, as far as it says so."""
        try:
            info = await self._on(node, "list", "INFO", "server")
        except Refused:
            return ""
        return next((line[7:].decode() for line in info.splitlines() if line.startswith(b"run_id:")), "")

    async def _nodes(self, operation: str) -> Sequence[Address | None]:
        try:
            return await self._wire.primaries()
        except (Lost, Refused) as error:
            raise self._unavailable(operation, error, changes=False) from error

    async def _on(self, node: Address | None, operation: str, *command: Part) -> Any:
        try:
            return await self._wire.ask(node, *command)
        except (Lost, Refused) as error:
            if isinstance(error, Refused) and not error.is_of_the_sign_in and not error.is_for_now:
                raise  # it answers, and not this
            raise self._unavailable(operation, error, changes=False) from error

    async def _command(self, operation: str, key: bytes, *command: Part) -> Any:
        try:
            return (await self._wire.send(key, pack(*command)))[0]
        except (Lost, Refused) as error:
            raise self._unavailable(operation, error, changes=False) from error

    async def _run(
        self,
        verb: str,
        keys: Sequence[bytes],
        args: Sequence[Part],
        *behind: bytes,
        acks: Acks | None = None,
        operation: str = "",
        changes: bool | None = None,
    ) -> Sequence[Any]:
        """Run a verb's script and return its reply, and those of the packed commands that go with it.

        Args:
            acks: Wait for replicas.
            operation: The verb of the contract it is part of, when that has another name.
            changes: Whether a lost reply leaves it unknown what happened; None for the verbs that store and delete.
        """
        if not self._looked:
            await self._look(operation or verb)
        script, told, stores = layout.script(verb), (_NUMBERS[len(keys)], *keys, *args), verb in _STORING
        try:
            try:
                replies = await self._wire.send(keys[0], pack(b"EVALSHA", script.digest, *told), *behind, acks=acks, again=not stores)
            except Refused as error:
                if error.code != "NOSCRIPT":
                    raise
                replies = await self._wire.send(keys[0], pack(b"EVAL", script.source, *told), *behind, acks=acks, again=not stores)
        except (Lost, Refused) as error:
            raise self._unavailable(operation or verb, error, changes=stores if changes is None else changes) from error
        if acks and replies[-1] < acks.replicas and isinstance(replies[0], int):
            reason = f"{replies[-1]} of {acks.replicas} replicas have confirmed it in time"
            raise StoreUnavailable(self.name, operation or verb, reason, unknown=stores if changes is None else changes)
        return replies

    def _unavailable(self, operation: str, error: Exception, *, changes: bool) -> StoreUnavailable:
        unknown = changes and isinstance(error, Lost) and error.sent
        if isinstance(error, Refused) and error.code == "OOM":
            reason = "the server has reached its maxmemory and refuses to write; raise maxmemory, or delete conversations"
        elif isinstance(error, Refused) and error.is_of_the_sign_in:
            reason = f"the server refused the user name or the password: {error}"
        else:
            reason = str(error) or type(error).__name__
        return StoreUnavailable(self.name, operation, reason, unknown=unknown)


class _Row(NamedTuple):
    """What a list needs of a conversation; a head without epoch when it is absent."""

    key: SessionKey
    head: Head
    created: int
    updated: int
    expired: bool

    @classmethod
    def of(cls, key: SessionKey, reply: Sequence[Any]) -> _Row:
        head, created, updated, expired = reply
        return cls(key, layout.unpack_head(head), int(created), int(updated), bool(expired))

    def listed(self) -> Listed:
        created, updated = moment(self.created), moment(self.updated)
        return Listed(self.key, self.head.turns, created, updated, self.head.revision, self.expired)


class _Place(NamedTuple):
    """Where a walk through all owners stands.

    Attributes:
        servers: The servers it goes through; a walk begins anew when they changed.
        node: Which of them it is at; their number when all were scanned.
        scan: The cursor of the scan there.
        indexes: Found and not yet read.
        within: How far the first of these was read.
    """

    servers: list[str]
    node: int
    scan: str
    indexes: list[str]
    within: tuple[float, str] | None

    @classmethod
    def read(cls, after: str | None, begin: str) -> _Place:
        """Return the place a cursor names; all its indexes have to begin so: a cursor never says whose conversations."""
        if after is None:
            return cls([""], -1, "0", [], None)
        try:
            servers, node, scan, indexes, within = json.loads(urlsafe_b64decode(after.encode()))
            place = cls(list(servers), int(node), str(int(scan)), list(map(str, indexes)), within and (float(within[0]), str(within[1])))
            valid = all(index.startswith(begin) for index in place.indexes) and isfinite(place.within[0] if place.within else 0)
        except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError) as error:
            raise ValueError(_NO_CURSOR) from error
        if not valid:
            raise ValueError(_NO_CURSOR)
        return place

    def text(self) -> str:
        return urlsafe_b64encode(json.dumps(self, separators=(",", ":")).encode()).decode()


def _is_older(row: _Row, than: datetime | None) -> bool:
    return than is None or moment(row.updated) < than


def _is_listed(key: SessionKey) -> bool:
    """Return whether an owner has this conversation; what convmem keeps for itself is in no list."""
    return not key.owner.startswith(RESERVED_OWNER)


def _pairs(answer: Any) -> list[bytes]:
    """Return a reply of CONFIG GET as a flat list, whatever the protocol."""
    if isinstance(answer, dict):
        return [item for pair in answer.items() for item in pair]
    return list(answer)


def _wire_of(client: Redis | RedisCluster, patience: Patience) -> Wire:
    from convmem.stores.redis_driver import wire_of  # who passes one in has imported redis-py

    return wire_of(client, patience)
