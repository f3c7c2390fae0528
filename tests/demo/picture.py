"""Take the picture of the demo that the README shows: ``python -m tests.demo.picture docs/images/demo.png``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from tests.demo.conftest import BROWSER_ARGUMENTS, demo_server, find_browser


def main() -> None:
    """Play the demonstration once, and take the picture at its end."""
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images/demo.png").absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, demo_server(Path(folder)) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=BROWSER_ARGUMENTS)
        page = browser.new_page(viewport={"width": 1200, "height": 800}, locale="en-GB")
        page.goto(server.url)
        _say(page, "My name is Ada, and I live in Oslo.")
        _say(page, "Buy milk, eggs and bread")
        server.kill()
        expect(page.locator("[data-note=offline]")).to_be_visible(timeout=10_000)
        server.start()
        expect(page.locator("[data-note=back]")).to_be_visible(timeout=10_000)
        page.get_by_role("button", name="New conversation").click()
        _say(page, "hello")
        page.get_by_role("link", name="First conversation").click()
        _say(page, "What do you know about me?")
        page.mouse.move(700, 620)
        page.screenshot(path=target)
        browser.close()
    print(target)


def _say(page: Page, message: str) -> None:
    page.fill("#text", message)
    page.press("#text", "Enter")
    expect(page.locator("#send")).to_be_visible()
    expect(page.locator(".message.live")).to_have_count(0)
    page.wait_for_timeout(300)


if __name__ == "__main__":
    main()
