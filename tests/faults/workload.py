"""A worker: a process that takes turn after turn through `open_conversation`, and records what it asked for and was told.

`python -m tests.faults.workload --help`. What it does follows from its seed; when it is killed, its record says how far it was.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from convmem import ConvmemError, Message, SessionKey, StoreUnavailable, open_conversation
from convmem.config import open_store
from convmem.stores.base import Store
from tests.faults.history import Kind, Recorder
from tests.faults.plants import PLANTS

PARTS = 3


@dataclass(frozen=True)
class Plan:
    """What a worker does.

    Attributes:
        name: Of the process in the history; used once.
        turns: How many turns it takes.
        conversations: Between how many conversations it chooses.
        seed: What it chooses by.
        think: Seconds between question and answer: the model.
        plant: Which broken build it runs; empty is ours.
        stops: How many of its turns, the first ones, it stops itself in (SIGSTOP), between question and answer. There it holds no lock
            of a file: stopped from outside, it may, and then nobody goes on.
    """

    store: str
    folder: Path
    name: str
    turns: int
    conversations: int = 1
    seed: int = 0
    think: float = 0.002
    plant: str = ""
    stops: int = 0


@dataclass(frozen=True)
class Seen:
    """What a conversation's messages say about turns.

    Attributes:
        elements: The texts, oldest first.
        unfinished: The turns that are marked as having no end.
    """

    elements: tuple[str, ...]
    unfinished: frozenset[str]

    @classmethod
    def of(cls, messages: Iterable[Message]) -> Seen:
        """Return it from messages as a handler gets them."""
        messages = list(messages)
        return cls(tuple(message.text for message in messages), frozenset(turn_of(m.text) for m in messages if m.state != "complete"))

    @property
    def finished(self) -> list[str]:
        """The elements of turns that have an end."""
        return [element for element in self.elements if turn_of(element) not in self.unfinished]


def elements_of(turn: str) -> list[str]:
    """Return the texts of a turn: a question, what a tool said, an answer."""
    return [f"{turn}/{index}" for index in range(PARTS)]


def turn_of(element: str) -> str:
    """Return the turn an element belongs to."""
    return element.rpartition("/")[0]


def key_of(conversation: str) -> SessionKey:
    """Return the address of a conversation of the workload."""
    return SessionKey.for_user(f"workload-{conversation}")


async def work(plan: Plan) -> None:
    """Take all turns, one after the other. What a turn is refused for is recorded, and the next one taken."""
    chance = random.Random(f"{plan.seed} {plan.name}")
    store = PLANTS[plan.plant](open_store(plan.store))
    with Recorder(plan.folder, plan.name) as recorder:
        for number in range(plan.turns):
            conversation = f"c{chance.randrange(plan.conversations)}"
            turn, saves_early, stops = f"{plan.name}-{number}", chance.random() < 1 / 3, number < plan.stops
            await take_turn(store, recorder, conversation, turn, saves_early=saves_early, think=plan.think, stops=stops)
    await store.aclose()


async def take_turn(
    store: Store, recorder: Recorder, name: str, turn: str, *, saves_early: bool = False, think: float = 0.0, stops: bool = False
) -> None:
    """Take one turn: a read when it is loaded, an append until it is stored."""
    asked, elements = recorder.invoke(Kind.READ, name), elements_of(turn)
    reading = True
    try:
        async with open_conversation(key_of(name), store=store) as conversation:
            seen = Seen.of(conversation.messages)
            recorder.ok(asked, elements=seen.elements, unfinished=seen.unfinished)
            position = conversation.total_turns - len(seen.unfinished) + 1
            asked, reading = recorder.invoke(Kind.APPEND, name, turn=turn, elements=elements, before=seen.finished), False
            conversation.append(Message.user(elements[0]))
            if saves_early:
                await conversation.save()
            if stops:
                os.kill(os.getpid(), signal.SIGSTOP)
            await asyncio.sleep(think)
            conversation.append(*(Message.assistant(element) for element in elements[1:]))
    except ConvmemError as error:
        unknown = isinstance(error, StoreUnavailable) and error.unknown and not reading
        (recorder.unknown if unknown else recorder.fail)(asked, f"{type(error).__name__}: {error}")
    else:
        recorder.ok(asked, position=position)


async def read_all(url: str, folder: Path, conversations: Iterable[str]) -> None:
    """Record the final read of each conversation; all else must have ended."""
    async with open_store(url) as store:
        with Recorder(folder, "final") as recorder:
            for name in conversations:
                asked = recorder.invoke(Kind.READ, name, final=True)
                async with open_conversation(key_of(name), store=store) as conversation:
                    seen = Seen.of(await conversation.history())
                recorder.ok(asked, elements=seen.elements, unfinished=seen.unfinished)


def plan_of(arguments: Sequence[str] | None = None) -> Plan:
    """Return the plan a command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.workload", description=__doc__)
    parser.add_argument("store", help="the URL of the store")
    parser.add_argument("folder", type=Path, help="where its history goes")
    parser.add_argument("name", help="of the process in the history")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--conversations", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--think", type=float, default=0.002, help="seconds between question and answer")
    parser.add_argument("--plant", choices=PLANTS, default="", help="a broken build")
    parser.add_argument("--stops", type=int, default=0, help="in how many turns it stops itself")
    return Plan(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    asyncio.run(work(plan_of()))
