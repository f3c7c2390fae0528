"""The browser that pages about browsers are followed in."""

from tests.demo.conftest import browser

__all__ = ["browser"]
