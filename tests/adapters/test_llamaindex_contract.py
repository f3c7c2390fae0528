"""LlamaIndex and the contract of all adapters."""

from datetime import UTC, datetime

from llama_index.core.base.llms.types import ChatMessage, ThinkingBlock, ToolCallBlock
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms.mock import MockFunctionCallingLLM

from convmem.testing import AdapterContract
from convmem_llamaindex import from_llamaindex, memory_for, to_llamaindex

from .test_llamaindex_messages import CORPUS

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class TestLlamaIndex(AdapterContract):
    """Every promise of an adapter, through a chat engine."""

    to_native = staticmethod(to_llamaindex)
    from_native = staticmethod(from_llamaindex)
    natives = tuple(CORPUS.values())
    has_ids = False
    refused = (
        (ChatMessage("x", additional_kwargs={"at": [NOW]}), "additional_kwargs.at[0]"),
        (ChatMessage(blocks=[ToolCallBlock(tool_name="f", tool_kwargs={"some": {1}})]), "blocks[0].tool_kwargs.some"),
        (ChatMessage(blocks=[ThinkingBlock(additional_information={"when": NOW})]), "blocks[0].additional_information.when"),
    )

    async def speak(self, question):
        model = MockFunctionCallingLLM(response_generator=lambda messages, **options: ChatMessage("an answer", role="assistant"))
        await SimpleChatEngine.from_defaults(llm=model, memory=memory_for()).achat(question)
