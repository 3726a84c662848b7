"""Turns: who comes first is served first, whoever gives up meanwhile."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yaat.turns import Turns


class Counter:
    """Tasks that want their turn, beside a list that says who should have it.

    The list is the model: its first has the turn, the others wait in that order.
    """

    def __init__(self) -> None:
        self.turns = Turns()
        self.line: list[asyncio.Task[None]] = []
        self.served: list[asyncio.Task[None]] = []

    async def _wait(self) -> None:
        await self.turns.take()
        self.served.append(_me())

    def come(self) -> None:
        """One more wants a turn."""
        self.line.append(asyncio.create_task(self._wait()))

    def leave(self, place: int) -> None:
        """One who waits gives up."""
        if len(self.line) > 1:
            self.line.pop(1 + place % (len(self.line) - 1)).cancel()

    def give(self) -> None:
        """Who has the turn gives it."""
        if self.line:
            self.line.pop(0)
            self.turns.give()

    async def check(self) -> None:
        """Compare what is with what should be."""
        for _ in range(3):
            await asyncio.sleep(0)
        assert self.served[-1:] == self.line[:1] or not self.line
        assert len(set(self.served)) == len(self.served)
        assert not any(task.done() for task in self.line[1:])
        assert self.turns.taken is bool(self.line)
        if not self.line:
            assert self.turns.queue is None


def _me() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


def come(counter: Counter, place: int) -> None:
    counter.come()


def leave(counter: Counter, place: int) -> None:
    counter.leave(place)


def give(counter: Counter, place: int) -> None:
    counter.give()


def give_to_one_who_leaves(counter: Counter, place: int) -> None:
    counter.give()
    if counter.line:  # the turn is the first one's now, but it has not run yet
        counter.line.pop(0).cancel()


def leave_and_give(counter: Counter, place: int) -> None:
    counter.leave(place)
    counter.give()


STEPS = st.sampled_from([come, come, leave, give, give_to_one_who_leaves, leave_and_give])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(STEPS, st.integers(0, 9)), max_size=40))
def test_any_schedule(steps: list[tuple[Callable[[Counter, int], None], int]]) -> None:
    async def play() -> None:
        counter = Counter()
        for step, place in steps:
            step(counter, place)
            await counter.check()
        while counter.line:
            counter.give()
            await counter.check()

    asyncio.run(play())


async def test_first_come_first_served() -> None:
    counter = Counter()
    for _ in range(50):
        counter.come()
    everybody = counter.line.copy()
    while counter.line:
        await counter.check()
        counter.give()
    await counter.check()
    assert counter.served == everybody


async def test_the_cancelled_task_is_told_so_and_the_turn_goes_on() -> None:
    turns = Turns()
    await turns.take()
    first, second = (asyncio.create_task(turns.take()) for _ in range(2))
    await asyncio.sleep(0)
    turns.give()
    first.cancel()  # in the moment of its turn
    with pytest.raises(asyncio.CancelledError):
        await first
    await second
    assert turns.taken
    turns.give()
    assert not turns.taken


async def test_all_who_waited_have_left() -> None:
    turns = Turns()
    await turns.take()
    waiting = [asyncio.create_task(turns.take()) for _ in range(3)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    turns.give()
    assert not turns.taken
    assert turns.queue is None
    assert await asyncio.gather(*waiting, return_exceptions=True)
    assert not turns.taken


async def test_who_takes_it_by_hand_is_told_of_those_who_wait() -> None:
    turns = Turns()
    turns.taken = True
    assert turns.queue is None  # nobody waits: it may be cleared by hand
    waiting = asyncio.create_task(turns.take())
    await asyncio.sleep(0)
    assert turns.queue is not None
    turns.give()
    await waiting
    assert turns.taken


async def test_minded_without_anybody_waiting() -> None:
    turns = Turns()
    turns.taken = True
    queue = turns.mind()
    assert turns.mind() is queue is turns.queue  # so `give` will be called
    turns.give()
    assert turns.queue is None
    assert not turns.taken


async def test_who_took_the_turn_by_himself_gives_it_to_who_waits() -> None:
    """As the short way of a message does; nobody gets in between."""
    turns = Turns()
    turns.taken = True
    waiting = asyncio.create_task(turns.take())
    await asyncio.sleep(0)
    turns.taken = False
    turns.give()
    assert turns.taken
    await waiting
    turns.give()
    assert not turns.taken
