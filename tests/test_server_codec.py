"""The frames of RFC 6455, section 5: what is taken, what is refused, and from which byte on.

The rules are written down here once more, from the text of the RFC, and held against the decoder
over every first byte, every length at a border, every close code, every way of cutting.
"""

import itertools
from collections.abc import Iterator

import pytest
from websockets.frames import Frame, Opcode

from fuzz.frames import MASK, Outcome, cut, decoded, decoder, deflated, frame, masked
from yaat.constants import WebSocketCloseEvent
from yaat.server import codec
from yaat.server.codec import (
    BINARY,
    BLOCK,
    CLOSE,
    CONTINUATION,
    MAX_PINGS,
    PING,
    PONG,
    TEXT,
    TINY,
    Close,
    Decoder,
    FrameError,
    Ping,
    close_frame,
    head,
    pong_frame,
)

BORDERS = [0, 1, 2, 124, 125, 126, 127, 128, 65534, 65535, 65536, 65537]

PROTOCOL_ERROR = 1002
INVALID_DATA = 1007
TOO_BIG = 1009


# What we send.


@pytest.mark.parametrize("size", BORDERS)
@pytest.mark.parametrize("opcode", [CONTINUATION, TEXT, BINARY, PING, PONG, CLOSE])
@pytest.mark.parametrize("rsv1", [True, False])
def test_a_head_is_what_another_implementation_writes(
    *, size: int, opcode: int, rsv1: bool
) -> None:
    written = b"".join(
        (
            bytes((0x80 | rsv1 << 6 | opcode,)),
            bytes((size,)) if size < 126 else b"",
            b"\x7e" + size.to_bytes(2) if 126 <= size < 65536 else b"",
            b"\x7f" + size.to_bytes(8) if size >= 65536 else b"",
        )
    )
    assert head(opcode | (codec.RSV1 if rsv1 else 0), size) == written
    if opcode < CLOSE and not rsv1:
        theirs = Frame(Opcode(opcode), bytes(size))
        assert written + bytes(size) == theirs.serialize(mask=False)


@pytest.mark.parametrize(
    ("code", "reason", "payload"),
    [
        (1000, "", b"\x03\xe8"),
        (1011, "no", b"\x03\xf3no"),
        (4999, "é" * 61, b"\x13\x87" + "é".encode() * 61),
        (1001, "x" * 123, b"\x03\xe9" + b"x" * 123),
        (WebSocketCloseEvent.GOING_AWAY, "", b"\x03\xe9"),
        (1005, "", b""),
    ],
)
def test_a_close_frame(code: int, reason: str, payload: bytes) -> None:
    assert close_frame(code, reason) == bytes((0x88, len(payload))) + payload


@pytest.mark.parametrize("payload", [b"", b"Hello", bytes(125)])
def test_a_pong_has_what_its_ping_had(payload: bytes) -> None:
    assert pong_frame(Ping(payload)) == bytes((0x8A, len(payload))) + payload


# The examples of RFC 6455, 5.7, as far as they come from a client.


def test_the_examples_of_the_rfc() -> None:
    hello = bytes.fromhex("818537fa213d7f9f4d5158")
    assert decoded(decoder(), [hello]) == Outcome(["Hello"], [])
    assert decoded(decoder(), [bytes.fromhex("898537fa213d7f9f4d5158")]).controls == [
        Ping(b"Hello")
    ]
    compressed = bytes.fromhex("c187") + MASK + masked(bytes.fromhex("f248cdc9c90700"))
    assert decoded(decoder(deflate=True), [compressed]).messages == ["Hello"]


# Every first byte, in every state.

BEGUN: dict[str, tuple[bytes, str | bytes]] = {
    "nothing": (b"", ""),
    "text": (frame(TEXT, b"be", fin=False), "begun"),
    "binary": (frame(BINARY, b"be", fin=False), b"begun"),
    "compressed text": (frame(TEXT, deflated(b"be") + b"\0\0\xff\xff", fin=False, rsv=4), "begun"),
}
STATES = [
    pytest.param(name, negotiated, id=f"{name}, {'with' if negotiated else 'without'} deflate")
    for name in BEGUN
    for negotiated in (False, True)
    if negotiated or name != "compressed text"
]


def forbidden(first: int, *, begun: bool, deflate: bool) -> bool:
    """The rules of RFC 6455, 5.2, 5.4 and 5.5, and of RFC 7692, 6, about the first byte."""
    fin, rsv1, rsv2, rsv3 = (bool(first & bit) for bit in (0x80, 0x40, 0x20, 0x10))
    opcode = first & 0x0F
    reserved = opcode in {3, 4, 5, 6, 7, 11, 12, 13, 14, 15}
    control = opcode in {8, 9, 10}
    out_of_turn = (opcode == 0 and not begun) or (opcode in {1, 2} and begun)
    compression = rsv1 and not (deflate and opcode in {1, 2})
    return reserved or rsv2 or rsv3 or compression or (control and not fin) or out_of_turn


@pytest.mark.parametrize(("state", "negotiated"), STATES)
def test_every_first_byte(*, state: str, negotiated: bool) -> None:
    for first in range(256):
        tried(first, *BEGUN[state], negotiated=negotiated)


def tried(first: int, before: bytes, begun: str | bytes, *, negotiated: bool) -> None:
    taking = decoder(deflate=negotiated)
    taking.feed(before)
    if forbidden(first, begun=bool(begun), deflate=negotiated):
        with pytest.raises(FrameError) as failed:
            taking.feed(bytes((first,)))  # nothing more is needed to know
        assert failed.value.code == PROTOCOL_ERROR
        return
    fin, opcode, compressed = bool(first & 0x80), first & 0x0F, bool(first & 0x40)
    payload = b"gun"
    if compressed or (before[:1] == b"\x41" and opcode == CONTINUATION):
        payload = deflated(payload)
    if opcode == CLOSE:
        payload = b"\x03\xe8"
    taking.feed(frame(opcode, payload, fin=fin, rsv=first >> 4 & 7))
    pings = [Ping(b"gun")] if opcode == PING else []
    assert taking.controls == ([Close(1000, "")] if opcode == CLOSE else pings)
    whole = {CONTINUATION: begun, TEXT: "gun", BINARY: b"gun"}.get(opcode)
    assert list(taking.messages) == ([whole] if fin and whole is not None else [])


@pytest.mark.parametrize(("state", "negotiated"), STATES)
def test_a_frame_that_is_not_masked_is_refused(*, state: str, negotiated: bool) -> None:
    """5.1: it is known from the second byte, whatever the length in it."""
    for first, second in itertools.product(range(256), (0, 1, 125, 126, 127)):
        for pieces in ([bytes((first, second))], [bytes((first,)), bytes((second,))]):
            taking = decoder(deflate=negotiated)
            taking.feed(BEGUN[state][0])
            outcome = decoded(taking, pieces)
            assert (outcome.messages, outcome.controls) == ([], [])
            assert outcome.code == PROTOCOL_ERROR


def test_what_is_wrong_is_said() -> None:
    wrong = {
        b"\x83": "opcode 3 is reserved",
        b"\xc1": "a reserved bit is set",
        b"\x09": "a control frame is fragmented",
        b"\x80": "a continuation of nothing",
        b"\x81\x01": "a frame of a client has to be masked",
        frame(TEXT, fin=False) + b"\x81": "a message in another",
        b"\x89\xfe": "a control frame of more than 125 bytes",
        frame(CLOSE, b"\x03"): "a close frame without a code that may be sent",
        frame(TEXT, b"\xff"): "text that is not UTF-8",
    }
    assert {stream: decoded(decoder(), [stream]).reason for stream in wrong} == wrong
    corrupt = decoded(decoder(deflate=True), [frame(TEXT, b"\xff", rsv=4)])
    assert (corrupt.code, corrupt.reason) == (INVALID_DATA, "not a DEFLATE stream")
    error = FrameError(WebSocketCloseEvent.MESSAGE_TOO_BIG, "why")
    assert (error.code, error.reason) == (TOO_BIG, "why")
    assert "why" in str(error)


# Lengths and cuts.


def near(size: int, total: int) -> Iterator[int]:
    """Every place to cut a frame at, or for a long one those where something happens."""
    if total < 512:
        return iter(range(total + 1))
    return itertools.chain(range(40), range(997, total, 9973), range(total - 8, total + 1))


@pytest.mark.parametrize("fin", [True, False])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("size", BORDERS)
def test_every_length_at_a_border_cut_anywhere(*, size: int, opcode: int, fin: bool) -> None:
    payload = bytes(97 + at % 23 for at in range(size))
    stream = frame(opcode, payload, fin=fin) + (b"" if fin else frame(CONTINUATION, b"!"))
    stream += frame(PING, b"after")
    whole = payload if fin else payload + b"!"
    expected = Outcome([whole.decode() if opcode == TEXT else whole], [Ping(b"after")])
    for place in near(size, len(stream)):
        assert decoded(decoder(), cut(stream, [place])) == expected, place


@pytest.mark.parametrize("size", [0, 1, 125, 126, 200])
@pytest.mark.parametrize("deflate", [True, False])
def test_byte_by_byte(*, size: int, deflate: bool) -> None:
    text = "ä" * size
    payload = deflated(text.encode()) if deflate else text.encode()
    half = len(payload) // 2
    stream = (
        frame(TEXT, payload[:half], fin=False, rsv=4 if deflate else 0)
        + frame(PING, b"between")
        + frame(CONTINUATION, payload[half:])
        + frame(BINARY, b"next", mask=b"\xff\x00\x01\x80")
        + frame(CLOSE, b"\x0f\xa0bye")
    )
    expected = Outcome([text, b"next"], [Ping(b"between"), Close(4000, "bye")])
    assert decoded(decoder(deflate=deflate), cut(stream, range(len(stream)))) == expected
    assert decoded(decoder(deflate=deflate), [stream]) == expected


@pytest.mark.parametrize("first", range(5))
@pytest.mark.parametrize("second", range(5))
def test_the_mask_goes_on_where_a_read_ended(first: int, second: int) -> None:
    """5.3: octet i is masked with octet "i MOD 4" of the key, wherever the frame was cut."""
    payload = bytes(range(1, 14))
    stream = frame(BINARY, payload)
    places = [6 + first, 6 + first + second]
    assert decoded(decoder(), cut(stream, places)).messages == [payload]


@pytest.mark.parametrize("width", [16, 64])
@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535])
def test_a_length_written_too_long_is_taken(size: int, width: int) -> None:
    """5.2 wants "the minimal number of bytes"; nothing hangs on it."""
    stream = frame(BINARY, bytes(size), width=width) + frame(TEXT, b"x", width=width)
    assert decoded(decoder(), [stream]).messages == [bytes(size), "x"]
    assert decoded(decoder(), cut(stream, range(20))).messages == [bytes(size), "x"]


@pytest.mark.parametrize("opcode", [CLOSE, PING, PONG])
def test_a_control_frame_has_at_most_125_bytes(opcode: int) -> None:
    """5.5: known from the second byte."""
    payload = b"\x03\xe8" + b"x" * 123
    assert decoded(decoder(), [frame(opcode, payload)]).code is None
    for second in (0x80 | 126, 0x80 | 127):
        taking = decoder()
        taking.feed(bytes((0x80 | opcode,)))
        with pytest.raises(FrameError) as failed:
            taking.feed(bytes((second,)))
        assert failed.value.code == PROTOCOL_ERROR


@pytest.mark.parametrize("opcode", [CLOSE, PING, PONG])
@pytest.mark.parametrize("size", [2, 3, 125])
def test_a_control_frame_cut_anywhere(opcode: int, size: int) -> None:
    stream = frame(TEXT, b"in", fin=False) + frame(opcode, b"\x03\xe8" + b"x" * (size - 2))
    expected = decoded(decoder(), [stream])
    for place in range(len(stream)):
        assert decoded(decoder(), cut(stream, [place])) == expected
    assert decoded(decoder(), cut(stream, range(len(stream)))) == expected


def test_control_frames_come_between_fragments() -> None:
    """5.4: "Control frames MAY be injected in the middle of a fragmented message."."""
    stream = (
        frame(TEXT, b"one ", fin=False)
        + frame(PING, b"1")
        + frame(CONTINUATION, b"", fin=False)
        + frame(PONG, b"nobody asked")
        + frame(CONTINUATION, b"message")
        + frame(PING, b"2")
    )
    assert decoded(decoder(), [stream]) == Outcome(["one message"], [Ping(b"1"), Ping(b"2")])


def test_what_is_known_of_the_length_before_it_is_there_does_not_matter() -> None:
    for size in range(2, 14):
        taking = decoder()
        taking.feed(frame(BINARY, bytes(65536))[:size])
        assert not taking.messages


def test_of_a_flood_of_pings_the_latest_are_answered() -> None:
    """5.5.3: "only the most recently processed Ping frame" has to be."""
    numbers = [Ping(number.to_bytes(2)) for number in range(2 * MAX_PINGS + 3)]
    frames = [frame(PING, ping.payload) for ping in numbers]
    for count in (MAX_PINGS, MAX_PINGS + 1, len(frames)):
        taking = decoder()
        taking.feed(b"".join(frames[:count]) + frame(TEXT, b"after"))
        assert 1 <= len(taking.controls) <= MAX_PINGS
        assert taking.controls == numbers[:count][-len(taking.controls) :]
        assert list(taking.messages) == ["after"]
    taking = decoder()
    taking.feed(b"".join(frames[:MAX_PINGS]))
    assert taking.controls == numbers[:MAX_PINGS]


# The close frame.


def test_every_close_code() -> None:
    """7.4.1 and 7.4.2, and the IANA registry: 1012 to 1014 were added to it."""
    taken, refused = set(), set()
    codes = {*range(5100), *range(5100, 65536, 251), 65535}
    for code in codes:
        outcome = decoded(decoder(), [frame(CLOSE, code.to_bytes(2) + b"why")])
        if outcome.code is None:
            assert outcome.controls == [Close(code, "why")]
            taken.add(code)
        else:
            assert (outcome.code, outcome.controls) == (PROTOCOL_ERROR, [])
            refused.add(code)
    assert taken == {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}
    assert taken | refused == codes


def test_a_close_frame_without_a_code_or_with_half_of_one() -> None:
    assert decoded(decoder(), [frame(CLOSE)]).controls == [Close(1005, "")]
    for octet in range(256):
        assert decoded(decoder(), [frame(CLOSE, bytes((octet,)))]).code == PROTOCOL_ERROR


@pytest.mark.parametrize("reason", [b"\xff", b"\xc3", b"ok\xed\xa0\x80"])
def test_a_reason_that_is_not_utf_8(reason: bytes) -> None:
    outcome = decoded(decoder(), [frame(CLOSE, b"\x03\xe8" + reason)])
    assert (outcome.code, outcome.controls) == (INVALID_DATA, [])


@pytest.mark.parametrize(
    "end",
    [
        frame(CLOSE, b"\x03\xe8"),
        frame(CLOSE),
        frame(CLOSE, b"\x00"),
        b"\x83\x80",
        frame(TEXT, b"\xff"),
        frame(TEXT, b"\xff", rsv=4),
        frame(BINARY, bytes(65)),
    ],
)
def test_nothing_is_decoded_after_the_end(end: bytes) -> None:
    """1.4: "a peer discards any further data received"; 7.1.7: so it does after an error."""
    more = frame(TEXT, b"more") + frame(PING, b"more") + b"\x83"
    for pieces in ([end + more], [end, more], [end, b"", more[:3], more[3:]]):
        taking = decoder(limit=64, deflate=True)
        outcome = decoded(taking, [frame(TEXT, b"before"), *pieces])
        assert outcome.messages == ["before"]
        assert [type(control) for control in outcome.controls] in ([], [Close])
        assert not taking.held_back
        taking.feed(more)
        assert not taking.messages


def test_what_came_before_an_error_is_kept() -> None:
    taking = decoder()
    with pytest.raises(FrameError):
        taking.feed(frame(TEXT, b"before") + frame(PING, b"too") + b"\x83")
    assert (list(taking.messages), taking.controls) == (["before"], [Ping(b"too")])


def test_a_close_frame_in_the_middle_of_a_message() -> None:
    """5.4 and 5.5: a close frame is a control frame, which may be injected there."""
    stream = frame(TEXT, b"never whole", fin=False) + frame(CLOSE, b"\x03\xe9")
    assert decoded(decoder(), [stream]) == Outcome([], [Close(1001, "")])


# UTF-8.


def lead_and_trail() -> Iterator[tuple[bytes, int | None]]:
    """Sequences, and where the first wrong byte is (The Unicode Standard, table 3-7)."""
    second = {0xE0: range(0xA0, 0xC0), 0xED: range(0x80, 0xA0)}
    second |= {0xF0: range(0x90, 0xC0), 0xF4: range(0x80, 0x90)}
    for lead in range(256):
        if lead < 0x80:
            yield bytes((lead,)), None
        elif lead < 0xC2 or lead > 0xF4:
            yield bytes((lead,)), 0
        elif lead in {0xC2, 0xDF, 0xE1, 0xEF, 0xF1, 0xF3, *second}:
            right = second.get(lead, range(0x80, 0xC0))
            rest = b"\x80" * (0 if lead < 0xE0 else 1 if lead < 0xF0 else 2)
            for trail in range(256):
                # Of a surrogate Python's decoder wants all three bytes: one is named by the first
                # two, and this is the only case in which it waits.
                wrong = 2 if lead == 0xED and 0xA0 <= trail < 0xC0 else 1
                yield bytes((lead, trail)) + rest, None if trail in right else wrong
            for at in range(len(rest)):
                for trail in (*range(0x78, 0x82), *range(0xBE, 0xC4), 0, 0xFF):
                    start = bytes((lead, right[0])) + rest[:at]
                    place = None if 0x80 <= trail < 0xC0 else 2 + at
                    yield start + bytes((trail,)) + rest[at + 1 :], place


def failing(taking: Decoder, pieces: list[bytes]) -> int | None:
    """Feed piece by piece, and return which one is found to be no UTF-8."""
    for at, piece in enumerate(pieces):
        outcome = decoded(taking, [piece])
        if outcome.code is not None:
            return at if outcome.code == INVALID_DATA else -1
    return None


def test_text_fails_at_its_first_wrong_byte() -> None:
    """In one frame, and in fragments of one byte."""
    for sequence, wrong in lead_and_trail():
        payload = sequence + b"end"
        stream = frame(TEXT, payload)
        assert failing(decoder(), cut(stream, range(7, 20))) == wrong, sequence
        first = frame(TEXT, payload[:1], fin=False)
        rest = [frame(CONTINUATION, bytes((octet,)), fin=False) for octet in payload[1:]]
        assert failing(decoder(), [first, *rest]) == wrong, sequence


def test_text_may_be_cut_inside_a_character_but_not_end_there() -> None:
    for text in ("é", "€", "😀", "\0", "\ufeff", "\U0010ffff"):
        encoded = text.encode()
        for at in range(len(encoded) + 1):
            stream = frame(TEXT, encoded[:at], fin=False) + frame(CONTINUATION, encoded[at:])
            assert decoded(decoder(), [stream]).messages == [text]
            if 0 < at < len(encoded):
                for ended in (
                    frame(TEXT, encoded[:at]),
                    frame(TEXT, encoded[:at], fin=False) + frame(CONTINUATION),
                    frame(TEXT, deflated(encoded[:at]), rsv=4),
                ):
                    outcome = decoded(decoder(deflate=True), [ended])
                    assert (outcome.messages, outcome.code) == ([], INVALID_DATA)


def test_bytes_need_not_be_text() -> None:
    stream = (
        frame(BINARY, b"\xff") + frame(BINARY, b"\xc3", fin=False) + frame(CONTINUATION, b"\xff")
    )
    assert decoded(decoder(), [stream]).messages == [b"\xff", b"\xc3\xff"]


# Limits.

LIMIT = 200


def sent(size: int, way: str) -> bytes:
    """A message of `size` bytes, sent in one of several ways."""
    payload = bytes(size)
    short = deflated(payload)
    return {
        "one frame": frame(BINARY, payload),
        "fragments": frame(BINARY, payload[:100], fin=False) + frame(CONTINUATION, payload[100:]),
        "an empty end": frame(BINARY, payload, fin=False) + frame(CONTINUATION),
        "compressed": frame(BINARY, short, rsv=4),
        "stored": frame(BINARY, deflated(payload, level=0), rsv=4),
        "compressed fragments": frame(BINARY, short[:2], fin=False, rsv=4)
        + frame(CONTINUATION, short[2:]),
        "text": frame(TEXT, payload),
    }[way]


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    "way",
    [
        "one frame",
        "fragments",
        "an empty end",
        "compressed",
        "stored",
        "compressed fragments",
        "text",
    ],
)
def test_the_limit_of_a_message(*, way: str, whole: bool) -> None:
    for size in (LIMIT - 1, LIMIT, LIMIT + 1):
        stream = sent(size, way)
        pieces = [stream] if whole else cut(stream, range(len(stream)))
        outcome = decoded(decoder(limit=LIMIT, deflate=True), pieces)
        if size > LIMIT:
            assert (outcome.messages, outcome.code) == ([], TOO_BIG)
            assert outcome.reason == "a message of more than 200 bytes"
        else:
            assert [len(message) for message in outcome.messages] == [size]


def test_the_limit_is_for_each_message_anew() -> None:
    stream = sent(LIMIT, "fragments") + sent(LIMIT, "compressed") + sent(LIMIT, "one frame")
    assert len(decoded(decoder(limit=LIMIT, deflate=True), [stream]).messages) == 3


@pytest.mark.parametrize("size", [LIMIT + 1, 65535, 65536, 1 << 40, (1 << 64) - 1])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_frame_that_is_too_long_fails_with_its_head(size: int, opcode: int) -> None:
    """Not a byte of it has to come."""
    second = bytes((0x80 | 126,)) + size.to_bytes(2) if size < 65536 else b"\xff" + size.to_bytes(8)
    stream = bytes((0x80 | opcode,)) + second + MASK
    for pieces in ([stream], cut(stream, range(20))):
        taking = decoder(limit=LIMIT)
        assert decoded(taking, pieces[:-1]).code is None
        assert decoded(taking, pieces[-1:]).code == TOO_BIG


def test_a_fragment_that_is_too_long_fails_with_its_head() -> None:
    taking = decoder(limit=LIMIT)
    taking.feed(frame(BINARY, bytes(100), fin=False))
    with pytest.raises(FrameError) as failed:
        taking.feed(frame(CONTINUATION, bytes(101))[:6])
    assert failed.value.code == TOO_BIG


def test_a_bomb_is_given_up_early() -> None:
    """What it inflates to is never there: neither in one step nor because nobody looks."""
    bomb = deflated(bytes(64 << 20))
    taking = decoder(limit=1 << 16, deflate=True)
    with pytest.raises(FrameError) as failed:
        taking.feed(frame(BINARY, bomb, rsv=4)[:1024])
    assert failed.value.code == TOO_BIG


def test_what_makes_nothing_ends_too() -> None:
    """Data that inflates to nothing may go on for ever: neither tiny nor growing."""
    nothing = b"\x00\x00\x00\xff\xff"
    endless = frame(BINARY, nothing * 20, fin=False, rsv=4)
    more = frame(CONTINUATION, nothing * 20, fin=False)
    outcome = decoded(decoder(limit=LIMIT, tiny=9, deflate=True), [endless, *[more] * 100])
    assert (outcome.messages, outcome.code) == ([], TOO_BIG)
    for size in (1 << 20, 1 << 63, (1 << 64) - 1):  # and it is known from the head, if it is there
        taking = decoder(limit=LIMIT, deflate=True)
        with pytest.raises(FrameError) as failed:
            taking.feed(b"\xc2\xff" + size.to_bytes(8) + MASK)
        assert failed.value.code == TOO_BIG


@pytest.mark.parametrize("size", [BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
@pytest.mark.parametrize("step", [1000, BLOCK, 2 * BLOCK])
def test_a_long_message_in_pieces_is_whole(size: int, step: int) -> None:
    text = ("é€😀x" * (size // 10 + 1)).encode()[:size].decode(errors="ignore")
    stream = frame(TEXT, text.encode())
    pieces = cut(stream, range(step, len(stream), step))
    assert decoded(decoder(), pieces).messages == [text]
    short = frame(TEXT, deflated(text.encode()), rsv=4)
    assert decoded(decoder(deflate=True), [short]).messages == [text]


# Tiny fragments.


def fragments(sizes: list[int], *, rsv: int = 0) -> bytes:
    """A message in fragments of these sizes, with a ping before each but the first."""
    last = len(sizes) - 1
    frames = [
        frame(CONTINUATION if at else BINARY, bytes(size), fin=at == last, rsv=0 if at else rsv)
        for at, size in enumerate(sizes)
    ]
    return frame(PING).join(frames)


@pytest.mark.parametrize("tiny", [0, 1, 5])
@pytest.mark.parametrize("size", [0, 1, TINY - 1])
def test_how_many_tiny_fragments_a_message_may_have(tiny: int, size: int) -> None:
    for count in (tiny, tiny + 1):
        outcome = decoded(decoder(tiny=tiny), [fragments([size] * count + [1])])
        if count > tiny:
            assert (outcome.messages, outcome.code) == ([], TOO_BIG)
            assert outcome.reason == "too many tiny fragments"
        else:
            assert outcome.messages == [bytes(size * count + 1)]


def test_a_fragment_of_64_bytes_is_not_tiny() -> None:
    assert decoded(decoder(tiny=1), [fragments([TINY] * 50 + [3])]).code is None
    mixed = [TINY, 1, TINY, 1, TINY, 1]
    assert decoded(decoder(tiny=2), [fragments(mixed)]).code is None
    assert decoded(decoder(tiny=1), [fragments(mixed)]).code == TOO_BIG


def test_tiny_fragments_are_counted_for_each_message_anew() -> None:
    stream = fragments([1, 1, 1]) * 10
    assert decoded(decoder(tiny=2), [stream]).messages == [bytes(3)] * 10


def test_a_small_message_is_not_a_tiny_fragment() -> None:
    assert decoded(decoder(tiny=0), [frame(BINARY, b"x") * 100]).messages == [b"x"] * 100


# What is held back, and what is counted.


def test_unread_counts_what_came_in_and_what_it_made() -> None:
    taking = decoder(deflate=True)
    plain, short = frame(BINARY, bytes(1000)), frame(BINARY, deflated(bytes(1000)), rsv=4)
    taking.feed(plain)
    assert taking.unread == len(plain)
    taking.feed(plain[:500])
    assert taking.unread == len(plain) + 500
    taking.unread = 0
    taking.feed(plain[500:] + short)
    assert taking.unread == len(plain) - 500 + len(short) + 1000
    assert (len(taking.messages), taking.held_back) == (3, False)


def test_what_makes_much_of_little_is_held_back() -> None:
    short = frame(BINARY, deflated(bytes(1000)), rsv=4)
    taking = decoder(deflate=True, unread=1500)
    taking.feed(short * 5 + frame(TEXT, b"last"))
    assert [len(message) for message in taking.messages] == [1000, 1000]
    assert taking.held_back
    seen: list[str | bytes] = []
    while taking.held_back:
        seen += taking.messages
        taking.messages.clear()
        taking.unread = 0
        taking.feed(b"")
    assert [*seen, *taking.messages] == [*[bytes(1000)] * 5, "last"]


def test_what_comes_meanwhile_goes_behind_what_is_held_back() -> None:
    short = frame(TEXT, deflated(b"first" * 300), rsv=4)
    taking = decoder(deflate=True, unread=100)
    taking.feed(short + frame(TEXT, b"second")[:3])
    assert taking.held_back
    taking.feed(frame(TEXT, b"second")[3:] + frame(TEXT, b"third"))
    assert list(taking.messages) == ["first" * 300, "second", "third"]
    assert not taking.held_back


def test_half_a_frame_is_not_held_back() -> None:
    taking = decoder(deflate=True, unread=0)
    taking.feed(frame(PING, b"half")[:4])
    assert not taking.held_back
    taking.feed(frame(PING, b"half")[4:])
    assert taking.controls == [Ping(b"half")]


def test_nothing_is_held_back_while_there_is_nothing_to_take() -> None:
    taking = decoder(deflate=True, unread=0)
    taking.feed(frame(PING, b"1") + frame(PING, b"2") + frame(TEXT, b"3", fin=False))
    assert (len(taking.controls), taking.held_back) == (2, False)


def test_what_is_held_back_is_read_before_a_close_and_an_error() -> None:
    short = frame(BINARY, deflated(bytes(1000)), rsv=4)
    for end, code in ((frame(CLOSE, b"\x03\xe8"), None), (b"\x83", PROTOCOL_ERROR)):
        outcome = decoded(decoder(deflate=True, unread=10), [short * 3 + end])
        assert (outcome.messages, outcome.code) == ([bytes(1000)] * 3, code)


# Compressed messages.


def test_messages_may_be_compressed_or_not() -> None:
    stream = (
        frame(TEXT, deflated(b"short"), rsv=4)
        + frame(TEXT, b"plain")
        + frame(BINARY, deflated(b"long" * 9999), rsv=4)
        + frame(TEXT, deflated(b""), rsv=4)
        + frame(TEXT, b"\x00", rsv=4)
    )
    expected = ["short", "plain", b"long" * 9999, "", ""]
    assert decoded(decoder(deflate=True), [stream]).messages == expected
    assert decoded(decoder(deflate=True), cut(stream, range(len(stream)))).messages == expected


def test_corrupt_data_fails_the_connection() -> None:
    stream = frame(TEXT, b"before") + frame(BINARY, b"\xff\xff\xff", rsv=4)
    outcome = decoded(decoder(deflate=True), [stream])
    assert (outcome.messages, outcome.code) == (["before"], INVALID_DATA)


def test_a_message_is_what_it_makes_with_its_tail() -> None:
    """RFC 7692, 7.2.2: the four bytes are appended, and all of it is inflated."""
    stored = b"\x00\x06\x00\xf9\xffab"  # says six bytes and has two
    outcome = decoded(decoder(deflate=True), [frame(BINARY, stored, rsv=4)])
    assert outcome.messages == [b"ab\x00\x00\xff\xff"]


def test_compressed_text_is_checked_as_it_comes() -> None:
    wrong = frame(TEXT, deflated(b"ok\xff" + bytes(range(128)) * 9, level=0), rsv=4)
    taking = decoder(deflate=True)
    with pytest.raises(FrameError) as failed:
        taking.feed(wrong[:32])
    assert failed.value.code == INVALID_DATA
