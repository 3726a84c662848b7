"""HTTP under `yaat run`: what uvicorn answers, byte for byte, but for what is meant to differ."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest

from running import (
    APP,
    LOOPS,
    TIMEOUT,
    UPGRADE,
    Raw,
    dialled,
    fetch,
    gathered,
    nothing_leaks,
    request,
    start,
)
from servers import Server, ServerPool, ServerSpec

END = {"Connection": "close"}
LARGE = bytes(range(256)) * 8_192
"""2 MiB: more than anybody reads ahead."""


@pytest.fixture(scope="module", params=LOOPS)
def loop(request: pytest.FixtureRequest) -> str:
    """Each event loop in turn."""
    return str(request.param)


@pytest.fixture
def ours(servers: ServerPool, loop: str) -> Server:
    return start(servers, loop)


@pytest.fixture
def theirs(servers: ServerPool, loop: str) -> Server:
    return servers.get(ServerSpec(f"uvicorn-{loop}", partial(uvicorn, loop)), APP)


def uvicorn(loop: str, app: str, port: int) -> list[str]:
    options = f"--host 127.0.0.1 --port {port} --loop {loop} --http httptools --no-access-log"
    return ["uvicorn", app, *options.split()]


def post(path: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    return request(path, {"Content-Length": str(len(body)), **(headers or {})}, "POST") + body


def chunked(path: str, *chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return request(path, {"Transfer-Encoding": "chunked", **END}, "POST") + body + end


# What is sent on one connection, of which all is read that comes.
TABLE: dict[str, bytes] = {
    "get": request("/", END),
    "head": request("/", END, "HEAD"),
    "head-of-parts": request("/parts", END, "HEAD"),
    "parts": request("/parts", END),
    "no-content": request("/nothing", END),
    "options": request("/", END, "OPTIONS"),
    "an-application-that-crashes": request("/crash", END),
    "an-application-that-closes": request("/closing") + request("/"),
    "http-1.0": b"GET / HTTP/1.0\r\n\r\n",
    "http-1.0-parts": b"GET /parts HTTP/1.0\r\n\r\n",
    "http-1.0-keep-alive": b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "no-host": b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
    "post": post("/weigh", b"some", END),
    "an-empty-post": post("/weigh", b"", END),
    "a-large-post": post("/weigh", LARGE, END),
    "a-post-that-nobody-reads": post("/ignore", b"some", END),
    "a-large-post-that-nobody-reads": post("/ignore", LARGE[:100_000], END),
    "put": post("/weigh", b"some", END).replace(b"POST", b"PUT"),
    "chunked": chunked("/weigh", b"one", b"and", b"two"),
    "large-chunks": chunked("/weigh", LARGE, LARGE),
    "no-chunks": chunked("/weigh"),
    "a-trailer": chunked("/weigh", b"one", end=b"0\r\nX: 1\r\n\r\n"),
    "a-chunk-extension": chunked("/weigh").replace(b"0\r\n", b"3;x=y\r\none\r\n0\r\n"),
    "two-requests": request("/") + request("/parts", END),
    "ten-requests": request("/") * 9 + request("/", END),
    "posts": post("/weigh", b"one") + post("/weigh", b"two") + request("/", END),
    "a-post-and-chunks": post("/weigh", b"one") + chunked("/weigh", b"two"),
    "empty-lines-before": b"\r\n\r\n" + request("/", END),
    "line-feeds-alone": request("/", END).replace(b"\r\n", b"\n"),
    "upgrade-to-what-nobody-knows": request("/", {"Connection": "Upgrade, close", "Upgrade": "a"}),
    "a-query": request("/scope?a=1&b=%20", END),
    "a-quoted-path": request("/scope/%C3%BC%2F", END),
    "a-quoted-path-that-is-no-utf-8": request("/scope/%FF", END),
    "an-absolute-target": request("http://example.org/scope?x", END),
    "headers": request("/scope", {"X-A": "1", "x-a": "2", "X-Empty": "", **END}),
    "a-header-in-latin-1": request("/scope", {"X-A": "grüß", **END}),
    "forwarded": request(
        "/scope", {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https", **END}
    ),
    "many-headers": request("/scope", {**{f"X-{n}": "v" for n in range(100)}, **END}),
    "a-long-value": request("/scope", {"X-A": "v" * 8_000, **END}),
    "a-refused-handshake": request("/refuse", UPGRADE),
    "a-denied-handshake": request("/deny", UPGRADE),
    "garbage": b"?\r\n\r\n",
    "two-lengths": b"POST /weigh HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    "a-body-that-ends-early": post("/weigh", b"some", END)[:-1],
    "a-head-that-ends-early": request("/")[:-1],
    "nothing": b"",
}

# Behind these the client sends FIN, else it would be waited for.
ENDED = {"a-body-that-ends-early", "a-head-that-ends-early", "nothing"}
# What uvicorn's WebSocket class or its parser says in other words: the status is the same.
SAME_STATUS = {"a-refused-handshake", "a-denied-handshake"}


async def said(server: Server, what: str) -> list[bytes]:
    """Return the lines that come, but for what is never the same."""
    async with dialled(server) as raw:
        await raw.send(TABLE[what])
        if what in ENDED:
            raw.half_close()
        answer = await raw.rest()
    answer = re.sub(rb"(?m)^date: [^\r]*\r\n", b"", answer)
    answer = answer.replace(b"%d" % server.port, b"PORT")
    # The client's port, which is in what the application tells of a scope.
    answer = re.sub(rb'("client": \["127.0.0.1", )\d+', rb"\1PORT", answer)
    lines = answer.split(b"\r\n")
    return lines[:1] if what in SAME_STATUS or lines[0].startswith(b"HTTP/1.1 400 ") else lines


@pytest.mark.parametrize("what", TABLE)
async def test_it_answers_as_uvicorn_does(ours: Server, theirs: Server, what: str) -> None:
    expected, got = await gathered(said(server, what) for server in (theirs, ours))
    assert got == expected


async def test_garbage_behind_a_request_is_not_its_answer(ours: Server) -> None:
    """It is hung up behind that: uvicorn would answer 400 in its place."""
    async with nothing_leaks(ours), dialled(ours) as raw:
        await raw.send(request("/") + b"?\r\n\r\n")
        assert (await raw.answer()).body == b"a page"
        assert b"200" not in await raw.rest()


async def test_spaces_around_a_value_are_no_part_of_it(ours: Server) -> None:
    """RFC 9110, 5.5: it "does not include leading or trailing whitespace". uvicorn keeps these."""
    told = json.loads((await fetch(ours, "/scope", {"X-A": "  v w \t "})).body)
    assert ["x-a", "v w"] in told["headers"]


async def test_keep_alive(ours: Server) -> None:
    async with nothing_leaks(ours), dialled(ours) as raw:
        for _ in range(50):
            assert (await raw.ask("/")).body == b"a page"
            await raw.send(request("/", method="HEAD"))
            assert (await raw.answer(of_head=True)).header("content-length") == "6"
            await raw.send(post("/weigh", b"some"))
            assert (await raw.answer()).body == b"4 bytes, f6cedc4e"
            assert (await raw.ask("/nothing")).status == 204
            assert (await raw.ask("/parts")).body == b"one two three"


async def test_it_says_whether_to_go_on(ours: Server) -> None:
    """RFC 9110, 10.1.1: 100 (Continue) when the application asks for the body, not before."""
    async with nothing_leaks(ours), dialled(ours) as raw:
        headers = {"Content-Length": "4", "Expect": "100-continue"}
        await raw.send(request("/weigh", headers, "POST"))
        assert (await raw.answer()).status == 100
        await raw.send(b"some")
        assert (await raw.answer()).body == b"4 bytes, f6cedc4e"
    async with nothing_leaks(ours), dialled(ours) as raw:
        await raw.send(request("/ignore", headers, "POST"))
        assert (await raw.answer()).body == b"whatever"


async def test_a_large_body_in_small_pieces(ours: Server) -> None:
    data = post("/weigh", LARGE[:300_000])
    async with nothing_leaks(ours), dialled(ours) as raw:
        for at in range(0, len(data), 997):
            await raw.send(data[at : at + 997])
        assert (await raw.answer()).body.startswith(b"300000 bytes")


async def test_many_at_once(ours: Server) -> None:
    async def visit(number: int) -> None:
        async with dialled(ours) as raw:
            for _ in range(5):
                await raw.send(post("/weigh", b"x" * number))
                assert (await raw.answer()).body.startswith(b"%d bytes" % number)

    async with nothing_leaks(ours):
        await gathered(visit(number) for number in range(100))


async def test_a_large_answer_to_who_reads_slowly(ours: Server) -> None:
    """What is pipelined and not read stops the server from reading, not from serving others."""
    async with nothing_leaks(ours), dialled(ours) as raw:
        asked = request("/scope", {"X-A": "v" * 8_000}) * 500
        sending = asyncio.create_task(raw.send(asked))
        assert (await fetch(ours, "/")).body == b"a page"
        for _ in range(500):
            assert len((await raw.answer()).body) > 8_000
        await sending


async def test_answers_of_pipelined_requests_keep_their_order(ours: Server) -> None:
    async with nothing_leaks(ours), dialled(ours) as raw:
        await raw.send(request("/undecided/order") + request("/") + post("/weigh", b"some"))
        await fetch(ours, "/")
        await fetch(ours, "/allow/order")
        bodies = [(await raw.answer()).body for _ in range(3)]
        assert bodies == [b"at last", b"a page", b"4 bytes, f6cedc4e"]


@asynccontextmanager
async def half_closed(server: Server, data: bytes) -> AsyncIterator[Raw]:
    async with dialled(server) as raw:
        await raw.send(data)
        raw.half_close()
        yield raw


async def test_who_has_said_all_still_gets_the_answer(ours: Server, theirs: Server) -> None:
    """A FIN behind a request ends what is sent, and nothing else; the same as under uvicorn."""
    for server in (theirs, ours):
        async with half_closed(server, request("/undecided/half")) as raw:
            await fetch(server, "/")
            await fetch(server, "/allow/half")
            rest = await raw.rest()
            assert rest.endswith(b"at last") or not rest, rest
        if server is theirs:
            expected = bool(rest)
    assert bool(rest) is expected


async def test_it_waits_for_who_does_not_read(ours: Server) -> None:
    """An application that sends much to who does not read waits, and goes on when he does."""
    async with nothing_leaks(ours), dialled(ours) as raw:
        transport = raw.writer.transport
        transport.pause_reading()  # type: ignore[attr-defined]
        await raw.send(request("/flood"))
        assert (await fetch(ours, "/")).body == b"a page"
        transport.resume_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(TIMEOUT):
            total = 0
            while total < 32 * 2**20:
                total += len(await raw.reader.read(2**20))
