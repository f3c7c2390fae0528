"""One app with the usual memory and with ours side by side, for tests that kill, reload and multiply its process."""

import os
import sys

from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.runnables.history import RunnableWithMessageHistory

from convmem import ConversationMiddleware, from_callable
from convmem_langchain import ConversationHistory

HISTORIES: dict[str, InMemoryChatMessageHistory] = {}
"""What tutorials put at the head of a module."""


def user(scope) -> str:
    """Return the user whom an imaginary gateway has authenticated."""
    return dict(scope["headers"]).get(b"x-user", b"ada").decode()


def reader(messages) -> AIMessage:
    """Answer with all that people have said: a model that has nothing but its history."""
    return AIMessage(" | ".join(message.text for message in messages if message.type == "human"))


def reading(history, **keys) -> RunnableWithMessageHistory:
    return RunnableWithMessageHistory(RunnableLambda(reader), history, **keys)


def history_of(session_id: str) -> InMemoryChatMessageHistory:
    return HISTORIES.setdefault(session_id, InMemoryChatMessageHistory())


async def theirs(text: str, request: Request) -> dict:
    config = {"configurable": {"session_id": user(request.scope)}}
    return {"pid": os.getpid(), "seen": (await reading(history_of).ainvoke(text, config)).content}


async def ours(text: str) -> dict:
    return {"pid": os.getpid(), "seen": (await reading(ConversationHistory.current).ainvoke(text)).content}


api = FastAPI()
api.post("/theirs")(theirs)
api.post("/ours")(ours)
app = ConversationMiddleware(api, resolvers=[from_callable(user)])

if __name__ == "__main__":  # a platform that starts a process for one request, and freezes it behind the last byte
    print(TestClient(app).post(f"/{sys.argv[1]}", params={"text": sys.argv[2]}).json()["seen"], flush=True)
    os._exit(0)
