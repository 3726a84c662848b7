"""An application of the tests behind the server class, and what every test of that asks of it."""

import json
from typing import Any

import pytest

from apps.plain import SECRET
from clients import Client, Closed, Refused
from peers import Record, ServerPeer
from servers import Server

LOOPS = ("yaat-uvloop", "yaat-asyncio")


class Served(ServerPeer):
    """One of the applications on the class."""

    def __init__(self, app: str, server: Server) -> None:
        super().__init__(server.spec, server)
        self.app = app
        self._begin = len(self._lines())

    def _lines(self) -> list[str]:
        text = self._records.read_text() if self._records.exists() else ""
        return text.rpartition("\n")[0].splitlines()

    def errors(self) -> list[Record]:
        """What was logged as an error since the test began, by whomever and wherever."""
        records = [json.loads(line) for line in self._lines()[self._begin :]]
        levels = {"ERROR", "CRITICAL"}
        return [each for each in records if each["event"] == "log" and each["level"] in levels]


async def read_all(client: Client) -> tuple[list[str | bytes], Closed]:
    """Read to the end of the connection; return the messages and the end."""
    messages: list[str | bytes] = []
    try:
        while True:
            messages.append(await client.receive())
    except Closed as end:
        return messages, end


async def closed(client: Client) -> tuple[int, str]:
    """Read to the end of the connection; return the code and reason that the client saw."""
    _, end = await read_all(client)
    return end.code, end.reason


async def refused(peer: ServerPeer, path: str, **options: Any) -> Refused:
    with pytest.raises(Refused) as answer:
        async with peer.connect(path, **options):
            pytest.fail("it was accepted")
    return answer.value


async def open_the_gate(peer: ServerPeer) -> None:
    async with peer.connect("/open-the-gate"):
        pass


async def assert_quiet(peer: Served, escaped: int = 0) -> None:
    """Assert that nothing was logged as an error, whatever the application let out."""
    await peer.settled()
    assert peer.errors() == [], peer.errors()
    assert peer.tracebacks() == 0, peer.written()
    assert len(peer.records("escaped")) == escaped, peer.records("escaped")


async def assert_one_error(peer: Served, error: str = f"ValueError('{SECRET}')") -> None:
    """Assert that the exception was logged once, with its traceback."""
    await peer.settled()
    assert [each["error"] for each in peer.errors()] == [error], peer.errors()
    assert peer.tracebacks() == 1, peer.written()
