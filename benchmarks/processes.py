"""What processes of this machine use: CPU, memory, descriptors. Only Linux says; elsewhere there is nothing to say."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

_SCHEDULED = 2
"""The clock of all CPU time of a process, as the kernel numbers it: ``CPUCLOCK_SCHED`` (clock_getcpuclockid(3))."""
_CHILDREN_IN_USER, _CHILDREN_IN_SYSTEM = 13, 14
"""Fields of ``/proc/PID/stat`` after the name, in clock ticks: those who ended and were waited for (proc(5))."""


def cpu(pid: int) -> float:
    """Return the seconds of CPU that a process and its children have used; children that ended are known to a tick only."""
    used = 0.0
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(") ")[2].split()
        used += (int(fields[_CHILDREN_IN_USER]) + int(fields[_CHILDREN_IN_SYSTEM])) / os.sysconf("SC_CLK_TCK")
        for each in (pid, *_children(pid)):
            with suppress(OSError):
                used += time.clock_gettime(~each << 3 | _SCHEDULED)
    return used


def resident(pid: int) -> int:
    """Return how many bytes of memory a process holds."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0


def descriptors(pid: int) -> int:
    """Return how many files and sockets a process has open."""
    with suppress(OSError):
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    return 0


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
