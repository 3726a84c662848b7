"""Gathering: when what connections have gathered is handed over."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from yaat.server.gathering import Gathering, gathering


class Connection:
    """Notes that it was flushed."""

    def __init__(self, name: str, flushed: list[str]) -> None:
        self.name = name
        self.flushed = flushed
        self.then: Callable[[], object] = str

    def flush(self) -> None:
        self.flushed.append(self.name)
        self.then()


def on_every_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[str], None]:
    """Run a test on both event loops."""

    @pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
    def play(loop: str) -> None:
        factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(test())

    return play


@on_every_loop
async def test_all_are_flushed_in_their_order_by_one_callback() -> None:
    loop, flushed = asyncio.get_running_loop(), list[str]()
    one = Gathering()
    for name in "abc":
        one.add(Connection(name, flushed), loop)
    assert flushed == []
    await asyncio.sleep(0)
    assert flushed == ["a", "b", "c"]
    await asyncio.sleep(0)
    assert flushed == ["a", "b", "c"]


@on_every_loop
async def test_what_runs_in_this_turn_runs_before() -> None:
    loop, flushed = asyncio.get_running_loop(), list[str]()
    one = Gathering()
    loop.call_soon(one.add, Connection("a", flushed), loop)
    loop.call_soon(one.add, Connection("b", flushed), loop)
    loop.call_soon(flushed.append, "the rest of this turn")
    await asyncio.sleep(0)
    assert flushed == ["the rest of this turn"]
    await asyncio.sleep(0)
    assert flushed == ["the rest of this turn", "a", "b"]


@on_every_loop
async def test_who_gathers_while_others_are_flushed_has_the_next_turn() -> None:
    loop, flushed = asyncio.get_running_loop(), list[str]()
    one = Gathering()
    first = Connection("first", flushed)
    first.then = lambda: one.add(Connection("next", flushed), loop)
    one.add(first, loop)
    one.add(Connection("second", flushed), loop)
    await asyncio.sleep(0)
    assert flushed == ["first", "second"]
    await asyncio.sleep(0)
    assert flushed == ["first", "second", "next"]


async def test_one_that_fails_is_logged_and_the_others_are_flushed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loop, flushed = asyncio.get_running_loop(), list[str]()
    one = Gathering()
    broken = Connection("broken", flushed)
    broken.then = lambda: 1 // 0
    for connection in (Connection("a", flushed), broken, Connection("b", flushed)):
        one.add(connection, loop)
    await asyncio.sleep(0)
    assert flushed == ["a", "broken", "b"]
    ((name, level, message),) = caplog.record_tuples
    assert (name, level) == ("uvicorn.error", logging.ERROR)
    assert message == "what was gathered could not be written"
    assert caplog.records[0].exc_info is not None
    one.add(Connection("c", flushed), loop)
    await asyncio.sleep(0)
    assert flushed[3:] == ["c"]


def test_each_loop_has_one() -> None:
    first, second = asyncio.new_event_loop(), uvloop.new_event_loop()
    try:
        assert gathering(first) is gathering(first)
        assert gathering(second) is gathering(second)
        assert gathering(first) is not gathering(second)
    finally:
        first.close()
        second.close()
