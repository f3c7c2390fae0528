"""Which requests have a conversation, and which of them take its lease."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from convmem.exceptions import ConfigurationError
from convmem.turns import Policy

_METHOD = re.compile(r"[A-Z]+")
_UNSAFE_TO_LEASE = ("HEAD", "OPTIONS")


@dataclass(frozen=True, slots=True)
class _Pattern:
    method: str | None
    path: re.Pattern[str]
    policy: Policy | None


class Route(NamedTuple):
    """What is done with a request.

    Attributes:
        defers: Whether the handler loads.
        leases: Whether it takes the lease.
        policy: By which policy; None is the one of the settings.
    """

    defers: bool
    leases: bool = False
    policy: Policy | None = None


class Routes:
    """The patterns of one middleware. In a pattern ``*`` matches anything, ``/`` too; the rest is literal.

    Args:
        paths: Patterns over the path below ``root_path``; None is every path.
        turns: Patterns of the routes that take a lease, each with an optional method in front; or a mapping from pattern to
            ``wait`` or ``reject``, in which the first match wins. None is POST on `paths`.
        load: ``eager``; ``deferred``, so that handlers load; or patterns of the routes where they do.

    Raises:
        ConfigurationError: A pattern has another form.
    """

    def __init__(
        self,
        paths: Sequence[str] | None = None,
        turns: Sequence[str] | Mapping[str, Policy] | None = None,
        load: Sequence[str] | str = "eager",
    ) -> None:
        self._paths = None if paths is None else [_path(pattern, "paths") for pattern in _patterns(paths, "paths")]
        self._turns = [_turn(pattern, policy) for pattern, policy in _policies(turns)]
        self._deferred = [_path(pattern, "load") for pattern in _deferred(load)]
        self.described = "every path" if paths is None else ", ".join(paths)

    def find(self, method: str, path: str) -> Route | None:
        """Return what is done with a request for this path; None where it has no conversation. A WebSocket's method is WEBSOCKET."""
        if self._paths is not None and not _match(self._paths, path):
            return None
        defers = bool(self._deferred) and _match(self._deferred, path)
        for pattern in self._turns:
            if (method == pattern.method if pattern.method else method not in _UNSAFE_TO_LEASE) and pattern.path.fullmatch(path):
                return Route(defers, leases=True, policy=pattern.policy)
        return Route(defers)


def _match(patterns: Iterable[re.Pattern[str]], path: str) -> bool:
    return any(pattern.fullmatch(path) for pattern in patterns)


def _policies(turns: Sequence[str] | Mapping[str, Policy] | None) -> list[tuple[str, Policy | None]]:
    if turns is None:
        return [("POST *", None)]
    if not isinstance(turns, Mapping):
        return [(pattern, None) for pattern in _patterns(turns, "turns")]
    for pattern, policy in turns.items():
        if policy not in ("wait", "reject"):
            msg = f"turns={{{pattern!r}: {policy!r}}}: use 'wait' or 'reject'."
            raise ConfigurationError(msg)
    return list(turns.items())


def _deferred(load: Sequence[str] | str) -> Sequence[str]:
    if not isinstance(load, str):
        return load
    if load not in ("eager", "deferred"):
        msg = f"load={load!r}: use 'eager', 'deferred' or a list of path patterns."
        raise ConfigurationError(msg)
    return ["*"] if load == "deferred" else []


def _patterns(patterns: Sequence[str], name: str) -> Sequence[str]:
    if isinstance(patterns, str):
        msg = f"{name}={patterns!r} is one string; write a list, {name}=[{patterns!r}]."
        raise ConfigurationError(msg)
    return patterns


def _turn(text: str, policy: Policy | None) -> _Pattern:
    method, space, path = text.partition(" ")
    if not space:
        return _Pattern(None, _path(text, "turns"), policy)
    if not _METHOD.fullmatch(method):
        msg = f"turns={text!r}: a pattern is a path, or a method in capitals, a space and a path, such as 'POST /chat*'."
        raise ConfigurationError(msg)
    return _Pattern(method, _path(path, "turns"), policy)


def _path(pattern: str, name: str) -> re.Pattern[str]:
    if not pattern.startswith(("/", "*")):
        msg = f"{name}={pattern!r}: a path pattern begins with / or *, such as '/chat*'."
        raise ConfigurationError(msg)
    return re.compile(".*".join(map(re.escape, pattern.split("*"))), re.DOTALL)
