"""The commands of docs/how-to/tls.md, over real TLS."""

import asyncio
import json
import os
import shlex
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from clients import Closed, Violation, connect
from debian import program
from documents import DOCS, commands, tables, write
from nginx import Nginx
from servers import Server, ServerSpec, yaat_run
from test_docs_nginx import configuration
from wires import TlsWire, certificate, connect_over

PAGE = DOCS / "how-to" / "tls.md"
APP = """
from yaat import WebSocket, Yaat

app = Yaat()


@app.websocket_route("/echo")
async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


@app.websocket_route("/told")
async def told(websocket: WebSocket) -> None:
    await websocket.accept()
    assert websocket.client
    headers = dict(websocket.headers)
    known = sorted(websocket.scope["extensions"])
    await websocket.send_json([str(websocket.url), websocket.client.host, headers, known])
    await websocket.receive()
"""
RUNS = [words for words in commands(PAGE) if words[:2] == ["yaat", "run"]]
[OPENSSL] = [words for words in commands(PAGE) if words[0] == "openssl"]


class Tls(Server):
    """`yaat run` with options of the page, in a directory with its certificates."""

    def __init__(self, directory: Path, options: list[str], ca: Path) -> None:
        (directory / "app.py").write_text(APP)
        self.context = ssl.create_default_context(cafile=ca)
        spec = ServerSpec("tls", yaat_run("uvloop")).but(*options)
        super().__init__(spec, "app:app", directory, {"PYTHONPATH": str(directory)})

    def _dial(self) -> ssl.SSLSocket:
        return self.context.wrap_socket(super()._dial(), server_hostname="127.0.0.1")

    @property
    def https(self) -> str:
        return f"wss://127.0.0.1:{self.port}"


def tls_options(words: list[str], directory: Path) -> list[str]:
    """The options for TLS in a command line of the page, their files in a directory."""
    begin = words.index("--ssl-certfile")
    return [str(directory / word) if word.endswith(".pem") else word for word in words[begin:]]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A directory in which the certificate for development was made, as the page says."""
    subprocess.run(
        [program("openssl", "openssl"), *OPENSSL[1:]], cwd=tmp_path, check=True, capture_output=True
    )
    return tmp_path


@pytest.fixture
def server(files: Path) -> Iterator[Tls]:
    with Tls(files, tls_options(RUNS[0], files), files / "fullchain.pem") as server:
        yield server


async def told(wire: TlsWire, url: str) -> tuple[str, str, Mapping[str, str], list[str]]:
    async with connect_over(wire, url) as client:
        url, host, headers, known = await client.receive_json()
        return url, host, headers, known


def serial(server: Server) -> str:
    """Of the certificate that the server shows."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with context.wrap_socket(Server._dial(server)) as peer:
        shown = peer.getpeercert(binary_form=True)
    assert shown is not None
    return ssl.DER_cert_to_PEM_cert(shown)


# Certificate files


async def test_development(server: Tls, files: Path) -> None:
    url = f"{server.https}/told"
    assert (await told(TlsWire(server.context), url))[0] == url
    write(PAGE, files)
    call = f"import trusted; print(trusted.hello('{server.https}/echo'))"
    done = await asyncio.create_subprocess_exec(
        sys.executable, "-c", call, cwd=files, stdout=subprocess.PIPE
    )
    assert (await done.communicate())[0] == b"hello\n"


async def test_a_client_that_does_not_trust_it_leaves_no_trace(server: Tls) -> None:
    mark = server.mark()
    with pytest.raises(ssl.SSLCertVerificationError):
        await told(TlsWire(ssl.create_default_context()), f"{server.https}/told")
    await told(TlsWire(server.context), f"{server.https}/told")
    [line] = server.written_since(mark).splitlines()
    assert "[accepted]" in line


def test_how_to_see_that_it_works(server: Tls, files: Path) -> None:
    said = shlex.split(f"openssl s_client -connect 127.0.0.1:{server.port}")
    assert shlex.join(said).replace(str(server.port), "8443") in PAGE.read_text()
    done = subprocess.run(
        [*said, "-CAfile", str(files / "fullchain.pem")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Verify return code: 0 (ok)" in done.stdout


@pytest.fixture
def locked(files: Path) -> Path:
    """The key of the certificate, encrypted."""
    secret = ["-aes256", "-passout", "pass:secret", "-in", "privkey.pem", "-out", "locked.pem"]
    subprocess.run(
        [program("openssl", "openssl"), "ec", *secret], cwd=files, check=True, capture_output=True
    )
    return files / "locked.pem"


async def test_an_encrypted_key(files: Path, locked: Path) -> None:
    options = [*tls_options(RUNS[0], files)[:-1], str(locked), "--ssl-keyfile-password", "secret"]
    with Tls(files, options, files / "fullchain.pem") as server:
        await told(TlsWire(server.context), f"{server.https}/told")


async def test_a_tls_handshake_that_does_not_end(files: Path) -> None:
    options = [*tls_options(RUNS[0], files), "--handshake-timeout", "1"]
    with Tls(files, options, files / "fullchain.pem") as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        async with asyncio.timeout(20):
            assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


def test_a_key_that_is_of_another(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    cert, _ = certificate(tmp_path)
    _, key = certificate(tmp_path / "other")
    (tmp_path / "app.py").write_text(APP)
    command = [sys.executable, "-m", "yaat", "run", "app:app", "--port", "0"]
    done = subprocess.run(
        [*command, "--ssl-certfile", cert, "--ssl-keyfile", key],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode != 0
    assert "KEY_VALUES_MISMATCH" in done.stderr
    assert ["`KEY_VALUES_MISMATCH` at the start"] in [row[:1] for row in tables(PAGE)[0]]


# Renewals


async def test_renewal_with_workers(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    options = ["--ssl-certfile", str(cert), "--ssl-keyfile", str(key), "--workers", "2"]
    with Tls(tmp_path, options, cert) as server:
        async with asyncio.timeout(30):  # the second worker may read its certificate later
            while server.written_since(0).count("Application startup complete.") < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        old = serial(server)
        async with connect_over(TlsWire(server.context), f"{server.https}/echo") as client:
            certificate(tmp_path)
            assert serial(server) == old
            os.kill(server.pid, signal.SIGHUP)
            client.timeout = 30
            with pytest.raises(Closed) as end:
                await client.receive()
            assert end.value.code == 1012
        async with asyncio.timeout(30):
            while serial(server) == old:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)
        assert server.alive


async def test_renewal_by_nginx(tmp_path: Path) -> None:
    paths = certificate(tmp_path)
    said = ("/etc/ssl/example.com/fullchain.pem", "/etc/ssl/example.com/privkey.pem")
    (tmp_path / "yaat-proxy.conf").write_text(configuration("yaat-proxy.conf"))
    plain = Plain(tmp_path)
    with plain as server:
        instead = dict(zip(said, map(str, paths), strict=True))
        instead["127.0.0.1:8000"] = f"127.0.0.1:{server.port}"
        with Nginx(configuration("tls.conf"), tmp_path, instead, master=True) as nginx:
            wire = TlsWire(ssl.create_default_context(cafile=paths[0]))
            async with connect_over(wire, f"wss://{nginx.tls_host}/echo") as client:
                certificate(tmp_path)
                nginx.reload()
                renewed = ssl.create_default_context(cafile=paths[0])
                async with asyncio.timeout(20):
                    while not await is_trusted(renewed, f"wss://{nginx.tls_host}/told"):  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
                await client.send_text("still here")
                assert await client.receive() == "still here"


async def is_trusted(context: ssl.SSLContext, url: str) -> bool:
    try:
        await told(TlsWire(context), url)
    except ssl.SSLCertVerificationError:
        return False
    return True


# Proxies


class Plain(Server):
    """`yaat run` without TLS."""

    def __init__(self, directory: Path, *options: str) -> None:
        (directory / "app.py").write_text(APP)
        spec = ServerSpec("plain", yaat_run("uvloop")).but(*options)
        super().__init__(spec, "app:app", directory, {"PYTHONPATH": str(directory)})


FORGED = [("x-forwarded-for", "192.0.2.1, 192.0.2.7"), ("x-forwarded-proto", "https")]
PROXIED = next(words for words in RUNS if "--forwarded-allow-ips" in words)[-1]


@pytest.mark.parametrize(
    ("options", "scheme", "host"),
    [
        ((), "wss", "192.0.2.7"),
        (("--forwarded-allow-ips", PROXIED), "ws", "127.0.0.1"),
        (("--forwarded-allow-ips", f"{PROXIED},127.0.0.1"), "wss", "192.0.2.7"),
        (("--forwarded-allow-ips", f"{PROXIED},127.0.0.0/8,192.0.2.7"), "wss", "192.0.2.1"),
        (("--forwarded-allow-ips", "*"), "wss", "192.0.2.1"),
        (("--no-proxy-headers",), "ws", "127.0.0.1"),
    ],
)
async def test_whom_it_believes(
    options: tuple[str, ...], scheme: str, host: str, tmp_path: Path
) -> None:
    with Plain(tmp_path, *options) as server:
        async with connect(server.url("/told"), headers=FORGED) as client:
            url, address, _, _ = await client.receive_json()
    assert (url.partition(":")[0], address) == (scheme, host)


async def test_the_environment_says_whom_it_believes(tmp_path: Path) -> None:
    server = Plain(tmp_path)
    server._environment["FORWARDED_ALLOW_IPS"] = "10.0.0.2"
    with server:
        async with connect(server.url("/told"), headers=FORGED) as client:
            assert (await client.receive_json())[1] == "127.0.0.1"


# Clients with certificates


@pytest.fixture
def mutual(files: Path) -> Path:
    """A directory with a client's certificate beside the server's."""
    (files / "client").mkdir()
    cert, _ = certificate(files / "client")
    (files / "clients.pem").write_bytes(cert.read_bytes())
    return files


def with_certificate(mutual: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=mutual / "fullchain.pem")
    context.load_cert_chain(mutual / "client/certificate.pem", mutual / "client/key.pem")
    return context


class Mutual(Tls):
    """A server that wants a certificate of its client."""

    def __init__(self, mutual: Path, reqs: str) -> None:
        options = tls_options(RUNS[-1], mutual)
        assert options[-2:] == ["--ssl-cert-reqs", "2"]
        super().__init__(mutual, [*options[:-1], reqs], mutual / "fullchain.pem")
        self.context = with_certificate(mutual)


async def test_clients_need_a_certificate(mutual: Path) -> None:
    with Mutual(mutual, "2") as server:
        _, _, headers, known = await told(TlsWire(server.context), f"{server.https}/told")
        assert "tls" not in known
        assert "CN=" not in json.dumps(headers)
        without = ssl.create_default_context(cafile=mutual / "fullchain.pem")
        with pytest.raises((ssl.SSLError, Violation)):
            await told(TlsWire(without), f"{server.https}/told")


async def test_clients_may_have_a_certificate(mutual: Path) -> None:
    with Mutual(mutual, "1") as server:
        without = ssl.create_default_context(cafile=mutual / "fullchain.pem")
        await told(TlsWire(without), f"{server.https}/told")
        (mutual / "stranger").mkdir()
        stranger = ssl.create_default_context(cafile=mutual / "fullchain.pem")
        stranger.load_cert_chain(*certificate(mutual / "stranger"))
        with pytest.raises((ssl.SSLError, Violation)):
            await told(TlsWire(stranger), f"{server.https}/told")


async def test_nginx_passes_the_clients_name_on(mutual: Path) -> None:
    said = ("/etc/ssl/example.com/fullchain.pem", "/etc/ssl/example.com/privkey.pem")
    (mutual / "yaat-proxy.conf").write_text(configuration("yaat-proxy.conf"))
    lines = ("ssl_verify_client on", "proxy_set_header X-Client $ssl_client_s_dn")
    assert all(f"`{line}`" in PAGE.read_text() for line in lines)
    with Plain(mutual) as server:
        instead = {path: str(mutual / path.rpartition("/")[2]) for path in said}
        instead["127.0.0.1:8000"] = f"127.0.0.1:{server.port}"
        instead["include yaat"] = f"{lines[1]}; include yaat"
        instead["ssl_certificate_key"] = (
            f"ssl_client_certificate {mutual}/clients.pem; {lines[0]}; ssl_certificate_key"
        )
        with Nginx(configuration("tls.conf"), mutual, instead) as nginx:
            wire = TlsWire(with_certificate(mutual))
            url = f"wss://{nginx.tls_host}/told"
            async with connect_over(wire, url, headers=[("x-client", "CN=root")]) as client:
                headers = (await client.receive_json())[2]
    assert headers["x-client"] == "CN=127.0.0.1"
