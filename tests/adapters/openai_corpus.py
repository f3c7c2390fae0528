"""Items of the OpenAI Agents SDK, of every kind: as models return them, as the runner writes them, and as apps make them by hand."""

from base64 import b64encode
from typing import Any

PICTURE = b64encode(b"\x89PNG\r\n\x1a\n\x00\xff").decode()


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def answer(*blocks: Any, name: str = "msg_1", **more: Any) -> dict[str, Any]:
    return {"id": name, "type": "message", "role": "assistant", "status": "completed", "content": list(blocks), **more}


def output_text(text: str, *annotations: Any, **more: Any) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": list(annotations), "logprobs": [], **more}


def thought(name: str, *summary: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "type": "reasoning", "summary": [{"type": "summary_text", "text": text} for text in summary], **more}


def call(name: str, arguments: str = "{}", **more: Any) -> dict[str, Any]:
    return {"id": f"fc_{name}", "type": "function_call", "call_id": name, "name": "look", "arguments": arguments, **more}


def result(name: str, output: Any = "a cat", **more: Any) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": name, "output": output, **more}


CITED = {"type": "url_citation", "start_index": 0, "end_index": 5, "url": "https://a.example", "title": "Cats"}
SHELL = {"type": "shell_call", "id": "sh", "call_id": "s1", "status": "completed", "action": {"commands": ["ls"], "timeout_ms": None}}

MESSAGES: tuple[list[dict[str, Any]], ...] = (
    # what people say
    [user("Hello")],
    [user("")],
    [user("Zwölf \x00 🐈 \ud83d", type="message")],
    [user("Hello", status="completed", id="msg_u")],
    [user([])],
    [user([{"type": "input_text", "text": "one"}, {"type": "input_text", "text": ""}])],
    [
        user(
            [
                {"type": "input_text", "text": "What is this?"},
                {"type": "input_image", "image_url": f"data:image/png;base64,{PICTURE}", "detail": "low"},
                {"type": "input_image", "image_url": "https://a.example/b.png", "detail": "auto"},
                {"type": "input_image", "file_id": "file-1", "detail": "auto"},
                {"type": "input_file", "filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PICTURE}"},
                {"type": "input_file", "file_url": "https://a.example/a.pdf"},
                {"type": "input_file", "file_id": "file-2"},
                {"type": "input_audio", "input_audio": {"data": PICTURE, "format": "mp3"}},
            ]
        )
    ],
    [user([{"type": "input_image", "image_url": "data:image/png;charset=x;base64,AA==", "detail": "auto", "file_id": None}])],
    [user([{"type": "input_image", "image_url": "data:image/png;base64,not base64", "detail": "auto"}, "a bare string"])],
    [user([{"type": "input_text", "text": "cached", "prompt_cache_breakpoint": {"mode": "explicit"}}])],
    [{"role": "system", "content": "Be brief."}],
    [{"role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]}],
    # what models say
    [{"role": "assistant", "content": "Hi."}],
    [{"role": "assistant", "content": ""}],
    [{"role": "assistant", "content": "Hi.", "type": "message", "phase": "final_answer"}],
    [answer(output_text("A cat.", CITED))],
    [answer(output_text("A cat.", {"type": "file_citation", "file_id": "f", "filename": "a", "index": 3}, {**CITED, "start_index": None}))],
    [answer(output_text("one"), {"type": "refusal", "refusal": "No."}, {"type": "output_sound", "data": "x"}, output_text("two"))],
    [answer()],
    [thought("rs_1"), answer(output_text("A cat."))],
    [thought("rs_1", "Look first.", "Then speak.", encrypted_content="c2ln", status=None), answer(output_text("A cat."))],
    [{"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "Look."}]}, call("c1")],
    [thought("rs_1"), {"role": "assistant", "content": "Hi."}],
    [thought("rs_1", "Only a thought.", provider_data={"model": "a model"})],
    # what models want called
    [call("c1", '{"at":["a",1,null]}', status="completed")],
    [call("c1", '{ "at": "spaced" }'), call("c2", "no json"), call("c3", "[1]")],
    [thought("rs_1"), call("c1"), thought("rs_2"), call("c2"), answer(output_text("I look."), phase="commentary"), call("c3")],
    [{"role": "assistant", "content": "I look."}, call("c1", '{"zwölf":"🐈"}', namespace="eyes")],
    [answer(output_text("I look.")), call("same"), call("same", '{"at":1}')],
    [{"type": "custom_tool_call", "id": "ct", "call_id": "k1", "name": "sql", "input": "select 1"}],
    [SHELL],
    [
        {
            "type": "computer_call",
            "id": "cu",
            "call_id": "u1",
            "status": "completed",
            "actions": [{"type": "wait"}],
            "pending_safety_checks": [],
        }
    ],
    [{"type": "mcp_approval_request", "id": "mcpr_1", "name": "pay", "arguments": '{"sum":1}', "server_label": "bank"}],
    # results
    [result("c1")],
    [result("c1", "", id="fco", status="completed")],
    [result("c1", [{"type": "input_text", "text": "a cat"}, {"type": "input_image", "file_id": "f"}])],
    [result("c1", [{"type": "input_image", "image_url": f"data:image/png;base64,{PICTURE}", "detail": "auto"}])],
    [result("c1", [])],
    [{"type": "custom_tool_call_output", "call_id": "k1", "output": "1"}],
    [
        {
            "type": "shell_call_output",
            "call_id": "s1",
            "output": [{"stdout": "a\n", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}],
        }
    ],
    [
        {
            "type": "computer_call_output",
            "call_id": "u1",
            "output": {"type": "computer_screenshot", "image_url": f"data:image/png;base64,{PICTURE}"},
        }
    ],
    [{"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True, "reason": None}],
    [{"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": False}],
    [{"type": "local_shell_call_output", "id": "s2", "output": "done"}],
    # what only OpenAI knows
    [
        {"type": "web_search_call", "id": "ws", "status": "completed", "action": {"type": "search", "query": "cats"}},
        answer(output_text("A cat.")),
    ],
    [{"type": "image_generation_call", "id": "ig", "status": "completed", "result": PICTURE, "revised_prompt": "a cat"}],
    [{"type": "image_generation_call", "id": "ig", "status": "failed", "result": None}],
    [{"type": "item_reference", "id": "msg_1"}],
    [{"type": "compaction", "id": "cmp", "encrypted_content": "gAAA"}],
    [{"type": "something_new", "n": 1.5, "deep": {"list": [True, None, {}]}}],
    [{"no": "type"}],
)
"""The items of one message each."""
REFUSED: tuple[tuple[list[Any], str], ...] = (
    (["Hello"], "items[0]"),
    ([user("Hello"), user([{"type": "input_text", "text": "x", "at": (1, 2)}])], "items[1].content[0].at"),
    ([user("Hello", metadata={1: "x"})], "items[0].metadata"),
)
"""What cannot be stored, and the field that is named."""
