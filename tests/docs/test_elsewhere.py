"""Pages about frameworks that cannot be installed beside the rest, each run in an environment of its own."""

import subprocess

import pytest

from convmem.bootstrap import CHECKOUT
from tests.environments import environment
from tests.servers.processes import clean_environment

from .pages import ELSEWHERE, blocks_of

QUIET = {"CREWAI_DISABLE_TELEMETRY": "true", "OTEL_SDK_DISABLED": "true"}


@pytest.mark.all_only
@pytest.mark.parametrize("page", ELSEWHERE)
def test_every_python_block_runs(page, tmp_path):
    """As on the other pages: an example that does not work is worse than none."""
    python = environment(page.rpartition("/")[2].removesuffix(".md"), "-e", str(CHECKOUT), "fastapi", "httpx2", *ELSEWHERE[page])
    run = clean_environment({"PYTHONPATH": str(CHECKOUT), "HOME": str(tmp_path), **QUIET})
    done = subprocess.run(
        [str(python), "-m", "tests.docs.run_page", page], cwd=tmp_path, env=run, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", ELSEWHERE)
def test_every_block_is_python_that_compiles(page):
    """What is wrong by the look of it is found without the framework; and nothing on the page is left out."""
    for block in blocks_of(CHECKOUT / page):
        assert block.language == "python", block.place
        compile(block.code, block.place, "exec")
