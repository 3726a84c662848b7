"""The head of a request under `yaat run`: how long it may take, how big it may be, and garbage.

What is awaited is the server's own act: it hangs up. That it did not hang up too early is seen by
a connection that says nothing: when that is cut, the time is over for what came before.
"""

import asyncio
import random
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import repeat
from pathlib import Path

import pytest

from running import (
    APP,
    ECHOED,
    HELLO,
    LOOPS,
    TIMEOUT,
    UPGRADE,
    Raw,
    dialled,
    dialled_tls,
    dialled_unix,
    fetch,
    files_of,
    forget_peak,
    gathered,
    memory,
    nothing_leaks,
    parsed,
    request,
    specification,
    start,
    until,
)
from servers import Server, ServerPool, ServerSpec
from wires import TlsServer, UnixServer

MIB = 1_048_576
SHORT = "0.4"
"""In seconds: what the servers here have patience for, unless they have the default of 10."""

HEAD = request("/")
HANDSHAKE = request("/echo", UPGRADE)
# What somebody may send and then say no more, or one byte from time to time, but no whole head.
BEGINNINGS = {
    "a-letter": b"G",
    "a-method": b"GET ",
    "a-target": b"GET /",
    "a-first-line": b"GET / HTTP/1.1\r\n",
    "a-header": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n",
    "all-but-the-last-byte": HEAD[:-1],
    "a-handshake-but-for-the-last-byte": HANDSHAKE[:-1],
}


@pytest.fixture(scope="module", params=LOOPS)
def loop(request: pytest.FixtureRequest) -> str:
    """Each event loop in turn."""
    return str(request.param)


@pytest.fixture
def hasty(servers: ServerPool, loop: str) -> Server:
    """It waits 0.4 s for a head."""
    return start(servers, loop, "--handshake-timeout", SHORT)


@pytest.fixture
def server(servers: ServerPool, loop: str) -> Server:
    """With every default."""
    return start(servers, loop)


async def cut(raw: Raw) -> int | None:
    """Read until the server hangs up; return the status that it sent, if it did."""
    rest = await raw.rest()
    return parsed(rest.partition(b"\r\n\r\n")[0]).status if rest else None


async def after_a_timeout(server: Server) -> None:
    """Wait until the server has lost its patience with somebody who came only now."""
    async with dialled(server) as silent:
        assert await cut(silent) is None


# Time


async def test_who_says_nothing_is_cut_without_a_word(hasty: Server) -> None:
    async with nothing_leaks(hasty), dialled(hasty) as raw:
        assert await cut(raw) is None


@pytest.mark.parametrize("beginning", BEGINNINGS)
async def test_who_begins_and_falls_silent_is_answered_408(hasty: Server, beginning: str) -> None:
    async with nothing_leaks(hasty), dialled(hasty) as raw:
        await raw.send(BEGINNINGS[beginning])
        answer = await raw.answer()
        assert answer.status == 408
        assert answer.header("connection") == "close"
        assert await raw.rest() == b""


async def test_a_head_that_is_dripped_for_ever_is_cut(hasty: Server) -> None:
    async with nothing_leaks(hasty), dialled(hasty) as raw:
        await raw.send(b"GET / HTTP/1.1\r\nX: ")
        with suppress(ConnectionError):
            await drip(raw, repeat(b"x"))
        assert await cut(raw) == 408


async def test_empty_lines_are_no_beginning(hasty: Server) -> None:
    """RFC 9112, 2.2: an empty line before a request is ignored; a row of them wins no time."""
    async with nothing_leaks(hasty), dialled(hasty) as raw:
        with suppress(ConnectionError):
            await drip(raw, repeat(b"\r\n"))
        assert await cut(raw) in (None, 408)


async def drip(raw: Raw, pieces: Iterable[bytes]) -> None:
    """Send them one by one, each in a packet of its own, until the server hangs up."""
    for piece in pieces:
        if raw.reader.at_eof() or raw.writer.transport.is_closing() or raw.reader._buffer:  # type: ignore[attr-defined]
            return
        await raw.send(piece)
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("head", [HEAD, HANDSHAKE], ids=["http", "websocket"])
async def test_a_slow_head_that_is_whole_in_time_is_answered(server: Server, head: bytes) -> None:
    async with dialled(server) as raw:
        await drip(raw, (head[at : at + 1] for at in range(len(head))))
        assert (await raw.answer()).status == (200 if head is HEAD else 101)


async def test_who_is_done_in_time_is_not_cut_later(hasty: Server) -> None:
    async with nothing_leaks(hasty), AsyncExitStack() as stack:
        websocket, slow, half_said, pending = [
            await stack.enter_async_context(dialled(hasty)) for _ in range(4)
        ]
        await websocket.upgraded("/echo")
        await slow.send(request("/slow/in-time"))
        assert (await slow.reader.readuntil(b"first, ")).startswith(b"HTTP/1.1 200")
        await half_said.send(request("/weigh", {"Content-Length": "10"}, "POST") + b"01234")
        await pending.send(request("/undecided/in-time", UPGRADE))
        await after_a_timeout(hasty)
        await after_a_timeout(hasty)
        await fetch(hasty, "/allow/in-time")
        await websocket.send(HELLO)
        await websocket.exactly(ECHOED)
        assert b"then the rest" in await slow.reader.readuntil(b"0\r\n\r\n")
        await half_said.send(b"56789")
        assert (await half_said.answer()).body == b"10 bytes, a684c7c6"
        assert (await pending.answer()).status == 101
        await pending.send(HELLO)
        await pending.exactly(ECHOED)


async def test_a_chunked_body_takes_its_time(hasty: Server) -> None:
    async with nothing_leaks(hasty), dialled(hasty) as raw:
        await raw.send(request("/weigh", {"Transfer-Encoding": "chunked"}, "POST"))
        for chunk in (b"5\r\n01234\r\n", b"5\r\n56789\r\n"):
            await after_a_timeout(hasty)
            await raw.send(chunk)
        await raw.send(b"0\r\n\r\n")
        assert (await raw.answer()).body == b"10 bytes, a684c7c6"


@pytest.mark.parametrize("beginning", BEGINNINGS)
async def test_the_second_head_of_a_connection_has_its_time_too(
    hasty: Server, beginning: str
) -> None:
    async with nothing_leaks(hasty), dialled(hasty) as raw:
        assert (await raw.ask("/")).body == b"a page"
        await raw.send(BEGINNINGS[beginning])
        assert (await raw.answer()).status == 408
        assert await raw.rest() == b""


async def test_a_second_head_that_is_dripped_is_cut(hasty: Server) -> None:
    async with nothing_leaks(hasty), dialled(hasty) as raw:
        assert (await raw.ask("/")).body == b"a page"
        await raw.send(b"GET / HTTP/1.1\r\nX: ")
        with suppress(ConnectionError):
            await drip(raw, repeat(b"x"))
        assert await cut(raw) == 408


async def test_each_head_of_a_connection_has_the_whole_time(servers: ServerPool, loop: str) -> None:
    """Ten requests, each of them slow but in time, take longer than one may."""
    server = start(servers, loop, "--handshake-timeout", "1")
    async with dialled(server) as raw:
        for _ in range(10):
            await raw.send(HEAD[:-1])
            await asyncio.sleep(0.15)
            await raw.send(HEAD[-1:])
            assert (await raw.answer()).body == b"a page"


async def test_half_a_head_behind_a_request_does_not_spoil_its_answer(hasty: Server) -> None:
    async with nothing_leaks(hasty), dialled(hasty) as raw:
        await raw.send(request("/slow/pipelined") + b"GET / HT")
        await raw.reader.readuntil(b"first, ")
        await after_a_timeout(hasty)
        await after_a_timeout(hasty)
        await fetch(hasty, "/allow/pipelined")
        async with asyncio.timeout(TIMEOUT):
            answer = await raw.reader.readuntil(b"0\r\n\r\n")
        assert b"408" not in answer
        assert b"then the rest" in answer
        # Now the second head is due.
        assert await cut(raw) == 408


async def test_a_whole_head_behind_half_a_head_and_a_slow_answer(hasty: Server) -> None:
    """The time of a head that waits behind an answer is not over before anybody reads it."""
    async with nothing_leaks(hasty), dialled(hasty) as raw:
        await raw.send(request("/slow/queued") + request("/") + request("/ignore"))
        await raw.reader.readuntil(b"first, ")
        await after_a_timeout(hasty)
        await fetch(hasty, "/allow/queued")
        async with asyncio.timeout(TIMEOUT):
            await raw.reader.readuntil(b"0\r\n\r\n")
        assert (await raw.answer()).body == b"a page"
        assert (await raw.answer()).body == b"whatever"


async def test_who_waits_for_the_next_request_is_hung_up_on_silently(
    servers: ServerPool, loop: str
) -> None:
    server = start(servers, loop, "--keep-alive-timeout", "0.3", "--handshake-timeout", "60")
    async with nothing_leaks(server), dialled(server) as raw:
        assert (await raw.ask("/")).body == b"a page"
        assert await raw.rest() == b""


async def test_tls_has_its_time_too(loop: str, tmp_path: Path) -> None:
    spec = specification(loop, "--handshake-timeout", SHORT)
    with TlsServer(spec, APP, tmp_path) as server:
        for beginning in (b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"):
            async with dialled(server) as raw:
                await raw.send(beginning)
                await raw.rest()
        async with dialled_tls(server, server.context()) as raw:
            assert await cut(raw) is None
        async with dialled_tls(server, server.context()) as raw:
            await raw.send(HEAD[:-1])
            assert await cut(raw) == 408
        async with dialled_tls(server, server.context()) as raw:
            await raw.send(HEAD)
            assert (await raw.answer()).body == b"a page"
        assert "Traceback" not in server.written_since()


async def test_who_does_not_answer_the_end_of_tls_is_cut(loop: str, tmp_path: Path) -> None:
    """Neither who is silent within TLS nor who was answered 408 can hold the connection open."""
    with TlsServer(specification(loop, "--handshake-timeout", SHORT), APP, tmp_path) as server:
        async with dialled_tls(server, server.context()) as raw:
            await raw.send(HEAD)
            assert (await raw.answer()).body == b"a page"
        before = files_of(server.pid)
        peers = [await asyncio.to_thread(deaf, server, data) for data in (b"", HEAD[:-1], b"?\r\n")]

        async def are_gone() -> bool:
            return files_of(server.pid) <= before

        try:
            await until(are_gone)
        finally:
            for peer in peers:
                peer.close()


def deaf(server: TlsServer, data: bytes) -> ssl.SSLSocket:
    """Speak TLS up to this, and from then on neither speak nor listen."""
    peer = socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT)
    wrapped = server.context().wrap_socket(peer, server_hostname="127.0.0.1")
    wrapped.sendall(data)
    return wrapped


async def test_unix_sockets_have_their_time_too(loop: str, tmp_path: Path) -> None:
    with UnixServer(specification(loop, "--handshake-timeout", SHORT), APP, tmp_path) as server:
        async with dialled_unix(server.path) as raw:
            assert await cut(raw) is None
        async with dialled_unix(server.path) as raw:
            await raw.send(HEAD[:-1])
            assert await cut(raw) == 408


# Size

LINE = 8_192
"""The default of `--max-header-bytes`."""
SLACK = 32
"""How many bytes there may be between what passes and what does not: the end of a line, and what of
the first line is no target."""
PIECE = 10_000


def head(*lines: str, target: str = "/", handshake: bool = False) -> bytes:
    fields = [f"{name}: {value}" for name, value in UPGRADE.items()] if handshake else []
    first = f"GET {'/echo' if handshake and target == '/' else target} HTTP/1.1"
    return "\r\n".join([first, "Host: 127.0.0.1", *fields, *lines, "", ""]).encode()


def line(size: int) -> str:
    """A header line of so many bytes, without its end."""
    return f"X: {'v' * (size - 3)}"


def many(count: int, *, handshake: bool) -> bytes:
    """A head of so many headers."""
    others = count - 1 - (len(UPGRADE) if handshake else 0)
    return head(*(f"X-{number}: 1" for number in range(others)), handshake=handshake)


# Each with a size up to which it passes and the size from which it does not.
OF_A_SIZE: dict[str, tuple[Callable[[int], bytes], int, int]] = {
    "a-value": (lambda size: head(line(size)), LINE - SLACK, LINE + SLACK),
    "a-name": (lambda size: head(f"{'n' * (size - 3)}: 1"), LINE - SLACK, LINE + SLACK),
    "a-target": (lambda size: head(target="/?" + "q" * (size - 15)), LINE - SLACK, LINE + SLACK),
    # What a parser throws away is measured in pieces only.
    "spaces-before": (lambda size: head(f"X:{' ' * (size - 3)}v"), LINE - SLACK, LINE + PIECE),
    "spaces-behind": (lambda size: head(f"X: v{' ' * (size - 4)}"), LINE - SLACK, LINE + PIECE),
    "tabs": (lambda size: head("X:" + "\t" * (size - 3) + "v"), LINE - SLACK, LINE + PIECE),
    "headers": (lambda count: many(count, handshake=False), 128, 129),
    "a-handshake's-value": (
        lambda size: head(line(size), handshake=True),
        LINE - SLACK,
        LINE + SLACK,
    ),
    "a-handshake's-target": (
        lambda size: head(target="/echo?" + "q" * (size - 19), handshake=True),
        LINE - SLACK,
        LINE + SLACK,
    ),
    "a-handshake's-headers": (lambda count: many(count, handshake=True), 128, 129),
}


@pytest.mark.parametrize("what", OF_A_SIZE)
@pytest.mark.parametrize("step", [7, 100_000], ids=["in-pieces", "at-once"])
async def test_just_under_the_limit_it_passes(server: Server, what: str, step: int) -> None:
    made, most, _ = OF_A_SIZE[what]
    async with dialled(server) as raw:
        await in_pieces(raw, made(most), step)
        assert (await raw.answer()).status == (101 if "handshake" in what else 200)


@pytest.mark.parametrize("what", OF_A_SIZE)
@pytest.mark.parametrize("step", [7, 100_000], ids=["in-pieces", "at-once"])
async def test_over_the_limit_it_is_431(server: Server, what: str, step: int) -> None:
    made, _, too_much = OF_A_SIZE[what]
    async with nothing_leaks(server), dialled(server) as raw:
        await in_pieces(raw, made(too_much), step)
        answer = await raw.answer()
        assert (answer.status, answer.header("connection")) == (431, "close")
        assert await raw.rest() == b""


async def in_pieces(raw: Raw, data: bytes, step: int) -> None:
    with suppress(ConnectionError):
        for at in range(0, len(data), step):
            await raw.send(data[at : at + step])
            if step < 100:
                await asyncio.sleep(0)


@pytest.mark.parametrize("what", OF_A_SIZE)
async def test_the_second_request_has_the_same_limits(server: Server, what: str) -> None:
    made, most, too_much = OF_A_SIZE[what]
    async with dialled(server) as raw:
        if "handshake" not in what:
            await raw.send(made(most))
            assert (await raw.answer()).status == 200
        assert (await raw.ask("/")).status == 200
        await raw.send(made(too_much))
        assert await cut(raw) == 431


async def test_the_limits_are_settable(servers: ServerPool, loop: str) -> None:
    server = start(servers, loop, "--max-headers", "10", "--max-header-bytes", "100")
    for data, status in (
        (many(10, handshake=False), 200),
        (many(11, handshake=False), 431),
        (head(line(100 - SLACK)), 200),
        (head(line(100 + SLACK)), 431),
        (head(target="/" + "?" * 200), 431),
    ):
        async with dialled(server) as raw:
            await raw.send(data)
            assert (await raw.answer()).status == status


ENDLESS = {
    "target": (b"GET /", b"x"),
    "method": (b"", b"G"),
    "name": (b"GET / HTTP/1.1\r\n", b"n"),
    "value": (b"GET / HTTP/1.1\r\nX: ", b"v"),
    "spaces": (b"GET / HTTP/1.1\r\nX:", b" "),
    "headers": (b"GET / HTTP/1.1\r\n", b"X: 1\r\n"),
    "empty-headers": (b"GET / HTTP/1.1\r\n", b"X:\r\n"),
    "folds": (b"GET / HTTP/1.1\r\nX: 1\r\n", b" 2\r\n"),
    "spaces-in-the-first-line": (b"GET ", b" "),
    "trailers": (
        b"POST /weigh HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n",
        b"X: 1\r\n",
    ),
    "a-trailer": (
        b"POST /weigh HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX: ",
        b"v",
    ),
    "a-chunk-extension": (
        b"POST /weigh HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n1;",
        b"v",
    ),
    "a-chunk-size": (
        b"POST /weigh HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n",
        b"0",
    ),
    "a-handshake": (HANDSHAKE[:-2] + b"X: ", b"v"),
}


@pytest.mark.parametrize("what", ENDLESS)
async def test_what_has_no_end_is_cut(server: Server, what: str) -> None:
    """The server hangs up by itself, long before the time is over; it answers 4xx if anything."""
    begin, piece = ENDLESS[what]
    async with nothing_leaks(server), dialled(server) as raw:
        with suppress(ConnectionError):
            await raw.send(begin)
            for _ in range(32):
                await raw.send(piece * (65_536 // len(piece)))
        assert await cut(raw) in (None, 400, 431)


CROWD = 200
ROOM = 32 * MIB


@pytest.mark.parametrize("what", ENDLESS)
async def test_many_who_send_without_an_end_cost_little(server: Server, what: str) -> None:
    """Each sends 1 MiB: 200 MiB if it were kept."""
    begin, piece = ENDLESS[what]
    data = begin + piece * (MIB // len(piece))
    async with nothing_leaks(server), costs_at_most(server, ROOM):

        async def send() -> None:
            async with dialled(server) as raw:
                with suppress(ConnectionError, TimeoutError):
                    raw.writer.write(data)
                    await raw.reader.read(1)

        await gathered(send() for _ in range(CROWD))


async def test_many_who_never_finish_a_head_within_the_limits(server: Server) -> None:
    """Headers just short enough and just few enough, and then nothing: little is kept of each."""
    data = b"GET / HTTP/1.1\r\n" + f"{line(LINE - SLACK)}\r\n".encode() * 120
    async with nothing_leaks(server), costs_at_most(server, ROOM), AsyncExitStack() as stack:
        for _ in range(CROWD):
            raw = await stack.enter_async_context(dialled(server))
            raw.writer.write(data)
        await fetch(server, "/")


async def test_requests_whose_answers_nobody_reads_cost_little(server: Server) -> None:
    """The server stops reading when the answers are not read."""
    data = head(line(4_000), target="/scope") * (32 * MIB // 4_000)
    async with nothing_leaks(server), costs_at_most(server, ROOM), dialled(server) as raw:
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        raw.writer.write(data)
        left = len(data)
        # It takes what the kernel holds and some more, then no more.
        while (now := raw.writer.transport.get_write_buffer_size()) < left:
            left = now
            await fetch(server, "/")
            await asyncio.sleep(0.3)
        assert left > len(data) // 2


@asynccontextmanager
async def costs_at_most(server: Server, most: int) -> AsyncIterator[None]:
    """Assert that the process never had so much more memory as when the block began."""
    forget_peak(server)
    before = memory(server, "VmHWM")
    yield
    grown = memory(server, "VmHWM") - before
    assert grown < most, f"{grown / MIB:.1f} MiB"


# What is no HTTP

GARBAGE = {
    "nothing-of-sense": b"?\r\n\r\n",
    "zeros": bytes(1_000),
    "a-tls-hello": bytes.fromhex("16030100c8010000c40303") + bytes(200),
    "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(100),
    "ssh": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a-frame": HELLO * 100,
    "http-0.9": b"GET /\r\n",
    "a-wrong-version": b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
    "no-name": b"GET / HTTP/1.1\r\n: 1\r\n\r\n",
    "a-space-in-a-name": b"GET / HTTP/1.1\r\nX y: 1\r\n\r\n",
    "a-zero-in-a-value": b"GET / HTTP/1.1\r\nX: \0\r\n\r\n",
    "two-lengths": b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    "a-length-below-zero": b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    "length-and-chunks": (
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "no-chunk": b"POST /weigh HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "an-unknown-method": b"BREW / HTTP/1.1\r\n\r\n",
    "a-lone-cr": b"GET / HTTP/1.1\rHost: a\r\r",
    "not-ascii": "GET /grüß HTTP/1.1\r\n\r\n".encode(),
}


@pytest.mark.parametrize("what", GARBAGE)
async def test_garbage_is_refused_and_nothing_comes_of_it(server: Server, what: str) -> None:
    async with nothing_leaks(server):
        async with dialled(server) as raw:
            await raw.send(GARBAGE[what])
            raw.half_close()
            assert await cut(raw) in (None, 400, 408)
        assert (await fetch(server, "/")).body == b"a page"


@pytest.mark.parametrize("seed", range(3))
async def test_random_bytes_are_refused(server: Server, seed: int) -> None:
    dice = random.Random(seed)
    async with nothing_leaks(server):
        for _ in range(100):
            async with dialled(server) as raw:
                data = bytearray(HANDSHAKE + HELLO)
                for _ in range(dice.randint(1, 5)):
                    data[dice.randrange(len(data))] = dice.randrange(256)
                with suppress(ConnectionError):
                    await raw.send(bytes(data))
                    raw.half_close()
                await raw.rest()


async def test_plain_http_to_a_tls_port(loop: str, tmp_path: Path) -> None:
    with TlsServer(specification(loop), APP, tmp_path) as server:
        for _ in range(10):
            async with dialled(server) as raw:
                with suppress(ConnectionError):
                    await raw.send(HEAD)
                await raw.rest()
        with pytest.raises(ssl.SSLError):  # it does not trust the certificate
            async with dialled_tls(server, ssl.create_default_context()):
                pass
        async with dialled_tls(server, server.context()) as raw:
            await raw.send(HEAD)
            assert (await raw.answer()).body == b"a page"
        assert "Traceback" not in server.written_since(), server.written_since()


@pytest.mark.parametrize("beginning", ["", *BEGINNINGS])
async def test_who_leaves_within_the_head(server: Server, beginning: str) -> None:
    """By FIN and by RST: each connection is forgotten at once, not when its time is over."""
    data = BEGINNINGS.get(beginning, b"")
    async with nothing_leaks(server):
        for _ in range(20):
            async with dialled(server) as raw:
                await raw.send(data)
                raw.half_close()
                assert await cut(raw) in (None, 400, 408)
            async with dialled(server) as raw:
                await raw.send(data)
                raw.reset()


async def test_who_leaves_within_an_answer(server: Server) -> None:
    async with nothing_leaks(server):
        for number in range(20):
            async with dialled(server) as raw:
                await raw.send(request(f"/slow/left-{number}"))
                await raw.reader.readuntil(b"first, ")
                raw.reset()
            async with dialled(server) as raw:
                await raw.send(request("/weigh", {"Content-Length": "10"}, "POST") + b"01")
                raw.reset()
            await fetch(server, f"/allow/left-{number}")


SILENT = 2_000


async def test_two_thousand_who_say_nothing(servers: ServerPool, loop: str) -> None:
    server = start(servers, loop, "--handshake-timeout", "3")
    async with nothing_leaks(server), AsyncExitStack() as stack:
        crowd = [await stack.enter_async_context(dialled(server)) for _ in range(SILENT)]
        # Meanwhile it serves.
        assert (await fetch(server, "/")).body == b"a page"
        async with dialled(server) as raw:
            await raw.upgraded("/echo")
            await raw.send(HELLO)
            await raw.exactly(ECHOED)
        assert set(await gathered(map(cut, crowd))) == {None}


async def test_more_connections_than_files(loop: str, tmp_path: Path) -> None:
    """Who is too many is cut; it is said in few words, and forgotten when there are fewer."""
    spec = specification(loop, "--handshake-timeout", "2")

    def arguments(app: str, port: int) -> list[str]:
        return ["apps.run_with_files", "150", *spec.arguments(app, port)[1:]]

    with Server(ServerSpec(f"few-files-{loop}", arguments), APP, tmp_path) as server:
        async with AsyncExitStack() as stack:
            crowd = [await stack.enter_async_context(dialled(server)) for _ in range(400)]
            assert set(await gathered(map(cut, crowd))) <= {None, 503}
        async with nothing_leaks(server), dialled(server) as raw:
            await raw.upgraded("/echo")
            await raw.send(HELLO)
            await raw.exactly(ECHOED)
        written = server.written_since()
        assert "Traceback" not in written, written[:2_000]
        assert len(written) < 10_000
