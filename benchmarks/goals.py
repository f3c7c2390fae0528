"""What a run is measured against: ratios, counts, and the few absolute figures that a worker feels."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from benchmarks.systems import SYSTEMS
from benchmarks.workload import WINDOW, answer, question
from convmem import Message
from convmem.messages import encode_message, encode_messages

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.run import Plan, Results

STORES = ("redis", "postgresql", "sqlite")
LIMITS = {"redis": ("hiredis, multiplexed", "redis-py"), "postgresql": ("asyncpg, held statements",), "sqlite": ("sqlite3, inline",)}
USUAL = {"redis": ("redis-py", 2.5), "postgresql": ("asyncpg, pool", 1.5), "sqlite": ("aiosqlite", 2.5)}
FEW, MANY = 100, 1000
_LONG = {"redis": 5.0, "postgresql": 8.0, "sqlite": 8.0}
_EMPTY = {"redis": 3.0, "postgresql": 1.3, "sqlite": 6.0}
_GROWTH, _STORE, _CONVERSATION, _STORED = 1.15, 1.3, 1.8, 1.15
_ENTRY_BYTES, _TURN_BYTES = 64, 500
_MEGABYTE = 1e6


class Goal(NamedTuple):
    """One row.

    Attributes:
        what: It says.
        sign: ``≤`` or ``≥``.
        goal: The bound.
        found: What was measured: every one of them is to keep it.
        unit: Behind each figure.
        digits: Of each figure, behind the point.
    """

    what: str
    sign: str
    goal: float
    found: Sequence[float]
    unit: str = ""
    digits: int = 2

    @property
    def met(self) -> bool:
        """Whether every figure keeps the bound, as exactly as it is shown."""
        shown = [round(each, self.digits) for each in self.found]
        return all(each <= self.goal if self.sign == "≤" else each >= self.goal for each in shown)


def goals(results: Results, plan: Plan) -> list[Goal]:
    """Return those that something was measured for."""
    rows = [*_growth(results, plan), *_limits(results), *_peers(results, plan), *_usual(results, plan), *_wire(results, plan)]
    rows += [*_stored(results), *_direct(results), *_served(results, plan), *_worker(results)]
    return [row for row in rows if row.found]


def table(results: Results, plan: Plan) -> str:
    """Return them as a table."""
    rows = ["| what | goal | measured | |", "|---|---|---|---|"]
    for row in goals(results, plan):
        found = " / ".join(f"{each:,.{row.digits}f}" for each in row.found)
        rows.append(f"| {row.what} | {row.sign} {row.goal:g}{row.unit} | {found}{row.unit} | {'met' if row.met else '**not met**'} |")
    return "\n".join(rows)


def _over(one: float | None, other: float | None) -> list[float]:
    return [] if one is None or not other else [one / other]


def _doors(store: str) -> list[str]:
    return [f"convmem {door}, {store}" for door in ("Store", "Conversation", "middleware")]


def _bounded(store: str) -> list[str]:
    """Return the doors that have a bound of their own; a conversation has one whether this process has read it before or not."""
    return [f"convmem {door}, {store}" for door in ("Store", "Conversation", "Conversation unread before")]


def _growth(results: Results, plan: Plan) -> Iterator[Goal]:
    most = plan.sizes[-1]
    for store in STORES:
        for name in _doors(store):
            few, many = (sum(results.counted.get((name, messages), (0, 0, 0))[1:]) for messages in (FEW, most))
            found = {
                "p50": _over(results.median(name, most, 1, "p50"), results.median(name, FEW, 1, "p50")),
                "CPU": _over(results.median(name, most, 1, "cpu"), results.median(name, FEW, 1, "cpu")),
                "bytes": _over(many, few),
            }
            figures = ", ".join(words for words, ratio in found.items() if ratio)
            ratios = [ratio for each in found.values() for ratio in each]
            yield Goal(f"{name}: a turn of {most:,} messages over one of {FEW}: {figures}", "≤", _GROWTH, ratios)


def _limits(results: Results) -> Iterator[Goal]:
    for store in STORES:
        for name, bound in zip(_bounded(store), (_STORE, _CONVERSATION, _CONVERSATION), strict=True):
            for limit in LIMITS[store]:
                found = [ratio for figure in ("p50", "cpu")
                         for ratio in _over(results.median(name, MANY, 1, figure), results.median(limit, MANY, 1, figure))]  # fmt: skip
                yield Goal(f"{name} over {limit}, {MANY:,} messages: p50, client CPU", "≤", bound, found)


def _peers(results: Results, plan: Plan) -> Iterator[Goal]:
    for store in STORES:
        peers = [system.name for system in SYSTEMS if system.kind == "peer" and system.store == store and not system.group]
        for messages, bounds in ((MANY, _LONG), (0, _EMPTY)):
            rates = {rate: peer for peer in peers if (rate := results.median(peer, messages, plan.sessions, "rate"))}
            if not rates:
                continue
            best = max(rates)
            for name in _bounded(store):
                found = _over(results.median(name, messages, plan.sessions, "rate"), best)
                what = f"{name} over {rates[best]}, the best peer: turns/s in {plan.sessions} conversations of {messages:,} messages"
                yield Goal(what, "≥", bounds[store], found)


def _usual(results: Results, plan: Plan) -> Iterator[Goal]:
    for store in STORES:
        usual, bound = USUAL[store]
        name = _doors(store)[0]
        found = _over(*(results.median(each, MANY, plan.sessions, "rate") for each in (name, usual)))
        yield Goal(f"{name} over {usual}, the usual client: turns/s in {plan.sessions} conversations", "≥", bound, found)


def _wire(results: Results, plan: Plan) -> Iterator[Goal]:
    turn = len(encode_messages(map(encode_message, (Message.user(question()), Message.assistant(answer())))))
    entries = WINDOW // 2 + 1
    most = plan.sizes[-1]
    for store in STORES:
        for name in _doors(store):
            counted = results.counted.get((name, most))
            if counted:
                yield Goal(f"{name}: round trips a turn", "≤", 2, [counted[0]])
                over = sum(counted[1:]) - entries * (turn + _ENTRY_BYTES)
                what = f"{name}: bytes a turn beside {entries} entries of {turn:,} + {_ENTRY_BYTES}, {most:,} messages"
                yield Goal(what, "≤", _TURN_BYTES, [over], digits=0)


def _stored(results: Results) -> Iterator[Goal]:
    for store in STORES:
        lean = [results.stored[name] for name in (*LIMITS[store], USUAL[store][0]) if name in results.stored]
        name = _doors(store)[0]
        if lean:
            what = f"{name}: bytes stored a message, over the leanest layout ({min(lean):,.0f} bytes, no ids and no times)"
            yield Goal(what, "≤", _STORED, _over(results.stored.get(name), min(lean)))


def _direct(results: Results) -> Iterator[Goal]:
    bare = results.median("bare app", 0, 1, "p50")
    for name, bound in (("convmem middleware, nothing appended", 12.0), ("convmem middleware, a commit", 40.0)):
        took = results.median(name, 0, 1, "p50")
        if took and bare:
            yield Goal(f"{name}, a visitor's cookie: over the bare app", "≤", bound, [(took - bare) * 1e6], " µs", 1)


def _served(results: Results, plan: Plan) -> Iterator[Goal]:
    for reads, bound in (("nothing", 0.30), ("every message", 0.25)):
        found = _over(*(results.median(f"uvicorn, {name}", FEW, plan.sessions, "rate")
                        for name in (f"convmem, the handler reads {reads}", "no memory")))  # fmt: skip
        what = f"requests/s under uvicorn on Redis, {plan.sessions} connections, the handler reads {reads}: over the app without a memory"
        yield Goal(what, "≥", bound, found)


def _worker(results: Results) -> Iterator[Goal]:
    for line, seconds in results.facts.get("imports", {}).items():
        yield Goal(f"`{line}`, after starlette and pydantic", "≤", 60, [seconds * 1e3], " ms", 1)
    idle = [results.idle.get(f"uvicorn, {name}") for name in ("convmem, the handler reads nothing", "no memory")]
    if idle[0] and idle[1]:
        yield Goal("memory of an idle worker on Redis, over the app without a memory", "≤", 15, [(idle[0] - idle[1]) / _MEGABYTE], " MB", 1)
