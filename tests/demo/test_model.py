"""The stand-in really uses the history: what it was told is found again later, and only there."""

import asyncio

import pytest
from hypothesis import given, strategies as st

from convmem import Message
from convmem.demo import model

CHATTER = ["The weather is fine.", "Hm.", "ok", "What is the capital of France?"] * 5


def last_answer(*said: str) -> str:
    """Say one thing after the other, each answered, and return the last answer."""
    history: list[Message] = []
    for text in said:
        history.append(Message.user(text))
        history.append(Message.assistant(model.answer(history)))
    return history[-1].text


@pytest.mark.parametrize(
    ("told", "asked", "found"),
    [
        ("My name is Ada", "What's my name?", "Ada"),
        ("Hello, I'm Grace Hopper.", "who am I?", "Grace Hopper"),
        ("call me Linus", "Do you know my name?", "Linus"),
        ("Remember the number 4711.", "which number?", "4711"),
        ("remember 17", "What number did I tell you?", "17"),
        ("my lucky number is 7", "what's my lucky number", "7"),
        ("buy milk, eggs and bread", "What was on my list?", "milk, eggs and bread"),
        ("My shopping list is tea; jam", "what do I need to buy?", "tea and jam"),
        ("my favourite colour is green", "What is my favorite color?", "green"),
        ("My favourite things are cats, dogs and rain", "what are my favourite things?", "cats, dogs and rain"),
        ("I live in Oslo", "Where do I live?", "Oslo"),
        ("I\N{RIGHT SINGLE QUOTATION MARK}m from St. Gallen.", "where am I from?", "St. Gallen"),
        ("I work as a nurse", "What do I do?", "as a nurse"),
        ("My cat is called Tom", "what is the name of my cat?", "Tom"),
        ("I like jazz and tea", "what do I like?", "jazz and tea"),
        ("the code is 1234", "What was the code?", "1234"),
        ("Remember that the meeting is at five", "What did I ask you to remember?", "the meeting is at five"),
        (
            "My name is Ada and I live in Oslo. Buy milk.",
            "What do you know about me?",
            "your name is Ada; you live in Oslo; on your list: milk",
        ),
    ],
)
def test_what_was_told_is_found_many_turns_later(told, asked, found):
    """A chat with the stand-in shows whether the history arrived: it has no other memory."""
    assert found in last_answer(told, *CHATTER, asked)
    assert found not in last_answer(*CHATTER, asked)


def test_later_statements_override_earlier_ones():
    """The newest word counts, as a person would expect."""
    assert (
        last_answer("My name is Ada", "I live in Oslo", "My name is Grace", "I moved to Bergen", "What's my name?") == "Your name is Grace."
    )
    assert last_answer("I live in Oslo", "I moved to Bergen", "where do I live?") == "You live in Bergen."
    assert last_answer("remember the number 1", "remember the number 2", "which number?") == "The number is 2."


def test_the_list_grows_and_shrinks():
    """A list is told in pieces, over turns."""
    said = ["buy milk, eggs and bread", "add butter to the list", "Remove eggs from my list.", "Put some tea on the list"]
    assert last_answer(*said, "what's on my list?") == "On your list: milk, bread, butter and tea."
    assert last_answer(*said, "clear my list", "what's on my list?") == "There is nothing on your list."


def test_it_knows_what_was_said_first_and_last():
    """Both ends of the history, so that a cut window shows."""
    assert "hello there" in last_answer("hello there", *CHATTER, "What did I say first?")
    assert "My name is Ada" in last_answer("hello there", "My name is Ada", "what did I just say?")
    assert "22 messages" in last_answer("hello there", *CHATTER, "How many messages have I sent?")


def test_a_message_can_tell_and_ask_at_once():
    """One message may hold both."""
    assert last_answer("My name is Ada. What's my name?") == "Nice to meet you, Ada. Your name is Ada."
    assert last_answer("My name is Ada", "I live in Oslo", "where do I live and what's my name?") == "You live in Oslo. Your name is Ada."


@pytest.mark.parametrize("question", ["hi", "Who are you?", "Are you a real AI?", "asdf", "what is your name?"])
def test_it_says_that_it_is_no_model(question):
    """Nobody is to take a few rules for a language model."""
    assert "not a real language model" in last_answer(question)


def test_it_knows_nothing_but_the_messages_it_is_handed():
    """The same messages, the same answer: nothing is kept between two calls."""
    assert "Ada" in last_answer("My name is Ada", "What's my name?")
    assert last_answer("What's my name?") == "You have not told me your name, at least not in what I can see."
    assert "not a real language model" in model.answer([])


def test_what_the_assistant_said_is_not_taken_for_the_users_word():
    """Only a user tells it about the user."""
    history = [Message.assistant("My name is Hal."), Message.system("My name is System."), Message.user("What's my name?")]
    assert "have not told me" in model.answer(history)


@given(st.lists(st.text(max_size=80), min_size=1, max_size=6))
def test_no_text_breaks_it(said):
    """Whatever somebody types, there is an answer."""
    assert last_answer(*said)
    assert last_answer(*said, "my name is " + said[0], "buy " + said[0], "what do you know about me?", "what's on my list?")


def test_a_long_message_does_not_take_long():
    """Patterns look at the beginning of a message only; a megabyte is stored, not searched."""
    assert model.answer([Message.user("my " * 500_000), Message.user("buy a and " * 100_000), Message.user("What's my name?" * 50_000)])


def test_streaming_gives_the_same_words():
    """The stream is the answer, in pieces."""
    history = [Message.user("My name is Ada"), Message.user("What do you know\nabout me?")]

    async def collect() -> list[str]:
        return [word async for word in model.stream(history)]

    words = asyncio.run(collect())
    assert len(words) > 5
    assert "".join(words) == model.answer(history)
