"""Random schedules run against a store and the model side by side; every answer is compared. Needs hypothesis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Literal, TypeVar

from hypothesis import HealthCheck, Phase, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from convmem.identifiers import new_id, new_token
from convmem.keys import SessionKey
from convmem.stores.base import Entry, Head, Kind, Lease, Log, Outcome, Store
from convmem.testing.model import Model
from convmem.testing.writer import LONG, fresh_key

T = TypeVar("T")

_MOMENT = timedelta(milliseconds=4)
_places = st.integers(0, 1)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to append; `token` is the number of one."""

    turn: str
    token: int
    count: int = 1
    closing: bool = False
    kind: Kind = Kind.TURN
    hides: int | None = None
    pins: bool = False
    releases: bool = False


_turns = st.sampled_from(["t", "u"])
_tokens = st.integers(0, 2)
_back = st.one_of(st.just(0), st.just(0), st.integers(0, 9))
_seldom = st.integers(0, 3).map(lambda number: number == 3)
_plans = st.builds(
    Plan,
    turn=_turns,
    token=_tokens,
    count=st.integers(0, 3),
    closing=st.booleans(),
    kind=st.sampled_from([Kind.TURN, Kind.TURN, Kind.TURN, Kind.EDIT, Kind.RESET]),
    hides=st.none() | st.integers(1, 6),
    pins=st.booleans(),
    releases=st.booleans(),
)
_limits = st.none() | st.integers(0, 4)


def compare_with_model(open_store: Callable[[], Store], *, examples: int = 100, steps: int = 50, shrink: bool = True) -> None:
    """Run random schedules of two conversations over two store objects and fail where a store and the model differ.

    Args:
        open_store: As for `StoreContract`: a new object on the same storage each time.
        examples: How many schedules.
        steps: How many calls in each, at most.
        shrink: Whether a failing schedule is made as short as possible first.
    """
    phases = tuple(phase for phase in Phase if shrink or phase not in {Phase.shrink, Phase.explain})
    with asyncio.Runner() as runner:
        stores = (open_store(), open_store())
        try:
            run_state_machine_as_test(
                _machine(stores, runner),
                settings=settings(
                    max_examples=examples,
                    stateful_step_count=steps,
                    deadline=None,
                    database=None,
                    phases=phases,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            for store in stores:
                runner.run(store.aclose())


def _machine(stores: tuple[Store, Store], runner: asyncio.Runner) -> type[RuleBasedStateMachine]:
    class Bound(StoreMachine):
        def __init__(self) -> None:
            super().__init__(stores, runner)

    return Bound


class StoreMachine(RuleBasedStateMachine):
    """Two conversations of one owner, each beside its model.

    A caller's mistakes are left out: an attempt neither comes back after a newer one of its turn has stored something, nor
    goes on behind somebody else's turn. What a store does with those is not promised.
    """

    def __init__(self, stores: tuple[Store, Store], runner: asyncio.Runner) -> None:
        """Start with two conversations nobody has written."""
        super().__init__()
        self._stores = stores
        self._runner = runner
        self._calls = 0
        owner = fresh_key().owner
        self._keys = (SessionKey(owner, "one"), SessionKey(owner, "other"))
        self._models = [Model(), Model()]
        self._heads: tuple[list[Head], list[Head]] = ([Head()], [Head()])
        self._tried: tuple[list[tuple[Head, Entry]], list[tuple[Head, Entry]]] = ([], [])
        self._tokens = [new_token() for _ in range(3)]

    @property
    def _store(self) -> Store:
        self._calls += 1
        return self._stores[self._calls % 2]

    def _run(self, call: Coroutine[None, None, T]) -> T:
        return self._runner.run(call)

    @rule(place=_places, turns=_limits, messages=_limits, turn=st.none() | _turns)
    def read(self, place: int, turns: int | None, messages: int | None, turn: str | None) -> None:
        """Load without a lease."""
        log = self._run(self._store.load(self._keys[place], turns=turns, messages=messages, turn=turn))
        self._compare(place, log, turns, messages, turn)

    @rule(place=_places, turn=_turns, token=_tokens, entries=st.integers(0, 2), closes=st.booleans(), releases=st.booleans())
    def take_a_turn(self, place: int, turn: str, token: int, entries: int, closes: bool, releases: bool) -> None:  # noqa: FBT001
        """Do what a request does, all of it or the first part."""
        self.begin(place, turn, token)
        model = self._models[place]
        if model.holder != self._tokens[token] or model.look_up(turn).state == "complete":
            return
        for number in range(entries):
            last = number == entries - 1
            self.write(place, 0, None, Plan(turn, token, closing=closes and last, releases=releases and last))

    @rule(place=_places, turn=st.none() | _turns, token=_tokens)
    def begin(self, place: int, turn: str | None, token: int) -> None:
        """Load and try to take the lease."""
        lease = Lease(self._tokens[token], LONG)
        before = self._models[place]
        self._models[place], view = before.load(turn, lease.token)
        log = self._run(self._store.load(self._keys[place], turn=turn, lease=lease))
        assert log.turn == view.turn
        self._compare(place, log, None, None, None)

    def _compare(self, place: int, log: Log, turns: int | None, messages: int | None, turn: str | None) -> None:
        model = self._models[place]
        self._heads[place].append(log.head)
        window = model.window(turns, messages)
        assert log.head == model.head
        skimmed = list(log.skim())
        assert [(stored.n, stored.entry) for stored in log.entries] == [(n, model.log[n - 1]) for n in window]
        assert skimmed == [(stored.n, stored.entry.turn, stored.entry.closing, stored.entry.body) for stored in log.entries]
        first = window[0] if window else model.head.n + 1
        assert [stored.n for stored in log.pinned] == [n for n in model.head.pinned if n < first and n in model.visible]
        assert log.holder.token == model.holder
        assert (log.expired, log.deleted_at is None, log.ended) == (False, not model.mark, frozenset(model.ended))
        for each in log.turns:
            known = model.look_up(each.id)
            assert each.state == known.state or each.entries[-1].n < known.position  # an edit hid how it ended
        if turn is not None:
            assert log.turn == model.look_up(turn)

    @rule(place=_places, back=_back, strange=st.sampled_from([None, None, None, None, "epoch", "id", "n"]), plan=_plans)
    def write(self, place: int, back: int, strange: Literal["epoch", "id", "n"] | None, plan: Plan) -> None:
        """Append after a head that was seen some time ago, or just now, or by nobody."""
        heads = self._heads[place]
        after = heads[-1 - back % len(heads)]
        if strange and after.epoch:
            after = {
                "epoch": replace(after, epoch=new_token()),
                "id": replace(after, id=new_id()),
                "n": replace(after, n=after.n + 1),
            }[strange]
        n = after.n + 1
        entry = Entry(
            id=new_id(),
            turn=plan.turn if plan.kind is Kind.TURN else new_id(),
            token=self._tokens[plan.token],
            epoch=after.epoch or new_token(),
            body=b"%d" % n,
            count=plan.count,
            kind=plan.kind,
            closing=plan.closing,
            turns=after.turns + 1,
            start=n if plan.kind is Kind.RESET else after.start,
            pinned=(*after.pinned, n) if plan.pins and plan.kind is Kind.TURN else after.pinned,
            hides=(plan.hides,) if plan.hides is not None and plan.hides < n else (),
        )
        if not self._is_mistake(place, entry):
            self._offer(place, after, entry, release=plan.releases)

    def _is_mistake(self, place: int, entry: Entry) -> bool:
        log = [other for other in self._models[place].log if other.kind is Kind.TURN]
        tokens = [other.token for other in log if other.turn == entry.turn]
        return entry.token in tokens and (tokens[-1] != entry.token or log[-1].turn != entry.turn)

    def _offer(self, place: int, after: Head, entry: Entry, *, release: bool) -> None:
        self._models[place], outcome, head = self._models[place].append(after, entry, release=release)
        answer = self._run(self._store.append(self._keys[place], after, entry, release=release))
        assert answer.outcome is outcome
        assert answer.head == head
        self._tried[place].append((after, entry))
        if outcome in {Outcome.STORED, Outcome.DUPLICATE}:
            self._heads[place].append(answer.head)

    @rule(place=_places, back=_back, release=st.booleans())
    def repeat(self, place: int, back: int, release: bool) -> None:  # noqa: FBT001
        """Append something again, as after a lost answer."""
        tried = self._tried[place]
        if tried:
            after, entry = tried[-1 - back % len(tried)]
            if not self._is_mistake(place, entry) or entry in self._models[place].log:
                self._offer(place, after, entry, release=release)

    @rule(place=_places, token=_tokens, back=_back)
    def renew(self, place: int, token: int, back: int) -> None:
        """Renew a lease, one's own or not, live or not."""
        heads = self._heads[place]
        head = heads[-1 - back % len(heads)]
        self._models[place], kept = self._models[place].renew(self._tokens[token], head)
        assert self._run(self._store.renew(self._keys[place], Lease(self._tokens[token], LONG), head)) == kept

    @rule(place=_places, token=_tokens)
    def release(self, place: int, token: int) -> None:
        """Release a lease, one's own or not."""
        self._models[place] = self._models[place].release(self._tokens[token])
        self._run(self._store.release(self._keys[place], self._tokens[token]))

    @rule(place=_places)
    def lapse(self, place: int) -> None:
        """Let the live lease run out."""
        model = self._models[place]
        if model.holder:
            assert self._run(self._store.renew(self._keys[place], Lease(model.holder, _MOMENT), model.head))
            time.sleep(2 * _MOMENT.total_seconds())
            self._models[place] = model.lapse()

    @rule(place=_places, sure=_seldom)
    def delete(self, place: int, sure: bool) -> None:  # noqa: FBT001
        """End a life."""
        if not sure:
            return
        model = self._models[place]
        assert self._run(self._store.delete(self._keys[place])) == bool(model.log)
        mark = self._run(self._store.load(self._keys[place])).head.id
        assert mark not in {"", model.mark}
        self._models[place] = model.delete(mark)
        self._heads[place].append(self._models[place].head)

    @rule()
    def list(self) -> None:
        """List the owner's conversations."""
        page = self._run(self._store.list(self._keys[0].owner))
        present = {
            (key.session_id, model.head.turns, model.head.revision)
            for key, model in zip(self._keys, self._models, strict=True)
            if model.log
        }
        assert {(item.session_id, item.turns, item.revision) for item in page.items} == present
