"""Records: small objects that are made by the dozen in every request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

R = TypeVar("R")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[R]) -> type[R]:
    """Make a dataclass that nobody changes, which type checkers see to.

    At run time nothing does: making an object of a class that is frozen there too takes four times as long, and a window is made of
    dozens of them.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)
