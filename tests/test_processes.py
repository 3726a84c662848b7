"""How many processes serve, and what a real server refuses where there are several."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from clients import Closed, connect
from running import run_once, until_written
from servers import Server, ServerSpec, yaat_run
from yaat import processes

WHY = "is of one process: what one of the 2 workers publishes the others would not hear"

PROGRAM = """
from fastapi import FastAPI
from yaat import Channels, WebSocket, Yaat


def remembers() -> Yaat:
    return Yaat(broker="memory://space")


def holds() -> FastAPI:
    app = FastAPI()
    app.mount("/live", remembers())
    return app


app = Yaat()


@app.websocket_route("/{name}")
async def listen(websocket: WebSocket, name: str) -> None:
    await websocket.accept()
    await websocket.send_text("hello")
    if name != "none":
        websocket.channel(name)
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


def test_it_is_one_until_somebody_says_more(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.count() == 1
    monkeypatch.setattr(processes, "_count", 1)
    processes.note(3)
    assert processes.count() == 3


@pytest.mark.parametrize("factory", ["remembers", "holds"])
def test_memory_with_workers_is_refused(factory: str, program: Path) -> None:
    """Also of a Yaat that is mounted, and whose startup never runs."""
    options = ("--factory", "--workers", "2", "--port", "0")
    asked = run_once("run", f"program:{factory}", *options, cwd=program)
    assert asked.returncode == 3
    assert f"A worker cannot start: memory:// {WHY}. Give a broker" in asked.stderr
    assert "Traceback" not in asked.stderr
    assert "startup complete" not in asked.stderr


@pytest.fixture
def workers(program: Path) -> Iterator[Server]:
    spec = ServerSpec("workers", yaat_run("asyncio")).but("--workers", "2")
    with Server(spec, "program:app", program, {"PYTHONPATH": str(program)}) as server:
        yield server


async def test_without_a_broker_its_channels_are_refused_to_workers(workers: Server) -> None:
    for name, code in (("none", 1000), ("a", 1011)):
        async with connect(workers.url(f"/{name}")) as client:
            assert await client.receive() == "hello"
            with pytest.raises(Closed) as end:
                await client.receive()
            assert end.value.code == code
    await until_written(workers, f"without a broker the channel 'a' {WHY}")


@pytest.mark.parametrize("option", ["--reload", "--workers=1"])
async def test_one_process_may_keep_it_in_memory(option: str, program: Path) -> None:
    spec = ServerSpec("one", yaat_run("asyncio")).but(option)
    path = {"PYTHONPATH": str(program), "WEB_CONCURRENCY": "2"}
    with Server(spec, "program:app", program, path) as server:
        async with connect(server.url("/a")) as client:
            assert await client.receive() == "hello"
            with pytest.raises(Closed) as end:
                await client.receive()
            assert end.value.code == 1000
