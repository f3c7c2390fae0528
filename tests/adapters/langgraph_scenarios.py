"""What graphs do over several turns: each scenario yields what it sees, so that two savers can be compared.

A scenario is given ``graph_of``, which compiles a builder (or calls what takes a saver), and ``within``, around what is one turn.
"""

import asyncio
import operator
from collections import Counter
from typing import Annotated

import pytest
from langchain.agents import create_agent
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage, RemoveMessage, SystemMessage
from langchain_core.tools import tool
from langgraph.func import entrypoint, task
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.types import Command, Interrupt, Send, interrupt

THREAD = {"configurable": {"thread_id": "default"}}


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class Model(GenericFakeChatModel):
    """A chat model that says what it was told to say, and notes what it was sent."""

    sent: list = []  # noqa: RUF012 - a field of a pydantic model

    def __init__(self, *answers):
        super().__init__(messages=iter(answers), sent=[])

    def bind_tools(self, tools, **options):
        return self

    def _generate(self, messages, *args, **options):
        self.sent.append(list(messages))
        return super()._generate(messages, *args, **options)


def calling(*calls):
    return AIMessage("", tool_calls=[{"name": "add", "args": args, "id": name} for name, args in calls])


class Research(MessagesState):
    notes: Annotated[list, operator.add]
    topic: str


def ask(text, **others):
    return {"messages": [("user", text)], **others}


async def several_turns(graph_of, within):
    def answer(state):
        return {"messages": AIMessage(str(len(state["messages"])))}

    graph = graph_of(StateGraph(MessagesState).add_node(answer).add_edge(START, "answer"))
    for i in range(3):
        async with within():
            yield await graph.ainvoke(ask(f"question {i}"), THREAD)
    async with within():
        yield await history_of(graph)


async def tools_in_parallel(graph_of, within):
    model = Model(calling(("c1", {"a": 1, "b": 2}), ("c2", {"a": 3, "b": 4})), AIMessage("3 and 7"), AIMessage("you are welcome"))
    graph = graph_of(lambda saver: create_agent(model, [add], checkpointer=saver))
    for question in ("add them", "thanks"):
        async with within():
            yield await graph.ainvoke(ask(question), THREAD)
    async with within():
        yield await history_of(graph)
    yield [[shown(message) for message in sent] for sent in model.sent]


async def an_interrupt_is_answered_later(graph_of, within):
    def approve(state):
        return Command(goto="act", update={"topic": interrupt({"may I": state["messages"][-1].text})})

    def act(state):
        return {"messages": AIMessage(f"done: {state['topic']}")}

    builder = StateGraph(Research).add_node("approve", approve, destinations=("act",)).add_node("act", act).add_edge(START, "approve")
    graph = graph_of(builder)
    async with within():
        yield await graph.ainvoke(ask("delete it"), THREAD)
        yield (await graph.aget_state(THREAD)).interrupts
    async with within():
        yield await graph.ainvoke(Command(resume="yes"), THREAD)
    async with within():
        yield await history_of(graph)


async def a_finished_sibling_is_not_run_again(graph_of, within):
    runs = Counter()

    def quick(state):
        runs["quick"] += 1
        return {"messages": AIMessage("quick", id="q"), "notes": ["quick"]}

    def slow(state):
        runs["slow"] += 1
        return {"messages": AIMessage(f"slow: {interrupt('go on?')}", id="s"), "notes": ["slow", len(state["messages"])]}

    builder = StateGraph(Research).add_node(quick).add_node(slow).add_edge(START, "quick").add_edge(START, "slow")
    graph = graph_of(builder)
    async with within():
        yield await graph.ainvoke(ask("both", notes=["first"]), THREAD)
    async with within():
        yield await history_of(graph)
    async with within():
        yield await graph.ainvoke(Command(resume="yes"), THREAD)
    async with within():
        yield await history_of(graph)
    yield runs


async def a_node_that_failed_is_run_again(graph_of, within):
    runs = Counter()

    async def good(state):
        runs["good"] += 1
        return {"notes": ["good"], "messages": AIMessage("good")}

    async def bad(state):
        runs["bad"] += 1
        if runs["bad"] == 1:
            await asyncio.sleep(0.1)  # until the good one has ended
            raise ValueError("the model is down")
        return {"notes": ["bad"], "messages": AIMessage("good again")}

    builder = StateGraph(Research).add_node(good).add_node(bad).add_edge(START, "good").add_edge(START, "bad")
    graph = graph_of(builder)
    async with within():
        with pytest.raises(ValueError, match="down"):
            await graph.ainvoke(ask("both"), THREAD)
    async with within():
        yield await history_of(graph)
    async with within():
        yield await graph.ainvoke(None, THREAD)
    async with within():
        yield await history_of(graph)
    yield runs


def counting_graph(graph_of):
    def answer(state):
        return {"messages": AIMessage(f"answer {len(state['messages'])}"), "notes": [len(state["messages"])]}

    builder = StateGraph(Research).add_node("answer", answer).add_node("check", lambda state: {"topic": state["messages"][-1].text})
    return graph_of(builder.add_edge(START, "answer").add_edge("answer", "check"))


async def replayed_from_an_older_checkpoint(graph_of, within):
    graph = counting_graph(graph_of)
    for i in range(3):
        async with within():
            yield await graph.ainvoke(ask(f"question {i}"), THREAD)
    async with within():
        past = [state async for state in graph.aget_state_history(THREAD)]
        old = next(state for state in past if state.next == ("answer",) and len(state.values["messages"]) == 3)
        yield await graph.ainvoke(None, old.config)
    async with within():
        yield await history_of(graph)
    async with within():
        yield await graph.ainvoke(ask("and then?"), THREAD)
    async with within():
        yield await history_of(graph)


async def another_question_at_an_older_checkpoint(graph_of, within):
    graph = counting_graph(graph_of)
    for i in range(3):
        async with within():
            yield await graph.ainvoke(ask(f"question {i}"), THREAD)
    async with within():
        past = [state async for state in graph.aget_state_history(THREAD)]
        first = next(state for state in past if not state.next and len(state.values["messages"]) == 2)
        yield await graph.ainvoke(ask("instead"), first.config)
    async with within():
        yield await history_of(graph)
    async with within():  # and back to the branch that was left
        last = past[0]
        yield await graph.ainvoke(ask("after all"), last.config)
    async with within():
        yield await history_of(graph)


async def a_state_is_changed_by_hand(graph_of, within):
    graph = counting_graph(graph_of)
    async with within():
        yield await graph.ainvoke(ask("question", topic="none"), THREAD)
    async with within():
        said = (await graph.aget_state(THREAD)).values["messages"]
        await graph.aupdate_state(THREAD, {"messages": [AIMessage("a better answer", id=said[-1].id)], "notes": ["changed"]})
        yield await history_of(graph)
    async with within():
        await graph.aupdate_state(THREAD, {"messages": [RemoveMessage(id=said[0].id)]}, as_node="check")
        yield await history_of(graph)
    async with within():
        yield await graph.ainvoke(ask("next"), THREAD)
    async with within():
        past = [state async for state in graph.aget_state_history(THREAD)]
        old = next(state for state in past if state.next == ("check",))
        config = await graph.aupdate_state(old.config, {"messages": [AIMessage("of another branch")], "topic": "other"})
        yield await graph.ainvoke(None, config)
    async with within():
        yield await history_of(graph)


async def a_summary_takes_the_place_of_the_beginning(graph_of, within):
    def answer(state):
        return {"messages": AIMessage(f"answer {len(state['messages'])}")}

    def summarize(state):
        if len(state["messages"]) < 6:
            return {}
        kept = state["messages"][-2:]
        return {"messages": [RemoveMessage(id=REMOVE_ALL_MESSAGES), SystemMessage("they talked"), *kept]}

    builder = StateGraph(MessagesState).add_node(answer).add_node(summarize).add_edge(START, "answer").add_edge("answer", "summarize")
    graph = graph_of(builder)
    for i in range(5):
        async with within():
            yield await graph.ainvoke(ask(f"question {i}"), THREAD)
    async with within():
        yield await history_of(graph)


async def a_list_that_is_cut(graph_of, within):
    def answer(state):
        gone = [RemoveMessage(id=message.id) for message in state["messages"][:-3]]
        return {"messages": [*gone, AIMessage(f"answer {len(state['messages'])}")]}

    graph = graph_of(StateGraph(MessagesState).add_node(answer).add_edge(START, "answer"))
    for i in range(6):
        async with within():
            yield await graph.ainvoke(ask(f"question {i}"), THREAD)
    async with within():
        yield await history_of(graph)


async def workers_in_parallel(graph_of, within):
    """The later ones end first, so what was written has to be put in order by the paths of the tasks."""

    async def work(state):
        await asyncio.sleep(0.02 * (5 - state["i"]))
        if state["i"] == 2:
            interrupt("wait")
        return {"notes": [state["i"]], "messages": AIMessage(f"worker {state['i']}")}

    def plan(state):
        return [Send("work", {"i": i, "messages": state["messages"]}) for i in range(5)]

    builder = StateGraph(Research).add_node("plan", lambda state: {}).add_node(work).add_edge(START, "plan")
    graph = graph_of(builder.add_conditional_edges("plan", plan, ["work"]))
    async with within():
        yield await graph.ainvoke(ask("five of them"), THREAD)
    async with within():
        yield await history_of(graph)
    async with within():
        yield await graph.ainvoke(Command(resume="on"), THREAD)
    async with within():
        yield await history_of(graph)


def nested(**options):
    def inner(state):
        return {"messages": AIMessage(f"inner saw {len(state['messages'])}")}

    def confirm(state):
        return {"messages": AIMessage(f"confirmed: {interrupt('sure?')}")}

    return (
        StateGraph(MessagesState).add_node(inner).add_node(confirm).add_edge(START, "inner").add_edge("inner", "confirm").compile(**options)
    )


async def subgraphs(graph_of, within, **options):
    builder = StateGraph(MessagesState).add_node("sub", nested(**options)).add_node("end", lambda state: {"messages": AIMessage("end")})
    graph = graph_of(builder.add_edge(START, "sub").add_edge("sub", "end"))
    for i in range(3):
        async with within():
            yield await graph.ainvoke(ask(f"question {i}"), THREAD)
        async with within():
            state = await graph.aget_state(THREAD, subgraphs=True)
            yield [shown(task.state.values) for task in state.tasks]
        async with within():
            yield await graph.ainvoke(Command(resume=f"yes {i}"), THREAD)
    async with within():
        yield await history_of(graph)


async def subgraphs_that_remember(graph_of, within):
    async for seen in subgraphs(graph_of, within, checkpointer=True):
        yield seen


async def saved_at_the_end_only(graph_of, within):
    graph = counting_graph(graph_of)
    for i in range(3):
        async with within():
            yield await graph.ainvoke(ask(f"question {i}"), THREAD, durability="exit")
    async with within():
        yield await history_of(graph)


async def saved_at_each_step(graph_of, within):
    graph = counting_graph(graph_of)
    for i in range(3):
        async with within():
            yield await graph.ainvoke(ask(f"question {i}"), THREAD, durability="sync")
    async with within():
        yield await history_of(graph)


async def a_functional_workflow(graph_of, within):
    @task
    async def double(number):
        return number * 2

    def workflow_with(saver):
        @entrypoint(checkpointer=saver)
        async def workflow(number, *, previous=None):
            doubled = [await double(number + i) for i in range(3)]
            answer = interrupt("add what?")
            return entrypoint.final(value=sum(doubled) + answer, save=(previous or []) + doubled)

        return workflow

    workflow = graph_of(workflow_with)
    for number in (1, 10):
        async with within():
            yield await workflow.ainvoke(number, THREAD)
        async with within():
            yield await workflow.ainvoke(Command(resume=5), THREAD)


SCENARIOS = [
    several_turns,
    tools_in_parallel,
    an_interrupt_is_answered_later,
    a_finished_sibling_is_not_run_again,
    a_node_that_failed_is_run_again,
    replayed_from_an_older_checkpoint,
    another_question_at_an_older_checkpoint,
    a_state_is_changed_by_hand,
    a_summary_takes_the_place_of_the_beginning,
    a_list_that_is_cut,
    workers_in_parallel,
    subgraphs,
    subgraphs_that_remember,
    saved_at_the_end_only,
    saved_at_each_step,
    a_functional_workflow,
]


def shown(value):
    """Return what a graph says, without ids that differ from run to run."""
    if isinstance(value, BaseMessage):
        return value.type, value.text, [call["args"] for call in getattr(value, "tool_calls", [])], getattr(value, "tool_call_id", None)
    if isinstance(value, dict):
        return {name: shown(item) for name, item in value.items() if name != "__interrupt__"}
    if isinstance(value, Interrupt):
        return shown(value.value)
    return [shown(item) for item in value] if isinstance(value, list | tuple) else value


async def history_of(graph):
    """Return every state there was, the newest first."""
    return [
        (
            shown(state.values),
            state.next,
            state.metadata["source"],
            state.metadata["step"],
            state.parent_config is not None,
            [(task.name, shown(task.interrupts), shown(task.result), bool(task.error)) for task in state.tasks],
        )
        async for state in graph.aget_state_history(THREAD)
    ]


async def seen_in(scenario, saver, within):
    def graph_of(builder):
        return builder.compile(checkpointer=saver) if isinstance(builder, StateGraph) else builder(saver)

    return [shown(seen) async for seen in scenario(graph_of, within)]
