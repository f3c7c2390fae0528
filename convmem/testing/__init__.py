"""For authors of stores and of apps: the storage contract as tests, and a store that fails on demand.

`StoreContract` needs pytest and pytest-asyncio, `convmem.testing.machine` hypothesis too: ``pip install "convmem[test]"``.
"""

import pytest

pytest.register_assert_rewrite("convmem.testing.clauses", "convmem.testing.contract", "convmem.testing.writer")

from convmem.testing.contract import StoreContract  # noqa: E402 - its asserts are explained only when registered first
from convmem.testing.faulty import FaultyStore  # noqa: E402
from convmem.testing.writer import Writer  # noqa: E402

__all__ = ["FaultyStore", "StoreContract", "Writer"]
