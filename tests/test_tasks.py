"""TaskScope: no work outlives its connection, and none of it fails unseen."""

import asyncio
import contextlib
import gc
import weakref

import pytest

from yaat.exceptions import UsageError, WebSocketDisconnect
from yaat.tasks import TaskScope, cancel, cancelled, failure_of

SOON = 1.0
"""Longer than anything here takes that ends at all."""


async def for_ever() -> None:
    await asyncio.Event().wait()


async def fails() -> None:
    raise LookupError("of a task")


class Work:
    """Work that lasts until it is cancelled, and then cleans up for a moment."""

    def __init__(self) -> None:
        self.has_begun = asyncio.Event()
        self.has_cleaned_up = False

    async def __call__(self) -> None:
        try:
            self.has_begun.set()
            await for_ever()
        finally:
            await asyncio.sleep(0)
            self.has_cleaned_up = True


def scope_of_this_task(outer: TaskScope | None = None) -> TaskScope:
    owner = asyncio.current_task()
    assert owner is not None
    return TaskScope(owner, outer)


async def idle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def records(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "yaat.error"]


async def test_a_task_runs_with_its_arguments_and_gives_what_it_returns() -> None:
    async def add(first: int, second: int) -> int:
        return first + second

    scope = scope_of_this_task()
    assert await scope.start(add, 1, 2) == 3
    await scope.end(SOON)


async def test_the_end_of_a_scope_without_tasks() -> None:
    await scope_of_this_task().end(SOON)


async def test_all_tasks_are_cancelled_and_awaited_at_the_end() -> None:
    scope = scope_of_this_task()
    works = [Work() for _ in range(10)]
    tasks = [scope.start(work) for work in works]
    await idle()
    await scope.end(SOON)
    assert all(task.cancelled() for task in tasks)
    assert all(work.has_cleaned_up for work in works)


async def test_a_task_that_has_not_begun_never_does() -> None:
    scope = scope_of_this_task()
    work = Work()
    task = scope.start(work)
    await scope.end(SOON)
    assert task.cancelled()
    assert not work.has_begun.is_set()


async def test_nothing_begins_in_a_scope_that_has_ended() -> None:
    scope = scope_of_this_task()
    await scope.end(SOON)
    with pytest.raises(UsageError, match="has ended"):
        scope.start(for_ever)


async def test_nothing_begins_in_a_scope_that_is_ending() -> None:
    scope = scope_of_this_task()
    refused: list[UsageError] = []

    async def begins_more() -> None:
        try:
            await for_ever()
        finally:
            with pytest.raises(UsageError) as error:
                scope.start(for_ever)
            refused.append(error.value)

    scope.start(begins_more)
    await idle()
    await scope.end(SOON)
    assert len(refused) == 1


async def test_a_failure_cancels_the_owner_and_is_raised_at_the_end() -> None:
    scope = scope_of_this_task()
    scope.start(fails)
    with pytest.raises(asyncio.CancelledError):
        await for_ever()
    assert isinstance(scope.failure, LookupError)
    with pytest.raises(LookupError, match="of a task") as error:
        await scope.end(SOON)
    # The owner goes on as if it had not been cancelled, and nobody would guess that it was.
    owner = asyncio.current_task()
    assert owner is not None
    assert owner.cancelling() == 0
    assert error.value.__suppress_context__
    assert scope.failure is None
    await asyncio.sleep(0)


async def test_a_failure_keeps_its_cause() -> None:
    async def fails_of_something() -> None:
        raise LookupError from KeyError("the cause")

    scope = scope_of_this_task()
    scope.start(fails_of_something)
    with pytest.raises(asyncio.CancelledError):
        await for_ever()
    with pytest.raises(LookupError) as error:
        await scope.end(SOON)
    assert isinstance(error.value.__cause__, KeyError)


async def test_a_cancellation_from_elsewhere_is_not_taken_back() -> None:
    scope = scope_of_this_task()
    scope.start(fails)
    owner = asyncio.current_task()
    assert owner is not None
    with pytest.raises(asyncio.CancelledError):
        await for_ever()
    owner.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(0)
    with pytest.raises(LookupError):
        await scope.end(SOON)
    assert owner.uncancel() == 0


async def test_a_failure_cancels_the_other_tasks_at_the_end() -> None:
    scope = scope_of_this_task()
    work = Work()
    scope.start(work)
    scope.start(fails)
    with pytest.raises(asyncio.CancelledError):
        await for_ever()
    with pytest.raises(LookupError):
        await scope.end(SOON)
    assert work.has_cleaned_up


async def test_only_the_first_failure_counts_and_the_others_are_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fails_otherwise() -> None:
        raise KeyError("the second")

    scope = scope_of_this_task()
    scope.start(fails)
    scope.start(fails_otherwise)
    with pytest.raises(asyncio.CancelledError):
        await for_ever()
    with pytest.raises(LookupError, match="of a task"):
        await scope.end(SOON)
    assert records(caplog) == ["a task failed while its connection ended"]
    exception = caplog.records[0].exc_info
    assert exception is not None
    assert exception[0] is KeyError


async def test_who_fails_while_he_is_ended_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def fails_at_the_end() -> None:
        try:
            await for_ever()
        finally:
            await fails()

    scope = scope_of_this_task()
    scope.start(fails_at_the_end)
    await idle()
    await scope.end(SOON)
    assert records(caplog) == ["a task failed while its connection ended"]


async def test_a_task_that_is_cancelled_from_outside_is_no_failure() -> None:
    scope = scope_of_this_task()
    scope.start(for_ever).cancel()
    await idle()
    assert scope.failure is None
    await scope.end(SOON)


async def test_who_does_not_end_is_named(caplog: pytest.LogCaptureFixture) -> None:
    may_end = asyncio.Event()

    async def stubborn() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await for_ever()
        await may_end.wait()

    scope = scope_of_this_task()
    task = scope.start(stubborn)
    await idle()
    await scope.end(0.001)
    (message,) = records(caplog)
    assert "stubborn" in message
    assert "did not end within 0.001 s" in message
    may_end.set()
    await task


# The loss of the connection


async def test_a_loss_cancels_all_tasks() -> None:
    scope = scope_of_this_task()
    works = [Work(), Work()]
    for work in works:
        scope.start(work)
    await idle()
    scope.lose()
    await idle()
    assert all(work.has_cleaned_up for work in works)
    await scope.end(SOON)


async def test_a_loss_reaches_the_scopes_around() -> None:
    outer = scope_of_this_task()
    work = Work()
    outer.start(work)
    inner = scope_of_this_task(outer)
    assert inner.outer is outer
    await idle()
    inner.lose()
    await idle()
    assert work.has_cleaned_up
    await inner.end(SOON)
    await outer.end(SOON)


async def test_a_loss_is_told_once_by_a_cancellation() -> None:
    """What is awaited to clean up is not hit by a second one, neither now nor at the end."""
    scope = scope_of_this_task()
    work = Work()
    scope.start(work)
    await idle()
    scope.lose()
    scope.lose()
    await scope.end(SOON)
    assert work.has_cleaned_up


async def test_who_learns_of_the_loss_by_himself_is_not_cancelled() -> None:
    scope = scope_of_this_task()
    cleaned_up: list[str] = []

    async def learns() -> None:
        try:
            scope.lose()
            raise WebSocketDisconnect(1001)
        finally:
            await asyncio.sleep(0)
            cleaned_up.append("learns")

    scope.start(learns)
    await idle()
    assert cleaned_up == ["learns"]
    assert scope.failure is None
    await scope.end(SOON)


def group(*errors: Exception) -> ExceptionGroup[Exception]:
    return ExceptionGroup("tasks of a group", errors)


@pytest.mark.parametrize(
    "error",
    [
        WebSocketDisconnect(1001),
        group(WebSocketDisconnect(1001)),
        group(group(WebSocketDisconnect(1001)), WebSocketDisconnect(1006)),
    ],
    ids=["alone", "in a group", "in groups"],
)
async def test_that_the_peer_has_left_is_no_failure(error: Exception) -> None:
    async def is_told() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await for_ever()
        raise error

    scope = scope_of_this_task()
    scope.start(is_told)
    await idle()
    scope.lose()
    await idle()
    assert scope.failure is None
    await scope.end(SOON)


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (WebSocketDisconnect(1001), False),
        (group(WebSocketDisconnect(1001)), False),
        (group(WebSocketDisconnect(1001), LookupError()), True),
    ],
    ids=["of another connection", "of others", "beside something else"],
)
async def test_what_is_a_failure_all_the_same(error: Exception, is_lost: bool) -> None:  # noqa: FBT001
    async def is_told() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        raise error

    scope = scope_of_this_task()
    scope.start(is_told)
    await asyncio.sleep(0)
    if is_lost:
        scope.lose()
    with pytest.raises(asyncio.CancelledError):
        await for_ever()
    with pytest.raises(type(error)):
        await scope.end(SOON)


# The functions beside it


async def test_a_task_is_cancelled_once() -> None:
    task = asyncio.create_task(for_ever())
    cancel(task)
    cancel(task)
    assert task.cancelling() == 1
    await cancelled({task}, SOON)


async def test_nothing_to_cancel() -> None:
    await cancelled(set(), SOON)


async def test_what_a_task_failed_of() -> None:
    tasks = [asyncio.create_task(work()) for work in (fails, idle, for_ever)]
    await idle()
    tasks[2].cancel()
    await asyncio.wait(tasks)
    assert [type(failure_of(task)) for task in tasks] == [LookupError, type(None), type(None)]


async def test_who_fails_when_he_is_cancelled_is_seen(caplog: pytest.LogCaptureFixture) -> None:
    """Else asyncio would say that it was never retrieved."""

    async def fails_at_the_end() -> None:
        try:
            await for_ever()
        finally:
            await fails()

    task = asyncio.create_task(fails_at_the_end())
    await idle()
    await cancelled({task}, SOON)
    del task
    assert caplog.records == []


async def test_what_was_cancelled_holds_nothing_any_more() -> None:
    class Held:
        pass

    async def holds(held: Held) -> None:
        async with asyncio.timeout(SOON) as bound:
            assert held
            await for_ever()
        assert not bound.expired()

    held = Held()
    reference = weakref.ref(held)
    task = asyncio.create_task(holds(held))
    del held
    await idle()
    gc.disable()
    try:
        await cancelled({task}, SOON)
        del task
        assert reference() is None
    finally:
        gc.enable()


async def test_a_scope_does_not_keep_tasks_that_have_ended() -> None:
    scope = scope_of_this_task()
    reference = weakref.ref(scope.start(idle))
    await idle()
    await idle()
    assert reference() is None
    await scope.end(SOON)


async def test_an_interruption_is_what_the_owner_is_cancelled_for() -> None:
    scope = scope_of_this_task()
    scope.interrupt(LookupError("why"))
    scope.interrupt(LookupError("once more"))
    with pytest.raises(asyncio.CancelledError):
        await for_ever()
    with pytest.raises(LookupError, match=r"^why$"):
        await scope.end(SOON)


async def test_an_interruption_after_the_end_changes_nothing() -> None:
    scope = scope_of_this_task()
    await scope.end(SOON)
    scope.interrupt(LookupError("too late"))
    await idle()
    assert scope.failure is None
