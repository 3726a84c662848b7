"""The decoder beside that of `websockets`, on streams of frames that are right, or nearly so.

Both get the same bytes, and have to find the same messages, pings and close, and to fail for the
same reason. Where the two differ by intention, that has a name and a reason: `DIFFERENCES`.

`YAAT_EXAMPLES=20000` looks for longer than `make test` does.
"""

import os
import random
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from websockets.exceptions import PayloadTooBig
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import CTRL_OPCODES, Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

from fuzz.frames import MASK, Outcome, cut, decoded, decoder, deflated, frame, with_final_block
from yaat.server.codec import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Close, Decoder, Ping

EXAMPLES = int(os.environ.get("YAAT_EXAMPLES", "100"))
LIMIT = 70_000
TINY = 20
# Enough for any frame to come to its end.
FILLER = bytes(2 * LIMIT)
AFTER_FILLER = "incorrect masking"  # what they say of it where a frame should begin

often = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    # To make what fails shorter takes minutes: it is shown as it was found.
    phases=[Phase.reuse, Phase.generate],
)


# The other one.


class Probed(PerMessageDeflate):
    """Notes what of a compressed message `websockets` does not look at."""

    after_the_end = False
    """Whether there is something behind a final block."""

    def __init__(self) -> None:
        super().__init__(True, True, 15, 15)
        self._probe = zlib.decompressobj(-15)

    def decode(self, frame: Frame, *, max_size: int | None = None) -> Frame:
        if frame.opcode not in CTRL_OPCODES and (frame.rsv1 or self.decode_cont_data):
            if frame.rsv1:
                self._probe = zlib.decompressobj(-15)
            self._look(bytes(frame.data))
        return super().decode(frame, max_size=max_size)

    def _look(self, data: bytes) -> None:
        try:
            self._probe.decompress(data)
        except zlib.error:
            return
        self.after_the_end |= self._probe.unused_data not in (b"", b"\0")


class Theirs:
    """`websockets`' Protocol, with its messages put together and their text checked."""

    def __init__(self, *, limit: int, deflate: bool) -> None:
        self.protocol = ServerProtocol(state=State.OPEN, max_size=limit)
        self.extension = Probed()
        if deflate:
            self.protocol.extensions = [self.extension]
        self.messages: list[str | bytes] = []
        self.controls: list[Ping | Close] = []
        self._parts: list[bytes] = []
        self._text = False
        self._limit = limit
        self._code: int | None = None

    def feed(self, data: bytes) -> None:
        self.protocol.receive_data(data)
        for found in self.protocol.events_received():
            if self._code is None:
                assert isinstance(found, Frame)
                self._frame(found)

    @property
    def error(self) -> Any:
        return self.protocol.parser_exc

    def outcome(self) -> Outcome:
        code = self._code
        if code is None and self.protocol.parser_exc is not None:
            assert self.protocol.close_sent is not None
            code = self.protocol.close_sent.code
        return Outcome(self.messages, self.controls, code)

    def _frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.PING:
            self.controls.append(Ping(bytes(frame.data)))
        elif frame.opcode is Opcode.CLOSE:
            close = self.protocol.close_rcvd
            assert close is not None
            self.controls.append(Close(close.code, close.reason))
        elif frame.opcode is not Opcode.PONG:
            self._data(frame)

    def _data(self, frame: Frame) -> None:
        if frame.opcode is not Opcode.CONT:
            self._parts, self._text = [], frame.opcode is Opcode.TEXT
        self._parts.append(bytes(frame.data))
        if not frame.fin:
            return
        whole = b"".join(self._parts)
        if len(whole) > self._limit:  # a fragment that fills it leaves 0, zlib's word for no limit
            self._code = 1009
            return
        try:
            self.messages.append(whole.decode() if self._text else whole)
        except UnicodeDecodeError:
            self._code = 1007

    def text_is_wrong(self) -> bool:
        """Tell whether the message that is in progress is text that no more bytes put right."""
        try:
            b"".join(self._parts).decode()
        except UnicodeDecodeError as error:
            return self._text and error.reason != "unexpected end of data"
        return False


class Both(NamedTuple):
    """What each made of a stream."""

    ours: Outcome
    theirs: Outcome
    their: Theirs

    @property
    def codes(self) -> tuple[int | None, int | None]:
        return self.ours.code, self.theirs.code

    def before(self) -> bool:
        """Tell whether both found the same until one of them failed."""
        return _begins(self.ours.messages, self.theirs.messages) and _begins(
            self.ours.controls, self.theirs.controls
        )


def _begins(one: Sequence[object], other: Sequence[object]) -> bool:
    size = min(len(one), len(other))
    return one[:size] == other[:size]


def both(pieces: Sequence[bytes], *, deflate: bool, limit: int = LIMIT, tiny: int = TINY) -> Both:
    ours = decoded(decoder(limit=limit, tiny=tiny, deflate=deflate), pieces)
    their = Theirs(limit=limit, deflate=deflate)
    for piece in pieces:
        their.feed(piece)
    theirs = their.outcome()
    if ours.code is not None and theirs.code is None:
        # We fail at the first byte that is wrong, they when they have read the frame.
        their.feed(FILLER)
        if ours.code == 1002 or str(their.error) != AFTER_FILLER:
            theirs = their.outcome()
    return Both(ours, theirs, their)


# Where the two differ.


class Difference(NamedTuple):
    """How the two differ by intention.

    Attributes:
        why: The reason.
        is_seen: Whether it is what is seen here.
        stream: One that shows it.
        codes: What each fails with on that.
    """

    why: str
    is_seen: Callable[[Both], bool]
    stream: bytes
    codes: tuple[int | None, int | None]


def _two_faults(seen: Both) -> bool:
    return seen.codes in {(1002, 1009), (1002, 1007), (1007, 1009), (1009, 1002)}


def _frame_too_long(seen: Both) -> bool:
    error = seen.their.error
    return isinstance(error, PayloadTooBig) and error.size is not None


def _wire_too_long(seen: Both) -> bool:
    later = len(seen.ours.messages) > len(seen.theirs.messages) or seen.ours.code != 1009
    return _frame_too_long(seen) and later


def _control_too_long(seen: Both) -> bool:
    return _frame_too_long(seen) and len(seen.ours.controls) > len(seen.theirs.controls)


STORED = deflated(bytes(LIMIT), level=0)


DIFFERENCES: dict[str, Difference] = {
    "corrupt": Difference(
        "No RFC gives a code to what does not inflate. 1007 is for data not consistent with the "
        "type of the message, 1002 for a protocol that was broken; Autobahn takes either.",
        lambda seen: seen.codes == (1007, 1002),
        frame(BINARY, b"\xff\xff", rsv=4),
        (1007, 1002),
    ),
    "two faults": Difference(
        "A frame that is forbidden and too long besides, a close of a bad code with a bad reason, "
        "or compressed data that makes too much before it is corrupt: which is found first?",
        _two_faults,
        b"\xa1\xff" + (LIMIT + 1).to_bytes(8) + MASK,
        (1002, 1009),
    ),
    "fail fast": Difference(
        "Text is checked as it comes, as 8.1 has it; they have their users wait for all of it.",
        lambda seen: seen.ours.code == 1007 and seen.their.text_is_wrong(),
        frame(TEXT, b"\xff", fin=False) + frame(CONTINUATION, b"never the end", fin=False),
        (1007, None),
    ),
    "tiny": Difference(
        "They count no fragments: a message of endlessly many that never grows is taken.",
        lambda seen: seen.ours.reason == "too many tiny fragments",
        frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) * TINY,
        (1009, None),
    ),
    "close amid a message": Difference(
        "5.4 lets control frames come between fragments, and excepts none. They take it for a "
        "broken message.",
        lambda seen: str(seen.their.error) == "incomplete fragmented message",
        frame(TEXT, b"half", fin=False) + frame(CLOSE, b"\x03\xe8"),
        (None, 1002),
    ),
    "longer than what it makes": Difference(
        "The limit is one on messages. A compressed frame may be longer, by the heads of its "
        "stored blocks for one; they have it for both.",
        _wire_too_long,
        frame(BINARY, STORED, rsv=4),
        (None, 1009),
    ),
    "control frame in a full message": Difference(
        "The limit is one on messages. They have a control frame count as a part of the message "
        "that it comes amid.",
        _control_too_long,
        frame(BINARY, bytes(LIMIT - 1), fin=False) + frame(PING, b"ping"),
        (None, 1009),
    ),
    "behind a final block": Difference(
        "7.2.3.4 of RFC 7692 lets a message end its stream and go on: they drop what follows.",
        lambda seen: seen.their.extension.after_the_end,
        frame(TEXT, with_final_block(b"one")[:-1] + deflated(b"two"), rsv=4),
        (None, None),
    ),
}


def agreed(seen: Both) -> bool:
    return seen.ours[:3] == seen.theirs[:3]


@pytest.mark.parametrize("name", DIFFERENCES)
def test_each_difference_is_one(name: str) -> None:
    """It is a promise too: what is written there is what happens."""
    difference = DIFFERENCES[name]
    seen = both([difference.stream], deflate=True)
    assert not agreed(seen)
    assert seen.codes == difference.codes
    assert difference.is_seen(seen)


# Streams.


@lru_cache(maxsize=1000)
def sized(size: int, seed: int, *, text: bool) -> bytes:
    chosen = random.Random(seed)
    if text:
        whole = "".join(chosen.choices("aé€😀\0", k=size)).encode()[:size]
        return whole.decode(errors="ignore").encode().ljust(size, b"x")
    return chosen.randbytes(size) if seed % 3 else bytes(size)


SIZES = st.sampled_from([0, 0, 1, 2, 3, 5, 63, 64, 125, 126, 127, 1000]) | st.integers(0, 300)
LARGE = st.sampled_from([65535, 65536, LIMIT - 1, LIMIT, LIMIT + 1])
MASKS = st.sampled_from([MASK, bytes(4), b"\xff\xff\xff\xff", b"\x00\x80\x01\xfe"])
REASONS = st.sampled_from([b"", b"", b"ok", "é€".encode(), b"\xff", b"x" * 123, b"x" * 124])
CODES = st.sampled_from([1000, 1000, 1001, 1004, 1005, 1006, 1011, 1015, 2999, 3000, 4999, 5000, 0])
CLOSES = st.just(b"") | st.builds(lambda code, why: code.to_bytes(2) + why, CODES, REASONS)
CONTROLS = st.one_of(
    st.builds(frame, st.sampled_from([PING, PING, PONG]), st.binary(max_size=4), mask=MASKS),
    st.just(frame(PING, bytes(125))),
)


@st.composite
def messages(draw: st.DrawFn, deflate: bool) -> list[bytes]:  # noqa: FBT001
    """The frames of a message that is right: in fragments, with control frames between them."""
    opcode = draw(st.sampled_from([TEXT, BINARY]))
    size = draw(LARGE) if draw(st.integers(0, 11)) == 0 else draw(SIZES)
    payload = sized(size, draw(st.integers(0, 99)), text=opcode == TEXT)
    compress = deflate and draw(st.booleans())
    if compress:
        ways = [deflated, lambda data: deflated(data, level=0), with_final_block]
        payload = draw(st.sampled_from(ways))(payload)
    places = draw(st.lists(st.integers(0, max(1, len(payload))), max_size=4))
    borders = sorted({*places, 0, len(payload)}) if places else [0, len(payload)]
    parts = [payload[a:b] for a, b in zip(borders, [*borders[1:-1], len(payload)], strict=False)]
    parts = parts[: len(borders) - 1] or [payload]
    frames = []
    for at, part in enumerate(parts):
        first, last = at == 0, at == len(parts) - 1
        width = draw(st.sampled_from([None, None, None, 64]))
        kind, rsv = (opcode, 4 if compress else 0) if first else (CONTINUATION, 0)
        frames.append(frame(kind, part, fin=last, rsv=rsv, mask=draw(MASKS), width=width))
        frames += draw(st.lists(CONTROLS, max_size=2)) if not last else []
    return frames


WRONG = st.one_of(
    st.builds(
        frame,
        st.integers(0, 15),
        st.binary(max_size=9),
        fin=st.booleans(),
        rsv=st.sampled_from([0, 0, 0, 1, 2, 4, 4]),
        mask=st.one_of(st.just(MASK), st.just(MASK), st.none()),
    ),
    st.builds(frame, st.just(CLOSE), CLOSES),
    st.builds(frame, st.sampled_from([CLOSE, PING, PONG]), st.just(bytes(126))),
    st.binary(max_size=20),
    st.just(frame(CONTINUATION, fin=False) * (TINY + 1)),
)


@st.composite
def streams(draw: st.DrawFn, deflate: bool) -> bytes:  # noqa: FBT001
    """Messages, some of them spoilt, and then more of them."""
    frames: list[bytes] = []
    for _ in range(draw(st.integers(1, 5))):
        frames += draw(st.lists(CONTROLS, max_size=1)) + draw(messages(deflate))
    change = draw(
        st.sampled_from(
            ["none", "none", "drop", "double", "swap", "wrong", "wrong", "bits", "bits", "end"]
        )
    )
    event(f"change: {change}")
    at = draw(st.integers(0, len(frames) - 1))
    if change == "drop":
        del frames[at]
    elif change == "double":
        frames.insert(at, frames[at])
    elif change == "swap":
        frames[0], frames[at] = frames[at], frames[0]
    elif change == "wrong":
        frames.insert(at, draw(WRONG))
    stream = bytearray(b"".join(frames))
    if change == "bits" and stream:
        for place in draw(st.lists(st.integers(0, min(len(stream) - 1, 400)), max_size=3)):
            stream[place] ^= 1 << draw(st.integers(0, 7))
    elif change == "end":
        del stream[draw(st.integers(0, len(stream))) :]
    return bytes(stream)


PLACES = st.lists(st.integers(1, 400) | st.integers(1, 3 * LIMIT), max_size=8)


@often
@given(st.data(), st.booleans(), PLACES)
def test_the_other_finds_the_same(data: st.DataObject, deflate: bool, places: list[int]) -> None:  # noqa: FBT001
    stream = data.draw(streams(deflate))
    seen = both(cut(stream, places), deflate=deflate)
    if agreed(seen):
        event(f"both: {seen.ours.code}")
        return
    named = [name for name, difference in DIFFERENCES.items() if difference.is_seen(seen)]
    event(f"differ: {named}")
    assert named, (stream, places, seen)
    if "behind a final block" not in named:
        assert seen.before(), (named, seen)


@often
@given(st.data(), st.booleans(), PLACES, st.integers(1, 40))
def test_where_a_stream_is_cut_does_not_matter(
    data: st.DataObject,
    deflate: bool,  # noqa: FBT001
    places: list[int],
    step: int,
) -> None:
    stream = data.draw(streams(deflate))
    whole = decoded(_ours(deflate), [stream])
    several = decoded(_ours(deflate), cut(stream, places))
    crumbs = decoded(_ours(deflate), cut(stream, range(0, min(len(stream), 600), step)))
    for other in (several, crumbs):
        if deflate and {whole.code, other.code} <= {1007, 1009}:
            # zlib says that a piece is corrupt before it gives what the piece began with. What
            # that makes may be too long, or no text: then a shorter piece shows it.
            assert other[:2] == whole[:2]
        else:
            assert other == whole


def _ours(deflate: bool) -> Decoder:  # noqa: FBT001
    return decoder(limit=LIMIT, tiny=TINY, unread=5000, deflate=deflate)
