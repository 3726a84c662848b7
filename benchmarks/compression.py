"""What permessage-deflate costs that holds nothing between two messages: time, bytes, memory.

It compares libraries, levels, windows, and ways to have a compressor for a message. As a part of
the benchmarks, or alone: `python -m benchmarks.compression`. What has to be measured in a process
of its own is asked of one: `python -m benchmarks.compression QUESTION ARGUMENT ...`.
"""

import json
import os
import random
import subprocess
import sys
import time
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from isal import isal_zlib
from zlib_ng import zlib_ng

from benchmarks import processors
from benchmarks.figures import table
from benchmarks.settings import Settings

ROUNDS = 9
HELD = 1000
TAIL = b"\x00\x00\xff\xff"
KIB, MIB = 1 << 10, 1 << 20
LIBRARIES: dict[str, Any] = {"zlib": zlib, "zlib-ng": zlib_ng, "isal": isal_zlib}
GIVING_BACK = {"MALLOC_MMAP_THRESHOLD_": "32768"}  # glibc keeps freed memory, others less of it
TEXT = (
    "the of and to in is you that it he was for on are as with his they be at one have this from "
    "or had by hot word but what some we can out other were all there when up use your how said an "
    "each she which do their time if will way about many then them write would like so these her "
    "long make thing see him two has look more day could go come did number sound no most people"
)
WORDS = TEXT.split()
NAMES = ("alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy")
Function = Callable[[bytes], bytes]
Turns = dict[tuple[str, str], list[float]]


def payloads() -> dict[str, bytes]:
    """Messages as they are sent over WebSockets, the same in every run."""
    chance = random.Random(7692)
    return {
        **{f"JSON {size}": ticks(chance)[:size] for size in (60, 100)},
        **{f"JSON {size}": records(chance, size) for size in (200, 300, 500)},
        **{f"JSON {size} KiB": records(chance, size * KIB) for size in (1, 4, 16, 64)},
        "chat 300": sentence(chance, 100).encode()[:300],
        "base64 1 KiB": b64encode(chance.randbytes(768)),
    }


def sentence(chance: random.Random, words: int) -> str:
    return " ".join(chance.choices(WORDS, k=words))


def ticks(chance: random.Random) -> bytes:
    price = {"type": "tick", "symbol": "ACME", "price": round(chance.uniform(1, 999), 2)}
    return json.dumps({**price, "at": 1700000000123, "volume": chance.randrange(10**6)}).encode()


def records(chance: random.Random, size: int) -> bytes:
    """The first `size` bytes of a list of chat messages."""
    return json.dumps([record(chance) for _ in range(size // 100 + 1)]).encode()[:size]


def record(chance: random.Random) -> dict[str, object]:
    return {
        "type": "message",
        "id": chance.randrange(10**9),
        "room": f"room:{chance.randrange(99)}",
        "user": chance.choice(NAMES),
        "text": sentence(chance, chance.randrange(2, 15)),
        "at": 1700000000 + chance.randrange(10**7),
        "read": chance.random() < 0.5,
    }


def anew(library: Any, level: int, window: int = 15, memory: int = 8) -> Function:
    """A compressor for each message."""

    def compress(data: bytes) -> bytes:
        stream = library.compressobj(level, zlib.DEFLATED, -window, memory)
        return ended(stream.compress(data) + stream.flush(zlib.Z_SYNC_FLUSH))

    return compress


def copied(library: Any, level: int, window: int = 15, memory: int = 8) -> Function:
    """A copy of an unused compressor for each message."""
    unused = library.compressobj(level, zlib.DEFLATED, -window, memory)

    def compress(data: bytes) -> bytes:
        stream = unused.copy()
        return ended(stream.compress(data) + stream.flush(zlib.Z_SYNC_FLUSH))

    return compress


def shared(library: Any, level: int, window: int = 15, memory: int = 8) -> Function:
    """One compressor for all messages, which forgets each by a full flush."""
    stream = library.compressobj(level, zlib.DEFLATED, -window, memory)

    def compress(data: bytes) -> bytes:
        return ended(stream.compress(data) + stream.flush(zlib.Z_FULL_FLUSH))

    return compress


def ended(compressed: bytes) -> bytes:
    """RFC 7692, 7.2.1: without the four octets at the end, which have to be there."""
    if not compressed.endswith(TAIL):
        raise SystemExit("a flush that does not end with an empty block")
    return compressed[: -len(TAIL)]


def inflating(library: Any) -> Function:
    """An inflater for each message, within a limit; from what the usual compressor writes."""

    def inflate(compressed: bytes) -> bytes:
        whole: bytes = library.decompressobj(-15).decompress(compressed + TAIL, MIB)
        return whole

    return inflate


def strictly(compressed: bytes, window: int) -> bytes:
    """Inflate with no more to look back at than the window: one byte at a time leaves no other."""
    stream, pieces, rest = zlib.decompressobj(-window), [], compressed + TAIL
    while rest:
        pieces.append(stream.decompress(rest, 1))
        rest = stream.unconsumed_tail
    return b"".join(pieces)


COMPRESSING: dict[str, tuple[Function, int]] = {
    **{f"zlib {level}, shared": (shared(zlib, level), 15) for level in (1, 3, 6)},
    "zlib 1, anew": (anew(zlib, 1), 15),
    "zlib 1, copied": (copied(zlib, 1), 15),
    **{f"zlib-ng {level}, shared": (shared(zlib_ng, level), 15) for level in (1, 2, 3)},
    "zlib-ng 2, anew": (anew(zlib_ng, 2), 15),
    **{f"isal {level}, anew": (anew(isal_zlib, level), 15) for level in (1, 2)},
}
# The smaller the window, the more often it slides, and each time all of the memory is gone over.
USUAL = {9: 5, 10: 5, 11: 5, 12: 5, 13: 6, 14: 7, 15: 8}
OTHERS = ((15, 9), (15, 5), (15, 1), (12, 8), (12, 1), (9, 8), (9, 1))
WINDOWS: dict[str, tuple[Function, int]] = {
    # zlib cannot write for a window of 8; what it writes for 9 looks back 250 bytes at most.
    "8 (by 9), memory 5": (shared(zlib, 1, 9, 5), 8),
    **{
        f"{window}, memory {memory}": (shared(zlib, 1, window, memory), window)
        for window, memory in (*USUAL.items(), *OTHERS)
    },
}
ALLOCATING = {"anew": anew, "copied": copied, "shared": shared}


def timed(function: Function, data: bytes) -> float:
    """CPU microseconds of a call, in a turn of half a millisecond or so."""
    calls = max(3, 100_000 // (len(data) + 600))
    began = time.process_time_ns()
    for _ in range(calls):
        function(data)
    return (time.process_time_ns() - began) / calls / 1000


def taken(functions: dict[str, Function], data: dict[str, bytes], rounds: int) -> Turns:
    """Give every function a turn at everything, round by round."""
    turns: Turns = {(name, title): [] for name in functions for title in data}
    for _ in range(rounds):
        for (name, title), results in turns.items():
            results.append(timed(functions[name], data[title]))
    return turns


def compressing(ways: dict[str, tuple[Function, int]], rounds: int) -> str:
    """A table of microseconds and of what is left of 100 bytes; all of it is checked first."""
    data = payloads()
    left = {(name, title): 0.0 for name in ways for title in data}
    for name, title in left:
        compress, window = ways[name]
        compressed = compress(data[title])
        if strictly(compressed, window) != data[title]:
            raise SystemExit(f"{name}: {title} does not inflate")
        left[name, title] = 100 * len(compressed) / len(data[title])
    turns = taken({name: way[0] for name, way in ways.items()}, data, rounds)
    return grid(ways, data, lambda *at: f"{min(turns[at]):.1f} / {left[at]:.0f} %")


def inflation(rounds: int) -> str:
    compress = shared(zlib, 1)
    data = {title: compress(payload) for title, payload in payloads().items()}
    turns = taken({name: inflating(lib) for name, lib in LIBRARIES.items()}, data, rounds)
    return grid(LIBRARIES, data, lambda *at: f"{min(turns[at]):.1f}")


def grid(names: Iterable[str], titles: Iterable[str], cell: Callable[[str, str], str]) -> str:
    head = list(titles)
    return table(["", *head], ([name, *(cell(name, title) for title in head)] for name in names))


def held(what: str, library: str, window: str, memory: str) -> float:
    """KiB of a compressor or an inflater that is kept after a message of 1 KiB."""
    message = payloads()["JSON 1 KiB"]
    compressed = anew(zlib, 1)(message) + TAIL
    kept, before = [], processors.resident(os.getpid())
    for _ in range(HELD):
        if what == "compressor":
            stream = LIBRARIES[library].compressobj(1, zlib.DEFLATED, -int(window), int(memory))
            stream.compress(message)
            stream.flush(zlib.Z_SYNC_FLUSH)
        else:
            stream = LIBRARIES[library].decompressobj(-int(window))
            stream.decompress(compressed)
        kept.append(stream)
    return (processors.resident(os.getpid()) - before) / len(kept) / KIB


def allocated(way: str) -> float:
    """Microseconds to compress 300 bytes."""
    message, compress = payloads()["JSON 300"], ALLOCATING[way](zlib, 1)
    return min(timed(compress, message) for _ in range(ROUNDS))


def bomb(step: str, limit: str) -> float:
    """MiB that a message of 256 MiB takes until it is found to be over the limit."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    rest = b"".join([*(stream.compress(bytes(MIB)) for _ in range(256)), stream.flush()])
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): "reset the peak resident set size"
    before, inflater, pieces, size = peak(), zlib.decompressobj(-15), [], 0
    while size <= int(limit):
        pieces.append(inflater.decompress(rest, min(int(step), int(limit) + 1 - size)))
        rest, size = inflater.unconsumed_tail, size + len(pieces[-1])
    return peak() - before


def peak() -> float:
    """MiB that were resident at the most."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / KIB


QUESTIONS: dict[str, Callable[..., float]] = {"held": held, "allocated": allocated, "bomb": bomb}


def asked(*question: str | int, **environment: str) -> float:
    """What a process of its own answers."""
    command = [sys.executable, "-m", "benchmarks.compression", *map(str, question)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, check=True, env={**os.environ, **environment}
    )
    return float(done.stdout)


def memory_lines() -> Iterator[Sequence[str]]:
    for name in LIBRARIES:
        sizes = [asked("held", "compressor", name, *kind) for kind in ((15, 8), (12, 5), (9, 1))]
        yield [name, *(f"{size:.0f}" for size in [*sizes, asked("held", "inflater", name, 15, 8)])]


def allocation_lines() -> Iterator[Sequence[str]]:
    for way in ALLOCATING:
        figures = asked("allocated", way), asked("allocated", way, **GIVING_BACK)
        yield [way, *(f"{taken:.1f}" for taken in figures)]


def bomb_lines() -> Iterator[Sequence[str]]:
    for name, step in {"one call": 1 << 30, "256 KiB": 256 * KIB, "64 KiB": 64 * KIB}.items():
        yield [name, *(f"{asked('bomb', step, limit * MIB):.1f}" for limit in (1, 16))]


def run(settings: Settings) -> None:
    """Measure and report."""
    report(settings.rounds or ROUNDS)


def report(rounds: int) -> None:
    print(
        f"\n## Compression\n\nCPU time, the best of {rounds} interleaved rounds. zlib is ", end=""
    )
    print(f"{zlib.ZLIB_RUNTIME_VERSION}, zlib-ng {zlib_ng.ZLIBNG_RUNTIME_VERSION}.")
    print("\n### Compressing: µs a message / what is left of it\n")
    print(compressing(COMPRESSING, rounds))
    print("\n### Windows (zlib 1, shared): µs a message / what is left of it\n")
    print(compressing(WINDOWS, rounds))
    print("\n### Inflating: µs a message\n")
    print(inflation(rounds))
    print("\n### Held: KiB each\n")
    kinds = [f"compressor {kind}" for kind in ("15, memory 8", "12, memory 5", "9, memory 1")]
    print(table(["", *kinds, "inflater"], memory_lines()))
    print("\n### How malloc behaves (zlib 1, JSON of 300 bytes): µs a message\n")
    print(table(["", "it keeps what is freed", "it gives it back"], allocation_lines()))
    print("\n### A bomb of 256 MiB until it is refused: MiB\n")
    print(table(["inflated in steps of", "limit 1 MiB", "limit 16 MiB"], bomb_lines()))


if __name__ == "__main__":
    if sys.argv[1:]:
        print(QUESTIONS[sys.argv[1]](*sys.argv[2:]))
    else:
        report(ROUNDS)
