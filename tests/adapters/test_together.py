"""One conversation under several frameworks: begun with one, continued with the others, and back."""

import asyncio
import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
from agents import Agent, RunConfig, Runner, function_tool
from agents.testing import ScriptedModel, assistant_message, function_call
from fastapi import FastAPI
from fastapi.testclient import TestClient
from langchain.agents import create_agent
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock, ToolCallBlock
from llama_index.core.llms.mock import MockFunctionCallingLLM
from pydantic_ai import Agent as PydanticAgent, messages as pydantic_ai
from pydantic_ai.models.function import FunctionModel

from convmem import (
    ConversationMiddleware,
    Message,
    SessionKey,
    Settings,
    from_callable,
    open_conversation,
)
from convmem_langchain import ConversationSaver, MemoryMiddleware, current_thread, from_langchain, to_langchain
from convmem_llamaindex import from_llamaindex, memory_for, to_llamaindex
from convmem_openai_agents import ConversationSession, from_items, to_items
from convmem_pydantic_ai import ask, from_model_messages, keep, to_model_messages

from .stores import backend as backend  # noqa: PLC0414 - a fixture

# the workflows below LlamaIndex's agents look at every attribute of an agent, deprecated ones of pydantic too
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20", "ignore::pydantic.PydanticDeprecatedSince211")

ADA = SessionKey.for_user("ada")
ROLES = {"human": "user", "ai": "assistant", "tool": "tool"}


class Said(NamedTuple):
    """What a message says, in whatever framework."""

    role: str
    text: str = ""
    calls: tuple[tuple[str | None, str, Any], ...] = ()
    answers: str | None = None
    images: tuple[bytes, ...] = ()


def picture(name: str) -> bytes:
    return b"\x89PNG\r\n\x1a\n\x00\xff" + name.encode()


def look(at: str) -> str:
    """Look at something."""
    return f"{at} is a cat"


def turn(name: str) -> list[Said]:
    """Return what is said in a turn of this name: a question with a picture, a call, its result and the answer."""
    return [
        Said("user", f"What is {name}?", images=(picture(name),)),
        Said("assistant", calls=((f"call-{name}", "look", {"at": name}),)),
        Said("tool", f"{name} is a cat", answers=f"call-{name}"),
        Said("assistant", f"A cat: {name}."),
    ]


def in_langchain(message: BaseMessage) -> Said:
    """Read a message with what LangChain has for that."""
    return Said(
        ROLES[message.type],
        str(message.text),
        tuple((call["id"], call["name"], call["args"]) for call in getattr(message, "tool_calls", ())),
        getattr(message, "tool_call_id", None),
        tuple(b64decode(block["base64"]) for block in message.content_blocks if block["type"] == "image"),
    )


def in_llamaindex(message: ChatMessage) -> Said:
    """Read a message with what LlamaIndex has for that."""
    return Said(
        message.role.value,
        message.content or "",
        tuple((block.tool_call_id, block.tool_name, block.tool_kwargs) for block in message.blocks if isinstance(block, ToolCallBlock)),
        message.additional_kwargs.get("tool_call_id"),
        tuple(block.resolve_image().read() for block in message.blocks if isinstance(block, ImageBlock)),
    )


def in_openai_agents(items: Sequence[Any]) -> list[Said]:
    """Read items with what OpenAI has for that."""
    said: list[Said] = []
    for item in items:
        match item:
            case {"type": "function_call"}:
                said.append(Said("assistant", calls=((item["call_id"], item["name"], json.loads(item["arguments"])),)))
            case {"type": "function_call_output"}:
                said.append(Said("tool", item["output"], answers=item["call_id"]))
            case {"role": role, "content": str(text)}:
                said.append(Said(role, text))
            case {"role": role, "content": blocks}:
                images = tuple(b64decode(block["image_url"].partition(",")[2]) for block in blocks if block["type"] == "input_image")
                said.append(Said(role, "".join(block.get("text", "") for block in blocks), images=images))
    return said


def in_pydantic_ai(messages: Sequence[Any]) -> list[Said]:
    """Read messages with what Pydantic AI has for that."""
    said: list[Said] = []
    for message in messages:
        if message.kind == "response":
            calls = tuple((call.tool_call_id, call.tool_name, call.args_as_dict()) for call in message.tool_calls)
            said.append(Said("assistant", message.text or "", calls))
            continue
        for part in message.parts:
            if part.part_kind == "tool-return":
                said.append(Said("tool", part.model_response_str(), answers=part.tool_call_id))
                continue
            content = [part.content] if isinstance(part.content, str) else part.content
            images = tuple(item.data for item in content if isinstance(item, pydantic_ai.BinaryImage))
            said.append(Said("user", "".join(item for item in content if isinstance(item, str)), images=images))
    return said


class LangChain:
    """An app's route with an agent of LangChain's."""

    def __init__(self) -> None:
        """Begin with nothing seen."""
        self.seen: list[list[BaseMessage]] = []
        self.wrote: list[list[BaseMessage]] = []

    async def chat(self, name: str) -> str:
        seen = self.seen

        class Model(GenericFakeChatModel):
            def bind_tools(self, tools, **options):
                return self

            def _generate(self, messages, *args, **options):
                seen.append([message.model_copy(deep=True) for message in messages])
                return super()._generate(messages, *args, **options)

        call = AIMessage("", tool_calls=[{"id": f"call-{name}", "name": "look", "args": {"at": name}}])
        answer = AIMessage(f"A cat: {name}.", response_metadata={"model_name": "a model", "tokens": [1, None]})
        image = {"type": "image", "base64": b64encode(picture(name)).decode(), "mime_type": "image/png"}
        question = HumanMessage([{"type": "text", "text": f"What is {name}?"}, image], id=f"question-{name}")
        result = await self.run(Model(messages=iter([call, answer])), {"messages": [question]})
        self.wrote.append([question, *result["messages"][-3:]])
        return str(result["messages"][-1].text)

    async def run(self, model: GenericFakeChatModel, question: Any) -> Any:
        agent: Any = create_agent(model, [look], middleware=[MemoryMiddleware()])
        return await agent.ainvoke(question)

    def saw(self) -> list[Said]:
        """Return what the model was sent, the last time."""
        return [in_langchain(message) for message in self.seen[-1]]


class LangGraph(LangChain):
    """An app's route with a graph that has the conversation for its checkpointer."""

    async def run(self, model: GenericFakeChatModel, question: Any) -> Any:
        agent: Any = create_agent(model, [look], checkpointer=ConversationSaver())
        return await agent.ainvoke(question, current_thread())


class LlamaIndex:
    """An app's route with an agent of LlamaIndex's."""

    def __init__(self) -> None:
        """Begin with nothing seen."""
        self.seen: list[list[ChatMessage]] = []
        self.wrote: list[list[ChatMessage]] = []

    async def chat(self, name: str) -> str:
        call = ChatMessage(
            role="assistant", blocks=[ToolCallBlock(tool_call_id=f"call-{name}", tool_name="look", tool_kwargs={"at": name})]
        )
        answer = ChatMessage(f"A cat: {name}.", role="assistant", additional_kwargs={"model": "a model", "tokens": [1, None]})

        def said(messages, **options):
            self.seen.append([message.model_copy(deep=True) for message in messages])
            return (answer if messages[-1].role == "tool" else call).model_copy(deep=True)

        question = ChatMessage(role="user", blocks=[TextBlock(text=f"What is {name}?"), ImageBlock(image=picture(name), detail="low")])
        agent: Any = FunctionAgent(tools=[look], llm=MockFunctionCallingLLM(response_generator=said), streaming=False)
        result = await agent.run(user_msg=question.model_copy(deep=True), memory=memory_for())
        self.wrote.append([question, call, self.seen[-1][-1], answer])
        return str(result)

    def saw(self) -> list[Said]:
        """Return what the model was sent, the last time."""
        return [in_llamaindex(message) for message in self.seen[-1]]


class OpenAIAgents:
    """An app's route with an agent of OpenAI's SDK."""

    def __init__(self) -> None:
        """Begin with nothing seen."""
        self.seen: list[list[Any]] = []
        self.wrote: list[list[Any]] = []

    async def chat(self, name: str) -> str:
        model = ScriptedModel([[function_call("look", {"at": name}, call_id=f"call-{name}")], [assistant_message(f"A cat: {name}.")]])
        image = {"type": "input_image", "image_url": f"data:image/png;base64,{b64encode(picture(name)).decode()}", "detail": "low"}
        question: Any = {"role": "user", "content": [{"type": "input_text", "text": f"What is {name}?"}, image]}
        agent: Any = Agent("an agent", model=model, tools=[function_tool(look)])
        result = await Runner.run(agent, [question], session=ConversationSession(), run_config=RunConfig(tracing_disabled=True))
        self.seen += [list(call.input) for call in model.calls]
        self.wrote.append([question, *(item.to_input_item() for item in result.new_items)])
        return str(result.final_output)

    def saw(self) -> list[Said]:
        """Return what the model was sent, the last time."""
        return in_openai_agents(self.seen[-1])


class PydanticAI:
    """An app's route with an agent of Pydantic AI's."""

    def __init__(self) -> None:
        """Begin with nothing seen."""
        self.seen: list[list[Any]] = []
        self.wrote: list[list[Any]] = []

    async def chat(self, name: str) -> str:
        def said(messages, info):
            self.seen.append(list(messages))
            if messages[-1].parts[0].part_kind == "tool-return":
                return pydantic_ai.ModelResponse([pydantic_ai.TextPart(f"A cat: {name}.", id="m1", provider_name="a provider")])
            call = pydantic_ai.ToolCallPart("look", json.dumps({"at": name}), f"call-{name}")
            return pydantic_ai.ModelResponse([call], finish_reason="tool_call")

        image = pydantic_ai.BinaryImage(picture(name), media_type="image/png", vendor_metadata={"detail": "low"})
        history = await ask([f"What is {name}?", image])
        result = await PydanticAgent(FunctionModel(said), tools=[look], instructions="Look.").run(message_history=history)
        keep(result)
        self.wrote.append([history[-1], *result.new_messages()])
        return result.output

    def saw(self) -> list[Said]:
        """Return what the model was sent, the last time."""
        return in_pydantic_ai(self.seen[-1])


class App:
    """An app with a route for each framework, and one that uses two within a turn; its one user is Ada."""

    def __init__(self, store) -> None:
        """Make the app."""
        self.store = store
        self.langchain, self.llamaindex, self.openai_agents = LangChain(), LlamaIndex(), OpenAIAgents()
        self.pydantic_ai, self.langgraph = PydanticAI(), LangGraph()
        app = FastAPI()
        settings = Settings({}, secret_key="a secret key of thirty-two bytes")
        app.add_middleware(ConversationMiddleware, store=store, settings=settings, resolvers=[from_callable(lambda scope: "ada")])
        app.post("/langchain")(self.langchain.chat)
        app.post("/llamaindex")(self.llamaindex.chat)
        app.post("/openai_agents")(self.openai_agents.chat)
        app.post("/pydantic_ai")(self.pydantic_ai.chat)
        app.post("/langgraph")(self.langgraph.chat)
        app.post("/both")(self.both)
        self.http = TestClient(app)

    async def both(self, name: str) -> str:
        await self.langchain.chat(f"{name}-1")
        await self.llamaindex.chat(f"{name}-2")
        return await self.langchain.chat(f"{name}-3")

    def ask(self, route: str, name: str) -> None:
        response = self.http.post(f"/{route}", params={"name": name})
        assert response.json().startswith("A cat: ")

    def begin_and_continue(self, first: str) -> None:
        """Have turns a, b, c and d, the frameworks in turn."""
        second = {"langchain": "llamaindex", "llamaindex": "langchain"}[first]
        for route, name in zip([first, second] * 2, "abcd", strict=True):
            self.ask(route, name)

    def stored(self) -> tuple[list[Message], int]:
        """Return the messages and the number of turns, as the next request has them."""

        async def read() -> tuple[list[Message], int]:
            async with open_conversation(ADA, store=self.store) as conversation:
                return conversation.messages, conversation.total_turns

        return asyncio.run(read())


@pytest.fixture
def app(backend):
    return App(backend)


def assert_a_model_takes(messages: Sequence[Said]) -> None:
    """Begins with a question, each call has its result right behind it, and no result is without a call."""
    assert messages[0].role == "user"
    waiting: list[str | None] = []
    for message in messages:
        if message.role == "tool":
            waiting.remove(message.answers)
            continue
        assert not waiting
        waiting = [name for name, _, _ in message.calls]
    assert not waiting


both_ways = pytest.mark.parametrize("first", ["langchain", "llamaindex"])
on_a_laptop = pytest.mark.parametrize("backend", ["memory", "sqlite"], indirect=True)


@on_a_laptop
@both_ways
def test_each_framework_sees_everything_the_other_wrote(first, app):
    """Text, pictures byte by byte, calls with id, name and arguments, and results: to the model nothing has changed hands."""
    app.begin_and_continue(first)
    second = "llamaindex" if first == "langchain" else "langchain"
    for framework, names in ((first, "abc"), (second, "abcd")):
        everything = [said for name in names for said in turn(name)]
        assert getattr(app, framework).saw() == everything[:-1]  # all but its answer


@on_a_laptop
@both_ways
def test_each_message_comes_back_equal_to_the_framework_that_wrote_it(first, app):
    """What only one of them has words for (a model's metadata, an image's detail) outlives the turns of the other."""
    app.begin_and_continue(first)
    messages, _ = app.stored()
    turns = [messages[i : i + 4] for i in range(0, 16, 4)]
    mine = turns[::2] if first == "langchain" else turns[1::2]
    assert [to_langchain(messages) for messages in mine] == app.langchain.wrote
    theirs = turns[1::2] if first == "langchain" else turns[::2]
    assert [to_llamaindex(messages) for messages in theirs] == app.llamaindex.wrote


@on_a_laptop
@both_ways
def test_what_every_model_was_sent_is_valid(first, app):
    """A provider refuses a list that does not begin with a question, or has a call without its result."""
    app.begin_and_continue(first)
    assert len(app.langchain.seen) == len(app.llamaindex.seen) == 4
    for seen in app.langchain.seen:
        assert_a_model_takes([in_langchain(message) for message in seen])
    for seen in app.llamaindex.seen:
        assert_a_model_takes([in_llamaindex(message) for message in seen])


@on_a_laptop
@both_ways
def test_nothing_is_stored_twice_and_nothing_changes_when_the_other_reads_it(first, app):
    """An agent that is handed a history must not write it again as its own."""
    app.begin_and_continue(first)
    messages, turns = app.stored()
    assert [in_llamaindex(to_llamaindex(message)) for message in messages] == [said for name in "abcd" for said in turn(name)]
    assert len({message.id for message in messages}) == len(messages)
    assert turns == 4


@on_a_laptop
def test_one_turn_may_hold_both(app):
    """An app that retrieves with one and answers with the other has one turn, and each sees what the other just did."""
    app.ask("both", "a")
    names = ["a-1", "a-2", "a-3"]
    everything = [said for name in names for said in turn(name)]
    assert app.llamaindex.saw() == everything[:7]
    assert app.langchain.saw() == everything[:11]
    messages, turns = app.stored()
    assert turns == 1
    assert to_langchain(messages[:4] + messages[8:]) == [message for wrote in app.langchain.wrote for message in wrote]
    assert to_llamaindex(messages[4:8]) == app.llamaindex.wrote[0]
    app.ask("llamaindex", "b")
    assert app.llamaindex.saw() == [*everything, *turn("b")[:-1]]


@on_a_laptop
def test_a_message_passed_through_the_other_framework_still_says_the_same(app):
    """Code that takes LangChain's messages and returns LlamaIndex's, or the other way round, loses no call and no picture."""
    app.ask("both", "a")
    messages, _ = app.stored()
    everything = [said for name in ("a-1", "a-2", "a-3") for said in turn(name)]
    assert [in_langchain(to_langchain(from_llamaindex(to_llamaindex(message)))) for message in messages] == everything
    assert [in_llamaindex(to_llamaindex(from_langchain(to_langchain(message)))) for message in messages] == everything


FRAMEWORKS = ("langchain", "llamaindex", "openai_agents", "pydantic_ai", "langgraph")
WROTE: dict[str, Callable[[list[Message]], Any]] = {
    "langchain": to_langchain,
    "llamaindex": to_llamaindex,
    "openai_agents": to_items,
    "pydantic_ai": to_model_messages,
    "langgraph": to_langchain,
}
READ: dict[str, Callable[[list[Message]], list[Said]]] = {
    "langchain": lambda messages: [in_langchain(message) for message in to_langchain(messages)],
    "llamaindex": lambda messages: [in_llamaindex(message) for message in to_llamaindex(messages)],
    "openai_agents": lambda messages: in_openai_agents(to_items(messages)),
    "pydantic_ai": lambda messages: in_pydantic_ai(to_model_messages(messages)),
    "langgraph": lambda messages: [in_langchain(message) for message in to_langchain(messages)],
}
PASSED: dict[str, Callable[[list[Message]], list[Message]]] = {
    "langchain": lambda messages: from_langchain(to_langchain(messages)),
    "llamaindex": lambda messages: from_llamaindex(to_llamaindex(messages)),
    "openai_agents": lambda messages: from_items(to_items(messages)),
    "pydantic_ai": lambda messages: from_model_messages(to_model_messages(messages)),
    "langgraph": lambda messages: from_langchain(to_langchain(messages)),
}


@pytest.mark.parametrize(
    ("backend", "first"),
    [*(("memory", first) for first in range(5)), *((store, first) for store in ("sqlite", "redis", "postgresql") for first in (0, 3))],
    indirect=["backend"],
)
def test_a_conversation_goes_through_all_frameworks_and_back(first, app):
    """Whoever begins: each model is sent all that was said, its own messages come back equal, and nothing is stored twice."""
    routes = [*FRAMEWORKS[first:], *FRAMEWORKS[:first], FRAMEWORKS[first]]
    names = "abcdef"
    for i, (route, name) in enumerate(zip(routes, names, strict=True)):
        app.ask(route, name)
        sent = getattr(app, route).saw()
        assert sent == [said for earlier in names[: i + 1] for said in turn(earlier)][:-1]
        assert_a_model_takes(sent)
    messages, turns = app.stored()
    assert turns == 6
    everything = [said for name in names for said in turn(name)]
    for route in FRAMEWORKS:
        mine = [i * 4 for i, one in enumerate(routes) if one == route]
        assert [WROTE[route](messages[i : i + 4]) for i in mine] == getattr(app, route).wrote
        assert READ[route](messages) == everything
        for other in FRAMEWORKS:
            assert READ[other](PASSED[route](messages)) == everything, (route, other)
