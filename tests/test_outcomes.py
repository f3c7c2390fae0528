"""Each row of the page of outcomes happens as it says."""

import pytest

from tests import asgi_client
from tests.outcomes import ATTRIBUTES, PAGE, ROWS, Row, page, serve

world = asgi_client.world


@pytest.mark.asyncio
@pytest.mark.parametrize("row", [pytest.param(row, id=row.condition) for row in ROWS])
async def test_an_outcome_is_what_the_page_says(world, row: Row):
    """What a client is told, and what a handler reads; and the request after it is answered again."""
    answer = await row.provoke(world)
    if row.error is None:
        assert answer.status == 200, answer.text
        truths = {name for name in ATTRIBUTES if answer.data[name]} - ({"is_new"} if row.attribute in ("busy", "degraded") else set())
        assert truths == {row.attribute}
    else:
        assert (answer.status, answer.code) == (row.error.status, row.error.code)
        assert answer.data["type"] == f"urn:convmem:problem:{row.error.code}"
    assert (answer.header("convmem-degraded") == "true") == (row.attribute == "degraded")
    world.store.mend()
    assert (await serve(world).post()).status == 200


def test_the_page_has_these_rows():
    """It is written from them: ``python -m tests.outcomes``."""
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(text)
