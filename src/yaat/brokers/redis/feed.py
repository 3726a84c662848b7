"""Feed: what comes live. It knows what is wanted, and has it subscribed to where it comes from."""

import asyncio
import logging
import secrets
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from yaat.brokers.contract import OnPublication, Publication
from yaat.brokers.envelope import unpack
from yaat.brokers.redis.keys import Keys
from yaat.brokers.redis.wire import Wire
from yaat.exceptions import MalformedError

logger = logging.getLogger("yaat.broker")

BATCH: Final = 1000
"""How many channels are subscribed to before their answers are waited for."""

VERSION: Final = 1
HEAD: Final = struct.Struct(">BQQB")
"""What goes before the epoch and the envelope: version, offset, microseconds since 1970, and how
long the epoch is."""


def live(offset: int, microseconds: int, epoch: bytes, envelope: bytes) -> bytes:
    """Return what is sent out of a publication."""
    return HEAD.pack(VERSION, offset, microseconds, len(epoch)) + epoch + envelope


def read(data: bytes) -> Publication:
    """Return the publication that came.

    Raises:
        MalformedError: It is none of ours.
    """
    if data and data[0] != VERSION:
        raise MalformedError(f"a publication of version {data[0]}; version {VERSION} is known")
    try:
        _, offset, microseconds, length = HEAD.unpack_from(data)
        begin = HEAD.size + length
        epoch = data[HEAD.size : begin].decode()
    except (struct.error, UnicodeError):
        raise MalformedError("this is no publication of ours") from None
    # The script counts by one, so the offset before is known.
    prev = offset - 1 if offset else 0
    return Publication(unpack(data[begin:]), offset, epoch, prev, microseconds / 1e6)


class Want:
    """That a channel is wanted.

    Attributes:
        channel, name: What it is called, and how in pub/sub.
        asked: How many have asked for it and wait for the server.
        is_sure: Whether one of them has had the server's word.
    """

    __slots__ = ("asked", "channel", "is_sure", "name")

    def __init__(self, channel: str, name: bytes) -> None:
        self.channel: Final = channel
        self.name: Final = name
        self.asked = 0
        self.is_sure = False


class Feed:
    """What is wanted, and what comes of it.

    Args:
        on_publication: See `Broker.start`.
    """

    def __init__(self, on_publication: OnPublication) -> None:
        self._on_publication: Final = on_publication
        self._node: Final = secrets.token_urlsafe(9).encode()
        self._keys: Keys | None = None
        self._sharded = ""
        self._wanted: Final[dict[bytes, Want]] = {}  # by the name in pub/sub
        self._names: dict[int, dict[bytes, None]] = {}  # the same by partition

    def settle(self, keys: Keys, *, is_sharded: bool) -> None:
        """Learn how things are called on the servers."""
        self._keys = keys
        self._sharded = "S" if is_sharded else ""

    @property
    def publish(self) -> str:
        """The command that publishes."""
        return self._sharded + "PUBLISH"

    @contextmanager
    def wanting(self, partition: int, name: bytes, channel: str) -> Iterator[Want]:
        """Want a channel while it is asked for, and after that if the server has said yes."""
        want = self._wanted.get(name)
        if want is None:
            want = self._wanted[name] = Want(channel, name)
            self._names.setdefault(partition, {})[name] = None
        want.asked += 1
        try:
            yield want
        finally:
            want.asked -= 1
            if not (want.asked or want.is_sure) and self.is_wanted(want):
                self.forget(partition, name)

    def is_wanted(self, want: Want) -> bool:
        """Tell whether nobody has unsubscribed meanwhile."""
        return self._wanted.get(want.name) is want

    async def subscribe(self, wire: Wire, want: Want) -> None:
        """Subscribe to what is wanted.

        Raises:
            AnswerError: The server refuses.
            BrokerUnavailable: The connection was lost.
        """
        try:
            await wire.call(self._sharded + "SUBSCRIBE", want.name)
        except asyncio.CancelledError:
            if want.asked == 1 and not want.is_sure and self.is_wanted(want):
                wire.send((self._sharded + "UNSUBSCRIBE", want.name)).add_done_callback(seen)
            raise
        want.is_sure = True

    def forget(self, partition: int, name: bytes) -> bool:
        """Want a channel no more; tell whether it was wanted."""
        self._names.get(partition, {}).pop(name, None)
        return self._wanted.pop(name, None) is not None

    async def unsubscribe(self, wire: Wire, name: bytes) -> None:
        """Have a channel subscribed to no more, which is not wanted.

        Raises:
            AnswerError: The server refuses.
            BrokerUnavailable: The connection was lost, and with it the subscription.
        """
        await wire.call(self._sharded + "UNSUBSCRIBE", name)

    async def restore(self, wire: Wire, partitions: Iterable[int]) -> set[str]:
        """Subscribe by this connection to all that is wanted of some partitions.

        Returns:
            The channels: what was published there meanwhile has not come.

        Raises:
            AnswerError: The server refuses.
            BrokerUnavailable: The connection was lost.
        """
        names = [name for partition in partitions for name in self._names.get(partition, ())]
        for begin in range(0, len(names), BATCH):
            batch = [name for name in names[begin : begin + BATCH] if name in self._wanted]
            answers = [wire.send((self._sharded + "SUBSCRIBE", name)) for name in batch]
            failures = await asyncio.gather(*answers, return_exceptions=True)
            for failure in failures:
                if isinstance(failure, BaseException):
                    raise failure
        wants = (self._wanted.get(name) for name in names)
        return {want.channel for want in wants if want is not None and want.is_sure}

    def take(self, push: list[Any]) -> None:
        """Take what a server pushes."""
        if push[0] not in (b"message", b"smessage"):
            return
        _, name, data = push
        want = self._wanted.get(name)
        if want is None:  # unsubscribed a moment ago, or a pulse
            return
        try:
            publication = read(data)
        except MalformedError as error:
            logger.warning("something strange came by %.300r: %s", want.channel, error)
            return
        try:
            self._on_publication(want.channel, publication)
        except Exception:
            logger.exception("a publication could not be delivered")

    async def listen_to_pulse(self, wire: Wire, partition: int) -> None:
        """Subscribe to the channel by which this node hears itself."""
        await wire.call(self._sharded + "SUBSCRIBE", self._pulse(partition))

    async def beat(self, wire: Wire, partition: int) -> None:
        """Publish something to this node."""
        await wire.call(self.publish, self._pulse(partition), b"")

    def _pulse(self, partition: int) -> bytes:
        assert self._keys is not None  # noqa: S101 - it is settled before anything connects
        return self._keys.pulse(partition, self._node)


def seen(answer: "asyncio.Future[Any]") -> None:
    """Take note of an answer that nobody waits for: an error in it is no news."""
    if not answer.cancelled():
        answer.exception()
