"""What is sent and what must come back: RFC 6455 as bytes, as little of it as a load needs."""

import json
import struct
from dataclasses import dataclass
from functools import cached_property

TEXT, BINARY, CLOSE = 0x1, 0x2, 0x8
FIN = MASKED = 0x80
# A client masks (RFC 6455 5.3). One key for all is as much work for a server as any other.
KEY = bytes.fromhex("37fa213d")


class WrongAnswerError(Exception):
    """What came back is not what was sent."""


def masked(payload: bytes) -> bytes:
    """RFC 6455 5.3, at once instead of octet by octet."""
    size = len(payload)
    key = (KEY * (size // 4 + 1))[:size]
    return (int.from_bytes(payload) ^ int.from_bytes(key)).to_bytes(size)


def client_frame(opcode: int, payload: bytes) -> bytes:
    """RFC 6455 5.2: one whole message in one frame."""
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", FIN | opcode, MASKED | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", FIN | opcode, MASKED | 126, size)
    else:
        head = struct.pack("!BBQ", FIN | opcode, MASKED | 127, size)
    return head + KEY + masked(payload)


def head_size(start: bytes) -> int:
    """How many bytes stand before the payload of a server's frame that starts like this."""
    return 2 + {126: 2, 127: 8}.get(start[1], 0)


def payload_size(head: bytes) -> int:
    extended = head[2:]
    return int.from_bytes(extended) if extended else head[1]


@dataclass(frozen=True)
class Exchange:
    """One row of the report: a message, and the path at which it is echoed."""

    name: str
    path: str
    opcode: int
    payload: bytes

    @cached_property
    def request(self) -> bytes:
        return client_frame(self.opcode, self.payload)

    def check(self, opcode: int, payload: bytes) -> None:
        """Refuse an answer of another kind or another value.

        Two frameworks may write one JSON value with other blanks, so JSON is compared as a value.
        """
        same = payload == self.payload
        if self.path == "/json" and not same:
            same = json.loads(payload) == json.loads(self.payload)
        if opcode != self.opcode or not same:
            raise WrongAnswerError(f"{self.name}: opcode {opcode}, {payload[:80]!r}")


WORDS = b"In the beginning was the word, and it was sent. "
VALUE = {
    "id": 1048576,
    "kind": "message",
    "room": "lobby",
    "user": "alice",
    "text": "Good morning, everyone!",
    "n": [1, 2],
}
EXCHANGES = (
    Exchange("text 32 B", "/text", TEXT, WORDS[:32]),
    Exchange("text 1 KiB", "/text", TEXT, (WORDS * 22)[:1024]),
    Exchange("binary 64 KiB", "/bytes", BINARY, bytes(range(256)) * 256),
    Exchange("JSON 100 B", "/json", TEXT, json.dumps(VALUE, separators=(",", ":")).encode()),
)
