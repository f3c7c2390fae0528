"""The docs as a site: built without a network, and read without one."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.servers.processes import HOST, Server

from .pages import DOCS, ROOT, pages

CONFIGURATION = ROOT / ".mkdocs.yml"
ELSEWHERE = re.compile(r"(?:https?:)?//\S+")
LOADS = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "object": "data", "video": "src", "audio": "src"}


def build(folder: Path, configuration: str) -> Path:
    """Build the site in a folder and return where it is; a warning is an error."""
    shutil.copytree(DOCS, folder / "docs")
    (folder / "mkdocs.yml").write_text(configuration, encoding="utf-8")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "-f", "mkdocs.yml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built once for the module."""
    return build(tmp_path_factory.mktemp("site"), CONFIGURATION.read_text(encoding="utf-8"))


class Loads(HTMLParser):
    """Notes what a browser loads with a page, without anybody clicking."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and given.get("rel") in ("canonical", "alternate", "prev", "next"):
            return
        self.found += [value for name, value in attrs if value and name in (LOADS.get(tag), "srcset", "poster")]


def loaded_from_elsewhere(site: Path) -> list[str]:
    """Return what pages and style sheets load from other hosts."""
    found = []
    for page in site.rglob("*.html"):
        loads = Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        found += loads.found
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        found += re.findall(r"(?:url\(|@import\s+)[\"']?([^\"')\s]+)", text)
    return [each for each in found if ELSEWHERE.match(each)]


def test_every_page_has_its_place_in_the_navigation():
    """Once: a page that only a search finds is read by nobody, and one in two places is two pages to a reader."""
    navigation = CONFIGURATION.read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = re.findall(r"[\w/-]+\.md", navigation)
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in pages() if page.is_relative_to(DOCS))


def test_the_site_has_a_page_for_each_page(site):
    """Built in strict mode, in which a link that leads nowhere fails."""
    built = {page.relative_to(site).with_suffix(".md").as_posix() for page in site.rglob("*.html")} - {"404.md"}
    assert built == {page.relative_to(DOCS).as_posix() for page in pages() if page.is_relative_to(DOCS)}


def test_nothing_is_loaded_from_elsewhere(site):
    """A reader without a network, or who does not want to be counted, reads the same site."""
    assert loaded_from_elsewhere(site) == []


def test_fonts_from_elsewhere_would_be_noticed(tmp_path):
    """The planted twin: the same site with the theme's own choice of fonts."""
    configuration = CONFIGURATION.read_text(encoding="utf-8")
    assert "  font: false\n" in configuration
    assert any(
        "fonts.googleapis.com" in each for each in loaded_from_elsewhere(build(tmp_path, configuration.replace("  font: false\n", "")))
    )


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), pytest.param(1280, "light", marks=pytest.mark.all_only)])
def test_the_site_is_read_in_a_browser_without_a_network(site, browser, width, scheme):
    """Every page, on a phone and on a desktop: no request leaves the host, no script fails, nothing is wider than the screen."""
    with Server([sys.executable, "-m", "http.server", "--bind", HOST, "-d", str(site), "{port}"]) as server:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page, wrong = context.new_page(), []
        page.on("request", lambda request: None if request.url.startswith((server.url, "data:")) else wrong.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        for built in sorted(site.rglob("*.html")):
            page.goto(f"{server.url}/{built.relative_to(site)}")
            wider = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            wrong += [f"{built.name} is {wider} wider than {width}"] if wider > 0 else []
        context.close()
    assert wrong == []


def test_the_search_finds_a_page_without_a_network(site, browser):
    """The index is part of the site, and no service."""
    with Server([sys.executable, "-m", "http.server", "--bind", HOST, "-d", str(site), "{port}"]) as server:
        page, elsewhere = browser.new_page(viewport={"width": 1280, "height": 900}), []
        page.on("request", lambda request: None if request.url.startswith((server.url, "data:")) else elsewhere.append(request.url))
        page.goto(f"{server.url}/index.html")
        page.get_by_role("button", name="Search").click()
        page.get_by_placeholder("Search").fill("stop button")
        page.get_by_text("Both keep what was said until then").wait_for()
        assert elsewhere == []
        page.close()
