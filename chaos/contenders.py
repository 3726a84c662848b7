"""Who is put to the proof."""

from typing import Final

from chaos.stage import Contender

PATIENT: Final = "timeout=2&probe=1"
"""Half-open connections are to be noticed within the run: these are 5 and 10 seconds else."""

YAAT: Final = Contender(
    "Yaat",
    "yaat",
    durable=f"?epochs=trust&{PATIENT}",
    volatile=f"?epochs=strict&{PATIENT}",
    is_ours=True,
)

CONTENDERS: Final = (
    YAAT,
    Contender("Litestar, Pub/Sub", "litestar_pubsub", history=0),
    Contender("Litestar, streams", "litestar_stream"),
    # It hears nothing by redis-py 8.
    Contender("broadcaster", "broadcaster", history=0, needs="redis==5.3.1"),
    Contender("channels_redis", "channels_core", history=0),
    Contender("channels_redis, Pub/Sub", "channels_pubsub", history=0),
)
