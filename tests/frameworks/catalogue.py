"""What each framework has, as the page of frameworks tells its readers; the tests hold both to it."""

from __future__ import annotations

from dataclasses import dataclass

YES, NO = "yes", "-"


@dataclass(frozen=True)
class Framework:
    """One framework, as its page shows it.

    Attributes:
        name: Of its page.
        title: As it spells itself.
        target: What a server is told to run.
        takes: How a handler gets at its conversation.
        in_a_thread: How a synchronous handler gets at it, in the table's words.
        follows_up: How something is begun that goes on after the answer.
        websocket: Whether it has WebSockets.
        mounts: Whether the page's app has another app mounted in it.
        signs_in: How the page's app knows its users inside of itself.
        after_leaving: What becomes of a stream's turn when its client leaves in the middle.
        sign_in_form: Whether users sign in by ``POST /sign-in``, and a cookie; else they send ``Authorization: Bearer of-<name>``.
        head: The status of a HEAD where there is a handler for GET.
        prepare: Commands to run before the server starts.
    """

    name: str
    title: str
    takes: str
    in_a_thread: str
    follows_up: str
    signs_in: str
    target: str = "app:app"
    websocket: bool = True
    mounts: bool = False
    after_leaving: str = "interrupted"
    head: int = 405
    sign_in_form: bool = False
    prepare: tuple[tuple[str, ...], ...] = ()

    @property
    def rows(self) -> tuple[str, str]:
        """Its lines in the two tables: how it is written, and what it has."""
        link = f"[{self.title}](frameworks/{self.name}.md)"
        written = (link, f"`{self.takes}`", self.in_a_thread, self.follows_up)
        has = (link, YES if self.websocket else NO, YES if self.mounts else NO, self.signs_in, self.after_leaving)
        return f"| {' | '.join(written)} |", f"| {' | '.join(has)} |"


BY_REQUEST = "await get_conversation(request)"
BY_TOKEN = "bearer token"
_USERS = """
from django.contrib.auth.models import User
for name in ("ada", "bob"):
    User.objects.create_user(name, password=f"secret of {name.title()}")
"""

FRAMEWORKS = [
    Framework("starlette", "Starlette", BY_REQUEST, "`def` handler", "`BackgroundTask`", BY_TOKEN, mounts=True, head=200),
    Framework("fastapi", "FastAPI", "Depends(get_conversation)", "`def` handler", "`BackgroundTasks`", "dependency", mounts=True),
    Framework("litestar", "Litestar", BY_REQUEST, "`sync_to_thread=True`", "`BackgroundTask`", "dependency", mounts=True),
    Framework(
        "quart", "Quart", "current_conversation()", "`def` handler", "`add_background_task`", "Quart-Auth", sign_in_form=True, head=200
    ),
    Framework(
        "django",
        "Django",
        BY_REQUEST,
        "`def` view",
        "`asyncio.create_task`",
        "`django.contrib.auth`",
        target="asgi:application",
        websocket=False,
        head=200,
        sign_in_form=True,
        prepare=(("-m", "django", "migrate", "--verbosity=0"), ("-m", "django", "shell", "--verbosity=0", "--command", _USERS)),
    ),
    Framework(
        "falcon",
        "Falcon",
        "await get_conversation(req)",
        "`sync_to_async`, handed over",
        "`resp.schedule`",
        BY_TOKEN,
        after_leaving="complete",
    ),
    Framework(
        "blacksheep",
        "BlackSheep",
        BY_REQUEST,
        "`asyncio.to_thread`",
        "`asyncio.create_task`",
        "`AuthenticationHandler`",
        mounts=True,
        after_leaving="complete",
        head=404,
    ),
    Framework(
        "sanic", "Sanic", BY_REQUEST, "`asyncio.to_thread`", "`app.add_task`", "`on_request`", after_leaving="complete"
    ),
    Framework(
        "asgi", "bare ASGI", "await get_conversation(scope)", "`asyncio.to_thread`", "after the last event", BY_TOKEN,
        after_leaving="complete", head=200,
    ),
    Framework(
        "flask", "Flask, over a bridge", "current_conversation()", "every view", "`run_coroutine_threadsafe`", "`session`",
        websocket=False, after_leaving="complete", sign_in_form=True, head=200,
    ),
]  # fmt: skip
