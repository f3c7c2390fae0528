"""The pieces of Pydantic AI's messages as parts of convmem's, and back. What a piece says beyond its part is not looked at here.

Read from the JSON form, which is what the framework itself stores; written as the framework's own objects.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode
from typing import Any, TypeAlias

from pydantic_ai import messages as native

from convmem import AudioPart, Citation, FilePart, ImagePart, Part, ReasoningPart, TextPart, ToolCall

Document: TypeAlias = dict[str, Any]
_PARTS_OF_URLS: dict[str, type[ImagePart | AudioPart | FilePart]] = {
    "image-url": ImagePart,
    "audio-url": AudioPart,
    "video-url": FilePart,
    "document-url": FilePart,
}


def media_part(item: Any) -> Part | None:
    """Return a picture, a recording or another file; None when it is none, such as one known only by its id at a provider."""
    match item:
        case {"kind": "binary", "data": str(data), "media_type": str(kind)}:
            family = kind.partition("/")[0]
            of_kind: type[ImagePart | AudioPart | FilePart] = {"image": ImagePart, "audio": AudioPart}.get(family, FilePart)  # type: ignore[assignment]
            return of_kind(data=urlsafe_b64decode(data), media_type=kind)
        case {"kind": str(kind), "url": str(url)} if kind in _PARTS_OF_URLS:
            return _PARTS_OF_URLS[kind](url=url, media_type=item.get("media_type"))
    return None


def content_part(item: Any) -> Part | None:
    """Return an item of what a person says; None for a mark, such as where a provider is to cache."""
    match item:
        case str(text) | {"kind": "text-content" | "structured-content", "content": str(text)}:
            return TextPart(text=text)
    return media_part(item)


def result_part(item: Any) -> Part:
    """Return an item of what a tool has returned: media as what they are, everything else as the text the model is sent."""
    return media_part(item) or TextPart(text=item if isinstance(item, str) else as_text(item))


def as_text(value: Any) -> str:
    """Return what a tool has returned as the model is sent it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def to_content(part: Part) -> Any:
    """Return an item of what a person says, or a tool returns; None when the framework has none for it there."""
    match part:
        case TextPart():
            return part.text
        case ImagePart() | AudioPart() | FilePart():
            return _file(part)
    return None


def _file(part: ImagePart | AudioPart | FilePart) -> Any:
    if part.data is not None:
        return native.BinaryContent.narrow_type(native.BinaryContent(part.data, media_type=part.media_type or ""))
    url, kind = part.url or "", part.media_type
    if isinstance(part, ImagePart):
        return native.ImageUrl(url, media_type=kind)
    if isinstance(part, AudioPart):
        return native.AudioUrl(url, media_type=kind)
    return (native.VideoUrl if (kind or "").startswith("video/") else native.DocumentUrl)(url, media_type=kind)


def said_part(document: Document) -> Part | None:
    """Return what a model said: text, a thought, a file; None for what only its provider can read."""
    match document:
        case {"part_kind": "text", "content": str(text)}:
            return TextPart(text=text, citations=tuple(map(_citation, document.get("citations") or ())))
        case {"part_kind": "thinking", "content": str(text)}:
            return ReasoningPart(text=text, signature=document.get("signature"))
        case {"part_kind": "file", "content": dict(content)}:
            return media_part(content)
        case {"part_kind": "speech", "transcript": str(text)}:
            return TextPart(text=text)
    return None


def to_said(part: Part) -> native.TextPart | native.ThinkingPart | native.FilePart | None:
    """Return what a model said; None when the framework has no form for it there, such as a picture by its URL."""
    match part:
        case TextPart():
            return native.TextPart(part.text, citations=[_native_citation(one) for one in part.citations] or None)
        case ReasoningPart():
            return native.ThinkingPart(part.text, signature=part.signature)
        case ImagePart(data=bytes()) | AudioPart(data=bytes()) | FilePart(data=bytes()):
            return native.FilePart(_file(part))
    return None


def _citation(document: Any) -> Citation:
    """Return a citation by its first source, which is the only one for most models."""
    source, anchor = document["sources"][0], document.get("anchor") or {}
    quotes = source.get("excerpts") or [None]
    return Citation(start=anchor.get("start"), end=anchor.get("end"), url=source.get("url"), title=source.get("title"), quote=quotes[0])


def _native_citation(citation: Citation) -> native.Citation:
    quotes = [] if citation.quote is None else [citation.quote]
    source: native.WebCitationSource | native.DocumentCitationSource
    if citation.url is None:
        source = native.DocumentCitationSource(title=citation.title or "?", excerpts=quotes)
    else:
        source = native.WebCitationSource(citation.url, title=citation.title, excerpts=quotes)
    start, end = citation.start, citation.end
    anchored = start is not None and end is not None and 0 <= start < end
    return native.Citation([source], anchor=native.ContentCitationAnchor(start=start or 0, end=end or 0) if anchored else None)


def call(document: Document) -> ToolCall | None:
    """Return the call of a tool the app has; one that its provider runs comes with its result, and is nobody else's business."""
    match document:
        case {"part_kind": "tool-call", "tool_name": str(name), "tool_call_id": str(identifier)}:
            return ToolCall(id=identifier, name=name, arguments=_arguments(document.get("args")))
    return None


def _arguments(given: Any) -> dict[str, Any] | str:
    if not isinstance(given, str):
        return given or {}
    try:
        arguments = json.loads(given)
    except ValueError:
        return given
    return arguments if isinstance(arguments, dict) else given


def to_call(call: ToolCall, *, as_json: bool) -> native.ToolCallPart:
    """Return the call, its arguments as the JSON text most providers send, or as what that says."""
    arguments = call.arguments
    return native.ToolCallPart(call.name, as_text(arguments) if as_json and isinstance(arguments, dict) else arguments, call.id)
