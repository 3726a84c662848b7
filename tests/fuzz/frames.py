"""Frames as clients send them, right and wrong, and what a decoder makes of them."""

import zlib
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from yaat.server.codec import Close, Decoder, FrameError, Ping
from yaat.server.deflate import Deflate

MASK = b"\x37\xfa\x21\x3d"  # the one of RFC 6455, 5.7
ZERO_MASK = bytes(4)

Message = str | bytes


class Outcome(NamedTuple):
    """What came of a stream: its messages, pings and close, and why it failed, if it did."""

    messages: list[Message]
    controls: list[Ping | Close]
    code: int | None = None
    reason: str = ""


def masked(payload: bytes, mask: bytes = MASK) -> bytes:
    """RFC 6455, 5.3: "transformed-octet-i = original-octet-i XOR masking-key-octet-j"."""
    key = (mask * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload) ^ int.from_bytes(key)).to_bytes(len(payload))


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = MASK,
    width: int | None = None,
) -> bytes:
    """Return a client's frame.

    Args:
        opcode: The kind of frame, of four bits.
        payload: What it carries, not masked yet.
        fin: Whether the message ends with it.
        rsv: The three reserved bits: 4 is RSV1.
        mask: None leaves it unmasked, as a server's frame is.
        width: In how many bits the length is written, 7, 16 or 64; by default the fewest.
    """
    size, bit = len(payload), 0 if mask is None else 0x80
    first = bytes((fin << 7 | rsv << 4 | opcode,))
    width = width or (7 if size < 126 else 16 if size < 65536 else 64)
    second = bytes((bit | (size if width == 7 else 126 if width == 16 else 127),))
    length = b"" if width == 7 else size.to_bytes(width // 8)
    if mask is None:
        return first + second + length + payload
    return first + second + length + mask + masked(payload, mask)


def deflated(payload: bytes, *, bits: int = 15, level: int = 6) -> bytes:
    """Return the payload of a compressed message (RFC 7692, 7.2.1)."""
    compressor = zlib.compressobj(level, zlib.DEFLATED, -bits)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def with_final_block(payload: bytes) -> bytes:
    """Return a compressed message that ends its stream (RFC 7692, 7.2.3.4)."""
    compressor = zlib.compressobj(6, zlib.DEFLATED, -15)
    return compressor.compress(payload) + compressor.flush() + b"\x00"


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    """Return `stream` in pieces, none of them empty."""
    borders = sorted({0, len(stream), *(place for place in places if 0 < place < len(stream))})
    return [stream[start:stop] for start, stop in pairwise(borders)]


def decoder(
    *,
    limit: int = 1 << 20,
    tiny: int = 1 << 20,
    unread: int = 1 << 20,
    deflate: bool = False,
) -> Decoder:
    """Return a decoder whose bounds do not matter unless given."""
    agreed = Deflate(15, b"permessage-deflate") if deflate else None
    return Decoder(
        max_message_bytes=limit, max_tiny_fragments=tiny, max_unread=unread, deflate=agreed
    )


def decoded(by: Decoder, pieces: Iterable[bytes]) -> Outcome:
    """Feed all of a stream to a decoder, and take out what it brings as it comes."""
    messages: list[Message] = []
    failure: FrameError | None = None
    for piece in pieces:
        try:
            by.feed(piece)
            while by.held_back:
                _take(by, messages)
                by.feed(b"")
        except FrameError as error:
            failure = failure or error
        _take(by, messages)
    if failure is None:
        return Outcome(messages, by.controls)
    return Outcome(messages, by.controls, failure.code, failure.reason)


def _take(by: Decoder, messages: list[Message]) -> None:
    messages += by.messages
    by.messages.clear()
    by.unread = 0
