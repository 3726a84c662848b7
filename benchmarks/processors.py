"""Which processor does what, and how much of it and of the memory a process has used."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def split() -> tuple[int, int] | None:
    """One processor for the load and one for the servers, None where there is only one."""
    free = sorted(os.sched_getaffinity(0))
    return (free[0], free[1]) if len(free) > 1 else None


def pin(processor: int) -> None:
    os.sched_setaffinity(0, {processor})


@contextmanager
def pinned(processor: int | None) -> Iterator[None]:
    """Processes that are started meanwhile have this processor, and so has all that they start."""
    before = os.sched_getaffinity(0)
    if processor is not None:
        pin(processor)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def family(pid: int) -> list[int]:
    """A process and all that it has started; none if it is gone."""
    found = [pid]
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text(encoding="ascii").split():
                found += family(int(child))
    except (FileNotFoundError, ProcessLookupError):
        return []
    return found


def end(pid: int) -> None:
    """Without asking."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


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


def proportional(pid: int) -> int:
    """Bytes of it that are its own, and its part of what it shares with other processes (PSS)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    [kibibytes] = [line.split()[1] for line in lines if line.startswith("Pss:")]
    return int(kibibytes) * 1024
