"""A load that costs little: plain sockets, one epoll, frames that were made beforehand.

The first answer on a connection is parsed and compared by value. After that the same frame must
come again, bit by bit: one comparison checks the header, the length and the content of a message,
so that the load need not parse anything while it measures. permessage-deflate is not offered.
"""

import base64
import hashlib
import select
import socket
import time
from types import TracebackType
from typing import Self

from benchmarks.exchange import (
    CLOSE,
    FIN,
    Exchange,
    WrongAnswerError,
    client_frame,
    head_size,
    payload_size,
)

NONCE = base64.b64encode(b"yaat measures 16")
ACCEPT = base64.b64encode(hashlib.sha1(NONCE + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
READ = 1 << 18
PATIENCE = 30.0  # seconds; a peer that is silent for so long has failed


def handshake(port: int, path: str) -> socket.socket:
    """RFC 6455 4.1: open a connection and read the server's half of the handshake."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {NONCE.decode()}",
        "Sec-WebSocket-Version: 13",
        "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)",
        "Accept-Encoding: gzip, deflate, br",
        "Accept-Language: en-GB,en;q=0.9",
    ]
    sock.sendall("\r\n".join([*lines, "", ""]).encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += exactly(sock, 1)
    if not answer.startswith(b"HTTP/1.1 101 ") or ACCEPT not in answer:
        raise WrongAnswerError(f"{path}: {answer.splitlines()[0]!r}")
    return sock


def exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            raise WrongAnswerError(f"the connection ended after {bytes(data[:80])!r}")
        data += part
    return bytes(data)


class Connection:
    """One socket that keeps a window of messages in flight."""

    def __init__(self, port: int, exchange: Exchange, window: int) -> None:
        self.sock = handshake(port, exchange.path)
        self.request = exchange.request
        self.reply = self.first_reply(exchange)
        self.window = window
        self.in_flight = 0
        self.incoming = b""
        self.outgoing = b""
        self.sock.setblocking(False)

    def first_reply(self, exchange: Exchange) -> bytes:
        """Ask once and see whether the answer is right."""
        self.sock.sendall(self.request)
        start = exactly(self.sock, 2)
        head = start + exactly(self.sock, head_size(start) - 2)
        payload = exactly(self.sock, payload_size(head))
        exchange.check(head[0] ^ FIN, payload)
        return head + payload

    def take(self) -> int:
        """Read what has come, and say how many messages that were."""
        data = self.sock.recv(READ)
        if data == self.reply and not self.incoming:  # nearly always
            self.in_flight -= 1
            return 1
        if not data:
            raise WrongAnswerError("the server ended the connection")
        return self.take_apart(self.incoming + data)

    def take_apart(self, data: bytes) -> int:
        count, rest = divmod(len(data), len(self.reply))
        self.incoming = data[len(data) - rest :]
        if data != self.reply * count + self.incoming or not self.reply.startswith(self.incoming):
            raise WrongAnswerError(f"another answer than the first: {data[:80]!r}")
        self.in_flight -= count
        return count

    def send(self, count: int) -> bool:
        """Send as many messages; False if the socket did not take them whole."""
        self.in_flight += count
        return self.push(self.outgoing + self.request * count)

    def push(self, data: bytes) -> bool:
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        self.outgoing = data[sent:]
        return not self.outgoing

    def close(self) -> None:
        """Leave as a good client does, so that the server is at rest in the others' turns."""
        self.sock.settimeout(PATIENCE)
        self.sock.sendall(client_frame(CLOSE, (1000).to_bytes(2)))
        while self.sock.recv(READ):
            pass
        self.sock.close()


class Load:
    """Connections that all do the same."""

    def __init__(self, port: int, exchange: Exchange, connections: int, window: int) -> None:
        opened = [Connection(port, exchange, window) for _ in range(connections)]
        self.connections = {connection.sock.fileno(): connection for connection in opened}
        self.poller = select.epoll()
        for descriptor in self.connections:
            self.poller.register(descriptor, select.EPOLLIN)

    def __enter__(self) -> Self:
        for descriptor, connection in self.connections.items():
            self.send(descriptor, connection.window)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.settle()
        for connection in self.connections.values():
            connection.close() if error is None else connection.sock.close()
        self.poller.close()

    def run(self, seconds: float) -> int:
        """Answer every reply with the next message; count the replies."""
        count, until = 0, time.perf_counter() + seconds
        while time.perf_counter() < until:
            for descriptor, event in self.ready():
                if event & select.EPOLLIN:
                    came = self.connections[descriptor].take()
                    count += came
                    if came:
                        self.send(descriptor, came)
                else:
                    self.send(descriptor, 0)
        return count

    def settle(self) -> None:
        """Let everything that is in flight arrive."""
        while any(connection.in_flight for connection in self.connections.values()):
            for descriptor, event in self.ready():
                if event & select.EPOLLIN:
                    self.connections[descriptor].take()
                else:
                    self.send(descriptor, 0)

    def ready(self) -> list[tuple[int, int]]:
        events = self.poller.poll(PATIENCE)
        if not events:
            raise WrongAnswerError(f"nothing came for {PATIENCE:.0f} seconds")
        return events

    def send(self, descriptor: int, count: int) -> None:
        connection = self.connections[descriptor]
        blocked = bool(connection.outgoing)
        whole = connection.send(count)
        if blocked or not whole:
            wanted = select.EPOLLIN if whole else select.EPOLLIN | select.EPOLLOUT
            self.poller.modify(descriptor, wanted)
