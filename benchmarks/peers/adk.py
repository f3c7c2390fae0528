"""The database sessions of Google's Agent Development Kit, which keep events."""

from __future__ import annotations

from google.adk.events import Event
from google.adk.sessions import DatabaseSessionService
from google.adk.sessions.base_session_service import GetSessionConfig
from google.genai.types import Content, Part

from benchmarks.workload import WINDOW, System, answer, question

_APP, _USER = "benchmark", "ada"


def _event(text, author):
    role = "model" if author == "model" else "user"
    return Event(author=author, invocation_id="turn", content=Content(role=role, parts=[Part(text=text)]))


class _Service(System):
    recent = None

    async def open(self):
        self._service = DatabaseSessionService(self._url())
        await self._service.get_session(app_name=_APP, user_id=_USER, session_id="nobody")

    async def _of(self, session):
        config = GetSessionConfig(num_recent_events=self.recent) if self.recent else None
        found = await self._service.get_session(app_name=_APP, user_id=_USER, session_id=session, config=config)
        return found or await self._service.create_session(app_name=_APP, user_id=_USER, session_id=session)

    async def fill(self, session, messages):
        found = await self._of(session)
        for _ in range(messages // 2):
            await self._service.append_event(found, _event(question(), "user"))
            await self._service.append_event(found, _event(answer(), "model"))

    async def turn(self, session):
        found = await self._of(session)
        loaded = len(found.events)
        await self._service.append_event(found, _event(question(), "user"))
        await self._service.append_event(found, _event(answer(), "model"))
        return loaded


class Postgres(_Service):
    """`DatabaseSessionService`, PostgreSQL by asyncpg."""

    def _url(self):
        return self.place.replace("postgresql://", "postgresql+asyncpg://")


class PostgresRecent(Postgres):
    """The same, asked for the newest events only."""

    recent = WINDOW


class SQLite(_Service):
    """`DatabaseSessionService`, SQLite by aiosqlite."""

    def _url(self):
        return f"sqlite+aiosqlite:///{self.place}/adk.db"
