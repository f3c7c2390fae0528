"""LangChain's messages to the neutral form and back."""

import json

import pytest
from hypothesis import given, settings
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    HumanMessage,
    HumanMessageChunk,
    ToolMessage,
    convert_to_openai_messages,
    message_chunk_to_message,
)

from convmem import ImagePart, InvalidMessage, Message, ReasoningPart, SessionKey, TextPart, ToolCall, open_conversation
from convmem.messages import decode_messages, encode_message, encode_messages
from convmem.stores.memory import MemoryStore
from convmem.testing import CountedStore
from convmem_langchain import UnknownMessageClassWarning, chunk_text, from_langchain, to_langchain

from .langchain_corpus import CALL, CORPUS, MESSAGES, PNG, MoodMessage


def stored(message):
    """Return a neutral message as a store gives it back."""
    (loaded,) = decode_messages(encode_messages([encode_message(message)]))
    return loaded


@settings(max_examples=300, deadline=None)
@given(MESSAGES)
def test_any_message_comes_back_equal(message):
    """A message that came back almost equal is how histories rot."""
    again = to_langchain(stored(from_langchain(message)))
    assert again == message
    assert type(again) is type(message)


@pytest.mark.parametrize("message", CORPUS, ids=lambda message: type(message).__name__)
def test_only_what_has_no_neutral_form_is_beside_it(message):
    """A stored conversation is readable by others; what they cannot read is not repeated in a second form."""
    neutral = from_langchain(message)
    extras = neutral.extras.get("langchain", {})
    assert set(extras) <= {"id", "type", "class", "fields", "content", "calls", "call_ids"}
    if message.id:
        assert neutral.id == message.id
    assert str(message.text) == neutral.text or not isinstance(message.content, str)


def test_a_plain_message_needs_nothing_beside_it():
    """The common case costs nothing."""
    assert from_langchain(AIMessage("hi", id="1")).extras == {}
    assert from_langchain(AIMessage("", id="1", tool_calls=[CALL])).extras == {}


@pytest.mark.parametrize(
    "chunk",
    [
        HumanMessageChunk("hel") + HumanMessageChunk("lo"),
        AIMessageChunk("hel", id="run-1") + AIMessageChunk("lo", id="run-1", chunk_position="last"),
        AIMessageChunk("", tool_call_chunks=[{"name": "add", "args": '{"a": 1}', "id": "c1", "index": 0}]),
        AIMessageChunk("", tool_call_chunks=[{"name": "add", "args": '{"a"', "id": "c1", "index": 0}]),
        AIMessageChunk(
            [{"type": "text", "text": "x", "index": 0}], usage_metadata={"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
        ),
    ],
)
def test_a_chunk_is_stored_as_its_message(chunk):
    """Streams end in a chunk; a stored chunk would break whoever adds to it later."""
    assert to_langchain(stored(from_langchain(chunk))) == message_chunk_to_message(chunk)


def test_an_image_is_stored_once():
    """The bytes of a picture stand in its part; the spelling beside it does not repeat them."""
    for block in (
        {"type": "image", "source_type": "base64", "data": PNG * 100, "mime_type": "image/png"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG * 100}", "detail": "low"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG * 100}, "cache_control": {"type": "x"}},
    ):
        encoded = encode_message(from_langchain(HumanMessage([block])))
        assert len(encoded) < len(json.dumps(block)) + 400


def test_other_frameworks_see_pictures_thoughts_and_calls():
    """Whatever the spelling, the neutral form has it as what it is."""
    neutral = from_langchain(
        AIMessage(
            [
                {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
                {"type": "image_url", "image_url": {"url": "https://a.example/1.png", "detail": "low"}},
                {"type": "tool_use", "id": "c1", "name": "add", "input": {}},
            ],
            tool_calls=[CALL],
        )
    )
    assert neutral.content == (ReasoningPart(text="Hm.", signature="c2ln"), ImagePart(url="https://a.example/1.png"))
    assert neutral.tool_calls == (ToolCall(id="c1", name="add", arguments=CALL["args"]),)


@pytest.mark.asyncio
async def test_a_call_that_a_window_leaves_out_is_gone_from_every_place():
    """OpenAI, Anthropic and the first form of calls each repeat the call elsewhere in the message; a model refuses the half."""
    store = CountedStore(MemoryStore())
    key = SessionKey.for_user("ada")
    twice = AIMessage(
        [{"type": "text", "text": "I add."}, *({"type": "tool_use", "id": i, "name": "add", "input": {}} for i in ("c1", "c2"))],
        tool_calls=[CALL, {**CALL, "id": "c2"}],
        additional_kwargs={
            "tool_calls": [{"id": i, "type": "function", "function": {"name": "add", "arguments": "{}"}} for i in ("c1", "c2")]
        },
    )
    old = AIMessage("I add.", additional_kwargs={"function_call": {"name": "add", "arguments": "{}"}, "other": 1})
    async with open_conversation(key, store=store) as conversation:
        conversation.append(Message.user("1 + 1?"), *from_langchain([twice, ToolMessage("2", tool_call_id="c1"), old]))
    async with open_conversation(key, store=store) as conversation:
        _, first, result, second = to_langchain(conversation.messages)
    assert [call["id"] for call in first.tool_calls] == ["c1"]
    assert [block.get("id") for block in first.content] == [None, "c1"]
    assert [call["id"] for call in first.additional_kwargs["tool_calls"]] == ["c1"]
    assert result.tool_call_id == "c1"
    assert second.additional_kwargs == {"other": 1}
    assert second.text == "I add."


@pytest.mark.asyncio
async def test_a_function_call_of_the_first_kind_stays_in_the_window_with_its_result():
    """Functions had no ids; their name is one, so that the window and other frameworks see a pair."""
    pair = [AIMessage("", additional_kwargs={"function_call": {"name": "add", "arguments": "{}"}}), *CORPUS[-9:-8]]
    assert pair[1].type == "function"
    store = CountedStore(MemoryStore())
    async with open_conversation(SessionKey.for_user("ada"), store=store) as conversation:
        conversation.append(Message.user("1 + 1?"), *from_langchain(pair))
    async with open_conversation(SessionKey.for_user("ada"), store=store) as conversation:
        assert to_langchain(conversation.messages)[1:] == pair


def test_what_another_framework_wrote_is_in_the_standard_form_of_langchain():
    """Its chat models translate the standard blocks of an answer when they are told that it has them."""
    picture = to_langchain(Message.user((TextPart(text="Look:"), ImagePart(data=b"\x89PNG", media_type="image/png"))))
    assert picture.content_blocks == [
        {"type": "text", "text": "Look:"},
        {"type": "image", "base64": "iVBORw==", "mime_type": "image/png"},
    ]
    (sent,) = convert_to_openai_messages([picture])
    assert sent["content"][1] == {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}}
    answer = to_langchain(Message.assistant((ReasoningPart(text="Hm."), TextPart(text="A cat."))))
    assert [block["type"] for block in answer.content_blocks] == ["reasoning", "text"]
    assert answer.response_metadata == {"output_version": "v1"}


def test_arguments_that_are_no_json_are_an_invalid_call():
    """The model's own text is kept, for LangChain to show the model what it wrote."""
    message = to_langchain(Message.assistant(tool_calls=(ToolCall(id="c1", name="add", arguments="{"),)))
    assert message.tool_calls == []
    assert message.invalid_tool_calls[0]["args"] == "{"


def test_a_class_this_process_lacks_is_read_as_what_it_derives_from():
    """A worker without the app's class still remembers; nothing is imported because a store names it."""
    neutral = from_langchain(MoodMessage("fine", mood="bright"))
    extras = {**neutral.extras["langchain"], "class": "os:system"}
    with pytest.warns(UnknownMessageClassWarning, match="os:system"):
        message = to_langchain(neutral.model_copy(update={"extras": {"langchain": extras}}))
    assert type(message) is AIMessage
    assert (message.content, message.mood) == ("fine", "bright")


def test_what_is_no_message_is_refused():
    """A string in the list is the usual slip."""
    with pytest.raises(InvalidMessage, match="HumanMessage"):
        from_langchain(["hello"])


def test_the_text_of_what_streams():
    """For ``record(stream, text=chunk_text)``: models yield chunks, agents pairs, and tools are not the model."""
    assert chunk_text("a") == "a"
    assert chunk_text(AIMessageChunk("a")) == "a"
    assert chunk_text((AIMessageChunk([{"type": "text", "text": "a"}]), {"langgraph_node": "model"})) == "a"
    assert chunk_text(AIMessageChunk("")) is None
    assert chunk_text(ToolMessage("2", tool_call_id="c1")) is None
