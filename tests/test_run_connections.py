"""The WebSockets under `yaat run`: how many, how big their messages, how long they may be quiet."""

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from websockets.frames import Opcode

from clients import Closed, connect
from running import (
    APP,
    ECHOED,
    HELLO,
    LOOPS,
    TIMEOUT,
    UPGRADE,
    Answer,
    Raw,
    dialled,
    dialled_unix,
    fetch,
    gathered,
    nothing_leaks,
    parsed,
    request,
    specification,
    start,
    until,
)
from servers import Server, ServerPool
from wires import UnixServer

MIB = 1_048_576
FORWARDED = "X-Forwarded-For"


@pytest.fixture(scope="module", params=LOOPS)
def loop(request: pytest.FixtureRequest) -> str:
    """Each event loop in turn."""
    return str(request.param)


@pytest.fixture
def server(servers: ServerPool, loop: str) -> Server:
    """With every default."""
    return start(servers, loop)


@pytest.fixture
def narrow(servers: ServerPool, loop: str) -> Server:
    """It has room for three."""
    return start(servers, loop, "--max-connections", "3")


@pytest.fixture
def fair(servers: ServerPool, loop: str) -> Server:
    """It has room for two of an address."""
    return start(servers, loop, "--max-connections-per-address", "2")


def masked(opcode: int, payload: bytes, *, fin: bool = True) -> bytes:
    """A client's frame, with a mask that changes nothing."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xff" + struct.pack("!Q", size)
    return bytes([(0x80 if fin else 0) | opcode]) + length + bytes(4) + payload


CLOSE = masked(8, struct.pack("!H", 1000))


# How many


@asynccontextmanager
async def opened(server: Server, count: int, **options: Any) -> AsyncIterator[list[Raw]]:
    """Open so many WebSockets."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(one(server, **options)) for _ in range(count)]


@asynccontextmanager
async def one(
    server: Server,
    path: str = "/echo",
    address: str = "127.0.0.1",
    headers: dict[str, str] | None = None,
) -> AsyncIterator[Raw]:
    async with dialled(server, address) as raw:
        await raw.upgraded(path, headers)
        yield raw


async def answer_to(
    server: Server,
    path: str = "/echo",
    address: str = "127.0.0.1",
    headers: dict[str, str] | None = None,
) -> Answer:
    """Try a handshake, and leave."""
    async with dialled(server, address) as raw:
        return await raw.ask(path, UPGRADE | (headers or {}))


async def comes_in(server: Server, **options: Any) -> None:
    """Wait until a handshake is accepted."""

    async def is_accepted() -> bool:
        return (await answer_to(server, **options)).status == 101

    await until(is_accepted)


def assert_full(answer: Answer) -> None:
    assert answer.status == 503
    later = answer.header("retry-after")
    assert later is not None
    # RFC 9110, 10.2.3: delay-seconds, "a non-negative decimal integer".
    assert later.isascii()
    assert later.isdigit()
    assert int(later) >= 1
    assert answer.header("connection") == "close"


async def test_who_is_over_the_limit_is_asked_to_come_later(narrow: Server) -> None:
    async with nothing_leaks(narrow), opened(narrow, 3) as inside:
        for _ in range(3):
            async with dialled(narrow) as raw:
                assert_full(await raw.ask("/echo", UPGRADE))
                assert await raw.rest() == b""
        for raw in inside:
            await raw.send(HELLO)
            await raw.exactly(ECHOED)


async def test_requests_are_not_counted(narrow: Server) -> None:
    async with nothing_leaks(narrow), opened(narrow, 3), AsyncExitStack() as stack:
        requests = [await stack.enter_async_context(dialled(narrow)) for _ in range(10)]
        for raw in requests:
            assert (await raw.ask("/")).body == b"a page"
    # Nor if they were there first.
    async with AsyncExitStack() as stack:
        requests = [await stack.enter_async_context(dialled(narrow)) for _ in range(10)]
        for raw in requests:
            assert (await raw.ask("/")).body == b"a page"
        await has_room_for_three(narrow)


async def by_a_close_frame(raw: Raw) -> None:
    await raw.send(CLOSE)
    await raw.rest()


async def by_a_fin(raw: Raw) -> None:
    raw.half_close()
    await raw.rest()


async def by_a_reset(raw: Raw) -> None:
    raw.reset()


async def by_a_message(raw: Raw) -> None:
    await raw.send(HELLO)
    with suppress(TimeoutError):
        async with asyncio.timeout(0.2):
            await raw.rest()
    await raw.cut()


async def by_a_wrong_frame(raw: Raw) -> None:
    await raw.send(b"\xf0\x80\0\0\0\0")
    await raw.rest()
    await raw.cut()


Leave = Callable[[Raw], Awaitable[None]]
# On what path somebody is accepted, and how he leaves.
ENDS: dict[str, tuple[str, Leave]] = {
    "close": ("/echo", by_a_close_frame),
    "fin": ("/echo", by_a_fin),
    "rst": ("/echo", by_a_reset),
    "a-wrong-frame": ("/echo", by_a_wrong_frame),
    "the-application-closes": ("/leave", by_a_message),
    "the-application-crashes": ("/crash-later", by_a_message),
}


@pytest.mark.parametrize("end", ENDS)
async def test_who_leaves_makes_room(narrow: Server, end: str) -> None:
    path, leave = ENDS[end]
    for _ in range(2):
        await until(lambda: is_empty(narrow))
        async with opened(narrow, 2), one(narrow, path) as raw:
            assert_full(await answer_to(narrow))
            await leave(raw)
            await comes_in(narrow)
    await has_room_for_three(narrow)


async def has_room_for_three(server: Server) -> None:
    """Assert that there is room for three and no more, once all have left."""
    await until(lambda: is_empty(server))
    async with opened(server, 3):
        assert_full(await answer_to(server))


REFUSALS = {"/refuse": 403, "/deny": 418, "/crash": 500, "/return": 500}
# Handshakes that the class refuses by itself; what is None is left out.
MISTAKES: dict[str, dict[str, str | None]] = {
    "no-key": {"Sec-WebSocket-Key": None},
    "a-wrong-key": {"Sec-WebSocket-Key": "short"},
    "a-wrong-version": {"Sec-WebSocket-Version": "12"},
}


@pytest.mark.parametrize("path", REFUSALS)
async def test_who_is_refused_takes_no_room(narrow: Server, path: str) -> None:
    await until(lambda: is_empty(narrow))
    async with opened(narrow, 2):
        for _ in range(10):
            async with dialled(narrow) as raw:
                assert (await raw.ask(path, UPGRADE)).status == REFUSALS[path]
                await raw.rest()
        await comes_in(narrow)
    await has_room_for_three(narrow)


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_a_wrong_handshake_takes_no_room(narrow: Server, mistake: str) -> None:
    fields = {**UPGRADE, **MISTAKES[mistake]}
    headers = {name: value for name, value in fields.items() if value is not None}
    await until(lambda: is_empty(narrow))
    async with opened(narrow, 2):
        for _ in range(10):
            async with dialled(narrow) as raw:
                assert 400 <= (await raw.ask("/echo", headers)).status < 500
                await raw.rest()
        await comes_in(narrow)
    await has_room_for_three(narrow)


async def test_who_is_not_yet_accepted_takes_room(narrow: Server) -> None:
    async with nothing_leaks(narrow), AsyncExitStack() as stack:
        pending = [await stack.enter_async_context(dialled(narrow)) for _ in range(3)]
        for number, raw in enumerate(pending):
            await raw.send(request(f"/undecided/pending-{number}", UPGRADE))

        async def is_full() -> bool:
            return (await answer_to(narrow, "/refuse")).status == 503

        await until(is_full)
        # Who gives up makes room, though the application does not know of it yet.
        pending[0].reset()
        await comes_in(narrow)
        for number in range(3):
            await fetch(narrow, f"/allow/pending-{number}")
        assert (await pending[1].answer()).status == 101


RUSH = 100


async def test_a_hundred_at_once_and_room_for_ten(servers: ServerPool, loop: str) -> None:
    server = start(servers, loop, "--max-connections", "10")
    async with nothing_leaks(server):
        for _ in range(3):
            statuses = await rush(server)
            assert statuses.count(101) == 10, statuses
            assert statuses.count(503) == RUSH - 10, statuses
            await comes_in(server)
            await until(lambda: is_empty(server))


async def is_empty(server: Server) -> bool:
    counts: dict[str, int] = json.loads((await fetch(server, "/held")).body)
    return counts["websockets"] == 0


async def rush(server: Server) -> list[int]:
    """Send as many handshakes at once, and only then read the answers."""
    async with AsyncExitStack() as stack:
        crowd = [await stack.enter_async_context(dialled(server)) for _ in range(RUSH)]
        for raw in crowd:
            raw.writer.write(request("/echo", UPGRADE))
        return [answer.status for answer in await gathered(raw.answer() for raw in crowd)]


async def test_an_address_has_its_own_limit(fair: Server) -> None:
    async with nothing_leaks(fair), opened(fair, 2):
        assert_full(await answer_to(fair))
        async with opened(fair, 2, address="127.0.0.2"):
            assert_full(await answer_to(fair, address="127.0.0.2"))
            assert (await answer_to(fair, address="127.0.0.3")).status == 101
        await comes_in(fair, address="127.0.0.2")
        assert_full(await answer_to(fair))


async def test_both_limits_at_once(servers: ServerPool, loop: str) -> None:
    options = ("--max-connections", "3", "--max-connections-per-address", "2")
    server = start(servers, loop, *options)
    async with nothing_leaks(server), opened(server, 2):
        assert_full(await answer_to(server))
        async with one(server, address="127.0.0.2"):
            assert_full(await answer_to(server, address="127.0.0.2"))
            assert_full(await answer_to(server, address="127.0.0.3"))
        await comes_in(server, address="127.0.0.2")


async def test_behind_a_trusted_proxy_its_clients_are_counted(fair: Server) -> None:
    async with nothing_leaks(fair), opened(fair, 2, headers={FORWARDED: "203.0.113.7"}):
        assert_full(await answer_to(fair, headers={FORWARDED: "203.0.113.7"}))
        # What a client has put there itself does not help it: the proxy has added the last.
        assert_full(await answer_to(fair, headers={FORWARDED: "198.51.100.1, 203.0.113.7"}))
        for other in ("203.0.113.8", "203.0.113.7, 203.0.113.9", "2001:db8::1"):
            assert (await answer_to(fair, headers={FORWARDED: other})).status == 101
        # Nor has the proxy used up what is its own.
        async with opened(fair, 2):
            assert_full(await answer_to(fair))


@pytest.mark.parametrize("value", ["", " ", ","])
async def test_who_is_told_of_without_an_address_is_the_proxy(fair: Server, value: str) -> None:
    async with nothing_leaks(fair), opened(fair, 2):
        assert_full(await answer_to(fair, headers={FORWARDED: value}))


@pytest.mark.parametrize("option", [["--forwarded-allow-ips", "10.0.0.1"], ["--no-proxy-headers"]])
async def test_others_are_not_believed(servers: ServerPool, loop: str, option: list[str]) -> None:
    server = start(servers, loop, "--max-connections-per-address", "2", *option)
    async with opened(server, 2, headers={FORWARDED: "203.0.113.7"}):
        assert_full(await answer_to(server, headers={FORWARDED: "203.0.113.8"}))
        assert (await answer_to(server, address="127.0.0.2")).status == 101


async def test_a_unix_socket_has_no_addresses_to_count(loop: str, tmp_path: Path) -> None:
    """All that come by it have none: they are limited together only."""
    options = ("--max-connections-per-address", "1", "--max-connections", "3")
    with UnixServer(specification(loop, *options), APP, tmp_path) as server:
        async with AsyncExitStack() as stack:
            for _ in range(3):
                raw = await stack.enter_async_context(dialled_unix(server.path))
                await raw.upgraded("/echo")
            async with dialled_unix(server.path) as raw:
                assert_full(await raw.ask("/echo", UPGRADE))


async def test_a_proxy_on_a_unix_socket_tells_the_addresses(loop: str, tmp_path: Path) -> None:
    options = ("--max-connections-per-address", "1", "--forwarded-allow-ips", "*")
    with UnixServer(specification(loop, *options), APP, tmp_path) as server:
        async with AsyncExitStack() as stack:
            for number, status in ((1, 101), (1, 503), (2, 101), (2, 503)):
                raw = await stack.enter_async_context(dialled_unix(server.path))
                headers = {**UPGRADE, FORWARDED: f"203.0.113.{number}"}
                assert (await raw.ask("/echo", headers)).status == status


# How big


async def end_of(raw: Raw) -> tuple[int, str]:
    """Read to the close frame, and return its code and reason."""
    rest = await raw.rest()
    assert rest[:1] == b"\x88", rest
    return struct.unpack("!H", rest[2:4])[0], rest[4 : 2 + rest[1]].decode()


@pytest.mark.parametrize(
    ("options", "limit"), [((), MIB), (("--max-message-bytes", "1000"), 1_000)]
)
async def test_the_longest_message(
    servers: ServerPool, loop: str, options: tuple[str, ...], limit: int
) -> None:
    server = start(servers, loop, *options)
    async with nothing_leaks(server):
        async with connect(server.url("/echo")) as client:
            await client.send_bytes(bytes(limit))
            assert await client.receive() == bytes(limit)
            await client.send_frame(Opcode.TEXT, b"x" * (limit - 1), fin=False)
            await client.send_frame(Opcode.CONT, b"x")
            assert await client.receive() == "x" * limit
        async with connect(server.url("/echo")) as client:
            with suppress(Closed):
                await client.send_bytes(bytes(limit + 1))
            with pytest.raises(Closed) as end:
                await client.receive()
            assert end.value.code == 1009
        async with connect(server.url("/echo")) as client:
            with suppress(Closed):
                await client.send_frame(Opcode.BINARY, bytes(limit), fin=False)
                await client.send_frame(Opcode.CONT, b"x")
            with pytest.raises(Closed) as end:
                await client.receive()
            assert end.value.code == 1009


async def test_many_tiny_fragments(servers: ServerPool, loop: str) -> None:
    server = start(servers, loop, "--max-tiny-fragments", "10")
    for count, code in ((10, None), (12, 1008)):
        async with one(server) as raw:
            await raw.send(masked(1, b"", fin=False) + masked(0, b"", fin=False) * (count - 2))
            await raw.send(masked(0, b"end"))
            if code is None:
                await raw.exactly(b"\x81\x03end")
            else:
                assert (await end_of(raw))[0] in (code, 1009)


# How long quiet

QUIET = ("--idle-timeout", "1")


async def test_a_quiet_connection_is_closed(servers: ServerPool, loop: str) -> None:
    server = start(servers, loop, *QUIET)
    async with nothing_leaks(server), one(server) as raw:
        assert await end_of(raw) == (1001, "idle timeout")


async def test_who_was_not_quiet_may_be_later(servers: ServerPool, loop: str) -> None:
    server = start(servers, loop, *QUIET)
    async with nothing_leaks(server), one(server) as raw:
        await raw.send(HELLO)
        await raw.exactly(ECHOED)
        assert await end_of(raw) == (1001, "idle timeout")


async def test_pings_and_pongs_are_no_messages(servers: ServerPool, loop: str) -> None:
    server = start(servers, loop, *QUIET, "--ping-interval", "0.1")
    async with nothing_leaks(server), one(server) as raw:
        received = b""
        async with asyncio.timeout(TIMEOUT):
            while b"idle timeout" not in received:
                await raw.send(masked(9, b"p") + masked(10, b"q"))
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        received += await raw.reader.read(4_096)
        assert received.startswith((b"\x8a\x01p", b"\x89\x00"))
        assert b"\x8a\x01p" in received  # it was heard
        assert b"\x89\x00" in received  # and asked


async def test_messages_of_either_side_keep_it_open(servers: ServerPool, loop: str) -> None:
    """Three connections, of which the third is quiet; it is cut, and comes again, and again."""
    server = start(servers, loop, *QUIET)
    async with (
        nothing_leaks(server),
        one(server) as listened_to,
        one(server, "/speak/idle") as spoken_to,
    ):
        for _ in range(3):
            async with one(server) as quiet:
                end = asyncio.create_task(end_of(quiet))
                while not end.done():
                    await listened_to.send(HELLO)
                    await listened_to.exactly(ECHOED)
                    await fetch(server, "/say/idle")
                    await spoken_to.exactly(b"\x81\x04said")
                    await asyncio.wait([end], timeout=0.1)
                assert await end == (1001, "idle timeout")


async def test_what_is_only_received_keeps_it_open_too(servers: ServerPool, loop: str) -> None:
    server = start(servers, loop, *QUIET)
    async with one(server, "/speak/nothing") as raw, one(server) as quiet:
        end = asyncio.create_task(end_of(quiet))
        while not end.done():
            await raw.send(HELLO)
            await asyncio.wait([end], timeout=0.1)
        await raw.send(HELLO)
        await fetch(server, "/say/nothing")
        await raw.exactly(b"\x81\x04said")


async def test_a_handshake_that_waits_is_not_idle(servers: ServerPool, loop: str) -> None:
    server = start(servers, loop, *QUIET)
    async with dialled(server) as raw, one(server) as quiet:
        await raw.send(request("/undecided/idle", UPGRADE))
        assert await end_of(quiet) == (1001, "idle timeout")
        async with one(server) as another:
            assert await end_of(another) == (1001, "idle timeout")
        await fetch(server, "/allow/idle")
        assert (await raw.answer()).status == 101
        await raw.send(HELLO)
        await raw.exactly(ECHOED)


# Whether anybody is there


async def test_the_pings_are_settable(servers: ServerPool, loop: str) -> None:
    server = start(servers, loop, "--ping-interval", "0.1", "--ping-timeout", "0.3")
    async with nothing_leaks(server), one(server) as raw:
        for _ in range(4):
            await raw.exactly(b"\x89\x00")
            await raw.send(masked(10, b""))
        received = await raw.rest()
        assert received.count(b"keepalive ping timeout") == 1
        assert received.startswith(b"\x89\x00")
        assert struct.pack("!H", 1011) in received


@pytest.mark.parametrize(
    ("option", "is_agreed"), [("--compression", True), ("--no-compression", False)]
)
async def test_compression_can_be_turned_off(
    servers: ServerPool, loop: str, option: str, *, is_agreed: bool
) -> None:
    server = start(servers, loop, option)
    async with dialled(server) as raw:
        offer = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}
        answer = await raw.ask("/echo", UPGRADE | offer)
        assert (answer.header("sec-websocket-extensions") is not None) is is_agreed
        await raw.send(HELLO)
        await raw.exactly(ECHOED)


async def test_the_size_from_which_messages_are_compressed(servers: ServerPool, loop: str) -> None:
    offer = {"Sec-WebSocket-Extensions": "permessage-deflate"}
    for options, first_byte in (((), 0x81), (("--compress-from", "1"), 0xC1)):
        server = start(servers, loop, *options)
        async with one(server, headers=offer) as raw:
            await raw.send(masked(1, b"hello" * 20))
            async with asyncio.timeout(TIMEOUT):
                assert (await raw.reader.readexactly(1))[0] == first_byte


async def test_an_answer_to_a_close_is_not_waited_for_longer(
    servers: ServerPool, loop: str
) -> None:
    server = start(servers, loop, "--close-timeout", "0.3")
    async with nothing_leaks(server), one(server, "/leave") as raw:
        await raw.send(HELLO)
        # The peer neither answers nor hangs up; `rest` returns since the server does.
        assert await end_of(raw) == (4001, "")


# What is around a handshake


async def test_a_frame_behind_the_handshake_is_not_lost(server: Server) -> None:
    async with nothing_leaks(server), dialled(server) as raw:
        await raw.send(request("/echo", UPGRADE) + HELLO * 3)
        assert (await raw.answer()).status == 101
        await raw.exactly(ECHOED * 3)


@pytest.mark.parametrize("at", [1, 5, 20])
async def test_half_a_frame_behind_the_handshake(server: Server, at: int) -> None:
    data = HELLO * 3
    async with nothing_leaks(server), dialled(server) as raw:
        await raw.send(request("/echo", UPGRADE) + data[:at])
        assert (await raw.answer()).status == 101
        await raw.send(data[at:])
        await raw.exactly(ECHOED * 3)


async def test_everything_at_once(server: Server) -> None:
    """Handshake, message, close and FIN in one packet."""
    async with nothing_leaks(server), dialled(server) as raw:
        await raw.send(request("/echo", UPGRADE) + HELLO + CLOSE)
        raw.half_close()
        assert (await raw.answer()).status == 101
        assert (await raw.rest())[:7] == ECHOED


async def test_a_big_message_behind_the_handshake(server: Server) -> None:
    """More than is read ahead: the rest waits in the kernel, and is not lost."""
    message = masked(2, bytes(range(256)) * 1_024)
    async with nothing_leaks(server), dialled(server) as raw:
        sending = asyncio.create_task(raw.send(request("/echo", UPGRADE) + message * 2))
        assert (await raw.answer()).status == 101
        await raw.exactly((b"\x82\x7f" + struct.pack("!Q", 2**18) + bytes(range(256)) * 1_024) * 2)
        await sending


async def test_frames_behind_a_handshake_that_has_to_wait(server: Server) -> None:
    async with nothing_leaks(server), dialled(server) as raw:
        await raw.send(request("/undecided/early", UPGRADE) + HELLO)
        await raw.send(HELLO)
        await fetch(server, "/allow/early")
        assert (await raw.answer()).status == 101
        await raw.exactly(ECHOED * 2)


async def test_an_upgrade_on_a_connection_that_was_kept_alive(server: Server) -> None:
    async with nothing_leaks(server), dialled(server) as raw:
        assert (await raw.ask("/")).body == b"a page"
        await raw.send(request("/weigh", {"Content-Length": "3"}, "POST") + b"abc")
        assert (await raw.answer()).status == 200
        await raw.send(request("/echo", UPGRADE) + HELLO)
        assert (await raw.answer()).status == 101
        await raw.exactly(ECHOED)


async def test_an_upgrade_behind_requests_in_one_packet(server: Server) -> None:
    async with nothing_leaks(server), dialled(server) as raw:
        await raw.send(request("/") + request("/parts") + request("/echo", UPGRADE) + HELLO)
        assert (await raw.answer()).body == b"a page"
        assert (await raw.answer()).body == b"one two three"
        assert (await raw.answer()).status == 101
        await raw.exactly(ECHOED)


async def test_an_upgrade_waits_for_the_answers_before(server: Server) -> None:
    async with nothing_leaks(server), dialled(server) as raw:
        await raw.send(request("/undecided/upgrade") + request("/echo", UPGRADE) + HELLO)
        async with dialled(server) as other:
            await other.upgraded("/echo")
        await raw.send(HELLO)
        await fetch(server, "/allow/upgrade")
        assert (await raw.answer()).body == b"at last"
        assert (await raw.answer()).status == 101
        await raw.exactly(ECHOED * 2)


async def test_who_leaves_while_an_upgrade_waits(server: Server) -> None:
    async with nothing_leaks(server):
        for number in range(5):
            async with dialled(server) as raw:
                await raw.send(request(f"/slow/gone-{number}") + request("/echo", UPGRADE) + HELLO)
                await raw.reader.readuntil(b"first, ")
                raw.reset()
            await fetch(server, f"/allow/gone-{number}")


async def test_an_upgrade_behind_an_answer_that_closes(server: Server) -> None:
    """RFC 9112, 9.6: what comes behind `connection: close` is not answered."""
    async with nothing_leaks(server), dialled(server) as raw:
        await raw.send(request("/closing") + request("/echo", UPGRADE) + HELLO)
        assert (await raw.answer()).body == b"for the last time"
        assert await raw.rest() == b""


async def test_an_upgrade_with_a_body(server: Server) -> None:
    """No handshake has one; whatever is answered, the connection does not take it for frames."""
    async with nothing_leaks(server), dialled(server) as raw:
        headers = {**UPGRADE, "Content-Length": str(len(HELLO))}
        await raw.send(request("/echo", headers) + HELLO)
        raw.half_close()
        rest = await raw.rest()
        assert ECHOED not in rest or parsed(rest.partition(b"\r\n\r\n")[0]).status == 101


@pytest.mark.parametrize("upgrade", ["h2c", "websocket, h2c", "WebSocket/13"])
async def test_another_upgrade_is_a_request(server: Server, upgrade: str) -> None:
    """RFC 9110, 7.8: "A server MAY ignore a received Upgrade header field"."""
    async with nothing_leaks(server), dialled(server) as raw:
        answer = await raw.ask("/", {"Connection": "Upgrade", "Upgrade": upgrade})
        assert (answer.status, answer.body) == (200, b"a page")


async def test_an_upgrade_in_http_1_0_is_a_request(server: Server) -> None:
    async with nothing_leaks(server), dialled(server) as raw:
        await raw.send(request("/", UPGRADE).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
        answer = await raw.answer()
        assert (answer.status, answer.body) == (200, b"a page")
