"""The blocking hub: threads, bounds, forks, and the end of the process."""

import asyncio
import gc
import importlib.util
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from redis_servers import RedisServer
from yaat.brokers.memory import MemoryBroker
from yaat.channels import (
    BlockingChannel,
    BlockingHub,
    ChannelOptions,
    Channels,
    Hub,
    Position,
    PresenceStats,
    blocking,
    connect,
    connect_blocking,
)
from yaat.exceptions import (
    ArgumentError,
    BrokerTimeout,
    BrokerUnavailable,
    ChannelNameError,
    PositionLost,
    UsageError,
)

CHANNELS = Channels({"room:{id}": ChannelOptions(history=100, presence=True)})
NUMBERS = itertools.count()
# Newer Pythons warn of every fork where there are threads.
PYTHON = (sys.executable, "-W", "ignore::DeprecationWarning")
PATIENCE = 20.0
"""How long, in seconds, what has to come may take."""


@pytest.fixture
def url() -> str:
    """A space of memory of the test's own."""
    return f"memory://blocking-{next(NUMBERS)}"


@pytest.fixture
def hub(url: str) -> Iterator[BlockingHub]:
    with connect_blocking(url, channels=CHANNELS) as hub:
        yield hub


@pytest.fixture
def room(hub: BlockingHub) -> BlockingChannel:
    return hub.channel("room:1")


def threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "yaat"]


# What a channel does


def test_what_is_published_is_kept(room: BlockingChannel) -> None:
    assert repr(room) == "BlockingChannel('room:1')"
    assert (room.name, room.options.history) == ("room:1", 100)
    first = room.publish({"n": 1})
    second = room.publish(b"\xff", key="k")
    assert (first.offset, second.offset) == (1, 2)
    history = room.history()
    assert [each.data for each in history.publications] == [{"n": 1}, b"\xff"]
    assert history.publications[1].content.key == "k"
    assert history.top == second.position
    newest = room.history(limit=1, reverse=True).publications
    assert [each.offset for each in newest] == [2]
    assert [each.offset for each in room.history(since=first.position).publications] == [2]
    room.remove_history()
    assert room.history().publications == []


def test_once_is_once(room: BlockingChannel) -> None:
    assert [room.publish("x", once="k").duplicate for _ in range(2)] == [False, True]


def test_who_is_there(room: BlockingChannel) -> None:
    assert room.presence() == []
    assert room.presence_stats() == PresenceStats(0, 0)


def test_what_cannot_be_meant(hub: BlockingHub, room: BlockingChannel) -> None:
    with pytest.raises(ChannelNameError):
        hub.channel("")
    with pytest.raises(ArgumentError):
        room.history(limit=-1)
    with pytest.raises(ArgumentError):
        room.publish("\ud800")
    with pytest.raises(TypeError):
        room.publish(object())
    with pytest.raises(UsageError, match="has no presence"):
        hub.channel("other").presence()


# Subscribing


def test_it_iterates(room: BlockingChannel) -> None:
    room.publish("before")
    heard = room.subscribe(last=5)
    assert next(heard).data == "before"
    room.publish("live")
    assert next(heard).data == "live"
    heard.close()
    with pytest.raises(StopIteration):
        next(heard)


def test_a_position_that_is_lost(room: BlockingChannel) -> None:
    room.publish("x")
    with pytest.raises(PositionLost):
        next(room.subscribe(since=Position(5, "elsewhere")))


def test_it_waits_for_what_comes_and_ends_with_the_hub(hub: BlockingHub) -> None:
    room = hub.channel("room:1")
    heard: list[Any] = []
    came, listens = threading.Event(), threading.Event()

    def listen() -> None:
        for publication in room.subscribe(last=1):
            heard.append(publication.data)
            (came if listens.is_set() else listens).set()

    room.publish("first")
    listening = threading.Thread(target=listen)
    listening.start()
    assert listens.wait(PATIENCE)
    room.publish("live")
    assert came.wait(PATIENCE)
    hub.close()
    listening.join(PATIENCE)
    assert not listening.is_alive()
    assert heard == ["first", "live"]


def test_an_iteration_can_be_interrupted(
    hub: BlockingHub, room: BlockingChannel, request: pytest.FixtureRequest
) -> None:
    """Ctrl-C reaches who waits, and nothing goes on waiting."""
    # A shell lets its background processes ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    room.publish("x")
    main = threading.main_thread().ident
    assert main is not None
    heard = room.subscribe(last=1)
    next(heard)
    loop = hub._loop
    assert loop is not None

    def interrupt() -> None:
        while not loop.run(waiting):
            time.sleep(0.01)
        time.sleep(0.1)  # it is asked for there a moment before it is waited for here
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        next(heard)
    with pytest.raises(StopIteration):
        next(heard)
    assert room.publish("y").offset == 2
    assert loop.run(waiting) == []


async def waiting(_: Hub) -> list[str]:
    """Return what goes on waiting for a publication."""
    running = [str(each.get_coro()) for each in asyncio.all_tasks()]
    assert any("_live" in each for each in running)
    return [each for each in running if "following" in each]


# Threads


def test_threads_share_it(hub: BlockingHub) -> None:
    def publish(number: int) -> int:
        return hub.channel(f"room:{number % 3}").publish(number).offset

    with ThreadPoolExecutor(8) as pool:
        offsets = list(pool.map(publish, range(120)))
    assert sorted(offsets) == sorted([*range(1, 41)] * 3)
    assert len(threads()) == 1
    assert threading.current_thread() not in threads()


def test_the_first_uses_make_one_thread(url: str) -> None:
    """It connects when it is used, and not before."""
    before = threads()
    hub = connect_blocking(url, channels=CHANNELS)
    assert threads() == before
    barrier = threading.Barrier(8)

    def publish(_: int) -> int:
        barrier.wait(PATIENCE)
        return hub.channel("room:1").publish("x").offset

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(publish, range(8))) == [*range(1, 9)]
    assert len(threads()) == len(before) + 1
    hub.close()
    assert threads() == before


def test_it_has_left_nothing_of_itself_here(url: str) -> None:
    """The event loop of the thread is not noted as that of who uses it."""
    ours = asyncio.new_event_loop()
    asyncio.set_event_loop(ours)
    try:
        with connect_blocking(url) as hub:
            hub.channel("a").publish("x")
            assert asyncio.get_event_loop() is ours
        assert asyncio.get_event_loop() is ours
    finally:
        asyncio.set_event_loop(None)
        ours.close()


# The end


def test_what_is_closed_stays_closed(url: str) -> None:
    before = threads()
    with connect_blocking(url, channels=CHANNELS) as hub:
        room = hub.channel("room:1")
        heard = room.subscribe(last=1)
        room.publish("x")
        next(heard)
    assert threads() == before
    for use in (lambda: room.publish("x"), hub.__enter__, lambda: hub.channel("a").publish("x")):
        with pytest.raises(UsageError, match="has been closed: make another"):
            use()
    with pytest.raises(UsageError, match="has been closed: make another"):
        next(heard)
    hub.close()


def test_the_space_is_left(url: str) -> None:
    """Who closes has closed the broker too: the memory of this URL is free for another loop."""
    with connect_blocking(url, channels=CHANNELS) as hub:
        hub.channel("room:1").publish("x")

        async def elsewhere() -> None:
            async with connect(url):
                pass

        with pytest.raises(UsageError, match="another has it already"):
            asyncio.run(elsewhere())
    asyncio.run(elsewhere())


def test_one_that_is_forgotten_ends(url: str) -> None:
    before = threads()
    hub = connect_blocking(url)
    hub.channel("a").publish("x")
    [thread] = [each for each in threads() if each not in before]
    del hub
    gc.collect()
    thread.join(PATIENCE)
    assert threads() == before


def test_who_waits_when_it_is_closed_is_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = threading.Event()

    async def hang(*_: object, **__: object) -> None:
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(MemoryBroker, "publish", hang)
    with ThreadPoolExecutor(1) as pool:
        with connect_blocking(url) as hub:
            waiting = pool.submit(hub.channel("a").publish, "x")
            assert begun.wait(PATIENCE)
        with pytest.raises(BrokerUnavailable, match="closed meanwhile") as told:
            waiting.result(PATIENCE)
    assert told.value.maybe_published


def test_a_broker_that_does_not_answer(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has bounds of its own; who has none does not hold up a thread for ever."""
    cancelled = threading.Event()

    async def hang(*_: object, **__: object) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    monkeypatch.setattr(blocking, "LONGEST", 0.1)
    monkeypatch.setattr(MemoryBroker, "publish", hang)
    with connect_blocking(url) as hub:
        with pytest.raises(BrokerTimeout, match=r"in 0\.1 s") as told:
            hub.channel("a").publish("x")
        assert cancelled.wait(PATIENCE)
    assert told.value.maybe_published


# A broker that is away


def fails(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Let memory be away so often."""
    left = iter(range(times))
    start = MemoryBroker.start

    async def away(self: MemoryBroker, *args: Any) -> None:
        for _ in left:
            raise BrokerUnavailable("a cable was cut", retry_in=0.5)
        await start(self, *args)

    monkeypatch.setattr(MemoryBroker, "start", away)


def test_it_is_told_at_the_door(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = threads()
    fails(monkeypatch, 1)
    with pytest.raises(BrokerUnavailable, match="a cable was cut") as told, connect_blocking(url):
        raise AssertionError("it is not entered")
    assert told.value.retry_in == 0.5
    assert threads() == before


def test_the_next_use_tries_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, 2)
    hub = connect_blocking(url, channels=CHANNELS)
    for _ in range(2):
        with pytest.raises(BrokerUnavailable):
            hub.channel("room:1").publish("x")
    assert hub.channel("room:1").publish("x").offset == 1
    hub.close()


def test_where_no_thread_can_be_had(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    hub = connect_blocking(url, channels=CHANNELS)
    with monkeypatch.context() as now:
        now.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            hub.channel("room:1").publish("x")
    assert hub.channel("room:1").publish("x").offset == 1
    hub.close()


def test_it_needs_a_url(url: str) -> None:
    """A broker is of one process; after a fork another has to be made."""
    with pytest.raises(TypeError, match="a broker is a URL here, not <"):
        connect_blocking(MemoryBroker(url))  # type: ignore[arg-type]


# Where an event loop runs


async def test_it_is_no_way_to_wait_in_an_event_loop(url: str) -> None:
    before = threads()
    hub = connect_blocking(url)
    for use in (
        hub.__enter__,
        lambda: hub.channel("a").publish("x"),
        lambda: next(hub.channel("a").subscribe()),
    ):
        with pytest.raises(UsageError, match="use `async with"):
            use()
    assert threads() == before
    other = connect_blocking(url)
    assert (await asyncio.to_thread(other.channel("a").publish, "x")).offset == 0
    await asyncio.to_thread(other.close)


# The process, in processes of their own


def told(program: str, *options: str) -> str:
    """Run a program that ends well and complains of nothing, and return what it wrote."""
    ended = subprocess.run(
        [*PYTHON, *options, "-c", BEGIN + program],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stderr
    return ended.stdout


BEGIN = """
import os, sys, threading
import yaat
from yaat.brokers.memory import MemoryBroker


class Noted(MemoryBroker):
    async def start(self, *args):
        await MemoryBroker.start(self, *args)
        print("start", who, flush=True)

    async def close(self):
        await MemoryBroker.close(self)
        print("close", who, flush=True)


who = "parent"
yaat.channels.node.open_broker = lambda url: Noted()
CHANNELS = yaat.Channels({"room:{id}": yaat.ChannelOptions(history=100)})
hub = yaat.connect_blocking("memory://", channels=CHANNELS)
room = hub.channel("room:1")


def publish():
    print(who, room.publish("x").offset, flush=True)


def child():
    global who
    pid = os.fork()
    if not pid:
        who = "child"
        return True
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return False
"""


@pytest.mark.parametrize("end", ["", "del hub, room, publish", "sys.exit(0)"])
def test_who_does_not_close_it_leaves_it_to_the_exit(end: str) -> None:
    assert told(f"publish()\n{end}").split("\n")[:2] == ["start parent", "parent 1"]
    assert told("publish()").splitlines() == ["start parent", "parent 1", "close parent"]


def test_what_ends_later_may_publish_still() -> None:
    """`atexit` calls last what was registered first; threads have ended by then."""
    program = "import atexit; atexit.register(publish); threading.Thread(target=publish).start()"
    assert told(program).splitlines() == ["start parent", "parent 1", "parent 2", "close parent"]


def test_a_child_has_connections_of_its_own() -> None:
    program = """
publish()
if child():
    publish()
    publish()
else:
    publish()
"""
    assert told(program, "-X", "dev").splitlines() == [
        *("start parent", "parent 1"),
        *("start child", "child 1", "child 2", "close child"),
        *("parent 2", "close parent"),
    ]


def test_one_that_was_not_used_before_the_fork() -> None:
    program = "child()\npublish()"
    assert told(program).splitlines() == [
        *("start child", "child 1", "close child"),
        *("start parent", "parent 1", "close parent"),
    ]


def test_a_fork_in_the_middle_of_a_first_use() -> None:
    """Whoever has the lock then is not in the child."""
    program = """
hub._lock.acquire()
if not child():
    hub._lock.release()
publish()
"""
    assert told(program).splitlines()[:2] == ["start child", "child 1"]


def test_what_was_begun_before_the_fork_is_not_gone_on_with() -> None:
    program = """
room.publish("x")
heard = room.subscribe(last=1)
next(heard)
loop = hub._loop
if child():
    try:
        next(heard)
    except yaat.UsageError as error:
        print(error)
    loop.end()
    publish()
else:
    room.publish("y")
    print(next(heard).data)
"""
    assert told(program).splitlines() == [
        "start parent",
        "this was begun before a fork: begin it again in the child",
        *("start child", "child 1", "close child"),
        *("y", "close parent"),
    ]


def test_a_child_that_is_closed_leaves_the_parent_alone() -> None:
    program = """
publish()
if child():
    hub.close()
    sys.exit(0)
publish()
"""
    assert told(program).splitlines() == ["start parent", "parent 1", "parent 2", "close parent"]


# Over a real server


def test_threads_of_two_processes_publish_and_hear() -> None:
    program = """
import os, sys, yaat
from concurrent.futures import ThreadPoolExecutor
CHANNELS = yaat.Channels({"room:{id}": yaat.ChannelOptions(history=100)})
broker = yaat.connect_blocking(sys.argv[1], channels=CHANNELS)
room = broker.channel("room:1")
offsets = [room.publish("parent").offset]
pid = os.fork()
who = "parent" if pid else "child"
with ThreadPoolExecutor(4) as pool:
    offsets += [each.offset for each in pool.map(room.publish, [who] * 20)]
if pid:
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert len(set(offsets)) == len(offsets)
"""
    with RedisServer() as server, connect_blocking(server.url(), channels=CHANNELS) as hub:
        room = hub.channel("room:1")
        room.publish("begin")
        heard = room.subscribe(last=1)
        assert next(heard).offset == 1
        ended = subprocess.run(
            [*PYTHON, "-c", program, server.url()],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert (ended.returncode, ended.stderr) == (0, "")
        came = [next(heard) for _ in range(41)]
        assert [each.offset for each in came] == [*range(2, 43)]
        assert sorted(each.data for each in came) == ["child"] * 20 + ["parent"] * 21
        heard.close()


def test_a_server_that_freezes_and_one_that_dies() -> None:
    """No call waits longer than the URL says, and the next that can be done is done."""
    with RedisServer() as server:
        url = f"{server.url()}?timeout=1&connect_timeout=20"
        with connect_blocking(url, channels=CHANNELS) as hub:
            room = hub.channel("room:1")
            room.publish("x")
            server.freeze()
            with pytest.raises(BrokerTimeout) as late:
                room.publish("x")
            assert late.value.maybe_published
            with pytest.raises(BrokerUnavailable) as down:
                room.publish("x")
            assert not down.value.maybe_published
            server.thaw()
            server.kill()
            with pytest.raises(BrokerUnavailable):
                room.history()
            server.start()
            until(lambda: room.publish("again"))


def until(work: Callable[[], object]) -> None:
    """Try until the broker is back."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            work()
        except BrokerUnavailable:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        else:
            return


# The same in this process, where what happens is counted as covered


def test_one_whose_thread_is_in_another_process(hub: BlockingHub) -> None:
    room = hub.channel("room:1")
    room.publish("x")
    before, loop = threads(), hub._loop
    assert loop is not None
    with pytest.MonkeyPatch.context() as now:
        now.setattr(os, "getpid", lambda: -1)
        blocking._forget_all()
        loop.end()
        with pytest.raises(UsageError, match="begun before a fork"):
            loop.run(Hub.start)
        assert threads() == before, "it is not ours to end"
    assert hub._loop is None
    loop.end()
    loop.join()
    assert room.publish("x").offset == 1
    assert len(threads()) == len(before)


def test_all_of_them_are_closed_at_the_exit(hub: BlockingHub) -> None:
    hub.channel("a").publish("x")
    blocking._close_all()
    assert hub._loop is None
    with pytest.raises(UsageError, match="closed"):
        hub.channel("a").publish("x")


def test_where_nothing_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows."""
    location = importlib.util.find_spec("yaat.channels.blocking")
    assert location is not None
    assert location.loader is not None
    monkeypatch.delattr(os, "register_at_fork")
    module = importlib.util.module_from_spec(location)
    location.loader.exec_module(module)
    assert module.LONGEST == blocking.LONGEST
