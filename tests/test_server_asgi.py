"""What ASGI and RFC 6455 ask of a server, item by item, of our class under a bare application.

ASGI 3.0, www.rst, and where each item is held:

| Spec Versions | `test_the_versions` |
| WebSocket: the server answers pings | `test_a_ping_is_answered_while_the_application_is_busy` |
| ... and pings | `test_the_server_pings`, `test_who_does_not_answer_a_ping_is_cut` |
| ... whole messages | `test_fragments_are_joined` |
| Scope: lives as long as the socket | `test_server_apps.py` |
| Scope: keys and their types | `test_the_types_of_the_scope`, `test_the_path` |
| ... | `test_the_headers`, `test_root_path_and_default_headers` |
| ... | `test_the_addresses`, `test_tls_is_wss` |
| Scope: subprotocols | `test_the_offered_subprotocols` |
| Scope: state | `test_the_state_is_a_shallow_copy` |
| Connect: it waits for the answer | `test_nothing_is_sent_before_the_application_answers` |
| ... denied is 403 | `test_server_apps.py` |
| Accept | `test_server_apps.py`, `test_a_mistake_before_accept_is_refused` |
| Receive: exactly one of bytes and text | `test_the_messages`, `test_fragments_are_joined` |
| Send: exactly one of bytes and text | `test_a_mistake_after_accept_is_refused` |
| Disconnect: code, reason | `test_server_apps.py`, `test_the_messages` |
| Disconnect: send raises from then on | `test_every_message_in_every_state` |
| Disconnected Client | `test_every_message_in_every_state`, `test_server_apps.py` |
| Close: before and after accept | `test_what_a_close_may_leave_out`, `test_server_apps.py` |
| Denial response | `test_a_denial_leaves_as_it_is_made`, `test_server_apps.py` |
| Error Handling: extra keys | `test_extra_keys_are_no_error` |
| Error Handling: invalid events | `test_a_mistake_...` |
| lifespan | `test_server_apps.py` (shutdown), `test_the_state_is_a_shallow_copy` (startup) |
"""

import ast
import asyncio
import re
import signal
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from websockets.frames import Frame, Opcode

from apps import mistakes
from apps.plain import BIG, MESSAGES, OUTGOING, SECRET, STATES, TASKS
from clients import Closed, Refused, SocketClient
from peers import ServerPeer
from served import (
    LOOPS,
    Served,
    assert_one_error,
    assert_quiet,
    closed,
    open_the_gate,
    read_all,
    refused,
)
from servers import SPECS, Server, ServerPool, ServerSpec, uvicorn
from wires import TlsServer, UnixServer, WirePeer
from yaat.lifecycle import TABLE, State

APP = "apps.plain:app"
# RFC 6455, 1.3: the example.
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
ACCEPTED = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

# The one value of a scope that Python does not write as a literal.
WIRE = re.compile(r"<yaat\.server\.wire\.Wire object at 0x[0-9a-f]+>")

Pairs = list[tuple[bytes, bytes]]


@pytest.fixture(scope="session", params=LOOPS)
def loop(request: pytest.FixtureRequest) -> str:
    """Each event loop; of session scope, as the tests of one belong together."""
    return str(request.param)


@pytest.fixture
def peer(loop: str, servers: ServerPool) -> Served:
    return Served("plain", servers.get(SPECS[loop], APP))


async def scope_of(peer: ServerPeer, path: str, **options: Any) -> dict[str, Any]:
    """The scope that the application was given for a handshake."""
    async with peer.connect(path, **options) as client:
        written = await client.receive_json()
    return {key: ast.literal_eval(WIRE.sub("'a mapping'", value)) for key, value in written.items()}


# A handshake by hand


@dataclass(frozen=True)
class Answer:
    """What a server answered to a handshake."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """The value of a header that is there at most once."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1, self.headers
        return values[0] if values else None


def fields(peer: ServerPeer) -> dict[bytes, bytes]:
    """The headers of a handshake as it should be."""
    return {
        b"Host": b"127.0.0.1:%d" % peer.server.port,
        b"Connection": b"Upgrade",
        b"Upgrade": b"websocket",
        b"Sec-WebSocket-Version": b"13",
        b"Sec-WebSocket-Key": KEY,
    }


def request(headers: Iterable[tuple[bytes, bytes]], path: str, method: bytes = b"GET") -> bytes:
    lines = [method + b" " + path.encode("latin-1") + b" HTTP/1.1"]
    lines += [name + b": " + value for name, value in headers]
    return b"\r\n".join([*lines, b"", b""])


@asynccontextmanager
async def dialled(
    peer: ServerPeer,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", peer.server.port)
    try:
        async with asyncio.timeout(5):
            yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """Read an answer, and the connection to its end if it was not opened."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip().split("\r\n")
    status = int(first.split()[1])
    headers = [
        (name.lower(), value.strip()) for name, _, value in (x.partition(":") for x in lines)
    ]
    return Answer(status, headers, b"" if status == 101 else await reader.read())


async def answer_to(
    peer: ServerPeer,
    headers: Iterable[tuple[bytes, bytes]],
    path: str = "/scope",
    method: bytes = b"GET",
) -> Answer:
    async with dialled(peer) as (reader, writer):
        writer.write(request(headers, peer.keyed(path), method))
        return await read_answer(reader)


# The scope


async def test_the_versions(peer: Served) -> None:
    scope = await scope_of(peer, "/scope")
    assert scope["asgi"] == {"version": "3.0", "spec_version": "2.5"}
    assert scope["http_version"] == "1.1"
    assert scope["type"] == "websocket"
    assert scope["scheme"] == "ws"
    assert scope["extensions"] == {"websocket.http.response": {}, "yaat.wire": "a mapping"}


async def test_the_types_of_the_scope(peer: Served) -> None:
    scope = await scope_of(peer, "/scope", subprotocols=["chat"])
    types = {
        **dict.fromkeys(("type", "http_version", "scheme", "path", "root_path"), str),
        **dict.fromkeys(("raw_path", "query_string"), bytes),
        **dict.fromkeys(("asgi", "extensions", "state"), dict),
        "subprotocols": list,
        "headers": list,
    }
    assert {key: type(scope[key]) for key in types} == types
    for address in (scope["client"], scope["server"]):
        assert [type(part) for part in address] == [str, int]
    assert all(type(part) is bytes for pair in scope["headers"] for part in pair)


async def test_the_path(peer: Served) -> None:
    scope = await scope_of(peer, "/scope/caf%C3%A9/a%20b%2Fc?q=gr%C3%BC%C3%9F&q=%26")
    assert scope["path"] == "/scope/café/a b/c"
    assert scope["raw_path"] == b"/scope/caf%C3%A9/a%20b%2Fc"
    assert scope["query_string"].startswith(b"q=gr%C3%BC%C3%9F&q=%26&key=")
    assert scope["root_path"] == ""


async def test_a_path_that_is_no_utf_8_is_no_accident(peer: Served) -> None:
    scope = await scope_of(peer, "/scope/%ff%zz")
    assert scope["path"] == "/scope/\ufffd%zz"
    assert scope["raw_path"] == b"/scope/%ff%zz"
    await assert_quiet(peer)


async def test_the_headers(peer: Served) -> None:
    given = [(b"X-Two", b"a"), (b"x-one", b"  gr\xfc\xdf\t"), (b"X-TWO", b"b"), (b"X-Empty", b"")]
    async with dialled(peer) as (reader, writer):
        writer.write(request([*fields(peer).items(), *given], peer.keyed("/scope")))
        assert (await read_answer(reader)).status == 101
        head = await reader.readexactly(2)
        assert head[0] == 0x81
        size = head[1] if head[1] < 126 else int.from_bytes(await reader.readexactly(2), "big")
        written = ast.literal_eval((await reader.readexactly(size)).decode())
    headers = ast.literal_eval(written["headers"])
    assert [pair for pair in headers if pair[0].startswith(b"x-")] == [
        (b"x-two", b"a"),
        (b"x-one", b"gr\xfc\xdf"),
        (b"x-two", b"b"),
        (b"x-empty", b""),
    ]
    assert (b"sec-websocket-key", KEY) in headers
    assert headers[0][0] == b"host"


async def test_the_addresses(peer: Served, tmp_path: Path) -> None:
    scope = await scope_of(peer, "/scope")
    assert list(scope["server"]) == ["127.0.0.1", peer.server.port]
    assert scope["client"][0] == "127.0.0.1"
    with UnixServer(peer.server.spec, APP, tmp_path) as server:
        scope = await scope_of(WirePeer(server.spec, server), "/scope")
        assert list(scope["server"]) == [server.path, None]
        assert scope["client"] is None


async def test_tls_is_wss(loop: str, tmp_path: Path) -> None:
    with TlsServer(SPECS[loop], APP, tmp_path) as server:
        scope = await scope_of(WirePeer(server.spec, server), "/scope")
        assert scope["scheme"] == "wss"
        assert list(scope["server"]) == ["127.0.0.1", server.port]
        assert scope["client"][0] == "127.0.0.1"


async def test_root_path_and_default_headers(loop: str, tmp_path: Path) -> None:
    options = ("--root-path", "/api", "--no-server-header", "--header", "X-Proof:yes")
    with Server(SPECS[loop].but(*options), APP, tmp_path) as server:
        peer = ServerPeer(server.spec, server)
        scope = await scope_of(peer, "/scope/x")
        assert scope["root_path"] == "/api"
        assert scope["path"] == "/api/scope/x"
        assert scope["raw_path"] == b"/api/scope/x"
        for path, status in (("/scope", 101), ("/close-before", 403), ("/deny/one-part", 418)):
            answer = await answer_to(peer, fields(peer).items(), path)
            assert answer.status == status
            assert answer.header("x-proof") == "yes"
            assert answer.header("server") is None
            assert answer.header("date")


async def test_the_offered_subprotocols(peer: Served) -> None:
    offers = [b"chat, superchat", b"soap,graphql-ws"]
    headers = [*fields(peer).items(), *((b"Sec-WebSocket-Protocol", offer) for offer in offers)]
    async with dialled(peer) as (reader, writer):
        writer.write(request(headers, peer.keyed("/scope")))
        answer = await read_answer(reader)
        assert answer.header("sec-websocket-protocol") == "chat"
        written = await reader.readuntil(b'"subprotocols": "')
        assert written
        assert (await reader.readuntil(b'"')) == b"['chat', 'superchat', 'soap', 'graphql-ws']\""
    assert (await scope_of(peer, "/scope"))["subprotocols"] == []


async def test_the_state_is_a_shallow_copy(loop: str, tmp_path: Path) -> None:
    with Server(SPECS[loop], APP, tmp_path) as server:
        peer = ServerPeer(server.spec, server)
        seen = []
        for _ in range(3):
            async with peer.connect("/state") as client:
                seen.append(ast.literal_eval(str(await client.receive())))
                assert await closed(client) == (1000, "")
    assert [state["number"] for state in seen] == [1, 1, 1]
    assert [state["list"] for state in seen] == [[], [0], [0, 1]]


# The handshake (RFC 6455, 4.2.1)


async def test_the_handshake_of_the_rfc(peer: Served) -> None:
    answer = await answer_to(peer, fields(peer).items())
    assert answer.status == 101
    assert answer.header("sec-websocket-accept") == ACCEPTED
    assert (answer.header("upgrade") or "").lower() == "websocket"
    assert (answer.header("connection") or "").lower() == "upgrade"
    assert answer.header("server") == "uvicorn"
    assert answer.header("date")
    assert answer.header("content-length") is answer.header("transfer-encoding") is None
    assert answer.header("sec-websocket-extensions") is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"Upgrade", b"WebSocket"),
        (b"Connection", b"keep-alive, Upgrade"),
        (b"Connection", b"upgrade,keep-alive"),
        (b"Sec-WebSocket-Key", b" " + KEY + b"\t"),
        (b"Sec-WebSocket-Protocol", b"chat,superchat"),
        # RFC 9110, 5.6.1: "A recipient MUST parse and ignore a reasonable number of empty list
        # elements".
        (b"Sec-WebSocket-Protocol", b"chat, , superchat,"),
        (b"Sec-WebSocket-Extensions", b"x-unknown; a=1, permessage-foo"),
        (b"Origin", b"http://evil.example"),
    ],
)
async def test_a_handshake_that_is_accepted(peer: Served, name: bytes, value: bytes) -> None:
    answer = await answer_to(peer, {**fields(peer), name: value}.items())
    assert answer.status == 101
    assert answer.header("sec-websocket-accept") == ACCEPTED
    assert answer.header("sec-websocket-extensions") is None
    offered = name == b"Sec-WebSocket-Protocol"
    assert answer.header("sec-websocket-protocol") == ("chat" if offered else None)


def without(*names: bytes) -> dict[bytes, bytes | None]:
    return dict.fromkeys(names)


BAD_HANDSHAKES: dict[str, tuple[int, dict[bytes, bytes | None], Pairs]] = {
    "no-key": (400, without(b"Sec-WebSocket-Key"), []),
    "empty-key": (400, {b"Sec-WebSocket-Key": b""}, []),
    "key-of-15-bytes": (400, {b"Sec-WebSocket-Key": b"AAAAAAAAAAAAAAAAAAAA"}, []),
    "key-of-17-bytes": (400, {b"Sec-WebSocket-Key": b"AAAAAAAAAAAAAAAAAAAAAAA="}, []),
    "key-that-is-no-base64": (400, {b"Sec-WebSocket-Key": b"!!!!!!!!!!!!!!!!!!!!!!=="}, []),
    "key-with-a-tail": (400, {b"Sec-WebSocket-Key": KEY + b"x"}, []),
    "two-keys": (400, {}, [(b"Sec-WebSocket-Key", KEY)]),
    "two-other-keys": (400, {}, [(b"sec-websocket-key", b"AAAAAAAAAAAAAAAAAAAAAA==")]),
    "no-version": (426, without(b"Sec-WebSocket-Version"), []),
    "version-8": (426, {b"Sec-WebSocket-Version": b"8"}, []),
    "version-14": (426, {b"Sec-WebSocket-Version": b"14"}, []),
    "version-0": (426, {b"Sec-WebSocket-Version": b"0"}, []),
    "version-of-letters": (426, {b"Sec-WebSocket-Version": b"abc"}, []),
    "two-versions": (426, {b"Sec-WebSocket-Version": b"13, 8"}, []),
    "two-version-fields": (426, {}, [(b"Sec-WebSocket-Version", b"13")]),
    "no-host": (400, without(b"Host"), []),
    "two-hosts": (400, {}, [(b"Host", b"evil.example")]),
    "subprotocol-of-two-words": (400, {b"Sec-WebSocket-Protocol": b"chat room"}, []),
    "subprotocol-in-quotes": (400, {b"Sec-WebSocket-Protocol": b'"chat"'}, []),
    "subprotocol-with-a-tab": (400, {b"Sec-WebSocket-Protocol": b"ch\tat"}, []),
    "subprotocol-not-ascii": (400, {b"Sec-WebSocket-Protocol": b"ch\xe4t"}, []),
    "one-of-several-subprotocols": (400, {b"Sec-WebSocket-Protocol": b"chat, a b"}, []),
    "one-of-several-subprotocol-fields": (
        400,
        {b"Sec-WebSocket-Protocol": b"chat"},
        [(b"Sec-WebSocket-Protocol", b"a/b")],
    ),
    "nul-in-a-header": (400, {b"X-A": b"a\x00b"}, []),
}


@pytest.mark.parametrize("case", BAD_HANDSHAKES)
async def test_a_handshake_that_is_none(peer: Served, case: str) -> None:
    status, changes, more = BAD_HANDSHAKES[case]
    headers = {**fields(peer), **changes}
    pairs = [(name, value) for name, value in headers.items() if value is not None]
    answer = await answer_to(peer, [*pairs, *more])
    assert answer.status == status
    if status == 426:
        # RFC 6455, 4.4; RFC 9110, 15.5.22: "The server MUST send an Upgrade header field in a 426
        # response".
        assert answer.header("sec-websocket-version") == "13"
        assert answer.header("upgrade") == "websocket"
    assert answer.body
    # What the HTTP class refuses by itself has no length and ends with the connection.
    assert answer.header("content-length") in {None, str(len(answer.body))}
    assert answer.header("connection") == "close"
    assert peer.records("ended") == []
    assert peer.errors() == []
    assert peer.tracebacks() == 0


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"HEAD", b"OPTIONS"])
async def test_a_handshake_begins_with_get(peer: Served, method: bytes) -> None:
    answer = await answer_to(peer, fields(peer).items(), method=method)
    assert answer.status in {400, 405}
    assert peer.records("ended") == []
    assert peer.tracebacks() == 0


@pytest.mark.parametrize("path", ["/scope/caf\xc3\xa9", "/scope?q=caf\xc3\xa9"])
async def test_a_target_that_is_no_uri_is_no_accident(peer: Served, path: str) -> None:
    answer = await answer_to(peer, fields(peer).items(), path)
    assert answer.status in {101, 400}
    assert peer.errors() == []
    assert peer.tracebacks() == 0


async def test_a_target_with_an_authority(peer: Served) -> None:
    """RFC 9112, 3.2.2: "a server MUST accept the absolute-form in requests"."""
    async with dialled(peer) as (reader, writer):
        target = peer.server.url(peer.keyed("/echo")).replace("ws:", "http:")
        writer.write(request(fields(peer).items(), target))
        assert (await read_answer(reader)).status == 101


async def test_a_handshake_may_follow_an_ordinary_request(peer: Served) -> None:
    async with dialled(peer) as (reader, writer):
        writer.write(b"GET /page HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        while not (await reader.readline()).startswith(b"0"):
            pass
        await reader.readline()
        writer.write(request(fields(peer).items(), peer.keyed("/return")))
        answer = await read_answer(reader)
        assert answer.header("sec-websocket-accept") == ACCEPTED
        assert await reader.readexactly(9) == b"\x81\x03bye\x88\x02\x03\xe8"


# The answer to the handshake


async def test_nothing_is_sent_before_the_application_answers(peer: Served) -> None:
    async with dialled(peer) as (reader, writer):
        writer.write(request(fields(peer).items(), peer.keyed("/pending")))
        await peer.recorded("pending")
        answer = asyncio.create_task(read_answer(reader))
        async with peer.connect("/echo") as other:
            await other.send_text("time enough")
            await other.receive()
        await asyncio.sleep(0)
        assert not answer.done()
        await open_the_gate(peer)
        assert (await answer).status == 101
    assert "[accepted]" in peer.written()


@pytest.mark.parametrize("end", ["fin", "rst"])
async def test_a_client_may_leave_before_it_is_answered(peer: Served, end: str) -> None:
    async with dialled(peer) as (_, writer):
        writer.write(request(fields(peer).items(), peer.keyed("/pending")))
        await peer.recorded("pending")
        if end == "fin":
            writer.close()
        else:
            option = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(1, 13, option)  # SO_LINGER
            writer.transport.abort()
    await open_the_gate(peer)
    # The loss is learnt at the latest with what is received; a send that comes before is lost.
    left = await peer.recorded("left")
    assert left["code"] == 1006
    assert {record["error"] for record in peer.records("accept")} <= {
        "nothing",
        "ClientDisconnected",
    }
    await peer.recorded("ended", 2)
    await assert_quiet(peer)


async def test_what_a_client_sends_too_early_is_not_lost(peer: Served) -> None:
    """It should have waited (RFC 6455, 4.1); what it sent comes when the connection is open."""
    early = Frame(Opcode.TEXT, b"too early").serialize(mask=True)
    early += Frame(Opcode.CLOSE, struct.pack("!H", 4001)).serialize(mask=True)
    async with dialled(peer) as (reader, writer):
        writer.write(request(fields(peer).items(), peer.keyed("/pending")))
        await peer.recorded("pending")
        writer.write(early)
        await open_the_gate(peer)
        assert (await read_answer(reader)).status == 101
        assert (await peer.recorded("left"))["code"] == 4001


async def test_an_application_that_waits_learns_that_the_client_has_left(peer: Served) -> None:
    async with dialled(peer) as (_, writer):
        writer.write(request(fields(peer).items(), peer.keyed("/pending-receive")))
        await peer.recorded("pending")
    assert (await peer.recorded("left"))["code"] == 1006
    assert (await peer.recorded("accept"))["error"] == "ClientDisconnected"
    await assert_quiet(peer)


async def test_what_waits_for_an_answer_when_the_server_stops(loop: str, tmp_path: Path) -> None:
    with Server(SPECS[loop], APP, tmp_path) as server:
        peer = Served("plain", server)
        attempt = asyncio.create_task(refused(peer, "/pending-receive"))
        await peer.recorded("pending")
        server.terminate()
        assert (await attempt).status == 503
        assert (await peer.recorded("left"))["code"] == 1012
        assert await asyncio.to_thread(server.wait) == -signal.SIGTERM
        assert peer.errors() == []


async def test_a_denial_leaves_as_it_is_made(peer: Served) -> None:
    async with dialled(peer) as (reader, writer):
        writer.write(request(fields(peer).items(), peer.keyed("/deny-streamed")))
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 503")
        assert b"transfer-encoding: chunked" in head
        assert await reader.readexactly(9) == b"4\r\none \r\n"
        await open_the_gate(peer)
        assert await reader.read() == b"3\r\ntwo\r\n0\r\n\r\n"


async def test_a_client_may_leave_while_it_is_denied(peer: Served) -> None:
    async with dialled(peer) as (reader, writer):
        writer.write(request(fields(peer).items(), peer.keyed("/deny-streamed")))
        await reader.readuntil(b"one ")
    await open_the_gate(peer)
    await peer.recorded("ended", 2)
    await assert_quiet(peer, escaped=1)
    assert "ClientDisconnected" in peer.records("escaped")[0]["error"]


async def test_an_exception_before_a_denial_has_left_is_a_500(peer: Served) -> None:
    answer = await refused(peer, "/deny-unfinished")
    assert answer.status == 500
    assert SECRET.encode() not in answer.body
    await assert_one_error(peer)


# Messages


async def messages(peer: Served, count: int) -> list[Any]:
    await peer.recorded("message", count)
    return [ast.literal_eval(record["message"]) for record in peer.records("message")]


def meant(message: dict[str, Any]) -> dict[str, Any]:
    """The message without what is None: a key may be missing or be None."""
    return {key: value for key, value in message.items() if value is not None}


async def test_the_messages(peer: Served) -> None:
    async with peer.connect("/messages") as client:
        await client.send_text("grüß")
        await client.send_bytes(b"\x00")
        await client.send_text("")
        await client.send_bytes(b"")
        await client.close(4001, "tschüß")
        received = await messages(peer, 7)
    disconnect = {"type": "websocket.disconnect", "code": 4001, "reason": "tschüß"}
    assert [meant(message) for message in received] == [
        {"type": "websocket.receive", "text": "grüß"},
        {"type": "websocket.receive", "bytes": b"\x00"},
        {"type": "websocket.receive", "text": ""},
        {"type": "websocket.receive", "bytes": b""},
        *[disconnect] * 3,
    ]


async def test_a_message_that_an_application_changes_is_its_own(peer: Served) -> None:
    """What one connection does to an event is not seen by another."""
    async with peer.connect("/messages") as one:
        await one.close_without_code()
        received = await messages(peer, 3)
    assert [meant(message) for message in received] == [
        {"type": "websocket.disconnect", "code": 1005, "reason": ""}
    ] * 3


async def test_fragments_are_joined(peer: Served) -> None:
    async with peer.connect("/messages") as each:
        client = cast("SocketClient", each)
        await client.send_frame(Opcode.TEXT, b"gr\xc3", fin=False)
        await client.send_frame(Opcode.PING, b"between")
        await client.send_frame(Opcode.CONT, b"", fin=False)
        await client.send_frame(Opcode.CONT, b"\xbc\xc3\x9f", fin=True)
        await client.send_frame(Opcode.BINARY, b"", fin=False)
        await client.send_frame(Opcode.CONT, b"\x01\x02", fin=True)
        await client.close()
        received = await messages(peer, 5)
    assert [meant(message) for message in received[:2]] == [
        {"type": "websocket.receive", "text": "grüß"},
        {"type": "websocket.receive", "bytes": b"\x01\x02"},
    ]


async def test_a_ping_is_answered_while_the_application_is_busy(peer: Served) -> None:
    async with peer.connect("/ping-me") as each:
        client = cast("SocketClient", each)
        await client.receive()
        for payload in (b"", b"are you there?", bytes(125)):
            await client.send_frame(Opcode.PING, payload)
            async with asyncio.timeout(5):
                frame = await client._any_frame()
            assert (frame.opcode, bytes(frame.data)) == (Opcode.PONG, payload)
        # A pong that nobody asked for "is not expected" to be answered (RFC 6455, 5.5.3).
        await client.send_frame(Opcode.PONG, b"unasked")
        await client.send_frame(Opcode.PING, b"last")
        async with asyncio.timeout(5):
            assert bytes((await client._any_frame()).data) == b"last"
        await open_the_gate(peer)
        assert await closed(client) == (1000, "")
    await assert_quiet(peer)


@pytest.mark.parametrize("loop", ["yaat-uvloop"])
async def test_the_server_pings(loop: str, tmp_path: Path) -> None:
    options = ("--ws-ping-interval", "0.05", "--ws-ping-timeout", "20")
    with Server(SPECS[loop].but(*options), APP, tmp_path) as server:
        async with ServerPeer(server.spec, server).connect("/echo") as each:
            client = cast("SocketClient", each)
            for _ in range(3):
                async with asyncio.timeout(5):
                    frame = await client._any_frame()
                assert frame.opcode is Opcode.PING
                await client.send_frame(Opcode.PONG, bytes(frame.data))
            await client.send_text("still there")
            assert await client.receive() == "still there"


@pytest.mark.parametrize("loop", ["yaat-asyncio"])
async def test_who_does_not_answer_a_ping_is_cut(loop: str, tmp_path: Path) -> None:
    options = ("--ws-ping-interval", "0.05", "--ws-ping-timeout", "0.05")
    with Server(SPECS[loop].but(*options), APP, tmp_path) as server:
        peer = ServerPeer(server.spec, server)
        async with peer.connect("/learn") as each:
            client = cast("SocketClient", each)
            await client.receive()
            async with asyncio.timeout(5):
                while (frame := await client._any_frame()).opcode is Opcode.PING:
                    pass
            assert frame.opcode is Opcode.CLOSE
            assert bytes(frame.data[:2]) == struct.pack("!H", 1011)
            assert (await peer.recorded("left"))["code"] == 1006


async def test_receiving_may_be_given_up_and_nothing_is_lost(peer: Served) -> None:
    sent = [str(number) for number in range(100)]
    async with peer.connect("/given-up") as client:
        for number, text in enumerate([*sent, "end"]):
            await client.send_text(text)
            # Now and then a message comes just when the application loses its patience.
            await asyncio.sleep(0.0005 * (number % 8))
        received, impatience = await client.receive_json()
    assert received == [*sent, "end"]
    assert impatience > 0
    await assert_quiet(peer)


async def test_a_receiver_that_is_cancelled_leaves_all_to_the_other(peer: Served) -> None:
    async with peer.connect("/one-gives-up") as client:
        await client.receive()
        await open_the_gate(peer)
        for text in ("one", "two", "end"):
            await client.send_text(text)
        assert (await peer.recorded("received"))["by"] == ["one", "two"]
        assert await closed(client) == (1000, "")
    await assert_quiet(peer)


async def test_who_still_waits_to_send_is_told_when_the_handler_has_ended(peer: Served) -> None:
    path = "/return-while-senders-wait"
    async with peer.connect(path, receive_buffer=4096) as client:
        await peer.recorded("sending")
        await open_the_gate(peer)
        await peer.recorded("ended", 2)
        received, end = await read_all(client)
        assert end.code == 1000
        await peer.recorded("end", TASKS)
    assert {len(message) for message in received} == {BIG}
    numbers = [int(message.split()[0]) for message in received]
    assert numbers == list(range(len(numbers)))
    # It is our own end, so theirs is a message at the wrong time, unless the client was quicker.
    errors = {record["error"] for record in peer.records("end")}
    assert errors <= {"StateError", "ClientDisconnected"}


async def test_sending_may_be_given_up_and_every_message_is_whole(peer: Served) -> None:
    async with peer.connect("/sends-given-up", receive_buffer=4096) as client:
        told = await peer.recorded("given up")
        received: list[str] = []
        while (message := await client.receive()) != "end":
            received.append(str(message))
        assert await closed(client) == (1000, "")
    assert {len(message) for message in received} == {BIG}
    numbers = [int(message.split()[0]) for message in received]
    assert numbers == sorted(numbers)
    assert set(told["kept"]) <= set(numbers)
    assert len(told["given_up"]) == MESSAGES
    await assert_quiet(peer)


# Events


async def test_extra_keys_are_no_error(peer: Served) -> None:
    async with peer.connect("/extra-keys") as client:
        assert await client.receive() == "one"
        assert await client.receive() == b"two"
        assert await closed(client) == (4001, "three")
    await assert_quiet(peer)


@pytest.mark.parametrize(("given", "code"), [("nothing", 1000), ("code", 4001), ("none", 4001)])
async def test_what_a_close_may_leave_out(peer: Served, given: str, code: int) -> None:
    async with peer.connect(f"/short-close?given={given}") as client:
        assert await closed(client) == (code, "")
    await assert_quiet(peer)


def assert_says_what_to_do(record: dict[str, Any]) -> None:
    assert {"UsageError", "TypeError", "ValueError"} & set(record["kinds"]), record
    assert len(record["text"].split()) > 3, record


@pytest.mark.parametrize("case", mistakes.AFTER)
async def test_a_mistake_after_accept_is_refused(peer: Served, case: str) -> None:
    async with peer.connect(f"/mistake/{case}") as client:
        assert ascii(await client.receive()) == "'still here'"
        assert await closed(client) == (1000, "")
    assert_says_what_to_do(await peer.recorded("event"))
    await assert_quiet(peer)


@pytest.mark.parametrize("case", mistakes.AFTER)
async def test_a_mistake_after_accept_that_nobody_catches_is_a_1011(
    peer: Served, case: str
) -> None:
    async with peer.connect(f"/mistake/{case}?uncaught=1") as client:
        assert (await closed(client))[0] == 1011
    await peer.settled()
    assert len(peer.errors()) == 1
    assert peer.tracebacks() == 1


@pytest.mark.parametrize("case", mistakes.BEFORE)
async def test_a_mistake_before_accept_is_refused(peer: Served, case: str) -> None:
    async with peer.connect(f"/mistake/{case}?before=1", subprotocols=["chat"]) as client:
        assert client.subprotocol == "chat"
        assert "x-evil" not in dict(client.headers)
        assert await client.receive() == "still here"
    assert_says_what_to_do(await peer.recorded("event"))
    await assert_quiet(peer)


@pytest.mark.parametrize("case", mistakes.BEFORE)
async def test_a_mistake_before_accept_that_nobody_catches_is_a_500(
    peer: Served, case: str
) -> None:
    path = f"/mistake/{case}?before=1&uncaught=1"
    answer = await refused(peer, path, subprotocols=["chat"])
    assert answer.status == 500
    await peer.settled()
    assert len(peer.errors()) == 1
    assert peer.tracebacks() == 1


async def test_a_stray_cancellation_closes_with_1011(peer: Served) -> None:
    async with peer.connect("/cancelled") as client:
        assert (await closed(client))[0] == 1011


# What is legal when: the table of the life of a connection, held against the wire

LIVES = {
    "pending": State.PENDING,
    "open": State.OPEN,
    "denying": State.DENYING,
    "denied": State.CLOSING,
    "refused": State.CLOSING,
    "closing": State.CLOSING,
    "closed": State.CLOSED,
    "gone": State.GONE,
}


def raised(state: str, message: str) -> str:
    """What sending the message in the state raises."""
    if OUTGOING[message]["type"] in TABLE[LIVES[state]]:
        return "nothing"
    return "ClientDisconnected" if state == "gone" else "StateError"


@pytest.mark.parametrize("message", OUTGOING)
@pytest.mark.parametrize("state", STATES)
async def test_every_message_in_every_state(peer: Served, state: str, message: str) -> None:
    with suppress(Refused):
        async with peer.connect(f"/in/{state}/{message}") as client:
            if state == "gone":
                await client.hang_up()
            else:
                await closed(client)
    record = await peer.recorded("event")
    expected = raised(state, message)
    assert record["error"] == expected
    assert ("OSError" in record["kinds"]) is (expected == "ClientDisconnected")
    assert ("RuntimeError" in record["kinds"]) is (expected == "StateError")
    if expected == "StateError":
        assert f"websocket.{message}" in record["text"]


@pytest.mark.parametrize(
    ("end", "code"), [("answer", {4001}), ("cross", {4001, 4002}), ("fin", {1006}), ("rst", {1006})]
)
async def test_the_end_comes_after_our_own_close(peer: Served, end: str, code: set[int]) -> None:
    async with peer.connect("/close-and-stay") as each:
        client = cast("SocketClient", each)
        await peer.recorded("closing")
        await client.send_text("in flight")
        if end == "cross":
            await client.send_frame(Opcode.CLOSE, struct.pack("!H", 4002))
        if end in {"fin", "rst"}:
            await (client.vanish() if end == "fin" else client.reset())
        else:
            assert await closed(client) == (4001, "so long")
        left = await peer.recorded("left")
    assert left["code"] in code
    assert left["received"] in ([], ["in flight"])
    await assert_quiet(peer)


async def test_a_close_that_is_not_answered_is_waited_for_only_so_long(tmp_path: Path) -> None:
    spec = ServerSpec("yaat-hasty", uvicorn("apps.classes:Hasty", "uvloop", "httptools"))
    with Server(spec, APP, tmp_path) as server:
        peer = Served("plain", server)
        async with peer.connect("/close-and-stay") as each:
            client = cast("SocketClient", each)
            async with asyncio.timeout(5):
                assert (await client._any_frame()).opcode is Opcode.CLOSE
                with pytest.raises(Closed):
                    await client._any_frame()
            assert (await peer.recorded("left"))["code"] == 1006
        await assert_quiet(peer)


@pytest.mark.parametrize("end", ["close", "fin", "rst"])
async def test_the_very_next_send_after_the_loss_raises(peer: Served, end: str) -> None:
    async with peer.connect("/send-late") as client:
        await client.receive()
        await peer.recorded("busy")
        await {"close": client.hang_up, "fin": client.vanish, "rst": client.reset}[end]()
        await open_the_gate(peer)
        for event in ("first send", "second send"):
            assert (await peer.recorded(event))["error"] == "ClientDisconnected"
        assert (await peer.recorded("close"))["error"] == "nothing"
    await assert_quiet(peer)
