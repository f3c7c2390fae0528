"""Every interleaving of a few turns over the model, with a bounded number of accidents, and what must hold in each.

A *world* is the model, the attempts at work, and what only we know: how often was deleted and lost, what was acknowledged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from convmem.stores.base import Entry, Head, Outcome
from convmem.testing.model import Model, Rule, model_without

NOWHERE = Head()
Step: TypeAlias = "Callable[[World], World]"


class Acknowledged(NamedTuple):
    """An entry whose writer was told that it is stored."""

    entry: str
    n: int
    life: int
    losses: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a turn.

    Attributes:
        saves: How many entries it stores before the closing one.
        leased: Whether it takes a lease.
        fresh_ids: How often it repeated an append under a new entry id; only when that mistake is planted.
        holds: Whether its lease has been its own, without a break, since it loaded.
        life: How many deletes there had been when it loaded.
        losses: How many losses.
    """

    turn: str
    token: str
    saves: int = 0
    leased: bool = True
    state: str = "new"
    head: Head = NOWHERE
    stored: int = 0
    fresh_ids: int = 0
    holds: bool = False
    life: int = 0
    losses: int = 0

    @property
    def entry(self) -> Entry:
        """What it appends next."""
        closing = self.stored == self.saves
        name = f"{self.token}{self.stored}" + "'" * self.fresh_ids
        return Entry(name, self.turn, self.token, self.head.epoch or f"epoch of {name}", closing=closing)


@dataclass(frozen=True, slots=True)
class World:
    """Everything at one moment; `left` is how many accidents of each kind may still happen."""

    model: Model
    attempts: tuple[Attempt, ...]
    left: tuple[tuple[str, int], ...]
    accidents: int
    acknowledged: frozenset[Acknowledged] = frozenset()
    life: int = 0
    losses: int = 0


class Violated(Exception):
    """A promise does not hold."""


def require(promise: bool, text: str) -> None:
    if not promise:
        raise Violated(text)


def explore(
    attempts: tuple[Attempt, ...], accidents: dict[str, int], at_most: int, *, without: frozenset[Rule] = frozenset(), new_ids: bool = False
) -> int:
    """Walk all worlds and return how many there are; raise `Violated` with the way that leads to a broken promise."""
    start = World(model_without(without), attempts, tuple(accidents.items()), at_most)
    seen = {start}
    waiting: deque[tuple[World, tuple[Any, ...]]] = deque([(start, ())])
    while waiting:
        world, way = waiting.popleft()
        for name, step in _steps(world, new_ids=new_ids):
            here = (way, name)
            try:
                after = step(world)
                _check(after)
            except Violated as violation:
                raise Violated(f"{violation} after: {' | '.join(_unwind(here))}") from None
            if after not in seen:
                seen.add(after)
                waiting.append((after, here))
    return len(seen)


def _unwind(way: tuple[Any, ...]) -> list[str]:
    names: list[str] = []
    while way:
        way, name = way
        names.append(name)
    return names[::-1]


def _steps(world: World, *, new_ids: bool) -> Iterator[tuple[str, Step]]:
    left = {kind for kind, times in world.left if times and world.accidents}
    for i, attempt in enumerate(world.attempts):
        who = attempt.token
        if attempt.state == "new":
            yield f"{who} loads", partial(_load, i=i)
            if "lost" in left and attempt.leased:
                yield f"{who} loads, answer lost", _accident("lost", partial(_load, i=i, heard=False))
        if attempt.state == "loaded":
            yield f"{who} appends", partial(_append, i=i)
            if "lost" in left:
                yield f"{who} appends, answer lost", _accident("lost", partial(_append, i=i, heard=False, new_ids=new_ids))
            if attempt.leased and (not attempt.holds or world.model.holder != who):
                yield f"{who} renews", partial(_renew, i=i)
            if "crash" in left:
                yield f"{who} crashes", _accident("crash", partial(_set, i=i, state="dead"))
    yield from _from_outside(world.model, left)


def _from_outside(model: Model, left: set[str]) -> Iterator[tuple[str, Step]]:
    if model.holder and "lapse" in left:
        yield "the lease runs out", _accident("lapse", lambda world: _no_lease(world, world.model.lapse()))
    if "delete" in left:
        yield "delete", _accident("delete", _delete)
    if "lose" in left and model.log:
        yield "failover", _accident("lose", lambda world: _lose(world, world.model.lose(1)))
    if "wipe" in left and (model.log or model.mark):
        yield "wipe", _accident("wipe", lambda world: _lose(world, world.model.wipe()))


def _accident(kind: str, step: Step) -> Step:
    def spend(world: World) -> World:
        left = tuple((each, times - (each == kind)) for each, times in world.left)
        return step(replace(world, left=left, accidents=world.accidents - 1))

    return spend


def _set(world: World, i: int, **changes: Any) -> World:
    attempts = (*world.attempts[:i], replace(world.attempts[i], **changes), *world.attempts[i + 1 :])
    return replace(world, attempts=attempts)


def _no_lease(world: World, model: Model) -> World:
    attempts = tuple(replace(attempt, holds=False) if attempt.holds else attempt for attempt in world.attempts)
    return replace(world, model=model, attempts=attempts)


def _delete(world: World) -> World:
    before = world.model
    model = before.delete(f"mark {world.life + 1}")
    require(model.holder == "", "a delete ends the lease")
    require(model.head.id not in {"", before.mark}, "a delete leaves a new mark")
    return replace(_no_lease(world, model), life=world.life + 1)


def _lose(world: World, model: Model) -> World:
    return replace(_no_lease(world, model), losses=world.losses + 1)


def _load(world: World, i: int, *, heard: bool = True) -> World:
    attempt, before = world.attempts[i], world.model
    model, view = before.load(attempt.turn, attempt.token if attempt.leased else "")
    require(model.holder in {before.holder, attempt.token}, "a load takes the lease or leaves it")
    require(before.holder in {"", attempt.token} or model.holder == before.holder, "a live lease is not taken away")
    require(model.visible == before.visible, "a load changes nothing a reader sees")
    require(view.head == before.head, "a load sees the newest head")
    complete = any(entry.turn == attempt.turn and entry.closing for entry in before.log)
    found = view.turn is not None and view.turn.state == "complete"
    require(found == complete, "a complete turn is found, whoever is at work")
    require(not complete or model.holder == before.holder, "a complete turn takes no lease")
    world = replace(world, model=model)
    if not heard:
        return world
    if complete:
        return _end(world, i, "replayed")
    if attempt.leased and view.holder != attempt.token:
        require(before.holder not in {"", attempt.token}, "a free lease, or one's own, is taken")
        return world
    return _set(world, i, state="loaded", head=view.head, holds=attempt.leased, life=world.life, losses=world.losses)


def _renew(world: World, i: int) -> World:
    attempt, before = world.attempts[i], world.model
    model, kept = before.renew(attempt.token, attempt.head)
    require(before.holder in {"", attempt.token} or not kept, "a lease that another holds is not renewed")
    return _set(replace(world, model=model), i, holds=kept)


def _append(world: World, i: int, *, heard: bool = True, new_ids: bool = False) -> World:
    attempt, before = world.attempts[i], world.model
    entry = attempt.entry
    model, outcome, head = before.append(attempt.head, entry, release=entry.closing)
    _judge(world, attempt, entry, outcome, head)
    world = replace(world, model=model)
    if not heard:
        holds = attempt.holds and model.holder == attempt.token
        return _set(world, i, holds=holds, fresh_ids=attempt.fresh_ids + new_ids)
    if outcome in {Outcome.STORED, Outcome.DUPLICATE}:
        told = Acknowledged(entry.id, head.n, world.life, world.losses)
        world = replace(world, acknowledged=world.acknowledged | {told})
        if entry.closing:
            return _end(world, i, "stored")
        return _set(world, i, head=head, stored=attempt.stored + 1, fresh_ids=0)
    replayed = outcome in {Outcome.CONFLICT, Outcome.FENCED} and model.look_up(attempt.turn).state == "complete"
    return _end(replace(world, model=model.release(attempt.token)), i, "replayed" if replayed else "failed")


def _end(world: World, i: int, state: str) -> World:
    attempt = world.attempts[i]
    require(world.model.holder != attempt.token, "a turn that ends leaves no lease behind")
    held = {other.token for other in world.attempts if other.holds and other.state == "loaded"} - {attempt.token}
    require(not held or world.model.holder in held, "a turn that ends leaves another's lease alone")
    return _set(world, i, state=state, head=Head(), holds=False, life=0, losses=0, stored=0, fresh_ids=0)


def _judge(world: World, attempt: Attempt, entry: Entry, outcome: Outcome, head: Head) -> None:
    """Compare an outcome with what really happened since the attempt loaded."""
    log, after = world.model.log, attempt.head
    deleted, lost = world.life > attempt.life, world.losses > attempt.losses
    if deleted and not lost:
        require(outcome is Outcome.GONE, f"a turn from before a delete is gone, not {outcome}")
    if lost:
        missing = after.n > 0 and (len(log) < after.n or log[after.n - 1].id != after.id)
        require(not missing or outcome in {Outcome.GAP, Outcome.GONE}, f"a loss is told, not covered up as {outcome}")
        return
    require(outcome is not Outcome.GONE or deleted, "gone means deleted")
    require(outcome is not Outcome.GAP, "a gap means that something was lost")
    if deleted:
        return
    standing = len(log) > after.n and log[after.n].id == entry.id
    require(standing == (outcome is Outcome.DUPLICATE), f"an entry that stands in the log is a duplicate, not {outcome}")
    if standing:
        require(head.n == after.n + 1, "a duplicate is answered with its own position")
        return
    free = world.model.holder in {"", entry.token}
    require(_follows(log, after) or outcome is not Outcome.STORED, "a late writer is never merged")
    require(free or outcome is Outcome.FENCED, f"a turn that lost its lease to another is fenced, not {outcome}")
    require(not free or outcome is not Outcome.FENCED, "fenced means that another holds the lease")
    require(not (free and _follows(log, after)) or outcome is Outcome.STORED, f"nobody is in the way, and yet {outcome}")
    require(not attempt.holds or outcome is Outcome.STORED, f"the turn that holds the lease is stored, not {outcome}")


def _follows(log: tuple[Entry, ...], after: Head) -> bool:
    return len(log) == after.n and (not log or log[-1].id == after.id)


def _check(world: World) -> None:
    """What holds in every world."""
    log = world.model.log
    visible = [log[n - 1] for n in world.model.visible]
    for told in world.acknowledged:
        if (told.life, told.losses) == (world.life, world.losses):
            require(len(log) >= told.n and log[told.n - 1].id == told.entry, "what was acknowledged is where it was")
            entry = log[told.n - 1]
            newest = next(other.token for other in reversed(log) if other.turn == entry.turn)
            require(entry.token != newest or entry in visible, "what was acknowledged is visible, unless a later attempt stored something")
    for turn in {entry.turn for entry in log}:
        closed = [entry for entry in log if entry.turn == turn and entry.closing]
        require(len(closed) <= 1, "a turn is stored once")
        places = [place for place, entry in enumerate(visible) if entry.turn == turn]
        require(len({visible[place].token for place in places}) <= 1, "one attempt of a turn is visible")
        require(places == list(range(places[0], places[0] + len(places))) if places else True, "a turn is never interleaved")
    born = {attempt.token: attempt.life for attempt in world.attempts if attempt.state == "loaded" and attempt.stored}
    for entry in log:
        require(born.get(entry.token, world.life) == world.life or world.losses > 0, "an entry stands in the life it was written for")
