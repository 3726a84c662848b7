"""The opening handshake, a server's half (RFC 6455, sections 4.2 and 9.1). Pure."""

import hashlib
import re
from base64 import b64encode
from collections.abc import Iterable
from functools import lru_cache
from http import HTTPStatus
from typing import Final, NamedTuple
from urllib.parse import unquote

from yaat.handshake import is_token

Headers = Iterable[tuple[bytes, bytes]]

# 1.3: 'the string "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"'
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
# 4.1: "a randomly selected 16-byte value that has been base64-encoded"
_KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")
_ORIGIN = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)
# Headers live as long as their connections. What many clients send alike is one object for all;
# nothing of it is a secret.
_COMMON = frozenset(
    b"""host user-agent accept accept-language accept-encoding origin pragma cache-control
    connection upgrade sec-websocket-version sec-websocket-extensions sec-fetch-dest sec-fetch-mode
    sec-fetch-site x-forwarded-proto x-forwarded-host""".split()
)
_LONGEST_COMMON = 256
# RFC 9110, 15.3.5 and 15.4.5; 8.6: no Content-Length with them either.
_WITHOUT_BODY = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}


class HandshakeError(Exception):
    """A request that is no handshake: what to answer it with."""

    def __init__(
        self, reason: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST, headers: Headers = ()
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.headers = headers


class Request(NamedTuple):
    """A client's opening handshake.

    Attributes:
        raw_path: The path as it came, without the query.
        path: The path decoded.
        headers: In their order, names in lower case.
        key: Its `Sec-WebSocket-Key`.
        extensions: Its `Sec-WebSocket-Extensions`, all of them in one.
    """

    raw_path: bytes
    path: str
    query_string: bytes
    headers: list[tuple[bytes, bytes]]
    key: bytes
    subprotocols: list[str]
    extensions: str


def parsed(head: bytes) -> Request:
    """Read a handshake, from its request line to the empty line.

    Raises:
        HandshakeError: It is none that a server may accept.
    """
    request_line, _, rest = head.partition(b"\r\n")
    # Which version is for the HTTP class to check.
    method, _, rest_of_line = request_line.partition(b" ")
    lines = [line.partition(b":") for line in rest.split(b"\r\n")]
    headers = [(name.lower(), value.strip(b" \t")) for name, _, value in lines if name]
    return requested(method, rest_of_line.partition(b" ")[0], headers)


def requested(method: bytes, target: bytes, given: Headers) -> Request:
    """Take a request that somebody has read for a handshake.

    Args:
        method: Of the request.
        target: Of the request, as it came.
        given: Its headers, names in lower case, no white space around values.

    Raises:
        HandshakeError: It is none that a server may accept.
    """
    # 4.2.1: "An HTTP/1.1 or higher GET request".
    if method != b"GET":
        raise HandshakeError(
            "A WebSocket begins with GET.", HTTPStatus.METHOD_NOT_ALLOWED, [(b"allow", b"GET")]
        )
    raw_path, _, query_string = _origin_form(target).partition(b"?")
    path = raw_path.decode()
    headers = [
        _shared(header) if header[0] in _COMMON and len(header[1]) <= _LONGEST_COMMON else header
        for header in given
    ]
    # 4.2.1: "A |Host| header field containing the server's authority"; RFC 9112, 3.2: to a request
    # with none or several a server "MUST respond with a 400".
    if sum(name == b"host" for name, _ in headers) != 1:
        raise HandshakeError("There has to be one Host header.")
    special = _special(headers)
    return Request(
        raw_path,
        unquote(path) if "%" in path else path,
        query_string,
        headers,
        _key(special),
        _subprotocols(special),
        b", ".join(special.get(b"sec-websocket-extensions", ())).decode("latin-1"),
    )


@lru_cache(maxsize=1_024)
def _shared(header: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    return header


def _origin_form(target: bytes) -> bytes:
    # RFC 9112, 3.2.2: a server "MUST accept the absolute-form in requests".
    if (origin := _ORIGIN.match(target)) is not None:
        target = target[origin.end() :]
        target = target if target.startswith(b"/") else b"/" + target
    if not target.startswith(b"/"):
        raise HandshakeError("The target of the request has to be a path.")
    if not target.isascii():
        raise HandshakeError("The target of the request has to be percent-encoded.")
    return target


def _special(headers: Headers) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        if name.startswith(b"sec-websocket-"):
            found.setdefault(name, []).append(value)
    return found


def _key(special: dict[bytes, list[bytes]]) -> bytes:
    # 4.4: "If this version doesn't match a version understood by the server, the server MUST abort
    # the WebSocket handshake" and send "an appropriate HTTP error code (such as 426 Upgrade
    # Required) and a Sec-WebSocket-Version header field".
    if special.get(b"sec-websocket-version") != [b"13"]:
        raise HandshakeError(
            "This server speaks version 13 of the WebSocket protocol.",
            HTTPStatus.UPGRADE_REQUIRED,
            [(b"sec-websocket-version", b"13"), (b"upgrade", b"websocket")],
        )
    keys = special.get(b"sec-websocket-key", [])
    # 11.3.1: it "MUST NOT appear more than once in an HTTP request".
    if len(keys) != 1 or not _KEY.fullmatch(keys[0]):
        raise HandshakeError("There has to be one Sec-WebSocket-Key, of 16 bytes in base64.")
    return keys[0]


def _subprotocols(special: dict[bytes, list[bytes]]) -> list[str]:
    values = special.get(b"sec-websocket-protocol")
    if not values:
        return []
    # 11.3.4: it "MAY appear multiple times", which "is logically the same as a single" one.
    elements = [part.strip(" \t") for part in b",".join(values).decode("latin-1").split(",")]
    # RFC 9110, 5.6.1.2: "A recipient MUST parse and ignore a reasonable number of empty list
    # elements".
    offered = [element for element in elements if element]
    if not all(map(is_token, offered)):
        raise HandshakeError("Sec-WebSocket-Protocol has to be a list of tokens.")
    return offered


def accepted(
    request: Request, subprotocol: str | None, extensions: bytes | None, headers: Headers
) -> bytes:
    """Return the answer that opens the connection (4.2.2)."""
    digest = b64encode(hashlib.sha1(request.key + _GUID, usedforsecurity=False).digest())
    lines = [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + digest
    ]
    if subprotocol is not None:
        lines.append(b"Sec-WebSocket-Protocol: " + subprotocol.encode())
    if extensions is not None:
        lines.append(b"Sec-WebSocket-Extensions: " + extensions)
    lines += [name + b": " + value for name, value in headers]
    lines.append(b"\r\n")
    return b"\r\n".join(lines)


class Denial:
    """A response of the application's own, which it gives in parts.

    Args:
        status: From 200 to 599.
        headers: Names in lower case; none about the connection itself.
    """

    __slots__ = ("_chunked", "_headers", "_status")

    def __init__(self, status: int, headers: Headers) -> None:
        self._status = status
        self._headers: list[tuple[bytes, bytes]] | None = list(headers)
        self._chunked = False

    @property
    def has_begun(self) -> bool:
        """Whether the head has been taken."""
        return self._headers is None

    def part(self, body: bytes, *, more: bool) -> bytes:
        """Return what goes out for a part of the body, with the head before the first."""
        head = b"" if self._headers is None else self._begun(self._headers, len(body), more=more)
        if self._status in _WITHOUT_BODY:
            return head
        if self._chunked:  # RFC 9112, 7.1
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            body += b"" if more else b"0\r\n\r\n"
        return head + body

    def _begun(self, headers: list[tuple[bytes, bytes]], size: int, *, more: bool) -> bytes:
        self._headers = None
        framed = self._status in _WITHOUT_BODY
        if not framed and not any(name == b"content-length" for name, _ in headers):
            self._chunked = more
            framing = (b"transfer-encoding", b"chunked")
            headers.append(framing if more else (b"content-length", b"%d" % size))
        return response_head(self._status, headers)


def response_head(status: int, headers: Headers) -> bytes:
    """Return the head of an answer that does not open a connection; it is the last one on it."""
    lines = [b"HTTP/1.1 %d %b" % (status, _PHRASES.get(status, b""))]
    lines += [name + b": " + value for name, value in headers]
    lines.append(b"connection: close\r\n\r\n")
    return b"\r\n".join(lines)


def response(status: int, text: str = "", headers: Headers = ()) -> bytes:
    """Return a whole answer of plain text that does not open a connection."""
    body = text.encode()
    own = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
    ]
    return response_head(status, [*headers, *own]) + body
