"""TaskScope: work that lives no longer than the connection it was begun for."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar, TypeVarTuple, Unpack

from yaat.exceptions import WebSocketDisconnect

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
logger = logging.getLogger("yaat.error")


class TaskScope:
    """The tasks of one connection.

    When one of them fails, the owner (the task that runs the handler) is cancelled and `failure`
    says why. A `WebSocketDisconnect` is no failure: that is how a task ends when the peer leaves.
    """

    __slots__ = ("_owner", "_tasks", "failure")

    def __init__(self, owner: asyncio.Task[Any]) -> None:
        self._owner: asyncio.Task[Any] | None = owner
        self._tasks: Final[set[asyncio.Task[Any]]] = set()
        self.failure: Exception | None = None

    def start(
        self, function: Callable[[Unpack[Ts]], Coroutine[Any, Any, T]], *args: *Ts
    ) -> asyncio.Task[T]:
        """Run `function(*args)` as a task."""
        task = asyncio.create_task(function(*args))
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def cancel(self) -> None:
        """Ask all tasks to end."""
        for task in self._tasks:
            cancel(task)

    async def end(self, timeout: float) -> None:  # noqa: ASYNC109 - it does not cancel us
        """Cancel all tasks and wait for them, at most `timeout` seconds.

        Raises:
            Exception: The `failure` for which the owner was cancelled.
        """
        owner, self._owner = self._owner, None
        await cancelled(set(self._tasks), timeout)
        if self.failure is not None:
            if owner is not None:
                owner.uncancel()
            raise self.failure from self.failure.__cause__  # and not from the cancellation

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if not isinstance(error, Exception) or isinstance(error, WebSocketDisconnect):
            return
        if self._owner is None or self.failure is not None:
            logger.error("a task failed while its connection ended", exc_info=error)
            return
        self.failure = error
        self._owner.cancel()


def cancel(task: asyncio.Task[Any]) -> None:
    """Cancel `task`, but once: a second time would hit what it awaits to clean up."""
    if not task.cancelling():
        task.cancel()


async def cancelled(tasks: set[asyncio.Task[Any]], timeout: float) -> None:  # noqa: ASYNC109
    """Cancel `tasks` and wait until they have ended; say so of those that have not in time."""
    for task in tasks:
        cancel(task)
    if not tasks:
        return
    ended, stubborn = await asyncio.wait(tasks, timeout=timeout)
    for task in ended:
        if not task.cancelled():
            task.exception()  # seen: whoever needs it asks the task again
    for task in stubborn:
        logger.error("%r did not end within %s s of being cancelled", task, timeout)
