"""One WebSocket client for every server, which shows what is on the wire and nothing else.

    async with connect(server.url("/echo"), subprotocols=["chat"]) as client:
        await client.send_text("hello")
        assert await client.receive() == "hello"

It reads only inside `receive` and `close`, so that a client that never receives is a client that
never reads. It answers pings and close frames, compresses nothing, and corrects nothing: a frame
that RFC 6455 forbids is a `Violation`. Every wait is bounded; its `TimeoutError` says what was
awaited.
"""

import asyncio
import base64
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Generator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

import h2.config
import h2.connection
import h2.events
import h2.settings
import h11
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader
from websockets.utils import accept_key

TIMEOUT = 5.0
EMPTY_CLOSE = 1005
NO_CLOSE = 1006
# RFC 6455, 7.4.1: reserved for the end that has no close frame to show.
NEVER_ON_THE_WIRE = {1005, 1006, 1015}

Headers = list[tuple[str, str]]


class Closed(Exception):  # noqa: N818 - the end of a connection is not an error
    """The connection ended.

    Attributes:
        code: What the peer's close frame said; 1005 when it was empty, 1006 when none came.
        reason: Its text.
    """

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class Refused(Exception):  # noqa: N818 - a refusal is an answer
    """The handshake was answered with an HTTP response."""

    def __init__(self, status: int, headers: Headers, body: bytes) -> None:
        super().__init__(status, body)
        self.status = status
        self.headers = headers
        self.body = body


class Violation(AssertionError):  # noqa: N818 - what failed is the server
    """The server did what RFC 6455 or RFC 8441 forbids."""


class Client(Protocol):
    """What a test sees of a connection, over a socket or in process."""

    subprotocol: str | None
    headers: Headers
    timeout: float

    async def send_text(self, data: str) -> None: ...
    async def send_bytes(self, data: bytes) -> None: ...
    async def send_json(self, data: Any) -> None: ...
    async def receive(self) -> str | bytes:
        """The next message.

        Raises:
            Closed: The connection ended; again at each later call.
        """
        ...

    async def receive_json(self) -> Any: ...
    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Send a close frame and read until the server answered it or hung up."""
        ...

    async def close_without_code(self) -> None:
        """The same with an empty close frame."""
        ...

    async def hang_up(self, code: int | None = 1000, reason: str = "") -> None:
        """Send a close frame, an empty one without a code, and a FIN; do not wait."""
        ...

    async def vanish(self) -> None:
        """End the connection with a FIN, without a close frame."""
        ...

    async def reset(self) -> None:
        """End the connection with an RST."""
        ...


@asynccontextmanager
async def connect(
    url: str,
    *,
    subprotocols: Sequence[str] = (),
    headers: Iterable[tuple[str, str]] = (),
    http_version: str = "1.1",
    receive_buffer: int | None = None,
    timeout: float = TIMEOUT,  # noqa: ASYNC109 - the bound of every later wait too
) -> AsyncIterator["SocketClient"]:
    """Open a connection; what is still open at the end of the block is closed with 1000.

    Args:
        url: `ws://host:port/path?query`.
        subprotocols: Offered, in this order.
        headers: Added to the request.
        http_version: "1.1", or "2" for RFC 8441 with prior knowledge.
        receive_buffer: Of the socket (SO_RCVBUF): a small one makes a client slow soon.
        timeout: Of every wait.

    Raises:
        Refused: The server answered with another response.
    """
    wire = Http2() if http_version == "2" else Http1()
    client = SocketClient(wire, url, timeout)
    try:
        await client.open(subprotocols, headers, receive_buffer)
        yield client
        await client.leave()
    finally:
        await wire.cut()


class Response:
    """The answer to a handshake; `body` is there when it was no success."""

    def __init__(self, status: int, headers: Headers) -> None:
        self.status = status
        self.headers = headers
        self.body = b""

    def header(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key == name]
        if len(values) > 1:
            raise Violation(f"{name} more than once: {values}")
        return values[0] if values else None


class Wire:
    """A TCP connection that carries one WebSocket."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def open(self, url: str, headers: Headers, receive_buffer: int | None) -> Response:
        """Connect and send the handshake."""
        address = urlsplit(url)
        assert address.hostname is not None
        peer = socket.socket()
        if receive_buffer is not None:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        peer.setblocking(False)
        await asyncio.get_running_loop().sock_connect(peer, (address.hostname, address.port))
        self.reader, self.writer = await asyncio.open_connection(sock=peer)
        target = f"{address.path or '/'}?{address.query}" if address.query else address.path or "/"
        return await self.handshake(address.netloc, target, headers)

    async def handshake(self, host: str, target: str, headers: Headers) -> Response:
        raise NotImplementedError

    async def read(self) -> bytes:
        """Bytes of WebSocket frames; empty at the end."""
        raise NotImplementedError

    async def write(self, data: bytes) -> None:
        raise NotImplementedError

    async def receive_from_socket(self) -> bytes:
        try:
            return await self.reader.read(2**16)
        except ConnectionError:
            return b""

    def end(self) -> None:
        """Send FIN; what the server still sends can be read."""
        with suppress(OSError):
            self.writer.write_eof()

    def finish(self) -> None:
        """Send FIN; then close, whatever is still unread."""
        self.end()
        self.writer.close()

    def reset(self) -> None:
        """Send RST: SO_LINGER with a time of zero."""
        peer = self.writer.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def finished(self) -> None:
        """Wait until all that was written has left and the socket is closed."""
        with suppress(OSError):
            await self.writer.wait_closed()

    async def cut(self) -> None:
        """Free the socket, also when it was never opened."""
        if hasattr(self, "writer"):
            self.writer.transport.abort()
            await self.finished()


class Http1(Wire):
    """RFC 6455, section 4: an Upgrade over HTTP/1.1."""

    def __init__(self) -> None:
        self._http = h11.Connection(h11.CLIENT)
        self._left_over = b""

    async def handshake(self, host: str, target: str, headers: Headers) -> Response:
        key = base64.b64encode(os.urandom(16)).decode()
        fields = [("host", host), ("connection", "Upgrade"), ("upgrade", "websocket")]
        fields += [("sec-websocket-key", key), *headers]
        request = h11.Request(method="GET", target=target, headers=fields)
        await self.write(self._http.send(request) + self._http.send(h11.EndOfMessage()))
        response = await self._response()
        if response.status == 101 and response.header("sec-websocket-accept") != accept_key(key):
            raise Violation(f"sec-websocket-accept does not fit: {response.headers}")
        return response

    async def _response(self) -> Response:
        event = await self._next_event()
        if not isinstance(event, h11.InformationalResponse | h11.Response):
            raise Closed(NO_CLOSE, "the server hung up instead of answering the handshake")
        fields = [(name.decode(), value.decode("latin-1")) for name, value in event.headers]
        response = Response(event.status_code, fields)
        if event.status_code == 101:
            self._left_over = self._http.trailing_data[0]
            return response
        while isinstance(data := await self._next_event(), h11.Data):
            response.body += data.data
        if not isinstance(data, h11.EndOfMessage):
            raise Violation(f"the body ends early: {response.body!r}")
        return response

    async def _next_event(self) -> object:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self.receive_from_socket())
        except h11.RemoteProtocolError as error:
            raise Violation(f"the answer to the handshake is not HTTP: {error}") from error
        return event

    async def read(self) -> bytes:
        data, self._left_over = self._left_over, b""
        return data or await self.receive_from_socket()

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()


class Http2(Wire):
    """RFC 8441: extended CONNECT on stream 1 of an HTTP/2 connection of its own."""

    def __init__(self) -> None:
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self.http = h2.connection.H2Connection(config)
        self.stream = 0
        self._settings_seen = False
        self._response: Response | None = None
        self._received = bytearray()
        self._to_acknowledge = 0
        self._ended = False

    async def handshake(self, host: str, target: str, headers: Headers) -> Response:
        self.http.initiate_connection()
        await self._flush()
        await self._pump_until(lambda: self._settings_seen)
        # RFC 8441, 3: a client must not send :protocol before it received the setting.
        if self.http.remote_settings.enable_connect_protocol != 1:
            raise Violation("the server does not offer SETTINGS_ENABLE_CONNECT_PROTOCOL")
        self.stream = self.http.get_next_available_stream_id()
        fields = [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http")]
        fields += [(":authority", host), (":path", target), *headers]
        self.http.send_headers(self.stream, fields)
        await self._flush()
        await self._pump_until(lambda: self._response is not None)
        if self._response is None:
            raise Closed(NO_CLOSE, "the server hung up instead of answering the handshake")
        return await self._whole(self._response)

    async def _whole(self, response: Response) -> Response:
        if response.status == 200:
            return response
        await self._pump_until(lambda: self._ended)
        response.body = bytes(self._received)
        return response

    async def read(self) -> bytes:
        await self._pump_until(lambda: bool(self._received) or self._ended)
        data = bytes(self._received)
        self._received.clear()
        if self._to_acknowledge and not self._ended:
            self.http.acknowledge_received_data(self._to_acknowledge, self.stream)
            self._to_acknowledge = 0
            with suppress(ConnectionError):
                await self._flush()
        return data

    async def write(self, data: bytes) -> None:
        while data:
            await self._pump_until(lambda: self._window() > 0 or self._ended)
            if self._ended:
                raise ConnectionResetError("the stream has ended")
            size = self._window()
            self.http.send_data(self.stream, data[:size])
            data = data[size:]
            await self._flush()

    def _window(self) -> int:
        window = self.http.local_flow_control_window(self.stream)
        return min(window, self.http.max_outbound_frame_size)

    async def _flush(self) -> None:
        self.writer.write(self.http.data_to_send())
        await self.writer.drain()

    async def _pump_until(self, condition: "Condition") -> None:
        """Read from the socket until the condition holds or the connection ended."""
        while not condition():
            data = await self.receive_from_socket()
            if not data:
                self._ended = True
                return
            for event in self.http.receive_data(data):
                self._handle(event)
            with suppress(ConnectionError):
                await self._flush()

    def _handle(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RemoteSettingsChanged():
                self._settings_seen = True
            case h2.events.ResponseReceived():
                fields = cast("Headers", event.headers)
                status = int(dict(fields)[":status"])
                self._response = Response(status, [f for f in fields if f[0][0] != ":"])
            case h2.events.DataReceived():
                self._received += event.data
                self._to_acknowledge += event.flow_controlled_length
            case h2.events.StreamEnded() | h2.events.StreamReset():
                self._ended = True
            case h2.events.ConnectionTerminated():
                self._ended = True

    def reset_stream(self) -> None:
        """Send RST_STREAM with CANCEL, which RFC 8441, 5 puts in place of a TCP reset."""
        self.http.reset_stream(self.stream, error_code=0x8)
        self.writer.write(self.http.data_to_send())
        self._ended = True


class Condition(Protocol):
    def __call__(self) -> bool: ...


class Frames:
    """Frames out of the bytes that a server sent."""

    def __init__(self) -> None:
        self._bytes = StreamReader()
        self._parser: Generator[None, None, Frame] | None = None

    def feed(self, data: bytes) -> None:
        if data:
            self._bytes.feed_data(data)
        else:
            self._bytes.feed_eof()

    def next(self) -> Frame | None:
        """A whole frame, or None while bytes are missing.

        Raises:
            EOFError: There will be no more frames.
        """
        self._parser = self._parser or Frame.parse(self._bytes.read_exact, mask=False)
        try:
            next(self._parser)
        except StopIteration as parsed:
            self._parser = None
            return cast("Frame", parsed.value)
        return None


class SocketClient:
    """A `Client` over a real socket."""

    def __init__(self, wire: Http1 | Http2, url: str, timeout: float) -> None:
        self.wire = wire
        self.url = url
        self.timeout = timeout
        self.subprotocol: str | None = None
        self.headers: Headers = []
        self.closed: Closed | None = None
        self._left = False
        self._frames = Frames()

    async def open(
        self,
        subprotocols: Sequence[str],
        headers: Iterable[tuple[str, str]],
        receive_buffer: int | None,
    ) -> None:
        fields = [("sec-websocket-version", "13")]
        if subprotocols:
            fields.append(("sec-websocket-protocol", ", ".join(subprotocols)))
        async with self._bounded("an answer to the handshake"):
            response = await self.wire.open(self.url, [*fields, *headers], receive_buffer)
        if response.status != (200 if isinstance(self.wire, Http2) else 101):
            raise Refused(response.status, response.headers, response.body)
        self.headers = response.headers
        self.subprotocol = response.header("sec-websocket-protocol")
        if self.subprotocol is not None and self.subprotocol not in subprotocols:
            # RFC 6455, 4.1: the client must fail the connection.
            raise Violation(f"the subprotocol {self.subprotocol!r} was never offered")

    @asynccontextmanager
    async def _bounded(self, what: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self.timeout):
                yield
        except TimeoutError:
            raise TimeoutError(f"{self.url}: waited {self.timeout} s for {what}") from None

    async def send_text(self, data: str) -> None:
        await self.send_frame(Opcode.TEXT, data.encode())

    async def send_bytes(self, data: bytes) -> None:
        await self.send_frame(Opcode.BINARY, data)

    async def send_json(self, data: Any) -> None:
        await self.send_text(json.dumps(data))

    async def send_frame(self, opcode: Opcode, data: bytes, *, fin: bool = True) -> None:
        """Send one frame, legal or not.

        Raises:
            Closed: The server has hung up.
        """
        frame = bytes(Frame(opcode, data, fin).serialize(mask=True))
        try:
            async with self._bounded(f"room to send {len(data)} bytes"):
                await self.wire.write(frame)
        except ConnectionError:
            raise Closed(NO_CLOSE) from None

    async def receive(self) -> str | bytes:
        async with self._bounded("a message"):
            return await self._message()

    async def receive_json(self) -> Any:
        return json.loads(await self.receive())

    async def _message(self) -> str | bytes:
        opcode, data = None, b""
        while True:
            frame = await self.receive_frame()
            if (frame.opcode is Opcode.CONT) is (opcode is None):
                raise Violation(f"a {frame.opcode.name} frame is out of place")
            opcode = opcode or frame.opcode
            data += frame.data
            if frame.fin:
                return data.decode() if opcode is Opcode.TEXT else data

    async def receive_frame(self) -> Frame:
        """The next data frame; control frames are answered.

        Raises:
            Closed: The connection ended.
        """
        while True:
            frame = await self._any_frame()
            match frame.opcode:
                case Opcode.PING:
                    await self.send_frame(Opcode.PONG, bytes(frame.data))
                case Opcode.CLOSE:
                    raise await self._closed_by(frame)
                case Opcode.TEXT | Opcode.BINARY | Opcode.CONT:
                    return frame

    async def _any_frame(self) -> Frame:
        if self.closed is not None:
            raise self.closed
        try:
            while (frame := self._frames.next()) is None:
                self._frames.feed(await self.wire.read())
        except EOFError:
            self.closed = Closed(NO_CLOSE)
            raise self.closed from None
        return frame

    async def _closed_by(self, frame: Frame) -> Closed:
        self.closed = close_frame(bytes(frame.data))
        if not self._left:
            # RFC 6455, 5.5.1: an endpoint that did not send one answers with a close frame.
            await self._begin_close(bytes(frame.data[:2]))
        # RFC 6455, 7.1.1: a client "MAY close the connection at any time"; there are servers that
        # end only then.
        self.wire.end()
        return self.closed

    async def close(self, code: int = 1000, reason: str = "") -> None:
        await self._close(struct.pack("!H", code) + reason.encode())

    async def close_without_code(self) -> None:
        await self._close(b"")

    async def _close(self, payload: bytes) -> None:
        await self._begin_close(payload)
        with suppress(Closed):
            async with self._bounded("the answer to a close frame"):
                while True:
                    await self.receive_frame()

    async def _begin_close(self, payload: bytes) -> None:
        if not self._left:
            self._left = True
            with suppress(Closed):
                await self.send_frame(Opcode.CLOSE, payload)

    async def hang_up(self, code: int | None = 1000, reason: str = "") -> None:
        await self._begin_close(struct.pack("!H", code) + reason.encode() if code else b"")
        self.wire.end()

    async def leave(self) -> None:
        """What the end of the block does: a close frame if none was sent, and a FIN."""
        if not self._left:
            await self.hang_up()
        self.wire.finish()
        async with self._bounded("the server to take what was sent"):
            await self.wire.finished()

    async def vanish(self) -> None:
        self._left = True
        self.wire.finish()
        async with self._bounded("the server to take what was sent"):
            await self.wire.finished()

    async def reset(self) -> None:
        self._left = True
        self.wire.reset()
        await self.wire.finished()


def close_frame(payload: bytes) -> Closed:
    """What a close frame said.

    Raises:
        Violation: RFC 6455, 5.5.1 and 7.4 forbid such a frame.
    """
    if not payload:
        return Closed(EMPTY_CLOSE)
    if len(payload) == 1:
        raise Violation("a close frame with half a code")
    code = int.from_bytes(payload[:2], "big")
    if not 1000 <= code <= 4999 or code in NEVER_ON_THE_WIRE:
        raise Violation(f"the close code {code} travelled")
    return Closed(code, payload[2:].decode())
