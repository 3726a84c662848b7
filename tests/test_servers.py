"""The harness itself: every server serves, every client sees what is on the wire."""

import os
import signal
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from websockets.frames import Opcode

from clients import Closed, Refused, SocketClient, Violation, close_frame, connect
from servers import SPECS, Server, ServerPool, ServerSpec

APP = "apps.echo:app"


class Echo:
    """The bare application on one server."""

    def __init__(self, server: Server, spec: ServerSpec) -> None:
        self.server = server
        self.facts = spec.facts

    def connect(self, path: str, **options: Any) -> AbstractAsyncContextManager[SocketClient]:
        options.setdefault("http_version", self.facts.http_version)
        return connect(self.server.url(path), **options)


@pytest.fixture
def echo(servers: ServerPool, spec: ServerSpec) -> Echo:
    return Echo(servers.get(spec, APP), spec)


async def test_echo(echo: Echo) -> None:
    async with echo.connect("/echo") as client:
        await client.send_text("grüß dich")
        assert await client.receive() == "grüß dich"
        await client.send_bytes(b"\x00\xff")
        assert await client.receive() == b"\x00\xff"
        await client.send_json({"a": [1, None]})
        assert await client.receive_json() == {"a": [1, None]}


async def test_a_big_message(echo: Echo) -> None:
    data = os.urandom(2**20)
    async with echo.connect("/echo") as client:
        await client.send_bytes(data)
        assert await client.receive() == data


async def test_a_fragmented_message(echo: Echo) -> None:
    async with echo.connect("/echo") as client:
        await client.send_frame(Opcode.TEXT, b"gr\xc3", fin=False)
        await client.send_frame(Opcode.PING, b"")
        await client.send_frame(Opcode.CONT, b"\xbc\xc3\x9f", fin=True)
        assert await client.receive() == "grüß"


async def test_many_connections(echo: Echo) -> None:
    async with echo.connect("/echo") as one, echo.connect("/echo") as other:
        await one.send_text("one")
        await other.send_text("other")
        assert await other.receive() == "other"
        assert await one.receive() == "one"


async def test_subprotocol_and_response_headers(echo: Echo) -> None:
    async with echo.connect("/echo", subprotocols=["chat", "superchat"]) as client:
        assert client.subprotocol == "chat"
        assert [value for name, value in client.headers if name == "x-harness"] == (
            ["yes", "again"] if echo.facts.sends_accept_headers else []
        )
    async with echo.connect("/echo") as client:
        assert client.subprotocol is None


async def test_the_server_closes(echo: Echo) -> None:
    async with echo.connect("/bye") as client:
        for _ in range(2):
            with pytest.raises(Closed) as ended:
                await client.receive()
            reason = "so long" if echo.facts.sends_reason else ""
            assert (ended.value.code, ended.value.reason) == (4001, reason)


async def test_the_client_closes(echo: Echo) -> None:
    async with echo.connect("/echo") as client:
        await client.close(4002, "enough")
        assert client.closed
        assert client.closed.code in {4002, 1000, 1005}
    async with echo.connect("/echo") as client:
        await client.close_without_code()
        assert client.closed
        assert client.closed.code in {1000, 1005}


async def test_an_empty_message(echo: Echo) -> None:
    async with echo.connect("/echo") as client:
        await client.send_text("")
        await client.send_bytes(b"")
        await client.send_text("end")
        if echo.facts.sends_empty:
            assert await client.receive() == ""
            assert await client.receive() == b""
        assert await client.receive() == "end"


async def test_the_client_vanishes(echo: Echo) -> None:
    async with echo.connect("/echo") as client:
        await client.vanish()
    async with echo.connect("/echo") as client:
        await client.reset()
    async with echo.connect("/echo") as client:
        await client.send_text("still there")
        assert await client.receive() == "still there"


async def test_a_refusal(echo: Echo) -> None:
    with pytest.raises(Refused) as refused:
        async with echo.connect("/refuse"):
            pass
    assert refused.value.status == 403


async def test_the_facts(echo: Echo) -> None:
    async with echo.connect("/scope") as client:
        assert await client.receive() == echo.facts.http_version
        assert ("websocket.http.response" in await client.receive()) is echo.facts.can_deny


async def test_a_denial(echo: Echo) -> None:
    with pytest.raises(Refused) as refused:
        async with echo.connect("/deny"):
            pass
    if echo.facts.can_deny:
        assert (refused.value.status, refused.value.body) == (418, b"full")
        assert ("content-type", "text/plain") in refused.value.headers
    else:
        assert refused.value.status == 403


async def test_a_wait_is_bounded_and_says_for_what(echo: Echo) -> None:
    async with echo.connect("/echo") as client:
        client.timeout = 0.05
        with pytest.raises(TimeoutError, match=r"/echo: waited 0.05 s for a message"):
            await client.receive()
        client.timeout = 5.0


async def test_one_process_serves_both_versions_of_http(servers: ServerPool) -> None:
    one, two = (servers.get(SPECS[name], APP) for name in ("hypercorn-h1", "hypercorn-h2"))
    assert one.pid == two.pid


def test_a_server_lives_from_start_to_stop(spec: ServerSpec, tmp_path: Path) -> None:
    with Server(spec, APP, tmp_path) as server:
        port, pid = server.port, server.pid
        assert server.alive
        server.restart()
        assert server.port == port
        assert server.pid != pid
        assert server.written_since()
        mark = server.mark()
    assert not server.alive
    assert len(server.written_since(mark)) < len(server.written_since())
    with pytest.raises(ProcessLookupError):
        os.killpg(pid, signal.SIG_DFL)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=r"(?s)ended at its start.*nowhere"),
        Server(SPECS["uvicorn-sansio"], "apps.nowhere:app", tmp_path),
    ):
        pass


def test_a_killed_server_is_started_anew(servers: ServerPool) -> None:
    spec = SPECS["uvicorn-wsproto"]
    server = servers.get(spec, APP)
    server.kill()
    assert servers.get(spec, APP).alive


@pytest.mark.parametrize("payload", [b"\x03", b"\x03\xee", b"\x03\xed", b"\x00\x00", b"\xff\xff"])
def test_what_may_not_travel_is_a_violation(payload: bytes) -> None:
    with pytest.raises(Violation):
        close_frame(payload)
