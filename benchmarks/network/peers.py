"""Who is measured. One more is a program and a line."""

from dataclasses import dataclass
from enum import StrEnum

PROGRAMS = "benchmarks.network.programs"


class Kind(StrEnum):
    """What it is to us."""

    OURS = "ours"
    LIBRARY = "a library"
    DRIVER = "a driver"


@dataclass(frozen=True)
class Peer:
    """A way to publish.

    Args:
        name: What the report prints.
        kind: Ours is compared with the libraries.
        program: `MODULE:NAME` in `PROGRAMS`.
        needs: A package that is to be found before the one that is installed.
    """

    name: str
    kind: Kind
    program: str
    needs: str = ""


OURS = Peer("Yaat", Kind.OURS, "yaat:channel")
REDIS_PY = Peer("our script, redis-py", Kind.DRIVER, "drivers:redis_py")
PEERS = (
    OURS,
    Peer("Yaat's RedisBroker alone", Kind.OURS, "yaat:broker"),
    Peer("Yaat, no history", Kind.OURS, "yaat:forgetful"),
    Peer("Litestar, streams", Kind.LIBRARY, "litestar:streams"),
    Peer("Litestar's stream backend alone", Kind.LIBRARY, "litestar:streams_alone"),
    Peer("Litestar, pub/sub", Kind.LIBRARY, "litestar:pubsub"),
    Peer("Litestar's pub/sub backend alone", Kind.LIBRARY, "litestar:pubsub_alone"),
    Peer("channels_redis, core", Kind.LIBRARY, "channels_redis:core"),
    Peer("channels_redis, pub/sub", Kind.LIBRARY, "channels_redis:pubsub"),
    # It hears nothing by redis-py 8.
    Peer("broadcaster", Kind.LIBRARY, "broadcaster:pubsub", needs="redis==5.3.1"),
    Peer("our script, hiredis alone", Kind.DRIVER, "drivers:hiredis_alone"),
    Peer("our script, redis-py's Connection", Kind.DRIVER, "drivers:connection"),
    REDIS_PY,
)
