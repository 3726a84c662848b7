"""What the load in C is told to do, and what it answers."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.exchange import BINARY, Exchange
from benchmarks.servers.compiled import compiled

WARM = 0.05  # seconds before the clocks are read
SPARE = 4  # payloads more than are in flight: what is lost, repeated or swapped is seen to be wrong
STAMP = 8  # characters of a payload that tell it from the others
NAME = 6  # characters in the beginning of what is published: the channel


class LoadFailedError(Exception):
    """The load gave up: a wrong answer, or none."""


@dataclass(frozen=True)
class Counted:
    """What one run of the load gave; times in nanoseconds."""

    count: int
    wall: int
    load: int
    server: int
    p50: int
    p99: int

    @property
    def rate(self) -> float:
        """How many a second."""
        return self.count / self.wall * 1e9

    @property
    def cpu(self) -> float:
        """Of the server, for one."""
        return self.server / self.count

    @property
    def server_share(self) -> float:
        return self.server / self.wall

    @property
    def load_share(self) -> float:
        return self.load / self.wall


@dataclass(frozen=True)
class Target:
    """A server as the load sees it: where it listens, and which processes it consists of."""

    port: int
    pids: tuple[int, ...]

    @property
    def clocks(self) -> list[str]:
        return [str(pid) for pid in self.pids]


def echo(target: Target, exchange: Exchange, shape: tuple[int, int], seconds: float) -> Counted:
    """Every connection keeps so many messages in flight."""
    connections, window = shape
    payloads = stamped(exchange, window + SPARE)
    with TemporaryDirectory() as place:
        file = Path(place) / "payloads"
        file.write_bytes(b"".join(payloads))
        sizes = [len(payloads), connections, window, WARM, seconds]
        kind = kind_of(exchange)
        return counted("echo", target.port, exchange.path, kind, file, *sizes, *target.clocks)


def kind_of(exchange: Exchange) -> str:
    if exchange.path == "/json":
        return "json"
    return "binary" if exchange.opcode == BINARY else "text"


def stamped(exchange: Exchange, count: int) -> list[bytes]:
    """As many payloads of the same size that differ from each other."""
    if exchange.path == "/json":
        value = json.loads(exchange.payload)
        ids = range(value["id"], value["id"] + count)
        return [json.dumps(value | {"id": id_}, separators=(",", ":")).encode() for id_ in ids]
    return [b"%0*d" % (STAMP, number) + exchange.payload[STAMP:] for number in range(count)]


def handshakes(target: Target, at_once: int, seconds: float) -> Counted:
    """Connect, upgrade, close, and begin anew, so many at once."""
    return counted("handshakes", target.port, "/text", at_once, WARM, seconds, *target.clocks)


@dataclass(frozen=True)
class Stalled:
    """What became of a reader that does not read, and what it cost.

    Args:
        before: Bytes of the server in memory when it came.
        after: And when the others had everything.
        published: How many publications there were meanwhile.
        came: How many of them it found when it read at last.
        code: Of the close frame behind them, 1006 if the connection had ended without one, 0 if it
            had not.
    """

    before: int
    after: int
    published: int
    came: int
    code: int


def fanout(
    target: Target, text: bytes, receivers: int, window: int, seconds: float, *, offer: bool
) -> tuple[Counted, bytes]:
    """One connection publishes to all others.

    Returns:
        The deliveries, and what every receiver got after its handshake, byte by byte.
    """
    sizes = [receivers, window, int(offer), WARM, seconds, 0]
    with written(text) as file:
        stream = file.with_name("stream")
        where = ("fanout", target.port, f"/listen/{text[:NAME].decode()}")
        return counted(*where, file, stream, *sizes, *target.clocks), stream.read_bytes()


def stalling(
    target: Target, text: bytes, receivers: int, window: int, seconds: float, least: int
) -> tuple[list[Counted], Stalled | LoadFailedError]:
    """One connection publishes to all others; then once more, when one of them does not read.

    Returns:
        The deliveries to those who read, each time; and what became of who does not, or why there
        was no second time.
    """
    sizes = [receivers, window, 0, WARM, seconds, least]
    with written(text) as file:
        stream = file.with_name("stream")
        where = ("fanout", target.port, f"/listen/{text[:NAME].decode()}")
        lines, error = told(*where, file, stream, *sizes, *target.clocks)
    turns = [Counted(**json.loads(line)) for line in lines[:2]]
    if error and not turns:
        raise error
    return turns, error or Stalled(**json.loads(lines[2]))


def rooms(
    target: Target, text: bytes, sizes: tuple[int, int], window: int, seconds: float
) -> Counted:
    """One connection publishes to channels, of which so many have members among so many sockets."""
    with written(text) as file:
        amounts = [*sizes, window, WARM, seconds]
        return counted("rooms", target.port, "/listen/", file, *amounts, *target.clocks)


@contextmanager
def written(text: bytes) -> Iterator[Path]:
    with TemporaryDirectory() as place:
        file = Path(place) / "text"
        file.write_bytes(text)
        yield file


def counted(*arguments: object) -> Counted:
    lines, error = told(*arguments)
    if error:
        raise error
    return Counted(**json.loads(lines[0]))


def told(*arguments: object) -> tuple[list[str], LoadFailedError | None]:
    """What the load said, line by line, and why it gave up if it did."""
    command = [str(compiled("load")), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    error = done.stderr.strip() or f"the load ended with {done.returncode}"
    return done.stdout.splitlines(), LoadFailedError(error) if done.returncode else None


class Holding:
    """Idle connections that the load keeps open; it answers their pings."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def open(self, number: int) -> None:
        """Open so many more."""
        self.ask(f"open {number}")

    def say(self) -> bytes:
        """Let each that has not done so send the message; what they all got: RSV1, the payload."""
        return bytes.fromhex(self.ask("say"))

    def pings(self) -> int:
        """How many there were so far."""
        return int(self.ask("pings"))

    def ask(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        word, _, answer = self.process.stdout.readline().partition(" ")
        if not word:
            _, error = self.process.communicate()
            raise LoadFailedError(error.strip() or "the load ended")
        return answer


@contextmanager
def holding(
    target: Target, *, offer: bool, message: Path | None = None, address: str = "127.0.0.1"
) -> Iterator[Holding]:
    """A process that keeps connections from an address; they are closed at the end."""
    said = [target.port, "/text", int(offer), address, *([message] if message else [])]
    with subprocess.Popen(
        [str(compiled("load")), "hold", *map(str, said)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield Holding(process)
