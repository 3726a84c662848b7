"""The hub: what an application has of channels."""

import asyncio
from typing import Any

import pytest

from yaat.brokers.contract import Publication
from yaat.brokers.memory import MemoryBroker
from yaat.channels import Channel, ChannelOptions, Channels, Hub
from yaat.exceptions import ArgumentError, BrokerUnavailable, ChannelNameError, UsageError

KEPT = ChannelOptions(history=10)


async def test_without_anything_it_is_memory_of_its_own() -> None:
    first, second = Hub(), Hub()
    assert isinstance(first.broker, MemoryBroker)
    assert first.broker is not second.broker
    assert dict(first.channels.patterns) == {}
    assert (first.dropped, first.cut) == (0, 0)
    for hub in (first, second):
        await hub.close()


async def test_what_carries_it() -> None:
    broker = MemoryBroker()
    channels = Channels({"room:{id}": KEPT})
    hub = Hub(broker, channels)
    assert hub.broker is broker
    assert hub.channels is channels
    assert hub.channel("room:1").options is KEPT
    by_url = Hub("memory://?max_payload=3")
    with pytest.raises(ValueError, match="the broker takes 3"):
        await by_url.channel("a").publish("long")
    await by_url.close()


@pytest.mark.parametrize("url", ["", "nonsense", "smoke://", "memory://?nonsense=1"])
def test_what_cannot_carry_it(url: str) -> None:
    """Nothing is not memory: an environment variable that is empty has been forgotten."""
    with pytest.raises(ArgumentError):
        Hub(url)


def test_a_channel_costs_nothing() -> None:
    """It may be made where there is no event loop, and holds nothing of its own."""
    hub = Hub(None, Channels({"room:{id}": KEPT}))
    channel = hub.channel("room:1")
    assert isinstance(channel, Channel)
    assert (channel.name, channel.options) == ("room:1", KEPT)
    assert repr(channel) == "Channel('room:1')"
    assert hub.channel("other").options == ChannelOptions()
    assert not hub._rooms
    assert isinstance(hub.broker, MemoryBroker)
    assert not hub.broker._space.histories.channels


@pytest.mark.parametrize("name", ["", "a" * 256, "\ud800"])
def test_a_name_that_cannot_be(name: str) -> None:
    with pytest.raises(ChannelNameError):
        Hub().channel(name)


async def test_it_counts_what_was_not_delivered() -> None:
    hub = Hub()
    hub.counts.dropped += 2
    hub.counts.cut += 1
    assert (hub.dropped, hub.cut) == (2, 1)
    with pytest.raises(AttributeError):
        hub.dropped = 0  # type: ignore[misc]


class Slow(MemoryBroker):
    """Takes a moment to connect, and fails as often as it is told to."""

    def __init__(self, failures: int = 0) -> None:
        super().__init__()
        self.failures = failures
        self.starts = 0

    async def start(self, on_publication: Any, on_state: Any, on_missed: Any) -> None:
        self.starts += 1
        await asyncio.sleep(0)
        if self.failures:
            self.failures -= 1
            raise BrokerUnavailable("nobody is there", retry_in=1.0)
        await super().start(on_publication, on_state, on_missed)


async def test_the_first_uses_start_it_once() -> None:
    broker = Slow()
    hub = Hub(broker, Channels({"a": KEPT}))
    published = await asyncio.gather(*(hub.channel("a").publish(number) for number in range(5)))
    assert [each.offset for each in published] == [1, 2, 3, 4, 5]
    assert broker.starts == 1
    await hub.close()


async def test_a_start_that_fails_is_tried_again_by_the_next() -> None:
    broker = Slow(failures=2)
    hub = Hub(broker)
    channel = hub.channel("a")
    for _ in range(2):
        with pytest.raises(BrokerUnavailable, match="nobody is there"):
            await channel.publish("x")
    await channel.publish("x")
    assert broker.starts == 3
    await hub.close()


async def test_who_gives_up_waiting_does_not_stop_the_others() -> None:
    hub = Hub(Slow())
    first = asyncio.create_task(hub.channel("a").history())
    second = asyncio.create_task(hub.channel("a").history())
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).top.offset == 0
    with pytest.raises(asyncio.CancelledError):
        await first
    await hub.close()


async def test_what_ends_with_it() -> None:
    hub = Hub(None, Channels({"a": KEPT}))
    channel = hub.channel("a")
    heard: list[Publication] = []

    async def listen() -> None:
        async for publication in channel.subscribe(last=10):
            heard.append(publication)  # noqa: PERF401 - one by one, as they come

    await channel.publish("before")
    listening = asyncio.create_task(listen())
    await asyncio.sleep(0.01)
    await channel.publish("live")
    await hub.close()
    await listening
    assert [each.data for each in heard] == ["before", "live"]
    await hub.close()
    assert (await channel.history()).publications == [], "a new life, and memory of its own"
    await hub.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_it_lives_on_in_another_event_loop() -> None:
    hub = Hub(None, Channels({"a": KEPT}))

    async def use() -> int:
        return (await hub.channel("a").publish("x")).offset

    assert asyncio.run(use()) == 1
    assert asyncio.run(use()) == 1, "the first has gone with its loop"


async def test_it_belongs_to_one_event_loop_at_a_time() -> None:
    hub = Hub()
    await hub.start()

    def elsewhere() -> None:
        asyncio.run(hub.start())

    with pytest.raises(UsageError, match="one event loop"):
        await asyncio.to_thread(elsewhere)
    await hub.channel("a").publish("x")
    await hub.close()
