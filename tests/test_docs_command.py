"""The command `yaat` is what its pages say: help, options, exit codes, signals."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients import Closed, Refused, connect
from documents import DOCS, ROOT, Reading, blocks, commands, tables, write
from running import run_once, until
from servers import Port, Server, ServerSpec, yaat_run
from yaat.exceptions import ArgumentError
from yaat.server import ServerSettings, WebSocketProtocol
from yaat.server.protocol import _OWN

COMMAND = DOCS / "reference" / "command.md"
SERVER = DOCS / "how-to" / "server.md"
RUN = yaat_run("asyncio")
PROGRAM = """
import os


async def app(scope, receive, send):
    assert scope["type"] == "websocket"
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": str(os.getpid())})
    while (await receive())["type"] != "websocket.disconnect":
        pass
"""


FLAGS = re.MULTILINE | re.DOTALL


# The help


def test_the_page_has_the_help_as_it_is() -> None:
    helps = [run_once(command, "--help").stdout for command in ("run", "publish")]
    assert [block.code for block in blocks(COMMAND, "text")] == helps


def test_the_page_of_the_server_names_every_module_of_it() -> None:
    page = (DOCS / "reference" / "server.md").read_text()
    modules = {path.stem for path in (ROOT / "src" / "yaat" / "server").glob("[!_]*.py")}
    assert modules == set(re.findall(r"^::: yaat\.server\.(\w+)", page, re.MULTILINE))


# The options


def options(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]+", text))


def options_of(*command: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-m", *command, "--help"],
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=True,
    )
    heads = re.findall(r"^ +(-.*?)(?:  |$)", done.stdout, re.MULTILINE)
    return options(" ".join(heads)) - {"--help"}


def test_every_option_of_uvicorn_is_told_of_once() -> None:
    [table] = tables(SERVER)
    [same] = re.findall(r"^`--host`.*?are the same\.$", SERVER.read_text(), FLAGS)
    theirs = [option for row in table for option in sorted(options(row[0]))]
    alike = options(same)
    assert len(theirs) == len(set(theirs))
    assert not alike & set(theirs)
    negated = {each for each in options_of("uvicorn") if each.startswith("--no-")}
    assert alike | set(theirs) == options_of("uvicorn") - negated
    ours = options_of("yaat", "run")
    assert alike <= ours
    assert options(" ".join(row[1] for row in table)) - {"--version"} <= ours


def test_what_a_class_can_keep_to() -> None:
    [said] = re.findall(r"^A class can keep to (.*?);", SERVER.read_text(), FLAGS)
    assert set(re.findall(r"`(\w+)`", said)) == _OWN
    with pytest.raises(ArgumentError):
        type("Bold", (WebSocketProtocol,), {"settings": ServerSettings(drain=1.0)})


def test_options_in_the_pages_are_there() -> None:
    known = options_of("yaat", "run") | options_of("yaat", "publish") | options_of("uvicorn")
    known |= {"--version"}
    for page in ("how-to/server.md", "reference/command.md", "topics/server-bounds.md"):
        text = re.sub(r"```text\n.*?```", "", (DOCS / page).read_text(), flags=re.DOTALL)
        assert options(text) <= known, page


def test_settings_in_the_pages_are_there() -> None:
    fields = {field.name for field in dataclasses.fields(ServerSettings)}
    for page in DOCS.rglob("*.md"):
        for named in re.findall(r"ServerSettings\.(\w+)", page.read_text()):
            assert named in fields, page


# How it is started

PAGES = (
    ROOT / "README.md",
    SERVER,
    DOCS / "topics" / "wire.md",
)
STARTS = [(page, words) for page in PAGES for words in commands(page) if words[0] == "yaat"]


@pytest.mark.parametrize(("page", "words"), STARTS, ids=[page.stem for page, _ in STARTS])
async def test_commands_serve_the_pages_program(
    page: Path, words: list[str], tmp_path: Path
) -> None:
    write(page, tmp_path)
    words = words if "--port" in words else [*words, "--port", "8000"]

    def arguments(_: str, port: int) -> list[str]:
        return [word.replace("8000", str(port)) for word in words]

    spec = ServerSpec("yaat-run", arguments)
    with Server(spec, words[2], tmp_path, {"PYTHONPATH": str(tmp_path)}) as server:
        await echoes(server)


async def echoes(server: Server) -> None:
    async with connect(server.url("/echo")) as client:
        await client.send_text("hello")
        assert await client.receive() == "hello"


class Script(Server):
    """A server that a program of a page starts."""

    def start(self) -> None:
        self._port = self._port or Port()
        program = self.output.parent / "serve.py"
        program.write_text(program.read_text().replace("port=8000", f"port={self.port}"))
        super().start()


async def test_the_program_that_serves(tmp_path: Path) -> None:
    write(SERVER, tmp_path)
    path = {"PYTHONPATH": str(tmp_path)}
    script = str(tmp_path / "serve.py")
    runner = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"
    (tmp_path / "runner.py").write_text(runner)
    spec = ServerSpec("serve.py", lambda _, __: ["runner", script])
    with Script(spec, "app:app", tmp_path, path) as server:
        await echoes(server)


def test_the_program_that_serves_is_a_module_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Reading(SERVER, tmp_path, monkeypatch).file("serve.py")


# How it ends

ENDS = {
    "nowhere:app": 3,
    "app:app --host nowhere.invalid": 3,
    "broken:app": 3,
    "broken:app --workers 2": 3,
    "hasty:app": 1,
    "hasty:app --workers 2": 3,
    "remembers:app --workers 2": 3,
    "app:app --port nine": 2,
    "app:app --port -1": 2,
    "app:app --nothing": 2,
    "app:app --ssl-certfile nothing.pem": 2,
    "app:app --log-config nothing.json": 2,
}


@pytest.mark.parametrize("arguments", ENDS)
def test_what_does_not_start_ends_with_the_code_that_the_page_has(
    arguments: str, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(PROGRAM)
    (tmp_path / "hasty.py").write_text("raise LookupError\n")
    (tmp_path / "remembers.py").write_text("import yaat; app = yaat.Yaat(broker='memory://')\n")
    (tmp_path / "broken.py").write_text(
        "async def app(scope, receive, send):\n"
        "    await receive()\n"
        "    await send({'type': 'lifespan.startup.failed'})\n"
    )
    given = arguments if "--port" in arguments else f"{arguments} --port 0"
    ended = run_once("run", *given.split(), cwd=tmp_path)
    assert ended.returncode == ENDS[arguments], ended.stderr
    said = {row[0]: row[1] for row in tables(COMMAND)[0]}
    assert str(ended.returncode) in said


PUBLISHED = {
    "redis://127.0.0.1:1?connect_timeout=0.1 a b": 1,
    "nonsense a b": 2,
    "redis://127.0.0.1:1 a b --channels nowhere:CHANNELS": 2,
}


@pytest.mark.parametrize("arguments", PUBLISHED)
def test_what_is_not_published_ends_with_the_code_that_the_page_has(arguments: str) -> None:
    ended = run_once("publish", *arguments.split())
    assert ended.returncode == PUBLISHED[arguments], ended.stderr
    assert str(ended.returncode) in [row[0] for row in tables(COMMAND)[2]]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


@pytest.fixture
def one(program: Path) -> Iterator[Server]:
    spec = ServerSpec("one", RUN)
    with Server(spec, "program:app", program, {"PYTHONPATH": str(program)}) as server:
        yield server


@pytest.fixture
def two(program: Path) -> Iterator[Server]:
    spec = ServerSpec("two", RUN).but("--workers", "2")
    with Server(spec, "program:app", program, {"PYTHONPATH": str(program)}) as server:
        yield server


async def worker(server: Server) -> int | None:
    """The process that answers, if it is not about to stop."""
    try:
        async with connect(server.url()) as client:
            return int(str(await client.receive()))
    except Refused:
        return None


def running(processes: set[int]) -> set[int]:
    return {each for each in processes if Path(f"/proc/{each}").exists()}


async def workers(server: Server, count: int) -> set[int]:
    """Wait until that many answer; the kernel gives each its share."""
    found: set[int] = set()

    async def all_of_them() -> set[int] | None:
        if answering := await worker(server):
            found.add(answering)
        alive = running(found)
        return alive if len(alive) >= count else None

    return await until(all_of_them)


def test_every_signal_is_in_the_table() -> None:
    _, table, _ = tables(COMMAND)
    assert [row[0] for row in table] == [
        "SIGTERM",
        "SIGINT, Ctrl-C",
        "SIGTERM or SIGINT again",
        "SIGHUP",
        "SIGKILL",
        "SIGTTIN",
        "SIGTTOU",
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", ["one", "two"])
async def test_a_signal_stops_it(
    number: signal.Signals, name: str, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(name)
    async with connect(server.url()) as client:
        await client.receive()
        os.kill(server.pid, number)
        with pytest.raises(Closed) as end:
            await client.receive()
        assert end.value.code == 1012
    assert server.wait() == 0


async def test_a_hangup_ends_one_process(one: Server) -> None:
    os.kill(one.pid, signal.SIGHUP)
    assert one.wait() == -signal.SIGHUP


async def test_a_worker_ignores_what_a_terminal_sends_to_all(two: Server) -> None:
    before = await workers(two, 2)
    for each in before:
        os.kill(each, signal.SIGINT)
    assert await workers(two, 2) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
async def test_a_worker_that_is_told_to_end_is_replaced(
    number: signal.Signals, two: Server
) -> None:
    one, other = await workers(two, 2)
    os.kill(one, number)

    async def is_replaced() -> bool:
        now = await workers(two, 2)
        return one not in now and other in now

    await until(is_replaced)


async def test_workers_without_a_parent_stop(two: Server) -> None:
    left = await workers(two, 2)
    async with connect(two.url()) as client:
        await client.receive()
        os.kill(two.pid, signal.SIGKILL)
        with pytest.raises(Closed) as end:
            await client.receive()
        assert end.value.code == 1012

    async def have_ended() -> bool:
        return not running(left)

    await until(have_ended)


async def test_workers_come_and_go(two: Server) -> None:
    os.kill(two.pid, signal.SIGTTIN)
    three = await workers(two, 3)
    for left in (2, 1, 1):
        os.kill(two.pid, signal.SIGTTOU)

        async def are_left(count: int = left) -> bool:
            return len(running(three)) == count

        await until(are_left)
    assert await worker(two) in three
