"""What is put to the proof: each system as its own documents say that it is used.

A module has `opened(options)`. It imports nothing of this project but what it is about: some run
with other versions of what they need than the rest.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, Protocol, cast

Told = tuple[Literal["seen", "told", "anew", "note"], str]
"""What a subscriber learns: a text; that it may have lost something; that it begins anew."""


@dataclass(frozen=True)
class Options:
    """What a system is told.

    Args:
        url: Where the server is.
        channel: Which channel, room or group.
        history: How many publications are to be kept, by systems that keep any.
        ttl: For how long.
    """

    url: str
    channel: str
    history: int
    ttl: float


class System(ABC):
    """A system that runs."""

    @abstractmethod
    async def publish(self, text: str) -> None:
        """Publish; it is published when this returns."""

    @abstractmethod
    def listen(self) -> AsyncGenerator[Told, None]:
        """Iterate over what a subscriber learns."""

    def is_unsure(self, _error: Exception) -> bool:
        """Whether what was to be published may be, though this was raised."""
        return True


class Module(Protocol):
    """What a module of a system has."""

    def opened(self, options: Options) -> AbstractAsyncContextManager[System]:
        """Return the system, running while this is entered."""
        ...


def load(name: str) -> Module:
    """Return the module of a system."""
    return cast("Module", import_module(f"chaos.systems.{name}"))
