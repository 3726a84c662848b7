"""What has to hold whatever bytes come in: one function for each part of the server that reads.

What such a function raises, other than by its asserts too, is a defect.
"""

from collections.abc import Callable, Iterator

from fuzz.frames import (
    Outcome,
    cut,
    decoded,
    decoder,
    deflated,
    frame,
    with_final_block,
)
from yaat.server.codec import (
    BINARY,
    CLOSE,
    CONTINUATION,
    MAX_CONTROL_BYTES,
    MAX_PINGS,
    PING,
    TEXT,
    FrameError,
)
from yaat.server.deflate import STEP, TAIL, CorruptError, Inflater, negotiated
from yaat.server.opening import HandshakeError, accepted, parsed

LIMITS = (0, 1, 125, 1000, 70_000)
UNREAD = (0, 100, 65_536, 1 << 20)
LONGEST_CONTROL = 6 + MAX_CONTROL_BYTES


def decoding(data: bytes) -> None:
    """Decode a stream, whole and cut; the first four bytes say under which bounds, and where."""
    flags, bounds, first, second = data[:4].ljust(4, b"\0")
    stream = data[4:]
    limit, unread = LIMITS[bounds % len(LIMITS)], UNREAD[bounds // 16 % len(UNREAD)]
    deflate, tiny = bool(flags & 1), flags >> 1 & 7
    places = (*range(first, len(stream), first + 1), second) if flags & 128 else (first, second)

    def outcome(pieces: list[bytes]) -> Outcome:
        by = decoder(limit=limit, tiny=tiny, unread=unread, deflate=deflate)
        return decoded(by, pieces)

    whole, several = outcome([stream]), outcome(cut(stream, places))
    _check(whole, limit)
    same_fault = deflate and {whole.code, several.code} <= {1007, 1009}
    # Of what is corrupt less is inflated than of what it began with: see the differential test.
    assert whole[:2] == several[:2] if same_fault else whole == several, (whole, several)
    _bounded(cut(stream, places), limit=limit, tiny=tiny, unread=unread, deflate=deflate)


def _check(outcome: Outcome, limit: int) -> None:
    assert outcome.code in {None, 1002, 1007, 1009}
    for message in outcome.messages:
        assert len(message.encode() if isinstance(message, str) else message) <= limit


def _bounded(pieces: list[bytes], *, limit: int, tiny: int, unread: int, deflate: bool) -> None:
    """Feed a decoder as the protocol class does, with an application that does not receive."""
    by = decoder(limit=limit, tiny=tiny, unread=unread, deflate=deflate)
    for piece in pieces:
        try:
            by.feed(piece)
        except FrameError:
            break
        held = sum(map(len, by.messages))
        partial = sum(map(len, by._partial._blocks)) if by._partial else 0
        assert held <= by.unread
        assert partial <= limit
        assert len(by.controls) <= MAX_PINGS
        assert len(by._rest) <= (len(piece) + LONGEST_CONTROL if by.held_back else LONGEST_CONTROL)
        assert held <= unread + limit + len(piece)
        if by.messages and (by.held_back or by.unread > unread):
            break  # no more is read
        by.controls.clear()


def inflation(data: bytes) -> None:
    """Inflate a message, whole and cut in pieces as long as its first byte says."""
    size, stream = (data[0] if data else 0) + 1, data[1:]
    whole = _inflated([stream])
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert whole == _inflated(pieces)


def _inflated(pieces: list[bytes], limit: int = 4 << 20) -> bytes | None:
    """Return what a message inflates to, as far as that is not too long; None if corrupt."""
    result = bytearray()
    try:
        for part in _parts(Inflater(), pieces):
            assert 0 < len(part) <= STEP
            result += part
            if len(result) > limit:
                return bytes(result[:limit])
    except CorruptError:
        return None
    return bytes(result)


def _parts(inflater: Inflater, pieces: list[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        yield from inflater.feed(piece)
    yield from inflater.finish()


def opening(data: bytes) -> None:
    """Read a handshake, and answer what it asks for."""
    try:
        request = parsed(data)
        agreed = negotiated(request.extensions) if request.extensions else None
    except HandshakeError:
        return
    assert request.raw_path.startswith(b"/")
    assert all(name == name.lower() for name, _ in request.headers)
    assert all(request.subprotocols)
    response = agreed.response if agreed else None
    chosen = request.subprotocols[0] if request.subprotocols else None
    lines = accepted(request, chosen, response, []).split(b"\r\n")
    assert lines[-2:] == [b"", b""]
    assert len(lines) == 6 + (chosen is not None) + (response is not None)  # nothing is smuggled in
    if agreed is not None:
        assert 9 <= agreed.window <= 15
        assert agreed.compress(b"x").startswith(b"\xaa\x00")


TARGETS: dict[str, Callable[[bytes], None]] = {
    "decoding": decoding,
    "inflation": inflation,
    "opening": opening,
}


# Where it begins.


def _streams() -> Iterator[bytes]:
    zero, text = bytes(4), "aé€😀".encode()
    short = deflated(text * 40)
    yield frame(TEXT, text, mask=zero) + frame(BINARY, bytes(130), mask=zero)
    yield frame(TEXT, text[:4], fin=False) + frame(PING, b"p") + frame(CONTINUATION, text[4:])
    yield frame(BINARY, bytes(70), mask=zero, width=64) + frame(CLOSE, b"\x03\xe8why", mask=zero)
    yield frame(TEXT, short, rsv=4, mask=zero) * 3 + frame(TEXT, b"last", mask=zero)
    yield frame(TEXT, short[:9], fin=False, rsv=4, mask=zero) + frame(CONTINUATION, short[9:])
    yield frame(BINARY, with_final_block(text)[:-1] * 2, rsv=4, mask=zero) + frame(CLOSE)
    yield frame(BINARY, deflated(bytes(200_000)), rsv=4, mask=zero)
    yield frame(BINARY, fin=False) + frame(CONTINUATION, fin=False) * 5
    yield frame(BINARY, bytes(130), mask=zero) * 20


_HEAD = (
    b"GET http://h/a%20b?c=d HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: chat, superchat\r\nSec-WebSocket-Extensions: "
)
_OFFERS = [
    b"permessage-deflate; client_max_window_bits, x; y=1",
    b'permessage-deflate; server_max_window_bits="10"; server_no_context_takeover',
    b"permessage-deflate; server_max_window_bits=8\r\nSec-WebSocket-Extensions: permessage-deflate",
]


def seeds(target: str) -> list[bytes]:
    """Return inputs that lead to every corner, for what alters them to begin with."""
    if target == "opening":
        return [_HEAD + offer + b"\r\n\r\n" for offer in _OFFERS]
    if target == "inflation":
        text = b"Hello, hello! " * 30
        shapes = [deflated(text, level=level) for level in (0, 1, 9)]
        shapes += [
            with_final_block(text),
            with_final_block(text)[:-1] * 5,
            deflated(bytes(1 << 18)),
        ]
        return [b"\x03" + shape for shape in [*shapes, shapes[0] + TAIL + shapes[1]]]
    starts = [bytes((flags, bounds, 7, 40)) for flags in (0x0F, 0x8F) for bounds in (4, 3, 0x33)]
    return [start + stream for start in starts for stream in _streams()]
