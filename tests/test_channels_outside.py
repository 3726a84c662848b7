"""The way in from outside of an application: `connect`; and what is heard by other processes."""

import itertools

import pytest

import yaat
from brokers import DistantBroker
from yaat.brokers.memory import MemoryBroker
from yaat.channels import BlockingHub, ChannelOptions, Channels, Hub
from yaat.channels.outside import connect, connect_blocking
from yaat.exceptions import ArgumentError, BrokerUnavailable

CHANNELS = Channels({"room:{id}": ChannelOptions(history=10, presence=True)})
NUMBERS = itertools.count()


@pytest.fixture
def url() -> str:
    """A space of memory of the test's own."""
    return f"memory://outside-{next(NUMBERS)}"


async def test_what_is_published_outside_is_heard_inside(url: str) -> None:
    app = yaat.Yaat(broker=url, channels=CHANNELS)
    heard = app.channel("room:1").subscribe(last=1)
    async with connect(url, channels=CHANNELS) as broker:
        assert isinstance(broker, Hub)
        published = await broker.channel("room:1").publish({"n": 1})
        publication = await anext(heard)
        assert (publication.data, publication.position) == ({"n": 1}, published.position)
        await broker.channel("room:1").publish(b"live")
        assert (await anext(heard)).data == b"live"
        assert (await app.channel("room:1").history()).top.offset == 2
        assert await broker.channel("room:1").presence() == []
    await heard.aclose()
    await app.hub.close()


async def test_without_the_channels_nothing_is_kept(url: str) -> None:
    """Options are not in the broker: who publishes has to have them."""
    async with connect(url, channels=CHANNELS) as knows, connect(url) as knows_not:
        assert (await knows_not.channel("room:1").publish("x")).offset == 0
        assert (await knows.channel("room:1").publish("x")).offset == 1


async def test_it_is_closed_behind() -> None:
    broker = MemoryBroker()
    async with connect(broker) as hub:
        assert hub.broker is broker
        assert broker.deliver is not None, "it is connected from the beginning"
    assert broker.deliver is None
    with pytest.raises(LookupError, match="theirs"):
        async with connect(broker):
            raise LookupError("theirs")
    assert broker.deliver is None


async def test_a_broker_that_is_away_is_told_of_at_the_door() -> None:
    broker = DistantBroker()
    broker.failing["start"] = 1
    with pytest.raises(BrokerUnavailable, match="a cable was cut"):
        async with connect(broker):
            raise AssertionError("it is not entered")
    assert broker.deliver is None


@pytest.mark.parametrize("url", ["", "smoke://", "nonsense", "memory://?nonsense=1"])
async def test_a_url_that_has_no_broker(url: str) -> None:
    with pytest.raises(ArgumentError):
        await connect(url).__aenter__()
    with pytest.raises(ArgumentError):
        connect_blocking(url)


async def test_a_url_that_is_missing() -> None:
    """What an environment variable gives that is not set is not memory."""
    with pytest.raises(TypeError, match="not None"):
        await connect(None).__aenter__()  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not None"):
        connect_blocking(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="channels is"):
        connect_blocking("memory://", channels={})  # type: ignore[arg-type]


def test_the_blocking_one_is_made_here() -> None:
    broker = connect_blocking("memory://", channels=CHANNELS)
    assert isinstance(broker, BlockingHub)
    assert broker.channels is CHANNELS


def test_they_are_public() -> None:
    assert (yaat.connect, yaat.connect_blocking) == (connect, connect_blocking)
