"""The content of a LangChain message, block by block, to parts and back.

A block of the standard form (``langchain_core.messages.content``) is a part and nothing else. The other spellings of the same
thing (LangChain v0, OpenAI, Anthropic, a bare string) are a part and the name of the spelling; keys that have no neutral form
are kept beside it, and a block that has none is kept whole.
"""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeAlias

from convmem import AudioPart, Citation, FilePart, ImagePart, InvalidMessage, Part, ReasoningPart, TextPart

from ._values import pack, unpack

Content: TypeAlias = str | list[str | dict[Any, Any]]
Block: TypeAlias = str | dict[Any, Any]
Media: TypeAlias = ImagePart | AudioPart | FilePart

TOOL_BLOCKS = ("tool_call", "tool_call_chunk", "invalid_tool_call", "tool_use", "function_call")
"""Blocks that repeat what stands in ``tool_calls``."""
_MEDIA: dict[str, type[Media]] = {"image": ImagePart, "audio": AudioPart, "file": FilePart, "video": FilePart, "document": FilePart}


def to_parts(content: object) -> tuple[str | tuple[Part, ...], list[Any]]:
    """Return neutral content, and what of each block it does not say; an empty list when it says all.

    An entry is None for a part that says all; ``{"form": …, "more": …}`` for one in another spelling or with more keys;
    ``{"part": block}`` for one that is only an extract of its block; ``{"block": block}`` for a block that is no part.

    Raises:
        InvalidMessage: A value in a block cannot be stored.
    """
    if isinstance(content, str):
        return str.__str__(content), []
    if not isinstance(content, list):
        field = "content"
        raise InvalidMessage(field, f"a {type(content).__name__} is no content; use text, or a list of text and blocks")
    parts: list[Part] = []
    entries: list[Any] = []
    for i, block in enumerate(content):
        part = _read(block)
        if part is not None:
            parts.append(part)
        entries.append(_entry(block, part, f"content[{i}]"))
    return tuple(parts), entries if any(entry is not None for entry in entries) else []


def to_content(content: str | Sequence[Part], entries: Sequence[Any], without: Collection[str] = ()) -> Content:
    """Return LangChain's content; `entries` as `to_parts` gave them, or none, which means the standard form.

    Args:
        content: Neutral.
        entries: One for each block.
        without: Ids of tool calls whose blocks are left out.
    """
    if isinstance(content, str):
        return content
    if not entries:
        return [_standard(part) for part in content]
    parts = iter(content)
    blocks: list[Block] = []
    for entry in entries:
        if entry is not None and "block" in entry:
            block = unpack(entry["block"])
            if not (without and _call_of(block) in without):
                blocks.append(block)
            continue
        part = next(parts)
        if entry is None:
            blocks.append(_standard(part))
        elif "part" in entry:
            blocks.append(unpack(entry["part"]))
        else:
            blocks.append(_in_form(part, entry))
    return blocks


def names_calls(content: object) -> bool:
    """Return whether some block repeats a tool call."""
    return isinstance(content, list) and any(isinstance(block, dict) and block.get("type") in TOOL_BLOCKS for block in content)


def _call_of(block: Block) -> str | None:
    if isinstance(block, dict) and block.get("type") in TOOL_BLOCKS:
        call = block.get("call_id") or block.get("id")
        return call if isinstance(call, str) else None
    return None


# Reading


def _read(block: Block) -> Part | None:
    """Return the part a block is, if it is one."""
    if isinstance(block, str):
        return TextPart(text=str.__str__(block))
    kind = block.get("type")
    reader = _READERS.get(kind) if isinstance(kind, str) else None
    try:
        return None if reader is None else reader(block)
    except (InvalidMessage, KeyError, TypeError, ValueError, AttributeError):  # not the form its type promises: it is kept whole
        return None


def _read_text(block: dict[Any, Any]) -> Part:
    sources = block.get("annotations") or block.get("citations") or []
    return TextPart(text=block["text"], citations=tuple(citation for source in sources if (citation := _citation(source))))


def _citation(source: dict[str, Any]) -> Citation | None:
    if not ("citation" in source.get("type", "") or "location" in source.get("type", "")):
        return None
    return Citation(
        start=source.get("start_index"),
        end=source.get("end_index"),
        url=source.get("url"),
        title=source.get("title") or source.get("document_title"),
        quote=source.get("cited_text"),
    )


def _read_reasoning(block: dict[Any, Any]) -> Part:
    extras = block.get("extras")
    signature = extras.get("signature") if isinstance(extras, dict) else None
    return ReasoningPart(text=block.get("reasoning", ""), signature=signature)


def _read_thinking(block: dict[Any, Any]) -> Part:
    return ReasoningPart(text=block["thinking"], signature=block.get("signature"))


def _read_media(block: dict[Any, Any]) -> Part | None:
    kind = _MEDIA[block["type"]]
    name = block.get("filename") or block.get("name") or block.get("title")
    extra = {"name": name} if kind is FilePart and isinstance(name, str) else {}
    source = block.get("source")
    if isinstance(source, dict):  # Anthropic
        return _media(kind, source.get("url"), source.get("data"), source.get("media_type"), extra)
    if isinstance(block.get("file"), dict):  # OpenAI
        file = block["file"]
        return FilePart(url=file["file_data"], name=file.get("filename"))
    data = block.get("base64") if "base64" in block else block.get("data")
    return _media(kind, block.get("url"), data, block.get("mime_type"), extra)


def _media(kind: type[Media], url: Any, data: Any, media_type: Any, extra: dict[str, Any]) -> Part:
    if isinstance(data, str):
        try:
            data = b64decode(data, validate=True)
        except binascii.Error as error:
            raise ValueError from error
    return kind(url=url, data=data, media_type=media_type, **extra)


def _read_image_url(block: dict[Any, Any]) -> Part:
    image = block["image_url"]
    return ImagePart(url=image["url"] if isinstance(image, dict) else image)


def _read_input_audio(block: dict[Any, Any]) -> Part:
    audio = block["input_audio"]
    return _media(AudioPart, None, audio["data"], f"audio/{audio['format']}", {})


_READERS: dict[str, Callable[[dict[Any, Any]], Part | None]] = {
    "text": _read_text,
    "text-plain": lambda block: TextPart(text=block["text"]),
    "reasoning": _read_reasoning,
    "thinking": _read_thinking,
    **dict.fromkeys(_MEDIA, _read_media),
    "image_url": _read_image_url,
    "input_audio": _read_input_audio,
}


# Remembering what a part does not say


def _entry(block: Block, part: Part | None, field: str) -> dict[str, Any] | None:
    if part is None:
        return {"block": pack(block, field)}
    standard = _standard(part)
    if block == standard:
        return None
    if isinstance(block, str):
        return {"form": "string"}
    for form, writer in _FORMS.items():
        written = writer(part)
        more = None if written is None else _difference(block, written)
        if more is not None:
            entry = {"form": form} | ({"more": pack(more, field)} if more else {})
            if _in_form(part, entry) == block:
                return entry
    return {"part": pack(block, field)}


def _in_form(part: Part, entry: dict[str, Any]) -> Block:
    form = entry["form"]
    if form == "string":
        assert isinstance(part, TextPart)
        return part.text
    return _merged(_FORMS[form](part) or {}, unpack(entry.get("more", {})))


def _difference(block: dict[Any, Any], written: dict[str, Any]) -> dict[Any, Any] | None:
    """Return what the block has beyond what is written; None when something written is not in it."""
    more: dict[Any, Any] = {name: value for name, value in block.items() if name not in written}
    for name, value in written.items():
        there = block.get(name)
        if there == value:
            continue
        inner = _difference(there, value) if isinstance(there, dict) and isinstance(value, dict) else None
        if inner is None:
            return None
        more[name] = inner
    return more


def _merged(written: dict[Any, Any], more: dict[Any, Any]) -> dict[Any, Any]:
    inner = {name: _merged(written[name], value) for name, value in more.items() if name in written}
    return {**written, **more, **inner}


# Writing


def _standard(part: Part) -> dict[str, Any]:
    match part:
        case TextPart():
            annotations = [_annotation(citation) for citation in part.citations]
            return {"type": "text", "text": part.text} | ({"annotations": annotations} if annotations else {})
        case ReasoningPart():
            extras = {} if part.signature is None else {"extras": {"signature": part.signature}}
            return {"type": "reasoning", "reasoning": part.text, **extras}
        case ImagePart() | AudioPart() | FilePart():
            name = {"filename": part.name} if isinstance(part, FilePart) and part.name is not None else {}
            return {"type": part.type, **_source(part, "base64", "mime_type"), **name}
    return {"type": "non_standard", "value": {"type": part.type, **part.fields}}


def _annotation(citation: Citation) -> dict[str, Any]:
    named = {
        "start_index": citation.start,
        "end_index": citation.end,
        "url": citation.url,
        "title": citation.title,
        "cited_text": citation.quote,
    }
    return {"type": "citation", **{name: value for name, value in named.items() if value is not None}}


def _source(part: Media, data: str, media_type: str) -> dict[str, Any]:
    where: dict[str, Any] = {"url": part.url} if part.data is None else {data: b64encode(part.data).decode()}
    return where if part.media_type is None else {**where, media_type: part.media_type}


def _plain(part: Part) -> dict[str, Any] | None:
    """Return the standard form without what has several spellings, so that more keys can say it."""
    match part:
        case TextPart():
            return {"type": "text", "text": part.text}
        case ReasoningPart():
            return {"type": "reasoning", "reasoning": part.text}
        case FilePart():
            return {"type": "file", **_source(part, "base64", "mime_type")}
    return None


def _v0(part: Part) -> dict[str, Any] | None:
    if not isinstance(part, ImagePart | AudioPart | FilePart):
        return None
    return {"type": part.type, "source_type": "url" if part.data is None else "base64", **_source(part, "data", "mime_type")}


def _openai(part: Part) -> dict[str, Any] | None:
    match part:
        case ImagePart() if part.data is None:
            return {"type": "image_url", "image_url": {"url": part.url}}
        case AudioPart() if part.data is not None and (part.media_type or "").startswith("audio/"):
            data = b64encode(part.data).decode()
            return {"type": "input_audio", "input_audio": {"data": data, "format": (part.media_type or "").removeprefix("audio/")}}
        case FilePart() if part.data is None:
            return {"type": "file", "file": {"file_data": part.url} | ({} if part.name is None else {"filename": part.name})}
    return None


def _anthropic(part: Part) -> dict[str, Any] | None:
    match part:
        case ReasoningPart():
            return {"type": "thinking", "thinking": part.text} | ({} if part.signature is None else {"signature": part.signature})
        case ImagePart() | FilePart():
            kind = "image" if isinstance(part, ImagePart) else "document"
            source_type = "url" if part.data is None else "base64"
            return {"type": kind, "source": {"type": source_type, **_source(part, "data", "media_type")}}
    return None


_FORMS: dict[str, Callable[[Part], dict[str, Any] | None]] = {
    "standard": _standard,
    "plain": _plain,
    "v0": _v0,
    "openai": _openai,
    "anthropic": _anthropic,
    "openai-flat": lambda part: {"type": "image_url", "image_url": part.url} if isinstance(part, ImagePart) and part.data is None else None,
    "text-plain": lambda part: {"type": "text-plain", "text": part.text} if isinstance(part, TextPart) else None,
    "video": lambda part: {"type": "video", **_source(part, "base64", "mime_type")} if isinstance(part, FilePart) else None,
}
