"""Real servers out of PyPI wheels, started and killed by the tests."""
