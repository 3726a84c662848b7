"""How things are called on the server: keys, and the channels of its pub/sub.

A channel belongs to one of the partitions, by its name; all keys of a partition bear its tag in
braces, so that a cluster keeps them in one slot. The tag is never the channel's name, in which
there may be braces of its own.
"""

from binascii import crc_hqx
from functools import lru_cache
from itertools import count
from typing import Final

from yaat.brokers.redis.settings import SLOTS


def slot_of(tag: bytes) -> int:
    """Return the slot of the keys with this tag: CRC16 in the variant of XMODEM."""
    return crc_hqx(tag, 0) % SLOTS


@lru_cache
def tags(partitions: int) -> tuple[bytes, ...]:
    """Return a tag for each partition, such that their slots are spread evenly."""
    found: dict[int, bytes] = {}
    numbers = count()
    while len(found) < partitions:
        tag = b"%d" % next(numbers)
        found.setdefault(slot_of(tag) * partitions // SLOTS, tag)
    return tuple(found[place] for place in range(partitions))


class Keys:
    """The names that a broker uses.

    Args:
        prefix: Begins all of them.
        db: The database: pub/sub knows none, so the names of its channels have to.
        partitions: How many there are; 1 unless it is a cluster.
    """

    def __init__(self, prefix: str, db: int, partitions: int) -> None:
        self._tags: Final = tags(partitions)
        self._heads: Final = [b"%s:{%s}:" % (prefix.encode(), tag) for tag in self._tags]
        self._live: Final = b"c%d:" % db
        self._partitions: Final = partitions

    def partition(self, channel: bytes) -> int:
        """Return to which partition a channel belongs."""
        return crc_hqx(channel, 0) % self._partitions if self._partitions > 1 else 0

    def slot(self, partition: int) -> int:
        """Return in which slot of a cluster a partition is."""
        return slot_of(self._tags[partition])

    def history(self, partition: int, channel: bytes) -> tuple[bytes, bytes]:
        """Return the names of the stream of publications, and of what is known of the channel."""
        head = self._heads[partition]
        return head + b"s:" + channel, head + b"m:" + channel

    def once(self, partition: int, channel: bytes, key: bytes) -> bytes:
        """Return the name of what was published under an idempotency key."""
        return b"%si:%d:%s:%s" % (self._heads[partition], len(key), key, channel)

    def presence(self, partition: int, channel: bytes) -> tuple[bytes, bytes, bytes, bytes]:
        """Return the names of who is there, until when, whose they are, and how many of each."""
        head = self._heads[partition]
        return (
            head + b"ph:" + channel,
            head + b"pz:" + channel,
            head + b"pu:" + channel,
            (head + b"uh:" + channel),
        )

    def live(self, partition: int, channel: bytes) -> bytes:
        """Return the name of the channel in pub/sub."""
        return self._heads[partition] + self._live + channel

    def pulse(self, partition: int, node: bytes) -> bytes:
        """Return the name of the channel by which a node hears itself."""
        return b"%sn:%s" % (self._heads[partition], node)
