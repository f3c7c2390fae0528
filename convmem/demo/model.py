"""A stand-in for a language model: rules, no network, no memory of its own. All it knows is the list of messages it is handed.

It says that it is one. What a user told it in an earlier message it finds again in the history or not at all, so that a chat
with it shows whether the history arrived.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from convmem.demo.notes import Notes, is_question, sentences, series, spelled, take

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from convmem import Message

WHO_I_AM = (
    "I am not a real language model: I am a few simple rules inside the convmem demo, and all I know is the history I am handed with "
    "each question."
)
EXAMPLES = 'Try "My name is Ada", "Remember the number 4711" or "Buy milk, eggs and bread", and ask me for it later.'


async def stream(messages: Sequence[Message], *, delay: float = 0.0) -> AsyncIterator[str]:
    """Answer the last message word by word, with `delay` seconds before each."""
    for word in re.findall(r"\s*\S+\s*", answer(messages)):
        await asyncio.sleep(delay)
        yield word


def answer(messages: Sequence[Message]) -> str:
    """Return the answer to the last message, from nothing but these messages."""
    said = [message.text for message in messages if message.role == "user"]
    if not said:
        return f"{WHO_I_AM} {EXAMPLES}"
    notes = Notes()
    for text in said[:-1]:
        for sentence in sentences(text):
            take(notes, sentence)
    replies: list[str] = []
    for sentence in sentences(said[-1]):
        reply = _recall(notes, said, sentence) if is_question(sentence) else take(notes, sentence)
        reply = reply or _small_talk(notes, said, sentence)
        if reply and reply not in replies:
            replies.append(reply)
    return " ".join(replies) or _shrug(notes, said)


def _recall(notes: Notes, said: list[str], question: str) -> str | None:
    """Return the answer to a question about what was told; None when it is about something else."""
    asked = spelled(question.rstrip(" ?!."))
    for pattern, rule in _QUESTIONS:
        found = pattern.search(asked)
        if found:
            return rule(notes, said, *(part.strip() for part in found.groups()))
    known = next((what for what in sorted(notes.facts, key=len, reverse=True) if re.search(rf"\b{re.escape(what)}\b", asked)), None)
    return notes.say(known) if known else None


def _ask_fact(notes: Notes, _said: list[str], what: str) -> str:
    known = notes.find(what)
    if known is None:
        return f"I do not find your {what} in our conversation."
    return notes.say(known)


def _ask_name(notes: Notes, _said: list[str]) -> str:
    name = notes.facts.get("name")
    return f"Your name is {name}." if name else "You have not told me your name, at least not in what I can see."


def _ask_number(notes: Notes, _said: list[str]) -> str:
    known = notes.find("number")
    return f"The number is {notes.facts[known]}." if known else "I do not find a number you asked me to remember."


def _ask_list(notes: Notes, _said: list[str]) -> str:
    return f"On your list: {series(notes.items)}." if notes.items else "There is nothing on your list."


def _ask_home(notes: Notes, _said: list[str]) -> str:
    home = notes.facts.get("home")
    return f"You live in {home}." if home else "You have not told me where you live."


def _ask_origin(notes: Notes, _said: list[str]) -> str:
    origin = notes.facts.get("origin")
    return f"You come from {origin}." if origin else "You have not told me where you come from."


def _ask_work(notes: Notes, _said: list[str]) -> str:
    work = notes.facts.get("work")
    return f"You work {work}." if work else "You have not told me what you do."


def _ask_age(notes: Notes, _said: list[str]) -> str:
    age = notes.facts.get("age")
    return f"You are {age} years old." if age else "You have not told me your age."


def _ask_likes(notes: Notes, _said: list[str]) -> str:
    told = [f"You like {series(notes.likes)}."] if notes.likes else []
    told += [notes.say(what) for what in notes.facts if what.startswith("favourite ")]
    return " ".join(told) or "You have not told me what you like."


def _ask_all(notes: Notes, said: list[str]) -> str:
    told = [notes.say(what).rstrip(".") for what in notes.facts]
    told = [line[:1].lower() + line[1:] for line in told]
    if notes.likes:
        told.append(f"you like {series(notes.likes)}")
    if notes.items:
        told.append(f"on your list: {series(notes.items)}")
    if notes.things:
        told.append(f"you asked me to remember {series(_quoted(notes.things))}")
    if not told:
        return f"Nothing yet: you have sent me {_count(said)}, and none of it was about you."
    return f"From the {_count(said)} I can see: {'; '.join(told)}."


def _ask_things(notes: Notes, said: list[str]) -> str:
    if not notes.things:
        return _ask_all(notes, said)
    return f"You asked me to remember {series(_quoted(notes.things))}."


def _ask_first(_notes: Notes, said: list[str]) -> str:
    return f'The first thing I can see from you is: "{_short(said[0])}"'


def _ask_last(_notes: Notes, said: list[str]) -> str:
    if len(said) == 1:
        return "This is the first message I can see from you."
    return f'Just before this you said: "{_short(said[-2])}"'


def _ask_count(_notes: Notes, said: list[str]) -> str:
    return f"I can see {_count(said)} from you, this one included."


def _ask_self(_notes: Notes, _said: list[str]) -> str:
    return WHO_I_AM


def _ask_help(_notes: Notes, _said: list[str]) -> str:
    return f"I keep a name, numbers, a list and your favourite things, and find them again in the history. {EXAMPLES}"


def _asks(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


_SAID = r"\b(?:say|said|tell|told|message|ask|asked|write|wrote)\b"
_QUESTIONS: tuple[tuple[re.Pattern[str], Callable[..., str]], ...] = (
    (
        _asks(r"\b(?:who|what) are you\b|are you (?:a |an )?(?:real|ai|llm|human|bot|robot|model|chatbot|person)|what is your name"),
        _ask_self,
    ),
    (_asks(r"\bwhat can you do\b|\bhelp\b|\bhow does this work\b"), _ask_help),
    (_asks(rf"\bfirst\b.*{_SAID}"), _ask_first),
    (_asks(rf"{_SAID}.*\bfirst\b"), _ask_first),
    (_asks(rf"{_SAID}.*\b(?:last|before)\b|\bwhat did i (?:just )?(?:say|ask|write)$|\blast message\b"), _ask_last),
    (_asks(r"\bhow many (?:messages|turns|questions|things)\b|\bhow (?:often|long) (?:have|did) (?:i|we)\b"), _ask_count),
    (_asks(r"\b(?:know|remember|learned|learnt|tell me) (?:about )?(?:me|everything)\b|\babout me\b|\bwho am i\b"), _ask_all),
    (_asks(r"\bwhat (?:do|should|did) (?:you|i ask you to|i tell you to) remember\b|\basked? you to remember$"), _ask_things),
    (_asks(r"\blist\b|\bshopping\b|\b(?:i|we) (?:have |need )?(?:to )?buy\b"), _ask_list),
    (_asks(r"\bmy (.{0,40}\bnumber)\b"), _ask_fact),
    (_asks(r"\bnumber\b"), _ask_number),
    (_asks(r"\b(?:is|was|know|remember|say|tell me|forgot|about) my name\b|\bam i called\b|\bmy name$"), _ask_name),
    (_asks(r"\bwhere\b.*\b(?:i|my)\b.*\b(?:live|living|home)\b|\bi live$|\bmy home\b"), _ask_home),
    (_asks(r"\bwhere\b.*\bi\b.*\bfrom\b"), _ask_origin),
    (_asks(r"\b(?:where|what|how)\b.*\bi\b.*\bwork\b|\bmy (?:job|work)\b|\bdo i do\b"), _ask_work),
    (_asks(r"\bhow old am i\b|\bmy age\b"), _ask_age),
    (_asks(r"\bdo i (?:like|love|enjoy)\b|\bmy favourites?(?: things?)?$"), _ask_likes),
    (_asks(r"\b(?:is|are|was|were|remember|know|say|tell me|called|name of|of) my (.{1,60}?)(?:'s name| called| again| now)?$"), _ask_fact),
)


def _small_talk(notes: Notes, said: list[str], sentence: str) -> str | None:
    plain = sentence.lower().rstrip(" !.?")
    name = f", {notes.facts['name']}" if "name" in notes.facts else ""
    if re.fullmatch(r"(?:hi|hello|hey|good (?:morning|evening|afternoon|day)|moin|hallo)(?: there| again)?", plain):
        return f"Hello{name}! {WHO_I_AM} {EXAMPLES}" if len(said) == 1 else f"Hello again{name}. We are at message {len(said)}."
    if re.fullmatch(r"(?:thanks|thank you|thx|great|nice|cool|perfect|ok|okay|well done)(?: a lot| very much| so much)?", plain):
        return f"You are welcome{name}."
    if re.fullmatch(r"(?:bye|good ?bye|see you|good night)(?: later| soon)?", plain):
        return f"Goodbye{name}. Stop the server if you like; I will find our conversation again."
    if plain in {"help", "?"}:
        return _ask_help(notes, said)
    return None


def _shrug(notes: Notes, said: list[str]) -> str:
    if len(said) == 1:
        return f"I have nothing clever to say about that. {WHO_I_AM} {EXAMPLES}"
    name = f", {notes.facts['name']}" if "name" in notes.facts else ""
    if is_question(said[-1].strip()):
        return f"I cannot answer that{name}: I am only a few rules. What you told me in this conversation I can tell you, though."
    return f"I have read that{name}; it is message {len(said)} of those I can see. Ask me what I know about you."


def _quoted(things: list[str]) -> list[str]:
    return [f'"{thing}"' for thing in things]


def _count(said: list[str]) -> str:
    return "1 message" if len(said) == 1 else f"{len(said)} messages"


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}…"  # noqa: PLR2004 - what fits a bubble
