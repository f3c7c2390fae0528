"""A graph under a conversation and under LangGraph's own saver, through anything that may happen to a thread, in any order."""

import asyncio
from contextlib import nullcontext

import pytest
from hypothesis import given, settings, strategies
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage, SystemMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.types import Command, interrupt

from convmem import MemoryStore, SessionKey, open_conversation
from convmem_langchain import ConversationSaver

from .langgraph_scenarios import THREAD, Research, shown

ADA = SessionKey.for_user("ada")


def graph_with(saver):
    """Return a graph in which one node may wait for somebody, while another has ended."""

    def answer(state):
        return {
            "messages": AIMessage(f"answer {len(state['messages'])}", id=f"a{len(state['messages'])}-{state.get('topic')}"),
            "notes": [1],
        }

    async def wait(state):
        said = interrupt("go on?") if (state.get("topic") or "").startswith("wait") else "no need"
        return {"messages": AIMessage(f"waited: {said}"), "notes": [said]}

    builder = StateGraph(Research).add_node(answer).add_node(wait).add_node("end", lambda state: {"topic": "ended"})
    builder.add_edge(START, "answer").add_edge(START, "wait").add_edge(["answer", "wait"], "end")
    return builder.compile(checkpointer=saver)


counts = strategies.integers(0, 30)
steps = strategies.one_of(
    strategies.tuples(strategies.just("ask"), strategies.booleans()),
    strategies.tuples(strategies.just("resume"), strategies.none()),
    strategies.tuples(strategies.just("go on"), strategies.none()),
    strategies.tuples(strategies.just("replay"), counts),
    strategies.tuples(strategies.just("ask there"), counts),
    strategies.tuples(strategies.just("change"), counts),
    strategies.tuples(strategies.just("remove"), counts),
    strategies.tuples(strategies.just("summarize"), counts),
    strategies.tuples(strategies.just("change there"), counts),
)


async def walk(saver, taken, within):
    """Return what a thread has to show after each of these steps."""
    graph = graph_with(saver)
    seen = []
    for i, (step, n) in enumerate(taken):
        async with within():
            past = [state async for state in graph.aget_state_history(THREAD)]
            there = past[n % len(past)] if past and n is not None else None
            said = past[0].values.get("messages", []) if past else []
            question = {"messages": [HumanMessage(f"question {i}")], "topic": f"{'wait' if n is True else 'on'} {i}"}
            try:
                match step:
                    case "ask":
                        await graph.ainvoke(question, THREAD)
                    case "resume":
                        await graph.ainvoke(Command(resume=f"yes {i}"), THREAD)
                    case "go on":
                        await graph.ainvoke(None, THREAD)
                    case "replay" if there:
                        await graph.ainvoke(None, there.config)
                    case "ask there" if there:
                        await graph.ainvoke(question, there.config)
                    case "change" if said:
                        changed = said[n % len(said)].model_copy(update={"content": f"changed {i}"})
                        await graph.aupdate_state(THREAD, {"messages": [changed]}, as_node="end")
                    case "remove" if said:
                        await graph.aupdate_state(THREAD, {"messages": [RemoveMessage(id=said[n % len(said)].id)]}, as_node="end")
                    case "summarize" if said:
                        kept = said[-(n % 3) :] if n % 3 else []
                        gone = [RemoveMessage(id=message.id) for message in said]
                        await graph.aupdate_state(THREAD, {"messages": gone}, as_node="end")
                        await graph.aupdate_state(THREAD, {"messages": [SystemMessage(f"summary {i}"), *kept]}, as_node="end")
                    case "change there" if there:
                        await graph.aupdate_state(there.config, {"messages": [AIMessage(f"instead {i}")], "notes": [i]}, as_node="end")
            except Exception as error:  # what is an error there must be one here
                seen.append(type(error).__name__)
        async with within():
            seen.append(
                [
                    (
                        shown(state.values),
                        state.next,
                        state.metadata["source"],
                        state.metadata["step"],
                        [(task.name, shown(task.interrupts), shown(task.result)) for task in state.tasks],
                    )
                    async for state in graph.aget_state_history(THREAD)
                ]
            )
    return seen


async def in_turns(store, taken):
    return await walk(ConversationSaver(), taken, lambda: open_conversation(ADA, store=store))


async def in_one_turn(store, taken):
    async with open_conversation(ADA, store=store):
        return await walk(ConversationSaver(), taken, nullcontext)


async def in_none(store, taken):
    return await walk(ConversationSaver(owner="user:ada", store=store), taken, nullcontext)


async def compare(ours, taken):
    expected = await walk(InMemorySaver(), taken, nullcontext)
    async with MemoryStore() as store:
        for i, (mine, theirs) in enumerate(zip(await ours(store, taken), expected, strict=True)):
            assert mine == theirs, (i, taken)
        async with open_conversation(ADA, store=store) as conversation:
            said = [message.text for message in conversation.said.messages]
            state = await graph_with(ConversationSaver()).aget_state(THREAD)
            listed = [message.text for message in state.values.get("messages", [])]
            assert [text for text in said if text in listed] == listed


@pytest.mark.filterwarnings("ignore::convmem.turns.RepeatedTextWarning")
@pytest.mark.parametrize("ours", [in_turns, in_one_turn, in_none])
def test_whatever_happens_to_a_thread_happens_as_under_their_own_saver(ours, longer):
    """Questions, interrupts, replays, forks, changes by hand and removals: every state there ever was is the same."""

    @settings(max_examples=400 if longer else 8, database=None)
    @given(strategies.lists(steps, min_size=2, max_size=7))
    def runs(taken):
        asyncio.run(compare(ours, taken))

    runs()
