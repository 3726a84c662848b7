"""Servers and clients over what is no plain TCP: a unix socket, and TLS."""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from clients import TIMEOUT, Client, Headers, Http1, Response, SocketClient
from peers import ServerPeer
from servers import START_TIMEOUT, Server, ServerSpec


class UnixServer(Server):
    """A server that listens on a unix socket."""

    def __init__(self, spec: ServerSpec, app: str, directory: Path) -> None:
        self.path = str(directory / "socket")
        super().__init__(spec.but("--uds", self.path), app, directory)

    def _dial(self) -> socket.socket:
        peer = socket.socket(socket.AF_UNIX)
        peer.settimeout(START_TIMEOUT)
        try:
            peer.connect(self.path)
        except OSError:
            peer.close()
            raise
        return peer


class TlsServer(Server):
    """A server that speaks TLS with a certificate of its own making."""

    def __init__(self, spec: ServerSpec, app: str, directory: Path) -> None:
        self.certificate, key = certificate(directory)
        options = ("--ssl-certfile", str(self.certificate), "--ssl-keyfile", str(key))
        super().__init__(spec.but(*options), app, directory)

    def _dial(self) -> socket.socket:
        return self.context().wrap_socket(super()._dial(), server_hostname="127.0.0.1")

    def context(self) -> ssl.SSLContext:
        """What a client needs to trust the server."""
        return ssl.create_default_context(cafile=self.certificate)


def certificate(directory: Path) -> tuple[Path, Path]:
    """Write a self-signed certificate for 127.0.0.1 and its key, and return where."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = directory / "certificate.pem", directory / "key.pem"
    paths[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths


class UnixWire(Http1):
    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    async def open(self, url: str, headers: Headers, receive_buffer: int | None) -> Response:
        self.reader, self.writer = await asyncio.open_unix_connection(self._path)
        address = urlsplit(url)
        return await self.handshake(address.netloc, f"{address.path}?{address.query}", headers)


class TlsWire(Http1):
    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__()
        self._context = context

    async def open(self, url: str, headers: Headers, receive_buffer: int | None) -> Response:
        address = urlsplit(url)
        self.reader, self.writer = await asyncio.open_connection(
            address.hostname, address.port, ssl=self._context
        )
        return await self.handshake(address.netloc, f"{address.path}?{address.query}", headers)

    def end(self) -> None:
        """TLS knows no half-closed connection: the whole of it ends with `finish`."""


@asynccontextmanager
async def connect_over(
    wire: Http1, url: str, subprotocols: Sequence[str] = (), headers: Iterable[tuple[str, str]] = ()
) -> AsyncIterator[SocketClient]:
    """Open a connection over `wire`, see `clients.connect`."""
    client = SocketClient(wire, url, TIMEOUT)
    try:
        await client.open(subprotocols, headers, None)
        yield client
        await client.leave()
    finally:
        await wire.cut()


class WirePeer(ServerPeer):
    """An application served over what is no plain TCP."""

    def connect(self, path: str, **options: Any) -> AbstractAsyncContextManager[Client]:
        return connect_over(self._wire(), self.server.url(self.keyed(path)), **options)

    def _wire(self) -> Http1:
        if isinstance(self.server, TlsServer):
            return TlsWire(self.server.context())
        assert isinstance(self.server, UnixServer)
        return UnixWire(self.server.path)
