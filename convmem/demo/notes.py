"""What the stand-in reads out of one user's sentences. It keeps nothing: the notes are taken anew from the history for each answer."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_READ = 2_000  # characters of a message that are looked at; the rest is stored like the rest, and not understood any worse
_SENTENCES = re.compile(r"(?<!\bDr\.)(?<!\bMr\.)(?<!\bMs\.)(?<!\bMrs\.)(?<!\bSt\.)(?<=[.!?])\s+|\n+")
_CLAUSES = re.compile(r",?\s+(?:and|but)\s+(?=(?:my|i|i'm|what|where|who|which|how)\b)|,\s+(?=(?:my|i|i'm)\b)", re.IGNORECASE)
_ASKS = re.compile(
    r"(?:and |so |please |hey |now )*"
    r"(?:what|what's|whats|which|who|who's|where|where's|when|when's|how|do|did|does|can|could|are|am|is|tell me|show|list|say)\b",
    re.IGNORECASE,
)


@dataclass
class Notes:
    """What the user's messages say, the later ones over the earlier.

    Attributes:
        facts: From a name such as "favourite colour" to what the user said it is.
        items: What is on the list.
        likes: What the user likes.
        things: What else there was to remember, as the user said it.
    """

    facts: dict[str, str] = field(default_factory=dict)
    items: list[str] = field(default_factory=list)
    likes: list[str] = field(default_factory=list)
    things: list[str] = field(default_factory=list)

    def write(self, what: str, value: str) -> None:
        """Note a fact as the newest."""
        self.facts.pop(what, None)
        self.facts[what] = value

    def find(self, what: str) -> str | None:
        """Return the name of the fact that is meant: this very one, else the newest whose last words are the same."""
        if what in self.facts:
            return what
        return next((known for known in reversed(self.facts) if known.endswith(f" {what}") or what.endswith(f" {known}")), None)

    def say(self, what: str) -> str:
        """Return a fact as a sentence to the user."""
        value = self.facts[what]
        said = {
            "name": f"Your name is {value}.",
            "number": f"The number is {value}.",
            "home": f"You live in {value}.",
            "origin": f"You come from {value}.",
            "work": f"You work {value}.",
            "age": f"You are {value} years old.",
        }
        return said.get(what, f"Your {what} {_be(what)} {value}.")


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, and what is joined by "and" in them, each for itself."""
    plain = text[:_READ].replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return [
        clause.strip() for sentence in _SENTENCES.split(plain) for clause in _CLAUSES.split(sentence.strip()) if clause and clause.strip()
    ]


def is_question(sentence: str) -> bool:
    """Return whether a sentence asks or tells."""
    return sentence.endswith("?") or _ASKS.match(sentence) is not None


def take(notes: Notes, sentence: str) -> str | None:
    """Note what a sentence tells; return what to say about it, None when it tells nothing."""
    if is_question(sentence):
        return None
    sentence = sentence.rstrip(" .!")
    for pattern, rule in _RULES:
        told = pattern.match(sentence)
        if told:
            reply = rule(notes, *(part.strip() for part in told.groups()))
            if reply is not None:
                return reply
    return None


def spelled(text: str) -> str:
    """Return a text in small letters and one spelling, so that a color asked for is the colour told."""
    lowered = re.sub(r"\s+", " ", text.lower()).strip().replace("favorite", "favourite").replace("color", "colour")
    return re.sub(r"\b(what|where|who|when)'?s\b", r"\1 is", lowered)


def series(things: list[str]) -> str:
    """Return things as one would say them."""
    if not things:
        return "nothing"
    return things[0] if len(things) == 1 else f"{', '.join(things[:-1])} and {things[-1]}"


def _name(notes: Notes, name: str) -> str:
    notes.write("name", name)
    return f"Nice to meet you, {name}."


def _introduction(notes: Notes, name: str) -> str | None:
    """Take "I'm Ada" for a name, and "I'm tired" not."""
    return _name(notes, name) if name[:1].isupper() and len(name.split()) <= 2 else None  # noqa: PLR2004 - first and last name


def _number(notes: Notes, number: str) -> str:
    notes.write("number", number)
    return f"I will remember the number {number}."


def _fact(notes: Notes, what: str, value: str) -> str:
    what = spelled(what).removesuffix("'s name")
    if what == "name":
        return _name(notes, value)
    if what.endswith("list"):
        return _new_list(notes, value)
    notes.write(what, value)
    return f"Noted: your {what} {_be(what)} {value}."


def _place(notes: Notes, place: str) -> str:
    notes.write("home", place)
    return f"{place}, noted."


def _origin(notes: Notes, place: str) -> str:
    notes.write("origin", place)
    return f"You come from {place}, noted."


def _work(notes: Notes, work: str) -> str:
    notes.write("work", work)
    return f"You work {work}, noted."


def _age(notes: Notes, years: str) -> str:
    notes.write("age", years)
    return f"{years} years, noted."


def _like(notes: Notes, what: str) -> str:
    for thing in _things(what):
        if thing not in notes.likes:
            notes.likes.append(thing)
    return f"You like {series(_things(what))}. Noted."


def _dislike(notes: Notes, what: str) -> str:
    notes.likes[:] = [liked for liked in notes.likes if not _is_one_of(liked, _things(what))]
    return f"You do not like {what}. Noted."


def _new_list(notes: Notes, what: str) -> str:
    notes.items[:] = _things(what)
    return f"Your list is now {series(notes.items)}."


def _add(notes: Notes, what: str) -> str:
    for thing in _things(what):
        if not _is_one_of(thing, notes.items):
            notes.items.append(thing)
    return f"Done. On your list: {series(notes.items)}."


def _remove(notes: Notes, what: str) -> str:
    notes.items[:] = [item for item in notes.items if not _is_one_of(item, _things(what))]
    return f"Done. On your list: {series(notes.items)}." if notes.items else "Done. Your list is empty now."


def _clear(notes: Notes) -> str:
    notes.items.clear()
    return "Your list is empty now."


def _forget(notes: Notes, what: str) -> str:
    known = notes.find(spelled(what))
    if known is None:
        return f"I know nothing about your {what}."
    del notes.facts[known]
    return f"I will not mention your {known} again. (It stays in the stored history; I only read it that way.)"


def _remember(notes: Notes, what: str) -> str:
    notes.things.append(what)
    return f'I will remember "{what}".'


def _things(text: str) -> list[str]:
    found = (re.sub(r"^(?:and|also|some|the)\s+", "", part.strip(), flags=re.IGNORECASE) for part in re.split(r",|;|&|\band\b", text))
    return list(dict.fromkeys(part for part in found if part))


def _is_one_of(thing: str, things: list[str]) -> bool:
    return thing.casefold() in {other.casefold() for other in things}


def _be(what: str) -> str:
    return "are" if what.endswith("s") and not what.endswith(("ss", "us")) else "is"


def _rule(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?:(?:hi|hello|hey|oh|ok|okay|well|so|no|actually|now|and|but|please)\b[, ]+)*{pattern}$", re.IGNORECASE)


_RULES: tuple[tuple[re.Pattern[str], Callable[..., str | None]], ...] = (
    (_rule(r"(?:please )?(?:remember|note)(?: that)?:? my (.{1,60}?) (?:is|are)(?: now)?:? (.+)"), _fact),
    (_rule(r"(?:i am called|i'm called|call me|people call me|my name's) (.+)"), _name),
    (_rule(r"(?:clear|empty|delete|forget) (?:my |the )?(?:shopping )?list"), _clear),
    (_rule(r"forget (?:about )?my (.+)"), _forget),
    (_rule(r"(?:my|the) (?:shopping |to-?do )?list (?:is|has|contains):? (.+)"), _new_list),
    (_rule(r"(?:i need to buy|i have to buy|we need|i need|buy|get)(?: some)?:? (.+)"), _add),
    (_rule(r"(?:put|add|write) (.+?)(?: (?:on|to|onto) (?:my |the )?(?:shopping |to-?do )?list)"), _add),
    (_rule(r"add (.+)"), _add),
    (_rule(r"(?:remove|take|drop|strike|delete) (.+?)(?: (?:from|off) (?:my |the )?(?:shopping |to-?do )?list)"), _remove),
    (_rule(r"remember (?:the |my |this )?(?:number:? )?([+-]?\d[\d .,/-]*)"), _number),
    (_rule(r"the number is (?:now )?([+-]?\d[\d .,/-]*)"), _number),
    (_rule(r"my (.{1,60}?)(?: is called| is named|'s name is|'s called) (.+)"), _fact),
    (_rule(r"my (.{1,60}?) (?:is|are|=)(?: now)?:? (.+)"), _fact),
    (_rule(r"(?:remember (?:that )?)?the ((?:\w{1,40} )?(?:word|code|pin|password|date|place|answer|secret)) is (?:now )?(.+)"), _fact),
    (_rule(r"remember the (word|code|pin|password|date|place|answer|secret) (.+)"), _fact),
    (_rule(r"i (?:now )?live in (.+?)(?: now)?"), _place),
    (_rule(r"i(?: have)? moved to (.+)"), _place),
    (_rule(r"(?:i am|i'm|i come) from (.+)"), _origin),
    (_rule(r"i (?:now )?work ((?:as|at|in|for|with|on) .+)"), _work),
    (_rule(r"(?:i am|i'm) (\d{1,3})(?: years old)?"), _age),
    (_rule(r"i (?:do not|don't) (?:like|love|enjoy) (.+)"), _dislike),
    (_rule(r"i (?:really |also )*(?:like|love|enjoy) (.+)"), _like),
    (_rule(r"(?:i am|i'm) ([^\d\s,]+(?: [^\d\s,]+)?)"), _introduction),
    (_rule(r"(?:remember|note|don't forget|do not forget)(?: that| this)?:? (.+)"), _remember),
)
