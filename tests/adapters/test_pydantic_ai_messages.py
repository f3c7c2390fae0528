"""Messages of Pydantic AI through convmem: equal when they come back, and read by others."""

import dataclasses
import json
from base64 import b64encode
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings, strategies
from pydantic import BaseModel
from pydantic_ai import messages as native
from pydantic_ai.messages import ModelMessagesTypeAdapter

from convmem import (
    Citation,
    FilePart,
    ImagePart,
    InvalidMessage,
    MemoryStore,
    Message,
    ReasoningPart,
    SessionKey,
    TextPart,
    ToolCall,
    Window,
    open_conversation,
)
from convmem.messages import decode_messages, encode_message, encode_messages
from convmem.windows import Turn, view
from convmem_pydantic_ai import from_model_messages, to_model_messages

from .pydantic_ai_corpus import CITED, ONE_MESSAGE, PICTURE, SEVERAL_MESSAGES, WHEN, asked, image, request, response, result

JSON = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.integers() | strategies.floats(allow_nan=False) | strategies.text(),
    lambda inner: strategies.lists(inner, max_size=3) | strategies.dictionaries(strategies.text(), inner, max_size=3),
    max_leaves=8,
)
ITEMS = strategies.text() | strategies.sampled_from([image(), native.CachePoint(), native.ImageUrl("https://a.example/b.png")])
ANY = (
    strategies.sampled_from([*ONE_MESSAGE, *SEVERAL_MESSAGES])
    | strategies.builds(asked, strategies.lists(ITEMS, max_size=4))
    | strategies.builds(lambda *given: request(*map(result, given)), JSON, strategies.lists(ITEMS | JSON, max_size=3))
    | strategies.builds(
        lambda text, args: response(native.TextPart(text), native.ToolCallPart("look", args, "c1"), native.ThinkingPart(text)),
        strategies.text(),
        JSON.filter(lambda value: isinstance(value, dict)) | JSON.map(json.dumps) | strategies.text(),
    )
)


def stored(messages):
    """Return messages as a store gives them back."""
    return decode_messages(encode_messages(map(encode_message, messages)))


def as_the_framework_stores(messages):
    return ModelMessagesTypeAdapter.validate_json(ModelMessagesTypeAdapter.dump_json(messages))


@pytest.mark.parametrize("message", ONE_MESSAGE, ids=repr)
def test_a_message_comes_back_equal(message):
    """Whatever the framework hands over is what it reads; what one speaker said is one message."""
    messages = stored(from_model_messages([message]))
    assert len(messages) == 1
    assert to_model_messages(messages) == [message]


@pytest.mark.parametrize("message", SEVERAL_MESSAGES, ids=repr)
def test_a_request_of_several_speakers_comes_back_as_one(message):
    """The app, a person and the tools are apart for everybody else, and together again for Pydantic AI."""
    messages = stored(from_model_messages([message]))
    assert len(messages) > 1
    assert to_model_messages(messages) == [message]


@settings(max_examples=150, deadline=None)
@given(strategies.lists(ANY, max_size=5))
def test_any_messages_come_back_as_the_framework_stores_them(messages):
    """Nothing is lost at the seams, and nothing is stored that the framework itself would not read."""
    assert to_model_messages(stored(from_model_messages(messages))) == as_the_framework_stores(messages)


class Animal(BaseModel):
    kind: str
    seen: datetime


@pytest.mark.parametrize(
    "message",
    [
        request(result(Animal(kind="cat", seen=WHEN))),
        request(result([Animal(kind="cat", seen=WHEN), {1: {2}}])),
        request(result(b"\xff\x00")),
        request(result((1, 2))),
        request(result([float("nan"), float("inf")])),
        asked([native.BinaryContent(PICTURE, media_type="image/png")]),
    ],
    ids=repr,
)
def test_what_the_framework_changes_when_it_stores_is_changed_the_same_way(message):
    """A tool may return any object; what is stored of it is its JSON, which is what the model was sent."""
    assert to_model_messages(stored(from_model_messages([message]))) == as_the_framework_stores([message])


@pytest.mark.filterwarnings("ignore::pydantic_ai.PydanticAIDeprecationWarning")
@pytest.mark.parametrize("tool", ["look", None])
def test_a_retry_of_an_older_version_is_read_as_what_it_was(tool):
    """Apps may still make the part that later versions took apart."""
    legacy: Any = native.RetryPromptPart  # type: ignore[deprecated]
    old = request(legacy("Not so.", tool_name=tool, tool_call_id="c1", timestamp=WHEN))
    (message,) = stored(from_model_messages([old]))
    assert (message.role, message.tool_call_id, message.text) == (("tool", "c1", "Not so.") if tool else ("user", None, "Not so."))
    assert to_model_messages([message]) == as_the_framework_stores([old])


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (request(result("fine"), result(object(), "c2")), "messages[1].parts[1]"),
        (asked("half \ud83d"), "messages[1].parts[0]"),
        (response(native.TextPart("x"), metadata={"o": object()}), "messages[1]"),
        ("Hello", "messages[1]"),
    ],
    ids=["an object", "half a character", "an object in metadata", "a text"],
)
def test_what_cannot_be_stored_is_refused_by_its_place(message, field):
    """Before anything is stored, and without repeating what somebody said."""
    with pytest.raises(InvalidMessage) as caught:
        from_model_messages([asked("secret"), message])
    assert caught.value.field == field
    assert "secret" not in str(caught.value)


def test_what_is_changed_in_a_message_is_not_changed_in_the_conversation():
    """History processors write into the messages they were given."""
    message = response(
        native.ToolCallPart("look", {"at": [1]}, "c1"), native.CompactionPart(provider_details={"deep": [1]}, provider_name="x")
    )
    messages = from_model_messages([message])
    one: Any
    for one in (message, *to_model_messages(messages)):
        one.parts[0].args["at"].clear()
        one.parts[1].provider_details["deep"].append(2)
    again: Any = to_model_messages(messages)[0]
    assert (again.parts[0].args, again.parts[1].provider_details) == ({"at": [1]}, {"deep": [1]})


def test_a_plain_message_needs_nothing_beside_it():
    """What another framework has a form for is stored in that form alone."""
    for message in (asked("Hello"), asked(["a", image()]), response(native.TextPart("Hi.")), request(result("a cat"))):
        assert from_model_messages([message])[0].extras == {}


@pytest.mark.parametrize(
    "message",
    [
        asked(["What?", image(), native.CachePoint()]),
        request(result(image())),
        request(result([image(), {"n": 1}])),
        response(native.FilePart(image(), id="f")),
    ],
)
def test_a_picture_is_stored_once(message):
    """Also where its item says more than the part, and where another item is none of ours."""
    assert encode_message(from_model_messages([message])[0]).count(b64encode(PICTURE)[:12]) == 1


def test_arguments_are_stored_once():
    """Most providers send them as JSON text; a file that a model writes is an argument."""
    (message,) = from_model_messages([response(native.ToolCallPart("write", json.dumps({"text": "word"}, separators=(",", ":")), "c1"))])
    assert encode_message(message).count(b"word") == 1


def test_others_read_all_that_was_said():
    """Text, pictures, thoughts, calls and results in the forms everybody has; what only a provider reads is left out."""
    system, question, said, first, second, more = from_model_messages(
        [
            request(
                native.SystemPromptPart("Be brief."), native.UserPromptPart(["What is this?", image(), native.CachePoint()], timestamp=WHEN)
            ),
            response(
                native.ThinkingPart("Look.", signature="c2ln"),
                native.NativeToolCallPart("web_search", {}, "n1"),
                native.TextPart("I look."),
                native.ToolCallPart("look", '{"at": 1}', "c1"),
                native.ToolCallPart("look", None, "c2"),
            ),
            request(result({"kind": "cat"}), result([image(), "there"], "c2"), native.UserPromptPart("And?", timestamp=WHEN)),
        ]
    )
    picture = ImagePart(data=PICTURE, media_type="image/png")
    assert (system.role, system.text, question.role, more.text) == ("system", "Be brief.", "user", "And?")
    assert question.content == (TextPart(text="What is this?"), picture)
    assert question.created_at == WHEN
    assert said.content == (ReasoningPart(text="Look.", signature="c2ln"), TextPart(text="I look."))
    assert said.tool_calls == (ToolCall(id="c1", name="look", arguments={"at": 1}), ToolCall(id="c2", name="look"))
    assert (first.role, first.text, first.tool_call_id, first.name) == ("tool", '{"kind":"cat"}', "c1", "look")
    assert second.content == (picture, TextPart(text="there"))
    (cited,) = from_model_messages([response(native.TextPart("A cat.", citations=[CITED]))])
    source = Citation(start=0, end=5, url="https://a.example", title="Cats", quote="A cat.")
    assert cited.content == (TextPart(text="A cat.", citations=(source,)),)


def test_what_another_framework_wrote_is_in_the_form_of_pydantic_ai():
    """A question is a user's prompt, an answer text, a call a call, and everything has its time."""
    now = datetime.now(UTC)
    messages = [
        Message.system("Be brief.", created_at=now),
        Message.user(
            (TextPart(text="What?"), ImagePart(url="https://a.example/b"), FilePart(data=b"%PDF", media_type="application/pdf", name="a")),
            created_at=now,
        ),
        Message.assistant("I look. \ud83d", tool_calls=(ToolCall(id="c1", name="look", arguments={"at": 1}),), created_at=now),
        Message.tool("a cat", tool_call_id="c1", name="look", created_at=now),
        Message.assistant((TextPart(text="A cat."), ImagePart(url="https://a.example/b")), created_at=now),
    ]
    assert to_model_messages(messages) == [
        request(native.SystemPromptPart("Be brief.", timestamp=now)),
        request(
            native.UserPromptPart(
                ["What?", native.ImageUrl("https://a.example/b"), native.BinaryContent(b"%PDF", media_type="application/pdf")],
                timestamp=now,
            )
        ),
        response(native.TextPart("I look. \ud83d"), native.ToolCallPart("look", {"at": 1}, "c1"), timestamp=now),
        request(result("a cat", timestamp=now)),
        response(native.TextPart("A cat."), timestamp=now),
    ]


@pytest.mark.asyncio
async def test_a_call_that_a_window_leaves_out_takes_nothing_else_along():
    """A provider refuses a call without its result; what was said beside it, and the other call, stay as they were."""
    said = [
        asked("Look."),
        response(
            native.ToolCallPart("look", '{ "n": 1 }', "c1"),
            native.TextPart("Wait.", id="t"),
            native.ToolCallPart("look", '{ "n": 2 }', "c2"),
        ),
        request(result("a cat", "c2"), run_id="r1"),
    ]
    store = MemoryStore()
    async with open_conversation(SessionKey.for_user("ada"), store=store) as conversation:
        conversation.append(*from_model_messages(said))
    async with open_conversation(SessionKey.for_user("ada"), store=store) as conversation:
        without = dataclasses.replace(said[1], parts=said[1].parts[1:])
        assert to_model_messages(conversation.messages) == [said[0], without, said[2]]
        assert to_model_messages(await conversation.history()) == said


def test_a_request_whose_beginning_a_window_leaves_out_is_not_joined_to_another():
    """The rest of it stands alone; the model is sent what is there, in order."""
    one, two = from_model_messages([SEVERAL_MESSAGES[0]]), from_model_messages([SEVERAL_MESSAGES[0]])
    assert [len(message.parts) for message in to_model_messages([*one, two[1]])] == [2, 1]
    results = from_model_messages([SEVERAL_MESSAGES[1]])
    assert [len(message.parts) for message in to_model_messages([*one, *results[1:]])] == [2, 3]


def test_a_request_nobody_else_can_read_is_in_no_window():
    """It is kept, and shown to no model of another framework."""
    messages = [*from_model_messages([asked("Hello"), response(native.TextPart("Hi.")), request(native.ToolAvailabilityDeltaPart())])]
    assert [message.role for message in view([Turn(tuple(messages))], Window()).messages] == ["user", "assistant"]
