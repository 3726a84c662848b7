"""Channel: a name, a bounded history, and those who listen."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, Self

from yaat.brokers.contract import (
    NOWHERE,
    Content,
    Position,
    PresenceStats,
    Present,
    Publication,
    Published,
    check_name,
    is_complete,
)
from yaat.channels.formats import AS_PUBLISHED, EVENTS, RAW, Format
from yaat.channels.members import OnLost, Socket, SocketMember, Subscriber, called, client_of
from yaat.channels.node import Node
from yaat.exceptions import ArgumentError, MalformedError, TooBigError, UsageError
from yaat.payload import check_encodable, decode, encode

NEVER: Final = Position(0, "?")
"""A position that no channel has."""

MAX_INFO: Final = 4096
"""The longest `info` of who is present, in bytes of JSON; and the longest `user`."""


class History(NamedTuple):
    """What is kept of a channel.

    Attributes:
        publications: In the order asked for.
        top: Where the channel stands.
        complete: Whether nothing is missing after the position that was asked for.
    """

    publications: list[Publication]
    top: Position
    complete: bool


@dataclass(frozen=True, slots=True)
class PresenceEvent:
    """Somebody came or went."""

    kind: Literal["join", "leave"]
    present: Present


class Channel:
    """A name, a bounded history, and those who listen.

    It costs nothing to make, and holds nothing: `websocket.channel(name)`, `request.channel(name)`
    or `app.channel(name)` wherever one is needed.

    Attributes:
        name: 1 to 255 bytes of UTF-8.
        options: What its pattern gives it.

    Raises:
        ChannelNameError: No channel can have this name. It is a `ValueError`.
    """

    __slots__ = ("_node", "name", "options")

    def __init__(self, node: Node, name: str) -> None:
        check_name(name)
        self._node = node
        self.name: Final = name
        self.options: Final = node.channels.options(name)

    def __repr__(self) -> str:
        return f"Channel({self.name!r})"

    # Publishing

    async def publish(
        self,
        data: Any,
        *,
        skip: Socket | None = None,
        once: str | None = None,
        key: str | None = None,
    ) -> Published:
        """Publish to all who listen, on every node, and keep it as the options say.

        Args:
            data: Text (str), bytes (bytes, bytearray, memoryview), or any JSON value.
            skip: The connection that is to be left out: mostly the sender's. The history keeps the
                publication, so who resumes by another connection is brought it.
            once: An idempotency key. Who publishes to this channel with the same again within five
                minutes gets the place of the first, and nothing is published.
            key: What a newer publication with the same key supersedes, where `slow="latest"`.

        Returns:
            Its place in the channel; offset 0 if it is not kept.

        Raises:
            ArgumentError: Text that has no form in UTF-8, also in `once`, `key` or a JSON value.
            TypeError: A value that has no form in JSON; `once` or `key` is no str.
            TooBigError: More bytes than the broker takes (1 MiB). It is a `ValueError`.
            BrokerError: It could not be published, or nobody knows: `maybe_published`.
        """
        if once is not None or key is not None:
            _check_label(once=once, key=key)
        sender = None if skip is None else client_of(skip.scope)
        return await self._node.publish(self.name, self.options, _content(data, key, sender), once)

    # Listening

    @asynccontextmanager
    async def join(
        self,
        websocket: Socket,
        *,
        since: Position | str | None = None,
        last: int = 0,
        format: Format = RAW,  # noqa: A002 - the word for it
        user: str | None = None,
        info: Any = None,
        on_lost: OnLost | None = None,
    ) -> AsyncIterator[Self]:
        """Let a connection listen, for as long as this is entered.

        Args:
            websocket: The connection. It has to be accepted.
            since: The position where its client stands, as the client sent it; None or "": nowhere.
                It is first brought what it has missed.
            last: If it stands nowhere, begin with so many of the last publications.
            format: How publications are told: `RAW` or `POSITIONED`.
            user: Whose connection it is, for those who ask who is present.
            info: Any JSON value to be known of it, at most 4 KiB.
            on_lost: Called with a `PositionLost` when not all is there any more that it has missed;
                it may be a coroutine function. Then it goes on as if `since` had not been given
                when it was called.

        Raises:
            StateError: The connection is not open.
            ArgumentError: `last` is below 0.
            UsageError: The connection is a member already; or `user` or `info` are given for a
                channel without presence.
            PositionLost: Not all is there any more, and `on_lost` was not given. Uncaught, it
                closes with 4010.
            TooBigError: `info` or `user` is too long.
            TypeError: The connection is of another framework, or `user` is no str.
            BrokerError: The channel cannot be reached.
            WebSocketDisconnect: The peer has left.

        Guarantees:
            Between what is brought and what comes live, nothing is missing, and nothing comes
            twice. It leaves when this is left, however that happens.
        """
        if not hasattr(websocket, "outbox"):
            raise TypeError(
                f"a yaat.WebSocket can join, not {type(websocket).__module__}."
                f"{type(websocket).__name__}: let the handler be one of a Yaat, or an Endpoint"
            )
        _check_count(last=last)
        present = self._present(websocket, user, info)
        member = SocketMember(
            websocket,
            self.name,
            self.options,
            self._node.counts,
            format=format,
            on_lost=None
            if on_lost is None
            else lambda error: self._node.run(called(on_lost, error)),
        )
        try:
            room = await self._node.enter(self.name, self.options)
            try:
                await room.catch_up(member, self._standing(since), last, on_lost)
                if present is None:
                    yield self
                    return
                try:
                    await self._node.arrive(self.name, present)
                    yield self
                finally:
                    room.remove(member)
                    await self._node.depart(self.name, present)
            finally:
                room.remove(member)
                self._node.leave(room)
        finally:
            member.leave()

    def _standing(self, since: Position | str | None) -> Position | None:
        """Return the position that a client sent; None: it stands nowhere.

        What cannot be read is a position that was lost: `NEVER`.
        """
        if isinstance(since, str):
            try:
                since = Position.parse(since) if since else None
            except MalformedError:
                return NEVER
        return None if since == NOWHERE else since

    def subscribe(
        self, *, since: Position | str | None = None, last: int = 0
    ) -> AsyncGenerator[Publication, None]:
        """Iterate over the publications, without a connection. It begins with the first step.

        Args:
            since: First what came after this position; None: only what comes.
            last: If `since` is None, first so many of the last.

        Raises:
            PositionLost: Not all is there any more after `since`; or this reader was so slow that
                not all is there any more that it has not read.
            BrokerError: The channel cannot be reached.

        Guarantees:
            In order, none missing, none twice. What waits for the reader is bounded by
            `max_waiting`; who falls behind goes on from the history.
        """
        return self._listen(AS_PUBLISHED, since, last)

    async def _listen(
        self,
        format: Format,  # noqa: A002
        since: Position | str | None,
        last: int,
    ) -> AsyncGenerator[Publication, None]:
        _check_count(last=last)
        room = await self._node.enter(self.name, self.options)
        subscriber = Subscriber(format, self.options.max_waiting)
        try:
            position = await room.catch_up(subscriber, self._standing(since), last)
            while True:
                while (publication := subscriber.take()) is not None:
                    position = publication.position
                    yield publication
                if subscriber.is_over:
                    return
                if subscriber.is_behind:
                    room.remove(subscriber)
                    subscriber.is_behind = False
                    is_kept = format is AS_PUBLISHED and position.epoch
                    await room.catch_up(subscriber, position if is_kept else NEVER, 0)
                await subscriber.wait()
        finally:
            room.remove(subscriber)
            self._node.leave(room)

    # What is kept

    async def history(
        self,
        *,
        since: Position | str | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> History:
        """Return what is kept.

        Args:
            since: Only what came after this position; with `reverse` before it.
            limit: At most so many; 0: only where the channel stands.
            reverse: The newest first.

        Raises:
            ArgumentError: `limit` is below 0.
            BrokerError: The channel cannot be reached.
        """
        _check_count(limit=limit)
        await self._node.start()
        position = self._standing(since)
        publications, top = await self._node.broker.history(
            self.name, since=position, limit=limit, reverse=reverse
        )
        complete = position is None or reverse or is_complete(position, publications, top)
        return History(publications, top, complete)

    async def remove_history(self) -> None:
        """Drop what is kept. The position stays: who stands before it has lost it."""
        await self._node.start()
        await self._node.broker.remove_history(self.name)

    # Who is there

    async def presence(self) -> list[Present]:
        """Return who is there, on all nodes, in the order of coming.

        Raises:
            UsageError: The channel has no presence.
            BrokerError: The channel cannot be reached.
        """
        self._require_presence()
        await self._node.start()
        return await self._node.broker.presence_get(self.name)

    async def presence_stats(self) -> PresenceStats:
        """Return how many are there. It raises as `presence` does."""
        self._require_presence()
        await self._node.start()
        return await self._node.broker.presence_stats(self.name)

    async def presence_events(self) -> AsyncGenerator[PresenceEvent, None]:
        """Iterate over who comes and goes from now on.

        An event may be lost; `presence` is the truth.

        Raises:
            UsageError: The channel has no presence.
            PositionLost: This reader was too slow.
            BrokerError: The channel cannot be reached.
        """
        self._require_presence()
        async with aclosing(self._listen(EVENTS, None, 0)) as events:
            async for publication in events:
                kind: Any = publication.content.kind
                yield PresenceEvent(kind, Present(**publication.data))

    def _require_presence(self) -> None:
        if not self.options.presence:
            raise UsageError(
                f"{self!r} has no presence: give its pattern ChannelOptions(presence=True)"
            )

    def _present(self, websocket: Socket, user: str | None, info: Any) -> Present | None:
        if not self.options.presence and user is None and info is None:
            return None
        self._require_presence()
        if not isinstance(user, str | None):
            raise TypeError(f"user is a str, not {type(user).__name__}")
        encoded = _encoded(info)
        size = max(len(_encoded(user)), len(encoded))
        if size > MAX_INFO:
            raise TooBigError(f"user and info have at most {MAX_INFO} bytes of JSON, not {size}")
        # As every broker gives it back, and nobody's but ours.
        return Present(client_of(websocket.scope), user, decode(encoded))


def _check_count(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and count < 0:
            raise ArgumentError(f"{name} is 0 or more, not {count}")


def _content(data: Any, key: str | None, sender: str | None) -> Content:
    if isinstance(data, str):
        if not data.isascii():
            check_encodable(data)
        return Content("text", data.encode(), key, sender)
    if isinstance(data, (bytes, bytearray, memoryview)):
        return Content("bytes", bytes(data), key, sender)
    return Content("json", _encoded(data), key, sender)


def _encoded(value: Any) -> bytes:
    try:
        return encode(value)
    except UnicodeEncodeError:
        raise ArgumentError("the value has no form in UTF-8: a lone surrogate is in it") from None


def _check_label(**labels: str | None) -> None:
    for name, label in labels.items():
        if label is None:
            continue
        if not isinstance(label, str):
            raise TypeError(f"{name} is a str, not {type(label).__name__}")
        check_encodable(label)
