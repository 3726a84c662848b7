"""permessage-deflate, which holds nothing between two messages (RFC 7692).

Both sides begin each message anew (`no_context_takeover`). So neither a compressor nor an
inflater lives as long as a connection, and what was compressed for one receiver is good for all
that agreed on the same window.
"""

import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from websockets.exceptions import InvalidHeader
from websockets.headers import parse_extension

from yaat.server.opening import HandshakeError

NAME: Final = "permessage-deflate"

# 7.2.1: "Remove 4 octets (that are 0x00 0x00 0xff 0xff) from the tail end"; 7.2.2: "Append 4
# octets of 0x00 0x00 0xff 0xff to the tail end of the payload".
TAIL: Final = b"\x00\x00\xff\xff"
# What is inflated at a time, so that a bomb costs no more than this beyond the limit, and of how
# much: what a stream leaves unread is copied.
STEP: Final = 65_536
SLICE: Final = 4_096
# One that ends its stream with every other byte has nothing else in mind.
MAX_STREAMS: Final = 64

_BARE = {"server_no_context_takeover", "client_no_context_takeover"}
_BITS = {str(bits) for bits in range(8, 16)}


class CorruptError(Exception):
    """What came in is no DEFLATE stream."""


class Inflater:
    """Inflates one message, piece by piece."""

    __slots__ = ("_stream", "_streams")

    def __init__(self) -> None:
        self._streams = 0
        self._stream = self._next_stream()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Give what `data` inflates to, at most `STEP` bytes at a time.

        Raises:
            CorruptError: `data` is no DEFLATE stream.
        """
        for at in range(0, len(data), SLICE):
            yield from self._feed(data[at : at + SLICE])

    def finish(self) -> Iterator[bytes]:
        """Give what is left when all of the message has been fed."""
        return self._feed(TAIL)

    def _feed(self, data: bytes) -> Iterator[bytes]:
        piece = b""
        while data or len(piece) == STEP:
            try:
                piece = self._stream.decompress(data, STEP)
            except zlib.error as error:
                raise CorruptError(str(error)) from None
            if piece:
                yield piece
            if self._stream.eof:
                # A block with BFINAL set ends its stream (7.2.3.4), and another one may follow. It
                # is taken to begin anew, as the next message does.
                data, self._stream = self._stream.unused_data, self._next_stream()
            else:
                data = self._stream.unconsumed_tail

    def _next_stream(self) -> "zlib._Decompress":
        self._streams += 1
        if self._streams > MAX_STREAMS:
            raise CorruptError("too many streams in a message")
        return zlib.decompressobj(-15)  # the largest window reads what any smaller one wrote


class Deflate(NamedTuple):
    """What was agreed on with a peer, good for every connection that agreed on the same.

    Args:
        window: The LZ77 window of what we send, as a power of two: 9 to 15. It serves 8 as well:
            zlib looks back 262 bytes less far than its window, so 250 for 9.
        response: Our `Sec-WebSocket-Extensions`.
    """

    window: int
    response: bytes

    def compress(self, payload: bytes) -> bytes:
        """Return `payload` as a compressed message has it (7.2.1)."""
        streams = _idle_streams(self.window)
        try:
            stream = streams.pop()
        except IndexError:
            # With more memory zlib slides a table along that is much larger than the window.
            memory = max(5, self.window - 7)
            stream = zlib.compressobj(1, zlib.DEFLATED, -self.window, memory)
        # zlib on Z_FULL_FLUSH: "the compression state is reset so that decompression can restart
        # from this point". So one compressor serves everybody; a new one for each message costs
        # up to 60 us where the allocator gives memory back.
        compressed = stream.compress(payload) + stream.flush(zlib.Z_FULL_FLUSH)
        streams.append(stream)  # never one that an exception left in the middle of a message
        return compressed[: -len(TAIL)]


@lru_cache
def _idle_streams(window: int) -> "list[zlib._Compress]":  # noqa: ARG001 - the key
    """The compressors for a window that nobody uses at the moment: one per thread."""
    return []


def negotiated(offers: str) -> Deflate | None:
    """Accept the first offer in a `Sec-WebSocket-Extensions` header that we can keep to.

    Returns:
        None, if there is none.

    Raises:
        HandshakeError: The header is malformed (RFC 6455, 9.1: the handshake fails).

    Spec: RFC 7692, sections 5.1 and 7.1.
    """
    # What browsers say is known; what is long is not worth keeping.
    return _negotiated(offers) if len(offers) < 256 else _negotiated.__wrapped__(offers)


@lru_cache(maxsize=256)
def _negotiated(offers: str) -> Deflate | None:
    try:
        extensions = parse_extension(offers)
    except InvalidHeader as error:
        raise HandshakeError(str(error)) from None
    for name, parameters in extensions:
        if name == NAME and (answer := _answer(parameters)) is not None:
            return answer
    return None


def _answer(parameters: Sequence[tuple[str, str | None]]) -> Deflate | None:
    """Return our answer to one offer; None declines it.

    7.1: "A server MUST decline an extension negotiation offer" that "contains multiple extension
    parameters with the same name", "an extension parameter not defined for use in an offer" or
    "with an invalid value".
    """
    offer = dict(parameters)
    if len(offer) < len(parameters) or not all(map(_is_valid, offer, offer.values())):
        return None
    # 7.1.1.1 and 7.1.1.2: we may say both "even if the extension negotiation offer being
    # accepted by the response didn't include" them.
    response = f"{NAME}; server_no_context_takeover; client_no_context_takeover"
    bits = offer.get("server_max_window_bits")
    if bits is None:
        return Deflate(15, response.encode())
    # 7.1.2.1: we accept "by including" it "with the same or smaller value".
    return Deflate(max(9, int(bits)), f"{response}; server_max_window_bits={bits}".encode())


def _is_valid(name: str, value: str | None) -> bool:
    if name in _BARE:
        return value is None
    if name == "client_max_window_bits":  # 7.1.2.2: "may have a value" in an offer
        return value is None or value in _BITS
    return name == "server_max_window_bits" and value in _BITS
