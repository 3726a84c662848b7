"""The benchmarks run, every peer answers right in them, and a wrong answer does not pass."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# Whole processes, eight servers among them: on a busy machine they take their time to start.
pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[1]
PEERS = ["bare", "bare again", "Yaat", "Starlette", "FastAPI", "Litestar", "Quart", "Falcon"]
ROWS = ["text 32 B", "text 1 KiB", "binary 64 KiB", "JSON 100 B"]

# Echoes text, but for the third message of a connection; leaves out the rest.
LIAR = """
async def app(scope, receive, send):
    assert scope["type"] == "websocket"
    await receive()
    await send({"type": "websocket.accept"})
    count = 0
    while (message := await receive())["type"] == "websocket.receive":
        count += 1
        text = message["text"].upper() if count == LIE_AT else message["text"]
        await send({"type": "websocket.send", "text": text})
"""


SERVER_ROWS = [
    "text 32 B, 64x1",
    "text 32 B, 16x16",
    "text 1 KiB, 64x1",
    "binary 64 KiB, 64x1",
    "JSON 100 B, 64x1",
    "handshakes, 16 at once",
]
FANOUT_ROWS = ["128 B, one at a time", "128 B, 8 in flight"]
DEFLATE_ROWS = ["128 B, one at a time, deflate", "1 KiB, 8 in flight, deflate"]
COMPRESSING = [
    "sansio + Starlette",
    "yaat run + Yaat",
    "sansio + Yaat",
    "legacy + Yaat",
    "ours + bare",
    "ours + Starlette",
    "sansio + FastAPI",
    "sansio + Litestar",
    "sansio + Django",
    "aiohttp",
    "websockets",
]
FANOUT_PEERS = [
    *COMPRESSING,
    "picows.websockets",
    "picows raw",
    "Node ws",
    "socketify (limit)",
    "C epoll (limit)",
]
# Sends each listener, for every publication, what ANSWERS makes of the number of the listener, of
# the publication and of the one before it.
UNFAIR = """
listeners = []

async def app(scope, receive, send):
    assert scope["type"] == "websocket"
    await receive()
    await send({"type": "websocket.accept"})
    if scope["path"] == "/listen/000000":
        listeners.append(send)
        await send({"type": "websocket.send", "text": "ready"})
    before = None
    while (message := await receive())["type"] == "websocket.receive":
        text = message["text"]
        for number, to in enumerate(listeners):
            for answer in ANSWERS(number, text, before or text):
                await to({"type": "websocket.send"} | answer)
        before = text
    listeners.clear()
"""
FEW = ["--rounds", "1", "--seconds", "0.02", "--connections", "20"]
# Sends the members of a channel, for every publication, what ANSWERS makes of it.
UNFAIR_ROOMS = """
from collections import defaultdict

rooms = defaultdict(list)

async def app(scope, receive, send):
    assert scope["type"] == "websocket"
    await receive()
    await send({"type": "websocket.accept"})
    if scope["path"] != "/publish":
        for name in scope["path"].removeprefix("/listen/").split("-"):
            rooms[name].append(send)
        await send({"type": "websocket.send", "text": "ready"})
    while (message := await receive())["type"] == "websocket.receive":
        text = message["text"]
        for to in rooms[text[:6]]:
            for answer in ANSWERS(text):
                await to({"type": "websocket.send", "text": answer})
    rooms.clear()
"""
# Sends for every message what ANSWERS makes of the path, of the message and of the one before it.
FALSE = """
async def app(scope, receive, send):
    assert scope["type"] == "websocket"
    await receive()
    await send({"type": "websocket.accept"})
    before = None
    while (message := await receive())["type"] == "websocket.receive":
        echo = {key: message[key] for key in ("text", "bytes") if message.get(key) is not None}
        for answer in ANSWERS(scope["path"], echo, before or echo):
            await send({"type": "websocket.send"} | answer)
        before = echo
"""


def benchmarks(
    *arguments: str, path: Path = ROOT, **variables: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    environment = os.environ | {"PYTHONPATH": str(path)} | variables
    return subprocess.run(  # noqa: PLW1510 - what it exits with is what is tested
        command, cwd=ROOT, env=environment, capture_output=True, text=True
    )


def report(*arguments: str) -> str:
    done = benchmarks(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_every_peer_is_asked_and_answers_right(tmp_path: Path) -> None:
    shapes = ["--shape", "2x1", "--shape", "2x3"]
    printed = report(
        "echo", "--rounds", "1", "--seconds", "0.02", *shapes, "--output", str(tmp_path)
    )
    assert "--ws websockets-sansio" in printed
    for row in ROWS:
        for window in (1, 3):
            _, _, after = printed.partition(f"### {row}, 2 connections, {window} in flight each")
            section = after.partition("###")[0]
            assert [line.split(" |")[0].strip("| ") for line in rows_of(section)] == PEERS
            assert "Yaat's CPU per message is" in section
    assert "Of their processors the server used" in printed
    for plot in ("bench-echo-2x1.svg", "bench-echo-2x3.svg"):
        assert "Litestar" in (tmp_path / plot).read_text()


def rows_of(section: str) -> list[str]:
    """The lines of a table, without its head and its rule."""
    return [line for line in section.splitlines() if line.startswith("| ")][2:]


@pytest.mark.parametrize(("lie_at", "found"), [(1, "text 32 B: opcode 1"), (3, "than the first")])
def test_a_wrong_answer_is_found(tmp_path: Path, lie_at: int, found: str) -> None:
    (tmp_path / "liar.py").write_text(f"LIE_AT = {lie_at}\n{LIAR}")
    done = benchmarks("check", "--only", "liar", "--app", "liar=liar:app", path=tmp_path)
    assert done.returncode == 1
    assert "liar answers wrong: " in done.stderr
    assert found in done.stderr
    assert "- bare: right at text 32 B, text 1 KiB, binary 64 KiB, JSON 100 B" in done.stdout


def test_a_peer_that_does_not_start_is_named() -> None:
    done = benchmarks("check", "--only", "gone", "--app", "gone=benchmarks.nowhere:app")
    assert done.returncode == 1
    assert "gone did not start (benchmarks.nowhere:app)" in done.stderr


def test_an_unknown_row_is_refused() -> None:
    done = benchmarks("fanout", "--row", "129 B")
    assert done.returncode == 1
    assert "no such row: 129 B" in done.stderr


def test_an_unknown_part_is_refused() -> None:
    done = benchmarks("ecko")
    assert done.returncode == 2
    assert "no such part: ecko" in done.stderr


def test_what_is_added_to_a_message(tmp_path: Path) -> None:
    printed = report("overhead", "--rounds", "2", "--output", str(tmp_path))
    for name in ("text 32 B, ready", "text 32 B, waited for", "JSON 100 B, waited for"):
        section = printed.partition(f"### {name}\n")[2].partition("###")[0]
        assert len(rows_of(section)) == 4
        assert "of what Starlette adds" in section
    assert "Starlette" in (tmp_path / "bench-overhead.svg").read_text()


def test_what_a_connection_keeps(tmp_path: Path) -> None:
    sizes = ["--rounds", "1", "--connections", "10", "--only", "yaat,starlette"]
    printed = report("memory", *sizes, "--output", str(tmp_path))
    sections = printed.split("###")[1:]
    assert len(sections) == 3
    for section in sections:
        assert len(rows_of(section)) == 3
        assert "of what Starlette adds" in section
    assert (tmp_path / "bench-memory.svg").exists()


def test_what_the_import_takes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Before.\n<!-- a run begins -->\nOld.\n<!-- a run ends -->\nAfter.\n")
    printed = report("startup", "--rounds", "1", "--page", str(page))
    assert "| import yaat" in printed
    assert "of the time of Starlette" in printed
    written = page.read_text()
    assert printed.strip() in written
    assert written.startswith("Before.\n")
    assert written.endswith("\nAfter.\n")
    assert "Old." not in written


def test_a_page_without_marks_is_left_as_it_is(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Nothing here.")
    done = benchmarks("startup", "--rounds", "1", "--page", str(page))
    assert done.returncode == 1
    assert page.read_text() == "Nothing here."


def test_servers_are_measured_and_judged(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- a run begins -->\n<!-- a run ends -->\n")
    short = ["--rounds", "1", "--seconds", "0.02", "--connections", "50"]
    written = ["--page", str(page), "--output", str(tmp_path)]
    printed = report("server", *short, *written, "--only", "Yaat,Starlette,C epoll")
    peers = ["sansio + Starlette", "ours + Yaat", "ours + Starlette"]
    for row in SERVER_ROWS:
        section = printed.partition(f"### {row}\n")[2].partition("###")[0]
        assert names(section) == [*peers, "C epoll (limit)"]
        assert f": {row}: ours + Yaat ÷ sansio + Starlette is " in printed
    memory = printed.partition("### Memory of an idle connection\n")[2].partition("###")[0]
    assert names(memory) == ["ours + Yaat", "sansio + Starlette"]
    compared = printed.partition("### Yaat on our class ÷ the others\n")[2].partition("###")[0]
    assert names(compared) == ["sansio + Starlette", "ours + Starlette", "C epoll"]
    for aim in ("text 32 B, 64x1: ours + Starlette", "JSON 100 B, 64x1: behind", "idle memory"):
        assert aim in printed.partition("### Aims")[2]
    assert "Of their processors the servers used" in printed
    assert printed.strip() in page.read_text()
    assert "ours + Yaat" in (tmp_path / "bench-server.svg").read_text()


def names(section: str) -> list[str]:
    return [line.split(" |")[0].strip("| ") for line in rows_of(section)]


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        ("[{'text': echo['text'].upper()}]", "text 32 B, 64x1: connection"),
        ("[before]", "text 32 B, 64x1: connection"),
        ("[echo, echo]", "text 32 B, 64x1: connection"),
        ("[{'bytes': echo['text'].encode()}]", "0x82 instead of a whole frame of opcode 1"),
        ("[{'text': echo['text'] + '!'}]", "33 bytes long instead of 32"),
        (
            "[{'text': echo['text'].replace('alice', 'malice')}] if path == '/json' else [echo]",
            "JSON 100 B, 64x1: connection",
        ),
        (
            "[{'text': echo['text'].replace(':', ' : ')}] if path == '/json' else [echo]",
            None,
        ),
    ],
    ids=[
        "another text",
        "a stale text",
        "twice",
        "another kind",
        "longer",
        "JSON",
        "JSON's blanks",
    ],
)
def test_the_load_looks_at_every_byte(tmp_path: Path, answers: str, found: str | None) -> None:
    lie = f"def ANSWERS(path, echo, before):\n    return {answers}\n"
    (tmp_path / "false.py").write_text(lie + FALSE)
    short = ["--rounds", "1", "--seconds", "0.02", "--connections", "20"]
    asked = ["--app", "false=false:app", "--only", "false"]
    done = benchmarks("server", *asked, *short, "--output", str(tmp_path), path=tmp_path)
    if found is None:
        assert done.returncode == 0
        return
    assert done.returncode == 1
    assert "false fails at " in done.stderr
    assert found in done.stderr


def test_a_publication_reaches_all_of_many(tmp_path: Path) -> None:
    printed = report("fanout", *FEW, "--output", str(tmp_path))
    for rows, peers in ((FANOUT_ROWS, FANOUT_PEERS), (DEFLATE_ROWS, COMPRESSING)):
        for row in rows:
            section = printed.partition(f"### {row}\n")[2].partition("###")[0]
            assert names(section) == peers
    assert "IS NOT IN THE TABLE" not in printed
    aims = printed.partition("### Aims of the fan-out\n")[2]
    assert [aims.count(f"wanted ≥ {aim}") for aim in (2.0, 5.0, 1.2)] == [4, 3, 2]
    assert "yaat run + Yaat" in (tmp_path / "bench-fanout.svg").read_text()


def test_many_small_channels_are_measured(tmp_path: Path) -> None:
    printed = report("rooms", *FEW, "--output", str(tmp_path))
    section = printed.partition("### 200 channels of 1 to 3 members, on 40 sockets\n")[2]
    assert names(section) == FANOUT_PEERS
    assert "IS NOT IN THE TABLE" not in printed
    assert "yaat run + Yaat" in (tmp_path / "bench-rooms.svg").read_text()


def test_a_reader_that_stalls_is_measured(tmp_path: Path) -> None:
    peers = ["yaat run + yaat", "websockets", "drop_oldest", "socketify"]
    printed = report("stalled", *FEW, "--output", str(tmp_path), "--only", ",".join(peers))
    lines = {line.split(" |")[0].strip("| "): line for line in rows_of(printed)}
    assert list(lines) == [
        "sansio + Starlette",
        "yaat run + Yaat",
        "websockets",
        "socketify (limit)",
        "yaat run + Yaat + drop_oldest",
        "sansio + Yaat + drop_oldest",
    ]
    assert "NOBODY GETS ANYTHING" in lines["sansio + Starlette"]
    assert "did not reach all 20 receivers in 2 s" in lines["sansio + Starlette"]
    assert "closed with 1013 after " in lines["yaat run + Yaat"]
    came, published = re.findall(r"gets ([\d,]+) of ([\d,]+) when", lines["websockets"])[0]
    assert came == published
    assert "when it reads again" in lines["yaat run + Yaat + drop_oldest"]
    assert printed.count("a reader that stalls: ") == 3
    assert "drop_oldest" in (tmp_path / "bench-stalled.svg").read_text()


LIES = [
    (
        "[] if number == 3 and text[14] == '2' else [sent]",
        "message 2 did not reach all 10 receivers",
    ),
    ("[sent] * (1 + (number == 3 and text[14] == '2'))", "not published|message 3: other bytes"),
    ("[{'text': before}] if number == 3 else [sent]", "message 2: other bytes"),
    ("[{'text': before}]", "message 2 is b'000000 00000001"),
    ("[{'text': text.upper()}]", "message 1 is b'000000 00000001 IN THE"),
    ("[sent, sent]", "a message that was not published"),
    ("[{'bytes': text.encode()}]", "0x82 0x7e instead of a whole text frame"),
]
IDS = ["lost", "twice", "swapped", "stale for all", "another", "twice for all", "another kind"]


@pytest.mark.parametrize(("answers", "found"), LIES, ids=IDS)
def test_the_load_follows_every_receiver(tmp_path: Path, answers: str, found: str) -> None:
    lie = f"def ANSWERS(number, text, before):\n    sent = {{'text': text}}\n    return {answers}\n"
    (tmp_path / "unfair.py").write_text(lie + UNFAIR)
    short = ["--rounds", "1", "--seconds", "0.02", "--connections", "10"]
    asked = ["--app", "unfair=unfair:app", "--only", "unfair", "--row", "128 B, one at a time"]
    done = benchmarks("fanout", *asked, *short, "--output", str(tmp_path), path=tmp_path)
    assert done.returncode == 0, done.stderr
    first = done.stdout.partition("### 128 B, one at a time\n")[2].partition("###")[0]
    assert names(first) == ["sansio + Starlette"]
    assert re.search(f"unfair IS NOT IN THE TABLE: .*({found})", first)


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        ("[]", "did not reach all members in 5 s"),
        ("[] if text[14] == '0' else [text]", "publication 0 is not what came"),
        ("[text, text]", "came once more|is not what came"),
        ("[text[:14] + '7' + text[15:]]", "publication 0 is not what came"),
        ("[text.upper()]", "publication 0 is not what came"),
        ("[chr(ord(text[0]) + 1) + text[1:]]", "where it is not"),
    ],
    ids=["all lost", "first lost", "twice", "out of order", "another", "another channel"],
)
def test_the_load_follows_every_member(tmp_path: Path, answers: str, found: str) -> None:
    (tmp_path / "unfair.py").write_text(f"ANSWERS = lambda text: {answers}\n{UNFAIR_ROOMS}")
    short = ["--rounds", "1", "--seconds", "0.02", "--connections", "10"]
    asked = ["--app", "unfair=unfair:app", "--only", "unfair"]
    done = benchmarks("rooms", *asked, *short, "--output", str(tmp_path), path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(f"unfair IS NOT IN THE TABLE: .*({found})", done.stdout)


def test_publishing_in_process_is_measured() -> None:
    printed = report("broker", "--rounds", "1")
    assert names(printed.partition("### The broker alone")[2].partition("###")[0]) == [
        "MemoryBroker",
        "broadcaster (no history)",
        "Litestar's MemoryChannelsBackend",
    ]
    for number in (0, 1, 10):
        section = printed.partition(f"### A channel, subscribers: {number}\n")[2].partition("###")[
            0
        ]
        assert names(section) == ["Yaat", "broadcaster (no history)", "Litestar"]
    assert "the broker alone takes " in printed


def test_very_many_sockets_are_weighed_and_pinged(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Before.\n<!-- a size begins -->\n<!-- a size ends -->\n")
    few = ["--sockets", "40", "--interval", "0.4", "--page", str(page)]
    command = [sys.executable, "-m", "benchmarks.size", *few]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in page.read_text()
    one, echoed, pings, more_pings, *two = rows_of(done.stdout)
    assert one.startswith("| 40 sockets, accepted")
    assert echoed.startswith("| 40 sockets, each has echoed")
    assert "KiB a socket (PSS " in one
    assert pings.startswith("| 40 sockets, a ping every 0.4 s")
    assert more_pings.startswith("| 40 sockets, a ping every 0.1 s")
    assert "of a core" in pings
    assert all(line.startswith("| 80 sockets") for line in two)
    assert len(two) == 2


def test_a_server_that_does_not_start_is_named_with_what_it_said() -> None:
    done = benchmarks("server", "--only", "gone", "--app", "gone=benchmarks.nowhere:app")
    assert done.returncode == 1
    assert "gone did not start: " in done.stderr
    assert "benchmarks.nowhere" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("part", ["server", "fanout", "rooms", "stalled"])
def test_without_a_compiler_the_servers_are_left_out(part: str) -> None:
    done = benchmarks(part, CC="no-such-compiler")
    assert done.returncode == 0
    assert "Left out: no C compiler" in done.stdout


ACCEPT = b"Sec-WebSocket-Accept: Kfh9QIsMVZcl6xEPYxPHzW8SZ8w="
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "instead of a 101: HTTP/1.1 403 Forbidden"),
        (SWITCHING + b"\r\n", "Sec-WebSocket-Accept is not "),
        (SWITCHING + ACCEPT + b"\r\n\r\n", "Sec-WebSocket-Accept is not "),
        (b"", "hung up in the handshake"),
    ],
)
async def test_the_load_checks_the_handshake(answer: bytes, found: str) -> None:
    async def answer_and_leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer_and_leave, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        told = [str(port), "/text", "1", "0.01", "0.01", str(os.getpid())]
        load = await asyncio.create_subprocess_exec(
            await asyncio.to_thread(load_in_c), "handshakes", *told, stderr=subprocess.PIPE
        )
        _, error = await load.communicate()
    assert load.returncode == 1
    assert found in error.decode()


def load_in_c() -> str:
    command = "from benchmarks.servers.compiled import compiled; print(compiled('load'), end='')"
    return subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
