"""Close codes: their names, and which of them may travel (RFC 6455, section 7.4)."""

from enum import IntEnum

from yaat.exceptions import ArgumentError

MAX_REASON_BYTES = 123
"""RFC 6455, 5.5: a control frame carries at most 125 bytes; two of them are the code."""


class WebSocketCloseEvent(IntEnum):
    """Why a connection ended: the registered close codes.

    Spec: RFC 6455, section 7.4.1, and the IANA registry that it founded.
    """

    NORMAL_CLOSURE = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS_RECEIVED = 1005
    ABNORMAL_CLOSURE = 1006
    INVALID_FRAME_PAYLOAD_DATA = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    MISSING_EXTENSION = 1010
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    BAD_GATEWAY = 1014
    TLS_HANDSHAKE = 1015


# "1005 is a reserved value and MUST NOT be set as a status code in a Close control frame by an
# endpoint" (7.4.1); the same is said of 1006 and 1015. What comes nearest goes instead.
STAND_INS = {
    WebSocketCloseEvent.NO_STATUS_RECEIVED: WebSocketCloseEvent.NORMAL_CLOSURE,
    WebSocketCloseEvent.ABNORMAL_CLOSURE: WebSocketCloseEvent.INTERNAL_ERROR,
    WebSocketCloseEvent.TLS_HANDSHAKE: WebSocketCloseEvent.INTERNAL_ERROR,
}


def may_travel(code: int) -> bool:
    """Tell whether `code` may stand in a close frame (RFC 6455, 7.4)."""
    return (1000 <= code <= 1014 or 3000 <= code <= 4999) and code not in (1004, 1005, 1006)


def travelling_code(code: int) -> int:
    """Return the close code that travels for `code`: itself, or the stand-in of a reserved one.

    Raises:
        ArgumentError: `code` is none that an endpoint may use. It is a `ValueError` too.
        TypeError: It is no int.
    """
    if not isinstance(code, int):
        raise TypeError(f"a close code is an int, not {type(code).__name__}")
    if may_travel(code):
        return int(code)
    try:
        return int(STAND_INS[WebSocketCloseEvent(code)])
    except (KeyError, ValueError):
        raise ArgumentError(
            f"{code!r} is no close code that may be sent: use 1000 to 1014 but 1004, or 3000 to "
            "4999 (RFC 6455, section 7.4)"
        ) from None


def checked_reason(reason: str | None) -> str:
    """Return `reason` as it travels; `None` is the empty one.

    Raises:
        ArgumentError: more than 123 bytes of UTF-8, or not encodable. It is a `ValueError` too.
        TypeError: It is no str.
    """
    if not isinstance(reason, str | None):
        raise TypeError(f"a close reason is a str, not {type(reason).__name__}")
    try:
        size = len((reason or "").encode())
    except UnicodeEncodeError:
        raise ArgumentError("a close reason must be encodable as UTF-8") from None
    if size > MAX_REASON_BYTES:
        raise ArgumentError(
            f"a close reason has at most {MAX_REASON_BYTES} bytes of UTF-8, this one has {size}"
        )
    return reason or ""
