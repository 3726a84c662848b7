"""The server class under a bare ASGI, a Starlette and a FastAPI application.

Nothing of Yaat is in these applications, so that whatever ends a connection as it should is the
class. Each behaviour is one test, run against the three applications on two event loops.
"""

import asyncio
import random
import signal
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import pytest
from websockets.frames import Frame, Opcode

from apps.plain import BIG, DENIALS, MESSAGES, SECRET, SOME, TASKS
from clients import Client, SocketClient
from served import LOOPS, Served, assert_one_error, assert_quiet, closed, open_the_gate, refused
from servers import SPECS, Server, ServerPool
from wires import TlsServer, UnixServer, WirePeer

Leave = Callable[[Client], Any]

APPS = ("plain", "starlette_app", "fastapi_app")
# What a send raises in each application when the client has gone: uvicorn's own, or Starlette's.
GONE = {
    "plain": "ClientDisconnected",
    "starlette_app": "WebSocketDisconnect",
    "fastapi_app": "WebSocketDisconnect",
}

# The ways of a client to leave, and what the application learns: the code and the reason.
LEAVING: dict[str, tuple[Leave, int, str]] = {
    "close": (lambda client: client.hang_up(4321, "done"), 4321, "done"),
    "close-and-wait": (lambda client: client.close(1001), 1001, ""),
    "close-without-code": (lambda client: client.hang_up(None), 1005, ""),
    "fin": (lambda client: client.vanish(), 1006, ""),
    "rst": (lambda client: client.reset(), 1006, ""),
}


@pytest.fixture(scope="session", params=[f"{app}-{loop}" for app in APPS for loop in LOOPS])
def served_name(request: pytest.FixtureRequest) -> str:
    """Each application on each loop; of session scope, as the tests of one belong together."""
    return str(request.param)


@pytest.fixture
def peer(served_name: str, servers: ServerPool) -> Served:
    app, _, loop = served_name.partition("-")
    return Served(app, servers.get(SPECS[loop], f"apps.{app}:app"))


@pytest.fixture(params=LEAVING)
def way(request: pytest.FixtureRequest) -> str:
    """Each way to leave in turn."""
    return str(request.param)


# Messages


async def test_text_bytes_and_json_come_back(peer: Served) -> None:
    async with peer.connect("/echo") as client:
        for text in ("grüß dich", "", "\x00\u2028\U0001f600", "x" * 70_000):
            await client.send_text(text)
            assert await client.receive() == text
        for data in (b"\x00\xff", b"", bytes(126), bytes(range(256)) * 1000):
            await client.send_bytes(data)
            assert await client.receive() == data
    async with peer.connect("/echo-json") as client:
        value = {"text": "grüß dich", "list": [1, -2.5, None, True], "empty": {}}
        await client.send_json(value)
        assert await client.receive_json() == value


async def test_many_messages_in_one_go_come_back_in_order(peer: Served) -> None:
    async with peer.connect("/echo") as client:
        for number in range(500):
            await client.send_text(str(number))
        assert [await client.receive() for _ in range(500)] == [str(n) for n in range(500)]


async def test_messages_of_all_sizes_come_back_in_order(peer: Served) -> None:
    sizes = random.Random(3)
    sent: list[str | bytes] = []
    for number in range(200):
        data = str(number).ljust(int(2 ** sizes.uniform(2, 16)), "ä")
        sent.append(data.encode() if number % 3 else data)
    async with peer.connect("/echo") as client:

        async def push() -> None:
            for message in sent:
                if isinstance(message, str):
                    await client.send_text(message)
                else:
                    await client.send_bytes(message)

        pushing = asyncio.create_task(push())
        assert [await client.receive() for _ in sent] == sent
        await pushing
    await assert_quiet(peer)


# How it ends


async def test_a_return_closes_with_1000(peer: Served) -> None:
    async with peer.connect("/return") as client:
        assert await client.receive() == "bye"
        assert await closed(client) == (1000, "")
    await assert_quiet(peer)


async def test_an_exception_closes_with_1011_and_one_log_record(peer: Served) -> None:
    async with peer.connect("/raise") as client:
        assert await client.receive() == "oh"
        code, reason = await closed(client)
        assert code == 1011
        assert SECRET not in reason
    await assert_one_error(peer)


async def test_an_exception_closes_also_when_more_is_waiting_to_be_read(peer: Served) -> None:
    """A socket closed with something unread resets the connection: the close frame has to come."""
    async with peer.connect("/raise-later") as client:
        await client.send_text("now")
        for _ in range(300):
            await client.send_bytes(bytes(1000))
        assert (await closed(client))[0] == 1011


@pytest.mark.parametrize(
    ("then", "end"), [("return", (1000, "")), ("raise", (1011, "")), ("close", (4001, "enough"))]
)
@pytest.mark.parametrize("more", [0, 3, 200])
async def test_what_was_sent_before_the_end_arrives(
    peer: Served, then: str, end: tuple[int, str], more: int
) -> None:
    texts = [str(number) for number in range(SOME)]
    burst = b"".join(
        Frame(Opcode.TEXT, text.encode()).serialize(mask=True)
        for text in [*texts, *["more"] * more]
    )
    async with peer.connect(f"/echo-some?then={then}") as each:
        client = cast("SocketClient", each)
        await client.wire.write(burst)
        assert [await client.receive() for _ in texts] == texts
        assert await closed(client) == end


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1013, 3000, 4999])
async def test_a_close_code_and_its_reason_travel(peer: Served, code: int) -> None:
    async with peer.connect(f"/close?code={code}&reason={quote('tschüss')}") as client:
        assert await closed(client) == (code, "tschüss")
        # "disconnect" after our own close: what the client answered.
        left = await peer.recorded("left")
    assert left["code"] == code
    assert (await peer.recorded("close"))["error"] == "nothing"
    await assert_quiet(peer)


@pytest.mark.parametrize(("code", "seen"), [(1005, 1000), (1006, 1011), (1015, 1011)])
async def test_a_reserved_close_code_is_replaced(peer: Served, code: int, seen: int) -> None:
    async with peer.connect(f"/close?code={code}") as client:
        assert await closed(client) == (seen, "")
    assert (await peer.recorded("close"))["error"] == "nothing"
    await assert_quiet(peer)


@pytest.mark.parametrize("code", [0, 999, 1004, 1016, 2999, 5000, 70000])
async def test_a_close_code_out_of_range_is_a_value_error(peer: Served, code: int) -> None:
    async with peer.connect(f"/close?code={code}") as client:
        assert await closed(client) == (1000, "")
    record = await peer.recorded("close")
    assert "ValueError" in record["kinds"]
    assert str(code) in record["text"]


@pytest.mark.parametrize(
    ("reason", "fits"), [("x" * 123, True), ("ä" * 61, True), ("x" * 124, False), ("ä" * 62, False)]
)
async def test_a_close_reason_has_at_most_123_bytes(peer: Served, reason: str, fits: bool) -> None:  # noqa: FBT001
    async with peer.connect(f"/close?code=4000&reason={quote(reason)}") as client:
        assert await closed(client) == ((4000, reason) if fits else (1000, ""))
    assert ("ValueError" in (await peer.recorded("close"))["kinds"]) is not fits


@pytest.mark.parametrize("query", ["code=999&reason=", f"code=1000&reason={'x' * 124}"])
async def test_a_mistake_in_a_close_closes_with_1011(peer: Served, query: str) -> None:
    async with peer.connect(f"/close-uncaught?{query}") as client:
        assert (await closed(client))[0] == 1011
    await peer.settled()
    [error] = peer.errors()
    assert "ArgumentError" in error["error"]


# How it is refused


@pytest.mark.parametrize("path", ["/raise-before", "/return-before"])
async def test_no_answer_is_a_500(peer: Served, path: str) -> None:
    answer = await refused(peer, path)
    assert answer.status == 500
    assert SECRET.encode() not in answer.body
    if path == "/raise-before":
        await assert_one_error(peer)
    else:
        await peer.settled()
        assert len(peer.errors()) == 1


async def test_a_close_before_accept_is_a_403(peer: Served) -> None:
    answer = await refused(peer, "/close-before")
    assert answer.status == 403
    assert b"no entry" not in answer.body
    await assert_quiet(peer)


@pytest.mark.parametrize("denial", DENIALS)
async def test_a_denial_response(peer: Served, denial: str) -> None:
    answer = await refused(peer, f"/deny/{denial}")
    parts, headers = DENIALS[denial]
    assert (answer.status, answer.body) == (418, b"".join(parts))
    for name, value in headers:
        seen = [each for key, each in answer.headers if key == name.decode()]
        assert [each.partition(";")[0] for each in seen] == [value.decode()]
    fields = dict(answer.headers)
    assert "sec-websocket-accept" not in fields
    assert "upgrade" not in fields
    assert (await peer.recorded("denial"))["error"] == "nothing"
    await assert_quiet(peer)


async def test_a_denial_is_streamed(peer: Served) -> None:
    """Whether its first part leaves before the last is there is the class's affair; all arrive."""
    attempt = asyncio.create_task(refused(peer, "/deny-streamed"))
    await peer.recorded("streaming")
    await open_the_gate(peer)
    answer = await attempt
    assert (answer.status, answer.body) == (503, b"one two")
    await assert_quiet(peer)


@pytest.mark.parametrize(
    ("app", "path", "status"),
    [
        ("starlette_app", "/http-exception", 401),
        ("fastapi_app", "/http-exception", 401),
        ("starlette_app", "/nowhere", 403),
        ("fastapi_app", "/nowhere", 403),
        ("fastapi_app", "/close-before-by-validation", 403),
    ],
)
async def test_what_a_toolkit_refuses(
    servers: ServerPool, app: str, path: str, status: int
) -> None:
    peer = Served(app, servers.get(SPECS["yaat-uvloop"], f"apps.{app}:app"))
    answer = await refused(peer, path)
    assert answer.status == status
    if status == 401:
        assert b"who are you" in answer.body
        assert ("www-authenticate", "Bearer") in answer.headers
    await assert_quiet(peer)


@pytest.mark.parametrize("app", ["starlette_app", "fastapi_app"])
async def test_a_websocket_exception_closes_with_its_code(servers: ServerPool, app: str) -> None:
    peer = Served(app, servers.get(SPECS["yaat-uvloop"], f"apps.{app}:app"))
    async with peer.connect("/websocket-exception") as client:
        assert await closed(client) == (4003, "mine")
    await assert_quiet(peer)


async def test_http_is_served_beside_it(peer: Served) -> None:
    url = peer.server.url("/page").replace("ws:", "http:")
    answer = await asyncio.to_thread(urllib.request.urlopen, url, timeout=5)
    with answer:
        assert answer.read() == b"a page"


# How it begins


async def test_the_subprotocol_and_the_headers_of_an_accept(peer: Served) -> None:
    async with peer.connect("/choose", subprotocols=["telnet", "chat", "graphql"]) as client:
        assert client.subprotocol == "chat"
        seen = [pair for pair in client.headers if pair[0] in {"x-one", "x-two"}]
        assert seen == [("x-one", "1"), ("x-two", "a"), ("x-two", "b")]
    async with peer.connect("/choose", subprotocols=["telnet"]) as client:
        assert client.subprotocol is None
    async with peer.connect("/choose") as client:
        assert client.subprotocol is None


# What the application learns


async def test_what_the_application_learns(peer: Served, way: str) -> None:
    leave, code, reason = LEAVING[way]
    async with peer.connect("/learn") as client:
        assert await client.receive() == "welcome"
        await client.send_text("one")
        await leave(client)
        left = await peer.recorded("left")
    assert (left["type"], left["code"], left["reason"] or "") == (
        "websocket.disconnect",
        code,
        reason,
    )
    send = await peer.recorded("send")
    assert send["error"] == GONE[peer.app]
    await assert_quiet(peer)


async def test_what_a_departure_raises_is_ordinary_life(peer: Served, way: str) -> None:
    async with peer.connect("/leave-uncaught") as client:
        await client.receive()
        await LEAVING[way][0](client)
        await peer.recorded("ended")
    await assert_quiet(peer, escaped=1)


async def test_an_application_that_only_sends_is_told(peer: Served, way: str) -> None:
    async with peer.connect("/only-send") as client:
        assert await client.receive() == "tick"
        await LEAVING[way][0](client)
        end = await peer.recorded("end")
    assert end["error"] == GONE[peer.app]
    assert ("OSError" in end["kinds"]) is (peer.app == "plain")
    await assert_quiet(peer)


async def test_an_application_that_only_sends_ends_quietly(peer: Served, way: str) -> None:
    async with peer.connect("/only-send-uncaught") as client:
        assert await client.receive() == "tick"
        await LEAVING[way][0](client)
        await peer.recorded("ended")
    await assert_quiet(peer, escaped=1)


@pytest.mark.parametrize("way", ["fin", "rst"])
async def test_an_application_that_never_pauses_ends_quietly(peer: Served, way: str) -> None:
    """A write that fails says nothing; nor may it keep all others from their turn."""
    async with peer.connect("/flood-uncaught", receive_buffer=4096) as client:
        await client.receive()
        await LEAVING[way][0](client)
        await peer.recorded("ended")
    await assert_quiet(peer, escaped=1)


# Several tasks


async def test_two_tasks_that_receive_share_what_comes(peer: Served) -> None:
    sent = [str(number) for number in range(40)]
    async with peer.connect("/two-receivers") as client:
        await client.receive()
        for text in [*sent, "end", "end"]:
            await client.send_text(text)
        one, two = (await peer.recorded("received"))["by"]
    assert sorted([*one, *two], key=int) == sent
    # Each of the two has seen its share in the order in which it came.
    assert sorted(one, key=int) == one
    assert sorted(two, key=int) == two
    await assert_quiet(peer)


async def test_what_several_tasks_send_is_whole_and_in_the_order_of_the_calls(
    peer: Served,
) -> None:
    async with peer.connect("/senders", receive_buffer=4096) as client:
        await peer.recorded("sending")
        messages = [await client.receive() for _ in range(TASKS * MESSAGES)]
    heads = [m if isinstance(m, str) else m.decode() for m in messages]
    calls = [tuple(map(int, head.split())) for head in heads]
    assert {len(head) for head in heads} == {BIG}
    assert [call for call, _, _ in calls] == list(range(TASKS * MESSAGES))
    for task in range(TASKS):
        assert [number for _, sender, number in calls if sender == task] == list(range(MESSAGES))
    assert all(isinstance(m, str) is bool(c[2] % 2) for m, c in zip(messages, calls, strict=True))
    await assert_quiet(peer)


@pytest.mark.parametrize("way", ["fin", "rst"])
async def test_tasks_that_wait_for_a_client_that_does_not_read_are_told(
    peer: Served, way: str
) -> None:
    async with peer.connect("/background", receive_buffer=4096) as client:
        await peer.recorded("sending")
        await client.receive()
        await LEAVING[way][0](client)
        await peer.recorded("end", TASKS)
    first, *others = (end["error"] for end in peer.records("end"))
    assert first == GONE[peer.app]
    # Starlette by itself refuses what is sent after a send that has failed.
    starlettes = set() if peer.app == "plain" else {"WebSocketDisconnected"}
    assert set(others) <= {GONE[peer.app]} | starlettes
    assert (await peer.recorded("left"))["code"] == 1006
    await assert_quiet(peer)


async def test_a_close_frame_is_read_while_sends_wait(peer: Served) -> None:
    """A client that reads nothing more may still say goodbye."""
    async with peer.connect("/background", receive_buffer=4096) as client:
        await peer.recorded("sending")
        await client.receive()
        await client.hang_up(4321, "done")
        left = await peer.recorded("left")
        await peer.recorded("end", TASKS)
    assert (left["code"], left["reason"]) == (4321, "done")
    await assert_quiet(peer)


# When the server stops


async def test_when_the_server_stops(served_name: str, tmp_path: Path) -> None:
    app, _, loop = served_name.partition("-")
    with Server(SPECS[loop], f"apps.{app}:app", tmp_path) as server:
        peer = Served(app, server)
        async with (
            peer.connect("/learn") as receiving,
            peer.connect("/only-send") as sending,
        ):
            await receiving.receive()
            await sending.receive()
            server.terminate()
            assert await closed(receiving) == (1012, "")
            assert (await closed(sending))[0] == 1012
            left, end = await peer.recorded("left"), await peer.recorded("end")
        assert await asyncio.to_thread(server.wait) == -signal.SIGTERM
        assert left["code"] == 1012
        assert end["error"] == GONE[app]
        peer.key = "null"  # the lifespan is of no connection
        assert peer.records("shutdown")
        assert peer.errors() == []
        assert peer.tracebacks() == 0, peer.written()


@pytest.mark.parametrize("loop", LOOPS)
async def test_an_application_that_will_not_end_is_cancelled(loop: str, tmp_path: Path) -> None:
    spec = SPECS[loop].but("--timeout-graceful-shutdown", "1")
    with Server(spec, "apps.plain:app", tmp_path) as server:
        peer = Served("plain", server)
        async with peer.connect("/stubborn") as client:
            await client.receive()
            server.terminate()
            assert await closed(client) == (1012, "")
            await peer.recorded("cancelled")
        assert await asyncio.to_thread(server.wait) == -signal.SIGTERM
        peer.key = "null"
        assert peer.records("shutdown")


# Over what is no plain TCP


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", [TlsServer, UnixServer])
async def test_over_tls_and_over_a_unix_socket(
    kind: type[Server], loop: str, tmp_path: Path
) -> None:
    with kind(SPECS[loop], "apps.plain:app", tmp_path) as server:
        peer = WirePeer(SPECS[loop], server)
        async with peer.connect("/echo") as client:
            for size in (0, 125, 126, 65_535, 65_536, 2**20):
                await client.send_bytes(bytes(size))
                assert await client.receive() == bytes(size)
        async with peer.connect("/raise") as client:
            assert await client.receive() == "oh"
            assert (await closed(client))[0] == 1011
        async with peer.connect("/return") as client:
            assert await closed(client) == (1000, "")
        assert (await refused(peer, "/deny/several-parts")).body == b"one two three"
        async with peer.connect("/close?code=4001&reason=bye") as client:
            assert await closed(client) == (4001, "bye")
            assert (await peer.recorded("left"))["code"] == 4001
        async with peer.connect("/senders") as client:
            assert [await client.receive() for _ in range(TASKS * MESSAGES)]
            await client.hang_up(4321, "done")
            assert (await peer.recorded("left", 2))["code"] == 4321
        # Once is not enough: it takes a write that fails before the loss is read.
        for number in range(1, 6):
            async with peer.connect("/background") as client:
                await client.receive()
                await client.reset()
                await peer.recorded("end", number * TASKS)
                assert (await peer.recorded("left", 2 + number))["code"] == 1006
        async with peer.connect("/learn") as client:
            await client.receive()
            server.terminate()
            assert await closed(client) == (1012, "")
        assert await asyncio.to_thread(server.wait) == -signal.SIGTERM
