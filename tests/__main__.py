"""``python3 -m tests [pytest's arguments]``: make the environment on first use, then run pytest in it.

Two processes share the whole, each file in one of them; what is chosen by its path runs in one. ``-n 0`` runs everything in one.
"""

import os
import sys
from pathlib import Path

from convmem import bootstrap


def main() -> int:
    """Run pytest on the whole checkout and return its exit code."""
    bootstrap.enter("test", ["-m", "tests", *sys.argv[1:]])
    os.chdir(bootstrap.CHECKOUT)
    import pytest

    chosen = any(Path(argument.partition("::")[0]).exists() for argument in sys.argv[1:])
    return pytest.main(sys.argv[1:] if chosen else ["-n", "2", "--dist", "loadfile", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
