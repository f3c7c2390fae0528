"""Pydantic AI's messages as convmem's, and back, without loss.

What a model answers, a ``ModelResponse``, is one message. What it is sent, a ``ModelRequest``, may hold system prompts, questions
and results; each of those is a message of its own, as all other frameworks have them. What is stored and comes back equal is the
framework's own stored form (``ModelMessagesTypeAdapter``): what that changes, such as an object that a tool has returned into its
JSON, is changed here too. What has no neutral form, and only that, is in ``extras["pydantic_ai"]``:

=============  ===========================================================================================================
``rest``       what the request or the response has beyond what is written from its messages (`rest_of`)
``parts``      the same for each of its parts; a part that nobody else can read is kept there whole
``layout``     which part is what, where it cannot be seen from the message itself, a letter for each: ``s`` for what
               is said, ``c`` for a call, ``j`` for one with its arguments as JSON text, ``k`` for a part that is kept
``calls``      the ids of all calls, because a window leaves some out of the message
``content``    of a question or a result: ``bare`` where it is one item and no list, ``json`` where the text is what a tool has
               returned; else the places of the items kept in ``parts``
``request``    the id of the first message of the request this one is part of
``entry``      under a conversation store: the id of the entry this is part of, and that of the one before it
``record``     what a conversation store keeps beside the messages; see `_store`
=============  ===========================================================================================================
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError
from pydantic_ai import messages as native
from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter
from pydantic_core import PydanticSerializationError

from convmem import InvalidMessage, Message, Part, TextPart, ToolCall, rest_of, with_rest

from ._parts import Document, as_text, call, content_part, media_part, result_part, said_part, to_call, to_content, to_said

NAME = "pydantic_ai"
_SAID, _CALL, _JSON_CALL, _KEPT = "scjk"
_BARE, _JSON = "bare", "json"
_REFUSALS = (PydanticSerializationError, ValidationError, TypeError, ValueError)


def from_model_messages(messages: Iterable[ModelMessage]) -> list[Message]:
    """Return Pydantic AI's messages as convmem's, new ones with ids of their own; `to_model_messages` makes them again.

    Raises:
        InvalidMessage: A value cannot be stored and read back; its place is named.
    """
    made: list[Message] = []
    for i, message in enumerate(messages):
        field = f"messages[{i}]"
        document = _stored_form(message, field)
        said = _from_response(document) if document["kind"] == "response" else _from_request(document)
        if [_document(group) for group in groups_of(said)] != [document]:
            raise InvalidMessage(field, "does not come back from its stored form equal to what it was")
        made += said
    return made


def to_model_messages(messages: Iterable[Message]) -> list[ModelMessage]:
    """Return messages as Pydantic AI's, whichever framework wrote them. New objects each time."""
    groups = list(groups_of(message for message in messages if not is_record(message)))
    documents = [_document(group) for group in groups if _is_native(group)]
    read = iter(ModelMessagesTypeAdapter.validate_json(json.dumps(documents)) if documents else ())
    return [next(read) if _is_native(group) else _foreign(group[0]) for group in groups]


def is_record(message: Message) -> bool:
    """Return whether it says nothing, and only carries what a conversation store keeps."""
    return message.role == "tool" and message.extras.get(NAME, {}).keys() == {"record"}


def _is_native(group: list[Message]) -> bool:
    return any(NAME in message.extras for message in group)


def groups_of(messages: Iterable[Message]) -> Iterator[list[Message]]:
    """Yield the messages of each request or response. A window may have left out the first of a request."""
    group: list[Message] = []
    name = ""
    for message in messages:
        first = message.extras.get(NAME, {}).get("request")
        if group and first is not None and first == name:
            group.append(message)
            continue
        if group:
            yield group
        group, name = [message], first or message.id
    if group:
        yield group


# The framework's stored form


def _stored_form(message: Any, field: str) -> Document:
    """Return a message as the framework stores it.

    Raises:
        InvalidMessage: It cannot.
    """
    if not isinstance(message, native.ModelRequest | native.ModelResponse):
        raise InvalidMessage(field, f"a {type(message).__name__} is no message of Pydantic AI; pass result.new_messages()")
    try:
        return _checked(message)
    except _REFUSALS as error:
        whole: Any = type(message)
        field += next((f".parts[{i}]" for i, part in enumerate(message.parts) if not _can_be_stored(whole([part]))), "")
        reason = str(error).partition("\n")[0]
        raise InvalidMessage(field, f"Pydantic AI cannot store it: {reason}") from error


def _can_be_stored(message: ModelMessage) -> bool:
    try:
        _checked(message)
    except _REFUSALS:
        return False
    return True


def _checked(message: ModelMessage) -> Document:
    document = _dumped(message)
    ModelMessagesTypeAdapter.validate_json(json.dumps([document]))
    return document


def _dumped(message: ModelMessage) -> Document:
    (document,) = ModelMessagesTypeAdapter.dump_python([message], mode="json", warnings=False)
    return dict(document)


def _document(group: list[Message]) -> Document:
    first = group[0]
    empty = native.ModelResponse([], timestamp=first.created_at) if first.role == "assistant" else native.ModelRequest([])
    document: Document = with_rest(_dumped(empty), first.extras.get(NAME, {}).get("rest"))
    return {**document, "parts": [part for message in group for part in _parts(message)]}


def _parts(message: Message) -> list[Document]:
    """Return the parts of a request or a response that a message is, without calls that a window left out."""
    extras = message.extras.get(NAME, {})
    written = _written(message, extras)
    rests: Sequence[Any] = extras.get("parts") or [None] * len(written)
    made = [with_rest(document, rest) for document, rest in zip(written, rests, strict=True) if not (document is None and _leans(rest))]
    return [document for document in made if document is not None]


def _leans(rest: Any) -> bool:
    """Return whether it is the rest of something, and not all of it."""
    return rest is not None and "is" not in rest


def _written(message: Message, extras: Document) -> list[Document | None]:
    """Return each part as the message says it; None where it says nothing."""
    parts = _said_parts(message, extras) if message.role == "assistant" else _asked_parts(message, extras)
    present: list[Any] = [part for part in parts if part is not None]
    whole = native.ModelResponse(present) if message.role == "assistant" else native.ModelRequest(present)
    documents = iter(_dumped(whole)["parts"])
    written = [None if part is None else next(documents) for part in parts]
    places = extras.get("content")
    for document in written:
        for place in places if isinstance(places, list) else ():
            if document is not None:
                document["content"].insert(place, None)
    return written


def _foreign(message: Message) -> ModelMessage:
    """Return what another framework or the app itself wrote."""
    if message.role == "assistant":
        parts: list[Any] = [part for part in _said_parts(message, {}) if part is not None]
        return native.ModelResponse(parts, timestamp=message.created_at)
    return native.ModelRequest([_asked(message, {})])


def _marked(said: list[tuple[Message, Document, list[Document]]], document: Document) -> list[Message]:
    """Return messages with what they do not say of themselves.

    Args:
        said: Each with what is known of its form, and with its parts.
        document: The request or the response that they are.
    """
    first = said[0][0]
    marked: list[Message] = []
    for message, form, parts in said:
        extras = {name: value for name, value in form.items() if value is not None}
        rests = [rest_of(part, written) for part, written in zip(parts, _written(message, extras), strict=True)]
        if any(rest is not None for rest in rests):
            extras["parts"] = rests
        if message is first:
            rest = rest_of({**document, "parts": []}, {**_document([message]), "parts": []})
            extras |= {} if rest is None else {"rest": rest}
        else:
            extras["request"] = first.id
        marked.append(message.model_copy(update={"extras": {NAME: extras} if extras else {}}))
    return marked


def _moment(*documents: Document) -> datetime:
    """Return when it was said, as the first of these says it that does; else now."""
    for document in documents:
        if isinstance(moment := document.get("timestamp"), str):
            return datetime.fromisoformat(moment)
    return datetime.now(UTC)


# Responses


def _from_response(document: Document) -> list[Message]:
    said: list[Part] = []
    calls: list[ToolCall] = []
    layout = ""
    for part in document["parts"]:
        if (one := call(part)) is not None:
            calls.append(one)
            layout += _JSON_CALL if isinstance(part.get("args"), str) else _CALL
        elif (piece := said_part(part)) is not None:
            said.append(piece)
            layout += _SAID
        else:
            layout += _KEPT
    content: str | tuple[Part, ...] = tuple(said)
    if len(said) == 1 and isinstance(said[0], TextPart) and said[0].text and not said[0].citations:
        content = said[0].text
    message = Message.assistant(content, tool_calls=tuple(calls), created_at=_moment(document))
    form = {
        "calls": [one.id for one in calls] or None,
        "layout": layout if layout != _layout(message, len(calls)) else None,
    }
    return _marked([(message, form, document["parts"])], document)


def _layout(message: Message, calls: int) -> str:
    return _SAID * len(_said(message)) + _CALL * calls


def _said(message: Message) -> Sequence[Part]:
    if isinstance(message.content, str):
        return (TextPart(text=message.content),) if message.content else ()
    return message.content


def _said_parts(message: Message, extras: Document) -> list[Any]:
    ids: Sequence[str] = extras.get("calls", [one.id for one in message.tool_calls])
    layout = extras.get("layout", _layout(message, len(ids)))
    said, calls = iter(_said(message)), _each_call(message, ids)
    parts: list[Any] = []
    for letter in layout:
        if letter == _SAID:
            parts.append(to_said(next(said)))
        elif letter == _KEPT:
            parts.append(None)
        else:
            one = next(calls)
            parts.append(None if one is None else to_call(one, as_json=letter == _JSON_CALL))
    return parts


def _each_call(message: Message, ids: Sequence[str]) -> Iterator[ToolCall | None]:
    """Yield the call of each id, in order; None for one that a window leaves out. Models may use an id twice."""
    left = list(message.tool_calls)
    for name in ids:
        found = next((one for one in left if one.id == name), None)
        if found is not None:
            left.remove(found)
        yield found


# Requests


def _from_request(document: Document) -> list[Message]:
    said: list[tuple[Message, Document, list[Document]]] = []
    kept: list[Document] = []
    for part in document["parts"]:
        read = _from_part(part, document)
        if read is None:
            kept.append(part)
            continue
        message, places = read
        said.append((message, {"content": places, "layout": _KEPT * len(kept) + _SAID if kept else None}, [*kept, part]))
        kept = []
    if not said:  # nobody else can read any of it; as a result without a call, no window shows it
        said.append((Message(role="tool", created_at=_moment(document)), {"layout": _KEPT * len(kept)}, kept))
    elif kept:
        message, form, parts = said[-1]
        said[-1] = (message, {**form, "layout": (form["layout"] or _SAID) + _KEPT * len(kept)}, [*parts, *kept])
    return _marked(said, document)


def _from_part(part: Document, request: Document) -> tuple[Message, Any] | None:  # noqa: PLR0911 - one for each kind of part
    """Return a part of a request as a message, and what is to be known of its content; None when nobody else can read it."""
    moment = _moment(part, request)
    match part:
        case {"part_kind": "system-prompt", "content": str(text)} if part.get("scope") != "request":
            return Message.system(text, created_at=moment), None
        case {"part_kind": "user-prompt", "content": list(items)}:
            read = [content_part(item) for item in items]
            others = [i for i, piece in enumerate(read) if piece is None]
            return Message.user([piece for piece in read if piece is not None], created_at=moment), others or None
        case {"part_kind": "tool-return", "tool_call_id": str(answers), "tool_name": str(name), "content": returned}:
            content, form = _from_result(returned)
            return Message.tool(content, tool_call_id=answers, name=name, created_at=moment), form
        case {"part_kind": "retry-prompt", "tool_name": str(name), "tool_call_id": str(answers), "content": told}:
            return Message.tool(_text(told), tool_call_id=answers, name=name, created_at=moment), None
        case {"part_kind": "user-prompt" | "retry-feedback" | "retry-prompt", "content": told}:
            return Message.user(_text(told), created_at=moment), None
        case {"part_kind": "compaction", "content": str(text)} | {"part_kind": "speech", "transcript": str(text)}:
            return Message.user(text, created_at=moment), None
    return None


def _from_result(returned: Any) -> tuple[str | tuple[Part, ...], str | None]:
    if (alone := media_part(returned)) is not None:
        return (alone,), _BARE
    if isinstance(returned, list) and any(media_part(item) is not None for item in returned):
        return tuple(map(result_part, returned)), None
    return (returned, None) if isinstance(returned, str) else (as_text(returned), _JSON)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else as_text(value)


def _asked_parts(message: Message, extras: Document) -> list[Any]:
    return [_asked(message, extras) if letter == _SAID else None for letter in extras.get("layout", _SAID)]


def _asked(message: Message, extras: Document) -> Any:
    content: Any = message.content
    if not isinstance(content, str):
        content = [item for part in content if (item := to_content(part)) is not None]
        if extras.get("content") == _BARE:
            (content,) = content
    elif extras.get("content") == _JSON:
        content = json.loads(content)
    moment = message.created_at
    if message.role == "system":
        return native.SystemPromptPart(message.text, timestamp=moment)
    if message.role == "tool":
        return native.ToolReturnPart(message.name or "", content, message.tool_call_id or "", timestamp=moment)
    return native.UserPromptPart(content, timestamp=moment)
