"""Calls of one event loop that wait at the same time go to the server together, in one statement.

While few are under way each goes alone and at once: nobody waits for company. Of many that are, each statement that comes back takes
along whatever has come meanwhile, up to one call for each conversation: one trip, one plan and one flush for all of them.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, NoReturn, Protocol

from convmem.exceptions import StoreUnavailable

AT_ONCE = 2
"""So many statements are under way before calls wait for one another."""
SLOW = 0.1
"""Seconds after which nobody waits for a statement any more: it may be held up by a row that somebody has locked."""
MOST_TOGETHER = 32
"""So many calls are one statement at most."""


class Statement(NamedTuple):
    """A statement that can answer one call or many.

    Attributes:
        operation: The verb of the store.
        name: Its file.
        parts: Those of its parts that are wanted, beside ``one`` or ``many``.
    """

    operation: str
    name: str
    parts: tuple[str, ...] = ()


Send = Callable[[Statement, str, Sequence[object], float], Awaitable[list[Any]]]
"""Runs a statement for ``one`` or for ``many``, with arguments, until a deadline."""


class Overdue(Protocol):
    """Raises what a call is told that waited until its deadline."""

    def __call__(self, operation: str, *, sent: bool) -> NoReturn:
        """Do so; for a verb of the store, of which the server may know, or not."""
        ...


class _Call:
    __slots__ = ("answer", "arguments", "deadline", "sent", "statement")

    def __init__(self, statement: Statement, arguments: Sequence[object], deadline: float) -> None:
        self.statement, self.arguments, self.deadline = statement, arguments, deadline
        self.answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self.sent = False


class Batches:
    """The calls of one event loop.

    Args:
        send: How a statement is run.
        overdue: What is done with a call that has waited until its deadline.
    """

    def __init__(self, send: Send, overdue: Overdue) -> None:
        """Begin with none."""
        self._send, self._overdue = send, overdue
        self._under_way: dict[object, float] = {}
        self._waiting: deque[_Call] = deque()
        self._look_again: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def call(self, statement: Statement, arguments: Sequence[object], deadline: float) -> list[Any]:
        """Return the rows of a call whose first argument is its conversation; none when it has to be asked alone.

        Raises:
            StoreUnavailable: The statement failed, or there was no answer before the deadline.
        """
        if len(self._under_way) < AT_ONCE:
            this = object()
            self._under_way[this] = time.monotonic()
            try:
                return await self._send(statement, "one", arguments, deadline)
            finally:
                self._ended(this)
        call = _Call(statement, arguments, deadline)
        self._waiting.append(call)
        self._go_on()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await call.answer
        except TimeoutError:
            self._overdue(statement.operation, sent=call.sent)

    def _ended(self, this: object) -> None:
        del self._under_way[this]
        if self._waiting:
            self._go_on()

    def _go_on(self) -> None:
        """Send what waits, as long as statements may be sent; and look again when one that is under way has become slow."""
        now, loop = time.monotonic(), asyncio.get_running_loop()
        free = AT_ONCE - sum(now - since < SLOW for since in self._under_way.values())
        while free > 0 and (batch := self._take()):
            free -= 1
            this = object()
            self._under_way[this] = now
            task = loop.create_task(self._run(batch, this))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self._waiting and self._look_again is None:
            self._look_again = loop.call_later(SLOW, self._after_a_while)

    def _after_a_while(self) -> None:
        self._look_again = None
        if self._waiting:
            self._go_on()

    def _take(self) -> list[_Call]:
        """Return what goes together: calls of one statement, to different conversations, whoever waits longest first."""
        taken: dict[object, _Call] = {}
        left: deque[_Call] = deque()
        statement: Statement | None = None
        for call in self._waiting:
            if call.answer.done():
                continue
            statement = statement or call.statement
            if call.statement == statement and call.arguments[0] not in taken and len(taken) < MOST_TOGETHER:
                taken[call.arguments[0]] = call
            else:
                left.append(call)
        self._waiting = left
        return list(taken.values())

    async def _run(self, batch: list[_Call], this: object) -> None:
        answers: Sequence[list[Any] | Exception]
        try:
            answers = await self._answers(batch)
        except StoreUnavailable as error:
            is_told = error.unknown or len(batch) == 1  # else nothing was done; whose fault it was is found out by asking for each alone
            answers = [_again(error) if is_told else [] for _ in batch]
        except Exception as error:  # noqa: BLE001 - it is told to each whom it concerns
            answers = [error for _ in batch]
        except BaseException:
            for call in batch:
                call.answer.cancel()
            raise
        finally:
            self._ended(this)
        for call, answer in zip(batch, answers, strict=True):
            if not call.answer.done():
                if isinstance(answer, Exception):
                    call.answer.set_exception(answer)
                else:
                    call.answer.set_result(answer)

    async def _answers(self, batch: list[_Call]) -> list[list[Any]]:
        statement, deadline = batch[0].statement, max(call.deadline for call in batch)
        for call in batch:
            call.sent = True
        if len(batch) == 1:
            return [await self._send(statement, "one", batch[0].arguments, deadline)]
        answers: list[list[Any]] = [[] for _ in batch]
        columns = list(zip(*(call.arguments for call in batch), strict=True))
        for row in await self._send(statement, "many", columns, deadline):
            answers[row["at"] - 1].append(row)
        return answers


def _again(error: StoreUnavailable) -> StoreUnavailable:
    """Return the same error, for one more who is told."""
    same = StoreUnavailable(error.store, error.operation, error.reason, unknown=error.unknown)
    same.__cause__ = error.__cause__
    return same
