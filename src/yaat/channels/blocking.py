"""BlockingHub: the channels for code without an event loop. A thread has one for it."""

import asyncio
import atexit
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, Final, Self, TypeVar

from yaat.brokers.contract import (
    Position,
    PresenceStats,
    Present,
    Publication,
    Published,
    check_name,
)
from yaat.channels.channel import Channel, History
from yaat.channels.hub import Hub
from yaat.channels.options import ChannelOptions, Channels
from yaat.exceptions import BrokerTimeout, BrokerUnavailable, UsageError

T = TypeVar("T")

LONGEST: Final = 30.0
"""How long, in seconds, a call may take. Brokers have bounds of their own, which are shorter."""


class BlockingHub:
    """The channels of an application, for code without an event loop; see `connect_blocking`.

    It is entered by `with`, which connects, and closes at the end; or else it connects when it is
    first used, and closes with the process or by `close`.

    Guarantees:
        Threads may share it. Each call returns or raises within the bounds of the broker. A child
        that is forked has connections of its own, from its first use on.

    Attributes:
        channels: The options of the channels.
    """

    def __init__(self, broker: str, channels: Channels | None = None) -> None:
        if not isinstance(broker, str):  # another could not be made again, after a fork
            raise TypeError(f"a broker is a URL here, not {broker!r}")
        self.channels: Final = Hub(broker, channels).channels  # and what cannot be is said now
        self._url: Final = broker
        self._lock = threading.Lock()
        self._loop: _Loop | None = None
        self._is_closed = False
        _hubs.add(self)

    def __enter__(self) -> Self:
        try:
            self._connected().run(Hub.start)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def channel(self, name: str) -> "BlockingChannel":
        """Return a channel.

        Raises:
            ChannelNameError: No channel can have this name.
        """
        return BlockingChannel(self._connected, name, self.channels.options(name))

    def close(self) -> None:
        """End the thread and its connections; who waits for them is told. Once more does nothing.

        It is not used any more then.
        """
        with self._lock:
            self._is_closed = True
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.end()
            loop.join()

    def _connected(self) -> "_Loop":
        """Return the event loop, with its hub."""
        _check_no_loop()
        with self._lock:
            if self._is_closed:
                raise UsageError("this connection to the broker has been closed: make another")
            if self._loop is None:
                self._loop = _Loop(Hub(self._url, self.channels))
                weakref.finalize(self, self._loop.end).atexit = False
            return self._loop

    def _forget(self) -> None:
        """Begin anew in a child that has been forked: the thread is not in it."""
        self._lock = threading.Lock()  # somebody may have had the other, who is not here
        self._loop = None


class BlockingChannel:
    """A channel for code without an event loop: what `Channel` has, but for connections.

    All raise `UsageError` where an event loop runs: it would stand still. There it is `connect`.

    Attributes:
        name: 1 to 255 bytes of UTF-8.
        options: What its pattern gives it.

    Raises:
        ChannelNameError: No channel can have this name. It is a `ValueError`.
    """

    __slots__ = ("_connected", "name", "options")

    def __init__(
        self, connected: Callable[[], "_Loop"], name: str, options: ChannelOptions
    ) -> None:
        check_name(name)
        self._connected: Final = connected
        self.name: Final = name
        self.options: Final = options

    def __repr__(self) -> str:
        return f"BlockingChannel({self.name!r})"

    def publish(self, data: Any, *, once: str | None = None, key: str | None = None) -> Published:
        """Publish to all who listen, and keep it as the options say; see `Channel.publish`."""
        return self._do(lambda channel: channel.publish(data, once=once, key=key))

    def subscribe(
        self, *, since: Position | str | None = None, last: int = 0
    ) -> Generator[Publication, None, None]:
        """Iterate over the publications, for as long as it takes; see `Channel.subscribe`.

        It ends when the hub is closed.
        """
        loop = self._connected()
        publications = self._in(loop.hub).subscribe(since=since, last=last)

        async def following(_: Hub) -> Publication | None:
            return await anext(publications, None)

        try:
            while (publication := loop.wait(following, None)) is not None:
                yield publication
        finally:
            with suppress(UsageError):  # the loop has ended, and all that was in it
                loop.run(lambda _: publications.aclose())

    def history(
        self,
        *,
        since: Position | str | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> History:
        """Return what is kept; see `Channel.history`."""
        return self._do(lambda channel: channel.history(since=since, limit=limit, reverse=reverse))

    def remove_history(self) -> None:
        """Drop what is kept; see `Channel.remove_history`."""
        self._do(Channel.remove_history)

    def presence(self) -> list[Present]:
        """Return who is there; see `Channel.presence`."""
        return self._do(Channel.presence)

    def presence_stats(self) -> PresenceStats:
        """Return how many are there; see `Channel.presence_stats`."""
        return self._do(Channel.presence_stats)

    def _do(self, work: Callable[[Channel], Coroutine[Any, Any, T]]) -> T:
        return self._connected().run(lambda hub: work(self._in(hub)))

    def _in(self, hub: Hub) -> Channel:
        return hub.channel(self.name)


class _Loop:
    """An event loop in a thread of its own, and a hub that lives there."""

    def __init__(self, hub: Hub) -> None:
        self.hub: Final = hub
        self._process: Final = os.getpid()
        self._lock: Final = threading.Lock()
        self._has_ended = False
        self._end: Final = asyncio.Event()
        # With a factory: else the loop would be noted as that of the thread which makes it here.
        self._runner: Final = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop: Final = self._runner.get_loop()
        # A daemon: Python waits for the others before it calls what was registered with `atexit`.
        self._thread: Final = threading.Thread(target=self._serve, name="yaat", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self._runner.close()
            raise

    def _serve(self) -> None:
        with self._runner:
            self._runner.run(self._live())

    async def _live(self) -> None:
        await self._end.wait()
        await self.hub.close()

    def run(self, work: Callable[[Hub], Coroutine[Any, Any, T]]) -> T:
        """Let the loop do what takes a bounded time; see `wait`."""
        return self.wait(work, LONGEST)

    def wait(self, work: Callable[[Hub], Coroutine[Any, Any, T]], seconds: float | None) -> T:
        """Let the loop do it, and wait.

        Raises:
            UsageError: The loop has ended, or is in another process; or one runs here.
            BrokerUnavailable: It ended meanwhile.
            BrokerTimeout: It took too long.
            Exception: What the work raised.
        """
        _check_no_loop()
        future = self._submit(work)
        try:
            return future.result(seconds)
        except CancelledError:
            raise BrokerUnavailable("it was closed meanwhile", maybe_published=True) from None
        except TimeoutError:  # ours: a broker that has no time says so by a `BrokerTimeout`
            raise BrokerTimeout(f"it was not done in {seconds:g} s", maybe_published=True) from None
        finally:
            future.cancel()  # if it is not done, nobody waits for it any more

    def _submit(self, work: Callable[[Hub], Coroutine[Any, Any, T]]) -> Future[T]:
        if self._process != os.getpid():  # it is asked first: there, nobody would free the lock
            raise UsageError("this was begun before a fork: begin it again in the child")
        with self._lock:
            if self._has_ended:
                raise UsageError("this connection to the broker has been closed: make another")
            return asyncio.run_coroutine_threadsafe(work(self.hub), self._loop)

    def end(self) -> None:
        """Let it end, in its own process alone: elsewhere its connections are not ours."""
        if self._process != os.getpid():
            return
        with self._lock:
            if not self._has_ended:
                self._has_ended = True
                self._loop.call_soon_threadsafe(self._end.set)

    def join(self) -> None:
        """Wait until it has ended."""
        self._thread.join(LONGEST)


def _check_no_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise UsageError(
        "this would hold up the event loop that runs here: use `async with yaat.connect(...)`"
    )


_hubs: Final["weakref.WeakSet[BlockingHub]"] = weakref.WeakSet()
"""All that there are: what is to be told of a fork, and of the end of the process."""


def _forget_all() -> None:
    for hub in list(_hubs):
        hub._forget()  # noqa: SLF001 - they are one thing


def _close_all() -> None:
    for hub in list(_hubs):
        hub.close()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):  # Windows does not fork
    os.register_at_fork(after_in_child=_forget_all)
