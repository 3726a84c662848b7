"""What is measured, and whether what came is what was sent."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from benchmarks.exchange import WORDS, head_size, payload_size
from benchmarks.servers import load
from benchmarks.servers.load import NAME, STAMP, Counted, LoadFailedError, Target
from benchmarks.servers.rows import Row

RSV1 = 0x40
READY = b"ready"
STAMPED = NAME + 1 + STAMP


@dataclass(frozen=True)
class Fanout:
    """A way to publish.

    Args:
        size: Of the text, in bytes.
        window: How many publications are not yet with every receiver.
        offer: The receivers offer permessage-deflate, and it has to be taken.
    """

    size: int
    window: int
    offer: bool = False

    @cached_property
    def text(self) -> bytes:
        """The name of a channel, a number, and words."""
        words = WORDS * (self.size // len(WORDS) + 1)
        return (b"%0*d %0*d " % (NAME, 0, STAMP, 0) + words)[: self.size]

    def run(self, target: Target, receivers: int, seconds: float) -> Counted:
        counted, stream = load.fanout(
            target, self.text, receivers, self.window, seconds, offer=self.offer
        )
        check(stream, self.text)
        return counted


def check(stream: bytes, text: bytes) -> None:
    """Everybody got this stream: is it what was published, all of it, in order?"""
    messages = read(stream)
    if (first := next(messages, b"")) != READY:
        raise LoadFailedError(f"the first message is {first!r}, not {READY!r}")
    for number, message in enumerate(messages, 1):
        if message != text[: NAME + 1] + b"%0*d" % (STAMP, number) + text[STAMPED:]:
            raise LoadFailedError(f"message {number} is {message!r}")


def read(stream: bytes) -> Iterator[bytes]:
    """The payloads of whole frames (RFC 6455, 5.2), inflated in one context (RFC 7692, 7.2.2)."""
    inflater, at = zlib.decompressobj(wbits=-15), 0
    while at < len(stream):
        head = stream[at : at + head_size(stream[at : at + 2])]
        at += len(head) + payload_size(head)
        payload = stream[at - payload_size(head) : at]
        if head[0] & RSV1:
            payload = inflater.decompress(payload + b"\x00\x00\xff\xff")
        yield payload


def row(title: str, fanout: Fanout, receivers: int) -> Row:
    def turn(target: Target, seconds: float) -> Counted:
        return fanout.run(target, receivers, seconds)

    return Row(title, "deliveries", None, turn)


def plain(receivers: int) -> tuple[Row, ...]:
    """Without permessage-deflate."""
    return (
        row("128 B, one at a time", Fanout(128, 1), receivers),
        row("128 B, 8 in flight", Fanout(128, 8), receivers),
    )


def deflate(receivers: int) -> tuple[Row, ...]:
    """With it; only the longer text is so long that our class compresses it too."""
    return (
        row("128 B, one at a time, deflate", Fanout(128, 1, offer=True), receivers),
        row("1 KiB, 8 in flight, deflate", Fanout(1024, 8, offer=True), receivers),
    )
