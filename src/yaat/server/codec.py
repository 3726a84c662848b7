"""The frames of RFC 6455, section 5, from bytes and to bytes. Nothing here does any I/O.

`Decoder` is fed with what was read, of any length and cut anywhere, and keeps whole messages. What
breaks a rule of the protocol is a `FrameError`, raised at the first byte that shows it.

      0                   1                   2                   3
      0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
     +-+-+-+-+-------+-+-------------+-------------------------------+
     |F|R|R|R| opcode|M| Payload len |    Extended payload length    |
     |I|S|S|S|  (4)  |A|     (7)     |             (16/64)           |
     |N|V|V|V|       |S|             |   (if payload len==126/127)   |
     | |1|2|3|       |K|             |                               |
     +-+-+-+-+-------+-+-------------+-------------------------------+
"""

import codecs
import struct
from typing import Final, NamedTuple

from yaat.constants import WebSocketCloseEvent, may_travel
from yaat.server.deflate import CorruptError, Deflate, Inflater

try:
    from websockets.speedups import apply_mask
except ImportError:  # pragma: no cover - where websockets has no wheel
    from websockets.utils import apply_mask

FIN: Final = 0x80
RSV1: Final = 0x40
MASKED: Final = 0x80

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

# 5.5: "Control frames are identified by opcodes where the most significant bit of the opcode is 1."
CONTROL: Final = 0x8
MAX_CONTROL_BYTES: Final = 125
# The length of seven bits says by these that one of 16 or of 64 bits follows (5.2).
MEDIUM: Final = 126
LARGE: Final = 127
TINY: Final = 64
"""A fragment of fewer bytes is a tiny one."""

MAX_PINGS: Final = 4_096
"""As many pings of one read are answered each, or else the latest of them."""
LONG: Final = 4_096
"""From this size on a payload is looked at where it is, or handed over beside its head: to copy it
would cost more."""
# A message that comes in pieces is kept in blocks of so many bytes or more: a single buffer that
# grows would be copied, and be there twice, while it does.
BLOCK: Final = 65_536

_OPCODES = frozenset({CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG})
_WHOLE_TEXT = FIN | TEXT
_WHOLE_BINARY = FIN | BINARY
_WHOLE = (_WHOLE_TEXT, _WHOLE_BINARY)
_SHORT_HEADS = {first: tuple(bytes((first, size)) for size in range(MEDIUM)) for first in _WHOLE}
_MEDIUM_HEAD = struct.Struct("!BBH")
_LARGE_HEAD = struct.Struct("!BBQ")

_Code = WebSocketCloseEvent
_utf8 = codecs.getincrementaldecoder("utf-8")


class FrameError(Exception):
    """The peer broke the protocol: the connection has to fail with this code and reason (7.1.7)."""

    def __init__(self, code: WebSocketCloseEvent, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class Ping(NamedTuple):
    """A ping, to be answered with its payload."""

    payload: bytes


class Close(NamedTuple):
    """The peer's close frame: its code (1005 if it has none) and its reason."""

    code: int
    reason: str


def head(opcode: int, size: int) -> bytes:
    """Return the head of a frame that we send, a whole message or a control frame.

    5.1: "A server MUST NOT mask any frames that it sends to the client."

    Args:
        opcode: With `RSV1`, if the payload is compressed.
        size: Of the payload, in bytes.
    """
    first = FIN | opcode
    if size < MEDIUM:
        heads = _SHORT_HEADS.get(first)
        return heads[size] if heads else bytes((first, size))
    if size <= 0xFFFF:
        return _MEDIUM_HEAD.pack(first, MEDIUM, size)
    return _LARGE_HEAD.pack(first, LARGE, size)


def close_frame(code: int, reason: str = "") -> bytes:
    """Return a close frame; with 1005 it has no payload (5.5.1, 7.1.5).

    Args:
        code: One that may travel, or 1005.
        reason: At most 123 bytes of UTF-8.
    """
    if code == WebSocketCloseEvent.NO_STATUS_RECEIVED:
        return head(CLOSE, 0)
    payload = code.to_bytes(2) + reason.encode()
    return head(CLOSE, len(payload)) + payload


def pong_frame(ping: Ping) -> bytes:
    """Return the answer to a ping: "identical "Application data"" (5.5.3)."""
    return head(PONG, len(ping.payload)) + ping.payload


class Decoder:
    """What a client sends, made into messages.

    Args:
        max_message_bytes: The longest message, in bytes of all its fragments, inflated.
        max_tiny_fragments: How many fragments of fewer than `TINY` bytes a message may have.
        max_unread: Once there are messages and `unread` is above this, what a read brought may be
            held back; compression makes very much of very little.
        deflate: What was agreed on about compression.

    Attributes:
        messages: Whole messages in their order, str or bytes, for whoever takes them out; that may
            be by setting another list in place of this one.
        controls: Pings and the peer's close, in their order; to be cleared by whoever heeds them.
        unread: How many bytes came in, and how many more they made when inflated; to be set to
            zero by whoever has taken all messages out.
        held_back: Whether there is something that `feed(b"")` would go on with.
    """

    __slots__ = (
        "_deflate",
        "_ended",
        "_max_message_bytes",
        "_max_tiny_fragments",
        "_max_unread",
        "_partial",
        "_rest",
        "controls",
        "held_back",
        "messages",
        "unread",
    )

    def __init__(
        self,
        *,
        max_message_bytes: int,
        max_tiny_fragments: int,
        max_unread: int,
        deflate: Deflate | None = None,
    ) -> None:
        self.messages: list[str | bytes] = []
        self.controls: list[Ping | Close] = []
        self.unread = 0
        self.held_back = False
        self._max_message_bytes = max_message_bytes
        self._max_tiny_fragments = max_tiny_fragments
        self._max_unread = max_unread
        self._deflate = deflate
        self._partial: _Partial | None = None
        self._rest = b""
        self._ended = False

    def feed(self, data: bytes) -> None:  # noqa: C901 - the loop is in one piece: see there
        """Take in what was read; with nothing, go on with what was kept back.

        After the peer's close or an error all else is discarded: 1.4, "after receiving a control
        frame indicating the connection should be closed, a peer discards any further data".

        Raises:
            FrameError: The peer broke the protocol. What came before that is in `messages`.
        """
        if self._ended:
            return
        self.unread += len(data)
        if self._rest:
            data, self._rest, self.held_back = self._rest + data, b"", False
        at, end = 0, len(data)
        limit, messages = self._max_message_bytes, self.messages
        try:
            while at < end:
                # A whole message in one whole frame goes the short way: nearly all frames are
                # that, and this loop is most of what the protocol costs. Every check fails here
                # into the long way, which says what is wrong.
                first = data[at]
                if first in _WHOLE and self._partial is None and at + 1 < end:
                    length, start = data[at + 1] - MASKED, at + 6
                    if length == MEDIUM:
                        length, start = int.from_bytes(data[at + 2 : at + 4]), at + 8
                    elif length == LARGE:
                        length, start = int.from_bytes(data[at + 2 : at + 10]), at + 14
                    stop = start + length
                    if 0 <= length <= limit and stop <= end:
                        masked = data[start:stop] if length < LONG else memoryview(data)[start:stop]
                        payload = apply_mask(masked, data[start - 4 : start])
                        messages.append(payload.decode() if first == _WHOLE_TEXT else payload)
                        at = stop
                        continue
                at = self._frame(data, at)
                if self.unread > self._max_unread and messages and at < end:
                    self._rest, self.held_back = data[at:], True
                    return
        except UnicodeDecodeError:
            # 8.1: "When an endpoint is to interpret a byte stream as UTF-8 but finds that the
            # byte stream is not, in fact, a valid UTF-8 stream, that endpoint MUST _Fail the
            # WebSocket Connection_."
            raise self._failed(_Code.INVALID_FRAME_PAYLOAD_DATA, "text that is not UTF-8") from None
        except CorruptError:
            raise self._failed(_Code.INVALID_FRAME_PAYLOAD_DATA, "not a DEFLATE stream") from None
        except FrameError:
            self._ended = True
            raise

    def _failed(self, code: WebSocketCloseEvent, reason: str) -> FrameError:
        self._ended = True
        return FrameError(code, reason)

    def _frame(self, data: bytes, at: int) -> int:
        """Take a frame, or what is there of it; return where the next one begins."""
        if self._partial is not None and self._partial.left:
            return self._payload(self._partial, data, at)
        found = self._head(data, at)
        if found is None:
            return self._keep(data, at)
        first, length, mask, start = found
        if first & CONTROL:
            if start + length > len(data):
                return self._keep(data, at)
            self._control(first & 0x0F, apply_mask(data[start : start + length], mask))
            return len(data) if self._ended else start + length
        partial = self._partial = self._partial or self._begun(first)
        partial.enter(length, mask, fin=bool(first & FIN))
        return self._payload(partial, data, start)

    def _keep(self, data: bytes, at: int) -> int:
        """Wait for the rest: of a head (14 bytes) or of a control frame (131 bytes) at most."""
        self._rest = data[at:]
        return len(data)

    def _head(self, data: bytes, at: int) -> tuple[int, int, bytes, int] | None:
        """Return the first byte, the length, the mask, and where the payload begins (5.2)."""
        first = data[at]
        self._check(first)
        if at + 1 == len(data):
            return None
        # 5.1: "The server MUST close the connection upon receiving a frame that is not masked."
        if not data[at + 1] & MASKED:
            raise FrameError(_Code.PROTOCOL_ERROR, "a frame of a client has to be masked")
        length, start = data[at + 1] & 0x7F, at + 2
        # 5.5: "All control frames MUST have a payload length of 125 bytes or less".
        if first & CONTROL and length > MAX_CONTROL_BYTES:
            raise FrameError(_Code.PROTOCOL_ERROR, "a control frame of more than 125 bytes")
        # "the minimal number of bytes MUST be used to encode the length": some clients do not, and
        # nothing hangs on it.
        start += {MEDIUM: 2, LARGE: 8}.get(length, 0)
        if start + 4 > len(data):
            return None
        if length >= MEDIUM:
            length = int.from_bytes(data[at + 2 : start])
        return first, length, data[start : start + 4], start + 4

    def _check(self, first: int) -> None:
        opcode, reserved = first & 0x0F, first & 0x70
        # 5.2: "If an unknown opcode is received, the receiving endpoint MUST _Fail the WebSocket
        # Connection_."
        if opcode not in _OPCODES:
            raise FrameError(_Code.PROTOCOL_ERROR, f"opcode {opcode} is reserved")
        # 5.2: RSV bits "MUST be 0 unless an extension is negotiated that defines meanings for
        # non-zero values". RFC 7692, 6.1: RSV1 is set "only on the first fragment" of a message.
        if reserved and (reserved != RSV1 or not self._deflate or opcode not in (TEXT, BINARY)):
            raise FrameError(_Code.PROTOCOL_ERROR, "a reserved bit is set")
        if opcode & CONTROL:
            # 5.5: control frames "MUST NOT be fragmented".
            if not first & FIN:
                raise FrameError(_Code.PROTOCOL_ERROR, "a control frame is fragmented")
        # 5.4: "The fragments of one message MUST NOT be interleaved between the fragments of
        # another message".
        elif (opcode == CONTINUATION) != (self._partial is not None):
            wrong = "a continuation of nothing" if self._partial is None else "a message in another"
            raise FrameError(_Code.PROTOCOL_ERROR, wrong)

    def _begun(self, first: int) -> "_Partial":
        return _Partial(
            text=first & 0x0F == TEXT,
            compressed=bool(first & RSV1),
            max_bytes=self._max_message_bytes,
            max_tiny=self._max_tiny_fragments,
        )

    def _payload(self, partial: "_Partial", data: bytes, at: int) -> int:
        chunk = memoryview(data)[at : at + partial.left]
        partial.take(chunk)
        if partial.fin and not partial.left:
            message = partial.whole()
            self._partial = None
            self.messages.append(message)
            if partial.compressed:
                self.unread += len(message)
        return at + len(chunk)

    def _control(self, opcode: int, payload: bytes) -> None:
        if opcode == PING:
            # 5.5.3: an endpoint "MAY elect to send a Pong frame for only the most recently
            # processed Ping frame". A read may bring 40,000 of them.
            if len(self.controls) == MAX_PINGS:
                self.controls.clear()
            self.controls.append(Ping(payload))
        elif opcode == CLOSE:
            self.controls.append(_close(payload))
            self._ended = True
        # 5.5.3: a pong may be "unsolicited", and "a response to an unsolicited Pong frame is not
        # expected".


class _Partial:
    """A message that has not come whole: cut by its sender into fragments, or by a read."""

    __slots__ = (
        "_blocks",
        "_inflater",
        "_mask",
        "_max_bytes",
        "_size",
        "_tiny",
        "_utf8",
        "_wire",
        "fin",
        "left",
    )

    def __init__(self, *, text: bool, compressed: bool, max_bytes: int, max_tiny: int) -> None:
        self.left = 0  # bytes of the frame at hand
        self.fin = False
        self._mask = b""
        self._blocks = [bytearray()]
        self._size = 0
        self._max_bytes = max_bytes
        # DEFLATE makes nothing much longer, but may take for ever to make nothing.
        self._wire = 2 * max_bytes + 1_024
        self._tiny = max_tiny
        self._utf8 = _utf8() if text else None
        self._inflater = Inflater() if compressed else None

    @property
    def compressed(self) -> bool:
        return self._inflater is not None

    def enter(self, length: int, mask: bytes, *, fin: bool) -> None:
        """Begin the next frame of the message.

        Raises:
            FrameError: The message is longer than it may be, which is known before it is there; or
                it comes in too many crumbs, as an endless one may that never grows.
        """
        self._wire -= length
        if self._wire < 0 or (not self._inflater and self._size + length > self._max_bytes):
            raise _too_big(self._max_bytes)
        if length < TINY and not fin:
            self._tiny -= 1
            if self._tiny < 0:
                raise FrameError(_Code.MESSAGE_TOO_BIG, "too many tiny fragments")
        self.left, self._mask, self.fin = length, mask, fin

    def take(self, chunk: memoryview) -> None:
        """Add what is there of the frame at hand."""
        self.left -= len(chunk)
        piece = apply_mask(chunk, self._mask)
        # 5.3: "Octet i of the transformed data" uses octet "i MOD 4" of the key.
        turned = len(chunk) % 4
        self._mask = self._mask[turned:] + self._mask[:turned]
        if self._inflater is None:
            self._add(piece)
        else:
            for inflated in self._inflater.feed(piece):
                self._add(inflated)

    def whole(self) -> str | bytes:
        """Return the message, of which nothing is missing."""
        if self._inflater is not None:
            for inflated in self._inflater.finish():
                self._add(inflated)
        payload = b"".join(self._blocks)
        self._blocks.clear()
        return payload if self._utf8 is None else payload.decode()

    def _add(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._max_bytes:
            raise _too_big(self._max_bytes)
        if self._utf8 is not None:
            self._utf8.decode(piece)  # for the first byte that is wrong; what is right is kept
        if len(self._blocks[-1]) < BLOCK:
            self._blocks[-1] += piece
        else:
            self._blocks.append(bytearray(piece))


def _too_big(limit: int) -> FrameError:
    return FrameError(_Code.MESSAGE_TOO_BIG, f"a message of more than {limit} bytes")


def _close(payload: bytes) -> Close:
    """Read the payload of a close frame (5.5.1, 7.4)."""
    if not payload:
        return Close(_Code.NO_STATUS_RECEIVED, "")
    code = int.from_bytes(payload[:2])
    # "If there is a body, the first two bytes of the body MUST be a 2-byte unsigned integer".
    if len(payload) == 1 or not may_travel(code):
        raise FrameError(_Code.PROTOCOL_ERROR, "a close frame without a code that may be sent")
    return Close(code, payload[2:].decode())
