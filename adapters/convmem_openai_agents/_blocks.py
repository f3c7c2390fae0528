"""The content of an item, block by block, to parts and back. What a block says beyond its part is not looked at here."""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from typing import Any

from convmem import AudioPart, Citation, FilePart, ImagePart, Part, TextPart

Block = dict[str, Any]
_MPEG = "audio/mpeg"


def to_part(block: Any) -> Part | None:  # noqa: PLR0911 - one for each kind of block
    """Return the part a block is; None when it is none, such as a file known only by its id at OpenAI."""
    if not isinstance(block, dict):
        return None
    match block:
        case {"type": "input_text" | "text" | "summary_text", "text": str(text)}:
            return TextPart(text=text)
        case {"type": "output_text", "text": str(text)}:
            sources = block.get("annotations")
            return TextPart(text=text, citations=tuple(filter(None, map(_citation, sources if isinstance(sources, list) else ()))))
        case {"type": "refusal", "refusal": str(text)}:
            return TextPart(text=text)
        case {"type": "input_image" | "computer_screenshot", "image_url": str(url)}:
            return ImagePart(**_of_url(url))
        case {"type": "input_file", "file_data": str(url)} | {"type": "input_file", "file_url": str(url)}:
            name = block.get("filename")
            return FilePart(**_of_url(url), name=name if isinstance(name, str) else None)
        case {"type": "input_audio", "input_audio": {"data": str(data), "format": str(kind)}}:
            decoded = _decoded(data)
            return None if decoded is None else AudioPart(data=decoded, media_type=_MPEG if kind == "mp3" else f"audio/{kind}")
    return None


def to_block(part: Part, *, said_by_model: bool = False) -> Block | None:  # noqa: PLR0911 - one for each kind of part
    """Return the block of a part; None when OpenAI has none for it there: a model's message is text."""
    if isinstance(part, TextPart):
        if said_by_model:
            return {"type": "output_text", "text": part.text, "annotations": [_annotation(part, one) for one in part.citations if one.url]}
        return {"type": "input_text", "text": part.text}
    if said_by_model:
        return None
    match part:
        case ImagePart():
            return {"type": "input_image", "image_url": url_of(part), "detail": "auto"}
        case FilePart():
            place = "file_url" if part.data is None and not (part.url or "").startswith("data:") else "file_data"
            return {"type": "input_file", place: url_of(part)} | ({} if part.name is None else {"filename": part.name})
        case AudioPart(data=bytes(data)):
            kind = "mp3" if part.media_type == _MPEG else (part.media_type or "").removeprefix("audio/").removeprefix("x-")
            return {"type": "input_audio", "input_audio": {"data": b64encode(data).decode(), "format": kind}}
    return None


def url_of(part: ImagePart | FilePart) -> str:
    """Return where a picture or a file is, or all of it as a ``data:`` URL."""
    if part.data is None:
        return part.url or ""
    return f"data:{part.media_type};base64,{b64encode(part.data).decode()}"


def _of_url(url: str) -> dict[str, Any]:
    """Return the bytes in a ``data:`` URL, where it is the one that would be made of them again; else the URL."""
    head, comma, encoded = url.partition(";base64,")
    media_type = head.removeprefix("data:")
    if comma and head.startswith("data:") and media_type and ";" not in media_type and (data := _decoded(encoded)) is not None:
        return {"data": data, "media_type": media_type}
    return {"url": url}


def _decoded(encoded: str) -> bytes | None:
    try:
        data = b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if b64encode(data).decode() == encoded else None


def _citation(annotation: Any) -> Citation | None:
    match annotation:
        case {"type": "url_citation", "start_index": int(start), "end_index": int(end), "url": str(url), "title": str(title)}:
            return Citation(start=start, end=end, url=url, title=title)
    return None


def _annotation(part: TextPart, citation: Citation) -> Block:
    """Return OpenAI's form, in which none of the fields may be missing."""
    return {
        "type": "url_citation",
        "start_index": citation.start or 0,
        "end_index": len(part.text) if citation.end is None else citation.end,
        "url": citation.url,
        "title": citation.title or "",
    }
