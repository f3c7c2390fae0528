"""The script of the page about a stop button, in a real browser: it hangs up, and what was heard is kept."""

import pytest

pytest.importorskip("playwright", reason="declared: no playwright installed (pip install playwright)")

from tests.servers.processes import HOST, PATIENCE, PYTHON, Server

from .pages import DOCS, ROOT, blocks_of

TITLED = {block.title: block.code for block in blocks_of(DOCS / "how-to" / "stop-button.md") if block.title}
PAUSE = "await asyncio.sleep(0.5)"
THINKS_AFTER_TWO = 'await asyncio.sleep(600 if word == "two, " else 0)'
SERVED = """
from fastapi.responses import FileResponse, HTMLResponse


@app.get("/")
async def page() -> HTMLResponse:
    return HTMLResponse('<!doctype html><title>chat</title><link rel="icon" href="data:,"><script src="/stop.js"></script>')


@app.get("/stop.js")
async def script() -> FileResponse:
    return FileResponse("stop.js")
"""


def test_hanging_up_keeps_what_was_heard(tmp_path, browser):
    """The page's ``stop.js`` as it is written, against its ``app.py`` on a real server, which also serves it."""
    assert PAUSE in TITLED["app.py"]
    (tmp_path / "app.py").write_text(TITLED["app.py"].replace(PAUSE, THINKS_AFTER_TWO) + SERVED, encoding="utf-8")
    (tmp_path / "stop.js").write_text(TITLED["stop.js"], encoding="utf-8")
    environment = {"CONVMEM_STORE": f"sqlite:///{tmp_path}/convmem.db", "PYTHONPATH": str(ROOT)}
    command = [PYTHON, "-m", "uvicorn", "app:app", "--host", HOST, "--port", "{port}"]
    with Server(command, environment, cwd=tmp_path) as server:
        page = browser.new_context().new_page()
        page.set_default_timeout(PATIENCE * 1000)
        page.goto(server.url)
        page.evaluate("() => { window.heard = ''; window.ended = say('Count', (word) => (heard += word)).catch((error) => error.name); }")
        page.wait_for_function("heard.includes('two')")
        page.evaluate("stop()")
        assert page.evaluate("ended") == "AbortError"
        page.wait_for_function("fetch('/history').then((a) => a.text()).then((text) => !text.includes('(running)'))")
        assert page.evaluate("fetch('/history').then((a) => a.json())") == ["Count (interrupted)", "One, two,  (interrupted)"]
        page.context.close()
