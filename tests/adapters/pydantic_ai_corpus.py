"""Messages of Pydantic AI, of every kind: as agents write them, and as apps make them by hand."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from pydantic_ai import messages as native
from pydantic_ai.usage import RequestUsage

PICTURE = b"\x89PNG\r\n\x1a\n\x00\xff\xfe\xfb"
WHEN = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
ELSEWHERE = WHEN.astimezone(timezone(timedelta(hours=2)))


def asked(*content: Any, **more: Any) -> native.ModelRequest:
    return native.ModelRequest([native.UserPromptPart(content[0] if len(content) == 1 else list(content), timestamp=WHEN)], **more)


def request(*parts: Any, **more: Any) -> native.ModelRequest:
    return native.ModelRequest(list(parts), **more)


def response(*parts: Any, **more: Any) -> native.ModelResponse:
    return native.ModelResponse(list(parts), **({"timestamp": WHEN} | more))


def result(content: Any, call: str = "c1", **more: Any) -> native.ToolReturnPart:
    return native.ToolReturnPart("look", content, call, **({"timestamp": WHEN} | more))


def image() -> native.BinaryImage:
    return native.BinaryImage(PICTURE, media_type="image/png")


CITED = native.Citation(
    [native.WebCitationSource("https://a.example", title="Cats", excerpts=["A cat."])],
    anchor=native.ContentCitationAnchor(start=0, end=5),
)
SEVERAL = native.Citation(
    [native.DocumentCitationSource(document_id="d1"), native.WebCitationSource("https://b.example")],
    anchor=native.MarkerCitationAnchor(start=1, end=2),
)

ONE_MESSAGE: tuple[native.ModelMessage, ...] = (
    # what people say
    asked("Hello"),
    asked(""),
    asked("Zwölf \x00 🐈", timestamp=ELSEWHERE, instructions="Be brief.", run_id="r1", conversation_id="v1", metadata={"deep": [1, None]}),
    asked([]),
    asked(["one", "", "two"]),
    asked(["one"]),
    asked(
        [
            "What is this?",
            image(),
            native.ImageUrl("https://a.example/b.png", vendor_metadata={"detail": "low"}),
            native.ImageUrl("https://a.example/nothing", force_download="allow-local"),
            native.CachePoint(ttl="1h"),
            native.BinaryContent(b"%PDF", media_type="application/pdf", identifier="a"),
            native.BinaryContent(b"RIFF", media_type="audio/wav"),
            native.AudioUrl("https://a.example/a.mp3"),
            native.VideoUrl("https://a.example/a.mp4"),
            native.DocumentUrl("https://a.example/a.pdf"),
            native.UploadedFile("file-1", "openai"),
            native.TextContent("said", metadata={"from": "app"}),
            native.StructuredContent({"at": [1]}, tag="ui_state", format="json"),
        ]
    ),
    asked([native.CachePoint()]),
    request(native.SystemPromptPart("Be brief.", timestamp=WHEN, dynamic_ref="f", metadata={"x": 1})),
    request(native.RetryFeedbackPart("Not so.", retry=native.RetryInfo(cause="model_retry"), timestamp=WHEN)),
    request(native.CompactionPart("What was said before.")),
    request(native.SpeechPart(speaker="user", transcript="Hello", audio=native.BinaryContent(b"RIFF", media_type="audio/wav"))),
    request(native.SpeechPart(speaker="user", audio=native.BinaryContent(b"RIFF", media_type="audio/wav"))),
    request(native.ToolAvailabilityDeltaPart(tools_added=["look"])),
    request(native.SystemPromptPart("Only now.", timestamp=WHEN, scope="request"), native.UserPromptPart("Hello", timestamp=WHEN)),
    request(),
    request(instructions="Begin.", state="interrupted"),
    # results
    request(result("a cat")),
    request(result("")),
    request(result(None)),
    request(result({"at": [1, None, "ö"], "deep": {"x": 1.5}})),
    request(result([1, "two"], tool_kind="mine", metadata={"rows": 3})),
    request(result(image())),
    request(result([image(), "a cat", {"n": 1}, native.ImageUrl("https://a.example/b.png")])),
    request(result([image()])),
    request(result({"kind": "image-url", "url": "https://a.example/not-a-file.png"})),
    request(result("No such tool", outcome="retried", retry=native.RetryInfo(cause="unknown_tool"))),
    request(result("denied", outcome="denied")),
    # what models say
    response(native.TextPart("A cat.")),
    response(native.TextPart("")),
    response(),
    response(native.TextPart("A "), native.TextPart("cat.", id="t1", provider_name="openai", provider_details={"logprobs": [0.5]})),
    response(native.TextPart("A cat.", citations=[CITED, SEVERAL])),
    response(native.ThinkingPart("Look.", signature="c2ln", id="r1", provider_name="anthropic"), native.TextPart("A cat.")),
    response(native.ThinkingPart("", signature="c2ln", provider_name="openai", provider_details={"raw": ["x"]})),
    response(native.FilePart(image(), id="f1", provider_name="google"), native.TextPart("There.")),
    response(native.SpeechPart(speaker="assistant", transcript="A cat.", interrupted_at_ms=10)),
    response(native.CompactionPart(id="k", provider_name="openai", provider_details={"encrypted_content": "gAAA"})),
    response(
        native.TextPart("A cat."),
        model_name="a-model-2026",
        model_id="openai:a-model",
        provider_name="openai",
        provider_url="https://a.example/v1",
        provider_details={"timestamp": "2026-01-01", "logprobs": None},
        provider_response_id="resp_1",
        finish_reason="stop",
        usage=RequestUsage(input_tokens=7, output_tokens=3, details={"reasoning": 1}),
        run_id="r1",
        metadata={"x": True},
    ),
    # what models want called
    response(native.ToolCallPart("look", {"at": ["a", 1, None]}, "c1")),
    response(native.ToolCallPart("look", '{"at":"a"}', "c1", id="fc_1", provider_name="openai")),
    response(native.ToolCallPart("look", '{ "at": "spaced" }', "c1"), native.ToolCallPart("look", "no json", "c2")),
    response(native.ToolCallPart("look", None, "c1"), native.ToolCallPart("look", "", "c2"), native.ToolCallPart("look", "[1]", "c3")),
    response(native.ToolCallPart("look", {"at": 1}, "same"), native.ToolCallPart("look", {"at": 2}, "same")),
    response(
        native.TextPart("I look."), native.ToolCallPart("look", {}, "c1"), native.ThinkingPart("Hm."), native.ToolCallPart("look", {}, "c2")
    ),
    response(
        native.NativeToolCallPart("web_search", {"query": "cats"}, "n1", provider_name="openai"),
        native.NativeToolReturnPart("web_search", {"found": [1]}, "n1", provider_name="openai", timestamp=WHEN),
        native.TextPart("A cat."),
    ),
)
"""Each is one message to all other frameworks."""

SEVERAL_MESSAGES: tuple[native.ModelMessage, ...] = (
    request(
        native.SystemPromptPart("Be brief.", timestamp=WHEN), native.UserPromptPart("Hello", timestamp=WHEN), instructions="I.", run_id="r"
    ),
    request(
        result("a cat"),
        native.ToolAvailabilityDeltaPart(tools_added=["x"]),
        result(image(), "c2"),
        native.UserPromptPart("So?", timestamp=WHEN),
    ),
    request(
        native.CapabilityLoadDeltaPart(loaded=["x"]),
        result("a cat"),
        result("a dog", "c2"),
        native.ToolAvailabilityDeltaPart(),
        metadata={"m": 1},
    ),
)
"""Each is several: what is said by the app, by a person and by tools."""
