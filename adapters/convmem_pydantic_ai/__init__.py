"""convmem under Pydantic AI: a conversation as the history of a run, or behind the framework's own conversation store."""

try:
    import pydantic_ai.conversation_store  # noqa: F401 - only to say what is missing
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "pydantic_ai":
        raise
    msg = 'convmem_pydantic_ai needs: pip install "convmem[pydantic-ai]"'
    raise ImportError(msg) from error

from convmem_pydantic_ai._history import ask, keep, message_history, stream_answer
from convmem_pydantic_ai._messages import from_model_messages, to_model_messages
from convmem_pydantic_ai._store import OwnerConversationStore

__all__ = ["OwnerConversationStore", "ask", "from_model_messages", "keep", "message_history", "stream_answer", "to_model_messages"]
