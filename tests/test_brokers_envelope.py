"""The envelope: what goes in comes out, and nothing else is taken for one."""

from typing import get_args

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from yaat.brokers.contract import Content, Kind
from yaat.brokers.envelope import pack, unpack
from yaat.exceptions import MalformedError

KINDS: tuple[Kind, ...] = get_args(Kind)

labels = st.none() | st.text()
contents = st.builds(Content, st.sampled_from(KINDS), st.binary(), labels, labels)

BARE = pack(Content("text", b"hello"))
K127 = b"k" * 127
LABELLED = pack(Content("json", b"[1]", "key", "sender"))


@given(contents)
@example(Content("bytes", b"", "", ""))
@example(Content("bytes", b"", "k" * 127))
@example(Content("text", b"x", "k" * 20_000, "s" * 3_000_000))
@example(Content("leave", b"\x01\x00\x00", None, "s"))
def test_what_goes_in_comes_out(content: Content) -> None:
    assert unpack(pack(content)) == content


@pytest.mark.parametrize(
    ("content", "begin"),
    [
        (Content("bytes", b"payload"), b"\x01\x00\x00"),
        (Content("text", b"payload"), b"\x01\x01\x00"),
        (Content("json", b"payload"), b"\x01\x02\x00"),
        (Content("join", b"payload"), b"\x01\x03\x00"),
        (Content("leave", b"payload"), b"\x01\x04\x00"),
        (Content("text", b"payload", "k"), b"\x01\x01\x07\x81\xa3key\xa1k"),
        (Content("text", b"payload", None, "s"), b"\x01\x01\x0a\x81\xa6sender\xa1s"),
        (
            Content("text", b"payload", "k" * 127),
            b"\x01\x01\x86\x01\x81\xa3key\xd9\x7f" + b"k" * 127,
        ),
    ],
)
def test_the_bytes_are_those_of_every_version_to_come(content: Content, begin: bytes) -> None:
    assert pack(content) == begin + b"payload"
    assert unpack(begin + b"payload") == content


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_has_one_number(kind: Kind) -> None:
    (number,) = {pack(Content(kind, b""))[1], pack(Content(kind, b"x", "k", "s"))[1]}
    others = [pack(Content(other, b""))[1] for other in KINDS if other != kind]
    assert number not in others


@pytest.mark.parametrize("envelope", [BARE, LABELLED], ids=["bare", "labelled"])
def test_an_envelope_that_ends_early_is_none_or_has_less_of_a_payload(envelope: bytes) -> None:
    whole = unpack(envelope)
    head = len(envelope) - len(whole.payload)
    for end in range(len(envelope)):
        if end < head:
            with pytest.raises(MalformedError):
                unpack(envelope[:end])
        else:
            assert unpack(envelope[:end]) == whole._replace(payload=envelope[head:end])


@given(st.binary())
@example(b"")
@example(b"\x01")
@example(b"\x01\x05\x00")
@example(b"\x01\xff\x00")
@example(b"\x01\x00\x80")
@example(b"\x01\x00\x80\x80\x80\x80")
@example(b"\x01\x00\x80\x80\x80\x80\x01")
@example(b"\x01\x00\xff\xff\xff\x7f")
@example(b"\x01\x00\x01\xc1")
@example(b"\x01\x00\x01\x90")
@example(b"\x01\x00\x01\xc0")
@example(b"\x01\x00\x06\x81\xa3key\x01")
@example(b"\x01\x00\x07\x81\xa3key\xa1\xff")
@example(b"\x01\x00\x07\x81\xa3key\xa1k"[:-1] + b"\x00\x00")
@example(b"\x01\x00\x08\x81\xa3key\xa1k\x00")
def test_garbage_is_refused_or_read_but_nothing_worse(data: bytes) -> None:
    try:
        content = unpack(data)
    except MalformedError:
        return
    assert data.endswith(content.payload)
    assert content.kind in KINDS


@pytest.mark.parametrize(
    "rest", [b"\x00\x00", b"\x09\x00later", b"\x01\x85", b"\x01\x7f", b"", b"\xff"], ids=repr
)
@pytest.mark.parametrize("version", [0, 2, 255])
def test_a_later_version_is_called_one(version: int, rest: bytes) -> None:
    with pytest.raises(MalformedError, match=f"version {version}; version 1 is known"):
        unpack(bytes([version]) + rest)


def test_labels_that_are_not_there_are_not_of_another_version() -> None:
    with pytest.raises(MalformedError) as caught:
        unpack(b"\x01\x00\x7f")
    assert "version" not in str(caught.value)


def test_labels_of_a_later_version_are_left_alone() -> None:
    told = msgspec.msgpack.encode({"info": {"a": [1]}, "key": "k", "time": 1.5})
    assert unpack(b"\x01\x01" + bytes([len(told)]) + told + b"data") == Content(
        "text", b"data", "k"
    )


def test_labels_as_deep_as_they_are_long_are_refused() -> None:
    told = b"\x81\xa1x" + b"\x91" * 100_000 + b"\xc0"
    length = bytes([len(told) & 0x7F | 0x80, len(told) >> 7 & 0x7F | 0x80, len(told) >> 14])
    with pytest.raises(MalformedError):
        unpack(b"\x01\x01" + length + told)
