"""What a Redis server says of itself, and what of it would lose conversations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

OLDEST = (6, 2)


@dataclass(frozen=True, slots=True)
class Report:
    """One server, as far as it lets itself be asked; managed services forbid some of it.

    Attributes:
        software: Its name and version.
        version: The version of Redis it is compatible with; empty when it does not say.
        policy: Its ``maxmemory-policy``; empty when it does not say.
        appends: Whether it has an append-only file; None when it does not say.
        fsync: How often that file is flushed: always, everysec or no; empty when it does not say.
        snapshots: Whether it writes snapshots by itself; None when it does not say.
        replicas: How many are connected.
        is_clustered: Whether it is a node of a cluster.
    """

    software: str
    version: tuple[int, ...] = ()
    policy: str = ""
    appends: bool | None = None
    fsync: str = ""
    snapshots: bool | None = None
    replicas: int = 0
    is_clustered: bool = False

    @classmethod
    def of(cls, info: bytes, config: Iterable[bytes]) -> Report:
        """Read the replies of ``INFO`` and ``CONFIG GET``; either may be empty."""
        lines = (line.partition(":") for line in info.decode("utf-8", "replace").splitlines())
        facts = {name: value for name, colon, value in lines if colon}
        answers = [answer.decode("utf-8", "replace") for answer in config]
        settings = dict(zip(answers[::2], answers[1::2], strict=False))
        version = facts.get("redis_version", "")
        own = facts.get("valkey_version", "")
        appends, saves = facts.get("aof_enabled"), settings.get("save")
        return cls(
            software=f"Valkey {own}" if own else f"Redis {version or 'of an unknown version'}",
            version=tuple(int(part) for part in version.split(".") if part.isdigit()),
            policy=facts.get("maxmemory_policy", ""),
            appends=None if appends is None else appends == "1",
            fsync=settings.get("appendfsync", ""),
            snapshots=None if saves is None else saves != "",
            replicas=int(facts.get("connected_slaves", "0")),
            is_clustered=facts.get("cluster_enabled") == "1",
        )

    @property
    def too_old(self) -> str:
        """Why it cannot be used; empty when it can."""
        if self.version and self.version < OLDEST:
            return f"The server is {self.software}; convmem needs Redis {OLDEST[0]}.{OLDEST[1]} or later, or Valkey."
        return ""

    @property
    def dangers(self) -> tuple[str, ...]:
        """What would lose conversations, each with its cure."""
        found = []
        if self.policy not in ("", "noeviction"):
            found.append(
                f"Redis has maxmemory-policy {self.policy}: a server that is full removes conversations without a word; "
                "set maxmemory-policy noeviction."
            )
        if self.appends is False and self.snapshots:
            found.append(
                "Redis has no append-only file: a crash of the server loses every turn since its last snapshot; set appendonly yes."
            )
        if self.appends is False and not self.snapshots:
            found.append("Redis has no append-only file: a restart of the server may lose every conversation; set appendonly yes.")
        return tuple(found)

    @property
    def durability(self) -> str:
        """What an acknowledged append survives."""
        if self.appends is None:
            return "not known: the server does not say"
        if not self.appends:
            return "a crash of the app; of the server only what its last snapshot holds" if self.snapshots else "a crash of the app only"
        return {
            "always": "a crash and a power failure (appendfsync always)",
            "everysec": "a crash; a power failure may take the last second (appendfsync everysec)",
            "no": "a crash of the server, not of its host (appendfsync no)",
        }.get(self.fsync, "a crash (append-only file)")
