"""JSON on the wire: msgspec, with the errors of this package."""

from typing import Any, Literal

import msgspec

from yaat.exceptions import ArgumentError, MalformedError

Mode = Literal["text", "bytes", "binary"]
"""In which kind of message JSON travels; `"binary"` is Starlette's spelling of `"bytes"`."""


def _plain(value: Any) -> Any:
    """Return a `str`, `int` or `float` of a subclass as one that msgspec knows: a URL is a str.

    Raises:
        TypeError: It is none of them, and has no form in JSON.
    """
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


encode = msgspec.json.Encoder(enc_hook=_plain).encode
"""Return any JSON value, also with dataclasses, `datetime`, `UUID`, enums, as compact UTF-8."""

_decode = msgspec.json.Decoder().decode


def kind_of(mode: str) -> Literal["text", "bytes"]:
    """Return the kind of message that `mode` means.

    Raises:
        ArgumentError: `mode` is none of them.
    """
    if mode == "text":
        return "text"
    if mode in ("bytes", "binary"):
        return "bytes"
    raise ArgumentError(f'mode is "text" or "bytes", not {mode!r}')


def decode(data: str | bytes) -> Any:
    """Return the JSON value that `data` holds.

    Raises:
        MalformedError: It holds none, or one nested too deeply. The text quotes nothing of it.
    """
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise MalformedError("the message is not valid JSON") from None


def check_encodable(text: str) -> None:
    """Check that `text` can travel as UTF-8, before a server sends something else in its place.

    Raises:
        ArgumentError: It holds half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ArgumentError("the text has no form in UTF-8: a lone surrogate is in it") from None
