"""Items of the OpenAI Agents SDK through convmem: equal when they come back, and read by others."""

from itertools import chain

import pytest
from hypothesis import given, settings, strategies

from convmem import ImagePart, MemoryStore, Message, ReasoningPart, SessionKey, TextPart, ToolCall, Window, open_conversation
from convmem.messages import decode_messages, encode_message, encode_messages
from convmem.windows import Turn, view
from convmem_openai_agents import from_items, to_items

from .openai_corpus import MESSAGES, PICTURE, answer, call, output_text, result, thought, user

JSON = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.integers() | strategies.floats(allow_nan=False) | strategies.text(),
    lambda inner: strategies.lists(inner, max_size=3) | strategies.dictionaries(strategies.text(), inner, max_size=3),
    max_leaves=8,
)
KEYS = strategies.sampled_from(["type", "role", "content", "call_id", "id", "name", "arguments", "output", "summary", "input", "result"])
WORDS = strategies.sampled_from(
    ["message", "user", "assistant", "reasoning", "function_call", "function_call_output", "custom_tool_call", "shell_call", "c1", "{}"]
)
MANGLED = strategies.dictionaries(KEYS, WORDS | JSON, max_size=5)


def stored(messages):
    """Return messages as a store gives them back."""
    return decode_messages(encode_messages(map(encode_message, messages)))


@pytest.mark.parametrize("items", MESSAGES, ids=str)
def test_the_items_of_a_message_come_back_equal(items):
    """Whatever the SDK hands over is what it reads, and one message is one message."""
    messages = stored(from_items(items))
    assert len(messages) == 1
    assert to_items(messages) == items


@settings(max_examples=200, deadline=None)
@given(strategies.lists(strategies.sampled_from(MESSAGES) | strategies.lists(MANGLED, max_size=2), max_size=6))
def test_any_items_come_back_equal(groups):
    """Nothing is lost at the seams of messages, and nothing by items that are not what their types promise."""
    items = list(chain.from_iterable(groups))
    assert to_items(stored(from_items(items))) == items


def test_what_is_changed_in_an_item_is_not_changed_in_the_conversation():
    """Runs write into the items they were given."""
    items = [call("c1", status="completed"), {"type": "item_reference", "deep": {"list": [1]}}]
    messages = from_items(items)
    for item in (*items, *to_items(messages)):
        item.clear()
    assert to_items(messages)[1]["deep"] == {"list": [1]}


def test_a_plain_message_needs_nothing_beside_it():
    """What another framework has a form for is stored in that form alone."""
    for items in ([user("Hello")], [{"role": "assistant", "content": "Hi."}], [result("c1")], [{"role": "system", "content": "Be brief."}]):
        assert from_items(items)[0].extras == {}


def test_a_picture_is_stored_once():
    """Also where its block says more than the part, and where another block is none of ours."""
    for items in (
        [
            user(
                [
                    {"type": "input_image", "image_url": f"data:image/png;base64,{PICTURE}", "detail": "low"},
                    {"type": "input_file", "file_id": "f"},
                ]
            )
        ],
        [{"type": "image_generation_call", "id": "ig", "result": PICTURE}],
    ):
        assert encode_message(from_items(items)[0]).count(PICTURE.encode()) == 1


def test_what_a_model_said_at_once_is_one_message():
    """Calls made together stand together, with their results behind: what the formats of other providers demand."""
    items = [
        user("What is this?"),
        *(thought("rs_1", "Look."), call("c1", '{"at":1}'), thought("rs_2"), call("c2")),
        *(result("c1"), result("c2", "a dog")),
        answer(output_text("Both.")),
    ]
    question, calls, *results, last = from_items(items)
    assert question.text == "What is this?"
    assert calls.content == (ReasoningPart(text="Look."), ReasoningPart())
    assert calls.tool_calls == (ToolCall(id="c1", name="look", arguments={"at": 1}), ToolCall(id="c2", name="look"))
    assert [(one.role, one.text, one.tool_call_id, one.name) for one in results] == [
        ("tool", "a cat", "c1", "look"),
        ("tool", "a dog", "c2", "look"),
    ]
    assert last.content == (TextPart(text="Both."),)


def test_two_answers_are_two_messages():
    """Nothing says that they are one."""
    assert [message.text for message in from_items([answer(output_text("one")), answer(output_text("two"))])] == ["one", "two"]


def test_others_see_the_tools_of_openai_too():
    """A shell, a computer and an approval are calls with results to everybody."""
    asked = [
        {"type": "shell_call", "call_id": "s1", "action": {"commands": ["ls"]}},
        {"type": "mcp_approval_request", "id": "a1", "name": "pay", "arguments": '{"sum":1}', "server_label": "bank"},
    ]
    given = [
        {"type": "shell_call_output", "call_id": "s1", "output": [{"stdout": "a"}]},
        {"type": "mcp_approval_response", "approval_request_id": "a1", "approve": True},
    ]
    calls, shell, approval = from_items([*asked, *given])
    assert calls.tool_calls[0] == ToolCall(id="s1", name="shell_call", arguments={"action": {"commands": ["ls"]}})
    assert calls.tool_calls[1] == ToolCall(id="a1", name="pay", arguments={"sum": 1})
    assert (shell.tool_call_id, shell.text) == ("s1", '[{"stdout": "a"}]')
    assert (approval.tool_call_id, approval.text) == ("a1", "approved")


@pytest.mark.asyncio
async def test_a_call_that_a_window_leaves_out_takes_its_thought_along():
    """OpenAI refuses a call without its result, and a thought without what it led to; what was answered stays as it was."""
    said = [thought("rs_1"), call("c1"), thought("rs_2"), call("c2", status="completed"), answer(output_text("Wait.")), call("c3")]
    store = MemoryStore()
    async with open_conversation(SessionKey.for_user("ada"), store=store) as conversation:
        conversation.append(*from_items([user("Look."), *said, result("c2")]))
    async with open_conversation(SessionKey.for_user("ada"), store=store) as conversation:
        assert to_items(conversation.messages) == [user("Look."), said[2], said[3], said[4], result("c2")]
        assert to_items(await conversation.history()) == [user("Look."), *said, result("c2")]


def test_calls_that_share_an_id_stay_what_they_were():
    """Some models number their calls anew in each answer, or give all the same id; a window leaves both or none."""
    said = from_items([user("Look."), call("same", '{"at":1}'), call("c2"), call("same", '{"at":2}'), result("same")])
    shown = to_items(view([Turn(tuple(said))], Window()).messages)
    assert shown == [user("Look."), call("same", '{"at":1}'), call("same", '{"at":2}'), result("same")]


def test_a_call_that_a_window_closes_has_a_result():
    """`Window(unanswered="close")` says that there is none."""
    said = from_items([user("Look."), thought("rs_1"), call("c1")])
    *asked, closing = to_items(view([Turn(tuple(said))], Window(unanswered="close")).messages)
    assert asked == [user("Look."), thought("rs_1"), call("c1")]
    assert (closing["type"], closing["call_id"]) == ("function_call_output", "c1")


def test_what_another_framework_wrote_is_in_the_form_of_openai():
    """A question is a question, an answer text, and a call a function's."""
    messages = [
        Message.user((TextPart(text="What?"), ImagePart(url="https://a.example/b"))),
        Message.assistant("I look.", tool_calls=(ToolCall(id="c1", name="look", arguments={"at": 1}),)),
        Message.tool("a cat", tool_call_id="c1", name="look"),
        Message.assistant((TextPart(text="A "), TextPart(text="cat."), ImagePart(url="https://a.example/b"))),
        Message.assistant((ImagePart(url="https://a.example/b"),)),
    ]
    assert to_items(messages) == [
        user([{"type": "input_text", "text": "What?"}, {"type": "input_image", "image_url": "https://a.example/b", "detail": "auto"}]),
        {"role": "assistant", "content": "I look."},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"at":1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "a cat"},
        {
            "type": "message",
            "role": "assistant",
            "content": [
                {"type": "output_text", "text": "A ", "annotations": []},
                {"type": "output_text", "text": "cat.", "annotations": []},
            ],
        },
    ]
