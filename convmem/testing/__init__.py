"""For authors of stores, adapters and apps: both contracts as tests, and stores that count calls or fail on demand.

The contracts need pytest and pytest-asyncio, `convmem.testing.machine` hypothesis too: ``pip install "convmem[test]"``.
"""

import pytest

pytest.register_assert_rewrite("convmem.testing.adapters", "convmem.testing.clauses", "convmem.testing.contract", "convmem.testing.writer")

from convmem.testing.adapters import AdapterContract, CountedStore  # noqa: E402 - asserts are explained only when registered first
from convmem.testing.contract import StoreContract  # noqa: E402
from convmem.testing.faulty import FaultyStore  # noqa: E402
from convmem.testing.writer import Writer  # noqa: E402

__all__ = ["AdapterContract", "CountedStore", "FaultyStore", "StoreContract", "Writer"]
