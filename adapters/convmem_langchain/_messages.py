"""LangChain's messages to convmem's and back: ``to_langchain(from_langchain(message)) == message``.

What LangChain says and convmem has no form for stands in ``extras["langchain"]``, and only that:

=====================  ===========================================================================================
``id``                 None or empty, where LangChain's message has no id; else its id is the message's
``type``               ``chat``, ``function`` or ``remove``; else the role says it
``class``              ``module:name`` of an app's own class of messages
``fields``             every other field that is not at its default: ``additional_kwargs``, ``response_metadata``,
                       ``usage_metadata``, ``artifact``, ``status``, ``role`` of a chat message, and those of an app's own class
``content``            what the parts do not say about their blocks
``calls``              tool calls, in LangChain's form, that are not just an id, a name and arguments
``call_ids``           all ids of calls, where blocks or ``additional_kwargs`` repeat the calls
=====================  ===========================================================================================
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, overload

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    BaseMessageChunk,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)

from convmem import InvalidMessage, Message, Role, ToolCall

from ._blocks import names_calls, to_content, to_parts
from ._values import pack, plain, unpack

NAME = "langchain"
_KINDS: dict[str, type[BaseMessage]] = {
    "human": HumanMessage,
    "ai": AIMessage,
    "system": SystemMessage,
    "tool": ToolMessage,
    "chat": ChatMessage,
    "function": FunctionMessage,
    "remove": RemoveMessage,
}
_ROLES: dict[str, Role] = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("ai", "assistant", "model"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    # without a call it answers, a window leaves it out: what removes a message is nothing a model reads
    **dict.fromkeys(("tool", "function", "remove"), "tool"),
}
_TYPES: dict[Role, str] = {"user": "human", "assistant": "ai", "system": "system", "tool": "tool"}
_NEUTRAL = frozenset({"content", "id", "name", "type", "tool_calls", "invalid_tool_calls", "tool_call_id"})


class UnknownMessageClassWarning(UserWarning):
    """A stored message is of a class this process has not imported; it is read as the LangChain class that one derives from."""


@overload
def from_langchain(messages: BaseMessage) -> Message: ...
@overload
def from_langchain(messages: Iterable[BaseMessage]) -> list[Message]: ...
def from_langchain(messages: BaseMessage | Iterable[BaseMessage]) -> Message | list[Message]:
    """Return a LangChain message, or each of several, as convmem's. A chunk becomes the message it is a chunk of.

    Raises:
        InvalidMessage: A value cannot be stored and come back equal; its field is named.
    """
    if isinstance(messages, BaseMessage):
        return _neutral(messages)
    return [_neutral(message) for message in messages]


@overload
def to_langchain(messages: Message) -> BaseMessage: ...
@overload
def to_langchain(messages: Iterable[Message]) -> list[BaseMessage]: ...
def to_langchain(messages: Message | Iterable[Message]) -> BaseMessage | list[BaseMessage]:
    """Return a message, or each of several, as LangChain's: equal to what LangChain wrote; else in LangChain's standard form."""
    if isinstance(messages, Message):
        return _native(messages)
    return [_native(message) for message in messages]


def chunk_text(chunk: object) -> str | None:
    """Return the text of what a model or an agent streams, for ``conversation.record(stream, text=chunk_text)``.

    Takes strings, messages and their chunks, and the pairs of ``stream_mode="messages"``; only what the model says counts.
    """
    if isinstance(chunk, tuple) and chunk:
        chunk = chunk[0]
    if isinstance(chunk, str):
        return chunk
    return str.__str__(chunk.text) or None if isinstance(chunk, AIMessage) else None


def identified(message: Message) -> BaseMessage:
    """Return LangChain's message, always with the id by which it is known again."""
    native = _native(message)
    return native if native.id else native.model_copy(update={"id": message.id})


def native_id(message: Message) -> str | None:
    """Return the id LangChain's message has, without converting it; None when it has none."""
    extras = message.extras.get(NAME)
    return (extras or {}).get("id", message.id) or None


# From LangChain


def _neutral(given: object) -> Message:
    if not isinstance(given, BaseMessage):
        field = "from_langchain(message)"
        raise InvalidMessage(field, f"a {type(given).__name__} is no LangChain message; use HumanMessage(text), AIMessage(text), …")
    message = _whole(given)
    kind = _kind(type(message))
    content, entries = to_parts(message.content)
    calls, natives = _calls(message)
    fields = {name: pack(value, name) for name, value in _others(message)}
    extras: dict[str, Any] = {}
    if not message.id:
        extras["id"] = message.id
    if kind not in _TYPES.values():
        extras["type"] = kind
    if type(message) is not _KINDS.get(kind):
        extras["class"] = _path(type(message))
    if fields:
        extras["fields"] = fields
    if entries:
        extras["content"] = entries
    if natives:
        extras["calls"] = natives
    if calls and (names_calls(message.content) or _repeats_calls(message)):
        extras["call_ids"] = [call.id for call in calls]
    needs_mark = kind == "ai" and not isinstance(content, str)  # else it would be told to be in the standard form
    named = {"id": str(message.id)} if message.id else {}
    neutral = Message(
        role=_role(message, kind),
        content=content,
        tool_calls=tuple(calls),
        tool_call_id=_answers(message),
        name=None if message.name is None else str.__str__(message.name),
        extras={NAME: extras} if extras or needs_mark else {},
        **named,  # type: ignore[arg-type]
    )
    _compare(message, _native(neutral))
    return neutral


def _whole(message: BaseMessage) -> BaseMessage:
    """Return the message a chunk is a chunk of."""
    if not isinstance(message, BaseMessageChunk):
        return message
    kind = next(base for base in type(message).__mro__ if issubclass(base, BaseMessage) and not issubclass(base, BaseMessageChunk))
    left_out = {"type", "tool_call_chunks", "chunk_position"}
    fields = {name: value for name, value in vars(message).items() if name not in left_out}
    return kind.model_construct(**fields, **(message.model_extra or {}))


def _kind(cls: type[BaseMessage]) -> str:
    """Return the name of the LangChain class it is, or derives from; of one that derives from none, ``chat``."""
    return next((name for name, kind in _KINDS.items() if issubclass(cls, kind)), "chat")


def _role(message: BaseMessage, kind: str) -> Role:
    said = getattr(message, "role", message.type) if kind == "chat" else kind
    return _ROLES.get(said, "user")


def _answers(message: BaseMessage) -> str | None:
    if isinstance(message, ToolMessage):
        return str.__str__(message.tool_call_id)
    return _function_call_id(message.name or "") if isinstance(message, FunctionMessage) else None


def _function_call_id(name: str) -> str:
    """The id of a call from before there were ids: one function at a time, known by its name."""
    return f"function_call:{name}"


def _others(message: BaseMessage) -> Iterator[tuple[str, Any]]:
    """Yield the fields that have no neutral form and are not at their defaults."""
    for name, value in {**vars(message), **(message.model_extra or {})}.items():
        if name in _NEUTRAL and not (name == "type" and type(message) not in _KINDS.values()):
            continue
        info = type(message).model_fields.get(name)
        if info is None or info.is_required() or value != info.get_default(call_default_factory=True):
            yield name, value


def _calls(message: BaseMessage) -> tuple[list[ToolCall], list[Any]]:
    """Return the neutral calls, and in LangChain's form those that are not just an id, a name and arguments."""
    if not isinstance(message, AIMessage):
        return [], []
    valid = [(call, f"tool_calls[{i}]") for i, call in enumerate(message.tool_calls)]
    invalid = [(call, f"invalid_tool_calls[{i}]") for i, call in enumerate(message.invalid_tool_calls)]
    calls: list[ToolCall] = []
    natives: list[Any] = []
    native: Any
    for native, field in (*valid, *invalid):
        call = _call(native, field)
        calls.append(call)
        if not call.id or _native_call(call) != native:
            natives.append(pack(native, field))
    if not calls and (old := _function_call(message)) is not None:
        calls.append(old)
    return calls, natives


def _call(native: Any, field: str) -> ToolCall:
    arguments = native["args"]
    if native.get("type") == "invalid_tool_call" or not isinstance(arguments, dict):
        arguments = arguments if isinstance(arguments, str) else json.dumps(arguments)
    else:
        arguments = plain(arguments, f"{field}.args")
    return ToolCall(id=native.get("id") or "", name=native["name"] or "", arguments=arguments)


def _native_call(call: ToolCall) -> dict[str, Any]:
    if isinstance(call.arguments, dict):
        return {"name": call.name, "args": call.arguments, "id": call.id, "type": "tool_call"}
    return {"name": call.name, "args": call.arguments, "id": call.id, "error": None, "type": "invalid_tool_call"}


def _function_call(message: AIMessage) -> ToolCall | None:
    """Return the call of OpenAI's first form, which LangChain leaves in ``additional_kwargs``."""
    call = message.additional_kwargs.get("function_call")
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not isinstance(call.get("arguments"), str):
        return None
    try:
        arguments = json.loads(call["arguments"])
    except ValueError:
        arguments = None
    return ToolCall(
        id=_function_call_id(call["name"]), name=call["name"], arguments=arguments if isinstance(arguments, dict) else call["arguments"]
    )


def _repeats_calls(message: BaseMessage) -> bool:
    return bool(message.additional_kwargs.get("tool_calls") or message.additional_kwargs.get("function_call"))


def _compare(message: BaseMessage, rebuilt: BaseMessage) -> None:
    if rebuilt == message:
        return
    mine, theirs = ({**vars(one), **(one.model_extra or {})} for one in (message, rebuilt))
    fields = sorted(name for name in {*mine, *theirs} if name not in mine or name not in theirs or mine[name] != theirs[name])
    field = ", ".join(fields) or "private attributes"
    raise InvalidMessage(field, f"of this {type(message).__name__} would not come back equal")


# To LangChain


def _native(message: Message) -> BaseMessage:
    extras = message.extras.get(NAME)
    if extras is None:
        return _foreign(message)
    without = set(extras.get("call_ids", ())) - {call.id for call in message.tool_calls}
    kind = extras.get("type", _TYPES[message.role])
    cls = _class(extras.get("class"), kind)
    fields: dict[str, Any] = {
        **{name: unpack(value) for name, value in extras.get("fields", {}).items()},
        "content": to_content(message.content, extras.get("content", ()), without),
        "name": message.name,
        "id": extras.get("id", message.id),
    }
    if without:
        _leave_out(fields, without)
    if cls is _KINDS[kind] and (said := fields.pop("type", None)) and cls is ChatMessage:
        fields.setdefault("role", said)
    if issubclass(cls, AIMessage):
        fields.update(_native_calls(message, extras))
    elif issubclass(cls, ToolMessage):
        fields["tool_call_id"] = message.tool_call_id
    return cls.model_construct(**fields)


def _foreign(message: Message) -> BaseMessage:
    """Return what another framework or the app itself wrote."""
    fields: dict[str, Any] = {"content": to_content(message.content, ()), "name": message.name, "id": message.id}
    match message.role:
        case "user":
            return HumanMessage.model_construct(**fields)
        case "system":
            return SystemMessage.model_construct(**fields)
        case "tool":
            return ToolMessage.model_construct(**fields, tool_call_id=message.tool_call_id or "")
    if isinstance(fields["content"], list):
        fields["response_metadata"] = {"output_version": "v1"}  # so that LangChain translates the blocks for its model
    return AIMessage.model_construct(**fields, **_native_calls(message, {}))


def _native_calls(message: Message, extras: dict[str, Any]) -> dict[str, Any]:
    """Return the calls in LangChain's form. Which of them are there is what the message says: a window may have left some out."""
    kept = [unpack(native) for native in extras.get("calls", ())]
    calls: dict[str, list[Any]] = {"tool_calls": [], "invalid_tool_calls": []}
    if extras and _is_old(message, extras):
        return calls
    for call in message.tool_calls:
        native = next((other for other in kept if _call(other, "") == call), None)
        if native is None:
            native = _native_call(call)
        else:
            kept.remove(native)
        calls["tool_calls" if native.get("type") == "tool_call" else "invalid_tool_calls"].append(native)
    return calls


def _is_old(message: Message, extras: dict[str, Any]) -> bool:
    kwargs = extras.get("fields", {}).get("additional_kwargs", {})
    return "function_call" in kwargs and all(call.id == _function_call_id(call.name) for call in message.tool_calls)


def _leave_out(fields: dict[str, Any], without: set[str]) -> None:
    """Leave out what repeats the calls that are left out; else a model is sent a call that has no result."""
    kwargs = dict(fields.get("additional_kwargs", {}))
    if "tool_calls" in kwargs:
        kwargs["tool_calls"] = [call for call in kwargs["tool_calls"] if not (isinstance(call, dict) and call.get("id") in without)]
    call = kwargs.get("function_call")
    if isinstance(call, dict) and _function_call_id(call.get("name", "")) in without:
        del kwargs["function_call"]
    fields["additional_kwargs"] = {name: value for name, value in kwargs.items() if name != "tool_calls" or value}


def _path(cls: type[BaseMessage]) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _class(path: str | None, kind: str) -> type[BaseMessage]:
    """Return an app's own class if this process has it, else LangChain's. Nothing is imported because a store says so."""
    if path is None:
        return _KINDS[kind]
    for cls in _derived(BaseMessage):
        if _path(cls) == path:
            return cls
    msg = f"a stored message is a {path}, which is not imported here; it is read as {_KINDS[kind].__name__}"
    warnings.warn(msg, UnknownMessageClassWarning, stacklevel=2)
    return _KINDS[kind]


def _derived(cls: type[BaseMessage]) -> Iterator[type[BaseMessage]]:
    """Yield the class and all that derive from it, the newest first: a notebook's cell that ran twice has made two."""
    for derived in reversed(cls.__subclasses__()):
        yield from _derived(derived)
    yield cls


__all__ = ["UnknownMessageClassWarning", "chunk_text", "from_langchain", "to_langchain"]
