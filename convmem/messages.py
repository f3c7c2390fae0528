"""Message: one thing said in a conversation, in a form every framework's own can be converted to and from.

What can be constructed comes back from a store exactly; what cannot be stored is refused with the name of the field before any
model runs. The stored form is JSON in UTF-8 (RFC 8259), versioned by the entry it stands in. Values JSON has no form for are
objects with one key that begins with ``$``: ``{"$bytes": base64}``, ``{"$float": "nan"}``, ``{"$text": base64}`` for text with
lone surrogates, and ``{"$object": [[key, value], ...]}`` for an object that could be mistaken for one of these.
"""

from __future__ import annotations

import json
import math
import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timezone
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, get_args

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetPydanticSchema,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, SchemaValidator, core_schema, from_json, to_json

from convmem.exceptions import InvalidMessage
from convmem.frozen_dict import FrozenDict
from convmem.identifiers import new_message_id

T = TypeVar("T")
Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
State: TypeAlias = Literal["complete", "interrupted", "running"]

_ANY_STRING = core_schema.custom_error_schema(
    core_schema.union_schema([core_schema.str_schema(strict=True), core_schema.is_instance_schema(str)], mode="left_to_right"),
    custom_error_type="text_type",
    custom_error_message="must be a string",
)
Text: TypeAlias = Annotated[
    str, GetPydanticSchema(lambda _source, _handler: core_schema.json_or_python_schema(core_schema.str_schema(), _ANY_STRING))
]
"""Any Python string. pydantic's own refuses lone surrogates, which models and browsers do produce."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def _tuple(value: object) -> object:
    """Accept a list for a tuple, and nothing that merely iterates."""
    return tuple(value) if isinstance(value, list) else value


class Citation(_Frozen):
    """Where a piece of text comes from.

    Attributes:
        start: Of the cited span in the part's text, in characters; None when the whole part is meant.
        end: Just behind that span.
        url: Of the source.
        title: Of the source.
        quote: What the source says.
    """

    start: int | None = None
    end: int | None = None
    url: Text | None = None
    title: Text | None = None
    quote: Text | None = None


class TextPart(_Frozen):
    """A piece of text among other parts, with its sources."""

    type: Literal["text"] = "text"
    text: Text
    citations: Annotated[tuple[Citation, ...], BeforeValidator(_tuple)] = ()


class ReasoningPart(_Frozen):
    """What a model thought on the way, as far as it shows.

    Attributes:
        text: Empty when only a signature is shown.
        signature: Opaque; some models refuse to go on without it.
    """

    type: Literal["reasoning"] = "reasoning"
    text: Text = ""
    signature: Text | None = None


class _Media(_Frozen):
    """Something by URL or by its bytes: exactly one of the two.

    Attributes:
        url: Where it is; may be a ``data:`` URL.
        data: Its bytes.
        media_type: Such as ``image/png``; needed with `data`.
    """

    url: Text | None = None
    data: bytes | None = None
    media_type: Text | None = None

    def model_post_init(self, _context: object, /) -> None:
        """Refuse what is nowhere, or in two places."""
        field: str = getattr(self, "type", "media")
        if (self.url is None) == (self.data is None):
            raise InvalidMessage(field, "give either url or data")
        if self.data is not None and self.media_type is None:
            name = f"{field}.media_type"
            raise InvalidMessage(name, "data needs its media type, such as image/png")


class ImagePart(_Media):
    """An image, by URL or by its bytes."""

    type: Literal["image"] = "image"


class AudioPart(_Media):
    """A recording, by URL or by its bytes."""

    type: Literal["audio"] = "audio"


class FilePart(_Media):
    """Any other file, by URL or by its bytes.

    Attributes:
        name: The file's name.
    """

    type: Literal["file"] = "file"
    name: Text | None = None


class UnknownPart(_Frozen):
    """A part written by a newer version of convmem, kept as it was stored.

    Attributes:
        type: Its type there.
        fields: Everything else.
    """

    type: Text
    fields: dict[Text, Any] = Field(default_factory=dict)


Part: TypeAlias = TextPart | ImagePart | AudioPart | FilePart | ReasoningPart | UnknownPart


class ToolCall(_Frozen):
    """A model's wish to have a tool called.

    Attributes:
        id: By which the result refers to it.
        name: The tool's name.
        arguments: As parsed; the model's own text where that was not a JSON object.
    """

    id: Text
    name: Text
    arguments: dict[Text, Any] | Text = Field(default_factory=dict)


def _with_offset(moment: datetime) -> datetime:
    """Keep the offset and drop the zone's name: in an hour that comes twice, such a time is equal to no other zone's (PEP 495)."""
    offset = moment.utcoffset()
    if offset is not None and offset.microseconds:
        return moment.astimezone(UTC)  # datetime.fromisoformat reads an offset of less than a second as none
    if isinstance(moment.tzinfo, timezone) or offset is None:
        return moment
    return moment.replace(tzinfo=timezone(offset), fold=0)


_WRITTEN_MOMENT = r"^[0-9W-]+T[0-9:.,]+(Z|[+-][0-9:]+)$"
"""A date, a time and an offset. To ask the time itself for its offset would take twice as long as reading it does."""
_is_written_moment = re.compile(_WRITTEN_MOMENT).match
_IN_JSON = core_schema.no_info_after_validator_function(datetime.fromisoformat, core_schema.str_schema(pattern=_WRITTEN_MOMENT))


def _moment_schema(_source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
    """Return the schema of a time. In JSON it is text in ISO 8601, read by the standard library: in a fifth of the time the check takes."""
    return core_schema.json_or_python_schema(_IN_JSON, handler(Annotated[AwareDatetime, AfterValidator(_with_offset)]))


def _moment_in(identifier: str) -> datetime | None:
    """Return the time an id is, and None when it is not the text of one."""
    if not _is_written_moment(identifier):
        return None
    try:
        return datetime.fromisoformat(identifier)
    except ValueError:
        return None


Moment: TypeAlias = Annotated[datetime, GetPydanticSchema(_moment_schema), WithJsonSchema({"type": "string", "format": "date-time"})]


NOTHING: FrozenDict[Any, Any] = FrozenDict()


def _frozen(given: dict[str, Any]) -> FrozenDict[str, Any]:
    return FrozenDict(given) if given else NOTHING


class Message(_Frozen, defer_build=True):
    """One message. Frozen, so that who reads a conversation can be given one that somebody else was given before; equal when all fields
    are, whatever its `state`.

    Attributes:
        role: Who speaks.
        content: Text, or parts.
        tool_calls: What an assistant wants called.
        tool_call_id: Which call a tool's message answers.
        name: The speaker's or the tool's name.
        id: Unique, sortable by the time it was made: it is that time.
        created_at: When, with its offset from UTC; not given, it is the time the id is, and now when that is none.
        metadata: Yours: JSON values, bytes, and floats that are not finite. The dict itself cannot be changed.
        extras: What has no neutral form, by framework; as `metadata`.
    """  # noqa: D205 - what frozen is for

    role: Role
    content: Annotated[Text | Annotated[tuple[Part, ...], BeforeValidator(_tuple)], Field(union_mode="left_to_right")] = ""
    tool_calls: Annotated[tuple[ToolCall, ...], BeforeValidator(_tuple)] = ()
    tool_call_id: Text | None = None
    name: Text | None = None
    id: Text = Field(default_factory=new_message_id)
    created_at: Moment = Field(default_factory=lambda given: _moment_in(given["id"]) or datetime.now(UTC))
    metadata: Annotated[dict[Text, Any], AfterValidator(_frozen)] = Field(default_factory=lambda: NOTHING)
    extras: Annotated[dict[Text, Any], AfterValidator(_frozen)] = Field(default_factory=lambda: NOTHING)

    @classmethod
    def user(cls, content: str | Sequence[Part], **fields: Any) -> Message:
        """Return what a person says."""
        return cls(role="user", content=content, **fields)  # type: ignore[arg-type]

    @classmethod
    def assistant(cls, content: str | Sequence[Part] = "", **fields: Any) -> Message:
        """Return what a model says, or wants called."""
        return cls(role="assistant", content=content, **fields)  # type: ignore[arg-type]

    @classmethod
    def system(cls, content: str | Sequence[Part], **fields: Any) -> Message:
        """Return what the app tells the model; it stays in every window."""
        return cls(role="system", content=content, **fields)  # type: ignore[arg-type]

    @classmethod
    def tool(cls, content: str | Sequence[Part], *, tool_call_id: str, **fields: Any) -> Message:
        """Return the result of a tool call."""
        return cls(role="tool", content=content, tool_call_id=tool_call_id, **fields)  # type: ignore[arg-type]

    @property
    def text(self) -> str:
        """All text of the content, in order; empty when there is none."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def state(self) -> State:
        """What became of the turn it stands in, at the time of loading: derived, never stored, not part of equality."""
        derived = self.__pydantic_private__
        return "complete" if derived is None else derived.get("state", "complete")

    @property
    def archived(self) -> bool:
        """Whether an edit took it out of a framework's active queue. Derived and no part of equality, as `state` is."""
        derived = self.__pydantic_private__
        return derived is not None and derived.get("archived", False)

    def in_archive(self) -> Message:
        """Return this message as one that was archived."""
        return self if self.archived else self._marked("archived", value=True)

    def in_state(self, state: State) -> Message:
        """Return this message as part of a turn in that state."""
        return self if self.state == state else self._marked("state", value=state)

    def _marked(self, name: str, *, value: object) -> Message:
        """Return a copy with something derived beside its fields, where pydantic keeps what is private and copies and pickles it.

        A declared `PrivateAttr` would be set up in each message that is made, which takes longer than all of its fields.
        """
        message = self.model_copy()
        object.__setattr__(message, "__pydantic_private__", {**(self.__pydantic_private__ or {}), name: value})
        return message

    def __eq__(self, other: object) -> bool:
        """Compare all fields."""
        return isinstance(other, Message) and type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        """Hash the id."""
        return hash(self.id)


def _untagged(value: T) -> T:
    """Refuse what may hold a value JSON has no form for."""
    if b'"$' in to_json(value):
        msg = "is to be unpacked"
        raise ValueError(msg)
    return value


def _stored_messages() -> SchemaValidator:
    """Return what makes messages of a stored body, in one call: of text, and without a value JSON has no form for.

    It checks what was checked before once more, but no more than that, and knows what is left out of the stored form. pydantic-core
    takes the validator of a model that has one, whatever it is told here; so this comes before `Message` is built.
    """
    text, optional = core_schema.str_schema(), core_schema.nullable_schema(core_schema.str_schema())
    calls = core_schema.tuple_schema([ToolCall.__pydantic_core_schema__], variadic_item_index=0)
    untagged = core_schema.no_info_after_validator_function(_untagged, core_schema.dict_schema(text, core_schema.any_schema()))
    objects = core_schema.no_info_after_validator_function(_frozen, untagged)
    schemas = {
        "role": core_schema.literal_schema(list(get_args(Role))),
        "content": text,
        "tool_calls": _or(core_schema.no_info_after_validator_function(_untagged, calls), default=()),
        "tool_call_id": _or(optional, default=None),
        "name": _or(optional, default=None),
        "id": text,
        "created_at": _IN_JSON,
        "metadata": _or(objects, default=NOTHING),
        "extras": _or(objects, default=NOTHING),
    }
    told: dict[str, list[list[str | int]]] = {"created_at": [["created_at"], ["id"]]}
    fields = {name: core_schema.model_field(schema, validation_alias=told.get(name)) for name, schema in schemas.items()}
    message = core_schema.model_schema(Message, core_schema.model_fields_schema(fields, extra_behavior="forbid"), frozen=True)
    return SchemaValidator(core_schema.list_schema(message))


_or = core_schema.with_default_schema
_STORED = _stored_messages()
Message.model_rebuild()


class Edit(_Frozen):
    """A change to what was said before it. It stands in the log behind the messages it is about, and rewrites none of them.

    Attributes:
        action: `hide` takes messages out of sight; `archive` marks them, and they stay in sight (`Message.archived`).
        ids: Of the messages.
        before: Also everything said before it: what is not archived (`active`), what is (`archived`), or both (`all`).
    """

    action: Literal["hide", "archive"]
    ids: Annotated[tuple[Text, ...], BeforeValidator(_tuple)] = ()
    before: Literal["active", "archived", "all"] | None = None

    @property
    def begins_anew(self) -> bool:
        """Whether nothing said before it stays in sight, but what is archived."""
        return self.action == "hide" and self.before in ("active", "all")

    def concerns(self, message: Message) -> bool:
        """Return whether it is about this message, said before it."""
        if message.id in self.ids or self.before == "all":
            return True
        return self.before is not None and message.archived == (self.before == "archived")


class Note(_Frozen):
    """What an adapter keeps with a conversation and nobody said: no reader sees it, no window shows it, and no turn counts it.

    It stands in the log where it was appended, is loaded with the messages around it, and has the fate of its turn.

    Attributes:
        kind: Whose it is, such as ``langgraph``; others leave it alone.
        data: JSON values, bytes, and floats that are not finite.
    """

    kind: Text
    data: dict[Text, Any]


Item: TypeAlias = Message | Edit | Note
"""What stands in the body of an entry."""


def edited(turns: Iterable[Iterable[Item]]) -> list[list[Message]]:
    """Return the messages of each turn that are in sight, once every edit was applied to what stands before it."""
    seen: list[list[Message]] = []
    for turn in turns:
        own: list[Message] = []
        seen.append(own)
        for item in turn:
            if isinstance(item, Message):
                own.append(item)
            elif isinstance(item, Edit):
                for said in seen:
                    said[:] = _applied(item, said)
    return seen


def _applied(edit: Edit, said: list[Message]) -> list[Message]:
    if edit.action == "hide":
        return [message for message in said if not edit.concerns(message)]
    return [message.in_archive() if edit.concerns(message) else message for message in said]


def encode_edit(edit: Edit) -> bytes:
    """Return one edit as JSON in UTF-8; it stands in the body of an entry as a message does."""
    document: dict[str, Any] = {"edit": edit.action, "ids": [_pack_text(identifier) for identifier in edit.ids]}
    if edit.before is not None:
        document["before"] = edit.before
    return _json(document)


def encode_note(note: Note) -> bytes:
    """Return one note as JSON in UTF-8; it stands in the body of an entry as a message does. Errors as in `encode_message`."""
    return _json({"note": _pack_text(note.kind), "data": _pack(note.data, "data")})


def encode_message(message: Message) -> bytes:
    """Return one message as JSON in UTF-8.

    Raises:
        InvalidMessage: A field cannot be stored and read back equal; it is named.
    """
    return _json(_document(message))


def encode_messages(encoded: Iterable[bytes]) -> bytes:
    """Return the body of an entry from messages already encoded."""
    return b"[" + b",".join(encoded) + b"]"


def decode_messages(body: bytes) -> list[Message]:
    """Return the messages of an entry's body, without its edits and notes. Errors as in `decode_body`."""
    return [item for item in decode_body(body) if isinstance(item, Message)]


def decode_body(body: bytes) -> list[Item]:
    """Return the messages, edits and notes of an entry's body, in order.

    Fields this version does not know are left out of what it returns; the stored body is never rewritten.

    Raises:
        ValueError: The body is not what `encode_messages` makes, in this version or a later one.
    """
    try:
        return _STORED.validate_json(body)  # type: ignore[no-any-return]
    except ValidationError:
        return _long_decoded(body)


def _long_decoded(body: bytes) -> list[Item]:
    """Return what the validator refuses, if it can be read at all; what it takes is read the same here."""
    try:
        documents = _parsed(body)
        if not isinstance(documents, list):
            msg = "not a list of messages"
            raise ValueError(msg)  # noqa: TRY004 - one kind of error for every damage
        return [_item(document) for document in documents]
    except (ValidationError, InvalidMessage, KeyError, TypeError, AttributeError, RecursionError) as error:
        msg = f"not a list of messages: {type(error).__name__}"
        raise ValueError(msg) from error


def _parsed(body: bytes) -> Any:
    """Return the JSON of a body: by the fast parser, or by the patient one where that gives up (it stops at 200 levels)."""
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError:
        return json.loads(body)


def _json(document: object) -> bytes:
    return to_json(document, inf_nan_mode="strings")


def _document(message: Message) -> dict[str, Any]:
    document: dict[str, Any] = {"role": message.role}
    if isinstance(message.content, str):
        document["content"] = _pack_text(message.content)
    else:
        document["content"] = [_part_document(part, f"content[{i}]") for i, part in enumerate(message.content)]
    if message.tool_calls:
        document["tool_calls"] = [
            {"id": _pack_text(call.id), "name": _pack_text(call.name), "arguments": _pack(call.arguments, f"tool_calls[{i}].arguments")}
            for i, call in enumerate(message.tool_calls)
        ]
    if message.tool_call_id is not None:
        document["tool_call_id"] = _pack_text(message.tool_call_id)
    if message.name is not None:
        document["name"] = _pack_text(message.name)
    document["id"] = _pack_text(message.id)
    if message.created_at.tzinfo is not UTC or message.created_at != _moment_in(message.id):
        document["created_at"] = message.created_at.isoformat()
    if message.metadata:
        document["metadata"] = _pack(message.metadata, "metadata")
    if message.extras:
        document["extras"] = _pack(message.extras, "extras")
    return document


def _part_document(part: Part, field: str) -> dict[str, Any]:
    if isinstance(part, UnknownPart):
        _refuse_ambiguous(part, field)
        return {"type": _pack_text(part.type), **{name: _pack(value, f"{field}.{name}") for name, value in part.fields.items()}}
    document = {name: _pack(value, f"{field}.{name}") for name, value in part.__dict__.items() if value is not None and name != "citations"}
    if isinstance(part, TextPart) and part.citations:
        shown = [{name: value for name, value in citation.__dict__.items() if value is not None} for citation in part.citations]
        document["citations"] = _pack(shown, f"{field}.citations")
    return document


def _refuse_ambiguous(part: UnknownPart, field: str) -> None:
    kind = _PART_TYPES.get(part.type)
    if kind is not None and set(part.fields) <= set(kind.model_fields):
        raise InvalidMessage(field, f"this is a {kind.__name__}; build it as one")
    for name in part.fields:
        if name == "type" or not _plain(name):
            where = f"{field}.fields"
            raise InvalidMessage(where, "a name is type, or holds half a surrogate pair; neither can be stored")


def _message(document: dict[str, Any]) -> Message:
    if not document.keys() >= _ALWAYS:
        msg = "not a list of messages: one lacks what every message has"
        raise ValueError(msg)
    fields: dict[str, Any] = {name: value if type(value) is str else _unpack(value) for name, value in document.items() if name in _KNOWN}
    if isinstance(fields["content"], list):
        fields["content"] = tuple(map(_part, fields["content"]))
    if "tool_calls" in fields:
        fields["tool_calls"] = tuple(
            ToolCall(id=call["id"], name=call["name"], arguments=call["arguments"]) for call in fields["tool_calls"]
        )
    fields["created_at"] = datetime.fromisoformat(fields["created_at"]) if "created_at" in fields else _moment_in(fields["id"])
    return Message(**fields)


def _item(document: dict[str, Any]) -> Item:
    if "edit" in document:
        return _edit(document)
    if "note" in document:
        return Note(kind=_unpack(document["note"]), data=_unpack(document["data"]))
    return _message(document)


def _edit(document: dict[str, Any]) -> Edit:
    return Edit(action=document["edit"], ids=tuple(map(_unpack, document["ids"])), before=document.get("before"))


_ALWAYS = frozenset(("role", "content", "id"))
_KNOWN = frozenset(Message.model_fields)
_PART_TYPES: dict[str, type[TextPart | ImagePart | AudioPart | FilePart | ReasoningPart]] = {
    "text": TextPart,
    "image": ImagePart,
    "audio": AudioPart,
    "file": FilePart,
    "reasoning": ReasoningPart,
}


def _part(fields: dict[str, Any]) -> Part:
    kind = _PART_TYPES.get(fields["type"])
    if kind is None or not set(fields) <= set(kind.model_fields):
        return UnknownPart(type=fields["type"], fields={name: value for name, value in fields.items() if name != "type"})
    if "citations" in fields:
        fields = {**fields, "citations": tuple(Citation(**citation) for citation in fields["citations"])}
    return kind(**fields)


_DEEPEST = 100


def _pack(value: object, field: str, depth: int = 0) -> object:  # noqa: PLR0911 - one for each kind of value
    """Return the JSON form of a value, as the head of this module describes."""
    if depth > _DEEPEST:
        raise InvalidMessage(field.partition(".")[0].partition("[")[0], f"is nested more than {_DEEPEST} levels deep, or contains itself")
    match value:
        case None | bool():
            return value
        case str():
            return _pack_text(value)
        case int():
            return _pack_int(value, field)
        case float():
            return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
        case bytes():
            return {"$bytes": b64encode(value).decode()}
        case list():
            return [_pack(item, f"{field}[{i}]", depth + 1) for i, item in enumerate(value)]
        case dict():
            return _pack_object(value, field, depth)
        case _:
            raise InvalidMessage(
                field, f"a {type(value).__name__} cannot be stored; use text, numbers, booleans, None, bytes, lists and dicts"
            )


def _pack_object(value: dict[object, object], field: str, depth: int) -> object:
    for key in value:
        if not isinstance(key, str):
            raise InvalidMessage(field, f"a key is a {type(key).__name__}; the keys of a dict must be text")
    packed = {str(key): _pack(item, f"{field}.{key}", depth + 1) for key, item in value.items()}
    if all(_plain(key) and not key.startswith("$") for key in packed):
        return packed
    return {"$object": [[_pack_text(key), item] for key, item in packed.items()]}


def _pack_int(value: int, field: str) -> int:
    try:
        str(value)
    except ValueError as error:
        raise InvalidMessage(field, "the integer has too many digits to be stored") from error
    return int(value)


def _pack_text(text: str) -> object:
    """Return the text of a string, also of one whose class says something else in `str`, as enumerations do."""
    if type(text) is str and text.isascii():
        return text
    return str.__str__(text) if _plain(text) else {"$text": b64encode(text.encode("utf-8", "surrogatepass")).decode()}


def _plain(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unpack(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpack(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        (key, packed), *_ = value.items()
        if key.startswith("$"):
            return _SPECIAL[key](packed)
    return {key: _unpack(item) for key, item in value.items()}


_SPECIAL: dict[str, Any] = {
    "$bytes": lambda packed: b64decode(packed, validate=True),
    "$float": float,
    "$text": lambda packed: b64decode(packed, validate=True).decode("utf-8", "surrogatepass"),
    "$object": lambda packed: {_unpack(key): _unpack(item) for key, item in packed},
}
