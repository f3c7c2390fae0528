"""For authors of adapters: what an adapter promises, as tests.

`AdapterContract` needs pytest and pytest-asyncio: ``pip install "convmem[test]"``.
"""

import pytest

pytest.register_assert_rewrite("convmem.testing.adapters")

from convmem.testing.adapters import AdapterContract, CountedStore  # noqa: E402 - its asserts are explained only when registered first

__all__ = ["AdapterContract", "CountedStore"]
