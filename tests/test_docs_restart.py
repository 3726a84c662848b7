"""What docs/how-to/restart.md says of a stop, and of those who come back."""

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.async_api import expect

from browser import chromium
from clients import TIMEOUT, Client, Closed, Refused, connect
from documents import DOCS, commands, write
from servers import OURS, Server, ServerSpec, uvicorn, yaat_run
from yaat.server import ServerSettings
from yaat.server.admission import LATER

PAGE = DOCS / "how-to" / "restart.md"
TEXT = " ".join(PAGE.read_text().split())

APP = """
import asyncio
import os
from contextlib import asynccontextmanager
from pathlib import Path

from yaat import Request, WebSocket, WebSocketDisconnect, Yaat
from yaat.responses import HTMLResponse, TextResponse

NAME = "old"
SCRIPT = Path(__file__).with_name("reconnect.js")
PAGE = '''<!doctype html><ol></ol><script>%s
const list = document.querySelector("ol");
connectForever(`ws://${location.host}/told`, (text) => {
  list.append(Object.assign(document.createElement("li"), {textContent: text}));
});
</script>'''


@asynccontextmanager
async def lifespan(app):
    yield
    print("the lifespan is over", flush=True)


app = Yaat(lifespan=lifespan)


@app.route("/")
async def page(request: Request) -> HTMLResponse:
    return HTMLResponse(PAGE % SCRIPT.read_text())


@app.route("/quiet")
async def quiet(request: Request) -> HTMLResponse:
    # With no connection of its own, the end of which could come in between.
    return HTMLResponse(f"<!doctype html><script>{SCRIPT.read_text()}</script>")


@app.route("/health")
async def health(request: Request) -> TextResponse:
    return TextResponse("ok")


@app.websocket_route("/told")
async def told(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(NAME)
    try:
        await websocket.receive_text()
    except WebSocketDisconnect as end:
        print("the handler was told", end.code, flush=True)
    finally:
        print("the handler ended", flush=True)


@app.websocket_route("/final")
async def final(websocket: WebSocket) -> None:
    await websocket.accept()
    print("a visit", flush=True)
    await websocket.close(1008)


@app.websocket_route("/deaf")
async def deaf(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("deaf")
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        print("cancelled", flush=True)
        raise
"""


def serving(directory: Path, arguments: ServerSpec, *options: str) -> Server:
    directory.mkdir(exist_ok=True)
    (directory / "app.py").write_text(APP)
    write(PAGE, directory)
    path = {"PYTHONPATH": str(directory), "PYTHONDONTWRITEBYTECODE": "1"}
    return Server(arguments.but(*options), "app:app", directory, path)


YAAT = ServerSpec("yaat", yaat_run("uvloop"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path, YAAT) as server:
        yield server


async def ending(client: Client) -> int:
    client.timeout = 30
    try:
        while True:
            await client.receive()
    except Closed as end:
        return end.code


async def get(server: Server, path: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    async with asyncio.timeout(TIMEOUT):
        answer = await reader.read()  # to the end of the connection
    writer.close()
    await writer.wait_closed()
    return answer.decode()


async def written(server: Server, text: str, count: int = 1) -> str:
    async with asyncio.timeout(20):
        while server.written_since().count(text) < count:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)
    return server.written_since()


# What happens


async def test_a_stop(tmp_path: Path) -> None:
    with serving(tmp_path, YAAT, "--drain", "4") as server:
        async with connect(server.url("/told")) as one, connect(server.url("/told")) as two:
            ends = [asyncio.create_task(ending(client)) for client in (one, two)]
            await asyncio.sleep(0)
            server.terminate()
            await written(server, "Closing 2 WebSocket connections.")
            with pytest.raises(Refused) as refused:
                async with connect(server.url("/told")):
                    pass
            answer = await get(server, "/health")
            assert set(await asyncio.gather(*ends)) == {1012}
        assert server.wait() == 0
        output = server.written_since()
    assert refused.value.status == 503
    assert LATER[0] <= int(dict(refused.value.headers)["retry-after"]) <= LATER[1]
    assert f"`Retry-After` of {LATER[0]} to {LATER[1]} seconds" in TEXT
    assert answer.startswith("HTTP/1.1 200")
    assert "connection: close" in answer
    assert output.count("the handler was told 1012") == output.count("the handler ended") == 2
    assert output.rindex("the handler ended") < output.index("the lifespan is over")


async def test_a_handler_that_does_not_end(server: Server) -> None:
    async with connect(server.url("/deaf")) as client:
        await client.receive()
        server.terminate()
        assert await ending(client) == 1012
    assert server.wait() == 0
    output = server.written_since()
    assert output.index("cancelled") < output.index("the lifespan is over")


async def test_a_second_signal(tmp_path: Path) -> None:
    with serving(tmp_path, YAAT, "--drain", "3600") as server:
        async with connect(server.url("/told")) as client:
            await client.receive()
            server.terminate()
            await written(server, "Closing 1 WebSocket connections.")
            server.terminate()
            assert server.wait() == -signal.SIGTERM
        assert "the lifespan is over" not in server.written_since()


def test_defaults() -> None:
    settings = ServerSettings()
    assert (settings.drain, settings.handler_timeout, settings.shutdown_timeout) == (0, 1, 10)
    for said in ("`--handler-timeout` (1 second)", "`--shutdown-timeout` (10 seconds)"):
        assert said in TEXT


# Those who come back


async def test_a_page_comes_back(server: Server) -> None:
    async with chromium() as browser, await browser.new_page() as page:
        await page.goto(server.url("/").replace("ws:", "http:"))
        await expect(page.get_by_role("listitem")).to_have_text(["old"])
        server.terminate()
        assert server.wait() == 0
        server.start()
        await expect(page.get_by_role("listitem")).to_have_text(["old", "old"], timeout=20_000)


async def test_a_page_that_is_sent_away_stays_away(server: Server) -> None:
    async with chromium() as browser, await browser.new_page() as page:
        await page.goto(server.url("/quiet").replace("ws:", "http:"))
        waits = await page.evaluate(
            """(url) => {
                const waits = [];
                const later = window.setTimeout;
                window.setTimeout = (_, wait) => waits.push(wait);
                return new Promise((resolve) => {
                    const Theirs = window.WebSocket;
                    window.WebSocket = class extends Theirs {
                        constructor(url) {
                            super(url);
                            this.addEventListener("close", () => later(() => resolve(waits), 0));
                        }
                    };
                    connectForever(url, () => {});
                });
            }""",
            server.url("/final"),
        )
        await written(server, "a visit")
        assert waits == []


async def test_a_page_waits_longer_and_longer(server: Server) -> None:
    async with chromium() as browser, await browser.new_page() as page:
        await page.goto(server.url("/quiet").replace("ws:", "http:"))
        server.terminate()
        server.wait()
        waits = await page.evaluate(
            """(url) => new Promise((resolve) => {
                const waits = [];
                const later = window.setTimeout;
                Math.random = () => 1;
                window.setTimeout = (work, wait) => {
                    waits.push(wait);
                    if (waits.length < 9) later(work, 0); else resolve(waits);
                };
                connectForever(url, () => {});
            })""",
            server.url("/told"),
        )
        assert waits == [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]


async def test_a_program_comes_back(server: Server, tmp_path: Path) -> None:
    sooner = (tmp_path / "listen.py").read_text().replace("uniform(0, 5)", "uniform(0, 0.1)")
    (tmp_path / "listen.py").write_text(sooner)
    program = f"import asyncio, listen; asyncio.run(listen.listen({server.url('/told')!r}))"
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, cwd=tmp_path, stdout=PIPE
    )
    assert client.stdout is not None
    try:
        async with asyncio.timeout(40):
            assert await client.stdout.readline() == b"old\n"
            server.terminate()
            assert await client.stdout.readline() == b"closed with 1012\n"
            server.wait()
            server.start()
            assert await client.stdout.readline() == b"old\n"
    finally:
        client.kill()
        await client.communicate()


# New code


async def test_new_code_with_workers(tmp_path: Path) -> None:
    start, hup = [words for words in commands(PAGE) if "--workers" in words or "-HUP" in words]
    options = start[start.index("--workers") : start.index("--drain")]
    with serving(tmp_path, YAAT, *options, "--drain", "1") as server:
        async with connect(server.url("/told")) as client:
            assert await client.receive() == "old"
            (tmp_path / "app.py").write_text(APP.replace('NAME = "old"', 'NAME = "new"'))
            words = [word.replace("$MAINPID", str(main_pid(server))) for word in hup]
            await (await asyncio.create_subprocess_exec(*words)).wait()
            told = asyncio.create_task(ask_until(server, "new"))
            assert await ending(client) == 1012
            answers = await told
        assert set(answers) <= {"old", "new"}
        assert server.alive


def main_pid(server: Server) -> int:
    found = re.search(r"Started parent process \[(\d+)\]", server.written_since())
    assert found is not None
    assert "`Started parent process [PID]`" in TEXT
    return int(found[1])


async def ask_until(server: Server, name: str) -> list[str]:
    """Open connections one after the other until one meets the name; return whom they met."""
    met: list[str] = []
    async with asyncio.timeout(30):
        while name not in met:
            async with connect(server.url("/told")) as client:
                met.append(str(await client.receive()))
    return met


async def test_new_code_that_does_not_start(tmp_path: Path) -> None:
    with serving(tmp_path, YAAT, "--workers", "2") as server:
        async with connect(server.url("/told")) as client:
            await client.receive()
            (tmp_path / "app.py").write_text("raise RuntimeError('no good')")
            signal_to(server, signal.SIGHUP)
            await written(server, "was not ready in time")
            async with connect(server.url("/told")) as another:
                assert await another.receive() == "old"


def signal_to(server: Server, number: signal.Signals) -> None:
    os.kill(server.pid, number)


async def test_one_worker_more_and_one_less(tmp_path: Path) -> None:
    with serving(tmp_path, YAAT, "--workers", "1") as one, pytest.raises(AssertionError):
        main_pid(one)  # with one there is no parent
    with serving(tmp_path, YAAT, "--workers", "2") as server:
        await written(server, "Started server process", 2)
        signal_to(server, signal.SIGTTIN)
        await written(server, "Started server process", 3)
        signal_to(server, signal.SIGTTOU)
        await written(server, "Finished server process")
        async with connect(server.url("/told")) as client:
            assert await client.receive() == "old"
        assert server.alive


async def test_hup_without_workers(server: Server) -> None:
    signal_to(server, signal.SIGHUP)
    assert server.wait() == -signal.SIGHUP


# uvicorn


async def test_uvicorn_with_our_class(tmp_path: Path) -> None:
    spec = ServerSpec("uvicorn", uvicorn(OURS, "uvloop", "httptools"))
    with serving(tmp_path, spec, "--timeout-graceful-shutdown", "1") as server:
        async with connect(server.url("/told")) as one, connect(server.url("/deaf")) as two:
            for client in (one, two):
                await client.receive()
            server.terminate()
            assert [await ending(client) for client in (one, two)] == [1012, 1012]
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", server.port)
        assert server.wait() == -signal.SIGTERM
        assert "cancelled" in server.written_since()


async def test_uvicorn_waits_for_ever(tmp_path: Path) -> None:
    spec = ServerSpec("uvicorn", uvicorn(OURS, "uvloop", "httptools"))
    with serving(tmp_path, spec) as server:
        async with connect(server.url("/deaf")) as client:
            await client.receive()
            server.terminate()
            assert await ending(client) == 1012
        await written(server, "Waiting for background tasks to complete.")
        assert server.alive
