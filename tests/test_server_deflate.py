"""permessage-deflate: what is agreed on, and what goes in and out under it (RFC 7692)."""

import random
import threading
import tracemalloc
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz.frames import deflated, with_final_block
from yaat.server import deflate
from yaat.server.deflate import (
    MAX_STREAMS,
    SLICE,
    STEP,
    TAIL,
    CorruptError,
    Deflate,
    Inflater,
    negotiated,
)
from yaat.server.opening import HandshakeError

AGREED = b"permessage-deflate; server_no_context_takeover; client_no_context_takeover"


def chance(size: int) -> bytes:
    """Bytes that do not compress, the same ones in every run."""
    return random.Random(size).randbytes(size)


# Far enough apart for every window, and near its border on both sides.
REPEATED = [chance(distance) * 2 for distance in (250, 251, 256, 257, 512, 32500, 32768)]
PAYLOADS = [
    b"",
    b"x",
    b"Hello",
    bytes(100_000),
    chance(70_000),
    b'{"id":1,"text":"word"}' * 2000,
    b"".join(REPEATED),
]


def strictly_inflated(compressed: bytes, bits: int) -> bytes:
    """Inflate with a window of 2**`bits` bytes and nothing else to look back at.

    Given room for more output, zlib looks back in the output; so it gets room for one byte.
    """
    stream = zlib.decompressobj(-bits)
    inflated, data = bytearray(), compressed + TAIL
    while piece := stream.decompress(data, 1):
        inflated += piece
        data = stream.unconsumed_tail
    assert not stream.unconsumed_tail
    return bytes(inflated)


def inflated(pieces: Iterable[bytes]) -> bytes:
    inflater = Inflater()
    result = b"".join(part for piece in pieces for part in inflater.feed(piece))
    return result + b"".join(inflater.finish())


@pytest.fixture(autouse=True)
def fresh() -> None:
    deflate._idle_streams.cache_clear()
    deflate._negotiated.cache_clear()


# Compression.


@pytest.mark.parametrize("bits", range(8, 16))
def test_a_receiver_with_the_window_that_was_agreed_on_reads_all(bits: int) -> None:
    agreed = negotiated(f"permessage-deflate; server_max_window_bits={bits}")
    assert agreed is not None
    for payload in PAYLOADS:
        assert strictly_inflated(agreed.compress(payload), bits) == payload


def test_a_larger_window_is_used_where_it_may_be() -> None:
    """So that the test before this one is about something."""
    sizes = [len(Deflate(bits, b"").compress(REPEATED[-2])) for bits in range(9, 16)]
    assert min(sizes[:-1]) > sizes[-1] + 30_000
    with pytest.raises(zlib.error, match="too far back"):
        strictly_inflated(Deflate(15, b"").compress(REPEATED[-2]), 9)


def test_each_message_begins_anew() -> None:
    agreed = Deflate(15, b"")
    texts = [b"the same text " * 50, b"", b"", b"the same text " * 50, b"x", b""]
    compressed = [agreed.compress(text) for text in texts]
    assert [inflated([payload]) for payload in compressed] == texts
    assert compressed[0] == compressed[3]
    assert compressed[1] == compressed[2] == compressed[5]


def test_a_payload_does_not_end_with_the_tail_that_the_receiver_appends() -> None:
    """7.2.1: it is removed; and what is left is never empty, as zlib's own is not."""
    for payload in PAYLOADS:
        compressed = Deflate(15, b"").compress(payload)
        assert compressed
        assert zlib.decompressobj(-15).decompress(compressed + TAIL) == payload


def test_one_compressor_serves_all_messages() -> None:
    for bits in (9, 15):
        for _ in range(3):
            Deflate(bits, b"any").compress(b"text" * 100)
    assert [len(deflate._idle_streams(bits)) for bits in (9, 12, 15)] == [1, 0, 1]


def test_a_compressor_that_an_exception_left_in_the_middle_is_thrown_away() -> None:
    class Failing:
        def compress(self, data: bytes) -> bytes:
            return self.inner.compress(data)

        def flush(self, mode: int) -> bytes:
            raise MemoryError(mode)

        inner = zlib.compressobj(1, zlib.DEFLATED, -15)

    idle = deflate._idle_streams(15)
    idle.append(Failing())  # type: ignore[arg-type]
    agreed = Deflate(15, b"")
    with pytest.raises(MemoryError):
        agreed.compress(b"secret of one" * 9)
    assert idle == []
    with pytest.raises(TypeError):
        agreed.compress("text")  # type: ignore[arg-type]
    assert idle == []
    assert inflated([agreed.compress(b"of another")]) == b"of another"
    assert len(idle) == 1


def test_threads_do_not_share_a_compressor() -> None:
    agreed, start = Deflate(15, b""), threading.Barrier(4)

    def work(seed: int) -> bool:
        payload = chance(seed + 5) * 4000  # long enough that zlib lets go of the interpreter
        start.wait(10)
        return all(inflated([agreed.compress(payload)]) == payload for _ in range(20))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
    assert 1 <= len(deflate._idle_streams(15)) <= 4


# Inflation.


@pytest.mark.parametrize("bits", range(9, 16))
@pytest.mark.parametrize("level", [0, 1, 9])
def test_what_any_client_compressed_is_read(bits: int, level: int) -> None:
    for payload in PAYLOADS:
        assert inflated([deflated(payload, bits=bits, level=level)]) == payload


@given(st.binary(max_size=300), st.integers(0, 9), st.integers(1, 50), st.booleans())
def test_a_stream_is_cut_anywhere(payload: bytes, level: int, step: int, final: bool) -> None:  # noqa: FBT001
    compressed = with_final_block(payload) if final else deflated(payload, level=level)
    pieces = [compressed[at : at + step] for at in range(0, len(compressed), step)]
    assert inflated(pieces) == payload
    assert inflated([*pieces, b""]) == payload


def test_a_stream_is_inflated_in_steps() -> None:
    for size in (STEP - 1, STEP, STEP + 1, 3 * STEP, 3 * STEP + 1, 1 << 20):
        inflater = Inflater()
        compressed = deflated(bytes(size))
        parts = [*inflater.feed(compressed), *inflater.finish()]
        assert b"".join(parts) == bytes(size)
        assert all(0 < len(part) <= STEP for part in parts)


@pytest.mark.parametrize("size", [SLICE - 1, SLICE, SLICE + 1, 5 * SLICE + 7])
def test_a_stream_is_read_in_slices(size: int) -> None:
    payload = chance(size - 5)  # of stored blocks, so that it comes out as long as it goes in
    compressed = deflated(payload, level=0)
    inflater = Inflater()
    parts = list(inflater.feed(compressed))
    assert b"".join([*parts, *inflater.finish()]) == payload
    assert len(parts) >= len(compressed) // SLICE


def test_a_bomb_costs_a_step_at_a_time() -> None:
    bomb = deflated(bytes(64 << 20))
    tracemalloc.start()
    try:
        inflater = Inflater()
        parts = inflater.feed(bomb)
        assert sum(len(next(parts)) for _ in range(100)) > 50 * STEP
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_an_empty_message() -> None:
    """7.2.3.6: of the one byte 0x00."""
    assert inflated([b"\x00"]) == b""
    assert inflated([]) == b""


def test_the_examples_of_the_rfc() -> None:
    hello = bytes.fromhex("f248cdc9c90700")  # 7.2.3.1
    assert inflated([hello]) == b"Hello"
    assert inflated([hello[:3], hello[3:]]) == b"Hello"
    assert inflated([bytes.fromhex("000500faff48656c6c6f00")]) == b"Hello"  # 7.2.3.3, stored
    assert inflated([bytes.fromhex("f348cdc9c9070000")]) == b"Hello"  # 7.2.3.4, a final block
    assert inflated([bytes.fromhex("f248050000 00ffff cac9c90700")]) == b"Hello"  # 7.2.3.5, two


def test_blocks_after_a_final_one_begin_anew() -> None:
    one, two = with_final_block(b"one ")[:-1], with_final_block(b"two ")[:-1]
    assert inflated([one + two + deflated(b"three")]) == b"one two three"
    for at in range(len(one + two)):
        assert inflated([(one + two)[:at], (one + two)[at:] + b"\x00"]) == b"one two "
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=b"one two three ")
    looking_back = compressor.compress(b"two three ") + compressor.flush(zlib.Z_SYNC_FLUSH)
    with pytest.raises(CorruptError, match="too far back"):
        inflated([with_final_block(b"one two three ")[:-1] + looking_back])


def test_a_final_block_at_the_border_of_a_step() -> None:
    full = with_final_block(bytes(STEP))[:-1]
    assert inflated([full]) == bytes(STEP)
    assert inflated([full + full + deflated(b"end")]) == bytes(2 * STEP) + b"end"


def test_how_many_streams_a_message_may_have() -> None:
    one = with_final_block(b"1")[:-1]
    assert inflated([one * (MAX_STREAMS - 1)]) == b"1" * (MAX_STREAMS - 1)
    for pieces in ([one * MAX_STREAMS], [one] * MAX_STREAMS, [(one * MAX_STREAMS)[:-1], one[-1:]]):
        with pytest.raises(CorruptError, match="too many streams"):
            inflated(pieces)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff",  # a block of the type that there is not
        b"\x06",
        b"\x00\x01\x00\x01\x00",  # a length and its complement that do not fit
        deflated(b"Hello" * 50)[:-1] + b"\xff\xff",
        b"\x02\x7f\xff",
    ],
)
def test_what_is_no_deflate_stream(data: bytes) -> None:
    with pytest.raises(CorruptError):
        inflated([data])
    with pytest.raises(CorruptError):
        inflated([data[at : at + 1] for at in range(len(data))])


def test_what_is_cut_short_is_corrupt_or_goes_on_with_its_tail() -> None:
    """It cannot be told from a whole one; but what came before the cut is in it."""
    payload = b"The quick brown fox jumps over the lazy dog. " * 20
    compressed = deflated(payload)
    for size in range(len(compressed)):
        before = zlib.decompressobj(-15).decompress(compressed[:size])
        assert payload.startswith(before)
        try:
            assert inflated([compressed[:size]]).startswith(before)
        except CorruptError:
            continue


@given(st.binary(max_size=200))
def test_whatever_comes_in_is_inflated_or_corrupt(data: bytes) -> None:
    try:
        whole = inflated([data])
    except CorruptError:
        with pytest.raises(CorruptError):
            inflated([data[at : at + 1] for at in range(len(data))])
    else:
        assert inflated([data[at : at + 1] for at in range(len(data))]) == whole


# Negotiation.

OFFERS = {
    "permessage-deflate": (15, ""),
    "permessage-deflate; client_max_window_bits": (15, ""),
    "permessage-deflate; client_max_window_bits=8": (15, ""),
    "permessage-deflate; client_max_window_bits=15": (15, ""),
    "permessage-deflate; server_no_context_takeover": (15, ""),
    "permessage-deflate; client_no_context_takeover": (15, ""),
    "permessage-deflate;client_no_context_takeover ;\tserver_no_context_takeover": (15, ""),
    "permessage-deflate; server_max_window_bits=8": (9, "; server_max_window_bits=8"),
    "permessage-deflate; server_max_window_bits=9": (9, "; server_max_window_bits=9"),
    "permessage-deflate; server_max_window_bits=15": (15, "; server_max_window_bits=15"),
    'permessage-deflate; server_max_window_bits="10"': (10, "; server_max_window_bits=10"),
    'permessage-deflate; server_max_window_bits="1\\2"': (12, "; server_max_window_bits=12"),
    "permessage-deflate; server_max_window_bits = 11": (11, "; server_max_window_bits=11"),
    "permessage-deflate; client_max_window_bits; server_max_window_bits=12; "
    "server_no_context_takeover; client_no_context_takeover": (12, "; server_max_window_bits=12"),
    # Several offers: 5.1 and 7.1, the first that can be accepted is.
    "permessage-deflate; server_max_window_bits=10, permessage-deflate": (
        10,
        "; server_max_window_bits=10",
    ),
    "permessage-deflate, permessage-deflate; server_max_window_bits=10": (15, ""),
    "permessage-deflate; server_max_window_bits=7, permessage-deflate": (15, ""),
    "permessage-deflate; unknown, permessage-deflate; server_max_window_bits=13": (
        13,
        "; server_max_window_bits=13",
    ),
    "x-webkit-deflate-frame, permessage-deflate": (15, ""),
    "other; server_max_window_bits=9, , permessage-deflate,": (15, ""),
}

DECLINED = [
    "x-webkit-deflate-frame",
    "permessage-bzip2; client_max_level=9",
    "Permessage-Deflate",  # RFC 6455, 9.1: a token, compared as it is
    "permessage-deflate-x",
    *(
        f"permessage-deflate; {parameter}"
        for parameter in (
            # 7.1: "an extension parameter not defined for use in an offer"
            "unknown",
            "unknown=1",
            "max_window_bits=9",
            "SERVER_MAX_WINDOW_BITS=9",
            # "an extension parameter with an invalid value"
            "server_no_context_takeover=1",
            "client_no_context_takeover=true",
            'client_no_context_takeover="1"',
            "server_max_window_bits",  # 7.1.2.1: it has to have a value
            *(
                f"{side}_max_window_bits={bits}"
                for side in ("server", "client")
                for bits in ("0", "7", "16", "08", "015", "9.0", "-9", "+9", "x", "1e1", "150")
            ),
            'server_max_window_bits="09"',
            # "multiple extension parameters with the same name"
            "server_no_context_takeover; server_no_context_takeover",
            "client_no_context_takeover; client_no_context_takeover",
            "client_max_window_bits; client_max_window_bits",
            "client_max_window_bits; client_max_window_bits=10",
            "server_max_window_bits=10; server_max_window_bits=10",
        )
    ),
]

MALFORMED = [
    ",",
    "a b",
    "permessage-deflate; ",
    "permessage-deflate;; client_max_window_bits",
    "permessage-deflate; =9",
    "permessage-deflate; server_max_window_bits=",
    'permessage-deflate; server_max_window_bits=""',
    'permessage-deflate; server_max_window_bits="9',
    'permessage-deflate; server_max_window_bits="9 0"',
    "permessage-deflate; server_max_window_bits=\u0669",
    "permessage-deflate; server_max_window_bits=9 9",
    "permessage-deflate\x00",
    "é",
    '"permessage-deflate"',
    "permessage-deflate, \xff",
]


@pytest.mark.parametrize("offers", OFFERS)
def test_an_offer_that_is_accepted(offers: str) -> None:
    window, more = OFFERS[offers]
    assert negotiated(offers) == Deflate(window, AGREED + more.encode())


@pytest.mark.parametrize("offers", DECLINED)
def test_an_offer_that_is_declined(offers: str) -> None:
    assert negotiated(offers) is None
    assert negotiated(f"{offers}, permessage-deflate") == Deflate(15, AGREED)


@pytest.mark.parametrize("offers", MALFORMED)
def test_a_malformed_header_fails_the_handshake(offers: str) -> None:
    for _ in range(2):
        with pytest.raises(HandshakeError) as failed:
            negotiated(offers)
        assert failed.value.status == 400


def test_only_short_offers_are_kept() -> None:
    """A peer chooses what it offers; browsers all say the same."""
    long = "x" * 300 + ", permessage-deflate"
    assert negotiated(long) == negotiated("permessage-deflate") == Deflate(15, AGREED)
    assert negotiated("permessage-deflate") is negotiated("permessage-deflate")
    assert deflate._negotiated.cache_info().currsize == 1
    with pytest.raises(HandshakeError):
        negotiated("x" * 300 + " x")


@given(st.text(st.characters(max_codepoint=255), max_size=80) | st.sampled_from([*OFFERS]))
def test_whatever_is_offered_is_answered(offers: str) -> None:
    try:
        answer = negotiated(offers)
    except HandshakeError:
        return
    assert answer is None or (9 <= answer.window <= 15 and answer.response.startswith(AGREED))
