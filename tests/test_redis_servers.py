"""The servers of the tests: what is left of them after each end, and nothing of them in the end."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from redis_servers import LONGEST, RedisServer, builds
from servers import TESTS

LEFT_ALONE = """
import os, signal
from redis_servers import RedisServer

server, closed = RedisServer(), RedisServer()
server.start()
closed.start()
closed.close()
print(server.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("build", builds())
def test_what_a_server_knows_after_each_of_its_ends(build: str) -> None:
    with RedisServer(build) as server:
        server.call("SET", "a", 1)
        server.snapshot()
        server.call("SET", "a", 2)
        server.restart_from_snapshot()
        assert server.call("GET", "a") == b"1"
        server.restart_empty()
        assert server.call("GET", "a") is None
        server.freeze()
        with pytest.raises(TimeoutError):
            server.call("PING", within=0.05)
        server.thaw()
        assert server.call("PING") == b"PONG"
    assert not server.is_alive
    assert not server.directory.exists()


@pytest.mark.parametrize("build", builds())
def test_a_server_that_writes_everything_down_knows_it_all(build: str) -> None:
    with RedisServer(build, user="ann", password="p@ss", durable=True) as server:
        server.call("SET", "a", 1)
        server.restart()
        assert server.call("GET", "a") == b"1"
        server.stop()
        server.start()
        assert server.call("GET", "a") == b"1"
        assert server.url() == f"redis://ann:p%40ss@127.0.0.1:{server.port}"


def test_whoever_is_killed_takes_its_servers_along() -> None:
    killed = subprocess.run(
        [sys.executable, "-c", LEFT_ALONE],
        cwd=TESTS,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        timeout=LONGEST,
        check=False,
    )
    assert killed.returncode == -9
    deadline = time.monotonic() + LONGEST
    while is_there(int(killed.stdout)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_there(pid: int) -> bool:
    """Whether a process runs; it may be dead with nobody to take note of it."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_server_that_cannot_start_says_why() -> None:
    server = RedisServer(options=["nonsense yes"])
    with pytest.raises(RuntimeError, match="nonsense"), server:
        raise AssertionError("it has started")
    assert not server.directory.exists()
