"""LlamaIndex's messages as convmem's, and back, without loss.

What has a neutral form becomes that: text, images, audio, files (documents and videos), reasoning with its signature, citations,
tool calls and their results, so that another framework reads the same conversation. Only what has none is kept in
``extras["llamaindex"]``:

- ``role``: where several of LlamaIndex's roles are one of ours (developer, chatbot, model, function);
- ``additional_kwargs``: without the tool call's id and the name;
- ``blocks``: by position, the fields of a block that its neutral part has no place for, or a whole block that has no neutral part;
- ``message``: the whole message as LlamaIndex itself would store it, where the parts would not make it again exactly.

Three things are stored in another form, the one LlamaIndex's own stores use: an open file becomes its bytes, a pydantic object among
the `additional_kwargs` the dict of its fields, a member of an enum its value. Any other value that is not JSON is refused with the
name of its field.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from io import IOBase
from pathlib import Path
from typing import Any, get_args, overload

from llama_index.core.base.llms.types import (
    AudioBlock,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    ContentBlock,
    DocumentBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    VideoBlock,
)
from pydantic import BaseModel, TypeAdapter, ValidationError

from convmem import AudioPart, Citation, FilePart, ImagePart, InvalidMessage, Message, Part, ReasoningPart, Role, TextPart, ToolCall

FRAMEWORK = "llamaindex"

_ROLES: dict[MessageRole, Role] = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}
_KINDS: tuple[type[BaseModel], ...] = get_args(get_args(ContentBlock)[0])
_BLOCK: TypeAdapter[Any] = TypeAdapter(ContentBlock)
_ANY_BYTES = "application/octet-stream"
_UNTITLED = "input_document"  # what LlamaIndex calls a document without a title
_AUDIO_FORMATS = {"audio/mpeg": "mp3", "audio/x-wav": "wav", "audio/wave": "wav"}


@overload
def from_llamaindex(messages: ChatMessage) -> Message: ...
@overload
def from_llamaindex(messages: Iterable[ChatMessage]) -> list[Message]: ...
def from_llamaindex(messages: ChatMessage | Iterable[ChatMessage]) -> Message | list[Message]:
    """Return one message, or a list of them, in the neutral form; ``to_llamaindex`` makes them again equal to what they were.

    Each is a new message with an id of its own: LlamaIndex's have none.

    Raises:
        InvalidMessage: A value cannot be stored and read back equal; its field is named.
    """
    if isinstance(messages, ChatMessage):
        return _from_one(messages)
    return [_from_one(message) for message in messages]


@overload
def to_llamaindex(messages: Message) -> ChatMessage: ...
@overload
def to_llamaindex(messages: Iterable[Message]) -> list[ChatMessage]: ...
def to_llamaindex(messages: Message | Iterable[Message]) -> ChatMessage | list[ChatMessage]:
    """Return one message, or a list of them, as LlamaIndex's, whichever framework wrote them. New objects each time."""
    if isinstance(messages, Message):
        return _to_one(messages)
    return [_to_one(message) for message in messages]


# From LlamaIndex


def _from_one(given: ChatMessage) -> Message:
    try:
        original = _storable(given)
        message = _neutral(original)
        if _to_one(message) == original:
            return message
        message = message.model_copy(update={"extras": {FRAMEWORK: {"message": _dump_message(original)}}})
    except RecursionError as error:
        field = "message"
        raise InvalidMessage(field, "is nested too deeply, or contains itself") from error
    if _to_one(message) != original:
        field = "message"
        raise InvalidMessage(field, "does not come back from its stored form equal to what it was")
    return message


def _neutral(original: ChatMessage) -> Message:
    kwargs = dict(original.additional_kwargs)
    parts: list[Part] = []
    calls: list[ToolCall] = []
    leftover: dict[str, Any] = {}
    for i, block in enumerate(original.blocks):
        part = _part(block)
        if isinstance(part, ToolCall):
            calls.append(part)
        elif part is not None:
            parts.append(part)
        kept = _leftover(block, part)
        if kept:
            leftover[str(i)] = kept
    extras: dict[str, Any] = {"blocks": leftover} if leftover else {}
    role = _ROLES[original.role]
    if original.role.value != role:
        extras["role"] = original.role.value
    tool_call_id = kwargs.pop("tool_call_id") if isinstance(kwargs.get("tool_call_id"), str) else None
    name = kwargs.pop("name") if isinstance(kwargs.get("name"), str) else None
    if kwargs:
        extras["additional_kwargs"] = kwargs
    text = parts[0].text if len(original.blocks) == 1 and parts and isinstance(parts[0], TextPart) and not parts[0].citations else None
    return Message(
        role=role,
        content=tuple(parts) if text is None or leftover else text,
        tool_calls=tuple(calls or _older_calls(kwargs)),
        tool_call_id=tool_call_id,
        name=name,
        extras={FRAMEWORK: extras} if extras else {},
    )


def _part(block: Any) -> Part | ToolCall | None:  # noqa: PLR0911 - one for each kind of block
    """Return the neutral form of a block; None when it has none."""
    match block:
        case TextBlock():
            return TextPart(text=block.text)
        case ImageBlock():
            return _media(ImagePart, block, block.image, block.image_mimetype)
        case AudioBlock():
            return _media(AudioPart, block, block.audio, _audio_type(block.format))
        case VideoBlock():
            return _media(FilePart, block, block.video, block.video_mimetype or "video/*")
        case DocumentBlock():
            title = None if block.title == _UNTITLED else block.title
            return _media(FilePart, block, block.data, block.document_mimetype, name=title)
        case ThinkingBlock():
            signature = block.additional_information.get("signature")
            return ReasoningPart(text=block.content or "", signature=signature if isinstance(signature, str) else None)
        case ToolCallBlock():
            return ToolCall(id=block.tool_call_id or "", name=block.tool_name, arguments=block.tool_kwargs)
        case CitableBlock():
            return TextPart(text="\n".join(inner.text for inner in block.content if isinstance(inner, TextBlock)))
        case CitationBlock():
            quote = block.cited_content.text if isinstance(block.cited_content, TextBlock) else None
            return TextPart(text="", citations=(Citation(url=block.source, title=block.title, quote=quote),))
        case _:
            return None


def _media(kind: Callable[..., Part], block: Any, data: object, media_type: str | None, **fields: Any) -> Part | None:
    if isinstance(data, bytes):
        try:
            return kind(data=b64decode(data, validate=True), media_type=media_type or _ANY_BYTES, **fields)
        except ValueError:  # assigned after the block was made, past its validation
            return None
    if block.url is not None:
        return kind(url=str(block.url), media_type=media_type, **fields)
    if block.path is not None:
        return kind(url=Path(block.path).absolute().as_uri(), media_type=media_type, **fields)
    return None


def _audio_type(name: str | None) -> str | None:
    return {None: None, "mp3": "audio/mpeg"}.get(name, f"audio/{name}")


def _leftover(block: Any, part: Part | ToolCall | None) -> dict[str, Any]:
    """Return what the part's own block would lack of this one: some of its fields, or all of them."""
    whole = _dump_block(block)
    made = _blocks_of(part)
    if len(made) == 1 and type(made[0]) is type(block):
        if made[0] == block:
            return {}
        theirs = _dump_block(made[0])
        some = {name: value for name, value in whole.items() if value != theirs.get(name)}
        if _patched(made[0], some) == block:
            return some
    return whole


def _older_calls(kwargs: dict[str, Any]) -> list[ToolCall]:
    """Return the calls that LLM classes before `ToolCallBlock` put among the additional_kwargs, in OpenAI's form."""
    listed = kwargs.get("tool_calls")
    calls: list[ToolCall] = []
    for call in listed if isinstance(listed, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(call.get("id"), str) or not isinstance(function.get("name"), str):
            return []
        calls.append(ToolCall(id=call["id"], name=function["name"], arguments=_arguments(function.get("arguments"))))
    return calls


def _arguments(given: object) -> dict[str, Any] | str:
    if isinstance(given, dict):
        return given
    if not isinstance(given, str):
        return {}
    try:
        parsed = json.loads(given)
    except ValueError:
        return given
    return parsed if isinstance(parsed, dict) else given


# To LlamaIndex


def _to_one(message: Message) -> ChatMessage:
    extras = message.extras.get(FRAMEWORK)
    extras = extras if isinstance(extras, dict) else {}
    if "message" in extras:
        return _load_message(extras["message"])
    kwargs: dict[str, Any] = _copied(extras.get("additional_kwargs", {}))
    calls: tuple[ToolCall, ...] = message.tool_calls
    if calls and calls == tuple(_older_calls(kwargs)):
        calls = ()
    if message.tool_call_id is not None:
        kwargs["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        kwargs["name"] = message.name
    built = ChatMessage(role=extras.get("role", message.role), blocks=list(_blocks(message, calls, extras.get("blocks", {}))))
    built.additional_kwargs = kwargs  # past the validator that would read images out of them once more
    return built


def _blocks(message: Message, calls: tuple[ToolCall, ...], kept: dict[str, Any]) -> Iterator[Any]:
    """Return the blocks in order, each with what was kept of it beside its part."""
    content = (TextPart(text=message.content),) if isinstance(message.content, str) else message.content
    if calls and message.content == "":
        content = ()
    position = 0

    def whole() -> Iterator[Any]:
        """Return the blocks that stand here and have no part."""
        nonlocal position
        while (native := kept.get(str(position))) and "block_type" in native and _part(block := _load_block(native)) is None:
            position += 1
            yield block

    for part in (*content, *calls):
        yield from whole()
        for made in _blocks_of(part):
            native = kept.get(str(position), {})
            position += 1
            yield _load_block(native) if "block_type" in native else _patched(made, native)
    yield from whole()


def _blocks_of(part: Any) -> list[Any]:  # noqa: PLR0911 - one for each kind of part
    """Return the blocks of a part: one, but for text with citations, which LlamaIndex has as blocks of their own."""
    match part:
        case TextPart():
            text = [TextBlock(text=part.text)] if part.text or not part.citations else []
            return [*text, *map(_citation, part.citations)]
        case ImagePart():
            return [_media_block(ImageBlock, "image", part, image_mimetype=_known(part.media_type))]
        case AudioPart():
            return [_media_block(AudioBlock, "audio", part, format=_audio_format(part.media_type))]
        case FilePart() if (part.media_type or "").startswith("video/"):
            mimetype = None if part.media_type == "video/*" else part.media_type
            return [_media_block(VideoBlock, "video", part, video_mimetype=mimetype)]
        case FilePart():
            return [_media_block(DocumentBlock, "data", part, title=part.name, document_mimetype=_known(part.media_type))]
        case ReasoningPart():
            signed = {} if part.signature is None else {"signature": part.signature}
            return [ThinkingBlock(content=part.text, additional_information=signed)]
        case ToolCall():
            return [ToolCallBlock(tool_call_id=part.id, tool_name=part.name, tool_kwargs=_copied(part.arguments))]
        case _:
            return []


def _citation(citation: Citation) -> CitationBlock:
    place = {name: value for name in ("start", "end") if (value := getattr(citation, name)) is not None}
    return CitationBlock(
        cited_content=TextBlock(text=citation.quote or ""),
        source=citation.url or "",
        title=citation.title or "",
        additional_location_info=place,
    )


def _media_block(kind: Any, field: str, part: ImagePart | AudioPart | FilePart, **fields: Any) -> Any:
    if part.data is not None:  # encoded: LlamaIndex takes bytes that happen to be base64 for encoded already
        return kind(**{field: b64encode(part.data)}, **fields)
    try:
        return kind(url=part.url, **fields)
    except ValidationError:  # not a URL to pydantic; it was to whoever wrote it
        block = kind(**fields)
        block.url = part.url
        return block


def _known(media_type: str | None) -> str | None:
    return None if media_type == _ANY_BYTES else media_type


def _audio_format(media_type: str | None) -> str | None:
    media_type = _known(media_type)
    return None if media_type is None else _AUDIO_FORMATS.get(media_type, media_type.removeprefix("audio/"))


# The native form


def _dump_message(message: ChatMessage) -> dict[str, Any]:
    return {
        "role": message.role.value,
        "additional_kwargs": message.additional_kwargs,
        "blocks": [_dump_block(block) for block in message.blocks],
    }


def _load_message(native: dict[str, Any]) -> ChatMessage:
    built = ChatMessage(role=native["role"], blocks=[_load_block(block) for block in native["blocks"]])
    built.additional_kwargs = _copied(native["additional_kwargs"])
    return built


def _dump_block(block: Any) -> dict[str, Any]:
    """Return a block's fields as values that can be stored: what ``model_dump(mode="json")`` gives, and what is plain as it is."""
    fields = {name: _dump_value(getattr(block, name)) for name in type(block).model_fields}
    if isinstance(block, DocumentBlock) and isinstance(block.path, str):
        fields["path_is_text"] = True
    return fields


def _dump_value(value: object) -> Any:
    if isinstance(value, BaseModel):
        return _dump_block(value)
    if isinstance(value, list):
        return [_dump_value(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str | bytes | dict):
        return value
    return str(value)  # a path or a URL


def _load_block(native: dict[str, Any]) -> Any:
    """Make a block again. Its file need not exist any more: LlamaIndex's own validation would refuse the message then."""
    fields = _copied(native)
    path = fields.pop("path", None)
    for name in ("content", "cited_content"):  # of citable and citation blocks
        inner = fields.get(name)
        if isinstance(inner, dict):
            fields[name] = _load_block(inner)
        elif isinstance(inner, list):
            fields[name] = [_load_block(item) for item in inner]
    block = _BLOCK.validate_python(fields)
    if path is not None:
        block.path = path if fields.get("path_is_text") else Path(path)
    for name in type(block).model_fields:
        value = fields.get(name, block)
        if name != "url" and (value is None or isinstance(value, str | bytes | int)):
            setattr(block, name, value)  # what the validators guess where nothing was given
    return block


def _patched(block: Any, fields: dict[str, Any]) -> Any:
    """Return a block with some fields replaced by what was kept of them."""
    if not fields or not set(fields) <= {*type(block).model_fields, "path_is_text"}:
        return block
    try:
        return _load_block({**_dump_block(block), **fields})
    except ValidationError:
        return block


# What can be stored


def _storable(message: ChatMessage) -> ChatMessage:
    """Return a copy that shares nothing with the message, in which every value can be stored.

    Raises:
        InvalidMessage: One cannot.
    """
    if type(message) is not ChatMessage:
        field = "message"
        raise InvalidMessage(field, f"a {type(message).__name__} would come back as a ChatMessage; put what it adds into additional_kwargs")
    copy = ChatMessage(role=message.role)
    copy.blocks = [_storable_block(block, f"blocks[{i}]") for i, block in enumerate(message.blocks)]
    copy.additional_kwargs = _plain(message.additional_kwargs, "additional_kwargs")
    return copy


def _storable_block(block: Any, field: str) -> Any:
    if type(block) not in _KINDS:
        raise InvalidMessage(field, f"a {type(block).__name__} is no content block that LlamaIndex could read again")
    copy = block.model_copy()
    for name in type(block).model_fields:
        value, where = getattr(block, name), f"{field}.{name}"
        if isinstance(value, IOBase):
            setattr(copy, name, _read(value, where))
        elif isinstance(value, BaseModel):
            setattr(copy, name, value.model_copy() if type(value) not in _KINDS else _storable_block(value, where))
        elif isinstance(value, dict):
            setattr(copy, name, _plain(value, where))
        elif isinstance(value, list):
            setattr(copy, name, [_storable_block(item, f"{where}[{i}]") for i, item in enumerate(value)])
    return copy


def _read(file: Any, field: str) -> bytes:
    try:
        at = file.tell()
        file.seek(0)
        data = file.read()
        file.seek(at)
    except (OSError, ValueError) as error:
        raise InvalidMessage(field, f"the file cannot be read from its beginning ({error}); pass its bytes") from error
    if not isinstance(data, bytes):
        raise InvalidMessage(field, "the file is not open for bytes; open it with 'rb', or pass its bytes")
    return b64encode(data)


def _plain(value: Any, field: str) -> Any:
    """Return a copy of a value made of what can be stored.

    Raises:
        InvalidMessage: It has something else in it.
    """
    match value:
        case Enum():
            return _plain(value.value, field)
        case None | bool() | int() | float() | str() | bytes():
            return value
        case list():
            return [_plain(item, f"{field}[{i}]") for i, item in enumerate(value)]
        case dict():
            for key in value:
                if not isinstance(key, str):
                    raise InvalidMessage(field, f"a key is a {type(key).__name__}; the keys of a dict must be text")
            return {str(key.value if isinstance(key, Enum) else key): _plain(item, f"{field}.{key}") for key, item in value.items()}
        case BaseModel():
            return _plain({name: getattr(value, name) for name in type(value).model_fields} | (value.model_extra or {}), field)
        case _:
            reason = f"a {type(value).__name__} cannot be stored; use text, numbers, booleans, None, bytes, lists and dicts"
            raise InvalidMessage(field, reason)


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copied(item) for item in value]
    return value
