"""The pages of the frameworks say the same of the same things."""

import pytest

from tests.docs.pages import DOCS, blocks_of
from tests.frameworks.catalogue import FRAMEWORKS

PAGES = DOCS / "how-to" / "frameworks"


def test_the_tables_are_what_the_tests_hold_the_frameworks_to():
    """Their lines are made of what the promises are tested with."""
    lines = (DOCS / "how-to" / "frameworks.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if "](frameworks/" in line]
    written, has = zip(*(framework.rows for framework in FRAMEWORKS), strict=True)
    assert rows == [*written, *has]


def test_every_page_is_of_a_framework_that_is_tested():
    """A page without its app on real servers is a promise nobody keeps."""
    assert {page.stem for page in PAGES.glob("*.md")} == {framework.name for framework in FRAMEWORKS}


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda framework: framework.name)
def test_every_page_shows_the_code_of_today_and_the_same_model(framework):
    """Who changes frameworks finds the same page."""
    blocks = blocks_of(PAGES / f"{framework.name}.md")
    assert blocks[0].language == "diff"
    models = [
        block.code for page in (framework.name, "starlette") for block in blocks_of(PAGES / f"{page}.md") if block.title == "model.py"
    ]
    assert len(models) == 2
    assert models[0] == models[1]
