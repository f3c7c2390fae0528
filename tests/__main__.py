"""``python3 -m tests [pytest's arguments]``: make the environment on first use, then run pytest in it."""

import os
import sys

from convmem import bootstrap


def main() -> int:
    """Run pytest on the whole checkout and return its exit code."""
    bootstrap.enter("test", ["-m", "tests", *sys.argv[1:]])
    os.chdir(bootstrap.CHECKOUT)
    import pytest

    return pytest.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
