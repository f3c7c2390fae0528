"""FrozenDict: a dict that cannot be changed, for what is frozen and holds one. Imports nothing of ours."""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class FrozenDict(dict[K, V]):
    """A dict wherever one is read, copied (``{**it, "key": value}`` is a plain one) or compared. It refuses to be changed.

    Values that can be changed themselves, such as lists, are not frozen with it.
    """

    __slots__ = ()

    def _refuse(self, *_given: object, **_named: object) -> NoReturn:
        msg = 'This belongs to something frozen, and nobody would store the change; make another: model_copy(update={"metadata": {...}}).'
        raise TypeError(msg)

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        """Hash the items; as a tuple does, refuse when one of them cannot be."""
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle it by its items, not by setting them."""
        return type(self), (dict(self),)
