"""One timer for all connections: who is looked at, when, and who is not."""

import asyncio
import gc
import sys
import weakref
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripted import in_scripted_time
from yaat.server.sweep import Sweep, Swept, leave, sweep

STEP = 1.0


class Looked:
    """One that notes when it is looked at, and then does something."""

    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        self.times: list[float] = []
        self.then = then

    def look(self) -> None:
        self.times.append(asyncio.get_running_loop().time())
        self.then()


async def test_two_loops_have_two_of_their_own() -> None:
    loop = asyncio.get_running_loop()
    assert sweep(loop, 1.0) is sweep(loop, 1.0)
    assert sweep(loop, 1.0) is not sweep(loop, 2.0)
    other = asyncio.new_event_loop()
    assert sweep(other, 1.0) is not sweep(loop, 1.0)
    other.close()


def test_a_loop_is_not_kept() -> None:
    loop = asyncio.new_event_loop()
    sweep(loop, 1.0).put(Looked(), 1.0, loop)
    loop.close()
    kept = weakref.ref(loop)
    del loop
    gc.collect()
    assert kept() is None


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 30), st.floats(0, 30)), max_size=12))
def test_nobody_is_looked_at_early_or_late(puts: list[tuple[float, float]]) -> None:
    """Each at the first step behind its time, or at that time."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        own = Sweep(STEP)
        begin, expected = loop.time(), []
        for after, seconds in sorted(puts):
            await asyncio.sleep(begin + after - loop.time())
            looked = Looked()
            own.put(looked, seconds, loop)
            expected.append((looked, loop.time() + seconds))
        await asyncio.sleep(70)
        for looked, due in expected:
            (time,) = looked.times
            assert -0.001 <= time - due <= STEP + 0.001
        assert not own._due
        assert not own._is_running

    in_scripted_time(run)


def test_the_first_is_looked_at_in_time() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        await asyncio.sleep(0.3)
        looked = Looked()
        Sweep(STEP).put(looked, 20, loop)
        await asyncio.sleep(30)
        assert [time - begin for time in looked.times] == [pytest.approx(20.3)]

    in_scripted_time(run)


def test_who_puts_itself_again_is_never_later_and_later() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        own = Sweep(STEP)
        begin = loop.time()
        looked = Looked(lambda: own.put(looked, 20, loop))
        own.put(looked, 20, loop)
        await asyncio.sleep(101)
        times = [time - begin for time in looked.times]
        assert times == [pytest.approx(20 * number) for number in range(1, 6)]

    in_scripted_time(run)


def test_who_is_taken_out_is_not_looked_at() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        own = Sweep(STEP)
        one, other, third = Looked(), Looked(), Looked()
        due = own.put(one, 3, loop)
        assert own.put(other, 3, loop) is due
        leave(due, one)
        own.put(third, 5, loop)
        await asyncio.sleep(10)
        assert (len(one.times), len(other.times), len(third.times)) == (0, 1, 1)

    in_scripted_time(run)


def test_the_last_who_leaves_gives_the_memory_back() -> None:
    everybody = [Looked() for _ in range(1_000)]
    due: set[Swept] = set(everybody)
    large = sys.getsizeof(due)
    for looked in everybody:
        assert sys.getsizeof(due) == large
        leave(due, looked)
    assert sys.getsizeof(due) == sys.getsizeof(set())


def test_who_is_taken_out_while_others_are_looked_at_is_not_either() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        own = Sweep(STEP)
        all_of_them: list[Looked] = [Looked() for _ in range(3)]
        for looked in all_of_them:
            due = own.put(looked, 3, loop)
            looked.then = due.clear
        await asyncio.sleep(10)
        assert sum(len(looked.times) for looked in all_of_them) == 1

    in_scripted_time(run)


def test_one_that_fails_does_not_keep_others_from_it(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        own = Sweep(STEP)
        bad, good = Looked(lambda: 1 / 0), Looked()
        own.put(bad, 3, loop)
        own.put(good, 3, loop)
        own.put(good, 4, loop)
        await asyncio.sleep(10)
        assert (len(bad.times), len(good.times)) == (1, 2)

    in_scripted_time(run)
    assert [record.exc_info is not None for record in caplog.records] == [True]
