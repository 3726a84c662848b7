"""ReadAhead: every message once and in order, no call cancelled, no more than there is room for."""

import asyncio
import gc
import sys
import weakref
from collections import deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yaat.readahead import ReadAhead, StoppedError
from yaat.types import Message


def text(data: str) -> Message:
    return {"type": "websocket.receive", "text": data}


END: Message = {"type": "websocket.disconnect", "code": 1001}


class Server:
    """What is read: messages that were brought, or else a wait for more."""

    def __init__(self, *messages: Message) -> None:
        self.coming = deque(messages)
        self.news = asyncio.Event()
        self.failure: Exception | None = None
        self.calls = self.cancelled = 0

    def bring(self, *messages: Message) -> None:
        self.coming.extend(messages)
        self.news.set()

    def fail(self) -> None:
        self.failure = LookupError("of the server")
        self.news.set()

    async def receive(self) -> Message:
        self.calls += 1
        while not self.coming:
            if self.failure is not None:
                raise self.failure
            self.news.clear()
            try:
                await self.news.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return self.coming.popleft()


async def idle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def end(ahead: ReadAhead) -> None:
    task = ahead.stop()
    if task is not None:
        await asyncio.wait((task,))


async def test_it_is_empty_until_it_reads() -> None:
    ahead = ReadAhead(1000)
    assert ahead.is_empty
    ahead.start(Server().receive)
    assert not ahead.is_empty
    await end(ahead)
    assert ahead.is_empty


async def test_what_was_read_is_handed_over_in_order() -> None:
    server = Server(text("a"), text("b"), text("c"))
    ahead = ReadAhead(10_000)
    ahead.start(server.receive)
    await idle()
    assert not server.coming
    assert [(await ahead.next())["text"] for _ in range(3)] == ["a", "b", "c"]
    await end(ahead)


async def test_who_comes_early_waits_for_the_call_that_is_under_way() -> None:
    server = Server()
    ahead = ReadAhead(1000)
    ahead.start(server.receive)
    await idle()
    waiting = asyncio.create_task(ahead.next())
    await idle()
    server.bring(text("a"))
    assert (await waiting)["text"] == "a"
    assert server.calls == 1


async def test_it_stops_when_a_waiting_receiver_was_served() -> None:
    """A handler that receives needs nobody to read ahead of it."""
    server = Server()
    ahead = ReadAhead(1000)
    ahead.start(server.receive)
    waiting = asyncio.create_task(ahead.next())
    await idle()
    server.bring(text("a"), text("b"))
    await waiting
    assert ahead.is_empty
    assert server.calls == 1


async def test_it_goes_on_for_those_who_watch() -> None:
    server = Server()
    ahead = ReadAhead(1000)
    ahead.watchers += 1
    ahead.start(server.receive)
    waiting = asyncio.create_task(ahead.next())
    await idle()
    server.bring(text("a"), text("b"))
    await waiting
    assert server.calls == 3
    ahead.unwatch()
    assert ahead.watchers == 0
    assert (await ahead.next())["text"] == "b"
    await end(ahead)


async def test_a_watcher_may_be_a_task_that_ends() -> None:
    ahead = ReadAhead(1000)
    ahead.watchers += 1
    task = asyncio.create_task(asyncio.sleep(0))
    task.add_done_callback(ahead.unwatch)
    await idle()
    assert ahead.watchers == 0


async def test_starting_twice_makes_one_call() -> None:
    server = Server()
    ahead = ReadAhead(1000)
    ahead.start(server.receive)
    ahead.start(server.receive)
    await idle()
    assert server.calls == 1
    await end(ahead)


@pytest.mark.parametrize("last", [END, {"type": "websocket.unheard.of"}])
async def test_it_reads_nothing_beyond_what_is_no_message(last: Message) -> None:
    server = Server(text("a"), last, text("never"))
    ahead = ReadAhead(10_000)
    ahead.start(server.receive)
    await idle()
    assert server.calls == 2
    assert (await ahead.next())["text"] == "a"
    assert await ahead.next() is last
    assert ahead.is_empty


async def test_one_message_is_always_held() -> None:
    server = Server(text("x" * 1000), text("b"))
    ahead = ReadAhead(1)
    ahead.start(server.receive)
    await idle()
    assert server.calls == 1
    ahead.start(server.receive)
    await idle()
    assert server.calls == 1
    await ahead.next()
    ahead.start(server.receive)
    await idle()
    assert server.calls == 2
    assert (await ahead.next())["text"] == "b"


async def test_a_loop_may_run_tasks_eagerly() -> None:
    """Then the task may have ended before anybody has a hand on it (Python 3.12)."""

    class Ended(asyncio.Future[None]):
        def set_name(self, _: str) -> None:
            self.set_result(None)

    def eager(loop: asyncio.AbstractEventLoop, coroutine: Any) -> Any:
        with pytest.raises(StopIteration):
            coroutine.send(None)
        return Ended(loop=loop)

    loop = asyncio.get_running_loop()
    loop.set_task_factory(eager)
    ahead = ReadAhead(1000)
    ahead.start(Server(END).receive)
    loop.set_task_factory(None)
    assert await ahead.next() is END
    assert ahead.is_empty


@given(
    limit=st.integers(1, 3000),
    messages=st.lists(
        st.one_of(
            st.builds(
                lambda size: {"type": "websocket.receive", "text": "ä" * size}, st.integers(0, 500)
            ),
            st.builds(
                lambda size: {"type": "websocket.receive", "bytes": b"x" * size},
                st.integers(0, 500),
            ),
            st.just({"type": "websocket.receive", "text": None, "bytes": b""}),
        ),
        max_size=30,
    ),
)
def test_it_holds_the_message_that_crosses_the_limit_and_none_after(
    limit: int, messages: list[dict[str, Any]]
) -> None:
    def cost(message: Message) -> int:
        return sys.getsizeof(message) + sys.getsizeof(message.get("bytes") or message.get("text"))

    async def play() -> None:
        server = Server(*messages)
        ahead = ReadAhead(limit)
        ahead.start(server.receive)
        for _ in range(len(messages) + 2):
            await asyncio.sleep(0)
        held = messages[: len(messages) - len(server.coming)]
        assert sum(map(cost, held[:-1])) < limit
        assert not server.coming or sum(map(cost, held)) >= limit
        seen: list[Message] = []
        while len(seen) < len(messages):
            ahead.start(server.receive)
            seen.append(await ahead.next())
        assert seen == messages
        await end(ahead)

    asyncio.run(play())


# Receivers that give up, servers that fail


async def test_who_gives_up_waiting_takes_no_message_away() -> None:
    server = Server()
    ahead = ReadAhead(1000)
    ahead.start(server.receive)
    waiting = asyncio.create_task(ahead.next())
    await idle()
    waiting.cancel()
    await idle()
    assert server.cancelled == 0
    server.bring(text("a"))
    assert (await ahead.next())["text"] == "a"
    await end(ahead)


async def test_who_gives_up_in_the_moment_of_the_message_leaves_it_to_the_next() -> None:
    server = Server()
    ahead = ReadAhead(1000)
    ahead.start(server.receive)
    waiting = asyncio.create_task(ahead.next())
    await idle()
    server.bring(text("a"))
    await asyncio.sleep(0)  # it is there, and he has been told so
    waiting.cancel()
    await asyncio.wait((waiting,))
    assert waiting.cancelled()
    assert (await ahead.next())["text"] == "a"


async def test_a_failure_is_told_to_who_waits() -> None:
    server = Server()
    ahead = ReadAhead(1000)
    ahead.start(server.receive)
    waiting = asyncio.create_task(ahead.next())
    await idle()
    server.fail()
    with pytest.raises(LookupError, match="of the server"):
        await waiting
    assert ahead.is_empty


async def test_a_failure_is_kept_for_who_comes_next_and_told_once() -> None:
    server = Server(text("a"))
    ahead = ReadAhead(1000)
    ahead.start(server.receive)
    server.fail()
    await idle()
    assert not ahead.is_empty
    ahead.start(server.receive)
    await idle()
    assert server.calls == 2
    assert (await ahead.next())["text"] == "a"
    with pytest.raises(LookupError, match="of the server"):
        await ahead.next()
    assert ahead.is_empty
    server.failure = None
    server.bring(text("b"))
    ahead.start(server.receive)
    assert (await ahead.next())["text"] == "b"
    await end(ahead)


# Its end


async def test_stopping_what_does_not_read() -> None:
    assert ReadAhead(1000).stop() is None


async def test_stopping_cancels_the_call_and_keeps_what_was_read() -> None:
    server = Server(text("a"))
    ahead = ReadAhead(1000)
    ahead.start(server.receive)
    await idle()
    task = ahead.stop()
    assert task is not None
    await asyncio.wait((task,))
    assert server.cancelled == 1
    assert (await ahead.next())["text"] == "a"
    assert ahead.is_empty


async def test_who_waits_when_it_is_stopped_is_told() -> None:
    ahead = ReadAhead(1000)
    ahead.start(Server().receive)
    waiting = asyncio.create_task(ahead.next())
    await idle()
    await end(ahead)
    with pytest.raises(StoppedError):
        await waiting


async def test_it_does_not_keep_whom_it_reads_for() -> None:
    class Keeper(Server):
        def __init__(self) -> None:
            super().__init__(text("a"), text("b"))
            self.ahead = ReadAhead(10_000)

    keeper = Keeper()
    gc.disable()
    try:
        keeper.ahead.start(keeper.receive)
        await idle()
        await end(keeper.ahead)
        reference = weakref.ref(keeper)
        del keeper
        assert reference() is None
    finally:
        gc.enable()
