"""The log of one conversation as pure data: every verb returns the next model and the answer, no clock, no randomness.

It is written apart from any store, so that a store and the model are two opinions. `convmem.testing.machine` compares them;
the exploration in ``tests/stores/test_model.py`` walks every interleaving of a few turns over it and takes each rule away once.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal

from convmem.stores.base import Entry, Head, Kind, Lookup, Outcome


class Rule(Enum):
    """The rules of the log that can be taken away; the value says what is true with it."""

    ENDED_EPOCH = "an append to a life that a delete ended is gone"
    EVERY_EPOCH = "the tombstone keeps all lives that ended, not only the last"
    NEWER_MARK = "a first append from before a delete is gone"
    MARK_ON_NOTHING = "a delete leaves a mark also when there is nothing to delete"
    MARK_OUTLIVES = "the mark is still known in the next life"
    UNKNOWN_EPOCH = "an epoch nobody knows is a gap"
    DUPLICATE = "an entry that stands at its place is a duplicate"
    DUPLICATE_BEHIND = "also when others follow it"
    DUPLICATE_POSITION = "and is answered with its own position, never the head"
    MISSING = "a log that ends too early, or holds another entry at the position, is a gap"
    ENTRY_ID = "positions are compared with their entry ids, not by number alone"
    FENCED = "another's live lease fences"
    FREE_AGAIN = "a lease that ran out untaken does not fence its own turn"
    CONFLICT = "a log that went on is a conflict"
    RELEASE = "an append that ends the turn ends its lease"
    RELEASE_DUPLICATE = "also as a duplicate"
    RELEASE_OWN = "nobody ends another's lease"
    LOOK_UP = "a turn is looked up before it runs"
    LOOK_UP_ALL = "in the whole life, not only in the newest entry"
    COMPLETE_IS_FREE = "a complete turn takes no lease and waits for none"
    OWN_TOKEN = "a lease with the caller's token is its own"  # noqa: S105 - a sentence
    ONE_TURN = "a lease keeps others out"
    RENEW_FREE = "a lease that another holds is not renewed"
    RENEW_HEAD = "a lease that ran out is not renewed when the head has moved"
    ONE_VIEW = "whoever gets the lease sees the newest head"
    SUPERSEDE = "only the newest attempt of a turn is visible"
    SUPERSEDE_STORED = "and it is one that stored something"
    DELETE_LEASE = "a delete ends the lease"


@dataclass(frozen=True, slots=True)
class View:
    """What a load answers, by positions."""

    head: Head
    holder: str
    visible: tuple[int, ...]
    turn: Lookup | None


@dataclass(frozen=True, slots=True)
class Model:
    """One conversation.

    Attributes:
        log: The entries of the present life; `log[n - 1]` stands at n.
        holder: The token of the live lease.
        mark: The newest delete mark.
        ended: The epochs of the lives before.
        tried: Attempts that began; only looked at without `Rule.SUPERSEDE_STORED`.
        without: The rules that are taken away.
    """

    log: tuple[Entry, ...] = ()
    holder: str = ""
    mark: str = ""
    ended: tuple[str, ...] = ()
    tried: tuple[tuple[str, str], ...] = ()
    without: frozenset[Rule] = frozenset()

    def has(self, rule: Rule) -> bool:
        """Return whether a rule holds."""
        return rule not in self.without

    @property
    def epoch(self) -> str:
        """The present life."""
        return self.log[-1].epoch if self.log else ""

    @property
    def head(self) -> Head:
        """Where the log ends."""
        return self.log[-1].head_at(len(self.log)) if self.log else Head(id=self.mark)

    @property
    def visible(self) -> tuple[int, ...]:
        """The positions a reader sees, oldest first."""
        newest = {entry.turn: entry.token for entry in self.log} if self.has(Rule.SUPERSEDE) else {}
        if not self.has(Rule.SUPERSEDE_STORED):
            newest |= dict(self.tried)
        hidden = {n for entry in self.log for n in entry.hides}
        return tuple(
            n
            for n, entry in enumerate(self.log, 1)
            if entry.kind is Kind.TURN and n > self.head.start and n not in hidden and entry.token == newest.get(entry.turn, entry.token)
        )

    def window(self, turns: int | None, messages: int | None) -> tuple[int, ...]:
        """Return the positions of the newest whole turns within both limits, oldest first."""
        names = list(dict.fromkeys(self.log[n - 1].turn for n in self.visible))
        taken: list[str] = []
        for name in reversed(names):
            held = sum(self.log[n - 1].count for n in self.visible if self.log[n - 1].turn in taken)
            if turns == len(taken) or (messages is not None and held >= messages):
                break
            taken.append(name)
        return tuple(n for n in self.visible if self.log[n - 1].turn in taken)

    def look_up(self, turn: str) -> Lookup:
        """Return what became of a turn."""
        log = self.log if self.has(Rule.LOOK_UP_ALL) else self.log[-1:]
        if not self.has(Rule.LOOK_UP) or not any(entry.turn == turn for entry in log):
            return Lookup()
        n, last = next((n, self.log[n - 1]) for n in range(len(self.log), 0, -1) if self.log[n - 1].turn == turn)
        state: Literal["running", "interrupted", "complete"]
        state = "complete" if last.closing else "running" if last.token == self.holder else "interrupted"
        return Lookup(state, n, visible=any(self.log[m - 1].turn == turn for m in self.visible))

    def load(self, turn: str | None = None, token: str = "") -> tuple[Model, View]:
        """Look a turn up, then take the lease with a token; neither when empty."""
        found = None if turn is None else self.look_up(turn)
        after = self
        complete = found is not None and found.state == "complete" and self.has(Rule.COMPLETE_IS_FREE)
        if token and not complete and (self.holder in {"", token} or not self.has(Rule.ONE_TURN)):
            tried = self.tried if self.has(Rule.SUPERSEDE_STORED) or turn is None else (*self.tried, (turn, token))
            after = replace(self, holder=token, tried=tried)
        stale = after.holder != self.holder and not self.has(Rule.ONE_VIEW)
        head = replace(self, log=self.log[:-1]).head if stale else self.head
        holder = "another" if token and self.holder == token and not self.has(Rule.OWN_TOKEN) else after.holder
        return after, View(head, holder, after.visible, found)

    def append(self, after: Head, entry: Entry, *, release: bool = False) -> tuple[Model, Outcome, Head]:
        """Store an entry, or say why not."""
        outcome = self._outcome(after, entry)
        if outcome not in {Outcome.STORED, Outcome.DUPLICATE}:
            return self, outcome, self.head
        model = self
        if outcome is Outcome.STORED:
            mark = self.mark if self.has(Rule.MARK_OUTLIVES) else ""
            model = replace(self, log=(*self.log, entry), mark=mark)
        if release and self.has(Rule.RELEASE if outcome is Outcome.STORED else Rule.RELEASE_DUPLICATE):
            model = model.release(entry.token)
        answered = after.n + 1 if self.has(Rule.DUPLICATE_POSITION) or outcome is Outcome.STORED else len(self.log)
        return model, outcome, model.log[answered - 1].head_at(answered) if answered <= len(model.log) else model.head

    def _outcome(self, after: Head, entry: Entry) -> Outcome:
        at = {n: stored.id for n, stored in enumerate(self.log, 1)}
        standing = at.get(after.n + 1) == entry.id and (self.has(Rule.DUPLICATE_BEHIND) or after.n + 1 == len(self.log))
        known = at.get(after.n, "") == after.id if self.has(Rule.ENTRY_ID) else len(self.log) >= after.n
        fencing = {"", entry.token} if self.has(Rule.FREE_AGAIN) else {entry.token}
        reasons = (
            (Outcome.GONE, Rule.ENDED_EPOCH, after.epoch != "" and after.epoch in self.ended),
            (Outcome.GONE, Rule.NEWER_MARK, after.epoch == "" and self.mark not in {"", after.id}),
            (Outcome.GAP, Rule.UNKNOWN_EPOCH, after.epoch not in {"", self.epoch}),
            (Outcome.DUPLICATE, Rule.DUPLICATE, standing),
            (Outcome.GAP, Rule.MISSING, after.n > 0 and not known),
            (Outcome.FENCED, Rule.FENCED, self.holder not in fencing),
            (Outcome.CONFLICT, Rule.CONFLICT, len(self.log) > after.n),
        )
        return next((outcome for outcome, rule, applies in reasons if applies and self.has(rule)), Outcome.STORED)

    def renew(self, token: str, head: Head) -> tuple[Model, bool]:
        """Hold a lease on, or say that it is lost."""
        free = self.holder == "" or not self.has(Rule.RENEW_FREE)
        moved = not self.head.same(head) and self.has(Rule.RENEW_HEAD)
        if self.holder != token and (not free or moved):
            return self, False
        return replace(self, holder=token), True

    def release(self, token: str) -> Model:
        """End a lease."""
        return replace(self, holder="") if self.holder == token or not self.has(Rule.RELEASE_OWN) else self

    def lapse(self) -> Model:
        """Let the lease run out."""
        return replace(self, holder="")

    def delete(self, mark: str) -> Model:
        """End this life under a new mark."""
        if not self.log and not self.has(Rule.MARK_ON_NOTHING):
            mark = self.mark
        earlier = self.ended if self.has(Rule.EVERY_EPOCH) or not self.log else ()
        ended = (*earlier, self.epoch) if self.log else earlier
        return Model((), "" if self.has(Rule.DELETE_LEASE) else self.holder, mark, ended, (), self.without)

    def lose(self, entries: int) -> Model:
        """Fail over to a replica that misses the newest entries, and every lease."""
        return replace(self, log=self.log[: len(self.log) - entries], holder="")

    def wipe(self) -> Model:
        """Lose everything, tombstones too."""
        return Model(without=self.without)


def model_without(rules: Collection[Rule] = ()) -> Model:
    """Return an empty conversation that lacks some rules."""
    return Model(without=frozenset(rules))
