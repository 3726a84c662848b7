"""A peer: an application of the tests behind one of the servers, or behind the test client."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from clients import TIMEOUT, Client, Closed, Headers, Refused, connect
from servers import Facts, Server, ServerSpec
from yaat.exceptions import WebSocketDisconnect
from yaat.testing import HandshakeRefused, TestClient, WebSocketSession

Record = dict[str, Any]


class Peer:
    """Where a test connects to, and what it can learn from the other side.

    Attributes:
        name: The parameter's id.
        facts: What it can do and tell.
        origin: Of a page that the same host serves.
        key: Of this test's connections among the records.
    """

    def __init__(self, name: str, facts: Facts, origin: str, records: Path) -> None:
        self.name = name
        self.facts = facts
        self.origin = origin
        self.key = uuid4().hex
        self._records = records

    def connect(self, path: str, **options: Any) -> AbstractAsyncContextManager[Client]:
        """Open a connection, see `clients.connect`."""
        raise NotImplementedError

    def abandon(self, path: str) -> AbstractAsyncContextManager[None]:
        """Begin a handshake and leave at the end of the block, before it was answered."""
        raise NotImplementedError

    def written(self) -> str:
        """What the server process wrote since the test began."""
        raise NotImplementedError

    def keyed(self, path: str) -> str:
        return f"{path}{'&' if '?' in path else '?'}key={self.key}"

    def records(self, event: str) -> list[Record]:
        """What was reported of this test's connections so far."""
        if not self._records.exists():
            return []
        whole, _, _being_written = self._records.read_text().rpartition("\n")
        lines = whole.splitlines()
        records: list[Record] = [json.loads(line) for line in lines if self.key in line]
        return [record for record in records if record["event"] == event]

    async def recorded(self, event: str, count: int = 1) -> Record:
        """Wait until `event` was reported `count` times, and return the last report."""
        try:
            async with asyncio.timeout(TIMEOUT):
                while len(records := self.records(event)) < count:  # noqa: ASYNC110 - elsewhere
                    await asyncio.sleep(0.005)
        except TimeoutError:
            seen = self._records.read_text() if self._records.exists() else "nothing"
            own = "\n".join(line for line in seen.splitlines() if self.key in line)
            raise TimeoutError(
                f"{self.name}: waited {TIMEOUT} s for {event!r}, seen:\n{own}\n{self.written()}"
            ) from None
        return records[count - 1]

    async def settled(self) -> None:
        """Wait until the application has ended, and whatever the server does after that is done.

        The server runs one event loop: it has answered a later connection after it had done what
        was due before.
        """
        await self.recorded("ended")
        async with self.connect("/echo") as client:
            await client.send_text("anything left?")
            await client.receive()

    def errors(self) -> list[Record]:
        """What was logged as an error, by whomever, but for what the server always complains of."""
        logs = [log for log in self.records("log") if log["level"] in {"ERROR", "CRITICAL"}]
        return [log for log in logs if not self._is_complaint(log["message"])]

    def escaped(self) -> list[Record]:
        """What the application let out, but for what the server needs to hear."""
        return [each for each in self.records("escaped") if not self._is_complaint(each["error"])]

    def tracebacks(self) -> int:
        """How many tracebacks the server process has written by itself."""
        lines = self.written().splitlines()
        known = sum(map(self._is_complaint, lines))
        if self.facts.prints_logs:
            known += sum(bool(log["error"]) for log in self.records("log"))
        return max(0, sum(line.startswith("Traceback") for line in lines) - known)

    def _is_complaint(self, text: str) -> bool:
        return bool(self.facts.complaint) and self.facts.complaint in text


class ServerPeer(Peer):
    """An application served by a process."""

    def __init__(self, spec: ServerSpec, server: Server) -> None:
        origin = f"http://127.0.0.1:{server.port}"
        super().__init__(spec.name, spec.facts, origin, server.records)
        self.server = server
        self._mark = server.mark()

    def connect(self, path: str, **options: Any) -> AbstractAsyncContextManager[Client]:
        url = self.server.url(self.keyed(path))
        return connect(url, http_version=self.facts.http_version, **options)

    def written(self) -> str:
        return self.server.written_since(self._mark)

    @asynccontextmanager
    async def abandon(self, path: str) -> AsyncIterator[None]:
        attempt = asyncio.create_task(self.connect(path).__aenter__())
        yield
        attempt.cancel()
        with suppress(asyncio.CancelledError):
            await attempt


class TestClientPeer(Peer):
    """The same application in this process, behind its own test client."""

    def __init__(self, client: TestClient, records: Path) -> None:
        super().__init__("test-client", Facts(), "http://testserver", records)
        self._client = client

    @asynccontextmanager
    async def connect(self, path: str, **options: Any) -> AsyncIterator[Client]:
        options.pop("receive_buffer", None)  # its buffer is small as it is
        options["headers"] = dict(options.get("headers", ()))
        session = self._session(path, **options)
        try:
            await session.__aenter__()
        except HandshakeRefused as refused:
            pairs = refused.headers.multi_items()
            raise Refused(refused.status, pairs, refused.body) from None
        try:
            yield SessionClient(session)
        except BaseException as error:
            await session.__aexit__(type(error), error, None)
            raise
        await session.__aexit__(None, None, None)

    def _session(self, path: str, **options: Any) -> WebSocketSession:
        return self._client.websocket(self.keyed(path), **options)

    @asynccontextmanager
    async def abandon(self, path: str) -> AsyncIterator[None]:
        session = self._session(path)
        attempt = asyncio.create_task(session.__aenter__())
        yield
        await session.cut()
        with suppress(HandshakeRefused):
            await attempt

    def written(self) -> str:
        return ""


class SessionClient:
    """A `Client` in process."""

    def __init__(self, session: WebSocketSession) -> None:
        self._session = session
        self.url = str(session.scope["path"])
        self.subprotocol = session.subprotocol
        self.headers: Headers = session.headers.multi_items()
        self.send_text = session.send_text
        self.send_bytes = session.send_bytes
        self.send_json = session.send_json
        self.vanish = self.reset = session.cut

    @property
    def timeout(self) -> float:
        return self._session._timeout

    @timeout.setter
    def timeout(self, timeout: float) -> None:
        self._session._timeout = timeout

    async def receive(self) -> str | bytes:
        try:
            return await self._session.receive()
        except WebSocketDisconnect as end:
            raise Closed(end.code, end.reason) from None

    async def receive_json(self) -> Any:
        return json.loads(await self.receive())

    async def close(self, code: int = 1000, reason: str = "") -> None:
        await self._session.close(code, reason)

    async def close_without_code(self) -> None:
        self._session._leave(1005, "")

    async def hang_up(self, code: int | None = 1000, reason: str = "") -> None:
        if code is None:
            await self.close_without_code()
        else:
            await self.close(code, reason)
