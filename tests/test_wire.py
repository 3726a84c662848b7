"""The wire extension on real servers.

What a framework can do with it; and that a Yaat behaves with it as it does without.
"""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame

from apps.wire import MIXED, WATCHES
from clients import Client, Closed, Frames, SocketClient
from peers import ServerPeer
from servers import SPECS, Server, ServerPool, ServerSpec
from wires import TlsServer, WirePeer

OURS = ("yaat-uvloop", "yaat-asyncio", "yaat-run-uvloop", "yaat-run-asyncio")
OTHERS = tuple(name for name in SPECS if name not in OURS)
# How a server is told to look after its peers often.
IMPATIENT = {
    "yaat-uvloop": ("--ws-ping-interval", "0.2", "--ws-ping-timeout", "0.2"),
    "yaat-run-asyncio": ("--ping-interval", "0.2", "--ping-timeout", "0.2"),
}

Leave = Callable[[Client], Any]
LEAVING: dict[str, tuple[Leave, int, str]] = {
    "close": (lambda client: client.hang_up(4321, "done"), 4321, "done"),
    "bare close": (lambda client: client.hang_up(None), 1005, ""),
    "fin": (lambda client: client.vanish(), 1006, ""),
    "rst": (lambda client: client.reset(), 1006, ""),
}


@pytest.fixture(scope="session", params=OURS)
def ours(request: pytest.FixtureRequest) -> ServerSpec:
    """Each server that offers the extension; of session scope, as the tests of one go together."""
    return SPECS[request.param]


@pytest.fixture(scope="session", params=SPECS)
def any_spec(request: pytest.FixtureRequest) -> ServerSpec:
    return SPECS[request.param]


@pytest.fixture
def bare(ours: ServerSpec, servers: ServerPool) -> ServerPeer:
    return ServerPeer(ours, servers.get(ours, "apps.wire:bare"))


@pytest.fixture
def peer(ours: ServerSpec, servers: ServerPool) -> ServerPeer:
    return ServerPeer(ours, servers.get(ours, "apps.wire:app"))


async def open_the_gate(peer: ServerPeer) -> None:
    async with peer.connect("/open-the-gate"):
        pass


async def read_all(client: Client) -> tuple[list[str | bytes], Closed]:
    messages: list[str | bytes] = []
    try:
        while True:
            messages.append(await client.receive())
    except Closed as end:
        return messages, end


def assert_quiet(peer: ServerPeer) -> None:
    assert peer.tracebacks() == 0, peer.written()
    assert peer.errors() == []


# Who may use it


async def test_a_bare_application_has_the_servers_own_send(bare: ServerPeer) -> None:
    async with bare.connect("/is-it-mine") as client:
        told = await client.receive_json()
    names = ["buffered", "on_loss", "on_room", "send", "version", "write"]
    assert told == {"mine": True, "version": 1, "names": names}


async def test_behind_a_middleware_that_wraps_it_it_has_not(bare: ServerPeer) -> None:
    async with bare.connect("/is-it-mine?wrapped=") as client:
        assert (await client.receive_json())["mine"] is False


# One frame to many sockets

# What each of the clients asks for, and the window that is agreed on: 0 is no compression.
ASKED: dict[int, str] = {0: ""} | {
    bits: f"permessage-deflate; server_max_window_bits={bits}" for bits in range(9, 16)
}
EACH = 3
TEXT = "".join(chr(32 + number * number % 95) for number in range(2_000))
DATA: list[str | bytes] = [
    "short",
    "",
    "é" * 5_000,
    TEXT,
    TEXT * 40,
    b"short",
    b"",
    TEXT.encode(),
    bytes(70_000),
]
SHORT = 4  # which are too short to be compressed


class Inflating(Frames):
    """Frames out of the bytes that a server sent who agreed on a window."""

    def __init__(self, window: int) -> None:
        super().__init__()
        # A window of its own for each message, no larger than was asked for: zlib sees to that.
        self._extension = PerMessageDeflate(
            remote_no_context_takeover=True,
            local_no_context_takeover=True,
            remote_max_window_bits=window,
            local_max_window_bits=15,
        )
        self.compressed = 0

    def next(self) -> Frame | None:
        extensions = [self._extension]
        if self._parser is None:
            self._parser = Frame.parse(self._exactly, mask=False, extensions=extensions)
        return super().next()

    def _exactly(self, size: int) -> Generator[None, None, bytes]:
        data = yield from self._bytes.read_exact(size)
        self.compressed += size == 2 and bool(data[0] & 0x40)  # RSV1, in the head of a frame
        return bytes(data)


@asynccontextmanager
async def listening(
    peer: ServerPeer, path: str, window: int, **options: Any
) -> AsyncIterator[SocketClient]:
    """Connect as a client that inflates what comes, if there is a window."""
    headers = [("sec-websocket-extensions", ASKED[window])] if window else []
    async with peer.connect(path, headers=headers, **options) as client:
        assert isinstance(client, SocketClient)
        agreed = dict(client.headers).get("sec-websocket-extensions", "")
        assert agreed.startswith("permessage-deflate") is bool(window)
        if window:
            client._frames = Inflating(window)
        yield client


def compressed(client: SocketClient) -> int:
    """How many of the messages that came were compressed."""
    return client._frames.compressed if isinstance(client._frames, Inflating) else 0


async def joined(peer: ServerPeer, stack: AsyncExitStack) -> list[SocketClient]:
    windows = sorted(ASKED) * EACH
    clients = [await stack.enter_async_context(listening(peer, "/join", each)) for each in windows]
    await peer.recorded("joined", len(clients))
    return clients


async def test_one_frame_to_many_sockets(bare: ServerPeer) -> None:
    async with AsyncExitStack() as stack:
        clients = await joined(bare, stack)
        sender = await stack.enter_async_context(bare.connect("/broadcast"))
        for data in DATA:
            if isinstance(data, str):
                await sender.send_text(data)
            else:
                await sender.send_bytes(data)
        for _ in DATA:
            told = await sender.receive_json()
            assert told["taken"] == [True] * len(clients)
            # Once for each window and not once for each connection.
            assert told["windows"] == sorted(ASKED)
        for window, client in zip(sorted(ASKED) * EACH, clients, strict=True):
            assert [await client.receive() for _ in DATA] == DATA
            assert compressed(client) == (window and len(DATA) - SHORT)
    assert_quiet(bare)


async def test_who_has_left_takes_nothing_and_the_others_do(bare: ServerPeer) -> None:
    async with AsyncExitStack() as stack:
        clients = await joined(bare, stack)
        await clients[3].close()
        sender = await stack.enter_async_context(bare.connect("/broadcast"))
        await sender.send_text("hello")
        told = await sender.receive_json()
        assert Counter(told["taken"]) == {True: len(clients) - 1, False: 1}
        for client in [*clients[:3], *clients[4:]]:
            assert await client.receive() == "hello"


@pytest.mark.parametrize("is_slow", [False, True], ids=["reads", "reads late"])
@pytest.mark.parametrize("window", [0, 15])
async def test_what_is_written_and_sent_comes_in_the_order_of_the_calls(
    bare: ServerPeer, window: int, *, is_slow: bool
) -> None:
    async with listening(bare, "/mix", window, receive_buffer=4_096) as client:
        if is_slow:
            await bare.recorded("blocked")
        messages = [str(await client.receive()) for _ in range(MIXED)]
        assert [int(message.partition(" ")[0]) for message in messages] == list(range(MIXED))
    assert_quiet(bare)


# A peer that does not read


async def test_who_does_not_read_makes_no_room_until_it_reads(bare: ServerPeer) -> None:
    async with bare.connect("/fill", receive_buffer=4_096) as client:
        full = await bare.recorded("full")
        assert full["count"] > 0
        assert full["buffered"] >= 65_536
        # The loop has turned since then.
        async with bare.connect("/echo") as other:
            await other.send_text("a")
            assert await other.receive() == "a"
        assert bare.records("room") == []
        for _ in range(full["count"]):
            assert await client.receive() == bytes(10_000)
        assert await client.receive() == "room"
        with pytest.raises(Closed) as end:
            await client.receive()
        assert end.value.code == 1000
    room = await bare.recorded("room")
    assert room["taken"] is True
    assert room["buffered"] < 65_536
    assert_quiet(bare)


async def test_who_does_not_read_and_leaves_ends_the_wait(bare: ServerPeer) -> None:
    """There is never room then: the server stops all the same, and nobody is told."""
    async with bare.connect("/fill", receive_buffer=4_096) as client:
        await bare.recorded("full")
        await client.reset()
    async with bare.connect("/echo") as other:
        await other.send_text("a")
        assert await other.receive() == "a"
    assert bare.records("room") == []


# The loss


async def losing(peer: ServerPeer, client: Client) -> None:
    await peer.recorded("asked")
    for number in range(3):
        await client.send_text(str(number))


async def assert_told(peer: ServerPeer, code: int, reason: str, *, in_full: bool = True) -> None:
    told = await peer.recorded("told")
    assert (told["code"], told["reason"]) == (code, reason)
    end = await peer.recorded("end")
    assert (end["code"], end["reason"]) == (code, reason)
    assert end["messages"] == ["0", "1", "2"][: len(end["messages"])]
    assert not in_full or len(end["messages"]) == 3
    late = await peer.recorded("late")
    assert (late["taken"], late["buffered"]) == (False, 0)
    assert len(peer.records("told")) == 1
    assert_quiet(peer)


@pytest.mark.parametrize("way", LEAVING)
async def test_the_loss_is_told_to_who_does_nothing(bare: ServerPeer, way: str) -> None:
    leave, code, reason = LEAVING[way]
    async with bare.connect("/lose") as client:
        await losing(bare, client)
        await leave(client)
    await assert_told(bare, code, reason, in_full=way != "rst")


@pytest.mark.parametrize("name", IMPATIENT)
async def test_the_silence_of_a_peer_is_told(name: str, servers: ServerPool) -> None:
    spec = SPECS[name].but(*IMPATIENT[name])
    peer = ServerPeer(spec, servers.get(spec, "apps.wire:bare"))
    async with peer.connect("/lose") as client:
        await losing(peer, client)  # from here on nobody reads, nor answers a ping
        await assert_told(peer, 1006, "keepalive ping timeout")
        with pytest.raises(Closed) as end:
            await client.receive()
        assert (end.value.code, end.value.reason) == (1011, "keepalive ping timeout")


@pytest.mark.parametrize("kind", [Server, TlsServer], ids=["plain", "TLS"])
@pytest.mark.parametrize("name", OURS)
async def test_the_stop_of_the_server_is_told(
    name: str, kind: type[Server], tmp_path: Path
) -> None:
    with kind(SPECS[name], "apps.wire:bare", tmp_path) as server:
        peer = (WirePeer if kind is TlsServer else ServerPeer)(server.spec, server)
        async with peer.connect("/lose") as client:
            await losing(peer, client)
            # They are certain to be there: what came in behind them was answered.
            async with peer.connect("/echo") as other:
                await other.send_text("a")
                assert await other.receive() == "a"
            server.terminate()
            with pytest.raises(Closed) as end:
                await client.receive()
            assert end.value.code == 1012
        await assert_told(peer, 1012, "")
        assert await asyncio.to_thread(server.wait) in (0, -signal.SIGTERM)


# A middleware that alters every message


async def test_a_middleware_sees_and_alters_all_that_a_handler_sends(
    any_spec: ServerSpec, servers: ServerPool
) -> None:
    peer = ServerPeer(any_spec, servers.get(any_spec, "apps.wire:altered"))
    altered = ["one!", b"two!", "three!", b"four!", '{"five":5}!', "6!", "seven!"]
    async with peer.connect("/all") as client:
        assert [await client.receive() for _ in altered] == altered
        # granian's close frame waits until a `receive` that is under way has brought something;
        # others have hung up by now.
        with suppress(Closed):
            await client.send_text("anything")
        _, end = await read_all(client)
    assert end.code == 4001
    await peer.recorded("ended")
    passed = [record["type"].removeprefix("websocket.") for record in peer.records("passed")]
    assert passed == ["accept", *["send"] * len(altered), "close"]


async def test_behind_a_middleware_the_loss_is_noticed_in_every_way(
    any_spec: ServerSpec, servers: ServerPool
) -> None:
    peer = ServerPeer(any_spec, servers.get(any_spec, "apps.wire:altered"))
    async with peer.connect("/lose") as client:
        await peer.recorded("accepted")
        assert str(await client.receive()).endswith("!")
        await client.hang_up(4321, "done")
        noticed = await peer.recorded("noticed")
    code = 4321 if peer.facts.tells_close_code else 1006
    assert noticed["code"] == code
    passed = {record["type"] for record in peer.records("passed")}
    assert passed == {"websocket.accept", "websocket.send"}


# With the extension and without it

MANY = 4_000
WAYS = pytest.mark.parametrize("way", WATCHES)


class Outcome(NamedTuple):
    """What a handler came to know of a loss."""

    noticed: tuple[int, str]
    rest: list[int]
    end: tuple[int, str]
    raises_the_same: bool


async def outcome(peer: ServerPeer, way: str, unread: int, leave: Leave) -> Outcome:
    async with peer.connect(f"/watch/{way}") as client:
        await peer.recorded("accepted")
        for number in range(unread):
            await client.send_text(str(number))
        await leave(client)
        noticed = await peer.recorded("noticed")
        rest = await peer.recorded("rest")
        late = await peer.recorded("late")
    assert_quiet(peer)
    return Outcome(
        (noticed["code"], noticed["reason"]),
        rest["numbers"],
        (rest["code"], rest["reason"]),
        late["raises_the_same"],
    )


class Without(ServerPeer):
    """The same server, of which the application does not see the extension."""

    def keyed(self, path: str) -> str:
        return f"{super().keyed(path)}&without="


def without(peer: ServerPeer) -> ServerPeer:
    return Without(peer.server.spec, peer.server)


CASES = [(unread, left) for unread in (0, 40) for left in LEAVING if (unread, left) != (40, "rst")]


@pytest.mark.parametrize(("unread", "left"), CASES)
@WAYS
async def test_a_loss_is_noticed_alike(peer: ServerPeer, way: str, unread: int, left: str) -> None:
    leave, code, reason = LEAVING[left]
    expected = Outcome((code, reason), list(range(unread)), (code, reason), True)
    assert await outcome(peer, way, unread, leave) == expected
    assert await outcome(without(peer), way, unread, leave) == expected


async def sent_many(client: Client) -> None:
    """Send more than is held anywhere, and leave."""
    for number in range(MANY):
        await client.send_text(str(number).ljust(500))
    await client.hang_up(4321, "done")


@WAYS
async def test_behind_more_than_is_held_the_loss_is_noticed_when_it_is_received(
    peer: ServerPeer, way: str
) -> None:
    for each in (peer, without(peer)):
        async with each.connect(f"/watch-in-vain/{way}") as client:
            await each.recorded("accepted")
            client.timeout = 30
            sending = asyncio.create_task(sent_many(client))
            await asyncio.sleep(0.2)  # it could be noticed now, if anybody did
            await open_the_gate(each)
            assert (await each.recorded("noticed"))["done"] is False
            await sending
            rest = await each.recorded("rest")
        assert rest["numbers"] == list(range(MANY))
        assert (rest["code"], rest["reason"]) == (4321, "done")
        assert (await each.recorded("late"))["raises_the_same"] is True
        assert_quiet(each)


async def test_what_several_tasks_send_comes_in_the_order_of_their_calls(peer: ServerPeer) -> None:
    for each in (peer, without(peer)):
        async with each.connect("/together") as client:
            messages, end = await read_all(client)
        assert end.code == 1000
        calls = (await each.recorded("calls"))["calls"]
        assert len(calls) == 150
        assert [str(message).strip("x ") for message in messages] == calls


@pytest.mark.parametrize(("code", "seen"), [(1000, 1000), (4000, 4000), (1013, 1013), (1006, 1011)])
async def test_a_close_is_the_same(peer: ServerPeer, code: int, seen: int) -> None:
    for each in (peer, without(peer)):
        async with each.connect(f"/close/{code}") as client:
            messages, end = await read_all(client)
        assert messages == ["last"]
        assert (end.code, end.reason) == (seen, "bye")
        closed = await each.recorded("closed")
        assert (closed["code"], closed["reason"]) == (seen, "bye")
        assert_quiet(each)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("unread", [0, 40])
@WAYS
async def test_other_servers_without_it_behave_so_too(
    name: str, way: str, unread: int, servers: ServerPool
) -> None:
    spec = SPECS[name]
    peer = ServerPeer(spec, servers.get(spec, "apps.wire:app"))
    leave, code, reason = LEAVING["close"]
    told = (
        code if spec.facts.tells_close_code else 1006,
        reason if spec.facts.tells_reason else "",
    )
    expected = Outcome(told, list(range(unread)), told, True)
    assert await outcome(peer, way, unread, leave) == expected
