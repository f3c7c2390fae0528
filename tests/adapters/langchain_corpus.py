"""LangChain messages of every kind, in every spelling that is in use."""

import enum
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from uuid import UUID

from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)

PNG = "iVBORw0KGgo="


class Reason(str, enum.Enum):  # noqa: UP042 - this is how generated clients write it
    STOP = "stop"


class MoodMessage(AIMessage):
    """An app's own message, derived from one of LangChain's."""

    mood: str = "calm"
    at: date | None = None


class NoteMessage(BaseMessage):
    """An app's own message, derived from none."""

    type: str = "note"
    pages: int = 1


MEDIA = [
    {"type": "image", "base64": PNG, "mime_type": "image/png"},
    {"type": "image", "url": "https://a.example/1.png"},
    {"type": "image", "url": "https://a.example/1.png", "mime_type": "image/png", "id": "i1", "extras": {"alt": "a cat"}},
    {"type": "image", "file_id": "file-1"},
    {"type": "image", "source_type": "base64", "data": PNG, "mime_type": "image/png"},
    {"type": "image", "source_type": "url", "url": "https://a.example/1.png"},
    {"type": "image_url", "image_url": {"url": "https://a.example/1.png"}},
    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "low"}},
    {"type": "image_url", "image_url": "https://a.example/1.png"},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}, "cache_control": {"type": "ephemeral"}},
    {"type": "image", "source": {"type": "url", "url": "https://a.example/1.png"}},
    {"type": "image", "base64": "not base64!", "mime_type": "image/png"},
    {"type": "image", "base64": PNG},
    {"image": {"format": "png", "source": {"bytes": b"\x89PNG"}}},
    {"type": "audio", "base64": "UklGRg==", "mime_type": "audio/wav"},
    {"type": "audio", "source_type": "base64", "data": "UklGRg==", "mime_type": "audio/wav"},
    {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
    {"type": "file", "base64": "JVBERg==", "mime_type": "application/pdf", "filename": "a.pdf"},
    {"type": "file", "source_type": "base64", "data": "JVBERg==", "mime_type": "application/pdf", "filename": "a.pdf"},
    {"type": "file", "source_type": "text", "text": "hello", "mime_type": "text/plain"},
    {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERg=="}},
    {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERg=="}, "title": "A"},
    {"type": "text-plain", "text": "hello", "mime_type": "text/plain"},
    {"type": "video", "url": "https://a.example/1.mp4", "mime_type": "video/mp4"},
]
THOUGHTS = [
    {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
    {"type": "thinking", "thinking": ""},
    {"type": "redacted_thinking", "data": "b3BhcXVl"},
    {"type": "reasoning", "reasoning": "Hm.", "extras": {"signature": "c2ln"}},
    {"type": "reasoning", "reasoning": "Hm.", "id": "rs_1", "index": 0, "extras": {"signature": "c2ln", "content": []}},
    {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}], "encrypted_content": "b3BhcXVl"},
]
SOURCES = [
    {"type": "text", "text": "A cat.", "annotations": [{"type": "citation", "url": "https://a.example", "title": "Cats", "end_index": 5}]},
    {"type": "text", "text": "A cat.", "annotations": [{"type": "citation", "cited_text": "cat", "extras": {"file": 1}}], "index": 2},
    {"type": "text", "text": "A cat.", "annotations": [{"type": "url_citation", "url": "https://a.example", "start_index": 0}]},
    {"type": "text", "text": "A cat.", "citations": [{"type": "char_location", "cited_text": "cat", "document_title": "Cats"}]},
    {"type": "text", "text": "A cat.", "citations": None},
    {"type": "text", "text": 5},
    {"type": 7},
]
SEARCH = [
    {"type": "server_tool_call", "id": "s1", "name": "web_search", "args": {"query": "cats"}},
    {"type": "server_tool_result", "tool_call_id": "s1", "output": [{"url": "https://a.example"}], "status": "success"},
    {"type": "non_standard", "value": {"a": [1, {"b": None}]}},
]
CALL = {"name": "add", "args": {"a": 1, "b": [None, 1.5, "x", {"c": True}]}, "id": "c1"}

CORPUS = [
    HumanMessage("hello"),
    HumanMessage("hello", id="m1", name="Ada", example=True),
    HumanMessage("", id=""),
    HumanMessage([]),
    HumanMessage(["bare", {"type": "text", "text": "block"}, ""]),
    HumanMessage([{"type": "text", "text": "See:"}, *MEDIA]),
    HumanMessage(content_blocks=[{"type": "text", "text": "v1"}, {"type": "image", "base64": PNG, "mime_type": "image/png"}]),
    SystemMessage("Be brief."),
    SystemMessage([{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]),
    AIMessage("hi", id="lc_run--1"),
    AIMessage([{"type": "text", "text": "all standard"}], id="lc_run--2"),
    AIMessage("Grüße \x00 🐈 \ud800", name="bot"),
    AIMessage("", tool_calls=[CALL]),
    AIMessage("two", tool_calls=[CALL, {"name": "add", "args": {}, "id": "c2"}, {"name": "add", "args": {}, "id": None}]),
    AIMessage("", tool_calls=[CALL], invalid_tool_calls=[{"name": "add", "args": "{", "id": "c3", "error": "no JSON"}]),
    AIMessage("", invalid_tool_calls=[{"name": "add", "args": "{", "id": "c3", "error": None}]),
    AIMessage("", invalid_tool_calls=[{"name": None, "args": None, "id": None, "error": None}]),
    AIMessage([*THOUGHTS, {"type": "text", "text": "So."}], response_metadata={"model_provider": "anthropic"}),
    AIMessage([*SOURCES, *SEARCH], response_metadata={"output_version": "v1"}),
    AIMessage([{"type": "text", "text": "I add."}, {"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 1}}], tool_calls=[CALL]),
    AIMessage([{"type": "tool_call", **CALL}], tool_calls=[CALL]),
    AIMessage([{"type": "function_call", "call_id": "c1", "id": "fc_1", "name": "add", "arguments": "{}"}], tool_calls=[CALL]),
    AIMessage("", additional_kwargs={"function_call": {"name": "add", "arguments": '{"a": 1}'}}),
    AIMessage("", additional_kwargs={"function_call": {"name": "add", "arguments": "{"}}),
    AIMessage(
        "",
        additional_kwargs={"tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}]},
    ),
    AIMessage("", additional_kwargs={"reasoning_content": "Hm.", "refusal": None}),
    AIMessage(
        "counted",
        usage_metadata={
            "input_tokens": 3,
            "output_tokens": 5,
            "total_tokens": 8,
            "input_token_details": {"cache_read": 1},
            "output_token_details": {"reasoning": 2},
        },
        response_metadata={
            "finish_reason": Reason.STOP,
            "logprobs": [-0.5, float("-inf")],
            "at": datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1))),
            "raw": b"\xff",
            "shape": (1, (2,)),
            "$bytes": "not ours",
            "lc:type": "not ours either",
        },
    ),
    ToolMessage("2", tool_call_id="c1"),
    ToolMessage("", tool_call_id="c1", name="add", status="error", id="t1"),
    ToolMessage([{"type": "text", "text": "2"}, MEDIA[0]], tool_call_id="c1", artifact={"rows": [[1, 2], [3, 4]]}),
    ToolMessage(
        "found",
        tool_call_id="c1",
        artifact=[
            Document("cats", metadata={"page": 3, "tags": {"a"}}, id="d1"),
            {1: "one", ("a", 1): date(2026, 1, 1), None: time(12, tzinfo=UTC)},
            frozenset({1}),
            Decimal("0.10"),
            UUID(int=5),
            timedelta(days=-1, microseconds=1),
        ],
    ),
    FunctionMessage("2", name="add"),
    ChatMessage("hello", role="critic"),
    ChatMessage("hello", role="assistant", id="m2"),
    ChatMessage("hello", role="developer"),
    RemoveMessage(id="m1"),
    MoodMessage("fine", mood="bright", at=date(2026, 1, 1), id="m3"),
    MoodMessage("fine", tool_calls=[CALL]),
    NoteMessage(content="noted", pages=2),
    BaseMessage(content="bare", type="unheard of"),
]

REFUSED = [
    (ToolMessage("x", tool_call_id="c1", artifact={"tool": [object()]}), "artifact.tool[0]"),
    (AIMessage("x", response_metadata={"raw": object()}), "response_metadata.raw"),
    (AIMessage("", tool_calls=[{"name": "add", "args": {"a": (1, 2)}, "id": "c1"}]), "tool_calls[0].args.a"),
    (AIMessage("", tool_calls=[{"name": "add", "args": {"a": {1: 2}}, "id": "c1"}]), "tool_calls[0].args.a"),
    (HumanMessage([{"type": "text", "text": "x", "extras": {"f": print}}]), "content[0].extras.f"),
    (HumanMessage("x", additional_kwargs={"when": {"a": complex(1)}}), "additional_kwargs.when.a"),
]

# Messages nobody thought of

_TEXT = st.text(st.characters(codec=None) | st.sampled_from("\x00\ud800$"), max_size=6)
_NAME = st.none() | _TEXT
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT | st.sampled_from(["lc:type", "type", "$float"]), inner, max_size=3),
    max_leaves=6,
)
_VALUES = st.recursive(
    _JSON | st.binary(max_size=4) | st.datetimes() | st.dates() | st.timedeltas() | st.uuids() | st.decimals(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=2) | st.tuples(inner, inner) | st.dictionaries(st.integers() | _TEXT | st.tuples(_TEXT), inner, max_size=2)
    ),
    max_leaves=4,
)
_BLOCKS = st.one_of(
    _TEXT,
    st.sampled_from([*MEDIA, *THOUGHTS, *SOURCES, *SEARCH]),
    st.builds(
        lambda block, more: {**more, **block}, st.sampled_from([*MEDIA, *THOUGHTS, *SOURCES]), st.dictionaries(_TEXT, _JSON, max_size=2)
    ),
    st.builds(
        lambda kind, more: {**more, "type": kind},
        st.sampled_from(["text", "image", "reasoning", "file", "odd"]),
        st.dictionaries(_TEXT, _JSON),
    ),
    st.dictionaries(
        st.sampled_from(["type", "text", "url", "base64", "data", "source", "thinking", "file", "image_url"]), _JSON, max_size=4
    ),
)
_CONTENT = _TEXT | st.lists(_BLOCKS, max_size=4)
_BASE = {
    "content": _CONTENT,
    "id": _NAME,
    "name": _NAME,
    "additional_kwargs": st.dictionaries(_TEXT, _VALUES, max_size=2),
    "response_metadata": st.dictionaries(_TEXT, _VALUES, max_size=2),
}
_CALLS = st.lists(st.fixed_dictionaries({"name": _TEXT, "args": st.dictionaries(_TEXT, _JSON, max_size=2), "id": _NAME}), max_size=3)
_WRONG = st.lists(st.fixed_dictionaries({"name": _NAME, "args": _NAME, "id": _NAME, "error": _NAME}), max_size=2)
MESSAGES = st.one_of(
    st.builds(HumanMessage, **_BASE),
    st.builds(SystemMessage, **_BASE),
    st.builds(AIMessage, **_BASE, tool_calls=_CALLS, invalid_tool_calls=_WRONG),
    st.builds(ToolMessage, **_BASE, tool_call_id=_TEXT, artifact=_VALUES, status=st.sampled_from(["success", "error"])),
    st.builds(ChatMessage, **_BASE, role=_TEXT | st.sampled_from(["user", "assistant", "system", "tool"])),
    st.builds(FunctionMessage, **{**_BASE, "name": _TEXT}),
    st.builds(MoodMessage, **_BASE, mood=_TEXT, tool_calls=_CALLS),
)
