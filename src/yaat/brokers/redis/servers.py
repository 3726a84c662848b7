"""Servers: which server has which part of the channels, and the two connections to each."""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, NamedTuple

from yaat.brokers.contract import OnMissed, OnState
from yaat.brokers.redis import scripts
from yaat.brokers.redis.feed import Feed
from yaat.brokers.redis.keys import Keys, slot_of, tags
from yaat.brokers.redis.line import Backoff, Line
from yaat.brokers.redis.settings import Address, Place, Settings, tls
from yaat.brokers.redis.wire import (
    AnswerError,
    OnPush,
    Wire,
    as_broker_error,
    connect,
    dial,
    identify,
    log_in,
)
from yaat.exceptions import BrokerError, BrokerRefused, BrokerUnavailable
from yaat.tasks import failure_of

logger = logging.getLogger("yaat.broker")

AGAIN: Final = 60.0
"""How often, in seconds, it is logged that the broker is still away."""

BREATH: Final = 0.1
"""How long, in seconds, between two looks, however many servers say that something has moved."""

CLOSE: Final = 5.0
"""How long, in seconds, closing may take."""

SHARDED: Final = (7, 0)
"""Since this version a cluster need not send every publication to all of its servers."""


class Plan(NamedTuple):
    """Which server has which partition.

    Attributes:
        servers: One for each partition.
        is_sharded: Whether pub/sub is by slots (SPUBLISH).
    """

    servers: tuple[Address, ...]
    is_sharded: bool = False


class Finder:
    """Finds out which server has which partition: asks those that the URL names, or one of them.

    Args:
        place: What the URL says.
        settings: How to get in.
        context: How to encrypt.
    """

    def __init__(self, place: Place, settings: Settings, context: ssl.SSLContext | None) -> None:
        self._place = place
        self._settings = settings
        self._context = context
        self._is_cluster = place.mode == "cluster"
        self._known = list(place.addresses)  # who is asked, in this order
        self._single: Plan | None = None

    @property
    def may_change(self) -> bool:
        """Whether the answer may be another one later."""
        return self._place.mode == "sentinel" or self._is_cluster

    def distrust(self) -> None:
        """Ask another one first: what was said last did not help. It may be cut off from others."""
        self._known.append(self._known.pop(0))

    async def find(self) -> Plan:
        """Find it out.

        Raises:
            BrokerError: Nobody can say.
        """
        if self._is_cluster:
            return await self._first(self._of_cluster)
        if self._place.mode == "sentinel":
            return await self._first(self._of_sentinel)
        if self._single is None:
            address = self._place.addresses[0]
            wire = await connect(address, self._settings, self._context)
            wire.end()
            if wire.identity.is_cluster:
                self._is_cluster = True
                return await self.find()
            self._single = Plan((address,))
        return self._single

    async def _first(self, ask: Callable[[Address], Awaitable[Plan]]) -> Plan:
        """Return what the first one says that can say it; it is asked first the next time."""
        why: list[BrokerError] = []
        for address in tuple(self._known):
            try:
                plan = await ask(address)
            except BrokerError as error:
                why.append(error)
            except AnswerError as error:
                refusal = as_broker_error(error)
                why.append(type(refusal)(f"{address}: {refusal}"))
            except Exception as error:  # noqa: BLE001 - whatever it said, the next may do better
                why.append(BrokerUnavailable(f"{address} says nonsense: {error!r}"))
            else:
                self._known.sort(key=address.__ne__)  # the others stay in their order
                return plan
        refused = all(isinstance(error, BrokerRefused) for error in why)
        said = "; ".join(map(str, why))
        raise (BrokerRefused if refused else BrokerUnavailable)(
            f"nobody says where the channels of {self._place} are: {said}"
        )

    async def _of_sentinel(self, address: Address) -> Plan:
        settings = self._settings
        wire = await dial(address, settings, self._context)
        try:
            await log_in(wire, settings.sentinel_username, settings.sentinel_password)
            service = self._place.service
            master = await wire.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service)
        finally:
            wire.end()
        if not master:
            raise BrokerUnavailable(f"the sentinel {address} knows no service {service!r}")
        return Plan((Address(master[0].decode(), int(master[1])),))

    async def _of_cluster(self, address: Address) -> Plan:
        settings = self._settings
        wire = await dial(address, settings, self._context)
        try:
            await log_in(wire, settings.username, settings.password)
            identity = await identify(wire, settings)
            ranges = await wire.call("CLUSTER", "SLOTS")
        finally:
            wire.end()
        return Plan(self._planned(ranges, address), identity.version >= SHARDED)

    def _planned(self, ranges: list[Any], asked: Address) -> tuple[Address, ...]:
        """Return who has which partition; and note who is there to be asked."""
        masters: dict[range, Address] = {}
        others: list[Address] = []
        for first, last, *nodes in ranges:
            master, *replicas = (_node(node, asked) for node in nodes)
            masters[range(first, last + 1)] = master
            others += replicas
        servers: list[Address] = []
        for tag in tags(self._settings.partitions):
            slot = slot_of(tag)
            found = next((master for slots, master in masters.items() if slot in slots), None)
            if found is None:
                raise BrokerUnavailable(f"{asked}: no server of the cluster has slot {slot}")
            servers.append(found)
        self._known = [*dict.fromkeys((*masters.values(), *others, *self._place.addresses))]
        return tuple(servers)


def _node(told: list[Any], asked: Address) -> Address:
    """Return where a server of the cluster is. One that does not know its own name is the asked."""
    host, port, *_ = told
    return Address(host.decode() if host else asked.host, port)


class Link:
    """One server: the connection for commands, and the one by which publications come.

    They are two, so that a server which ends the second, as too much waits for us, does not end
    what is being published.
    """

    def __init__(self, address: Address, servers: "Servers") -> None:
        self.address: Final = address
        self.commands: Final = servers.line(address, None, self._try)
        self.live: Final = servers.line(address, self._take, self._restore)
        self._servers = servers
        self._missed: set[str] = set()
        self._pulse: Final = asyncio.create_task(self._feel(), name="yaat broker pulse")
        self._pulse.add_done_callback(failure_of)

    @property
    def is_up(self) -> bool:
        """Whether both are there."""
        return self.commands.is_up and self.live.is_up

    def _take(self, push: list[Any]) -> None:
        if push[0] == b"sunsubscribe":  # unasked: a slot has gone elsewhere
            self.give_up()
        self._servers.feed.take(push)

    async def _try(self, wire: Wire) -> None:
        """Bring the scripts, or else each who comes first would bring them. Publish something.

        A user that may not do that is to be told so now, not when it matters.
        """
        await asyncio.gather(*(wire.call("SCRIPT", "LOAD", each.text) for each in scripts.ALL))
        for partition in self._servers.partitions(self.address)[:1]:
            await self._servers.feed.beat(wire, partition)

    async def _restore(self, wire: Wire) -> None:
        partitions = self._servers.partitions(self.address)
        self._missed |= await self._servers.feed.restore(wire, partitions)

    async def adopt(self, wire: Wire, partitions: list[int]) -> None:
        """Subscribe to what is wanted of partitions that have come here from elsewhere."""
        try:
            self._missed |= await self._servers.feed.restore(wire, partitions)
        except (AnswerError, BrokerError) as error:
            wire.end(f"{self.address} does not take a slot over: {error}")

    def give_up(self) -> None:
        """End the connection for what comes live; the next one subscribes to what is to come."""
        if self.live.wire is not None:
            self.live.wire.end(f"{self.address} has given up a slot")

    def take_missed(self) -> set[str]:
        """Return in which channels something may be missing, once it can be asked for."""
        if not self.is_up:
            return set()
        missed, self._missed = self._missed, set()
        return missed

    async def _feel(self) -> None:
        """Publish something to ourselves when nothing comes; if that does not come, begin anew.

        A connection may look well and be dead: half open, or to a server that was replaced.
        """
        feed, wait = self._servers.feed, self._servers.settings.probe
        while True:
            wire = self.live.wire
            before = wire.received if wire is not None else 0
            await asyncio.sleep(wait)
            if wire is None or wire.received != before or not self.is_up:
                continue
            with contextlib.suppress(BrokerError, AnswerError):
                partition = self._servers.partitions(self.address)[0]  # else it is being closed
                await feed.listen_to_pulse(wire, partition)
                before = wire.received
                await feed.beat(self.commands.get(), partition)
                await asyncio.sleep(wait)
                if wire.received == before:
                    wire.end(f"{self.address} takes publications, but none of them comes back")

    def close(self) -> set["asyncio.Task[None]"]:
        """End it; return the tasks that end."""
        self._pulse.cancel()
        return {self.commands.close(), self.live.close(), self._pulse}


class Servers:
    """The servers of a broker. It keeps the connections to them, and looks where they are.

    Args:
        place: What the URL says.
        settings: How to work.
        feed: Where publications come in.
        on_state, on_missed: See `Broker.start`.
    """

    def __init__(
        self,
        place: Place,
        settings: Settings,
        feed: Feed,
        on_state: OnState,
        on_missed: OnMissed,
    ) -> None:
        self.settings: Final = settings
        self.feed: Final = feed
        self.plan: Plan | None = None
        self.is_up = False
        self._was_up = False
        self._keys: Keys | None = None
        self._place: Final = place
        self._context: Final = tls(place, settings)
        self._finder: Final = Finder(place, settings, self._context)
        self._on_state: Final = on_state
        self._on_missed: Final = on_missed
        self._links: Final[dict[Address, Link]] = {}
        self._loop: Final = asyncio.get_running_loop()
        self._why: BrokerError | None = None
        self._decided: Final = asyncio.Event()  # whether the start succeeds
        self._doubt: Final = asyncio.Event()
        self._next_look: asyncio.Future[None] = self._loop.create_future()
        self._next_try = 0.0
        self._complaint: asyncio.TimerHandle | None = None
        self._tasks: Final[set[asyncio.Task[None]]] = set()
        self.run(self._keep())

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` in a task that ends with this."""
        task = self._loop.create_task(work, name="yaat broker servers")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(failure_of)

    def line(
        self,
        address: Address,
        on_push: OnPush | None,
        prepare: Callable[[Wire], Awaitable[None]],
    ) -> Line:
        """Return a new line to a server."""
        return Line(
            lambda: connect(address, self.settings, self._context, on_push),
            self.settings,
            prepare,
            self._note_change,
        )

    async def until_up(self) -> None:
        """Wait until all is there.

        Raises:
            BrokerUnavailable: It is not, after `connect_timeout`.
            BrokerRefused: It will not be.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.connect_timeout):
                await self._decided.wait()
        if not self.is_up:
            raise self._unavailable()

    async def close(self) -> None:
        """End all there is."""
        self._why = BrokerUnavailable("the broker has been closed")
        self._decided.set()
        if not self._next_look.done():
            self._next_look.set_result(None)
        if self._complaint is not None:
            self._complaint.cancel()
        for link in self._links.values():
            self._tasks.update(link.close())
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        _, stubborn = await asyncio.wait(tasks, timeout=CLOSE) if tasks else ((), ())
        for task in stubborn:
            logger.error("%r did not end within %s s of being cancelled", task, CLOSE)

    # Where they are

    @property
    def keys(self) -> Keys:
        """How things are called on the servers.

        Raises:
            BrokerUnavailable: It is not known yet what they are: one alone, or a cluster.
        """
        if self._keys is None:
            raise self._unavailable()
        return self._keys

    def partitions(self, address: Address) -> list[int]:
        """Return which partitions a server has."""
        servers = self.plan.servers if self.plan is not None else ()
        return [partition for partition, server in enumerate(servers) if server == address]

    def commands(self, partition: int) -> Wire:
        """Return the connection for commands on what is in a partition.

        Raises:
            BrokerUnavailable: There is none. Nothing waits for one.
        """
        return self._link(partition).commands.get()

    def live(self, partition: int) -> Wire:
        """Return the connection by which the publications of a partition come.

        Raises:
            BrokerUnavailable: There is none.
        """
        return self._link(partition).live.get()

    def at(self, address: Address) -> Wire | None:
        """Return the connection for commands to a server, if there is one."""
        link = self._links.get(address)
        return link.commands.wire if link is not None else None

    def _link(self, partition: int) -> Link:
        assert self.plan is not None  # noqa: S101 - who knows a partition has asked for `keys`
        return self._links[self.plan.servers[partition]]

    async def look_again(self) -> None:
        """Find out once more where the servers are: one has said that something has moved."""
        looked = self._next_look
        self._doubt.set()
        await asyncio.wait([looked], timeout=self.settings.timeout)

    async def _keep(self) -> None:
        """Find out where the servers are, for ever."""
        backoff = Backoff(self.settings.retry_base, self.settings.retry_cap)
        while True:
            self._doubt.clear()
            looked, self._next_look = self._next_look, self._loop.create_future()
            try:
                self._arrange(await self._finder.find())
            except BrokerError as error:
                self._why = error
            except Exception as error:
                logger.exception("looking for the servers failed in a way that nobody expected")
                self._why = BrokerUnavailable(f"{self._place}: {error!r}")
            else:
                self._why = None
            finally:
                looked.set_result(None)
            wait = self._pause(backoff)
            self._note_change()
            await asyncio.sleep(BREATH)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._doubt.wait()

    def _pause(self, backoff: Backoff) -> float | None:
        """Return how long to wait until the next look, if nobody says that something has moved."""
        if self._why is None and not self._finder.may_change:
            return None
        if self.is_up:
            backoff.reset()
            return self.settings.probe
        if self.plan is not None:
            self._finder.distrust()
        wait = backoff.next()
        self._next_try = self._loop.time() + wait
        return wait

    def _arrange(self, plan: Plan) -> None:
        """Have a link to each server that has a partition, and to no other."""
        before, self.plan = self.plan, plan
        if self._keys is None:
            settings = self.settings
            self._keys = Keys(settings.prefix, settings.db, len(plan.servers))
        self.feed.settle(self._keys, is_sharded=plan.is_sharded)
        if before is not None and before.is_sharded != plan.is_sharded:
            for link in self._links.values():  # what is subscribed to is another kind of channel
                link.give_up()
        for address in dict.fromkeys(plan.servers):
            if address not in self._links:
                self._links[address] = Link(address, self)
        if before is not None and before != plan:
            self._move(before, plan)
        for address in self._links.keys() - set(plan.servers):
            for task in self._links.pop(address).close():
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        self._note_change()

    def _move(self, before: Plan, plan: Plan) -> None:
        """Have what is subscribed to follow the partitions that have moved."""
        moved: dict[tuple[Address, Address], list[int]] = {}
        for partition, (old, new) in enumerate(zip(before.servers, plan.servers, strict=True)):
            if old != new:
                moved.setdefault((old, new), []).append(partition)
        for (old, new), partitions in moved.items():
            self._links[old].give_up()
            link = self._links[new]
            if link.live.wire is not None:  # else they are restored with the connection
                self.run(self._adopt(link, link.live.wire, partitions))

    async def _adopt(self, link: Link, wire: Wire, partitions: list[int]) -> None:
        await link.adopt(wire, partitions)
        self._note_change()

    # How it goes

    @property
    def _trouble(self) -> BrokerError | None:
        """Why it is not up, if that is known yet."""
        lines = (line for link in self._links.values() for line in (link.commands, link.live))
        return next((line.why for line in lines if line.why is not None), self._why)

    def _unavailable(self) -> BrokerError:
        """Return what went wrong, anew: without the frames in which it was raised before."""
        trouble = self._trouble or BrokerUnavailable(f"{self._place} has not answered yet")
        if isinstance(trouble, BrokerUnavailable):
            wait = max(0.0, self._next_try - self._loop.time())
            return type(trouble)(str(trouble), retry_in=wait)
        return type(trouble)(str(trouble))

    def _note_change(self) -> None:
        """Tell what follows from the change of a connection."""
        links = self._links.values()
        was_up = self.is_up
        self.is_up = self.plan is not None and all(link.is_up for link in links)
        if self.is_up or isinstance(self._trouble, BrokerRefused):
            self._decided.set()
        if was_up and not self.is_up and self._finder.may_change:
            self._doubt.set()
        missed = set[str]().union(*(link.take_missed() for link in links))
        if missed:
            _tell(self._on_missed, missed)
        if was_up is not self.is_up:
            _tell(self._on_state, "up" if self.is_up else "down")
        self._log()

    def _log(self) -> None:
        """Log when it goes down, and once a minute while it is; and when it is up again."""
        if self.is_up:
            self._was_up = True
            if self._complaint is not None:
                self._complaint.cancel()
                self._complaint = None
                logger.warning("the broker is up again")
            return
        is_for_start = self.settings.require and not self._was_up  # to say
        if self._complaint is None and self._trouble is not None and not is_for_start:
            self._complain()

    def _complain(self) -> None:
        logger.warning("the broker is down: %s", self._trouble)
        self._complaint = self._loop.call_later(AGAIN, self._complain)


def _tell(callback: Callable[[Any], object], what: object) -> None:
    try:
        callback(what)
    except Exception:
        logger.exception("nobody could be told of the broker's state")
