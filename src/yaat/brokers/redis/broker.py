"""The broker over Redis or Valkey: one server, one behind sentinels, or a cluster."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterable
from itertools import count, groupby
from operator import itemgetter
from typing import Any, Final

from yaat.brokers.contract import (
    Broker,
    Content,
    OnMissed,
    OnPublication,
    OnState,
    Position,
    PresenceStats,
    Present,
    Publication,
    Published,
    check_name,
    check_payload,
)
from yaat.brokers.envelope import pack, unpack
from yaat.brokers.redis import scripts
from yaat.brokers.redis.feed import Feed, live, seen
from yaat.brokers.redis.keys import Keys
from yaat.brokers.redis.scripts import Script
from yaat.brokers.redis.servers import BREATH, Servers
from yaat.brokers.redis.settings import Address, read
from yaat.brokers.redis.wire import AnswerError, Argument, Wire, as_broker_error
from yaat.exceptions import BrokerUnavailable, MalformedError, UsageError
from yaat.payload import decode, encode

logger = logging.getLogger("yaat.broker")

TRIES: Final = 4
"""How often a command follows what it asks for from server to server of a cluster."""

MANY: Final = 500
"""How many clients are refreshed by one command."""

AT_ONCE: Final = 100
"""How many commands are asked for at once, when there are many to give."""

_LAST: Final = 2**63 - 1
_LONGEST: Final = 10**12  # seconds; a script counts in doubles
_MOST: Final = 10**15  # publications; Lua writes more as 1e+16


class RedisBroker(Broker):
    """Carries publications by Redis (6.2 or later) or Valkey.

    Args:
        url: Where it is: `redis://`, `rediss://` (TLS), `valkey://`, `valkeys://`, `unix://`; with
            `+sentinel` or `+cluster` behind the name of several servers.
        options: Those of `Settings`; they have the last word.

    Raises:
        ArgumentError: A URL that cannot be read, or an option that cannot be meant.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self._place, self.settings = read(url, options)
        self.presence_ttl = self.settings.presence_ttl
        self._servers: Servers | None = None
        # What begins the names of the epochs that begin by us, and tells them apart.
        self._epochs = ""
        self._count: Final = count()
        self._lasting: Final = _ms(self.settings.position_ttl)
        self._presence_ms: Final = _ms(self.settings.presence_ttl)
        self._once: Final = _ms(self.settings.once_ttl)

    def __repr__(self) -> str:
        return f"RedisBroker({str(self._place)!r})"

    async def start(
        self, on_publication: OnPublication, on_state: OnState, on_missed: OnMissed
    ) -> None:
        """Connect.

        Raises:
            BrokerUnavailable: No server could be reached within `connect_timeout`.
            BrokerRefused: It does not let us in.
            UsageError: The broker is started already.
        """
        if self._servers is not None:
            raise UsageError("the broker is started already")
        self._epochs = secrets.token_urlsafe(6)  # here, as a process may be forked before
        servers = self._servers = Servers(
            self._place, self.settings, Feed(on_publication), on_state, on_missed
        )
        if not self.settings.require:
            return
        try:
            await servers.until_up()
        except BaseException:
            if self._servers is servers:  # else it has been closed meanwhile
                self._servers = None
            await servers.close()
            raise

    async def close(self) -> None:
        """End all connections."""
        servers, self._servers = self._servers, None
        if servers is not None:
            await servers.close()

    # Publishing

    async def publish(
        self, channel: str, content: Content, *, size: int, ttl: float, once: str | None = None
    ) -> Published:
        """Publish; see `Broker.publish`."""
        servers, keys, partition, name = self._find(channel)
        check_payload(content.payload, self.settings.max_payload)
        envelope = pack(content)
        target, publish = keys.live(partition, name), servers.feed.publish
        if once is None and not (size > 0 and ttl > 0):
            command = (publish, target, live(0, time.time_ns() // 1000, b"", envelope))
            await self._call(partition, lambda _: command)
            return Published(0, "")
        names: tuple[bytes, ...] = keys.history(partition, name)
        if once is not None:
            names += (keys.once(partition, name, once.encode()),)
        offset, epoch, duplicate = await self._stand(
            scripts.PUBLISH,
            partition,
            names,
            min(size, _MOST),
            _ms(ttl),
            envelope,
            publish,
            target,
            self._once,
        )
        return Published(offset, epoch.decode(), bool(duplicate))

    # Listening

    async def subscribe(self, channel: str) -> None:
        """Subscribe; see `Broker.subscribe`."""
        servers, keys, partition, name = self._find(channel)
        target = keys.live(partition, name)
        with servers.feed.wanting(partition, target, channel) as want:
            tries = 0
            while servers.feed.is_wanted(want):  # else unsubscribed: the last call counts
                wire = servers.live(partition)
                try:
                    await servers.feed.subscribe(wire, want)
                except AnswerError as error:
                    refusal = error
                else:
                    return
                tries += 1
                await self._mend(refusal, wire, None, tries)

    async def unsubscribe(self, channel: str) -> None:
        """Unsubscribe; see `Broker.unsubscribe`."""
        check_name(channel)
        # Who is not connected is not subscribed: it is enough that it is not wanted any more.
        with contextlib.suppress(BrokerUnavailable):
            servers, keys, partition, name = self._find(channel)
            target = keys.live(partition, name)
            if not servers.feed.forget(partition, target):
                return
            try:
                await servers.feed.unsubscribe(servers.live(partition), target)
            except AnswerError as error:
                raise as_broker_error(error) from None

    # History

    async def history(
        self,
        channel: str,
        *,
        since: Position | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> tuple[list[Publication], Position]:
        """Return what is kept; see `Broker.history`."""
        _, keys, partition, name = self._find(channel)
        command, first, last = _bounds(since, reverse=reverse)
        offset, epoch, *entries = await self._stand(
            scripts.HISTORY,
            partition,
            keys.history(partition, name),
            command,
            first,
            last,
            -1 if limit is None else limit,
        )
        top = Position(offset, epoch.decode())
        found = (
            _publication(entry, envelope, top.epoch)
            for entry, envelope in zip(entries[::2], entries[1::2], strict=True)
        )
        return [publication for publication in found if publication is not None], top

    async def remove_history(self, channel: str) -> None:
        """Drop what is kept; see `Broker.remove_history`."""
        _, keys, partition, name = self._find(channel)
        await self._stand(scripts.REMOVE, partition, keys.history(partition, name))

    # Presence

    async def presence_add(self, channel: str, present: Present) -> bool:
        """Note who is there; see `Broker.presence_add`."""
        return bool(await self._add(channel, [present]))

    async def presence_refresh(self, entries: Iterable[tuple[str, Present]]) -> None:
        """Note who is still there; see `Broker.presence_refresh`."""
        chunks: list[tuple[str, list[Present]]] = []
        for channel, group in groupby(sorted(entries, key=itemgetter(0)), itemgetter(0)):
            there = [present for _, present in group]
            chunks += ((channel, there[at : at + MANY]) for at in range(0, len(there), MANY))
        for at in range(0, len(chunks), AT_ONCE):
            works = (self._add(*chunk) for chunk in chunks[at : at + AT_ONCE])
            for outcome in await asyncio.gather(*works, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome

    async def _add(self, channel: str, there: list[Present]) -> int:
        arguments: list[Argument] = []
        for each in there:
            told = encode([each.client, each.user, each.info])
            has_user = each.user is not None
            arguments += (each.client, int(has_user), each.user or "", told)
        added: int = await self._presence(scripts.PRESENCE_ADD, channel, *arguments)
        return added

    async def presence_remove(self, channel: str, client: str) -> bool:
        """Note who is there no more; see `Broker.presence_remove`."""
        return bool(await self._presence(scripts.PRESENCE_REMOVE, channel, client))

    async def presence_get(self, channel: str) -> list[Present]:
        """Return who is there; see `Broker.presence_get`."""
        there = await self._presence(scripts.PRESENCE_GET, channel)
        return [Present(*decode(told.partition(b"\n")[2])) for told in sorted(filter(None, there))]

    async def presence_stats(self, channel: str) -> PresenceStats:
        """Return how many are there; see `Broker.presence_stats`."""
        stats: list[int] = []
        while not stats:
            stats = await self._presence(scripts.PRESENCE_STATS, channel)
        return PresenceStats(*stats)

    async def _presence(self, script: Script, channel: str, *arguments: Argument) -> Any:
        _, keys, partition, name = self._find(channel)
        names = keys.presence(partition, name)
        command = ("EVALSHA", script.sha, len(names), *names, self._presence_ms, *arguments)
        return await self._call(partition, lambda _: command, script)

    # Asking the servers

    @property
    def _started(self) -> Servers:
        """What there is between start and close.

        Raises:
            BrokerUnavailable: It is not between them.
        """
        if self._servers is None:
            raise BrokerUnavailable("the broker is not started, or closed")
        return self._servers

    def _find(self, channel: str) -> tuple[Servers, Keys, int, bytes]:
        """Return the servers, how things are called, and the partition and name of a channel.

        Raises:
            ChannelNameError: See `check_name`.
            BrokerUnavailable: It is not started, or has not met a server yet.
        """
        check_name(channel)
        name = channel.encode()
        servers = self._started
        keys = servers.keys
        return servers, keys, keys.partition(name), name

    async def _stand(
        self, script: Script, partition: int, keys: tuple[bytes, ...], *arguments: Argument
    ) -> Any:
        """Run a script that looks where the channel stands."""
        fresh, strict = f"{self._epochs}{next(self._count):x}", self.settings.epochs == "strict"

        def command(wire: Wire) -> tuple[Argument, ...]:
            # Of the very process at the other end of this connection.
            run_id = wire.identity.run_id if strict else ""
            head = ("EVALSHA", script.sha, len(keys))
            return (*head, *keys, run_id, fresh, self._lasting, *arguments)

        return await self._call(partition, command, script)

    async def _call(
        self,
        partition: int,
        command: Callable[[Wire], tuple[Argument, ...]],
        script: Script | None = None,
    ) -> Any:
        """Have a command executed where the partition is. None is executed twice.

        Raises:
            BrokerUnavailable: It is not there, or was lost before it answered.
            BrokerRefused: It says no.
        """
        tries = 0
        while True:
            wire = self._started.commands(partition)
            try:
                return await wire.call(*command(wire))
            except AnswerError as error:
                refusal = error
            if refusal.code == "ASK" and (other := self._other(refusal)) is not None:
                return await self._ask(other, command(other), script)
            tries += 1
            await self._mend(refusal, wire, script, tries)

    async def _mend(
        self, refusal: AnswerError, wire: Wire, script: Script | None, tries: int
    ) -> None:
        """Do what makes it worth while to try again; nothing has been done yet.

        Raises:
            BrokerError: There is nothing, or it was tried too often.
        """
        if tries == TRIES:
            raise as_broker_error(refusal)
        if refusal.code == "NOSCRIPT" and script is not None:
            try:
                await wire.call("SCRIPT", "LOAD", script.text)
            except AnswerError as error:
                raise as_broker_error(error) from None
        elif refusal.code == "MOVED":
            await self._started.look_again()
        elif refusal.code == "TRYAGAIN":
            await asyncio.sleep(BREATH)
        else:
            if refusal.code == "READONLY":
                wire.end(f"{wire.address} takes no publications any more: it is a replica")
            raise as_broker_error(refusal)

    def _other(self, refusal: AnswerError) -> Wire | None:
        """Return the connection to the server to which a slot is on its way."""
        host, _, port = str(refusal).rpartition(" ")[2].rpartition(":")
        return self._started.at(Address(host, int(port))) if port.isdecimal() else None

    async def _ask(self, wire: Wire, command: tuple[Argument, ...], script: Script | None) -> Any:
        """Ask a server for what is on its way there.

        Spec: Redis cluster specification, "ASK redirection".
        """
        if script is not None:  # it may be new there
            command = ("EVAL", script.text, *command[2:])
        wire.send(("ASKING",)).add_done_callback(seen)
        try:
            return await wire.send(command)
        except AnswerError as error:
            raise as_broker_error(error) from None


def _ms(seconds: float) -> int:
    """Return whole milliseconds, at least one."""
    return max(1, round(min(seconds, _LONGEST) * 1000)) if seconds > 0 else 0


def _bounds(since: Position | None, *, reverse: bool) -> tuple[str, str, str]:
    """Return the command that reads, and from where to where."""
    if since is None:
        return ("XREVRANGE", "+", "-") if reverse else ("XRANGE", "-", "+")
    if reverse:
        return "XREVRANGE", f"{max(min(since.offset, _LAST) - 1, 0)}-{_LAST}", "-"
    return "XRANGE", f"{min(since.offset, _LAST) + 1}-0", "+"


def _publication(entry: bytes, envelope: bytes, epoch: str) -> Publication | None:
    """Return what is kept; None: it is none of ours, so it is missing."""
    offset, _, microseconds = entry.partition(b"-")
    try:
        content = unpack(envelope)
    except MalformedError as error:
        logger.warning("something strange is kept: %s", error)
        return None
    number = int(offset)
    return Publication(content, number, epoch, number - 1, int(microseconds) / 1e6)
