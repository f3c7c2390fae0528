"""LlamaIndex's messages come back equal, from a store too, and another framework can read them."""

import io
import string
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st
from llama_index.core.base.llms.types import (
    AudioBlock,
    CacheControl,
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    VideoBlock,
)
from pydantic import BaseModel

from convmem import AudioPart, Citation, FilePart, ImagePart, InvalidMessage, Message, ReasoningPart, TextPart, ToolCall
from convmem.messages import decode_messages, encode_message, encode_messages
from convmem_llamaindex import from_llamaindex, to_llamaindex

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(40))
STRANGE = "caf\u00e9 \x00 \ud800 \U0001f600"
OPENAI_CALLS = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]
OPENAI_BROKEN = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": '}}]


def stored(message: Message) -> Message:
    """Return what a store gives back."""
    (back,) = decode_messages(encode_messages([encode_message(message)]))
    assert back == message
    return back


def there_and_back(message: ChatMessage) -> ChatMessage:
    return to_llamaindex(stored(from_llamaindex(message)))


def document(**fields) -> ChatMessage:
    return ChatMessage(blocks=[DocumentBlock(**fields)])


CORPUS = {
    "text": ChatMessage("hello"),
    "empty text": ChatMessage(""),
    "no blocks": ChatMessage(),
    "several texts": ChatMessage(blocks=[TextBlock(text="a"), TextBlock(text=""), TextBlock(text="b")]),
    "strange text": ChatMessage(STRANGE),
    **{f"role {role.value}": ChatMessage("x", role=role) for role in MessageRole},
    "image bytes": ChatMessage(blocks=[TextBlock(text="what?"), ImageBlock(image=PNG)]),
    "image of an unknown kind": ChatMessage(blocks=[ImageBlock(image=b"\x00\x01")]),
    "image that reads as base64": ChatMessage(blocks=[ImageBlock(image=b"abcd")]),
    "image url and detail": ChatMessage(blocks=[ImageBlock(url="https://example.org/a.png", detail="high")]),
    "image data url": ChatMessage(blocks=[ImageBlock(url="data:image/png;base64,iVBORw0KGgo=")]),
    "image nowhere": ChatMessage(blocks=[ImageBlock()]),
    "image of no bytes": ChatMessage(blocks=[ImageBlock(image=b"")]),
    "image by both": ChatMessage(blocks=[ImageBlock(image=PNG, url="https://example.org/a.png")]),
    "audio": ChatMessage(blocks=[AudioBlock(audio=b"a-", format="mp3"), AudioBlock(audio=b"?!"), AudioBlock(url="https://x.org/a.wav")]),
    "video": ChatMessage(blocks=[VideoBlock(video=b"v-", video_mimetype="video/mp4", fps=2, detail="low"), VideoBlock(video=b"?!")]),
    "video url": ChatMessage(blocks=[VideoBlock(url="https://example.org/v.mp4"), VideoBlock(url="https://example.org/v")]),
    "document": document(data=b"%PDF-1.7 ...", title="report.pdf"),
    "document nobody knows": document(data=b"???"),
    "document url": document(url="https://example.org/a.pdf"),
    "document path that is text": document(path="nowhere/a.pdf"),
    "document nowhere": document(),
    "cache point": ChatMessage(blocks=[TextBlock(text="a"), CachePoint(cache_control=CacheControl(type="ephemeral", ttl="1h"))]),
    "cache point first": ChatMessage(blocks=[CachePoint(cache_control=CacheControl(type="ephemeral")), TextBlock(text="a")]),
    "cache point alone": ChatMessage(blocks=[CachePoint(cache_control=CacheControl(type="ephemeral"))]),
    "citable": ChatMessage(blocks=[CitableBlock(title="t", source="s", content=[TextBlock(text="a"), ImageBlock(image=PNG)])]),
    "citable document": ChatMessage(blocks=[CitableBlock(title="t", source="s", content=[DocumentBlock(data=b"d-")])]),
    "citation": ChatMessage(
        role="assistant",
        blocks=[
            TextBlock(text="It is so."),
            CitationBlock(
                cited_content=TextBlock(text="so"), source="https://x.org", title="t", additional_location_info={"page": 3, "start": 1}
            ),
        ],
    ),
    "citation of an image": ChatMessage(
        blocks=[CitationBlock(cited_content=ImageBlock(image=PNG), source="s", title="t", additional_location_info={})]
    ),
    "thinking": ChatMessage(
        role="assistant",
        blocks=[
            ThinkingBlock(content="hm", additional_information={"signature": "sig"}),
            ThinkingBlock(content="hm", num_tokens=7, additional_information={"signature": "sig", "model": {"v": [1, None]}}),
            ThinkingBlock(additional_information={"signature": b"\xff", "redacted": True}),
            ThinkingBlock(),
            TextBlock(text="so"),
        ],
    ),
    "tool calls": ChatMessage(
        role="assistant",
        blocks=[
            TextBlock(text="let me see"),
            ToolCallBlock(tool_call_id="1", tool_name="f", tool_kwargs={"a": [1, {"b": None}], "s": STRANGE}),
            ToolCallBlock(tool_call_id="2", tool_name="f", tool_kwargs='{"broken": '),
            ToolCallBlock(tool_call_id=None, tool_name="g"),
        ],
    ),
    "tool call before text": ChatMessage(role="assistant", blocks=[ToolCallBlock(tool_call_id="1", tool_name="f"), TextBlock(text="t")]),
    "tool call and empty text": ChatMessage(role="assistant", blocks=[TextBlock(text=""), ToolCallBlock(tool_call_id="1", tool_name="f")]),
    "older tool calls": ChatMessage("", role="assistant", additional_kwargs={"tool_calls": OPENAI_CALLS}),
    "older broken tool calls": ChatMessage("", role="assistant", additional_kwargs={"tool_calls": OPENAI_BROKEN}),
    "older tool calls without text": ChatMessage(role="assistant", additional_kwargs={"tool_calls": OPENAI_CALLS}),
    "tool calls of another form": ChatMessage("", role="assistant", additional_kwargs={"tool_calls": [{"what": 1}], "x": "y"}),
    "both kinds of tool calls": ChatMessage(
        role="assistant", blocks=[ToolCallBlock(tool_call_id="1", tool_name="f")], additional_kwargs={"tool_calls": OPENAI_CALLS}
    ),
    "tool result": ChatMessage("42", role="tool", additional_kwargs={"tool_call_id": "1", "name": "f"}),
    "tool result with strange ids": ChatMessage("42", role="tool", additional_kwargs={"tool_call_id": 1, "name": None}),
    "nested kwargs": ChatMessage(
        "x", additional_kwargs={"a": {"$bytes": "x", "n": [1.5, True, None, STRANGE, {"": {}}]}, "b": b"\xff", "inf": float("inf")}
    ),
}


@pytest.mark.parametrize("message", [pytest.param(message, id=name) for name, message in CORPUS.items()])
def test_every_kind_of_message_comes_back_equal(message):
    """P11, for each thing a LlamaIndex message can hold."""
    before = message.model_copy(deep=True)
    assert there_and_back(message) == message == before
    assert there_and_back(there_and_back(message)) == message


def test_lists_in_and_out():
    """A list comes back as a list, in order."""
    messages = list(CORPUS.values())
    assert to_llamaindex(from_llamaindex(messages)) == messages
    assert to_llamaindex(from_llamaindex(iter(messages))) == messages
    assert from_llamaindex([]) == to_llamaindex([]) == []


def test_extras_hold_only_what_has_no_neutral_form():
    """What is kept twice can differ, and is paid for twice."""
    ours = {"text", "empty text", "no blocks", "several texts", "strange text", "tool result", "image bytes", "image that reads as base64"}
    ours |= {"image of an unknown kind", "audio", "video url", "document", "document nobody knows", "document url", "image data url"}
    ours |= {"role user", "role system", "role assistant", "role tool", "image of no bytes", "tool call and empty text"}
    for name in ours:
        assert from_llamaindex(CORPUS[name]).extras == {}, name
    assert from_llamaindex(CORPUS["image url and detail"]).extras == {"llamaindex": {"blocks": {"0": {"detail": "high"}}}}
    assert from_llamaindex(CORPUS["role developer"]).extras == {"llamaindex": {"role": "developer"}}
    whole = [name for name, message in CORPUS.items() if "message" in from_llamaindex(message).extras.get("llamaindex", {})]
    assert whole == ["tool call before text"]


def test_the_neutral_form_is_what_others_read():
    """Another framework sees the parts, not our extras."""
    thinking = from_llamaindex(CORPUS["thinking"])
    assert thinking.content[0] == ReasoningPart(text="hm", signature="sig")
    calls = from_llamaindex(CORPUS["tool calls"])
    assert calls.text == "let me see"
    assert calls.tool_calls[1] == ToolCall(id="2", name="f", arguments='{"broken": ')
    assert from_llamaindex(CORPUS["older tool calls"]).tool_calls == (ToolCall(id="c1", name="f", arguments={"a": 1}),)
    result = from_llamaindex(CORPUS["tool result"])
    assert (result.role, result.tool_call_id, result.name, result.content) == ("tool", "1", "f", "42")
    assert from_llamaindex(CORPUS["image bytes"]).content[1] == ImagePart(data=PNG, media_type="image/png")
    assert from_llamaindex(CORPUS["document"]).content == (FilePart(data=b"%PDF-1.7 ...", media_type="application/pdf", name="report.pdf"),)
    cited = from_llamaindex(CORPUS["citation"]).content[1]
    assert cited == TextPart(text="", citations=(Citation(url="https://x.org", title="t", quote="so"),))


NEUTRAL = {
    "system": Message.system("be brief"),
    "text and citation": Message.assistant([TextPart(text="so", citations=(Citation(url="https://x.org", quote="q", start=1),))]),
    "call without text": Message.assistant("", tool_calls=(ToolCall(id="1", name="f", arguments={"a": 1}),)),
    "call": Message.assistant("wait", tool_calls=(ToolCall(id="1", name="f", arguments="{"),)),
    "result": Message.tool("42", tool_call_id="1", name="f"),
    "image": Message.user([ImagePart(url="https://x.org/a.png"), ImagePart(data=PNG, media_type="image/png")]),
    "url that is none": Message.user([ImagePart(url="not a url")]),
    "audio": Message.user([AudioPart(data=b"a", media_type="audio/mpeg")]),
    "file": Message.user(
        [FilePart(data=b"a", media_type="text/plain", name="a.txt"), FilePart(url="https://x.org/v", media_type="video/mp4")]
    ),
    "reasoning": Message.assistant([ReasoningPart(text="hm", signature="s"), TextPart(text="so")]),
    "strange": Message.user(STRANGE),
}


@pytest.mark.parametrize("message", [pytest.param(message, id=name) for name, message in NEUTRAL.items()])
def test_what_others_wrote_can_be_read(message):
    """A conversation begun elsewhere goes on under LlamaIndex."""
    theirs = to_llamaindex(message)
    assert isinstance(theirs, ChatMessage)
    assert theirs.role.value == message.role
    again = from_llamaindex(theirs)
    assert (again.role, again.text, again.tool_calls, again.tool_call_id, again.name) == (
        message.role,
        message.text,
        message.tool_calls,
        message.tool_call_id,
        message.name,
    )
    assert to_llamaindex(again) == theirs


def test_a_file_that_is_gone_does_not_take_the_message_along(tmp_path):
    """LlamaIndex's own stores cannot read such a message any more: uploads are temporary, conversations are not."""
    file = tmp_path / "a.png"
    file.write_bytes(PNG)
    message = ChatMessage(blocks=[ImageBlock(path=file), DocumentBlock(path=file), AudioBlock(path=file)])
    neutral = stored(from_llamaindex(message))
    file.unlink()
    assert to_llamaindex(neutral) == message
    with pytest.raises(ValueError, match="does not point to a file"):
        ChatMessage.model_validate(message.model_dump(mode="json"))


def test_messages_share_nothing_with_what_they_were_made_from():
    """Memory blocks write into the messages they are given."""
    kwargs = {"a": {"b": [1]}}
    message = ChatMessage("x", additional_kwargs=kwargs)
    neutral = from_llamaindex(message)
    message.additional_kwargs["session_id"] = "s"
    kwargs["a"]["b"].append(2)
    first = to_llamaindex(neutral)
    assert first.additional_kwargs == {"a": {"b": [1]}}
    first.additional_kwargs["a"]["b"].append(3)
    first.blocks.clear()
    assert to_llamaindex(neutral) == ChatMessage("x", additional_kwargs={"a": {"b": [1]}})


class Point(BaseModel):
    x: int


class Colour(Enum):
    RED = "red"


class Own(ChatMessage):
    extra: int = 0


class OwnBlock(TextBlock):
    extra: int = 0


def containing_itself() -> dict:
    kwargs: dict = {}
    kwargs["me"] = kwargs
    return kwargs


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (ChatMessage("x", additional_kwargs={"at": [datetime.now(UTC)]}), "additional_kwargs.at[0]"),
        (ChatMessage("x", additional_kwargs={"a": {"b": {1, 2}}}), "additional_kwargs.a.b"),
        (ChatMessage("x", additional_kwargs={"t": (1, 2)}), "additional_kwargs.t"),
        (ChatMessage("x", additional_kwargs={"d": {1: 2}}), "additional_kwargs.d"),
        (ChatMessage("x", additional_kwargs={"o": object()}), "additional_kwargs.o"),
        (ChatMessage("x", additional_kwargs={"p": Path("a")}), "additional_kwargs.p"),
        (ChatMessage(blocks=[ThinkingBlock(additional_information={"when": datetime.now(UTC)})]), "blocks[0].additional_information.when"),
        (ChatMessage(blocks=[ToolCallBlock(tool_name="f", tool_kwargs={"s": {1}})]), "blocks[0].tool_kwargs.s"),
        (ChatMessage(blocks=[ImageBlock(image=io.StringIO("x"))]), "blocks[0].image"),
        (ChatMessage("x", additional_kwargs=containing_itself()), "message"),
        (Own(extra=1), "message"),
    ],
)
def test_what_would_not_come_back_is_refused_by_name(message, field):
    """Never a silent change: the error says where."""
    with pytest.raises(InvalidMessage) as caught:
        from_llamaindex(message)
    assert caught.value.field == field


def test_a_block_of_ones_own_is_refused():
    """It would come back without what it adds."""
    message = ChatMessage("x")
    message.blocks = [OwnBlock(text="x", extra=1)]
    with pytest.raises(InvalidMessage, match="OwnBlock"):
        from_llamaindex(message)


def test_the_documented_encodings():
    """As LlamaIndex's own stores have them: files as bytes, objects as dicts, enums as values."""
    file = io.BytesIO(PNG)
    file.seek(3)
    message = ChatMessage(blocks=[ImageBlock(image=file, image_mimetype="image/png")], additional_kwargs={"p": Point(x=1), "c": Colour.RED})
    back = there_and_back(message)
    assert back == ChatMessage(blocks=[ImageBlock(image=PNG)], additional_kwargs={"p": {"x": 1}, "c": "red"})
    assert file.tell() == 3
    closed = io.BytesIO(PNG)
    broken = ChatMessage(blocks=[ImageBlock(image=closed)])
    closed.close()
    with pytest.raises(InvalidMessage, match=r"blocks\[0\]\.image"):
        from_llamaindex(broken)


texts = st.text(alphabet=st.one_of(st.sampled_from(string.ascii_letters + "\x00\ud800\udfff$"), st.characters()), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts | st.binary(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
dicts = st.dictionaries(texts, values, max_size=4)
types = st.sampled_from([None, "image/png", "application/octet-stream", "video/mp4", "x", ""])
formats = st.sampled_from([None, "mp3", "mpeg", "wav", "ogg", "", "octet-stream"])
data = st.none() | st.binary(max_size=12) | st.just(PNG)
urls = st.sampled_from(
    [None, "https://example.org", "https://example.org/a.mp3", "HTTP://EXAMPLE.org/%7Ea?b#c", "data:image/png;base64,aGk="]
)
text_blocks = st.builds(TextBlock, text=texts)
image_blocks = st.builds(ImageBlock, image=data, url=urls, image_mimetype=types, detail=st.none() | texts)
document_blocks = st.builds(
    DocumentBlock, data=data, url=urls, title=st.none() | texts, document_mimetype=types, path=st.sampled_from([None, "no/such.pdf"])
)
blocks = st.one_of(
    text_blocks,
    image_blocks,
    document_blocks,
    st.builds(AudioBlock, audio=data, url=urls, format=formats),
    st.builds(VideoBlock, video=data, url=urls, video_mimetype=types, detail=st.none() | texts, fps=st.none() | st.integers(0, 9)),
    st.builds(CachePoint, cache_control=st.builds(CacheControl, type=texts, ttl=texts)),
    st.builds(CitableBlock, title=texts, source=texts, content=st.lists(text_blocks | image_blocks | document_blocks, max_size=2)),
    st.builds(
        CitationBlock,
        title=texts,
        source=texts,
        cited_content=text_blocks | image_blocks,
        additional_location_info=st.dictionaries(texts | st.sampled_from(["start", "end"]), st.integers(), max_size=2),
    ),
    st.builds(
        ThinkingBlock,
        content=st.none() | texts,
        num_tokens=st.none() | st.integers(0, 9),
        additional_information=dicts | st.builds(lambda signature: {"signature": signature}, values),
    ),
    st.builds(ToolCallBlock, tool_call_id=st.none() | texts, tool_name=texts, tool_kwargs=dicts | texts),
)
kwargs = st.builds(
    lambda some, special: some | special,
    dicts.filter(lambda some: "images" not in some),
    st.fixed_dictionaries(
        {}, optional={"name": values, "tool_call_id": values, "tool_calls": values | st.just(OPENAI_CALLS) | st.just(OPENAI_BROKEN)}
    ),
)
messages = st.builds(
    lambda role, said, more: ChatMessage(role=role, blocks=said, additional_kwargs=more),
    st.sampled_from(MessageRole),
    st.lists(blocks, max_size=4),
    kwargs,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(messages)
@example(ChatMessage(blocks=[ImageBlock(image=b"aGk=")]))
def test_any_message_comes_back_equal(message):
    """Whatever can be built and stored as values of JSON is the same when it is read."""
    assert there_and_back(message) == message
