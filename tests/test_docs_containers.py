"""docs/how-to/containers.md: what its files say is done as far as that goes without a container."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
import venv
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from browser import only_one_process
from clients import Closed, connect
from documents import DOCS, ROOT, blocks, write
from servers import START_TIMEOUT, Port
from yaat.server import ServerSettings

PAGE = DOCS / "how-to" / "containers.md"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETTINGS = ServerSettings()


def file(title: str) -> str:
    [block] = [block for block in blocks(PAGE) if block.title == title]
    return block.code


DOCKERFILE = [line.split(maxsplit=1) for line in file("Dockerfile").splitlines()]
[COMPOSED] = yaml.safe_load(file("compose.yaml"))["services"].values()
DEPLOYMENT, SERVICE = yaml.safe_load_all(file("chat.yaml"))
POD = DEPLOYMENT["spec"]["template"]["spec"]
[CONTAINER] = POD["containers"]


def said(instruction: str) -> str:
    [value] = [rest for name, rest in DOCKERFILE if name == instruction]
    return value


CMD: list[str] = json.loads(said("CMD"))


def option(command: Sequence[str], name: str) -> str:
    return command[command.index(name) + 1]


# The image


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the Dockerfile makes: its packages in `venv`, its files in `app`."""
    image = tmp_path_factory.mktemp("image")
    context, home = image / "context", image / "app"
    home.mkdir()
    write(PAGE, context)
    # Yaat as it is here.
    needed = (context / "requirements.txt").read_text()
    assert needed == "yaat[server]\n"
    (context / "requirements.txt").write_text(f"yaat[server] @ file://{ROOT}\n")
    venv.create(image / "venv", with_pip=True)
    for instruction, rest in DOCKERFILE:
        if instruction == "COPY":
            name, target = rest.split()
            assert target == "."
            (home / name).write_text((context / name).read_text())
        elif instruction == "RUN":
            with only_one_process():
                run(image, rest)
    return image


@pytest.fixture
def port() -> Iterator[Port]:
    port = Port()
    yield port
    port.release()


def environment(image: Path) -> dict[str, str]:
    variables = dict([said("ENV").split("=")])
    return {**os.environ, **variables, "PATH": f"{image}/venv/bin:{os.environ['PATH']}"}


def run(image: Path, line: str) -> None:
    """Do what RUN does, in the home of the image."""
    done = subprocess.run(
        ["sh", "-c", line],
        cwd=image / "app",
        env=environment(image),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --kill-child: the namespace ends with whoever made it.
UNSHARE = f"unshare --user --map-user={said('USER')} --pid --fork --kill-child --".split()


@asynccontextmanager
async def contained(image: Path, *command: str) -> AsyncIterator[tuple[Process, int]]:
    """A command as process 1 of a namespace, and as the user of the image; its pid out here."""
    process = await asyncio.create_subprocess_exec(
        *UNSHARE, *command, cwd=image / "app", env=environment(image), stdout=PIPE, stderr=STDOUT
    )
    try:
        yield process, await first_child(process.pid)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def first_child(pid: int) -> int:
    async with asyncio.timeout(START_TIMEOUT):
        while True:
            if children := read(f"/proc/{pid}/task/{pid}/children").split():
                return int(children[0])
            await asyncio.sleep(0.01)


def read(path: str) -> str:
    return Path(path).read_text()


async def ready(process: Process, port: Port) -> None:
    """Read what it writes until the application has started; then it listens soon."""
    assert process.stdout is not None
    async with asyncio.timeout(START_TIMEOUT):
        await process.stdout.readuntil(b"Application startup complete.")
        while not await listens(port):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)


async def listens(port: Port) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port.number)
    except ConnectionRefusedError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


def at(port: Port, command: Sequence[str]) -> list[str]:
    return [word.replace("8000", str(port.number)) for word in command]


async def test_the_image_serves_and_stops(image: Path, port: Port) -> None:
    async with contained(image, *at(port, CMD)) as (process, pid):
        await ready(process, port)
        status = read(f"/proc/{pid}/status")
        assert re.search(r"NSpid:\t\d+\t1\n", status)
        async with connect(f"ws://127.0.0.1:{port.number}/echo") as client:
            await client.send_text("hello")
            assert await client.receive() == "hello"
            os.kill(pid, getattr(signal, said("STOPSIGNAL")))
            client.timeout = 20
            with pytest.raises(Closed) as end:
                await client.receive()
            assert end.value.code == 1012
        output, _ = await process.communicate()
        assert b"Application shutdown complete." in output
        assert process.returncode == 0


def test_the_image_is_not_root() -> None:
    told = subprocess.run([*UNSHARE, "id", "-u"], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == said("USER")
    assert int(said("USER")) > 0


async def test_a_second_signal_ends_process_1(image: Path, port: Port) -> None:
    async with contained(image, *at(port, CMD)) as (process, pid):
        await ready(process, port)
        async with connect(f"ws://127.0.0.1:{port.number}/echo"):
            os.kill(pid, signal.SIGTERM)
            assert process.stdout is not None
            await process.stdout.readuntil(b"Closing 1 WebSocket connections.")
            os.kill(pid, signal.SIGTERM)
            async with asyncio.timeout(START_TIMEOUT):
                assert await process.wait() != 0


async def test_a_shell_does_not_pass_the_signal_on(image: Path, port: Port) -> None:
    # A shell that has more to do than one command; some replace themselves with a single one.
    line = f"{' '.join(at(port, CMD))}; true"
    async with contained(image, "sh", "-c", line) as (process, pid):
        await ready(process, port)
        async with connect(f"ws://127.0.0.1:{port.number}/echo") as client:
            os.kill(pid, signal.SIGTERM)
            await client.send_text("still here")
            assert await client.receive() == "still here"
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(Closed) as end:
                await client.receive()
            assert end.value.code == 1006


def test_the_image_is_of_a_python_that_yaat_knows() -> None:
    [version] = re.findall(r"python:([\d.]+)-slim", said("FROM"))
    assert f"Programming Language :: Python :: {version}" in PROJECT["project"]["classifiers"]


async def test_the_health_check(image: Path, port: Port) -> None:
    kind, python, *arguments = COMPOSED["healthcheck"]["test"]
    assert (kind, python) == ("CMD", "python")

    async def is_healthy() -> bool:
        check = await asyncio.create_subprocess_exec(
            sys.executable, *at(port, arguments), stderr=PIPE
        )
        await check.communicate()
        return check.returncode == 0

    assert not await is_healthy()
    async with contained(image, *at(port, CMD)) as (process, _):
        await ready(process, port)
        assert await is_healthy()


# What is said elsewhere fits


def longest(command: Sequence[str]) -> float:
    """How long the server may take to stop."""
    drain = float(option(command, "--drain"))
    return drain + SETTINGS.handler_timeout + SETTINGS.shutdown_timeout


def test_compose() -> None:
    port = option(CMD, "--port")
    assert said("EXPOSE") == port
    assert [each.rpartition(":")[2] for each in COMPOSED["ports"]] == [port]
    assert f"//127.0.0.1:{port}/health" in COMPOSED["healthcheck"]["test"][-1]
    assert float(COMPOSED["stop_grace_period"].removesuffix("s")) > longest(CMD)


def test_kubernetes() -> None:
    command = CONTAINER["args"]
    assert command[:3] == CMD[:3]
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert labels == DEPLOYMENT["spec"]["selector"]["matchLabels"] == SERVICE["spec"]["selector"]
    [port] = CONTAINER["ports"]
    assert str(port["containerPort"]) == option(command, "--port")
    assert SERVICE["spec"]["ports"][0]["targetPort"] == port["name"]
    probe = CONTAINER["readinessProbe"]["httpGet"]
    assert probe == {"path": "/health", "port": port["name"]}
    sleep, seconds = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == "sleep"
    assert POD["terminationGracePeriodSeconds"] > float(seconds) + longest(command)


@pytest.mark.parametrize("command", [CMD, CONTAINER["args"]], ids=["Dockerfile", "chat.yaml"])
async def test_yaat_takes_the_options(command: list[str], image: Path, port: Port) -> None:
    assert all(isinstance(word, str) for word in command)  # YAML makes a number of 8000
    async with contained(image, *at(port, command)) as (process, _):
        await ready(process, port)


def test_values_are_of_the_types_that_are_asked_for() -> None:
    typed: dict[str, Any] = {"replicas": int, "strategy": dict, "template": dict}
    assert all(isinstance(DEPLOYMENT["spec"][name], kind) for name, kind in typed.items())
    assert isinstance(POD["terminationGracePeriodSeconds"], int)
    assert isinstance(COMPOSED["ulimits"]["nofile"], int)
