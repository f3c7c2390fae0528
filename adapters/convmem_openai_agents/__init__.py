"""convmem under the OpenAI Agents SDK: a conversation as the session of a run, with the conversation of the request behind it."""

try:
    import agents.memory  # noqa: F401 - only to say what is missing
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("agents", "openai"):
        raise
    msg = 'convmem_openai_agents needs: pip install "convmem[openai-agents]"'
    raise ImportError(msg) from error

from convmem_openai_agents._messages import from_items, to_items
from convmem_openai_agents._session import ConversationSession
from convmem_openai_agents._streaming import stream_answer

__all__ = ["ConversationSession", "from_items", "stream_answer", "to_items"]
