"""The pages of the documentation, and the code blocks on them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

ELSEWHERE = {
    "docs/how-to/autogen.md": ("autogen-agentchat>=0.7", "autogen-ext>=0.7"),
    "docs/how-to/crewai.md": ("crewai>=1.15",),
}
"""Pages whose Python is run in an environment of its own, with these packages: they clash with what the rest is tested with."""
_FENCE = re.compile(r'```(?P<language>[a-z]*)(?: title="(?P<title>[\w./-]+)")?')
_NOT_RUN = re.compile(r"<!-- not run: (?P<reason>.+) -->")
_HEADING = re.compile(r"#{1,6} (?P<text>.+)")
_LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_CODE = re.compile(r"`[^`]*`")


@dataclass(frozen=True)
class Block:
    """One fenced code block.

    Attributes:
        line: Of its first line of code, counted from 1.
        title: The file it is to be; None when it has no name.
        not_run: Why it is not run; None when it is.
    """

    page: Path
    line: int
    language: str
    title: str | None
    code: str
    not_run: str | None

    @property
    def place(self) -> str:
        """Where it is, for a message."""
        return f"{name_of(self.page)}:{self.line}"


def pages() -> list[Path]:
    """Return every page: the README and all Markdown files below docs."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def name_of(page: Path) -> str:
    """Return a page's path in the checkout."""
    return page.relative_to(ROOT).as_posix()


def blocks_of(page: Path) -> list[Block]:
    """Return the code blocks of a page, in order.

    Raises:
        ValueError: A fence has another form than these tests understand, so that its code would be left out.
    """
    return list(_blocks(page, page.read_text(encoding="utf-8").splitlines()))


def _blocks(page: Path, lines: list[str]) -> Iterator[Block]:
    before, number = "", 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if not line.lstrip().startswith(("```", "~~~")):
            before = line or before
            continue
        opening = _FENCE.fullmatch(line)
        if opening is None or not opening["language"]:
            msg = f'{name_of(page)}:{number}: write ```language or ```language title="file", at the beginning of the line'
            raise ValueError(msg)
        end = lines.index("```", number)
        reason = _NOT_RUN.fullmatch(before)
        code = "\n".join(lines[number:end]) + "\n"
        yield Block(page, number + 1, opening["language"], opening["title"], code, reason["reason"] if reason else None)
        before, number = "", end + 1


def prose_of(page: Path) -> str:
    """Return a page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def links_of(page: Path) -> list[str]:
    """Return the targets of the links and pictures of a page."""
    return [link["target"] for link in _LINK.finditer(_CODE.sub("", prose_of(page)))]


def anchors_of(page: Path) -> set[str]:
    """Return the names of a page's headings, as GitHub makes them."""
    headings = (_HEADING.fullmatch(line) for line in prose_of(page).splitlines())
    return {re.sub(r"[^\w -]", "", heading["text"].lower()).replace(" ", "-") for heading in headings if heading}
