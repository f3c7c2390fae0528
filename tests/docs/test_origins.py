"""The page about a front end on another origin, followed in a real browser: what works, and what goes wrong in the way it says.

The API is the page's ``app.py`` on a real server, the front end its ``chat.js`` on another; only the two addresses are put in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
import pytest

pytest.importorskip("playwright", reason="declared: no playwright installed (pip install playwright)")

from playwright.sync_api import Browser, BrowserContext, Error, Page

from tests.demo.conftest import BROWSER_ARGUMENTS, find_browser
from tests.servers.processes import HOST, PYTHON, Server, free_port

from .pages import DOCS, ROOT, blocks_of

TITLED = {block.title: block.code for block in blocks_of(DOCS / "how-to" / "front-end-on-another-origin.md") if block.title}
TWO_SITES = {"CONVMEM_COOKIE_SAMESITE": "none", "CONVMEM_COOKIE_SECURE": "always"}


@dataclass
class FrontEnd:
    """The page as a visitor has it open, and what the browser's console said."""

    page: Page
    console: list[str]

    def say(self, text: str, *more: str) -> list[str]:
        """Send a message and return what the API remembers.

        Raises:
            Error: Of playwright: the script threw.
        """
        return self.page.evaluate("([text, ...more]) => say(text, ...more)", [text, *more])

    def header(self, name: str) -> str | None:
        """Return what the script reads of a header of the answer."""
        ask = """async ([name]) => {
            const answer = await fetch(`${API}/chat?text=Hi`, { method: "POST", credentials: "include" });
            return answer.headers.get(name);
        }"""
        return self.page.evaluate(ask, [name])


@pytest.fixture
def deploy(tmp_path, browser: Browser) -> Iterator[Callable[..., FrontEnd]]:
    """Start the API on `api_host` and the page on 127.0.0.1, each changed by the test's ``old=new`` pairs, and open the page.

    A private window withholds cookies from other sites, unless they are partitioned, as Safari and Firefox do everywhere. An ordinary one
    sends them where its user says so; Debian's Chromium has it the other way by default.
    """
    running: list[Server] = []
    contexts: list[BrowserContext] = []

    def open_window(*, private: bool) -> BrowserContext:
        if private:
            return browser.new_context()
        preferences = tmp_path / "profile" / "Default" / "Preferences"
        preferences.parent.mkdir(parents=True)
        preferences.write_text(json.dumps({"profile": {"block_third_party_cookies": False, "cookie_controls_mode": 0}}), encoding="utf-8")
        return browser.browser_type.launch_persistent_context(tmp_path / "profile", executable_path=find_browser(), args=BROWSER_ARGUMENTS)

    def start(
        api_host: str = HOST,
        *,
        app: dict[str, str] | None = None,
        script: dict[str, str] | None = None,
        private: bool = True,
        **environment: str,
    ) -> FrontEnd:
        ours, theirs = free_port(), free_port()
        origin, api = f"http://{HOST}:{ours}", f"http://{api_host}:{theirs}"
        files = {
            "app.py": changed(TITLED["app.py"], {"https://app.example.com": origin, **(app or {})}),
            "chat.js": changed(TITLED["chat.js"], {"https://api.example.com": api, **(script or {})}),
            "index.html": '<!doctype html><title>chat</title><link rel="icon" href="data:,"><script src="chat.js"></script>',
        }
        for name, text in files.items():
            (tmp_path / name).write_text(text, encoding="utf-8")
        settings = {"CONVMEM_STORE": f"sqlite:///{tmp_path}/convmem.db", "PYTHONPATH": str(ROOT), **environment}
        served = [PYTHON, "-m", "uvicorn", "app:app", "--host", HOST, "--port", "{port}"]
        running.append(Server(served, settings, theirs, cwd=tmp_path).start())
        running.append(Server([PYTHON, "-m", "http.server", "--bind", HOST, "{port}"], port=ours, cwd=tmp_path).start())
        contexts.append(open_window(private=private))
        page, console = contexts[-1].new_page(), []
        page.on("console", lambda message: console.append(message.text))
        page.goto(origin)
        return FrontEnd(page, console)

    yield start
    for context in contexts:
        context.close()
    for server in running:
        server.close()


def changed(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert old in text, f"the page no longer says {old!r}"
        text = text.replace(old, new)
    return text


def test_two_origins_of_one_site_are_one_visitor(deploy):
    """The page as it is written, with the defaults: a cookie, and two conversations by header."""
    front = deploy()
    assert [front.say("Hello"), front.say("Again"), front.say("Elsewhere", "other")] == [["Hello"], ["Hello", "Again"], ["Elsewhere"]]
    front.page.reload()
    assert front.say("And now?") == ["Hello", "Again", "And now?"]
    assert front.header("Convmem-Identity") is None
    assert front.header("Conversation-Revision")


def test_two_sites_are_one_visitor_with_the_two_settings(deploy):
    """127.0.0.1 and localhost are two sites to a browser."""
    front = deploy("localhost", private=False, **TWO_SITES)
    assert [front.say("Hello"), front.say("Again")] == [["Hello"], ["Hello", "Again"]]


def test_a_browser_that_blocks_third_party_cookies_forgets_and_a_token_in_a_header_does_not(deploy):
    """The page's own server has asked for the token; the script sends it, and needs no cookie."""
    front = deploy("localhost", **TWO_SITES)
    assert [front.say("Hello"), front.say("Again")] == [["Hello"], ["Again"]]
    url = front.page.evaluate("API").replace("localhost", HOST)
    token = httpx.post(f"{url}/chat", params={"text": "Hi"}, headers={"Convmem-Visitor": "new"}).headers["Convmem-Visitor"]
    send = (
        """([token]) => fetch(`${API}/chat?text=Again`, { method: "POST", headers: { "Convmem-Visitor": token } }).then((a) => a.json())"""
    )
    assert front.page.evaluate(send, [token]) == ["Hi", "Again"]


def test_two_sites_with_a_partitioned_cookie_are_one_visitor(deploy):
    """Kept for this pair of page and API."""
    front = deploy("localhost", **TWO_SITES, CONVMEM_COOKIE_PARTITIONED="on")
    assert [front.say("Hello"), front.say("Again")] == [["Hello"], ["Hello", "Again"]]
    assert [cookie.get("partitionKey") for cookie in front.page.context.cookies()] == [f"http://{HOST}"]


def test_without_credentials_each_message_is_the_first(deploy):
    """And the header that says so can be read."""
    front = deploy(script={'credentials: "include"': 'credentials: "omit"'})
    assert [front.say("Hello"), front.say("Again")] == [["Hello"], ["Again"]]
    assert front.header("Convmem-Identity") == "new"


def test_without_allow_credentials_the_script_reads_nothing(deploy):
    """The browser says which header is missing."""
    front = deploy(app={"allow_credentials=True": "allow_credentials=False"})
    with pytest.raises(Error, match="Failed to fetch"):
        front.say("Hello")
    assert "Access-Control-Allow-Credentials" in " ".join(front.console)


def test_with_the_cors_middleware_outside_a_problem_can_be_read(deploy):
    """A script can act on its code."""
    front = deploy()
    with pytest.raises(Error, match="Error: invalid_identity"):
        front.say("Hello", "no such id")


def test_with_the_cors_middleware_inside_only_a_200_can_be_read(deploy):
    """Added first, it stands inside: what convmem answers itself never passes it."""
    inside = 'app.add_middleware(ConversationMiddleware, paths=["/chat"])\n'
    front = deploy(app={inside: "", "\n\n@app.post": f"\n{inside}\n\n@app.post"})
    assert front.say("Hello") == ["Hello"]
    with pytest.raises(Error, match="Failed to fetch"):
        front.say("Hello", "no such id")


def test_a_header_that_is_not_allowed_stops_the_request(deploy):
    """The browser asks first, and the answer is no."""
    front = deploy(app={' "X-Session-ID",': ""})
    assert front.say("Hello") == ["Hello"]
    with pytest.raises(Error, match="Failed to fetch"):
        front.say("Hello", "other")


def test_a_header_that_is_not_exposed_is_null_to_the_script(deploy):
    """It came all the same."""
    front = deploy(app={'"Conversation-Revision", "Convmem-Degraded", ': ""})
    assert front.header("Conversation-Revision") is None


def test_two_sites_with_the_default_cookie_are_refused(deploy):
    """A 403 that names the cause, and no cookie that overwrites another."""
    front = deploy("localhost")
    with pytest.raises(Error, match="Error: identity_cross_site"):
        front.say("Hello")
    assert front.page.context.cookies() == []


def test_a_first_request_from_another_site_names_no_conversation(deploy):
    """Whose it is, nobody knows yet; after the first answer somebody does."""
    front = deploy("localhost", private=False, **TWO_SITES)
    with pytest.raises(Error, match="Error: session_id_not_trusted"):
        front.say("Hello", "work")
    front.say("Hello")
    assert [front.say("Hello", "work"), front.say("Again", "work")] == [["Hello"], ["Hello", "Again"]]
