"""Who is measured."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Peer:
    """One application: the name that a report prints and where uvicorn finds it."""

    name: str
    app: str


BARE = Peer("bare", "benchmarks.apps.bare:app")
# The very same program in a second process: how far its figures lie from the first one's is the
# spread of the measurement, below which no other difference means anything.
AGAIN = Peer("bare again", "benchmarks.apps.bare:app")
YAAT = Peer("Yaat", "benchmarks.apps.yaat:app")
STARLETTE = Peer("Starlette", "benchmarks.apps.starlette:app")
PEERS = (
    BARE,
    AGAIN,
    YAAT,
    STARLETTE,
    Peer("FastAPI", "benchmarks.apps.fastapi:app"),
    Peer("Litestar", "benchmarks.apps.litestar:app"),
    Peer("Quart", "benchmarks.apps.quart:app"),
    Peer("Falcon", "benchmarks.apps.falcon:app"),
)


def chosen(names: Sequence[str], peers: Sequence[Peer]) -> list[Peer]:
    """Bare, which every ratio needs, and the peers of these names (all, if none is given)."""
    wanted = {name.lower() for name in names} or {peer.name.lower() for peer in peers}
    return [peer for peer in peers if peer is BARE or peer.name.lower() in wanted]
