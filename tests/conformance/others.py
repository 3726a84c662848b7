"""What came of the same cases on other servers."""

from collections.abc import Sequence
from typing import NamedTuple


class Other(NamedTuple):
    """A server: its 301 cases without compression by verdict, its 216 with it, what fails."""

    name: str
    ok: int
    non_strict: int
    informational: int
    failed: int
    compression: str
    fails: str


OTHERS: Sequence[Other] = (
    Other("granian 2.8.7", 296, 2, 3, 0, "not offered", ""),
    Other(
        "aiohttp 3.14.5",
        293,
        4,
        3,
        1,
        "96 of 96 tried",
        "7.9.5: answers a close frame with 1006 by 1000",
    ),
    Other("uvicorn 0.54.0, wsproto 1.3.2", 290, 8, 3, 0, "96 of 96 tried", ""),
    Other("hypercorn 0.18.0", 288, 10, 3, 0, "96 of 96 tried", ""),
    Other(
        "uvicorn 0.54.0, websockets-sansio",
        285,
        12,
        3,
        1,
        "216 of 216",
        "7.1.5: 1002 for a close frame inside a fragmented message",
    ),
    Other(
        "uvicorn 0.54.0, websockets",
        283,
        11,
        3,
        4,
        "96 of 96 tried",
        "9.3.1, 9.3.2, 9.4.1, 9.4.2: a limit on the number of fragments",
    ),
    Other(
        "daphne 4.2.3",
        282,
        10,
        3,
        6,
        "not offered",
        "1.1.1, 1.2.1, 6.1.1, 6.1.2, 9.7.1, 9.8.1: sends no empty message",
    ),
)
