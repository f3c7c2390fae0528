"""convmem under LlamaIndex: its memories and chat stores, with the conversation of the request behind them."""

try:
    import llama_index.core  # noqa: F401 - only to say what is missing
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "llama_index":
        raise
    msg = 'convmem_llamaindex needs: pip install "convmem[llamaindex]"'
    raise ImportError(msg) from error

from convmem_llamaindex._chat_store import ConversationChatStore
from convmem_llamaindex._memory import memory_for
from convmem_llamaindex._messages import from_llamaindex, to_llamaindex
from convmem_llamaindex._portal import sync_conversation
from convmem_llamaindex._queue import NewConversationWarning
from convmem_llamaindex._streaming import stream_answer
from convmem_llamaindex._sync_chat_store import ConversationSyncChatStore

__all__ = [
    "ConversationChatStore",
    "ConversationSyncChatStore",
    "NewConversationWarning",
    "from_llamaindex",
    "memory_for",
    "stream_answer",
    "sync_conversation",
    "to_llamaindex",
]
