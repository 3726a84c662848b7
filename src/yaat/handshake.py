"""The answer to a handshake: which subprotocol, which headers. Pure.

Servers differ in what they refuse, and one of them dies of a bad value; so nothing reaches a
server that has not been checked here.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus

from yaat.exceptions import ArgumentError

Header = tuple[bytes | str, bytes | str]

# RFC 9110, 5.6.2: token = 1*tchar
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# RFC 9110, 5.5: "Field values containing CR, LF, or NUL characters are invalid and dangerous".
# Other control characters are invalid as well; HTAB is the one that is not.
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
# RFC 9113, 8.2.2: "An endpoint MUST NOT generate an HTTP/2 message containing connection-specific
# header fields"; in HTTP/1.1 the server sends its own.
_OF_THE_SERVER = re.compile(
    rb"sec-websocket-.*|connection|keep-alive|proxy-connection|transfer-encoding|upgrade"
)


def is_token(value: object) -> bool:
    """Tell whether `value` is a token (RFC 9110, 5.6.2), as a subprotocol has to be."""
    return isinstance(value, str) and _TOKEN.fullmatch(value) is not None


def chosen_subprotocol(wanted: str | Sequence[str] | None, offered: Sequence[str]) -> str | None:
    """Return the subprotocol that the handshake agrees on.

    Args:
        wanted: The one, or several in the order of preference: the first that the client offered
            is chosen, none if it offered none of them.
        offered: What the client sent in `Sec-WebSocket-Protocol`.

    Raises:
        ArgumentError: `wanted` is one that the client never offered ("the client MUST fail the
            connection", RFC 6455, 4.1), or is not a token (RFC 6455, 4.2.2).
        TypeError: `wanted` is neither a string nor a sequence of strings.
    """
    if wanted is None:
        return None
    candidates = [wanted] if isinstance(wanted, str) else list(wanted)
    for candidate in candidates:
        if not isinstance(candidate, str):
            raise TypeError(f"a subprotocol is a str, not {type(candidate).__name__}")
        if not is_token(candidate):
            raise ArgumentError(f"{candidate!r} is no subprotocol: it has to be a token")
    chosen = next((candidate for candidate in candidates if candidate in offered), None)
    if chosen is None and isinstance(wanted, str):
        raise ArgumentError(
            f"the client never offered the subprotocol {wanted!r} (it offered {list(offered)!r}); "
            "give a list to choose the first that it did offer, or none"
        )
    return chosen


def checked_headers(
    headers: Iterable[Header] | Mapping[str, str] | None, *, accept: bool = True
) -> list[tuple[bytes, bytes]]:
    """Return `headers` as ASGI has them: pairs of bytes, names in lower case, order kept.

    Args:
        headers: Pairs of a name and a value, each bytes or str, or a mapping.
        accept: Whether they go with an accept, where the server alone sets `Sec-WebSocket-*` and
            what is about the connection itself.

    Raises:
        ArgumentError: A name that is no token, a value with control characters, or a header that
            only the server may set (ASGI, "Accept - send event").
        TypeError: Something that is neither bytes nor str.
    """
    pairs = headers.items() if isinstance(headers, Mapping) else headers or ()
    return [_checked_header(_encoded(n).lower(), _encoded(v), accept=accept) for n, v in pairs]


def checked_status(status: int) -> int:
    """Return `status` if a denial response may have it.

    Raises:
        ArgumentError: It is not a registered status from 300 on. Over HTTP/2, 2xx would accept
            (RFC 8441, section 5); and not every server can send one that is not registered.
    """
    if status < HTTPStatus.MULTIPLE_CHOICES or status not in list(HTTPStatus):
        raise ArgumentError(f"a denial has a registered HTTP status from 300 on, not {status!r}")
    return int(status)


def _checked_header(name: bytes, value: bytes, *, accept: bool) -> tuple[bytes, bytes]:
    if not is_token(name.decode("latin-1")):
        raise ArgumentError(f"{name!r} is no header name: it has to be a token")
    if _BAD_VALUE.search(value):
        raise ArgumentError(f"the value of header {name!r} has a control character")
    if accept and _OF_THE_SERVER.fullmatch(name):
        raise ArgumentError(
            f"{name!r} is set by the server; the subprotocol is an argument of accept()"
        )
    # RFC 9110, 5.5: "A field value does not include leading or trailing whitespace"; some servers
    # refuse such a value, others pass it on.
    return name, value.strip(b" \t")


def _encoded(part: object) -> bytes:
    if isinstance(part, str):
        try:
            return part.encode("latin-1")
        except UnicodeEncodeError:
            raise ArgumentError("a header has to be encodable as latin-1") from None
    if isinstance(part, bytes):
        return part
    raise TypeError(f"a header's name and value are bytes or str, not {type(part).__name__}")
