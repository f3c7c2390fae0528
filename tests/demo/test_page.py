"""The demo's page in a real browser: what a visitor sees when a server dies, in a second tab, in a second conversation."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("playwright", reason="declared: no playwright installed (pip install playwright)")

from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.servers.processes import PATIENCE, Server

UNREACHABLE = "net::ERR_"  # what a browser logs while there is no server
SLOW = {"DEMO_WORD_DELAY": "0.3"}


class Visitor:
    """Somebody with a browser of their own, and what its console complained about."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.context = context
        self.url = url
        self.complaints: list[str] = []

    def open(self, path: str = "/") -> Page:
        page = self.context.new_page()
        page.on("console", lambda message: self.complaints.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(self.url + path)
        expect(page.locator("#worker")).not_to_have_text("…")
        return page


@pytest.fixture
def visitor(browser: Browser) -> Iterator[Callable[[Server], Visitor]]:
    contexts: list[BrowserContext] = []

    def come(server: Server) -> Visitor:
        contexts.append(browser.new_context(viewport={"width": 1200, "height": 800}))
        contexts[-1].set_default_timeout(PATIENCE * 1000)
        return Visitor(contexts[-1], server.url)

    yield come
    for context in contexts:
        context.close()


def say(page: Page, message: str) -> None:
    page.fill("#text", message)
    page.press("#text", "Enter")
    expect(page.locator("#send")).to_be_visible()


def last(page: Page, role: str = "assistant"):
    return page.locator(f".message.{role}").last.locator("p")


def note(page: Page, name: str):
    return page.locator(f'[data-note="{name}"]')


def test_a_name_is_told_the_server_killed_and_the_name_asked_back(start, visitor):
    """The demonstration, as the page itself proposes it."""
    server = start()
    ada = visitor(server)
    page = ada.open()
    say(page, "My name is Ada")
    expect(last(page)).to_have_text("Nice to meet you, Ada.")
    expect(page.locator("#stored")).to_have_text("1 turn")
    pid = page.locator("#kill").inner_text().removeprefix("kill -9 ")
    assert not ada.complaints
    os.kill(int(pid), signal.SIGKILL)
    expect(note(page, "offline")).to_contain_text("The server does not answer")
    server.start()
    expect(note(page, "back")).to_contain_text("The conversation goes on")
    expect(note(page, "offline")).to_have_count(0)
    say(page, "What's my name?")
    expect(last(page)).to_have_text("Your name is Ada.")
    expect(page.locator("#worker")).not_to_have_text(pid)
    expect(page.locator("#stored")).to_have_text("2 turns")
    page.reload()
    expect(page.locator(".message")).to_have_count(4)
    assert all(UNREACHABLE in complaint for complaint in ada.complaints)


def test_a_message_typed_while_the_server_is_down_is_not_lost(start, visitor):
    """It goes back to where it was typed."""
    server = start()
    page = visitor(server).open()
    say(page, "My name is Ada")
    server.kill()
    say(page, "What's my name?")
    expect(page.locator("#text")).to_have_value("What's my name?")
    expect(page.locator(".message")).to_have_count(2)
    server.start()
    expect(note(page, "back")).to_be_visible()
    page.press("#text", "Enter")
    expect(last(page)).to_have_text("Your name is Ada.")


def test_an_answer_cut_off_in_the_middle_is_marked_after_the_restart(start, visitor):
    """What was stored is shown, and said to be all there is."""
    server = start(**SLOW, CONVMEM_LEASE="1s")
    page = visitor(server).open()
    page.fill("#text", "hello")
    page.press("#text", "Enter")
    expect(last(page)).to_contain_text("Hello! I")
    server.kill()
    expect(note(page, "offline")).to_be_visible()
    server.start()
    expect(page.locator(".message.cut small")).to_contain_text("Interrupted: no answer was stored")
    expect(note(page, "busy")).to_have_count(0)
    say(page, "My name is Ada")
    expect(last(page)).to_contain_text("Nice to meet you, Ada.")


def test_a_second_tab_sees_that_the_first_is_being_answered(start, visitor):
    """And sees the answer when it is there, without a reload."""
    ada = visitor(start(**SLOW))
    first = ada.open()
    first.fill("#text", "hello")
    first.press("#text", "Enter")
    expect(last(first)).to_contain_text("Hello! I")
    second = ada.open()
    expect(note(second, "busy")).to_have_text("Still answering in another tab.")
    expect(second.locator(".message.user small")).to_contain_text("Being answered")
    first.get_by_role("button", name="Stop").click()
    expect(last(second)).to_contain_text("Hello! I")
    expect(note(second, "busy")).to_have_count(0)
    assert not ada.complaints


def test_a_turn_refused_by_another_tab_is_sent_when_that_is_done(start, visitor):
    """A 409 is a sentence and an offer, not a lost message."""
    ada = visitor(start(**SLOW, CONVMEM_CONCURRENCY="reject"))
    first, second = ada.open(), ada.open()
    first.fill("#text", "hello")
    first.press("#text", "Enter")
    expect(last(first)).to_contain_text("Hello! I")
    second.fill("#text", "What's my name?")
    second.press("#text", "Enter")
    expect(note(second, "refused")).to_contain_text("Still answering in another tab")
    expect(note(second, "refused")).to_contain_text("Your message was not stored")
    second.get_by_role("button", name="Send it when that is done").click()
    first.get_by_role("button", name="Stop").click()
    expect(last(second)).to_contain_text("have not told me")
    expect(note(second, "refused")).to_have_count(0)
    assert all("409" in complaint for complaint in ada.complaints)


def test_the_stop_button_keeps_what_was_heard(start, visitor):
    """Stopped is not lost."""
    page = visitor(start(**SLOW)).open()
    page.fill("#text", "hello")
    page.press("#text", "Enter")
    expect(last(page)).to_contain_text("Hello! I am")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".message.assistant.cut small")).to_contain_text("Interrupted: this is all that was stored")
    expect(last(page)).to_contain_text("Hello! I am")


def test_new_conversations_are_listed_and_kept_apart(start, visitor):
    """The address says which; a reload and the back button stay where they should."""
    ada = visitor(start())
    page = ada.open()
    say(page, "My name is Ada")
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".message")).to_have_count(0)
    expect(page.locator("#empty")).to_be_visible()
    page.wait_for_url(re.compile("#[A-Za-z0-9_-]+$"))
    expect(page.locator("#list a[aria-current]")).to_contain_text("Nothing stored yet")
    page.get_by_role("button", name="What do you know about me?").click()
    expect(last(page)).to_contain_text("Nothing yet")
    expect(page.locator("#list a")).to_have_count(2)
    expect(page.locator("#list a[aria-current]")).to_contain_text("1 turn")
    page.reload()
    expect(last(page)).to_contain_text("Nothing yet")
    page.get_by_role("link", name="First conversation").click()
    expect(last(page)).to_have_text("Nice to meet you, Ada.")
    page.go_back()
    expect(last(page)).to_contain_text("Nothing yet")
    assert not ada.complaints


def test_two_browsers_never_see_each_other(start, visitor):
    """Not even with the other's address."""
    server = start()
    ada, eve = visitor(server), visitor(server)
    hers = ada.open()
    hers.get_by_role("button", name="New conversation").click()
    hers.wait_for_url(re.compile("#"))
    say(hers, "My name is Ada")
    other = eve.open(hers.url.removeprefix(server.url))
    expect(other.locator("#empty")).to_be_visible()
    say(other, "What's my name?")
    expect(last(other)).to_contain_text("have not told me")
    assert ada.context.cookies()[0]["httpOnly"]
    assert ada.context.cookies()[0]["value"] != eve.context.cookies()[0]["value"]
    assert not ada.complaints + eve.complaints


def test_markup_is_text(start, visitor):
    """Nothing anybody types is ever run."""
    ada = visitor(start())
    page = ada.open()
    markup = "my name is <img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"
    say(page, markup)
    expect(last(page, "user")).to_have_text(markup)
    page.reload()
    expect(last(page, "user")).to_have_text(markup)
    assert page.title() == "convmem demo"
    assert page.locator("#log img, #log script").count() == 0
    assert not ada.complaints


def test_the_window_is_visible(start, visitor):
    """How much the model sees stands above the conversation, and so does what it does not."""
    page = visitor(start(CONVMEM_WINDOW_TURNS="2")).open()
    for message in ("My name is Ada", "ok", "thanks"):
        say(page, message)
    expect(page.locator("#stored")).to_have_text("3 turns")
    expect(page.locator("#window")).to_have_text("the last 2 of them")
    expect(page.locator(".older")).to_contain_text("1 older turn stored")


def test_a_rejected_cookie_is_said(start, visitor):
    """Never silently somebody new."""
    server = start()
    ada = visitor(server)
    page = ada.open()
    say(page, "My name is Ada")
    page.close()
    (cookie,) = ada.context.cookies()
    ada.context.add_cookies([{**cookie, "value": cookie["value"][:-2] + ("AA" if not cookie["value"].endswith("AA") else "BB")}])
    page = ada.open()
    expect(note(page, "identity")).to_contain_text("did not accept this browser's cookie")
    expect(page.locator("#empty")).to_be_visible()


def test_a_browser_that_keeps_no_cookies_is_told(start, visitor):
    """Each request is then somebody new, and the page does not hide it."""
    ada = visitor(start())
    page = ada.open()
    expect(page.locator("#empty")).to_be_visible()
    assert note(page, "identity").count() == 0
    ada.context.clear_cookies()
    expect(note(page, "identity")).to_contain_text("did not get this browser's cookie")


def test_it_works_by_keyboard_on_a_small_dark_screen(start, browser):
    """Enter sends, Shift+Enter is a new line, everything has a name, and nothing is wider than the screen."""
    context = browser.new_context(viewport={"width": 360, "height": 640}, color_scheme="dark")
    page = Visitor(context, start().url).open()
    expect(page.locator("#text")).to_be_focused()
    page.keyboard.type("My name is Ada")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("Buy milk and " + "x" * 100)
    page.keyboard.press("Enter")
    expect(last(page)).to_contain_text("Nice to meet you, Ada. Done.")
    expect(last(page, "user")).to_contain_text("My name is Ada\nBuy milk")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    expect(page.get_by_role("textbox", name="Your message")).to_be_focused()
    page.get_by_role("button", name="Conversations", exact=True).press("Enter")
    expect(page.get_by_role("navigation", name="Your conversations")).to_be_visible()
    expect(page.get_by_role("button", name="New conversation")).to_be_visible()
    context.close()
