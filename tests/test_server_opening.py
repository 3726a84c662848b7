"""The opening handshake: RFC 6455, section 4.2, from bytes and to bytes.

Whether a request is an upgrade at all (`Upgrade` and `Connection`, the version of HTTP) is found
out by the HTTP class in front of it.
"""

from base64 import b64encode

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.utils import accept_key

from yaat.server.opening import (
    Denial,
    HandshakeError,
    Request,
    accepted,
    parsed,
    response,
    response_head,
)

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455, 1.3
VERSION = (b"Sec-WebSocket-Version", b"13")
HOST = [(b"Host", b"example.com")]
NEEDED = [(b"Sec-WebSocket-Key", KEY), VERSION]

Fields = list[tuple[bytes, bytes]]


def request(
    *more: tuple[bytes, bytes],
    target: bytes = b"/",
    method: bytes = b"GET",
    needed: Fields = NEEDED,
    hosts: Fields = HOST,
) -> bytes:
    """Return a handshake from its request line on, as a server gets it."""
    basic = [*hosts, (b"Upgrade", b"websocket"), (b"Connection", b"Upgrade")]
    lines = [name + b": " + value for name, value in [*basic, *needed, *more]]
    return b"\r\n".join([method + b" " + target + b" HTTP/1.1", *lines, b"", b""])


def refused(head: bytes) -> HandshakeError:
    with pytest.raises(HandshakeError) as error:
        parsed(head)
    assert str(error.value) == error.value.reason
    return error.value


# The request.


def test_a_handshake() -> None:
    """The one of RFC 6455, 1.3."""
    head = request(
        (b"Origin", b"http://example.com"),
        (b"Sec-WebSocket-Protocol", b"chat, superchat"),
        target=b"/chat?room=1",
    )
    assert parsed(head) == Request(
        raw_path=b"/chat",
        path="/chat",
        query_string=b"room=1",
        headers=[
            (b"host", b"example.com"),
            (b"upgrade", b"websocket"),
            (b"connection", b"Upgrade"),
            (b"sec-websocket-key", KEY),
            (b"sec-websocket-version", b"13"),
            (b"origin", b"http://example.com"),
            (b"sec-websocket-protocol", b"chat, superchat"),
        ],
        key=KEY,
        subprotocols=["chat", "superchat"],
        extensions="",
    )


def test_the_empty_line_may_be_there_or_not() -> None:
    assert parsed(request()) == parsed(request().removesuffix(b"\r\n\r\n"))


@pytest.mark.parametrize("method", [b"POST", b"get", b"HEAD", b"CONNECT", b"GETS", b"", b"GET\t"])
def test_it_is_a_get(method: bytes) -> None:
    error = refused(request(method=method))
    assert (error.status, list(error.headers)) == (405, [(b"allow", b"GET")])


@pytest.mark.parametrize(
    ("target", "raw_path", "path", "query"),
    [
        (b"/", b"/", "/", b""),
        (b"/a/b", b"/a/b", "/a/b", b""),
        (b"/a?", b"/a", "/a", b""),
        (b"/a?b=c?d", b"/a", "/a", b"b=c?d"),
        (b"/a%2Fb%20c?d=%20", b"/a%2Fb%20c", "/a/b c", b"d=%20"),
        (b"/%C3%A9", b"/%C3%A9", "/é", b""),
        (b"/%e2%82%ac%zz%", b"/%e2%82%ac%zz%", "/€%zz%", b""),
        (b"/%ff", b"/%ff", "/\ufffd", b""),
        (b"/%3Fa", b"/%3Fa", "/?a", b""),
        (b"//double", b"//double", "//double", b""),
        (b"/a?http://b/", b"/a", "/a", b"http://b/"),
        (b"/http://b/", b"/http://b/", "/http://b/", b""),
        # RFC 9112, 3.2.2: the absolute form
        (b"http://example.com/a?b", b"/a", "/a", b"b"),
        (b"HTTPS://example.com:8000/a", b"/a", "/a", b""),
        (b"http://example.com", b"/", "/", b""),
        (b"http://example.com?b=http://c/d", b"/", "/", b"b=http://c/d"),
        (b"http://u@[::1]:80/a", b"/a", "/a", b""),
    ],
)
def test_what_is_asked_for(target: bytes, raw_path: bytes, path: str, query: bytes) -> None:
    found = parsed(request(target=target))
    assert (found.raw_path, found.path, found.query_string) == (raw_path, path, query)


@pytest.mark.parametrize(
    "target", [b"", b"*", b"example.com:443", b"a/b", b"ftp://h/", b"?a=http://h/", b"xhttp://h/"]
)
def test_a_target_that_is_no_path(target: bytes) -> None:
    assert refused(request(target=target)).status == 400


@pytest.mark.parametrize("target", ["/é".encode(), b"/\xff", b"http://h/\x80", b"/a?\xff"])
def test_a_target_has_to_be_ascii(target: bytes) -> None:
    error = refused(request(target=target))
    assert error.status == 400
    assert error.reason == "The target of the request has to be percent-encoded."


@pytest.mark.parametrize("hosts", [[], HOST * 2, [*HOST, (b"HOST", b"other")]])
def test_there_is_one_host(hosts: Fields) -> None:
    error = refused(request(hosts=hosts))
    assert (error.status, error.reason) == (400, "There has to be one Host header.")


@pytest.mark.parametrize(
    "versions",
    [[], [b""], [b"8"], [b"12"], [b"14"], [b"013"], [b"13, 8"], [b"13", b"13"], [b"13", b"8"]],
)
def test_it_is_version_13(versions: Fields) -> None:
    needed = [(b"Sec-WebSocket-Key", KEY)]
    needed += [(b"Sec-WebSocket-Version", version) for version in versions]  # type: ignore[misc]
    error = refused(request(needed=needed))
    assert error.status == 426
    assert dict(error.headers) == {b"sec-websocket-version": b"13", b"upgrade": b"websocket"}


@pytest.mark.parametrize(
    "keys",
    [
        [],
        [b""],
        [KEY, KEY],
        [KEY + b", " + KEY],
        [KEY[:-1]],
        [KEY + b"="],
        [b"A" * 24],
        [b"A" * 20 + b"===="],
        [b"A" * 21 + b"-=="],
        [b"A" * 21 + b" =="],
        [b"A" * 21 + b"\xe9=="],
        [b"AAAA"],
        [b"A" * 40 + b"=="],
    ],
)
def test_there_is_one_key_of_16_bytes(keys: list[bytes]) -> None:
    needed = [VERSION, *((b"Sec-WebSocket-Key", key) for key in keys)]
    error = refused(request(needed=needed))
    assert (error.status, list(error.headers)) == (400, [])


@pytest.mark.parametrize("key", [KEY, b"A" * 22 + b"==", b"+/" * 11 + b"=="])
def test_any_such_key(key: bytes) -> None:
    assert parsed(request(needed=[(b"SEC-WEBSOCKET-KEY", key), VERSION])).key == key


@pytest.mark.parametrize(
    ("values", "subprotocols"),
    [
        ([], []),
        ([b"chat"], ["chat"]),
        ([b"chat,superchat"], ["chat", "superchat"]),
        ([b"chat \t,\t superchat"], ["chat", "superchat"]),
        ([b"b", b"a", b"c, d"], ["b", "a", "c", "d"]),
        ([b"!#$%&'*+-.^_`|~09azAZ"], ["!#$%&'*+-.^_`|~09azAZ"]),
        ([b""], []),
        ([b", ,a,, b ,", b"", b"c"], ["a", "b", "c"]),
        ([b"graphql-transport-ws", b"v1.json"], ["graphql-transport-ws", "v1.json"]),
    ],
)
def test_the_subprotocols(values: list[bytes], subprotocols: list[str]) -> None:
    """11.3.4: it "MAY appear multiple times"."""
    head = request(*((b"Sec-WebSocket-Protocol", value) for value in values))
    assert parsed(head).subprotocols == subprotocols


@pytest.mark.parametrize(
    "value",
    [
        b"a b",
        b"a;b",
        b'"a"',
        b"a/b",
        b"a\x00",
        b"a\x01b",
        b"a\tb",
        b"\xe9",
        b"(a)",
        b"a, b c",
        b"@",
    ],
)
def test_a_subprotocol_is_a_token(value: bytes) -> None:
    assert refused(request((b"Sec-WebSocket-Protocol", value))).status == 400


def test_the_extensions_are_one_list() -> None:
    """9.1: the header may be "split across multiple lines"."""
    name = b"Sec-WebSocket-Extensions"
    assert parsed(request((name, b"a; b=1"))).extensions == "a; b=1"
    assert parsed(request((name, b"a"), (b"X", b"y"), (name, b"b\xe9"))).extensions == "a, bé"


def test_headers_keep_their_order_their_number_and_their_values() -> None:
    more = [
        (b"Cookie", b"a=1; b=2"),
        (b"X-Two", b"first"),
        (b"cookie", b"c=3"),
        (b"X-Two", b"second"),
        (b"X-Empty", b""),
        (b"X-Colon", b"a: b:c"),
        (b"X-Latin", b"\xe9"),
        (b"X-Space", b" \t around \t "),
        (b"Sec-WebSocket-Other", b"kept"),
    ]
    found = parsed(request(*more)).headers
    expected = [(name.lower(), value.strip(b" \t")) for name, value in more]
    assert found[-len(more) :] == expected
    assert found[:3] == [
        (b"host", b"example.com"),
        (b"upgrade", b"websocket"),
        (b"connection", b"Upgrade"),
    ]


def test_usual_headers_are_one_object_for_all_connections() -> None:
    more = ((b"User-Agent", b"x" * 256), (b"Origin", b"https://example.com"))
    first, second = (parsed(request(*more)).headers for _ in range(2))
    assert first == second
    for header, other in zip(first, second, strict=True):
        assert (header is other) is (header[0] != b"sec-websocket-key"), header


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"Authorization", b"Bearer secret"),
        (b"Cookie", b"session=secret"),
        (b"X-Forwarded-For", b"10.0.0.1"),
        (b"Sec-WebSocket-Protocol", b"secret"),
        (b"User-Agent", b"x" * 257),
    ],
)
def test_what_is_a_secret_or_each_ones_own_is_not_kept(name: bytes, value: bytes) -> None:
    first, second = (parsed(request((name, value))).headers[-1] for _ in range(2))
    assert first == second == (name.lower(), value)
    assert first is not second


def test_the_order_of_headers_does_not_matter() -> None:
    assert parsed(request(needed=NEEDED[::-1])).key == KEY


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda part: request(target=part)))
def test_whatever_comes_in_is_a_request_or_refused(head: bytes) -> None:
    try:
        assert parsed(head).raw_path.startswith(b"/")
    except HandshakeError:
        return


# The answers. h11, a client that is strict, reads them.


def read(data: bytes) -> tuple[h11.Response | h11.InformationalResponse, bytes]:
    """Return the answer, and its body."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "h"), *UPGRADE]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    head = client.next_event()
    assert isinstance(head, h11.Response | h11.InformationalResponse)
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    if isinstance(head, h11.Response):
        assert isinstance(event, h11.EndOfMessage)
        assert client.their_state is h11.MUST_CLOSE
    return head, body


UPGRADE = [("Upgrade", "websocket"), ("Connection", "Upgrade")]


def test_the_answer_that_opens_a_connection() -> None:
    """The one of RFC 6455, 1.3."""
    assert accepted(parsed(request()), None, None, []) == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + ACCEPT + b"\r\n\r\n"
    )


def test_the_answer_with_all_that_it_may_have() -> None:
    headers = [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"x-empty", b"")]
    head, _ = read(accepted(parsed(request()), "chat", b"permessage-deflate; a=1", headers))
    assert head.status_code == 101
    assert head.headers.raw_items() == [
        (b"Upgrade", b"websocket"),
        (b"Connection", b"Upgrade"),
        (b"Sec-WebSocket-Accept", ACCEPT),
        (b"Sec-WebSocket-Protocol", b"chat"),
        (b"Sec-WebSocket-Extensions", b"permessage-deflate; a=1"),
        *headers,
    ]


@given(st.binary(min_size=16, max_size=16))
def test_the_key_is_answered(nonce: bytes) -> None:
    key = b64encode(nonce)
    answer = accepted(
        parsed(request(needed=[(b"Sec-WebSocket-Key", key), VERSION])), None, None, ()
    )
    assert b"Sec-WebSocket-Accept: " + accept_key(key.decode()).encode() + b"\r\n" in answer


@pytest.mark.parametrize("status", [200, 204, 304, 400, 403, 404, 426, 500, 503, 599])
def test_an_answer_of_one_piece(status: int) -> None:
    head, body = read(response(status, "Über", [(b"x-more", b"1")]))
    assert head.status_code == status
    assert dict(head.headers) == {
        b"x-more": b"1",
        b"content-type": b"text/plain; charset=utf-8",
        b"content-length": b"5",
        b"connection": b"close",
    }
    assert body == (b"" if status in {204, 304} else "Über".encode())


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (403, b"HTTP/1.1 403 Forbidden\r\n"),
        (426, b"HTTP/1.1 426 Upgrade Required\r\n"),
        (299, b"HTTP/1.1 299 \r\n"),
    ],
)
def test_the_status_line(status: int, line: bytes) -> None:
    assert response_head(status, []) == line + b"connection: close\r\n\r\n"
    assert response(status).startswith(line)


def denied(denial: Denial, *parts: bytes) -> tuple[dict[bytes, bytes], bytes, list[bytes]]:
    """Return the headers and the body as a client reads them, and what went out for each part."""
    last = len(parts) - 1
    written = [denial.part(part, more=at < last) for at, part in enumerate(parts)]
    head, body = read(b"".join(written))
    return dict(head.headers), body, written


def test_a_denial_in_one_part() -> None:
    headers, body, _ = denied(Denial(401, [(b"www-authenticate", b"Basic")]), b"no")
    assert body == b"no"
    assert headers == {
        b"www-authenticate": b"Basic",
        b"content-length": b"2",
        b"connection": b"close",
    }


def test_a_denial_without_a_body() -> None:
    headers, body, _ = denied(Denial(403, []), b"")
    assert (headers[b"content-length"], body) == (b"0", b"")


@pytest.mark.parametrize(
    "parts",
    [
        [b"one", b"two"],
        [b"", b"two"],
        [b"one", b""],
        [b"", b""],
        [b"", b"", b"one", b"", b"x" * 70_000, b"", b""],
    ],
)
def test_a_denial_in_parts_goes_out_as_it_comes(parts: list[bytes]) -> None:
    headers, body, written = denied(Denial(400, []), *parts)
    assert body == b"".join(parts)
    assert headers == {b"transfer-encoding": b"chunked", b"connection": b"close"}
    for part, data in zip(parts, written, strict=True):
        assert part in data
    # RFC 9112, 7.1: an empty chunk is the last one, so an empty part is none.
    assert b"".join(written).count(b"0\r\n\r\n") == 1
    assert written[1:-1].count(b"") == parts[1:-1].count(b"")


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("parts", [[b""], [b"dropped"], [b"", b"dropped", b""]])
def test_a_denial_that_may_have_no_body(status: int, parts: list[bytes]) -> None:
    headers, body, written = denied(Denial(status, [(b"x", b"y")]), *parts)
    assert (headers, body) == ({b"x": b"y", b"connection": b"close"}, b"")
    assert not any(written[1:])


def test_whether_a_denial_has_begun() -> None:
    denial = Denial(403, [])
    assert not denial.has_begun
    denial.part(b"", more=True)
    assert denial.has_begun


@pytest.mark.parametrize("parts", [[b"whole"], [b"wh", b"ole"], [b"", b"whole", b""]])
def test_a_denial_of_a_length_that_was_given(parts: list[bytes]) -> None:
    given_headers = [(b"content-length", b"5"), (b"x", b"y")]
    headers, body, written = denied(Denial(404, given_headers), *parts)
    assert body == b"whole"
    assert headers == {b"content-length": b"5", b"x": b"y", b"connection": b"close"}
    assert written[1:] == parts[1:]
    assert given_headers == [(b"content-length", b"5"), (b"x", b"y")]
