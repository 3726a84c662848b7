"""The pages on scaling out: their program, commands and tables, on real servers."""

import asyncio
import contextlib
import dataclasses
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx2
import pytest

from clients import connect
from documents import DOCS, ROOT, Block, Reading, blocks, code, commands, tables, write
from redis_servers import REDIS_6, OneNodeCluster, RedisServer, SentinelSet, builds
from running import until
from servers import Server, ServerSpec
from yaat import POSITIONED, BrokerRefused, BrokerUnavailable, WebSocket, Yaat
from yaat.brokers.contract import Content, Present
from yaat.brokers.redis import RedisBroker, scripts
from yaat.brokers.redis.scripts import Script
from yaat.brokers.redis.settings import Settings, read
from yaat.channels.node import CHECK
from yaat.exceptions import ArgumentError, BrokerError, WebSocketDisconnect
from yaat.testing import TestClient, WebSocketSession

PAGE = DOCS / "how-to" / "scale.md"
REFERENCE = DOCS / "reference" / "brokers.md"
PATIENCE = 20.0  # seconds
DENIED = (BrokerError, TimeoutError)
TEXT = Content("text", b"x")

File = Callable[[str], ModuleType]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> File:
    """Import one of the files that the page consists of."""

    def imported(title: str) -> ModuleType:
        return Reading(PAGE, tmp_path, monkeypatch).file(title)

    return imported


@pytest.fixture(scope="module")
def valkey() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


def titled(title: str) -> Block:
    return next(block for block in blocks(PAGE) if block.title == title)


# Several processes


async def test_the_workers_of_the_page_are_one(tmp_path: Path, valkey: RedisServer) -> None:
    [words] = [words for words in commands(PAGE) if words[0] == "yaat"]
    count = 2  # will do, where the page has 4
    words[words.index("--workers") + 1] = str(count)
    write(PAGE, tmp_path)
    spec = ServerSpec("scale", lambda _, port: [*words, "--host", "127.0.0.1", "--port", str(port)])
    environment = {"PYTHONPATH": str(tmp_path), "BROKER": valkey.url(path="?prefix=workers")}
    async with AsyncExitStack() as stack:
        server = stack.enter_context(Server(spec, "app:app", tmp_path, environment))

        async def all_connected() -> bool:
            return len(valkey.clients("pubsub")) + len(valkey.clients()) >= 2 * count

        await until(all_connected)
        client = await stack.enter_async_context(httpx2.AsyncClient())
        address = server.url("").replace("ws:", "http:", 1)
        assert (await client.get(f"{address}/health")).status_code == 204
        members = [
            await stack.enter_async_context(connect(server.url("/rooms/tea"))) for _ in range(8)
        ]
        for member in members:
            while "offset" not in await member.receive_json():
                pass  # until it is told where it stands, others come
        await client.post(f"{address}/rooms/tea", content="hello")
        for member in members:
            assert await next_data(member) == "hello"


async def next_data(member: Any) -> Any:
    while "data" not in (message := await member.receive_json()):
        pass
    return message["data"]


@asynccontextmanager
async def opened(app: Yaat, *urls: str) -> AsyncIterator[tuple[TestClient, list[WebSocketSession]]]:
    """Open connections in process, and be told that each has come."""
    async with asyncio.timeout(PATIENCE), AsyncExitStack() as stack:
        client = await stack.enter_async_context(
            TestClient(app, raise_app_exceptions=False, timeout=PATIENCE)
        )
        sockets = [await stack.enter_async_context(client.websocket(url)) for url in urls]
        for socket in sockets:
            while "join" not in await socket.receive_json():
                pass
        yield client, sockets


async def is_up(app: Yaat, *, wanted: bool = True) -> None:
    """Wait until the application says that it is, or is not."""
    while app.hub.is_up is not wanted:  # noqa: ASYNC110 - a callback of the broker changes it
        await asyncio.sleep(0.01)


# The URL


def test_table_of_urls() -> None:
    modes = ["single", "single", "single", "single", "sentinel", "cluster"]
    ports = [[6379], [6380], [6379], [0], [26379, 26380], [7000, 7000]]
    told = [code(row[0]) for row in tables(PAGE)[0]]
    for url, mode, expected in zip(told, modes, ports, strict=True):
        for name in (url, url.replace("rediss:", "valkeys:").replace("redis", "valkey", 1)):
            place, settings = read(name, {})
            assert (place.mode, [each.port for each in place.addresses]) == (mode, expected)
            assert place.is_tls is url.startswith("rediss")
            assert settings.db == (2 if "/2" in url or "db=2" in url else 0)
    assert read(told[4], {})[0].service == "main"
    assert read(told[1], {})[1].password == "password"


def test_urls_in_the_text() -> None:
    for page in (PAGE, REFERENCE, ROOT / "README.md"):
        for url in re.findall(r"`((?:redis|valkey|unix)[+\w]*://[^`]+)`", page.read_text()):
            assert read(url, {}), url
    assert read("redis://:%2F%3F%40%3A@localhost", {})[1].password == "/?@:"


def test_table_of_tls() -> None:
    for names, _ in tables(PAGE)[1]:
        for option in names.split(", "):
            assert read(f"rediss://localhost?{code(option)}", {})


# A user of its own


async def use(url: str, **options: Any) -> None:
    """Do all that a broker does."""
    came = asyncio.Event()
    broker = RedisBroker(url, connect_timeout=2, **options)
    try:
        await broker.start(lambda *_: came.set(), lambda _: None, lambda _: None)
        await broker.subscribe("a")
        await broker.publish("a", TEXT, size=0, ttl=0)
        async with asyncio.timeout(2):
            await came.wait()
        await broker.publish("a", TEXT, size=2, ttl=1000, once="key")
        # One right behind the other, so that the second finds the first; then that is too old.
        await asyncio.gather(*(broker.publish("a", TEXT, size=2, ttl=ttl) for ttl in (0.02, 1000)))
        await asyncio.sleep(0.03)
        for reverse in (False, True):
            assert len((await broker.history("a", reverse=reverse))[0]) == 1
        await broker.remove_history("a")
        await broker.presence_add("a", Present("client", "ada"))
        await broker.presence_refresh([("a", Present("client", "grace"))])
        assert await broker.presence_get("a") == [Present("client", "grace")]
        assert (await broker.presence_stats("a")).users == 1
        assert await broker.presence_remove("a", "client")
        await broker.unsubscribe("a")
    finally:
        await broker.close()


def rules() -> tuple[str, list[str]]:
    """Return what the page says of its user: the name, and the rules."""
    _, name, *rest = titled("users.acl").code.split()
    return name, rest


def let_in(server: RedisServer, more: list[str]) -> None:
    """Make the user on a server that knows nothing."""
    name, rest = rules()
    server.calls(
        [["ACL", "SETUSER", name, "reset", *rest, *more], ["FLUSHALL"], ["SCRIPT", "FLUSH"]]
    )


ONLY_AT_TIMES = {"role", "hvals"}  # it goes on without; a key that was evicted is made anew


def test_the_user_of_the_page_may_do_what_scripts_do() -> None:
    written = "".join(each.text for each in vars(scripts).values() if isinstance(each, Script))
    named = {command.lower() for command in re.findall(r"redis\.call\('(\w+)'", written)}
    assert named
    assert [command for command in named if f"+{command}" not in rules()[1]] == []


@pytest.mark.parametrize("build", builds())
async def test_the_user_of_the_page_may_do_all_and_no_more(build: str) -> None:
    name, rest = rules()
    granted = [rule[1:] for rule in rest if rule.startswith("+")]
    with RedisServer(build) as server:
        url = f"redis://{name}:secret@127.0.0.1:{server.port}/2"
        let_in(server, [])
        await use(url)
        for command in granted if build != REDIS_6 else ():
            let_in(server, [f"-{command}"])
            with contextlib.nullcontext() if command in ONLY_AT_TIMES else pytest.raises(DENIED):
                await use(url)
        for more in (["resetkeys", "~other:*"], ["resetchannels", "&other:*"]):
            let_in(server, more)
            with pytest.raises(DENIED):
                await use(url)
        let_in(server, [])
        with pytest.raises(DENIED):
            await use(url, prefix="other")
        let_in(server, ["-info"])
        await use(url, epochs="trust")


async def test_the_user_of_the_page_is_read_from_a_file(tmp_path: Path) -> None:
    write(PAGE, tmp_path)
    with RedisServer(options=[f"aclfile {tmp_path / 'users.acl'}"]) as server:
        await use(f"redis://yaat:secret@127.0.0.1:{server.port}")


@pytest.mark.parametrize("build", builds())
async def test_what_a_cluster_needs(build: str) -> None:
    text = PAGE.read_text()
    with OneNodeCluster(build) as server:
        server.wait()
        name, _ = rules()
        if build == REDIS_6:
            more = ["+cluster", "+asking"]
        else:
            more = ["+cluster|slots", "+asking", "+ssubscribe", "+sunsubscribe", "+spublish"]
            assert f"`{' '.join(more[:2])}`" in text
            assert f"`{' '.join(more[2:])}`" in text
            more += ["-subscribe", "-unsubscribe", "-publish"]
        let_in(server, [*more, "-select"])
        await use(f"redis+cluster://{name}:secret@127.0.0.1:{server.port}")


async def test_what_the_sentinels_user_needs() -> None:
    told = re.findall(r"sentinels' user needs `(.+)`", PAGE.read_text())
    with SentinelSet() as servers:
        for sentinel in servers.sentinels:
            sentinel.call("ACL", "SETUSER", "watch", "reset", "on", ">secret", *told)
        await use(servers.url(), sentinel_username="watch", sentinel_password="secret")


# The server's configuration


async def test_the_configuration_of_the_page() -> None:
    lines = titled("valkey.conf").code.splitlines()
    with RedisServer(options=lines) as server:
        for line in lines:
            option, value = line.split(maxsplit=1)
            told = server.call("CONFIG", "GET", option)[1].decode()
            units = {"2gb": str(2 << 30), "pubsub 64mb 16mb 60": f"pubsub {64 << 20} {16 << 20} 60"}
            assert units.get(value, value) in told
        await use(server.url())
        server.call("CONFIG", "SET", "maxmemory", 1)
        with pytest.raises(BrokerRefused):
            await use(server.url())


@pytest.mark.parametrize("build", builds())
async def test_table_of_memory(build: str) -> None:
    rows = tables(PAGE)[2]
    told = [float(size.split()[0]) * (1000 if "KB" in size else 1) for _, size in rows]
    with RedisServer(build) as server:
        broker = RedisBroker(server.url())
        await broker.start(lambda *_: None, lambda _: None, lambda _: None)

        async def measured(count: int, work: Callable[[int], Any]) -> float:
            server.call("FLUSHALL", "SYNC")
            before = int(server.info("memory")["used_memory"])
            await asyncio.gather(*(work(number) for number in range(count)))
            return (int(server.info("memory")["used_memory"]) - before) / count

        async def fill(number: int, count: int, length: int) -> None:
            content = Content("bytes", bytes(range(250)) * (length // 100))
            content = content._replace(payload=content.payload[:length])
            for _ in range(count):
                await broker.publish(f"room:{number}", content, size=count, ttl=3600)

        async def refresh(number: int) -> None:
            room = f"room:{number % 10}"
            present = Present(f"client {number:016}", f"user {number}")
            await broker.presence_refresh([(room, present)])

        def remember(number: int) -> Any:
            return broker.publish("a", TEXT, size=0, ttl=0, once=f"{number:036}")

        found = [
            await measured(300, lambda number: fill(number, 1, 100)),
            await measured(20, lambda number: fill(number, 100, 100)),
            await measured(20, lambda number: fill(number, 100, 1000)),
            await measured(1000, lambda number: broker.history(f"room:{number}", limit=0)),
            await measured(1000, refresh),
            await measured(1000, remember),
            await measured(1000, lambda number: broker.subscribe(f"room:{number}")),
        ]
        await broker.close()
    for (what, _), most, used in zip(rows, told, found, strict=True):
        assert used < 1.5 * most, what  # another malloc, another moment to grow a table
        assert used > most / 4, what
    assert found[0] > 100 * 40  # each channel has a block of 4 KB, however little is in it


# When it is away, and back

DURABLE = ["appendonly yes", "appendfsync always"]


@pytest.mark.parametrize(
    ("epochs", "keeps", "is_told"),
    [
        ("strict", "nothing", True),
        ("strict", "all", True),
        ("trust", "nothing", True),
        ("trust", "all", False),
    ],
)
async def test_a_restart(
    epochs: str,
    keeps: str,
    is_told: bool,  # noqa: FBT001 - a column
    file: File,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with RedisServer(durable=keeps == "all") as server:
        monkeypatch.setenv("BROKER", server.url(path=f"?epochs={epochs}"))
        app: Yaat = file("app.py").app
        room = app.channel("room:tea")
        async with opened(app, "/rooms/tea") as (client, [ada]):
            before = await room.publish("before")
            assert await next_data(ada) == "before"
            assert (await client.get("/health")).status_code == 204

            server.kill()
            await is_up(app, wanted=False)
            with pytest.raises(BrokerUnavailable) as refused:
                await room.publish("not published")
            assert not refused.value.maybe_published
            assert refused.value.retry_in is not None
            with pytest.raises(BrokerUnavailable):
                await room.history()
            with pytest.raises(BrokerUnavailable):
                await room.presence()
            assert (await client.get("/health")).status_code == 503
            assert (await client.post("/rooms/tea", content="nor this")).status_code == 503
            for url in ("/rooms/tea", f"/rooms/tea?since={before.position}", "/rooms/other"):
                async with client.websocket(url) as late:
                    assert await ended(late) == 1013
            warnings = [each for each in caplog.records if each.name == "yaat.broker"]
            assert len(warnings) == 1

            server.start()
            await is_up(app)
            if is_told:
                assert await ended(ada) == 4010
            else:
                assert [each.data for each in (await room.history()).publications] == ["before"]
                assert [each.user for each in await room.presence()] == [None]
                after = await room.publish("after")
                assert after.position == (before.offset + 1, before.epoch)
                assert await next_data(ada) == "after"
            code = await closing(client, f"/rooms/tea?since={before.position}")
            assert (code == 4010) is is_told


async def closing(client: TestClient, url: str) -> int | None:
    """Return the code with which a connection is closed at once; None: it is told where it is."""
    async with client.websocket(url) as socket:
        try:
            while "offset" not in await socket.receive_json():
                pass
        except WebSocketDisconnect as end:
            return end.code
        return None


async def ended(socket: WebSocketSession) -> int:
    """Receive to the end; return the code."""
    try:
        while True:
            await socket.receive()
    except WebSocketDisconnect as end:
        return end.code


async def test_what_a_restart_takes_with_snapshots() -> None:
    with RedisServer() as server, RedisServer() as other:
        for each, epochs in ((server, "trust"), (other, "strict")):
            broker = RedisBroker(each.url(), epochs=epochs)
            states: asyncio.Queue[str] = asyncio.Queue()
            await broker.start(lambda *_: None, states.put_nowait, lambda _: None)
            await broker.publish("a", TEXT, size=100, ttl=1000)
            each.snapshot()
            after = await broker.publish("a", TEXT, size=100, ttl=1000)
            each.restart_from_snapshot()
            async with asyncio.timeout(PATIENCE):
                while await states.get() != "down":
                    pass
                while await states.get() != "up":
                    pass
            again = await broker.publish("a", TEXT, size=100, ttl=1000)
            # With the same place as what was lost: who comes back from there cannot be told.
            assert (again.position == after.position) is (epochs == "trust")
            await broker.close()


async def test_what_is_deleted_is_told(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    with RedisServer() as server:
        monkeypatch.setenv("BROKER", server.url())
        app: Yaat = file("app.py").app
        async with opened(app, "/rooms/tea") as (_, [ada]):
            await app.channel("room:tea").publish("kept")
            server.call("FLUSHALL")
            await app.channel("room:tea").publish("after")
            assert await ended(ada) == 4010


async def test_a_full_server_refuses(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    with RedisServer(options=["maxmemory-policy noeviction"]) as server:
        monkeypatch.setenv("BROKER", server.url())
        app: Yaat = file("app.py").app
        async with opened(app, "/rooms/tea") as (client, [ada]):
            server.call("CONFIG", "SET", "maxmemory", 1)
            with pytest.raises(BrokerRefused):
                await app.channel("room:tea").publish("not published")
            assert await closing(client, "/rooms/other") == 1013
            server.call("CONFIG", "SET", "maxmemory", 0)
            await app.channel("room:tea").publish("published")
            assert await next_data(ada) == "published"


async def test_a_channel_without_history_goes_on_and_is_told_nothing() -> None:
    with RedisServer() as server:
        app = Yaat(broker=server.url())

        @app.websocket_route("/")
        async def listen(websocket: WebSocket) -> None:
            await websocket.accept()
            async with websocket.channel("ticks").join(websocket, format=POSITIONED):
                await websocket.wait_closed()

        async with (
            asyncio.timeout(PATIENCE),
            app.test_client() as client,
            client.websocket("/") as ws,
        ):
            assert (await ws.receive_json())["offset"] == 0
            server.kill()
            await is_up(app, wanted=False)
            with pytest.raises(BrokerUnavailable):
                await app.channel("ticks").publish("meanwhile")
            server.start()
            await is_up(app)
            await app.channel("ticks").publish("after")
            assert await next_data(ws) == "after"


async def test_again_and_again_until_it_is_published(
    file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RedisServer() as server:
        monkeypatch.setenv("BROKER", server.url())
        app: Yaat = file("app.py").app
        room = app.channel("room:tea")
        async with opened(app):
            server.kill()
            await is_up(app, wanted=False)
            event = {"id": "event 1", "text": "hello"}
            publishing = asyncio.create_task(file("again.py").publish_surely(room, event))
            await asyncio.sleep(0)
            assert not publishing.done()
            server.start()
            await publishing
            await file("again.py").publish_surely(room, event)
            assert [each.data for each in (await room.history()).publications] == [event]


async def test_the_start_fails_or_does_not(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    server = RedisServer()
    with contextlib.closing(server):
        monkeypatch.setenv("BROKER", server.url(path="?connect_timeout=0.1"))
        with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{server.port}"):
            async with file("app.py").app.test_client():
                pass
        monkeypatch.setenv("BROKER", server.url(path="?require=no"))
        app: Yaat = file("app.py").app
        async with opened(app) as (client, _):
            assert (await client.get("/health")).status_code == 503
            server.start()
            await is_up(app)
            assert (await client.get("/health")).status_code == 204


# The guarantees, and the reference


def test_the_tables_of_guarantees_are_whole() -> None:
    events, brokers = tables(PAGE)[4:]
    assert {len(row) for row in events} == {4}
    assert {len(row) for row in brokers} == {6}
    text = PAGE.read_text().partition("## What is guaranteed")[2]
    assert text.count("**not all are told**") == 2  # the exceptions that the page speaks of
    # The first look at a channel notes where it stands; the second finds that nothing has come.
    assert text.count(f"within {2 * CHECK[1]:g} seconds") == 2


SECONDS = {"s": 1, "minutes": 60}


def value(said: str) -> Any:
    """Return the default that a cell of the table means."""
    number, _, unit = said.partition(" ")
    match said:
        case "none":
            return None
        case "a day":
            return 86_400
        case "`yes`" | "`no`":
            return said == "`yes`"
    if said.startswith("`"):
        return code(said)
    if unit == "MiB":
        return int(number) << 20
    return float(number.replace(",", "")) * SECONDS.get(unit, 1)


TAKEN = {  # and what is not
    "above 0": (["1", "1000000000"], ["0", "-1", "x", ""]),
    "1 to 16384": (["1", "16384"], ["0", "16385", "1.5"]),
    "0 or more": (["0", "15"], ["-1", "x"]),
    "any text": (["x", "a b"], []),
    "text without braces": (["x", "a:b"], ["{x}"]),
    "a file": (["x"], []),
}


def test_table_of_options() -> None:
    table = tables(REFERENCE)[3]
    fields = {field.name: field.default for field in dataclasses.fields(Settings)}
    assert {code(name): value(default) for name, default, *_ in table} == fields
    for name, _, takes, _ in table:
        option = code(name)
        choices = re.findall("`(.+?)`", takes)
        good, bad = TAKEN.get(takes, (choices, ["x", ""]))
        for choice in good:
            assert read(f"redis://localhost?{option}={choice}", {})
        for choice in bad:
            with pytest.raises(ArgumentError):
                read(f"redis://localhost?{option}={choice}", {})
    with pytest.raises(ArgumentError):
        read("redis://localhost?unknown=1", {})


async def test_how_many_connections(valkey: RedisServer) -> None:
    def ours() -> int:
        listed = valkey.clients() + valkey.clients("pubsub")
        return sum(each["name"] == "yaat" for each in listed)

    before = ours()
    broker = RedisBroker(valkey.url())
    await broker.start(lambda *_: None, lambda _: None, lambda _: None)
    await broker.subscribe("a")
    assert ours() == before + 2
    assert any(key.startswith(b"yaat:{") for key in await kept(broker, valkey))
    await broker.close()


async def kept(broker: RedisBroker, server: RedisServer) -> list[bytes]:
    await broker.publish("a", TEXT, size=1, ttl=10)
    keys: list[bytes] = server.call("KEYS", "*")
    return keys
