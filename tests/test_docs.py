"""What the documents say is so: pages, commands, tables, the picture, the site."""

import asyncio
import importlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from daphne.cli import CommandLineInterface  # type: ignore[import-untyped]
from hypercorn.config import Config
from starlette.applications import Starlette
from uvicorn.protocols.websockets.auto import AutoWebSocketsProtocol

import yaat
from documents import DOCS, ROOT, Reading, code, commands, pages, provide, requirements, tables
from servers import SPECS, Facts
from yaat.constants import WebSocketCloseEvent, travelling_code
from yaat.exceptions import WebSocketDisconnect
from yaat.lifecycle import INCOMING, TABLE, State
from yaat.responses import Response
from yaat.server import ServerSettings
from yaat.testing import HandshakeRefused
from yaat.websockets import WebSocket

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SERVERS = ("uvicorn", "hypercorn", "granian", "daphne")


def name(page: Path) -> str:
    return page.relative_to(ROOT).with_suffix("").as_posix()


every_page = pytest.mark.parametrize("page", pages(), ids=name)


@every_page
async def test_a_page_can_be_followed(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await Reading(page, tmp_path, monkeypatch).follow()


@every_page
def test_commands_name_what_there_is(page: Path) -> None:
    for requirement in requirements(page):
        provide(requirement)
    assert [words for words in commands(page) if not is_known(words)] == []


def is_known(words: list[str]) -> bool:
    """Whether the words of a line of the shell name what there is."""
    match words:
        case ["make", target]:
            return f"\n{target}:" in (ROOT / "Makefile").read_text()
        case ["pip", "install", *names]:
            return all(map(is_package, names))
        case ["python", "-m", "venv", path]:
            return [".", f"{path}/bin/activate"] in commands(DOCS / "tutorial" / "echo.md")
        case [command, *_]:
            return command in ELSEWHERE
    return False


# Begun in test_docs_deploy.py or test_docs_command.py, run in test_docs_programs.py, run by
# `Reading`, part of the shell; then what the tests of the pages for production run, or (what needs
# a systemd or a Docker that runs) look at.
ELSEWHERE = {*SERVERS, "yaat", "websockets", "pytest", "."} | {
    *("kill", "ls", "nginx", "nstat", "openssl", "prlimit", "ss", "sysctl", "ulimit"),
    *("docker", "journalctl", "systemctl", "systemd-analyze", "systemd-socket-activate"),
}


def is_package(requirement: str) -> bool:
    package, _, extra = requirement.rstrip("]").partition("[")
    if package == "yaat":
        return not extra or extra in PROJECT["project"]["optional-dependencies"]
    return importlib.metadata.distribution(package) is not None


def test_options_of_servers_are_there() -> None:
    named = {
        option
        for page in ("README.md", *DEPLOYED, *TOPICS)
        for option in re.findall(r"--[a-z][\w-]+", (ROOT / page).read_text())
    }
    helps = [run("-m", *each, "--help") for each in (*zip(SERVERS), ("yaat", "run"))]
    assert [option for option in named if not any(option in text for text in helps)] == []


DEPLOYED = ("docs/how-to/deploy.md", "docs/how-to/restart.md")
TOPICS = ("docs/topics/servers.md", "docs/topics/security.md")


def run(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# Tables


def test_table_of_extras() -> None:
    [table] = tables(DOCS / "index.md")
    extras = PROJECT["project"]["optional-dependencies"]
    assert {code(row[0]) for row in table} == {f"yaat[{extra}]" for extra in extras}
    for extra, brings, _ in table:
        requirements = [requirement.lower() for requirement in extras[code(extra)[5:-1]]]
        brought = brings.lower().split(", ")
        assert len(requirements) == len(brought)
        for requirement, name in zip(requirements, brought, strict=True):
            assert requirement.startswith(name)


def test_table_of_states() -> None:
    table, _ = tables(DOCS / "topics" / "life.md")
    said = {State[state]: (spans(comes), spans(sent)) for state, _, comes, sent in table}
    assert said == {
        state: (
            {short(message) for message in legal if message in INCOMING},
            {short(message) for message in legal if message not in INCOMING},
        )
        for state, legal in TABLE.items()
    }


def spans(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


def short(message: str) -> str:
    return message.removeprefix("websocket.")


async def nothing(*_: object) -> Any: ...


@pytest.mark.parametrize("accepted", [True, False])
def test_table_of_starlettes_states(accepted: bool) -> None:  # noqa: FBT001
    _, table = tables(DOCS / "topics" / "life.md")
    assert [row[0] for row in table] == [state.name for state in TABLE]
    for state, client, application in table:
        websocket = WebSocket({"type": "websocket"}, nothing, nothing)
        websocket._life = State[state]
        websocket._accepted = state == "OPEN" or (accepted and state == "GONE")
        assert websocket.client_state.name == client
        yes, _, no = application.partition(" if it had been accepted, else ")
        assert websocket.application_state.name == (yes if accepted or not no else no)


def test_table_of_close_codes() -> None:
    [table] = tables(DOCS / "reference" / "close-codes.md")
    assert [(int(row[0]), code(row[1]), int(row[2])) for row in table] == [
        (each.value, each.name, travelling_code(each)) for each in WebSocketCloseEvent
    ]


ROWS = [
    ("A handshake can be answered with a response", "can_deny", "no, 403"),
    ("The handler learns the client's close code", "tells_close_code", "no, 1006"),
    ("The handler learns the client's reason", "tells_reason", "no"),
    ("What it learns after a lost connection", "code_after_loss", ""),
    ("Headers given to `accept()` are sent", "sends_accept_headers", "no"),
    ("The reason given to `close()` is sent", "sends_reason", "no"),
    ("Close codes from 1001 to 1014 are sent", "sends_registered_codes", "no, 1011"),
    ("Empty messages are sent", "sends_empty", "no"),
    ("`send()` waits for a client that does not read", "send_waits", "no"),
    ("A client waits for a handler that does not receive", "pushes_back", "no"),
    ("The application's startup and shutdown run", "runs_lifespan", "no"),
    ("Handlers come to their end when the server is stopped", "ends_handlers", "no"),
    ("What a client sees when the server is stopped", "code_on_stop", ""),
]


def test_table_of_servers() -> None:
    table, _ = tables(DOCS / "topics" / "servers.md")
    for row, (label, fact, otherwise) in zip(table, ROWS, strict=True):
        values = [getattr(spec.facts, fact) for spec in SPECS.values()]
        said = {True: "yes", False: otherwise}
        expected = [said[value] if isinstance(value, bool) else str(value) for value in values]
        assert row == [label, *expected]


def test_table_of_servers_leaves_out_no_fact() -> None:
    elsewhere = {"http_version", "complaint", "prints_logs"}
    assert {fact for _, fact, _ in ROWS} | elsewhere == set(Facts.__annotations__)


def test_complaints_of_servers_are_told() -> None:
    text = " ".join((DOCS / "topics" / "servers.md").read_text().split())
    for spec in SPECS.values():
        assert spec.facts.complaint in text


def test_defaults_of_servers() -> None:
    _, table = tables(DOCS / "topics" / "servers.md")
    mebibytes = {row[0]: re.findall(r"(\d+) MiB", " ".join(row)) for row in table}
    config = uvicorn.Config("app:app")
    daphne = vars(CommandLineInterface().parser.parse_args(["app:app"]))
    longest = (config.ws_max_size, Config().websocket_max_message_size)
    assert mebibytes["Longest message"] == [
        str(ServerSettings().max_message_bytes >> 20),
        *(str(size >> 20) for size in longest),
        "16",  # what granian is built with
        str(daphne["websocket_max_message_size"] >> 20),
    ]
    assert (config.ws_ping_interval, config.ws_ping_timeout) == (20, 20)
    assert Config().websocket_ping_interval is None
    assert Config().graceful_timeout == 3
    assert (daphne["ping_interval"], daphne["ping_timeout"]) == (20, 30)
    assert daphne["websocket_timeout"] == 86400
    assert AutoWebSocketsProtocol is not None
    assert AutoWebSocketsProtocol.__name__ == "WebSocketsSansIOProtocol"


def test_table_of_loggers() -> None:
    table = tables(DOCS / "how-to" / "report-errors.md")[0]
    sources = "".join(path.read_text() for path in (ROOT / "src" / "yaat").rglob("*.py"))
    used = set(re.findall(r'getLogger\("(yaat[^"]*)"\)', sources))
    assert {code(row[0]) for row in table} == used


def test_table_of_rooms() -> None:
    [table] = tables(DOCS / "decisions" / "rooms.md")
    rooms = {code(row[0]) for row in table}
    inside = set(
        re.findall(r"^::: yaat\.(\w+)$", (DOCS / "reference/inside.md").read_text(), re.MULTILINE)
    )
    assert inside == rooms | {"types"}
    assert all(importlib.util.find_spec(f"yaat.{room}") for room in rooms)


def test_table_of_imports() -> None:
    table = tables(DOCS / "how-to" / "from-starlette.md")[0]
    for theirs, ours in table:
        classes, found = dotted(theirs), dotted(ours)
        if "the same class" in ours:
            assert all(getattr(yaat, each.__name__) is each for each in classes)
        elif "the same names" in ours:
            [module] = found
            assert all(hasattr(module, each.__name__) for each in classes)
        else:
            assert bool(classes) == (ours != "there")
    assert not hasattr(Starlette, "websocket_route")
    assert hasattr(yaat.Yaat, "websocket_route")


def dotted(cell: str) -> list[Any]:
    """What the dotted names in a cell stand for; a name alone is of the module before it."""
    found: list[Any] = []
    module = ""
    for span in re.findall(r"`([\w.]+)`", cell):
        before, _, last = span.rpartition(".")
        module = before or module
        if module:
            found.append(getattr(importlib.import_module(module), last))
    return found


# How a connection ends

DID, SENT, ELSE = tables(DOCS / "reference" / "endings.md")
NAMES = {**{name: getattr(yaat, name) for name in yaat.__all__}, "Response": Response}


def application(*statements: str) -> yaat.Yaat:
    """An application whose one handler does what a table says."""
    source = "async def handler(websocket):\n" + "".join(f"    {each}\n" for each in statements)
    names = dict(NAMES)
    exec(source, names)
    app = yaat.Yaat()
    app.add_websocket_route("/", names["handler"])
    return app


def is_logged(caplog: pytest.LogCaptureFixture) -> bool:
    return any(record.name == "yaat.error" for record in caplog.records)


@pytest.mark.parametrize("row", DID, ids=lambda row: code(row[0]))
async def test_table_of_endings_after_the_accept(
    row: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    statement, close_code, reason, _, logged = row
    app = application("await websocket.accept()", code(statement))
    async with app.test_client(raise_app_exceptions=False) as client, client.websocket("/") as ws:
        with pytest.raises(WebSocketDisconnect) as end:
            await ws.receive()
    assert (end.value.code, end.value.reason) == (int(close_code), code(reason))
    assert is_logged(caplog) is logged.startswith("yes")


@pytest.mark.parametrize("row", DID, ids=lambda row: code(row[0]))
async def test_table_of_endings_before_the_accept(
    row: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    statement, _, _, status, logged = row
    async with application(code(statement)).test_client(raise_app_exceptions=False) as client:
        with pytest.raises(HandshakeRefused) as refusal:
            async with client.websocket("/"):
                pass
    assert refusal.value.status == int(status)
    assert is_logged(caplog) is (logged == "yes")


@pytest.mark.parametrize("row", SENT, ids=lambda row: f"{code(row[0])} {code(row[1])}")
async def test_table_of_what_a_client_sends(
    row: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    sent, called, close_code, raised = map(code, row)
    caught = f"except {raised}: await websocket.send_text('caught'); raise"
    attempt = f"try: await websocket.{called}"
    app = application("await websocket.accept()", attempt, caught)
    async with app.test_client() as client, client.websocket("/") as ws:
        await eval(f"ws.{sent}")
        assert await ws.receive_text() == "caught"
        with pytest.raises(WebSocketDisconnect) as end:
            await ws.receive()
    assert end.value.code == int(close_code)
    assert not caplog.records


def seen(happened: str) -> str:
    """What the client sees of something that happens, as the table says it."""
    return next(row[1] for row in ELSE if row[0] == happened)


@pytest.mark.parametrize(
    ("happened", "app", "headers"),
    [
        ("No route", yaat.Yaat(), {}),
        ("A page of another site", application("pass"), {"origin": "https://evil.example"}),
    ],
)
async def test_table_of_what_else_refuses(
    happened: str, app: yaat.Yaat, headers: dict[str, str]
) -> None:
    async with app.test_client() as client:
        with pytest.raises(HandshakeRefused) as refusal:
            async with client.websocket("/", headers=headers):
                pass
    assert str(refusal.value.status) == seen(happened)


async def forever() -> None:
    await asyncio.Event().wait()


async def refuse() -> None:
    raise yaat.Refused("no more", code=4000)


async def test_work_that_raises_ends_as_the_handler_would() -> None:
    app = yaat.Yaat()

    @app.websocket_route("/")
    async def handler(websocket: WebSocket) -> None:
        await websocket.accept()
        websocket.start_soon(refuse)
        await forever()

    async with app.test_client() as client, client.websocket("/") as ws:
        with pytest.raises(WebSocketDisconnect) as end:
            await ws.receive()
    assert (end.value.code, end.value.reason) == (4000, "no more")


async def test_what_a_client_sees_when_the_server_cancels() -> None:
    app = yaat.Yaat()

    @app.websocket_route("/{accepts}")
    async def handler(websocket: WebSocket, accepts: str) -> None:
        if accepts == "yes":
            await websocket.accept()
        server_task.set_result(asyncio.current_task())
        await forever()

    said = re.findall(r"\d+", seen("The server cancels the handler"))
    async with app.test_client() as client:
        server_task: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        async with client.websocket("/yes") as ws:
            (await server_task).cancel()
            with pytest.raises(WebSocketDisconnect) as end:
                await ws.receive()
        server_task = asyncio.get_running_loop().create_future()
        attempt = asyncio.create_task(client.websocket("/no").__aenter__())
        (await server_task).cancel()
        with pytest.raises(HandshakeRefused) as refusal:
            await attempt
    assert said == [str(end.value.code), str(refusal.value.status)]


# The picture, the site, the links


def test_picture_is_what_the_table_gives() -> None:
    drawn = picture()
    assert drawn.picture() == drawn.FILE.read_text(encoding="utf-8")


def test_picture_needs_a_place_for_every_state(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = picture()
    monkeypatch.delitem(drawn.PLACES, State.GONE)
    with pytest.raises(KeyError):
        drawn.picture()


def test_picture_has_no_way_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = picture()
    monkeypatch.setitem(drawn.WAYS, (State.CLOSED, State.OPEN), drawn.Way("", (0, 0)))
    with pytest.raises(ValueError, match="nothing in the table needs"):
        drawn.picture()


def picture() -> Any:
    location = importlib.util.spec_from_file_location("picture", DOCS / "picture.py")
    assert location is not None
    assert location.loader is not None
    module = importlib.util.module_from_spec(location)
    location.loader.exec_module(module)
    return module


class Sources(HTMLParser):
    """What a page of the site loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag in ("script", "img", "iframe") or attributes.get("rel") in LOADED:
            self.found.append(attributes.get("src") or attributes.get("href") or "")


LOADED = ("stylesheet", "preconnect", "preload", "icon")


def test_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    site = str(tmp_path / "site")
    run("-m", "mkdocs", "build", "--strict", "--site-dir", site, NO_MKDOCS_2_WARNING="1")
    built = list(Path(site).rglob("*.html"))
    assert len(built) > 30
    sources = Sources()
    for page in built:
        sources.feed(page.read_text(encoding="utf-8"))
    assert [source for source in sources.found if re.match(r"(\w+:)?//", source)] == []
    described = (Path(site) / "reference" / "websocket" / "index.html").read_text(encoding="utf-8")
    assert 'id="yaat.websockets.WebSocket.send_text"' in described


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text())
    local = [link for link in links if not link.startswith("https://")]
    assert local
    assert [link for link in local if not (ROOT / link).exists()] == []


def test_layers_are_those_that_are_held() -> None:
    lines = re.findall(r"^\d+\. (.+)$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    contract = PROJECT["tool"]["importlinter"]["contracts"][0]
    held = [layer.split(" | ") for layer in contract["layers"]]
    assert [re.findall(r"`(\w+)`", line) for line in lines] == held


def test_changelog_knows_this_version() -> None:
    versions = re.findall(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == yaat.__version__ == PROJECT["project"]["version"]
