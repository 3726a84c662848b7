"""JSON on the wire: msgspec, with the errors of this package."""

from typing import Any, Literal

import msgspec

from yaat.exceptions import ArgumentError, MalformedError

Mode = Literal["text", "bytes", "binary"]
"""In which kind of message JSON travels; `"binary"` is Starlette's spelling of `"bytes"`."""

encode = msgspec.json.Encoder().encode
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
