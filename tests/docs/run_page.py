"""Run the Python of a page where this runs, in an empty directory: ``python -m tests.docs.run_page docs/how-to/crewai.md``."""

import sys
from pathlib import Path

from tests.docs.pages import ROOT, blocks_of


def main() -> None:
    """Write the blocks that are files, then execute all blocks in one namespace."""
    blocks = [block for block in blocks_of(ROOT / sys.argv[1]) if block.language == "python"]
    for block in blocks:
        if block.title:
            Path(block.title).write_text(block.code, encoding="utf-8")
    sys.path.insert(0, "")
    namespace = {"__name__": "__main__"}
    for block in blocks:
        if not block.title:
            exec(compile("\n" * (block.line - 1) + block.code, block.page, "exec"), namespace)


main()
