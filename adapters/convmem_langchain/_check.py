"""A check of names that LangChain leaves to luck: under which key the history comes, and which one the prompt reads."""

from __future__ import annotations

from typing import Any

from langchain_core.prompts import BasePromptTemplate, ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import Runnable
from langchain_core.runnables.history import RunnableWithMessageHistory

from convmem import ConfigurationError


def check_history_key(chain: Runnable[Any, Any], memory: Any = None) -> None:
    """Raise when the history arrives under a name the prompt does not read, so that the model would never see it.

    Call it once, where the chain is made.

    Args:
        chain: A `RunnableWithMessageHistory`; a classic chain with its memory; or a prompt or chain, with `memory`.
        memory: A classic memory, or the name of the variable in which the history comes.

    Raises:
        ConfigurationError: It names both sides, and what to write.
    """
    if isinstance(chain, RunnableWithMessageHistory):
        if chain.history_messages_key is not None:
            _compare("history_messages_key", [chain.history_messages_key], chain)
        elif chain.input_messages_key is not None:
            _compare("input_messages_key", [chain.input_messages_key], chain)
        return
    memory = memory if memory is not None else getattr(chain, "memory", None)
    if isinstance(memory, str):
        _compare("the history's variable", [memory], chain)
    elif memory is not None:
        _compare("memory_key", list(memory.memory_variables), chain)
    else:
        msg = "check_history_key needs to know where the history comes: pass memory=, or a RunnableWithMessageHistory."
        raise ConfigurationError(msg)


def _compare(side: str, names: list[str], chain: Runnable[Any, Any]) -> None:
    prompts = _prompts(chain)
    read = {name for prompt in prompts for name in _variables(prompt)}
    if not prompts or set(names) <= read:
        return
    places = {name for prompt in prompts for name in _placeholders(prompt)} or read
    mine, theirs = ", ".join(map(repr, names)), ", ".join(map(repr, sorted(places))) or "no variable at all"
    msg = f"{side} is {mine}, but the prompt reads {theirs}: the model would never see the history. Write the same name on both sides."
    raise ConfigurationError(msg)


def _prompts(chain: Any) -> list[BasePromptTemplate[Any]]:
    """Return the prompts of a chain, also of one bound into another."""
    if isinstance(chain, BasePromptTemplate):
        return [chain]
    prompt = getattr(chain, "prompt", None)
    if isinstance(prompt, BasePromptTemplate):
        return [prompt]
    found: list[BasePromptTemplate[Any]] = []
    waiting, seen = [chain], set[int]()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, BasePromptTemplate):
            found.append(one)
        elif isinstance(one, Runnable):
            waiting += [getattr(one, "bound", None), *getattr(one, "steps", ())]
            waiting += getattr(one, "deps", ())  # what a RunnableLambda calls
    return found


def _variables(prompt: BasePromptTemplate[Any]) -> set[str]:
    return {*prompt.input_variables, *prompt.optional_variables, *prompt.partial_variables}


def _placeholders(prompt: BasePromptTemplate[Any]) -> set[str]:
    messages = prompt.messages if isinstance(prompt, ChatPromptTemplate) else []
    return {message.variable_name for message in messages if isinstance(message, MessagesPlaceholder)}
