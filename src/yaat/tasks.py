"""TaskScope: work that lives no longer than the connection it was begun for."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar, TypeVarTuple, Unpack

from yaat.exceptions import UsageError, WebSocketDisconnect

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
logger = logging.getLogger("yaat.error")


class TaskScope:
    """The tasks of one connection.

    When one of them fails, the owner (the task that runs the handler) is cancelled and `failure`
    says why. That the peer has left is no failure: it is how a task ends then.

    Args:
        owner: Runs the handler.
        outer: The scope around this one, if they are nested.
    """

    __slots__ = ("_is_lost", "_owner", "_tasks", "failure", "outer")

    def __init__(self, owner: asyncio.Task[Any], outer: "TaskScope | None" = None) -> None:
        self._owner: asyncio.Task[Any] | None = owner
        # Most connections begin no task, and an empty set costs three times as much.
        self._tasks: Final[dict[asyncio.Task[Any], None]] = {}
        self._is_lost = False
        self.outer = outer
        self.failure: Exception | None = None

    def start(
        self, function: Callable[[Unpack[Ts]], Coroutine[Any, Any, T]], *args: *Ts
    ) -> asyncio.Task[T]:
        """Run `function(*args)` as a task.

        Raises:
            UsageError: The scope has ended.
        """
        if self._owner is None:
            raise UsageError("the scope of this connection has ended: nothing begins in it")
        task = asyncio.create_task(function(*args))
        self._tasks[task] = None
        task.add_done_callback(self._done)
        return task

    def lose(self) -> None:
        """Ask all tasks to end since the connection is lost; those of the scopes around it too.

        Who learns of it in this moment, by a `WebSocketDisconnect`, is not cancelled besides: that
        would hit what he awaits to clean up.
        """
        self._is_lost = True
        informed = asyncio.current_task()
        for task in self._tasks:
            if task is not informed:
                cancel(task)
        if self.outer is not None:
            self.outer.lose()

    def interrupt(self, failure: Exception) -> None:
        """Cancel the owner because of `failure`, unless it is or the scope has ended."""
        if self._owner is not None and self.failure is None:
            self.failure = failure
            self._owner.cancel()

    async def end(self, timeout: float) -> None:  # noqa: ASYNC109 - it does not cancel us
        """Cancel all tasks and wait for them, at most `timeout` seconds.

        Raises:
            Exception: The `failure` for which the owner was cancelled.
        """
        owner, self._owner = self._owner, None
        if self._tasks:
            await cancelled(set(self._tasks), timeout)
        failure, self.failure = self.failure, None
        if failure is not None and owner is not None:
            owner.uncancel()
            try:
                raise failure from failure.__cause__  # and not from the cancellation
            finally:
                failure = None  # its traceback holds this frame

    def _done(self, task: asyncio.Task[Any]) -> None:
        del self._tasks[task]
        error = failure_of(task)
        if not isinstance(error, Exception) or (self._is_lost and _is_departure(error)):
            return
        if self._owner is None or self.failure is not None:
            logger.error("a task failed while its connection ended", exc_info=error)
            return
        self.interrupt(error)


def _is_departure(error: Exception) -> bool:
    """Tell whether it says only that the peer has left, be it of several tasks in a group."""
    if isinstance(error, ExceptionGroup):
        return error.split(WebSocketDisconnect)[1] is None
    return isinstance(error, WebSocketDisconnect)


def cancel(task: asyncio.Task[Any]) -> None:
    """Cancel `task`, but once: a second time would hit what it awaits to clean up."""
    if not task.cancelling():
        task.cancel()


def failure_of(task: asyncio.Task[Any]) -> BaseException | None:
    """Return what a task that has ended failed of.

    A cancelled one is asked as well: until then it holds the frames in which it was cancelled, and
    one of them, if only that of a timeout, holds the task.
    """
    try:
        return task.exception()
    except asyncio.CancelledError:
        return None


async def cancelled(tasks: set[asyncio.Task[Any]], timeout: float) -> None:  # noqa: ASYNC109
    """Cancel `tasks` and wait until they have ended; say so of those that have not in time."""
    for task in tasks:
        cancel(task)
    if not tasks:
        return
    ended, stubborn = await asyncio.wait(tasks, timeout=timeout)
    for task in ended:
        failure_of(task)  # seen, and its frames are let go; who needs it may ask again
    for task in stubborn:
        logger.error("%r did not end within %s s of being cancelled", task, timeout)
