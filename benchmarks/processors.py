"""Which processor does what, and how much of it a process has used."""

import os
import time
from pathlib import Path


def split() -> tuple[int, int] | None:
    """One processor for the load and one for the servers, None where there is only one."""
    free = sorted(os.sched_getaffinity(0))
    return (free[0], free[1]) if len(free) > 1 else None


def pin(processor: int) -> None:
    os.sched_setaffinity(0, {processor})


def used_by(pid: int) -> int:
    """Nanoseconds that all threads of a process have spent in user and system mode.

    `/proc/PID/stat` says the same in ticks of 10 ms, too coarse for a run of a second.

    Spec: clock_getcpuclockid(3): a process's CPU clock can be read by others; Linux forms its
        identifier from the pid.
    """
    return time.clock_gettime_ns((~pid << 3) | 2)


def resident(pid: int) -> int:
    """Bytes of a process that are in memory (RSS)."""
    pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
