"""The contract of a broker: what carries publications between the processes of an application.

A **node** is a process (or what acts as one). It subscribes to a channel once, however many of its
members listen to it, and is called back for each publication there.

What every broker guarantees:

1. One order for each channel: all nodes see its publications by growing offsets. There is none
   between channels.
2. To keep a publication and to send it out is one step: nothing is live that is not in the history,
   nothing is in the history in another order.
3. Live delivery is at most once, but a loss can be seen: each publication names the offset before
   it (`prev`). Who stands at `position` has missed something if, and only if, the next publication
   has another epoch or another `prev` than that offset.
4. The history after a position is complete, if the epoch is the same and no offset is missing
   between; the top says where it ends.
5. A publication comes back to the node that made it, as to any other.

An **epoch** names the time over which offsets count. It changes whenever something may have been
lost: whoever stands in another epoch has to begin anew. The position of a channel outlives its
history, or else a channel that falls quiet would change its epoch under those who listen.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, NamedTuple, Self

from yaat.exceptions import (
    ArgumentError,
    BrokerUnavailable,
    ChannelNameError,
    MalformedError,
    TooBigError,
)
from yaat.payload import decode

LONGEST_NAME: Final = 255
"""The longest name of a channel, in bytes of UTF-8."""

MAX_PAYLOAD: Final = 1_048_576
"""How many bytes may be published at once, unless the broker is told otherwise."""

Kind = Literal["text", "bytes", "json", "join", "leave"]
"""What a payload is. `"join"` and `"leave"` tell of presence; their payload is JSON."""


class Position(NamedTuple):
    """Where one stands in a channel: all up to here has been seen.

    `str(position)` is how it travels in a URL; `Position.parse` reads that.
    `Position(0, "")` is none: a channel without history has no positions.
    """

    offset: int
    epoch: str

    def __str__(self) -> str:
        return f"{self.offset}-{self.epoch}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str(position)` wrote.

        Raises:
            MalformedError: It is nothing of the kind.
        """
        offset, dash, epoch = text.partition("-")
        if not (dash and offset.isascii() and offset.isdecimal() and len(offset) < len(str(2**63))):
            raise MalformedError("a position looks like '12-kD3fQ9xx'")
        return cls(int(offset), epoch)


NOWHERE: Final = Position(0, "")


class Content(NamedTuple):
    """What is published, before it has its place in a channel.

    Attributes:
        kind: What the payload is.
        payload: Text and JSON in UTF-8.
        key: What a newer publication with the same key supersedes.
        sender: The connection that is to be left out when it is delivered.
    """

    kind: Kind
    payload: bytes
    key: str | None = None
    sender: str | None = None


class Publication(NamedTuple):
    """One message in a channel.

    Attributes:
        content: What was published.
        offset: Its number in the channel, from 1; 0: it was not kept.
        epoch: The time over which the numbers count.
        prev: The number of the publication before it in this channel, 0 if there is none.
        time: When it was published, in seconds since 1970, by the broker's clock.
    """

    content: Content
    offset: int
    epoch: str
    prev: int
    time: float

    @property
    def data(self) -> Any:
        """What was published: a str, bytes, or a JSON value."""
        kind, payload = self.content.kind, self.content.payload
        if kind == "bytes":
            return payload
        return payload.decode() if kind == "text" else decode(payload)

    @property
    def position(self) -> Position:
        """Where one stands who has seen it."""
        return Position(self.offset, self.epoch)


class Published(NamedTuple):
    """What became of it: its place in the channel.

    Attributes:
        offset: Its number; 0: it was not kept.
        epoch: The time over which the numbers count.
        duplicate: Whether it had been published before, with the same `once`: that is where.
    """

    offset: int
    epoch: str
    duplicate: bool = False

    @property
    def position(self) -> Position:
        """Where one stands who has seen it."""
        return Position(self.offset, self.epoch)


@dataclass(frozen=True, slots=True)
class Present:
    """Who is in a channel.

    Attributes:
        client: The connection.
        user: Whose it is, if that was said. One user may be there by several connections.
        info: Any JSON value that is to be known of it.
    """

    client: str
    user: str | None = None
    info: Any = None


@dataclass(frozen=True, slots=True)
class PresenceStats:
    """How many are in a channel: connections, and different users of those that named one."""

    clients: int
    users: int


OnPublication = Callable[[str, Publication], object]
OnState = Callable[[Literal["up", "down"]], object]
OnMissed = Callable[[Collection[str]], object]


class Broker(ABC):
    """What carries publications. One for each node; all calls in the loop that started it.

    Every operation may raise `BrokerError`. One that got no answer says so
    (`BrokerUnavailable.maybe_published`); nothing is tried again by itself.

    Attributes:
        is_shared: Whether other processes hear what is published.
        presence_ttl: How long, in seconds, somebody is present who is not refreshed.
    """

    is_shared: ClassVar[bool] = True
    presence_ttl: float = 60.0

    @abstractmethod
    async def start(
        self, on_publication: OnPublication, on_state: OnState, on_missed: OnMissed
    ) -> None:
        """Connect.

        Args:
            on_publication: Called with the channel and the publication, for each in the channels
                that are subscribed to. It must not block; what it raises is logged and no more.
            on_state: Called with `"up"` when all that is subscribed to will come, and with `"down"`
                when something may not come any more: of each the first time only.
            on_missed: Called with channels that are subscribed to again, after something may not
                have come: who stands there looks into the history.

        Raises:
            BrokerUnavailable: It cannot be reached.
        """

    @abstractmethod
    async def close(self) -> None:
        """End all there is of it, within a bound. Once more does nothing."""

    @abstractmethod
    async def publish(
        self, channel: str, content: Content, *, size: int, ttl: float, once: str | None = None
    ) -> Published:
        """Publish to all nodes that are subscribed, and keep it, in one step.

        Args:
            channel: Its name.
            content: What to publish.
            size: How many publications the channel keeps, this one among them.
            ttl: How long, in seconds, each is kept. If either is 0 it is only sent out: its offset
                is 0, and it has no epoch.
            once: Who publishes with the same again within some minutes gets the first's place, and
                nothing is published.

        Raises:
            ChannelNameError: See `check_name`.
            TooBigError: The payload is longer than this broker takes.
        """

    @abstractmethod
    async def subscribe(self, channel: str) -> None:
        """Be called for the publications of a channel: of each that begins after this returns.

        Of this and `unsubscribe` the last call counts; each may be called again and again.
        """

    @abstractmethod
    async def unsubscribe(self, channel: str) -> None:
        """Be called for them no more."""

    @abstractmethod
    async def history(
        self,
        channel: str,
        *,
        since: Position | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> tuple[list[Publication], Position]:
        """Return what is kept, and the position of the last publication.

        It gives a channel its epoch, if it has none yet.

        Args:
            channel: Its name.
            since: Only what came after that offset, or with `reverse` before it. The epoch is for
                the caller to compare.
            limit: At most so many; 0 for the position alone.
            reverse: The newest first.
        """

    @abstractmethod
    async def remove_history(self, channel: str) -> None:
        """Drop what is kept; the position stays."""

    @abstractmethod
    async def presence_add(self, channel: str, present: Present) -> bool:
        """Note that a client is there, for some time; tell whether that is news."""

    @abstractmethod
    async def presence_refresh(self, entries: Iterable[tuple[str, Present]]) -> None:
        """Note that all these clients are still there; who has been forgotten is added."""

    @abstractmethod
    async def presence_remove(self, channel: str, client: str) -> bool:
        """Note that a client is there no more; tell whether that is news."""

    @abstractmethod
    async def presence_get(self, channel: str) -> list[Present]:
        """Return who is there, in the order of coming."""

    @abstractmethod
    async def presence_stats(self, channel: str) -> PresenceStats:
        """Return how many are there."""


def is_complete(since: Position, publications: list[Publication], top: Position) -> bool:
    """Tell whether `publications` are all there is after `since`, where `top` is the last."""
    for publication in publications:
        if (publication.prev, publication.epoch) != since:
            return False
        since = publication.position
    return since.epoch == top.epoch and (since.offset == top.offset or bool(publications))


def check_name(channel: str) -> None:
    """Check the name of a channel: 1 to 255 bytes of UTF-8, any characters.

    Raises:
        ChannelNameError: It is empty, longer, or has no form in UTF-8. It is a `ValueError`.
        TypeError: It is no str.
    """
    if not isinstance(channel, str):
        raise TypeError(f"the name of a channel is a str, not {type(channel).__name__}")
    try:
        size = len(channel.encode())
    except UnicodeEncodeError:
        raise ChannelNameError("the name of a channel has no form in UTF-8") from None
    if not 0 < size <= LONGEST_NAME:
        raise ChannelNameError(f"the name of a channel has 1 to {LONGEST_NAME} bytes, not {size}")


def check_payload(payload: bytes, limit: int) -> None:
    """Check that no more than `limit` bytes are to be published.

    Raises:
        TooBigError: They are more. It is a `ValueError`.
    """
    if len(payload) > limit:
        raise TooBigError(f"a publication of {len(payload)} bytes; the broker takes {limit}")


def check_open(is_open: object) -> None:
    """Check that a broker has been started and not closed.

    Raises:
        BrokerUnavailable: It is not so.
    """
    if not is_open:
        raise BrokerUnavailable("the broker is not started, or closed")


def check_positive(**values: float) -> None:
    """Check the bounds that a broker is given.

    Raises:
        ArgumentError: One is not above 0.
    """
    for name, value in values.items():
        if not value > 0:
            raise ArgumentError(f"{name} must be above 0, not {value!r}")
