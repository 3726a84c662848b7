"""A broker that does what a test says: it answers late, or not, or with less than there was.

What is published is at the server at once; whether it comes here is for the test to say.
"""

import asyncio
import functools
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, ParamSpec

from scripted import in_scripted_time
from yaat.brokers.contract import (
    NOWHERE,
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
    check_open,
)
from yaat.exceptions import BrokerUnavailable

P = ParamSpec("P")

EPOCH: Final = "one"

PATIENCE: Final = 2000
"""How often it may be called: who asks without end asks in vain."""


def in_no_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Let a test wait without waiting. Who waits for what never happens gets a `RuntimeError`."""

    @functools.wraps(test)
    def play(*args: P.args, **keys: P.kwargs) -> None:
        in_scripted_time(lambda: test(*args, **keys))

    return play


class ScriptedBroker(Broker):
    """A broker for one node.

    Attributes:
        calls: What was called, in order: `"subscribe room:1"`.
        subscribed: The channels to which the server has subscribed the node.
        kept: The history of each channel; a test may take some of it away.
        tops: Where each channel stands.
        present: Who is in each channel.
        published: What the node published.
        loses: Whether what the node publishes gets lost on its way back.
        time: By the server's clock; each publication takes a second.
    """

    is_shared = False  # it answers at once, as memory does

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.subscribed: set[str] = set()
        self.kept: defaultdict[str, list[Publication]] = defaultdict(list)
        self.tops: defaultdict[str, Position] = defaultdict(lambda: Position(0, EPOCH))
        self.present: defaultdict[str, dict[str, Present]] = defaultdict(dict)
        self.published: list[tuple[str, Content]] = []
        self.loses = False
        self.time = 0.0
        self.deliver: OnPublication | None = None
        self.tell_state: OnState | None = None
        self.tell_missed: OnMissed | None = None
        self._gates: dict[str, asyncio.Event] = {}
        self._awaited: dict[str, asyncio.Future[None]] = {}
        self._failures: defaultdict[str, deque[BaseException]] = defaultdict(deque)

    # What the test decides

    def hold(self, operation: str) -> None:
        """Hold back the answers of an operation. It has been done at the server by then."""
        self._gates[operation] = asyncio.Event()

    def let_go(self, operation: str) -> None:
        """Let the answers go."""
        self._gates.pop(operation).set()

    def fail(self, operation: str, *errors: BaseException | None) -> None:
        """Let the next calls of an operation fail, before anything is done; None: this one not."""
        self._failures[operation] += [error or _fine for error in errors]

    def count(self, operation: str) -> int:
        """Return how often an operation was called."""
        return sum(call.split()[0] == operation for call in self.calls)

    def next(self, operation: str) -> asyncio.Future[None]:
        """Return what is done when an operation has been done once more."""
        self._awaited[operation] = asyncio.get_running_loop().create_future()
        return self._awaited[operation]

    def keep(self, channel: str, *texts: str, sender: str | None = None) -> list[Publication]:
        """Publish at the server; what comes of it here is what `bring` is given."""
        made = []
        for text in texts:
            prev, epoch = self.tops[channel]
            content = Content("text", text.encode(), None, sender)
            self.time += 1
            made.append(Publication(content, prev + 1, epoch, prev, self.time))
            self.kept[channel].append(made[-1])
            self.tops[channel] = made[-1].position
        return made

    def bring(self, channel: str, *publications: Publication) -> None:
        """Let publications come in, if the node has subscribed."""
        for publication in publications:
            if channel in self.subscribed:
                assert self.deliver is not None
                self.deliver(channel, publication)

    def say(self, channel: str, *texts: str, sender: str | None = None) -> None:
        """Publish, and let it come in."""
        self.bring(channel, *self.keep(channel, *texts, sender=sender))

    def flash(self, channel: str, *texts: str) -> None:
        """Publish what is not kept."""
        for text in texts:
            self.bring(channel, Publication(Content("text", text.encode()), 0, "", 0, 0.0))

    def begin_anew(self, channel: str, epoch: str) -> None:
        """Let the server forget the channel."""
        self.kept[channel].clear()
        self.tops[channel] = Position(0, epoch)

    def rewind(self, channel: str, offset: int) -> None:
        """Let the server forget the last publications, in the same epoch."""
        self.kept[channel] = [each for each in self.kept[channel] if each.offset <= offset]
        self.tops[channel] = Position(offset, self.tops[channel].epoch)

    # What the node sees

    async def _do(self, operation: str, channel: str, work: Callable[[], Any]) -> Any:
        self.calls.append(f"{operation} {channel}".strip())
        if len(self.calls) > PATIENCE:
            raise RuntimeError("the broker is asked again and again")
        failures = self._failures[operation]
        if failures and (failure := failures.popleft()) is not _fine:
            raise failure
        if operation not in {"start", "close"}:
            check_open(self.deliver)
        answer = work()
        if operation in self._awaited:
            self._awaited.pop(operation).set_result(None)
        if operation in self._gates:
            await self._gates[operation].wait()
        return answer

    async def start(
        self, on_publication: OnPublication, on_state: OnState, on_missed: OnMissed
    ) -> None:
        await self._do("start", "", lambda: None)
        self.deliver, self.tell_state = on_publication, on_state
        self.tell_missed = on_missed
        on_state("up")

    async def close(self) -> None:
        self.deliver = None
        self.subscribed.clear()
        await self._do("close", "", lambda: None)

    async def publish(
        self, channel: str, content: Content, *, size: int, ttl: float, once: str | None = None
    ) -> Published:
        def publish() -> Published:
            self.published.append((channel, content))
            if size and ttl:
                (made,) = self.keep(channel, content.payload.decode(), sender=content.sender)
            else:
                made = Publication(content, *NOWHERE, 0, 0.0)
            if not self.loses:
                self.bring(channel, made)
            return Published(made.offset, made.epoch)

        published: Published = await self._do("publish", channel, publish)
        return published

    async def subscribe(self, channel: str) -> None:
        await self._do("subscribe", channel, lambda: self.subscribed.add(channel))

    async def unsubscribe(self, channel: str) -> None:
        await self._do("unsubscribe", channel, lambda: self.subscribed.discard(channel))

    async def history(
        self,
        channel: str,
        *,
        since: Position | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> tuple[list[Publication], Position]:
        def history() -> tuple[list[Publication], Position]:
            kept = [p for p in self.kept[channel] if since is None or p.offset > since.offset]
            return (kept[::-1] if reverse else kept)[:limit], self.tops[channel]

        answer: tuple[list[Publication], Position] = await self._do("history", channel, history)
        return answer

    async def remove_history(self, channel: str) -> None:
        await self._do("remove_history", channel, self.kept[channel].clear)

    async def presence_add(self, channel: str, present: Present) -> bool:
        def add() -> bool:
            is_news = present.client not in self.present[channel]
            self.present[channel][present.client] = present
            return is_news

        return bool(await self._do("presence_add", channel, add))

    async def presence_refresh(self, entries: Iterable[tuple[str, Present]]) -> None:
        def refresh() -> None:
            for channel, present in entries:
                self.present[channel][present.client] = present

        await self._do("presence_refresh", "", refresh)

    async def presence_remove(self, channel: str, client: str) -> bool:
        def remove() -> bool:
            return self.present[channel].pop(client, None) is not None

        return bool(await self._do("presence_remove", channel, remove))

    async def presence_get(self, channel: str) -> list[Present]:
        found: list[Present] = await self._do(
            "presence_get", channel, lambda: list(self.present[channel].values())
        )
        return found

    async def presence_stats(self, channel: str) -> PresenceStats:
        users = {each.user for each in await self.presence_get(channel)} - {None}
        return PresenceStats(len(self.present[channel]), len(users))


_fine: Final = Exception()


def down() -> BrokerUnavailable:
    """Return what a broker raises that cannot be reached."""
    return BrokerUnavailable("the broker is away")
