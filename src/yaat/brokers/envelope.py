"""The envelope: what is published, as the bytes that every broker on a network keeps and sends.

    version   1 byte    1
    kind      1 byte    0 bytes, 1 text, 2 JSON, 3 join, 4 leave
    length    varint    how long the labels are; 7 bits a byte, the low ones first
    labels    length    a map in MessagePack of what else there is to say: `key`, `sender`
    payload   the rest

A reader leaves alone the labels that it does not know: they are of a later version.
"""

from typing import Any, Final, get_args

import msgspec

from yaat.brokers.contract import Content, Kind
from yaat.exceptions import MalformedError

VERSION: Final = 1
_KINDS: Final[tuple[Kind, ...]] = ("bytes", "text", "json", "join", "leave")
_HEADS: Final = [bytes((VERSION, code, 0)) for code in range(len(_KINDS))]
_OF_BARE: Final = dict(zip(_HEADS, _KINDS, strict=True))
_BARE: Final = {kind: head for head, kind in _OF_BARE.items()}
_CONTINUES: Final = 0x80
_LONGEST_VARINT: Final = 4

assert set(_KINDS) == set(get_args(Kind))  # noqa: S101 - each kind has its number


class _Labels(msgspec.Struct, omit_defaults=True):
    key: str | None = None
    sender: str | None = None


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(_Labels).decode


def pack(content: Content) -> bytes:
    """Return the envelope of what is published."""
    kind, payload, key, sender = content
    if key is None and sender is None:
        return _BARE[kind] + payload
    labels = _pack(_Labels(key, sender))
    return _BARE[kind][:2] + _varint(len(labels)) + labels + payload


def unpack(envelope: bytes) -> Content:
    """Return what is in an envelope.

    Raises:
        MalformedError: It is none, or of a version that is not known here.
    """
    bare = _OF_BARE.get(envelope[:3])
    if bare is not None:
        return Content(bare, envelope[3:])
    if envelope and envelope[0] != VERSION:
        raise MalformedError(f"a publication of version {envelope[0]}; version {VERSION} is known")
    try:
        kind = _KINDS[envelope[1]]
        length, begin = _length(envelope)
    except (IndexError, ValueError):
        raise MalformedError("this is no publication of ours") from None
    end = begin + length
    try:
        labels: Any = _unpack(envelope[begin:end])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise MalformedError("the labels of a publication cannot be read") from None
    return Content(kind, envelope[end:], labels.key, labels.sender)


def _varint(number: int) -> bytes:
    written = bytearray()
    while number >= _CONTINUES:
        written.append(number & 0x7F | _CONTINUES)
        number >>= 7
    written.append(number)
    return bytes(written)


def _length(envelope: bytes) -> tuple[int, int]:
    """Return how long the labels are, and where they begin."""
    number = 0
    for place, byte in enumerate(envelope[2 : 2 + _LONGEST_VARINT]):
        number |= (byte & 0x7F) << 7 * place
        if byte < _CONTINUES:
            return number, place + 3
    raise ValueError
