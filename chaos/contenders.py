"""Who is put to the proof."""

from typing import Final

from chaos.stage import Contender

PATIENT: Final = "timeout=2&probe=1"
"""Half-open connections are to be noticed within the run: these are 5 and 10 seconds else."""

YAAT: Final = Contender(
    "Yaat",
    "yaat",
    ("yaat", "hiredis"),
    durable=f"?epochs=trust&{PATIENT}",
    volatile=f"?epochs=strict&{PATIENT}",
    is_ours=True,
)

LITESTAR: Final = ("litestar", "redis")
CHANNELS: Final = ("channels-redis", "redis")

CONTENDERS: Final = (
    YAAT,
    Contender("Litestar, Pub/Sub", "litestar_pubsub", LITESTAR, history=0),
    Contender("Litestar, streams", "litestar_stream", LITESTAR),
    # It hears nothing by redis-py 8, which the others have.
    Contender("broadcaster", "broadcaster", ("broadcaster",), history=0, needs="redis==5.3.1"),
    Contender("channels_redis", "channels_core", CHANNELS, history=0),
    Contender("channels_redis, Pub/Sub", "channels_pubsub", CHANNELS, history=0),
)
