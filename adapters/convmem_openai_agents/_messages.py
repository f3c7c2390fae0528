"""The items of the OpenAI Agents SDK as convmem's messages, and back, without loss.

An item is a piece of what the Responses API takes as input: a message, a thought, a tool call, a result. What the model said between
two results is one assistant message, however many items it came in, so that calls made together stand together, as the message formats
of other APIs demand; every other item is a message of its own. Only what has no neutral form is kept in ``extras["openai_agents"]``:

- ``items``: what each item has beyond what is written from the message (`rest_of`), or a whole item that has no neutral form;
- ``layout``: which item has what of the message, where it cannot be seen from the message itself;
- ``calls``: the ids of all calls, because a window leaves some out of the message.

Values that are not JSON are refused with the name of their field.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from typing import Any, TypeAlias, cast

from agents import TResponseInputItem

from convmem import ImagePart, InvalidMessage, Message, Part, ReasoningPart, Role, TextPart, ToolCall, rest_of, with_rest

from ._blocks import to_block, to_part, url_of

Item: TypeAlias = dict[str, Any]
Slot: TypeAlias = list[Any]
"""What an item has of its message: its kind first.

=============================  ====================================================================================
``["text"]``                   the text the content is
``["parts", n, [i, …]]``       the next n parts; the blocks at these positions are not among them
``["thought"]``                the next part, which is reasoning
``["image"]``                  the next part, a picture the model has made
``["call", form]``             the next call: of a function, a ``custom`` tool, a tool of OpenAI's ``own``, an ``approval``
``["result", type]``           the text of the content; further fields as in ``parts``
``["item"]``                   nothing: it is kept whole
=============================  ====================================================================================
"""

NAME = "openai_agents"
_ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
_OWN_CALLS = frozenset({"shell_call", "local_shell_call", "apply_patch_call", "computer_call", "tool_search_call", "program"})
_RESULT = "function_call_output"
_APPROVAL = "mcp_approval_response"
_APPROVED, _REFUSED = "approved", "not approved"
_PNG = "image/png"


def from_items(items: Iterable[TResponseInputItem]) -> list[Message]:
    """Return items as messages; ``to_items`` makes them again equal to what they were.

    Each message is new, with an id of its own: those of items are not unique.

    Raises:
        InvalidMessage: A value cannot be stored and read back equal; its field is named.
    """
    plain = [_plain_item(item, f"items[{i}]") for i, item in enumerate(items)]
    names = {item["call_id"]: item["name"] for item in plain if isinstance(item.get("call_id"), str) and isinstance(item.get("name"), str)}
    return [_message(group, names) for group in _groups(plain)]


def to_items(messages: Iterable[Message]) -> list[TResponseInputItem]:
    """Return messages as the SDK's items, whichever framework wrote them. New objects each time."""
    return [cast("TResponseInputItem", item) for message in messages for item in _items(message)]


def of_this_sdk(message: Message) -> bool:
    """Return whether what it thinks was thought by a model the SDK asked, and not under another framework."""
    return NAME in message.extras


# From items


def _groups(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Yield the items of each message."""
    said: list[Item] = []
    for item in items:
        role = _role(item)
        new_message = _is_message(item) and any(map(_is_message, said)) and not any(map(_is_call, said))
        if said and (role != "assistant" or new_message):
            yield said
            said = []
        if role == "assistant":
            said.append(item)
        else:
            yield [item]
    if said:
        yield said


def _role(item: Item) -> Role:
    if _is_message(item):
        return _ROLES[item["role"]]
    return "tool" if _answers(item) is not None else "assistant"


def _is_message(item: Item) -> bool:
    role = item.get("role")
    spoken = isinstance(role, str) and role in _ROLES and isinstance(item.get("content"), str | list)
    return spoken and item.get("type", "message") == "message"


def _is_call(item: Item) -> bool:
    return _call(item) is not None


def _answers(item: Item) -> str | None:
    """Return the id of the call an item is the result of."""
    kind = item.get("type")
    if not isinstance(kind, str) or not (kind.endswith("_output") or kind == _APPROVAL):
        return None
    call = item.get("approval_request_id") if kind == _APPROVAL else item.get("call_id", item.get("id"))
    return call if isinstance(call, str) else None


def _message(items: list[Item], names: dict[str, str]) -> Message:
    role = _role(items[0])
    parts: list[Part] = []
    calls: list[ToolCall] = []
    layout: list[Slot] = []
    text = ""
    alone = sum(not _is_call(item) for item in items) == 1
    for item in items:
        slot, said = _read(item, alone=alone)
        layout.append(slot)
        if isinstance(said, str):
            text = said
        elif isinstance(said, ToolCall):
            calls.append(said)
        else:
            parts += said
    content = tuple(parts) if parts or (role != "assistant" and layout[0][0] == "parts") else text
    answers = _answers(items[0]) if role == "tool" else None
    message = Message(
        role=role,
        content=content,
        tool_calls=tuple(calls),
        tool_call_id=answers,
        name=None if answers is None else names.get(answers),
        extras={NAME: {}},
    )
    extras: dict[str, Any] = {}
    rests = [rest_of(item, written) for item, written in zip(items, _written(message, layout), strict=True)]
    if any(rest is not None for rest in rests):
        extras["items"] = rests
    if layout != _layout(message, len(calls)):
        extras["layout"] = layout
    if calls:
        extras["calls"] = [call.id for call in calls]
    marked = bool(extras) or any(isinstance(part, ReasoningPart) for part in parts)
    message = message.model_copy(update={"extras": {NAME: extras} if marked else {}})
    if _items(message) != items:
        field = "items"
        raise InvalidMessage(field, "do not come back from their stored form equal to what they were")
    return message


def _read(item: Item, *, alone: bool) -> tuple[Slot, str | ToolCall | list[Part]]:  # noqa: PLR0911 - one for each kind of item
    """Return what an item says, and where it stands.

    Args:
        item: One.
        alone: Whether nothing but calls stands beside it, so that plain text is all the content there is.
    """
    call = _call(item)
    if call is not None:
        return ["call", *_form(item)], call
    if _answers(item) is not None:
        return _read_result(item)
    if _is_message(item):
        content = item["content"]
        if isinstance(content, str):
            return (["text"], content) if alone else (["parts", 1, []], [TextPart(text=content)])
        parts, others = _read_blocks(content)
        return ["parts", len(parts), others], parts
    if item.get("type") == "reasoning":
        return ["thought"], [_thought(item)]
    if item.get("type") == "image_generation_call" and isinstance(item.get("result"), str):
        image = to_part({"type": "input_image", "image_url": f"data:{_PNG};base64,{item['result']}"})
        if isinstance(image, ImagePart) and image.data is not None:
            return ["image"], [image]
    return ["item"], []


def _read_blocks(blocks: list[Any]) -> tuple[list[Part], list[int]]:
    parts = [to_part(block) for block in blocks]
    return [part for part in parts if part is not None], [i for i, part in enumerate(parts) if part is None]


def _read_result(item: Item) -> tuple[Slot, str | list[Part]]:
    kind, output = item["type"], item.get("output")
    if kind == _APPROVAL:
        return ["result", kind], _APPROVED if item.get("approve") is True else _REFUSED
    if isinstance(output, str):
        return ["result", kind], output
    blocks = output if isinstance(output, list) else [output]
    parts, others = _read_blocks(blocks)
    if parts:
        return ["result", kind, len(parts), others], parts
    return ["result", kind], json.dumps(output, ensure_ascii=False)


def _call(item: Item) -> ToolCall | None:
    match item:
        case {"type": "function_call", "call_id": str(call), "name": str(name), "arguments": str(arguments)}:
            return ToolCall(id=call, name=name, arguments=_arguments(arguments))
        case {"type": "custom_tool_call", "call_id": str(call), "name": str(name), "input": str(given)}:
            return ToolCall(id=call, name=name, arguments=given)
        case {"type": "mcp_approval_request", "id": str(call), "name": str(name), "arguments": str(arguments)}:
            return ToolCall(id=call, name=name, arguments=_arguments(arguments))
        case {"type": str(kind), "call_id": str(call)} if kind in _OWN_CALLS:
            return ToolCall(id=call, name=kind, arguments={key: value for key, value in item.items() if key not in ("type", "call_id")})
    return None


def _form(item: Item) -> list[str]:
    forms = {"function_call": [], "custom_tool_call": ["custom"], "mcp_approval_request": ["approval"]}
    return forms.get(item["type"], ["own"])


def _arguments(text: str) -> dict[str, Any] | str:
    try:
        parsed = json.loads(text)
    except ValueError:
        return text
    return parsed if isinstance(parsed, dict) else text


def _thought(item: Item) -> ReasoningPart:
    """Return a thought as far as it shows; models without a summary show all of it."""
    signature = item.get("encrypted_content")
    blocks = item.get("summary") or item.get("content")
    listed = blocks if isinstance(blocks, list) else []
    shown = [block["text"] for block in listed if isinstance(block, dict) and isinstance(block.get("text"), str)]
    return ReasoningPart(text="\n\n".join(shown), signature=signature if isinstance(signature, str) else None)


# To items


def _items(message: Message) -> list[Item]:
    extras = message.extras.get(NAME, {})
    ids: Sequence[str] = extras.get("calls", ())
    layout: list[Slot] = extras.get("layout") or _layout(message, len(ids) or len(message.tool_calls))
    written = _written(message, layout, ids)
    rests: list[Any] = extras.get("items") or [None] * len(written)
    kept = _kept(layout, ids, {call.id for call in message.tool_calls})
    return [with_rest(item, rest) for item, rest, keep in zip(written, rests, kept, strict=True) if keep and not (item is rest is None)]


def _layout(message: Message, calls: int) -> list[Slot]:
    """Return the layout of a message that says it all: what another framework wrote, and most of what the SDK writes."""
    if message.role == "tool":
        return [["result", _RESULT] if isinstance(message.content, str) else ["result", _RESULT, len(message.content), []]]
    if isinstance(message.content, str):
        text: list[Slot] = [["text"]] if message.content or message.role != "assistant" else []
        return [*text, *(["call"] for _ in range(calls))]
    if message.role != "assistant":
        return [["parts", len(message.content), []]]
    layout: list[Slot] = []
    for part in message.content:
        if isinstance(part, ReasoningPart):
            layout.append(["thought"])
        elif layout and layout[-1][0] == "parts":
            layout[-1][1] += 1
        else:
            layout.append(["parts", 1, []])
    return [*layout, *(["call"] for _ in range(calls))]


def _kept(layout: list[Slot], ids: Sequence[str], present: set[str]) -> list[bool]:
    """Return which items are there: not the calls a window leaves out, nor the thoughts that led to nothing but those."""
    calls = iter(ids)
    kept = [slot[0] != "call" or next(calls, None) in present or not ids for slot in layout]
    for i in range(len(layout) - 2, -1, -1):
        kept[i] = kept[i] and (layout[i] != ["thought"] or kept[i + 1])
    return kept


def _written(message: Message, layout: list[Slot], ids: Sequence[str] = ()) -> list[Any]:
    """Return an item for each slot, as far as the message says it; None where it says nothing."""
    parts = iter(() if isinstance(message.content, str) else message.content)
    calls = _each_call(message, ids) if ids else iter(message.tool_calls)
    return [_written_item(message, slot, parts, calls) for slot in layout]


def _each_call(message: Message, ids: Sequence[str]) -> Iterator[ToolCall]:
    """Yield the call of each id, in order; an empty one for a call that a window leaves out. Models may use an id twice."""
    left = list(message.tool_calls)
    for name in ids:
        call = next((call for call in left if call.id == name), None)
        if call is not None:
            left.remove(call)
        yield call or ToolCall(id=name, name="")


def _written_item(message: Message, slot: Slot, parts: Iterator[Part], calls: Iterator[ToolCall]) -> Any:  # noqa: PLR0911 - one for each kind of slot
    match slot:
        case ["text"]:
            return {"role": message.role, "content": message.content}
        case ["parts", count, others]:
            by_model = message.role == "assistant"
            blocks = _written_blocks(parts, count, others, said_by_model=by_model)
            if by_model and not blocks and count:
                return None
            return ({"type": "message"} if by_model else {}) | {"role": message.role, "content": blocks}
        case ["thought"]:
            return _written_thought(cast("ReasoningPart", next(parts)))
        case ["image"]:
            image = cast("ImagePart", next(parts))
            return {"type": "image_generation_call", "result": url_of(image).partition(",")[2]}
        case ["call", *form]:
            return _written_call(next(calls), form)
        case ["result", kind, *inside]:
            output = message.content if not inside else _written_blocks(parts, inside[0], inside[1], said_by_model=False)
            return _written_result(kind, message.tool_call_id or "", output)
    return None


def _written_blocks(parts: Iterator[Part], count: int, others: Sequence[int], *, said_by_model: bool) -> list[Any]:
    blocks: list[Any] = [to_block(next(parts), said_by_model=said_by_model) for _ in range(count)]
    if not others:  # of another framework, which may have parts that are no blocks here
        return [block for block in blocks if block is not None]
    for i in others:
        blocks.insert(i, None)
    return blocks


def _written_thought(part: ReasoningPart) -> Item:
    summary = [{"type": "summary_text", "text": part.text}] if part.text else []
    return {"type": "reasoning", "summary": summary} | ({} if part.signature is None else {"encrypted_content": part.signature})


def _written_call(call: ToolCall, form: list[str]) -> Item:
    if form == ["own"]:
        return {"type": call.name, "call_id": call.id, **deepcopy(call.arguments if isinstance(call.arguments, dict) else {})}
    if form == ["custom"]:
        return {"type": "custom_tool_call", "call_id": call.id, "name": call.name, "input": call.arguments}
    given = call.arguments
    text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False, separators=(",", ":"))
    if form == ["approval"]:
        return {"type": "mcp_approval_request", "id": call.id, "name": call.name, "arguments": text}
    return {"type": "function_call", "call_id": call.id, "name": call.name, "arguments": text}


def _written_result(kind: str, call: str, output: Any) -> Item:
    if kind == _APPROVAL:
        return {"type": kind, "approval_request_id": call, "approve": output == _APPROVED}
    if kind == "computer_call_output" and isinstance(output, list) and len(output) == 1 and output[0] is not None:
        output = {"type": "computer_screenshot", "image_url": output[0].get("image_url")}
    return {"type": kind, "call_id": call, "output": output}


# Values


def _plain_item(item: Any, field: str) -> Item:
    if not isinstance(item, dict):
        raise InvalidMessage(field, f"a {type(item).__name__} is no item; pass its JSON form, a dict")
    return cast("Item", _plain(item, field))


def _plain(value: Any, field: str) -> Any:
    """Return a copy of a JSON value, in plain Python.

    Raises:
        InvalidMessage: It is none.
    """
    match value:
        case None | bool():
            return value
        case int() | float() | bytes():
            return value
        case str():
            return str.__str__(value)
        case list():
            return [_plain(item, f"{field}[{i}]") for i, item in enumerate(value)]
        case dict():
            for key in value:
                if not isinstance(key, str):
                    raise InvalidMessage(field, f"a key is a {type(key).__name__}; the keys of an item are text")
            return {str.__str__(key): _plain(one, f"{field}.{key}") for key, one in value.items()}
    raise InvalidMessage(field, f"a {type(value).__name__} is no JSON and could not be read back equal; put its JSON form there")
