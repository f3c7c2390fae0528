"""Environments for what cannot be installed beside the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import environments
from convmem.bootstrap import BootstrapError


def environment(name: str, *requirements: str) -> Path:
    """Return the Python of an environment with these packages; skip the test where they cannot be had."""
    try:
        return environments.make(name, requirements)
    except (BootstrapError, OSError) as error:
        pytest.skip(f"declared: {name} cannot be installed here: {error}")
