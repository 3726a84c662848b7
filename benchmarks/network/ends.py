"""What a peer gives to be measured."""

import asyncio
import traceback
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

NAME, KEPT, TTL = "room:1", 100, 300.0

Came = Callable[[bytes], object]


@dataclass(frozen=True)
class Ends:
    """Both ends of a channel.

    Args:
        publish: Returns when the server has it.
        history: What is kept, the oldest first; None: nothing is.
    """

    publish: Callable[[bytes], Awaitable[object]]
    history: Callable[[], Awaitable[Sequence[bytes]]] | None = None


Opened = Callable[[str, Came], AbstractAsyncContextManager[Ends]]


@asynccontextmanager
async def reading(said: AsyncIterable[Any], take: Callable[[Any], object]) -> AsyncIterator[None]:
    """Read meanwhile; if that fails it is printed, and nothing comes any more."""

    async def read() -> None:
        try:
            async for each in said:
                take(each)
        except Exception:
            traceback.print_exc()
            raise

    task = asyncio.create_task(read())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
